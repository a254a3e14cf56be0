//! How much output a stream has shown, counted while it runs, and the frames that wait until that much is covered.
//!
//! Two counts, because bytes stand in for tokens where the vocabulary is not known. What must be covered takes every byte for a token:
//! it may be too high by most of the text and is bounded by what was asked, so whoever covers the ceiling of the request covers any
//! of its streams. What is charged, where the backend says nothing, is an estimate of tokens.

use super::delta::{Delivered, Said};
use crate::usage;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;

/// Longer texts are counted by their bytes: the slowest of them at 7 MB/s would hold up other streams (`tokens.rs`).
const LONG_TEXT: usize = 64 * 1024;

/// How the output of a stream is counted where the backend does not say it on every chunk.
#[derive(Clone, Copy, Debug)]
pub enum Cover {
    /// UTF-8 bytes of the text: a bound for any model.
    Bytes,
    /// Tokens of one text, by a vocabulary. It is called for every delta and should neither allocate nor wait.
    Tokens(fn(&str) -> u64),
}

/// Output that went by, in tokens over all choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// At most so many: what must be covered.
    pub most: u64,
    /// About so many: what is charged for them where the backend says nothing. The same where every text could be counted.
    pub about: u64,
}

impl Output {
    /// The larger of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self { most: self.most.max(other.most), about: self.about.max(other.about) }
    }
}

/// The cover count of one stream. It never falls.
#[derive(Debug)]
pub(super) struct Count {
    cover: Cover,
    /// Most tokens that can be produced.
    most: u64,
    /// Newest figure of the backend.
    reported: u64,
    /// Tokens of the deltas since, of those that were counted as tokens.
    since: u64,
    /// Bytes of the others.
    since_bytes: u64,
    /// Counted deltas, all of them.
    alone: u64,
    highest: Output,
    scratch: String,
}

impl Count {
    pub fn new(cover: Cover, most: Option<u64>) -> Self {
        let most = most.unwrap_or(u64::MAX);
        let highest = Output::default();
        Self { cover, most, reported: 0, since: 0, since_bytes: 0, alone: 0, highest, scratch: String::new() }
    }

    /// Whether text counts as its tokens.
    pub fn is_by_tokens(&self) -> bool {
        matches!(self.cover, Cover::Tokens(_))
    }

    /// A piece of generated text went by.
    pub fn said(&mut self, said: Said<'_>) {
        let tokens = match self.cover {
            Cover::Tokens(count) if said.bytes <= LONG_TEXT as u64 => said.text(&mut self.scratch).map(count),
            Cover::Tokens(_) | Cover::Bytes => None,
        };
        match tokens {
            Some(tokens) => self.since = self.since.saturating_add(tokens),
            None => self.since_bytes = self.since_bytes.saturating_add(said.bytes),
        }
        self.alone = self.alone.saturating_add(tokens.unwrap_or(said.bytes));
    }

    /// Tokens of all text that went by, whatever the backend says; `None` where bytes stand in for them.
    pub fn alone(&self) -> Option<u64> {
        self.is_by_tokens().then_some(self.alone)
    }

    /// The backend says what it has produced so far, the chunk that says it included. A figure that does not grow says
    /// nothing: some backends repeat the prompt's with no output until the end.
    pub fn reported(&mut self, tokens: u64) {
        if tokens > self.reported {
            (self.reported, self.since, self.since_bytes) = (tokens, 0, 0);
        }
    }

    /// The count after everything that went by.
    pub fn now(&mut self) -> Output {
        let sure = self.reported.saturating_add(self.since);
        let with = |unsure: u64| sure.saturating_add(unsure).min(self.most);
        let now = Output { most: with(self.since_bytes), about: with(usage::about(self.since_bytes)) };
        self.highest = self.highest.max(now);
        self.highest
    }
}

/// A part of one read.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub read: Bytes,
    pub range: Range<usize>,
}

/// Joins pieces that lie side by side in one read, so that they leave in one write.
#[derive(Debug, Default)]
pub(super) struct Joined(Piece);

impl Joined {
    pub fn push(&mut self, read: &Bytes, range: Range<usize>, out: &mut Vec<Bytes>) {
        let Self(run) = self;
        let same = (run.read.as_ptr(), run.read.len()) == (read.as_ptr(), read.len());
        if same && run.range.end == range.start {
            run.range.end = range.end;
        } else {
            self.flush(out);
            self.0 = Piece { read: read.clone(), range };
        }
    }

    pub fn flush(&mut self, out: &mut Vec<Bytes>) {
        let Piece { read, range } = std::mem::take(&mut self.0);
        if !range.is_empty() {
            out.push(read.slice(range));
        }
    }
}

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub piece: Piece,
    /// The count after it; of a frame that needs no cover of its own, nothing.
    pub count: Output,
    /// Text in it.
    pub text: Delivered,
}

/// Frames that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queue {
    frames: VecDeque<Waiting>,
    /// Text in all of them.
    pub text: Delivered,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn push(&mut self, frame: Waiting) {
        self.text.texts += frame.text.texts;
        self.text.bytes += frame.text.bytes;
        self.bytes += frame.piece.range.len();
        self.frames.push_back(frame);
    }

    /// The next frame, when `covered` is enough for it or it has nothing that needs cover.
    pub fn pop(&mut self, covered: u64) -> Option<Waiting> {
        let frame = self.frames.pop_front_if(|frame| frame.count.most <= covered)?;
        self.text.texts -= frame.text.texts;
        self.text.bytes -= frame.text.bytes;
        self.bytes -= frame.piece.range.len();
        Some(frame)
    }

    /// What the first frame with text needs.
    pub fn next(&self) -> Option<u64> {
        self.frames.iter().find(|frame| frame.text.texts > 0).map(|frame| frame.count.most)
    }
}
