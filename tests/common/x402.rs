//! What x402 stands on, local and real: a chain that says it is Base Sepolia (or any other EVM chain) with doubles of the
//! token, Permit2 and the x402 proxies at their well-known addresses, and the published TypeScript facilitator in front of it.
//!
//! ```ignore
//! let bed = EvmBed::start().await;
//! let facilitator = Facilitator::ts(&bed).await;
//! let buyer = bed.buyer(1_000_000).await;
//! let payment = bed.authorize(&buyer, &requirements, |_| ());     // body of PAYMENT-SIGNATURE, before base64
//! assert_eq!(bed.usdc(bed.payee()).await, 0);
//! ```
//!
//! Atoms everywhere; addresses with or without checksum.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::SignerSync;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use base64::Engine as _;
use mpp::PrivateKeySigner;
use serde_json::{Value, json};

use super::chain::{self, DEV, Transfer};

pub const PERMIT2: &str = "0x000000000022D473030F116dDEE9F6B43aC78BA3";
pub const EXACT_PROXY: &str = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001";
pub const UPTO_PROXY: &str = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002";
const MULTICALL3: &str = "0xcA11bde05977b3631167028862bE2a173976CA11";
const VALIDATOR_6492: &str = "0xdAcD51A54883eb67D95FAEb2BBfdC4a9a6BD2a3B";
const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
/// A facilitator that takes longer to start than this has failed.
const START: Duration = Duration::from_secs(60);

/// Chain id, the v1 name where one exists, native USDC, and the token's name in typed data (its version is "2").
const CHAINS: [(u64, Option<&str>, &str, &str); 4] = [
    (84532, Some("base-sepolia"), "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
    (8453, Some("base"), "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin"),
    (137, Some("polygon"), "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin"),
    (42161, None, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin"),
];

alloy::sol! {
    /// What a buyer signs under EIP-3009; a test may change any of it first.
    #[derive(Debug)]
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
    struct CancelAuthorization {
        address authorizer;
        bytes32 nonce;
    }

    function mint(address to, uint256 atoms) external;
    function transfer(address to, uint256 atoms) external returns (bool);
    function balanceOf(address owner) external view returns (uint256);
    function authorizationState(address from, bytes32 nonce) external view returns (bool);
    function nonceBitmap(address owner, uint256 word) external view returns (uint256);
    function allowance(address owner, address spender) external view returns (uint256);
    function approve(address spender, uint256 atoms) external returns (bool);
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) external;
    function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes memory signature) external;
}

/// A local EVM chain with everything that x402 needs on it; its process is ended by id when dropped.
pub struct EvmBed {
    child: Child,
    pub port: u16,
    pub chain_id: u64,
    /// Native USDC of that chain.
    pub usdc: &'static str,
    /// The token's name in typed data.
    pub token_name: &'static str,
    /// What v1 calls the chain.
    pub v1_name: Option<&'static str>,
}

impl Drop for EvmBed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl EvmBed {
    /// As Base Sepolia.
    pub async fn start() -> Self {
        Self::start_as(84532).await
    }

    /// As one of Base Sepolia (84532), Base (8453), Polygon (137), Arbitrum (42161).
    pub async fn start_as(chain_id: u64) -> Self {
        let known = CHAINS.iter().find(|(id, ..)| *id == chain_id);
        let &(_, v1_name, usdc, token_name) = known.unwrap_or_else(|| panic!("chain {chain_id} is not known here"));
        let (child, port) = chain::anvil(chain_id, &["--block-time", "1", "--mixed-mining"]).await;
        let bed = Self { child, port, chain_id, usdc, token_name, v1_name };
        let code = code();
        for (address, contract) in [
            (usdc, "LocalUSDC"),
            (PERMIT2, "LocalPermit2"),
            (EXACT_PROXY, "LocalExactProxy"),
            (UPTO_PROXY, "LocalUptoProxy"),
            (MULTICALL3, "LocalMulticall3"),
            (VALIDATOR_6492, "LocalValidator6492"),
        ] {
            bed.rpc("anvil_setCode", json!([address, code[contract]])).await;
        }
        bed
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `eip155:84532`.
    pub fn network(&self) -> String {
        format!("eip155:{}", self.chain_id)
    }

    /// Signs and pays gas for the facilitator: dev account 0.
    pub fn facilitator(&self) -> &'static str {
        DEV[0].address
    }

    /// By custom: dev account 1.
    pub fn payee(&self) -> &'static str {
        DEV[1].address
    }

    /// One JSON-RPC call; panics with the chain's own message.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        chain::rpc(&self.url(), method, params).await.unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// What a seller asks for under `exact` with EIP-3009, in the words of v2.
    pub fn requirements(&self, atoms: u128) -> Value {
        json!({
            "scheme": "exact", "network": self.network(), "amount": atoms.to_string(), "asset": self.usdc,
            "payTo": self.payee(), "maxTimeoutSeconds": 300, "extra": {"name": self.token_name, "version": "2"},
        })
    }

    /// A fresh account with so much USDC, no native coin and no approvals: a buyer pays no gas in x402.
    pub async fn buyer(&self, atoms: u128) -> PrivateKeySigner {
        let signer = PrivateKeySigner::random();
        self.fund(&signer.address().to_string(), atoms).await;
        signer
    }

    /// Mints USDC.
    pub async fn fund(&self, address: &str, atoms: u128) {
        let call = mintCall { to: account(address), atoms: U256::from(atoms) };
        self.send(DEV[9].address, self.usdc, call).await;
    }

    /// Atoms of USDC held.
    pub async fn usdc(&self, address: &str) -> u128 {
        self.view(self.usdc, balanceOfCall { owner: account(address) }).await.to()
    }

    /// Has this EIP-3009 nonce been used or cancelled?
    pub async fn authorization_state(&self, from: &str, nonce: B256) -> bool {
        self.view(self.usdc, authorizationStateCall { from: account(from), nonce }).await
    }

    /// Has this Permit2 nonce been used?
    pub async fn permit2_nonce_used(&self, owner: &str, nonce: U256) -> bool {
        let word = self.view(PERMIT2, nonceBitmapCall { owner: account(owner), word: nonce >> 8 }).await;
        word.bit(nonce.byte(0).into())
    }

    /// What Permit2 may take of the owner's USDC.
    pub async fn permit2_allowance(&self, owner: &str) -> U256 {
        self.view(self.usdc, allowanceCall { owner: account(owner), spender: account(PERMIT2) }).await
    }

    /// Lets Permit2 take any amount, as a buyer with native coin would; without this `permit2` needs the EIP-2612 extension.
    pub async fn approve_permit2(&self, owner: &str) {
        self.as_account(owner, self.usdc, approveCall { spender: account(PERMIT2), atoms: U256::MAX }).await;
    }

    /// Every transfer of USDC after block `since`, oldest first. Minting is a transfer from address zero.
    pub async fn transfers(&self, since: u64) -> Vec<Transfer> {
        let from = format!("{:#x}", since + 1);
        let filter = json!([{"fromBlock": from, "toBlock": "latest", "address": self.usdc.to_lowercase(), "topics": [TRANSFER]}]);
        self.rpc("eth_getLogs", filter).await.as_array().unwrap().iter().map(chain::transfer).collect()
    }

    pub async fn block_number(&self) -> u64 {
        chain::quantity(&self.rpc("eth_blockNumber", json!([])).await) as u64
    }

    /// Moves the chain's clock forward. A facilitator also looks at its own clock, which does not move.
    pub async fn travel(&self, seconds: u64) {
        self.rpc("evm_increaseTime", json!([seconds])).await;
        self.rpc("evm_mine", json!([])).await;
    }

    /// Takes all USDC away from an account, whoever has its key: between verify and settle a buyer may do the same.
    pub async fn drain(&self, address: &str) {
        let atoms = U256::from(self.usdc(address).await);
        self.as_account(address, self.usdc, transferCall { to: account(DEV[8].address), atoms }).await;
    }

    /// The buyer makes an authorization worthless before somebody uses it.
    pub async fn cancel_authorization(&self, buyer: &PrivateKeySigner, nonce: B256) {
        let authorizer = buyer.address();
        let signature = sign(buyer, &CancelAuthorization { authorizer, nonce }, &self.domain());
        self.send(DEV[7].address, self.usdc, cancelAuthorizationCall { authorizer, nonce, signature }).await;
    }

    /// Signs what `requirements` ask for, after `change`, as the v2 payment that goes into PAYMENT-SIGNATURE.
    /// Money in `exact` over EIP-3009 only.
    pub fn authorize(
        &self,
        buyer: &PrivateKeySigner,
        requirements: &Value,
        change: impl FnOnce(&mut TransferWithAuthorization),
    ) -> Value {
        let text = |name: &str| requirements[name].as_str().unwrap_or_else(|| panic!("requirements without {name}"));
        let lifetime = requirements["maxTimeoutSeconds"].as_u64().unwrap();
        let mut signed = TransferWithAuthorization {
            from: buyer.address(),
            to: account(text("payTo")),
            value: text("amount").parse().unwrap(),
            validAfter: U256::ZERO,
            validBefore: U256::from(now() + lifetime),
            nonce: B256::random(),
        };
        change(&mut signed);
        let signature = sign(buyer, &signed, &self.domain());
        json!({"x402Version": 2, "accepted": requirements, "payload": {
            "signature": signature,
            "authorization": {
                "from": signed.from, "to": signed.to, "value": signed.value.to_string(),
                "validAfter": signed.validAfter.to_string(), "validBefore": signed.validBefore.to_string(),
                "nonce": signed.nonce,
            },
        }})
    }

    /// Anybody may carry an EIP-3009 payment to the chain: here somebody who is neither buyer, seller nor facilitator does.
    /// `payment` as [`Self::authorize`] made it, or of v1. Returns the hash of the transaction.
    pub async fn front_run(&self, payment: &Value) -> String {
        let signed = &payment["payload"]["authorization"];
        let text = |name: &str| signed[name].as_str().unwrap_or_else(|| panic!("authorization without {name}"));
        let call = transferWithAuthorizationCall {
            from: account(text("from")),
            to: account(text("to")),
            value: text("value").parse().unwrap(),
            validAfter: text("validAfter").parse().unwrap(),
            validBefore: text("validBefore").parse().unwrap(),
            nonce: text("nonce").parse().unwrap(),
            signature: payment["payload"]["signature"].as_str().unwrap().parse().unwrap(),
        };
        self.send(DEV[7].address, self.usdc, call).await
    }

    /// Typed data of the token.
    pub fn domain(&self) -> Eip712Domain {
        Eip712Domain {
            name: Some(self.token_name.into()),
            version: Some("2".into()),
            chain_id: Some(U256::from(self.chain_id)),
            verifying_contract: Some(account(self.usdc)),
            salt: None,
        }
    }

    async fn view<C: SolCall>(&self, to: &str, call: C) -> C::Return {
        let data = Bytes::from(call.abi_encode());
        let said = self.rpc("eth_call", json!([{"to": to, "data": data}, "latest"])).await;
        let said: Bytes = said.as_str().unwrap().parse().unwrap();
        C::abi_decode_returns(&said).expect("an answer in the form of the call")
    }

    /// A transaction of an account that the chain holds the key of, mined; its hash.
    async fn send<C: SolCall>(&self, from: &str, to: &str, call: C) -> String {
        let data = Bytes::from(call.abi_encode());
        let tx =
            self.rpc("eth_sendTransaction", json!([{"from": from, "to": to, "data": data, "gas": "0x7a120"}])).await;
        let tx = tx.as_str().unwrap().to_owned();
        let end = Instant::now() + Duration::from_secs(10);
        let receipt = loop {
            let receipt = self.rpc("eth_getTransactionReceipt", json!([tx])).await;
            if !receipt.is_null() {
                break receipt;
            }
            assert!(Instant::now() < end, "transaction {tx} was not mined within 10 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(receipt["status"], "0x1", "transaction {tx} was reverted");
        tx
    }

    /// The same of any account, with gas from nowhere.
    async fn as_account<C: SolCall>(&self, who: &str, to: &str, call: C) -> String {
        self.rpc("anvil_impersonateAccount", json!([who])).await;
        self.rpc("anvil_setBalance", json!([who, "0xde0b6b3a7640000"])).await;
        let tx = self.send(who, to, call).await;
        self.rpc("anvil_setBalance", json!([who, "0x0"])).await;
        self.rpc("anvil_stopImpersonatingAccount", json!([who])).await;
        tx
    }
}

/// A payment as it stands in a header.
pub fn encode(payment: &Value) -> String {
    base64::engine::general_purpose::STANDARD.encode(payment.to_string())
}

/// What a header of x402 says.
pub fn decode(header: &str) -> Value {
    let bytes = base64::engine::general_purpose::STANDARD.decode(header).expect("base64 in the standard alphabet");
    serde_json::from_slice(&bytes).expect("JSON in base64")
}

fn sign(key: &PrivateKeySigner, data: &impl SolStruct, domain: &Eip712Domain) -> Bytes {
    key.sign_hash_sync(&data.eip712_signing_hash(domain)).unwrap().as_bytes().to_vec().into()
}

fn account(address: &str) -> Address {
    address.parse().unwrap_or_else(|e| panic!("{address}: {e}"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Contract name to runtime code, compiled now unless it is there already.
fn code() -> Value {
    super::require_testbed();
    let compiled = Command::new("node").arg(folder().join("compile.mjs")).output().expect("node");
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "testbed/x402 does not compile: run `testbed/setup` first\n{said}");
    let path = String::from_utf8(compiled.stdout).unwrap();
    serde_json::from_slice(&std::fs::read(path.trim()).expect("compiled code")).unwrap()
}

fn require_packages() {
    assert!(
        folder().join("node_modules/.ready").exists(),
        "the x402 packages are not installed: run `make test` (or `testbed/setup`) first"
    );
}

fn folder() -> PathBuf {
    super::testbed().join("x402")
}

/// A script of `testbed/x402` that serves until it is dropped: its first line is JSON and names its `url`.
struct Served {
    child: Child,
    said: Value,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    async fn start(script: &str, flags: &[(&str, &str)]) -> Self {
        require_packages();
        let mut command = Command::new("node");
        command.arg(folder().join(script));
        for (name, value) in flags {
            command.args([&format!("--{name}"), *value]);
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start node: {e}"));
        let (say, said) = mpsc::channel();
        let out = child.stdout.take().expect("piped");
        // To its end, for a full pipe would stop it.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        let mut served = Self { child, said: Value::Null };
        let first = tokio::task::spawn_blocking(move || said.recv_timeout(START)).await.unwrap();
        let first = first.unwrap_or_else(|why| panic!("{script} does not start: {why}"));
        served.said = serde_json::from_str(&first).unwrap_or_else(|e| panic!("{script} said {first}: {e}"));
        served
    }

    fn url(&self) -> String {
        self.said["url"].as_str().expect("a url").to_owned()
    }
}

/// The published TypeScript facilitator over a local chain. `GET /calls` counts what it was asked.
pub struct Facilitator {
    served: Served,
}

/// What a facilitator was asked since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub supported: u64,
    pub verify: u64,
    pub settle: u64,
}

impl Facilitator {
    /// v2 `exact` and `upto`, v1 `exact`, gas sponsoring over EIP-2612.
    pub async fn ts(bed: &EvmBed) -> Self {
        let rpc = bed.url();
        let chain = bed.chain_id.to_string();
        let flags = [("rpc", rpc.as_str()), ("chain", &chain), ("key", DEV[0].key)];
        Self { served: Served::start("facilitator.mjs", &flags).await }
    }

    /// The same, and `exact` on Solana.
    pub async fn ts_with(bed: &EvmBed, svm: &SvmBed) -> Self {
        let (rpc, chain, solana, payer) = (bed.url(), bed.chain_id.to_string(), svm.url(), svm.said("fee_payer_key"));
        let flags =
            [("rpc", rpc.as_str()), ("chain", &chain), ("key", DEV[0].key), ("svm", &solana), ("svm_key", &payer)];
        Self { served: Served::start("facilitator.mjs", &flags).await }
    }

    pub fn url(&self) -> String {
        self.served.url()
    }

    pub async fn calls(&self) -> Calls {
        let said: Value =
            super::http().get(format!("{}/calls", self.url())).send().await.unwrap().json().await.unwrap();
        let count = |name: &str| said[name].as_u64().unwrap();
        Calls { supported: count("supported"), verify: count("verify"), settle: count("settle") }
    }

    /// `verify` or `settle` with a v2 payment against what it claims to accept, or against other `requirements`.
    pub async fn ask(&self, what: &str, payment: &Value, requirements: &Value) -> Value {
        let body = json!({
            "x402Version": payment["x402Version"], "paymentPayload": payment, "paymentRequirements": requirements,
        });
        super::client::post_json(&format!("{}/{what}", self.url()), &[], &body).await.json().await.unwrap()
    }

    pub async fn supported(&self) -> Value {
        super::http().get(format!("{}/supported", self.url())).send().await.unwrap().json().await.unwrap()
    }
}

/// A real Solana runtime that says it is devnet, with its USDC; no slot passes without a transaction.
pub struct SvmBed {
    served: Served,
}

/// An account on Solana with USDC and no SOL: the facilitator pays the fees.
#[derive(Clone, Debug)]
pub struct SvmBuyer {
    pub address: String,
    /// 32 bytes of hex.
    pub key: String,
    /// Where its USDC lies.
    pub tokens: String,
}

impl SvmBed {
    pub async fn start() -> Self {
        Self { served: Served::start("svm.mjs", &[]).await }
    }

    pub fn url(&self) -> String {
        self.served.url()
    }

    /// `solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1`.
    pub fn network(&self) -> String {
        self.said("network")
    }

    /// USDC of devnet.
    pub fn mint(&self) -> String {
        self.said("mint")
    }

    /// Has an account for USDC, and nothing in it at the start.
    pub fn payee(&self) -> String {
        self.said("payee")
    }

    pub fn fee_payer(&self) -> String {
        self.said("fee_payer")
    }

    fn said(&self, name: &str) -> String {
        self.served.said[name].as_str().unwrap_or_else(|| panic!("svm.mjs did not say {name}")).to_owned()
    }

    /// One JSON-RPC call; panics with the runtime's own message.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        chain::rpc(&self.url(), method, params).await.unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    pub async fn buyer(&self, atoms: u128) -> SvmBuyer {
        let key = alloy::hex::encode(B256::random());
        let made = self.rpc("bed_account", json!([key, atoms.to_string()])).await;
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        SvmBuyer { address: text("address"), tokens: text("tokens"), key }
    }

    /// Atoms of USDC that an owner holds.
    pub async fn usdc(&self, owner: &str) -> u128 {
        self.rpc("bed_atoms", json!([owner])).await.as_str().unwrap().parse().unwrap()
    }

    /// Lamports.
    pub async fn lamports(&self, address: &str) -> u64 {
        self.rpc("getBalance", json!([address])).await["value"].as_u64().unwrap()
    }

    /// Transactions signed so far and not sent yet become too old.
    pub async fn expire(&self) {
        self.rpc("bed_expire", json!([])).await;
    }
}

/// A seller that is not the gate: v1 and v2 on every path, paid before the answer. What it asks for, in atoms:
/// [`Reference::PRICE`] under `exact`; under `upto` [`Reference::METERED`] of a higher ceiling.
pub struct Reference {
    served: Served,
}

impl Reference {
    pub const PRICE: u128 = 2_000;
    pub const METERED: u128 = 1_234;

    /// Behind the facilitator at this URL.
    pub async fn start(bed: &EvmBed, facilitator: &str) -> Self {
        let chain = bed.chain_id.to_string();
        let flags = [("facilitator", facilitator), ("pay_to", bed.payee()), ("chain", &chain)];
        Self { served: Served::start("reference.mjs", &flags).await }
    }

    /// The same, and `exact` on Solana.
    pub async fn start_with(bed: &EvmBed, svm: &SvmBed, facilitator: &str) -> Self {
        let (chain, payee) = (bed.chain_id.to_string(), svm.payee());
        let flags = [("facilitator", facilitator), ("pay_to", bed.payee()), ("chain", &chain), ("svm_pay_to", &payee)];
        Self { served: Served::start("reference.mjs", &flags).await }
    }

    pub fn url(&self) -> String {
        self.served.url()
    }
}

/// The published clients of x402 as child processes. Each takes a chain to sign for and a key with money on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// npm @x402/fetch: v2, and v1 where nothing else is offered.
    Fetch,
    /// npm x402-fetch 1.2: v1 only, from the body of the 402.
    Legacy,
    /// npm openai over @x402/fetch.
    OpenAi,
    /// PyPI x402 over httpx.
    Httpx,
    /// PyPI x402 over requests.
    Requests,
    /// PyPI openai over x402's transport for httpx.
    PyOpenAi,
}

impl Client {
    pub const ALL: [Self; 6] = [Self::Fetch, Self::Legacy, Self::OpenAi, Self::Httpx, Self::Requests, Self::PyOpenAi];

    /// One chat at `server` (no path) from an account of `bed`; `flags` as the script has them, `("stream", "true")` and
    /// `("scheme", "upto")` for example. What it prints: `ok`, `status`, `headers` with the x402 ones decoded
    /// (`payment_response`), `text`; Node tells `calls` with each payment, Python `payments`.
    pub async fn pay(self, bed: &EvmBed, buyer: &PrivateKeySigner, server: &str, flags: &[(&str, &str)]) -> Value {
        let (rpc, chain) = (bed.url(), bed.chain_id.to_string());
        let key = alloy::hex::encode_prefixed(buyer.to_bytes());
        let mut all = vec![("rpc", rpc.as_str()), ("key", &key), ("chain", &chain)];
        all.extend_from_slice(flags);
        self.run(server, &all).await
    }

    /// The same on Solana.
    pub async fn pay_svm(self, svm: &SvmBed, buyer: &SvmBuyer, server: &str, flags: &[(&str, &str)]) -> Value {
        let rpc = svm.url();
        let mut all = vec![("svm_rpc", rpc.as_str()), ("svm_key", &buyer.key)];
        all.extend_from_slice(flags);
        self.run(server, &all).await
    }

    /// The same with nothing but these flags.
    pub async fn run(self, server: &str, flags: &[(&str, &str)]) -> Value {
        require_packages();
        let (url, base) = (format!("{server}/v1/chat/completions"), format!("{server}/v1"));
        let mut all = match self {
            Self::OpenAi | Self::PyOpenAi => vec![("base", base.as_str())],
            _ => vec![("url", url.as_str())],
        };
        all.extend_from_slice(flags);
        match self {
            Self::Legacy => all.push(("legacy", "true")),
            Self::Requests => all.push(("sync", "true")),
            _ => {}
        }
        match self {
            Self::Fetch | Self::Legacy => super::client::node("../x402/fetch.mjs", &all).await,
            Self::OpenAi => super::client::node("../x402/openai.mjs", &all).await,
            Self::Httpx | Self::Requests => super::client::python("x402_pay.py", &all).await,
            Self::PyOpenAi => super::client::python("openai_x402.py", &all).await,
        }
    }
}
