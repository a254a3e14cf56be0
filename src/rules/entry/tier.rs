//! `tiers.toml`: commercial terms.

use crate::ids::TierName;
use crate::limits::{Drawn, Limits, OverLimit, PicturePrice, UnknownFields};
use crate::money::{Factor, Usd};
use crate::rules::plan::{Charge, MissingUsage, Shortfall};
use crate::written::{Said, Section, Value, plain_name};

/// `[tier.…]`.
#[derive(Debug)]
pub struct TierEntry {
    /// The key.
    pub name: Said<TierName>,
    /// Public names or prefixes, unresolved.
    pub models: Vec<Said<String>>,
    /// Limits.
    pub limits: Option<Limits>,
    /// Price on fixed-amount rails.
    pub charge: ChargeEntry,
    /// When nobody reports usage.
    pub missing_usage: MissingUsage,
}

/// `charge`, which only some tiers need.
#[derive(Debug)]
pub enum ChargeEntry {
    /// Not written.
    Absent,
    /// Written, and its mistakes are recorded.
    Wrong,
    /// As written.
    Is(Said<Charge>),
}

/// Reads one tier.
pub(super) fn read<'p>(name: &'p str, at: &Value<'p>, s: Section<'p>) -> TierEntry {
    if let Err(why) = plain_name(name) {
        at.wrong(format!("{name:?} {why}"));
    }
    let models = s.need("models").and_then(|v| {
        let texts = v.texts()?;
        if texts.is_empty() {
            v.wrong("a tier sells at least one model");
        }
        Some(texts)
    });
    let limits = limits(&s);
    TierEntry {
        name: at.said(TierName::from(name)),
        models: models.unwrap_or_default(),
        charge: match s.take("charge") {
            None => ChargeEntry::Absent,
            Some(v) => match v.section().and_then(|table| charge(&table, limits.as_ref())) {
                Some(charge) => ChargeEntry::Is(v.said(charge)),
                None => ChargeEntry::Wrong,
            },
        },
        limits,
        missing_usage: s
            .take("missing_usage")
            .and_then(|v| v.word(&[("free", MissingUsage::Free), ("ceiling", MissingUsage::Ceiling)]))
            .unwrap_or_default(),
    }
}

fn limits(s: &Section<'_>) -> Option<Limits> {
    let count = |key, most, default| s.take(key).map_or(Some(default), |v| v.count(1..=most));
    let max_output_tokens = s.need("max_output_tokens").and_then(|v| v.count(1..=10_000_000));
    let max_body_bytes = count("max_body_bytes", 256 << 20, 1 << 20);
    let max_n = count("max_n", 128, 1);
    let max_input_tokens = s.take("max_input_tokens").map(|v| v.count(1..=100_000_000));
    let image_url = s.take("image_url").map(|v| v.section().and_then(|t| picture(&t)));
    let (sizes, qualities) = (words(s, "sizes"), words(s, "qualities"));
    let over_limit = s
        .take("over_limit")
        .map_or(Some(OverLimit::default()), |v| v.word(&[("clamp", OverLimit::Clamp), ("refuse", OverLimit::Refuse)]));
    let unknown_fields = s.take("unknown_fields").map_or(Some(UnknownFields::default()), |v| {
        v.word(&[("refuse", UnknownFields::Refuse), ("strip", UnknownFields::Strip)])
    });
    Some(Limits {
        max_body_bytes: usize::try_from(max_body_bytes?).ok()?,
        max_output_tokens: max_output_tokens?,
        max_input_tokens: max_input_tokens.map_or(Some(None), |n| n.map(Some))?,
        max_n: max_n?,
        over_limit: over_limit?,
        unknown_fields: unknown_fields?,
        drawn: Drawn { sizes: sizes?, qualities: qualities? },
        image_url: image_url.map_or(Some(None), |price| price.map(Some))?,
    })
}

/// What a field of a request may say: words that are written into it as they are. Absent: anything.
fn words(s: &Section<'_>, key: &'static str) -> Option<Vec<String>> {
    let Some(value) = s.take(key) else { return Some(Vec::new()) };
    let words = value.texts()?;
    let plain =
        |word: &str| (1..=32).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if words.is_empty() || !words.iter().all(|word| plain(&word.value)) {
        value.wrong("must be a list of words like \"1024x1024\" or \"high\", at least one");
        return None;
    }
    Some(words.into_iter().map(|word| word.value).collect())
}

/// `{ flat = "0.002", apart = true }`.
fn picture(s: &Section<'_>) -> Option<PicturePrice> {
    let (flat, apart) = (s.need("flat"), s.take("apart").map_or(Some(false), |v| v.flag()));
    Some(PicturePrice { flat: flat?.amount(Usd::parse)?, apart: apart? })
}

fn charge(s: &Section<'_>, limits: Option<&Limits>) -> Option<Charge> {
    let (flat, ceiling, estimate) = (s.take("flat"), s.take("ceiling"), s.take("estimate"));
    match (flat, ceiling, estimate) {
        (Some(v), None, None) => {
            let least = s.take("min_output_tokens").map(|at| least_output(&at, limits));
            let usd = v.amount(Usd::parse);
            Some(Charge::Flat { usd: usd?, min_output_tokens: least.map_or(Some(None), |tokens| tokens.map(Some))? })
        }
        (None, Some(v), None) => {
            let on = v.flag()?;
            if !on {
                v.wrong("is either true or not written");
            }
            on.then_some(Charge::Ceiling)
        }
        (None, None, Some(v)) => estimate_of(&v.section()?, limits),
        _ => {
            s.wrong("says exactly one of flat, ceiling or estimate");
            None
        }
    }
}

/// An estimate has no output term. Somebody carries the rest, and the gate does not choose who.
fn estimate_of(s: &Section<'_>, limits: Option<&Limits>) -> Option<Charge> {
    let overhead = s.take("overhead").map_or(Some(Factor::ONE_AND_A_HALF), |v| {
        v.amount(Factor::parse).filter(|factor| {
            if factor.below_one() {
                v.wrong("is below 1: the price would not even cover the prompt");
            }
            !factor.below_one()
        })
    });
    let output = s.take("min_output_tokens");
    let (call, day) = (s.take("loss_cap_per_call"), s.take("loss_cap_per_day"));
    let Some(said) = s.take("shortfall") else {
        s.wrong(
            "`shortfall` is missing: an estimate has no output term, so say who carries it: \
             \"clamp\" with min_output_tokens, or \"absorb\" with loss_cap_per_call and loss_cap_per_day",
        );
        return None;
    };
    let shortfall = if said.word(&[("clamp", true), ("absorb", false)])? {
        for cap in [call, day].into_iter().flatten() {
            cap.wrong("belongs to shortfall = \"absorb\"");
        }
        let at = missing(s, output, "min_output_tokens", "\"clamp\"")?;
        Shortfall::Clamp { min_output_tokens: least_output(&at, limits)? }
    } else {
        if let Some(output) = output {
            output.wrong("belongs to shortfall = \"clamp\"");
        }
        let per_call =
            missing(s, call, "loss_cap_per_call", "\"absorb\"").and_then(|v| Some((v.amount(Usd::parse)?, v)));
        let per_day = missing(s, day, "loss_cap_per_day", "\"absorb\"").and_then(|v| v.amount(Usd::parse));
        let ((per_call, at), per_day) = (per_call?, per_day?);
        if per_call > per_day {
            at.wrong("is more than loss_cap_per_day: one call could break the cap of the day");
            return None;
        }
        Shortfall::Absorb { per_call, per_day }
    };
    Some(Charge::Estimate { overhead: overhead?, shortfall })
}

fn least_output(at: &Value<'_>, limits: Option<&Limits>) -> Option<u64> {
    let tokens = at.count(1..=u64::MAX)?;
    if limits.is_some_and(|limits| tokens > limits.max_output_tokens) {
        at.wrong("is more than max_output_tokens");
        return None;
    }
    Some(tokens)
}

fn missing<'p>(s: &Section<'_>, value: Option<Value<'p>>, key: &str, whose: &str) -> Option<Value<'p>> {
    if value.is_none() {
        s.wrong(format!("`{key}` is missing: shortfall = {whose} needs it"));
    }
    value
}
