//! The request body, read whole within four bounds: its size, its time, what all bodies may hold together, and what those of one
//! address may hold while they arrive.
//!
//! Nothing here trusts a declared length for more than refusing early: memory is counted as bytes arrive, so a client
//! that announces much and sends nothing takes nothing. A body that does not come to its end costs its sender nothing, so no
//! address may fill the budget with such; what has arrived whole is answered at once, or was paid.

use super::door::neighbourhood;
use crate::limits::room_for_body;
use crate::openai::multipart;
use crate::refusal::Refusal;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header};
use pingora::ErrorType;
use pingora::proxy::Session;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Least share of an address: most bodies are smaller by far.
const LEAST_SHARE: usize = 1024 * 1024;

/// A body that was read, counted in the budget until the last copy of its bytes is gone.
struct Received {
    bytes: BytesMut,
    _permit: Permit,
}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why there is no body to work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Answer this; the connection closes after it when bytes are left unread.
    Refused(Refusal),
    /// The client went away while sending: nobody is left to answer.
    ClientGone,
}

impl From<Refusal> for Unread {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Whether the request has no body, known from its head alone: END_STREAM on the head, a length of 0, or neither a
/// length nor a transfer-encoding. One that comes and is empty (a chunk of zero bytes, END_STREAM after the head) shows it only when it is read.
pub fn is_absent(session: &mut Session) -> bool {
    session.as_downstream_mut().is_body_empty()
}

/// Reads the whole body of at most `limit` bytes within `deadline` from now; empty when there is none. It counts in the
/// budget of `permit` until the last copy of it is dropped. A client that waits for `100 Continue` gets it, after everything that can be
/// refused by the head was.
pub async fn read(
    session: &mut Session,
    media: Media,
    limit: usize,
    deadline: Duration,
    mut permit: Permit,
) -> Result<Bytes, Unread> {
    unambiguous(session)?;
    if is_absent(session) {
        return Ok(Bytes::new());
    }
    let head = session.req_header();
    let boundary = identity(&head.headers, media)?;
    if declared_length(&head.headers).is_some_and(|length| length > limit) {
        return Err(Refusal::BodyTooLarge { limit }.into());
    }
    let bytes = in_time(session, limit, deadline, &mut permit).await?;
    permit.arrived();
    match boundary {
        // The gate goes by the body, other readers by the header.
        Some(boundary) if !bytes.is_empty() && !multipart::begins_with(&bytes, &boundary) => {
            let why = "it does not begin with the boundary that its header says".to_owned();
            Err(Refusal::BadForm { at: 0, why }.into())
        }
        _ => Ok(Bytes::from_owner(Received { bytes, _permit: permit })),
    }
}

/// Reads a body that nobody looks at, of at most `limit` bytes within `deadline` from now.
pub async fn skip(session: &mut Session, limit: usize, deadline: Duration, mut permit: Permit) -> Result<(), Unread> {
    unambiguous(session)?;
    if is_absent(session) {
        return Ok(());
    }
    in_time(session, limit, deadline, &mut permit).await.map(drop)
}

async fn in_time(
    session: &mut Session,
    limit: usize,
    deadline: Duration,
    permit: &mut Permit,
) -> Result<BytesMut, Unread> {
    let seconds = deadline.as_secs();
    let read = tokio::time::timeout(deadline, gather(session, limit, permit)).await;
    read.unwrap_or_else(|_| Err(Refusal::BodyTooSlow { seconds }.into()))
}

async fn gather(session: &mut Session, limit: usize, permit: &mut Permit) -> Result<BytesMut, Unread> {
    let head = session.req_header();
    if head.version == Version::HTTP_11 && names(&head.headers, header::EXPECT, "100-continue") {
        session.as_downstream_mut().write_continue_response().await.map_err(|_| Unread::ClientGone)?;
    }
    let mut body = BytesMut::new();
    loop {
        match session.as_downstream_mut().read_request_body().await {
            Ok(Some(chunk)) => {
                if body.len().saturating_add(chunk.len()) > limit {
                    return Err(Refusal::BodyTooLarge { limit }.into());
                }
                permit.grow(chunk.len())?;
                // By what has come, not by what was announced.
                let room = room_for_body(body.len() + chunk.len());
                if room > body.capacity() {
                    body.reserve(room.max(2 * body.len()) - body.len());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(None) => return Ok(body),
            Err(e) => {
                return Err(match e.etype() {
                    ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => Unread::ClientGone,
                    // Pingora's own patience per read; ours for the whole is shorter unless the operator made it long.
                    ErrorType::ReadTimedout => Refusal::BodyTooSlow { seconds: 60 }.into(),
                    _ => Refusal::BadHead { why: "the framing of the body is broken" }.into(),
                });
            }
        }
    }
}

/// Whether it wants to go on in another protocol than HTTP. The offer to go on in HTTP/2 (`h2c`), which Java's client and `curl --http2`
/// make on every plain connection, may be ignored (RFC 9110 §7.8); the caller lets nothing follow such a request.
fn asks_for_another_protocol(headers: &HeaderMap) -> bool {
    let mut wanted = headers.get_all(header::UPGRADE).iter();
    wanted.next().is_some_and(|first| !first.as_bytes().eq_ignore_ascii_case(b"h2c") || wanted.next().is_some())
}

/// Refuses framing that two readers could read differently, and protocol changes: `Upgrade`, transfer codings other
/// than one `chunked`, and a length beside a transfer-encoding. Pingora has removed the length by then (RFC 9112 §6.3 allows
/// it), so it is looked for in the raw head.
pub fn unambiguous(session: &Session) -> Result<(), Refusal> {
    let head = session.req_header();
    if asks_for_another_protocol(&head.headers) {
        return Err(Refusal::BadHead { why: "protocol upgrades are not served" });
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::BadHead { why: "the only transfer-encoding is a single chunked" });
        }
        let raw = session.as_downstream().as_http1().map(|h1| h1.get_headers_raw_bytes()).unwrap_or_default();
        let has_length = raw.split(|b| *b == b'\n').any(|line| {
            line.split(|b| *b == b':').next().is_some_and(|name| name.eq_ignore_ascii_case(b"content-length"))
        });
        if has_length {
            return Err(Refusal::BadHead { why: "content-length and transfer-encoding on one request" });
        }
    }
    Ok(())
}

/// What a body must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// JSON in UTF-8.
    Json,
    /// A form with files.
    Form,
}

/// A body is what it should be, as it is: a missing content type is taken for JSON, and so is plain text, a wrong one is not. The boundary of a form.
fn identity(headers: &HeaderMap, media: Media) -> Result<Option<String>, Refusal> {
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Refusal::UnsupportedMedia { why: "the body must not be compressed" });
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let first = types.next().map(|content_type| content_type.to_str().unwrap_or_default());
    if media == Media::Form {
        let boundary = first.and_then(multipart::boundary_of).filter(|_| types.next().is_none());
        let why = "the body must be multipart/form-data with a boundary";
        return boundary.map(|b| Some(b.to_owned())).ok_or(Refusal::UnsupportedMedia { why });
    }
    let Some(text) = first else { return Ok(None) };
    let mut parts = text.split(';').map(str::trim);
    // What `fetch` calls a text whose type nobody named: x402-fetch loses the headers of openai-node that way. A page that sends it with no
    // header of ours has not asked whether it may.
    let asked = !headers.contains_key(header::ORIGIN) || headers.contains_key("x-payment");
    let is_json = parts.next().is_some_and(|essence| {
        essence.eq_ignore_ascii_case("application/json") || (asked && essence.eq_ignore_ascii_case("text/plain"))
    });
    let is_utf8 = parts.filter_map(|p| p.split_once('=')).filter(|(k, _)| k.eq_ignore_ascii_case("charset")).all(
        |(_, charset)| {
            let charset = charset.trim_matches('"');
            charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
        },
    );
    if is_json && is_utf8 && types.next().is_none() {
        Ok(None)
    } else {
        Err(Refusal::UnsupportedMedia { why: "the body must be application/json in UTF-8" })
    }
}

/// A length too large to be a number is over every limit.
fn declared_length(headers: &HeaderMap) -> Option<usize> {
    let value = headers.get(header::CONTENT_LENGTH)?;
    Some(value.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or(usize::MAX))
}

fn names(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|v| v.as_bytes().eq_ignore_ascii_case(token.as_bytes()))
}

/// Bytes of request bodies that may be in flight at once, over all clients.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Ledger>);

#[derive(Debug)]
struct Ledger {
    limit: usize,
    used: AtomicUsize,
    /// What of it arrives, by where it comes from. Nobody is in it with nothing.
    arriving: Mutex<HashMap<IpAddr, usize>>,
}

impl Budget {
    /// A budget of `limit` bytes. Of those that are still arriving an eighth may come from one address, or one body.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Ledger { limit, used: AtomicUsize::new(0), arriving: Mutex::default() }))
    }

    /// Bytes counted now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// A share of nothing yet, for a body that comes from `client`.
    pub fn permit(&self, client: Option<IpAddr>) -> Permit {
        Permit { ledger: Arc::clone(&self.0), held: 0, from: client.map(neighbourhood) }
    }
}

impl Ledger {
    /// Counts `bytes` more of a body of which `held` have come from there.
    fn arrive(&self, from: IpAddr, held: usize, bytes: usize) -> Result<(), Refusal> {
        let share = (self.limit / 8).max(LEAST_SHARE);
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let here = arriving.get(&from).copied().unwrap_or(0);
        let total = here.saturating_add(bytes);
        // The only one may be as large as any.
        if here > held && total > share {
            return Err(busy(true));
        }
        if total > 0 {
            arriving.insert(from, total);
        }
        Ok(())
    }

    /// Counts them no more.
    fn leave(&self, from: IpAddr, bytes: usize) {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(here) = arriving.get_mut(&from) else { return };
        *here = here.saturating_sub(bytes);
        if *here == 0 {
            arriving.remove(&from);
        }
    }
}

fn busy(address_at_fault: bool) -> Refusal {
    Refusal::TooBusy { address_at_fault, retry_after_seconds: 1, limit: "bodies_in_flight_mib" }
}

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the bytes back"]
pub struct Permit {
    ledger: Arc<Ledger>,
    held: usize,
    /// Where it comes from, while it does.
    from: Option<IpAddr>,
}

impl Permit {
    /// Takes `bytes` more, or refuses: with 429 when the address has its share, with 503 when the budget is spent.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        if let Some(from) = self.from {
            self.ledger.arrive(from, self.held, bytes)?;
        }
        let limit = self.ledger.limit;
        let fits = |used: usize| used.checked_add(bytes).filter(|total| *total <= limit);
        match self.ledger.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.held = self.held.saturating_add(bytes);
                Ok(())
            }
            Err(_) => {
                self.from.inspect(|from| self.ledger.leave(*from, bytes));
                Err(busy(false))
            }
        }
    }

    /// It is whole: it counts in the budget, and no more as something that arrives.
    pub fn arrived(&mut self) {
        if let Some(from) = self.from.take() {
            self.ledger.leave(from, self.held);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.arrived();
        self.ledger.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    const LONG: Duration = Duration::from_secs(20);

    async fn client(request: &[u8]) -> (Session, DuplexStream) {
        let (mut client, gate) = tokio::io::duplex(1 << 20);
        client.write_all(request).await.unwrap();
        let mut session = Session::new_h1(Box::new(gate));
        assert!(session.as_downstream_mut().read_request().await.unwrap());
        (session, client)
    }

    fn request(head: &str, body: &str) -> Vec<u8> {
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\n{head}\r\n{body}").into_bytes()
    }

    #[tokio::test]
    async fn a_body_is_read_whole_or_refused_for_a_reason() {
        let json = "content-type: application/json\r\n";
        let too_large = || Err(Refusal::BodyTooLarge { limit: 10 });
        let media = |why| Err(Refusal::UnsupportedMedia { why });
        let not_json = "the body must be application/json in UTF-8";
        let bad = |why| Err(Refusal::BadHead { why });
        for (head, body, want, why) in [
            (format!("{json}content-length: 4\r\n"), "{\"\"}", Ok("{\"\"}"), "a length"),
            (format!("{json}transfer-encoding: chunked\r\n"), "2\r\n{}\r\n0\r\n\r\n", Ok("{}"), "chunked"),
            (format!("{json}transfer-encoding: chunked\r\n"), "0\r\n\r\n", Ok(""), "chunked and empty"),
            ("content-length: 0\r\ncontent-type: text/plain\r\n".into(), "", Ok(""), "nothing to be of any type"),
            (String::new(), "", Ok(""), "no body at all"),
            ("content-length: 2\r\n".into(), "{}", Ok("{}"), "no type is taken for JSON"),
            ("content-type: Application/JSON; charset=UTF-8\r\ncontent-length: 2\r\n".into(), "{}", Ok("{}"), "case"),
            (format!("{json}content-length: 10\r\n"), "0123456789", Ok("0123456789"), "exactly the limit"),
            (format!("{json}content-length: 11\r\n"), "", too_large(), "declared too long, before a byte is read"),
            (format!("{json}content-length: 99999999999999999999\r\n"), "", too_large(), "no number at all"),
            (
                format!("{json}transfer-encoding: chunked\r\n"),
                "b\r\n0123456789a\r\n0\r\n\r\n",
                too_large(),
                "undeclared",
            ),
            ("content-type: text/html\r\ncontent-length: 2\r\n".into(), "{}", media(not_json), "another type"),
            ("content-type: text/plain;charset=UTF-8\r\ncontent-length: 2\r\n".into(), "{}", Ok("{}"), "text to fetch"),
            (
                "origin: https://a.example\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n".into(),
                "{}",
                media(not_json),
                "a page that did not ask",
            ),
            (
                "origin: https://a.example\r\nx-payment: x\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n".into(),
                "{}",
                Ok("{}"),
                "a page that asked and pays",
            ),
            (
                "content-type: application/json; charset=latin1\r\ncontent-length: 2\r\n".into(),
                "{}",
                media(not_json),
                "another charset",
            ),
            (
                format!("{json}content-encoding: gzip\r\ncontent-length: 2\r\n"),
                "{}",
                media("the body must not be compressed"),
                "a bomb",
            ),
            (
                format!("{json}transfer-encoding: chunked\r\n"),
                "zz\r\n",
                bad("the framing of the body is broken"),
                "no chunk",
            ),
            (
                format!("{json}content-length: 5\r\ntransfer-encoding: chunked\r\n"),
                "0\r\n\r\n",
                bad("content-length and transfer-encoding on one request"),
                "smuggling",
            ),
            (
                format!("{json}transfer-encoding: gzip, chunked\r\n"),
                "0\r\n\r\n",
                bad("the only transfer-encoding is a single chunked"),
                "a coding of its own",
            ),
            (
                format!("{json}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
                "0\r\n\r\n",
                bad("the only transfer-encoding is a single chunked"),
                "twice",
            ),
            (
                "upgrade: websocket\r\nconnection: upgrade\r\n".into(),
                "",
                bad("protocol upgrades are not served"),
                "upgrade",
            ),
            (
                "upgrade: h2c\r\nupgrade: websocket\r\nconnection: upgrade\r\n".into(),
                "",
                bad("protocol upgrades are not served"),
                "upgrade to one of two",
            ),
            (
                format!("{json}upgrade: h2c\r\nconnection: upgrade, http2-settings\r\ncontent-length: 2\r\n"),
                "{}",
                Ok("{}"),
                "an offer of HTTP/2 that is not taken up",
            ),
        ] {
            // Some of these never get past Pingora's own parser; that is as good as our refusal.
            let (mut client, gate) = tokio::io::duplex(1 << 20);
            client.write_all(&request(&head, body)).await.unwrap();
            let mut session = Session::new_h1(Box::new(gate));
            if session.as_downstream_mut().read_request().await.is_err() {
                assert!(want.is_err(), "{why}");
                continue;
            }
            let got = read(&mut session, Media::Json, 10, LONG, Budget::new(1000).permit(None)).await;
            let got = got.map(|r| String::from_utf8_lossy(&r).into_owned());
            assert_eq!(got, want.map(str::to_owned).map_err(Unread::Refused), "{why}");
        }
    }

    #[tokio::test]
    async fn only_the_head_decides_whether_there_is_a_body() {
        for (head, absent, why) in [
            ("", true, "neither length nor coding"),
            ("content-length: 0\r\n", true, "length 0"),
            ("content-length: 1\r\n", false, "a length"),
            ("transfer-encoding: chunked\r\n", false, "chunked may be empty, but says so later"),
        ] {
            let (mut session, _client) = client(&request(head, "")).await;
            assert_eq!(is_absent(&mut session), absent, "{why}");
        }
    }

    #[tokio::test]
    async fn a_client_that_waits_for_100_continue_gets_it_unless_its_head_is_refused_already() {
        let (mut session, mut peer) = client(&request("expect: 100-continue\r\ncontent-length: 2\r\n", "")).await;
        let budget = Budget::new(1000);
        let (got, ()) = tokio::join!(read(&mut session, Media::Json, 10, LONG, budget.permit(None)), async {
            let mut buf = [0; 25];
            peer.read_exact(&mut buf).await.unwrap();
            assert_eq!(&buf, b"HTTP/1.1 100 Continue\r\n\r\n");
            peer.write_all(b"{}").await.unwrap();
        });
        assert_eq!(got.unwrap(), "{}");

        let (mut session, mut peer) = client(&request("expect: 100-continue\r\ncontent-length: 11\r\n", "")).await;
        assert!(read(&mut session, Media::Json, 10, LONG, budget.permit(None)).await.is_err());
        drop(session);
        let mut sent = Vec::new();
        peer.read_to_end(&mut sent).await.unwrap();
        assert!(sent.is_empty(), "no invitation to send what would be refused");
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_for_the_whole_body_however_lively_it_drips() {
        let (mut session, mut peer) = client(&request("content-length: 100\r\n", "")).await;
        let budget = Budget::new(1000);
        let drip = async {
            while peer.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let got = tokio::select! {
            got = read(&mut session, Media::Json, 1000, Duration::from_secs(30), budget.permit(None)) => got,
            () = drip => panic!("nobody hung up"),
        };
        assert_eq!(got.unwrap_err(), Unread::Refused(Refusal::BodyTooSlow { seconds: 30 }));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_sending_is_gone_not_at_fault() {
        let (mut session, peer) = client(&request("content-length: 100\r\n", "{")).await;
        drop(peer);
        assert_eq!(
            read(&mut session, Media::Json, 1000, LONG, Budget::new(1000).permit(None)).await.unwrap_err(),
            Unread::ClientGone
        );
    }

    #[tokio::test]
    async fn the_budget_counts_what_arrived_and_gets_it_back() {
        let budget = Budget::new(6);
        let (mut session, _peer) = client(&request("content-length: 4\r\n", "{  }")).await;
        let held = read(&mut session, Media::Json, 10, LONG, budget.permit(None)).await.unwrap();
        assert_eq!(budget.used(), 4);
        let (mut session, _peer) = client(&request("content-length: 4\r\n", "{  }")).await;
        let refused = read(&mut session, Media::Json, 10, LONG, budget.permit(None)).await.unwrap_err();
        assert!(matches!(refused, Unread::Refused(r) if r.status() == 503 && r.retry_after().is_some()));
        let copy = held.slice(1..2);
        drop(held);
        assert_eq!(budget.used(), 4, "somebody still holds it");
        drop(copy);
        assert_eq!(budget.used(), 0);
        let (mut session, _peer) = client(&request("content-length: 4\r\n", "{  }")).await;
        assert!(read(&mut session, Media::Json, 10, LONG, budget.permit(None)).await.is_ok());
    }

    #[test]
    fn bodies_that_arrive_from_one_address_leave_the_budget_to_others() {
        const MIB: usize = 1024 * 1024;
        let budget = Budget::new(16 * MIB);
        let from = |text: &str| Some(text.parse().unwrap());
        let status = |permit: &mut Permit, bytes| permit.grow(bytes).map_or_else(|r| r.status(), |()| 200);
        let mut slow: Vec<_> = (0..4).map(|_| budget.permit(from("2001:db8::1"))).collect();
        let got: Vec<_> = slow.iter_mut().map(|body| status(body, MIB)).collect();
        assert_eq!(got, [200, 200, 429, 429], "an eighth");
        assert_eq!(status(&mut budget.permit(from("2001:db8::2")), 1), 429, "one network, one address");
        let mut other = budget.permit(from("192.0.2.1"));
        assert_eq!(status(&mut other, 10 * MIB), 200, "the only one of its address may be as large as any");
        assert_eq!(status(&mut budget.permit(from("::ffff:192.0.2.1")), 1), 429, "and leaves no room to a second one");
        other.arrived();
        assert_eq!(status(&mut budget.permit(from("192.0.2.1")), MIB), 200, "what is whole is answered or was paid");
        assert_eq!(status(&mut budget.permit(from("192.0.2.2")), 5 * MIB), 503, "nobody's fault");
        assert_eq!(status(&mut slow[0], 1), 429, "nor may one that has begun take more");
        slow.clear();
        assert_eq!(status(&mut budget.permit(from("2001:db8::2")), MIB), 200);
        drop(other);
        assert_eq!((budget.used(), budget.0.arriving.lock().unwrap().len()), (0, 0), "nothing is kept of who was here");
    }
}
