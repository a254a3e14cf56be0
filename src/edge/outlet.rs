//! The way out of a connection, where small writes that belong together leave in one system call, and the way in, where no read is large.
//!
//! Pingora writes the head of a reply and its body one after the other and flushes where an answer, or a part of it that
//! somebody waits for, is complete; its own listeners have a buffer for that, and the door is not one of them. Nothing is kept
//! back past a flush, or past the moment its owner turns to reading, with one exception: Pingora also flushes the head of a request
//! or of a stream by itself, and the pump has the first bytes of its body in hand. Such a flush waits for the next write or flush.

use async_trait::async_trait;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Most that waits. What is larger leaves at once.
const MOST: usize = 4096;

/// Most that one read takes. Pingora reads a body into a buffer of its own that lives as long as the exchange, and takes it out of
/// there after each read: only as much of it is ever touched.
const SIP: usize = 4 * 1024;

/// A connection whose small writes wait for a flush.
#[derive(Debug)]
pub struct Outlet {
    inner: Stream,
    /// Most that one read takes.
    sip: usize,
    /// A head was flushed and waits for what comes with it.
    head_is_due: bool,
    /// Not written yet. Takes no memory while nothing waits.
    waiting: Vec<u8>,
    /// How much of it is.
    written: usize,
}

impl Outlet {
    /// Over the connection of a client.
    pub fn over(inner: Stream) -> Self {
        Self { inner, sip: SIP, head_is_due: false, waiting: Vec::new(), written: 0 }
    }

    /// Over a connection to a backend, unless it is an outlet already. Its replies may be read in large pieces.
    pub fn to_backend(inner: Stream) -> Stream {
        if inner.as_any().is::<Self>() {
            return inner;
        }
        Box::new(Self { sip: usize::MAX, ..Self::over(inner) })
    }

    /// Whether the head of an HTTP/1 message waits, whole, and nothing else.
    fn holds_a_head(&self) -> bool {
        let is_begun = self.waiting.starts_with(b"HTTP/1.1 200") || self.waiting.starts_with(b"POST ");
        let end = || memchr::memmem::find(&self.waiting, b"\r\n\r\n");
        self.written == 0 && is_begun && end().is_some_and(|at| at + 4 == self.waiting.len())
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => self.written += more,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        self.waiting = Vec::new();
        self.written = 0;
        self.head_is_due = false;
        Poll::Ready(Ok(()))
    }

    fn has_room(&self, more: usize) -> bool {
        self.waiting.len().saturating_add(more) <= MOST
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.waiting.capacity() == 0 {
            self.waiting.reserve_exact(MOST);
        }
        self.waiting.extend_from_slice(bytes);
    }
}

impl AsyncRead for Outlet {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Whoever reads has said what he had to say. That it cannot leave now is for the next write or flush to tell.
        let _ = this.poll_empty(cx);
        if buf.remaining() <= this.sip {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(this.sip));
        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Outlet {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.has_room(buf.len()) {
            ready!(this.poll_empty(cx))?;
        }
        if !this.has_room(buf.len()) {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        }
        this.keep(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if !this.waiting.is_empty() && this.has_room(length) {
            bufs.iter().for_each(|buf| this.keep(buf));
            return Poll::Ready(Ok(length));
        }
        ready!(this.poll_empty(cx))?;
        // In one system call as it is.
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.head_is_due && this.holds_a_head() {
            this.head_is_due = true;
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_empty(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_empty(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Outlet {
    async fn shutdown(&mut self) {
        // A peer that is gone hears no goodbye.
        let _ = self.flush().await;
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

#[async_trait]
impl Peek for Outlet {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

impl UniqueID for Outlet {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Outlet {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Outlet {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Outlet {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        self.inner.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: pingora::protocols::raw_connect::ProxyDigest) {
        self.inner.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Outlet {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn what_is_written_waits_for_a_flush_or_a_read_and_stays_in_order() {
        let large = vec![b'x'; MOST + 1];
        for (parts, now, why) in [
            (vec![&b"head"[..], &b"body"[..]], 0, "small writes wait"),
            (vec![&b"head"[..], &large], 4 + MOST + 1, "a large one leaves, and first what waited"),
            (vec![&large[..MOST], &b"y"[..]], MOST, "no more waits than there is room"),
            (vec![&large, &b"tail"[..]], MOST + 1, "behind a large one a small one waits"),
        ] {
            for reads in [false, true] {
                let (gate, mut client) = tokio::io::duplex(1 << 20);
                let mut outlet = Outlet::over(Box::new(gate));
                for part in &parts {
                    outlet.write_all(part).await.unwrap();
                }
                let mut seen = vec![0; 1 << 16];
                let mut at = 0;
                while at < now {
                    at += client.read(&mut seen[at..]).await.unwrap();
                }
                assert_eq!(at, now, "{why}");
                let silence = tokio::time::timeout(Duration::from_millis(1), client.read(&mut seen[at..])).await;
                assert!(silence.is_err(), "{why}");
                match reads {
                    false => outlet.flush().await.unwrap(),
                    true => {
                        let next = tokio::time::timeout(Duration::from_millis(1), outlet.read_u8()).await;
                        assert!(next.is_err());
                    }
                }
                let all = parts.concat();
                while at < all.len() {
                    at += client.read(&mut seen[at..]).await.unwrap();
                }
                assert!(seen[..at] == all, "{why}");
                assert_eq!(outlet.waiting.capacity(), 0, "an idle connection holds no buffer");
            }
        }
    }

    #[tokio::test]
    async fn a_flushed_head_waits_for_its_body_and_for_nothing_else() {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        let ask = "POST /v1 HTTP/1.1\r\ncontent-length: 2\r\n\r\n";
        let event = format!("{head}data: a\r\n\r\n");
        for (part, waits, why) in [
            (head, true, "the head of a stream"),
            (ask, true, "the head of a request"),
            (&event, false, "an event came with it, though it ends as a head does"),
            ("HTTP/1.1 100 Continue\r\n\r\n", false, "somebody waits for it"),
            ("HTTP/1.1 402 Payment Required\r\n\r\n", false, "it may be all there is"),
            ("data: a\r\n\r\n", false, "no head"),
            (&head[..head.len() - 2], false, "not whole"),
        ] {
            for then in ["body", "flush", "read"] {
                let (gate, mut client) = tokio::io::duplex(1 << 16);
                let mut outlet = Outlet::over(Box::new(gate));
                outlet.write_all(part.as_bytes()).await.unwrap();
                outlet.flush().await.unwrap();
                let mut seen = vec![0; 1 << 12];
                let first = tokio::time::timeout(Duration::from_millis(1), client.read(&mut seen)).await;
                assert_eq!(first.is_err(), waits, "{why}");
                if !waits {
                    continue;
                }
                let mut all = part.to_owned();
                match then {
                    "body" => {
                        outlet.write_all_buf(&mut &b"4\r\nbody\r\n"[..]).await.unwrap();
                        outlet.flush().await.unwrap();
                        all.push_str("4\r\nbody\r\n");
                    }
                    "flush" => outlet.flush().await.unwrap(),
                    _ => assert!(tokio::time::timeout(Duration::from_millis(1), outlet.read_u8()).await.is_err()),
                }
                let n = client.read(&mut seen).await.unwrap();
                assert_eq!(std::str::from_utf8(&seen[..n]).unwrap(), all, "{why}, then {then}: in one piece");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_to_a_backend_is_wrapped_once_and_read_in_large_pieces() {
        let (gate, mut backend) = tokio::io::duplex(8 * SIP);
        let mut outlet = Outlet::to_backend(Outlet::to_backend(Box::new(gate)));
        let own = outlet.as_any().downcast_ref::<Outlet>().unwrap();
        assert!(!own.inner.as_any().is::<Outlet>());
        backend.write_all(&[b'x'; 3 * SIP]).await.unwrap();
        assert_eq!(outlet.read(&mut [0; 4 * SIP]).await.unwrap(), 3 * SIP);
    }

    #[tokio::test]
    async fn a_read_takes_a_sip_and_loses_nothing() {
        for room in [1, SIP, SIP + 1, 4 * SIP] {
            let (gate, mut client) = tokio::io::duplex(8 * SIP);
            let mut outlet = Outlet::over(Box::new(gate));
            let sent: Vec<u8> = (0..3 * SIP + 5).map(|at| (at % 251) as u8).collect();
            client.write_all(&sent).await.unwrap();
            drop(client);
            let mut seen = Vec::new();
            loop {
                let mut piece = Vec::with_capacity(room);
                let n = outlet.read_buf(&mut piece).await.unwrap();
                assert!(n <= SIP && n <= piece.len());
                seen.extend_from_slice(&piece);
                if n == 0 {
                    break;
                }
            }
            assert!(seen == sent, "{room}");
        }
    }

    #[tokio::test]
    async fn parts_of_one_write_join_what_waits_and_leave_at_once_when_nothing_does() {
        let (gate, mut client) = tokio::io::duplex(1 << 16);
        let mut outlet = Outlet::over(Box::new(gate));
        let parts = [IoSlice::new(b"one "), IoSlice::new(b"two ")];
        outlet.write_all(b"head ").await.unwrap();
        assert_eq!(outlet.write_vectored(&parts).await.unwrap(), 8);
        outlet.write_all(b"tail").await.unwrap();
        Shutdown::shutdown(&mut outlet).await;
        let mut seen = [0; 17];
        client.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"head one two tail");
        let sent = outlet.write_vectored(&parts).await.unwrap();
        assert!(sent > 0 && outlet.waiting.is_empty());
    }
}
