//! The x402 test bed keeps its word: the chain, the facilitators and the clients behave as the tests of the gate take for
//! granted. When one of these fails, a failure of the gate means nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::B256;
use std::time::Duration;

use common::facilitator::{SETTLE, SUPPORTED, VERIFY};
use common::x402::Calls;
use common::{Answer, EvmBed, Facilitator, Scripted};
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
    let reply = request.timeout(Duration::from_secs(2)).send().await.ok()?;
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
