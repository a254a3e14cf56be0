//! A request's life, in order. No Pingora, no database, no chain client in here: only what they promise.
//!
//! `bytes → parse → policy → price → pay → forward(meter) → settle → receipt`. Each step consumes the type the last one made
//! ([`parse::Parsed`] → [`policy::Allowed`] → [`price::Quoted`] → [`pay::Paid`]), so the compiler keeps the order: an unlisted
//! model can never be priced or challenged, an unpaid request can never be forwarded.

mod alone;
mod bound;
pub mod channels;
pub mod choose;
pub mod closing;
pub mod control;
pub mod directory;
mod errand;
pub mod exposure;
pub mod hold;
pub mod lease;
pub mod loss;
mod means;
pub mod offered;
pub mod parse;
pub mod pay;
pub mod policy;
pub mod price;
pub mod promise;
mod proven;
pub mod receipt;
pub mod reclaim;
pub mod recover;
pub mod release;
pub mod running;
pub mod session;
pub mod settle;
pub mod settler;
mod taking;
mod transact;
mod unjudged;
pub mod watcher;

#[cfg(test)]
mod tests;

use self::channels::Channels;
use self::policy::Allowed;
use self::price::Quoted;
use crate::conf::SessionConf;
use crate::ids::RailId;
use crate::metrics::Metrics;
use crate::money::{Atoms, Usd};
use crate::rail::session::Session;
use crate::rail::{Rail, Way};
use crate::refusal::{Moved, Refusal};
use crate::rules::watch::Rules;
use crate::store::Store;
use crate::upstream::{Lane, Pools};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// Everything a request meets on its way. One per gate.
pub struct Toll {
    /// The rules in force, and the recent ones whose offers still live.
    pub rules: Arc<Rules>,
    /// Ways to pay a fixed amount, in the order of `pontage.toml`.
    pub rails: Vec<Arc<dyn Rail>>,
    /// Ways to pay by the token.
    pub tills: Vec<Arc<Till>>,
    /// The channels in use.
    pub channels: Arc<Channels>,
    /// Claims, receipts, journal.
    pub store: Arc<dyn Store>,
    /// Backends.
    pub pools: Arc<ArcSwap<Pools>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Losses the operator agreed to carry.
    pub losses: loss::Losses,
    /// What payers promised and have not paid yet.
    pub exposure: exposure::Exposure,
    /// Streams whose receipts are not written yet.
    pub running: running::Running,
    /// Scheme, host and port of the gate as clients see it, without a trailing slash.
    pub public_url: String,
    /// Longest wait for a payment whose outcome is unknown.
    pub unknown_wait: std::time::Duration,
}

impl Toll {
    /// The rail of fixed amounts with this name.
    pub fn rail(&self, id: &RailId) -> Option<&Arc<dyn Rail>> {
        self.rails.iter().find(|r| r.id() == id)
    }

    /// The session rail with this name, and its terms.
    pub fn till(&self, id: &RailId) -> Option<&Arc<Till>> {
        self.tills.iter().find(|t| t.rail.id() == id)
    }

    /// Where a request may go, of the pools as they are now.
    pub fn lane(&self, quoted: &Quoted) -> Lane {
        let Allowed { model, route, stream, .. } = &quoted.allowed;
        self.pools.load().lane(&model.pool, route.surface, *stream, quoted.parts.n)
    }

    /// Whether a request would find a server now: nothing is offered or taken for one that would not.
    pub fn can_serve(&self, quoted: &Quoted) -> bool {
        let Allowed { model, route, stream, .. } = &quoted.allowed;
        let called = |pool: &_| model.upstream_in(pool);
        self.pools.load().available_for(&model.pool, route.surface, *stream, quoted.parts.n, called)
    }

    /// Who serves a request, as claims have it: this gate, and the request.
    pub fn server(&self, request: &str) -> String {
        format!("{}/{request}", self.store.gate())
    }

    /// What the rail with this name says about itself, whichever kind it is.
    pub fn way(&self, id: &RailId) -> Option<&dyn Way> {
        let fixed = self.rail(id).map(|rail| -> &dyn Way { rail.as_ref() });
        fixed.or_else(|| self.till(id).map(|till| -> &dyn Way { till.rail.as_ref() }))
    }
}

/// A way to pay by the token, and the operator's terms for it.
pub struct Till {
    /// The rail.
    pub rail: Arc<dyn Session>,
    /// The terms.
    pub terms: SessionConf,
}

impl Till {
    /// Dollars as atoms of this rail's asset, rounded up.
    pub fn atoms(&self, usd: Usd) -> Atoms {
        usd.to_atoms(self.rail.decimals()).unwrap_or(Atoms(u128::MAX))
    }

    /// What must be spent and not settled to be settled by age: a hundredth of `settle_above`. A settlement costs a fee whatever it brings,
    /// and payers who use next to nothing of many channels must not cost one for each of them, again and again.
    pub fn least_by_age(&self) -> Atoms {
        self.atoms(Usd(self.terms.settle_above.0.div_ceil(100)))
    }

    /// Least growth of a voucher.
    pub fn min_delta(&self) -> Atoms {
        self.atoms(self.terms.min_voucher_delta)
    }
}

/// A request that ends without a reply from a backend: why, whether money moved, and whether offers go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub refusal: Refusal,
    /// What happened to money.
    pub moved: Moved,
    /// A claim was touched, or somebody was asked about the payment and did not say no: the answer says what became of the money, and
    /// tells clients not to retry by themselves.
    pub claimed: bool,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, moved: Moved::No, claimed: false }
    }
}
