//! A server's name, turned into an address again and again.
//!
//! Backends move: a name resolved once at start pins one machine of a provider for ever. The name itself stays what it
//! is in `Host` and SNI.

use crate::origin::bare;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is used without asking again: short enough to follow a moved backend, long enough that a busy
/// gate does not ask per request.
const FRESH: Duration = Duration::from_secs(5);

/// The addresses behind one host and port.
#[derive(Debug)]
pub struct Addresses {
    host: String,
    port: u16,
    known: Mutex<Option<Known>>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Known {
    at: Instant,
    addresses: Vec<SocketAddr>,
}

impl Addresses {
    /// `host` is a name or an address; IPv6 may stand in brackets, as it does in URLs.
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: bare(host).to_owned(), port, known: Mutex::new(None), turn: AtomicUsize::new(0) }
    }

    /// Where to connect now. The same address until [`Self::distrust`] says otherwise, so that connections are reused.
    /// When the resolver fails, the last known addresses serve on: its hiccup must not take a pool down.
    pub async fn next(&self) -> io::Result<SocketAddr> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        if let Some(address) = self.pick(|known| known.at.elapsed() < FRESH) {
            return Ok(address);
        }
        match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => {
                let addresses: Vec<_> = found.collect();
                if !addresses.is_empty() {
                    *self.known.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Known { at: Instant::now(), addresses });
                }
                self.pick(|_| true).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
            }
            Err(e) => self.pick(|_| true).ok_or(e),
        }
    }

    /// The address just given could not be connected to: ask again, and start with the one after it.
    pub fn distrust(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            known.at = known.at.checked_sub(FRESH).unwrap_or(known.at);
        }
    }

    fn pick(&self, usable: impl Fn(&Known) -> bool) -> Option<SocketAddr> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|k| usable(k))?;
        let turn = self.turn.load(Ordering::Relaxed).checked_rem(known.addresses.len())?;
        known.addresses.get(turn).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_resolver_and_a_name_is_looked_up() {
        for (host, want) in [("127.0.0.1", "127.0.0.1:9"), ("[::1]", "[::1]:9"), ("::1", "[::1]:9")] {
            assert_eq!(Addresses::new(host, 9).next().await.unwrap(), want.parse().unwrap(), "{host}");
        }
        assert!(Addresses::new("localhost", 9).next().await.unwrap().ip().is_loopback());
    }

    #[tokio::test]
    async fn a_resolver_that_fails_leaves_the_last_known_addresses_in_use_in_turn() {
        let a = Addresses::new("no-such-host.invalid", 9);
        assert!(a.next().await.is_err(), "never known");
        let [one, two] = ["192.0.2.1:9", "192.0.2.2:9"].map(|s| s.parse().unwrap());
        *a.known.lock().unwrap() = Some(Known { at: Instant::now(), addresses: vec![one, two] });
        assert_eq!(a.next().await.unwrap(), one);
        assert_eq!(a.next().await.unwrap(), one, "the same until it fails, so that connections are reused");
        a.distrust();
        assert_eq!(a.next().await.unwrap(), two, "asked again without an answer, and moved on");
    }
}
