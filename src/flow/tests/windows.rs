//! When the windows of a stream are leased.

use super::sessions::{BY_TOKEN, ROUTE, bed, delivery, newest, opening, streamed, text, words};
use super::*;
use crate::channel::{Act, Intent, Lease, Op, OrphanPolicy, View};
use crate::flow::settle::{Delivery, End, Next};

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
        // Of every token 10 atoms, and of every byte about a quarter. What left while it is written is all that is not told at once.
        until(|| async { held().await.orphaned(OrphanPolicy::Charge).0 >= 10 * u128::div_ceil(delivered, 4) }).await;
        let held = held().await;
        let hides = held.orphaned(OrphanPolicy::Charge).0 - held.orphaned(OrphanPolicy::Refund).0;
        assert!(hides <= 10 * 256 && held.cap == all, "{held:?}");
        most = held.orphaned(OrphanPolicy::Refund).0;
    }
    let writes = newest(&bed, "0xaa").await.revision - start;
    assert!(most > 10 * 25 && writes <= 400 / 16, "{most} of 1,000 in {writes} writes");
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
async fn while_the_record_does_not_take_how_far_a_stream_is_no_more_than_a_window_of_it_leaves() {
    for comes_back in [true, false] {
        let bed = hidden().under(|terms| terms.pause_seconds = 12);
        let mut stream = hiding(&bed).await;
        let before = newest(&bed, "0xaa").await.revision;
        begun(&bed, &mut stream, before).await;
        stream.first_byte().await.unwrap();
        bed.store.fail(1, false);
        let (mut out, mut next) = (Vec::new(), Next::Go);
        for _ in 0..200 {
            next = stream.chunk(words(4), &mut out).await.unwrap();
            // What is under way comes to its end.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            if next == Next::Hold {
                break;
            }
        }
        assert_eq!(next, Next::Hold, "all of it left, and nobody will know that it did");
        let left = text(&out).matches('a').count();
        assert!((40..600).contains(&left), "{left} bytes: a window of 16 to 256 tokens, and what left as it was told");
        if comes_back {
            *bed.store.fails.lock().unwrap() = None;
            while stream.resume(&mut out).await == Next::Hold {}
            assert_eq!(stream.chunk(words(4), &mut out).await.unwrap(), Next::Go);
            assert!(text(&out).matches('a').count() > left);
            continue;
        }
        tokio::time::pause();
        while stream.resume(&mut out).await == Next::Hold {}
        tokio::time::resume();
        out.clear();
        stream.end(End::Unpaid, &mut out).await;
        assert!(text(&out).contains("store_unavailable"), "no word about his balance: {}", text(&out));
        *bed.store.fails.lock().unwrap() = None;
    }
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

#[tokio::test]
async fn nothing_leaves_of_a_stream_once_its_channel_is_paid_out_however_much_is_leased() {
    let id = ChannelId("0xaa".into());
    let gone = View { block: 99, deposit: Atoms(0), settled: Atoms(0), close_requested_at: None };
    let asked = View { deposit: Atoms(50_000), close_requested_at: Some(UnixSeconds::now()), ..gone };
    let paying_out = |channel: &Channel| {
        let act = Act::Close { amount: channel.accepted(), capture: channel.capture() };
        Op::Intend { intent: Intent { act, tx: "0xours".into(), raw: "0x".into(), valid_until: UnixSeconds::now() } }
    };
    for (began, state, code, why) in [
        (true, "open", None, "the channel is as it was"),
        (true, "asked to close", None, "what is used is claimed with the close"),
        (true, "waited long enough", Some("channel_finalized"), "what it was known to have used is claimed without it"),
        (true, "taken for dead", Some("channel_busy"), "another gate has ended it and sells its money to others"),
        (false, "taken for dead", Some("channel_busy"), "before its first word nothing was charged either"),
        (true, "paying out", Some("channel_finalized"), "the amount is signed"),
        (true, "gone", Some("channel_finalized"), "there is nothing left to claim from"),
        (true, "blocked", Some("channel_blocked"), "nobody knows whether there is"),
        (false, "gone", Some("channel_finalized"), "before its first word it is a clean refusal"),
    ] {
        let bed = hidden();
        let mut stream = hiding(&bed).await;
        let mut out = Vec::new();
        if began {
            assert_eq!(stream.chunk(words(10), &mut out).await.unwrap(), Next::Go);
            stream.first_byte().await.unwrap();
        }
        let short = View { deposit: Atoms(19_999), ..gone };
        let ended = || Op::Orphan { gate: bed.store.gate().to_owned(), policy: OrphanPolicy::Charge };
        let ops = match state {
            "waited long enough" => vec![Op::Look { view: asked }, ended()],
            "taken for dead" => vec![ended()],
            "asked to close" => vec![Op::Look { view: asked }],
            "paying out" => vec![Op::Look { view: asked }, paying_out(&*newest(&bed, "0xaa").await)],
            "gone" => vec![Op::Look { view: gone }],
            "blocked" => vec![Op::Look { view: short }],
            _ => Vec::new(),
        };
        for op in ops {
            bed.toll.channels.one(&id, op).await.unwrap().1.unwrap();
        }
        out.clear();
        let next = stream.chunk(words(10), &mut out).await.unwrap();
        assert_eq!(
            (next == Next::Stop, stream.is_unpaid(), out.is_empty()),
            (code.is_some(), code.is_some(), code.is_some()),
            "{why}"
        );
        let Some(code) = code else { continue };
        let refused = stream.unpaid_before_it_began();
        if !began {
            assert_eq!(refused.unwrap().code(), code, "{why}");
            continue;
        }
        assert_eq!(refused, None, "{why}");
        stream.end(End::Unpaid, &mut out).await;
        let said = String::from_utf8(out.concat()).unwrap();
        assert!(said.contains(code) && !said.contains("aaaa"), "{why}: {said}");
        assert_eq!(
            stream.receipt().usage.unwrap().completion,
            3,
            "{why}: the ten bytes that had left are what was used"
        );
        assert!(newest(&bed, "0xaa").await.leases.is_empty());
    }
}
