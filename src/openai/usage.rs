//! What a backend says it used, from whichever place it says it.
//!
//! Backends differ (`notes/llm.md` §2): one final figure, one per choice, a running one on every chunk, placeholders of
//! zeros, nothing. Only their own figures are ever charged, so a figure that cannot be true counts as none.

use super::delta::{Holder, finishes, text_of};
use crate::usage::Usage;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Counts above 2^53 are no counts: most JSON readers cannot even hold them.
const LARGEST: u64 = 1 << 53;
/// Choices a stream may number; none of our tiers sells as many.
const MOST_CHOICES: usize = 128;

/// What was asked, against which a backend's figures are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Choices asked for (`n`).
    pub choices: u64,
    /// Most output tokens over all choices that the backend was allowed; a larger figure counts as none.
    pub completion: Option<u64>,
}

/// What a reply said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The backend's own figure, checked against what is possible.
    pub usage: Option<Usage>,
    /// Whether there is one.
    pub reported: bool,
    /// An error was reported inside the reply.
    pub failed: bool,
    /// What the backend said of the prompt before it said anything of the output.
    pub begun: Option<Usage>,
    /// The stream said `[DONE]`, or what stands for it.
    pub saw_done: bool,
    /// A choice said why it finished.
    pub finished: bool,
    /// A figure was negative, fractional, above 2^53, contradictory or above what was asked: it was not used.
    pub absurd: bool,
    /// Deltas with text that were passed on (in a buffered reply: choices with text).
    pub delivered_chunks: u64,
    /// UTF-8 bytes of that text: content, refusals, reasoning, tool arguments.
    pub delivered_bytes: u64,
    /// The model that says it answered. For the books, never for the client or the price.
    pub model: Option<String>,
    /// Events that imitated ours and were not passed on.
    pub forged_frames: u64,
}

/// The parts of a chunk or of a whole reply that matter here.
#[derive(Deserialize)]
pub(super) struct Reply<'a> {
    #[serde(default, borrow)]
    pub model: Option<Cow<'a, str>>,
    #[serde(default)]
    pub choices: Option<Vec<Choice>>,
    #[serde(default, borrow)]
    pub usage: Option<&'a RawValue>,
    #[serde(default, borrow)]
    pub error: Option<&'a RawValue>,
}

impl<'a> Reply<'a> {
    /// `None`: not JSON, not an object, or a field of another type than OpenAI's.
    pub fn read(text: &'a [u8]) -> Option<Self> {
        text.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(text).ok())?
    }
}

#[derive(Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    index: u64,
}

#[derive(Deserialize)]
struct Figures<'a> {
    #[serde(default, borrow)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    total_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    prompt_tokens_details: Option<PromptDetails<'a>>,
    #[serde(default, borrow)]
    completion_tokens_details: Option<CompletionDetails<'a>>,
    /// DeepSeek's place for cached tokens.
    #[serde(default, borrow)]
    prompt_cache_hit_tokens: Option<&'a RawValue>,
    /// SGLang's place for reasoning.
    #[serde(default, borrow)]
    reasoning_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PromptDetails<'a> {
    #[serde(default, borrow)]
    cached_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CompletionDetails<'a> {
    #[serde(default, borrow)]
    reasoning_tokens: Option<&'a RawValue>,
}

/// A figure that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Absurd;

/// Adds up the figures of one reply.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    bounds: Bounds,
    finals: u64,
    sum: Usage,
    last: Usage,
    /// Latest figure by choice.
    running: Vec<(u64, Usage)>,
    absurd: bool,
}

impl Tally {
    pub fn new(bounds: Bounds) -> Self {
        let none = Usage::default();
        Self { bounds, finals: 0, sum: none, last: none, running: Vec::new(), absurd: false }
    }

    /// What figures are held against.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// One that has heard nothing yet.
    pub fn fresh(&self) -> Self {
        Self::new(self.bounds)
    }

    /// Something about usage was said that cannot be read.
    pub fn mark_absurd(&mut self) {
        self.absurd = true;
    }

    /// Whether a newer running figure always replaces the one before.
    pub fn is_of_one_choice(&self) -> bool {
        self.bounds.choices == 1
    }

    /// Most output tokens over all choices that a figure may say.
    pub fn most_completion(&self) -> Option<u64> {
        self.bounds.completion
    }

    /// Takes the figure of one chunk, and says whether it is one. On a chunk without choices it is final, else it runs with
    /// that choice.
    pub fn add(&mut self, usage: &RawValue, choices: &[Choice]) -> bool {
        let figure = match read_figures(usage.get()) {
            Ok(Some(figure)) => figure,
            Ok(None) => return false,
            Err(Absurd) => {
                self.mark_absurd();
                return false;
            }
        };
        let Some(choice) = choices.first() else {
            self.finals += 1;
            self.sum = merged(self.sum, figure);
            self.last = figure;
            return true;
        };
        if let Some((_, running)) = self.running.iter_mut().find(|(index, _)| *index == choice.index) {
            *running = figure;
        } else if self.running.len() < MOST_CHOICES {
            self.running.push((choice.index, figure));
        } else {
            self.absurd = true;
            return false;
        }
        true
    }

    /// The figure to charge, and whether any was absurd.
    ///
    /// Several finals are one per choice (llama.cpp) and add up; more finals than choices repeat each other, and the last
    /// one holds. Output adds up, the prompt was read once however often it is repeated: that is how it was quoted.
    pub fn total(&self) -> (Option<Usage>, bool) {
        let figure = match self.finals {
            0 if self.running.is_empty() => return (None, self.absurd),
            0 => self.running.iter().fold(Usage::default(), |sum, (_, figure)| merged(sum, *figure)),
            n if n <= self.bounds.choices => self.sum,
            _ => self.last,
        };
        if self.bounds.completion.is_some_and(|most| figure.completion > most) {
            return (None, true);
        }
        (Some(figure), self.absurd)
    }
}

fn merged(a: Usage, b: Usage) -> Usage {
    let prompt = if b.prompt > a.prompt { b } else { a };
    Usage {
        prompt: prompt.prompt,
        cached: prompt.cached,
        completion: a.completion.saturating_add(b.completion),
        reasoning: a.reasoning.saturating_add(b.reasoning),
        ..Usage::default()
    }
}

/// Reads one usage object. `None`: it says nothing (no counts, or zeros as a placeholder).
fn read_figures(text: &str) -> Result<Option<Usage>, Absurd> {
    // An array would be read as the fields in order.
    if !text.starts_with('{') {
        return Err(Absurd);
    }
    let figures: Figures<'_> = serde_json::from_str(text).map_err(|_| Absurd)?;
    let prompt = count(figures.prompt_tokens)?;
    let completion = count(figures.completion_tokens)?;
    if prompt.unwrap_or(0) == 0 && completion.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
    // A larger total is reasoning that some vendors keep out of the output; a smaller one contradicts itself.
    if count(figures.total_tokens)?.is_some_and(|total| total < prompt + completion) {
        return Err(Absurd);
    }
    let cached =
        count(figures.prompt_tokens_details.and_then(|d| d.cached_tokens).or(figures.prompt_cache_hit_tokens))?;
    let cached = cached.unwrap_or(0);
    if cached > prompt {
        return Err(Absurd);
    }
    let reasoning =
        count(figures.completion_tokens_details.and_then(|d| d.reasoning_tokens).or(figures.reasoning_tokens))?;
    Ok(Some(Usage {
        prompt,
        completion,
        cached,
        reasoning: reasoning.unwrap_or(0).min(completion),
        ..Usage::default()
    }))
}

/// A count in plain digits, at most 2^53.
pub(super) fn count(value: Option<&RawValue>) -> Result<Option<u64>, Absurd> {
    let Some(text) = value.map(RawValue::get) else { return Ok(None) };
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(n) if plain && n <= LARGEST => Ok(Some(n)),
        _ => Err(Absurd),
    }
}

/// Reads a buffered reply. A body that is not JSON has failed.
pub fn read_json(body: &[u8], bounds: Bounds) -> Verdict {
    let mut tally = Tally::new(bounds);
    let Some(reply) = Reply::read(body) else {
        return Verdict { failed: true, ..Verdict::default() };
    };
    if let Some(usage) = reply.usage {
        // One object for the whole reply, whatever its choices.
        tally.add(usage, &[]);
    }
    let (usage, absurd) = tally.total();
    let text = text_of(body, Holder::Message, |_| {});
    Verdict {
        usage,
        reported: usage.is_some(),
        failed: reply.error.is_some(),
        finished: finishes(body),
        absurd,
        delivered_chunks: text.texts,
        delivered_bytes: text.bytes,
        model: reply.model.map(Cow::into_owned),
        ..Verdict::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const BOUNDS: Bounds = Bounds { choices: 1, completion: Some(100) };

    fn usage(prompt: u64, completion: u64, cached: u64, reasoning: u64) -> Option<Usage> {
        Some(Usage { prompt, completion, cached, reasoning, ..Usage::default() })
    }

    #[test]
    fn a_figure_that_cannot_be_true_counts_as_none_and_is_flagged() {
        for (said, want, absurd, why) in [
            (r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}"#, usage(5, 7, 0, 0), false, "plain"),
            (r#"{"prompt_tokens":5,"completion_tokens":100}"#, usage(5, 100, 0, 0), false, "exactly what was allowed"),
            (r#"{"prompt_tokens":5,"completion_tokens":101}"#, None, true, "more than was allowed"),
            (r#"{"prompt_tokens":-5,"completion_tokens":7}"#, None, true, "negative"),
            (r#"{"prompt_tokens":5.5,"completion_tokens":7}"#, None, true, "fractional"),
            (r#"{"prompt_tokens":5e0,"completion_tokens":7}"#, None, true, "exponent"),
            (r#"{"prompt_tokens":"5","completion_tokens":7}"#, None, true, "text"),
            (r#"{"prompt_tokens":9007199254740993,"completion_tokens":7}"#, None, true, "past 2^53"),
            (r#"{"prompt_tokens":99999999999999999999,"completion_tokens":7}"#, None, true, "past 2^64"),
            (r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":11}"#, None, true, "total below its parts"),
            (
                r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":20}"#,
                usage(5, 7, 0, 0),
                false,
                "hidden reasoning",
            ),
            (
                r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":6}}"#,
                None,
                true,
                "cached > prompt",
            ),
            (
                r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":3}}"#,
                usage(5, 7, 4, 3),
                false,
                "details",
            ),
            (
                r#"{"prompt_tokens":5,"completion_tokens":7,"reasoning_tokens":9}"#,
                usage(5, 7, 0, 7),
                false,
                "SGLang's place",
            ),
            (
                r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_cache_hit_tokens":2}"#,
                usage(5, 7, 2, 0),
                false,
                "DeepSeek's place",
            ),
            (
                r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":null,"cost":0.1}"#,
                usage(5, 7, 0, 0),
                false,
                "null details",
            ),
            (r#"{"prompt_tokens":5,"prompt_tokens":1,"completion_tokens":7}"#, None, true, "said twice"),
            (r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#, None, false, "placeholder"),
            ("{}", None, false, "empty"),
            ("null", None, false, "null"),
            ("[5,7]", None, true, "an array in the order of the fields"),
        ] {
            let body = format!(
                r#"{{"model":"m","choices":[{{"index":0,"message":{{"content":"hé"}},"finish_reason":"stop"}}],"usage":{said}}}"#
            );
            let got = read_json(body.as_bytes(), BOUNDS);
            assert_eq!((got.usage, got.reported, got.absurd), (want, want.is_some(), absurd), "{why}");
            assert_eq!((got.delivered_chunks, got.delivered_bytes, got.finished), (1, 3, true), "{why}");
            assert_eq!(got.model.as_deref(), Some("m"));
        }
    }

    #[test]
    fn a_reply_that_is_an_error_or_no_json_has_failed() {
        for body in [r#"{"error":{"message":"x"}}"#, r#"{"error":"x","choices":[]}"#, "<html>", "", "[1]", "{"] {
            assert!(read_json(body.as_bytes(), BOUNDS).failed, "{body}");
        }
        assert!(!read_json(br#"{"error":null,"choices":[]}"#, BOUNDS).failed);
    }
}
