//! What is written for clients and facilitators, and what counts as an answer to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::rail::x402::sample::{Golden, accepted, entry};
use serde_json::json;

const RESOURCE: Resource<'_> = Resource {
    url: "https://llm.example.com/v1/chat/completions",
    description: "one chat completion",
    mime_type: "application/json",
};

fn read(header: Option<(HeaderName, HeaderValue)>) -> (String, Value) {
    let (name, value) = header.unwrap();
    let json = STANDARD.decode(value.as_bytes()).unwrap();
    assert!(json.is_ascii(), "clients read these bytes as UTF-8 or as Latin-1");
    (name.to_string(), serde_json::from_slice(&json).unwrap())
}

fn networks(value: &Value) -> Vec<String> {
    value["accepts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| format!("{} {}", e["network"].as_str().unwrap(), e["scheme"]))
        .collect()
}

#[test]
fn an_offer_is_written_as_both_generations_read_it() {
    let offer = entry("eip155:84532", Scheme::Exact);
    let words = offer.extra["offer"].clone();
    let (name, value) = read(required(&[&offer], &RESOURCE, "Payment required"));
    assert_eq!(name, "payment-required");
    let want = json!({
        "x402Version": 2,
        "error": "Payment required",
        "resource": {"url": RESOURCE.url, "description": "one chat completion", "mimeType": "application/json"},
        "accepts": [{
            "scheme": "exact", "network": "eip155:84532", "amount": "20000",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
            "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "offer": words},
        }],
    });
    assert_eq!(value, want);
    let v1 = json!({"x402Version": 1, "accepts": [{
        "scheme": "exact", "network": "base-sepolia", "maxAmountRequired": "20000",
        "resource": RESOURCE.url, "description": "one chat completion", "mimeType": "application/json",
        "payTo": "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "maxTimeoutSeconds": 300,
        "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "extra": {"name": "USDC", "version": "2"},
    }]});
    let members: Map<String, Value> =
        v1_members(&[&offer], &RESOURCE).unwrap().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    assert_eq!(Value::from(members), v1);
}

#[test]
fn the_first_generation_is_offered_only_what_its_clients_can_read() {
    let all = [
        entry("eip155:8453", Scheme::Upto),
        entry("eip155:42161", Scheme::Exact),
        entry("eip155:8453", Scheme::Exact),
        entry("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", Scheme::Exact),
    ];
    let offers: Vec<&Entry> = all.iter().collect();
    let members = v1_members(&offers, &RESOURCE).unwrap();
    let names: Vec<&Value> = members[1].1.as_array().unwrap().iter().map(|e| &e["network"]).collect();
    assert_eq!(names, ["base", "solana"]);
    assert_eq!(v1_members(&offers[..2], &RESOURCE), None, "an empty list makes them throw");
    let slip = Entry { v1: true, ..entry("eip155:42161", Scheme::Exact) };
    assert_eq!(v1_members(&[&slip], &RESOURCE), None, "so does a name that they do not know");
}

#[test]
fn four_networks_in_both_schemes_fit_and_what_does_not_is_left_out_from_the_end() {
    let mut offers = Vec::new();
    for network in ["eip155:8453", "eip155:137", "eip155:42161", "eip155:421614"] {
        offers.push(entry(network, Scheme::Exact));
        offers.push(entry(network, Scheme::Upto));
    }
    let resource = Resource { description: &"A model. ".repeat(40), ..RESOURCE };
    let write = |offers: &[Entry]| required(&offers.iter().collect::<Vec<_>>(), &resource, "Payment required");
    let (_, value) = read(write(&offers));
    assert_eq!(networks(&value).len(), 8, "all of them");
    let all = offers.len();
    while offers.len() < 40 {
        offers.push(entry("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", Scheme::Exact));
    }
    let header = write(&offers);
    let length = header.as_ref().unwrap().1.len();
    assert!((MAX_REQUIRED - 600..=MAX_REQUIRED).contains(&length), "as many as fit: {length}");
    let (_, value) = read(header);
    let kept = networks(&value);
    assert!(kept.len() >= all && kept.len() < 40);
    let names: Vec<String> = offers
        .iter()
        .map(|o| format!("{} \"{}\"", o.network, if o.scheme == Scheme::Exact { "exact" } else { "upto" }))
        .collect();
    assert_eq!(kept, names[..kept.len()], "in our order");

    let longest = (0..600).map(|filler| {
        let url = format!("{}{}", resource.url, "x".repeat(filler));
        let offers: Vec<&Entry> = offers.iter().collect();
        required(&offers, &Resource { url: &url, ..resource }, "Payment required").unwrap().1.len()
    });
    assert_eq!(longest.max(), Some(MAX_REQUIRED / 4 * 4), "to the last byte and no further");

    let mut large = entry("eip155:8453", Scheme::Exact);
    large.extra.insert("memo".into(), "x".repeat(MAX_REQUIRED).into());
    let (_, value) = read(write(&[large, offers[0].clone()]));
    assert_eq!(networks(&value).len(), 1, "a 402 always offers something");
    assert_eq!(write(&[]), None, "and is none without an offer");
}

#[test]
fn an_approval_is_advertised_once_and_only_with_an_offer_that_needs_it() {
    let (exact, upto) = (entry("eip155:8453", Scheme::Exact), entry("eip155:8453", Scheme::Upto));
    let (_, value) = read(required(&[&upto, &exact, &upto], &RESOURCE, ""));
    let want = json!({"eip2612GasSponsoring": {
        "info": {"description": "The facilitator accepts EIP-2612 gasless Permit to `Permit2` canonical contract.", "version": "1"},
        "schema": {"type": "object"},
    }});
    assert_eq!(value["extensions"], want);
    let (_, value) = read(required(&[&exact], &RESOURCE, ""));
    assert_eq!(value.get("extensions"), None);
}

#[test]
fn text_of_people_cannot_break_a_header() {
    let mut offer = entry("eip155:8453", Scheme::Exact);
    offer.extra.insert("name".into(), "USD\u{20ae}0 \u{1f600}".into());
    let resource = Resource { description: "a \"chat\"\r\nX: y \u{20ac}", ..RESOURCE };
    let (_, value) = read(required(&[&offer], &resource, &"n\u{f6}".repeat(300)));
    assert_eq!(
        value["accepts"][0]["extra"]["name"], "USD\u{20ae}0 \u{1f600}",
        "a domain's name is signed: it stays as it is"
    );
    assert_eq!(value["resource"]["description"], "a \"chat\"??X: y ?");
    assert_eq!(value["error"].as_str().unwrap().len(), 200);
}

#[test]
fn a_facilitator_gets_what_the_client_accepted() {
    for name in ["exact-eip3009", "exact-permit2", "upto", "exact-solana"] {
        let golden = Golden::read(name);
        let payment = golden.payment();
        let raw: Value = serde_json::from_str(payment.raw.get()).unwrap();
        let ours = requirements(&golden.entry, Version::V2, &RESOURCE).unwrap();
        assert_eq!(serde_json::from_str::<Value>(ours.get()).unwrap(), raw["accepted"], "{name}");
    }
    let offer = entry("eip155:8453", Scheme::Exact);
    let first = requirements(&offer, Version::V1, &RESOURCE).unwrap();
    let members = v1_members(&[&offer], &RESOURCE).unwrap();
    assert_eq!(serde_json::from_str::<Value>(first.get()).unwrap(), members[1].1[0]);
    assert!(requirements(&entry("eip155:42161", Scheme::Exact), Version::V1, &RESOURCE).is_none(), "no name, no v1");
    let used = Entry { amount: Atoms(7), ..entry("eip155:8453", Scheme::Upto) };
    let upto = requirements(&used, Version::V2, &RESOURCE).unwrap();
    assert!(upto.get().contains(r#""amount":"7""#), "{upto}");
}

#[test]
fn a_receipt_has_what_clients_insist_on() {
    let network = Network::parse("eip155:84532").unwrap();
    let paid = Settled {
        success: true,
        transaction: "0xabc",
        network: &network,
        payer: Some("0xdef"),
        amount: Some(Atoms(7)),
        error_reason: None,
    };
    let (name, value) = read(settled(Version::V2, &paid));
    assert_eq!(name, "payment-response");
    let want =
        json!({"success": true, "transaction": "0xabc", "network": "eip155:84532", "payer": "0xdef", "amount": "7"});
    assert_eq!(value, want);
    let (name, value) = read(settled(Version::V1, &paid));
    assert_eq!(name, "x-payment-response");
    assert_eq!(value, json!({"success": true, "transaction": "0xabc", "network": "base-sepolia", "payer": "0xdef"}));
    let reason = format!("reverted\n{}", "\u{e9}".repeat(2_000));
    let failed =
        Settled { success: false, transaction: "", payer: None, amount: None, error_reason: Some(&reason), ..paid };
    let (_, value) = read(settled(Version::V2, &failed));
    let want = format!("reverted?{}", "?".repeat(91));
    assert_eq!(value, json!({"success": false, "transaction": "", "network": "eip155:84532", "errorReason": want}));
}

type Change = fn(&mut Payment, &mut Entry);

#[test]
fn a_payment_answers_an_offer_when_it_repeats_all_of_it() {
    let table: &[(&str, Change, Result<(), &str>, &str)] = &[
        ("upto", |_, _| (), Ok(()), "as offered"),
        ("upto", |p, _| p.scheme = Scheme::Exact, Err("scheme"), "another scheme"),
        ("upto", |p, _| p.network = Network::parse("eip155:8453").unwrap(), Err("network"), "another network"),
        ("upto", |_, e| e.amount.0 += 1, Err("amount"), "one atom less"),
        ("upto", |_, e| e.amount.0 -= 1, Err("amount"), "one atom more"),
        ("upto", |p, _| said(p).asset = said(p).pay_to.clone(), Err("asset"), "another token"),
        ("upto", |p, _| said(p).pay_to = said(p).asset.clone(), Err("payTo"), "another payee"),
        ("upto", |p, _| said(p).max_timeout_seconds += 1, Err("maxTimeoutSeconds"), "another time"),
        ("upto", |p, _| said(p).asset.make_ascii_lowercase(), Ok(()), "capitals mean nothing"),
        (
            "upto",
            |p, _| said(p).pay_to = said(p).pay_to.to_ascii_uppercase().replace("0X", "0x"),
            Ok(()),
            "none at all",
        ),
        ("exact-solana", |p, _| said(p).asset.make_ascii_lowercase(), Err("asset"), "they do on Solana"),
        ("exact-solana", |p, _| said(p).pay_to.make_ascii_lowercase(), Err("payTo"), "they do on Solana"),
        ("upto", |p, _| drop(said(p).extra.remove("name")), Err("extra"), "a member left out"),
        ("upto", |p, _| drop(said(p).extra.insert("version".into(), 2.into())), Err("extra"), "a number for a text"),
        ("upto", |p, _| drop(said(p).extra.insert("mine".into(), true.into())), Ok(()), "a member of the client's own"),
        (
            "upto",
            |p, _| drop(said(p).extra.insert("offer".into(), "x".into())),
            Ok(()),
            "the MAC says whose words they are",
        ),
        (
            "upto",
            |_, e| drop(e.extra.insert("facilitatorAddress".into(), "0x00".into())),
            Ok(()),
            "who settles may change",
        ),
        (
            "exact-solana",
            |_, e| drop(e.extra.insert("feePayer".into(), "x".into())),
            Ok(()),
            "who pays fees may change",
        ),
        ("exact-solana-memo", |_, e| drop(e.extra.insert("memo".into(), "x".into())), Err("extra"), "another memo"),
        (
            "upto",
            |p, e| {
                e.extra.insert("deep".into(), json!({"a": {"b": 1}}));
                said(p).extra.insert("deep".into(), json!({"a": {"b": 1, "c": 2}, "d": 3}));
            },
            Ok(()),
            "added to at any depth",
        ),
        (
            "upto",
            |p, e| {
                e.extra.insert("deep".into(), json!({"a": {"b": 1}}));
                said(p).extra.insert("deep".into(), json!({"a": {"c": 1}}));
            },
            Err("extra"),
            "left out at some depth",
        ),
        (
            "upto",
            |p, e| {
                e.extra.insert("list".into(), json!([1]));
                said(p).extra.insert("list".into(), json!([1, 2]));
            },
            Err("extra"),
            "a list is one value",
        ),
        ("upto", |p, _| p.accepted = None, Err("which offer"), "v2 has to say it"),
        ("v1-eip3009", |_, _| (), Ok(()), "v1 cannot"),
        ("v1-eip3009", |_, e| e.v1 = false, Err("v1"), "and may take only what it was offered"),
        ("v1-eip3009", |_, e| e.scheme = Scheme::Upto, Err("scheme"), "another scheme"),
        ("v1-eip3009", |_, e| e.network = Network::parse("eip155:8453").unwrap(), Err("network"), "another network"),
    ];
    for (name, change, want, why) in table {
        let golden = Golden::read(name);
        let (mut payment, mut entry) = (golden.payment(), golden.entry);
        change(&mut payment, &mut entry);
        match (matches(&payment, &entry), want) {
            (Ok(()), Ok(())) => (),
            (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {why}: {got}"),
            (got, want) => panic!("{name}: {why}: {got:?}, not {want:?}"),
        }
    }
}

fn said(payment: &mut Payment) -> &mut Accepted {
    payment.accepted.as_mut().unwrap()
}

#[test]
fn an_entry_repeated_keeps_what_is_ours() {
    let ours = entry("eip155:8453", Scheme::Upto);
    let mut theirs = accepted(&ours);
    theirs.amount = Atoms(1);
    theirs.pay_to = "0x00".into();
    for (name, value) in [("offer", "their words"), ("facilitatorAddress", "0x01"), ("feePayer", "x"), ("name", "y")] {
        theirs.extra.insert(name.into(), value.into());
    }
    let mut want = ours.clone();
    want.extra.insert("offer".into(), "their words".into());
    want.extra.insert("facilitatorAddress".into(), "0x01".into());
    assert_eq!(ours.repeated(&theirs), want);
    let mut bare = ours.clone();
    bare.extra.remove("offer");
    assert_eq!(bare.repeated(&theirs).extra["offer"], "their words", "an entry made anew has no words yet");
}
