//! Sessions under faults: whoever fails, whenever, no more is delivered than was signed for, nobody is charged for what did not
//! leave, and what the gate says, what the chain paid out and what the receipts say stay one sum.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Bytes, TxKind, U256};
use alloy::sol_types::SolCall;
use common::backend::Step;
use common::chain::{BETA_USD, PATH_USD};
use common::channels::{
    CHAT, Hidden, INPUT, OUTPUT, SessionBed, assert_challenged, atoms, chat, code, final_receipt, nobody, streamed,
};
use common::reserve::{Event, RESERVE};
use common::wallet::{Channel, Wallet};
use common::{Fault, Raw, Reply, eventually, ledger, raw};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::transaction::Call;

const SHORT: Duration = Duration::from_secs(20);
/// Words of the prompt of [`chat`], which the backend calls its tokens.
const PROMPT: u128 = 3;
const SEND: [&str; 2] = ["eth_sendRawTransactionSync", "eth_sendRawTransaction"];

/// A chat of at most so many output tokens.
fn long(tokens: u64, stream: bool) -> Value {
    let mut body = if stream { streamed() } else { chat() };
    body["max_tokens"] = json!(tokens);
    body
}

/// Words that left in a stream, whole or not.
fn words(text: &str) -> u128 {
    let deltas = ledger::events(text).into_iter().flat_map(|e| e["choices"].as_array().cloned().unwrap_or_default());
    deltas.map(|c| c["delta"]["content"].as_str().unwrap_or("").split_whitespace().count() as u128).sum()
}

fn cost(words: u128) -> u128 {
    PROMPT * INPUT + words * OUTPUT
}

/// What the gate says is spent, once no request of the channel is in progress.
async fn spent_at_rest(bed: &SessionBed, channel: &Channel) -> u128 {
    let id = format!("{:#x}", channel.id);
    let quiet = eventually(SHORT, || async {
        let (_, listed) = bed.gate.admin_get("/channels").await.expect("the admin address answers");
        let all = listed.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is a channel"));
        let free = all.filter(|c| c["id"] == id.as_str()).all(|c| c["leased"] == "0");
        free && bed.gate.metric("pontage_inflight", &[("kind", "streams")]).await == 0.0
    });
    assert!(quiet.await, "a lease is never given back: {}", bed.snapshot(channel).await);
    atoms(&bed.snapshot(channel).await["spent"])
}

/// Begins a stream; what came until `needle`.
async fn begin(bed: &SessionBed, credential: &str, body: &Value) -> Raw {
    let mut raw = Raw::connect(bed.gate.listen).await;
    raw.send(&raw::post(CHAT, &[("authorization", credential)], body.to_string().as_bytes())).await;
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_streams_on_cover_for_three_and_a_half_deliver_no_more_than_was_signed() {
    let bed = SessionBed::open().await;
    bed.backend.tune(|script| {
        script.tokens = 100;
        script.per_token = Duration::from_millis(2);
    });
    let body = long(100, true);
    let (_, start) = bed.offer(CHAT, &body).await;
    let accepted = start * 7 / 2;
    let (channel, _) = bed.channel(1_000_000, 0).await;
    let mut credentials = Vec::new();
    for _ in 0..50 {
        credentials.push(channel.voucher_credential(&bed.offer(CHAT, &body).await.0, accepted));
    }
    let replies = futures::future::join_all(credentials.iter().map(|c| bed.buy(c, &body))).await;
    let (mut delivered, mut served) = (0, 0);
    for reply in &replies {
        match reply.status {
            200 => {
                served += 1;
                let left = words(&reply.text());
                let stated = ledger::events(&reply.text()).into_iter().find_map(|e| e.get("pontage").cloned());
                let stated = stated.unwrap_or_else(|| panic!("no account of it: {}", reply.text()));
                let said = (&stated["usage"]["completion_tokens"], &stated["usage_source"]);
                assert_eq!(said, (&json!(left), &json!("reported")), "{stated}");
                delivered += cost(left);
                assert!(reply.complete, "a stream that is cut still ends as its framing says");
            }
            402 => assert_eq!(code(reply), "insufficient_balance", "{}", reply.text()),
            _ => panic!("{} {}", reply.status, reply.text()),
        }
    }
    let spent = spent_at_rest(&bed, &channel).await;
    assert!(served >= 1 && delivered <= accepted, "{served} streams, {delivered} delivered of {accepted} signed");
    assert_eq!((spent, bed.charged(&channel.id)), (delivered, delivered), "of {accepted}");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_at_any_token_pays_for_what_left_and_no_more() {
    let bed = SessionBed::open().await;
    bed.backend.tune(|script| {
        script.tokens = 400;
        script.per_token = Duration::from_millis(12);
    });
    let body = long(400, true);
    let (channel, _) = bed.channel(1_000_000, 0).await;
    let h2 = {
        common::init();
        reqwest::Client::builder().no_proxy().http2_prior_knowledge().timeout(SHORT).build().unwrap()
    };
    let (mut before, mut gone) = (0, 0);
    for round in 0..16u128 {
        let (offer, start) = bed.offer(CHAT, &body).await;
        let credential = channel.voucher_credential(&offer, before + 2 * start + 5_000);
        let k = round / 2 * 5;
        let until = format!("tok{k} ");
        let seen;
        if round % 2 == 0 {
            let mut stream = begin(&bed, &credential, &body).await;
            if k == 0 {
                // Before anything came: as soon as the backend has the request.
                assert!(eventually(SHORT, || async { bed.served() as u128 > round }).await);
            } else {
                assert!(
                    stream.until(until.trim_end().as_bytes(), SHORT).await,
                    "{:?}",
                    String::from_utf8_lossy(&stream.seen)
                );
            }
            seen = words(&String::from_utf8_lossy(&stream.seen));
            stream.reset();
        } else {
            let request = h2.post(bed.gate.chat_url()).header("content-type", "application/json");
            let reply = request.header("authorization", &credential).body(body.to_string()).send().await.unwrap();
            assert_eq!(reply.status(), 200);
            let (mut stream, mut text) = (reply.bytes_stream(), String::new());
            while !text.contains(until.trim_end()) {
                text.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
            }
            seen = words(&text);
            // The stream is reset, the connection stays.
            drop(stream);
        }
        let closed = eventually(SHORT, || async {
            let last = bed.backend.last();
            last.closed_early.is_some() || last.complete
        });
        assert!(closed.await, "the backend goes on for nobody");
        let produced = u128::from(bed.backend.last().produced);
        let spent = spent_at_rest(&bed, &channel).await;
        let charge = spent - before;
        before = spent;
        gone += u128::from(bed.backend.last().closed_early.is_some());
        assert!(charge <= cost(produced) + 10 * INPUT, "gone at {k}: {charge} charged, {produced} tokens produced");
        assert!(charge >= if seen == 0 { 0 } else { cost(seen) }, "gone at {k}: {charge} charged, {seen} tokens seen");
        // What a second brings at this pace; noticing it takes far less.
        assert!(produced <= seen + 100, "gone at {k}: the backend produced {produced}");
    }
    assert_eq!(gone, 16, "the backend was closed early each time");
    bed.audit(&[&channel], Hidden { receipts: 16, atoms: before }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_before_the_first_word_costs_nothing_and_the_lease_is_given_back() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(1_000_000, 0).await;
    let (mut total, mut sold) = (0, 0);
    let failing = || {
        [
            (Reply::reset(), "reset"),
            (Reply::close(), "closed"),
            (Reply::html(502), "502 in HTML"),
            (Reply::html(200), "HTML with 200"),
            (Reply::error(500, "server_error", "oops", "no"), "500"),
            (Reply::error(429, "rate_limit", "slow", "later"), "429"),
            (Reply::error(400, "invalid_request_error", "bad", "no"), "400"),
            (Reply::status(200, "application/json", "{\"cut"), "half of a JSON"),
            (Reply::broken_stream(Vec::<&str>::new(), Step::Reset), "a head and a reset"),
            (Reply::broken_stream([": ping\n\n"], Step::Close), "a comment and nothing more"),
            (
                Reply::stream(["data: {\"error\":{\"message\":\"x\",\"type\":\"server_error\"}}\n\n"]),
                "an error for a first word",
            ),
        ]
    };
    for stream in [false, true] {
        for (reply, why) in failing() {
            total += 2_000;
            bed.backend.always(reply);
            let answer = bed.buy(&channel.voucher_credential(&offer, total), &long(10, stream)).await;
            bed.backend.always(None);
            assert_eq!(words(&answer.text()), 0, "{why}");
            if answer.status != 200 {
                assert!(
                    answer.status >= 400 && answer.header("www-authenticate").is_none(),
                    "{why}: {}",
                    answer.status
                );
                assert_eq!(answer.header("x-should-retry"), Some("false"), "{why}");
                assert_eq!(answer.json()["payment"]["moved"], "no", "{why}: {}", answer.text());
            }
            // And then one that succeeds, which is all there is to pay; a pool of one server must have it back by then.
            total += 2_000;
            let good = bed.buy(&channel.voucher_credential(&bed.fresh().await, total), &chat()).await;
            assert_eq!(good.status, 200, "{why}: {}", good.text());
            sold += cost(10);
            assert_eq!(spent_at_rest(&bed, &channel).await, sold, "{why}, stream {stream}");
        }
    }
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_dies_in_a_stream_is_paid_what_it_reported() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(1_000_000, 0).await;
    let said = |n: u64, usage: bool| {
        let mut event = json!({"id": "c", "object": "chat.completion.chunk", "model": "gpt-oss-120b",
            "choices": [{"index": 0, "delta": {"content": format!("tok{n} ")}, "finish_reason": null}]});
        if usage {
            event["usage"] = json!({"prompt_tokens": 3, "completion_tokens": n + 1, "total_tokens": n + 4});
        }
        format!("data: {event}\n\n")
    };
    let mut total = 0;
    for (usage, end, want, why) in [
        (true, Step::Reset, cost(4), "reset after four reported tokens"),
        (true, Step::Close, cost(4), "closed after four reported tokens"),
        (false, Step::Reset, 0, "reset with nothing reported"),
    ] {
        let before = spent_at_rest(&bed, &channel).await;
        total += 20_000;
        bed.backend.next(Reply::broken_stream((0..4).map(|n| said(n, usage)), end));
        let reply = bed.buy(&channel.voucher_credential(&offer, total), &long(10, true)).await;
        assert_eq!((reply.status, words(&reply.text())), (200, 4), "{why}: {}", reply.text());
        assert!(!reply.text().contains("[DONE]"), "{why}");
        assert_eq!(spent_at_rest(&bed, &channel).await - before, want, "{why}: {}", reply.text());
    }
    bed.audit(&[&channel], Hidden { receipts: 3, atoms: 3 * cost(4) }).await;
}

/// One event of a stream, with these words.
fn event(text: &str) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "model": "gpt-oss-120b",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

/// How large the last events of an answer are is the payer's to choose (log probabilities): that must not make it free.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_to_be_passed_on_does_not_make_free_what_left_before_it() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(1_000_000, 0).await;
    let events = (0..4).map(|n| event(&format!("tok{n} "))).chain([event(&"x".repeat(9 << 20))]);
    bed.backend.next(Reply::stream(events.collect::<Vec<_>>()));
    let reply = bed.buy(&channel.voucher_credential(&offer, 20_000), &long(10, true)).await;
    assert_eq!((reply.status, words(&reply.text())), (200, 4), "{}", reply.text());
    assert!(reply.text().contains("too large"), "{}", reply.text());
    let spent = spent_at_rest(&bed, &channel).await;
    assert!(spent >= 4 * OUTPUT, "{spent}");
    bed.audit(&[&channel], Hidden { receipts: 0, atoms: 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_events_of_a_backend_never_reach_a_payer() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(100_000, 0).await;
    let usage = json!({"id": "c", "object": "chat.completion.chunk", "model": "gpt-oss-120b", "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}});
    let forged = json!({"channelId": channel.id, "requiredCumulative": "100000", "acceptedCumulative": "0", "deposit": "100000"});
    bed.backend.next(Reply::stream([
        event("one "),
        format!("event: payment-need-voucher\ndata: {forged}\n\n"),
        "event:payment-receipt\ndata: {\"spent\":\"0\"}\n\n".to_owned(),
        format!("data: {forged}\nevent: payment-need-voucher\n\n"),
        format!("event: message\nevent: payment-need-voucher\ndata: {forged}\r\n\r\n"),
        ": pontage-receipt AAAA\n\n".to_owned(),
        event("two "),
        format!("data: {usage}\n\n"),
        "data: [DONE]\n\n".to_owned(),
    ]));
    let reply = bed.buy(&channel.voucher_credential(&offer, 20_000), &long(10, true)).await;
    let text = reply.text();
    assert_eq!((reply.status, words(&text)), (200, 2), "{text}");
    assert!(!text.contains("need-voucher") && !text.contains("AAAA"), "{text}");
    assert_eq!(text.matches("payment-receipt").count(), 1, "{text}");
    assert_eq!(atoms(&final_receipt(&text).expect("our own")["spent"]), cost(2), "{text}");
    assert!(bed.gate.metric("pontage_dropped_frames_total", &[]).await >= 4.0);
    bed.close(&[&channel]).await;
}

/// A gate's channel in the middle of an opening, a top-up or a close when the chain fails in one way or another: the answer has a
/// type, and the same credential, shown until it is taken, does it once.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_chain_does_to_an_opening_a_top_up_or_a_close_it_happens_once() {
    let bed = SessionBed::open().await;
    let faults = || {
        let error = || Fault::Error { code: -32000, message: "node is behind".into() };
        [
            (Fault::Refuse, "refused"),
            (Fault::DropReply, "done, and the answer lost"),
            (Fault::Status(503), "503"),
            (error(), "an error"),
            (Fault::Hang, "hanging"),
            (Fault::HangAfter, "done, and hanging"),
        ]
    };
    let mut channels = Vec::new();
    for (fault, why) in faults() {
        let wallet = bed.wallet().await;
        let offer = bed.fresh().await;
        let channel = wallet.open(&offer, |open| open.deposit = 20_000);
        let once = |credential: String, what: &'static str| {
            let (bed, fault) = (&bed, fault.clone());
            async move {
                for method in SEND {
                    bed.rpc.once(method, fault.clone());
                }
                let done = eventually(Duration::from_secs(45), || async {
                    let reply = bed.manage(&credential).await;
                    let typed = [204, 409, 503].contains(&reply.status);
                    assert!(typed, "{what}, {why}: {} {}", reply.status, reply.text());
                    if reply.status != 204 {
                        assert_eq!(reply.header("x-should-retry"), Some("false"), "{what}, {why}");
                        assert!(reply.header("retry-after").is_some(), "{what}, {why}: {}", reply.text());
                        assert!(
                            reply.header("www-authenticate").is_none(),
                            "{what}, {why}: an invitation to pay again"
                        );
                        bed.rpc.clear();
                    }
                    reply.status == 204
                });
                assert!(done.await, "{what}, {why}: never done");
                bed.rpc.clear();
            }
        };
        once(channel.open_credential(&offer, 20_000), "open").await;
        once(channel.top_up_credential(&offer, 3_000), "top-up").await;
        let bought = bed.buy(&channel.voucher_credential(&bed.fresh().await, 21_000), &chat()).await;
        assert_eq!(bought.status, 200, "{why}: {}", bought.text());
        once(channel.close_credential(&offer, 21_000), "close").await;
        let events = bed.reserve.events(&channel.id).await;
        assert_eq!(events.len(), 3, "{why}: {events:?}");
        assert!(matches!(events[1], Event::TopUp { added: 3_000, deposit: 23_000 }), "{why}: {events:?}");
        channels.push(channel);
    }
    bed.close(&channels.iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_was_decided_and_not_sent_when_the_gate_died_is_opened_once() {
    let mut bed = SessionBed::open().await;
    for (fault, why) in [(Fault::Hang, "never sent"), (Fault::HangAfter, "sent, and the answer never heard")] {
        let wallet = bed.wallet().await;
        let offer = bed.fresh().await;
        let channel = wallet.open(&offer, |open| open.deposit = 50_000);
        let credential = channel.open_credential(&offer, 20_000);
        bed.rpc.forget();
        for method in SEND {
            bed.rpc.always(method, fault.clone());
        }
        let mut raw = begin(&bed, &credential, &chat()).await;
        assert!(eventually(SHORT, || async { bed.rpc.broadcasts() > 0 }).await, "{why}: it is not sent");
        bed.gate.kill();
        assert!(raw.closed(SHORT).await);
        bed.rpc.clear();
        bed.gate.restart().await;
        let served = eventually(Duration::from_secs(40), || async {
            let reply = bed.buy(&credential, &chat()).await;
            assert!([200, 409, 503].contains(&reply.status), "{why}: {} {}", reply.status, reply.text());
            reply.status == 200
        });
        assert!(served.await, "{why}: it never serves");
        let events = bed.reserve.events(&channel.id).await;
        assert!(matches!(events[..], [Event::Opened { deposit: 50_000, .. }]), "{why}: {events:?}");
        let paid_once = bed.charged(&channel.id);
        assert!(paid_once > 0);
        // And the same again is a copy of what was bought.
        assert_eq!(bed.buy(&credential, &chat()).await.status, 402, "{why}");
        let closed = bed.manage(&channel.close_credential(&offer, paid_once)).await;
        assert_eq!(closed.status, 204, "{why}: {}", closed.text());
        assert!(
            matches!(bed.reserve.events(&channel.id).await[..], [_, Event::Closed { settled, .. }] if settled == paid_once)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nothing_is_served_before_the_chain_has_said_how_a_channel_stands() {
    let mut bed = SessionBed::open().await;
    let (channel, _) = bed.channel(50_000, 20_000).await;
    let offer = bed.fresh().await;
    bed.gate.stop().await;
    for method in ["eth_call", "eth_getLogs"] {
        bed.rpc.always(method, Fault::Status(503));
    }
    bed.gate.restart().await;
    let reply = bed.buy(&channel.voucher_credential(&offer, 20_000), &chat()).await;
    assert_eq!((reply.status, code(&reply).as_str()), (503, "chain_unavailable"), "{}", reply.text());
    assert!(reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none());
    // Vouchers are taken all the same: they cost the payer nothing until they are used.
    assert_eq!(bed.manage(&channel.voucher_credential(&offer, 21_000)).await.status, 204);
    assert_eq!(bed.served(), 0);
    bed.rpc.clear();
    let again = channel.voucher_credential(&offer, 21_000);
    let served = eventually(SHORT, || async { bed.buy(&again, &chat()).await.status == 200 });
    assert!(served.await, "the same credential is good once the chain answers");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_who_closes_by_force_in_a_stream_pays_for_it_long_before_he_can_withdraw() {
    let bed = SessionBed::open().await;
    bed.backend.tune(|script| {
        script.tokens = 400;
        script.per_token = Duration::from_millis(40);
    });
    let body = long(400, true);
    let (_, start) = bed.offer(CHAT, &body).await;
    let (channel, _) = bed.channel(1_000_000, 0).await;
    let offer = bed.fresh().await;
    let mut stream = begin(&bed, &channel.voucher_credential(&offer, start + 400 * OUTPUT), &body).await;
    assert!(stream.until(b"tok3", SHORT).await);
    channel.request_close(&bed.reserve.url()).await.unwrap();
    let asked = Instant::now();
    // Nothing new, from the moment it is seen on; the stream ends where its window does.
    let seen = eventually(Duration::from_secs(30), || async {
        let reply = bed.buy(&channel.voucher_credential(&offer, start + 400 * OUTPUT + 100), &chat()).await;
        reply.status == 410
    });
    assert!(seen.await, "a forced close is not seen");
    let rest = stream.reply(Duration::from_secs(60)).await;
    bed.keep(&rest);
    let left = words(&rest.text());
    assert!(left < 400 && rest.complete && !rest.text().contains("[DONE]"), "{left} words");
    let claimed = eventually(Duration::from_secs(60), || async {
        bed.reserve.events(&channel.id).await.iter().any(|e| matches!(e, Event::Closed { .. }))
    });
    assert!(claimed.await, "what was spent is not claimed");
    assert!(asked.elapsed() < Duration::from_secs(300), "a third of the grace period");
    let charged = bed.charged(&channel.id);
    assert!(charged >= cost(left), "{charged} for {left} words");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_top_up_takes_back_a_forced_close_and_the_channel_serves_again() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(50_000, 0).await;
    channel.request_close(&bed.reserve.url()).await.unwrap();
    channel.payer.call(&bed.reserve.url(), channel.top_up_call(5_000)).await.unwrap();
    let credential = channel.voucher_credential(&offer, 20_000);
    let served = eventually(Duration::from_secs(40), || async {
        let reply = bed.buy(&credential, &chat()).await;
        assert!([200, 410].contains(&reply.status), "{}", reply.text());
        reply.status == 200
    });
    assert!(served.await);
    let events = bed.reserve.events(&channel.id).await;
    assert!(events.contains(&Event::CloseCancelled), "{events:?}");
    bed.close(&[&channel]).await;
}

/// Takes back what the reserve may take of a wallet's money; the real one needs no leave.
async fn without_leave(bed: &SessionBed, wallet: &Wallet) {
    let owner = wallet.address.to_string();
    bed.chain.rpc("anvil_impersonateAccount", json!([owner])).await;
    let call = json!([{"from": owner, "to": PATH_USD, "data": leave(0), "gas": "0x1e8480", "feeToken": BETA_USD}]);
    let tx = bed.chain.rpc("eth_sendTransaction", call).await;
    let mined = eventually(SHORT, || async {
        bed.chain.rpc("eth_getTransactionReceipt", json!([tx])).await["status"] == "0x1"
    });
    assert!(mined.await);
    bed.chain.rpc("anvil_stopImpersonatingAccount", json!([owner])).await;
}

fn leave(amount: u128) -> Bytes {
    let spender = RESERVE.parse().unwrap();
    ITIP20::approveCall { spender, amount: U256::from(amount) }.abi_encode().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_of_several_calls_is_tried_as_a_whole_before_anything_is_recorded_or_sent() {
    let bed = SessionBed::open().await;
    let token = |input: Bytes| Call { to: TxKind::Call(PATH_USD.parse().unwrap()), value: U256::ZERO, input };
    let gift: Bytes = ITIP20::transferCall { to: nobody(), amount: U256::from(20_000_000) }.abi_encode().into();
    let (wallet, needy) = (bed.wallet().await, bed.wallet().await);
    without_leave(&bed, &needy).await;
    let sent = bed.rpc.broadcasts();
    for (wallet, before, opens, why) in [
        (&wallet, vec![token(leave(0))], false, "the opening, good by itself, fails after the call before it"),
        (&wallet, vec![token(leave(u128::MAX)), token(gift)], false, "a call before it fails"),
        (&needy, vec![], false, "alone it fails"),
        (&needy, vec![token(leave(u128::MAX))], true, "the opening, bad by itself, works after the call before it"),
    ] {
        let offer = bed.fresh().await;
        let channel = wallet.open(&offer, |open| (open.before, open.gas_limit) = (before, 8_000_000));
        let credential = channel.open_credential(&offer, 0);
        if !opens {
            for _ in 0..2 {
                let reply = bed.manage(&credential).await;
                assert_challenged(&reply, "payment_invalid", why);
                assert!(reply.text().contains("would fail as things stand"), "{why}: {}", reply.text());
            }
            let (_, listed) = bed.gate.admin_get("/channels").await.expect("alive");
            assert_eq!((bed.rpc.broadcasts(), listed.as_str()), (sent, ""), "{why}");
            continue;
        }
        let reply = bed.manage(&credential).await;
        assert_eq!(reply.status, 204, "{why}: {}", reply.text());
        bed.close(&[&channel]).await;
        return;
    }
}
