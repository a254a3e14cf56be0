//! The pump: one request to one server of a pool, its answer through a filter to the client.
//!
//! It stands where Pingora's native path would, because at 0.9.1 that path cannot forward a body it has read (over
//! 64 KiB) and its body filters cannot wait. What it promises:
//! - The client is watched in every wait. When it leaves, the upstream connection is closed at once, unless the filter still listens to
//!   it, from when the request was sent: then it is read to its end within the pool's timeouts, where the client's connection still
//!   counts against its address. No other server is asked for a client that has left.
//! - A request is sent again only before its answer begins, and only where that is safe (`open.rs` says when).
//! - Client bytes leave in the order in which the filter gave them, none dropped.
//! - While the filter holds a stream nothing is read from the backend, whose connection fills up and stands still; the pause
//!   counts for none of the pool's timeouts. A paused stream costs its connections and what the filter keeps: the body of
//!   the request is let go when the backend has answered.
//! - The head of a stream leaves together with its first byte, so whatever fails before that is still a clean answer.

mod lines;
mod open;
mod waits;

use crate::ids::UpstreamModel;
use crate::refusal::Refusal;
use crate::upstream::{Affinity, Hearing, Lane, Pool, Who};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Version, header};
pub(super) use lines::HELD_FREELY;
pub use lines::Lines;
use open::Opened;
pub(super) use open::retry_after;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
pub(super) use waits::gone;
use waits::{Client, Clock, Cut, Patience, next, unless_gone, watched};

/// Why an exchange failed in which the backend answered 401, 402 or 403: our key, not the caller's request.
pub(super) const REFUSED_OUR_KEY: &str = "it refused the gate's own credentials";

/// What to send to a backend.
#[derive(Clone, Debug)]
pub struct Outgoing {
    method: Method,
    path: String,
    headers: HeaderMap,
    content_type: HeaderValue,
    body: Bytes,
    is_whole: bool,
}

impl Outgoing {
    /// A body, JSON where nothing else is said ([`Outgoing::of_type`]), for `path` (with query, without the server's prefix), with
    /// those of the client's headers that may pass (`scrub.rs`); the pump adds host, length, key, user agent and encoding.
    pub fn post(path: impl Into<String>, headers: &HeaderMap, body: Bytes) -> Self {
        let content_type = HeaderValue::from_static("application/json");
        Self { method: Method::POST, path: path.into(), headers: headers.clone(), content_type, body, is_whole: false }
    }

    /// What the body is.
    pub fn of_type(self, content_type: HeaderValue) -> Self {
        Self { content_type, ..self }
    }

    /// Its answer will not stream, so that the first that is heard of it is that it is done: the wait for it is the pool's
    /// `total_seconds`.
    pub fn answered_whole(self, is_whole: bool) -> Self {
        Self { is_whole, ..self }
    }
}

/// One server that was tried.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Its pool.
    pub pool: &'a Pool,
    /// Which one; `None` when none had a place in time.
    pub who: Option<&'a Who>,
    /// What came of it: `answered` (with what goes to the filter), `connect` (it could not be connected to), `status` (429 or 5xx),
    /// `auth` (it refused our key), `lost` (the connection broke before it answered), `timeout`, `left` (it had the request when the
    /// client went away before `first_byte_seconds`), `full` (none of the pool had a place in time).
    pub outcome: &'static str,
}

/// What a [`Filter`] wants done with a reply.
#[derive(Debug)]
pub enum Verdict {
    /// Send it as it comes, under this head. Framing is the pump's: a length in the head is removed.
    Stream(Box<ResponseHeader>),
    /// Read it whole, at most `limit` bytes, and hand it back unsent. Of those above 32 MiB few are held at a time; the others wait.
    Buffer {
        /// In bytes.
        limit: usize,
    },
    /// Close the upstream and answer this.
    Fail(Refusal),
}

/// Whether a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Next chunk.
    Go,
    /// Send what was given, read nothing more, and ask [`Filter::resume`] how it goes on.
    Hold,
    /// Close the upstream, send what was given, and finish. When nothing was given by then, the exchange has failed.
    Stop,
}

/// The response body filter: sees every byte of the reply, and may wait. Of its methods only [`chunk`](Self::chunk) and
/// [`resume`](Self::resume) may be cancelled (the client left); the others always run to their end.
#[async_trait]
pub trait Filter: Send {
    /// Which requests this one is to be kept together with in `pool`.
    fn affinity(&self, pool: &Pool) -> Affinity;

    /// What a server of `pool` is to be sent; asked once for every pool that is tried. `last`: no other pool will be.
    fn request(&mut self, pool: &Pool, last: bool) -> Outgoing;

    /// What the servers of `pool` call the model that is asked for.
    fn model(&self, pool: &Pool) -> UpstreamModel;

    /// What came of one server.
    fn tried(&mut self, attempt: &Attempt<'_>);

    /// The final head of the reply (never 1xx, 101, 401, 402 or 403), with those headers that clients may see.
    async fn head(&mut self, status: u16, headers: &HeaderMap) -> Verdict;

    /// The first byte of a stream is about to leave: what must be durable before it becomes so here. An error stops
    /// with nothing sent.
    async fn before_first_byte(&mut self) -> Result<(), Refusal>;

    /// Bytes of a stream as they came, cut anywhere. What the client gets goes into `out`, in order.
    async fn chunk(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Flow;

    /// The stream is held: waits until it may go on, or until something is to be sent meanwhile (a heartbeat; then
    /// [`Flow::Hold`] again). How long a stream is held in all is for the filter to bound.
    async fn resume(&mut self, out: &mut Vec<Bytes>) -> Flow;

    /// Whether what a server of `pool` answers is of use when its client has left, from when the request was sent.
    fn listens(&self, pool: &Pool) -> bool;

    /// Whether the backend may be working at what it does not show: its silence is then bounded by the whole exchange alone, and not by
    /// the pool's `idle_seconds`.
    fn may_be_silent(&self) -> bool {
        false
    }

    /// Whether an error came in a stream so far: whoever sends it has not shown that it serves.
    fn has_failed(&self) -> bool {
        false
    }

    /// Whether that is such as only a broken backend sends: not about what was asked.
    fn is_broken(&self) -> bool {
        false
    }

    /// Bytes of a stream whose client has left, `None` at its proper end. [`Flow::Go`] to hear more.
    async fn overhear(&mut self, chunk: Option<Bytes>) -> Flow {
        drop(chunk);
        Flow::Stop
    }

    /// A stream is over and its upstream closed or released: what else the client gets. Called once for every stream
    /// that began or ended well, and never otherwise. After [`How::ClientGone`], `out` goes nowhere and holding is in vain.
    ///
    /// [`Flow::Hold`]: send what was given, and ask [`resume`](Self::resume) until it says otherwise. When the client leaves
    /// meanwhile, this is called once more, with [`How::ClientGone`], unless no byte had been sent.
    async fn finish(&mut self, ending: &Ending, out: &mut Vec<Bytes>) -> Flow;
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Who ended it.
    pub how: How,
    /// Body bytes handed to the client's connection, the last write included even when it failed. 0 when the connection broke
    /// with the head.
    pub sent_bytes: u64,
}

/// Who ended a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// The backend, at its proper end.
    Complete,
    /// The filter, with [`Flow::Stop`].
    Stopped,
    /// The client left, or one write to it took `idle_seconds`, or all that the lane has. Its connection must be dropped: return an
    /// error from the phase, for Pingora's ordinary end writes to it once more, with no timeout.
    ClientGone,
    /// The backend, by failing: [`Refusal::UpstreamFailed`] or [`Refusal::UpstreamTimeout`].
    Upstream(Refusal),
    /// We, after `total_seconds`, of a backend that had not been silent for long: [`Refusal::UpstreamTimeout`].
    OutOfTime(Refusal),
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The whole reply; nothing was sent to the client.
    Buffered {
        /// Status of the backend.
        status: u16,
        /// Those of its headers that clients may see.
        headers: HeaderMap,
        /// Its body.
        body: Bytes,
        /// Whoever reads the body says there what it says of the server; `None` when the status has said it.
        hearing: Option<Hearing>,
    },
    /// A stream began (its durable mark was made) and is over; unless the client is gone, the answer was ended properly.
    Streamed(Ending),
    /// Nothing was sent to the client: answer this.
    Failed(Refusal),
    /// The client left before anything was sent. Drop its connection. Of a stream the filter has heard what there was to hear.
    ClientGone,
    /// The same, of a reply that was read whole without it: a success of the backend, with its body.
    Unheard(Bytes),
}

/// Sends a request to a server of `lane` and its reply through `filter` to the client of `session`, whose request body must have
/// been read. The wait for a slow reader is the pool's `idle_seconds`; the whole exchange, with every server it goes to, has the
/// `total_seconds` of the first pool, or what the lane leaves of them.
pub async fn forward(session: &mut Session, lines: &Lines, lane: &Lane, filter: &mut dyn Filter) -> Outcome {
    let Some(first) = lane.pools.first() else {
        return Outcome::Failed(Refusal::UpstreamUnavailable { retry_after_seconds: 5 });
    };
    let mut clock = Clock::start(*first.timeouts(), lane.within);
    let mut client = Client::of(session);
    let opened = Box::pin(open::open(&mut client, lines, lane, filter, &mut clock)).await;
    let outcome = match opened {
        Err(cut) => cut.into(),
        Ok(mut opened) => match filter.head(opened.status, &opened.headers).await {
            Verdict::Fail(refusal) => {
                judge(&refusal, opened.hearing.take());
                Outcome::Failed(refusal)
            }
            Verdict::Buffer { limit } => Box::pin(buffer(&mut client, lines, opened, limit, &clock)).await,
            Verdict::Stream(head) => stream(&mut client, lines, opened, head, filter, clock).await,
        },
    };
    let outcome = match outcome {
        Outcome::Buffered { status, body, .. } if client.left && (200..300).contains(&status) => Outcome::Unheard(body),
        // Nobody is there to be told.
        Outcome::Buffered { .. } | Outcome::Failed(_) if client.left => Outcome::ClientGone,
        outcome => outcome,
    };
    if matches!(
        outcome,
        Outcome::ClientGone | Outcome::Unheard(_) | Outcome::Streamed(Ending { how: How::ClientGone, .. })
    ) {
        session.as_downstream_mut().set_keepalive(None);
    }
    outcome
}

/// Nothing of the answer was of use. It speaks against the server if that is what was wrong.
fn judge(refusal: &Refusal, hearing: Option<Hearing>) {
    if let (Refusal::UpstreamFailed { .. }, Some(hearing)) = (refusal, hearing) {
        hearing.refused(502, None);
    }
}

/// The answer broke off, or never began. One that began and only was longer than the whole may take says nothing about the server.
fn broke_off(hearing: Option<Hearing>, clock: &Clock, arrived: bool) {
    hearing.filter(|_| !arrived || Instant::now() < clock.end).into_iter().for_each(Hearing::lost);
}

async fn buffer(
    client: &mut Client<'_>,
    lines: &Lines,
    mut opened: Box<Opened>,
    limit: usize,
    clock: &Clock,
) -> Outcome {
    // That may be the request's doing, and is held against no server.
    let too_large = || Outcome::Failed(Refusal::UpstreamFailed { why: "its answer is larger than can be held" });
    let expected = opened.declared_length.unwrap_or(0);
    if expected > limit {
        return too_large();
    }
    let mut body = BytesMut::new();
    let mut place = None;
    let mut alarm = pin!(clock.alarm());
    let mut hearing = opened.hearing.take();
    loop {
        let needed = body.len().max(expected);
        if needed > HELD_FREELY && place.is_none() {
            // Meanwhile nothing is read.
            match watched(client, clock, clock.timeouts.total_seconds, lines.place()).await {
                Ok(free) => place = free,
                Err(cut) => return cut.into(),
            }
        }
        body.reserve(expected.saturating_sub(body.len()));
        let most = match body.is_empty() {
            true => clock.first_bytes(opened.sent_at, opened.first_byte_seconds),
            false => clock.silence(false),
        };
        match next(client.gone(), &mut opened, most, alarm.as_mut()).await {
            Ok(Some(chunk)) if body.len().saturating_add(chunk.len()) > limit => return too_large(),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(cut) => {
                if matches!(cut, Cut::Refused(_)) {
                    broke_off(hearing.take(), clock, !body.is_empty());
                }
                return cut.into();
            }
        }
    }
    let (status, headers) = (opened.status, std::mem::take(&mut opened.headers));
    opened.release(lines).await;
    let body = match place {
        Some(place) => Bytes::from_owner(Large { body, _place: place }),
        None => body.freeze(),
    };
    Outcome::Buffered { status, headers, body, hearing }
}

/// A large reply, which has its place until the last copy of its bytes is gone.
struct Large {
    body: BytesMut,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

async fn stream(
    client: &mut Client<'_>,
    lines: &Lines,
    mut opened: Box<Opened>,
    head: Box<ResponseHeader>,
    filter: &mut dyn Filter,
    mut clock: Clock,
) -> Outcome {
    let had_left = client.left;
    let session = &mut *client.session;
    // Each of our writes has its time; Pingora's would be another timer on every one.
    session.as_downstream_mut().set_write_timeout(None);
    let mut mouth = Mouth { head: Some(head), sent_bytes: 0, patience: clock.patience() };
    let mut alarm = pin!(clock.alarm());
    let mut out = Vec::new();
    let mut arrived = false;
    let mut hearing = opened.hearing.take();
    let mut how = loop {
        if let Some(how) = had_left.then_some(How::ClientGone).or_else(|| clock.ran_out().map(How::OutOfTime)) {
            break how;
        }
        let most = match filter.may_be_silent() {
            false if !arrived => clock.first_bytes(opened.sent_at, opened.first_byte_seconds),
            may_be_long => clock.silence(may_be_long),
        };
        let chunk = match next(gone(session), &mut opened, most, alarm.as_mut()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break How::Complete,
            Err(Cut::ClientGone) => break How::ClientGone,
            Err(Cut::Refused(late @ Refusal::UpstreamTimeout { .. })) if most.0 == clock.end => {
                break How::OutOfTime(late);
            }
            Err(Cut::Refused(refusal)) => break How::Upstream(refusal),
        };
        if !std::mem::replace(&mut arrived, true)
            && let Some(hearing) = &hearing
        {
            hearing.heard(opened.sent_at.elapsed());
        }
        let mut flow = unless_gone(session, filter.chunk(chunk, &mut out)).await;
        if let Ok(Flow::Hold) = flow {
            let began = Instant::now();
            flow = mouth.hold(session, filter, &mut out).await;
            clock.end += began.elapsed();
        }
        if let Ok(Flow::Go) = flow {
            flow = mouth.send(session, filter, &mut out).await.map(|()| Flow::Go);
        }
        if let (false, Some(hearing)) = (mouth.is_shut(), &mut hearing) {
            hearing.began();
        }
        match flow {
            Ok(Flow::Go) => {}
            Ok(Flow::Hold | Flow::Stop) => break How::Stopped,
            Err(Cut::ClientGone) => break How::ClientGone,
            Err(Cut::Refused(refusal)) => return Outcome::Failed(refusal),
        }
    };
    let ended = match &how {
        How::Complete => true,
        How::ClientGone if filter.listens(&opened.pool) => drain(&mut opened, filter, &clock).await,
        _ => false,
    };
    match &how {
        How::Upstream(_) | How::OutOfTime(_) => broke_off(hearing.take(), &clock, arrived),
        How::Stopped if filter.is_broken() && mouth.is_shut() => judge(&nothing_good_came(), hearing.take()),
        How::Stopped if filter.is_broken() => broke_off(hearing.take(), &clock, arrived),
        How::Complete if !arrived => judge(&nothing_came(), hearing.take()),
        How::Complete | How::Stopped | How::ClientGone => {}
    }
    // The upstream first: whatever is still to be written for the client must not keep a backend busy.
    if ended {
        opened.release(lines).await
    } else {
        drop(opened)
    }
    if how == How::Stopped {
        match mouth.send(session, filter, &mut out).await {
            Ok(()) => {}
            Err(Cut::ClientGone) => how = How::ClientGone,
            Err(Cut::Refused(refusal)) => return Outcome::Failed(refusal),
        }
    }
    match &how {
        How::ClientGone if mouth.is_shut() => return Outcome::ClientGone,
        How::Upstream(refusal) | How::OutOfTime(refusal) if mouth.is_shut() => return Outcome::Failed(refusal.clone()),
        How::Complete if !arrived => return Outcome::Failed(nothing_came()),
        // Nothing of it was worth sending. Finishing would send a head, and with it spend what was paid.
        How::Stopped if mouth.is_shut() => return Outcome::Failed(nothing_good_came()),
        _ => {}
    }
    let is_complete = how == How::Complete;
    let outcome = finish(session, filter, mouth, how, out).await;
    match (&outcome, hearing.filter(|_| is_complete)) {
        // Its last word was an error.
        (Outcome::Streamed(_), hearing) if filter.is_broken() => broke_off(hearing, &clock, arrived),
        (Outcome::Streamed(_), Some(hearing)) if !filter.has_failed() => hearing.served(),
        (Outcome::Failed(refusal), hearing) => judge(refusal, hearing),
        _ => {}
    }
    outcome
}

/// Reads on for the filter alone. Whether the stream came to its proper end.
async fn drain(opened: &mut Opened, filter: &mut dyn Filter, clock: &Clock) -> bool {
    loop {
        let (until, _) = clock.silence(filter.may_be_silent());
        let Ok(Ok(chunk)) = tokio::time::timeout_at(until, opened.session.read_response_body()).await else {
            return false;
        };
        let ended = chunk.is_none();
        if filter.overhear(chunk).await != Flow::Go || ended {
            return ended;
        }
    }
}

/// The last words, and the proper end of the answer.
async fn finish(
    session: &mut Session,
    filter: &mut dyn Filter,
    mut mouth: Mouth,
    how: How,
    mut out: Vec<Bytes>,
) -> Outcome {
    let mut ending = Ending { how, sent_bytes: mouth.sent_bytes };
    let flow = filter.finish(&ending, &mut out).await;
    if ending.how != How::ClientGone {
        let held = match flow {
            Flow::Go | Flow::Stop => Ok(()),
            Flow::Hold => mouth.hold(session, filter, &mut out).await.map(drop),
        };
        if let Err(Cut::ClientGone) = held {
            if mouth.is_shut() {
                return Outcome::ClientGone;
            }
            ending = Ending { how: How::ClientGone, sent_bytes: mouth.sent_bytes };
            filter.finish(&ending, &mut out).await;
            return Outcome::Streamed(ending);
        }
        let closed = match held {
            Ok(()) => mouth.close(session, filter, &mut out).await,
            Err(cut) => Err(cut),
        };
        match closed {
            Ok(()) => {}
            Err(Cut::ClientGone) => ending.how = How::ClientGone,
            Err(Cut::Refused(refusal)) => return Outcome::Failed(refusal),
        }
    }
    ending.sent_bytes = mouth.sent_bytes;
    Outcome::Streamed(ending)
}

/// The way out to the client.
struct Mouth {
    /// Not sent yet.
    head: Option<Box<ResponseHeader>>,
    sent_bytes: u64,
    /// How long one write may take: a slow reader must not hold a backend.
    patience: Patience,
}

impl Mouth {
    /// Nothing has been sent, and nothing been made durable.
    fn is_shut(&self) -> bool {
        self.head.is_some()
    }

    /// Sends what is in `out`, the head before the first byte. `Refused` only when nothing was sent.
    async fn send(&mut self, session: &mut Session, filter: &mut dyn Filter, out: &mut Vec<Bytes>) -> Result<(), Cut> {
        for bytes in out.drain(..).filter(|bytes| !bytes.is_empty()) {
            if let Some(head) = self.head.take() {
                filter.before_first_byte().await.map_err(Cut::Refused)?;
                let head = framed(head, session).map_err(Cut::Refused)?;
                self.hand(pin!(session.write_response_header(head, false))).await?;
            }
            // Counted before, not after: a reader that stalls in the middle of a write has had most of it.
            self.sent_bytes = self.sent_bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            self.hand(pin!(session.as_downstream_mut().write_response_body(bytes, false))).await?;
        }
        Ok(())
    }

    /// Sends what is in `out` and stands still until the filter has an end of it; what it gives meanwhile is sent, what it
    /// gives with the end is left in `out`, because an upstream may have to be closed first. Never [`Flow::Hold`].
    async fn hold(
        &mut self,
        session: &mut Session,
        filter: &mut dyn Filter,
        out: &mut Vec<Bytes>,
    ) -> Result<Flow, Cut> {
        loop {
            self.send(session, filter, out).await?;
            let flow = unless_gone(session, filter.resume(out)).await?;
            if flow != Flow::Hold {
                return Ok(flow);
            }
        }
    }

    async fn close(&mut self, session: &mut Session, filter: &mut dyn Filter, out: &mut Vec<Bytes>) -> Result<(), Cut> {
        self.send(session, filter, out).await?;
        if self.is_shut() {
            return Err(Cut::Refused(nothing_came()));
        }
        self.hand(pin!(session.as_downstream_mut().write_response_body(Bytes::new(), true))).await
    }

    async fn hand(&self, mut write: Pin<&mut impl Future<Output = pingora::Result<()>>>) -> Result<(), Cut> {
        // Most writes are done at once, and those set no alarm.
        let done = match poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await {
            Poll::Ready(done) => done.is_ok(),
            Poll::Pending => tokio::time::timeout_at(self.patience.until(), write).await.is_ok_and(|done| done.is_ok()),
        };
        if done { Ok(()) } else { Err(Cut::ClientGone) }
    }
}

/// The head with the framing of this client's protocol: chunked for HTTP/1.1, none for HTTP/2, the end of the connection
/// for HTTP/1.0.
fn framed(mut head: Box<ResponseHeader>, session: &mut Session) -> Result<Box<ResponseHeader>, Refusal> {
    head.remove_header(&header::CONTENT_LENGTH);
    head.remove_header(&header::TRANSFER_ENCODING);
    head.remove_header(&header::CONNECTION);
    if !session.as_downstream().is_http2() {
        if session.req_header().version == Version::HTTP_11 {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")
                .map_err(|_| Refusal::Internal { place: "framing of a reply" })?;
        } else {
            session.as_downstream_mut().set_keepalive(None);
        }
    }
    Ok(head)
}

fn nothing_came() -> Refusal {
    Refusal::UpstreamFailed { why: "its answer ended before it began" }
}

fn nothing_good_came() -> Refusal {
    Refusal::UpstreamFailed { why: "its stream began with an error, or with more than one event may hold" }
}

#[cfg(test)]
mod tests;
