//! Replies whose parts carry their type: Responses (OpenAI) and Messages (Anthropic). What one event says, and what a whole
//! reply says.
//!
//! Both differ from chat in the same three ways. No `[DONE]` ends the stream but an event that says how it ended, and that
//! event is a part of the answer: it waits for the receipt as `[DONE]` does, with its figures. Usage always stands in the
//! stream, whether it was asked for or not, so nothing is taken out. And the text is not in `choices`.
//!
//! An event is parsed only when it can hold more than text; names are looked for with their quotes, as in `delta`.

mod messages;
mod responses;

use super::delta::{Delivered, Said};
use super::sse::DEFAULT_CARRY;
use super::usage::{Absurd, Bounds, Verdict};
use crate::surface::Surface;
use crate::usage::{ServiceTier, Usage};
use bytes::Bytes;
use std::borrow::Cow;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages`.
    Messages,
}

impl Dialect {
    /// The dialect of a surface; `None`: it is chat's, or none.
    pub fn of(surface: Surface) -> Option<Self> {
        match surface {
            Surface::Responses => Some(Self::Responses),
            Surface::Messages => Some(Self::Messages),
            _ => None,
        }
    }

    /// Most bytes of one event. The first and the last one of Responses repeat what was asked, and all of the answer.
    pub(super) fn longest_event(self) -> usize {
        match self {
            Self::Responses => 8 * DEFAULT_CARRY,
            Self::Messages => DEFAULT_CARRY,
        }
    }
}

/// What one event says.
#[derive(Debug, Default)]
pub(super) struct Event<'a> {
    /// Generated text that is new.
    pub text: Delivered,
    /// It ends the stream: it, and all behind it, is for after the receipt.
    pub ends: bool,
    /// It says that the answer came to its end, early or not.
    pub finished: bool,
    /// It says that the backend failed.
    pub failed: bool,
    /// It says how much output there was, so far or in all.
    pub says_output: bool,
    /// The model that answers.
    pub model: Option<Cow<'a, str>>,
}

/// Reads the events of one stream, in order.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    dialect: Dialect,
    tally: Tally,
    /// Text since the last part of the answer was complete.
    fresh_text: bool,
}

impl Reader {
    pub fn new(dialect: Dialect, bounds: Bounds) -> Self {
        Self { dialect, tally: Tally::new(bounds), fresh_text: false }
    }

    /// One event's data; every text in it that was not there before is shown.
    pub fn event<'a>(&mut self, data: &'a [u8], said: &mut dyn FnMut(Said<'_>)) -> Event<'a> {
        match self.dialect {
            Dialect::Responses => responses::event(self, data, said),
            Dialect::Messages => messages::event(self, data, said),
        }
    }

    /// What was used, and whether any figure was absurd.
    pub fn total(&self) -> (Option<Usage>, bool) {
        self.tally.total()
    }

    /// What was said of the prompt before anything was said of the output.
    pub fn begun(&self) -> Option<Usage> {
        self.tally.begun.filter(|begun| self.tally.bounds.admit(begun))
    }

    /// The speed at which it was served.
    pub fn tier(&self) -> ServiceTier {
        self.tally.tier
    }
}

/// Reads a buffered reply. A body that is not JSON has failed.
pub fn read_json(dialect: Dialect, body: &[u8], bounds: Bounds) -> Verdict {
    let whole = match dialect {
        Dialect::Responses => responses::whole(body, bounds),
        Dialect::Messages => messages::whole(body, bounds),
    };
    whole.unwrap_or(Verdict { failed: true, ..Verdict::default() })
}

/// The last event of an answer that was cut, in the shape on which this dialect's clients raise an error.
pub fn cut_short(dialect: Dialect, why: &str, code: &str) -> Bytes {
    let error = match dialect {
        Dialect::Responses => serde_json::json!({
            "type": "error", "code": code, "message": why, "param": null, "sequence_number": 0,
            "error": { "type": "server_error", "code": code, "message": why, "param": null },
        }),
        Dialect::Messages => serde_json::json!({
            "type": "error",
            "error": { "type": "api_error", "message": why, "code": code },
        }),
    };
    format!("event: error\ndata: {error}\n\n").into()
}

/// The figures of one reply; a later one replaces an earlier.
#[derive(Clone, Debug)]
struct Tally {
    bounds: Bounds,
    begun: Option<Usage>,
    said: Option<Usage>,
    absurd: bool,
    tier: ServiceTier,
    /// The parts from which the next figure is completed, where figures come in parts.
    parts: messages::Parts,
}

impl Tally {
    fn new(bounds: Bounds) -> Self {
        let (tier, parts) = (ServiceTier::default(), messages::Parts::default());
        Self { bounds, begun: None, said: None, absurd: false, tier, parts }
    }

    /// Takes a figure of the prompt and the output; `None` and all zeros say nothing.
    fn take(&mut self, figure: Result<Option<Usage>, Absurd>) -> bool {
        match figure {
            Ok(Some(usage)) => self.said = Some(usage),
            Ok(None) => return false,
            Err(Absurd) => {
                self.absurd = true;
                return false;
            }
        }
        true
    }

    fn total(&self) -> (Option<Usage>, bool) {
        match self.said {
            Some(usage) if !self.bounds.admit(&usage) => (None, true),
            said => (said, self.absurd),
        }
    }

    /// What is known of a whole reply, apart from its text.
    fn verdict(&self, text: Delivered) -> Verdict {
        let (usage, absurd) = self.total();
        Verdict {
            usage,
            reported: usage.is_some(),
            absurd,
            tier: self.tier,
            delivered_chunks: text.texts,
            delivered_bytes: text.bytes,
            ..Verdict::default()
        }
    }
}
