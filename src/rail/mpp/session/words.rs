//! What a session's challenge and credential say, as JSON has it.

use crate::chain::Address;
use crate::ids::{self, RailId};
use crate::rail::mpp::voucher::Written;
use crate::rail::session::SessionAsk;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The request object as we write it. Amounts and the snapshot are not compared: one challenge serves many requests.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub currency: Address,
    pub recipient: Address,
    pub method_details: Details,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Details {
    pub chain_id: u64,
    pub escrow_contract: Address,
    pub operator: Option<Address>,
    pub session_protocol: String,
}

/// A payload. Members that we do not know are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Payload {
    pub action: String,
    pub channel_id: Option<String>,
    pub descriptor: Option<Written>,
    pub cumulative_amount: Option<String>,
    pub signature: Option<String>,
    pub close_signature: Option<String>,
    pub transaction: Option<String>,
    pub additional_deposit: Option<String>,
}

/// Our words in a challenge's `opaque`: what it is good for. A flat object of strings in order of their names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scope {
    pub generation: String,
    pub nonce: String,
    pub rail: String,
    pub route: String,
    pub v: String,
}

/// The layout of [`Scope`] written here.
const SCOPE: &str = "session-1";

impl Scope {
    pub fn seal(ask: &SessionAsk<'_>, rail: &RailId) -> Option<String> {
        let words = Self {
            generation: ask.generation.to_string(),
            nonce: ids::nonce(),
            rail: rail.to_string(),
            route: ask.route.to_string(),
            v: SCOPE.to_owned(),
        };
        serde_json::to_vec(&words).ok().map(|json| URL_SAFE_NO_PAD.encode(json))
    }

    pub fn open(wire: &str) -> Option<Self> {
        let words: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(wire).ok()?).ok()?;
        (words.v == SCOPE).then_some(words)
    }
}
