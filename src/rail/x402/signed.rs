//! What a payer signs, and what can be known of it without a chain: who, how much, to whom, until when. The forms are those of
//! `schemes/exact/scheme_exact_evm.md`, `schemes/exact/scheme_exact_svm.md` and `schemes/upto/scheme_upto_evm.md` in x402's `specs/`.
//!
//! A plain account's signature is proven here; a contract's can only be judged by its chain, through the facilitator. Nothing here
//! accepts a payment: balance and nonce are the chain's to say.

use super::shown;
use super::solana;
use super::wire::Scheme;
use crate::claim::ClaimKey;
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::network::{Asset, Network};
use crate::rail::recover::{self, recover};
use alloy::primitives::{Address, B256, Bytes, U256, address, keccak256};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// Longest signature of a contract that is carried, in bytes.
pub const MAX_SIGNATURE: usize = 8 * 1024;

/// What a signature may be good for beyond what is needed: as long as it is, its claim is remembered.
const LONGEST_SECONDS: u64 = 3_600;

/// Permit2, the same on every network.
pub const PERMIT2: Address = address!("0x000000000022D473030F116dDEE9F6B43aC78BA3");
/// The proxy that `exact` payments by Permit2 go through, the same on every network.
pub const EXACT_PROXY: Address = address!("0x402085c248EeA27D92E8b30b2C58ed07f9E20001");
/// The proxy of `upto`.
pub const UPTO_PROXY: Address = address!("0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");

/// What was signed, by transfer method.
#[derive(Clone, PartialEq, Eq)]
pub enum Signed {
    /// EIP-3009 `TransferWithAuthorization`.
    Eip3009(Eip3009),
    /// Permit2 `PermitWitnessTransferFrom`, for `exact` or `upto`.
    Permit2(Permit2),
    /// A partly signed Solana transaction.
    Solana(Vec<u8>),
}

/// EIP-3009.
#[derive(Clone, PartialEq, Eq)]
pub struct Eip3009 {
    /// Payer.
    pub from: Address,
    /// Payee.
    pub to: Address,
    /// Atoms.
    pub value: Atoms,
    /// Unix seconds.
    pub valid_after: u64,
    /// Unix seconds.
    pub valid_before: u64,
    /// Random.
    pub nonce: B256,
    /// 65 bytes of a plain account, anything of a contract.
    pub signature: Bytes,
}

/// Permit2 with a witness.
#[derive(Clone, PartialEq, Eq)]
pub struct Permit2 {
    /// Payer.
    pub from: Address,
    /// Token.
    pub token: Address,
    /// Atoms: exact, or the most.
    pub amount: Atoms,
    /// The proxy that may use it.
    pub spender: Address,
    /// Unordered nonce.
    pub nonce: U256,
    /// Unix seconds.
    pub deadline: u64,
    /// Payee.
    pub to: Address,
    /// The only address that may hand it in (`upto`).
    pub facilitator: Option<Address>,
    /// Unix seconds.
    pub valid_after: u64,
    /// 65 bytes of a plain account, anything of a contract.
    pub signature: Bytes,
}

/// What a payment must be signed for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where.
    pub network: &'a Network,
    /// In which token.
    pub asset: &'a Asset,
    /// To whom.
    pub pay_to: &'a str,
    /// How much: exactly, or exactly this as the most.
    pub amount: Atoms,
    /// Under which scheme.
    pub scheme: Scheme,
    /// Whether by Permit2; `upto` always is.
    pub permit2: bool,
    /// Who may hand it in (`upto`), or pay its fee (Solana): any of them.
    pub facilitators: &'a [String],
    /// Solana: the memo that was demanded.
    pub memo: Option<&'a str>,
    /// The clock.
    pub now: UnixSeconds,
    /// For how many seconds from now it must still be good.
    pub lasts: u64,
}

/// What is known of a signature without a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The payer made it.
    Proven,
    /// It is none of a plain account with that address; if the payer is a contract, only its chain can say whether it is one.
    Contract,
}

impl Signed {
    /// The claim that this proof makes, from what is spent once on its network: two spellings of one proof, and its v1 and v2 forms,
    /// are one key.
    pub fn key(&self, network: &Network, asset: &str) -> ClaimKey {
        ClaimKey(match self {
            Self::Eip3009(a) => format!("x402:{network}:{asset}:{:#x}:{:#x}", a.from, a.nonce).to_ascii_lowercase(),
            Self::Permit2(p) => format!("x402:{network}:permit2:{:#x}:{:064x}", p.from, p.nonce).to_ascii_lowercase(),
            Self::Solana(bytes) => {
                // The bytes before the message are signatures, and whoever pays the fee still adds one.
                let message = solana::message(bytes).unwrap_or(bytes);
                format!("x402:{network}:{}", hex::encode(Sha256::digest(message))).to_ascii_lowercase()
            }
        })
    }

    /// Who pays, as its network writes it: lower-case hex, or base58. `None` for a transaction without a transfer.
    pub fn payer(&self) -> Option<String> {
        match self {
            Self::Eip3009(a) => Some(format!("{:#x}", a.from)),
            Self::Permit2(p) => Some(format!("{:#x}", p.from)),
            Self::Solana(bytes) => solana::payer(bytes),
        }
    }

    /// How much: exactly, or at most.
    pub fn amount(&self) -> Option<Atoms> {
        match self {
            Self::Eip3009(a) => Some(a.value),
            Self::Permit2(p) => Some(p.amount),
            Self::Solana(bytes) => solana::amount(bytes),
        }
    }

    /// The payer's signature, or the transaction that carries it.
    pub(super) fn signature(&self) -> &[u8] {
        match self {
            Self::Eip3009(a) => &a.signature,
            Self::Permit2(p) => &p.signature,
            Self::Solana(bytes) => bytes,
        }
    }

    /// The last second in which it can be used. `None` on Solana, where that is counted in blocks.
    pub fn until(&self) -> Option<UnixSeconds> {
        match self {
            Self::Eip3009(a) => Some(UnixSeconds(a.valid_before)),
            Self::Permit2(p) => Some(UnixSeconds(p.deadline)),
            Self::Solana(_) => None,
        }
    }
}

/// How well a payment that names no token fits one, and a payee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It goes to somebody else.
    Not,
    /// It goes to the payee; whether in this token only the payer's contract can tell, if he is one.
    Payee,
    /// It moves this token to the payee.
    Proven,
}

/// How well what was signed fits a token and a payee. Nothing else of it is looked at.
pub fn fit(signed: &Signed, network: &Network, asset: &Asset, pay_to: &str) -> Fit {
    match signed {
        Signed::Eip3009(a) if shown::address(pay_to) == Some(a.to) => {
            let token = network.chain_id().zip(shown::address(&asset.address));
            let made = |token| recover(&a.signature, transfer(a, asset, token)).is_ok_and(|made| made.signer == a.from);
            if a.signature.len() == recover::LENGTH && token.is_some_and(made) { Fit::Proven } else { Fit::Payee }
        }
        Signed::Solana(bytes) if solana::pays(bytes, &asset.address, pay_to) => Fit::Proven,
        Signed::Eip3009(_) | Signed::Permit2(_) | Signed::Solana(_) => Fit::Not,
    }
}

/// Whether this is signed for what is wanted, by the payer as far as that can be known here. The error is a sentence with both
/// values.
pub fn check(signed: &Signed, wanted: &Wanted<'_>) -> Result<Standing, String> {
    match signed {
        Signed::Eip3009(authorization) => eip3009(authorization, wanted),
        Signed::Permit2(permit) => permit2(permit, wanted),
        Signed::Solana(bytes) => solana::check(bytes, wanted).map(|()| Standing::Proven),
    }
}

fn eip3009(signed: &Eip3009, wanted: &Wanted<'_>) -> Result<Standing, String> {
    if wanted.permit2 || wanted.scheme == Scheme::Upto {
        return Err("it is signed for the token itself, and Permit2 was offered".to_owned());
    }
    let (chain, token, pay_to) = ours(wanted)?;
    same_address("payee", signed.to, pay_to)?;
    same_amount(signed.value, wanted.amount)?;
    in_time(signed.valid_after, signed.valid_before, wanted)?;
    standing(&signed.signature, transfer(signed, wanted.asset, (chain, token)), signed.from)
}

/// What is signed of a transfer of this token.
fn transfer(signed: &Eip3009, asset: &Asset, (chain, token): (u64, Address)) -> B256 {
    let domain =
        keccak(&[*TOKEN_DOMAIN, keccak256(&asset.name), keccak256(&asset.version), number(chain), token.into_word()]);
    let what = keccak(&[
        *TRANSFER,
        signed.from.into_word(),
        signed.to.into_word(),
        atoms(signed.value),
        number(signed.valid_after),
        number(signed.valid_before),
        signed.nonce,
    ]);
    digest(domain, what)
}

fn permit2(signed: &Permit2, wanted: &Wanted<'_>) -> Result<Standing, String> {
    if !wanted.permit2 && wanted.scheme == Scheme::Exact {
        return Err("it is signed for Permit2, and the token's own authorization was offered".to_owned());
    }
    let (chain, token, pay_to) = ours(wanted)?;
    same_address("token", signed.token, token)?;
    same_address("payee", signed.to, pay_to)?;
    same_amount(signed.amount, wanted.amount)?;
    in_time(signed.valid_after, signed.deadline, wanted)?;
    let (proxy, permit, witness) = match (wanted.scheme, signed.facilitator) {
        (Scheme::Exact, None) => {
            let witness = keccak(&[*EXACT_WITNESS, signed.to.into_word(), number(signed.valid_after)]);
            (EXACT_PROXY, *EXACT_PERMIT, witness)
        }
        (Scheme::Upto, Some(facilitator)) => {
            if !wanted.facilitators.iter().any(|known| shown::address(known) == Some(facilitator)) {
                return Err(format!("it names the facilitator {facilitator:#x}, which is not ours"));
            }
            let words = [signed.to.into_word(), facilitator.into_word(), number(signed.valid_after)];
            (UPTO_PROXY, *UPTO_PERMIT, keccak(&[&[*UPTO_WITNESS][..], &words].concat()))
        }
        (Scheme::Exact, Some(_)) => return Err("it names a facilitator, and the amount was to be exact".to_owned()),
        (Scheme::Upto, None) => return Err("it names no facilitator".to_owned()),
    };
    same_address("spender", signed.spender, proxy)?;
    let domain = keccak(&[*PERMIT2_DOMAIN, keccak256("Permit2"), number(chain), PERMIT2.into_word()]);
    let permitted = keccak(&[*PERMITTED, signed.token.into_word(), atoms(signed.amount)]);
    let what = keccak(&[
        permit,
        permitted,
        signed.spender.into_word(),
        B256::from(signed.nonce),
        number(signed.deadline),
        witness,
    ]);
    standing(&signed.signature, digest(domain, what), signed.from)
}

/// Chain id, token and payee of the offer.
fn ours(wanted: &Wanted<'_>) -> Result<(u64, Address, Address), String> {
    let chain = wanted
        .network
        .chain_id()
        .ok_or_else(|| format!("it is signed for an EVM network, not for {}", wanted.network))?;
    let read = |what: &str, text: &str| shown::address(text).ok_or_else(|| format!("our {what} {text} is no address"));
    Ok((chain, read("token", &wanted.asset.address)?, read("payee", wanted.pay_to)?))
}

fn same_address(what: &str, signed: Address, asked: Address) -> Result<(), String> {
    if signed == asked { Ok(()) } else { Err(format!("its {what} is {signed:#x}, asked was {asked:#x}")) }
}

pub(super) fn same_amount(signed: Atoms, asked: Atoms) -> Result<(), String> {
    if signed == asked { Ok(()) } else { Err(format!("it is signed for {signed} atoms, asked were {asked}")) }
}

fn in_time(after: u64, before: u64, wanted: &Wanted<'_>) -> Result<(), String> {
    let (now, until) = (wanted.now.0, wanted.now.plus(wanted.lasts).0);
    if after > now {
        return Err(format!("it is good from {after} on, and now is {now}"));
    }
    if before < until {
        return Err(format!("it is good until {before}, and has to be until {until}"));
    }
    let latest = until.saturating_add(LONGEST_SECONDS);
    if before > latest {
        return Err(format!("it is good until {before}, and may be until {latest} at most"));
    }
    Ok(())
}

/// A signature of a plain account is proven; its mirror image (high s) is refused by every chain, so it is here. Anything else may be
/// a contract's, whatever it looks like: one that asks its owner's key has signatures of 65 bytes too.
fn standing(signature: &[u8], digest: B256, from: Address) -> Result<Standing, String> {
    match signature.len() {
        0 => return Err("it has no signature".to_owned()),
        recover::LENGTH => (),
        length if length > MAX_SIGNATURE => return Err(format!("its signature has {length} bytes")),
        _ => return Ok(Standing::Contract),
    }
    match recover(signature, digest) {
        Ok(made) if made.signer != from => Ok(Standing::Contract),
        Ok(made) if made.low => Ok(Standing::Proven),
        Ok(_) => Err("the s of its signature is in the upper half".to_owned()),
        Err(_) => Ok(Standing::Contract),
    }
}

// EIP-712. What is hashed is written here as the contracts have it.

static TOKEN_DOMAIN: LazyLock<B256> =
    LazyLock::new(|| keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"));
static PERMIT2_DOMAIN: LazyLock<B256> =
    LazyLock::new(|| keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"));
static TRANSFER: LazyLock<B256> = LazyLock::new(|| {
    keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)",
    )
});
static PERMITTED: LazyLock<B256> = LazyLock::new(|| keccak256(PERMITTED_TYPE));
static EXACT_WITNESS: LazyLock<B256> = LazyLock::new(|| keccak256(EXACT_WITNESS_TYPE));
static UPTO_WITNESS: LazyLock<B256> = LazyLock::new(|| keccak256(UPTO_WITNESS_TYPE));
static EXACT_PERMIT: LazyLock<B256> =
    LazyLock::new(|| keccak256([PERMIT_TYPE, PERMITTED_TYPE, EXACT_WITNESS_TYPE].concat()));
static UPTO_PERMIT: LazyLock<B256> =
    LazyLock::new(|| keccak256([PERMIT_TYPE, PERMITTED_TYPE, UPTO_WITNESS_TYPE].concat()));

const PERMIT_TYPE: &str = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)";
const PERMITTED_TYPE: &str = "TokenPermissions(address token,uint256 amount)";
const EXACT_WITNESS_TYPE: &str = "Witness(address to,uint256 validAfter)";
const UPTO_WITNESS_TYPE: &str = "Witness(address to,address facilitator,uint256 validAfter)";

fn number(value: u64) -> B256 {
    B256::from(U256::from(value))
}

fn atoms(value: Atoms) -> B256 {
    B256::from(U256::from(value.0))
}

fn keccak(words: &[B256]) -> B256 {
    keccak256(words.concat())
}

fn digest(domain: B256, what: B256) -> B256 {
    keccak256([&[0x19, 0x01], domain.as_slice(), what.as_slice()].concat())
}

#[cfg(test)]
#[path = "signed_tests.rs"]
mod tests;
