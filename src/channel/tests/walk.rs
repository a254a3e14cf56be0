//! Random histories of one channel, made so that most changes apply: what requests, payers, gates and the chain do.

use super::super::sample::{self, DEPOSIT, START};
use super::*;
use std::cell::Cell;
use std::collections::BTreeSet;

pub const GATES: [&str; 2] = ["a", "b"];

/// What the chain does in a history.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// It pays out what was asked for and what was signed.
    Honest,
    /// It says anything.
    Wild,
}

/// One change that was tried.
pub struct Step {
    pub before: Channel,
    pub name: String,
    pub op: Op,
    pub now: UnixSeconds,
    pub result: Result<(Channel, Effect), Denied>,
}

impl Step {
    /// The record after it.
    pub fn after(&self) -> &Channel {
        self.result.as_ref().map_or(&self.before, |(after, _)| after)
    }

    pub fn effect(&self) -> Option<&Effect> {
        self.result.as_ref().ok().map(|(_, effect)| effect)
    }
}

thread_local! {
    /// Changes tried and changes made by the histories of this test.
    static TRIED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The histories of a test must be about something: most of what is tried applies.
pub fn most_applied() {
    let (tried, made) = TRIED.with(Cell::get);
    assert!(made * 2 > tried, "only {made} of {tried} changes were made");
}

#[derive(Clone)]
pub struct Walk {
    pub record: Channel,
    pub now: UnixSeconds,
    pub dice: Dice,
    chain: Chain,
    /// The chain as it is; a deposit of 0 is gone.
    truth: View,
    /// As it was.
    past: Vec<View>,
    /// What left, by lease that has not ended.
    pub delivered: BTreeMap<String, u128>,
    /// So that names differ.
    count: u64,
}

impl Walk {
    pub fn new(seed: u64, chain: Chain) -> Self {
        let mut dice = Dice(seed);
        let signed = dice.below(DEPOSIT / 2);
        let opens = !dice.one_in(16);
        let record = if opens { sample::open("0xc", signed) } else { sample::opening("0xc", signed) };
        Self {
            record,
            now: START,
            dice,
            chain,
            truth: sample::view(1, DEPOSIT, 0),
            past: Vec::new(),
            delivered: BTreeMap::new(),
            count: 0,
        }
    }

    /// Goes `length` steps and shows each to `look`.
    pub fn go(&mut self, length: usize, mut look: impl FnMut(&Step)) {
        for _ in 0..length {
            look(&self.step());
        }
    }

    pub fn step(&mut self) -> Step {
        if self.dice.one_in(4) {
            self.now = self.now.plus(u64::try_from(self.dice.below(40)).unwrap());
        }
        self.deliver();
        let op = self.op();
        self.count += 1;
        let name = format!("n{}", self.count);
        self.try_one(name, op)
    }

    pub fn try_one(&mut self, name: String, op: Op) -> Step {
        let before = self.record.clone();
        let result = before.apply(&name, op.clone(), self.now);
        if let Ok((after, _)) = &result {
            self.record = after.clone();
        }
        let made = u64::from(result.is_ok());
        TRIED.with(|t| t.set((t.get().0 + 1, t.get().1 + made)));
        let step = Step { before, name, op, now: self.now, result };
        let alive: BTreeSet<&String> = step.after().leases.keys().collect();
        self.delivered.retain(|lease, _| alive.contains(lease));
        for lease in alive {
            self.delivered.entry(lease.clone()).or_default();
        }
        step
    }

    /// Bytes leave, never more than is leased, and only while the lease is in the record. The first go with what came before them.
    fn deliver(&mut self) {
        for (id, lease) in &self.record.leases {
            if lease.window > Atoms(0) && self.dice.one_in(2) {
                let was = self.delivered.get(id).copied().unwrap_or(0);
                let least = was.max(lease.cap.0.saturating_sub(lease.window.0));
                let left = lease.cap.0.saturating_sub(least);
                let now = least + self.dice.below(left + 1);
                self.delivered.insert(id.clone(), now);
            }
        }
    }

    fn voucher(&mut self) -> Voucher {
        let (accepted, deposit) = (self.record.accepted().0, self.record.view.deposit.0);
        let room = deposit.saturating_sub(accepted);
        let amount = match self.dice.below(12) {
            0 => self.dice.below(accepted + 1),
            1 => deposit + 1 + self.dice.below(9),
            2 | 3 => self.record.highest().map_or(0, |v| v.amount.0),
            _ => accepted + 1 + self.dice.below((room / 4).max(1)),
        };
        sample::voucher(amount)
    }

    fn op(&mut self) -> Op {
        let leases: Vec<String> = self.record.leases.keys().cloned().collect();
        let lease = self.dice.pick(&leases).cloned();
        let serves = self.record.serves().is_ok();
        match (self.dice.below(40), lease) {
            (0..8, _) if serves => self.buy(),
            (8..13, Some(lease)) if serves => self.extend(lease),
            (13..16, Some(lease)) if self.used(&lease) > 0 => {
                let used = Atoms(self.used(&lease));
                let window = self.record.leases[&lease].window;
                Op::Mark { lease, used, window }
            }
            (16..22, Some(lease)) => {
                let mut charge = Atoms(self.used(&lease));
                if self.dice.one_in(16) {
                    charge = Atoms(self.record.leases.get(&lease).unwrap().cap.0 + 1);
                }
                Op::Spend { lease, charge }
            }
            (22 | 37, Some(_)) => {
                let policy = if self.dice.one_in(3) { OrphanPolicy::Refund } else { OrphanPolicy::Charge };
                Op::Orphan { gate: GATES[usize::from(self.dice.one_in(2))].to_owned(), policy }
            }
            (23, _) if self.dice.one_in(3) => Op::Close,
            (25, _) if !serves || self.dice.one_in(12) => Op::Release,
            (26..33, _) => self.intend_or_end(),
            (33..37, _) => self.look(),
            _ if serves => Op::Accept { voucher: self.voucher(), min_delta: self.min_delta() },
            _ => self.look(),
        }
    }

    fn min_delta(&mut self) -> Atoms {
        Atoms(self.dice.below(3))
    }

    fn used(&self, lease: &str) -> u128 {
        self.delivered.get(lease).copied().unwrap_or(0)
    }

    fn buy(&mut self) -> Op {
        let voucher = self.voucher();
        let free =
            voucher.amount.0.max(self.record.accepted().0).saturating_sub(self.record.required(Atoms(0), Atoms(0)).0);
        let cap = if self.dice.one_in(6) { free + 1 + self.dice.below(5) } else { self.dice.below(free.min(120) + 1) };
        // All is used before it is said, or it streams.
        let window = if self.dice.one_in(4) { 0 } else { cap.min(1 + self.dice.below(20)) };
        let gate = GATES[usize::from(self.dice.one_in(2))];
        let name = format!("l{}", self.count);
        let number = self.dice.below(20);
        Op::Buy {
            voucher,
            min_delta: self.min_delta(),
            challenge: format!("c{number}"),
            expires: START.plus(600 + u64::try_from(number).unwrap() * 5),
            terms: Box::new(sample::lease(&name, gate, cap, window)),
            lease: name,
        }
    }

    /// A stream asks for more when half of what it gets is left at most.
    fn extend(&mut self, lease: String) -> Op {
        let (used, cap) = (self.used(&lease), self.record.leases.get(&lease).unwrap().cap.0);
        let most = self.record.available().0 + u128::from(self.dice.one_in(6));
        let least = (cap - used) * 2;
        let by = least.max(1 + self.dice.below(most.min(40)));
        Op::Extend { lease, by: Atoms(by), used: (used > 0).then_some(Atoms(used)) }
    }

    fn intend_or_end(&mut self) -> Op {
        let open: Vec<Intent> = [&self.record.payers_tx, &self.record.our_tx].into_iter().flatten().cloned().collect();
        if let Some(intent) = self.dice.pick(&open).cloned() {
            return self.outcome(intent);
        }
        let wrong = u128::from(self.dice.one_in(8));
        let act = match &self.record.phase {
            Phase::Closing | Phase::ForcedClosing { .. } => Act::Close {
                amount: self.record.highest().map_or(Atoms(0), |v| v.amount),
                capture: Atoms(self.record.capture().0 + wrong),
            },
            _ => match self.record.settleable().map(|v| v.amount) {
                Some(amount) if self.dice.one_in(2) => Act::Settle { amount: Atoms(amount.0 + wrong) },
                _ => Act::TopUp { additional: Atoms(1 + self.dice.below(300)) },
            },
        };
        Op::Intend { intent: sample::intent(act, &format!("tx{}", self.count)) }
    }

    /// What became of a transaction. The chain does it first.
    fn outcome(&mut self, intent: Intent) -> Op {
        if self.truth.is_gone() || self.dice.one_in(5) {
            return Op::Dropped { tx: intent.tx };
        }
        self.mine();
        match intent.act {
            Act::Open => {}
            Act::TopUp { additional } => {
                self.truth.deposit.0 += additional.0;
                self.truth.close_requested_at = None;
            }
            Act::Settle { amount } => self.truth.settled = self.truth.settled.max(amount),
            Act::Close { .. } => self.truth = sample::view(self.truth.block, 0, 0),
        }
        let mined = self.dice.one_in(2).then(|| format!("{}-mined", intent.tx));
        let mut view = self.truth;
        if self.dice.one_in(8) {
            // Closed by somebody in the meantime.
            self.mine();
            self.truth = sample::view(self.truth.block, 0, 0);
            view = self.truth;
        }
        Op::Landed { tx: intent.tx, mined, view }
    }

    fn mine(&mut self) {
        self.past.push(self.truth);
        self.truth.block += 1 + u64::try_from(self.dice.below(3)).unwrap();
    }

    fn look(&mut self) -> Op {
        if self.chain == Chain::Wild && self.dice.one_in(2) {
            let deposit = self.dice.below(2 * DEPOSIT);
            let mut view = sample::view(self.truth.block + 1, deposit, self.dice.below(deposit + 1));
            view.close_requested_at = self.dice.one_in(2).then_some(self.now);
            self.truth = view;
            return Op::Look { view };
        }
        if self.dice.one_in(4)
            && let Some(view) = self.dice.pick(&self.past).copied()
        {
            return Op::Look { view };
        }
        self.mine();
        match self.dice.below(12) {
            _ if self.truth.is_gone() => {}
            0 | 1 if self.record.phase != Phase::Opening => self.truth.close_requested_at = Some(self.now),
            2..6 => self.truth.close_requested_at = None,
            6 if self.truth.close_requested_at.is_some() => self.truth = sample::view(self.truth.block, 0, 0),
            _ => {}
        }
        Op::Look { view: self.truth }
    }
}
