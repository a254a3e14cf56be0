//! `pools.toml`: servers, and how to treat them.

use crate::ids::PoolName;
use crate::origin::{Origin, normal_path};
use crate::rules::entry::route::surface;
use crate::rules::plan::{Balance, Discovery, Queue, ServerRules, Surface, Timeouts};
use crate::secret::SecretRef;
use crate::written::{Said, Section, Spot, Value, plain_name};
use std::collections::BTreeSet;

/// Longest wait that is still a wait: a day.
const DAY_SECONDS: u64 = 86_400;
/// Most servers of a pool.
const MOST_SERVERS: usize = 1024;

/// `[pool.…]`.
#[derive(Debug)]
pub struct PoolEntry {
    /// The key.
    pub name: Said<PoolName>,
    /// Profile.
    pub profile: Option<Said<String>>,
    /// What they have beside what the profile says.
    pub surfaces: Vec<Surface>,
    /// Servers, or the one name behind which they are.
    pub servers: Vec<ServerRules>,
    /// Which of the two.
    pub discovery: Discovery,
    /// Who takes the next request.
    pub balance: Balance,
    /// Who may wait.
    pub queue: Queue,
    /// Another pool.
    pub fallback: Option<Said<PoolName>>,
    /// Bearer key.
    pub api_key: Option<SecretRef>,
    /// Health checks, when asked for.
    pub health: Option<HealthEntry>,
    /// Waits.
    pub timeouts: Timeouts,
}

/// `health = { … }`.
#[derive(Debug)]
pub struct HealthEntry {
    /// The table.
    pub spot: Spot,
    /// Path; absent: the profile's own.
    pub path: Option<String>,
    /// Period.
    pub every_seconds: u64,
}

/// Reads one pool.
pub(super) fn read<'p>(name: &'p str, at: &Value<'p>, s: Section<'p>) -> PoolEntry {
    if let Err(why) = plain_name(name) {
        at.wrong(format!("{name:?} {why}"));
    }
    let limit = s.take("max_concurrent").and_then(|v| limit(&v));
    let (discovery, mut servers) = match s.take("dns") {
        Some(name) => {
            if let Some(listed) = s.take("servers") {
                listed.wrong("are found behind the name that `dns` says; write one of the two");
            }
            (Discovery::Dns, address(&name).map(|origin| server_at(origin, 1, 0, None, None)).into_iter().collect())
        }
        None => (Discovery::Listed, s.need("servers").and_then(|v| servers(&v)).unwrap_or_default()),
    };
    servers.iter_mut().for_each(|server| server.max_concurrent = server.max_concurrent.or(limit));
    let queue = s.take("queue").and_then(|v| {
        if servers.iter().all(|server| server.max_concurrent.is_none()) {
            v.wrong("nobody ever waits in it: no server has a max_concurrent");
        }
        queue(&v.section()?)
    });
    PoolEntry {
        name: at.said(PoolName::from(name)),
        profile: s.need("profile").and_then(|v| Some(v.said(v.text()?.to_owned()))),
        surfaces: s.take("surfaces").and_then(|v| surfaces(&v)).unwrap_or_default(),
        servers,
        discovery,
        balance: s.take("balance").and_then(|v| v.word(&BALANCES)).unwrap_or_default(),
        queue: queue.unwrap_or_default(),
        fallback: s.take("fallback").and_then(|v| Some(v.said(PoolName::from(v.text()?)))),
        api_key: s.take("api_key").and_then(|v| v.secret()),
        health: s.take("health").and_then(|v| health(&v.section()?)),
        timeouts: s.take("timeouts").and_then(|v| timeouts(&v.section()?)).unwrap_or_default(),
    }
}

/// What `balance` may say.
const BALANCES: [(&str, Balance); 4] = [
    ("least-outstanding", Balance::LeastOutstanding),
    ("round-robin", Balance::RoundRobin),
    ("consistent", Balance::Consistent),
    ("prefix", Balance::Prefix),
];

fn surfaces(value: &Value<'_>) -> Option<Vec<Surface>> {
    let list = value.list()?;
    Some(list.iter().filter_map(surface).collect())
}

fn servers(value: &Value<'_>) -> Option<Vec<ServerRules>> {
    let list = value.list()?;
    if list.is_empty() {
        value.wrong("a pool has at least one server");
    }
    if list.len() > MOST_SERVERS {
        value.wrong(format!("a pool has at most {MOST_SERVERS} servers"));
    }
    let mut seen = BTreeSet::new();
    let mut servers = Vec::new();
    for item in &list {
        let Some((origin, server)) = server(item) else { continue };
        if !seen.insert(origin) {
            item.wrong("is in this pool already; a larger share is a weight");
        }
        servers.push(server);
    }
    Some(servers)
}

/// `"http://host:8000"` or `{ url = "http://host:8000", weight = 2, group = 1, max_concurrent = 8, name = "worker-7" }`.
fn server(item: &Value<'_>) -> Option<(Origin, ServerRules)> {
    if !item.is_table() {
        let origin = address(item)?;
        return Some((origin.clone(), server_at(origin, 1, 0, None, None)));
    }
    let s = item.section()?;
    let weight = s.take("weight").map_or(Some(1), |v| v.count(1..=1000));
    let group = s.take("group").map_or(Some(0), |v| v.count(0..=99));
    let limit = s.take("max_concurrent").and_then(|v| limit(&v));
    let name = s.take("name").and_then(|v| v.read(|text| plain_name(text).map(str::to_owned)));
    let origin = s.need("url").and_then(|v| address(&v));
    let (weight, group) = (u32::try_from(weight?).ok()?, u32::try_from(group?).ok()?);
    let origin = origin?;
    Some((origin.clone(), server_at(origin, weight, group, limit, name)))
}

fn server_at(
    origin: Origin,
    weight: u32,
    group: u32,
    max_concurrent: Option<u32>,
    name: Option<String>,
) -> ServerRules {
    let Origin { tls, host, port, prefix } = origin;
    ServerRules { name, tls, host, port, prefix, weight, group, max_concurrent }
}

fn limit(value: &Value<'_>) -> Option<u32> {
    value.count(1..=1_000_000).and_then(|n| u32::try_from(n).ok())
}

fn queue(s: &Section<'_>) -> Option<Queue> {
    let usual = Queue::default();
    let length = s.take("length").map_or(u64::try_from(usual.length).ok(), |v| v.count(0..=100_000));
    let wait = s.take("wait_seconds").map_or(Some(usual.wait_seconds), |v| v.count(1..=DAY_SECONDS));
    Some(Queue { length: usize::try_from(length?).ok()?, wait_seconds: wait? })
}

/// A reload must not be able to point the gate at the metadata service of the machine it runs on.
fn address(value: &Value<'_>) -> Option<Origin> {
    value.read(|text| match Origin::parse(text) {
        Ok(origin) if origin.is_link_local() => {
            Err("is an address of this link only, where metadata services live".to_owned())
        }
        // As vendors write their base URL. Nothing there would answer, and payers would have paid for that.
        Ok(origin) if origin.prefix.ends_with("/v1") => {
            let text = text.trim_end_matches('/');
            Err(format!(
                "ends in /v1, and /v1/… is what is asked there: write {:?}",
                text.strip_suffix("/v1").unwrap_or(text)
            ))
        }
        other => other.map_err(str::to_owned),
    })
}

fn health(s: &Section<'_>) -> Option<HealthEntry> {
    let path = s.take("path").map(|v| v.read(|text| normal_path(text).map(str::to_owned)));
    let every = s.take("every_seconds").map_or(Some(5), |v| v.count(1..=3600));
    let path = match path {
        Some(path) => Some(path?),
        None => None,
    };
    Some(HealthEntry { spot: s.spot().clone(), path, every_seconds: every? })
}

fn timeouts(s: &Section<'_>) -> Option<Timeouts> {
    let usual = Timeouts::default();
    let wait = |key, usual| s.take(key).map_or(Some(usual), |v| v.count(1..=DAY_SECONDS));
    let (connect, first_byte) =
        (wait("connect_seconds", usual.connect_seconds), wait("first_byte_seconds", usual.first_byte_seconds));
    let (idle, total) = (wait("idle_seconds", usual.idle_seconds), wait("total_seconds", usual.total_seconds));
    let waits = Timeouts {
        connect_seconds: connect?,
        first_byte_seconds: first_byte?,
        idle_seconds: idle?,
        total_seconds: total?,
    };
    for (key, part) in [
        ("connect_seconds", waits.connect_seconds),
        ("first_byte_seconds", waits.first_byte_seconds),
        ("idle_seconds", waits.idle_seconds),
    ] {
        if part > waits.total_seconds {
            s.wrong(format!("{key} ({part}) is more than total_seconds ({})", waits.total_seconds));
        }
    }
    Some(waits)
}
