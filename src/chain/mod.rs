//! Looking at a chain and sending to it: a narrow seam that reports facts and never judges them.
//!
//! Whether a fact is a payment is decided in `rail/`, by pure functions. Errors here are in our own words: what a client
//! library says may repeat the RPC URL, and that can hold a key.

pub mod evm;
pub mod fees;
pub mod relay;
pub mod reserve;
mod rpc;
pub mod solana;
pub mod tempo;
pub mod web;

use crate::clock::UnixSeconds;
use async_trait::async_trait;
use fees::Tried;
use tempo_alloy::primitives::TempoTransaction;

pub use alloy::primitives::{Address, B256};

/// The newest block a node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Chain id the node answers for.
    pub chain_id: u64,
    /// Height.
    pub number: u64,
    /// The block's own time: the clock that decides whether a transaction can still be mined.
    pub time: UnixSeconds,
}

/// Whether a node whose newest block is of that time keeps up; the error is a sentence for operators.
pub fn keeps_up(newest: UnixSeconds, now: UnixSeconds, stale_seconds: u64) -> Result<(), String> {
    if now <= newest.plus(stale_seconds) {
        return Ok(());
    }
    let old = now.0.saturating_sub(newest.0);
    Err(format!("the newest block is {old} s old, if this machine's clock is right"))
}

/// The node could not be asked, or said nothing that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// In our words, without URL or anything the node said.
    pub why: &'static str,
}

impl Unreachable {
    /// The node answered, and with something else than was asked for.
    const NONSENSE: Self = Self { why: "the chain's node answered with nonsense" };
}

/// One token transfer, as a log of a mined transaction reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The contract that wrote the log.
    pub token: Address,
    /// Whose balance fell.
    pub from: Address,
    /// Whose balance grew.
    pub to: Address,
    /// Atoms of the token.
    pub amount: u128,
    /// The memo, when the log carries one.
    pub memo: Option<[u8; 32]>,
}

/// What became of one transaction, looked up by its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inclusion {
    /// No receipt for this hash here and now. Says nothing about later.
    Absent,
    /// Mined, and it changed nothing but fees.
    Reverted {
        /// Height.
        block: u64,
    },
    /// Mined with success. That alone pays nobody: the transfers do.
    Done {
        /// Height.
        block: u64,
        /// Who sent it.
        sender: Address,
        /// Its transfer logs in order. A transfer of more than 2^128 atoms is left out: no price is that high.
        transfers: Vec<Transfer>,
    },
}

/// Why a node will not take a transaction, as far as its words can be trusted to mean the same everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The sender cannot pay for it.
    Funds,
    /// Its nonce was used: by another transaction, or by this very one.
    Nonce,
    /// Its validity is over, its signature or shape is wrong: no node will ever take it.
    Invalid,
}

/// What a node answered to a signed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Taken, perhaps mined already: look for its receipt.
    Accepted,
    /// Refused for a reason that is final for these bytes as things stand.
    Rejected(Rejection),
    /// Nobody knows whether it was taken.
    Lost {
        /// In our words.
        why: &'static str,
    },
}

/// A chain as rails need it. Every call is one or two requests with a bounded duration; none of them retries.
#[async_trait]
pub trait Chain: Send + Sync {
    /// The newest block, and which chain this is.
    async fn head(&self) -> Result<Head, Unreachable>;
    /// The own time of the block at this height.
    async fn time_of(&self, block: u64) -> Result<UnixSeconds, Unreachable>;
    /// What became of the transaction with this hash.
    async fn inclusion(&self, tx: B256) -> Result<Inclusion, Unreachable>;
    /// Makes the calls of a payer's transaction on the newest state, its fee included, and throws the result away. A node that
    /// cannot try several calls at once says nothing against them.
    async fn rehearse(&self, sender: Address, tx: &TempoTransaction) -> Result<Tried, Unreachable>;
    /// Hands in a signed transaction, waiting for its block where the node can. The same bytes twice are harmless: a
    /// transaction is mined at most once.
    async fn send(&self, raw: &[u8]) -> Sent;
}
