//! The x402 test bed keeps its word: the chain, the facilitators and the clients behave as the tests of the gate take for
//! granted. When one of these fails, a failure of the gate means nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{B256, U256};
use std::time::Duration;

use common::facilitator::{SETTLE, SUPPORTED, VERIFY};
use common::x402::{Calls, Client, Reference};
use common::{Answer, EvmBed, Facilitator, Scripted, SvmBed};
use serde_json::{Value, json};

fn nonce(payment: &Value) -> B256 {
    payment["payload"]["authorization"]["nonce"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_authorization_moves_money_once_on_every_chain_whoever_carries_it() {
    for chain in [84532, 8453, 137, 42161] {
        let bed = EvmBed::start_as(chain).await;
        let buyer = bed.buyer(5_000).await;
        let address = buyer.address().to_string();
        let since = bed.block_number().await;
        let payment = bed.authorize(&buyer, &bed.requirements(2_000), |_| ());

        assert!(!bed.authorization_state(&address, nonce(&payment)).await, "{chain}");
        let tx = bed.front_run(&payment).await;
        assert!(bed.authorization_state(&address, nonce(&payment)).await, "{chain}");
        assert_eq!(bed.usdc(&address).await, 3_000, "{chain}");
        assert_eq!(bed.usdc(bed.payee()).await, 2_000, "{chain}");
        let moved = bed.transfers(since).await;
        assert_eq!(moved.len(), 1, "{chain}: {moved:?}");
        assert_eq!((moved[0].amount, &moved[0].tx), (2_000, &tx), "{chain}");
        assert!(moved[0].to.eq_ignore_ascii_case(bed.payee()), "{chain}");
    }
}

#[tokio::test]
async fn the_published_facilitator_settles_a_payment_once_and_counts_what_it_was_asked() {
    let bed = EvmBed::start().await;
    let facilitator = Facilitator::ts(&bed).await;
    let kinds = facilitator.supported().await["kinds"].clone();
    let kinds: Vec<String> = kinds.as_array().unwrap().iter().map(kind).collect();
    assert_eq!(kinds, ["2 exact eip155:84532", "2 upto eip155:84532", "1 exact base-sepolia"]);

    let buyer = bed.buyer(5_000).await;
    let asked = bed.requirements(2_000);
    let payment = bed.authorize(&buyer, &asked, |_| ());
    let verdict = facilitator.ask("verify", &payment, &asked).await;
    assert_eq!(verdict["isValid"], true, "{verdict}");
    let settled = facilitator.ask("settle", &payment, &asked).await;
    assert_eq!(settled["success"], true, "{settled}");
    assert_eq!(settled["network"], bed.network());
    assert_eq!(bed.usdc(bed.payee()).await, 2_000);
    let again = facilitator.ask("settle", &payment, &asked).await;
    assert_eq!(again["success"], false, "{again}");
    assert_eq!(bed.usdc(bed.payee()).await, 2_000);
    assert_eq!(facilitator.calls().await, Calls { supported: 1, verify: 1, settle: 2 });
}

fn kind(kind: &Value) -> String {
    format!("{} {} {}", kind["x402Version"], kind["scheme"].as_str().unwrap(), kind["network"].as_str().unwrap())
}

#[tokio::test]
async fn what_a_buyer_does_between_verify_and_settle_makes_a_good_payment_worthless() {
    let bed = EvmBed::start().await;
    let facilitator = Facilitator::ts(&bed).await;
    for what in ["cancels", "drains", "pays by another road", "waits too long"] {
        let buyer = bed.buyer(5_000).await;
        let address = buyer.address().to_string();
        let asked = bed.requirements(2_000);
        let before = bed.usdc(bed.payee()).await;
        let payment = bed.authorize(&buyer, &asked, |_| ());
        let verdict = facilitator.ask("verify", &payment, &asked).await;
        assert_eq!(verdict["isValid"], true, "{what}: {verdict}");
        match what {
            "cancels" => bed.cancel_authorization(&buyer, nonce(&payment)).await,
            "drains" => bed.drain(&address).await,
            "pays by another road" => drop(bed.front_run(&payment).await),
            _ => bed.travel(600).await,
        }
        let settled = facilitator.ask("settle", &payment, &asked).await;
        assert_eq!(settled["success"], false, "{what}: {settled}");
        let paid = if what == "pays by another road" { 2_000 } else { 0 };
        assert_eq!(bed.usdc(bed.payee()).await - before, paid, "{what}");
    }
}

/// Asks as a gate would; `None` when the connection gave no whole answer.
async fn ask(url: &str, path: &str) -> Option<(u16, Value)> {
    let body = json!({
        "x402Version": 2, "paymentPayload": {"payload": {"authorization": {"from": "0xabc"}}},
        "paymentRequirements": {"amount": "1000", "network": "eip155:84532"},
    });
    let request = match path {
        SUPPORTED => common::http().get(format!("{url}{path}")),
        _ => common::http().post(format!("{url}{path}")).json(&body),
    };
    let reply = request.timeout(Duration::from_secs(5)).send().await.ok()?;
    let status = reply.status().as_u16();
    let body = reply.bytes().await.ok()?;
    Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

#[tokio::test]
async fn the_scripted_facilitator_says_yes_until_told_otherwise_and_keeps_every_word_it_heard() {
    let scripted = Scripted::start(&["eip155:84532", "eip155:42161"]).await;
    let url = scripted.url();
    let (_, listed) = ask(&url, SUPPORTED).await.unwrap();
    assert_eq!(listed["kinds"].as_array().unwrap().len(), 5, "{listed}");
    let (_, verdict) = ask(&format!("{url}/platform/v2/x402"), VERIFY).await.unwrap();
    assert_eq!(verdict, json!({"isValid": true, "payer": "0xabc"}));
    let (_, settled) = ask(&url, SETTLE).await.unwrap();
    let (_, again) = ask(&url, SETTLE).await.unwrap();
    assert_eq!(
        (&settled["success"], &settled["amount"], &settled["network"]),
        (&json!(true), &json!("1000"), &json!("eip155:84532"))
    );
    assert_ne!(settled["transaction"], again["transaction"]);
    assert_eq!((scripted.count(SUPPORTED), scripted.count(VERIFY), scripted.count(SETTLE)), (1, 1, 2));
    assert_eq!(scripted.last(SETTLE).json()["paymentPayload"]["payload"]["authorization"]["from"], "0xabc");
    assert_eq!(scripted.last(SETTLE).method, "POST");

    scripted.always(SETTLE, Answer::invalid(400, "insufficient_funds"));
    scripted.next(SETTLE, Answer::But(json!({"success": "true", "transaction": null})));
    let (_, lie) = ask(&url, SETTLE).await.unwrap();
    assert_eq!((&lie["success"], lie.get("transaction")), (&json!("true"), None));
    let (status, refused) = ask(&url, SETTLE).await.unwrap();
    assert_eq!((status, &refused["invalidReason"]), (400, &json!("insufficient_funds")));
    scripted.always(SETTLE, None);
    assert_eq!(ask(&url, SETTLE).await.unwrap().1["success"], true);
    scripted.lists(|said| said["kinds"] = json!([]));
    assert_eq!(ask(&url, SUPPORTED).await.unwrap().1["kinds"], json!([]));
}

#[tokio::test]
async fn the_scripted_facilitator_breaks_in_every_way_a_real_one_may() {
    let scripted = Scripted::start(&["eip155:84532"]).await;
    let url = scripted.url();
    let ways: Vec<(&str, Answer, Option<u16>)> = vec![
        ("hears and says nothing", Answer::Hang, None),
        ("resets", Answer::Reset, None),
        ("closes", Answer::Close, None),
        ("stops in the middle", Answer::Yes.half(), None),
        ("is no HTTP", Answer::Bytes(b"220 smtp ready\r\n".to_vec()), None),
        ("moved", Answer::redirect("http://127.0.0.1:1/settle"), Some(308)),
        ("is busy", Answer::too_many("2"), Some(429)),
        ("is behind a broken balancer", Answer::html(502), Some(502)),
        ("is out of order in JSON", Answer::json(500, &json!({"error": "boom"})), Some(500)),
        ("gives its verdict with 500", Answer::failed(500, "invalid_payload"), Some(500)),
        ("writes half a word", Answer::malformed(), Some(200)),
        ("talks too much", Answer::huge(3 << 20), Some(200)),
        ("is late", Answer::Yes.after(Duration::from_millis(50)), Some(200)),
    ];
    for (way, answer, expected) in ways {
        scripted.next(SETTLE, answer);
        assert_eq!(ask(&url, SETTLE).await.map(|(status, _)| status), expected, "{way}");
        assert_eq!(ask(&url, SETTLE).await.unwrap().1["success"], true, "after: {way}");
    }

    scripted.next(SETTLE, Answer::Yes.held());
    let before = scripted.count(SETTLE);
    let (held, ()) = tokio::join!(ask(&url, SETTLE), async {
        scripted.asked(SETTLE, before + 1).await;
        scripted.release();
    });
    assert_eq!(held.unwrap().1["success"], true);
}

#[tokio::test]
async fn no_answer_of_the_list_of_false_settlements_is_a_settlement() {
    let scripted = Scripted::start(&["eip155:84532"]).await;
    for (why, answer) in common::facilitator::settlements_that_are_none() {
        scripted.next(SETTLE, answer);
        let (_, said) = ask(&scripted.url(), SETTLE).await.unwrap();
        let sound = said["success"] == true
            && said["transaction"].as_str().is_some_and(|t| t.len() == 66)
            && said["network"] == "eip155:84532"
            && said["payer"] == "0xabc"
            && said["amount"] == "1000";
        assert!(!sound, "{why}: {said}");
    }
}

type Flags = &'static [(&'static str, &'static str)];

/// Every client, what it is told to prefer, what it was charged, and which header carried the payment.
const PAYING: [(Client, Flags, u128, &str); 14] = [
    (Client::Fetch, &[], Reference::PRICE, "eip3009"),
    (Client::Fetch, &[("stream", "true")], Reference::PRICE, "eip3009"),
    (Client::Fetch, &[("transfer", "permit2"), ("scheme", "exact")], Reference::PRICE, "permit2"),
    (Client::Fetch, &[("scheme", "upto")], Reference::METERED, "permit2"),
    (Client::Legacy, &[], Reference::PRICE, "v1"),
    (Client::Legacy, &[("stream", "true")], Reference::PRICE, "v1"),
    (Client::OpenAi, &[], Reference::PRICE, "eip3009"),
    (Client::OpenAi, &[("stream", "true"), ("scheme", "upto")], Reference::METERED, "permit2"),
    (Client::Httpx, &[], Reference::PRICE, "eip3009"),
    (Client::Httpx, &[("transfer", "permit2"), ("scheme", "exact")], Reference::PRICE, "permit2"),
    (Client::Httpx, &[("scheme", "upto"), ("stream", "true")], Reference::METERED, "permit2"),
    (Client::Requests, &[], Reference::PRICE, "eip3009"),
    (Client::PyOpenAi, &[], Reference::PRICE, "eip3009"),
    (Client::PyOpenAi, &[("stream", "true"), ("scheme", "upto")], Reference::METERED, "permit2"),
];

#[tokio::test]
async fn every_published_client_pays_a_seller_that_is_not_the_gate() {
    let bed = EvmBed::start().await;
    let facilitator = Facilitator::ts(&bed).await;
    let seller = Reference::start(&bed, &facilitator.url()).await;
    for (client, flags, price, how) in PAYING {
        let buyer = bed.buyer(100_000).await;
        let address = buyer.address().to_string();
        let before = bed.usdc(bed.payee()).await;
        let got = client.pay(&bed, &buyer, &seller.url(), flags).await;
        let said = format!("{client:?} {flags:?}: {got:#}");
        assert_eq!(got["ok"], true, "{said}");
        assert_eq!(got["status"], 200, "{said}");
        match got["text"].as_str() {
            Some(text) => assert_eq!(text, "tok0 tok1 tok2 tok3", "{said}"),
            None => assert!(got["raw"].as_str().unwrap().contains("tok3"), "{said}"),
        }
        // What it charged is on the chain, in the receipt, and nowhere else.
        assert_eq!(bed.usdc(bed.payee()).await - before, price, "{said}");
        assert_eq!(bed.usdc(&address).await, 100_000 - price, "{said}");
        let header = if how == "v1" { "x_payment_response" } else { "payment_response" };
        assert_eq!(got["headers"][header]["success"], true, "{said}");
        let payment = match got.get("payments") {
            Some(payments) => payments[0].clone(),
            None => got["calls"][1]["payment"].clone(),
        };
        assert_eq!(payment["x402Version"], if how == "v1" { 1 } else { 2 }, "{said}");
        match payment["payload"]["permit2Authorization"]["nonce"].as_str() {
            Some(nonce) => {
                let nonce: U256 = nonce.parse().unwrap();
                assert_eq!(how, "permit2", "{said}");
                assert!(bed.permit2_nonce_used(&address, nonce).await, "{said}");
                assert!(!bed.permit2_nonce_used(&address, nonce ^ U256::ONE).await, "{said}");
            }
            None => {
                assert_ne!(how, "permit2", "{said}");
                assert!(bed.authorization_state(&address, nonce(&payment)).await, "{said}");
            }
        }
    }
}

#[tokio::test]
async fn a_payment_moves_the_token_on_a_real_solana_runtime_and_its_buyer_needs_no_sol() {
    let (bed, svm) = (EvmBed::start().await, SvmBed::start().await);
    let facilitator = Facilitator::ts_with(&bed, &svm).await;
    let seller = Reference::start_with(&bed, &svm, &facilitator.url()).await;
    let mut earned = 0;
    for (client, flags) in [
        (Client::Fetch, &[][..]),
        (Client::Fetch, &[("stream", "true")][..]),
        (Client::Legacy, &[][..]),
        (Client::OpenAi, &[][..]),
        (Client::Httpx, &[][..]),
    ] {
        let buyer = svm.buyer(10_000).await;
        let fees = svm.lamports(&svm.fee_payer()).await;
        let got = client.pay_svm(&svm, &buyer, &seller.url(), flags).await;
        let said = format!("{client:?} {flags:?}: {got:#}");
        assert_eq!(got["ok"], true, "{said}");
        earned += Reference::PRICE;
        assert_eq!(svm.usdc(&buyer.address).await, 10_000 - Reference::PRICE, "{said}");
        assert_eq!(svm.usdc(&svm.payee()).await, earned, "{said}");
        assert!(svm.lamports(&svm.fee_payer()).await < fees, "{said}");
        assert_eq!(svm.lamports(&buyer.address).await, 0, "{said}");
        // The receipt names a transaction that the chain knows.
        let v1 = client == Client::Legacy;
        let receipt = &got["headers"][if v1 { "x_payment_response" } else { "payment_response" }];
        assert_eq!(receipt["network"], if v1 { "solana-devnet".into() } else { svm.network() }, "{said}");
        let signature = receipt["transaction"].clone();
        let known = svm.rpc("getSignatureStatuses", json!([[signature]])).await;
        assert_eq!(known["value"][0]["err"], Value::Null, "{said}");
        assert_eq!(known["value"][0]["confirmationStatus"], "finalized", "{said}");
    }
    assert_eq!(bed.usdc(bed.payee()).await, 0);
}

#[tokio::test]
async fn a_solana_payment_moves_the_token_once_and_one_that_has_grown_old_never() {
    let (bed, svm) = (EvmBed::start().await, SvmBed::start().await);
    let (first, second) = (Facilitator::ts_with(&bed, &svm).await, Facilitator::ts_with(&bed, &svm).await);
    // This one settles nothing, so what its buyers signed is still good.
    let idle = Scripted::start(&[]).await;
    let supported = first.supported().await;
    idle.lists(|said| *said = supported);
    let seller = Reference::start_with(&bed, &svm, &idle.url()).await;

    let buyer = svm.buyer(10_000).await;
    let got = Client::Fetch.pay_svm(&svm, &buyer, &seller.url(), &[]).await;
    assert_eq!(got["headers"]["payment_response"]["payer"], buyer.address, "{got:#}");
    assert_eq!(common::facilitator::FEE_PAYER, svm.fee_payer());
    let payment = &got["calls"][1]["payment"];
    let asked = &payment["accepted"];
    assert_eq!(svm.usdc(&buyer.address).await, 10_000);
    let settled = first.ask("settle", payment, asked).await;
    assert_eq!(settled["success"], true, "{settled}");
    for (why, facilitator) in [("it remembers", &first), ("it never saw it", &second)] {
        let again = facilitator.ask("settle", payment, asked).await;
        assert_eq!(again["success"], false, "{why}: {again}");
    }
    assert_eq!(svm.usdc(&svm.payee()).await, Reference::PRICE);

    let got = Client::Fetch.pay_svm(&svm, &buyer, &seller.url(), &[]).await;
    let payment = &got["calls"][1]["payment"];
    let verdict = second.ask("verify", payment, asked).await;
    assert_eq!(verdict["isValid"], true, "{verdict}");
    svm.expire().await;
    let late = second.ask("settle", payment, asked).await;
    assert_eq!(late["success"], false, "{late}");
    assert_eq!(svm.usdc(&svm.payee()).await, Reference::PRICE);
}

#[tokio::test]
async fn a_buyer_who_let_permit2_in_needs_no_sponsoring_and_one_who_did_not_does() {
    let bed = EvmBed::start().await;
    let facilitator = Facilitator::ts(&bed).await;
    let seller = Reference::start(&bed, &facilitator.url()).await;
    for approved in [false, true] {
        let buyer = bed.buyer(10_000).await;
        let address = buyer.address().to_string();
        if approved {
            bed.approve_permit2(&address).await;
        }
        assert_eq!(bed.permit2_allowance(&address).await > U256::ZERO, approved);
        let got = Client::Fetch.pay(&bed, &buyer, &seller.url(), &[("scheme", "exact"), ("transfer", "permit2")]).await;
        assert_eq!(got["ok"], true, "{got:#}");
        let info = &got["calls"][1]["payment"]["extensions"]["eip2612GasSponsoring"]["info"];
        assert_eq!(info.get("signature").is_none(), approved, "{got:#}");
    }
}
