//! What payers have promised and not paid yet, kept under a limit per payer: whoever cancels an authorization or drains an account
//! after it was served takes no more than that (`notes/security.md` P6).
//!
//! What is promised is counted here, because a promise dies with the process that serves it, and what is being taken is found in the
//! claims again; what was lost is a running total in the
//! store, so that a payer who did not pay stays poor for the rest of the day, whatever restarts.

use crate::ids::RailId;
use crate::money::Usd;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Promised amounts by rail and payer.
#[derive(Clone, Default)]
pub struct Exposure(Arc<Mutex<HashMap<(RailId, String), Usd>>>);

/// One promise; the amount is free again when it is dropped.
#[must_use = "dropping it frees the amount at once"]
pub struct Risk {
    exposure: Exposure,
    whose: (RailId, String),
    amount: Usd,
}

impl Exposure {
    /// Name of the store's running total of what a payer had and did not pay.
    pub fn tally_name(rail: &RailId, payer: &str) -> String {
        format!("unpaid:{rail}:{payer}")
    }

    /// Counts `amount` as promised, if that and `lost` stay within `most`.
    pub fn enter(&self, rail: &RailId, payer: &str, amount: Usd, lost: Usd, most: Usd) -> Option<Risk> {
        let whose = (rail.clone(), payer.to_owned());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let promised = all.get(&whose).copied().unwrap_or(Usd::ZERO);
        let next = promised.plus(amount)?;
        if next.plus(lost)? > most {
            return None;
        }
        all.insert(whose.clone(), next);
        Some(Risk { exposure: self.clone(), whose, amount })
    }

    /// Counts what was promised already, whatever the limit.
    pub fn carry(&self, rail: &RailId, payer: &str, amount: Usd) -> Risk {
        let whose = (rail.clone(), payer.to_owned());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let promised = all.entry(whose.clone()).or_insert(Usd::ZERO);
        let before = *promised;
        *promised = Usd(before.0.saturating_add(amount.0));
        let amount = promised.less(before);
        Risk { exposure: self.clone(), whose, amount }
    }
}

impl Drop for Risk {
    fn drop(&mut self) {
        let mut all = self.exposure.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(promised) = all.get_mut(&self.whose) {
            *promised = promised.less(self.amount);
            if *promised == Usd::ZERO {
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
        let enter = |payer: &str, amount, lost| exposure.enter(&rail, payer, Usd(amount), Usd(lost), Usd(10));
        let first = enter("a", 6, 0).unwrap();
        assert!(enter("a", 5, 0).is_none(), "6 and 5 are more than 10");
        let second = enter("a", 4, 0).unwrap();
        assert!(enter("b", 10, 0).is_some(), "another payer");
        drop(first);
        assert!(enter("a", 6, 1).is_none(), "what was lost today counts");
        assert!(enter("a", 6, 0).is_some(), "and what is paid does not");
        drop(second);
        assert!(exposure.0.lock().unwrap().is_empty(), "nothing is kept of who owes nothing");
        assert!(enter("a", u128::MAX, 1).is_none(), "no overflow");
    }
}
