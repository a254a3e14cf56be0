//! Calls over a session that come whole: one write each.

use super::sessions::{BY_TOKEN, REPLY, audited, bed, channel, delivery, newest, opening, voucher};
use super::*;
use crate::channel::{ChannelId, Op, OrphanPolicy, View};
use crate::flow::settle::Delivery;
use crate::money::Atoms;
use crate::refusal::Moved;
use std::pin::pin;
use std::task::{Context, Waker};

#[tokio::test]
async fn a_call_that_comes_whole_is_one_write_and_every_other_answer_waits_for_it() {
    let bed = bed();
    let (id, body) = (ChannelId("0xaa".into()), ask("m", 100));
    let first = bed.pay(BY_TOKEN, &body, &opening("0xaa", 1_100, 50_000)).await.unwrap();
    delivery(&bed, first).whole(Bytes::from_static(REPLY)).await.unwrap();
    let writes = || bed.store.commits.load(Ordering::SeqCst);
    let before = (writes(), channel(&bed, "0xaa").await);

    let paid = bed.pay(BY_TOKEN, &body, &voucher("0xaa", 1_200)).await.unwrap();
    assert_eq!((writes(), channel(&bed, "0xaa").await), before, "nothing of it is shown, and nothing is written");
    assert_eq!(newest(&bed, "0xaa").await.leases.len(), 1);
    let stop = stopped(bed.pay(BY_TOKEN, &body, &voucher("0xaa", 1_300)).await);
    assert_eq!(stop.refusal.code(), "insufficient_balance", "what one request holds no other can have");
    let both = channel(&bed, "0xaa").await;
    assert_eq!(
        (both.accepted(), both.leases.len()),
        (Atoms(1_300), 1),
        "an answer about the voucher is one about the record"
    );
    let writes_before = writes();
    delivery(&bed, paid).whole(Bytes::from_static(REPLY)).await.unwrap();
    assert_eq!((writes() - writes_before, channel(&bed, "0xaa").await.spent()), (1, Atoms(2 * 79)));

    // One write for a whole call, with the line of its voucher.
    let writes_before = writes();
    let paid = bed.pay(BY_TOKEN, &body, &voucher("0xaa", 3_000)).await.unwrap();
    delivery(&bed, paid).whole(Bytes::from_static(REPLY)).await.unwrap();
    let after = channel(&bed, "0xaa").await;
    assert_eq!((writes() - writes_before, after.accepted(), after.spent()), (1, Atoms(3_000), Atoms(3 * 79)));

    // The same voucher shown once more is acknowledged, so it is durable by then.
    let paid = bed.pay(BY_TOKEN, &body, &voucher("0xaa", 3_500)).await.unwrap();
    assert_eq!(channel(&bed, "0xaa").await.accepted(), Atoms(3_000));
    let highest = newest(&bed, "0xaa").await.highest().unwrap().clone();
    let op = Op::Accept { voucher: highest, min_delta: Atoms(0) };
    bed.toll.channels.one(&id, op).await.unwrap().1.unwrap();
    let now = channel(&bed, "0xaa").await;
    assert_eq!((now.accepted(), now.leases.len()), (Atoms(3_500), 1));
    let second = bed.pay(BY_TOKEN, &body, &voucher("0xaa", 4_000)).await.unwrap();
    assert_eq!(channel(&bed, "0xaa").await, now);
    assert_eq!(
        *bed.toll.channels.written(&id).await.unwrap(),
        channel(&bed, "0xaa").await,
        "nor is the record shown before"
    );
    assert_eq!(channel(&bed, "0xaa").await.accepted(), Atoms(4_000));
    delivery(&bed, second).fail(Refusal::UpstreamFailed { why: "test" }).await;
    delivery(&bed, paid).fail(Refusal::UpstreamFailed { why: "test" }).await;
    assert_eq!(channel(&bed, "0xaa").await.spent(), Atoms(3 * 79));
    audited(bed).await;
}

#[tokio::test]
async fn a_call_that_died_with_the_gate_cost_nothing_and_its_credential_is_good_again() {
    let mut bed = bed();
    let body = ask("m", 100);
    let first = bed.pay(BY_TOKEN, &body, &opening("0xaa", 2_000, 50_000)).await.unwrap();
    delivery(&bed, first).whole(Bytes::from_static(REPLY)).await.unwrap();
    let shown = voucher("0xaa", 2_500);
    std::mem::forget(bed.pay(BY_TOKEN, &body, &shown).await.unwrap());
    bed.restart();
    let found = channel(&bed, "0xaa").await;
    assert_eq!((found.spent(), found.leased(), found.accepted()), (Atoms(79), Atoms(0), Atoms(2_000)));
    let paid = bed.pay(BY_TOKEN, &body, &shown).await.unwrap();
    delivery(&bed, paid).whole(Bytes::from_static(REPLY)).await.unwrap();
    assert_eq!(channel(&bed, "0xaa").await.spent(), Atoms(2 * 79));
    audited(bed).await;
}

/// A second call whose reply has come, of a channel on which the first was charged 79 atoms.
async fn second_call(bed: &Bed) -> Delivery {
    let body = ask("m", 100);
    let first = bed.pay(BY_TOKEN, &body, &opening("0xaa", 2_000, 50_000)).await.unwrap();
    delivery(bed, first).whole(Bytes::from_static(REPLY)).await.unwrap();
    delivery(bed, bed.pay(BY_TOKEN, &body, &voucher("0xaa", 2_500)).await.unwrap())
}

#[tokio::test]
async fn a_reply_that_was_withheld_is_not_charged_unless_the_record_cannot_be_changed_any_more() {
    for (written, spent, why) in [
        (false, 79, "the store took nothing: only the call that was delivered costs anything"),
        (true, 2 * 79, "it was written, and nobody could say so in time: what is spent never shrinks"),
    ] {
        let bed = bed();
        let mut call = second_call(&bed).await;
        bed.store.fail(1, written);
        let stop = call.whole(Bytes::from_static(REPLY)).await.unwrap_err();
        assert_eq!((stop.moved, stop.claimed), (Moved::Undelivered, true), "{why}");
        let counted = bed.toll.metrics.charged_usd.with_label_values(&["tempo/session"]).get();
        assert_eq!((counted * 1e6).round(), 79.0, "{why}: only what was sold");
        drop(call);
        // The store answers again.
        *bed.store.fails.lock().unwrap() = None;
        until(|| async { channel(&bed, "0xaa").await.leases.is_empty() }).await;
        until(|| async { channel(&bed, "0xaa").await.accepted() == Atoms(2_500) }).await;
        assert_eq!(channel(&bed, "0xaa").await.spent(), Atoms(spent), "{why}");
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_reply_that_nobody_will_pay_for_does_not_leave() {
    let gone = View { block: u64::MAX, deposit: Atoms(0), settled: Atoms(0), close_requested_at: None };
    let orphaned = |bed: &Bed| Op::Orphan { gate: bed.store.gate().to_owned(), policy: OrphanPolicy::default() };
    for (op, code, why) in [
        (&orphaned as &dyn Fn(&Bed) -> Op, "channel_busy", "this gate was taken for dead"),
        (&|_| Op::Look { view: gone }, "channel_finalized", "the payer has withdrawn"),
    ] {
        let bed = bed();
        let mut call = second_call(&bed).await;
        bed.toll.channels.one(&ChannelId("0xaa".into()), op(&bed)).await.unwrap().1.unwrap();
        let stop = call.whole(Bytes::from_static(REPLY)).await.unwrap_err();
        assert_eq!((stop.refusal.code(), stop.claimed), (code, true), "{why}");
        drop(call);
        let after = channel(&bed, "0xaa").await;
        assert_eq!((after.spent(), after.leases.len()), (Atoms(79), 0), "{why}: nor does it cost anything");
    }
}

#[tokio::test]
async fn a_reply_that_breaks_off_while_the_store_fails_is_not_charged() {
    let bed = bed();
    let mut call = second_call(&bed).await;
    let before = bed.store.commits.load(Ordering::SeqCst);
    bed.store.fail(1, false);
    {
        let mut sending = pin!(call.whole(Bytes::from_static(REPLY)));
        while bed.store.commits.load(Ordering::SeqCst) == before {
            assert!(sending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            tokio::task::yield_now().await;
        }
    }
    drop(call);
    *bed.store.fails.lock().unwrap() = None;
    until(|| async { newest(&bed, "0xaa").await.leases.is_empty() }).await;
    assert_eq!(channel(&bed, "0xaa").await.spent(), Atoms(79));
    audited(bed).await;
}

#[tokio::test]
async fn a_reply_that_was_charged_and_withheld_is_not_called_delivered_in_the_books() {
    let bed = bed();
    let mut call = second_call(&bed).await;
    bed.store.fail(1, true);
    call.whole(Bytes::from_static(REPLY)).await.unwrap_err();
    *bed.store.fails.lock().unwrap() = None;
    let id = call.receipt().id.clone();
    let found = || async { bed.store.inner.receipt(&id).await.unwrap().unwrap() };
    until(|| async { !found().await.complete }).await;
    assert_eq!(found().await.charged, Atoms(79));
    drop(call);
    audited(bed).await;
}

#[tokio::test]
async fn a_store_that_answers_again_in_time_keeps_no_reply_back_and_charges_it_once() {
    for (written, loses, why) in [
        (Some(false), 0, "it had taken nothing"),
        (Some(true), 0, "it had written, and the answer was lost"),
        (None, 1, "another gate was faster, again and again"),
    ] {
        let bed = bed();
        let mut call = second_call(&bed).await;
        let before = bed.store.commits.load(Ordering::SeqCst);
        if let Some(written) = written {
            bed.store.fail(1, written);
        }
        bed.store.loses.store(loses, Ordering::SeqCst);
        let comes_back = async {
            until(|| async { bed.store.commits.load(Ordering::SeqCst) > before }).await;
            *bed.store.fails.lock().unwrap() = None;
        };
        let (sent, ()) = tokio::join!(call.whole(Bytes::from_static(REPLY)), comes_back);
        assert!(sent.is_ok(), "{why}: {sent:?}");
        let after = channel(&bed, "0xaa").await;
        assert_eq!((after.spent(), after.leased(), after.accepted()), (Atoms(2 * 79), Atoms(0), Atoms(2_500)), "{why}");
        let receipt = bed.store.inner.receipt(&call.receipt().id).await.unwrap().unwrap();
        assert_eq!((receipt.charged, receipt.complete), (Atoms(79), true), "{why}");
        drop(call);
        audited(bed).await;
    }
}
