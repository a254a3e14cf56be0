//! When a facilitator fails again and again, it is left alone for a while, then asked once.
//!
//! What counts is what no payment can bring about and no follower repeats ([`Fault`]): silence (no connection, a broken one, a time that
//! is over), a status of 500 or more without a verdict, credentials of ours that it does not take, and whatever a look at `/supported`
//! comes to; of calls for a payment only those that were not made before. A refusal is an answer. Nonsense, and a 4xx without a verdict, neither
//! count nor end a row of failures: anybody could send five payments that a facilitator chokes on, and stop the offers for everybody.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row after which nothing is offered any more.
const LIMIT: u32 = 5;

/// Why there is no usable answer, and whether that is held against the facilitator.
#[derive(Debug)]
pub(super) struct Fault {
    pub why: String,
    pub counts: bool,
}

impl Fault {
    /// Nothing was heard.
    pub(super) fn silence(why: &str) -> Self {
        Self { why: why.to_owned(), counts: true }
    }

    /// There was an answer with this status that is none.
    pub(super) fn of_status(status: u16, why: String) -> Self {
        Self { why, counts: matches!(status, 401 | 403 | 500..) }
    }
}

/// Counts failures in a row.
pub(super) struct Breaker {
    failures: AtomicU32,
    rest: Duration,
    /// When it may be asked again.
    until: Mutex<Option<Instant>>,
}

impl Breaker {
    /// Closed: everything may be asked. `rest` is how long it is left alone.
    pub(super) fn new(rest: Duration) -> Self {
        Self { failures: AtomicU32::new(0), rest, until: Mutex::new(None) }
    }

    /// Whether it is held to be down. Ends with the first good answer.
    pub(super) fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= LIMIT
    }

    /// Whether it may be asked now: always while it is well, else one caller after each rest.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        if !self.is_open() {
            return true;
        }
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| now < until) {
            return false;
        }
        *until = Some(now + self.rest);
        true
    }

    /// It gave an answer.
    pub(super) fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// It gave none. `true` when this was the one that opened the breaker.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= LIMIT {
            *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + self.rest);
        }
        failures == LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_a_row_open_it_and_one_answer_after_a_rest_closes_it() {
        let (rest, begin) = (Duration::from_secs(10), Instant::now());
        let breaker = Breaker::new(rest);
        for _ in 0..4 {
            assert!(!breaker.failed(begin) && breaker.may_ask(begin));
        }
        breaker.answered();
        for _ in 0..4 {
            assert!(!breaker.failed(begin), "counted anew after an answer");
        }
        assert!(!breaker.is_open() && breaker.failed(begin) && breaker.is_open());
        assert!(!breaker.may_ask(begin) && !breaker.may_ask(begin + rest / 2), "left alone");
        let later = begin + rest;
        assert!(breaker.may_ask(later) && !breaker.may_ask(later), "one of them asks");
        assert!(!breaker.failed(later) && !breaker.may_ask(later + rest / 2), "left alone again");
        assert!(breaker.may_ask(later + rest) && breaker.is_open(), "still down while it is asked");
        breaker.answered();
        assert!(!breaker.is_open() && breaker.may_ask(later + rest));
    }
}
