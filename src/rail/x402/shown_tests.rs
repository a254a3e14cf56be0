//! Which headers are payments.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::network::Network;
use crate::rail::x402::sample::Golden;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use http::HeaderValue;
use proptest::prelude::*;
use serde_json::{Value, json};

fn look(lines: &[(&str, &str)]) -> String {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = http::HeaderName::try_from(*name).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    match crate::rail::found(&headers) {
        Found::Nothing => "nothing".to_owned(),
        Found::Malformed => "malformed".to_owned(),
        Found::One(Shown::Mpp(_)) => "mpp".to_owned(),
        Found::One(Shown::X402(p)) => format!("{:?}", p.version),
        Found::Many(n) => format!("{n}"),
    }
}

fn text(name: &str) -> String {
    String::from_utf8(STANDARD.decode(Golden::read(name).value).unwrap()).unwrap()
}

const MPP: &str = "Payment eyJjaGFsbGVuZ2UiOnsiaWQiOiJpIiwicmVhbG0iOiJyIiwibWV0aG9kIjoidGVtcG8iLCJpbnRlbnQiOiJjaGFyZ2UiLCJyZXF1ZXN0IjoiZTMwIn0sInBheWxvYWQiOnsidHlwZSI6Imhhc2giLCJoYXNoIjoiMHgwMCJ9fQ";

#[test]
fn exactly_one_payment_is_found_whatever_its_protocol() {
    let (two, one) = (Golden::read("exact-eip3009").value, Golden::read("v1-eip3009").value);
    let (two, one) = (two.as_str(), one.as_str());
    let joined = format!("{two}, {two}");
    for (lines, want, why) in [
        (&[][..], "nothing", "no header"),
        (&[("payment-signature", two)], "V2", "second generation"),
        (&[("PAYMENT-SIGNATURE", two)], "V2", "names have no case"),
        (&[("x-payment", one)], "V1", "first generation"),
        (&[("authorization", "Bearer sk"), ("x-payment", one)], "V1", "beside an application's own key"),
        (&[("authorization", MPP)], "mpp", "the other protocol"),
        (&[("payment-signature", one)], "malformed", "v1 under v2's name"),
        (&[("x-payment", two)], "malformed", "v2 under v1's name"),
        (&[("payment-signature", "")], "malformed", "empty"),
        (&[("payment-signature", "e30=")], "malformed", "an empty object"),
        (&[("payment-signature", "!!!")], "malformed", "not base64"),
        (&[("payment-signature", "\u{e9}")], "malformed", "not ASCII"),
        (&[("payment-signature", two), ("x-payment", one)], "2", "both generations: which was meant is not guessed"),
        (&[("payment-signature", two), ("x-payment", "")], "2", "one of them empty"),
        (&[("payment-signature", two), ("payment-signature", two)], "2", "the same twice"),
        (&[("payment-signature", &joined)], "2", "the same twice, joined on the way"),
        (&[("payment-signature", two), ("authorization", MPP)], "2", "one of each protocol"),
        (&[("payment-signature", two), ("authorization", "Payment junk")], "2", "one of them junk"),
        (&[("payment-signature", "junk"), ("authorization", MPP)], "2", "the other of them junk"),
        (&[("payment-signature", two), ("x-payment", one), ("authorization", MPP)], "3", "three"),
    ] {
        assert_eq!(look(lines), want, "{why}");
    }
}

#[test]
fn a_payment_is_kept_as_it_was_written() {
    for name in crate::rail::x402::sample::GOLDENS {
        let payment = Golden::read(name).payment();
        assert_eq!(payment.raw.get(), text(name), "{name}");
        assert_eq!(payment.network, Golden::read(name).entry.network, "{name}: v1's name is translated");
        assert_eq!(payment.accepted.is_some(), payment.version == Version::V2, "{name}");
        let printed = format!("{payment:?}");
        assert!(printed.len() < 80 && !printed.contains("0x"), "{printed}");
    }
    let spaced = text("exact-eip3009").replacen('{', "\n{ \"mine\": [1.50, \"\\u00e9\"],\t", 1);
    let found = look(&[("payment-signature", &STANDARD.encode(&spaced))]);
    assert_eq!(found, "V2");
    let payment = payment(Version::V2, STANDARD.encode(&spaced).as_bytes()).unwrap();
    assert_eq!(payment.raw.get().trim(), spaced.trim(), "members that we do not know go to the facilitator");
}

#[test]
fn base64_is_of_the_standard_alphabet_with_or_without_padding() {
    // A text whose base64 has a slash or a plus, and padding.
    let json = format!("{}{}", text("exact-eip3009").replacen('{', "{\"mine\":\"\u{fffd}>>>???\",", 1), " ");
    let json = if json.len().is_multiple_of(3) { format!("{json} ") } else { json };
    let padded = STANDARD.encode(&json);
    assert!(padded.ends_with('=') && padded.contains(['+', '/']));
    for (value, want, why) in [
        (padded.clone(), "V2", "padded"),
        (STANDARD_NO_PAD.encode(&json), "V2", "not padded"),
        (format!("{padded}="), "malformed", "padded too much"),
        (URL_SAFE.encode(&json), "malformed", "the other alphabet"),
        (padded.replacen('e', "e ", 1), "malformed", "a space in it"),
        (format!("Payment {padded}"), "malformed", "a scheme before it"),
    ] {
        assert_eq!(look(&[("payment-signature", &value)]), want, "{why}");
    }
}

#[test]
fn a_header_is_read_up_to_its_limit() {
    let grown = |length: usize| {
        let json = text("exact-eip3009");
        let pad = length / 4 * 3 - json.len();
        STANDARD.encode(format!("{json}{}", " ".repeat(pad)))
    };
    assert_eq!(grown(MAX_HEADER).len(), MAX_HEADER);
    assert_eq!(look(&[("payment-signature", &grown(MAX_HEADER))]), "V2");
    assert_eq!(look(&[("payment-signature", &grown(MAX_HEADER + 4))]), "malformed");
}

/// Replaces one text by another in a recording and says whether it is still a payment.
fn with(name: &str, old: &str, new: &str) -> bool {
    let json = text(name);
    assert!(json.contains(old), "{name} has no {old}");
    let version = if name.starts_with("v1") { Version::V1 } else { Version::V2 };
    payment(version, STANDARD.encode(json.replacen(old, new, 1)).as_bytes()).is_some()
}

#[test]
fn what_could_be_read_in_two_ways_is_not_a_payment() {
    let deep = |levels: usize| format!("{{\"mine\":{}{},", "[".repeat(levels), "]".repeat(levels));
    let (deepest, deeper) = (deep(63), deep(64));
    let table: &[(&str, &str, &str, bool, &str)] = &[
        ("exact-eip3009", "{", &deepest, true, "64 levels"),
        ("exact-eip3009", "{", &deeper, false, "65 levels"),
        ("exact-eip3009", "\"value\":", "\"value\":\"1\",\"value\":", false, "a key twice"),
        ("exact-eip3009", "{", "{\"a\":{\"b\":1,\"\\u0062\":2},", false, "a key twice where we do not look"),
        ("exact-eip3009", "\"x402Version\":2", "\"x402Version\":2.0", false, "a version with a fraction"),
        ("exact-eip3009", "\"x402Version\":2", "\"x402Version\":\"2\"", false, "a version as text"),
        ("exact-eip3009", "\"x402Version\":2", "\"x402Version\":3", false, "the next version"),
        ("exact-eip3009", "\"x402Version\":2", "\"X402Version\":2", false, "no version"),
        ("exact-eip3009", "\"x402Version\":2", "\"x402Version\":1", false, "v2's members under v1's number"),
        ("v1-eip3009", "\"x402Version\":1", "\"x402Version\":2", false, "v1's members under v2's number"),
        ("exact-eip3009", "\"value\":\"20000\"", "\"value\":20000", false, "an amount as a number"),
        ("exact-eip3009", "\"value\":\"20000\"", "\"value\":\"020000\"", false, "a leading zero"),
        ("exact-eip3009", "\"value\":\"20000\"", "\"value\":\"+20000\"", false, "a sign"),
        ("exact-eip3009", "\"value\":\"20000\"", "\"value\":\"2e4\"", false, "an exponent"),
        ("exact-eip3009", "\"value\":\"20000\"", "\"value\":\"0x4e20\"", false, "hex"),
        (
            "exact-eip3009",
            "\"value\":\"20000\"",
            "\"value\":\"340282366920938463463374607431768211455\"",
            true,
            "2^128-1",
        ),
        (
            "exact-eip3009",
            "\"value\":\"20000\"",
            "\"value\":\"340282366920938463463374607431768211456\"",
            false,
            "2^128",
        ),
        ("exact-eip3009", "\"validAfter\":\"0\"", "\"validAfter\":0", false, "a time as a number"),
        ("exact-eip3009", "\"validAfter\":\"0\"", "\"validAfter\":\"-1\"", false, "a time before all time"),
        ("exact-eip3009", "\"validAfter\":\"0\"", "\"validAfter\":\"18446744073709551615\"", true, "2^64-1"),
        ("exact-eip3009", "\"validAfter\":\"0\"", "\"validAfter\":\"18446744073709551616\"", false, "2^64"),
        ("exact-eip3009", "\"from\":\"0x", "\"from\":\"", false, "an address without 0x"),
        ("exact-eip3009", "\"from\":\"0x", "\"from\":\"0X", false, "0X"),
        ("exact-eip3009", "\"from\":\"0x7", "\"from\":\"0x", false, "39 digits"),
        ("exact-eip3009", "\"from\":\"0x7", "\"from\":\"0x77", false, "41 digits"),
        ("exact-eip3009", "\"from\":\"0x7", "\"from\":\"0xg", false, "a letter that is no digit"),
        ("exact-eip3009", "\"nonce\":\"0x5", "\"nonce\":\"0x", false, "a nonce of 63 digits"),
        ("exact-eip3009", "\"signature\":\"0x", "\"signature\":\"", false, "a signature without 0x"),
        ("exact-eip3009", "\"signature\":\"0x", "\"signature\":\"0xa", false, "half a byte"),
        ("exact-eip3009", "\"authorization\":", "\"permit2Authorization\":", false, "a method with another's members"),
        ("exact-eip3009", "\"authorization\":", "\"authorisation\":", false, "no method"),
        ("exact-eip3009", "\"scheme\":\"exact\"", "\"scheme\":\"upto\"", false, "a method that the scheme has not"),
        ("exact-eip3009", "\"scheme\":\"exact\"", "\"scheme\":\"batch-settlement\"", false, "a scheme we do not speak"),
        ("exact-eip3009", "eip155:8453", "base", false, "v1's name in v2"),
        ("exact-eip3009", "eip155:8453", "eip155:08453", false, "another spelling of a network"),
        ("exact-eip3009", "eip155:8453", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", false, "another family's network"),
        ("exact-eip3009", "\"amount\":\"20000\"", "\"amount\":\"20000.0\"", false, "a fraction of an atom"),
        ("exact-eip3009", "\"maxTimeoutSeconds\":300", "\"maxTimeoutSeconds\":300.5", false, "half a second"),
        ("exact-eip3009", "\"maxTimeoutSeconds\":300", "\"maxTimeoutSeconds\":-300", false, "no time"),
        ("exact-eip3009", "\"accepted\":", "\"accepts\":", false, "nothing accepted"),
        ("exact-permit2", "\"deadline\":\"", "\"deadline\":\"0", false, "a leading zero"),
        (
            "exact-permit2",
            "\"validAfter\":\"0\"",
            "\"facilitator\":7,\"validAfter\":\"0\"",
            false,
            "a facilitator that is a number",
        ),
        ("upto", "\"facilitator\":", "\"facilitators\":", false, "nobody named to settle"),
        ("upto", "\"scheme\":\"upto\"", "\"scheme\":\"exact\"", true, "what is signed is compared later"),
        ("exact-solana", "\"transaction\":\"", "\"transaction\":\"-", false, "not base64"),
        ("exact-solana", "\"transaction\":", "\"transactions\":", false, "no transaction"),
        ("exact-solana", "\"scheme\":\"exact\"", "\"scheme\":\"upto\"", false, "not offered on Solana"),
        ("exact-solana", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "eip155:8453", false, "another family's network"),
        ("v1-eip3009", "base-sepolia", "eip155:84532", false, "v2's name in v1"),
        ("v1-eip3009", "base-sepolia", "base-goerli", false, "a network without a name"),
        ("v1-eip3009", "\"scheme\":\"exact\"", "\"scheme\":\"upto\"", false, "a scheme that v1 has not"),
        ("v1-eip3009", "{", "{\"accepted\":{},", true, "a member that v1 has not"),
    ];
    for (name, old, new, want, why) in table {
        assert_eq!(with(name, old, new), *want, "{name}: {why}");
    }
}

#[test]
fn two_methods_in_one_payload_are_none() {
    let permit: Value = serde_json::from_str(&text("exact-permit2")).unwrap();
    let mut both: Value = serde_json::from_str(&text("exact-eip3009-sepolia")).unwrap();
    both["payload"]["permit2Authorization"] = permit["payload"]["permit2Authorization"].clone();
    assert!(payment(Version::V2, STANDARD.encode(both.to_string()).as_bytes()).is_none());
    both["payload"]["permit2Authorization"] = Value::Null;
    assert!(payment(Version::V2, STANDARD.encode(both.to_string()).as_bytes()).is_some(), "null is not there");
}

#[test]
fn a_nonce_is_one_number_however_it_is_written() {
    let max = format!("0x{}", "f".repeat(64));
    let most = U256::MAX.to_string();
    for (said, want, why) in [
        ("0", Some(U256::ZERO), "zero"),
        ("0x0", Some(U256::ZERO), "zero in hex"),
        ("255", Some(U256::from(255)), "decimal"),
        ("0xFf", Some(U256::from(255)), "hex in any case"),
        ("0x00ff", Some(U256::from(255)), "zeros before it"),
        (&most, Some(U256::MAX), "the largest"),
        (&max, Some(U256::MAX), "the largest in hex"),
        ("115792089237316195423570985008687907853269984665640564039457584007913129639936", None, "one more"),
        (&format!("{max}0"), None, "too long"),
        ("1_000", None, "an underscore"),
        ("-1", None, "a sign"),
        ("ff", None, "hex without 0x"),
        ("0x", None, "no digits"),
        ("", None, "nothing"),
        (" 1", None, "a space"),
    ] {
        assert_eq!(number(said), want, "{why}");
    }
}

#[test]
fn a_transaction_longer_than_the_network_takes_is_not_a_payment() {
    let network = Network::parse("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1").unwrap();
    assert_eq!(network, Golden::read("exact-solana").entry.network);
    for (length, want) in [(MAX_TRANSACTION, true), (MAX_TRANSACTION + 1, false)] {
        let payload = json!({"transaction": STANDARD.encode(vec![1; length])}).to_string();
        let payload = RawValue::from_string(payload).unwrap();
        assert_eq!(solana(Scheme::Exact, &payload).is_some(), want, "{length}");
    }
}

/// Writes hex digits of a text in another case, here and there.
fn recased(json: &str, bits: u64) -> String {
    let flip = |(at, c): (usize, char)| if bits >> (at % 61) & 1 == 1 { c.to_ascii_uppercase() } else { c };
    json.char_indices().map(flip).collect()
}

proptest! {
    #[test]
    fn no_header_makes_the_reader_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300), v1 in any::<bool>()) {
        let version = if v1 { Version::V1 } else { Version::V2 };
        prop_assert!(payment(version, &bytes).is_none());
        prop_assert!(payment(version, STANDARD.encode(&bytes).as_bytes()).is_none());
    }

    #[test]
    fn no_change_of_a_real_payment_makes_the_reader_fail(name in 0usize..8, place in any::<prop::sample::Index>(), with in any::<u8>()) {
        let name = crate::rail::x402::sample::GOLDENS[name];
        let mut json = text(name).into_bytes();
        let place = place.index(json.len());
        json[place] = with;
        let version = if name.starts_with("v1") { Version::V1 } else { Version::V2 };
        if let Some(payment) = payment(version, STANDARD.encode(&json).as_bytes()) {
            let _ = (payment.signed.key(&payment.network, ""), payment.signed.payer(), payment.signed.until());
        }
    }

    #[test]
    fn all_spellings_of_a_proof_are_one_claim(bits in any::<u64>(), spaces in "[ \n\t]{0,9}", padded in any::<bool>()) {
        for name in ["exact-eip3009", "exact-permit2", "upto", "v1-eip3009"] {
            let golden = Golden::read(name);
            let key = |p: &Payment| p.signed.key(&p.network, &golden.entry.asset);
            let original = golden.payment();
            // Only what stands behind 0x has another case; words are words.
            let json: String = text(name).split("\"0x").enumerate().map(|(i, part)| match part.split_once('"') {
                Some((hex, rest)) if i > 0 => format!("\"0x{}\"{rest}", recased(hex, bits)),
                _ => part.to_owned(),
            }).collect();
            let json = format!("{spaces}{json}{spaces}");
            let value = if padded { STANDARD.encode(json) } else { STANDARD_NO_PAD.encode(json) };
            let again = payment(original.version, value.as_bytes()).unwrap();
            prop_assert_eq!(key(&again), key(&original));
        }
    }
}

#[test]
fn a_proof_shown_in_both_generations_is_one_claim() {
    let one: Value = serde_json::from_str(&text("v1-eip3009")).unwrap();
    let mut two: Value = serde_json::from_str(&text("exact-eip3009-sepolia")).unwrap();
    two["payload"] = one["payload"].clone();
    let golden = Golden::read("v1-eip3009");
    let two = payment(Version::V2, STANDARD.encode(two.to_string()).as_bytes()).unwrap();
    let key = |p: &Payment| p.signed.key(&p.network, &golden.entry.asset);
    assert_eq!(key(&two), key(&golden.payment()));
}
