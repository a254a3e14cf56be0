//! The ground the black-box tests stand on, tested without the gate: when this fails, look here first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::aimock::{HELLO, USAGE};
use common::gate::UPSTREAM_KEY;
use common::{
    Aimock, Backend, Chain, DEV, Fault, PATH_USD, Payer, Raw, Reply, RpcProxy, Script, Step, chain, payer, raw,
};
use serde_json::json;

const SHORT: Duration = Duration::from_secs(10);

fn ask(body: &serde_json::Value) -> Vec<u8> {
    raw::post("/v1/chat/completions", &[], body.to_string().as_bytes())
}

#[tokio::test]
async fn the_backend_counts_what_it_sends() {
    let backend = Backend::start(Script::default()).await;
    let plain = raw::exchange(
        backend.addr,
        &ask(&json!({"model": "m", "n": 2, "max_tokens": 5, "messages": [{"role": "user", "content": "a b c"}]})),
    )
    .await;
    assert_eq!(plain.json()["usage"], json!({"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}));
    assert_eq!(plain.json()["choices"][1]["message"]["content"], "tok0 tok1 tok2 tok3 tok4");
    assert_eq!(plain.json()["choices"][0]["finish_reason"], "length");

    let streamed = raw::exchange(
        backend.addr,
        &ask(&json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]})),
    )
    .await;
    assert!(streamed.complete);
    assert!(streamed.text().ends_with("data: [DONE]\n\n"), "{}", streamed.text());
    assert!(
        streamed.text().contains(r#""usage":{"completion_tokens":12,"prompt_tokens":2,"total_tokens":14}"#)
            || streamed.text().contains(r#""total_tokens":14"#)
    );
    assert_eq!(backend.tokens_produced(), 22);
    assert_eq!(backend.usage_reported(), (5, 22));
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test]
async fn a_stream_without_usage_asked_has_none() {
    let backend = Backend::start(Script::default()).await;
    let got = raw::exchange(backend.addr, &ask(&json!({"model": "m", "stream": true, "messages": []}))).await;
    assert!(!got.text().contains("usage"));
    assert_eq!(backend.last().reported, None);
}

#[tokio::test]
async fn scripted_replies_keep_their_bytes() {
    let backend = Backend::start(Script::default()).await;
    backend.next(Reply::stream(["data: {\"a\":1,", "\r\ndata: \"b\":2}\r\n\r\n"]));
    let got = raw::exchange(backend.addr, &ask(&json!({}))).await;
    assert_eq!(got.chunks, vec![b"data: {\"a\":1,".to_vec(), b"\r\ndata: \"b\":2}\r\n\r\n".to_vec()]);

    backend.next(Reply::broken_stream(["data: 1\n\n"], Step::Reset));
    let cut = raw::exchange(backend.addr, &ask(&json!({}))).await;
    assert!(!cut.complete);

    backend.next(Reply::error(429, "rate", "slow_down", "later"));
    assert_eq!(raw::exchange(backend.addr, &ask(&json!({}))).await.status, 429);

    backend.next(Reply::Echo { status: 500 });
    let leak = raw::exchange(backend.addr, &raw::post("/x", &[("authorization", "Bearer s3cret")], b"{}")).await;
    assert!(leak.text().contains("Bearer s3cret"));
}

#[tokio::test]
async fn the_backend_notices_who_leaves_early() {
    let backend = Backend::start(Script { per_token: Duration::from_millis(50), ..Script::default() }).await;
    let mut client = Raw::connect(backend.addr).await;
    client.send(&ask(&json!({"model": "m", "stream": true, "messages": []}))).await;
    assert!(client.until(b"tok2", SHORT).await);
    client.reset();
    assert!(common::eventually(SHORT, || async { backend.last().closed_early.is_some() }).await);
    assert!((3..12).contains(&backend.tokens_produced()), "{}", backend.tokens_produced());
}

#[tokio::test]
async fn gzip_made_by_hand_is_gzip() {
    let packed = common::backend::gzip_stored(b"hello");
    let mut child = std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &packed).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"hello");
}

/// What a seller would say on the wire.
fn challenge(amount: &str) -> String {
    let request = json!({"amount": amount, "currency": PATH_USD, "methodDetails": {"chainId": chain::CHAIN_ID}, "recipient": DEV[1].address});
    let packed = mpp::base64url_encode(request.to_string().as_bytes());
    format!(
        r#"Payment id="abc", realm="127.0.0.1", method="tempo", intent="charge", request="{packed}", expires="2099-01-01T00:00:00Z""#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_signed_in_rust_moves_exactly_its_amount() {
    let chain = Chain::start().await;
    let proxy = RpcProxy::start(&chain.url()).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    assert_eq!(chain.balance(PATH_USD, &payer.address).await, 1_000_000);

    let offer = payer::offer(&[&challenge("20000")], "tempo", "charge");
    assert_eq!(payer::terms(&offer)["amount"], "20000");
    let authorization = payer.authorization(&offer).await;
    let credential = payer::unpack(&authorization);
    assert_eq!(credential["payload"]["type"], "transaction");
    let bent = payer::bend(&authorization, |c| c["payload"]["type"] = json!("hash"));
    assert_eq!(payer::unpack(&bent)["payload"]["type"], "hash");

    // The chain does it, the caller never learns: the outcome that must not be paid twice.
    proxy.once("eth_sendRawTransaction", Fault::DropReply);
    let before = chain.balance(PATH_USD, DEV[1].address).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [credential["payload"]["signature"]]});
    assert!(common::http().post(proxy.url()).json(&call).send().await.is_err());
    assert_eq!(proxy.broadcasts(), 1);
    assert!(common::eventually(SHORT, || async { chain.payments_to(DEV[1].address).await.len() == 1 }).await);
    let paid = &chain.payments_to(DEV[1].address).await[0];
    assert_eq!(paid.amount, 20_000);
    assert!(paid.from.eq_ignore_ascii_case(&payer.address));
    assert_eq!(chain.balance(PATH_USD, DEV[1].address).await - before, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_rpc_breaks_as_told_and_heals() {
    let chain = Chain::start().await;
    let proxy = RpcProxy::start(&chain.url()).await;
    let ask = |limit: u64| {
        let call = json!({"jsonrpc": "2.0", "id": 7, "method": "eth_chainId", "params": []});
        common::http().post(proxy.url()).json(&call).timeout(Duration::from_millis(limit)).send()
    };
    proxy.once("eth_chainId", Fault::Error { code: -32000, message: "no".into() });
    proxy.once("eth_chainId", Fault::Status(503));
    proxy.once("eth_chainId", Fault::Refuse);
    proxy.once("eth_chainId", Fault::Hang);
    let answer: serde_json::Value = ask(5000).await.unwrap().json().await.unwrap();
    assert_eq!(answer["error"]["message"], "no");
    assert_eq!(ask(5000).await.unwrap().status(), 503);
    assert!(ask(5000).await.is_err());
    assert!(ask(200).await.unwrap_err().is_timeout());
    proxy.always("*", Fault::Refuse);
    assert!(ask(5000).await.is_err());
    proxy.clear();
    assert_eq!(ask(5000).await.unwrap().status(), 200);
    assert_eq!(proxy.count("eth_chainId"), 6);

    chain.pause();
    assert!(ask(300).await.unwrap_err().is_timeout());
    chain.resume();
    assert_eq!(ask(5000).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn published_clients_answer_in_one_line() {
    let backend = Backend::start(Script::default()).await;
    let base = format!("{}/v1", backend.url());
    let node =
        common::client::node("openai-plain.mjs", &[("base", &base), ("stream", "true"), ("max_tokens", "3")]).await;
    assert_eq!(node["text"], "tok0 tok1 tok2", "{node}");
    let python = common::client::python("openai_plain.py", &[("base", &base)]).await;
    assert_eq!(python["ok"], true, "{python}");
    let cli = common::client::mppx_cli(&[&format!("{base}/models"), "-s"], DEV[2].key, "http://127.0.0.1:9").await;
    assert!(String::from_utf8_lossy(&cli.stdout).contains("gpt-oss-120b"), "{cli:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn aimock_takes_one_key_and_remembers_what_it_was_asked() {
    let aimock = Aimock::start().await;
    let body = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": HELLO}]});
    let post = async |key: &str| {
        let key = format!("Bearer {key}");
        let bytes = raw::post("/v1/chat/completions", &[("authorization", &key)], body.to_string().as_bytes());
        raw::exchange(aimock.addr(), &bytes).await
    };
    assert_eq!(post("sk-not-this-one").await.status, 401);
    let streamed = post(UPSTREAM_KEY).await;
    assert!(streamed.complete && streamed.text().ends_with("data: [DONE]\n\n"), "{}", streamed.text());
    let usage = format!("\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},", USAGE.0, USAGE.1);
    assert!(streamed.text().contains(&usage), "{}", streamed.text());
    assert_eq!(post(UPSTREAM_KEY).await.body, streamed.body, "two replies to one request are the same bytes");
    let journal = aimock.journal().await;
    assert_eq!(journal.len(), 2, "what came with a wrong key is not in it");
    assert_eq!((journal[0].body(), journal[0].status(), journal[0].interrupted()), (body.clone(), 200, false));
    let addr = aimock.addr();
    drop(aimock);
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "it ends with its test");
}

#[test]
fn the_recorded_charges_are_readable() {
    for name in [
        "charge-pull",
        "charge-push",
        "charge-sponsored",
        "charge-zero-proof",
        "cli-charge",
        "mpp-rs-client",
        "pympp-charge",
    ] {
        let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let recorded: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert!(!recorded["exchanges"].as_array().unwrap_or_else(|| panic!("{name} has no exchanges")).is_empty());
    }
}
