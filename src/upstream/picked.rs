//! A server chosen for one request: what the one who uses it needs to know, and what it tells in return.

use super::pool::Pool;
use super::server::{Members, Server};
use super::standing::Moment;
use crate::ids::UpstreamModel;
use pingora::upstreams::peer::HttpPeer;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A server chosen for one request. The request counts as running on it until this is dropped, and whatever is found
/// out about the server on the way is told here.
#[derive(Debug)]
#[must_use = "dropping it says that the request is over"]
pub struct Picked {
    pool: Arc<Pool>,
    /// As they were when it was chosen: a server that leaves the pool finishes what runs on it.
    members: Arc<Members>,
    position: usize,
    open_trial: AtomicBool,
}

impl Picked {
    pub(super) fn new(pool: Arc<Pool>, members: Arc<Members>, position: usize, trial: bool) -> Self {
        Self { pool, members, position, open_trial: AtomicBool::new(trial) }
    }

    /// Which server of the pool, for the `tried` list of [`Pool::pick`]. The same server keeps it as long as this pool is
    /// used, whoever joins or leaves meanwhile.
    pub fn index(&self) -> usize {
        self.server().map_or(usize::MAX, |server| server.id)
    }

    /// How to connect: address resolved now, SNI and timeouts from the rules.
    pub async fn peer(&self) -> io::Result<HttpPeer> {
        self.pool.peer(self.server().ok_or(io::ErrorKind::NotFound)?).await
    }

    /// Value of `Host`.
    pub fn host(&self) -> String {
        self.server().map_or_else(String::new, Server::host)
    }

    /// What stands before the path of the request; usually empty.
    pub fn prefix(&self) -> &str {
        self.server().map_or("", |server| &server.rules.prefix)
    }

    /// A connection stands: a rest for want of one is over.
    pub fn connected(&self) {
        if let Some(server) = self.server()
            && server.standing.connected()
        {
            self.open_trial.store(false, Ordering::Relaxed);
        }
    }

    /// No connection could be made, its name did not resolve, or TLS failed: the server rests.
    pub fn connect_failed(&self) {
        self.open_trial.store(false, Ordering::Relaxed);
        if let Some(server) = self.server() {
            self.rests("no connection", server.standing.connect_failed(Moment::now()));
        }
    }

    /// The head of its answer to a request for `model` came after `waited` (of the request's being sent). 5xx counts against it: five
    /// in a row rest it, as does one with `retry_after` (what the backend asked for, at most 60 s of it). 429 does the same to the
    /// model alone. Everything else counts for it. A request that was sent and never answered is told as 502 (lost) or 504 (late).
    pub fn answered(&self, model: &UpstreamModel, status: u16, waited: Duration, retry_after: Option<Duration>) {
        let Some(server) = self.server() else { return };
        let now = Moment::now();
        if status == 429 {
            // As a trial of the server it decides nothing.
            if let Some(rest) = server.standing.quotas.refused(model.as_str(), now, retry_after) {
                server.standing.tally.ejections.fetch_add(1, Ordering::Relaxed);
                let (pool, seconds) = (&self.pool.rules.name, rest.as_secs());
                tracing::warn!(%pool, server = %self.host(), model = model.as_str(), seconds, "a model of a server rests");
            }
            return;
        }
        self.open_trial.store(false, Ordering::Relaxed);
        if matches!(status, 500..=599) {
            self.rests("its answers", server.standing.answered_badly(now, retry_after));
            return;
        }
        if matches!(status, 200..=299) {
            server.standing.heard(waited, now);
            server.standing.quotas.served(model.as_str(), now);
        }
        server.standing.answered_well(now);
    }

    /// It answered 401, 402 or 403, and not for what this one request asks: our key is wrong, revoked or out of funds there. The server rests for 30 s, and
    /// the alarm counter of its status rises.
    pub fn eject_for_auth(&self) {
        if let Some(server) = self.server() {
            server.standing.key_refused(Moment::now());
            tracing::error!(pool = %self.pool.rules.name, server = %self.host(), "the backend refused our own key");
        }
    }

    /// Who this is, for what is found out after the request has left it.
    pub fn who(&self) -> Who {
        Who { pool: Arc::clone(&self.pool), members: Arc::clone(&self.members), position: self.position }
    }

    fn rests(&self, why: &str, rest: Option<Duration>) {
        if let Some(rest) = rest {
            let seconds = rest.as_secs();
            tracing::warn!(pool = %self.pool.rules.name, server = %self.host(), why, seconds, "a server rests");
        }
    }

    fn server(&self) -> Option<&Server> {
        self.members.servers.get(self.position)
    }
}

/// The server that a request was on.
#[derive(Clone, Debug)]
pub struct Who {
    pool: Arc<Pool>,
    members: Arc<Members>,
    position: usize,
}

impl Who {
    /// What receipts call it: its name in the rules, else its place in its pool. Never its address.
    pub fn name(&self) -> String {
        let named = self.server().and_then(|server| server.rules.name.clone());
        named.unwrap_or_else(|| format!("{}-{}", self.pool.rules.name, self.position.saturating_add(1)))
    }

    /// Its usage was such as cannot be: an alarm in status and metrics. It goes on serving.
    pub fn absurd_usage(&self) {
        if let Some(server) = self.server() {
            server.standing.tally.usage_alarms.fetch_add(1, Ordering::Relaxed);
            tracing::error!(pool = %self.pool.rules.name, server = %server.host(), "the backend reported usage that cannot be");
        }
    }

    fn server(&self) -> Option<&Server> {
        self.members.servers.get(self.position)
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if let Some(server) = self.server() {
            server.standing.leave(self.open_trial.load(Ordering::Relaxed));
            self.pool.line.move_up();
        }
    }
}
