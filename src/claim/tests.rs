//! The rules of a claim over random histories: many requests, stale reads, crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;

const PAID: u128 = 100;

/// Runs `check` on 20,000 inputs, or `PONTAGE_CASES`.
fn for_all<S: Strategy>(strategy: S, check: impl Fn(S::Value)) {
    let cases = std::env::var("PONTAGE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&strategy, |input| {
        check(input);
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}

/// What a request tries; everything that does not follow from who it is.
#[derive(Clone, Copy, Debug)]
enum Try {
    Pay,
    PayUnserved,
    TakeOver,
    Die,
    Redeem {
        elsewhere: bool,
        need: u128,
    },
    GiveBack,
    Depart,
    Deliver,
    Doubt,
    Forgo,
    /// `left`: the answer is with the client already.
    Take {
        amount: u128,
        left: bool,
    },
    Settle,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Request `who` tries, on the record as it last saw it or as it is now.
    Do {
        who: u8,
        fresh: bool,
        what: Try,
    },
    Wait(u64),
    /// The process dies; recovery finds this on chain.
    Crash(Chain),
}

#[derive(Clone, Copy, Debug)]
enum Chain {
    Landed,
    Never,
    Unknown,
}

fn tries() -> impl Strategy<Value = Try> {
    prop_oneof![
        3 => Just(Try::Pay),
        1 => Just(Try::PayUnserved),
        2 => Just(Try::TakeOver),
        1 => Just(Try::Die),
        4 => (prop::bool::weighted(0.2), 0..=PAID + PAID / 4).prop_map(|(elsewhere, need)| Try::Redeem { elsewhere, need }),
        3 => Just(Try::GiveBack),
        1 => Just(Try::Depart),
        2 => Just(Try::Deliver),
        1 => Just(Try::Doubt),
        1 => Just(Try::Forgo),
        3 => (prop_oneof![Just(0), Just(PAID), 0..=PAID + 1], any::<bool>()).prop_map(|(amount, left)| Try::Take { amount, left }),
        2 => Just(Try::Settle),
    ]
}

/// A history: whether the payment is taken after the reply, and what happens.
fn histories() -> impl Strategy<Value = (bool, Vec<Step>)> {
    (any::<bool>(), steps())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..4u8, prop::bool::weighted(0.8), tries()).prop_map(|(who, fresh, what)| Step::Do { who, fresh, what }),
        1 => (0..700u64).prop_map(Step::Wait),
        1 => prop_oneof![Just(Chain::Landed), Just(Chain::Never), Just(Chain::Unknown)].prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// Four requests of one gate and a store that swaps by revision: what `apply` is used for.
struct Gate {
    record: Claim,
    seen: [Claim; 4],
    now: UnixSeconds,
    life: u32,
    /// Requests that were told to go on and have not ended.
    serving: Vec<String>,
    deliveries: u32,
}

impl Gate {
    fn new(promised: bool) -> Self {
        let mut record = sample::claim("k", PAID);
        let mut serving = Vec::new();
        if promised {
            record.standing = Standing::Promised { by: "r0".to_owned() };
            serving.push("r0".to_owned());
        }
        let seen = std::array::from_fn(|_| record.clone());
        Self { record, seen, now: UnixSeconds(1_010), life: 0, serving, deliveries: 0 }
    }

    fn name(&self, who: u8) -> String {
        // The first request of the first life made the claim.
        if (self.life, who) == (0, 0) { "r0".to_owned() } else { format!("r{}-{who}", self.life) }
    }

    /// What the store does: replaces the record only by the one that follows it.
    fn swap(&mut self, op: &Op, next: Claim) -> bool {
        if next.revision != self.record.revision + 1 {
            return false;
        }
        match op {
            Op::Pay { by, .. } | Op::Redeem { by, .. } => self.serving.push(by.clone()),
            Op::GiveBack { by } | Op::Depart { by } | Op::Forgo { by } => self.serving.retain(|s| s != by),
            Op::Deliver { by, .. } | Op::Settle { by, .. } | Op::Take { by, receipt: Some(_), .. } => {
                self.serving.retain(|s| s != by);
                self.deliveries += 1;
            }
            // Whoever was to be served finds out when it wants to deliver.
            Op::PayUnserved { .. } | Op::TakeOver { .. } | Op::Die | Op::Doubt => self.serving.clear(),
            Op::Take { receipt: None, .. } => {}
        }
        self.record = next;
        true
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(seconds) => self.now = self.now.plus(seconds),
            Step::Crash(chain) => self.crash(chain),
            Step::Do { who, fresh, what } => {
                if fresh {
                    self.seen[usize::from(who)] = self.record.clone();
                }
                let seen = self.seen[usize::from(who)].clone();
                let op = self.op(who, what, &seen);
                if let Ok(next) = seen.apply(op.clone(), self.now)
                    && self.swap(&op, next.clone())
                {
                    self.seen[usize::from(who)] = next;
                }
            }
        }
    }

    fn op(&self, who: u8, what: Try, seen: &Claim) -> Op {
        let by = self.name(who);
        match what {
            Try::Pay => Op::Pay { by, transaction: None },
            Try::PayUnserved => Op::PayUnserved { transaction: None },
            Try::TakeOver => {
                let from = match &seen.standing {
                    Standing::Claimed { by } | Standing::Taking { by, .. } => by.clone(),
                    _ => "nobody".to_owned(),
                };
                Op::TakeOver { from, by }
            }
            Try::Die => Op::Die,
            Try::Redeem { elsewhere, need } => {
                let route = if elsewhere { "/v1/elsewhere".into() } else { seen.terms.route.clone() };
                Op::Redeem { by, route, need: Atoms(need) }
            }
            Try::GiveBack => Op::GiveBack { by },
            Try::Depart => Op::Depart { by },
            Try::Deliver => Op::Deliver { by, receipt: format!("rcpt_{who}") },
            Try::Doubt => Op::Doubt,
            Try::Forgo => Op::Forgo { by },
            Try::Take { amount, left } => {
                Op::Take { by, amount: Atoms(amount), output: None, receipt: left.then(|| format!("rcpt_{who}")) }
            }
            Try::Settle => Op::Settle { by, transaction: None, receipt: format!("rcpt_{who}") },
        }
    }

    /// The process is gone with all it believed; the next one recovers before it listens.
    fn crash(&mut self, chain: Chain) {
        self.life += 1;
        self.serving.clear();
        if let Some(op) = recovery(&self.record, chain) {
            let next = self.record.apply(op.clone(), self.now).expect("recovery has an op for every open standing");
            assert!(self.swap(&op, next));
        }
        self.seen = std::array::from_fn(|_| self.record.clone());
    }
}

/// What recovery does with one claim of a dead process.
fn recovery(claim: &Claim, chain: Chain) -> Option<Op> {
    match (&claim.standing, chain) {
        (Standing::Serving { by }, _) => Some(Op::GiveBack { by: by.clone() }),
        (Standing::Promised { by }, _) => Some(Op::Forgo { by: by.clone() }),
        // Nothing was to be taken: there is nothing to ask.
        (Standing::Taking { amount: Atoms(0), .. }, _) => Some(Op::Die),
        (Standing::Claimed { .. } | Standing::Taking { .. }, Chain::Landed) => {
            Some(Op::PayUnserved { transaction: None })
        }
        (Standing::Claimed { .. } | Standing::Taking { .. }, Chain::Never) => Some(Op::Die),
        (Standing::Claimed { by } | Standing::Taking { by, .. }, Chain::Unknown) => {
            Some(Op::TakeOver { from: by.clone(), by: "recovery".to_owned() })
        }
        (
            Standing::Owed
            | Standing::Delivered { .. }
            | Standing::Dead
            | Standing::Untaken
            | Standing::Lost { .. }
            | Standing::Unproven,
            _,
        ) => None,
    }
}

fn every_op(gate: &Gate) -> Vec<Op> {
    let mut ops = Vec::new();
    for who in 0..4 {
        for what in [
            Try::Pay,
            Try::PayUnserved,
            Try::TakeOver,
            Try::Die,
            Try::Redeem { elsewhere: false, need: 0 },
            Try::GiveBack,
            Try::Depart,
            Try::Deliver,
            Try::Doubt,
            Try::Forgo,
            Try::Take { amount: 0, left: false },
            Try::Take { amount: PAID, left: true },
            Try::Settle,
        ] {
            ops.push(gate.op(who, what, &gate.record));
        }
    }
    ops
}

#[test]
fn one_request_at_a_time_is_served_and_one_delivery_is_made_whatever_happens() {
    let (redeemed, recovered) = (Cell::new(0), Cell::new(0));
    for_all(histories(), |(promised, steps)| {
        let mut gate = Gate::new(promised);
        for step in steps {
            let before = gate.record.clone();
            gate.step(step);
            assert!(gate.serving.len() <= 1, "two requests served by one payment: {:?}", gate.serving);
            assert!(gate.deliveries <= 1, "one payment, two deliveries");
            if let Standing::Serving { by } | Standing::Promised { by } = &gate.record.standing {
                assert_eq!(gate.serving, std::slice::from_ref(by), "the record names who is served");
            }
            if gate.record != before {
                assert_eq!(gate.record.revision, before.revision + 1);
                assert!(before.standing == Standing::Owed || !before.is_over(gate.now), "an end is an end");
                let was_owed = before.standing == Standing::Owed;
                redeemed.set(redeemed.get() + u32::from(was_owed));
                recovered.set(recovered.get() + u32::from(matches!(step, Step::Crash(_))));
            }
        }
    });
    assert!(redeemed.get() > 100 && recovered.get() > 100, "the histories reach what they are about");
}

#[test]
fn paid_money_is_never_forgotten_and_never_changes() {
    let delivered = Cell::new(0);
    for_all(histories(), |(promised, steps)| {
        let mut gate = Gate::new(promised);
        let first = gate.record.clone();
        let mut paid_at = None;
        for step in steps {
            gate.step(step);
            let now = &gate.record;
            let holds_money =
                matches!(now.standing, Standing::Serving { .. } | Standing::Owed | Standing::Delivered { .. });
            assert_eq!(now.paid_at.is_some(), holds_money, "{now:?}");
            assert!(paid_at.is_none() || paid_at == now.paid_at, "the payment was seen once");
            paid_at = now.paid_at;
            let collectable =
                matches!(now.standing, Standing::Claimed { .. } | Standing::Promised { .. } | Standing::Taking { .. });
            assert_eq!(now.resend.is_some(), collectable, "kept while it can be needed, and no longer");
            let Claim { revision, resend, standing, paid_at, taken, departures, .. } = now.clone();
            assert!(departures < MOST_DEPARTURES, "the last one spends it");
            assert!(taken.is_none_or(|taken| promised && taken < first.terms.amount), "never more than was agreed");
            let same = Claim { revision, resend, standing, paid_at, taken, departures, ..first.clone() };
            assert_eq!(*now, same, "what was bought stays");
            delivered.set(delivered.get() + u32::from(matches!(now.standing, Standing::Delivered { .. })));
        }
        let text = serde_json::to_string(&gate.record).unwrap();
        assert_eq!(serde_json::from_str::<Claim>(&text).unwrap(), gate.record, "what is stored is what is read");
    });
    assert!(delivered.get() > 100, "the histories reach delivery");
}

#[test]
fn a_crash_leaves_every_payer_with_a_delivery_or_a_right_to_one() {
    let owed = Cell::new(0);
    for_all((histories(), any::<bool>()), |((promised, steps), landed)| {
        let mut gate = Gate::new(promised);
        steps.into_iter().for_each(|step| gate.step(step));
        let before = gate.record.clone();
        gate.crash(if landed { Chain::Landed } else { Chain::Never });
        let claim = gate.record.clone();
        let may_redeem = Op::Redeem { by: "new".into(), route: claim.terms.route.clone(), need: before.paid_amount() };
        match (&before.standing, &claim.standing) {
            (Standing::Claimed { .. } | Standing::Taking { receipt: None, .. }, Standing::Owed) if landed => {
                assert!(claim.apply(may_redeem, gate.now.plus(REDEEM_SECONDS)).is_ok(), "15 minutes from being seen");
            }
            (Standing::Claimed { .. }, Standing::Dead) if !landed => {}
            (Standing::Promised { .. }, Standing::Untaken) => {}
            (Standing::Taking { receipt: None, amount, .. }, Standing::Untaken) => assert!(!landed || amount.0 == 0),
            (Standing::Taking { receipt: Some(had), .. }, Standing::Delivered { receipt }) if landed => {
                assert_eq!(had, receipt);
            }
            (Standing::Taking { receipt: Some(had), amount, .. }, Standing::Lost { receipt }) => {
                assert!(had == receipt && (!landed || amount.0 == 0), "who has the answer is not the poorer");
            }
            (Standing::Serving { .. } | Standing::Owed, Standing::Owed) => {
                let in_time = gate.now <= before.redeem_until().unwrap();
                assert_eq!(claim.apply(may_redeem, gate.now).is_ok(), in_time);
                owed.set(owed.get() + u32::from(in_time));
            }
            (
                Standing::Delivered { .. }
                | Standing::Dead
                | Standing::Untaken
                | Standing::Lost { .. }
                | Standing::Unproven,
                _,
            ) => assert_eq!(before, claim),
            (before, after) => panic!("{before:?} became {after:?}"),
        }
    });
    assert!(owed.get() > 100, "the histories reach what they are about");
}

#[test]
fn a_payment_whose_outcome_nobody_knew_can_still_be_served_to_its_payer() {
    let mut gate = Gate::new(false);
    gate.crash(Chain::Unknown);
    for (op, why) in [
        (Op::TakeOver { from: "recovery".into(), by: "r1".into() }, "the same credential comes again"),
        (Op::Pay { by: "r1".into(), transaction: None }, "and now the chain knows it"),
        (Op::Deliver { by: "r1".into(), receipt: "rcpt".into() }, "so it buys its reply"),
    ] {
        gate.record = gate.record.apply(op, gate.now).expect(why);
    }
}

#[test]
fn redemption_is_on_the_same_route_never_dearer_and_never_late() {
    let granted = Cell::new(0);
    let waited = prop_oneof![Just(REDEEM_SECONDS), Just(REDEEM_SECONDS + 1), 0..=2 * REDEEM_SECONDS];
    let need = prop_oneof![Just(PAID), Just(PAID + 1), 0..=2 * PAID];
    let input = (0..2_000_000_000u64, waited, need, prop::bool::weighted(0.3));
    for_all(input, |(paid_at, waited, need, elsewhere)| {
        let paid_at = UnixSeconds(paid_at);
        let owed = sample::claim("k", PAID).apply(Op::PayUnserved { transaction: None }, paid_at).unwrap();
        let late = waited > REDEEM_SECONDS;
        assert_eq!(owed.is_over(paid_at.plus(waited)), late, "over when it can no longer be redeemed, not before");
        let route = if elsewhere { "/v1/embeddings".into() } else { owed.terms.route.clone() };
        let asked = owed.apply(Op::Redeem { by: "r".into(), route, need: Atoms(need) }, paid_at.plus(waited));
        let want = match (late, elsewhere, need <= PAID) {
            (true, _, _) => Err(Denied::Spent),
            (_, true, _) => Err(Denied::OtherRoute),
            (_, _, false) => Err(Denied::Dearer { need: Atoms(need), paid: Atoms(PAID) }),
            (false, false, true) => Ok(Standing::Serving { by: "r".into() }),
        };
        assert_eq!(asked.map(|c| c.standing), want);
        granted.set(granted.get() + u32::from(want.is_ok()));
    });
    assert!(granted.get() > 100, "some are granted");
}

#[test]
fn what_is_over_stays_over_and_is_remembered_while_its_proof_could_be_shown() {
    let over = Cell::new(0);
    for_all((histories(), 0..100_000u64), |((promised, steps), later)| {
        let mut gate = Gate::new(promised);
        steps.into_iter().for_each(|step| gate.step(step));
        let claim = &gate.record;
        assert!(claim.keep_until() >= claim.collect_until.plus(86_400));
        assert!(claim.redeem_until().is_none_or(|t| claim.keep_until() >= t.plus(86_400)));
        if claim.is_over(gate.now) {
            over.set(over.get() + 1);
            assert!(claim.is_over(gate.now.plus(later)));
            for op in every_op(&gate) {
                assert!(claim.apply(op.clone(), gate.now.plus(later)).is_err(), "{op:?} changed {claim:?}");
            }
        }
    });
    assert!(over.get() > 100, "some are over");
}
