//! Carrying payers' transaction fees: a wallet that holds the price and nothing else can pay.
//!
//! The payer signs his transaction without a fee token and hands it over as an *envelope* (`0x78`); we add the fee token and our
//! signature, and it becomes the transaction (`0x76`) that is sent. What we sign costs us whether or not it does what it is for, so
//! it is signed for a buyer only when all of this holds (`notes/security.md` P11):
//!
//! 1. [`Sponsor::review`], pure: the canonical bytes of exactly one allowed call, nothing else in the transaction that costs
//!    anything, gas and fees under the crate's own caps, an expiring nonce, [`LEAST_SECONDS`] left, the payer's own valid signature;
//! 2. [`Sponsor::cosign`]: the call goes through on the newest state (asked once per signature, and never before the signature was
//!    verified), and its largest possible fee is set aside in the day's [`Budget`].
//!
//! Our signature is deterministic (RFC 6979) and the fee token fixed (the rail's currency), so the hash that the transaction will
//! have on chain is known from the envelope alone. It is the identity of the proof, in the namespace of transactions: computing it
//! takes the signature, which stays in memory until step 2 has passed. It follows that a new key makes new identities: change the
//! key when no sponsored payment is open or owed.
//!
//! What remains: a payer who moves his money between the trial and the block makes us pay for a revert. That is what his part of the
//! budget bounds.

use super::budget::{Budget, Reserved, Short};
use crate::chain::fees::{Fees, Trial, Tried, whole_atoms};
use crate::chain::{Address, B256};
use crate::clock::UnixSeconds;
use crate::metrics::Metrics;
use crate::money::{Atoms, Usd};
use crate::refusal::Refusal;
use crate::secret::Secret;
use crate::store::Store;
use ::mpp::protocol::methods::tempo::{FeePayerEnvelope78, FeePayerPolicy, TEMPO_FEE_PAYER_ENVELOPE_TYPE_ID};
use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::eips::Encodable2718 as _;
use alloy::primitives::{Bytes, TxKind, U256, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::transaction::{TEMPO_EXPIRING_NONCE_KEY, TempoSignature};
use tempo_alloy::primitives::{AASigned, TempoTransaction};

/// Fewest seconds a sponsored transaction must stay valid when it is signed and when it is sent, as mppx and the crate have it.
pub const LEAST_SECONDS: u64 = 15;
/// The most one transaction may cost: 0.05 USD, the crate's own limit. Offers are made while this fits into the budget.
pub const DEAREST: Usd = Usd(50_000_000_000_000_000);
/// The channel reserve (TIP-1034), at the same address on every chain.
pub const RESERVE: Address = Address::new([0x4d, 0x50, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
/// How often the chain is asked what a sponsored transaction cost.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Largest envelope that is looked at, in bytes.
const MAX_ENVELOPE: usize = 16 * 1024;
/// Most signatures whose trial is remembered; each is forgotten when its transaction is over.
const MAX_REMEMBERED: usize = 16 * 1024;
/// How far the chain's clock must be past a transaction's validity before its absence is believed.
const LAG_SECONDS: u64 = 30;
/// `open(address,address,address,uint96,bytes32,address)` of the reserve, and the length of its only encoding.
const OPEN: ([u8; 4], usize) = ([0xed, 0xc5, 0x3b, 0x00], 4 + 6 * 32);
/// `topUp((address,address,address,address,bytes32,address,bytes32),uint96)`.
const TOP_UP: ([u8; 4], usize) = ([0xdc, 0x48, 0x47, 0x1e], 4 + 8 * 32);

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Name of the rail's section: the budget's name.
    pub section: String,
    /// The chain.
    pub chain_id: u64,
    /// The rail's token: what is paid, and what fees are paid in.
    pub currency: Address,
    /// The rail's payee.
    pub recipient: Address,
    /// The most that may be spent in a day.
    pub usd_per_day: Usd,
    /// How often the chain is asked what a transaction cost.
    pub look_every: Duration,
}

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

/// An envelope decoded, with what it would become. Nothing about it is believed.
#[derive(Clone, Debug)]
pub struct Draft {
    envelope: FeePayerEnvelope78,
    /// As the payer signed it.
    signed: AASigned,
    raw: Vec<u8>,
    hash: B256,
}

impl Draft {
    /// The hash of the transaction that will be sent.
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// The transaction as the payer signed it.
    pub fn tx(&self) -> &TempoTransaction {
        self.signed.tx()
    }
}

/// A draft that we would carry the fee of.
#[derive(Clone, Debug)]
#[must_use = "a reviewed transaction is not signed for anybody yet"]
pub struct Reviewed {
    draft: Draft,
    purpose: Purpose,
    trial: Trial,
    worst: Usd,
    valid_until: UnixSeconds,
}

impl Reviewed {
    /// Who pays for everything but the fee: his signature holds.
    pub fn payer(&self) -> Address {
        self.draft.envelope.sender
    }

    /// The hash it will have on chain.
    pub fn hash(&self) -> B256 {
        self.draft.hash
    }

    /// After this instant it can no longer be mined.
    pub fn valid_until(&self) -> UnixSeconds {
        self.valid_until
    }

    /// The transaction as the payer signed it.
    pub fn tx(&self) -> &TempoTransaction {
        self.draft.tx()
    }
}

/// A transaction that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosigned {
    /// Its bytes.
    pub raw: Vec<u8>,
    /// Their hash.
    pub hash: B256,
    /// After this instant it can no longer be mined.
    pub valid_until: UnixSeconds,
}

/// Who carries fees. Share it behind an `Arc` between the rails of one section.
pub struct Sponsor {
    terms: Terms,
    policy: FeePayerPolicy,
    signer: PrivateKeySigner,
    fees: Arc<dyn Fees>,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    /// By what the payer signed.
    trials: Mutex<HashMap<(Address, B256), Remembered>>,
    funded: AtomicBool,
    /// Whether the operator was told that the budget is used up.
    alarmed: AtomicBool,
}

#[derive(Clone, Copy)]
struct Remembered {
    until: UnixSeconds,
    state: Tested,
}

/// How far a signature has come. Each is tried once and reserved for once, however often it is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tested {
    Running,
    Fails,
    Passes,
    Reserved,
}

impl Sponsor {
    /// A sponsor that signs with `key` (32 bytes). The error is a sentence that does not repeat it.
    pub fn new(
        terms: Terms,
        key: &Secret,
        fees: Arc<dyn Fees>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let signer = B256::try_from(key.expose()).ok().and_then(|key| PrivateKeySigner::from_bytes(&key).ok());
        let signer = signer.ok_or("the sponsor's key is not a private key")?;
        if signer.address() == terms.recipient {
            return Err("the sponsor's key is the recipient's: fees would be taken from what was earned".to_owned());
        }
        let policy = FeePayerPolicy::resolve(terms.chain_id, None);
        let budget = Arc::new(Budget::new(&terms.section, terms.usd_per_day, store));
        Ok(Self {
            terms,
            policy,
            signer,
            fees,
            budget,
            metrics,
            trials: Mutex::default(),
            funded: AtomicBool::new(false),
            alarmed: AtomicBool::new(false),
        })
    }

    /// The account fees are taken from.
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// For the checks of the `mpp` crate, which want to be shown that fees are carried here.
    pub(super) fn signer(&self) -> PrivateKeySigner {
        self.signer.clone()
    }

    /// Whether offers may say that fees are carried: the dearest transaction that is allowed fits into today's budget, and our
    /// account can pay for it. No I/O.
    pub fn offers(&self, now: UnixSeconds) -> bool {
        self.funded.load(Ordering::Relaxed) && self.budget.left(now) >= DEAREST
    }

    /// Looks at our account and at today's budget. The rail's watch calls it.
    pub async fn probe(&self, now: UnixSeconds) {
        if let Err(e) = self.budget.learn(now).await {
            tracing::error!(section = %self.terms.section, error = %e, "the sponsor's budget cannot be read");
        }
        self.tell_of_the_budget(now);
        let Ok(held) = self.fees.balance(self.terms.currency, self.address()).await else { return };
        let enough = Atoms(held).to_usd(6).is_none_or(|usd| usd >= DEAREST);
        if self.funded.swap(enough, Ordering::Relaxed) != enough || !enough {
            let (section, account) = (&self.terms.section, self.address());
            match enough {
                true => tracing::info!(%section, %account, "the sponsor's account can pay fees"),
                false => tracing::error!(%section, %account, "the sponsor's account is empty: fees are not carried"),
            }
        }
    }

    fn tell_of_the_budget(&self, now: UnixSeconds) {
        let used_up = self.budget.left(now) < DEAREST;
        if self.alarmed.swap(used_up, Ordering::Relaxed) != used_up && used_up {
            tracing::error!(
                section = %self.terms.section, usd_per_day = %self.terms.usd_per_day,
                "the sponsor's budget for today is used up: payers carry their own fees until midnight UTC"
            );
        }
    }

    /// Decodes an envelope and makes of it what would be sent. No I/O, nothing believed; the error is a sentence about its form.
    pub fn draft(&self, bytes: &[u8]) -> Result<Draft, &'static str> {
        if bytes.len() > MAX_ENVELOPE {
            return Err("the signed transaction is too large");
        }
        let envelope =
            FeePayerEnvelope78::decode_envelope(bytes).map_err(|_| "the envelope (0x78) cannot be decoded")?;
        // Covers trailing bytes, long forms, and what the crate would drop without a word (an access list).
        if envelope.encoded_envelope() != bytes || !envelope.access_list.is_empty() {
            return Err("the envelope is not in its canonical encoding");
        }
        let signed = envelope.to_recoverable_signed();
        let (mut tx, signature, _) = signed.clone().into_parts();
        tx.fee_token = Some(self.terms.currency);
        tx.fee_payer_signature = None;
        let ours = self.signer.sign_hash_sync(&tx.fee_payer_signature_hash(envelope.sender));
        tx.fee_payer_signature = Some(ours.map_err(|_| "our own signature failed")?);
        let raw = tx.into_signed(signature).encoded_2718();
        let hash = keccak256(&raw);
        Ok(Draft { envelope, signed, raw, hash })
    }

    /// Whether we would carry the fee of this envelope. Pure: cheapest checks first, the payer's signature last.
    pub fn review(&self, envelope: &[u8], purpose: Purpose, now: UnixSeconds) -> Result<Reviewed, Refusal> {
        let reviewed = self.draft(envelope).and_then(|draft| self.examine(draft, purpose, now));
        reviewed.map_err(|why| {
            self.count(purpose, "refused");
            Refusal::PaymentInvalid { why: why.to_owned() }
        })
    }

    fn examine(&self, draft: Draft, purpose: Purpose, now: UnixSeconds) -> Result<Reviewed, &'static str> {
        let (tx, policy) = (draft.signed.tx(), &self.policy);
        if tx.chain_id != self.terms.chain_id {
            return Err("the transaction is for another chain");
        }
        if tx.fee_token.is_some() {
            return Err("a sponsored transaction names no fee token: the sponsor does");
        }
        if !tx.tempo_authorization_list.is_empty() || tx.key_authorization.is_some() {
            return Err("a sponsored transaction may authorize nothing");
        }
        // Whether such a key may sign for the account is known to the chain alone: anyone could use up another's part of the budget.
        if matches!(draft.envelope.signature, TempoSignature::Keychain(_)) {
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
        if valid_until < now.plus(LEAST_SECONDS) {
            return Err("a sponsored transaction must be valid for 15 seconds more");
        }
        if valid_until > now.plus(policy.max_validity_window_seconds) {
            return Err("a sponsored transaction may be valid for 15 minutes at most");
        }
        if tx.valid_after.is_some_and(|t| UnixSeconds(t.get()) > now) {
            return Err("validAfter is not reached");
        }
        let trial = self.the_one_call(tx, draft.envelope.sender, purpose)?;
        if draft.envelope.sender == self.address() {
            return Err("the sponsor does not pay its own way");
        }
        if draft.signed.recover_signer().ok() != Some(draft.envelope.sender) {
            return Err("the signature is not the sender's");
        }
        Ok(Reviewed { purpose, trial, worst, valid_until, draft })
    }

    /// The transaction's only call, if it is the allowed one in its only encoding.
    fn the_one_call(&self, tx: &TempoTransaction, from: Address, purpose: Purpose) -> Result<Trial, &'static str> {
        let other = "a sponsored transaction holds exactly the call that is due, and this one does not";
        let [call] = tx.calls.as_slice() else { return Err(other) };
        let TxKind::Call(to) = call.to else { return Err(other) };
        let at_reserve = |(selector, length): ([u8; 4], usize)| {
            to == RESERVE && call.input.len() == length && call.input.starts_with(&selector)
        };
        let due = match purpose {
            Purpose::Charge { amount } => {
                to == self.terms.currency
                    && transfer(&call.input) == Some((self.terms.recipient, U256::from(amount.0)))
                    && amount.0 > 0
            }
            Purpose::Open => at_reserve(OPEN),
            Purpose::TopUp => at_reserve(TOP_UP),
        };
        if !due || !call.value.is_zero() {
            return Err(other);
        }
        Ok(Trial { from, to, input: call.input.clone(), gas: tx.gas_limit })
    }

    /// Tries a reviewed transaction, sets its fee aside and gives out the bytes to send. Shown again, the same transaction is
    /// neither tried nor set aside again. What it really cost is looked up by itself and the rest given back.
    pub async fn cosign(self: &Arc<Self>, reviewed: Reviewed) -> Result<Cosigned, Refusal> {
        let Reviewed { draft, purpose, trial, worst, valid_until } = reviewed;
        let now = UnixSeconds::now();
        if valid_until < now.plus(LEAST_SECONDS) {
            return Err(invalid("a sponsored transaction must be valid for 15 seconds more"));
        }
        let payer = draft.envelope.sender;
        let turn = self.begin((payer, draft.signed.signature_hash()), valid_until, now)?;
        let cosigned = Cosigned { raw: draft.raw, hash: draft.hash, valid_until };
        if turn.found == Some(Tested::Reserved) {
            return Ok(cosigned);
        }
        let short = |short| self.short(short, purpose, now);
        self.budget.covers(payer, worst, now).await.map_err(short)?;
        if turn.found.is_none() {
            match self.fees.trial(&trial).await {
                Ok(Tried::Passes) => turn.leave(Tested::Passes),
                Ok(Tried::Fails) => {
                    turn.leave(Tested::Fails);
                    self.count(purpose, "fails");
                    return Err(would_fail());
                }
                Err(e) => {
                    self.count(purpose, "unknown");
                    tracing::warn!(section = %self.terms.section, why = e.why, "a sponsored transaction could not be tried");
                    let why = "the chain cannot be asked".to_owned();
                    return Err(Refusal::NoOffer { retry_after_seconds: 5, why });
                }
            }
        }
        let reserved = self.budget.reserve(payer, worst, now).await.map_err(short)?;
        turn.leave(Tested::Reserved);
        self.tell_of_the_budget(now);
        self.count(purpose, "cosigned");
        tokio::spawn(Arc::clone(self).follow(cosigned.hash, reserved, valid_until, purpose));
        Ok(cosigned)
    }

    /// Takes the turn of one signature; while it is taken, copies are told that it is in use.
    fn begin(&self, key: (Address, B256), until: UnixSeconds, now: UnixSeconds) -> Result<Turn<'_>, Refusal> {
        let mut trials = self.trials();
        let found = trials.get(&key).map(|r| r.state);
        match found {
            Some(Tested::Running) => return Err(Refusal::ProofRunning { retry_after_seconds: 2 }),
            Some(Tested::Fails) => return Err(would_fail()),
            Some(Tested::Passes | Tested::Reserved) => {}
            None => {
                if trials.len() >= MAX_REMEMBERED {
                    trials.retain(|_, r| r.until >= now || r.state == Tested::Running);
                }
                if trials.len() >= MAX_REMEMBERED {
                    let limit = "sponsored transactions at once";
                    return Err(Refusal::TooBusy { address_at_fault: false, retry_after_seconds: 30, limit });
                }
            }
        }
        trials.insert(key, Remembered { until, state: Tested::Running });
        Ok(Turn { sponsor: self, key, until, found, left: Mutex::new(found) })
    }

    fn trials(&self) -> MutexGuard<'_, HashMap<(Address, B256), Remembered>> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn short(&self, short: Short, purpose: Purpose, now: UnixSeconds) -> Refusal {
        self.count(purpose, if short == Short::Payer { "payer_share" } else { "budget" });
        match short {
            Short::Day => {
                tracing::warn!(section = %self.terms.section, left = %self.budget.left(now), "a fee was not carried: the budget does not cover it");
                invalid("fees are not carried any more today: pay this one yourself")
            }
            Short::Payer => invalid("your fees are not carried any more today: pay this one yourself"),
            Short::Store(e) => {
                tracing::error!(error = %e, "the store cannot answer: no fee is carried");
                Refusal::Store { retry_after_seconds: 10 }
            }
        }
    }

    /// Waits until the chain says what a transaction cost, or until it can no longer be mined, and gives the rest back.
    async fn follow(self: Arc<Self>, hash: B256, reserved: Reserved, valid_until: UnixSeconds, purpose: Purpose) {
        let over = valid_until.plus(LAG_SECONDS);
        let cost = loop {
            tokio::time::sleep(self.terms.look_every).await;
            // The clock first: what is absent after the end was absent at the end.
            let ended = UnixSeconds::now() > over;
            match self.fees.fee(hash).await {
                Ok(Some(fee)) => break fee,
                Ok(None) if ended => break Usd::ZERO,
                // A node that is silent for minutes after the end: the money stays set aside until midnight.
                Err(_) if UnixSeconds::now() > over.plus(600) => return,
                Ok(None) | Err(_) => {}
            }
        };
        if cost > Usd::ZERO {
            #[allow(clippy::cast_precision_loss)]
            let shown = cost.0 as f64 / 1e18;
            self.metrics.sponsored_usd.with_label_values(&[&self.rail(purpose)]).inc_by(shown);
        }
        if let Err(e) = self.budget.give_back(&reserved, reserved.amount.less(cost)).await {
            tracing::error!(error = %e, "what a sponsored transaction did not cost was not given back");
        }
        self.tell_of_the_budget(UnixSeconds::now());
    }

    fn rail(&self, purpose: Purpose) -> String {
        let intent = if matches!(purpose, Purpose::Charge { .. }) { "charge" } else { "session" };
        format!("{}/{intent}", self.terms.section)
    }

    fn count(&self, purpose: Purpose, outcome: &str) {
        self.metrics.sponsored.with_label_values(&[self.rail(purpose).as_str(), outcome]).inc();
    }
}

/// One signature's turn. Dropped half-way (the client left, the node was silent), the signature is where it was before.
struct Turn<'s> {
    sponsor: &'s Sponsor,
    key: (Address, B256),
    until: UnixSeconds,
    found: Option<Tested>,
    /// What it is left at.
    left: Mutex<Option<Tested>>,
}

impl Turn<'_> {
    fn leave(&self, state: Tested) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trials = self.sponsor.trials();
        match left {
            Some(state) => drop(trials.insert(self.key, Remembered { until: self.until, state })),
            None => drop(trials.remove(&self.key)),
        }
    }
}

/// Whether these bytes are an envelope.
pub fn is_envelope(bytes: &[u8]) -> bool {
    bytes.first() == Some(&TEMPO_FEE_PAYER_ENVELOPE_TYPE_ID)
}

/// Payee and amount of a `transfer` or `transferWithMemo` in its only encoding.
fn transfer(input: &Bytes) -> Option<(Address, U256)> {
    if let Ok(call) = ITIP20::transferCall::abi_decode(input) {
        return (call.abi_encode() == input.as_ref()).then_some((call.to, call.amount));
    }
    let call = ITIP20::transferWithMemoCall::abi_decode(input).ok()?;
    (call.abi_encode() == input.as_ref()).then_some((call.to, call.amount))
}

fn would_fail() -> Refusal {
    invalid("the transaction would fail as things stand: nothing was sent")
}

fn invalid(why: &'static str) -> Refusal {
    Refusal::PaymentInvalid { why: why.to_owned() }
}

#[cfg(test)]
#[path = "sponsor_tests.rs"]
mod tests;
