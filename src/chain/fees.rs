//! What whoever carries other people's fees asks a chain: would this call go through, what did a transaction cost, what is left.

use super::rpc::Fault;
use super::tempo::Tempo;
use super::{Address, B256, Unreachable};
use crate::clock::UnixSeconds;
use crate::money::Usd;
use alloy::primitives::{Bytes, U64, U128, U256};
use alloy::sol_types::SolCall as _;
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::transaction::TEMPO_EXPIRING_NONCE_KEY;

/// One call as its sender would make it, in a transaction with an expiring nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Who makes it.
    pub from: Address,
    /// The contract.
    pub to: Address,
    /// What is said to it.
    pub input: Bytes,
    /// Most gas it may use, with everything that the transaction around it costs.
    pub gas: u64,
    /// The transaction's `validBefore`.
    pub valid_until: UnixSeconds,
}

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It went through, as things stand.
    Passes,
    /// It would revert, run out of gas, or its sender cannot make it.
    Fails,
}

/// Questions about fees. Every call is one request with a bounded duration; none of them retries.
#[async_trait]
pub trait Fees: Send + Sync {
    /// Makes the call on the newest state and throws the result away.
    async fn trial(&self, call: &Trial) -> Result<Tried, Unreachable>;
    /// What the mined transaction `tx` cost whoever paid its fee, rounded up to the millionth the fee token counts in.
    /// `None`: it is not in a block.
    async fn fee(&self, tx: B256) -> Result<Option<Usd>, Unreachable>;
    /// Atoms of `token` that `owner` holds; more than 2^128 count as that.
    async fn balance(&self, token: Address, owner: Address) -> Result<u128, Unreachable>;
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    block_number: Option<U64>,
    gas_used: U64,
    effective_gas_price: U128,
}

/// Whether a node's refusal of a trial is about the call itself. Anything else (a rate limit, a method it does not know, a newest
/// block so old that an end half a minute from now is too far off) says nothing about it.
pub(super) fn is_about_the_call(code: i64, message: &str) -> bool {
    let text = message.to_ascii_lowercase();
    let about_its_clock = text.contains("too far in the future");
    code == 3
        || !about_its_clock
            && ["revert", "out of gas", "outofgas", "oog", "intrinsic gas", "insufficient", "tempo transaction error"]
                .iter()
                .any(|said| text.contains(said))
}

impl Tempo {
    pub(super) async fn try_call(&self, call: Value) -> Result<Tried, Unreachable> {
        match self.0.ask::<_, Bytes>("eth_call", (call, "latest")).await {
            Ok(_) => Ok(Tried::Passes),
            Err(Fault::Refused { code, message }) if is_about_the_call(code, &message) => {
                tracing::debug!(code, %message, "a trial fails");
                Ok(Tried::Fails)
            }
            Err(fault) => Err(fault.into()),
        }
    }
}

#[async_trait]
impl Fees for Tempo {
    async fn trial(&self, call: &Trial) -> Result<Tried, Unreachable> {
        // As the transaction it is: a plain call would be charged for a nonce that this one never uses, which is most of what a
        // wallet sets aside.
        let asked = json!({
            "from": call.from,
            "to": call.to,
            "input": call.input,
            "gas": U64::from(call.gas),
            "nonceKey": TEMPO_EXPIRING_NONCE_KEY,
            "nonce": U64::ZERO,
            "validBefore": U64::from(call.valid_until.0),
        });
        self.try_call(asked).await
    }

    async fn fee(&self, tx: B256) -> Result<Option<Usd>, Unreachable> {
        let receipt: Option<Receipt> = self.0.ask("eth_getTransactionReceipt", (tx,)).await?;
        let Some(receipt) = receipt.filter(|r| r.block_number.is_some()) else { return Ok(None) };
        if receipt.transaction_hash != tx {
            return Err(Unreachable::NONSENSE);
        }
        // Gas prices of this chain are dollars, as integers of 1e-18, exactly as ours.
        let spent = u128::from(receipt.gas_used.to::<u64>()).checked_mul(receipt.effective_gas_price.to());
        spent.and_then(|s| whole_atoms(Usd(s))).map(Some).ok_or(Unreachable::NONSENSE)
    }

    async fn balance(&self, token: Address, owner: Address) -> Result<u128, Unreachable> {
        let input = Bytes::from(ITIP20::balanceOfCall { account: owner }.abi_encode());
        let held: U256 = self.0.ask("eth_call", (json!({"to": token, "input": input}), "latest")).await?;
        Ok(u128::try_from(held).unwrap_or(u128::MAX))
    }
}

/// A fee as it is taken: in whole millionths of a dollar, rounded up. `None` past the largest amount.
pub fn whole_atoms(fee: Usd) -> Option<Usd> {
    fee.to_atoms(6)?.to_usd(6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_the_call_fails_a_trial() {
        for (code, message, fails) in [
            (3, "execution reverted: InsufficientBalance", true),
            (-32000, "execution reverted", true),
            (-32003, "Out of gas: gas required exceeds allowance", true),
            (-32003, "Insufficient funds for gas * price + value", true),
            (-32603, "EVM error PrecompileOOG", true),
            (-32000, "intrinsic gas too high -- CallGasCostMoreThanGasLimit", true),
            (-32003, "tempo transaction error: expiring nonce transaction expired", true),
            // As a node says it whose newest block is old.
            (
                -32603,
                "tempo transaction error: nonce manager error: expiring nonce valid_before (1795324155) too far in the future: must be within 30s of block timestamp (1795324100), max allowed is 1795324130",
                false,
            ),
            (-32005, "rate limit exceeded", false),
            (-32601, "the method eth_call does not exist", false),
            (-32603, "internal error", false),
        ] {
            assert_eq!(is_about_the_call(code, message), fails, "{code} {message}");
        }
    }

    #[test]
    fn a_fee_is_taken_in_whole_millionths() {
        for (fee, want, why) in [
            (0, 0, "nothing"),
            (1, 1_000_000_000_000, "rounded up"),
            (66_500_000_000_000, 67_000_000_000_000, "as a recorded one was"),
        ] {
            assert_eq!(whole_atoms(Usd(fee)), Some(Usd(want)), "{why}");
        }
    }
}
