//! A server that will not serve, from outside: another one does, under the same payment and at the same price, as long as nothing
//! has left and nobody can have worked on the request.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, FREE, PATIENCE, ROOMY, ask, limits, streamed};
use common::{Backend, DEV, Payer, RawReply, Reply, Script, Step, eventually, ledger, payer, raw};
use serde_json::{Value, json};

/// Half of an answer that streams.
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";

/// A gate whose pool has these servers and falls back to one that calls the model, and its limit, something else.
async fn gate(servers: &[String], hosted: &Backend) -> Bridge {
    gate_with(servers, "", hosted).await
}

/// The same with `more` about the pool.
async fn gate_with(servers: &[String], more: &str, hosted: &Backend) -> Bridge {
    let urls: Vec<_> = servers.iter().map(|url| format!("{url:?}")).collect();
    let waits = "timeouts = { connect_seconds = 2, first_byte_seconds = 5, idle_seconds = 5, total_seconds = 6 }";
    let pools = format!(
        "[pool.gpt-oss]\nprofile = \"vllm\"\nservers = [{}]\nfallback = \"hosted\"\n{waits}\n{more}\n\n\
         [pool.hosted]\nprofile = \"openai\"\nservers = [{{ url = \"{}\", name = \"vendor\" }}]\napi_key = \"env:UPSTREAM_KEY\"\n{waits}\n",
        urls.join(", "),
        hosted.url(),
    );
    let elsewhere = "upstream = \"gpt-oss-120b\"\nupstream_in = { hosted = \"vendor/gpt-oss\" }";
    Bridge::with(|options| {
        let options = options.rule_edit("models.toml", "upstream = \"gpt-oss-120b\"", elsewhere);
        limits(options.rule("pools.toml", &pools), ROOMY)
    })
    .await
}

async fn backends<const N: usize>() -> [Backend; N] {
    let started = futures::future::join_all((0..N).map(|_| Backend::start(Script::default()))).await;
    started.try_into().unwrap_or_else(|_| unreachable!())
}

fn receipt(reply: &RawReply) -> Value {
    match reply.header("content-type") {
        Some("application/json") => reply.json()["pontage"].clone(),
        _ => ledger::events(&reply.text()).into_iter().find_map(|e| e.get("pontage").cloned()).expect("a block"),
    }
}

fn busy(status: u16) -> Reply {
    Reply::error(status, "server_error", "busy", "busy")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_will_not_serve_is_passed_over_under_one_payment_and_one_price() {
    for status in [429, 500, 502, 503, 529, 401, 403] {
        let [first, second, hosted] = backends().await;
        let bridge = gate(&[first.url(), second.url()], &hosted).await;
        for (backend, why) in [(&first, "one"), (&second, "both")] {
            backend.always(busy(status));
            for body in [ask(why), streamed(why)] {
                let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
                let before = bridge.chain.payments_to(DEV[1].address).await.len();
                let paying = bridge.paying(&payer, &body).await;
                let reply = bridge.send(&paying).await;
                assert_eq!(reply.status, 200, "{status} {why}: {}", reply.text());
                let receipt = receipt(&reply);
                assert_eq!(receipt["charged"]["usd"], "0.02", "{status} {why}: {receipt}");
                assert_eq!(
                    bridge.chain.payments_to(DEV[1].address).await.len(),
                    before + 1,
                    "{status} {why}: one payment"
                );
                assert_eq!(bridge.send(&paying).await.status, 403, "{status} {why}: and it is spent");
                if why == "both" {
                    assert_eq!(receipt["pool"], "hosted", "{status}: {receipt}");
                    let heard = hosted.last().json();
                    assert_eq!(heard["model"], "vendor/gpt-oss", "{status}: in its own words");
                    assert!(heard["max_completion_tokens"].is_u64() && heard.get("max_tokens").is_none(), "{heard}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_is_passed_over_and_the_receipt_counts_the_attempts() {
    let [hosted] = backends().await;
    let dead = |_| format!("http://127.0.0.1:{}", common::free_port());
    let bridge = gate(&[dead(1), dead(2)], &hosted).await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let reply = bridge.send(&bridge.paying(&payer, &ask("anybody?")).await).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let said = receipt(&reply);
    assert_eq!((&said["attempts"], &said["pool"]), (&json!(3), &json!("hosted")), "{said}");
    for (pool, outcome, count) in [("gpt-oss", "connect", 2.0), ("hosted", "answered", 1.0)] {
        let labels = [("pool", pool), ("outcome", outcome)];
        assert_eq!(bridge.gate.metric("pontage_upstream_attempts_total", &labels).await, count, "{pool} {outcome}");
    }
    // They rest, ever longer: a request that comes in that time does not even try them.
    let rest = common::eventually(PATIENCE, || async {
        receipt(&bridge.send(&bridge.paying(&payer, &ask("again")).await).await)["attempts"] == 1
    });
    assert!(rest.await, "they are tried each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_counted_where_it_failed_and_a_refused_key_is_seen_though_a_fallback_serves() {
    let [first, hosted] = backends().await;
    let bridge = gate(&[first.url()], &hosted).await;
    first.always(busy(401));
    assert_eq!(bridge.free(&ask("served all the same")).await.status, 200);
    let counted =
        async |series: &str, pool: &str, kind: (&str, &str)| bridge.gate.metric(series, &[("pool", pool), kind]).await;
    let (errors, attempts) = ("pontage_upstream_errors_total", "pontage_upstream_attempts_total");
    assert_eq!(counted(attempts, "gpt-oss", ("outcome", "auth")).await, 1.0, "what the alarm looks at");
    assert_eq!(counted(errors, "gpt-oss", ("kind", "auth")).await, 0.0, "the exchange did not fail");
    // It rests: the next request goes to the fallback, and fails there.
    hosted.next(Reply::html(200));
    assert_eq!(bridge.free(&ask("nonsense")).await.status, 502);
    hosted.next(Reply::broken_stream([TOKEN], Step::Reset));
    assert_eq!(bridge.free(&streamed("broken off")).await.status, 200);
    // The second is counted when its last byte has left.
    let both = common::eventually(PATIENCE, || async { counted(errors, "hosted", ("kind", "failed")).await == 2.0 });
    assert!(both.await, "{}", bridge.gate.metrics().await);
    assert_eq!(counted(errors, "gpt-oss", ("kind", "failed")).await, 0.0, "it was not asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_to_be_left_alone_is_left_alone() {
    let [first, hosted] = backends().await;
    let bridge = gate(&[first.url()], &hosted).await;
    let headers = [("content-type", "application/json"), ("retry-after", "30")];
    first.next(Reply::with_headers(429, &headers, json!({"error": {"message": "slow down"}}).to_string()));
    for i in 0..3 {
        assert_eq!(bridge.free(&ask("go on")).await.status, 200, "{i}");
    }
    assert_eq!((first.requests().len(), hosted.requests().len()), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_may_have_worked_is_not_doubled_and_the_payment_buys_the_reply_later() {
    for (body, fault, status) in [
        (ask("silent"), Reply::hang(), 504),
        (ask("hung up"), Reply::reset(), 502),
        (ask("half a head"), Reply::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\ncont".to_vec()), Step::Reset]), 502),
        (ask("nonsense"), Reply::html(200), 502),
        (streamed("broken off"), Reply::broken_stream([TOKEN], Step::Reset), 200),
    ] {
        let [first, hosted] = backends().await;
        let bridge = gate(&[first.url()], &hosted).await;
        let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
        let paying = bridge.paying(&payer, &body).await;
        first.next(fault);
        let reply = bridge.send(&paying).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        assert_eq!((first.requests().len(), hosted.requests().len()), (1, 0), "{body}: asked once");
        if status == 200 {
            let sealed =
                reply.text().lines().find_map(|l| l.strip_prefix(": pontage-receipt ").map(str::to_owned)).unwrap();
            assert_eq!(payer::unpack(&sealed)["complete"], false);
        } else {
            let bought = bridge.send(&paying).await;
            assert_eq!(bought.status, 200, "{body}: {}", bought.text());
        }
        assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 1, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_everybody_refuses_the_last_word_is_passed_on_and_the_payment_stays_good() {
    let [first, second, hosted] = backends().await;
    let bridge = gate(&[first.url(), second.url()], &hosted).await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let paying = bridge.paying(&payer, &ask("please")).await;
    first.next(busy(500));
    second.next(busy(500));
    let headers = [("content-type", "application/json"), ("retry-after", "7")];
    hosted.next(Reply::with_headers(
        429,
        &headers,
        json!({"error": {"message": "slow down", "code": "rate_limited"}}).to_string(),
    ));
    let refused = bridge.send(&paying).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("7")), "{}", refused.text());
    assert_eq!(refused.header("x-should-retry"), Some("false"), "a client that repeats by itself would pay again");
    let told = &refused.json()["payment"];
    assert_eq!((told["moved"].as_str(), told["redeemable_until"].is_string()), (Some("yes"), true), "{told}");
    let bought = bridge.send(&paying).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_in_line_while_the_fallback_has_a_server_that_is_free() {
    // Longer than the test would wait for an answer.
    let more = "max_concurrent = 1\nqueue = { length = 4, wait_seconds = 3600 }";
    let [busy_one, hosted] = backends().await;
    let bridge = gate_with(&[busy_one.url()], more, &hosted).await;
    let listen = bridge.gate.listen;
    let free = move |why: &'static str| async move {
        raw::exchange(listen, &raw::post(FREE, &[], ask(why).to_string().as_bytes())).await
    };
    let queue = |what: &'static str| bridge.gate.metric(what, &[("pool", "gpt-oss")]);
    let waits = async |count: f64| queue("pontage_upstream_queue_length").await == count;
    busy_one.next(Reply::Model(Script::default()).held());
    let first = tokio::spawn(free("first"));
    assert!(eventually(PATIENCE, || async { busy_one.requests().len() == 1 }).await);
    let served = free("at once").await;
    assert_eq!((served.status, hosted.requests().len()), (200, 1), "{}", served.text());
    assert_eq!(queue("pontage_upstream_queue_waits_total").await, 0.0, "it did not wait");

    hosted.next(busy(503));
    let back = tokio::spawn(free("back in line"));
    assert!(eventually(PATIENCE, || waits(1.0)).await, "the fallback will not: there is still the line");
    assert_eq!(hosted.requests().len(), 2);
    hosted.next(Reply::Model(Script::default()));
    assert_eq!(
        free("past the line").await.status,
        200,
        "who waits for one pool does not stand in the way to the other"
    );
    assert_eq!((hosted.requests().len(), busy_one.requests().len()), (3, 1));
    busy_one.release();
    assert_eq!((first.await.unwrap().status, back.await.unwrap().status), (200, 200));
    assert_eq!((hosted.requests().len(), busy_one.requests().len()), (3, 2), "its turn came in its own pool");
}
