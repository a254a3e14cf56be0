//! `pools.toml`: servers, and how to treat them.

use crate::ids::PoolName;
use crate::origin::{Origin, normal_path};
use crate::rules::plan::{ServerRules, Timeouts};
use crate::secret::SecretRef;
use crate::written::{Said, Section, Spot, Value, plain_name};
use std::collections::BTreeSet;

/// Longest wait that is still a wait: a day.
const DAY_SECONDS: u64 = 86_400;

/// `[pool.…]`.
#[derive(Debug)]
pub struct PoolEntry {
    /// The key.
    pub name: Said<PoolName>,
    /// Profile.
    pub profile: Option<Said<String>>,
    /// Servers.
    pub servers: Vec<ServerRules>,
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
    s.later("dns", "list the servers");
    s.later("fallback", "a pool that fails answers 503");
    if let Some(value) = s.take("balance") {
        let later = ["round-robin", "consistent", "prefix"];
        match value.text() {
            Some("least-outstanding") | None => {}
            Some(text) if later.contains(&text) => {
                value.wrong(format!("{text:?} is not in this build: \"least-outstanding\""))
            }
            Some(_) => drop(value.word(&[("least-outstanding", ())])),
        }
    }
    PoolEntry {
        name: at.said(PoolName::from(name)),
        profile: s.need("profile").and_then(|v| Some(v.said(v.text()?.to_owned()))),
        servers: s.need("servers").and_then(|v| servers(&v)).unwrap_or_default(),
        api_key: s.take("api_key").and_then(|v| v.secret()),
        health: s.take("health").and_then(|v| health(&v.section()?)),
        timeouts: s.take("timeouts").and_then(|v| timeouts(&v.section()?)).unwrap_or_default(),
    }
}

fn servers(value: &Value<'_>) -> Option<Vec<ServerRules>> {
    let list = value.list()?;
    if list.is_empty() {
        value.wrong("a pool has at least one server");
    }
    let mut seen = BTreeSet::new();
    let mut servers = Vec::new();
    for item in &list {
        let Some((origin, weight)) = server(item) else { continue };
        if !seen.insert(origin.clone()) {
            item.wrong("is in this pool already; a larger share is a weight");
        }
        let Origin { tls, host, port, prefix } = origin;
        servers.push(ServerRules { tls, host, port, prefix, weight, group: 0, max_concurrent: None });
    }
    Some(servers)
}

/// `"http://host:8000"` or `{ url = "http://host:8000", weight = 2 }`.
fn server(item: &Value<'_>) -> Option<(Origin, u32)> {
    if !item.is_table() {
        return Some((address(item)?, 1));
    }
    let s = item.section()?;
    s.later("group", "servers of a pool are equal");
    let weight = s.take("weight").map_or(Some(1), |v| v.count(1..=1000));
    let origin = s.need("url").and_then(|v| address(&v));
    Some((origin?, u32::try_from(weight?).ok()?))
}

/// A reload must not be able to point the gate at the metadata service of the machine it runs on
/// (`notes/security.md` H11).
fn address(value: &Value<'_>) -> Option<Origin> {
    value.read(|text| match Origin::parse(text) {
        Ok(origin) if origin.is_link_local() => Err("is an address of this link only, where metadata services live"),
        other => other,
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
