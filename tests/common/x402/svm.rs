//! Solana on one machine.

use alloy::primitives::B256;
use serde_json::{Value, json};

use super::served::Served;
use crate::common::chain;

/// A real Solana runtime that says it is devnet or mainnet, with that one's USDC; no slot passes without a transaction.
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
    /// As devnet.
    pub async fn start() -> Self {
        Self { served: Served::start("svm.mjs", &[]).await }
    }

    /// As mainnet.
    pub async fn mainnet() -> Self {
        Self { served: Served::start("svm.mjs", &[("mainnet", "true")]).await }
    }

    pub fn url(&self) -> String {
        self.served.url()
    }

    /// `solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1` on devnet.
    pub fn network(&self) -> String {
        self.said("network")
    }

    /// USDC.
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

    pub(super) fn said(&self, name: &str) -> String {
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

    /// All of a transaction as anybody can read it on the chain, signatures first, in base64.
    pub async fn transaction(&self, signature: &str) -> String {
        let found = self.rpc("getTransaction", json!([signature, {"encoding": "base64"}])).await;
        found["transaction"][0].as_str().unwrap_or_else(|| panic!("{signature} is not on the chain")).to_owned()
    }

    /// The names of all transactions on the chain, oldest first.
    pub async fn landed(&self) -> Vec<String> {
        serde_json::from_value(self.rpc("bed_landed", json!([])).await).unwrap()
    }

    /// Transactions signed so far and not sent yet become too old.
    pub async fn expire(&self) {
        self.rpc("bed_expire", json!([])).await;
    }
}
