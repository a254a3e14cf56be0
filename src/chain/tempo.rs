//! Tempo over JSON-RPC. Answers are read into the few fields used here, so that a node may add what it likes.

use super::fees::Tried;
use super::reserve::Reserve as _;
use super::rpc::{Fault, Rpc};
use super::{Address, B256, Chain, Head, Inclusion, Rejection, Sent, Transfer, Unreachable};
use crate::clock::UnixSeconds;
use crate::secret::Secret;
use alloy::primitives::{Bytes, LogData, U64, U128};
use alloy::sol_types::SolEvent;
use async_trait::async_trait;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::TempoTransaction;

/// JSON-RPC: the node does not know this method.
const METHOD_NOT_FOUND: i64 = -32601;

/// One Tempo node. Share it behind an `Arc`; any runtime may use it.
pub struct Tempo(pub(super) Rpc);

impl std::fmt::Debug for Tempo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tempo(…)")
    }
}

impl Tempo {
    /// Prepares a client for the node at `rpc` (an `http` or `https` URL, which may hold a key). Nothing is connected yet. The
    /// error is a sentence that does not repeat the URL.
    pub fn new(rpc: &Secret) -> Result<Self, &'static str> {
        Rpc::new(rpc).map(Self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    status: U64,
    block_number: Option<U64>,
    from: Address,
    logs: Vec<Log>,
}

#[derive(Debug, Deserialize)]
struct Log {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
}

impl Log {
    fn transfer(self) -> Option<Transfer> {
        let token = self.address;
        let data = LogData::new(self.topics, self.data)?;
        let (from, to, amount, memo) = match ITIP20::TransferWithMemo::decode_log_data(&data) {
            Ok(t) => (t.from, t.to, t.amount, Some(t.memo.0)),
            Err(_) => ITIP20::Transfer::decode_log_data(&data).ok().map(|t| (t.from, t.to, t.amount, None))?,
        };
        Some(Transfer { token, from, to, amount: u128::try_from(amount).ok()?, memo })
    }
}

impl Receipt {
    /// `None` for a receipt of another transaction: a node that answers so is not to be believed.
    fn inclusion(self, asked: B256) -> Option<Inclusion> {
        if self.transaction_hash != asked {
            return None;
        }
        let Some(block) = self.block_number.map(|n| n.to()) else { return Some(Inclusion::Absent) };
        Some(match self.status.to::<u64>() {
            1 => Inclusion::Done {
                block,
                sender: self.from,
                transfers: self.logs.into_iter().filter_map(Log::transfer).collect(),
            },
            0 => Inclusion::Reverted { block },
            _ => return None,
        })
    }
}

/// What a node's refusal means. Only phrases whose meaning is final are listed: anything else (rate limits, "already known",
/// a timeout while waiting for the block, a nonce gap) leaves the question open.
fn rejection(message: &str) -> Option<Rejection> {
    let text = message.to_ascii_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|p| text.contains(p));
    if says(&["nonce too low", "nonce is too low", "nonce already used", "nonce replay", "replayed"]) {
        Some(Rejection::Nonce)
    } else if says(&["insufficient funds", "insufficient balance", "insufficientbalance", "insufficient fee"]) {
        Some(Rejection::Funds)
    } else if says(&[
        "invalid signature",
        "intrinsic gas",
        "must be > current time",
        "transaction expired",
        "exceeds block gas limit",
        "less than block base fee",
        "higher than max fee per gas",
    ]) {
        Some(Rejection::Invalid)
    } else {
        None
    }
}

fn refused(fault: &Fault) -> Sent {
    match fault {
        Fault::Refused { message, .. } => rejection(message).map_or(Sent::Lost { why: fault.words() }, Sent::Rejected),
        Fault::Nonsense | Fault::Status(_) | Fault::Lost => Sent::Lost { why: fault.words() },
    }
}

#[async_trait]
impl Chain for Tempo {
    async fn head(&self) -> Result<Head, Unreachable> {
        self.0.head().await.map_err(Unreachable::from)
    }

    async fn time_of(&self, block: u64) -> Result<UnixSeconds, Unreachable> {
        let time = self.0.time(block).await?;
        time.ok_or(Unreachable { why: "the chain's node does not know its own block" })
    }

    async fn inclusion(&self, tx: B256) -> Result<Inclusion, Unreachable> {
        let receipt: Option<Receipt> = self.0.ask("eth_getTransactionReceipt", (tx,)).await?;
        match receipt {
            None => Ok(Inclusion::Absent),
            Some(r) => r.inclusion(tx).ok_or(Unreachable { why: "the chain's node answered with nonsense" }),
        }
    }

    async fn rehearse(&self, sender: Address, tx: &TempoTransaction) -> Result<Tried, Unreachable> {
        let [call] = tx.calls.as_slice() else {
            let passes = self.in_turn(sender, &tx.calls).await?.unwrap_or(true);
            return Ok(if passes { Tried::Passes } else { Tried::Fails });
        };
        let mut asked = json!({
            "from": sender,
            "to": call.to.to(),
            "value": call.value,
            "input": call.input,
            "gas": U64::from(tx.gas_limit),
            // With them the node asks for the fee as well.
            "maxFeePerGas": U128::from(tx.max_fee_per_gas),
            "maxPriorityFeePerGas": U128::from(tx.max_priority_fee_per_gas),
            "nonceKey": tx.nonce_key,
            "nonce": U64::from(tx.nonce),
        });
        if let Some(said) = asked.as_object_mut() {
            said.extend(tx.fee_token.map(|token| ("feeToken".to_owned(), json!(token))));
            said.extend(tx.valid_before.map(|end| ("validBefore".to_owned(), json!(U64::from(end.get())))));
        }
        self.try_call(asked).await
    }

    async fn send(&self, raw: &[u8]) -> Sent {
        let hex = alloy::hex::encode_prefixed(raw);
        // EIP-7966: the node holds the call until the transaction is in a block. What it returns is not read: the receipt is
        // asked for by hash, whichever way the transaction got there.
        match self.0.ask::<_, IgnoredAny>("eth_sendRawTransactionSync", (&hex,)).await {
            Ok(_) => return Sent::Accepted,
            Err(Fault::Refused { code: METHOD_NOT_FOUND, .. }) => (),
            Err(fault) => return refused(&fault),
        }
        match self.0.ask::<_, B256>("eth_sendRawTransaction", (&hex,)).await {
            Ok(_) => Sent::Accepted,
            Err(fault) => refused(&fault),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn receipt(change: impl FnOnce(&mut serde_json::Value)) -> Receipt {
        let token = "0x20c0000000000000000000000000000000000000";
        let from = "0x00000000000000000000000070997970c51812dc3a010c7d01b50e0d17dc79c8";
        let to = "0x000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb92266";
        let memo = "0xef1ed712015d390140299c901ff11e0000000000000000000008df97cea275ea";
        let amount = "0x0000000000000000000000000000000000000000000000000000000000002710";
        let mut value = json!({
            "transactionHash": B256::repeat_byte(7), "status": "0x1", "blockNumber": "0x10",
            "from": "0x70997970c51812dc3a010c7d01b50e0d17dc79c8", "something": "newer",
            "logs": [
                {"address": token, "topics": [ITIP20::Transfer::SIGNATURE_HASH, from, to], "data": amount},
                {"address": token, "topics": [ITIP20::TransferWithMemo::SIGNATURE_HASH, from, to, memo], "data": amount},
                {"address": token, "topics": [B256::repeat_byte(1)], "data": "0x"},
            ],
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn transfers_are_read_from_logs_and_everything_else_is_passed_over() {
        let Some(Inclusion::Done { block: 16, transfers, .. }) = receipt(|_| ()).inclusion(B256::repeat_byte(7)) else {
            panic!("a mined transaction")
        };
        assert_eq!(
            transfers.iter().map(|t| (t.amount, t.memo.is_some())).collect::<Vec<_>>(),
            [(10_000, false), (10_000, true)]
        );
    }

    #[test]
    fn a_receipt_is_believed_only_for_the_hash_that_was_asked() {
        assert_eq!(receipt(|_| ()).inclusion(B256::repeat_byte(8)), None);
    }

    #[test]
    fn failure_and_pending_are_not_success() {
        let hash = B256::repeat_byte(7);
        for (field, value, want, why) in [
            ("status", json!("0x0"), Some(Inclusion::Reverted { block: 16 }), "reverted"),
            ("blockNumber", json!(null), Some(Inclusion::Absent), "not in a block yet"),
            ("status", json!("0x2"), None, "no such status"),
        ] {
            assert_eq!(receipt(|r| r[field] = value).inclusion(hash), want, "{why}");
        }
    }

    #[test]
    fn only_final_words_of_a_node_count_as_a_rejection() {
        for (message, want) in [
            ("nonce too low: next nonce 5, tx nonce 4", Some(Rejection::Nonce)),
            ("Insufficient funds for gas * price + value", Some(Rejection::Funds)),
            ("insufficient fee token balance: have 0, need 12300", Some(Rejection::Funds)),
            ("Tempo tx valid_before (1795231566) must be > current time + 3s (1795231589)", Some(Rejection::Invalid)),
            ("exceeds block gas limit", Some(Rejection::Invalid)),
            ("max fee per gas less than block base fee: address 0x1", Some(Rejection::Invalid)),
            ("max priority fee per gas higher than max fee per gas", Some(Rejection::Invalid)),
            ("expiring nonce valid_before (9) too far in the future: must be within 30s", None),
            ("Transaction confirmation timeout", None),
            ("already known", None),
            ("transaction already imported", None),
            ("rate limit exceeded", None),
            ("timeout waiting for receipt", None),
            ("nonce gap", None),
            ("", None),
        ] {
            assert_eq!(rejection(message), want, "{message:?}");
        }
    }

    #[test]
    fn the_rpc_url_is_never_repeated() {
        for url in ["ftp://canary.example/key", "canary", "http://"] {
            let error = Tempo::new(&Secret::new(url)).unwrap_err();
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_node_is_described_without_its_url() {
        let node = Tempo::new(&Secret::new("http://127.0.0.1:1/canary-key")).unwrap();
        let error = node.head().await.unwrap_err();
        assert!(!format!("{error:?} {node:?}").contains("canary"), "{error:?}");
        assert!(matches!(node.send(&[0x76]).await, Sent::Lost { .. }));
    }
}
