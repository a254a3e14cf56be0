//! A wallet whose key is a passkey: vouchers signed as WebAuthn assertions, shown to the rail as any other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use ::mpp::protocol::methods::tempo::precompile_voucher::precompile_voucher_signing_hash_with_escrow;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256};

/// The order of P-256, and half of it.
const ORDER: &str = "0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
const AMOUNT: u128 = 75;

struct Passkey(EcdsaKeyPair);

impl Passkey {
    fn new() -> Self {
        let (rng, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(kind, &rng).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(kind, key.as_ref(), &rng).unwrap())
    }

    /// The two coordinates of its public key.
    fn point(&self) -> Vec<u8> {
        self.0.public_key().as_ref()[1..].to_vec()
    }

    fn address(&self) -> Address {
        Address::from_slice(&keccak256(self.point())[12..])
    }

    /// A signature over SHA-256 of a message, `s` in the half asked for.
    fn sign(&self, message: &[u8], high: bool) -> Vec<u8> {
        let mut signature = self.0.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec();
        let (order, s) = (ORDER.parse::<U256>().unwrap(), U256::from_be_slice(&signature[32..]));
        if (s > order >> 1usize) != high {
            signature[32..].copy_from_slice(&(order - s).to_be_bytes::<32>());
        }
        signature
    }
}

/// What an authenticator signs.
struct Assertion {
    authenticator: Vec<u8>,
    client: String,
}

impl Assertion {
    /// As a browser makes it for this digest: the user was there and was verified.
    fn of(digest: B256) -> Self {
        let mut authenticator = Sha256::digest(b"wallet.test").to_vec();
        authenticator.push(0x05);
        authenticator.extend_from_slice(&[0, 0, 0, 7]);
        let challenge = URL_SAFE_NO_PAD.encode(digest);
        let client = format!(
            r#"{{"type":"webauthn.get","challenge":"{challenge}","origin":"https://wallet.test","crossOrigin":false}}"#
        );
        Self { authenticator, client }
    }

    fn message(&self) -> Vec<u8> {
        [&self.authenticator[..], &Sha256::digest(&self.client)].concat()
    }

    /// The signature as TIP-1020 has it: kind, authenticator data, client data, r, s, x, y.
    fn sealed(&self, key: &Passkey, high: bool) -> Vec<u8> {
        let signature = key.sign(&self.message(), high);
        [&[2], &self.authenticator[..], self.client.as_bytes(), &signature, &key.point()].concat()
    }
}

/// A channel whose vouchers this key signs.
fn parties(key: &Passkey, named: bool) -> Parties {
    Parties {
        payer: if named { Address::repeat_byte(3) } else { key.address() },
        payee: PAYEE.parse().unwrap(),
        operator: Address::ZERO,
        token: TOKEN.parse().unwrap(),
        salt: B256::repeat_byte(4),
        authorized_signer: if named { key.address() } else { Address::ZERO },
        nonce_hash: B256::repeat_byte(6),
    }
}

fn digest(parties: &Parties, amount: u128) -> B256 {
    precompile_voucher_signing_hash_with_escrow(parties.id(CHAIN), amount, RESERVE, CHAIN).unwrap()
}

impl Bench {
    fn show(&self, parties: &Parties, action: &str, amount: u128, signature: &[u8]) -> Result<Presented, Refusal> {
        let now = recorded_time();
        let payload = json!({
            "action": action,
            "channelId": channel_id(parties.id(CHAIN)),
            "descriptor": parties.descriptor(),
            "cumulativeAmount": amount.to_string(),
            "signature": format!("0x{}", hex::encode(signature)),
        });
        let credential = PaymentCredential {
            challenge: self.challenge(now, 300).to_echo(),
            source: Some(format!("did:pkh:eip155:{CHAIN}:{}", parties.payer)),
            payload,
        };
        self.present(&credential, now)
    }
}

#[tokio::test]
async fn a_passkeys_voucher_pays_and_closes_like_any_other() {
    let (bench, key) = (bench(false).await, Passkey::new());
    for (named, who) in [(false, "the payer is the passkey"), (true, "the payer names the passkey as his signer")] {
        let parties = parties(&key, named);
        let signed = Assertion::of(digest(&parties, AMOUNT)).sealed(&key, false);
        let kept = Voucher { amount: Atoms(AMOUNT), signature: format!("0x{}", hex::encode(&signed)) };
        for (action, want) in
            [("voucher", Action::Voucher(kept.clone())), ("close", Action::Close { voucher: kept, agreed: false })]
        {
            let shown = bench.show(&parties, action, AMOUNT, &signed).unwrap_or_else(|e| panic!("{who}: {e:?}"));
            assert_eq!(shown.action, want, "{who}: kept in the bytes that the chain checks");
            assert_eq!(shown.channel, channel_id(parties.id(CHAIN)), "{who}");
        }
    }
    assert_eq!(bench.asked.0.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn not_one_byte_of_a_passkeys_voucher_can_be_changed() {
    let (bench, key) = (bench(false).await, Passkey::new());
    let parties = parties(&key, true);
    let signed = Assertion::of(digest(&parties, AMOUNT)).sealed(&key, false);
    for at in 0..signed.len() {
        for bit in [0x01, 0x80] {
            let mut bad = signed.clone();
            bad[at] ^= bit;
            let got = bench.show(&parties, "voucher", AMOUNT, &bad);
            assert!(got.is_err(), "byte {at} of {}, bit {bit:#x}: {got:?}", signed.len());
        }
    }
    for (bad, why) in [
        ([&signed[..], &[0]].concat(), "a tail"),
        (signed[..signed.len() - 1].to_vec(), "a byte short"),
        ([&[4][..], &[9; 20], &signed].concat(), "wrapped for a key chain"),
        ([&[2][..], &signed].concat(), "its kind twice"),
    ] {
        assert!(bench.show(&parties, "voucher", AMOUNT, &bad).is_err(), "{why}");
    }
    let other = Parties { salt: B256::ZERO, ..parties };
    assert!(bench.show(&other, "voucher", AMOUNT, &signed).is_err(), "another channel of the same key");
    assert!(bench.show(&parties, "voucher", AMOUNT + 1, &signed).is_err(), "another amount");
}

#[tokio::test]
async fn what_a_passkey_signed_counts_only_as_an_assertion_over_this_voucher() {
    let (bench, key) = (bench(false).await, Passkey::new());
    let parties = parties(&key, false);
    let good = digest(&parties, AMOUNT);
    let encoded = URL_SAFE_NO_PAD.encode(good);
    type Change = Box<dyn Fn(&mut Assertion)>;
    let flags = |flags: u8| -> Change { Box::new(move |a| a.authenticator[32] = flags) };
    let client = |text: String| -> Change { Box::new(move |a| a.client.clone_from(&text)) };
    let swap =
        |from: &'static str, to: &'static str| -> Change { Box::new(move |a| a.client = a.client.replace(from, to)) };
    let rows: Vec<(Change, bool, &str)> = vec![
        (Box::new(|_| ()), true, "as a browser makes it"),
        (flags(0x01), true, "present, not verified"),
        (flags(0x04), true, "verified is present"),
        (flags(0x1d), true, "a key that is backed up"),
        (flags(0x00), false, "nobody was there"),
        (flags(0x45), false, "attested data belongs to a registration"),
        (flags(0x85), false, "extensions, which the chain does not read"),
        (Box::new(|a| a.authenticator[0] ^= 1), true, "whose site it was is the wallet's affair"),
        (Box::new(|a| a.authenticator[36] = 9), true, "a later count"),
        (Box::new(|a| a.authenticator.truncate(36)), false, "a byte of the count is missing"),
        (Box::new(|a| a.authenticator.push(0)), false, "a byte too many before the client's words"),
        (swap("webauthn.get", "webauthn.create"), false, "a registration"),
        (swap("webauthn.get", "payment.get"), false, "another kind"),
        (client(format!(r#"{{"type":"webauthn.get","challenge":"{encoded}"}}"#)), true, "only what is needed"),
        (client(format!(r#"{{"challenge":"{encoded}"}}"#)), false, "no kind"),
        (client(r#"{"type":"webauthn.get"}"#.to_owned()), false, "no challenge"),
        (client(format!(r#"{{"type":"webauthn.get","challenge":"{encoded}="}}"#)), false, "padded"),
        (client(format!(r#"{{"type":"webauthn.get","challenge":"0x{}"}}"#, hex::encode(good))), false, "in hex"),
        (
            client(format!(
                r#"{{"type":"webauthn.get","challenge":"{}"}}"#,
                URL_SAFE_NO_PAD.encode(digest(&parties, 76))
            )),
            false,
            "over another amount",
        ),
        (
            client(format!(r#"{{"type":"webauthn.get","challenge":"{encoded}","challenge":"{encoded}"}}"#)),
            false,
            "said twice",
        ),
        (client("webauthn.get".repeat(8)), false, "no JSON"),
        (
            client(format!(r#"{{"type":"webauthn.get","challenge":"{encoded}","origin":"{}"}}"#, "a".repeat(700))),
            true,
            "origins as long as two hosts' names",
        ),
        (
            client(format!(r#"{{"type":"webauthn.get","challenge":"{encoded}","origin":"{}"}}"#, "a".repeat(900))),
            false,
            "longer than any: it would be kept with every voucher",
        ),
    ];
    for (change, taken, why) in rows {
        let mut assertion = Assertion::of(good);
        change(&mut assertion);
        let signed = assertion.sealed(&key, false);
        let got = bench.show(&parties, "voucher", AMOUNT, &signed);
        assert_eq!(got.is_ok(), taken, "{why}: {got:?}");
        let high = assertion.sealed(&key, true);
        assert!(bench.show(&parties, "voucher", AMOUNT, &high).is_err(), "the upper half: {why}");
    }
    let stranger = Passkey::new();
    let signed = Assertion::of(good).sealed(&stranger, false);
    assert_eq!(bench.show(&parties, "voucher", AMOUNT, &signed), Err(Refusal::SignerMismatch), "another passkey");
}

#[tokio::test]
async fn a_plain_p_256_voucher_says_how_it_was_hashed() {
    let (bench, key) = (bench(false).await, Passkey::new());
    let parties = parties(&key, true);
    let plain = |kind: u8, high: bool, hashed: u8| {
        let signature = key.sign(digest(&parties, AMOUNT).as_slice(), high);
        [&[kind], &signature[..], &key.point(), &[hashed]].concat()
    };
    for (signed, taken, why) in [
        (plain(1, false, 1), true, "hashed once more, as browsers do"),
        (plain(1, false, 0), false, "it was, and says it was not"),
        (plain(1, false, 2), false, "another spelling of yes"),
        (plain(1, true, 1), false, "the upper half"),
        (plain(2, false, 1), false, "another kind"),
    ] {
        let got = bench.show(&parties, "voucher", AMOUNT, &signed);
        assert_eq!(got.is_ok(), taken, "{why}: {got:?}");
    }
}
