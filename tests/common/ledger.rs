//! The audit from outside: what the chain, the backend and the clients each saw must be the same story.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Backend, Chain, PATH_USD};

/// How things stood when the test began.
pub struct Ledger {
    payee: String,
    balance: u128,
    payments: usize,
    produced: u64,
}

impl Ledger {
    pub async fn open(chain: &Chain, backend: &Backend, payee: &str) -> Self {
        Self {
            payee: payee.to_owned(),
            balance: chain.balance(PATH_USD, payee).await,
            payments: chain.payments_to(payee).await.len(),
            produced: backend.tokens_produced(),
        }
    }

    /// Fails unless the payee holds exactly `charged` atoms more, in as many transfers as there are receipts, each
    /// receipt names one of them and no two the same, and the backend produced exactly `tokens`.
    pub async fn close(&self, chain: &Chain, backend: &Backend, receipts: &[Value], charged: u128, tokens: u64) {
        let earned = chain.balance(PATH_USD, &self.payee).await - self.balance;
        let payments: Vec<_> = chain.payments_to(&self.payee).await.split_off(self.payments);
        let moved: u128 = payments.iter().map(|p| p.amount).sum();
        assert_eq!(moved, charged, "transfers to the payee, in atoms: {payments:#?}");
        assert_eq!(earned, charged, "what the payee holds more, in atoms");
        let on_chain: BTreeSet<&str> = payments.iter().map(|p| p.tx.as_str()).collect();
        let receipted: BTreeSet<&str> = receipts.iter().filter_map(|r| r["reference"].as_str()).collect();
        assert_eq!(
            receipted.len(),
            receipts.len(),
            "two receipts name one transaction, or one names none: {receipts:#?}"
        );
        assert_eq!(receipted, on_chain, "receipts and transactions are not the same set");
        assert_eq!(backend.tokens_produced() - self.produced, tokens, "completion tokens that left the backend");
    }
}
