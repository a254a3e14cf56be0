//! Headers that a client writes change nothing that is the gate's to decide: how much it reads, whose rate is counted, who is
//! paid, and which page in a browser may look.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ROOMY, ask, limits};
use common::{GateOptions, RawReply, payer, raw};

fn unpaid(headers: &[(&str, &str)]) -> Vec<u8> {
    raw::post(CHAT, headers, ask("hello").to_string().as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_larger_than_any_client_needs_is_refused_and_holds_no_memory() {
    let bridge = Bridge::start().await;
    let before = bridge.resident_kib();
    let many: String = (0..300).map(|i| format!("x-{i}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "x".repeat(4 << 20));
    let long = "/x".repeat(1 << 20);
    let start = format!("POST {CHAT} HTTP/1.1\r\nhost: gate\r\n");
    for (head, why) in [
        (format!("{start}{many}\r\n"), "300 headers"),
        (format!("{start}{large}\r\n"), "4 MiB in one header"),
        (format!("POST {long} HTTP/1.1\r\nhost: gate\r\n\r\n"), "2 MiB of path"),
        (format!("{start}{}", "x: y\r\n".repeat(700_000)), "lines without end"),
    ] {
        let mut clients = Vec::new();
        for _ in 0..8 {
            let mut client = bridge.connect().await;
            client.try_send(head.as_bytes()).await;
            clients.push(client);
        }
        for mut client in clients {
            assert!(client.closed(PATIENCE).await, "{why}");
            let status = String::from_utf8_lossy(&client.seen).split(' ').nth(1).map(str::to_owned);
            assert!(status.as_deref().is_none_or(|s| s.starts_with('4')), "{why}: {status:?}");
        }
    }
    let grown = bridge.resident_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more");
    assert_eq!(bridge.free(&ask("still here")).await.status, 200);
    assert_eq!(bridge.backend.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_request_says_it_is_from_does_not_change_whose_rate_is_counted() {
    let bridge = Bridge::with(|o| limits(o, "connections_per_ip = 10000, unpaid_per_ip_per_second = 20")).await;
    let names =
        ["x-forwarded-for", "forwarded", "x-real-ip", "cf-connecting-ip", "true-client-ip", "x-client-ip", "x-payer"];
    let limited = common::eventually(PATIENCE, || async {
        let mut limited = false;
        for number in 0..40 {
            let value = format!("10.0.{number}.1");
            let headers: Vec<(&str, &str)> = names.iter().map(|n| (*n, value.as_str())).collect();
            limited |= bridge.send(&unpaid(&headers)).await.status == 429;
        }
        limited
    })
    .await;
    assert!(limited, "a header bought a fresh rate");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_paid_and_where_never_comes_from_the_request() {
    let bridge = Bridge::start().await;
    let honest = bridge.send(&unpaid(&[])).await;
    let want = payer::offer(&honest.headers("www-authenticate"), "tempo", "charge");
    let spoofed = [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("x-original-url", "/v1/models"),
        ("x-rewrite-url", "/v1/models"),
        ("origin", "https://evil.example"),
        ("payment-receipt", "e30"),
        ("www-authenticate", "Payment realm=\"evil.example\""),
        ("payment-required", "e30"),
        ("accept-payment", "evil\", realm=\"evil.example"),
    ];
    let body = ask("hello").to_string();
    for host in ["evil.example", "evil.example\", recipient=\"x", "127.0.0.1:1", ""] {
        let mut head = format!("POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in spoofed {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let got = bridge.send(format!("{head}\r\n{body}").as_bytes()).await;
        assert!(!String::from_utf8_lossy(&got.raw).contains("evil"), "{}", String::from_utf8_lossy(&got.raw));
        if got.status == 402 {
            let offer = payer::offer(&got.headers("www-authenticate"), "tempo", "charge");
            assert_eq!((&offer.realm, offer.request.raw()), (&want.realm, want.request.raw()), "{host}");
            assert!(got.header("payment-receipt").is_none());
        } else {
            assert_eq!(got.status, 400, "{host}");
        }
    }
}

fn cors(options: GateOptions, origins: &str) -> GateOptions {
    limits(options, ROOMY)
        .conf_edit("grace_seconds = 5\n", &format!("grace_seconds = 5\ncors = {{ origins = {origins} }}\n"))
}

fn preflight(origin: &str) -> Vec<u8> {
    format!(
        "OPTIONS {CHAT} HTTP/1.1\r\nhost: gate\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: authorization,content-type,x-stainless-os\r\n\r\n"
    )
    .into_bytes()
}

fn shared(got: &RawReply) -> Option<&str> {
    assert!(got.header("access-control-allow-credentials").is_none(), "cookies are never shared");
    got.header("access-control-allow-origin")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_configured_origins_may_look() {
    let closed = Bridge::start().await;
    assert_eq!(closed.send(&preflight("https://app.example")).await.status, 405);
    assert_eq!(shared(&closed.send(&unpaid(&[("origin", "https://app.example")])).await), None);
    drop(closed);

    let some = Bridge::with(|o| cors(o, "[\"https://app.example\"]")).await;
    for (origin, want) in [
        ("https://app.example", Some("https://app.example")),
        ("https://app.example.evil.example", None),
        ("http://app.example", None),
        ("null", None),
    ] {
        let asked = some.send(&preflight(origin)).await;
        assert_eq!((asked.status, shared(&asked)), (if want.is_some() { 204 } else { 405 }, want), "{origin}");
        let unpaid = some.send(&unpaid(&[("origin", origin)])).await;
        assert_eq!((unpaid.status, shared(&unpaid)), (402, want), "{origin}");
        let headers = [("origin", origin)];
        for body in [ask("whole"), common::bridge::streamed("streamed")] {
            let served = some.send(&raw::post(FREE, &headers, body.to_string().as_bytes())).await;
            assert_eq!((served.status, shared(&served)), (200, want), "{origin}");
        }
        if want.is_some() {
            let allowed = asked.headers("access-control-allow-headers").join(",");
            assert!(allowed.contains("x-stainless-os"), "{allowed}");
            let exposed = unpaid.header("access-control-expose-headers").unwrap().to_ascii_lowercase();
            assert!(exposed.contains("www-authenticate") && exposed.contains("payment-receipt"), "{exposed}");
            assert!(unpaid.headers("vary").iter().any(|v| v.eq_ignore_ascii_case("origin")));
        }
    }
    drop(some);

    let all = Bridge::with(|o| cors(o, "[\"*\"]")).await;
    for path in ["/v1/models/openai%2Fgpt-oss-120b", "/openapi.json", "/receipts/rcpt_x"] {
        let entry = String::from_utf8(preflight("https://anyone.example")).unwrap().replace(CHAT, path);
        assert_eq!(all.send(entry.as_bytes()).await.status, 204, "{path}");
    }
    assert_eq!(shared(&all.send(&unpaid(&[("origin", "https://anyone.example")])).await), Some("*"));
}
