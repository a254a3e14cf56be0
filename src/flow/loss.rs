//! Losses an operator agreed to carry (`shortfall = "absorb"`), kept under their caps however many calls run at once.
//!
//! A call reserves the most it can lose before it is paid for, and gives back what it did not lose. What was lost is a
//! running total in the store, written with the receipt; reservations live only here, because a call that dies with the
//! process has delivered no usage to bill.

use crate::clock::UnixSeconds;
use crate::ids::TierName;
use crate::money::Usd;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Reserved and lost per tier on the current day.
#[derive(Clone, Default)]
pub struct Losses(Arc<Mutex<HashMap<TierName, Day>>>);

#[derive(Clone, Copy, Default)]
struct Day {
    day: u64,
    lost: Usd,
    reserved: Usd,
}

/// Room for one call's loss; what is not [`Room::lose`]d comes back on drop.
#[must_use = "dropping gives the room back at once"]
pub struct Room {
    losses: Losses,
    tier: TierName,
    day: u64,
    amount: Usd,
}

impl Losses {
    /// Name of the store's running total for a tier.
    pub fn tally_name(tier: &TierName) -> String {
        format!("absorbed:{tier}")
    }

    /// Tells it what the store knows of today. The larger figure wins, so a late answer never lowers the count.
    pub fn know(&self, tier: &TierName, day: u64, lost: Usd) {
        self.on(tier, day, |d| d.lost = d.lost.max(lost));
    }

    /// Whether this day's figure has been learnt from the store yet.
    pub fn knows(&self, tier: &TierName, now: UnixSeconds) -> bool {
        let days = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        days.get(tier).is_some_and(|d| d.day == now.day())
    }

    /// Reserves up to `want`, as much as `per_day` leaves.
    pub fn reserve(&self, tier: &TierName, now: UnixSeconds, want: Usd, per_day: Usd) -> Room {
        let day = now.day();
        let amount = self.on(tier, day, |d| {
            let left = per_day.less(d.lost).less(d.reserved);
            let amount = want.min(left);
            d.reserved = Usd(d.reserved.0.saturating_add(amount.0));
            amount
        });
        Room { losses: self.clone(), tier: tier.clone(), day, amount }
    }

    /// What `per_day` leaves now.
    pub fn left(&self, tier: &TierName, now: UnixSeconds, per_day: Usd) -> Usd {
        self.on(tier, now.day(), |d| per_day.less(d.lost).less(d.reserved))
    }

    fn on<T>(&self, tier: &TierName, day: u64, change: impl FnOnce(&mut Day) -> T) -> T {
        let mut days = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = days.entry(tier.clone()).or_default();
        if entry.day < day {
            *entry = Day { day, ..Day::default() };
        }
        change(entry)
    }
}

impl Room {
    /// How much may be lost.
    pub fn amount(&self) -> Usd {
        self.amount
    }

    /// Turns part of the reservation into a loss.
    pub fn lose(mut self, lost: Usd) -> (u64, Usd) {
        let lost = lost.min(self.amount);
        let day = self.day;
        self.losses.on(&self.tier, day, |d| {
            if d.day == day {
                d.lost = Usd(d.lost.0.saturating_add(lost.0));
                d.reserved = d.reserved.less(self.amount);
            }
        });
        self.amount = Usd::ZERO;
        (day, lost)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let (day, amount) = (self.day, self.amount);
        self.losses.on(&self.tier, day, |d| {
            if d.day == day {
                d.reserved = d.reserved.less(amount);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_once_never_reserve_more_than_the_day_allows() {
        let losses = Losses::default();
        let tier = TierName::from("t");
        let now = UnixSeconds(86_400 * 3);
        let a = losses.reserve(&tier, now, Usd(60), Usd(100));
        let b = losses.reserve(&tier, now, Usd(60), Usd(100));
        let c = losses.reserve(&tier, now, Usd(60), Usd(100));
        assert_eq!((a.amount(), b.amount(), c.amount()), (Usd(60), Usd(40), Usd(0)));
        assert_eq!(a.lose(Usd(10)), (3, Usd(10)));
        assert_eq!(losses.left(&tier, now, Usd(100)), Usd(50), "50 of the first came back, 40 are still reserved");
        drop(b);
        assert_eq!(losses.left(&tier, now, Usd(100)), Usd(90));
    }

    #[test]
    fn a_new_day_starts_empty_and_yesterdays_room_does_not_count_against_it() {
        let losses = Losses::default();
        let tier = TierName::from("t");
        let late = losses.reserve(&tier, UnixSeconds(86_399), Usd(100), Usd(100));
        assert_eq!(losses.left(&tier, UnixSeconds(86_400), Usd(100)), Usd(100));
        drop(late);
        assert_eq!(losses.left(&tier, UnixSeconds(86_400), Usd(100)), Usd(100));
    }

    #[test]
    fn what_the_store_knows_counts() {
        let losses = Losses::default();
        let tier = TierName::from("t");
        losses.know(&tier, 2, Usd(70));
        assert_eq!(losses.left(&tier, UnixSeconds(2 * 86_400), Usd(100)), Usd(30));
    }
}
