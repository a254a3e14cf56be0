//! The forms a receipt takes inside a reply that stock clients still read: a comment and a chunk without choices in a stream,
//! one more member in a JSON body.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The receipt as an SSE comment, `: pontage-receipt <base64url>`. Anything outside that alphabet is left out, so that no
/// text can end the line.
pub fn receipt_comment(b64: &str) -> Bytes {
    let safe = b64.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=' | '.'));
    let mut out = String::from(": pontage-receipt ");
    out.extend(safe);
    out.push_str("\n\n");
    out.into()
}

/// The receipt as a chunk of OpenAI's shape (`object` says which) with `choices: []` and the block under its configured name. `created` is in
/// Unix seconds, `model` the public name, `block_json` a JSON value. Clients that asked for usage expect the member on every
/// chunk: for them it is there, null.
pub(super) fn receipt_chunk(
    object: &str,
    id: &str,
    created: u64,
    model: &str,
    name: &str,
    block_json: &str,
    wants_usage: bool,
) -> Bytes {
    let usage = if wants_usage { ",\"usage\":null" } else { "" };
    // Line ends in JSON stand only between values, where a space does as well; in an event they would end the line.
    let block = block_json.replace(['\r', '\n'], " ");
    format!(
        "data: {{\"id\":{},\"object\":\"{object}\",\"created\":{created},\"model\":{},\"choices\":[]{usage},{}:{block}}}\n\n",
        Value::from(id),
        Value::from(model),
        Value::from(name),
    )
    .into()
}

/// `body` with one more member at its end, every other byte unchanged. `None` when it is no JSON object or has a member
/// of that name: the reply then goes out as it came.
pub fn add_block(body: &[u8], name: &str, block_json: &str) -> Option<Bytes> {
    let kept = body.trim_ascii_end();
    if !kept.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let Members(members) = serde_json::from_slice(kept).ok()?;
    if members.contains_key(name) {
        return None;
    }
    let open = kept.strip_suffix(b"}")?;
    let mut out = Vec::with_capacity(body.len() + name.len() + block_json.len() + 8);
    out.extend_from_slice(open);
    if !members.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(Value::from(name).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(block_json.as_bytes());
    out.push(b'}');
    Some(out.into())
}

/// Names of the top level; the values are passed over.
#[derive(Deserialize)]
struct Members<'a>(#[serde(borrow)] BTreeMap<Cow<'a, str>, IgnoredAny>);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::openai::sse::Frame;

    #[test]
    fn a_receipt_in_a_stream_is_one_frame_whatever_is_in_it() {
        assert_eq!(receipt_comment("aGk_-"), ": pontage-receipt aGk_-\n\n");
        assert_eq!(receipt_comment("a\n\ndata: x\r"), ": pontage-receipt adatax\n\n");
        let chunk =
            receipt_chunk("chat.completion.chunk", "c\"1", 7, "m\n", "pontage", "{\n \"charged\": \"1\\n\"\r\n}", true);
        let frame = Frame::read(&chunk, false);
        let value: Value = serde_json::from_slice(&frame.data.unwrap()).unwrap();
        let want = serde_json::json!({"id":"c\"1","object":"chat.completion.chunk","created":7,"model":"m\n",
            "choices":[],"usage":null,"pontage":{"charged":"1\n"}});
        assert_eq!(value, want);
        assert_eq!(chunk.iter().filter(|b| **b == b'\n').count(), 2, "only the two that end it");
        let quiet = receipt_chunk("text_completion", "c", 7, "m", "pontage", "{}", false);
        assert!(!quiet.windows(7).any(|w| w == b"\"usage\""));
    }

    #[test]
    fn a_block_is_added_without_touching_the_rest() {
        for (body, want, why) in [
            (r#"{"a":1.50}"#, Some(r#"{"a":1.50,"p":{}}"#), "digits as they were"),
            ("{}", Some(r#"{"p":{}}"#), "no comma in an empty object"),
            ("{ }\n", Some(r#"{ "p":{}}"#), "space"),
            (" {\"a\":\"}\" } \r\n", Some(" {\"a\":\"}\" ,\"p\":{}}"), "a bracket in a string"),
            (r#"{"x":{"p":1}}"#, Some(r#"{"x":{"p":1},"p":{}}"#), "the name deeper down"),
            (r#"{"p":1}"#, None, "the name is taken"),
            (r#"{"\u0070":1}"#, None, "taken, escaped"),
            ("[{}]", None, "an array"),
            ("{\"a\":1", None, "cut short"),
            ("{\"a\":1}}", None, "no JSON"),
            ("", None, "empty"),
        ] {
            assert_eq!(add_block(body.as_bytes(), "p", "{}").as_deref(), want.map(str::as_bytes), "{why}");
        }
    }
}
