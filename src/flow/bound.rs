//! What a flat price pays for: `charge = { flat = …, min_output_tokens = … }`.
//!
//! Whatever a request may come to at the model's prices stays within the price: the prompt at its dearest, with room for a chat
//! template that is longer than is counted, and images; what is left of the price buys output, for every choice. Where that is
//! less than the tier's least (or than was asked, when less was asked) the request is refused with the numbers that would do.
//! An amount that cannot be computed pays for nothing.

use crate::limits::{Limits, OverLimit, StreamRule};
use crate::money::{PerToken, Usd};
use crate::openai::request::Ask;
use crate::refusal::Gap;
use crate::rules::plan::{Access, Charge, Model, Reach, Route};
use crate::surface::Surface;

/// Tokens that a chat template may add to each message beyond what is counted.
pub const TEMPLATE_TOKENS: u64 = 8;
/// Tokens that a chat template may add to a whole request: the longest system message that we know of has 61 (GPT-OSS).
const SYSTEM_TOKENS: u64 = 64;

/// Tokens that a vendor may put before a prompt of its own accord, and bill: instructions of its own, and those around tools (Anthropic
/// lists up to some 800 for theirs), and what it finds where it searches for an answer. Well above all that we know of, for who is taken
/// for absurd is not paid.
const VENDOR_TOKENS: u64 = 32_768;

/// What of a request decides whether a tier takes it, apart from its model.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    surface: Surface,
    bytes: usize,
    messages: u64,
    images: u64,
    sized: u64,
    n: u64,
    asked_output: Option<u64>,
    stream: bool,
}

impl Size {
    /// The size of a request.
    pub fn of(ask: &Ask) -> Self {
        let Ask { surface, messages, images, n, asked_output, stream, .. } = *ask;
        let (bytes, sized) = (ask.body.len(), ask.sized_pictures());
        Self { surface, bytes, messages, images, sized, n: n.max(1), asked_output, stream }
    }

    /// What of a price list can come to bear on a request of this size with a prompt of so many tokens. One with a picture that is
    /// not among them may be of any length.
    pub fn reach(&self, model: &Model, prompt: u64) -> Reach {
        let is_whole = self.images == self.counted(model);
        Reach {
            prompt: if is_whole { prompt.saturating_add(self.room()) } else { u64::MAX },
            sound: false,
            pictures: self.images > 0,
            hour: self.surface == Surface::Messages,
        }
    }

    /// What a price that is asked once has for a chat template, at so much for each token; nothing where there is none.
    pub fn template(&self, each: PerToken) -> Option<Usd> {
        each.of(if self.surface.has_template() { self.room() } else { 0 })
    }

    /// Tokens that may come to those of a prompt beyond what is counted.
    pub fn room(&self) -> u64 {
        SYSTEM_TOKENS.saturating_add(TEMPLATE_TOKENS.saturating_mul(self.messages.saturating_add(1)))
    }

    /// Most prompt tokens that a backend can report of this request, with the text still in it and so many tokens of `pictures`: no text
    /// has more of them than bytes. `None`: of one with a picture whose tokens are not known it may be any number.
    pub fn most_prompt(&self, model: &Model, pictures: u64) -> Option<u64> {
        let bytes = u64::try_from(self.bytes).unwrap_or(u64::MAX);
        let most = self.reach(model, bytes.saturating_add(pictures)).prompt.saturating_add(VENDOR_TOKENS);
        (most < u64::MAX).then_some(most)
    }

    /// Most output tokens of one choice: as asked, held to the limit.
    fn output(&self, limits: &Limits) -> u64 {
        self.asked_output.unwrap_or(limits.max_output_tokens).min(limits.max_output_tokens)
    }

    /// What pictures cost beside the tokens that are counted by their size, where the model counts them so.
    pub fn pictures(&self, model: &Model, limits: &Limits) -> Option<Usd> {
        limits.image_url.unwrap_or_default().of(self.images, self.counted(model))
    }

    /// Pictures whose tokens are among those of the prompt.
    fn counted(&self, model: &Model) -> u64 {
        if model.images.is_some() { self.sized } else { 0 }
    }

    /// The dearest that a prompt of so many tokens can come to, with images and what a request costs as such.
    fn prompt(&self, model: &Model, limits: &Limits, tokens: u64) -> Option<Usd> {
        let each = model.price.dearest(self.reach(model, tokens)).input;
        each.of(tokens.checked_add(self.room())?)?.plus(self.pictures(model, limits)?)?.plus(model.price.per_request)
    }

    /// Output tokens of one choice that `usd` pays for after a prompt of so many tokens, at most those asked.
    pub fn bought(&self, usd: Usd, model: &Model, limits: &Limits, prompt: u64) -> u64 {
        let Some(spent) = self.prompt(model, limits, prompt).filter(|spent| *spent <= usd) else { return 0 };
        let most = self.output(limits);
        let each = model.price.dearest(self.reach(model, prompt)).output;
        each.affordable(usd.less(spent)).map_or(most, |tokens| most.min(tokens / self.n))
    }

    /// Whether a flat price pays for a prompt of so many tokens, and if not, what would do.
    pub fn within(
        &self,
        usd: Usd,
        least: u64,
        model: &Model,
        limits: &Limits,
        (prompt, counted_by): (u64, &'static str),
    ) -> Result<(), Gap> {
        let output = least.min(self.output(limits));
        let output_within = self.bought(usd, model, limits, prompt);
        if output_within >= output {
            return Ok(());
        }
        let each = model.price.dearest(self.reach(model, prompt));
        // What may be left for the prompt's own tokens once images, template and output are paid for.
        let rest = || {
            let output = each.output.of(output.checked_mul(self.n)?)?;
            let besides = each.input.of(self.room())?.plus(self.pictures(model, limits)?)?;
            let besides = besides.plus(model.price.per_request)?;
            let besides = besides.plus(output)?;
            (besides <= usd).then(|| usd.less(besides))
        };
        let affordable = rest().and_then(|rest| each.input.affordable(rest)).filter(|tokens| *tokens > 0);
        let left = self.prompt(model, limits, prompt).map_or(Usd::ZERO, |spent| usd.less(spent));
        Err(Gap {
            price: usd,
            prompt,
            counted_by,
            output,
            n: self.n,
            shorten_by: affordable.map(|tokens| prompt.saturating_sub(tokens)),
            n_within: each.output.affordable(left).map_or(0, |tokens| tokens / output.max(1)),
            output_within,
        })
    }
}

/// Whether a route would take a request of this size for this model, with a prompt of so many tokens. `None`: of a length that
/// is not known, and above `more_than`.
pub fn would_take(route: &Route, model: &Model, size: &Size, prompt: Option<u64>, more_than: u64) -> bool {
    let limits = &route.tier.limits;
    let long_enough = limits.max_input_tokens.is_none_or(|max| prompt.map_or(max > more_than, |tokens| tokens <= max));
    let fits = size.bytes <= limits.max_body_bytes
        && size.n <= limits.max_n
        && (size.images == 0 || limits.image_url.is_some())
        && !(limits.over_limit == OverLimit::Refuse && size.asked_output.is_some_and(|n| n > limits.max_output_tokens))
        && !(route.stream == StreamRule::Refuse && size.stream);
    long_enough && fits && pays(route, model, size, prompt.unwrap_or(more_than))
}

fn pays(route: &Route, model: &Model, size: &Size, prompt: u64) -> bool {
    match route.tier.charge {
        Some(Charge::Flat { usd, min_output_tokens: Some(least) }) if route.access == Access::Paid => {
            size.within(usd, least, model, &route.tier.limits, (prompt, "")).is_ok()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests;
