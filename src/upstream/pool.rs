//! A pool: servers that serve the same models, and which of them takes the next request.

use super::discover::{Discovery, Resolve};
use super::picked::Picked;
use super::profile::{self, KeyStyle, Profile};
use super::queue::{Joined, Line};
use super::select::Affinity;
use super::server::{Members, Server, ServerStatus};
use super::standing::Moment;
use crate::ids::{PoolName, UpstreamModel};
use crate::rules::plan::{self, PoolRules, Timeouts};
use crate::surface::Surface;
use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue};
use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Servers under one set of rules.
#[derive(Debug)]
pub struct Pool {
    pub(super) rules: Arc<PoolRules>,
    profile: &'static Profile,
    /// Header of the operator's key; the value is marked sensitive, so `Debug` does not show it.
    key: Option<(HeaderName, HeaderValue)>,
    /// The same on the vendor's own surface, where that differs.
    native_key: Option<(HeaderName, HeaderValue)>,
    pub(super) members: ArcSwap<Members>,
    pub(super) line: Arc<Line>,
    discovery: Option<Discovery>,
    next_id: AtomicUsize,
    turn: AtomicU64,
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

/// What `/status` says about a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Whether a request would find a server: offers are made only then.
    pub available: bool,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// Requests that had to wait so far.
    pub waits: u64,
    /// Requests that found the queue full, or waited too long.
    pub refused: u64,
    /// Every server, by group.
    pub servers: Vec<ServerStatus>,
}

impl Pool {
    pub(super) fn build(
        rules: &Arc<PoolRules>,
        previous: Option<&Arc<Self>>,
        resolver: &Arc<dyn Resolve>,
    ) -> Result<Arc<Self>, String> {
        let profile = profile::lookup(&rules.profile)
            .ok_or_else(|| format!("profile: {:?} is none of {}", rules.profile, profile::NAMES.join(", ")))?;
        let wrong = |e| format!("api_key: {e}");
        let key = read_key(rules, &profile.key).map_err(wrong)?;
        let native_key = profile.native_key.as_ref().map(|style| read_key(rules, style)).transpose().map_err(wrong)?;
        if let Some(same) = previous.filter(|p| p.rules == *rules && p.key == key) {
            return Ok(Arc::clone(same));
        }
        let none = Arc::default();
        let kept = previous.map_or_else(|| none, |p| p.members.load_full());
        let members = match rules.discovery {
            plan::Discovery::Listed => {
                Members::of(rules.servers.iter().enumerate().map(|(id, r)| Server::listed(id, r, &kept)).collect())
            }
            // Those that were found so far, until the first look says more.
            plan::Discovery::Dns => {
                let so_far = kept.servers.iter().filter(|s| s.is_one_of(rules));
                found(rules, so_far.filter_map(|s| s.address), &kept, |n| n)
            }
        };
        if let Some(previous) = previous {
            for server in &members.servers {
                if previous.key != key {
                    server.standing.key_changed();
                }
                if previous.rules.health != rules.health {
                    server.standing.checks_changed();
                }
            }
        }
        let name = rules.servers.first().filter(|_| rules.discovery == plan::Discovery::Dns);
        Ok(Arc::new(Self {
            rules: Arc::clone(rules),
            profile,
            key,
            native_key: native_key.flatten(),
            next_id: AtomicUsize::new(members.servers.iter().map(|s| s.id + 1).max().unwrap_or(0)),
            members: ArcSwap::from_pointee(members),
            line: previous.map_or_else(Arc::default, |p| Arc::clone(&p.line)),
            discovery: name.map(|name| Discovery::of(name, Arc::clone(resolver))),
            turn: AtomicU64::new(0),
        }))
    }

    /// The server that takes the next request by the pool's `balance`, among those that are usable, below their
    /// `max_concurrent` and not in `tried` (what [`Picked::index`] said). `None`: nobody. Does not look at who waits: a request
    /// that may wait comes by [`Self::wait`].
    pub fn pick(self: &Arc<Self>, key: Affinity, tried: &[usize]) -> Option<Picked> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let members = self.members.load_full();
        let (position, trial) = members.enter(self.rules.balance, key, tried, turn, Moment::now())?;
        Some(Picked::new(Arc::clone(self), members, position, trial))
    }

    /// As [`Self::pick`], unless others wait: nobody goes past them.
    pub fn pick_now(self: &Arc<Self>, key: Affinity, tried: &[usize]) -> Option<Picked> {
        (self.line.length() == 0).then(|| self.pick(key, tried)).flatten()
    }

    /// Whether a request that comes now would be placed without waiting.
    pub fn has_room(&self) -> bool {
        let now = Moment::now();
        self.line.length() == 0 && self.members.load().servers.iter().any(|s| s.open(now))
    }

    /// As [`Self::pick`]; when every server that is usable and not in `tried` is at its limit, waits in the pool's short queue,
    /// first come, first served, for as long as its `wait_seconds`. Dropping the future leaves the queue.
    pub async fn wait(self: &Arc<Self>, key: Affinity, tried: &[usize]) -> Result<Picked, Unplaced> {
        if let Some(picked) = self.pick_now(key, tried) {
            return Ok(picked);
        }
        if !self.could_place(tried) {
            return Err(Unplaced::Nobody);
        }
        let queue = &self.rules.queue;
        let full = Unplaced::Full { retry_after_seconds: queue.wait_seconds.clamp(1, 60) };
        let mut place = match self.line.join(self, key, tried) {
            Joined::Placed(picked) => return Ok(picked),
            Joined::Full => return Err(full),
            Joined::Waits(place) => place,
        };
        match tokio::time::timeout(Duration::from_secs(queue.wait_seconds), place.turn()).await {
            Ok(placed) => placed.ok_or(Unplaced::Nobody),
            Err(_) => {
                self.line.refused.fetch_add(1, Ordering::Relaxed);
                Err(full)
            }
        }
    }

    /// Whether there is a usable server that is not in `tried`, busy or not.
    pub fn could_place(&self, tried: &[usize]) -> bool {
        let now = Moment::now();
        self.members.load().servers.iter().any(|s| s.standing.usable(now) && !tried.contains(&s.id))
    }

    /// Whether a request would find a server now: an offer is made only then, and a payment taken. A pool that is busy for
    /// a moment is available: the request waits its turn. One whose queue is full is not: it answers 503 with `Retry-After`
    /// before any challenge, because whoever paid now might be sent away.
    pub fn available(&self) -> bool {
        self.available_by(|_| true)
    }

    /// The same for one model, by the name that it has here.
    pub fn available_for(&self, model: &UpstreamModel) -> bool {
        let now = Moment::now();
        self.available_by(|s| !s.standing.quotas.rests(model.as_str(), now))
    }

    /// Which of its servers are not to be asked for `model` now, as a beginning of what [`Self::pick`] is not to try.
    pub fn resting(&self, model: &UpstreamModel) -> Vec<usize> {
        let now = Moment::now();
        let members = self.members.load();
        members.servers.iter().filter(|s| s.standing.quotas.rests(model.as_str(), now)).map(|s| s.id).collect()
    }

    fn available_by(&self, serves: impl Fn(&Server) -> bool) -> bool {
        let now = Moment::now();
        let members = self.members.load();
        let mut busy = members.servers.iter().filter(|s| s.standing.usable(now) && serves(s)).peekable();
        busy.peek().is_some() && (self.line.length() < self.rules.queue.length || busy.any(|s| s.open(now)))
    }

    /// The pool that takes over when [`Self::wait`] finds nobody here.
    pub fn fallback(&self) -> Option<&PoolName> {
        self.rules.fallback.as_ref()
    }

    /// Whether its servers can be asked this.
    pub fn serves(&self, surface: Surface) -> bool {
        self.profile.ability.surfaces.contains(&surface) || self.rules.surfaces.contains(&surface)
    }

    /// Whether its servers can be asked this, for so many choices at once.
    pub fn takes(&self, surface: Surface, stream: bool, choices: u64) -> bool {
        self.serves(surface) && self.profile.ability.choices_of(surface, stream).is_none_or(|most| choices <= most)
    }

    /// Its name in the rules.
    pub fn name(&self) -> &PoolName {
        &self.rules.name
    }

    /// Which of its servers takes the next request.
    pub fn balance(&self) -> plan::Balance {
        self.rules.balance
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

    /// What a request for `path` carries beside its body: the key as this surface takes it, and what goes with it. Never log
    /// the values.
    pub fn key_lines(&self, path: &str) -> Vec<(HeaderName, HeaderValue)> {
        let style = self.profile.key_style(path);
        let own = self.profile.native_key.as_ref().is_some_and(|native| std::ptr::eq(native, style));
        let key = if own { &self.native_key } else { &self.key };
        let beside =
            style.beside.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        beside.chain(key.clone()).collect()
    }

    /// How long an idle connection to a server may be reused.
    pub fn reuse_for(&self) -> Duration {
        Duration::from_secs(self.profile.reuse_seconds)
    }

    /// A snapshot of every server, by group.
    pub fn status(&self) -> Vec<ServerStatus> {
        let now = Moment::now();
        self.members.load().servers.iter().map(|s| s.status(now)).collect()
    }

    /// A snapshot of the whole.
    pub fn overview(&self) -> PoolStatus {
        PoolStatus {
            available: self.available(),
            waiting: self.line.length(),
            waits: self.line.waits.load(Ordering::Relaxed),
            refused: self.line.refused.load(Ordering::Relaxed),
            servers: self.status(),
        }
    }

    /// Whether it is time to look who is behind the name of its rules.
    pub(super) fn look_due(&self, now: Moment) -> bool {
        self.discovery.as_ref().is_some_and(|discovery| discovery.due(now))
    }

    /// Whether it has yet to find out who its servers are.
    pub(super) fn is_unseen(&self) -> bool {
        self.discovery.is_some() && self.members.load().servers.is_empty()
    }

    /// Looks who is behind the name of its rules. Those that stay keep everything, those that left finish what runs on them.
    pub(super) async fn look(&self) {
        let Some(discovery) = &self.discovery else { return };
        let changed = |addresses: &[SocketAddr]| {
            let kept = self.members.load_full();
            let id = |_| self.next_id.fetch_add(1, Ordering::Relaxed);
            let members = found(&self.rules, addresses.iter().copied(), &kept, id);
            tracing::info!(pool = %self.rules.name, servers = members.servers.len(), "found servers behind the name");
            self.members.store(Arc::new(members));
        };
        if let Err(problem) = discovery.look(changed).await {
            tracing::warn!(pool = %self.rules.name, problem, "the name of a pool does not resolve");
        }
        self.line.move_up();
    }

    /// How to connect to one of its servers now.
    pub(super) async fn peer(&self, server: &Server) -> io::Result<HttpPeer> {
        let address = server.standing.addresses.next().await?;
        let mut peer = HttpPeer::new(address, server.rules.tls, server.sni());
        let connect = Some(Duration::from_secs(self.rules.timeouts.connect_seconds));
        peer.options.connection_timeout = connect;
        peer.options.total_connection_timeout = connect;
        // HTTP/2 only where TLS negotiates it: no plaintext backend of ours asks for prior knowledge.
        peer.options.alpn = if server.rules.tls { ALPN::H2H1 } else { ALPN::H1 };
        Ok(peer)
    }
}

/// The members behind a name, of which those in `kept` keep their ids.
fn found(
    rules: &PoolRules,
    addresses: impl Iterator<Item = SocketAddr>,
    kept: &Members,
    new_id: impl Fn(usize) -> usize,
) -> Members {
    let Some(name) = rules.servers.first() else { return Members::default() };
    let known = |address| kept.servers.iter().find(|s| s.address == Some(address)).map(|s| s.id);
    let seated = addresses.enumerate().map(|(n, address)| (known(address).unwrap_or_else(|| new_id(n)), address));
    let seated = Server::found(seated, name, kept);
    Members::of(seated)
}

fn read_key(rules: &PoolRules, style: &KeyStyle) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let Some(place) = &rules.api_key else { return Ok(None) };
    let secret = place.read()?;
    let mut text = zeroize::Zeroizing::new(style.prefix.as_bytes().to_vec());
    text.extend_from_slice(secret.expose());
    let mut value = HeaderValue::from_bytes(&text).map_err(|_| format!("{place} does not fit into a header"))?;
    value.set_sensitive(true);
    Ok(Some((HeaderName::from_static(style.header), value)))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
pub(crate) mod tests;
