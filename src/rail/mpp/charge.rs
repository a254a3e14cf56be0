//! `tempo/charge`: one payment for one request, in full and before the backend is asked.
//!
//! Pull: the client signs a transfer and hands it to us; we send it once its claim is durable. Push: the client sent it and
//! names its hash; off unless the operator turns it on, because anyone who watches the chain can name a hash (the memo inside
//! the transfer, bound to the challenge, is what makes that useless). Sponsored: as pull, and we carry the fee ([`sponsor`]); a
//! payer who is offered that may still carry his own.
//!
//! A payment is tried on the chain before it is claimed: what would fail costs one question, and nothing is kept of it.
//!
//! Nothing before [`Rail::complete`] talks to the chain, by construction: the checks of the `mpp` crate run over
//! `Offline`, a provider that knows the chain id and nothing else. Sending and confirming are ours (`collect`), because a
//! payment's outcome has three values and the crate's answer has two.

mod watch;

use super::bind::{Opaque, Slots};
use super::collect::{self, Due, LAG_SECONDS, Pace};
use super::funds::Funds;
use super::offline::Offline;
use super::proof::{Payload, hex_bytes, sendable};
use super::sponsor::{self, LEAST_SECONDS, Purpose, Sponsor};
use super::underway::Underway;
use super::{untried, wire};
use crate::chain::fees::Tried;
use crate::chain::{Address, B256, Chain, Inclusion, Unreachable};
use crate::claim::{Claim, Terms};
use crate::clock::UnixSeconds;
use crate::ids::{PublicModel, RailId};
use crate::journal::Receipt;
use crate::money::Atoms;
use crate::rail::ring::KeyRing;
use crate::rail::{Ask, Collected, Offer, Proof, Rail, Recognised, Shown, Way};
use crate::refusal::Refusal;
use ::mpp::PaymentCredential;
use ::mpp::protocol::core::{Base64UrlJson, PaymentPayload};
use ::mpp::protocol::intents::ChargeRequest;
use ::mpp::protocol::traits::ChargeMethod as _;
use ::mpp::tempo::TempoChargeMethod;
use alloy::eips::Decodable2718 as _;
use alloy::signers::local::PrivateKeySigner;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::sync::Arc;
use tempo_alloy::primitives::AASigned;

/// How long an offer lives.
pub const OFFER_SECONDS: u64 = 300;
/// TIP-20 dollar tokens have six.
pub const DECIMALS: u8 = 6;
/// How long after an offer's end a payer may show what he sent in time: well inside the day for which its claim is remembered, or it would
/// buy once more when that is forgotten.
const PUSH_LATE_SECONDS: u64 = 12 * 3_600;

const METHOD: &str = "tempo";
const INTENT: &str = "charge";

/// What the operator decides about one `tempo/charge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name in the rules, `<section>/charge`.
    pub id: RailId,
    /// Host of `public_url`.
    pub realm: String,
    /// The chain.
    pub chain_id: u64,
    /// The token, a TIP-20 dollar with six decimals.
    pub currency: Address,
    /// Where the money goes.
    pub recipient: Address,
    /// Whether a transaction the client sent itself is taken.
    pub accept_push: bool,
    /// How long to wait for the chain.
    pub pace: Pace,
}

/// The rail. Share it behind an `Arc`; [`Charge::watch`] must run beside it, or it never offers anything.
pub struct Charge {
    settings: Settings,
    ring: Arc<KeyRing>,
    chain: Arc<dyn Chain>,
    checks: TempoChargeMethod<Offline>,
    standing: ArcSwap<Result<(), String>>,
    /// Who carries payers' fees, when somebody does.
    sponsor: Option<Arc<Sponsor>>,
    /// What settles the sessions of this section, when it has any: this rail's watch looks at it.
    funds: Option<Funds>,
    underway: Underway,
    /// The request object around the amount, in JCS order: `{"amount":"` … `","currency":…}`.
    request_tail: String,
    /// The same when we carry the fee.
    sponsored_tail: String,
    asset: String,
}

impl Charge {
    /// A rail over `chain`. The error is a sentence about the settings.
    pub fn new(settings: Settings, ring: Arc<KeyRing>, chain: Arc<dyn Chain>) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b);
        if settings.realm.is_empty() || !settings.realm.bytes().all(plain) {
            return Err(format!("{}: the realm must be a plain host name", settings.id));
        }
        for (what, address) in [("currency", settings.currency), ("recipient", settings.recipient)] {
            if address.is_zero() {
                return Err(format!("{}: {what} is the zero address", settings.id));
            }
        }
        let asset = settings.currency.to_checksum(None);
        // Without the list a client may choose push; mppx and the crate read it alike.
        let modes = if settings.accept_push { "" } else { r#","supportedModes":["pull"]"# };
        let tail = |fee_payer: &str, modes: &str| {
            format!(
                r#"","currency":"{asset}","methodDetails":{{"chainId":{}{fee_payer}{modes}}},"recipient":"{}"}}"#,
                settings.chain_id,
                settings.recipient.to_checksum(None)
            )
        };
        let request_tail = tail("", modes);
        // A transaction that we sign too cannot be sent by the client.
        let sponsored_tail = tail(r#","feePayer":true"#, r#","supportedModes":["pull"]"#);
        Ok(Self {
            checks: TempoChargeMethod::new(Offline::new(settings.chain_id)),
            standing: ArcSwap::from_pointee(Err("the chain has not been looked at yet".to_owned())),
            settings,
            ring,
            chain,
            sponsor: None,
            funds: None,
            underway: Underway::default(),
            request_tail,
            sponsored_tail,
            asset,
        })
    }

    /// The same rail with somebody who carries payers' fees.
    pub fn sponsored_by(mut self, sponsor: Arc<Sponsor>) -> Self {
        // The crate wants to be shown that somebody carries fees; its checks sign nothing.
        if let Ok(nobody) = PrivateKeySigner::from_bytes(&B256::repeat_byte(1)) {
            self.checks = self.checks.with_fee_payer(nobody);
        }
        self.sponsor = Some(sponsor);
        self
    }

    fn request(&self, amount: Atoms, now: UnixSeconds) -> String {
        let sponsored = self.sponsor.as_ref().is_some_and(|s| amount > Atoms(0) && s.offers(now));
        let tail = if sponsored { &self.sponsored_tail } else { &self.request_tail };
        URL_SAFE_NO_PAD.encode(format!(r#"{{"amount":"{amount}{tail}"#))
    }

    /// A request object that came back under our MAC, if it is payable to us: its amount, and whether we offered to carry the fee.
    fn asked(&self, request: &Base64UrlJson) -> Option<(Atoms, bool)> {
        let request: Request = request.decode().ok()?;
        let ours = request.currency == self.settings.currency
            && request.recipient == self.settings.recipient
            && request.method_details.chain_id == self.settings.chain_id;
        Some((Atoms::parse(&request.amount).filter(|_| ours)?, request.method_details.fee_payer))
    }

    /// The payload in the one form it has, and as the client wrote it.
    fn payload(&self, credential: &PaymentCredential, sponsored: bool) -> Result<(Payload, PaymentPayload), Refusal> {
        let given = credential.charge_payload().map_err(|_| invalid("the payload has no known form"))?;
        let bytes = given.signed_tx().and_then(hex_bytes).filter(|b| sponsor::is_envelope(b));
        let payload = match (bytes, &self.sponsor) {
            (None, _) => Payload::read(&given),
            (Some(bytes), Some(sponsor)) if sponsored => {
                sponsor.draft(&bytes).map(|draft| Payload::Sponsored(Box::new(draft)))
            }
            (Some(_), _) => Err("fees are not carried for this offer"),
        };
        let payload = payload.map_err(invalid)?;
        match &payload {
            Payload::Push { .. } if sponsored => {
                Err(invalid("a transaction sent by the payer does not answer this offer"))
            }
            Payload::Pull { signed, .. } if sponsored && signed.tx().fee_payer_signature.is_some() => {
                Err(invalid("the fee is carried by us or by the payer, nobody else"))
            }
            _ => Ok((payload, given)),
        }
    }

    /// The envelope of a sponsored payment, if it is one.
    fn envelope(&self, credential: &PaymentCredential) -> Option<(&Arc<Sponsor>, Vec<u8>)> {
        let bytes = hex_bytes(credential.charge_payload().ok()?.signed_tx()?)?;
        Some((self.sponsor.as_ref().filter(|_| sponsor::is_envelope(&bytes))?, bytes))
    }

    fn due<'a>(&'a self, terms: &Terms, challenge_id: &'a str, payer: Option<&str>) -> Due<'a> {
        Due {
            chain_id: self.settings.chain_id,
            token: self.settings.currency,
            to: self.settings.recipient,
            amount: terms.amount.0,
            challenge_id,
            realm: &self.settings.realm,
            payer: payer.and_then(|p| p.parse().ok()),
        }
    }

    /// Whether a payer's own transaction would go through as things stand: an account without money must not leave us a claim in doubt
    /// and a node to be asked again and again.
    async fn rehearsed(&self, raw: &[u8], proof: &Proof) -> Result<(), Refusal> {
        let defect = || Refusal::Internal { place: "charge: what is sent" };
        let signed = AASigned::decode_2718(&mut &*raw).map_err(|_| defect())?;
        let (payer, hash) = sender(proof).ok_or_else(defect)?;
        let _place = self.underway.enter(payer, hash)?;
        let asked = self.chain.rehearse(payer, signed.tx());
        match tokio::time::timeout(self.settings.pace.patience / 4, asked).await {
            Ok(Ok(Tried::Passes)) => Ok(()),
            Ok(Ok(Tried::Fails)) => {
                let why =
                    "it would fail as things stand, and was not sent: is there enough of the token for it and its fee?";
                Err(Refusal::PaymentFailed { why: why.to_owned() })
            }
            Ok(Err(e)) => Err(untried(self.settings.id.as_str(), e.why)),
            Err(_) => Err(untried(self.settings.id.as_str(), "the chain's node did not answer in time")),
        }
    }

    /// Whether what the payer sent, and shows after the offer's end, was mined before it. Nobody who has paid is asked to pay again.
    async fn sent_in_time(&self, proof: &Proof) -> Result<(), Refusal> {
        let unknown = || Refusal::PaymentUnknown { retry_after_seconds: 5 };
        let Recognised { terms, challenge_id, reference, expires, .. } = &proof.recognised;
        let hash = reference.parse().map_err(|_| Refusal::Internal { place: "charge: what was sent" })?;
        let asked = async {
            // The head first: what could be mined is in a block no younger than the head seen before the look.
            let head = collect::head_of(self.chain.as_ref(), self.settings.chain_id).await?;
            let found = self.chain.inclusion(hash).await?;
            let at = match found {
                Inclusion::Done { block, .. } => self.chain.time_of(block).await?,
                Inclusion::Reverted { .. } | Inclusion::Absent => head.time,
            };
            Ok::<_, Unreachable>((head, found, at))
        };
        let told = tokio::time::timeout(self.settings.pace.patience / 4, asked).await;
        let Ok(Ok((head, found, at))) = told else { return Err(unknown()) };
        match self.due(terms, challenge_id, proof.payer.as_deref()).judge(&found) {
            Some(Collected::Paid) if at <= expires.plus(LAG_SECONDS) => Ok(()),
            Some(Collected::Paid) => Err(Refusal::ProofSpent),
            Some(Collected::Failed { why }) => Err(Refusal::PaymentFailed { why }),
            None if collect::over(&head, *expires) => Err(Refusal::OfferExpired),
            _ => Err(unknown()),
        }
    }

    /// What the crate checks without the chain: form, chain id, the transfer and its memo, signature, `source` = sender.
    async fn validated(
        &self,
        credential: &PaymentCredential,
        payload: PaymentPayload,
    ) -> Result<Option<String>, Refusal> {
        let mut request: ChargeRequest = credential
            .challenge
            .request
            .decode()
            .map_err(|_| Refusal::InvalidChallenge { why: "its request cannot be read" })?;
        // The crate takes nothing but an envelope where the fee is offered. Who carries his own is welcome too.
        let envelope = payload.signed_tx().and_then(hex_bytes).is_some_and(|b| sponsor::is_envelope(&b));
        if let Some(details) = request.method_details.as_mut().and_then(|d| d.as_object_mut()).filter(|_| !envelope) {
            details.remove("feePayer");
        }
        let credential = PaymentCredential {
            payload: serde_json::to_value(payload).map_err(|_| Refusal::Internal { place: "charge payload" })?,
            ..credential.clone()
        };
        match self.checks.validate(&credential, &request).await {
            Ok(valid) => Ok(valid.payer),
            Err(error) => {
                let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
                Err(Refusal::PaymentInvalid { why: error.message.chars().take(200).map(plain).collect() })
            }
        }
    }
}

/// The request object as we write it: a member that we never write (a split) is not ours.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    amount: String,
    currency: Address,
    recipient: Address,
    method_details: Details,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Details {
    chain_id: u64,
    #[serde(default)]
    fee_payer: bool,
    /// Push may have been turned on or off since.
    #[serde(rename = "supportedModes")]
    _modes: Option<IgnoredAny>,
}

/// Reads a body digest in the form SDKs write (`sha-256=<b64>`) and in RFC 9530's (`sha-256=:<b64>:`).
pub fn read_digest(text: &str) -> Option<[u8; 32]> {
    let value = text.strip_prefix("sha-256=")?;
    let value = value.strip_prefix(':').map_or(Some(value), |v| v.strip_suffix(':'))?;
    STANDARD.decode(value).ok()?.try_into().ok()
}

/// The form we write: without colons, as the SDKs do.
pub fn write_digest(digest: &[u8; 32]) -> String {
    format!("sha-256={}", STANDARD.encode(digest))
}

/// Where an offer and this request's own terms part, if they do. A charge must equal what is recomputed.
fn difference(offered: &Terms, asked: &Terms) -> Option<&'static str> {
    let Terms { rail, route, model, tier, generation, amount, price, decimals } = asked;
    [
        (&offered.rail == rail, "it was offered on another rail"),
        (&offered.route == route, "it was offered on another route"),
        (&offered.model == model, "it was offered for another model"),
        (&offered.tier == tier, "it was offered in another tier"),
        (&offered.generation == generation, "it was offered under other rules"),
        (&offered.amount == amount && &offered.decimals == decimals, "it was offered for another amount"),
        (&offered.price == price, "it was offered at another price"),
    ]
    .into_iter()
    .find_map(|(same, why)| (!same).then_some(why))
}

fn invalid(why: &'static str) -> Refusal {
    Refusal::PaymentInvalid { why: why.to_owned() }
}

impl Way for Charge {
    fn id(&self) -> &RailId {
        &self.settings.id
    }

    fn range(&self) -> (&'static str, &'static str) {
        (METHOD, INTENT)
    }

    fn currency(&self) -> &str {
        &self.asset
    }

    fn decimals(&self) -> u8 {
        DECIMALS
    }

    fn facts(&self) -> (String, String) {
        let Settings { id, chain_id, recipient, .. } = &self.settings;
        (id.to_string(), format!("tempo chain {chain_id}, asset {}, payee {}", self.asset, recipient.to_checksum(None)))
    }

    fn standing(&self) -> Result<(), String> {
        self.standing.load().as_ref().clone()
    }
}

#[async_trait]
impl Rail for Charge {
    fn offer(&self, ask: &Ask<'_>, now: UnixSeconds) -> Result<Offer, Refusal> {
        let defect = || Refusal::Internal { place: "charge offer" };
        let request = self.request(ask.terms.amount, now);
        let opaque = Opaque::seal(ask.terms).ok_or_else(defect)?;
        let expires = now.plus(OFFER_SECONDS).rfc3339();
        let digest = write_digest(&ask.digest);
        let slots = Slots {
            realm: &self.settings.realm,
            method: METHOD,
            intent: INTENT,
            request: &request,
            expires: &expires,
            digest: &digest,
            header: None,
            opaque: &opaque,
        };
        let challenge_id = self.ring.sign(&slots).ok_or_else(defect)?;
        let line = wire::challenge(&challenge_id, &slots, ask.description).ok_or_else(defect)?;
        Ok(Offer {
            rail: self.settings.id.clone(),
            range: (METHOD.to_owned(), INTENT.to_owned()),
            headers: vec![line],
            challenge_id: Some(challenge_id),
            entry: None,
        })
    }

    fn recognise(&self, shown: &Shown, _live: &Ask<'_>) -> Result<Option<Recognised>, Refusal> {
        let Shown::Mpp(credential) = shown else { return Ok(None) };
        let echo = &credential.challenge;
        if echo.method.as_str() != METHOD || echo.intent.as_str() != INTENT {
            return Ok(None);
        }
        let not_ours = |why| Refusal::InvalidChallenge { why };
        if echo.realm != self.settings.realm {
            return Err(not_ours("it is for another realm"));
        }
        let slots = Slots::of(echo);
        if !self.ring.verify(&slots, &echo.id) {
            return Err(not_ours("it was not issued here, or was altered"));
        }
        let words = Opaque::open(slots.opaque).ok_or_else(|| not_ours("it does not say what it is for"))?;
        if !words.is_of(&self.settings.id) {
            return Ok(None);
        }
        let (amount, sponsored) = self.asked(&echo.request).ok_or_else(|| not_ours("it is not payable to us"))?;
        let expires = UnixSeconds::parse_rfc3339(slots.expires).ok_or_else(|| not_ours("it has no expiry"))?;
        let (payload, _) = self.payload(credential, sponsored)?;
        Ok(Some(Recognised {
            key: payload.key(self.settings.chain_id, &echo.id),
            challenge_id: echo.id.clone(),
            terms: words.terms(amount, DECIMALS),
            digest: read_digest(slots.digest),
            expires,
            reference: payload.reference(&echo.id),
            resend: payload.resend(),
            is_public: false,
        }))
    }

    fn offered(&self, shown: &Shown, path: &str) -> Option<PublicModel> {
        let Shown::Mpp(credential) = shown else { return None };
        let words = Opaque::open(Slots::of(&credential.challenge).opaque).filter(|w| w.is_of(&self.settings.id))?;
        let Terms { route, model, .. } = words.terms(Atoms(0), DECIMALS);
        (route.as_str() == path).then_some(model)
    }

    async fn check(
        &self,
        shown: &Shown,
        recognised: Recognised,
        ask: &Ask<'_>,
        now: UnixSeconds,
    ) -> Result<Proof, Refusal> {
        let Shown::Mpp(credential) = shown else { return Err(Refusal::MalformedCredential) };
        // What the payer sent himself may have been mined in time: the chain is asked ([`Charge::sent_in_time`]).
        let was_sent = || {
            self.settings.accept_push
                && now < recognised.expires.plus(PUSH_LATE_SECONDS)
                && credential.charge_payload().is_ok_and(|payload| payload.tx_hash().is_some())
        };
        if now >= recognised.expires && !was_sent() {
            return Err(Refusal::OfferExpired);
        }
        if let Some(why) = difference(&recognised.terms, ask.terms) {
            return Err(Refusal::InvalidChallenge { why });
        }
        if recognised.digest != Some(ask.digest) {
            return Err(Refusal::InvalidChallenge { why: "it was offered for another body" });
        }
        let sponsored = self.asked(&credential.challenge.request).is_some_and(|(_, sponsored)| sponsored);
        let (payload, given) = self.payload(credential, sponsored)?;
        let free = recognised.terms.amount == Atoms(0);
        let (payer, collect_until) = match payload {
            Payload::Identity if !free => return Err(invalid("a proof of identity pays nothing")),
            Payload::Pull { .. } | Payload::Sponsored(_) | Payload::Push { .. } if free => {
                return Err(invalid("an amount of zero takes a proof of identity and nothing else"));
            }
            Payload::Identity => (self.validated(credential, given).await?, recognised.expires),
            Payload::Push { .. } if !self.settings.accept_push => {
                return Err(invalid("a transaction sent by the payer is not taken here"));
            }
            // The chain's part has to wait for `collect`: there is nothing signed to look at.
            Payload::Push { .. } => (push_source(credential, self.settings.chain_id)?, recognised.expires),
            Payload::Sponsored(_) => {
                let Some((sponsor, envelope)) = self.envelope(credential) else {
                    return Err(Refusal::Internal { place: "charge: sponsor" });
                };
                let purpose = Purpose::Charge { amount: recognised.terms.amount };
                let reviewed = sponsor.review(&envelope, purpose, now)?;
                if reviewed.valid_until() > recognised.expires.plus(1) {
                    return Err(invalid("validBefore is later than the offer's end"));
                }
                // The crate once more, for the memo and the credential's source.
                let canonical = PaymentPayload::transaction(alloy::hex::encode_prefixed(&envelope));
                (self.validated(credential, canonical).await?, reviewed.valid_until())
            }
            Payload::Pull { raw, signed, .. } => {
                let end = sendable(signed.tx(), recognised.expires, now).map_err(invalid)?;
                // What is checked is what will be sent: the crate sees our bytes, not the client's text for them.
                let canonical = PaymentPayload::transaction(alloy::hex::encode_prefixed(&raw));
                (self.validated(credential, canonical).await?, end)
            }
        };
        Ok(Proof { recognised, payer, is_proven: true, collect_until })
    }

    async fn complete(&self, shown: &Shown, mut proof: Proof, _first: bool) -> Result<Proof, Refusal> {
        let Shown::Mpp(credential) = shown else { return Err(Refusal::MalformedCredential) };
        if let Some((sponsor, envelope)) = self.envelope(credential) {
            let purpose = Purpose::Charge { amount: proof.recognised.terms.amount };
            let cosigned = sponsor.cosign(sponsor.review(&envelope, purpose, UnixSeconds::now())?).await?;
            proof.recognised.reference = format!("{:#x}", cosigned.hash);
            proof.recognised.resend = Some(alloy::hex::encode_prefixed(&cosigned.raw));
        } else if let Some(raw) = proof.recognised.resend.as_deref().and_then(hex_bytes) {
            self.rehearsed(&raw, &proof).await?;
        } else if proof.recognised.terms.amount > Atoms(0) && UnixSeconds::now() >= proof.recognised.expires {
            self.sent_in_time(&proof).await?;
        }
        Ok(proof)
    }

    async fn collect(&self, _: &Shown, proof: &Proof) -> Collected {
        let Proof { recognised: paid, payer, collect_until, .. } = proof;
        if paid.terms.amount == Atoms(0) {
            return Collected::Paid;
        }
        let Ok(hash) = paid.reference.parse::<B256>() else { return Collected::Unknown };
        let raw = paid.resend.as_deref().and_then(hex_bytes);
        // The last moment at which not sending is still free of doubt.
        let now = UnixSeconds::now();
        let end = raw.as_deref().map_or(*collect_until, |raw| send_until(raw, *collect_until));
        if raw.is_some() && (now >= paid.expires || now >= end) {
            return collect::failed("the offer ended before the payment could be sent");
        }
        let _place = sender(proof).and_then(|(payer, hash)| self.underway.stay(payer, hash));
        let due = self.due(&paid.terms, &paid.challenge_id, payer.as_deref());
        collect::collect(self.chain.as_ref(), hash, raw.as_deref(), due, self.settings.pace).await
    }

    async fn look(&self, claim: &Claim, now: UnixSeconds) -> Collected {
        if claim.terms.amount == Atoms(0) {
            return Collected::Paid;
        }
        let Ok(hash) = claim.reference.parse::<B256>() else { return Collected::Unknown };
        let raw = claim.resend.as_deref().and_then(hex_bytes);
        let raw = raw.filter(|raw| now < send_until(raw, claim.collect_until));
        let due = self.due(&claim.terms, &claim.challenge_id, claim.payer.as_deref());
        let looking = collect::look(self.chain.as_ref(), hash, raw.as_deref(), due, claim.collect_until);
        tokio::time::timeout(self.settings.pace.patience, looking).await.unwrap_or(Collected::Unknown)
    }

    fn receipt(&self, claim: &Claim, receipt: &Receipt) -> Vec<(http::HeaderName, http::HeaderValue)> {
        wire::receipt(receipt, METHOD, &self.asset, Some(&claim.challenge_id)).into_iter().collect()
    }
}

/// Whose money it is, and the transaction.
fn sender(proof: &Proof) -> Option<(Address, B256)> {
    Some((proof.payer.as_deref()?.parse().ok()?, proof.recognised.reference.parse().ok()?))
}

/// Until when a transaction may be sent: its end, and some seconds before it when we pay for its failure too.
fn send_until(raw: &[u8], end: UnixSeconds) -> UnixSeconds {
    let carried = AASigned::decode_2718(&mut &*raw).is_ok_and(|signed| signed.tx().fee_payer_signature.is_some());
    if carried { UnixSeconds(end.0.saturating_sub(LEAST_SECONDS)) } else { end }
}

/// The address of `did:pkh:eip155:<chain>:<address>`, where a push credential has a source.
fn push_source(credential: &PaymentCredential, chain_id: u64) -> Result<Option<String>, Refusal> {
    let Some(source) = credential.source.as_deref() else { return Ok(None) };
    source
        .strip_prefix("did:pkh:eip155:")
        .and_then(|rest| rest.split_once(':'))
        .filter(|(chain, _)| *chain == chain_id.to_string())
        .and_then(|(_, address)| address.parse::<Address>().ok())
        .map(|address| Some(format!("{address:#x}")))
        .ok_or_else(|| invalid("the source is not an account of this chain"))
}

#[cfg(test)]
#[path = "charge_tests.rs"]
mod tests;
