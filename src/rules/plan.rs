//! One immutable, validated set of rules. A request takes one and keeps it to its receipt.

pub use super::price::{Dearest, Prices, Rates, Reach, Speeds, Step};
pub use super::tariff::Source;
use crate::ids::{Generation, PoolName, PublicModel, RailId, RoutePath, TierName, UpstreamModel};
use crate::limits::{Limits, StreamRule};
use crate::money::{Factor, Usd};
use crate::secret::SecretRef;
pub use crate::surface::Surface;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Everything a request needs to know. Built only by `check`, so every name in it resolves.
#[derive(Debug)]
pub struct Plan {
    /// Hash of the files.
    pub generation: Generation,
    /// Routes by path in normal form.
    pub routes: BTreeMap<RoutePath, Arc<Route>>,
    /// Tiers by name.
    pub tiers: BTreeMap<TierName, Arc<Tier>>,
    /// Models by their public name.
    pub models: BTreeMap<PublicModel, Arc<Model>>,
    /// Public names and aliases → public name.
    pub names: HashMap<String, PublicModel>,
    /// Pools by name.
    pub pools: BTreeMap<PoolName, Arc<PoolRules>>,
}

impl Plan {
    /// The route of a request path, which must match exactly: there is no pass-through.
    pub fn route(&self, path: &str) -> Option<&Arc<Route>> {
        self.routes.get(path)
    }

    /// The list that a path below a models route names an entry of, and what the path says behind it, still encoded:
    /// `/v1/models/{id}`.
    pub fn entry_of<'p>(&self, path: &'p str) -> Option<(&Arc<Route>, &'p str)> {
        let below =
            |route: &Route| path.strip_prefix(route.path.as_str())?.strip_prefix('/').filter(|id| !id.is_empty());
        let lists = self.routes.values().filter(|route| route.surface == Surface::Models);
        lists.filter_map(|route| Some((route, below(route)?))).min_by_key(|(_, id)| id.len())
    }

    /// The only road from a name a client may say (a public name or an alias) to a name a backend will hear.
    pub fn resolve(&self, asked: &str) -> Option<&Arc<Model>> {
        self.models.get(self.names.get(asked)?)
    }

    /// The other names a model answers to, sorted.
    pub fn aliases(&self, model: &PublicModel) -> Vec<String> {
        let mut names: Vec<String> = self
            .names
            .iter()
            .filter(|(name, of)| *of == model && name.as_str() != model.as_str())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    /// The routes that sell `model` on one surface or, without one, on any; to name to a client that asked on the wrong one: flat prices first, cheapest first; then
    /// those whose price depends on the request; free ones last, for they are there for some other reason. Equals by path.
    pub fn sellers(&self, model: &PublicModel, surface: Option<Surface>) -> Vec<&Arc<Route>> {
        let speaks =
            |route: &Route| surface.map_or(route.surface != Surface::Models, |surface| route.surface == surface);
        let sells = |route: &&Arc<Route>| speaks(route) && route.tier.models.contains(model);
        let mut sellers: Vec<_> = self.routes.values().filter(sells).collect();
        sellers.sort_by_key(|route| {
            let flat = route.tier.flat();
            (route.access == Access::Free, flat.is_none(), flat)
        });
        sellers
    }
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Whoever pays. Needs at least one rail.
    #[default]
    Paid,
    /// Everyone, nothing is charged. Must be said.
    Free,
}

/// How a receipt is given beside the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiptForm {
    /// The protocol's header (`Payment-Receipt`).
    pub header: bool,
    /// Name of the block added to the reply body.
    pub body: Option<String>,
    /// Members of that block and the fact each tells, in order; empty: the whole receipt.
    pub show: Vec<(String, Fact)>,
    /// What one credit is worth, where amounts are shown in credits. A way of display: nothing is counted or kept in it.
    pub credit: Option<Usd>,
}

/// What a block may tell about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The receipt's id, good for `GET /receipts/{id}`.
    Id,
    /// The public model.
    Model,
    /// The pool that served.
    Pool,
    /// The server that served, by the name `pools.toml` gives it.
    Server,
    /// The tier.
    Tier,
    /// The rail.
    Rail,
    /// What was charged, in dollars.
    ChargedUsd,
    /// What was charged, in credits.
    Credits,
    /// What was used, where the backend has said so.
    Usage,
}

/// A public path with its terms.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Identity.
    pub path: RoutePath,
    /// Surface.
    pub surface: Surface,
    /// Commercial terms.
    pub tier: Arc<Tier>,
    /// Streaming.
    pub stream: StreamRule,
    /// Access.
    pub access: Access,
    /// Rails in order of preference.
    pub accept: Vec<RailId>,
    /// What is taken off the price on a rail; on one that is not in here: nothing.
    pub discounts: BTreeMap<RailId, Discount>,
    /// One of them takes what was used: every request is counted.
    pub by_usage: bool,
    /// Receipt.
    pub receipt: ReceiptForm,
}

/// Less is asked on one rail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discount {
    /// The share of the price that is taken off.
    pub off: Factor,
    /// The share that is asked: the rest of one, never nothing.
    pub share: Factor,
    /// The line that says so.
    pub from: String,
}

impl Route {
    /// What is asked on a rail, as a share of the price.
    pub fn share(&self, rail: &RailId) -> Factor {
        self.discounts.get(rail).map_or(Factor::ONE, |given| given.share)
    }

    /// The price of every request on fixed-amount rails, when they all have the same.
    pub fn flat(&self) -> Option<Usd> {
        let one = self.surface != Surface::Images || self.tier.limits.max_n == 1;
        self.tier.flat().filter(|_| one)
    }
}

/// Commercial terms.
#[derive(Debug, PartialEq, Eq)]
pub struct Tier {
    /// Name.
    pub name: TierName,
    /// Public names sold, prefixes expanded, in order of the file.
    pub models: Vec<PublicModel>,
    /// Who may serve a request that names no model, in order of choice: those that were named exactly; where there are only
    /// prefixes, all of them.
    pub unnamed: Vec<PublicModel>,
    /// Limits.
    pub limits: Limits,
    /// Price on fixed-amount rails; `None` only when no route of the tier accepts one.
    pub charge: Option<Charge>,
    /// When the backend ends normally and reports nothing.
    pub missing_usage: MissingUsage,
}

impl Tier {
    /// The price of every request on fixed-amount rails, when they all have the same.
    pub fn flat(&self) -> Option<Usd> {
        match self.charge {
            Some(Charge::Flat { usd, .. }) => Some(usd),
            _ => None,
        }
    }

    /// What the operator carries of a call, and of a day, where that is what was agreed.
    pub fn absorbs(&self) -> Option<(Usd, Usd)> {
        match self.charge {
            Some(Charge::Estimate { shortfall: Shortfall::Absorb { per_call, per_day }, .. }) => {
                Some((per_call, per_day))
            }
            _ => None,
        }
    }
}

/// How a fixed-amount rail is priced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// One price for every request.
    Flat {
        /// The price.
        usd: Usd,
        /// What a request may cost at the model's prices stays within the flat one: output is limited to what is left of it after the
        /// prompt, and a request that leaves less than this (or than it asked for) is refused. `None`: the operator carries it.
        min_output_tokens: Option<u64>,
    },
    /// Prompt plus the most output the request can have.
    Ceiling,
    /// Prompt × input price × overhead, raised to cover what `shortfall` promises.
    Estimate {
        /// Default 1.5.
        overhead: Factor,
        /// Who carries the output.
        shortfall: Shortfall,
    },
}

/// Who carries what an estimate does not cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// The payer: output is limited to what was paid, and the price covers at least this many tokens.
    Clamp {
        /// Output tokens the price always covers.
        min_output_tokens: u64,
    },
    /// The operator, up to these caps.
    Absorb {
        /// Most loss on one call.
        per_call: Usd,
        /// Most loss of the tier on one UTC day.
        per_day: Usd,
    },
}

/// What is charged (on usage rails) or noted when the backend reports nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingUsage {
    /// Nothing, with an alarm.
    #[default]
    Free,
    /// The ceiling.
    Ceiling,
}

/// A public model, its one upstream, and its prices.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    /// What clients say.
    pub name: PublicModel,
    /// What the backend hears.
    pub upstream: UpstreamModel,
    /// What the backends of other pools hear, where the first one falls back to them and they call it something else.
    pub elsewhere: BTreeMap<PoolName, UpstreamModel>,
    /// Where it runs.
    pub pool: PoolName,
    /// Prices.
    pub price: Prices,
    /// Bill what the backend says that an answer cost, times this; `None`: by usage and prices.
    pub stated: Option<Factor>,
    /// Where they came from.
    pub sources: Vec<Source>,
    /// What the price list charges on some endpoints only, and is not in them: key and number.
    pub not_applied: Vec<String>,
    /// Most prompt tokens that it takes, where that is known.
    pub max_input: Option<u64>,
    /// Most output tokens that it gives, likewise.
    pub max_output: Option<u64>,
    /// How its prompts are counted: a vocabulary of the catalogue; `None` takes bytes as the bound.
    pub vocabulary: Option<String>,
    /// It can bill output that it does not stream (reasoning): without a running usage count its streams are covered to their
    /// ceiling from the start.
    pub hidden_output: bool,
    /// How it counts pictures; `None`: each costs the tier's flat price instead.
    pub images: Option<crate::picture::Family>,
}

impl Model {
    /// What its row of the price list charges beside and its prices do not hold, as a sentence; `None`: nothing.
    pub fn not_applied(&self) -> Option<String> {
        let Self { name, not_applied, .. } = self;
        let keys = not_applied.join(", ");
        (!keys.is_empty()).then(|| {
            format!(
                "{:?}: its row of the price list has {keys}, which is not applied: where its endpoint bills that, raise `markup` or write its price",
                name.as_str()
            )
        })
    }

    /// What the backends of a pool call it.
    pub fn upstream_in(&self, pool: &PoolName) -> &UpstreamModel {
        self.elsewhere.get(pool).unwrap_or(&self.upstream)
    }
}

/// Servers that serve upstream models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRules {
    /// Name.
    pub name: PoolName,
    /// Profile, a name of the catalogue.
    pub profile: String,
    /// What its servers have beside what its profile says.
    pub surfaces: Vec<Surface>,
    /// Servers; with [`Discovery::Dns`] exactly one, the name.
    pub servers: Vec<ServerRules>,
    /// Whether `servers` are the servers, or a name behind which they are found.
    pub discovery: Discovery,
    /// Who takes the next request.
    pub balance: Balance,
    /// Who may wait while every server is at its `max_concurrent`.
    pub queue: Queue,
    /// The pool that takes over when none of these servers can; it exists, and following it never comes back here.
    pub fallback: Option<PoolName>,
    /// Sent as `Authorization: Bearer …`.
    pub api_key: Option<SecretRef>,
    /// Active health checks; `None`: none are made.
    pub health: Option<HealthRules>,
    /// Waits.
    pub timeouts: Timeouts,
}

impl PoolRules {
    /// Whether requests for either go to the same servers with the same key: they differ in nothing but the name.
    pub fn is_the_same_place(&self, other: &Self) -> bool {
        *self == Self { name: self.name.clone(), ..other.clone() }
    }
}

/// Where the servers of a pool come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discovery {
    /// They are listed.
    #[default]
    Listed,
    /// Every address behind the one name is a server.
    Dns,
}

/// Who of the usable servers takes the next request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// Of two chosen by chance (of two in all: both) the one with fewer requests in flight for its weight.
    #[default]
    LeastOutstanding,
    /// In turn, as often as its weight says.
    RoundRobin,
    /// By a key of the request: the same key, the same server.
    Consistent,
    /// By the head of the prompt, so that a backend finds it in its cache; never more than a quarter above the mean load.
    Prefix,
}

/// A short queue before servers that are at their `max_concurrent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Most requests that wait at once.
    pub length: usize,
    /// Longest wait of one.
    pub wait_seconds: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self { length: 64, wait_seconds: 10 }
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRules {
    /// What receipts call it, when the operator shows who served.
    pub name: Option<String>,
    /// `https`.
    pub tls: bool,
    /// Host name or address, as it goes into `Host` and SNI.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path prefix before `/v1/…`, without a trailing slash; usually empty.
    pub prefix: String,
    /// Share of the load, ≥ 1.
    pub weight: u32,
    /// Group 0 is used first; the next one when nobody of the one before can take more.
    pub group: u32,
    /// Most requests in flight on it; `None`: no limit.
    pub max_concurrent: Option<u32>,
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// Path that answers 200.
    pub path: String,
    /// Period.
    pub every_seconds: u64,
}

/// Waits of a pool, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect_seconds: u64,
    /// Request sent → response head of a stream, and the first byte of its body.
    pub first_byte_seconds: u64,
    /// Between chunks; not before the first of a model with `hidden_output`.
    pub idle_seconds: u64,
    /// Whole exchange, and the wait for an answer that does not stream.
    pub total_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect_seconds: 2, first_byte_seconds: 120, idle_seconds: 60, total_seconds: 900 }
    }
}
