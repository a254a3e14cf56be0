//! Whether the chain can be relied on: the look at its node that offers depend on.

use super::{Charge, Funds};
use crate::chain::keeps_up;
use crate::clock::UnixSeconds;
use crate::rail::Way;
use std::sync::Arc;
use std::time::Duration;

/// How often the watch looks.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How long one look of the watch may take.
const WATCH_PATIENCE: Duration = Duration::from_secs(2);
/// How long after a bad look that follows a good one it looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Age of the newest block from which on the chain counts as standing still.
const STALE_SECONDS: u64 = 60;

impl Charge {
    /// Keeps [`Way::standing`] true: looks at once, then every five seconds, for ever. Run it in the background.
    pub async fn watch(&self) {
        loop {
            self.probe().await;
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// One look of the watch. A single bad one after good ones is looked at again: it would take every offer away until the next.
    pub async fn probe(&self) {
        let mut seen = self.seen(UnixSeconds::now()).await;
        if seen.is_err() && self.standing().is_ok() {
            tokio::time::sleep(LOOK_AGAIN).await;
            seen = self.seen(UnixSeconds::now()).await;
        }
        self.standing.store(Arc::new(seen));
        // Neither has a part in whether a charge can be taken.
        let sponsor = async {
            if let Some(sponsor) = &self.sponsor {
                sponsor.probe(UnixSeconds::now()).await;
            }
        };
        let funds = async {
            if let Some(funds) = &self.funds {
                funds.probe().await;
            }
        };
        let _ = futures::future::join(
            tokio::time::timeout(WATCH_PATIENCE, sponsor),
            tokio::time::timeout(WATCH_PATIENCE, funds),
        )
        .await;
    }

    /// The same rail, which also watches the account that settles the sessions of its section.
    pub fn settled_by(mut self, funds: Funds) -> Self {
        self.funds = Some(funds);
        self
    }

    /// Why the sessions of this section could not be settled, as far as it is known.
    pub(in crate::rail::mpp) fn settles(&self) -> Result<(), String> {
        self.funds.as_ref().map_or(Ok(()), Funds::standing)
    }

    /// What the chain's node says of itself.
    pub(super) async fn seen(&self, now: UnixSeconds) -> Result<(), String> {
        match tokio::time::timeout(WATCH_PATIENCE, self.chain.head()).await {
            Err(_) => Err("the chain's node does not answer in time".to_owned()),
            Ok(Err(e)) => Err(e.why.to_owned()),
            Ok(Ok(head)) if head.chain_id != self.settings.chain_id => {
                Err(format!("the node is on chain {}, not {}", head.chain_id, self.settings.chain_id))
            }
            // Offers would have expired for everybody else before they are made.
            Ok(Ok(head)) if head.time > now.plus(STALE_SECONDS) => {
                let late = head.time.0.saturating_sub(now.0);
                Err(format!("this machine's clock is {late} s behind the newest block"))
            }
            Ok(Ok(head)) => keeps_up(head.time, now, STALE_SECONDS),
        }
    }
}
