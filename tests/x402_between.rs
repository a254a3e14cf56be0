//! What may happen between a payment's verification and its settlement: the payer turns, the backend fails, the chain goes dark, the
//! gate dies, a client repeats itself. The loss is bounded, and no payment is taken twice or for nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::backend::Step;
use common::facilitator::{SETTLE, VERIFY};
use common::ledger::books;
use common::x402::brittle::{METERED, assert_unknown};
use common::x402::counter::{SIGNATURE, assert_challenge, assert_final, chat, code, receipt_id, streamed, told};
use common::x402::stall::{FLAT, chat_at, server};
use common::x402::{Brittle, Client, encode};
use common::{Answer, Fault, GateOptions, Raw, Reply, eventually, raw};
use mpp::PrivateKeySigner;
use serde_json::{Value, json};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(20);

fn address(buyer: &PrivateKeySigner) -> String {
    buyer.address().to_string()
}

fn conf(mut options: GateOptions, from: &str, to: &str) -> GateOptions {
    let text = options.conf.take().unwrap();
    assert!(text.contains(from), "{from}");
    options.conf = Some(text.replacen(from, to, 1));
    options
}

/// What a payer does once he was served and before he has paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Cancels,
    Drains,
    LetsNobodyIn,
    IsFrontRun,
}

impl Turn {
    async fn happens(self, bed: &Brittle, buyer: &PrivateKeySigner, payment: &Value) {
        let chain = &bed.stall.chain;
        match self {
            Self::Cancels => {
                let nonce = payment["payload"]["authorization"]["nonce"].as_str().unwrap().parse().unwrap();
                chain.cancel_authorization(buyer, nonce).await;
            }
            Self::Drains => chain.drain(&address(buyer)).await,
            Self::LetsNobodyIn => chain.forbid_permit2(&address(buyer)).await,
            Self::IsFrontRun => drop(chain.front_run(payment).await),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_who_turns_before_he_has_paid_gets_no_answer_and_one_who_was_overtaken_gets_his() {
    let bed = Brittle::open().await;
    bed.stall.backend.tune(|script| script.word = "canary".into());
    for (server, turn) in [
        (server::EXACT, Turn::Cancels),
        (server::EXACT, Turn::Drains),
        (server::EXACT, Turn::IsFrontRun),
        (server::PERMIT2, Turn::Drains),
        (server::PERMIT2, Turn::LetsNobodyIn),
        (server::UPTO, Turn::Drains),
        (server::UPTO, Turn::LetsNobodyIn),
        (server::FIRST, Turn::Cancels),
        (server::FIRST, Turn::Drains),
        (server::FIRST, Turn::IsFrontRun),
    ] {
        let why = format!("{server} {turn:?}");
        let buyer = bed.stall.buyer().await;
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let (earned, served, asked) = (bed.stall.earned().await, bed.stall.served(), bed.asked());
        bed.facilitator.next(SETTLE, Answer::Real.held());
        let body = chat();
        let (reply, ()) = tokio::join!(bed.stall.show(server, &payment, &body), async {
            bed.facilitator.asked(SETTLE, asked.1 + 1).await;
            turn.happens(&bed, &buyer, &payment).await;
            bed.facilitator.release();
        });
        let said = String::from_utf8_lossy(&reply.raw).into_owned();
        if turn == Turn::IsFrontRun {
            assert_eq!(reply.status, 200, "{why}: {said}");
            assert_eq!((bed.earned_since(earned).await, bed.stall.served() - served), (FLAT, 1), "{why}");
            assert_final(&bed.stall.show(server, &payment, &chat()).await, &[403], "payment_spent", &why);
            continue;
        }
        assert_challenge(&reply, "payment_failed", &why);
        assert_eq!(told(&reply).unwrap()["success"], false, "{why}");
        assert!(!said.contains("canary"), "{why}: {said}");
        assert_eq!(bed.earned_since(earned).await, 0, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_who_does_not_pay_for_his_streams_has_no_more_than_his_exposure_of_them() {
    let most = 100_000;
    let mut bed = Brittle::with(|options| {
        conf(options, "[rail.base]\n", "[rail.base]\npayer_exposure = \"0.10\"\nceiling = \"0.10\"\n")
    })
    .await;
    let (buyer, other) = (bed.stall.buyer().await, bed.stall.buyer().await);
    let mut body = streamed();
    body["max_tokens"] = json!(12);
    body["messages"][0]["content"] = json!("hi");
    let mut lost = 0;
    let refused = loop {
        let payment = bed.stall.payment(&buyer, server::UPTO, &body).await;
        let asked = bed.asked().1;
        bed.facilitator.next(SETTLE, Answer::Real.held());
        let reply = bed.stall.show(server::UPTO, &payment, &body).await;
        if reply.status != 200 {
            break reply;
        }
        bed.facilitator.asked(SETTLE, asked + 1).await;
        Turn::Drains.happens(&bed, &buyer, &payment).await;
        bed.facilitator.release();
        let path = format!("/receipts/{}", receipt_id(&reply));
        let known = eventually(SHORT, || async { bed.stall.get(&path).await.json()["settlement"] == "lost" });
        assert!(known.await, "{}", bed.stall.get(&path).await.text());
        assert_eq!(bed.stall.get(&path).await.json()["charged"]["atoms"], "0");
        // One word of prompt, twelve tokens.
        lost += 25_000;
        assert!(lost <= most, "{lost} atoms were had for nothing");
        bed.stall.chain.fund(&address(&buyer), 1_000_000).await;
    };
    assert!(lost > 0);
    assert_eq!((refused.status, code(&refused).as_str()), (429, "payer_exposed"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some() && refused.header("payment-required").is_none());
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    bed.facilitator.forget_next(SETTLE);
    // It is he who is not trusted, and a restart does not help him.
    let payment = bed.stall.payment(&other, server::UPTO, &body).await;
    assert_eq!(bed.stall.show(server::UPTO, &payment, &body).await.status, 200);
    bed.stall.gate.restart().await;
    let payment = bed.stall.payment(&buyer, server::UPTO, &body).await;
    assert_eq!(bed.stall.show(server::UPTO, &payment, &body).await.status, 429);
}

/// Ways of a backend to fail before a word, and what the client is told.
fn failures() -> Vec<(&'static str, Reply, u16)> {
    vec![
        ("500", Reply::error(500, "server_error", "x", "y"), 502),
        ("a page of a proxy", Reply::html(502), 502),
        ("an error in a success", Reply::json(200, &json!({"error": {"message": "overloaded"}})), 502),
        ("an empty answer", Reply::json(200, &json!({"choices": []})), 502),
        ("half an answer", Reply::status(200, "application/json", "{\"choices\":[{\"ca"), 502),
        ("hangs up", Reply::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\n".to_vec()), Step::Close]), 502),
        ("resets", Reply::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\n".to_vec()), Step::Reset]), 502),
        ("falls silent", Reply::hang(), 504),
        ("refuses", Reply::error(422, "invalid_request_error", "bad_value", "no"), 422),
        ("is busy", Reply::error(429, "rate_limit", "slow_down", "wait"), 429),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_did_not_answer_is_not_paid_for_and_the_payment_stays_good() {
    let bed = Brittle::with(|options| {
        options.rule_edit(
            "pools.toml",
            "first_byte_seconds = 10, idle_seconds = 10, total_seconds = 60",
            "first_byte_seconds = 4, idle_seconds = 4, total_seconds = 5",
        )
    })
    .await;
    let buyer = bed.stall.buyer().await;
    for server in [server::EXACT, server::PERMIT2, server::UPTO] {
        for (why, failure, status) in failures() {
            let why = format!("{server}: {why}");
            let payment = bed.stall.payment(&buyer, server, &chat()).await;
            let (earned, asked) = (bed.stall.earned().await, bed.asked());
            bed.stall.backend.next(failure);
            let reply = bed.stall.show(server, &payment, &chat()).await;
            assert_final(&reply, &[status], &code(&reply), &why);
            assert_eq!(reply.json()["payment"]["moved"], "no", "{why}");
            assert_eq!((bed.asked().1, bed.earned_since(earned).await), (asked.1, 0), "{why}");
            assert!(!bed.stall.is_used(&payment).await, "{why}: taken for nothing");
            bed.is_served_in_the_end(server, &payment, &chat(), &why).await;
            let price = if server == server::UPTO { METERED } else { FLAT };
            assert_eq!(bed.earned_since(earned).await, price, "{why}");
        }
    }
    // Paid first: the answer is owed.
    for (why, failure, status) in failures() {
        let payment = bed.stall.payment(&buyer, server::FIRST, &chat()).await;
        let earned = bed.stall.earned().await;
        bed.stall.backend.next(failure);
        let reply = bed.stall.show(server::FIRST, &payment, &chat()).await;
        assert_final(&reply, &[status], &code(&reply), why);
        assert_eq!(reply.json()["payment"]["moved"], "yes", "{why}");
        assert!(reply.json()["payment"]["redeemable_until"].is_string(), "{why}");
        let reply = bed.is_served_in_the_end(server::FIRST, &payment, &chat(), why).await;
        assert_eq!(
            (told(&reply).unwrap()["success"].clone(), bed.earned_since(earned).await),
            (json!(true), FLAT),
            "{why}"
        );
    }
    // A stream by usage that fails before its first word, and one that dies without saying what it used.
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";
    for (why, failure, status) in [
        (
            "an error instead of a word",
            Reply::stream(["data: {\"error\":{\"message\":\"overloaded\"}}\n\ndata: [DONE]\n\n"]),
            502,
        ),
        ("dies after a word", Reply::broken_stream([token], Step::Reset), 200),
    ] {
        let payment = bed.stall.payment(&buyer, server::UPTO, &streamed()).await;
        let earned = bed.stall.earned().await;
        bed.stall.backend.next(failure);
        let reply = bed.stall.show(server::UPTO, &payment, &streamed()).await;
        assert_eq!(reply.status, status, "{why}: {}", reply.text());
        assert!(!bed.stall.is_used(&payment).await, "{why}");
        if status == 200 {
            let path = format!("/receipts/{}", receipt_id(&reply));
            assert_eq!(bed.stall.get(&path).await.json()["charged"]["atoms"], "0", "{why}");
            bed.is_spent(server::UPTO, &payment, &streamed(), why).await;
        } else {
            bed.is_served_in_the_end(server::UPTO, &payment, &streamed(), why).await;
            let paid = eventually(SHORT, || async { bed.earned_since(earned).await == METERED });
            assert!(paid.await, "{why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_answer_has_paid_nothing_and_may_come_again() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    for server in [server::EXACT, server::UPTO] {
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let (earned, served) = (bed.stall.earned().await, bed.stall.served());
        bed.stall.backend.next(Reply::hang());
        let client = left_alone(&bed, server, &payment).await;
        assert!(eventually(SHORT, || async { bed.stall.served() > served }).await);
        drop(client);
        let reply = bed.is_served_in_the_end(server, &payment, &chat(), server).await;
        assert_eq!(told(&reply).unwrap()["success"], true);
        let price = if server == server::UPTO { METERED } else { FLAT };
        assert_eq!(bed.earned_since(earned).await, price, "{server}");
    }
}

/// Shows a payment and does not wait for the answer.
async fn left_alone(bed: &Brittle, server: &str, payment: &Value) -> Raw {
    let mut client = Raw::connect(bed.stall.gate.listen).await;
    let bytes = raw::post(&chat_at(server), &[(SIGNATURE, &encode(payment))], chat().to_string().as_bytes());
    client.send(&bytes).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_chain_dark_too_an_unknown_settlement_waits_and_is_not_handed_in_blindly() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let earned = bed.stall.earned().await;
    let mut payments = Vec::new();
    for (server, answer) in [
        (server::EXACT, Answer::Reset.done()),
        (server::EXACT, Answer::Reset),
        (server::FIRST, Answer::Reset.done()),
        (server::UPTO, Answer::Reset),
    ] {
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        bed.node.always("*", if payments.len() % 2 == 0 { Fault::Refuse } else { Fault::Status(503) });
        bed.facilitator.next(SETTLE, answer);
        assert_unknown(&bed.stall.show(server, &payment, &chat()).await, server);
        payments.push((server, payment));
    }
    let asked = bed.asked();
    let again = payments.iter().map(|(server, payment)| async {
        loop {
            let reply = bed.stall.show(server, payment, &chat()).await;
            // Just now somebody took it over.
            if reply.status != 409 {
                return reply;
            }
        }
    });
    for reply in futures::future::join_all(again).await {
        assert_unknown(&reply, "nobody can know");
    }
    assert_eq!((bed.asked(), bed.earned_since(earned).await), (asked, 2 * FLAT), "handed in without a look");
    bed.node.clear();
    for (server, payment) in &payments {
        bed.is_served_in_the_end(server, payment, &chat(), server).await;
    }
    assert_eq!((bed.asked().1, bed.earned_since(earned).await), (asked.1 + 2, 3 * FLAT + METERED));
}

/// A moment in which a gate may die, and how many settlements it takes in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// Before anybody said whether the payment is good.
    AtVerify,
    /// While the backend works: promised, or paid first.
    AtWork,
    /// The facilitator has settled and not answered.
    Settled,
    /// The facilitator has heard of it and not settled.
    Unsettled,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_killed_at_any_step_serves_every_payment_once_and_its_books_are_sound() {
    let mut bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let (mut charged, mut receipts) = (0, 0);
    for (server, death, settlements) in [
        (server::EXACT, Death::AtVerify, 1),
        (server::EXACT, Death::AtWork, 1),
        (server::EXACT, Death::Settled, 1),
        (server::EXACT, Death::Unsettled, 2),
        (server::FIRST, Death::AtVerify, 1),
        (server::FIRST, Death::AtWork, 1),
        (server::FIRST, Death::Settled, 1),
        (server::FIRST, Death::Unsettled, 2),
        (server::UPTO, Death::AtVerify, 1),
        (server::UPTO, Death::AtWork, 1),
        (server::UPTO, Death::Settled, 1),
        (server::UPTO, Death::Unsettled, 2),
        (server::PERMIT2, Death::Settled, 1),
    ] {
        let why = format!("{server} {death:?}");
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let (earned, served, asked) = (bed.stall.earned().await, bed.stall.served(), bed.asked());
        match death {
            Death::AtVerify => bed.facilitator.next(VERIFY, Answer::Hang),
            Death::AtWork => bed.stall.backend.next(Reply::hang()),
            Death::Settled => bed.facilitator.next(SETTLE, Answer::Hang.done()),
            Death::Unsettled => bed.facilitator.next(SETTLE, Answer::Hang),
        }
        let _client = left_alone(&bed, server, &payment).await;
        let price = if server == server::UPTO { METERED } else { FLAT };
        let there = eventually(SHORT, || async {
            match death {
                Death::AtVerify => bed.asked().0 > asked.0,
                Death::AtWork => bed.stall.served() > served,
                Death::Settled => bed.earned_since(earned).await == price,
                Death::Unsettled => bed.asked().1 > asked.1,
            }
        });
        assert!(there.await, "{why}: it never came so far");
        bed.stall.gate.kill();
        bed.stall.gate.restart().await;
        let reply = bed.is_served_in_the_end(server, &payment, &chat(), &why).await;
        assert_eq!(told(&reply).unwrap()["success"], true, "{why}");
        // What was taken is what was used the first time, and that is what the receipt says.
        assert_eq!(told(&reply).unwrap()["amount"], price.to_string(), "{why}");
        assert_eq!((bed.earned_since(earned).await, bed.asked().1 - asked.1), (price, settlements), "{why}");
        (charged, receipts) = (charged + price, receipts + 1);
    }
    assert!(bed.stall.gate.stop().await.success());
    let books = books(&bed.stall.gate);
    assert_eq!((books.charged, books.receipts), (charged, receipts), "{books:?}");
    assert!(books.owed.is_empty(), "{books:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_delivered_is_settled_by_the_next_life_of_a_gate_that_died() {
    let mut bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    for landed in [true, false] {
        let payment = bed.stall.payment(&buyer, server::UPTO, &streamed()).await;
        let (earned, asked) = (bed.stall.earned().await, bed.asked());
        bed.facilitator.next(SETTLE, if landed { Answer::Hang.done() } else { Answer::Hang });
        let reply = bed.stall.show(server::UPTO, &payment, &streamed()).await;
        assert!(reply.status == 200 && reply.complete && reply.text().contains("[DONE]"), "{}", reply.text());
        bed.facilitator.asked(SETTLE, asked.1 + 1).await;
        if landed {
            assert!(eventually(SHORT, || async { bed.earned_since(earned).await > 0 }).await);
        }
        bed.stall.gate.kill();
        bed.stall.gate.restart().await;
        bed.is_spent(server::UPTO, &payment, &streamed(), "delivered before the blow").await;
        let path = format!("/receipts/{}", receipt_id(&reply));
        let settled = eventually(SHORT, || async { bed.stall.get(&path).await.json()["settlement"] == "settled" });
        assert!(settled.await, "{}", bed.stall.get(&path).await.text());
        assert_eq!((bed.earned_since(earned).await, bed.asked().1 - asked.1), (METERED, 1 + usize::from(!landed)));
    }
    assert!(bed.stall.gate.stop().await.success());
    assert_eq!(books(&bed.stall.gate).charged, 2 * METERED);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_that_repeats_itself_is_debited_once_at_most() {
    let bed = Brittle::open().await;
    let cut = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";
    for client in [Client::OpenAi, Client::PyOpenAi] {
        for (server, stream, failure, price) in [
            (server::EXACT, false, Reply::error(500, "server_error", "x", "y"), 0),
            (server::EXACT, false, Reply::reset(), 0),
            (server::FIRST, false, Reply::error(500, "server_error", "x", "y"), FLAT),
            (server::FIRST, true, Reply::broken_stream([""; 0], Step::Reset), FLAT),
            (server::FIRST, true, Reply::broken_stream([cut], Step::Reset), FLAT),
            (server::UPTO, false, Reply::error(500, "server_error", "x", "y"), 0),
            (server::UPTO, true, Reply::broken_stream([cut], Step::Reset), 0),
        ] {
            let why = format!("{client:?} {server} {stream}");
            let buyer = bed.stall.buyer().await;
            let (before, asked) = (bed.stall.chain.usdc(&address(&buyer)).await, bed.asked());
            bed.stall.backend.always(failure);
            let flags = if stream { [("stream", "true")].as_slice() } else { &[] };
            let got = client.pay(&bed.stall.chain, &buyer, &bed.stall.server(server), flags).await;
            bed.stall.backend.always(None);
            assert_eq!(got["ok"], false, "{why}: {got:#}");
            let paid = before - bed.stall.chain.usdc(&address(&buyer)).await;
            assert_eq!(paid, price, "{why}: {got:#}");
            let asked = (bed.asked().0 - asked.0, bed.asked().1 - asked.1);
            let first = server == server::FIRST || stream && server != server::UPTO;
            assert_eq!(asked, (1, usize::from(first)), "{why}: it paid again: {got:#}");
            // Five failures in a row, and the backend would be asked nothing more.
            let good = bed.stall.payment(&buyer, server::EXACT, &chat()).await;
            let reply = bed.stall.show(server::EXACT, &good, &chat()).await;
            assert_eq!(reply.status, 200, "{why}: {}", reply.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receipt_of_a_stream_that_is_still_running_says_so_and_nothing_else() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let payment = bed.stall.payment(&buyer, server::UPTO, &streamed()).await;
    bed.stall.backend.tune(|script| script.per_token = Duration::from_millis(300));
    let mut line = Raw::connect(bed.stall.gate.listen).await;
    let body = streamed().to_string();
    line.send(&raw::post(&chat_at(server::UPTO), &[(SIGNATURE, &encode(&payment))], body.as_bytes())).await;
    assert!(line.until(b"tok2", SHORT).await, "{}", String::from_utf8_lossy(&line.seen));
    let seen = String::from_utf8_lossy(&line.seen).into_owned();
    let id = seen.lines().find_map(|line| line.strip_prefix("pontage-receipt-id: ")).expect("named in the head");
    let path = format!("/receipts/{id}");
    let running = bed.stall.get(&path).await;
    assert_eq!((running.status, running.header("cache-control")), (200, Some("private, no-store")));
    assert_eq!(running.json(), json!({"id": id, "status": "pending", "settlement": "pending"}));
    assert_eq!(bed.stall.get("/receipts/rcpt_of_nobody").await.status, 404);
    assert!(line.until(b"[DONE]", SHORT).await, "{}", String::from_utf8_lossy(&line.seen));
    let written = bed.stall.get(&path).await.json();
    assert_eq!(
        (&written["charged"]["atoms"], &written["status"]),
        (&json!(METERED.to_string()), &Value::Null),
        "{written}"
    );
    let settled = eventually(SHORT, || async { bed.stall.get(&path).await.json()["settlement"] == "settled" });
    assert!(settled.await, "{}", bed.stall.get(&path).await.text());

    // One that its client leaves is over for its receipt, too.
    bed.stall.backend.tune(|script| script.tokens = 300);
    let payment = bed.stall.payment(&buyer, server::UPTO, &streamed()).await;
    let mut line = Raw::connect(bed.stall.gate.listen).await;
    line.send(&raw::post(&chat_at(server::UPTO), &[(SIGNATURE, &encode(&payment))], body.as_bytes())).await;
    assert!(line.until(b"tok2", SHORT).await, "{}", String::from_utf8_lossy(&line.seen));
    let seen = String::from_utf8_lossy(&line.seen).into_owned();
    let id = seen.lines().find_map(|line| line.strip_prefix("pontage-receipt-id: ")).expect("named in the head");
    line.reset();
    let path = format!("/receipts/{id}");
    let over = eventually(SHORT, || async { bed.stall.get(&path).await.json()["charged"].is_object() });
    assert!(over.await, "{}", bed.stall.get(&path).await.text());
}
