//! HTTP/1.1 by hand: exact bytes out, exact bytes in.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::backend::find;

/// A reply as it came off the wire.
#[derive(Clone, Debug)]
pub struct RawReply {
    pub status: u16,
    /// In order, names as sent.
    pub headers: Vec<(String, String)>,
    /// Without transfer encoding.
    pub body: Vec<u8>,
    /// Everything, head included.
    pub raw: Vec<u8>,
    /// HTTP chunks of a chunked body.
    pub chunks: Vec<Vec<u8>>,
    /// The body ended as its framing says, not by a broken connection.
    pub complete: bool,
}

impl RawReply {
    /// First header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Every header of that name.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }
}

/// One connection under full control.
pub struct Raw {
    pub stream: TcpStream,
    /// Received and not yet taken.
    pub seen: Vec<u8>,
}

/// A request head and body with a length, ready for [`Raw::send`].
pub fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n");
    if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-type")) {
        out.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [out.as_bytes(), body].concat()
}

/// Sends bytes on a fresh connection and reads one whole reply.
pub async fn exchange(addr: SocketAddr, bytes: &[u8]) -> RawReply {
    let mut raw = Raw::connect(addr).await;
    raw.send(bytes).await;
    raw.reply(Duration::from_secs(60)).await
}

/// As [`exchange`], with somebody who may die meanwhile: `None` when no whole head came back.
pub async fn try_exchange(addr: SocketAddr, bytes: &[u8]) -> Option<RawReply> {
    let stream = TcpStream::connect(addr).await.ok()?;
    let mut raw = Raw { stream, seen: Vec::new() };
    let limit = Duration::from_secs(30);
    if !raw.try_send(bytes).await || !raw.until(b"\r\n\r\n", limit).await {
        return None;
    }
    Some(raw.reply(limit).await)
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap_or_else(|e| panic!("cannot connect to {addr}: {e}"));
        stream.set_nodelay(true).unwrap();
        Self { stream, seen: Vec::new() }
    }

    /// From another address of this machine.
    pub async fn connect_from(ip: [u8; 4], addr: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((ip, 0).into()).unwrap();
        let stream = socket.connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, seen: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Whether the other side has taken everything that was sent: nothing is queued in the kernel, here or there.
    pub fn is_taken(&self) -> bool {
        let (here, there) = (self.stream.local_addr().unwrap().port(), self.stream.peer_addr().unwrap().port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's list of connections");
        let ends = |line: &str| -> Option<(u16, u16, bool)> {
            let mut words = line.split_whitespace().skip(1);
            let port = |word: &str| u16::from_str_radix(word.rsplit(':').next()?, 16).ok();
            let (local, remote) = (port(words.next()?)?, port(words.next()?)?);
            let queues = words.nth(1)?;
            Some((local, remote, queues == "00000000:00000000"))
        };
        table.lines().filter_map(ends).all(|(local, remote, empty)| {
            empty || ((local, remote) != (here, there) && (local, remote) != (there, here))
        })
    }

    /// As [`Self::send`], when the other side may already have closed.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// A few bytes at a time, with a pause after each piece.
    pub async fn send_slowly(&mut self, bytes: &[u8], piece: usize, pause: Duration) -> bool {
        for part in bytes.chunks(piece.max(1)) {
            if !self.try_send(part).await {
                return false;
            }
            tokio::time::sleep(pause).await;
        }
        true
    }

    /// Disappears with a TCP reset.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    /// Waits for more bytes; `None` when the other side closed, or nothing came in time.
    pub async fn more(&mut self, limit: Duration) -> Option<usize> {
        let mut room = [0u8; 16 * 1024];
        match tokio::time::timeout(limit, self.stream.read(&mut room)).await {
            Ok(Ok(n)) if n > 0 => {
                self.seen.extend_from_slice(&room[..n]);
                Some(n)
            }
            _ => None,
        }
    }

    /// Reads until `needle` has been seen; returns whether it was.
    pub async fn until(&mut self, needle: &[u8], limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while find(&self.seen, needle).is_none() {
            if self.more(end.saturating_duration_since(Instant::now())).await.is_none() {
                return false;
            }
        }
        true
    }

    /// Did the other side close (or reset) within `limit`? What arrives meanwhile is kept in `seen`.
    pub async fn closed(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut room = [0u8; 16 * 1024];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.stream.read(&mut room)).await {
                Ok(Ok(n)) if n > 0 => self.seen.extend_from_slice(&room[..n]),
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    }

    /// One whole reply, taken out of `seen`; interim 1xx heads are skipped. What follows it stays for the next call.
    pub async fn reply(&mut self, limit: Duration) -> RawReply {
        self.reply_to("POST", limit).await
    }

    /// As [`Self::reply`], where the method matters: a reply to HEAD has no body whatever its head says.
    pub async fn reply_to(&mut self, method: &str, limit: Duration) -> RawReply {
        let end = Instant::now() + limit;
        let left = || end.saturating_duration_since(Instant::now());
        let (status, headers, head_end) = loop {
            let found = self.until(b"\r\n\r\n", left()).await;
            assert!(found, "no reply head within {limit:?}; received: {:?}", String::from_utf8_lossy(&self.seen));
            let head_end = find(&self.seen, b"\r\n\r\n").unwrap() + 4;
            let head = String::from_utf8_lossy(&self.seen[..head_end]).into_owned();
            let mut lines = head.trim_end().split("\r\n");
            let status: u16 =
                lines.next().unwrap().split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
            if (100..200).contains(&status) {
                self.seen.drain(..head_end);
                continue;
            }
            let headers: Vec<(String, String)> =
                lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
            break (status, headers, head_end);
        };
        let get = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
        let (mut body, mut chunks, mut complete, mut at) = (Vec::new(), Vec::new(), true, head_end);
        if method == "HEAD" || status == 204 || status == 304 {
        } else if get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            loop {
                while find(&self.seen[at..], b"\r\n").is_none() && self.more(left()).await.is_some() {}
                let Some(line) = find(&self.seen[at..], b"\r\n") else { break complete = false };
                let size = String::from_utf8_lossy(&self.seen[at..at + line]).into_owned();
                let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).expect("a chunk size");
                let start = at + line + 2;
                while self.seen.len() < start + size + 2 && self.more(left()).await.is_some() {}
                if self.seen.len() < start + size + 2 {
                    body.extend_from_slice(&self.seen[start.min(self.seen.len())..]);
                    at = self.seen.len();
                    break complete = false;
                }
                at = start + size + 2;
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&self.seen[start..start + size]);
                chunks.push(self.seen[start..start + size].to_vec());
            }
        } else if let Some(length) = get("content-length").and_then(|v| v.parse::<usize>().ok()) {
            while self.seen.len() < head_end + length && self.more(left()).await.is_some() {}
            at = self.seen.len().min(head_end + length);
            complete = at == head_end + length;
            body = self.seen[head_end..at].to_vec();
        } else {
            while self.more(left()).await.is_some() {}
            at = self.seen.len();
            body = self.seen[head_end..].to_vec();
        }
        let raw: Vec<u8> = self.seen.drain(..at).collect();
        RawReply { status, headers, body, raw, chunks, complete }
    }
}
