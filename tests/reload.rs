//! Rules and keys that change while the gate serves: nobody notices, and no receipt mixes two sets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::client::chat;
use common::gate::Wait;
use common::{Backend, Chain, DEV, Gate, GateOptions, Payer, Raw, Script, eventually, payer, raw};
use mpp::PaymentChallenge;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(20);
const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "openai/gpt-oss-120b";

/// What a client can see of one rule set.
struct Set {
    charged: u128,
    tokens: u64,
    pool: &'static str,
    /// 3 prompt tokens and `tokens` at the model's price.
    actual: &'static str,
}

const FIRST: Set = Set { charged: 20_000, tokens: 5, pool: "gpt-oss", actual: "0.00000345" };
const SECOND: Set = Set { charged: 30_000, tokens: 7, pool: "renamed", actual: "0.0000093" };

fn options(chain: &str, upstream: &str) -> GateOptions {
    GateOptions::new(chain, upstream)
        .rule_edit("tiers.toml", "max_output_tokens = 2048", "max_output_tokens = 5")
        .conf_extra("\n[listen.limits]\nunpaid_per_ip_per_second = 100000\n")
}

/// The other set: price, limit, the model's prices, the pool's name and the order of pools all differ.
fn second(file: &str, text: &str) -> String {
    match file {
        "tiers.toml" => text.replace("\"0.02\"", "\"0.03\"").replace("max_output_tokens = 5", "max_output_tokens = 7"),
        "models.toml" => text
            .replace("input = \"0.15\"", "input = \"0.30\"")
            .replace("output = \"0.60\"", "output = \"1.20\"")
            .replace("pool = \"gpt-oss\"", "pool = \"renamed\""),
        "pools.toml" => {
            let spare = "[pool.spare]\nprofile = \"vllm\"\nservers = [\"http://127.0.0.1:9\"]\n\n";
            format!("{spare}{}", text.replace("[pool.gpt-oss]", "[pool.renamed]"))
        }
        _ => text.to_owned(),
    }
}

const FILES: [&str; 4] = ["pools.toml", "models.toml", "tiers.toml", "routes.toml"];

/// Turns the directory into what a cluster mounts: each file a link through `..data`, which is swapped as one.
fn as_config_map(gate: &Gate) {
    let dir = gate.rules_dir();
    for (name, other) in [("..first", false), ("..second", true)] {
        std::fs::create_dir(dir.join(name)).unwrap();
        for file in FILES {
            let text = gate.rules(file);
            std::fs::write(dir.join(name).join(file), if other { second(file, &text) } else { text }).unwrap();
        }
    }
    point(&dir, "..first");
    for file in FILES {
        let link = dir.join("link");
        std::os::unix::fs::symlink(Path::new("..data").join(file), &link).unwrap();
        std::fs::rename(&link, dir.join(file)).unwrap();
    }
}

fn point(dir: &Path, at: &str) {
    let link = dir.join("..data_tmp");
    std::os::unix::fs::symlink(at, &link).unwrap();
    std::fs::rename(&link, dir.join("..data")).unwrap();
}

fn body(stream: bool) -> Vec<u8> {
    let mut body = chat(MODEL, "one two three");
    if stream {
        body["stream"] = json!(true);
    }
    body.to_string().into_bytes()
}

async fn offer(gate: std::net::SocketAddr, body: &[u8]) -> PaymentChallenge {
    let unpaid = raw::exchange(gate, &raw::post(CHAT, &[], body)).await;
    assert_eq!(unpaid.status, 402, "{}", unpaid.text());
    payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge")
}

fn amount(offer: &PaymentChallenge) -> u128 {
    payer::terms(offer)["amount"].as_str().unwrap().parse().unwrap()
}

fn generation_of(offer: &PaymentChallenge) -> String {
    offer.opaque.as_ref().unwrap().decode_value().unwrap()["generation"].as_str().unwrap().to_owned()
}

/// Pays an offer and holds every form of the receipt against the others. Returns the block.
async fn redeem(gate: std::net::SocketAddr, payer: &Payer, offer: &PaymentChallenge, body: &[u8]) -> Value {
    let authorization = payer.authorization(offer).await;
    let got = raw::exchange(gate, &raw::post(CHAT, &[("authorization", &authorization)], body)).await;
    assert_eq!(got.status, 200, "an honest request failed: {}", got.text());
    assert!(got.complete);
    let header = payer::unpack(got.header("payment-receipt").expect("a receipt"));
    let text = got.text();
    let (block, tokens) = if text.starts_with('{') {
        let whole = got.json();
        (whole["pontage"].clone(), whole["usage"]["completion_tokens"].as_u64().unwrap())
    } else {
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let chunk = text.lines().find(|line| line.contains("\"pontage\"")).unwrap();
        let chunk: Value = serde_json::from_str(chunk.strip_prefix("data: ").unwrap()).unwrap();
        let sealed = text.lines().find_map(|line| line.strip_prefix(": pontage-receipt ")).unwrap();
        let mut sealed = payer::unpack(sealed);
        sealed.as_object_mut().unwrap().remove("signature");
        assert_eq!(sealed, chunk["pontage"], "comment and chunk are one receipt");
        let tokens = text.split("tok").skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        (chunk["pontage"].clone(), tokens.count() as u64)
    };
    assert_eq!(header["reference"], block["reference"]);
    assert_eq!(header["receiptId"], block["id"]);
    assert_eq!(header["charged"].as_str(), Some(amount(offer).to_string().as_str()), "charged is what was offered");
    assert_eq!(block["generation"], generation_of(offer).as_str(), "the receipt names the rules of its offer");
    assert_eq!(block["usage"]["completion_tokens"], tokens, "{block}");
    block
}

fn assert_is(block: &Value, set: &Set) {
    assert_eq!(block["charged"]["atoms"].to_string().trim_matches('"'), set.charged.to_string(), "{block}");
    assert_eq!(block["usage"]["completion_tokens"], set.tokens, "{block}");
    assert_eq!(block["pool"], set.pool, "{block}");
    assert_eq!(block["actual"]["usd"], set.actual, "{block}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_paying_load_fail_no_request_and_mix_no_receipt() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let mut gate = Gate::start(options(&chain.url(), &backend.url())).await;
    let first = gate.generation().await;
    as_config_map(&gate);
    let (sold, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut buyers = Vec::new();
    for n in 0..4 {
        let payer = Payer::fresh(&chain, 100_000_000).await;
        let (sold, over, listen) = (sold.clone(), over.clone(), gate.listen);
        buyers.push(tokio::spawn(async move {
            let mut blocks = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let body = body((blocks.len() + n) % 2 == 0);
                let offer = offer(listen, &body).await;
                blocks.push(redeem(listen, &payer, &offer, &body).await);
                sold.fetch_add(1, Ordering::SeqCst);
            }
            blocks
        }));
    }
    let mut live = first.clone();
    for n in 0..100 {
        let before = sold.load(Ordering::SeqCst);
        point(&gate.rules_dir(), if n % 2 == 0 { "..second" } else { "..first" });
        // Most are asked for; every tenth is seen by the watch alone.
        if n % 10 != 0 {
            gate.hup();
        }
        live = gate.generation_after(&live, SHORT).await.expect("the set was swapped");
        let went_on = async || sold.load(Ordering::SeqCst) > before || buyers.iter().any(|b| b.is_finished());
        assert!(eventually(SHORT, went_on).await, "nothing was sold in reload {n}");
    }
    over.store(true, Ordering::SeqCst);
    let mut blocks = Vec::new();
    for buyer in buyers {
        blocks.extend(buyer.await.unwrap());
    }
    let of_first = blocks.iter().filter(|block| block["generation"] == first.as_str()).count();
    assert!(of_first > 0 && of_first < blocks.len(), "both sets sold something");
    for block in &blocks {
        assert_is(block, if block["generation"] == first.as_str() { &FIRST } else { &SECOND });
    }
    assert_eq!(gate.metric("pontage_rules_reload_total", &[("outcome", "failed")]).await, 0.0);
    let charged: u128 = blocks.len() as u128 * SECOND.charged - of_first as u128 * (SECOND.charged - FIRST.charged);
    assert_eq!(chain.payments_to(DEV[1].address).await.iter().map(|p| p.amount).sum::<u128>(), charged);
    assert_eq!(backend.requests().len(), blocks.len(), "one call to the backend for each sale");
    assert_eq!(gate.stop().await.code(), Some(0));
    let (status, audit, said) = gate.verb(&["audit", "--store", "var/pontage.redb"]);
    assert!(status.success(), "{audit}{said}");
    let sum = format!("= {charged} atoms of 6 decimals, {} receipts", blocks.len());
    assert!(audit.contains(&sum), "the journal tells the same story ({sum}): {audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_the_rules_it_began_with_and_an_offer_its_price() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(options(&chain.url(), &backend.url())).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let first = gate.generation().await;
    let (plain, head) = (body(false), |headers: &[(&str, &str)]| {
        let all = [headers, &[("expect", "100-continue")]].concat();
        let whole = raw::post(CHAT, &all, &body(false));
        whole[..whole.len() - body(false).len()].to_vec()
    });
    let (early, earlier) = (offer(gate.listen, &plain).await, offer(gate.listen, &plain).await);
    // Two requests begin: one unpaid, one that pays. Their bodies come when the rules and the pool's name are others.
    let authorization = payer.authorization(&earlier).await;
    let (mut unpaid, mut paid) = (Raw::connect(gate.listen).await, Raw::connect(gate.listen).await);
    for (client, head) in [(&mut unpaid, head(&[])), (&mut paid, head(&[("authorization", &authorization)]))] {
        client.send(&head).await;
        assert!(client.until(b"100 Continue\r\n\r\n", SHORT).await, "the gate has begun it");
    }
    for file in FILES {
        gate.write_rules(file, &second(file, &gate.rules(file)));
    }
    gate.hup();
    gate.generation_after(&first, SHORT).await.expect("the set was swapped");

    unpaid.send(&plain).await;
    let answer = unpaid.reply(SHORT).await;
    let challenge = payer::offer(&answer.headers("www-authenticate"), "tempo", "charge");
    assert_eq!((amount(&challenge), generation_of(&challenge)), (FIRST.charged, first.clone()));
    paid.send(&plain).await;
    let served = paid.reply(SHORT).await;
    assert_eq!(served.status, 200, "its pool has left the rules, not the gate: {}", served.text());
    assert_is(&served.json()["pontage"], &FIRST);

    assert_is(&redeem(gate.listen, &payer, &early, &plain).await, &FIRST);
    // A set that is half of each may have been whole by itself for a moment.
    let all = eventually(SHORT, || async { amount(&offer(gate.listen, &plain).await) == SECOND.charged });
    assert!(all.await, "the rest of the set is not loaded");
    let fresh = offer(gate.listen, &plain).await;
    assert_is(&redeem(gate.listen, &payer, &fresh, &plain).await, &SECOND);
}

/// Without a chain, for what needs no sale.
async fn unpaid_gate() -> (Backend, Gate) {
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(options("http://127.0.0.1:9", &backend.url()).wait(Wait::Alive)).await;
    (backend, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_set_keeps_the_last_good_one_and_says_every_mistake_everywhere() {
    let (_backend, gate) = unpaid_gate().await;
    let good = gate.generation().await;
    let tiers = gate.rules("tiers.toml");
    gate.write_rules("models.toml", &gate.rules("models.toml").replace("\"0.15\"", "\"cheap\""));
    gate.write_rules("routes.toml", &gate.rules("routes.toml").replace("tempo/charge", "cash/charge"));
    gate.write_rules("tiers.toml", &tiers.replace("max_n = 4", "max_m = 4"));
    let wanted = [("models.toml:5", "price.input"), ("routes.toml:7", "accept"), ("tiers.toml:7", "max_m")];
    let status = async || {
        let mistakes: Vec<String> =
            serde_json::from_value(gate.status().await["rules"]["mistakes"].clone()).unwrap_or_default();
        wanted.iter().all(|(at, key)| mistakes.iter().any(|m| m.starts_with(at) && m.contains(key)))
    };
    assert!(eventually(SHORT, status).await, "{:#}", gate.status().await);
    for (at, _) in wanted {
        assert!(gate.log().contains(at), "{at} is not in the log:\n{}", gate.log());
    }
    assert!(gate.metric("pontage_rules_reload_total", &[("outcome", "failed")]).await >= 1.0);
    assert_eq!(gate.generation().await, good, "the last good set stays in force");
    assert_eq!(gate.status().await["rules"]["generation"], good.as_str());

    let backup = |file: &str, from: &str, to: &str| gate.write_rules(file, &gate.rules(file).replace(from, to));
    backup("models.toml", "\"cheap\"", "\"0.16\"");
    backup("routes.toml", "cash/charge", "tempo/charge");
    gate.write_rules("tiers.toml", &tiers);
    let next = gate.generation_after(&good, SHORT).await.expect("a mended set is loaded without being asked");
    assert_ne!(next, good);
    assert_eq!(gate.status().await["rules"]["mistakes"], Value::Null);
    assert!(gate.metric("pontage_rules_reload_total", &[("outcome", "ok")]).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_that_swaps_its_link_is_seen_without_being_asked() {
    let (_backend, gate) = unpaid_gate().await;
    let first = gate.generation().await;
    as_config_map(&gate);
    let mut live = first.clone();
    for (at, back) in [("..second", false), ("..first", true), ("..second", false)] {
        point(&gate.rules_dir(), at);
        live = gate.generation_after(&live, SHORT).await.expect("the swap was seen");
        assert_eq!(live == first, back);
    }
}

/// The key files of a gate, newest first.
fn write_keys(gate: &Gate, keys: &[&str]) {
    for (n, key) in keys.iter().enumerate() {
        let path = gate.dir().join(format!("var/key{n}"));
        std::fs::write(path.with_extension("new"), format!("{key}\n")).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

/// SIGHUP, and waits until the gate has said so often that it read its keys.
async fn rotate(gate: &Gate, keys: &[&str]) {
    let said = || gate.log().matches("challenge keys").count() + gate.log().matches("secrets stay").count();
    let before = said();
    write_keys(gate, keys);
    gate.hup();
    assert!(eventually(SHORT, async || said() > before).await, "the keys were not read again");
}

fn key(n: usize) -> String {
    format!("rotating-key-{n:020}-rotating-key")
}

async fn keyed_gate(chain: &Chain, backend: &Backend) -> Gate {
    let keys = "challenge_keys = [\"file:{dir}/var/key0\", \"file:{dir}/var/key1\"]";
    let mut gate = Gate::prepare(
        options(&chain.url(), &backend.url()).conf_edit("challenge_keys = [\"env:PONTAGE_CHALLENGE_KEY\"]", keys),
    );
    write_keys(&gate, &[&key(1), &key(0)]);
    gate.restart().await;
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn challenge_keys_rotate_under_load_without_one_honest_failure() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = keyed_gate(&chain, &backend).await;
    let (rounds, over) = (Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]), Arc::new(AtomicBool::new(false)));
    let mut buyers = Vec::new();
    for n in 0..2 {
        let payer = Payer::fresh(&chain, 100_000_000).await;
        let (rounds, over, listen) = (rounds.clone(), over.clone(), gate.listen);
        buyers.push(tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let body = body(n == 0);
                redeem(listen, &payer, &offer(listen, &body).await, &body).await;
                rounds[n].fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for n in 2..22 {
        rotate(&gate, &[&key(n), &key(n - 1)]).await;
        // A retired key stays as long as its offers live: here until everyone has begun anew.
        let begun: Vec<_> = rounds.iter().map(|r| r.load(Ordering::SeqCst) + 2).collect();
        let anew = async || {
            let all = rounds.iter().zip(&begun).all(|(now, then)| now.load(Ordering::SeqCst) >= *then);
            all || buyers.iter().any(|b| b.is_finished())
        };
        assert!(eventually(SHORT, anew).await, "nothing was sold under key {n}");
    }
    over.store(true, Ordering::SeqCst);
    for buyer in buyers {
        buyer.await.expect("no honest request failed");
    }
    gate.assert_no_secrets("the log", &gate.log());
    assert!(!gate.log().contains("rotating-key"), "no key is ever said");
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_under_a_key_that_is_gone_are_refused_and_a_bad_key_changes_nothing() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = keyed_gate(&chain, &backend).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let plain = body(false);
    let (kept, lost) = (offer(gate.listen, &plain).await, offer(gate.listen, &plain).await);
    rotate(&gate, &[&key(2), &key(1)]).await;
    redeem(gate.listen, &payer, &kept, &plain).await;
    rotate(&gate, &["too-short", &key(2)]).await;
    assert!(gate.log().contains("secrets stay as they were"), "{}", gate.log());
    assert!(!gate.log().contains("too-short"));
    let signed_by_two = offer(gate.listen, &plain).await;

    rotate(&gate, &[&key(3), &key(2)]).await;
    let authorization = payer.authorization(&lost).await;
    let refused = raw::exchange(gate.listen, &raw::post(CHAT, &[("authorization", &authorization)], &plain)).await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (402, Some("invalid_challenge")));
    assert!(refused.header("x-should-retry").is_none(), "nothing was claimed");
    assert_eq!(chain.payments_to(DEV[1].address).await.len(), 1, "and nothing was taken");
    let fresh = payer::offer(&refused.headers("www-authenticate"), "tempo", "charge");
    redeem(gate.listen, &payer, &fresh, &plain).await;
    redeem(gate.listen, &payer, &signed_by_two, &plain).await;
}
