//! Claims nobody works on: left by a crash, or by a wait that was too short.
//!
//! Before the gate listens, every claim that is not over is looked at: `Serving` of a dead process delivered nothing that was
//! written down, so it becomes `Owed`; `Claimed` is asked of the chain by its own key, and sent again while it still can land
//! (`notes/security.md` §4.5).

use super::{Toll, pay};
use crate::claim::{Claim, Op, Standing};
use crate::clock::UnixSeconds;
use crate::rail::Collected;
use std::sync::Arc;
use std::time::Duration;

/// Owner of claims that the gate itself follows up.
const FOLLOWER: &str = "recovery";

/// Whether a claim's owner is this module: whoever shows its proof may wait for the outcome.
pub fn is_following(by: &str) -> bool {
    by == FOLLOWER
}

/// Looks at everything a former process left. Returns how many claims there were. Call before listening.
pub async fn recover(toll: &Arc<Toll>) -> Result<usize, crate::store::StoreError> {
    let now = UnixSeconds::now();
    let left = toll.store.open_claims(now).await?;
    let count = left.len();
    for claim in left {
        match &claim.standing {
            Standing::Serving { by } => {
                let op = Op::GiveBack { by: by.clone() };
                if pay::advance(toll, &claim, op, now).await.is_ok() {
                    tracing::warn!(claim = %claim.key.0, "paid and not delivered before the stop: redeemable");
                }
            }
            Standing::Claimed { .. } => {
                tracing::warn!(claim = %claim.key.0, "outcome unknown since the stop: asking the chain");
                follow(Arc::clone(toll), claim);
            }
            Standing::Owed | Standing::Delivered { .. } | Standing::Dead => {}
        }
    }
    Ok(count)
}

/// Follows a claim until the chain has spoken. Runs in the background.
pub fn follow(toll: Arc<Toll>, claim: Claim) {
    tokio::spawn(async move {
        let Standing::Claimed { by } = claim.standing.clone() else { return };
        let claim = if is_following(&by) {
            claim
        } else {
            let op = Op::TakeOver { from: by, by: FOLLOWER.to_owned() };
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
            let now = UnixSeconds::now();
            let op = match rail.look(&claim, now).await {
                Collected::Paid => Op::PayUnserved,
                Collected::Failed { .. } => Op::Die,
                Collected::Unknown => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(30));
                    continue;
                }
            };
            let outcome = if op == Op::Die { "failed" } else { "paid" };
            match pay::advance(&toll, &claim, op, now).await {
                Ok(_) => {
                    toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
                    if outcome == "paid" {
                        let usd = claim.terms.amount.to_usd(claim.terms.decimals).unwrap_or(claim.terms.price);
                        toll.metrics
                            .charged_usd
                            .with_label_values(&[rail.id().as_str()])
                            .inc_by(crate::metrics::shown(usd));
                    }
                    tracing::info!(claim = %claim.key.0, outcome, "outcome known");
                }
                Err(stop) => {
                    tracing::error!(claim = %claim.key.0, reason = stop.refusal.code(), "outcome known, not written");
                }
            }
            return;
        }
    });
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
