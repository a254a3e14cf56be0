//! Claims nobody works on: left by a crash, or by a wait that was too short.
//!
//! Before the gate listens, every claim that is not over is looked at: `Serving` of a dead process delivered nothing that was
//! written down, so it becomes `Owed`; `Claimed` and `Taking` are asked of the chain by their own key, and sent again while they still
//! can land; of what was only `Promised` nothing is taken. The same goes for claims of requests that ended while the store did
//! not answer.

use super::exposure::Risk;
use super::{Stop, Toll, pay};
use crate::claim::{Claim, ClaimKey, Op, Standing};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::rail::{Collected, Rail};
use crate::refusal::Refusal;
use crate::store::StoreError;
use std::sync::Arc;
use std::time::Duration;

/// How long is waited before something is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
/// Owner of claims that a gate itself follows up, behind the gate's name.
const FOLLOWER: &str = "recovery";

/// Whether a claim's owner is this module, here or in another gate: whoever shows its proof may wait for the outcome.
pub fn is_following(by: &str) -> bool {
    by.rsplit('/').next() == Some(FOLLOWER)
}

/// Whether nobody works on a claim any more: its gate is this one, in a former life, or is gone.
async fn is_left(toll: &Toll, by: &str, own: bool) -> Result<bool, StoreError> {
    match by.split_once('/') {
        Some((gate, _)) if gate == toll.store.gate() => Ok(own),
        Some((gate, _)) => Ok(!toll.store.alive(gate).await?),
        // Written by a version that knew of one gate only.
        None => Ok(own),
    }
}

/// Looks at everything a former process left. Returns how many claims there were. Call before listening.
pub async fn recover(toll: &Arc<Toll>) -> Result<usize, StoreError> {
    take_up(toll, true).await
}

/// Takes up claims that nobody works on. `own`: those of this gate too, because it is only starting.
async fn take_up(toll: &Arc<Toll>, own: bool) -> Result<usize, StoreError> {
    let now = UnixSeconds::now();
    let mut count = 0;
    for claim in toll.store.open_claims(now).await? {
        match claim.standing.holder() {
            Some(by) if !is_left(toll, by, own).await? => continue,
            _ => count += 1,
        }
        // What is owed from here on keeps its own ([`let_go`]).
        if own && claim.standing == Standing::Owed {
            keep_room(toll, &claim).await;
        }
        let (key, holder) = (claim.key.clone(), claim.standing.holder().cloned());
        if !let_go(toll, claim).await
            && let Some(by) = holder
        {
            keep_letting_go(toll, key, by);
        }
    }
    Ok(count)
}

/// Before others buy what the day leaves: what may be lost on a claim that is owed, and of which only this is known by now.
async fn keep_room(toll: &Toll, claim: &Claim) {
    let (plan, now) = (toll.rules.plan(), UnixSeconds::now());
    let (Some(route), Some(until)) = (plan.route(claim.terms.route.as_str()), claim.redeem_until()) else { return };
    let Some((per_call, per_day)) = route.tier.absorbs() else { return };
    // Else it takes what is left when it is redeemed.
    if pay::learn(toll, route.tier.name.as_str(), now).await.is_ok() {
        toll.losses.again((&claim.key, until), &route.tier.name, now, per_call, per_day).keep(&claim.key, until);
    }
}

/// What becomes of a claim that nobody works on. `false`: the store could not write it down.
async fn let_go(toll: &Arc<Toll>, claim: Claim) -> bool {
    let (op, what) = match &claim.standing {
        Standing::Serving { by } => (Op::GiveBack { by: by.clone() }, "paid and not delivered: redeemable"),
        Standing::Promised { by } => (Op::Forgo { by: by.clone() }, "promised and not taken: nothing is"),
        Standing::Claimed { .. } | Standing::Taking { .. } => {
            tracing::warn!(claim = %claim.key.0, "nobody knows its outcome: asking the chain");
            let risk = risk_of(toll, &claim);
            follow(toll, claim, risk).await;
            return true;
        }
        Standing::Owed
        | Standing::Delivered { .. }
        | Standing::Dead
        | Standing::Untaken
        | Standing::Lost { .. }
        | Standing::Unproven => return true,
    };
    match pay::advance(toll, &claim, op, UnixSeconds::now()).await {
        Ok(next) => {
            tracing::warn!(claim = %claim.key.0, "{what}");
            if next.standing == Standing::Owed {
                keep_room(toll, &next).await;
            }
            true
        }
        Err(stop) => !is_of_the_store(&stop),
    }
}

/// A request is over, and could not write down what becomes of its claim: as soon as the store answers again that is decided as
/// if the request's process had died. Runs in the background; `by` is the request as the claim has it. Nothing is to be done when it
/// was not the store that stopped it.
pub(super) fn abandon(toll: &Arc<Toll>, key: &ClaimKey, by: &str, stop: &Stop) {
    if is_of_the_store(stop) {
        keep_letting_go(toll, key.clone(), by.to_owned());
    }
}

/// The same, as long as `by` has the claim and the store does not take what becomes of it.
fn keep_letting_go(toll: &Arc<Toll>, key: ClaimKey, by: String) {
    let toll = Arc::clone(toll);
    tokio::spawn(async move {
        let mut pause = Pause::default();
        loop {
            pause.longer().await;
            match toll.store.claim(&key).await {
                Err(_) => {}
                Ok(Some(claim)) if claim.standing.holder() == Some(&by) => {
                    if let_go(&toll, claim).await {
                        return;
                    }
                }
                Ok(_) => return,
            }
        }
    });
}

/// What the payer of a claim that is being taken has promised and not paid, counted whatever his limit is.
fn risk_of(toll: &Toll, claim: &Claim) -> Option<Risk> {
    let Standing::Taking { amount, .. } = claim.standing else { return None };
    let usd = amount.to_usd(claim.terms.decimals)?;
    Some(toll.exposure.carry(&claim.terms.rail, claim.payer.as_deref().unwrap_or_default(), &claim.key, usd))
}

/// Follows a claim until the chain has spoken, in the background; `risk` is what its payer has promised until then. That it is followed is
/// written first, if the store can: whoever shows its proof from here on is told to wait for the outcome, not that another request
/// has it. Call it where it is not broken off.
pub(super) async fn follow(toll: &Arc<Toll>, claim: Claim, risk: Option<Risk>) {
    let claim = match claim.standing.holder() {
        // Since before a restart.
        Some(by) if *by == toll.server(FOLLOWER) => claim,
        _ => match ours(toll, &claim).await {
            Ok(claim) => claim,
            Err(stop) if is_of_the_store(&stop) => claim,
            // Somebody else has it, or it is over.
            Err(_) => return,
        },
    };
    let toll = Arc::clone(toll);
    tokio::spawn(async move {
        let _until_the_outcome_is_known = risk;
        // Whoever waits for the store has it already.
        let Some(_mine) = toll.channels.alone.take(format!("claim {}", claim.key.0)) else { return };
        let _counted_until_then = toll.metrics.in_doubt(claim.terms.rail.as_str());
        let Some(claim) = take_over(&toll, claim).await else { return };
        let Some(rail) = toll.rail(&claim.terms.rail).cloned() else {
            tracing::error!(claim = %claim.key.0, rail = %claim.terms.rail, "its rail is not configured any more");
            return;
        };
        let mut pause = Pause::patient();
        loop {
            let collected = match &claim.standing {
                // An answer that cost nothing is paid; one that has not left is as if it was never asked for.
                Standing::Taking { amount: Atoms(0), receipt: Some(_), .. } => Collected::Paid,
                Standing::Taking { amount: Atoms(0), .. } => Collected::Failed { why: "nothing was taken".into() },
                _ => rail.look(&claim, UnixSeconds::now()).await,
            };
            if collected != Collected::Unknown {
                return write_down(&toll, rail.as_ref(), &claim, collected).await;
            }
            pause.longer_after(claim.collect_until).await;
        }
    });
}

/// Makes a claim ours to follow, durably.
async fn ours(toll: &Toll, claim: &Claim) -> Result<Claim, Stop> {
    let from = claim.standing.holder().cloned().unwrap_or_default();
    let op = Op::TakeOver { from, by: toll.server(FOLLOWER) };
    pay::advance(toll, claim, op, UnixSeconds::now()).await
}

/// The same, as often as the store fails. `None`: somebody else has it, or it is over.
async fn take_over(toll: &Toll, mut claim: Claim) -> Option<Claim> {
    let (from, follower) = (claim.standing.holder()?.to_owned(), toll.server(FOLLOWER));
    let mut pause = Pause::default();
    loop {
        match &claim.standing {
            Standing::Claimed { by } | Standing::Taking { by, .. } if *by == follower => return Some(claim),
            Standing::Claimed { by } | Standing::Taking { by, .. } if *by == from => {}
            _ => return None,
        }
        let failed = match ours(toll, &claim).await {
            Ok(claim) => return Some(claim),
            Err(stop) => stop,
        };
        if is_of_the_store(&failed) {
            pause.longer().await;
        }
        // It may have been written all the same, now or by a try before this one.
        match toll.store.claim(&claim.key).await {
            Ok(Some(now)) if now != claim => claim = now,
            Ok(_) if !is_of_the_store(&failed) => return None,
            Ok(_) | Err(_) => {}
        }
    }
}

pub(super) fn is_of_the_store(stop: &Stop) -> bool {
    matches!(stop.refusal, Refusal::Store { .. })
}

/// Ever longer.
pub(super) struct Pause {
    next: Duration,
    most: Duration,
}

/// Up to half a minute: what is asked is ours.
impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST_PAUSE, most: Duration::from_secs(30) }
    }
}

impl Pause {
    /// Up to ten minutes: what is asked is somebody else's, who is not to be asked the same for hours every half a minute.
    pub fn patient() -> Self {
        Self { most: Duration::from_secs(600), ..Self::default() }
    }

    fn step(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        now
    }

    pub async fn longer(&mut self) {
        tokio::time::sleep(self.step()).await;
    }

    /// No longer than half a minute until `end`: so long a look may still bring the payment in.
    pub async fn longer_after(&mut self, end: UnixSeconds) {
        tokio::time::sleep(self.step_before(end, UnixSeconds::now())).await;
    }

    fn step_before(&mut self, end: UnixSeconds, now: UnixSeconds) -> Duration {
        let step = self.step();
        if now >= end.plus(60) { step } else { step.min(Duration::from_secs(30)) }
    }
}

/// Writes down what became of a payment that nobody waits for, or follows it when that is not known.
pub(super) async fn conclude(
    toll: &Arc<Toll>,
    rail: &dyn Rail,
    claim: Claim,
    collected: Collected,
    risk: Option<Risk>,
) {
    match collected {
        Collected::Unknown => follow(toll, claim, risk).await,
        known => write_down(toll, rail, &claim, known).await,
    }
}

/// Writes down what is known, until the store has taken it.
async fn write_down(toll: &Toll, rail: &dyn Rail, claim: &Claim, collected: Collected) {
    let (op, outcome) = match collected {
        Collected::Paid => (Op::PayUnserved { transaction: None }, "paid"),
        Collected::Settled { transaction } => (Op::PayUnserved { transaction: Some(transaction) }, "paid"),
        Collected::Failed { .. } => (Op::Die, "failed"),
        Collected::Unprovable => (Op::Doubt, "unproven"),
        Collected::Unknown => return,
    };
    let mut pause = Pause::default();
    loop {
        match pay::advance(toll, claim, op.clone(), UnixSeconds::now()).await {
            Ok(next) => {
                toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
                if next.standing == Standing::Owed {
                    keep_room(toll, &next).await;
                }
                match outcome {
                    "paid" => count_charge(toll, claim, next.paid_amount()),
                    "unproven" => {
                        tracing::error!(claim = %claim.key.0, "nobody can show whether this was paid: look at the payee's account")
                    }
                    _ => {}
                }
                tracing::info!(claim = %claim.key.0, outcome, "outcome known");
                return;
            }
            Err(stop) => {
                tracing::error!(claim = %claim.key.0, reason = stop.refusal.code(), "outcome known, not written");
                if !is_of_the_store(&stop) {
                    return;
                }
            }
        }
        pause.longer().await;
    }
}

/// Adds a payment to what the rail has earned.
pub(super) fn count_charge(toll: &Toll, claim: &Claim, amount: Atoms) {
    let usd = amount.to_usd(claim.terms.decimals).unwrap_or(claim.terms.price);
    let rail = claim.terms.rail.as_str();
    toll.metrics.charged_usd.with_label_values(&[rail]).inc_by(crate::metrics::shown(usd));
}

/// Takes up claims of gates that are gone, every half minute where there can be other gates.
pub async fn watch(toll: Arc<Toll>) {
    while toll.store.changes().is_some() {
        tokio::time::sleep(Duration::from_secs(30)).await;
        if let Err(error) = take_up(&toll, false).await {
            tracing::error!(%error, "claims of other gates were not looked at");
        }
    }
}

/// Forgets claims that are over and old, once an hour.
pub async fn sweep(toll: Arc<Toll>) {
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        if let Err(e) = toll.store.forget(UnixSeconds::now()).await {
            tracing::error!(error = %e, "old claims were not forgotten");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed_is_asked_for_ever_more_seldom_and_a_store_at_least_twice_a_minute() {
        for (mut pause, most, asked) in [(Pause::patient(), 600, 16), (Pause::default(), 30, 130)] {
            let (mut waited, mut times) = (Duration::ZERO, 0);
            while waited < Duration::from_secs(3_600) {
                let step = pause.step();
                assert!(step <= Duration::from_secs(most));
                (waited, times) = (waited + step, times + 1);
            }
            assert!(times <= asked + 5 && times >= asked / 2, "in an hour {times} times");
        }
    }

    #[test]
    fn what_may_still_come_in_is_asked_for_at_least_twice_a_minute_however_long_it_was_waited_for() {
        let (end, mut pause) = (UnixSeconds(1_000), Pause::patient());
        let steps: Vec<u64> = (0..20).map(|_| pause.step_before(end, end.plus(59)).as_secs()).collect();
        assert!(steps.iter().all(|step| *step <= 30) && steps.last() == Some(&30), "{steps:?}");
        assert_eq!(pause.step_before(end, end.plus(60)).as_secs(), 600, "it is over");
    }
}
