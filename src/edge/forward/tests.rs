#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! A client on an in-memory pipe, a backend on a socket that says exactly the bytes of the test.

mod elsewhere;
mod large;
mod partings;
mod pauses;
mod verdicts;

use super::*;
use crate::edge::scrub;
use crate::ids::PoolName;
use crate::rules::plan::{Balance, Discovery, PoolRules, Queue, ServerRules, Timeouts};
use crate::secret::SecretRef;
use crate::surface::Surface;
use crate::upstream::Pools;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const ROOMY: usize = 1 << 20;
const OK_JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const ASK: Bytes = Bytes::from_static(b"{\"a\":1}");
const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Streams event streams, buffers the rest; writes down what it was asked.
#[derive(Default)]
struct Recorder {
    log: Vec<String>,
    durable: Option<Refusal>,
    stop_after: Option<usize>,
    hold: bool,
    last_words: &'static str,
    /// Hold the stream after this chunk.
    pause_after: Option<usize>,
    /// How each wait in a pause comes out, and what is sent with it.
    pauses: Option<mpsc::UnboundedReceiver<(Flow, &'static str)>>,
    hold_last: bool,
    /// Give nothing of a chunk to the client.
    swallow: bool,
    body: Bytes,
    /// Pools that a request was written for.
    asked_for: Vec<String>,
    /// Headers of the client.
    seen: HeaderMap,
    /// What came of every server.
    tried: Vec<&'static str>,
    /// Largest reply that it takes whole.
    limit: Option<usize>,
    /// Say that its answer will not stream.
    is_whole: bool,
    /// The backend may be silent before the first byte.
    thinks: bool,
    /// Hear so many chunks when the client has left.
    listens: Option<usize>,
    /// Stop at an event that says `error`, and give nothing of it.
    errs: bool,
    broken: bool,
    /// There is an error in it that is the request's own doing.
    failed: bool,
    /// It was asked whether it does.
    asked: Arc<tokio::sync::Notify>,
}

#[async_trait]
impl Filter for Recorder {
    fn affinity(&self, _pool: &Pool) -> Affinity {
        Affinity::NONE
    }

    fn request(&mut self, pool: &Pool, last: bool) -> Outgoing {
        self.asked_for.push(pool.name().as_str().to_owned());
        let body = if last { std::mem::take(&mut self.body) } else { self.body.clone() };
        Outgoing::post("/v1/chat/completions", &scrub::to_backend(&self.seen), body).answered_whole(self.is_whole)
    }

    fn model(&self, _pool: &Pool) -> UpstreamModel {
        UpstreamModel::from("m")
    }

    fn tried(&mut self, attempt: &Attempt<'_>) {
        self.tried.push(attempt.outcome);
    }

    async fn head(&mut self, status: u16, headers: &HeaderMap) -> Verdict {
        self.log.push(format!("head {status}"));
        match headers.get("content-type").and_then(|v| v.to_str().ok()) {
            Some("text/event-stream") => {
                let mut head = ResponseHeader::build(status, None).unwrap();
                head.insert_header("content-type", "text/event-stream").unwrap();
                head.insert_header("content-length", "1").unwrap();
                Verdict::Stream(Box::new(head))
            }
            Some("text/refused") => Verdict::Fail(Refusal::Stopping),
            Some("text/nonsense") => Verdict::Fail(Refusal::UpstreamFailed { why: "test" }),
            _ => Verdict::Buffer { limit: self.limit.unwrap_or(1000) },
        }
    }

    async fn before_first_byte(&mut self) -> Result<(), Refusal> {
        self.log.push("durable".into());
        self.durable.clone().map_or(Ok(()), Err)
    }

    async fn chunk(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) -> Flow {
        if self.hold {
            self.log.push("held".into());
            std::future::pending::<()>().await;
        }
        self.log.push(format!("chunk {}", String::from_utf8_lossy(&chunk)));
        if self.errs && chunk.starts_with(b"data: error") {
            self.broken = true;
            return Flow::Stop;
        }
        if self.errs && chunk.starts_with(b"data: refused") {
            return Flow::Stop;
        }
        if !self.swallow {
            out.push(chunk);
        }
        let seen = self.log.iter().filter(|line| line.starts_with("chunk")).count();
        match seen {
            seen if self.stop_after == Some(seen) => Flow::Stop,
            seen if self.pause_after == Some(seen) => Flow::Hold,
            _ => Flow::Go,
        }
    }

    async fn resume(&mut self, out: &mut Vec<Bytes>) -> Flow {
        self.log.push("resume".into());
        let (flow, words) = match &mut self.pauses {
            Some(pauses) => pauses.recv().await.unwrap(),
            None => (Flow::Go, ""),
        };
        out.push(Bytes::from_static(words.as_bytes()));
        flow
    }

    fn may_be_silent(&self) -> bool {
        self.thinks && !self.log.iter().any(|line| line == "durable")
    }

    fn has_failed(&self) -> bool {
        self.failed || self.broken
    }

    fn is_broken(&self) -> bool {
        self.broken
    }

    fn listens(&self, _pool: &Pool) -> bool {
        self.asked.notify_one();
        self.listens.is_some()
    }

    async fn overhear(&mut self, chunk: Option<Bytes>) -> Flow {
        self.log
            .push(chunk.map_or("end".into(), |chunk| format!("overheard {}", String::from_utf8_lossy(&chunk).trim())));
        let heard = self.log.iter().filter(|line| line.starts_with("overheard")).count();
        if self.listens.is_some_and(|most| heard < most) { Flow::Go } else { Flow::Stop }
    }

    async fn finish(&mut self, ending: &Ending, out: &mut Vec<Bytes>) -> Flow {
        self.log.push(format!("finish {ending:?}"));
        out.push(Bytes::from_static(self.last_words.as_bytes()));
        if self.hold_last { Flow::Hold } else { Flow::Go }
    }
}

/// Waits are a second each.
fn rules(ports: &[u16]) -> PoolRules {
    let server = |&port| ServerRules {
        tls: false,
        host: "127.0.0.1".into(),
        port,
        prefix: "/base".into(),
        weight: 1,
        group: 0,
        name: None,
        max_concurrent: None,
    };
    PoolRules {
        name: PoolName::from("p"),
        profile: "vllm".into(),
        surfaces: Vec::new(),
        servers: ports.iter().map(server).collect(),
        discovery: Discovery::Listed,
        balance: Balance::default(),
        queue: Queue::default(),
        fallback: None,
        api_key: None,
        health: None,
        timeouts: Timeouts { connect_seconds: 1, first_byte_seconds: 20, idle_seconds: 20, total_seconds: 60 },
    }
}

/// The same, who waits no longer than a second.
fn brisk(ports: &[u16]) -> PoolRules {
    let rules = rules(ports);
    PoolRules { timeouts: Timeouts { first_byte_seconds: 1, idle_seconds: 1, ..rules.timeouts }, ..rules }
}

/// A gate between one client and its backends.
struct Bed {
    session: Session,
    lines: Arc<Lines>,
    lane: Lane,
    filter: Recorder,
}

impl Bed {
    /// The pipe to the client holds `room` bytes.
    async fn new(ports: &[u16], room: usize) -> (Self, DuplexStream) {
        Self::with(rules(ports), room, "HTTP/1.1").await
    }

    async fn with(rules: PoolRules, room: usize, version: &str) -> (Self, DuplexStream) {
        let pools = Pools::build(&BTreeMap::from([(rules.name.clone(), Arc::new(rules))]), None).unwrap();
        let lane = pools.lane(&PoolName::from("p"), Surface::Chat, false, 1);
        let (session, client) = visit(room, version).await;
        let mut seen = HeaderMap::new();
        for name in ["accept", "authorization", "x-payment", "cookie", "x-forwarded-for", "accept-encoding", "te"] {
            seen.insert(name, "canary".parse().unwrap());
        }
        let bed = Self {
            session,
            lines: Arc::new(Lines::default()),
            lane,
            filter: Recorder { seen, body: ASK, ..Recorder::default() },
        };
        (bed, client)
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.lane.pools[0]
    }

    async fn run(&mut self) -> Outcome {
        self.filter.body = if self.filter.body.is_empty() { ASK } else { self.filter.body.clone() };
        forward(&mut self.session, &self.lines, &self.lane, &mut self.filter).await
    }

    /// Everything the client got. Ends the session.
    async fn told(self, mut client: DuplexStream) -> String {
        drop(self.session);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    }
}

async fn visit(room: usize, version: &str) -> (Session, DuplexStream) {
    let (mut client, gate) = tokio::io::duplex(room);
    let mut session = Session::new_h1(Box::new(gate));
    let head = format!("POST / {version}\r\nhost: gate\r\ncontent-length: 0\r\n\r\n");
    let (read, written) = tokio::join!(session.as_downstream_mut().read_request(), client.write_all(head.as_bytes()));
    assert!(read.unwrap());
    written.unwrap();
    (session, client)
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port at which nobody listens.
async fn nobody() -> u16 {
    listen().await.1
}

/// The next request on a connection, head and body.
async fn asked(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&all).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
            if body.len() >= length {
                return text;
            }
        }
        let mut buf = vec![0; 65536];
        let n = stream.read(&mut buf).await.unwrap();
        assert!(n > 0, "the gate hung up after {text:?}");
        all.extend_from_slice(&buf[..n]);
    }
}

/// One connection, one request, these bytes back, and what the gate asked. The connection stays open until dropped.
async fn answer(listener: &TcpListener, bytes: &str) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let request = asked(&mut stream).await;
    stream.write_all(bytes.as_bytes()).await.unwrap();
    (request, stream)
}

/// The client has got this.
async fn heard(client: &mut DuplexStream, words: &str) {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(words) {
        all.push(client.read_u8().await.unwrap());
    }
}

/// The other side has closed (or reset) this connection.
async fn closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
}

fn chunked(parts: &[&str]) -> String {
    parts.iter().map(|part| format!("{:x}\r\n{part}\r\n", part.len())).collect()
}

fn failed(outcome: &Outcome) -> &Refusal {
    match outcome {
        Outcome::Failed(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_pump_can_run_on_any_thread() {
    fn sendable<T: Send>(_: impl FnOnce(&'static mut Session, &'static mut dyn Filter) -> T) {}
    sendable(|session, filter| async move {
        let (lines, lane) = (Lines::default(), Pools::default().lane(&PoolName::from("p"), Surface::Chat, false, 1));
        forward(session, &lines, &lane, filter).await;
    });
}

#[tokio::test]
async fn the_backend_sees_our_head_and_the_clients_body_and_nothing_that_pays() {
    let (listener, port) = listen().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "operator").unwrap();
    let mut rules = rules(&[port]);
    rules.api_key = Some(SecretRef::File(dir.path().join("key").to_str().unwrap().into()));
    let (mut bed, _client) = Bed::with(rules, ROOMY, "HTTP/1.1").await;
    let (outcome, (request, _stream)) = tokio::join!(bed.run(), answer(&listener, OK_JSON));
    assert!(matches!(outcome, Outcome::Buffered { status: 200, body, .. } if body == "{}"));
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines.remove(0), "post /base/v1/chat/completions http/1.1");
    lines.sort_unstable();
    let host = format!("host: 127.0.0.1:{port}");
    let agent = format!("user-agent: {}", crate::upstream::USER_AGENT);
    assert_eq!(
        lines,
        [
            "accept-encoding: identity",
            "accept: canary",
            "authorization: bearer operator",
            "content-length: 7",
            "content-type: application/json",
            &host,
            &agent,
        ]
    );
    assert_eq!(body, "{\"a\":1}");
}

#[tokio::test]
async fn a_body_of_100_kb_arrives_whole() {
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::new(&[port], ROOMY).await;
    bed.filter.body = Bytes::from(vec![b'x'; 100_089]);
    let (outcome, (request, _stream)) = tokio::join!(bed.run(), answer(&listener, OK_JSON));
    assert!(matches!(outcome, Outcome::Buffered { .. }));
    assert_eq!(request.split_once("\r\n\r\n").unwrap().1.len(), 100_089);
}

#[tokio::test]
async fn a_stream_leaves_byte_for_byte_between_the_durable_mark_and_the_last_words() {
    let (listener, port) = listen().await;
    let (mut bed, client) = Bed::new(&[port], ROOMY).await;
    bed.filter.last_words = ": receipt\n\n";
    let bytes = format!("{SSE}{}0\r\n\r\n", chunked(&["data: \u{20ac}\n\n", "data: [DONE]\n\n"]));
    let (outcome, _) = tokio::join!(bed.run(), answer(&listener, &bytes));
    let Outcome::Streamed(ending) = outcome else { panic!("{outcome:?}") };
    assert_eq!(ending, Ending { how: How::Complete, sent_bytes: 36 });
    let log = bed.filter.log.join("|");
    assert!(log.starts_with("head 200|chunk data: "), "{log}");
    assert!(log.ends_with("|finish Ending { how: Complete, sent_bytes: 25 }"), "{log}");
    assert_eq!(log.matches("durable").count(), 1, "{log}");
    let told = bed.told(client).await;
    let (head, body) = told.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("transfer-encoding: chunked") && !head.contains("ontent-length"), "{head}");
    let text: String = body.split("\r\n").skip(1).step_by(2).collect();
    assert_eq!(text, "data: \u{20ac}\n\ndata: [DONE]\n\n: receipt\n\n");
    assert!(body.ends_with("\r\n0\r\n\r\n"), "the answer is ended properly");
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_stream_that_ends_with_the_connection() {
    let (listener, port) = listen().await;
    let (mut bed, client) = Bed::with(rules(&[port]), ROOMY, "HTTP/1.0").await;
    let bytes = format!("{SSE}{}0\r\n\r\n", chunked(&["data: 1\n\n"]));
    let (outcome, _) = tokio::join!(bed.run(), answer(&listener, &bytes));
    assert!(matches!(outcome, Outcome::Streamed(_)));
    let told = bed.told(client).await;
    assert!(!told.to_lowercase().contains("chunked") && told.ends_with("\r\n\r\ndata: 1\n\n"), "{told}");
}

#[tokio::test]
async fn a_server_that_cannot_be_connected_to_is_passed_over_and_rests() {
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::new(&[nobody().await, port], ROOMY).await;
    let (outcome, _) = tokio::join!(bed.run(), answer(&listener, OK_JSON));
    assert!(matches!(outcome, Outcome::Buffered { .. }), "{outcome:?}");
    let usable: Vec<bool> = bed.pool().status().into_iter().map(|s| s.usable).collect();
    assert_eq!(usable, [false, true]);
}

#[tokio::test]
async fn when_no_server_can_be_connected_to_the_client_is_told_to_come_back() {
    let (mut bed, _client) = Bed::new(&[nobody().await, nobody().await], ROOMY).await;
    let outcome = bed.run().await;
    assert_eq!((failed(&outcome).status(), failed(&outcome).retry_after()), (503, Some(1)));
    assert!(!bed.pool().available());
}

#[tokio::test]
async fn a_bad_answer_is_a_failure_of_the_backend_with_nothing_sent() {
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1001));
    for (bytes, want, why) in [
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", 502, "nobody asked for it"),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx", 502, "usage cannot be read"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502, "nor under a transfer coding"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", 502, "less than it promised"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n", 502, "declared larger than the limit"),
        (&long, 502, "larger than the limit, undeclared"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", 502, "cut between chunks"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}", 502, "two lengths"),
        ("nonsense\r\n\r\n", 502, "not HTTP"),
        ("", 502, "hung up on a new connection: it may have had the request"),
        ("HTTP/1.1 2", 502, "half a head"),
        ("HTTP/1.1 100 Continue\r\n\r\n", 502, "only an informational head"),
        (&format!("{SSE}0\r\n\r\n"), 502, "an event stream without events"),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/refused\r\n\r\n", 503, "the filter's own refusal"),
    ] {
        let (listener, port) = listen().await;
        let (mut bed, client) = Bed::new(&[port], ROOMY).await;
        let (outcome, ()) = tokio::join!(bed.run(), async { drop(answer(&listener, bytes).await) });
        assert_eq!(failed(&outcome).status(), want, "{why}");
        assert!(!bed.filter.log.iter().any(|l| l.starts_with("finish") || l == "durable"), "{why}");
        assert_eq!(bed.told(client).await, "", "{why}");
    }
}

#[tokio::test]
async fn informational_heads_are_skipped() {
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::new(&[port], ROOMY).await;
    let bytes = format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{OK_JSON}");
    let (outcome, _) = tokio::join!(bed.run(), answer(&listener, &bytes));
    assert!(matches!(outcome, Outcome::Buffered { status: 200, .. }), "{outcome:?}");
    assert_eq!(bed.filter.log, ["head 200"]);
}

#[tokio::test]
async fn a_backend_that_refuses_our_key_is_taken_out_and_the_client_sees_502() {
    for (status, out) in [(401, true), (402, true), (403, true), (400, false), (429, false), (500, false)] {
        let (listener, port) = listen().await;
        let (mut bed, _client) = Bed::new(&[port], ROOMY).await;
        let said = if status == 403 { r#"{"error":"this API key may not"}"# } else { "{}" };
        let length = said.len();
        let bytes =
            format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nset-cookie: a\r\nretry-after: 7\r\n\r\n{said}");
        let (outcome, _) = tokio::join!(bed.run(), answer(&listener, &bytes));
        let rests = !bed.pool().available_for(&UpstreamModel::from("m"));
        assert_eq!(rests, status != 400, "{status}: our key, or it asked to be left alone");
        assert_eq!(
            bed.pool().available(),
            matches!(status, 400 | 429 | 500),
            "{status}: 429 and 5xx are about one model"
        );
        if out {
            assert_eq!(failed(&outcome).status(), 502, "{status}");
            assert_eq!(bed.pool().status()[0].key_alarms, 1);
        } else {
            let Outcome::Buffered { status: got, headers, .. } = outcome else { panic!("{status}") };
            assert_eq!((got, headers.keys().map(|k| k.as_str()).collect::<Vec<_>>()), (status, vec!["retry-after"]));
        }
    }
}

#[tokio::test]
async fn a_request_that_a_backend_moderates_takes_no_server_out() {
    let flagged = r#"{"error":{"code":403,"message":"your input was flagged","metadata":{"flagged_input":"x"}}}"#;
    let dear = r#"{"error":{"code":402,"message":"requires more credits, or fewer max_tokens"}}"#;
    let checked = r#"{"code":"The caller does not have permission","error":"Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}"#;
    let wall = "<html>You don't have permission to access this resource</html>";
    for (status, said) in [(403, flagged), (402, dear), (403, checked), (403, wall), (403, "{}")] {
        let ((one, first), (two, second)) = (listen().await, listen().await);
        let (mut bed, client) = Bed::new(&[first, second], ROOMY).await;
        let bytes = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{said}", said.len());
        let both = async { drop(tokio::join!(answer(&one, &bytes), answer(&two, &bytes))) };
        let (outcome, ()) = tokio::join!(bed.run(), both);
        let refusal = failed(&outcome);
        assert_eq!((refusal.status(), refusal.code()), (403, "upstream_refused"), "{said}");
        assert!(!refusal.message().contains("credit") && !refusal.invites_payment(), "{}", refusal.message());
        let status = bed.pool().status();
        assert!(bed.pool().available() && status.iter().all(|s| s.key_alarms == 0), "{said}");
        assert_eq!(bed.told(client).await, "");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_unless_the_backend_minds() {
    let stream = format!("{SSE}{}0\r\n\r\n", chunked(&["data: 1\n\n"]));
    for (bytes, again, why) in [
        (OK_JSON, true, "keep-alive"),
        (&stream, true, "after a stream as well"),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", false, "it said so"),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", false, "HTTP/1.0"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}more", false, "bytes that belong to no answer"),
    ] {
        let (listener, port) = listen().await;
        let (mut bed, _client) = Bed::new(&[port], ROOMY).await;
        let (outcome, (_, mut first)) = tokio::join!(bed.run(), answer(&listener, bytes));
        assert!(matches!(outcome, Outcome::Buffered { .. } | Outcome::Streamed(_)), "{why}");
        let second = async {
            if again {
                asked(&mut first).await;
                first.write_all(OK_JSON.as_bytes()).await.unwrap();
            } else {
                closed(&mut first).await;
                answer(&listener, OK_JSON).await;
            }
        };
        let (outcome, ()) = tokio::join!(bed.run(), second);
        assert!(matches!(outcome, Outcome::Buffered { .. }), "{why}");
    }
}

#[tokio::test]
async fn the_second_try_never_takes_another_idle_connection() {
    let (listener, port) = listen().await;
    let (mut a, _client) = Bed::new(&[port], ROOMY).await;
    let (mut b, _other) = Bed::new(&[port], ROOMY).await;
    (b.lines, b.lane) = (Arc::clone(&a.lines), a.lane.clone());
    let (_, _, (first, second)) = tokio::join!(a.run(), b.run(), async {
        let (mut one, _) = listener.accept().await.unwrap();
        let (_, two) = answer(&listener, OK_JSON).await;
        asked(&mut one).await;
        one.write_all(OK_JSON.as_bytes()).await.unwrap();
        (one, two)
    });
    let dies_when_asked = |mut stream: TcpStream| async move {
        asked(&mut stream).await;
    };
    let outcome = tokio::select! {
        outcome = a.run() => outcome,
        _ = async { tokio::join!(dies_when_asked(first), dies_when_asked(second), async {
            let _open = answer(&listener, OK_JSON).await;
            std::future::pending::<()>().await;
        }) } => unreachable!(),
    };
    assert!(matches!(outcome, Outcome::Buffered { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_request_that_crosses_an_idle_close_is_sent_once_more_and_only_then() {
    for (dying_words, retried, why) in [
        ("", true, "the connection was dead"),
        ("HTTP/1.1 2", false, "it had begun to answer"),
        ("HTTP/1.1 100 Continue\r\n\r\n", false, "it had taken the request"),
    ] {
        let (listener, port) = listen().await;
        let (mut bed, _client) = Bed::new(&[port], ROOMY).await;
        let (_, (_, mut first)) = tokio::join!(bed.run(), answer(&listener, OK_JSON));
        let backend = async {
            asked(&mut first).await;
            first.write_all(dying_words.as_bytes()).await.unwrap();
            drop(first);
            let _open = answer(&listener, OK_JSON).await;
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = bed.run() => outcome,
            () = backend => unreachable!(),
        };
        assert_eq!(matches!(outcome, Outcome::Buffered { .. }), retried, "{why}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_backend_that_dies_twice_is_not_asked_a_third_time() {
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::new(&[port, nobody().await], ROOMY).await;
    let (_, (_, mut first)) = tokio::join!(bed.run(), answer(&listener, OK_JSON));
    let asked_again = tokio::select! {
        outcome = bed.run() => { assert_eq!(failed(&outcome).status(), 502); 0 }
        n = async {
            asked(&mut first).await;
            drop(first);
            drop(answer(&listener, "").await);
            drop(answer(&listener, OK_JSON).await);
            1
        } => n,
    };
    assert_eq!(asked_again, 0);
}
