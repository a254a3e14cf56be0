//! The rules of a channel one by one, the reason in the row.

use super::super::sample::{DEPOSIT, START, intent, lease, open, opening, purchase, view, voucher};
use super::*;

const T: UnixSeconds = UnixSeconds(START.0 + 1);

/// A change: everything in these tables is at [`T`] unless it says so.
fn on(channel: &Channel, op: Op) -> Result<(Channel, Effect), Denied> {
    channel.apply(&format!("{op:?} at {}", channel.revision), op, T)
}

fn after(channel: &Channel, ops: impl IntoIterator<Item = Op>) -> Channel {
    ops.into_iter().fold(channel.clone(), |c, op| match on(&c, op.clone()) {
        Ok((next, _)) => next,
        Err(denied) => panic!("{op:?}: {denied:?}"),
    })
}

fn buy(amount: u128, challenge: &str, name: &str, cap: u128) -> Op {
    buy_until(amount, challenge, START.plus(1_800), name, cap)
}

fn buy_until(amount: u128, challenge: &str, expires: UnixSeconds, name: &str, cap: u128) -> Op {
    Op::Buy {
        voucher: voucher(amount),
        min_delta: Atoms(10),
        challenge: challenge.to_owned(),
        expires,
        lease: name.to_owned(),
        terms: Box::new(lease(name, "a", cap, 20)),
    }
}

fn accept(amount: u128) -> Op {
    Op::Accept { voucher: voucher(amount), min_delta: Atoms(10) }
}

fn spend(name: &str, charge: u128) -> Op {
    Op::Spend { lease: name.to_owned(), charge: Atoms(charge) }
}

fn extend(name: &str, by: u128, used: Option<u128>) -> Op {
    Op::Extend { lease: name.to_owned(), by: Atoms(by), used: used.map(Atoms) }
}

fn mark(name: &str, used: u128) -> Op {
    Op::Mark { lease: name.to_owned(), used: Atoms(used), window: Atoms(20) }
}

fn intend(act: Act, tx: &str) -> Op {
    Op::Intend { intent: intent(act, tx) }
}

fn landed(tx: &str, view: View) -> Op {
    Op::Landed { tx: tx.to_owned(), mined: None, view }
}

fn settle(amount: u128) -> Act {
    Act::Settle { amount: Atoms(amount) }
}

fn close(amount: u128, capture: u128) -> Act {
    Act::Close { amount: Atoms(amount), capture: Atoms(capture) }
}

fn asked(block: u64) -> View {
    View { close_requested_at: Some(START), ..view(block, DEPOSIT, 0) }
}

fn gone(block: u64) -> View {
    view(block, 0, 0)
}

/// A deposit that is an atom below what was signed.
fn short(channel: &Channel, block: u64) -> Op {
    Op::Look { view: view(block, channel.accepted().0 - 1, 0) }
}

/// 300 signed, 100 of them spent, a lease of 50 taken with challenge `c1`.
fn busy() -> Channel {
    after(&open("0xc", 100), [buy(200, "c0", "done", 100), spend("done", 100), buy(300, "c1", "l", 50)])
}

#[test]
fn a_voucher_of_management_is_higher_or_the_same_and_never_more_than_the_deposit() {
    let base = busy();
    for (amount, want, why) in [
        (300, Ok(Effect::Nothing), "the same is no news"),
        (299, Err(Denied::Lower { accepted: Atoms(300) }), "lower"),
        (0, Err(Denied::Lower { accepted: Atoms(300) }), "nothing"),
        (309, Err(Denied::DeltaTooSmall { min_delta: Atoms(10) }), "by too little"),
        (310, Ok(Effect::Done), "by just enough"),
        (DEPOSIT, Ok(Effect::Done), "all that is locked"),
        (DEPOSIT + 1, Err(Denied::OverDeposit { deposit: Atoms(DEPOSIT) }), "more than is locked"),
        (u128::MAX, Err(Denied::OverDeposit { deposit: Atoms(DEPOSIT) }), "far more"),
    ] {
        assert_eq!(on(&base, accept(amount)).map(|(_, effect)| effect), want, "{why}");
    }
    let paid = after(&base, [Op::Look { view: view(2, DEPOSIT, 400) }]);
    for (amount, want, why) in [
        (300, Err(Denied::Lower { accepted: Atoms(400) }), "the highest, below what the chain paid out"),
        (400, Err(Denied::Lower { accepted: Atoms(400) }), "what the chain paid out"),
        (410, Ok(Effect::Done), "above it"),
    ] {
        assert_eq!(on(&paid, accept(amount)).map(|(_, effect)| effect), want, "{why}");
    }
}

#[test]
fn content_is_bought_with_new_money_or_with_a_challenge_that_has_bought_none() {
    let base = busy();
    let short = |required| Ok(Effect::Short { required: Atoms(required) });
    for (op, want, accepted, why) in [
        (buy(300, "c2", "n", 150), Ok(Effect::Leased), 300, "the same voucher on a fresh challenge, all that is free"),
        (buy(300, "c2", "n", 151), short(310), 300, "and an atom more: a whole step is asked for"),
        (buy(300, "c1", "n", 1), Err(Denied::ChallengeUsed), 300, "the same voucher on a used challenge: a copy"),
        (buy(310, "c1", "n", 160), Ok(Effect::Leased), 310, "new money on a used challenge"),
        (buy(310, "c1", "n", 161), short(320), 310, "new money that is not enough is kept"),
        (buy(299, "c2", "n", 1), Err(Denied::Lower { accepted: Atoms(300) }), 300, "lower, however much is free"),
        (buy(305, "c2", "n", 1), Err(Denied::DeltaTooSmall { min_delta: Atoms(10) }), 300, "by too little"),
        (buy(1_001, "c2", "n", 1), Err(Denied::OverDeposit { deposit: Atoms(DEPOSIT) }), 300, "over the deposit"),
        (buy(310, "c2", "l", 1), Err(Denied::OutOfOrder), 300, "a lease of that name is running"),
    ] {
        let result = on(&base, op);
        let next = result.as_ref().map_or(&base, |(next, _)| next);
        assert_eq!(
            (next.accepted(), next.leases.contains_key("n")),
            (Atoms(accepted), want == Ok(Effect::Leased)),
            "{why}"
        );
        assert_eq!(result.map(|(_, effect)| effect), want, "{why}");
    }
    let kept = after(&base, [buy(310, "c2", "n", 161), accept(330), buy(330, "c2", "n", 161)]);
    assert!(kept.leases.contains_key("n"), "a challenge that was short has bought nothing yet");
}

#[test]
fn used_challenges_are_remembered_in_bounded_space_and_forgotten_ones_count_as_used() {
    let mut c = after(&open("0xc", 100), [accept(DEPOSIT)]);
    for n in 0..40_u64 {
        let name = format!("l{n}");
        c = after(&c, [buy_until(DEPOSIT, &format!("c{n}"), T.plus(100 + n), &name, 1), spend(&name, 1)]);
        assert!(c.used.len() <= USED_CHALLENGES);
    }
    for n in 0..40_u64 {
        let again = buy_until(DEPOSIT, &format!("c{n}"), T.plus(100 + n), "again", 1);
        assert_eq!(on(&c, again).err(), Some(Denied::ChallengeUsed), "the challenge no. {n} has bought");
    }
    for (expires, bought, why) in [
        (T.plus(50), false, "expires before what was forgotten"),
        (c.used_until, false, "with the last that was forgotten"),
        (c.used_until.plus(1), true, "after it"),
    ] {
        assert_eq!(on(&c, buy_until(DEPOSIT, "fresh", expires, "n", 1)).is_ok(), bought, "{why}");
    }
}

#[test]
fn a_challenge_that_one_clock_has_dropped_is_still_used_for_a_clock_behind_it() {
    let c = after(&open("0xc", 100), [buy_until(200, "c1", T.plus(10), "l", 1)]);
    let ahead = T.plus(10);
    let later = buy_until(300, "c2", T.plus(900), "m", 1);
    let (c, _) = c.apply("a gate whose clock is ahead", later, ahead).unwrap();
    assert!(!c.used.contains_key("c1"), "dropped");
    assert_eq!(on(&c, buy_until(300, "c1", T.plus(10), "n", 1)).err(), Some(Denied::ChallengeUsed));
}

#[test]
fn a_lease_grows_by_what_is_free_and_ends_once() {
    let base = busy();
    for (op, want, why) in [
        (extend("l", 150, Some(50)), Ok(()), "all that is free"),
        (extend("l", 151, Some(50)), Err(Denied::Short { required: Atoms(301) }), "more than is free"),
        (
            extend("l", u128::MAX, None),
            Err(Denied::Short { required: Atoms(u128::MAX) }),
            "a sum that cannot be counted",
        ),
        (extend("x", 1, None), Err(Denied::OutOfOrder), "no such lease"),
        (spend("l", 50), Ok(()), "its cap"),
        (spend("l", 51), Err(Denied::OutOfOrder), "more than its cap"),
        (spend("x", 0), Err(Denied::OutOfOrder), "no such lease to end"),
        (mark("l", 99), Ok(()), "a mark is held to the cap"),
        (mark("x", 1), Err(Denied::OutOfOrder), "no such lease to mark"),
    ] {
        assert_eq!(on(&base, op).map(|_| ()), want, "{why}");
    }
    let ended = after(&base, [spend("l", 30)]);
    assert_eq!((ended.spent(), ended.available()), (Atoms(130), Atoms(170)), "the rest is free again");
    assert_eq!(on(&ended, spend("l", 30)).err(), Some(Denied::OutOfOrder), "once");
    assert_eq!(after(&base, [mark("l", 99)]).leases["l"].used, Some(Atoms(50)));
}

#[test]
fn a_lease_whose_gate_died_is_charged_what_was_said_and_a_window_more_and_nothing_before_the_first_byte() {
    use OrphanPolicy::{Charge, Refund};
    for (ops, policy, want, why) in [
        (vec![], Charge, 0, "no byte had left"),
        (vec![extend("l", 30, None)], Charge, 0, "it leased more before the first byte: a reply that was held back"),
        (vec![mark("l", 10)], Charge, 30, "a window of 20 more"),
        (vec![mark("l", 10)], Refund, 10, "the operator bears the window"),
        (vec![mark("l", 45)], Charge, 50, "never more than its cap"),
        (vec![mark("l", 45), extend("l", 40, Some(48))], Charge, 88, "the window is what was leased last"),
        (
            vec![mark("l", 10), Op::Mark { lease: "l".to_owned(), used: Atoms(15), window: Atoms(7) }],
            Charge,
            22,
            "or what was said last to be used before it says more",
        ),
        (vec![mark("l", 45), mark("l", 5)], Refund, 45, "what was used only grows"),
    ] {
        let (c, effect) = on(&after(&busy(), ops), Op::Orphan { gate: "a".to_owned(), policy }).unwrap();
        let Effect::Orphaned(ended) = effect else { panic!("{why}: {effect:?}") };
        assert_eq!(
            ended.iter().map(|(id, _, charge)| (id.as_str(), charge.0)).collect::<Vec<_>>(),
            [("l", want)],
            "{why}"
        );
        assert_eq!((c.spent(), c.leased()), (Atoms(100 + want), Atoms(0)), "{why}");
    }
    let other = Op::Orphan { gate: "b".to_owned(), policy: Charge };
    assert_eq!(on(&busy(), other).unwrap().1, Effect::Nothing, "another gate's leases are none of its own");
}

#[test]
fn a_settlement_is_the_voucher_that_was_used_up_and_a_close_is_what_was_spent() {
    let spent = after(&busy(), [spend("l", 50)]);
    let closing = after(&spent, [Op::Close]);
    let streams = after(&busy(), [Op::Close]);
    let forced = after(&busy(), [Op::Look { view: asked(2) }]);
    for (channel, act, want, why) in [
        (&spent, settle(100), Ok(()), "signed, and all of it is spent"),
        (&spent, settle(150), Err(Denied::OutOfOrder), "spent, and nobody signed exactly that"),
        (&spent, settle(200), Err(Denied::OutOfOrder), "signed, and not spent"),
        (&spent, close(300, 150), Err(Denied::OutOfOrder), "it is open: nobody agreed to close"),
        (&closing, close(300, 150), Ok(()), "what was spent"),
        (&closing, close(300, 151), Err(Denied::OutOfOrder), "an atom more"),
        (&closing, close(300, 149), Err(Denied::OutOfOrder), "an atom less"),
        (&closing, close(100, 150), Err(Denied::OutOfOrder), "on a voucher that does not reach"),
        (&closing, close(250, 150), Err(Denied::OutOfOrder), "on a voucher that nobody signed"),
        (&closing, settle(100), Ok(()), "a settlement before the close"),
        (&streams, close(300, 100), Err(Denied::OutOfOrder), "by agreement only when the last lease has ended"),
        (&forced, close(300, 100), Ok(()), "by force at once: the payer's withdrawal does not wait"),
        (&spent, Act::TopUp { additional: Atoms(5) }, Ok(()), "the payer's"),
        (&closing, Act::TopUp { additional: Atoms(5) }, Err(Denied::Closing), "no more money for what closes"),
        (&spent, Act::Open, Err(Denied::OutOfOrder), "it is open"),
    ] {
        assert_eq!(on(channel, intend(act, "tx")).map(|_| ()), want, "{why}");
    }
    let sent = after(&spent, [intend(settle(100), "ours")]);
    for (act, tx, want, why) in [
        (settle(100), "ours", Ok(()), "the same again"),
        (settle(100), "other", Err(Denied::Busy), "one of ours at a time"),
        (Act::TopUp { additional: Atoms(5) }, "his", Ok(()), "the payer's is another matter"),
    ] {
        assert_eq!(on(&sent, intend(act, tx)).map(|_| ()), want, "{why}");
    }
    let settled = after(&sent, [landed("ours", view(3, DEPOSIT, 100))]);
    assert_eq!((settled.view.settled, settled.base, settled.spent()), (Atoms(100), Atoms(0), Atoms(150)));
    assert_eq!(on(&settled, intend(settle(100), "again")).err(), Some(Denied::OutOfOrder), "it is paid out already");
    assert_eq!(on(&settled, landed("ours", view(3, DEPOSIT, 100))).err(), Some(Denied::OutOfOrder), "landed once");
    let closed = after(&closing, [intend(close(300, 150), "end"), landed("end", gone(4))]);
    assert_eq!(closed.phase, Phase::Closed { tx: Some("end".to_owned()) });
    assert_eq!((closed.view.settled, closed.unsettled(), closed.is_over()), (Atoms(150), Atoms(0), true));
}

#[test]
fn what_is_captured_is_what_was_spent_and_never_less_than_the_chain_has_paid() {
    let behind = after(&busy(), [Op::Look { view: view(2, DEPOSIT, 250) }]);
    assert_eq!(
        (behind.spent(), behind.base, behind.capture()),
        (Atoms(250), Atoms(150), Atoms(250)),
        "what is out is spent"
    );
    assert_eq!(behind.available(), Atoms(0), "and buys nothing a second time");
}

#[test]
fn the_chains_word_is_taken_when_it_is_newer() {
    let base = after(&busy(), [Op::Look { view: view(5, 1_200, 0) }]);
    let forced = after(&base, [Op::Look { view: View { deposit: Atoms(1_200), ..asked(7) } }]);
    let label = |c: &Channel| c.phase.label();
    for (channel, op, phase, deposit, why) in [
        (&base, Op::Look { view: view(4, 1_000, 0) }, "open", 1_200, "older: not taken"),
        (&base, Op::Look { view: view(5, 1_100, 0) }, "open", 1_100, "the same block, read again"),
        (&base, Op::Look { view: view(6, 299, 0) }, "quarantined", 299, "a voucher above the deposit contradicts it"),
        (&base, Op::Look { view: asked(6) }, "forced_closing", 1_000, "the payer asks to close"),
        (&base, Op::Look { view: gone(6) }, "closed", 1_200, "gone"),
        (&forced, Op::Look { view: view(6, 1_200, 0) }, "forced_closing", 1_200, "older: it does not cancel"),
        (&forced, Op::Look { view: view(8, 1_300, 0) }, "open", 1_300, "a top-up takes the request back"),
        (&forced, Op::Look { view: gone(8) }, "closed", 1_200, "withdrawn"),
        (&forced, Op::Close, "forced_closing", 1_200, "agreeing changes nothing"),
    ] {
        let (next, _) = on(channel, op).unwrap();
        assert_eq!((label(&next), next.view.deposit.0), (phase, deposit), "{why}");
    }
    assert_eq!(forced.phase, Phase::ForcedClosing { deadline: START.plus(GRACE_SECONDS) });
    let (same, effect) = on(&base, Op::Look { view: view(9, 1_200, 0) }).unwrap();
    assert_eq!((same, effect), (base.clone(), Effect::Nothing), "no news is not worth a write");
    let topping = after(&base, [intend(Act::TopUp { additional: Atoms(5) }, "his"), Op::Look { view: asked(6) }]);
    assert_eq!(label(&after(&topping, [landed("his", view(7, 1_205, 0))])), "open", "his own top-up takes it back");
}

#[test]
fn a_close_of_ours_that_is_on_its_way_decides_what_the_end_was() {
    let sent = after(&busy(), [spend("l", 50), Op::Look { view: asked(2) }, intend(close(300, 150), "end")]);
    let back = after(&sent, [Op::Look { view: view(3, DEPOSIT, 0) }]);
    assert_eq!(
        (back.phase.label(), back.serves()),
        ("open", Err(Denied::Closing)),
        "taken back too late: it may be closed"
    );
    assert_eq!(on(&back, buy(400, "c9", "n", 1)).err(), Some(Denied::Closing));
    let dropped = after(&back, [Op::Dropped { tx: "end".to_owned() }]);
    assert_eq!(dropped.serves(), Ok(()), "our close came to nothing: it serves again");
    for (channel, why) in [(&sent, "asked to close"), (&back, "taken back")] {
        let unseen = after(channel, [Op::Look { view: gone(4) }]);
        assert!(!unseen.is_over() && unseen.serves().is_err(), "{why}: gone, and nobody knows by whom");
        let ours = after(&unseen, [landed("end", gone(4))]);
        assert_eq!((&ours.phase, ours.unsettled()), (&Phase::Closed { tx: Some("end".into()) }, Atoms(0)), "{why}");
        let his = after(&unseen, [Op::Dropped { tx: "end".to_owned() }, Op::Look { view: gone(5) }]);
        assert_eq!(
            (&his.phase, his.unsettled()),
            (&Phase::Closed { tx: None }, Atoms(150)),
            "{why}: he withdrew, we lost"
        );
    }
}

#[test]
fn what_is_quarantined_goes_on_when_a_person_has_looked_and_the_chain_agrees() {
    let base = busy();
    let blocked = after(&base, [short(&base, 2)]);
    for (word, want, why) in [
        (None, Err(Denied::Quarantined), "they still contradict each other"),
        (Some(view(3, 299, 0)), Err(Denied::Quarantined), "as before"),
        (Some(view(3, 300, 0)), Ok("open"), "there is enough again"),
        (Some(asked(3)), Ok("forced_closing"), "and the payer has asked to close meanwhile"),
        (Some(gone(3)), Ok("closed"), "it is gone: there is nothing to look at any more"),
    ] {
        let heard = word.map_or_else(|| blocked.clone(), |view| on(&blocked, Op::Look { view }).unwrap().0);
        let released = on(&heard, Op::Release).map(|(next, _)| next.phase.label());
        assert_eq!(released, want, "{why}");
        if !matches!(want, Ok("closed")) {
            assert_eq!(heard.serves(), Err(Denied::Quarantined), "{why}: the chain's word alone releases nothing");
        }
    }
    assert_eq!(on(&base, Op::Release).unwrap(), (base.clone(), Effect::Nothing), "there was nothing to release");
}

#[test]
fn each_phase_takes_what_it_says() {
    let opened = open("0xc", 100);
    let failed = after(&opening("0xc", 100), [Op::Dropped { tx: "open".to_owned() }]);
    let gone_at_once = after(&opening("0xc", 100), [landed("open", gone(1))]);
    assert_eq!(failed.phase, Phase::Failed);
    assert_eq!(gone_at_once.phase, Phase::Closed { tx: None });
    for (channel, denied, why) in [
        (opening("0xc", 100), Denied::Opening, "not open yet"),
        (
            after(&opening("0xc", 100), [Op::Look { view: view(9, DEPOSIT, 0) }]),
            Denied::Opening,
            "only its transaction opens it",
        ),
        (after(&opened, [Op::Close]), Denied::Closing, "closing"),
        (after(&opened, [Op::Look { view: asked(2) }]), Denied::Closing, "by force"),
        (after(&opened, [Op::Look { view: gone(2) }]), Denied::Over, "closed"),
        (failed, Denied::Over, "never opened"),
        (after(&opened, [short(&opened, 2)]), Denied::Quarantined, "a person has to look"),
    ] {
        for op in
            [accept(200), buy(200, "c", "l", 1), extend("l", 1, None), intend(Act::TopUp { additional: Atoms(1) }, "t")]
        {
            assert_eq!(on(&channel, op.clone()).err(), Some(denied.clone()), "{why}: {op:?}");
        }
    }
    let ended = after(&busy(), [Op::Look { view: gone(2) }]);
    assert!(!ended.is_over(), "a request still runs on it");
    let ended = after(&ended, [spend("l", 40)]);
    assert!(ended.is_over() && ended.spent() == Atoms(140), "what it used is in the books, paid or not");
    assert_eq!(on(&opened, Op::Dropped { tx: "x".to_owned() }).err(), Some(Denied::OutOfOrder), "no such transaction");
}

#[test]
fn one_channel_serves_so_many_requests_at_once_and_its_record_stays_small() {
    let mut c = after(&open("0xc", 100), [accept(200)]);
    let name = |n: usize| format!("{n:032x}");
    for n in 0..MOST_LEASES {
        let mut op = buy_until(200, &name(n), T.plus(100 + n as u64), &name(n), 1);
        if let Op::Buy { terms, .. } = &mut op {
            terms.gate = name(7);
            terms.purchase = purchase(&name(n), "0123456789abcdef");
            terms.purchase.model = "openai/gpt-oss-120b".into();
        }
        c = after(&c, [op]);
    }
    assert_eq!(on(&c, buy(300, "one more", "one more", 1)).err(), Some(Denied::TooManyLeases));
    for amount in (210..=DEPOSIT).step_by(10) {
        c = after(&c, [accept(amount)]);
    }
    assert!(c.vouchers.len() <= PENDING_VOUCHERS + 1 && c.recent.len() <= RECENT_OPS);
    // Names in a gate are 32 digits; here they spell the change out.
    c.recent = (0..RECENT_OPS).map(name).map(Into::into).collect();
    c.our_tx = Some(Intent { raw: format!("0x{}", "0".repeat(800)), ..intent(settle(1), &name(1)) });
    let text = serde_json::to_string(&c).unwrap();
    println!("a busy channel is {} bytes", text.len());
    assert_eq!(serde_json::from_str::<Channel>(&text).unwrap(), c, "what is stored is what is read");
    assert!(text.len() < 48 * 1024, "{} bytes", text.len());
    assert!(serde_json::to_string(&busy()).unwrap().len() < 4 * 1024);
}
