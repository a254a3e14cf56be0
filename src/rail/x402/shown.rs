//! Finding and decoding x402 payments. What comes out is typed and not believed.

use super::signed::{Eip3009, MAX_SIGNATURE, Permit2, Signed};
use super::solana::MAX_TRANSACTION;
use super::wire::{Accepted, PAYMENT_SIGNATURE, Payment, Scheme, Version, X_PAYMENT};
use crate::money::Atoms;
use crate::network::{Family, Network};
use crate::openai::strict::Scanner;
use crate::rail::{Found, Shown};
use alloy::primitives::{Address, B256, Bytes, U256};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Most bytes of a payment header: with an approval and everything echoed, real ones have under 4 kB.
pub const MAX_HEADER: usize = 16 * 1024;

/// The standard alphabet, with or without padding; one spelling of the last character.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Looks for x402 payments: every `PAYMENT-SIGNATURE` is one of v2, every `X-PAYMENT` one of v1, and one that is written in the other
/// generation is [`Found::Malformed`]. Lines that were joined by a comma are still two.
pub fn found(headers: &HeaderMap) -> Found {
    let mut tokens = Vec::new();
    for (name, version) in [(PAYMENT_SIGNATURE, Version::V2), (X_PAYMENT, Version::V1)] {
        for line in headers.get_all(name) {
            let before = tokens.len();
            let said = line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty());
            tokens.extend(said.map(|token| (version, token)));
            if tokens.len() == before {
                tokens.push((version, b""));
            }
        }
    }
    match tokens.as_slice() {
        [] => Found::Nothing,
        [(version, token)] => {
            payment(*version, token).map_or(Found::Malformed, |p| Found::One(Shown::X402(Box::new(p))))
        }
        several => Found::Many(several.len()),
    }
}

/// Decodes the value of a header. `None` for anything that could be read in two ways, or that we have no words for.
fn payment(version: Version, token: &[u8]) -> Option<Payment> {
    if token.len() > MAX_HEADER {
        return None;
    }
    read(version, &BASE64.decode(token).ok()?)
}

/// What was signed in a payment that was decoded before.
pub fn again(payload: &RawValue) -> Option<Signed> {
    let json = payload.get().as_bytes();
    [Version::V2, Version::V1].into_iter().find_map(|version| read(version, json)).map(|payment| payment.signed)
}

fn read(version: Version, json: &[u8]) -> Option<Payment> {
    let mut scanner = Scanner::new(json).ok()?;
    scanner.value().ok()?;
    scanner.end().ok()?;
    let text = scanner.source();
    let (scheme, network, accepted, payload) = match version {
        Version::V2 => {
            let said: SaidV2<'_> =
                serde_json::from_str(text).ok().filter(|said: &SaidV2<'_>| said.x402_version == version)?;
            let Offered { scheme, network, amount, asset, pay_to, max_timeout_seconds, extra } = said.accepted;
            let extra = extra.unwrap_or_default();
            let accepted = Accepted { amount, asset, pay_to, max_timeout_seconds, extra };
            (scheme, Network::parse(&network)?, Some(accepted), said.payload)
        }
        Version::V1 => {
            let said: SaidV1<'_> =
                serde_json::from_str(text).ok().filter(|said: &SaidV1<'_>| said.x402_version == version)?;
            // The first generation has one scheme.
            let scheme = Some(said.scheme).filter(|scheme| *scheme == Scheme::Exact)?;
            (scheme, Network::from_v1(&said.network)?, None, said.payload)
        }
    };
    let signed = match network.family {
        Family::Evm { .. } => evm(scheme, payload)?,
        Family::Solana => solana(scheme, payload)?,
    };
    Some(Payment { version, raw: RawValue::from_string(text.to_owned()).ok()?, scheme, network, accepted, signed })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SaidV2<'a> {
    x402_version: Version,
    accepted: Offered,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SaidV1<'a> {
    x402_version: Version,
    scheme: Scheme,
    network: String,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Offered {
    scheme: Scheme,
    network: String,
    amount: Atoms,
    asset: String,
    pay_to: String,
    max_timeout_seconds: u64,
    extra: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SaidEvm {
    signature: String,
    authorization: Option<SaidEip3009>,
    permit2_authorization: Option<SaidPermit2>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SaidEip3009 {
    from: String,
    to: String,
    value: Atoms,
    valid_after: String,
    valid_before: String,
    nonce: String,
}

#[derive(Deserialize)]
struct SaidPermit2 {
    from: String,
    permitted: Permitted,
    spender: String,
    nonce: String,
    deadline: String,
    witness: Witness,
}

#[derive(Deserialize)]
struct Permitted {
    token: String,
    amount: Atoms,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Witness {
    to: String,
    facilitator: Option<String>,
    valid_after: String,
}

#[derive(Deserialize)]
struct SaidSolana {
    transaction: String,
}

/// Exactly one way of signing. The witness of `upto` has one member more, which is read nowhere else: it would not be signed.
fn evm(scheme: Scheme, payload: &RawValue) -> Option<Signed> {
    let said: SaidEvm = serde_json::from_str(payload.get()).ok()?;
    let signature = signature(&said.signature)?;
    match (said.authorization, said.permit2_authorization) {
        (Some(a), None) if scheme == Scheme::Exact => Some(Signed::Eip3009(Eip3009 {
            from: address(&a.from)?,
            to: address(&a.to)?,
            value: a.value,
            valid_after: seconds(&a.valid_after)?,
            valid_before: seconds(&a.valid_before)?,
            nonce: word::<B256>(&a.nonce, 64)?,
            signature,
        })),
        (None, Some(p)) => Some(Signed::Permit2(Permit2 {
            from: address(&p.from)?,
            token: address(&p.permitted.token)?,
            amount: p.permitted.amount,
            spender: address(&p.spender)?,
            nonce: number(&p.nonce)?,
            deadline: seconds(&p.deadline)?,
            to: address(&p.witness.to)?,
            facilitator: match scheme {
                Scheme::Exact => None,
                Scheme::Upto => Some(address(p.witness.facilitator.as_deref()?)?),
            },
            valid_after: seconds(&p.witness.valid_after)?,
            signature,
        })),
        _ => None,
    }
}

fn solana(scheme: Scheme, payload: &RawValue) -> Option<Signed> {
    let said: SaidSolana = serde_json::from_str(payload.get()).ok().filter(|_| scheme == Scheme::Exact)?;
    let bytes = BASE64.decode(said.transaction).ok()?;
    (bytes.len() <= MAX_TRANSACTION).then_some(Signed::Solana(bytes))
}

/// A whole word of `0x` and so many hex digits in any case: the standard reader would take less.
fn word<T: std::str::FromStr>(text: &str, digits: usize) -> Option<T> {
    let hex =
        text.strip_prefix("0x").filter(|hex| hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
    format!("0x{}", hex.to_ascii_lowercase()).parse().ok()
}

pub(super) fn address(text: &str) -> Option<Address> {
    word(text, 40)
}

fn signature(text: &str) -> Option<Bytes> {
    let hex = text.strip_prefix("0x").filter(|hex| hex.len() <= 2 * MAX_SIGNATURE)?;
    hex::decode(hex).ok().map(Bytes::from)
}

fn seconds(text: &str) -> Option<u64> {
    u64::try_from(Atoms::parse(text)?.0).ok()
}

/// A 256-bit number in decimal, as clients write it, or in hex, as the specification's example does.
fn number(text: &str) -> Option<U256> {
    let (digits, radix, most) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16, 64),
        None => (text, 10, 78),
    };
    let plain = !digits.is_empty() && digits.len() <= most && digits.chars().all(|c| c.is_digit(radix));
    plain.then(|| U256::from_str_radix(digits, u64::from(radix)).ok())?
}

#[cfg(test)]
#[path = "shown_tests.rs"]
mod tests;
