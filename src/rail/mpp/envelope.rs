//! What a payer may hand over for us to carry the fee of, and what not. Pure.
//!
//! An envelope is `0x78` before the payer's fields, his address and his signature (the `mpp` crate's `FeePayerEnvelope78`). It is
//! a wire form, not a transaction: nobody can send it.

use crate::chain::Address;
use crate::chain::fees::{Trial, whole_atoms};
use crate::chain::reserve::RESERVE;
use crate::clock::UnixSeconds;
use crate::money::{Atoms, Usd};
use ::mpp::protocol::methods::tempo::{FeePayerEnvelope78, FeePayerPolicy, TEMPO_FEE_PAYER_ENVELOPE_TYPE_ID};
use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::primitives::{Bytes, TxKind, U256};
use alloy::sol_types::SolCall as _;
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::transaction::{TEMPO_EXPIRING_NONCE_KEY, TempoSignature};
use tempo_alloy::primitives::{AASigned, TempoTransaction};

/// Fewest seconds a sponsored transaction must stay valid when it is signed and when it is sent, as mppx and the crate have it.
pub const LEAST_SECONDS: u64 = 15;
/// The most one transaction may cost: 0.05 USD, the crate's own limit. Offers are made while this fits into the budget.
pub const DEAREST: Usd = Usd(50_000_000_000_000_000);
/// Largest envelope that is looked at, in bytes.
pub(super) const MAX_ENVELOPE: usize = 16 * 1024;
/// `open(address,address,address,uint96,bytes32,address)` of the reserve, and the length of its only encoding.
pub(super) const OPEN: ([u8; 4], usize) = ([0xed, 0xc5, 0x3b, 0x00], 4 + 6 * 32);
/// `topUp((address,address,address,address,bytes32,address,bytes32),uint96)`.
pub(super) const TOP_UP: ([u8; 4], usize) = ([0xdc, 0x48, 0x47, 0x1e], 4 + 8 * 32);

/// What a sponsored transaction is for: it may hold this call and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// One `transfer` or `transferWithMemo` of exactly this amount of the rail's token to its payee.
    Charge {
        /// What is due.
        amount: Atoms,
    },
    /// One `open` of the channel reserve. What is opened is judged by the session rail.
    Open,
    /// One `topUp` of it.
    TopUp,
}

/// Whether these bytes are an envelope.
pub fn is_envelope(bytes: &[u8]) -> bool {
    bytes.first() == Some(&TEMPO_FEE_PAYER_ENVELOPE_TYPE_ID)
}

/// Decodes an envelope that is in its only encoding. The error is a sentence about its form.
pub fn decode(bytes: &[u8]) -> Result<(FeePayerEnvelope78, AASigned), &'static str> {
    if bytes.len() > MAX_ENVELOPE {
        return Err("the signed transaction is too large");
    }
    let envelope = FeePayerEnvelope78::decode_envelope(bytes).map_err(|_| "the envelope (0x78) cannot be decoded")?;
    // Covers trailing bytes, long forms, and what the crate would drop without a word (an access list).
    if envelope.encoded_envelope() != bytes || !envelope.access_list.is_empty() {
        return Err("the envelope is not in its canonical encoding");
    }
    let signed = envelope.to_recoverable_signed();
    Ok((envelope, signed))
}

/// What may be in an envelope.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// The chain.
    pub chain_id: u64,
    /// The rail's token.
    pub currency: Address,
    /// The rail's payee.
    pub recipient: Address,
    /// Caps of gas, fees and validity.
    pub policy: FeePayerPolicy,
}

/// An envelope that passed.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its only call.
    pub trial: Trial,
    /// The most it may cost.
    pub worst: Usd,
    /// After this instant it can no longer be mined.
    pub valid_until: UnixSeconds,
}

impl Allowed {
    /// Everything but the chain: cheapest first, the payer's signature last. The error is a sentence.
    pub fn examine(
        &self,
        envelope: &FeePayerEnvelope78,
        signed: &AASigned,
        purpose: Purpose,
        now: UnixSeconds,
    ) -> Result<Found, &'static str> {
        let (tx, policy) = (signed.tx(), &self.policy);
        if tx.chain_id != self.chain_id {
            return Err("the transaction is for another chain");
        }
        if tx.fee_token.is_some() {
            return Err("a sponsored transaction names no fee token: the sponsor does");
        }
        if !tx.tempo_authorization_list.is_empty() || tx.key_authorization.is_some() {
            return Err("a sponsored transaction may authorize nothing");
        }
        // Whether such a key may sign for the account is known to the chain alone: anyone could use up another's part of the budget.
        if matches!(envelope.signature, TempoSignature::Keychain(_)) {
            return Err("a sponsored transaction must be signed by the account's own key");
        }
        if tx.nonce_key != TEMPO_EXPIRING_NONCE_KEY || tx.nonce != 0 {
            return Err("a sponsored transaction must have an expiring nonce");
        }
        if tx.gas_limit > policy.max_gas {
            return Err("the gas limit is higher than a sponsor pays for");
        }
        if tx.max_fee_per_gas > policy.max_fee_per_gas {
            return Err("maxFeePerGas is higher than a sponsor pays");
        }
        if tx.max_priority_fee_per_gas > policy.max_priority_fee_per_gas
            || tx.max_priority_fee_per_gas > tx.max_fee_per_gas
        {
            return Err("maxPriorityFeePerGas is higher than a sponsor pays");
        }
        let worst = u128::from(tx.gas_limit)
            .checked_mul(tx.max_fee_per_gas)
            .and_then(|fee| whole_atoms(Usd(fee)))
            .filter(|worst| *worst <= DEAREST && worst.0 <= policy.max_total_fee)
            .ok_or("the whole fee could be higher than a sponsor pays")?;
        let valid_until =
            tx.valid_before.map(|t| UnixSeconds(t.get())).ok_or("a sponsored transaction must have a validBefore")?;
        if valid_until > now.plus(policy.max_validity_window_seconds) {
            return Err("a sponsored transaction may be valid for 15 minutes at most");
        }
        if tx.valid_after.is_some_and(|t| UnixSeconds(t.get()) > now) {
            return Err("validAfter is not reached");
        }
        let trial = self.the_one_call(tx, envelope.sender, purpose, valid_until)?;
        if signed.recover_signer().ok() != Some(envelope.sender) {
            return Err("the signature is not the sender's");
        }
        Ok(Found { trial, worst, valid_until })
    }

    /// The transaction's only call, if it is the allowed one in its only encoding.
    fn the_one_call(
        &self,
        tx: &TempoTransaction,
        from: Address,
        purpose: Purpose,
        valid_until: UnixSeconds,
    ) -> Result<Trial, &'static str> {
        let other = "a sponsored transaction holds exactly the call that is due, and this one does not";
        let [call] = tx.calls.as_slice() else { return Err(other) };
        let TxKind::Call(to) = call.to else { return Err(other) };
        let at_reserve = |(selector, length): ([u8; 4], usize)| {
            to == RESERVE && call.input.len() == length && call.input.starts_with(&selector)
        };
        let due = match purpose {
            Purpose::Charge { amount } => {
                to == self.currency
                    && transfer(&call.input) == Some((self.recipient, U256::from(amount.0)))
                    && amount.0 > 0
            }
            Purpose::Open => at_reserve(OPEN),
            Purpose::TopUp => at_reserve(TOP_UP),
        };
        if !due || !call.value.is_zero() {
            return Err(other);
        }
        Ok(Trial { from, to, input: call.input.clone(), gas: tx.gas_limit, valid_until })
    }
}

/// Payee and amount of a `transfer` or `transferWithMemo` in its only encoding.
fn transfer(input: &Bytes) -> Option<(Address, U256)> {
    if let Ok(call) = ITIP20::transferCall::abi_decode(input) {
        return (call.abi_encode() == input.as_ref()).then_some((call.to, call.amount));
    }
    let call = ITIP20::transferWithMemoCall::abi_decode(input).ok()?;
    (call.abi_encode() == input.as_ref()).then_some((call.to, call.amount))
}
