//! Any EVM chain over JSON-RPC, read only: receipts, calls, logs. Answers are read into the few fields used here.

use super::rpc::Rpc;
use super::{Address, B256, Head, Unreachable};
use crate::clock::UnixSeconds;
use crate::secret::Secret;
use alloy::primitives::{Bytes, U64};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// One node. Share it behind an `Arc`; any runtime may use it.
pub struct Evm(Rpc);

impl std::fmt::Debug for Evm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Evm(…)")
    }
}

/// A log of a mined transaction.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Who wrote it.
    pub address: Address,
    /// Event and indexed members.
    pub topics: Vec<B256>,
    /// The rest.
    pub data: Bytes,
    /// In which transaction.
    pub transaction_hash: B256,
    /// At which height.
    #[serde(deserialize_with = "height")]
    pub block_number: u64,
    /// A reorganisation took it back.
    #[serde(default)]
    pub removed: bool,
}

/// A transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mined {
    /// Height.
    pub block: u64,
    /// It did what its logs say; else it changed nothing but fees.
    pub success: bool,
    /// What happened, in order.
    pub logs: Vec<Log>,
}

/// What a transaction asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Called {
    /// Whom; `None` makes a contract.
    pub to: Option<Address>,
    /// With which bytes.
    pub input: Bytes,
    hash: B256,
}

impl Called {
    /// A call as a test or another source knows it.
    pub fn new(hash: B256, to: Option<Address>, input: Bytes) -> Self {
        Self { to, input, hash }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    status: U64,
    block_number: Option<U64>,
    logs: Vec<Log>,
}

/// Logs to look for: of one contract, each topic one of a list (empty: any).
#[derive(Clone, Debug)]
pub struct Filter {
    /// Who wrote them.
    pub address: Address,
    /// Event, then indexed members.
    pub topics: Vec<Vec<B256>>,
}

fn height<'de, D: serde::Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    U64::deserialize(d).map(|n| n.to())
}

impl Evm {
    /// Prepares a client for the node at `rpc` (an `http` or `https` URL, which may hold a key). Nothing is connected yet. The
    /// error is a sentence that does not repeat the URL.
    pub fn new(rpc: &Secret) -> Result<Self, &'static str> {
        Rpc::new(rpc).map(Self)
    }

    async fn ask<R: DeserializeOwned>(&self, method: &str, params: serde_json::Value) -> Result<R, Unreachable> {
        self.0.ask(method, params).await.map_err(Unreachable::from)
    }

    /// The newest block, and which chain this is.
    pub async fn head(&self) -> Result<Head, Unreachable> {
        self.0.head().await.map_err(Unreachable::from)
    }

    /// When a block was made. A block that the node does not have is nonsense.
    pub async fn time(&self, block: u64) -> Result<UnixSeconds, Unreachable> {
        self.0.time(block).await?.ok_or(Unreachable::NONSENSE)
    }

    /// The receipt of a transaction, `None` while it is in no block. A receipt of another transaction is nonsense.
    pub async fn mined(&self, tx: B256) -> Result<Option<Mined>, Unreachable> {
        let receipt: Option<Receipt> = self.ask("eth_getTransactionReceipt", json!([tx])).await?;
        let Some((receipt, block)) = receipt.and_then(|r| r.block_number.map(|block| (r, block))) else {
            return Ok(None);
        };
        let success = match receipt.status.to::<u64>() {
            1 => true,
            0 => false,
            _ => return Err(Unreachable::NONSENSE),
        };
        if receipt.transaction_hash != tx {
            return Err(Unreachable::NONSENSE);
        }
        Ok(Some(Mined { block: block.to(), success, logs: receipt.logs }))
    }

    /// What a transaction asked for, `None` when the node does not know it.
    pub async fn called(&self, tx: B256) -> Result<Option<Called>, Unreachable> {
        let called: Option<Called> = self.ask("eth_getTransactionByHash", json!([tx])).await?;
        if called.as_ref().is_some_and(|c| c.hash != tx) {
            return Err(Unreachable::NONSENSE);
        }
        Ok(called)
    }

    /// What a contract answers in the state after `block`. A node without that block gives an error, not an older answer.
    pub async fn view(&self, to: Address, input: Bytes, block: u64) -> Result<Bytes, Unreachable> {
        self.ask("eth_call", json!([{"to": to, "input": input}, U64::from(block)])).await
    }

    /// Logs in the blocks from `first` to `last`, oldest first. Nodes bound how many blocks they search at once.
    pub async fn logs(&self, filter: &Filter, first: u64, last: u64) -> Result<Vec<Log>, Unreachable> {
        let topics: Vec<_> = filter.topics.iter().map(|any| (!any.is_empty()).then_some(any)).collect();
        let (first, last) = (U64::from(first), U64::from(last));
        let wanted = json!([{"address": filter.address, "topics": topics, "fromBlock": first, "toBlock": last}]);
        let mut logs: Vec<Log> = self.ask("eth_getLogs", wanted).await?;
        logs.retain(|log| !log.removed);
        Ok(logs)
    }
}
