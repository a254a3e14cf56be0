//! Records that a crash may undo ([`Write::brief`]): kept in memory, where everybody sees them, until the next write of the same key makes
//! them and their lines durable together with its own.
//!
//! One key changes in one order: while a durable write of it is on its way, a brief one stands in line behind it.

use crate::claim::{Claim, ClaimKey};
use crate::journal::Entry;
use crate::store::{StoreError, Swap, Write};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Every such record.
#[derive(Clone, Default)]
pub(super) struct Briefs(Arc<Mutex<HashMap<ClaimKey, Place>>>);

#[derive(Default)]
struct Place {
    kept: Option<Arc<Brief>>,
    /// Durable writes of this key that are on their way.
    writers: usize,
}

/// One record that is nowhere else.
pub(super) struct Brief {
    pub claim: Claim,
    /// The lines that go with it, since the last durable write.
    pub journal: Vec<Entry>,
}

/// A durable write of one key, on its way. Dropped once it is known what became of it.
pub(super) struct Way {
    briefs: Briefs,
    key: ClaimKey,
    /// The revision it wrote.
    written: Option<u64>,
}

impl Briefs {
    fn all(&self) -> MutexGuard<'_, HashMap<ClaimKey, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record that is only here.
    pub fn claim(&self, key: &ClaimKey) -> Option<Claim> {
        let kept = self.all().get(key)?.kept.clone()?;
        Some(kept.claim.clone())
    }

    /// Keeps what `write` says, if its claim follows the record before it; where that is not here, `stored` has it. `Err`: it has to be
    /// written like any other.
    pub fn keep(
        &self,
        mut write: Write,
        stored: impl FnOnce(&ClaimKey) -> Result<Option<Claim>, StoreError>,
    ) -> Result<Result<Swap, StoreError>, Box<Write>> {
        let mut all = self.all();
        let claim = match write.claim.take() {
            Some(claim) if write.tally.is_empty() && claim.schema == Claim::SCHEMA => claim,
            other => return Err(Box::new(Write { claim: other, ..write })),
        };
        let place = all.get(&claim.key);
        if place.is_some_and(|place| place.writers > 0) {
            return Err(Box::new(Write { claim: Some(claim), ..write }));
        }
        let before = match place.and_then(|place| place.kept.clone()) {
            Some(kept) => Some(kept),
            None => match stored(&claim.key) {
                Ok(stored) => stored.map(|claim| Arc::new(Brief { claim, journal: Vec::new() })),
                Err(error) => return Ok(Err(error)),
            },
        };
        if before.as_ref().map_or(0, |b| b.claim.revision).checked_add(1) != Some(claim.revision) {
            return Ok(Ok(Swap::Lost(Box::new(before.map(|b| b.claim.clone())))));
        }
        let mut journal = before.map_or_else(Vec::new, |b| b.journal.clone());
        journal.append(&mut write.journal);
        let key = claim.key.clone();
        all.entry(key).or_default().kept = Some(Arc::new(Brief { claim, journal }));
        Ok(Ok(Swap::Done))
    }

    #[cfg(test)]
    pub fn forget(&self) {
        self.all().clear();
    }

    /// Whether nothing is kept, and nothing is on its way.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Announces a durable write.
    pub fn way(&self, key: &ClaimKey) -> Way {
        self.all().entry(key.clone()).or_default().writers += 1;
        Way { briefs: self.clone(), key: key.clone(), written: None }
    }
}

impl Way {
    /// What was kept of this key.
    pub fn before(&self) -> Option<Arc<Brief>> {
        self.briefs.all().get(&self.key)?.kept.clone()
    }

    /// It wrote this revision.
    pub fn wrote(&mut self, revision: u64) {
        self.written = Some(revision);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let mut all = self.briefs.all();
        let Some(place) = all.get_mut(&self.key) else { return };
        place.writers = place.writers.saturating_sub(1);
        // A write that failed is not told from one that held here: then the store answers nobody any more.
        if place.kept.as_ref().is_some_and(|kept| self.written.is_some_and(|written| written > kept.claim.revision)) {
            place.kept = None;
        }
        if place.kept.is_none() && place.writers == 0 {
            all.remove(&self.key);
        }
    }
}
