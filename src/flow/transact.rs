//! Transactions of channels: sent once their intent is durable, and followed until the chain has spoken. And how fresh what the
//! chain said about a channel must be before anything is served on it.

use super::channels::{Live, Trouble};
use super::{Stop, Till, Toll};
use crate::channel::{Channel, ChannelId, Intent, Op};
use crate::clock::UnixSeconds;
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

/// Sends a transaction whose intent is in the record and writes down what became of it. While nobody knows, it is followed in the
/// background.
pub(super) async fn carry(
    toll: &Arc<Toll>,
    till: &Arc<Till>,
    channel: &Channel,
    intent: &Intent,
) -> Result<Outcome, Trouble> {
    let outcome = till.rail.submit(channel, intent).await;
    match outcome {
        Outcome::Unknown => follow(Arc::clone(toll), Arc::clone(till), channel.id.clone(), intent.clone()),
        _ => note(toll, &channel.id, intent, &outcome).await?,
    }
    Ok(outcome)
}

/// Looks for a transaction until the chain has spoken. Runs in the background.
pub(super) fn follow(toll: Arc<Toll>, till: Arc<Till>, id: ChannelId, intent: Intent) {
    tokio::spawn(async move {
        let mut wait = Duration::from_millis(500);
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(15));
            let channel = match toll.channels.read(&id).await {
                Ok(Some(channel)) => channel,
                Ok(None) => return,
                Err(_) => continue,
            };
            let open = [&channel.payers_tx, &channel.our_tx];
            if !open.iter().any(|known| known.as_ref().is_some_and(|known| known.tx == intent.tx)) {
                return;
            }
            let outcome = till.rail.look(&channel, &intent).await;
            if outcome != Outcome::Unknown && note(&toll, &id, &intent, &outcome).await.is_ok() {
                return;
            }
        }
    });
}

async fn note(toll: &Toll, id: &ChannelId, intent: &Intent, outcome: &Outcome) -> Result<(), Trouble> {
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
    let (_, effect) = toll.channels.one(id, op).await?;
    if effect.is_ok() && matches!(outcome, Outcome::Landed { .. }) {
        toll.channels.live(id).was_read(UnixSeconds::now());
    }
    Ok(())
}

/// Makes sure that what is known of the chain's side of a channel is fresh enough to serve on: asks it, at most once in five
/// seconds for one channel, when that was long ago. With the chain down, what was heard in the last minutes will do.
pub(super) async fn fresh(toll: &Toll, till: &Till, live: &Live, id: &ChannelId, now: UnixSeconds) -> Result<(), Stop> {
    if live.is_fresh(now, FRESH_SECONDS) {
        return Ok(());
    }
    if live.may_ask_chain(now) {
        let asked = tokio::time::timeout(LOOK, till.rail.views(std::slice::from_ref(id))).await;
        if let Ok(Ok(views)) = asked
            && let Some(view) = views.first()
        {
            let (channel, _) =
                toll.channels.one(id, Op::Look { view: *view }).await.map_err(|t| super::lease::trouble_stop(&t))?;
            live.was_read(now);
            return match channel.serves() {
                Ok(()) => Ok(()),
                Err(denied) => Err(super::lease::denied_refusal(&channel, &denied).into()),
            };
        }
    }
    if live.is_fresh(now, STALE_SECONDS) {
        return Ok(());
    }
    Err(Refusal::ChainUnread { retry_after_seconds: 5 }.into())
}
