//! The audit of a [`Stall`] from outside: what the chain moved, what the receipts say and what the books say must be one story,
//! to the atom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use serde_json::Value;

use super::Stall;
use crate::common::ledger::{Books, books};

/// What was sold since it was opened.
pub struct Takings {
    since: u64,
    earned: u128,
    /// By id, as the gate showed them last.
    receipts: Mutex<BTreeMap<String, Value>>,
}

impl Takings {
    pub async fn open(stall: &Stall) -> Self {
        let (since, earned) = (stall.chain.block_number().await, stall.earned().await);
        Self { since, earned, receipts: Mutex::default() }
    }

    /// A settled receipt of `GET /receipts/{id}`; no two are the same.
    pub fn sold(&self, receipt: &Value) {
        let id = receipt["id"].as_str().expect("an id").to_owned();
        let before = self.receipts.lock().unwrap().insert(id, receipt.clone());
        assert!(before.is_none(), "two answers have one receipt: {receipt}");
    }

    /// Stops the gate and compares. Fails unless
    /// - `pontage audit` finds the stopped store sound, with nothing owed;
    /// - the transfers to the payee are exactly the receipts: transaction, payer, amount; and its balance grew by their sum;
    /// - the books hold exactly these receipts and their sum.
    pub async fn close(self, stall: &mut Stall) -> Books {
        let gate = &mut stall.gate;
        gate.assert_no_secrets("/metrics", &gate.metrics().await);
        gate.stop().await;
        gate.assert_no_secrets("the log", &gate.log());
        let books = books(gate);
        let payee = stall.chain.payee();
        let transfers = stall.chain.transfers(self.since).await;
        let moved: BTreeSet<(String, u128)> =
            transfers.iter().filter(|t| t.to.eq_ignore_ascii_case(payee)).map(|t| (t.tx.clone(), t.amount)).collect();
        let receipts = self.receipts.into_inner().unwrap();
        let sold: BTreeSet<(String, u128)> =
            receipts.values().filter(|receipt| charged(receipt) > 0).map(|r| (transaction(r), charged(r))).collect();
        assert_eq!(moved, sold, "transfers to the payee, and receipts");
        let sum: u128 = receipts.values().map(charged).sum();
        assert_eq!(stall.earned().await - self.earned, sum, "what the payee holds more, and the receipts");
        assert_eq!((books.charged, books.receipts), (sum, receipts.len() as u64), "the books: {books:#?}");
        assert!(books.owed.is_empty(), "paid and not delivered: {books:#?}");
        books
    }
}

/// Atoms that a receipt says were taken.
pub fn charged(receipt: &Value) -> u128 {
    let atoms = &receipt["charged"]["atoms"];
    atoms.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no amount: {receipt}"))
}

/// The transaction that a receipt names.
pub fn transaction(receipt: &Value) -> String {
    receipt["transaction"].as_str().unwrap_or_else(|| panic!("no transaction: {receipt}")).to_owned()
}
