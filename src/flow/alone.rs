//! Work beside requests that only one task of this process may do at a time: follow a transaction, settle or close a channel.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What is being worked on.
#[derive(Default)]
pub struct Alone(Mutex<HashSet<String>>);

/// The work is this task's until this is dropped.
#[must_use = "the work is given up when this is dropped"]
pub struct Mine {
    alone: Arc<Alone>,
    work: String,
}

impl Alone {
    /// Takes the work, unless somebody has it.
    pub fn take(self: &Arc<Self>, work: String) -> Option<Mine> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(work.clone());
        taken.then(|| Mine { alone: Arc::clone(self), work })
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.alone.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.work);
    }
}
