//! What x402 puts on the wire, v2 and v1: headers, offers, payments, receipts. In `specs/` of x402-foundation/x402 that is §5 of
//! `x402-specification-v2.md` and `x402-specification-v1.md`, and `transports-v2/http.md` and `transports-v1/http.md`.
//!
//! A payment is kept twice: as typed values, which are all that is ever decided on, and as the JSON text the client wrote,
//! which goes to the facilitator as it is, so that members we do not know survive.

use super::signed::Signed;
use crate::money::Atoms;
use crate::network::{Family, Network};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use std::fmt;
use std::fmt::Write as _;

/// v2's offers.
pub const PAYMENT_REQUIRED: HeaderName = HeaderName::from_static("payment-required");
/// v2's payment.
pub const PAYMENT_SIGNATURE: HeaderName = HeaderName::from_static("payment-signature");
/// v2's receipt.
pub const PAYMENT_RESPONSE: HeaderName = HeaderName::from_static("payment-response");
/// v1's payment.
pub const X_PAYMENT: HeaderName = HeaderName::from_static("x-payment");
/// v1's receipt.
pub const X_PAYMENT_RESPONSE: HeaderName = HeaderName::from_static("x-payment-response");

/// The member of `extra` that carries our own words about an offer under our MAC.
pub const OFFER: &str = "offer";
/// The member of `extra` that names who pays the fee on Solana.
pub const FEE_PAYER: &str = "feePayer";
/// The members of `extra` that are not compared: our words are compared by their MAC, and whom a facilitator hands its work to
/// may change while a payment is on its way; what was signed is compared with all of them instead.
const NOT_COMPARED: [&str; 3] = [OFFER, "facilitatorAddress", FEE_PAYER];

/// Most bytes of `PAYMENT-REQUIRED`: clients and intermediaries drop answers with large headers.
pub const MAX_REQUIRED: usize = 6 * 1024 - 1;
/// Longest text for people in a header, in characters: some facilitators refuse payments whose resource has a longer one.
const MAX_TEXT: usize = 200;
/// Longest reason in a receipt, in characters.
const MAX_REASON: usize = 100;

/// What clients read to know that they may approve Permit2 by signature. The schema is as small as one can be: clients check what
/// they write against it, and the SDK's own has more than a thousand characters.
const APPROVAL: &str = concat!(
    r#","extensions":{"eip2612GasSponsoring":{"info":{"description":"#,
    r#""The facilitator accepts EIP-2612 gasless Permit to `Permit2` canonical contract.","version":"1"},"#,
    r#""schema":{"type":"object"}}}"#
);

/// Generation of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Version {
    /// `X-PAYMENT`; offers in the body.
    V1,
    /// `PAYMENT-SIGNATURE`; offers in `PAYMENT-REQUIRED`.
    V2,
}

impl From<Version> for u8 {
    fn from(version: Version) -> u8 {
        match version {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }
}

impl TryFrom<u8> for Version {
    type Error = &'static str;
    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            _ => Err("x402Version is neither 1 nor 2"),
        }
    }
}

/// A way to move money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Exactly the amount.
    Exact,
    /// What was used, at most the amount.
    Upto,
}

/// A payment as shown in a request: decoded, not believed.
#[derive(Clone)]
pub struct Payment {
    /// Which generation it was written in.
    pub version: Version,
    /// The whole `PaymentPayload` as the client wrote it.
    pub raw: Box<RawValue>,
    /// Its scheme.
    pub scheme: Scheme,
    /// Its network; v1 names are translated.
    pub network: Network,
    /// v2: the offer it answers, as the client repeats it. v1 repeats none.
    pub accepted: Option<Accepted>,
    /// What the payer signed.
    pub signed: Signed,
}

/// Whoever holds an unsettled authorization can hand it in: none of it is ever printed.
impl fmt::Debug for Payment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payment({:?} {:?} {})", self.version, self.scheme, self.network)
    }
}

/// An offer as a client repeats it in `accepted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Atoms.
    pub amount: Atoms,
    /// Token.
    pub asset: String,
    /// Payee.
    pub pay_to: String,
    /// Seconds a signature should live.
    pub max_timeout_seconds: u64,
    /// Ours, and what the client added.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// One entry of `accepts`, from which both generations are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its scheme.
    pub scheme: Scheme,
    /// Its network.
    pub network: Network,
    /// Atoms.
    pub amount: Atoms,
    /// Token, as the network writes addresses.
    pub asset: String,
    /// Payee.
    pub pay_to: String,
    /// Seconds a signature should live.
    pub max_timeout_seconds: u64,
    /// `name`, `version`, `assetTransferMethod`, `facilitatorAddress`, `feePayer`, `offer`.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Whether a v1 client may be offered it: `exact` with EIP-3009 or on Solana, on a network v1 has a name for, at a facilitator that takes v1.
    pub v1: bool,
    /// Whether the facilitator carries the EIP-2612 approval (`eip2612GasSponsoring`).
    pub sponsors_approval: bool,
}

impl Entry {
    /// This entry as the client repeats it: with the offer that it carried then, and whom its facilitator named then. What the
    /// offer's MAC is tried on, and what goes to the facilitator. Amount and everything else stay ours.
    pub fn repeated(&self, accepted: &Accepted) -> Self {
        let mut entry = self.clone();
        for word in NOT_COMPARED {
            match accepted.extra.get(word) {
                Some(said) if word == OFFER || entry.extra.contains_key(word) => {
                    entry.extra.insert(word.to_owned(), said.clone());
                }
                _ => (),
            }
        }
        entry
    }

    fn v2(&self) -> WrittenV2<'_> {
        WrittenV2 {
            scheme: self.scheme,
            network: &self.network.id,
            amount: self.amount,
            asset: &self.asset,
            pay_to: &self.pay_to,
            max_timeout_seconds: self.max_timeout_seconds,
            extra: &self.extra,
        }
    }

    /// `None` when v1 has no name for the network. v1 clients repeat nothing, so they are not given our offer.
    fn v1<'a>(&'a self, resource: &Resource<'a>) -> Option<WrittenV1<'a>> {
        Some(WrittenV1 {
            scheme: self.scheme,
            network: self.network.v1()?,
            max_amount_required: self.amount,
            resource: resource.url,
            description: plain(resource.description, MAX_TEXT),
            mime_type: resource.mime_type,
            pay_to: &self.pay_to,
            max_timeout_seconds: self.max_timeout_seconds,
            asset: &self.asset,
            extra: self.extra.iter().filter(|(name, _)| *name != OFFER).collect(),
        })
    }
}

/// What is sold, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Absolute, made from `public_url`.
    pub url: &'a str,
    /// From the rules only. It is cut at 200 characters and made ASCII.
    pub description: &'a str,
    /// Of the reply.
    pub mime_type: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenV2<'a> {
    scheme: Scheme,
    network: &'a str,
    amount: Atoms,
    asset: &'a str,
    pay_to: &'a str,
    max_timeout_seconds: u64,
    extra: &'a Map<String, Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenV1<'a> {
    scheme: Scheme,
    network: &'a str,
    max_amount_required: Atoms,
    resource: &'a str,
    description: String,
    mime_type: &'a str,
    pay_to: &'a str,
    max_timeout_seconds: u64,
    asset: &'a str,
    extra: std::collections::BTreeMap<&'a String, &'a Value>,
}

/// `PAYMENT-REQUIRED`: every offer in our order, without those at the end for which there is no room; the first always stays.
/// `None` without an offer.
pub fn required(offers: &[&Entry], resource: &Resource<'_>, error: &str) -> Option<(HeaderName, HeaderValue)> {
    let described = serde_json::json!({
        "url": resource.url,
        "description": plain(resource.description, MAX_TEXT),
        "mimeType": resource.mime_type,
    });
    let error = Value::from(plain(error, MAX_TEXT));
    let head = format!(r#"{{"x402Version":2,"error":{error},"resource":{described},"accepts":["#);
    // Base64 writes 4 characters for 3 bytes; the head, the closing brackets and perhaps the extension are always there.
    let room = MAX_REQUIRED / 4 * 3 - 2;
    let mut accepts = String::new();
    let mut approval = "";
    for offer in offers {
        let next = ascii(serde_json::to_string(&offer.v2()).ok()?);
        let with = if offer.sponsors_approval { APPROVAL } else { approval };
        if !accepts.is_empty() {
            if head.len() + accepts.len() + 1 + next.len() + with.len() > room {
                break;
            }
            accepts.push(',');
        }
        accepts.push_str(&next);
        approval = with;
    }
    if accepts.is_empty() {
        return None;
    }
    header(PAYMENT_REQUIRED, &format!("{head}{accepts}]{approval}}}"))
}

/// What a v1 client reads in the body of a 402: `x402Version` and `accepts`. `None` when nothing is offered to v1 clients: they
/// throw on an empty list.
pub fn v1_members(offers: &[&Entry], resource: &Resource<'_>) -> Option<Vec<(&'static str, Value)>> {
    let written = offers.iter().filter(|offer| offer.v1).filter_map(|offer| offer.v1(resource));
    let accepts: Vec<Value> = written.filter_map(|offer| serde_json::to_value(&offer).ok()).collect();
    (!accepts.is_empty()).then(|| vec![("x402Version", 1.into()), ("accepts", accepts.into())])
}

/// `PaymentRequirements` as they go to the facilitator, in the payment's generation; see [`Entry::repeated`]. For the settlement of
/// `upto` the entry's amount is what was used. `None` when v1 has no name for the network.
pub fn requirements(entry: &Entry, version: Version, resource: &Resource<'_>) -> Option<Box<RawValue>> {
    match version {
        Version::V2 => to_raw_value(&entry.v2()).ok(),
        Version::V1 => to_raw_value(&entry.v1(resource)?).ok(),
    }
}

/// What became of a settlement, as the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled<'a> {
    /// Whether the money moved.
    pub success: bool,
    /// Hash or signature; empty when there is none.
    pub transaction: &'a str,
    /// Where.
    pub network: &'a Network,
    /// Who paid.
    pub payer: Option<&'a str>,
    /// What was taken (v2 only).
    pub amount: Option<Atoms>,
    /// Why not. It is cut at 100 printable ASCII characters: facilitators put their node's whole answer there.
    pub error_reason: Option<&'a str>,
}

/// `PAYMENT-RESPONSE`, or `X-PAYMENT-RESPONSE` with the network's v1 name. `transaction` and `network` are always there, because
/// clients insist on them.
pub fn settled(version: Version, told: &Settled<'_>) -> Option<(HeaderName, HeaderValue)> {
    let (name, network) = match version {
        Version::V2 => (PAYMENT_RESPONSE, told.network.id.as_str()),
        Version::V1 => (X_PAYMENT_RESPONSE, told.network.v1().unwrap_or(&told.network.id)),
    };
    let mut words = Map::new();
    words.insert("success".to_owned(), told.success.into());
    words.insert("transaction".to_owned(), told.transaction.into());
    words.insert("network".to_owned(), network.into());
    if let Some(payer) = told.payer {
        words.insert("payer".to_owned(), payer.into());
    }
    if let Some(amount) = told.amount.filter(|_| version == Version::V2) {
        words.insert("amount".to_owned(), amount.to_string().into());
    }
    if let Some(reason) = told.error_reason {
        words.insert("errorReason".to_owned(), plain(reason, MAX_REASON).into());
    }
    header(name, &serde_json::to_string(&words).ok()?)
}

/// Whether a payment answers this offer: a v2 payment repeats the whole of it (`accepted`, specification v2 §5.2), and may have
/// added to `extra`; a v1 payment only names scheme and network. `extra.offer` is compared by its MAC, the facilitator's own
/// addresses with what was signed ([`super::signed::check`]).
pub fn matches(payment: &Payment, entry: &Entry) -> Result<(), &'static str> {
    let same = |is: bool, why| if is { Ok(()) } else { Err(why) };
    same(payment.scheme == entry.scheme, "its scheme is not the one offered")?;
    same(payment.network == entry.network, "its network is not the one offered")?;
    let accepted = match (&payment.accepted, payment.version) {
        (Some(accepted), _) => accepted,
        (None, Version::V1) => return same(entry.v1, "it is not offered to v1 clients"),
        (None, Version::V2) => return Err("it does not say which offer it accepts"),
    };
    // Some clients write addresses anew, with the capitals they like; only on EVM networks those mean nothing.
    let address = |a: &str, b: &str| match entry.network.family {
        Family::Evm { .. } => a.eq_ignore_ascii_case(b),
        Family::Solana => a == b,
    };
    same(accepted.amount == entry.amount, "its amount is not the one offered")?;
    same(address(&accepted.asset, &entry.asset), "its asset is not the one offered")?;
    same(address(&accepted.pay_to, &entry.pay_to), "its payTo is not the one offered")?;
    same(accepted.max_timeout_seconds == entry.max_timeout_seconds, "its maxTimeoutSeconds is not the one offered")?;
    let extra = entry.extra.iter().filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
    let mut kept = extra.map(|(name, ours)| accepted.extra.get(name).is_some_and(|theirs| within(ours, theirs)));
    same(kept.all(|kept| kept), "its extra is not the one offered")
}

/// Whether every member of `ours` is in `theirs`, at any depth; an array is one value. Our own values are not deep.
fn within(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.iter().all(|(name, value)| theirs.get(name).is_some_and(|said| within(value, said)))
        }
        _ => ours == theirs,
    }
}

fn header(name: HeaderName, json: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((name, HeaderValue::from_str(&STANDARD.encode(json)).ok()?))
}

/// JSON with every character beyond ASCII escaped: clients decode base64 into bytes or into Latin-1, and then it is the same.
fn ascii(json: String) -> String {
    if json.is_ascii() {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 32);
    for c in json.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// The first `most` characters, each of them printable ASCII.
fn plain(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(most).map(plain).collect()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
