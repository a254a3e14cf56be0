//! Headers of MPP: finding credentials, writing challenges and receipts, and what a client says it can pay with.

use super::bind::Slots;
use crate::channel::ChannelId;
use crate::journal::Receipt;
use crate::rail::{Found, Offer, Shown};
use ::mpp::PaymentCredential;
use ::mpp::protocol::core::accept_payment::{HasMethodIntent, parse, rank};
use ::mpp::protocol::core::{base64url_decode, parse_advertised_credential_header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use std::fmt::Write as _;

/// Most bytes of credential headers in one request. A session's opening credential carries a whole signed transaction.
pub const MAX_HEADERS: usize = 64 * 1024;
/// Most bytes of a credential's JSON: what fits into [`MAX_HEADERS`] of base64url.
pub const MAX_JSON: usize = MAX_HEADERS / 4 * 3;
/// Deepest nesting of a credential's payload; real ones have three levels.
pub const MAX_DEPTH: usize = 16;
/// Longest `Accept-Payment` that is read; a longer one counts as malformed.
const MAX_ACCEPT: usize = 4 * 1024;
/// Longest description written into a challenge, in bytes.
const MAX_DESCRIPTION: usize = 200;

const AUTHORIZATION: HeaderName = http::header::AUTHORIZATION;
const PAYMENT_AUTHORIZATION: HeaderName = HeaderName::from_static("payment-authorization");
const PAYMENT_RECEIPT: HeaderName = HeaderName::from_static("payment-receipt");
const ACCEPT_PAYMENT: HeaderName = HeaderName::from_static("accept-payment");

/// Looks for MPP credentials: `Payment …` in any `Authorization` or `Payment-Authorization` line, alone or in a list with other
/// schemes. Two are [`Found::Many`] whatever they hold: which of them was meant is never guessed.
pub fn found(headers: &HeaderMap) -> Found {
    let lines = || [AUTHORIZATION, PAYMENT_AUTHORIZATION].into_iter().flat_map(|name| headers.get_all(name));
    let mut tokens = Vec::new();
    for line in lines() {
        match std::str::from_utf8(line.as_bytes()) {
            // A credential alone, which is how they come.
            Ok(text) if memchr::memchr2(b',', b'"', text.as_bytes()).is_none() => tokens.extend(payment(text.trim())),
            Ok(text) => tokens.extend(elements(text).filter_map(payment)),
            Err(_) if line.as_bytes().get(..7).is_some_and(|s| s.eq_ignore_ascii_case(b"payment")) => tokens.push(""),
            Err(_) => (),
        }
    }
    match tokens.as_slice() {
        [] => Found::Nothing,
        [_] if lines().map(|line| line.len()).sum::<usize>() > MAX_HEADERS => Found::Malformed,
        [token] => credential(token).map_or(Found::Malformed, |c| Found::One(Shown::Mpp(Box::new(c)))),
        several => Found::Many(several.len()),
    }
}

/// The elements of a comma-separated list; commas inside quoted-strings do not separate (RFC 9110 §5.6).
fn elements(line: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => (),
        }
        false
    })
    .map(str::trim)
}

/// What follows the scheme in an element of the `Payment` scheme. `payment = x` is a parameter of the scheme before it.
fn payment(element: &str) -> Option<&str> {
    let (scheme, rest) = element.split_at_checked(7)?;
    let rest_begins_a_word = rest.is_empty() || rest.starts_with([' ', '\t']);
    let rest = rest.trim();
    (scheme.eq_ignore_ascii_case("payment") && rest_begins_a_word && !rest.starts_with('=')).then_some(rest)
}

fn credential(token: &str) -> Option<PaymentCredential> {
    // The crate reads padding and the other alphabet too, a character at a time.
    let json = URL_SAFE_NO_PAD.decode(token).ok().or_else(|| base64url_decode(token).ok())?;
    if json.len() > MAX_JSON {
        return None;
    }
    // What the crate's own reader of headers looks at beyond this is how the echoed values are written. They are under our MAC, so
    // those of an offer of ours are written as we write them.
    let mut credential: PaymentCredential = serde_json::from_str(std::str::from_utf8(&json).ok()?).ok()?;
    // All else that is kept of it is flat: members that nobody knows are passed over. What lies deeper than serde goes, it has refused.
    if depth(&credential.payload) >= MAX_DEPTH {
        return None;
    }
    credential.challenge.header = parse_advertised_credential_header(credential.challenge.header.as_deref()).ok()?;
    Some(credential)
}

/// Levels of arrays and objects.
fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(members) => members.values().map(depth).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

/// One `WWW-Authenticate` line. The description is for people: it is cut at 200 bytes and made ASCII, because clients disagree
/// about anything else. `None` if a slot cannot stand in a header.
pub fn challenge(id: &str, slots: &Slots<'_>, description: &str) -> Option<(HeaderName, HeaderValue)> {
    let mut line = String::with_capacity(slots.request.len() + slots.opaque.len() + 512);
    line.push_str("Payment ");
    let mut say = |name: &str, value: &str| {
        if !value.is_empty() {
            let comma = if name == "id" { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(line, "{comma}{name}=\"");
            for c in value.chars() {
                if matches!(c, '"' | '\\') {
                    line.push('\\');
                }
                line.push(c);
            }
            line.push('"');
        }
    };
    say("id", id);
    say("realm", slots.realm);
    say("method", slots.method);
    say("intent", slots.intent);
    say("request", slots.request);
    say("expires", slots.expires);
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    say("description", &description.chars().take(MAX_DESCRIPTION).map(plain).collect::<String>());
    say("digest", slots.digest);
    say("header", slots.header.unwrap_or(""));
    say("opaque", slots.opaque);
    Some((http::header::WWW_AUTHENTICATE, HeaderValue::from_str(&line).ok().filter(|_| line.is_ascii())?))
}

/// The `Payment-Receipt` line: what the protocol asks for (`status`, `method`, `timestamp`, `reference`, `challengeId`), and ours:
/// `receiptId`, `asset`, `charged` in the asset's atoms, `chargedUsd`, and `actualUsd` when it is known. Amounts are text.
pub fn receipt(
    receipt: &Receipt,
    method: &str,
    asset: &str,
    challenge_id: Option<&str>,
) -> Option<(HeaderName, HeaderValue)> {
    let mut words = serde_json::json!({
        "status": "success",
        "method": method,
        "timestamp": receipt.at.rfc3339(),
        "reference": receipt.reference,
        "receiptId": receipt.id,
        "asset": asset,
        "charged": receipt.charged.to_string(),
        "chargedUsd": receipt.charged_usd.to_string(),
    });
    let object = words.as_object_mut()?;
    if let Some(id) = challenge_id {
        object.insert("challengeId".to_owned(), id.into());
    }
    if let Some(actual) = receipt.actual_usd {
        object.insert("actualUsd".to_owned(), actual.to_string().into());
    }
    let value = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&words).ok()?);
    Some((PAYMENT_RECEIPT, HeaderValue::from_str(&value).ok()?))
}

/// What a session credential says it does (`open`, `voucher`, `topUp`, `close`), not believed; `None` for any other credential.
pub fn action(credential: &PaymentCredential) -> Option<&str> {
    if credential.challenge.intent.as_str() != "session" {
        return None;
    }
    credential.payload.get("action")?.as_str()
}

/// The channel a session credential names, not believed, as records have it.
pub fn channel(credential: &PaymentCredential) -> Option<ChannelId> {
    action(credential)?;
    Some(ChannelId(credential.payload.get("channelId")?.as_str()?.to_ascii_lowercase()))
}

/// Whether `Accept-Payment` names this method and intent, and does not exclude it. Wildcards name nothing.
pub fn names(headers: &HeaderMap, method: &str, intent: &str) -> bool {
    let lines: Vec<&str> = headers.get_all(ACCEPT_PAYMENT).iter().filter_map(|v| v.to_str().ok()).collect();
    let said = lines.join(",");
    let zero = |q: &str| q.bytes().all(|b| matches!(b, b'0' | b'.'));
    said.len() <= MAX_ACCEPT
        && said.split(',').any(|element| {
            let mut parts = element.split(';').map(str::trim);
            let range = parts.next().and_then(|range| range.split_once('/'));
            let excluded = parts.filter_map(|p| p.strip_prefix("q=")).any(zero);
            !excluded && range.is_some_and(|(m, i)| m.eq_ignore_ascii_case(method) && i.eq_ignore_ascii_case(intent))
        })
}

struct Ranked<'a>(usize, &'a Offer);

impl HasMethodIntent for Ranked<'_> {
    fn method(&self) -> &str {
        &self.1.range.0
    }
    fn intent(&self) -> &str {
        &self.1.range.1
    }
}

/// The offers in the order the client prefers (`Accept-Payment`), without those it excludes; ours breaks ties. With no such
/// header, a malformed one, or none that matches: all of them, in our order, because a 402 always offers something.
pub fn ranked(headers: &HeaderMap, offers: Vec<Offer>) -> Vec<Offer> {
    let lines: Vec<&str> = headers.get_all(ACCEPT_PAYMENT).iter().filter_map(|v| v.to_str().ok()).collect();
    let said = lines.join(",");
    if said.is_empty() || said.len() > MAX_ACCEPT {
        return offers;
    }
    let Ok(preferences) = parse(&said) else { return offers };
    let numbered: Vec<Ranked<'_>> = offers.iter().enumerate().map(|(at, offer)| Ranked(at, offer)).collect();
    let order: Vec<usize> = rank(&numbered, &preferences).into_iter().map(|r| r.0).collect();
    if order.is_empty() {
        return offers;
    }
    let mut offers: Vec<Option<Offer>> = offers.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| offers.get_mut(at)?.take()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::clock::UnixSeconds;
    use crate::money::{Atoms, Usd};
    use proptest::prelude::*;

    fn token() -> String {
        let json = r#"{"challenge":{"id":"i","realm":"r","method":"tempo","intent":"charge","request":"e30"},"payload":{"type":"hash","hash":"0x00"}}"#;
        URL_SAFE_NO_PAD.encode(json)
    }

    fn look(lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        match found(&headers) {
            Found::Nothing => "nothing".to_owned(),
            Found::Malformed => "malformed".to_owned(),
            Found::One(_) => "one".to_owned(),
            Found::Many(n) => format!("{n}"),
        }
    }

    #[test]
    fn exactly_one_credential_is_found_wherever_it_stands() {
        let t = token();
        for (lines, want, why) in [
            (vec![], "nothing", "no header"),
            (vec![("authorization", "Bearer sk-x".to_owned())], "nothing", "an application's own key"),
            (vec![("authorization", format!("Payment {t}"))], "one", "alone"),
            (vec![("authorization", format!("pAYMENT  {t}=="))], "one", "scheme in any case, padded"),
            (vec![("payment-authorization", format!("Payment {t}"))], "one", "the other header"),
            (vec![("authorization", format!("Bearer sk, Payment {t}"))], "one", "in a list"),
            (vec![("authorization", format!("Payment {t}, Bearer sk"))], "one", "first in a list"),
            (
                vec![("authorization", "Bearer a".into()), ("authorization", format!("Payment {t}"))],
                "one",
                "second line",
            ),
            (
                vec![("authorization", "Bearer a".into()), ("payment-authorization", format!("Payment {t}"))],
                "one",
                "key and payment",
            ),
            (vec![("authorization", format!("Digest a=\"x, Payment {t}\""))], "nothing", "text inside quotes"),
            (
                vec![("authorization", format!("Digest a=\"\\\", Payment {t}\""))],
                "nothing",
                "escaped quote inside quotes",
            ),
            (vec![("authorization", "PaymentX abc".to_owned())], "nothing", "another scheme"),
            (vec![("authorization", "Digest a=b, payment = c".to_owned())], "nothing", "a parameter of that name"),
            (vec![("authorization", format!("Payment {t}, Payment {t}"))], "2", "twice in a list"),
            (
                vec![("authorization", format!("Payment {t}")), ("payment-authorization", format!("Payment {t}"))],
                "2",
                "twice",
            ),
            (
                vec![("authorization", format!("Payment {t}")), ("authorization", "Payment junk".into())],
                "2",
                "one of them junk",
            ),
            (vec![("authorization", "Payment".to_owned())], "malformed", "no token"),
            (vec![("authorization", "Payment !!!".to_owned())], "malformed", "not base64url"),
            (vec![("authorization", format!("Payment {t} {t}"))], "malformed", "two tokens"),
            (vec![("authorization", "Payment e30".to_owned())], "malformed", "not a credential"),
            (vec![("authorization", "Payment \u{e9}".to_owned())], "malformed", "not ASCII"),
            (vec![("authorization", format!("Payment {}", "A".repeat(MAX_HEADERS)))], "malformed", "oversized"),
            (
                vec![("authorization", "x".repeat(MAX_HEADERS)), ("payment-authorization", format!("Payment {t}"))],
                "malformed",
                "together oversized",
            ),
        ] {
            let lines: Vec<_> = lines.iter().map(|(n, v)| (*n, v.as_str())).collect();
            assert_eq!(look(&lines), want, "{why}");
        }
    }

    #[test]
    fn a_credential_nested_too_deep_is_malformed() {
        for (levels, want) in [(MAX_DEPTH - 2, "one"), (MAX_DEPTH + 1, "malformed")] {
            let json = format!(
                r#"{{"challenge":{{"id":"i","realm":"r","method":"tempo","intent":"charge","request":"e30"}},"payload":{{"a[":{}{}}}}}"#,
                "[".repeat(levels),
                "]".repeat(levels)
            );
            let line = format!("Payment {}", URL_SAFE_NO_PAD.encode(json));
            assert_eq!(look(&[("authorization", &line)]), want, "{levels}");
        }
    }

    #[test]
    fn a_challenge_is_read_back_by_the_crate_as_it_was_written() {
        let slots = Slots {
            realm: "llm.test",
            method: "tempo",
            intent: "charge",
            request: "e30",
            expires: "2026-01-01T00:00:00Z",
            digest: "sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE",
            header: None,
            opaque: "e30",
        };
        let (name, value) = challenge("theid", &slots, "A \"chat\" \\ for 2 \u{20ac}\r\nSet-Cookie: x").unwrap();
        assert_eq!(name, "www-authenticate");
        let read = ::mpp::PaymentChallenge::from_header(value.to_str().unwrap()).unwrap();
        assert_eq!(Slots::of(&read.to_echo()), slots);
        assert_eq!(read.id, "theid");
        assert_eq!(read.description.as_deref(), Some("A \"chat\" \\ for 2 ???Set-Cookie: x"));
    }

    #[test]
    fn a_receipt_is_read_by_the_crate_and_keeps_our_words() {
        let record = Receipt {
            id: "rcpt_1".into(),
            request: "req_1".into(),
            at: UnixSeconds(1_795_221_719),
            route: "/v1/chat/completions".into(),
            tier: "standard".into(),
            model: "m".into(),
            pool: "p".into(),
            server: None,
            rail: "tempo/charge".into(),
            generation: "g".into(),
            charged: Atoms(20_000),
            decimals: 6,
            charged_usd: Usd::parse("0.02").unwrap(),
            actual_usd: Some(Usd::parse("0.0113").unwrap()),
            usage: None,
            usage_source: None,
            reference: "0xabc".into(),
            transaction: None,
            settlement: None,
            payer: None,
            attempts: 1,
            complete: true,
        };
        let (_, value) = receipt(&record, "tempo", "0x20C0", Some("theid")).unwrap();
        let read = ::mpp::Receipt::from_header(value.to_str().unwrap()).unwrap();
        assert!(read.is_success());
        assert_eq!((read.method.as_str(), read.reference.as_str()), ("tempo", "0xabc"));
        for (name, want) in [
            ("charged", "20000"),
            ("chargedUsd", "0.02"),
            ("actualUsd", "0.0113"),
            ("asset", "0x20C0"),
            ("receiptId", "rcpt_1"),
            ("challengeId", "theid"),
        ] {
            assert_eq!(read.extensions[name], want, "{name}");
        }
        let unknown = Receipt { actual_usd: None, ..record };
        let (_, value) = receipt(&unknown, "tempo", "0x20C0", None).unwrap();
        let read = ::mpp::Receipt::from_header(value.to_str().unwrap()).unwrap();
        assert!(!read.extensions.contains_key("actualUsd"), "what is not known is not said");
    }

    #[test]
    fn offers_follow_the_clients_preference_and_never_run_out() {
        let offers = || -> Vec<Offer> {
            [("tempo", "charge"), ("tempo", "session"), ("stripe", "charge")]
                .into_iter()
                .map(|(method, intent)| Offer {
                    rail: format!("{method}/{intent}").into(),
                    range: (method.into(), intent.into()),
                    headers: vec![],
                    challenge_id: None,
                    entry: None,
                })
                .collect()
        };
        let all = "tempo/charge tempo/session stripe/charge";
        for (said, want, why) in [
            (vec![], all, "says nothing"),
            (vec!["tempo/session, tempo/charge;q=0.5"], "tempo/session tempo/charge", "ranked, rest left out"),
            (vec!["*/charge"], "tempo/charge stripe/charge", "wildcard, our order on ties"),
            (vec!["*/*, tempo/charge;q=0"], "tempo/session stripe/charge", "excluded"),
            (vec!["stripe/charge", "tempo/*;q=0.1"], "stripe/charge tempo/charge tempo/session", "two lines"),
            (vec!["x402/exact"], all, "no match"),
            (vec!["tempo/charge;q=0"], all, "everything excluded"),
            (vec!["tempo"], all, "malformed"),
            (vec!["tempo/charge;q=nan"], all, "malformed q"),
            (vec![""], all, "empty"),
        ] {
            let mut headers = HeaderMap::new();
            for line in said {
                headers.append("accept-payment", HeaderValue::from_static(line));
            }
            let order: Vec<String> = ranked(&headers, offers()).iter().map(|o| o.rail.to_string()).collect();
            assert_eq!(order.join(" "), want, "{why}");
        }
        let mut headers = HeaderMap::new();
        let long = vec!["tempo/session"; 400].join(",");
        headers.insert("accept-payment", HeaderValue::from_str(&long).unwrap());
        assert_eq!(ranked(&headers, offers()).len(), 3, "oversized");
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_fail(bytes in proptest::collection::vec(0x20u8..=0xff, 0..200), prefix in any::<bool>()) {
            let mut line = if prefix { b"Payment ".to_vec() } else { vec![] };
            line.extend(bytes.into_iter().filter(|b| *b != 0x7f));
            let mut headers = HeaderMap::new();
            headers.insert("authorization", HeaderValue::from_bytes(&line).unwrap());
            prop_assert!(!matches!(found(&headers), Found::One(_)));
        }
    }
}
