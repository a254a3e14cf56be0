//! Transactions taken apart, changed in one place and signed again by the payer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::network::Network;
use crate::rail::x402::sample::{Asked, Golden};
use crate::rail::x402::signed::{Signed, Standing, check};
use ed25519_dalek::{Signer as _, SigningKey};

/// The payer's key in the recordings.
const SEED: [u8; 32] = [7; 32];
const SYSTEM: &str = "11111111111111111111111111111111";

/// A transaction in parts; lengths are written when it is put together.
struct Draft {
    signatures: Vec<[u8; 64]>,
    version: Vec<u8>,
    header: [u8; 3],
    keys: Vec<Key>,
    blockhash: Key,
    instructions: Vec<Step>,
    tables: Vec<u8>,
}

#[derive(Clone)]
struct Step {
    program: u8,
    accounts: Vec<u8>,
    data: Vec<u8>,
}

impl Step {
    fn read(reader: &mut Reader<'_>) -> Self {
        let program = reader.byte().unwrap();
        let count = reader.length().unwrap();
        let accounts = reader.take(count).unwrap().to_vec();
        let count = reader.length().unwrap();
        Self { program, accounts, data: reader.take(count).unwrap().to_vec() }
    }
}

impl Draft {
    fn of(bytes: &[u8]) -> Self {
        let mut reader = Reader(bytes);
        let signatures = (0..reader.length().unwrap()).map(|_| reader.array().unwrap()).collect();
        let version = vec![reader.byte().unwrap()];
        let header = reader.array().unwrap();
        let keys = (0..reader.length().unwrap()).map(|_| reader.array().unwrap()).collect();
        let blockhash = reader.array().unwrap();
        let instructions = (0..reader.length().unwrap()).map(|_| Step::read(&mut reader)).collect();
        Self { signatures, version, header, keys, blockhash, instructions, tables: reader.0.to_vec() }
    }

    fn message(&self) -> Vec<u8> {
        let mut bytes = [&self.version[..], &self.header].concat();
        length(&mut bytes, self.keys.len());
        bytes.extend(self.keys.concat());
        bytes.extend(self.blockhash);
        length(&mut bytes, self.instructions.len());
        for step in &self.instructions {
            bytes.push(step.program);
            length(&mut bytes, step.accounts.len());
            bytes.extend(&step.accounts);
            length(&mut bytes, step.data.len());
            bytes.extend(&step.data);
        }
        bytes.extend(&self.tables);
        bytes
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        length(&mut bytes, self.signatures.len());
        bytes.extend(self.signatures.concat());
        bytes.extend(self.message());
        bytes
    }

    /// Signs as the payer, who is the second account.
    fn sign(&mut self) {
        self.signatures[1] = SigningKey::from_bytes(&SEED).sign(&self.message()).to_bytes();
    }

    /// The place of a key, added at the end when it is not there: a program or an account that is only read.
    fn key(&mut self, key: Key) -> u8 {
        let at = self.keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            self.keys.push(key);
            self.header[2] += 1;
            self.keys.len() - 1
        });
        u8::try_from(at).unwrap()
    }

    fn call(&mut self, program: &str, accounts: &[u8], data: &[u8]) {
        let program = self.key(from_base58(program).unwrap());
        self.instructions.push(Step { program, accounts: accounts.to_vec(), data: data.to_vec() });
    }

    fn transfer(&mut self) -> &mut Step {
        &mut self.instructions[2]
    }

    fn set_amount(&mut self, amount: u64) {
        self.transfer().data[1..9].copy_from_slice(&amount.to_le_bytes());
    }
}

fn length(bytes: &mut Vec<u8>, length: usize) {
    if length < 0x80 {
        bytes.push(length as u8);
    } else {
        bytes.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
    }
}

fn recorded(name: &str) -> (Vec<u8>, Asked) {
    let golden = Golden::read(name);
    let Signed::Solana(bytes) = golden.payment().signed else { panic!("another method") };
    (bytes, golden.asked())
}

fn outcome(bytes: &[u8], asked: &Asked) -> Result<Standing, String> {
    check(&Signed::Solana(bytes.to_vec()), &asked.wanted())
}

#[test]
fn a_draft_put_together_unchanged_is_the_recording() {
    for name in ["exact-solana", "exact-solana-memo", "v1-solana"] {
        let (bytes, asked) = recorded(name);
        let mut draft = Draft::of(&bytes);
        draft.sign();
        assert_eq!(draft.write(), bytes, "{name}");
        assert_eq!(message(&bytes), Some(&draft.message()[..]), "{name}");
        assert_eq!(outcome(&bytes, &asked), Ok(Standing::Proven), "{name}");
    }
}

type Change = fn(&mut Draft);
/// With somebody else's signature at hand.
type Signing = fn(&mut Draft, [u8; 64]);
type Asking = fn(&mut Asked);

#[test]
fn a_transaction_that_wallets_write_is_taken() {
    let table: &[(Change, &str)] = &[
        (|_| (), "as recorded"),
        (|d| d.instructions.truncate(3), "no memo"),
        (|d| d.call(LIGHTHOUSE, &[1, 2], b"guard"), "a wallet's guard"),
        (|d| (0..3).for_each(|_| d.call(LIGHTHOUSE, &[1], b"guard")), "seven instructions"),
        (|d| d.call(MEMO, &[1], b"another memo, signed by the payer"), "two memos"),
        (|d| d.instructions[1].data[1..].copy_from_slice(&MAX_PRICE.to_le_bytes()), "the highest price"),
        (|d| d.instructions[0].data[1..].copy_from_slice(&1_400_000u32.to_le_bytes()), "the highest limit"),
        (
            |d| {
                d.version.clear();
                d.tables.clear();
            },
            "the form before versions",
        ),
        (|d| d.blockhash = [3; 32], "another time"),
    ];
    for (change, why) in table {
        let (bytes, asked) = recorded("exact-solana");
        let mut draft = Draft::of(&bytes);
        change(&mut draft);
        draft.sign();
        assert_eq!(outcome(&draft.write(), &asked), Ok(Standing::Proven), "{why}");
    }
}

#[test]
fn a_transaction_that_does_anything_else_is_refused() {
    let table: &[(Change, &str, &str)] = &[
        (|d| d.set_amount(19_999), "19999 atoms, asked were 20000", "one atom too little"),
        (|d| d.set_amount(20_001), "20001 atoms, asked were 20000", "one atom too much"),
        (|d| d.transfer().data[9] = 7, "7 decimals", "another unit"),
        (|d| d.transfer().data.push(0), "not a transfer", "data left over"),
        (|d| d.transfer().data.truncate(9), "not a transfer", "data missing"),
        (|d| d.transfer().data[0] = 3, "not a transfer", "a transfer that does not check the mint"),
        (|d| d.transfer().data[0] = 13, "not a transfer", "an approval"),
        (|d| d.transfer().accounts.push(1), "not a transfer", "a shared account's signer"),
        (|d| d.transfer().accounts.truncate(3), "not a transfer", "nobody's tokens"),
        (
            |d| {
                let at = d.key(from_base58(LIGHTHOUSE).unwrap());
                d.transfer().program = at;
            },
            "not a transfer",
            "another program",
        ),
        (
            |d| {
                let at = d.key(from_base58(TOKEN_2022).unwrap());
                d.transfer().program = at;
            },
            "not the token account",
            "the other token program has other accounts",
        ),
        (
            |d| {
                let at = d.key([5; 32]);
                d.transfer().accounts[1] = at;
            },
            "its token is",
            "another mint",
        ),
        (
            |d| {
                let at = d.key([5; 32]);
                d.transfer().accounts[2] = at;
            },
            "not the token account",
            "another payee",
        ),
        (|d| d.transfer().accounts.swap(0, 2), "not the token account", "source and destination swapped"),
        (
            |d| {
                let at = d.key(from_base58("2KW2XRd9kwqet15Aha2oK3tYvd3nWbTFH1MBiRAv1BE1").unwrap());
                d.transfer().accounts[2] = at;
            },
            "not the token account",
            "the payee himself, who holds no tokens",
        ),
        (|d| d.transfer().accounts[0] = 0, "uses the account of its fee payer", "the fee payer's tokens"),
        (|d| d.transfer().accounts[3] = 0, "uses the account of its fee payer", "the fee payer as the one who moves"),
        (|d| d.call(MEMO, &[0], b"x"), "uses the account of its fee payer", "the fee payer signs a memo"),
        (|d| d.transfer().accounts[3] = 2, "not signed", "somebody who does not sign"),
        (|d| d.keys[0] = [5; 32], "is none of the facilitator", "another fee payer"),
        (|d| d.keys.swap(0, 1), "is none of the facilitator", "the payer pays the fee himself"),
        (|d| d.instructions.swap(0, 1), "not a compute limit", "price before limit"),
        (|d| d.instructions.swap(1, 2), "not a compute price", "transfer before price"),
        (|d| d.instructions[0].data.push(0), "not a compute limit", "limit with data left over"),
        (|d| d.instructions[0].data[0] = 1, "not a compute limit", "a heap frame"),
        (|d| d.instructions[0].accounts.push(1), "not a compute limit", "limit with an account"),
        (|d| d.instructions[0].program = 2, "not a compute limit", "another program's"),
        (
            |d| d.instructions[1].data[1..].copy_from_slice(&(MAX_PRICE + 1).to_le_bytes()),
            "5000001 microlamports",
            "price",
        ),
        (|d| d.instructions[1].data.truncate(8), "not a compute price", "price cut"),
        (|d| d.call(SYSTEM, &[1], &[2, 0, 0, 0]), "neither a memo nor a guard", "a call of something else"),
        (
            |d| {
                let again = d.transfer().clone();
                d.instructions.push(again);
            },
            "neither a memo nor a guard",
            "a second transfer",
        ),
        (|d| (0..4).for_each(|_| d.call(LIGHTHOUSE, &[1], b"guard")), "plain form", "eight instructions"),
        (|d| d.instructions.truncate(2), "plain form", "two instructions"),
        (|d| d.version = vec![0x81], "plain form", "a version that we do not know"),
        (|d| d.version.clear(), "plain form", "the form before versions has no tables, not even none"),
        (|d| d.tables = [&[1][..], &[5; 32], &[1, 0, 0]].concat(), "plain form", "an address table"),
        (|d| d.tables.push(0), "plain form", "a byte left over"),
        (|d| d.tables.clear(), "plain form", "a byte missing"),
        (|d| d.header[0] = 1, "plain form", "fewer signers than signatures"),
        (
            |d| {
                d.header[0] = 3;
                d.signatures.push([0; 64]);
            },
            "plain form",
            "a third signer",
        ),
        (|d| d.transfer().accounts[0] = 200, "plain form", "an account that is not there"),
        (|d| d.transfer().program = 200, "plain form", "a program that is not there"),
        (|d| d.call(MEMO, &[], &[b'x'; 800]), "plain form", "more than fits into a packet"),
    ];
    for (change, words, why) in table {
        let (bytes, asked) = recorded("exact-solana");
        let mut draft = Draft::of(&bytes);
        change(&mut draft);
        draft.sign();
        let error = outcome(&draft.write(), &asked).expect_err(why);
        assert!(error.contains(words), "{why}: {error}");
    }
}

#[test]
fn only_the_payers_own_signature_of_these_bytes_counts() {
    let (bytes, asked) = recorded("exact-solana");
    let other = |draft: &Draft| SigningKey::from_bytes(&[6; 32]).sign(&draft.message()).to_bytes();
    let table: &[(Signing, &str)] = &[
        (|d, _| d.signatures[1] = [0; 64], "none"),
        (|d, other| d.signatures[1] = other, "somebody else's"),
        (|d, _| d.signatures.swap(0, 1), "in the other place"),
        (|d, _| d.blockhash[0] ^= 1, "of another message"),
    ];
    for (change, why) in table {
        let mut draft = Draft::of(&bytes);
        let other = other(&draft);
        change(&mut draft, other);
        let error = outcome(&draft.write(), &asked).expect_err(why);
        assert!(error.contains("not signed by"), "{why}: {error}");
    }
}

#[test]
fn a_memo_that_was_demanded_is_the_only_one() {
    let table: &[(Change, bool, &str)] = &[
        (|_| (), true, "as demanded"),
        (|d| d.call(LIGHTHOUSE, &[1], b"guard"), true, "and a guard"),
        (|d| d.instructions[3].data[7] = b'8', false, "another"),
        (|d| d.instructions[3].data.push(b' '), false, "longer"),
        (|d| d.instructions.truncate(3), false, "none"),
        (|d| d.call(MEMO, &[], b"order 17"), false, "twice"),
    ];
    for (change, taken, why) in table {
        let (bytes, asked) = recorded("exact-solana-memo");
        let mut draft = Draft::of(&bytes);
        change(&mut draft);
        draft.sign();
        let got = outcome(&draft.write(), &asked);
        assert_eq!(got.is_ok(), *taken, "{why}: {got:?}");
    }
}

#[test]
fn what_was_asked_is_compared_with_what_is_there() {
    let table: &[(Asking, &str, &str)] = &[
        (
            |a| a.entry.network = Network::parse("eip155:8453").unwrap(),
            "asked was one for eip155:8453",
            "another family",
        ),
        (|a| a.facilitators.clear(), "is none of the facilitator's", "no fee payer"),
        (|a| a.facilitators = vec!["0x00".into(), SYSTEM.into()], "is none of the facilitator's", "another fee payer"),
        (|a| a.entry.pay_to = SYSTEM.into(), "not the token account of", "another payee"),
        (|a| a.asset.address = SYSTEM.into(), "its token is", "another token"),
        (|a| a.asset.decimals = 9, "it counts 6 decimals, the token has 9", "another unit"),
        (|a| a.entry.amount.0 = 20_000 + (1 << 64), "asked were 18446744073709571616", "the same in 64 bits"),
    ];
    for (change, words, why) in table {
        let (bytes, mut asked) = recorded("exact-solana");
        change(&mut asked);
        let error = outcome(&bytes, &asked).expect_err(why);
        assert!(error.contains(words), "{why}: {error}");
    }
}

#[test]
fn a_length_has_one_spelling() {
    for (bytes, want, why) in [
        (&[0x05][..], Some(5), "one byte"),
        (&[0x7f], Some(127), "the most of one byte"),
        (&[0x80, 0x01], Some(128), "two bytes"),
        (&[0xff, 0x7f], Some(16_383), "the most of two"),
        (&[0x85, 0x00], None, "five in two bytes"),
        (&[0x80, 0x80, 0x01], None, "more than a transaction has"),
        (&[0x80], None, "cut"),
        (&[], None, "nothing"),
    ] {
        assert_eq!(Reader(bytes).length(), want, "{why}");
    }
}

#[test]
fn token_accounts_are_derived_as_the_network_derives_them() {
    // The source account in the recording is the payer's own, found by the published client.
    let (bytes, _) = recorded("exact-solana");
    let draft = Draft::of(&bytes);
    let at = |i: u8| draft.keys[usize::from(i)];
    let step = &draft.instructions[2];
    let [source, mint, _, authority] = [0, 1, 2, 3].map(|i| at(step.accounts[i]));
    assert_eq!(associated(&authority, &at(step.program), &mint), Some(source));
}
