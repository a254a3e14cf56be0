//! Tempo's channel reserve on a local chain that does not have it: our contract at its address, and a JSON-RPC shim that
//! tells the contract the hash of the transaction that opens a channel, which a contract cannot see.
//!
//! Clients and the gate both talk to [`Reserve::url`]; a [`super::RpcProxy`] may stand in front of it.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use alloy::eips::Decodable2718;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol_types::{SolCall, SolEvent, SolValue};
use serde_json::{Value, json};
use tempo_alloy::contracts::precompiles::ITIP20ChannelReserve as Abi;
use tempo_alloy::primitives::AASigned;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::chain::{self, BETA_USD, Chain, DEV, PATH_USD};

/// Where the reserve lives on every Tempo chain.
pub const RESERVE: &str = "0x4d50500000000000000000000000000000000000";
/// The contract's word for the hash of the running transaction.
const CONTEXT: &str = "0x1";
/// What a batch needs at least; the chain's own estimate is too low for one.
const BATCH_GAS: u128 = 6_000_000;
/// Left in the reserve for ever: its first balance is not what the first payer pays gas for.
const SEED: u128 = 1;

/// What the chain says of a channel; all zero when it is unknown or closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnChain {
    pub settled: u128,
    pub deposit: u128,
    /// Unix seconds, 0 without a request.
    pub close_requested_at: u64,
}

/// What happened to a channel on the chain. Amounts in atoms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Opened { deposit: u128, payer: Address, nonce_hash: B256 },
    TopUp { added: u128, deposit: u128 },
    Settled { cumulative: u128, paid: u128 },
    CloseRequested { grace_end: u64 },
    CloseCancelled,
    Closed { settled: u128, refunded: u128 },
}

pub struct Reserve {
    chain: String,
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reserve {
    /// Plants the contract and starts the shim. From then on [`Chain::fund`] also approves the reserve; the dev accounts
    /// are approved here.
    pub async fn start(chain: &Chain) -> Self {
        chain.rpc("anvil_setCode", json!([RESERVE, code()])).await;
        chain.send(DEV[9].address, PATH_USD, &call_data("a9059cbb", SEED)).await;
        chain.has_reserve();
        futures::future::join_all(DEV.iter().map(|account| approve(chain, account.address))).await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shim = Arc::new(Shim { chain: chain.url(), http: super::http(), one: tokio::sync::Mutex::new(()) });
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        open.spawn(serve(stream, shim.clone()));
                    },
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Self { chain: chain.url(), port, task }
    }

    /// The RPC URL of a chain that has the reserve.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub async fn state(&self, id: &B256) -> OnChain {
        let state = self.view(Abi::getChannelStateCall { channelId: *id }).await;
        OnChain {
            settled: state.settled.to(),
            deposit: state.deposit.to(),
            close_requested_at: u64::from(state.closeRequestedAt),
        }
    }

    /// Any question the contract answers.
    pub async fn view<C: SolCall>(&self, call: C) -> C::Return {
        let data = alloy::hex::encode_prefixed(call.abi_encode());
        let said = chain::rpc(&self.chain, "eth_call", json!([{"to": RESERVE, "data": data}, "latest"])).await;
        let said = said.unwrap_or_else(|e| panic!("the reserve does not answer: {e}"));
        C::abi_decode_returns(&bytes(&said)).expect("an answer in the form of the call")
    }

    /// What happened to this channel since genesis, oldest first.
    pub async fn events(&self, id: &B256) -> Vec<Event> {
        self.logs(id).await.into_iter().map(|(event, _)| event).collect()
    }

    /// The same with the hash of each transaction.
    pub async fn logs(&self, id: &B256) -> Vec<(Event, String)> {
        let filter = json!([{"fromBlock": "0x0", "toBlock": "latest", "address": RESERVE, "topics": [null, id]}]);
        let logs = chain::rpc(&self.chain, "eth_getLogs", filter).await.unwrap();
        logs.as_array().unwrap().iter().map(|l| (event(l), l["transactionHash"].as_str().unwrap().to_owned())).collect()
    }

    /// Atoms of pathUSD locked in all channels together.
    pub async fn locked(&self) -> u128 {
        let data = format!("0x70a08231{:0>64}", &RESERVE[2..]);
        let held = chain::rpc(&self.chain, "eth_call", json!([{"to": PATH_USD, "data": data}, "latest"])).await;
        chain::quantity(&held.unwrap()) - SEED
    }

    /// Makes a pending request to close look `seconds` older than it is: the block clock must not be moved where payments
    /// expire. The contract keeps a channel in one word, the request's time above the two amounts.
    pub async fn age_close_request(&self, id: &B256, seconds: u64) {
        let slot = keccak256((*id, U256::ZERO).abi_encode());
        let word = chain::rpc(&self.chain, "eth_getStorageAt", json!([RESERVE, slot, "latest"])).await.unwrap();
        let word: U256 = word.as_str().unwrap().parse().unwrap();
        assert!((word >> 192) > U256::from(seconds), "no request to close is pending");
        let older = B256::from(word - (U256::from(seconds) << 192));
        chain::rpc(&self.chain, "anvil_setStorageAt", json!([RESERVE, slot, older])).await.unwrap();
    }
}

/// Runtime code of the contract, compiled now unless it is there already.
fn code() -> String {
    super::require_testbed();
    let compiled = Command::new("node").arg(super::testbed().join("reserve/compile.mjs")).output().expect("node");
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "testbed/reserve does not compile: run `testbed/setup` first\n{said}");
    std::fs::read_to_string(String::from_utf8(compiled.stdout).unwrap().trim()).expect("compiled code")
}

/// Lets the reserve take pathUSD from an account whose key the chain holds. The real reserve needs no such thing.
pub(super) async fn approve(chain: &Chain, owner: &str) {
    // Gas in BetaUSD by name: a call of a token would otherwise be paid for in that token.
    let call = json!([{"from": owner, "to": PATH_USD, "data": call_data("095ea7b3", u128::MAX), "gas": "0x1e8480", "feeToken": BETA_USD}]);
    let tx = chain.rpc("eth_sendTransaction", call).await;
    chain.mined(tx.as_str().unwrap()).await;
}

/// A token call about the reserve and one amount.
fn call_data(selector: &str, amount: u128) -> String {
    format!("0x{selector}{:0>64}{amount:064x}", &RESERVE[2..])
}

fn bytes(hex: &Value) -> Bytes {
    hex.as_str().unwrap().parse().unwrap()
}

fn event(log: &Value) -> Event {
    let topics: Vec<B256> = serde_json::from_value(log["topics"].clone()).unwrap();
    let data = alloy::primitives::LogData::new(topics.clone(), bytes(&log["data"])).unwrap();
    match topics[0] {
        Abi::ChannelOpened::SIGNATURE_HASH => {
            let e = Abi::ChannelOpened::decode_log_data(&data).unwrap();
            Event::Opened { deposit: e.deposit.to(), payer: e.payer, nonce_hash: e.expiringNonceHash }
        }
        Abi::TopUp::SIGNATURE_HASH => {
            let e = Abi::TopUp::decode_log_data(&data).unwrap();
            Event::TopUp { added: e.additionalDeposit.to(), deposit: e.newDeposit.to() }
        }
        Abi::Settled::SIGNATURE_HASH => {
            let e = Abi::Settled::decode_log_data(&data).unwrap();
            Event::Settled { cumulative: e.cumulativeAmount.to(), paid: e.deltaPaid.to() }
        }
        Abi::CloseRequested::SIGNATURE_HASH => {
            let e = Abi::CloseRequested::decode_log_data(&data).unwrap();
            Event::CloseRequested { grace_end: e.closeGraceEnd.to() }
        }
        Abi::CloseRequestCancelled::SIGNATURE_HASH => Event::CloseCancelled,
        Abi::ChannelClosed::SIGNATURE_HASH => {
            let e = Abi::ChannelClosed::decode_log_data(&data).unwrap();
            Event::Closed { settled: e.settledToPayee.to(), refunded: e.refundedToPayer.to() }
        }
        other => panic!("the reserve has no event {other}"),
    }
}

/// The shim. One opening transaction at a time, because the contract has one word for the hash.
struct Shim {
    chain: String,
    http: reqwest::Client,
    one: tokio::sync::Mutex<()>,
}

async fn serve(mut stream: TcpStream, shim: Arc<Shim>) {
    let mut rest = Vec::new();
    while let Some(body) = chain::read_post(&mut stream, &mut rest).await {
        let call: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let reply = match &call {
            Value::Array(batch) => {
                let mut replies = Vec::new();
                for one in batch {
                    match shim.answer(one).await {
                        Some(reply) => replies.push(reply),
                        None => return,
                    }
                }
                Value::Array(replies)
            }
            one => match shim.answer(one).await {
                Some(reply) => reply,
                None => return,
            },
        };
        if !chain::answer_json(&mut stream, reply.to_string().as_bytes()).await {
            return;
        }
    }
}

impl Shim {
    async fn answer(&self, call: &Value) -> Option<Value> {
        let method = call["method"].as_str().unwrap_or_default();
        let params = &call["params"][0];
        match method {
            "eth_sendRawTransaction" | "eth_sendRawTransactionSync" => match opening(params) {
                Some(hash) => self.open(call, hash).await,
                None => self.forward(call).await,
            },
            "eth_estimateGas" | "eth_fillTransaction" => {
                let mut reply = self.forward(call).await?;
                if params["calls"].as_array().is_some_and(|calls| calls.len() > 1) {
                    let gas = match method {
                        "eth_estimateGas" => reply.get_mut("result"),
                        _ => reply.get_mut("result").and_then(|r| r.get_mut("tx")).and_then(|tx| tx.get_mut("gas")),
                    };
                    if let Some(gas) = gas.filter(|gas| gas.is_string()) {
                        *gas = json!(format!("{:#x}", chain::quantity(gas).max(BATCH_GAS)));
                    }
                }
                Some(reply)
            }
            _ => self.forward(call).await,
        }
    }

    /// Tells the contract the hash for as long as this transaction runs.
    async fn open(&self, call: &Value, hash: B256) -> Option<Value> {
        let _one = self.one.lock().await;
        self.context(hash).await;
        let reply = self.forward(call).await;
        // With the other method the chain has run it already when it answers.
        if call["method"] == "eth_sendRawTransaction"
            && let Some(tx) = reply.as_ref().and_then(|r| r["result"].as_str())
        {
            super::eventually(Duration::from_secs(5), || async {
                let receipt = chain::rpc(&self.chain, "eth_getTransactionReceipt", json!([tx])).await;
                receipt.is_ok_and(|receipt| !receipt.is_null())
            })
            .await;
        }
        self.context(B256::ZERO).await;
        reply
    }

    async fn context(&self, hash: B256) {
        let _ = chain::rpc(&self.chain, "anvil_setStorageAt", json!([RESERVE, CONTEXT, hash])).await;
    }

    async fn forward(&self, call: &Value) -> Option<Value> {
        let body = call.to_string();
        let sent = self.http.post(&self.chain).header("content-type", "application/json").body(body).send().await;
        sent.ok()?.json().await.ok()
    }
}

/// The hash that identifies the channel, if this raw transaction opens one. A sponsor's signature is no part of it.
fn opening(raw: &Value) -> Option<B256> {
    let raw: Bytes = raw.as_str()?.parse().ok()?;
    let signed = AASigned::decode_2718(&mut raw.as_ref()).ok()?;
    let reserve: Address = RESERVE.parse().unwrap();
    let opens = |call: &tempo_alloy::primitives::transaction::Call| {
        call.to.to() == Some(&reserve) && call.input.starts_with(&Abi::openCall::SELECTOR)
    };
    if !signed.tx().calls.iter().any(opens) {
        return None;
    }
    let (sender, _) = signed.recover_signer_with_expiring_nonce_hash().ok()?;
    Some(signed.expiring_nonce_hash(sender))
}
