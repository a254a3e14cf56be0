//! [`Paid`] → receipt: what is sent to the backend, what its reply costs, and what the client is told.
//!
//! One [`Delivery`] per forwarded request. It sees every byte of the reply, but no socket.

mod beside;
mod bill;
mod cut;
mod leave;

use super::lease::Wait;
use super::means::Means;
use super::pay::{Money, Paid};
use super::price::Quoted;
use super::receipt::{self, Signet};
use super::running::Runs;
use super::{Stop, Toll};
use crate::clock::UnixSeconds;
use crate::ids::{self, UpstreamModel};
use crate::journal::{Entry, Receipt, Settlement};
use crate::money::Usd;
use crate::openai::cover::Cover as CoverCount;
use crate::openai::meter::Meter;
use crate::openai::receipt::{add_block, receipt_comment};
use crate::openai::reply;
use crate::openai::request::Rewrite;
use crate::openai::usage::{Bounds, Verdict};
use crate::refusal::Refusal;
use crate::rules::plan::Balance;
use crate::store::Write;
use crate::surface::{Surface, Whole};
use crate::tokens::Vocabulary;
use crate::upstream::{Affinity, Pool, Who};
use crate::usage::Shape;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::Instant;

/// Most of a stream that waits for its first word. More is let go, whatever it says. Responses begin by repeating what was asked.
fn most_silent(surface: Surface) -> usize {
    if surface == Surface::Responses { 8 << 20 } else { 64 * 1024 }
}

/// Names the receipt of a reply whose price is not known when its head leaves: `GET /receipts/{id}`.
pub const RECEIPT_ID: HeaderName = HeaderName::from_static("pontage-receipt-id");

/// Why a success around an error failed that speaks of what was asked: it is held against no server.
pub const NOT_THIS_ONE: &str = "it answered with an error about the request inside a success";

/// How a reply ended, as the pump saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The backend finished and the client took everything.
    Whole,
    /// The client went away.
    ClientGone,
    /// The backend died or fell silent in the middle.
    UpstreamDied,
    /// No voucher came in time to cover more, or the channel was paid out.
    Unpaid,
    /// We hung up on a backend that was answering: it had had its `total_seconds`.
    OutOfTime,
    /// We hung up on a backend that was answering: one of its events is larger than what is held of one.
    TooLarge,
}

/// How a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With the backend's next words.
    Go,
    /// Not before [`Delivery::resume`] says so; what was given is to be sent first.
    Hold,
    /// Not at all.
    Stop,
}

/// A reply in the making.
pub struct Delivery {
    toll: Arc<Toll>,
    signet: Arc<Signet>,
    quoted: Arc<Quoted>,
    money: Money,
    output: u64,
    bounds: Bounds,
    receipt: Receipt,
    meter: Meter,
    /// Frames that came before the first word: comments, the chunk that only names a role.
    silent: Vec<Bytes>,
    sent_at: Instant,
    /// Who answers.
    who: Option<Who>,
    delivered: bool,
    /// A backend had the request.
    asked: bool,
    /// It answers, and not with a refusal.
    begun: bool,
    /// The client left, and it was listened to, to its end.
    drained: bool,
    /// The stream is over, and what it used is not covered yet.
    ending: Option<End>,
    /// No cover came in time.
    unpaid: Option<Refusal>,
    /// What it used and costs has been counted. A client that leaves while that is written down changes it no more.
    settled: bool,
    /// What it was charged has been, too.
    charge_counted: bool,
    /// The lease has ended, durably.
    spent: bool,
    /// Of a stream, whose receipt is named before it is written.
    _runs: Option<Runs>,
}

impl Delivery {
    /// Begins serving what was paid.
    pub fn begin(toll: Arc<Toll>, signet: Arc<Signet>, paid: Paid, request: &str) -> Self {
        let Paid { quoted, money, output } = paid;
        let allowed = &quoted.allowed;
        let Means { rail, charged, decimals, reference, transaction, settlement, payer, receipt } = Means::of(&money);
        let receipt = Receipt {
            id: receipt.unwrap_or_else(|| ids::fresh("rcpt")),
            request: request.to_owned(),
            at: UnixSeconds::now(),
            route: allowed.route.path.clone(),
            tier: allowed.route.tier.name.clone(),
            model: allowed.model.name.clone(),
            pool: allowed.model.pool.clone(),
            server: None,
            rail,
            generation: quoted.generation.clone(),
            charged,
            decimals,
            charged_usd: charged.to_usd(decimals).unwrap_or(Usd::ZERO),
            actual_usd: None,
            usage: None,
            usage_source: None,
            reference,
            transaction,
            settlement,
            payer,
            attempts: 0,
            complete: false,
        };
        let bounds = Bounds {
            choices: quoted.parts.n,
            prompt: quoted.most_prompt(),
            completion: Some(output.saturating_mul(quoted.parts.n)),
            shape: Shape::PLAIN,
        };
        let mut meter = Meter::new(allowed.ask.wants_usage, bounds).of(allowed.route.surface);
        if is_by_token(&money) {
            meter = meter.with_cover(cover_count(allowed.model.vocabulary.as_deref()));
            if !allowed.model.hidden_output && !allowed.ask.hides_output() {
                meter = meter.all_is_shown();
            }
        }
        let runs = allowed.stream.then(|| toll.running.begin(&receipt.id));
        Self {
            toll,
            signet,
            quoted,
            money,
            output,
            bounds,
            receipt,
            meter,
            silent: Vec::new(),
            sent_at: Instant::now(),
            who: None,
            delivered: false,
            asked: false,
            begun: false,
            drained: false,
            ending: None,
            unpaid: None,
            settled: false,
            charge_counted: false,
            spent: false,
            _runs: runs,
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

    /// Which requests this one is kept together with, where the pool does that.
    pub fn affinity(&self, pool: &Pool) -> Affinity {
        let ask = &self.quoted.allowed.ask;
        match pool.balance() {
            Balance::LeastOutstanding | Balance::RoundRobin => Affinity::NONE,
            Balance::Consistent => ask.same_key().map_or_else(|| Affinity::of_parts(&ask.head()), Affinity::of),
            Balance::Prefix => Affinity::of_parts(&ask.head()),
        }
    }

    /// What the servers of `pool` call the model.
    pub fn model(&self, pool: &Pool) -> &UpstreamModel {
        self.quoted.allowed.model.upstream_in(pool.name())
    }

    /// The body for a server of `pool`: our own serialisation, with that pool's name of the model, its spelling, and the output that
    /// was bought. `last`: no other pool will be asked, so what the client sent is let go, for a stream may stand still for long.
    pub fn body(&mut self, pool: &Pool, last: bool) -> Bytes {
        let (allowed, ability) = (&self.quoted.allowed, pool.profile().ability);
        let body = allowed.ask.rewrite(&Rewrite {
            model: self.model(pool),
            max_output: self.output,
            spelling: ability.spelling,
            stream: allowed.stream,
            // A running count on every chunk is for clients that asked for just that (some add up all they see), and for cover.
            continuous_usage: ability.continuous_usage && (allowed.ask.wants_running_usage || is_by_token(&self.money)),
            withheld: ability.withheld,
        });
        if last {
            self.let_text_go();
        }
        body
    }

    /// A server was tried, and it did or did not answer.
    pub fn tried(&mut self, pool: &Pool, who: Option<&Who>, outcome: &str) {
        self.toll.metrics.upstream_attempts.with_label_values(&[pool.name().as_str(), outcome]).inc();
        self.receipt.attempts = self.receipt.attempts.saturating_add(1);
        // A pool comes again behind its fallback, so whose reply it is says the server that was asked last, not the body written last.
        if !matches!(outcome, "connect" | "full") {
            self.is_served_by(pool);
        }
        self.asked |= matches!(outcome, "answered" | "left");
        if outcome == "answered" {
            self.receipt.server = who.map(Who::name);
            self.who = who.cloned();
        } else {
            // The next one is not to be blamed for the time that this one took.
            self.sent_at = Instant::now();
        }
    }

    /// The reply, or the last word on why there is none, is this pool's: what it is called in the books, and how its figures are read.
    fn is_served_by(&mut self, pool: &Pool) {
        let ability = pool.profile().ability;
        self.receipt.pool = pool.name().clone();
        self.bounds.shape = ability.shape;
        self.meter.add_up_by(ability.shape);
    }

    /// The `Content-Type` of a body that [`Delivery::body`] gave.
    pub fn content_type(&self, body: &[u8]) -> std::borrow::Cow<'static, str> {
        self.quoted.allowed.ask.content_type(body)
    }

    /// Nobody else will be asked. Where no other pool could have been, the text is gone already.
    pub fn let_text_go(&mut self) {
        if !self.quoted.allowed.ask.body.is_empty() {
            self.quoted = Arc::new(self.quoted.without_body());
        }
    }

    /// A reply that came whole: metered, written down, and given its receipt. The body to send.
    pub async fn whole(&mut self, body: Bytes) -> Result<Bytes, Stop> {
        let verdict = self.read_whole(&body).await?;
        if verdict.failed {
            // HTTP 200 around an error: nothing was produced, nothing is delivered.
            let why = if verdict.at_fault { "it answered with an error inside a success" } else { NOT_THIS_ONE };
            return Err(Refusal::UpstreamFailed { why }.into());
        }
        if !says_something(&verdict) {
            return Err(Refusal::UpstreamFailed { why: "its answer says nothing" }.into());
        }
        self.settle(&verdict, End::Whole);
        self.receipt.complete = true;
        self.take_promise().await?;
        if let Money::Lease(lease) = &mut self.money {
            lease.sell(self.receipt.charged, &self.receipt).await?;
            (self.delivered, self.spent) = (true, true);
            self.count_charge();
        } else {
            self.write_down().await?;
        }
        // A block goes into JSON and into nothing that only looks like it.
        let json = self.surface().whole() == Whole::Json;
        let named = self.quoted.allowed.route.receipt.body.as_ref().filter(|_| json && self.is_paid());
        let Some(name) = named.cloned() else { return Ok(body) };
        let (block, plain) = (self.block(), body.clone());
        // A reply that is paid leaves, with its block or without.
        let with_block = beside::read(body.len(), move || add_block(&plain, &name, &block)).await.ok().flatten();
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
    /// until then a failure costs the payer nothing, and a backend's heartbeat is not what was bought. Of a stream that is paid by
    /// the token nothing leaves that is not covered, and nothing at all once its channel is paid out.
    pub async fn chunk(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Result<Next, Refusal> {
        let covered = match &self.money {
            Money::Lease(lease) => {
                self.unpaid = lease.unpayable();
                lease.covered()
            }
            Money::Hold(_) | Money::Promise(_) | Money::None => u64::MAX,
        };
        if self.unpaid.is_some() {
            return Ok(Next::Stop);
        }
        let fed = self.meter.feed_covered(chunk, covered, &mut self.silent);
        let waiting: usize = self.silent.iter().map(Bytes::len).sum();
        if self.delivered || waiting > most_silent(self.surface()) || says_something(&self.meter.verdict()) {
            out.append(&mut self.silent);
        }
        fed.map_err(|_| Refusal::UpstreamFailed { why: "an event is too large" })?;
        let Money::Lease(lease) = &mut self.money else { return Ok(Next::Go) };
        lease.progress(self.meter.counted(), out).await;
        Ok(if self.meter.waiting().is_some() { Next::Hold } else { Next::Go })
    }

    /// The stream stands still: waits until there is cover, or until there is something to send meanwhile.
    pub async fn resume(&mut self, out: &mut Vec<Bytes>) -> Next {
        if let Some(end) = self.ending {
            return self.end(end, out).await;
        }
        let (Money::Lease(lease), Some(need)) = (&mut self.money, self.meter.waiting()) else { return Next::Go };
        match lease.wait(need, out).await {
            Wait::Longer => Next::Hold,
            Wait::Over => {
                self.unpaid = Some(lease.short());
                Next::Stop
            }
            Wait::Covered => {
                out.append(&mut self.silent);
                self.meter.release(lease.covered(), out);
                lease.progress(self.meter.counted(), out).await;
                if self.meter.waiting().is_some() { Next::Hold } else { Next::Go }
            }
        }
    }

    /// Whether it ended because no voucher came in time, or none could, or the books could not take what it costs.
    pub fn is_unpaid(&self) -> bool {
        self.unpaid.is_some()
    }

    /// What a client is told when it ended so before its first byte.
    pub fn unpaid_before_it_began(&self) -> Option<Refusal> {
        self.unpaid.clone().filter(|_| !self.delivered)
    }

    /// The stream is over: the books, then what is still to be sent (receipt, `[DONE]`). A stream that said nothing leaves `out`
    /// and the books as they are: no byte has left, none will, and what was paid can be redeemed. [`Next::Hold`]: what it used is not
    /// covered yet; the payer was asked.
    pub async fn end(&mut self, end: End, out: &mut Vec<Bytes>) -> Next {
        self.meter.finish();
        let verdict = self.meter.verdict();
        if !self.delivered && !says_something(&verdict) {
            self.toll.metrics.dropped_frames.inc_by(verdict.forged_frames);
            return Next::Go;
        }
        out.append(&mut self.silent);
        if end == End::Whole
            && let Some(charge) = self.charge(&verdict)
            && let Money::Lease(lease) = &mut self.money
        {
            self.ending = Some(end);
            match lease.wait_for(charge, out).await {
                Wait::Longer => return Next::Hold,
                Wait::Over => {
                    tracing::warn!(receipt = %self.receipt.id, "what was used is above what the payer signed")
                }
                Wait::Covered => {}
            }
        }
        if end == End::Whole {
            self.meter.release(u64::MAX, out);
        }
        if !self.settled {
            self.toll.metrics.dropped_frames.inc_by(verdict.forged_frames);
            self.settle(&verdict, end);
            self.receipt.complete = end == End::Whole && !verdict.failed;
        }
        let written = self.write_down().await;
        self.count_charge();
        if let Err(stop) = &written {
            tracing::error!(receipt = %self.receipt.id, reason = stop.refusal.code(), "the final receipt was not written");
        }
        if end == End::ClientGone {
            return Next::Go;
        }
        if self.is_paid() && written.is_ok() {
            let form = &self.quoted.allowed.route.receipt;
            // Whoever wants a block gets the comment where no block would be read over.
            let mut commented = form.header;
            if let Some(name) = &form.body {
                let of = reply::Receipt {
                    id: &self.receipt.id,
                    created: self.receipt.at.0,
                    model: self.receipt.model.as_str(),
                    name,
                    block: &self.block(),
                    wants_usage: self.quoted.allowed.ask.wants_usage,
                };
                let block = reply::receipt_event(self.surface(), &of);
                commented |= block.is_none();
                out.extend(block);
            }
            if commented {
                out.push(receipt_comment(&self.signet.seal(&self.receipt)));
            }
        }
        out.extend(self.cut_short(end));
        out.extend(self.meter.take_done());
        if let (Money::Lease(lease), true) = (&self.money, written.is_ok()) {
            out.push(lease.receipt_event(&self.receipt));
        }
        Next::Go
    }

    /// Header lines for the reply's head: the protocol's receipt, with what is known by now.
    pub fn headers(&self) -> Vec<(http::HeaderName, http::HeaderValue)> {
        if !self.quoted.allowed.route.receipt.header {
            return Vec::new();
        }
        match &self.money {
            Money::Hold(hold) => {
                let rail = self.toll.rail(&hold.terms().rail);
                let mut lines = rail.map_or_else(Vec::new, |rail| rail.receipt(hold.claim(), &self.receipt));
                if self.receipt.settlement.is_some() {
                    lines.extend(HeaderValue::from_str(&self.receipt.id).map(|id| (RECEIPT_ID, id)));
                }
                lines
            }
            Money::Lease(lease) if self.spent => lease.receipt_header(&self.receipt).into_iter().collect(),
            // What it costs is not known yet; it can be asked for later.
            Money::Promise(_) => {
                HeaderValue::from_str(&self.receipt.id).map(|id| (RECEIPT_ID, id)).into_iter().collect()
            }
            Money::Lease(_) | Money::None => Vec::new(),
        }
    }

    /// What is said of the channel with an answer that failed. The protocol has receipts on successes only; npm `mppx` drops a
    /// channel that it opened with this very call, deposit and all, unless it reads one.
    pub fn channel(&self) -> Option<(HeaderName, HeaderValue)> {
        match &self.money {
            Money::Lease(lease) => lease.channel_header(),
            Money::Hold(_) | Money::Promise(_) | Money::None => None,
        }
    }

    /// It failed before the first byte: nothing is charged, or the payer may come again.
    pub async fn fail(mut self, refusal: Refusal) -> Stop {
        self.count_exchange();
        match std::mem::replace(&mut self.money, Money::None) {
            Money::None => refusal.into(),
            Money::Hold(hold) => Stop { refusal, moved: hold.give_back().await, claimed: true },
            Money::Lease(lease) => Stop { refusal, moved: lease.release().await, claimed: true },
            Money::Promise(promise) => Stop { refusal, moved: promise.forgo().await, claimed: true },
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

    /// The backend says by now that it failed.
    pub fn has_failed(&self) -> bool {
        self.meter.verdict().failed
    }

    /// The same, and not for what was asked.
    pub fn is_at_fault(&self) -> bool {
        self.meter.verdict().at_fault
    }

    /// What is spoken.
    pub fn surface(&self) -> Surface {
        self.quoted.allowed.route.surface
    }

    fn block(&self) -> String {
        receipt::block(&self.receipt, &self.quoted.allowed.route.receipt).to_string()
    }

    fn is_paid(&self) -> bool {
        !matches!(self.money, Money::None)
    }

    /// A reply that came whole is paid before it leaves.
    async fn take_promise(&mut self) -> Result<(), Stop> {
        match std::mem::replace(&mut self.money, Money::None) {
            Money::Promise(promise) => {
                let used = self.receipt.usage.filter(|_| promise.is_by_usage());
                let output = used.map(|used| used.completion.div_ceil(self.bounds.choices.max(1)));
                let hold = promise.take(self.receipt.charged, output).await?;
                self.receipt.settlement = Some(Settlement::Settled);
                self.receipt.transaction = hold.transaction().cloned();
                self.money = Money::Hold(hold);
            }
            other => self.money = other,
        }
        Ok(())
    }

    fn count_exchange(&self) {
        let seconds = self.sent_at.elapsed().as_secs_f64();
        self.toll.metrics.upstream_seconds.with_label_values(&[self.receipt.pool.as_str()]).observe(seconds);
    }

    /// The final receipt into the books, once: with the delivery if that was not written yet, else alone.
    async fn write_down(&mut self) -> Result<(), Stop> {
        let tally = self.absorbed();
        if let Money::Lease(lease) = &mut self.money {
            lease.spend(self.receipt.charged, Some(&self.receipt)).await?;
            (self.delivered, self.spent) = (true, true);
            return Ok(());
        }
        if let Money::Promise(promise) = &mut self.money {
            self.delivered = true;
            return promise.owe(&self.receipt, tally).await;
        }
        if !self.delivered {
            return self.deliver(tally).await;
        }
        if self.is_paid() {
            let journal = vec![Entry::Receipt(Box::new(self.receipt.clone()))];
            let write = Write { journal, tally, ..Write::default() };
            self.toll.store.commit(write).await.map_err(|e| {
                tracing::error!(error = %e, "the store cannot answer");
                Stop::from(Refusal::Store { retry_after_seconds: 10 })
            })?;
        }
        Ok(())
    }

    async fn deliver(&mut self, tally: Vec<(String, u64, Usd)>) -> Result<(), Stop> {
        if let Money::Hold(hold) = &mut self.money {
            hold.deliver(&self.receipt, tally).await?;
        }
        self.delivered = true;
        Ok(())
    }
}

/// Whether what is used is what is paid.
fn is_by_token(money: &Money) -> bool {
    match money {
        Money::Lease(_) => true,
        Money::Promise(promise) => promise.is_by_usage(),
        Money::Hold(_) | Money::None => false,
    }
}

/// Whether there is a word of an answer, or at least its end.
fn says_something(verdict: &Verdict) -> bool {
    verdict.delivered_chunks > 0 || verdict.finished
}

/// How output is counted for cover where the backend does not say it: by the model's vocabulary, else by its bytes.
fn cover_count(vocabulary: Option<&str>) -> CoverCount {
    match vocabulary.and_then(Vocabulary::parse).and_then(Vocabulary::counter) {
        Some(count) => CoverCount::Tokens(count),
        None => CoverCount::Bytes,
    }
}
