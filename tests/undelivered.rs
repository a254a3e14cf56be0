//! A payment that bought not one word is not spent: the same credential buys the answer later, and is then spent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::raw::{exchange, post};
use common::{Backend, Chain, Gate, GateOptions, Payer, RawReply, Reply, Script};
use serde_json::json;

const PATH: &str = "/v1/chat/completions";

async fn send(gate: &Gate, body: &str, credential: Option<&str>) -> RawReply {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(credential.map(|c| ("authorization", c)));
    exchange(gate.listen, &post(PATH, &headers, body.as_bytes())).await
}

fn ask(prompt: &str) -> String {
    json!({"model": "openai/gpt-oss-120b", "max_tokens": 5, "stream": true,
        "messages": [{"role": "user", "content": prompt}]})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_before_its_first_word_leaves_the_payment_good() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(GateOptions::new(&chain.url(), &backend.url())).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let error = "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n";
    let role = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    for (pieces, why) in [
        (vec![error], "an error instead of the first event"),
        (vec![": working\n\n", error], "an error after a heartbeat"),
        (vec![role, error], "an error after a role"),
        (vec!["data: [DONE]\n\n"], "only the end"),
        (vec![": working\n\n", "data: [DONE]\n\n"], "a heartbeat and the end"),
        (vec!["data: {\"error\":{\"message\":\"cut\"}}"], "an error without its blank line"),
    ] {
        let body = ask(why);
        let unpaid = send(&gate, &body, None).await;
        assert_eq!(unpaid.status, 402, "{why}: {}", unpaid.text());
        let credential = payer.pay(&unpaid).await;
        backend.next(Reply::stream(&pieces));
        let failed = send(&gate, &body, Some(&credential)).await;
        assert_eq!(failed.status, 502, "{why}: {}", failed.text());
        assert_eq!(failed.json()["payment"]["moved"], "yes", "{why}");
        assert!(failed.json()["payment"]["redeemable_until"].is_string(), "{why}: {}", failed.text());
        assert_eq!(failed.header("x-should-retry"), Some("false"), "{why}");

        let served = send(&gate, &body, Some(&credential)).await;
        assert_eq!(served.status, 200, "{why}: {}", served.text());
        assert!(served.text().contains("tok4"), "{why}: {}", served.text());
        let spent = send(&gate, &body, Some(&credential)).await;
        assert_eq!(spent.status, 403, "{why}: {}", spent.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_one_unfinished_event_is_delivered_once_with_its_receipt() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(GateOptions::new(&chain.url(), &backend.url())).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let body = ask("hi");
    let credential = payer.pay(&send(&gate, &body, None).await).await;
    backend.next(Reply::stream(["data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hello\"}}]}"]));
    let served = send(&gate, &body, Some(&credential)).await;
    assert_eq!(served.status, 200, "{}", served.text());
    assert!(served.text().contains("hello") && served.text().contains(": pontage-receipt "), "{}", served.text());
    assert_eq!(send(&gate, &body, Some(&credential)).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_is_no_answer_to_what_was_asked_leaves_the_payment_good() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(GateOptions::new(&chain.url(), &backend.url())).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let whole = |body| Reply::json(200, &body);
    let word = json!({"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]});
    let chunk = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hello\"}}]}\n\n";
    for (stream, reply, why) in [
        (false, whole(json!({})), "an empty object"),
        (false, whole(json!({"choices": []})), "no choice"),
        (
            false,
            whole(json!({"choices": [{"index": 0, "message": {"content": ""}}]})),
            "a choice without a word or an end",
        ),
        (false, Reply::stream([chunk, "data: [DONE]\n\n"]), "a stream that nobody asked for"),
        (true, whole(word), "one piece instead of a stream"),
    ] {
        let mut body: serde_json::Value = serde_json::from_str(&ask(why)).unwrap();
        body["stream"] = stream.into();
        let body = body.to_string();
        let credential = payer.pay(&send(&gate, &body, None).await).await;
        backend.next(reply);
        let failed = send(&gate, &body, Some(&credential)).await;
        assert_eq!(failed.status, 502, "{why}: {}", failed.text());
        assert!(failed.json()["payment"]["redeemable_until"].is_string(), "{why}: {}", failed.text());
        let served = send(&gate, &body, Some(&credential)).await;
        assert_eq!(served.status, 200, "{why}: {}", served.text());
        assert_eq!(send(&gate, &body, Some(&credential)).await.status, 403, "{why}");
    }
}
