//! Closing a channel: what was used is paid out, the rest goes back.

use super::errand::Errand;
use super::lease::{denied_refusal, trouble_stop, unsure};
use super::pay::unknown;
use super::{Stop, Till, Toll, reclaim, transact};
use crate::channel::{Channel, ChannelId, GRACE_SECONDS, Op, Phase};
use crate::clock::UnixSeconds;
use crate::rail::session::Outcome;
use crate::refusal::Refusal;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a close waits for requests that still use the channel.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a close that the payer forces waits for requests that still use the channel: what they cost is claimed with it or never. Less
/// than the third of the grace after which a forced close is late.
const PATIENCE: Duration = Duration::from_secs(240);

/// A channel that is over.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Its last record.
    pub channel: Arc<Channel>,
    /// The transaction, when it was ours.
    pub tx: Option<String>,
}

/// Closes a channel by agreement. Asked again, it gives the same answer.
pub async fn close(toll: &Arc<Toll>, till: &Arc<Till>, id: &ChannelId) -> Result<Closed, Stop> {
    let (own, till, id) = (Arc::clone(toll), Arc::clone(till), id.clone());
    let work = async move { run(&own, &till, &id).await };
    Errand::new(work).await.unwrap_or_else(|| Err(unknown()))
}

async fn run(toll: &Arc<Toll>, till: &Arc<Till>, id: &ChannelId) -> Result<Closed, Stop> {
    let live = toll.channels.live(id);
    let deadline = Instant::now() + DRAIN;
    let (channel, effect) = toll.channels.one(id, Op::Close).await.map_err(|t| trouble_stop(&t))?;
    if let Some(closed) = over(&channel) {
        return Ok(closed);
    }
    if let Err(denied) = effect {
        return Err(denied_refusal(&channel, &denied).into());
    }
    let idle = |c: &Channel| (c.leases.is_empty() && c.our_tx.is_none()) || is_closed(c);
    let channel = toll.channels.wait(&live, id, deadline, idle).await.map_err(|_| busy())?;
    if let Some(closed) = over(&channel) {
        return Ok(closed);
    }
    let mine = toll.channels.alone.take(format!("close {id}"));
    let tried = match &mine {
        Some(_) => pay_out(toll, till, &channel).await?,
        None => Tried::Joined,
    };
    match tried {
        Tried::Sent(Outcome::Landed { mined, .. }) => {
            let channel = toll.channels.newest(id).await.map_err(|e| super::pay::store_down(&e))?;
            Ok(Closed { channel: channel.ok_or(Refusal::ChannelUnknown)?, tx: Some(mined) })
        }
        Tried::Sent(Outcome::Dropped { .. }) => Err(dropped()),
        Tried::Sent(Outcome::Unknown) => Err(unknown()),
        // Somebody else closes it: his transaction is the answer to both.
        Tried::Joined => {
            let channel = toll.channels.wait(&live, id, deadline, is_closed).await.map_err(|_| busy())?;
            over(&channel).ok_or_else(busy)
        }
    }
}

fn busy() -> Stop {
    Refusal::ChannelBusy { retry_after_seconds: 2 }.into()
}

/// Our transaction came to nothing. It may have cost a fee: the next one can wait a little.
pub(super) fn dropped() -> Stop {
    Refusal::ChannelBusy { retry_after_seconds: 30 }.into()
}

fn is_closed(channel: &Channel) -> bool {
    matches!(channel.phase, Phase::Closed { .. })
}

fn over(channel: &Arc<Channel>) -> Option<Closed> {
    let Phase::Closed { tx } = &channel.phase else { return None };
    Some(Closed { channel: Arc::clone(channel), tx: tx.clone() })
}

/// What came of one try to close.
enum Tried {
    /// Sent, with this outcome.
    Sent(Outcome),
    /// The channel is not as it was read: another gate has a transaction on it, or there is more to wait for.
    Joined,
}

/// Signs what closes the channel as it is now, makes it durable, sends it.
async fn pay_out(toll: &Arc<Toll>, till: &Arc<Till>, channel: &Channel) -> Result<Tried, Stop> {
    let id = &channel.id;
    let voucher = channel.highest().cloned().ok_or(Refusal::Internal { place: "closing: no voucher" })?;
    let unread = || Stop::from(Refusal::ChainUnread { retry_after_seconds: 5 });
    let signing = till.rail.close(channel, &voucher, channel.capture(), UnixSeconds::now());
    let intent = transact::signed(toll, till, id, signing).await.ok_or_else(unread)?;
    let intend = Op::Intend { intent: intent.clone() };
    let (channel, effect) = toll.channels.one(id, intend).await.map_err(|t| unsure(&t))?;
    if effect.is_err() {
        return Ok(Tried::Joined);
    }
    transact::carry(toll, till, &channel, &intent).await.map(Tried::Sent).map_err(|t| unsure(&t))
}

/// Brings a channel that its payer closes by force to its end: waits a little for requests that still use it, then closes it at what
/// was spent, again and again until the chain has paid out or there is nothing left to claim from. Runs in the background, once for
/// each channel.
pub(super) fn forced(toll: &Arc<Toll>, till: &Arc<Till>, id: &ChannelId) {
    let Some(mine) = toll.channels.alone.take(format!("forced {id}")) else { return };
    let (toll, till, id) = (Arc::clone(toll), Arc::clone(till), id.clone());
    tokio::spawn(async move {
        let _mine = mine;
        let count = |outcome| {
            toll.metrics.forced_closes.with_label_values(&[till.rail.id().as_str(), outcome]).inc();
        };
        count("seen");
        let live = toll.channels.live(&id);
        let mut wait = Duration::from_millis(500);
        let mut late = false;
        let mut patience = None;
        loop {
            let channel = match toll.channels.newest(&id).await {
                Ok(Some(channel)) => channel,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(channel = %id, %error, "a forced close waits for the store");
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            let deadline = match &channel.phase {
                Phase::ForcedClosing { deadline } => *deadline,
                Phase::Closed { tx: Some(_) } => return count("claimed"),
                Phase::Open => return count("cancelled"),
                _ => return,
            };
            let now = UnixSeconds::now();
            if !late && now.plus(GRACE_SECONDS - GRACE_SECONDS / 3) >= deadline {
                late = true;
                count("late");
                let at_stake = channel.unsettled();
                tracing::error!(channel = %id, deadline = %deadline.rfc3339(), %at_stake, "a forced close is late");
            }
            let until = *patience.get_or_insert_with(|| Instant::now() + patience_until(now, deadline));
            toll.channels.refresh(&id).await;
            let free = |c: &Channel| !is_forced(c) || (c.our_tx.is_none() && c.leases.is_empty());
            let (channel, in_time) = match toll.channels.wait(&live, &id, until, free).await {
                Ok(channel) => (channel, true),
                Err(_) => (channel, false),
            };
            if !is_forced(&channel) {
                continue;
            }
            // Out of patience with requests, never with a transaction of our own: two would be one too many.
            if !in_time && channel.our_tx.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            // Whoever still uses it has had his time: what the record knows of him is claimed, and nothing more leaves.
            if !in_time && !channel.leases.is_empty() {
                let gates = channel.leases.values().map(|lease| lease.gate.clone()).collect();
                let ended = reclaim::orphan(&toll, &channel, &gates).await;
                if !matches!(ended, Ok(1..)) {
                    tracing::error!(channel = %id, ?ended, "a forced close waits for the store");
                    tokio::time::sleep(wait).await;
                }
                continue;
            }
            match pay_out(&toll, &till, &channel).await {
                Ok(Tried::Sent(Outcome::Landed { .. })) => continue,
                Ok(Tried::Joined) => toll.channels.refresh(&id).await,
                Ok(Tried::Sent(outcome)) => tracing::warn!(channel = %id, ?outcome, "a forced close goes on"),
                Err(stop) => tracing::warn!(channel = %id, why = stop.refusal.code(), "a forced close goes on"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(15));
        }
    });
}

/// How long a forced close waits for requests in progress: 4 minutes, and never more than a third of what is left.
fn patience_until(now: UnixSeconds, deadline: UnixSeconds) -> Duration {
    PATIENCE.min(Duration::from_secs(deadline.0.saturating_sub(now.0) / 3))
}

fn is_forced(channel: &Channel) -> bool {
    matches!(channel.phase, Phase::ForcedClosing { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_close_waits_for_what_runs_most_of_the_time_before_it_is_late_and_never_too_long() {
        for (left, seconds, why) in [
            (GRACE_SECONDS, 240, "seen at once: four minutes, and a minute to claim before it is late"),
            (720, 240, "as long as a third of what is left is more"),
            (600, 200, "a third of it"),
            (9, 3, "down to the end"),
            (0, 0, "there is no time to lose"),
        ] {
            let waits = patience_until(UnixSeconds(1_000), UnixSeconds(1_000 + left));
            assert_eq!(waits, Duration::from_secs(seconds), "{why}");
        }
        assert!(
            PATIENCE + Duration::from_secs(60) <= Duration::from_secs(GRACE_SECONDS / 3),
            "it is not late by waiting"
        );
        assert_eq!(patience_until(UnixSeconds(1_000), UnixSeconds(9)), Duration::ZERO, "over already");
    }
}
