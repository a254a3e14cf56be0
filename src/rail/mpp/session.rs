//! `tempo/session` (draft-tempo-session-00, `sessionProtocol: "v2"`): vouchers against a channel of the reserve (TIP-1034).
//!
//! One challenge serves many requests and every management call of a route, so it is pinned to realm, route, recipient, token,
//! chain, escrow and operator, and to nothing of a body or a price. Everything a credential says is recomputed: the channel's
//! id from the descriptor, the descriptor of an opening from the transaction, the digest of a voucher from the id. What is sent
//! to the chain is in [`super::escrow`].

mod words;

use self::words::{Payload, Request, Scope};
use super::bind::Slots;
use super::charge::{Charge, DECIMALS};
use super::escrow::{self, Escrow};
use super::sponsor::{self, Purpose, Sponsor};
use super::told::{event, receipt_json, snapshot_json};
use super::voucher::{Parties, agrees_to_close, channel_id, checked, lower};
use super::wire;
use crate::chain::reserve::{RESERVE, Reserve};
use crate::chain::{Address, Unreachable};
use crate::channel::{Act, Channel, ChannelId, Intent, View, Voucher};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::money::Atoms;
use crate::rail::ring::KeyRing;
use crate::rail::session::{Action, Outcome, PayersTx, Presented, Session, SessionAsk, SessionReceipt, Snapshot};
use crate::rail::{Offer, Shown, Way};
use crate::refusal::Refusal;
use alloy::consensus::SignableTransaction as _;
use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::eips::{Decodable2718 as _, Encodable2718 as _};
use alloy::primitives::{Signature, TxKind, U256, keccak256};
use alloy::sol_types::SolCall as _;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::sync::Arc;
use tempo_alloy::contracts::precompiles::ITIP20ChannelReserve as Abi;
use tempo_alloy::primitives::transaction::{TEMPO_EXPIRING_NONCE_KEY, TempoSignature};
use tempo_alloy::primitives::{AASigned, TempoTransaction};

/// How long an offer lives. Long, because a wallet that keeps one saves a round trip for every request.
pub const OFFER_SECONDS: u64 = 30 * 60;
/// Largest signed transaction that is looked at, in bytes.
const MAX_TRANSACTION: usize = 16 * 1024;
/// Most calls in an opening transaction: a swap and an approval may stand before the opening itself.
const MAX_CALLS: usize = 8;
/// Longest validity of a payer's transaction: past it, an absent one must not keep a channel in doubt.
const MAX_VALIDITY: u64 = 15 * 60;
/// The same of an opening that an access key signed: anybody can make one, and until its end it takes one of few places. Tempo takes no
/// expiring nonce that ends later than in 30 s (300 s once its hardfork T11 is in force); the published wallets sign for 25 s on either.
const UNJUDGED_VALIDITY: u64 = 60;

const METHOD: &str = "tempo";
const INTENT: &str = "session";
const PROTOCOL: &str = "v2";

/// What the operator decides about one `tempo/session`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name in the rules, `<section>/session`.
    pub id: RailId,
    /// Host of `public_url`.
    pub realm: String,
    /// The chain.
    pub chain_id: u64,
    /// The token.
    pub currency: Address,
    /// Where the money goes.
    pub recipient: Address,
    /// Least growth of a voucher.
    pub min_voucher_delta: Atoms,
}

/// The rail. Its standing is that of the charge of the same section, for they look at one chain, and of the account that settles.
pub struct TempoSession {
    settings: Settings,
    ring: Arc<KeyRing>,
    charge: Arc<Charge>,
    escrow: Escrow,
    sponsor: Option<Arc<Sponsor>>,
    operator: Address,
    asset: String,
}

impl TempoSession {
    /// A rail over `chain` that settles with `escrow`'s key. The error is a sentence about the settings.
    pub fn new(
        settings: Settings,
        ring: Arc<KeyRing>,
        charge: Arc<Charge>,
        chain: Arc<dyn Reserve>,
        settle: escrow::SettleKey,
        sponsor: Option<Arc<Sponsor>>,
    ) -> Self {
        // Whoever may settle beside the payee must be in the channel from its start.
        let operator = if settle.address() == settings.recipient { Address::ZERO } else { settle.address() };
        let escrow = Escrow::new(chain, settle, settings.chain_id, settings.currency);
        let asset = settings.currency.to_checksum(None);
        Self { settings, ring, charge, escrow, sponsor, operator, asset }
    }

    /// The request object, members in order of their names as JCS has them (RFC 8785): clients that write it anew give back the
    /// same bytes.
    fn request(&self, ask: &SessionAsk<'_>, now: UnixSeconds) -> Option<String> {
        let mut details = serde_json::Map::new();
        let mut say = |key: &str, value: Value| drop(details.insert(key.to_owned(), value));
        say("chainId", json!(self.settings.chain_id));
        if let Some(snapshot) = &ask.snapshot {
            say("channelId", json!(snapshot.channel.id));
        }
        say("escrowContract", json!(RESERVE.to_checksum(None)));
        if self.sponsor.as_ref().is_some_and(|s| s.offers(now)) {
            say("feePayer", json!(true));
        }
        if self.settings.min_voucher_delta > Atoms(0) {
            say("minVoucherDelta", json!(self.settings.min_voucher_delta));
        }
        if !self.operator.is_zero() {
            say("operator", json!(self.operator.to_checksum(None)));
        }
        say("sessionProtocol", json!(PROTOCOL));
        if let Some(snapshot) = &ask.snapshot {
            say("sessionSnapshot", snapshot_json(snapshot));
        }
        let request = json!({
            "amount": ask.amount,
            "currency": self.asset,
            "methodDetails": details,
            "recipient": self.settings.recipient.to_checksum(None),
            "suggestedDeposit": ask.deposit,
            "unitType": "request",
        });
        serde_json::to_vec(&request).ok().map(|json| URL_SAFE_NO_PAD.encode(json))
    }

    /// Whether a request object that came back under our MAC is payable to us, here.
    fn is_ours(&self, request: &Request) -> bool {
        let details = &request.method_details;
        request.currency == self.settings.currency
            && request.recipient == self.settings.recipient
            && details.chain_id == self.settings.chain_id
            && details.escrow_contract == RESERVE
            && details.operator.unwrap_or(Address::ZERO) == self.operator
            && details.session_protocol == PROTOCOL
    }

    /// What a payload does, with every signature in it checked.
    fn action(
        &self,
        payload: &Payload,
        parties: &Parties,
        id: crate::chain::B256,
        now: UnixSeconds,
    ) -> Result<Action, Refusal> {
        let voucher = || -> Result<Voucher, Refusal> {
            let missing = || invalid("the voucher has no amount or no signature");
            let amount = payload.cumulative_amount.as_deref().ok_or_else(missing)?;
            let signature = payload.signature.as_deref().ok_or_else(missing)?;
            checked(parties, self.settings.chain_id, id, amount, signature)
        };
        match payload.action.as_str() {
            "voucher" => voucher().map(Action::Voucher),
            "close" => {
                let voucher = voucher()?;
                let (amount, chain_id) = (voucher.amount, self.settings.chain_id);
                let signature = payload.close_signature.as_deref();
                let agreed = signature.is_some_and(|signed| agrees_to_close(parties, chain_id, id, amount, signed));
                Ok(Action::Close { voucher, agreed })
            }
            "open" => {
                let voucher = voucher()?;
                let (tx, calls) = self.transaction(payload, parties, Purpose::Open, now)?;
                let open = calls.last().and_then(|input| Abi::openCall::abi_decode(input).ok());
                let open = open.ok_or_else(|| invalid("the transaction does not end with `open` of the reserve"))?;
                let same = open.payee == parties.payee
                    && open.operator == parties.operator
                    && open.token == parties.token
                    && open.salt == parties.salt
                    && open.authorizedSigner == parties.authorized_signer;
                if !same {
                    return Err(invalid("the transaction opens another channel than the credential says"));
                }
                Ok(Action::Open { voucher, deposit: Atoms(open.deposit.to::<u128>()), tx })
            }
            "topUp" => {
                let (tx, calls) = self.transaction(payload, parties, Purpose::TopUp, now)?;
                let top_up = match calls.as_slice() {
                    [input] => Abi::topUpCall::abi_decode(input).ok(),
                    _ => None,
                };
                let top_up = top_up.ok_or_else(|| invalid("the transaction is not one `topUp` of the reserve"))?;
                let additional = Atoms(top_up.additionalDeposit.to::<u128>());
                let said = payload.additional_deposit.as_deref().and_then(Atoms::parse);
                if escrow::descriptor(parties) != top_up.descriptor || said != Some(additional) {
                    return Err(invalid("the transaction tops up another channel or amount than the credential says"));
                }
                Ok(Action::TopUp { additional, tx })
            }
            _ => Err(invalid("the action is none of open, voucher, topUp and close")),
        }
    }

    /// The payer's transaction: its canonical bytes, signed by him, with an end, tied to this channel; and what it says to the
    /// reserve, in order.
    fn transaction(
        &self,
        payload: &Payload,
        parties: &Parties,
        purpose: Purpose,
        now: UnixSeconds,
    ) -> Result<(PayersTx, Vec<alloy::primitives::Bytes>), Refusal> {
        let text = payload.transaction.as_deref().ok_or_else(|| invalid("the credential has no transaction"))?;
        let raw = super::proof::hex_bytes(text)
            .filter(|raw| raw.len() <= MAX_TRANSACTION)
            .ok_or_else(|| invalid("the transaction is not hex, or too large"))?;
        if sponsor::is_envelope(&raw) {
            let sponsor = self.sponsor.as_ref().ok_or_else(|| invalid("fees are not carried here"))?;
            let reviewed = sponsor.review(&raw, purpose, now)?;
            let tx = reviewed.tx();
            self.tied(tx, parties, reviewed.payer(), true, purpose)?;
            let (hash, valid_until) = (format!("{:#x}", reviewed.hash()), reviewed.valid_until());
            let calls = self.to_reserve(tx);
            return Ok((PayersTx { raw, hash, valid_until, sponsored: true, by_access_key: false }, calls));
        }
        let mut rest = raw.as_slice();
        let signed = AASigned::decode_2718(&mut rest)
            .map_err(|_| invalid("the transaction is not a signed Tempo transaction (0x76)"))?;
        let canonical = signed.encoded_2718();
        if canonical != raw {
            return Err(invalid("the transaction is not in its canonical encoding"));
        }
        let tx = signed.tx();
        if tx.chain_id != self.settings.chain_id {
            return Err(invalid("the transaction is for another chain"));
        }
        if tx.fee_payer_signature.is_some() {
            return Err(invalid("somebody else's fee signature is in the transaction"));
        }
        if tx.nonce_key != TEMPO_EXPIRING_NONCE_KEY {
            return Err(invalid("the transaction has no expiring nonce"));
        }
        let end = tx.valid_before.map(|t| UnixSeconds(t.get())).ok_or_else(|| invalid("validBefore is missing"))?;
        // Whether it is past is asked of what is new only: what was sent before is still the answer to this credential.
        if end > now.plus(MAX_VALIDITY) {
            return Err(invalid("validBefore is later than a quarter of an hour"));
        }
        let is_unjudged = purpose == Purpose::Open && matches!(signed.signature(), TempoSignature::Keychain(_));
        if is_unjudged && end > now.plus(UNJUDGED_VALIDITY) {
            return Err(invalid("validBefore of an opening that an access key signed is later than a minute from now"));
        }
        if tx.valid_after.is_some_and(|t| UnixSeconds(t.get()) > now) {
            return Err(invalid("validAfter is not reached"));
        }
        let calls = self.to_reserve(tx);
        let last_is_to_reserve = tx.calls.last().is_some_and(|call| call.to == TxKind::Call(RESERVE));
        if tx.calls.len() > MAX_CALLS || calls.len() != 1 || !last_is_to_reserve {
            return Err(invalid("the transaction says more or less to the reserve than one thing, at its end"));
        }
        if signed.recover_signer().ok() != Some(parties.payer) {
            return Err(invalid("the transaction is not signed by the channel's payer"));
        }
        self.tied(tx, parties, parties.payer, false, purpose)?;
        let by_access_key = match signed.signature() {
            TempoSignature::Primitive(_) => false,
            // Of a channel that is open, the chain has heard whose vouchers its payer answers for. Another key could name anyone.
            TempoSignature::Keychain(key) if purpose == Purpose::TopUp => {
                let key = key.key_id(&signed.signature_hash()).ok();
                if key != Some(parties.authorized_signer) {
                    return Err(invalid("an access key tops up only a channel whose vouchers it signs"));
                }
                true
            }
            TempoSignature::Keychain(_) => true,
        };
        let hash = format!("{:#x}", keccak256(&canonical));
        Ok((PayersTx { raw, hash, valid_until: end, sponsored: false, by_access_key }, calls))
    }

    /// Whether a transaction is the one that the channel's id names (an opening), and its sender's own.
    fn tied(
        &self,
        tx: &TempoTransaction,
        parties: &Parties,
        sender: Address,
        sponsored: bool,
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        if sender != parties.payer {
            return Err(invalid("the transaction is not signed by the channel's payer"));
        }
        if purpose == Purpose::Open && nonce_hash(tx, sender, sponsored) != parties.nonce_hash {
            return Err(invalid("the channel's id was not made with this transaction"));
        }
        Ok(())
    }

    fn to_reserve(&self, tx: &TempoTransaction) -> Vec<alloy::primitives::Bytes> {
        tx.calls.iter().filter(|call| call.to == TxKind::Call(RESERVE)).map(|call| call.input.clone()).collect()
    }
}

/// keccak256 of what the sender signed and the sender; a sponsor's signature and fee token are not part of it, only that there is
/// one (TIP-1034).
fn nonce_hash(tx: &TempoTransaction, sender: Address, sponsored: bool) -> crate::chain::B256 {
    let mut tx = tx.clone();
    if sponsored {
        tx.fee_payer_signature = Some(Signature::new(U256::ZERO, U256::ZERO, false));
    }
    let mut text = Vec::with_capacity(tx.payload_len_for_signature() + 20);
    tx.encode_for_signing(&mut text);
    text.extend_from_slice(sender.as_slice());
    keccak256(text)
}

fn invalid(why: &str) -> Refusal {
    Refusal::PaymentInvalid { why: why.to_owned() }
}

impl Way for TempoSession {
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
        let said = format!("tempo chain {chain_id}, asset {}, payee {}", self.asset, recipient.to_checksum(None));
        // Without the operator that its channels name, none of them could be settled any more.
        let operator =
            if self.operator.is_zero() { String::new() } else { format!(", operator {}", lower(self.operator)) };
        (id.to_string(), said + &operator)
    }

    fn standing(&self) -> Result<(), String> {
        self.charge.standing().and_then(|()| self.charge.settles())
    }
}

#[async_trait]
impl Session for TempoSession {
    fn place(&self) -> (u64, String) {
        (self.settings.chain_id, lower(RESERVE))
    }

    fn chain_standing(&self) -> Result<(), String> {
        self.charge.standing()
    }

    fn is_relayed(&self) -> bool {
        self.sponsor.as_ref().is_some_and(|sponsor| sponsor.is_relay())
    }

    fn offer(&self, ask: &SessionAsk<'_>, now: UnixSeconds) -> Result<Offer, Refusal> {
        let defect = || Refusal::Internal { place: "session offer" };
        let request = self.request(ask, now).ok_or_else(defect)?;
        let opaque = Scope::seal(ask, &self.settings.id).ok_or_else(defect)?;
        let expires = now.plus(OFFER_SECONDS).rfc3339();
        let slots = Slots {
            realm: &self.settings.realm,
            method: METHOD,
            intent: INTENT,
            request: &request,
            expires: &expires,
            digest: "",
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

    fn present(&self, shown: &Shown, now: UnixSeconds) -> Result<Option<Presented>, Refusal> {
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
        let scope = Scope::open(slots.opaque).ok_or_else(|| not_ours("it does not say what it is for"))?;
        if scope.rail != self.settings.id.as_str() {
            return Ok(None);
        }
        let request = URL_SAFE_NO_PAD.decode(slots.request).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let request: Request = request.ok_or_else(|| not_ours("its request cannot be read"))?;
        if !self.is_ours(&request) {
            return Err(not_ours("it is not payable to us"));
        }
        let expires = UnixSeconds::parse_rfc3339(slots.expires).ok_or_else(|| not_ours("it has no expiry"))?;
        let mut payload =
            Payload::deserialize(&credential.payload).map_err(|_| invalid("the payload has no known form"))?;
        let written = payload.descriptor.take().ok_or_else(|| {
            invalid("the payload has no descriptor: sessionProtocol \"v2\" is needed, v1 is not served")
        })?;
        let parties = Parties::read(&written).ok_or_else(|| invalid("the descriptor cannot be read"))?;
        if parties.payee != self.settings.recipient {
            return Err(invalid("the channel pays somebody else"));
        }
        if parties.token != self.settings.currency {
            return Err(invalid("the channel holds another token"));
        }
        if parties.operator != self.operator {
            return Err(invalid("the channel has another operator than was offered"));
        }
        let word = parties.id(self.settings.chain_id);
        let id = channel_id(word);
        if payload.channel_id.as_deref().map(str::to_ascii_lowercase).as_deref() != Some(id.0.as_str()) {
            return Err(invalid("the channel id is not that of the descriptor on this chain and escrow"));
        }
        named(credential.source.as_deref(), &parties, self.settings.chain_id)?;
        let action = self.action(&payload, &parties, word, now)?;
        Ok(Some(Presented {
            challenge_id: echo.id.clone(),
            expires,
            route: scope.route.into(),
            channel: id,
            descriptor: Arc::new(written.descriptor()),
            action,
        }))
    }

    async fn authorized(&self, tx: &PayersTx, now: UnixSeconds) -> Result<(), Refusal> {
        self.escrow.may_sign(&tx.raw, now).await
    }

    async fn complete(&self, presented: &Presented, now: UnixSeconds) -> Result<Intent, Refusal> {
        let (act, tx, purpose) = match &presented.action {
            Action::Open { tx, .. } => (Act::Open, tx, Purpose::Open),
            Action::TopUp { additional, tx } => (Act::TopUp { additional: *additional }, tx, Purpose::TopUp),
            Action::Voucher(_) | Action::Close { .. } => {
                return Err(Refusal::Internal { place: "session: no transaction" });
            }
        };
        let (raw, hash) = match &self.sponsor {
            Some(sponsor) if tx.sponsored => {
                let cosigned = sponsor.cosign(sponsor.review(&tx.raw, purpose, now)?).await?;
                (cosigned.raw, format!("{:#x}", cosigned.hash))
            }
            _ if tx.valid_until <= now => return Err(invalid("validBefore is past")),
            _ => {
                match act {
                    Act::Open => self.escrow.would_open(&tx.raw).await?,
                    _ => self.escrow.would_land(&tx.raw).await?,
                }
                (tx.raw.clone(), tx.hash.clone())
            }
        };
        let raw = format!("0x{}", hex::encode(raw));
        Ok(Intent { act, tx: hash, raw, valid_until: tx.valid_until })
    }

    async fn submit(&self, channel: &Channel, intent: &Intent) -> Outcome {
        self.escrow.submit(channel, intent).await
    }

    async fn look(&self, channel: &Channel, intent: &Intent) -> Outcome {
        self.escrow.look(channel, intent).await
    }

    async fn views(&self, channels: &[ChannelId]) -> Result<Vec<View>, Unreachable> {
        self.escrow.views(channels).await
    }

    async fn close_requests(&self, since: Option<u64>) -> Result<(u64, Vec<ChannelId>), Unreachable> {
        self.escrow.close_requests(self.settings.recipient, since).await
    }

    async fn settle(&self, channel: &Channel, voucher: &Voucher, _now: UnixSeconds) -> Result<Intent, Unreachable> {
        self.escrow.settle(channel, voucher).await
    }

    async fn close(
        &self,
        channel: &Channel,
        voucher: &Voucher,
        capture: Atoms,
        _now: UnixSeconds,
    ) -> Result<Intent, Unreachable> {
        self.escrow.close(channel, voucher, capture).await
    }

    fn receipt(&self, said: &SessionReceipt<'_>) -> Option<(HeaderName, HeaderValue)> {
        let value = URL_SAFE_NO_PAD.encode(receipt_json(said)?);
        Some((HeaderName::from_static("payment-receipt"), HeaderValue::from_str(&value).ok()?))
    }

    fn receipt_event(&self, said: &SessionReceipt<'_>) -> Bytes {
        receipt_json(said).map_or_else(Bytes::new, |json| event("payment-receipt", &json))
    }

    fn need_voucher(&self, channel: &Channel, required: Atoms) -> Bytes {
        let asked = json!({
            "channelId": channel.id,
            "requiredCumulative": required,
            "acceptedCumulative": channel.accepted(),
            "deposit": channel.view.deposit,
        });
        event("payment-need-voucher", &asked)
    }

    fn snapshot(&self, snapshot: &Snapshot<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let shown = URL_SAFE_NO_PAD.encode(snapshot_json(snapshot).to_string());
        let lines = [("payment-session", snapshot.channel.id.0.as_str()), ("payment-session-snapshot", shown.as_str())];
        let line = |(name, value): (&'static str, &str)| {
            Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
        };
        lines.into_iter().filter_map(line).collect()
    }
}

/// A credential that names its source must name the payer or who signs for him.
fn named(source: Option<&str>, parties: &Parties, chain_id: u64) -> Result<(), Refusal> {
    let Some(source) = source else { return Ok(()) };
    let account = source
        .strip_prefix("did:pkh:eip155:")
        .and_then(|rest| rest.split_once(':'))
        .filter(|(chain, _)| *chain == chain_id.to_string())
        .and_then(|(_, address)| address.parse::<Address>().ok());
    if account == Some(parties.payer) || account == Some(parties.signer()) {
        return Ok(());
    }
    Err(Refusal::SignerMismatch)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
