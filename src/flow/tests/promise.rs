//! Payments that are taken after the reply: by its success, or by what it used.

use super::sessions::audited;
use super::*;
use crate::flow::receipt::Signet;
use crate::flow::settle::{Delivery, End, RECEIPT_ID};
use crate::journal::Settlement;
use crate::refusal::Moved;
use crate::secret::Secret;

/// 2 tokens in at $1 and 3 out at $10 a million: 32 atoms.
pub(super) const REPLY: &str = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}"#;

/// Taken by the reply's success.
pub(super) fn by_success() -> When {
    When::After { most: None, exposure: Usd::ONE }
}

/// Taken by what was used.
pub(super) fn by_usage() -> When {
    When::After { most: Some(Usd::ONE), exposure: Usd::ONE }
}

/// The usual rules, on a rail that takes its money after the reply.
pub(super) fn bed(after: When) -> Bed {
    bed_with(after, &[])
}

pub(super) fn bed_with(after: When, edits: &[(&str, &str, &str)]) -> Bed {
    let bed = Bed::with(edits);
    *bed.rail.after.lock().unwrap() = Some(after);
    bed
}

pub(super) fn delivery(bed: &Bed, paid: Paid) -> Delivery {
    let signet = Arc::new(Signet::new(&Secret::new([7u8; 32])).unwrap());
    Delivery::begin(Arc::clone(&bed.toll), signet, paid, "req_1")
}

/// What the pump does with a reply that came whole.
pub(super) async fn answered(mut served: Delivery, reply: &str) -> Result<(Delivery, Bytes), Stop> {
    match served.whole(Bytes::copy_from_slice(reply.as_bytes())).await {
        Ok(body) => Ok((served, body)),
        Err(stop) if stop.claimed => Err(stop),
        Err(stop) => Err(served.fail(stop.refusal).await),
    }
}

/// Sells one reply.
pub(super) async fn sell(bed: &Bed, body: &str, credential: &Shown, reply: &str) -> Result<Receipt, Stop> {
    let paid = bed.pay(PATH, body, credential).await?;
    answered(delivery(bed, paid), reply).await.map(|(served, _)| served.receipt().clone())
}

fn standing(claim: Option<Claim>) -> Option<Standing> {
    claim.map(|claim| claim.standing)
}

pub(super) async fn receipt(bed: &Bed, id: &str) -> Receipt {
    bed.store.inner.receipt(id).await.unwrap().unwrap()
}

fn takes(bed: &Bed) -> Vec<Atoms> {
    bed.rail.takes.lock().unwrap().clone()
}

#[tokio::test]
async fn a_reply_that_came_is_paid_before_it_leaves_and_its_receipt_says_by_what() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert!(matches!(standing(bed.claim("a").await), Some(Standing::Promised { .. })), "durable, and nothing moved");
    assert_eq!((takes(&bed).len(), bed.rail.collects()), (0, 0));
    assert_eq!(paid.output, 10);

    let (served, sent) = answered(delivery(&bed, paid), REPLY).await.unwrap();
    let price = bed.quote(PATH, &body).await.unwrap().parts.price_usd.to_atoms(6).unwrap();
    assert_eq!(takes(&bed), [price], "the price, whatever was used");
    let own = served.receipt().clone();
    assert_eq!((own.charged, own.settlement), (price, Some(Settlement::Settled)));
    assert_eq!(own.transaction.as_deref(), Some("0xtook"));
    let shown: serde_json::Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(shown["pontage"]["transaction"], "0xtook");
    assert!(served.headers().iter().any(|(name, value)| *name == RECEIPT_ID && *value == own.id.as_str()));
    assert_eq!(receipt(&bed, &own.id).await, own, "in the books as sent");
    let claim = bed.claim("a").await.unwrap();
    assert_eq!(claim.standing, Standing::Delivered { receipt: own.id });
    assert_eq!((claim.resend, claim.transaction.as_deref()), (None, Some("0xtook")));

    let again = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!(again, Stop { refusal: Refusal::ProofSpent, moved: Moved::Yes, claimed: true });
    drop(served);
    audited(bed).await;
}

#[tokio::test]
async fn a_reply_is_waited_for_no_longer_than_its_payment_can_still_be_handed_in() {
    for (after, want) in [(Some(by_success()), Some(285)), (Some(by_usage()), Some(285)), (None, None)] {
        let bed = Bed::new();
        *bed.rail.after.lock().unwrap() = after;
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let money = bed.pay(PATH, &body, &credential).await.unwrap().money;
        let ends = bed.claim("a").await.unwrap().collect_until;
        let at = |before: u64| money.lasts(UnixSeconds(ends.0 - before));
        assert_eq!(at(300), want, "{after:?}");
        assert_eq!(at(10), want.map(|_| 0), "{after:?}: too late for anything");
    }
}

#[tokio::test]
async fn nothing_is_taken_for_a_reply_that_did_not_come_and_the_same_proof_buys_the_next() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let error = r#"{"error":{"message":"no","type":"server_error"}}"#;
    let nothing = r#"{"choices":[]}"#;
    for (n, why) in ["the backend failed", error, nothing, "the client left", "all was dropped"].into_iter().enumerate()
    {
        let paid = bed.pay(PATH, &body, &credential).await.unwrap_or_else(|stop| panic!("{why}: {stop:?}"));
        let served = delivery(&bed, paid);
        let stop = match n {
            0 => Some(served.fail(Refusal::UpstreamFailed { why: "test" }).await),
            1 | 2 => Some(answered(served, why).await.map(|_| ()).unwrap_err()),
            3 => Some(served.fail(Refusal::Internal { place: "client gone" }).await),
            _ => {
                drop(served);
                None
            }
        };
        if let Some(stop) = stop {
            assert_eq!((stop.moved, stop.claimed), (Moved::No, true), "{why}: {stop:?}");
        }
        bed.becomes("a", |claim| claim.standing == Standing::Untaken).await;
    }
    assert_eq!(takes(&bed), [], "the rail was never asked for money");
    let own = sell(&bed, &body, &credential, REPLY).await.unwrap();
    assert_eq!(bed.claim("a").await.unwrap().standing, Standing::Delivered { receipt: own.id });
    assert_eq!(takes(&bed).len(), 1);
    audited(bed).await;
}

#[tokio::test]
async fn a_proof_that_bought_nothing_may_be_shown_under_another_offer() {
    let bed = bed(by_success());
    let first = ask("m", 10);
    let credential = bed.credential(PATH, &first, "a").await;
    drop(bed.pay(PATH, &first, &credential).await.unwrap());
    bed.becomes("a", |claim| claim.standing == Standing::Untaken).await;
    let second = ask("m", 7);
    let credential = bed.credential(PATH, &second, "a").await;
    let own = sell(&bed, &second, &credential, REPLY).await.unwrap();
    let claim = bed.claim("a").await.unwrap();
    assert_eq!((claim.terms.amount, claim.standing), (own.charged, Standing::Delivered { receipt: own.id }));
    audited(bed).await;
}

#[tokio::test]
async fn a_proof_that_is_not_vouched_for_is_not_forwarded_and_stays_as_it_was() {
    for after in [Some(by_success()), Some(by_usage()), None] {
        for (told, outcome, moved, why) in [
            (Refusal::PaymentInvalid { why: "insufficient_funds".into() }, "refused", None, "the facilitator says no"),
            (Refusal::PaymentUnproven, "unproven", Some(Moved::Unknown), "used up, and nobody can show for what"),
            (
                Refusal::PaymentUnchecked { retry_after_seconds: 5 },
                "unchecked",
                Some(Moved::No),
                "the facilitator says nothing",
            ),
        ] {
            let why = format!("{after:?}: {why}");
            let bed = Bed::new();
            *bed.rail.after.lock().unwrap() = after;
            let body = ask("m", 10);
            let credential = bed.credential(PATH, &body, "a").await;
            bed.rail.untried.lock().unwrap().push_back(told.clone());
            let stop = stopped(bed.pay(PATH, &body, &credential).await);
            let (moved, claimed) = (moved.unwrap_or_default(), moved.is_some());
            assert_eq!(stop, Stop { refusal: told, moved, claimed }, "{why}");
            assert_eq!(stop.refusal.invites_payment(), outcome == "refused", "{why}");
            assert_eq!(bed.claim("a").await, None, "{why}");
            let told_others = bed.store.promised.load(Ordering::SeqCst);
            assert_eq!((bed.store.commits.load(Ordering::SeqCst), told_others), (0, 0), "{why}: nothing is written");
            let counted = |outcome| bed.toll.metrics.payments.with_label_values(&["tempo/charge", outcome]).get();
            assert_eq!(
                (counted(outcome), counted("unknown")),
                (1, 0),
                "{why}: nothing was taken, so nothing is in doubt"
            );
            assert!(sell(&bed, &body, &credential, REPLY).await.is_ok(), "{why}: once it is vouched for");
            assert_eq!(takes(&bed).len() + bed.rail.collects(), 1, "{why}");
            audited(bed).await;
        }
    }
}

#[tokio::test]
async fn a_reply_that_could_not_be_paid_does_not_leave() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.rail.taken.lock().unwrap().push_back(Collected::Failed { why: "insufficient_funds".into() });
    let stop = sell(&bed, &body, &credential, REPLY).await.unwrap_err();
    assert_eq!(stop.refusal, Refusal::PaymentFailed { why: "insufficient_funds".into() });
    assert_eq!((stop.moved, stop.claimed, stop.refusal.invites_payment()), (Moved::No, true, true));
    assert_eq!(bed.claim("a").await.unwrap().standing, Standing::Untaken);
    assert!(sell(&bed, &body, &credential, REPLY).await.is_ok(), "the account was filled");
    audited(bed).await;
}

#[tokio::test]
async fn an_outcome_nobody_knows_is_found_out_and_the_same_proof_gets_its_answer_once() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.rail.taken.lock().unwrap().push_back(Collected::Unknown);
    let stop = sell(&bed, &body, &credential, REPLY).await.unwrap_err();
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("payment_unknown", Moved::Unknown, true));
    assert!(!stop.refusal.invites_payment(), "nobody may pay anew meanwhile");
    bed.becomes("a", |claim| matches!(&claim.standing, Standing::Taking { by, .. } if by.ends_with("/recovery"))).await;
    let metrics = Arc::clone(&bed.toll.metrics);
    let doubted = async |n: u8| {
        let line = format!("pontage_payments_in_doubt{{rail=\"tempo/charge\"}} {n}\n");
        until(|| std::future::ready(metrics.text().contains(&line))).await;
    };
    doubted(1).await;
    let found = Collected::Settled { transaction: "0xlate".into() };
    bed.rail.looked.lock().unwrap().extend([Collected::Unknown, found]);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    doubted(0).await;

    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert!(matches!(paid.money, Money::Hold(_)), "paid already");
    let (served, _) = answered(delivery(&bed, paid), REPLY).await.unwrap();
    assert_eq!(served.receipt().transaction.as_deref(), Some("0xlate"));
    drop(served);
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent);
    assert_eq!(takes(&bed).len(), 1, "and the money was asked for once");
    audited(bed).await;
}

#[tokio::test]
async fn an_outcome_nobody_knows_that_turns_out_a_failure_leaves_the_proof_as_it_was() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.rail.taken.lock().unwrap().push_back(Collected::Unknown);
    bed.rail.looked.lock().unwrap().push_back(Collected::Failed { why: "it ran out".into() });
    assert_eq!(sell(&bed, &body, &credential, REPLY).await.unwrap_err().refusal.code(), "payment_unknown");
    bed.becomes("a", |claim| claim.standing == Standing::Untaken).await;
    bed.rail.untried.lock().unwrap().push_back(Refusal::PaymentInvalid { why: "expired".into() });
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.status(), stop.moved), (402, Moved::No), "and is judged anew");
    audited(bed).await;
}

#[tokio::test]
async fn what_nobody_can_ever_prove_is_refused_for_good_and_never_asked_for_again() {
    for late in [false, true] {
        let bed = bed(by_success());
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let first = if late { Collected::Unknown } else { Collected::Unprovable };
        bed.rail.taken.lock().unwrap().push_back(first);
        bed.rail.looked.lock().unwrap().push_back(Collected::Unprovable);
        let stop = sell(&bed, &body, &credential, REPLY).await.unwrap_err();
        assert_eq!(stop.refusal.code(), if late { "payment_unknown" } else { "payment_unproven" });
        bed.becomes("a", |claim| claim.standing == Standing::Unproven).await;
        for _ in 0..2 {
            let stop = stopped(bed.pay(PATH, &body, &credential).await);
            assert_eq!((stop.refusal.code(), stop.refusal.status()), ("payment_unproven", 403));
            assert_eq!((stop.moved, stop.claimed), (Moved::Unknown, true));
            assert!(!stop.refusal.invites_payment());
        }
        assert_eq!(takes(&bed).len(), 1);
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_reply_is_paid_finds_the_payment_again() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
    bed.rail.open.send_replace(false);
    tokio::select! {
        _ = answered(served, REPLY) => panic!("the rail has not spoken"),
        () = until(|| async { takes(&bed).len() == 1 }) => {}
    }
    bed.rail.open.send_replace(true);
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    let own = sell(&bed, &body, &credential, REPLY).await.unwrap();
    assert_eq!(own.transaction.as_deref(), Some("0xtook"));
    assert_eq!(takes(&bed).len(), 1);
    audited(bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_copies_at_once_one_is_forwarded_and_one_is_taken() {
    let bed = Arc::new(bed(by_success()));
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let barrier = Arc::new(tokio::sync::Barrier::new(64));
    let copies: Vec<_> = (0..64)
        .map(|_| {
            let (bed, body, credential, barrier) =
                (Arc::clone(&bed), body.clone(), credential.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                bed.pay(PATH, &body, &credential).await
            })
        })
        .collect();
    let mut won = Vec::new();
    for copy in copies {
        match copy.await.unwrap() {
            Ok(paid) => won.push(paid),
            Err(stop) => assert!(matches!(stop.refusal, Refusal::ProofRunning { .. }) && stop.claimed, "{stop:?}"),
        }
    }
    // A promise that is let go may be taken up by the next copy; none is here while the winner holds it.
    assert_eq!(won.len(), 1);
    assert_eq!(bed.rail.tries.load(Ordering::SeqCst), 1, "and its rail was asked once");
    answered(delivery(&bed, won.remove(0)), REPLY).await.unwrap();
    assert_eq!(takes(&bed).len(), 1);
}

/// By usage: what the reply says it used is taken.
#[tokio::test]
async fn what_a_whole_reply_used_is_taken_and_never_more_than_was_promised() {
    let ceiling: &[_] = &[("tiers.toml", "max_n = 4", "max_n = 4\nmissing_usage = \"ceiling\"")];
    let with = |usage: &str| REPLY.replace(r#"{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}"#, usage);
    let figures = |prompt: u64, completion: u64| {
        let total = prompt + completion;
        with(&format!(r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}}}"#))
    };
    let free: &[(&str, &str, &str)] = &[];
    for (edits, reply, want, why) in [
        (free, figures(2, 3), Some(32), "as reported"),
        (free, figures(0, 0), Some(0), "nothing used"),
        (free, figures(4_000, 3), None, "more than was authorized"),
        (free, figures(1_000_000, 3), Some(0), "a prompt that was never sent: no figure"),
        (free, with("null"), Some(0), "not reported, and the tier gives it away"),
        (ceiling, with("null"), None, "not reported, and the tier does not"),
    ] {
        let bed = bed_with(by_usage(), edits);
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let paid = bed.pay(PATH, &body, &credential).await.unwrap();
        let Money::Promise(promise) = &paid.money else { panic!("{why}: taken already") };
        let most = promise.terms().amount;
        let (mut served, _) = answered(delivery(&bed, paid), &reply).await.unwrap();
        let (own, want) = (served.receipt().clone(), want.map_or(most, Atoms));
        assert_eq!((own.charged, own.settlement), (want, Some(Settlement::Settled)), "{why}");
        let asked: Vec<_> = (want != Atoms(0)).then_some(want).into_iter().collect();
        assert_eq!(takes(&bed), asked, "{why}: no transaction for nothing");
        assert_eq!(own.transaction.is_some(), want != Atoms(0), "{why}");
        let claim = bed.claim("a").await.unwrap();
        assert_eq!((claim.paid_amount(), &claim.standing), (want, &Standing::Delivered { receipt: own.id }), "{why}");
        assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent, "{why}");
        let mut nothing = Vec::new();
        served.end(End::ClientGone, &mut nothing).await;
        drop(served);
        audited(bed).await;
    }
}

pub(super) fn streamed(output: u64) -> String {
    let mut body: serde_json::Value = serde_json::from_str(&ask("m", output)).unwrap();
    body["stream"] = json!(true);
    body.to_string()
}

/// A chunk with `n` bytes of text, which are covered as as many tokens and charged as a quarter of them.
pub(super) fn words(n: usize) -> Bytes {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "a".repeat(n)).into()
}

pub(super) const END: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3,\"total_tokens\":5}}\n\ndata: [DONE]\n\n";

/// A stream by usage as the pump drives it, to its end.
pub(super) async fn stream(bed: &Bed, body: &str, credential: &Shown, end: End) -> Result<(Delivery, String), Stop> {
    let mut served = delivery(bed, bed.pay(PATH, body, credential).await?);
    let mut out = Vec::new();
    served.chunk(words(3), &mut out).await.unwrap();
    served.first_byte().await.unwrap();
    if end == End::Whole {
        served.chunk(END.into(), &mut out).await.unwrap();
    }
    served.end(end, &mut out).await;
    Ok((served, String::from_utf8(out.concat()).unwrap()))
}

#[tokio::test]
async fn the_end_of_a_stream_does_not_wait_for_its_settlement() {
    let bed = bed(by_usage());
    let body = streamed(10);
    let credential = bed.credential(PATH, &body, "a").await;
    bed.rail.open.send_replace(false);
    let (served, text) = stream(&bed, &body, &credential, End::Whole).await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n") && text.contains(": pontage-receipt "), "{text}");
    let id = served.receipt().id.clone();
    assert!(served.headers().contains(&(RECEIPT_ID, id.parse().unwrap())), "the head names it");
    let own = receipt(&bed, &id).await;
    assert_eq!((own.charged, own.settlement, own.complete), (Atoms(32), Some(Settlement::Pending), true));
    let taking = bed.claim("a").await.unwrap().standing;
    assert!(matches!(taking, Standing::Taking { amount: Atoms(32), receipt: Some(r), .. } if r == id), "durable");
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!(stop.refusal.code(), "payment_in_use");

    bed.rail.open.send_replace(true);
    bed.becomes("a", |claim| claim.standing == Standing::Delivered { receipt: id.clone() }).await;
    let own = receipt(&bed, &id).await;
    assert_eq!((own.charged, own.settlement), (Atoms(32), Some(Settlement::Settled)));
    assert_eq!(own.transaction.as_deref(), Some("0xtook"));
    assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal, Refusal::ProofSpent);
    drop(served);
    audited(bed).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_pays_for_what_left() {
    let bed = bed(by_usage());
    let body = streamed(10);
    let credential = bed.credential(PATH, &body, "a").await;
    let (served, _) = stream(&bed, &body, &credential, End::ClientGone).await.unwrap();
    let id = served.receipt().id.clone();
    bed.becomes("a", |claim| matches!(claim.standing, Standing::Delivered { .. })).await;
    let own = receipt(&bed, &id).await;
    let prompt = bed.quote(PATH, &body).await.unwrap().parts.prompt_about.unwrap();
    assert_eq!(own.usage_source, Some(crate::usage::UsageSource::Counted));
    assert_eq!(own.charged, Atoms(u128::from(prompt) + 10), "the prompt and three bytes: a token");
    assert_eq!((takes(&bed), own.complete), (vec![own.charged], false));
    drop(served);
    audited(bed).await;
}

#[tokio::test]
async fn a_stream_that_said_nothing_takes_nothing() {
    let bed = bed(by_usage());
    let body = streamed(10);
    let credential = bed.credential(PATH, &body, "a").await;
    let mut served = delivery(&bed, bed.pay(PATH, &body, &credential).await.unwrap());
    let mut out = Vec::new();
    served.chunk(": hello\n\n".into(), &mut out).await.unwrap();
    served.end(End::UpstreamDied, &mut out).await;
    assert_eq!(out, [] as [Bytes; 0]);
    let stop = served.fail(Refusal::UpstreamFailed { why: "test" }).await;
    assert_eq!((stop.moved, takes(&bed).len()), (Moved::No, 0));
    assert_eq!(bed.claim("a").await.unwrap().standing, Standing::Untaken);
    audited(bed).await;
}
