//! Money of a channel that one request may use, and how it comes by more while it streams.
//!
//! A stream runs on windows of about half a second. While one is delivered the next is leased, durably and without waiting, the second
//! with the first word when the channel is paid far ahead; when half of a window is left and the channel has no cover for another,
//! the payer is asked for a voucher over four; at zero the
//! stream stands still until one comes. Whatever ends the request ends the lease: by spending what was used, and a lease that is
//! dropped spends what it last knew to be used.

mod denied;
mod ending;

use denied::unrecorded;
pub(super) use denied::{denied_refusal, short, trouble_stop, unsure};

use super::channels::{Applied, Live, Step, Trouble};
use super::price::Cover;
use super::{Till, Toll};
use crate::channel::{Channel, Denied, Effect, Lease as Held, Op};
use crate::clock::UnixSeconds;
use crate::journal::Receipt;
use crate::money::Atoms;
use crate::openai::cover::Output;
use crate::rail::session::SessionReceipt;
use crate::refusal::Refusal;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

/// Smallest and largest window, in output tokens.
const WINDOW: (u64, u64) = (16, 256);
/// Windows that a payer is asked for at once.
const WINDOWS_ASKED: u64 = 4;
/// All pauses of one stream together last at most so many times the longest: whoever signs for a word at a time holds a server's place
/// no longer than that.
const PAUSES: u32 = 10;
/// How often a stream that stands still says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// What it says: a comment (HTML §9.2.6), which every reader passes over.
const HEARTBEAT_FRAME: &[u8] = b": waiting for a voucher\n\n";

/// What a stream that stands still is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// There is cover: go on.
    Covered,
    /// Not yet. What is to be sent meanwhile was given.
    Longer,
    /// No cover came in time, or none can: the request ends here.
    Over,
}

/// What a stream stands still for.
#[derive(Clone, Copy, Debug)]
enum Need {
    /// Cover of so many output tokens in all.
    Tokens(u64),
    /// So much leased in all.
    Charge(Atoms),
}

/// The record after it was told how far a stream is, and whether it took that.
type Marked = (Arc<Channel>, Result<Effect, Denied>);

/// A lease of a request in progress.
#[must_use = "a lease must end by spending, or the payer's money waits for a restart"]
pub struct Lease {
    toll: Arc<Toll>,
    till: Arc<Till>,
    live: Arc<Live>,
    channel: Arc<Channel>,
    /// In the record.
    id: String,
    held: Held,
    challenge_id: String,
    cover: Cover,
    /// Output tokens that the cap covers: [`Cover::tokens`] of it.
    covered: u64,
    /// Output that has left.
    delivered: Output,
    /// Size of the next window, in tokens.
    window: u64,
    first_word: Option<Instant>,
    /// At how many delivered tokens the record is told anew how many there are: with the first, and a window after it was told last. What
    /// could not be written is tried with the next word.
    tells_at: u64,
    /// How many the record is being told of.
    telling: u64,
    /// How many it is known to know of.
    told: u64,
    /// It did not take what it was told last.
    untold: bool,
    extending: Option<JoinHandle<Result<Applied, Trouble>>>,
    marking: Option<JoinHandle<Result<Marked, Trouble>>>,
    /// The record lets nothing new be leased: closing, or taken away.
    stopped: bool,
    /// The store did not answer when it was asked last.
    troubled: bool,
    waiting_since: Option<Instant>,
    /// In this pause the payer is waited for.
    unsigned: bool,
    /// How long he was waited for in all.
    paused: Duration,
    /// How long it has stood still since its first word, for whatever reason.
    stood: Duration,
    /// How it ends, once that has begun: however often it is tried, it is made once.
    last: Option<Step>,
    open: bool,
    /// Another gate has ended it.
    is_anothers: bool,
}

/// What a lease is made of, apart from the toll and the till.
pub(super) struct Taken {
    pub live: Arc<Live>,
    pub channel: Arc<Channel>,
    pub id: String,
    pub held: Held,
    pub challenge_id: String,
    pub cover: Cover,
}

impl Lease {
    /// A lease that is in the record already.
    pub(super) fn of(toll: Arc<Toll>, till: Arc<Till>, taken: Taken) -> Self {
        let Taken { live, channel, id, held, challenge_id, cover } = taken;
        let covered = cover.tokens(held.cap);
        Self {
            toll,
            till,
            live,
            channel,
            id,
            held,
            challenge_id,
            cover,
            covered,
            delivered: Output::default(),
            window: super::price::FIRST_WINDOW,
            first_word: None,
            tells_at: 0,
            telling: 0,
            told: 0,
            untold: false,
            extending: None,
            marking: None,
            stopped: false,
            troubled: false,
            waiting_since: None,
            unsigned: false,
            paused: Duration::ZERO,
            stood: Duration::ZERO,
            last: None,
            open: true,
            is_anothers: false,
        }
    }

    /// The channel as last seen.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// What was leased, and for what.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// The rail.
    pub fn till(&self) -> &Till {
        &self.till
    }

    /// Whether another gate took this one for dead and ended it: what is charged, and its receipt, are of that gate's making.
    pub fn is_anothers(&self) -> bool {
        self.is_anothers
    }

    /// Output tokens that may leave now: what is leased, and while the record does not take how far this is, no more than a window beyond
    /// what it knows of.
    pub fn covered(&self) -> u64 {
        match self.untold {
            true => self.covered.min(self.told.saturating_add(self.window)),
            false => self.covered,
        }
    }

    /// Whether the cap pays for so many output tokens, at what is charged for them.
    pub fn pays_for(&self, tokens: u64) -> bool {
        self.cover.used(tokens).is_some_and(|used| used <= self.held.cap)
    }

    /// Output was delivered, `output` so far. Leases the next window when half of this one is used, or asks the payer
    /// for it, and tells the record once for each window, leased or not, how far it is: a gate that is killed hides one window, and what
    /// left while that was being written. Never waits; what is to be sent goes into `out`.
    pub async fn progress(&mut self, output: Output, out: &mut Vec<Bytes>) {
        let delivered = output.most;
        if delivered == 0 {
            return;
        }
        self.delivered = output;
        let since = *self.first_word.get_or_insert_with(Instant::now);
        if self.extending.as_ref().is_some_and(JoinHandle::is_finished) {
            self.extended().await;
        }
        if self.marking.as_ref().is_some_and(JoinHandle::is_finished) {
            self.marked().await;
        }
        if self.tells_at == 0 {
            self.extend_at_once();
        }
        let more = self.cover.most.saturating_sub(self.covered);
        let left = self.covered.saturating_sub(delivered);
        if more > 0 && left <= self.window / 2 && !self.stopped && self.extending.is_none() {
            self.keep_pace(since);
            let more = self.window.min(more);
            if !self.extend(more) {
                self.ask(more, false, out);
            }
        }
        if delivered >= self.tells_at && self.marking.is_none() {
            self.keep_pace(since);
            self.start_marking();
        }
    }

    /// Makes the window as large as what the stream brings in half a second, while it does not stand still.
    fn keep_pace(&mut self, since: Instant) {
        let flowing = since.elapsed().saturating_sub(self.stood);
        let elapsed = u64::try_from(flowing.as_millis()).unwrap_or(u64::MAX);
        if elapsed >= 100 {
            self.window = (self.delivered.most.saturating_mul(500) / elapsed).clamp(WINDOW.0, WINDOW.1);
            self.toll.channels.streams_at(&self.held.purchase.model, self.window);
        }
    }

    /// Waits for cover of `tokens` in all, at most until the next heartbeat. What is to be sent meanwhile goes into `out`.
    pub async fn wait(&mut self, tokens: u64, out: &mut Vec<Bytes>) -> Wait {
        self.stand(Need::Tokens(tokens.min(self.cover.most)), out).await
    }

    /// Waits until `charge` in all is leased, at most until the next heartbeat; for the end of a request whose usage is above its
    /// lease. What is above the most that the request can cost, as it was quoted, is never asked for: a call that does not stream is
    /// charged no more either, and a backend that reports more, or states a higher cost, is the operator's.
    pub async fn wait_for(&mut self, charge: Atoms, out: &mut Vec<Bytes>) -> Wait {
        let charge = self.cover.start(true).map_or(charge, |most| charge.min(most));
        self.stand(Need::Charge(charge), out).await
    }

    async fn stand(&mut self, need: Need, out: &mut Vec<Bytes>) -> Wait {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let longest = Duration::from_secs(self.till.terms.pause_seconds);
        let (deadline, signed_by) =
            (since + longest, since + longest.min((longest * PAUSES).saturating_sub(self.paused)));
        let heartbeat = Instant::now() + HEARTBEAT;
        let next = heartbeat.min(deadline);
        loop {
            // A store that does not answer keeps no heartbeat back.
            self.extended_by(next).await;
            self.told_by(next).await;
            if self.unpayable().is_some() {
                return Wait::Over;
            }
            if self.has(need) {
                self.goes_on(since.elapsed());
                return Wait::Covered;
            }
            // What is leased waits for the store alone.
            let is_leased = self.untold && matches!(need, Need::Tokens(tokens) if self.covered >= tokens);
            if (self.stopped && !is_leased) || Instant::now() >= deadline {
                return Wait::Over;
            }
            if Instant::now() >= heartbeat {
                out.push(Bytes::from_static(HEARTBEAT_FRAME));
                return Wait::Longer;
            }
            if self.troubled || self.untold {
                // A store that is down is not a balance that is short: the stream waits within its time for it to come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if self.untold {
                continue;
            }
            let (missing, mut more) = (self.missing(need), 0);
            let extends = match need {
                Need::Tokens(tokens) => {
                    let fewest = tokens.saturating_sub(self.covered);
                    more = fewest.max(self.window).min(self.cover.most - self.covered);
                    self.extend(more) || (more > fewest && self.extend(fewest))
                }
                Need::Charge(_) => {
                    let covered = missing <= self.available();
                    if covered {
                        self.start_extending(missing, self.window);
                    }
                    covered
                }
            };
            if extends {
                continue;
            }
            // From here on it is the payer who is waited for, and not the store.
            (self.troubled, self.unsigned) = (false, true);
            if Instant::now() >= signed_by {
                return Wait::Over;
            }
            let asked = match need {
                Need::Tokens(_) => self.ask(more, true, out),
                Need::Charge(_) => self.ask_for(missing, missing, true, out),
            };
            if asked {
                return Wait::Longer;
            }
            self.await_balance(missing, next.min(signed_by)).await;
        }
    }

    /// It has stood still for so long.
    fn goes_on(&mut self, stood: Duration) {
        self.waiting_since = None;
        if std::mem::take(&mut self.unsigned) {
            self.paused += stood;
        }
        if self.first_word.is_some() {
            self.stood += stood;
        }
    }

    /// Whether that is leased.
    fn has(&self, need: Need) -> bool {
        match need {
            Need::Tokens(tokens) => self.covered() >= tokens,
            Need::Charge(charge) => self.held.cap >= charge,
        }
    }

    /// What must be leased for it, beside what is.
    fn missing(&self, need: Need) -> Atoms {
        match need {
            Need::Tokens(tokens) => self.step(tokens.saturating_sub(self.covered)),
            Need::Charge(charge) => Atoms(charge.0.saturating_sub(self.held.cap.0)),
        }
    }

    /// Why nothing more may leave, though it was leased: nobody would pay for it. The channel is paid out, or the lease was ended over our
    /// head: by a gate that took this one for dead, or by a forced close that had waited long enough. Known without asking the store: of
    /// another gate's doing when this one hears of it, or with the next window.
    pub fn unpayable(&self) -> Option<Refusal> {
        let channel = self.newest();
        let is_gone = self.open && self.last.is_none() && !channel.leases.contains_key(&self.id);
        let over = is_gone || !channel.still_pays();
        over.then(|| denied_refusal(&channel, &channel.serves().err().unwrap_or(Denied::Busy)))
    }

    /// What a request that ends here for want of cover is told: that it is the store that does not take what it costs, where it is.
    pub fn short(&self) -> Refusal {
        if let Some(over) = self.unpayable() {
            return over;
        }
        if self.troubled || self.untold || self.extending.is_some() {
            return unrecorded();
        }
        let channel = self.newest();
        let required = channel.required(self.cover.window(self.window), self.till.min_delta());
        Refusal::BalanceShort { required, accepted: channel.accepted(), deposit: channel.view.deposit }
    }

    /// The receipt's header line.
    pub fn receipt_header(&self, receipt: &Receipt) -> Option<(HeaderName, HeaderValue)> {
        self.till.rail.receipt(&self.said(&self.channel, Some(receipt), receipt.at))
    }

    /// That the voucher or the opening was taken, and what the channel stands at, as a header line: nothing was charged for this call.
    pub fn channel_header(&self) -> Option<(HeaderName, HeaderValue)> {
        let channel = self.newest();
        self.till.rail.receipt(&self.said(&channel, None, UnixSeconds::now()))
    }

    /// The receipt as the last event of a stream.
    pub fn receipt_event(&self, receipt: &Receipt) -> Bytes {
        self.till.rail.receipt_event(&self.said(&self.channel, Some(receipt), receipt.at))
    }

    fn said<'a>(&'a self, channel: &'a Channel, receipt: Option<&'a Receipt>, at: UnixSeconds) -> SessionReceipt<'a> {
        SessionReceipt {
            challenge_id: &self.challenge_id,
            channel,
            accepted: channel.accepted(),
            receipt,
            tx: None,
            at,
        }
    }

    /// What was used so far, as far as that can be said without the backend.
    fn used(&self) -> Atoms {
        self.cover.used(self.delivered.about).unwrap_or(self.held.cap).min(self.held.cap)
    }

    fn newest(&self) -> Arc<Channel> {
        self.live.channel().filter(|c| c.revision >= self.channel.revision).unwrap_or_else(|| Arc::clone(&self.channel))
    }

    fn available(&self) -> Atoms {
        self.newest().available()
    }

    /// Leases the second window with the first word, which that marks: one write instead of two. How much half a second is, streams of
    /// the same model have said before. Only of a channel that is paid far ahead, so that no other stream is the poorer for it.
    fn extend_at_once(&mut self) {
        let window = self.toll.channels.window_of(&self.held.purchase.model).unwrap_or(self.window);
        let streams = u64::try_from(self.newest().leases.len().max(1)).unwrap_or(u64::MAX);
        let ahead = self.cover.window(window.saturating_mul(WINDOWS_ASKED).saturating_mul(streams));
        let more = window.min(self.cover.most.saturating_sub(self.covered));
        let may = !self.stopped && self.extending.is_none() && ahead <= self.available();
        if may && self.extend(more) {
            self.window = window;
        }
    }

    /// Begins to lease `tokens` more when the channel has cover for them.
    fn extend(&mut self, tokens: u64) -> bool {
        let by = self.step(tokens);
        let covered = tokens > 0 && by <= self.available();
        if covered {
            self.start_extending(by, tokens);
        }
        covered
    }

    /// What it takes to cover `tokens` more: the difference of two sums, so that roundings do not add up.
    fn step(&self, tokens: u64) -> Atoms {
        let until = self.cover.of(self.covered.saturating_add(tokens));
        until.map_or(Atoms(u128::MAX), |until| Atoms(until.0.saturating_sub(self.held.cap.0)))
    }

    /// Leases `by` more, a window of `tokens`, and tells the record how far it is.
    fn start_extending(&mut self, by: Atoms, tokens: u64) {
        let (channels, id) = (Arc::clone(&self.toll.channels), self.channel.id.clone());
        let used = (self.delivered.most > 0).then(|| self.used());
        if used.is_some() {
            self.telling = self.delivered.most;
            self.tells_at = self.telling.saturating_add(tokens);
        }
        let op = Op::Extend { lease: self.id.clone(), by, used };
        let task = tokio::spawn(async move { channels.apply(&id, vec![op.into()]).await });
        self.extending = Some(task);
    }

    /// Tells the record how far it is, where nothing is leased with it.
    fn start_marking(&mut self) {
        let (channels, id) = (Arc::clone(&self.toll.channels), self.channel.id.clone());
        let op = Op::Mark { lease: self.id.clone(), used: self.used(), window: self.cover.window(self.window) };
        self.telling = self.delivered.most;
        self.tells_at = self.telling.saturating_add(self.window);
        self.marking = Some(tokio::spawn(async move { channels.one(&id, op).await }));
    }

    /// Takes the outcome of that, waiting for it if it must. What ends a lease does not: it says more.
    async fn marked(&mut self) {
        let Some(task) = &mut self.marking else { return };
        let outcome = task.await;
        self.take_marking(outcome);
    }

    /// Tells the record anew what it did not take, and waits for the outcome until then.
    async fn told_by(&mut self, until: Instant) {
        if !self.untold {
            return;
        }
        if self.marking.is_none() {
            self.start_marking();
        }
        let Some(task) = &mut self.marking else { return };
        if let Ok(outcome) = tokio::time::timeout_at(until, task).await {
            self.take_marking(outcome);
        }
    }

    fn take_marking(&mut self, outcome: Result<Result<Marked, Trouble>, JoinError>) {
        self.marking = None;
        match outcome {
            Ok(Ok((channel, effect))) => {
                self.channel = channel;
                match effect {
                    Ok(_) => self.is_told(),
                    // The lease is gone, as the record says.
                    Err(_) => self.stopped = true,
                }
            }
            Ok(Err(_)) | Err(_) => (self.tells_at, self.untold) = (0, true),
        }
    }

    /// The record knows what it was told.
    fn is_told(&mut self) {
        (self.told, self.untold) = (self.telling, false);
    }

    /// Takes the outcome of an extension, waiting for it if it must.
    async fn extended(&mut self) {
        let Some(task) = &mut self.extending else { return };
        let outcome = task.await;
        self.take_extension(outcome);
    }

    /// The same, if it comes by then.
    async fn extended_by(&mut self, until: Instant) {
        let Some(task) = &mut self.extending else { return };
        if let Ok(outcome) = tokio::time::timeout_at(until, task).await {
            self.take_extension(outcome);
        }
    }

    fn take_extension(&mut self, outcome: Result<Result<Applied, Trouble>, JoinError>) {
        self.extending = None;
        self.troubled = false;
        match outcome {
            Ok(Ok(Applied { channel, effects })) => {
                self.channel = channel;
                match effects.first() {
                    Some(Ok(_)) => {
                        if let Some(held) = self.channel.leases.get(&self.id) {
                            self.held = held.clone();
                            self.covered = self.cover.tokens(self.held.cap);
                            self.is_told();
                        }
                    }
                    // Another stream was faster: the next look asks for more.
                    Some(Err(Denied::Short { .. })) => self.tells_at = 0,
                    Some(Err(_)) | None => (self.stopped, self.tells_at) = (true, 0),
                }
            }
            Ok(Err(trouble)) => {
                self.tells_at = 0;
                tracing::warn!(channel = %self.channel.id, ?trouble, "a window could not be leased");
                self.stopped |= trouble == Trouble::Unknown;
                self.troubled = true;
            }
            Err(_) => self.stopped = true,
        }
    }

    /// Asks the payer for four windows of every stream of the channel, unless he was asked and has not answered. `true`: there is
    /// something to send.
    fn ask(&mut self, more: u64, stands_still: bool, out: &mut Vec<Bytes>) -> bool {
        let streams = u128::try_from(self.newest().leases.len().max(1)).unwrap_or(1);
        let left = self.cover.most.saturating_sub(self.covered);
        let windows = self.cover.window(more.saturating_mul(WINDOWS_ASKED).min(left)).0.saturating_mul(streams);
        self.ask_for(self.step(more), Atoms(windows), stands_still, out)
    }

    /// Asks him for a voucher that covers `wanted` more.
    fn ask_for(&mut self, least: Atoms, wanted: Atoms, stands_still: bool, out: &mut Vec<Bytes>) -> bool {
        let (channel, min_delta) = (self.newest(), self.till.min_delta());
        let enough = channel.required(least, min_delta);
        if enough <= channel.accepted() {
            // A voucher has come since.
            return false;
        }
        // No more than is locked, as long as that is enough: a wallet tops up when it must, not before.
        let required = channel.required(wanted.max(least), min_delta).min(channel.view.deposit.max(enough));
        let asked = self.live.may_ask_payer(&self.id, channel.accepted(), stands_still);
        if asked {
            out.push(self.till.rail.need_voucher(&channel, required));
        }
        asked
    }

    /// Waits until `more` could be leased, or nothing can any more, or the time is over.
    async fn await_balance(&mut self, more: Atoms, until: Instant) {
        let enough = |c: &Channel| c.available() >= more || c.serves().is_err();
        let seen = self.toll.channels.wait(&self.live, &self.channel.id, until, enough).await;
        self.stopped |= seen.is_ok_and(|channel| channel.serves().is_err());
    }
}
