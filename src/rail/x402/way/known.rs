//! Which payment a credential is: by the offer that it answers, under our MAC; and of which claim, by what was signed alone.

use super::{MODEL, X402};
use crate::clock::UnixSeconds;
use crate::ids::PublicModel;
use crate::rail::x402::offer::{self, Bound};
use crate::rail::x402::signed::{Fit, Signed, fit};
use crate::rail::x402::wire::{Accepted, OFFER, Payment};
use crate::rail::{Ask, Identity, Recognised};
use crate::refusal::Refusal;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

impl X402 {
    /// Whether it is of this rail's scheme, on its network.
    pub(super) fn takes(&self, payment: &Payment) -> bool {
        (payment.scheme, &payment.network) == (self.settings.scheme, &self.settings.network)
    }

    /// The payment with the terms of the offer that it answers.
    pub(super) fn known(&self, payment: &Payment, live: &Ask<'_>) -> Result<Option<Recognised>, Refusal> {
        if !self.takes(payment) {
            return Ok(None);
        }
        let mut terms = live.terms.clone();
        let (digest, expires) = match &payment.accepted {
            Some(accepted) => {
                // The offer says for which model it was made, under the MAC; a payment for another model is still this payment.
                terms.model = model_of(accepted).unwrap_or(terms.model);
                let support = self.facilitator.support(&self.kind(payment.version)).unwrap_or_default();
                let mut entry = self.entry(&terms, live.lasts, &support, true);
                let permit2 = matches!(payment.signed, Signed::Permit2(_));
                if !self.same_address(&accepted.asset, &entry.asset)
                    || !self.same_address(&accepted.pay_to, &entry.pay_to)
                    || permit2 != self.settings.permit2
                {
                    return Ok(None);
                }
                entry.amount = accepted.amount;
                entry.max_timeout_seconds = accepted.max_timeout_seconds;
                let entry = entry.repeated(accepted);
                let text = accepted.extra.get(OFFER).and_then(Value::as_str).unwrap_or("");
                let bound = Bound { rail: &self.settings.id, route: &terms.route, model: &terms.model, entry: &entry };
                let not_ours = Refusal::InvalidChallenge { why: "its offer was not made here for this request" };
                let stamp = offer::open(&self.ring, text, &bound).ok_or(not_ours)?;
                terms.amount = accepted.amount;
                terms.price = stamp.price;
                terms.generation = stamp.generation;
                (Some(stamp.digest), stamp.expires)
            }
            None => {
                let (Signed::Eip3009(_) | Signed::Solana(_)) = payment.signed else { return Ok(None) };
                if self.settings.permit2 || self.is_for_another(payment) {
                    return Ok(None);
                }
                let amount = payment.signed.amount().unwrap_or(terms.amount);
                if amount != terms.amount {
                    terms.amount = amount;
                    terms.generation = "".into();
                }
                // Its challenge stands for this body and no other.
                (Some(live.digest), UnixSeconds(u64::MAX))
            }
        };
        let Identity { key, challenge_id, is_public } = self.identity_of(payment, &live.digest);
        // A nonce is anybody's to choose: only with payer, token and network is it one payment's.
        let reference = key.0.clone();
        Ok(Some(Recognised { key, challenge_id, terms, digest, expires, reference, resend: None, is_public }))
    }

    /// By what its claim is found, and told from what somebody else makes of it. Nothing of its offer is believed.
    pub(super) fn identity_of(&self, payment: &Payment, digest: &[u8; 32]) -> Identity {
        let key = payment.signed.key(&self.settings.network, &self.settings.asset.address);
        Identity { key, challenge_id: secret_of(payment, digest), is_public: true }
    }

    /// Whether a payment that names neither token nor payee is one for another section of this network: what was signed fits there, and
    /// here it does not, or less.
    fn is_for_another(&self, payment: &Payment) -> bool {
        let fits = |asset, pay_to: &str| fit(&payment.signed, &self.settings.network, asset, pay_to);
        let mut beside = self.settings.beside.iter().map(|(asset, pay_to)| fits(asset, pay_to)).peekable();
        if beside.peek().is_none() {
            return false;
        }
        let here = fits(&self.settings.asset, &self.settings.pay_to);
        here < Fit::Proven && beside.any(|there| there > here)
    }

    fn same_address(&self, a: &str, b: &str) -> bool {
        if self.is_solana() { a == b } else { a.eq_ignore_ascii_case(b) }
    }
}

/// The model of the offer that a client repeats, as it says.
pub(super) fn model_of(accepted: &Accepted) -> Option<PublicModel> {
    Some(PublicModel::from(accepted.extra.get(MODEL)?.as_str()?))
}

/// Which payment of this payer it is, as only he knows before it is on chain.
fn secret_of(payment: &Payment, digest: &[u8; 32]) -> String {
    let mut hash = Sha256::new();
    match payment.accepted.as_ref().and_then(|a| a.extra.get(OFFER)).and_then(Value::as_str) {
        Some(offer) => hash.update(offer.as_bytes()),
        // v1 repeats nothing of ours: the body stands for it.
        None => hash.update(digest),
    }
    hash.update(payment.signed.signature());
    format!("v{}:{}", u8::from(payment.version), hex::encode(hash.finalize()))
}
