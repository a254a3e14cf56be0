//! A checked proof → money: claimed, then taken, or vouched for meanwhile, each an [`Errand`].

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
use crate::rail::{Collected, Proof, Rail, Recognised, Shown, Vouched};
use crate::refusal::{Moved, Refusal};
use crate::store::{Swap, Whose, Write};
use futures::future::try_join;
use std::sync::Arc;
use std::task::Poll;

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

/// Completes the proof, claims it durably, then collects it. A client that leaves in between must not leave a payment that nobody
/// follows.
pub(super) async fn take(toll: &Arc<Toll>, taking: Taking<'_>) -> Result<Hold, Stop> {
    let Taking { rail, shown, proof, terms, request, revision, room } = taking;
    let key = proof.recognised.key.clone();
    let (own, rail, shown, request) = (Arc::clone(toll), Arc::clone(rail), shown.clone(), request.to_owned());
    let work = async move {
        let toll = own;
        let proof = match rail.complete(&shown, proof.clone()).await {
            Ok(proof) => proof,
            Err(Refusal::ProofRunning { .. }) => return Err(running(&toll, rail.as_ref())),
            // Taken by a copy meanwhile, a payment cannot go through once more: that is no reason to pay anew.
            // Nor is a chain that did not answer this one.
            Err(refusal)
                if (refusal.invites_payment() || matches!(refusal, Refusal::NoOffer { .. }))
                    && was_claimed(&toll, &proof.recognised).await? =>
            {
                tracing::debug!(claim = %proof.recognised.key.0, why = refusal.code(), "a copy was faster");
                return Err(running(&toll, rail.as_ref()));
            }
            Err(Refusal::PaymentUnknown { .. }) => return Err(unknown()),
            Err(Refusal::ProofSpent) => {
                return Err(Stop { moved: Moved::Yes, claimed: true, ..Refusal::ProofSpent.into() });
            }
            Err(refusal) => {
                toll.metrics.payments.with_label_values(&[rail.id().as_str(), "refused"]).inc();
                return Err(refusal.into());
            }
        };
        let standing = Standing::Claimed { by: request.clone() };
        let claim = drafted(&proof, terms, revision, standing);
        write(&toll, rail.as_ref(), &claim).await?;
        let collected = rail.collect(&shown, &proof).await;
        conclude(&toll, rail.as_ref(), claim, collected, &request, room).await
    };
    to_its_end(toll, &key, work).await
}

/// Whether a proof has a claim by now.
async fn was_claimed(toll: &Toll, recognised: &Recognised) -> Result<bool, Stop> {
    let claim = toll.store.claim(&recognised.key).await.map_err(|e| unread(&e))?;
    Ok(claim.is_some_and(|claim| !claim.yields_to(&recognised.challenge_id)))
}

/// Lets a payer promise, if that stays within `most`. One whom the signature does not prove is counted once somebody has vouched for
/// it: nobody uses up another's limit.
pub(super) async fn promise(toll: &Arc<Toll>, taking: Taking<'_>, by_usage: bool, most: Usd) -> Result<Promise, Stop> {
    let (rail, proof, amount) = (Arc::clone(taking.rail), taking.proof.clone(), taking.terms.price);
    let counted = (&proof, taking.revision);
    if proof.is_proven {
        let risk = risk(toll, rail.as_ref(), counted, amount, most).await?;
        return Ok(vouched(toll, taking, by_usage).await?.at(risk));
    }
    let promise = vouched(toll, taking, by_usage).await?;
    match risk(toll, rail.as_ref(), counted, amount, most).await {
        Ok(risk) => Ok(promise.at(risk)),
        Err(stop) => Err(Stop { moved: promise.forgo().await, claimed: true, ..stop }),
    }
}

/// Claims a proof and asks whether it would be paid. Nothing moves.
///
/// The claim is made before anybody is asked where that takes no time, which is in the memory of a gate that stands alone. A store
/// that gates share is across a network: there the claim is written while the facilitator is asked, by one request of this gate at a
/// time, and nothing comes of either before both have answered. What each gate may then ask for itself is a question that moves nothing.
async fn vouched(toll: &Arc<Toll>, taking: Taking<'_>, by_usage: bool) -> Result<Promise, Stop> {
    let Taking { rail, proof, terms, request, revision, room, .. } = taking;
    let (toll, rail, request) = (Arc::clone(toll), Arc::clone(rail), request.to_owned());
    let work = async move {
        let standing = Standing::Promised { by: request.clone() };
        let claim = drafted(&proof, terms, revision, standing);
        let asked = write_and_ask(&toll, &rail, &claim).await?;
        // From here on whatever breaks off lets it go.
        let promise = Promise::of(Arc::clone(&toll), Arc::clone(&rail), claim, request, by_usage, room);
        let vouched = match asked {
            Some(vouched) => vouched,
            None => rail.vouch(promise.claim()).await,
        };
        let count = |outcome: &str| toll.metrics.payments.with_label_values(&[rail.id().as_str(), outcome]).inc();
        match vouched {
            Vouched::Good => Ok(promise),
            Vouched::Bad { why } => {
                count("refused");
                let moved = promise.forgo().await;
                Err(Stop { refusal: Refusal::PaymentInvalid { why }, moved, claimed: true })
            }
            Vouched::Unproven => {
                count("unproven");
                let (key, payer) = (&promise.claim().key.0, &promise.claim().payer);
                tracing::error!(rail = %rail.id(), key, ?payer, "an authorization was used up before it came here, and nobody can show for what");
                promise.forgo().await;
                Err(Stop { refusal: Refusal::PaymentUnproven, moved: Moved::Unknown, claimed: true })
            }
            Vouched::Unknown { why } => {
                // Not `unknown`: nothing was taken, so nothing is in doubt.
                count("unchecked");
                tracing::warn!(rail = %rail.id(), why, "a payment could not be verified: nothing was taken");
                let moved = promise.forgo().await;
                Err(Stop { refusal: Refusal::PaymentUnchecked { retry_after_seconds: 5 }, moved, claimed: true })
            }
        }
    };
    Errand::new(work).await.unwrap_or_else(|| Err(unknown()))
}

/// Writes a promise, and asks whether it would be paid while that takes time; `None`: it took none, and nobody was asked.
async fn write_and_ask(toll: &Arc<Toll>, rail: &Arc<dyn Rail>, claim: &Claim) -> Result<Option<Vouched>, Stop> {
    let mut writing = Box::pin(write(toll, rail.as_ref(), claim));
    if let Poll::Ready(written) = futures::poll!(writing.as_mut()) {
        return written.map(|()| None);
    }
    // While another request has the question, this one's claim is as good as lost.
    let Some(_mine) = toll.channels.alone.take(format!("vouch {}", claim.key.0)) else {
        return writing.await.map(|()| None);
    };
    let (rail, claim) = (Arc::clone(rail), claim.clone());
    let asking = Errand::new(async move { rail.vouch(&claim).await });
    let ((), vouched) = try_join(writing, async { Ok(asking.await) }).await?;
    Ok(Some(vouched.unwrap_or_else(|| Vouched::Unknown { why: "asking broke off".to_owned() })))
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
