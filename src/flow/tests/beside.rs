//! What runs beside requests for channels, with a chain that lands, drops, forgets and falls silent when it is told to.

use super::sessions::{audited, channel, descriptor};
use super::*;
use crate::channel::{Act, Effect, Intent, Lease, Op, OrphanPolicy, Phase, Purchase, View, Voucher};
use crate::flow::channels::Step;
use crate::flow::settler::{Due, Pace, Wish, due};
use crate::flow::{closing, reclaim, settler, watcher};
use crate::journal::Entry;
use crate::journal::sample::receipt;
use crate::rail::session::Outcome;

/// As often as a test wants it.
const FAST: Pace = Pace {
    due: Duration::from_millis(10),
    views: Duration::from_millis(20),
    events: Duration::from_millis(10),
    gates: Duration::from_millis(20),
    rest: Duration::from_millis(20),
};
const DEPOSIT: Atoms = Atoms(10_000_000);

fn id() -> ChannelId {
    ChannelId("0xaa".into())
}

fn promise(amount: u128) -> Voucher {
    Voucher { amount: Atoms(amount), signature: "0xsig".into() }
}

async fn done(bed: &Bed, step: impl Into<Step>) -> Effect {
    bed.toll.channels.one(&id(), step).await.unwrap().1.unwrap()
}

/// An open channel with these vouchers, of which so much is spent.
async fn open(bed: &Bed, vouchers: &[u128], spent: u128) {
    let now = UnixSeconds::now();
    let intent = Intent { act: Act::Open, tx: "0xopen".into(), raw: "0x".into(), valid_until: now.plus(25) };
    let place = (1, "0xescrow".into());
    let record = Channel::opening(
        id(),
        "tempo/session".into(),
        place.0,
        place.1,
        descriptor(),
        6,
        DEPOSIT,
        promise(0),
        intent.clone(),
        now,
    );
    let view = View { block: 1, deposit: DEPOSIT, settled: Atoms(0), close_requested_at: None };
    bed.purse.chain.lock().unwrap().insert(id(), view);
    bed.toll.channels.create(record, now).await.unwrap().unwrap();
    done(bed, Op::Landed { tx: intent.tx, mined: None, view }).await;
    for amount in vouchers {
        done(bed, Op::Accept { voucher: promise(*amount), min_delta: Atoms(0) }).await;
        if *amount <= spent {
            let before = channel(bed, "0xaa").await.spent();
            spend(bed, "first", amount - before.0).await;
        }
    }
    let before = channel(bed, "0xaa").await.spent();
    spend(bed, "last", spent - before.0).await;
}

async fn spend(bed: &Bed, name: &str, atoms: u128) {
    if atoms > 0 {
        let name = format!("{name}{atoms}");
        lease(bed, &name, atoms).await;
        pay(bed, &name, atoms).await;
    }
}

/// A request that holds so much.
async fn lease(bed: &Bed, name: &str, cap: u128) {
    let now = UnixSeconds::now();
    let sample = receipt(name, "0xaa", cap);
    let held = Lease {
        gate: bed.store.inner.gate().to_owned(),
        cap: Atoms(cap),
        used: None,
        window: Atoms(100),
        since: now,
        purchase: Purchase {
            request: sample.request,
            receipt: name.to_owned(),
            route: sample.route,
            tier: sample.tier,
            model: sample.model,
            pool: sample.pool,
            generation: sample.generation,
        },
    };
    let voucher = channel(bed, "0xaa").await.highest().unwrap().clone();
    let op = Op::Buy {
        voucher,
        min_delta: Atoms(0),
        challenge: crate::ids::fresh("ch"),
        expires: now.plus(300),
        lease: name.to_owned(),
        terms: Box::new(held),
    };
    assert_eq!(done(bed, op).await, Effect::Leased);
}

/// It ends.
async fn pay(bed: &Bed, name: &str, charge: u128) {
    let sold = Receipt { rail: "tempo/session".into(), ..receipt(name, "0xaa", charge) };
    let op = Op::Spend { lease: name.to_owned(), charge: Atoms(charge) };
    done(bed, Step::new(op, vec![Entry::Receipt(Box::new(sold))])).await;
}

/// The payer asks the chain to close, so many seconds ago.
fn force(bed: &Bed, seconds_ago: u64) {
    let mut chain = bed.purse.chain.lock().unwrap();
    let view = chain.get_mut(&id()).unwrap();
    view.block += 1;
    view.close_requested_at = Some(UnixSeconds(UnixSeconds::now().0 - seconds_ago));
}

fn mined(bed: &Bed) -> Vec<Act> {
    bed.purse.mined.lock().unwrap().iter().map(|intent| intent.act.clone()).collect()
}

async fn closed(bed: &Bed) -> Channel {
    until(|| async { channel(bed, "0xaa").await.is_over() }).await;
    channel(bed, "0xaa").await
}

async fn settled(bed: &Bed, amount: u128) {
    until(|| async {
        let channel = channel(bed, "0xaa").await;
        channel.view.settled == Atoms(amount) && channel.our_tx.is_none()
    })
    .await;
}

#[tokio::test]
async fn what_is_due_follows_from_the_terms_and_never_exceeds_what_was_spent() {
    let bed = Bed::new();
    open(&bed, &[400_000, 1_500_000, 2_000_000], 1_600_000).await;
    let till = bed.toll.tills[0].clone();
    let now = UnixSeconds::now();
    let base = channel(&bed, "0xaa").await;
    let settle = |amount| Some(Due::Settle(promise(amount)));
    let rich = |change: &dyn Fn(&mut Channel)| {
        let mut channel = base.clone();
        change(&mut channel);
        channel
    };
    let some = Intent { act: Act::Settle { amount: Atoms(1) }, tx: "0x1".into(), raw: "0x".into(), valid_until: now };
    let poor = |c: &mut Channel| c.view.settled = Atoms(1_000_000);
    for (channel, at, want, why) in [
        (base.clone(), now, settle(1_500_000), "$1.50 of 1.60 spent is covered by a voucher"),
        (rich(&poor), now, None, "$0.50 is less than settle_above"),
        (rich(&poor), now.plus(3_600), settle(1_500_000), "but old enough after an hour"),
        (
            rich(&|c| c.view.settled = Atoms(1_490_000)),
            now.plus(3_600),
            settle(1_500_000),
            "a hundredth of settle_above",
        ),
        (
            rich(&|c| c.view.settled = Atoms(1_490_001)),
            now.plus(80_000),
            None,
            "less waits for its close: it costs a fee",
        ),
        (rich(&|c| c.view.settled = Atoms(1_500_000)), now.plus(3_600), None, "only a voucher over the rest would do"),
        (rich(&|c| c.our_tx = Some(some.clone())), now.plus(90_000), None, "one transaction at a time"),
        (base.clone(), now.plus(86_400), Some(Due::Close), "nobody came for a day"),
        (rich(&|c| c.phase = Phase::Closing), now, Some(Due::Close), "a close that was not finished"),
        (rich(&|c| c.phase = Phase::ForcedClosing { deadline: now }), now, Some(Due::Forced), "even when it is late"),
        (rich(&|c| c.phase = Phase::Opening), now.plus(90_000), None, "nothing is on chain yet"),
        (rich(&|c| c.phase = Phase::Quarantined { why: "x".into() }), now.plus(90_000), None, "a person has to look"),
    ] {
        assert_eq!(due(&channel, &till, at), want, "{why}");
    }
}

#[tokio::test]
async fn a_channel_is_settled_once_by_the_greatest_voucher_that_is_spent() {
    let bed = Bed::new();
    open(&bed, &[400_000, 1_500_000, 2_000_000], 1_600_000).await;
    settler::start(&bed.toll, FAST);
    settled(&bed, 1_500_000).await;
    let reads = bed.purse.reads.load(Ordering::SeqCst);
    until(|| async { bed.purse.reads.load(Ordering::SeqCst) > reads + 3 }).await;
    assert_eq!(mined(&bed), [Act::Settle { amount: Atoms(1_500_000) }], "the rest waits for the next voucher");
    assert!(
        bed.toll.metrics.text().contains("pontage_settlements_total{outcome=\"settled\",rail=\"tempo/session\"} 1")
    );
    audited(bed).await;
}

#[tokio::test]
async fn an_operator_who_settles_is_told_why_nothing_was_paid_out() {
    let dropped = || Some(Outcome::Dropped { why: "test".into() });
    for (vouchers, spent, silent, outcome, want) in [
        (&[1_500_000][..], 1_500_000, false, None, Ok(())),
        (&[1_500_000], 1_500_000, false, Some(Outcome::Unknown), Ok(())),
        (&[2_000_000], 1_600_000, false, None, Err((false, "1600000 atoms are spent and not settled"))),
        (&[], 0, false, None, Err((false, "all that was spent is settled"))),
        (&[1_500_000], 1_500_000, true, None, Err((true, "did not answer"))),
        (&[1_500_000], 1_500_000, false, dropped(), Err((true, "made nothing happen"))),
    ] {
        let bed = Bed::new();
        open(&bed, vouchers, spent).await;
        bed.purse.silent.store(silent, Ordering::SeqCst);
        bed.purse.outcomes.lock().unwrap().extend(outcome);
        let till = bed.toll.tills[0].clone();
        let wish = settler::settle_now(&bed.toll, &till, &channel(&bed, "0xaa").await).await;
        match (wish, want) {
            (Wish::Sent, Ok(())) => {}
            (Wish::Nothing(why), Err((false, words))) | (Wish::Failed(why), Err((true, words))) => {
                assert!(why.contains(words), "{why}");
            }
            (wish, want) => panic!("{wish:?}, not {want:?}"),
        }
    }
    let bed = Bed::new();
    open(&bed, &[1_500_000], 1_500_000).await;
    let till = bed.toll.tills[0].clone();
    let before = channel(&bed, "0xaa").await;
    let act = Act::Settle { amount: Atoms(1_500_000) };
    let intent = Intent { act, tx: "0xours".into(), raw: "0x".into(), valid_until: UnixSeconds::now().plus(25) };
    done(&bed, Op::Intend { intent }).await;
    let known = channel(&bed, "0xaa").await;
    let blocked = Channel { our_tx: None, phase: Phase::Quarantined { why: "test".into() }, ..known.clone() };
    for (seen, words) in
        [(known, "of ours on the channel is under way"), (before, "has begun"), (blocked, "is blocked: test")]
    {
        let wish = settler::settle_now(&bed.toll, &till, &seen).await;
        assert!(matches!(&wish, Wish::Nothing(why) if why.contains(words)), "{wish:?}");
    }
    assert_eq!(mined(&bed), []);
}

#[tokio::test]
async fn a_settlement_that_is_dropped_or_in_doubt_is_made_once_all_the_same() {
    for (outcomes, why) in [
        (vec![Outcome::Dropped { why: "test".into() }], "another one is signed"),
        (vec![Outcome::Unknown, Outcome::Unknown], "the same one is looked for until it is found"),
        (vec![Outcome::Unknown, Outcome::Dropped { why: "test".into() }], "in doubt, then dropped"),
    ] {
        let bed = Bed::new();
        open(&bed, &[1_500_000], 1_500_000).await;
        bed.purse.outcomes.lock().unwrap().extend(outcomes);
        settler::start(&bed.toll, FAST);
        settled(&bed, 1_500_000).await;
        assert_eq!(mined(&bed), [Act::Settle { amount: Atoms(1_500_000) }], "{why}");
        audited(bed).await;
    }
}

#[tokio::test]
async fn sending_that_never_ends_holds_up_neither_the_watch_nor_a_restart() {
    let mut bed = Bed::new();
    open(&bed, &[1_500_000], 1_500_000).await;
    bed.purse.hangs.store(true, Ordering::SeqCst);
    settler::start(&bed.toll, FAST);
    until(|| async { channel(&bed, "0xaa").await.our_tx.is_some() }).await;
    let reads = bed.purse.reads.load(Ordering::SeqCst);
    until(|| async { bed.purse.reads.load(Ordering::SeqCst) > reads + 3 }).await;
    bed.restart();
    reclaim::reclaim(&bed.toll).await.unwrap();
    settled(&bed, 1_500_000).await;
    assert_eq!(mined(&bed).len(), 1);
    audited(bed).await;
}

#[tokio::test]
async fn two_gates_settle_a_channel_once() {
    let bed = Bed::new();
    open(&bed, &[1_500_000], 1_500_000).await;
    let (other, _store) = toll(&bed.rules, Arc::clone(&bed.store.inner), &bed.rail, &bed.spare, &bed.purse);
    settler::start(&bed.toll, FAST);
    settler::start(&other, FAST);
    settled(&bed, 1_500_000).await;
    let reads = bed.purse.reads.load(Ordering::SeqCst);
    until(|| async { bed.purse.reads.load(Ordering::SeqCst) > reads + 6 }).await;
    assert_eq!(mined(&bed).len(), 1);
    audited(bed).await;
}

#[tokio::test]
async fn a_stop_between_intent_and_outcome_leaves_one_effect() {
    for (sent, why) in [(false, "killed before it was sent"), (true, "killed before the outcome was written")] {
        for close in [false, true] {
            let mut bed = Bed::new();
            open(&bed, &[1_500_000], 1_500_000).await;
            let amount = Atoms(1_500_000);
            let act = if close { Act::Close { amount, capture: amount } } else { Act::Settle { amount } };
            let valid_until = UnixSeconds::now().plus(25);
            let intent = Intent { act: act.clone(), tx: "0xours".into(), raw: "0x".into(), valid_until };
            if close {
                done(&bed, Op::Close).await;
            }
            done(&bed, Op::Intend { intent: intent.clone() }).await;
            if sent {
                bed.purse.does(&channel(&bed, "0xaa").await, &intent);
            }
            bed.restart();
            reclaim::reclaim(&bed.toll).await.unwrap();
            settler::start(&bed.toll, FAST);
            until(|| async { channel(&bed, "0xaa").await.our_tx.is_none() }).await;
            let after = channel(&bed, "0xaa").await;
            assert_eq!((mined(&bed), after.view.settled), (vec![act], amount), "{why}");
            assert_eq!(after.is_over(), close);
            audited(bed).await;
        }
    }
}

#[tokio::test]
async fn an_idle_channel_is_closed_at_what_was_spent() {
    let bed = Bed::new();
    open(&bed, &[2_000_000], 300).await;
    bed.purse.terms.lock().unwrap().close_idle_hours = 0;
    let (idle, _store) = toll(&bed.rules, Arc::clone(&bed.store.inner), &bed.rail, &bed.spare, &bed.purse);
    settler::start(&idle, FAST);
    let after = closed(&bed).await;
    assert_eq!(mined(&bed), [Act::Close { amount: Atoms(2_000_000), capture: Atoms(300) }]);
    assert_eq!(after.view.settled, Atoms(300));
    audited(bed).await;
}

#[tokio::test]
async fn an_idle_channel_is_not_closed_under_a_request_that_the_store_does_not_know_yet() {
    use super::sessions::{BY_TOKEN, newest, opening};
    let bed = super::sessions::bed();
    bed.purse.terms.lock().unwrap().close_idle_hours = 0;
    let (toll, _store) = toll(&bed.rules, Arc::clone(&bed.store.inner), &bed.rail, &bed.spare, &bed.purse);
    let bed = Bed { toll, ..bed };
    let lease = bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 50_000, 900_000)).await.unwrap();
    assert!(channel(&bed, "0xaa").await.leases.is_empty(), "it is written with what it spends");
    settler::start(&bed.toll, FAST);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(newest(&bed, "0xaa").await.phase, Phase::Open);
    drop(lease);
    until(|| async { matches!(channel(&bed, "0xaa").await.phase, Phase::Closed { .. }) }).await;
}

#[tokio::test]
async fn a_close_waits_for_the_stream_and_pays_out_what_it_used() {
    let bed = Bed::new();
    open(&bed, &[2_000_000], 300).await;
    lease(&bed, "late", 500).await;
    let (toll, till) = (Arc::clone(&bed.toll), bed.toll.tills[0].clone());
    let both: Vec<_> = (0..2)
        .map(|_| {
            let (toll, till) = (Arc::clone(&toll), till.clone());
            tokio::spawn(async move { closing::close(&toll, &till, &id()).await })
        })
        .collect();
    until(|| async { channel(&bed, "0xaa").await.phase == Phase::Closing }).await;
    assert_eq!(mined(&bed), [], "a request is still inside");
    pay(&bed, "late", 450).await;
    for answer in both {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.channel.phase, Phase::Closed { tx: answer.tx.clone() }, "both hear the same");
    }
    assert_eq!(mined(&bed), [Act::Close { amount: Atoms(2_000_000), capture: Atoms(750) }]);
    audited(bed).await;
}

#[tokio::test]
async fn a_forced_close_is_answered_in_every_state_of_the_channel() {
    for (state, want, why) in [
        ("idle", 300, "at once"),
        ("stream ends", 750, "when it has ended"),
        ("stream stays", 300, "without what it has not begun, when time runs out"),
        ("stream flows", 300 + 250 + 100, "with what it has said and a window, when time runs out"),
        ("settling", 300, "after our own transaction"),
        ("closing", 300, "instead of the agreed close"),
    ] {
        let bed = Bed::new();
        open(&bed, &[200, 2_000_000], 300).await;
        match state {
            "stream ends" | "stream stays" => lease(&bed, "late", 500).await,
            "stream flows" => {
                lease(&bed, "late", 500).await;
                done(&bed, Op::Mark { lease: "late".into(), used: Atoms(250), window: Atoms(100) }).await;
            }
            "settling" => {
                let valid_until = UnixSeconds::now().plus(25);
                let act = Act::Settle { amount: Atoms(200) };
                let intent = Intent { act, tx: "0xours".into(), raw: "0x".into(), valid_until };
                done(&bed, Op::Intend { intent }).await;
                reclaim::reclaim(&bed.toll).await.unwrap();
            }
            "closing" => drop(done(&bed, Op::Close).await),
            _ => {}
        }
        // For the one that does not end there are nine seconds left, of which it gets three.
        force(&bed, if matches!(state, "stream stays" | "stream flows") { 891 } else { 10 });
        settler::start(&bed.toll, FAST);
        if state == "stream ends" {
            until(|| async { matches!(channel(&bed, "0xaa").await.phase, Phase::ForcedClosing { .. }) }).await;
            pay(&bed, "late", 450).await;
        }
        let shut = || async { matches!(channel(&bed, "0xaa").await.phase, Phase::Closed { tx: Some(_) }) };
        until(shut).await;
        assert_eq!(channel(&bed, "0xaa").await.view.settled, Atoms(want), "{state}: {why}");
        assert!(mined(&bed).contains(&Act::Close { amount: Atoms(2_000_000), capture: Atoms(want) }), "{state}");
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_forced_close_is_claimed_however_long_watcher_or_chain_were_down_within_the_grace() {
    for minutes in [0, 4, 6, 10, 14] {
        let mut bed = Bed::new();
        open(&bed, &[2_000_000], 300).await;
        force(&bed, minutes * 60);
        bed.restart();
        bed.purse.silent.store(true, Ordering::SeqCst);
        reclaim::reclaim(&bed.toll).await.unwrap();
        settler::start(&bed.toll, FAST);
        until(|| async { bed.purse.reads.load(Ordering::SeqCst) > 3 }).await;
        assert_eq!(channel(&bed, "0xaa").await.phase, Phase::Open, "nobody could know");
        bed.purse.silent.store(false, Ordering::SeqCst);
        let after = closed(&bed).await;
        assert_eq!((after.view.settled, mined(&bed).len()), (Atoms(300), 1), "{minutes} minutes");
        until(|| async { bed.toll.metrics.text().contains("outcome=\"claimed\",rail=\"tempo/session\"} 1") }).await;
        let late = bed.toll.metrics.text().contains("outcome=\"late\"");
        assert_eq!(late, minutes > 5, "{minutes} minutes: the alarm is for a third of the grace");
        audited(bed).await;
    }
}

#[tokio::test]
async fn what_the_payer_withdrew_before_it_was_claimed_is_counted_as_lost() {
    let bed = Bed::new();
    open(&bed, &[2_000_000], 300).await;
    bed.purse.chain.lock().unwrap().get_mut(&id()).unwrap().deposit = Atoms(0);
    settler::start(&bed.toll, FAST);
    let after = closed(&bed).await;
    assert_eq!((after.phase.clone(), after.view.settled, mined(&bed).len()), (Phase::Closed { tx: None }, Atoms(0), 0));
    let lost = "pontage_session_loss_usd_total{rail=\"tempo/session\"} 0.0003";
    until(|| async { bed.toll.metrics.text().contains(lost) }).await;
    let books = audited(bed).await;
    let lost: Vec<_> = books.lost.iter().map(|lost| (lost.spent, lost.settled)).collect();
    assert_eq!(lost, [(Atoms(300), Atoms(0))], "and the audit lists it: {books}");
}

#[tokio::test]
async fn leases_of_a_former_life_end_as_the_operator_decided() {
    for (policy, used, want, why) in [
        (OrphanPolicy::Charge, Some(250), 650, "what was reported, and one window"),
        (OrphanPolicy::Charge, Some(450), 800, "never more than was leased"),
        (OrphanPolicy::Refund, Some(250), 550, "what was reported"),
        (OrphanPolicy::Charge, None, 300, "no byte had left"),
    ] {
        let mut bed = Bed::new();
        open(&bed, &[2_000_000], 300).await;
        lease(&bed, "cut", 500).await;
        if let Some(used) = used {
            done(&bed, Op::Mark { lease: "cut".into(), used: Atoms(used), window: Atoms(100) }).await;
        }
        bed.purse.terms.lock().unwrap().orphan = policy;
        bed.restart();
        assert_eq!(reclaim::reclaim(&bed.toll).await.unwrap(), 1);
        assert_eq!(reclaim::reclaim(&bed.toll).await.unwrap(), 0, "once");
        let after = channel(&bed, "0xaa").await;
        assert_eq!((after.spent(), after.leased()), (Atoms(want), Atoms(0)), "{why}");
        let written = bed.store.inner.receipt("cut").await.unwrap();
        assert_eq!(written.map(|r| (r.charged, r.complete)), (want > 300).then_some((Atoms(want - 300), false)));
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_forced_close_is_heard_of_by_its_event_long_before_the_next_look_at_every_channel() {
    let bed = super::sessions::bed();
    open(&bed, &[1_000], 1_000).await;
    let looks = Pace { views: Duration::from_secs(3_600), ..FAST };
    tokio::spawn(watcher::watch(Arc::clone(&bed.toll), Arc::clone(&bed.toll.tills[0]), looks));
    let (reads, listens) = (|| bed.purse.reads.load(Ordering::SeqCst), || bed.purse.listens.load(Ordering::SeqCst));
    until(|| async { reads() == 1 && listens() > 1 }).await;
    {
        let mut chain = bed.purse.chain.lock().unwrap();
        let view = chain.get_mut(&id()).unwrap();
        (view.block, view.close_requested_at) = (6, Some(UnixSeconds::now()));
    }
    let heard = listens();
    until(|| async { listens() > heard + 3 }).await;
    assert_eq!(channel(&bed, "0xaa").await.phase, Phase::Open, "nobody has told it");
    assert_eq!(reads(), 1, "and it does not look by itself");

    // It is told, and cannot look: it looks again until it can.
    bed.purse.blind.store(true, Ordering::SeqCst);
    bed.purse.asked_to_close.lock().unwrap().extend([(5, ChannelId("0xcc".into())), (6, id())]);
    until(|| async { reads() > 3 }).await;
    assert_eq!(channel(&bed, "0xaa").await.phase, Phase::Open);
    bed.purse.blind.store(false, Ordering::SeqCst);
    until(|| async { matches!(channel(&bed, "0xaa").await.phase, Phase::Closed { tx: Some(_) }) }).await;
    assert_eq!(channel(&bed, "0xaa").await.view.settled, Atoms(1_000), "what was spent is claimed");
}
