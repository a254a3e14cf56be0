//! Servers that are found behind a name: every address is one, and is asked for again and again.
//!
//! Membership is `Backends` of pingora-load-balancing with a discovery of ours: it says when the addresses changed and, when
//! the resolver fails, leaves them as they are. Its health checks and selectors are not used: a health value of its own per
//! address would stand beside what we know from the traffic, and its `Backend` is an address with a weight, which cannot tell
//! two servers of one address apart (two path prefixes) nor keep a key on a server whose address changed. Listed servers,
//! which are names, therefore do not go through it.

use super::server::MOST_SERVERS;
use super::standing::Moment;
use crate::origin::{bare, is_link_local};
use crate::rules::plan::ServerRules;
use async_trait::async_trait;
use pingora::lb::discovery::ServiceDiscovery;
use pingora::lb::{Backend, Backends};
use pingora::{Error, ErrorType};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the name is asked for.
const EVERY: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Turns a name into addresses.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// Every address of `host` now, with `port`. No address at all is as good as an error.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The resolver of the machine.
#[derive(Clone, Copy, Debug)]
pub struct System;

#[async_trait]
impl Resolve for System {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// One name and who was found behind it.
pub(super) struct Discovery {
    backends: Backends,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    due: Mutex<Moment>,
}

impl Discovery {
    pub fn of(name: &ServerRules, resolver: Arc<dyn Resolve>) -> Self {
        let name = Name { host: bare(&name.host).to_owned(), port: name.port, resolver };
        Self { backends: Backends::new(Box::new(name)), looking: tokio::sync::Mutex::default(), due: Mutex::default() }
    }

    /// Whether it is time to look; if so, the next time is a while later.
    pub fn due(&self, now: Moment) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let is = *due <= now;
        if is {
            *due = now.after(EVERY);
        }
        is
    }

    /// Looks, and tells when other addresses are found than the last time. Does nothing while another look is under way. The
    /// error is the resolver's; what was found before stands.
    pub async fn look(&self, changed: impl FnOnce(&[SocketAddr])) -> Result<(), String> {
        let Ok(_alone) = self.looking.try_lock() else { return Ok(()) };
        let told = |found: Arc<BTreeSet<Backend>>| {
            let addresses: Vec<_> = found.iter().filter_map(|backend| backend.addr.as_inet().copied()).collect();
            changed(&addresses);
        };
        let looked = tokio::time::timeout(PATIENCE, self.backends.update(told)).await;
        looked.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("due", &self.due).finish_non_exhaustive()
    }
}

struct Name {
    host: String,
    port: u16,
    resolver: Arc<dyn Resolve>,
}

#[async_trait]
impl ServiceDiscovery for Name {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let found = self.resolver.resolve(&self.host, self.port).await;
        let found = found.map_err(|e| Error::because(ErrorType::Custom("resolve"), "no address", e))?;
        // Whoever answers for the name must not be able to point the gate at its own machine's metadata.
        let found = found.into_iter().filter(|at| !is_link_local(at.ip()));
        // In order, so that which of too many are left out does not change from look to look.
        let found: BTreeSet<SocketAddr> = found.collect();
        let backend = |at: &SocketAddr| Backend::new(&at.to_string());
        let backends = found.iter().take(MOST_SERVERS).map(backend).collect::<pingora::Result<BTreeSet<_>>>()?;
        if backends.is_empty() {
            return Err(Error::explain(ErrorType::Custom("resolve"), "the name has no address"));
        }
        Ok((backends, HashMap::new()))
    }
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
