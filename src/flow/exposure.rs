//! What payers have promised and not paid yet, kept under a limit per payer: whoever cancels an authorization or drains an account
//! after it was served takes no more than that.
//!
//! What is promised is counted here, because a promise dies with the process that serves it, and what is being taken is found in the
//! claims again; what was lost is a running total in the store, so that a payer who did not pay stays poor for the rest of the day, whatever restarts.

use crate::claim::ClaimKey;
use crate::ids::RailId;
use crate::money::Usd;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Promised amounts by rail and payer, and by proof: copies of one proof promise it once, and the claim decides between them.
#[derive(Clone, Default)]
pub struct Exposure(Arc<Mutex<All>>);

type All = HashMap<Whose, HashMap<ClaimKey, Promised>>;
type Whose = (RailId, String);

#[derive(Clone, Copy)]
struct Promised {
    amount: Usd,
    /// How many count on it.
    copies: usize,
}

/// One promise; the amount is free again when it and its copies are dropped.
#[must_use = "dropping it frees the amount at once"]
pub struct Risk {
    exposure: Exposure,
    whose: Whose,
    key: ClaimKey,
}

impl Exposure {
    /// Name of the store's running total of what a payer had and did not pay.
    pub fn tally_name(rail: &RailId, payer: &str) -> String {
        format!("unpaid:{rail}:{payer}")
    }

    /// Counts `amount` as promised by the proof with this key, if that, all that is promised by others, and `lost` stay within `most`.
    pub fn enter(&self, rail: &RailId, payer: &str, key: &ClaimKey, amount: Usd, lost: Usd, most: Usd) -> Option<Risk> {
        let whose = (rail.clone(), payer.to_owned());
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = all.get(&whose).into_iter().flatten().filter(|(other, _)| *other != key);
        let promised = others.try_fold(Usd::ZERO, |sum, (_, promised)| sum.plus(promised.amount))?;
        if promised.plus(amount)?.plus(lost)? > most {
            return None;
        }
        Some(self.count(all, whose, key, amount))
    }

    /// Counts what was promised already, whatever the limit.
    pub fn carry(&self, rail: &RailId, payer: &str, key: &ClaimKey, amount: Usd) -> Risk {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.count(all, (rail.clone(), payer.to_owned()), key, amount)
    }

    fn count(&self, mut all: MutexGuard<'_, All>, whose: Whose, key: &ClaimKey, amount: Usd) -> Risk {
        let promises = all.entry(whose.clone()).or_default();
        let promised = promises.entry(key.clone()).or_insert(Promised { amount, copies: 0 });
        promised.amount = promised.amount.max(amount);
        promised.copies = promised.copies.saturating_add(1);
        Risk { exposure: self.clone(), whose, key: key.clone() }
    }
}

impl Drop for Risk {
    fn drop(&mut self) {
        let mut all = self.exposure.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(promises) = all.get_mut(&self.whose) else { return };
        if let Some(promised) = promises.get_mut(&self.key) {
            promised.copies = promised.copies.saturating_sub(1);
            if promised.copies == 0 {
                promises.remove(&self.key);
            }
        }
        if promises.is_empty() {
            all.remove(&self.whose);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn one_payer_promises_no_more_than_the_limit_and_another_is_not_in_his_way() {
        let (exposure, rail) = (Exposure::default(), RailId::from("base/upto"));
        let enter = |payer: &str, key: &str, amount, lost| {
            exposure.enter(&rail, payer, &ClaimKey(key.to_owned()), Usd(amount), Usd(lost), Usd(10))
        };
        let first = enter("a", "1", 6, 0).unwrap();
        assert!(enter("a", "2", 5, 0).is_none(), "6 and 5 are more than 10");
        drop(enter("a", "1", 6, 0).expect("the same promise is not a second one"));
        assert!(enter("a", "2", 5, 0).is_none(), "and one of two copies is still there");
        let second = enter("a", "2", 4, 0).unwrap();
        assert!(enter("b", "3", 10, 0).is_some(), "another payer");
        drop(first);
        assert!(enter("a", "4", 6, 1).is_none(), "what was lost today counts");
        assert!(enter("a", "1", 6, 0).is_some(), "and what is paid does not");
        let carried = exposure.carry(&rail, "a", &ClaimKey("5".to_owned()), Usd(100));
        assert!(enter("a", "6", 1, 0).is_none(), "a promise of a former life is above any limit");
        drop((second, carried));
        assert!(exposure.0.lock().unwrap().is_empty(), "nothing is kept of who owes nothing");
        assert!(enter("a", "1", u128::MAX, 1).is_none(), "no overflow");
    }
}
