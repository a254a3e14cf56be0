//! What may be spent on other people's fees in one day: in all, and on one payer.
//!
//! A transaction's largest possible fee is set aside, durably, before it is signed; what it did not cost comes back once the chain
//! has said so. Both are running totals that only grow (`sponsor:…` out, `sponsor-back:…` returned), so a crash can forget to
//! give back and never to take: until the end of the day, less is spent than allowed, never more. Several gates may share the
//! totals: each adds before it looks whether that was too much, and takes it back when it was.

use crate::chain::Address;
use crate::clock::UnixSeconds;
use crate::money::Usd;
use crate::store::{Store, StoreError, Swap, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A payer's part of the day's budget is the whole divided by this …
const PAYER_PART: u128 = 10;
/// … but at least this much: five of the dearest transactions at once.
const PAYER_LEAST: Usd = Usd(250_000_000_000_000_000);

/// One section's budget.
pub struct Budget {
    name: String,
    per_day: Usd,
    store: Arc<dyn Store>,
    /// One reservation at a time: the last cent goes to one of two.
    turn: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    day: u64,
    spent: Usd,
}

/// Money set aside for one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    payer: Address,
    day: u64,
    /// The most it may cost.
    pub amount: Usd,
}

/// Why nothing was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Short {
    /// The day's budget does not cover it.
    Day,
    /// The payer's part does not.
    Payer,
    /// The store cannot say.
    Store(StoreError),
}

impl From<StoreError> for Short {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Budget {
    /// A budget of `per_day` for the section `name`, kept in `store`.
    pub fn new(name: &str, per_day: Usd, store: Arc<dyn Store>) -> Self {
        Self { name: name.to_owned(), per_day, store, turn: tokio::sync::Mutex::default(), seen: Mutex::default() }
    }

    /// The most that one payer's transactions may cost in a day.
    pub fn per_payer(&self) -> Usd {
        Usd(self.per_day.0 / PAYER_PART).max(PAYER_LEAST).min(self.per_day)
    }

    /// What is left today as far as this gate has seen. No I/O.
    pub fn left(&self, now: UnixSeconds) -> Usd {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.day == now.day() { self.per_day.less(seen.spent) } else { self.per_day }
    }

    /// Reads what was spent today.
    pub async fn learn(&self, now: UnixSeconds) -> Result<(), StoreError> {
        let spent = self.spent(&self.whole(), now.day()).await?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { day: now.day(), spent };
        Ok(())
    }

    /// Whether `amount` could be set aside for `payer` now. Writes nothing.
    pub async fn covers(&self, payer: Address, amount: Usd, now: UnixSeconds) -> Result<(), Short> {
        let fits = |spent: Usd, most: Usd| spent.plus(amount).is_some_and(|sum| sum <= most);
        if !fits(self.spent(&self.whole(), now.day()).await?, self.per_day) {
            return Err(Short::Day);
        }
        if !fits(self.spent(&self.part(payer), now.day()).await?, self.per_payer()) {
            return Err(Short::Payer);
        }
        Ok(())
    }

    /// Sets `amount` aside for a transaction of `payer`.
    pub async fn reserve(&self, payer: Address, amount: Usd, now: UnixSeconds) -> Result<Reserved, Short> {
        let _turn = self.turn.lock().await;
        self.covers(payer, amount, now).await?;
        let reserved = Reserved { payer, day: now.day(), amount };
        self.add("sponsor", &reserved, amount).await?;
        // Another gate may have added meanwhile: whoever finds the sum too high takes his own part back.
        if let Err(short) = self.covers(payer, Usd::ZERO, now).await {
            self.add("sponsor-back", &reserved, amount).await?;
            return Err(short);
        }
        self.learn(now).await?;
        Ok(reserved)
    }

    /// Gives back what a transaction did not cost. Once for each reservation.
    pub async fn give_back(&self, reserved: &Reserved, rest: Usd) -> Result<(), StoreError> {
        if rest > Usd::ZERO {
            self.add("sponsor-back", reserved, rest.min(reserved.amount)).await?;
        }
        self.learn(UnixSeconds::now()).await
    }

    async fn add(&self, way: &str, to: &Reserved, amount: Usd) -> Result<(), StoreError> {
        let names = [self.whole(), self.part(to.payer)];
        let tally = names.into_iter().map(|name| (format!("{way}:{name}"), to.day, amount)).collect();
        match self.store.commit(Write { tally, ..Write::default() }).await? {
            Swap::Done => Ok(()),
            other => Err(StoreError(format!("a sum was not added: {other:?}"))),
        }
    }

    /// Out minus returned. The returned is read first: what comes back in between counts as spent, never the other way round.
    async fn spent(&self, name: &str, day: u64) -> Result<Usd, StoreError> {
        let back = self.store.tally(&format!("sponsor-back:{name}"), day).await?;
        let out = self.store.tally(&format!("sponsor:{name}"), day).await?;
        Ok(out.less(back))
    }

    fn whole(&self) -> String {
        self.name.clone()
    }

    fn part(&self, payer: Address) -> String {
        format!("{}:{payer:#x}", self.name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::store::embedded::Embedded;
    use futures::future::join_all;

    const CENT: u128 = 10_000_000_000_000_000;

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("s.redb")).unwrap();
        (dir, Arc::new(store))
    }

    fn payer(n: u8) -> Address {
        Address::repeat_byte(n)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sixty_four_at_once_set_aside_exactly_what_the_day_allows() {
        let (_dir, store) = store();
        let budget = Budget::new("tempo", Usd(50 * CENT), store);
        let now = UnixSeconds::now();
        let got = join_all((0..64).map(|n| budget.reserve(payer(n), Usd(CENT), now))).await;
        assert_eq!(got.iter().filter(|r| r.is_ok()).count(), 50);
        assert!(got.iter().all(|r| r.is_ok() || *r == Err(Short::Day)), "{got:?}");
        assert_eq!(budget.left(now), Usd::ZERO);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_gates_on_one_store_never_set_aside_more_than_the_day_allows() {
        let (_dir, store) = store();
        let gates = [Budget::new("tempo", Usd(CENT), store.clone()), Budget::new("tempo", Usd(CENT), store)];
        let today = UnixSeconds::now();
        // Room for one: both look, see it free, and add in one group of writes.
        for day in 0..10 {
            let now = today.plus(day * 86_400);
            let got = join_all(gates.iter().map(|gate| gate.reserve(payer(1), Usd(CENT), now))).await;
            assert!(got.iter().filter(|r| r.is_ok()).count() <= 1, "{got:?}");
            let again = gates[0].reserve(payer(1), Usd(CENT), now).await;
            let held = got.iter().chain([&again]).filter(|r| r.is_ok()).count();
            assert_eq!(held, 1, "a race costs a refusal, and the place is free again: {got:?} {again:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_payer_has_his_part_and_leaves_the_rest_to_others() {
        let (_dir, store) = store();
        let budget = Budget::new("tempo", Usd(1_000 * CENT), store);
        assert_eq!(budget.per_payer(), Usd(100 * CENT), "a tenth");
        let now = UnixSeconds::now();
        let got = join_all((0..64).map(|_| budget.reserve(payer(1), Usd(4 * CENT), now))).await;
        assert_eq!(got.iter().filter(|r| r.is_ok()).count(), 25);
        assert_eq!(budget.reserve(payer(1), Usd(CENT), now).await, Err(Short::Payer));
        assert!(budget.reserve(payer(2), Usd(4 * CENT), now).await.is_ok());
    }

    #[tokio::test]
    async fn a_small_budgets_payer_may_have_a_quarter_dollar_and_never_more_than_all() {
        let (_dir, store) = store();
        for (per_day, want, why) in
            [(10, 10, "all of a tiny one"), (100, 25, "the least"), (250, 25, "on the edge"), (2_000, 200, "a tenth")]
        {
            assert_eq!(Budget::new("t", Usd(per_day * CENT), store.clone()).per_payer(), Usd(want * CENT), "{why}");
        }
    }

    #[tokio::test]
    async fn what_was_not_spent_comes_back_and_a_restart_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = || -> Arc<dyn Store> { Arc::new(Embedded::open(&dir.path().join("s.redb")).unwrap()) };
        let now = UnixSeconds::now();
        {
            let budget = Budget::new("tempo", Usd(10 * CENT), open());
            let first = budget.reserve(payer(1), Usd(6 * CENT), now).await.unwrap();
            assert_eq!(budget.reserve(payer(2), Usd(6 * CENT), now).await, Err(Short::Day));
            budget.give_back(&first, Usd(5 * CENT)).await.unwrap();
            assert_eq!(budget.left(now), Usd(9 * CENT));
            budget.reserve(payer(2), Usd(6 * CENT), now).await.unwrap();
        }
        let budget = Budget::new("tempo", Usd(10 * CENT), open());
        budget.learn(now).await.unwrap();
        assert_eq!(budget.left(now), Usd(3 * CENT), "one spent, six still set aside");
        assert_eq!(budget.left(now.plus(86_400)), Usd(10 * CENT), "a new day");
        assert!(budget.reserve(payer(3), Usd(10 * CENT), now.plus(86_400)).await.is_ok());
    }
}
