//! What the tokens of one model cost: resolved, so that nothing is looked up or guessed while somebody waits.
//!
//! A price that nobody wrote falls back where the rules are read: reading and writing a cache costs like input, reasoning like
//! output, a speed of service that has no price of its own like the standard one, sound and pictures like text: a surface that
//! takes sound refuses it where `audio_input` or `audio_output` is `None`.

use crate::money::{PerToken, Usd};
use crate::usage::{ServiceTier, Usage};

/// What one model charges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// Added once to every request.
    pub per_request: Usd,
    /// Prices of a prompt that is below every step.
    pub base: Speeds,
    /// Prices of longer prompts, by ascending [`Step::above`].
    pub steps: Vec<Step>,
}

/// Prices of requests whose prompt is long. They hold for every token of the request, not for those above the line alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// They apply to prompts of more tokens than this.
    pub above: u64,
    /// The prices.
    pub speeds: Speeds,
}

/// The same tokens at each speed of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speeds {
    /// When the backend names no other.
    pub standard: Rates,
    /// `flex`; equal to the standard ones when they are not apart.
    pub flex: Rates,
    /// `priority`; equal to the standard ones when they are not apart.
    pub priority: Rates,
}

/// What each kind of token costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Prompt that is nothing of the kinds below.
    pub input: PerToken,
    /// Prompt that was read from a cache.
    pub cached_input: PerToken,
    /// Prompt that was written into a cache.
    pub cache_write: PerToken,
    /// The same, to stay there for an hour.
    pub cache_write_hour: PerToken,
    /// Output that is nothing of the kinds below.
    pub output: PerToken,
    /// Output that was reasoning.
    pub reasoning: PerToken,
    /// Prompt that was sound; `None`: not priced, like text where a backend reports it all the same.
    pub audio_input: Option<PerToken>,
    /// Output that is sound; `None`: likewise.
    pub audio_output: Option<PerToken>,
    /// Prompt that was pictures; `None`: the backend counts them like text.
    pub image_input: Option<PerToken>,
}

/// How far one request can go: what of a price list can come to bear on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Most prompt tokens that the backend can report.
    pub prompt: u64,
    /// It carries or may produce sound.
    pub sound: bool,
    /// It carries pictures.
    pub pictures: bool,
    /// It can ask that its prompt stays in a cache for an hour.
    pub hour: bool,
}

impl Reach {
    /// A request of text alone, with so many prompt tokens at most.
    pub fn text(prompt: u64) -> Self {
        Self { prompt, ..Self::default() }
    }
}

/// The most that one token of a request can cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dearest {
    /// Any prompt token.
    pub input: PerToken,
    /// Any output token.
    pub output: PerToken,
}

impl Prices {
    /// The same prices for prompts of any length, at every speed.
    pub fn flat(rates: Rates) -> Self {
        Self { per_request: Usd::ZERO, base: Speeds::all(rates), steps: Vec::new() }
    }

    /// The prices of a prompt of so many tokens.
    pub fn at(&self, prompt: u64) -> &Speeds {
        self.steps.iter().rev().find(|step| prompt > step.above).map_or(&self.base, |step| &step.speeds)
    }

    /// The standard prices of a short prompt: those a list shows.
    pub fn standard(&self) -> &Rates {
        &self.base.standard
    }

    /// Nothing a request may use costs anything.
    pub fn is_free(&self) -> bool {
        let everything = Reach { prompt: u64::MAX, sound: true, pictures: true, hour: true };
        self.per_request == Usd::ZERO && self.dearest(everything) == Dearest::default()
    }

    /// The most that a token of a request can cost that stays within `reach`, whatever speed serves it.
    pub fn dearest(&self, reach: Reach) -> Dearest {
        let steps = self.steps.iter().filter(|step| reach.prompt > step.above).map(|step| &step.speeds);
        let all = std::iter::once(&self.base).chain(steps).flat_map(Speeds::each);
        all.fold(Dearest::default(), |most, rates| Dearest {
            input: most.input.max(rates.dearest_input(reach)),
            output: most.output.max(rates.dearest_output(reach)),
        })
    }

    /// What reported usage costs at the speed that served it; at the dearest that the model has when the backend's word for it is
    /// not known. `None` past the largest amount.
    pub fn cost(&self, usage: &Usage, served: ServiceTier) -> Option<Usd> {
        let speeds = self.at(usage.prompt);
        let tokens = match served {
            ServiceTier::Standard => speeds.standard.cost(usage),
            ServiceTier::Flex => speeds.flex.cost(usage),
            ServiceTier::Priority => speeds.priority.cost(usage),
            ServiceTier::Other => {
                speeds.each().into_iter().try_fold(Usd::ZERO, |most, rates| Some(most.max(rates.cost(usage)?)))
            }
        };
        tokens?.plus(self.per_request)
    }
}

impl Speeds {
    /// One price for all speeds.
    pub fn all(rates: Rates) -> Self {
        Self { standard: rates, flex: rates, priority: rates }
    }

    fn each(&self) -> [&Rates; 3] {
        [&self.standard, &self.flex, &self.priority]
    }
}

impl Rates {
    /// Input and output, and nothing else priced apart.
    pub fn plain(input: PerToken, output: PerToken) -> Self {
        Self {
            input,
            cached_input: input,
            cache_write: input,
            cache_write_hour: input,
            output,
            reasoning: output,
            audio_input: None,
            audio_output: None,
            image_input: None,
        }
    }

    /// What usage costs. Parts that add up to more than their whole are cut: the total is what is billed, and no token twice.
    fn cost(&self, usage: &Usage) -> Option<Usd> {
        let mut left = usage.prompt;
        let mut take = |part: u64| {
            let taken = part.min(left);
            left -= taken;
            taken
        };
        let cached = take(usage.cached);
        let hour = take(usage.cache_write_hour.min(usage.cache_write));
        let written = take(usage.cache_write.saturating_sub(hour));
        let sound = take(usage.audio_input);
        let pictures = take(usage.image_input);
        let speech = usage.audio_output.min(usage.completion);
        let reasoning = usage.reasoning.min(usage.completion - speech);
        [
            (self.input, left),
            (self.cached_input, cached),
            (self.cache_write_hour, hour),
            (self.cache_write, written),
            (self.audio_input.unwrap_or(self.input), sound),
            (self.image_input.unwrap_or(self.input), pictures),
            (self.output, usage.completion - speech - reasoning),
            (self.reasoning, reasoning),
            (self.audio_output.unwrap_or(self.output), speech),
        ]
        .into_iter()
        .try_fold(Usd::ZERO, |sum, (rate, tokens)| sum.plus(rate.of(tokens)?))
    }

    fn dearest_input(&self, reach: Reach) -> PerToken {
        let text = self.input.max(self.cached_input).max(self.cache_write);
        let hour = self.cache_write_hour.0 * u128::from(reach.hour);
        let sound = self.audio_input.filter(|_| reach.sound).unwrap_or_default();
        let pictures = self.image_input.filter(|_| reach.pictures).unwrap_or_default();
        text.max(PerToken(hour)).max(sound).max(pictures)
    }

    fn dearest_output(&self, reach: Reach) -> PerToken {
        self.output.max(self.reasoning).max(self.audio_output.filter(|_| reach.sound).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
