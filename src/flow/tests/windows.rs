//! When the windows of a stream are leased.

use super::sessions::{BY_TOKEN, ROUTE, bed, delivery, newest, opening, streamed, words};
use super::*;
use crate::channel::{Lease, OrphanPolicy};
use crate::flow::settle::Delivery;

/// The only lease, once the record says that something of it was delivered, and how many writes that took.
async fn begun(bed: &Bed, stream: &mut Delivery, before: u64) -> (Lease, u64) {
    stream.chunk(words(1), &mut Vec::new()).await.unwrap();
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let now = newest(bed, "0xaa").await;
        let lease = now.leases.values().next().unwrap().clone();
        if lease.used.is_some() {
            return (lease, now.revision - before);
        }
        assert!(tokio::time::Instant::now() < end, "the first word is never marked");
        tokio::task::yield_now().await;
    }
}

/// A stream of 1,000 tokens that has leased all it can cost: the model hides a part of its output.
async fn hiding(bed: &Bed) -> Delivery {
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 20_000, 50_000)).await.unwrap();
    delivery(bed, paid)
}

fn hidden() -> Bed {
    Bed::with(&[
        ROUTE,
        ("tiers.toml", "max_output_tokens = 100", "max_output_tokens = 1000"),
        // Its servers keep no running count.
        ("pools.toml", "vllm", "openai"),
        (
            "models.toml",
            "pool = \"p\"\nprice = { input = \"1\"",
            "pool = \"p\"\nhidden_output = true\nprice = { input = \"1\"",
        ),
    ])
}

#[tokio::test]
async fn a_stream_that_has_leased_all_it_can_cost_tells_the_record_how_far_it_is_once_for_each_window() {
    let bed = hidden();
    let mut stream = hiding(&bed).await;
    let before = newest(&bed, "0xaa").await;
    let (all, start) = (before.leases.values().next().unwrap().cap, before.revision);
    let mut most = 0;
    for delivered in 1..=400 {
        stream.chunk(words(1), &mut Vec::new()).await.unwrap();
        let held = || async { newest(&bed, "0xaa").await.leases.values().next().unwrap().clone() };
        // Of every token 10 atoms. What left while it is written is all that is not told at once.
        until(|| async { held().await.orphaned(OrphanPolicy::Charge).0 >= 10 * delivered }).await;
        let held = held().await;
        let hides = held.orphaned(OrphanPolicy::Charge).0 - held.orphaned(OrphanPolicy::Refund).0;
        assert!(hides <= 10 * 256 && held.cap == all, "{held:?}");
        most = held.orphaned(OrphanPolicy::Refund).0;
    }
    let writes = newest(&bed, "0xaa").await.revision - start;
    assert!(most > 10 * 100 && writes <= 400 / 16, "{most} of 4,000 in {writes} writes");
    drop(stream);
}

#[tokio::test]
async fn what_could_not_be_told_is_told_with_the_next_word() {
    let bed = hidden();
    let mut stream = hiding(&bed).await;
    let before = bed.store.commits.load(Ordering::SeqCst);
    bed.store.fail(1, false);
    stream.chunk(words(1), &mut Vec::new()).await.unwrap();
    until(|| async { bed.store.commits.load(Ordering::SeqCst) > before }).await;
    *bed.store.fails.lock().unwrap() = None;
    // Fewer than a window: only the first is told without having failed.
    let mut told = false;
    for _ in 0..20 {
        let lease = newest(&bed, "0xaa").await.leases.values().next().unwrap().clone();
        told |= lease.used.is_some();
        stream.chunk(words(1), &mut Vec::new()).await.unwrap();
        bed.toll.channels.written(&ChannelId("0xaa".into())).await.unwrap();
    }
    assert!(told, "twenty words later the record does not know of the first");
    drop(stream);
}

#[tokio::test]
async fn the_first_word_leases_a_second_window_in_one_write_where_the_channel_is_paid_far_ahead() {
    for (accepted, pace, window, why) in [
        (450, None, 0, "there is cover for the first alone"),
        (1_500, None, 0, "and for three more, but not for four"),
        (1_700, None, 320, "and for four: as large as the first, nobody having seen how fast this model is"),
        (1_700, Some(100), 0, "four of a fast model are more"),
        (20_000, Some(100), 1_000, "half a second, as the last stream had it"),
    ] {
        let bed = bed();
        if let Some(tokens) = pace {
            bed.toll.channels.streams_at(&"m".into(), tokens);
        }
        let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", accepted, 50_000)).await.unwrap();
        let before = newest(&bed, "0xaa").await;
        let cap = before.leases.values().next().unwrap().cap;
        let mut stream = delivery(&bed, paid);
        let (lease, writes) = begun(&bed, &mut stream, before.revision).await;
        assert_eq!((lease.cap.0 - cap.0, writes), (window, 1), "{why}");
    }
}
