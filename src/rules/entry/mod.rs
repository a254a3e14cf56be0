//! What each file of a rule set may say on its own. What needs a second file is `check.rs`.
//!
//! An entry that is half wrong still exists: its name is kept, so that other files which speak of it are not accused too. A
//! field is `None` only after its mistake was recorded, or where the rules let it be absent.

mod model;
mod pool;
mod prices;
mod route;
mod tier;

pub(super) use model::model_name;
pub use model::{ModelEntry, PriceEntry};
pub use pool::{HealthEntry, PoolEntry};
pub use prices::PricesEntry;
pub use route::RouteEntry;
pub use tier::{ChargeEntry, TierEntry};

use crate::rules::file::{Files, PRICES};
use crate::written::{Mistake, Page, Section, Value};

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
    /// `prices.toml`; empty when there is none.
    pub prices: PricesEntry,
}

/// Reads all files and collects what is wrong in each.
pub fn read(files: &Files) -> (Entries, Vec<Mistake>) {
    let mut entries = Entries::default();
    let mut mistakes = Vec::new();
    for (name, text) in files.texts() {
        let text = match text {
            Ok(text) => text,
            Err(mistake) => {
                entries.prices.broken |= name == PRICES;
                mistakes.push(mistake);
                continue;
            }
        };
        let page = Page::open(name, text);
        if page.is_broken() && name == PRICES {
            entries.prices.broken = true;
        } else if !page.is_broken() {
            let root = page.root();
            match name {
                "models.toml" => entries.models = Some(named(&root, "model", model::read)),
                "tiers.toml" => entries.tiers = Some(named(&root, "tier", tier::read)),
                PRICES => entries.prices = prices::read(&root),
                "pools.toml" => entries.pools = Some(named(&root, "pool", pool::read)),
                _ => entries.routes = Some(route::read_all(&root)),
            }
        }
        mistakes.extend(page.close());
    }
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
