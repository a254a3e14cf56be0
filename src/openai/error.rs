//! Errors in OpenAI's shape, and what may pass of a backend's own.
//!
//! A backend's message may carry keys, hosts, internal model names, whatever it was given in headers. It passes only when
//! every word of it is plainly harmless; otherwise a sentence of ours takes its place. Types, codes and params are what
//! clients branch on, so those pass when they are short identifiers.

use crate::ids::UpstreamModel;
use crate::refusal::Refusal;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Longest message that passes, in characters.
const MAX_MESSAGE: usize = 200;
/// Longest error inside a success that is read for whose it is, in bytes.
const MOST_WORDS: usize = 64 * 1024;

/// An error body: `{"error":{"message","type","param","code"}}`.
pub fn body(message: &str, kind: &str, code: &str, param: Option<&str>) -> Vec<u8> {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}}).to_string().into_bytes()
}

/// OpenAI's `error.type` for a refusal: clients choose their exception by status and show this.
pub fn kind_of(refusal: &Refusal) -> &str {
    match refusal {
        Refusal::UpstreamRefused { kind: Some(kind), .. } => kind,
        _ => match refusal.status() {
            402 => "payment_required",
            // A payment exists and cannot be used this way.
            403 | 409 => "payment_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        },
    }
}

/// What may pass of a backend's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `error.type`.
    pub kind: Option<String>,
    /// `error.code`.
    pub code: Option<String>,
    /// `error.param`.
    pub param: Option<String>,
    /// Scrubbed.
    pub message: String,
}

/// Reads the body of a backend's 4xx answer, in OpenAI's shape or vLLM's flat one, and keeps what may be shown. Nothing that
/// holds the backend's own name for the model passes.
pub fn read_upstream(status: u16, body: &[u8], upstream: &UpstreamModel) -> Told {
    let reply: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = match reply.get("error") {
        Some(error @ Value::Object(_)) => error,
        _ => &reply,
    };
    let text = |name: &str| error.get(name).and_then(Value::as_str);
    let token = |name: &str| text(name).filter(|t| is_token(t) && !names(t, upstream)).map(str::to_owned);
    let said = text("message").or_else(|| reply.get("error").and_then(Value::as_str));
    let message = said.filter(|m| !names(m, upstream)).and_then(harmless);
    Told {
        kind: token("type"),
        code: token("code"),
        param: token("param"),
        message: message.unwrap_or_else(|| ours(status).to_owned()),
    }
}

/// Of what a backend speaks that refuses to serve with 402 or 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// This one request: its moderation refuses it, or what is left of the account does not cover so much output.
    Request,
    /// Our key or account.
    Key,
    /// It does not say, or not in JSON: a wall in front of it that does not like the text answers so, and so does a key that may nothing.
    Unsaid,
}

/// Reads a 402 or 403. Whoever sends requests that are refused for their content must not be able to have a server taken for
/// one that refuses its key, so a word about content outweighs one about permission (xAI says both).
pub fn blame(status: u16, body: &[u8]) -> Blame {
    const CONTENT: [&str; 13] = [
        "flagged",
        "moderation",
        "fewer max_tokens",
        "violates",
        "usage guidelines",
        "usage policies",
        "safety",
        "content policy",
        "content_policy",
        "content filter",
        "content_filter",
        "content management",
        "harmful",
    ];
    const KEY: [&str; 15] = [
        "key limit",
        "/keys",
        "credits",
        "quota",
        "api key",
        "api_key",
        "api-key",
        "apikey",
        "permission",
        "credential",
        "account",
        "billing",
        "organization",
        "authoriz",
        "authentic",
    ];
    let reply = match serde_json::from_slice(body).unwrap_or_default() {
        // Google's.
        Value::Array(mut all) if !all.is_empty() => all.swap_remove(0),
        one => one,
    };
    let error = reply.get("error").unwrap_or(&reply);
    if error.get("metadata").is_some_and(|m| m.get("flagged_input").is_some() || m.get("reasons").is_some()) {
        return Blame::Request;
    }
    let members = ["message", "type", "code", "status", "detail", "error"];
    let told = members.iter().flat_map(|name| [error.get(name), reply.get(name)]).flatten().filter_map(Value::as_str);
    let told: Vec<String> = told.map(str::to_ascii_lowercase).collect();
    let speaks_of = |words: &[&str]| told.iter().any(|text| words.iter().any(|word| text.contains(word)));
    match status {
        _ if speaks_of(&CONTENT) => Blame::Request,
        403 if !speaks_of(&KEY) => Blame::Unsaid,
        _ => Blame::Key,
    }
}

/// Whether an error that stands in a success speaks of what was asked: its form, its length, its content. Who sends such requests must not be
/// able to have a model rested. What does not say so speaks of the backend: one that answers nothing but errors is the quickest of all.
pub fn is_about_the_request(body: &[u8]) -> bool {
    // Of identifiers, which vendors write with `_`, `-`, in capitals, or all as one word.
    /// The backend says itself that it failed.
    const BACKEND: [&str; 7] =
        ["servererror", "internal", "apierror", "overloaded", "timeout", "unavailable", "ratelimit"];
    /// They speak of our account, whatever stands beside them (OpenAI calls a wrong key an invalid request).
    const ACCOUNT: [&str; 6] = ["apikey", "quota", "billing", "authentic", "permission", "notfound"];
    /// No `badrequest` and no 400: vLLM and SGLang say both of whatever goes wrong in a stream (`create_streaming_error_response`).
    const REQUEST: [&str; 12] = [
        "invalidrequest",
        "invalidprompt",
        "invalidargument",
        "invalidvalue",
        "invalidinput",
        "unprocessable",
        "toolarge",
        "toolong",
        "contextlength",
        "unsupportedvalue",
        "unsupportedparameter",
        "maxlength",
    ];
    let Some(error) = error_in(body) else { return false };
    let members = ["type", "code", "status"].iter().filter_map(|name| error.get(name));
    let (mut numbers, mut words) = (Vec::new(), Vec::new());
    for member in members {
        match member {
            Value::Number(number) => numbers.extend(number.as_u64()),
            Value::String(text) => match text.parse() {
                Ok(number) => numbers.push(number),
                Err(_) => words.push(text.to_ascii_lowercase().replace(['_', '-', ' ', '.'], "")),
            },
            _ => {}
        }
    }
    let says = |of: &[&str]| words.iter().any(|word| of.iter().any(|known| word.contains(known)));
    if says(&BACKEND) {
        return false;
    }
    // Of pictures OpenAI has a code for whatever may be wrong with one: `image_parse_error`, `image_file_not_found`.
    let is_its_picture = says(&["image"]);
    let blame = blame(403, error.to_string().as_bytes());
    if is_its_picture || blame == Blame::Request {
        return true;
    }
    let is_its_size_or_form = blame != Blame::Key && numbers.iter().any(|n| matches!(n, 413 | 422));
    !says(&ACCOUNT) && (says(&REQUEST) || is_its_size_or_form)
}

/// What a reply or an event says of its error; the whole of it where it has no such member. `None`: nothing, or more than words. Only that is
/// read: an event may repeat all that was asked.
fn error_in(body: &[u8]) -> Option<Value> {
    #[derive(Default, Deserialize)]
    struct Around<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow)]
        response: Option<&'a RawValue>,
    }
    let outer: Around<'_> = serde_json::from_slice(body).ok()?;
    let inner = outer.response.and_then(|inner| serde_json::from_str::<Around<'_>>(inner.get()).ok());
    let mut errors = inner.and_then(|inner| inner.error).into_iter().chain(outer.error);
    let said = errors.find(|error| error.get().starts_with('{')).map_or(body, |error| error.get().as_bytes());
    if said.len() > MOST_WORDS { None } else { serde_json::from_slice(said).ok() }
}

/// What we say when the backend's words cannot pass.
pub fn ours(status: u16) -> &'static str {
    match status {
        403 => "the backend does not take this request: its moderation refuses it, or it is too large for it",
        404 => "the backend does not have what was asked for",
        408 => "the backend gave up waiting for the request",
        413 => "the request is too large for the backend",
        422 => "the backend cannot process the request",
        429 => "the backend is over its rate limit; try again later",
        _ => "the backend refused the request as invalid",
    }
}

fn names(text: &str, upstream: &UpstreamModel) -> bool {
    let (text, name) = (text.to_ascii_lowercase(), upstream.as_str().to_ascii_lowercase());
    // The last part of `org/name` gives it away as well.
    let last = name.rsplit('/').next().unwrap_or_default();
    !last.is_empty() && text.contains(last)
}

/// A short identifier: `invalid_request_error`, `BadRequestError`, `messages[0].content`.
fn is_token(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'[' | b']' | b'-'));
    let index = |word: &str| word.len() <= 4 && word.bytes().all(|b| b.is_ascii_digit());
    !text.is_empty()
        && text.len() <= 64
        && plain
        && !text.starts_with("sk-")
        // Identifiers are made of words and of small indices; keys and hosts mix digits and letters.
        && text.split(['_', '.', '[', ']', '-']).filter(|w| !w.is_empty()).all(|w| is_word(w) || index(w))
}

fn is_word(word: &str) -> bool {
    (1..=24).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphabetic())
}

/// The message when every word is a plain word, a plain number or the name of a request field; cut at a word's end.
fn harmless(message: &str) -> Option<String> {
    const TELLING: [&str; 9] =
        ["bearer", "authorization", "apikey", "key", "keys", "password", "secret", "token:", "basic"];
    let mut kept = String::new();
    for raw in message.split_ascii_whitespace() {
        let word =
            raw.trim_matches(|c: char| matches!(c, '.' | ',' | ';' | ':' | '!' | '?' | '(' | ')' | '\'' | '"' | '`'));
        let lower = word.to_ascii_lowercase();
        if TELLING.contains(&lower.as_str()) || raw.eq_ignore_ascii_case("token:") {
            return None;
        }
        let number = word.len() <= 12
            && word.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b',')
            && word.bytes().filter(|b| *b == b'.').count() <= 1;
        let spoken =
            word.split(['\'', '-']).all(is_word) && word.matches('-').count() <= 2 && !lower.starts_with("sk-");
        if !(word.is_empty() || number || spoken || is_field(word)) || !raw.is_ascii() {
            return None;
        }
        if kept.len() + 1 + raw.len() <= MAX_MESSAGE {
            if !kept.is_empty() {
                kept.push(' ');
            }
            kept.push_str(raw);
        } else {
            // The rest is still looked at: a message with a key in it has no harmless part.
            continue;
        }
    }
    (!kept.is_empty()).then_some(kept)
}

/// The dotted or snake-case path of a request field; a host name does not begin like one.
fn is_field(word: &str) -> bool {
    const ROOTS: [&str; 11] = [
        "messages",
        "input",
        "system",
        "thinking",
        "tools",
        "stream_options",
        "response_format",
        "max_tokens",
        "tool_choice",
        "functions",
        "logit_bias",
    ];
    let root = word.split(['.', '[']).next().unwrap_or_default();
    let snake = word.len() <= 40 && word.contains('_') && word.split('_').all(is_word);
    is_token(word) && (snake || ROOTS.contains(&root))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::surface::Surface;

    fn told(message: &str) -> String {
        let body = json!({"error": {"message": message, "type": "invalid_request_error", "code": null}}).to_string();
        read_upstream(400, body.as_bytes(), &UpstreamModel::from("org/hidden")).message
    }

    #[test]
    fn a_refusal_of_one_request_is_told_from_one_of_the_key() {
        use Blame::{Key, Request, Unsaid};
        for (status, body, want, why) in [
            (
                403,
                r#"{"error":{"code":403,"message":"m requires moderation on p. Your input was flagged for \"violence\"","metadata":{"reasons":["violence"],"flagged_input":"x"}}}"#,
                Request,
                "moderation",
            ),
            (
                402,
                r#"{"error":{"code":402,"message":"This request requires more credits, or fewer max_tokens. You requested up to 32000 tokens"}}"#,
                Request,
                "more output than the account covers",
            ),
            (
                402,
                r#"{"error":{"code":402,"message":"Insufficient credits. Add more using the page"}}"#,
                Key,
                "no money left",
            ),
            (
                403,
                r#"{"error":{"message":"Your API key does not have permission","type":"permission_error"}}"#,
                Key,
                "the key",
            ),
            (
                403,
                r#"{"code":"The caller does not have permission to execute the specified operation","error":"Content violates usage guidelines. Team: x, API key ID: y, Model: z, Failed check: SAFETY_CHECK_TYPE_BIO"}"#,
                Request,
                "xAI: content, and the key as well",
            ),
            (
                403,
                r#"{"code":"permission-denied","error":"Your team has no access to this model"}"#,
                Key,
                "xAI: the key",
            ),
            (403, r#"{"error":{"message":"x","code":"content_filter"}}"#, Request, "by its code"),
            (
                403,
                r#"{"error":{"message":"Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys","code":403}}"#,
                Key,
                "OpenRouter: the key's own limit",
            ),
            (
                403,
                r#"[{"error":{"code":403,"message":"Forbidden","status":"PERMISSION_DENIED"}}]"#,
                Key,
                "Google: in a list, by its status",
            ),
            (403, r#"{"error":{"message":"Your account was closed: it violated our terms"}}"#, Key, "the account"),
            (403, r#"{"message":"Forbidden"}"#, Unsaid, "nothing said"),
            (403, "<html>You don't have permission to access this resource</html>", Unsaid, "a wall before it"),
            (403, "", Unsaid, "nothing"),
            (402, "", Key, "402 is about money"),
        ] {
            assert_eq!(blame(status, body.as_bytes()), want, "{why}");
        }
    }

    #[test]
    fn an_error_inside_a_success_speaks_of_the_request_only_where_it_says_so() {
        for (body, want, why) in [
            (
                r#"{"error":{"message":"x","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
                true,
                "OpenAI",
            ),
            (r#"{"error":{"message":"x","type":"invalid_request_error","code":null}}"#, true, "OpenAI"),
            (r#"{"error":{"message":"x","code":"content_filter"}}"#, true, "Azure"),
            (
                r#"{"error":{"object":"error","message":"x","type":"BadRequestError","code":400}}"#,
                false,
                "vLLM, in a stream: whatever went wrong",
            ),
            (r#"{"object":"error","message":"x","type":"BadRequestError","code":400}"#, false, "its flat form"),
            (r#"{"error":{"message":"x","code":"bad_request"}}"#, false, "the same in other letters"),
            (r#"{"error":{"message":"x","code":400}}"#, false, "a number that says it"),
            (
                r#"{"object":"error","message":"your prompt was flagged by our moderation","type":"BadRequestError","code":400}"#,
                true,
                "its content, whatever it is called",
            ),
            (
                r#"{"id":"1","error":{"code":403,"message":"x","metadata":{"reasons":["violence"]}},"choices":[{"delta":{"content":""}}]}"#,
                true,
                "OpenRouter, in a stream: moderation",
            ),
            (r#"{"error":{"message":"your prompt was flagged by our moderation"}}"#, true, "in words only"),
            (r#"{"type":"error","error":{"type":"invalid_request_error","message":"x"}}"#, true, "Anthropic"),
            (r#"{"type":"error","error":{"type":"request_too_large","message":"x"}}"#, true, "Anthropic"),
            (
                r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"invalid_prompt","message":"x"}}}"#,
                true,
                "OpenAI, Responses",
            ),
            (r#"{"error":{"code":400,"message":"x","status":"INVALID_ARGUMENT"}}"#, true, "Google"),
            (r#"{"error":{"message":"x","code":"413"}}"#, true, "a number in quotes"),
            (r#"{"error":{"message":"x","code":422}}"#, true, "a number"),
            (r#"{"error":{"message":"Your account has no billing address","code":422}}"#, false, "our account"),
            (r#"{"error":{"message":"x","type":"internal_error","code":422}}"#, false, "the backend, it says itself"),
            (r#"{"error":{"message":"x","type":"server_error"}}"#, false, "OpenAI"),
            (
                r#"{"error":{"message":"invalid prompt: your input was flagged","type":"server_error","code":"x"}}"#,
                false,
                "what it quotes excuses no backend that says it failed",
            ),
            (r#"{"error":{"message":"flagged","type":"InternalServerError","code":500}}"#, false, "vLLM"),
            (r#"{"type":"error","error":{"type":"api_error","message":"flagged"}}"#, false, "Anthropic"),
            (r#"{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}"#, false, "Google"),
            (r#"{"error":{"message":"x","code":"rate_limit_exceeded"}}"#, false, "our limit"),
            (
                r#"{"error":{"message":"invalid request","type":"internal_error"}}"#,
                false,
                "what it quotes says nothing",
            ),
            (r#"{"error":{"message":"x","type":"invalid_request_error","code":"invalid_api_key"}}"#, false, "our key"),
            (
                r#"{"error":{"message":"x","type":"invalid_request_error","code":"model_not_found"}}"#,
                false,
                "its model",
            ),
            (r#"{"error":{"message":"x","type":"insufficient_quota","code":429}}"#, false, "our account"),
            (r#"{"error":{"code":502,"message":"Provider disconnected"}}"#, false, "OpenRouter"),
            (r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#, false, "Anthropic"),
            (r#"{"error":{"message":"x","type":"timeout"}}"#, false, "late"),
            (r#"{"response":{"status":"failed","error":{"code":"server_error","message":"x"}}}"#, false, "Responses"),
            (r#"{"error":"CUDA out of memory"}"#, false, "Ollama: it does not say, so it is the backend's"),
            (r#"{"error":{}}"#, false, "nothing"),
            (
                r#"{"error":{"type":"invalid_request_error"},"choices":[],"error":{"type":"server_error"}}"#,
                false,
                "twice: nobody knows",
            ),
            ("not JSON", false, "no answer at all"),
            ("", false, "nothing"),
        ] {
            assert_eq!(is_about_the_request(body.as_bytes()), want, "{why}: {body}");
        }
        for code in [
            "invalid_image",
            "invalid_image_format",
            "invalid_base64_image",
            "invalid_image_url",
            "image_too_large",
            "image_too_small",
            "image_parse_error",
            "image_content_policy_violation",
            "invalid_image_mode",
            "image_file_too_large",
            "unsupported_image_media_type",
            "empty_image_file",
            "failed_to_download_image",
            "image_file_not_found",
        ] {
            let failed = json!({"response": {"status": "failed", "error": {"code": code, "message": "x"}}}).to_string();
            assert!(is_about_the_request(failed.as_bytes()), "OpenAI, Responses: {code}");
        }
        let said = json!({"type": "invalid_request_error", "message": "x".repeat(MOST_WORDS)});
        assert!(!is_about_the_request(json!({ "error": said }).to_string().as_bytes()), "more than words");
        let asked = "x".repeat(MOST_WORDS);
        let failed = json!({"response": {"instructions": asked, "error": {"code": "invalid_prompt"}}}).to_string();
        assert!(is_about_the_request(failed.as_bytes()), "what was asked is repeated around it");
    }

    #[test]
    fn a_message_that_helps_the_client_passes() {
        for message in [
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please reduce the length.",
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            "Invalid value for messages[0].content: expected a string.",
            "Invalid value for input[0].content: expected a string.",
            "temperature must be at most 2.0",
        ] {
            assert_eq!(told(message), message);
        }
        assert!(told(&"word ".repeat(100)).len() <= MAX_MESSAGE);
    }

    #[test]
    fn a_message_with_anything_of_the_backend_in_it_becomes_ours() {
        for (message, why) in [
            ("Incorrect API key provided: sk-proj-abcdef", "a key"),
            ("sk-live", "the start of one"),
            ("Bearer abcdef is not valid", "a header"),
            ("Authorization: swordfish", "another"),
            ("see https://internal.example/doc", "a URL"),
            ("connect to backend.internal failed", "a host"),
            ("connect to 10.0.0.7 failed", "an address"),
            ("localhost:8000 refused", "host and port"),
            ("model hidden does not exist", "the upstream's name"),
            ("The model `org/Hidden` does not exist", "in other letters"),
            ("canary-1234 was seen", "letters with digits"),
            ("aGVsbG8gd29ybGQgdGhpcyBpcyBsb25n", "base64"),
            ("deadbeefdeadbeefdeadbeefdeadbeef", "hex without digits"),
            ("/srv/models/a is missing", "a path"),
            ("ops@example.com", "an address"),
            ("ключ", "what cannot be judged"),
            (&format!("{} sk-abc", "word ".repeat(100)), "behind the cut"),
            ("", "empty"),
        ] {
            assert_eq!(told(message), "the backend refused the request as invalid", "{why}");
        }
    }

    #[test]
    fn types_codes_and_params_pass_when_they_are_identifiers() {
        let up = UpstreamModel::from("hidden");
        for (body, want, why) in [
            (
                json!({"error":{"message":"no","type":"invalid_request_error","code":"context_length_exceeded","param":"messages"}}),
                (Some("invalid_request_error"), Some("context_length_exceeded"), Some("messages")),
                "OpenAI",
            ),
            (
                json!({"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}),
                (Some("BadRequestError"), None, None),
                "vLLM's flat form; a number is no code",
            ),
            (json!({"error":"some text"}), (None, None, None), "Ollama"),
            (json!({"detail":[{"loc":["body"]}]}), (None, None, None), "FastAPI"),
            (
                json!({"error":{"type":"sk-abc","code":"a1b2c3d4e5f6","param":"hidden.x"}}),
                (None, None, None),
                "keys and names in the wrong place",
            ),
            (
                json!({"error":{"type":"x\r\ny","code":"<b>","param":"ü"}}),
                (None, None, None),
                "not printable, not plain",
            ),
        ] {
            let got = read_upstream(400, body.to_string().as_bytes(), &up);
            assert_eq!((got.kind.as_deref(), got.code.as_deref(), got.param.as_deref()), want, "{why}");
        }
        assert_eq!(
            read_upstream(429, b"<html>nginx", &up).message,
            "the backend is over its rate limit; try again later"
        );
    }

    #[test]
    fn every_refusal_has_a_type_of_its_status() {
        for (refusal, kind) in [
            (Refusal::PaymentRequired, "payment_required"),
            (Refusal::ProofSpent, "payment_error"),
            (Refusal::NothingAsked { surface: Surface::Chat }, "invalid_request_error"),
            (Refusal::Stopping, "server_error"),
            (Refusal::TooBusy { address_at_fault: true, retry_after_seconds: 1, limit: "x" }, "rate_limit_error"),
        ] {
            assert_eq!(kind_of(&refusal), kind, "{refusal:?}");
        }
        let shape: Value = serde_json::from_slice(&body("m\"", "t", "c", None)).unwrap();
        assert_eq!(shape, json!({"error":{"message":"m\"","type":"t","param":null,"code":"c"}}));
    }
}
