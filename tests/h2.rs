//! HTTP/2 with prior knowledge: the same gate, and the floods that only HTTP/2 knows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ROOMY, ask, limits, streamed};
use common::{DEV, Payer, Raw, Reply, payer};
use futures::StreamExt;
use std::net::SocketAddr;
use std::time::Duration;

fn client() -> reqwest::Client {
    common::init();
    reqwest::Client::builder().no_proxy().http2_prior_knowledge().timeout(PATIENCE).build().unwrap()
}

async fn post(client: &reqwest::Client, url: &str, body: &serde_json::Value, proof: Option<&str>) -> reqwest::Response {
    let mut request = client.post(url).header("content-type", "application/json").body(body.to_string());
    if let Some(proof) = proof {
        request = request.header("authorization", proof);
    }
    request.send().await.unwrap()
}

/// An HTTP/2 connection by hand.
struct Frames {
    raw: Raw,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK without a table: method and scheme from the static one, the rest as literals.
fn block(method_index: u8, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let text = |s: &str| [&[u8::try_from(s.len()).unwrap()], s.as_bytes()].concat();
    let mut out = [&[0x80 | method_index, 0x86, 0x04][..], &text(path), &[0x01], &text("gate")].concat();
    for (name, value) in more {
        out.push(0);
        out.extend(text(name));
        out.extend(text(value));
    }
    out
}

const GET: u8 = 2;
const POST: u8 = 3;

impl Frames {
    async fn connect(to: SocketAddr) -> Self {
        let mut raw = Raw::connect(to).await;
        raw.send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()).await;
        Self { raw }
    }

    /// The next frame: kind, flags, stream, payload. `None` when the connection is over.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            let seen = &self.raw.seen;
            if seen.len() >= 9 {
                let length = usize::from(seen[0]) << 16 | usize::from(seen[1]) << 8 | usize::from(seen[2]);
                if seen.len() >= 9 + length {
                    let frame: Vec<u8> = self.raw.seen.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
                    return Some((frame[3], frame[4], stream, frame[9..].to_vec()));
                }
            }
            self.raw.more(PATIENCE).await?;
        }
    }

    /// Reads until a frame of this kind; `None` when the connection ended without.
    async fn until(&mut self, kind: u8) -> Option<Vec<u8>> {
        while let Some((got, _, _, payload)) = self.next().await {
            if got == kind {
                return Some(payload);
            }
        }
        None
    }

    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.raw.try_send(bytes).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_speaks_http2_pays_and_is_served_like_everyone_else() {
    let bridge = Bridge::start().await;
    let client = client();
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    for body in [ask("whole"), streamed("streamed")] {
        let unpaid = post(&client, &bridge.gate.chat_url(), &body, None).await;
        assert_eq!((unpaid.status().as_u16(), unpaid.version()), (402, http::Version::HTTP_2));
        let offers: Vec<&str> =
            unpaid.headers().get_all("www-authenticate").iter().map(|v| v.to_str().unwrap()).collect();
        let proof = payer.authorization(&payer::offer(&offers, "tempo", "charge")).await;
        let paid = post(&client, &bridge.gate.chat_url(), &body, Some(&proof)).await;
        assert_eq!(paid.status().as_u16(), 200);
        assert!(paid.headers().contains_key("payment-receipt"));
        assert!(paid.headers().keys().all(|n| !["connection", "transfer-encoding", "server"].contains(&n.as_str())));
        assert!(paid.text().await.unwrap().contains("tok11"));
    }
    let many = (0..50).map(|i| (i, ask(&format!("number {i}"))));
    let url = format!("{}{FREE}", bridge.gate.url());
    let got = futures::future::join_all(many.map(|(_, body)| {
        let (client, url) = (&client, &url);
        async move { post(client, url, &body, None).await.status().as_u16() }
    }))
    .await;
    assert!(got.iter().all(|status| *status == 200), "{got:?}");
    assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_lets_the_backend_go_and_keeps_the_payment_good() {
    let bridge = Bridge::start().await;
    let client = client();
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let body = ask("reset me");
    let unpaid = post(&client, &bridge.gate.chat_url(), &body, None).await;
    let offers = [unpaid.headers()["www-authenticate"].to_str().unwrap().to_owned()];
    let proof = payer.authorization(&payer::offer(&[&offers[0]], "tempo", "charge")).await;
    bridge.backend.next(Reply::hang());
    let url = bridge.gate.chat_url();
    let task = {
        let (client, url, body, proof) = (client.clone(), url.clone(), body.clone(), proof.clone());
        tokio::spawn(async move { post(&client, &url, &body, Some(&proof)).await })
    };
    bridge.heard(1).await;
    task.abort();
    let let_go = common::eventually(PATIENCE, || async { bridge.backend.requests()[0].closed_early.is_some() }).await;
    assert!(let_go, "the backend still works for nobody");
    bridge.quiet().await;
    // The connection is as good as before, and so is the payment.
    let bought = post(&client, &url, &body, Some(&proof)).await;
    assert_eq!(bought.status().as_u16(), 200, "{:?}", bought.text().await);

    bridge.backend.tune(|script| (script.tokens, script.per_token) = (1_000, Duration::from_millis(50)));
    let mut stream =
        post(&client, &format!("{}{FREE}", bridge.gate.url()), &streamed("cut me"), None).await.bytes_stream();
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    let let_go = common::eventually(PATIENCE, || async { bridge.backend.last().closed_early.is_some() }).await;
    assert!(let_go && bridge.backend.last().produced < 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_says_how_much_it_takes_and_takes_no_more() {
    let bridge = Bridge::with(|o| limits(o, &format!("{ROOMY}, h2_streams = 7"))).await;
    let mut frames = Frames::connect(bridge.gate.listen).await;
    let settings = frames.until(SETTINGS).await.unwrap();
    let said =
        |id: u8| settings.chunks(6).find(|s| s[..2] == [0, id]).map(|s| u32::from_be_bytes([s[2], s[3], s[4], s[5]]));
    assert_eq!((said(3), said(6)), (Some(7), Some(64 * 1024)), "streams, bytes of headers");
    bridge.backend.always(Reply::hang());
    let body = ask("wait").to_string();
    let mut all = Vec::new();
    for stream in (1..=41).step_by(2) {
        all.extend(frame(HEADERS, END_HEADERS, stream, &block(POST, FREE, &[("content-type", "application/json")])));
        all.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
    }
    frames.send(&all).await;
    bridge.heard(7).await;
    let mut refused = 0;
    while refused < 14 {
        let (kind, _, _, payload) = frames.next().await.expect("the connection ended");
        if kind == RST_STREAM {
            assert_eq!(payload, 7u32.to_be_bytes(), "REFUSED_STREAM: it was not worked on");
            refused += 1;
        }
    }
    assert_eq!(bridge.backend.requests().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_streams_opened_and_reset_cost_no_memory_and_nobody_elses_turn() {
    let bridge = Bridge::start().await;
    let honest = client();
    let url = format!("{}{FREE}", bridge.gate.url());
    assert_eq!(post(&honest, &url, &ask("before"), None).await.status().as_u16(), 200);
    let before = bridge.resident_kib();
    let mut opened = 0;
    let mut connections = 0;
    while opened < 10_000 {
        let mut frames = Frames::connect(bridge.gate.listen).await;
        connections += 1;
        let mut stream = 1u32;
        loop {
            let mut batch = Vec::new();
            for _ in 0..50 {
                let unfinished = stream % 4 == 1;
                let (flags, head) = match unfinished {
                    true => (END_HEADERS, block(POST, CHAT, &[("content-type", "application/json")])),
                    false => (END_HEADERS | END_STREAM, block(GET, "/v1/models", &[])),
                };
                batch.extend(frame(HEADERS, flags, stream, &head));
                batch.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
                stream += 2;
            }
            // The gate ends such a connection; then the attacker makes another.
            let ended = frames.raw.seen.windows(9).any(|w| w[..5] == [0, 0, 8, GOAWAY, 0]);
            if ended || !frames.send(&batch).await || opened >= 10_000 {
                break;
            }
            opened += 50;
            frames.raw.more(Duration::from_millis(1)).await;
        }
        if connections % 10 == 0 {
            assert_eq!(post(&honest, &url, &ask("meanwhile"), None).await.status().as_u16(), 200);
        }
    }
    assert_eq!(post(&honest, &url, &ask("after"), None).await.status().as_u16(), 200);
    bridge.quiet().await;
    let grown = bridge.resident_kib().saturating_sub(before);
    assert!(grown < 50 * 1024, "{grown} KiB more after {opened} streams on {connections} connections");
    assert!(bridge.backend.requests().iter().all(|r| String::from_utf8_lossy(&r.body).contains("content")));
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_are_hung_up_on() {
    let bridge = Bridge::start().await;
    let before = bridge.resident_kib();
    for _ in 0..20 {
        let mut frames = Frames::connect(bridge.gate.listen).await;
        frames.send(&frame(HEADERS, 0, 1, &block(GET, "/v1/models", &[]))).await;
        let more = block(GET, "/", &[("x-filler", &"x".repeat(100))])[6..].to_vec();
        let filler: Vec<u8> = [&[0u8, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100);
        let _ = more;
        let mut sent = 0;
        while frames.send(&frame(CONTINUATION, 0, 1, &filler)).await && sent < 10_000 {
            sent += 1;
            if frames.raw.seen.windows(9).any(|w| w[3] == GOAWAY) {
                break;
            }
            frames.raw.more(Duration::from_micros(100)).await;
        }
        assert!(sent < 10_000, "100 MB of header were taken");
    }
    assert!(bridge.resident_kib().saturating_sub(before) < 50 * 1024);
    assert_eq!(post(&client(), &format!("{}{FREE}", bridge.gate.url()), &ask("ok"), None).await.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_meaning_only_in_http1_is_refused_in_http2() {
    let bridge = Bridge::start().await;
    let body = ask("smuggle").to_string();
    let length = (body.len() - 3).to_string();
    for (header, why) in [
        (("transfer-encoding", "chunked"), "a transfer coding"),
        (("connection", "keep-alive"), "a hop"),
        (("upgrade", "h2c"), "an upgrade"),
        (("content-length", "1"), "a length that is too short"),
        (("content-length", length.as_str()), "another"),
        (("content-length", "999999"), "a length that is too long"),
        (("x y", "z"), "no header name"),
        (("X-Upper", "z"), "capitals"),
        (("x", "a\r\ncontent-length: 0"), "two lines"),
        ((":path", "/v1/models"), "a second path"),
    ] {
        let mut frames = Frames::connect(bridge.gate.listen).await;
        let head = block(POST, FREE, &[("content-type", "application/json"), header]);
        frames.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        frames.send(&frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        // Reset, the end of the connection, or a refusal: never a reply from the backend.
        let ended = loop {
            match frames.next().await {
                None | Some((RST_STREAM | GOAWAY, ..)) => break true,
                Some((HEADERS, _, _, payload)) => break payload.first() != Some(&0x88),
                _ => {}
            }
        };
        assert!(ended, "{why}");
    }
    assert!(bridge.backend.requests().is_empty(), "{:?}", bridge.backend.requests());
}
