//! Proofs by which payers have found their channels. Each is good once: what it tells, the newest voucher among it, is meant for the payer
//! alone, and a header may lie in somebody's log while its offer lives.
//!
//! Of this gate only: of gates that share a store, each takes a proof once. Nothing is kept of who has no channel here, so that only payers
//! can fill it.

use crate::claim::ClaimKey;
use crate::clock::UnixSeconds;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Most proofs that are remembered. With no room for another its payer is told nothing.
const MOST: usize = 16_384;

/// Proofs that were shown and whose offers live, with the end of each.
#[derive(Default)]
pub(super) struct Proven(Mutex<HashMap<ClaimKey, UnixSeconds>>);

impl Proven {
    /// Takes a proof that is good until `expires`; `false` when it was taken before, or there is no room.
    pub fn take(&self, proof: ClaimKey, expires: UnixSeconds, now: UnixSeconds) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.retain(|_, expires| *expires > now);
        }
        all.len() < MOST && all.insert(proof, expires).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_taken_once_while_its_offer_lives_and_no_more_are_remembered_than_there_is_room_for() {
        let (all, now) = (Proven::default(), UnixSeconds(1_000));
        let take = |n: usize, now| all.take(ClaimKey(format!("tempo:1:proof:{n}")), UnixSeconds(1_300), now);
        assert!(take(0, now));
        assert!(!take(0, UnixSeconds(1_299)), "a copy");
        assert!((1..MOST).all(|n| take(n, now)));
        assert!(!take(MOST, now), "no room");
        assert!(!take(0, UnixSeconds(1_299)), "and none is forgotten for it");
        assert!(take(MOST, UnixSeconds(1_300)), "what is over makes room");
    }
}
