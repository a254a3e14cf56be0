//! What `tempo/session` promises, without a chain: the recorded exchanges of published wallets, replayed. Every node here counts
//! what it is asked, and nothing here asks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::charge::Settings as ChargeSettings;
use super::super::collect::Pace;
use super::*;
use crate::chain::fees::{Fees, Trial, Tried};
use crate::chain::reserve::{GasPrice, Mined};
use crate::chain::{B256, Chain, Head, Inclusion, Sent};
use crate::channel::View;
use crate::metrics::Metrics;
use crate::money::Usd;
use crate::rail::mpp::sponsor::{Hand, LOOK_EVERY, Terms};
use crate::rail::{Found, found};
use crate::secret::Secret;
use crate::store::embedded::Embedded;
use ::mpp::{PaymentChallenge, PaymentCredential};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use http::HeaderMap;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempo_alloy::primitives::transaction::{Call, KeychainSignature, PrimitiveSignature};

const CHAIN: u64 = 42431;
const TOKEN: &str = "0x20c0000000000000000000000000000000000000";
/// The recorded payee, which is also who settles here: then there is no operator, as in the records.
const PAYEE: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const PAYEES_KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
/// What the recording server signed its challenges with.
const SECRET: &str = "test-secret-key-0123456789abcdef0123456789";
/// Recorded with wallets that speak `sessionProtocol: "v2"`; whether their fees were carried, and what they were
/// advised to lock.
const RECORDED: [(&str, bool, u128); 6] = [
    ("session-sse-first", false, 300),
    ("session-sse-topup", false, 300),
    ("session-sse-head-vouchers", false, 10_000),
    ("session-sse-client-cap-reached", false, 300),
    ("session-sse-sponsored", true, 300),
    ("cli-session-json-then-sse", false, 10_000),
];

/// A node that only counts.
#[derive(Default)]
struct Asked(AtomicUsize);

impl Asked {
    fn once<T>(&self) -> Result<T, Unreachable> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(Unreachable { why: "gone" })
    }
}

#[async_trait]
impl Chain for Asked {
    async fn head(&self) -> Result<Head, Unreachable> {
        self.once()
    }
    async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
        Ok(UnixSeconds(0))
    }
    async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
        self.once()
    }
    async fn rehearse(&self, _: Address, _: &TempoTransaction) -> Result<Tried, Unreachable> {
        Ok(Tried::Passes)
    }
    async fn send(&self, _: &[u8]) -> Sent {
        self.once::<()>().map_or_else(|e| Sent::Lost { why: e.why }, |()| Sent::Accepted)
    }
}

#[async_trait]
impl Reserve for Asked {
    async fn states(&self, _: &[B256]) -> Result<Vec<View>, Unreachable> {
        self.once()
    }
    async fn close_requests(&self, _: Address, _: u64, _: u64) -> Result<Vec<B256>, Unreachable> {
        self.once()
    }
    async fn mined(&self, _: B256) -> Result<Option<Mined>, Unreachable> {
        self.once()
    }
    async fn gas_price(&self) -> Result<GasPrice, Unreachable> {
        self.once()
    }
    async fn gas(&self, _: Address, _: &[u8]) -> Result<Option<u64>, Unreachable> {
        self.once()
    }
    async fn in_turn(&self, _: Address, _: &[Call]) -> Result<Option<bool>, Unreachable> {
        self.once()
    }
    async fn key_until(&self, _: Address, _: Address) -> Result<UnixSeconds, Unreachable> {
        self.once()
    }
}

/// A sponsor's account with money in it.
struct Funded;

#[async_trait]
impl Fees for Funded {
    async fn trial(&self, _: &Trial) -> Result<Tried, Unreachable> {
        Ok(Tried::Passes)
    }
    async fn fee(&self, _: B256) -> Result<Option<Usd>, Unreachable> {
        Ok(None)
    }
    async fn balance(&self, _: Address, _: Address) -> Result<u128, Unreachable> {
        Ok(1_000_000_000)
    }
}

struct Bench {
    rail: TempoSession,
    ring: Arc<KeyRing>,
    asked: Arc<Asked>,
    _dir: tempfile::TempDir,
}

async fn bench(sponsored: bool) -> Bench {
    let ring = Arc::new(KeyRing::new(&[Secret::new(SECRET)]).unwrap());
    let asked = Arc::new(Asked::default());
    let dir = tempfile::tempdir().unwrap();
    let charge = ChargeSettings {
        id: "tempo/charge".into(),
        realm: "llm.test".into(),
        chain_id: CHAIN,
        currency: TOKEN.parse().unwrap(),
        recipient: PAYEE.parse().unwrap(),
        accept_push: false,
        pace: Pace::default(),
    };
    let settings = Settings {
        id: "tempo/session".into(),
        realm: charge.realm.clone(),
        chain_id: CHAIN,
        currency: charge.currency,
        recipient: charge.recipient,
        min_voucher_delta: Atoms(0),
    };
    let terms = Terms {
        section: "tempo".into(),
        chain_id: CHAIN,
        currency: charge.currency,
        recipient: charge.recipient,
        look_every: LOOK_EVERY,
    };
    let store = Arc::new(Embedded::open(&dir.path().join("s.redb")).unwrap());
    let hand = Hand::Own { key: Secret::new([5; 32]), usd_per_day: Usd::ONE, store };
    let sponsor = Arc::new(Sponsor::new(terms, hand, Arc::new(Funded), Arc::new(Metrics::new())).unwrap());
    sponsor.probe(recorded_time()).await;
    let charge = Arc::new(Charge::new(charge, ring.clone(), asked.clone()).unwrap());
    let settle = escrow::SettleKey::new(&Secret::new(hex::decode(PAYEES_KEY).unwrap())).unwrap();
    let sponsor = sponsored.then_some(sponsor);
    Bench {
        rail: TempoSession::new(settings, ring.clone(), charge, asked.clone(), settle, sponsor),
        ring,
        asked,
        _dir: dir,
    }
}

/// The day of the records.
fn recorded_time() -> UnixSeconds {
    UnixSeconds::parse_rfc3339("2026-11-21T00:45:00Z").unwrap()
}

impl Bench {
    /// An offer of ours that asks what the recorded one asked.
    fn challenge(&self, now: UnixSeconds, deposit: u128) -> PaymentChallenge {
        let (route, generation) = ("/v1/chat/completions".into(), "0123456789abcdef".into());
        let ask = SessionAsk {
            route: &route,
            generation: &generation,
            amount: Atoms(75),
            deposit: Atoms(deposit),
            snapshot: None,
            description: "chat by the token",
        };
        let offer = self.rail.offer(&ask, now).unwrap();
        PaymentChallenge::from_header(offer.headers[0].1.to_str().unwrap()).unwrap()
    }

    /// Shows a recorded payload on a challenge of ours.
    fn present(&self, credential: &PaymentCredential, now: UnixSeconds) -> Result<Presented, Refusal> {
        let mut ours = credential.clone();
        ours.challenge = self.challenge(now, 300).to_echo();
        self.rail.present(&Shown::Mpp(Box::new(ours)), now).map(|known| known.expect("it is this rail's"))
    }
}

fn recorded(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/golden/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    record["exchanges"].as_array().unwrap().clone()
}

/// The credential of a recorded request, read from its headers as the gate reads them.
fn credential(exchange: &Value) -> Option<PaymentCredential> {
    let mut headers = HeaderMap::new();
    for pair in exchange["request"]["headers"].as_array().unwrap() {
        let name: HeaderName = pair[0].as_str().unwrap().parse().unwrap();
        headers.append(name, pair[1].as_str().unwrap().parse().unwrap());
    }
    match found(&headers) {
        Found::One(Shown::Mpp(credential)) => Some(*credential),
        _ => None,
    }
}

/// When the recording server made the challenge; it gave it five minutes.
fn issued(credential: &PaymentCredential) -> UnixSeconds {
    let expires = credential.challenge.expires.as_deref().unwrap();
    UnixSeconds(UnixSeconds::parse_rfc3339(expires).unwrap().0 - 300)
}

/// A member of a recorded object that is text.
fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().unwrap_or_else(|| panic!("no {name} in {of}"))
}

#[tokio::test]
async fn every_recorded_credential_is_what_its_wallet_meant_and_asks_the_chain_nothing() {
    let mut actions = BTreeSet::new();
    for (file, sponsored, advised) in RECORDED {
        let bench = bench(sponsored).await;
        for exchange in recorded(file) {
            let Some(credential) = credential(&exchange) else { continue };
            let (payload, at) = (credential.payload.clone(), issued(&credential));
            let name = format!("{file} {}: {}", exchange["seq"], text(&payload, "action"));
            assert!(bench.ring.verify(&Slots::of(&credential.challenge), &credential.challenge.id), "{name}: the MAC");
            let theirs = bench.rail.present(&Shown::Mpp(Box::new(credential.clone())), at).unwrap_err();
            let Refusal::InvalidChallenge { why } = theirs else { panic!("{name}: {theirs:?}") };
            assert_eq!(why, "it does not say what it is for", "{name}: it has none of our words, and that is all");

            let shown = bench.present(&credential, at).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert_eq!(shown.channel.0, text(&payload, "channelId"), "{name}");
            let mined = exchange["response"]["paymentReceiptDecoded"]["txHash"].as_str();
            let kept = |voucher: Voucher| {
                assert_eq!(voucher.amount.to_string(), text(&payload, "cumulativeAmount"), "{name}");
                assert_eq!(voucher.signature, text(&payload, "signature"), "{name}: kept as it was signed");
            };
            let sent = |tx: PayersTx| {
                assert_eq!(tx.sponsored, sponsored, "{name}");
                assert_eq!(format!("0x{}", hex::encode(&tx.raw)), text(&payload, "transaction"), "{name}");
                if let (false, Some(mined)) = (sponsored, mined) {
                    assert_eq!(tx.hash, mined, "{name}: the very transaction that was mined");
                }
            };
            actions.insert((text(&payload, "action").to_owned(), sponsored));
            match (text(&payload, "action"), shown.action) {
                ("voucher", Action::Voucher(voucher)) | ("close", Action::Close { voucher, .. }) => kept(voucher),
                ("open", Action::Open { voucher, deposit, tx }) => {
                    assert_eq!(deposit, Atoms(advised), "{name}: wallets lock what is advised");
                    kept(voucher);
                    sent(tx);
                }
                ("topUp", Action::TopUp { additional, tx }) => {
                    assert_eq!(additional.to_string(), text(&payload, "additionalDeposit"), "{name}");
                    sent(tx);
                }
                (said, read) => panic!("{name}: {said} became {read:?}"),
            }
        }
        assert_eq!(bench.asked.0.load(Ordering::SeqCst), 0, "{file}");
    }
    let all = ["close", "open", "topUp", "voucher"];
    let want: BTreeSet<_> = all.iter().flat_map(|a| [((*a).to_owned(), false), ((*a).to_owned(), true)]).collect();
    assert_eq!(actions, want, "every action, with and without a sponsor");
}

/// The first credential of a record that does this.
fn doing(file: &str, action: &str) -> PaymentCredential {
    let all = recorded(file);
    let found = all.iter().filter_map(credential).find(|c| c.payload["action"] == action);
    found.unwrap_or_else(|| panic!("{file} has no {action}"))
}

#[tokio::test]
async fn no_member_of_a_recorded_payload_can_be_changed() {
    let flip = |word: &str, at: usize| {
        let other = if word.as_bytes()[at] == b'1' { "2" } else { "1" };
        format!("{}{other}{}", &word[..at], &word[at + 1..])
    };
    let more = |amount: &str| (amount.parse::<u64>().unwrap() + 1).to_string();
    for (file, action) in [
        ("session-sse-topup", "open"),
        ("session-sse-topup", "voucher"),
        ("session-sse-topup", "topUp"),
        ("session-sse-topup", "close"),
        ("session-sse-sponsored", "open"),
        ("session-sse-sponsored", "topUp"),
    ] {
        let bench = bench(file.ends_with("sponsored")).await;
        let good = doing(file, action);
        assert!(bench.present(&good, issued(&good)).is_ok(), "{file} {action}");
        let mut changes: Vec<(String, Value)> = Vec::new();
        for (name, value) in good.payload.as_object().unwrap() {
            match (name.as_str(), value) {
                // Words of the wallet that nothing here relies on.
                ("type" | "authorizedSigner", _) => {}
                ("descriptor", Value::Object(members)) => {
                    for (member, word) in members {
                        let word = word.as_str().unwrap();
                        changes.push((format!("/descriptor/{member}"), json!(flip(word, word.len() - 1))));
                        changes.push((format!("/descriptor/{member}"), json!(&word[2..])));
                        changes.push((format!("/descriptor/{member}"), Value::Null));
                    }
                    changes.push(("/descriptor".to_owned(), Value::Null));
                }
                ("cumulativeAmount" | "additionalDeposit", value) => {
                    changes.push((format!("/{name}"), json!(more(value.as_str().unwrap()))));
                    changes.push((format!("/{name}"), Value::Null));
                }
                ("action", _) => changes.push(("/action".to_owned(), json!("settle"))),
                (_, value) => {
                    let word = value.as_str().unwrap();
                    for at in [2, word.len() / 2, word.len() - 1] {
                        changes.push((format!("/{name}"), json!(flip(word, at))));
                    }
                    changes.push((format!("/{name}"), json!(format!("{word}00"))));
                    changes.push((format!("/{name}"), Value::Null));
                }
            }
        }
        assert!(changes.len() > 20, "{file} {action}");
        for (member, value) in changes {
            let mut bad = good.clone();
            *bad.payload.pointer_mut(&member).unwrap() = value.clone();
            let got = bench.present(&bad, issued(&good));
            assert!(got.is_err(), "{file} {action}: {member} as {value}: {got:?}");
        }
        for (source, want) in [
            ("did:pkh:eip155:42431:0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "another account"),
            ("did:pkh:eip155:1:0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC", "the account on another chain"),
            ("did:key:z6Mk", "no account"),
        ] {
            let bad = PaymentCredential { source: Some(source.to_owned()), ..good.clone() };
            assert_eq!(bench.present(&bad, issued(&good)), Err(Refusal::SignerMismatch), "{action}: {want}");
        }
        assert_eq!(bench.asked.0.load(Ordering::SeqCst), 0, "{file} {action}");
    }
}

/// The same transaction of the recorded payer, signed by an access key that is said to be his.
fn by_access_key(credential: &PaymentCredential, key: &str) -> PaymentCredential {
    let key = PrivateKeySigner::from_slice(&hex::decode(key).unwrap()).unwrap();
    let raw = hex::decode(&text(&credential.payload, "transaction")[2..]).unwrap();
    let signed = AASigned::decode_2718(&mut raw.as_slice()).unwrap();
    let payer = signed.recover_signer().unwrap();
    let hash = KeychainSignature::signing_hash(signed.signature_hash(), payer);
    let inner = PrimitiveSignature::Secp256k1(key.sign_hash_sync(&hash).unwrap());
    let signature = TempoSignature::Keychain(KeychainSignature::new(payer, inner));
    let raw = signed.strip_signature().into_signed(signature).encoded_2718();
    let mut bent = credential.clone();
    bent.payload["transaction"] = json!(format!("0x{}", hex::encode(raw)));
    bent
}

#[tokio::test]
async fn what_an_access_key_signs_is_known_as_such_and_tops_up_only_where_it_signs_vouchers() {
    let bench = bench(false).await;
    // The recorded wallet's own key, which is also the signer of its vouchers, and anybody's.
    let (signers, strangers) = ("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a", PAYEES_KEY);
    let (open, top_up) = (doing("session-sse-topup", "open"), doing("session-sse-topup", "topUp"));
    for (credential, by_key, taken, why) in [
        (open.clone(), false, true, "the payer's own signature is proof"),
        (by_access_key(&open, strangers), true, true, "whose key it is, the chain will say"),
        (by_access_key(&open, signers), true, true, "and so for any"),
        (top_up.clone(), false, true, "the payer's own"),
        (by_access_key(&top_up, signers), true, true, "the channel names this key"),
        (by_access_key(&top_up, strangers), true, false, "a stranger could keep the payer from his own top-ups"),
    ] {
        match bench.present(&credential, issued(&credential)).map(|shown| shown.action) {
            Ok(Action::Open { tx, .. } | Action::TopUp { tx, .. }) => {
                assert_eq!((tx.by_access_key, true), (by_key, taken), "{why}");
            }
            Err(Refusal::PaymentInvalid { why: said }) => {
                assert!(!taken && said.contains("whose vouchers it signs"), "{why}: {said}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_opening_by_access_key_ends_within_a_minute_as_wallets_sign_them() {
    let bench = bench(false).await;
    let open = doing("session-sse-topup", "open");
    let Ok(Presented { action: Action::Open { tx, .. }, .. }) = bench.present(&open, issued(&open)) else { panic!() };
    let before = |seconds: u64| UnixSeconds(tx.valid_until.0 - seconds);
    let by_key = by_access_key(&open, PAYEES_KEY);
    for (credential, left, taken, why) in [
        (&by_key, tx.valid_until.0 - issued(&open).0, true, "when the published wallet signed it"),
        (&by_key, 60, true, "a clock that is behind"),
        (&by_key, 61, false, "it would take a place for as long as that"),
        (&open, 61, true, "the payer's own names nobody else"),
        (&open, 900, true, "up to a quarter of an hour"),
        (&open, 901, false, "no longer"),
    ] {
        match bench.present(credential, before(left)) {
            Ok(_) => assert!(taken, "{why}"),
            Err(Refusal::PaymentInvalid { why: said }) => {
                assert!(!taken && said.starts_with("validBefore"), "{why}: {said}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_was_signed_for_a_time_that_is_over_is_still_known_and_never_sent_anew() {
    for (file, sponsored) in [("session-sse-topup", false), ("session-sse-sponsored", true)] {
        let bench = bench(sponsored).await;
        let open = doing(file, "open");
        let much_later = issued(&open).plus(400);
        let shown = bench.present(&open, much_later).unwrap_or_else(|e| panic!("{file}: {e:?}"));
        let Action::Open { tx, .. } = &shown.action else { panic!("{file}: {shown:?}") };
        assert!(tx.valid_until < much_later, "{file}: its transaction is over");
        let got = bench.rail.complete(&shown, much_later).await;
        assert!(matches!(got, Err(Refusal::PaymentInvalid { .. })), "{file}: {got:?}");
        assert_eq!(bench.asked.0.load(Ordering::SeqCst), 0, "{file}: nobody is asked");
    }
}

#[tokio::test]
async fn a_wallet_of_the_old_protocol_is_told_so() {
    let bench = bench(false).await;
    for exchange in recorded("session-legacy-sse") {
        let Some(credential) = credential(&exchange) else { continue };
        let theirs: Value = serde_json::to_value(credential.challenge.request.decode_value().unwrap()).unwrap();
        assert_eq!(theirs["methodDetails"]["sessionProtocol"], "v1");
        let request: Request = serde_json::from_value(theirs).unwrap();
        assert!(!bench.rail.is_ours(&request), "nor is its challenge one that we would take");
        match (bench.present(&credential, issued(&credential)), text(&credential.payload, "action")) {
            (Err(Refusal::PaymentInvalid { why }), _) => assert!(why.contains("v1 is not served"), "{why}"),
            (got, action) => panic!("{action}: {got:?}"),
        }
    }
}

/// Every member of an object as a path, with its value; objects inside are opened.
fn members(of: &Value, under: &str, into: &mut Vec<(String, Value)>) {
    for (name, value) in of.as_object().unwrap() {
        let path = if under.is_empty() { name.clone() } else { format!("{under}.{name}") };
        match value {
            Value::Object(_) => members(value, &path, into),
            _ => into.push((path, value.clone())),
        }
    }
}

/// Where two objects are not the same: path, what is ours, what is theirs.
fn differences(ours: &Value, theirs: &Value) -> Vec<(String, Option<Value>, Option<Value>)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    members(ours, "", &mut a);
    members(theirs, "", &mut b);
    let of = |list: &[(String, Value)], path: &str| list.iter().find(|(p, _)| p == path).map(|(_, v)| v.clone());
    let paths: BTreeSet<String> = a.iter().chain(&b).map(|(path, _)| path.clone()).collect();
    let both = paths.into_iter().map(|path| (of(&a, &path), of(&b, &path), path));
    both.filter(|(ours, theirs, _)| ours != theirs).map(|(ours, theirs, path)| (path, ours, theirs)).collect()
}

#[tokio::test]
async fn our_challenge_says_what_the_recorded_ones_say_and_differs_only_on_purpose() {
    // (member, ours has it, theirs has it, why)
    let on_purpose = [
        ("id", true, true, "the MAC of everything else"),
        ("expires", true, true, "half an hour instead of five minutes: one challenge serves many requests"),
        ("description", true, false, "people read in the wallet what they pay for"),
        ("opaque", true, false, "route, rail and rules are bound under the MAC, so that an offer opens nothing else"),
        ("request.currency", true, true, "every address is written with its checksum"),
        ("request.unitType", true, true, "a request has two prices, by input and by output: no token is the unit"),
    ];
    for (file, sponsored, advised) in RECORDED {
        let bench = bench(sponsored).await;
        for theirs in recorded(file).iter().filter_map(|e| e["response"]["wwwAuthenticateDecoded"].as_array()).flatten()
        {
            let ours = bench.challenge(recorded_time(), advised);
            let mut ours_shown = serde_json::to_value(ours.to_echo()).unwrap();
            ours_shown["request"] = ours.request.decode_value().unwrap();
            ours_shown["description"] = json!(ours.description);
            let mut theirs_shown = theirs.clone();
            theirs_shown["request"] = theirs_shown.as_object_mut().unwrap().remove("requestDecoded").unwrap();
            let mut seen = differences(&ours_shown, &theirs_shown);
            for (member, we, they, why) in on_purpose {
                let at = seen.iter().position(|(path, ..)| path == member);
                let (_, ours, theirs) =
                    seen.remove(at.unwrap_or_else(|| panic!("{file}: no difference: {member}, {why}")));
                assert_eq!((ours.is_some(), theirs.is_some()), (we, they), "{file}: {member}: {why}");
            }
            assert!(seen.is_empty(), "{file}: {seen:?}");
        }
    }
}

/// The channel of a record at an instant of it.
fn channel(shown: &Presented, accepted: Atoms, spent: Atoms, deposit: Atoms) -> Channel {
    let (voucher, at) = (Voucher { amount: accepted, signature: "0x".to_owned() }, recorded_time());
    let open = Intent { act: Act::Open, tx: String::new(), raw: String::new(), valid_until: at };
    let (id, of, escrow) = (shown.channel.clone(), shown.descriptor.clone(), lower(RESERVE));
    let rail = "tempo/session".into();
    let mut channel = Channel::opening(id, rail, CHAIN, escrow, of, 6, deposit, voucher, open, at);
    channel.spent.insert("gate".to_owned(), spent);
    channel
}

/// The events of a recorded stream with this name, whole and as data.
fn events(exchange: &Value, name: &str) -> Vec<(String, Value)> {
    let chunks = exchange["response"]["chunks"].as_array().cloned().unwrap_or_default();
    let stream: String = chunks.iter().map(|chunk| chunk[1].as_str().unwrap()).collect();
    let begin = format!("event: {name}\ndata: ");
    let data = |frame: &str| {
        frame.strip_prefix(&begin).map(|data| (format!("{frame}\n\n"), serde_json::from_str(data).unwrap()))
    };
    stream.split("\n\n").filter_map(data).collect()
}

#[tokio::test]
async fn a_wallet_is_asked_and_receipted_in_the_words_of_the_recorded_server() {
    let atoms = |of: &Value, name: &str| Atoms::parse(text(of, name)).unwrap();
    let (mut asked, mut receipted) = (0, 0);
    for (file, sponsored, advised) in RECORDED {
        let bench = bench(sponsored).await;
        for exchange in recorded(file) {
            let Some(credential) = credential(&exchange) else { continue };
            let shown = bench.present(&credential, issued(&credential)).unwrap();
            for (frame, said) in events(&exchange, "payment-need-voucher") {
                let of = channel(&shown, atoms(&said, "acceptedCumulative"), Atoms(0), atoms(&said, "deposit"));
                let ours = bench.rail.need_voucher(&of, atoms(&said, "requiredCumulative"));
                assert_eq!(std::str::from_utf8(&ours).unwrap(), frame, "{file}: byte for byte");
                asked += 1;
            }
            let in_header = exchange["response"]["paymentReceiptDecoded"].clone();
            let in_stream = events(&exchange, "payment-receipt").into_iter().map(|(_, said)| said);
            for said in in_stream.chain(Some(in_header).filter(|said| !said.is_null())) {
                let of = channel(&shown, atoms(&said, "acceptedCumulative"), atoms(&said, "spent"), Atoms(advised));
                let receipt = SessionReceipt {
                    challenge_id: text(&said, "challengeId"),
                    channel: &of,
                    accepted: of.accepted(),
                    receipt: None,
                    tx: said["txHash"].as_str(),
                    at: UnixSeconds::parse_rfc3339(text(&said, "timestamp")).unwrap(),
                };
                let (name, line) = bench.rail.receipt(&receipt).unwrap();
                let ours: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(line.as_bytes()).unwrap()).unwrap();
                let event = bench.rail.receipt_event(&receipt);
                assert_eq!(
                    (name.as_str(), &event[..]),
                    ("payment-receipt", format!("event: payment-receipt\ndata: {ours}\n\n").as_bytes())
                );
                let seen: Vec<String> = differences(&ours, &said).into_iter().map(|(path, ..)| path).collect();
                // Whole seconds; and nothing here is sold by a unit that could be counted.
                assert_eq!(seen, ["timestamp", "units"], "{file} {}", exchange["seq"]);
                let read = ::mpp::Receipt::from_header(line.to_str().unwrap()).unwrap();
                assert!(read.is_success() && read.reference == of.id.0, "the crate reads it");
                receipted += 1;
            }
        }
    }
    assert!(asked > 25 && receipted > 35, "{asked} events, {receipted} receipts: the records were read");
}

#[cfg(test)]
#[path = "webauthn_tests.rs"]
mod webauthn;
