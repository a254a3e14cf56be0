//! What each file of a rule set may say on its own. What needs a second file is `check.rs`.
//!
//! An entry that is half wrong still exists: its name is kept, so that other files which speak of it are not accused too. A
//! field is `None` only after its mistake was recorded, or where the rules let it be absent.

mod pool;
mod route;
mod tier;

pub use pool::{HealthEntry, PoolEntry};
pub use route::RouteEntry;
pub use tier::{ChargeEntry, TierEntry};

use crate::ids::{PoolName, PublicModel, UpstreamModel};
use crate::money::PerToken;
use crate::rules::file::Files;
use crate::rules::plan::{Prices, Rates};
use crate::written::{Mistake, Page, Said, Section, Value};

/// What the files say. A list is `None` when its file cannot be understood at all.
#[derive(Debug, Default)]
pub struct Entries {
    /// `models.toml`.
    pub models: Option<Vec<ModelEntry>>,
    /// `tiers.toml`.
    pub tiers: Option<Vec<TierEntry>>,
    /// `routes.toml`.
    pub routes: Option<Vec<RouteEntry>>,
    /// `pools.toml`.
    pub pools: Option<Vec<PoolEntry>>,
}

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
    /// Prices.
    pub price: Option<Prices>,
    /// Vocabulary; absent: bytes.
    pub vocabulary: Option<Said<String>>,
    /// Bills output that it does not stream; absent: no.
    pub hidden_output: bool,
}

/// Reads all files and collects what is wrong in each.
pub fn read(files: &Files) -> (Entries, Vec<Mistake>) {
    let mut entries = Entries::default();
    let mut mistakes = Vec::new();
    for (name, text) in files.texts() {
        let text = match text {
            Ok(text) => text,
            Err(mistake) => {
                mistakes.push(mistake);
                continue;
            }
        };
        let page = Page::open(name, text);
        if !page.is_broken() {
            let root = page.root();
            match name {
                "models.toml" => entries.models = Some(named(&root, "model", model)),
                "tiers.toml" => entries.tiers = Some(named(&root, "tier", tier::read)),
                "pools.toml" => entries.pools = Some(named(&root, "pool", pool::read)),
                _ => entries.routes = Some(route::read_all(&root)),
            }
        }
        mistakes.extend(page.close());
    }
    mistakes.extend(files.strangers());
    (entries, mistakes)
}

/// The entries of `[kind.…]` tables.
fn named<'p, T>(root: &Section<'p>, kind: &'p str, read: fn(&'p str, &Value<'p>, Section<'p>) -> T) -> Vec<T> {
    let Some(table) = root.need(kind).and_then(|value| value.section()) else { return Vec::new() };
    let entries = table.entries();
    if entries.is_empty() {
        table.wrong("is empty");
    }
    entries.iter().filter_map(|(name, value)| Some(read(name, value, value.section()?))).collect()
}

fn model<'p>(name: &'p str, at: &Value<'p>, s: Section<'p>) -> ModelEntry {
    if let Err(why) = model_name(name) {
        at.wrong(format!("{name:?} {why}"));
    }
    let pool = s.need("pool").and_then(|v| Some(v.said(PoolName::from(v.text()?))));
    s.later("price_as", "write price = { input = \"…\", output = \"…\" }");
    ModelEntry {
        name: at.said(PublicModel::from(name)),
        aliases: s.take("aliases").and_then(|v| v.texts()).unwrap_or_default(),
        upstream: s.need("upstream").and_then(|v| v.read(|text| model_name(text).map(|()| UpstreamModel::from(text)))),
        elsewhere: s.take("upstream_in").and_then(|v| elsewhere(&v.section()?)).unwrap_or_default(),
        pool,
        price: s.need("price").and_then(|v| prices(&v.section()?)),
        vocabulary: s.take("vocabulary").and_then(|v| Some(v.said(v.text()?.to_owned()))),
        hidden_output: s.take("hidden_output").and_then(|v| v.flag()).unwrap_or(false),
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
pub(super) fn model_name(text: &str) -> Result<(), &'static str> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*');
    if !text.is_empty() && text.len() <= 128 && text.bytes().all(plain) {
        Ok(())
    } else {
        Err("is not a model name: 1 to 128 printable ASCII characters without space, quote, backslash or *")
    }
}

/// A price that is not written is not zero: input and output must be said, even when they are `"0"`.
fn prices(s: &Section<'_>) -> Option<Prices> {
    let input = s.need("input").and_then(|v| v.amount(PerToken::per_million));
    let output = s.need("output").and_then(|v| v.amount(PerToken::per_million));
    let cached = match s.take("cached_input") {
        Some(v) => v.amount(PerToken::per_million),
        None => input,
    };
    Some(Prices::flat(Rates { cached_input: cached?, ..Rates::plain(input?, output?) }))
}
