//! `exact` and `upto` as ways to pay: offers under our MAC, payments recognised by them, money taken through a facilitator and, where
//! a node is configured, looked for on the chain itself.
//!
//! What a facilitator says is believed up to an amount that the operator sets. When it does not say what became of a payment, the chain
//! is asked; without a chain the same payment is handed in again, and once that can no longer tell, it is nobody's
//! ([`Collected::Unprovable`]): refused, and never asked for a second time.

mod known;

use super::evidence::{Evidence, Movement, Node, Trace};
use super::facilitator::{Call, Expects, Facilitator, Kind, Settlement, Support, Verdict};
use super::offer::{self, Bound, Stamp};
use super::shown;
use super::signed::{self, Signed, Wanted};
use super::solana;
use super::wire::{self, Entry, FEE_PAYER, OFFER, Payment, Resource, Scheme, Settled, Version};
use crate::claim::{Claim, Standing, Terms};
use crate::clock::UnixSeconds;
use crate::ids::{self, PublicModel, RailId};
use crate::journal::Receipt;
use crate::money::{Atoms, Usd};
use crate::network::{Asset, Family, Network};
use crate::rail::ring::KeyRing;
use crate::rail::{Ask, Collected, HAND_IN_SECONDS, Identity, Offer, Proof, Rail, Recognised, Shown, Way, When};
use crate::refusal::Refusal;
use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// Seconds an offer lives.
const OFFER_SECONDS: u64 = 300;
/// What a signature should outlive the request by.
const AFTER_SECONDS: u64 = 60;
/// How long after that a node is asked what it could not say.
const GIVEN_UP_SECONDS: u64 = 6 * 3_600;
/// How long before it was shown to us a payment may have been handed in by somebody else: as long as its first copy can have been shown.
const BEFORE_SECONDS: u64 = 1_800;
/// How long a Solana transaction can land after it was signed: the life of its blockhash, with room.
const SOLANA_SECONDS: u64 = 180;
/// How often a transaction that a facilitator names is looked for before the answer is left to the recovery.
const LOOKS: u32 = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// Longest wait for what the chain shows of a payment that nobody has claimed yet.
const LOOK: Duration = Duration::from_secs(5);
/// The word in `extra` that names the model, for requests that name none.
const MODEL: &str = "model";

/// One section's terms for one scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `base/exact`.
    pub id: RailId,
    /// Its scheme.
    pub scheme: Scheme,
    /// Where.
    pub network: Network,
    /// In what.
    pub asset: Asset,
    /// To whom.
    pub pay_to: String,
    /// Token and payee of the other sections on this network that take `exact` by the token's own authorization: a payment of v1
    /// names neither.
    pub beside: Vec<(Asset, String)>,
    /// By Permit2 instead of EIP-3009; `upto` always is.
    pub permit2: bool,
    /// `exact`: taken before the request is served, not after its success.
    pub first: bool,
    /// Most that one request is authorized for (`upto`). Wallets refuse more than a dollar unless told otherwise.
    pub ceiling: Usd,
    /// Most that one payer may have promised and not paid.
    pub exposure: Usd,
    /// Above this the chain is asked whether a facilitator told the truth.
    pub evidence_above: Usd,
    /// Scheme, host and port of the gate, without a trailing slash.
    pub public_url: String,
}

/// A way to pay by x402.
pub struct X402 {
    settings: Settings,
    ring: Arc<KeyRing>,
    facilitator: Arc<dyn Facilitator>,
    evidence: Option<Node>,
}

/// A payment as it is handed in and looked for.
struct Handing<'a> {
    kept: Kept<'a>,
    payer: Option<&'a str>,
    /// This much is to be taken,
    amount: Atoms,
    /// of this much that was asked for.
    most: Atoms,
    /// When it was shown to us.
    shown: UnixSeconds,
    /// It was handed in before.
    again: bool,
}

/// What is kept of a payment until its outcome is known. Whoever holds it can hand the payment in: it never leaves the store.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    version: Version,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    requirements: &'a RawValue,
}

impl X402 {
    /// A way to pay through `facilitator`, with `evidence` of the chain where there is a node.
    pub fn new(
        settings: Settings,
        ring: Arc<KeyRing>,
        facilitator: Arc<dyn Facilitator>,
        evidence: Option<Arc<dyn Evidence>>,
    ) -> Self {
        Self { settings, ring, facilitator, evidence: evidence.map(Node::new) }
    }

    fn kind(&self, version: Version) -> Kind {
        Kind { version, scheme: self.settings.scheme, network: self.settings.network.clone() }
    }

    fn is_solana(&self) -> bool {
        self.settings.network.family == Family::Solana
    }

    /// Whether some requests are paid for after their reply.
    fn may_wait(&self) -> bool {
        self.when(false) != When::First
    }

    /// The entry of `accepts` for these terms, without our offer in it.
    fn entry(&self, terms: &Terms, lasts: u64, support: &Support, v1: bool) -> Entry {
        let Settings { scheme, network, asset, pay_to, permit2, .. } = &self.settings;
        let mut extra = serde_json::Map::new();
        let mut say = |word: &str, text: &str| drop(extra.insert(word.to_owned(), Value::from(text)));
        if !self.is_solana() {
            say("name", &asset.name);
            say("version", &asset.version);
        }
        if *permit2 {
            say("assetTransferMethod", "permit2");
        }
        if *scheme == Scheme::Upto {
            say("facilitatorAddress", support.facilitator_address.as_deref().unwrap_or(""));
        }
        if self.is_solana() {
            say(FEE_PAYER, support.fee_payer.as_deref().unwrap_or(""));
        }
        say(MODEL, terms.model.as_str());
        let max_timeout_seconds = match self.may_wait() {
            true => lasts.saturating_add(OFFER_SECONDS).saturating_add(AFTER_SECONDS),
            false => OFFER_SECONDS,
        };
        Entry {
            scheme: *scheme,
            network: network.clone(),
            amount: terms.amount,
            asset: asset.address.clone(),
            pay_to: pay_to.clone(),
            max_timeout_seconds,
            extra,
            v1,
            sponsors_approval: *permit2 && support.sponsors_approval,
        }
    }

    /// Whether clients of v1 may pay here: the scheme is the one they know, and so is the network, to them and to the facilitator.
    fn takes_v1(&self) -> bool {
        let Settings { scheme, network, permit2, .. } = &self.settings;
        *scheme == Scheme::Exact
            && !permit2
            && network.v1().is_some()
            && self.facilitator.support(&self.kind(Version::V1)).is_ok()
    }

    /// Solana: whom offers of ours name, or named, as the one who pays the fee. A facilitator with several may name another one in
    /// every answer and for every kind, so another gate, an older answer or v1 (whose clients are told what v2's are) named another.
    fn fee_payers(&self, payment: &Payment) -> Vec<String> {
        let kinds = [Version::V1, Version::V2].map(|version| self.facilitator.support(&self.kind(version)));
        let named = kinds.into_iter().filter_map(|support| support.ok()?.fee_payer);
        // Under the offer's MAC.
        let offered = payment.accepted.as_ref().and_then(|accepted| accepted.extra.get(FEE_PAYER)?.as_str());
        named.chain(offered.map(str::to_owned)).collect()
    }

    fn resource_url(&self, terms: &Terms) -> String {
        format!("{}{}", self.settings.public_url, terms.route)
    }

    /// How long the payment may still have to wait before it is handed in.
    fn must_last(&self, lasts: u64) -> u64 {
        if self.may_wait() { lasts.saturating_add(HAND_IN_SECONDS) } else { HAND_IN_SECONDS }
    }

    /// What a claim is to pay, as this rail's chain would show it.
    fn movement(&self, handing: &Handing<'_>) -> Movement<'_> {
        let Settings { asset, pay_to, .. } = &self.settings;
        let since = UnixSeconds(handing.shown.0.saturating_sub(BEFORE_SECONDS));
        Movement { token: &asset.address, to: pay_to, amount: handing.amount, since }
    }

    /// Hands the payment in once.
    async fn settle(&self, handing: &Handing<'_>) -> Collected {
        let Handing { kept, payer, amount, most, again, .. } = handing;
        let (payer, amount, most, again) = (*payer, *amount, *most, *again);
        let requirements = match amount == most {
            true => Some(Cow::Borrowed(kept.requirements)),
            false => asking(kept.requirements, amount).map(Cow::Owned),
        };
        let Some(requirements) = requirements else { return Collected::Unknown };
        let expects = Expects { network: &self.settings.network, payer, amount };
        let call = Call { version: kept.version, payload: kept.payload, requirements: &requirements, expects, again };
        match self.facilitator.settle(&call).await {
            Settlement::Settled { transaction, .. } => self.believe(transaction, handing).await,
            Settlement::Failed { reason } if is_used(&reason) => match self.trace(handing).await {
                Trace::Moved { transaction } => Collected::Settled { transaction },
                Trace::Gone => failed("it was used up for something else"),
                // It says used, the chain says new or nothing at all.
                Trace::Unused => Collected::Unknown,
                Trace::Unknown if self.evidence.is_some() => Collected::Unknown,
                Trace::Unknown => Collected::Unprovable,
            },
            // Whoever saw the authorization may have handed it in first, and a facilitator may take the money and say that it did not:
            // its payer must not pay twice.
            Settlement::Failed { reason } => match self.trace(handing).await {
                Trace::Moved { transaction } => Collected::Settled { transaction },
                _ => failed(&reason),
            },
            // Whatever it leaves open, the chain may know by now: then the answer that waits for it need not be made a second time.
            Settlement::Unknown { why } => {
                tracing::warn!(rail = %self.settings.id, why, "a settlement's outcome is not known");
                match self.trace(handing).await {
                    Trace::Moved { transaction } => Collected::Settled { transaction },
                    Trace::Gone => failed("it was used up for something else"),
                    Trace::Unused | Trace::Unknown => Collected::Unknown,
                }
            }
        }
    }

    fn is_dear(&self, amount: Atoms) -> bool {
        self.evidence.is_some()
            && amount.to_usd(self.settings.asset.decimals).is_none_or(|usd| usd > self.settings.evidence_above)
    }

    /// Takes a facilitator's word for a small amount, and the chain's for a larger one.
    async fn believe(&self, transaction: String, handing: &Handing<'_>) -> Collected {
        let Some(evidence) = self.evidence.as_ref().filter(|_| self.is_dear(handing.amount)) else {
            return Collected::Settled { transaction };
        };
        let Some(signed) = shown::again(handing.kept.payload) else { return Collected::Unknown };
        for _ in 0..LOOKS {
            match evidence.shows(&transaction, &signed, &self.movement(handing)).await {
                Trace::Moved { transaction } => return Collected::Settled { transaction },
                Trace::Gone | Trace::Unused => {
                    tracing::error!(rail = %self.settings.id, transaction, "the facilitator names a transaction that does not pay");
                    return match self.trace(handing).await {
                        Trace::Moved { transaction } => Collected::Settled { transaction },
                        Trace::Gone => failed("it was used up for something else"),
                        Trace::Unused | Trace::Unknown => Collected::Unknown,
                    };
                }
                Trace::Unknown => tokio::time::sleep(BETWEEN_LOOKS).await,
            }
        }
        Collected::Unknown
    }

    /// What the chain shows of a payment, where there is a node.
    async fn trace(&self, handing: &Handing<'_>) -> Trace {
        let Some(evidence) = &self.evidence else { return Trace::Unknown };
        match shown::again(handing.kept.payload) {
            Some(signed) => evidence.trace(&signed, &self.movement(handing)).await,
            None => Trace::Unknown,
        }
    }
}

/// Words by which facilitators say that an authorization was used before.
fn is_used(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    ["nonce_already_used", "duplicate_settlement", "nonce_used", "authorization_used", "already_processed"]
        .iter()
        .any(|word| reason.contains(word))
}

fn failed(why: &str) -> Collected {
    Collected::Failed { why: why.to_owned() }
}

/// The requirements with another amount.
fn asking(requirements: &RawValue, amount: Atoms) -> Option<Box<RawValue>> {
    let mut words: serde_json::Map<String, Value> = serde_json::from_str(requirements.get()).ok()?;
    let word = if words.contains_key("maxAmountRequired") { "maxAmountRequired" } else { "amount" };
    words.insert(word.to_owned(), Value::from(amount.to_string()));
    serde_json::value::to_raw_value(&words).ok()
}

impl Way for X402 {
    fn id(&self) -> &RailId {
        &self.settings.id
    }

    fn range(&self) -> (&'static str, &'static str) {
        match self.settings.scheme {
            Scheme::Exact => ("x402", "exact"),
            Scheme::Upto => ("x402", "upto"),
        }
    }

    fn currency(&self) -> &str {
        &self.settings.asset.address
    }

    fn decimals(&self) -> u8 {
        self.settings.asset.decimals
    }

    fn facts(&self) -> (String, String) {
        let Settings { id, network, asset, pay_to, .. } = &self.settings;
        (id.to_string(), format!("{pay_to} in {} on {network}", asset.address))
    }

    fn node(&self) -> Option<Result<(), String>> {
        self.evidence.as_ref().map(Node::standing)
    }

    fn standing(&self) -> Result<(), String> {
        let support = self.facilitator.support(&self.kind(Version::V2))?;
        match (self.settings.scheme, self.is_solana()) {
            (Scheme::Upto, _) if support.facilitator_address.is_none() => {
                Err("the facilitator does not say by which address it settles".to_owned())
            }
            (_, true) if support.fee_payer.is_none() => Err("the facilitator does not say who pays the fee".to_owned()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Rail for X402 {
    fn offer(&self, ask: &Ask<'_>, now: UnixSeconds) -> Result<Offer, Refusal> {
        let defect = || Refusal::Internal { place: "x402: offer" };
        let none = |why| Refusal::NoOffer { retry_after_seconds: 5, why };
        let support = self.facilitator.support(&self.kind(Version::V2)).map_err(none)?;
        let mut entry = self.entry(ask.terms, ask.lasts, &support, self.takes_v1());
        let Terms { route, model, generation, price, .. } = ask.terms;
        let stamp = Stamp {
            generation: generation.clone(),
            expires: now.plus(OFFER_SECONDS),
            price: *price,
            digest: ask.digest,
            salt: ids::salt(),
        };
        let bound = Bound { rail: &self.settings.id, route, model, entry: &entry };
        let text = offer::seal(&self.ring, &stamp, &bound).ok_or_else(defect)?;
        entry.extra.insert(OFFER.to_owned(), Value::from(text));
        let (protocol, scheme) = self.range();
        Ok(Offer {
            rail: self.settings.id.clone(),
            range: (protocol.to_owned(), scheme.to_owned()),
            headers: Vec::new(),
            challenge_id: None,
            entry: Some(Box::new(entry)),
        })
    }

    fn recognise(&self, shown: &Shown, live: &Ask<'_>) -> Result<Option<Recognised>, Refusal> {
        let Shown::X402(payment) = shown else { return Ok(None) };
        self.known(payment, live)
    }

    fn identity(&self, shown: &Shown, digest: [u8; 32]) -> Option<Identity> {
        let Shown::X402(payment) = shown else { return None };
        (self.takes(payment)).then(|| self.identity_of(payment, &digest))
    }

    fn offered(&self, shown: &Shown, _path: &str) -> Option<PublicModel> {
        let Shown::X402(payment) = shown else { return None };
        known::model_of(payment.accepted.as_ref()?)
    }

    async fn check(
        &self,
        shown: &Shown,
        mut recognised: Recognised,
        ask: &Ask<'_>,
        now: UnixSeconds,
    ) -> Result<Proof, Refusal> {
        let Shown::X402(payment) = shown else { return Err(Refusal::MalformedCredential) };
        if now >= recognised.expires {
            return Err(Refusal::OfferExpired);
        }
        if recognised.digest.is_some_and(|digest| digest != ask.digest) {
            return Err(Refusal::InvalidChallenge { why: "its offer was made for another body" });
        }
        if payment.version == Version::V1 && !self.takes_v1() {
            return Err(Refusal::InvalidChallenge { why: "it is not offered to v1 clients" });
        }
        let unchecked = |_| Refusal::PaymentUnchecked { retry_after_seconds: 5 };
        let support = self.facilitator.support(&self.kind(payment.version)).map_err(unchecked)?;
        let mut entry = self.entry(ask.terms, ask.lasts, &support, true);
        if let Some(accepted) = &payment.accepted {
            // Under our MAC it is what was offered, whatever the rules say now. For how long the signature must be good is asked below.
            entry.max_timeout_seconds = accepted.max_timeout_seconds;
        }
        wire::matches(payment, &entry).map_err(|why| Refusal::InvalidChallenge { why })?;
        let mut facilitators = support.signers.clone();
        facilitators.extend(support.facilitator_address.clone());
        if let Signed::Solana(transaction) = &payment.signed {
            facilitators.extend(self.fee_payers(payment));
            // A v1 payment does not say whom it was offered as fee payer; the facilitator compares with what we say.
            entry.extra.extend(solana::fee_payer(transaction).map(|payer| (FEE_PAYER.to_owned(), Value::from(payer))));
        }
        let wanted = Wanted {
            network: &self.settings.network,
            asset: &self.settings.asset,
            pay_to: &self.settings.pay_to,
            amount: ask.terms.amount,
            scheme: self.settings.scheme,
            permit2: self.settings.permit2,
            facilitators: &facilitators,
            memo: None,
            now,
            lasts: self.must_last(ask.lasts),
        };
        let standing = signed::check(&payment.signed, &wanted).map_err(|why| Refusal::PaymentInvalid { why })?;
        let is_proven = standing == signed::Standing::Proven;
        let entry = match &payment.accepted {
            Some(accepted) => entry.repeated(accepted),
            None => entry,
        };
        let url = self.resource_url(ask.terms);
        let resource = Resource { url: &url, description: "", mime_type: "application/json" };
        let requirements = wire::requirements(&entry, payment.version, &resource)
            .ok_or(Refusal::Internal { place: "x402: requirements" })?;
        let kept = Kept { version: payment.version, payload: &payment.raw, requirements: &requirements };
        recognised.resend = serde_json::to_string(&kept).ok();
        let collect_until = payment.signed.until().unwrap_or(now.plus(SOLANA_SECONDS));
        Ok(Proof { payer: payment.signed.payer(), is_proven, recognised, collect_until })
    }

    async fn watch(&self) {
        if let Some(node) = &self.evidence {
            node.watch(&self.settings.id).await;
        }
    }

    fn when(&self, streams: bool) -> When {
        let Settings { scheme, first, ceiling, exposure, .. } = self.settings;
        match scheme {
            Scheme::Upto => When::After { most: Some(ceiling), exposure },
            // A stream cannot be taken back, and a Solana transaction does not wait.
            Scheme::Exact if first || streams || self.is_solana() => When::First,
            Scheme::Exact => When::After { most: None, exposure },
        }
    }

    /// A refusal is not the last word where somebody may have handed the payment in before us: then it is paid, and will be found so when
    /// it is taken. Only the node can tell, and it is asked for nobody whose signature says nothing, unless the facilitator says that the
    /// payment is used. Of `upto` that cannot be: what will be used is not known yet.
    async fn complete(&self, _shown: &Shown, proof: Proof, first: bool) -> Result<Proof, Refusal> {
        let unchecked = |why: &str| {
            tracing::warn!(rail = %self.settings.id, why, "a payment could not be verified: nothing was taken");
            Refusal::PaymentUnchecked { retry_after_seconds: 5 }
        };
        let Some(handing) = shown_first(&proof) else { return Err(unchecked("it cannot be read again")) };
        let Handing { kept, payer, amount, .. } = &handing;
        let expects = Expects { network: &self.settings.network, payer: *payer, amount: *amount };
        let call = Call {
            version: kept.version,
            payload: kept.payload,
            requirements: kept.requirements,
            expects,
            again: false,
        };
        let reason = match self.facilitator.verify(&call).await {
            Verdict::Valid { .. } => return Ok(proof),
            Verdict::Invalid { reason } => reason,
            Verdict::Unknown { why } => return Err(unchecked(&why)),
        };
        let (used, exact) = (is_used(&reason), self.settings.scheme == Scheme::Exact);
        // It is claimed and followed until somebody knows for what it was used.
        if used && exact && first && proof.is_proven {
            return Ok(proof);
        }
        // A Solana transaction leaves nothing behind where it did not land: looking for it takes long and tells little.
        let may_tell = exact && (used || proof.is_proven && !self.is_solana());
        let trace = match may_tell {
            true => tokio::time::timeout(LOOK, self.trace(&handing)).await.unwrap_or(Trace::Unknown),
            false => Trace::Gone,
        };
        match trace {
            Trace::Moved { .. } => Ok(proof),
            Trace::Unused | Trace::Unknown if used && self.evidence.is_none() => Err(Refusal::PaymentUnproven),
            Trace::Unused | Trace::Unknown if used => Err(Refusal::PaymentUnknown { retry_after_seconds: 5 }),
            Trace::Unknown if self.evidence.is_some() => Err(unchecked("it is refused, and the node does not answer")),
            Trace::Gone | Trace::Unused | Trace::Unknown => Err(Refusal::PaymentInvalid { why: reason }),
        }
    }

    async fn collect(&self, _shown: &Shown, proof: &Proof) -> Collected {
        match shown_first(proof) {
            Some(handing) => self.settle(&handing).await,
            None => Collected::Unknown,
        }
    }

    async fn take(&self, claim: &Claim, _now: UnixSeconds) -> Collected {
        let Standing::Taking { amount, .. } = claim.standing else { return Collected::Unknown };
        match handing(claim, amount, false) {
            Some(handing) => self.settle(&handing).await,
            None => Collected::Unknown,
        }
    }

    /// It was handed in at least once, and nobody knows what came of it.
    async fn look(&self, claim: &Claim, now: UnixSeconds) -> Collected {
        let amount = match claim.standing {
            Standing::Taking { amount, .. } => amount,
            _ => claim.terms.amount,
        };
        let Some(handing) = handing(claim, amount, true) else { return Collected::Unknown };
        // Clocks of chains run apart from ours.
        let is_late = now > claim.collect_until.plus(AFTER_SECONDS);
        match self.trace(&handing).await {
            Trace::Moved { transaction } => return Collected::Settled { transaction },
            Trace::Gone => return failed("it was used up for something else"),
            Trace::Unused if is_late => return failed("it ran out before it was taken"),
            // A node that could not say for so long never will: it does not look that far back.
            Trace::Unknown if self.evidence.is_some() && now > claim.collect_until.plus(GIVEN_UP_SECONDS) => {
                return Collected::Unprovable;
            }
            Trace::Unknown if self.evidence.is_some() => return Collected::Unknown,
            Trace::Unused | Trace::Unknown => {}
        }
        match self.settle(&handing).await {
            // An earlier attempt may have landed: a "no" now says nothing about then, unless the chain just said that it is unused.
            Collected::Failed { why } => match (self.trace(&handing).await, is_late) {
                (Trace::Moved { transaction }, _) => Collected::Settled { transaction },
                (Trace::Unused, true) | (Trace::Gone, _) => failed(&why),
                (Trace::Unknown, true) if self.evidence.is_none() => Collected::Unprovable,
                _ => Collected::Unknown,
            },
            other => other,
        }
    }

    fn receipt(&self, claim: &Claim, receipt: &Receipt) -> Vec<(HeaderName, HeaderValue)> {
        let version = if claim.challenge_id.starts_with("v1:") { Version::V1 } else { Version::V2 };
        let told = Settled {
            success: true,
            transaction: receipt.transaction.as_deref().unwrap_or(""),
            network: &self.settings.network,
            payer: claim.payer.as_deref(),
            amount: Some(receipt.charged),
            error_reason: None,
        };
        wire::settled(version, &told).into_iter().collect()
    }
}

/// A payment that was just shown, for all that was asked for.
fn shown_first(proof: &Proof) -> Option<Handing<'_>> {
    let kept = kept(proof.recognised.resend.as_deref()?)?;
    let (amount, payer, shown) = (proof.recognised.terms.amount, proof.payer.as_deref(), UnixSeconds::now());
    Some(Handing { kept, payer, amount, most: amount, shown, again: false })
}

/// A claim's payment, for `amount` of its terms.
fn handing(claim: &Claim, amount: Atoms, again: bool) -> Option<Handing<'_>> {
    let kept = kept(claim.resend.as_deref()?)?;
    let payer = claim.payer.as_deref();
    Some(Handing { kept, payer, amount, most: claim.terms.amount, shown: claim.claimed_at, again })
}

fn kept(text: &str) -> Option<Kept<'_>> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
#[path = "way_tests.rs"]
mod tests;
