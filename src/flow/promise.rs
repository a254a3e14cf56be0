//! A payment that is verified and not taken yet: by the reply's success, or by what it used.
//!
//! ```text
//! Promised ─► served ─► Taking (durable) ─► the rail takes it ─► a Hold, whose delivery is the last write     (a reply that came whole)
//! Promised ─► streamed ─► Taking (durable, with the receipt) ─► the rail takes it while nobody waits          (by usage)
//! Promised ─► not served ─► Untaken
//! ```

use super::errand::Errand;
use super::exposure::{Exposure, Risk};
use super::hold::Hold;
use super::loss::Room;
use super::pay::{advance, denied_stop, running_stop, store_down, unknown};
use super::recover::Pause;
use super::taking::to_its_end;
use super::{Stop, Toll, recover};
use crate::claim::{Claim, Op, Standing, Terms};
use crate::clock::UnixSeconds;
use crate::journal::{Entry, Receipt};
use crate::money::{Atoms, Usd};
use crate::rail::{Collected, HAND_IN_SECONDS, Rail};
use crate::refusal::{Moved, Refusal};
use crate::store::{Swap, Write};
use std::sync::Arc;

/// What stands behind a request that is paid for after its reply. It ends in [`Promise::take`], [`Promise::owe`] or
/// [`Promise::forgo`]; one that is dropped takes nothing.
#[must_use = "a promise must be taken or forgone, or its payer waits for a restart"]
pub struct Promise {
    toll: Arc<Toll>,
    rail: Arc<dyn Rail>,
    claim: Claim,
    request: String,
    by_usage: bool,
    risk: Option<Risk>,
    /// What the operator may lose on it.
    room: Option<Room>,
    open: bool,
}

impl Promise {
    /// What `claim` promised, for `request`, which it already names.
    pub(super) fn of(
        toll: Arc<Toll>,
        rail: Arc<dyn Rail>,
        claim: Claim,
        request: String,
        by_usage: bool,
        room: Option<Room>,
    ) -> Self {
        Self { toll, rail, claim, request, by_usage, risk: None, room, open: true }
    }

    /// The same, counted against its payer's limit while it lives.
    pub(super) fn at(mut self, risk: Risk) -> Self {
        self.risk = Some(risk);
        self
    }

    /// What was bought.
    pub fn terms(&self) -> &Terms {
        &self.claim.terms
    }

    /// The claim as last written.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// What the operator may lose on it.
    pub fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// For how many seconds the reply may still be waited for: what is promised must be handed in before it runs out, however long the
    /// rules in force let a request take. An offer of rules that gave it less outlives them.
    pub fn lasts(&self, now: UnixSeconds) -> u64 {
        self.claim.collect_until.0.saturating_sub(HAND_IN_SECONDS).saturating_sub(now.0)
    }

    /// What is to be taken when the reply cost `used`; `None`: the price. Never more than was promised.
    pub fn due(&self, used: Option<Atoms>) -> Atoms {
        match used {
            Some(used) if self.by_usage => used.min(self.claim.terms.amount),
            None if self.by_usage => Atoms(0),
            _ => self.claim.terms.amount,
        }
    }

    /// Whether what is taken is what was used.
    pub fn is_by_usage(&self) -> bool {
        self.by_usage
    }

    /// Takes `amount` for a reply that waits for it: `Ok` is paid. A client that leaves meanwhile, or waits too long, has a payment
    /// that somebody follows. `output`: the reply's output tokens per choice, where what was used is what is paid.
    pub async fn take(mut self, amount: Atoms, output: Option<u64>) -> Result<Hold, Stop> {
        self.open = false;
        let (toll, rail) = (Arc::clone(&self.toll), Arc::clone(&self.rail));
        let (claim, request, risk) = (self.claim.clone(), self.request.clone(), self.risk.take());
        let (key, own, room) = (claim.key.clone(), Arc::clone(&toll), self.room.take());
        let work = async move {
            let op = Op::Take { by: request.clone(), amount, output, receipt: None };
            let left = |stop: &Stop| recover::abandon(&toll, &claim.key, &request, stop);
            let claim = advance(&toll, &claim, op, UnixSeconds::now()).await.inspect_err(left)?;
            let collected = ask_for(&rail, &claim, amount).await;
            taken(&toll, rail.as_ref(), claim, collected, request, (risk, room)).await
        };
        to_its_end(&own, &key, work).await
    }

    /// The reply has left, and `receipt` says what it cost: durable, then taken while nobody waits.
    pub async fn owe(&mut self, receipt: &Receipt, tally: Vec<(String, u64, Usd)>) -> Result<(), Stop> {
        self.open = false;
        let (amount, now) = (receipt.charged, UnixSeconds::now());
        let op = Op::Take { by: self.request.clone(), amount, output: None, receipt: Some(receipt.id.clone()) };
        let next = self.claim.apply(op, now).map_err(|denied| denied_stop(&self.claim, denied))?;
        let journal =
            vec![Entry::Taking { key: next.key.0.clone(), amount, at: now }, Entry::Receipt(Box::new(receipt.clone()))];
        let write = Write { claim: Some(next.clone()), journal, tally, ..Write::default() };
        let written = match self.toll.store.commit(write.clone()).await {
            Ok(Swap::Done) => Ok(()),
            Ok(Swap::Lost(_) | Swap::Overtaken(_)) => return Err(running_stop()),
            Err(e) => Err(Stop { moved: Moved::Unknown, claimed: true, ..store_down(&e) }),
        };
        self.claim = next.clone();
        let (toll, rail, risk) = (Arc::clone(&self.toll), Arc::clone(&self.rail), self.risk.take());
        let (request, in_doubt) = (self.request.clone(), written.is_err().then_some(write));
        tokio::spawn(async move {
            if let Some(write) = in_doubt
                && !insist(&toll, write, &request).await
            {
                return;
            }
            let collected = ask_for(&rail, &next, amount).await;
            recover::conclude(&toll, rail.as_ref(), next, collected, risk).await;
        });
        written
    }

    /// Nothing was served: nothing is taken, and the payer may show the same proof again.
    pub async fn forgo(mut self) -> Moved {
        self.open = false;
        forgo(&self.toll, &self.claim, &self.request).await
    }
}

async fn forgo(toll: &Arc<Toll>, claim: &Claim, request: &str) -> Moved {
    match advance(toll, claim, Op::Forgo { by: request.to_owned() }, UnixSeconds::now()).await {
        Ok(_) => Moved::No,
        Err(stop) => {
            tracing::error!(claim = %claim.key.0, reason = stop.refusal.code(), "a promise could not be let go; recovery will");
            recover::abandon(toll, &claim.key, request, &stop);
            Moved::No
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let (toll, claim, request) = (Arc::clone(&self.toll), self.claim.clone(), std::mem::take(&mut self.request));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { forgo(&toll, &claim, &request).await });
        }
    }
}

/// The answer has left, and what it cost must not be forgotten: writes it until the store says that it is written. `false`: somebody
/// else has the claim now.
async fn insist(toll: &Toll, write: Write, request: &str) -> bool {
    let mut pause = Pause::default();
    loop {
        pause.longer().await;
        match toll.store.commit(write.clone()).await {
            Err(_) => {}
            Ok(Swap::Done) => return true,
            Ok(Swap::Lost(now)) => {
                // As likely as not the first try was written.
                return now.is_some_and(
                    |claim| matches!(&claim.standing, Standing::Taking { by, receipt: Some(_), .. } if by == request),
                );
            }
            Ok(Swap::Overtaken(_)) => return false,
        }
    }
}

/// Asks for the money, if there is any to ask for. A rail that breaks off has said nothing.
async fn ask_for(rail: &Arc<dyn Rail>, claim: &Claim, amount: Atoms) -> Collected {
    if amount == Atoms(0) {
        return Collected::Paid;
    }
    let (rail, claim) = (Arc::clone(rail), claim.clone());
    let asking = Errand::new(async move { rail.take(&claim, UnixSeconds::now()).await });
    asking.await.unwrap_or(Collected::Unknown)
}

/// What became of a payment that a reply waits for.
async fn taken(
    toll: &Arc<Toll>,
    rail: &dyn Rail,
    claim: Claim,
    collected: Collected,
    request: String,
    (risk, room): (Option<Risk>, Option<Room>),
) -> Result<Hold, Stop> {
    let count = |outcome: &str| toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
    let left = |stop: &Stop| recover::abandon(toll, &claim.key, &request, stop);
    let transaction = match collected {
        Collected::Paid => None,
        Collected::Settled { transaction } => Some(transaction),
        Collected::Failed { why } => {
            count("failed");
            advance(toll, &claim, Op::Die, UnixSeconds::now()).await.inspect_err(left)?;
            return Err(Stop { refusal: Refusal::PaymentFailed { why }, moved: Moved::No, claimed: true });
        }
        Collected::Unprovable => {
            count("unproven");
            advance(toll, &claim, Op::Doubt, UnixSeconds::now()).await.inspect_err(left)?;
            return Err(Stop { refusal: Refusal::PaymentUnproven, moved: Moved::Unknown, claimed: true });
        }
        Collected::Unknown => {
            count("unknown");
            recover::follow(toll, claim.clone(), risk).await;
            return Err(unknown());
        }
    };
    count("paid");
    let Standing::Taking { amount, .. } = claim.standing else { return Err(unknown()) };
    recover::count_charge(toll, &claim, amount);
    Ok(Hold::taken(Arc::clone(toll), claim, request, transaction, room))
}

/// What was served for a payer and could not be taken, whether it left or not, as a line for the store's running totals.
pub(super) fn unpaid(claim: &Claim, amount: Atoms, now: UnixSeconds) -> Vec<(String, u64, Usd)> {
    let (Some(payer), Some(usd)) = (&claim.payer, amount.to_usd(claim.terms.decimals)) else { return Vec::new() };
    if usd == Usd::ZERO {
        return Vec::new();
    }
    vec![(Exposure::tally_name(&claim.terms.rail, payer), now.day(), usd)]
}
