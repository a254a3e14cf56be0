//! A proof is good for the offer it answers, and for nothing else: every other pairing is asked to pay, nothing is
//! claimed, and the chain is not asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::{CHAT, assert_challenge, chat, two_of_each};
use common::gate::CHALLENGE_KEY;
use common::{Bed, DEV, Payer, RawReply, Unseen, client, payer};
use mpp::PaymentChallenge;
use serde_json::{Value, json};

const OTHER: &str = "/other/v1/chat/completions";

type Change = fn(&mut Value);

/// Packs a JSON value as the protocol's base64url members hold it, keys in order.
fn pack(value: &Value) -> Value {
    let text = mpp::Base64UrlJson::from_value(value).unwrap();
    json!(text.raw())
}

fn unpack(packed: &Value) -> Value {
    payer::unpack(packed.as_str().unwrap())
}

/// Changes one packed member of the challenge in a proof.
fn within(proof: &str, member: &str, change: impl FnOnce(&mut Value)) -> String {
    payer::bend(proof, |c| {
        let mut inner = unpack(&c["challenge"][member]);
        change(&mut inner);
        c["challenge"][member] = pack(&inner);
    })
}

/// Gives a bent proof the id that our own key would give it: what is left is everything but the MAC.
fn forged(proof: &str) -> String {
    payer::bend(proof, |c| {
        let challenge = &c["challenge"];
        let text = |name: &str| challenge[name].as_str();
        let id = mpp::compute_challenge_id(
            CHALLENGE_KEY,
            text("realm").unwrap(),
            text("method").unwrap(),
            text("intent").unwrap(),
            text("request").unwrap(),
            text("expires"),
            text("digest"),
            text("opaque"),
        );
        c["challenge"]["id"] = json!(id);
    })
}

/// Every change of one field of an offer.
fn changes(proof: &str) -> Vec<(&'static str, String)> {
    let request = |change: Change| within(proof, "request", change);
    let opaque = |change: Change| within(proof, "opaque", change);
    let plain = |change: Change| payer::bend(proof, |c| change(&mut c["challenge"]));
    vec![
        ("one atom less", request(|r| r["amount"] = json!("19999"))),
        ("one atom more", request(|r| r["amount"] = json!("20001"))),
        ("nothing", request(|r| r["amount"] = json!("0"))),
        ("a number that is not one", request(|r| r["amount"] = json!("2e4"))),
        ("another payee", request(|r| r["recipient"] = json!(DEV[5].address))),
        ("another token", request(|r| r["currency"] = json!(common::chain::BETA_USD))),
        ("another chain", request(|r| r["methodDetails"]["chainId"] = json!(4217))),
        ("a fee payer", request(|r| r["methodDetails"]["feePayer"] = json!(true))),
        (
            "a split",
            request(|r| {
                r["methodDetails"]["splits"] =
                    json!([{"amount": "19999", "recipient": "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"}]);
            }),
        ),
        ("another route", opaque(|o| o["route"] = json!("/other/v1/chat/completions"))),
        ("another model", opaque(|o| o["model"] = json!("openai/other"))),
        ("another tier", opaque(|o| o["tier"] = json!("gold"))),
        ("another rail", opaque(|o| o["rail"] = json!("elsewhere/charge"))),
        ("another price", opaque(|o| o["price"] = json!("0.01"))),
        ("another layout", opaque(|o| o["v"] = json!("2"))),
        ("another realm", plain(|c| c["realm"] = json!("localhost"))),
        ("another method", plain(|c| c["method"] = json!("stripe"))),
        ("another intent", plain(|c| c["intent"] = json!("session"))),
        ("another body", plain(|c| c["digest"] = json!("sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="))),
        ("a digest left out", plain(|c| drop(c.as_object_mut().unwrap().remove("digest")))),
        ("an opaque left out", plain(|c| drop(c.as_object_mut().unwrap().remove("opaque")))),
        ("a longer life", plain(|c| c["expires"] = json!("2099-01-01T00:00:00Z"))),
        ("no end", plain(|c| drop(c.as_object_mut().unwrap().remove("expires")))),
    ]
}

fn assert_refused(what: &str, reply: &RawReply) {
    assert_eq!(reply.status, 402, "{what}: {}", reply.text());
    let code = reply.json()["error"]["code"].as_str().unwrap().to_owned();
    assert!(
        ["invalid_challenge", "payment_invalid", "malformed_credential"].contains(&code.as_str()),
        "{what}: {code}"
    );
    assert_challenge(reply, &code);
    assert!(reply.json()["payment"].is_null(), "{what}: it speaks of money that was not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_whose_offer_was_altered_in_any_field_buys_nothing_and_touches_nothing() {
    let bed = Bed::with(two_of_each).await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    for (what, altered) in changes(&proof) {
        assert_refused(what, &bed.show(&altered, CHAT, &chat()).await);
    }
    let id = payer::unpack(&proof)["challenge"]["id"].as_str().unwrap().to_owned();
    for (what, other) in [("no id", ""), ("a cut id", &id[..42]), ("a padded id", &format!("{id}="))] {
        let altered = payer::bend(&proof, |c| c["challenge"]["id"] = json!(other));
        assert_refused(what, &bed.show(&altered, CHAT, &chat()).await);
    }
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200, "and the proof itself is as good as before");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn even_under_our_own_mac_an_offer_for_something_else_is_refused() {
    let bed = Bed::with(two_of_each).await;
    let payer = bed.payer().await;
    let unpaid = bed.ask(CHAT, &chat()).await;
    let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    let shape = payer.sign(&offer, |_| ()).await;
    for (what, altered) in changes(&shape) {
        if what == "a longer life" {
            continue;
        }
        // The forger signs for his own id, as far as such an offer can be signed at all.
        let altered = forged(&altered);
        assert_refused(what, &bed.show(&altered, CHAT, &chat()).await);
        if let Some(signed) = signed_anew(&payer, &altered).await {
            assert_refused(what, &bed.show(&signed, CHAT, &chat()).await);
        }
    }
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    bed.close(Unseen::default()).await;
}

/// The same offer paid properly: what the payer would sign if we had made it.
async fn signed_anew(payer: &Payer, proof: &str) -> Option<String> {
    let echo = payer::unpack(proof)["challenge"].clone();
    let member = |name: &str| echo[name].as_str().map(|v| format!(", {name}=\"{v}\"")).unwrap_or_default();
    let names = ["realm", "method", "intent", "request", "expires", "digest", "opaque"];
    let line: String = names.into_iter().map(member).collect();
    let line = format!("Payment id=\"{}\"{line}", echo["id"].as_str()?);
    let challenge = PaymentChallenge::from_header(&line).ok()?;
    mpp::client::tempo::charge::TempoCharge::from_challenge(&challenge).ok()?;
    Some(payer.sign(&challenge, |_| ()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_past_its_end_is_refused_as_such() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    for end in
        ["2020-01-01T00:00:00Z", &pontage::clock::UnixSeconds(pontage::clock::UnixSeconds::now().0 - 1).rfc3339()]
    {
        let old = forged(&payer::bend(&proof, |c| c["challenge"]["expires"] = json!(end)));
        let reply = bed.show(&old, CHAT, &chat()).await;
        assert_challenge(&reply, "offer_expired");
        assert_eq!(reply.json()["type"], "https://paymentauth.org/problems/payment-expired");
    }
    for end in ["2020-01-01T00:00:00", "tomorrow", ""] {
        let odd = forged(&payer::bend(&proof, |c| c["challenge"]["expires"] = json!(end)));
        assert_refused(end, &bed.show(&odd, CHAT, &chat()).await);
    }
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_for_one_body_model_or_route_pays_for_no_other() {
    let bed = Bed::with(two_of_each).await;
    let payer = bed.payer().await;
    let other_model = client::chat("openai/other", "one two three");
    let other_words = client::chat("openai/gpt-oss-120b", "one two four");
    let mut other_limit = chat();
    other_limit["max_tokens"] = json!(5);
    let asks = [
        (CHAT, &chat()),
        (CHAT, &other_model),
        (CHAT, &other_words),
        (CHAT, &other_limit),
        (OTHER, &chat()),
        (OTHER, &other_model),
    ];
    for (at, (path, body)) in asks.iter().enumerate() {
        let proof = bed.proof(&payer, path, body).await;
        for (other, (path, body)) in asks.iter().enumerate() {
            if other != at {
                assert_challenge(&bed.show(&proof, path, body).await, "invalid_challenge");
            }
        }
        // Not even the same meaning in other bytes.
        let spaced = serde_json::to_vec_pretty(body).unwrap();
        let reply = bed.post(path, &[("authorization", &proof)], &spaced).await;
        assert_challenge(&reply, "invalid_challenge");
        assert_eq!(bed.served(), at);
        assert_eq!(bed.show(&proof, path, body).await.status, 200);
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_transaction_that_pays_something_else_is_refused_before_anything_is_claimed() {
    let bed = Bed::open().await;
    let (payer, stranger) = (bed.payer().await, bed.payer().await);
    let unpaid = bed.ask(CHAT, &chat()).await;
    let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    let honest = payer.sign(&offer, |_| ()).await;
    let real = payer::unpack(&honest)["challenge"].clone();
    // Each is signed for a bent offer and shown with the real one.
    let bent: [(&str, Change); 4] = [
        ("too little", |r| r["amount"] = json!("19999")),
        ("too much", |r| r["amount"] = json!("20001")),
        ("to somebody else", |r| r["recipient"] = json!(DEV[5].address)),
        ("in another token", |r| r["currency"] = json!(common::chain::BETA_USD)),
    ];
    let mut wrong = Vec::new();
    for (what, change) in bent {
        let cheap = signed_anew(&payer, &within(&honest, "request", change)).await.expect("signed");
        wrong.push((what, payer::bend(&cheap, |c| c["challenge"] = real.clone())));
    }
    let next = bed.ask(CHAT, &chat()).await;
    let next = payer::offer(&next.headers("www-authenticate"), "tempo", "charge");
    let elsewhere = payer.sign(&next, |_| ()).await;
    wrong.push(("for another offer", payer::bend(&elsewhere, |c| c["challenge"] = real.clone())));
    wrong.push(("past already", payer.sign(&offer, |o| o.valid_before = Some(1_700_000_000)).await));
    let source = format!("did:pkh:eip155:42431:{}", stranger.address);
    wrong.push(("in another's name", payer::bend(&honest, |c| c["source"] = json!(source))));
    for at in [4, 60, 200] {
        let flipped = payer::bend(&honest, |c| {
            let mut text = c["payload"]["signature"].as_str().unwrap().to_owned().into_bytes();
            let place = text.len() - at;
            text[place] = if text[place] == b'1' { b'2' } else { b'1' };
            c["payload"]["signature"] = json!(String::from_utf8(text).unwrap());
        });
        wrong.push(("with a changed digit", flipped));
    }
    for payload in [
        json!({}),
        json!({"type": "transaction"}),
        json!({"type": "transaction", "signature": "0x76"}),
        json!({"type": "cash"}),
        json!(null),
    ] {
        wrong.push(("of no known form", payer::bend(&honest, |c| c["payload"] = payload)));
    }
    for (what, proof) in wrong {
        assert_refused(what, &bed.show(&proof, CHAT, &chat()).await);
    }
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    assert_eq!(bed.show(&honest, CHAT, &chat()).await.status, 200);
    bed.close(Unseen::default()).await;
}
