//! Proofs by which payers have found their channels. Each is good once: what it tells, the newest voucher among it, is meant for the payer
//! alone, and a header may lie in somebody's log while its offer lives.
//!
//! Of this gate only: of gates that share a store, each takes a proof once. Nothing is kept of who has no channel here, so that only payers
//! can fill it, and each of them only his own part.

use crate::claim::ClaimKey;
use crate::clock::UnixSeconds;
use crate::refusal::Refusal;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Most proofs of one payer that are remembered. With no room for another he is told nothing.
const OF_ONE_PAYER: usize = 256;
/// Most proofs of all.
const ALL: usize = 16_384;

/// Proofs that were shown and whose offers live.
#[derive(Default)]
pub(super) struct Proven(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    /// Of each payer, with the end of each.
    payers: HashMap<String, Vec<(ClaimKey, UnixSeconds)>>,
    /// How many they are.
    count: usize,
}

impl Proven {
    /// Takes a proof of `payer` that is good until `expires`.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidChallenge`] when it was taken before, [`Refusal::TooBusy`] when there is no room for it.
    pub fn take(&self, payer: &str, proof: ClaimKey, expires: UnixSeconds, now: UnixSeconds) -> Result<(), Refusal> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.count >= ALL {
            all.forget(now);
        }
        let is_full = all.count >= ALL;
        let Remembered { payers, count } = &mut *all;
        let mut his = payers.remove(payer).unwrap_or_default();
        *count = count.saturating_sub(his.len());
        his.retain(|(_, expires)| *expires > now);
        let taken = if his.iter().any(|(known, _)| *known == proof) {
            Err(Refusal::InvalidChallenge { why: "its proof was shown before; sign a fresh one" })
        } else if his.len() >= OF_ONE_PAYER {
            let first = his.iter().map(|(_, expires)| expires.0).min().unwrap_or_default();
            let retry_after_seconds = first.saturating_sub(now.0);
            Err(Refusal::TooBusy { limit: "proofs of one payer", retry_after_seconds, address_at_fault: true })
        } else if is_full {
            Err(Refusal::TooBusy { limit: "proofs of all payers", retry_after_seconds: 30, address_at_fault: false })
        } else {
            his.push((proof, expires));
            Ok(())
        };
        *count += his.len();
        if !his.is_empty() {
            payers.insert(payer.to_owned(), his);
        }
        taken
    }
}

impl Remembered {
    /// What is over by `now`.
    fn forget(&mut self, now: UnixSeconds) {
        self.payers.retain(|_, his| {
            his.retain(|(_, expires)| *expires > now);
            !his.is_empty()
        });
        self.count = self.payers.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_000);
    const END: UnixSeconds = UnixSeconds(1_300);

    /// The status it is refused with; 0 when it is taken.
    fn take(all: &Proven, payer: usize, n: usize, now: UnixSeconds) -> u16 {
        let proof = ClaimKey(format!("tempo:1:proof:{payer}-{n}"));
        all.take(&format!("0x{payer}"), proof, END, now).err().map_or(0, |refusal| refusal.status())
    }

    #[test]
    fn a_proof_is_taken_once_while_its_offer_lives() {
        let all = Proven::default();
        assert_eq!(take(&all, 0, 0, NOW), 0);
        assert_eq!(take(&all, 0, 0, UnixSeconds(1_299)), 402, "a copy");
        assert_eq!(take(&all, 0, 1, UnixSeconds(1_299)), 0, "another");
        assert_eq!(all.0.lock().unwrap().count, 2);
    }

    #[test]
    fn who_shows_many_proofs_fills_his_own_part_alone() {
        let all = Proven::default();
        assert!((0..OF_ONE_PAYER).all(|n| take(&all, 0, n, NOW) == 0));
        let refused = all.take("0x0", ClaimKey("one more".into()), END, NOW).unwrap_err();
        assert_eq!((refused.status(), refused.retry_after()), (429, Some(300)), "when the first of his is over");
        assert_eq!(take(&all, 0, 0, NOW), 402, "a copy is a copy all the same");
        assert_eq!(take(&all, 1, 0, NOW), 0, "somebody else's");
        assert_eq!(take(&all, 0, OF_ONE_PAYER, END), 0, "what is over makes room");
        assert_eq!(all.0.lock().unwrap().count, 2);
    }

    #[test]
    fn no_more_proofs_are_remembered_than_there_is_room_for_and_none_is_forgotten_for_another() {
        let all = Proven::default();
        let fill = |payer| (0..OF_ONE_PAYER).all(|n| take(&all, payer, n, NOW) == 0);
        assert!((0..ALL / OF_ONE_PAYER).all(fill));
        assert_eq!(take(&all, ALL, 0, NOW), 503, "no room, which is no payer's fault");
        assert_eq!(take(&all, 0, 0, UnixSeconds(1_299)), 402, "none is forgotten for it");
        assert_eq!(take(&all, ALL, 0, END), 0, "what is over makes room");
        assert_eq!(all.0.lock().unwrap().payers.len(), 1);
    }
}
