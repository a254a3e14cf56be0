//! Published clients, unmodified, pay the gate on a real chain and get what they paid for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::client::{chat, mppx_cli, node, python};
use common::paying::{CHARGE, Mpp};
use common::{Backend, Chain, DEV, Gate, GateOptions, Ledger, PATH_USD, Payer, Script, Unseen, ledger, payer, raw};
use serde_json::{Value, json};

const PRICE: u128 = 20_000;
/// Of each call below.
const TOKENS: u64 = 5;
const TEXT: &str = "tok0 tok1 tok2 tok3 tok4";

struct Bed {
    chain: Chain,
    backend: Backend,
    gate: Gate,
    ledger: Ledger,
}

async fn bed() -> Bed {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(GateOptions::new(&chain.url(), &backend.url())).await;
    let ledger = Ledger::open(&chain, &backend, DEV[1].address).await;
    Bed { chain, backend, gate, ledger }
}

impl Bed {
    async fn audit(mut self, receipts: &[Value]) {
        for receipt in receipts {
            assert_eq!(receipt["charged"], PRICE.to_string(), "{receipt}");
            self.ledger.sold(receipt, TOKENS);
        }
        self.ledger.audit(&self.chain, &self.backend, &mut self.gate, Unseen::default()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mppx_pays_plain_and_streamed_calls() {
    let bed = bed().await;
    let (url, rpc) = (bed.gate.chat_url(), bed.chain.url());
    let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", DEV[2].key), ("max_tokens", "5")];

    let plain = node("mppx.mjs", &flags).await;
    assert_eq!(plain["status"], 200, "{plain}");
    assert_eq!(plain["text"], TEXT, "{plain}");
    assert_eq!(plain["body"]["usage"]["completion_tokens"], TOKENS);

    let streamed = node("mppx.mjs", &[&flags[..], &[("stream", "true")]].concat()).await;
    assert_eq!(streamed["status"], 200, "{streamed}");
    assert_eq!(streamed["text"], TEXT, "{streamed}");
    assert_eq!(streamed["sse"]["done"], true);
    assert_eq!(streamed["sse"]["after_done"], json!([]));
    assert_eq!(streamed["sse"]["receipts"].as_array().map(Vec::len), Some(1), "{streamed}");

    bed.audit(&[plain["receipt"].clone(), streamed["receipt"].clone()]).await;
}

/// One call of a client: the text it was given to read, and the receipt.
async fn charge(bed: &Bed, client: Mpp, stream: bool) -> (String, Value) {
    let (url, base, rpc) = (bed.gate.chat_url(), bed.gate.base(), bed.chain.url());
    let mut flags = vec![("url", url.as_str()), ("base", &base), ("rpc", &rpc), ("max_tokens", "5")];
    if stream {
        flags.push(("stream", "true"));
    }
    let mut body = chat("openai/gpt-oss-120b", "one two three");
    (body["max_tokens"], body["stream"]) = (json!(TOKENS), json!(stream));
    let body = body.to_string();
    let key = ("key", DEV[2].key);
    let got = match client {
        Mpp::Sdk => node("mppx.mjs", &[&flags[..], &[key]].concat()).await,
        Mpp::OpenAi => node("openai-mppx.mjs", &[&flags[..], &[key]].concat()).await,
        Mpp::AiSdk => node("ai-sdk.mjs", &[&flags[..], &[key]].concat()).await,
        Mpp::Python => python("pympp_charge.py", &[&flags[..], &[("key", DEV[3].key)]].concat()).await,
        Mpp::PyOpenAi => python("openai_pympp.py", &[&flags[..], &[("key", DEV[3].key)]].concat()).await,
        Mpp::Cli => {
            let out = mppx_cli(&[&url, "-J", &body, "-i", "-f"], DEV[2].key, &rpc).await;
            assert!(out.status.success(), "{out:?}");
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            let receipt = said.lines().find_map(|l| l.strip_prefix("payment-receipt: ")).expect("a receipt header");
            return (said.clone(), payer::unpack(receipt));
        }
        Mpp::Crate => {
            let payer = Payer::fresh(&bed.chain, 1_000_000).await;
            let post = |headers: &[(&str, &str)]| raw::post("/v1/chat/completions", headers, body.as_bytes());
            let proof = payer.pay(&raw::exchange(bed.gate.listen, &post(&[])).await).await;
            let paid = raw::exchange(bed.gate.listen, &post(&[("authorization", &proof)])).await;
            return (paid.text(), payer::unpack(paid.header("payment-receipt").expect("a receipt")));
        }
    };
    assert!(got["status"] == 200 || got["ok"] == true, "{client:?} {stream}: {got}");
    let text = match got["text"].as_str() {
        Some(text) => text.to_owned(),
        None => match ledger::events(got["raw"].as_str().expect("text")) {
            events if events.is_empty() => got["raw"].as_str().unwrap().to_owned(),
            events => events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect(),
        },
    };
    let receipt = [&got["headers"]["payment_receipt"], &got["receipt"]].into_iter().find(|r| r.is_object());
    (text, receipt.unwrap_or_else(|| panic!("no receipt: {got}")).clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_client_pays_a_charge_and_reads_its_answer() {
    let bed = bed().await;
    let mut receipts = Vec::new();
    for (client, stream) in CHARGE {
        let (text, receipt) = charge(&bed, client, stream).await;
        assert!(text.contains(TEXT) && !text.contains("tok5"), "{client:?} {stream}: {text}");
        receipts.push(receipt);
        assert_eq!(bed.backend.requests().len(), receipts.len(), "{client:?} {stream}");
    }
    bed.audit(&receipts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_payer_pays_once_and_a_copy_of_its_proof_buys_nothing() {
    let bed = bed().await;
    let payer = Payer::fresh(&bed.chain, 1_000_000).await;
    let mut body = chat("openai/gpt-oss-120b", "one two three");
    body["max_tokens"] = json!(TOKENS);
    let body = body.to_string();
    let unpaid = raw::exchange(bed.gate.listen, &raw::post("/v1/chat/completions", &[], body.as_bytes())).await;
    assert_eq!(unpaid.status, 402, "{}", unpaid.text());
    let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    assert_eq!(payer::terms(&offer)["amount"], PRICE.to_string());
    assert!(payer::terms(&offer)["currency"].as_str().is_some_and(|c| c.eq_ignore_ascii_case(PATH_USD)));

    let proof = payer.pay(&unpaid).await;
    let paying = raw::post("/v1/chat/completions", &[("authorization", &proof)], body.as_bytes());
    let paid = raw::exchange(bed.gate.listen, &paying).await;
    assert_eq!(paid.status, 200, "{}", paid.text());
    assert_eq!(paid.json()["choices"][0]["message"]["content"], TEXT);

    let copy = raw::exchange(bed.gate.listen, &paying).await;
    assert_eq!(copy.status, 403, "{}", copy.text());
    assert!(copy.header("www-authenticate").is_none(), "a spent proof must not be answered with an invitation to pay");
    assert_eq!(copy.header("x-should-retry"), Some("false"));
    let receipt = payer::unpack(paid.header("payment-receipt").expect("a receipt"));
    bed.audit(&[receipt]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_clients_without_a_wallet_are_told_what_to_do_and_do_not_repeat() {
    let bed = bed().await;
    let base = bed.gate.base();
    for got in [node("openai-plain.mjs", &[("base", &base)]).await, python("openai_plain.py", &[("base", &base)]).await]
    {
        assert_eq!(got["error"]["status"], 402, "{got}");
        assert_eq!(got["calls"], 1, "{got}");
        assert!(
            got["error"]["headers"]["www-authenticate"].as_str().is_some_and(|h| h.starts_with("Payment ")),
            "{got}"
        );
        assert!(got["error"]["message"].as_str().is_some_and(|m| m.len() > 20), "{got}");
    }
    bed.audit(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paid_streams_are_readable_by_clients_that_know_nothing_of_payments() {
    let bed = bed().await;
    let base = bed.gate.base();
    let payer = Payer::fresh(&bed.chain, 2_000_000).await;
    // Ends by itself: Python's helper takes an answer that ran into its limit for a failure.
    bed.backend.tune(|script| script.tokens = TOKENS);
    let mut receipts = Vec::new();
    for (script, helper) in
        [("openai-plain.mjs", false), ("openai-plain.mjs", true), ("openai_plain.py", false), ("openai_plain.py", true)]
    {
        let body = json!({"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "one two three"}], "stream": true}).to_string();
        let mut flags = vec![("base", base.as_str()), ("body", body.as_str())];
        if helper {
            flags.push(("helper", "true"));
        }
        let run = async |flags: &[(&str, &str)]| match script.ends_with(".py") {
            true => python(script, flags).await,
            false => node(script, flags).await,
        };
        // Every client writes JSON in its own way: the first, unpaid run gets the offer for exactly these bytes.
        let unpaid = run(&flags).await;
        let offer = unpaid["error"]["headers"]["www-authenticate"].as_str().expect("an offer");
        let proof = payer.authorization(&payer::offer(&[offer], "tempo", "charge")).await;
        flags.push(("authorization", &proof));
        let got = run(&flags).await;
        assert_eq!(got["ok"], true, "{script} helper={helper}: {got}");
        assert_eq!(got["text"], TEXT, "{script} helper={helper}: {got}");
        receipts.push(got["headers"]["payment_receipt"].clone());
    }
    bed.audit(&receipts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_wallet_at_the_same_moment_are_each_paid_and_served() {
    let bed = bed().await;
    let payer = Payer::fresh(&bed.chain, 2_000_000).await;
    let mut body = chat("openai/gpt-oss-120b", "one two three");
    body["max_tokens"] = json!(TOKENS);
    let body = body.to_string();
    let call = || async {
        let unpaid = raw::exchange(bed.gate.listen, &raw::post("/v1/chat/completions", &[], body.as_bytes())).await;
        let proof = payer.pay(&unpaid).await;
        raw::exchange(
            bed.gate.listen,
            &raw::post("/v1/chat/completions", &[("authorization", &proof)], body.as_bytes()),
        )
        .await
    };
    // Had the offers one id, the wallet would sign one transaction for all of them.
    let replies = futures::future::join_all([call(), call(), call()]).await;
    let mut receipts = Vec::new();
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.text());
        receipts.push(payer::unpack(reply.header("payment-receipt").expect("a receipt")));
    }
    bed.audit(&receipts).await;
}
