//! Closing a channel: what was used is paid out, the rest goes back.

use super::lease::{denied_refusal, trouble_stop};
use super::{Stop, Till, Toll, transact};
use crate::channel::{Act, Channel, ChannelId, Op, Phase};
use crate::clock::UnixSeconds;
use crate::rail::session::Outcome;
use crate::refusal::{Moved, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a close waits for requests that still use the channel.
const DRAIN: Duration = Duration::from_secs(10);

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
    tokio::spawn(work).await.unwrap_or_else(|_| Err(super::session::unknown()))
}

async fn run(toll: &Arc<Toll>, till: &Arc<Till>, id: &ChannelId) -> Result<Closed, Stop> {
    let live = toll.channels.live(id);
    let (channel, effect) = toll.channels.one(id, Op::Close).await.map_err(|t| trouble_stop(&t))?;
    if let Phase::Closed { tx } = &channel.phase {
        let tx = tx.clone();
        return Ok(Closed { channel, tx });
    }
    if let Err(denied) = effect {
        return Err(denied_refusal(&channel, &denied).into());
    }
    let busy = || Stop::from(Refusal::ChannelBusy { retry_after_seconds: 2 });
    let idle = |c: &Channel| (c.leases.is_empty() && c.our_tx.is_none()) || matches!(c.phase, Phase::Closed { .. });
    let channel = toll.channels.wait(&live, id, Instant::now() + DRAIN, idle).await.map_err(|_| busy())?;
    if let Phase::Closed { tx } = &channel.phase {
        let tx = tx.clone();
        return Ok(Closed { channel, tx });
    }
    let voucher = channel.highest().cloned().ok_or(Refusal::Internal { place: "closing: no voucher" })?;
    let capture = channel.capture();
    let unread = |_| Stop::from(Refusal::ChainUnread { retry_after_seconds: 5 });
    let intent = till.rail.close(&channel, &voucher, capture, UnixSeconds::now()).await.map_err(unread)?;
    let unsure = |t| Stop { moved: Moved::Unknown, claimed: true, ..trouble_stop(&t) };
    let (channel, effect) = toll.channels.one(id, Op::Intend { intent: intent.clone() }).await.map_err(unsure)?;
    effect.map_err(|_| busy())?;
    debug_assert!(matches!(intent.act, Act::Close { .. }));
    match transact::carry(toll, till, &channel, &intent).await.map_err(unsure)? {
        Outcome::Landed { mined, .. } => {
            let channel = toll.channels.read(id).await.map_err(|e| super::pay::store_down(&e))?;
            Ok(Closed { channel: channel.ok_or(Refusal::ChannelUnknown)?, tx: Some(mined) })
        }
        Outcome::Dropped { .. } => Err(busy()),
        Outcome::Unknown => Err(super::session::unknown()),
    }
}
