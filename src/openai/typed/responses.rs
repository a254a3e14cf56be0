//! Responses: `response.*` events, each text as `"delta": "…"`, the whole response in the first and the last ones.

use super::{Event, Reader, Tally};
use crate::openai::delta::{Delivered, Said, past_colon, string_at, text_in};
use crate::openai::usage::{Absurd, Bounds, Verdict, count, object, output};
use crate::usage::{ServiceTier, Shape, Usage};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::LazyLock;

static NEEDLES: LazyLock<Needles> = LazyLock::new(|| Needles {
    delta: Finder::new(b"\"delta\""),
    response: Finder::new(b"\"response\""),
    error: Finder::new(b"\"error\""),
    item_done: Finder::new(b"\"response.output_item.done\""),
});

struct Needles {
    delta: Finder<'static>,
    response: Finder<'static>,
    error: Finder<'static>,
    item_done: Finder<'static>,
}

/// The names under which a complete item says text.
const TEXTS: &[&[u8]] = &[b"text", b"refusal", b"arguments", b"input"];

#[derive(Deserialize)]
struct Told<'a> {
    #[serde(default, borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    response: Option<Response<'a>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(default, borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
    #[serde(default, borrow)]
    service_tier: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    output: Option<&'a RawValue>,
}

impl Response<'_> {
    fn finished(&self) -> bool {
        matches!(self.status.as_deref(), Some("completed" | "incomplete"))
    }

    fn failed(&self) -> bool {
        self.error.is_some() || matches!(self.status.as_deref(), Some("failed" | "cancelled"))
    }

    fn count(&self, tally: &mut Tally) -> bool {
        if let Some(word) = &self.service_tier {
            tally.tier = ServiceTier::read(word);
        }
        self.usage.is_some_and(|usage| tally.take(read_figures(usage.get())))
    }
}

/// Reads one event.
pub(super) fn event<'a>(reader: &mut Reader, data: &'a [u8], mut said: &mut dyn FnMut(Said<'_>)) -> Event<'a> {
    let mut event = Event { text: deltas(data, said), ..Event::default() };
    reader.fresh_text |= event.text.texts > 0;
    if NEEDLES.item_done.find(data).is_some() && !std::mem::take(&mut reader.fresh_text) {
        // A backend that does not stream this kind of item says it whole.
        let bytes = text_in(data, 0, TEXTS, &mut said);
        event.text = Delivered::once(bytes);
    }
    let (whole, error) = (NEEDLES.response.find(data).is_some(), NEEDLES.error.find(data).is_some());
    if !whole && !error {
        return event;
    }
    let Ok(told) = serde_json::from_slice::<Told<'_>>(data) else {
        // It speaks of the response, and in a way that hides what was used.
        reader.tally.absurd |= whole;
        return event;
    };
    let kind = told.kind.as_deref().unwrap_or_default();
    event.ends = matches!(kind, "response.completed" | "response.incomplete" | "response.failed");
    event.failed = matches!(kind, "error" | "response.failed");
    if let Some(response) = told.response {
        event.says_output = response.count(&mut reader.tally);
        event.failed |= response.failed();
        event.finished = event.ends && !event.failed && (response.finished() || response.status.is_none());
        event.model = response.model;
    }
    event
}

/// Every `"delta": "…"`.
fn deltas(data: &[u8], mut said: &mut dyn FnMut(Said<'_>)) -> Delivered {
    let mut found = Delivered::default();
    for at in NEEDLES.delta.find_iter(data) {
        let behind = at + NEEDLES.delta.needle().len();
        let at = past_colon(data, behind);
        if at > behind && data.get(at) == Some(&b'"') {
            let (_, bytes) = string_at(data, at, &mut said);
            found.texts += u64::from(bytes > 0);
            found.bytes += bytes;
        }
    }
    found
}

/// Reads a buffered reply; `None` when it is not one.
pub(super) fn whole(body: &[u8], bounds: Bounds) -> Option<Verdict> {
    let response: Response<'_> = object(body)?;
    let mut tally = Tally::new(bounds);
    response.count(&mut tally);
    let bytes = response.output.map_or(0, |output| text_in(output.get().as_bytes(), 0, TEXTS, &mut |_| {}));
    let verdict = tally.verdict(Delivered::once(bytes));
    Some(Verdict {
        failed: response.failed(),
        finished: response.finished(),
        model: response.model.map(Cow::into_owned),
        ..verdict
    })
}

/// One usage object. Behind each name of OpenAI's stands chat's, which SGLang says here as well.
#[derive(Deserialize)]
struct Figures<'a> {
    #[serde(default, borrow)]
    input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    output_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    total_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    input_tokens_details: Option<InputDetails<'a>>,
    #[serde(default, borrow)]
    prompt_tokens_details: Option<InputDetails<'a>>,
    #[serde(default, borrow)]
    output_tokens_details: Option<OutputDetails<'a>>,
    #[serde(default, borrow)]
    reasoning_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct InputDetails<'a> {
    #[serde(default, borrow)]
    cached_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cache_write_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputDetails<'a> {
    #[serde(default, borrow)]
    reasoning_tokens: Option<&'a RawValue>,
}

/// Reads one usage object. `None`: no counts, or zeros as a placeholder.
fn read_figures(text: &str) -> Result<Option<Usage>, Absurd> {
    let figures: Figures<'_> = object(text.as_bytes()).ok_or(Absurd)?;
    let prompt = count(figures.input_tokens.or(figures.prompt_tokens))?.unwrap_or(0);
    let completion = count(figures.output_tokens.or(figures.completion_tokens))?.unwrap_or(0);
    if prompt == 0 && completion == 0 {
        return Ok(None);
    }
    let (cached, cache_write) = match figures.input_tokens_details.or(figures.prompt_tokens_details) {
        Some(details) => (count(details.cached_tokens)?.unwrap_or(0), count(details.cache_write_tokens)?.unwrap_or(0)),
        None => (0, 0),
    };
    let reasoning = figures.output_tokens_details.and_then(|d| d.reasoning_tokens).or(figures.reasoning_tokens);
    let reasoning = count(reasoning)?.unwrap_or(0);
    let total = count(figures.total_tokens)?;
    let (completion, reasoning) = output(prompt, completion, reasoning, total, Shape::PLAIN)?;
    if cached + cache_write > prompt {
        return Err(Absurd);
    }
    Ok(Some(Usage { prompt, completion, cached, cache_write, reasoning, ..Usage::default() }))
}
