//! How many payments of one account are tried or collected at once: each keeps the chain's node busy, and an account costs nothing.

use crate::chain::{Address, B256};
use crate::refusal::Refusal;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Payments of one account at once. An agent that runs more of them side by side pays from a channel.
pub const MOST: usize = 64;

/// Payments under way. Copies share the count.
#[derive(Clone, Debug, Default)]
pub struct Underway(Arc<Mutex<HashMap<Address, HashSet<B256>>>>);

/// A payment's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    all: Underway,
    of: Address,
    tx: B256,
}

impl Underway {
    /// A place for a payment that nobody has claimed yet: not two for one transaction, and no more than [`MOST`] for one account.
    pub fn enter(&self, of: Address, tx: B256) -> Result<Place, Refusal> {
        let entered = self.with(|all| {
            let open = all.entry(of).or_default();
            let is_full = open.len() >= MOST && !open.contains(&tx);
            (!is_full).then(|| open.insert(tx))
        });
        match entered {
            Some(true) => Ok(Place { all: self.clone(), of, tx }),
            Some(false) => Err(Refusal::ProofRunning { retry_after_seconds: 2 }),
            None => Err(Refusal::TooBusy {
                address_at_fault: true,
                retry_after_seconds: 2,
                limit: "payments of one account at once",
            }),
        }
    }

    /// A place for one that is claimed already, whoever else has one. `None`: it has one.
    pub fn stay(&self, of: Address, tx: B256) -> Option<Place> {
        let new = self.with(|all| all.entry(of).or_default().insert(tx));
        new.then(|| Place { all: self.clone(), of, tx })
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<Address, HashSet<B256>>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.with(|all| {
            if let Some(open) = all.get_mut(&self.of) {
                open.remove(&self.tx);
                if open.is_empty() {
                    all.remove(&self.of);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn an_account_has_so_many_payments_under_way_and_its_places_come_back() {
        let all = Underway::default();
        let (one, other) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let tx = |n: usize| B256::from(alloy::primitives::U256::from(n));
        let mut places: Vec<_> = (0..MOST).map(|n| all.enter(one, tx(n)).unwrap()).collect();
        for (of, n, want, why) in [
            (one, 0, Some(409), "a copy of one that is under way"),
            (one, MOST, Some(429), "one too many"),
            (other, MOST, None, "another account"),
        ] {
            assert_eq!(all.enter(of, tx(n)).err().map(|refusal| refusal.status()), want, "{why}");
        }
        assert!(all.stay(one, tx(MOST)).is_some(), "what is claimed is collected in any case");
        places.pop();
        assert!(all.enter(one, tx(MOST)).is_ok(), "a place came free");
        drop(places);
        assert!(all.with(|all| all.is_empty()), "nothing is kept of anybody");
    }
}
