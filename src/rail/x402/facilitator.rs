//! Whoever verifies and settles for us: a service over HTTP, or the same in this process.
//!
//! What it says is typed before it is believed, and silence is never read as "no": after a settlement was asked for, only a
//! definite answer is one.

use super::wire::{Scheme, Version};
use crate::money::Atoms;
use crate::network::Network;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::RawValue;

/// What is sent to `/verify` and `/settle`: the client's payload as it came, and our own requirements in the payload's generation.
/// Serialised, it is the body of either call.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Call<'a> {
    /// The payload's generation.
    #[serde(rename = "x402Version")]
    pub version: Version,
    /// The client's `PaymentPayload`, verbatim.
    #[serde(rename = "paymentPayload")]
    pub payload: &'a RawValue,
    /// Our `PaymentRequirements`.
    #[serde(rename = "paymentRequirements")]
    pub requirements: &'a RawValue,
    /// What a truthful answer must name.
    #[serde(skip)]
    pub expects: Expects<'a>,
    /// It was handed in before, and nobody knows what came of it. That a facilitator has no verdict on it again says nothing about how
    /// the facilitator is.
    #[serde(skip)]
    pub again: bool,
}

/// What a truthful answer must name; anything else is a contradiction and counts as no answer.
#[derive(Clone, Copy, Debug)]
pub struct Expects<'a> {
    /// The network, by CAIP-2 id or v1 name.
    pub network: &'a Network,
    /// Who signed, as far as the payload says it. Compared without regard to case.
    pub payer: Option<&'a str>,
    /// The amount to be taken.
    pub amount: Atoms,
}

/// What `/verify` came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would settle now.
    Valid {
        /// Who pays.
        payer: Option<String>,
    },
    /// It would not.
    Invalid {
        /// The facilitator's word, at most 100 printable ASCII characters.
        reason: String,
    },
    /// It did not say.
    Unknown {
        /// In our words.
        why: String,
    },
}

/// What `/settle` came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The money moved, says the facilitator.
    Settled {
        /// Transaction hash or signature; empty when nothing had to move (`upto` of 0).
        transaction: String,
        /// Who paid.
        payer: Option<String>,
    },
    /// It did not and will not, says the facilitator.
    Failed {
        /// Its word, at most 100 printable ASCII characters.
        reason: String,
    },
    /// Nobody knows.
    Unknown {
        /// In our words.
        why: String,
    },
}

/// A kind of payment as `/supported` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Generation.
    pub version: Version,
    /// Scheme.
    pub scheme: Scheme,
    /// Network.
    pub network: Network,
}

/// What goes with a supported kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// `upto`: the address that payers must name. The same one as long as it stays among the signers.
    pub facilitator_address: Option<String>,
    /// Every address it signs with on that network.
    pub signers: Vec<String>,
    /// Solana: who pays the fee. The same account as long as it stays among the signers.
    pub fee_payer: Option<String>,
    /// Whether it carries EIP-2612 approvals (`eip2612GasSponsoring`).
    pub sponsors_approval: bool,
}

/// Verifies and settles.
#[async_trait]
pub trait Facilitator: Send + Sync {
    /// Whether it takes this kind now, from what it last said. Never does I/O. The error is a sentence for operators.
    fn support(&self, kind: &Kind) -> Result<Support, String>;
    /// Asks whether the payment would settle.
    async fn verify(&self, call: &Call<'_>) -> Verdict;
    /// Takes the money.
    async fn settle(&self, call: &Call<'_>) -> Settlement;
    /// Keeps `support` fresh until the process ends; the first answer is waited for, boundedly, by [`Facilitator::probe`].
    async fn watch(&self);
    /// Asks once what it supports.
    async fn probe(&self);
}
