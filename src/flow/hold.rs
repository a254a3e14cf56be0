//! Money that was taken for a request: it ends in a delivery or is given back.

use super::loss::Room;
use super::pay::{advance, denied_stop, running_stop, store_down};
use super::{Stop, Toll, recover};
use crate::claim::{Claim, Op, Standing, Terms};
use crate::clock::UnixSeconds;
use crate::journal::{Entry, Receipt};
use crate::money::{Atoms, Usd};
use crate::refusal::Moved;
use crate::store::{Swap, Write};
use std::sync::Arc;

/// Money that was taken for a request in progress. It ends in [`Hold::deliver`] or [`Hold::give_back`]; one that is dropped
/// gives itself back, so that a vanished client or a panic leaves the payment redeemable.
#[must_use = "a hold must end in delivery or be given back, or the payer waits for a restart"]
pub struct Hold {
    toll: Arc<Toll>,
    claim: Claim,
    request: String,
    /// It was taken after the reply came: the claim is still `Taking`, and this transaction paid it.
    taken: Option<Option<String>>,
    /// What the operator may lose on it. Kept while the payment is owed.
    room: Option<Room>,
    open: bool,
}

impl Hold {
    /// Holds what `claim` paid, for `request`, which the claim already names as the one it serves.
    pub(super) fn of(toll: Arc<Toll>, claim: Claim, request: String, room: Option<Room>) -> Self {
        Self { toll, claim, request, taken: None, room, open: true }
    }

    /// Holds what was just taken of `claim`, which is written down together with the delivery.
    pub(super) fn taken(
        toll: Arc<Toll>,
        claim: Claim,
        request: String,
        transaction: Option<String>,
        room: Option<Room>,
    ) -> Self {
        Self { toll, claim, request, taken: Some(transaction), room, open: true }
    }

    /// What the operator may lose on it.
    pub fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// The same, to be lost in part: it is delivered.
    pub(super) fn take_room(&mut self) -> Option<Room> {
        self.room.take()
    }

    /// The transaction that paid, where it is not the claim's reference.
    pub fn transaction(&self) -> Option<&String> {
        self.taken.as_ref().and_then(Option::as_ref).or(self.claim.transaction.as_ref())
    }

    /// What was bought.
    pub fn terms(&self) -> &Terms {
        &self.claim.terms
    }

    /// The claim as last written.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Durable before the first byte leaves: from here on the payment buys nothing else. The receipt goes into the same
    /// transaction. On `Err` nothing may be sent.
    pub async fn deliver(&mut self, receipt: &Receipt, tally: Vec<(String, u64, Usd)>) -> Result<(), Stop> {
        let (by, id, now) = (self.request.clone(), receipt.id.clone(), UnixSeconds::now());
        let op = match &self.taken {
            Some(transaction) => Op::Settle { by, transaction: transaction.clone(), receipt: id },
            None => Op::Deliver { by, receipt: id },
        };
        let next = self.claim.apply(op, now).map_err(|denied| denied_stop(&self.claim, denied))?;
        let paid = self.taken.is_some().then(|| Entry::Paid { key: next.key.0.clone(), at: now });
        let journal = paid.into_iter().chain([Entry::Receipt(Box::new(receipt.clone()))]).collect();
        let write = Write { claim: Some(next.clone()), journal, tally, ..Write::default() };
        match self.toll.store.commit(write).await {
            Ok(Swap::Done) => {
                self.claim = next;
                self.open = false;
                Ok(())
            }
            Ok(Swap::Lost(_) | Swap::Overtaken(_)) => {
                self.open = false;
                Err(running_stop())
            }
            // Whether it was written is not known: neither deliver nor give back; what the store says later decides.
            Err(e) => {
                self.open = false;
                let stop = Stop { moved: Moved::Unknown, claimed: true, ..store_down(&e) };
                recover::abandon(&self.toll, &self.claim.key, &self.request, &stop);
                Err(stop)
            }
        }
    }

    /// Nothing was delivered: the payer may redeem it.
    pub async fn give_back(mut self) -> Moved {
        if !self.open {
            return Moved::Unknown;
        }
        self.open = false;
        let (op, room) = (self.back(), self.room.take());
        give_back(&self.toll, &self.claim, op, &self.request, room).await
    }

    /// Its client left before the first byte, and a backend worked for it: the payer may redeem it, but not for ever. Whether `receipt`
    /// is in the books, for a payment that is spent by it.
    pub async fn depart(mut self, receipt: &Receipt) -> bool {
        if self.open && self.taken.is_none() {
            if !self.claim.may_depart() {
                return self.deliver(receipt, Vec::new()).await.is_ok();
            }
            self.open = false;
            let (op, room) = (Op::Depart { by: self.request.clone() }, self.room.take());
            give_back(&self.toll, &self.claim, op, &self.request, room).await;
            return false;
        }
        self.give_back().await;
        false
    }

    /// How the claim is told that nothing was delivered. What cost nothing was not paid, and cannot be owed.
    fn back(&self) -> Op {
        match &self.taken {
            Some(_) if self.claim.paid_amount() == Atoms(0) => Op::Die,
            Some(transaction) => Op::PayUnserved { transaction: transaction.clone() },
            None => Op::GiveBack { by: self.request.clone() },
        }
    }
}

async fn give_back(toll: &Arc<Toll>, claim: &Claim, op: Op, request: &str, room: Option<Room>) -> Moved {
    match advance(toll, claim, op, UnixSeconds::now()).await {
        Ok(Claim { standing: Standing::Untaken, .. }) => Moved::No,
        Ok(next) => match next.redeem_until() {
            Some(until) => {
                room.into_iter().for_each(|room| room.keep(&next.key, until));
                Moved::Redeemable { until }
            }
            None => Moved::Unknown,
        },
        Err(stop) => {
            tracing::error!(claim = %claim.key.0, reason = stop.refusal.code(), "a hold could not be given back; recovery will");
            recover::abandon(toll, &claim.key, request, &stop);
            Moved::Unknown
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let (toll, claim, op) = (Arc::clone(&self.toll), self.claim.clone(), self.back());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (request, room) = (std::mem::take(&mut self.request), self.room.take());
            runtime.spawn(async move { give_back(&toll, &claim, op, &request, room).await });
        }
    }
}
