//! Who may come in, and for how long: the accept loop.
//!
//! Pingora's own `Server` is not used: it gives every service a runtime of its own, sleeps the whole grace period on SIGTERM even
//! when idle, dies of SIGHUP, and has no place to bound connections per address or the time a request head may take
//! (`notes/pingora.md` §4, H7). Its listeners' TLS, its HTTP/1 and HTTP/2 sessions and its proxy are.

use pingora::apps::ServerApp;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{ALPN, GetSocketDigest, SocketDigest, Stream};
use pingora::server::ShutdownWatch;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

/// Limits of the door.
#[derive(Clone, Copy, Debug)]
pub struct DoorLimits {
    /// Open connections of one address.
    pub per_ip: usize,
    /// Open connections altogether.
    pub total: usize,
    /// From connecting (or the end of keep-alive) to a whole request head.
    pub head: Duration,
    /// How long an idle kept-alive connection may wait.
    pub keep_alive: Duration,
}

/// Everyone who is inside, by peer address.
#[derive(Default)]
pub struct Guests {
    open: Mutex<HashMap<SocketAddr, Arc<Guest>>>,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    count: AtomicUsize,
}

/// One connection.
#[derive(Default)]
struct Guest {
    head_seen: AtomicBool,
}

/// A place inside; leaving gives it back.
struct Place {
    guests: Arc<Guests>,
    peer: SocketAddr,
}

impl Guests {
    fn enter(self: &Arc<Self>, peer: SocketAddr, limits: &DoorLimits) -> Option<(Place, Arc<Guest>)> {
        let ip = peer.ip();
        {
            let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let here = per_ip.entry(ip).or_insert(0);
            if *here >= limits.per_ip || self.count.load(Ordering::Relaxed) >= limits.total {
                if *here == 0 {
                    per_ip.remove(&ip);
                }
                return None;
            }
            *here += 1;
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        let guest = Arc::new(Guest::default());
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, Arc::clone(&guest));
        Some((Place { guests: Arc::clone(self), peer }, guest))
    }

    /// The request head of this peer is complete: its deadline is over. Called first thing in every request.
    pub fn head_seen(&self, peer: SocketAddr) {
        if let Some(guest) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&peer) {
            guest.head_seen.store(true, Ordering::Relaxed);
        }
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ip = self.peer.ip();
        self.guests.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.peer);
        let mut per_ip = self.guests.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = per_ip.get_mut(&ip) {
            *here -= 1;
            if *here == 0 {
                per_ip.remove(&ip);
            }
        }
        self.guests.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An application behind a door.
pub struct Door<A> {
    /// The application.
    pub app: Arc<A>,
    /// Everyone inside.
    pub guests: Arc<Guests>,
    /// Limits.
    pub limits: DoorLimits,
    /// TLS, when configured.
    pub tls: Option<Arc<pingora::listeners::tls::Acceptor>>,
}

/// Reads certificate and key. The error is a sentence.
pub fn tls(cert: &str, key: &str) -> Result<Arc<pingora::listeners::tls::Acceptor>, String> {
    // Pingora's builder panics on some unreadable files: look first, so that the operator gets a sentence.
    for path in [cert, key] {
        std::fs::read(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    }
    let mut settings =
        TlsSettings::intermediate(cert, key).map_err(|e| format!("listen.tls: {cert} and {key} do not fit: {e}"))?;
    settings.enable_h2();
    Ok(Arc::new(settings.build()))
}

impl<A: ServerApp + Send + Sync + 'static> Door<A> {
    /// Lets guests in until `shutdown` turns true, then stops accepting; those inside are served on.
    pub async fn run(self: Arc<Self>, listener: TcpListener, mut shutdown: ShutdownWatch) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            let (tcp, peer) = match accepted {
                Ok(pair) => pair,
                Err(e) => {
                    // Out of file descriptors, most likely: accepting again at once would spin.
                    tracing::error!(error = %e, "accept failed");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Some((place, guest)) = self.guests.enter(peer, &self.limits) else { continue };
            let (door, shutdown) = (Arc::clone(&self), shutdown.clone());
            tokio::spawn(async move {
                let _place = place;
                let _ = tcp.set_nodelay(true);
                let stream = L4Stream::from(tcp);
                let handshake = tokio::time::timeout(door.limits.head, door.greet(stream, peer));
                if let Ok(Some(stream)) = handshake.await {
                    door.host(stream, &guest, &shutdown).await;
                }
            });
        }
    }

    async fn greet(&self, stream: L4Stream, peer: SocketAddr) -> Option<Stream> {
        let mut stream = stream;
        let digest = SocketDigest::from_raw_fd(std::os::fd::AsRawFd::as_raw_fd(&stream));
        let _ = digest.peer_addr.set(Some(pingora::protocols::l4::socket::SocketAddr::Inet(peer)));
        stream.set_socket_digest(digest);
        match &self.tls {
            None => Some(Box::new(stream)),
            Some(acceptor) => match acceptor.tls_handshake(stream).await {
                Ok(stream) => Some(Box::new(stream)),
                Err(e) => {
                    tracing::debug!(error = %e, "TLS handshake failed");
                    None
                }
            },
        }
    }

    /// One request after the other on an HTTP/1 connection; all of them at once on an HTTP/2 one.
    async fn host(&self, stream: Stream, guest: &Guest, shutdown: &ShutdownWatch) {
        let mut next = Some(stream);
        let mut wait = self.limits.head;
        while let Some(stream) = next.take() {
            let multiplexed = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
            guest.head_seen.store(multiplexed, Ordering::Relaxed);
            next = tokio::select! {
                reusable = self.app.process_new(stream, shutdown) => reusable,
                // Dropping the exchange closes the connection: there is no request yet that could be answered.
                () = head_overdue(guest, wait) => None,
            };
            wait = self.limits.keep_alive + self.limits.head;
        }
    }
}

/// Resolves when no whole request head arrived in time; never once one has.
async fn head_overdue(guest: &Guest, wait: Duration) {
    tokio::time::sleep(wait).await;
    if guest.head_seen.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}
