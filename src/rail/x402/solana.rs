//! What a partly signed Solana transaction says, read strictly.
//!
//! Only the layout that wallets write is taken (x402's `specs/schemes/exact/scheme_exact_svm.md` §3.1): compute limit, compute
//! price, one `TransferChecked`, then at most four memos or Lighthouse guards. Everything in it is the payer's choice and the fee
//! is the facilitator's, so what is not understood is refused.

use super::signed::{Wanted, same_amount};
use crate::money::Atoms;
use crate::network::{base58, from_base58};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Longest transaction of the network, in bytes.
pub const MAX_TRANSACTION: usize = 1232;

/// An account's address.
pub type Key = [u8; 32];

const COMPUTE_BUDGET: &str = "ComputeBudget111111111111111111111111111111";
const TOKEN: &str = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA";
const TOKEN_2022: &str = "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb";
const ASSOCIATED: &str = "ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL";
const MEMO: &str = "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr";
const LIGHTHOUSE: &str = "L2TExMFKdjpN9kozasaurPirfHy9P8sbXoAN1qA3S95";

/// Limit, price and transfer, and then at most four more.
const INSTRUCTIONS: std::ops::RangeInclusive<usize> = 3..=7;
/// 5 lamports for a compute unit, in microlamports: the facilitator pays it.
const MAX_PRICE: u64 = 5_000_000;

/// The signed bytes of a transaction: all that follows its signatures. `None` when it does not begin with them.
pub fn message(transaction: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(transaction);
    let signatures = reader.length()?;
    reader.take(signatures.checked_mul(64)?)?;
    Some(reader.0)
}

/// Who pays: the authority of the transfer, in base58. Nothing is believed about the rest.
pub fn payer(transaction: &[u8]) -> Option<String> {
    let read = Transaction::read(transaction)?;
    Some(base58(&Transfer::of(&read)?.authority))
}

/// Who pays its fee.
pub fn fee_payer(transaction: &[u8]) -> Option<String> {
    Some(base58(Transaction::read(transaction)?.keys.first()?))
}

/// How much its transfer moves. Nothing is believed about the rest.
pub fn amount(transaction: &[u8]) -> Option<Atoms> {
    let read = Transaction::read(transaction)?;
    Some(Atoms(Transfer::of(&read)?.amount.into()))
}

/// Whether its transfer moves tokens of this mint to the token account of this owner. Nothing is believed about the rest.
pub fn pays(transaction: &[u8], mint: &str, owner: &str) -> bool {
    let transfer = Transaction::read(transaction).as_ref().and_then(Transfer::of);
    let (Some(transfer), Some(mint), Some(owner)) = (transfer, from_base58::<32>(mint), from_base58::<32>(owner))
    else {
        return false;
    };
    transfer.mint == mint && Some(transfer.destination) == associated(&owner, &transfer.program, &mint)
}

/// What a transaction is found again by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought<'a> {
    /// The signed bytes: whoever pays the fee adds a signature before them and changes nothing in them.
    pub message: &'a [u8],
    /// It can be used as long as the network knows this.
    pub blockhash: Key,
    /// The token account its money comes from.
    pub source: Key,
    /// What it says in memos.
    pub memos: Vec<&'a str>,
}

/// How to find a transaction again. `None` for another layout than the one that is taken: one with a stored nonce, above all,
/// would never grow old.
pub fn sought(transaction: &[u8]) -> Option<Sought<'_>> {
    let read = Transaction::read(transaction)?;
    budget(&read).ok()?;
    let source = Transfer::of(&read)?.source;
    let memos = read.instructions.iter().filter(|i| is(&i.program, MEMO)).map(|i| std::str::from_utf8(i.data));
    Some(Sought {
        message: read.message,
        blockhash: read.blockhash,
        source,
        memos: memos.collect::<Result<_, _>>().ok()?,
    })
}

/// Whether the transaction moves exactly what is wanted, and nothing of the fee payer's, and is signed by the payer. How long it is good
/// only the chain knows.
pub fn check(transaction: &[u8], wanted: &Wanted<'_>) -> Result<(), String> {
    if wanted.network.chain_id().is_some() {
        return Err(format!("it is a Solana transaction, asked was one for {}", wanted.network));
    }
    let ours =
        |what: &str, text: &str| from_base58::<32>(text).ok_or_else(|| format!("our {what} {text} is no address"));
    let (mint, pay_to) = (ours("token", &wanted.asset.address)?, ours("payee", wanted.pay_to)?);
    let read = Transaction::read(transaction).ok_or("it is not a transaction of the plain form")?;
    let fee_payer = read.keys.first().ok_or("nobody pays its fee")?;
    if !wanted.facilitators.iter().any(|known| from_base58::<32>(known).as_ref() == Some(fee_payer)) {
        return Err(format!("its fee payer {} is none of the facilitator's", base58(fee_payer)));
    }
    if read.instructions.iter().any(|i| i.accounts.contains(fee_payer)) {
        return Err("it uses the account of its fee payer".to_owned());
    }
    budget(&read)?;
    let transfer = Transfer::of(&read).ok_or("its third instruction is not a transfer of tokens")?;
    if transfer.mint != mint {
        return Err(format!("its token is {}, asked was {}", base58(&transfer.mint), wanted.asset.address));
    }
    if transfer.decimals != wanted.asset.decimals {
        return Err(format!("it counts {} decimals, the token has {}", transfer.decimals, wanted.asset.decimals));
    }
    same_amount(Atoms(transfer.amount.into()), wanted.amount)?;
    if Some(transfer.destination) != associated(&pay_to, &transfer.program, &mint) {
        return Err(format!(
            "it pays {}, which is not the token account of {}",
            base58(&transfer.destination),
            wanted.pay_to
        ));
    }
    rest(&read, wanted.memo)?;
    if read.signed_by(&transfer.authority) {
        Ok(())
    } else {
        Err(format!("it is not signed by {}, whose tokens it moves", base58(&transfer.authority)))
    }
}

/// The first two instructions: how much computing may cost.
fn budget(read: &Transaction<'_>) -> Result<(), String> {
    let of = |at: usize| {
        let instruction = read.instructions.get(at).filter(|i| is(&i.program, COMPUTE_BUDGET))?;
        instruction.accounts.is_empty().then_some(instruction.data)
    };
    match of(0) {
        Some([2, _, _, _, _]) => (),
        _ => return Err("its first instruction is not a compute limit".to_owned()),
    }
    let price = match of(1) {
        Some([3, price @ ..]) => <[u8; 8]>::try_from(price).ok().map(u64::from_le_bytes),
        _ => None,
    };
    match price.ok_or("its second instruction is not a compute price")? {
        price if price > MAX_PRICE => {
            Err(format!("its compute price is {price} microlamports, at most {MAX_PRICE} are paid"))
        }
        _ => Ok(()),
    }
}

/// What follows the transfer: memos and guards only, and exactly one memo of our words if we asked for one.
fn rest(read: &Transaction<'_>, memo: Option<&str>) -> Result<(), String> {
    let rest = read.instructions.get(3..).unwrap_or_default();
    if let Some(other) = rest.iter().find(|i| !is(&i.program, MEMO) && !is(&i.program, LIGHTHOUSE)) {
        return Err(format!("it calls {}, which is neither a memo nor a guard", base58(&other.program)));
    }
    let Some(memo) = memo else { return Ok(()) };
    let mut memos = rest.iter().filter(|i| is(&i.program, MEMO)).map(|i| i.data);
    match (memos.next(), memos.next()) {
        (Some(said), None) if said == memo.as_bytes() => Ok(()),
        _ => Err(format!("its memo is not {memo}")),
    }
}

fn is(key: &Key, name: &str) -> bool {
    from_base58::<32>(name).as_ref() == Some(key)
}

/// The account that holds `owner`'s tokens of a mint: the first address in a row of hashes that is no point of the curve, so that
/// nobody has its key.
pub fn associated(owner: &Key, token_program: &Key, mint: &Key) -> Option<Key> {
    let program = from_base58::<32>(ASSOCIATED)?;
    (0..=u8::MAX).rev().find_map(|bump| {
        let hash = Sha256::new().chain_update(owner).chain_update(token_program).chain_update(mint);
        let hash: Key =
            hash.chain_update([bump]).chain_update(program).chain_update("ProgramDerivedAddress").finalize().into();
        // On the curve, it could be somebody's key.
        VerifyingKey::from_bytes(&hash).is_err().then_some(hash)
    })
}

/// The transfer, which is the third instruction.
struct Transfer {
    program: Key,
    source: Key,
    mint: Key,
    destination: Key,
    authority: Key,
    amount: u64,
    decimals: u8,
}

impl Transfer {
    /// `TransferChecked` with one owner: a shared account's transfer has more accounts and is not taken.
    fn of(read: &Transaction<'_>) -> Option<Self> {
        let instruction = read.instructions.get(2).filter(|i| is(&i.program, TOKEN) || is(&i.program, TOKEN_2022))?;
        let (&[12, ref amount @ .., decimals], &[source, mint, destination, authority]) =
            (instruction.data, instruction.accounts.as_slice())
        else {
            return None;
        };
        let amount = u64::from_le_bytes(<[u8; 8]>::try_from(amount).ok()?);
        Some(Self { program: instruction.program, source, mint, destination, authority, amount, decimals })
    }
}

/// A transaction whose every byte is accounted for.
struct Transaction<'a> {
    signatures: Vec<[u8; 64]>,
    message: &'a [u8],
    keys: Vec<Key>,
    blockhash: Key,
    instructions: Vec<Instruction<'a>>,
}

struct Instruction<'a> {
    program: Key,
    accounts: Vec<Key>,
    data: &'a [u8],
}

impl<'a> Transaction<'a> {
    /// Reads a transaction whose message is of version 0 without address tables, or of the form before versions. The fee payer and one
    /// other sign it.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > MAX_TRANSACTION {
            return None;
        }
        let mut reader = Reader(bytes);
        let count = reader.length()?;
        let signatures = (0..count).map(|_| reader.array::<64>()).collect::<Option<Vec<_>>>()?;
        let message = reader.0;
        let versioned = *message.first()? & 0x80 != 0;
        if versioned && reader.byte()? != 0x80 {
            return None;
        }
        let [signers, _, _] = reader.array::<3>()?;
        if usize::from(signers) != count || count != 2 {
            return None;
        }
        let count = reader.length()?;
        let keys = (0..count).map(|_| reader.array::<32>()).collect::<Option<Vec<Key>>>()?;
        let blockhash = reader.array::<32>()?;
        let count = reader.length().filter(|count| INSTRUCTIONS.contains(count))?;
        let instructions = (0..count).map(|_| Instruction::read(&mut reader, &keys)).collect::<Option<Vec<_>>>()?;
        let tables = if versioned { reader.length()? } else { 0 };
        (tables == 0 && reader.0.is_empty()).then_some(Self { signatures, message, keys, blockhash, instructions })
    }

    /// Whether this key is one of those that sign, and did.
    fn signed_by(&self, key: &Key) -> bool {
        let signature = self.keys.iter().zip(&self.signatures).find(|(of, _)| *of == key).map(|(_, s)| s);
        let (Some(signature), Ok(key)) = (signature, VerifyingKey::from_bytes(key)) else { return false };
        key.verify_strict(self.message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl<'a> Instruction<'a> {
    fn read(reader: &mut Reader<'a>, keys: &[Key]) -> Option<Self> {
        let key = |at: u8| keys.get(usize::from(at)).copied();
        let program = key(reader.byte()?)?;
        let count = reader.length()?;
        let accounts = reader.take(count)?.iter().map(|at| key(*at)).collect::<Option<Vec<Key>>>()?;
        let count = reader.length()?;
        Some(Self { program, accounts, data: reader.take(count)? })
    }
}

/// What has not been read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A length in one to three bytes of seven bits, the least first; a length has one spelling. Nothing in a transaction has more
    /// than 14 bits.
    fn length(&mut self) -> Option<usize> {
        let low = self.byte()?;
        if low < 0x80 {
            return Some(low.into());
        }
        let high = self.byte().filter(|high| (1..0x80).contains(high))?;
        Some(usize::from(low & 0x7f) | usize::from(high) << 7)
    }
}

#[cfg(test)]
#[path = "solana_tests.rs"]
mod tests;
