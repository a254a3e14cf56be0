//! What a charge credential's payload proves, decoded to the one form it can have.
//!
//! The identity of a proof is computed from these values and never from header text: hex case, padding or escapes give one key.
//! Pull and push share one namespace, the hash of the transaction on its chain, so that a transaction is used once however it
//! arrives. A signed transaction is taken only in the bytes the chain itself would write for it; anything else (trailing bytes,
//! a long form of a number, a recovery id of 0 for 27) would be a second hash for the same signature.

use super::sponsor::Draft;
use crate::claim::ClaimKey;
use crate::clock::UnixSeconds;
use ::mpp::protocol::core::PaymentPayload;
use alloy::eips::{Decodable2718, Encodable2718};
use alloy::primitives::{B256, keccak256};
use tempo_alloy::primitives::transaction::TEMPO_EXPIRING_NONCE_KEY;
use tempo_alloy::primitives::{AASigned, TempoTransaction};

/// Largest signed transaction that is looked at, in bytes. A WebAuthn-signed transfer with a key authorization is about 4 KiB.
const MAX_TRANSACTION: usize = 16 * 1024;

/// The most gas a transaction may ask for (EIP-7825: 2^24): a transfer needs a thirtieth of it.
const MOST_GAS: u64 = 1 << 24;

/// A decoded payload.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A signed transaction that we send.
    Pull {
        /// Its canonical bytes.
        raw: Vec<u8>,
        /// Their hash: the transaction's on chain.
        hash: B256,
        /// Decoded.
        signed: Box<AASigned>,
    },
    /// A transaction that the payer has signed and whose fee we are to carry.
    Sponsored(Box<Draft>),
    /// The hash of a transaction the payer has sent.
    Push {
        /// That hash.
        hash: B256,
    },
    /// A signature that only shows who asks; it moves nothing.
    Identity,
}

impl Payload {
    /// Decodes a payload. The error is a sentence about its form.
    pub fn read(payload: &PaymentPayload) -> Result<Self, &'static str> {
        if let Some(text) = payload.signed_tx() {
            return Self::pull(&hex_bytes(text).ok_or("the signed transaction is not hex")?);
        }
        if let Some(text) = payload.tx_hash() {
            let bytes = hex_bytes(text).ok_or("the transaction hash is not hex")?;
            return match B256::try_from(bytes.as_slice()) {
                Ok(hash) => Ok(Self::Push { hash }),
                Err(_) => Err("the transaction hash is not 32 bytes long"),
            };
        }
        payload.proof_signature().map(|_| Self::Identity).ok_or("the payload is of no known type")
    }

    fn pull(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_TRANSACTION {
            return Err("the signed transaction is too large");
        }
        let mut rest = bytes;
        let signed =
            AASigned::decode_2718(&mut rest).map_err(|_| "the signed transaction is not a Tempo transaction (0x76)")?;
        let raw = signed.encoded_2718();
        if raw != bytes {
            return Err("the signed transaction is not in its canonical encoding");
        }
        let hash = keccak256(&raw);
        Ok(Self::Pull { raw, hash, signed: Box::new(signed) })
    }

    /// The claim this proof would be, on chain `chain_id`, when it answers `challenge`.
    pub fn key(&self, chain_id: u64, challenge: &str) -> ClaimKey {
        ClaimKey(match self {
            Self::Pull { hash, .. } | Self::Push { hash } => format!("tempo:{chain_id}:tx:{hash:#x}"),
            Self::Sponsored(draft) => format!("tempo:{chain_id}:{}:{:#x}", draft.space(), draft.hash()),
            // A challenge is single-use whoever proves it. The id is case-sensitive and has one spelling.
            Self::Identity => format!("tempo:{chain_id}:proof:{challenge}"),
        })
    }

    /// What the receipt calls it.
    pub fn reference(&self, challenge: &str) -> String {
        match self {
            Self::Pull { hash, .. } | Self::Push { hash } => format!("{hash:#x}"),
            Self::Sponsored(draft) => format!("{:#x}", draft.hash()),
            Self::Identity => challenge.to_owned(),
        }
    }

    /// What has to be kept to send it again. Of a sponsored one that is known only once the fee is set aside.
    pub fn resend(&self) -> Option<String> {
        match self {
            Self::Pull { raw, .. } => Some(alloy::hex::encode_prefixed(raw)),
            Self::Sponsored(_) | Self::Push { .. } | Self::Identity => None,
        }
    }
}

/// What a payer's own transaction must be for us to send it, apart from what it pays: the second at which it is over. Every published
/// client signs this form. The error is a sentence.
pub fn sendable(tx: &TempoTransaction, offer_ends: UnixSeconds, now: UnixSeconds) -> Result<UnixSeconds, &'static str> {
    // An ordinary nonce can stand behind a gap: a node keeps such a transaction, and nobody ever knows what becomes of it.
    if tx.nonce_key != TEMPO_EXPIRING_NONCE_KEY || tx.nonce != 0 {
        return Err("the transaction must have an expiring nonce");
    }
    if tx.gas_limit > MOST_GAS {
        return Err("the gas limit is higher than that of any block");
    }
    if tx.max_priority_fee_per_gas > tx.max_fee_per_gas {
        return Err("maxPriorityFeePerGas is higher than maxFeePerGas");
    }
    // Without an end, an absent transaction could never be called dead.
    let end = tx.valid_before.map(|t| UnixSeconds(t.get())).ok_or("validBefore is missing")?;
    // Clients round the offer's end to the second after.
    if end > offer_ends.plus(1) {
        return Err("validBefore is later than the offer's end");
    }
    if end <= now {
        return Err("validBefore is past");
    }
    if tx.valid_after.is_some_and(|t| UnixSeconds(t.get()) > now) {
        return Err("validAfter is not reached");
    }
    Ok(end)
}

/// Hex with or without `0x`, in any case.
pub fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    hex::decode(digits).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use ::mpp::PaymentCredential;
    use serde_json::{Value, json};

    fn recorded(file: &str) -> Value {
        let path = format!("{}/tests/golden/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        record["exchanges"][1]["request"]["authorizationDecoded"]["payload"].clone()
    }

    fn read(payload: Value) -> Result<Payload, &'static str> {
        Payload::read(&serde_json::from_value(payload).unwrap())
    }

    fn key(payload: Value) -> Result<ClaimKey, &'static str> {
        read(payload).map(|p| p.key(42431, "challenge"))
    }

    #[test]
    fn every_spelling_of_a_proof_is_one_key() {
        for (file, field) in [("charge-pull", "signature"), ("charge-push", "hash")] {
            let plain = recorded(file);
            let want = key(plain.clone()).unwrap();
            let text = plain[field].as_str().unwrap()[2..].to_owned();
            for (spelling, why) in [
                (format!("0x{}", text.to_ascii_uppercase()), "upper case"),
                (format!("0X{text}"), "0X"),
                (text.clone(), "no prefix"),
            ] {
                let mut other = plain.clone();
                other[field] = json!(spelling);
                assert_eq!(key(other).unwrap(), want, "{file}: {why}");
            }
        }
        let header = |json: &str| {
            let token = ::mpp::protocol::core::base64url_encode(json.as_bytes());
            let credential = PaymentCredential::from_header(&format!("Payment {token}")).unwrap();
            Payload::read(&credential.charge_payload().unwrap()).unwrap().key(42431, "c")
        };
        let json = |hash: &str| {
            format!(
                r#"{{"challenge":{{"id":"c","realm":"r","method":"tempo","intent":"charge","request":"e30"}},"payload":{{"type":"hash","hash":"{hash}"}}}}"#
            )
        };
        let hash = "ab".repeat(32);
        assert_eq!(header(&json(&hash)), header(&json(&format!("\\u0030x{}", "\\u0061b".repeat(32)))), "escapes");
    }

    #[test]
    fn pull_and_push_of_one_transaction_are_one_key() {
        let Payload::Pull { hash, .. } = read(recorded("charge-pull")).unwrap() else { panic!("pull") };
        assert_eq!(
            hash.to_string(),
            "0x647f9aadf8c25e57d2885739e0a932a15b9d5c445a71218a61bc4394a23ddfeb",
            "as on chain"
        );
        assert_eq!(
            key(json!({"type": "hash", "hash": hash})).unwrap(),
            key(recorded("charge-pull")).unwrap(),
            "one namespace"
        );
    }

    #[test]
    fn a_signed_transaction_has_one_encoding() {
        let text = recorded("charge-pull")["signature"].as_str().unwrap().to_owned();
        let (head, tail) = text.split_at(text.len() - 2);
        assert_eq!(tail, "1c", "a recovery id of 28");
        for (spelling, why) in [
            (format!("{text}00"), "trailing byte"),
            (format!("{head}01"), "recovery id 1 for 28"),
            (format!("0x{}", &text[4..]), "no type byte"),
            (text.replacen("0x76", "0x78", 1), "sponsor envelope"),
            (text.replacen("76f90103", "76fa000103", 1), "long form of the length"),
            (text.replacen("82a5bf", "8300a5bf", 1), "leading zero in the chain id"),
            (String::new(), "empty"),
            ("0x76".to_owned(), "only a type"),
            (format!("0x76{}", "00".repeat(MAX_TRANSACTION)), "oversized"),
        ] {
            assert!(read(json!({"type": "transaction", "signature": spelling})).is_err(), "{why}");
        }
        for (hash, why) in [("0x12", "short"), ("0xzz", "not hex"), ("", "empty"), ("0x0x", "prefix twice")] {
            assert!(read(json!({"type": "hash", "hash": hash})).is_err(), "{why}");
        }
    }
}
