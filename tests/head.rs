//! The request head, byte by byte: whatever it says, one connection brings the backend at most the one request that a strict
//! reader would see.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{self, CHAT, FREE, ROOMY, limits};
use common::{Bridge, Raw, raw};
use futures::stream::{self, StreamExt};
use std::time::Duration;

/// Between `{` and `}`: the placeholders of a case.
struct Words {
    path: &'static str,
    /// A correct body, its length, and as one chunk.
    body: String,
    /// Its prompt.
    own: String,
    /// A whole request that must never be served from behind another one.
    hidden: String,
}

impl Words {
    fn of(path: &'static str, number: usize) -> Self {
        let own = format!("case {path} {number} plain");
        let hidden = bridge::ask(&format!("case {path} {number} hidden")).to_string();
        let hidden = String::from_utf8(raw::post(path, &[], hidden.as_bytes())).unwrap();
        Self { path, body: bridge::ask(&own).to_string(), own, hidden }
    }

    fn fill(&self, case: &str) -> Vec<u8> {
        let length = self.body.len();
        let chunk = format!("{length:x}\r\n{}\r\n", self.body);
        case.replace("{path}", self.path)
            .replace("{json}", "host: gate\r\ncontent-type: application/json\r\n")
            .replace("{body}", &self.body)
            .replace("{len}", &length.to_string())
            .replace("{hex}", &format!("{length:x}"))
            .replace("{chunk}", &chunk)
            .replace("{end}", "0\r\n\r\n")
            .replace("{hidden}", &self.hidden)
            .replace("{hlen}", &self.hidden.len().to_string())
            .replace("{all}", &(length + self.hidden.len()).to_string())
            .into_bytes()
    }
}

/// Heads with a correct body behind them, in every way in which two readers could disagree about its end.
/// `POST {path} HTTP/1.1`, host and content type stand before each.
const FRAMINGS: &[&str] = &[
    // both at once
    "content-length: {len}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "content-length: {all}\r\ntransfer-encoding: chunked\r\n\r\n{end}{hidden}",
    "content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX{hidden}",
    "content-length: {len}\r\nTransfer-Encoding:chunked\r\n\r\n{chunk}{end}{hidden}",
    "CONTENT-LENGTH: {len}\r\ntRANSFER-eNCODING: cHUNKED\r\n\r\n{chunk}{end}{hidden}",
    // transfer codings that somebody takes for chunked and somebody does not
    "transfer-encoding: xchunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: chunked\x0b\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding:\x0bchunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: \x00chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding:\tchunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding : chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding\t: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    " transfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x: y\r\n transfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x: y\rtransfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x: y\ntransfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding\r\n: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding:\r\n chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: chunked\r\n , identity\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked, identity\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: identity, chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: gzip, chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: identity\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: identity\r\n\r\n{body}{hidden}",
    "transfer-encoding:\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: \"chunked\"\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: chunked;q=1\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked,\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: ,chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked\r\ntransfer-encoding: cow\r\n\r\n{chunk}{end}{hidden}",
    "transfer_encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "te: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "transfer-encoding: chu\u{6e}ked\u{a0}\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x-transfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "connection: content-length\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    // lengths
    "content-length: {len}\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: {len}\r\ncontent-length: {all}\r\n\r\n{body}{hidden}",
    "content-length: {all}\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: 0\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: {len}\r\ncontent-length: 0\r\n\r\n{body}{hidden}",
    "content-length: {len}, {len}\r\n\r\n{body}{hidden}",
    "content-length: {len}, {all}\r\n\r\n{body}{hidden}",
    "content-length: {len} {all}\r\n\r\n{body}{hidden}",
    "content-length: +{len}\r\n\r\n{body}{hidden}",
    "content-length: -{len}\r\n\r\n{body}{hidden}",
    "content-length: -1\r\n\r\n{body}{hidden}",
    "content-length: 0x{hex}\r\n\r\n{body}{hidden}",
    "content-length: {hex}h\r\n\r\n{body}{hidden}",
    "content-length: {len}.0\r\n\r\n{body}{hidden}",
    "content-length: {len}e0\r\n\r\n{body}{hidden}",
    "content-length: {len}a\r\n\r\n{body}{hidden}",
    "content-length: 00{len}\r\n\r\n{body}{hidden}",
    "content-length:\r\n\r\n{body}{hidden}",
    "content-length: \"{len}\"\r\n\r\n{body}{hidden}",
    "content-length:\t{len}\r\n\r\n{body}{hidden}",
    "content-length: {len}\t\r\n\r\n{body}{hidden}",
    "content-length: {len}\x0b\r\n\r\n{body}{hidden}",
    "content-length : {len}\r\n\r\n{body}{hidden}",
    " content-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: 1\r\n {len}\r\n\r\n{body}{hidden}",
    "content-length:\r\n {len}\r\n\r\n{body}{hidden}",
    "content_length: {len}\r\n\r\n{body}{hidden}",
    "content-length: 18446744073709551616\r\n\r\n{body}{hidden}",
    "content-length: 18446744073709551615\r\n\r\n{body}{hidden}",
    "content-length: 99999999999999999999999\r\n\r\n{body}{hidden}",
    "content-length: \u{661}\r\n\r\n{body}{hidden}",
    // no length at all: the body is nobody's
    "\r\n{body}{hidden}",
    "connection: close\r\n\r\n{body}{hidden}",
    "content-length: 0\r\n\r\n{hidden}",
    // chunks
    "transfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex};a=b\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex};a=\"\r\n\"\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex};\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex};x\nxx\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n0x{hex}\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n+{hex}\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n-{hex}\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n {hex}\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex} \r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\t\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n000000000000000000000{hex}\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n1000000000000000{hex}\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n7fffffffffffffff\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\ng\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\n{body}\n0\n\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\r\n{body}\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\r\n{body}{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\r\n{body}XX\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n1\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\r{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{hex}\r\r\n{body}\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}00000\r\n\r\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0;a\r\n\r\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\r\nx-trailer: 1\r\n\r\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\r\ncontent-length: {hlen}\r\n\r\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\r\ntransfer-encoding: chunked\r\n\r\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\r\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\n\n{hidden}",
    "transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\rX{hidden}",
    "transfer-encoding: chunked\r\n\r\n{end}{hidden}",
    "transfer-encoding: chunked\r\n\r\n{body}{hidden}",
    // switching protocols
    "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "upgrade: h2c\r\n\r\n{hidden}",
    "connection: upgrade\r\nupgrade: tls/1.0\r\ncontent-length: 0\r\n\r\n{hidden}",
    "connection: upgrade\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    // waiting for leave to send
    "expect: 100-continue\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "expect: 100-continue\r\ncontent-length: 0\r\n\r\n{hidden}",
    "expect: 200-ok\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "expect: x 100-continue\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    // header lines that are none
    "x\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    ": x\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x y: z\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x(y): z\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x\x00y: z\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x: \x00\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x: \x7f\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x: y\r\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: {len}\n\n{body}{hidden}",
    "content-length: {len}\r\n\n{body}{hidden}",
    "content-length: {len}\n\r\n{body}{hidden}",
    "content-length: {len}\r\r\n\r\n{body}{hidden}",
    "host: other\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "x-http-method-override: GET\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "keep-alive: timeout=5\r\nconnection: keep-alive\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "proxy-connection: keep-alive\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    // and without any trick: a second request right behind the first
    "content-length: {len}\r\n\r\n{body}{hidden}",
    "content-length: {len}\r\n\r\n{body}\r\n{hidden}",
    "content-length: {len}\r\n\r\n{body}\r\n\r\n{hidden}{hidden}{hidden}",
];

/// Whole requests whose first line is the trick.
const LINES: &[&str] = &[
    "POST {path} HTTP/1.0\r\n{json}transfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "POST {path} HTTP/1.0\r\n{json}transfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.0\r\n{json}transfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n{chunk}{end}{hidden}",
    "POST {path} HTTP/1.0\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.0\r\n{json}content-length: {len}\r\nconnection: keep-alive\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.0\r\n{json}\r\n{body}{hidden}",
    "POST {path} HTTP/0.9\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path}\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.2\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/2.0\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} http/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.1 HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST  {path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path}  HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST\t{path}\tHTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    " POST {path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "\r\n\r\nPOST {path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.1\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path} HTTP/1.1\r{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST {path}\x00 HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "PO\x00ST {path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST http://other.example{path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "POST http://gate{path} HTTP/1.1\r\n{json}transfer-encoding: chunked\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "CONNECT {path} HTTP/1.1\r\n{json}\r\n{hidden}",
    "CONNECT backend.example:443 HTTP/1.1\r\nhost: backend.example:443\r\n\r\n{hidden}",
    "CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: 127.0.0.1:80\r\ncontent-length: {len}\r\n\r\n{body}{hidden}",
    "GET {path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}{hidden}",
    "GET {path} HTTP/1.1\r\n{json}transfer-encoding: chunked\r\n\r\n{chunk}{end}{hidden}",
    "GET {path} HTTP/1.1\r\n{json}\r\n{hidden}",
    "HEAD {path} HTTP/1.1\r\n{json}content-length: {hlen}\r\n\r\n{hidden}",
    "OPTIONS * HTTP/1.1\r\n{json}content-length: {hlen}\r\n\r\n{hidden}",
    "POST /nowhere HTTP/1.1\r\n{json}content-length: 5\r\n\r\n{hidden}",
    "POST /nowhere HTTP/1.1\r\n{json}transfer-encoding: chunked\r\n\r\n{body}{hidden}",
    "GET /llms.txt HTTP/1.1\r\n{json}content-length: {hlen}\r\n\r\n{hidden}",
    "GET /v1/models HTTP/1.1\r\n{json}content-length: 3\r\n\r\nGET{hidden}",
    "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n{hidden}",
];

/// What one connection came to.
struct End {
    case: String,
    statuses: Vec<u16>,
    seen: String,
    closed: bool,
}

/// Statuses of the final answers in what was received.
fn statuses(seen: &[u8]) -> Vec<u16> {
    let seen = String::from_utf8_lossy(seen);
    seen.match_indices("HTTP/1.")
        .filter(|(at, _)| *at == 0 || seen[..*at].ends_with('\n') || seen[..*at].ends_with('}'))
        .filter_map(|(at, _)| seen[at..].split(' ').nth(1)?.parse().ok())
        .filter(|status| *status >= 200)
        .collect()
}

async fn run(bridge: &Bridge, case: &str, words: &Words) -> End {
    let mut client = Raw::connect(bridge.gate.listen).await;
    client.try_send(&words.fill(case)).await;
    // The gate's own deadlines (2 s) end what hangs. A second answer, if there were one, would follow the first at once.
    while statuses(&client.seen).is_empty() && client.more(bridge::PATIENCE).await.is_some() {}
    let closed = client.closed(Duration::from_millis(1500)).await;
    let seen = String::from_utf8_lossy(&client.seen).into_owned();
    End { case: case.to_owned(), statuses: statuses(&client.seen), seen, closed }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_hides_behind_another_however_the_first_is_framed() {
    let bridge = Bridge::with(|o| limits(o, &format!("{ROOMY}, header_seconds = 2, body_seconds = 2"))).await;
    let framings = FRAMINGS.iter().map(|f| format!("POST {{path}} HTTP/1.1\r\n{{json}}{f}"));
    let cases: Vec<String> = framings.chain(LINES.iter().map(|l| (*l).to_owned())).collect();
    assert!(cases.len() >= 120, "{}", cases.len());
    for path in [FREE, CHAT] {
        let before = bridge.backend.requests().len();
        let runs = cases.iter().enumerate().map(|(number, case)| {
            let (bridge, words) = (&bridge, Words::of(path, number));
            async move { (run(bridge, case, &words).await, words) }
        });
        let ends: Vec<_> = stream::iter(runs).buffer_unordered(64).collect().await;
        let heard: Vec<_> = bridge.backend.requests().split_off(before);
        for (end, words) in &ends {
            let End { case, statuses, seen, closed } = end;
            assert!(!statuses.is_empty() || *closed, "left hanging: {case:?}");
            assert!(statuses.len() <= 1, "two answers on one connection: {case:?}\n{seen}");
            let mine: Vec<_> = heard.iter().filter(|r| String::from_utf8_lossy(&r.body).contains(&words.own)).collect();
            match statuses.first() {
                None | Some(400..=499) => assert!(mine.is_empty(), "refused, yet forwarded: {case:?}\n{seen}"),
                Some(200) if case.starts_with("GET ") => assert!(mine.is_empty(), "{case:?}"),
                Some(200) => assert_eq!((path, mine.len()), (FREE, 1), "{case:?}\n{seen}"),
                Some(other) => panic!("{other} to {case:?}\n{seen}"),
            }
        }
        for request in &heard {
            let body = String::from_utf8_lossy(&request.body);
            assert!(!body.contains("hidden"), "the backend heard a hidden request: {body}");
            assert_eq!(request.path, "/v1/chat/completions");
        }
        let served =
            ends.iter().filter(|(end, _)| end.statuses == [200] && end.case.trim().starts_with("POST")).count();
        assert_eq!(heard.len(), served, "what was heard and what was answered");
        // The corpus is no test of a gate that refuses everything.
        assert!(path == CHAT || served >= 5, "{served}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_and_a_chunked_one_are_served_and_keep_their_connection() {
    let bridge = Bridge::start().await;
    let mut client = bridge.connect().await;
    for number in 0..3 {
        let words = Words::of(FREE, number);
        for case in [
            "POST {path} HTTP/1.1\r\n{json}content-length: {len}\r\n\r\n{body}",
            "POST {path} HTTP/1.1\r\n{json}transfer-encoding: chunked\r\n\r\n{chunk}{end}",
        ] {
            client.send(&words.fill(case)).await;
            assert_eq!(client.reply(bridge::PATIENCE).await.status, 200, "{case}");
        }
    }
    assert_eq!(bridge.backend.requests().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_in_time_is_hung_up_on() {
    let bridge = Bridge::with(|o| limits(o, &format!("{ROOMY}, header_seconds = 1"))).await;
    let mut silent = bridge.connect().await;
    let mut dripping = bridge.connect().await;
    dripping.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\n").await;
    let drip = async {
        // A new line every 100 ms resets any per-read patience; only a deadline for the whole head ends this.
        while dripping.try_send(b"x-more: 1\r\n").await {
            if dripping.closed(Duration::from_millis(100)).await {
                return true;
            }
        }
        true
    };
    let (dripped, quiet) = tokio::join!(tokio::time::timeout(bridge::PATIENCE, drip), silent.closed(bridge::PATIENCE));
    assert!(dripped.is_ok_and(|ended| ended) && quiet);
    assert!(silent.seen.is_empty(), "nobody asked anything");
    // The door is open for the next one, and a complete head lifts the deadline.
    bridge.backend.tune(|script| script.first_byte = Duration::from_millis(1500));
    assert_eq!(bridge.free(&bridge::ask("hello")).await.status, 200);
}
