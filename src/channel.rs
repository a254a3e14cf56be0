//! One payment channel: its record, and the pure rules by which it changes.
//!
//! ```text
//! Opening ──► Open ──► Closing ───────► Closed
//!    │         │ ▲        ▲                ▲
//!    ▼         ▼ │        │                │
//!  Failed   ForcedClosing ┴────────────────┘     (any of them) ──► Quarantined: a person has to look, and releases it
//! ```
//!
//! The payer locks a deposit on chain and signs vouchers: each says how much of it, in total, is the payee's. Accepting a
//! voucher and spending it are two things. A request holds a part of what is accepted (a [`Lease`]) before anything is done for
//! it, and ends by spending what it used of it; what is left is free again. So several requests share one channel without ever
//! exceeding what was signed: `spent + leased ≤ accepted ≤ deposit`.
//!
//! Everything here is a pure function of the record, the op and the time (its invariants: `channel/tests/invariants.rs`). A store
//! replaces the record only if its revision matches.

mod op;
mod parts;

pub use op::{Act, Denied, Effect, Intent, Op};
pub use parts::{ChannelId, Descriptor, Lease, OrphanPolicy, Phase, Purchase, View, Voucher};

use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::money::Atoms;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Vouchers above what is spent that are kept beside the highest, so that a good part of what was spent can be settled exactly.
const PENDING_VOUCHERS: usize = 8;
/// Challenges remembered one by one as used; older ones are covered by a watermark.
const USED_CHALLENGES: usize = 32;
/// Changes remembered by name, so that one whose outcome was lost can be tried again.
const RECENT_OPS: usize = 32;
/// Requests that may hold a part of one channel at the same time.
pub const MOST_LEASES: usize = 64;
/// Seconds between a payer's request to close and his withdrawal (TIP-1034 `CLOSE_GRACE_PERIOD`).
pub const GRACE_SECONDS: u64 = 15 * 60;

/// The record of one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Layout of this record; this build reads and writes [`Channel::SCHEMA`].
    pub schema: u16,
    /// Counts changes; the store swaps only against the revision that was read.
    pub revision: u64,
    /// Identity.
    pub id: ChannelId,
    /// The rail that opened it.
    pub rail: RailId,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract that holds the deposit.
    pub escrow: String,
    /// What the id is made of. It never changes: all copies of the record share it.
    pub descriptor: Arc<Descriptor>,
    /// Decimals of the token.
    pub decimals: u8,
    /// Where it stands.
    pub phase: Phase,
    /// The chain's newest word.
    pub view: View,
    /// Ascending by amount: at most one that is ≤ spent (it can be settled as it is), then those above it.
    pub vouchers: Vec<Voucher>,
    /// What each gate has spent, ever growing.
    pub spent: BTreeMap<String, Atoms>,
    /// What the chain paid out beyond anything known to be spent by a gate.
    pub base: Atoms,
    /// By lease id.
    pub leases: BTreeMap<String, Lease>,
    /// Challenge ids that have bought content, and when they expire.
    pub used: BTreeMap<String, UnixSeconds>,
    /// Challenges that expire at or before this instant count as used.
    pub used_until: UnixSeconds,
    /// An access key signed the opening: until that lands, nobody knows that the payer meant it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_access_key: bool,
    /// The payer's transaction whose outcome is open.
    pub payers_tx: Option<Intent>,
    /// Our transaction whose outcome is open.
    pub our_tx: Option<Intent>,
    /// Names of the newest changes.
    pub recent: Vec<Arc<str>>,
    /// When it was first seen.
    pub opened_at: UnixSeconds,
    /// When a payer last did something with it.
    pub touched_at: UnixSeconds,
    /// When something was last settled, or the channel opened: the clock of settlement by age.
    pub settled_at: UnixSeconds,
}

impl Channel {
    /// The layout this build writes.
    pub const SCHEMA: u16 = 1;

    /// A channel whose opening transaction is about to be sent.
    #[allow(clippy::too_many_arguments)]
    pub fn opening(
        id: ChannelId,
        rail: RailId,
        chain_id: u64,
        escrow: String,
        descriptor: impl Into<Arc<Descriptor>>,
        decimals: u8,
        deposit: Atoms,
        voucher: Voucher,
        open: Intent,
        now: UnixSeconds,
    ) -> Self {
        Self {
            schema: Self::SCHEMA,
            revision: 1,
            id,
            rail,
            chain_id,
            escrow,
            descriptor: descriptor.into(),
            decimals,
            phase: Phase::Opening,
            view: View { block: 0, deposit, settled: Atoms(0), close_requested_at: None },
            vouchers: vec![voucher],
            spent: BTreeMap::new(),
            base: Atoms(0),
            leases: BTreeMap::new(),
            used: BTreeMap::new(),
            used_until: UnixSeconds(0),
            by_access_key: false,
            payers_tx: Some(open),
            our_tx: None,
            recent: Vec::new(),
            opened_at: now,
            touched_at: now,
            settled_at: now,
        }
    }

    /// The highest voucher.
    pub fn highest(&self) -> Option<&Voucher> {
        self.vouchers.last()
    }

    /// Its amount, and never less than what the chain paid out.
    pub fn accepted(&self) -> Atoms {
        self.highest().map_or(Atoms(0), |v| v.amount).max(self.view.settled)
    }

    /// The greatest known voucher that is at most what was spent: the only one that may be settled as it is.
    pub fn settleable(&self) -> Option<&Voucher> {
        let spent = self.spent();
        self.vouchers.iter().rev().find(|v| v.amount <= spent)
    }

    /// Everything spent, by all gates.
    pub fn spent(&self) -> Atoms {
        Atoms(self.spent.values().fold(self.base.0, |sum, s| sum.saturating_add(s.0)))
    }

    /// Everything that requests in progress may still spend.
    pub fn leased(&self) -> Atoms {
        Atoms(self.leases.values().fold(0, |sum, lease| sum.saturating_add(lease.cap.0)))
    }

    /// What a new lease may take.
    pub fn available(&self) -> Atoms {
        Atoms(self.accepted().0.saturating_sub(self.spent().0).saturating_sub(self.leased().0))
    }

    /// The cumulative amount that a voucher must have so that `more` can be leased now. Where the highest does not do, it is one that
    /// raises that by `min_delta` at least: wallets sign just what they are told, and one that raises it by less is refused.
    pub fn required(&self, more: Atoms, min_delta: Atoms) -> Atoms {
        let all = Atoms(self.spent().0.saturating_add(self.leased().0).saturating_add(more.0));
        let accepted = self.accepted();
        if all > accepted { all.max(Atoms(accepted.0.saturating_add(min_delta.0))) } else { all }
    }

    /// What the payee gets in total when it is closed now: what was spent, and never less than what is out already.
    pub fn capture(&self) -> Atoms {
        self.spent().min(self.accepted()).max(self.view.settled)
    }

    /// What was spent and is not paid out yet.
    pub fn unsettled(&self) -> Atoms {
        Atoms(self.capture().0.saturating_sub(self.view.settled.0))
    }

    /// Whether nothing can change any more.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. } | Phase::Failed) && self.leases.is_empty()
    }

    /// Whether the payer it names has had nothing to do with it, as far as anybody knows.
    pub fn is_unjudged(&self) -> bool {
        self.by_access_key && self.phase == Phase::Opening
    }

    /// Whether new content may be served.
    pub fn serves(&self) -> Result<(), Denied> {
        match self.phase {
            // The payer took back his request to close, and our answer to it is on its way all the same.
            Phase::Open if self.closes() => Err(Denied::Closing),
            Phase::Open => Ok(()),
            Phase::Opening => Err(Denied::Opening),
            Phase::Closing | Phase::ForcedClosing { .. } => Err(Denied::Closing),
            Phase::Closed { .. } | Phase::Failed => Err(Denied::Over),
            Phase::Quarantined { .. } => Err(Denied::Quarantined),
        }
    }

    /// Whether what is used from now on can still be paid out: not once a closing transaction of ours says how much is, nor of a channel
    /// that is over or waits for a person.
    pub fn still_pays(&self) -> bool {
        !self.closes() && !matches!(self.phase, Phase::Closed { .. } | Phase::Failed | Phase::Quarantined { .. })
    }

    /// Whether a closing transaction of ours is on its way.
    fn closes(&self) -> bool {
        self.our_tx.as_ref().is_some_and(|intent| matches!(intent.act, Act::Close { .. }))
    }

    /// Whether a change of this name is among the newest.
    pub fn remembers(&self, name: &str) -> bool {
        self.recent.iter().any(|done| **done == *name)
    }

    /// The next record and what the change did. `name` names this change: a second try under the same name changes nothing, so
    /// that one whose outcome was lost can be tried again. On `Err`, or when nothing is new, the record stays as it is;
    /// otherwise its revision grows by one.
    pub fn apply(&self, name: &str, op: Op, now: UnixSeconds) -> Result<(Channel, Effect), Denied> {
        if self.remembers(name) {
            return Ok((self.clone(), Effect::Nothing));
        }
        let mut next = self.clone();
        let effect = next.change(op, now)?;
        if next == *self {
            return Ok((next, effect));
        }
        next.revision = self.revision.saturating_add(1);
        next.prune();
        next.recent.push(name.into());
        if next.recent.len() > RECENT_OPS {
            next.recent.remove(0);
        }
        Ok((next, effect))
    }

    /// Makes the change in place. On `Err` this record is good for nothing any more.
    fn change(&mut self, op: Op, now: UnixSeconds) -> Result<Effect, Denied> {
        match op {
            Op::Landed { tx, mined, view } => self.landed(&tx, mined, view, now)?,
            Op::Dropped { tx } => match self.take_intent(&tx)? {
                Act::Open => self.phase = Phase::Failed,
                Act::TopUp { .. } | Act::Settle { .. } | Act::Close { .. } => {}
            },
            Op::Intend { intent } => self.intend(intent)?,
            Op::Accept { voucher, min_delta } => {
                self.serves()?;
                if !self.accept(voucher, min_delta)? {
                    return Ok(Effect::Nothing);
                }
                self.touched_at = now;
            }
            Op::Buy { voucher, min_delta, challenge, expires, lease, terms } => {
                self.serves()?;
                // On `Err` nothing of this stands: what is changed here is a copy.
                let fresh_money = self.accept(voucher, min_delta)?;
                if !fresh_money && self.was_used(&challenge, expires) {
                    return Err(Denied::ChallengeUsed);
                }
                if self.leases.len() >= MOST_LEASES {
                    return Err(Denied::TooManyLeases);
                }
                if terms.cap > self.available() {
                    if fresh_money {
                        // It was signed for us, whatever it was meant to buy.
                        self.touched_at = now;
                    }
                    return Ok(Effect::Short { required: self.required(terms.cap, min_delta) });
                }
                if self.leases.insert(lease, *terms).is_some() {
                    return Err(Denied::OutOfOrder);
                }
                self.remember(challenge, expires, now);
                self.touched_at = now;
                return Ok(Effect::Leased);
            }
            Op::Extend { lease, by, used } => {
                self.serves()?;
                let (available, required) = (self.available(), self.required(by, Atoms(0)));
                let held = self.leases.get_mut(&lease).ok_or(Denied::OutOfOrder)?;
                if by > available {
                    return Err(Denied::Short { required });
                }
                held.cap = Atoms(held.cap.0.saturating_add(by.0));
                held.window = by;
                held.used = held.used.max(used.map(|used| used.min(held.cap)));
            }
            Op::Mark { lease, used, window } => {
                let held = self.leases.get_mut(&lease).ok_or(Denied::OutOfOrder)?;
                held.window = window;
                held.used = held.used.max(Some(used.min(held.cap)));
            }
            Op::Spend { lease, charge } => {
                let held = self.leases.get(&lease).filter(|held| charge <= held.cap).ok_or(Denied::OutOfOrder)?;
                let gate = held.gate.clone();
                self.leases.remove(&lease);
                self.add_spent(gate, charge);
                self.touched_at = now;
            }
            Op::Orphan { gate, policy } => {
                let gone: Vec<String> =
                    self.leases.iter().filter(|(_, lease)| lease.gate == gate).map(|(id, _)| id.clone()).collect();
                if gone.is_empty() {
                    return Ok(Effect::Nothing);
                }
                let mut charged = Vec::with_capacity(gone.len());
                for id in gone {
                    let Some(lease) = self.leases.remove(&id) else { continue };
                    let charge = lease.orphaned(policy);
                    self.add_spent(lease.gate.clone(), charge);
                    charged.push((id, lease, charge));
                }
                return Ok(Effect::Orphaned(charged));
            }
            Op::Look { view } => {
                let before = self.clone();
                self.look(view, now);
                // A later block that says the same is no news worth a write.
                let newer = self.view.block;
                self.view.block = before.view.block;
                if *self == before {
                    return Ok(Effect::Nothing);
                }
                self.view.block = newer;
            }
            Op::Close => match self.phase {
                Phase::Open => self.phase = Phase::Closing,
                Phase::Closing | Phase::ForcedClosing { .. } => return Ok(Effect::Nothing),
                _ => return Err(self.serves().err().unwrap_or(Denied::OutOfOrder)),
            },
            Op::Release => {
                if !matches!(self.phase, Phase::Quarantined { .. }) {
                    return Ok(Effect::Nothing);
                }
                if self.contradiction().is_some() {
                    return Err(Denied::Quarantined);
                }
                self.phase = match self.view.close_requested_at {
                    Some(at) => Phase::ForcedClosing { deadline: at.plus(GRACE_SECONDS) },
                    None => Phase::Open,
                };
                self.touched_at = now;
            }
        }
        Ok(Effect::Done)
    }

    /// Takes a voucher in; `false` when it is the highest one again.
    fn accept(&mut self, voucher: Voucher, min_delta: Atoms) -> Result<bool, Denied> {
        let highest = self.highest().map(|v| v.amount);
        if highest == Some(voucher.amount) && voucher.amount >= self.view.settled {
            return Ok(false);
        }
        let accepted = self.accepted();
        if voucher.amount <= accepted && !(highest.is_none() && accepted == Atoms(0)) {
            return Err(Denied::Lower { accepted });
        }
        if voucher.amount > self.view.deposit {
            return Err(Denied::OverDeposit { deposit: self.view.deposit });
        }
        if voucher.amount.0 - accepted.0 < min_delta.0 {
            return Err(Denied::DeltaTooSmall { min_delta });
        }
        self.vouchers.push(voucher);
        Ok(true)
    }

    fn was_used(&self, challenge: &str, expires: UnixSeconds) -> bool {
        expires <= self.used_until || self.used.contains_key(challenge)
    }

    /// Remembers a challenge as used, in bounded space: past the bound, those that expire first are covered by the watermark,
    /// together with every unused one that expires no later. Their owners get a fresh challenge for the asking.
    fn remember(&mut self, challenge: String, expires: UnixSeconds, now: UnixSeconds) {
        // Another clock may be behind ours: what is dropped here stays used there.
        let lapsed = self.used.values().filter(|until| **until <= now).max().copied();
        self.used_until = self.used_until.max(lapsed.unwrap_or_default());
        self.used.retain(|_, until| *until > now);
        self.used.insert(challenge, expires);
        while self.used.len() > USED_CHALLENGES {
            let Some(first) = self.used.values().min().copied() else { return };
            self.used_until = self.used_until.max(first);
            self.used.retain(|_, until| *until > first);
        }
    }

    fn add_spent(&mut self, gate: String, more: Atoms) {
        if more > Atoms(0) {
            let spent = self.spent.entry(gate).or_default();
            *spent = Atoms(spent.0.saturating_add(more.0));
        }
    }

    fn intend(&mut self, intent: Intent) -> Result<(), Denied> {
        match &intent.act {
            Act::Open => return Err(Denied::OutOfOrder),
            Act::TopUp { .. } => self.serves()?,
            Act::Settle { amount } => {
                let settleable = self.settleable().map(|v| v.amount);
                if matches!(
                    self.phase,
                    Phase::Opening | Phase::Closed { .. } | Phase::Failed | Phase::Quarantined { .. }
                ) {
                    return Err(self.serves().err().unwrap_or(Denied::OutOfOrder));
                }
                if settleable != Some(*amount) || *amount <= self.view.settled {
                    return Err(Denied::OutOfOrder);
                }
            }
            Act::Close { amount, capture } => {
                if !matches!(self.phase, Phase::Closing | Phase::ForcedClosing { .. }) {
                    return Err(Denied::OutOfOrder);
                }
                let agreed = self.phase == Phase::Closing && !self.leases.is_empty();
                if agreed || *capture != self.capture() || !self.vouchers.iter().any(|v| v.amount == *amount) {
                    return Err(Denied::OutOfOrder);
                }
                if amount < capture {
                    return Err(Denied::OutOfOrder);
                }
            }
        }
        let place = if intent.act.is_payers() { &mut self.payers_tx } else { &mut self.our_tx };
        match place {
            Some(other) if *other == intent => {}
            Some(_) => return Err(Denied::Busy),
            None => *place = Some(intent),
        }
        Ok(())
    }

    fn take_intent(&mut self, tx: &str) -> Result<Act, Denied> {
        for place in [&mut self.payers_tx, &mut self.our_tx] {
            if place.as_ref().is_some_and(|intent| intent.tx == tx)
                && let Some(intent) = place.take()
            {
                return Ok(intent.act);
            }
        }
        Err(Denied::OutOfOrder)
    }

    fn landed(&mut self, tx: &str, mined: Option<String>, view: View, now: UnixSeconds) -> Result<(), Denied> {
        match self.take_intent(tx)? {
            Act::Open if self.phase == Phase::Opening => {
                self.phase = Phase::Open;
                self.settled_at = now;
                self.look(view, now);
            }
            Act::Open | Act::TopUp { .. } => {
                self.look(view, now);
                self.touched_at = now;
            }
            Act::Settle { amount } => {
                // It is paid out, even if the channel is gone since.
                self.view.settled = self.view.settled.max(amount);
                self.look(view, now);
                self.settled_at = now;
            }
            Act::Close { capture, .. } => {
                self.view = View { settled: self.view.settled.max(capture), ..self.view };
                self.phase = Phase::Closed { tx: Some(mined.unwrap_or_else(|| tx.to_owned())) };
            }
        }
        Ok(())
    }

    /// Takes the chain's word, unless a later one is known. Deposit and request to close are replaced, what was paid out only grows.
    fn look(&mut self, view: View, now: UnixSeconds) {
        if view.block < self.view.block || matches!(self.phase, Phase::Opening | Phase::Closed { .. } | Phase::Failed) {
            return;
        }
        if view.is_gone() {
            // The slot is deleted. Whoever closed it, no voucher is worth anything any more.
            self.view = View { block: view.block, close_requested_at: None, ..self.view };
            // What became of a close of ours says who closed it, and for how much: until that is known it stays as it is.
            if !self.closes() {
                self.our_tx = None;
                self.phase = Phase::Closed { tx: None };
            }
            return;
        }
        let settled = view.settled.max(self.view.settled);
        self.view = View { settled, ..view };
        let spent = self.spent();
        if settled > spent {
            self.base = Atoms(self.base.0.saturating_add(settled.0 - spent.0));
        }
        if let Some(why) = self.contradiction() {
            self.phase = Phase::Quarantined { why };
            return;
        }
        match (&self.phase, view.close_requested_at) {
            (Phase::Open | Phase::Closing, Some(at)) => {
                self.phase = Phase::ForcedClosing { deadline: at.plus(GRACE_SECONDS) };
            }
            (Phase::ForcedClosing { .. }, None) => {
                self.phase = Phase::Open;
                self.touched_at = now;
            }
            _ => {}
        }
    }

    /// What the record says against the chain's word.
    fn contradiction(&self) -> Option<String> {
        let signed = self.highest().filter(|v| v.amount > self.view.deposit)?.amount;
        Some(format!("a voucher of {signed} stands against a deposit of {}", self.view.deposit))
    }

    /// Drops vouchers that are of no use any more: below the settleable one, and more than a handful above it.
    fn prune(&mut self) {
        let spent = self.spent();
        let below = self.vouchers.iter().filter(|v| v.amount <= spent).count();
        self.vouchers.drain(..below.saturating_sub(1));
        let first_above = usize::from(below > 0);
        while self.vouchers.len() > first_above + PENDING_VOUCHERS {
            self.vouchers.remove(first_above);
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
pub mod sample;
#[cfg(test)]
mod tests;
