//! Where requests are sent: pools of servers, who of them can take one, and how each kind of backend speaks.
//!
//! Names are resolved again and again ([`resolve`]), a server that cannot be connected to rests ([`server`]), active
//! health checks run beside the traffic ([`health`]), and the one with the least to do is picked ([`pool`]).

pub mod health;
pub mod pool;
pub mod profile;
pub mod resolve;
pub mod server;

pub use pool::{Picked, Pool};

use crate::ids::PoolName;
use crate::rules::plan::PoolRules;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every pool of one plan.
#[derive(Debug, Default)]
pub struct Pools(BTreeMap<PoolName, Arc<Pool>>);

impl Pools {
    /// Builds what the rules say and reads the keys. A pool whose rules and key are those of `previous` is the same
    /// object, with its requests in flight, its health and its ejections; one whose servers are the same keeps those.
    /// The error is every mistake at once; a secret's content is never in it.
    pub fn build(rules: &BTreeMap<PoolName, Arc<PoolRules>>, previous: Option<&Self>) -> Result<Self, Vec<String>> {
        let mut pools = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, rules) in rules {
            match Pool::build(rules, previous.and_then(|p| p.get(name))) {
                Ok(pool) => drop(pools.insert(name.clone(), pool)),
                Err(mistake) => mistakes.push(format!("pools.toml: pool.{name}.{mistake}")),
            }
        }
        if mistakes.is_empty() { Ok(Self(pools)) } else { Err(mistakes) }
    }

    /// The pool of that name.
    pub fn get(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.0.get(name)
    }

    /// Whether a request for that pool would find a server now: an offer is made only then.
    pub fn available(&self, name: &PoolName) -> bool {
        self.get(name).is_some_and(|pool| pool.available())
    }

    /// Every pool, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&PoolName, &Arc<Pool>)> {
        self.0.iter()
    }
}

/// How the gate names itself to backends.
pub const USER_AGENT: &str = concat!("pontage/", env!("CARGO_PKG_VERSION"));
