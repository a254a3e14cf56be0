//! Claims nobody works on: left by a crash, or by a wait that was too short.
//!
//! Before the gate listens, every claim that is not over is looked at: `Serving` of a dead process delivered nothing that was
//! written down, so it becomes `Owed`; `Claimed` and `Taking` are asked of the chain by their own key, and sent again while they still
//! can land (`notes/security.md` §4.5); of what was only `Promised` nothing is taken.

use super::{Toll, pay};
use crate::claim::{Claim, Op, Standing};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::rail::{Collected, Rail};
use crate::store::StoreError;
use std::sync::Arc;
use std::time::Duration;

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
        match &claim.standing {
            Standing::Serving { by }
            | Standing::Claimed { by }
            | Standing::Promised { by }
            | Standing::Taking { by, .. }
                if !is_left(toll, by, own).await? =>
            {
                continue;
            }
            _ => count += 1,
        }
        match &claim.standing {
            Standing::Serving { by } => {
                let op = Op::GiveBack { by: by.clone() };
                if pay::advance(toll, &claim, op, now).await.is_ok() {
                    tracing::warn!(claim = %claim.key.0, "paid and not delivered before the stop: redeemable");
                }
            }
            Standing::Promised { by } => {
                let op = Op::Forgo { by: by.clone() };
                if pay::advance(toll, &claim, op, now).await.is_ok() {
                    tracing::warn!(claim = %claim.key.0, "promised and not taken before the stop: nothing is");
                }
            }
            Standing::Claimed { .. } | Standing::Taking { .. } => {
                tracing::warn!(claim = %claim.key.0, "outcome unknown since the stop: asking the chain");
                follow(Arc::clone(toll), claim);
            }
            Standing::Owed
            | Standing::Delivered { .. }
            | Standing::Dead
            | Standing::Untaken
            | Standing::Lost { .. }
            | Standing::Unproven => {}
        }
    }
    Ok(count)
}

/// Follows a claim until the chain has spoken. Runs in the background.
pub fn follow(toll: Arc<Toll>, claim: Claim) {
    tokio::spawn(async move {
        let (Standing::Claimed { by } | Standing::Taking { by, .. }) = claim.standing.clone() else { return };
        let follower = toll.server(FOLLOWER);
        let claim = if by == follower {
            claim
        } else {
            let op = Op::TakeOver { from: by, by: follower };
            match pay::advance(&toll, &claim, op, UnixSeconds::now()).await {
                Ok(claim) => claim,
                Err(_) => return,
            }
        };
        let Some(rail) = toll.rail(&claim.terms.rail).cloned() else {
            tracing::error!(claim = %claim.key.0, rail = %claim.terms.rail, "its rail is not configured any more");
            return;
        };
        let mut wait = Duration::from_millis(500);
        loop {
            let collected = match claim.standing {
                Standing::Taking { amount: Atoms(0), .. } => {
                    Collected::Failed { why: "nothing was to be taken".into() }
                }
                _ => rail.look(&claim, UnixSeconds::now()).await,
            };
            if collected == Collected::Unknown {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
                continue;
            }
            write_down(&toll, rail.as_ref(), &claim, collected).await;
            return;
        }
    });
}

/// Writes down what became of a payment that nobody waits for, or follows it when that is not known.
pub(super) async fn conclude(toll: &Arc<Toll>, rail: &dyn Rail, claim: Claim, collected: Collected) {
    match collected {
        Collected::Unknown => follow(Arc::clone(toll), claim),
        known => write_down(toll, rail, &claim, known).await,
    }
}

async fn write_down(toll: &Toll, rail: &dyn Rail, claim: &Claim, collected: Collected) {
    let now = UnixSeconds::now();
    let (op, outcome) = match collected {
        Collected::Paid => (Op::PayUnserved { transaction: None }, "paid"),
        Collected::Settled { transaction } => (Op::PayUnserved { transaction: Some(transaction) }, "paid"),
        Collected::Failed { .. } => (Op::Die, "failed"),
        Collected::Unprovable => (Op::Doubt, "unproven"),
        Collected::Unknown => return,
    };
    match pay::advance(toll, claim, op, now).await {
        Ok(next) => {
            toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
            match outcome {
                "paid" => count_charge(toll, claim, next.paid_amount()),
                "unproven" => {
                    tracing::error!(claim = %claim.key.0, "nobody can show whether this was paid: look at the payee's account")
                }
                _ => {}
            }
            tracing::info!(claim = %claim.key.0, outcome, "outcome known");
        }
        Err(stop) => {
            tracing::error!(claim = %claim.key.0, reason = stop.refusal.code(), "outcome known, not written");
        }
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
