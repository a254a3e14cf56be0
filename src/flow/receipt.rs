//! A receipt's forms: the record, the `Payment-Receipt` header, the signed comment of a stream, the block in the body.

use crate::journal::Receipt;
use crate::rules::plan::{Fact, ReceiptForm};
use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde_json::{Value, json};

/// Signs receipts with Ed25519 (RFC 8032), so that whoever holds one can show it to a third party.
pub struct Signet(SigningKey);

impl Signet {
    /// From a 32-byte seed.
    pub fn new(seed: &Secret) -> Option<Self> {
        <[u8; 32]>::try_from(seed.expose()).ok().map(|seed| Self(SigningKey::from_bytes(&seed)))
    }

    /// The public key, 64 hex digits: `/status` shows it.
    pub fn public_key(&self) -> String {
        hex::encode(self.0.verifying_key().to_bytes())
    }

    /// `base64url` of the receipt's JSON with one more member at its end, `signature`: base64url of the Ed25519 signature over
    /// the JSON without it.
    pub fn seal(&self, receipt: &Receipt) -> String {
        let mut shown = public(receipt);
        let signature = self.0.sign(shown.to_string().as_bytes());
        if let Value::Object(map) = &mut shown {
            map.insert("signature".to_owned(), json!(URL_SAFE_NO_PAD.encode(signature.to_bytes())));
        }
        URL_SAFE_NO_PAD.encode(shown.to_string())
    }
}

/// Reads a sealed receipt back, if `key` (64 hex digits) signed it. The members' order is part of what was signed.
pub fn unseal(sealed: &str, key: &str) -> Option<Value> {
    let mut shown: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(sealed).ok()?).ok()?;
    let signature = shown.as_object_mut()?.shift_remove("signature")?;
    let signature = <[u8; 64]>::try_from(URL_SAFE_NO_PAD.decode(signature.as_str()?).ok()?).ok()?;
    let key = <[u8; 32]>::try_from(hex::decode(key).ok()?).ok()?;
    let key = VerifyingKey::from_bytes(&key).ok()?;
    key.verify_strict(shown.to_string().as_bytes(), &ed25519_dalek::Signature::from_bytes(&signature)).ok()?;
    Some(shown)
}

/// What a client may see of a receipt: everything but the request id's inner life. Amounts are decimal strings, never floats.
pub fn public(receipt: &Receipt) -> Value {
    let mut shown = json!({
        "id": receipt.id,
        "request": receipt.request,
        "time": receipt.at.rfc3339(),
        "model": receipt.model,
        "pool": receipt.pool,
        "tier": receipt.tier,
        "rail": receipt.rail,
        "generation": receipt.generation,
        "charged": { "usd": receipt.charged_usd, "atoms": receipt.charged, "decimals": receipt.decimals },
        "reference": receipt.reference,
        "attempts": receipt.attempts.max(1),
        "complete": receipt.complete,
    });
    if let Value::Object(map) = &mut shown {
        if let Some(transaction) = &receipt.transaction {
            map.insert("transaction".to_owned(), json!(transaction));
        }
        if let Some(settlement) = receipt.settlement {
            map.insert("settlement".to_owned(), json!(settlement));
        }
        if let Some(actual) = receipt.actual_usd {
            map.insert("actual".to_owned(), json!({ "usd": actual }));
        }
        if let Some(usage) = receipt.usage {
            map.insert(
                "usage".to_owned(),
                json!({
                    "prompt_tokens": usage.prompt,
                    "completion_tokens": usage.completion,
                    "cached_tokens": usage.cached,
                    "reasoning_tokens": usage.reasoning,
                }),
            );
        }
        if let Some(source) = receipt.usage_source {
            map.insert("usage_source".to_owned(), json!(source));
        }
    }
    shown
}

/// What is known of a receipt whose reply is still running: that, and nothing of the request or its price.
pub fn still_running(id: &str) -> Value {
    json!({ "id": id, "status": "pending", "settlement": "pending" })
}

/// What a route's block in the reply says: the facts its rules name, else the whole receipt.
pub fn block(receipt: &Receipt, form: &ReceiptForm) -> Value {
    let whole = public(receipt);
    if form.show.is_empty() {
        return whole;
    }
    let told = form.show.iter().filter_map(|(name, fact)| {
        let value = match fact {
            Fact::Id => json!(receipt.id),
            Fact::Model => json!(receipt.model),
            Fact::Pool => json!(receipt.pool),
            Fact::Server => json!(receipt.server.as_ref()?),
            Fact::Tier => json!(receipt.tier),
            Fact::Rail => json!(receipt.rail),
            Fact::ChargedUsd => json!(receipt.charged_usd),
            Fact::Credits => json!(receipt.charged_usd.counted_in(form.credit?)),
            Fact::Usage => whole.get("usage")?.clone(),
        };
        Some((name.clone(), value))
    });
    Value::Object(told.collect())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::UnixSeconds;
    use crate::money::{Atoms, Usd};

    pub(crate) fn sample() -> Receipt {
        Receipt {
            id: "rcpt_1".into(),
            request: "req_1".into(),
            at: UnixSeconds(1_795_221_719),
            route: "/v1/chat/completions".into(),
            tier: "standard".into(),
            model: "m".into(),
            pool: "p".into(),
            server: None,
            rail: "tempo/charge".into(),
            generation: "0123456789abcdef".into(),
            charged: Atoms(20_000),
            decimals: 6,
            charged_usd: Usd(20_000_000_000_000_000),
            actual_usd: None,
            usage: None,
            usage_source: None,
            reference: "0xab".into(),
            transaction: None,
            settlement: None,
            payer: None,
            attempts: 1,
            complete: true,
        }
    }

    #[test]
    fn a_block_tells_what_its_route_names_in_that_order_and_nothing_else() {
        let facts = [("worker", Fact::Server), ("lane", Fact::Pool), ("receipt", Fact::Id), ("credits", Fact::Credits)];
        let show = facts.map(|(name, fact)| (name.to_owned(), fact)).to_vec();
        let form = ReceiptForm { show, credit: Some(Usd(10_000_000_000_000_000)), ..ReceiptForm::default() };
        let named = Receipt { server: Some("gpu-1".into()), ..sample() };
        let text = |receipt: &Receipt| block(receipt, &form).to_string();
        assert_eq!(text(&named), r#"{"worker":"gpu-1","lane":"p","receipt":"rcpt_1","credits":"2"}"#);
        assert_eq!(
            text(&sample()),
            r#"{"lane":"p","receipt":"rcpt_1","credits":"2"}"#,
            "what is not known is not there"
        );
        assert_eq!(block(&named, &ReceiptForm::default()), public(&named));
    }

    #[test]
    fn a_sealed_receipt_opens_only_with_its_key_and_unchanged() {
        let signet = Signet::new(&Secret::new([7u8; 32])).unwrap();
        let sealed = signet.seal(&sample());
        let opened = unseal(&sealed, &signet.public_key()).unwrap();
        assert_eq!(opened["charged"]["usd"], "0.02");
        let other = Signet::new(&Secret::new([8u8; 32])).unwrap();
        assert_eq!(unseal(&sealed, &other.public_key()), None);
        for i in 0..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            if changed != sealed {
                assert_eq!(unseal(&changed, &signet.public_key()), None, "byte {i}");
            }
        }
    }
}
