//! Work beside requests that only one task of this process may do at a time: follow a transaction, settle or close a channel.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// What is being worked on.
#[derive(Default)]
pub struct Alone {
    taken: Mutex<HashSet<String>>,
    given_up: Notify,
}

/// The work is this task's until this is dropped.
#[must_use = "the work is given up when this is dropped"]
pub struct Mine {
    alone: Arc<Alone>,
    work: String,
}

impl Alone {
    /// Takes the work, unless somebody has it.
    pub fn take(self: &Arc<Self>, work: String) -> Option<Mine> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(work.clone());
        taken.then(|| Mine { alone: Arc::clone(self), work })
    }

    /// Waits until nobody has the work, and takes it.
    pub async fn turn(self: &Arc<Self>, work: String) -> Mine {
        loop {
            let mut given_up = std::pin::pin!(self.given_up.notified());
            // Listening from before the look: what is given up in between is heard.
            given_up.as_mut().enable();
            if let Some(mine) = self.take(work.clone()) {
                return mine;
            }
            given_up.await;
        }
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.alone.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.work);
        self.alone.given_up.notify_waiters();
    }
}
