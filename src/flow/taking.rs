//! A checked proof → money: tried, claimed, then taken, now or after the reply; each an [`Errand`].
//!
//! Anybody can sign for an account without money. So nothing is written of a payment, in any store, before its rail has said that it would
//! be paid ([`Rail::complete`]); what it said no to was never shown.

use super::alone::Mine;
use super::errand::Errand;
use super::exposure::{Exposure, Risk};
use super::hold::Hold;
use super::loss::Room;
use super::pay::{advance, running, store_down, unknown, unread};
use super::promise::Promise;
use super::{Stop, Toll, recover};
use crate::claim::{Claim, ClaimKey, Op, Standing, Terms};
use crate::clock::UnixSeconds;
use crate::journal::Entry;
use crate::money::Usd;
use crate::rail::{Collected, Proof, Rail, Recognised, Shown};
use crate::refusal::{Moved, Refusal};
use crate::store::{Swap, Whose, Write};
use std::sync::Arc;

/// A payment about to be claimed.
pub(super) struct Taking<'a> {
    pub rail: &'a Arc<dyn Rail>,
    pub shown: &'a Shown,
    pub proof: Proof,
    pub terms: Terms,
    pub request: &'a str,
    pub revision: u64,
    /// What the operator may lose on it.
    pub room: Option<Room>,
}

/// Tries the proof, claims it durably, then collects it. A client that leaves in between must not leave a payment that nobody
/// follows.
pub(super) async fn take(toll: &Arc<Toll>, taking: Taking<'_>) -> Result<Hold, Stop> {
    let Taking { rail, shown, proof, terms, request, revision, room } = taking;
    let key = proof.recognised.key.clone();
    let (own, rail, shown, request) = (Arc::clone(toll), Arc::clone(rail), shown.clone(), request.to_owned());
    let trial = Errand::new(tried(Arc::clone(toll), Arc::clone(&rail), shown.clone(), proof, true));
    let (proof, mine) = trial.await.unwrap_or_else(|| Err(unknown()))?;
    let work = async move {
        let toll = own;
        let standing = Standing::Claimed { by: request.clone() };
        let claim = drafted(&proof, terms, revision, standing);
        write(&toll, rail.as_ref(), &claim).await?;
        drop(mine);
        let collected = rail.collect(&shown, &proof).await;
        conclude(&toll, rail.as_ref(), claim, collected, &request, room).await
    };
    to_its_end(toll, &key, work).await
}

/// A proof that would be paid, ready to be claimed. One request of this gate at a time tries a proof, and has it until its claim is
/// written: a copy that comes meanwhile or later asks nobody. Other gates may ask as well, for that moves nothing; the claim decides.
async fn tried(
    toll: Arc<Toll>,
    rail: Arc<dyn Rail>,
    shown: Shown,
    proof: Proof,
    first: bool,
) -> Result<(Proof, Mine), Stop> {
    let (recognised, payer) = (proof.recognised.clone(), proof.payer.clone());
    let key = &recognised.key.0;
    let Some(mine) = toll.channels.alone.take(format!("try {key}")) else {
        return Err(running(&toll, rail.as_ref()));
    };
    // A copy may have been through since its claim was looked for.
    if was_claimed(&toll, &recognised).await? {
        return Err(running(&toll, rail.as_ref()));
    }
    let refusal = match rail.complete(&shown, proof, first).await {
        Ok(proof) => return Ok((proof, mine)),
        Err(Refusal::ProofRunning { .. }) => return Err(running(&toll, rail.as_ref())),
        Err(Refusal::PaymentUnknown { .. }) => return Err(unknown()),
        Err(Refusal::ProofSpent) => {
            return Err(Stop { moved: Moved::Yes, claimed: true, ..Refusal::ProofSpent.into() });
        }
        Err(refusal) => refusal,
    };
    // Taken by a copy meanwhile (at another gate), a payment cannot go through once more: that is no reason to pay anew. Nor is a
    // chain or a facilitator that did not answer this one.
    if was_claimed(&toll, &recognised).await? {
        tracing::debug!(claim = key, why = refusal.code(), "a copy was faster");
        return Err(running(&toll, rail.as_ref()));
    }
    let (outcome, moved) = match refusal {
        Refusal::PaymentUnproven => ("unproven", Some(Moved::Unknown)),
        // Not `unknown`: nothing was taken, so nothing is in doubt.
        Refusal::PaymentUnchecked { .. } => ("unchecked", Some(Moved::No)),
        _ => ("refused", None),
    };
    if refusal == Refusal::PaymentUnproven {
        tracing::error!(rail = %rail.id(), key, ?payer, "an authorization was used up before it came here, and nobody can show for what");
    }
    toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
    Err(Stop { moved: moved.unwrap_or_default(), claimed: moved.is_some(), ..refusal.into() })
}

/// Whether a proof has a claim by now.
async fn was_claimed(toll: &Toll, recognised: &Recognised) -> Result<bool, Stop> {
    let claim = toll.store.claim(&recognised.key).await.map_err(|e| unread(&e))?;
    Ok(claim.is_some_and(|claim| !claim.yields_to(&recognised.challenge_id)))
}

/// Lets a payer promise, if that stays within `most`. He is counted once somebody has vouched for his proof: until then it may be anybody's,
/// and nobody uses up another's limit. From the claim on whatever breaks off lets it go.
pub(super) async fn promise(toll: &Arc<Toll>, taking: Taking<'_>, by_usage: bool, most: Usd) -> Result<Promise, Stop> {
    let Taking { rail, shown, proof, terms, request, revision, room } = taking;
    let (toll, rail, shown, request) = (Arc::clone(toll), Arc::clone(rail), shown.clone(), request.to_owned());
    let work = async move {
        let (proof, _mine) = tried(Arc::clone(&toll), Arc::clone(&rail), shown, proof, false).await?;
        let risk = risk(&toll, rail.as_ref(), (&proof, revision), terms.price, most).await?;
        let standing = Standing::Promised { by: request.clone() };
        let claim = drafted(&proof, terms, revision, standing);
        write(&toll, rail.as_ref(), &claim).await?;
        Ok(Promise::of(toll, rail, claim, request, by_usage, room).at(risk))
    };
    Errand::new(work).await.unwrap_or_else(|| Err(unknown()))
}

/// Counts what a payer promises against the most he may have promised and not paid.
async fn risk(
    toll: &Toll,
    rail: &dyn Rail,
    (proof, revision): (&Proof, u64),
    amount: Usd,
    most: Usd,
) -> Result<Risk, Stop> {
    let payer = proof.payer.as_deref().unwrap_or_default();
    let name = Exposure::tally_name(rail.id(), payer);
    let lost = toll.store.tally(&name, UnixSeconds::now().day()).await.map_err(|e| store_down(&e))?;
    let (whose, key) = (Whose { rail: rail.id(), payer }, &proof.recognised.key);
    let elsewhere = toll.store.promise(whose, (key, revision), amount).await.map_err(|e| store_down(&e))?;
    let gone = lost.plus(elsewhere).unwrap_or(Usd(u128::MAX));
    if let Some(risk) = toll.exposure.enter(rail.id(), payer, key, amount, gone, most) {
        return Ok(risk);
    }
    // A store that does not hear it drops it by itself in a while.
    let _ = toll.store.unpromise(whose, key).await;
    toll.metrics.payments.with_label_values(&[rail.id().as_str(), "refused"]).inc();
    Err(Refusal::PayerExposed { most, lost, retry_after_seconds: 30 }.into())
}

/// A new claim, which is written nowhere yet.
fn drafted(proof: &Proof, terms: Terms, revision: u64, standing: Standing) -> Claim {
    let Recognised { key, challenge_id, reference, resend, .. } = proof.recognised.clone();
    Claim {
        schema: Claim::SCHEMA,
        revision,
        key,
        challenge_id,
        terms,
        reference,
        payer: proof.payer.clone(),
        resend,
        standing,
        claimed_at: UnixSeconds::now(),
        collect_until: proof.collect_until,
        paid_at: None,
        taken: None,
        output: None,
        transaction: None,
        departures: 0,
    }
}

/// Writes a new claim; a promise may be brief.
async fn write(toll: &Arc<Toll>, rail: &dyn Rail, claim: &Claim) -> Result<(), Stop> {
    let entry = Entry::Claimed {
        key: claim.key.0.clone(),
        amount: claim.terms.amount,
        reference: claim.reference.clone(),
        at: claim.claimed_at,
    };
    // What was only promised ends with its process: recovery lets go of it (`recover.rs`), and what was let go is as good as never
    // shown. So a crash may as well forget it: nothing was taken, and whatever leaves before it is to be taken leaves unpaid
    // either way.
    let brief = matches!(claim.standing, Standing::Promised { .. });
    let write = Write { claim: Some(claim.clone()), journal: vec![entry], brief, ..Write::default() };
    match toll.store.commit(write).await {
        Ok(Swap::Done) => return Ok(()),
        Ok(Swap::Lost(_) | Swap::Overtaken(_)) => Err(running(toll, rail)),
        // It may be written: then recovery looks at it. Nobody may pay anew meanwhile.
        Err(e) => Err(unread(&e)),
    }
    .inspect_err(|stop| {
        if let Some(by) = claim.standing.holder() {
            recover::abandon(toll, &claim.key, by, stop);
        }
    })
}

/// Runs a step that must not stop half-way: when the client leaves, or has waited as long as anybody waits for an outcome that is not
/// known, the step goes on, and its hold is dropped with the result and gives itself back. A step that panics leaves its claim to
/// the recovery.
pub(super) async fn to_its_end(
    toll: &Arc<Toll>,
    key: &ClaimKey,
    step: impl Future<Output = Result<Hold, Stop>> + Send + 'static,
) -> Result<Hold, Stop> {
    match tokio::time::timeout(toll.unknown_wait, Errand::new(step)).await {
        Ok(Some(result)) => result,
        Ok(None) => {
            tracing::error!(claim = %key.0, "taking a payment broke off");
            let (own, key) = (Arc::clone(toll), key.clone());
            let follow = async move {
                if let Ok(Some(claim)) = own.store.claim(&key).await {
                    recover::follow(&own, claim, None).await;
                }
            };
            Errand::new(follow).await;
            Err(unknown())
        }
        Err(_) => {
            tracing::warn!(claim = %key.0, "its client waits no longer; the payment is still being taken");
            Err(unknown())
        }
    }
}

/// Writes down what the chain said and hands out the money, or follows up in the background when it said nothing.
async fn conclude(
    toll: &Arc<Toll>,
    rail: &dyn Rail,
    claim: Claim,
    collected: Collected,
    request: &str,
    room: Option<Room>,
) -> Result<Hold, Stop> {
    let count = |outcome: &str| toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
    let left = |stop: &Stop| recover::abandon(toll, &claim.key, request, stop);
    let now = UnixSeconds::now();
    let transaction = match collected {
        Collected::Paid => None,
        Collected::Settled { transaction } => Some(transaction),
        Collected::Failed { why } => {
            count("failed");
            advance(toll, &claim, Op::Die, now).await.inspect_err(left)?;
            return Err(Stop { refusal: Refusal::PaymentFailed { why }, moved: Moved::No, claimed: true });
        }
        Collected::Unprovable => {
            count("unproven");
            advance(toll, &claim, Op::Doubt, now).await.inspect_err(left)?;
            return Err(Stop { refusal: Refusal::PaymentUnproven, moved: Moved::Unknown, claimed: true });
        }
        Collected::Unknown => {
            count("unknown");
            recover::follow(toll, claim.clone(), None).await;
            return Err(unknown());
        }
    };
    count("paid");
    recover::count_charge(toll, &claim, claim.terms.amount);
    let unsure = |e: Stop| Stop { refusal: e.refusal, moved: Moved::Unknown, claimed: true };
    let op = Op::Pay { by: request.to_owned(), transaction };
    let paid = advance(toll, &claim, op, now).await.inspect_err(left).map_err(unsure)?;
    Ok(Hold::of(Arc::clone(toll), paid, request.to_owned(), room))
}
