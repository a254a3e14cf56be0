//! `tempo/charge`: one proof, one payment, one answer; whatever else is shown moves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::bed::{CHAT, PRICE, assert_challenge, assert_final, chat, streamed};
use common::{Bed, Fault, Raw, Reply, Step, Unseen, bed, eventually, payer, raw};
use serde_json::{Value, json};

const SHORT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn of_64_copies_of_one_proof_at_once_one_is_served_and_none_is_asked_to_pay_again() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    bed.backend.tune(|script| script.first_byte = Duration::from_millis(50));
    for round in 1..=5 {
        let body = if round % 2 == 0 { streamed() } else { chat() };
        let proof = bed.proof(&payer, CHAT, &body).await;
        let bytes = raw::post(CHAT, &[("authorization", &proof)], body.to_string().as_bytes());
        let bytes: Arc<[u8]> = bytes.into();
        let barrier = Arc::new(tokio::sync::Barrier::new(64));
        let mut copies = tokio::task::JoinSet::new();
        for _ in 0..64 {
            // All but the last byte is there before the barrier falls.
            let (listen, bytes, barrier) = (bed.gate.listen, Arc::clone(&bytes), Arc::clone(&barrier));
            copies.spawn(async move {
                let mut copy = Raw::connect(listen).await;
                let (first, last) = bytes.split_at(bytes.len() - 1);
                copy.send(first).await;
                barrier.wait().await;
                copy.send(last).await;
                copy.reply(Duration::from_secs(30)).await
            });
        }
        let replies = copies.join_all().await;
        let served = replies.iter().filter(|reply| reply.status == 200).count();
        assert_eq!(served, 1, "round {round}: {:?}", replies.iter().map(|r| r.status).collect::<Vec<_>>());
        for reply in &replies {
            bed.ledger.read(reply);
            if reply.status != 200 {
                assert_final(reply, &[409, 403]);
                assert_eq!(reply.header("retry-after").is_some(), reply.status == 409, "{}", reply.text());
            }
        }
        assert_eq!(bed.served(), round, "calls to the backend");
        assert_eq!(bed.rpc.broadcasts(), round, "transactions handed in");
    }
    let books = bed.close(Unseen::default()).await;
    assert_eq!(books.charged, 5 * PRICE);
}

/// The same proof in other words: what a header can say in several ways.
fn spellings(proof: &str) -> Vec<String> {
    let token = proof.strip_prefix("Payment ").unwrap();
    let value = payer::unpack(proof);
    let pack = |text: &str| format!("Payment {}", mpp::base64url_encode(text.as_bytes()));
    let members: Vec<(String, Value)> =
        value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).rev().collect();
    let turned: Vec<String> = members.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
    let signed = value["payload"]["signature"].as_str().unwrap();
    let with = |text: String| {
        let mut value = value.clone();
        value["payload"]["signature"] = json!(text);
        pack(&value.to_string())
    };
    let mut spellings = vec![
        proof.to_owned(),
        format!("payment {token}"),
        format!("PAYMENT   {token}"),
        format!("Payment {token}{}", "=".repeat((4 - token.len() % 4) % 4)),
        format!("Bearer sk-of-the-backend, Payment {token}"),
        pack(&format!("{{{}}}", turned.join(","))),
        pack(&serde_json::to_string_pretty(&value).unwrap()),
        pack(&value.to_string().replace("\"payload\"", "\"p\\u0061yload\"")),
        with(signed.to_uppercase().replace("0X", "0x")),
    ];
    spellings.extend([format!("0X{}", &signed[2..]), signed[2..].to_owned()].map(with));
    spellings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_proof_is_refused_two_hundred_times_in_every_spelling_without_a_call_to_chain_or_backend() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200);
    bed.rpc.forget();
    let (text, spellings) = (chat().to_string(), spellings(&proof));
    for round in 0..200 {
        let spelling = &spellings[round % spellings.len()];
        let header = if round % 3 == 0 { "payment-authorization" } else { "Authorization" };
        let reply = bed.post(CHAT, &[(header, spelling)], text.as_bytes()).await;
        assert_final(&reply, &[403]);
        assert_eq!(reply.json()["error"]["code"], "payment_spent", "{spelling}");
        assert_eq!(reply.json()["payment"]["moved"], "yes");
    }
    // With another body, and on a stream, it is as spent.
    assert_final(&bed.show(&proof, CHAT, &streamed()).await, &[403]);
    assert_eq!(bed.chain_calls(), [""; 0], "calls to the chain");
    assert_eq!(bed.served(), 1);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_an_unspent_proof_is_that_proof() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    for at in 0..11 {
        let proof = bed.proof(&payer, CHAT, &chat()).await;
        let spelling = spellings(&proof).swap_remove(at);
        assert_eq!(bed.show(&spelling, CHAT, &chat()).await.status, 200, "{spelling}");
        assert_final(&bed.show(&proof, CHAT, &chat()).await, &[403]);
    }
    assert_eq!(bed.close(Unseen::default()).await.receipts, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_credentials_are_refused_and_neither_is_used() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let (a, b) = (bed.proof(&payer, CHAT, &chat()).await, bed.proof(&payer, CHAT, &chat()).await);
    let text = chat().to_string();
    for headers in [
        vec![("authorization", a.as_str()), ("authorization", b.as_str())],
        vec![("authorization", a.as_str()), ("payment-authorization", b.as_str())],
        vec![("authorization", a.as_str()), ("payment-authorization", a.as_str())],
        vec![("authorization", &format!("{a}, {b}"))],
    ] {
        let reply = bed.post(CHAT, &headers, text.as_bytes()).await;
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (400, Some("two_credentials")));
        assert!(reply.header("www-authenticate").is_none());
    }
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    for proof in [a, b] {
        assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200, "it is as good as before");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_counts_as_unpaid() {
    let bed = Bed::open().await;
    let text = chat().to_string();
    for credential in ["Payment", "Payment !!!", "Payment e30", "Payment bnVsbA", "Payment W10", "payment {}"] {
        let reply = bed.post(CHAT, &[("authorization", credential)], text.as_bytes()).await;
        assert_challenge(&reply, "malformed_credential");
    }
    // Another scheme is nobody's payment.
    let reply = bed.post(CHAT, &[("authorization", "Bearer sk-123")], text.as_bytes()).await;
    assert_challenge(&reply, "payment_required");
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_asks_nothing_is_quoted_and_a_proof_shown_with_it_stays_unused() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    for body in ["", "{}", r#"{"model":"openai/gpt-oss-120b"}"#, r#"{"max_tokens":5}"#] {
        let unpaid = bed.post(CHAT, &[], body.as_bytes()).await;
        assert_challenge(&unpaid, "payment_required");
        let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
        assert_eq!(payer::terms(&offer)["amount"], PRICE.to_string());
        let proof = payer.sign(&offer, |_| ()).await;
        for _ in 0..2 {
            let reply = bed.post(CHAT, &[("authorization", &proof)], body.as_bytes()).await;
            assert_eq!(reply.status, 400, "{body:?}: {}", reply.text());
            assert_eq!(reply.json()["error"]["code"], "nothing_asked");
            assert!(reply.header("www-authenticate").is_none());
        }
    }
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    assert_eq!(bed.close(Unseen::default()).await.receipts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_the_chain_refuses_or_reverts_buys_nothing_and_a_fresh_offer_follows() {
    let bed = Bed::open().await;
    let poor = common::Payer::fresh(&bed.chain, PRICE + PRICE / 2).await;
    let empty = common::Payer::new(&common::DEV[7].key.replace("4bbb", "4bbc"), &bed.chain.url());
    let proofs = [bed.proof(&poor, CHAT, &chat()).await, bed.proof(&poor, CHAT, &chat()).await];
    let bad = bed.proof(&empty, CHAT, &chat()).await;
    let refused = bed.proof(&bed.payer().await, CHAT, &chat()).await;
    assert_eq!(bed.show(&proofs[0], CHAT, &chat()).await.status, 200, "the first is covered");
    let sent = bed.rpc.broadcasts();
    for (proof, sends, why) in [
        (&proofs[1], 0, "not enough of the token is left"),
        (&bad, 0, "an account without anything"),
        (&refused, 1, "it would have gone through, and the chain does not take it"),
    ] {
        let message = "Insufficient funds for gas * price + value".to_owned();
        bed.rpc.always("eth_sendRawTransactionSync", Fault::Error { code: -32003, message });
        let (before, tried) = (bed.rpc.broadcasts(), bed.rpc.count("eth_call"));
        let reply = bed.show(proof, CHAT, &chat()).await;
        assert_challenge(&reply, "payment_failed");
        // Of what was never claimed there is nothing that a retry could use up.
        assert_eq!(reply.header("x-should-retry"), (sends > 0).then_some("false"), "{why}");
        assert_eq!(reply.json()["payment"]["moved"].as_str(), (sends > 0).then_some("no"), "{why}");
        assert_eq!((bed.rpc.broadcasts() - before, bed.rpc.count("eth_call") - tried), (sends, 1), "{why}");
        // Shown again it is not sent again.
        let again = bed.show(proof, CHAT, &chat()).await;
        assert_challenge(&again, "payment_failed");
        assert_eq!(bed.rpc.broadcasts() - before, sends, "{why}");
    }
    assert_eq!(bed.rpc.broadcasts() - sent, 1);
    bed.rpc.clear();
    assert_eq!(bed.served(), 1);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_chain_nothing_is_offered_and_the_gate_comes_back_by_itself() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let body = chat().to_string();
    for fault in [Fault::Refuse, Fault::Hang, Fault::Status(500)] {
        bed.rpc.always("*", fault.clone());
        let silent = eventually(SHORT, || async { bed.post(CHAT, &[], body.as_bytes()).await.status == 503 }).await;
        assert!(silent, "{fault:?}: it still offers what it cannot collect");
        let reply = bed.post(CHAT, &[], body.as_bytes()).await;
        assert_eq!(reply.json()["error"]["code"], "no_offer", "{}", reply.text());
        assert!(reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none());
        assert_eq!(bed.gate.admin_get("/readyz").await.unwrap().0, 503);
        assert_eq!(bed.gate.admin_get("/healthz").await.unwrap().0, 200);
        bed.rpc.clear();
        assert!(
            eventually(SHORT, || async {
                bed.gate.admin_get("/readyz").await.is_some_and(|(status, _)| status == 200)
            })
            .await,
            "{fault:?}: it does not come back"
        );
        let proof = bed.proof(&payer, CHAT, &chat()).await;
        assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200);
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_backend_nothing_is_offered_and_nothing_is_taken() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let (text, proof) = (chat().to_string(), bed.proof(&payer, CHAT, &chat()).await);
    bed.backend.healthy(false);
    let silent = eventually(SHORT, || async { bed.post(CHAT, &[], text.as_bytes()).await.status == 503 }).await;
    assert!(silent, "it still offers what it cannot serve");
    let reply = bed.show(&proof, CHAT, &chat()).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (503, Some("upstream_unavailable")));
    assert!(reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none());
    assert_eq!(bed.rpc.broadcasts(), 0, "the proof was not used");
    bed.backend.healthy(true);
    assert!(eventually(SHORT, || async { bed.post(CHAT, &[], text.as_bytes()).await.status == 402 }).await);
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200, "it is as good as before");
    bed.close(Unseen::default()).await;
}

/// Sends the signed transaction of a pull proof as its payer would, and turns the proof into the push form.
async fn pushed(bed: &Bed, proof: &str) -> String {
    let signed = payer::unpack(proof)["payload"]["signature"].clone();
    let hash = bed.chain.rpc("eth_sendRawTransaction", json!([signed])).await;
    bed.chain.mined(hash.as_str().unwrap()).await;
    payer::bend(proof, |c| c["payload"] = json!({"type": "hash", "hash": hash}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_the_payer_sent_itself_is_refused_by_default_with_nothing_claimed() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    let push =
        payer::bend(&proof, |c| c["payload"] = json!({"type": "hash", "hash": format!("0x{}", "ab".repeat(32))}));
    assert_challenge(&bed.show(&push, CHAT, &chat()).await, "payment_invalid");
    assert_eq!((bed.chain_calls(), bed.served()), (vec![], 0));
    // The signed form of one that is on chain already is still what the offer asked for.
    pushed(&bed, &proof).await;
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_push_is_accepted_a_hash_buys_once_and_only_for_the_one_who_was_asked() {
    let bed = Bed::with(|o| o.conf_edit("accept_push = false", "accept_push = true")).await;
    let (payer, thief) = (bed.payer().await, bed.payer().await);
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    let push = pushed(&bed, &proof).await;
    // Who watches the chain sees the hash, and may show it with an offer of his own, even before its owner does.
    let his = bed.proof(&thief, CHAT, &chat()).await;
    let theft = payer::bend(&his, |c| c["payload"] = payer::unpack(&push)["payload"].clone());
    let reply = bed.show(&theft, CHAT, &chat()).await;
    assert_eq!(reply.status, 402, "{}", reply.text());
    assert_eq!(bed.served(), 0);
    assert_eq!(bed.show(&push, CHAT, &chat()).await.status, 200, "the owner's payment is not lost to a thief");
    for copy in [&push, &proof] {
        assert_final(&bed.show(copy, CHAT, &chat()).await, &[403]);
    }
    assert_eq!(bed.show(&theft, CHAT, &chat()).await.status, 402);
    let loud = payer::bend(&push, |c| {
        let hash = c["payload"]["hash"].as_str().unwrap().to_uppercase().replace("0X", "0x");
        c["payload"]["hash"] = json!(hash);
    });
    assert_final(&bed.show(&loud, CHAT, &chat()).await, &[403]);
    assert_eq!((bed.served(), bed.rpc.broadcasts()), (1, 0));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_identity_opens_what_is_free_once_and_never_what_has_a_price() {
    let bed = Bed::with(|o| {
        bed::two_of_each(o)
            .rule_edit(
                "models.toml",
                "price = { input = \"0.15\", output = \"0.60\" }",
                "price = { input = \"0\", output = \"0\" }",
            )
            .rule_edit("tiers.toml", "charge = { flat = \"0.02\" }", "charge = { ceiling = true }")
    })
    .await;
    let payer = bed.payer().await;
    let free = common::client::chat("openai/other", "one two three");
    let unpaid = bed.ask(CHAT, &free).await;
    let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    assert_eq!(payer::terms(&offer)["amount"], "0");
    let proof = payer.authorization(&offer).await;
    assert_eq!(payer::unpack(&proof)["payload"]["type"], "proof");

    let priced = bed.proof(&payer, CHAT, &chat()).await;
    let pass = payer::bend(&priced, |c| c["payload"] = payer::unpack(&proof)["payload"].clone());
    assert_challenge(&bed.show(&pass, CHAT, &chat()).await, "payment_invalid");
    assert_challenge(&bed.show(&proof, CHAT, &chat()).await, "invalid_challenge");
    assert_challenge(&bed.show(&proof, "/other/v1/chat/completions", &free).await, "invalid_challenge");
    assert_eq!(bed.served(), 0);

    assert_eq!(bed.show(&proof, CHAT, &free).await.status, 200);
    assert_final(&bed.show(&proof, CHAT, &free).await, &[403]);
    assert_eq!((bed.served(), bed.chain_calls()), (1, vec![]));
    assert_eq!(bed.close(Unseen::default()).await.charged, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_the_payment_is_collected_may_come_back_for_its_answer() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.rpc.once("eth_sendRawTransactionSync", Fault::Delay(Duration::from_secs(2)));
    let mut client = Raw::connect(bed.gate.listen).await;
    client.send(&raw::post(CHAT, &[("authorization", &proof)], chat().to_string().as_bytes())).await;
    assert!(eventually(SHORT, || async { bed.rpc.broadcasts() == 1 }).await);
    drop(client);
    let served = eventually(SHORT, || async { bed.show(&proof, CHAT, &chat()).await.status == 200 }).await;
    assert!(served, "paid, and nothing to be had for it");
    assert_eq!((bed.served(), bed.rpc.broadcasts()), (1, 1));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_first_byte_may_come_back_for_its_answer() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    for body in [chat(), streamed()] {
        let proof = bed.proof(&payer, CHAT, &body).await;
        bed.backend.next(Reply::steps([Step::Hang]));
        let before = bed.served();
        let mut client = Raw::connect(bed.gate.listen).await;
        client.send(&raw::post(CHAT, &[("authorization", &proof)], body.to_string().as_bytes())).await;
        assert!(eventually(SHORT, || async { bed.served() == before + 1 }).await);
        drop(client);
        assert!(
            eventually(SHORT, || async { bed.backend.last().closed_early.is_some() }).await,
            "the backend is let go"
        );
        let served = eventually(SHORT, || async { bed.show(&proof, CHAT, &body).await.status == 200 }).await;
        assert!(served, "paid, and nothing to be had for it");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lags_is_no_word_about_a_payers_money() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    bed.chain.set_time(now - 40).await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    let reply = bed.show(&proof, CHAT, &chat()).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (503, Some("no_offer")), "{}", reply.text());
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!((bed.rpc.broadcasts(), bed.served()), (0, 0));
    bed.chain.set_time(now).await;
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200, "the same payment, once the node has caught up");
    assert_eq!(bed.close(Unseen::default()).await.charged, PRICE);
}
