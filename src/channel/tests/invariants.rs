//! The invariants of a channel, I1 to I12: the names of the tests say them.

use super::super::sample::{self, DEPOSIT, START};
use super::walk::{Chain, GATES, Step, Walk, most_applied};
use super::*;
use std::cell::Cell;
use std::collections::BTreeSet;

const LONGEST: usize = 24;

fn each_step(chain: Chain, check: impl Fn(&Step)) {
    for_all(LONGEST, |seed, length| {
        let mut walk = Walk::new(seed, chain);
        walk.go(length, |step| check(step));
    });
    most_applied();
}

fn over(phase: &Phase) -> bool {
    matches!(phase, Phase::Closed { .. } | Phase::Failed)
}

/// Which phases follow a phase. What is quarantined goes on when a person has looked, and what our own transaction closed is closed.
pub(super) fn follows(before: &Phase, after: &Phase) -> bool {
    use Phase::{Closed, Closing, Failed, ForcedClosing, Open, Opening, Quarantined};
    match (before, after) {
        (_, Quarantined { .. }) => true,
        (Opening, Open | ForcedClosing { .. } | Closed { .. } | Failed) => true,
        (Open | Closing, Closing | ForcedClosing { .. } | Closed { .. }) => true,
        (ForcedClosing { .. }, Open | Closed { .. }) => true,
        (Quarantined { .. }, Open | ForcedClosing { .. } | Closed { .. } | Failed) => true,
        _ => before == after,
    }
}

#[test]
fn i1_amounts_only_grow_and_phases_only_move_forward() {
    each_step(Chain::Wild, |step| {
        let (before, after) = (&step.before, step.after());
        assert!(after.accepted() >= before.accepted(), "accepted");
        assert!(after.highest().map(|v| v.amount) >= before.highest().map(|v| v.amount), "the highest voucher");
        assert!(after.spent() >= before.spent() && after.capture() >= before.capture(), "spent");
        for (gate, spent) in &before.spent {
            assert!(after.spent.get(gate) >= Some(spent), "spent by {gate}");
        }
        assert!(after.view.settled >= before.view.settled && after.view.block >= before.view.block, "settled");
        assert!(after.used_until >= before.used_until, "the watermark");
        assert_eq!(after.revision, before.revision + u64::from(after != before), "a change is one revision");
        assert!(follows(&before.phase, &after.phase), "{:?} -> {:?}", before.phase, after.phase);
        if let (Phase::ForcedClosing { .. }, Phase::Open) = (&before.phase, &after.phase) {
            let view = match &step.op {
                Op::Look { view } | Op::Landed { view, .. } => view,
                op => panic!("{op:?} cancels a forced close"),
            };
            assert!(view.block >= before.view.block && view.close_requested_at.is_none(), "the chain says so");
        }
        assert!(after.vouchers.is_sorted_by(|a, b| a.amount < b.amount), "ascending");
    });
}

#[test]
fn i2_what_is_spent_and_leased_was_signed() {
    each_step(Chain::Honest, |step| {
        let after = step.after();
        assert!(after.spent().0 + after.leased().0 <= after.accepted().0, "{:?}", step.op);
    });
}

#[test]
fn i2_what_was_signed_for_less_than_the_chain_says_leases_nothing_more() {
    each_step(Chain::Wild, |step| {
        let sum = |c: &Channel| c.spent().0 + c.leased().0;
        let (before, after) = (&step.before, step.after());
        if !matches!(step.op, Op::Look { .. } | Op::Landed { .. }) && sum(after) > sum(before) {
            assert!(sum(after) <= after.accepted().0, "{:?}", step.op);
        }
    });
}

#[test]
fn i3_a_voucher_is_taken_only_up_to_the_deposit() {
    each_step(Chain::Wild, |step| {
        let (before, after) = (&step.before, step.after());
        if after.highest() != before.highest() {
            assert!(after.highest().unwrap().amount <= before.view.deposit, "{:?}", step.op);
        }
    });
}

#[test]
fn i4_a_lease_begins_and_grows_only_while_the_channel_serves_and_by_what_is_free() {
    let grown = Cell::new(0);
    each_step(Chain::Wild, |step| {
        let (before, after) = (&step.before, step.after());
        for (id, lease) in &after.leases {
            let had = before.leases.get(id).map_or(0, |l| l.cap.0);
            assert!(lease.used.is_none_or(|used| used <= lease.cap), "no more is used than leased");
            assert!(lease.cap.0 >= had, "a lease never shrinks under what is delivered");
            if lease.cap.0 > had {
                assert_eq!(before.serves(), Ok(()));
                let free = after.accepted().0 - before.spent().0 - before.leased().0;
                assert!(lease.cap.0 - had <= free, "{:?}", step.op);
                grown.set(grown.get() + u32::from(had > 0));
            }
        }
        if let (Op::Spend { charge, lease }, Ok(_)) = (&step.op, &step.result) {
            assert!(*charge <= before.leases.get(lease).unwrap().cap, "no more is charged than leased");
        }
        assert!(after.leases.len() <= MOST_LEASES);
    });
    assert!(grown.get() > 1_000, "{} leases grew", grown.get());
}

#[test]
fn i5_every_atom_that_is_spent_is_on_a_receipt_and_a_crash_hides_a_window_at_most() {
    let crashed = Cell::new(0);
    for_all(LONGEST, |seed, length| {
        let mut walk = Walk::new(seed, Chain::Honest);
        let mut receipts = 0;
        for _ in 0..length {
            let left = walk.delivered.clone();
            let step = walk.step();
            receipts += charged(&step);
            if let Some(Effect::Orphaned(ended)) = step.effect() {
                let Op::Orphan { policy, .. } = step.op else { panic!("only orphans are orphaned") };
                for (id, lease, charge) in ended {
                    // What left between the last step and this one was delivered before it.
                    let was = left.get(id).copied().unwrap_or(0).max(lease.used.map_or(0, |used| used.0));
                    let most = lease.used.map_or(0, |used| used.0 + lease.window.0);
                    assert!(charge.0 <= most && charge.0 <= lease.cap.0, "the payer loses a window at most");
                    if lease.used.is_some() && policy == OrphanPolicy::Charge {
                        assert!(was <= charge.0 + lease.window.0, "and so do we");
                    }
                    crashed.set(crashed.get() + u32::from(charge.0 > 0));
                }
            }
            assert_eq!(walk.record.spent().0, receipts, "receipts and what is spent agree");
        }
        for (id, used) in walk.delivered.clone() {
            receipts += charged(&walk.try_one(format!("end {id}"), Op::Spend { lease: id, charge: Atoms(used) }));
        }
        assert_eq!((walk.record.leased(), walk.record.spent()), (Atoms(0), Atoms(receipts)), "at rest");
    });
    most_applied();
    assert!(crashed.get() > 300, "{} leases were charged after a crash", crashed.get());
}

/// What a step put on receipts.
fn charged(step: &Step) -> u128 {
    match (&step.op, step.effect()) {
        (Op::Spend { charge, .. }, Some(_)) => charge.0,
        (_, Some(Effect::Orphaned(ended))) => ended.iter().map(|(_, _, charge)| charge.0).sum(),
        _ => 0,
    }
}

#[test]
fn i6_no_transaction_takes_more_than_was_spent_or_than_a_voucher_says() {
    let (settled, closed) = (Cell::new(0), Cell::new(0));
    each_step(Chain::Wild, |step| {
        let after = step.after();
        let fair = after.spent().max(after.view.settled);
        assert!(after.capture() <= fair);
        let (Op::Intend { intent }, Ok(_)) = (&step.op, &step.result) else { return };
        match &intent.act {
            Act::Settle { amount } => {
                assert!(*amount <= after.spent() && *amount > after.view.settled);
                assert!(after.vouchers.iter().any(|v| v.amount == *amount), "signed");
                settled.set(settled.get() + 1);
            }
            Act::Close { amount, capture } => {
                assert!(*capture <= fair && *capture >= after.view.settled && capture <= amount);
                assert!(after.vouchers.iter().any(|v| v.amount == *amount), "signed");
                assert!(after.leases.is_empty() || matches!(after.phase, Phase::ForcedClosing { .. }));
                closed.set(closed.get() + 1);
            }
            Act::Open | Act::TopUp { .. } => {}
        }
    });
    assert!(settled.get() > 20 && closed.get() > 20, "{} settled, {} closed", settled.get(), closed.get());
}

#[test]
fn i7_a_challenge_buys_once_unless_new_money_comes_with_it() {
    let (again, sold) = (Cell::new(0), Cell::new(0));
    for_all(2 * LONGEST, |seed, length| {
        let mut walk = Walk::new(seed, Chain::Honest);
        let mut bought = BTreeSet::new();
        walk.go(length, |step| {
            let Op::Buy { challenge, voucher, .. } = &step.op else { return };
            if step.effect() == Some(&Effect::Leased) {
                let fresh = voucher.amount > step.before.accepted();
                assert!(bought.insert(challenge.clone()) || fresh, "{challenge} bought twice");
                sold.set(sold.get() + u32::from(!fresh));
            }
            again.set(again.get() + u32::from(step.result == Err(Denied::ChallengeUsed)));
        });
    });
    assert!(again.get() > 500 && sold.get() > 500, "{} refused, {} sold", again.get(), sold.get());
}

#[test]
fn i8_a_change_tried_again_under_its_name_changes_nothing() {
    for_all(LONGEST, |seed, length| {
        let mut walk = Walk::new(seed, Chain::Wild);
        let mut done: Vec<(String, Op)> = Vec::new();
        walk.go(length, |step| {
            if step.after() != &step.before {
                done.push((step.name.clone(), step.op.clone()));
            }
            let last = done.len().saturating_sub(4);
            for (name, op) in done.iter().take(1).chain(&done[last..]) {
                let again = step.after().apply(name, op.clone(), step.now.plus(1));
                assert_eq!(again, Ok((step.after().clone(), Effect::Nothing)), "{op:?}");
            }
        });
    });
    most_applied();
}

#[test]
fn i9_what_was_confirmed_is_there_after_a_crash_and_the_rules_still_hold() {
    for_all(LONGEST, |seed, length| {
        let mut walk = Walk::new(seed, Chain::Honest);
        // What was written without anybody having heard of it may be there or not.
        let mut confirmed = walk.clone();
        walk.go(length, |_| {});
        let steps = walk.dice.below(length as u128 + 1);
        confirmed.go(usize::try_from(steps).unwrap(), |_| {});
        let said = confirmed.record.clone();
        let mut found = confirmed;
        found.go(usize::try_from(found.dice.clone().below(4)).unwrap(), |_| {});
        for gate in GATES {
            let op = Op::Orphan { gate: gate.to_owned(), policy: OrphanPolicy::Charge };
            let step = found.try_one(format!("recovery of {gate}"), op.clone());
            assert!(step.result.is_ok(), "recovery is never denied: {:?}", step.before.phase);
            assert!(step.after().leases.values().all(|lease| lease.gate != gate));
            let again = found.try_one(format!("a second recovery of {gate}"), op);
            assert_eq!(again.result, Ok((again.before.clone(), Effect::Nothing)), "recovery may be cut off, too");
        }
        let record = &found.record;
        assert!(record.accepted() >= said.accepted() && record.spent() >= said.spent(), "nothing confirmed is missing");
        assert_eq!(record.leased(), Atoms(0));
        assert!(record.spent() <= record.accepted());
        found.go(8, |step| {
            let after = step.after();
            assert!(after.spent().0 + after.leased().0 <= after.accepted().0);
        });
    });
    most_applied();
}

#[test]
fn i10_what_the_chain_says_comes_to_the_same_in_any_order_and_as_often_as_it_is_said() {
    for_all(8, |seed, length| {
        let mut dice = Dice(seed);
        let look = |settled| Op::Look { view: sample::view(2, DEPOSIT, settled) };
        let mut says: Vec<Op> = (0..length).map(|_| look(dice.below(400))).collect();
        let merged = |says: &[Op]| {
            says.iter().enumerate().fold(sample::open("0xc", 100), |channel, (n, op)| {
                channel.apply(&format!("n{n}"), op.clone(), START).map_or(channel, |(after, _)| after)
            })
        };
        let amounts = |c: &Channel| (c.accepted(), c.spent(), c.spent.clone(), c.view.settled, c.base);
        let once = merged(&says);
        let copies: Vec<Op> = says.iter().filter(|_| dice.one_in(2)).cloned().collect();
        says.extend(copies);
        for at in (1..says.len()).rev() {
            says.swap(at, usize::try_from(dice.below(at as u128 + 1)).unwrap());
        }
        assert_eq!(amounts(&merged(&says)), amounts(&once), "{says:?}");
    });
}

#[test]
fn i11_what_a_lease_was_taken_for_stays_as_one_plan_said_it() {
    each_step(Chain::Wild, |step| {
        let (before, after) = (&step.before, step.after());
        for (id, lease) in &after.leases {
            let bought = match (before.leases.get(id), &step.op) {
                (Some(had), _) => (&had.purchase, &had.gate, had.since),
                (None, Op::Buy { terms, .. }) => (&terms.purchase, &terms.gate, terms.since),
                (None, op) => panic!("{op:?} makes a lease"),
            };
            assert_eq!((&lease.purchase, &lease.gate, lease.since), bought);
        }
        if let Some(Effect::Orphaned(ended)) = step.effect() {
            for (id, lease, _) in ended {
                assert_eq!(before.leases.get(id), Some(lease), "its receipt says what was bought");
            }
        }
        let identity = |c: &Channel| (c.id.clone(), c.rail.clone(), c.chain_id, c.escrow.clone(), c.descriptor.clone());
        assert_eq!(identity(after), identity(before));
    });
}

#[test]
fn i12_a_quarantined_channel_serves_nothing_and_no_amount_of_it_is_lowered() {
    let (contradictions, released) = (Cell::new(0), Cell::new(0));
    for_all(LONGEST, |seed, length| {
        let mut walk = Walk::new(seed, Chain::Wild);
        let early = usize::try_from(walk.dice.below(length as u128)).unwrap();
        walk.go(early, |_| {});
        if over(&walk.record.phase) {
            return;
        }
        let signed = walk.record.highest().map_or(0, |v| v.amount.0);
        if walk.record.phase == Phase::Opening || signed < 2 {
            return;
        }
        let mut view = walk.record.view;
        view.settled = Atoms(0);
        view.deposit = Atoms(signed - 1);
        walk.try_one("a voucher above the deposit".to_owned(), Op::Look { view });
        contradictions.set(contradictions.get() + 1);
        walk.go(length - early, |step| {
            let (before, after) = (&step.before, step.after());
            if !matches!(before.phase, Phase::Quarantined { .. }) {
                return;
            }
            if step.op == Op::Release {
                let agree = before.highest().is_none_or(|v| v.amount <= before.view.deposit);
                assert_eq!(
                    matches!(after.phase, Phase::Open | Phase::ForcedClosing { .. }),
                    agree,
                    "{:?}",
                    before.view
                );
                released.set(released.get() + u64::from(agree));
                return;
            }
            assert_eq!(after.serves().map_err(|d| matches!(d, Denied::Quarantined | Denied::Over)), Err(true));
            assert!(after.leased() <= before.leased() && after.our_tx.is_none() | (after.our_tx == before.our_tx));
            assert!(after.payers_tx.is_none() || after.payers_tx == before.payers_tx, "nothing is sent");
            assert!(after.spent() >= before.spent() && after.accepted() >= before.accepted());
            assert!(after.capture() >= before.capture() && after.view.settled >= before.view.settled);
        });
    });
    assert!(contradictions.get() > 1_000 && released.get() > 50, "{} released", released.get());
}
