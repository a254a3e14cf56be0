//! x402 under faults of the facilitator and of its callers: whoever is down, late or lying, nobody pays twice, nobody is served twice
//! for one payment, and what is not known is not called unpaid.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::facilitator::{SETTLE, SUPPORTED, VERIFY, settlements_that_are_none, supported};
use common::gate::Wait;
use common::x402::Brittle;
use common::x402::brittle::{METERED, assert_unknown};
use common::x402::counter::{assert_challenge, assert_final, chat, code, told};
use common::x402::stall::{FLAT, chat_at, options, server};
use common::{Answer, Backend, EvmBed, Gate, Script, Scripted, eventually, raw};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Ways of breaking off in which nobody can tell what became of a call.
fn silences() -> Vec<(&'static str, Answer)> {
    vec![
        ("resets", Answer::Reset),
        ("closes", Answer::Close),
        ("is no HTTP", Answer::Bytes(b"220 smtp ready\r\n".to_vec())),
        ("moved to somebody else", Answer::redirect("http://127.0.0.1:1/settle")),
        ("is busy", Answer::too_many("1")),
        ("is behind a broken balancer", Answer::html(502)),
        ("is out of order in JSON", Answer::json(500, &json!({"error": "boom"}))),
        ("gives its verdict with 500", Answer::failed(500, "invalid_payload")),
        ("talks too much", Answer::huge(3 << 20)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_of_which_nobody_knows_is_never_answered_402_and_buys_its_answer_once() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let answers = settlements_that_are_none().into_iter().chain(silences());
    for (at, (why, answer)) in answers.enumerate() {
        for landed in [true, false] {
            // Every other on the path that is paid first.
            let server = if at % 2 == 0 { server::EXACT } else { server::FIRST };
            let why = format!("{server} landed {landed}: {why}");
            let payment = bed.stall.payment(&buyer, server, &chat()).await;
            let (earned, asked, served) = (bed.stall.earned().await, bed.asked(), bed.stall.served());
            bed.facilitator.next(SETTLE, if landed { answer.clone().done() } else { answer.clone() });
            let reply = bed.stall.show(server, &payment, &chat()).await;
            // What landed is found on the chain at once; "pending" is asked about once more, and then it is known.
            let is_known = landed || why.contains("pending");
            match reply.status {
                200 => assert!(is_known, "{why}: taken for a settlement: {}", reply.text()),
                _ => {
                    assert_unknown(&reply, &why);
                    assert!(!is_known, "{why}: it is on the chain");
                    bed.is_served_in_the_end(server, &payment, &chat(), &why).await;
                }
            }
            assert_eq!(bed.earned_since(earned).await, FLAT, "{why}");
            let again = if landed && !why.contains("pending") { 1 } else { 2 };
            assert_eq!(bed.asked().1 - asked.1, again, "{why}: settlements");
            let calls = if is_known || server == server::FIRST { 1 } else { 2 };
            assert_eq!(bed.stall.served() - served, calls, "{why}: upstream");
            assert_final(&bed.stall.show(server, &payment, &chat()).await, &[403], "payment_spent", &why);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_facilitator_that_keeps_a_settlement_waiting_keeps_its_client_no_longer_than_20_seconds() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let mut payments = Vec::new();
    for (server, at_last) in
        [(server::EXACT, Answer::Real), (server::FIRST, Answer::Reset), (server::UPTO, Answer::html(502).done())]
    {
        payments.push((server, bed.stall.payment(&buyer, server, &chat()).await));
        bed.facilitator.next(SETTLE, at_last.held());
    }
    let earned = bed.stall.earned().await;
    let shown = payments.iter().map(|(server, payment)| async {
        let began = Instant::now();
        (bed.stall.show(server, payment, &chat()).await, began.elapsed())
    });
    for (reply, took) in futures::future::join_all(shown).await {
        assert_unknown(&reply, "the facilitator hangs");
        assert!(took < Duration::from_secs(40), "the client was kept for {took:?}");
    }
    // Whoever waits for the outcome is the gate, not the client.
    for (server, payment) in &payments {
        assert_final(&bed.stall.show(server, payment, &chat()).await, &[409], "payment_in_use", server);
    }
    bed.facilitator.release();
    for (server, payment) in &payments {
        bed.is_served_in_the_end(server, payment, &chat(), server).await;
    }
    assert_eq!(bed.earned_since(earned).await, 2 * FLAT + METERED);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_can_say_whether_a_payment_is_good_nothing_is_taken_and_it_stays_good() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let lies = [
        ("yes as a word", Answer::But(json!({"isValid": "true"}))),
        ("yes of another payer", Answer::But(json!({"payer": "0x00000000000000000000000000000000000000AA"}))),
        ("yes and why not", Answer::But(json!({"invalidReason": "insufficient_funds"}))),
        ("no word", Answer::But(json!({"isValid": null}))),
        ("nothing", Answer::status(200, "application/json", "")),
        ("a list", Answer::status(200, "application/json", "[]")),
        ("half a word", Answer::malformed()),
        ("a web page", Answer::html(200)),
        ("trouble of its own", Answer::invalid(200, "unexpected_verify_error")),
    ];
    for (at, (why, answer)) in
        lies.into_iter().chain(silences().into_iter().filter(|(why, _)| !why.contains("verdict"))).enumerate()
    {
        let server = [server::EXACT, server::UPTO, server::PERMIT2, server::FIRST][at % 4];
        let why = format!("{server}: {why}");
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let (earned, asked, served) = (bed.stall.earned().await, bed.asked(), bed.stall.served());
        bed.facilitator.next(VERIFY, answer);
        let reply = bed.stall.show(server, &payment, &chat()).await;
        assert_final(&reply, &[503], "payment_unchecked", &why);
        assert_eq!(reply.json()["payment"]["moved"], "no", "{why}");
        assert!(reply.header("retry-after").is_some(), "{why}");
        assert_eq!((bed.asked(), bed.stall.served()), ((asked.0 + 1, asked.1), served), "{why}");
        assert!(!bed.stall.is_used(&payment).await, "{why}");
        let reply = bed.stall.show(server, &payment, &chat()).await;
        assert_eq!(reply.status, 200, "{why}: {}", reply.text());
        let price = if server == server::UPTO { METERED } else { FLAT };
        assert_eq!(bed.earned_since(earned).await, price, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_facilitator_that_says_no_is_heard_and_the_payer_is_asked_again() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    for (server, status, reason) in [
        (server::EXACT, 200, "insufficient_funds"),
        (server::EXACT, 400, "invalid_payload"),
        (server::EXACT, 412, "permit2_allowance_required"),
        (server::EXACT, 500, "invalid_scheme"),
        (server::FIRST, 200, "insufficient_funds"),
        (server::FIRST, 400, "invalid_payload"),
    ] {
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let (served, asked) = (bed.stall.served(), bed.asked());
        bed.facilitator.next(VERIFY, Answer::invalid(status, reason));
        let reply = bed.stall.show(server, &payment, &chat()).await;
        assert_challenge(&reply, "payment_invalid", reason);
        assert!(reply.text().contains(reason), "{}", reply.text());
        assert_eq!((bed.stall.served(), bed.asked()), (served, (asked.0 + 1, asked.1)), "{reason}");
        assert!(!bed.stall.is_used(&payment).await, "{reason}");
    }
    // Who never let Permit2 in is asked again, not sent away.
    let stranger = bed.stall.chain.buyer(1_000_000).await;
    for server in [server::PERMIT2, server::UPTO] {
        let payment = bed.stall.payment(&stranger, server, &chat()).await;
        assert_challenge(&bed.stall.show(server, &payment, &chat()).await, "payment_invalid", server);
        bed.stall.chain.approve_permit2(&stranger.address().to_string()).await;
        assert_eq!(
            bed.stall.show(server, &payment, &chat()).await.status,
            200,
            "the same payment, once it may be taken"
        );
        bed.stall.chain.forbid_permit2(&stranger.address().to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_failed_for_good_is_402_with_its_reason_and_fresh_offers_and_no_answer_leaks() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    bed.stall.backend.tune(|script| script.word = "canary".into());
    for (server, status, reason, calls) in [
        (server::EXACT, 200, "insufficient_funds", 1),
        (server::EXACT, 400, "invalid_exact_evm_payload_authorization_valid_before", 1),
        (server::UPTO, 200, "insufficient_funds", 1),
        (server::PERMIT2, 400, "permit2_allowance_required", 1),
        (server::FIRST, 200, "insufficient_funds", 0),
        (server::FIRST, 400, "invalid_signature", 0),
    ] {
        let why = format!("{server} {reason}");
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let (earned, served) = (bed.stall.earned().await, bed.stall.served());
        bed.facilitator.next(SETTLE, Answer::failed(status, reason));
        let reply = bed.stall.show(server, &payment, &chat()).await;
        assert_challenge(&reply, "payment_failed", &why);
        let told = told(&reply).unwrap_or_else(|| panic!("{why}: not told: {:?}", reply.headers));
        assert_eq!(
            (&told["success"], &told["transaction"], &told["network"]),
            (&json!(false), &json!(""), &json!("eip155:84532")),
            "{why}"
        );
        assert!(told["errorReason"].as_str().is_some_and(|said| said.contains(reason)), "{why}: {told}");
        assert!(!String::from_utf8_lossy(&reply.raw).contains("canary"), "{why}: {}", reply.text());
        assert_eq!((bed.stall.served() - served, bed.earned_since(earned).await), (calls, 0), "{why}");
        // What was never delivered may be tried again as it is; what was paid first, with a new payment.
        let again = match server {
            server::FIRST => {
                assert_challenge(&bed.stall.show(server, &payment, &chat()).await, "payment_failed", &why);
                bed.stall.payment(&buyer, server, &chat()).await
            }
            _ => payment,
        };
        bed.is_served_in_the_end(server, &again, &chat(), &why).await;
        let price = if server == server::UPTO { METERED } else { FLAT };
        assert_eq!(bed.earned_since(earned).await, price, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_end_while_the_facilitator_is_down_and_are_back_when_it_is() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let mut payments = Vec::new();
    for _ in 0..6 {
        payments.push(bed.stall.payment(&buyer, server::EXACT, &chat()).await);
    }
    let up = |id: &str| {
        let id = id.to_owned();
        let gate = &bed.stall.gate;
        async move { gate.metric("pontage_rail_up", &[("rail", &id)]).await }
    };
    assert_eq!(up("base/exact").await, 1.0, "{}", bed.stall.gate.metrics().await);
    for path in [VERIFY, SETTLE, SUPPORTED] {
        bed.facilitator.always(path, Answer::Reset);
    }
    for payment in &payments[..5] {
        assert_final(&bed.stall.show(server::EXACT, payment, &chat()).await, &[503], "payment_unchecked", "down");
    }
    // Five in a row: it is left alone, and nothing is offered that could not be honoured.
    let asked = bed.asked();
    for server in [server::EXACT, server::FIRST, server::PERMIT2, server::UPTO] {
        let reply = bed.stall.post(&chat_at(server), &[], &chat()).await;
        assert_eq!((reply.status, code(&reply).as_str()), (503, "no_offer"), "{}", reply.text());
        assert_eq!((reply.header("payment-required"), reply.json().get("accepts")), (None, None));
        assert!(reply.header("retry-after").is_some());
    }
    let reply = bed.stall.show(server::EXACT, &payments[5], &chat()).await;
    assert_eq!((reply.status, code(&reply).as_str()), (503, "payment_unchecked"), "{}", reply.text());
    assert_eq!((reply.header("payment-required"), reply.header("x-should-retry")), (None, Some("false")));
    assert_eq!((bed.asked(), up("base/exact").await, up("first/exact").await), (asked, 0.0, 0.0));
    for path in [VERIFY, SETTLE, SUPPORTED] {
        bed.facilitator.always(path, None);
    }
    let back = eventually(Duration::from_secs(25), || async { up("base/exact").await == 1.0 });
    assert!(back.await, "never asked again: {}", bed.stall.gate.status().await);
    for payment in &payments {
        let reply = bed.stall.show(server::EXACT, payment, &chat()).await;
        assert_eq!(reply.status, 200, "the same payment, when somebody can be asked: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_whose_facilitator_does_not_say_what_it_supports_listens_and_offers_nothing_through_it() {
    let (bed, network) = (EvmBed::start().await, "eip155:84532");
    let backend = Backend::start(Script::default()).await;
    let lists = |change: fn(&mut Value)| {
        let mut said = supported(&[network]);
        change(&mut said);
        Answer::json(200, &said)
    };
    let none: [bool; 4] = [false; 4];
    let beds = [
        ("hangs", Answer::Hang, none),
        ("resets", Answer::Reset, none),
        ("a web page", Answer::html(200), none),
        ("500", Answer::json(500, &json!({"error": "boom"})), none),
        ("429", Answer::too_many("60"), none),
        ("somebody else's place", Answer::redirect("http://127.0.0.1:1/supported"), none),
        ("half a word", Answer::malformed(), none),
        ("too many words", Answer::huge(3 << 20), none),
        ("nothing", lists(|said| said["kinds"] = json!([])), none),
        ("another network", Answer::json(200, &supported(&["eip155:8453"])), none),
        ("the first generation only", lists(|said| kinds(said).retain(|kind| kind["x402Version"] == 1)), none),
        ("no upto", lists(|said| kinds(said).retain(|kind| kind["scheme"] != "upto")), [true, true, true, false]),
        (
            "upto without who hands it in",
            lists(|said| kinds(said).iter_mut().for_each(|kind| drop(kind.as_object_mut().unwrap().remove("extra")))),
            [true, true, true, false],
        ),
        ("kinds it has no words for", lists(|said| kinds(said).push(json!({"x402Version": 7, "new": []}))), [true; 4]),
    ];
    let gates = beds.into_iter().map(|(why, answer, offered)| {
        let (bed, backend) = (&bed, &backend);
        async move {
            let facilitator = Scripted::start(&[network]).await;
            facilitator.always(SUPPORTED, answer);
            let options = options(bed, &facilitator.url(), &backend.url()).wait(Wait::Alive);
            let gate = Gate::start(options).await;
            for (server, offered) in
                [server::EXACT, server::FIRST, server::PERMIT2, server::UPTO].into_iter().zip(offered)
            {
                let asked = raw::post(&chat_at(server), &[], chat().to_string().as_bytes());
                let reply = raw::exchange(gate.listen, &asked).await;
                let expected = if offered { (402, "payment_required") } else { (503, "no_offer") };
                assert_eq!((reply.status, code(&reply).as_str()), expected, "{server} {why}: {}", reply.text());
                assert_eq!(reply.header("payment-required").is_some(), offered, "{server} {why}");
                assert_eq!(reply.header("retry-after").is_some(), !offered, "{server} {why}");
            }
        }
    });
    // Each is a process.
    futures::stream::iter(gates).buffer_unordered(4).collect::<Vec<()>>().await;
}

fn kinds(said: &mut Value) -> &mut Vec<Value> {
    said["kinds"].as_array_mut().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn above_an_amount_the_chain_is_believed_and_not_the_facilitator() {
    let bed = Brittle::with(|mut options| {
        let conf = options.conf.take().unwrap();
        options.conf = Some(
            conf.replace("evidence_above", "none")
                .replace("\nfacilitator = ", "\nevidence_above = \"0.001\"\nfacilitator = "),
        );
        options
    })
    .await;
    let buyer = bed.stall.buyer().await;
    let no_such = Answer::But(json!({"transaction": format!("0x{}", "ab".repeat(32))}));
    for (server, at) in [(server::EXACT, 0), (server::FIRST, 1), (server::PERMIT2, 2)] {
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let other = bed.stall.chain.transfers(0).await.last().unwrap().tx.clone();
        let (why, lie) = match at {
            0 => ("a transaction there is none of", no_such.clone()),
            _ => ("somebody else's transaction", Answer::But(json!({"transaction": other}))),
        };
        let (earned, asked) = (bed.stall.earned().await, bed.asked().1);
        bed.facilitator.next(SETTLE, lie);
        let reply = bed.stall.show(server, &payment, &chat()).await;
        assert_unknown(&reply, why);
        bed.is_served_in_the_end(server, &payment, &chat(), why).await;
        assert_eq!((bed.earned_since(earned).await, bed.asked().1 - asked), (FLAT, 2), "{why}");
    }
    // And when it says no and has taken the money: nobody is asked to pay again.
    for server in [server::EXACT, server::FIRST, server::PERMIT2, server::UPTO] {
        let payment = bed.stall.payment(&buyer, server, &chat()).await;
        let earned = bed.stall.earned().await;
        bed.facilitator.next(SETTLE, Answer::failed(200, "insufficient_funds").done());
        let reply = bed.stall.show(server, &payment, &chat()).await;
        assert_eq!(reply.status, 200, "{server}: {}", reply.text());
        bed.is_spent(server, &payment, &chat(), "served").await;
        let price = if server == server::UPTO { METERED } else { FLAT };
        assert_eq!(bed.earned_since(earned).await, price, "{server}");
    }
}
