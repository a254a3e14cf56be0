//! A paid request on its way: [`Delivery`] (what the bytes mean) behind the pump's [`Filter`] (when they move).

use super::forward::{self, Attempt, Ending, Filter, Flow, HELD_FREELY, How, Outcome, Outgoing, Verdict};
use super::gate::Gate;
use super::reply::Answer;
use super::scrub;
use super::visit::Visit;
use crate::clock::UnixSeconds;
use crate::flow::Stop;
use crate::flow::pay::Paid;
use crate::flow::settle::{Delivery, End, NOT_THIS_ONE, Next};
use crate::ids::UpstreamModel;
use crate::openai::error::read_upstream;
use crate::refusal::Refusal;
use crate::rules::plan::Model;
use crate::surface::{Surface, Whole};
use crate::upstream::{Affinity, LONGEST_ASKED, Lane, Pool};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::sync::Arc;

/// The public name of the model that answers.
const MODEL: HeaderName = HeaderName::from_static("pontage-model");
/// Largest reply that is held whole, in bytes: 2,048 vectors of 3,072 numbers are 33 MB in base64, and up to 150 MB as indented text.
const fn most_held(surface: Surface) -> usize {
    match surface {
        Surface::Embeddings => 160 * 1024 * 1024,
        _ => HELD_FREELY,
    }
}

/// Largest error body looked at.
const ERROR_BYTES: usize = 64 * 1024;

/// How a paid request ended.
pub enum Sent {
    /// An answer that is still to be written.
    Answer(Answer),
    /// Everything is out; the `outcome` label.
    Out(&'static str),
    /// Nobody is left to answer.
    Gone,
}

/// Counts what is going on while it lives.
pub(super) struct Busy<'a>(&'a Gate, &'static str);

impl<'a> Busy<'a> {
    pub(super) fn with(gate: &'a Gate, kind: &'static str) -> Self {
        gate.toll.metrics.inflight.with_label_values(&[kind]).inc();
        Self(gate, kind)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.toll.metrics.inflight.with_label_values(&[self.1]).dec();
    }
}

/// Forwards what was paid. `Err`: nothing was sent to the client, and the money is where the stop says.
pub async fn run(gate: &Gate, session: &mut Session, visit: &mut Visit, paid: Box<Paid>) -> Result<Sent, Stop> {
    let model = Arc::clone(&paid.quoted.allowed.model);
    let surface = paid.quoted.allowed.route.surface;
    let within = paid.money.lasts(UnixSeconds::now());
    let lane = Lane { within, ..gate.toll.lane(&paid.quoted) };
    let delivery = Delivery::begin(Arc::clone(&gate.toll), Arc::clone(&gate.signet), *paid, &visit.request);
    let mut delivery = Box::new(delivery);
    // Whatever the client called it, and also when it called none: who answers.
    let named = HeaderValue::from_str(model.name.as_str()).ok().map(|name| (MODEL, name));
    let extra: Vec<_> = gate.common_headers(session, visit).into_iter().chain(named.clone()).collect();
    let client = scrub::to_backend(&session.req_header().headers);
    let (outcome, refused) = {
        let _busy = Busy::with(gate, if delivery.streams() { "streams" } else { "upstream" });
        let mut pipe = Pipe {
            delivery: &mut delivery,
            client: &client,
            path: surface.upstream_path(),
            extra: &extra,
            status: 0,
            refused: None,
            is_cut: false,
        };
        let outcome = forward::forward(session, &gate.lines, &lane, &mut pipe).await;
        (outcome, pipe.refused)
    };
    let stop = match outcome {
        Outcome::Streamed(ending) => {
            visit.status = 200;
            visit.sold = Some(delivery.receipt().into());
            return Ok(Sent::Out(match ending.how {
                How::Complete => "served",
                How::ClientGone => "client_gone",
                How::Stopped if delivery.is_unpaid() => "unpaid",
                // Else the filter stops a stream only when it cannot be metered any further.
                How::Stopped => {
                    count_failure(gate, &delivery, &Refusal::UpstreamFailed { why: "an event is too large" });
                    "upstream_died"
                }
                How::Upstream(refusal) => {
                    count_failure(gate, &delivery, &refusal);
                    "upstream_died"
                }
                // How long an answer is may be the request's doing.
                How::OutOfTime(_) => "out_of_time",
            }));
        }
        Outcome::Buffered { status, headers, body, hearing } => {
            let answer = Box::pin(whole(&mut delivery, &model, status, &headers, body)).await;
            if let Some(hearing) = hearing {
                match &answer {
                    Err(Stop { refusal: Refusal::UpstreamFailed { why }, .. }) if *why == NOT_THIS_ONE => {
                        hearing.declined();
                    }
                    Err(Stop { refusal: Refusal::UpstreamFailed { .. }, .. }) => hearing.refused(502, None),
                    // What else went wrong is not the server's doing.
                    Ok(_) | Err(_) => hearing.served(),
                }
            }
            match answer {
                Ok(mut answer) => {
                    answer.headers.extend(named);
                    visit.sold = Some(delivery.receipt().into());
                    return Ok(Sent::Answer(answer));
                }
                Err(stop) => stop,
            }
        }
        Outcome::ClientGone => {
            visit.sold = Box::pin(delivery.leave(None)).await.as_ref().map(Into::into);
            return Ok(Sent::Gone);
        }
        Outcome::Unheard(body) => {
            visit.sold = Box::pin(delivery.leave(Some(body))).await.as_ref().map(Into::into);
            return Ok(Sent::Gone);
        }
        Outcome::Failed(refusal) => Stop::from(refusal),
    };
    let stop = refused.unwrap_or(stop);
    count_failure(gate, &delivery, &stop.refusal);
    visit.channel = delivery.channel();
    // A stop that speaks of money already has been through the books.
    if stop.claimed {
        return Err(stop);
    }
    Err(Box::pin(delivery.fail(stop.refusal)).await)
}

/// Under the pool that was asked last, as its seconds are: not under the model's own, which a fallback may have stood in for.
fn count_failure(gate: &Gate, delivery: &Delivery, refusal: &Refusal) {
    let kind = match refusal {
        Refusal::UpstreamUnavailable { .. } => "connect",
        Refusal::UpstreamTimeout { .. } => "timeout",
        Refusal::UpstreamRefused { .. } => "status",
        Refusal::UpstreamFailed { why } if *why == forward::REFUSED_OUR_KEY => "auth",
        Refusal::UpstreamFailed { .. } | Refusal::UpstreamDown(_) => "failed",
        _ => return,
    };
    gate.toll.metrics.upstream_errors.with_label_values(&[delivery.receipt().pool.as_str(), kind]).inc();
}

/// A reply that came whole: an error becomes a refusal, a completion is settled and gets its receipt.
async fn whole(
    delivery: &mut Delivery,
    model: &Model,
    status: u16,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Answer, Stop> {
    if !(200..300).contains(&status) {
        let told = read_upstream(status, &body, model.upstream_in(&delivery.receipt().pool));
        let retry_after_seconds = forward::retry_after(headers).map(|asked| asked.as_secs());
        let refusal = Refusal::UpstreamRefused {
            status,
            kind: told.kind,
            code: told.code,
            param: told.param,
            message: told.message,
            retry_after_seconds,
        };
        return Err(refusal.into());
    }
    let json = HeaderValue::from_static("application/json");
    let kind = whole_type(delivery.surface(), headers).unwrap_or(json);
    let body = delivery.whole(body).await?;
    let mut answer_headers = vec![
        (header::CONTENT_TYPE, kind),
        // Paid content is nobody else's: no shared cache may keep it.
        (header::CACHE_CONTROL, HeaderValue::from_static("private, no-store")),
    ];
    if delivery.surface().whole() != Whole::Json {
        // Nobody is to find a page in it.
        answer_headers.push((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
    }
    answer_headers.extend(passed(headers));
    answer_headers.extend(delivery.headers());
    Ok(Answer { status, headers: answer_headers, body, outcome: "served" })
}

/// The type of an answer that came whole, as the client is told it; `None` when the surface does not answer so.
fn whole_type(surface: Surface, headers: &HeaderMap) -> Option<HeaderValue> {
    const SOUND: [&str; 12] = [
        "application/octet-stream",
        "audio/aac",
        "audio/flac",
        "audio/l16",
        "audio/mp3",
        "audio/mpeg",
        "audio/ogg",
        "audio/opus",
        "audio/pcm",
        "audio/wav",
        "audio/webm",
        "audio/x-wav",
    ];
    const TEXT: [&str; 5] = ["application/json", "application/x-subrip", "text/plain", "text/srt", "text/vtt"];
    let kind = essence(headers);
    let known: &[&str] = match surface.whole() {
        Whole::Json => &["application/json"],
        Whole::Sound => &SOUND,
        Whole::Text => &TEXT,
    };
    if kind == "application/json" && known.contains(&"application/json") {
        return Some(HeaderValue::from_static("application/json"));
    }
    // With its parameters: raw sound is nothing without its rate.
    known.contains(&kind.as_str()).then(|| headers.get(header::CONTENT_TYPE).cloned()).flatten()
}

/// The type of a reply, without what is said about it.
fn essence(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Those of the backend's headers that clients may see, apart from the ones we write.
fn passed(headers: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> + '_ {
    let ours = [header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER];
    headers.iter().filter(move |(name, _)| !ours.contains(name)).map(|(name, value)| (name.clone(), value.clone()))
}

struct Pipe<'a> {
    delivery: &'a mut Delivery,
    /// Those of the client's headers that backends may see.
    client: &'a HeaderMap,
    path: &'a str,
    extra: &'a [(HeaderName, HeaderValue)],
    status: u16,
    /// The whole story of a stop that the pump can only pass on as a refusal.
    refused: Option<Stop>,
    /// The stream cannot be metered any further.
    is_cut: bool,
}

impl Pipe<'_> {
    /// How the stream goes on, and what its client is told when it was not paid for before it began.
    fn goes_on(&mut self, next: Next) -> Flow {
        if next == Next::Stop {
            self.refused = self.delivery.unpaid_before_it_began().map(Stop::from).or(self.refused.take());
        }
        flow(next)
    }

    fn stream_head(&self, headers: &HeaderMap) -> Option<Box<ResponseHeader>> {
        let mut head = ResponseHeader::build(self.status, None).ok()?;
        let fixed = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("private, no-store, no-transform")),
            // nginx in front would otherwise collect the stream before it passes it on.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        for (name, value) in fixed.into_iter().chain(passed(headers)).chain(self.delivery.headers()) {
            head.append_header(name, value).ok()?;
        }
        for (name, value) in self.extra {
            head.append_header(name.clone(), value.clone()).ok()?;
        }
        Some(Box::new(head))
    }
}

#[async_trait]
impl Filter for Pipe<'_> {
    fn affinity(&self, pool: &Pool) -> Affinity {
        self.delivery.affinity(pool)
    }

    fn request(&mut self, pool: &Pool, last: bool) -> Outgoing {
        let body = self.delivery.body(pool, last);
        let kind = HeaderValue::from_str(&self.delivery.content_type(&body));
        let out = Outgoing::post(self.path, self.client, body).answered_whole(!self.delivery.streams());
        match kind {
            Ok(kind) => out.of_type(kind),
            // It is ASCII of our own.
            Err(_) => out,
        }
    }

    fn model(&self, pool: &Pool) -> UpstreamModel {
        self.delivery.model(pool).clone()
    }

    fn tried(&mut self, attempt: &Attempt<'_>) {
        self.delivery.tried(attempt.pool, attempt.who, attempt.outcome);
    }

    async fn head(&mut self, status: u16, headers: &HeaderMap) -> Verdict {
        self.status = status;
        self.delivery.let_text_go();
        let kind = essence(headers);
        let verdict = match StatusCode::from_u16(status) {
            Ok(s) if s.is_success() => match kind.as_str() {
                _ if self.delivery.surface().whole() != Whole::Json => {
                    match whole_type(self.delivery.surface(), headers) {
                        Some(_) => Verdict::Buffer { limit: most_held(self.delivery.surface()) },
                        None => {
                            Verdict::Fail(Refusal::UpstreamFailed { why: "its answer is not of a type that was asked" })
                        }
                    }
                }
                // What was asked for as JSON cannot be read from a stream, nor the other way about: it would be paid for nothing.
                "text/event-stream" | "application/json"
                    if (kind == "text/event-stream") != self.delivery.streams() =>
                {
                    Verdict::Fail(Refusal::UpstreamFailed {
                        why: "its answer streams where none was asked, or does not",
                    })
                }
                "text/event-stream" => match self.stream_head(headers) {
                    Some(head) => Verdict::Stream(head),
                    None => Verdict::Fail(Refusal::Internal { place: "head of a stream" }),
                },
                "application/json" => Verdict::Buffer { limit: most_held(self.delivery.surface()) },
                _ => Verdict::Fail(Refusal::UpstreamFailed { why: "its answer is neither JSON nor an event stream" }),
            },
            Ok(s) if s.is_client_error() => Verdict::Buffer { limit: ERROR_BYTES },
            Ok(s) if s.is_redirection() => Verdict::Fail(Refusal::UpstreamFailed { why: "it redirects" }),
            _ => Verdict::Fail(match forward::retry_after(headers).map(|asked| asked.min(LONGEST_ASKED).as_secs()) {
                Some(seconds @ 1..) => Refusal::UpstreamDown(seconds),
                Some(0) | None => Refusal::UpstreamFailed { why: "it answered with a server error" },
            }),
        };
        if (200..300).contains(&status) && !matches!(verdict, Verdict::Fail(_)) {
            self.delivery.begins();
        }
        verdict
    }

    async fn before_first_byte(&mut self) -> Result<(), Refusal> {
        self.delivery.first_byte().await.map_err(|stop| {
            let refusal = stop.refusal.clone();
            self.refused = Some(stop);
            refusal
        })
    }

    async fn chunk(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Flow {
        match self.delivery.chunk(chunk, out).await {
            Ok(_) if self.delivery.failed_at_once() => {
                // An error instead of a first token: nothing is delivered, so nothing is sent and the payment stays good.
                out.clear();
                Flow::Stop
            }
            Ok(next) => self.goes_on(next),
            Err(refusal) => {
                tracing::warn!(reason = refusal.code(), "a stream was cut");
                self.is_cut = true;
                Flow::Stop
            }
        }
    }

    async fn resume(&mut self, out: &mut Vec<Bytes>) -> Flow {
        let next = self.delivery.resume(out).await;
        self.goes_on(next)
    }

    fn listens(&self, pool: &Pool) -> bool {
        self.delivery.drains(pool)
    }

    fn may_be_silent(&self) -> bool {
        self.delivery.thinks()
    }

    fn has_failed(&self) -> bool {
        self.delivery.has_failed()
    }

    fn is_broken(&self) -> bool {
        // An event that is too large may be the request's doing, and is held against no server.
        self.delivery.is_at_fault()
    }

    async fn overhear(&mut self, chunk: Option<Bytes>) -> Flow {
        if self.delivery.overhear(chunk) { Flow::Go } else { Flow::Stop }
    }

    async fn finish(&mut self, ending: &Ending, out: &mut Vec<Bytes>) -> Flow {
        let end = match ending.how {
            How::Complete => End::Whole,
            How::ClientGone => End::ClientGone,
            How::Stopped if self.delivery.is_unpaid() => End::Unpaid,
            How::OutOfTime(_) => End::OutOfTime,
            How::Stopped if self.is_cut => End::TooLarge,
            How::Stopped | How::Upstream(_) => End::UpstreamDied,
        };
        flow(self.delivery.end(end, out).await)
    }
}

fn flow(next: Next) -> Flow {
    match next {
        Next::Go => Flow::Go,
        Next::Hold => Flow::Hold,
        Next::Stop => Flow::Stop,
    }
}
