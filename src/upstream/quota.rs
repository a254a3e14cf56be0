//! Rests of single models of a server, after 429, 5xx and nonsense: vendors limit each model apart, and one that is out says nothing of
//! the others. What such answers say of the server as a whole is in `standing.rs`.

use super::standing::{FAILED_ANSWERS, FIRST_REST, LONGEST_ASKED, LONGEST_REST, Moment, TRIAL};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most models that are remembered; the rules name no more of one server in earnest, and reloads may have named others.
const MOST_MODELS: usize = 1024;

/// What a server said of its models. Read without a lock while it said nothing.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// How many are remembered.
    known: AtomicUsize,
    /// A [`Moment`]: when the last of the rests is over.
    until: AtomicU64,
    models: Mutex<BTreeMap<String, Quota>>,
}

#[derive(Debug)]
struct Quota {
    /// Answers in a row that were refusals.
    failed: u32,
    /// The last rest that we gave it ourselves.
    wait: Option<Duration>,
    until: Moment,
    /// It rests only for others: one request is finding out how it is.
    trial: bool,
}

impl Quotas {
    /// Whether `model` (by the backend's name) is to be left alone now.
    pub fn rests(&self, model: &str, now: Moment) -> bool {
        self.until.load(Ordering::Acquire) > now.0 && self.models().get(model).is_some_and(|quota| quota.until > now)
    }

    /// Those that are.
    pub fn resting(&self, now: Moment) -> Vec<String> {
        if self.until.load(Ordering::Acquire) <= now.0 {
            return Vec::new();
        }
        self.models().iter().filter(|(_, quota)| quota.until > now).map(|(model, _)| model.clone()).collect()
    }

    /// A request for it goes to the server. After a rest that we gave it ourselves this one finds out how it is, and no other is let in
    /// for a while, or before it is served: each may have been paid for.
    pub fn tries(&self, model: &str, now: Moment) {
        if self.known.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut models = self.models();
        if let Some(quota) = models.get_mut(model).filter(|quota| quota.wait.is_some() && quota.until <= now) {
            (quota.until, quota.trial) = (now.after(TRIAL), true);
            self.until.fetch_max(quota.until.0, Ordering::AcqRel);
        }
    }

    /// The server refused to serve it, and asked to be left alone for so long. Returns the rest that follows from it: what was asked, up to a
    /// minute, else one that doubles, from the fifth in a row on.
    pub fn refused(&self, model: &str, now: Moment, asked: Option<Duration>) -> Option<Duration> {
        let mut models = self.models();
        if models.len() >= MOST_MODELS {
            models.retain(|_, quota| quota.until > now);
        }
        if !models.contains_key(model) {
            if models.len() >= MOST_MODELS {
                return None;
            }
            models.insert(model.to_owned(), Quota { failed: 0, wait: None, until: Moment::PAST, trial: false });
        }
        let quota = models.get_mut(model)?;
        quota.failed = quota.failed.saturating_add(1);
        if std::mem::take(&mut quota.trial) {
            quota.until = Moment::PAST;
        }
        let was_resting = quota.until > now;
        let rest = match asked.filter(|asked| !asked.is_zero()) {
            Some(asked) => asked.min(LONGEST_ASKED),
            // Several requests that are refused together are one refusal, not a tower of doublings.
            None if was_resting => return None,
            None => {
                let wait = match quota.wait {
                    Some(wait) => wait.saturating_mul(2).min(LONGEST_REST),
                    None if quota.failed >= FAILED_ANSWERS => FIRST_REST,
                    None => {
                        self.known.store(models.len(), Ordering::Release);
                        return None;
                    }
                };
                quota.wait = Some(wait);
                wait
            }
        };
        quota.until = quota.until.max(now.after(rest));
        let last = quota.until.0;
        self.known.store(models.len(), Ordering::Release);
        self.until.fetch_max(last, Ordering::AcqRel);
        (!was_resting).then_some(rest)
    }

    /// It was served: what was remembered against it is over, a trial too, but not a rest that began since.
    pub fn served(&self, model: &str, now: Moment) {
        if self.known.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut models = self.models();
        if models.get(model).is_some_and(|quota| quota.trial || quota.until <= now) {
            models.remove(model);
            self.known.store(models.len(), Ordering::Release);
        }
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<String, Quota>> {
        // Every change under this lock leaves a whole map.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_model_over_its_limit_rests_as_long_as_is_asked_and_no_other_model_with_it() {
        for (asked, rested, why) in [(3, 3, "as asked"), (86_400, 60, "no longer than a minute")] {
            let (quotas, now, rested) = (Quotas::default(), Moment::now(), Duration::from_secs(rested));
            assert_eq!(quotas.refused("a", now, Some(Duration::from_secs(asked))), Some(rested), "{why}");
            assert!(quotas.rests("a", now) && !quotas.rests("b", now), "{why}");
            assert_eq!(quotas.refused("a", now, Some(SECOND)), None, "{why}: one rest");
            assert_eq!(quotas.resting(now), ["a"], "{why}");
            assert!(!quotas.rests("a", now.after(rested)) && quotas.resting(now.after(rested)).is_empty(), "{why}");
        }
    }

    #[test]
    fn without_a_word_on_how_long_the_fifth_refusal_in_a_row_begins_rests_that_double() {
        let quotas = Quotas::default();
        let mut now = Moment::now();
        for n in 1..=4 {
            assert_eq!(quotas.refused("a", now, None), None, "{n}");
        }
        quotas.served("a", now);
        for n in 1..=4 {
            assert_eq!(quotas.refused("a", now, Some(Duration::ZERO)), None, "a served one begins the count anew: {n}");
        }
        for want in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(quotas.refused("a", now, None), Some(Duration::from_secs(want)));
            assert_eq!(quotas.refused("a", now, None), None, "many at once are one");
            quotas.served("a", now);
            assert!(quotas.rests("a", now), "one that was under way ends nothing");
            now = now.after(Duration::from_secs(want));
        }
        quotas.served("a", now);
        assert_eq!(quotas.refused("a", now, None), None, "forgotten");
    }

    #[test]
    fn after_a_rest_one_request_finds_out_how_the_model_is() {
        let (quotas, start) = (Quotas::default(), Moment::now());
        for _ in 0..5 {
            quotas.refused("a", start, None);
        }
        let over = start.after(SECOND);
        assert!(!quotas.rests("a", over));
        quotas.tries("a", over);
        assert!(quotas.rests("a", over), "the others wait");
        assert!(!quotas.rests("a", over.after(TRIAL)), "not for ever, if it says nothing");
        assert_eq!(quotas.refused("a", over.after(SECOND), None), Some(2 * SECOND), "it failed: the rest doubles");
        assert!(quotas.rests("a", over.after(2 * SECOND)));
        let over = over.after(3 * SECOND);
        quotas.tries("a", over);
        quotas.served("a", over);
        assert!(!quotas.rests("a", over), "it served: everybody is let in");
        quotas.tries("a", over);
        assert!(!quotas.rests("a", over), "and nobody is on trial");
        quotas.refused("b", start, Some(SECOND));
        quotas.tries("b", over);
        assert!(!quotas.rests("b", over), "nor after a rest that the backend asked for");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (quotas, now) = (Quotas::default(), Moment::now());
        for n in 0..2 * MOST_MODELS {
            quotas.refused(&n.to_string(), now, Some(SECOND));
        }
        assert_eq!(quotas.resting(now).len(), MOST_MODELS);
        let later = now.after(SECOND);
        assert_eq!(quotas.refused("new", later, Some(SECOND)), Some(SECOND), "those whose rest is over make room");
    }
}
