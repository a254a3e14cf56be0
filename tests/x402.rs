//! x402 from socket to receipt: the published clients, the published facilitator and a chain, with the gate between them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use alloy::primitives::U256;
use common::ledger::events;
use common::paying::on_evm;
use common::x402::stall::{FLAT, PER_TOKEN, server};
use common::x402::takings::{charged, transaction};
use common::x402::{Client, Stall, Takings};
use common::{EvmBed, Facilitator, eventually};
use futures::StreamExt;
use mpp::PrivateKeySigner;
use serde_json::{Value, json};

/// What each buyer has: below a dollar's worth of ceiling nothing is signed that it could not pay.
const PURSE: u128 = 1_000_000;
/// Words of every prompt, and tokens of every answer.
const PROMPT: u128 = 3;
const ANSWER: u128 = 12;
const TEXT: &str = "tok0 tok1 tok2 tok3 tok4 tok5 tok6 tok7 tok8 tok9 tok10 tok11";
/// So many clients at once: each is a process of its own.
const TOGETHER: usize = 4;

/// One purchase: who, where, and whether it streams.
#[derive(Clone, Debug)]
struct Row {
    client: Client,
    server: &'static str,
    stream: bool,
    prompt: String,
}

fn rows() -> Vec<Row> {
    let row = |(at, (client, server, stream))| Row { client, server, stream, prompt: format!("row{at} two three") };
    on_evm().into_iter().enumerate().map(row).collect()
}

impl Row {
    /// Atoms: a flat price, or what the backend's usage costs.
    fn price(&self) -> u128 {
        match self.server {
            server::UPTO => PROMPT * PER_TOKEN + ANSWER * 2 * PER_TOKEN,
            _ => FLAT,
        }
    }

    fn is_v1(&self) -> bool {
        self.client == Client::Legacy
    }

    /// The price is known when the head leaves.
    fn is_told_at_once(&self) -> bool {
        self.server != server::UPTO || !self.stream
    }

    /// Paid through Permit2, which the buyer never approved: it has no native coin to do so.
    fn is_sponsored(&self) -> bool {
        matches!(self.server, server::PERMIT2 | server::UPTO)
    }

    async fn buy(&self, buyer: PrivateKeySigner, stall: &Stall, takings: &Takings) {
        let address = buyer.address().to_string();
        let native = stall.chain.rpc("eth_getBalance", json!([address, "latest"])).await;
        assert_eq!((native, stall.chain.permit2_allowance(&address).await), (json!("0x0"), U256::ZERO), "{self:?}");
        let mut flags = vec![("prompt", self.prompt.as_str())];
        if self.stream {
            flags.push(("stream", "true"));
        }
        let got = self.client.pay(&stall.chain, &buyer, &stall.server(self.server), &flags).await;
        let said = format!("{self:?}: {got:#}");
        assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{said}");
        assert_eq!(text(&got), TEXT, "{said}");

        let payment = got.get("payments").map_or(&got["calls"][1]["payment"], |payments| &payments[0]);
        assert_eq!(payment["x402Version"], if self.is_v1() { 1 } else { 2 }, "{said}");
        let approval = &payment["extensions"]["eip2612GasSponsoring"]["info"]["signature"];
        assert_eq!(approval.is_string(), self.is_sponsored(), "{said}");

        let served = stall.backend.requests().into_iter().filter(|r| r.json()["messages"][0]["content"] == self.prompt);
        assert_eq!(served.count(), 1, "requests that the backend saw: {said}");

        let receipt = settled(stall, got["headers"]["pontage-receipt-id"].as_str().expect(&said)).await;
        assert_eq!(charged(&receipt), self.price(), "{receipt} {said}");
        assert_eq!(stall.chain.usdc(&address).await, PURSE - self.price(), "{said}");
        assert_eq!(receipt["complete"], true, "{receipt} {said}");
        assert_eq!(receipt["usage"]["prompt_tokens"], json!(PROMPT), "{receipt} {said}");
        assert_eq!(receipt["usage"]["completion_tokens"], json!(ANSWER), "{receipt} {said}");
        takings.sold(&receipt);

        let header = if self.is_v1() { "x_payment_response" } else { "payment_response" };
        let told = &got["headers"][header];
        assert_eq!(told.is_object(), self.is_told_at_once(), "{said}");
        if self.is_told_at_once() {
            // As its own SDK reads it; what openai gives its caller is the header.
            let is_read = !matches!(self.client, Client::OpenAi | Client::PyOpenAi);
            assert_eq!((got["receipt"].is_object(), &got["receipt_error"]), (is_read, &Value::Null), "{said}");
            for told in [told, &got["receipt"]].into_iter().filter(|told| !told.is_null()) {
                let network = if self.is_v1() { "base-sepolia".into() } else { stall.chain.network() };
                assert_eq!((&told["success"], &told["network"]), (&json!(true), &json!(network)), "{said}");
                assert_eq!(told["transaction"], json!(transaction(&receipt)), "{said}");
                assert!(told["payer"].as_str().unwrap().eq_ignore_ascii_case(&address), "{said}");
            }
            if !self.is_v1() {
                assert_eq!(told["amount"], json!(self.price().to_string()), "{said}");
            }
        }
    }
}

/// What the client was given to read.
fn text(got: &Value) -> String {
    if let Some(text) = got["text"].as_str() {
        return text.to_owned();
    }
    let raw = got["raw"].as_str().unwrap_or_default();
    match serde_json::from_str::<Value>(raw) {
        Ok(whole) => whole["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned(),
        Err(_) => events(raw).iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect(),
    }
}

/// The receipt of this id once it is settled; until then it says that it is pending, and nothing else.
async fn settled(stall: &Stall, id: &str) -> Value {
    let last = std::sync::Mutex::new(Value::Null);
    let is_settled = eventually(Duration::from_secs(20), || async {
        let reply = stall.get(&format!("/receipts/{id}")).await;
        assert_eq!(reply.status, 200, "{id}: {}", reply.text());
        let receipt = reply.json();
        let standing = receipt["settlement"].clone();
        assert!(standing == "pending" || standing == "settled", "{receipt}");
        *last.lock().unwrap() = receipt;
        standing == "settled"
    });
    assert!(is_settled.await, "not settled in 20 s: {}", last.lock().unwrap());
    last.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_client_pays_what_its_answer_costs_and_holds_a_receipt_of_it() {
    let chain = EvmBed::start().await;
    let facilitator = Facilitator::ts(&chain).await;
    let mut stall = Stall::over(chain, &facilitator.url()).await;
    let takings = Takings::open(&stall).await;
    let rows = rows();
    assert_eq!(rows.len(), 44);
    let mut buyers = Vec::new();
    for row in &rows {
        buyers.push((row, stall.chain.buyer(PURSE).await));
    }
    let buying = futures::stream::iter(buyers);
    buying.for_each_concurrent(TOGETHER, |(row, buyer)| row.buy(buyer, &stall, &takings)).await;
    let asked = facilitator.calls().await;
    assert_eq!(asked.settle, rows.len() as u64, "one settlement for each: {asked:?}");
    takings.close(&mut stall).await;
}
