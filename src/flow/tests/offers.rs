//! What is offered, what an old offer is worth, and what the operator may lose.

use super::*;
use crate::flow::choose;
use crate::flow::loss::Room;
use crate::flow::recover::recover;
use crate::refusal::Moved;

async fn offers(bed: &Bed, body: &str) -> Result<Vec<String>, &'static str> {
    let quoted = bed.quote(PATH, body).await.unwrap();
    let made = pay::offers(&bed.toll, &quoted, digest(body), &http::HeaderMap::new(), None).await;
    made.map(|offers| offers.iter().map(|o| o.rail.to_string()).collect()).map_err(|r| r.code())
}

#[tokio::test]
async fn a_rail_that_cannot_be_honoured_is_not_offered_and_without_any_there_is_no_402() {
    let bed = Bed::new();
    let body = ask("m", 10);
    assert_eq!(offers(&bed, &body).await.unwrap(), ["tempo/charge", "spare/charge"]);
    bed.rail.up.store(false, Ordering::SeqCst);
    assert_eq!(offers(&bed, &body).await.unwrap(), ["spare/charge"]);
    bed.spare.up.store(false, Ordering::SeqCst);
    assert_eq!(offers(&bed, &body).await, Err("no_offer"));
    bed.rail.up.store(true, Ordering::SeqCst);
    assert_eq!(offers(&bed, &body).await.unwrap(), ["tempo/charge"]);
}

#[tokio::test]
async fn more_choices_than_a_vendor_makes_are_refused_before_a_price_is_named() {
    for (profile, named, n, taken) in [
        ("anthropic", true, 1, true),
        ("anthropic", true, 2, false),
        ("anthropic", false, 2, false),
        ("vllm", true, 2, true),
    ] {
        let bed = Bed::with(&[("pools.toml", "vllm", profile)]);
        let model = if named { "\"model\":\"m\"," } else { "" };
        let body = format!(r#"{{{model}"messages":[{{"role":"user","content":"hi"}}],"n":{n}}}"#);
        let quoted = choose::quote_idle(&bed.toll.rules.plan(), PATH, body.into()).await;
        match quoted {
            Ok(_) => assert!(taken, "{profile}, {n}"),
            Err(Refusal::OverLimit { param: "n", asked: 2, max: 1 }) => assert!(!taken, "{profile}, {n}"),
            Err(other) => panic!("{profile}, {n}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_picture_of_known_size_is_a_part_of_the_prompt_and_another_costs_the_flat_price() {
    let png = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAABAAAAAQACAY=";
    let tier = |more: &str| {
        ("tiers.toml".to_owned(), "max_n = 4".to_owned(), format!("max_n = 4\nimage_url = {{ flat = \"0.5\" }}{more}"))
    };
    let family = (
        "models.toml".to_owned(),
        "pool = \"p\"\nprice = { input = \"1\"".to_owned(),
        "pool = \"p\"\nimages = \"tiles\"\nprice = { input = \"1\"".to_owned(),
    );
    let quote = async |edits: &[(String, String, String)], url: Option<&str>| {
        let edits: Vec<_> = edits.iter().map(|(file, from, to)| (file.as_str(), from.as_str(), to.as_str())).collect();
        let bed = Bed::with(&edits);
        let picture =
            url.map_or(String::new(), |url| format!(r#",{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#));
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"hi"}}{picture}]}}]}}"#
        );
        choose::quote_idle(&bed.toll.rules.plan(), PATH, body.into()).await
    };
    let with = [tier(""), family.clone()];
    let plain = quote(&with, None).await.unwrap().parts;
    for (edits, url, tokens, flat, why) in [
        (&with[..], png, 765, Usd::ZERO, "counted by its size"),
        (&with[..], "https://example.org/a.png", 0, Usd::parse("0.5").unwrap(), "its size is not known here"),
        (&with[..1], png, 0, Usd::parse("0.5").unwrap(), "a model that counts no pictures"),
    ] {
        let parts = quote(edits, Some(url)).await.unwrap().parts;
        assert_eq!(parts.prompt_tokens, plain.prompt_tokens.map(|n| n + tokens), "{why}");
        assert_eq!(parts.images_usd, flat, "{why}");
        let more = Usd(parts.price_usd.0 - plain.price_usd.0);
        assert_eq!(
            more,
            flat.plus(Usd(u128::from(tokens) * 1_000_000_000_000)).unwrap(),
            "{why}: what is asked covers it"
        );
    }
    let short = [tier("\nmax_input_tokens = 700"), family];
    let refused = quote(&short, Some(png)).await.err();
    assert!(matches!(refused, Some(Refusal::PromptTooLong { max: 700, .. })), "{refused:?}");
}

#[tokio::test]
async fn an_offer_is_honoured_at_its_price_after_the_rules_changed() {
    let dearer: &[_] = &[("models.toml", "output = \"10\"", "output = \"50\"")];
    let clamped: &[_] = &[("tiers.toml", "max_output_tokens = 100", "max_output_tokens = 5")];
    let renamed: &[_] = &[("pools.toml", "pool.p", "pool.q"), ("models.toml", "pool = \"p\"", "pool = \"q\"")];
    for (edits, why) in
        [(dearer, "a price that rose"), (clamped, "a limit that fell"), (renamed, "a pool with a new name")]
    {
        let bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        let (then, old) = (bed.toll.rules.plan().generation.clone(), bed.quote(PATH, &body).await.unwrap());
        bed.reload(edits).await;
        let paid = bed.pay(PATH, &body, &credential).await.unwrap_or_else(|stop| panic!("{why}: {stop:?}"));
        let terms = paid.hold().terms();
        assert_eq!((&terms.generation, terms.price), (&then, old.parts.price_usd), "{why}");
        assert_eq!((paid.output, &paid.quoted.generation), (10, &then), "{why}: one generation throughout");
        assert!(bed.toll.pools.load().get(&paid.quoted.allowed.model.pool).is_some(), "{why}: its pool is there");
        assert_ne!(bed.quote(PATH, &body).await.unwrap().generation, then, "{why}: what is offered now is new");
    }
}

#[tokio::test]
async fn a_request_that_names_no_model_keeps_the_one_it_was_offered_whatever_is_reloaded() {
    // A word of `m` costs too much for the price, so that `gift` is offered.
    let flat: &[_] = &[("tiers.toml", "{ ceiling = true }", "{ flat = \"0.0002\", min_output_tokens = 20 }")];
    let other: &[_] = &[flat[0], ("models.toml", "output = \"10\"", "output = \"9\"")];
    let gone: &[_] = &[flat[0], ("tiers.toml", "[\"m\", \"gift\"]", "[\"m\"]")];
    let body = r#"{"max_tokens":20,"messages":[{"role":"user","content":"hi"}]}"#;
    for (edits, kept, why) in [(other, true, "other prices"), (gone, false, "it is not sold here any more")] {
        let bed = Bed::with(flat);
        let quote = async |found: &Found| {
            let plan = bed.toll.rules.plan();
            choose::quote(&bed.toll, &plan, PATH, body.into(), found).await.map(Arc::new)
        };
        let quoted = quote(&Found::Nothing).await.unwrap();
        assert_eq!(quoted.allowed.model.name.as_str(), "gift");
        let offers = pay::offers(&bed.toll, &quoted, digest(body), &http::HeaderMap::new(), None).await.unwrap();
        let found = Found::One(shown(offers[0].challenge_id.as_ref().unwrap(), "a"));
        bed.reload(edits).await;
        let live = match quote(&found).await {
            Ok(live) => live,
            Err(refusal) => {
                assert!(!kept, "{why}: {refusal:?}");
                continue;
            }
        };
        let (plan, bytes) = (bed.toll.rules.plan(), Bytes::copy_from_slice(body.as_bytes()));
        let visit = Visit { plan: &plan, found: &found, digest: digest(body), body: &bytes, request: "req_1" };
        let paid = pay::pay(&bed.toll, &visit, &live).await;
        assert!(kept, "{why}");
        let paid = paid.unwrap_or_else(|stop| panic!("{why}: {stop:?}"));
        let terms = paid.hold().terms();
        assert_eq!((terms.model.as_str(), &terms.generation), ("gift", &quoted.generation), "{why}");
    }
}

#[tokio::test]
async fn an_offer_is_refused_unclaimed_when_what_it_sold_is_sold_elsewhere_now() {
    let upstream: &[_] = &[("models.toml", "m-up", "m-other")];
    let pool: &[_] = &[
        ("pools.toml", "[pool.p]", "[pool.q]"),
        ("pools.toml", "127.0.0.1:1", "127.0.0.1:2"),
        ("models.toml", "pool = \"p\"", "pool = \"q\""),
    ];
    let rail: &[_] = &[("routes.toml", "accept = [\"tempo/charge\", \"spare/charge\"]", "accept = [\"spare/charge\"]")];
    let gone: &[_] =
        &[("models.toml", "[model.\"m\"]", "[model.\"n\"]"), ("tiers.toml", "\"m\", \"gift\"", "\"n\", \"gift\"")];
    for (edits, want, why) in [
        (upstream, "invalid_challenge", "another model behind the name"),
        (pool, "invalid_challenge", "other servers"),
        (rail, "invalid_challenge", "a rail that is not taken any more"),
        (gone, "model_not_found", "a model that is gone"),
    ] {
        let bed = Bed::new();
        let body = ask("m", 10);
        let credential = bed.credential(PATH, &body, "a").await;
        bed.reload(edits).await;
        let Err(stop) = bed.pay(PATH, &body, &credential).await else { panic!("{why}: it was let through") };
        assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), (want, Moved::No, false), "{why}");
        assert_eq!((bed.claim("a").await, bed.rail.collects()), (None, 0), "{why}");
    }
}

#[tokio::test]
async fn an_offer_from_before_a_restart_is_honoured_at_its_own_amount() {
    let mut bed = Bed::new();
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let old = bed.quote(PATH, &body).await.unwrap().parts.price_usd;
    write_rules(&bed.rules, &[("models.toml", "output = \"10\"", "output = \"50\"")]);
    bed.restart();
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert_eq!(paid.into_hold().terms().price, old, "the rules that made it are gone; its MAC and digest are not");
}

pub(super) const ABSORB: (&str, &str, &str) = (
    "tiers.toml",
    "{ ceiling = true }",
    "{ estimate = { overhead = \"1\", shortfall = \"absorb\", loss_cap_per_call = \"0.0005\", loss_cap_per_day = \"0.0008\" } }",
);

#[tokio::test]
async fn what_the_operator_may_lose_is_reserved_before_a_payment_and_a_full_day_refuses_it() {
    let bed = Bed::with(&[ABSORB]);
    let body = ask("m", 50);
    let mut inside = Vec::new();
    for (proof, room, output) in [("a", 500, 50), ("b", 300, 30)] {
        let credential = bed.credential(PATH, &body, proof).await;
        let paid = bed.pay(PATH, &body, &credential).await.unwrap();
        let micro = Usd(room * 1_000_000_000_000);
        assert_eq!((paid.money.room().unwrap().amount(), paid.output), (micro, output), "{proof}");
        inside.push((credential, paid));
    }
    assert_eq!(offers(&bed, &body).await, Err("cap_reached"), "nothing is offered that could not be served");
    // One that was offered earlier is refused before its payment is touched.
    let late = {
        let (_, first) = inside.pop().unwrap();
        served(first).await;
        let credential = bed.credential(PATH, &body, "c").await;
        let again = bed.credential(PATH, &body, "d").await;
        inside.push((credential.clone(), bed.pay(PATH, &body, &credential).await.unwrap()));
        again
    };
    let stop = stopped(bed.pay(PATH, &body, &late).await);
    assert_eq!((stop.refusal.code(), stop.moved, stop.claimed), ("cap_reached", Moved::No, false));
    assert_eq!(bed.claim("d").await, None);
}

/// It got an answer that cost nothing beyond its price.
async fn served(paid: Paid) {
    let mut hold = paid.into_hold();
    let receipt = crate::journal::sample::receipt("rcpt_a", "0xa", 1);
    hold.deliver(&receipt, Vec::new()).await.unwrap();
}

/// All that is left of the day, for as long as it lives.
fn rest_of_the_day(bed: &Bed) -> Room {
    bed.toll.losses.reserve(&"t".into(), UnixSeconds::now(), Usd(u128::MAX), Usd(800_000_000_000_000))
}

#[tokio::test]
async fn a_paid_call_is_redeemed_even_when_the_day_is_full() {
    let bed = Bed::with(&[ABSORB]);
    let body = ask("m", 50);
    let credential = bed.credential(PATH, &body, "a").await;
    let hold = bed.pay(PATH, &body, &credential).await.unwrap().into_hold();
    assert!(matches!(hold.give_back().await, Moved::Redeemable { .. }));
    let _full = rest_of_the_day(&bed);
    assert_eq!(offers(&bed, &body).await, Err("cap_reached"));
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert_eq!(paid.output, 50, "it gets what it was sold");
}

#[tokio::test]
async fn whoever_pays_and_leaves_again_and_again_is_not_served_over_the_cap_of_the_day_later() {
    // Where the client leaves: while the payment is taken, or while a backend works.
    for early in [false, true] {
        let bed = Bed::with(&[ABSORB]);
        let body = ask("m", 50);
        let mut owed = Vec::new();
        for proof in ["a", "b"] {
            let credential = bed.credential(PATH, &body, proof).await;
            if early {
                bed.rail.open.send_replace(false);
                let asked = bed.rail.collects() + 1;
                tokio::select! {
                    _ = bed.pay(PATH, &body, &credential) => panic!("the chain is not done"),
                    () = until(|| async { bed.rail.collects() == asked }) => {}
                }
                bed.rail.open.send_replace(true);
            } else {
                drop(bed.pay(PATH, &body, &credential).await.unwrap());
            }
            bed.becomes(proof, |claim| claim.standing == Standing::Owed).await;
            owed.push(credential);
        }
        until(|| async { offers(&bed, &body).await == Err("cap_reached") }).await;
        let mut inside = Vec::new();
        for (credential, room, output) in [(&owed[0], 500, 50), (&owed[1], 300, 30)] {
            let paid = bed.pay(PATH, &body, credential).await.unwrap();
            let micro = Usd(room * 1_000_000_000_000);
            assert_eq!((paid.money.room().unwrap().amount(), paid.output), (micro, output), "what it was sold");
            inside.push(paid);
        }
        for paid in inside {
            served(paid).await;
        }
        assert!(offers(&bed, &body).await.is_ok(), "what was not lost after all is there for others");
    }
}

#[tokio::test]
async fn what_nothing_was_kept_for_takes_what_the_day_leaves_and_stays_redeemable_when_that_is_nothing() {
    let mut bed = Bed::with(&[ABSORB]);
    let body = ask("m", 50);
    let credential = bed.credential(PATH, &body, "a").await;
    drop(bed.pay(PATH, &body, &credential).await.unwrap());
    bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
    bed.restart();
    let full = rest_of_the_day(&bed);
    let stop = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!((stop.refusal.code(), stop.refusal.status(), stop.claimed), ("cap_reached", 503, true));
    assert!(matches!(stop.moved, Moved::Redeemable { .. }));
    drop(full);
    assert_eq!(bed.pay(PATH, &body, &credential).await.unwrap().output, 50);
}

#[tokio::test]
async fn what_a_call_may_lose_is_kept_for_whoever_paid_before_a_restart_or_was_known_to_have_paid_late() {
    for late in [false, true] {
        let mut bed = Bed::with(&[ABSORB]);
        let body = ask("m", 50);
        let credential = bed.credential(PATH, &body, "a").await;
        if late {
            bed.rail.finds(Collected::Unknown, [Collected::Paid]);
            assert_eq!(stopped(bed.pay(PATH, &body, &credential).await).refusal.code(), "payment_unknown");
        } else {
            drop(bed.pay(PATH, &body, &credential).await.unwrap());
        }
        bed.becomes("a", |claim| claim.standing == Standing::Owed).await;
        if !late {
            bed.restart();
            recover(&bed.toll).await.unwrap();
        }
        let left = || bed.toll.losses.left(&"t".into(), UnixSeconds::now(), Usd(800_000_000_000_000));
        until(|| async { left() == Usd(300_000_000_000_000) }).await;
        let _full = rest_of_the_day(&bed);
        assert_eq!(bed.pay(PATH, &body, &credential).await.unwrap().output, 50, "late: {late}");
    }
}

#[tokio::test]
async fn losses_of_the_last_process_count_against_the_day() {
    let mut bed = Bed::with(&[ABSORB]);
    let body = ask("m", 50);
    let tally = vec![(Losses::tally_name(&"t".into()), UnixSeconds::now().day(), Usd(800_000_000_000_000))];
    bed.store.inner.commit(Write { tally, ..Write::default() }).await.unwrap();
    bed.restart();
    assert_eq!(offers(&bed, &body).await, Err("cap_reached"));
}
