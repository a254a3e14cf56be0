//! A disk that fails, and a process that dies, at every step of a payment that is taken after the reply.

use super::promise::{answered, bed, by_success, by_usage, delivery};
use super::sessions::audited;
use super::*;
use crate::flow::recover::recover;
use crate::flow::settle::End;
use crate::refusal::Moved;

const REPLY: &str = r#"{"choices":[{"index":0,"message":{"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}"#;
const CHUNK: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hello\"}}]}\n\n";

/// How a request goes on after its payment was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// It is answered, and paid by its success.
    Whole,
    /// It is answered, and the client leaves while it is paid.
    Left,
    /// The backend fails.
    NotServed,
    /// It is answered, and cannot be paid.
    Unpaid,
    /// It streams, and what it used is taken.
    Stream,
    /// It streams, and cannot be paid.
    StreamUnpaid,
    /// It streams, and used nothing that costs anything.
    StreamFree,
}

impl Story {
    fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::StreamUnpaid | Self::StreamFree)
    }

    fn bed(self) -> Bed {
        bed(if self.streams() { by_usage() } else { by_success() })
    }

    fn body(self) -> String {
        let mut body: serde_json::Value = serde_json::from_str(&ask("m", 10)).unwrap();
        body["stream"] = json!(self.streams());
        body.to_string()
    }

    /// What becomes of the money when the rail is asked, now or later.
    fn taken(self) -> Collected {
        match self {
            Self::Unpaid | Self::StreamUnpaid => Collected::Failed { why: "insufficient_funds".into() },
            _ => Collected::Settled { transaction: "0xtook".into() },
        }
    }

    /// Runs it. `Ok`: the client got an answer.
    async fn run(self, bed: &Bed, body: &str, credential: &Shown) -> Result<(), Stop> {
        bed.rail.taken.lock().unwrap().push_back(self.taken());
        let mut served = delivery(bed, bed.pay(PATH, body, credential).await?);
        match self {
            Self::Whole | Self::Unpaid => answered(served, REPLY).await.map(drop),
            Self::NotServed => Err(served.fail(Refusal::UpstreamFailed { why: "test" }).await),
            Self::Left => {
                bed.rail.open.send_replace(false);
                let asked = bed.rail.takes.lock().unwrap().len();
                tokio::select! {
                    ended = answered(served, REPLY) => return ended.map(drop),
                    () = until(|| async { bed.rail.takes.lock().unwrap().len() > asked }) => {}
                }
                bed.rail.open.send_replace(true);
                // The third write gives it back.
                until(|| async { bed.store.commits.load(Ordering::SeqCst) >= 3 }).await;
                Err(Refusal::Internal { place: "client gone" }.into())
            }
            Self::Stream | Self::StreamUnpaid | Self::StreamFree => {
                let mut out = Vec::new();
                served.chunk(CHUNK.into(), &mut out).await.unwrap();
                served.first_byte().await.unwrap();
                let used = if self == Self::StreamFree { 0 } else { 3 };
                let usage = json!({"choices": [], "usage": {"prompt_tokens": used, "completion_tokens": used, "total_tokens": 2 * used}});
                served.chunk(format!("data: {usage}\n\ndata: [DONE]\n\n").into(), &mut out).await.unwrap();
                served.end(End::Whole, &mut out).await;
                Ok(())
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The proof was never shown, as far as anybody knows.
    New,
    Untaken,
    Owed,
    Delivered,
    Lost,
}

impl Then {
    fn of(claim: Option<Claim>) -> Option<Self> {
        Some(match claim.map(|claim| claim.standing) {
            None => Self::New,
            Some(Standing::Untaken) => Self::Untaken,
            Some(Standing::Owed) => Self::Owed,
            Some(Standing::Delivered { .. }) => Self::Delivered,
            Some(Standing::Lost { .. }) => Self::Lost,
            Some(_) => return None,
        })
    }
}

#[tokio::test]
async fn whichever_write_fails_nobody_pays_twice_and_nobody_is_served_twice_for_one_payment() {
    let table: &[(Story, usize, bool, Then, &str)] = &[
        (Story::Whole, 1, false, Then::New, "the promise was not written"),
        (Story::Whole, 1, true, Then::New, "the promise was written, and ended with its process"),
        (Story::Whole, 2, false, Then::New, "what is to be taken was not written, so it was not asked for"),
        (Story::Whole, 2, true, Then::Owed, "it was written, and recovery asks for it"),
        (Story::Whole, 3, false, Then::Owed, "it was taken, and the delivery was not written"),
        (Story::Whole, 3, true, Then::Delivered, "the delivery was written"),
        (Story::Left, 3, false, Then::Owed, "giving back was not written"),
        (Story::Left, 3, true, Then::Owed, "giving back was written"),
        (Story::NotServed, 2, false, Then::New, "letting go was not written"),
        (Story::NotServed, 2, true, Then::Untaken, "letting go was written"),
        (Story::Unpaid, 3, false, Then::Untaken, "the failure was not written"),
        (Story::Unpaid, 3, true, Then::Untaken, "the failure was written"),
        (Story::Stream, 1, false, Then::New, "the promise was not written"),
        (Story::Stream, 1, true, Then::New, "the promise was written, and ended with its process"),
        (Story::Stream, 2, false, Then::New, "what is to be taken was not written: the seller's loss"),
        (Story::Stream, 2, true, Then::Delivered, "it was written, and recovery asks for it"),
        (Story::Stream, 3, false, Then::Delivered, "it was taken, and that was not written"),
        (Story::Stream, 3, true, Then::Delivered, "it was taken, and that was written"),
        (Story::StreamUnpaid, 3, false, Then::Lost, "the failure was not written"),
        (Story::StreamUnpaid, 3, true, Then::Lost, "the failure was written"),
        (Story::StreamFree, 2, true, Then::Delivered, "there is nothing to take"),
        (Story::StreamFree, 3, false, Then::Delivered, "nothing was taken, and that was not written"),
    ];
    for (story, n, written, want, place) in table {
        let place = format!("{story:?}, write {n}, {written}: {place}");
        let mut bed = story.bed();
        let body = story.body();
        let credential = bed.credential(PATH, &body, "a").await;
        bed.store.fail(*n, *written);
        match story.run(&bed, &body, &credential).await {
            Ok(()) => assert!(*n > 1 && story.streams(), "{place}: an answer left"),
            Err(stop) if *story == Story::NotServed => {
                assert_eq!((stop.moved, stop.claimed), (Moved::No, true), "{place}: {stop:?}")
            }
            Err(stop) if *story == Story::Left => assert_eq!(stop.refusal.code(), "internal", "{place}"),
            Err(stop) => {
                let said = (stop.refusal.code(), stop.moved, stop.claimed);
                assert_eq!(said, ("store_unavailable", Moved::Unknown, true), "{place}");
            }
        }
        until(|| async { bed.store.commits.load(Ordering::SeqCst) >= *n }).await;
        let asked = bed.rail.takes.lock().unwrap().len();
        let free = *story == Story::StreamFree;
        assert_eq!(asked, usize::from(*n > 2 && !free), "{place}: nothing is asked for before that is durable");

        bed.restart();
        bed.rail.looked.lock().unwrap().push_back(story.taken());
        recover(&bed.toll).await.unwrap();
        until(|| async { Then::of(bed.claim("a").await).is_some() }).await;
        assert_eq!(Then::of(bed.claim("a").await), Some(*want), "{place}");

        // The payer shows it again, as an honest one would.
        bed.rail.taken.lock().unwrap().clear();
        let again = bed.pay(PATH, &body, &credential).await;
        match (want, again) {
            (Then::New | Then::Untaken, Ok(paid)) => assert!(matches!(paid.money, Money::Promise(_)), "{place}"),
            (Then::Owed, Ok(paid)) => {
                let (served, _) = answered(delivery(&bed, paid), REPLY).await.unwrap();
                assert_eq!(served.receipt().transaction.as_deref(), Some("0xtook"), "{place}");
                assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent, "{place}");
            }
            (Then::Delivered | Then::Lost, Err(stop)) => {
                assert_eq!((stop.refusal.code(), stop.claimed), ("payment_spent", true), "{place}")
            }
            (want, Ok(_)) => panic!("{place}: {want:?}, and served again"),
            (want, Err(stop)) => panic!("{place}: {want:?}, and {stop:?}"),
        }
        assert_eq!(bed.rail.takes.lock().unwrap().len(), asked, "{place}: what was taken is not taken again");
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_rail_that_breaks_off_leaves_no_payment_that_nobody_follows() {
    // While it is asked whether it would be paid: nothing was, and the proof is as good as new.
    let broken = bed(by_success());
    let body = ask("m", 10);
    let credential = broken.credential(PATH, &body, "a").await;
    broken.rail.fails_tries.store(true, Ordering::SeqCst);
    assert!(stopped(broken.pay(PATH, &body, &credential).await).claimed);
    assert_eq!(broken.claim("a").await, None);

    // While the money is taken: whoever waits for it hears that it is not known.
    broken.rail.fails_tries.store(false, Ordering::SeqCst);
    let served = delivery(&broken, broken.pay(PATH, &body, &credential).await.unwrap());
    broken.rail.breaks.store(true, Ordering::SeqCst);
    broken.rail.looked.lock().unwrap().push_back(Collected::Paid);
    let stop = answered(served, REPLY).await.map(drop).unwrap_err();
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("payment_unknown", Moved::Unknown, true));
    broken.becomes("a", |claim| claim.standing == Standing::Owed).await;

    // While nobody waits.
    let broken = bed(by_usage());
    let body = Story::Stream.body();
    let credential = broken.credential(PATH, &body, "a").await;
    let mut served = delivery(&broken, broken.pay(PATH, &body, &credential).await.unwrap());
    broken.rail.breaks.store(true, Ordering::SeqCst);
    broken.rail.looked.lock().unwrap().push_back(Collected::Paid);
    let mut out = Vec::new();
    served.chunk(CHUNK.into(), &mut out).await.unwrap();
    served.end(End::ClientGone, &mut out).await;
    broken.becomes("a", |claim| matches!(claim.standing, Standing::Delivered { .. })).await;
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_hears_the_outcome_when_it_is_back() {
    for (story, n, written, want) in [
        (Story::Whole, 1, false, Then::New),
        (Story::Whole, 1, true, Then::Untaken),
        (Story::Whole, 2, false, Then::Untaken),
        (Story::Whole, 2, true, Then::Owed),
        (Story::Whole, 3, false, Then::Owed),
        (Story::Whole, 3, true, Then::Delivered),
        (Story::Left, 3, false, Then::Owed),
        (Story::Left, 3, true, Then::Owed),
        (Story::NotServed, 2, false, Then::Untaken),
        (Story::NotServed, 2, true, Then::Untaken),
        (Story::Unpaid, 3, false, Then::Untaken),
        (Story::Unpaid, 3, true, Then::Untaken),
        (Story::Stream, 2, false, Then::Delivered),
        (Story::Stream, 2, true, Then::Delivered),
        (Story::Stream, 3, false, Then::Delivered),
        (Story::Stream, 3, true, Then::Delivered),
        (Story::StreamUnpaid, 2, false, Then::Lost),
        (Story::StreamUnpaid, 3, false, Then::Lost),
        (Story::StreamFree, 2, false, Then::Delivered),
    ] {
        let place = format!("{story:?}, write {n}, {written}");
        let bed = story.bed();
        let body = story.body();
        let credential = bed.credential(PATH, &body, "a").await;
        bed.store.fail(n, written);
        let told = story.run(&bed, &body, &credential).await;
        assert_eq!(told.is_ok(), story.streams(), "{place}");
        until(|| async { bed.store.commits.load(Ordering::SeqCst) >= n }).await;
        *bed.store.fails.lock().unwrap() = None;
        bed.rail.looked.lock().unwrap().push_back(story.taken());
        until(|| async { Then::of(bed.claim("a").await) == Some(want) }).await;
        let asked = bed.rail.takes.lock().unwrap().len();
        let later = story.streams() && story != Story::StreamFree;
        assert_eq!(asked, usize::from(n > 2 || later), "{place}: asked for once, and not before that is durable");
        bed.rail.taken.lock().unwrap().clear();
        let again = bed.pay(PATH, &body, &credential).await;
        assert_eq!(again.is_ok(), !matches!(want, Then::Delivered | Then::Lost), "{place}");
        drop(again);
    }
    // The third write makes the payment its follower's.
    for written in [false, true] {
        let bed = bed(by_success());
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        bed.rail.taken.lock().unwrap().push_back(Collected::Unknown);
        bed.store.fail(3, written);
        let served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
        assert_eq!(answered(served, REPLY).await.map(drop).unwrap_err().refusal.code(), "payment_unknown");
        until(|| async { bed.store.commits.load(Ordering::SeqCst) >= 3 }).await;
        *bed.store.fails.lock().unwrap() = None;
        bed.rail.looked.lock().unwrap().push_back(Collected::Paid);
        bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    }
}

#[tokio::test]
async fn a_payment_that_was_taken_first_is_not_stuck_by_a_store_that_fails_for_a_while() {
    for (n, written, deliver, want) in [
        (1, false, true, Then::New),
        (1, true, true, Then::Owed),
        (2, false, true, Then::Owed),
        (2, true, true, Then::Owed),
        (3, false, true, Then::Owed),
        (3, true, true, Then::Delivered),
        (3, false, false, Then::Owed),
        (3, true, false, Then::Owed),
    ] {
        let bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        bed.store.fail(n, written);
        if let Ok(paid) = bed.pay(PATH, &body, &credential).await {
            let served = delivery(&bed, paid);
            if deliver {
                assert!(answered(served, REPLY).await.is_err());
            } else {
                served.fail(Refusal::UpstreamFailed { why: "test" }).await;
            }
        }
        *bed.store.fails.lock().unwrap() = None;
        bed.rail.looked.lock().unwrap().push_back(Collected::Paid);
        until(|| async { Then::of(bed.claim("a").await) == Some(want) }).await;
        assert_eq!(bed.rail.collects(), usize::from(n > 1), "{n}, {written}: handed in once");
        assert_eq!(bed.pay(PATH, &body, &credential).await.is_ok(), want != Then::Delivered, "{n}, {written}");
    }
    // And redeeming it.
    for written in [false, true] {
        let bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        drop(bed.pay(PATH, &body, &credential).await.unwrap());
        bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
        bed.store.fail(1, written);
        assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal.code(), "store_unavailable");
        *bed.store.fails.lock().unwrap() = None;
        until(|| async { bed.pay(PATH, &body, &credential).await.is_ok() }).await;
        assert_eq!(bed.rail.collects(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_copies_one_asks_the_rail_and_none_goes_on_before_its_claim_is_written() {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Then {
        Served,
        Refused,
        NotWritten,
        Lost,
    }
    for (then, why) in [
        (Then::Served, "vouched for and written"),
        (Then::Refused, "the rail says no"),
        (Then::NotWritten, "the store says nothing"),
        (Then::Lost, "another gate was faster"),
    ] {
        for after in [Some(by_success()), None] {
            let why = format!("{after:?}: {why}");
            let bed = Arc::new(Bed::new());
            *bed.rail.after.lock().unwrap() = after;
            let body = ask("m", 10);
            let credential = bed.credential(PATH, &body, "a").await;
            match then {
                Then::Refused => {
                    bed.rail.untried.lock().unwrap().push_back(Refusal::PaymentInvalid { why: "poor".into() });
                    bed.rail.open.send_replace(false);
                }
                Then::NotWritten => bed.store.fail(1, true),
                Then::Lost => bed.store.loses.store(1, Ordering::SeqCst),
                Then::Served => {}
            }
            bed.store.heard.send_replace(false);
            let copies: Vec<_> = (0..8)
                .map(|_| {
                    let (bed, body, credential) = (Arc::clone(&bed), body.clone(), credential.clone());
                    tokio::spawn(async move { bed.pay(PATH, &body, &credential).await })
                })
                .collect();
            // All but one are told at once that another asks.
            until(|| async { copies.iter().filter(|copy| copy.is_finished()).count() == 7 }).await;
            assert_eq!(bed.rail.tries.load(Ordering::SeqCst), 1, "{why}");
            let writes = bed.store.commits.load(Ordering::SeqCst);
            assert_eq!(
                writes,
                usize::from(then != Then::Refused),
                "{why}: nothing is written before the rail has spoken"
            );
            bed.rail.open.send_replace(true);
            bed.store.heard.send_replace(true);
            let (mut paid, mut stops) = (Vec::new(), Vec::new());
            for copy in copies {
                match copy.await.unwrap() {
                    Ok(won) => paid.push(won),
                    Err(stop) => stops.push(stop.refusal.code()),
                }
            }
            assert_eq!(paid.len(), usize::from(then == Then::Served), "{why}: {stops:?}");
            stops.retain(|code| *code != "payment_in_use");
            let last = match then {
                Then::Served | Then::Lost => vec![],
                Then::Refused => vec!["payment_invalid"],
                Then::NotWritten => vec!["store_unavailable"],
            };
            assert_eq!((stops, bed.rail.tries.load(Ordering::SeqCst)), (last, 1), "{why}");
            let taken = bed.rail.takes.lock().unwrap().len();
            assert_eq!(taken, 0, "{why}: nothing moves before there is an answer");
            assert_eq!(bed.rail.collects(), usize::from(then == Then::Served && after.is_none()), "{why}");
            drop(paid);
        }
    }
}

#[tokio::test]
async fn what_another_gate_has_claimed_while_this_one_asked_is_running_whatever_this_ones_rail_says() {
    for after in [Some(by_success()), None] {
        for told in [
            Refusal::PaymentInvalid { why: "nonce_already_used".into() },
            Refusal::PaymentUnproven,
            Refusal::PaymentUnchecked { retry_after_seconds: 5 },
        ] {
            let why = format!("{after:?}: {told:?}");
            let bed = Arc::new(Bed::new());
            *bed.rail.after.lock().unwrap() = after;
            let body = ask("m", 10);
            let credential = bed.credential(PATH, &body, "a").await;
            bed.rail.open.send_replace(false);
            bed.rail.untried.lock().unwrap().push_back(told);
            let asks = {
                let (bed, body, credential) = (Arc::clone(&bed), body.clone(), credential.clone());
                tokio::spawn(async move { bed.pay(PATH, &body, &credential).await.map(drop) })
            };
            until(|| async { bed.rail.untried.lock().unwrap().is_empty() }).await;
            bed.claimed_elsewhere("a").await;
            bed.rail.open.send_replace(true);
            let stop = asks.await.unwrap().unwrap_err();
            assert!(matches!(stop.refusal, Refusal::ProofRunning { .. }) && stop.claimed, "{why}: {stop:?}");
        }
    }
}
