//! x402 under attack: whatever is changed, mixed, copied or replayed, one payment buys one answer, and what is not exactly what was
//! offered buys none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::{Address, B256, U256, address};
use common::x402::counter::{assert_challenge, chat};
use common::x402::served::Calls;
use common::x402::stall::{FLAT, server};
use common::x402::{Stall, TransferWithAuthorization};
use common::{EvmBed, Facilitator, eventually};
use mpp::PrivateKeySigner;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SOMEBODY: Address = address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906");

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

    /// Who may pay under Permit2 as well.
    async fn buyer(&self) -> PrivateKeySigner {
        let buyer = self.stall.chain.buyer(20_000_000).await;
        self.stall.chain.approve_permit2(&buyer.address().to_string()).await;
        buyer
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
    Written(fn(&mut Value)),
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
const ACCEPTED: [(&str, fn(&mut Value), &str); 19] = [
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

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_with_one_field_changed_buys_nothing_and_the_true_one_is_still_good() {
    let fair = Fair::open().await;
    let buyer = fair.buyer().await;
    let accepted = ACCEPTED.iter().map(|(why, change, code)| (*why, Written(*change), *code, Here));
    for (why, wrong, code, noticed) in EIP3009.into_iter().chain(accepted) {
        let (offer, nonce) = (fair.stall.offer(server::EXACT, &chat()).await, B256::random());
        let payment = fair.stall.chain.authorize(&buyer, &offer, |p| p.nonce = nonce);
        let bad = match wrong {
            Signed(change) => fair.stall.chain.authorize(&buyer, &offer, |p| {
                p.nonce = nonce;
                change(p);
            }),
            Written(change) => {
                let mut bad = payment.clone();
                change(&mut bad);
                bad
            }
        };
        let before = (fair.asked().await, fair.stall.served(), fair.stall.earned().await);
        assert_challenge(&fair.stall.show(server::EXACT, &bad, &chat()).await, code, why);
        let asked = u64::from(noticed == There);
        let after = (before.0.0 + asked, before.0.1);
        assert_eq!(
            (fair.asked().await, fair.stall.served(), fair.stall.earned().await),
            (after, before.1, before.2),
            "{why}"
        );
        fair.sells_once(server::EXACT, &payment, FLAT, why).await;
    }
}
