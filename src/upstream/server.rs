//! One server of a pool: what runs on it, and whether it can take more.
//!
//! Three things take a server out, each with its own way back: an active health check that fails (back when one
//! succeeds), connections that fail (back after a wait that doubles, first with a single request as a trial), and a
//! refusal of the operator's own key (back after 30 s, and an alarm, because retrying will not help).

use super::resolve::Addresses;
use crate::rules::plan::ServerRules;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// First rest after a failed connection; each further failure doubles it.
const FIRST_REST: Duration = Duration::from_secs(1);
/// Longest rest.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Rest after the server refused the operator's key.
const KEY_REST: Duration = Duration::from_secs(30);
/// Failed health checks in a row that take a server out: a busy backend may miss one.
const FAILED_CHECKS: u32 = 2;

/// A server and its state. Shared by every plan that names the same servers.
#[derive(Debug)]
pub struct Server {
    pub(super) rules: ServerRules,
    pub(super) addresses: Addresses,
    in_flight: AtomicUsize,
    key_alarms: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failed_checks: u32,
    next_check: Option<Instant>,
    resting: Option<Rest>,
    key_refused_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    wait: Duration,
    until: Instant,
    trial: bool,
}

/// What `/status` says about a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// `host:port`.
    pub name: String,
    /// It would be given a request now.
    pub usable: bool,
    /// Requests running on it.
    pub in_flight: usize,
    /// How often it refused the operator's key since the gate started.
    pub key_alarms: u64,
}

impl Server {
    pub(super) fn new(rules: &ServerRules) -> Self {
        Self {
            addresses: Addresses::new(&rules.host, rules.port),
            rules: rules.clone(),
            in_flight: AtomicUsize::new(0),
            key_alarms: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Would it be given a request at this moment?
    pub(super) fn usable(&self, now: Instant) -> bool {
        self.state().usable(now)
    }

    /// Takes a place on it, if it can be used. The inner value says whether this request is the trial after a rest.
    pub(super) fn enter(&self, now: Instant) -> Option<bool> {
        let mut state = self.state();
        if !state.usable(now) {
            return None;
        }
        let trial = state.resting.as_mut().is_some_and(|rest| {
            rest.trial = true;
            true
        });
        drop(state);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(trial)
    }

    /// Gives the place back. A trial that ended without a verdict lets the next request try.
    pub(super) fn leave(&self, open_trial: bool) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if open_trial && let Some(rest) = self.state().resting.as_mut() {
            rest.trial = false;
        }
    }

    pub(super) fn connected(&self) {
        self.state().resting = None;
    }

    pub(super) fn connect_failed(&self, now: Instant) {
        self.addresses.distrust();
        let mut state = self.state();
        let wait = match state.resting {
            // Several requests that fail together are one failure, not a tower of doublings.
            Some(rest) if rest.until > now => return,
            Some(rest) => rest.wait.saturating_mul(2).min(LONGEST_REST),
            None => FIRST_REST,
        };
        state.resting = Some(Rest { wait, until: now.checked_add(wait).unwrap_or(now), trial: false });
    }

    pub(super) fn key_refused(&self, now: Instant) {
        self.key_alarms.fetch_add(1, Ordering::Relaxed);
        self.state().key_refused_until = now.checked_add(KEY_REST);
    }

    /// A new key makes an old refusal meaningless.
    pub(super) fn key_changed(&self) {
        self.state().key_refused_until = None;
    }

    /// Whether a health check should start now; if so, the next one is due `every` later.
    pub(super) fn check_due(&self, now: Instant, every: Duration) -> bool {
        let mut state = self.state();
        let due = state.next_check.is_none_or(|at| at <= now);
        if due {
            state.next_check = now.checked_add(every);
        }
        due
    }

    /// Result of a health check. Returns whether the server went out or came back by it.
    pub(super) fn checked(&self, healthy: bool) -> bool {
        let mut state = self.state();
        let before = state.failed_checks >= FAILED_CHECKS;
        state.failed_checks = if healthy { 0 } else { state.failed_checks.saturating_add(1) };
        before != (state.failed_checks >= FAILED_CHECKS)
    }

    /// Requests running on it.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A snapshot for operators.
    pub fn status(&self) -> ServerStatus {
        ServerStatus {
            name: format!("{}:{}", self.rules.host, self.rules.port),
            usable: self.usable(Instant::now()),
            in_flight: self.in_flight(),
            key_alarms: self.key_alarms.load(Ordering::Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is a plain assignment, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn usable(&self, now: Instant) -> bool {
        self.failed_checks < FAILED_CHECKS
            && self.key_refused_until.is_none_or(|until| until <= now)
            && self.resting.is_none_or(|rest| rest.until <= now && !rest.trial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server::new(&ServerRules {
            tls: false,
            host: "127.0.0.1".into(),
            port: 1,
            prefix: String::new(),
            weight: 1,
            group: 0,
            max_concurrent: None,
        })
    }

    #[test]
    fn a_server_that_cannot_be_connected_to_rests_twice_as_long_each_time_up_to_half_a_minute() {
        let s = server();
        let mut now = Instant::now();
        for want in [1, 2, 4, 8, 16, 30, 30] {
            s.connect_failed(now);
            s.connect_failed(now);
            assert!(!s.usable(now + Duration::from_secs(want) - Duration::from_millis(1)), "still resting: {want}");
            now += Duration::from_secs(want);
            assert!(s.usable(now), "back after {want}");
        }
        s.connected();
        s.connect_failed(now);
        assert!(s.usable(now + Duration::from_secs(1)), "a success forgets the history");
    }

    #[test]
    fn after_a_rest_one_request_tries_and_the_others_wait_for_its_verdict() {
        let s = server();
        let start = Instant::now();
        s.connect_failed(start);
        let now = start + Duration::from_secs(1);
        assert_eq!(s.enter(now), Some(true));
        assert_eq!(s.enter(now), None, "one trial at a time");
        s.leave(true);
        assert_eq!(s.enter(now), Some(true), "a trial whose client left decides nothing");
        s.connected();
        assert_eq!(s.enter(now), Some(false), "it is back");
    }

    #[test]
    fn a_refused_key_takes_the_server_out_until_time_or_a_new_key() {
        let s = server();
        let now = Instant::now();
        s.key_refused(now);
        s.connected();
        assert!(!s.usable(now + Duration::from_secs(29)), "connecting well says nothing about the key");
        assert!(s.usable(now + Duration::from_secs(30)));
        s.key_refused(now);
        s.key_changed();
        assert!(s.usable(now));
        assert_eq!(s.status().key_alarms, 2);
    }

    #[test]
    fn one_missed_health_check_is_forgiven_two_are_not_and_one_success_heals() {
        let s = server();
        let now = Instant::now();
        assert!(!s.checked(false));
        assert!(s.usable(now));
        assert!(s.checked(false), "going out is news");
        assert!(!s.usable(now) && !s.checked(false), "staying out is not");
        assert!(s.checked(true) && s.usable(now));
    }
}
