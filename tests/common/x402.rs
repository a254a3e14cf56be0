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

pub mod brittle;
mod client;
pub mod counter;
pub mod permit2;
pub mod served;
pub mod stall;
mod svm;
pub mod takings;

use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::SignerSync;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use base64::Engine as _;
use mpp::PrivateKeySigner;
use serde_json::{Value, json};

pub use brittle::Brittle;
pub use client::Client;
pub use permit2::Permit;
pub use served::{Calls, Facilitator, Reference};
pub use stall::Stall;
pub use svm::{SvmBed, SvmBuyer};
pub use takings::Takings;

use super::chain::{self, DEV, Transfer};

pub const PERMIT2: &str = "0x000000000022D473030F116dDEE9F6B43aC78BA3";
pub const EXACT_PROXY: &str = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001";
pub const UPTO_PROXY: &str = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002";
const MULTICALL3: &str = "0xcA11bde05977b3631167028862bE2a173976CA11";
const VALIDATOR_6492: &str = "0xdAcD51A54883eb67D95FAEb2BBfdC4a9a6BD2a3B";
const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

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

/// Who is paid.
pub const PAYEE: &str = "0x8ba1f109551bD432803012645Ac136ddd64DBA72";

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

    /// Nobody's: the gate takes no dev account as payee on networks whose money is worth something.
    pub fn payee(&self) -> &'static str {
        PAYEE
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

    /// Takes that back.
    pub async fn forbid_permit2(&self, owner: &str) {
        self.as_account(owner, self.usdc, approveCall { spender: account(PERMIT2), atoms: U256::ZERO }).await;
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
    let compiled = Command::new("node").arg(served::folder().join("compile.mjs")).output().expect("node");
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "testbed/x402 does not compile: run `testbed/setup` first\n{said}");
    let path = String::from_utf8(compiled.stdout).unwrap();
    serde_json::from_slice(&std::fs::read(path.trim()).expect("compiled code")).unwrap()
}
