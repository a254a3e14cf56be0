//! Who made a secp256k1 signature of 65 bytes: r, s, v. The C library does it: it is on the path of every voucher and payment.

use alloy::primitives::{Address, B256, keccak256};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, Secp256k1, VerifyOnly};
use std::sync::LazyLock;

/// Length of such a signature.
pub const LENGTH: usize = 65;

static CURVE: LazyLock<Secp256k1<VerifyOnly>> = LazyLock::new(Secp256k1::verification_only);

/// What a signature says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Who made it.
    pub signer: Address,
    /// Whether its s is in the lower half. The other half is a second signature of the same thing, and chains refuse it.
    pub low: bool,
    /// `v` as contracts take it: 27 or 28.
    pub v: u8,
}

/// Why a signature says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// `v` is none of 0, 1, 27 and 28, or there are not 65 bytes.
    Form,
    /// It is no point of the curve.
    Point,
}

/// Who made this signature of this digest.
pub fn recover(signature: &[u8], digest: B256) -> Result<Recovered, Unreadable> {
    let Some((compact, v)) = signature.split_at_checked(LENGTH - 1) else { return Err(Unreadable::Form) };
    let parity = match v {
        [0 | 27] => 0,
        [1 | 28] => 1,
        _ => return Err(Unreadable::Form),
    };
    let id = RecoveryId::try_from(i32::from(parity)).map_err(|_| Unreadable::Form)?;
    let signature = RecoverableSignature::from_compact(compact, id).map_err(|_| Unreadable::Point)?;
    let mut normal = signature.to_standard();
    normal.normalize_s();
    let low = normal == signature.to_standard();
    let key = CURVE.recover_ecdsa(Message::from_digest(digest.0), &signature).map_err(|_| Unreadable::Point)?;
    let key = key.serialize_uncompressed();
    let hash = keccak256(key.get(1..).unwrap_or_default());
    Ok(Recovered { signer: Address::from_slice(hash.get(12..).unwrap_or_default()), low, v: 27 + parity })
}
