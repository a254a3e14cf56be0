//! [`Paid`] → receipt: what is sent to the backend, what its reply costs, and what the client is told.
//!
//! One [`Delivery`] per forwarded request. It sees every byte of the reply, but no socket.

use super::hold::Hold;
use super::loss::{Losses, Room};
use super::pay::{Paid, show_usd};
use super::price::Quoted;
use super::receipt::{self, Signet};
use super::{Stop, Toll};
use crate::clock::UnixSeconds;
use crate::ids;
use crate::journal::{Entry, Receipt};
use crate::money::{Atoms, Usd};
use crate::openai::error::body as openai_error;
use crate::openai::meter::Meter;
use crate::openai::receipt::{add_block, receipt_chunk, receipt_comment};
use crate::openai::request::Rewrite;
use crate::openai::usage::{Bounds, Verdict, read_json};
use crate::refusal::Refusal;
use crate::store::Write;
use crate::usage::{Usage, UsageSource};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// Most of a stream that waits for its first word. More is let go, whatever it says.
const SILENT_BYTES: usize = 64 * 1024;

/// How a reply ended, as the pump saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The backend finished and the client took everything.
    Whole,
    /// The client went away.
    ClientGone,
    /// The backend died or fell silent in the middle.
    UpstreamDied,
}

/// A reply in the making.
pub struct Delivery {
    toll: Arc<Toll>,
    signet: Arc<Signet>,
    quoted: Arc<Quoted>,
    hold: Option<Hold>,
    room: Option<Room>,
    output: u64,
    bounds: Bounds,
    receipt: Receipt,
    meter: Meter,
    /// Frames that came before the first word: comments, the chunk that only names a role.
    silent: Vec<Bytes>,
    sent_at: Instant,
    delivered: bool,
}

impl Delivery {
    /// Begins serving what was paid.
    pub fn begin(toll: Arc<Toll>, signet: Arc<Signet>, paid: Paid, request: &str) -> Self {
        let Paid { quoted, hold, output, room } = paid;
        let allowed = &quoted.allowed;
        let terms = hold.as_ref().map(Hold::terms);
        let charged = terms.map_or(Atoms(0), |t| t.amount);
        let decimals = terms.map_or(6, |t| t.decimals);
        let receipt = Receipt {
            id: ids::fresh("rcpt"),
            request: request.to_owned(),
            at: UnixSeconds::now(),
            route: allowed.route.path.clone(),
            tier: allowed.route.tier.name.clone(),
            model: allowed.model.name.clone(),
            pool: allowed.model.pool.clone(),
            rail: terms.map_or_else(|| ids::RailId::from("free"), |t| t.rail.clone()),
            generation: quoted.generation.clone(),
            charged,
            decimals,
            charged_usd: charged.to_usd(decimals).unwrap_or(Usd::ZERO),
            actual_usd: None,
            usage: None,
            usage_source: None,
            reference: hold.as_ref().map_or_else(String::new, |h| h.claim().reference.clone()),
            payer: hold.as_ref().and_then(|h| h.claim().payer.clone()),
            complete: false,
        };
        let bounds = Bounds { choices: quoted.parts.n, completion: Some(output.saturating_mul(quoted.parts.n)) };
        let meter = Meter::new(allowed.ask.wants_usage, bounds);
        Self {
            toll,
            signet,
            quoted,
            hold,
            room,
            output,
            bounds,
            receipt,
            meter,
            silent: Vec::new(),
            sent_at: Instant::now(),
            delivered: false,
        }
    }

    /// The receipt so far.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Whether the reply is expected to stream.
    pub fn streams(&self) -> bool {
        self.quoted.allowed.stream
    }

    /// The body for the backend: our own serialisation, with the backend's model name and the output that was bought. Good
    /// once: what the client sent is let go, for a stream may stand still for long.
    pub fn take_body(&mut self, ability: crate::catalogue::ProfileAbility) -> Bytes {
        let allowed = &self.quoted.allowed;
        let body = allowed.ask.rewrite(&Rewrite {
            model: &allowed.model.upstream,
            max_output: self.output,
            spelling: ability.spelling,
            stream: allowed.stream,
            // A running count on every chunk is for clients that asked for usage; a fixed amount needs none.
            continuous_usage: ability.continuous_usage && allowed.ask.wants_usage,
        });
        self.quoted = Arc::new(self.quoted.without_body());
        body
    }

    /// A reply that came whole: metered, written down, and given its receipt. The body to send.
    pub async fn whole(&mut self, body: Bytes) -> Result<Bytes, Stop> {
        let verdict = read_json(&body, self.bounds);
        if verdict.failed {
            // HTTP 200 around an error: nothing was produced, nothing is delivered.
            return Err(Refusal::UpstreamFailed { why: "it answered with an error inside a success" }.into());
        }
        if !says_something(&verdict) {
            return Err(Refusal::UpstreamFailed { why: "its answer says nothing" }.into());
        }
        self.settle(&verdict, End::Whole);
        self.receipt.complete = true;
        self.write_down().await?;
        let named = self.quoted.allowed.route.receipt.body.as_deref().filter(|_| self.hold.is_some());
        let with_block = named.and_then(|name| add_block(&body, name, &self.block()));
        Ok(with_block.unwrap_or(body))
    }

    /// The first byte of a stream is about to leave: durable from here, unless [`Delivery::end`] has made it so.
    pub async fn first_byte(&mut self) -> Result<(), Stop> {
        if self.delivered {
            return Ok(());
        }
        let waited = self.sent_at.elapsed().as_secs_f64();
        let pool = self.receipt.pool.as_str();
        self.toll.metrics.first_token_seconds.with_label_values(&[pool]).observe(waited);
        self.deliver(Vec::new()).await
    }

    /// One chunk from the backend; `out` gets what the client is to see of it. Nothing leaves before there is a word of an answer:
    /// until then a failure costs the payer nothing, and a backend's heartbeat is not what was bought.
    pub fn chunk(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Result<(), Refusal> {
        let fed = self.meter.feed(chunk, &mut self.silent);
        let waiting: usize = self.silent.iter().map(Bytes::len).sum();
        if self.delivered || waiting > SILENT_BYTES || says_something(&self.meter.verdict()) {
            out.append(&mut self.silent);
        }
        fed.map_err(|_| Refusal::UpstreamFailed { why: "an event is too large" })
    }

    /// The stream is over: the books, then what is still to be sent (receipt, `[DONE]`). A stream that said nothing leaves `out`
    /// and the books as they are: no byte has left, none will, and what was paid can be redeemed.
    pub async fn end(&mut self, end: End, out: &mut Vec<Bytes>) {
        self.meter.finish();
        let verdict = self.meter.verdict();
        self.toll.metrics.dropped_frames.inc_by(verdict.forged_frames);
        if !self.delivered && !says_something(&verdict) {
            return;
        }
        out.append(&mut self.silent);
        self.settle(&verdict, end);
        self.receipt.complete = end == End::Whole && !verdict.failed;
        if let Err(stop) = self.write_down().await {
            tracing::error!(receipt = %self.receipt.id, reason = stop.refusal.code(), "the final receipt was not written");
        }
        if end != End::ClientGone && self.hold.is_some() {
            let form = &self.quoted.allowed.route.receipt;
            if let Some(name) = &form.body {
                let block = self.block();
                out.push(receipt_chunk(
                    &self.receipt.id,
                    self.receipt.at.0,
                    self.receipt.model.as_str(),
                    name,
                    &block,
                    self.quoted.allowed.ask.wants_usage,
                ));
            }
            if form.header {
                out.push(receipt_comment(&self.signet.seal(&self.receipt)));
            }
        }
        if end == End::UpstreamDied {
            out.push(cut_short());
        }
        out.extend(self.meter.take_done());
    }

    /// Header lines for the reply's head: the protocol's receipt, with what is known by now.
    pub fn headers(&self) -> Vec<(http::HeaderName, http::HeaderValue)> {
        let mut headers = Vec::new();
        if let (Some(hold), true) = (&self.hold, self.quoted.allowed.route.receipt.header)
            && let Some(rail) = self.toll.rail(&hold.terms().rail)
        {
            headers.extend(rail.receipt(hold.claim(), &self.receipt));
        }
        headers
    }

    /// It failed before the first byte: the payer may come again.
    pub async fn fail(mut self, refusal: Refusal) -> Stop {
        self.count_exchange();
        match self.hold.take() {
            None => refusal.into(),
            Some(hold) => Stop { refusal, moved: hold.give_back().await, claimed: true },
        }
    }

    /// Frames seen so far say that the backend failed before it produced anything.
    pub fn failed_at_once(&self) -> bool {
        // Asked on every chunk: once there was a first byte it costs nothing, because a verdict is a copy.
        if self.delivered {
            return false;
        }
        let verdict = self.meter.verdict();
        verdict.failed && !says_something(&verdict)
    }

    fn block(&self) -> String {
        receipt::public(&self.receipt).to_string()
    }

    /// Usage → what it would have cost; counters and alarms. Pure apart from them.
    fn settle(&mut self, verdict: &Verdict, end: End) {
        let pool = self.receipt.pool.clone();
        let (usage, source, label) = match (verdict.usage, end) {
            (Some(usage), _) => (Some(usage), UsageSource::Reported, "reported"),
            (None, End::ClientGone) if verdict.delivered_chunks > 0 => {
                let prompt = self.quoted.parts.prompt_tokens.unwrap_or(0);
                let counted = Usage { prompt, completion: verdict.delivered_chunks, ..Usage::default() };
                (Some(counted), UsageSource::Counted, "counted")
            }
            (None, _) => (None, UsageSource::Missing, if verdict.absurd { "absurd" } else { "missing" }),
        };
        self.toll.metrics.usage.with_label_values(&[pool.as_str(), label]).inc();
        if label == "missing" || label == "absurd" {
            tracing::warn!(pool = %pool, kind = label, request = %self.receipt.request, "the backend reported no usable usage");
        }
        if let Some(usage) = usage {
            let model = self.receipt.model.as_str();
            let tokens = |kind: &str, n: u64| self.toll.metrics.tokens.with_label_values(&[model, kind]).inc_by(n);
            tokens("prompt", usage.prompt);
            tokens("cached", usage.cached);
            tokens("completion", usage.completion);
            tokens("reasoning", usage.reasoning);
            self.receipt.actual_usd = self.quoted.cost(&usage);
        }
        self.receipt.usage = usage;
        self.receipt.usage_source = Some(source);
        self.count_exchange();
    }

    fn count_exchange(&self) {
        let seconds = self.sent_at.elapsed().as_secs_f64();
        self.toll.metrics.upstream_seconds.with_label_values(&[self.receipt.pool.as_str()]).observe(seconds);
    }

    /// Loss that the operator carries, as a line for the store's running totals.
    fn absorbed(&mut self) -> Vec<(String, u64, Usd)> {
        let Some(room) = self.room.take() else { return Vec::new() };
        let lost = self.receipt.actual_usd.unwrap_or(Usd::ZERO).less(self.receipt.charged_usd);
        let (day, lost) = room.lose(lost);
        if lost == Usd::ZERO {
            return Vec::new();
        }
        let tier = &self.receipt.tier;
        self.toll.metrics.absorbed_usd.with_label_values(&[tier.as_str()]).inc_by(show_usd(lost));
        vec![(Losses::tally_name(tier), day, lost)]
    }

    /// The final receipt into the books, once: with the delivery if that was not written yet, else alone.
    async fn write_down(&mut self) -> Result<(), Stop> {
        let tally = self.absorbed();
        if !self.delivered {
            return self.deliver(tally).await;
        }
        if self.hold.is_some() {
            let journal = vec![Entry::Receipt(Box::new(self.receipt.clone()))];
            let write = Write { claim: None, journal, tally };
            self.toll.store.commit(write).await.map_err(|e| {
                tracing::error!(error = %e, "the store cannot answer");
                Stop::from(Refusal::Store { retry_after_seconds: 10 })
            })?;
        }
        Ok(())
    }

    async fn deliver(&mut self, tally: Vec<(String, u64, Usd)>) -> Result<(), Stop> {
        if let Some(hold) = &mut self.hold {
            hold.deliver(&self.receipt, tally).await?;
        }
        self.delivered = true;
        Ok(())
    }
}

/// Whether there is a word of an answer, or at least its end.
fn says_something(verdict: &Verdict) -> bool {
    verdict.delivered_chunks > 0 || verdict.finished
}

/// The last event of a stream whose backend went away: clients raise it as an API error instead of taking half an answer for a
/// whole one.
fn cut_short() -> Bytes {
    let body =
        openai_error("the backend went away in the middle of its answer", "server_error", "upstream_failed", None);
    let mut frame = b"data: ".to_vec();
    frame.extend_from_slice(&body);
    frame.extend_from_slice(b"\n\n");
    frame.into()
}
