//! When the money of x402 moves: before the backend is asked, or when its answer is there and before it leaves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::backend::{Reply, Script};
use common::facilitator::{SETTLE, VERIFY};
use common::raw::{self, Raw};
use common::x402::stall::{FLAT, PER_TOKEN, chat_at, server};
use common::x402::takings::charged;
use common::x402::{Client, Stall, Takings, counter, encode};
use common::{Answer, EvmBed, Facilitator, Scripted, eventually};
use serde_json::{Value, json};

/// Long enough for a byte on loopback to arrive that should not.
const SILENCE: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(20);
const PURSE: u128 = 1_000_000;
/// Three words asked, twelve answered.
const USED: u128 = 3 * PER_TOKEN + 12 * 2 * PER_TOKEN;
/// Most tokens of an answer.
const OUTPUT_LIMIT: u128 = 256;

fn chat(stream: bool) -> Value {
    if stream { counter::streamed() } else { counter::chat() }
}

/// A request with a payment that a fresh buyer signed for it under EIP-3009, ready to be sent.
async fn paid(stall: &Stall, server: &str, body: &Value) -> Vec<u8> {
    let offer = stall.offer(server, body).await;
    let buyer = stall.chain.buyer(PURSE).await;
    let payment = stall.chain.authorize(&buyer, &offer, |_| ());
    raw::post(&chat_at(server), &[(counter::SIGNATURE, &encode(&payment))], body.to_string().as_bytes())
}

async fn receipt(stall: &Stall, id: &str) -> Value {
    let reply = stall.get(&format!("/receipts/{id}")).await;
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("private, no-store")), "{}", reply.text());
    reply.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_payment_is_taken_when_a_whole_answer_is_there_and_before_a_stream_is_asked_for() {
    let chain = EvmBed::start().await;
    let facilitator = Facilitator::ts(&chain).await;
    let mut stall = Stall::over(chain, &facilitator.url()).await;
    let takings = Takings::open(&stall).await;
    for (server, stream, taken, why) in [
        (server::EXACT, false, 0, "JSON: nothing before the backend has answered"),
        (server::EXACT, true, FLAT, "a stream cannot be taken back"),
        (server::FIRST, false, FLAT, "settle = \"first\""),
        (server::FIRST, true, FLAT, "settle = \"first\", streamed"),
    ] {
        let (earned, served) = (stall.earned().await, stall.backend.requests().len());
        let settled = facilitator.calls().await.settle;
        stall.backend.next(Reply::Model(Script::default()).held());
        let mut raw = Raw::connect(stall.gate.listen).await;
        raw.send(&paid(&stall, server, &chat(stream)).await).await;
        let asked = eventually(SOON, || async { stall.backend.requests().len() > served }).await;
        assert!(asked, "{why}: the backend was not asked");
        assert_eq!(raw.more(SILENCE).await, None, "{why}: an answer before there is one");
        assert_eq!(stall.earned().await - earned, taken, "{why}");
        assert_eq!(facilitator.calls().await.settle - settled, u64::from(taken > 0), "{why}");

        stall.backend.release();
        let reply = raw.reply(SOON).await;
        // It has left: so it is paid.
        assert_eq!(stall.earned().await - earned, FLAT, "{why}");
        assert_eq!((reply.status, reply.complete), (200, true), "{why}: {}", reply.text());
        let told = counter::told(&reply).expect(why);
        assert_eq!(told["success"], true, "{why}: {told}");
        let receipt = receipt(&stall, reply.header("pontage-receipt-id").expect(why)).await;
        assert_eq!(receipt["transaction"], told["transaction"], "{why}: {receipt}");
        assert_eq!(facilitator.calls().await.settle - settled, 1, "{why}");
        takings.sold(&receipt);
    }
    takings.close(&mut stall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_delivered_before_its_payment_is_settled_except_a_stream_by_usage() {
    let chain = EvmBed::start().await;
    let facilitator = Scripted::start(&[&chain.network()]).await;
    let mut stall = Stall::over(chain, &facilitator.url()).await;
    facilitator.always(SETTLE, Answer::Yes.held());
    for (server, stream, asked, why) in [
        (server::EXACT, false, 1, "the answer is there and waits for its payment"),
        (server::EXACT, true, 0, "no stream is begun that is not paid"),
        (server::FIRST, false, 0, "settle = \"first\""),
        (server::FIRST, true, 0, "settle = \"first\", streamed"),
    ] {
        let (served, settled) = (stall.backend.requests().len(), facilitator.count(SETTLE));
        let mut raw = Raw::connect(stall.gate.listen).await;
        raw.send(&paid(&stall, server, &chat(stream)).await).await;
        facilitator.asked(SETTLE, settled + 1).await;
        assert_eq!(raw.more(SILENCE).await, None, "{why}: something left before the payment was settled");
        assert_eq!(stall.backend.requests().len() - served, asked, "{why}");
        facilitator.release();
        let reply = raw.reply(SOON).await;
        assert_eq!((reply.status, reply.complete), (200, true), "{why}: {}", reply.text());
        assert_eq!(stall.backend.requests().len() - served, 1, "{why}");
        assert_eq!(facilitator.count(SETTLE) - settled, 1, "{why}");
    }

    // By usage, whole: the answer waits. What was used is taken, and not what was signed.
    let buyer = stall.chain.buyer(PURSE).await;
    let (settled, url) = (facilitator.count(SETTLE), stall.server(server::UPTO));
    let (got, ()) = tokio::join!(Client::Fetch.pay(&stall.chain, &buyer, &url, &[]), async {
        facilitator.asked(SETTLE, settled + 1).await;
        assert_eq!(stall.backend.requests().len(), 5, "the backend was asked before");
        facilitator.release();
    });
    assert_eq!(got["status"], 200, "{got:#}");
    assert_eq!(got["receipt"]["amount"], USED.to_string(), "{got:#}");
    let amount = |path| facilitator.last(path).json()["paymentRequirements"]["amount"].as_str().unwrap().to_owned();
    assert_eq!(amount(SETTLE), USED.to_string());
    let signed: u128 = amount(VERIFY).parse().unwrap();
    assert!(signed > OUTPUT_LIMIT * 2 * PER_TOKEN && signed < 2 * OUTPUT_LIMIT * 2 * PER_TOKEN, "a ceiling: {signed}");

    // By usage, streamed: it flows to its end, and its receipt is pending until the money is there.
    let settled = facilitator.count(SETTLE);
    let buyer = stall.chain.buyer(PURSE).await;
    let got = Client::Fetch.pay(&stall.chain, &buyer, &url, &[("stream", "true")]).await;
    assert_eq!((&got["status"], &got["sse"]["done"]), (&json!(200), &json!(true)), "{got:#}");
    assert_eq!(got["headers"]["payment-response"], Value::Null, "nothing is settled when the head leaves: {got:#}");
    let id = got["headers"]["pontage-receipt-id"].as_str().expect("a receipt to ask for").to_owned();
    let pending = receipt(&stall, &id).await;
    assert_eq!((&pending["settlement"], charged(&pending)), (&json!("pending"), USED), "{pending}");
    assert_eq!(pending.get("transaction"), None, "{pending}");
    facilitator.asked(SETTLE, settled + 1).await;
    facilitator.release();
    let done = eventually(SOON, || async { receipt(&stall, &id).await["settlement"] == "settled" });
    assert!(done.await, "{}", receipt(&stall, &id).await);
    let done = receipt(&stall, &id).await;
    assert_eq!(charged(&done), USED, "{done}");
    assert!(done["transaction"].as_str().is_some_and(|tx| tx.len() == 66), "{done}");
    assert_eq!(facilitator.count(SETTLE) - settled, 1);
    stall.gate.stop().await;
    let books = common::ledger::books(&stall.gate);
    assert_eq!((books.receipts, books.charged), (6, 4 * FLAT + 2 * USED), "{books:?}");
}
