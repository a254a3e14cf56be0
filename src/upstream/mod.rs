//! Where requests are sent: pools of servers, who of them can take one, and how each kind of backend speaks.
//!
//! A pool ([`pool`]) knows its servers ([`server`]) from its rules or by a name that is looked up (`discover`), and how each of
//! them stands (`standing`). One of them is chosen for a request (`select`, `ring`) and told about (`picked`); when all are
//! busy, requests wait in line (`queue`). Health checks run beside the traffic ([`health`]). Operators see it all ([`shown`]).

mod discover;
pub mod health;
mod picked;
pub mod pool;
pub mod profile;
mod queue;
mod quota;
pub mod resolve;
mod ring;
mod select;
pub mod server;
pub mod shown;
mod standing;

pub use discover::{Resolve, System};
pub use picked::{Hearing, Picked, Who};
pub use pool::{Pool, PoolStatus, Unplaced};
pub use select::Affinity;
pub use server::ServerStatus;
pub use standing::LONGEST_ASKED;

use crate::ids::{PoolName, UpstreamModel};
use crate::rules::plan::PoolRules;
use crate::rules::watch::{MOST_OLD_PLANS, OLD_PLAN_SECONDS};
use crate::surface::Surface;
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
    /// object; otherwise every server that stays in it keeps its requests in flight, its health and its rests, whatever else
    /// changed, and whoever waits keeps their place; also under another name. The error is every mistake at once; a secret's
    /// content is never in it.
    pub fn build(rules: &BTreeMap<PoolName, Arc<PoolRules>>, previous: Option<&Self>) -> Result<Self, Vec<String>> {
        Self::build_with(rules, previous, &(Arc::new(System) as Arc<dyn Resolve>))
    }

    /// As [`Self::build`]; names are asked of `resolver`.
    pub fn build_with(
        rules: &BTreeMap<PoolName, Arc<PoolRules>>,
        previous: Option<&Self>,
        resolver: &Arc<dyn Resolve>,
    ) -> Result<Self, Vec<String>> {
        let mut live = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, rules) in rules {
            let was = previous.and_then(|p| p.get(name).or_else(|| p.same_place(rules)));
            match Pool::build(rules, was, resolver) {
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

    /// Looks once behind every name that was never looked behind, so that the plan becomes visible with servers. Waits 2 s at
    /// most; a pool without an answer by then is not available until there is one.
    pub async fn first_look(&self) {
        futures::future::join_all(self.live.values().filter(|pool| pool.is_unseen()).map(|pool| pool.look())).await;
    }

    /// The pool of that name, in the live plan or in one that is still kept.
    pub fn get(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.live.get(name).or_else(|| self.former.iter().find(|(n, _, _)| n == name).map(|(_, pool, _)| pool))
    }

    /// Whether that pool has a server now, or one that it falls back to.
    pub fn available(&self, name: &PoolName) -> bool {
        self.follow(name).any(|pool| pool.available())
    }

    /// Whether a request for that pool would find a server now that can be asked it: an offer is made only then.
    /// `called`: what a pool calls the model.
    pub fn available_for<'a>(
        &self,
        name: &PoolName,
        surface: Surface,
        stream: bool,
        choices: u64,
        called: impl Fn(&PoolName) -> &'a UpstreamModel,
    ) -> bool {
        self.follow(name).any(|pool| pool.takes(surface, stream, choices) && pool.available_for(called(pool.name())))
    }

    /// Where a request for that pool may go: not to those pools whose backends cannot be asked this, or do not make as many
    /// choices of one request.
    pub fn lane(&self, name: &PoolName, surface: Surface, stream: bool, choices: u64) -> Lane {
        let pools = self.follow(name).filter(|pool| pool.takes(surface, stream, choices)).cloned().collect();
        Lane { pools, within: None }
    }

    /// That pool, and those that it falls back to.
    fn follow(&self, name: &PoolName) -> impl Iterator<Item = &Arc<Pool>> {
        std::iter::successors(self.get(name), |pool| self.get(pool.fallback()?)).take(LONGEST_LANE)
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
    /// None, where the pool is unknown or none can be asked this.
    pub pools: Vec<Arc<Pool>>,
    /// Most seconds for all of it, where what pays for the request may not wait for as long as the first pool lets it take.
    pub within: Option<u64>,
}

/// How the gate names itself to backends.
pub const USER_AGENT: &str = concat!("pontage/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_fallback_that_cannot_be_asked_this_is_no_reason_to_offer_it() {
        let rules = [("a", "vllm", Some("b")), ("b", "anthropic", None)].map(|(name, profile, fallback)| {
            let fallback = fallback.map(PoolName::from);
            let rules =
                PoolRules { name: name.into(), profile: profile.into(), fallback, ..pool::tests::rules(&[(1, 1)]) };
            (rules.name.clone(), Arc::new(rules))
        });
        let (pools, name) = (Pools::build(&BTreeMap::from(rules), None).unwrap(), PoolName::from("a"));
        let model = UpstreamModel::from("m");
        let asked = [(Surface::Chat, 1, true), (Surface::Chat, 2, false), (Surface::Responses, 1, false)];
        for (surface, n, _) in asked {
            assert!(pools.available_for(&name, surface, false, n, |_| &model), "{surface:?}, n = {n}: its own pool");
        }
        pools.get(&name).unwrap().pick(crate::upstream::Affinity::NONE, &[]).unwrap().eject_for_auth();
        assert!(pools.available(&name), "the fallback stands");
        for (surface, n, want) in asked {
            assert_eq!(
                pools.available_for(&name, surface, false, n, |_| &model),
                want,
                "{surface:?}, n = {n}: the fallback alone"
            );
        }
    }

    #[test]
    fn a_pool_that_makes_fewer_choices_or_speaks_less_is_no_fallback_for_more() {
        let named = |name: &str, profile: &str, fallback: Option<&str>| PoolRules {
            name: name.into(),
            profile: profile.into(),
            fallback: fallback.map(PoolName::from),
            ..pool::tests::rules(&[(1, 1)])
        };
        let rules = [
            named("a", "vllm", Some("b")),
            named("b", "anthropic", Some("c")),
            named("c", "llamacpp", Some("d")),
            named("d", "openai", None),
        ];
        let rules = rules.map(|rules| (rules.name.clone(), Arc::new(rules)));
        let pools = Pools::build(&BTreeMap::from(rules), None).unwrap();
        // llama.cpp tells of all choices only in a stream of chat.
        for (surface, stream, n, want) in [
            (Surface::Chat, false, 1, &["a", "b", "c", "d"][..]),
            (Surface::Chat, false, 2, &["a", "d"]),
            (Surface::Chat, true, 2, &["a", "c", "d"]),
            (Surface::Completions, true, 1, &["a", "c", "d"]),
            (Surface::Completions, true, 2, &["a", "d"]),
            (Surface::Messages, false, 1, &["a", "b", "c"]),
            (Surface::Responses, false, 1, &["a", "c", "d"]),
        ] {
            let lane = pools.lane(&"a".into(), surface, stream, n);
            let names: Vec<_> = lane.pools.iter().map(|pool| pool.name().as_str()).collect();
            assert_eq!(names, want, "{surface:?}, n = {n}, streamed: {stream}");
        }
    }
}
