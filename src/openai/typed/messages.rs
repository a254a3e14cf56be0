//! Messages: `message_start` with what the prompt was, blocks in deltas, `message_delta` with the output so far, `message_stop`.
//!
//! Anthropic's `input_tokens` leaves out what was read from a cache or written into one; [`Usage::prompt`] holds all of it.
//! The output that `message_start` speaks of is a placeholder: until a `message_delta` says more, nothing was reported.

use super::{Event, Reader, Tally};
use crate::openai::delta::{Delivered, Said, is_null, past_colon, text_in};
use crate::openai::usage::{Absurd, Bounds, Verdict, count, object};
use crate::usage::{ServiceTier, Usage};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::LazyLock;

static NEEDLES: LazyLock<Needles> = LazyLock::new(|| Needles {
    delta: Finder::new(b"\"delta\""),
    block: Finder::new(b"\"content_block\""),
    usage: Finder::new(b"\"usage\""),
    error: Finder::new(b"\"error\""),
    stop: Finder::new(b"\"message_stop\""),
    reason: Finder::new(b"\"stop_reason\""),
});

struct Needles {
    delta: Finder<'static>,
    block: Finder<'static>,
    usage: Finder<'static>,
    error: Finder<'static>,
    stop: Finder<'static>,
    reason: Finder<'static>,
}

/// The names under which a delta or a block says text. A signature is none.
const TEXTS: &[&[u8]] = &[b"text", b"partial_json", b"thinking"];

#[derive(Deserialize)]
struct Told<'a> {
    #[serde(default, borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    message: Option<Message<'a>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    delta: Option<Reason>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(default, borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default, borrow)]
    content: Option<&'a RawValue>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    stop_reason: Option<String>,
}

/// Reads one event.
pub(super) fn event<'a>(reader: &mut Reader, data: &'a [u8], said: &mut dyn FnMut(Said<'_>)) -> Event<'a> {
    let mut event = Event { text: texts(data, said), ..Event::default() };
    let says = |needle: &Finder<'_>| needle.find_iter(data).any(|at| !is_null(data, at + needle.needle().len()));
    let usage = says(&NEEDLES.usage);
    let more = usage || says(&NEEDLES.reason);
    if !more && NEEDLES.stop.find(data).is_none() && NEEDLES.error.find(data).is_none() {
        return event;
    }
    let Ok(told) = serde_json::from_slice::<Told<'_>>(data) else {
        reader.tally.absurd |= usage;
        return event;
    };
    let kind = told.kind.as_deref().unwrap_or_default();
    event.failed = kind == "error";
    event.finished = told.delta.is_some_and(|delta| delta.stop_reason.is_some());
    event.ends = event.finished || kind == "message_stop";
    if let Some(message) = told.message {
        if let Some(usage) = message.usage {
            reader.tally.begins(usage.get());
        }
        event.model = message.model;
    }
    if let Some(usage) = told.usage {
        event.says_output = reader.tally.goes_on(usage.get());
    }
    event
}

/// The text of every delta, and of blocks that begin with some.
fn texts(data: &[u8], mut said: &mut dyn FnMut(Said<'_>)) -> Delivered {
    let mut found = Delivered::default();
    for needle in [&NEEDLES.delta, &NEEDLES.block] {
        for at in needle.find_iter(data) {
            let at = past_colon(data, at + needle.needle().len());
            if data.get(at) == Some(&b'{') {
                let bytes = text_in(data, at, TEXTS, &mut said);
                found.texts += u64::from(bytes > 0);
                found.bytes += bytes;
            }
        }
    }
    found
}

/// Reads a buffered reply; `None` when it is not one.
pub(super) fn whole(body: &[u8], bounds: Bounds) -> Option<Verdict> {
    let message: Message<'_> = object(body)?;
    let mut tally = Tally::new(bounds);
    if let Some(usage) = message.usage {
        tally.goes_on(usage.get());
    }
    let text = message.content.map_or_else(Delivered::default, |content| in_blocks(content.get().as_bytes()));
    Some(Verdict {
        failed: message.error.is_some() || message.kind.as_deref() == Some("error"),
        finished: message.stop_reason.is_some(),
        model: message.model.map(Cow::into_owned),
        ..tally.verdict(text)
    })
}

/// Text of whole blocks. What a tool is called with is JSON of the model's own: all of it counts.
fn in_blocks(content: &[u8]) -> Delivered {
    #[derive(Deserialize)]
    struct Block<'a> {
        #[serde(default, borrow)]
        input: Option<&'a RawValue>,
    }
    let mut bytes = text_in(content, 0, TEXTS, &mut |_| {});
    for block in serde_json::from_slice::<Vec<Block<'_>>>(content).unwrap_or_default() {
        bytes += block.input.map_or(0, |input| input.get().len() as u64);
    }
    Delivered::once(bytes)
}

#[derive(Deserialize)]
struct Figures<'a> {
    #[serde(default, borrow)]
    input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    output_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cache_creation_input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cache_read_input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cache_creation: Option<Written<'a>>,
    #[serde(default, borrow)]
    service_tier: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(default, borrow)]
    ephemeral_5m_input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    ephemeral_1h_input_tokens: Option<&'a RawValue>,
}

/// The counts as Anthropic keeps them apart. A later object completes an earlier one: what it leaves out, or says as 0, stays.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    input: u64,
    read: u64,
    written: u64,
    written_hour: u64,
    output: u64,
}

impl Parts {
    fn complete(&mut self, figures: &Figures<'_>) -> Result<(), Absurd> {
        let newer = |old: &mut u64, value| -> Result<(), Absurd> {
            if let Some(n) = count(value)?.filter(|n| *n > 0) {
                *old = n;
            }
            Ok(())
        };
        newer(&mut self.input, figures.input_tokens)?;
        newer(&mut self.read, figures.cache_read_input_tokens)?;
        newer(&mut self.written, figures.cache_creation_input_tokens)?;
        newer(&mut self.output, figures.output_tokens)?;
        if let Some(written) = &figures.cache_creation {
            let minutes = count(written.ephemeral_5m_input_tokens)?.unwrap_or(0);
            newer(&mut self.written_hour, written.ephemeral_1h_input_tokens)?;
            self.written = self.written.max(minutes.saturating_add(self.written_hour));
        }
        Ok(())
    }

    fn usage(&self) -> Result<Option<Usage>, Absurd> {
        let prompt = self.input.saturating_add(self.read).saturating_add(self.written);
        if prompt == 0 && self.output == 0 {
            return Ok(None);
        }
        if self.written_hour > self.written {
            return Err(Absurd);
        }
        Ok(Some(Usage {
            prompt,
            completion: self.output,
            cached: self.read,
            cache_write: self.written,
            cache_write_hour: self.written_hour,
            ..Usage::default()
        }))
    }
}

impl Tally {
    /// `message_start`: what the prompt was.
    fn begins(&mut self, usage: &str) {
        match self.completed(usage) {
            Ok((figure, _)) => self.begun = figure.map(|usage| Usage { completion: 0, ..usage }),
            Err(Absurd) => self.absurd = true,
        }
        self.parts.output = 0;
    }

    /// `message_delta`, or a whole reply: what was produced as well.
    fn goes_on(&mut self, usage: &str) -> bool {
        let figure = self.completed(usage).map(|(figure, of_output)| figure.filter(|_| of_output));
        self.take(figure)
    }

    /// All that was said until now, and whether this object spoke of output.
    fn completed(&mut self, usage: &str) -> Result<(Option<Usage>, bool), Absurd> {
        let figures: Figures<'_> = object(usage.as_bytes()).ok_or(Absurd)?;
        if let Some(word) = &figures.service_tier {
            self.tier = ServiceTier::read(word);
        }
        self.parts.complete(&figures)?;
        Ok((self.parts.usage()?, figures.output_tokens.is_some()))
    }
}
