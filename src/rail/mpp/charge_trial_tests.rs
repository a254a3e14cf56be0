//! What a charge asks the chain before it is claimed.

use super::*;

#[tokio::test]
async fn what_could_stay_in_doubt_for_ever_is_refused_by_its_form() {
    let bench = bench();
    let credential = bench.answer(&terms(10_000)).await;
    let text = credential.charge_payload().unwrap().signed_tx().unwrap().to_owned();
    type Change = fn(&mut tempo_alloy::primitives::TempoTransaction);
    let cases: [(Change, &str, &str); 4] = [
        (|tx| tx.nonce_key = alloy::primitives::U256::ONE, "an expiring nonce", "a nonce may stand behind a gap"),
        (|tx| tx.nonce = 1, "an expiring nonce", "an expiring nonce is 0"),
        (|tx| tx.gas_limit = (1 << 24) + 1, "gas limit", "no block has room for it"),
        (|tx| tx.max_priority_fee_per_gas = tx.max_fee_per_gas + 1, "maxPriorityFeePerGas", "no node takes it"),
    ];
    for (change, want, why) in cases {
        let mut signed = AASigned::decode_2718(&mut hex_bytes(&text).unwrap().as_slice()).unwrap();
        change(signed.tx_mut());
        let again = AASigned::new_unhashed(signed.tx().clone(), signed.signature().clone());
        let payload =
            PaymentPayload::transaction(alloy::hex::encode_prefixed(alloy::eips::Encodable2718::encoded_2718(&again)));
        let changed = PaymentCredential::new(credential.challenge.clone(), payload);
        let got = bench.admit(&changed, &ask(&terms(10_000))).await.unwrap_err();
        assert!(matches!(&got, Refusal::PaymentInvalid { why } if why.contains(want)), "{why}: {got:?}");
    }
    assert_eq!(bench.calls(), 0);
}

#[tokio::test]
async fn a_payment_that_would_fail_costs_one_question_and_is_never_sent() {
    let bench = bench();
    let credential = bench.answer(&terms(10_000)).await;
    let proof = bench.admit(&credential, &ask(&terms(10_000))).await.unwrap();
    let shown = Shown::Mpp(Box::new(credential));
    *bench.node.trial.lock().unwrap() = Tried::Fails;
    let got = bench.rail.complete(&shown, proof.clone(), true).await.unwrap_err();
    assert!(matches!(got, Refusal::PaymentFailed { .. }), "{got:?}");
    assert_eq!(bench.calls(), 1);
    *bench.node.trial.lock().unwrap() = Tried::Passes;
    assert_eq!(bench.rail.complete(&shown, proof.clone(), true).await.unwrap(), proof, "paid up meanwhile");
    assert_eq!(bench.calls(), 2);
}

#[tokio::test]
async fn what_the_payer_sent_in_time_is_good_after_the_offers_end_and_what_came_late_is_not_asked_for_again() {
    let bench = bench_with(Settings { accept_push: true, ..settings() });
    let terms = terms(10_000);
    let echo = bench.challenge(&terms).to_echo();
    let source = format!("did:pkh:eip155:{CHAIN}:{PAYEE}");
    let hash = json!({"type": "hash", "hash": B256::repeat_byte(9)});
    let credential = PaymentCredential::with_source(echo.clone(), source, hash);
    let shown = Shown::Mpp(Box::new(credential));
    let known = bench.rail.recognise(&shown, &ask(&terms)).unwrap().unwrap();
    let ends = known.expires;
    // As if the offer had been made long ago: the rail's own clock decides.
    let over = UnixSeconds(UnixSeconds::now().0 - 100);
    let late = bench.rail.check(&shown, known.clone(), &ask(&terms), ends.plus(100)).await.unwrap();
    let forgotten = bench.rail.check(&shown, known.clone(), &ask(&terms), ends.plus(86_400)).await;
    assert_eq!(forgotten.err(), Some(Refusal::OfferExpired), "its claim may be forgotten by then");
    let late = Proof { recognised: Recognised { expires: over, ..late.recognised }, ..late };
    let paid = Inclusion::Done {
        block: 3,
        sender: PAYEE.parse().unwrap(),
        transfers: vec![Transfer {
            token: TOKEN.parse().unwrap(),
            from: PAYEE.parse().unwrap(),
            to: PAYEE.parse().unwrap(),
            amount: 10_000,
            memo: Some(attribution::encode(&echo.id, "llm.test", None)),
        }],
    };
    let other = Inclusion::Done { block: 3, sender: PAYEE.parse().unwrap(), transfers: vec![] };
    let head = |time: UnixSeconds| Ok(Head { chain_id: CHAIN, number: 9, time });
    let gone = Err(Unreachable { why: "gone" });
    let now = UnixSeconds::now();
    for (seen, at, head, want, why) in [
        (paid.clone(), over, head(now), Ok(()), "mined in time"),
        (paid.clone(), over.plus(31), head(now), Err("payment_spent"), "mined late: no invitation to pay again"),
        (other, over, head(now), Err("payment_failed"), "something else"),
        (Inclusion::Reverted { block: 3 }, over, head(now), Err("payment_failed"), "reverted"),
        (Inclusion::Absent, over, head(now), Err("offer_expired"), "never mined, and never will be"),
        (Inclusion::Absent, over, head(over.plus(30)), Err("payment_unknown"), "the node may lag"),
        (paid, over, gone, Err("payment_unknown"), "nobody can be asked"),
    ] {
        *bench.node.seen.lock().unwrap() = seen;
        *bench.node.mined_at.lock().unwrap() = at;
        *bench.node.head.lock().unwrap() = head;
        let got = bench.rail.complete(&shown, late.clone(), true).await;
        assert_eq!(got.map(|_| ()).map_err(|refusal| refusal.code()), want, "{why}");
    }
    let closed = bench_with(settings()).rail.check(&shown, known, &ask(&terms), ends.plus(100)).await;
    assert_eq!(closed, Err(Refusal::OfferExpired), "where no push is taken");
}
