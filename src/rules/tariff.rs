//! What a model costs, out of what the operator wrote and what the registry says, and where each number came from.
//!
//! | wins | holds for |
//! |---|---|
//! | `price` in `models.toml` | every length of prompt and every speed of service; final, no markup |
//! | the registry's row × `markup` | what it names |
//! | the neighbour | reading and writing a cache as input, an hour of cache as writing, reasoning as output |

use super::entry::PriceEntry;
use super::price::{Prices, Rates, Speeds, Step};
use super::registry::{Offer, Row};
use crate::money::{Factor, PerToken, Usd};

/// Prices as somebody wrote them: what is missing falls back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kinds of `Rates`")]
pub struct Given {
    pub input: Option<PerToken>,
    pub cached_input: Option<PerToken>,
    pub cache_write: Option<PerToken>,
    pub cache_write_hour: Option<PerToken>,
    pub output: Option<PerToken>,
    pub reasoning: Option<PerToken>,
    pub audio_input: Option<PerToken>,
    pub audio_output: Option<PerToken>,
    pub image_input: Option<PerToken>,
}

impl Given {
    /// These, and `below` where these are silent. A new price of output is one of reasoning, too.
    pub fn over(self, below: Self) -> Self {
        Self {
            input: self.input.or(below.input),
            cached_input: self.cached_input.or(below.cached_input),
            cache_write: self.cache_write.or(below.cache_write),
            cache_write_hour: self.cache_write_hour.or(below.cache_write_hour),
            output: self.output.or(below.output),
            reasoning: self.reasoning.or(below.reasoning.filter(|_| self.output.is_none())),
            audio_input: self.audio_input.or(below.audio_input),
            audio_output: self.audio_output.or(below.audio_output),
            image_input: self.image_input.or(below.image_input),
        }
    }

    /// Every kind at a price; `None` without input or output.
    fn rates(self) -> Option<Rates> {
        let (input, output) = (self.input?, self.output?);
        let cache_write = self.cache_write.unwrap_or(input);
        Some(Rates {
            input,
            cached_input: self.cached_input.unwrap_or(input),
            cache_write,
            cache_write_hour: self.cache_write_hour.unwrap_or(cache_write),
            output,
            reasoning: self.reasoning.unwrap_or(output),
            audio_input: self.audio_input,
            audio_output: self.audio_output,
            image_input: self.image_input,
        })
    }

    fn times(self, factor: Factor) -> Option<Self> {
        let up = |rate: Option<PerToken>| match rate {
            Some(rate) => factor.times(Usd(rate.0)).map(|usd| Some(PerToken(usd.0))),
            None => Some(None),
        };
        Some(Self {
            input: up(self.input)?,
            cached_input: up(self.cached_input)?,
            cache_write: up(self.cache_write)?,
            cache_write_hour: up(self.cache_write_hour)?,
            output: up(self.output)?,
            reasoning: up(self.reasoning)?,
            audio_input: up(self.audio_input)?,
            audio_output: up(self.audio_output)?,
            image_input: up(self.image_input)?,
        })
    }

    /// Each kind by its name, and what it costs like when it is not written.
    fn each(&self) -> [(&'static str, Option<PerToken>, Option<&'static str>); 9] {
        let Self { input, cached_input, cache_write, cache_write_hour, output, reasoning, .. } = *self;
        [
            ("input", input, None),
            ("cached_input", cached_input, Some("input")),
            ("cache_write", cache_write, Some("input")),
            ("cache_write_hour", cache_write_hour, Some("cache_write")),
            ("output", output, None),
            ("reasoning", reasoning, Some("output")),
            ("audio_input", self.audio_input, None),
            ("audio_output", self.audio_output, None),
            ("image_input", self.image_input, None),
        ]
    }
}

/// Where one number of a price list came from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Source {
    /// Which kind of token, by its key in `models.toml`; `request` is the price of a request as such.
    pub kind: &'static str,
    /// USD per million tokens; of `request`: USD.
    pub usd: String,
    /// Who said it.
    pub from: String,
}

/// Prices with where they came from, and what else the registry knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tariff {
    /// The prices.
    pub prices: Prices,
    /// Where the standard prices of short prompts came from.
    pub sources: Vec<Source>,
    /// Most prompt tokens that the model takes, where the registry says so.
    pub max_input: Option<u64>,
    /// Most output tokens, likewise.
    pub max_output: Option<u64>,
    /// What the registry charges on some endpoints only, and these prices do not hold: [`Row::not_applied`].
    pub not_applied: Vec<String>,
}

impl Tariff {
    /// Puts what was written over what the registry says. The error is a sentence without a subject.
    pub fn of(own: &PriceEntry, row: Option<(&Row, Factor, String)>) -> Result<Self, String> {
        let too_large = || "is more than can be counted".to_owned();
        let none = Row::default();
        let (row, markup, from) =
            row.map_or((&none, Factor::ONE, String::new()), |(row, markup, from)| (row, markup, from));
        let marked = |offer: &Offer| {
            Some(Offer {
                standard: offer.standard.times(markup)?,
                flex: offer.flex.times(markup)?,
                priority: offer.priority.times(markup)?,
            })
        };
        let named = own.given.input.is_some() && own.given.output.is_some();
        if let (Some(why), false) = (row.unbillable.first(), named) {
            return Err(format!("{why}: write price = {{ input = \"…\", output = \"…\" }} with what you charge"));
        }
        let mut base = marked(&row.base).ok_or_else(too_large)?;
        if row.embeds {
            base.standard.output = base.standard.output.or(Some(PerToken::default()));
        }
        let missing = |kind: &str| {
            format!(
                "has no price for {kind}, or 0: write price = {{ {kind} = \"…\" }}, or free = true if it costs nothing"
            )
        };
        let standard = own.given.over(base.standard);
        let speeds = |offer: &Offer| -> Result<Speeds, String> {
            let at = |speed: Given, sold: bool| {
                let speed = if sold { speed } else { Given::default() };
                let given = own.given.over(speed.over(offer.standard));
                given.rates().ok_or_else(|| missing(if given.input.is_none() { "input" } else { "output" }))
            };
            Ok(Speeds {
                standard: at(Given::default(), true)?,
                flex: at(offer.flex, own.flex)?,
                priority: at(offer.priority, own.priority)?,
            })
        };
        let mut steps = Vec::new();
        let (mut below, base_speeds) = (base, speeds(&base)?);
        for (above, offer) in &row.steps {
            let offer = marked(offer).ok_or_else(too_large)?;
            // A speed that is silent here costs what this step costs at the standard one.
            below = Offer {
                standard: offer.standard.over(below.standard),
                flex: offer.flex.over(offer.standard).over(below.flex),
                priority: offer.priority.over(offer.standard).over(below.priority),
            };
            let speeds = speeds(&below)?;
            steps.push(Step { above: *above, speeds });
        }
        steps.retain(|step| step.speeds != base_speeds);
        let per_request = match (own.per_request, row.per_request) {
            (Some(own), _) => own,
            (None, Some(fee)) => markup.times(fee).ok_or_else(too_large)?,
            (None, None) => Usd::ZERO,
        };
        let mut sources = sources(own, &base.standard, &standard, &from);
        if per_request != Usd::ZERO {
            let from = if own.per_request.is_some() { own.place() } else { from };
            sources.push(Source { kind: "request", usd: per_request.to_string(), from });
        }
        let prices = Prices { per_request, base: base_speeds, steps };
        let not_applied = if named { Vec::new() } else { row.not_applied.clone() };
        Ok(Self { prices, sources, max_input: row.max_input, max_output: row.max_output, not_applied })
    }
}

fn sources(own: &PriceEntry, row: &Given, all: &Given, from: &str) -> Vec<Source> {
    let (said, listed) = (own.given.each(), row.each());
    let mut sources = Vec::new();
    for ((kind, rate, like), (own_rate, row_rate)) in
        all.each().into_iter().zip(said.into_iter().zip(listed).map(|(own, row)| (own.1, row.1)))
    {
        let (usd, from) = match (rate, like) {
            (Some(rate), _) if own_rate.is_some() => (rate.as_per_million(), own.place()),
            (Some(rate), _) if row_rate.is_some() => (rate.as_per_million(), from.to_owned()),
            (None, Some(like)) => {
                let Some(Source { usd, .. }) = sources.iter().find(|s: &&Source| s.kind == like) else { continue };
                (usd.clone(), format!("as {like}"))
            }
            _ => continue,
        };
        sources.push(Source { kind, usd, from });
    }
    sources
}

#[cfg(test)]
mod tests;
