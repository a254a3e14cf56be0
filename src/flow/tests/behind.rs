//! What a node that is behind says of a channel, and what it says of a transaction that it has seen before: neither makes a payer pay twice.

use super::sessions::{BY_TOKEN, bed, channel, opening, session, voucher};
use super::*;
use crate::channel::{ChannelId, View};
use crate::flow::control;
use crate::rail::session::Outcome;

/// What the node says of the channel `0xaa` from now on.
fn says(bed: &Bed, block: u64, deposit: u128) {
    let view = View { block, deposit: Atoms(deposit), settled: Atoms(0), close_requested_at: None };
    bed.purse.chain.lock().unwrap().insert(ChannelId("0xaa".into()), view);
}

#[tokio::test]
async fn a_node_behind_the_opening_closes_no_channel_that_another_gate_has_opened() {
    let mut bed = bed();
    let body = ask("m", 10);
    drop(bed.pay(BY_TOKEN, &body, &opening("0xaa", 5_000, 50_000)).await.unwrap());
    until(|| async { bed.toll.channels.newest(&ChannelId("0xaa".into())).await.unwrap().unwrap().leases.is_empty() })
        .await;
    let known = bed.store.inner.channel(&ChannelId("0xaa".into())).await.unwrap().unwrap().view.block;
    // Nothing but the record is left, as at another gate; whose node has not heard of the block of the opening.
    bed.restart();
    says(&bed, known - 1, 0);
    bed.pay(BY_TOKEN, &body, &voucher("0xaa", 6_000)).await.map(drop).unwrap();
    assert_eq!(bed.purse.reads.load(Ordering::SeqCst), 1, "it was asked");
    // The same word of the block that the record knows, or of a later one, is the end of it.
    bed.restart();
    says(&bed, known, 0);
    let stop = stopped(bed.pay(BY_TOKEN, &body, &voucher("0xaa", 7_000)).await);
    assert_eq!(stop.refusal, Refusal::ChannelOver);
}

#[tokio::test]
async fn a_top_up_that_landed_is_never_asked_for_again_because_a_second_would_fail() {
    let mut bed = bed();
    drop(bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 500, 1_000)).await.unwrap());
    let more = session(json!({"action": "topUp", "channelId": "0xaa", "additional": "9000", "tx": "more"}));
    let shown = |bed: &Bed| {
        let toll = Arc::clone(&bed.toll);
        let more = more.clone();
        async move { control::manage(&toll, toll.rules.plan().route(BY_TOKEN).unwrap(), &more).await.map(drop) }
    };
    shown(&bed).await.unwrap();
    // Its answer is lost, and so is what the gate remembers; and its payer has not so much again.
    bed.restart();
    bed.purse.fails.store(9, Ordering::SeqCst);
    shown(&bed).await.unwrap();
    let known = channel(&bed, "0xaa").await.view;
    assert_eq!(known.deposit, Atoms(10_000), "once");
    assert_eq!(bed.purse.mined.lock().unwrap().len(), 2, "the opening and one top-up");

    // A node that is behind the record has not heard of it: that is no reason to ask for another.
    bed.restart();
    says(&bed, known.block - 1, 1_000);
    bed.purse.outcomes.lock().unwrap().push_back(Outcome::Unknown);
    bed.purse.mined.lock().unwrap().retain(|intent| intent.tx != "0xmore");
    assert_eq!(shown(&bed).await.unwrap_err().refusal.code(), "payment_unknown");

    // One that knows what the record knows, and not this top-up: it was never sent.
    bed.restart();
    says(&bed, known.block, 10_000);
    bed.purse.outcomes.lock().unwrap().push_back(Outcome::Unknown);
    let stop = shown(&bed).await.unwrap_err();
    assert_eq!((stop.refusal.code(), stop.refusal.status()), ("payment_invalid", 402));

    // One that was behind when it tried it, and is not any more when it is looked for: it is tried again.
    bed.restart();
    bed.purse.fails.store(1, Ordering::SeqCst);
    bed.purse.outcomes.lock().unwrap().push_back(Outcome::Unknown);
    shown(&bed).await.unwrap();
    assert_eq!(bed.purse.fails.load(Ordering::SeqCst), 0);
}
