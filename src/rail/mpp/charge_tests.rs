//! What `tempo/charge` promises, without a chain: every node here counts its calls, and most tests want none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::chain::{Head, Inclusion, Sent, Transfer, Unreachable};
use crate::claim::Standing;
use crate::money::Usd;
use crate::rail::{Found, found};
use crate::secret::Secret;
use ::mpp::PaymentChallenge;
use ::mpp::client::tempo::charge::{SignOptions, TempoCharge};
use ::mpp::tempo::attribution;
use alloy::signers::local::PrivateKeySigner;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const CHAIN: u64 = 42431;
const PAYEE: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const TOKEN: &str = "0x20c0000000000000000000000000000000000000";
const BODY: &[u8] = br#"{"model":"m","messages":[]}"#;

/// A node under the test's control.
struct Node {
    calls: AtomicUsize,
    head: Mutex<Result<Head, Unreachable>>,
    seen: Mutex<Inclusion>,
    trial: Mutex<Tried>,
    mined_at: Mutex<UnixSeconds>,
}

#[async_trait]
impl Chain for Node {
    async fn head(&self) -> Result<Head, Unreachable> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        *self.head.lock().unwrap()
    }
    async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
        Ok(*self.mined_at.lock().unwrap())
    }
    async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(self.seen.lock().unwrap().clone())
    }
    async fn rehearse(&self, _: Address, _: &tempo_alloy::primitives::TempoTransaction) -> Result<Tried, Unreachable> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(*self.trial.lock().unwrap())
    }
    async fn send(&self, _: &[u8]) -> Sent {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Sent::Accepted
    }
}

struct Bench {
    rail: Charge,
    node: Arc<Node>,
    ring: Arc<KeyRing>,
}

fn settings() -> Settings {
    Settings {
        id: "tempo/charge".into(),
        realm: "llm.test".into(),
        chain_id: CHAIN,
        currency: TOKEN.parse().unwrap(),
        recipient: PAYEE.parse().unwrap(),
        accept_push: false,
        pace: Pace {
            patience: Duration::from_millis(200),
            pause: Duration::from_millis(1),
            nonce_doubt: Duration::from_millis(5),
        },
    }
}

fn bench_with(settings: Settings) -> Bench {
    let ring = Arc::new(KeyRing::new(&[Secret::new("test-secret-key-0123456789abcdef0123456789")]).unwrap());
    let node = Arc::new(Node {
        calls: AtomicUsize::new(0),
        head: Mutex::new(Err(Unreachable { why: "gone" })),
        seen: Mutex::new(Inclusion::Absent),
        trial: Mutex::new(Tried::Passes),
        mined_at: Mutex::new(UnixSeconds(0)),
    });
    Bench { rail: Charge::new(settings, ring.clone(), node.clone()).unwrap(), node, ring }
}

fn bench() -> Bench {
    bench_with(settings())
}

fn terms(amount: u128) -> Terms {
    Terms {
        rail: "tempo/charge".into(),
        route: "/v1/chat/completions".into(),
        model: "m".into(),
        tier: "standard".into(),
        generation: "0123456789abcdef".into(),
        amount: Atoms(amount),
        price: Usd::parse("0.01").unwrap(),
        decimals: 6,
    }
}

fn digest(body: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(body).into()
}

fn ask(terms: &Terms) -> Ask<'_> {
    Ask { terms, digest: digest(BODY), description: "one chat completion", lasts: 900 }
}

fn payer() -> PrivateKeySigner {
    PrivateKeySigner::from_slice(&[7; 32]).unwrap()
}

impl Bench {
    fn challenge(&self, terms: &Terms) -> PaymentChallenge {
        let offer = self.rail.offer(&ask(terms), UnixSeconds::now()).unwrap();
        PaymentChallenge::from_header(offer.headers[0].1.to_str().unwrap()).unwrap()
    }

    /// What the crate's client answers to an offer for these terms, signed without any network.
    async fn answer(&self, terms: &Terms) -> PaymentCredential {
        let options = SignOptions {
            rpc_url: Some("http://127.0.0.1:1".into()),
            gas_limit: Some(300_000),
            fee_token: Some(TOKEN.parse().unwrap()),
            ..SignOptions::default()
        };
        let charge = TempoCharge::from_challenge(&self.challenge(terms)).unwrap();
        charge.sign_with_options(&payer(), options).await.unwrap().into_credential()
    }

    /// Recognise and check, as the gate does.
    async fn admit(&self, credential: &PaymentCredential, ask: &Ask<'_>) -> Result<Proof, Refusal> {
        let shown = Shown::Mpp(Box::new(credential.clone()));
        let known = self.rail.recognise(&shown, ask)?.ok_or(Refusal::PaymentRequired)?;
        self.rail.check(&shown, known, ask, UnixSeconds::now()).await
    }

    fn calls(&self) -> usize {
        self.node.calls.load(Ordering::SeqCst)
    }
}

fn recorded(file: &str) -> Value {
    let path = format!("{}/tests/golden/{file}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn headers(exchange: &Value) -> HeaderMap {
    let mut map = HeaderMap::new();
    for pair in exchange["request"]["headers"].as_array().unwrap() {
        let name: http::HeaderName = pair[0].as_str().unwrap().parse().unwrap();
        map.append(name, HeaderValue::from_str(pair[1].as_str().unwrap()).unwrap());
    }
    map
}

#[test]
fn an_offer_says_exactly_what_is_asked_and_for_five_minutes() {
    let bench = bench();
    let offer = bench.rail.offer(&ask(&terms(10_000)), UnixSeconds(1_795_221_719)).unwrap();
    let challenge = PaymentChallenge::from_header(offer.headers[0].1.to_str().unwrap()).unwrap();
    assert_eq!(offer.challenge_id.as_ref(), Some(&challenge.id));
    assert_eq!(challenge.expires.as_deref(), Some(UnixSeconds(1_795_221_719 + 300).rfc3339().as_str()));
    assert!(::mpp::body_digest::verify(challenge.digest.as_deref().unwrap(), BODY), "the crate reads our digest");
    assert!(challenge.verify("test-secret-key-0123456789abcdef0123456789"), "and our id");
    let request = challenge.request.decode_value().unwrap();
    assert_eq!(Base64UrlJson::from_value(&request).unwrap().raw(), challenge.request.raw(), "canonical");
    assert_eq!(
        request,
        json!({
            "amount": "10000",
            "currency": TOKEN.parse::<Address>().unwrap().to_checksum(None),
            "methodDetails": {"chainId": CHAIN, "supportedModes": ["pull"]},
            "recipient": PAYEE,
        })
    );
    let push = bench_with(Settings { accept_push: true, ..settings() }).challenge(&terms(1));
    assert_eq!(push.request.decode_value().unwrap()["methodDetails"], json!({"chainId": CHAIN}), "both modes");
}

#[tokio::test]
async fn a_signed_answer_is_admitted_without_asking_the_chain() {
    let bench = bench();
    let credential = bench.answer(&terms(10_000)).await;
    let proof = bench.admit(&credential, &ask(&terms(10_000))).await.unwrap();
    assert_eq!(proof.payer, Some(format!("{:#x}", payer().address())));
    assert_eq!(proof.recognised.terms, terms(10_000));
    assert_eq!(proof.recognised.key.0, format!("tempo:{CHAIN}:tx:{}", proof.recognised.reference));
    assert!(proof.collect_until <= proof.recognised.expires.plus(1));
    assert_eq!(bench.calls(), 0);
}

#[tokio::test]
async fn an_offer_opens_only_what_it_was_made_for() {
    let base = terms(10_000);
    let all = [
        ("base", base.clone()),
        ("route", Terms { route: "/v1/completions".into(), ..base.clone() }),
        ("model", Terms { model: "dear".into(), ..base.clone() }),
        ("tier", Terms { tier: "gold".into(), ..base.clone() }),
        ("generation", Terms { generation: "fedcba9876543210".into(), ..base.clone() }),
        ("amount up", terms(10_001)),
        ("amount down", terms(9_999)),
        ("price", Terms { price: Usd::parse("0.0100000001").unwrap(), ..base }),
    ];
    let bench = bench();
    for (paid_for, paid) in &all {
        let credential = bench.answer(paid).await;
        for (used_for, used) in &all {
            let got = bench.admit(&credential, &ask(used)).await;
            assert_eq!(got.is_ok(), paid_for == used_for, "offered for {paid_for}, shown for {used_for}: {got:?}");
        }
        let other_body = Ask { digest: digest(b"{}"), ..ask(paid) };
        assert!(bench.admit(&credential, &other_body).await.is_err(), "{paid_for}: another body");
    }
    assert_eq!(bench.calls(), 0, "refusals cost no request to the chain");
}

#[tokio::test]
async fn another_gates_offers_are_not_ours() {
    let credential = bench().answer(&terms(10_000)).await;
    let shown = Shown::Mpp(Box::new(credential));
    for (settings, none, why) in [
        (Settings { realm: "other.test".into(), ..settings() }, false, "realm"),
        (Settings { recipient: Address::repeat_byte(5), ..settings() }, false, "payee"),
        (Settings { currency: Address::repeat_byte(5), ..settings() }, false, "token"),
        (Settings { chain_id: 4217, ..settings() }, false, "chain"),
        (Settings { id: "other/charge".into(), ..settings() }, true, "another rail of this gate"),
    ] {
        let got = bench_with(settings).rail.recognise(&shown, &ask(&terms(10_000)));
        assert_eq!(got == Ok(None), none, "{why}: {got:?}");
        assert!(none || matches!(got, Err(Refusal::InvalidChallenge { .. })), "{why}: {got:?}");
    }
}

#[tokio::test]
async fn no_field_of_a_challenge_can_be_changed() {
    let bench = bench();
    let good = serde_json::to_value(bench.answer(&terms(10_000)).await).unwrap();
    let b64 = |v: Value| Base64UrlJson::from_value(&v).unwrap().raw().to_owned();
    let mut request: Value =
        Base64UrlJson::from_raw(good["challenge"]["request"].as_str().unwrap()).decode_value().unwrap();
    request["amount"] = json!("1");
    let mut opaque: Value =
        Base64UrlJson::from_raw(good["challenge"]["opaque"].as_str().unwrap()).decode_value().unwrap();
    opaque["model"] = json!("dear");
    for (field, value) in [
        ("id", json!("A".repeat(43))),
        ("id", json!(good["challenge"]["id"].as_str().unwrap().to_lowercase())),
        ("realm", json!("llm.tes")),
        ("request", json!(b64(request))),
        ("expires", json!("2099-01-01T00:00:00Z")),
        ("expires", Value::Null),
        ("digest", Value::Null),
        ("digest", json!(write_digest(&digest(b"{}")))),
        ("opaque", json!(b64(opaque))),
        ("opaque", Value::Null),
        ("header", json!("Payment-Authorization")),
    ] {
        let mut bad = good.clone();
        bad["challenge"][field] = value.clone();
        let bad: PaymentCredential = serde_json::from_value(bad).unwrap();
        let got = bench.admit(&bad, &ask(&terms(10_000))).await;
        assert!(matches!(got, Err(Refusal::InvalidChallenge { .. })), "{field} = {value}: {got:?}");
    }
    for (field, value) in [("method", "stripe"), ("intent", "session")] {
        let mut bad = good.clone();
        bad["challenge"][field] = json!(value);
        let bad: PaymentCredential = serde_json::from_value(bad).unwrap();
        assert_eq!(
            bench.rail.recognise(&Shown::Mpp(Box::new(bad)), &ask(&terms(10_000))),
            Ok(None),
            "{field}: another rail's"
        );
    }
    let mut described = good;
    described["challenge"]["description"] = json!("anything");
    let described: PaymentCredential = serde_json::from_value(described).unwrap();
    assert!(bench.admit(&described, &ask(&terms(10_000))).await.is_ok(), "text for people binds nothing");
}

#[tokio::test]
async fn an_offer_ends_on_the_second() {
    let bench = bench();
    let shown = Shown::Mpp(Box::new(bench.answer(&terms(10_000)).await));
    let known = bench.rail.recognise(&shown, &ask(&terms(10_000))).unwrap().unwrap();
    let end = known.expires;
    for (now, want, why) in [
        (UnixSeconds(end.0), Some(Refusal::OfferExpired), "at its end"),
        (end.plus(1), Some(Refusal::OfferExpired), "after it"),
        (UnixSeconds(end.0 - 1), None, "a second before: not the offer, but this short-lived transaction is over"),
    ] {
        let got = bench.rail.check(&shown, known.clone(), &ask(&terms(10_000)), now).await.unwrap_err();
        match want {
            Some(want) => assert_eq!(got, want, "{why}"),
            None => assert!(matches!(got, Refusal::PaymentInvalid { .. }), "{why}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn a_transaction_must_end_with_its_offer_and_may_not_wait_for_later() {
    use alloy::eips::{Decodable2718, Encodable2718};
    use std::num::NonZeroU64;
    use tempo_alloy::primitives::AASigned;
    let bench = bench();
    let credential = bench.answer(&terms(10_000)).await;
    let text = credential.charge_payload().unwrap().signed_tx().unwrap().to_owned();
    let expires = bench
        .rail
        .recognise(&Shown::Mpp(Box::new(credential.clone())), &ask(&terms(10_000)))
        .unwrap()
        .unwrap()
        .expires
        .0;
    let now = UnixSeconds::now().0;
    for (before, after, want, why) in [
        (Some(expires + 2), None, "validBefore is later", "past the offer's end"),
        (None, None, "validBefore is missing", "no end"),
        (Some(now - 1), None, "validBefore is past", "over already"),
        (Some(expires), Some(now + 100), "validAfter is not reached", "not yet"),
    ] {
        let mut signed = AASigned::decode_2718(&mut hex_bytes(&text).unwrap().as_slice()).unwrap();
        signed.tx_mut().valid_before = before.and_then(NonZeroU64::new);
        signed.tx_mut().valid_after = after.and_then(NonZeroU64::new);
        let again = AASigned::new_unhashed(signed.tx().clone(), signed.signature().clone());
        let payload = PaymentPayload::transaction(alloy::hex::encode_prefixed(again.encoded_2718()));
        let changed = PaymentCredential::new(credential.challenge.clone(), payload);
        let got = bench.admit(&changed, &ask(&terms(10_000))).await.unwrap_err();
        assert!(matches!(&got, Refusal::PaymentInvalid { why } if why.starts_with(want)), "{why}: {got:?}");
    }
}

#[tokio::test]
async fn a_payment_for_one_challenge_does_not_answer_another() {
    let bench = bench();
    let paid = bench.answer(&terms(10_000)).await;
    let other = {
        let mut t = terms(10_000);
        t.model = "other".into();
        t
    };
    let swapped = PaymentCredential { challenge: bench.challenge(&other).to_echo(), ..paid.clone() };
    let got = bench.admit(&swapped, &ask(&other)).await.unwrap_err();
    assert!(matches!(&got, Refusal::PaymentInvalid { why } if why.contains("memo")), "{got:?}");

    let foreign = PaymentCredential {
        source: Some(format!("did:pkh:eip155:{CHAIN}:0x1111111111111111111111111111111111111111")),
        ..paid.clone()
    };
    assert!(bench.admit(&foreign, &ask(&terms(10_000))).await.is_err(), "the source is not the signer");
    assert!(bench.admit(&paid, &ask(&terms(10_000))).await.is_ok());
    assert_eq!(bench.calls(), 0);
}

#[tokio::test]
async fn a_proof_of_identity_opens_only_what_costs_nothing() {
    let bench = bench();
    let free = bench.answer(&terms(0)).await;
    let proof = bench.admit(&free, &ask(&terms(0))).await.unwrap();
    assert_eq!(proof.recognised.key.0, format!("tempo:{CHAIN}:proof:{}", free.challenge.id));
    assert_eq!(proof.payer, Some(format!("{:#x}", payer().address())));
    assert_eq!(bench.rail.collect(&Shown::Mpp(Box::new(free.clone())), &proof).await, Collected::Paid);

    let priced = bench.answer(&terms(10_000)).await;
    let on_priced = PaymentCredential { payload: free.payload.clone(), ..priced.clone() };
    let on_free = PaymentCredential { payload: priced.payload.clone(), ..free.clone() };
    let mut stolen = free.clone();
    stolen.source = Some(format!("did:pkh:eip155:{CHAIN}:{PAYEE}"));
    let mut nameless = free.clone();
    nameless.source = None;
    for (credential, terms, why) in [
        (on_priced, terms(10_000), "a proof on a priced offer"),
        (on_free, terms(0), "a transaction on a free offer"),
        (stolen, terms(0), "somebody else's account"),
        (nameless, terms(0), "no account"),
    ] {
        let got = bench.admit(&credential, &ask(&terms)).await;
        assert!(matches!(got, Err(Refusal::PaymentInvalid { .. })), "{why}: {got:?}");
    }
    assert_eq!(bench.calls(), 0);
}

#[tokio::test]
async fn a_transaction_the_payer_sent_is_taken_only_where_the_operator_says_so() {
    let closed = bench();
    let hash = json!({"type": "hash", "hash": B256::repeat_byte(9)});
    let shown = PaymentCredential::new(closed.challenge(&terms(10_000)).to_echo(), hash.clone());
    let got = closed.admit(&shown, &ask(&terms(10_000))).await;
    assert!(matches!(got, Err(Refusal::PaymentInvalid { .. })), "{got:?}");

    let open = bench_with(Settings { accept_push: true, ..settings() });
    let echo = open.challenge(&terms(10_000)).to_echo();
    let source = format!("did:pkh:eip155:{CHAIN}:{PAYEE}");
    let shown = PaymentCredential::with_source(echo.clone(), source, hash.clone());
    let proof = open.admit(&shown, &ask(&terms(10_000))).await.unwrap();
    assert_eq!(open.calls(), 0, "the chain is for collect");
    assert_eq!((proof.payer.as_deref(), proof.recognised.resend), (Some(PAYEE.to_lowercase().as_str()), None));
    let elsewhere = PaymentCredential::with_source(echo, format!("did:pkh:eip155:1:{PAYEE}"), hash);
    assert!(open.admit(&elsewhere, &ask(&terms(10_000))).await.is_err(), "an account of another chain");
}

#[tokio::test]
async fn what_reached_us_is_paid_and_can_be_looked_up_from_the_record_alone() {
    let bench = bench();
    let credential = bench.answer(&terms(10_000)).await;
    let proof = bench.admit(&credential, &ask(&terms(10_000))).await.unwrap();
    let shown = Shown::Mpp(Box::new(credential));
    assert_eq!(bench.rail.collect(&shown, &proof).await, Collected::Unknown, "taken, not seen yet");
    let landed = Inclusion::Done {
        block: 3,
        sender: payer().address(),
        transfers: vec![Transfer {
            token: TOKEN.parse().unwrap(),
            from: payer().address(),
            to: PAYEE.parse().unwrap(),
            amount: 10_000,
            memo: Some(attribution::encode(&proof.recognised.challenge_id, "llm.test", None)),
        }],
    };
    *bench.node.seen.lock().unwrap() = landed;
    assert_eq!(bench.rail.collect(&shown, &proof).await, Collected::Paid);
    let mut claim = Claim {
        schema: Claim::SCHEMA,
        revision: 1,
        key: proof.recognised.key.clone(),
        challenge_id: proof.recognised.challenge_id.clone(),
        terms: proof.recognised.terms.clone(),
        reference: proof.recognised.reference.clone(),
        payer: proof.payer.clone(),
        resend: proof.recognised.resend.clone(),
        standing: Standing::Claimed { by: "req_1".into() },
        claimed_at: UnixSeconds(0),
        collect_until: proof.collect_until,
        paid_at: None,
        taken: None,
        output: None,
        transaction: None,
        departures: 0,
    };
    assert_eq!(bench.rail.look(&claim, UnixSeconds(0)).await, Collected::Unknown, "no head, no verdict");
    *bench.node.head.lock().unwrap() = Ok(Head { chain_id: CHAIN, number: 1, time: UnixSeconds::now() });
    assert_eq!(bench.rail.look(&claim, UnixSeconds(0)).await, Collected::Paid);
    claim.terms.amount = Atoms(10_001);
    assert!(matches!(bench.rail.look(&claim, UnixSeconds(0)).await, Collected::Failed { .. }), "another amount");
}

#[tokio::test]
async fn nothing_is_sent_after_the_offer_has_ended() {
    let bench = bench();
    let credential = bench.answer(&terms(10_000)).await;
    let mut proof = bench.admit(&credential, &ask(&terms(10_000))).await.unwrap();
    proof.recognised.expires = UnixSeconds::now();
    let got = bench.rail.collect(&Shown::Mpp(Box::new(credential)), &proof).await;
    assert!(matches!(got, Collected::Failed { .. }), "{got:?}");
    assert_eq!(bench.calls(), 0);
}

#[tokio::test]
async fn the_rail_stands_only_while_the_right_chain_moves() {
    let bench = bench();
    assert!(bench.rail.standing().is_err(), "not looked yet");
    let head = |chain_id, time| Ok(Head { chain_id, number: 1, time: UnixSeconds(time) });
    for (seen, want, why) in [
        (head(CHAIN, 1_000), None, "the right chain, fresh"),
        (head(CHAIN, 940), None, "a minute old"),
        (head(CHAIN, 939), Some("61 s old"), "standing still"),
        (head(CHAIN, 1_061), Some("61 s behind"), "our clock is slow"),
        (head(1, 1_000), Some("chain 1, not 42431"), "another chain"),
        (Err(Unreachable { why: "the node is gone" }), Some("gone"), "unreachable"),
        (head(CHAIN, 1_010), None, "back, a little ahead of us"),
    ] {
        *bench.node.head.lock().unwrap() = seen;
        let got = bench.rail.seen(UnixSeconds(1_000)).await.err();
        assert_eq!(got.is_some(), want.is_some(), "{why}: {got:?}");
        assert!(want.is_none_or(|w| got.unwrap().contains(w)), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_look_at_the_chain_takes_no_offer_away_and_a_second_does() {
    let bench = bench();
    let good = || Ok(Head { chain_id: CHAIN, number: 1, time: UnixSeconds::now() });
    let says = |head| *bench.node.head.lock().unwrap() = head;
    let lost = || Err(Unreachable { why: "the node is gone" });
    says(good());
    bench.rail.probe().await;
    assert_eq!(bench.rail.standing(), Ok(()));
    says(lost());
    tokio::join!(bench.rail.probe(), async {
        tokio::time::sleep(watch::LOOK_AGAIN / 2).await;
        assert_eq!(bench.rail.standing(), Ok(()));
        says(good());
    });
    assert_eq!(bench.rail.standing(), Ok(()), "it was busy for a moment");
    says(lost());
    bench.rail.probe().await;
    assert!(bench.rail.standing().is_err());
    says(good());
    bench.rail.probe().await;
    assert_eq!(bench.rail.standing(), Ok(()), "it is back");
}

#[tokio::test]
async fn recorded_credentials_of_real_clients_are_read_and_verified() {
    let push = bench_with(Settings { accept_push: true, ..settings() });
    for (file, why) in [
        ("charge-pull", "mppx pull"),
        ("charge-push", "mppx push"),
        ("charge-zero-proof", "mppx proof"),
        ("cli-charge", "mppx CLI"),
        ("mpp-rs-client", "Rust"),
        ("pympp-charge", "Python"),
    ] {
        let record = recorded(file);
        let (first, paid) = (&record["exchanges"][0], &record["exchanges"][1]);
        assert!(matches!(found(&headers(first)), Found::Nothing), "{why}: unpaid");
        let Found::One(Shown::Mpp(credential)) = found(&headers(paid)) else { panic!("{why}: no credential") };
        let echo = &credential.challenge;
        assert!(push.ring.verify(&Slots::of(echo), &echo.id), "{why}: MAC");

        let given = credential.charge_payload().unwrap();
        let payload = Payload::read(&given).unwrap();
        let receipt = paid["response"]["headers"].as_array().unwrap().iter();
        let receipt = receipt.filter(|h| h[0].as_str().unwrap().eq_ignore_ascii_case("payment-receipt"));
        let receipt = receipt.map(|h| ::mpp::Receipt::from_header(h[1].as_str().unwrap()).unwrap()).next().unwrap();
        assert_eq!(payload.reference(&echo.id), receipt.reference, "{why}: our reference is the receipt's");
        if !matches!(payload, Payload::Push { .. }) {
            let payer = push.rail.validated(&credential, given).await.unwrap().unwrap();
            assert!(credential.source.as_deref().unwrap().to_lowercase().ends_with(&payer), "{why}: payer");
        }
        // Their server's challenges do not say what they are for: ours must.
        let got = push.rail.recognise(&Shown::Mpp(credential), &ask(&terms(10_000)));
        assert!(matches!(got, Err(Refusal::InvalidChallenge { .. })), "{why}: {got:?}");
    }
    assert_eq!(push.calls(), 0);
}

#[test]
fn a_body_digest_is_read_in_both_forms_and_no_other() {
    let want = digest(BODY);
    let b64 = STANDARD.encode(want);
    for (text, ok, why) in [
        (format!("sha-256={b64}"), true, "as SDKs write it"),
        (format!("sha-256=:{b64}:"), true, "RFC 9530"),
        (format!("sha-256=:{b64}"), false, "half a pair of colons"),
        (format!("sha-512={b64}"), false, "another algorithm"),
        (format!("sha-256={}", &b64[..40]), false, "cut"),
        ("sha-256=".to_owned(), false, "empty"),
    ] {
        assert_eq!(read_digest(&text), ok.then_some(want), "{why}");
    }
}

#[test]
fn settings_that_cannot_bind_are_refused_at_the_start() {
    for (bad, why) in [
        (Settings { realm: String::new(), ..settings() }, "no realm"),
        (Settings { realm: "a|b".into(), ..settings() }, "delimiter in the realm"),
        (Settings { realm: "b\u{fc}cher.test".into(), ..settings() }, "non-ASCII realm"),
        (Settings { recipient: Address::ZERO, ..settings() }, "no payee"),
        (Settings { currency: Address::ZERO, ..settings() }, "no token"),
    ] {
        let Bench { ring, node, .. } = bench();
        assert!(Charge::new(bad, ring, node).is_err(), "{why}");
    }
}

#[cfg(test)]
#[path = "charge_trial_tests.rs"]
mod trial;
