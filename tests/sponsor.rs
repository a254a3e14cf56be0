//! Carrying payers' fees on a real chain: a wallet that holds the price and nothing else pays, and what we sign for it costs us
//! no more than the day's budget, whatever it is and whenever we die.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::bed::{CHAT, PRICE, assert_challenge, chat};
use common::chain::CHAIN_ID;
use common::client::{node, python};
use common::{Bed, Chain, DEV, Fault, Gate, GateOptions, PATH_USD, Payer, Unseen, eventually, payer, raw};
use mpp::Base64UrlJson;
use serde_json::{Value, json};

const SPONSOR: &str = DEV[8].address;
const SHORT: Duration = Duration::from_secs(20);

fn sponsored(options: GateOptions, usd_per_day: &str) -> GateOptions {
    let sponsor =
        format!("accept_push = false\nsponsor = {{ key = \"env:SPONSOR_KEY\", usd_per_day = \"{usd_per_day}\" }}");
    options.conf_edit("accept_push = false", &sponsor).env("SPONSOR_KEY", DEV[8].key)
}

async fn bed(usd_per_day: &str) -> Bed {
    Bed::with(|options| sponsored(options, usd_per_day)).await
}

/// A fresh account with `atoms` of pathUSD and nothing else: its address and key.
async fn poor(chain: &Chain, atoms: u128) -> (String, String) {
    let key: String = [uuid::Uuid::now_v7(), uuid::Uuid::now_v7()].map(|id| id.simple().to_string()).concat();
    let address = Payer::new(&key, &chain.url()).address;
    if atoms > 0 {
        let to = format!("{:0>64}", address.trim_start_matches("0x").to_lowercase());
        let data = format!("0xa9059cbb{to}{atoms:064x}");
        let call = json!([{"from": DEV[9].address, "to": PATH_USD, "data": data, "gas": "0x1e8480"}]);
        let tx = chain.rpc("eth_sendTransaction", call).await;
        chain.mined(tx.as_str().unwrap()).await;
    }
    (address, format!("0x{key}"))
}

/// Whether the offers of a 402 say that the fee is carried.
fn says_fee_payer(reply: &common::RawReply) -> bool {
    let offer = payer::offer(&reply.headers("www-authenticate"), "tempo", "charge");
    payer::terms(&offer)["methodDetails"]["feePayer"] == true
}

async fn counted(bed: &Bed, outcome: &str) -> f64 {
    bed.gate.metric("pontage_sponsored_total", &[("rail", "tempo/charge"), ("outcome", outcome)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wallets_that_hold_the_price_and_nothing_else_pay() {
    let bed = bed("20").await;
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    let (url, rpc) = (bed.gate.chat_url(), bed.chain.url());
    let mut receipts = Vec::new();
    for client in ["mppx", "pympp", "mpp"] {
        let (address, key) = poor(&bed.chain, PRICE).await;
        let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key), ("max_tokens", "5")];
        let receipt = match client {
            "mppx" => node("mppx.mjs", &flags).await["receipt"].clone(),
            "pympp" => python("pympp_charge.py", &flags).await["headers"]["payment_receipt"].clone(),
            _ => {
                let body = chat();
                let unpaid = bed.ask(CHAT, &body).await;
                assert!(says_fee_payer(&unpaid));
                let proof = Payer::new(&key, &rpc).pay(&unpaid).await;
                let reply = bed.show(&proof, CHAT, &body).await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                Value::Null
            }
        };
        if client != "mpp" {
            assert_eq!(receipt["charged"], PRICE.to_string(), "{client}: {receipt}");
            bed.ledger.sold(&receipt, 5);
        }
        assert_eq!(bed.chain.balance(PATH_USD, &address).await, 0, "{client}: it paid the price and no fee");
        receipts.push(receipt);
    }
    assert_eq!(counted(&bed, "cosigned").await, 3.0);
    let cost = before - bed.chain.balance(PATH_USD, SPONSOR).await;
    assert!(cost > 0 && cost < 50_000, "{cost}");
    // What the metric says we spent becomes what the chain took.
    let told = async || bed.gate.metric("pontage_sponsored_usd_total", &[("rail", "tempo/charge")]).await;
    #[allow(clippy::cast_precision_loss)]
    let same = eventually(SHORT, || async { (told().await * 1e6 - cost as f64).abs() < 0.5 }).await;
    assert!(same, "told {} USD, took {cost} atoms", told().await);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_would_fail_is_tried_once_sent_never_and_costs_the_sponsor_nothing() {
    let bed = bed("20").await;
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    let (_, key) = poor(&bed.chain, 0).await;
    let broke = Payer::new(&key, &bed.chain.url());
    let proof = bed.proof(&broke, CHAT, &chat()).await;
    for _ in 0..3 {
        let reply = bed.show(&proof, CHAT, &chat()).await;
        assert_challenge(&reply, "payment_invalid");
    }
    assert_eq!((counted(&bed, "fails").await, counted(&bed, "cosigned").await), (1.0, 0.0));
    assert_eq!(bed.rpc.broadcasts(), 0);
    assert_eq!(bed.chain.balance(PATH_USD, SPONSOR).await, before);
    bed.close(Unseen::default()).await;
}

/// A payer could have us pay for a payment that runs out of gas half-way: as dear for us as one that works, and free for him.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_with_too_little_gas_is_not_signed_for_and_one_with_enough_is_served() {
    let bed = bed("20").await;
    let payer = bed.payer().await;
    let (mut served, mut refused) = (0, 0);
    // The local chain needs some 70,000.
    for gas in [30_000, 45_000, 50_000, 55_000, 60_000, 62_500, 65_000, 67_500, 70_000, 72_500, 75_000, 80_000, 400_000]
    {
        let before = bed.chain.balance(PATH_USD, SPONSOR).await;
        let offer = payer::offer(&bed.ask(CHAT, &chat()).await.headers("www-authenticate"), "tempo", "charge");
        let proof = payer.sign(&offer, |options| options.gas_limit = Some(gas)).await;
        let reply = bed.show(&proof, CHAT, &chat()).await;
        if reply.status == 200 {
            served += 1;
            continue;
        }
        refused += 1;
        assert_challenge(&reply, "payment_invalid");
        assert_eq!(bed.chain.balance(PATH_USD, SPONSOR).await, before, "gas {gas}: {}", reply.text());
    }
    assert!(served >= 1 && refused >= 3, "{served} served, {refused} refused");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_killed_after_it_signed_sends_the_same_transaction_when_it_is_back() {
    let mut bed = bed("20").await;
    let (address, key) = poor(&bed.chain, PRICE).await;
    let payer = Payer::new(&key, &bed.chain.url());
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.rpc.always("eth_sendRawTransactionSync", Fault::Hang);
    let bytes = raw::post(CHAT, &[("authorization", &proof)], chat().to_string().as_bytes());
    let listen = bed.gate.listen;
    let asking = tokio::spawn(async move { raw::try_exchange(listen, &bytes).await });
    assert!(eventually(SHORT, || async { bed.rpc.broadcasts() > 0 }).await, "signed, and on its way");
    bed.gate.kill();
    let _ = asking.await;
    bed.rpc.clear();
    assert_eq!(bed.chain.balance(PATH_USD, &address).await, PRICE, "the chain never heard of it");
    bed.gate.restart().await;
    let paid = eventually(SHORT, || async { bed.chain.balance(PATH_USD, &address).await == 0 }).await;
    assert!(paid, "sent from the record alone");
    let reply = served(&bed, &proof).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 403, "once");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_is_not_offered_any_more_and_never_overspent() {
    // Room for one transaction of this client, whose limits allow 0.041 USD.
    let bed = bed("0.05").await;
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    let payer = bed.payer().await;
    let mut proofs = Vec::new();
    for _ in 0..64 {
        proofs.push(bed.proof(&payer, CHAT, &chat()).await);
    }
    let body = chat();
    let replies = futures::future::join_all(proofs.iter().map(|proof| bed.show(proof, CHAT, &body))).await;
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    assert!(served >= 1, "{:?}", replies.iter().map(|r| r.status).collect::<Vec<_>>());
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        assert_challenge(reply, "payment_invalid");
        assert!(reply.text().contains("carried"), "{}", reply.text());
    }
    let cost = before - bed.chain.balance(PATH_USD, SPONSOR).await;
    assert!(cost > 0 && cost <= 50_000, "{cost}");
    assert_eq!(counted(&bed, "cosigned").await, served as f64);
    let unpaid = bed.ask(CHAT, &chat()).await;
    assert!(!says_fee_payer(&unpaid), "what is left does not cover every allowed transaction");
    let own = bed.show(&payer.pay(&unpaid).await, CHAT, &chat()).await;
    assert_eq!(own.status, 200, "payers carry their own fees: {}", own.text());
    assert!(bed.gate.log().contains("budget for today is used up"), "the operator is told");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_offered_a_carried_fee_may_carry_it_himself_but_not_push() {
    let bed = bed("20").await;
    let before = bed.chain.balance(PATH_USD, SPONSOR).await;
    let payer = bed.payer().await;
    let offer = payer::offer(&bed.ask(CHAT, &chat()).await.headers("www-authenticate"), "tempo", "charge");
    let mut plain = offer.clone();
    let mut terms = payer::terms(&offer);
    terms["methodDetails"].as_object_mut().unwrap().remove("feePayer");
    plain.request = Base64UrlJson::from_value(&terms).unwrap();
    let signed = payer.sign(&plain, |_| ()).await;
    let proof = payer::bend(&signed, |c| c["challenge"]["request"] = json!(offer.request.raw()));
    let pushed =
        payer::bend(&proof, |c| c["payload"] = json!({"type": "hash", "hash": format!("0x{}", "ab".repeat(32))}));
    assert_challenge(&bed.show(&pushed, CHAT, &chat()).await, "payment_invalid");
    let reply = bed.show(&proof, CHAT, &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(bed.chain.balance(PATH_USD, SPONSOR).await, before);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_carries_fees_and_its_payments_are_bought_with_once() {
    let relay = common::relay::start(&DEV[7]).await;
    let mut bed = Bed::with(|options| {
        options
            .conf_edit("accept_push = false", "accept_push = false\nsponsor = { relay = \"env:FEE_RELAY\" }")
            .env("FEE_RELAY", &relay)
    })
    .await;
    let before = bed.chain.balance(PATH_USD, DEV[7].address).await;
    let (address, key) = poor(&bed.chain, PRICE).await;
    let (url, rpc) = (bed.gate.chat_url(), bed.chain.url());
    let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key), ("max_tokens", "5")];
    let paid = node("mppx.mjs", &flags).await;
    assert_eq!(paid["status"], 200, "{paid}");
    bed.ledger.sold(&paid["receipt"], 5);
    assert_eq!(bed.chain.balance(PATH_USD, &address).await, 0, "it paid the price and no fee");
    assert!(bed.chain.balance(PATH_USD, DEV[7].address).await < before, "the relay's account paid it");

    // A kill between the relay's signature and the chain: the same bytes are sent again, and bought with once.
    let (address, key) = poor(&bed.chain, PRICE).await;
    let proof = bed.proof(&Payer::new(&key, &rpc), CHAT, &chat()).await;
    bed.rpc.forget();
    bed.rpc.always("eth_sendRawTransactionSync", Fault::Hang);
    let bytes = raw::post(CHAT, &[("authorization", &proof)], chat().to_string().as_bytes());
    let listen = bed.gate.listen;
    let asking = tokio::spawn(async move { raw::try_exchange(listen, &bytes).await });
    assert!(eventually(SHORT, || async { bed.rpc.broadcasts() > 0 }).await, "signed, and on its way");
    bed.gate.kill();
    let _ = asking.await;
    bed.rpc.clear();
    bed.gate.restart().await;
    assert!(eventually(SHORT, || async { bed.chain.balance(PATH_USD, &address).await == 0 }).await, "sent again");
    assert_eq!(served(&bed, &proof).await.status, 200);
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 403, "once");
    assert!(!bed.gate.log().contains("a-key-in-the-path"), "its address is not repeated");
    bed.close(Unseen::default()).await;
}

/// Shows a proof until its outcome is known.
async fn served(bed: &Bed, proof: &str) -> common::RawReply {
    let end = std::time::Instant::now() + SHORT;
    loop {
        let reply = bed.show(proof, CHAT, &chat()).await;
        if !matches!(reply.status, 409 | 503) || std::time::Instant::now() > end {
            return reply;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settle_key_never_carries_fees_whatever_name_it_is_kept_under() {
    let chain = Chain::start().await;
    let options = sponsored(GateOptions::new(&chain.url(), "http://127.0.0.1:1"), "20");
    let options = options.env("SPONSOR_KEY", DEV[1].key);
    let said = Gate::try_start(options).await.err().expect("refused");
    assert!(said.contains("its key is the settle key"), "{said}");
    assert!(!said.contains(&DEV[1].key[2..]), "and it is not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settle_key_of_one_rail_never_carries_the_fees_of_another() {
    let chain = Chain::start().await;
    let options = sponsored(GateOptions::new(&chain.url(), "http://127.0.0.1:1"), "20");
    let other = format!(
        "[rail.other]\nkind = \"mpp-tempo\"\nchain_id = {CHAIN_ID}\nrpc = \"env:TEMPO_RPC_URL\"\ncurrency = \"{PATH_USD}\"\n\
         recipient = \"{}\"\nsettle_key = \"env:OTHER_KEY\"\nsession = {{}}\n",
        DEV[2].address
    );
    let options = options.conf_extra(&other).env("OTHER_KEY", DEV[8].key);
    let said = Gate::try_start(options).await.err().expect("refused");
    assert!(said.contains("rail.tempo.sponsor: its key is the settle key of rail.other"), "{said}");
    assert!(!said.contains(&DEV[8].key[2..]), "and it is not repeated");
}
