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

/// A server chosen for one request. The request counts as running on it until this is dropped. Whether it can be connected to is told
/// here, and what it makes of the request to its [`Hearing`].
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

    /// It is about to be sent a request for `model`: after a rest of that model this one is its trial.
    pub fn tries(&self, model: &UpstreamModel) {
        if let Some(server) = self.server() {
            server.standing.quotas.tries(model.as_str(), Moment::now());
        }
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
            server.rests(&self.pool, "no connection", server.standing.connect_failed(Moment::now()));
        }
    }

    /// It was sent a request for `model`: what comes of that is told there. If this request is the trial after a rest, its verdict is.
    pub fn hear(&self, model: &UpstreamModel) -> Hearing {
        let open_trial = self.open_trial.swap(false, Ordering::Relaxed);
        Hearing { who: self.who(), model: model.clone(), open_trial, begun: false }
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
            server.standing.leave();
            if self.open_trial.load(Ordering::Relaxed) {
                server.standing.undecided();
            }
            self.pool.line.move_up();
        }
    }
}

/// What is to be found out about a server from what it makes of one request. It outlives the request's place on the server, for some
/// answers can only be judged when they have been read. Dropping it decides nothing: the client left, or what went wrong is not the
/// server's doing.
#[derive(Debug)]
#[must_use = "a server that is never told of is never rested"]
pub struct Hearing {
    who: Who,
    model: UpstreamModel,
    open_trial: bool,
    begun: bool,
}

impl Hearing {
    /// The first byte of the body of a stream came after `waited` (of the request's being sent).
    pub fn heard(&self, waited: Duration) {
        if let Some(server) = self.who.server() {
            server.standing.heard(waited, Moment::now());
        }
    }

    /// The first word of an answer of the right kind: the model is served, and a rest is over.
    pub fn began(&mut self) {
        if self.begun {
            return;
        }
        self.begun = true;
        if let Some(server) = self.who.server() {
            let now = Moment::now();
            self.open_trial = false;
            server.standing.quotas.served(self.model.as_str(), now);
            server.standing.begins_well(now);
            self.who.pool.line.move_up();
        }
    }

    /// Such an answer came to its proper end: nothing is held against the server any more.
    pub fn served(mut self) {
        self.began();
        self.works();
    }

    /// It refused this one request, and not for want of anything of its own (4xx): it works, and whether it serves the model is not known.
    pub fn declined(mut self) {
        self.open_trial = false;
        self.works();
    }

    /// It would not serve: 429, 5xx, or nonsense before the first word (told as 502). Five in a row rest the model that was asked for, on
    /// this server; so does one with `retry_after` (what the backend asked for, at most 60 s of it). What is not 429 counts against the
    /// server too, which rests when several models fail in a row.
    pub fn refused(mut self, status: u16, retry_after: Option<Duration>) {
        let Who { pool, .. } = &self.who;
        let Some(server) = self.who.server() else { return };
        let (now, model) = (Moment::now(), self.model.as_str());
        if let Some(rest) = server.standing.quotas.refused(model, now, retry_after) {
            server.standing.tally.ejections.fetch_add(1, Ordering::Relaxed);
            let (pool, seconds) = (&pool.rules.name, rest.as_secs());
            tracing::warn!(%pool, server = %server.host(), model, status, seconds, "a model of a server rests");
        }
        // As a trial of the server 429 decides nothing.
        if status != 429 {
            let rest = server.standing.failed(Some(model), now);
            self.open_trial &= rest.is_none();
            server.rests(pool, "its answers", rest);
        }
    }

    /// The connection was lost, its answer came too late, or broke off in the middle. Five in a row rest the server.
    pub fn lost(mut self) {
        if let Some(server) = self.who.server() {
            let rest = server.standing.failed(None, Moment::now());
            self.open_trial &= rest.is_none();
            server.rests(&self.who.pool, "lost answers", rest);
        }
    }

    fn works(&self) {
        if let Some(server) = self.who.server() {
            server.standing.answered_well(Moment::now());
        }
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        if let Some(server) = self.who.server() {
            if self.open_trial {
                server.standing.undecided();
            }
            // Whoever waits may be let in by what was found, or hopes in vain.
            self.who.pool.line.move_up();
        }
    }
}

impl Server {
    fn rests(&self, pool: &Pool, why: &str, rest: Option<Duration>) {
        if let Some(rest) = rest {
            let seconds = rest.as_secs();
            tracing::warn!(pool = %pool.rules.name, server = %self.host(), why, seconds, "a server rests");
        }
    }
}
