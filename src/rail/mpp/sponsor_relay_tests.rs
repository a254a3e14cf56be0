//! What is promised when a relay carries the fees.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

/// A relay that co-signs with a key of its own and then bends what it hands back.
struct Bending(fn(&mut TempoTransaction, &mut TempoSignature), AtomicUsize);

#[async_trait]
impl Relay for Bending {
    async fn sign(&self, envelope: &[u8]) -> Result<Option<Vec<u8>>, Unreachable> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let envelope = FeePayerEnvelope78::decode_envelope(envelope).unwrap();
        let (mut tx, mut signature, _) = envelope.to_recoverable_signed().into_parts();
        (tx.fee_token, tx.fee_payer_signature) = (Some(Address::repeat_byte(2)), None);
        (self.0)(&mut tx, &mut signature);
        let theirs = PrivateKeySigner::from_slice(&[6; 32]).unwrap();
        let carried = theirs.sign_hash_sync(&tx.fee_payer_signature_hash(envelope.sender)).unwrap();
        tx.fee_payer_signature = Some(carried);
        Ok(Some(tx.into_signed(signature).encoded_2718()))
    }
}

fn relayed_by(bench: &Bench, relay: Arc<dyn Relay>) -> Arc<Sponsor> {
    let terms = bench.sponsor.terms.clone();
    Arc::new(Sponsor::new(terms, Hand::Relay(relay), bench.node.clone(), bench.metrics.clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_hands_back_is_sent_only_if_it_is_the_payers_own_transaction() {
    type Bend = fn(&mut TempoTransaction, &mut TempoSignature);
    let rows: [(Bend, bool, &str); 6] = [
        (|_, _| (), true, "with its token and signature"),
        (|t, _| t.calls.push(pays(1)), false, "a call more"),
        (|t, _| t.gas_limit += 1, false, "more gas"),
        (|t, _| t.valid_before = None, false, "without an end"),
        (|t, _| t.nonce_key = U256::ZERO, false, "another nonce"),
        (
            |t, s| *s = TempoSignature::from(payer(9).sign_hash_sync(&t.signature_hash()).unwrap()),
            false,
            "another payer",
        ),
    ];
    for (bend, good, reason) in rows {
        let bench = bench(Usd::ONE);
        let relay = Arc::new(Bending(bend, AtomicUsize::new(0)));
        let sponsor = relayed_by(&bench, relay.clone());
        let now = UnixSeconds::now();
        assert!(sponsor.offers(now), "{reason}");
        let bytes = envelope(7, |_| ());
        let got = sponsor.cosign(sponsor.review(&bytes, CHARGE, now).unwrap()).await;
        match got {
            Ok(cosigned) => assert_eq!((good, cosigned.hash), (true, keccak256(&cosigned.raw)), "{reason}"),
            Err(refusal) => {
                assert_eq!((good, refusal.status()), (false, 503), "{reason}: {refusal:?}");
                assert!(!sponsor.offers(UnixSeconds::now()), "{reason}: a relay that fails is not offered");
            }
        }
        assert_eq!((bench.trials(), relay.1.load(Ordering::SeqCst)), (1, 1), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_relay_a_proof_is_known_by_what_was_signed_and_by_whom() {
    let bench = bench(Usd::ONE);
    let sponsor = relayed_by(&bench, Arc::new(Bending(|_, _| (), AtomicUsize::new(0))));
    let now = UnixSeconds::now();
    let [one, other] = [7, 8].map(|n| sealed(tx(now), &payer(n)).encoded_envelope());
    let (mine, theirs) = (sponsor.draft(&one).unwrap(), sponsor.draft(&other).unwrap());
    assert_eq!(mine.tx().signature_hash(), theirs.tx().signature_hash(), "the same words");
    assert_ne!(mine.hash(), theirs.hash(), "by another payer");
    assert_eq!((mine.space(), bench.sponsor.draft(&one).unwrap().space()), ("sponsored", "tx"));
    assert_eq!(sponsor.draft(&one).unwrap().hash(), mine.hash());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_not_asked_about_what_would_fail() {
    let bench = bench(Usd::ONE);
    *bench.node.tried.lock().unwrap() = Ok(Tried::Fails);
    let relay = Arc::new(Bending(|_, _| (), AtomicUsize::new(0)));
    let sponsor = relayed_by(&bench, relay.clone());
    let bytes = envelope(7, |_| ());
    for _ in 0..2 {
        let got = sponsor.cosign(sponsor.review(&bytes, CHARGE, UnixSeconds::now()).unwrap()).await;
        assert!(why(got.unwrap_err()).contains("would fail"));
    }
    assert_eq!((bench.trials(), relay.1.load(Ordering::SeqCst)), (1, 0));
}
