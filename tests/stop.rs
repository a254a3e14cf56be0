//! How a gate ends, and how it begins again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{self, SessionBed, patient};
use common::client::chat;
use common::gate::Wait;
use common::{Backend, Chain, Fault, Gate, GateOptions, Payer, Raw, RpcProxy, Script, eventually, raw};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(20);
const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "openai/gpt-oss-120b";
/// Nothing listens there: these tests need no chain.
const NO_CHAIN: &str = "http://127.0.0.1:9";

/// A gate whose chat costs nothing, so that it serves without a chain.
fn free(upstream: &str) -> GateOptions {
    let routes = "[[route]]\npath = \"/v1/chat/completions\"\nsurface = \"chat\"\ntier = \"standard\"\naccess = \"free\"\n\n\
                  [[route]]\npath = \"/v1/models\"\nsurface = \"models\"\ntier = \"standard\"\naccess = \"free\"\n";
    GateOptions::new(NO_CHAIN, upstream).rule("routes.toml", routes).wait(Wait::Alive)
}

fn streamed(tokens: u64) -> Vec<u8> {
    let mut body = chat(MODEL, "go on");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(tokens);
    body.to_string().into_bytes()
}

fn slow(tokens: u64) -> Script {
    Script { tokens, per_token: Duration::from_millis(80), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_flight_is_finished_while_newcomers_are_sent_away() {
    let backend = Backend::start(slow(100)).await;
    let mut gate = Gate::start(free(&backend.url()).conf_edit("grace_seconds = 5", "grace_seconds = 20")).await;
    // One connection that has been used before, one that has not said anything yet, one that streams.
    let mut used = Raw::connect(gate.listen).await;
    used.send(b"GET /v1/models HTTP/1.1\r\nhost: gate\r\n\r\n").await;
    assert_eq!(used.reply_to("GET", SHORT).await.status, 200);
    let mut silent = Raw::connect(gate.listen).await;
    silent.send(b"GET /v1/models HTTP/1.1\r\nhost: ga").await;
    let mut stream = Raw::connect(gate.listen).await;
    stream.send(&raw::post(CHAT, &[], &streamed(100))).await;
    assert!(stream.until(b"tok0", SHORT).await);

    common::signal(gate.pid().unwrap(), "TERM");
    let stopping =
        async || gate.admin_get("/readyz").await.is_some_and(|(s, text)| s == 503 && text.contains("stopping"));
    assert!(eventually(SHORT, stopping).await, "readyz says so, and the admin address stays open");
    assert_eq!(gate.admin_get("/healthz").await.map(|(s, _)| s), Some(200), "it is alive all the same");
    let refused = async || tokio::net::TcpStream::connect(gate.listen).await.is_err();
    assert!(eventually(SHORT, refused).await, "nobody new is let in");

    silent.send(b"te\r\n\r\n").await;
    let late = silent.reply_to("GET", SHORT).await;
    assert_eq!((late.status, late.json()["error"]["code"].as_str()), (503, Some("stopping")));
    assert_eq!(late.header("connection"), Some("close"));
    assert_eq!(late.header("retry-after"), Some("5"));
    assert!(silent.closed(SHORT).await);
    assert!(used.closed(SHORT).await, "an idle connection is closed, so that its client goes elsewhere");

    let whole = stream.reply(SHORT).await;
    assert!(whole.complete && whole.text().ends_with("data: [DONE]\n\n"), "{}", whole.text());
    assert!(whole.text().contains("tok99"), "{}", whole.text());
    assert_eq!(gate.stop().await.code(), Some(0));
    assert_eq!(backend.tokens_produced(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_a_channel_gets_its_vouchers_while_the_gate_stops_and_ends_whole() {
    let mut bed = SessionBed::with(|o| patient(o.conf_edit("grace_seconds = 5", "grace_seconds = 40"))).await;
    bed.backend.tune(|script| (script.tokens, script.per_token) = (200, Duration::from_millis(5)));
    let (channel, _) = bed.channel(1_000_000, 0).await;
    let stranger = bed.wallet().await;
    let mut body = channels::streamed();
    body["max_tokens"] = json!(200);
    let (offer, start) = bed.offer(CHAT, &body).await;
    let with = |credential: &str, body: &[u8]| raw::post(CHAT, &[("authorization", credential)], body);
    // One that is kept alive over the stop, and one that HTTP/2 bids farewell.
    let mut used = Raw::connect(bed.gate.listen).await;
    used.send(b"GET /v1/models HTTP/1.1\r\nhost: gate\r\n\r\n").await;
    assert_eq!(used.reply_to("GET", SHORT).await.status, 200);
    let h2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().timeout(SHORT).build().unwrap();
    assert_eq!(h2.get(format!("{}/v1/models", bed.gate.url())).send().await.unwrap().status(), 200);
    let mut stream = Raw::connect(bed.gate.listen).await;
    stream.send(&with(&channel.voucher_credential(&offer, start), body.to_string().as_bytes())).await;
    assert!(stream.until(b"payment-need-voucher", SHORT).await);

    common::signal(bed.gate.pid().unwrap(), "TERM");
    let stopping = |reply: &common::RawReply| (reply.status, channels::code(reply)) == (503, "stopping".to_owned());
    let unpaid = raw::post(CHAT, &[], body.to_string().as_bytes());
    let sent_away = async || stopping(&raw::exchange(bed.gate.listen, &unpaid).await);
    assert!(eventually(SHORT, sent_away).await, "whoever wants something new is told that it stops");
    let opening = stranger.open(&offer, |open| open.deposit = 50_000);
    for (credential, body, why) in [
        (channel.voucher_credential(&offer, start + 1), body.to_string(), "a paid call"),
        (opening.open_credential(&offer, 1_000), String::new(), "a channel to be opened"),
    ] {
        let reply = bed.send(&with(&credential, body.as_bytes())).await;
        assert!(stopping(&reply), "{why}: {} {}", reply.status, reply.text());
        assert_eq!(reply.header("x-should-retry"), None, "{why}: nothing was taken, another gate may serve it");
    }
    // The stream goes on with each voucher, however it is shown.
    let text = |stream: &Raw| String::from_utf8_lossy(&stream.seen).into_owned();
    let words = |n: u128| start + n * channels::OUTPUT;
    let head = format!("HEAD {CHAT} HTTP/1.1\r\nhost: gate\r\nauthorization: ");
    let head = format!("{head}{}\r\n\r\n", channel.voucher_credential(&offer, words(40)));
    let mut fresh = Raw::connect(bed.gate.listen).await;
    fresh.send(head.as_bytes()).await;
    let told = fresh.reply_to("HEAD", SHORT).await;
    assert_eq!((told.status, told.header("connection")), (204, Some("close")), "by HEAD, on a new connection");
    assert!(stream.until(b"tok40", SHORT).await, "{}", text(&stream));
    used.send(&with(&channel.voucher_credential(&offer, words(80)), b"")).await;
    let told = used.reply(SHORT).await;
    assert_eq!(told.status, 204, "by POST, on an old connection: {}", told.text());
    assert!(stream.until(b"tok80", SHORT).await, "{}", text(&stream));
    let last = channel.voucher_credential(&offer, 100_000);
    let told = h2.post(bed.gate.chat_url()).header("authorization", &last).send().await.expect("an answer");
    assert_eq!(told.status(), 204, "by POST over HTTP/2");

    let whole = stream.reply(SHORT).await;
    bed.keep(&whole);
    assert!(whole.complete && whole.text().contains("tok199"), "{}", whole.text());
    let receipt = channels::final_receipt(&whole.text()).expect("a receipt");
    assert_eq!(channels::atoms(&receipt["charged"]), 3 * channels::INPUT + 200 * channels::OUTPUT, "{receipt}");
    assert_eq!(bed.gate.stop().await.code(), Some(0));
    assert!(!bed.gate.log().contains("grace is over"), "{}", bed.gate.log());
    bed.gate.restart().await;
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_drains_serves_as_before_and_says_that_it_goes() {
    let backend = Backend::start(Script::default()).await;
    let drains = "grace_seconds = 5\ndrain_seconds = 600";
    let mut gate = Gate::start(free(&backend.url()).conf_edit("grace_seconds = 5", drains)).await;
    common::signal(gate.pid().unwrap(), "QUIT");
    let leaving =
        async || gate.admin_get("/readyz").await.is_some_and(|(s, text)| s == 503 && text.contains("stopping"));
    assert!(eventually(SHORT, leaving).await, "a load balancer can see it");
    let body = chat(MODEL, "go on").to_string().into_bytes();
    let reply = raw::exchange(gate.listen, &raw::post(CHAT, &[], &body)).await;
    assert_eq!(reply.status, 200, "who comes meanwhile is served: {}", reply.text());
    assert_eq!(gate.stop().await.code(), Some(0), "told again, it waits no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paid_stream_longer_than_the_grace_is_cut_and_the_books_say_so() {
    let chain = Chain::start().await;
    let backend = Backend::start(slow(2048)).await;
    let options = GateOptions::new(&chain.url(), &backend.url()).conf_edit("grace_seconds = 5", "grace_seconds = 1");
    let mut gate = Gate::start(options).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let body = streamed(2048);
    let authorization = payer.pay(&raw::exchange(gate.listen, &raw::post(CHAT, &[], &body)).await).await;
    let paid = raw::post(CHAT, &[("authorization", &authorization)], &body);
    let mut stream = Raw::connect(gate.listen).await;
    stream.send(&paid).await;
    assert!(stream.until(b"tok0", SHORT).await);

    assert_eq!(gate.stop().await.code(), Some(0), "a cut stream is no failure of the gate");
    let cut = stream.reply(SHORT).await;
    assert!(!cut.complete && !cut.text().contains("[DONE]"), "it was cut: {}", cut.text());
    assert!(gate.log().contains("grace is over"), "{}", gate.log());
    assert!(eventually(SHORT, async || backend.last().closed_early.is_some()).await, "the backend is let go");
    let (status, audit, said) = gate.verb(&["audit", "--store", "var/pontage.redb"]);
    assert!(status.success(), "{audit}{said}");

    gate.restart().await;
    let again = raw::exchange(gate.listen, &paid).await;
    assert_eq!((again.status, again.json()["error"]["code"].as_str()), (403, Some("payment_spent")));
    assert_eq!(chain.payments_to(common::DEV[1].address).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reloads_and_never_ends_a_gate_not_even_one_that_is_starting() {
    let backend = Backend::start(Script::default()).await;
    let rpc = RpcProxy::start(NO_CHAIN).await;
    rpc.always("*", Fault::Hang);
    let prepared = Gate::prepare(GateOptions { rpc: rpc.url(), ..free(&backend.url()) });
    let mut command = prepared.command();
    command.args(["serve", "--conf", "conf/pontage.toml", "--rules", "lua-free-rules"]);
    let mut starting = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    assert!(
        eventually(SHORT, async || !rpc.calls().is_empty()).await,
        "it is asking its chain, and does not listen yet"
    );
    common::signal(starting.id(), "HUP");
    let came_up = eventually(SHORT, async || prepared.admin_get("/healthz").await.is_some()).await;
    let ended = starting.try_wait().unwrap();
    let _ = starting.kill();
    let _ = starting.wait();
    assert!(came_up, "it ended with {ended:?}");

    let mut gate = Gate::start(free(&backend.url())).await;
    for _ in 0..20 {
        gate.hup();
        let served = raw::exchange(gate.listen, &raw::post(CHAT, &[], chat(MODEL, "hi").to_string().as_bytes())).await;
        assert_eq!(served.status, 200);
    }
    assert!(gate.running());
    let read = async || gate.status().await["rules"]["reloads_ok"].as_u64().is_some_and(|n| n >= 1);
    assert!(eventually(SHORT, read).await);
    assert_eq!(gate.status().await["rules"]["reloads_failed"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_was_killed_starts_again_on_its_store() {
    let backend = Backend::start(Script::default()).await;
    let mut gate = Gate::start(free(&backend.url())).await;
    for _ in 0..2 {
        gate.kill();
        gate.restart().await;
        let body: Value = chat(MODEL, "hi");
        let served = raw::exchange(gate.listen, &raw::post(CHAT, &[], body.to_string().as_bytes())).await;
        assert_eq!(served.status, 200);
    }
    assert_eq!(gate.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_gate_on_one_store_is_refused_with_a_sentence() {
    let backend = Backend::start(Script::default()).await;
    let mut first = Gate::start(free(&backend.url())).await;
    let store = first.dir().join("var/pontage.redb").display().to_string();
    let second = free(&backend.url()).conf_edit("{dir}/var/pontage.redb", &store);
    let said = Gate::try_start(second).await.err().expect("two gates on one store");
    assert!(said.contains("exit status: 1"), "{said}");
    assert!(said.contains(&format!("store: cannot open the store {store}")), "{said}");
    assert!(said.contains("another"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(first.running(), "the first goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_in_a_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    for (key, from) in [("listen.address", "address = \"{listen}\""), ("listen.admin", "admin = \"{admin}\"")] {
        let options = free(NO_CHAIN).conf_edit(from, &from.replace("{listen}", &at).replace("{admin}", &at));
        let said = Gate::try_start(options).await.err().expect("the port is taken");
        assert!(said.contains(&format!("{key}: cannot listen on {at}")), "{said}");
        assert!(said.contains("exit status: 1") && !said.contains("panicked"), "{said}");
    }
}
