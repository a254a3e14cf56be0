//! What is signed, against what the published clients signed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::rail::x402::sample::{Asked, GOLDENS, Golden};
use crate::rail::x402::wire::matches;
use proptest::prelude::*;

/// A change to what was signed or to what was asked.
type Change = fn(&mut Signed, &mut Asked);

#[test]
fn what_the_published_clients_sign_is_proven() {
    for name in GOLDENS {
        let golden = Golden::read(name);
        let (payment, asked) = (golden.payment(), golden.asked());
        assert_eq!(check(&payment.signed, &asked.wanted()), Ok(Standing::Proven), "{name}");
        assert_eq!(matches(&payment, &golden.entry), Ok(()), "{name}");
        let payer = match golden.entry.network.chain_id() {
            Some(_) => golden.payer.to_ascii_lowercase(),
            None => golden.payer.clone(),
        };
        assert_eq!(payment.signed.payer(), Some(payer), "{name}");
        let lives = payment.signed.until().map(|until| until.0 - golden.at);
        assert!(lives.is_none_or(|seconds| (299..=301).contains(&seconds)), "{name}: {lives:?}");
        assert_eq!(lives.is_none(), golden.entry.network.chain_id().is_none(), "{name}");
    }
}

fn authorization(signed: &mut Signed) -> &mut Eip3009 {
    match signed {
        Signed::Eip3009(a) => a,
        _ => panic!("another method"),
    }
}

fn permit(signed: &mut Signed) -> &mut Permit2 {
    match signed {
        Signed::Permit2(p) => p,
        _ => panic!("another method"),
    }
}

/// `Err`: part of the sentence; `Ok`: what is known.
fn outcome(name: &str, change: Change) -> Result<Standing, String> {
    let golden = Golden::read(name);
    let (mut signed, mut asked) = (golden.payment().signed, golden.asked());
    change(&mut signed, &mut asked);
    check(&signed, &asked.wanted())
}

#[test]
fn a_payment_that_differs_from_what_was_asked_is_refused_with_both_values() {
    let table: &[(&str, Change, &[&str], &str)] = &[
        ("exact-eip3009", |_, a| a.entry.amount.0 += 1, &["20000", "20001"], "one atom too little"),
        ("exact-eip3009", |_, a| a.entry.amount.0 -= 1, &["20000", "19999"], "one atom too much"),
        ("exact-eip3009", |s, _| authorization(s).value.0 += 1, &["20001", "20000"], "another amount"),
        ("exact-eip3009", |s, _| authorization(s).value.0 += 1 << 64, &["18446744073709571616"], "the same in 64 bits"),
        ("exact-eip3009", |s, _| authorization(s).to = PERMIT2, &["0x000000000022d4", "0xf39fd6"], "another payee"),
        (
            "exact-eip3009",
            |s, _| {
                let a = authorization(s);
                std::mem::swap(&mut a.from, &mut a.to);
            },
            &["0x709979", "0xf39fd6"],
            "payer and payee swapped",
        ),
        ("exact-eip3009", |_, a| a.now.0 += 101, &["good until"], "one second too short a life"),
        ("exact-eip3009", |s, a| authorization(s).valid_before = a.now.0 - 1, &["good until"], "expired"),
        ("exact-eip3009", |s, a| authorization(s).valid_after = a.now.0 + 1, &["good from"], "not good yet"),
        (
            "exact-eip3009",
            |s, a| authorization(s).valid_before = a.now.0 + a.lasts + LONGEST_SECONDS + 1,
            &["may be until"],
            "a second too long a life",
        ),
        ("upto", |s, _| permit(s).deadline = u64::MAX, &["may be until"], "a life without end"),
        ("exact-eip3009", |_, a| a.permit2 = true, &["Permit2 was offered"], "another method"),
        ("exact-eip3009", |_, a| a.entry.scheme = Scheme::Upto, &["Permit2 was offered"], "exact for upto"),
        (
            "exact-eip3009",
            |_, a| a.entry.network = Network::parse("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1").unwrap(),
            &["solana"],
            "another family",
        ),
        ("exact-permit2", |_, a| a.permit2 = false, &["own authorization was offered"], "another method"),
        ("exact-permit2", |s, _| permit(s).amount.0 -= 1, &["19999", "20000"], "one atom too little"),
        ("exact-permit2", |s, _| permit(s).amount.0 += 1, &["20001", "20000"], "one atom too much"),
        (
            "exact-permit2",
            |s, _| permit(s).token = PERMIT2,
            &["token", "0x000000000022d4", "0x036cbd"],
            "another token",
        ),
        ("exact-permit2", |s, _| permit(s).to = PERMIT2, &["payee", "0x000000000022d4", "0xf39fd6"], "another payee"),
        (
            "exact-permit2",
            |s, _| permit(s).spender = UPTO_PROXY,
            &["spender", "0x4020a4", "0x402085"],
            "the other proxy",
        ),
        ("exact-permit2", |s, a| permit(s).deadline = a.now.0 + 199, &["good until"], "one second too short a life"),
        ("exact-permit2", |s, a| permit(s).valid_after = a.now.0 + 1, &["good from"], "not good yet"),
        ("exact-permit2", |_, a| a.entry.scheme = Scheme::Upto, &["no facilitator"], "exact for upto"),
        ("upto", |s, _| permit(s).amount.0 += 1, &["20001", "20000"], "another ceiling"),
        ("upto", |s, _| permit(s).spender = EXACT_PROXY, &["0x402085", "0x4020a4"], "the other proxy"),
        (
            "upto",
            |s, _| permit(s).facilitator = Some(PERMIT2),
            &["0x000000000022d4", "not ours"],
            "a stranger may hand it in",
        ),
        ("upto", |_, a| a.facilitators.clear(), &["0x90f79b", "not ours"], "nobody of ours is left"),
        ("upto", |_, a| a.entry.scheme = Scheme::Exact, &["names a facilitator"], "upto for exact"),
    ];
    for (name, change, words, why) in table {
        let error = outcome(name, *change).expect_err(why);
        for word in *words {
            assert!(error.contains(word), "{name}: {why}: {error}");
        }
    }
}

#[test]
fn a_signature_of_something_else_proves_nothing() {
    let table: &[(&str, Change, &str)] = &[
        ("exact-eip3009", |s, _| authorization(s).from = PERMIT2, "another payer"),
        ("exact-eip3009", |s, _| authorization(s).nonce.0[31] ^= 1, "another nonce"),
        ("exact-eip3009", |s, _| authorization(s).valid_after = 1, "another beginning"),
        ("exact-eip3009", |s, _| authorization(s).valid_before += 1, "another end"),
        (
            "exact-eip3009",
            |s, a| {
                authorization(s).value.0 += 1;
                a.entry.amount.0 += 1;
            },
            "another amount, asked for",
        ),
        ("exact-eip3009", |_, a| a.entry.network = Network::parse("eip155:84532").unwrap(), "another chain"),
        ("exact-eip3009", |_, a| a.asset.name = "USDC".into(), "another domain name"),
        ("exact-eip3009", |_, a| a.asset.version = "1".into(), "another domain version"),
        ("exact-eip3009", |_, a| a.asset.address = a.entry.pay_to.clone(), "another token"),
        ("exact-permit2", |s, _| permit(s).from = PERMIT2, "another payer"),
        ("exact-permit2", |s, _| permit(s).nonce += U256::from(1), "another nonce"),
        ("exact-permit2", |s, _| permit(s).deadline += 1, "another end"),
        ("exact-permit2", |s, _| permit(s).valid_after = 1, "another beginning"),
        ("exact-permit2", |_, a| a.entry.network = Network::parse("eip155:8453").unwrap(), "another chain"),
        (
            "exact-permit2",
            |s, a| {
                permit(s).token = PERMIT2;
                a.asset.address = PERMIT2.to_string();
            },
            "another token, asked for",
        ),
        (
            "upto",
            |s, a| {
                permit(s).facilitator = Some(PERMIT2);
                a.facilitators = vec![PERMIT2.to_string()];
            },
            "another facilitator, one of ours",
        ),
        ("upto", |s, _| permit(s).valid_after = 1, "another beginning"),
        ("upto", |s, _| permit(s).nonce += U256::from(1), "another nonce"),
        (
            "exact-eip3009",
            |s, _| {
                let mut bytes = authorization(s).signature.to_vec();
                bytes[64] ^= 27 ^ 28;
                authorization(s).signature = bytes.into();
            },
            "the other parity",
        ),
    ];
    for (name, change, why) in table {
        assert_eq!(outcome(name, *change), Ok(Standing::Contract), "{name}: {why}");
    }
}

#[test]
fn a_payment_is_good_from_its_first_second_to_the_last_that_is_needed() {
    for name in ["exact-eip3009", "exact-permit2", "upto"] {
        let (signed, mut asked) = (Golden::read(name).payment().signed, Golden::read(name).asked());
        let until = signed.until().unwrap().0;
        asked.now = UnixSeconds(until - asked.lasts);
        assert_eq!(check(&signed, &asked.wanted()), Ok(Standing::Proven), "{name}: exactly long enough");
        asked.now = UnixSeconds(until - asked.lasts + 1);
        assert!(check(&signed, &asked.wanted()).is_err(), "{name}: a second too short");
        asked.now = UnixSeconds(until - 1);
        asked.lasts = u64::MAX;
        assert!(check(&signed, &asked.wanted()).is_err(), "{name}: nothing is good for ever");
    }
    // A beginning that was changed is no longer what was signed; the clock has nothing against it.
    let from_now_on: &[(&str, Change)] = &[
        ("exact-eip3009", |s, a| authorization(s).valid_after = a.now.0),
        ("exact-permit2", |s, a| permit(s).valid_after = a.now.0),
    ];
    for (name, change) in from_now_on {
        assert_eq!(outcome(name, *change), Ok(Standing::Contract), "{name}");
    }
}

#[test]
fn facilitators_and_addresses_may_be_written_in_any_case() {
    let lower = |text: &mut String| *text = text.to_ascii_lowercase();
    let golden = Golden::read("upto");
    let mut asked = golden.asked();
    lower(&mut asked.asset.address);
    lower(&mut asked.entry.pay_to);
    asked.facilitators.iter_mut().for_each(lower);
    asked.facilitators.insert(0, "not an address".to_owned());
    assert_eq!(check(&golden.payment().signed, &asked.wanted()), Ok(Standing::Proven));
}

/// The order of the curve.
const ORDER: U256 =
    U256::from_be_bytes(alloy::hex!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));

#[test]
fn a_plain_signature_has_one_form_and_anything_else_is_for_the_chain_to_say() {
    let mirrored = |bytes: &[u8]| {
        let s = ORDER - U256::from_be_slice(&bytes[32..64]);
        [&bytes[..32], &s.to_be_bytes::<32>(), &[bytes[64] ^ 27 ^ 28]].concat()
    };
    let golden = Golden::read("exact-eip3009");
    let made = authorization(&mut golden.payment().signed).signature.to_vec();
    let with_v = |v: u8| [&made[..64], &[v]].concat();
    for (signature, want, why) in [
        (made.clone(), Ok(Standing::Proven), "as made"),
        (with_v(made[64] - 27), Ok(Standing::Proven), "parity as 0 or 1"),
        (mirrored(&made), Err("upper half"), "its mirror image: a second signature of the same"),
        (with_v(made[64] + 4), Ok(Standing::Contract), "a wallet's own mark in v"),
        (made[..64].to_vec(), Ok(Standing::Contract), "64 bytes (EIP-2098): tokens do not take them of plain accounts"),
        ([&made[..], &[0]].concat(), Ok(Standing::Contract), "66 bytes"),
        (vec![0; 65], Ok(Standing::Contract), "no point"),
        (vec![0xff; 65], Ok(Standing::Contract), "no number of the curve"),
        (vec![7; MAX_SIGNATURE], Ok(Standing::Contract), "a wallet's bundle"),
        (vec![7; MAX_SIGNATURE + 1], Err("8193 bytes"), "too long"),
        (vec![], Err("no signature"), "nothing"),
    ] {
        let mut signed = golden.payment().signed;
        authorization(&mut signed).signature = signature.into();
        let got = check(&signed, &golden.asked().wanted());
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{why}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{why}: {got}"),
            (got, want) => panic!("{why}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn a_key_names_what_is_spent_once() {
    let network = |id: &str| Network::parse(id).unwrap();
    let base = network("eip155:8453");
    let key = |signed: &Signed, asset: &str| signed.key(&base, asset).0;
    let a = Golden::read("exact-eip3009").payment().signed;
    let usdc = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
    assert_eq!(
        key(&a, usdc),
        "x402:eip155:8453:0x833589fcd6edb6e08f4c7c32d4f71b54bda02913:0x70997970c51812dc3a010c7d01b50e0d17dc79c8:\
         0x50e28c444cc5f8d25a4dfe6fcfa63dd3120a759dfd6755f170f884034626cc87"
    );
    assert_eq!(key(&a, usdc), key(&a, &usdc.to_ascii_lowercase()), "case is no second proof");
    let changed = |change: fn(&mut Eip3009)| {
        let mut signed = Golden::read("exact-eip3009").payment().signed;
        change(authorization(&mut signed));
        key(&signed, usdc)
    };
    assert_eq!(key(&a, usdc), changed(|a| a.signature = Bytes::from(vec![1])), "another signature of the same nonce");
    assert_eq!(key(&a, usdc), changed(|a| a.value.0 += 1), "another amount under the same nonce");
    assert_ne!(key(&a, usdc), changed(|a| a.nonce.0[0] ^= 1), "another nonce");
    assert_ne!(key(&a, usdc), changed(|a| a.from = PERMIT2), "another payer");
    assert_ne!(key(&a, usdc), key(&a, "0x036CbD53842c5426634e7929541eC2318f3dCF7e"), "another token counts for itself");
    assert_ne!(a.key(&base, usdc), a.key(&network("eip155:84532"), usdc), "another chain");

    let mut p = Golden::read("exact-permit2").payment().signed;
    assert_eq!(key(&p, "a"), key(&p, "b"), "Permit2 counts its nonces for all tokens");
    permit(&mut p).nonce = U256::from(0xABCD);
    let nonce = format!("{}abcd", "0".repeat(60));
    assert_eq!(key(&p, usdc), format!("x402:eip155:8453:permit2:0x70997970c51812dc3a010c7d01b50e0d17dc79c8:{nonce}"));

    let devnet = network("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1");
    let Signed::Solana(bytes) = Golden::read("exact-solana").payment().signed else { panic!("another method") };
    let solana = |bytes: Vec<u8>| Signed::Solana(bytes).key(&devnet, "").0;
    let one = solana(bytes.clone());
    assert!(one.starts_with("x402:solana:etwtrabzayq6imfeykouru166vu2xqa1:"), "{one}");
    assert_eq!(one.len(), "x402:solana:etwtrabzayq6imfeykouru166vu2xqa1:".len() + 64);
    let at = |place: usize| {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1;
        solana(bytes)
    };
    assert_eq!(one, at(1), "whoever pays the fee signs too");
    assert_eq!(one, at(70), "a second signature of the same message");
    assert_ne!(one, at(bytes.len() - 2), "another message");
}

proptest! {
    #[test]
    fn no_transaction_makes_the_reader_fail(bytes in proptest::collection::vec(any::<u8>(), 0..1300), place in 0usize..600, with in any::<u8>()) {
        let asked = Golden::read("exact-solana").asked();
        let Signed::Solana(mut real) = Golden::read("exact-solana").payment().signed else { panic!("another method") };
        prop_assert!(check(&Signed::Solana(bytes.clone()), &asked.wanted()).is_err());
        let _ = Signed::Solana(bytes).payer();
        let place = place % real.len();
        prop_assume!(real[place] != with && !(1..65).contains(&place));
        real[place] = with;
        prop_assert!(check(&Signed::Solana(real), &asked.wanted()).is_err(), "byte {} may be {}", place, with);
    }
}
