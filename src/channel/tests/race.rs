//! Several who race for one record: each reads it, works out what follows, and swaps. A store may lose the answer to a swap, written
//! or not. Outside stand a payer who knows what he signed and clients who know what they got.

use super::super::sample::{self, lease, open, voucher};
use super::*;
use std::collections::BTreeSet;

const GATES: [&str; 2] = ["a", "b"];
const WINDOW: u128 = 10;

/// Who races: one change at a time, by the name it keeps until its outcome is known.
#[derive(Clone, Debug)]
struct Actor {
    gate: usize,
    read: Option<Channel>,
    doing: Option<(String, Op)>,
    lease: Option<String>,
    delivered: u128,
    started: bool,
}

struct World {
    seed: u64,
    dice: Dice,
    record: Channel,
    actors: Vec<Actor>,
    names: u64,
    /// What the payer signed, and the most that was confirmed to him.
    signed: u128,
    confirmed: u128,
    delivered: u128,
    charged: u128,
    /// How much crashes can have hidden from the payer, and from us.
    hidden: (u128, u128),
    lost: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let actor = |gate| Actor { gate, read: None, doing: None, lease: None, delivered: 0, started: false };
        let actors = (0..2 + dice.below(4)).map(|n| actor(usize::try_from(n % 2).unwrap())).collect();
        let record = open("0xc", 50);
        let (names, lost, hidden) = (0, 0, (0, 0));
        Self { seed, dice, record, actors, names, signed: 50, confirmed: 50, delivered: 0, charged: 0, hidden, lost }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.dice.below(60) {
                0 => self.crash(),
                _ => {
                    let who = usize::try_from(self.dice.below(self.actors.len() as u128)).unwrap();
                    let mut actor = self.actors[who].clone();
                    self.act(&mut actor);
                    self.actors[who] = actor;
                }
            }
            let c = &self.record;
            assert!(c.spent().0 + c.leased().0 <= c.accepted().0, "seed {}", self.seed);
            assert!(c.accepted().0 <= self.signed, "seed {}: nobody signed that", self.seed);
        }
    }

    fn act(&mut self, actor: &mut Actor) {
        if actor.doing.is_none() {
            self.names += 1;
            let name = format!("n{}", self.names);
            let op = self.op(actor);
            actor.doing = Some((name, op));
            return;
        }
        let Some(seen) = actor.read.take() else {
            actor.read = Some(self.record.clone());
            return;
        };
        let Some((name, op)) = actor.doing.clone() else { return };
        let Ok((next, effect)) = seen.apply(&name, op.clone(), sample::START) else {
            // Denied on what was read: that was the record at that time.
            actor.doing = None;
            if matches!(op, Op::Spend { .. }) {
                self.end(actor);
            }
            return;
        };
        let swaps = next.revision == seen.revision || seen.revision == self.record.revision;
        let news = next.revision > seen.revision;
        // The store forgets to write, or to answer.
        let (forgets, mute) = (news && self.dice.one_in(12), news && self.dice.one_in(12));
        self.lost += u64::from(forgets || mute);
        if swaps && !forgets && news {
            self.record = next.clone();
            if let Op::Spend { charge, .. } = &op {
                self.charged += charge.0;
            }
        }
        if !swaps || forgets || mute {
            return;
        }
        actor.doing = None;
        match op {
            Op::Accept { voucher, .. } => self.confirmed = self.confirmed.max(voucher.amount.0),
            Op::Buy { voucher, lease, .. } => {
                self.confirmed = self.confirmed.max(voucher.amount.0);
                // A second try finds it done: the lease is there.
                if effect == Effect::Leased || next.leases.contains_key(&lease) {
                    (actor.lease, actor.delivered, actor.started) = (Some(lease), 0, false);
                }
            }
            Op::Mark { .. } | Op::Extend { .. } => actor.started = true,
            Op::Spend { .. } => self.end(actor),
            _ => {}
        }
        // Bytes leave once their window is durable.
        if let Some(held) = actor.lease.as_ref().and_then(|id| next.leases.get(id)) {
            if actor.started {
                let left = held.cap.0 - actor.delivered;
                actor.delivered += self.dice.below(left + 1);
            } else {
                actor.delivered = actor.delivered.max(1.min(held.cap.0));
            }
        }
    }

    fn end(&mut self, actor: &mut Actor) {
        self.delivered += actor.delivered;
        (actor.lease, actor.delivered, actor.started) = (None, 0, false);
    }

    fn op(&mut self, actor: &Actor) -> Op {
        if let Some(lease) = actor.lease.clone() {
            let used = Atoms(actor.delivered);
            return match self.dice.below(4) {
                0 => Op::Spend { lease, charge: used },
                // The next window is leased when half of one is left.
                _ if !actor.started || self.left(&lease, used) * 2 > WINDOW => {
                    Op::Mark { lease, used, window: Atoms(WINDOW) }
                }
                _ => Op::Extend { lease, by: Atoms(WINDOW), used: Some(used) },
            };
        }
        if self.dice.one_in(40) {
            return Op::Close;
        }
        if self.dice.one_in(2) && self.signed < sample::DEPOSIT {
            self.signed = (self.signed + 1 + self.dice.below(30)).min(sample::DEPOSIT);
        }
        let voucher = voucher(self.signed);
        if self.dice.one_in(4) {
            return Op::Accept { voucher, min_delta: Atoms(0) };
        }
        let name = format!("l{}", self.names);
        Op::Buy {
            voucher,
            min_delta: Atoms(0),
            challenge: format!("c{}", self.names),
            expires: sample::START.plus(100 + self.names),
            terms: Box::new(lease(&name, GATES[actor.gate], WINDOW, WINDOW)),
            lease: name,
        }
    }

    fn left(&self, lease: &str, used: Atoms) -> u128 {
        self.record.leases.get(lease).map_or(0, |held| held.cap.0 - used.0)
    }

    /// A gate dies with all it knew; the next one recovers before it listens.
    fn crash(&mut self) {
        let gate = usize::try_from(self.dice.below(2)).unwrap();
        for who in 0..self.actors.len() {
            if self.actors[who].gate == gate {
                let mut actor = self.actors[who].clone();
                if actor.lease.as_ref().is_some_and(|id| self.record.leases.contains_key(id)) {
                    self.hidden.1 += WINDOW;
                }
                (actor.doing, actor.read) = (None, None);
                self.end(&mut actor);
                self.actors[who] = actor;
            }
        }
        self.names += 1;
        let op = Op::Orphan { gate: GATES[gate].to_owned(), policy: OrphanPolicy::Charge };
        let (next, effect) = self.record.apply(&format!("n{}", self.names), op, sample::START).unwrap();
        self.record = next;
        if let Effect::Orphaned(ended) = effect {
            self.charged += ended.iter().map(|(_, _, charge)| charge.0).sum::<u128>();
            self.hidden.0 += WINDOW * ended.len() as u128;
        }
    }

    fn audit(&mut self) {
        // Everybody goes home: what runs is ended by its gate's end.
        self.crash();
        self.crash();
        let gates: BTreeSet<String> = self.record.leases.values().map(|l| l.gate.clone()).collect();
        for gate in gates {
            let at = GATES.iter().position(|g| *g == gate).unwrap();
            while self.record.leases.values().any(|l| l.gate == GATES[at]) {
                self.crash();
            }
        }
        for actor in self.actors.clone().iter_mut() {
            self.end(actor);
        }
        let c = &self.record;
        let seed = self.seed;
        assert!(c.accepted().0 >= self.confirmed, "seed {seed}: a confirmed voucher is missing");
        assert_eq!(c.spent().0, self.charged, "seed {seed}: receipts");
        assert!(self.delivered <= self.charged + self.hidden.1, "seed {seed}: {} delivered", self.delivered);
        assert!(self.charged <= self.delivered + self.hidden.0, "seed {seed}: {} charged", self.charged);
        assert!(self.delivered <= self.signed + self.hidden.1, "seed {seed}: more was delivered than signed");
    }
}

#[test]
fn whoever_wins_every_race_the_payer_pays_for_what_was_delivered() {
    let seeds = std::env::var("PONTAGE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    let (mut lost, mut delivered) = (0, 0);
    for seed in 0..seeds {
        let mut world = World::new(seed);
        world.run(200);
        world.audit();
        lost += world.lost;
        delivered += world.delivered;
    }
    assert!(lost > seeds && delivered > u128::from(seeds) * 20, "{lost} answers lost, {delivered} delivered");
}
