//! Who takes the next request. Reads two words of each server, takes no lock but the round robin's own, allocates nothing.
//!
//! Groups come first: the next one is looked at only when nobody of the one before is usable and below its limit. Within
//! a group:
//! - `least-outstanding`: of two, the one with fewer requests in flight for its weight. The first of the two comes in turn, by
//!   weight; the other by chance, so that many gates in front of the same servers do not all run to the same one. With equal
//!   load, one that lets wait clearly longer for its first byte loses; otherwise the first has it. Two servers are always
//!   compared with each other;
//! - `round-robin`: smooth and weighted, as nginx does it;
//! - `consistent`: the owner of the request's key on the ring, or whoever comes after it there;
//! - `prefix`: the same, but nobody takes more than a quarter above the mean load.

use super::ring::mixed;
use super::server::{MOST_SERVERS, Members, Server};
use super::standing::Moment;
use crate::rules::plan::Balance;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// What keeps the requests of one kind together: requests with the same key go to the same server where the rules of the
/// pool say so (`balance = "consistent"` or `"prefix"`), and the key is not looked at elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity(pub Option<u64>);

impl Affinity {
    /// Any server will do.
    pub const NONE: Self = Self(None);

    /// Of a text that is the same for all requests that belong together. The same in every gate. No text keeps nothing together.
    pub fn of(text: &[u8]) -> Self {
        Self::of_parts(&[text])
    }

    /// The same, of a text in parts.
    pub fn of_parts(text: &[&[u8]]) -> Self {
        let some = text.iter().any(|part| !part.is_empty());
        Self(some.then(|| super::ring::hash(text.iter().copied().flatten())))
    }
}

/// Waits for a first byte that differ by less are equal: it is noise of the network, not load.
const NOISE_MICROS: u64 = 20_000;
/// Below so many in flight a server keeps its prefixes: the mean of a few is no measure.
const FEW: u64 = 4;

impl Members {
    /// Takes a place on the next server, passing over those with an id in `tried`: its position, and whether it is the
    /// trial after a rest. `turn` is the count of choices so far.
    pub fn enter(&self, how: Balance, key: Affinity, tried: &[usize], turn: u64, now: Moment) -> Option<(usize, bool)> {
        for group in &self.groups {
            let mut open = Positions::default();
            for position in group.clone() {
                if self.servers.get(position).is_some_and(|s| s.open(now) && !tried.contains(&s.id)) {
                    open.put(position);
                }
            }
            // Somebody else may take the last place between the look and the step.
            while let Some(position) = self.choose(how, key, &open, turn, now) {
                match self.servers.get(position).and_then(|s| s.enter(now)) {
                    Some(trial) => return Some((position, trial)),
                    None => open.remove(position),
                }
            }
        }
        None
    }

    fn choose(&self, how: Balance, key: Affinity, open: &Positions, turn: u64, now: Moment) -> Option<usize> {
        match (how, key.0) {
            (Balance::RoundRobin, _) => self.in_turn(open),
            (Balance::Consistent, Some(key)) if !open.is_empty() => self.ring.from(key).find(|p| open.has(*p)),
            (Balance::Prefix, Some(key)) if !open.is_empty() => self.bounded(open, key),
            _ => self.least(open, turn, now),
        }
    }

    fn least(&self, open: &Positions, turn: u64, now: Moment) -> Option<usize> {
        let (mut count, mut weight) = (0u64, 0u64);
        for (_, server) in self.at(open) {
            (count, weight) = (count + 1, weight + server.weight());
        }
        let mut share = turn.checked_rem(weight)?;
        let (first, a) = self.at(open).find(|(_, server)| match share.checked_sub(server.weight()) {
            Some(left) => {
                share = left;
                false
            }
            None => true,
        })?;
        let chance = usize::try_from(mixed(turn).checked_rem(count - 1).unwrap_or(0)).unwrap_or(0);
        let Some((second, b)) = self.at(open).filter(|(p, _)| *p != first).nth(chance) else { return Some(first) };
        // a/b < c/d is compared as a*d < c*b: exact, no float.
        let (mine, other) = (a.load() * b.weight(), b.load() * a.weight());
        let better = other < mine || (other == mine && clearly_slower(a, b, now));
        Some(if better { second } else { first })
    }

    fn in_turn(&self, open: &Positions) -> Option<usize> {
        let _alone = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total = 0i64;
        let mut best: Option<(i64, usize, &Server)> = None;
        for (position, server) in self.at(open) {
            let weight = i64::from(server.rules.weight);
            total += weight;
            let credit = server.credit.load(Ordering::Relaxed) + weight;
            server.credit.store(credit, Ordering::Relaxed);
            if best.is_none_or(|(most, _, _)| credit > most) {
                best = Some((credit, position, server));
            }
        }
        let (credit, position, server) = best?;
        server.credit.store(credit - total, Ordering::Relaxed);
        Some(position)
    }

    /// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016).
    fn bounded(&self, open: &Positions, key: u64) -> Option<usize> {
        let (mut weight, mut running) = (0u64, 1u64);
        for (_, server) in self.at(open) {
            (weight, running) = (weight + server.weight(), running + server.load());
        }
        self.ring.from(key).filter(|p| open.has(*p)).find(|p| {
            // in flight < 5/4 × (all + 1) × weight / all weights. Someone is always at or below the mean.
            let within = |s: &Server| s.load() < FEW || s.load() * 4 * weight < 5 * running * s.weight();
            self.servers.get(*p).is_some_and(within)
        })
    }

    fn at<'a>(&'a self, open: &'a Positions) -> impl Iterator<Item = (usize, &'a Server)> {
        open.iter().filter_map(|p| Some((p, self.servers.get(p)?)))
    }
}

impl Server {
    fn weight(&self) -> u64 {
        u64::from(self.rules.weight.max(1))
    }

    /// Requests in flight, as far as products of it stay within 64 bits.
    fn load(&self) -> u64 {
        u64::try_from(self.standing.in_flight()).unwrap_or(u64::MAX).min(1 << 32)
    }
}

fn clearly_slower(a: &Server, b: &Server, now: Moment) -> bool {
    match (a.standing.pace(now), b.standing.pace(now)) {
        (Some(a), Some(b)) => a > b * 2 + NOISE_MICROS,
        _ => false,
    }
}

/// A set of positions, on the stack.
#[derive(Clone, Copy, Debug)]
struct Positions([u64; MOST_SERVERS / 64]);

impl Default for Positions {
    fn default() -> Self {
        Self([0; MOST_SERVERS / 64])
    }
}

impl Positions {
    fn put(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    fn remove(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word &= !(1 << (position % 64));
        }
    }

    fn has(&self, position: usize) -> bool {
        self.0.get(position / 64).is_some_and(|word| word & (1 << (position % 64)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                (word != 0).then(|| {
                    let bit = word.trailing_zeros();
                    word &= word - 1;
                    at * 64 + bit as usize
                })
            })
        })
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
