//! The x402 test bed keeps its word: the chain, the facilitators and the clients behave as the tests of the gate take for
//! granted. When one of these fails, a failure of the gate means nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::B256;
use common::x402::Calls;
use common::{EvmBed, Facilitator};
use serde_json::Value;

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
