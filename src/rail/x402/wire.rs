//! What x402 puts on the wire, v2 and v1: headers, offers, payments, receipts (`notes/x402-digest.md` §1).
//!
//! A payment is kept twice: as typed values, which are all that is ever decided on, and as the JSON text the client wrote,
//! which goes to the facilitator as it is, so that members we do not know survive.

use super::signed::Signed;
use crate::money::Atoms;
use crate::network::Network;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;

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
