//! Lying and malformed answers, each with what it must come to and why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const PAYER: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
const OTHER: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const TX: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";
const SIGNATURE: &str = "5VERv8NMvzbJMEkV8xnrLkEaWRtSz9CosKDYjCJjBRnbJLgp8uirBgmQpjKhoR4tjF3ZpRzrFmBV6UjKdiSZkQUW";

fn expects(network: &Network, amount: u128) -> Expects<'_> {
    Expects { network, payer: Some(PAYER), amount: Atoms(amount) }
}

fn evm() -> Network {
    Network::parse("eip155:84532").unwrap()
}

/// A truthful answer of `/settle` with a change.
fn told(change: Value) -> String {
    let mut said = json!({"success": true, "transaction": TX, "network": "eip155:84532", "payer": PAYER});
    for (key, value) in change.as_object().unwrap() {
        match value {
            Value::String(s) if s == "absent" => drop(said.as_object_mut().unwrap().remove(key)),
            value => said[key] = value.clone(),
        }
    }
    said.to_string()
}

/// One word for an outcome.
fn settle(status: u16, body: &str, network: &Network, amount: u128) -> &'static str {
    match settled(status, body.as_bytes(), &expects(network, amount)) {
        Ok(Told::Settled { .. }) => "settled",
        Ok(Told::Failed { .. }) => "failed",
        Ok(Told::Pending) => "pending",
        Ok(Told::Open { .. }) => "open",
        Err(_) => "none",
    }
}

#[test]
fn a_settlement_is_believed_only_with_the_exact_boolean_and_every_fact() {
    for (status, change, want, why) in [
        (200, json!({}), "settled", "the truth"),
        (200, json!({"payer": PAYER.to_lowercase()}), "settled", "capitals are a checksum only"),
        (200, json!({"payer": "absent"}), "settled", "the payer is optional"),
        (
            200,
            json!({"payer": null, "amount": null, "errorReason": null, "extensions": null}),
            "settled",
            "nulls for nothing",
        ),
        (200, json!({"network": "base-sepolia"}), "settled", "the network by its v1 name"),
        (200, json!({"amount": "10000"}), "settled", "the amount, when it is said"),
        (200, json!({"errorReason": "", "new": {"success": false}}), "settled", "an empty reason, an unknown member"),
        (200, json!({"success": "true"}), "none", "a string is no boolean"),
        (200, json!({"success": 1}), "none", "a number is no boolean"),
        (200, json!({"success": null}), "none", "null is no boolean"),
        (200, json!({"success": "absent"}), "none", "says nothing"),
        (200, json!({"transaction": "absent"}), "none", "no transaction"),
        (200, json!({"transaction": ""}), "none", "an empty transaction while something was due"),
        (200, json!({"transaction": "0x12"}), "none", "half a hash"),
        (200, json!({"transaction": TX.replacen("0x", "0X", 1)}), "none", "another spelling of a hash"),
        (200, json!({"transaction": &TX[2..]}), "none", "a hash without 0x"),
        (200, json!({"transaction": SIGNATURE}), "none", "a transaction of another kind of network"),
        (200, json!({"transaction": 7}), "none", "a number for a transaction"),
        (200, json!({"network": "absent"}), "none", "no network"),
        (200, json!({"network": "eip155:8453"}), "none", "another network"),
        (200, json!({"network": "base"}), "none", "another network by its v1 name"),
        (200, json!({"network": "EIP155:84532"}), "none", "another spelling of the network"),
        (200, json!({"payer": OTHER}), "none", "another payer"),
        (200, json!({"payer": "0x7099"}), "none", "half a payer"),
        (200, json!({"payer": {"address": PAYER}}), "none", "an object for a payer"),
        (200, json!({"amount": "9999"}), "none", "less than was due"),
        (200, json!({"amount": "10001"}), "none", "more than was due"),
        (200, json!({"amount": 10_000}), "none", "a number for an amount"),
        (200, json!({"errorReason": "insufficient_funds"}), "none", "yes, and why not"),
        (402, json!({}), "none", "yes, with a status that says no"),
        (500, json!({}), "none", "yes, with an error"),
        (302, json!({}), "none", "yes, from a redirect"),
        // Refusals.
        (200, json!({"success": false, "transaction": "", "errorReason": "insufficient_funds"}), "failed", "a refusal"),
        (400, json!({"success": false, "transaction": "", "errorReason": "invalid_payload"}), "failed", "with 400"),
        (
            412,
            json!({"success": false, "transaction": null, "network": null, "error_reason": "permit2_allowance_required"}),
            "failed",
            "with 412 and x402-rs's spelling",
        ),
        (200, json!({"success": false, "transaction": "absent"}), "failed", "with no reason at all"),
        (
            200,
            json!({"success": false, "errorReason": "invalid_exact_evm_transaction_failed"}),
            "failed",
            "mined and reverted",
        ),
        // Refusals that are none.
        (
            500,
            json!({"success": false, "transaction": "", "errorReason": "rpc timeout"}),
            "open",
            "its own trouble, perhaps after the hand-in",
        ),
        (
            503,
            json!({"success": false, "transaction": "", "errorReason": "insufficient_funds"}),
            "open",
            "whatever the word",
        ),
        (
            200,
            json!({"success": false, "transaction": "", "errorReason": "unexpected_settle_error"}),
            "open",
            "its own trouble, with 200",
        ),
        (
            200,
            json!({"success": false, "transaction": "", "errorReason": "invalid_exact_evm_transaction_failed"}),
            "open",
            "the hand-in broke off",
        ),
        (
            200,
            json!({"success": false, "transaction": "", "errorReason": "duplicate_settlement"}),
            "open",
            "a copy is on its way",
        ),
        (
            200,
            json!({"success": false, "transaction": "", "errorReason": "invalid_exact_evm_nonce_already_used"}),
            "open",
            "used by this very payment, perhaps",
        ),
        (200, json!({"success": false, "errorReason": "transfer_event_mismatch"}), "open", "mined, and read otherwise"),
        (
            200,
            json!({"success": false, "errorReason": "insufficient_funds"}),
            "open",
            "refused, and a transaction is named",
        ),
        (200, json!({"success": false, "errorReason": "settlement_pending"}), "pending", "handed in"),
        (
            500,
            json!({"success": false, "errorReason": "settlement_pending"}),
            "pending",
            "handed in, said with an error",
        ),
    ] {
        assert_eq!(settle(status, &told(change), &evm(), 10_000), want, "{why}");
    }
}

#[test]
fn text_that_is_not_one_json_object_says_nothing() {
    let twice = format!(r#"{{"success":false,"success":true,"transaction":"{TX}","network":"eip155:84532"}}"#);
    let trailing = format!("{} {{}}", told(json!({})));
    let half = told(json!({}));
    let half = &half[..half.len() - 1];
    for (body, why) in [
        ("", "nothing"),
        ("true", "a bare boolean"),
        ("null", "null"),
        ("<html>success</html>", "a page"),
        ("[{\"success\":true}]", "a list"),
        (half, "half an object"),
        (&twice, "yes and no at once"),
        (&trailing, "two objects"),
        ("{\"isValid\":true,\"payer\":null}", "an answer to another question"),
    ] {
        assert_eq!(settle(200, body, &evm(), 10_000), "none", "{why}");
    }
}

#[test]
fn nothing_moves_only_where_nothing_was_due() {
    let empty = told(json!({"transaction": ""}));
    assert_eq!(settle(200, &empty, &evm(), 0), "settled", "upto of 0");
    assert_eq!(settle(200, &told(json!({"amount": "0", "transaction": ""})), &evm(), 0), "settled", "and says so");
    assert_eq!(settle(200, &told(json!({"amount": "1", "transaction": ""})), &evm(), 0), "none", "and says otherwise");
    assert_eq!(settle(200, &empty, &evm(), 1), "none", "one atom was due");
}

#[test]
fn a_solana_settlement_names_a_signature() {
    let network = Network::parse("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1").unwrap();
    for (transaction, want, why) in [
        (SIGNATURE, "settled", "64 bytes in base58"),
        (TX, "none", "a hash of another kind of network"),
        (&SIGNATURE[..60], "none", "too short"),
        ("0OIl", "none", "not base58"),
        (&"1".repeat(100_000), "none", "far too long"),
    ] {
        let body = told(json!({"transaction": transaction, "network": "solana-devnet", "payer": null}));
        assert_eq!(settle(200, &body, &network, 10_000), want, "{why}");
    }
}

#[test]
fn a_verification_is_believed_only_with_the_exact_boolean_and_no_contradiction() {
    for (status, body, want, why) in [
        (200, json!({"isValid": true, "payer": PAYER}), "valid", "the truth"),
        (200, json!({"isValid": true}), "valid", "the payer is optional"),
        (200, json!({"isValid": true, "payer": "", "invalidReason": null}), "valid", "nothing, in two spellings"),
        (200, json!({"isValid": "true"}), "none", "a string is no boolean"),
        (200, json!({"isValid": 1}), "none", "a number is no boolean"),
        (200, json!({"is_valid": true}), "none", "another member"),
        (200, json!({"success": true}), "none", "an answer to another question"),
        (200, json!({"isValid": true, "payer": OTHER}), "none", "another payer"),
        (200, json!({"isValid": true, "payer": "me"}), "none", "no account"),
        (200, json!({"isValid": true, "invalidReason": "insufficient_funds"}), "none", "yes, and why not"),
        (402, json!({"isValid": true, "payer": PAYER}), "none", "yes, with a status that says no"),
        (200, json!({"isValid": false, "invalidReason": "insufficient_funds"}), "invalid", "a refusal"),
        (
            400,
            json!({"isValid": false, "invalidReason": "invalid_payload", "payer": OTHER}),
            "invalid",
            "with 400; the payer matters not",
        ),
        (412, json!({"isValid": false}), "invalid", "with 412 and no reason"),
        (
            500,
            json!({"isValid": false, "invalidReason": "invalid_signature"}),
            "invalid",
            "with 500, as x402-rs does: no money moves",
        ),
        (200, json!({"isValid": false, "invalidReason": "unexpected_verify_error"}), "unknown", "its own trouble"),
        (500, json!({"error": "boom"}), "none", "an error"),
        (401, json!({"message": "no"}), "none", "who are we?"),
    ] {
        let network = evm();
        let got = match verified(status, body.to_string().as_bytes(), &expects(&network, 10_000)) {
            Ok(Verdict::Valid { .. }) => "valid",
            Ok(Verdict::Invalid { .. }) => "invalid",
            Ok(Verdict::Unknown { .. }) => "unknown",
            Err(_) => "none",
        };
        assert_eq!(got, want, "{why}");
    }
}

#[test]
fn a_reason_is_repeated_only_as_far_as_it_is_harmless() {
    assert_eq!(word(Some("a\r\nb\u{1b}[31m\u{202e}é")), "ab[31m");
    assert_eq!(word(Some(&"x".repeat(5_000))).len(), 100);
    assert_eq!(word(Some("\n")), word(None));
}

/// Bytes near the truth: a truthful answer with a few bytes changed, cut or doubled.
fn near() -> impl Strategy<Value = Vec<u8>> {
    let truth = prop_oneof![
        Just(told(json!({}))),
        Just(told(json!({"success": false}))),
        Just(json!({"isValid": true, "payer": PAYER}).to_string()),
    ];
    (truth, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), any::<prop::sample::Index>())
        .prop_map(|(truth, changes, cut)| {
            let mut bytes = truth.into_bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let keep = cut.index(2 * bytes.len());
            bytes.truncate(keep.max(1));
            bytes
        })
}

proptest! {
    #[test]
    fn no_bytes_are_a_payment_without_the_boolean_and_the_facts(status in 100..600_u16, body in prop_oneof![near(), any::<Vec<u8>>()]) {
        let network = evm();
        let expects = expects(&network, 10_000);
        // Read once more by a reader that knows no types: what it finds must be there, literally.
        let free = serde_json::from_slice::<Value>(&body).unwrap_or(Value::Null);
        if let Ok(Told::Settled { transaction, payer }) = settled(status, &body, &expects) {
            prop_assert!((200..300).contains(&status) && free["success"] == json!(true));
            prop_assert!(free["network"] == json!("eip155:84532") || free["network"] == json!("base-sepolia"));
            prop_assert!(transaction.len() == 66 && free["transaction"] == json!(transaction));
            prop_assert!(payer.is_none_or(|p| p.eq_ignore_ascii_case(PAYER)));
        }
        if let Ok(Verdict::Valid { payer }) = verified(status, &body, &expects) {
            prop_assert!((200..300).contains(&status) && free["isValid"] == json!(true));
            prop_assert!(payer.is_none_or(|p| p.eq_ignore_ascii_case(PAYER)));
        }
    }
}
