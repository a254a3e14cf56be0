//! Frames of one mould: backends write every chunk of a stream as the one before it, but for its text.
//!
//! What is found out about one such frame (no usage, no error, no end, which choice) holds for every other one, so that of those
//! only the text is looked at: a frame that has the same bytes before its text and behind it, and whose text is one JSON string,
//! is the same event with another text. Where a running figure stands behind it, only its digits may differ. Anything else is read as any frame is. Chosen once a frame was read, and again when
//! another shape comes (`[DONE]`, a finish reason, a tool's arguments).

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
    /// Where the digits of figures are in what is behind.
    figures: Vec<Range<usize>>,
    /// What stands before and behind the data of the frame.
    around: (usize, usize),
}

/// A frame of the mould.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cast {
    /// Its text: the content of a JSON string.
    pub text: Range<usize>,
    /// The data of a frame that has figures.
    pub figures: Option<Range<usize>>,
    /// The whole frame.
    pub length: usize,
}

impl Mould {
    /// Takes the mould of `frame`, in whose `data` nothing but `text` is of interest, a string's content, and, where `figures` begin
    /// behind it, their digits.
    pub fn take(&mut self, frame: &[u8], data: &Range<usize>, text: Range<usize>, figures: Option<usize>) {
        let (Some(before), Some(behind)) = (frame.get(..text.start), frame.get(text.end..)) else { return };
        if figures.is_some_and(|at| at < text.end) {
            return;
        }
        // A string is a value only before one of these: before a colon it is a name, and names are of interest.
        let is_value = matches!(behind, [b'"', b',' | b'}' | b']', ..]);
        // Behind a CR it is for the next byte to say where a frame ends.
        let ends_here = behind.ends_with(b"\n");
        if is_value && ends_here && before.len() + behind.len() <= MOST_BYTES {
            self.before.clear();
            self.before.extend_from_slice(before);
            self.behind.clear();
            self.behind.extend_from_slice(behind);
            self.figures.clear();
            let mut at = figures.map_or(behind.len(), |at| at - text.end);
            while let Some(start) = behind.get(at..).and_then(|rest| rest.iter().position(u8::is_ascii_digit)) {
                let start = at + start;
                at = start + digits(behind.get(start..).unwrap_or_default());
                self.figures.push(start..at);
            }
            self.around = (data.start, frame.len().saturating_sub(data.end));
        }
    }

    /// The frame that `bytes` begin with; `None` unless it is of this mould and whole.
    pub fn fits(&self, bytes: &[u8]) -> Option<Cast> {
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
        let (mut rest, mut same) = (bytes.get(end..)?, 0);
        for figure in &self.figures {
            rest = rest.strip_prefix(self.behind.get(same..figure.start)?)?;
            rest = rest.get(Some(digits(rest)).filter(|n| *n > 0)?..)?;
            same = figure.end;
        }
        rest = rest.strip_prefix(self.behind.get(same..)?)?;
        let length = bytes.len() - rest.len();
        let figures = (!self.figures.is_empty()).then(|| self.around.0..length.saturating_sub(self.around.1));
        Some(Cast { text: start..end, figures, length })
    }
}

/// How many digits `bytes` begin with.
fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// Where `part` is in `frame`, when it is a part of it.
pub(super) fn place(frame: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(frame.as_ptr() as usize)?;
    let end = start + part.len();
    (end <= frame.len()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::cover::{Cover, Output};
    use super::super::meter::Meter;
    use super::super::usage::{Bounds, Verdict};
    use super::*;
    use crate::usage::{Shape, Usage};
    use bytes::Bytes;
    use proptest::prelude::*;

    #[test]
    fn only_a_whole_frame_that_differs_in_its_text_alone_is_of_the_mould() {
        let mut mould = Mould::default();
        assert_eq!(mould.fits(b"data: \"a\"}\n\n"), None, "none was taken");
        mould.take(b"data: {\"t\":\"a\"}\n\n", &(6..15), 12..13, None);
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
            let fits = mould.fits(bytes.as_bytes()).map(|cast| (cast.text, cast.length));
            assert_eq!(fits, want, "{why}");
        }
        for (frame, text, why) in [
            ("data: {\"t\":\"a\" :1}\n\n", 12..13, "a name, perhaps"),
            ("data: {\"t\":\"a\"}\r\r", 12..13, "a LF may belong to it"),
        ] {
            mould = Mould::default();
            mould.take(frame.as_bytes(), &(6..15), text, None);
            assert!(mould.before.is_empty(), "{why}");
        }
    }

    #[test]
    fn of_a_running_figure_only_the_digits_may_differ() {
        let mut mould = Mould::default();
        let frame = "data: {\"t\":\"a\",\"n\":0,\"usage\":{\"p\":9,\"c\":10}}\n\n";
        mould.take(frame.as_bytes(), &(6..44), 12..13, Some(21));
        for (change, to, fits, why) in [
            ("", "", true, "the same"),
            ("10", "11", true, "one more"),
            ("9,\"c\":10", "10,\"c\":1000", true, "longer"),
            ("10", "", false, "none"),
            ("10", "-1", false, "a sign"),
            ("10", "1.5", false, "a part"),
            ("\"c\"", "\"d\"", false, "another name"),
            ("0,\"usage", "1,\"usage", false, "a number before the figures"),
            ("10}}\n\n", "10}}\n", false, "cut"),
        ] {
            let bytes = frame.replacen(change, to, 1);
            let cast = mould.fits(bytes.as_bytes());
            assert_eq!(cast.is_some(), fits, "{why}");
            let data = cast.and_then(|cast| cast.figures).map(|data| &bytes[data]);
            assert!(data.is_none_or(|data| format!("data: {data}\n\n") == bytes), "{why}: {data:?}");
        }
        mould.take(frame.as_bytes(), &(6..44), 24..29, Some(8));
        assert_eq!(mould.before, b"data: {\"t\":\"", "figures before the text");
    }

    fn metered(stream: &str, size: usize, words: bool) -> (Vec<u8>, Vec<u8>, Verdict, Output, Option<Usage>) {
        let bounds = Bounds { choices: 1, prompt: None, completion: Some(1000), shape: Shape::PLAIN };
        let count: fn(&str) -> u64 = |text| text.split(' ').count() as u64;
        let cover = if words { Cover::Tokens(count) } else { Cover::Bytes };
        let mut meter = Meter::new(false, bounds).with_cover(cover).all_is_shown();
        let mut out = Vec::new();
        for read in stream.as_bytes().chunks(size) {
            meter.feed(Bytes::copy_from_slice(read), &mut out).unwrap();
        }
        meter.finish();
        (out.concat(), meter.take_done().unwrap_or_default().to_vec(), meter.verdict(), meter.seen(), meter.delivered())
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
                "\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":#}}\n\n",
            ),
            ("event: payment-receipt\ndata: {\"delta\":{\"content\":\"", "\"}}\n\n"),
            ("data: [DONE]\n\ndata: {\"delta\":{\"content\":\"", "\"}}\n\n"),
        ]);
        let run = (shapes, proptest::collection::vec((text, 0..200u32), 1..40));
        let run = run.prop_map(|((a, b), texts)| {
            texts.into_iter().map(|(t, n)| format!("{a}{t}{}", b.replace("#", &n.to_string()))).collect::<String>()
        });
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
