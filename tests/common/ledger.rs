//! The audit from outside: what the chain, the backend, the clients and the gate's own books each saw must be one story,
//! to the atom.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::Value;

use super::{Backend, Chain, Gate, PATH_USD, RawReply, payer};

/// How things stood when the test began, and what clients were given since.
pub struct Ledger {
    payee: String,
    balance: u128,
    payments: usize,
    produced: u64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    receipts: Vec<Value>,
    tokens: u64,
}

/// What a test says of the part that no client can see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen {
    /// Deliveries whose answer no client could read: the gate or the client was gone.
    pub deliveries: u64,
    /// Completion tokens that left the backend and reached nobody, or a client that was not listening.
    pub tokens: u64,
    /// Payments for which nothing was delivered.
    pub owed: u64,
}

/// What the gate's own audit said.
#[derive(Clone, Debug, Default)]
pub struct Books {
    pub receipts: u64,
    pub cut_short: u64,
    pub charged: u128,
    /// `(reference, atoms)` of what was paid and bought nothing.
    pub owed: Vec<(String, u128)>,
}

impl Ledger {
    pub async fn open(chain: &Chain, backend: &Backend, payee: &str) -> Self {
        Self {
            payee: payee.to_owned(),
            balance: chain.balance(PATH_USD, payee).await,
            payments: chain.payments_to(payee).await.len(),
            produced: backend.tokens_produced(),
            seen: Mutex::default(),
        }
    }

    /// A client was given an answer worth `tokens` completion tokens, with this (decoded) `Payment-Receipt`.
    pub fn sold(&self, receipt: &Value, tokens: u64) {
        let mut seen = self.seen.lock().unwrap();
        seen.receipts.push(receipt.clone());
        seen.tokens += tokens;
    }

    /// Writes down what a raw reply was worth, if it delivered anything: its receipt and its tokens, counted in its own
    /// bytes. The usage it states must be the same count.
    pub fn read(&self, reply: &RawReply) {
        let Some(receipt) = reply.header("payment-receipt") else {
            assert_ne!(reply.status, 200, "an answer without a receipt: {}", reply.text());
            return;
        };
        assert_eq!(reply.status, 200, "a receipt on an answer that delivers nothing: {}", reply.text());
        assert!(reply.header("cache-control").is_some_and(|v| v.contains("private")), "paid content may not be cached");
        self.sold(&payer::unpack(receipt), tokens_in(reply));
    }

    /// What clients were given so far: receipts, tokens.
    pub fn so_far(&self) -> (usize, u64) {
        let seen = self.seen.lock().unwrap();
        (seen.receipts.len(), seen.tokens)
    }

    /// Stops the gate and compares. Fails unless
    /// - `pontage audit` finds the stopped store sound;
    /// - the payee's balance grew by exactly what is in transfers to it, and these are exactly the sales and the debts in
    ///   the books: same transactions, same amounts;
    /// - every receipt that a client holds is one of these sales, no two the same, and none is missing beyond `unseen`;
    /// - the tokens that left the backend are those that clients got, beyond `unseen`.
    pub async fn audit(&self, chain: &Chain, backend: &Backend, gate: &mut Gate, unseen: Unseen) -> Books {
        gate.assert_no_secrets("/metrics", &gate.metrics().await);
        if gate.running() {
            gate.stop().await;
        }
        gate.assert_no_secrets("the log", &gate.log());
        let books = books(gate);
        let payments: Vec<_> = chain.payments_to(&self.payee).await.split_off(self.payments);
        let moved: u128 = payments.iter().map(|p| p.amount).sum();
        let earned = chain.balance(PATH_USD, &self.payee).await - self.balance;
        assert_eq!(earned, moved, "what the payee holds more, and the transfers to it: {payments:#?}");
        let debts: u128 = books.owed.iter().map(|(_, atoms)| atoms).sum();
        assert_eq!(moved, books.charged + debts, "atoms on chain, and in the books: {payments:#?} {books:#?}");

        let seen = self.seen.lock().unwrap();
        let sold: BTreeSet<&str> = seen.receipts.iter().filter_map(|r| r["reference"].as_str()).collect();
        assert_eq!(sold.len(), seen.receipts.len(), "receipts of one payment, or of none: {:#?}", seen.receipts);
        let names: BTreeSet<&str> = seen.receipts.iter().filter_map(|r| r["receiptId"].as_str()).collect();
        assert_eq!(names.len(), seen.receipts.len(), "two receipts have one id: {:#?}", seen.receipts);
        let owed: BTreeSet<&str> = books.owed.iter().map(|(reference, _)| reference.as_str()).collect();
        assert!(sold.is_disjoint(&owed), "delivered and owed: {books:#?}");
        for receipt in &seen.receipts {
            let charged: u128 = receipt["charged"].as_str().and_then(|c| c.parse().ok()).expect("an amount");
            let paid: Vec<u128> =
                payments.iter().filter(|p| receipt["reference"] == p.tx.as_str()).map(|p| p.amount).collect();
            let expected = if charged == 0 { vec![] } else { vec![charged] };
            assert_eq!(paid, expected, "the transfer that a receipt names: {receipt}");
        }
        for (reference, atoms) in &books.owed {
            assert!(
                payments.iter().any(|p| &p.tx == reference && p.amount == *atoms),
                "owed and not paid: {reference}"
            );
        }
        assert_eq!(books.owed.len() as u64, unseen.owed, "payments that bought nothing: {books:#?}");
        assert_eq!(books.receipts, seen.receipts.len() as u64 + unseen.deliveries, "sales in the books: {books:#?}");
        let produced = backend.tokens_produced() - self.produced;
        assert_eq!(produced, seen.tokens + unseen.tokens, "completion tokens: left the backend, reached clients");
        drop(seen);
        books
    }
}

/// `pontage audit` on the store of a gate that is stopped.
pub fn books(gate: &Gate) -> Books {
    let (status, said, complaint) = gate.verb(&["audit", "--store", "var/pontage.redb"]);
    assert!(status.success() && said.ends_with("result    sound\n"), "the books are not sound: {said}{complaint}");
    let mut books = Books::default();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| words.iter().position(|w| w.trim_end_matches(',') == word).map(|at| at + 1);
        let before = |word: &str| words.iter().position(|w| w.trim_end_matches(',') == word).map(|at| at - 1);
        let number = |at: Option<usize>| at.and_then(|at| words[at].parse::<u128>().ok()).expect(line);
        match words.first() {
            Some(&"charged") => {
                books.charged += number(after("="));
                books.receipts += number(before("receipts")) as u64;
                books.cut_short +=
                    number(before("of").map(|_| words.iter().rposition(|w| *w == "of").unwrap() - 1)) as u64;
            }
            Some(&"owed") => {
                let reference = words[after("reference").expect(line)].to_owned();
                books.owed.push((reference, number(after("paid"))));
            }
            _ => {}
        }
    }
    books
}

/// Completion tokens in a reply's own bytes: the words of the deterministic model. A reply that states its usage must
/// state the same, in the OpenAI form and in the receipt's block.
pub fn tokens_in(reply: &RawReply) -> u64 {
    let is_stream = reply.header("content-type").is_some_and(|v| v.starts_with("text/event-stream"));
    let events: Vec<Value> = match is_stream {
        false => vec![reply.json()],
        true => events(&reply.text()),
    };
    let (mut words, mut usage, mut stated) = (0, None, Vec::new());
    for event in &events {
        for choice in event["choices"].as_array().into_iter().flatten() {
            let text = choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or("");
            words += text.split_whitespace().count() as u64;
        }
        // A running figure may stand on every chunk; the last one counts.
        usage = event["usage"]["completion_tokens"].as_u64().or(usage);
        stated.extend(event["pontage"]["usage"]["completion_tokens"].as_u64());
    }
    for figure in stated.into_iter().chain(usage) {
        assert_eq!(figure, words, "the usage stated, and the tokens delivered: {}", reply.text());
    }
    words
}

/// The JSON events of a stream, `[DONE]` and comments left out.
pub fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|l| l.strip_prefix("data: ")).filter_map(|d| serde_json::from_str(d).ok()).collect()
}

/// The sealed receipt of a stream: its comment, unpacked.
pub fn sealed(text: &str) -> Option<Value> {
    text.lines().find_map(|l| l.strip_prefix(": pontage-receipt ")).map(payer::unpack)
}
