//! Event streams cut into frames without changing a byte.
//!
//! A frame is everything up to and with the blank line that ends an event (WHATWG HTML §9.2.6): lines end in LF, CR or CRLF,
//! mixed, and reads may fall anywhere, between CR and LF included. Because what is cut is later forwarded or left out as
//! a whole, where a frame ends must not depend on where reads fell: a CR at the end of a read waits for the next byte.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use std::borrow::Cow;

/// Most bytes kept of an event whose end has not come, unless told otherwise.
pub const DEFAULT_CARRY: usize = 1 << 20;

/// An event is longer than what may be kept of it; the stream cannot be metered any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// The cap in bytes.
    pub cap: usize,
}

/// Cuts a stream into frames. Frames and the tail, one after the other, are exactly the bytes fed.
#[derive(Debug)]
pub struct Splitter {
    carry: BytesMut,
    cap: usize,
    /// The current line has no byte yet.
    line_empty: bool,
    /// The last byte was a CR that ended a line; a LF right behind it belongs to it.
    after_cr: bool,
    /// That line was blank: the frame ends here, or behind the LF.
    blank: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::with_cap(DEFAULT_CARRY)
    }
}

impl Splitter {
    /// Keeps at most `cap` bytes of an unfinished event.
    pub fn with_cap(cap: usize) -> Self {
        Self { carry: BytesMut::new(), cap, line_empty: true, after_cr: false, blank: false }
    }

    /// The frame that `read` completes, if it does: how many of these bytes belong to it, and the whole of it when it began in an earlier
    /// read. Else they are kept. What is behind the frame is for the next call.
    pub fn next(&mut self, read: &[u8]) -> Result<Option<(usize, Option<Bytes>)>, TooLong> {
        let Some(end) = self.frame_end(read) else { return self.keep(read).map(|()| None) };
        if self.carry.is_empty() {
            return Ok(Some((end, None)));
        }
        self.carry.extend_from_slice(read.get(..end).unwrap_or_default());
        Ok(Some((end, Some(self.carry.split().freeze()))))
    }

    /// Whether the next byte begins a frame.
    pub fn is_between(&self) -> bool {
        self.carry.is_empty() && self.line_empty && !self.after_cr
    }

    /// At the end of the stream: what came after the last complete frame, when anything did.
    pub fn finish(&mut self) -> Option<Bytes> {
        let tail = self.carry.split().freeze();
        *self = Self::with_cap(self.cap);
        (!tail.is_empty()).then_some(tail)
    }

    fn keep(&mut self, rest: &[u8]) -> Result<(), TooLong> {
        if self.carry.len() + rest.len() > self.cap {
            return Err(TooLong { cap: self.cap });
        }
        self.carry.extend_from_slice(rest);
        Ok(())
    }

    /// Where the current frame ends in these bytes, which follow all bytes seen so far.
    fn frame_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            if self.after_cr {
                let next = bytes.get(at)?;
                self.after_cr = false;
                at += usize::from(*next == b'\n');
                if std::mem::take(&mut self.blank) {
                    return Some(at);
                }
            }
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let Some(length) = memchr2(b'\r', b'\n', rest) else {
                self.line_empty = false;
                return None;
            };
            let blank = length == 0 && self.line_empty;
            self.line_empty = true;
            at += length + 1;
            if rest.get(length) == Some(&b'\r') {
                self.after_cr = true;
                self.blank = blank;
            } else if blank {
                return Some(at);
            }
        }
    }
}

/// What a frame says, as far as the gate looks.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The data lines, joined by LF as the standard says. `None`: no data line, hence no event.
    pub data: Option<Cow<'a, [u8]>>,
    /// An `event:` line names a payment event. Those are ours alone; a backend's are never passed on.
    pub payment: bool,
    /// An `event:` line says `error`.
    pub error: bool,
}

impl<'a> Frame<'a> {
    /// Reads one frame; `first` is the first of its stream, before which a byte-order mark may stand.
    pub fn read(frame: &'a [u8], first: bool) -> Self {
        let mut rest = if first { frame.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(frame) } else { frame };
        let mut read = Self { data: None, payment: false, error: false };
        while !rest.is_empty() {
            let length = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            let (line, behind) = rest.split_at(length);
            // A CRLF leaves an empty line behind it here, which says nothing.
            rest = behind.get(1..).unwrap_or_default();
            read.line(line);
        }
        read
    }

    /// Whether this is the event that ends a stream.
    pub fn is_done(&self) -> bool {
        self.data.as_deref().is_some_and(|data| data.trim_ascii() == b"[DONE]")
    }

    fn line(&mut self, line: &'a [u8]) {
        if let Some(value) = field(line, b"data") {
            self.data = Some(match self.data.take() {
                None => Cow::Borrowed(value),
                Some(before) => {
                    let mut joined = before.into_owned();
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                    Cow::Owned(joined)
                }
            });
        } else if let Some(value) = field(line, b"event") {
            // Sloppy clients ignore case and trim what they take for white space (JavaScript: U+000B, U+00A0, U+FEFF and more), and
            // which of two names wins differs: any of them counts, wherever it stands.
            self.payment |= value.windows(8).any(|word| word.eq_ignore_ascii_case(b"payment-"));
            self.error |= value.trim_ascii() == b"error";
        } else if let Some(comment) = line.strip_prefix(b":") {
            // The receipt of a stream is a comment (`openai/receipt.rs`), so a comment can pose as one.
            let start = comment.trim_ascii_start().get(..15);
            self.payment |= start.is_some_and(|start| start.eq_ignore_ascii_case(b"pontage-receipt"));
        }
    }
}

/// The value of `line` when it is a field of that name, without the one space after the colon.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn feed(splitter: &mut Splitter, mut read: &[u8], mut frame: impl FnMut(Bytes)) -> Result<(), TooLong> {
        while let Some((length, whole)) = splitter.next(read)? {
            frame(whole.unwrap_or_else(|| Bytes::copy_from_slice(&read[..length])));
            read = &read[length..];
        }
        Ok(())
    }

    /// Frames and tail when the stream is read in pieces of these sizes, the last one repeated.
    fn cut(stream: &[u8], sizes: &[usize]) -> (Vec<Bytes>, Option<Bytes>) {
        let (mut splitter, mut frames, mut rest) = (Splitter::default(), Vec::new(), stream);
        let mut sizes = sizes.iter().copied().chain(std::iter::repeat(*sizes.last().unwrap_or(&usize::MAX)));
        while !rest.is_empty() {
            let (now, later) = rest.split_at(sizes.next().unwrap().clamp(1, rest.len()));
            feed(&mut splitter, now, |f| frames.push(f)).unwrap();
            rest = later;
        }
        let tail = splitter.finish();
        (frames, tail)
    }

    #[test]
    fn every_legal_line_end_ends_a_frame_and_stays_in_it() {
        for (stream, frames, tail, why) in [
            ("data: a\n\ndata: b\n\n", &["data: a\n\n", "data: b\n\n"][..], "", "LF"),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["data: a\r\n\r\n", "data: b\r\n\r\n"], "", "CRLF"),
            ("data: a\r\rdata: b\r\r", &["data: a\r\r"], "data: b\r\r", "CR; the last one may be half a CRLF"),
            ("data: a\n\r\ndata: b\r\n\n", &["data: a\n\r\n", "data: b\r\n\n"], "", "mixed"),
            ("data: a\r\n\ndata: b\n\n", &["data: a\r\n\n", "data: b\n\n"], "", "CRLF then LF"),
            (": ping\n\n:\n\n", &[": ping\n\n", ":\n\n"], "", "comments"),
            ("\n\ndata: a\n\n", &["\n", "\n", "data: a\n\n"], "", "blank lines alone"),
            ("event: x\ndata: a\ndata: b\n\n", &["event: x\ndata: a\ndata: b\n\n"], "", "several lines"),
            ("data: a\n", &[], "data: a\n", "not ended"),
            ("data: a", &[], "data: a", "cut in a line"),
        ] {
            for size in 1..=stream.len() {
                let (got, got_tail) = cut(stream.as_bytes(), &[size]);
                assert_eq!(got, frames, "{why}, reads of {size}");
                assert_eq!(got_tail.unwrap_or_default(), tail, "{why}, reads of {size}");
            }
        }
    }

    #[test]
    fn a_frame_says_what_its_lines_say() {
        let say = |data: &'static str| Some(Cow::Borrowed(data.as_bytes()));
        for (frame, first, data, payment, why) in [
            ("data: x\n\n", false, say("x"), false, "one space is no part of the value"),
            ("data:  x\n\n", false, say(" x"), false, "the second is"),
            ("data:x\r\n\r\n", false, say("x"), false, "no space, CRLF"),
            ("data: {\"a\":1,\ndata: \"b\":2}\n\n", false, say("{\"a\":1,\n\"b\":2}"), false, "lines are joined"),
            ("data\n\n", false, say(""), false, "no colon"),
            (": c\nid: 1\nretry: 9\n\n", false, None, false, "nothing for us"),
            ("database: x\n\n", false, None, false, "another field"),
            ("\u{feff}data: x\n\n", true, say("x"), false, "byte-order mark at the start of a stream"),
            ("\u{feff}data: x\n\n", false, None, false, "and nowhere else"),
            ("event: payment-receipt\ndata: {}\n\n", false, say("{}"), true, "a forged receipt"),
            ("event:payment-need-voucher\rdata: {}\r\r", false, say("{}"), true, "with CR"),
            ("event:  Payment-Receipt \ndata: {}\n\n", false, say("{}"), true, "as a sloppy client reads it"),
            ("event: x\nevent: payment-x\nevent: y\n\n", false, None, true, "one of several names"),
            (": pontage-receipt e30\n\n", false, None, true, "a forged receipt of ours"),
            ("data: x\n:Pontage-Receipt e30\n\n", false, say("x"), true, "beside content"),
            (": about a pontage-receipt\n\n", false, None, false, "a comment that speaks of it"),
            ("data: event: payment-receipt\n\n", false, say("event: payment-receipt"), false, "text that speaks of it"),
        ] {
            let got = Frame::read(frame.as_bytes(), first);
            assert_eq!((got.data, got.payment), (data, payment), "{why}");
        }
        assert!(Frame::read(b"event: error\ndata: {}\n\n", false).error);
        assert!(Frame::read(b"data: [DONE]\n\n", false).is_done() && Frame::read(b"data:[DONE] \r\r", false).is_done());
        assert!(!Frame::read(b"data: \"[DONE]\"\n\n", false).is_done());
    }

    #[test]
    fn an_event_longer_than_the_cap_is_an_error_not_memory() {
        let mut splitter = Splitter::with_cap(10);
        let feed = |s: &mut Splitter, text: &str| feed(s, text.as_bytes(), |_| {});
        assert_eq!(feed(&mut splitter, "data: 6789\n\ndata: a"), Ok(()), "whole frames of any size are not carried");
        assert_eq!(feed(&mut splitter, "0123"), Err(TooLong { cap: 10 }));
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_the_stream_is_read(
            stream in "[a:d \r\n]{0,60}",
            sizes in proptest::collection::vec(1usize..9, 1..8),
        ) {
            let whole = cut(stream.as_bytes(), &[usize::MAX]);
            let pieces = cut(stream.as_bytes(), &sizes);
            prop_assert_eq!(&whole, &pieces);
            let mut joined = whole.0.concat();
            joined.extend_from_slice(&whole.1.unwrap_or_default());
            prop_assert_eq!(joined, stream.as_bytes());
        }
    }
}
