//! [`Allowed`] → [`Quoted`]: what this request costs on a fixed-amount rail, and how much output that buys.
//!
//! All sums are exact integers of 1e-18 USD; rounding to atoms happens once, in [`Quoted::terms`].

use super::bound::{Size, TEMPLATE_TOKENS};
use super::policy::Allowed;
use crate::claim::Terms;
use crate::ids::{Generation, RailId};
use crate::money::{Atoms, Factor, PerToken, Usd};
use crate::refusal::Refusal;
use crate::rules::plan::{Access, Charge, Dearest, Prices, Shortfall};
use crate::surface::Surface;
use crate::tokens::{self, Vocabulary};
use crate::usage::{self, ServiceTier, Usage};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Prompts above this many bytes are counted off the async threads.
const COUNT_INLINE_BYTES: usize = 64 * 1024;
/// Longest wait for a turn at counting longer ones.
const COUNTING_WAIT: Duration = Duration::from_secs(5);
/// Turns at counting them.
static COUNTING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)));
/// Output tokens that a stream starts with, before anybody knows how fast it is: half a second at 64 a second.
pub const FIRST_WINDOW: u64 = 32;

/// The parts of a price, for `pontage quote` and for whoever doubts it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Parts {
    /// How the tier prices: `flat`, `flat/clamp`, `ceiling`, `estimate/clamp`, `estimate/absorb`.
    pub rule: &'static str,
    /// Tokens of the prompt, when the rule needs them.
    pub prompt_tokens: Option<u64>,
    /// Who counted: a vocabulary, or `bytes` as the bound.
    pub counted_by: Option<&'static str>,
    /// About how many they are, where bytes are the bound: what is charged for a prompt that nobody reported. Else the same.
    pub prompt_about: Option<u64>,
    /// Prompt × input price.
    pub prompt_usd: Option<Usd>,
    /// Prompt × the dearest that a prompt token of this request can cost: what is set aside for it.
    pub prompt_most_usd: Option<Usd>,
    /// Room for what a chat template adds to the prompt beyond what is counted, at the same: in `ceiling` and `estimate/clamp`.
    pub template_usd: Usd,
    /// Price of a request as such.
    pub request_usd: Usd,
    /// Flat price of the pictures: of those whose tokens are not known, or of all where they are priced apart.
    pub images_usd: Usd,
    /// Most output tokens of one choice.
    pub max_output_tokens: u64,
    /// Choices.
    pub n: u64,
    /// All of that output × the dearest that an output token of this request can cost.
    pub output_usd: Option<Usd>,
    /// The price.
    pub price_usd: Usd,
}

/// A request with its price under one set of rules.
#[derive(Debug)]
pub struct Quoted {
    /// The request.
    pub allowed: Allowed,
    /// The rules it was priced by.
    pub generation: Generation,
    /// Price and parts.
    pub parts: Parts,
}

impl Quoted {
    /// The same without the text of the request, which a reply may outlive by minutes: it can still be offered, delivered
    /// and put into a receipt, but not be sent to a backend.
    pub fn without_body(&self) -> Self {
        let Self { allowed: Allowed { route, ask, model, stream }, generation, parts } = self;
        let allowed =
            Allowed { route: Arc::clone(route), ask: ask.without_body(), model: Arc::clone(model), stream: *stream };
        Self { allowed, generation: generation.clone(), parts: parts.clone() }
    }
}

/// Prices a request. Counts tokens only when the tier's rule needs them.
pub async fn quote(allowed: Allowed, generation: Generation) -> Result<Quoted, Refusal> {
    let limits = &allowed.route.tier.limits;
    let charge = allowed.route.tier.charge.unwrap_or(Charge::Ceiling);
    // A flat price needs no count, and no text has more tokens than bytes: most requests are within the limit by their size.
    let by_size = |max: u64| {
        let (prompt, pictures) = (allowed.ask.prompt(), picture_tokens(&allowed));
        let texts = |max| tokens::count_plain(Vocabulary::Bytes, prompt.texts(), prompt.given, max);
        max.checked_sub(pictures).and_then(texts).is_some()
    };
    let template = TEMPLATE_TOKENS.saturating_mul(allowed.ask.messages.saturating_add(1));
    let counted = match (charge, limits.max_input_tokens) {
        _ if allowed.route.by_usage => true,
        (Charge::Flat { min_output_tokens: Some(_), .. }, _) => true,
        (Charge::Flat { .. }, None) => false,
        (Charge::Flat { .. }, Some(max)) => !by_size(max.saturating_sub(template)),
        _ => true,
    };
    let (allowed, prompt) = if counted { count(allowed).await? } else { (allowed, None) };
    let parts = price(&allowed, charge, prompt).ok_or(Refusal::Internal { place: "price: out of range" })?;
    if let (Charge::Flat { usd, min_output_tokens: Some(least) }, Access::Paid) = (charge, allowed.route.access) {
        let counted = prompt.ok_or(Refusal::Internal { place: "price: not counted" })?;
        let counted = (counted.tokens, counted.by);
        let within = Size::of(&allowed.ask).within(usd, least, &allowed.model, &allowed.route.tier.limits, counted);
        within.map_err(|gap| Refusal::OverPrice { surface: allowed.ask.surface, gap, sold_at: Vec::new() })?;
    }
    Ok(Quoted { allowed, generation, parts })
}

/// What pictures are by their size, where the model counts them so: a part of the prompt.
fn picture_tokens(allowed: &Allowed) -> u64 {
    allowed.model.images.map_or(0, |family| allowed.ask.picture_tokens(family))
}

/// The prompt of a request, counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// Its tokens, or a bound on them.
    tokens: u64,
    /// About how many, where it is a bound.
    about: u64,
    /// Who counted.
    by: &'static str,
}

/// Counts the prompt, no further than the tier's limit.
async fn count(allowed: Allowed) -> Result<(Allowed, Option<Counted>), Refusal> {
    let vocabulary = allowed.model.vocabulary.as_deref().and_then(Vocabulary::parse).unwrap_or(Vocabulary::Bytes);
    let long = allowed.ask.body.len() > COUNT_INLINE_BYTES && vocabulary != Vocabulary::Bytes;
    let max = allowed.route.tier.limits.max_input_tokens;
    let run = move || {
        let prompt = allowed.ask.prompt();
        let pictures = picture_tokens(&allowed);
        let Some(most) = max.unwrap_or(u64::MAX).checked_sub(pictures) else { return (allowed, None) };
        // What is no text is a count of tokens by whatever vocabulary.
        let (tokens, beside) = match prompt.is_plain {
            true => (tokens::count_plain(vocabulary, prompt.texts(), prompt.given, most), prompt.given),
            false => {
                let (messages, names) = (prompt.messages, prompt.names);
                let none = tokens::count(vocabulary, [""; 0], messages, names);
                (tokens::count_within(vocabulary, prompt.texts(), messages, names, most), none)
            }
        };
        let counted = tokens.map(|tokens| Counted {
            tokens: tokens.saturating_add(pictures),
            about: match vocabulary {
                Vocabulary::Bytes => beside.saturating_add(usage::about(tokens.saturating_sub(beside))),
                Vocabulary::O200k | Vocabulary::Cl100k => tokens,
            }
            .saturating_add(pictures),
            by: vocabulary.name(),
        });
        (allowed, counted)
    };
    let (allowed, counted) = if long {
        // As many at a time as there are cores: nobody has paid for this yet, and those who stream need them, too.
        let busy = || Refusal::TooBusy {
            limit: "long prompts that are counted at a time",
            retry_after_seconds: 5,
            address_at_fault: false,
        };
        let turn = tokio::time::timeout(COUNTING_WAIT, COUNTING.acquire()).await.map_err(|_| busy())?;
        let turn = turn.map_err(|_| Refusal::Internal { place: "price: counting" })?;
        let run = move || {
            let _turn = turn;
            run()
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| Refusal::Internal { place: "price: counting" })?
    } else {
        run()
    };
    match (counted, max) {
        (Some(counted), _) => Ok((allowed, Some(counted))),
        (None, max) => Err(Refusal::PromptTooLong {
            surface: allowed.ask.surface,
            max: max.unwrap_or(u64::MAX),
            counted_by: vocabulary.name(),
            sold_at: Vec::new(),
        }),
    }
}

/// The pure part: `None` only when an amount exceeds 2^128 of 1e-18 USD.
fn price(allowed: &Allowed, charge: Charge, prompt: Option<Counted>) -> Option<Parts> {
    let prices = &allowed.model.price;
    let dearest = dearest(allowed, prompt.map(|p| p.tokens));
    let tier = &allowed.route.tier;
    let n = allowed.ask.n;
    let max_output_tokens = allowed.ask.max_output;
    let size = Size::of(&allowed.ask);
    let images_usd = size.pictures(&allowed.model, &tier.limits)?;
    let (prompt_usd, prompt_most_usd) = match prompt {
        Some(Counted { tokens, .. }) => {
            (Some(prices.at(tokens).standard.input.of(tokens)?), Some(dearest.input.of(tokens)?))
        }
        None => (None, None),
    };
    // What the operator absorbs, or a price covers that was set beforehand, is not set aside here.
    let template_usd = match charge {
        Charge::Ceiling | Charge::Estimate { shortfall: Shortfall::Clamp { .. }, .. } => {
            size.template(dearest.input)?
        }
        Charge::Flat { .. } | Charge::Estimate { shortfall: Shortfall::Absorb { .. }, .. } => Usd::ZERO,
    };
    let request_usd = prices.per_request;
    let output_of = |per_choice: u64| dearest.output.of(per_choice.checked_mul(n)?);
    let beside = images_usd.plus(request_usd)?;
    let base = prompt_most_usd.unwrap_or(Usd::ZERO).plus(template_usd)?.plus(beside)?;
    let (rule, output_usd, price_usd) = match charge {
        Charge::Flat { usd, min_output_tokens: None } => {
            let times = if allowed.route.surface == Surface::Images { n } else { 1 };
            ("flat", None, Usd(usd.0.checked_mul(u128::from(times))?))
        }
        Charge::Flat { usd, min_output_tokens: Some(_) } => ("flat/clamp", None, usd),
        Charge::Ceiling => {
            let out = output_of(max_output_tokens)?;
            ("ceiling", Some(out), base.plus(out)?)
        }
        Charge::Estimate { overhead, shortfall } => {
            let estimate = overhead.times(prompt_usd.unwrap_or(Usd::ZERO))?.plus(beside)?;
            match shortfall {
                Shortfall::Clamp { min_output_tokens } => {
                    let floor = output_of(min_output_tokens.min(max_output_tokens))?;
                    ("estimate/clamp", Some(floor), estimate.max(base.plus(floor)?))
                }
                Shortfall::Absorb { .. } => ("estimate/absorb", None, estimate),
            }
        }
    };
    Some(Parts {
        rule,
        prompt_tokens: prompt.map(|p| p.tokens),
        counted_by: prompt.map(|p| p.by),
        prompt_about: prompt.map(|p| p.about),
        prompt_usd,
        prompt_most_usd,
        template_usd,
        request_usd,
        images_usd,
        max_output_tokens,
        n,
        output_usd,
        price_usd,
    })
}

impl Quoted {
    /// Most prompt tokens that a backend can report, as long as the text is here. `None`: nobody knows.
    pub fn most_prompt(&self) -> Option<u64> {
        Size::of(&self.allowed.ask).most_prompt(&self.allowed.model, picture_tokens(&self.allowed))
    }

    /// The terms of an offer on one rail. Rounds up, once; of what has a price at least one atom, because an amount of nothing asks
    /// for no payment. `None` when the amount does not fit.
    pub fn terms(&self, rail: &RailId, decimals: u8) -> Option<Terms> {
        let price = self.share(rail).times(self.parts.price_usd)?;
        let least = Atoms(u128::from(!self.is_free()));
        Some(Terms {
            rail: rail.clone(),
            route: self.allowed.route.path.clone(),
            model: self.allowed.model.name.clone(),
            tier: self.allowed.route.tier.name.clone(),
            generation: self.generation.clone(),
            amount: price.to_atoms(decimals)?.max(least),
            price,
            decimals,
        })
    }

    /// The terms where what was used is taken afterwards: the most it can cost, or `most` if that is less. `None` when not even the
    /// prompt is covered by it.
    pub fn terms_by_usage(&self, rail: &RailId, decimals: u8, most: Usd) -> Option<Terms> {
        let cover = self.cover(rail, decimals)?;
        let amount = cover.of(cover.most)?.min(most.to_atoms(decimals)?);
        let terms = Terms { amount, price: amount.to_usd(decimals)?, ..self.terms(rail, decimals)? };
        self.is_covered(rail, decimals, amount).then_some(terms)
    }

    /// Whether `amount` covers an answer: the prompt and, where an answer has output at all, some of that.
    pub fn is_covered(&self, rail: &RailId, decimals: u8, amount: Atoms) -> bool {
        match self.parts.max_output_tokens {
            0 => self.cover(rail, decimals).and_then(|cover| cover.of(0)).is_some_and(|least| least <= amount),
            _ => self.output_covered(rail, decimals, amount) > 0,
        }
    }

    /// Whether a reply limited to so much output is none.
    pub fn is_nothing(&self, output: u64) -> bool {
        output == 0 && self.parts.max_output_tokens > 0
    }

    /// Output tokens per choice that `amount` on a rail covers beside the prompt, at most what was asked.
    pub fn output_covered(&self, rail: &RailId, decimals: u8, amount: Atoms) -> u64 {
        let tokens = self.cover(rail, decimals).map_or(0, |cover| cover.tokens(amount).min(cover.most));
        tokens / self.parts.n.max(1)
    }

    /// The operator asks nothing for it, whatever it uses.
    fn is_free(&self) -> bool {
        let Allowed { route, model, .. } = &self.allowed;
        match route.tier.charge {
            Some(Charge::Flat { usd, .. }) => usd == Usd::ZERO,
            _ => model.price.is_free(),
        }
    }

    /// What a rail asks, as a share of the price: less than all of it where the operator gives a discount.
    fn share(&self, rail: &RailId) -> Factor {
        self.allowed.route.share(rail)
    }

    /// What a payment on a rail is worth at the prices of the list: more than itself where there is a discount.
    pub fn worth(&self, rail: &RailId, paid: Usd) -> Usd {
        self.share(rail).undo(paid)
    }

    /// Output tokens per choice that a budget of `usd` pays for after the prompt and images, at most what was asked. Under
    /// `flat` without a least output and under `ceiling` the whole ask is sold.
    pub fn output_bought(&self, usd: Usd) -> u64 {
        let asked = self.parts.max_output_tokens;
        match self.allowed.route.tier.charge {
            Some(Charge::Estimate { .. }) => {}
            Some(Charge::Flat { min_output_tokens: Some(_), .. }) => {
                let Some(prompt) = self.parts.prompt_tokens else { return 0 };
                let Allowed { route, ask, model, .. } = &self.allowed;
                return Size::of(ask).bought(usd, model, &route.tier.limits, prompt);
            }
            _ => return asked,
        }
        let spent = self.parts.most_before_output().unwrap_or(usd);
        match self.dearest().output.affordable(usd.less(spent)) {
            None => asked,
            Some(tokens) => asked.min(tokens / self.parts.n.max(1)),
        }
    }

    /// The most this request can cost with `output` tokens per choice: what an operator who absorbs may lose is this less the
    /// price. `None` past the largest amount.
    pub fn worst_cost(&self, output: u64) -> Option<Usd> {
        let out = self.dearest().output.of(output.checked_mul(self.parts.n)?)?;
        self.parts.most_before_output()?.plus(out)
    }

    fn dearest(&self) -> Dearest {
        dearest(&self.allowed, self.parts.prompt_tokens)
    }

    /// How an amount of a rail's asset with `decimals` covers this request.
    pub fn cover(&self, rail: &RailId, decimals: u8) -> Option<Cover> {
        let Self { allowed, parts, .. } = self;
        let dearest = self.dearest();
        let prompt = parts.prompt_most_usd.unwrap_or(Usd::ZERO);
        // What is charged is no bound: of a prompt whose vocabulary is not known an estimate.
        let about = parts.prompt_about.unwrap_or(0);
        let listed = allowed.model.price.at(about).standard;
        let said = listed.input.of(about)?.plus(parts.images_usd)?.plus(parts.request_usd)?;
        Some(Cover {
            base: prompt.plus(parts.images_usd)?.plus(parts.request_usd)?,
            margin: dearest.input.of(Size::of(&allowed.ask).room())?,
            output: dearest.output,
            said,
            said_output: listed.output,
            most: parts.max_output_tokens.checked_mul(parts.n)?,
            share: self.share(rail),
            decimals,
        })
    }

    /// What an answer costs on a rail: by its usage at the speed that served it, or, where the model is billed so, what the
    /// backend says that it cost. A figure of zero is none: it says who paid, not what it is worth. `None` past the largest amount.
    ///
    /// A prompt that was reported holds its pictures already; one that was `counted` here does not.
    pub fn bill(&self, rail: &RailId, used: &Used, stated: Option<Usd>) -> Option<Usd> {
        let Allowed { model, route, .. } = &self.allowed;
        let apart = route.tier.limits.image_url.is_some_and(|picture| picture.apart);
        let pictures = if apart || used.counted { self.parts.images_usd } else { Usd::ZERO };
        let stated = stated.filter(|usd| *usd != Usd::ZERO);
        let cost = match (model.stated, stated) {
            (Some(markup), Some(stated)) => markup.times(stated)?,
            _ => cost(&model.price, &used.usage, used.served, pictures)?,
        };
        self.share(rail).times(cost)
    }
}

impl Parts {
    /// The most that a request can cost before it has any output.
    fn most_before_output(&self) -> Option<Usd> {
        let prompt = self.prompt_most_usd.unwrap_or(Usd::ZERO).plus(self.template_usd)?;
        prompt.plus(self.images_usd)?.plus(self.request_usd)
    }
}

/// What an answer is billed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Tokens.
    pub usage: Usage,
    /// The speed that served it.
    pub served: ServiceTier,
    /// Its prompt was counted here, because the backend never said how long it was.
    pub counted: bool,
}

/// The most that a token of this request can cost. A prompt that was not counted may be of any length.
fn dearest(allowed: &Allowed, prompt: Option<u64>) -> Dearest {
    allowed.model.price.dearest(Size::of(&allowed.ask).reach(&allowed.model, prompt.unwrap_or(u64::MAX)))
}

/// What usage costs at a model's prices, at the speed that served it, with what pictures cost beside it. `None` past the largest amount.
pub fn cost(prices: &Prices, usage: &Usage, served: ServiceTier, pictures: Usd) -> Option<Usd> {
    prices.cost(usage, served)?.plus(pictures)
}

/// How much of one request an amount covers, where it is paid for as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Prompt, images and the request as such, at most.
    base: Usd,
    /// Room for what a template adds to the prompt beyond what is counted.
    margin: Usd,
    /// One output token, at most.
    output: PerToken,
    /// What comes before the output, at the prices of the list.
    said: Usd,
    /// One output token at the price of the list.
    said_output: PerToken,
    /// Most output tokens over all choices.
    pub most: u64,
    /// What the rail asks of all that.
    share: Factor,
    decimals: u8,
}

impl Cover {
    /// What `tokens` of output need beside the prompt, rounded up once. `None` past the largest amount.
    pub fn of(&self, tokens: u64) -> Option<Atoms> {
        self.atoms(self.base.plus(self.margin)?.plus(self.output.of(tokens)?)?)
    }

    /// What is used when `tokens` have left and the backend has said nothing.
    pub fn used(&self, tokens: u64) -> Option<Atoms> {
        self.atoms(self.said.plus(self.said_output.of(tokens)?)?)
    }

    fn atoms(&self, list: Usd) -> Option<Atoms> {
        self.share.times(list)?.to_atoms(self.decimals)
    }

    /// What `tokens` more of output need, rounded up.
    pub fn window(&self, tokens: u64) -> Atoms {
        self.output.of(tokens).and_then(|usd| self.atoms(usd)).unwrap_or(Atoms(u128::MAX))
    }

    /// The most output tokens that `cap` covers beside the prompt.
    pub fn tokens(&self, cap: Atoms) -> u64 {
        let usd = cap.to_usd(self.decimals).map_or(Usd(u128::MAX), |usd| self.share.undo(usd));
        self.output.affordable(usd.less(self.base).less(self.margin)).unwrap_or(u64::MAX)
    }

    /// What a request needs to be started: all of it, or the prompt and a first window of output. At least one atom.
    pub fn start(&self, whole: bool) -> Option<Atoms> {
        let tokens = if whole { self.most } else { self.most.min(FIRST_WINDOW) };
        self.of(tokens).map(|atoms| atoms.max(Atoms(1)))
    }
}

#[cfg(test)]
mod tests;
