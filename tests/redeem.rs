//! Paid and not delivered: the payment stays good for one answer, whatever went wrong, and never for two.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::backend::{Step, chunk, stream_head};
use common::bed::{CHAT, PRICE, assert_final, chat, priced_by_ceiling, streamed, two_of_each};
use common::client::node;
use common::facilitator::SETTLE;
use common::x402::Stall;
use common::x402::counter::{assert_challenge, assert_final as x402_final};
use common::x402::stall::{chat_at, server};
use common::{Bed, DEV, EvmBed, GateOptions, Raw, RawReply, Reply, Scripted, Unseen, eventually, ledger, payer, raw};
use pontage::clock::UnixSeconds;
use serde_json::{Value, json};
use std::time::Duration;

const OTHER: &str = "/other/v1/chat/completions";
const SHORT: Duration = Duration::from_secs(20);

/// Every such answer says until when the same credential buys a reply.
fn assert_redeemable(reply: &RawReply) {
    let text = reply.text();
    let until = reply.json()["payment"]["redeemable_until"].as_str().and_then(UnixSeconds::parse_rfc3339);
    let left = until.unwrap_or_else(|| panic!("no redeemable_until: {text}")).0 - UnixSeconds::now().0;
    assert!((800..=900).contains(&left), "15 minutes from the payment, not {left} s: {text}");
    assert_eq!(reply.json()["payment"]["moved"], "yes", "{text}");
    assert!(reply.json()["payment"]["advice"].as_str().is_some_and(|a| a.contains("same credential")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_openai_client_that_meets_a_failing_backend_pays_once_and_gets_its_answer_later() {
    let bed = Bed::open().await;
    let (base, rpc) = (bed.gate.base(), bed.chain.url());
    let mut proofs = Vec::new();
    for stream in [&[][..], &[("stream", "true")]] {
        let flags = [&[("base", base.as_str()), ("rpc", &rpc), ("key", DEV[2].key)], stream].concat();
        bed.backend.always(Reply::error(500, "server_error", "boom", "out of memory at /srv/models/gpt-oss-120b"));
        let before = bed.served();
        let got = node("openai-mppx.mjs", &flags).await;
        assert_eq!(got["ok"], false, "{got}");
        assert_eq!(got["error"]["status"], 502, "{got}");
        assert_eq!(got["error"]["headers"]["x-should-retry"], "false", "{got}");
        assert_eq!(got["payments"].as_array().map(Vec::len), Some(1), "one payment was signed: {got}");
        assert_eq!(bed.served() - before, 1, "the client retried: {got}");
        let text = got["error"].to_string();
        assert!(text.contains("the backend failed") && !text.contains("/srv"), "{text}");
        proofs.push((got["payments"][0]["credential"].as_str().expect("a credential").to_owned(), stream.is_empty()));
    }
    assert_eq!(bed.chain.payments_to(DEV[1].address).await.len(), 2, "one debit for each call");
    bed.backend.always(None);
    for (proof, plain) in proofs {
        let body = if plain { chat() } else { streamed() };
        let reply = bed.show(&proof, CHAT, &body).await;
        assert_eq!((reply.status, ledger::tokens_in(&reply)), (200, 12), "{}", reply.text());
        assert_final(&bed.show(&proof, CHAT, &body).await, &[403]);
    }
    assert_eq!(bed.close(Unseen::default()).await.charged, 2 * PRICE);
}

/// A stream of these events and then an orderly end.
fn events(list: &[Value]) -> Reply {
    let mut pieces: Vec<String> = list.iter().map(|event| format!("data: {event}\n\n")).collect();
    pieces.push("data: [DONE]\n\n".into());
    Reply::stream(pieces)
}

/// Ways to deliver nothing: what the backend does, the status that comes of it, whether the call streams.
fn failures() -> Vec<(&'static str, Reply, u16, bool)> {
    let error =
        json!({"error": {"message": "secret-word inside", "type": "server_error", "code": null, "param": null}});
    let role = json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": null}]});
    let cut = with_head(&["data: {\"id\":\"c\",\"obj"]);
    vec![
        ("500", Reply::error(500, "server_error", "x", "secret-word"), 502, false),
        ("503", Reply::json(503, &error), 502, true),
        ("401 of our own key", Reply::error(401, "auth", "invalid_api_key", "secret-word"), 502, false),
        (
            "402 of its own",
            Reply::with_headers(402, &[("www-authenticate", "Payment id=\"evil\"")], "secret-word"),
            502,
            false,
        ),
        ("403 of our own key", Reply::error(403, "x", "y", "secret-word: this API key may not"), 502, true),
        ("403 without a reason", Reply::error(403, "x", "y", "secret-word"), 403, true),
        ("302", Reply::with_headers(302, &[("location", "http://127.0.0.1:9/secret-word")], ""), 502, false),
        ("HTML as success", Reply::html(200), 502, false),
        ("HTML as success, streamed", Reply::html(200), 502, true),
        ("an error inside a success", Reply::json(200, &error), 502, false),
        ("an empty body", Reply::status(200, "application/json", ""), 502, false),
        ("half a body", Reply::status(200, "application/json", "{\"choices\":[{\"index\":0"), 502, false),
        ("a connection that closes", Reply::close(), 502, false),
        ("a connection that is reset", Reply::reset(), 502, true),
        ("a stream of nothing", Reply::stream([""; 0]), 502, true),
        ("a stream of [DONE]", events(&[]), 502, true),
        ("a stream that begins with an error", events(&[error]), 502, true),
        ("a stream of comments", Reply::stream([": ping\n\n", ": ping\n\n"]), 502, true),
        ("a stream that dies before a whole event", cut, 502, true),
        (
            "a stream that dies after the role",
            Reply::broken_stream([format!("data: {role}\n\n")], Step::Reset),
            502,
            true,
        ),
    ]
}

fn with_head(pieces: &[&str]) -> Reply {
    let mut steps = vec![Step::Bytes(stream_head())];
    steps.extend(pieces.iter().map(|piece| Step::Bytes(chunk(piece.as_bytes()))));
    steps.push(Step::Reset);
    Reply::steps(steps)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_backend_does_instead_of_answering_the_payment_is_kept_and_its_words_are_not() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    let mut bought = 0;
    for (what, failure, status, stream) in failures() {
        let body = if stream { streamed() } else { chat() };
        let proof = bed.proof(&payer, CHAT, &body).await;
        // A kept connection that closes unheard is tried once more on a new one; that is to fail too.
        for _ in 0..if what.starts_with("a connection") { 2 } else { 1 } {
            bed.backend.next(failure.clone());
        }
        let failed = bed.show(&proof, CHAT, &body).await;
        assert_final(&failed, &[status]);
        assert_redeemable(&failed);
        let shown = String::from_utf8_lossy(&failed.raw).into_owned();
        assert!(
            !shown.contains("secret-word") && !shown.contains("nginx") && !shown.contains("evil"),
            "{what}: {shown}"
        );
        // A server that refuses our key rests for half a minute; a restart forgets that, and not the payment.
        if what.starts_with("40") {
            bed.gate.restart().await;
        }
        let served = eventually(SHORT, || async { bed.show(&proof, CHAT, &body).await.status == 200 }).await;
        assert!(served, "{what}: paid, and nothing to be had for it");
        assert_final(&bed.show(&proof, CHAT, &body).await, &[403]);
        bought += 1;
    }
    bed.gate.assert_no_secrets("the log", &bed.gate.log());
    assert!(!bed.gate.log().contains("secret-word"), "a backend's words are in the log");
    let books = bed.close(Unseen::default()).await;
    assert_eq!((books.receipts, books.charged), (bought, u128::from(bought) * PRICE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_the_backend_refuses_keeps_status_type_code_and_param_and_the_payment() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    for status in [400u16, 404, 422, 429] {
        let proof = bed.proof(&payer, CHAT, &chat()).await;
        let message =
            "max_tokens is too large for gpt-oss-120b, see http://10.0.0.7:8000/v1 with sk-canary-upstream-3f9c1b7e";
        let error = json!({"error": {"message": message, "type": "invalid_request_error", "code": "too_large", "param": "max_tokens"}});
        bed.backend.next(Reply::with_headers(
            status,
            &[("content-type", "application/json"), ("retry-after", "1")],
            error.to_string(),
        ));
        let reply = bed.show(&proof, CHAT, &chat()).await;
        assert_final(&reply, &[status]);
        assert_redeemable(&reply);
        let told = reply.json()["error"].clone();
        assert_eq!(
            (told["type"].as_str(), told["code"].as_str(), told["param"].as_str()),
            (Some("invalid_request_error"), Some("too_large"), Some("max_tokens"))
        );
        assert_eq!(reply.header("retry-after"), Some("1"));
        let text = String::from_utf8_lossy(&reply.raw).into_owned();
        assert!(!text.contains("10.0.0.7") && !text.contains("sk-canary"), "{text}");
        // Who is over its rate limit is left alone as long as it asked.
        let served = eventually(SHORT, || async { bed.show(&proof, CHAT, &chat()).await.status == 200 }).await;
        assert!(served, "{status}");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_buys_any_body_of_the_route_that_costs_no_more_and_nothing_else() {
    let bed = Bed::with(|o| priced_by_ceiling(two_of_each(o))).await;
    let payer = bed.payer().await;
    let sized = |max_tokens: u64, prompt: &str| {
        let mut body = common::client::chat("openai/gpt-oss-120b", prompt);
        body["max_tokens"] = json!(max_tokens);
        body
    };
    let (bought, cheaper, dearer) = (sized(8, "one two"), sized(4, "other words"), sized(9, "one two"));
    bed.backend.next(Reply::error(500, "x", "y", "z"));
    let proof = bed.proof(&payer, CHAT, &bought).await;
    assert_redeemable(&bed.show(&proof, CHAT, &bought).await);
    let underpaid = bed.show(&proof, CHAT, &dearer).await;
    assert_final(&underpaid, &[403]);
    assert_eq!(underpaid.json()["error"]["code"], "underpaid");
    assert_redeemable(&underpaid);
    let elsewhere = bed.show(&proof, OTHER, &cheaper).await;
    assert_final(&elsewhere, &[403]);
    assert_eq!(elsewhere.json()["error"]["code"], "redeem_elsewhere");
    assert_redeemable(&elsewhere);
    let nothing = bed.show(&proof, CHAT, &json!({"max_tokens": 4})).await;
    assert_final(&nothing, &[400]);
    assert_redeemable(&nothing);
    let unknown = bed.show(&proof, CHAT, &common::client::chat("openai/none", "x")).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(bed.served(), 1, "none of these reached the backend");

    let reply = bed.show(&proof, CHAT, &cheaper).await;
    assert_eq!((reply.status, ledger::tokens_in(&reply)), (200, 4), "{}", reply.text());
    for body in [&bought, &cheaper, &dearer] {
        assert_final(&bed.show(&proof, CHAT, body).await, &[403]);
        assert_final(&bed.show(&proof, OTHER, body).await, &[403]);
    }
    assert_eq!(bed.rpc.broadcasts(), 1);
    bed.close(Unseen::default()).await;
}

/// Two models at one price, on two paths that take the same rail and on one that takes another.
fn two_models(options: GateOptions) -> GateOptions {
    let models = options.rules["models.toml"].clone();
    let second = models.replace("[model.\"openai/gpt-oss-120b\"]", "[model.\"openai/second\"]");
    let routes = options.rules["routes.toml"].clone();
    let tiers = options.rules["tiers.toml"].replace("120b\"]", "120b\", \"openai/second\"]");
    let first = chat_at(server::FIRST);
    let twin = routes.split("[[route]]").find(|route| route.contains(&format!("\"{first}\""))).unwrap();
    let twin = twin.replace(&format!("\"{first}\""), &format!("\"{OTHER}\""));
    options
        .rule("models.toml", &format!("{models}\n{second}"))
        .rule("routes.toml", &format!("{routes}\n[[route]]{twin}"))
        .rule("tiers.toml", &tiers)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_by_x402_buys_any_body_and_model_of_its_path_and_nobody_is_asked_to_pay_again() {
    const ELSEWHERE: &str = "/other";
    let chain = EvmBed::start().await;
    let facilitator = Scripted::start(&[&chain.network()]).await;
    let stall = Stall::with(chain, &facilitator.url(), two_models).await;
    let buyer = stall.buyer().await;
    let body = |model: &str, prompt: &str| common::client::chat(model, prompt);
    let bought = body("openai/gpt-oss-120b", "one two");
    let others =
        [body("openai/second", "one two"), body("openai/second", "another"), body("openai/gpt-oss-120b", "another")];
    for next in &others {
        // Before anything is claimed an offer is for its model, its body and its path: nothing is taken for anything else.
        let payment = stall.payment(&buyer, server::FIRST, &bought).await;
        let (settled, served) = (facilitator.count(SETTLE), stall.served());
        assert_challenge(
            &stall.show(server::FIRST, &payment, next).await,
            "invalid_challenge",
            "unclaimed, another body",
        );
        for path in [ELSEWHERE, server::EXACT] {
            assert_challenge(
                &stall.show(path, &payment, &bought).await,
                "invalid_challenge",
                "unclaimed, another path",
            );
        }
        assert_eq!((facilitator.count(SETTLE), stall.served()), (settled, served));

        stall.backend.next(Reply::error(500, "x", "y", "z"));
        let failed = stall.show(server::FIRST, &payment, &bought).await;
        x402_final(&failed, &[502], "upstream_failed", "paid");
        assert_redeemable(&failed);
        for (path, body) in [(ELSEWHERE, &bought), (ELSEWHERE, next), (server::EXACT, &bought), (server::EXACT, next)] {
            let reply = stall.show(path, &payment, body).await;
            x402_final(&reply, &[403], "redeem_elsewhere", path);
            assert_redeemable(&reply);
        }
        assert_eq!((facilitator.count(SETTLE), stall.served()), (settled + 1, served + 1), "taken once, asked once");
        let reply = stall.show(server::FIRST, &payment, next).await;
        assert_eq!((reply.status, reply.header("pontage-model")), (200, next["model"].as_str()), "{}", reply.text());
        for path in [server::FIRST, ELSEWHERE, server::EXACT] {
            for body in [&bought, next] {
                x402_final(&stall.show(path, &payment, body).await, &[403], "payment_spent", path);
            }
        }
        assert_eq!((facilitator.count(SETTLE), stall.served()), (settled + 1, served + 2));
    }
    // Words that are not ours say nothing about a payment that nobody has seen, whatever it is signed for.
    let mut payment = stall.payment(&buyer, server::FIRST, &bought).await;
    payment["accepted"]["extra"]["offer"] = json!("A".repeat(151));
    assert_challenge(&stall.show(server::FIRST, &payment, &bought).await, "invalid_challenge", "not our offer");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_redemptions_at_once_one_is_served() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.backend.next(Reply::error(500, "x", "y", "z"));
    assert_redeemable(&bed.show(&proof, CHAT, &chat()).await);
    bed.backend.tune(|script| script.first_byte = Duration::from_millis(50));
    let bytes = raw::post(CHAT, &[("authorization", &proof)], chat().to_string().as_bytes());
    let replies = futures::future::join_all((0..64).map(|_| raw::exchange(bed.gate.listen, &bytes))).await;
    assert_eq!(replies.iter().filter(|r| r.status == 200).count(), 1);
    for reply in &replies {
        bed.ledger.read(reply);
        if reply.status != 200 {
            assert_final(reply, &[409, 403]);
        }
    }
    assert_eq!((bed.served(), bed.rpc.broadcasts()), (2, 1));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_dies_in_the_middle_is_delivered_in_part_and_says_so() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let token = |i: u64| {
        let event = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-oss-120b", "choices": [{"index": 0, "delta": {"content": format!("tok{i} ")}, "finish_reason": null}]});
        Step::Tokens(1, chunk(format!("data: {event}\n\n").as_bytes()))
    };
    for end in [Step::Reset, Step::Close] {
        let proof = bed.proof(&payer, CHAT, &streamed()).await;
        let mut steps = vec![Step::Bytes(stream_head()), token(0), token(1), token(2), end];
        steps.insert(4, Step::Wait(Duration::from_millis(100)));
        bed.backend.next(Reply::steps(steps));
        let reply = bed.show(&proof, CHAT, &streamed()).await;
        assert_eq!((reply.status, reply.complete), (200, true), "the reply itself ends well: {}", reply.text());
        let text = reply.text();
        assert!(text.contains("tok0 ") && text.contains("tok2 "), "what came is passed on: {text}");
        let error = ledger::events(&text).into_iter().find(|e| e["error"].is_object()).expect("an error event");
        assert_eq!(error["error"]["code"], "upstream_failed");
        assert!(!text.contains("[DONE]"), "an end that did not happen: {text}");
        assert_eq!(ledger::sealed(&text).expect("a receipt")["complete"], false);
        assert_final(&bed.show(&proof, CHAT, &streamed()).await, &[403]);
    }
    let books = bed.close(Unseen::default()).await;
    assert_eq!((books.receipts, books.cut_short), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_its_stream_has_bought_it() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    bed.backend.tune(|script| (script.tokens, script.per_token) = (300, Duration::from_millis(100)));
    let proof = bed.proof(&payer, CHAT, &streamed()).await;
    let mut client = Raw::connect(bed.gate.listen).await;
    client.send(&raw::post(CHAT, &[("authorization", &proof)], streamed().to_string().as_bytes())).await;
    assert!(client.until(b"tok1", SHORT).await);
    drop(client);
    assert!(eventually(SHORT, || async { bed.backend.last().closed_early.is_some() }).await);
    assert!(eventually(SHORT, || async { bed.show(&proof, CHAT, &streamed()).await.status == 403 }).await);
    let produced = bed.backend.tokens_produced();
    let books = bed.close(Unseen { deliveries: 1, tokens: produced, owed: 0 }).await;
    assert_eq!((books.receipts, books.cut_short), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_tells_who_paid_what_for_what_in_its_head_its_block_and_its_seal() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let key = bed.gate.status().await["receipt_key"].as_str().map(str::to_owned);
    for body in [chat(), streamed()] {
        let proof = bed.proof(&payer, CHAT, &body).await;
        let reply = bed.show(&proof, CHAT, &body).await;
        let head = payer::unpack(reply.header("payment-receipt").expect("a receipt"));
        assert_eq!((head["status"].as_str(), head["method"].as_str()), (Some("success"), Some("tempo")));
        assert_eq!(head["challengeId"], payer::unpack(&proof)["challenge"]["id"]);
        assert_eq!((head["charged"].as_str(), head["chargedUsd"].as_str()), (Some("20000"), Some("0.02")));
        let blocks: Vec<Value> = match reply.header("content-type") {
            Some("application/json") => vec![reply.json()["pontage"].clone()],
            _ => ledger::events(&reply.text())
                .into_iter()
                .map(|e| e["pontage"].clone())
                .filter(|b| !b.is_null())
                .collect(),
        };
        assert_eq!(blocks.len(), 1);
        let block = &blocks[0];
        assert_eq!((&block["id"], &block["reference"]), (&head["receiptId"], &head["reference"]));
        assert_eq!((block["pool"].as_str(), block["model"].as_str()), (Some("gpt-oss"), Some("openai/gpt-oss-120b")));
        assert_eq!(block["usage"]["completion_tokens"], 12);
        assert_eq!(block["actual"]["usd"], "0.00000765", "3 prompt tokens and 12 of output, exactly");
        assert_eq!(block["complete"], true);
        let Some(sealed) = reply.text().lines().find_map(|l| l.strip_prefix(": pontage-receipt ").map(str::to_owned))
        else {
            assert!(!reply.text().starts_with("data:"), "a stream without a sealed receipt");
            continue;
        };
        let key = key.as_deref().expect("/status shows the key");
        let (ok, said, complaint) = bed.gate.verb(&["receipt", "verify", "--key", key, &sealed]);
        assert!(ok.success(), "{said}{complaint}");
        assert!(said.contains(head["receiptId"].as_str().unwrap()), "{said}");
        assert!(reply.text().ends_with("data: [DONE]\n\n"), "the receipt stands before [DONE]: {}", reply.text());
    }
    bed.close(Unseen::default()).await;
}
