//! A request's life, in order. No Pingora, no database, no chain client in here: only what they promise.
//!
//! `bytes → parse → policy → price → pay → forward(meter) → settle → receipt`. Each step consumes the type the last one made
//! ([`parse::Parsed`] → [`policy::Allowed`] → [`price::Quoted`] → [`pay::Paid`]), so the compiler keeps the order: an unlisted
//! model can never be priced or challenged, an unpaid request can never be forwarded.

pub mod channels;
pub mod directory;
pub mod hold;
pub mod loss;
pub mod parse;
pub mod pay;
pub mod policy;
pub mod price;
pub mod receipt;
pub mod recover;
pub mod settle;

#[cfg(test)]
mod tests;

use crate::metrics::Metrics;
use crate::rail::Rail;
use crate::refusal::{Moved, Refusal};
use crate::rules::watch::Rules;
use crate::store::Store;
use crate::upstream::Pools;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// Everything a request meets on its way. One per gate.
pub struct Toll {
    /// The rules in force, and the recent ones whose offers still live.
    pub rules: Arc<Rules>,
    /// Ways to pay, in the order of `pontage.toml`.
    pub rails: Vec<Arc<dyn Rail>>,
    /// Claims, receipts, journal.
    pub store: Arc<dyn Store>,
    /// Backends.
    pub pools: Arc<ArcSwap<Pools>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Losses the operator agreed to carry.
    pub losses: loss::Losses,
    /// Scheme, host and port of the gate as clients see it, without a trailing slash.
    pub public_url: String,
    /// Longest wait for a payment whose outcome is unknown.
    pub unknown_wait: std::time::Duration,
}

impl Toll {
    /// The rail with this name.
    pub fn rail(&self, id: &crate::ids::RailId) -> Option<&Arc<dyn Rail>> {
        self.rails.iter().find(|r| r.id() == id)
    }
}

/// A request that ends without a reply from a backend: why, whether money moved, and whether offers go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub refusal: Refusal,
    /// What happened to money.
    pub moved: Moved,
    /// A claim was touched: the answer tells clients not to retry by themselves.
    pub claimed: bool,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, moved: Moved::No, claimed: false }
    }
}
