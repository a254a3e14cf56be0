//! Credentials of channels shown again: by a payer who does not know what became of them, and by somebody who found them on chain.

use super::sessions::{BY_TOKEN, REPLY, audited, bed, channel, delivery, newest, opening, session, streamed, voucher};
use super::*;
use crate::channel::{ChannelId, Op, Phase};
use crate::flow::session::opened_by;
use crate::flow::{control, transact};
use crate::rail::session::Outcome;
use crate::refusal::Moved;

/// The same credential after its offer and its transaction's validity are over.
fn over(shown: &Shown) -> Shown {
    let Shown::Mpp(credential) = shown else { panic!("a session credential") };
    let mut credential = credential.clone();
    credential.payload["over"] = json!(true);
    Shown::Mpp(credential)
}

async fn manage(bed: &Bed, shown: &Shown) -> Result<control::Done, Stop> {
    let plan = bed.toll.rules.plan();
    control::manage(&bed.toll, plan.route(BY_TOKEN).unwrap(), shown).await
}

#[tokio::test]
async fn an_opening_in_doubt_is_answered_by_the_same_credential_however_late_it_is_shown_again() {
    let bed = bed();
    let body = ask("m", 10);
    for (id, by_content) in [("0xaa", true), ("0xab", false)] {
        bed.purse.outcomes.lock().unwrap().push_back(Outcome::Unknown);
        let credential = opening(id, 5_000, 50_000);
        assert_eq!(stopped(bed.pay(BY_TOKEN, &body, &credential).await).refusal.code(), "payment_unknown");
        if by_content {
            let mut served =
                delivery(&bed, bed.pay(BY_TOKEN, &body, &over(&credential)).await.expect("it landed: content"));
            let stop = stopped(bed.pay(BY_TOKEN, &body, &over(&credential)).await);
            assert_eq!((stop.refusal, stop.moved), (Refusal::OfferExpired, Moved::No), "one is served by it");
            served.whole(Bytes::from_static(REPLY)).await.unwrap();
            drop(served);
            let stop = stopped(bed.pay(BY_TOKEN, &body, &over(&credential)).await);
            assert_eq!(stop.refusal, Refusal::OfferExpired, "late it buys one thing: later, anybody may have seen it");
        } else {
            manage(&bed, &over(&credential)).await.expect("it landed: management");
        }
        assert_eq!(newest(&bed, id).await.phase, Phase::Open);
    }
    for shown in [over(&opening("0xac", 5_000, 50_000))] {
        let stop = stopped(bed.pay(BY_TOKEN, &body, &shown).await);
        assert_eq!((stop.refusal, stop.moved), (Refusal::OfferExpired, Moved::No), "one that is new is not sent");
        assert_eq!(manage(&bed, &shown).await.unwrap_err().refusal, Refusal::OfferExpired);
    }
    assert_eq!(bed.purse.mined.lock().unwrap().len(), 2, "each was sent once");
}

#[tokio::test]
async fn a_top_up_in_doubt_is_answered_by_the_same_credential_however_late_it_is_shown_again() {
    let bed = bed();
    drop(bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 5_000, 50_000)).await.unwrap());
    let more = |tx: &str| session(json!({"action": "topUp", "channelId": "0xaa", "additional": "900", "tx": tx}));
    bed.purse.outcomes.lock().unwrap().push_back(Outcome::Unknown);
    assert_eq!(manage(&bed, &more("one")).await.unwrap_err().refusal.code(), "payment_unknown");
    manage(&bed, &over(&more("one"))).await.expect("it is under way, and lands");
    assert_eq!(channel(&bed, "0xaa").await.view.deposit, Atoms(50_900));
    for n in 0..8 {
        manage(&bed, &more(&n.to_string())).await.expect("the next, at once: each costs its payer something");
    }
    // Only the last ones are remembered: the chain knows about the first.
    let looks = bed.purse.looks.load(Ordering::SeqCst);
    manage(&bed, &over(&more("one"))).await.expect("it landed, and the chain says so");
    assert_eq!(bed.purse.looks.load(Ordering::SeqCst), looks + 1);
    assert_eq!(channel(&bed, "0xaa").await.view.deposit, Atoms(50_000 + 9 * 900), "and it was counted once");
}

#[tokio::test]
async fn the_chain_is_asked_about_top_ups_that_landed_once_in_five_seconds_whichever_is_shown() {
    let mut bed = bed();
    drop(bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 5_000, 50_000)).await.unwrap());
    let more = |tx: &str| session(json!({"action": "topUp", "channelId": "0xaa", "additional": "1", "tx": tx}));
    for tx in ["one", "two"] {
        manage(&bed, &more(tx)).await.expect("it lands");
    }
    until(|| async { channel(&bed, "0xaa").await.leases.is_empty() }).await;
    // A gate that is started now remembers neither.
    (bed.toll, bed.store) = toll(&bed.rules, Arc::clone(&bed.store.inner), &bed.rail, &bed.spare, &bed.purse);
    let shows = async |bed: &Bed, tx: &str| {
        let before = bed.purse.looks.load(Ordering::SeqCst);
        let answer = manage(bed, &over(&more(tx))).await.map(drop).map_err(|stop| stop.refusal.code());
        (answer, bed.purse.looks.load(Ordering::SeqCst) - before)
    };
    assert_eq!(shows(&bed, "one").await, (Ok(()), 1), "the chain knows");
    assert_eq!(shows(&bed, "two").await, (Err("channel_busy"), 0), "a look costs its payer nothing: the next waits");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    assert_eq!(shows(&bed, "two").await, (Ok(()), 1));
    for tx in ["one", "two", "one", "two"] {
        assert_eq!(shows(&bed, tx).await, (Ok(()), 0), "both are remembered");
    }
    assert_eq!(channel(&bed, "0xaa").await.view.deposit, Atoms(50_002));
}

#[tokio::test]
async fn a_top_up_that_nobody_sent_in_its_time_failed_only_when_the_chain_says_so() {
    for (sponsored, relayed, code, moved, why) in [
        (false, false, "payment_failed", Moved::No, "its hash is the chain's"),
        (false, true, "payment_failed", Moved::No, "the payer's own, whoever sends others"),
        (true, false, "payment_failed", Moved::No, "sponsored here, and not in our records"),
        (true, true, "payment_unknown", Moved::Unknown, "a relay sends it under another hash"),
    ] {
        let bed = bed();
        drop(bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 5_000, 50_000)).await.unwrap());
        bed.purse.relays.store(relayed, Ordering::SeqCst);
        let fields =
            json!({"action": "topUp", "channelId": "0xaa", "additional": "900", "tx": "late", "sponsored": sponsored});
        bed.purse.outcomes.lock().unwrap().push_back(Outcome::Dropped { why: "never mined".into() });
        let stop = manage(&bed, &over(&session(fields))).await.unwrap_err();
        assert_eq!((stop.refusal.code(), stop.moved), (code, moved), "{why}");
        assert_eq!(channel(&bed, "0xaa").await.payers_tx, None);
    }
}

#[tokio::test]
async fn a_voucher_that_the_chain_has_shown_to_everybody_closes_nothing() {
    let bed = bed();
    let mut served = delivery(&bed, bed.pay(BY_TOKEN, &ask("m", 100), &opening("0xaa", 2_000, 50_000)).await.unwrap());
    served.whole(Bytes::from_static(REPLY)).await.unwrap();
    drop(served);
    let (id, spent) = (ChannelId("0xaa".into()), newest(&bed, "0xaa").await.spent());
    let view = crate::channel::View { settled: spent, block: 50, ..newest(&bed, "0xaa").await.view };
    bed.toll.channels.one(&id, Op::Look { view }).await.unwrap().1.unwrap();
    let close = |amount: Atoms, agreed: bool| {
        session(json!({"action": "close", "channelId": "0xaa", "amount": amount.to_string(), "agreed": agreed}))
    };
    let stop = manage(&bed, &close(spent, false)).await.unwrap_err();
    assert_eq!((stop.refusal.code(), stop.moved), ("voucher_invalid", Moved::No), "anybody could show it");
    assert_eq!(newest(&bed, "0xaa").await.phase, Phase::Open);
    manage(&bed, &close(Atoms(spent.0 + 1), false)).await.expect("nobody but the payer has this one");
    assert!(matches!(newest(&bed, "0xaa").await.phase, Phase::Closed { .. }));
    assert_eq!(manage(&bed, &close(spent, false)).await.map(|_| ()).err(), None, "over is over: the same answer");
    audited(bed).await;
}

#[tokio::test]
async fn a_channel_that_was_settled_to_its_last_voucher_is_closed_by_it_once_nobody_has_used_it_for_five_minutes() {
    let mut bed = bed();
    drop(bed.pay(BY_TOKEN, &ask("m", 100), &opening("0xaa", 2_000, 50_000)).await.unwrap());
    let close = session(json!({"action": "close", "channelId": "0xaa", "amount": "2000"}));
    // As a gate finds it that is started so long after it was used.
    let found = async |bed: &mut Bed, seconds: u64| {
        until(|| async { channel(bed, "0xaa").await.leases.is_empty() }).await;
        let known = channel(bed, "0xaa").await;
        let view = crate::channel::View { settled: Atoms(2_000), ..known.view };
        let touched_at = UnixSeconds(UnixSeconds::now().0 - seconds);
        let aged = Channel { revision: known.revision + 1, view, touched_at, ..known };
        bed.store.inner.commit(Write { channel: Some(Arc::new(aged)), ..Write::default() }).await.unwrap();
        (bed.toll, bed.store) = toll(&bed.rules, Arc::clone(&bed.store.inner), &bed.rail, &bed.spare, &bed.purse);
    };
    let closed = async |bed: &Bed| manage(bed, &close).await.map(drop).map_err(|stop| stop.refusal.code());
    found(&mut bed, 400).await;
    let lease = bed.pay(BY_TOKEN, &ask("m", 100), &voucher("0xaa", 4_000)).await.unwrap();
    assert!(channel(&bed, "0xaa").await.leases.is_empty(), "it is written with what it spends");
    assert_eq!(closed(&bed).await, Err("voucher_invalid"), "a request uses it");
    drop(lease);
    found(&mut bed, 200).await;
    assert_eq!(closed(&bed).await, Err("voucher_invalid"), "used a moment ago");
    found(&mut bed, 301).await;
    assert_eq!(closed(&bed).await, Ok(()));
    assert!(matches!(channel(&bed, "0xaa").await.phase, Phase::Closed { .. }));
}

#[tokio::test]
async fn a_payer_who_signs_that_he_wants_it_closed_is_believed_whatever_is_public() {
    let bed = bed();
    drop(bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 2_000, 50_000)).await.unwrap());
    until(|| async { channel(&bed, "0xaa").await.leases.is_empty() }).await;
    let none = session(json!({"action": "close", "channelId": "0xaa", "amount": "0"}));
    let id = ChannelId("0xaa".into());
    let view = crate::channel::View { settled: Atoms(1), block: 50, ..newest(&bed, "0xaa").await.view };
    bed.toll.channels.one(&id, Op::Look { view }).await.unwrap().1.unwrap();
    assert!(manage(&bed, &none).await.is_err(), "below what was paid out");
    let agreed = session(json!({"action": "close", "channelId": "0xaa", "amount": "1", "agreed": true}));
    manage(&bed, &agreed).await.expect("his own word");
}

#[tokio::test]
async fn a_node_that_stands_still_is_believed_for_a_while_and_no_longer() {
    let bed = bed();
    drop(bed.pay(BY_TOKEN, &ask("m", 10), &opening("0xaa", 2_000, 50_000)).await.unwrap());
    let id = ChannelId("0xaa".into());
    let till = Arc::clone(&bed.toll.tills[0]);
    tokio::time::pause();
    for (seconds, stands_still, want, why) in [
        (61, true, None, "read a minute ago, and the node has stopped since"),
        (230, true, None, "nearly five minutes ago"),
        (30, true, Some("chain_unavailable"), "whoever stands still says nothing new"),
        (6, false, None, "it goes on"),
    ] {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        bed.purse.up.store(!stands_still, Ordering::SeqCst);
        let live = bed.toll.channels.live(&id);
        let got = transact::fresh(&bed.toll, &till, &live, &id).await;
        assert_eq!(got.err().map(|stop| stop.refusal.code()), want, "{why}");
    }
    tokio::time::resume();
    assert!(bed.pay(BY_TOKEN, &ask("m", 10), &voucher("0xaa", 3_000)).await.is_ok());
}

#[tokio::test]
async fn a_call_that_opened_its_channel_and_was_refused_after_that_says_what_the_channel_stands_at() {
    let bed = bed();
    let credential = opening("0xaa", 2_000, 50_000);
    assert_eq!(opened_by(&bed.toll, &credential).await, None, "nothing is open yet");
    // The record, its landing; then what the stream leases.
    bed.store.fail(3, false);
    let stop = stopped(bed.pay(BY_TOKEN, &streamed(100), &credential).await);
    assert_eq!(stop.refusal.code(), "store_unavailable");
    for is_down in [false, true] {
        bed.store.down.store(is_down, Ordering::SeqCst);
        let (name, value) = opened_by(&bed.toll, &credential).await.expect("it is open");
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("payment-receipt", "spent=0 accepted=2000"), "{is_down}");
    }
    assert_eq!(opened_by(&bed.toll, &voucher("0xaa", 2_000)).await, None, "a wallet that pays knows its channel");
    assert_eq!(opened_by(&bed.toll, &over(&credential)).await, None, "anybody may have seen it by then");
}
