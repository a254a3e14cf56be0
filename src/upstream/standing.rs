//! How one server stands: what runs on it, how soon it answers, and whether it can take more.
//!
//! Four things take a server out, each with its own way back:
//! - an active health check that fails twice (back when one succeeds);
//! - a connection that cannot be made (back after a wait that doubles, first with a single request as a trial);
//! - five requests in a row that it took and did not serve (back in the same way): the answer was lost, came too late or broke off, or
//!   one model after the other answers 5xx or nonsense. Such answers for one and the same model count once;
//! - a refusal of the operator's own key (back after 30 s, and an alarm, because retrying will not help).
//!
//! 429, 5xx and nonsense rest the model that was asked for, and no other (`quota.rs`).
//!
//! Of an answer the head decides nothing, for a server that answers 200 and never serves is the quickest of all. The first word of
//! it lets others in after a rest; what is held against the server is forgotten when an answer has come to a good end.
//!
//! Whether it is in is one word of memory, written under a lock and read without one: choosing among a hundred servers
//! reads a hundred words.

use super::quota::Quotas;
use super::resolve::Addresses;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// First rest after a failure; each further failure doubles it.
pub(super) const FIRST_REST: Duration = Duration::from_secs(1);
/// Longest rest we give it ourselves.
pub(super) const LONGEST_REST: Duration = Duration::from_secs(30);
/// Longest rest a backend may ask for with `Retry-After`.
pub const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// Rest after the server refused the operator's key.
const KEY_REST: Duration = Duration::from_secs(30);
/// Failed health checks in a row that take a server out: a busy backend may miss one.
const FAILED_CHECKS: u32 = 2;
/// How long the others wait for the verdict of a trial: an answer that is written whole before it is sent may take minutes. Then the
/// next one tries as well.
pub(super) const TRIAL: Duration = Duration::from_secs(5);
/// Requests in a row that it did not serve.
pub(super) const FAILED_ANSWERS: u32 = 5;
/// How long what we know of a server's pace counts. Whoever lost every tie by it gets another chance then.
const PACE_FRESH_SECONDS: u64 = 10;

/// A point in time that fits into one word: microseconds since the process first asked, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub u64);

impl Moment {
    const NEVER: Self = Self(u64::MAX);
    /// Of all moments the first: before every [`Self::now`].
    pub const PAST: Self = Self(0);

    pub fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self(u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1))
    }

    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)))
    }

    fn seconds(self) -> u64 {
        self.0 / 1_000_000
    }
}

/// Counts of a server that outlive its addresses.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How often it was put to rest.
    pub ejections: AtomicU64,
    /// How often it refused the operator's key.
    pub key_alarms: AtomicU64,
    /// How often its usage was such as cannot be.
    pub usage_alarms: AtomicU64,
}

/// The state of a server. Shared by every plan that names it in the same pool.
#[derive(Debug)]
pub(super) struct Standing {
    pub addresses: Addresses,
    pub tally: Arc<Tally>,
    pub quotas: Quotas,
    in_flight: AtomicUsize,
    /// A [`Moment`]: 0 = in, and nothing is remembered against it.
    out_until: AtomicU64,
    /// Seconds of the last answer above, moving average of the wait for it in microseconds below.
    pace: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failed_checks: u32,
    next_check: Moment,
    /// In a row.
    failed_answers: u32,
    /// The only model that was refused, while there is but one and nothing else has failed.
    only_model: Option<String>,
    resting: Option<Rest>,
    key_refused_until: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    why: Why,
    wait: Duration,
    until: Moment,
    /// A request tries it; nobody else does before this.
    trial: Option<Moment>,
    /// A trial's answer has begun: whoever comes is let in, and the next failure makes the rest longer.
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// No connection: one that stands ends it.
    Unreachable,
    /// Its answers: only a good one ends it.
    Answers,
}

impl Standing {
    pub fn new(addresses: Addresses, tally: Arc<Tally>) -> Self {
        Self {
            addresses,
            tally,
            quotas: Quotas::default(),
            in_flight: AtomicUsize::new(0),
            out_until: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Would it be given a request at this moment, its limit aside?
    pub fn usable(&self, now: Moment) -> bool {
        self.out_until.load(Ordering::Acquire) <= now.0
    }

    /// Why it would not, for operators; the reason that lasts longest, where there are several.
    pub fn why_not(&self, now: Moment) -> Option<&'static str> {
        let state = self.state();
        if state.failed_checks >= FAILED_CHECKS {
            return Some("it fails its health checks");
        }
        if state.key_refused_until > now {
            return Some("it refuses our key");
        }
        let rest = state.resting.filter(|rest| rest.trial.unwrap_or(rest.until) > now)?;
        Some(match (rest.trial, rest.why) {
            (Some(_), _) => "after a rest, one request tries it",
            (None, Why::Unreachable) => "it cannot be connected to",
            (None, Why::Answers) => "its answers are lost, late, broken off, or fail for several models",
        })
    }

    /// Whether one more would be within `limit`.
    pub fn has_room(&self, limit: Option<u32>) -> bool {
        limit.is_none_or(|limit| self.in_flight() < usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// Requests running on it.
    pub fn in_flight(&self) -> usize {
        // With the queue's count of who waits, this is a pair that two threads read crosswise: neither may see both old.
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Takes a place on it, if it can be used and has one. The inner value says whether this request is the trial after a rest.
    pub fn enter(&self, now: Moment, limit: Option<u32>) -> Option<bool> {
        if self.out_until.load(Ordering::Acquire) == 0 {
            return self.take_place(limit).then_some(false);
        }
        let mut state = self.state();
        if state.out_until() > now || !self.take_place(limit) {
            return None;
        }
        state.key_refused_until = Moment::PAST;
        let rest = state.resting.as_mut().filter(|rest| !rest.begun);
        let trial = rest.map(|rest| rest.trial = Some(now.after(TRIAL))).is_some();
        self.publish(&state);
        Some(trial)
    }

    fn take_place(&self, limit: Option<u32>) -> bool {
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let taken = |n: usize| if n < limit { n.checked_add(1) } else { None };
        self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken).is_ok()
    }

    /// Gives the place back.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    /// A trial ended without a verdict: the next request tries.
    pub fn undecided(&self) {
        let mut state = self.state();
        if let Some(rest) = state.resting.as_mut() {
            rest.trial = None;
        }
        self.publish(&state);
    }

    /// A connection stands. Returns whether nothing is held against the server now.
    pub fn connected(&self) -> bool {
        if self.out_until.load(Ordering::Acquire) == 0 {
            return true;
        }
        let mut state = self.state();
        state.resting = state.resting.filter(|rest| rest.why != Why::Unreachable);
        self.publish(&state);
        state.resting.is_none()
    }

    /// No connection could be made. Returns the rest, unless it was resting already.
    pub fn connect_failed(&self, now: Moment) -> Option<Duration> {
        self.addresses.distrust();
        let mut state = self.state();
        self.rest(&mut state, Why::Unreachable, now)
    }

    /// An answer has begun as it should. Whether it ends so is not known: the rest is over, and not forgotten.
    pub fn begins_well(&self, now: Moment) {
        if self.out_until.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut state = self.state();
        if let Some(rest) = state.resting.as_mut().filter(|rest| rest.until <= now) {
            (rest.trial, rest.begun) = (None, true);
            self.publish(&state);
        }
    }

    /// An answer that speaks for it. One that was under way when a rest began does not end it.
    pub fn answered_well(&self, now: Moment) {
        let mut state = self.state();
        (state.failed_answers, state.only_model) = (0, None);
        if state.resting.is_some_and(|rest| rest.until <= now) {
            state.resting = None;
            self.publish(&state);
        }
    }

    /// A request that it did not serve: it refused this `model`, or (`None`) its answer was lost, late or broken off. Refusals of one and
    /// the same model are one, however many. Returns the rest that follows from it.
    pub fn failed(&self, model: Option<&str>, now: Moment) -> Option<Duration> {
        let mut state = self.state();
        if state.failed_answers == 0 {
            (state.failed_answers, state.only_model) = (1, model.map(str::to_owned));
        } else if model.is_none() || state.only_model.as_deref() != model {
            state.failed_answers = state.failed_answers.saturating_add(1);
            state.only_model = None;
        }
        let enough = state.failed_answers >= FAILED_ANSWERS || state.resting.is_some();
        if enough && state.only_model.is_none() { self.rest(&mut state, Why::Answers, now) } else { None }
    }

    fn rest(&self, state: &mut State, why: Why, now: Moment) -> Option<Duration> {
        let wait = match state.resting {
            // Several requests that fail together are one failure, not a tower of doublings.
            Some(rest) if rest.until > now => return None,
            Some(rest) => rest.wait.saturating_mul(2).min(LONGEST_REST),
            None => FIRST_REST,
        };
        state.resting = Some(Rest { why, wait, until: now.after(wait), trial: None, begun: false });
        self.publish(state);
        self.tally.ejections.fetch_add(1, Ordering::Relaxed);
        Some(wait)
    }

    /// It refused the operator's key.
    pub fn key_refused(&self, now: Moment) {
        self.tally.key_alarms.fetch_add(1, Ordering::Relaxed);
        self.tally.ejections.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.key_refused_until = now.after(KEY_REST);
        self.publish(&state);
    }

    /// A new key makes an old refusal meaningless.
    pub fn key_changed(&self) {
        let mut state = self.state();
        state.key_refused_until = Moment::PAST;
        self.publish(&state);
    }

    /// Notes how long an answer let wait for its first byte.
    pub fn heard(&self, waited: Duration, now: Moment) {
        let fresh = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX));
        let _ = self.pace.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            // A weight of an eighth: a handful of answers moves it, one does not.
            let micros =
                known_pace(old, now).map_or(fresh, |known| (known.saturating_mul(7).saturating_add(fresh)) / 8);
            Some((now.seconds() << 32) | micros)
        });
    }

    /// Moving average of the wait for the first byte, in microseconds; `None` when nothing was heard lately.
    pub fn pace(&self, now: Moment) -> Option<u64> {
        known_pace(self.pace.load(Ordering::Relaxed), now)
    }

    /// Whether a health check should start now; if so, the next one is due `every` later.
    pub fn check_due(&self, now: Moment, every: Duration) -> bool {
        let mut state = self.state();
        let due = state.next_check <= now;
        if due {
            state.next_check = now.after(every);
        }
        due
    }

    /// Result of a health check. Returns whether the server went out or came back by it.
    pub fn checked(&self, healthy: bool) -> bool {
        let mut state = self.state();
        let before = state.failed_checks >= FAILED_CHECKS;
        state.failed_checks = if healthy { 0 } else { state.failed_checks.saturating_add(1) };
        self.publish(&state);
        before != (state.failed_checks >= FAILED_CHECKS)
    }

    /// Other checks than those of so far are made from now on, or none: what they found counts no more.
    pub fn checks_changed(&self) {
        let mut state = self.state();
        (state.failed_checks, state.next_check) = (0, Moment::PAST);
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        self.out_until.store(state.out_until().0, Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is a plain assignment, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn out_until(&self) -> Moment {
        if self.failed_checks >= FAILED_CHECKS {
            return Moment::NEVER;
        }
        self.resting.map_or(Moment::PAST, |rest| rest.trial.unwrap_or(rest.until)).max(self.key_refused_until)
    }
}

fn known_pace(word: u64, now: Moment) -> Option<u64> {
    let (at, micros) = (word >> 32, word & u64::from(u32::MAX));
    (micros > 0 && now.seconds().saturating_sub(at) <= PACE_FRESH_SECONDS).then_some(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        Standing::new(Addresses::new("127.0.0.1", 1), Arc::default())
    }

    const SECOND: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_micros(1);

    #[test]
    fn a_server_that_cannot_be_connected_to_rests_twice_as_long_each_time_up_to_half_a_minute() {
        let s = standing();
        let mut now = Moment::now();
        for want in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(s.connect_failed(now), Some(Duration::from_secs(want)));
            assert_eq!(s.connect_failed(now), None, "many at once are one");
            assert!(!s.usable(now.after(Duration::from_secs(want) - MOMENT)), "still resting: {want}");
            now = now.after(Duration::from_secs(want));
            assert!(s.usable(now), "back after {want}");
        }
        assert!(s.connected());
        s.connect_failed(now);
        assert!(s.usable(now.after(SECOND)), "a success forgets the history");
        assert_eq!(s.tally.ejections.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn after_a_rest_one_request_tries_and_the_others_wait_for_its_verdict() {
        let s = standing();
        let start = Moment::now();
        s.connect_failed(start);
        let now = start.after(SECOND);
        assert_eq!(s.enter(now, None), Some(true));
        assert_eq!(s.enter(now, None), None, "one trial at a time");
        let later = now.after(TRIAL);
        assert_eq!((s.enter(later, None), s.enter(later, None)), (Some(true), None), "unless it takes long");
        for () in [(), ()] {
            s.leave();
            s.undecided();
        }
        assert_eq!(s.enter(now, None), Some(true), "a trial whose client left decides nothing");
        assert!(s.connected());
        assert_eq!(s.enter(now, None), Some(false), "it is back");
        assert_eq!(s.in_flight(), 2);
    }

    #[test]
    fn five_lost_answers_in_a_row_rest_it_and_only_a_good_answer_to_the_trial_brings_it_back() {
        let s = standing();
        let start = Moment::now();
        for _ in 0..4 {
            assert_eq!(s.failed(None, start), None);
        }
        s.answered_well(start);
        for n in 1..=4 {
            assert_eq!(s.failed(None, start), None, "a good one begins the count anew: {n}");
        }
        assert_eq!(s.failed(None, start), Some(SECOND));
        assert_eq!(s.failed(None, start), None, "those that were running do not add to it");
        s.answered_well(start);
        assert!(!s.usable(start), "nor do they end it");
        let mut now = start.after(SECOND);
        for want in [2, 4, 8] {
            assert_eq!(s.enter(now, None), Some(true));
            assert!(!s.connected(), "that it can be reached was never the question");
            assert_eq!(s.enter(now, None), None);
            assert_eq!(s.failed(None, now), Some(Duration::from_secs(want)));
            s.leave();
            now = now.after(Duration::from_secs(want));
        }
        assert_eq!(s.enter(now, None), Some(true));
        s.answered_well(now);
        assert_eq!(s.enter(now, None), Some(false), "it is back");
    }

    #[test]
    fn an_answer_that_has_begun_lets_others_in_and_one_that_breaks_off_makes_the_rest_longer() {
        let s = standing();
        let start = Moment::now();
        for _ in 0..5 {
            s.begins_well(start);
            s.failed(None, start);
        }
        assert!(!s.usable(start), "a good beginning is no good end");
        s.begins_well(start);
        assert!(!s.usable(start), "of one that was under way");
        let mut now = start.after(SECOND);
        for want in [2, 4, 8] {
            assert_eq!((s.enter(now, None), s.enter(now, None)), (Some(true), None));
            s.begins_well(now);
            assert_eq!(
                (s.enter(now, None), s.enter(now, None)),
                (Some(false), Some(false)),
                "nobody waits for its end"
            );
            assert_eq!(s.failed(None, now), Some(Duration::from_secs(want)));
            now = now.after(Duration::from_secs(want));
        }
        assert_eq!(s.enter(now, None), Some(true));
        s.begins_well(now);
        s.answered_well(now);
        assert_eq!(s.failed(None, now), None, "forgotten");
    }

    #[test]
    fn refusals_of_one_model_rest_no_server_and_those_of_several_do() {
        let s = standing();
        let now = Moment::now();
        for _ in 0..20 {
            assert_eq!(s.failed(Some("a"), now), None, "it says nothing of the others");
        }
        for model in ["b", "a", "b"] {
            assert_eq!(s.failed(Some(model), now), None, "and counts once");
        }
        assert_eq!(s.failed(None, now), Some(SECOND), "the fifth in a row");
        let s = standing();
        for model in ["a", "b", "a", "b"] {
            assert_eq!(s.failed(Some(model), now), None);
        }
        s.answered_well(now);
        for _ in 0..20 {
            assert_eq!(s.failed(Some("a"), now), None, "any model that is served begins the count anew");
        }
    }

    #[test]
    fn a_refused_key_takes_the_server_out_until_time_or_a_new_key() {
        let s = standing();
        let now = Moment::now();
        s.key_refused(now);
        s.connected();
        s.answered_well(now);
        assert!(!s.usable(now.after(Duration::from_secs(29))), "connecting well says nothing about the key");
        let later = now.after(Duration::from_secs(30));
        assert_eq!((s.enter(later, None), s.enter(later, None)), (Some(false), Some(false)), "no trial is needed");
        s.key_refused(now);
        s.key_changed();
        assert!(s.usable(now));
        assert_eq!(s.tally.key_alarms.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn one_missed_health_check_is_forgiven_two_are_not_and_one_success_heals() {
        let s = standing();
        let now = Moment::now();
        assert!(!s.checked(false));
        assert!(s.usable(now));
        assert!(s.checked(false), "going out is news");
        assert!(!s.usable(now) && !s.checked(false), "staying out is not");
        assert!(s.checked(true) && s.usable(now));
        s.checked(false);
        s.checked(false);
        s.checks_changed();
        assert!(s.usable(now), "what other checks found is forgotten");
    }

    #[test]
    fn a_server_that_is_out_says_why_and_one_that_is_not_says_nothing() {
        let now = Moment::now();
        let says = |s: &Standing, at: Moment, want: Option<&str>| {
            assert_eq!(s.usable(at), want.is_none(), "{want:?}");
            assert_eq!(s.why_not(at).is_some(), want.is_some(), "{want:?}");
            assert!(want.is_none_or(|want| s.why_not(at).is_some_and(|why| why.contains(want))), "{want:?}");
        };
        let s = standing();
        says(&s, now, None);
        s.connect_failed(now);
        says(&s, now, Some("connected to"));
        let rested = now.after(SECOND);
        says(&s, rested, None);
        assert_eq!(s.enter(rested, None), Some(true));
        says(&s, rested, Some("one request tries it"));
        assert!(s.connected());
        for _ in 0..5 {
            s.failed(None, now);
        }
        says(&s, now, Some("its answers are lost"));
        s.key_refused(now);
        says(&s, now, Some("our key"));
        s.checked(false);
        assert!(s.checked(false));
        says(&s, now, Some("health checks"));
    }

    #[test]
    fn never_more_than_its_limit_run_on_it() {
        let s = standing();
        let now = Moment::now();
        assert_eq!([(); 3].map(|()| s.enter(now, Some(2))), [Some(false), Some(false), None]);
        assert!(!s.has_room(Some(2)) && s.has_room(Some(3)) && s.has_room(None));
        s.leave();
        assert_eq!(s.enter(now, Some(2)), Some(false));
    }

    #[test]
    fn the_pace_follows_what_is_heard_and_is_forgotten_after_a_while() {
        let s = standing();
        let now = Moment::now();
        assert_eq!(s.pace(now), None, "never heard of");
        s.heard(Duration::from_millis(80), now);
        assert_eq!(s.pace(now), Some(80_000));
        s.heard(Duration::from_millis(160), now);
        assert_eq!(s.pace(now), Some(90_000), "one answer moves it by an eighth");
        assert_eq!(s.pace(now.after(Duration::from_secs(12))), None);
        s.heard(Duration::from_secs(86_400), now);
        assert!(s.pace(now).is_some(), "a wait of any length fits");
    }
}
