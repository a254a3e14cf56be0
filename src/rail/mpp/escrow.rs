//! A channel's transactions on chain: sending them, judging what became of them, and making our own.
//!
//! The rule is that of charges (`collect`): landed only on a receipt with success and the reserve's own event for exactly this
//! channel, dropped only on evidence, else not known. Our own transactions have an expiring nonce, so that no two of them wait for
//! each other and an absent one is over half a minute later; their hash is known before they are sent.

use super::collect::{self, Pace};
use super::voucher::{Parties, channel_id};
use crate::chain::reserve::{Deed, Mined, RESERVE, Reserve, uint96};
use crate::chain::{Address, B256, Head, Rejection, Sent, Unreachable};
use crate::channel::{Act, Channel, ChannelId, Intent, View, Voucher};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::rail::session::Outcome;
use crate::refusal::Refusal;
use crate::secret::Secret;
use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::eips::{Decodable2718 as _, Encodable2718 as _};
use alloy::primitives::{Bytes, TxKind, U256, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tempo_alloy::contracts::precompiles::ITIP20ChannelReserve as Abi;
use tempo_alloy::primitives::transaction::{Call, PrimitiveSignature, TEMPO_EXPIRING_NONCE_KEY, TempoSignature};
use tempo_alloy::primitives::{AASigned, TempoTransaction};
use tokio::time::{Instant, timeout_at};

/// How long our own transactions are valid, by the chain's clock. Chains take up to 30 s.
const VALID_SECONDS: u64 = 25;
/// Most gas one of ours may use.
const MOST_GAS: u64 = 3_000_000;
/// Gas beside the call itself: the transaction's own parts, and state that only a real run touches.
const MORE_GAS: u64 = 300_000;
/// Blocks looked through in one question for requests to close.
const SPAN: u64 = 5_000;
/// How long an opening that would have failed is not tried again.
const FAILED: Duration = Duration::from_secs(5);
/// Most of those that are remembered. What there is no room for costs one more question when it is shown again.
const MOST_FAILED: usize = 4_096;

/// The key that settles and closes channels. It is never shown.
#[derive(Clone)]
pub struct SettleKey(PrivateKeySigner);

impl std::fmt::Debug for SettleKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SettleKey({})", self.address())
    }
}

impl SettleKey {
    /// From 32 bytes. `None` when they are no key.
    pub fn new(key: &Secret) -> Option<Self> {
        PrivateKeySigner::from_slice(key.expose()).ok().map(Self)
    }

    /// Whose key it is.
    pub fn address(&self) -> Address {
        self.0.address()
    }
}

/// The reserve as one rail uses it.
pub(super) struct Escrow {
    chain: Arc<dyn Reserve>,
    key: SettleKey,
    chain_id: u64,
    currency: Address,
    pace: Pace,
    failed: Failed,
}

/// Openings that would have failed a moment ago, by their hash, and what was said of them.
#[derive(Default)]
struct Failed(Mutex<HashMap<B256, (Instant, Refusal)>>);

impl Failed {
    fn lately(&self, tx: &B256) -> Option<Refusal> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(tx).filter(|(at, _)| at.elapsed() < FAILED).map(|(_, said)| said.clone())
    }

    fn remember(&self, tx: B256, said: Refusal) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_FAILED {
            all.retain(|_, (at, _)| at.elapsed() < FAILED);
        }
        if all.len() < MOST_FAILED {
            all.insert(tx, (Instant::now(), said));
        }
    }
}

impl Escrow {
    pub fn new(chain: Arc<dyn Reserve>, key: SettleKey, chain_id: u64, currency: Address) -> Self {
        Self { chain, key, chain_id, currency, pace: Pace::default(), failed: Failed::default() }
    }

    /// Whether a payer's transaction would go through as things stand: a stranger without money must not leave us a record in doubt
    /// and a node to be asked again and again. Of several calls (an approval and a swap before the opening) each is tried on what the
    /// one before it left. A node that cannot do that leaves only the price of gas to be looked at.
    pub async fn would_land(&self, raw: &[u8]) -> Result<(), Refusal> {
        let unread = |_| Refusal::ChainUnread { retry_after_seconds: 5 };
        let mut rest = raw;
        let signed = AASigned::decode_2718(&mut rest).map_err(|_| invalid("the transaction cannot be read"))?;
        let tx = signed.tx();
        let asked = async {
            if tx.max_fee_per_gas < self.chain.gas_price().await?.0.saturating_sub(tx.max_priority_fee_per_gas) {
                return Ok(Some("its maxFeePerGas is below the price of gas"));
            }
            let Ok(sender) = signed.recover_signer() else { return Ok(Some("its signature cannot be read")) };
            let passes = match tx.calls.as_slice() {
                [call] => self.chain.gas(sender, &call.input).await?.is_some(),
                calls => self.chain.in_turn(sender, calls).await?.unwrap_or(true),
            };
            let fails = "it would fail as things stand: is there enough of the token, and is it for this channel?";
            Ok((!passes).then_some(fails))
        };
        let told = tokio::time::timeout(self.pace.patience / 4, asked).await;
        match told.map_err(|_| Refusal::ChainUnread { retry_after_seconds: 5 })?.map_err(|e: Unreachable| unread(e))? {
            None => Ok(()),
            Some(why) => Err(invalid(why)),
        }
    }

    /// Whether the account that an opening by access key names lets that key sign, by the chain's word or by the account's own: a first
    /// transaction may bring the authorization along. Anybody can make one that names anybody, so it is asked before anything is done for it,
    /// and paced like [`Self::would_open`].
    pub async fn may_sign(&self, raw: &[u8], now: UnixSeconds) -> Result<(), Refusal> {
        let tx = keccak256(raw);
        if let Some(refusal) = self.failed.lately(&tx) {
            return Err(refusal);
        }
        let (account, key) = signers(raw).ok_or_else(|| invalid("the transaction's signature cannot be read"))?;
        if key == account {
            return Ok(());
        }
        let told = tokio::time::timeout(self.pace.patience / 4, self.chain.key_until(account, key)).await;
        match told {
            Ok(Ok(until)) if until > now => Ok(()),
            Ok(Ok(_)) => {
                let refusal = invalid("the account has not authorized the access key that signed the transaction");
                self.failed.remember(tx, refusal.clone());
                Err(refusal)
            }
            Ok(Err(_)) | Err(_) => Err(Refusal::ChainUnread { retry_after_seconds: 5 }),
        }
    }

    /// [`Self::would_land`] of an opening, which nothing else paces: one that would fail is asked about once in five seconds, however often it is shown.
    pub async fn would_open(&self, raw: &[u8]) -> Result<(), Refusal> {
        let tx = keccak256(raw);
        if let Some(refusal) = self.failed.lately(&tx) {
            return Err(refusal);
        }
        let tried = self.would_land(raw).await;
        if let Err(refusal @ Refusal::PaymentInvalid { .. }) = &tried {
            self.failed.remember(tx, refusal.clone());
        }
        tried
    }

    /// Hands a transaction in and looks for it as long as there is patience.
    pub async fn submit(&self, channel: &Channel, intent: &Intent) -> Outcome {
        let Some((hash, raw)) = bytes(intent) else { return unreadable() };
        let begun = Instant::now();
        let deadline = begun + self.pace.patience;
        let send = || self.chain.send(&raw);
        let first = collect::hand_in(self.chain.as_ref(), self.chain_id, &raw, &self.pace).await;
        let mut taken = first == Sent::Accepted;
        loop {
            match timeout_at(deadline, self.chain.mined(hash)).await {
                Ok(Ok(Some(mined))) => {
                    let judged = timeout_at(deadline, self.judge(channel, intent, hash, &mined)).await;
                    match judged.unwrap_or(Outcome::Unknown) {
                        // It is mined and the node we asked about the channel is behind: there is patience left for it.
                        Outcome::Unknown => {}
                        known => return known,
                    }
                }
                Ok(Ok(None)) => match first {
                    Sent::Rejected(Rejection::Funds) => {
                        return dropped("the chain refused it: its sender cannot pay for it");
                    }
                    Sent::Rejected(Rejection::Invalid) => {
                        return dropped("the chain refused it: it is not valid (any more)");
                    }
                    Sent::Rejected(Rejection::Nonce) if begun.elapsed() >= self.pace.nonce_doubt => {
                        return dropped("the chain refused it: another transaction used its nonce");
                    }
                    Sent::Lost { .. } if !taken => {
                        taken = matches!(timeout_at(deadline, send()).await, Ok(Sent::Accepted));
                        if taken {
                            continue;
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
            if Instant::now() + self.pace.pause >= deadline {
                return Outcome::Unknown;
            }
            tokio::time::sleep(self.pace.pause).await;
        }
    }

    /// One look from the record alone; when it is absent but can still be mined, one more hand-in of the bytes, if there are any.
    pub async fn look(&self, channel: &Channel, intent: &Intent) -> Outcome {
        let Some((hash, raw)) = bytes(intent) else { return unreadable() };
        let looking = async {
            // The head first: what could be mined is in a block no younger than the head seen before the look.
            let Ok(head) = self.head().await else { return Outcome::Unknown };
            let Ok(found) = self.chain.mined(hash).await else { return Outcome::Unknown };
            if let Some(mined) = found {
                return self.judge(channel, intent, hash, &mined).await;
            }
            if collect::over(&head, intent.valid_until) {
                return dropped("it was not mined in the time it was valid for");
            }
            if head.time < intent.valid_until
                && !raw.is_empty()
                && self.chain.send(&raw).await == Sent::Accepted
                && let Ok(Some(mined)) = self.chain.mined(hash).await
            {
                return self.judge(channel, intent, hash, &mined).await;
            }
            Outcome::Unknown
        };
        tokio::time::timeout(self.pace.patience, looking).await.unwrap_or(Outcome::Unknown)
    }

    /// What a mined transaction means: it did what it was for only if the reserve itself says so.
    async fn judge(&self, channel: &Channel, intent: &Intent, hash: B256, mined: &Mined) -> Outcome {
        let Ok(id) = channel.id.0.parse::<B256>() else { return Outcome::Unknown };
        if !mined.success {
            return dropped("it was mined and reverted");
        }
        let nonce = channel.descriptor.expiring_nonce_hash.parse::<B256>().ok();
        let done = mined.deeds.iter().any(|deed| match (*deed, &intent.act) {
            (Deed::Opened { channel: of, nonce_hash, deposit }, Act::Open) => {
                of == id && Some(nonce_hash) == nonce && deposit == channel.view.deposit.0
            }
            (Deed::ToppedUp { channel: of, .. }, Act::TopUp { .. }) => of == id,
            (Deed::Settled { channel: of, settled }, Act::Settle { amount }) => of == id && settled >= amount.0,
            (Deed::Closed { channel: of }, Act::Close { .. }) => of == id,
            _ => false,
        });
        if !done {
            return dropped("it was mined and did not do what it was for");
        }
        match self.states(&[id]).await {
            Ok(views) if views.first().is_some_and(|view| view.block >= mined.block) => views
                .first()
                .map_or(Outcome::Unknown, |view| Outcome::Landed { mined: format!("{hash:#x}"), view: *view }),
            // The node we asked is behind the one that told us: ask again.
            Ok(_) | Err(_) => Outcome::Unknown,
        }
    }

    pub async fn views(&self, channels: &[ChannelId]) -> Result<Vec<View>, Unreachable> {
        let unreadable = |_| Unreachable { why: "a record holds a channel id that is none" };
        let ids = channels.iter().map(|id| id.0.parse::<B256>().map_err(unreadable)).collect::<Result<Vec<_>, _>>()?;
        self.states(&ids).await
    }

    /// The newest block of our chain.
    async fn head(&self) -> Result<Head, Unreachable> {
        collect::head_of(self.chain.as_ref(), self.chain_id).await
    }

    /// What the reserve of our chain says. On another one no channel of ours is known, and each would look closed.
    async fn states(&self, ids: &[B256]) -> Result<Vec<View>, Unreachable> {
        futures::future::try_join(self.head(), self.chain.states(ids)).await.map(|(_, views)| views)
    }

    pub async fn close_requests(
        &self,
        payee: Address,
        since: Option<u64>,
    ) -> Result<(u64, Vec<ChannelId>), Unreachable> {
        let head = self.head().await?.number;
        let Some(since) = since else { return Ok((head, Vec::new())) };
        if since >= head {
            return Ok((since, Vec::new()));
        }
        let to = head.min(since.saturating_add(SPAN));
        let found = self.chain.close_requests(payee, since.saturating_add(1), to).await?;
        Ok((to, found.into_iter().map(channel_id).collect()))
    }

    pub async fn settle(&self, channel: &Channel, voucher: &Voucher) -> Result<Intent, Unreachable> {
        let (parties, amount, signature) = parts(channel, voucher)?;
        let call = Abi::settleCall { descriptor: descriptor(&parties), cumulativeAmount: amount, signature };
        self.sign(Act::Settle { amount: voucher.amount }, call.abi_encode()).await
    }

    pub async fn close(&self, channel: &Channel, voucher: &Voucher, capture: Atoms) -> Result<Intent, Unreachable> {
        let (parties, amount, signature) = parts(channel, voucher)?;
        let captured = uint96(capture).ok_or(UNREADABLE)?;
        let call = Abi::closeCall {
            descriptor: descriptor(&parties),
            cumulativeAmount: amount,
            captureAmount: captured,
            signature,
        };
        self.sign(Act::Close { amount: voucher.amount, capture }, call.abi_encode()).await
    }

    /// Our transaction, signed and not sent: tried on the newest state first, so that a revert costs nothing.
    async fn sign(&self, act: Act, input: Vec<u8>) -> Result<Intent, Unreachable> {
        let from = self.key.address();
        let gas = self.chain.gas(from, &input).await?;
        let gas = gas.ok_or(Unreachable { why: "the reserve would refuse our transaction as things stand" })?;
        let gas_limit = gas.saturating_mul(3).saturating_div(2).saturating_add(MORE_GAS).min(MOST_GAS);
        let price = self.chain.gas_price().await?.0;
        let head = self.head().await?;
        let until = head.time.plus(VALID_SECONDS);
        let tx = TempoTransaction {
            chain_id: self.chain_id,
            fee_token: Some(self.currency),
            max_priority_fee_per_gas: 0,
            max_fee_per_gas: price.saturating_mul(2),
            gas_limit,
            calls: vec![Call { to: TxKind::Call(RESERVE), value: U256::ZERO, input: Bytes::from(input) }],
            nonce_key: TEMPO_EXPIRING_NONCE_KEY,
            valid_before: NonZeroU64::new(until.0),
            ..TempoTransaction::default()
        };
        let signature = self.key.0.sign_hash_sync(&alloy::consensus::SignableTransaction::signature_hash(&tx));
        let signature = signature.map_err(|_| Unreachable { why: "our own signature failed" })?;
        let signed = tx.into_signed(TempoSignature::Primitive(PrimitiveSignature::Secp256k1(signature)));
        let raw = signed.encoded_2718();
        let tx = format!("{:#x}", keccak256(&raw));
        Ok(Intent { act, tx, raw: format!("0x{}", hex::encode(raw)), valid_until: until })
    }
}

/// The account that a transaction names, and whose word it is that it rests on: the account's own, that of its access key, or that of the
/// key that authorizes this one by the transaction itself.
fn signers(raw: &[u8]) -> Option<(Address, Address)> {
    let mut rest = raw;
    let signed = AASigned::decode_2718(&mut rest).ok()?;
    let account = signed.recover_signer().ok()?;
    let TempoSignature::Keychain(signature) = signed.signature() else { return Some((account, account)) };
    let key = signature.key_id(&signed.signature_hash()).ok()?;
    match &signed.tx().key_authorization {
        Some(brought) if brought.authorization.key_id == key => Some((account, brought.recover_signer().ok()?)),
        _ => Some((account, key)),
    }
}

fn invalid(why: &str) -> Refusal {
    Refusal::PaymentInvalid { why: why.to_owned() }
}

const UNREADABLE: Unreachable = Unreachable { why: "a record holds a channel that cannot be written as a call" };

fn parts(
    channel: &Channel,
    voucher: &Voucher,
) -> Result<(Parties, alloy::primitives::aliases::U96, Bytes), Unreachable> {
    let parties = Parties::of(&channel.descriptor).ok_or(UNREADABLE)?;
    let amount = uint96(voucher.amount).ok_or(UNREADABLE)?;
    let signature = super::proof::hex_bytes(&voucher.signature).ok_or(UNREADABLE)?;
    Ok((parties, amount, signature.into()))
}

/// A descriptor as calls have it.
pub(super) fn descriptor(parties: &Parties) -> Abi::ChannelDescriptor {
    Abi::ChannelDescriptor {
        payer: parties.payer,
        payee: parties.payee,
        operator: parties.operator,
        token: parties.token,
        salt: parties.salt,
        authorizedSigner: parties.authorized_signer,
        expiringNonceHash: parties.nonce_hash,
    }
}

fn bytes(intent: &Intent) -> Option<(B256, Vec<u8>)> {
    Some((intent.tx.parse().ok()?, super::proof::hex_bytes(&intent.raw)?))
}

/// Never of our writing. The record stays as it is, and the log says so.
fn unreadable() -> Outcome {
    tracing::error!("an intent in the records cannot be read");
    Outcome::Unknown
}

fn dropped(why: &str) -> Outcome {
    Outcome::Dropped { why: why.to_owned() }
}

#[cfg(test)]
#[path = "escrow_tests.rs"]
mod tests;
