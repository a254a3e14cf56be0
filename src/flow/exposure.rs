//! What payers have promised and not paid yet, kept under a limit per payer: whoever cancels an authorization or drains an account
//! after it was served takes no more than that (`notes/security.md` P6).
//!
//! What is promised is counted here, because a promise dies with the process that serves it, and what is being taken is found in the
//! claims again; what was lost is a running total in the
//! store, so that a payer who did not pay stays poor for the rest of the day, whatever restarts.

use crate::claim::ClaimKey;
use crate::ids::RailId;
use crate::money::Usd;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Promised amounts by rail and payer, and by proof: copies of one proof that arrive at once promise it once.
#[derive(Clone, Default)]
pub struct Exposure(Arc<Mutex<HashMap<Whose, Promises>>>);

type Whose = (RailId, String);
type Promises = HashMap<ClaimKey, Usd>;

/// One promise; the amount is free again when it is dropped.
#[must_use = "dropping it frees the amount at once"]
pub struct Risk {
    exposure: Exposure,
    whose: Whose,
    key: ClaimKey,
}

/// Why a promise does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The very same proof is promised at this moment.
    Copy,
    /// It is more than may be promised.
    OverLimit,
}

impl Exposure {
    /// Name of the store's running total of what a payer had and did not pay.
    pub fn tally_name(rail: &RailId, payer: &str) -> String {
        format!("unpaid:{rail}:{payer}")
    }

    /// Counts `amount` as promised by the proof with this key, if all that is promised and `lost` stay within `most`.
    pub fn enter(
        &self,
        rail: &RailId,
        payer: &str,
        key: &ClaimKey,
        amount: Usd,
        lost: Usd,
        most: Usd,
    ) -> Result<Risk, Refused> {
        let whose = (rail.clone(), payer.to_owned());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let promises = all.get(&whose);
        if promises.is_some_and(|promises| promises.contains_key(key)) {
            return Err(Refused::Copy);
        }
        let promised = promises.into_iter().flat_map(HashMap::values).try_fold(Usd::ZERO, |sum, usd| sum.plus(*usd));
        let next = promised.and_then(|sum| sum.plus(amount)?.plus(lost));
        if next.is_none_or(|next| next > most) {
            return Err(Refused::OverLimit);
        }
        all.entry(whose.clone()).or_default().insert(key.clone(), amount);
        Ok(Risk { exposure: self.clone(), whose, key: key.clone() })
    }

    /// Counts what was promised already, whatever the limit.
    pub fn carry(&self, rail: &RailId, payer: &str, key: &ClaimKey, amount: Usd) -> Risk {
        let whose = (rail.clone(), payer.to_owned());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(whose.clone()).or_default().insert(key.clone(), amount);
        Risk { exposure: self.clone(), whose, key: key.clone() }
    }
}

impl Drop for Risk {
    fn drop(&mut self) {
        let mut all = self.exposure.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(promises) = all.get_mut(&self.whose) {
            promises.remove(&self.key);
            if promises.is_empty() {
                all.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_payer_promises_no_more_than_the_limit_and_another_is_not_in_his_way() {
        let (exposure, rail) = (Exposure::default(), RailId::from("base/upto"));
        let enter = |payer: &str, key: &str, amount, lost| {
            exposure.enter(&rail, payer, &ClaimKey(key.to_owned()), Usd(amount), Usd(lost), Usd(10))
        };
        let first = enter("a", "1", 6, 0).unwrap();
        assert_eq!(enter("a", "2", 5, 0).err(), Some(Refused::OverLimit), "6 and 5 are more than 10");
        assert_eq!(enter("a", "1", 6, 0).err(), Some(Refused::Copy), "the same promise is not a second one");
        let second = enter("a", "2", 4, 0).unwrap();
        assert!(enter("b", "3", 10, 0).is_ok(), "another payer");
        drop(first);
        assert_eq!(enter("a", "4", 6, 1).err(), Some(Refused::OverLimit), "what was lost today counts");
        assert!(enter("a", "1", 6, 0).is_ok(), "and what is paid does not");
        let carried = exposure.carry(&rail, "a", &ClaimKey("5".to_owned()), Usd(100));
        assert_eq!(
            enter("a", "6", 1, 0).err(),
            Some(Refused::OverLimit),
            "a promise of a former life is above any limit"
        );
        drop((second, carried));
        assert!(exposure.0.lock().unwrap().is_empty(), "nothing is kept of who owes nothing");
        assert!(enter("a", "1", u128::MAX, 1).is_err(), "no overflow");
    }
}
