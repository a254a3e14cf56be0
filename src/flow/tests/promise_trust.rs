//! How far a payer is trusted, and what an offer is worth when the rules or the operator's limits have changed.

use super::promise::{
    END, REPLY, answered, bed, bed_with, by_success, by_usage, delivery, receipt, sell, stream, streamed, words,
};
use super::sessions::audited;
use super::*;
use crate::flow::loss::Room;
use crate::flow::settle::End;
use crate::journal::Settlement;
use crate::refusal::Moved;

#[tokio::test]
async fn a_delivered_stream_that_could_not_be_paid_is_lost_and_its_payer_is_trusted_less() {
    for late in [false, true] {
        let exposure = Usd(200_000_000_000_000); // 200 atoms
        let bed = bed(When::After { most: Some(Usd::ONE), exposure });
        let body = streamed(10);
        let credential = bed.credential(PATH, &body, "a").await;
        let why = || Collected::Failed { why: "insufficient_funds".into() };
        let (first, then) = if late { (Collected::Unknown, Some(why())) } else { (why(), None) };
        bed.rail.taken.lock().unwrap().push_back(first);
        bed.rail.looked.lock().unwrap().extend(then);
        let (served, _) = stream(&bed, &body, &credential, End::Whole).await.unwrap();
        let id = served.receipt().id.clone();
        bed.becomes("a", |claim| claim.standing == Standing::Lost { receipt: id.clone() }).await;
        let own = receipt(&bed, &id).await;
        assert_eq!((own.charged, own.charged_usd, own.settlement), (Atoms(0), Usd::ZERO, Some(Settlement::Lost)));
        let unpaid = || bed.toll.metrics.delivered_unpaid_usd.with_label_values(&["tempo/charge"]).get();
        until(|| std::future::ready((unpaid() * 1e6).round() == 32.0)).await;
        let stop = stopped(bed.pay(PATH, &body, &credential).await);
        let said = (stop.refusal.code(), stop.moved, stop.claimed);
        assert_eq!(said, ("payment_spent", Moved::No, true), "it has bought its reply, and nothing moved");

        let credential = bed.credential(PATH, &body, "b").await;
        let promised = bed.quote(PATH, &body).await.unwrap().terms_by_usage(&bed.rail.id, 6, Usd::ONE).unwrap();
        assert!(promised.price <= exposure && promised.price.plus(Usd(32_000_000_000_000)).unwrap() > exposure);
        let stop = stopped(bed.pay(PATH, &body, &credential).await);
        assert_eq!((stop.refusal.code(), stop.refusal.status()), ("payer_exposed", 429));
        assert_eq!((stop.moved, stop.claimed, bed.claim("b").await), (Moved::No, false, None), "before any claim");
        drop(served);
        audited(bed).await;
    }
}

#[tokio::test]
async fn a_payer_promises_no_more_at_a_time_than_he_is_trusted_with() {
    let bed = bed(When::After { most: Some(Usd::ONE), exposure: Usd(200_000_000_000_000) });
    let body = streamed(10);
    let a = bed.credential(PATH, &body, "a").await;
    let b = bed.credential(PATH, &body, "b").await;
    let first = bed.pay(PATH, &body, &a).await.unwrap();
    assert_eq!(stopped(bed.pay(PATH, &body, &b).await).refusal.code(), "payer_exposed");
    drop(first);
    bed.becomes("a", |claim| claim.standing == Standing::Untaken).await;
    until(|| async { bed.pay(PATH, &body, &b).await.is_ok() }).await;
}

#[tokio::test]
async fn what_is_dearer_than_a_payer_may_owe_is_offered_only_where_it_is_paid_first() {
    let offered = async |exposure, body: &str| -> Vec<String> {
        let bed = bed(When::After { most: None, exposure });
        let quoted = bed.quote(PATH, body).await.unwrap();
        let made = pay::offers(&bed.toll, &quoted, digest(body), &http::HeaderMap::new(), None).await.unwrap();
        made.into_iter().map(|offer| offer.rail.to_string()).collect()
    };
    let (whole, stream) = (ask("m", 10), streamed(10));
    let price = Bed::new().quote(PATH, &whole).await.unwrap().parts.price_usd;
    assert_eq!(offered(price, &whole).await, ["tempo/charge", "spare/charge"], "as much as he may owe");
    let less = Usd(price.0 - 1);
    assert_eq!(offered(less, &whole).await, ["spare/charge"], "it would be refused whoever pays");
    assert_eq!(offered(less, &stream).await, ["tempo/charge", "spare/charge"], "nothing is owed for a stream");

    // Where there is no other way, waiting does not help: asking for less does.
    let alone: &[_] = &[("routes.toml", "[\"tempo/charge\", \"spare/charge\"]", "[\"tempo/charge\"]")];
    for after in
        [When::After { most: None, exposure: less }, When::After { most: Some(Usd(1_000_000_000_000)), exposure: less }]
    {
        let bed = bed_with(after, alone);
        let refused = async |body: &str| {
            let quoted = bed.quote(PATH, body).await.unwrap();
            pay::offers(&bed.toll, &quoted, digest(body), &http::HeaderMap::new(), None)
                .await
                .map(|offers| offers.len())
        };
        let refusal = refused(&whole).await.unwrap_err();
        let When::After { most, exposure } = after else { panic!() };
        let most = most.unwrap_or(exposure);
        assert_eq!(refusal, Refusal::TooDear { surface: crate::surface::Surface::Chat, most, is_flat: false });
        assert_eq!((refusal.status(), refusal.retry_after()), (400, None));
        assert!(refusal.message().contains("max_tokens"), "{}", refusal.message());
        if most == exposure {
            assert_eq!(refused(&ask("m", 9)).await, Ok(1), "a little less of it");
        }
        bed.rail.up.store(false, Ordering::SeqCst);
        assert_eq!(refused(&whole).await.unwrap_err().code(), "no_offer", "what may be back is waited for");
    }
}

#[tokio::test]
async fn what_other_gates_count_as_promised_is_part_of_what_a_payer_is_trusted_with() {
    for (elsewhere, taken, why) in
        [(40, true, "what is promised beside it fits into 250"), (100, false, "and here it does not")]
    {
        let bed = bed(When::After { most: Some(Usd::ONE), exposure: ONE_AT_A_TIME });
        let body = streamed(10);
        *bed.store.elsewhere.lock().unwrap() = Usd(elsewhere * 1_000_000_000_000);
        let credential = bed.credential(PATH, &body, "a").await;
        let tried = bed.pay(PATH, &body, &credential).await;
        let told = bed.store.promised.load(Ordering::SeqCst);
        match tried {
            Ok(paid) => {
                assert!(taken && told == 1, "{why}");
                drop(paid);
            }
            Err(stop) => {
                assert_eq!((stop.refusal.code(), taken, told), ("payer_exposed", false, 0), "{why}");
                assert_eq!(bed.claim("a").await, None, "before any claim, and nobody counts it");
            }
        }
    }
}

/// 190 atoms or so are promised at a time.
const ONE_AT_A_TIME: Usd = Usd(250_000_000_000_000);

#[tokio::test]
async fn a_promise_in_doubt_counts_against_its_payer_until_it_is_known_whatever_restarts() {
    for after in [
        When::After { most: None, exposure: ONE_AT_A_TIME },
        When::After { most: Some(Usd::ONE), exposure: ONE_AT_A_TIME },
    ] {
        // Used up: 100 tokens at $10 a million. Whatever is promised beside it is too much.
        let mut bed = bed(after);
        let by_usage = matches!(after, When::After { most: Some(_), .. });
        let body = if by_usage { streamed(10) } else { ask("m", 10) };
        let first = bed.credential(PATH, &body, "a").await;
        let second = bed.credential(PATH, &body, "b").await;
        bed.rail.taken.lock().unwrap().push_back(Collected::Unknown);
        if by_usage {
            let mut served = delivery(&bed, bed.pay(PATH, &body, &first).await.unwrap());
            let mut out = Vec::new();
            served.chunk(words(8), &mut out).await.unwrap();
            served.first_byte().await.unwrap();
            let used = END.replace("\"completion_tokens\":3", "\"completion_tokens\":10").replace(":5}", ":12}");
            served.chunk(used.into(), &mut out).await.unwrap();
            served.end(End::Whole, &mut out).await;
            assert_eq!(served.receipt().charged, Atoms(102));
        } else {
            assert_eq!(sell(&bed, &body, &first, REPLY).await.unwrap_err().refusal.code(), "payment_unknown");
        }
        let followed =
            |claim: &Claim| matches!(&claim.standing, Standing::Taking { by, .. } if by.ends_with("/recovery"));
        bed.becomes("a", followed).await;
        assert_eq!(stopped(bed.pay(PATH, &body, &second).await).refusal.code(), "payer_exposed", "{after:?}");

        bed.restart();
        crate::flow::recover::recover(&bed.toll).await.unwrap();
        assert_eq!(
            stopped(bed.pay(PATH, &body, &second).await).refusal.code(),
            "payer_exposed",
            "{after:?}, restarted"
        );
        // The old process asks as well, and cannot be told apart.
        let found = || Collected::Settled { transaction: "0xlate".into() };
        bed.rail.looked.lock().unwrap().extend([found(), found()]);
        bed.becomes("a", |claim| matches!(claim.standing, Standing::Owed | Standing::Delivered { .. })).await;
        until(|| async { bed.pay(PATH, &body, &second).await.is_ok() }).await;
    }
}

#[tokio::test]
async fn replies_that_could_not_be_paid_make_their_payer_trusted_less() {
    let bed = bed(When::After { most: None, exposure: ONE_AT_A_TIME });
    let body = ask("m", 10);
    for (proof, want) in [("a", "payment_failed"), ("b", "payer_exposed")] {
        let credential = bed.credential(PATH, &body, proof).await;
        bed.rail.taken.lock().unwrap().push_back(Collected::Failed { why: "insufficient_funds".into() });
        let stop = sell(&bed, &body, &credential, REPLY).await.unwrap_err();
        assert_eq!(stop.refusal.code(), want, "a backend worked for it");
    }
}

#[tokio::test]
async fn what_cost_nothing_is_not_owed_when_it_does_not_leave() {
    for dropped in [false, true] {
        let bed = bed(by_usage());
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let Money::Promise(promise) = bed.pay(PATH, &body, &credential).await.unwrap().money else { panic!("taken") };
        let hold = promise.take(Atoms(0), None).await.unwrap();
        if dropped {
            drop(hold);
        } else {
            assert_eq!(hold.give_back().await, Moved::No);
        }
        bed.becomes("a", |claim| claim.standing == Standing::Untaken).await;
        assert!(sell(&bed, &body, &credential, REPLY).await.is_ok());
        audited(bed).await;
    }
}

#[tokio::test]
async fn what_the_operator_carries_is_reserved_for_a_fixed_price_and_not_for_usage() {
    let absorb: &[_] = &[super::offers::ABSORB];
    let body = ask("m", 50);
    for (after, room) in [(by_success(), Some(Usd(500_000_000_000_000))), (by_usage(), None)] {
        let bed = bed_with(after, absorb);
        let credential = bed.credential(PATH, &body, "a").await;
        let paid = bed.pay(PATH, &body, &credential).await.unwrap();
        assert_eq!((paid.output, paid.money.room().map(Room::amount)), (50, room), "{after:?}");
        let full = bed.toll.losses.reserve(&"t".into(), UnixSeconds::now(), Usd(u128::MAX), Usd(800_000_000_000_000));
        let quoted = bed.quote(PATH, &body).await.unwrap();
        let made = pay::offers(&bed.toll, &quoted, digest(&body), &http::HeaderMap::new(), None).await;
        let made = made.map(|offers| offers.len()).map_err(|refusal| refusal.code());
        assert_eq!(made, if room.is_some() { Err("cap_reached") } else { Ok(1) }, "{after:?}");
        drop((paid, full));
    }
}

#[tokio::test]
async fn an_old_offer_that_covers_no_answer_any_more_is_refused_unclaimed() {
    let mut bed = bed(by_usage());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    write_rules(&bed.rules, &[("models.toml", "output = \"10\"", "output = \"5000\"")]);
    bed.restart();
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("invalid_challenge", Moved::No, false));
    assert_eq!(bed.claim("a").await, None);
}

#[tokio::test]
async fn what_is_owed_buys_an_answer_as_long_as_the_one_that_was_taken_for() {
    let paid_for = |completion: u64| {
        let (usage, total) = (r#""completion_tokens":3,"total_tokens":5"#, completion + 2);
        REPLY.replace(usage, &format!(r#""completion_tokens":{completion},"total_tokens":{total}"#))
    };
    let missing: &[_] = &[("tiers.toml", "max_n = 4", "max_n = 4\nmissing_usage = \"ceiling\"")];
    let silent = REPLY.replace(r#"{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}"#, "null");
    // 10 tokens are asked for, and the rail asks for no more than 154 atoms.
    let tight = || When::After { most: Some(Usd(154_000_000_000_000)), exposure: Usd::ONE };
    for (edits, reply, want, why) in [
        (&[][..], paid_for(3), Some(3), "three tokens were used and taken: no more is paid, and no less is owed"),
        (&[], paid_for(1), Some(1), "one was"),
        (missing, silent, None, "all that was authorized was taken"),
    ] {
        let bed = bed_with(tight(), edits);
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let paid = bed.pay(PATH, &body, &credential).await.unwrap();
        let most = paid.output;
        assert!((4..10).contains(&most), "{most}");
        bed.rail.taken.lock().unwrap().push_back(Collected::Unknown);
        bed.rail.looked.lock().unwrap().push_back(Collected::Settled { transaction: "0xlate".into() });
        assert!(answered(delivery(&bed, paid), &reply).await.is_err(), "{why}: nobody knows yet");
        bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
        let taken = bed.claim("a").await.unwrap().paid_amount();
        let again = bed.pay(PATH, &body, &credential).await.unwrap();
        assert_eq!(again.output, want.unwrap_or(most), "{why}");
        drop(again);
        bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
        // Of another body it buys what it covers, beside its prompt.
        let other = ask("m", 9);
        let quoted = bed.quote(PATH, &other).await.unwrap();
        let covers = quoted.output_covered(&bed.rail.id, 6, taken);
        match bed.pay(PATH, &other, &credential).await {
            Ok(paid) => assert_eq!(paid.output, covers.max(1), "{why}"),
            Err(stop) => assert_eq!(stop.refusal.code(), "underpaid", "{why}: {stop:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_owed_can_be_redeemed_even_when_it_could_not_be_bought_any_more() {
    let bed = bed(When::After { most: Some(Usd(150_000_000_000_000)), exposure: Usd::ONE });
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let Money::Promise(promise) = bed.pay(PATH, &body, &credential).await.unwrap().money else { panic!("taken") };
    drop(promise.take(Atoms(32), None).await.unwrap());
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    let late = bed.credential(PATH, &body, "b").await;
    bed.reload(&[("models.toml", "input = \"1\"", "input = \"500\"")]).await;
    let quoted = bed.quote(PATH, &body).await.unwrap();
    assert_eq!(quoted.terms_by_usage(&bed.rail.id, 6, Usd(150_000_000_000_000)), None, "not even the prompt");
    assert!(bed.pay(PATH, &body, &late).await.is_ok(), "an offer of the old price is honoured");
    assert!(bed.pay(PATH, &body, &credential).await.is_ok(), "and so is what was paid");
}

#[tokio::test]
async fn a_payment_shown_for_a_request_that_is_too_dear_for_its_rail_is_refused_unclaimed() {
    let bed = bed(When::After { most: Some(Usd(150_000_000_000_000)), exposure: Usd::ONE });
    let credential = bed.credential(PATH, &ask("m", 10), "a").await;
    let long = ask("m", 10).replace("\"hi\"", &format!("\"{}\"", "a".repeat(400)));
    let stop = stopped(bed.pay(PATH, &long, &credential).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("invalid_challenge", Moved::No, false));
    assert_eq!(bed.claim("a").await, None);
}
