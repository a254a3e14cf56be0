//! What a sponsor promises, without a chain: every node here counts what it is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::envelope::{MAX_ENVELOPE, OPEN, TOP_UP};
use super::*;
use crate::chain::Unreachable;
use crate::chain::reserve::RESERVE;
use crate::store::embedded::Embedded;
use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::eips::eip2930::{AccessList, AccessListItem};
use alloy::primitives::{Signature, TxKind, U256};
use alloy::sol_types::SolCall as _;
use async_trait::async_trait;
use futures::future::join_all;
use std::num::NonZeroU64;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;
use tempo_alloy::contracts::precompiles::ITIP20;
use tempo_alloy::primitives::transaction::{
    Call, KeychainSignature, PrimitiveSignature, TEMPO_EXPIRING_NONCE_KEY, TempoSignature,
};

const CHAIN: u64 = 42431;
const TOKEN: &str = "0x20c0000000000000000000000000000000000000";
const PAYEE: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const CENT: u128 = 10_000_000_000_000_000;
/// Gas limit × price of [`tx`]: 0.03 USD.
const WORST: Usd = Usd(3 * CENT);
const CHARGE: Purpose = Purpose::Charge { amount: Atoms(10_000) };

/// A node under the test's control.
struct Node {
    trials: AtomicUsize,
    tried: Mutex<Result<Tried, Unreachable>>,
    cost: Mutex<Result<Option<Usd>, Unreachable>>,
    held: Mutex<u128>,
    /// Trials wait until this is true.
    open: tokio::sync::watch::Sender<bool>,
}

#[async_trait]
impl Fees for Node {
    async fn trial(&self, _: &Trial) -> Result<Tried, Unreachable> {
        self.trials.fetch_add(1, Ordering::SeqCst);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        *self.tried.lock().unwrap()
    }
    async fn fee(&self, _: B256) -> Result<Option<Usd>, Unreachable> {
        *self.cost.lock().unwrap()
    }
    async fn balance(&self, _: Address, _: Address) -> Result<u128, Unreachable> {
        Ok(*self.held.lock().unwrap())
    }
}

struct Bench {
    sponsor: Arc<Sponsor>,
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    _dir: tempfile::TempDir,
}

fn bench(usd_per_day: Usd) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&dir.path().join("s.redb")).unwrap());
    let node = Arc::new(Node {
        trials: AtomicUsize::new(0),
        tried: Mutex::new(Ok(Tried::Passes)),
        cost: Mutex::new(Ok(None)),
        held: Mutex::new(1_000_000),
        open: tokio::sync::watch::channel(true).0,
    });
    let metrics = Arc::new(Metrics::new());
    let terms = Terms {
        section: "tempo".into(),
        chain_id: CHAIN,
        currency: TOKEN.parse().unwrap(),
        recipient: PAYEE.parse().unwrap(),
        look_every: Duration::from_millis(5),
    };
    let hand = Hand::Own { key: Secret::new([5; 32]), usd_per_day, store };
    let sponsor = Sponsor::new(terms, hand, node.clone(), metrics.clone()).unwrap();
    Bench { sponsor: Arc::new(sponsor), node, metrics, _dir: dir }
}

fn own(key: Secret, store: &Arc<dyn Store>) -> Hand {
    Hand::Own { key, usd_per_day: Usd::ONE, store: store.clone() }
}

impl Bench {
    fn budget(&self) -> &Budget {
        let Carrier::Own { budget, .. } = &self.sponsor.carrier else { panic!("an account of ours") };
        budget
    }

    fn trials(&self) -> usize {
        self.node.trials.load(Ordering::SeqCst)
    }

    async fn cosign(&self, envelope: &[u8]) -> Result<Cosigned, Refusal> {
        self.sponsor.cosign(self.sponsor.review(envelope, CHARGE, UnixSeconds::now())?).await
    }

    fn counted(&self, outcome: &str) -> u64 {
        self.metrics.sponsored.with_label_values(&["tempo/charge", outcome]).get()
    }
}

fn payer(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_slice(&[n; 32]).unwrap()
}

fn pays(amount: u128) -> Call {
    let call = ITIP20::transferWithMemoCall {
        to: PAYEE.parse().unwrap(),
        amount: U256::from(amount),
        memo: B256::repeat_byte(7),
    };
    Call { to: TxKind::Call(TOKEN.parse().unwrap()), value: U256::ZERO, input: call.abi_encode().into() }
}

fn to_reserve(selector: [u8; 4], words: usize) -> Call {
    let input = [&selector[..], &vec![0; words * 32]].concat();
    Call { to: TxKind::Call(RESERVE), value: U256::ZERO, input: input.into() }
}

/// What a wallet signs when it is told that the fee is carried.
fn tx(now: UnixSeconds) -> TempoTransaction {
    TempoTransaction {
        chain_id: CHAIN,
        nonce: 0,
        nonce_key: TEMPO_EXPIRING_NONCE_KEY,
        gas_limit: 1_000_000,
        max_fee_per_gas: 30_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        fee_token: None,
        calls: vec![pays(10_000)],
        access_list: AccessList::default(),
        fee_payer_signature: Some(Signature::new(U256::ZERO, U256::ZERO, false)),
        valid_before: NonZeroU64::new(now.0 + 25),
        valid_after: None,
        key_authorization: None,
        tempo_authorization_list: vec![],
    }
}

fn sealed(tx: TempoTransaction, by: &PrivateKeySigner) -> FeePayerEnvelope78 {
    let signature = by.sign_hash_sync(&tx.signature_hash()).unwrap();
    FeePayerEnvelope78::from_signing_tx(tx, by.address(), TempoSignature::from(signature))
}

fn envelope(n: u8, change: impl FnOnce(&mut TempoTransaction)) -> Vec<u8> {
    let mut tx = tx(UnixSeconds::now());
    change(&mut tx);
    sealed(tx, &payer(n)).encoded_envelope()
}

fn why(refusal: Refusal) -> String {
    let Refusal::PaymentInvalid { why } = refusal else { panic!("{refusal:?}") };
    why
}

#[test]
fn what_is_signed_is_exactly_what_is_due_and_costs_no_more_than_it_may() {
    let bench = bench(Usd::ONE);
    let now = UnixSeconds::now();
    let later = move |seconds: u64| NonZeroU64::new(now.0 + seconds);
    type Change = Box<dyn Fn(&mut TempoTransaction)>;
    let case = |f: fn(&mut TempoTransaction)| -> Change { Box::new(f) };
    let call = |f: fn(&mut Call)| -> Change { Box::new(move |t| f(&mut t.calls[0])) };
    let until = |end: Option<NonZeroU64>| -> Change { Box::new(move |t| t.valid_before = end) };
    let other = "holds exactly the call that is due";
    let rows: Vec<(Change, Option<&str>, &str)> = vec![
        (case(|_| ()), None, "as it should be"),
        (case(|t| t.calls = vec![]), Some(other), "no call"),
        (case(|t| t.calls.push(pays(10_000))), Some(other), "paid twice on one ticket"),
        (case(|t| t.calls.insert(0, to_reserve(OPEN.0, 6))), Some(other), "a call that rides along"),
        (case(|t| t.calls[0] = pays(9_999)), Some(other), "an atom short"),
        (case(|t| t.calls[0] = pays(10_001)), Some(other), "an atom over"),
        (case(|t| t.calls[0] = to_reserve(OPEN.0, 6)), Some(other), "an opening instead of a payment"),
        (call(|c| c.to = TxKind::Call(RESERVE)), Some(other), "another contract"),
        (call(|c| c.to = TxKind::Create), Some(other), "a new contract"),
        (call(|c| c.value = U256::from(1)), Some(other), "value"),
        (call(|c| c.input = [&c.input[..], &[0]].concat().into()), Some(other), "calldata with a tail"),
        (call(|c| c.input = [&c.input[..], &[0; 3200]].concat().into()), Some(other), "padded calldata costs gas"),
        (
            call(|c| {
                let mut input = c.input.to_vec();
                input[4] = 1;
                c.input = input.into();
            }),
            Some(other),
            "an address with dirt above it",
        ),
        (
            call(|c| {
                let mut input = c.input.to_vec();
                input[35] ^= 1;
                c.input = input.into();
            }),
            Some(other),
            "another payee",
        ),
        (
            call(|c| {
                let plain = ITIP20::transferCall { to: PAYEE.parse().unwrap(), amount: U256::from(10_000) };
                c.input = plain.abi_encode().into();
            }),
            None,
            "a plain transfer; the crate looks for the memo",
        ),
        (
            call(|c| {
                let from = ITIP20::transferFromCall {
                    from: PAYEE.parse().unwrap(),
                    to: PAYEE.parse().unwrap(),
                    amount: U256::from(10_000),
                };
                c.input = from.abi_encode().into();
            }),
            Some(other),
            "another function",
        ),
        (case(|t| t.chain_id = 4217), Some("another chain"), "another chain"),
        (case(|t| t.fee_token = Some(TOKEN.parse().unwrap())), Some("no fee token"), "the payer's choice of token"),
        (case(|t| t.nonce_key = U256::ZERO), Some("expiring nonce"), "a nonce that others can use up"),
        (case(|t| t.nonce = 1), Some("expiring nonce"), "a nonce in it all the same"),
        (
            case(|t| (t.gas_limit, t.max_fee_per_gas) = (2_000_001, 20_000_000_000)),
            Some("gas limit"),
            "more gas than any payment needs",
        ),
        (
            case(|t| (t.gas_limit, t.max_fee_per_gas) = (100_000, 100_000_000_001)),
            Some("maxFeePerGas"),
            "a price above the limit",
        ),
        (case(|t| (t.gas_limit, t.max_fee_per_gas) = (100_000, 100_000_000_000)), None, "a price on the limit"),
        (
            case(|t| {
                (t.gas_limit, t.max_fee_per_gas) = (100_000, 60_000_000_000);
                t.max_priority_fee_per_gas = 50_000_000_001;
            }),
            Some("maxPriorityFeePerGas"),
            "a tip above the limit",
        ),
        (
            case(|t| t.max_priority_fee_per_gas = t.max_fee_per_gas + 1),
            Some("maxPriorityFeePerGas"),
            "a tip above the price",
        ),
        (case(|t| t.max_fee_per_gas = 50_000_000_001), Some("whole fee"), "0.050000000001 USD in all"),
        (case(|t| t.max_fee_per_gas = 50_000_000_000), None, "0.05 USD in all"),
        (until(None), Some("validBefore"), "without an end"),
        (until(later(0)), None, "what was sent before is known by the same credential: its end is for who signs"),
        (until(later(900)), None, "15 minutes"),
        (until(later(901)), Some("15 minutes"), "a second more"),
        (
            Box::new(move |t| t.valid_after = later(1)),
            Some("validAfter"),
            "not valid yet: what we signed would lie around",
        ),
    ];
    for (change, want, reason) in rows {
        let mut changed = tx(now);
        change(&mut changed);
        let bytes = sealed(changed, &payer(7)).encoded_envelope();
        match (bench.sponsor.review(&bytes, CHARGE, now), want) {
            (Ok(reviewed), None) => assert_eq!(reviewed.payer(), payer(7).address(), "{reason}"),
            (Err(refusal), Some(want)) => {
                let said = why(refusal);
                assert!(said.contains(want), "{reason}: {said}");
            }
            (got, _) => panic!("{reason}: {got:?}"),
        }
    }
    assert_eq!(bench.trials(), 0, "none of this asked the chain");
}

#[tokio::test]
async fn strangers_who_cannot_pay_do_not_keep_a_payer_from_being_sponsored() {
    let bench = bench(Usd::ONE);
    let until = UnixSeconds::now().plus(900);
    let full = |state: Tested| {
        let mut trials = bench.sponsor.trials();
        trials.clear();
        for n in 0..MAX_REMEMBERED {
            trials.insert((Address::ZERO, B256::from(U256::from(n))), Remembered { until, state });
        }
    };
    full(Tested::Fails);
    assert!(bench.cosign(&envelope(7, |_| ())).await.is_ok(), "what failed makes room");
    full(Tested::Reserved);
    let got = bench.cosign(&envelope(8, |_| ())).await;
    assert!(matches!(got, Err(Refusal::TooBusy { .. })), "what is owed does not: {got:?}");
}

#[tokio::test]
async fn a_fee_is_carried_only_for_what_stays_valid_long_enough() {
    let bench = bench(Usd::ONE);
    for (left, taken, why) in [(13, false, "fewer than 15 seconds"), (20, true, "more"), (0, false, "over")] {
        let got = bench.cosign(&envelope(7, |tx| tx.valid_before = NonZeroU64::new(UnixSeconds::now().0 + left))).await;
        assert_eq!(got.is_ok(), taken, "{why}: {got:?}");
    }
    assert_eq!(bench.trials(), 1, "what is too late is not asked about");
}

#[test]
fn the_envelope_itself_hides_nothing() {
    let bench = bench(Usd::ONE);
    let now = UnixSeconds::now();
    let good = sealed(tx(now), &payer(7));
    let bytes = good.encoded_envelope();
    let changed = |change: fn(&mut FeePayerEnvelope78)| {
        let mut envelope = good.clone();
        change(&mut envelope);
        envelope.encoded_envelope()
    };
    let keychain = {
        let inner = payer(7).sign_hash_sync(&good.to_recoverable_signed().signature_hash()).unwrap();
        let mut envelope = good.clone();
        let wrapped = KeychainSignature::new(payer(8).address(), PrimitiveSignature::Secp256k1(inner));
        (envelope.sender, envelope.signature) = (payer(8).address(), TempoSignature::Keychain(wrapped));
        envelope.encoded_envelope()
    };
    let sponsors_own = {
        let ours = PrivateKeySigner::from_slice(&[5; 32]).unwrap();
        sealed(tx(now), &ours).encoded_envelope()
    };
    let whole = bench.sponsor.draft(&bytes).unwrap();
    for (bytes, want, reason) in [
        ([&bytes[..], &[0]].concat(), "cannot be decoded", "a tail"),
        (bytes[1..].to_vec(), "cannot be decoded", "no type"),
        (vec![0x78], "cannot be decoded", "only a type"),
        (vec![0x78; MAX_ENVELOPE + 1], "too large", "oversized"),
        (whole.raw.clone(), "cannot be decoded", "a transaction that carries a sponsor's signature already"),
        (
            changed(|e| e.access_list = AccessList(vec![AccessListItem::default()])),
            "canonical",
            "an access list, which the crate would drop and nobody signed",
        ),
        (changed(|e| e.sender = Address::repeat_byte(9)), "not the sender's", "somebody else's account"),
        (changed(|e| e.gas_limit += 1), "not the sender's", "changed after it was signed"),
        (keychain, "account's own key", "a key of which only the chain knows whether it may sign"),
        (sponsors_own, "its own way", "our own account as the payer"),
    ] {
        let said = why(bench.sponsor.review(&bytes, CHARGE, now).unwrap_err());
        assert!(said.contains(want), "{reason}: {said}");
    }
    assert_eq!(bench.counted("refused"), 10);
}

#[test]
fn an_opening_and_a_top_up_hold_their_one_call_to_the_reserve() {
    let bench = bench(Usd::ONE);
    let now = UnixSeconds::now();
    for (call, purpose, good, reason) in [
        (to_reserve(OPEN.0, 6), Purpose::Open, true, "open"),
        (to_reserve(TOP_UP.0, 8), Purpose::TopUp, true, "topUp"),
        (to_reserve(TOP_UP.0, 8), Purpose::Open, false, "a top-up where a channel is to be opened"),
        (to_reserve(OPEN.0, 6), Purpose::TopUp, false, "the reverse"),
        (to_reserve(OPEN.0, 7), Purpose::Open, false, "padded"),
        (to_reserve([0x67, 0x54, 0x02, 0xe5], 8), Purpose::TopUp, false, "requestClose"),
        (Call { to: pays(1).to, ..to_reserve(OPEN.0, 6) }, Purpose::Open, false, "said to the token"),
        (pays(10_000), Purpose::Open, false, "a payment"),
    ] {
        let mut tx = tx(now);
        tx.calls = vec![call];
        let bytes = sealed(tx, &payer(7)).encoded_envelope();
        assert_eq!(bench.sponsor.review(&bytes, purpose, now).is_ok(), good, "{reason}");
    }
}

#[test]
fn a_recorded_envelope_becomes_the_very_transaction_that_was_mined() {
    let path = format!("{}/tests/golden/charge-sponsored.json", env!("CARGO_MANIFEST_DIR"));
    let record: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let paid = &record["exchanges"][1];
    let signed = paid["request"]["authorizationDecoded"]["payload"]["signature"].as_str().unwrap();
    let mined = paid["response"]["paymentReceiptDecoded"]["reference"].as_str().unwrap();
    let bench = bench(Usd::ONE);
    let bytes = alloy::hex::decode(signed).unwrap();
    let at = UnixSeconds::parse_rfc3339("2026-11-21T00:42:03Z").unwrap();
    let reviewed = bench.sponsor.review(&bytes, CHARGE, at).unwrap();
    assert_eq!(reviewed.payer(), "0x70997970C51812dc3A010C7d01b50e0d17dc79C8".parse::<Address>().unwrap());
    // Its sponsor was one of the chain's public accounts; which, and its fee token, the record does not say.
    let accounts = [
        "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
        "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
        "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
        "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
        "8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
        "92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
        "4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
        "dbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
        "2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
    ];
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("s.redb")).unwrap());
    let hashes = accounts.iter().flat_map(|key| {
        let key = Secret::new(alloy::hex::decode(key).unwrap());
        (0..4u8).map({
            let (node, store, metrics, bytes) = (bench.node.clone(), store.clone(), bench.metrics.clone(), &bytes);
            let terms = bench.sponsor.terms.clone();
            move |n| {
                let mut token = terms.currency;
                token.0[19] = n;
                let terms = Terms { currency: token, ..terms.clone() };
                let sponsor = Sponsor::new(terms, own(key.clone(), &store), node.clone(), metrics.clone()).unwrap();
                sponsor.draft(bytes).unwrap().hash().to_string()
            }
        })
    });
    assert!(hashes.collect::<Vec<_>>().contains(&mined.to_owned()), "the hash on chain follows from the envelope");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_the_payers_transaction_with_our_signature_for_the_fee() {
    let bench = bench(Usd::ONE);
    let bytes = envelope(7, |_| ());
    let draft = bench.sponsor.draft(&bytes).unwrap();
    let cosigned = bench.cosign(&bytes).await.unwrap();
    assert_eq!(cosigned.hash, draft.hash(), "known from the envelope alone");
    assert_eq!(cosigned.hash, keccak256(&cosigned.raw));
    let sent = AASigned::decode_2718(&mut &cosigned.raw[..]).unwrap();
    let sender = sent.recover_signer().unwrap();
    assert_eq!(sender, payer(7).address());
    let ours = PrivateKeySigner::from_slice(&[5; 32]).unwrap();
    assert_eq!(sent.tx().recover_fee_payer(sender).unwrap(), ours.address());
    assert_eq!(sent.tx().fee_token, Some(TOKEN.parse().unwrap()));
    assert_eq!((&sent.tx().calls, sent.tx().gas_limit), (&draft.tx().calls, 1_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signature_is_tried_once_and_set_aside_once_however_often_it_is_shown() {
    let bench = bench(Usd::ONE);
    let bytes = envelope(7, |_| ());
    bench.node.open.send_replace(false);
    let (running, turned_away) = (bench.cosign(&bytes), async {
        while bench.trials() == 0 {
            tokio::task::yield_now().await;
        }
        let copies = join_all((0..63).map(|_| bench.cosign(&bytes))).await;
        assert!(copies.iter().all(|c| matches!(c, Err(Refusal::ProofRunning { .. }))), "{copies:?}");
        bench.node.open.send_replace(true);
    });
    let (first, ()) = futures::join!(running, turned_away);
    let first = first.unwrap();
    for again in join_all((0..8).map(|_| bench.cosign(&bytes))).await.into_iter().flatten() {
        assert_eq!(again, first, "the same bytes");
    }
    assert_eq!(bench.cosign(&bytes).await.as_ref(), Ok(&first));
    assert_eq!(bench.trials(), 1);
    assert_eq!(bench.budget().left(UnixSeconds::now()), Usd::ONE.less(WORST), "one reservation");
    assert_eq!(bench.counted("cosigned"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_would_fail_is_not_signed_and_costs_nothing() {
    let bench = bench(Usd::ONE);
    *bench.node.tried.lock().unwrap() = Ok(Tried::Fails);
    let bytes = envelope(7, |_| ());
    for _ in 0..3 {
        assert!(why(bench.cosign(&bytes).await.unwrap_err()).contains("would fail"));
    }
    assert_eq!(bench.trials(), 1, "asked once");
    bench.budget().learn(UnixSeconds::now()).await.unwrap();
    assert_eq!(bench.budget().left(UnixSeconds::now()), Usd::ONE);
    assert_eq!((bench.counted("fails"), bench.counted("cosigned")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_asked_is_nobodys_fault_and_the_same_signature_stays_good() {
    let bench = bench(Usd::ONE);
    *bench.node.tried.lock().unwrap() = Err(Unreachable { why: "gone" });
    let bytes = envelope(7, |_| ());
    assert!(matches!(bench.cosign(&bytes).await, Err(Refusal::NoOffer { .. })));
    *bench.node.tried.lock().unwrap() = Ok(Tried::Passes);
    assert!(bench.cosign(&bytes).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_payers_at_once_get_what_the_day_allows_and_no_more() {
    // Room for ten at 0.03 USD.
    let bench = bench(Usd(30 * CENT));
    bench.sponsor.probe(UnixSeconds::now()).await;
    assert!(bench.sponsor.offers(UnixSeconds::now()));
    let envelopes: Vec<_> = (10..74).map(|n| envelope(n, |_| ())).collect();
    let got = join_all(envelopes.iter().map(|e| bench.cosign(e))).await;
    assert_eq!(got.iter().filter(|r| r.is_ok()).count(), 10);
    for refused in got.into_iter().filter_map(Result::err) {
        assert!(why(refused).contains("pay this one yourself"));
    }
    assert!(!bench.sponsor.offers(UnixSeconds::now()), "and it is not offered any more");
    let asked = bench.trials();
    assert!(bench.cosign(&envelope(90, |_| ())).await.is_err());
    assert_eq!(bench.trials(), asked, "an empty budget asks the chain nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_payer_cannot_use_up_what_is_there_for_all() {
    // A tenth is 0.30 USD: ten of 0.03.
    let bench = bench(Usd(300 * CENT));
    let envelopes: Vec<_> = (0..64).map(|n| envelope(7, |t| t.gas_limit -= n)).collect();
    let got = join_all(envelopes.iter().map(|e| bench.cosign(e))).await;
    assert_eq!(got.iter().filter(|r| r.is_ok()).count(), 10);
    assert!(bench.counted("payer_share") >= 54 && bench.counted("budget") == 0);
    assert!(bench.cosign(&envelope(8, |_| ())).await.is_ok(), "others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_did_not_cost_is_there_again() {
    let bench = bench(Usd::ONE);
    let cost = Usd(67_000_000_000_000);
    *bench.node.cost.lock().unwrap() = Ok(Some(cost));
    bench.cosign(&envelope(7, |_| ())).await.unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while bench.budget().left(UnixSeconds::now()) != Usd::ONE.less(cost) {
        assert!(Instant::now() < end, "left {}", bench.budget().left(UnixSeconds::now()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shown = bench.metrics.sponsored_usd.with_label_values(&["tempo/charge"]).get();
    assert!((shown - 0.000_067).abs() < 1e-9, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_never_mined_cost_nothing() {
    let bench = bench(Usd::ONE);
    let now = UnixSeconds::now();
    let held = bench.budget().reserve(payer(7).address(), WORST, now).await.unwrap();
    assert_eq!(bench.budget().left(now), Usd::ONE.less(WORST));
    Arc::clone(&bench.sponsor).follow(B256::ZERO, held, UnixSeconds(now.0 - 60), CHARGE).await;
    assert_eq!(bench.budget().left(now), Usd::ONE);
}

#[tokio::test]
async fn an_empty_account_offers_nothing() {
    let bench = bench(Usd::ONE);
    let now = UnixSeconds::now();
    assert!(!bench.sponsor.offers(now), "not looked at yet");
    for (held, offers, reason) in
        [(0, false, "nothing"), (49_999, false, "less than one may cost"), (50_000, true, "enough for one")]
    {
        *bench.node.held.lock().unwrap() = held;
        bench.sponsor.probe(now).await;
        assert_eq!(bench.sponsor.offers(now), offers, "{reason}");
    }
}

#[test]
fn a_key_that_must_not_sign_is_refused_and_never_shown() {
    let bench = bench(Usd::ONE);
    let store = Arc::new(Embedded::open(&bench._dir.path().join("t.redb")).unwrap());
    let payees = alloy::hex::decode("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80").unwrap();
    for (key, want) in [(vec![0; 32], "not a private key"), (vec![1; 31], "not a private key"), (payees, "recipient's")]
    {
        let hand = Hand::Own { key: Secret::new(key), usd_per_day: Usd::ONE, store: store.clone() };
        let made = Sponsor::new(bench.sponsor.terms.clone(), hand, bench.node.clone(), bench.metrics.clone());
        let said = made.err().unwrap();
        assert!(said.contains(want), "{said}");
    }
}

#[cfg(test)]
#[path = "sponsor_relay_tests.rs"]
mod relayed;
