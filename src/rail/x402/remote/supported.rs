//! What a facilitator says it takes (`/supported`), read with patience for what we do not know and none for what we need.

use super::super::facilitator::{Kind, Support};
use super::super::wire::{Scheme, Version};
use super::answers::{is_account, is_named};
use crate::network::{Family, Network};
use serde::Deserialize;
use serde_json::Value;

/// More kinds than any facilitator has.
const MAX_KINDS: usize = 1_000;

/// Every kind that it lists and we know, each with what goes with it, or with a sentence why it is of no use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::rail::x402) struct Book(Vec<(Kind, Result<Support, String>)>);

#[derive(Deserialize)]
struct Said {
    kinds: Vec<Value>,
    #[serde(default)]
    extensions: Option<Vec<Value>>,
    #[serde(default)]
    signers: Option<Value>,
}

impl Book {
    /// Reads an answer. `before` is what the same facilitator said last: of several addresses that it signs with it may name
    /// another one each time, and an offer names one.
    pub(in crate::rail::x402) fn read(body: &[u8], before: Option<&Self>) -> Option<Self> {
        let said: Said = serde_json::from_slice(body).ok()?;
        let approval = said.extensions.iter().flatten().any(|e| e == "eip2612GasSponsoring");
        let mut kinds: Vec<(Kind, Result<Support, String>)> = Vec::new();
        for listed in said.kinds.iter().take(MAX_KINDS) {
            let Some(kind) = kind(listed) else { continue };
            if kinds.iter().any(|(known, _)| *known == kind) {
                continue;
            }
            let old = before.and_then(|b| b.support(&kind).ok());
            let support =
                support(&kind, &listed["extra"], signers(said.signers.as_ref(), &kind.network), approval, old);
            kinds.push((kind, support));
        }
        Some(Self(kinds))
    }

    /// What goes with a kind, or a sentence why there is nothing.
    pub(in crate::rail::x402) fn support(&self, kind: &Kind) -> Result<Support, String> {
        let found = self.0.iter().find(|(known, _)| known == kind).map(|(_, support)| support.clone());
        found.unwrap_or_else(|| {
            let (version, scheme) = (u8::from(kind.version), kind.scheme);
            Err(format!("the facilitator does not list x402 v{version} {scheme:?} on {}", kind.network))
        })
    }
}

fn kind(listed: &Value) -> Option<Kind> {
    let version = Version::try_from(u8::try_from(listed["x402Version"].as_u64()?).ok()?).ok()?;
    let scheme = Scheme::deserialize(&listed["scheme"]).ok()?;
    let name = listed["network"].as_str()?;
    let network = match version {
        Version::V1 => Network::from_v1(name),
        Version::V2 => Network::parse(name),
    }?;
    Some(Kind { version, scheme, network })
}

/// Keyed by the network itself, or by its whole family.
fn signers(said: Option<&Value>, network: &Network) -> Vec<String> {
    let family = network.id.split_once(':').map_or("", |(family, _)| family);
    let ours = |key: &str| is_named(network, key) || key.strip_suffix(":*") == Some(family);
    let listed = said.and_then(Value::as_object).into_iter().flatten().filter(|(key, _)| ours(key));
    let mut found: Vec<String> = Vec::new();
    for address in listed.filter_map(|(_, list)| list.as_array()).flatten().filter_map(Value::as_str).take(MAX_KINDS) {
        if is_account(network, address) && !holds(&found, address) {
            found.push(address.to_owned());
        }
    }
    found
}

fn holds(list: &[String], address: &str) -> bool {
    list.iter().any(|known| known.eq_ignore_ascii_case(address))
}

fn support(
    kind: &Kind,
    extra: &Value,
    mut signers: Vec<String>,
    sponsors_approval: bool,
    before: Option<Support>,
) -> Result<Support, String> {
    let named = |key: &str| extra[key].as_str().filter(|a| is_account(&kind.network, a)).map(str::to_owned);
    let before = before.unwrap_or_default();
    let mut support = Support { sponsors_approval, ..Support::default() };
    let mut stays = |old: Option<String>, now: String| {
        let named = old.filter(|old| holds(&signers, old)).unwrap_or_else(|| now.clone());
        if !holds(&signers, &now) {
            signers.push(now);
        }
        Some(named)
    };
    if kind.scheme == Scheme::Upto {
        let now = named("facilitatorAddress")
            .ok_or_else(|| format!("the facilitator lists upto on {} without its own address", kind.network))?;
        support.facilitator_address = stays(before.facilitator_address, now);
    }
    if kind.network.family == Family::Solana {
        let now = named("feePayer")
            .ok_or_else(|| format!("the facilitator lists {} without the account that pays the fee", kind.network))?;
        support.fee_payer = stays(before.fee_payer, now);
    }
    support.signers = signers;
    Ok(support)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use serde_json::json;

    const A: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
    const B: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
    const SOLANA: &str = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1";
    const PAYER: &str = "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU";

    fn of(version: Version, scheme: Scheme, network: &str) -> Kind {
        Kind { version, scheme, network: Network::parse(network).unwrap() }
    }

    fn read(value: &Value, before: Option<&Book>) -> Book {
        Book::read(value.to_string().as_bytes(), before).unwrap()
    }

    fn upto(now: &str, signers: &[&str]) -> Value {
        json!({"kinds": [{"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": now}}],
               "signers": {"eip155:*": signers}})
    }

    #[test]
    fn nulls_and_unknown_members_are_tolerated_and_nothing_is_taken_for_granted() {
        let book = read(
            &json!({"kinds": [
                {"x402Version": 2, "scheme": "exact", "network": "eip155:84532", "extra": null, "new": 1},
                {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"},
                {"x402Version": 2, "scheme": "exact", "network": SOLANA, "extra": {"feePayer": PAYER}},
                {"x402Version": 2, "scheme": "upto", "network": "eip155:8453"},
                {"x402Version": 2, "scheme": "upto", "network": "eip155:137", "extra": {"facilitatorAddress": "0x1"}},
                {"x402Version": 1, "scheme": "exact", "network": "solana-devnet", "extra": {"feePayer": 7}},
                {"x402Version": 3, "scheme": "exact", "network": "eip155:84532"},
                {"x402Version": 2, "scheme": "batch-settlement", "network": "eip155:84532"},
                {"x402Version": 2, "scheme": "exact", "network": "stellar:pubnet"},
                null, 7, "exact",
            ], "extensions": ["bazaar", null, "eip2612GasSponsoring"],
               "signers": {"eip155:84532": [A, "0x12", null], "eip155:*": [A.to_lowercase(), B], "solana:*": [PAYER], "x": null}, "y": {}}),
            None,
        );
        for (version, scheme, network, want, why) in [
            (Version::V2, Scheme::Exact, "eip155:84532", true, "listed"),
            (Version::V1, Scheme::Exact, "eip155:84532", true, "listed by its v1 name"),
            (Version::V2, Scheme::Exact, SOLANA, true, "with a fee payer"),
            (Version::V1, Scheme::Exact, SOLANA, false, "its fee payer is no account"),
            (Version::V2, Scheme::Upto, "eip155:8453", false, "upto without an address"),
            (Version::V2, Scheme::Upto, "eip155:137", false, "upto with half an address"),
            (Version::V2, Scheme::Upto, "eip155:84532", false, "not listed"),
            (Version::V1, Scheme::Exact, "eip155:8453", false, "another version is listed"),
        ] {
            assert_eq!(book.support(&of(version, scheme, network)).is_ok(), want, "{why}");
        }
        let support = book.support(&of(Version::V2, Scheme::Exact, "eip155:84532")).unwrap();
        assert_eq!(support.signers, [A, B], "one address is listed once, whatever its capitals");
        assert!(support.sponsors_approval && support.fee_payer.is_none());
        assert_eq!(book.support(&of(Version::V2, Scheme::Exact, SOLANA)).unwrap().fee_payer.as_deref(), Some(PAYER));
    }

    #[test]
    fn an_answer_without_a_list_of_kinds_is_none() {
        for body in
            ["", "[]", "{}", "null", "<html>", r#"{"kinds":null}"#, r#"{"kinds":{}}"#, r#"{"kinds":[],"kinds":[]}"#]
        {
            assert_eq!(Book::read(body.as_bytes(), None), None, "{body}");
        }
        assert_eq!(Book::read(br#"{"kinds":[],"extensions":null,"signers":null}"#, None), Some(Book::default()));
    }

    #[test]
    fn the_address_that_payers_name_stays_as_long_as_the_facilitator_signs_with_it() {
        let kind = of(Version::V2, Scheme::Upto, "eip155:84532");
        let address = |book: &Book| book.support(&kind).unwrap().facilitator_address.unwrap();
        let first = read(&upto(A, &[A, B]), None);
        assert_eq!(address(&first), A);
        let second = read(&upto(B, &[&A.to_lowercase(), B]), Some(&first));
        assert_eq!(address(&second), A, "it names another of its own at random");
        let third = read(&upto(B, &[B]), Some(&second));
        assert_eq!(address(&third), B, "the first one is gone");
        let solana = of(Version::V2, Scheme::Exact, SOLANA);
        let paying = |now: &str, signers: &[&str]| {
            json!({"kinds": [{"x402Version": 2, "scheme": "exact", "network": SOLANA, "extra": {"feePayer": now}}],
                   "signers": {"solana:*": signers}})
        };
        let other = "J2xccRtuG43drESLYznHhLhQkLTdfepcKYbiQ9BsJVaf";
        let first = read(&paying(PAYER, &[PAYER, other]), None);
        let second = read(&paying(other, &[PAYER, other]), Some(&first));
        assert_eq!(second.support(&solana).unwrap().fee_payer.as_deref(), Some(PAYER), "and so who pays the fee");
        let third = read(&paying(other, &[other]), Some(&second));
        assert_eq!(third.support(&solana).unwrap().fee_payer.as_deref(), Some(other), "which is gone");
        let unlisted = read(&upto(A, &[]), Some(&third));
        assert_eq!(address(&unlisted), A, "without a list, what it names now is all there is");
        assert_eq!(unlisted.support(&kind).unwrap().signers, [A], "and is one of its signers");
    }
}
