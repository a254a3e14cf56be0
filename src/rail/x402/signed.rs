//! What a payer signs, and what can be known of it without a chain: who, how much, to whom, until when.
//!
//! A plain account's signature is proven here; a contract's can only be judged by its chain, through the facilitator. Nothing here
//! accepts a payment: balance and nonce are the chain's to say (`notes/x402-digest.md` §3.1–3.3).

use crate::money::Atoms;
use alloy::primitives::{Address, B256, Bytes, U256};

/// What was signed, by transfer method.
#[derive(Clone, PartialEq, Eq)]
pub enum Signed {
    /// EIP-3009 `TransferWithAuthorization`.
    Eip3009(Eip3009),
    /// Permit2 `PermitWitnessTransferFrom`, for `exact` or `upto`.
    Permit2(Permit2),
    /// A partly signed Solana transaction.
    Solana(Vec<u8>),
}

/// EIP-3009.
#[derive(Clone, PartialEq, Eq)]
pub struct Eip3009 {
    /// Payer.
    pub from: Address,
    /// Payee.
    pub to: Address,
    /// Atoms.
    pub value: Atoms,
    /// Unix seconds.
    pub valid_after: u64,
    /// Unix seconds.
    pub valid_before: u64,
    /// Random.
    pub nonce: B256,
    /// 65 bytes of a plain account, anything of a contract.
    pub signature: Bytes,
}

/// Permit2 with a witness.
#[derive(Clone, PartialEq, Eq)]
pub struct Permit2 {
    /// Payer.
    pub from: Address,
    /// Token.
    pub token: Address,
    /// Atoms: exact, or the most.
    pub amount: Atoms,
    /// The proxy that may use it.
    pub spender: Address,
    /// Unordered nonce.
    pub nonce: U256,
    /// Unix seconds.
    pub deadline: u64,
    /// Payee.
    pub to: Address,
    /// The only address that may hand it in (`upto`).
    pub facilitator: Option<Address>,
    /// Unix seconds.
    pub valid_after: u64,
    /// 65 bytes of a plain account, anything of a contract.
    pub signature: Bytes,
}
