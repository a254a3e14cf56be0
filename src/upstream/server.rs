//! The servers of a pool at one moment: their rules beside how they stand. Membership changes by swapping the whole; whoever
//! stays keeps its `Standing`, and with it requests in flight, health and rests.

use super::resolve::Addresses;
use super::ring::Ring;
use super::standing::{Moment, Standing, Tally};
use crate::origin::bare;
use crate::rules::plan::{PoolRules, ServerRules};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

/// Most servers of a pool: their choice is made on a set of this size.
pub const MOST_SERVERS: usize = 1024;

/// One server in one membership.
#[derive(Debug)]
pub(super) struct Server {
    /// Never used again for another one in the life of its pool.
    pub id: usize,
    pub rules: ServerRules,
    /// For one that was found behind a name: where.
    pub address: Option<SocketAddr>,
    pub standing: Arc<Standing>,
    /// Of the smooth round robin.
    pub credit: AtomicI64,
}

/// All of them, by group.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub servers: Box<[Server]>,
    pub groups: Box<[Range<usize>]>,
    pub ring: Ring,
    /// One turn of the round robin at a time.
    pub turning: Mutex<()>,
}

/// What `/status` says about a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// `host:port` and path prefix, as the rules say; the only name that may be a label.
    pub name: String,
    /// Where it was found, when the rules only say a name.
    pub address: Option<SocketAddr>,
    /// Priority group.
    pub group: u32,
    /// It would be given a request now.
    pub usable: bool,
    /// Why it would not.
    pub why_not: Option<&'static str>,
    /// Requests running on it.
    pub in_flight: usize,
    /// Most requests that may.
    pub max_concurrent: Option<u32>,
    /// Moving average of the wait for the first byte of a stream's body, in microseconds; `None` when nothing was heard lately.
    pub first_byte_micros: Option<u64>,
    /// Models of it that are left alone because it answered 429, 5xx or nonsense for them, by the names that it knows.
    pub resting_models: Vec<String>,
    /// How often it, or a model of it, was put to rest since the gate started.
    pub ejections: u64,
    /// How often it refused the operator's key.
    pub key_alarms: u64,
    /// How often it reported usage that cannot be.
    pub usage_alarms: u64,
}

impl Server {
    /// A server that the rules name, with what is known of it in `kept`.
    pub fn listed(id: usize, rules: &ServerRules, kept: &Members) -> Self {
        let known = kept.servers.iter().find(|s| s.is_at(rules) && s.address.is_none());
        let fresh = || Standing::new(Addresses::new(&rules.host, rules.port), Arc::default());
        let standing = known.map_or_else(|| Arc::new(fresh()), |s| Arc::clone(&s.standing));
        Self { id, rules: rules.clone(), address: None, standing, credit: AtomicI64::new(0) }
    }

    /// Servers that were found behind the name of the rules, with what is known of each in `kept`. They are one in what is
    /// counted of them.
    pub fn found(at: impl Iterator<Item = (usize, SocketAddr)>, name: &ServerRules, kept: &Members) -> Vec<Self> {
        let same = || kept.servers.iter().filter(|s| s.is_at(name));
        let tally = same().next().map_or_else(Arc::default, |s| Arc::clone(&s.standing.tally));
        let seat = |(id, at): (usize, SocketAddr)| {
            let known = same().find(|s| s.address == Some(at));
            let fresh = || Standing::new(Addresses::new(&at.ip().to_string(), at.port()), Arc::clone(&tally));
            let standing = known.map_or_else(|| Arc::new(fresh()), |s| Arc::clone(&s.standing));
            Self { id, rules: name.clone(), address: Some(at), standing, credit: AtomicI64::new(0) }
        };
        at.map(seat).collect()
    }

    /// Whether requests for it go where those for `rules` go; weights and limits may differ.
    fn is_at(&self, rules: &ServerRules) -> bool {
        let place = |r: &ServerRules| (r.tls, r.port);
        place(&self.rules) == place(rules) && self.rules.host == rules.host && self.rules.prefix == rules.prefix
    }

    /// Whether these rules, which name one place to look, name its place.
    pub fn is_one_of(&self, pool: &PoolRules) -> bool {
        pool.servers.first().is_some_and(|name| self.is_at(name))
    }

    /// Usable and below its limit.
    pub fn open(&self, now: Moment) -> bool {
        self.standing.usable(now) && self.standing.has_room(self.rules.max_concurrent)
    }

    /// Takes a place, if there is one; whether it is a trial.
    pub fn enter(&self, now: Moment) -> Option<bool> {
        self.standing.enter(now, self.rules.max_concurrent)
    }

    /// Value of `Host`: the name of the rules, with the port unless it is the scheme's own.
    pub fn host(&self) -> String {
        let ServerRules { tls, port, .. } = self.rules;
        let host = in_url(&self.rules.host);
        if port == if tls { 443 } else { 80 } { host.into_owned() } else { format!("{host}:{port}") }
    }

    /// Name for SNI; empty without TLS.
    pub fn sni(&self) -> String {
        if self.rules.tls { bare(&self.rules.host).to_owned() } else { String::new() }
    }

    /// A snapshot for operators.
    pub fn status(&self, now: Moment) -> ServerStatus {
        let Tally { ejections, key_alarms, usage_alarms } = &*self.standing.tally;
        ServerStatus {
            name: name(&self.rules),
            address: self.address,
            group: self.rules.group,
            usable: self.standing.usable(now),
            why_not: self.standing.why_not(now),
            resting_models: self.standing.quotas.resting(now),
            in_flight: self.standing.in_flight(),
            max_concurrent: self.rules.max_concurrent,
            first_byte_micros: self.standing.pace(now),
            ejections: ejections.load(Ordering::Relaxed),
            key_alarms: key_alarms.load(Ordering::Relaxed),
            usage_alarms: usage_alarms.load(Ordering::Relaxed),
        }
    }
}

impl Members {
    /// Of these servers; more than [`MOST_SERVERS`] are not used.
    pub fn of(mut servers: Vec<Server>) -> Self {
        servers.truncate(MOST_SERVERS);
        servers.sort_by_key(|s| s.rules.group);
        let mut groups = Vec::new();
        let mut start = 0;
        for group in servers.chunk_by(|a, b| a.rules.group == b.rules.group) {
            groups.push(start..start + group.len());
            start += group.len();
        }
        let names: Vec<String> =
            servers.iter().map(|s| s.address.map_or_else(|| name(&s.rules), |at| at.to_string())).collect();
        let ring = Ring::of(names.iter().map(String::as_str).zip(servers.iter().map(|s| s.rules.weight)));
        Self { servers: servers.into(), groups: groups.into(), ring, turning: Mutex::new(()) }
    }
}

/// What operators call it.
fn name(rules: &ServerRules) -> String {
    format!("{}:{}{}", in_url(&rules.host), rules.port, rules.prefix)
}

/// A host with the brackets that URLs put around IPv6.
fn in_url(host: &str) -> Cow<'_, str> {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]").into() } else { host.into() }
}
