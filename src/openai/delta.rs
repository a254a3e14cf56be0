//! Where generated text stands in a chunk or a reply, found without parsing it.
//!
//! Names are looked for with their quotes. Inside a JSON string quotes are escaped, so text that speaks of a name never
//! matches one.

use super::strict::end_of_plain;
use memchr::memmem::Finder;
use std::sync::LazyLock;

static NEEDLES: LazyLock<Needles> = LazyLock::new(|| Needles {
    finish: Finder::new(b"\"finish_reason\""),
    delta: Finder::new(b"\"delta\""),
    message: Finder::new(b"\"message\""),
    text: Finder::new(b"\"text\""),
});

struct Needles {
    finish: Finder<'static>,
    delta: Finder<'static>,
    message: Finder<'static>,
    text: Finder<'static>,
}

/// Where the text of a choice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// In a stream.
    Delta,
    /// In a buffered reply.
    Message,
    /// Right under `text`, streamed or not.
    Text,
}

/// Text that was generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    /// Deltas or messages with any text.
    pub texts: u64,
    /// UTF-8 bytes of it.
    pub bytes: u64,
}

impl Delivered {
    /// One text of so many bytes; of none, no text.
    pub fn once(bytes: u64) -> Self {
        Self { texts: u64::from(bytes > 0), bytes }
    }
}

/// One generated text as it stands between its quotes.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    raw: &'a [u8],
    /// UTF-8 bytes it stands for.
    pub bytes: u64,
}

impl<'a> Said<'a> {
    /// As it was written.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The text itself, written into `scratch` only when it has escapes. `None`: not UTF-8.
    pub fn text(self, scratch: &'a mut String) -> Option<&'a str> {
        let raw = std::str::from_utf8(self.raw).ok()?;
        // Every escape is longer than what it stands for.
        if raw.len() as u64 == self.bytes {
            return Some(raw);
        }
        scratch.clear();
        unescape(raw, scratch);
        Some(scratch)
    }
}

/// Adds up generated text without parsing, and shows each piece of it: for cover while a stream runs and for clients that
/// leave, never for price.
pub(super) fn text_of(data: &[u8], holder: Holder, mut said: impl FnMut(Said<'_>)) -> Delivered {
    let needle = match holder {
        Holder::Delta => &NEEDLES.delta,
        Holder::Message => &NEEDLES.message,
        Holder::Text => &NEEDLES.text,
    };
    let mut found = Delivered::default();
    for at in needle.find_iter(data) {
        let behind = at + needle.needle().len();
        let at = past_colon(data, behind);
        let bytes = match (holder, data.get(at)) {
            (Holder::Text, Some(b'"')) if at > behind => string_at(data, at, &mut said).1,
            (Holder::Delta | Holder::Message, Some(b'{')) => text_in(data, at, CHAT, &mut said),
            _ => 0,
        };
        found.texts += u64::from(bytes > 0);
        found.bytes += bytes;
    }
    found
}

/// The names under which a chat completion says text: `input` is a custom tool's.
const CHAT: &[&[u8]] = &[b"content", b"reasoning_content", b"reasoning", b"refusal", b"arguments", b"input"];

/// Bytes of generated text in the object or array that opens at `at`: its strings under these `names`, at any depth.
pub(super) fn text_in(data: &[u8], mut at: usize, names: &[&[u8]], show: &mut impl FnMut(Said<'_>)) -> u64 {
    let (mut depth, mut bytes) = (0usize, 0);
    while let Some(byte) = data.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => break,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let (end, _) = past_string(data, at);
                let key = data.get(at..end.saturating_sub(1)).unwrap_or_default();
                let value = past_colon(data, end);
                at = end;
                if value == end || !names.contains(&key) {
                    continue;
                }
                match data.get(value) {
                    Some(b'"') => {
                        let (end, length) = string_at(data, value, show);
                        at = end;
                        bytes += length;
                    }
                    // A list of parts, as Mistral's models say theirs: `{"type":"text","text":…}`.
                    Some(b'[') if key == b"content" => bytes += text_in(data, value, &[b"text"], show),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    bytes
}

/// Shows the string whose opening quote is at `at`: where it ends, and how many UTF-8 bytes it stands for.
pub(super) fn string_at(data: &[u8], at: usize, show: &mut impl FnMut(Said<'_>)) -> (usize, u64) {
    let (end, bytes) = past_string(data, at + 1);
    if bytes > 0 {
        show(Said { raw: data.get(at + 1..end.saturating_sub(1)).unwrap_or_default(), bytes });
    }
    (end, bytes)
}

/// Behind the string whose text begins at `at`, and how many UTF-8 bytes it stands for.
fn past_string(data: &[u8], mut at: usize) -> (usize, u64) {
    let mut length = 0u64;
    loop {
        let end = end_of_plain(data, at);
        length += (end - at) as u64;
        match data.get(end) {
            Some(b'\\') if data.get(end + 1) == Some(&b'u') => {
                let digits = data.get(end + 2..end + 6).and_then(|d| std::str::from_utf8(d).ok());
                length += match digits.and_then(|d| u32::from_str_radix(d, 16).ok()) {
                    Some(0..=0x7F) => 1,
                    // Each half of a surrogate pair is half of four bytes.
                    Some(0x80..=0x7FF | 0xD800..=0xDFFF) => 2,
                    _ => 3,
                };
                at = end + 6;
            }
            Some(b'\\') => {
                length += 1;
                at = end + 2;
            }
            Some(b'"') => return (end + 1, length),
            // A control character is not legal there; it is passed over so that the search ends.
            Some(_) => at = end + 1,
            None => return (data.len(), length),
        }
        at = at.min(data.len());
    }
}

/// Behind white space, a colon and white space; `at` itself when no colon is there.
pub(super) fn past_colon(data: &[u8], at: usize) -> usize {
    let blank = |mut at: usize| {
        while data.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    };
    let colon = blank(at);
    if data.get(colon) == Some(&b':') { blank(colon + 1) } else { at }
}

/// Whether the name that ends at `at` has no value of interest: null, or it is no name at all.
pub(super) fn is_null(data: &[u8], at: usize) -> bool {
    let value = past_colon(data, at);
    value == at || data.get(value..).is_some_and(|rest| rest.starts_with(b"null"))
}

/// Whether a choice says why it finished.
pub(super) fn finishes(data: &[u8]) -> bool {
    NEEDLES.finish.find_iter(data).any(|at| !is_null(data, at + NEEDLES.finish.needle().len()))
}

/// What a JSON string stands for. What is no escape, or half a surrogate pair, becomes U+FFFD.
fn unescape(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        let (plain, behind) = rest.split_at(at);
        out.push_str(plain);
        let mut letters = behind.chars();
        letters.next();
        let short = match letters.next() {
            Some('u') => None,
            Some('n') => Some('\n'),
            Some('t') => Some('\t'),
            Some('r') => Some('\r'),
            Some('b') => Some('\u{8}'),
            Some('f') => Some('\u{c}'),
            Some(same @ ('"' | '\\' | '/')) => Some(same),
            _ => Some(char::REPLACEMENT_CHARACTER),
        };
        rest = letters.as_str();
        out.push(short.unwrap_or_else(|| {
            let (unit, behind) = unit(rest);
            rest = behind;
            match unit {
                Some(high @ 0xD800..=0xDBFF) => match rest.strip_prefix("\\u").map(self::unit) {
                    Some((Some(low @ 0xDC00..=0xDFFF), behind)) => {
                        rest = behind;
                        char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))
                    }
                    _ => None,
                },
                unit => unit.and_then(char::from_u32),
            }
            .unwrap_or(char::REPLACEMENT_CHARACTER)
        }));
    }
    out.push_str(rest);
}

/// The four digits of a `\u`, and what is behind them.
fn unit(text: &str) -> (Option<u32>, &str) {
    let (Some(digits), Some(behind)) = (text.get(..4), text.get(4..)) else { return (None, "") };
    (u32::from_str_radix(digits, 16).ok(), behind)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_escaped_text_reads_as_what_it_stands_for() {
        for (raw, want, why) in [
            (r"plain", "plain", "nothing to do"),
            (r#"a\n\"b\"\\\/\t"#, "a\n\"b\"\\/\t", "short escapes"),
            (r"\u0041\u00e9\ud83d\ude00x", "Aé😀x", "numbers, and a pair"),
            (r"\ud83dx", "\u{fffd}x", "half a pair"),
            (r"\ud83d\u0041", "\u{fffd}A", "half a pair before a letter"),
            (r"\u00", "\u{fffd}", "cut"),
            (r"\u00é9x", "\u{fffd}9x", "no digits"),
            (r"\q\", "\u{fffd}\u{fffd}", "no escapes"),
        ] {
            let mut out = String::new();
            unescape(raw, &mut out);
            assert_eq!(out, want, "{why}");
        }
    }

    #[test]
    fn text_that_comes_in_a_list_of_parts_is_text_and_is_counted_once() {
        for (delta, want, why) in [
            (r#"{"content":[{"type":"text","text":"ab"},{"type":"text","text":"c"}]}"#, 3, "two parts"),
            (r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]}"#, 2, "a thought"),
            (r#"{"reasoning":"hm","reasoning_details":[{"type":"reasoning.text","text":"hm"}]}"#, 2, "said twice"),
            (r#"{"content":[{"type":"image_url","image_url":"x"}]}"#, 0, "no text"),
            (r#"{"content":[]}"#, 0, "nothing"),
        ] {
            let chunk = format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#);
            let mut shown = 0;
            let found = text_of(chunk.as_bytes(), Holder::Delta, |said| shown += said.bytes);
            assert_eq!((found.texts, found.bytes, shown), (u64::from(want > 0), want, want), "{why}");
        }
    }

    #[test]
    fn of_a_completion_only_the_text_itself_is_text() {
        for (data, want, why) in [
            (r#"{"choices":[{"index":0,"text":"a\nb","finish_reason":null}]}"#, &["a\nb"][..], "one"),
            (r#"{"choices":[{"text" : "a"},{"text":"b"}]}"#, &["a", "b"], "two choices"),
            (r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#, &[], "none"),
            (r#"{"choices":[{"text":null}]}"#, &[], "nothing"),
            (r#"{"choices":[{"text":"\"text\":\"x\""}]}"#, &["\"text\":\"x\""], "text that speaks of text"),
            (
                r#"{"choices":[{"text":"a","logprobs":{"tokens":["text"],"text_offset":[0],"top_logprobs":[{"text":-0.5}]}}]}"#,
                &["a"],
                "a token that is the word",
            ),
        ] {
            let (mut found, mut scratch) = (Vec::new(), String::new());
            let total = text_of(data.as_bytes(), Holder::Text, |said| {
                found.push(said.text(&mut scratch).unwrap().to_owned());
            });
            assert_eq!(found, want, "{why}");
            let bytes: usize = want.iter().map(|text| text.len()).sum();
            assert_eq!((total.texts, total.bytes), (want.len() as u64, bytes as u64), "{why}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_found_as_it_was_written(text in any::<String>(), ascii in any::<bool>()) {
            let mut json = serde_json::to_string(&text).unwrap();
            if ascii {
                json = json.chars().flat_map(|c| {
                    let mut units = [0; 2];
                    let plain = c.is_ascii().then(|| c.to_string());
                    let escaped = c.encode_utf16(&mut units).iter().map(|u| format!("\\u{u:04x}")).collect::<String>();
                    plain.unwrap_or(escaped).chars().collect::<Vec<_>>()
                }).collect();
            }
            let chunk = format!(r#"{{"choices":[{{"delta":{{"role":"assistant","content":{json}}}}}]}}"#);
            let (mut found, mut scratch) = (Vec::new(), String::new());
            let total = text_of(chunk.as_bytes(), Holder::Delta, |said| {
                found.push((said.bytes, said.text(&mut scratch).unwrap().to_owned()));
            });
            let want: Vec<_> = (!text.is_empty()).then(|| (text.len() as u64, text.clone())).into_iter().collect();
            prop_assert_eq!(found, want);
            prop_assert_eq!(total.bytes, text.len() as u64);
        }
    }
}
