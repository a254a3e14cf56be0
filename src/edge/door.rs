//! Who may come in, and for how long: the accept loop.
//!
//! Pingora's own `Server` is not used: it gives every service a runtime of its own, sleeps the whole grace period on SIGTERM even
//! when idle, dies of SIGHUP, and has no place to bound connections per address or the time a request head may take. Its
//! listeners' TLS, its HTTP/1 and HTTP/2 sessions and its proxy are.

use super::outlet::Outlet;
use crate::clock::UnixSeconds;
use arc_swap::ArcSwap;
use pingora::apps::ServerApp;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora::server::ShutdownWatch;
use prometheus::IntCounter;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Between two words in the log about refused connections.
const QUIET_SECONDS: u64 = 60;

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

/// Whom limits see in an address: an IPv4 address, however it is written, or the /64 network of an IPv6 one, because whoever has
/// one address of such a network has all of them.
pub fn neighbourhood(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// Everyone who is inside, by peer address.
#[derive(Default)]
pub struct Guests {
    open: Mutex<HashMap<SocketAddr, Arc<Guest>>>,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    count: AtomicUsize,
}

/// What a connection is doing, as far as the door waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    FirstHead,
    /// At least one request is being served.
    Serving,
    /// The last request was answered, the next may come.
    NextHead,
}

/// One connection.
struct Guest(watch::Sender<Phase>);

/// A place inside; leaving gives it back.
struct Place {
    guests: Arc<Guests>,
    guest: Arc<Guest>,
    peer: SocketAddr,
}

impl Guests {
    fn enter(self: &Arc<Self>, peer: SocketAddr, limits: &DoorLimits) -> Option<Place> {
        let ip = neighbourhood(peer.ip());
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
        let guest = Arc::new(Guest(watch::Sender::new(Phase::FirstHead)));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, Arc::clone(&guest));
        Some(Place { guests: Arc::clone(self), guest, peer })
    }

    /// The request head of this peer is complete: its deadline is over. Called first thing in every request.
    pub fn head_seen(&self, peer: SocketAddr) {
        self.tell(peer, Phase::Serving);
    }

    /// The request of this peer is answered and its connection has no other: the deadline of the next head begins. Not for HTTP/2,
    /// whose idle connections Pingora closes.
    pub fn answered(&self, peer: SocketAddr) {
        self.tell(peer, Phase::NextHead);
    }

    fn tell(&self, peer: SocketAddr, phase: Phase) {
        if let Some(guest) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&peer) {
            guest.0.send_replace(phase);
        }
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ip = neighbourhood(self.peer.ip());
        {
            // A client that was reset and came again from the same port is another guest already.
            let mut open = self.guests.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.get(&self.peer).is_some_and(|guest| Arc::ptr_eq(guest, &self.guest)) {
                open.remove(&self.peer);
            }
        }
        let mut per_ip = self.guests.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = per_ip.get_mut(&ip) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                per_ip.remove(&ip);
            }
        }
        self.guests.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts who was not let in, and says so in the log once a minute at most: behind something that ends TLS all callers have one address,
/// and nobody else would tell.
pub struct Refused {
    count: IntCounter,
    silent_until: AtomicU64,
}

impl Refused {
    /// Counted there.
    pub fn new(count: IntCounter) -> Self {
        Self { count, silent_until: AtomicU64::new(0) }
    }

    fn count(&self, peer: SocketAddr, limits: &DoorLimits, now: UnixSeconds) -> bool {
        self.count.inc();
        let speak = self.silent_until.load(Ordering::Relaxed) <= now.0;
        if speak {
            self.silent_until.store(now.plus(QUIET_SECONDS).0, Ordering::Relaxed);
            let (per_ip, total) = (limits.per_ip, limits.total);
            let who = neighbourhood(peer.ip());
            tracing::warn!(address = %who, connections_per_ip = per_ip, connections = total, "a connection was refused: listen.limits");
        }
        speak
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
    /// Those who were not let in.
    pub refused: Refused,
    /// TLS, when configured; whoever comes next is greeted with what is in here then.
    pub tls: Option<Arc<ArcSwap<Acceptor>>>,
}

/// Reads certificate and key. The error is a sentence; Pingora's own builder would panic with it.
pub fn tls(cert: &str, key: &str) -> Result<Arc<Acceptor>, String> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| format!("listen.tls.cert: {cert} cannot be read: {e}"))?;
    if chain.is_empty() {
        return Err(format!("listen.tls.cert: {cert} holds no certificate"));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|e| format!("listen.tls.key: {key} cannot be read: {e}"))?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|e| format!("listen.tls: {cert} and {key} do not fit: {e}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(Acceptor::from_server_config(Arc::new(config))))
}

impl<A: ServerApp + Send + Sync + 'static> Door<A> {
    /// Lets guests in until `closed` turns true; those inside are served on. They are told to go when `stopping` turns true. Who comes after
    /// that has a voucher to show, and is not told: an HTTP/2 connection that begins with GOAWAY takes none.
    pub async fn run(self: Arc<Self>, listener: TcpListener, stopping: ShutdownWatch, mut closed: ShutdownWatch) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = closed.wait_for(|closed| *closed) => return,
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
            let Some(place) = self.guests.enter(peer, &self.limits) else {
                self.refused.count(peer, &self.limits, UnixSeconds::now());
                continue;
            };
            let (door, mut stopping) = (Arc::clone(&self), stopping.clone());
            stopping.mark_unchanged();
            tokio::spawn(async move {
                let _ = tcp.set_nodelay(true);
                let stream = L4Stream::from(tcp);
                let handshake = tokio::time::timeout(door.limits.head, Box::pin(door.greet(stream, peer)));
                if let Ok(Some(stream)) = handshake.await {
                    door.host(Box::new(Outlet::over(stream)), &place.guest, &stopping).await;
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
            Some(acceptor) => match acceptor.load_full().tls_handshake(stream).await {
                Ok(stream) => Some(Box::new(stream)),
                Err(e) => {
                    tracing::debug!(error = %e, "TLS handshake failed");
                    None
                }
            },
        }
    }

    /// One request after the other on an HTTP/1 connection; all of them at once on an HTTP/2 one. Pingora bounds the silence of the
    /// latter after its first request only: it waits for the preface without a timeout.
    async fn host(&self, stream: Stream, guest: &Guest, shutdown: &ShutdownWatch) {
        tokio::select! {
            // A head that is there is in time, however late we get to look.
            biased;
            _ = self.app.process_new(stream, shutdown) => {}
            // Dropping the exchange closes the connection: there is no request that could be answered.
            () = self.head_overdue(guest) => {}
        }
    }

    /// Resolves when no whole request head arrived in time.
    async fn head_overdue(&self, guest: &Guest) {
        let mut phase = guest.0.subscribe();
        loop {
            let now = *phase.borrow_and_update();
            let wait = match now {
                Phase::FirstHead => self.limits.head,
                Phase::NextHead => self.limits.keep_alive + self.limits.head,
                Phase::Serving => Duration::MAX,
            };
            if tokio::time::timeout(wait, phase.changed()).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMITS: DoorLimits =
        DoorLimits { per_ip: 2, total: 3, head: Duration::from_secs(1), keep_alive: Duration::from_secs(1) };

    fn peer(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_share_of_places_and_leaving_gives_one_back() {
        let guests = Arc::new(Guests::default());
        let enter = |from: &str| guests.enter(peer(from), &LIMITS);
        let first = enter("192.0.2.1:1");
        let second = enter("[::ffff:192.0.2.1]:2");
        assert!(first.is_some() && second.is_some());
        assert!(enter("192.0.2.1:3").is_none(), "however the address is written");
        drop(first);
        assert!(enter("192.0.2.1:3").is_some());
        let one = enter("[2001:db8::1]:1");
        let two = enter("[2001:db8::2]:1");
        assert!(one.is_some() && two.is_some() && enter("[2001:db8::3]:1").is_none(), "one network, one address");
        assert!(enter("192.0.2.7:1").is_none(), "the house is full");
        drop((second, one, two));
        assert_eq!((guests.count(), guests.per_ip.lock().unwrap().len(), guests.open.lock().unwrap().len()), (0, 0, 0));
    }

    #[test]
    fn a_client_that_comes_again_from_the_same_port_is_known_after_its_old_connection_ends() {
        let guests = Arc::new(Guests::default());
        let from = peer("192.0.2.1:1");
        let old = guests.enter(from, &LIMITS).unwrap();
        let new = guests.enter(from, &LIMITS).unwrap();
        drop(old);
        guests.head_seen(from);
        assert_eq!(*new.guest.0.borrow(), Phase::Serving, "or its request would be cut at the deadline of a head");
    }

    #[test]
    fn whoever_is_not_let_in_is_counted_and_told_of_once_a_minute() {
        let refused = Refused::new(IntCounter::new("refused", "refused").unwrap());
        let said: Vec<_> = [1_000, 1_001, 1_059, 1_060, 1_061]
            .map(|at| refused.count(peer("192.0.2.1:1"), &LIMITS, UnixSeconds(at)))
            .into_iter()
            .collect();
        assert_eq!(said, [true, false, false, true, false]);
        assert_eq!(refused.count.get(), 5);
    }

    /// An application that keeps its connection for ever.
    struct Patient;

    #[async_trait::async_trait]
    impl ServerApp for Patient {
        async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
            std::future::pending::<()>().await;
            Some(stream)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_head_of_a_connection_has_its_deadline_and_no_answer_has_one() {
        let from = peer("192.0.2.1:1");
        let hour = Duration::from_secs(3600);
        for (requests, answered, cut_after, why) in [
            (0, true, Some(1), "no first head"),
            (1, false, None, "an answer that takes its time"),
            (1, true, Some(2), "no second head after keep-alive"),
            (9, true, Some(2), "nor a tenth"),
        ] {
            let guests = Arc::new(Guests::default());
            let place = guests.enter(from, &LIMITS).unwrap();
            let refused = Refused::new(IntCounter::new("refused", "refused").unwrap());
            let door = Door { app: Arc::new(Patient), guests: Arc::clone(&guests), limits: LIMITS, refused, tls: None };
            let (_client, gate) = tokio::io::duplex(64);
            let (_stop, shutdown) = watch::channel(false);
            for request in 1..=requests {
                guests.head_seen(from);
                if answered || request < requests {
                    guests.answered(from);
                }
            }
            let began = tokio::time::Instant::now();
            let ended = tokio::time::timeout(hour, door.host(Box::new(gate), &place.guest, &shutdown)).await;
            let took = ended.is_ok().then(|| began.elapsed().as_secs());
            assert_eq!(took, cut_after, "{why}");
        }
    }
}
