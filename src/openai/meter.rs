//! The meter of a stream: sees every frame once, passes it on unchanged, and knows at the end what was used.
//!
//! Two kinds of frames do not pass: the usage chunk of a client that did not ask for one (we did), and events that imitate
//! our payment events. `[DONE]` and all behind it wait, so that the receipt can be written before it:
//! `[content …] [receipt] [DONE …]`. Pure: no clock, no I/O; frames are judged by a few substring searches (about 0.1 µs)
//! and parsed only when one of them hits (0.6 µs, `benches/meter.rs`).

use super::sse::{DEFAULT_CARRY, Frame, Splitter, TooLong};
use super::strict::end_of_plain;
use super::usage::{Bounds, Reply, Tally, Verdict};
use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use std::ops::Range;
use std::sync::LazyLock;

static NEEDLES: LazyLock<Needles> = LazyLock::new(|| Needles {
    usage: Finder::new(b"\"usage\""),
    error: Finder::new(b"\"error\""),
    finish: Finder::new(b"\"finish_reason\""),
    delta: Finder::new(b"\"delta\""),
    message: Finder::new(b"\"message\""),
});

/// Quoted names. Inside a JSON string the quotes are escaped, so text that speaks of usage never matches.
struct Needles {
    usage: Finder<'static>,
    error: Finder<'static>,
    finish: Finder<'static>,
    delta: Finder<'static>,
    message: Finder<'static>,
}

/// Meters one stream.
#[derive(Debug)]
pub struct Meter {
    splitter: Splitter,
    reading: Reading,
}

impl Meter {
    /// A meter for one stream. Without `wants_usage`, the chunk that carries nothing but usage is not passed on.
    pub fn new(wants_usage: bool, bounds: Bounds) -> Self {
        let reading = Reading {
            wants_usage,
            tally: Tally::new(bounds),
            verdict: Verdict::default(),
            first: true,
            held: BytesMut::new(),
        };
        Self { splitter: Splitter::default(), reading }
    }

    /// Takes one read; pushes to `out` what may leave now, in order. Frames that lie in one read leave as one piece.
    /// After an error nothing further of the stream can be metered, and what was pushed may still leave.
    pub fn feed(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Result<(), TooLong> {
        let Self { splitter, reading } = self;
        let whole = chunk.clone();
        let mut carried = splitter.carried();
        let (mut at, mut run) = (0, 0..0);
        let flush = |run: &mut Range<usize>, out: &mut Vec<Bytes>| {
            if run.start < run.end {
                out.push(whole.slice(run.clone()));
            }
        };
        let fed = splitter.feed(chunk, |frame| {
            let start = at;
            at += frame.len() - std::mem::take(&mut carried).min(frame.len());
            let passes = reading.frame(&frame);
            if at - start < frame.len() {
                // It began in an earlier read: not a part of this one.
                if passes {
                    out.push(frame);
                }
            } else if passes && run.end == start {
                run.end = at;
            } else if passes {
                flush(&mut run, out);
                run = start..at;
            }
            if run.start == run.end {
                run = at..at;
            }
        });
        flush(&mut run, out);
        fed.and(if self.reading.held.len() > DEFAULT_CARRY { Err(TooLong { cap: DEFAULT_CARRY }) } else { Ok(()) })
    }

    /// The backend ended its stream. What came behind the last blank line is read for its figures and waits with
    /// `[DONE]`: the receipt must not be glued to an unfinished line.
    pub fn finish(&mut self) {
        if let Some(tail) = self.splitter.finish() {
            self.reading.tail(&tail);
        }
    }

    /// `[DONE]` with everything behind it, and the unfinished rest of the stream, exactly as received; `None` when nothing
    /// waits. Call it after [`Meter::finish`], when the receipt is written, and send it last.
    pub fn take_done(&mut self) -> Option<Bytes> {
        let held = self.reading.held.split().freeze();
        (!held.is_empty()).then_some(held)
    }

    /// What the stream said so far. Good at any time: a client may leave in the middle.
    pub fn verdict(&self) -> Verdict {
        let (usage, absurd) = self.reading.tally.total();
        Verdict { usage, reported: usage.is_some(), absurd, ..self.reading.verdict.clone() }
    }
}

#[derive(Debug)]
struct Reading {
    wants_usage: bool,
    tally: Tally,
    verdict: Verdict,
    /// No event was seen yet.
    first: bool,
    /// From `[DONE]` on.
    held: BytesMut,
}

impl Reading {
    /// Whether the frame leaves now; what has to wait is kept.
    fn frame(&mut self, bytes: &[u8]) -> bool {
        if !self.judge(bytes, true) {
            return false;
        }
        if self.verdict.saw_done {
            self.held.extend_from_slice(bytes);
        }
        !self.verdict.saw_done
    }

    fn tail(&mut self, bytes: &[u8]) {
        if self.judge(bytes, false) {
            self.held.extend_from_slice(bytes);
        }
    }

    /// Reads a frame; `false` when it is not for the client at all.
    fn judge(&mut self, bytes: &[u8], whole: bool) -> bool {
        let frame = Frame::read(bytes, self.first);
        if frame.payment {
            self.verdict.forged_frames += 1;
            return false;
        }
        self.verdict.failed |= frame.error;
        if frame.is_done() {
            self.verdict.saw_done = true;
            return true;
        }
        let Some(data) = frame.data else { return true };
        self.verdict.finished |= finishes(&data);
        let text = text_of(&data, Holder::Delta);
        self.verdict.delivered_chunks += text.texts;
        self.verdict.delivered_bytes += text.bytes;
        let says_usage = NEEDLES.usage.find_iter(&data).any(|at| !is_null(&data, at + 7));
        let says_error = NEEDLES.error.find_iter(&data).any(|at| !is_null(&data, at + 7));
        // The first chunk is parsed for the model that answers.
        if !says_usage && !says_error && !std::mem::take(&mut self.first) {
            return true;
        }
        self.first = false;
        let Some(reply) = Reply::read(&data) else {
            if says_usage && whole {
                self.tally.mark_absurd();
            }
            return true;
        };
        self.verdict.failed |= reply.error.is_some();
        if let Some(model) = reply.model.filter(|model| self.verdict.model.as_deref() != Some(model)) {
            self.verdict.model = Some(model.into_owned());
        }
        let Some(usage) = reply.usage else { return true };
        self.tally.add(usage, reply.choices.as_deref().unwrap_or_default());
        let usage_only = reply.choices.is_some_and(|c| c.is_empty()) && reply.error.is_none();
        self.wants_usage || !usage_only
    }
}

/// Where the text of a choice is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// In a stream.
    Delta,
    /// In a buffered reply.
    Message,
}

/// Text that was generated.
#[derive(Clone, Copy, Default)]
pub(super) struct Delivered {
    /// Deltas or messages with any text.
    pub texts: u64,
    /// UTF-8 bytes of it.
    pub bytes: u64,
}

/// Counts generated text without parsing: for cover while a stream runs and for clients that leave, never for price.
pub(super) fn text_of(data: &[u8], holder: Holder) -> Delivered {
    let needle = if holder == Holder::Delta { &NEEDLES.delta } else { &NEEDLES.message };
    let mut found = Delivered::default();
    for at in needle.find_iter(data) {
        let at = past_colon(data, at + needle.needle().len());
        if data.get(at) == Some(&b'{') {
            let bytes = text_in_object(data, at);
            found.texts += u64::from(bytes > 0);
            found.bytes += bytes;
        }
    }
    found
}

/// Bytes of generated text in the object that opens at `at`.
fn text_in_object(data: &[u8], mut at: usize) -> u64 {
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
                let said = matches!(key, b"content" | b"reasoning_content" | b"reasoning" | b"refusal" | b"arguments");
                if said && value > end && data.get(value) == Some(&b'"') {
                    let (end, length) = past_string(data, value + 1);
                    at = end;
                    bytes += length;
                }
            }
            _ => {}
        }
    }
    bytes
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
fn past_colon(data: &[u8], at: usize) -> usize {
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
fn is_null(data: &[u8], at: usize) -> bool {
    let value = past_colon(data, at);
    value == at || data.get(value..).is_some_and(|rest| rest.starts_with(b"null"))
}

/// Whether a choice says why it finished.
pub(super) fn finishes(data: &[u8]) -> bool {
    NEEDLES.finish.find_iter(data).any(|at| !is_null(data, at + NEEDLES.finish.needle().len()))
}
