//! What is charged for a stream that is paid by usage and does not end as it should: its client leaves, or its backend fails.

use super::promise::{REPLY, bed, bed_with, by_success, by_usage, streamed, words};
use super::sessions::{BY_TOKEN, ROUTE, audited, channel, delivery, opening, voucher};
use super::*;
use crate::flow::control;
use crate::flow::settle::{End, Next};
use crate::usage::UsageSource;
use std::pin::pin;
use std::task::{Context, Waker};

fn usage(completion: u64) -> Bytes {
    let said = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": completion}});
    format!("data: {said}\n\ndata: [DONE]\n\n").into()
}

#[tokio::test]
async fn a_vendor_that_bills_to_the_end_is_heard_to_the_end_as_far_as_it_is_covered() {
    let (reported, counted) = (UsageSource::Reported, UsageSource::Counted);
    // What it says to nobody, whether it ends well, what is charged for beside the prompt. Ten bytes had left: about three tokens.
    for (profile, said, ends, source, output, why) in [
        ("openai", vec![words(5), usage(15)], true, reported, 15, "its own figure"),
        ("openai", vec![words(5)], true, counted, 3, "it says none: what had left"),
        ("openai", vec![words(5)], false, counted, 3, "it breaks off: what had left"),
        ("openai", vec![words(100), usage(30)], true, reported, 30, "more bytes than are covered, of fewer tokens"),
        ("openai", vec![words(900), usage(910)], true, counted, 3, "more than is covered is not waited for"),
        ("vllm", vec![], true, counted, 3, "a server of one's own is hung up on"),
    ] {
        let bed = Bed::with(&[
            ROUTE,
            ("tiers.toml", "max_output_tokens = 100", "max_output_tokens = 1000"),
            ("pools.toml", "vllm", profile),
        ]);
        let paid = bed.pay(BY_TOKEN, &streamed(1000), &opening("0xaa", 50_000, 50_000)).await.unwrap();
        let prompt = paid.quoted.parts.prompt_about.unwrap();
        let mut served = delivery(&bed, paid);
        served.body(&bed.pool(), true);
        served.tried(&bed.pool(), None, "answered");
        let mut out = Vec::new();
        served.chunk(words(10), &mut out).await.unwrap();
        served.first_byte().await.unwrap();
        assert_eq!(served.drains(&bed.pool()), profile == "openai", "{why}");
        let mut more = served.drains(&bed.pool());
        for chunk in said {
            more = more && served.overhear(Some(chunk));
        }
        if more && ends {
            served.overhear(None);
        }
        served.end(End::ClientGone, &mut Vec::new()).await;
        let (receipt, spent) = (served.receipt().clone(), channel(&bed, "0xaa").await.spent());
        let prompt = if source == reported { 9 } else { prompt };
        assert_eq!(receipt.usage_source, Some(source), "{why}");
        assert_eq!(receipt.usage.map(|u| (u.prompt, u.completion)), Some((prompt, output)), "{why}");
        assert_eq!(spent, Atoms(u128::from(prompt + 10 * output)), "{why}");
        assert!(!receipt.complete, "{why}");
        drop(served);
        audited(bed).await;
    }
}

#[tokio::test]
async fn choices_that_had_not_ended_are_owed_as_far_as_they_left_beside_one_that_had() {
    let of = |index: u64, n: usize| {
        let chunk = json!({"choices": [{"index": index, "delta": {"content": "a".repeat(n)}}]});
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let last = |completion: u64| {
        let said = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": completion}});
        Bytes::from(format!("data: {said}\n\n"))
    };
    let done = || Bytes::from("data: [DONE]\n\n");
    let (reported, counted) = (UsageSource::Reported, UsageSource::Counted);
    // Of every four bytes that left about a token is charged, where the backend says nothing.
    for (said, end, source, output, why) in [
        (vec![of(0, 8), of(1, 20), last(2)], End::ClientGone, counted, 7, "the first had ended"),
        (vec![of(0, 8), last(2), of(1, 20)], End::ClientGone, counted, 7, "what comes behind its figure"),
        (vec![of(0, 8), last(2), of(1, 20)], End::Unpaid, counted, 7, "nobody paid on"),
        (vec![of(0, 8), last(2), of(1, 20)], End::OutOfTime, counted, 7, "the time was over"),
        (vec![of(0, 8), of(1, 4), last(30)], End::ClientGone, counted, 30, "no less than the figure that came"),
        (vec![of(0, 8), of(1, 80), last(2)], End::Unpaid, counted, 2, "what waits to be covered is owed by nobody"),
        (vec![of(0, 8), of(1, 20), last(2), last(4)], End::ClientGone, reported, 6, "both had ended"),
        (vec![of(0, 8), of(1, 20), last(2), last(4), done()], End::Whole, reported, 6, "to its end"),
    ] {
        let bed = Bed::with(&[
            ROUTE,
            ("tiers.toml", "max_output_tokens = 100", "max_output_tokens = 1000"),
            ("pools.toml", "vllm", "llamacpp"),
        ]);
        let body = streamed(1000).replacen('{', "{\"n\":2,", 1);
        let paid = bed.pay(BY_TOKEN, &body, &opening("0xaa", 50_000, 50_000)).await.unwrap();
        let mut served = delivery(&bed, paid);
        served.body(&bed.pool(), true);
        served.tried(&bed.pool(), None, "answered");
        let mut out = Vec::new();
        for chunk in said {
            served.chunk(chunk, &mut out).await.unwrap();
            served.first_byte().await.unwrap();
        }
        served.end(end, &mut out).await;
        let (receipt, spent) = (served.receipt().clone(), channel(&bed, "0xaa").await.spent());
        assert_eq!(receipt.usage_source, Some(source), "{why}");
        assert_eq!(receipt.usage.map(|u| (u.prompt, u.completion)), Some((9, output)), "{why}");
        assert_eq!(spent, Atoms(u128::from(9 + 10 * output)), "{why}");
        drop(served);
        audited(bed).await;
    }
}

#[tokio::test]
async fn bytes_are_never_charged_or_shown_as_tokens() {
    let bed = Bed::with(&[ROUTE]);
    let body = streamed(100).replace("\"hi\"", &format!("\"{}\"", "x".repeat(8_000)));
    let paid = bed.pay(BY_TOKEN, &body, &opening("0xaa", 50_000, 50_000)).await.unwrap();
    let (bound, about) = (paid.quoted.parts.prompt_tokens.unwrap(), paid.quoted.parts.prompt_about.unwrap());
    assert!(bound > 8_000 && (2_000..2_020).contains(&about), "{bound}, about {about}");
    let held = channel(&bed, "0xaa").await.leases.values().next().unwrap().cap;
    assert!(held > Atoms(u128::from(bound)), "what is held covers every byte");
    let mut served = delivery(&bed, paid);
    served.chunk(words(20), &mut Vec::new()).await.unwrap();
    served.first_byte().await.unwrap();
    // A gate that is killed here charges what the record knows: that is no bound either.
    let told = || async { channel(&bed, "0xaa").await.leases.values().next().unwrap().used };
    until(|| async { told().await.is_some() }).await;
    let charged = Atoms(u128::from(about + 10 * 5));
    assert_eq!(told().await, Some(charged));
    served.end(End::ClientGone, &mut Vec::new()).await;
    let receipt = served.receipt().clone();
    assert_eq!((receipt.charged, channel(&bed, "0xaa").await.spent()), (charged, charged));
    assert_eq!(receipt.usage.map(|used| (used.prompt, used.completion)), Some((about, 5)));
    let tokens = |kind| bed.toll.metrics.tokens.with_label_values(&["m", kind]).get();
    assert_eq!((tokens("prompt"), tokens("completion")), (about, 5));
    drop(served);
    audited(bed).await;
}

#[tokio::test]
async fn where_the_amount_is_fixed_nobody_is_listened_to() {
    let bed = Bed::with(&[("pools.toml", "vllm", "openai")]);
    let body = streamed(10);
    let credential = bed.credential(PATH, &body, "a").await;
    let mut served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
    served.body(&bed.pool(), true);
    served.tried(&bed.pool(), None, "answered");
    assert!(!served.drains(&bed.pool()), "tokens would be spent and nothing be charged for them");
}

#[tokio::test]
async fn a_client_that_leaves_while_the_end_is_written_down_is_counted_once_and_the_books_say_what_the_log_says() {
    let bed = Bed::with(&[ROUTE, ("tiers.toml", "max_output_tokens = 100", "max_output_tokens = 1000")]);
    let paid = bed.pay(BY_TOKEN, &streamed(1000), &opening("0xaa", 500, 50_000)).await.unwrap();
    let mut served = delivery(&bed, paid);
    let mut out = Vec::new();
    served.chunk(words(10), &mut out).await.unwrap();
    served.first_byte().await.unwrap();
    served.chunk(usage(60), &mut out).await.unwrap();
    assert_eq!(served.end(End::Whole, &mut out).await, Next::Hold, "60 tokens of 32 that are covered");
    let plan = bed.toll.rules.plan();
    control::manage(&bed.toll, plan.route(BY_TOKEN).unwrap(), &voucher("0xaa", 2_000)).await.unwrap();
    let metrics = &bed.toll.metrics;
    let counted = || metrics.usage.with_label_values(&["p", "reported"]).get();
    {
        let mut ending = pin!(served.resume(&mut out));
        while counted() == 0 {
            // What was counted is on its way into the store: that takes longer than this.
            let step = ending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(step.is_pending(), "it did not break off in its write");
            tokio::task::yield_now().await;
        }
    }
    served.end(End::ClientGone, &mut Vec::new()).await;
    let charged = metrics.charged_usd.with_label_values(&["tempo/session"]).get();
    let completion = metrics.tokens.with_label_values(&["m", "completion"]).get();
    let exchanges = metrics.upstream_seconds.with_label_values(&["p"]).get_sample_count();
    assert_eq!((counted(), (charged * 1e6).round(), completion, exchanges), (1, 609.0, 60, 1));
    let logged = served.receipt().clone();
    let booked = bed.store.inner.receipt(&logged.id).await.unwrap();
    assert_eq!(booked.as_ref(), Some(&logged));
    assert_eq!((logged.charged, channel(&bed, "0xaa").await.spent()), (Atoms(609), Atoms(609)));
    drop((plan, served));
    audited(bed).await;
}

#[tokio::test]
async fn a_figure_is_missing_only_where_the_answer_came_to_an_end_of_its_own() {
    let frame = |data: &str| Bytes::from(format!("data: {data}\n\n"));
    let error = frame(r#"{"error":{"message":"x"}}"#);
    let done = frame("[DONE]");
    for (said, charged, why) in [
        (vec![done.clone()], true, "[DONE] and no figure"),
        (vec![frame(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#)], true, "a finish and no figure"),
        (vec![error.clone()], false, "an error"),
        (vec![error, done], false, "an error, then [DONE]"),
        (vec![], false, "an end without a word: some backends fail so"),
    ] {
        let missing = ("tiers.toml", "max_n = 4", "max_n = 4\nmissing_usage = \"ceiling\"");
        let bed = Bed::with(&[ROUTE, missing]);
        let paid = bed.pay(BY_TOKEN, &streamed(100), &opening("0xaa", 50_000, 50_000)).await.unwrap();
        let mut served = delivery(&bed, paid);
        let mut out = Vec::new();
        served.chunk(words(3), &mut out).await.unwrap();
        served.first_byte().await.unwrap();
        for chunk in said {
            served.chunk(chunk, &mut out).await.unwrap();
        }
        served.end(End::Whole, &mut out).await;
        assert_eq!(channel(&bed, "0xaa").await.spent() > Atoms(0), charged, "{why}");
        drop(served);
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_reply_is_read_and_booked_as_that_of_the_pool_that_answered_whatever_was_asked_between() {
    let other = "[pool.p]\nprofile = \"vllm\"\nfallback = \"q\"\n";
    let two = format!("[pool.q]\nprofile = \"gemini\"\nservers = [\"http://127.0.0.1:2\"]\n\n{other}");
    // What came of whom, in order; who is booked, and the output that is charged: 7 as said, 11 when it may be in the total only.
    for (tried, pool, output, why) in [
        (
            &[("p", "status"), ("q", "status"), ("p", "answered")][..],
            "p",
            7,
            "the first comes again behind the fallback",
        ),
        (&[("p", "status"), ("q", "answered")], "q", 11, "the fallback"),
        (&[("p", "answered")], "p", 7, "nobody else"),
        (&[("q", "connect"), ("p", "answered"), ("q", "full")], "p", 7, "who was not even asked says nothing"),
    ] {
        let bed = Bed::with(&[
            ROUTE,
            ("pools.toml", "[pool.p]\nprofile = \"vllm\"\n", &two),
            ("models.toml", "upstream = \"m-up\"\n", "upstream = \"m-up\"\nupstream_in = { q = \"m-q\" }\n"),
        ]);
        let paid = bed.pay(BY_TOKEN, &ask("m", 100), &opening("0xaa", 50_000, 50_000)).await.unwrap();
        let mut served = delivery(&bed, paid);
        let pools = bed.toll.pools.load();
        for name in ["p", "q"] {
            served.body(pools.get(&name.into()).unwrap(), false);
        }
        for (name, outcome) in tried {
            served.tried(pools.get(&(*name).into()).unwrap(), None, outcome);
        }
        let reply = br#"{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":7,"total_tokens":20}}"#;
        served.whole(Bytes::from_static(reply)).await.unwrap();
        let receipt = served.receipt();
        assert_eq!((receipt.pool.as_str(), receipt.usage.unwrap().completion), (pool, output), "{why}");
        drop((pools, served));
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_stream_is_charged_no_more_than_the_most_it_was_quoted_at_and_an_absurd_prompt_nothing() {
    let figure = |prompt: u64, cost: &str| {
        let usage = format!("{{\"prompt_tokens\":{prompt},\"completion_tokens\":20,\"cost\":{cost}}}");
        Bytes::from(format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n"))
    };
    let stated = (
        "models.toml",
        "pool = \"p\"\nprice = { input = \"1\"",
        "pool = \"p\"\nbill = \"stated\"\nprice = { input = \"1\"",
    );
    // What is charged of the 90,000 atoms that are there: the figure, all that was quoted, or nothing.
    for (edits, said, charged, cost, why) in [
        (&[ROUTE][..], figure(60, "0"), Some(260), 260, "what it used, a template that nobody counted included"),
        (
            &[ROUTE],
            figure(4_000, "0"),
            None,
            4_200,
            "a prompt that a vendor may have made longer: as far as it was quoted",
        ),
        (&[ROUTE, stated], figure(9, "0.05"), None, 50_000, "a figure of the backend's own"),
        (&[ROUTE], figure(500_000, "0"), Some(0), 0, "no such prompt was sent: no figure"),
    ] {
        let bed = Bed::with(edits);
        let paid = bed.pay(BY_TOKEN, &streamed(20), &opening("0xaa", 90_000, 90_000)).await.unwrap();
        let most = paid.quoted.cover(&"tempo/session".into(), 6).unwrap().start(true).unwrap();
        let mut served = delivery(&bed, paid);
        let mut out = Vec::new();
        served.chunk(words(10), &mut out).await.unwrap();
        served.first_byte().await.unwrap();
        served.chunk(said, &mut out).await.unwrap();
        assert_eq!(served.end(End::Whole, &mut out).await, Next::Go, "{why}: there is money enough");
        let charged = charged.map_or(most, Atoms);
        assert_eq!((served.receipt().charged, channel(&bed, "0xaa").await.spent()), (charged, charged), "{why}");
        let metrics = &bed.toll.metrics;
        let lost = metrics.session_loss_usd.with_label_values(&["tempo/session"]).get();
        assert_eq!((lost * 1e6).round() as u128, cost - charged.0.min(cost), "{why}: the rest is the operator's");
        let absurd = metrics.usage.with_label_values(&["p", "absurd"]).get();
        assert_eq!(absurd == 1, charged == Atoms(0), "{why}");
        drop(served);
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_stream_that_we_cut_is_owed_as_far_as_it_left() {
    let by_token = || Bed::with(&[ROUTE]);
    let upto = || bed(by_usage());
    for (bed, path, end, code, why) in [
        (by_token(), BY_TOKEN, End::OutOfTime, "upstream_timeout", "a session, at total_seconds"),
        (upto(), PATH, End::OutOfTime, "upstream_timeout", "a promise, at total_seconds"),
        (by_token(), BY_TOKEN, End::TooLarge, "upstream_failed", "a session, at an event that is too large"),
        (upto(), PATH, End::TooLarge, "upstream_failed", "a promise, at an event that is too large"),
    ] {
        let body = streamed(100);
        let credential = match path {
            BY_TOKEN => opening("0xaa", 50_000, 50_000),
            _ => bed.credential(path, &body, "a").await,
        };
        let paid = bed.pay(path, &body, &credential).await.unwrap();
        let prompt = paid.quoted.parts.prompt_about.unwrap();
        let mut served = delivery(&bed, paid);
        let mut out = Vec::new();
        served.chunk(words(10), &mut out).await.unwrap();
        served.first_byte().await.unwrap();
        served.end(end, &mut out).await;
        let receipt = served.receipt();
        let told = String::from_utf8(out.concat()).unwrap();
        assert!(told.contains(code), "{why}: {told}");
        assert_eq!(receipt.usage_source, Some(UsageSource::Counted), "{why}");
        assert_eq!((receipt.charged, receipt.complete), (Atoms(u128::from(prompt + 10 * 3)), false), "{why}");
        drop(served);
        audited(bed).await;
    }
}

/// A reply to `bed`'s first body, begun at a backend that `profile` says how it speaks.
async fn asked_of(bed: &Bed, served: &mut crate::flow::settle::Delivery, began: bool) {
    served.body(&bed.pool(), true);
    served.tried(&bed.pool(), None, if began { "answered" } else { "left" });
    if began {
        served.begins();
    }
}

#[tokio::test]
async fn whoever_leaves_before_the_first_byte_owes_what_the_backend_bills() {
    let whole = || Some(Bytes::from_static(REPLY.as_bytes()));
    // What came: whether the backend had begun to answer, what of it was heard to the end, what is charged.
    for (profile, began, heard, stream, charged, why) in [
        ("openai", true, whole(), vec![], Some((2, 3)), "a reply that came whole"),
        ("openai", true, None, vec![usage(15)], Some((9, 15)), "a stream that was heard to its end"),
        ("openai", true, None, vec![], Some((0, 0)), "it broke off: the prompt"),
        ("vllm", true, None, vec![], Some((0, 0)), "hung up on when it had begun: the prompt"),
        ("vllm", false, None, vec![], None, "hung up on before"),
        ("openai", false, None, vec![], None, "it did not answer in time"),
        ("openai", true, Some(r#"{"error":{"message":"x"}}"#.into()), vec![], None, "an error inside a success"),
    ] {
        let bed = Bed::with(&[ROUTE, ("pools.toml", "vllm", profile)]);
        let paid = bed.pay(BY_TOKEN, &streamed(100), &opening("0xaa", 50_000, 50_000)).await.unwrap();
        let prompt = paid.quoted.parts.prompt_about.unwrap();
        let mut served = delivery(&bed, paid);
        asked_of(&bed, &mut served, began).await;
        if served.drains(&bed.pool()) && !stream.is_empty() {
            for chunk in stream {
                assert!(served.overhear(Some(chunk)), "{why}");
            }
            served.overhear(None);
        }
        let receipt = served.leave(heard).await;
        let spent = channel(&bed, "0xaa").await.spent();
        match charged {
            Some((input, output)) => {
                let input = if (input, output) == (0, 0) { prompt } else { input };
                let receipt = receipt.unwrap();
                assert_eq!(spent, Atoms(u128::from(input + 10 * output)), "{why}");
                assert_eq!((receipt.charged, receipt.complete), (spent, false), "{why}: sold, not delivered");
                assert_eq!(bed.store.inner.receipt(&receipt.id).await.unwrap(), Some(receipt), "{why}");
            }
            None => assert_eq!((receipt, spent), (None, Atoms(0)), "{why}"),
        }
        audited(bed).await;
    }
}

#[tokio::test]
async fn what_was_promised_for_a_reply_that_nobody_waited_for_is_taken_and_buys_one_later() {
    for (profile, began, heard, taken, why) in [
        ("openai", true, true, true, "the vendor made it and bills it"),
        ("openai", false, false, false, "it did not come"),
        ("openai", true, false, false, "it began, and did not come whole"),
        ("vllm", false, false, false, "a server of one's own stopped"),
        ("vllm", true, false, false, "after it had begun"),
    ] {
        let bed = bed_with(by_success(), &[("pools.toml", "vllm", profile)]);
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let mut served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
        assert_eq!(served.drains(&bed.pool()), profile == "openai", "{why}");
        asked_of(&bed, &mut served, began).await;
        served.leave(heard.then(|| Bytes::from_static(REPLY.as_bytes()))).await;
        let want = if taken { Standing::Owed } else { Standing::Untaken };
        assert_eq!(bed.claim("a").await.unwrap().standing, want, "{why}");
        assert!(bed.pay(PATH, &body, &credential).await.is_ok(), "{why}: it is still good");
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_payment_is_spent_by_the_third_client_that_leaves_while_a_backend_works() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    for n in 1..=3 {
        // A failure that is not the client's does not count.
        let served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
        served.fail(Refusal::UpstreamFailed { why: "test" }).await;
        let served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
        assert!(served.leave(None).await.is_none(), "nor does one before a backend was asked");
        let mut served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
        served.body(&bed.pool(), true);
        served.tried(&bed.pool(), None, "timeout");
        assert!(served.leave(None).await.is_none(), "nor does one from a backend that may be dead");
        let mut served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
        asked_of(&bed, &mut served, false).await;
        let receipt = served.leave(None).await;
        let standing = bed.claim("a").await.unwrap().standing;
        match receipt {
            None => assert_eq!((n < 3, standing), (true, Standing::Owed), "{n}"),
            Some(receipt) => {
                assert!(n == 3 && !receipt.complete && receipt.charged > Atoms(0), "{n}: {receipt:?}");
                assert_eq!(standing, Standing::Delivered { receipt: receipt.id });
            }
        }
    }
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent);
    assert_eq!(bed.rail.collects(), 1);
    audited(bed).await;
}
