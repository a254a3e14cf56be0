//! Buying at a [`Stall`] by hand: its offers, payments for them, and what every answer to a payment must have.

use mpp::PrivateKeySigner;
use serde_json::{Value, json};

use super::stall::chat_at;
use super::{Stall, decode, encode};
use crate::common::{RawReply, client};

/// The header a payment of v2 is in.
pub const SIGNATURE: &str = "payment-signature";
/// The header a payment of v1 is in.
pub const X_PAYMENT: &str = "x-payment";

/// A small chat.
pub fn chat() -> Value {
    client::chat("openai/gpt-oss-120b", "one two three")
}

/// The same, streamed.
pub fn streamed() -> Value {
    let mut body = chat();
    body["stream"] = json!(true);
    body
}

/// What a 402 accepts, v2.
pub fn accepts(reply: &RawReply) -> Vec<Value> {
    let header = reply.header("payment-required").unwrap_or_else(|| panic!("no offer: {}", reply.text()));
    decode(header)["accepts"].as_array().unwrap().clone()
}

/// OpenAI's error code.
pub fn code(reply: &RawReply) -> String {
    reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// What `PAYMENT-RESPONSE` says.
pub fn told(reply: &RawReply) -> Option<Value> {
    reply.header("payment-response").map(decode)
}

impl Stall {
    /// The first offer for this body.
    pub async fn offer(&self, server: &str, body: &Value) -> Value {
        let reply = self.post(&chat_at(server), &[], body).await;
        assert_eq!(reply.status, 402, "{}", reply.text());
        accepts(&reply).remove(0)
    }

    /// Who may pay in every way: with 20 USD, and Permit2 let in.
    pub async fn buyer(&self) -> PrivateKeySigner {
        let buyer = self.chain.buyer(20_000_000).await;
        self.chain.approve_permit2(&buyer.address().to_string()).await;
        buyer
    }

    /// A payment for this body, in whatever way this server wants it signed.
    pub async fn payment(&self, buyer: &PrivateKeySigner, server: &str, body: &Value) -> Value {
        let offer = self.offer(server, body).await;
        match offer["extra"]["assetTransferMethod"] == "permit2" {
            true => self.chain.permit(buyer, &offer, |_| ()),
            false => self.chain.authorize(buyer, &offer, |_| ()),
        }
    }

    /// Whether this payment's nonce is used on the chain, by whomever and for whatever.
    pub async fn is_used(&self, payment: &Value) -> bool {
        let payload = &payment["payload"];
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        match payload["permit2Authorization"].as_object() {
            Some(permit) => {
                let nonce = text(&permit["nonce"]).parse().unwrap();
                self.chain.permit2_nonce_used(&text(&permit["from"]), nonce).await
            }
            None => {
                let signed = &payload["authorization"];
                self.chain.authorization_state(&text(&signed["from"]), text(&signed["nonce"]).parse().unwrap()).await
            }
        }
    }

    /// Shows a payment of v2.
    pub async fn show(&self, server: &str, payment: &Value, body: &Value) -> RawReply {
        self.post(&chat_at(server), &[(SIGNATURE, &encode(payment))], body).await
    }

    /// Requests that reached the backend.
    pub fn served(&self) -> usize {
        self.backend.requests().len()
    }
}

/// A 402 with this code and offers that can be paid.
pub fn assert_challenge(reply: &RawReply, code: &str, why: &str) {
    let text = reply.text();
    assert_eq!((reply.status, self::code(reply).as_str()), (402, code), "{why}: {text}");
    let fresh = accepts(reply);
    assert!(!fresh.is_empty() && fresh.iter().all(|o| o["extra"]["offer"].is_string()), "{why}: {fresh:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{why}: {text}");
}

/// An answer after which nobody may pay again by himself: of these statuses, with this code.
pub fn assert_final(reply: &RawReply, statuses: &[u16], code: &str, why: &str) {
    let text = reply.text();
    assert!(statuses.contains(&reply.status), "{why}: {} instead of {statuses:?}: {text}", reply.status);
    assert_eq!(self::code(reply), code, "{why}: {text}");
    for invitation in ["payment-required", "www-authenticate"] {
        assert!(reply.header(invitation).is_none(), "{why}: an invitation to pay again: {text}");
    }
    assert!(reply.json().get("accepts").is_none(), "{why}: an invitation to pay again, v1: {text}");
    assert_eq!(reply.header("x-should-retry"), Some("false"), "{why}: {text}");
    assert!(reply.json()["payment"]["moved"].is_string(), "{why}: what became of the money is not said: {text}");
}

/// The words of v1 for what was signed under v2: the very same authorization.
pub fn as_v1(payment: &Value) -> Value {
    json!({"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payment["payload"]})
}

/// The id by which the receipt of a reply can be asked for.
pub fn receipt_id(reply: &RawReply) -> String {
    reply.header("pontage-receipt-id").unwrap_or_else(|| panic!("no receipt: {:?}", reply.headers)).to_owned()
}
