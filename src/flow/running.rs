//! Streams whose receipts have been named and not written: whoever asks for one is told that its reply is still running.
//!
//! Of this process only. With the process its streams end, and what they cost is found in the claims and channels again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Receipts of replies in progress, by id.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashSet<String>>>);

/// One reply in progress, until this is dropped: after its receipt is written, where it has one.
#[must_use = "the reply counts as over when this is dropped"]
pub struct Runs {
    running: Running,
    receipt: String,
}

impl Running {
    /// The reply with this receipt begins.
    pub fn begin(&self, receipt: &str) -> Runs {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(receipt.to_owned());
        Runs { running: self.clone(), receipt: receipt.to_owned() }
    }

    /// Whether it is in progress. Ask this before the store: what was over by then is written by then.
    pub fn has(&self, receipt: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(receipt)
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.receipt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_runs_until_it_is_let_go_and_leaves_nothing_behind() {
        let running = Running::default();
        let (one, two) = (running.begin("rcpt_1"), running.begin("rcpt_2"));
        drop(one);
        assert_eq!((running.has("rcpt_1"), running.has("rcpt_2"), running.has("rcpt_3")), (false, true, false));
        drop(two);
        assert!(running.0.lock().is_ok_and(|all| all.is_empty()));
    }
}
