//! Every way a credential can go.

use super::*;
use crate::claim::Op;
use crate::flow::receipt::Signet;
use crate::flow::settle::{Delivery, End, NOT_THIS_ONE};
use crate::refusal::Moved;
use crate::secret::Secret;
use crate::surface::Surface;
use std::sync::atomic::Ordering::SeqCst;

fn delivery(bed: &Bed, paid: Paid) -> Delivery {
    let signet = Arc::new(Signet::new(&Secret::new([7u8; 32])).unwrap());
    let request = match &paid.hold().claim().standing {
        Standing::Serving { by } => by.clone(),
        other => panic!("{other:?}"),
    };
    Delivery::begin(Arc::clone(&bed.toll), signet, paid, &request)
}

const REPLY: &str = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}"#;

#[tokio::test]
async fn a_payment_is_claimed_paid_delivered_with_its_receipt_and_then_spent() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert_eq!(paid.output, 10);
    let amount = paid.hold().terms().amount;
    assert_eq!(Some(amount), bed.quote(PATH, &body).await.unwrap().parts.price_usd.to_atoms(6));

    let mut delivery = delivery(&bed, paid);
    let sent = delivery.whole(REPLY.into()).await.unwrap();
    let receipt = delivery.receipt().clone();
    assert_eq!(receipt.charged, amount);
    assert!(receipt.complete);
    assert_eq!(receipt.usage.map(|u| u.completion), Some(3));
    let shown: serde_json::Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(shown["pontage"]["id"], receipt.id.as_str());
    assert_eq!(bed.store.inner.receipt(&receipt.id).await.unwrap(), Some(receipt.clone()), "in the books as sent");
    assert_eq!(bed.claim("a").await.unwrap().standing, Standing::Delivered { receipt: receipt.id });

    let again = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!(again, Stop { refusal: Refusal::ProofSpent, moved: Moved::Yes, claimed: true });
    assert_eq!(bed.rail.collects(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_copies_at_once_one_is_served_and_the_others_are_told_to_wait() {
    for round in 0..8 {
        let bed = Arc::new(Bed::new());
        bed.rail.open.send_replace(false);
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let barrier = Arc::new(tokio::sync::Barrier::new(32));
        let copies: Vec<_> = (0..32)
            .map(|_| {
                let (bed, body, credential, barrier) =
                    (Arc::clone(&bed), body.clone(), credential.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    bed.pay(PATH, &body, &credential).await.map(|paid| paid.into_hold().claim().key.0.clone())
                })
            })
            .collect();
        // The winner holds its place on the chain until every loser has its answer.
        until(|| async { copies.iter().filter(|copy| copy.is_finished()).count() == 31 }).await;
        bed.rail.open.send_replace(true);
        let mut won = 0;
        for copy in copies {
            match copy.await.unwrap() {
                Ok(_) => won += 1,
                Err(stop) => {
                    assert!(matches!(stop.refusal, Refusal::ProofRunning { .. }), "round {round}: {stop:?}");
                    assert!(stop.claimed);
                    assert_ne!(stop.moved, Moved::No);
                }
            }
        }
        assert_eq!((won, bed.rail.collects()), (1, 1), "round {round}");
    }
}

#[tokio::test]
async fn whoever_shows_a_proof_again_hears_where_it_stands() {
    let at = UnixSeconds::now();
    let by = || "r0".to_owned();
    for (ops, want, moved, why) in [
        (vec![], "payment_in_use", Moved::Unknown, "another request is collecting it"),
        (
            vec![Op::Pay { by: by(), transaction: None }],
            "payment_in_use",
            Moved::Unknown,
            "another request is being served",
        ),
        (
            vec![Op::Pay { by: by(), transaction: None }, Op::Deliver { by: by(), receipt: "rcpt".into() }],
            "payment_spent",
            Moved::Yes,
            "it has bought its reply",
        ),
        (vec![Op::Die], "payment_failed", Moved::No, "it never went through"),
    ] {
        let bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        put(&bed, &credential, &ops, at).await;
        let before = bed.claim("a").await;
        let stop = stopped(bed.pay(PATH, &body, &credential).await);
        assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), (want, moved, true), "{why}");
        assert_eq!(bed.claim("a").await, before, "{why}: nothing changed");
        assert_eq!(bed.rail.collects(), 0, "{why}");
    }
}

/// A claim of proof `a` as an earlier request left it.
async fn put(bed: &Bed, credential: &Shown, ops: &[Op], at: UnixSeconds) {
    let nothing = crate::claim::sample::claim("a", 1).terms;
    let live = crate::rail::Ask { terms: &nothing, digest: [0; 32], description: "", lasts: 0 };
    let known = bed.rail.recognise(credential, &live).unwrap().unwrap();
    let mut claim = Claim {
        terms: known.terms,
        challenge_id: known.challenge_id,
        claimed_at: at,
        collect_until: at.plus(300),
        ..crate::claim::sample::claim("a", 1)
    };
    bed.store.inner.commit(Write { claim: Some(claim.clone()), ..Write::default() }).await.unwrap();
    for op in ops {
        claim = claim.apply(op.clone(), at).unwrap();
        bed.store.inner.commit(Write { claim: Some(claim.clone()), ..Write::default() }).await.unwrap();
    }
}

#[tokio::test]
async fn an_undelivered_payment_buys_the_same_or_a_cheaper_reply_of_its_route_and_nothing_else() {
    let at = UnixSeconds::now();
    let until = at.plus(crate::claim::REDEEM_SECONDS);
    let redeemable = Moved::Redeemable { until };
    for (path, body, other_offer, want, why) in [
        (PATH, ask("m", 10), false, Ok(10), "the body it was bought for"),
        (PATH, ask("m", 7), false, Ok(7), "a cheaper one"),
        (PATH, ask("gift", 100), false, Ok(100), "another model that costs less"),
        (PATH, ask("m", 11), false, Err(("underpaid", redeemable)), "a dearer one"),
        (OTHER_PATH, ask("m", 10), false, Err(("redeem_elsewhere", redeemable)), "another route"),
        (
            PATH,
            r#"{"model":"m","max_tokens":9}"#.to_owned(),
            false,
            Err(("nothing_asked", redeemable)),
            "one that asks for nothing",
        ),
        (PATH, ask("m", 10), true, Err(("invalid_challenge", Moved::No)), "shown under somebody else's offer"),
    ] {
        let bed = Bed::new();
        let bought = ask("m", 10);
        let mut credential = bed.credential(PATH, &bought, "a").await;
        put(&bed, &credential, &[Op::PayUnserved { transaction: None }], at).await;
        if other_offer {
            credential = bed.credential(PATH, &bought, "a").await;
        }
        match (bed.pay(path, &body, &credential).await, want) {
            (Ok(paid), Ok(output)) => {
                assert_eq!(paid.output, output, "{why}");
                assert!(matches!(bed.claim("a").await.unwrap().standing, Standing::Serving { .. }), "{why}");
            }
            (Err(stop), Err((code, moved))) => {
                assert_eq!((stop.refusal.code(), stop.moved), (code, moved), "{why}");
                assert_eq!(bed.claim("a").await.unwrap().standing, Standing::Owed, "{why}: still redeemable");
            }
            (Ok(_), Err(_)) => panic!("{why}: it was let through"),
            (Err(stop), Ok(_)) => panic!("{why}: {stop:?}"),
        }
        assert_eq!(bed.rail.collects(), 0, "{why}: nothing is collected twice");
    }
}

#[tokio::test]
async fn underpaid_says_both_numbers() {
    let bed = Bed::new();
    let credential = bed.credential(PATH, &ask("m", 10), "a").await;
    put(&bed, &credential, &[Op::PayUnserved { transaction: None }], UnixSeconds::now()).await;
    let need = bed.quote(PATH, &ask("m", 20)).await.unwrap().parts.price_usd.to_atoms(6).unwrap();
    let paid = bed.claim("a").await.unwrap().terms.amount;
    let stop = stopped(bed.pay(PATH, &ask("m", 20), &credential).await);
    assert_eq!(stop.refusal, Refusal::Underpaid { need, paid });
    assert!(need > paid);
}

#[tokio::test]
async fn a_good_credential_on_a_body_that_asks_for_nothing_is_not_used_up() {
    let bed = Bed::new();
    for body in ["", "{}", r#"{"model":"m"}"#] {
        let credential = bed.credential(PATH, body, "a").await;
        let stop = stopped(bed.pay(PATH, body, &credential).await);
        assert_eq!(stop, Refusal::NothingAsked { surface: Surface::Chat }.into(), "{body:?}");
        assert_eq!(bed.claim("a").await, None, "{body:?}: nothing is claimed");
    }
    assert_eq!(bed.rail.collects(), 0, "and nothing collected");
}

#[tokio::test]
async fn what_is_not_exactly_one_credential_of_ours_claims_nothing() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let stranger = Found::One(shown("not-ours", "a"));
    for (found, want) in [
        (Found::Nothing, "payment_required"),
        (Found::Malformed, "malformed_credential"),
        (Found::Many(2), "two_credentials"),
        (stranger, "invalid_challenge"),
    ] {
        let stop = stopped(bed.pay_with(PATH, &body, found).await);
        assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), (want, Moved::No, false));
    }
    // An offer for one body, route or model pays for no other.
    let credential = bed.credential(PATH, &body, "a").await;
    for (path, other) in [(PATH, ask("m", 9)), (OTHER_PATH, body.clone()), (PATH, ask("gift", 10))] {
        let stop = stopped(bed.pay(path, &other, &credential).await);
        assert_eq!((stop.refusal.code(), stop.claimed), ("invalid_challenge", false), "{path} {other}");
    }
    assert_eq!((bed.claim("a").await, bed.rail.collects()), (None, 0));
}

#[tokio::test]
async fn a_client_that_leaves_while_the_chain_works_finds_its_payment_again() {
    let bed = Bed::new();
    bed.rail.open.send_replace(false);
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    tokio::select! {
        _ = bed.pay(PATH, &body, &credential) => panic!("the chain has not spoken"),
        () = until(|| async { bed.rail.collects() == 1 }) => {}
    }
    bed.rail.open.send_replace(true);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    assert!(bed.pay(PATH, &body, &credential).await.is_ok());
}

#[tokio::test]
async fn money_that_is_let_go_anywhere_before_the_first_byte_is_owed() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    drop(paid.money);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;

    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    drop(delivery(&bed, paid));
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;

    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    let stop = delivery(&bed, paid).fail(Refusal::UpstreamFailed { why: "test" }).await;
    assert!(matches!(stop.moved, Moved::Redeemable { .. }) && stop.claimed, "{stop:?}");
    assert_eq!(bed.claim("a").await.unwrap().standing, Standing::Owed);

    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    let mut failed = delivery(&bed, paid);
    let error = Bytes::from_static(br#"{"error":{"message":"no","type":"server_error"}}"#);
    let stop = failed.whole(error).await.unwrap_err();
    let stop = failed.fail(stop.refusal).await;
    assert!(matches!(stop.moved, Moved::Redeemable { .. }), "an error inside a success: {stop:?}");

    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    let mut declined = delivery(&bed, paid);
    let error = Bytes::from_static(br#"{"error":{"message":"no","type":"invalid_request_error"}}"#);
    let stop = declined.whole(error).await.unwrap_err();
    assert_eq!(stop.refusal, Refusal::UpstreamFailed { why: NOT_THIS_ONE }, "and no server is to be blamed for it");
    assert!(matches!(declined.fail(stop.refusal).await.moved, Moved::Redeemable { .. }));
    for (kind, at_fault) in [("server_error", true), ("invalid_request_error", false)] {
        let paid = bed.pay(PATH, &body, &credential).await.unwrap();
        let mut stream = delivery(&bed, paid);
        let error = format!("data: {{\"error\":{{\"message\":\"no\",\"type\":\"{kind}\"}}}}\n\n");
        stream.chunk(error.into(), &mut Vec::new()).await.unwrap();
        assert_eq!((stream.failed_at_once(), stream.is_at_fault()), (true, at_fault), "{kind}");
        stream.fail(Refusal::UpstreamFailed { why: "test" }).await;
    }

    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert!(delivery(&bed, paid).whole(REPLY.into()).await.is_ok(), "and after all that it still buys its reply");
    assert_eq!(bed.rail.collects(), 1);
}

#[tokio::test]
async fn half_a_stream_is_a_delivery_and_its_receipt_says_so() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    let mut half = delivery(&bed, paid);
    half.first_byte().await.unwrap();
    let mut out = Vec::new();
    half.chunk(Bytes::from_static(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n"), &mut out)
        .await
        .unwrap();
    half.end(End::UpstreamDied, &mut out).await;
    let receipt = bed.store.inner.receipt(&half.receipt().id).await.unwrap().unwrap();
    assert!(!receipt.complete);
    let sent: Vec<u8> = out.concat();
    let sent = String::from_utf8_lossy(&sent);
    assert!(sent.contains("upstream_failed") && sent.contains(": pontage-receipt "), "{sent}");
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent);
}

#[tokio::test]
async fn an_outcome_that_comes_late_is_waited_for_and_then_served() {
    let bed = Bed::new();
    bed.rail.finds(Collected::Unknown, [Collected::Unknown, Collected::Paid]);
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("payment_unknown", Moved::Unknown, true));
    bed.becomes("a", |claim| matches!(&claim.standing, Standing::Claimed { by } if by.ends_with("/recovery"))).await;
    assert!(bed.pay(PATH, &body, &credential).await.is_ok(), "waits for the chain, then is served");
    assert_eq!(bed.rail.collects(), 1, "and the payment was handed in once");
}

#[tokio::test]
async fn an_outcome_that_does_not_come_in_time_stays_unknown_and_the_credential_stays_good() {
    let mut bed = Bed::new();
    Arc::get_mut(&mut bed.toll).unwrap().unknown_wait = Duration::from_millis(300);
    bed.rail.finds(Collected::Unknown, []);
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal.code(), "payment_unknown");
    bed.becomes("a", |claim| matches!(&claim.standing, Standing::Claimed { by } if by.ends_with("/recovery"))).await;
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("payment_unknown", Moved::Unknown, true));
    bed.rail.looked.lock().unwrap().push_back(Collected::Paid);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    assert!(bed.pay(PATH, &body, &credential).await.is_ok());
}

#[tokio::test]
async fn what_was_bought_at_a_discount_is_redeemed_at_the_same_discount() {
    let bed = Bed::with(&[("prices.toml", "", "[rail.\"tempo/charge\"]\ndiscount = \"0.5\"\n")]);
    let bought = ask("m", 10);
    let credential = bed.credential(PATH, &bought, "a").await;
    put(&bed, &credential, &[Op::PayUnserved { transaction: None }], UnixSeconds::now()).await;
    let paid = bed.claim("a").await.unwrap().paid_amount();
    assert!(paid < bed.quote(PATH, &bought).await.unwrap().parts.price_usd.to_atoms(6).unwrap(), "a discount");
    let dearer = stopped(bed.pay(PATH, &ask("m", 11), &credential).await);
    assert_eq!(dearer.refusal.code(), "underpaid");
    assert!(bed.pay(PATH, &bought.replace("hi", "ho"), &credential).await.is_ok(), "another body of the same price");
}

#[tokio::test]
async fn nothing_is_taken_for_what_only_a_fallback_stands_for_that_cannot_be_asked_it() {
    let two = "profile = \"vllm\"\nfallback = \"q\"\nservers = [\"http://127.0.0.1:1\"]\n\n[pool.q]\nprofile = \"anthropic\"\napi_key = \"env:PATH\"\n";
    let bed = Bed::with(&[("pools.toml", "profile = \"vllm\"\n", two)]);
    let several = ask("m", 10).replacen('{', "{\"n\":2,", 1);
    let credential = bed.credential(PATH, &several, "a").await;
    let single = bed.credential(PATH, &ask("m", 10), "b").await;
    bed.pool().pick(crate::upstream::Affinity::NONE, &[]).unwrap().eject_for_auth();
    let stop = stopped(bed.pay(PATH, &several, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved), ("upstream_unavailable", Moved::No));
    let quoted = bed.quote(PATH, &several).await.unwrap();
    let none = pay::offers(&bed.toll, &quoted, digest(&several), &http::HeaderMap::new(), None).await;
    assert_eq!(none.unwrap_err().code(), "no_offer");
    assert_eq!((bed.rail.collects(), bed.claim("a").await), (0, None));
    assert!(bed.pay(PATH, &ask("m", 10), &single).await.is_ok(), "what it can be asked");
}

#[tokio::test]
async fn a_payment_that_fails_at_once_or_late_is_dead_and_moved_nothing() {
    let why = || "reverted".to_owned();
    for (first, later) in
        [(Collected::Failed { why: why() }, vec![]), (Collected::Unknown, vec![Collected::Failed { why: why() }])]
    {
        let bed = Bed::new();
        let late = !later.is_empty();
        bed.rail.finds(first, later);
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let stop = stopped(bed.pay(PATH, &body, &credential).await);
        assert_eq!(stop.refusal.code(), if late { "payment_unknown" } else { "payment_failed" });
        bed.becomes("a", |claim| claim.standing == Standing::Dead).await;
        let stop = stopped(bed.pay(PATH, &body, &credential).await);
        assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("payment_failed", Moved::No, true));
        assert!(stop.refusal.invites_payment(), "a fresh payment is right only here");
    }
}

#[tokio::test]
async fn a_model_without_a_price_is_served_once_for_a_proof_of_nothing() {
    let bed = Bed::new();
    let body = ask("gift", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert_eq!(paid.hold().terms().amount, Atoms(0));
    assert_eq!(paid.output, 10);
    let mut served = delivery(&bed, paid);
    served.whole(REPLY.into()).await.unwrap();
    assert_eq!((served.receipt().charged, served.receipt().actual_usd), (Atoms(0), Some(Usd::ZERO)));
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent);
    let priced = ask("m", 10);
    let stop = stopped(bed.pay(PATH, &priced, &bed.credential(PATH, &body, "b").await).await);
    assert_eq!(stop.refusal.code(), "invalid_challenge", "it opens nothing that has a price");
    assert_eq!(bed.rail.collects.load(SeqCst), 1);
}

#[tokio::test]
async fn a_chain_that_did_not_answer_one_copy_is_no_word_about_a_payment_that_another_copy_has_claimed() {
    let lagging = Refusal::NoOffer { retry_after_seconds: 5, why: "the chain cannot be asked".into() };
    let bed = Arc::new(Bed::new());
    let body = ask("m", 10);
    for is_claimed in [false, true] {
        let proof = if is_claimed { "claimed" } else { "not claimed" };
        let credential = bed.credential(PATH, &body, proof).await;
        bed.rail.open.send_replace(false);
        bed.rail.untried.lock().unwrap().push_back(lagging.clone());
        let copy = {
            let (bed, body, credential) = (Arc::clone(&bed), body.clone(), credential.clone());
            tokio::spawn(async move { bed.pay(PATH, &body, &credential).await.map(drop) })
        };
        until(|| async { bed.rail.untried.lock().unwrap().is_empty() }).await;
        if is_claimed {
            // By another gate: of this one's requests one asks at a time.
            bed.claimed_elsewhere(proof).await;
        }
        bed.rail.open.send_replace(true);
        let stop = copy.await.unwrap().unwrap_err();
        if is_claimed {
            assert!(matches!(stop.refusal, Refusal::ProofRunning { .. }) && stop.claimed, "{stop:?}");
        } else {
            assert_eq!((stop.refusal, stop.moved, stop.claimed), (lagging.clone(), Moved::No, false));
            assert!(bed.pay(PATH, &body, &credential).await.is_ok(), "nothing was used up");
        }
    }
}
