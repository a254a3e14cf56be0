//! Carrying payers' transaction fees: a wallet that holds the price and nothing else can pay.
//!
//! The payer signs his transaction without a fee token and hands it over as an *envelope* (`0x78`); we add the fee token and our
//! signature, and it becomes the transaction (`0x76`) that is sent. What we sign costs us whether or not it does what it is for, so
//! it is signed for a buyer only when all of this holds:
//!
//! 1. [`Sponsor::review`], pure: the canonical bytes of exactly one allowed call, nothing else in the transaction that costs
//!    anything, gas and fees under the crate's own caps, an expiring nonce, the payer's own valid signature. That holds of one that was
//!    sent before as well;
//! 2. [`Sponsor::cosign`]: [`LEAST_SECONDS`] are left, the call goes through on the newest state (asked once per signature, and never before the signature was
//!    verified), and its largest possible fee is set aside in the day's [`Budget`].
//!
//! Our signature is deterministic (RFC 6979) and the fee token fixed (the rail's currency), so the hash that the transaction will
//! have on chain is known from the envelope alone. It is the identity of the proof, in the namespace of transactions: computing it
//! takes the signature, which stays in memory until step 2 has passed. It follows that a new key makes new identities: change the
//! key when no sponsored payment is open or owed.
//!
//! A *relay* may do the carrying instead of a key of ours. Then the hash is the relay's to choose, so a proof is known by what the
//! payer signed and by whom, in a namespace of its own (which is why a rail with a relay takes no pushed payments); the money is the
//! relay's too, and so is the budget. What the relay hands back is sent only if it is the payer's transaction and nothing else.
//!
//! What remains: a payer who moves his money between the trial and the block makes us pay for a revert. That is what his part of the
//! budget bounds.

use super::budget::{Budget, Reserved, Short};
use super::collect::LAG_SECONDS;
use super::envelope::{self, Allowed, Found};
use super::untried;
use crate::chain::fees::{Fees, Trial, Tried};
use crate::chain::relay::Relay;
use crate::chain::{Address, B256, Unreachable};
use crate::clock::UnixSeconds;
use crate::metrics::{Metrics, shown};
use crate::money::{Atoms, Usd};
use crate::refusal::Refusal;
use crate::secret::Secret;
use crate::store::Store;
use ::mpp::protocol::methods::tempo::{FeePayerEnvelope78, FeePayerPolicy};
use alloy::eips::{Decodable2718 as _, Encodable2718 as _};
use alloy::primitives::keccak256;
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempo_alloy::primitives::{AASigned, TempoTransaction};

pub use super::envelope::{DEAREST, LEAST_SECONDS, Purpose, is_envelope};

/// How often the chain is asked what a sponsored transaction cost.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long nothing is offered after a relay failed.
const RELAY_RESTS_SECONDS: u64 = 10;
/// Most signatures whose trial is remembered; each is forgotten when its transaction is over, and those that failed when there is no
/// room.
const MAX_REMEMBERED: usize = 16 * 1024;
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
    /// How often the chain is asked what a transaction cost.
    pub look_every: Duration,
}

/// Who carries the fees.
pub enum Hand {
    /// An account of ours.
    Own {
        /// Its key, 32 bytes.
        key: Secret,
        /// The most that may be spent in a day.
        usd_per_day: Usd,
        /// Where the budget is kept.
        store: Arc<dyn Store>,
    },
    /// Somebody else's.
    Relay(Arc<dyn Relay>),
}

/// An envelope decoded, with what it would become. Nothing about it is believed.
#[derive(Clone, Debug)]
pub struct Draft {
    envelope: FeePayerEnvelope78,
    /// As the payer signed it.
    signed: AASigned,
    /// As it will be sent; empty while that is up to a relay.
    raw: Vec<u8>,
    hash: B256,
}

impl Draft {
    /// The hash of the transaction that will be sent; with a relay, of what the payer signed and his address.
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// The namespace of that hash among the proofs of a chain.
    pub fn space(&self) -> &'static str {
        if self.raw.is_empty() { "sponsored" } else { "tx" }
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

    /// [`Draft::hash`].
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
    allowed: Allowed,
    carrier: Carrier,
    fees: Arc<dyn Fees>,
    metrics: Arc<Metrics>,
    /// By what the payer signed.
    trials: Mutex<HashMap<(Address, B256), Remembered>>,
    funded: AtomicBool,
    /// Whether the operator was told that the budget is used up.
    alarmed: AtomicBool,
}

enum Carrier {
    Own {
        signer: Box<PrivateKeySigner>,
        budget: Box<Budget>,
    },
    Relay {
        relay: Arc<dyn Relay>,
        /// It failed: no offers until then.
        rests_until: AtomicU64,
    },
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
    /// A sponsor. The error is a sentence that does not repeat the key.
    pub fn new(terms: Terms, hand: Hand, fees: Arc<dyn Fees>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let carrier = match hand {
            Hand::Relay(relay) => Carrier::Relay { relay, rests_until: AtomicU64::new(0) },
            Hand::Own { key, usd_per_day, store } => {
                let signer = B256::try_from(key.expose()).ok().and_then(|key| PrivateKeySigner::from_bytes(&key).ok());
                let signer = signer.ok_or("the sponsor's key is not a private key")?;
                if signer.address() == terms.recipient {
                    return Err(
                        "the sponsor's key is the recipient's: fees would be taken from what was earned".to_owned()
                    );
                }
                let budget = Box::new(Budget::new(&terms.section, usd_per_day, store));
                Carrier::Own { signer: Box::new(signer), budget }
            }
        };
        let allowed = Allowed {
            chain_id: terms.chain_id,
            currency: terms.currency,
            recipient: terms.recipient,
            policy: FeePayerPolicy::resolve(terms.chain_id, None),
        };
        Ok(Self {
            terms,
            allowed,
            carrier,
            fees,
            metrics,
            trials: Mutex::default(),
            funded: AtomicBool::new(false),
            alarmed: AtomicBool::new(false),
        })
    }

    /// Whether offers may say that fees are carried: the dearest transaction that is allowed fits into today's budget, and our
    /// account can pay for it. No I/O.
    pub fn offers(&self, now: UnixSeconds) -> bool {
        match &self.carrier {
            Carrier::Own { budget, .. } => self.funded.load(Ordering::Relaxed) && budget.left(now) >= DEAREST,
            Carrier::Relay { rests_until, .. } => now.0 >= rests_until.load(Ordering::Relaxed),
        }
    }

    /// Whether a relay sends what is sponsored, under a hash of its own.
    pub fn is_relay(&self) -> bool {
        matches!(self.carrier, Carrier::Relay { .. })
    }

    /// Looks at our account and at today's budget. The rail's watch calls it.
    pub async fn probe(&self, now: UnixSeconds) {
        let Carrier::Own { signer, budget } = &self.carrier else { return };
        let (section, account) = (&self.terms.section, signer.address());
        if let Err(e) = budget.learn(now).await {
            tracing::error!(%section, error = %e, "the sponsor's budget cannot be read");
        }
        self.tell_of_the_budget(budget, now);
        let Ok(held) = self.fees.balance(self.terms.currency, account).await else { return };
        let enough = Atoms(held).to_usd(6).is_none_or(|usd| usd >= DEAREST);
        if self.funded.swap(enough, Ordering::Relaxed) != enough || !enough {
            match enough {
                true => tracing::info!(%section, %account, "the sponsor's account can pay fees"),
                false => tracing::error!(%section, %account, "the sponsor's account is empty: fees are not carried"),
            }
        }
    }

    fn tell_of_the_budget(&self, budget: &Budget, now: UnixSeconds) {
        let used_up = budget.left(now) < DEAREST;
        if self.alarmed.swap(used_up, Ordering::Relaxed) != used_up && used_up {
            tracing::error!(
                section = %self.terms.section,
                "the sponsor's budget for today is used up: payers carry their own fees until midnight UTC"
            );
        }
    }

    /// Decodes an envelope and makes of it what would be sent. No I/O, nothing believed; the error is a sentence about its form.
    pub fn draft(&self, bytes: &[u8]) -> Result<Draft, &'static str> {
        let (envelope, signed) = envelope::decode(bytes)?;
        let Carrier::Own { signer, .. } = &self.carrier else {
            let hash = keccak256([&signed.signature_hash()[..], &envelope.sender[..]].concat());
            return Ok(Draft { envelope, signed, raw: Vec::new(), hash });
        };
        let (mut tx, signature, _) = signed.clone().into_parts();
        tx.fee_token = Some(self.terms.currency);
        tx.fee_payer_signature = None;
        let ours = signer.sign_hash_sync(&tx.fee_payer_signature_hash(envelope.sender));
        tx.fee_payer_signature = Some(ours.map_err(|_| "our own signature failed")?);
        let raw = tx.into_signed(signature).encoded_2718();
        let hash = keccak256(&raw);
        Ok(Draft { envelope, signed, raw, hash })
    }

    /// Whether we would carry the fee of this envelope. Pure: cheapest checks first, the payer's signature last.
    pub fn review(&self, envelope: &[u8], purpose: Purpose, now: UnixSeconds) -> Result<Reviewed, Refusal> {
        let reviewed = self.draft(envelope).and_then(|draft| {
            if matches!(&self.carrier, Carrier::Own { signer, .. } if signer.address() == draft.envelope.sender) {
                return Err("the sponsor does not pay its own way");
            }
            let Found { trial, worst, valid_until } =
                self.allowed.examine(&draft.envelope, &draft.signed, purpose, now)?;
            Ok(Reviewed { draft, purpose, trial, worst, valid_until })
        });
        reviewed.map_err(|why| {
            self.count(purpose, "refused");
            Refusal::PaymentInvalid { why: why.to_owned() }
        })
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
        match &self.carrier {
            Carrier::Relay { relay, rests_until } => {
                self.try_out(&turn, &trial, purpose).await?;
                let said = relay.sign(&draft.envelope.encoded_envelope()).await;
                let cosigned = self.relayed(&draft, said, valid_until).inspect_err(|refusal| {
                    if !refusal.invites_payment() {
                        rests_until.store(now.plus(RELAY_RESTS_SECONDS).0, Ordering::Relaxed);
                    }
                    self.count(purpose, "unknown");
                })?;
                self.count(purpose, "cosigned");
                Ok(cosigned)
            }
            Carrier::Own { budget, .. } => {
                let cosigned = Cosigned { raw: draft.raw, hash: draft.hash, valid_until };
                if turn.found == Some(Tested::Reserved) {
                    return Ok(cosigned);
                }
                let short = |short| self.short(short, budget, purpose, now);
                budget.covers(payer, worst, now).await.map_err(short)?;
                self.try_out(&turn, &trial, purpose).await?;
                let reserved = budget.reserve(payer, worst, now).await.map_err(short)?;
                turn.leave(Tested::Reserved);
                self.tell_of_the_budget(budget, now);
                self.count(purpose, "cosigned");
                tokio::spawn(Arc::clone(self).follow(cosigned.hash, reserved, valid_until, purpose));
                Ok(cosigned)
            }
        }
    }

    /// Asks the chain whether the call goes through, unless this signature's was asked before.
    async fn try_out(&self, turn: &Turn<'_>, trial: &Trial, purpose: Purpose) -> Result<(), Refusal> {
        if turn.found.is_some() {
            return Ok(());
        }
        match self.fees.trial(trial).await {
            Ok(Tried::Passes) => {
                turn.leave(Tested::Passes);
                Ok(())
            }
            Ok(Tried::Fails) => {
                turn.leave(Tested::Fails);
                self.count(purpose, "fails");
                Err(would_fail())
            }
            Err(e) => {
                self.count(purpose, "unknown");
                Err(untried(&self.terms.section, e.why))
            }
        }
    }

    /// What a relay made of a draft, if it is the payer's own transaction with a fee that somebody carries.
    fn relayed(
        &self,
        draft: &Draft,
        said: Result<Option<Vec<u8>>, Unreachable>,
        valid_until: UnixSeconds,
    ) -> Result<Cosigned, Refusal> {
        let section = &self.terms.section;
        let raw = match said {
            Ok(Some(raw)) => raw,
            Ok(None) => return Err(invalid("the fee of this transaction is not carried: pay it yourself")),
            Err(e) => {
                tracing::error!(%section, why = e.why, "the relay that carries fees does not answer");
                return Err(Refusal::NoOffer { retry_after_seconds: 5, why: "the relay cannot be asked".to_owned() });
            }
        };
        let signed = AASigned::decode_2718(&mut &*raw).ok().filter(|signed| signed.encoded_2718() == raw);
        let own = signed.filter(|signed| {
            let sender = draft.envelope.sender;
            let carried = signed.tx().fee_payer_signature.is_some()
                && signed.tx().recover_fee_payer(sender).is_ok_and(|carrier| carrier != sender);
            let mut tx = signed.tx().clone();
            (tx.fee_token, tx.fee_payer_signature) = (None, draft.tx().fee_payer_signature);
            carried && tx == *draft.tx() && signed.signature() == draft.signed.signature()
        });
        if own.is_none() {
            tracing::error!(%section, "the relay handed back another transaction than it was given: it is not sent");
            return Err(Refusal::NoOffer { retry_after_seconds: 5, why: "the relay cannot be used".to_owned() });
        }
        Ok(Cosigned { hash: keccak256(&raw), raw, valid_until })
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
                    // What failed costs a stranger nothing, and us one more question when it is shown again.
                    trials.retain(|_, r| match r.state {
                        Tested::Running => true,
                        Tested::Fails => false,
                        Tested::Passes | Tested::Reserved => r.until >= now,
                    });
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

    fn short(&self, short: Short, budget: &Budget, purpose: Purpose, now: UnixSeconds) -> Refusal {
        self.count(purpose, if short == Short::Payer { "payer_share" } else { "budget" });
        match short {
            Short::Day => {
                tracing::warn!(section = %self.terms.section, left = %budget.left(now), "a fee was not carried: the budget does not cover it");
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
        let Carrier::Own { budget, .. } = &self.carrier else { return };
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
            self.metrics.sponsored_usd.with_label_values(&[&self.rail(purpose)]).inc_by(shown(cost));
        }
        if let Err(e) = budget.give_back(&reserved, reserved.amount.less(cost)).await {
            tracing::error!(error = %e, "what a sponsored transaction did not cost was not given back");
        }
        self.tell_of_the_budget(budget, UnixSeconds::now());
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

fn would_fail() -> Refusal {
    invalid("the transaction would fail as things stand: nothing was sent")
}

fn invalid(why: &'static str) -> Refusal {
    Refusal::PaymentInvalid { why: why.to_owned() }
}

#[cfg(test)]
#[path = "sponsor_tests.rs"]
mod tests;
