//! x402 under attack: whatever is changed, mixed, copied or replayed, one payment buys one answer, and what is not exactly what was
//! offered buys none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256, U256, address};
use common::facilitator::{SETTLE, VERIFY};
use common::x402::counter::{SIGNATURE, X_PAYMENT, as_v1, assert_challenge, assert_final, chat, code, told};
use common::x402::permit2::Permit;
use common::x402::served::Calls;
use common::x402::stall::{FLAT, PER_TOKEN, chat_at, options, server};
use common::x402::{Brittle, EXACT_PROXY, Stall, TransferWithAuthorization, UPTO_PROXY, encode};
use common::{Answer, EvmBed, Facilitator, Gate, RawReply, Reply, eventually, raw};
use mpp::PrivateKeySigner;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SOMEBODY: Address = address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906");

/// What the backend's usual answer costs by usage: three words of prompt, twelve tokens.
const METERED: u128 = (3 + 2 * 12) * PER_TOKEN;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A stall behind the published facilitator.
struct Fair {
    stall: Stall,
    facilitator: Facilitator,
}

impl Fair {
    async fn open() -> Self {
        let chain = EvmBed::start().await;
        let facilitator = Facilitator::ts(&chain).await;
        let stall = Stall::over(chain, &facilitator.url()).await;
        Self { stall, facilitator }
    }

    /// Verifications and settlements so far.
    async fn asked(&self) -> (u64, u64) {
        let Calls { verify, settle, .. } = self.facilitator.calls().await;
        (verify, settle)
    }

    /// The true payment buys one answer for so many atoms, and no second one.
    async fn sells_once(&self, server: &str, payment: &Value, price: u128, why: &str) {
        let before = self.stall.earned().await;
        let reply = self.stall.show(server, payment, &chat()).await;
        assert_eq!(reply.status, 200, "{why}: the payment itself is no longer good: {}", reply.text());
        let paid = eventually(Duration::from_secs(10), || async { self.stall.earned().await > before });
        assert!(paid.await, "{why}: nothing was taken");
        assert_eq!(self.stall.earned().await - before, price, "{why}");
    }
}

/// What is done to a payment.
enum Wrong<S: 'static> {
    /// The payer himself signs something else.
    Signed(fn(&mut S)),
    /// It is changed after it was signed.
    Written(Change),
}
use Wrong::{Signed, Written};

/// Who notices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noticed {
    /// The gate, without asking anybody.
    Here,
    /// Whoever knows the chain: to the gate it may be the signature of a contract.
    There,
}
use Noticed::{Here, There};

/// A change of a payment as it is shown.
type Change = fn(&mut Value);
/// Why, with which headers, and the answer.
type Form<'a> = (&'a str, Vec<(&'a str, &'a str)>, (u16, &'a str));
/// Why, what is done, with which code it is refused, and by whom.
type Row<S> = (&'static str, Wrong<S>, &'static str, Noticed);

/// One more, or one less, of a number in decimal text.
fn plus(value: &mut Value, by: i128) {
    let number: i128 = value.as_str().unwrap().parse().unwrap();
    *value = json!((number + by).to_string());
}

/// Another hex digit at this place.
fn flip(value: &mut Value, at: usize) {
    let mut text = value.as_str().unwrap().to_owned().into_bytes();
    text[at] = if text[at] == b'1' { b'2' } else { b'1' };
    *value = json!(String::from_utf8(text).unwrap());
}

/// The same signature with the other of its two `s`, which the curve takes and no chain does.
fn mirrored(value: &mut Value) {
    let signature = value.as_str().unwrap().parse::<alloy::primitives::Bytes>().unwrap();
    let order: U256 = "0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141".parse().unwrap();
    let s = order - U256::from_be_slice(&signature[32..64]);
    let mirrored = [&signature[..32], &s.to_be_bytes::<32>(), &[55 - signature[64]]].concat();
    *value = json!(alloy::primitives::Bytes::from(mirrored));
}

/// A character of the offer's text becomes another.
fn forged_offer(payment: &mut Value, at: usize) {
    let text = payment["accepted"]["extra"]["offer"].as_str().unwrap();
    let old = text.as_bytes()[at] as char;
    let new = if old == 'A' { "B" } else { "A" };
    payment["accepted"]["extra"]["offer"] = json!(format!("{}{new}{}", &text[..at], &text[at + 1..]));
}

/// Wrong in what it says it accepts, whatever was signed.
const ACCEPTED: [(&str, Change, &str); 19] = [
    ("another scheme", |p| p["accepted"]["scheme"] = json!("batch-settlement"), "malformed_credential"),
    ("another network", |p| p["accepted"]["network"] = json!("eip155:8453"), "invalid_challenge"),
    ("a network by its old name", |p| p["accepted"]["network"] = json!("base-sepolia"), "malformed_credential"),
    ("another asset", |p| p["accepted"]["asset"] = json!(SOMEBODY), "invalid_challenge"),
    ("another payee", |p| p["accepted"]["payTo"] = json!(SOMEBODY), "invalid_challenge"),
    ("one atom more accepted", |p| plus(&mut p["accepted"]["amount"], 1), "invalid_challenge"),
    ("one atom less accepted", |p| plus(&mut p["accepted"]["amount"], -1), "invalid_challenge"),
    ("an amount of nothing", |p| p["accepted"]["amount"] = json!("0"), "invalid_challenge"),
    ("an amount that is a number", |p| p["accepted"]["amount"] = json!(20_000), "malformed_credential"),
    ("a longer life", |p| p["accepted"]["maxTimeoutSeconds"] = json!(100_000), "invalid_challenge"),
    ("another model", |p| p["accepted"]["extra"]["model"] = json!("openai/other"), "invalid_challenge"),
    ("another token's name", |p| p["accepted"]["extra"]["name"] = json!("USD Coin"), "invalid_challenge"),
    ("another version of the token", |p| p["accepted"]["extra"]["version"] = json!("1"), "invalid_challenge"),
    ("no offer", |p| drop(p["accepted"]["extra"].as_object_mut().unwrap().remove("offer")), "invalid_challenge"),
    ("an offer with a later end", |p| forged_offer(p, 8), "invalid_challenge"),
    ("an offer for another body", |p| forged_offer(p, 60), "invalid_challenge"),
    ("an offer with another MAC", |p| forged_offer(p, 130), "invalid_challenge"),
    ("a version there is none of", |p| p["x402Version"] = json!(3), "malformed_credential"),
    ("no payload", |p| drop(p.as_object_mut().unwrap().remove("payload")), "malformed_credential"),
];

const EIP3009: [Row<TransferWithAuthorization>; 20] = [
    ("signed for another payee", Signed(|p| p.to = SOMEBODY), "payment_invalid", Here),
    ("signed for one atom more", Signed(|p| p.value += U256::ONE), "payment_invalid", Here),
    ("signed for one atom less", Signed(|p| p.value -= U256::ONE), "payment_invalid", Here),
    ("good from a minute on", Signed(|p| p.validAfter = U256::from(now() + 60)), "payment_invalid", Here),
    ("good for ten seconds", Signed(|p| p.validBefore = U256::from(now() + 10)), "payment_invalid", Here),
    ("expired", Signed(|p| p.validBefore = U256::from(now() - 1)), "payment_invalid", Here),
    ("in somebody's name", Signed(|p| p.from = SOMEBODY), "payment_invalid", There),
    ("another payer", Written(|p| p["payload"]["authorization"]["from"] = json!(SOMEBODY)), "payment_invalid", There),
    ("another payee", Written(|p| p["payload"]["authorization"]["to"] = json!(SOMEBODY)), "payment_invalid", Here),
    ("one atom more", Written(|p| plus(&mut p["payload"]["authorization"]["value"], 1)), "payment_invalid", Here),
    ("one atom less", Written(|p| plus(&mut p["payload"]["authorization"]["value"], -1)), "payment_invalid", Here),
    ("a later start", Written(|p| plus(&mut p["payload"]["authorization"]["validAfter"], 1)), "payment_invalid", There),
    ("a later end", Written(|p| plus(&mut p["payload"]["authorization"]["validBefore"], 1)), "payment_invalid", There),
    ("another nonce", Written(|p| flip(&mut p["payload"]["authorization"]["nonce"], 20)), "payment_invalid", There),
    ("another r", Written(|p| flip(&mut p["payload"]["signature"], 10)), "payment_invalid", There),
    ("another s", Written(|p| flip(&mut p["payload"]["signature"], 100)), "payment_invalid", There),
    ("the other v", Written(|p| flip(&mut p["payload"]["signature"], 131)), "payment_invalid", There),
    (
        "the other s of the same signature",
        Written(|p| mirrored(&mut p["payload"]["signature"])),
        "payment_invalid",
        Here,
    ),
    ("no signature", Written(|p| p["payload"]["signature"] = json!("0x")), "payment_invalid", Here),
    ("a signature that is none", Written(|p| p["payload"]["signature"] = json!("0xzz")), "malformed_credential", Here),
];

const PERMIT2: [Row<Permit>; 21] = [
    ("signed for another token", Signed(|p| p.token = SOMEBODY), "payment_invalid", Here),
    ("signed for one atom more", Signed(|p| p.amount += U256::ONE), "payment_invalid", Here),
    ("signed for one atom less", Signed(|p| p.amount -= U256::ONE), "payment_invalid", Here),
    ("signed for another payee", Signed(|p| p.to = SOMEBODY), "payment_invalid", Here),
    ("signed for another spender", Signed(|p| p.spender = SOMEBODY), "payment_invalid", Here),
    ("signed for the other scheme's proxy", Signed(|p| p.spender = other_proxy(p)), "payment_invalid", Here),
    ("good from a minute on", Signed(|p| p.valid_after = U256::from(now() + 60)), "payment_invalid", Here),
    ("good for ten seconds", Signed(|p| p.deadline = U256::from(now() + 10)), "payment_invalid", Here),
    ("expired", Signed(|p| p.deadline = U256::from(now() - 1)), "payment_invalid", Here),
    ("in somebody's name", Signed(|p| p.from = SOMEBODY), "payment_invalid", There),
    ("another payer", Written(|p| *permit(p, "from") = json!(SOMEBODY)), "payment_invalid", There),
    ("another token", Written(|p| permit(p, "permitted")["token"] = json!(SOMEBODY)), "payment_invalid", Here),
    ("one atom more", Written(|p| plus(&mut permit(p, "permitted")["amount"], 1)), "payment_invalid", Here),
    ("another payee", Written(|p| permit(p, "witness")["to"] = json!(SOMEBODY)), "payment_invalid", Here),
    ("another spender", Written(|p| *permit(p, "spender") = json!(SOMEBODY)), "payment_invalid", Here),
    ("a later start", Written(|p| plus(&mut permit(p, "witness")["validAfter"], 1)), "payment_invalid", There),
    ("a later end", Written(|p| plus(permit(p, "deadline"), 1)), "payment_invalid", There),
    ("another nonce", Written(|p| flip(permit(p, "nonce"), 70)), "payment_invalid", There),
    ("another r", Written(|p| flip(&mut p["payload"]["signature"], 10)), "payment_invalid", There),
    (
        "the other s of the same signature",
        Written(|p| mirrored(&mut p["payload"]["signature"])),
        "payment_invalid",
        Here,
    ),
    ("no signature", Written(|p| p["payload"]["signature"] = json!("0x")), "payment_invalid", Here),
];

/// Only `upto` says who may hand it in.
const UPTO: [Row<Permit>; 3] = [
    ("signed for another facilitator", Signed(|p| p.facilitator = Some(SOMEBODY)), "payment_invalid", Here),
    (
        "another facilitator",
        Written(|p| permit(p, "witness")["facilitator"] = json!(SOMEBODY)),
        "payment_invalid",
        Here,
    ),
    ("signed as if it were exact", Signed(|p| p.facilitator = None), "malformed_credential", Here),
];

fn permit<'a>(payment: &'a mut Value, member: &str) -> &'a mut Value {
    &mut payment["payload"]["permit2Authorization"][member]
}

fn other_proxy(permit: &Permit) -> Address {
    if permit.facilitator.is_some() { EXACT_PROXY } else { UPTO_PROXY }.parse().unwrap()
}

/// Signs what an offer asks for, with this nonce and a change.
type Sign<S> = fn(&EvmBed, &PrivateKeySigner, &Value, B256, &dyn Fn(&mut S)) -> Value;

fn authorize(
    bed: &EvmBed,
    by: &PrivateKeySigner,
    offer: &Value,
    nonce: B256,
    change: &dyn Fn(&mut TransferWithAuthorization),
) -> Value {
    bed.authorize(by, offer, |p| {
        p.nonce = nonce;
        change(p);
    })
}

fn permitted(bed: &EvmBed, by: &PrivateKeySigner, offer: &Value, nonce: B256, change: &dyn Fn(&mut Permit)) -> Value {
    bed.permit(by, offer, |p| {
        p.nonce = nonce.into();
        change(p);
    })
}

impl Fair {
    /// Each of them is refused with fresh offers, costs nobody anything, and leaves the payment it was made from as good as it was.
    async fn refuses<S: 'static>(
        &self,
        server: &str,
        price: u128,
        sign: Sign<S>,
        rows: impl IntoIterator<Item = Row<S>>,
    ) {
        let buyer = self.stall.buyer().await;
        for (why, wrong, code, noticed) in rows {
            let why = format!("{server}: {why}");
            let (offer, nonce) = (self.stall.offer(server, &chat()).await, B256::random());
            let payment = sign(&self.stall.chain, &buyer, &offer, nonce, &|_| ());
            let bad = match wrong {
                Signed(change) => sign(&self.stall.chain, &buyer, &offer, nonce, &change),
                Written(change) => {
                    let mut bad = payment.clone();
                    change(&mut bad);
                    bad
                }
            };
            assert_ne!(bad, payment, "{why}: nothing was changed");
            let (asked, served, earned) = (self.asked().await, self.stall.served(), self.stall.earned().await);
            assert_challenge(&self.stall.show(server, &bad, &chat()).await, code, &why);
            let asked = (asked.0 + u64::from(noticed == There), asked.1);
            assert_eq!((self.asked().await, self.stall.served()), (asked, served), "{why}");
            assert_eq!(self.stall.earned().await, earned, "{why}");
            self.sells_once(server, &payment, price, &why).await;
        }
    }
}

fn accepted<S: 'static>() -> impl Iterator<Item = Row<S>> {
    ACCEPTED.into_iter().map(|(why, change, code)| (why, Written(change), code, Here))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_with_one_field_changed_buys_nothing_and_the_true_one_is_still_good() {
    let fair = Fair::open().await;
    fair.refuses(server::EXACT, FLAT, authorize, EIP3009.into_iter().chain(accepted())).await;
    fair.refuses(server::PERMIT2, FLAT, permitted, PERMIT2.into_iter().chain(accepted())).await;
    fair.refuses(server::UPTO, METERED, permitted, PERMIT2.into_iter().chain(UPTO).chain(accepted())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_of_the_first_generation_is_looked_at_as_closely() {
    let fair = Fair::open().await;
    let buyer = fair.stall.buyer().await;
    let rows: [(&str, Change, &str, Noticed); 10] = [
        ("one atom more", |p| plus(&mut p["payload"]["authorization"]["value"], 1), "invalid_challenge", Here),
        ("one atom less", |p| plus(&mut p["payload"]["authorization"]["value"], -1), "invalid_challenge", Here),
        ("another payee", |p| p["payload"]["authorization"]["to"] = json!(SOMEBODY), "payment_invalid", Here),
        ("another payer", |p| p["payload"]["authorization"]["from"] = json!(SOMEBODY), "payment_invalid", There),
        ("another nonce", |p| flip(&mut p["payload"]["authorization"]["nonce"], 20), "payment_invalid", There),
        ("another r", |p| flip(&mut p["payload"]["signature"], 10), "payment_invalid", There),
        ("the other s", |p| mirrored(&mut p["payload"]["signature"]), "payment_invalid", Here),
        ("another network", |p| p["network"] = json!("base"), "invalid_challenge", Here),
        ("a network by its new name", |p| p["network"] = json!("eip155:84532"), "malformed_credential", Here),
        ("another scheme", |p| p["scheme"] = json!("upto"), "malformed_credential", Here),
    ];
    for (why, change, code, noticed) in rows {
        let offer = fair.stall.offer(server::EXACT, &chat()).await;
        let payment = as_v1(&fair.stall.chain.authorize(&buyer, &offer, |_| ()));
        let mut bad = payment.clone();
        change(&mut bad);
        let (asked, earned) = (fair.asked().await, fair.stall.earned().await);
        assert_challenge(&fair.show_v1(server::EXACT, &bad).await, code, why);
        assert_eq!(fair.asked().await, (asked.0 + u64::from(noticed == There), asked.1), "{why}");
        assert_eq!(fair.stall.earned().await, earned, "{why}");
        let reply = fair.show_v1(server::EXACT, &payment).await;
        assert_eq!((reply.status, fair.stall.earned().await - earned), (200, FLAT), "{why}: {}", reply.text());
    }
    let offer = fair.stall.offer(server::EXACT, &chat()).await;
    let payment = as_v1(&fair.stall.chain.authorize(&buyer, &offer, |_| ()));
    let asked = fair.asked().await;
    for server in [server::PERMIT2, server::UPTO] {
        assert_challenge(&fair.show_v1(server, &payment).await, "invalid_challenge", "not sold to v1 here");
    }
    assert_eq!(fair.asked().await, asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_in_no_form_or_in_two_is_told_so_and_nobody_is_asked() {
    let fair = Fair::open().await;
    let buyer = fair.stall.buyer().await;
    let (offer, path) = (fair.stall.offer(server::EXACT, &chat()).await, chat_at(server::EXACT));
    let payment = fair.stall.chain.authorize(&buyer, &offer, |_| ());
    let (v2, v1) = (encode(&payment), encode(&as_v1(&payment)));
    let json = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let deep = json(&format!("{{\"x402Version\":2,\"accepted\":{}{}", "[".repeat(4_000), "]".repeat(4_000)));
    let twice = json(&payment.to_string().replacen("\"x402Version\":2", "\"x402Version\":2,\"x402Version\":2", 1));
    let padded = json(&format!("{}{payment}", " ".repeat(16 * 1024)));
    let joined = format!("{v2}, {v2}");
    let long = "A".repeat(300_000);
    let malformed = (402, "malformed_credential");
    let two = (400, "two_credentials");
    let rows: Vec<Form<'_>> = vec![
        ("v1 in the header of v2", vec![(SIGNATURE, &v1)], malformed),
        ("v2 in the header of v1", vec![(X_PAYMENT, &v2)], malformed),
        ("nothing", vec![(SIGNATURE, "")], malformed),
        ("no base64", vec![(SIGNATURE, "{\"x402Version\":2}")], malformed),
        ("base64 of no JSON", vec![(SIGNATURE, "AAAA")], malformed),
        ("half of it", vec![(SIGNATURE, &v2[..v2.len() / 2])], malformed),
        ("null", vec![(SIGNATURE, "bnVsbA==")], malformed),
        ("a list in a list in a list", vec![(SIGNATURE, &deep)], malformed),
        ("a member twice", vec![(SIGNATURE, &twice)], malformed),
        ("larger than any payment is", vec![(SIGNATURE, &padded)], malformed),
        ("larger than any header is", vec![(SIGNATURE, &long)], malformed),
        ("both generations", vec![(SIGNATURE, &v2), (X_PAYMENT, &v1)], two),
        ("the same line twice", vec![(SIGNATURE, &v2), (SIGNATURE, &v2)], two),
        ("two in a line", vec![(SIGNATURE, &joined)], two),
        ("another protocol beside it", vec![("authorization", "Payment e30"), (SIGNATURE, &v2)], two),
    ];
    let before = fair.asked().await;
    for (why, headers, (status, name)) in rows {
        let reply = fair.stall.post(&path, &headers, &chat()).await;
        assert_eq!((reply.status, code(&reply).as_str()), (status, name), "{why}: {}", reply.text());
        match status {
            402 => assert_challenge(&reply, name, why),
            _ => assert_eq!(reply.header("payment-required"), None, "{why}"),
        }
    }
    // More than any server reads is for whoever reads first to refuse; what counts is the next request.
    let endless = "A".repeat(3 << 20);
    let bytes = raw::post(&path, &[(SIGNATURE, &endless)], chat().to_string().as_bytes());
    if let Some(reply) = raw::try_exchange(fair.stall.gate.listen, &bytes).await {
        assert!((400..500).contains(&reply.status), "{} {}", reply.status, reply.text());
    }
    assert_eq!((fair.asked().await, fair.stall.served()), (before, 0));
    fair.sells_once(server::EXACT, &payment, FLAT, "after all that").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_buys_what_it_was_made_for_and_nothing_else() {
    let chain = EvmBed::start().await;
    let facilitator = Facilitator::ts(&chain).await;
    let stall = Stall::with(chain, &facilitator.url(), |options| {
        let (models, tiers) = (options.rules["models.toml"].clone(), options.rules["tiers.toml"].clone());
        let other = models.replace("openai/gpt-oss-120b", "openai/other");
        let both = tiers.replace("\"openai/gpt-oss-120b\"", "\"openai/gpt-oss-120b\", \"openai/other\"");
        options.rule("models.toml", &format!("{models}\n{other}")).rule("tiers.toml", &both)
    })
    .await;
    // Another gate of the same payee, with keys of its own.
    let foreign = options(&stall.chain, &facilitator.url(), &stall.backend.url());
    let foreign = Gate::start(foreign.env("PONTAGE_CHALLENGE_KEY", "fedcba9876543210fedcba9876543210")).await;
    let fair = Fair { stall, facilitator };
    let stall = &fair.stall;
    let buyer = fair.stall.buyer().await;
    let offer = stall.offer(server::EXACT, &chat()).await;
    let payment = stall.chain.authorize(&buyer, &offer, |_| ());
    let first = stall.chain.authorize(&buyer, &stall.offer(server::FIRST, &chat()).await, |_| ());
    let foreign = raw::exchange(foreign.listen, &raw::post(&chat_at(""), &[], chat().to_string().as_bytes())).await;
    let foreign = stall.chain.authorize(&buyer, &common::x402::counter::accepts(&foreign)[0], |_| ());
    let mut longer = chat();
    longer["max_tokens"] = json!(64);
    let mut other = chat();
    other["model"] = json!("openai/other");
    let spaced = format!(" {}", chat());
    let before = fair.asked().await;
    for (why, server, payment, body) in [
        ("another body", server::EXACT, &payment, longer.to_string()),
        ("the same body, written otherwise", server::EXACT, &payment, spaced),
        ("another model", server::EXACT, &payment, other.to_string()),
        ("another path at the same price", server::FIRST, &payment, chat().to_string()),
        ("another path at the same price", server::EXACT, &first, chat().to_string()),
        ("a path that wants another signature", server::PERMIT2, &payment, chat().to_string()),
        ("a path of another price", server::UPTO, &payment, chat().to_string()),
        ("the offer of another gate", server::EXACT, &foreign, chat().to_string()),
    ] {
        let bytes = raw::post(&chat_at(server), &[(SIGNATURE, &encode(payment))], body.as_bytes());
        assert_challenge(&raw::exchange(stall.gate.listen, &bytes).await, "invalid_challenge", why);
    }
    assert_eq!((fair.asked().await, stall.served()), (before, 0));
    fair.sells_once(server::EXACT, &payment, FLAT, "after all that").await;
    fair.sells_once(server::FIRST, &first, FLAT, "after all that").await;
}

impl Fair {
    async fn small(&self, path: &str, header: (&str, &str)) -> RawReply {
        self.stall.post(path, &[header], &chat()).await
    }

    async fn show_v1(&self, server: &str, payment: &Value) -> RawReply {
        self.stall.post(&chat_at(server), &[(X_PAYMENT, &encode(payment))], &chat()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_copies_of_a_payment_at_once_one_is_served_and_one_is_settled() {
    let fair = Fair::open().await;
    let buyer = fair.stall.buyer().await;
    for (server, mixed, price) in [
        (server::EXACT, false, FLAT),
        (server::FIRST, false, FLAT),
        (server::UPTO, false, METERED),
        (server::PERMIT2, false, FLAT),
        // Both generations of the same authorization.
        (server::EXACT, true, FLAT),
        (server::FIRST, true, FLAT),
    ] {
        let why = format!("{server} {mixed}");
        let payment = fair.stall.payment(&buyer, server, &chat()).await;
        let (v2, v1) = (encode(&payment), encode(&as_v1(&payment)));
        let (asked, served, earned) = (fair.asked().await, fair.stall.served(), fair.stall.earned().await);
        let path = chat_at(server);
        let copies = (0..64).map(|i| {
            let header = if mixed && i % 2 == 1 { (X_PAYMENT, v1.as_str()) } else { (SIGNATURE, v2.as_str()) };
            fair.small(&path, header)
        });
        let replies = futures::future::join_all(copies).await;
        let (good, rest): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
        assert_eq!(good.len(), 1, "{why}");
        for reply in rest {
            let expected = if reply.status == 409 { "payment_in_use" } else { "payment_spent" };
            assert_final(&reply, &[403, 409], expected, &why);
        }
        let paid = eventually(Duration::from_secs(10), || async { fair.stall.earned().await >= earned + price });
        assert!(paid.await, "{why}: never settled");
        assert_eq!(fair.asked().await, (asked.0 + 1, asked.1 + 1), "{why}");
        assert_eq!((fair.stall.served(), fair.stall.earned().await), (served + 1, earned + price), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_bought_its_answer_buys_no_other_in_whatever_form_it_comes() {
    let fair = Fair::open().await;
    let buyer = fair.stall.buyer().await;
    for server in [server::EXACT, server::FIRST, server::PERMIT2, server::UPTO] {
        let payment = fair.stall.payment(&buyer, server, &chat()).await;
        fair.sells_once(server, &payment, if server == server::UPTO { METERED } else { FLAT }, server).await;
        let (asked, earned) = (fair.asked().await, fair.stall.earned().await);
        // Under a fresh offer, as somebody who read the signature on the chain would show it.
        let mut anew = payment.clone();
        anew["accepted"] = fair.stall.offer(server, &chat()).await;
        for (why, payment) in [("again", &payment), ("under another offer", &anew)] {
            assert_final(&fair.stall.show(server, payment, &chat()).await, &[403], "payment_spent", why);
        }
        if [server::EXACT, server::FIRST].contains(&server) {
            let reply = fair.show_v1(server, &as_v1(&payment)).await;
            assert_final(&reply, &[403], "payment_spent", "in the words of v1");
        }
        assert_eq!((fair.asked().await, fair.stall.earned().await), (asked, earned), "{server}");
    }
    assert_eq!(fair.stall.served(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paid_and_owed_is_redeemed_by_its_payer_and_not_by_who_reads_the_chain() {
    let fair = Fair::open().await;
    let buyer = fair.stall.buyer().await;
    let payment = fair.stall.payment(&buyer, server::FIRST, &chat()).await;
    let earned = fair.stall.earned().await;
    fair.stall.backend.next(Reply::reset());
    assert_final(
        &fair.stall.show(server::FIRST, &payment, &chat()).await,
        &[502],
        "upstream_failed",
        "the backend died",
    );
    assert_eq!(fair.stall.earned().await - earned, FLAT);
    // All of the signature is public now; the offer that it answered is not.
    let mut longer = chat();
    longer["max_tokens"] = json!(8);
    let mut theirs = payment.clone();
    theirs["accepted"] = fair.stall.offer(server::FIRST, &longer).await;
    let reply = fair.stall.show(server::FIRST, &theirs, &longer).await;
    assert_final(&reply, &[403], "payment_spent", "under an offer of one's own");
    let path = chat_at(server::FIRST);
    let reply = fair.stall.post(&path, &[(X_PAYMENT, &encode(&as_v1(&payment)))], &longer).await;
    assert_final(&reply, &[403], "payment_spent", "in the words of v1");
    let asked = fair.asked().await;
    let reply = fair.stall.show(server::FIRST, &payment, &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(told(&reply).unwrap()["success"], true);
    assert_final(&fair.stall.show(server::FIRST, &payment, &chat()).await, &[403], "payment_spent", "redeemed once");
    assert_eq!((fair.asked().await, fair.stall.earned().await - earned), (asked, FLAT));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_uses_up_the_limit_of_a_payer_with_signatures_that_he_did_not_make() {
    let bed = Brittle::with(|mut options| {
        let conf = options.conf.take().unwrap();
        options.conf =
            Some(conf.replace("[rail.base]\n", "[rail.base]\npayer_exposure = \"0.10\"\nceiling = \"0.10\"\n"));
        options
    })
    .await;
    let buyer = bed.stall.buyer().await;
    let forged = async || {
        let mut payment = bed.stall.payment(&buyer, server::EXACT, &chat()).await;
        flip(&mut payment["payload"]["signature"], 10);
        payment
    };
    let mut mine = Vec::new();
    for _ in 0..6 {
        mine.push(bed.stall.payment(&buyer, server::EXACT, &chat()).await);
    }
    // All that he may owe at a time, and more, in his name and not by him.
    let forged = futures::future::join_all((0..12).map(|_| forged())).await;
    for _ in &forged {
        bed.facilitator.next(VERIFY, Answer::Real.held());
    }
    let body = chat();
    let shown = futures::future::join_all(forged.iter().map(|payment| bed.stall.show(server::EXACT, payment, &body)));
    let (refused, ()) = tokio::join!(shown, async {
        bed.facilitator.asked(VERIFY, forged.len()).await;
        let reply = bed.stall.show(server::EXACT, &mine[0], &body).await;
        assert_eq!(reply.status, 200, "he has promised nothing: {}", reply.text());
        bed.facilitator.release();
    });
    for reply in refused {
        assert_challenge(&reply, "payment_invalid", "not signed by him");
    }
    // What he signed himself counts: five at a time.
    let asked = bed.asked().1;
    for _ in 0..5 {
        bed.facilitator.next(SETTLE, Answer::Real.held());
    }
    let shown =
        futures::future::join_all(mine[1..].iter().map(|payment| bed.stall.show(server::EXACT, payment, &body)));
    let (replies, ()) = tokio::join!(shown, async {
        let sixth = bed.stall.payment(&buyer, server::EXACT, &body).await;
        bed.facilitator.asked(SETTLE, asked + 5).await;
        let reply = bed.stall.show(server::EXACT, &sixth, &body).await;
        assert_eq!((reply.status, code(&reply).as_str()), (429, "payer_exposed"), "{}", reply.text());
        bed.facilitator.release();
    });
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_payment_where_money_is_taken_first_is_not_handed_in_and_the_true_one_is_still_good() {
    let fair = Fair::open().await;
    let buyer = fair.stall.buyer().await;
    for (why, at) in [("another r", 10), ("another s", 100), ("the other v", 131)] {
        let payment = fair.stall.payment(&buyer, server::FIRST, &chat()).await;
        let mut forged = payment.clone();
        flip(&mut forged["payload"]["signature"], at);
        let (asked, served, earned) = (fair.asked().await, fair.stall.served(), fair.stall.earned().await);
        let reply = fair.stall.show(server::FIRST, &forged, &chat()).await;
        assert_challenge(&reply, "payment_invalid", why);
        assert_eq!(fair.asked().await, (asked.0 + 1, asked.1), "{why}");
        assert_eq!((fair.stall.served(), fair.stall.earned().await), (served, earned), "{why}");
        fair.sells_once(server::FIRST, &payment, FLAT, why).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_without_money_leaves_nothing_behind_however_he_signs_and_is_served_once_he_has_some() {
    let mut fair = Fair::open().await;
    let mut streamed = chat();
    streamed["stream"] = json!(true);
    let mut signed = Vec::new();
    for (server, body) in [
        (server::EXACT, chat()),
        (server::EXACT, streamed.clone()),
        (server::FIRST, chat()),
        (server::PERMIT2, chat()),
        (server::PERMIT2, streamed.clone()),
        (server::UPTO, chat()),
        (server::UPTO, streamed),
    ] {
        let why = format!("{server} {}", body["stream"]);
        let stranger = fair.stall.chain.buyer(0).await;
        fair.stall.chain.approve_permit2(&stranger.address().to_string()).await;
        let payment = fair.stall.payment(&stranger, server, &body).await;
        let asked = fair.asked().await;
        for again in 1..=2 {
            assert_challenge(&fair.stall.show(server, &payment, &body).await, "payment_invalid", &why);
            assert_eq!(fair.asked().await, (asked.0 + again, asked.1), "{why}: asked about, and never handed in");
        }
        signed.push((server, stranger, payment, body, why));
    }
    assert_eq!((fair.stall.served(), fair.stall.earned().await), (0, 0));
    assert!(fair.stall.gate.stop().await.success());
    let (_, said, _) = fair.stall.gate.verb(&["audit", "--store", "var/pontage.redb"]);
    assert!(said.contains("journal   0 lines"), "something is written of it: {said}");
    fair.stall.gate.restart().await;
    for (server, stranger, payment, body, why) in signed {
        fair.stall.chain.fund(&stranger.address().to_string(), 1_000_000).await;
        let reply = fair.stall.show(server, &payment, &body).await;
        assert_eq!(reply.status, 200, "{why}: the same payment, when it is worth something: {}", reply.text());
    }
}
