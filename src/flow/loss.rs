//! Losses an operator agreed to carry (`shortfall = "absorb"`), kept under their caps however many calls run at once.
//!
//! A call reserves the most it can lose before it is paid for, and gives back what it did not lose. What was lost is a
//! running total in the store, written with the receipt; reservations live only here, because a call that dies with the
//! process has delivered no usage to bill.
//!
//! What was paid and not delivered is owed, and keeps its room until it is delivered or cannot be redeemed any more: else whoever
//! pays for many calls and leaves each would be served all of them later, over any cap, or an honest payer not at all. After
//! a restart as much is kept for each as a call may lose (`recover.rs`). One that is redeemed at another gate takes what the day leaves there.

use crate::claim::ClaimKey;
use crate::clock::UnixSeconds;
use crate::ids::TierName;
use crate::money::Usd;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Reserved and lost per tier on the current day.
#[derive(Clone, Default)]
pub struct Losses(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    days: HashMap<TierName, Day>,
    /// Rooms of what is owed, by the last second at which it can be redeemed.
    owed: BTreeMap<(UnixSeconds, ClaimKey), Part>,
}

#[derive(Clone, Copy, Default)]
struct Day {
    day: u64,
    /// As far as the store was asked, what was lost before this run is in it.
    lost: Usd,
    is_known: bool,
    reserved: Usd,
}

/// A part of what a tier may lose on a day.
#[derive(Clone)]
struct Part {
    tier: TierName,
    day: u64,
    amount: Usd,
}

/// Room for one call's loss; what is not [`Room::lose`]d comes back on drop.
#[must_use = "dropping gives the room back at once"]
pub struct Room {
    losses: Losses,
    part: Part,
}

impl Losses {
    /// Name of the store's running total for a tier.
    pub fn tally_name(tier: &TierName) -> String {
        format!("absorbed:{tier}")
    }

    /// Tells it what the store knows of today. The larger figure wins, so a late answer never lowers the count.
    pub fn know(&self, tier: &TierName, day: u64, lost: Usd) {
        self.write(|book| {
            let d = book.on(tier, day);
            d.lost = d.lost.max(lost);
            d.is_known = true;
        });
    }

    /// Whether this day's figure has been learnt from the store yet.
    pub fn knows(&self, tier: &TierName, now: UnixSeconds) -> bool {
        self.write(|book| book.days.get(tier).is_some_and(|d| d.day == now.day() && d.is_known))
    }

    /// Reserves up to `want`, as much as `per_day` leaves.
    pub fn reserve(&self, tier: &TierName, now: UnixSeconds, want: Usd, per_day: Usd) -> Room {
        let part = self.write(|book| book.reserve(tier, now, want, per_day));
        Room { losses: self.clone(), part }
    }

    /// The room that was [`Room::keep`]t for what is owed, widened up to `want` as far as `per_day` leaves it; where there is none,
    /// [`Losses::reserve`].
    pub fn again(
        &self,
        (key, until): (&ClaimKey, UnixSeconds),
        tier: &TierName,
        now: UnixSeconds,
        want: Usd,
        per_day: Usd,
    ) -> Room {
        let part = self.write(|book| {
            match book.owed.remove(&(until, key.clone())) {
                // It counts against the day on which it was bought.
                Some(kept) if kept.tier == *tier && kept.day != now.day() => kept,
                Some(mut kept) if kept.tier == *tier => {
                    let more = book.reserve(tier, now, want.less(kept.amount), per_day);
                    kept.amount = Usd(kept.amount.0.saturating_add(more.amount.0));
                    kept
                }
                // Its path may have had another tier then.
                other => {
                    other.iter().for_each(|kept| book.free(kept, Usd::ZERO));
                    book.reserve(tier, now, want, per_day)
                }
            }
        });
        Room { losses: self.clone(), part }
    }

    /// What `per_day` leaves now.
    pub fn left(&self, tier: &TierName, now: UnixSeconds, per_day: Usd) -> Usd {
        self.write(|book| book.left(tier, now, per_day))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Book {
    fn on(&mut self, tier: &TierName, day: u64) -> &mut Day {
        let entry = self.days.entry(tier.clone()).or_default();
        if entry.day < day {
            *entry = Day { day, ..Day::default() };
        }
        entry
    }

    fn left(&mut self, tier: &TierName, now: UnixSeconds, per_day: Usd) -> Usd {
        while let Some(entry) = self.owed.first_entry().filter(|entry| entry.key().0 < now) {
            let over = entry.remove();
            self.free(&over, Usd::ZERO);
        }
        let d = self.on(tier, now.day());
        per_day.less(d.lost).less(d.reserved)
    }

    fn reserve(&mut self, tier: &TierName, now: UnixSeconds, want: Usd, per_day: Usd) -> Part {
        let amount = want.min(self.left(tier, now, per_day));
        let d = self.on(tier, now.day());
        d.reserved = Usd(d.reserved.0.saturating_add(amount.0));
        Part { tier: tier.clone(), day: now.day(), amount }
    }

    /// Ends a reservation of which this much is lost.
    fn free(&mut self, part: &Part, lost: Usd) {
        let d = self.on(&part.tier, part.day);
        if d.day == part.day {
            d.lost = Usd(d.lost.0.saturating_add(lost.0));
            d.reserved = d.reserved.less(part.amount);
        }
    }
}

impl Room {
    /// How much may be lost.
    pub fn amount(&self) -> Usd {
        self.part.amount
    }

    /// Turns part of the reservation into a loss: the day it counts on, and how much it is.
    pub fn lose(mut self, lost: Usd) -> (u64, Usd) {
        let lost = lost.min(self.part.amount);
        self.losses.write(|book| book.free(&self.part, lost));
        self.part.amount = Usd::ZERO;
        (self.part.day, lost)
    }

    /// The call was paid and not delivered: its room stays reserved until it is redeemed, or `until` is past.
    pub fn keep(mut self, key: &ClaimKey, until: UnixSeconds) {
        let kept = Part { amount: std::mem::take(&mut self.part.amount), ..self.part.clone() };
        self.losses.write(|book| {
            if kept.amount != Usd::ZERO
                && let Some(twice) = book.owed.insert((until, key.clone()), kept)
            {
                book.free(&twice, Usd::ZERO);
            }
        });
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.part.amount != Usd::ZERO {
            self.losses.write(|book| book.free(&self.part, Usd::ZERO));
        }
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
    fn who_only_looks_learns_nothing() {
        let (losses, tier, now) = (Losses::default(), TierName::from("t"), UnixSeconds(86_400 * 3));
        assert_eq!(losses.left(&tier, now, Usd(100)), Usd(100));
        assert!(!losses.knows(&tier, now), "the store is still to be asked what was lost before this run");
        losses.know(&tier, now.day(), Usd(30));
        assert!(losses.knows(&tier, now) && !losses.knows(&tier, now.plus(86_400)));
        assert_eq!(losses.left(&tier, now, Usd(100)), Usd(70));
    }

    #[test]
    fn what_the_store_knows_counts() {
        let losses = Losses::default();
        let tier = TierName::from("t");
        losses.know(&tier, 2, Usd(70));
        assert_eq!(losses.left(&tier, UnixSeconds(2 * 86_400), Usd(100)), Usd(30));
    }

    #[test]
    fn what_is_owed_keeps_its_room_until_it_is_redeemed_or_cannot_be_any_more() {
        let losses = Losses::default();
        let (tier, cap) = (TierName::from("t"), Usd(100));
        let key = |name: &str| ClaimKey(name.to_owned());
        let (now, until) = (UnixSeconds(1_000), UnixSeconds(1_900));
        for (name, want) in [("a", 30), ("b", 30), ("c", 30)] {
            losses.reserve(&tier, now, Usd(want), cap).keep(&key(name), until);
        }
        let left = |now| losses.left(&tier, now, cap);
        assert_eq!(left(now), Usd(10), "nothing runs, and all three may be served yet");
        let again = |name: &str, now, want| losses.again((&key(name), until), &tier, now, Usd(want), cap);
        let served = again("a", now, 30);
        assert_eq!((served.amount(), left(now)), (Usd(30), Usd(10)), "its own room, and no second one");
        served.keep(&key("a"), until);
        let dearer = again("a", now, 90);
        assert_eq!((dearer.amount(), left(now)), (Usd(40), Usd(0)), "what may cost more has what is left besides");
        assert_eq!(again("d", now, 30).amount(), Usd(0), "nothing was kept for it, and nothing is left");
        dearer.lose(Usd(5));
        assert_eq!(left(now), Usd(35));
        assert_eq!(left(until), Usd(35), "the last second");
        assert_eq!(left(UnixSeconds(1_901)), Usd(95), "what nobody came for in time is free");
    }

    #[test]
    fn what_was_owed_before_midnight_counts_on_the_day_it_was_bought() {
        let losses = Losses::default();
        let (tier, cap, key) = (TierName::from("t"), Usd(100), ClaimKey("a".to_owned()));
        let until = UnixSeconds(86_400 + 800);
        losses.reserve(&tier, UnixSeconds(86_300), Usd(60), cap).keep(&key, until);
        let now = UnixSeconds(86_400);
        assert_eq!(losses.left(&tier, now, cap), cap);
        let room = losses.again((&key, until), &tier, now, Usd(60), cap);
        assert_eq!(room.lose(Usd(50)), (0, Usd(50)));
        assert_eq!(losses.left(&tier, now, cap), cap);
    }

    #[test]
    fn what_is_kept_twice_is_kept_once() {
        let losses = Losses::default();
        let (tier, cap, key) = (TierName::from("t"), Usd(100), ClaimKey("a".to_owned()));
        let (now, until) = (UnixSeconds(1_000), UnixSeconds(1_900));
        let rooms = [30, 20].map(|want| losses.reserve(&tier, now, Usd(want), cap));
        rooms.into_iter().for_each(|room| room.keep(&key, until));
        assert_eq!(losses.left(&tier, now, cap), Usd(80));
        let elsewhere = TierName::from("u");
        let room = losses.again((&key, until), &elsewhere, now, Usd(20), cap);
        assert_eq!((room.amount(), losses.left(&tier, now, cap)), (Usd(20), cap), "its path has another tier now");
    }
}
