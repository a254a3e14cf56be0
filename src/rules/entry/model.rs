//! `models.toml`: what a client may ask for, who serves it, and what it costs.

use crate::ids::{PoolName, PublicModel, UpstreamModel};
use crate::money::{PerToken, Usd};
use crate::rules::tariff::Given;
use crate::written::{Said, Section, Spot, Value};

/// `[model."…"]`.
#[derive(Debug)]
pub struct ModelEntry {
    /// The key.
    pub name: Said<PublicModel>,
    /// Other names a client may say.
    pub aliases: Vec<Said<String>>,
    /// What the backend hears.
    pub upstream: Option<UpstreamModel>,
    /// What the backends of other pools hear.
    pub elsewhere: Vec<(Said<PoolName>, UpstreamModel)>,
    /// Its pool.
    pub pool: Option<Said<PoolName>>,
    /// What it costs, as far as this file says it.
    pub price: Option<PriceEntry>,
    /// Vocabulary; absent: bytes.
    pub vocabulary: Option<Said<String>>,
    /// Bills output that it does not stream; absent: no.
    pub hidden_output: bool,
    /// What the backend says that an answer cost is billed, not usage and prices; absent: no.
    pub stated: bool,
}

/// `price`, `price_as`, `free` and `service_tiers` of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceEntry {
    /// Where the price is written; where nothing is, the model.
    pub spot: Spot,
    /// Prices named one by one.
    pub given: Given,
    /// Of a request as such.
    pub per_request: Option<Usd>,
    /// The row of the registry.
    pub price_as: Option<Said<String>>,
    /// Whether `flex` may serve it.
    pub flex: bool,
    /// Whether `priority` may serve it.
    pub priority: bool,
}

impl PriceEntry {
    /// The line that says it: `models.toml:6`.
    pub fn place(&self) -> String {
        self.spot.place()
    }

    /// Nothing else needs to be known.
    pub fn is_whole(&self) -> bool {
        self.given.input.is_some() && self.given.output.is_some()
    }
}

/// Reads one model.
pub(super) fn read<'p>(name: &'p str, at: &Value<'p>, s: Section<'p>) -> ModelEntry {
    if let Err(why) = model_name(name) {
        at.wrong(format!("{name:?} {why}"));
    }
    let pool = s.need("pool").and_then(|v| Some(v.said(PoolName::from(v.text()?))));
    ModelEntry {
        name: at.said(PublicModel::from(name)),
        aliases: s.take("aliases").and_then(|v| v.texts()).unwrap_or_default(),
        upstream: s.need("upstream").and_then(|v| v.read(|text| model_name(text).map(|()| UpstreamModel::from(text)))),
        elsewhere: s.take("upstream_in").and_then(|v| elsewhere(&v.section()?)).unwrap_or_default(),
        pool,
        price: price(&s),
        vocabulary: s.take("vocabulary").and_then(|v| Some(v.said(v.text()?.to_owned()))),
        hidden_output: s.take("hidden_output").and_then(|v| v.flag()).unwrap_or(false),
        stated: s.take("bill").and_then(|v| v.word(&[("usage", false), ("stated", true)])).unwrap_or(false),
    }
}

/// `upstream_in = { pool = "what its backends hear" }`.
fn elsewhere(s: &Section<'_>) -> Option<Vec<(Said<PoolName>, UpstreamModel)>> {
    let names = s.entries().into_iter().map(|(pool, value)| {
        let name = value.read(|text| model_name(text).map(|()| UpstreamModel::from(text)))?;
        Some((value.said(PoolName::from(pool)), name))
    });
    names.collect()
}

/// Model names are compared byte by byte, shown in answers and logs, and used as labels.
pub(in crate::rules) fn model_name(text: &str) -> Result<(), &'static str> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*');
    if !text.is_empty() && text.len() <= 128 && text.bytes().all(plain) {
        Ok(())
    } else {
        Err("is not a model name: 1 to 128 printable ASCII characters without space, quote, backslash or *")
    }
}

/// `None` after a mistake. What is not written here may be in the registry.
fn price(s: &Section<'_>) -> Option<PriceEntry> {
    let mut entry = PriceEntry {
        spot: s.spot().clone(),
        given: Given::default(),
        per_request: None,
        price_as: None,
        flex: true,
        priority: true,
    };
    let (free, table, price_as, tiers) = (s.take("free"), s.take("price"), s.take("price_as"), s.take("service_tiers"));
    let mut whole = true;
    if let Some(v) = tiers {
        let words = v.texts()?;
        (entry.flex, entry.priority) = (false, false);
        for word in &words {
            match word.value.as_str() {
                "standard" => {}
                "flex" => entry.flex = true,
                "priority" => entry.priority = true,
                other => {
                    v.wrong(format!("{other:?} is not \"standard\", \"flex\" or \"priority\""));
                    whole = false;
                }
            }
        }
    }
    if let Some(v) = free {
        match v.flag()? {
            true if table.is_some() || price_as.is_some() => {
                v.wrong("a model that is free has no price: leave out price and price_as");
                return None;
            }
            true => {
                let nothing = Some(PerToken::default());
                entry.spot = v.spot().clone();
                entry.given = Given { input: nothing, output: nothing, ..Given::default() };
            }
            false => {
                v.wrong("is either true or not written");
                return None;
            }
        }
    }
    if let Some(v) = price_as {
        match v.text() {
            Some(key) => entry.price_as = Some(v.said(key.to_owned())),
            None => whole = false,
        }
    }
    if let Some(v) = table {
        entry.spot = v.spot().clone();
        let table = v.section()?;
        let mut rate = |key| {
            let value = table.take(key)?;
            let rate = value.amount(PerToken::per_million);
            whole &= rate.is_some();
            rate
        };
        entry.given = Given {
            input: rate("input"),
            cached_input: rate("cached_input"),
            cache_write: rate("cache_write"),
            cache_write_hour: rate("cache_write_hour"),
            output: rate("output"),
            reasoning: rate("reasoning"),
            audio_input: rate("audio_input"),
            audio_output: rate("audio_output"),
            image_input: rate("image_input"),
        };
        if let Some(value) = table.take("request") {
            entry.per_request = value.amount(Usd::parse);
            whole &= entry.per_request.is_some();
        }
    }
    whole.then_some(entry)
}
