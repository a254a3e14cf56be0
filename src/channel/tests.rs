//! The rules of a channel: over random histories (`invariants`), one by one (`table`), among several who race (`race`), and in every order
//! that a small world has (`model`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod invariants;
mod model;
mod race;
mod table;
mod walk;

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Runs `check` on the seeds and lengths of 20,000 histories, or `PONTAGE_CASES`. A failing one is shortened from its end.
fn for_all(longest: usize, check: impl Fn(u64, usize)) {
    let cases = std::env::var("PONTAGE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&(any::<u64>(), 1..=longest), |(seed, length)| {
        check(seed, length);
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("(seed, length): {failure}");
    }
}

/// Random numbers of a seed: SplitMix64.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..n`; 0 when there is nothing to choose from.
    fn below(&mut self, n: u128) -> u128 {
        u128::from(self.next()).checked_rem(n).unwrap_or(0)
    }

    fn one_in(&mut self, n: u128) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let at = self.below(from.len() as u128);
        from.get(usize::try_from(at).unwrap())
    }
}
