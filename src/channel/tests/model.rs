//! A small world in every order there is: two streams, three vouchers, a gate that dies, a close, a top-up and a settlement, whose
//! transactions are mined, lost, or not heard of for as long as you like; and, with one stream, requests to close past the gate.
//! Breadth-first over what the record says and where everybody stands; every state keeps the invariants of `invariants.rs` (I1 is its
//! `i1_…`), and from every state there is a way to rest.
//!
//! Whoever changes the record reads it, works out what follows and swaps; a swap that lost the race changes nothing and is begun anew.
//! So a change is one step here. What cannot be left out is the answer that is lost after the swap: then the same change comes
//! again, under its name.

use super::super::sample::{DEPOSIT, START, intent, lease, opening, view, voucher};
use super::invariants::follows;
use super::*;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash as _, Hasher};
use std::rc::Rc;

const WINDOW: u128 = 10;
/// What is signed for at the opening.
const FIRST: u128 = 15;
/// What the vouchers say that come in any order; the last stands above the deposit until it is topped up.
const VOUCHERS: [u128; 3] = [25, 40, LOCKED + 5];
const LOCKED: u128 = 45;
const MORE: u128 = 20;
const GATES: [&str; 2] = ["a", "b"];

/// How far a stream is. Its gate may let out bytes once it is `Marked`, up to its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Hash)]
enum At {
    Idle,
    Bought,
    Marked,
    Extended,
    Ended,
}

/// What became of a transaction. Nobody is told before it is `Mined` or `Never`, and perhaps not then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Tx {
    No,
    Sent,
    Mined,
    Never,
    Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Crash {
    No,
    /// Its streams are gone, its leases are not.
    Dead,
    Recovered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OnChain {
    block: u64,
    deposit: u128,
    settled: u128,
    closed: bool,
    /// Its payer has asked to close.
    requested: bool,
    /// He asked, and topped up since.
    taken_back: bool,
}

impl OnChain {
    fn view(self) -> View {
        if self.closed {
            return view(self.block, 0, 0);
        }
        View { close_requested_at: self.requested.then_some(START), ..view(self.block, self.deposit, self.settled) }
    }
}

/// Everything beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Around {
    streams: [At; 2],
    /// One bit per voucher that was answered.
    shown: u8,
    /// The most that the payer heard is accepted.
    confirmed: u128,
    /// What is on receipts.
    receipts: u128,
    crash: Crash,
    asked_to_close: bool,
    /// How often the payer may still ask the chain.
    requests: u8,
    top_up: Tx,
    settle: Tx,
    close: Tx,
    /// Closing transactions so far: the first may be lost, the second is not.
    closes: u8,
    /// Answers that may still be lost.
    lost: u8,
    chain: OnChain,
}

#[derive(Clone, Debug)]
struct World {
    record: Rc<Channel>,
    around: Around,
}

/// Names of changes: numbers, so that a set of them is a word.
mod name {
    pub const STREAM: u64 = 8;
    pub const BUY: u64 = 0;
    pub const MARK: u64 = 1;
    pub const EXTEND: u64 = 2;
    pub const SPEND: u64 = 3;
    pub const VOUCHER: u64 = 16;
    pub const ORPHAN: u64 = 20;
    pub const CLOSE: u64 = 21;
    pub const TOP_UP: u64 = 22;
    pub const SETTLE: u64 = 24;
    pub const CLOSING: u64 = 26;
    pub const LOOK: u64 = 32;
}

/// One word of many: the standard hasher would be a third of the whole walk where nothing is optimized.
#[derive(Clone, Default)]
struct Mixed(u64);

impl Mixed {
    fn mix(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }
    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }
    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }
    fn write_u128(&mut self, word: u128) {
        // Amounts of this world are small.
        self.mix(u64::try_from(word).unwrap());
    }
    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

impl World {
    /// `lost` answers may be lost; without `moves`, nobody tops up or settles.
    fn new(lost: u8, moves: bool) -> Self {
        assert!(VOUCHERS[2] > LOCKED && VOUCHERS[2] <= LOCKED + MORE && LOCKED + MORE < DEPOSIT);
        let landed = Op::Landed { tx: "open".to_owned(), mined: None, view: view(1, LOCKED, 0) };
        let mut record = opening("0xc", FIRST);
        record.view.deposit = Atoms(LOCKED);
        let (record, _) = record.apply("63", landed, START).unwrap();
        let around = Around {
            streams: [At::Idle; 2],
            shown: 0,
            confirmed: FIRST,
            receipts: 0,
            crash: Crash::No,
            asked_to_close: false,
            requests: 0,
            top_up: if moves { Tx::No } else { Tx::Told },
            settle: if moves { Tx::No } else { Tx::Told },
            close: Tx::No,
            closes: 0,
            lost,
            chain: OnChain {
                block: 1,
                deposit: LOCKED,
                settled: 0,
                closed: false,
                requested: false,
                taken_back: false,
            },
        };
        Self { record: Rc::new(record), around }
    }

    /// One stream, a gate that lives, and a payer who may ask the chain to close, twice: his top-up takes back what he asked before
    /// it landed.
    fn left_by_force() -> Self {
        let mut world = Self::new(0, true);
        (world.around.streams[1], world.around.crash, world.around.requests) = (At::Ended, Crash::Recovered, 2);
        world
    }

    /// All of it as one number. The revision is left out: how often something changed is in the names.
    fn key(&self) -> u64 {
        let c = &self.record;
        let names = c.recent.iter().fold(0u64, |set, name| set | 1 << name.parse::<u64>().unwrap());
        let mut all = Mixed::default();
        (c.phase.label(), c.view.block, c.view.deposit.0, c.view.settled.0, c.base.0, names).hash(&mut all);
        c.view.close_requested_at.is_some().hash(&mut all);
        // How many there are comes first, so that two lists are never one.
        c.vouchers.len().hash(&mut all);
        c.vouchers.iter().for_each(|v| v.amount.0.hash(&mut all));
        c.spent.len().hash(&mut all);
        c.spent.iter().for_each(|(gate, spent)| (gate, spent.0).hash(&mut all));
        c.leases.len().hash(&mut all);
        c.leases.iter().for_each(|(id, l)| (id, l.cap.0, l.used.map(|u| u.0), l.window.0).hash(&mut all));
        c.used.len().hash(&mut all);
        c.used.keys().for_each(|id| id.hash(&mut all));
        [&c.payers_tx, &c.our_tx].map(|tx| tx.as_ref().map(|i| &i.tx)).hash(&mut all);
        self.around.hash(&mut all);
        all.finish()
    }

    /// One change of the record, checked; `None` when it is denied.
    fn change(&self, name: u64, op: &Op) -> Option<(Rc<Channel>, Effect)> {
        let (before, name) = (&*self.record, name.to_string());
        let (after, effect) = before.apply(&name, op.clone(), START).ok()?;
        let why = || format!("{op:?} on {self:?}");
        assert!(follows(&before.phase, &after.phase), "I1: {}", why());
        assert!(after.accepted() >= before.accepted() && after.spent() >= before.spent(), "I1: {}", why());
        assert!(after.view.settled >= before.view.settled && after.capture() >= before.capture(), "I1: {}", why());
        assert!(after.spent().0 + after.leased().0 <= after.accepted().0, "I2: {}", why());
        assert!(after.highest().is_none_or(|v| v.amount <= after.view.deposit), "I3: {}", why());
        for (id, held) in &after.leases {
            let had = before.leases.get(id);
            if held.cap.0 > had.map_or(0, |l| l.cap.0) {
                assert_eq!(before.serves(), Ok(()), "I4: {}", why());
            }
            assert!(had.is_none_or(|had| had.purchase == held.purchase && had.gate == held.gate), "I11: {}", why());
        }
        if let Some(Intent { act: Act::Settle { amount }, .. }) = &after.our_tx {
            assert!(*amount <= after.spent(), "I6: {}", why());
        }
        if let Some(Intent { act: Act::Close { amount, capture }, .. }) = &after.our_tx {
            assert!(capture <= amount && *capture == after.spent().max(after.view.settled), "I6: {}", why());
        }
        if effect == Effect::Leased {
            let Op::Buy { challenge, .. } = op else { panic!("{}", why()) };
            assert!(!before.used.contains_key(challenge), "I7: {}", why());
        }
        assert!(after.accepted().0 >= self.around.confirmed, "I9: {}", why());
        assert!(!matches!(after.phase, Phase::Quarantined { .. } | Phase::Failed), "I12: {}", why());
        Some((Rc::new(after), effect))
    }

    /// What holds wherever everybody stands.
    fn check(&self) {
        let (c, a) = (&self.record, &self.around);
        // A stream whose answer was lost is charged, and does not know it yet.
        let said: u128 = c.spent().0;
        assert_eq!(said, a.receipts, "I5: every atom is on a receipt: {self:?}");
        assert!(a.chain.settled <= c.spent().0, "I6: the chain paid out what was not used: {self:?}");
        assert!(c.view.settled.0 <= a.chain.settled, "I6: more is believed than was paid: {self:?}");
        for (id, held) in &c.leases {
            let at = a.streams[usize::from(id == "1")];
            let dead = id == "0" && a.crash == Crash::Dead;
            assert!(dead || at != At::Ended, "a lease of nobody: {self:?}");
            let policy = held.orphaned(OrphanPolicy::Charge);
            assert!(held.used.is_none() || held.cap.0 <= policy.0 + held.window.0, "I5: we lose a window: {self:?}");
            assert!(policy.0 <= held.used.map_or(0, |u| u.0) + held.window.0, "I5: the payer loses a window: {self:?}");
        }
        if a.chain.closed && a.close == Tx::Told {
            assert_eq!(a.chain.settled, c.spent().0, "paid out is what was used: {self:?}");
            assert!(matches!(c.phase, Phase::Closed { .. }) && c.leases.is_empty(), "{self:?}");
        }
    }

    /// Nobody has anything left to do.
    fn rests(&self) -> bool {
        let a = &self.around;
        let quiet = |tx| matches!(tx, Tx::No | Tx::Told);
        a.streams == [At::Ended; 2]
            && a.crash != Crash::Dead
            && self.record.leases.is_empty()
            && self.record.payers_tx.is_none()
            && self.record.our_tx.is_none()
            && quiet(a.top_up)
            && quiet(a.settle)
            && match self.record.phase {
                Phase::Closed { .. } => true,
                // A top-up opens again what was closing for both.
                Phase::Open => !a.chain.requested && (!a.asked_to_close || a.chain.taken_back),
                _ => false,
            }
    }

    fn next(&self) -> Vec<World> {
        let mut all = Vec::with_capacity(16);
        for who in 0..2 {
            self.stream(who, &mut all);
        }
        self.payer(&mut all);
        self.crash(&mut all);
        self.seller(&mut all);
        self.chain(&mut all);
        all
    }

    /// The record changed; its owner goes on, or does not hear of it.
    fn done(&self, all: &mut Vec<World>, record: &Rc<Channel>, on: impl FnOnce(&mut Around)) {
        let mut around = self.around;
        on(&mut around);
        if self.around.lost > 0 && record.revision > self.record.revision {
            // Receipts come with the swap, whoever hears of it.
            let deaf = Around { lost: self.around.lost - 1, receipts: around.receipts, ..self.around };
            all.push(World { record: record.clone(), around: deaf });
        }
        all.push(World { record: record.clone(), around });
    }

    fn beside(&self, all: &mut Vec<World>, on: impl FnOnce(&mut Around)) {
        let mut around = self.around;
        on(&mut around);
        all.push(World { record: self.record.clone(), around });
    }

    fn stream(&self, who: usize, all: &mut Vec<World>) {
        let (at, id) = (self.around.streams[who], who.to_string());
        let name = |step| name::STREAM * who as u64 + step;
        let go = |all: &mut Vec<World>, step, op: Op, to: At| {
            if let Some((record, effect)) = self.change(name(step), &op)
                && !matches!(effect, Effect::Short { .. })
            {
                // What is not new was done and not heard of: its receipt is written.
                let charge = match op {
                    Op::Spend { charge, .. } if record.revision > self.record.revision => charge.0,
                    _ => 0,
                };
                self.done(all, &record, |a| {
                    a.streams[who] = to;
                    a.receipts += charge;
                });
            }
        };
        let spend = |charge| Op::Spend { lease: id.clone(), charge: Atoms(charge) };
        match at {
            At::Idle => {
                let op = Op::Buy {
                    voucher: self.record.highest().unwrap().clone(),
                    min_delta: Atoms(0),
                    challenge: format!("c{who}"),
                    expires: START.plus(1_000),
                    terms: Box::new(lease(&id, GATES[who], WINDOW, WINDOW)),
                    lease: id.clone(),
                };
                go(all, name::BUY, op, At::Bought);
                if !self.record.leases.contains_key(&id) {
                    // Not covered, or not served: the client goes away.
                    self.beside(all, |a| a.streams[who] = At::Ended);
                }
            }
            At::Bought => {
                let op = Op::Mark { lease: id.clone(), used: Atoms(1), window: Atoms(WINDOW) };
                go(all, name::MARK, op, At::Marked);
                go(all, name::SPEND, spend(0), At::Ended);
            }
            At::Marked => {
                let op = Op::Extend { lease: id.clone(), by: Atoms(WINDOW), used: Some(Atoms(WINDOW / 2)) };
                go(all, name::EXTEND, op, At::Extended);
                for charge in [1, WINDOW] {
                    go(all, name::SPEND, spend(charge), At::Ended);
                }
            }
            At::Extended => {
                for charge in [WINDOW / 2, 2 * WINDOW] {
                    go(all, name::SPEND, spend(charge), At::Ended);
                }
            }
            At::Ended => {}
        }
    }

    fn payer(&self, all: &mut Vec<World>) {
        for (n, amount) in VOUCHERS.into_iter().enumerate() {
            if self.around.shown & 1 << n != 0 {
                continue;
            }
            let op = Op::Accept { voucher: voucher(amount), min_delta: Atoms(0) };
            match self.change(name::VOUCHER + n as u64, &op) {
                Some((record, _)) => self.done(all, &record, |a| {
                    a.shown |= 1 << n;
                    a.confirmed = a.confirmed.max(amount);
                }),
                None => self.beside(all, |a| a.shown |= 1 << n),
            }
        }
        if !self.around.asked_to_close
            && let Some((record, _)) = self.change(name::CLOSE, &Op::Close)
        {
            self.done(all, &record, |a| a.asked_to_close = true);
        }
        if self.around.top_up == Tx::No {
            let op = Op::Intend { intent: intent(Act::TopUp { additional: Atoms(MORE) }, "top-up") };
            if let Some((record, _)) = self.change(name::TOP_UP, &op) {
                self.done(all, &record, |a| a.top_up = Tx::Sent);
            }
        }
    }

    /// Gate `a` dies once, with all it knew; it recovers before it listens again.
    fn crash(&self, all: &mut Vec<World>) {
        match self.around.crash {
            Crash::No => self.beside(all, |a| (a.crash, a.streams[0]) = (Crash::Dead, At::Ended)),
            Crash::Dead => {
                let op = Op::Orphan { gate: GATES[0].to_owned(), policy: OrphanPolicy::Charge };
                let (record, effect) = self.change(name::ORPHAN, &op).expect("recovery is never denied");
                let charged: u128 = match effect {
                    Effect::Orphaned(ended) => ended.iter().map(|(_, _, charge)| charge.0).sum(),
                    _ => 0,
                };
                self.done(all, &record, |a| {
                    a.crash = Crash::Recovered;
                    a.receipts += charged;
                });
            }
            Crash::Recovered => {}
        }
    }

    fn seller(&self, all: &mut Vec<World>) {
        let (c, a) = (&self.record, &self.around);
        if a.settle == Tx::No
            && let Some(amount) = c.settleable().map(|v| v.amount)
        {
            let op = Op::Intend { intent: intent(Act::Settle { amount }, "settle") };
            if let Some((record, _)) = self.change(name::SETTLE, &op) {
                self.done(all, &record, |a| a.settle = Tx::Sent);
            }
        }
        // Where the payer asked the chain, a stream still ends in the time that is left.
        let closes = match c.phase {
            Phase::Closing => true,
            Phase::ForcedClosing { .. } => c.leases.is_empty(),
            _ => false,
        };
        if a.close == Tx::No && closes {
            let (amount, capture) = (c.highest().unwrap().amount, c.capture());
            let tx = format!("close {}", a.closes);
            let op = Op::Intend { intent: intent(Act::Close { amount, capture }, &tx) };
            if let Some((record, _)) = self.change(name::CLOSING + 2 * u64::from(a.closes), &op) {
                self.done(all, &record, |a| a.close = Tx::Sent);
            }
        }
        for (tx, name, hash) in [
            (a.top_up, name::TOP_UP, "top-up".to_owned()),
            (a.settle, name::SETTLE, "settle".to_owned()),
            (a.close, name::CLOSING + 2 * u64::from(a.closes), format!("close {}", a.closes)),
        ] {
            let op = match tx {
                Tx::Mined => Op::Landed { tx: hash, mined: None, view: a.chain.view() },
                Tx::Never => Op::Dropped { tx: hash },
                _ => continue,
            };
            let told = |a: &mut Around| match name {
                name::TOP_UP => a.top_up = Tx::Told,
                name::SETTLE => a.settle = Tx::Told,
                _ if tx == Tx::Mined => a.close = Tx::Told,
                // It is tried once more.
                _ => (a.close, a.closes) = (Tx::No, a.closes + 1),
            };
            match self.change(name + 1, &op) {
                Some((record, _)) => self.done(all, &record, told),
                // The channel is over, and its other intents went with it.
                None => {
                    assert!(matches!(c.phase, Phase::Closed { .. }), "{op:?} on {self:?}");
                    self.beside(all, told);
                }
            }
        }
        let seen = a.chain.view();
        if seen.block > c.view.block && !matches!(c.phase, Phase::Closed { .. }) {
            let (record, _) = self.change(name::LOOK + seen.block, &Op::Look { view: seen }).expect("never denied");
            self.done(all, &record, |_| {});
        }
    }

    /// A transaction on its way is mined, and may revert, or it never will be. Requests to close come past the gate.
    fn chain(&self, all: &mut Vec<World>) {
        let a = &self.around;
        let act = |tx: &Option<Intent>| tx.as_ref().map(|intent| intent.act.clone());
        for (tx, act) in [
            (a.top_up, act(&self.record.payers_tx)),
            (a.settle, act(&self.record.our_tx)),
            (a.close, act(&self.record.our_tx)),
        ] {
            let Some(act) = act.filter(|_| tx == Tx::Sent) else { continue };
            let place = |a: &mut Around, to: Tx| match &act {
                Act::TopUp { .. } => a.top_up = to,
                Act::Settle { .. } => a.settle = to,
                _ => a.close = to,
            };
            let works = match &act {
                Act::Settle { amount } => !a.chain.closed && amount.0 > a.chain.settled,
                _ => !a.chain.closed,
            };
            if works {
                self.beside(all, |a| {
                    a.chain.block += 1;
                    match &act {
                        Act::TopUp { additional } => {
                            a.chain.deposit += additional.0;
                            a.chain.taken_back |= a.chain.requested;
                            a.chain.requested = false;
                        }
                        Act::Settle { amount } => a.chain.settled = amount.0,
                        Act::Close { capture, .. } => (a.chain.settled, a.chain.closed) = (capture.0, true),
                        Act::Open => panic!("it is open"),
                    }
                    place(a, Tx::Mined);
                });
            }
            if a.closes == 0 || !matches!(act, Act::Close { .. }) {
                self.beside(all, |a| place(a, Tx::Never));
            }
        }
        if a.requests > 0 && !a.chain.requested && !a.chain.closed {
            self.beside(all, |a| {
                a.chain.block += 1;
                (a.requests, a.chain.requested) = (a.requests - 1, true);
            });
        }
    }
}

/// Every state there is from here, with the ways between them; returns how many.
fn explore(first: World) -> usize {
    let mut number: HashMap<u64, u32, BuildHasherDefault<Mixed>> = HashMap::default();
    let (mut ways, mut rests) = (Vec::<(u32, u32)>::new(), Vec::new());
    number.insert(first.key(), 0);
    let mut queue = VecDeque::from([(0, first)]);
    while let Some((at, world)) = queue.pop_front() {
        world.check();
        if world.rests() {
            rests.push(at);
        }
        for next in world.next() {
            let fresh = u32::try_from(number.len()).unwrap();
            let to = *number.entry(next.key()).or_insert(fresh);
            ways.push((at, to));
            if to == fresh {
                queue.push_back((fresh, next));
            }
        }
    }
    // Backwards from where everybody rests: whatever happened, it can come to that.
    let mut back = vec![Vec::new(); number.len()];
    for (from, to) in ways {
        back[to as usize].push(from);
    }
    let mut ends = vec![false; number.len()];
    let mut queue = rests;
    assert!(!queue.is_empty());
    while let Some(at) = queue.pop() {
        if !std::mem::replace(&mut ends[at as usize], true) {
            queue.extend(&back[at as usize]);
        }
    }
    let stuck = ends.iter().filter(|ends| !**ends).count();
    assert_eq!(stuck, 0, "of {} states, so many never come to rest", ends.len());
    ends.len()
}

#[test]
fn in_every_order_there_is_the_rules_hold_and_everybody_can_come_to_rest() {
    let states = explore(World::new(0, true));
    assert!(states > 500_000, "{states} states: the world was not walked through");
}

#[test]
fn an_answer_that_is_lost_anywhere_changes_nothing_of_that() {
    let states = explore(World::new(1, false));
    assert!(states > 100_000, "{states} states: the world was not walked through");
}

#[test]
fn a_request_to_close_past_the_gate_and_the_top_up_that_takes_it_back_change_nothing_of_that_either() {
    let states = explore(World::left_by_force());
    assert!(states > 250_000, "{states} states: the world was not walked through");
}
