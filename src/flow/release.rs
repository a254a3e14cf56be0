//! A channel that is blocked because its record and the chain contradict each other. A person's word sets it free, and the chain's says for
//! what; as long as they still contradict each other it stays blocked.

use super::lease::{denied_refusal, trouble_stop};
use super::{Stop, Till, Toll, transact};
use crate::channel::{Channel, ChannelId, Op};
use crate::refusal::Refusal;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the chain.
const LOOK: Duration = Duration::from_secs(10);

/// Asks the chain how a blocked channel stands and lets it go on from there, because an operator has looked at it. One that is not blocked
/// stays as it is.
pub async fn release(toll: &Toll, till: &Till, id: &ChannelId) -> Result<Arc<Channel>, Stop> {
    let asked = tokio::time::timeout(LOOK, till.rail.views(std::slice::from_ref(id))).await;
    let view = asked.ok().and_then(Result::ok).and_then(|views| views.first().copied());
    // A node whose newest block is old says nothing of what has happened since.
    let view =
        view.filter(|_| till.rail.chain_standing().is_ok()).ok_or(Refusal::ChainUnread { retry_after_seconds: 5 })?;
    transact::heard(toll, till, id, view).await.map_err(|trouble| trouble_stop(&trouble))?;
    let (channel, effect) = toll.channels.one(id, Op::Release).await.map_err(|trouble| trouble_stop(&trouble))?;
    effect.map_err(|denied| denied_refusal(&channel, &denied))?;
    tracing::warn!(channel = %id, phase = channel.phase.label(), "an operator released it");
    Ok(channel)
}
