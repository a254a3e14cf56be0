//! Channels under races and floods: whatever is shown at once, too often, too late or again, happens once or not at all, costs the
//! chain no more than its share, and leaves everybody else in peace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{CHAT, SessionBed, assert_challenged, atoms, chat, code, offered, refused_both_ways, streamed};
use common::reserve::Event;
use common::wallet::{self, Channel, Wallet};
use common::{Fault, Raw, payer};
use serde_json::json;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn one_credential_shown_many_times_at_once_buys_once() {
    let bed = SessionBed::open().await;
    let (channel, _) = bed.channel(80_000, 0).await;
    for round in 1..=3u128 {
        let credential = channel.voucher_credential(&bed.fresh().await, 20_000 * round);
        let body = chat().to_string();
        let authorization = [("authorization", credential.as_str())];
        let copies = (0..9).map(|_| bed.post(CHAT, &authorization, body.as_bytes()));
        let replies = futures::future::join_all(copies).await;
        let served = replies.iter().filter(|r| r.status == 200).count();
        let rest: Vec<_> = replies.iter().filter(|r| r.status != 200).map(|r| (r.status, code(r))).collect();
        assert_eq!(served, 1, "{rest:?}");
        assert!(rest.iter().all(|(status, _)| [402, 429].contains(status)), "{rest:?}");
        // The count of vouchers is of a second.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    assert_eq!(bed.served(), 3);
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_never_makes_the_gate_ask_the_chain() {
    let bed = SessionBed::open().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let stranger = Wallet::empty();
    // Everything right but the signature, or the signature over a channel that nobody opened.
    let channel = stranger.open(&offer, |open| open.deposit = 100_000);
    let good = channel.voucher(5_000);
    let broken = channel.signed_payload(5_000, &wallet::high_s(&good));
    let foreign = channel.signed_payload(5_000, &Wallet::empty().open(&offer, |_| ()).voucher(5_000));
    let mut opening = channel.open_payload(5_000);
    opening["signature"] = json!(alloy::hex::encode_prefixed(wallet::high_s(&good)));
    let mut unsigned = channel.open_payload(5_000);
    let raw = unsigned["transaction"].as_str().unwrap().to_owned();
    unsigned["transaction"] = json!(format!("{}00", &raw[..raw.len() - 2]));
    let mut other_tx = channel.open_payload(5_000);
    other_tx["transaction"] =
        stranger.open(&offer, |open| open.deposit = 99_999).open_payload(0)["transaction"].clone();
    let mut topped = channel.top_up_payload(1_000);
    topped["additionalDeposit"] = json!("2000");
    let credentials = [
        (channel.credential(&offer, broken), 402, "a signature in no form of the chain's"),
        (channel.credential(&offer, foreign), 402, "somebody else's signature"),
        (channel.credential(&offer, opening), 402, "an opening with a broken voucher"),
        (channel.credential(&offer, unsigned), 402, "an opening with a broken transaction"),
        (channel.credential(&offer, other_tx), 402, "an opening with another transaction"),
        (channel.credential(&offer, topped), 402, "a top-up over another amount than signed"),
        (channel.voucher_credential(&offer, 5_000), 410, "a good voucher of a channel that is not known here"),
        (channel.top_up_credential(&offer, 1_000), 410, "a good top-up of one"),
        (channel.close_credential(&offer, 0), 410, "a good close of one"),
        (format!("Payment {}", "A".repeat(400)), 402, "no JSON"),
    ];
    // What the gate asks by itself is over: it has read the chain, and watches blocks only.
    bed.rpc.forget();
    for (credential, status, why) in &credentials {
        for _ in 0..5 {
            for body in [chat().to_string(), String::new()] {
                let reply = bed.post(CHAT, &[("authorization", credential)], body.as_bytes()).await;
                assert_eq!(reply.status, *status, "{why}: {}", reply.text());
            }
        }
    }
    assert_eq!((bed.asked(), bed.served()), (0, 0), "{:?}", bed.rpc.calls());
    bed.close(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_gone_is_answered_410_with_fresh_offers_whatever_is_asked_of_it() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(50_000, 20_000).await;
    assert_eq!(bed.buy(&channel.voucher_credential(&bed.fresh().await, 20_000), &chat()).await.status, 200);
    let total = bed.charged(&channel.id);
    let lower = bed.manage(&channel.close_credential(&offer, total - 1)).await;
    assert_challenged(&lower, "voucher_lower", "a close for less than was used");
    let closed = bed.manage(&channel.close_credential(&offer, total)).await;
    assert_eq!(closed.status, 204, "{}", closed.text());
    let tx = payer::unpack(closed.header("payment-receipt").unwrap())["txHash"].clone();
    assert!(tx.is_string());
    let served = bed.served();
    let gone = &["channel_finalized", "channel_not_found"];
    refused_both_ways(&bed, &channel.voucher_credential(&offer, 30_000), 410, gone, "a voucher").await;
    refused_both_ways(&bed, &channel.open_credential(&offer, 30_000), 410, gone, "its opening").await;
    let top_up = bed.manage(&channel.top_up_credential(&offer, 1_000)).await;
    assert_eq!((top_up.status, code(&top_up).as_str()), (410, "channel_finalized"));
    offered(&top_up);
    // Asked to close again, it says what it said.
    let again = bed.manage(&channel.close_credential(&offer, total)).await;
    assert_eq!(again.status, 204);
    assert_eq!(payer::unpack(again.header("payment-receipt").unwrap())["txHash"], tx);
    assert_eq!(bed.served(), served);
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_closing_sells_nothing_new_and_ends_what_it_began() {
    let bed = SessionBed::open().await;
    bed.backend.tune(|script| script.per_token = Duration::from_millis(60));
    let (channel, offer) = bed.channel(50_000, 20_000).await;
    let body = streamed().to_string();
    let mut stream = Raw::connect(bed.gate.listen).await;
    let credential = channel.voucher_credential(&offer, 20_000);
    stream.send(&common::raw::post(CHAT, &[("authorization", &credential)], body.as_bytes())).await;
    assert!(stream.until(b"tok1", SHORT).await);
    let closing = channel.close_credential(&offer, 20_000);
    let (closed, rest) = tokio::join!(bed.manage(&closing), async {
        let closing = common::eventually(SHORT, || async {
            let reply = bed.buy(&channel.voucher_credential(&offer, 30_000), &chat()).await;
            reply.status == 410 && code(&reply) == "channel_finalized"
        });
        assert!(closing.await, "a closing channel sells");
        stream.reply(SHORT).await
    });
    assert_eq!(closed.status, 204, "{}", closed.text());
    assert!(rest.complete && rest.text().contains("data: [DONE]"), "{}", rest.text());
    bed.keep(&rest);
    assert!(bed.charged(&channel.id) > 0);
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_opening_shown_sixteen_times_at_once_is_one_channel_one_transaction_one_answer() {
    let bed = SessionBed::open().await;
    let wallet = bed.wallet().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let channel = wallet.open(&offer, |open| open.deposit = 100_000);
    let credential = channel.open_credential(&offer, 60_000);
    let body = chat().to_string();
    let (asks, nothing) = (body.as_bytes(), &b""[..]);
    let authorization = [("authorization", credential.as_str())];
    let copies = (0..16).map(|n| bed.post(CHAT, &authorization, if n % 2 == 0 { asks } else { nothing }));
    let replies = futures::future::join_all(copies).await;
    let said: Vec<_> = replies.iter().map(|r| r.status).collect();
    assert_eq!(said.iter().step_by(2).filter(|s| **s == 200).count(), 1, "{said:?}");
    assert!(said.iter().skip(1).step_by(2).all(|s| *s == 204), "{said:?}");
    assert!(said.iter().step_by(2).all(|s| [200, 402].contains(s)), "{said:?}");
    assert_eq!((bed.rpc.broadcasts(), bed.served()), (1, 1));
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_payer_cannot_fill_the_books_with_channels_nor_with_dust() {
    let bed = SessionBed::open().await;
    let wallet = bed.wallet().await;
    let (offer, _) = bed.offer(CHAT, &chat()).await;
    let dust = wallet.open(&offer, |open| open.deposit = 99);
    assert_challenged(&bed.manage(&dust.open_credential(&offer, 0)).await, "payment_invalid", "dust");
    let over = wallet.open(&offer, |open| open.deposit = 20_000);
    assert_challenged(
        &bed.manage(&over.open_credential(&offer, 20_001)).await,
        "voucher_over_deposit",
        "first voucher",
    );
    assert_eq!(bed.rpc.broadcasts(), 0);
    let channels: Vec<_> = (0..8).map(|_| wallet.open(&offer, |open| open.deposit = 20_000)).collect();
    let credentials: Vec<_> = channels.iter().map(|c| c.open_credential(&offer, 0)).collect();
    let replies = futures::future::join_all(credentials.iter().map(|c| bed.manage(c))).await;
    let open: Vec<_> = channels.iter().zip(&replies).filter(|(_, r)| r.status == 204).map(|(c, _)| c).collect();
    let codes: Vec<_> = replies.iter().filter(|r| r.status != 204).map(code).collect();
    assert_eq!((open.len(), codes.len(), bed.rpc.broadcasts()), (4, 4, 4), "max_channels_per_payer = 4: {codes:?}");
    assert!(codes.iter().all(|code| code == "payment_invalid"), "{codes:?}");
    // One that is open is no new one, at the limit as well.
    let last = channels.iter().zip(&replies).position(|(_, r)| r.status == 204).unwrap();
    assert_eq!(bed.manage(&credentials[last]).await.status, 204);
    bed.close(&open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_vouchers_is_bounded_by_channel_and_harms_nobody_else() {
    let bed = SessionBed::open().await;
    let (flooder, offer) = bed.channel(1_000_000, 0).await;
    let (honest, honest_offer) = bed.channel(100_000, 0).await;
    let began = std::time::Instant::now();
    let flood = async {
        let (mut taken, mut refused) = (0u128, 0u128);
        for amount in 1..=200u128 {
            let credential = flooder.voucher_credential(&offer, amount);
            let reply = bed.post(CHAT, &[("authorization", &credential)], b"").await;
            match reply.status {
                204 => taken += 1,
                429 => refused += 1,
                _ => panic!("{}", reply.text()),
            }
            if reply.status == 429 {
                assert!(reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none());
                assert_eq!(reply.header("x-should-retry"), Some("false"));
            }
        }
        (taken, refused)
    };
    // Settled vouchers stand on the chain for everybody to show: they take no turn from whoever raises.
    let past = async {
        let old = honest.voucher_credential(&honest_offer, 1);
        for _ in 0..60 {
            let reply = bed.post(CHAT, &[("authorization", &old)], b"").await;
            assert!(matches!(reply.status, 204 | 402), "{}", reply.text());
        }
    };
    let calm = async {
        for round in 1..=4u128 {
            // Below the honest payer's own bound.
            let credential = honest.voucher_credential(&honest_offer, 10_000 * round);
            let reply = bed.post(CHAT, &[("authorization", &credential)], chat().to_string().as_bytes()).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    };
    let ((taken, refused), (), ()) = tokio::join!(flood, calm, past);
    let seconds = u128::from(began.elapsed().as_secs()) + 2;
    assert!(refused > 0 && taken <= 10 * seconds, "{taken} of 200 vouchers were taken in {seconds} s");

    // Nor is there another door: vouchers that come with the opening, and with a request they do not cover.
    let wallet = bed.wallet().await;
    let opened = wallet.open(&offer, |open| open.deposit = 100_000);
    assert_eq!(bed.manage(&opened.open_credential(&offer, 0)).await.status, 204);
    let (began, mut taken) = (std::time::Instant::now(), 0u64);
    for amount in 1..=60u128 {
        let credential = opened.open_credential(&offer, amount);
        let reply = bed.post(CHAT, &[("authorization", &credential)], chat().to_string().as_bytes()).await;
        assert!([402, 429].contains(&reply.status), "{}", reply.text());
        if reply.status == 429 {
            let said = reply.header("payment-receipt").expect("a wallet forgets a channel that no answer speaks of");
            assert_eq!(payer::unpack(said)["channelId"], opened.id.to_string());
        }
        taken += u64::from(reply.status == 402);
    }
    let seconds = began.elapsed().as_secs() + 2;
    assert!(taken <= 10 * seconds, "{taken} of 60 vouchers were taken in {seconds} s by way of the opening");
    bed.close(&[&flooder, &honest, &opened]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_makes_the_gate_ask_the_chain_once_in_five_seconds_at_most() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(20_000, 0).await;
    // The watcher reads all channels every fifteen seconds; what is counted here is what requests add to that.
    let began = std::time::Instant::now();
    bed.rpc.forget();
    for n in 1..=15u128 {
        // Over the deposit: it might have been topped up past us, so the chain is worth a question, now and then.
        let credential = channel.voucher_credential(&offer, 20_000 + n);
        let reply = bed.manage(&credential).await;
        assert_challenged(&reply, "voucher_over_deposit", "more than is locked");
    }
    let most = 1 + began.elapsed().as_secs() / 5 + 1 + began.elapsed().as_secs() / 15 + 1;
    let asked = bed.rpc.count("eth_call");
    // A read is one question for the head's height and one for the channel.
    assert!(asked as u64 <= 2 * most, "{asked} questions in {:?}", began.elapsed());
    // Topped up past the gate, it is found out.
    let topped = channel.payer.call(&bed.reserve.url(), channel.top_up_call(10_000)).await;
    topped.unwrap();
    let credential = channel.voucher_credential(&offer, 25_000);
    let found = common::eventually(SHORT, || async { bed.manage(&credential).await.status == 204 });
    assert!(found.await, "a top-up past the gate is never seen");
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ups_race_each_other_a_close_and_a_forced_close_and_no_atom_is_lost() {
    let bed = SessionBed::open().await;
    // Two at once: each is sent at most once, and the record says what the chain says.
    let (channel, offer) = bed.channel(20_000, 0).await;
    let (one, two) = (channel.top_up_credential(&offer, 1_000), channel.top_up_credential(&offer, 2_000));
    let (a, b) = tokio::join!(bed.manage(&one), bed.manage(&two));
    let mut locked = 20_000;
    for (reply, credential, more) in [(a, &one, 1_000), (b, &two, 2_000)] {
        assert!([204, 409].contains(&reply.status), "{}", reply.text());
        if reply.status == 409 {
            // The same credential, a moment later.
            let landed = common::eventually(SHORT, || async { bed.manage(credential).await.status == 204 });
            assert!(landed.await, "a top-up that had to wait is lost");
        }
        locked += more;
        assert!(bed.reserve.state(&channel.id).await.deposit <= 23_000);
    }
    assert_eq!(bed.reserve.state(&channel.id).await.deposit, locked);
    assert_eq!(atoms(&bed.snapshot(&channel).await["deposit"]), locked);
    // Shown again, a top-up that landed tops up nothing.
    let again = bed.manage(&one).await;
    assert!([204, 409].contains(&again.status), "{}: {}", again.status, again.text());
    assert_eq!(bed.reserve.state(&channel.id).await.deposit, locked, "{}", again.text());

    // While it closes: either the top-up was first and comes back with the rest, or the channel is gone.
    let (racing, offer) = bed.channel(20_000, 5_000).await;
    let (close, top_up) = (racing.close_credential(&offer, 5_000), racing.top_up_credential(&offer, 4_000));
    let (closed, topped) = tokio::join!(bed.manage(&close), bed.manage(&top_up));
    assert!([204, 409].contains(&closed.status), "{}", closed.text());
    assert!([204, 402, 409, 410, 503].contains(&topped.status), "{}", topped.text());
    let over = common::eventually(SHORT, || async { bed.manage(&close).await.status == 204 });
    assert!(over.await, "a close that met a top-up never ends");
    assert_eq!(bed.reserve.state(&racing.id).await.deposit, 0);
    assert_eq!(bed.chain.balance(common::PATH_USD, &racing.payer.address.to_string()).await, 10_000_000);

    // While its payer asks the chain to close it: what landed last stands.
    let mut left = Vec::new();
    for order in [Order::AtOnce, Order::RequestFirst, Order::TopUpFirst, Order::TopUpLate] {
        left.push(left_by_force_while_topped_up(&bed, order).await);
    }
    let channels: Vec<_> = [&channel, &racing].into_iter().chain(&left).collect();
    bed.close(&channels).await;
}

/// What lands first of a top-up by way of the gate and a request to close past it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    AtOnce,
    /// The gate may have heard of it, or not.
    RequestFirst,
    /// The gate does not hear that it landed before the request has.
    TopUpFirst,
    /// It is sent, and so slow that the gate hears of the request, and answers it, before the chain has it.
    TopUpLate,
}

/// A channel of which something was spent, topped up and left by force in this order, to its end: all of it was paid out.
async fn left_by_force_while_topped_up(bed: &SessionBed, order: Order) -> Channel {
    let (channel, offer) = bed.channel(20_000, 5_000).await;
    let bought = bed.buy(&channel.voucher_credential(&offer, 5_000), &chat()).await;
    assert_eq!(bought.status, 200, "{order:?}: {}", bought.text());
    let (credential, chain) = (channel.top_up_credential(&offer, 4_000), bed.reserve.url());
    let broadcasts = bed.rpc.broadcasts();
    let (top_up, request) = (bed.manage(&credential), channel.request_close(&chain));
    let (topped, asked) = match order {
        Order::AtOnce => tokio::join!(top_up, request),
        Order::RequestFirst => {
            let asked = request.await;
            (top_up.await, asked)
        }
        Order::TopUpLate => {
            bed.rpc.once("eth_sendRawTransactionSync", Fault::Delay(Duration::from_secs(8)));
            tokio::join!(top_up, async {
                let sent = async || bed.rpc.broadcasts() > broadcasts;
                assert!(common::eventually(SHORT, sent).await, "the top-up is not sent");
                request.await
            })
        }
        Order::TopUpFirst => {
            bed.rpc.once("eth_sendRawTransactionSync", Fault::DropReply);
            tokio::join!(top_up, async {
                let landed = async || bed.reserve.state(&channel.id).await.deposit == 24_000;
                assert!(common::eventually(SHORT, landed).await, "the top-up is not sent");
                request.await
            })
        }
    };
    asked.expect("the chain takes a request to close");
    assert!([204, 402, 409, 410, 503].contains(&topped.status), "{order:?}: {}", topped.text());

    // Taken back by the top-up the channel serves again; if not, the gate closes it by itself.
    let again = channel.voucher_credential(&bed.fresh().await, 6_000);
    let cancelled = std::sync::atomic::AtomicBool::new(false);
    let done = common::eventually(Duration::from_secs(60), || async {
        let events = bed.reserve.events(&channel.id).await;
        let standing = bed.reserve.state(&channel.id).await;
        if standing.close_requested_at == 0 && events.contains(&Event::CloseCancelled) {
            let reply = bed.buy(&again, &chat()).await;
            assert!([200, 409, 410].contains(&reply.status), "{order:?}: {}", reply.text());
            cancelled.store(reply.status == 200, std::sync::atomic::Ordering::Relaxed);
        }
        standing.deposit == 0 || cancelled.load(std::sync::atomic::Ordering::Relaxed)
    });
    assert!(done.await, "{order:?}: neither open nor closed: {:?}", bed.reserve.events(&channel.id).await);
    let close = channel.close_credential(&offer, 6_000);
    let over = common::eventually(SHORT, || async { bed.manage(&close).await.status == 204 });
    assert!(over.await, "{order:?}: a channel that was left by force is not closed");

    let events = bed.reserve.events(&channel.id).await;
    let topped = events.contains(&Event::TopUp { added: 4_000, deposit: 24_000 });
    let (locked, spent) = (if topped { 24_000 } else { 20_000 }, bed.charged(&channel.id));
    assert_eq!(
        events.last(),
        Some(&Event::Closed { settled: spent, refunded: locked - spent }),
        "{order:?}: {events:?}"
    );
    let kept = bed.chain.balance(common::PATH_USD, &channel.payer.address.to_string()).await;
    assert_eq!(kept, 10_000_000 - spent, "{order:?}: {events:?}");
    channel
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ups_that_come_to_nothing_do_not_make_the_gate_work_for_free() {
    let bed = SessionBed::open().await;
    let (channel, offer) = bed.channel(20_000, 0).await;
    // Properly signed, and more than the payer has; each time anew.
    let empty = |n: u128| channel.top_up_credential(&offer, 900_000_000 + n);
    let began = std::time::Instant::now();
    bed.rpc.forget();
    for n in 0..12 {
        let reply = bed.post(CHAT, &[("authorization", &empty(n))], b"").await;
        assert!([402, 409].contains(&reply.status), "{}", reply.text());
        if reply.status == 409 {
            assert!(reply.header("retry-after").is_some(), "{}", reply.text());
        }
    }
    let most = 1 + began.elapsed().as_secs() / 5;
    assert!(bed.rpc.broadcasts() as u64 <= most, "{} broadcasts in {:?}", bed.rpc.broadcasts(), began.elapsed());
    // Whoever has the money tops up as soon as the wait is over.
    let good = channel.top_up_credential(&offer, 5_000);
    let done = common::eventually(SHORT, || async { bed.manage(&good).await.status == 204 });
    assert!(done.await);
    // One that landed, shown again and again, is answered and sent no more.
    bed.rpc.forget();
    for _ in 0..6 {
        let reply = bed.post(CHAT, &[("authorization", &good)], b"").await;
        assert!([204, 409].contains(&reply.status), "{}", reply.text());
    }
    assert!(bed.rpc.broadcasts() <= 1, "{} broadcasts of one transaction that landed", bed.rpc.broadcasts());
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_stays_used_past_every_bound_and_over_a_power_cut() {
    let mut bed = SessionBed::open().await;
    let (channel, _) = bed.channel(100_000, 60_000).await;
    // More challenges than a record remembers one by one, all answered with one voucher.
    let mut used = Vec::new();
    for _ in 0..40 {
        let credential = channel.voucher_credential(&bed.fresh().await, 60_000);
        let reply = bed.buy(&credential, &chat()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        used.push(credential);
    }
    let unused = channel.voucher_credential(&bed.fresh().await, 60_000);
    let spent = bed.charged(&channel.id);
    assert!(spent < 30_000, "the balance would cover all of them again");
    for power_cut in [false, true] {
        if power_cut {
            bed.gate.kill();
            bed.gate.restart().await;
        }
        for credential in &used {
            let reply = bed.buy(credential, &chat()).await;
            assert_challenged(&reply, "invalid_challenge", if power_cut { "after a power cut" } else { "at once" });
        }
    }
    assert_eq!(bed.served(), 40);
    // A challenge that bought nothing yet may have been issued in the same second as the last that is not remembered by name;
    // then a fresh one is to be had for the asking.
    let reply = bed.buy(&unused, &chat()).await;
    assert!([200, 402].contains(&reply.status), "{}", reply.text());
    let fresh = channel.voucher_credential(&bed.fresh().await, 60_000);
    assert_eq!(bed.buy(&fresh, &chat()).await.status, 200);
    bed.close(&[&channel]).await;
}
