//! A client that leaves at any moment, and a step that breaks off: the money is where it can be used again.

use super::*;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Polls the payment `polls` times, with everything else running in between, and drops it.
async fn leave_after(bed: &Bed, polls: usize, body: &str, credential: &Shown) {
    let mut paying = pin!(bed.pay(PATH, body, credential));
    for _ in 0..polls {
        if let Poll::Ready(_done) = paying.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_pays_or_redeems_can_redeem_again() {
    for polls in 1..6 {
        let bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        leave_after(&bed, polls, &body, &credential).await;
        bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
        assert_eq!(bed.rail.collects(), 1);

        let before = bed.claim("a").await.unwrap().revision;
        leave_after(&bed, polls, &body, &credential).await;
        bed.becomes("a", |claim| claim.revision >= before + 2 && claim.standing == Standing::Owed).await;
        assert!(bed.pay(PATH, &body, &credential).await.is_ok(), "after {polls} polls");
    }
}

#[tokio::test]
async fn a_payment_whose_own_task_breaks_off_is_followed_up() {
    let bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.rail.breaks.store(true, Ordering::SeqCst);
    bed.rail.looked.lock().unwrap().push_back(Collected::Paid);
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.claimed), ("payment_unknown", true));
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    assert!(bed.pay(PATH, &body, &credential).await.is_ok());
}
