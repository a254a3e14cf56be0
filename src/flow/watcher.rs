//! The chain's side of channels, watched: what was locked and paid out, and who asked the chain to close his channel.
//!
//! A payer who asks the chain can withdraw after fifteen minutes. Every channel is read at least every fifteen seconds, and the
//! requests to close are listened for more often; whichever comes first, the record then serves nothing new and
//! `closing::forced` claims what was spent. With the chain silent both are tried again and again.

use super::settler::Pace;
use super::{Till, Toll, closing, transact};
use crate::channel::{Channel, ChannelId, Phase};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Channels in one read.
const BATCH: usize = 100;
/// Longest wait for a read.
const READ: Duration = Duration::from_secs(10);

/// Watches the channels of one rail for ever.
pub async fn watch(toll: Arc<Toll>, till: Arc<Till>, pace: Pace) {
    let mut next_views = Instant::now();
    let mut since = None;
    loop {
        if Instant::now() >= next_views {
            // A read that failed is tried again at the next turn.
            let wait = if round(&toll, &till).await { pace.views } else { pace.events };
            next_views = Instant::now() + wait;
        }
        events(&toll, &till, &mut since).await;
        tokio::time::sleep(pace.events.min(next_views.saturating_duration_since(Instant::now()))).await;
    }
}

/// Reads the chain for all channels of a rail once. Returns whether all of it was read.
pub(super) async fn round(toll: &Arc<Toll>, till: &Arc<Till>) -> bool {
    let channels = match toll.store.channels().await {
        Ok(channels) => channels,
        Err(error) => {
            tracing::error!(%error, "channels are not watched: the store does not answer");
            return false;
        }
    };
    let ids: Vec<ChannelId> = channels.into_iter().filter(|c| is_watched(c, till)).map(|c| c.id).collect();
    let mut whole = true;
    for batch in ids.chunks(BATCH) {
        whole &= read(toll, till, batch).await;
    }
    whole
}

fn is_watched(channel: &Channel, till: &Till) -> bool {
    let on_chain =
        matches!(channel.phase, Phase::Open | Phase::Closing | Phase::ForcedClosing { .. } | Phase::Quarantined { .. });
    channel.rail == *till.rail.id() && on_chain
}

async fn read(toll: &Arc<Toll>, till: &Arc<Till>, ids: &[ChannelId]) -> bool {
    let said = match tokio::time::timeout(READ, till.rail.views(ids)).await {
        Ok(Ok(views)) if views.len() == ids.len() => Ok(views),
        Ok(Ok(_)) => Err("it spoke of other channels"),
        Ok(Err(unreachable)) => Err(unreachable.why),
        Err(_) => Err("it does not answer in time"),
    };
    let views = match said {
        Ok(views) => views,
        Err(why) => {
            tracing::warn!(rail = %till.rail.id(), channels = ids.len(), why, "the chain did not say how channels stand");
            return false;
        }
    };
    let mut whole = true;
    for (id, view) in ids.iter().zip(views) {
        match transact::heard(toll, till, id, view).await {
            Ok(channel) if matches!(channel.phase, Phase::ForcedClosing { .. }) => closing::forced(toll, till, id),
            Ok(_) => {}
            Err(trouble) => {
                tracing::error!(channel = %id, ?trouble, "what the chain says could not be written down");
                whole = false;
            }
        }
    }
    whole
}

/// Looks for requests to close since the last look, and reads the channels they are about.
async fn events(toll: &Arc<Toll>, till: &Arc<Till>, since: &mut Option<u64>) {
    let asked = tokio::time::timeout(READ, till.rail.close_requests(*since)).await;
    let Ok(Ok((height, mut ids))) = asked else {
        tracing::debug!(rail = %till.rail.id(), "the chain did not say who asked it to close");
        return;
    };
    ids.sort();
    ids.dedup();
    let mut known = Vec::with_capacity(ids.len());
    for id in ids {
        match toll.channels.newest(&id).await {
            Ok(Some(channel)) if is_watched(&channel, till) => known.push(id),
            // Not ours, or over.
            Ok(_) => {}
            Err(_) => return,
        }
    }
    for batch in known.chunks(BATCH) {
        // What could not be read is asked for again.
        if !read(toll, till, batch).await {
            return;
        }
    }
    *since = Some(height);
}
