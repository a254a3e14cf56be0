//! What is known of the connection. One that was lost leads to a Redis that may have been started again with other settings, so
//! after a loss nothing is asked of it until the watch has looked.

use super::said;
use crate::store::StoreError;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Shared by the watch and by whoever asks Redis anything.
pub(super) struct Link {
    standing: ArcSwap<Result<(), StoreError>>,
    /// Answers that were lost, ever.
    losses: AtomicU64,
    /// How many had been when Redis was last found safe.
    seen: AtomicU64,
    /// When that was, the first time since the last loss.
    whole_since: ArcSwap<Instant>,
    wake: Notify,
}

impl Default for Link {
    fn default() -> Self {
        let standing = ArcSwap::from_pointee(Ok(()));
        let whole_since = ArcSwap::from_pointee(Instant::now());
        Self { standing, losses: AtomicU64::new(0), seen: AtomicU64::new(0), whole_since, wake: Notify::new() }
    }
}

impl Link {
    /// Whether anything may be offered.
    pub fn standing(&self) -> Result<(), StoreError> {
        self.standing.load().as_ref().clone()
    }

    /// Whether Redis was looked at since the last loss.
    pub fn is_seen(&self) -> bool {
        self.seen.load(Ordering::SeqCst) == self.losses.load(Ordering::SeqCst)
    }

    /// How long no answer was lost, since Redis was first found safe. By the clock of this process, which no one sets.
    pub fn whole_for(&self) -> Duration {
        if self.is_seen() { self.whole_since.load().elapsed() } else { Duration::ZERO }
    }

    /// Answers lost so far.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// Waits for a loss.
    pub async fn lost(&self) {
        self.wake.notified().await;
    }

    /// It did not answer. Until it was looked at again nothing is offered.
    pub fn lose(&self, error: &redis::RedisError) -> StoreError {
        self.losses.fetch_add(1, Ordering::SeqCst);
        let error = StoreError(format!("Redis does not answer: {}", said(error)));
        if self.standing.load().is_ok() {
            tracing::error!(%error, "paid traffic is refused");
        }
        self.fail(error.clone());
        self.wake.notify_one();
        error
    }

    /// The watch itself finds that it is gone: it looks again anyway.
    pub fn went(&self) {
        self.losses.fetch_add(1, Ordering::SeqCst);
    }

    /// Nothing is offered any more.
    pub fn fail(&self, error: StoreError) {
        self.standing.store(Arc::new(Err(error)));
    }

    /// It was found safe after so many losses. One that came meanwhile asks for another look.
    pub fn is_well_since(&self, losses: u64) {
        if self.seen.load(Ordering::SeqCst) != losses {
            self.whole_since.store(Arc::new(Instant::now()));
        }
        self.seen.store(losses, Ordering::SeqCst);
        self.standing.store(Arc::new(Ok(())));
        if !self.is_seen() {
            self.fail(StoreError("Redis does not answer".to_owned()));
            self.wake.notify_one();
        }
    }
}
