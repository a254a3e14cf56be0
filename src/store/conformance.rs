//! What every store promises, as tests over whatever makes one. A store's own tests run [`all`] with a [`Bench`] that opens
//! the same data again and again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use super::{Store, Swap, Write};
use crate::channel::{Act, Channel, ChannelId, Descriptor, Intent, Op as ChannelOp, View, Voucher};
use crate::claim::{Claim, ClaimKey, Op, Standing, sample};
use crate::clock::UnixSeconds;
use crate::journal::{Entry, sample::receipt};
use crate::money::{Atoms, Usd};
use std::sync::Arc;

/// Fresh data, and a way to open it. Dropping what `open` gave and calling it again is a restart.
pub trait Bench {
    fn fresh() -> Self;
    fn open(&self) -> Arc<dyn Store>;
}

/// The whole suite.
pub async fn all<B: Bench>() {
    a_claim_is_created_only_if_absent::<B>().await;
    a_record_is_replaced_only_by_the_one_that_follows_it::<B>().await;
    of_many_writers_of_one_revision_exactly_one_wins::<B>().await;
    a_write_that_loses_writes_nothing_at_all::<B>().await;
    what_is_written_briefly_is_seen_at_once_and_durable_with_the_next_write::<B>().await;
    of_brief_and_durable_writers_of_one_claim_exactly_one_wins::<B>().await;
    everything_acknowledged_is_there_after_a_restart::<B>().await;
    only_what_is_over_and_past_its_time_is_forgotten::<B>().await;
    a_channel_is_kept_by_its_revision_and_listed_until_it_is_over::<B>().await;
    of_many_writers_of_one_channel_exactly_one_wins::<B>().await;
    open_claims_are_those_recovery_must_look_at::<B>().await;
    the_newest_receipt_of_an_id_counts::<B>().await;
    totals_add_up_by_name_and_day::<B>().await;
    changed_facts_are_told_and_kept_out_until_accepted::<B>().await;
}

fn put(claim: &Claim) -> Write {
    Write { claim: Some(claim.clone()), ..Write::default() }
}

fn owed(key: &str, at: u64) -> Claim {
    sample::claim(key, 100).apply(Op::PayUnserved { transaction: None }, UnixSeconds(at)).unwrap()
}

/// Walks a claim into the store step by step, as the flow does.
async fn keep(store: &dyn Store, key: &str, ops: &[(Op, u64)]) -> Claim {
    let mut claim = sample::claim(key, 100);
    assert_eq!(store.commit(put(&claim)).await, Ok(Swap::Done));
    for (op, at) in ops {
        claim = claim.apply(op.clone(), UnixSeconds(*at)).unwrap();
        assert_eq!(store.commit(put(&claim)).await, Ok(Swap::Done));
    }
    claim
}

async fn a_claim_is_created_only_if_absent<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let first = sample::claim("k", 100);
    let mut second = first.clone();
    second.challenge_id = "another".to_owned();
    assert_eq!(store.claim(&first.key).await, Ok(None));
    assert_eq!(store.commit(put(&first)).await, Ok(Swap::Done));
    assert_eq!(store.commit(put(&second)).await, Ok(Swap::Lost(Box::new(Some(first.clone())))));
    assert_eq!(store.claim(&first.key).await, Ok(Some(first)));
}

async fn a_record_is_replaced_only_by_the_one_that_follows_it<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let now = keep(&*store, "k", &[(Op::PayUnserved { transaction: None }, 1_010)]).await;
    for (key, revision, why) in [
        ("k", 2, "the same revision again"),
        ("k", 1, "back to the beginning"),
        ("k", 4, "a revision left out"),
        ("k", 0, "no revision"),
        ("k", u64::MAX, "the largest there is"),
    ] {
        let mut next = owed(key, 1_010);
        next.revision = revision;
        match store.commit(put(&next)).await {
            Ok(swap) => assert_eq!(swap, Swap::Lost(Box::new(Some(now.clone()))), "{why}"),
            // A store that others share takes it for a sign that the record before it was lost.
            Err(_) => assert!(revision > now.revision + 1, "{why}"),
        }
        assert_eq!(store.claim(&now.key).await, Ok(Some(now.clone())), "{why}");
    }
    let orphan = owed("gone", 1_010);
    assert_eq!(store.commit(put(&orphan)).await, Ok(Swap::Lost(Box::new(None))), "a lost record is not resurrected");
    assert_eq!(store.claim(&now.key).await, Ok(Some(now)));
    assert_eq!(store.claim(&orphan.key).await, Ok(None));
}

async fn of_many_writers_of_one_revision_exactly_one_wins<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let mut claim = sample::claim("k", 100);
    store.commit(put(&claim)).await.unwrap();
    for round in 0..4 {
        let writers: Vec<_> = (0..64)
            .map(|who| {
                let (store, from) = (store.clone(), claim.clone());
                let by = format!("{round}-{who}");
                tokio::spawn(async move {
                    let crate::claim::Standing::Claimed { by: from_by } = from.standing.clone() else { panic!() };
                    let next = from.apply(Op::TakeOver { from: from_by, by }, UnixSeconds(1_010)).unwrap();
                    (store.commit(put(&next)).await.unwrap(), next)
                })
            })
            .collect();
        let mut won = Vec::new();
        for writer in writers {
            if let (Swap::Done, next) = writer.await.unwrap() {
                won.push(next);
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        claim = won.remove(0);
        assert_eq!(store.claim(&claim.key).await, Ok(Some(claim.clone())), "and it is the one that was told so");
    }
}

async fn a_write_that_loses_writes_nothing_at_all<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let claim = keep(&*store, "k", &[]).await;
    let again = Write {
        claim: Some(claim),
        journal: vec![Entry::Receipt(Box::new(receipt("r1", "0xk", 100)))],
        tally: vec![("lost".to_owned(), 1, Usd::ONE)],
        ..Write::default()
    };
    assert!(matches!(store.commit(again).await, Ok(Swap::Lost(_))));
    assert_eq!(store.receipt("r1").await, Ok(None));
    assert_eq!(store.tally("lost", 1).await, Ok(Usd::ZERO));
}

/// What a request promises, for tests of brief writes.
fn promised(key: &str, by: &str) -> Claim {
    Claim { standing: Standing::Promised { by: by.to_owned() }, ..sample::claim(key, 100) }
}

fn briefly(claim: &Claim) -> Write {
    let amount = claim.terms.amount;
    let line = Entry::Claimed { key: claim.key.0.clone(), amount, reference: "0x".to_owned(), at: UnixSeconds(1_000) };
    Write { journal: vec![line], brief: true, ..put(claim) }
}

async fn what_is_written_briefly_is_seen_at_once_and_durable_with_the_next_write<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let (first, second) = (promised("k", "r1"), promised("k", "r2"));
    assert_eq!(store.commit(briefly(&first)).await, Ok(Swap::Done));
    assert_eq!(store.claim(&first.key).await, Ok(Some(first.clone())));
    let lost = Ok(Swap::Lost(Box::new(Some(first.clone()))));
    assert_eq!(store.commit(briefly(&second)).await, lost, "a copy is told who has it");
    assert_eq!(store.commit(put(&second)).await, lost, "and so is one that is to last");

    let gone = first.apply(Op::Forgo { by: "r1".into() }, UnixSeconds(1_010)).unwrap();
    assert_eq!(store.commit(Write { journal: vec![], ..put(&gone) }).await, Ok(Swap::Done));
    assert_eq!(store.claim(&first.key).await, Ok(Some(gone.clone())), "what is durable counts");
    let again = Claim { revision: 3, ..promised("k", "r3") };
    assert_eq!(store.commit(briefly(&again)).await, Ok(Swap::Done), "on what is durable it may follow");
    let taking = Op::Take { by: "r3".into(), amount: Atoms(100), output: None, receipt: None };
    let taking = again.apply(taking, UnixSeconds(1_020)).unwrap();
    assert_eq!(store.commit(put(&taking)).await, Ok(Swap::Done));

    drop(store);
    let store = bench.open();
    assert_eq!(store.claim(&first.key).await, Ok(Some(taking.clone())));
    assert_eq!(store.open_claims(UnixSeconds(1_030)).await, Ok(vec![taking]));
}

async fn of_brief_and_durable_writers_of_one_claim_exactly_one_wins<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    for round in 0..8 {
        let writers: Vec<_> = (0..64)
            .map(|who| {
                let (store, claim) = (store.clone(), promised(&format!("k{round}"), &who.to_string()));
                let write = if who % 2 == 0 { briefly(&claim) } else { put(&claim) };
                tokio::spawn(async move { (store.commit(write).await.unwrap(), claim) })
            })
            .collect();
        let mut won = Vec::new();
        for writer in writers {
            if let (Swap::Done, claim) = writer.await.unwrap() {
                won.push(claim);
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(store.claim(&won[0].key).await, Ok(Some(won.remove(0))), "and it is the one that was told so");
    }
}

async fn everything_acknowledged_is_there_after_a_restart<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let claim = sample::claim("k", 100);
    let sold = receipt("r1", "0xk", 100);
    let write = Write {
        claim: Some(claim.clone()),
        journal: vec![Entry::Receipt(Box::new(sold.clone()))],
        tally: vec![("day".to_owned(), 7, Usd(5))],
        ..Write::default()
    };
    assert_eq!(store.commit(write).await, Ok(Swap::Done));
    let facts = [("tempo".to_owned(), "payee".to_owned())];
    assert_eq!(store.facts(&facts, false).await, Ok(vec![]));
    drop(store);
    let store = bench.open();
    assert_eq!(store.claim(&claim.key).await, Ok(Some(claim.clone())));
    assert_eq!(store.receipt("r1").await, Ok(Some(sold)));
    assert_eq!(store.tally("day", 7).await, Ok(Usd(5)));
    assert_eq!(store.facts(&[("tempo".to_owned(), "other".to_owned())], false).await.unwrap().len(), 1);
    assert_eq!(
        store.commit(put(&claim)).await,
        Ok(Swap::Lost(Box::new(Some(claim)))),
        "and it still swaps by revision"
    );
}

async fn only_what_is_over_and_past_its_time_is_forgotten<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let by = || "r0".to_owned();
    let pay = || (Op::Pay { by: by(), transaction: None }, 1_100);
    // Collectable until 1,300; paid at 1,100, so redeemable until 2,000; kept a day longer.
    let (unpaid_end, paid_end) = (1_300 + 86_400, 2_000 + 86_400);
    keep(&*store, "claimed", &[]).await;
    keep(&*store, "serving", &[pay()]).await;
    keep(&*store, "owed", &[pay(), (Op::GiveBack { by: by() }, 1_200)]).await;
    keep(&*store, "delivered", &[pay(), (Op::Deliver { by: by(), receipt: "r".into() }, 1_200)]).await;
    keep(&*store, "dead", &[(Op::Die, 1_200)]).await;
    for (now, want, left, why) in [
        (1_300, 0, &["claimed", "serving", "owed", "delivered", "dead"][..], "nothing is past its time"),
        (unpaid_end, 0, &["claimed", "serving", "owed", "delivered", "dead"], "the last second counts"),
        (unpaid_end + 1, 1, &["claimed", "serving", "owed", "delivered"], "the dead one; the claimed one is not over"),
        (
            paid_end,
            0,
            &["claimed", "serving", "owed", "delivered"],
            "paid ones are kept until redemption ended, and a day",
        ),
        (paid_end + 1, 2, &["claimed", "serving"], "money that is still in motion is never forgotten"),
        (u64::MAX, 0, &["claimed", "serving"], "however late it is"),
    ] {
        assert_eq!(store.forget(UnixSeconds(now)).await, Ok(want), "{why}");
        for key in ["claimed", "serving", "owed", "delivered", "dead"] {
            let there = store.claim(&ClaimKey(key.to_owned())).await.unwrap().is_some();
            assert_eq!(there, left.contains(&key), "{key} at {now}: {why}");
        }
    }
}

async fn open_claims_are_those_recovery_must_look_at<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let pay = || (Op::Pay { by: "r0".to_owned(), transaction: None }, 1_100);
    keep(&*store, "claimed", &[]).await;
    keep(&*store, "serving", &[pay()]).await;
    keep(&*store, "owed", &[(Op::PayUnserved { transaction: None }, 1_100)]).await;
    keep(&*store, "delivered", &[pay(), (Op::Deliver { by: "r0".into(), receipt: "r".into() }, 1_200)]).await;
    keep(&*store, "dead", &[(Op::Die, 1_200)]).await;
    // Somebody else's proof after all: claimed anew under another offer.
    let dead = keep(&*store, "anew", &[(Op::Die, 1_200)]).await;
    let anew = Claim { revision: dead.revision + 1, challenge_id: "another".to_owned(), ..sample::claim("anew", 100) };
    assert_eq!(store.commit(put(&anew)).await, Ok(Swap::Done));
    for (now, want) in [(2_000, &["anew", "claimed", "owed", "serving"][..]), (2_001, &["anew", "claimed", "serving"])]
    {
        let open = store.open_claims(UnixSeconds(now)).await.unwrap();
        let mut keys: Vec<_> = open.iter().map(|c| c.key.0.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, want, "at {now}");
    }
}

async fn the_newest_receipt_of_an_id_counts<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let mut sold = receipt("r1", "0xa", 100);
    sold.complete = false;
    for complete in [false, true] {
        sold.complete = complete;
        let write = Write { journal: vec![Entry::Receipt(Box::new(sold.clone()))], ..Write::default() };
        assert_eq!(store.commit(write).await, Ok(Swap::Done));
        assert_eq!(store.receipt("r1").await, Ok(Some(sold.clone())));
    }
    assert_eq!(store.receipt("r2").await, Ok(None));
}

async fn totals_add_up_by_name_and_day<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let add = |name: &str, day, amount| (name.to_owned(), day, Usd(amount));
    let adds = [vec![add("a", 1, 1), add("a", 1, 2), add("a", 2, 4)], vec![add("b", 1, 8), add("a", 1, 16)]];
    for tally in adds {
        assert_eq!(store.commit(Write { tally, ..Write::default() }).await, Ok(Swap::Done));
    }
    let over = Write { tally: vec![add("b", 2, 1), add("b", 1, u128::MAX)], ..Write::default() };
    assert!(store.commit(over).await.is_err(), "a total that cannot be counted is refused");
    for (name, day, want) in [("a", 1, 19), ("a", 2, 4), ("b", 1, 8), ("b", 2, 0), ("c", 1, 0)] {
        assert_eq!(store.tally(name, day).await, Ok(Usd(want)), "{name} on {day}");
    }
    assert_eq!(store.standing(), Ok(()), "and the store goes on");
}

async fn changed_facts_are_told_and_kept_out_until_accepted<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    for (facts, accept, differences, why) in [
        (&[("tempo", "A")][..], false, 0, "the first run has nothing to differ from"),
        (&[("tempo", "B")], false, 1, "another payee"),
        (&[("tempo", "B")], false, 1, "still another: it was not accepted"),
        (&[("tempo", "A")], false, 0, "back to the old one"),
        (&[("tempo", "B")], true, 1, "told, and accepted"),
        (&[("tempo", "B")], false, 0, "so it is the known one now"),
        (&[("tempo", "B"), ("session", "B")], false, 0, "another name for where money goes already"),
        (&[("tempo", "B"), ("base", "C")], false, 1, "a new place for money to go"),
        (&[("tempo", "B"), ("base", "C")], true, 1, "accepted"),
        (&[("tempo", "B")], false, 0, "a rail taken away moves no money"),
        (&[("tempo", "B"), ("base", "D")], false, 1, "and is remembered when it comes back changed"),
        (&[("tempo", "D"), ("base", "D")], false, 2, "every difference at once"),
    ] {
        let facts: Vec<_> = facts.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
        let told = store.facts(&facts, accept).await.unwrap();
        assert_eq!(told.len(), differences, "{why}: {told:?}");
    }
}

fn opening(id: &str, payer: &str) -> Channel {
    let word = |w: &str| format!("0x{w}");
    let descriptor = Descriptor {
        payer: word(payer),
        payee: word("payee"),
        operator: word("0"),
        token: word("token"),
        salt: word("salt"),
        authorized_signer: word("0"),
        expiring_nonce_hash: word("nonce"),
    };
    let open = Intent { act: Act::Open, tx: "0xtx".into(), raw: "0x76".into(), valid_until: UnixSeconds(2_000) };
    let voucher = Voucher { amount: Atoms(5), signature: "0xsig".into() };
    Channel::opening(
        ChannelId(id.into()),
        "tempo/session".into(),
        42431,
        "0xescrow".into(),
        descriptor,
        6,
        Atoms(100),
        voucher,
        open,
        UnixSeconds(1_000),
    )
}

fn changed(channel: &Channel, name: &str, op: ChannelOp) -> Channel {
    channel.apply(name, op, UnixSeconds(1_100)).unwrap().0
}

fn keeping(channel: &Channel) -> Write {
    Write { channel: Some(channel.clone().into()), ..Write::default() }
}

async fn a_channel_is_kept_by_its_revision_and_listed_until_it_is_over<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let gate = store.gate().to_owned();
    let rail = "tempo/session".into();
    let (a, b, other) = (opening("0xa", "p"), opening("0xb", "p"), opening("0xc", "q"));
    for channel in [&b, &a, &other] {
        assert_eq!(store.commit(keeping(channel)).await, Ok(Swap::Done));
        let again = store.commit(keeping(channel)).await;
        assert_eq!(again, Ok(Swap::Overtaken(Box::new(Some(channel.clone())))), "it is made once");
    }
    let view = View { block: 7, deposit: Atoms(100), settled: Atoms(0), close_requested_at: None };
    let open = changed(&a, "1", ChannelOp::Landed { tx: "0xtx".into(), mined: None, view });
    assert_eq!(store.commit(keeping(&open)).await, Ok(Swap::Done));
    let stale = changed(&a, "2", ChannelOp::Dropped { tx: "0xtx".into() });
    let told = store.commit(keeping(&stale)).await;
    assert_eq!(told, Ok(Swap::Overtaken(Box::new(Some(open.clone())))), "a stale writer hears what is there");
    let failed = changed(&b, "3", ChannelOp::Dropped { tx: "0xtx".into() });
    assert_eq!(store.commit(keeping(&failed)).await, Ok(Swap::Done));
    drop(store);

    let store = bench.open();
    assert_eq!(store.gate(), gate, "a gate is the same after a restart");
    assert_eq!(store.alive(&gate).await, Ok(true));
    assert_eq!(store.channels().await.unwrap(), [open.clone(), other.clone()], "in order, without what is over");
    assert_eq!(store.channels_of(&rail, "0xp").await.unwrap(), std::slice::from_ref(&open));
    assert_eq!(store.channels_of(&"tempo2/session".into(), "0xp").await.unwrap(), [], "of this rail");
    assert_eq!(store.channel(&failed.id).await, Ok(Some(failed)), "who comes back to one is told that it is over");
    assert_eq!(store.channel(&ChannelId("0xd".into())).await, Ok(None));
    let both = Write { claim: Some(sample::claim("k", 1)), ..keeping(&open) };
    assert!(store.commit(both).await.is_err(), "a claim or a channel, never both");
}

async fn of_many_writers_of_one_channel_exactly_one_wins<B: Bench>() {
    let bench = B::fresh();
    let store = bench.open();
    let first = opening("0xa", "p");
    store.commit(keeping(&first)).await.unwrap();
    let writers: Vec<_> = (0..64)
        .map(|who| {
            let next = Channel { revision: first.revision + 1, touched_at: UnixSeconds(who), ..first.clone() };
            let store = store.clone();
            tokio::spawn(async move { store.commit(keeping(&next)).await.unwrap() })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        won += usize::from(writer.await.unwrap() == Swap::Done);
    }
    assert_eq!(won, 1);
}
