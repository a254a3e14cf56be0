//! Where requests are sent: pools of servers, who of them can take one, and how each kind of backend speaks.
//!
//! Names are resolved again and again ([`resolve`]), a server that cannot be connected to rests ([`server`]), active
//! health checks run beside the traffic ([`health`]), and the one with the least to do is picked ([`pool`]).

pub mod health;
pub mod pool;
pub mod profile;
pub mod resolve;
pub mod server;

pub use pool::{Affinity, Picked, Pool, Unplaced};

use crate::ids::PoolName;
use crate::rules::plan::PoolRules;
use crate::rules::watch::{MOST_OLD_PLANS, OLD_PLAN_SECONDS};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Every pool of one plan, and for as long as an old plan is kept those that it names and the live one does not: a request
/// keeps the plan it began with, and an offer made before a pool was renamed is honoured where it was made.
#[derive(Debug, Default)]
pub struct Pools {
    live: BTreeMap<PoolName, Arc<Pool>>,
    /// Newest first, with the time at which each left.
    former: Vec<(PoolName, Arc<Pool>, Instant)>,
}

impl Pools {
    /// Builds what the rules say and reads the keys. A pool whose rules and key are those of `previous` is the same
    /// object, with its requests in flight, its health and its ejections; one whose servers are the same keeps those, also
    /// under another name. The error is every mistake at once; a secret's content is never in it.
    pub fn build(rules: &BTreeMap<PoolName, Arc<PoolRules>>, previous: Option<&Self>) -> Result<Self, Vec<String>> {
        let mut live = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, rules) in rules {
            let was = previous.and_then(|p| p.get(name).or_else(|| p.same_place(rules)));
            match Pool::build(rules, was) {
                Ok(pool) => drop(live.insert(name.clone(), pool)),
                Err(mistake) => mistakes.push(format!("pools.toml: pool.{name}.{mistake}")),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let former = previous.map_or_else(Vec::new, |p| p.leaving(&live, Instant::now()));
        Ok(Self { live, former })
    }

    /// A pool that differs in nothing but its name.
    fn same_place(&self, rules: &PoolRules) -> Option<&Arc<Pool>> {
        self.live.values().find(|pool| pool.rules.is_the_same_place(rules))
    }

    /// What of this is still to be found beside `live`.
    fn leaving(&self, live: &BTreeMap<PoolName, Arc<Pool>>, now: Instant) -> Vec<(PoolName, Arc<Pool>, Instant)> {
        let gone = self.live.iter().map(|(name, pool)| (name.clone(), Arc::clone(pool), now));
        gone.chain(self.former.iter().cloned())
            .filter(|(name, _, left)| {
                !live.contains_key(name) && now.duration_since(*left) < Duration::from_secs(OLD_PLAN_SECONDS)
            })
            .take(MOST_OLD_PLANS)
            .collect()
    }

    /// The pool of that name, in the live plan or in one that is still kept.
    pub fn get(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.live.get(name).or_else(|| self.former.iter().find(|(n, _, _)| n == name).map(|(_, pool, _)| pool))
    }

    /// Whether a request for that pool would find a server now, there or where the pool falls back to: an offer is made only then.
    pub fn available(&self, name: &PoolName) -> bool {
        self.lane(name).pools.iter().any(|pool| pool.available())
    }

    /// Where a request for that pool may go.
    pub fn lane(&self, name: &PoolName) -> Lane {
        let mut pools = Vec::new();
        let mut next = self.get(name);
        while let Some(pool) = next.filter(|_| pools.len() < LONGEST_LANE) {
            pools.push(Arc::clone(pool));
            next = pool.fallback().and_then(|name| self.get(name));
        }
        Lane { pools }
    }

    /// Every pool of the live plan, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&PoolName, &Arc<Pool>)> {
        self.live.iter()
    }
}

/// Rules allow no circles; this is for those of two plans that make one together.
const LONGEST_LANE: usize = 8;

/// Where one request may go: a pool, then those that it falls back to, in order.
#[derive(Clone, Debug)]
pub struct Lane {
    /// At least one, unless the pool is unknown.
    pub pools: Vec<Arc<Pool>>,
}

/// How the gate names itself to backends.
pub const USER_AGENT: &str = concat!("pontage/", env!("CARGO_PKG_VERSION"));
