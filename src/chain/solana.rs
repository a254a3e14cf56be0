//! Solana over JSON-RPC, read only: transactions, an account's history, whether a blockhash still holds.

use super::Unreachable;
use super::rpc::Rpc;
use crate::clock::UnixSeconds;
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

/// Entries of an account's history in one request.
pub const PAGE: usize = 1_000;

/// How sure a node must be of what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commitment {
    /// Its newest block, which may be dropped.
    Processed,
    /// Voted for by two thirds of the stake.
    Confirmed,
    /// Never taken back.
    Finalized,
}

impl Commitment {
    const fn word(self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::Confirmed => "confirmed",
            Self::Finalized => "finalized",
        }
    }
}

/// A transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landed {
    /// All of it, signatures first.
    pub transaction: Vec<u8>,
    /// It changed nothing but fees.
    pub failed: bool,
    /// Token balances before it, of the accounts it names.
    pub before: Vec<Balance>,
    /// The same after it.
    pub after: Vec<Balance>,
}

/// Tokens of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Which token.
    pub mint: String,
    /// Whose they are: the wallet, not the token account.
    pub owner: String,
    /// Atoms.
    pub amount: u64,
}

/// An entry of an account's history.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Listed {
    /// The transaction's first signature, its name.
    pub signature: String,
    /// Its memos with their lengths, if it has any and the node keeps them.
    #[serde(default)]
    pub memo: Option<String>,
    /// When its block was made, as far as the node knows.
    #[serde(default, rename = "blockTime")]
    pub time: Option<u64>,
}

#[derive(Deserialize)]
struct Found {
    transaction: (String, IgnoredAny),
    meta: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    err: Option<IgnoredAny>,
    #[serde(default)]
    pre_token_balances: Option<Vec<Held>>,
    #[serde(default)]
    post_token_balances: Option<Vec<Held>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    mint: String,
    #[serde(default)]
    owner: Option<String>,
    ui_token_amount: Amount,
}

#[derive(Deserialize)]
struct Amount {
    amount: String,
}

#[derive(Deserialize)]
struct Of<T> {
    value: T,
}

/// One node. Share it behind an `Arc`; any runtime may use it.
pub struct Solana(Rpc);

impl std::fmt::Debug for Solana {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Solana(…)")
    }
}

impl Solana {
    /// Prepares a client for the node at `rpc` (an `http` or `https` URL, which may hold a key). Nothing is connected yet. The
    /// error is a sentence that does not repeat the URL.
    pub fn new(rpc: &Secret) -> Result<Self, &'static str> {
        Rpc::new(rpc).map(Self)
    }

    async fn ask<R: DeserializeOwned>(&self, method: &str, params: serde_json::Value) -> Result<R, Unreachable> {
        self.0.ask(method, params).await.map_err(Unreachable::from)
    }

    /// The hash of the first block, whose first 32 characters name the network.
    pub async fn genesis(&self) -> Result<String, Unreachable> {
        self.ask("getGenesisHash", json!([])).await
    }

    /// When the newest block of this commitment was made.
    pub async fn time(&self, commitment: Commitment) -> Result<UnixSeconds, Unreachable> {
        let slot: u64 = self.ask("getSlot", json!([{"commitment": commitment.word()}])).await?;
        self.ask("getBlockTime", json!([slot])).await.map(UnixSeconds)
    }

    /// The transaction of this name, `None` while it is in no block of this commitment.
    pub async fn landed(&self, signature: &str, commitment: Commitment) -> Result<Option<Landed>, Unreachable> {
        let how = json!({"encoding": "base64", "commitment": commitment.word(), "maxSupportedTransactionVersion": 0});
        let Some(found) = self.ask::<Option<Found>>("getTransaction", json!([signature, how])).await? else {
            return Ok(None);
        };
        let transaction = STANDARD.decode(found.transaction.0).map_err(|_| Unreachable::NONSENSE)?;
        let read = |held: Option<Vec<Held>>| {
            let owned =
                held.unwrap_or_default().into_iter().filter_map(|h| h.owner.map(|o| (h.mint, o, h.ui_token_amount)));
            let whole = owned.map(|(mint, owner, a)| Some(Balance { mint, owner, amount: a.amount.parse().ok()? }));
            whole.collect::<Option<Vec<_>>>().ok_or(Unreachable::NONSENSE)
        };
        let (before, after) = (read(found.meta.pre_token_balances)?, read(found.meta.post_token_balances)?);
        Ok(Some(Landed { transaction, failed: found.meta.err.is_some(), before, after }))
    }

    /// An account's history, newest first, a page of it: what came before `before`, if that is given.
    pub async fn history(
        &self,
        address: &str,
        before: Option<&str>,
        commitment: Commitment,
    ) -> Result<Vec<Listed>, Unreachable> {
        let mut how = json!({"limit": PAGE, "commitment": commitment.word()});
        if let Some(before) = before {
            how["before"] = json!(before);
        }
        self.ask("getSignaturesForAddress", json!([address, how])).await
    }

    /// Whether a transaction with this blockhash could be in the block after the newest one of this commitment. Not so for one
    /// that is too old, nor for one the node has not heard of.
    pub async fn holds(&self, blockhash: &str, commitment: Commitment) -> Result<bool, Unreachable> {
        let how = json!({"commitment": commitment.word()});
        self.ask::<Of<bool>>("isBlockhashValid", json!([blockhash, how])).await.map(|of| of.value)
    }
}
