//! Vouchers and channel ids, pure: what a descriptor's id is, what a voucher's signer signed, and whether he did.
//!
//! The channel's id commits to its parties, token, chain and escrow; the voucher's digest commits to the id, and to chain and escrow
//! once more (EIP-712 domain `TIP20 Channel Reserve` 1). Both are computed from our own configuration and the descriptor, never
//! from what a credential says about them. Signatures are TIP-1020 primitives: 65 bytes of secp256k1, which the C library checks,
//! or P-256 and WebAuthn, which the `mpp` crate does. One form of each is kept: the one the chain takes.

use crate::chain::reserve::RESERVE;
use crate::chain::{Address, B256};
use crate::channel::{ChannelId, Descriptor, Voucher};
use crate::money::Atoms;
use crate::rail::recover::{self, Unreadable, recover};
use crate::refusal::Refusal;
use ::mpp::protocol::methods::tempo::precompile_voucher::{
    compute_precompile_channel_id_with_escrow, precompile_close_authorization_signing_hash_with_escrow,
    verify_precompile_voucher_signature,
};
use alloy::primitives::{U256, keccak256};
use alloy::sol_types::eip712_domain;
use serde::Deserialize;
use std::sync::{LazyLock, PoisonError, RwLock};
use tempo_alloy::primitives::transaction::{PrimitiveSignature, TempoSignature};

/// Longest signature that is looked at, and kept with every voucher. A WebAuthn one has 129 bytes, 37 of the authenticator and what the
/// browser says: the challenge and one or two origins, each no longer than a host's name.
const MAX_SIGNATURE: usize = 1024;

/// A descriptor with values instead of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// Whose deposit it is.
    pub payer: Address,
    /// Whose money it becomes.
    pub payee: Address,
    /// Who may settle beside the payee.
    pub operator: Address,
    /// The token.
    pub token: Address,
    /// Of the payer's choice.
    pub salt: B256,
    /// Who signs vouchers, or zero.
    pub authorized_signer: Address,
    /// Ties the id to the opening transaction.
    pub nonce_hash: B256,
}

/// A descriptor as the wire has it; a member that we do not know is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written {
    payer: String,
    payee: String,
    operator: String,
    token: String,
    salt: String,
    authorized_signer: String,
    expiring_nonce_hash: String,
}

impl Written {
    /// For a record, once [`Parties::read`] could read it: the same words in lower case.
    pub(super) fn descriptor(self) -> Descriptor {
        Descriptor {
            payer: lowered(self.payer),
            payee: lowered(self.payee),
            operator: lowered(self.operator),
            token: lowered(self.token),
            salt: lowered(self.salt),
            authorized_signer: lowered(self.authorized_signer),
            expiring_nonce_hash: lowered(self.expiring_nonce_hash),
        }
    }
}

/// In place.
fn lowered(mut word: String) -> String {
    word.make_ascii_lowercase();
    word
}

impl Parties {
    /// Reads a descriptor: `0x` and hex in any case. `None` when a word is anything else.
    pub(super) fn read(written: &Written) -> Option<Self> {
        Some(Self {
            payer: word(&written.payer)?,
            payee: word(&written.payee)?,
            operator: word(&written.operator)?,
            token: word(&written.token)?,
            salt: word(&written.salt)?,
            authorized_signer: word(&written.authorized_signer)?,
            nonce_hash: word(&written.expiring_nonce_hash)?,
        })
    }

    /// From a record. `None` for one that we did not write.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        Some(Self {
            payer: word(&descriptor.payer)?,
            payee: word(&descriptor.payee)?,
            operator: word(&descriptor.operator)?,
            token: word(&descriptor.token)?,
            salt: word(&descriptor.salt)?,
            authorized_signer: word(&descriptor.authorized_signer)?,
            nonce_hash: word(&descriptor.expiring_nonce_hash)?,
        })
    }

    /// As a record has it.
    #[cfg(test)]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            payer: lower(self.payer),
            payee: lower(self.payee),
            operator: lower(self.operator),
            token: lower(self.token),
            salt: format!("{:#x}", self.salt),
            authorized_signer: lower(self.authorized_signer),
            expiring_nonce_hash: format!("{:#x}", self.nonce_hash),
        }
    }

    /// The channel's id on a chain.
    pub fn id(&self, chain_id: u64) -> B256 {
        compute_precompile_channel_id_with_escrow(
            self.payer,
            self.payee,
            self.operator,
            self.token,
            self.salt,
            self.authorized_signer,
            self.nonce_hash,
            RESERVE,
            chain_id,
        )
    }

    /// Who must have signed its vouchers.
    pub fn signer(&self) -> Address {
        if self.authorized_signer.is_zero() { self.payer } else { self.authorized_signer }
    }
}

/// `0x` and lower-case hex.
pub fn lower(address: Address) -> String {
    format!("{address:#x}")
}

/// A record's id.
pub fn channel_id(id: B256) -> ChannelId {
    ChannelId(format!("{id:#x}"))
}

/// A whole word of `0x` and hex digits: the standard reader would take less.
fn word<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = text.strip_prefix("0x")?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| digits.parse().ok())?
}

/// A voucher as a credential shows it, once its signature is known to be the signer's: amount and the form the chain takes.
pub fn checked(parties: &Parties, chain_id: u64, id: B256, amount: &str, signature: &str) -> Result<Voucher, Refusal> {
    let wrong = |why: &str| Refusal::VoucherInvalid { why: why.to_owned() };
    let amount = Atoms::parse(amount).filter(|a| a.0 < 1 << 96).ok_or_else(|| wrong("its amount is not a uint96"))?;
    let digits = signature.strip_prefix("0x").ok_or_else(|| wrong("its signature is not hex"))?;
    if digits.len() > 2 * MAX_SIGNATURE {
        return Err(wrong("its signature is too long"));
    }
    let bytes = alloy::hex::decode(signature).map_err(|_| wrong("its signature is not hex"))?;
    let digest = digest(id, amount, chain_id);
    let signer = parties.signer();
    let kept = match bytes.as_slice() {
        signed if signed.len() == recover::LENGTH => secp256k1(signed, digest, signer)?,
        signed if signed.len() == 64 => {
            let _ = signed;
            return Err(wrong("a signature of 64 bytes (EIP-2098) is not taken by the reserve"));
        }
        [0x03 | 0x04, ..] => {
            return Err(wrong("a key chain's signature is not taken by the reserve: sign with the key itself"));
        }
        signed => match verify_precompile_voucher_signature(signed, signer, id, amount.0, RESERVE, chain_id) {
            Ok(true) => bytes.clone(),
            Ok(false) => return Err(Refusal::SignerMismatch),
            Err(_) => return Err(wrong("its signature has no form that the reserve takes")),
        },
    };
    Ok(Voucher { amount, signature: alloy::hex::encode_prefixed(kept) })
}

/// Whether the payer, or who signs for him, has signed that the channel be closed at this amount: EIP-712 `CloseAuthorization`, in the
/// vouchers' domain and of its own type, as the `mpp` crate's client signs it. It is never sent to the chain.
pub fn agrees_to_close(parties: &Parties, chain_id: u64, id: B256, amount: Atoms, signature: &str) -> bool {
    let digits = signature.strip_prefix("0x").filter(|digits| digits.len() <= 2 * MAX_SIGNATURE);
    let Some(signed) = digits.and_then(|digits| hex::decode(digits).ok()) else { return false };
    let Ok(digest) = precompile_close_authorization_signing_hash_with_escrow(id, amount.0, RESERVE, chain_id) else {
        return false;
    };
    let Ok(signed) = PrimitiveSignature::from_bytes(&signed) else { return false };
    let signer = TempoSignature::Primitive(signed).recover_signer(&digest);
    signer.is_ok_and(|signer| signer == parties.payer || signer == parties.signer())
}

/// What a voucher's signer signed, as `mpp` has it (EIP-712). What is the same for all vouchers of a chain is computed once.
fn digest(id: B256, amount: Atoms, chain_id: u64) -> B256 {
    static KIND: LazyLock<B256> = LazyLock::new(|| keccak256("Voucher(bytes32 channelId,uint96 cumulativeAmount)"));
    // A gate knows one chain, or a few.
    static DOMAINS: RwLock<Vec<(u64, B256)>> = RwLock::new(Vec::new());
    let known = |domains: &Vec<(u64, B256)>| domains.iter().find(|(id, _)| *id == chain_id).map(|(_, domain)| *domain);
    let domain = known(&DOMAINS.read().unwrap_or_else(PoisonError::into_inner));
    let domain = domain.unwrap_or_else(|| {
        let domain = eip712_domain! {
            name: "TIP20 Channel Reserve",
            version: "1",
            chain_id: chain_id,
            verifying_contract: RESERVE,
        };
        let domain = domain.separator();
        DOMAINS.write().unwrap_or_else(PoisonError::into_inner).push((chain_id, domain));
        domain
    });
    let voucher = [KIND.0, id.0, B256::from(U256::from(amount.0)).0].concat();
    let voucher = keccak256(voucher);
    keccak256([&[0x19, 0x01], domain.as_slice(), voucher.as_slice()].concat())
}

/// The signature with `v` as 27 or 28, if `signer` made it. The other half of the curve's points (high s) would be a second
/// signature of the same voucher, and the chain refuses it.
fn secp256k1(bytes: &[u8], digest: B256, signer: Address) -> Result<Vec<u8>, Refusal> {
    let wrong = |why: &str| Refusal::VoucherInvalid { why: why.to_owned() };
    let made = recover(bytes, digest).map_err(|why| match why {
        Unreadable::Form => wrong("its recovery id is none of 0, 1, 27 and 28"),
        Unreadable::Point => wrong("its signature is no point of the curve"),
    })?;
    if !made.low {
        return Err(wrong("its s is in the upper half"));
    }
    if made.signer != signer {
        return Err(Refusal::SignerMismatch);
    }
    let mut kept = bytes.to_vec();
    if let Some(v) = kept.last_mut() {
        *v = made.v;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use ::mpp::protocol::methods::tempo::precompile_voucher::precompile_voucher_signing_hash_with_escrow;
    use alloy::signers::SignerSync as _;
    use alloy::signers::local::PrivateKeySigner;

    const CHAIN: u64 = 42431;

    #[test]
    fn what_a_voucher_signs_is_what_mpp_says() {
        for chain in [CHAIN, 4217, 1, CHAIN] {
            for (id, amount) in [(0x00, 0), (0x01, 1), (0xab, 1_234_567), (0xff, (1 << 96) - 1)] {
                let id = B256::repeat_byte(id);
                assert_eq!(
                    digest(id, Atoms(amount), chain),
                    precompile_voucher_signing_hash_with_escrow(id, amount, RESERVE, chain).unwrap(),
                    "{chain} {amount}"
                );
            }
        }
    }

    fn parties() -> Parties {
        let word = |w: &str| w.parse().unwrap();
        Parties {
            payer: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC".parse().unwrap(),
            payee: "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266".parse().unwrap(),
            operator: Address::ZERO,
            token: "0x20c0000000000000000000000000000000000000".parse().unwrap(),
            salt: word("0x60d220b02991435cafe95669fa3a0cf49e7ab664a8f64a5868f4a2cd44fe7dbd"),
            authorized_signer: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC".parse().unwrap(),
            nonce_hash: word("0x58455eb60e015889b1dfef2e25223fe9c712945452a59eec3acc68f531b9e31b"),
        }
    }

    fn key() -> PrivateKeySigner {
        "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a".parse().unwrap()
    }

    fn sign(amount: u128, chain: u64) -> Vec<u8> {
        let id = parties().id(CHAIN);
        let digest = precompile_voucher_signing_hash_with_escrow(id, amount, RESERVE, chain).unwrap();
        key().sign_hash_sync(&digest).unwrap().as_bytes().to_vec()
    }

    fn check(parties: &Parties, amount: &str, signature: &[u8]) -> Result<Voucher, Refusal> {
        checked(parties, CHAIN, parties.id(CHAIN), amount, &format!("0x{}", hex::encode(signature)))
    }

    #[test]
    fn ids_and_digests_are_those_of_the_recorded_clients() {
        let id = parties().id(CHAIN);
        assert_eq!(format!("{id:#x}"), "0xb0d26a1087cd96b3d63bfa58b3a73c5efa7f7e0df323ff002aca5d4f5d8f9879");
        for (amount, digest) in [
            (75, "0x022cf61aff481d4cb898bca485d31c82fe2a2357797de11aff5f9f236e767903"),
            (525, "0xa30e87f179513ebe786647e60315b561fffd730283515445f575838bfc0ebaaa"),
        ] {
            let got = precompile_voucher_signing_hash_with_escrow(id, amount, RESERVE, CHAIN).unwrap();
            assert_eq!(format!("{got:#x}"), digest);
        }
    }

    #[test]
    fn a_voucher_of_the_signer_is_kept_in_the_form_the_chain_takes() {
        let signed = sign(75, CHAIN);
        let voucher = check(&parties(), "75", &signed).unwrap();
        assert_eq!(voucher.signature, format!("0x{}", hex::encode(&signed)));
        let mut bare = signed.clone();
        bare[64] -= 27;
        assert_eq!(check(&parties(), "75", &bare).unwrap(), voucher, "v of 0 or 1 is the same signature");
    }

    #[test]
    fn nothing_but_the_signers_own_voucher_for_this_channel_is_accepted() {
        let signed = sign(75, CHAIN);
        let good = parties();
        let other: Address = Address::repeat_byte(7);
        for (parties, why) in [
            (Parties { payee: other, ..good }, "another payee"),
            (Parties { operator: other, ..good }, "another operator"),
            (Parties { token: other, ..good }, "another token"),
            (Parties { salt: B256::ZERO, ..good }, "another salt"),
            (Parties { nonce_hash: B256::ZERO, ..good }, "another opening"),
            (Parties { authorized_signer: other, ..good }, "another signer"),
        ] {
            assert_eq!(check(&parties, "75", &signed), Err(Refusal::SignerMismatch), "{why}");
        }
        assert_eq!(check(&good, "76", &signed), Err(Refusal::SignerMismatch), "another amount");
        assert_eq!(check(&good, "75", &sign(75, 1)), Err(Refusal::SignerMismatch), "another chain");
        let zero = Parties { authorized_signer: Address::ZERO, ..good };
        let digest = digest(zero.id(CHAIN), Atoms(75), CHAIN);
        let own = key().sign_hash_sync(&digest).unwrap().as_bytes();
        assert!(check(&zero, "75", &own).is_ok(), "without a named signer it is the payer");
    }

    #[test]
    fn only_the_payer_or_his_signer_agrees_to_a_close_and_no_voucher_does() {
        let good = parties();
        let agreed = |by: &PrivateKeySigner, amount: u128| {
            let id = good.id(CHAIN);
            let digest = precompile_close_authorization_signing_hash_with_escrow(id, amount, RESERVE, CHAIN).unwrap();
            format!("0x{}", hex::encode(by.sign_hash_sync(&digest).unwrap().as_bytes()))
        };
        let stranger = PrivateKeySigner::from_slice(&[9; 32]).unwrap();
        let own = Parties { payer: key().address(), authorized_signer: Address::repeat_byte(7), ..good };
        for (parties, signature, want, why) in [
            (good, agreed(&key(), 75), true, "his signer"),
            (own, agreed(&key(), 75), own.id(CHAIN) == good.id(CHAIN), "of another channel"),
            (good, agreed(&key(), 76), false, "another amount"),
            (good, agreed(&stranger, 75), false, "a stranger"),
            (good, format!("0x{}", hex::encode(sign(75, CHAIN))), false, "a voucher is no agreement"),
            (good, "0x".to_owned(), false, "empty"),
            (good, "nonsense".to_owned(), false, "no hex"),
        ] {
            assert_eq!(agrees_to_close(&parties, CHAIN, parties.id(CHAIN), Atoms(75), &signature), want, "{why}");
        }
    }

    #[test]
    fn forms_the_chain_refuses_are_refused_by_name() {
        let signed = sign(75, CHAIN);
        let order = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
        let mut high = signed.clone();
        let mut borrow = 0i32;
        for at in (0..32).rev() {
            let left = i32::from(order[at]) - i32::from(signed[32 + at]) - borrow;
            borrow = i32::from(left < 0);
            high[32 + at] = u8::try_from(left.rem_euclid(256)).unwrap();
        }
        high[64] = if signed[64] == 27 { 28 } else { 27 };
        let mut odd = signed.clone();
        odd[64] = 29;
        let mut chain = vec![0x03];
        chain.extend_from_slice(&signed);
        for (signature, why) in [
            (high, "high s"),
            (odd, "recovery id 29"),
            (signed[..64].to_vec(), "EIP-2098"),
            (chain, "key chain"),
            (vec![1; 65], "no point of the curve, or another signer"),
            (Vec::new(), "empty"),
            (vec![2; 1_025], "too long"),
        ] {
            assert!(check(&parties(), "75", &signature).is_err(), "{why}");
        }
        for amount in ["", "-1", "1.0", "007", "0x4b", "79228162514264337593543950336"] {
            let refused = check(&parties(), amount, &signed);
            assert!(matches!(refused, Err(Refusal::VoucherInvalid { .. })), "{amount:?}");
        }
    }
}
