//! x402 on Solana from socket to receipt: the published clients and facilitator on a real runtime, with the gate between them.
//! A payment there lives about a minute and is public once it landed, so it is taken before anything is served.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use base64::Engine as _;
use common::facilitator::SETTLE;
use common::paying::ON_SOLANA;
use common::x402::stall::{FLAT, chat_at, server};
use common::x402::{Client, Stall, SvmBuyer, decode, encode};
use common::{Answer, EvmBed, Facilitator, RawReply, Reply, Scripted, SvmBed, client};
use futures::StreamExt as _;
use serde_json::{Value, json};

/// What each buyer has.
const PURSE: u128 = 1_000_000;
/// So many clients at once: each is a process of its own.
const TOGETHER: usize = 4;

/// The gate has a node of its own.
const NODE: &str = "rpc = \"env:SOLANA\"\n";

/// A gate that takes USDC on Solana and on an EVM chain, and asks for it in one 402; `more` goes into Solana's section.
async fn stall(chain: EvmBed, svm: &SvmBed, facilitator: &str, more: &str) -> Stall {
    let rail = format!(
        "\n[rail.solana]\nkind = \"x402\"\nnetwork = \"{}\"\nasset = \"usdc\"\npay_to = \"{}\"\nfacilitator = {{ url = \"{facilitator}\" }}\n{more}",
        svm.network(),
        svm.payee()
    );
    Stall::with(chain, facilitator, |options| {
        let routes = options.rules["routes.toml"].replace("[\"base/exact\"]", "[\"base/exact\", \"solana/exact\"]");
        options.conf_extra(&rail).rule("routes.toml", &routes).env("SOLANA", &svm.url())
    })
    .await
}

async fn place(more: &str) -> (SvmBed, Facilitator, Stall) {
    let (chain, svm) = tokio::join!(EvmBed::start(), SvmBed::start());
    let facilitator = Facilitator::ts_with(&chain, &svm).await;
    let stall = stall(chain, &svm, &facilitator.url(), more).await;
    (svm, facilitator, stall)
}

/// The payment that a client showed.
fn payment(got: &Value) -> Value {
    match got.get("payments") {
        Some(payments) => payments[0].clone(),
        None => got["calls"][1]["payment"].clone(),
    }
}

/// Shows a payment of v2 with a body.
async fn show(stall: &Stall, payment: &Value, body: &Value) -> RawReply {
    stall.post(&chat_at(server::EXACT), &[("payment-signature", &encode(payment))], body).await
}

/// What the 402 to this body asks for on Solana.
async fn asked(stall: &Stall, svm: &SvmBed, body: &Value) -> Value {
    let unpaid = stall.post(&chat_at(server::EXACT), &[], body).await;
    assert_eq!(unpaid.status, 402, "{}", unpaid.text());
    on_solana(&unpaid, svm)
}

fn on_solana(unpaid: &RawReply, svm: &SvmBed) -> Value {
    let required = decode(unpaid.header("payment-required").expect("offers of v2"));
    let mut accepts = required["accepts"].as_array().unwrap().iter();
    accepts.find(|offer| offer["network"] == svm.network()).unwrap_or_else(|| panic!("{required}")).clone()
}

/// One call of a fresh buyer, who pays the price and is told so.
async fn buy(svm: &SvmBed, stall: &Stall, client: Client, stream: bool) {
    let flags: &[_] = if stream { &[("stream", "true")] } else { &[] };
    let buyer = svm.buyer(PURSE).await;
    let got = client.pay_svm(svm, &buyer, &stall.server(server::EXACT), flags).await;
    let said = format!("{client:?} {flags:?}: {got:#}");
    assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{said}");
    assert!(got["text"].as_str().or(got["raw"].as_str()).unwrap().contains("tok11"), "{said}");
    assert_eq!(svm.usdc(&buyer.address).await, PURSE - FLAT, "{said}");
    assert_eq!(svm.lamports(&buyer.address).await, 0, "{said}");

    let v1 = client == Client::Legacy;
    let told = &got["headers"][if v1 { "x_payment_response" } else { "payment_response" }];
    let network = if v1 { "solana-devnet".into() } else { svm.network() };
    assert_eq!((&told["success"], &told["network"]), (&json!(true), &json!(network)), "{said}");
    assert_eq!(told["payer"], buyer.address, "{said}");
    assert_eq!(got["receipt_error"], Value::Null, "{said}");
    let receipt = stall.get(&format!("/receipts/{}", got["headers"]["pontage-receipt-id"].as_str().unwrap())).await;
    assert_eq!(receipt.json()["charged"]["atoms"], FLAT.to_string(), "{}", receipt.text());
    assert_eq!(receipt.json()["rail"], "solana/exact", "{}", receipt.text());
    // What was shown and what is on the chain is one message, with one signature more.
    let shown = payment(&got)["payload"]["transaction"].as_str().unwrap().to_owned();
    let landed = svm.transaction(told["transaction"].as_str().unwrap()).await;
    assert_eq!(message(&shown), message(&landed), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_with_a_solana_wallet_pays_once_and_needs_no_sol() {
    let (svm, facilitator, stall) = place("").await;
    let body = client::chat("openai/gpt-oss-120b", "one two three");
    assert_eq!(asked(&stall, &svm, &body).await["extra"]["feePayer"], svm.fee_payer());
    let buying = futures::stream::iter(ON_SOLANA);
    buying.for_each_concurrent(TOGETHER, |(client, stream)| buy(&svm, &stall, client, stream)).await;
    let sold = ON_SOLANA.len();
    assert_eq!((stall.backend.requests().len(), svm.usdc(&svm.payee()).await), (sold, sold as u128 * FLAT));
    assert_eq!(stall.earned().await, 0, "nobody paid on the other chain");
    // What is taken at once is asked about first.
    let calls = facilitator.calls().await;
    assert_eq!((calls.verify, calls.settle), (sold as u64, sold as u64));
}

/// What buyers sign here is good and goes nowhere: the gate is a twin, with the same keys and rules, over a facilitator that says yes
/// to everything and settles nothing.
struct Twin {
    stall: Stall,
    _facilitator: Scripted,
}

impl Twin {
    async fn of(facilitator: &Facilitator, svm: &SvmBed) -> Self {
        let idle = Scripted::start(&[]).await;
        let supported = facilitator.supported().await;
        idle.lists(|said| *said = supported);
        Self { stall: stall(EvmBed::start().await, svm, &idle.url(), "").await, _facilitator: idle }
    }

    /// A payment for this body.
    async fn signed(&self, svm: &SvmBed, buyer: &SvmBuyer, body: &Value) -> Value {
        let flags = [("body", body.to_string())];
        let flags = flags.each_ref().map(|(name, value)| (*name, value.as_str()));
        let got = Client::Fetch.pay_svm(svm, buyer, &self.stall.server(server::EXACT), &flags).await;
        assert_eq!(got["status"], 200, "{got:#}");
        payment(&got)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_has_grown_old_is_answered_with_fresh_offers_and_opens_nothing() {
    let (svm, facilitator, stall) = place("").await;
    let twin = Twin::of(&facilitator, &svm).await;
    let body = client::chat("openai/gpt-oss-120b", "one two three");
    let buyer = svm.buyer(PURSE).await;
    for stream in [false, true] {
        let mut body = body.clone();
        body["stream"] = stream.into();
        let old = twin.signed(&svm, &buyer, &body).await;
        svm.expire().await;
        // As often as it is shown.
        for _ in 0..2 {
            let reply = show(&stall, &old, &body).await;
            assert_eq!(reply.status, 402, "{}", reply.text());
            assert_eq!(reply.json()["error"]["code"], "payment_invalid", "{}", reply.text());
            assert_ne!(
                on_solana(&reply, &svm)["extra"]["offer"],
                old["accepted"]["extra"]["offer"],
                "{}",
                reply.text()
            );
        }
        assert_eq!((stall.backend.requests().len(), svm.usdc(&svm.payee()).await), (0, 0));
    }
    assert_eq!(svm.usdc(&buyer.address).await, PURSE);

    // Whoever signs anew is served, and pays once.
    let fresh = twin.signed(&svm, &buyer, &body).await;
    let reply = show(&stall, &fresh, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!((stall.backend.requests().len(), svm.usdc(&svm.payee()).await), (1, FLAT));
    assert_eq!(svm.usdc(&buyer.address).await, PURSE - FLAT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_can_read_on_the_chain_redeems_nothing_and_the_payer_is_served() {
    let (svm, facilitator, stall) = place("").await;
    let twin = Twin::of(&facilitator, &svm).await;
    let (body, other) =
        (client::chat("openai/gpt-oss-120b", "one two three"), client::chat("openai/gpt-oss-120b", "me"));
    let buyer = svm.buyer(PURSE).await;
    let paid = twin.signed(&svm, &buyer, &body).await;
    stall.backend.next(Reply::error(500, "server_error", "boom", "out of memory"));
    let owed = show(&stall, &paid, &body).await;
    assert_eq!((owed.status, svm.usdc(&svm.payee()).await), (502, FLAT), "taken first: {}", owed.text());
    assert_eq!(owed.header("x-should-retry"), Some("false"));
    assert!(owed.header("payment-required").is_none(), "{}", owed.text());

    let landed = svm.transaction(svm.landed().await.last().expect("the payment")).await;
    let shown = paid["payload"]["transaction"].as_str().unwrap();
    assert_ne!(landed, shown, "the fee payer signed it");
    let (calls, asked_before) = (facilitator.calls().await, stall.backend.requests().len());
    for (transaction, how) in [(landed.as_str(), "as it landed"), (shown, "as it was before the fee payer signed")] {
        for (wanted, whose) in [(&body, "for the same request"), (&other, "for another")] {
            let why = format!("{how}, {whose}");
            let accepted = asked(&stall, &svm, wanted).await;
            assert_ne!(accepted["extra"]["offer"], paid["accepted"]["extra"]["offer"], "{why}");
            let thief = json!({"x402Version": 2, "accepted": accepted, "payload": {"transaction": transaction}});
            let reply = show(&stall, &thief, wanted).await;
            assert_eq!((reply.status, reply.header("x-should-retry")), (403, Some("false")), "{why}: {}", reply.text());
            assert!(reply.header("payment-required").is_none(), "{why}: {}", reply.text());
            assert!(reply.header("payment-response").is_none(), "{why}: {}", reply.text());
        }
        let thief = json!({
            "x402Version": 1, "scheme": "exact", "network": "solana-devnet", "payload": {"transaction": transaction},
        });
        let reply = stall.post(&chat_at(server::EXACT), &[("x-payment", &encode(&thief))], &body).await;
        assert_eq!(reply.status, 403, "{how}, in v1: {}", reply.text());
    }
    assert_eq!(stall.backend.requests().len(), asked_before, "nobody but the payer was served");
    assert_eq!(facilitator.calls().await, calls, "and nobody was asked about it");

    let served = show(&stall, &paid, &body).await;
    assert_eq!(served.status, 200, "{}", served.text());
    let again = show(&stall, &paid, &body).await;
    assert_eq!(again.status, 403, "{}", again.text());
    assert_eq!((svm.usdc(&svm.payee()).await, svm.usdc(&buyer.address).await), (FLAT, PURSE - FLAT));
    assert_eq!(stall.backend.requests().len(), asked_before + 1);
}

/// Nobody knows whether it was paid: nothing is asked for again, and nothing is served.
fn assert_unknown(reply: &RawReply, why: &str) {
    assert!(matches!(reply.status, 409 | 503), "{why}: {} {}", reply.status, reply.text());
    assert_eq!(reply.json()["payment"]["moved"], "unknown", "{why}: {}", reply.text());
    assert_eq!(reply.header("x-should-retry"), Some("false"), "{why}");
    assert!(reply.header("retry-after").is_some(), "{why}");
    assert!(reply.header("payment-required").is_none(), "{why}: {}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_broke_off_is_never_answered_402_and_its_payment_buys_its_answer_once() {
    let body = client::chat("openai/gpt-oss-120b", "one two three");
    for (looks, breaks) in [(true, &[true, false][..]), (false, &[true])] {
        let (svm, facilitator, stall) = place(if looks { NODE } else { "" }).await;
        let twin = Twin::of(&facilitator, &svm).await;
        let buyer = svm.buyer(PURSE).await;
        for (before, &landed) in breaks.iter().enumerate() {
            let why = format!("the gate has a node: {looks}, it landed: {landed}");
            let payment = twin.signed(&svm, &buyer, &body).await;
            svm.break_off(landed).await;
            let mut reply = show(&stall, &payment, &body).await;
            let moved = svm.usdc(&svm.payee()).await - before as u128 * FLAT;
            assert_eq!(moved, if landed { FLAT } else { 0 }, "{why}");
            if !(looks && landed) {
                assert_unknown(&reply, &why);
                assert_eq!(stall.backend.requests().len(), before, "{why}");
            }
            if !looks {
                continue;
            }
            let end = Instant::now() + Duration::from_secs(40);
            while reply.status != 200 {
                assert_unknown(&reply, &why);
                assert!(Instant::now() < end, "{why}: it bought nothing in 40 s: {}", reply.text());
                tokio::time::sleep(Duration::from_millis(100)).await;
                reply = show(&stall, &payment, &body).await;
            }
            let told = decode(reply.header("payment-response").expect("a receipt"));
            assert_eq!(
                Some(told["transaction"].as_str().unwrap()),
                svm.landed().await.last().map(String::as_str),
                "{why}"
            );
            let spent = show(&stall, &payment, &body).await;
            assert_eq!((spent.status, stall.backend.requests().len()), (403, before + 1), "{why}: {}", spent.text());
            assert_eq!(svm.usdc(&svm.payee()).await, (before as u128 + 1) * FLAT, "{why}: once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_facilitators_word_for_more_than_evidence_above_is_held_against_the_chain() {
    let body = client::chat("openai/gpt-oss-120b", "one two three");
    let (svm, facilitator, honest) = place("").await;
    let liar = Scripted::start(&[]).await;
    let supported = facilitator.supported().await;
    liar.lists(|said| *said = supported);
    let buyer = svm.buyer(PURSE).await;
    let twin = Twin::of(&facilitator, &svm).await;
    let stall = stall(EvmBed::start().await, &svm, &liar.url(), &format!("{NODE}evidence_above = \"0.01\"\n")).await;
    // Some transaction that pays us, and not for this.
    let other = twin.signed(&svm, &buyer, &body).await;
    assert_eq!(show(&honest, &other, &body).await.status, 200);
    let others = json!({"transaction": svm.landed().await.remove(0)});
    for (at, (said, why)) in
        [(Answer::Yes, "no such transaction"), (Answer::But(others), "another's")].into_iter().enumerate()
    {
        let payment = twin.signed(&svm, &buyer, &body).await;
        liar.always(SETTLE, said);
        let before = liar.count(SETTLE);
        let mut reply = show(&stall, &payment, &body).await;
        assert!(liar.count(SETTLE) > before, "{why}: it was asked");
        assert_unknown(&reply, why);
        assert_eq!(stall.backend.requests().len(), at, "{why}");
        // Once it is paid it is served, and what is named is what the chain has.
        assert_eq!(facilitator.ask("settle", &payment, &payment["accepted"]).await["success"], true, "{why}");
        let end = Instant::now() + Duration::from_secs(40);
        while reply.status != 200 {
            assert_unknown(&reply, why);
            assert!(Instant::now() < end, "{why}: it bought nothing in 40 s: {}", reply.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
            reply = show(&stall, &payment, &body).await;
        }
        let told = decode(reply.header("payment-response").expect("a receipt"));
        assert_eq!(told["transaction"], json!(svm.landed().await.last()), "{why}");
        assert_eq!(svm.usdc(&svm.payee()).await, (at as u128 + 2) * FLAT, "{why}");
    }
}

/// The signed part of a transaction.
fn message(transaction: &str) -> Vec<u8> {
    let wire = base64::engine::general_purpose::STANDARD.decode(transaction).unwrap();
    wire[1 + 64 * usize::from(wire[0])..].to_vec()
}
