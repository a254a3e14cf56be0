//! A pool: servers that serve the same models, and which of them takes the next request.

use super::profile::{self, Profile};
use super::resolve::bare;
use super::server::{Server, ServerStatus};
use crate::ids::PoolName;
use crate::rules::plan::{PoolRules, Timeouts};
use http::{HeaderName, HeaderValue};
use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Servers under one set of rules.
#[derive(Debug)]
pub struct Pool {
    pub(super) rules: Arc<PoolRules>,
    profile: &'static Profile,
    /// Header of the operator's key; the value is marked sensitive, so `Debug` does not show it.
    key: Option<(HeaderName, HeaderValue)>,
    pub(super) servers: Arc<[Server]>,
    turn: AtomicUsize,
}

impl Pool {
    pub(super) fn build(rules: &Arc<PoolRules>, previous: Option<&Arc<Self>>) -> Result<Arc<Self>, String> {
        let profile = profile::lookup(&rules.profile)
            .ok_or_else(|| format!("profile: {:?} is none of {}", rules.profile, profile::NAMES.join(", ")))?;
        let key = read_key(rules, profile).map_err(|e| format!("api_key: {e}"))?;
        if let Some(same) = previous.filter(|p| p.rules == *rules && p.key == key) {
            return Ok(Arc::clone(same));
        }
        let servers = match previous.filter(|p| p.rules.servers == rules.servers && p.rules.health == rules.health) {
            Some(kept) => {
                if kept.key != key {
                    kept.servers.iter().for_each(Server::key_changed);
                }
                Arc::clone(&kept.servers)
            }
            None => rules.servers.iter().map(Server::new).collect(),
        };
        Ok(Arc::new(Self { rules: Arc::clone(rules), profile, key, servers, turn: AtomicUsize::new(0) }))
    }

    /// The server with the least to do, by requests in flight per weight, among those that are usable and not in
    /// `tried` (indexes of [`Picked::index`]). Equals take turns. `None`: nobody is left.
    pub fn pick(self: &Arc<Self>, _key: Affinity, tried: &[usize]) -> Option<Picked> {
        self.pick_at(tried, Instant::now())
    }

    /// As [`Self::pick`]; when every server that is usable and not in `tried` is at its `max_concurrent`, waits for a place in
    /// the pool's short queue, first come, first served. Dropping the future leaves the queue.
    pub async fn wait(self: &Arc<Self>, key: Affinity, tried: &[usize]) -> Result<Picked, Unplaced> {
        self.pick(key, tried).ok_or(Unplaced::Nobody)
    }

    /// The pool that takes over when [`Self::wait`] finds nobody here.
    pub fn fallback(&self) -> Option<&PoolName> {
        self.rules.fallback.as_ref()
    }

    fn pick_at(self: &Arc<Self>, tried: &[usize], now: Instant) -> Option<Picked> {
        let count = self.servers.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(count)?;
        let mut order: Vec<(usize, &Server)> = self
            .servers
            .iter()
            .enumerate()
            .cycle()
            .skip(first)
            .take(count)
            .filter(|(i, _)| !tried.contains(i))
            .collect();
        // Stable, so equals keep their turn. a/b < c/d is compared as a*d < c*b: exact, no float.
        order.sort_by(|(_, a), (_, b)| {
            let load = |s: &Server, other: &Server| {
                u64::try_from(s.in_flight()).unwrap_or(u64::MAX).saturating_mul(u64::from(other.rules.weight.max(1)))
            };
            load(a, b).cmp(&load(b, a))
        });
        order.into_iter().find_map(|(index, server)| {
            let trial = server.enter(now)?;
            Some(Picked { pool: Arc::clone(self), index, open_trial: AtomicBool::new(trial) })
        })
    }

    /// Whether a request would find a server now: an offer is made only then.
    pub fn available(&self) -> bool {
        let now = Instant::now();
        self.servers.iter().any(|server| server.usable(now))
    }

    /// Its name in the rules.
    pub fn name(&self) -> &PoolName {
        &self.rules.name
    }

    /// How its servers speak.
    pub fn profile(&self) -> &'static Profile {
        self.profile
    }

    /// Waits of the rules.
    pub fn timeouts(&self) -> &Timeouts {
        &self.rules.timeouts
    }

    /// The operator's key as the header that carries it. Never log the value.
    pub fn key(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.key.as_ref()
    }

    /// How long an idle connection to a server may be reused.
    pub fn reuse_for(&self) -> Duration {
        Duration::from_secs(self.profile.reuse_seconds)
    }

    /// A snapshot of every server, in the order of the rules.
    pub fn status(&self) -> Vec<ServerStatus> {
        self.servers.iter().map(Server::status).collect()
    }

    /// How to connect to server `index` now.
    pub(super) async fn peer(&self, index: usize) -> io::Result<HttpPeer> {
        let server = self.servers.get(index).ok_or(io::ErrorKind::NotFound)?;
        let address = server.addresses.next().await?;
        let sni = if server.rules.tls { bare(&server.rules.host).to_owned() } else { String::new() };
        let mut peer = HttpPeer::new(address, server.rules.tls, sni);
        let connect = Some(Duration::from_secs(self.rules.timeouts.connect_seconds));
        peer.options.connection_timeout = connect;
        peer.options.total_connection_timeout = connect;
        // HTTP/2 only where TLS negotiates it: no plaintext backend of ours asks for prior knowledge.
        peer.options.alpn = if server.rules.tls { ALPN::H2H1 } else { ALPN::H1 };
        Ok(peer)
    }

    /// Value of `Host` for server `index`: the name of the rules, with the port unless it is the scheme's own.
    pub(super) fn host(&self, index: usize) -> String {
        self.servers.get(index).map_or_else(String::new, |server| {
            let rules = &server.rules;
            if rules.port == if rules.tls { 443 } else { 80 } {
                rules.host.clone()
            } else {
                format!("{}:{}", rules.host, rules.port)
            }
        })
    }

    /// Path prefix of server `index`.
    pub(super) fn prefix(&self, index: usize) -> &str {
        self.servers.get(index).map_or("", |server| &server.rules.prefix)
    }
}

fn read_key(rules: &PoolRules, profile: &Profile) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let Some(place) = &rules.api_key else { return Ok(None) };
    let secret = place.read()?;
    let mut text = zeroize::Zeroizing::new(profile.key_prefix.as_bytes().to_vec());
    text.extend_from_slice(secret.expose());
    let mut value = HeaderValue::from_bytes(&text).map_err(|_| format!("{place} does not fit into a header"))?;
    value.set_sensitive(true);
    Ok(Some((HeaderName::from_static(profile.key_header), value)))
}

/// What keeps the requests of one kind together: requests with the same key go to the same server where the rules of the
/// pool say so (`balance = "consistent"` or `"prefix"`), and the key is not looked at elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity(pub Option<u64>);

impl Affinity {
    /// Any server will do.
    pub const NONE: Self = Self(None);
}

/// Why [`Pool::wait`] found no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// None is usable, or those that are were tried.
    Nobody,
    /// All are at their limit, and the queue is full or the wait was over.
    Full {
        /// When to come again.
        retry_after_seconds: u64,
    },
}

/// A server chosen for one request. The request counts as running on it until this is dropped, and whatever is found
/// out about the server on the way is told here.
#[derive(Debug)]
#[must_use = "dropping it says that the request is over"]
pub struct Picked {
    pool: Arc<Pool>,
    index: usize,
    open_trial: AtomicBool,
}

impl Picked {
    /// Which server of the pool, for the `tried` list of [`Pool::pick`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// How to connect: address resolved now, SNI and timeouts from the rules.
    pub async fn peer(&self) -> io::Result<HttpPeer> {
        self.pool.peer(self.index).await
    }

    /// Value of `Host`.
    pub fn host(&self) -> String {
        self.pool.host(self.index)
    }

    /// What stands before the path of the request; usually empty.
    pub fn prefix(&self) -> &str {
        self.pool.prefix(self.index)
    }

    /// A connection stands: whatever rest the server had is over.
    pub fn connected(&self) {
        self.open_trial.store(false, Ordering::Relaxed);
        if let Some(server) = self.server() {
            server.connected();
        }
    }

    /// No connection could be made, its name did not resolve, or TLS failed: the server rests.
    pub fn connect_failed(&self) {
        self.open_trial.store(false, Ordering::Relaxed);
        if let Some(server) = self.server() {
            server.connect_failed(Instant::now());
        }
    }

    /// It answered 401, 402 or 403: our key is wrong, revoked or out of funds there. The server rests for 30 s, and
    /// the alarm counter of its status rises.
    pub fn eject_for_auth(&self) {
        if let Some(server) = self.server() {
            server.key_refused(Instant::now());
            tracing::error!(pool = %self.pool.rules.name, server = %self.host(), "the backend refused our own key");
        }
    }

    /// The head of its answer came after `waited` (of the request's being sent). 429 and 5xx count against it, everything
    /// else for it; `retry_after`, as the backend asked for with a 429 or 503, rests it that long, at most 60 s. A request that was
    /// sent and never answered is told as 502 (lost) or 504 (late).
    pub fn answered(&self, status: u16, waited: Duration, retry_after: Option<Duration>) {
        let _ = (status, waited, retry_after);
    }

    /// Its usage was such as cannot be: an alarm in status and metrics.
    pub fn absurd_usage(&self) {
        tracing::error!(pool = %self.pool.rules.name, server = %self.host(), "the backend reported usage that cannot be");
    }

    fn server(&self) -> Option<&Server> {
        self.pool.servers.get(self.index)
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if let Some(server) = self.pool.servers.get(self.index) {
            server.leave(self.open_trial.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::Pools;
    use super::*;
    use crate::rules::plan::{Balance, Discovery, Queue, ServerRules};
    use crate::secret::SecretRef;
    use std::collections::BTreeMap;

    pub(crate) fn rules(servers: &[(u16, u32)]) -> PoolRules {
        PoolRules {
            name: PoolName::from("p"),
            profile: "vllm".into(),
            servers: servers
                .iter()
                .map(|&(port, weight)| ServerRules {
                    tls: false,
                    host: "127.0.0.1".into(),
                    port,
                    prefix: String::new(),
                    weight,
                    group: 0,
                    max_concurrent: None,
                })
                .collect(),
            discovery: Discovery::Listed,
            balance: Balance::default(),
            queue: Queue::default(),
            fallback: None,
            api_key: None,
            health: None,
            timeouts: Timeouts::default(),
        }
    }

    fn pools(rules: PoolRules, previous: Option<&Pools>) -> Result<Pools, Vec<String>> {
        Pools::build(&BTreeMap::from([(rules.name.clone(), Arc::new(rules))]), previous)
    }

    pub(crate) fn pool(rules: PoolRules) -> Arc<Pool> {
        Arc::clone(pools(rules, None).unwrap().get(&PoolName::from("p")).unwrap())
    }

    #[test]
    fn the_server_with_the_least_to_do_takes_the_next_request() {
        for (weights, picks, want, why) in [
            (vec![1, 1, 1], 6, vec![2, 2, 2], "equals share"),
            (vec![1, 3], 8, vec![2, 6], "by weight"),
            (vec![1], 3, vec![3], "alone"),
        ] {
            let p = pool(rules(&weights.iter().map(|&w| (1, w)).collect::<Vec<_>>()));
            let held: Vec<_> = (0..picks).map(|_| p.pick(Affinity::NONE, &[]).unwrap()).collect();
            assert_eq!(p.servers.iter().map(Server::in_flight).collect::<Vec<_>>(), want, "{why}");
            drop(held);
            assert!(p.servers.iter().all(|s| s.in_flight() == 0), "a finished request is not counted: {why}");
        }
    }

    #[test]
    fn idle_equals_take_turns() {
        let p = pool(rules(&[(1, 1), (2, 1)]));
        let picks: Vec<usize> = (0..4).map(|_| p.pick(Affinity::NONE, &[]).unwrap().index()).collect();
        assert_eq!(picks, [0, 1, 0, 1]);
    }

    #[test]
    fn a_tried_or_resting_server_is_passed_over_and_a_pool_of_such_is_not_available() {
        let p = pool(rules(&[(1, 1), (2, 1)]));
        assert_eq!(p.pick(Affinity::NONE, &[0]).unwrap().index(), 1);
        assert!(p.pick(Affinity::NONE, &[0, 1]).is_none());
        p.pick(Affinity::NONE, &[1]).unwrap().connect_failed();
        assert!(p.available());
        assert!((0..4).all(|_| p.pick(Affinity::NONE, &[]).unwrap().index() == 1));
        p.pick(Affinity::NONE, &[]).unwrap().eject_for_auth();
        assert!(!p.available() && p.pick(Affinity::NONE, &[]).is_none());
        assert!(pool(rules(&[])).pick(Affinity::NONE, &[]).is_none(), "no servers at all");
    }

    #[test]
    fn a_reload_keeps_an_unchanged_pool_with_everything_it_knows() {
        let name = PoolName::from("p");
        let first = pools(rules(&[(1, 1)]), None).unwrap();
        let held = first.get(&name).unwrap().pick(Affinity::NONE, &[]).unwrap();
        held.connect_failed();
        let same = pools(rules(&[(1, 1)]), Some(&first)).unwrap();
        assert!(Arc::ptr_eq(first.get(&name).unwrap(), same.get(&name).unwrap()));

        let mut slower = rules(&[(1, 1)]);
        slower.timeouts.idle_seconds = 7;
        let kept = pools(slower, Some(&first)).unwrap();
        let kept = kept.get(&name).unwrap();
        assert_eq!(kept.timeouts().idle_seconds, 7);
        assert_eq!((kept.status()[0].in_flight, kept.available()), (1, false), "same servers, same state");

        let other = pools(rules(&[(2, 1)]), Some(&first)).unwrap();
        assert!(other.get(&name).unwrap().available(), "another server starts afresh");
    }

    #[test]
    fn a_new_key_is_read_on_reload_and_forgives_the_refusal_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let mut r = rules(&[(1, 1)]);
        r.api_key = Some(SecretRef::File(path.to_str().unwrap().to_owned()));
        std::fs::write(&path, "canary-old\n").unwrap();
        let first = pools(r.clone(), None).unwrap();
        let name = PoolName::from("p");
        first.get(&name).unwrap().pick(Affinity::NONE, &[]).unwrap().eject_for_auth();
        assert!(!format!("{first:?}").contains("canary"), "a key cannot be printed");
        std::fs::write(&path, "new\n").unwrap();
        let second = pools(r, Some(&first)).unwrap();
        let second = second.get(&name).unwrap();
        assert_eq!(second.key().unwrap().1, "Bearer new");
        assert!(second.available());
    }

    #[test]
    fn a_pool_that_left_the_rules_is_still_found_by_the_requests_that_began_under_them() {
        let named = |name: &str, port| PoolRules { name: PoolName::from(name), ..rules(&[(port, 1)]) };
        let (p, q) = (PoolName::from("p"), PoolName::from("q"));
        let first = pools(named("p", 1), None).unwrap();
        let was = first.get(&p).unwrap().pick(Affinity::NONE, &[]).unwrap();
        let renamed = pools(named("q", 1), Some(&first)).unwrap();
        assert!(Arc::ptr_eq(renamed.get(&p).unwrap(), first.get(&p).unwrap()), "under its old name");
        assert_eq!(renamed.get(&q).unwrap().status()[0].in_flight, 1, "the new name is the same servers");
        assert_eq!(renamed.iter().count(), 1, "only the live one is checked and shown");
        drop(was);
        let moved = pools(named("q", 2), Some(&renamed)).unwrap();
        assert_eq!(moved.get(&q).unwrap().status()[0].name, "127.0.0.1:2", "a name that is live means the live pool");
        let back = pools(named("p", 1), Some(&moved)).unwrap();
        assert!(Arc::ptr_eq(back.get(&p).unwrap(), first.get(&p).unwrap()), "one that comes back is what it was");
        assert!(back.get(&PoolName::from("r")).is_none());
    }

    #[test]
    fn every_mistake_of_every_pool_is_said_at_once_without_the_secret() {
        let mut unknown = rules(&[(1, 1)]);
        unknown.profile = "tgi".into();
        let mut keyless = rules(&[(1, 1)]);
        keyless.name = PoolName::from("q");
        keyless.api_key = Some(SecretRef::File("/nonexistent".into()));
        let all = [unknown, keyless].map(|r| (r.name.clone(), Arc::new(r)));
        let mistakes = Pools::build(&BTreeMap::from(all), None).unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[0].starts_with("pools.toml: pool.p.profile:"), "{mistakes:?}");
        assert!(mistakes[1].starts_with("pools.toml: pool.q.api_key:"), "{mistakes:?}");
    }

    #[tokio::test]
    async fn the_name_of_the_rules_is_kept_in_host_and_sni_whatever_address_it_has() {
        for (tls, host, port, want_host, want_sni) in [
            (true, "localhost", 443, "localhost", "localhost"),
            (true, "localhost", 8443, "localhost:8443", "localhost"),
            (false, "localhost", 80, "localhost", ""),
            (false, "[::1]", 8000, "[::1]:8000", ""),
        ] {
            let mut r = rules(&[(port, 1)]);
            r.servers[0].tls = tls;
            r.servers[0].host = host.into();
            let picked = pool(r).pick(Affinity::NONE, &[]).unwrap();
            let peer = picked.peer().await.unwrap();
            assert_eq!((picked.host().as_str(), peer.sni.as_str()), (want_host, want_sni));
            assert_eq!(peer.is_tls(), tls);
        }
    }
}
