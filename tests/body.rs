//! The request body: its size, its time, its type, and what all bodies together may hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ROOMY, ask, limits, streamed};
use common::{GateOptions, Raw, Reply, Step, raw};
use std::time::{Duration, Instant};

/// No limit on tokens: these tests are about bytes.
fn long_prompts(options: GateOptions) -> GateOptions {
    options.rule_edit("tiers.toml", "max_input_tokens = 8192\n", "")
}

fn head(path: &str, more: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\n{more}\r\n").into_bytes()
}

fn chunk(payload: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_tiers_limit_is_413_however_it_is_framed() {
    let bridge = Bridge::start().await;
    let limit = 1_048_576;
    let mut declared = bridge.connect().await;
    declared.send(&head(CHAT, &format!("content-length: {}\r\n", limit + 1))).await;
    let got = declared.reply(PATIENCE).await;
    assert_eq!(
        (got.status, got.json()["error"]["code"].as_str()),
        (413, Some("body_too_large")),
        "before a byte of it was sent"
    );
    assert!(declared.closed(PATIENCE).await, "what was announced is not waited for");

    let mut chunked = bridge.connect().await;
    chunked.send(&head(CHAT, "transfer-encoding: chunked\r\n")).await;
    let piece = chunk(&vec![b' '; 64 * 1024]);
    for _ in 0..16 {
        chunked.send(&piece).await;
    }
    chunked.send(&chunk(b" ")).await;
    assert_eq!(chunked.reply(PATIENCE).await.status, 413, "one byte more than the limit");
    assert!(chunked.closed(PATIENCE).await);

    // Exactly the limit is no more than the limit.
    let mut body = ask("hello").to_string();
    body.push_str(&" ".repeat(limit - body.len()));
    assert_eq!(bridge.send(&raw::post(FREE, &[], body.as_bytes())).await.status, 200);
    assert_eq!(bridge.backend.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_in_time_is_408_and_the_connection_ends() {
    let bridge = Bridge::with(|o| limits(o, &format!("{ROOMY}, body_seconds = 1"))).await;
    for (framing, drop) in
        [("content-length: 100000\r\n", b" ".to_vec()), ("transfer-encoding: chunked\r\n", chunk(b" "))]
    {
        let mut client = bridge.connect().await;
        client.send(&head(CHAT, framing)).await;
        // Every drop comes soon enough for a patience per read.
        let mut dripping = async || {
            while client.try_send(&drop).await && client.more(Duration::from_millis(50)).await.is_none() {}
        };
        tokio::time::timeout(PATIENCE, dripping()).await.expect("a slow body is ended");
        let got = client.reply(PATIENCE).await;
        assert_eq!((got.status, got.json()["error"]["code"].as_str()), (408, Some("body_too_slow")));
        assert!(client.closed(PATIENCE).await);
    }
    assert!(bridge.backend.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_100_continue_gets_it_at_once_or_is_refused_without_sending() {
    let bridge = Bridge::start().await;
    let body = ask("after you").to_string();
    let mut client = bridge.connect().await;
    client.send(&head(FREE, &format!("expect: 100-continue\r\ncontent-length: {}\r\n", body.len()))).await;
    assert!(client.until(b"HTTP/1.1 100 Continue\r\n\r\n", PATIENCE).await);
    client.send(body.as_bytes()).await;
    assert_eq!(client.reply(PATIENCE).await.status, 200);

    for (more, status) in [
        ("content-length: 2000000\r\n", 413),
        ("content-length: 10\r\ncontent-encoding: gzip\r\n", 415),
        ("content-length: 10\r\ncontent-type: text/html\r\n", 415),
        ("content-length: 10\r\ntransfer-encoding: chunked\r\n", 400),
    ] {
        let mut refused = bridge.connect().await;
        refused.send(&head(CHAT, &format!("expect: 100-continue\r\n{more}"))).await;
        let got = refused.reply(PATIENCE).await;
        assert_eq!(got.status, status, "{more}");
        let everything = [&got.raw[..], &refused.seen[..]].concat();
        assert!(!String::from_utf8_lossy(&everything).contains("100 Continue"), "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plain_json_is_read() {
    let bridge = Bridge::start().await;
    let body = ask("plain").to_string();
    let packed = common::backend::gzip_stored(body.as_bytes());
    for (headers, bytes, why) in [
        (vec![("content-encoding", "gzip")], &packed[..], "compressed"),
        (vec![("content-encoding", "gzip")], body.as_bytes(), "said to be compressed"),
        (vec![("content-encoding", "identity, br")], body.as_bytes(), "compressed after all"),
        (vec![("content-encoding", "deflate")], body.as_bytes(), "another way"),
        (vec![("content-type", "text/html")], body.as_bytes(), "a page"),
        (vec![("content-type", "text/plain; charset=latin1")], body.as_bytes(), "text in another alphabet"),
        (vec![("content-type", "multipart/form-data; boundary=x")], body.as_bytes(), "a form"),
        (vec![("content-type", "application/x-www-form-urlencoded")], body.as_bytes(), "another form"),
        (vec![("content-type", "application/jsonx")], body.as_bytes(), "nearly"),
        (vec![("content-type", "application/json; charset=utf-16")], body.as_bytes(), "another alphabet"),
        (vec![("content-type", "application/json"), ("content-type", "text/plain")], body.as_bytes(), "two types"),
    ] {
        let got = bridge.send(&raw::post(CHAT, &headers, bytes)).await;
        assert_eq!((got.status, got.json()["error"]["code"].as_str()), (415, Some("unsupported_media_type")), "{why}");
        assert!(got.header("www-authenticate").is_none(), "{why}");
    }
    for kind in ["application/json", "text/plain;charset=UTF-8", "Application/JSON; Charset=\"UTF-8\""] {
        assert_eq!(
            bridge.send(&raw::post(CHAT, &[("content-type", kind)], body.as_bytes())).await.status,
            402,
            "{kind}"
        );
    }
    let untyped = format!("POST {CHAT} HTTP/1.1\r\nhost: gate\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(bridge.send(untyped.as_bytes()).await.status, 402, "no type is taken for JSON");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_pass_whole() {
    let bridge = Bridge::with(|o| limits(long_prompts(o), ROOMY)).await;
    for size in [100_000, 900_000] {
        let prompt: String = (0..).map(|i| format!("word{i} ")).take(size / 9).collect();
        let got = bridge.free(&ask(&prompt)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let heard = bridge.backend.last().json();
        assert!(heard["messages"][0]["content"] == prompt.as_str(), "{size} bytes arrived changed");
    }
    // Chunked in odd pieces it is the same text.
    let prompt = "x\u{e9}\u{1f309}".repeat(30_000);
    let body = ask(&prompt).to_string();
    let mut client = bridge.connect().await;
    client.send(&head(FREE, "transfer-encoding: chunked\r\n")).await;
    for piece in body.as_bytes().chunks(7_919) {
        client.send(&chunk(piece)).await;
    }
    client.send(b"0\r\n\r\n").await;
    assert_eq!(client.reply(PATIENCE).await.status, 200);
    assert!(bridge.backend.last().json()["messages"][0]["content"] == prompt.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_share_a_budget_and_whoever_is_over_it_is_told_when_to_come_back() {
    let bridge = Bridge::with(|o| limits(long_prompts(o), &format!("{ROOMY}, bodies_in_flight_mib = 1"))).await;
    let body = ask(&"word ".repeat(160_000)).to_string();
    let (most, rest) = body.as_bytes().split_at(body.len() - 10);
    let mut slow = bridge.connect().await;
    slow.send(&head(FREE, &format!("content-length: {}\r\n", body.len()))).await;
    slow.send(most).await;
    // It is counted as it arrives; before it has arrived whole, either of two may be the one that is over.
    // Twice: what moves from one queue to the other may be in neither when the list is read, and what was read may not be counted yet.
    let taken = common::eventually(PATIENCE, || async {
        let first = slow.is_taken();
        tokio::time::sleep(Duration::from_millis(100)).await;
        first && slow.is_taken()
    });
    assert!(taken.await, "the gate does not read");
    let refused = common::eventually(PATIENCE, || async {
        let mut other = Raw::connect_from([127, 0, 0, 2], bridge.gate.listen).await;
        other.try_send(&raw::post(CHAT, &[], ask(&"word ".repeat(60_000)).to_string().as_bytes())).await;
        let got = other.reply(PATIENCE).await;
        if got.status == 503 {
            assert!(got.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok()), "{:?}", got.headers);
            assert_eq!(got.json()["error"]["code"], "rate_limit_exceeded");
            assert!(got.header("www-authenticate").is_none());
        }
        got.status == 503
    })
    .await;
    assert!(refused);
    // Small ones still fit, and the first goes on as if nothing had been.
    assert_eq!(bridge.send(&raw::post(CHAT, &[], ask("small").to_string().as_bytes())).await.status, 402);
    slow.send(rest).await;
    assert_eq!(slow.reply(PATIENCE).await.status, 200);
    drop(slow);
    assert_eq!(
        bridge.send(&raw::post(CHAT, &[], ask(&"word ".repeat(60_000)).to_string().as_bytes())).await.status,
        402
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stands_still_holds_no_body() {
    let bridge = Bridge::with(|o| limits(long_prompts(o), &format!("{ROOMY}, bodies_in_flight_mib = 1"))).await;
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"here\"}}]}\n\n";
    let mut streams = Vec::new();
    for _ in 0..3 {
        bridge.backend.next(Reply::broken_stream([token], Step::Hang));
        let mut client = bridge.connect().await;
        client.send(&raw::post(FREE, &[], streamed(&"word ".repeat(160_000)).to_string().as_bytes())).await;
        assert!(client.until(b"here", PATIENCE).await, "each of them alone would fill the budget");
        streams.push(client);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_slow_bodies_hold_no_more_memory_than_the_share_of_their_address_and_leave_the_rest_to_others() {
    let bridge = Bridge::with(|o| limits(long_prompts(o), &format!("{ROOMY}, bodies_in_flight_mib = 8"))).await;
    let before = bridge.resident_kib();
    let piece = vec![b' '; 256 * 1024];
    let mut slow: Vec<Raw> = Vec::new();
    for _ in 0..200 {
        let mut client = bridge.connect().await;
        client.send(&head(CHAT, "content-length: 1000000\r\n")).await;
        client.try_send(&piece).await;
        slow.push(client);
    }
    // 50 MB were offered. Those over the share, an eighth, are answered; the others wait inside it.
    let (mut waiting, end) = (slow, Instant::now() + PATIENCE);
    let mut answered = Vec::new();
    while answered.len() < 195 {
        assert!(Instant::now() < end, "{} of 200 are inside a share of 4", waiting.len());
        for mut client in std::mem::take(&mut waiting) {
            match client.until(b"\r\n\r\n", Duration::from_millis(2)).await {
                true => answered.push(client.reply(PATIENCE).await.status),
                false => waiting.push(client),
            }
        }
    }
    assert!(answered.iter().all(|status| *status == 429), "{answered:?}");
    let large = ask(&"word ".repeat(100_000)).to_string();
    let mut other = Raw::connect_from([127, 0, 0, 2], bridge.gate.listen).await;
    other.send(&raw::post(CHAT, &[], large.as_bytes())).await;
    assert_eq!(other.reply(PATIENCE).await.status, 402, "another address has its own share");
    let grown = bridge.resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more with a budget of 8 MiB");
    // Whoever leaves gives its bytes back.
    drop(waiting);
    bridge.quiet().await;
    assert_eq!(bridge.send(&raw::post(FREE, &[], ask("hello").to_string().as_bytes())).await.status, 200);
}
