//! Transactions of channels: sent once their intent is durable, and followed until the chain has spoken. And how fresh what the
//! chain said about a channel must be before anything is served on it.

use super::channels::{Live, Trouble};
use super::{Stop, Till, Toll};
use crate::chain::Unreachable;
use crate::channel::{Act, Channel, ChannelId, Effect, Intent, Op, Phase, View};
use crate::money::{Atoms, Usd};
use crate::rail::session::Outcome;
use crate::refusal::Refusal;
use std::sync::Arc;
use std::time::Duration;

/// Age of the chain's word from which on it is asked again before something is served.
const FRESH_SECONDS: u64 = 60;
/// Age up to which it will do when the chain does not answer: a third of the time a payer must wait to withdraw.
const STALE_SECONDS: u64 = 300;
/// Longest wait for a look at the chain before something is served.
const LOOK: Duration = Duration::from_secs(3);

/// Longest wait for our own signature on a transaction.
const SIGN: Duration = Duration::from_secs(10);
/// Longest wait for a rail that is to send something. What it does by then is found out by following.
const SEND: Duration = Duration::from_secs(30);

/// Sends a transaction whose intent is in the record and writes down what became of it. While nobody knows, it is followed in the
/// background.
pub(super) async fn carry(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    channel: &Channel,
    intent: &Intent,
) -> Result<Outcome, Trouble> {
    let outcome = tokio::time::timeout(SEND, till.rail.submit(channel, intent)).await.unwrap_or(Outcome::Unknown);
    match outcome {
        Outcome::Unknown => follow(Arc::clone(toll), Arc::clone(till), channel.id.clone(), intent.clone()),
        _ => {
            // Known, and not written: whoever follows it finds out again and writes it down.
            if let Err(trouble) = note(toll, till, &channel.id, intent, &outcome).await {
                follow(Arc::clone(toll), Arc::clone(till), channel.id.clone(), intent.clone());
                return Err(trouble);
            }
        }
    }
    if outcome == Outcome::Unknown {
        count(toll, till, intent, &outcome);
    }
    Ok(outcome)
}

/// Looks for a transaction until the chain has spoken. Runs in the background, once for each transaction.
pub(super) fn follow(toll: Arc<Toll>, till: Arc<Till>, id: ChannelId, intent: Intent) {
    let Some(mine) = toll.channels.alone.take(format!("follow {}", intent.tx)) else { return };
    tokio::spawn(async move {
        let _mine = mine;
        let mut wait = Duration::from_millis(500);
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(15));
            let channel = match toll.channels.newest(&id).await {
                Ok(Some(channel)) => channel,
                Ok(None) => return,
                Err(_) => continue,
            };
            let open = [&channel.payers_tx, &channel.our_tx];
            if !open.iter().any(|known| known.as_ref().is_some_and(|known| known.tx == intent.tx)) {
                return;
            }
            let asked = tokio::time::timeout(SEND, till.rail.look(&channel, &intent)).await;
            let outcome = asked.unwrap_or(Outcome::Unknown);
            if outcome != Outcome::Unknown && note(&toll, &till, &id, &intent, &outcome).await.is_ok() {
                return;
            }
        }
    });
}

/// What signing a transaction of ours comes to. One that cannot be signed, or not in time, is counted, and the log says why.
pub(super) async fn signed(
    toll: &Toll,
    till: &Till,
    id: &ChannelId,
    signing: impl Future<Output = Result<Intent, Unreachable>>,
) -> Option<Intent> {
    let late = Unreachable { why: "the chain's node does not answer in time" };
    let tried = tokio::time::timeout(SIGN, signing).await.unwrap_or(Err(late));
    let rail = till.rail.id();
    tried
        .inspect_err(|Unreachable { why }| {
            tracing::warn!(channel = %id, rail = %rail, why, "a transaction of ours could not be signed");
            toll.metrics.settlements.with_label_values(&[rail.as_str(), "unsigned"]).inc();
        })
        .ok()
}

/// Counts what became of a transaction of ours.
fn count(toll: &Toll, till: &Till, intent: &Intent, outcome: &Outcome) {
    let outcome = match (&intent.act, outcome) {
        (Act::Open | Act::TopUp { .. }, _) => return,
        (Act::Settle { .. }, Outcome::Landed { .. }) => "settled",
        (Act::Close { .. }, Outcome::Landed { .. }) => "closed",
        (_, Outcome::Dropped { .. }) => "dropped",
        (_, Outcome::Unknown) => "unknown",
    };
    toll.metrics.settlements.with_label_values(&[till.rail.id().as_str(), outcome]).inc();
}

/// Takes the chain's word on a channel. A channel that is gone while our own transaction is open is left as it is: what became of that
/// says why it is gone, and whoever follows it will know. What was spent and is out of reach is counted as lost.
pub(super) async fn heard(toll: &Toll, till: &Till, id: &ChannelId, view: View) -> Result<Arc<Channel>, Trouble> {
    let known = toll.channels.newest(id).await.map_err(Trouble::Store)?.ok_or(Trouble::Unknown)?;
    // A node whose newest block is old says nothing of what has happened since.
    if till.rail.chain_standing().is_ok() {
        toll.channels.were_read(std::slice::from_ref(id));
    }
    if view.is_gone() && known.our_tx.is_some() {
        return Ok(known);
    }
    let same = (view.deposit, view.settled, view.close_requested_at)
        == (known.view.deposit, known.view.settled, known.view.close_requested_at);
    if same && !view.is_gone() {
        return Ok(known);
    }
    let (channel, effect) = toll.channels.one(id, Op::Look { view }).await?;
    if let (Phase::Quarantined { why }, false) = (&channel.phase, matches!(known.phase, Phase::Quarantined { .. })) {
        tracing::error!(channel = %id, why, "a channel contradicts the chain: blocked until a person has looked at it");
    }
    let was_over = matches!(known.phase, Phase::Closed { .. });
    if effect == Ok(Effect::Done) && matches!(channel.phase, Phase::Closed { tx: None }) && !was_over {
        let rail = till.rail.id();
        let lost = channel.unsettled();
        if lost > Atoms(0) {
            tracing::error!(channel = %id, rail = %rail, atoms = %lost, "the payer withdrew before it was settled: lost");
            let usd = lost.to_usd(channel.decimals).unwrap_or(Usd::ZERO);
            toll.metrics.session_loss_usd.with_label_values(&[rail.as_str()]).inc_by(crate::metrics::shown(usd));
            toll.metrics.forced_closes.with_label_values(&[rail.as_str(), "lost"]).inc();
        } else {
            tracing::info!(channel = %id, "closed on chain by somebody else");
        }
    }
    Ok(channel)
}

async fn note(toll: &Toll, till: &Till, id: &ChannelId, intent: &Intent, outcome: &Outcome) -> Result<(), Trouble> {
    let op = match outcome {
        Outcome::Landed { mined, view } => {
            Op::Landed { tx: intent.tx.clone(), mined: Some(mined.clone()), view: *view }
        }
        Outcome::Dropped { why } => {
            tracing::warn!(channel = %id, act = ?intent.act, why, "a transaction came to nothing");
            Op::Dropped { tx: intent.tx.clone() }
        }
        Outcome::Unknown => return Ok(()),
    };
    // First: whoever waits for the record to change looks for it then.
    if let (Act::TopUp { .. }, Outcome::Landed { mined, .. }) = (&intent.act, outcome) {
        toll.channels.live(id).topped_up(&intent.tx, mined);
    }
    let (_, effect) = toll.channels.one(id, op).await?;
    if intent.act == Act::Open {
        toll.channels.unjudged.leave(id);
    }
    if effect.is_ok() {
        count(toll, till, intent, outcome);
        if let Outcome::Landed { .. } = outcome {
            toll.channels.were_read(std::slice::from_ref(id));
        }
    }
    Ok(())
}

/// Makes sure that what is known of the chain's side of a channel is fresh enough to serve on: asks it, at most once in five
/// seconds for one channel, when that was long ago. With the chain down, what was heard in the last minutes will do.
pub(super) async fn fresh(toll: &Toll, till: &Till, live: &Live, id: &ChannelId) -> Result<(), Stop> {
    if live.is_fresh(FRESH_SECONDS) {
        return Ok(());
    }
    if live.may_ask_chain() {
        let asked = tokio::time::timeout(LOOK, till.rail.views(std::slice::from_ref(id))).await;
        if let Ok(Ok(views)) = asked
            && let Some(view) = views.first()
        {
            let heard = heard(toll, till, id, *view).await;
            let channel = heard.map_err(|t| super::lease::trouble_stop(&t))?;
            // A node that is behind has not heard of the opening yet: what the record knows of the chain is younger.
            if view.is_gone() && view.block >= channel.view.block {
                return Err(Refusal::ChannelOver.into());
            }
            if let Err(denied) = channel.serves() {
                return Err(super::lease::denied_refusal(&channel, &denied).into());
            }
            // Of what a node that stands still says only the bad news is news.
            if till.rail.chain_standing().is_ok() {
                return Ok(());
            }
        }
    }
    if live.is_fresh(STALE_SECONDS) {
        return Ok(());
    }
    Err(Refusal::ChainUnread { retry_after_seconds: 5 }.into())
}
