//! A facilitator that is a service over HTTP (x402's `specs/x402-specification-v2.md` §7).
//!
//! It is believed only as far as `remote/answers.rs` goes. Redirects are followed once and only within the same scheme, host and
//! port (services move their paths), so neither a payment nor our key ever reaches somebody else; a move to another host is for
//! the operator to write down. Nothing it says is logged but its word for a refusal, cut to what is printable.

pub(super) mod answers;
mod auth;
mod breaker;
pub(super) mod supported;

pub use auth::Auth;

use self::answers::Told;
use self::auth::Proof;
use self::breaker::{Breaker, Fault};
use self::supported::Book;
use super::facilitator::{Call, Facilitator, Kind, Settlement, Support, Verdict};
use super::wire::Version;
use crate::chain::web::{Ask, Reply, SHORT_IDLE, Silence, Web};
use crate::clock::UnixSeconds;
use crate::secret::Secret;
use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Largest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;

/// How to reach a facilitator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its base URL, below which `/verify`, `/settle` and `/supported` are. May hold a key.
    pub url: Secret,
    /// What it wants to see of us.
    pub auth: Auth,
    /// Send only `{x402Version, payload, accepted}` of a v2 payment: for a service that refuses members it does not know.
    pub minimal: bool,
    /// How long things take.
    pub times: Times,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Most time for a `/verify`.
    pub verify: Duration,
    /// Most time for a `/settle`; after it the outcome is unknown.
    pub settle: Duration,
    /// Most time for a `/supported`.
    pub supported: Duration,
    /// Between two looks at `/supported`.
    pub refresh: Duration,
    /// The same after a look that failed.
    pub again: Duration,
    /// After this long without a good look, what it supported is not known any more.
    pub stale: Duration,
    /// How long it is left alone after five failures in a row.
    pub rest: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            verify: Duration::from_secs(10),
            settle: Duration::from_secs(60),
            supported: Duration::from_secs(10),
            refresh: Duration::from_secs(600),
            again: Duration::from_secs(30),
            stale: Duration::from_secs(1_800),
            rest: Duration::from_secs(10),
        }
    }
}

/// One such service. Share it behind an `Arc`; any runtime may use it.
pub struct Remote {
    web: Web,
    proof: Proof,
    minimal: bool,
    times: Times,
    breaker: Breaker,
    /// What it supports, and since when we know.
    known: ArcSwapOption<(Book, Instant)>,
    /// Why we do not know, for operators.
    trouble: ArcSwap<String>,
    /// When `/supported` is to be asked next.
    due: Mutex<Instant>,
    /// The breaker has opened: `due` has changed.
    opened: Notify,
}

/// Says nothing of where it is or who we are there.
impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remote(…)")
    }
}

/// The members of a v2 payment that every facilitator must know.
#[derive(Serialize, Deserialize)]
struct Minimal<'a> {
    #[serde(rename = "x402Version", borrow)]
    version: &'a RawValue,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    accepted: &'a RawValue,
}

impl Remote {
    /// Prepares a client. Nothing is connected yet, and nothing is supported before [`Facilitator::probe`] or
    /// [`Facilitator::watch`] has asked. The error is a sentence that repeats neither URL nor key.
    pub fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self {
            web: Web::idling(&settings.url, SHORT_IDLE)?,
            proof: settings.auth.ready()?,
            minimal: settings.minimal,
            times: settings.times,
            breaker: Breaker::new(settings.times.rest),
            known: ArcSwapOption::empty(),
            trouble: ArcSwap::from_pointee("the facilitator has not said yet what it supports".to_owned()),
            due: Mutex::new(Instant::now()),
            opened: Notify::new(),
        })
    }

    /// The body of both calls, the same bytes however often it is sent.
    fn body(&self, call: &Call<'_>) -> Result<Bytes, String> {
        let bad = || "the payment cannot be written as JSON".to_owned();
        let minimal = if self.minimal && call.version == Version::V2 {
            let parts: Minimal<'_> = serde_json::from_str(call.payload.get()).map_err(|_| bad())?;
            Some(serde_json::value::to_raw_value(&parts).map_err(|_| bad())?)
        } else {
            None
        };
        let payload = minimal.as_deref().unwrap_or(call.payload);
        serde_json::to_vec(&Call { payload, ..*call }).map(Bytes::from).map_err(|_| bad())
    }

    /// One exchange, through a redirect if it stays with the service.
    async fn exchange(&self, name: &str, json: Option<&Bytes>, within: Duration) -> Result<Reply, Silence> {
        let method = if json.is_some() { "POST" } else { "GET" };
        let mut path = self.web.under(name);
        let mut moved = false;
        loop {
            let proof = self.proof.header(method, self.web.host(), &path, UnixSeconds::now());
            let ask = Ask { path: &path, json, headers: proof.as_slice(), within, at_most: MAX_ANSWER };
            let reply = self.web.ask(ask).await?;
            match self.web.stays_here(&reply) {
                Some(next) if !moved && matches!(reply.status.as_u16(), 307 | 308) => (path, moved) = (next, true),
                _ => return Ok(reply),
            }
        }
    }

    /// Notes an answer that was one, or why there was none; says the latter to operators.
    fn note<T>(&self, call: &'static str, answer: Result<T, Fault>) -> Result<T, String> {
        match &answer {
            Ok(_) => self.breaker.answered(),
            Err(Fault { why, counts }) => {
                tracing::warn!(call, why, "the facilitator gave no usable answer");
                if *counts && self.breaker.failed(Instant::now()) {
                    tracing::warn!(
                        "the facilitator is held to be down: nothing is offered through it until it answers"
                    );
                    self.trouble.store(Arc::new(format!("the facilitator is down: {why}")));
                    self.next_look(self.times.rest);
                    self.opened.notify_one();
                }
            }
        }
        answer.map_err(|fault| fault.why)
    }

    fn next_look(&self, after: Duration) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + after;
    }

    /// Asks `/supported` and keeps the answer. What was known stays known when there is none.
    async fn look(&self) {
        let reply = self.exchange("supported", None, self.times.supported).await;
        let wait = reply.as_ref().ok().and_then(retry_after);
        let before = self.known.load_full();
        let book = reply.map_err(silence).and_then(|reply| {
            let said = reply.status.is_success().then(|| Book::read(&reply.body, before.as_deref().map(|(b, _)| b)));
            said.flatten().ok_or_else(|| Fault {
                why: format!("its answer of what it supports has status {} and no list", reply.status.as_u16()),
                counts: true,
            })
        });
        match self.note("supported", book) {
            Ok(book) => {
                self.known.store(Some(Arc::new((book, Instant::now()))));
                self.next_look(self.times.refresh);
            }
            Err(why) => {
                self.trouble.store(Arc::new(format!("the facilitator does not say what it supports: {why}")));
                let again = match () {
                    () if self.breaker.is_open() => self.times.rest,
                    // Nothing can be offered before it has said for the first time.
                    () if before.is_none() => self.times.again / 15,
                    () => self.times.again,
                };
                // Never longer than between two looks at a facilitator that is well.
                self.next_look(wait.unwrap_or(again).min(self.times.refresh));
            }
        }
    }
}

fn silence(silence: Silence) -> Fault {
    Fault::silence(match silence {
        Silence::NotSent => "it cannot be reached, nothing was sent",
        Silence::Lost => "it gave no whole answer in time",
    })
}

/// An answer to a call for a payment, as `read` takes it.
fn answer<T>(reply: Result<Reply, Silence>, read: impl FnOnce(u16, &[u8]) -> Result<T, String>) -> Result<T, Fault> {
    let reply = reply.map_err(silence)?;
    let status = reply.status.as_u16();
    read(status, &reply.body).map_err(|why| Fault::of_status(status, why))
}

/// `Retry-After` in seconds; a date is not read.
fn retry_after(reply: &Reply) -> Option<Duration> {
    let asked_to_wait = matches!(reply.status.as_u16(), 429 | 503);
    let seconds: u32 =
        reply.headers.get(header::RETRY_AFTER).filter(|_| asked_to_wait)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(u64::from(seconds).max(1)))
}

#[async_trait]
impl Facilitator for Remote {
    fn support(&self, kind: &Kind) -> Result<Support, String> {
        if self.breaker.is_open() {
            return Err(self.trouble.load().to_string());
        }
        match self.known.load().as_deref() {
            Some((book, read)) if read.elapsed() < self.times.stale => book.support(kind),
            _ => Err(self.trouble.load().to_string()),
        }
    }

    async fn verify(&self, call: &Call<'_>) -> Verdict {
        let body = match self.body(call) {
            Ok(body) => body,
            Err(why) => return Verdict::Unknown { why },
        };
        if !self.breaker.may_ask(Instant::now()) {
            return Verdict::Unknown { why: "it is held to be down".into() };
        }
        let reply = self.exchange("verify", Some(&body), self.times.verify).await;
        let read = answer(reply, |status, body| answers::verified(status, body, &call.expects));
        self.note("verify", read).unwrap_or_else(|why| Verdict::Unknown { why })
    }

    /// Asked even when the facilitator is held to be down: what was delivered is owed, and the same authorization moves money
    /// at most once. A connection that could not be made is *unknown* like any other silence, because an earlier call with the
    /// same authorization may have been heard.
    async fn settle(&self, call: &Call<'_>) -> Settlement {
        let body = match self.body(call) {
            Ok(body) => body,
            Err(why) => return Settlement::Unknown { why },
        };
        for again in [false, true] {
            let reply = self.exchange("settle", Some(&body), self.times.settle).await;
            let read = answer(reply, |status, body| answers::settled(status, body, &call.expects))
                .map_err(|fault| Fault { counts: fault.counts && !call.again, ..fault });
            match self.note("settle", read) {
                Ok(Told::Settled { transaction, payer }) => return Settlement::Settled { transaction, payer },
                // It was handed in: the payment's own effect (a nonce used, a balance gone) may be what fails it now.
                Ok(Told::Failed { reason }) if again => {
                    return Settlement::Unknown { why: format!("it was handed in, then refused: {reason}") };
                }
                Ok(Told::Failed { reason }) => return Settlement::Failed { reason },
                Ok(Told::Pending) => (),
                Ok(Told::Open { why }) => {
                    tracing::warn!(call = "settle", why, "the facilitator leaves it open whether money moved");
                    return Settlement::Unknown { why };
                }
                Err(why) => return Settlement::Unknown { why },
            }
        }
        Settlement::Unknown { why: "it is handed in and not confirmed yet".into() }
    }

    async fn watch(&self) {
        loop {
            let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => self.look().await,
                () = self.opened.notified() => (),
            }
        }
    }

    async fn probe(&self) {
        self.look().await;
    }
}

#[cfg(test)]
mod tests;
