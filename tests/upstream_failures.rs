//! A backend that fails, in every way one can: the client gets a clean answer, the payment stays good, the operator hears
//! of it, and the next server takes over where that is safe.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::backend::{chunk, stream_head, with_length};
use common::bridge::{Bridge, FREE, PATIENCE, ROOMY, ask, limits, streamed};
use common::gate::UPSTREAM_KEY;
use common::{Backend, DEV, GateOptions, Payer, Raw, Reply, Script, Step, payer, raw};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A pool of these servers.
fn servers(options: GateOptions, urls: &[String]) -> GateOptions {
    let old = format!("servers = [\"{}\"]", options.upstream);
    let new = urls.iter().map(|u| format!("\"{u}\"")).collect::<Vec<_>>().join(", ");
    limits(options, ROOMY).rule_edit("pools.toml", &old, &format!("servers = [{new}]"))
}

fn timeouts(options: GateOptions, first_byte: u64, idle: u64, total: u64) -> GateOptions {
    let old = "first_byte_seconds = 10, idle_seconds = 10, total_seconds = 60";
    let new = format!("first_byte_seconds = {first_byte}, idle_seconds = {idle}, total_seconds = {total}");
    limits(options, ROOMY).rule_edit("pools.toml", old, &new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_refuses_our_key_is_502_for_the_client_and_an_alarm_for_the_operator() {
    for status in [401, 402, 403] {
        let bridge = Bridge::start().await;
        let secret = format!("Incorrect API key provided: {UPSTREAM_KEY}");
        let headers = [("content-type", "application/json"), ("www-authenticate", "Payment realm=\"not ours\"")];
        let body = json!({"error": {"message": secret, "type": "auth", "code": "invalid_api_key"}}).to_string();
        bridge.backend.next(Reply::with_headers(status, &headers, body));
        let got = bridge.free(&ask("whose key?")).await;
        assert_eq!((got.status, got.json()["error"]["code"].as_str()), (502, Some("upstream_failed")), "{status}");
        assert!(got.header("www-authenticate").is_none());
        bridge.gate.assert_no_secrets("the answer", &got.text());
        bridge.gate.assert_no_secrets("the log", &bridge.gate.log());
        let alarm = bridge.gate.metric("pontage_upstream_errors_total", &[("pool", "gpt-oss"), ("kind", "auth")]).await;
        assert_eq!(alarm, 1.0, "{status}: {}", bridge.gate.metrics().await);
        let line = bridge.gate.log().lines().any(|l| l.contains("\"ERROR\"") && l.contains("key"));
        assert!(line, "{status}: no alarm in the log:\n{}", bridge.gate.log());
        // Ejected: it is not asked again, and nothing is offered that could not be honoured.
        assert_eq!(bridge.free(&ask("again")).await.status, 503);
        let unpaid = bridge.send(&raw::post("/v1/chat/completions", &[], ask("sell me").to_string().as_bytes())).await;
        assert_eq!((unpaid.status, unpaid.header("www-authenticate")), (503, None));
        assert!(unpaid.header("retry-after").is_some());
        assert_eq!(bridge.backend.requests().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_inside_a_success_rests_its_model_only_where_it_is_not_about_the_request() {
    let said = |kind: &str| json!({"error": {"message": "no", "type": kind, "code": kind}});
    for (kind, is_streamed, rests) in [
        ("content_filter", false, false),
        ("content_filter", true, false),
        ("invalid_request_error", true, false),
        ("server_error", false, true),
        ("server_error", true, true),
        ("BadRequestError", true, true),
    ] {
        let bridge = Bridge::start().await;
        let reply = match is_streamed {
            true => Reply::stream([format!("data: {}\n\n", said(kind))]),
            false => Reply::json(200, &said(kind)),
        };
        bridge.backend.always(reply);
        let body = if is_streamed { streamed("whose fault?") } else { ask("whose fault?") };
        // The fifth in a row is what a model rests for.
        for n in 1..=5 {
            assert_eq!(bridge.free(&body).await.status, 502, "{kind}, streamed: {is_streamed}: number {n}");
        }
        let status = bridge.gate.status().await;
        let pools = status["pools"].as_array().unwrap();
        let pool = pools.iter().find(|pool| pool["pool"] == "gpt-oss").unwrap();
        let ejections = &pool["servers"][0]["ejections"];
        assert_eq!(*ejections, u64::from(rests), "{kind}, streamed: {is_streamed}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_answers_nonsense_is_502_and_nothing_of_it_passes() {
    let bridge = Bridge::start().await;
    let big = format!("data: {{\"x\":\"{}\"}}\n\n", "canary".repeat(1_750_000));
    let cases: Vec<(Reply, &str)> = vec![
        (Reply::error(500, "server_error", "canary", "canary"), "500"),
        (Reply::json(503, &json!({"error": "canary"})), "503"),
        (Reply::html(502), "a page of a proxy"),
        (Reply::html(200), "a page with 200"),
        (Reply::status(200, "text/plain", "canary"), "text"),
        (Reply::status(200, "application/json", "canary"), "no JSON"),
        (Reply::status(200, "application/json", "{\"choices\":[{\"canary\""), "half JSON"),
        (Reply::status(200, "application/json", ""), "nothing"),
        (Reply::json(200, &json!({"error": {"message": "canary"}})), "an error in a success"),
        (Reply::status(200, "text/event-stream", ""), "an empty stream"),
        (Reply::status(200, "text/event-stream", "data: {\"error\":{\"message\":\"canary\"}}\n\ndata: [DONE]\n\n"), "a stream of one error"),
        (Reply::stream([&big]), "an event of 10 MB"),
        (Reply::gzip(&json!({"choices": [], "canary": 1})), "compressed"),
        (Reply::with_headers(200, &[("content-type", "text/event-stream"), ("content-encoding", "gzip")], "canary"), "a compressed stream"),
        (Reply::with_headers(307, &[("location", "http://canary.example/")], ""), "a redirect"),
        (Reply::steps([Step::Bytes(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: canary\r\nconnection: upgrade\r\n\r\n".to_vec()), Step::Hang]), "101"),
        (Reply::steps([Step::Bytes(b"canary canary canary\r\n\r\n".to_vec()), Step::Close]), "no HTTP"),
        (Reply::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\ncontent-type: application/json\r\n\r\n{\"a\"".to_vec()), Step::Close]), "two lengths"),
        (Reply::steps([Step::Bytes(with_length(200, &[("content-type", "application/json")], b"{\"canary\":1}")[..80].to_vec()), Step::Close]), "cut off"),
        (Reply::steps([Step::Bytes([&stream_head()[..], b"zz\r\ncanary\r\n"].concat()), Step::Close]), "chunks that are none"),
        (Reply::close(), "hangs up"),
        (Reply::reset(), "resets"),
    ];
    for (reply, why) in cases {
        bridge.backend.next(reply);
        let before = bridge.backend.requests().len();
        let got = bridge.free(&streamed("make sense")).await;
        assert_eq!(got.status, 502, "{why}: {}", got.text());
        assert_eq!(got.json()["error"]["type"], "server_error", "{why}");
        assert!(!String::from_utf8_lossy(&got.raw).contains("canary"), "{why}");
        assert_eq!(
            bridge.backend.requests().len(),
            before + 1,
            "{why}: a backend that took the request is not asked again"
        );
        // Five in a row would rest it. No connection is left behind: one that is used again may die unseen.
        let sense = json!({"choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]});
        let headers = [("content-type", "application/json"), ("connection", "close")];
        bridge.backend.next(Reply::with_headers(200, &headers, sense.to_string()));
        assert_eq!(bridge.free(&ask("and now?")).await.status, 200, "{why}");
    }
    assert!(!bridge.gate.log().contains("canary"), "{}", bridge.gate.log());
    assert_eq!(bridge.free(&ask("still here?")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_own_refusal_keeps_status_type_code_and_param_and_loses_what_it_should_not_say() {
    let bridge = Bridge::start().await;
    for status in [400, 404, 409, 413, 422, 429] {
        bridge.backend.next(Reply::Echo { status });
        let leaky = bridge.free(&ask("my secret prompt")).await;
        assert_eq!(leaky.status, status);
        bridge.gate.assert_no_secrets("the answer", &leaky.text());
        for word in ["secret prompt", "Bearer", "gpt-oss-120b", "127.0.0.1"] {
            assert!(!leaky.text().contains(word), "{word}: {}", leaky.text());
        }
        // Last, because a 429 that says how long is heeded: the server is left alone.
        let error = json!({"error": {"message": "temperature must be at most 2", "type": "invalid_request_error", "param": "temperature", "code": "bad_value"}});
        bridge.backend.next(Reply::with_headers(
            status,
            &[("content-type", "application/json"), ("retry-after", "7")],
            error.to_string(),
        ));
        let got = bridge.free(&ask("too hot")).await;
        assert_eq!((got.status, got.json()["error"].clone()), (status, error["error"].clone()));
        assert_eq!(got.header("retry-after"), Some("7"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_says_when_to_come_again_is_heard_by_the_client_and_the_gate() {
    for (asked, told) in [("7", "7"), ("3600", "60")] {
        let bridge = Bridge::start().await;
        let headers = [("content-type", "application/json"), ("retry-after", asked)];
        bridge.backend.next(Reply::with_headers(503, &headers, json!({"error": {"message": "busy"}}).to_string()));
        let got = bridge.free(&ask("now?")).await;
        assert_eq!((got.status, got.header("retry-after")), (502, Some(told)), "{}", got.text());
        assert_eq!(got.json()["error"]["code"], "upstream_failed");
        // It is the only server: until then nothing is offered.
        let unpaid = bridge.send(&raw::post("/v1/chat/completions", &[], ask("sell me").to_string().as_bytes())).await;
        assert_eq!((unpaid.status, unpaid.header("www-authenticate")), (503, None), "{}", unpaid.text());
        assert!(unpaid.header("retry-after").is_some());
        assert_eq!(bridge.backend.requests().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_backend_failed_buys_the_reply_later() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let error = "data: {\"error\":{\"message\":\"overloaded\"}}\n\ndata: [DONE]\n\n";
    for (body, fault) in [
        (ask("whole"), Reply::html(500)),
        (ask("an error in a success"), Reply::json(200, &json!({"error": {"message": "overloaded"}}))),
        (streamed("no token"), Reply::broken_stream([""; 0], Step::Reset)),
        (streamed("an error instead of a token"), Reply::stream([error])),
    ] {
        let paying = bridge.paying(&payer, &body).await;
        bridge.backend.next(fault);
        let failed = bridge.send(&paying).await;
        assert_eq!((failed.status, failed.header("x-should-retry")), (502, Some("false")), "{}", failed.text());
        let told = &failed.json()["payment"];
        assert_eq!((told["moved"].as_str(), told["redeemable_until"].is_string()), (Some("yes"), true), "{told}");
        let bought = bridge.send(&paying).await;
        assert_eq!(bought.status, 200, "{}", bought.text());
        assert_eq!(bridge.send(&paying).await.status, 403, "and only once");
    }
    assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_says_so_to_the_client_and_in_the_receipt() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";
    for end in [Step::Reset, Step::Close] {
        bridge.backend.next(Reply::broken_stream([token], end));
        let got = bridge.send(&bridge.paying(&payer, &streamed("break")).await).await;
        let text = got.text();
        assert!(got.status == 200 && got.complete && text.starts_with(token), "{text}");
        let error: Value = text
            .split("\n\n")
            .find_map(|e| {
                serde_json::from_str(e.strip_prefix("data: ")?).ok().filter(|v: &Value| v["error"].is_object())
            })
            .expect("an error event");
        assert_eq!(error["error"]["type"], "server_error");
        assert!(!text.contains("[DONE]"), "what broke off is not done: {text}");
        let sealed = text.lines().find_map(|l| l.strip_prefix(": pontage-receipt ")).expect("a receipt");
        assert_eq!(payer::unpack(sealed)["complete"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wait_for_a_backend_ends() {
    let bridge = Bridge::with(|o| timeouts(o, 1, 1, 2)).await;
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    bridge.backend.next(Reply::hang());
    assert_eq!(bridge.free(&ask("no head")).await.status, 504);
    bridge.backend.next(Reply::steps([Step::Bytes(stream_head()), Step::Hang]));
    assert_eq!(bridge.free(&streamed("no first token")).await.status, 504, "nothing was sent, so it is a clean answer");
    bridge.backend.next(Reply::steps([
        Step::Bytes(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{".to_vec()),
        Step::Hang,
    ]));
    assert_eq!(bridge.free(&ask("half a body")).await.status, 504);
    bridge.backend.next(Reply::broken_stream([token], Step::Hang));
    let silent = bridge.free(&streamed("then silence")).await;
    assert!(silent.status == 200 && silent.text().contains("\"error\""), "{}", silent.text());
    // A stream that never ends and is never silent is cut by the total.
    let mut endless = vec![Step::Bytes(stream_head())];
    endless
        .extend((0..400).flat_map(|_| [Step::Wait(Duration::from_millis(50)), Step::Bytes(chunk(token.as_bytes()))]));
    bridge.backend.next(Reply::steps(endless));
    let cut = bridge.free(&streamed("for ever")).await;
    assert!(cut.status == 200 && cut.complete && cut.text().contains("\"error\""), "{}", cut.text());
    // Each of them was hung up on.
    let hung_up =
        common::eventually(PATIENCE, || async { bridge.backend.requests().iter().all(|r| r.closed_early.is_some()) })
            .await;
    assert!(hung_up, "{:?}", bridge.backend.requests());
    bridge.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_of_three_servers_dead_no_request_fails() {
    let others = [Backend::start(Script::default()).await, Backend::start(Script::default()).await];
    let dead = format!("http://127.0.0.1:{}", common::free_port());
    let urls = [dead, others[0].url(), others[1].url()];
    // Without health checks: only the requests themselves find out.
    let bridge = Bridge::with(|o| {
        servers(o, &urls).rule_edit("pools.toml", "health = { path = \"/health\", every_seconds = 1 }\n", "")
    })
    .await;
    for round in 0..10 {
        let asks: Vec<_> = (0..6).map(|i| if i % 2 == 0 { ask("who is there?") } else { streamed("who?") }).collect();
        let got = futures::future::join_all(asks.iter().map(|body| bridge.free(body))).await;
        assert!(got.iter().all(|reply| reply.status == 200 && reply.complete), "round {round}");
    }
    let heard = others.iter().map(|b| b.requests().len()).collect::<Vec<_>>();
    assert_eq!(heard.iter().sum::<usize>(), 60, "{heard:?}");
    assert!(heard.iter().all(|n| *n >= 10), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_gets_less_and_slows_nobody_else() {
    let slow = Backend::start(Script::default()).await;
    let quick = Backend::start(Script::default()).await;
    let bridge = Bridge::with(|o| servers(o, &[slow.url(), quick.url()])).await;
    slow.always(Reply::hang());
    // Whoever meets the slow one waits there; everyone after that must find the other.
    let mut stuck = Vec::new();
    while slow.requests().is_empty() {
        let mut client = Raw::connect(bridge.gate.listen).await;
        client.send(&raw::post(FREE, &[], ask("first").to_string().as_bytes())).await;
        let moved =
            common::eventually(PATIENCE, || async { slow.requests().len() + quick.requests().len() > stuck.len() })
                .await;
        assert!(moved);
        stuck.push(client);
    }
    let before = quick.requests().len();
    for _ in 0..30 {
        assert_eq!(bridge.free(&ask("next")).await.status, 200);
    }
    assert_eq!((slow.requests().len(), quick.requests().len() - before), (1, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_used_again() {
    let other = Backend::start(Script::default()).await;
    let port = common::free_port();
    let bridge = Bridge::with(|o| servers(o, &[format!("http://127.0.0.1:{port}"), other.url()])).await;
    for _ in 0..4 {
        assert_eq!(bridge.free(&ask("hello")).await.status, 200);
    }
    let back = Backend::start_on(([127, 0, 0, 1], port).into(), Script::default()).await;
    let end = Instant::now() + PATIENCE;
    while back.requests().is_empty() {
        assert!(Instant::now() < end, "never asked again");
        assert_eq!(bridge.free(&ask("hello")).await.status, 200);
    }
    let seen: BTreeSet<u64> = back.requests().iter().map(|r| r.connection).collect();
    assert!(!seen.is_empty());
}
