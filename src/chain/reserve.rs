//! The channel reserve (TIP-1034): what it says about channels, what a mined transaction did to them, and what a call to it costs;
//! and whom accounts let open them (the account keychain).

use super::rpc::Fault;
use super::tempo::Tempo;
use super::{Address, B256, Chain, Unreachable};
use crate::channel::View;
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use alloy::primitives::{Bytes, LogData, U64, U128, aliases::U96};
use alloy::sol_types::{SolCall as _, SolEvent as _};
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tempo_alloy::contracts::precompiles::{
    ACCOUNT_KEYCHAIN_ADDRESS, IAccountKeychain as Keychain, ITIP20ChannelReserve as Abi,
};
use tempo_alloy::primitives::transaction::Call;

/// Where the reserve is on every chain.
pub const RESERVE: Address = Address::new([0x4d, 0x50, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/// What a mined transaction did to one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Opened it.
    Opened {
        /// Its id.
        channel: B256,
        /// What ties the id to the transaction.
        nonce_hash: B256,
        /// Locked, in atoms.
        deposit: u128,
    },
    /// Locked more.
    ToppedUp {
        /// Its id.
        channel: B256,
        /// Locked in total.
        deposit: u128,
    },
    /// Paid out.
    Settled {
        /// Its id.
        channel: B256,
        /// In total.
        settled: u128,
    },
    /// Closed it.
    Closed {
        /// Its id.
        channel: B256,
    },
}

/// A transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mined {
    /// Height.
    pub block: u64,
    /// It did what it says; else it changed nothing but fees.
    pub success: bool,
    /// What it did to channels, in order.
    pub deeds: Vec<Deed>,
}

/// What a transaction must offer for a unit of gas, in the chain's own unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GasPrice(pub u128);

/// Questions about channels. Every call is one or two requests with a bounded duration; none of them retries.
#[async_trait]
pub trait Reserve: Chain {
    /// The state of these channels, in order, all at the newest block. One the reserve does not know has no deposit.
    async fn states(&self, channels: &[B256]) -> Result<Vec<View>, Unreachable>;
    /// Channels to `payee` whose payers asked to close them in these blocks, both included.
    async fn close_requests(&self, payee: Address, from: u64, to: u64) -> Result<Vec<B256>, Unreachable>;
    /// What the transaction did; `None`: it is not in a block here and now.
    async fn mined(&self, tx: B256) -> Result<Option<Mined>, Unreachable>;
    /// What gas costs now.
    async fn gas_price(&self) -> Result<GasPrice, Unreachable>;
    /// Gas that `from` needs to say `input` to the reserve. `Ok(None)`: it would revert.
    async fn gas(&self, from: Address, input: &[u8]) -> Result<Option<u64>, Unreachable>;
    /// Whether calls of `from` go through one after the other, each on what the one before it left. `Ok(None)`: this node cannot
    /// try several.
    async fn in_turn(&self, from: Address, calls: &[Call]) -> Result<Option<bool>, Unreachable>;
    /// Until when `key` may sign for `account`; 0: it may not, for the account never said so or took it back.
    async fn key_until(&self, account: Address, key: Address) -> Result<UnixSeconds, Unreachable>;
}

#[derive(Deserialize)]
struct TriedBlock {
    calls: Vec<TriedCall>,
}

#[derive(Deserialize)]
struct TriedCall {
    status: U64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    status: U64,
    block_number: Option<U64>,
    logs: Vec<Log>,
}

#[derive(Deserialize)]
struct Log {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
}

impl Log {
    fn deed(self) -> Option<Deed> {
        if self.address != RESERVE {
            return None;
        }
        let data = LogData::new(self.topics, self.data)?;
        if let Ok(e) = Abi::ChannelOpened::decode_log_data(&data) {
            let (channel, nonce_hash) = (e.channelId, e.expiringNonceHash);
            return Some(Deed::Opened { channel, nonce_hash, deposit: e.deposit.to() });
        }
        if let Ok(e) = Abi::TopUp::decode_log_data(&data) {
            return Some(Deed::ToppedUp { channel: e.channelId, deposit: e.newDeposit.to() });
        }
        if let Ok(e) = Abi::Settled::decode_log_data(&data) {
            return Some(Deed::Settled { channel: e.channelId, settled: e.newSettled.to() });
        }
        Abi::ChannelClosed::decode_log_data(&data).ok().map(|e| Deed::Closed { channel: e.channelId })
    }
}

#[async_trait]
impl Reserve for Tempo {
    async fn states(&self, channels: &[B256]) -> Result<Vec<View>, Unreachable> {
        let head: U64 = self.0.ask("eth_blockNumber", ()).await?;
        let input = Bytes::from(Abi::getChannelStatesBatchCall { channelIds: channels.to_vec() }.abi_encode());
        let call = json!({"to": RESERVE, "input": input});
        // At one block, by number: another node behind the same address may be behind, and then says so.
        let answer: Bytes = self.0.ask("eth_call", (call, head)).await?;
        let states = Abi::getChannelStatesBatchCall::abi_decode_returns(&answer).map_err(|_| Unreachable::NONSENSE)?;
        if states.len() != channels.len() {
            return Err(Unreachable::NONSENSE);
        }
        let view = |s: Abi::ChannelState| View {
            block: head.to(),
            deposit: Atoms(s.deposit.to::<u128>()),
            settled: Atoms(s.settled.to::<u128>()),
            close_requested_at: (s.closeRequestedAt > 0).then(|| UnixSeconds(u64::from(s.closeRequestedAt))),
        };
        Ok(states.into_iter().map(view).collect())
    }

    async fn close_requests(&self, payee: Address, from: u64, to: u64) -> Result<Vec<B256>, Unreachable> {
        let asked = json!({
            "address": RESERVE, "fromBlock": U64::from(from), "toBlock": U64::from(to),
            "topics": [Abi::CloseRequested::SIGNATURE_HASH, null, null, payee.into_word()],
        });
        let logs: Vec<Log> = self.0.ask("eth_getLogs", (asked,)).await?;
        Ok(logs.into_iter().filter(|l| l.address == RESERVE).filter_map(|l| l.topics.get(1).copied()).collect())
    }

    async fn mined(&self, tx: B256) -> Result<Option<Mined>, Unreachable> {
        let receipt: Option<Receipt> = self.0.ask("eth_getTransactionReceipt", (tx,)).await?;
        let Some(receipt) = receipt else { return Ok(None) };
        if receipt.transaction_hash != tx {
            return Err(Unreachable::NONSENSE);
        }
        let Some(block) = receipt.block_number.map(|n| n.to()) else { return Ok(None) };
        let success = match receipt.status.to::<u64>() {
            1 => true,
            0 => false,
            _ => return Err(Unreachable::NONSENSE),
        };
        Ok(Some(Mined { block, success, deeds: receipt.logs.into_iter().filter_map(Log::deed).collect() }))
    }

    async fn gas_price(&self) -> Result<GasPrice, Unreachable> {
        let price: U128 = self.0.ask("eth_gasPrice", ()).await?;
        Ok(GasPrice(price.to()))
    }

    async fn gas(&self, from: Address, input: &[u8]) -> Result<Option<u64>, Unreachable> {
        let call = json!({"from": from, "to": RESERVE, "input": Bytes::copy_from_slice(input)});
        match self.0.ask::<_, U64>("eth_estimateGas", (call,)).await {
            Ok(gas) => Ok(Some(gas.to())),
            Err(Fault::Refused { code, message }) if super::fees::is_about_the_call(code, &message) => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    async fn in_turn(&self, from: Address, calls: &[Call]) -> Result<Option<bool>, Unreachable> {
        let each: Vec<_> = calls
            .iter()
            .map(|call| json!({"from": from, "to": call.to.to(), "value": call.value, "input": call.input}))
            .collect();
        let asked = json!({"blockStateCalls": [{"calls": each}], "validation": false});
        match self.0.ask::<_, Vec<TriedBlock>>("eth_simulateV1", (asked, "latest")).await {
            Ok(blocks) => {
                let tried: Vec<TriedCall> = blocks.into_iter().flat_map(|block| block.calls).collect();
                if tried.len() != calls.len() {
                    return Err(Unreachable::NONSENSE);
                }
                Ok(Some(tried.iter().all(|call| call.status == U64::ONE)))
            }
            Err(Fault::Refused { code, message }) if super::fees::is_about_the_call(code, &message) => Ok(Some(false)),
            // It cannot, or may not, in whatever words: that says nothing against them.
            Err(Fault::Refused { .. }) => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    async fn key_until(&self, account: Address, key: Address) -> Result<UnixSeconds, Unreachable> {
        let input = Bytes::from(Keychain::getKeyCall { account, keyId: key }.abi_encode());
        let call = json!({"to": ACCOUNT_KEYCHAIN_ADDRESS, "input": input});
        let answer: Bytes = self.0.ask("eth_call", (call, "latest")).await?;
        let known = Keychain::getKeyCall::abi_decode_returns(&answer).map_err(|_| Unreachable::NONSENSE)?;
        Ok(UnixSeconds(if known.isRevoked || known.keyId != key { 0 } else { known.expiry }))
    }
}

/// An amount as the reserve counts it (96 bits). `None` above that.
pub fn uint96(amount: Atoms) -> Option<U96> {
    (amount.0 < 1 << 96).then(|| U96::from(amount.0))
}
