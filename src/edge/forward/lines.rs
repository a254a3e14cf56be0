//! Connections to backends, and those that wait for the next request.
//!
//! HTTP/1 connections wait here and not in Pingora's pool: at 0.9.1 that one has a task sit on every idle connection, and a
//! request that comes before the task of the last one is gone finds the connection taken ("failed to acquire reusable
//! stream") and makes another: under load about every second one did. Here nobody sits on them; a connection is looked at
//! when it is taken, and one that its backend has closed, or on which something came unasked, is not used. HTTP/2
//! connections are Pingora's.

use crate::edge::outlet::Outlet;
use pingora::connectors::http::Connector;
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Http1;
use pingora::upstreams::peer::{HttpPeer, Peer};
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Idle connections to one backend. More than that are needed only in a burst.
const MOST_IDLE: usize = 256;
/// Replies above [`HELD_FREELY`] that are held at the same time; the next one waits for its turn.
const LARGE_REPLIES: usize = 4;
/// What a reply that is held whole may take without asking, in bytes.
pub(in crate::edge) const HELD_FREELY: usize = 32 * 1024 * 1024;

/// Ways to every backend.
pub struct Lines {
    connector: Connector,
    /// By the peer's reuse hash; the newest last.
    idle: Mutex<HashMap<u64, Vec<Idle>>>,
    /// Places for large replies.
    large: Arc<Semaphore>,
}

struct Idle {
    stream: Stream,
    until: Instant,
}

impl Default for Lines {
    fn default() -> Self {
        Self { connector: Connector::new(None), idle: Mutex::default(), large: Arc::new(Semaphore::new(LARGE_REPLIES)) }
    }
}

impl Lines {
    /// A connection to `peer` that has served before and waits.
    pub fn waiting(&self, peer: &HttpPeer) -> Option<Box<HttpSession>> {
        let stream = self.take(peer)?;
        Some(Box::new(HttpSession::H1(Http1::new_with_options(stream, peer))))
    }

    /// Another one, and whether it has served before: those of HTTP/2 may have.
    pub async fn open(&self, peer: &HttpPeer) -> pingora::Result<(Box<HttpSession>, bool)> {
        let (session, reused) = self.connector.get_http_session(peer).await?;
        Ok((Box::new(session), reused))
    }

    /// A connection whose reply was read to its end. It waits at most `keep` for the next request, if the backend allows.
    pub async fn release(&self, session: Box<HttpSession>, peer: &HttpPeer, keep: Duration) {
        match *session {
            HttpSession::H1(mut session) => {
                session.respect_keepalive();
                // One that is not kept says goodbye first, and over TLS that is a write.
                if let Some(stream) = session.reuse().await {
                    self.put(peer, Outlet::to_backend(stream), keep);
                }
            }
            other => self.connector.release_http_session(other, peer, Some(keep)).await,
        }
    }

    /// A place for a large reply, when there is one. It is free again when it is dropped.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.large).acquire_owned().await.ok()
    }

    /// Closes connections that have waited long enough, for ever. Taking one looks at its time as well; this is for backends that
    /// are not asked any more.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            drop(self.expired(Instant::now()));
        }
    }

    fn take(&self, peer: &HttpPeer) -> Option<Stream> {
        let key = peer.reuse_hash();
        loop {
            let Idle { mut stream, until } = self.idle().get_mut(&key)?.pop()?;
            if Instant::now() < until && is_quiet(&mut stream) {
                return Some(stream);
            }
        }
    }

    fn put(&self, peer: &HttpPeer, stream: Stream, keep: Duration) {
        let Some(until) = Instant::now().checked_add(keep) else { return };
        let mut idle = self.idle();
        let waiting = idle.entry(peer.reuse_hash()).or_default();
        if waiting.len() < MOST_IDLE {
            waiting.push(Idle { stream, until });
        }
    }

    /// Takes out what has waited long enough; dropping it closes it, outside the lock.
    fn expired(&self, now: Instant) -> Vec<Idle> {
        let mut over = Vec::new();
        self.idle().retain(|_, waiting| {
            over.extend(waiting.extract_if(.., |idle| idle.until <= now));
            !waiting.is_empty()
        });
        over
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing came on it, not even its end.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    // Without tokio's budget, whose end would look like silence.
    let read = pin!(tokio::task::unconstrained(stream.read(&mut byte)));
    matches!(read.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use pingora::http::RequestHeader;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const KEEP: Duration = Duration::from_secs(60);

    async fn listen() -> (TcpListener, HttpPeer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        (listener, peer)
    }

    async fn get(lines: &Lines, peer: &HttpPeer) -> pingora::Result<(Box<HttpSession>, bool)> {
        match lines.waiting(peer) {
            Some(session) => Ok((session, true)),
            None => lines.open(peer).await,
        }
    }

    /// One exchange, answered with `reply`; whether its connection had served before.
    async fn exchange(lines: &Lines, peer: &HttpPeer, backend: &mut TcpStream, reply: &str, keep: Duration) -> bool {
        let (mut session, reused) = get(lines, peer).await.unwrap();
        session.write_request_header(Box::new(RequestHeader::build("GET", b"/", None).unwrap())).await.unwrap();
        session.finish_request_body().await.unwrap();
        let mut asked = [0; 64];
        assert!(backend.read(&mut asked).await.unwrap() > 0);
        backend.write_all(reply.as_bytes()).await.unwrap();
        session.read_response_header().await.unwrap();
        while session.read_response_body().await.unwrap().is_some() {}
        lines.release(session, peer, keep).await;
        reused
    }

    /// A line that has served once and waits, with the backend's end of it.
    async fn waiting(keep: Duration, reply: &str) -> (Lines, TcpListener, HttpPeer, TcpStream) {
        let (listener, peer) = listen().await;
        let lines = Lines::default();
        let opening = get(&lines, &peer);
        let (opened, accepted) = tokio::join!(opening, listener.accept());
        let (mut backend, (mut session, reused)) = (accepted.unwrap().0, opened.unwrap());
        assert!(!reused);
        session.write_request_header(Box::new(RequestHeader::build("GET", b"/", None).unwrap())).await.unwrap();
        session.finish_request_body().await.unwrap();
        let mut asked = [0; 64];
        assert!(backend.read(&mut asked).await.unwrap() > 0);
        backend.write_all(reply.as_bytes()).await.unwrap();
        session.read_response_header().await.unwrap();
        while session.read_response_body().await.unwrap().is_some() {}
        lines.release(session, &peer, keep).await;
        (lines, listener, peer, backend)
    }

    #[tokio::test]
    async fn a_connection_serves_again_and_again_at_once() {
        let (lines, _listener, peer, mut backend) = waiting(KEEP, OK).await;
        for i in 0..50 {
            assert!(exchange(&lines, &peer, &mut backend, OK, KEEP).await, "{i}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_spoken_on_or_kept_too_long_is_not_used() {
        let (lines, _listener, peer, backend) = waiting(KEEP, OK).await;
        drop(backend);
        assert!(!used_after_a_while(&lines, &peer).await, "closed by its backend");

        let (lines, _listener, peer, mut backend) = waiting(KEEP, OK).await;
        backend.write_all(OK.as_bytes()).await.unwrap();
        assert!(!used_after_a_while(&lines, &peer).await, "an answer nobody asked for");

        let (lines, _listener, peer, _backend) = waiting(Duration::ZERO, OK).await;
        assert!(!get(&lines, &peer).await.unwrap().1, "kept too long");

        let closing = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        let (lines, _listener, peer, _backend) = waiting(KEEP, closing).await;
        assert!(!get(&lines, &peer).await.unwrap().1, "its backend closes it");

        let more = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok HTTP/1.1 200 OK\r\n\r\n";
        let (lines, _listener, peer, _backend) = waiting(KEEP, more).await;
        assert!(!get(&lines, &peer).await.unwrap().1, "more than one answer came");
    }

    /// Looks until the kernel has told what the backend did; gives up when nothing changes.
    async fn used_after_a_while(lines: &Lines, peer: &HttpPeer) -> bool {
        for _ in 0..100 {
            let (session, reused) = get(lines, peer).await.unwrap();
            if !reused {
                return false;
            }
            // Put back as it was.
            let HttpSession::H1(session) = *session else { panic!("HTTP/1 only") };
            lines.put(peer, session.into_inner(), KEEP);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    #[tokio::test]
    async fn what_waits_too_long_is_closed_though_nobody_asks() {
        let (lines, _listener, _peer, mut backend) = waiting(Duration::from_secs(5), OK).await;
        assert!(lines.expired(Instant::now()).is_empty(), "not yet");
        drop(lines.expired(Instant::now() + Duration::from_secs(6)));
        assert_eq!(backend.read(&mut [0; 8]).await.unwrap(), 0, "closed");
        assert!(lines.idle().is_empty());
    }

    #[tokio::test]
    async fn a_burst_leaves_no_more_connections_than_are_kept() {
        let (lines, listener, peer, _backend) = waiting(KEEP, OK).await;
        let mut ends = Vec::new();
        for _ in 0..MOST_IDLE + 3 {
            let (stream, accepted) =
                tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            ends.push(accepted.unwrap().0);
            lines.put(&peer, Box::new(pingora::protocols::l4::stream::Stream::from(stream.unwrap())), KEEP);
        }
        assert_eq!(lines.idle().values().map(Vec::len).sum::<usize>(), MOST_IDLE);
    }
}
