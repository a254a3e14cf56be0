//! One payment proof, one request: the record of a claim and the pure rules by which it changes.
//!
//! ```text
//!            ┌──────────────► Dead                 provably not paid: pay anew
//! Claimed ───┤
//!            └─► Serving ──► Delivered             one delivery, then nothing more
//!                  ▲  │
//!                  │  ▼
//!                  Owed                            paid, 0 bytes delivered: redeemable until `redeem_until`
//! ```
//!
//! `Claimed` is durable before any broadcast, `Serving` before the first upstream byte, `Delivered` before the first byte to
//! the client. The store replaces a record only if its revision matches; everything else is decided here
//! (`notes/security.md` §4.1, invariant I7).

use crate::clock::UnixSeconds;
use crate::ids::{Generation, PublicModel, RailId, RoutePath, TierName};
use crate::money::{Atoms, Usd};
use serde::{Deserialize, Serialize};

/// How long a paid and undelivered proof may be redeemed, counted from payment.
pub const REDEEM_SECONDS: u64 = 15 * 60;

/// Identity of a payment proof, made from decoded, typed values (never from header text), so that two spellings of one
/// proof are one key. `<rail kind>:<chain id>:<what>`, lower-case, ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClaimKey(pub String);

/// What was bought, fixed when the claim is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The rail it is paid on.
    pub rail: RailId,
    /// Route it was offered on: redemption stays on it.
    pub route: RoutePath,
    /// Model as the client knows it.
    pub model: PublicModel,
    /// Tier of the offer.
    pub tier: TierName,
    /// The rules that made the offer.
    pub generation: Generation,
    /// Amount asked and paid.
    pub amount: Atoms,
    /// The same in dollars, before rounding to atoms.
    pub price: Usd,
    /// Decimals of the asset, so that the record can be read alone.
    pub decimals: u8,
}

/// Where a claim stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Standing {
    /// Ours to collect; the outcome on chain is not known yet.
    Claimed {
        /// Who works on it: a request id, or the recovery.
        by: String,
    },
    /// Paid; a request is being served with it.
    Serving {
        /// That request.
        by: String,
    },
    /// Paid, nothing delivered.
    Owed,
    /// Paid and delivered, in whole or in part.
    Delivered {
        /// The receipt's id.
        receipt: String,
    },
    /// Provably not paid: the transaction failed or can never be mined any more.
    Dead,
}

/// The record of one claim. `schema` guards against reading what a later version wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Layout of this record; this build reads and writes [`Claim::SCHEMA`].
    pub schema: u16,
    /// Counts changes; the store swaps only against the revision that was read.
    pub revision: u64,
    /// Identity of the proof.
    pub key: ClaimKey,
    /// The challenge it answers.
    pub challenge_id: String,
    /// What was bought.
    pub terms: Terms,
    /// Reference on chain, known before broadcast: the transaction hash.
    pub reference: String,
    /// Who pays, as the proof shows it.
    pub payer: Option<String>,
    /// What the rail needs to try again after a restart, opaque to everyone else (the signed transaction). Dropped once the
    /// outcome is known.
    pub resend: Option<String>,
    /// Where it stands.
    pub standing: Standing,
    /// When the claim was made.
    pub claimed_at: UnixSeconds,
    /// After this instant the proof can no longer be collected: with no trace on chain by then, it is dead.
    pub collect_until: UnixSeconds,
    /// When the payment was seen.
    pub paid_at: Option<UnixSeconds>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The payment landed; the request `by` is served with it. From `Claimed`.
    Pay {
        /// The request.
        by: String,
    },
    /// The payment landed, but whoever worked on it is gone (recovery, or the client left). From `Claimed`.
    PayUnserved,
    /// Somebody takes over a claim with unknown outcome. From `Claimed`.
    TakeOver {
        /// Who had it.
        from: String,
        /// Who has it now.
        by: String,
    },
    /// Nothing landed and nothing can. From `Claimed`.
    Die,
    /// A request redeems what is owed. From `Owed`, before the deadline.
    Redeem {
        /// The request.
        by: String,
        /// Route it came on.
        route: RoutePath,
        /// What it costs there.
        need: Atoms,
    },
    /// 0 bytes were delivered. From `Serving` of the same request.
    GiveBack {
        /// The request.
        by: String,
    },
    /// The first byte may leave now. From `Serving` of the same request.
    Deliver {
        /// The request.
        by: String,
        /// The receipt's id.
        receipt: String,
    },
}

/// Why an op does not apply: what the claim says to the one who tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Someone else is collecting or serving.
    Running,
    /// Delivered already, or past redemption.
    Spent,
    /// Not paid, and will not be.
    Dead,
    /// Redemption on another route.
    OtherRoute,
    /// Redemption for something dearer.
    Dearer {
        /// Price of the new request.
        need: Atoms,
        /// What was paid.
        paid: Atoms,
    },
    /// The op does not fit the standing: a defect of the caller.
    OutOfOrder,
}

impl Claim {
    /// The layout this build writes.
    pub const SCHEMA: u16 = 1;

    /// Last second at which it can be redeemed, when it is paid.
    pub fn redeem_until(&self) -> Option<UnixSeconds> {
        self.paid_at.map(|t| t.plus(REDEEM_SECONDS))
    }

    /// Whether nothing can change any more, so that it may be forgotten once `keep_until` is past.
    pub fn is_over(&self, now: UnixSeconds) -> bool {
        match self.standing {
            Standing::Delivered { .. } | Standing::Dead => true,
            Standing::Owed => self.redeem_until().is_some_and(|t| now > t),
            Standing::Claimed { .. } | Standing::Serving { .. } => false,
        }
    }

    /// Until when the key must be remembered so that the proof cannot be shown again: the offer's end, the proof's own end, and
    /// a day beyond.
    pub fn keep_until(&self) -> UnixSeconds {
        let end = self.redeem_until().map_or(self.collect_until, |t| t.max(self.collect_until));
        end.plus(86_400)
    }

    /// The next record, or why there is none. Pure; the revision grows by one.
    pub fn apply(&self, op: Op, now: UnixSeconds) -> Result<Claim, Denied> {
        let mut next = self.clone();
        next.revision = self.revision.saturating_add(1);
        match (&self.standing, op) {
            (Standing::Claimed { by: had }, Op::Pay { by }) if *had == by => {
                next.paid(now);
                next.standing = Standing::Serving { by };
            }
            (Standing::Claimed { .. }, Op::PayUnserved) => {
                next.paid(now);
                next.standing = Standing::Owed;
            }
            (Standing::Claimed { by: had }, Op::TakeOver { from, by }) if *had == from => {
                next.standing = Standing::Claimed { by };
            }
            (Standing::Claimed { .. }, Op::Die) => {
                next.resend = None;
                next.standing = Standing::Dead;
            }
            (Standing::Owed, Op::Redeem { by, route, need }) => {
                if self.redeem_until().is_none_or(|t| now > t) {
                    return Err(Denied::Spent);
                }
                if route != self.terms.route {
                    return Err(Denied::OtherRoute);
                }
                if need > self.terms.amount {
                    return Err(Denied::Dearer { need, paid: self.terms.amount });
                }
                next.standing = Standing::Serving { by };
            }
            (Standing::Serving { by: had }, Op::GiveBack { by }) if *had == by => next.standing = Standing::Owed,
            (Standing::Serving { by: had }, Op::Deliver { by, receipt }) if *had == by => {
                next.standing = Standing::Delivered { receipt };
            }
            (
                Standing::Claimed { .. } | Standing::Serving { .. },
                Op::Redeem { .. } | Op::TakeOver { .. } | Op::Pay { .. },
            ) => {
                return Err(Denied::Running);
            }
            (Standing::Delivered { .. }, _) => return Err(Denied::Spent),
            (Standing::Dead, _) => return Err(Denied::Dead),
            _ => return Err(Denied::OutOfOrder),
        }
        Ok(next)
    }

    fn paid(&mut self, now: UnixSeconds) {
        self.paid_at = Some(now);
        self.resend = None;
    }
}

/// Claims for tests of this floor and those above.
#[cfg(test)]
pub mod sample {
    #![allow(missing_docs)]
    use super::*;

    /// A fresh claim of request `r0`, made at 1,000, collectable until 1,300.
    pub fn claim(key: &str, atoms: u128) -> Claim {
        Claim {
            schema: Claim::SCHEMA,
            revision: 1,
            key: ClaimKey(key.to_owned()),
            challenge_id: "challenge".to_owned(),
            terms: Terms {
                rail: "tempo/charge".into(),
                route: "/v1/chat/completions".into(),
                model: "openai/gpt-oss-120b".into(),
                tier: "standard".into(),
                generation: "0123456789abcdef".into(),
                amount: Atoms(atoms),
                price: Usd(atoms * 1_000_000_000_000),
                decimals: 6,
            },
            reference: format!("0x{key}"),
            payer: Some("0xpayer".to_owned()),
            resend: Some("0x76".to_owned()),
            standing: Standing::Claimed { by: "r0".to_owned() },
            claimed_at: UnixSeconds(1_000),
            collect_until: UnixSeconds(1_300),
            paid_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
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
        Redeem { elsewhere: bool, need: u128 },
        GiveBack,
        Deliver,
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
            2 => Just(Try::Deliver),
        ]
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
        fn new() -> Self {
            let record = sample::claim("k", PAID);
            let seen = std::array::from_fn(|_| record.clone());
            Self { record, seen, now: UnixSeconds(1_010), life: 0, serving: Vec::new(), deliveries: 0 }
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
                Op::Pay { by } | Op::Redeem { by, .. } => self.serving.push(by.clone()),
                Op::GiveBack { by } => self.serving.retain(|s| s != by),
                Op::Deliver { by, .. } => {
                    self.serving.retain(|s| s != by);
                    self.deliveries += 1;
                }
                Op::PayUnserved | Op::TakeOver { .. } | Op::Die => {}
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
                Try::Pay => Op::Pay { by },
                Try::PayUnserved => Op::PayUnserved,
                Try::TakeOver => {
                    let from = match &seen.standing {
                        Standing::Claimed { by } => by.clone(),
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
                Try::Deliver => Op::Deliver { by, receipt: format!("rcpt_{who}") },
            }
        }

        /// The process is gone with all it believed; the next one recovers before it listens (design §6).
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
            (Standing::Claimed { .. }, Chain::Landed) => Some(Op::PayUnserved),
            (Standing::Claimed { .. }, Chain::Never) => Some(Op::Die),
            (Standing::Claimed { by }, Chain::Unknown) => {
                Some(Op::TakeOver { from: by.clone(), by: "recovery".to_owned() })
            }
            (Standing::Owed | Standing::Delivered { .. } | Standing::Dead, _) => None,
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
                Try::Deliver,
            ] {
                ops.push(gate.op(who, what, &gate.record));
            }
        }
        ops
    }

    #[test]
    fn one_request_at_a_time_is_served_and_one_delivery_is_made_whatever_happens() {
        let (redeemed, recovered) = (Cell::new(0), Cell::new(0));
        for_all(steps(), |steps| {
            let mut gate = Gate::new();
            for step in steps {
                let before = gate.record.clone();
                gate.step(step);
                assert!(gate.serving.len() <= 1, "two requests served by one payment: {:?}", gate.serving);
                assert!(gate.deliveries <= 1, "one payment, two deliveries");
                if let Standing::Serving { by } = &gate.record.standing {
                    assert_eq!(gate.serving, [by.clone()], "the record names who is served");
                }
                if gate.record != before {
                    assert_eq!(gate.record.revision, before.revision + 1);
                    assert!(
                        !matches!(before.standing, Standing::Delivered { .. } | Standing::Dead),
                        "an end is an end"
                    );
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
        for_all(steps(), |steps| {
            let mut gate = Gate::new();
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
                let collectable = matches!(now.standing, Standing::Claimed { .. });
                assert_eq!(now.resend.is_some(), collectable, "kept while it can be needed, and no longer");
                let Claim { revision, resend, standing, paid_at, .. } = now.clone();
                assert_eq!(
                    *now,
                    Claim { revision, resend, standing, paid_at, ..first.clone() },
                    "what was bought stays"
                );
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
        for_all((steps(), any::<bool>()), |(steps, landed)| {
            let mut gate = Gate::new();
            steps.into_iter().for_each(|step| gate.step(step));
            let before = gate.record.clone();
            gate.crash(if landed { Chain::Landed } else { Chain::Never });
            let claim = gate.record.clone();
            let may_redeem = Op::Redeem { by: "new".into(), route: claim.terms.route.clone(), need: Atoms(PAID) };
            match (&before.standing, &claim.standing) {
                (Standing::Claimed { .. }, Standing::Owed) if landed => {
                    assert!(
                        claim.apply(may_redeem, gate.now.plus(REDEEM_SECONDS)).is_ok(),
                        "15 minutes from being seen"
                    );
                }
                (Standing::Claimed { .. }, Standing::Dead) if !landed => {}
                (Standing::Serving { .. } | Standing::Owed, Standing::Owed) => {
                    let in_time = gate.now <= before.redeem_until().unwrap();
                    assert_eq!(claim.apply(may_redeem, gate.now).is_ok(), in_time);
                    owed.set(owed.get() + u32::from(in_time));
                }
                (Standing::Delivered { .. } | Standing::Dead, _) => assert_eq!(before, claim),
                (before, after) => panic!("{before:?} became {after:?}"),
            }
        });
        assert!(owed.get() > 100, "the histories reach what they are about");
    }

    #[test]
    fn a_payment_whose_outcome_nobody_knew_can_still_be_served_to_its_payer() {
        let mut gate = Gate::new();
        gate.crash(Chain::Unknown);
        for (op, why) in [
            (Op::TakeOver { from: "recovery".into(), by: "r1".into() }, "the same credential comes again"),
            (Op::Pay { by: "r1".into() }, "and now the chain knows it"),
            (Op::Deliver { by: "r1".into(), receipt: "rcpt".into() }, "so it buys its reply"),
        ] {
            gate.record = gate.record.apply(op, gate.now).expect(why);
        }
    }

    #[test]
    fn redemption_is_on_the_same_route_never_dearer_and_never_late() {
        let granted = Cell::new(0);
        let input = (0..2_000_000_000u64, 0..=2 * REDEEM_SECONDS, 0..=2 * PAID, prop::bool::weighted(0.3));
        for_all(input, |(paid_at, waited, need, elsewhere)| {
            let paid_at = UnixSeconds(paid_at);
            let owed = sample::claim("k", PAID).apply(Op::PayUnserved, paid_at).unwrap();
            let route = if elsewhere { "/v1/embeddings".into() } else { owed.terms.route.clone() };
            let asked = owed.apply(Op::Redeem { by: "r".into(), route, need: Atoms(need) }, paid_at.plus(waited));
            let want = match (waited <= REDEEM_SECONDS, elsewhere, need <= PAID) {
                (false, _, _) => Err(Denied::Spent),
                (_, true, _) => Err(Denied::OtherRoute),
                (_, _, false) => Err(Denied::Dearer { need: Atoms(need), paid: Atoms(PAID) }),
                (true, false, true) => Ok(Standing::Serving { by: "r".into() }),
            };
            assert_eq!(asked.map(|c| c.standing), want);
            granted.set(granted.get() + u32::from(want.is_ok()));
        });
        assert!(granted.get() > 100, "some are granted");
    }

    #[test]
    fn what_is_over_stays_over_and_is_remembered_while_its_proof_could_be_shown() {
        let over = Cell::new(0);
        for_all((steps(), 0..100_000u64), |(steps, later)| {
            let mut gate = Gate::new();
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
}
