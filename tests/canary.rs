//! No secret, and nothing that people say to models, gets into a log, a metric, a status page or somebody else's answer,
//! also when everything that knows one breaks and repeats it, and also at the most talkative log level.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, FREE, ROOMY, ask, free_route, limits, streamed};
use common::gate::{CHALLENGE_KEY, RECEIPT_KEY, UPSTREAM_KEY};
use common::{Backend, Chain, DEV, Fault, Gate, GateOptions, Payer, Raw, Reply, RpcProxy, Script, Step, payer, raw};
use serde_json::json;

const RPC_KEY: &str = "rpc-canary-2b7e151628aed2a6";
const PROMPT: &str = "promptcanary";
const COMPLETION: &str = "completioncanary";
const CLIENT_TOKEN: &str = "clienttokencanary";

/// What may stand in no log, metric or page, and in no answer: keys in every spelling in which they exist somewhere.
fn secrets() -> Vec<String> {
    let settle = DEV[1].key.trim_start_matches("0x");
    let mut all: Vec<String> = [UPSTREAM_KEY, CHALLENGE_KEY, RECEIPT_KEY, RPC_KEY, settle].map(str::to_owned).into();
    let packed: Vec<String> = all.iter().map(|s| mpp::base64url_encode(s.as_bytes())).collect();
    all.extend(packed);
    all.push(settle.to_uppercase());
    all
}

struct Heard {
    answers: Vec<Vec<u8>>,
    /// Signatures that were shown: whoever reads one in a log can replay it while it is good.
    proofs: Vec<String>,
}

impl Heard {
    fn keep(&mut self, reply: common::RawReply) -> u16 {
        self.answers.push(reply.raw);
        reply.status
    }
}

/// Everything a gate meets, good and bad.
async fn live_through(bridge: &Bridge, rpc: &RpcProxy) -> Heard {
    let mut heard = Heard { answers: Vec::new(), proofs: Vec::new() };
    let payer = Payer::fresh(&bridge.chain, 10_000_000).await;
    let secret_words = format!("{UPSTREAM_KEY} {CHALLENGE_KEY} {RECEIPT_KEY} {} {}", DEV[1].key, rpc.url());
    let error = |status| {
        Reply::json(
            status,
            &json!({"error": {"message": secret_words, "type": secret_words, "code": UPSTREAM_KEY, "param": secret_words}}),
        )
    };
    let prompt = format!("{PROMPT} tell me");
    let token = [("authorization", CLIENT_TOKEN), ("cookie", CLIENT_TOKEN), ("x-api-key", CLIENT_TOKEN)];

    // Answers of every kind, unpaid and free.
    for body in [ask(&prompt), streamed(&prompt)] {
        heard.keep(bridge.send(&raw::post(CHAT, &token, body.to_string().as_bytes())).await);
        heard.keep(bridge.send(&raw::post(FREE, &token, body.to_string().as_bytes())).await);
    }
    let mut wrong = ask(&prompt);
    wrong["model"] = json!(format!("{PROMPT}-model"));
    bridge.send(&raw::post(CHAT, &[], wrong.to_string().as_bytes())).await;
    bridge.send(&raw::post(CHAT, &[], format!("{{\"{PROMPT}\":").as_bytes())).await;
    bridge.send(&raw::post(&format!("/{PROMPT}"), &[("x", PROMPT)], b"{}")).await;
    bridge.send(&raw::post(CHAT, &[("content-type", PROMPT)], PROMPT.as_bytes())).await;
    let mut broken = bridge.connect().await;
    broken.send(format!("BAD {PROMPT} HTTP/9.9\r\n{PROMPT}\r\n\r\n").as_bytes()).await;
    broken.closed(std::time::Duration::from_secs(5)).await;

    // Backends that repeat what they know, whole, streamed, in heads and in garbage. 401 last: it ejects the server.
    let said = format!("data: {{\"error\":{{\"message\":\"{secret_words}\"}}}}\n\n");
    let late = format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{COMPLETION}\"}}}}]}}\n\n");
    for reply in [
        error(400),
        error(404),
        error(429),
        error(500),
        error(503),
        error(200),
        Reply::Echo { status: 400 },
        Reply::Echo { status: 500 },
        Reply::html(200),
        Reply::status(200, "text/plain", &secret_words),
        Reply::status(200, &format!("text/{UPSTREAM_KEY}"), &secret_words),
        Reply::status(200, "application/json", &secret_words),
        Reply::with_headers(302, &[("location", &secret_words)], ""),
        Reply::with_headers(500, &[("server", &secret_words), ("set-cookie", &secret_words)], ""),
        Reply::stream([said.as_bytes()]),
        Reply::broken_stream([late.as_bytes()], Step::Reset),
        Reply::steps([Step::Bytes(format!("{secret_words}\r\n\r\n").into_bytes()), Step::Close]),
        Reply::steps([Step::Bytes(format!("HTTP/1.1 200 {secret_words}\r\n{UPSTREAM_KEY}\r\n\r\n").into_bytes()), Step::Close]),
        Reply::steps([Step::Bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {UPSTREAM_KEY}\r\n\r\n").into_bytes()), Step::Close]),
        Reply::steps([Step::Bytes(format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{UPSTREAM_KEY}\r\n").into_bytes()), Step::Close]),
    ] {
        bridge.backend.next(reply);
        heard.keep(bridge.free(&streamed(&prompt)).await);
        // Five of them in a row, and it would be asked nothing more.
        assert_eq!(heard.keep(bridge.free(&streamed(&prompt)).await), 200);
    }

    // Payments: good, spent, bent.
    for body in [ask(&prompt), streamed(&prompt)] {
        let paying = bridge.paying(&payer, &body).await;
        let head = String::from_utf8_lossy(&paying).into_owned();
        let credential = head.lines().find_map(|l| l.strip_prefix("authorization: ")).unwrap().to_owned();
        let opened = payer::unpack(&credential);
        let signature = opened["payload"]["signature"].as_str().unwrap();
        heard.proofs.extend([credential["Payment ".len()..].to_owned(), signature.trim_start_matches("0x").to_owned()]);
        for bent in [
            payer::bend(&credential, |c| c["challenge"]["id"] = json!("A".repeat(43))),
            payer::bend(&credential, |c| c["payload"]["signature"] = json!(format!("0x{PROMPT}"))),
            payer::bend(&credential, |c| c["payload"]["signature"] = json!("0x76c0")),
            format!("Payment {PROMPT}"),
        ] {
            let got = bridge.send(&raw::post(CHAT, &[("authorization", &bent)], body.to_string().as_bytes())).await;
            assert!((400..500).contains(&heard.keep(got)));
        }
        assert_eq!(heard.keep(bridge.send(&paying).await), 200);
        assert_eq!(heard.keep(bridge.send(&paying).await), 403);
    }

    // A chain that repeats where it lives and what it was sent.
    let url = rpc.url();
    for fault in [
        Fault::Error { code: -32000, message: format!("{url}/{RPC_KEY} {secret_words}") },
        Fault::Error { code: -32003, message: format!("transaction failed: {RPC_KEY}") },
        Fault::Status(401),
        Fault::Status(500),
        Fault::Refuse,
    ] {
        // While it is tried, and once it is handed in.
        for methods in [["eth_call", "eth_estimateGas"], ["eth_sendRawTransaction", "eth_sendRawTransactionSync"]] {
            let paying = bridge.paying(&payer, &ask(&prompt)).await;
            for method in methods {
                rpc.once(method, fault.clone());
            }
            heard.keep(bridge.send(&paying).await);
            rpc.clear();
            heard.keep(bridge.send(&paying).await);
        }
    }

    let sent = rpc.calls().iter().filter(|m| m.starts_with("eth_sendRawTransaction")).count();
    assert!(sent > 7, "the chain's failures were met: {:?}", rpc.calls());

    // Clients that leave.
    bridge.backend.next(Reply::hang());
    let count = bridge.backend.requests().len();
    let mut leaving = Raw::connect(bridge.gate.listen).await;
    leaving.send(&raw::post(FREE, &[], ask(&prompt).to_string().as_bytes())).await;
    bridge.heard(count + 1).await;
    leaving.reset();

    rpc.always("*", Fault::Error { code: 1, message: format!("{url} {RPC_KEY}") });
    let down = common::eventually(common::bridge::PATIENCE, || async {
        bridge.gate.admin_get("/readyz").await.is_some_and(|(status, _)| status == 503)
    })
    .await;
    assert!(down);
    heard.keep(bridge.send(&raw::post(CHAT, &[], ask(&prompt).to_string().as_bytes())).await);
    bridge.backend.next(error(401));
    assert_eq!(heard.keep(bridge.free(&ask(&prompt)).await), 502);
    assert_eq!(heard.keep(bridge.free(&ask(&prompt)).await), 503);
    bridge.quiet().await;
    heard
}

async fn nothing_leaks(level: &str) {
    let chain = Chain::start().await;
    let rpc = RpcProxy::start(&chain.url()).await;
    let backend = Backend::start(Script { word: COMPLETION.into(), ..Script::default() }).await;
    // Addresses of chain providers carry the key in the path.
    let address = format!("{}/v2/{RPC_KEY}", rpc.url());
    let options = limits(free_route(GateOptions::new(&address, &backend.url())), ROOMY).env("PONTAGE_LOG", level);
    let mut bridge = Bridge { chain, backend, gate: Gate::start(options).await };
    let heard = live_through(&bridge, &rpc).await;

    let mut pages = Vec::new();
    for path in ["/metrics", "/status", "/readyz", "/healthz", "/nowhere"] {
        pages.push((path.to_owned(), bridge.gate.admin_get(path).await.unwrap().1));
    }
    for path in ["/openapi.json", "/llms.txt", "/v1/models"] {
        let got = bridge.send(format!("GET {path} HTTP/1.1\r\nhost: gate\r\n\r\n").as_bytes()).await;
        pages.push((path.to_owned(), got.text()));
    }
    rpc.clear();
    bridge.gate.write_rules("tiers.toml", &format!("[tier.x]\nmodels = [\"{PROMPT}\"]\n"));
    bridge.gate.hup();
    bridge.gate.stop().await;
    pages.push(("the log".to_owned(), bridge.gate.log()));
    assert!(
        bridge.gate.log().lines().filter(|l| l.contains("\"access\"")).count() > 30,
        "the log says too little to test"
    );

    assert_eq!(bridge.gate.log().contains("\"DEBUG\""), level != "info", "the level is not what it should be");
    for (place, text) in &pages {
        for secret in secrets().iter().chain(&heard.proofs) {
            let line = text.lines().find(|l| l.contains(secret.as_str())).unwrap_or_default();
            assert!(!text.contains(secret.as_str()), "{place} shows {secret}:\n{line}");
        }
        for said in [PROMPT, COMPLETION, CLIENT_TOKEN] {
            // The rules above, which say this word themselves, are quoted to their operator.
            let line = text.lines().find(|l| l.to_lowercase().contains(said) && !l.contains("tiers.toml"));
            assert!(line.is_none(), "{place} repeats what was said:\n{}", line.unwrap_or_default());
        }
    }
    for answer in &heard.answers {
        let text = String::from_utf8_lossy(answer);
        for secret in secrets() {
            assert!(!text.contains(&secret), "an answer shows {secret}:\n{text}");
        }
        assert!(!text.contains(CLIENT_TOKEN), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_word_of_a_conversation_gets_out_at_the_usual_log_level() {
    nothing_leaks("info").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_word_of_a_conversation_gets_out_at_the_most_talkative_log_level() {
    nothing_leaks("trace").await;
}
