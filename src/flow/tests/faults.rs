//! A disk that fails at each write, and what the next process makes of it.

use super::*;
use crate::flow::recover::recover;
use crate::refusal::Moved;

/// How far a request came, and how it ended.
async fn sell(bed: &Bed, body: &str, credential: &Shown, deliver: bool) -> Stop {
    match bed.pay(PATH, body, credential).await {
        Err(stop) => stop,
        Ok(paid) => {
            let mut hold = paid.into_hold();
            if !deliver {
                let moved = hold.give_back().await;
                return Stop { refusal: Refusal::Store { retry_after_seconds: 10 }, moved, claimed: true };
            }
            let receipt = Receipt { id: "rcpt_a".into(), ..crate::journal::sample::receipt("rcpt_a", "0xa", 1) };
            match hold.deliver(&receipt, Vec::new()).await {
                Ok(()) => panic!("the store failed, and something was delivered"),
                Err(stop) => stop,
            }
        }
    }
}

#[tokio::test]
async fn whichever_write_fails_nobody_is_told_that_no_money_moved_and_nothing_is_lost() {
    for (n, written, deliver, place) in [
        (1, false, true, "the claim was not written"),
        (1, true, true, "the claim was written"),
        (2, false, true, "the payment was not written"),
        (2, true, true, "the payment was written"),
        (3, false, true, "the delivery was not written"),
        (3, true, true, "the delivery was written"),
        (3, false, false, "giving back was not written"),
        (3, true, false, "giving back was written"),
    ] {
        let mut bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        bed.store.fail(n, written);
        let stop = sell(&bed, &body, &credential, deliver).await;
        assert_eq!(
            (stop.refusal.code(), stop.moved, stop.claimed),
            ("store_unavailable", Moved::Unknown, true),
            "{place}"
        );
        assert_eq!(bed.rail.collects(), usize::from(n > 1), "{place}: nothing is collected without a durable claim");

        // A store that failed takes nothing more; the operator starts again.
        bed.restart();
        bed.rail.looked.lock().unwrap().push_back(Collected::Paid);
        recover(&bed.toll).await.unwrap();
        let spent = n == 3 && written && deliver;
        if n == 1 && !written {
            assert_eq!(bed.claim("a").await, None, "{place}");
        } else {
            bed.becomes("a", |claim| match claim.standing {
                Standing::Delivered { .. } => spent,
                Standing::Owed => !spent,
                _ => false,
            })
            .await;
        }
        match bed.pay(PATH, &body, &credential).await {
            Ok(_) => assert!(!spent, "{place}: sold twice"),
            Err(stop) => assert!(spent && stop.refusal == Refusal::ProofSpent, "{place}: {stop:?}"),
        }
    }
}

#[tokio::test]
async fn a_store_that_takes_no_writes_refuses_payments_before_it_looks_at_them() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.store.down.store(true, Ordering::SeqCst);
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("store_unavailable", Moved::No, false));
    let quoted = bed.quote(PATH, &body).await.unwrap();
    let offers = pay::offers(&bed.toll, &quoted, digest(&body), &http::HeaderMap::new(), None).await;
    assert_eq!(offers.unwrap_err().code(), "store_unavailable", "and nothing is offered");
    assert_eq!((bed.rail.collects(), bed.claim("a").await), (0, None));
}

#[tokio::test]
async fn a_proof_that_cannot_be_looked_up_may_have_been_paid() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    drop(bed.pay(PATH, &body, &credential).await.unwrap().money);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    bed.store.unreadable.store(true, Ordering::SeqCst);
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("store_unavailable", Moved::Unknown, true));
    bed.store.unreadable.store(false, Ordering::SeqCst);
    assert!(bed.pay(PATH, &body, &credential).await.is_ok(), "and it stays good");
}

#[tokio::test]
async fn what_a_dead_process_left_is_found_asked_about_and_redeemable() {
    let mut bed = Bed::new();
    let body = ask("m", 10);
    // One was being served, one was being collected, one had failed to land.
    let serving = bed.credential(PATH, &body, "serving").await;
    std::mem::forget(bed.pay(PATH, &body, &serving).await.unwrap());
    let mut asked = Vec::new();
    for proof in ["landed", "lost"] {
        let credential = bed.credential(PATH, &body, proof).await;
        bed.rail.open.send_replace(false);
        let before = bed.rail.collects();
        tokio::select! {
            _ = bed.pay(PATH, &body, &credential) => panic!("the chain has not spoken"),
            () = until(|| async { bed.rail.collects() > before }) => {}
        }
        asked.push(credential);
    }
    // The old process never hears from the chain.
    let (old, rail) = (bed.toll.clone(), Fake::new("tempo/charge"));
    *rail.offered.lock().unwrap() = bed.rail.offered.lock().unwrap().clone();
    bed.rail = rail;
    bed.restart();
    drop(old);
    // One after the other, so that the script below says which is which.
    bed.rail.looked.lock().unwrap().push_back(Collected::Unknown);
    assert_eq!(recover(&bed.toll).await.unwrap(), 3);
    assert_eq!(bed.claim("serving").await.unwrap().standing, Standing::Owed);
    bed.rail.looked.lock().unwrap().extend([Collected::Paid, Collected::Failed { why: "expired".into() }]);
    let over = |claim: &Claim| matches!(claim.standing, Standing::Owed | Standing::Dead);
    bed.becomes("landed", over).await;
    bed.becomes("lost", over).await;
    let mut outcomes = Vec::new();
    for credential in asked {
        outcomes.push(bed.pay(PATH, &body, &credential).await.map(drop).map_err(|stop| stop.refusal.code()));
    }
    outcomes.sort();
    assert_eq!(outcomes, [Ok(()), Err("payment_failed")]);
    assert!(bed.pay(PATH, &body, &serving).await.is_ok());
    assert_eq!(bed.rail.collects(), 0, "recovery looks, it does not collect anew");
}

#[tokio::test]
async fn what_a_restart_could_not_write_down_is_written_when_the_store_is_back() {
    let mut bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    std::mem::forget(bed.pay(PATH, &body, &credential).await.unwrap());
    bed.restart();
    bed.store.fail(1, false);
    assert_eq!(recover(&bed.toll).await, Ok(1));
    assert!(matches!(bed.claim("a").await.unwrap().standing, Standing::Serving { .. }));
    *bed.store.fails.lock().unwrap() = None;
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    assert!(bed.pay(PATH, &body, &credential).await.is_ok());
}

#[tokio::test]
async fn what_was_followed_before_a_restart_is_followed_after_it_and_not_written_for_that() {
    let mut bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.rail.collected.lock().unwrap().push_back(Collected::Unknown);
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal.code(), "payment_unknown");
    let followed = bed.claim("a").await.unwrap();
    assert!(followed.standing.holder().is_some_and(|by| crate::flow::recover::is_following(by)), "before he was told");
    // The old process hears nothing more from the chain.
    let old = std::mem::replace(&mut bed.rail, Fake::new("tempo/charge"));
    *bed.rail.offered.lock().unwrap() = old.offered.lock().unwrap().clone();
    bed.restart();
    assert_eq!(recover(&bed.toll).await, Ok(1));
    assert_eq!(bed.claim("a").await, Some(followed));
    bed.rail.looked.lock().unwrap().push_back(Collected::Paid);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
}
