//! Openings that name a payer and are signed by a key of which only the chain knows whose it is.

use super::sessions::{BY_TOKEN, bed, channel, opening, session};
use super::*;
use crate::channel::{ChannelId, Phase};
use crate::flow::control;
use crate::rail::session::Outcome;
use crate::rules::Plan;

/// An opening signed by an access key that is said to be `payer`'s.
fn by_key(id: &str, payer: &str) -> Shown {
    session(json!({
        "action": "open", "channelId": id, "amount": "2000", "deposit": "50000", "tx": id, "by": "access key", "payer": payer,
    }))
}

async fn buy(bed: &Bed, credential: &Shown) -> &'static str {
    match bed.pay(BY_TOKEN, &ask("m", 10), credential).await {
        Ok(paid) => {
            drop(paid);
            "paid"
        }
        Err(stop) => stop.refusal.code(),
    }
}

#[tokio::test]
async fn a_strangers_openings_take_no_place_of_the_payer_they_name_and_few_are_under_way() {
    let bed = bed();
    *bed.purse.keys.lock().unwrap() = Some(Outcome::Unknown);
    for n in 0..4 {
        assert_eq!(buy(&bed, &by_key(&format!("0xf{n}"), "0xpayer")).await, "payment_unknown");
    }
    assert_eq!(buy(&bed, &by_key("0xf4", "0xpayer")).await, "rate_limit_exceeded", "a fifth that names him");
    assert_eq!(bed.store.inner.channel(&ChannelId("0xf4".into())).await.unwrap(), None, "nothing of it is kept");
    for (id, want) in [("0xaa", "paid"), ("0xab", "paid"), ("0xac", "payment_invalid")] {
        assert_eq!(buy(&bed, &opening(id, 2_000, 50_000)).await, want, "{id}: he has two places");
    }
    for n in 0..28 {
        assert_eq!(buy(&bed, &by_key(&format!("0xe{n}"), &format!("0x{n}"))).await, "payment_unknown", "{n}");
    }
    assert_eq!(buy(&bed, &by_key("0xd0", "0xd")).await, "rate_limit_exceeded", "many payers are named");
    assert_eq!(
        buy(&bed, &opening("0xad", 2_000, 50_000)).await,
        "payment_invalid",
        "and this is about his own, as before"
    );

    // The chain says that they were never his: there is room again.
    *bed.purse.keys.lock().unwrap() = Some(Outcome::Dropped { why: "not his key".into() });
    for n in 0..4 {
        until(|| async { channel(&bed, &format!("0xf{n}")).await.phase == Phase::Failed }).await;
    }
    // A place is given back a moment after the record says so.
    until(|| async { buy(&bed, &by_key("0xd0", "0xd")).await == "payment_failed" }).await;
}

#[tokio::test]
async fn an_opening_by_a_key_that_its_account_never_authorized_takes_no_place() {
    let bed = bed();
    *bed.purse.keys.lock().unwrap() = Some(Outcome::Unknown);
    for n in 0..40 {
        let id = format!("0xf{n}");
        bed.purse.strangers.lock().unwrap().push(format!("0x{id}"));
        assert_eq!(buy(&bed, &by_key(&id, "0xpayer")).await, "payment_invalid", "{n}");
        assert_eq!(bed.store.inner.channel(&ChannelId(id)).await.unwrap(), None, "nothing of it is kept");
    }
    for n in 0..4 {
        assert_eq!(
            buy(&bed, &by_key(&format!("0xe{n}"), "0xpayer")).await,
            "payment_unknown",
            "{n}: his own are taken"
        );
    }
}

#[tokio::test]
async fn an_opening_by_access_key_takes_no_place_while_it_is_tried_unless_its_fee_is_set_aside() {
    for (sponsored, tried, next) in [(false, 40, "paid"), (true, 4, "rate_limit_exceeded")] {
        let bed = bed();
        let by_key = |id: &str| {
            session(json!({
                "action": "open", "channelId": id, "amount": "2000", "deposit": "50000", "tx": id, "by": "access key",
                "payer": "0xpayer", "sponsored": sponsored,
            }))
        };
        let credentials: Vec<_> = (0..tried).map(|n| by_key(&format!("0xf{n}"))).collect();
        bed.purse.ponders.store(true, Ordering::SeqCst);
        let all = futures::future::join_all(credentials.iter().map(|credential| buy(&bed, credential)));
        tokio::select! {
            done = all => panic!("{done:?}"),
            () = until(|| async { bed.purse.trials.load(Ordering::SeqCst) == tried }) => {}
        }
        bed.purse.ponders.store(false, Ordering::SeqCst);
        assert_eq!(buy(&bed, &by_key("0xe0")).await, next, "sponsored: {sponsored}");
    }
}

#[tokio::test]
async fn an_opening_by_access_key_that_lands_takes_a_place_like_any_other() {
    let bed = bed();
    assert_eq!(buy(&bed, &by_key("0xa0", "0xpayer")).await, "paid");
    assert_eq!(buy(&bed, &opening("0xa1", 2_000, 50_000)).await, "paid");
    for credential in [by_key("0xa2", "0xpayer"), opening("0xa3", 2_000, 50_000)] {
        assert_eq!(buy(&bed, &credential).await, "payment_invalid", "two places, whoever signed");
    }
    let landed = channel(&bed, "0xa0").await;
    assert!(landed.by_access_key && !landed.is_unjudged(), "how it was signed is kept, and the chain has spoken");
}

#[tokio::test]
async fn one_payer_has_so_many_channels_another_has_his_own_and_a_closed_one_is_a_place_again() {
    let bed = bed();
    let of = |id: &str, payer: &str| {
        session(
            json!({"action": "open", "channelId": id, "amount": "2000", "deposit": "50000", "tx": id, "payer": payer}),
        )
    };
    for (id, payer, want) in [
        ("0xa0", "0xpayer", "paid"),
        ("0xa1", "0xpayer", "paid"),
        ("0xa2", "0xpayer", "payment_invalid"),
        ("0xb0", "0xother", "paid"),
    ] {
        assert_eq!(buy(&bed, &of(id, payer)).await, want, "{id} of {payer}");
    }
    let id = ChannelId("0xa0".into());
    until(|| async { channel(&bed, "0xa0").await.leases.is_empty() }).await;
    crate::flow::closing::close(&bed.toll, &bed.toll.tills[0], &id).await.unwrap();
    assert_eq!(buy(&bed, &of("0xa3", "0xpayer")).await, "paid", "one of his two is closed");
    assert_eq!(buy(&bed, &of("0xa4", "0xpayer")).await, "payment_invalid", "and that was the one place");
}

/// Proofs of the payer "payer", who looks for his channel.
struct Search<'b> {
    bed: &'b Bed,
    plan: Arc<Plan>,
}

impl<'b> Search<'b> {
    fn of(bed: &'b Bed) -> Self {
        Self { bed, plan: bed.toll.rules.plan() }
    }

    /// Answers an offer that was made then.
    fn signed(&self, at: UnixSeconds) -> Shown {
        let headers = [(http::HeaderName::from_static("accept-payment"), "tempo/charge".parse().unwrap())];
        let headers = http::HeaderMap::from_iter(headers);
        let route = self.plan.route(BY_TOKEN).unwrap();
        let offer = control::proof_offer(&self.bed.toll, &self.plan, route, &headers, digest(""), at).unwrap();
        shown(&offer.challenge_id.unwrap(), &crate::ids::fresh("signed"))
    }

    /// The channel that is told of.
    async fn show(&self, proof: &Shown) -> Result<Option<String>, Refusal> {
        let route = self.plan.route(BY_TOKEN).unwrap();
        let told = control::prove(&self.bed.toll, &self.plan, route, proof, digest("")).await;
        let told = told.map_err(|stop| stop.refusal)?.expect("a proof");
        Ok(told.first().map(|(_, id)| id.to_str().unwrap().to_owned()))
    }

    async fn is_stale(&self, proof: &Shown) -> bool {
        let refusal = self.show(proof).await.unwrap_err();
        (refusal.code(), refusal.invites_payment()) == ("invalid_challenge", true)
    }
}

fn his_opening(id: &str) -> Shown {
    session(
        json!({"action": "open", "channelId": id, "amount": "2000", "deposit": "50000", "tx": id, "payer": "payer"}),
    )
}

#[tokio::test]
async fn a_proof_that_found_a_channel_is_good_once_and_whoever_copies_it_is_told_nothing() {
    let bed = bed();
    let search = Search::of(&bed);
    assert_eq!(buy(&bed, &his_opening("0xaa")).await, "paid");
    let later = channel(&bed, "0xaa").await.opened_at.plus(1);
    for proof in [search.signed(later), search.signed(later)] {
        assert_eq!(search.show(&proof).await, Ok(Some("0xaa".to_owned())));
        for _ in 0..3 {
            assert!(search.is_stale(&proof).await);
        }
    }
}

#[tokio::test]
async fn a_proof_from_before_the_channel_was_opened_finds_nothing_and_a_fresh_one_does() {
    let bed = bed();
    let search = Search::of(&bed);
    let early = search.signed(UnixSeconds::now());
    for _ in 0..2 {
        assert_eq!(search.show(&early).await, Ok(None), "he has no channel, and nothing is kept");
    }
    assert_eq!(buy(&bed, &his_opening("0xaa")).await, "paid");
    assert!(search.is_stale(&early).await, "whoever found it in a log");
    let opened_at = channel(&bed, "0xaa").await.opened_at;
    assert!(search.is_stale(&search.signed(opened_at)).await, "of the same second");
    let fresh = search.signed(opened_at.plus(1));
    assert_eq!(search.show(&fresh).await, Ok(Some("0xaa".to_owned())), "a second later");
}

#[tokio::test]
async fn a_proof_that_was_shown_while_the_channel_was_being_opened_is_not_good_again() {
    let bed = bed();
    let search = Search::of(&bed);
    bed.purse.silent.store(true, Ordering::SeqCst);
    assert_eq!(buy(&bed, &his_opening("0xaa")).await, "payment_unknown");
    let later = channel(&bed, "0xaa").await.opened_at.plus(1);
    let proof = search.signed(later);
    assert_eq!(search.show(&proof).await, Ok(None), "there is no channel yet");
    bed.purse.silent.store(false, Ordering::SeqCst);
    until(|| async { channel(&bed, "0xaa").await.phase == Phase::Open }).await;
    assert!(search.is_stale(&proof).await);
    assert_eq!(search.show(&search.signed(later)).await, Ok(Some("0xaa".to_owned())));
}

#[tokio::test]
async fn a_proof_that_was_older_than_one_channel_does_not_find_another_when_that_is_closed() {
    let bed = bed();
    let search = Search::of(&bed);
    assert_eq!(buy(&bed, &his_opening("0xaa")).await, "paid");
    let proof = search.signed(channel(&bed, "0xaa").await.opened_at.plus(1));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(buy(&bed, &his_opening("0xbb")).await, "paid");
    assert!(search.is_stale(&proof).await);
    until(|| async { channel(&bed, "0xbb").await.leases.is_empty() }).await;
    crate::flow::closing::close(&bed.toll, &bed.toll.tills[0], &ChannelId("0xbb".into())).await.unwrap();
    assert!(search.is_stale(&proof).await, "it was shown");
    let fresh = search.signed(channel(&bed, "0xaa").await.opened_at.plus(1));
    assert_eq!(search.show(&fresh).await, Ok(Some("0xaa".to_owned())));
}
