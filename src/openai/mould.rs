//! Frames of one mould: backends write every chunk of a stream as the one before it, but for its text.
//!
//! What is found out about one such frame (no usage, no error, no end, which choice) holds for every other one, so that of those
//! only the text is looked at: a frame that has the same bytes before its text and behind it, and whose text is one JSON string,
//! is the same event with another text. Anything else is read as any frame is. Chosen once a frame was read, and again when
//! another shape comes (`[DONE]`, a finish reason, a tool's arguments).

use super::delta::Said;
use super::strict::end_of_plain;
use std::ops::Range;

/// Frames that are longer around their text are not remembered.
const MOST_BYTES: usize = 4096;

/// What stands around the text of a frame.
#[derive(Debug, Default)]
pub(super) struct Mould {
    /// With the quote that opens the text.
    before: Vec<u8>,
    /// With the quote that closes it, to the end of the blank line.
    behind: Vec<u8>,
}

impl Mould {
    /// Takes the mould of `frame`, in which nothing but `text`, a string's content, is of interest.
    pub fn take(&mut self, frame: &[u8], text: Range<usize>) {
        let (Some(before), Some(behind)) = (frame.get(..text.start), frame.get(text.end..)) else { return };
        // A string is a value only before one of these: before a colon it is a name, and names are of interest.
        let is_value = matches!(behind, [b'"', b',' | b'}' | b']', ..]);
        // Behind a CR it is for the next byte to say where a frame ends.
        let ends_here = behind.ends_with(b"\n");
        if is_value && ends_here && before.len() + behind.len() <= MOST_BYTES {
            self.before.clear();
            self.before.extend_from_slice(before);
            self.behind.clear();
            self.behind.extend_from_slice(behind);
        }
    }

    /// Where the text is of the frame that `bytes` begin with, and how long that frame is; `None` unless it is of this mould and whole.
    pub fn fits(&self, bytes: &[u8]) -> Option<(Range<usize>, usize)> {
        if self.before.is_empty() || !bytes.starts_with(&self.before) {
            return None;
        }
        let start = self.before.len();
        let mut end = start;
        loop {
            end = end_of_plain(bytes, end);
            match bytes.get(end..) {
                Some([b'"', ..]) => break,
                Some([b'\\', b'u', digits @ ..])
                    if digits.iter().take(4).filter(|d| d.is_ascii_hexdigit()).count() == 4 =>
                {
                    end += 6;
                }
                Some([b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..]) => end += 2,
                _ => return None,
            }
        }
        bytes.get(end..)?.starts_with(&self.behind).then(|| (start..end, end + self.behind.len()))
    }
}

/// Where `said` is in `frame`, when it is a part of it.
pub(super) fn place(frame: &[u8], said: &Said<'_>) -> Option<Range<usize>> {
    let start = (said.raw().as_ptr() as usize).checked_sub(frame.as_ptr() as usize)?;
    let end = start + said.raw().len();
    (end <= frame.len()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::cover::Cover;
    use super::super::meter::Meter;
    use super::super::usage::{Bounds, Verdict};
    use super::*;
    use crate::usage::Shape;
    use bytes::Bytes;
    use proptest::prelude::*;

    #[test]
    fn only_a_whole_frame_that_differs_in_its_text_alone_is_of_the_mould() {
        let mut mould = Mould::default();
        assert_eq!(mould.fits(b"data: \"a\"}\n\n"), None, "none was taken");
        mould.take(b"data: {\"t\":\"a\"}\n\n", 12..13);
        for (bytes, want, why) in [
            ("data: {\"t\":\"a\"}\n\n", Some((12..13, 17)), "the same"),
            ("data: {\"t\":\"\"}\n\n", Some((12..12, 16)), "no text"),
            ("data: {\"t\":\"b c\"}\n\ndata: x\n\n", Some((12..15, 19)), "another text, and more behind it"),
            (r#"data: {"t":"\"\\\u00e9\n"}"#, None, "no end yet"),
            ("data: {\"t\":\"\\\"\\\\\\u00e9\\n\"}\n\n", Some((12..24, 28)), "escapes"),
            ("data: {\"t\":\"\\u12\"}\n\n", None, "an escape that is none"),
            ("data: {\"t\":\"\\q\"}\n\n", None, "nor is this"),
            ("data: {\"t\":\"a\nb\"}\n\n", None, "a line's end in the text ends the line"),
            ("data: {\"t\":\"a\\\n\"}\n\n", None, "however it is written"),
            ("data: {\"t\":\"a\"}\n", None, "cut before its end"),
            ("data: {\"t\":\"a\" }\n\n", None, "something else behind it"),
            ("data: {\"x\":\"a\"}\n\n", None, "something else before it"),
        ] {
            assert_eq!(mould.fits(bytes.as_bytes()), want, "{why}");
        }
        for (frame, text, why) in [
            ("data: {\"t\":\"a\" :1}\n\n", 12..13, "a name, perhaps"),
            ("data: {\"t\":\"a\"}\r\r", 12..13, "a LF may belong to it"),
        ] {
            mould = Mould::default();
            mould.take(frame.as_bytes(), text);
            assert!(mould.before.is_empty(), "{why}");
        }
    }

    fn metered(stream: &str, size: usize, words: bool) -> (Vec<u8>, Vec<u8>, Verdict, u64) {
        let bounds = Bounds { choices: 1, completion: Some(1000), shape: Shape::PLAIN };
        let count: fn(&str) -> u64 = |text| text.split(' ').count() as u64;
        let cover = if words { Cover::Tokens(count) } else { Cover::Bytes };
        let mut meter = Meter::new(false, bounds).with_cover(cover).all_is_shown();
        let mut out = Vec::new();
        for read in stream.as_bytes().chunks(size) {
            meter.feed(Bytes::copy_from_slice(read), &mut out).unwrap();
        }
        meter.finish();
        (out.concat(), meter.take_done().unwrap_or_default().to_vec(), meter.verdict(), meter.seen())
    }

    /// Frames of a few shapes, in runs, with texts that are none, speak of what is looked for, or break their frame.
    fn frames() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            "[a-z ]{0,6}",
            proptest::sample::select(vec![
                "usage",
                "error",
                "finish_reason",
                "delta",
                "\\\"usage\\\":1",
                "\\n\\n",
                "\\u00e9",
                "\\u12",
                "\\",
                "\\q",
                "a\nb",
                "x\"},\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2},\"y\":{\"z\":\"",
                "\"",
                "é",
            ])
            .prop_map(str::to_owned),
        ];
        let shapes = proptest::sample::select(vec![
            (
                "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"",
                "\"},\"finish_reason\":null}],\"usage\":null}\n\n",
            ),
            ("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"", "\"}}]}\r\n\r\n"),
            ("data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning\":\"\",\"content\":\"", "\"}}]}\r\r"),
            ("id: 1\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"a\",\"refusal\":\"", "\"}}]}\n\n"),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"", "\"},\"finish_reason\":\"stop\"}]}\n\n"),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"", "\"}}],\ndata: \"error\":null}\n\n"),
            ("event: error\ndata: {\"choices\":[{\"delta\":{\"content\":\"", "\"}}]}\n\n"),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"", "\":\"b\"}}]}\n\n"),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"",
                "\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":3}}\n\n",
            ),
            ("event: payment-receipt\ndata: {\"delta\":{\"content\":\"", "\"}}\n\n"),
            ("data: [DONE]\n\ndata: {\"delta\":{\"content\":\"", "\"}}\n\n"),
        ]);
        let run = (shapes, proptest::collection::vec(text, 1..5));
        let run = run.prop_map(|((a, b), texts)| texts.into_iter().map(|t| format!("{a}{t}{b}")).collect::<String>());
        proptest::collection::vec(run, 1..5).prop_map(|runs| runs.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Read byte by byte, no frame lies within one read and every one is judged by itself.
        #[test]
        fn frames_of_one_mould_are_metered_as_if_each_were_read_by_itself(
            stream in frames(),
            size in 1usize..2000,
            words in any::<bool>(),
        ) {
            prop_assert_eq!(metered(&stream, size, words), metered(&stream, 1, words));
        }
    }
}
