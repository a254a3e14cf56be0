//! The meter of a stream: sees every frame once, passes it on unchanged, and knows at the end what was used.
//!
//! Two kinds of frames do not pass: the usage chunk of a client that did not ask for one (we did), and events that imitate
//! our payment events. `[DONE]` and all behind it wait, so that the receipt can be written before it:
//! `[content …] [receipt] [DONE …]`. Where output is paid for as it comes ([`Meter::with_cover`]), a frame whose text is
//! not covered waits as well, and everything behind it. Pure: no clock, no I/O; frames are judged by a few substring
//! searches (about 0.1 µs) and parsed only when one of them hits (0.6 µs, `benches/meter.rs`).

use super::cover::{Count, Cover, Joined, Output, Piece, Queue, Waiting};
use super::delta::{Delivered, Holder, finishes, is_null, string_at, text_of};
use super::error::is_about_the_request;
use super::mould::{self, Cast, Mould};
use super::reply;
use super::sse::{DEFAULT_CARRY, Frame, Splitter, TooLong};
use super::typed::{self, Dialect};
use super::usage::{Bounds, Reply, Tally, Verdict};
use crate::surface::Surface;
use crate::usage::{Shape, Usage};
use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

static NEEDLES: LazyLock<Needles> =
    LazyLock::new(|| Needles { usage: Finder::new(b"\"usage\""), error: Finder::new(b"\"error\"") });

/// Quoted names. Inside a JSON string the quotes are escaped, so text that speaks of usage never matches.
struct Needles {
    usage: Finder<'static>,
    error: Finder<'static>,
}

/// Of running figures on chunks with text, each of which replaces the one before, only every so many is read at once.
const READ_EVERY: u32 = 16;

/// Meters one stream.
#[derive(Debug)]
pub struct Meter {
    splitter: Splitter,
    /// Most bytes that wait, or that one event may have.
    cap: usize,
    reading: Reading,
    /// Frames that are not covered yet.
    queue: Queue,
    /// The count of what was let out.
    counted: Output,
    /// While frames wait: the newest chunk with a running figure that does not.
    last_out: Vec<u8>,
    /// Text that came when there was nobody left to send it to.
    overheard: Delivered,
}

impl Meter {
    /// A meter for one stream. Without `wants_usage`, the chunk that carries nothing but usage is not passed on.
    pub fn new(wants_usage: bool, bounds: Bounds) -> Self {
        let reading = Reading {
            holder: Holder::Delta,
            wants_usage,
            tally: Tally::new(bounds),
            typed: None,
            count: None,
            lazy: bounds.choices == 1,
            passed_over: 0,
            unread: Vec::new(),
            before: Vec::new(),
            verdict: Verdict::default(),
            first: true,
            mould: Mould::default(),
            held: BytesMut::new(),
        };
        let (splitter, queue, overheard) = (Splitter::default(), Queue::default(), Delivered::default());
        let counted = Output::default();
        Self { splitter, cap: DEFAULT_CARRY, reading, queue, counted, last_out: Vec::new(), overheard }
    }

    /// How the figures of the backend add up, once it is known which one answers. To be said before the first byte.
    pub fn add_up_by(&mut self, shape: Shape) {
        self.reading.tally.add_up_by(shape);
    }

    /// The stream speaks as `surface` does, where that is not chat.
    pub fn of(mut self, surface: Surface) -> Self {
        self.reading.holder = reply::text_in_stream(surface);
        if let Some(dialect) = Dialect::of(surface) {
            self.reading.typed = Some(typed::Reader::new(dialect, self.reading.tally.bounds()));
            self.reading.lazy = false;
            self.cap = dialect.longest_event();
            self.splitter = Splitter::with_cap(self.cap);
        }
        self
    }

    /// Counts output as it goes by, `cover` saying how where the backend does not say it itself. The count never falls and
    /// never passes the bound on output that the meter was made with.
    pub fn with_cover(mut self, cover: Cover) -> Self {
        self.reading.lazy = false;
        self.reading.count = Some(Count::new(cover, self.reading.tally.most_completion()));
        self
    }

    /// The backend shows all the output it bills: a count by vocabulary needs its running figures only now and then. Bytes count for
    /// several tokens each, so that every figure that corrects them is worth reading.
    pub fn all_is_shown(mut self) -> Self {
        let by_tokens = self.reading.count.as_ref().is_none_or(Count::is_by_tokens);
        self.reading.lazy = by_tokens && self.reading.typed.is_none() && self.reading.tally.is_of_one_choice();
        self
    }

    /// Takes one read; pushes to `out` what may leave now, in order. Frames that lie in one read leave as one piece.
    /// After an error nothing further of the stream can be metered, and what was pushed may still leave.
    pub fn feed(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Result<(), TooLong> {
        self.feed_covered(chunk, u64::MAX, out)
    }

    /// As [`Meter::feed`], but lets out only what `covered` output tokens cover: the first frame whose text, or whose final
    /// figure, is beyond them waits with everything behind it. A frame without either needs no cover of its own.
    pub fn feed_covered(&mut self, chunk: Bytes, covered: u64, out: &mut Vec<Bytes>) -> Result<(), TooLong> {
        self.release(covered, out);
        let Self { splitter, reading, queue, counted, last_out, .. } = self;
        let mut at = 0;
        // What of this read may leave, and has not been pushed.
        let mut joined = 0..0;
        let fed = loop {
            let rest = chunk.get(at..).unwrap_or_default();
            let known = if splitter.is_between() { reading.known(rest) } else { None };
            let (length, whole, seen) = match known {
                Some((length, seen)) => (length, None, Some(seen)),
                None => match splitter.next(rest) {
                    Ok(Some((length, None))) => (length, None, reading.frame(rest.get(..length).unwrap_or_default())),
                    Ok(Some((length, Some(frame)))) => {
                        let seen = reading.frame(&frame);
                        (length, Some(frame), seen)
                    }
                    Ok(None) => break Ok(()),
                    Err(too_long) => break Err(too_long),
                },
            };
            let range = at..at + length;
            at = range.end;
            let Some(seen) = seen else { continue };
            if queue.is_empty() && (seen.count.most <= covered || seen.free) {
                *counted = seen.count;
                match whole {
                    // It began in an earlier read: nothing of this one is before it.
                    Some(frame) => out.push(frame),
                    None if joined.end == range.start && !joined.is_empty() => joined.end = range.end,
                    None => push(&chunk, std::mem::replace(&mut joined, range), out),
                }
            } else {
                if queue.is_empty() && seen.text.texts > 0 {
                    std::mem::swap(last_out, &mut reading.before);
                }
                let piece = match whole {
                    Some(frame) => Piece { range: 0..frame.len(), read: frame },
                    None => Piece { read: chunk.clone(), range },
                };
                queue.push(Waiting {
                    piece,
                    count: if seen.free { Output::default() } else { seen.count },
                    text: seen.text,
                });
            }
        };
        if joined == (0..chunk.len()) {
            out.extend((!chunk.is_empty()).then_some(chunk));
        } else {
            push(&chunk, joined, out);
        }
        let kept = self.reading.held.len().max(self.queue.bytes);
        fed.and(if kept > self.cap { Err(TooLong { cap: self.cap }) } else { Ok(()) })
    }

    /// Takes one read for its figures alone: the client is gone, nothing of it leaves or counts as delivered.
    pub fn overhear(&mut self, chunk: Bytes) -> Result<(), TooLong> {
        let Self { splitter, reading, overheard, .. } = self;
        let mut rest = &*chunk;
        while let Some((length, whole)) = splitter.next(rest)? {
            let (frame, behind) = rest.split_at_checked(length).unwrap_or_default();
            rest = behind;
            if let Some(seen) = reading.frame(whole.as_deref().unwrap_or(frame)) {
                overheard.texts += seen.text.texts;
                overheard.bytes += seen.text.bytes;
            }
        }
        reading.held.clear();
        Ok(())
    }

    /// More is covered: lets out what waited for it, in order. `u64::MAX` lets out everything.
    pub fn release(&mut self, covered: u64, out: &mut Vec<Bytes>) {
        if self.queue.is_empty() {
            return;
        }
        let mut joined = Joined::default();
        while let Some(frame) = self.queue.pop(covered) {
            self.counted = self.counted.max(frame.count);
            if frame.text.texts > 0 {
                let bytes = frame.piece.read.get(frame.piece.range.clone()).unwrap_or_default();
                if let Some(data) = Frame::read(bytes, false).data {
                    self.last_out.clear();
                    self.last_out.extend_from_slice(&data);
                }
            }
            joined.push(&frame.piece.read, frame.piece.range, out);
        }
        joined.flush(out);
    }

    /// How much must be covered before the next waiting text may leave; `None` when no text waits. A final figure that is
    /// not covered keeps its chunk waiting, but the stream need not stop for it: the backend has nothing more to say.
    pub fn waiting(&self) -> Option<u64> {
        self.queue.next()
    }

    /// Output in what was let out so far: the backend's newest figure and what was counted since. Nothing without cover.
    pub fn counted(&self) -> Output {
        self.counted
    }

    /// The same for everything that came, whether it waits or not. Once the backend gave its final figure, that one (in
    /// [`Meter::verdict`]) is what was used; this may be above it.
    pub fn seen(&mut self) -> Output {
        self.reading.counted()
    }

    /// Output tokens of everything that came by the vocabulary alone, for comparison with what the backend says; `None` without one.
    pub fn by_vocabulary(&self) -> Option<u64> {
        self.reading.count.as_ref()?.alone()
    }

    /// The backend ended its stream. What came behind the last blank line is read for its figures and waits with
    /// `[DONE]`: the receipt must not be glued to an unfinished line.
    pub fn finish(&mut self) {
        if let Some(tail) = self.splitter.finish() {
            self.reading.tail(&tail);
        }
    }

    /// `[DONE]` with everything behind it, and the unfinished rest of the stream, exactly as received; `None` when nothing
    /// waits, or when frames before it still wait to be let out. Call it after [`Meter::finish`], when the receipt is
    /// written, and send it last.
    pub fn take_done(&mut self) -> Option<Bytes> {
        if !self.queue.is_empty() {
            return None;
        }
        let held = self.reading.held.split().freeze();
        (!held.is_empty()).then_some(held)
    }

    /// The backend's figure for what was let out, where it says one with the text; `None` where it does not, and where not only the
    /// newest of its figures counts.
    pub fn delivered(&self) -> Option<Usage> {
        if !self.reading.lazy {
            return None;
        }
        let newest = if self.queue.is_empty() { &self.reading.unread } else { &self.last_out };
        let reply = Reply::read(newest)?;
        let mut tally = self.reading.tally.fresh();
        tally.hear(&reply);
        tally.total().0
    }

    /// What the stream said so far. Good at any time: a client may leave in the middle.
    pub fn verdict(&self) -> Verdict {
        let ((usage, absurd), tier, stated, partial) = match &self.reading.typed {
            Some(typed) => (typed.total(), typed.tier(), None, false),
            None => {
                let heard = self.reading.heard();
                (heard.total(), heard.tier, heard.stated, heard.is_partial())
            }
        };
        let said = &self.reading.verdict;
        Verdict {
            usage,
            reported: usage.is_some(),
            absurd,
            tier,
            stated,
            partial,
            delivered_chunks: said.delivered_chunks - self.queue.text.texts - self.overheard.texts,
            delivered_bytes: said.delivered_bytes - self.queue.text.bytes - self.overheard.bytes,
            begun: self.reading.typed.as_ref().and_then(typed::Reader::begun),
            ..said.clone()
        }
    }
}

fn push(read: &Bytes, range: Range<usize>, out: &mut Vec<Bytes>) {
    if !range.is_empty() {
        out.push(read.slice(range));
    }
}

#[derive(Debug)]
struct Reading {
    holder: Holder,
    wants_usage: bool,
    tally: Tally,
    /// Of streams whose events carry their type: what they say, instead of all that is read of chat chunks.
    typed: Option<typed::Reader>,
    /// Where cover is counted.
    count: Option<Count>,
    /// Running figures may be passed over: there is one choice, and another way to count meanwhile.
    lazy: bool,
    passed_over: u32,
    /// The newest chunk whose running figure was passed over.
    unread: Vec<u8>,
    /// The chunk with a running figure before that one.
    before: Vec<u8>,
    verdict: Verdict,
    /// No event was seen yet.
    first: bool,
    /// Of the newest chunk with text and nothing else.
    mould: Mould,
    /// From `[DONE]` on.
    held: BytesMut,
}

/// A frame for the client.
struct Seen {
    /// It needs no cover of its own.
    free: bool,
    /// The count after it.
    count: Output,
    text: Delivered,
}

/// What a frame is, once read.
enum Kind {
    /// Not for the client at all.
    Dropped,
    /// Text of an answer, or none.
    Text(Delivered),
    /// The final figure and nothing else.
    Figure,
}

impl Reading {
    /// What is to be done with a frame that may leave; `None` for what does not leave, or is kept for the end.
    fn frame(&mut self, bytes: &[u8]) -> Option<Seen> {
        let (free, text) = match self.judge(bytes, true) {
            Kind::Dropped => return None,
            Kind::Text(text) => (text.texts == 0, text),
            Kind::Figure => (false, Delivered::default()),
        };
        if self.verdict.saw_done {
            self.held.extend_from_slice(bytes);
            return None;
        }
        Some(Seen { free, count: self.counted(), text })
    }

    /// The frame that `read` begins with, when it is one like the one before: how long it is, and what is to be done with it.
    fn known(&mut self, read: &[u8]) -> Option<(usize, Seen)> {
        let Cast { text, figures, length } = self.mould.fits(read).filter(|_| !self.verdict.saw_done)?;
        if let Some(figures) = figures {
            if !self.lazy || text.is_empty() || self.passed_over >= READ_EVERY {
                return None;
            }
            self.pass_over(read.get(figures)?);
        }
        let (_, bytes) = string_at(read, text.start - 1, &mut |said| {
            if let Some(count) = &mut self.count {
                count.said(said);
            }
        });
        let text = Delivered::once(bytes);
        self.verdict.delivered_chunks += text.texts;
        self.verdict.delivered_bytes += text.bytes;
        Some((length, Seen { free: text.texts == 0, count: self.counted(), text }))
    }

    /// Output in everything that went by.
    fn counted(&mut self) -> Output {
        self.count.as_mut().map_or(Output::default(), Count::now)
    }

    fn tail(&mut self, bytes: &[u8]) {
        if !matches!(self.judge(bytes, false), Kind::Dropped) {
            self.held.extend_from_slice(bytes);
        }
    }

    /// What was said of usage so far, with what was passed over.
    fn heard(&self) -> Cow<'_, Tally> {
        let Some(reply) = Reply::read(&self.unread) else { return Cow::Borrowed(&self.tally) };
        let mut tally = self.tally.clone();
        tally.hear(&reply);
        Cow::Owned(tally)
    }

    fn judge(&mut self, bytes: &[u8], whole: bool) -> Kind {
        let frame = Frame::read(bytes, self.first);
        if frame.payment {
            self.verdict.forged_frames += 1;
            return Kind::Dropped;
        }
        let nothing = Kind::Text(Delivered::default());
        if frame.error {
            self.fails(frame.data.as_deref().unwrap_or_default());
        }
        if frame.is_done() {
            self.verdict.saw_done = true;
            return nothing;
        }
        let Some(data) = frame.data else { return nothing };
        if self.typed.is_some() {
            // Half an event, behind the last blank line, says nothing.
            let says = whole || serde_json::from_slice::<IgnoredAny>(&data).is_ok();
            return if says { Kind::Text(self.typed_event(&data)) } else { nothing };
        }
        let finishes = finishes(&data);
        self.verdict.finished |= finishes;
        let (mut pieces, mut place) = (0u32, None);
        let here = mould::place(bytes, &data);
        let text = text_of(&data, self.holder, |said| {
            (pieces, place) = (pieces + 1, mould::place(bytes, said.raw()));
            if let Some(count) = &mut self.count {
                count.said(said);
            }
        });
        self.verdict.delivered_chunks += text.texts;
        self.verdict.delivered_bytes += text.bytes;
        let usage_at = NEEDLES.usage.find_iter(&data).find(|at| !is_null(&data, at + 7));
        let says_usage = usage_at.is_some();
        let says_error = NEEDLES.error.find_iter(&data).any(|at| !is_null(&data, at + 7));
        // Of a chunk with one text that neither fails nor ends anything.
        let plain = pieces == 1 && whole && !finishes && !frame.error && !says_error;
        let mould = here.zip(place).filter(|_| plain && !self.first);
        if self.lazy && says_usage && !says_error && text.texts > 0 {
            let passed_over = self.passed_over;
            self.pass_over(&data);
            if !self.first && passed_over < READ_EVERY {
                if let Some((data, text)) = mould {
                    let usage_at = usage_at.map(|at| data.start + at);
                    self.mould.take(bytes, &data, text, usage_at);
                }
                return Kind::Text(text);
            }
        }
        // The first chunk is parsed for the model that answers.
        if !says_usage && !says_error && !std::mem::take(&mut self.first) {
            if let Some((data, text)) = mould {
                self.mould.take(bytes, &data, text, None);
            }
            return Kind::Text(text);
        }
        self.first = false;
        let Some(reply) = Reply::read(&data) else {
            if says_usage && whole {
                self.tally.mark_absurd();
            }
            return Kind::Text(text);
        };
        if reply.error.is_some() {
            self.fails(&data);
        }
        let taken = self.tally.hear(&reply);
        if let Some(model) = reply.model.filter(|model| self.verdict.model.as_deref() != Some(model)) {
            self.verdict.model = Some(model.into_owned());
        }
        if reply.usage.is_none() {
            return Kind::Text(text);
        }
        self.passed_over = 0;
        if text.texts == 0 {
            // A final figure is newer than all of them.
            self.unread.clear();
        }
        // A figure of some choices says nothing of what the others have said by now.
        if let (true, Some(count), (Some(total), _)) =
            (taken && !self.tally.is_partial(), &mut self.count, self.tally.total())
        {
            count.reported(total.completion);
        }
        let usage_only = reply.choices.is_some_and(|c| c.is_empty()) && reply.error.is_none();
        match (usage_only, self.wants_usage) {
            (true, true) => Kind::Figure,
            (true, false) => Kind::Dropped,
            (false, _) => Kind::Text(text),
        }
    }

    /// Keeps the newest running figure to be read when it must be.
    fn pass_over(&mut self, data: &[u8]) {
        std::mem::swap(&mut self.unread, &mut self.before);
        self.unread.clear();
        self.unread.extend_from_slice(data);
        self.passed_over = self.passed_over.saturating_add(1);
    }

    fn typed_event(&mut self, data: &[u8]) -> Delivered {
        let Some(typed) = &mut self.typed else { return Delivered::default() };
        self.first = false;
        let event = typed.event(data, &mut |said| {
            if let Some(count) = &mut self.count {
                count.said(said);
            }
        });
        let failed = event.failed;
        self.verdict.finished |= event.finished;
        self.verdict.saw_done |= event.ends;
        self.verdict.delivered_chunks += event.text.texts;
        self.verdict.delivered_bytes += event.text.bytes;
        if let Some(model) = event.model.filter(|model| self.verdict.model.as_deref() != Some(model)) {
            self.verdict.model = Some(model.into_owned());
        }
        if let (true, Some(count), (Some(total), _)) = (event.says_output, &mut self.count, typed.total()) {
            count.reported(total.completion);
        }
        if failed {
            self.fails(data);
        }
        event.text
    }

    /// An event that says an error.
    fn fails(&mut self, data: &[u8]) {
        self.verdict.failed = true;
        self.verdict.at_fault |= !is_about_the_request(data);
    }
}
