//! What a call costs is what `pontage quote` says, what the offer asks, what the chain moves, and what the backend is
//! allowed to produce for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::{CHAT, assert_challenge, priced_by_ceiling, streamed};
use common::{Bed, GateOptions, Payer, RawReply, Unseen, client, eventually, ledger, payer, raw};
use serde_json::{Value, json};
use std::time::Duration;

/// Price of an output token under the rules of this file, in atoms.
const OUTPUT: u128 = 2_000;
const INPUT: u128 = 1_000;

fn priced(charge: &'static str) -> impl FnOnce(GateOptions) -> GateOptions {
    move |o| priced_by_ceiling(o).rule_edit("tiers.toml", "{ ceiling = true }", charge)
}

fn asks() -> Vec<Value> {
    let long = "word ".repeat(40);
    let mut asks = Vec::new();
    for prompt in ["one two three", long.as_str()] {
        for more in [
            json!({}),
            json!({"max_tokens": 3}),
            json!({"max_completion_tokens": 700, "n": 2}),
            json!({"stream": true, "max_tokens": 6}),
        ] {
            let mut body = client::chat("openai/gpt-oss-120b", prompt);
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            asks.push(body);
        }
    }
    asks
}

/// `pontage quote` on this body.
fn quote(bed: &Bed, body: &Value) -> Value {
    let file = bed.gate.dir().join("request.json");
    std::fs::write(&file, body.to_string()).unwrap();
    let (ok, said, complaint) = bed.gate.verb(&["quote", "--path", CHAT, "request.json"]);
    assert!(ok.success(), "{said}{complaint}");
    serde_json::from_str(&said).unwrap()
}

fn block(reply: &RawReply) -> Value {
    match reply.header("content-type") {
        Some("application/json") => reply.json()["pontage"].clone(),
        _ => ledger::events(&reply.text()).into_iter().find_map(|e| e.get("pontage").cloned()).expect("a block"),
    }
}

/// Atoms of a decimal dollar text, exactly.
fn atoms(usd: &Value) -> u128 {
    let text = usd.as_str().expect("a decimal text");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    assert!(part.len() <= 6, "{text} is no whole number of atoms");
    format!("{whole}{part:0<6}").parse().unwrap()
}

/// Buys each of [`asks`] and holds offer, quote, chain, backend and receipt against each other.
async fn buys_what_it_quotes(bed: Bed, rule: &str) {
    let payer = Payer::fresh(&bed.chain, 100_000_000).await;
    for body in asks() {
        let quote = quote(&bed, &body);
        assert_eq!(quote["parts"]["rule"], rule, "{quote}");
        let unpaid = bed.ask(CHAT, &body).await;
        let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
        let amount = payer::terms(&offer)["amount"].clone();
        assert_eq!(amount, quote["rails"][0]["amount"], "{quote}");
        let amount: u128 = amount.as_str().unwrap().parse().unwrap();
        let (n, prompt) = (quote["parts"]["n"].as_u64().unwrap(), quote["parts"]["prompt_tokens"].as_u64().unwrap());
        let bought = quote["output_tokens_bought"].as_u64().unwrap();

        let reply = bed.show(&payer.sign(&offer, |_| ()).await, CHAT, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let sent = bed.backend.last().json();
        assert_eq!(sent["max_tokens"], bought, "what the backend may produce is what was bought: {quote}");
        assert!(sent["max_completion_tokens"].is_null());
        let most = u128::from(prompt) * INPUT + u128::from(bought * n) * OUTPUT;
        assert!(most <= amount, "{most} atoms can be used up for a price of {amount}: {quote}");

        let block = block(&reply);
        assert_eq!(atoms(&block["charged"]["usd"]), amount);
        assert_eq!(block["charged"]["atoms"], amount.to_string());
        let (used, made) = (block["usage"]["prompt_tokens"].as_u64().unwrap(), ledger::tokens_in(&reply));
        assert_eq!(atoms(&block["actual"]["usd"]), u128::from(used) * INPUT + u128::from(made) * OUTPUT);
        assert!(made <= bought * n);
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_pays_for_all_that_was_asked() {
    let bed = Bed::with(priced("{ ceiling = true }")).await;
    let quote = quote(&bed, &asks()[1]);
    assert_eq!(
        (quote["output_tokens_bought"].as_u64(), quote["parts"]["max_output_tokens"].as_u64()),
        (Some(3), Some(3))
    );
    buys_what_it_quotes(bed, "ceiling").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_that_clamps_sells_output_for_what_was_paid_and_at_least_its_minimum() {
    let rule = "{ estimate = { overhead = \"1.5\", shortfall = \"clamp\", min_output_tokens = 4 } }";
    let bed = Bed::with(priced(rule)).await;
    for body in asks() {
        let quote = quote(&bed, &body);
        let asked = quote["parts"]["max_output_tokens"].as_u64().unwrap();
        assert!(quote["output_tokens_bought"].as_u64().unwrap() >= asked.min(4), "{quote}");
    }
    buys_what_it_quotes(bed, "estimate/clamp").await;
}

const ABSORB: &str = "{ estimate = { overhead = \"1.5\", shortfall = \"absorb\", loss_cap_per_call = \"0.02\", loss_cap_per_day = \"0.05\" } }";

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_absorbs_stays_under_the_cap_of_a_call_and_of_a_day_however_many_call_at_once() {
    let bed = Bed::with(priced(ABSORB)).await;
    let payer = bed.payer().await;
    let mut body = client::chat("openai/gpt-oss-120b", "one two three");
    body["max_tokens"] = json!(100);
    let quote = quote(&bed, &body);
    assert_eq!(quote["parts"]["rule"], "estimate/absorb");
    let price: u128 = quote["rails"][0]["amount"].as_str().unwrap().parse().unwrap();
    let counted = quote["parts"]["prompt_tokens"].as_u64();
    bed.backend.tune(|script| script.prompt_tokens = counted);
    let prompt = u128::from(counted.unwrap()) * INPUT;
    // All are inside together: the backend answers when the last has arrived.
    bed.backend.tune(|script| (script.tokens, script.first_byte) = (1_000, Duration::from_secs(2)));
    let mut proofs = Vec::new();
    for _ in 0..8 {
        let offer = payer::offer(&bed.ask(CHAT, &body).await.headers("www-authenticate"), "tempo", "charge");
        assert_eq!(payer::terms(&offer)["amount"], price.to_string());
        proofs.push(payer.sign(&offer, |_| ()).await);
    }
    let replies = futures::future::join_all(proofs.iter().map(|proof| bed.show(proof, CHAT, &body))).await;
    let mut lost = 0;
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.text());
        let made = u128::from(ledger::tokens_in(reply)) * OUTPUT;
        let loss = (prompt + made).saturating_sub(price);
        assert!(loss <= 20_000, "one call cost the operator {loss} atoms");
        lost += loss;
    }
    assert!((40_000..=50_000).contains(&lost), "the day cost the operator {lost} atoms of 50000");
    let most: Vec<u64> = bed.backend.requests().iter().map(|r| r.json()["max_tokens"].as_u64().unwrap()).collect();
    // In whichever order they arrived.
    assert!(most.iter().min() < most.iter().max(), "nobody was cut, so the day's cap was not reached: {most:?}");

    // The day's loss outlives a restart.
    let mut bed = bed;
    bed.backend.tune(|script| script.first_byte = Duration::ZERO);
    bed.gate.restart().await;
    let proof = bed.proof(&payer, CHAT, &body).await;
    let reply = bed.show(&proof, CHAT, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let made = u128::from(ledger::tokens_in(&reply)) * OUTPUT;
    assert!(lost + (prompt + made).saturating_sub(price) <= 50_000);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_cap_is_not_offered_any_more() {
    // Without overhead the price buys the prompt and nothing else: all output is the operator's loss.
    let bed = Bed::with(priced("{ estimate = { overhead = \"1\", shortfall = \"absorb\", loss_cap_per_call = \"0.02\", loss_cap_per_day = \"0.02\" } }")).await;
    let payer = bed.payer().await;
    let mut body = client::chat("openai/gpt-oss-120b", "one two three");
    body["max_tokens"] = json!(10);
    let counted = quote(&bed, &body)["parts"]["prompt_tokens"].as_u64();
    bed.backend.tune(|script| script.prompt_tokens = counted);
    let late = bed.proof(&payer, CHAT, &body).await;
    let proof = bed.proof(&payer, CHAT, &body).await;
    let reply = bed.show(&proof, CHAT, &body).await;
    assert_eq!((reply.status, ledger::tokens_in(&reply)), (200, 10), "{}", reply.text());
    for credential in [None, Some(late.as_str())] {
        let headers: Vec<(&str, &str)> = credential.into_iter().map(|c| ("authorization", c)).collect();
        let refused = bed.post(CHAT, &headers, body.to_string().as_bytes()).await;
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("cap_reached")));
        assert!(refused.header("retry-after").is_some() && refused.header("www-authenticate").is_none());
    }
    assert_eq!((bed.rpc.broadcasts(), bed.served()), (1, 1));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_keeps_its_price_when_the_rules_change_and_the_next_one_has_the_new_price() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let body = streamed();
    let (old, generation) = (bed.proof(&payer, CHAT, &body).await, bed.gate.generation().await);
    bed.gate.write_rules("tiers.toml", &bed.gate.rules("tiers.toml").replace("\"0.02\"", "\"0.03\""));
    bed.gate.generation_after(&generation, Duration::from_secs(10)).await.expect("a new plan");
    let offer = payer::offer(&bed.ask(CHAT, &body).await.headers("www-authenticate"), "tempo", "charge");
    assert_eq!(payer::terms(&offer)["amount"], "30000");
    let reply = bed.show(&old, CHAT, &body).await;
    assert_eq!((reply.status, block(&reply)["charged"]["usd"].as_str()), (200, Some("0.02")));
    assert_eq!(block(&reply)["generation"], generation, "a receipt names the rules of its offer");
    let reply = bed.show(&payer.sign(&offer, |_| ()).await, CHAT, &body).await;
    assert_eq!((reply.status, block(&reply)["charged"]["usd"].as_str()), (200, Some("0.03")));

    // A model that is not sold any more is not served for an old offer either, and nothing is taken.
    let late = bed.proof(&payer, CHAT, &body).await;
    let generation = bed.gate.generation().await;
    for (file, from, to) in [
        ("models.toml", "[model.\"openai/gpt-oss-120b\"]", "[model.\"openai/new\"]"),
        ("tiers.toml", "\"openai/gpt-oss-120b\"", "\"openai/new\""),
    ] {
        bed.gate.write_rules(file, &bed.gate.rules(file).replace(from, to));
    }
    bed.gate.generation_after(&generation, Duration::from_secs(10)).await.expect("a new plan");
    let gone = eventually(Duration::from_secs(10), || async { bed.show(&late, CHAT, &body).await.status == 404 });
    assert!(gone.await, "sold though it is gone");
    assert_eq!(bed.rpc.broadcasts(), 2);
    let new = client::chat("openai/new", "one");
    assert_challenge(
        &raw::exchange(bed.gate.listen, &raw::post(CHAT, &[], new.to_string().as_bytes())).await,
        "payment_required",
    );
    bed.close(Unseen::default()).await;
}
