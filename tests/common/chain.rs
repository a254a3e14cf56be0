//! The local Tempo chain (anvil), questions to it from outside, and a JSON-RPC proxy that breaks on demand.

use std::collections::{HashMap, VecDeque};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// pathUSD, 6 decimals: what the tests pay in.
pub const PATH_USD: &str = "0x20c0000000000000000000000000000000000000";
/// BetaUSD: what accounts made by [`Chain::fund`] pay gas in.
pub const BETA_USD: &str = "0x20c0000000000000000000000000000000000002";
/// Where the fee of every transaction goes.
pub const FEE_MANAGER: &str = "0xfeec000000000000000000000000000000000000";
/// Every SDK takes this id for the public testnet and needs only the RPC URL overridden.
pub const CHAIN_ID: u64 = 42431;

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

/// An account of the public mnemonic `test test … junk`; worthless anywhere else.
#[derive(Clone, Copy, Debug)]
pub struct DevAccount {
    pub address: &'static str,
    pub key: &'static str,
}

/// Dev accounts 0–9. Gas: 0, 1 and 2 pay it in AlphaUSD, BetaUSD and ThetaUSD, the others in pathUSD; the Rust client
/// pays it in the currency of the charge whatever the account prefers. So assert what the payee got, not what a payer
/// lost. By custom: 1 is the payee, 2 pays with Node clients, 3 with Python, 4 with Rust, 5–8 are free.
/// 9 funds fresh accounts.
pub const DEV: [DevAccount; 10] = [
    DevAccount {
        address: "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        key: "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    },
    DevAccount {
        address: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        key: "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    },
    DevAccount {
        address: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        key: "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    },
    DevAccount {
        address: "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
        key: "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    },
    DevAccount {
        address: "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
        key: "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    },
    DevAccount {
        address: "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc",
        key: "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    },
    DevAccount {
        address: "0x976EA74026E726554dB657fA54763abd0C3a0aa9",
        key: "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    },
    DevAccount {
        address: "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955",
        key: "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
    },
    DevAccount {
        address: "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f",
        key: "0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
    },
    DevAccount {
        address: "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
        key: "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
    },
];

/// A TIP-20 `Transfer` log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub token: String,
    pub from: String,
    pub to: String,
    pub amount: u128,
    pub tx: String,
    pub block: u64,
}

/// An anvil of our own, ended by its process id when dropped.
pub struct Chain {
    child: Child,
    pub port: u16,
    paused: std::sync::atomic::AtomicBool,
    reserve: std::sync::atomic::AtomicBool,
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SIGKILL works on a paused process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Chain {
    pub async fn start() -> Self {
        // Block time and mixed mining are required: without both, the block clock stands still between payments and every
        // expiring nonce is refused.
        let (child, port) =
            anvil(CHAIN_ID, &["--network", "tempo", "--hardfork", "T4", "--block-time", "1", "--mixed-mining"]).await;
        let chain = Self { child, port, paused: false.into(), reserve: false.into() };
        // Its first block is of 1970: to a node with nothing newer every expiring nonce is too far off.
        chain.rpc("evm_mine", json!([])).await;
        chain
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stops answering without closing anything (SIGSTOP): calls hang.
    pub fn pause(&self) {
        self.paused.store(true, std::sync::atomic::Ordering::SeqCst);
        let pid = self.child.id();
        super::signal(pid, "STOP");
        // The signal is heard by one thread after the other; until the last has stopped, an answer may still come.
        let stopped = || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the chain is a process of ours");
            threads.flatten().all(|thread| {
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T') || rest.is_empty())
            })
        };
        let begun = std::time::Instant::now();
        while !stopped() {
            assert!(begun.elapsed().as_secs() < 10, "the chain does not stop");
            std::thread::yield_now();
        }
    }

    /// Goes on (SIGCONT).
    pub fn resume(&self) {
        super::signal(self.child.id(), "CONT");
        self.paused.store(false, std::sync::atomic::Ordering::SeqCst);
    }

    /// One JSON-RPC call; panics with the chain's own message.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        rpc(&self.url(), method, params).await.unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// Atoms of `token` held by `address`.
    pub async fn balance(&self, token: &str, address: &str) -> u128 {
        let data = format!("0x70a08231{:0>64}", address.trim_start_matches("0x").to_lowercase());
        quantity(&self.rpc("eth_call", json!([{"to": token, "data": data}, "latest"])).await)
    }

    /// Every TIP-20 transfer to `address` since genesis, any token, oldest first.
    pub async fn transfers_to(&self, address: &str) -> Vec<Transfer> {
        let to = format!("0x{:0>64}", address.trim_start_matches("0x").to_lowercase());
        let logs = self
            .rpc("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest", "topics": [TRANSFER, null, to]}]))
            .await;
        logs.as_array().unwrap().iter().map(transfer).collect()
    }

    /// Transfers of pathUSD to `address`: what a payee was really paid.
    pub async fn payments_to(&self, address: &str) -> Vec<Transfer> {
        self.transfers_to(address).await.into_iter().filter(|t| t.token.eq_ignore_ascii_case(PATH_USD)).collect()
    }

    /// Gives a fresh account exactly `amount` atoms of pathUSD, and gas to spend in another token: what its pathUSD
    /// loses afterwards is what it paid, unless the client insists on pathUSD for gas as the Rust one does.
    pub async fn fund(&self, address: &str, amount: u128) {
        let to = format!("{:0>64}", address.trim_start_matches("0x").to_lowercase());
        for (token, atoms) in [(BETA_USD, 1_000_000_000u128), (PATH_USD, amount)] {
            self.send(DEV[9].address, token, &format!("0xa9059cbb{to}{atoms:064x}")).await;
        }
        // `setUserToken(BetaUSD)` on the fee manager, as the account itself; dev accounts have it from genesis.
        self.rpc("anvil_impersonateAccount", json!([address])).await;
        let token = BETA_USD.trim_start_matches("0x");
        let data = format!("0xe7897444{token:0>64}");
        let call = json!([{"from": address, "to": FEE_MANAGER, "data": data, "gas": "0x1e8480", "feeToken": BETA_USD}]);
        let tx = self.rpc("eth_sendTransaction", call).await;
        self.mined(tx.as_str().unwrap()).await;
        if self.reserve.load(std::sync::atomic::Ordering::SeqCst) {
            super::reserve::approve(self, address).await;
        }
        self.rpc("anvil_stopImpersonatingAccount", json!([address])).await;
        assert_eq!(self.balance(PATH_USD, address).await, amount, "funding left another balance than asked for");
    }

    /// From now on accounts are funded so that the channel reserve may take their money.
    pub(super) fn has_reserve(&self) {
        self.reserve.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// One unsigned call from an account that the chain holds the key of, mined.
    pub(super) async fn send(&self, from: &str, to: &str, data: &str) {
        let call = json!([{"from": from, "to": to, "data": data, "gas": "0x1e8480"}]);
        let tx = self.rpc("eth_sendTransaction", call).await;
        self.mined(tx.as_str().unwrap()).await;
    }

    /// Waits for a transaction and fails if it was reverted.
    pub async fn mined(&self, tx: &str) -> Value {
        for _ in 0..200 {
            let receipt = self.rpc("eth_getTransactionReceipt", json!([tx])).await;
            if !receipt.is_null() {
                assert_eq!(receipt["status"], "0x1", "transaction {tx} was reverted");
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("transaction {tx} was not mined within 10 s");
    }

    /// Sets its clock, and mines a block of that second.
    pub async fn set_time(&self, unix_seconds: u64) {
        self.rpc("anvil_setTime", json!([unix_seconds])).await;
        self.rpc("evm_mine", json!([])).await;
    }

    pub async fn block_number(&self) -> u64 {
        quantity(&self.rpc("eth_blockNumber", json!([])).await) as u64
    }
}

/// An anvil that says it is `chain_id`, and its port. The caller ends it.
pub(super) async fn anvil(chain_id: u64, args: &[&str]) -> (Child, u16) {
    super::require_testbed();
    let found = Command::new(super::testbed().join("anvil-path")).output().expect("testbed/anvil-path does not run");
    assert!(found.status.success(), "no local chain is installed: run `make test` (or `testbed/setup`) first");
    let anvil = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    let mut why = String::new();
    // Another process may take the port between asking and using it; then the next one is tried.
    for _ in 0..4 {
        let port = super::free_port();
        let mut child = Command::new(&anvil)
            .args(["--chain-id", &chain_id.to_string(), "--host", "127.0.0.1", "--port", &port.to_string(), "--quiet"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {anvil}: {e}"));
        let url = format!("http://127.0.0.1:{port}");
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if let Ok(Some(status)) = child.try_wait() {
                why = format!("it ended with {status}");
                break;
            }
            if rpc(&url, "eth_chainId", json!([])).await.is_ok_and(|id| id == format!("{chain_id:#x}")) {
                return (child, port);
            }
            why = "it did not answer within 20 s".into();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    panic!("the local chain does not start: {why}");
}

pub(super) fn transfer(log: &Value) -> Transfer {
    let account = |i: usize| format!("0x{}", &log["topics"][i].as_str().unwrap()[26..]);
    Transfer {
        token: log["address"].as_str().unwrap().to_owned(),
        from: account(1),
        to: account(2),
        amount: quantity(&log["data"]),
        tx: log["transactionHash"].as_str().unwrap().to_owned(),
        block: quantity(&log["blockNumber"]) as u64,
    }
}

/// A hex quantity or 32-byte word that fits in 128 bits.
pub(super) fn quantity(value: &Value) -> u128 {
    let digits = value.as_str().unwrap().trim_start_matches("0x").trim_start_matches('0');
    if digits.is_empty() { 0 } else { u128::from_str_radix(digits, 16).unwrap() }
}

pub(super) async fn rpc(url: &str, method: &str, params: Value) -> Result<Value, String> {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let sent = super::http().post(url).json(&call).timeout(Duration::from_secs(10)).send().await;
    let mut reply: Value = sent.map_err(|e| e.to_string())?.json().await.map_err(|e| e.to_string())?;
    match reply.get("error") {
        Some(error) => Err(error["message"].to_string()),
        None => Ok(reply["result"].take()),
    }
}

/// What goes wrong with a JSON-RPC call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Late, but complete.
    Delay(Duration),
    /// A JSON-RPC error instead of forwarding.
    Error { code: i64, message: String },
    /// An HTTP status instead of forwarding.
    Status(u16),
    /// The connection closes; the chain never hears of the call.
    Refuse,
    /// The chain hears of the call and does it; the caller's connection closes without a reply. The outcome is unknown.
    DropReply,
    /// The chain never hears of it and the caller waits.
    Hang,
    /// The chain does it and the caller waits.
    HangAfter,
    /// Transactions are taken; whatever is asked is answered as things stood so many blocks ago. For every method (`"*"`).
    Behind(u64),
}

#[derive(Default)]
struct Faults {
    calls: Vec<String>,
    once: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Fault>,
}

/// A loopback proxy in front of the chain's RPC: counts calls by method and breaks them as told. `"*"` is every method.
pub struct RpcProxy {
    port: u16,
    faults: Arc<Mutex<Faults>>,
    task: JoinHandle<()>,
}

impl Drop for RpcProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RpcProxy {
    /// `target` is the URL of the chain.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Mutex::new(Faults::default()));
        let (shared, target) = (faults.clone(), target.to_owned());
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            let http = super::http();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        open.spawn(relay(stream, target.clone(), http.clone(), shared.clone()));
                    },
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Self { port, faults, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Breaks the next call of `method`; several queue up.
    pub fn once(&self, method: &str, fault: Fault) {
        self.faults.lock().unwrap().once.entry(method.into()).or_default().push_back(fault);
    }

    /// Breaks every call of `method` until [`Self::clear`].
    pub fn always(&self, method: &str, fault: Fault) {
        self.faults.lock().unwrap().always.insert(method.into(), fault);
    }

    /// Back to health; the counts stay.
    pub fn clear(&self) {
        let mut faults = self.faults.lock().unwrap();
        faults.once.clear();
        faults.always.clear();
    }

    /// Methods called so far, in order; the members of a batch one by one.
    pub fn calls(&self) -> Vec<String> {
        self.faults.lock().unwrap().calls.clone()
    }

    pub fn count(&self, method: &str) -> usize {
        self.calls().iter().filter(|m| *m == method).count()
    }

    /// Raw transactions handed in, by either method.
    pub fn broadcasts(&self) -> usize {
        self.count("eth_sendRawTransaction") + self.count("eth_sendRawTransactionSync")
    }

    /// Forgets the counts.
    pub fn forget(&self) {
        self.faults.lock().unwrap().calls.clear();
    }
}

async fn relay(mut stream: TcpStream, target: String, http: reqwest::Client, faults: Arc<Mutex<Faults>>) {
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let Some(body) = read_post(&mut stream, &mut rest).await else { return };
        let call: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let members = match &call {
            Value::Array(batch) => batch.iter().collect::<Vec<_>>(),
            one => vec![one],
        };
        let methods: Vec<String> = members.iter().filter_map(|m| m["method"].as_str()).map(str::to_owned).collect();
        let fault = {
            let mut faults = faults.lock().unwrap();
            faults.calls.extend(methods.iter().cloned());
            let names = || methods.iter().map(String::as_str).chain(["*"]);
            let queued = names().find_map(|m| faults.once.get_mut(m).and_then(VecDeque::pop_front));
            queued.or_else(|| names().find_map(|m| faults.always.get(m).cloned()))
        };
        match &fault {
            Some(Fault::Refuse) => return,
            Some(Fault::Hang) => return tokio::time::sleep(Duration::from_secs(3600)).await,
            Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Status(status)) => {
                let head = format!("HTTP/1.1 {status} Broken\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(head.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            Some(Fault::Error { code, message }) => {
                let answer =
                    |m: &Value| json!({"jsonrpc": "2.0", "id": m["id"], "error": {"code": code, "message": message}});
                let reply = match &call {
                    Value::Array(batch) => Value::Array(batch.iter().map(answer).collect()),
                    one => answer(one),
                };
                if !answer_json(&mut stream, reply.to_string().as_bytes()).await {
                    return;
                }
                continue;
            }
            Some(Fault::Behind(blocks)) => {
                let reply = match &call {
                    Value::Array(_) => panic!("a batch has no one answer"),
                    one => behind(&target, one, *blocks).await,
                };
                if !answer_json(&mut stream, reply.to_string().as_bytes()).await {
                    return;
                }
                continue;
            }
            Some(Fault::DropReply | Fault::HangAfter) | None => {}
        }
        let sent = http.post(&target).header("content-type", "application/json").body(body).send().await;
        let Ok(reply) = sent else { return };
        let Ok(reply) = reply.bytes().await else { return };
        match fault {
            Some(Fault::DropReply) => return,
            Some(Fault::HangAfter) => return tokio::time::sleep(Duration::from_secs(3600)).await,
            _ => {}
        }
        if !answer_json(&mut stream, &reply).await {
            return;
        }
    }
}

/// What a node says that has not heard of the newest blocks.
async fn behind(target: &str, call: &Value, blocks: u64) -> Value {
    let newest = rpc(target, "eth_blockNumber", json!([])).await.map(|n| quantity(&n) as u64);
    let head = newest.unwrap_or_default().saturating_sub(blocks);
    let (method, mut params) = (call["method"].as_str().unwrap_or_default(), call["params"].clone());
    let known = |block: &Value| block.as_str().is_some_and(|b| b.starts_with("0x")) && quantity(block) as u64 <= head;
    let place = match method {
        "eth_getBlockByNumber" => Some(0),
        "eth_call" | "eth_estimateGas" | "eth_getBalance" => Some(1),
        _ => None,
    };
    if let (Some(place), Some(all)) = (place, params.as_array_mut()) {
        all.resize(all.len().max(place + 1), Value::Null);
        if !known(&all[place]) {
            all[place] = json!(format!("{head:#x}"));
        }
    }
    if method == "eth_getLogs" && !known(&params[0]["toBlock"]) {
        params[0]["toBlock"] = json!(format!("{head:#x}"));
    }
    let said = match method {
        "eth_blockNumber" => Ok(json!(format!("{head:#x}"))),
        _ => rpc(target, method, params).await,
    };
    match said {
        Ok(found) if method == "eth_getTransactionReceipt" && !found.is_null() && !known(&found["blockNumber"]) => {
            json!({"jsonrpc": "2.0", "id": call["id"], "result": null})
        }
        Ok(found) => json!({"jsonrpc": "2.0", "id": call["id"], "result": found}),
        Err(message) => {
            json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": message}})
        }
    }
}

pub async fn answer_json(stream: &mut TcpStream, body: &[u8]) -> bool {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await.is_ok()
}

/// Body of one HTTP/1.1 POST with a length; clients of JSON-RPC always send one.
pub async fn read_post(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut room = [0u8; 16 * 1024];
    loop {
        if let Some(end) = super::backend::find(rest, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).to_lowercase();
            let length: usize = head.lines().find_map(|l| l.strip_prefix("content-length:"))?.trim().parse().ok()?;
            if rest.len() >= end + 4 + length {
                let body = rest[end + 4..end + 4 + length].to_vec();
                rest.drain(..end + 4 + length);
                return Some(body);
            }
        }
        match stream.read(&mut room).await {
            Ok(n) if n > 0 => rest.extend_from_slice(&room[..n]),
            _ => return None,
        }
    }
}
