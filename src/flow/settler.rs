//! What is owed to us is brought home: channels are settled when enough, or a hundredth of that long enough, is spent, and closed when
//! nobody uses them any more.
//!
//! Only a voucher of at most what was spent is settled, because `settle` takes all that a voucher says (TIP-1034): where none
//! covers it yet, nothing is forced, the next one will. One transaction of ours per channel is under way at a time, whichever
//! gate has sent it: the record says so.

use super::errand::Errand;
use super::{Till, Toll, closing, reclaim, transact, watcher};
use crate::channel::{Channel, ChannelId, Op, Phase, Voucher};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::rail::session::Outcome;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Channels that are settled or closed at the same time.
const AT_ONCE: usize = 8;
/// Words of [`Phase::label`] for channels that are not over.
const PHASES: [&str; 5] = ["opening", "open", "closing", "forced_closing", "quarantined"];

/// How often things beside requests are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Records, for what is due.
    pub due: Duration,
    /// The chain, for every channel.
    pub views: Duration,
    /// The chain, for closes that payers ask for.
    pub events: Duration,
    /// Gates that are gone.
    pub gates: Duration,
    /// Rest after a transaction that came to nothing: it may have cost a fee.
    pub rest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { due: seconds(5), views: seconds(15), events: seconds(4), gates: seconds(30), rest: seconds(300) }
    }
}

/// Starts everything that runs beside requests for channels. Call after [`reclaim::reclaim`].
pub fn start(toll: &Arc<Toll>, pace: Pace) {
    if toll.tills.is_empty() {
        return;
    }
    tokio::spawn(Arc::clone(&toll.channels).listen());
    for till in &toll.tills {
        tokio::spawn(watcher::watch(Arc::clone(toll), Arc::clone(till), pace));
    }
    tokio::spawn(reclaim::sweep(Arc::clone(toll), pace.gates));
    let toll = Arc::clone(toll);
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            round(&toll, pace, &room).await;
            tokio::time::sleep(pace.due).await;
        }
    });
}

/// Starts what is due now.
async fn round(toll: &Arc<Toll>, pace: Pace, room: &Arc<Semaphore>) {
    let channels = match toll.store.channels().await {
        Ok(channels) => channels,
        Err(error) => return tracing::error!(%error, "nothing is settled: the store does not answer"),
    };
    gauge(toll, &channels);
    let now = UnixSeconds::now();
    for channel in channels {
        let Some(till) = toll.till(&channel.rail) else { continue };
        let Some(due) = due(&channel, till, now) else { continue };
        if due == Due::Forced {
            closing::forced(toll, till, &channel.id);
            continue;
        }
        if till.rail.chain_standing().is_err() {
            continue;
        }
        let Some(mine) = toll.channels.alone.take(format!("due {}", channel.id)) else { continue };
        let (toll, till, room) = (Arc::clone(toll), Arc::clone(till), Arc::clone(room));
        tokio::spawn(async move {
            let _mine = mine;
            let came = {
                let Ok(_room) = room.acquire().await else { return };
                if due == Due::Close && !closes(&toll, &till, &channel.id).await {
                    return;
                }
                match due {
                    Due::Settle(voucher) => settle(&toll, &till, &channel, &voucher).await,
                    _ => match closing::close(&toll, &till, &channel.id).await {
                        Ok(_) => Settled::Sent,
                        Err(stop) if stop == closing::dropped() => Settled::Dropped,
                        Err(_) => Settled::NotSent,
                    },
                }
            };
            match came {
                Settled::Sent | Settled::Overtaken => {}
                Settled::NotSent => tokio::time::sleep(pace.views).await,
                Settled::Dropped => tokio::time::sleep(pace.rest).await,
            }
        });
    }
}

/// Whether a channel is still to be closed, by all that is known here: what a request uses may not be in the store yet, and it may have
/// come while others were closed.
async fn closes(toll: &Toll, till: &Till, id: &ChannelId) -> bool {
    let (newest, now) = (toll.channels.newest(id).await, UnixSeconds::now());
    newest.is_ok_and(|channel| channel.is_some_and(|channel| due(&channel, till, now) == Some(Due::Close)))
}

/// What is to be done about a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// This voucher can be paid out as it is.
    Settle(Voucher),
    /// Nobody uses it, or a close was not finished.
    Close,
    /// Its payer closes it.
    Forced,
}

/// What the terms say is due. `None` as well while a transaction of ours is open.
pub(super) fn due(channel: &Channel, till: &Till, now: UnixSeconds) -> Option<Due> {
    if let Phase::ForcedClosing { .. } = channel.phase {
        return Some(Due::Forced);
    }
    if channel.our_tx.is_some() {
        return None;
    }
    match channel.phase {
        Phase::Closing => return Some(Due::Close),
        Phase::Open => {}
        _ => return None,
    }
    let hours = till.terms.close_idle_hours;
    let in_use = !channel.leases.is_empty() || channel.payers_tx.is_some();
    if !in_use && now >= channel.touched_at.plus(hours.saturating_mul(3600)) {
        return Some(Due::Close);
    }
    let voucher = settleable(channel)?;
    let owed = Atoms(voucher.amount.0.saturating_sub(channel.view.settled.0));
    let old = now >= channel.settled_at.plus(till.terms.settle_every_minutes.saturating_mul(60));
    let enough = if old { till.least_by_age() } else { till.atoms(till.terms.settle_above) };
    (owed >= enough).then(|| Due::Settle(voucher.clone()))
}

fn settleable(channel: &Channel) -> Option<&Voucher> {
    channel.settleable().filter(|voucher| voucher.amount > channel.view.settled)
}

/// What came of a try to pay out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// It is sent.
    Sent,
    /// Somebody else was faster.
    Overtaken,
    /// The chain or the store did not answer, or the channel is in use.
    NotSent,
    /// It was sent and came to nothing.
    Dropped,
}

/// Pays a voucher out.
async fn settle(toll: &Arc<Toll>, till: &Arc<Till>, channel: &Channel, voucher: &Voucher) -> Settled {
    let signing = till.rail.settle(channel, voucher, UnixSeconds::now());
    let Some(intent) = transact::signed(toll, till, &channel.id, signing).await else { return Settled::NotSent };
    let (channel, effect) = match toll.channels.one(&channel.id, Op::Intend { intent: intent.clone() }).await {
        Ok(answer) => answer,
        Err(trouble) => {
            tracing::error!(channel = %channel.id, ?trouble, "not settled: its intent could not be written");
            return Settled::NotSent;
        }
    };
    if effect.is_err() {
        return Settled::Overtaken;
    }
    match transact::carry(toll, till, &channel, &intent).await {
        Ok(Outcome::Dropped { .. }) => Settled::Dropped,
        Err(_) => Settled::NotSent,
        Ok(Outcome::Landed { .. } | Outcome::Unknown) => Settled::Sent,
    }
}

/// What came of an operator's wish to settle a channel, with the reason where nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is sent.
    Sent,
    /// There is nothing to send now.
    Nothing(String),
    /// There is, and it was not sent or made nothing happen.
    Failed(String),
}

/// Settles what can be settled of a channel now, because an operator asks.
pub async fn settle_now(toll: &Arc<Toll>, till: &Arc<Till>, channel: &Channel) -> Wish {
    let (own, till, channel) = (Arc::clone(toll), Arc::clone(till), channel.clone());
    let work = async move {
        let voucher = match payable(&channel) {
            Ok(voucher) => voucher,
            Err(why) => return Wish::Nothing(why),
        };
        let failed = |why: &str| Wish::Failed(why.to_owned());
        match settle(&own, &till, &channel, voucher).await {
            Settled::Sent => Wish::Sent,
            Settled::Overtaken => Wish::Nothing("something else has begun on the channel meanwhile".to_owned()),
            Settled::NotSent => failed("not sent: the chain or the store did not answer (the log says which)"),
            Settled::Dropped => {
                failed("sent, and it made nothing happen: the settle key's address may not be able to pay fees")
            }
        }
    };
    Errand::new(work).await.unwrap_or_else(|| Wish::Failed("the try broke off (the log says where)".to_owned()))
}

/// The voucher that can be paid out, or why there is none.
fn payable(channel: &Channel) -> Result<&Voucher, String> {
    if channel.our_tx.is_some() {
        return Err("a transaction of ours on the channel is under way".to_owned());
    }
    match &channel.phase {
        Phase::Open | Phase::Closing | Phase::ForcedClosing { .. } => {}
        Phase::Quarantined { why } => return Err(format!("the channel is blocked: {why}")),
        phase => return Err(format!("the channel is {}", phase.label())),
    }
    settleable(channel).ok_or_else(|| match channel.unsettled() {
        Atoms(0) => "all that was spent is settled".to_owned(),
        unsettled => format!(
            "{unsettled} atoms are spent and not settled, and no voucher is for at most what was spent: the next one was signed for more; \
             to close the channel takes what was spent"
        ),
    })
}

/// Says how many channels there are, and what they owe.
fn gauge(toll: &Toll, channels: &[Channel]) {
    for phase in PHASES {
        let n = channels.iter().filter(|c| c.phase.label() == phase).count();
        toll.metrics.channels.with_label_values(&[phase]).set(i64::try_from(n).unwrap_or(i64::MAX));
    }
    let mut owed: BTreeMap<&str, f64> = toll.tills.iter().map(|till| (till.rail.id().as_str(), 0.0)).collect();
    for channel in channels {
        if let Some(sum) = owed.get_mut(channel.rail.as_str()) {
            *sum += crate::metrics::shown(channel.unsettled().to_usd(channel.decimals).unwrap_or_default());
        }
    }
    for (rail, usd) in owed {
        toll.metrics.unsettled_usd.with_label_values(&[rail]).set(usd);
    }
}
