//! From a pool to the head of a reply: pick a server, connect, send, wait; and go elsewhere when that is safe.
//!
//! When a request is sent again:
//! - no connection could be made: nothing was sent, the next server is tried;
//! - a *reused* connection turned out dead at once, without a single byte of an answer: once more, to the same server, on
//!   a new connection. Backends close idle connections, and a request can cross that close;
//! - HTTP/2 said in so many words that the request was not worked on (RFC 9113 §8.7);
//! - the answer is a refusal to serve: 429, 5xx, or of our own key, account or this request (401, 402, 403). The next server is asked, at
//!   most [`MOST_ASKED`] of a pool, then the pool's fallback. When nobody is left the last refusal is the answer.
//!
//! Never otherwise: a backend that took the request and fell silent may have generated, and been paid for, an answer. All of it is before
//! the first byte for the client, under one payment: what was quoted is what is charged, whoever serves.
//!
//! What a refusal says of its server is told at once, but for one that may be the request's own doing ([`Unsure`]). What an answer says is
//! told when it has been read (`forward.rs`).
//!
//! A pool whose servers are all busy is passed over while a later one has a free server, and comes again behind it: its line is the last
//! resort, for whoever pays would rather be served than wait.

use super::waits::{Client, Clock, Cut, watched};
use super::{Attempt, Filter, Lines, Outgoing};
use crate::edge::scrub;
use crate::openai::error::{self, Blame};
use crate::refusal::Refusal;
use crate::upstream::{Hearing, Lane, Picked, Pool, USER_AGENT, Unplaced, Who};
use http::{HeaderMap, HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, RetryType};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A reused connection that dies later than this after sending did not cross an idle close: the backend had the request.
const STALE_WITHIN: Duration = Duration::from_secs(1);
/// Servers of one pool that are asked in turn: when so many refuse, the next will too, and asking on makes it worse.
const MOST_ASKED: usize = 3;
/// Longest answer that is read for whether it speaks of the request or of our key, in bytes.
const MOST_WORDS: usize = 64 * 1024;

/// A reply whose head has come; boxed, because it is handed on several times and its waits may be long. Dropping it closes the connection (HTTP/2: resets the stream).
pub(super) struct Opened {
    pub session: Box<HttpSession>,
    pub status: u16,
    /// Those headers that clients may see.
    pub headers: HeaderMap,
    /// `Content-Length`, when the reply has one.
    pub declared_length: Option<usize>,
    /// Who was asked.
    pub pool: Arc<Pool>,
    /// What it says of its server is not known yet; `None` when the head said it.
    pub hearing: Option<Hearing>,
    /// When the request was sent.
    pub sent_at: Instant,
    /// How long after that the first byte of its body may come, in seconds.
    pub first_byte_seconds: u64,
    peer: HttpPeer,
    /// Counts the request as running on its server.
    picked: Option<Picked>,
}

impl Opened {
    /// The reply has been read to its end: the connection may serve another request, if the backend allows.
    pub async fn release(mut self: Box<Self>, lines: &Lines) {
        if self.session.response_done() {
            let release = lines.release(self.session, &self.peer, self.pool.reuse_for());
            // A connection that is not kept says goodbye first, and over TLS that is a write.
            let _ = tokio::time::timeout(Duration::from_secs(1), release).await;
        }
    }
}

/// Goes along the lane until a server has answered with more than a refusal to serve.
pub(super) async fn open(
    client: &mut Client<'_>,
    lines: &Lines,
    lane: &Lane,
    filter: &mut dyn Filter,
    clock: &mut Clock,
) -> Result<Box<Opened>, Cut> {
    let mut unsure = Unsure::default();
    let opened = go_along(client, lines, lane, filter, clock, &mut unsure).await;
    unsure.settle();
    opened
}

async fn go_along(
    client: &mut Client<'_>,
    lines: &Lines,
    lane: &Lane,
    filter: &mut dyn Filter,
    clock: &mut Clock,
    unsure: &mut Unsure,
) -> Result<Box<Opened>, Cut> {
    let mut refused = None;
    let mut turns: VecDeque<Turn<'_>> = lane.pools.iter().map(Turn::of).collect();
    'lane: while let Some(mut turn) = turns.pop_front() {
        let pool = turn.pool;
        clock.turn_to(*pool.timeouts());
        let tell = |filter: &mut dyn Filter, who: Option<&Who>, outcome| filter.tried(&Attempt { pool, who, outcome });
        let key = filter.affinity(pool);
        let model = filter.model(pool);
        if !turn.again {
            // Whoever is over its limit of this model answers 429 again.
            turn.tried = pool.resting(&model);
        }
        while turn.asked < MOST_ASKED {
            let placed = match pool.pick_now(key, &turn.tried) {
                Some(picked) => Ok(picked),
                None if turn.yields_to(&turns) => {
                    turns.push_back(Turn { again: true, ..turn });
                    continue 'lane;
                }
                None => watched(client, clock, clock.timeouts.total_seconds, pool.wait(key, &turn.tried)).await?,
            };
            let picked = match placed {
                Ok(picked) => picked,
                Err(Unplaced::Nobody) => break,
                Err(Unplaced::Full { retry_after_seconds }) => {
                    tell(filter, None, "full");
                    refused.get_or_insert(Err(Refusal::UpstreamUnavailable { retry_after_seconds }));
                    break;
                }
            };
            turn.tried.push(picked.index());
            let who = picked.who();
            let Some(line) = connect(client, lines, &picked, clock, 0).await? else {
                tell(filter, Some(&who), "connect");
                continue;
            };
            let last = turns.is_empty();
            let out = turn.request.get_or_insert_with(|| filter.request(pool, last));
            turn.asked += 1;
            client.is_dispensable = filter.listens(pool);
            picked.tries(&model);
            let sent_at = Instant::now();
            let answer = match ask(client, lines, pool, &picked, line, out, clock).await {
                Ok(answer) => answer,
                Err(Cut::ClientGone) => {
                    // It says nothing about the server: a reply that does not stream takes what it takes. But the server may be dead: whoever
                    // waited for it as long as for a first byte did not leave one at work, and pays nothing for that.
                    let waited = sent_at.elapsed() >= Duration::from_secs(clock.timeouts.first_byte_seconds);
                    tell(filter, Some(&who), if waited { "timeout" } else { "left" });
                    return Err(Cut::ClientGone);
                }
                Err(Cut::Refused(refusal)) => {
                    let late = matches!(refusal, Refusal::UpstreamTimeout { .. });
                    unsure.asked += 1;
                    picked.hear(&model).lost();
                    tell(filter, Some(&who), if late { "timeout" } else { "lost" });
                    return Err(Cut::Refused(refusal));
                }
            };
            let Some(mut line) = answer else {
                tell(filter, Some(&who), "connect");
                client.is_dispensable = false;
                if client.left {
                    return Err(Cut::ClientGone);
                }
                continue;
            };
            let blame = blame(client, &mut line, clock).await?;
            let hearing = picked.hear(&model);
            let seconds = clock.first_byte_seconds(out.is_whole);
            match accept(line, picked, hearing, pool, (sent_at, seconds), blame, unsure) {
                Ok(mut opened) if is_refusal_to_serve(opened.status) => {
                    tell(filter, Some(&who), "status");
                    // It has said what it had to say. Two requests that each kept a place while waiting for the other's would wait long.
                    opened.picked = None;
                    refused = Some(Ok(opened));
                }
                Ok(opened) => {
                    tell(filter, Some(&who), "answered");
                    return Ok(opened);
                }
                Err(refusal) if refusal == failed(super::REFUSED_OUR_KEY) => {
                    tell(filter, Some(&who), "auth");
                    refused = Some(Err(refusal));
                }
                Err(refusal @ Refusal::UpstreamRefused { .. }) => {
                    tell(filter, Some(&who), "status");
                    refused = Some(Err(refusal));
                }
                Err(refusal) => {
                    tell(filter, Some(&who), "lost");
                    return Err(Cut::Refused(refusal));
                }
            }
            // What was of use without the client was this server's answer. Nobody else is asked for one that has left.
            client.is_dispensable = false;
            if client.left {
                return Err(Cut::ClientGone);
            }
        }
    }
    refused.unwrap_or(Err(Refusal::UpstreamUnavailable { retry_after_seconds: 1 })).map_err(Cut::Refused)
}

/// Refusals that may be the request's own doing: a plain 500 (a template that takes no such messages, say) and a 403 that does not say why. Where
/// two servers or more were asked and all of them refuse so, it is: none of them is told of it, or any payer could have a pool rested.
#[derive(Default)]
struct Unsure {
    refusals: Vec<Hearing>,
    /// Servers that had the request.
    asked: usize,
}

impl Unsure {
    fn settle(self) {
        let is_the_requests_doing = self.asked > 1 && self.refusals.len() == self.asked;
        if !is_the_requests_doing {
            self.refusals.into_iter().for_each(|hearing| hearing.refused(500, None));
        }
    }
}

/// A pool of the lane, and how far the request came there.
struct Turn<'a> {
    pool: &'a Arc<Pool>,
    /// It was passed over once.
    again: bool,
    tried: Vec<usize>,
    asked: usize,
    request: Option<Outgoing>,
}

impl<'a> Turn<'a> {
    fn of(pool: &'a Arc<Pool>) -> Self {
        Self { pool, again: false, tried: Vec::new(), asked: 0, request: None }
    }

    /// Its servers are busy, and one of a pool that comes later is not.
    fn yields_to(&self, later: &VecDeque<Self>) -> bool {
        !self.again && self.pool.could_place(&self.tried) && later.iter().any(|turn| turn.pool.has_room())
    }
}

/// The server is too busy, or broken: another one may not be.
fn is_refusal_to_serve(status: u16) -> bool {
    status == 429 || status >= 500
}

/// How long a backend wants to be left alone (RFC 9110 §10.2.3, in seconds: a date would have to be read by our clock).
pub(in crate::edge) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Sends the request and waits for the head of its answer; `None`: the connection was stale and no other could be made.
async fn ask(
    client: &mut Client<'_>,
    lines: &Lines,
    pool: &Pool,
    picked: &Picked,
    mut line: Line,
    out: &Outgoing,
    clock: &Clock,
) -> Result<Option<Line>, Cut> {
    let head = request_head(pool, picked, out).map_err(Cut::Refused)?;
    let sent_at = Instant::now();
    let mut answer = exchange(client, &mut line.session, head.clone(), out, clock).await?;
    if let Err(e) = &answer
        && sent_at.elapsed() < STALE_WITHIN
        && never_worked_on(e, &line)
    {
        if client.left {
            return Ok(None);
        }
        let Some(fresh) = connect(client, lines, picked, clock, unused_key()).await? else { return Ok(None) };
        line = fresh;
        answer = exchange(client, &mut line.session, head, out, clock).await?;
    }
    match answer {
        Ok(()) => Ok(Some(line)),
        Err(e) => {
            // The kind only: the rest of the error quotes what the backend sent.
            tracing::warn!(server = %picked.host(), error = e.etype().as_str(), "no answer from a backend");
            Err(Cut::Refused(failed("the connection was lost before it answered")))
        }
    }
}

struct Line {
    session: Box<HttpSession>,
    peer: HttpPeer,
    reused: bool,
}

/// A connection to the picked server, or `None` when there is none to be had. Only connections made under the same `key`
/// are reused.
async fn connect(
    client: &mut Client<'_>,
    lines: &Lines,
    picked: &Picked,
    clock: &Clock,
    key: u64,
) -> Result<Option<Line>, Cut> {
    let connecting = async {
        let mut peer = picked.peer().await.map_err(|e| e.to_string())?;
        peer.group_key = key;
        let (session, reused) = match lines.waiting(&peer) {
            Some(session) => (session, true),
            // Boxed: a connection is made of many parts, and most requests make none.
            None => Box::pin(lines.open(&peer)).await.map_err(|e| e.to_string())?,
        };
        // Whatever it was made under, it is an ordinary connection from here on.
        peer.group_key = 0;
        Ok::<_, String>(Line { session, peer, reused })
    };
    let problem = match watched(client, clock, clock.timeouts.connect_seconds, connecting).await {
        Ok(Ok(line)) => {
            if !line.reused {
                picked.connected();
            }
            return Ok(Some(line));
        }
        Ok(Err(problem)) => problem,
        Err(Cut::Refused(_)) if Instant::now() < clock.end => "no connection in time".to_owned(),
        Err(cut) => return Err(cut),
    };
    picked.connect_failed();
    tracing::warn!(server = %picked.host(), problem, "a backend cannot be connected to");
    Ok(None)
}

/// Sends the request and waits for the final head of the reply.
async fn exchange(
    client: &mut Client<'_>,
    line: &mut HttpSession,
    head: Box<RequestHeader>,
    out: &Outgoing,
    clock: &Clock,
) -> Result<Result<(), Box<Error>>, Cut> {
    let exchanging = async {
        line.write_request_header(head).await?;
        let mut written = Ok(());
        if !out.body.is_empty() {
            written = line.write_request_body(out.body.clone(), true).await;
        }
        if written.is_ok() {
            written = line.finish_request_body().await;
        }
        // A server may answer and hang up before it has read everything; its answer is worth more than our error.
        if let Err(e) = written {
            if line.as_http1().is_none() || line.read_response_header().await.is_err() {
                return Err(e);
            }
        } else {
            line.read_response_header().await?;
        }
        // Pingora hides informational heads on HTTP/2 and must not be asked there twice.
        while line.as_http1().is_some()
            && line.response_header().is_some_and(|h| matches!(h.status.as_u16(), 100 | 102..=199))
        {
            line.read_response_header().await?;
        }
        Ok(())
    };
    watched(client, clock, clock.first_byte_seconds(out.is_whole), exchanging).await
}

/// Whether it is certain, or as good as certain for a connection that had been idle, that no server saw the request.
fn never_worked_on(e: &Error, line: &Line) -> bool {
    let no_byte_of_an_answer = line.session.response_header().is_none();
    match (&e.retry, e.etype()) {
        (RetryType::Decided(true), ErrorType::H2Error) => true,
        // A request that could not be written whole cannot have been worked on.
        (_, ErrorType::WriteError) => line.reused && no_byte_of_an_answer,
        (RetryType::ReusedOnly, _) => {
            // Half a head is an answer. Pingora says how much came only in words; other words mean no retry.
            let nothing_read = e.context.as_ref().is_some_and(|c| c.as_str().ends_with("bytes already read: 0"));
            line.reused && no_byte_of_an_answer && (nothing_read || line.session.as_http2().is_some())
        }
        _ => false,
    }
}

/// Of what a refusal of 401, 402 or 403 speaks; of every other status it is not asked.
async fn blame(client: &mut Client<'_>, line: &mut Line, clock: &Clock) -> Result<Blame, Cut> {
    let status = line.session.response_header().map_or(0, |head| head.status.as_u16());
    if !matches!(status, 402 | 403) {
        return Ok(Blame::Key);
    }
    // Boxed: hardly any request comes here.
    match Box::pin(watched(client, clock, clock.timeouts.idle_seconds, words(&mut line.session))).await {
        Err(Cut::ClientGone) => Err(Cut::ClientGone),
        said => Ok(error::blame(status, &said.unwrap_or_default())),
    }
}

/// What a backend says in a short answer; nothing of a longer one.
async fn words(session: &mut HttpSession) -> Vec<u8> {
    let mut said = Vec::new();
    while let Ok(Some(chunk)) = session.read_response_body().await {
        if said.len() + chunk.len() > MOST_WORDS {
            return Vec::new();
        }
        said.extend_from_slice(&chunk);
    }
    said
}

/// It is no refusal of the key, so it is the client's to know; 403 whatever the backend called it, for 402 is about the client's money.
fn not_this_one() -> Refusal {
    let (kind, code, param, message) = (None, None, None, error::ours(403).to_owned());
    Refusal::UpstreamRefused { status: 403, kind, code, param, message, retry_after_seconds: None }
}

/// Judges the head of a reply by what holds for every filter.
fn accept(
    line: Line,
    picked: Picked,
    hearing: Hearing,
    pool: &Arc<Pool>,
    (sent_at, first_byte_seconds): (Instant, u64),
    blame: Blame,
    unsure: &mut Unsure,
) -> Result<Box<Opened>, Refusal> {
    picked.connected();
    let Some(head) = line.session.response_header() else { return Err(failed("it sent no head")) };
    let status = head.status.as_u16();
    let asked = retry_after(&head.headers);
    let is = |name, plain: &str| {
        head.headers.get_all(name).iter().all(|v| v.as_bytes().eq_ignore_ascii_case(plain.as_bytes()))
    };
    let is_plain = is(header::CONTENT_ENCODING, "identity") && is(header::TRANSFER_ENCODING, "chunked");
    unsure.asked += 1;
    let mut hearing = Some(hearing);
    match status {
        402 | 403 if blame == Blame::Unsaid => unsure.refusals.extend(hearing.take()),
        500 if asked.is_none() => unsure.refusals.extend(hearing.take()),
        // The key is told of below.
        401..=403 if blame == Blame::Key => hearing = None,
        429 | 500.. => hearing.take().into_iter().for_each(|hearing| hearing.refused(status, asked)),
        400..=499 => hearing.take().into_iter().for_each(Hearing::declined),
        200..=399 if is_plain => {}
        _ => hearing.take().into_iter().for_each(|hearing| hearing.refused(502, None)),
    }
    match status {
        101 => return Err(failed("it switched protocols")),
        100..=199 => return Err(failed("it sent no final head")),
        402 | 403 if blame != Blame::Key => {
            tracing::warn!(server = %picked.host(), status, ?blame, "a backend refused one request, by its moderation or for want of credit");
            return Err(not_this_one());
        }
        401..=403 => {
            picked.eject_for_auth();
            return Err(failed(super::REFUSED_OUR_KEY));
        }
        _ => {}
    }
    if !is_plain {
        // Its usage could not be read.
        return Err(failed("it compressed an answer that was asked for plain"));
    }
    let declared_length =
        head.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
    let headers = scrub::to_client(&head.headers);
    let (pool, Line { session, peer, .. }) = (Arc::clone(pool), line);
    let picked = Some(picked);
    Ok(Box::new(Opened {
        session,
        status,
        headers,
        declared_length,
        pool,
        hearing,
        sent_at,
        first_byte_seconds,
        peer,
        picked,
    }))
}

fn request_head(pool: &Pool, picked: &Picked, out: &Outgoing) -> Result<Box<RequestHeader>, Refusal> {
    let path = format!("{}{}", picked.prefix(), out.path);
    let build = || -> Result<RequestHeader, Box<Error>> {
        let mut head = RequestHeader::build(out.method.clone(), path.as_bytes(), None)?;
        for (name, value) in &out.headers {
            head.append_header(name.clone(), value.clone())?;
        }
        head.insert_header(header::HOST, picked.host())?;
        head.insert_header(header::CONTENT_TYPE, out.content_type.clone())?;
        head.insert_header(header::CONTENT_LENGTH, out.body.len())?;
        head.insert_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))?;
        head.insert_header(header::USER_AGENT, HeaderValue::from_static(USER_AGENT))?;
        for (name, value) in pool.key_lines(&out.path) {
            head.insert_header(name, value)?;
        }
        Ok(head)
    };
    build().map(Box::new).map_err(|_| Refusal::Internal { place: "head of a request to a backend" })
}

fn failed(why: &'static str) -> Refusal {
    Refusal::UpstreamFailed { why }
}

/// A key under which no connection is kept.
fn unused_key() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
