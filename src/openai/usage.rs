//! What a backend says it used, from whichever place it says it.
//!
//! Backends differ: one final figure, one per choice, a running one on every chunk, placeholders of zeros, nothing. Only their
//! own figures are ever charged, so a figure that cannot be true counts as none.

use super::delta::{Holder, finishes, text_of};
use crate::money::Usd;
use crate::usage::{Scope, ServiceTier, Shape, Usage};
use serde::Deserialize;
use serde::de::IgnoredAny;
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
    /// Most tokens that the prompt can have, with whatever a backend puts before it; a larger figure counts as none. `None`: nobody knows.
    pub prompt: Option<u64>,
    /// Most output tokens over all choices that the backend was allowed; a larger figure counts as none.
    pub completion: Option<u64>,
    /// How the backend's figures add up.
    pub shape: Shape,
}

impl Bounds {
    /// Whether a figure can be true of what was asked.
    pub fn admit(&self, figure: &Usage) -> bool {
        let within = |most: Option<u64>, said| most.is_none_or(|most| said <= most);
        within(self.prompt, figure.prompt) && within(self.completion, figure.completion)
    }
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
    /// One that speaks of the backend, or does not say: not of what was asked.
    pub at_fault: bool,
    /// The figure is of some of the choices only: each has one of its own, and the others' are still to come.
    pub partial: bool,
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
    /// The speed at which it was served.
    pub tier: ServiceTier,
    /// What the backend says that it cost, rounded up; `None`: it says nothing, or nothing that can be read.
    pub stated: Option<Usd>,
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
    #[serde(default, borrow)]
    service_tier: Option<&'a RawValue>,
}

/// Reads an object, and nothing else: an array would be read as the fields in order.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<T> {
    text.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(text).ok())?
}

impl<'a> Reply<'a> {
    /// `None`: not JSON, not an object, or a field of another type than OpenAI's.
    pub fn read(text: &'a [u8]) -> Option<Self> {
        object(text)
    }

    /// The speed at which it was served, when it says so.
    pub fn tier(&self) -> Option<ServiceTier> {
        tier_of(self.service_tier)
    }
}

#[derive(Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    index: u64,
}

/// One usage object. Its names are OpenAI's, and those that others put beside them.
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
    /// Anthropic's, where a router passes it on.
    #[serde(default, borrow)]
    cache_read_input_tokens: Option<&'a RawValue>,
    /// Its place for what was written into the cache.
    #[serde(default, borrow)]
    cache_creation_input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cache_creation: Option<Written<'a>>,
    /// SGLang's place for reasoning.
    #[serde(default, borrow)]
    reasoning_tokens: Option<&'a RawValue>,
    /// What OpenRouter charges for the request, in dollars.
    #[serde(default, borrow)]
    cost: Option<&'a RawValue>,
    /// Whether the model's vendor bills the operator's own key for it: then `cost` is OpenRouter's fee, and what the vendor takes stands
    /// in the details.
    #[serde(default, borrow)]
    is_byok: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cost_details: Option<&'a RawValue>,
    /// Anthropic's place for the speed of service.
    #[serde(default, borrow)]
    service_tier: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PromptDetails<'a> {
    #[serde(default, borrow)]
    cached_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    audio_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    image_tokens: Option<&'a RawValue>,
    /// OpenRouter's place for what was written into the cache.
    #[serde(default, borrow)]
    cache_write_tokens: Option<&'a RawValue>,
    /// LiteLLM's.
    #[serde(default, borrow)]
    cache_creation_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cache_creation_token_details: Option<Written<'a>>,
}

#[derive(Deserialize)]
struct CompletionDetails<'a> {
    #[serde(default, borrow)]
    reasoning_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    audio_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CostDetails<'a> {
    /// In dollars. Without a key of one's own it is the same money as `cost`.
    #[serde(default, borrow)]
    upstream_inference_cost: Option<&'a RawValue>,
}

/// What was written into a cache, by how long it stays.
#[derive(Clone, Copy, Deserialize)]
struct Written<'a> {
    #[serde(default, borrow)]
    ephemeral_5m_input_tokens: Option<&'a RawValue>,
    #[serde(default, borrow)]
    ephemeral_1h_input_tokens: Option<&'a RawValue>,
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
    /// The newest of them.
    newest: Usage,
    absurd: bool,
    /// The speed that was said last.
    pub tier: ServiceTier,
    /// The cost that was said last.
    pub stated: Option<Usd>,
}

impl Tally {
    pub fn new(bounds: Bounds) -> Self {
        let none = Usage::default();
        Self {
            bounds,
            finals: 0,
            sum: none,
            last: none,
            running: Vec::new(),
            newest: none,
            absurd: false,
            tier: ServiceTier::default(),
            stated: None,
        }
    }

    /// What figures are held against.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// One that has heard nothing yet.
    pub fn fresh(&self) -> Self {
        Self::new(self.bounds)
    }

    /// How figures add up.
    pub fn add_up_by(&mut self, shape: Shape) {
        self.bounds.shape = shape;
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

    /// Takes what one chunk says of usage and of the speed of service; says whether it had a figure.
    pub fn hear(&mut self, reply: &Reply<'_>) -> bool {
        if let Some(tier) = reply.tier() {
            self.tier = tier;
        }
        reply.usage.is_some_and(|usage| self.add(usage, reply.choices.as_deref().unwrap_or_default()))
    }

    /// Takes the figure of one chunk, and says whether it is one. On a chunk without choices it is final, else it runs with
    /// that choice.
    pub fn add(&mut self, usage: &RawValue, choices: &[Choice]) -> bool {
        let (figure, said) = match read_figures(usage.get(), self.bounds.shape) {
            Ok(Some(read)) => read,
            Ok(None) => return false,
            Err(Absurd) => {
                self.mark_absurd();
                return false;
            }
        };
        if let Some(choice) = choices.first() {
            if let Some((_, running)) = self.running.iter_mut().find(|(index, _)| *index == choice.index) {
                *running = figure;
            } else if self.running.len() < MOST_CHOICES {
                self.running.push((choice.index, figure));
            } else {
                self.absurd = true;
                return false;
            }
            self.newest = figure;
        } else {
            self.finals += 1;
            self.sum = merged(self.sum, figure);
            self.last = figure;
        }
        self.tier = said.tier.unwrap_or(self.tier);
        self.stated = said.cost.or(self.stated);
        true
    }

    /// Whether choices that have a final figure of their own are not all there yet.
    pub fn is_partial(&self) -> bool {
        self.bounds.shape.finals == Scope::Choice && (1..self.bounds.choices).contains(&self.finals)
    }

    /// The figure to charge, and whether any was absurd.
    ///
    /// Where each choice has a final figure of its own they add up; more finals than choices repeat each other, and the last one
    /// holds. Output adds up, the prompt was read once however often it is repeated: that is how it was quoted.
    pub fn total(&self) -> (Option<Usage>, bool) {
        let figure = match (self.finals, self.bounds.shape) {
            (0, _) if self.running.is_empty() => return (None, self.absurd),
            (0, Shape { running: Scope::Reply, .. }) => self.newest,
            (0, _) => self.running.iter().fold(Usage::default(), |sum, (_, figure)| merged(sum, *figure)),
            (n, Shape { finals: Scope::Choice, .. }) if n <= self.bounds.choices => self.sum,
            _ => self.last,
        };
        if self.bounds.admit(&figure) { (Some(figure), self.absurd) } else { (None, true) }
    }
}

/// Two figures of different choices.
fn merged(a: Usage, b: Usage) -> Usage {
    let prompt = if b.prompt > a.prompt { b } else { a };
    Usage {
        completion: a.completion.saturating_add(b.completion),
        reasoning: a.reasoning.saturating_add(b.reasoning),
        audio_output: a.audio_output.saturating_add(b.audio_output),
        ..prompt
    }
}

/// What a usage object says beside its counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Beside {
    tier: Option<ServiceTier>,
    cost: Option<Usd>,
}

/// Reads one usage object. `None`: it says nothing (no counts, or zeros as a placeholder).
fn read_figures(text: &str, shape: Shape) -> Result<Option<(Usage, Beside)>, Absurd> {
    let figures: Figures<'_> = object(text.as_bytes()).ok_or(Absurd)?;
    let said = (count(figures.prompt_tokens)?, count(figures.completion_tokens)?);
    let (prompt, completion) = (said.0.unwrap_or(0), said.1.unwrap_or(0));
    if prompt == 0 && completion == 0 {
        return Ok(None);
    }
    let mut usage = prompt_parts(&figures, Usage { prompt, ..Usage::default() })?;
    let details = figures.completion_tokens_details.as_ref();
    usage.audio_output = most(count(details.and_then(|d| d.audio_tokens))?, completion)?;
    let reasoning = count(details.and_then(|d| d.reasoning_tokens).or(figures.reasoning_tokens))?.unwrap_or(0);
    let total = count(figures.total_tokens)?;
    (usage.completion, usage.reasoning) = output(prompt, completion, reasoning, total, shape)?;
    let dollars = |said: Option<&RawValue>| said.and_then(|said| Usd::of_number(said.get()));
    let cost = match figures.is_byok.map(RawValue::get) {
        // A fee alone is not what it cost.
        Some("true") => (figures.cost_details)
            .and_then(|details| object::<CostDetails<'_>>(details.get().as_bytes()))
            .and_then(|details| dollars(details.upstream_inference_cost))
            .and_then(|vendors| vendors.plus(dollars(figures.cost).unwrap_or(Usd::ZERO))),
        _ => dollars(figures.cost),
    };
    Ok(Some((usage, Beside { tier: tier_of(figures.service_tier), cost })))
}

/// All output, and the reasoning in it. Most vendors count reasoning as output; some beside it (xAI, in chat), which their total shows,
/// or, where there is none, that it is more than the output. What is then in a total and in no part is output too where a backend's
/// shape says so, else it is nobody's. A total below its parts, or above them with reasoning that no reading has room for, contradicts
/// itself.
pub(super) fn output(
    prompt: u64,
    said: u64,
    reasoning: u64,
    total: Option<u64>,
    shape: Shape,
) -> Result<(u64, u64), Absurd> {
    let unsaid = total.map(|total| total.checked_sub(prompt + said).ok_or(Absurd)).transpose()?;
    let (all, reasoning) = match unsaid {
        Some(unsaid) if unsaid == reasoning => (said + reasoning, reasoning),
        // The total has all of the output: how much of it was reasoning changes no sum.
        Some(0) => (said, reasoning.min(said)),
        Some(unsaid) if shape.output_in_total => (said + unsaid, reasoning.max(unsaid)),
        None if reasoning > said => (said + reasoning, reasoning),
        _ => (said, reasoning),
    };
    Ok((all, most(Some(reasoning), all)?))
}

/// The kinds of prompt tokens. None is more than the prompt: some vendors count a cached part twice, and which of their figures would
/// then be true is anybody's guess.
fn prompt_parts(figures: &Figures<'_>, whole: Usage) -> Result<Usage, Absurd> {
    let details = figures.prompt_tokens_details.as_ref();
    let cached = details.and_then(|d| d.cached_tokens);
    let cached = cached.or(figures.prompt_cache_hit_tokens).or(figures.cache_read_input_tokens);
    let cached = most(count(cached)?, whole.prompt)?;
    let by_stay = details.and_then(|d| d.cache_creation_token_details).or(figures.cache_creation);
    let hour = count(by_stay.and_then(|w| w.ephemeral_1h_input_tokens))?.unwrap_or(0);
    let minutes = count(by_stay.and_then(|w| w.ephemeral_5m_input_tokens))?.unwrap_or(0);
    let written = details.and_then(|d| d.cache_write_tokens.or(d.cache_creation_tokens));
    let written = count(written.or(figures.cache_creation_input_tokens))?.unwrap_or(0);
    // What stays for some time was written; what was read was not.
    let written = most(Some(written.max(hour + minutes)), whole.prompt - cached)?;
    let audio = most(count(details.and_then(|d| d.audio_tokens))?, whole.prompt)?;
    let image = most(count(details.and_then(|d| d.image_tokens))?, whole.prompt - audio)?;
    Ok(Usage { cached, cache_write: written, cache_write_hour: hour, audio_input: audio, image_input: image, ..whole })
}

/// A part that is not more than what it is a part of.
fn most(part: Option<u64>, whole: u64) -> Result<u64, Absurd> {
    Some(part.unwrap_or(0)).filter(|part| *part <= whole).ok_or(Absurd)
}

/// A speed of service, when it is a word.
fn tier_of(value: Option<&RawValue>) -> Option<ServiceTier> {
    let word: Cow<'_, str> = serde_json::from_str(value?.get()).ok()?;
    Some(ServiceTier::read(&word))
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
    let Some(reply) = Reply::read(body) else {
        return Verdict { failed: true, ..Verdict::default() };
    };
    let text = text_of(body, Holder::Message, |_| {});
    Verdict {
        finished: finishes(body),
        delivered_chunks: text.texts,
        delivered_bytes: text.bytes,
        ..figures(reply, bounds)
    }
}

/// Reads a buffered reply that is a list (vectors, pictures), in one pass: it may be large. It is finished when there is something in it.
pub(super) fn read_list(body: &[u8], bounds: Bounds) -> Verdict {
    #[derive(Deserialize)]
    struct Listed<'a> {
        #[serde(default, borrow)]
        model: Option<Cow<'a, str>>,
        #[serde(default, borrow)]
        usage: Option<&'a RawValue>,
        #[serde(default, borrow)]
        error: Option<&'a RawValue>,
        #[serde(default, borrow)]
        service_tier: Option<&'a RawValue>,
        #[serde(default)]
        data: Option<Vec<IgnoredAny>>,
    }
    let Some(Listed { model, usage, error, service_tier, data }) = object(body) else {
        return Verdict { failed: true, ..Verdict::default() };
    };
    let finished = data.is_some_and(|data| !data.is_empty());
    Verdict { finished, ..figures(Reply { model, choices: None, usage, error, service_tier }, bounds) }
}

/// What it says of itself, apart from its text.
fn figures(reply: Reply<'_>, bounds: Bounds) -> Verdict {
    let mut tally = Tally::new(bounds);
    if let Some(tier) = reply.tier() {
        tally.tier = tier;
    }
    if let Some(usage) = reply.usage {
        // One object for the whole reply, whatever its choices.
        tally.add(usage, &[]);
    }
    let (usage, absurd) = tally.total();
    Verdict {
        usage,
        reported: usage.is_some(),
        failed: reply.error.is_some(),
        absurd,
        tier: tally.tier,
        stated: tally.stated,
        model: reply.model.map(Cow::into_owned),
        ..Verdict::default()
    }
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
