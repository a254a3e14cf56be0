//! What payers are told to sign, how often they are asked, and what a stream does that stands still meanwhile.

use super::sessions::{
    BY_TOKEN, audited, bed, channel, delivery, newest, opening, streamed, text, usage, voucher, words,
};
use super::*;
use crate::flow::settle::{End, Next};
use crate::flow::{control, session};

/// Atoms by which a voucher raises the last, at least.
const STEP: u128 = 500;

fn stepped() -> Bed {
    bed().under(|terms| {
        terms.min_voucher_delta = Usd(STEP * 1_000_000_000_000);
        terms.pause_seconds = 1;
    })
}

async fn signs(bed: &Bed, id: &str, amount: u128) -> Result<(), &'static str> {
    let plan = bed.toll.rules.plan();
    let signed = control::manage(&bed.toll, plan.route(BY_TOKEN).unwrap(), &voucher(id, amount)).await;
    signed.map(drop).map_err(|stop| stop.refusal.code())
}

/// What the last event of `out` asks for.
fn asked(out: &[Bytes]) -> Option<u128> {
    let text = text(out);
    let (_, last) = text.rsplit_once("event: payment-need-voucher\ndata: ")?;
    last.lines().next()?.parse().ok()
}

#[tokio::test]
async fn whoever_signs_just_what_an_offer_or_a_refusal_says_never_signs_too_little() {
    let bed = stepped();
    let offer = async |output: u64, known: Option<&Channel>| {
        let quoted = bed.quote(BY_TOKEN, &ask("m", output)).await.unwrap();
        let till = &bed.toll.tills[0];
        let offer = session::offer(&bed.toll, till, &quoted, known, "", UnixSeconds::now()).unwrap();
        offer.headers[0].1.to_str().unwrap().to_owned()
    };
    assert_eq!(offer(10, None).await, "amount=500 deposit=1000000", "a wallet adds it to what it signed last");
    assert!(!offer(100, None).await.starts_with("amount=500 "), "and what costs more is asked for as it is");

    // A little more than 1,000.
    let refused = stopped(bed.pay(BY_TOKEN, &ask("m", 100), &opening("0xaa", 1_000, 50_000)).await).refusal;
    let told = Refusal::BalanceShort { required: Atoms(1_500), accepted: Atoms(1_000), deposit: Atoms(50_000) };
    assert_eq!(refused, told);
    let known = newest(&bed, "0xaa").await;
    assert!(offer(100, Some(&known)).await.ends_with("required=1500"));
    assert!(offer(50, Some(&known)).await.ends_with("required=1000"), "what is covered needs no voucher");
    assert_eq!(signs(&bed, "0xaa", 1_499).await, Err("voucher_delta_too_small"));
    drop(bed.pay(BY_TOKEN, &ask("m", 100), &voucher("0xaa", 1_500)).await.unwrap());
}

#[tokio::test]
async fn the_last_difference_is_paid_however_small_it_is() {
    let bed = stepped();
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    stream.chunk(words(10), &mut out).await.unwrap();
    stream.first_byte().await.unwrap();
    stream.chunk(usage(9, 60), &mut out).await.unwrap();
    assert_eq!(stream.end(End::Whole, &mut out).await, Next::Hold, "159 atoms above what was signed");
    assert_eq!(asked(&out), Some(450 + STEP), "{}", text(&out));
    assert_eq!(signs(&bed, "0xaa", 450 + STEP).await, Ok(()));
    while stream.resume(&mut out).await == Next::Hold {}
    assert_eq!(channel(&bed, "0xaa").await.spent(), Atoms(609));
    drop(stream);
    audited(bed).await;
}

#[tokio::test]
async fn a_stream_asks_for_a_whole_step_and_is_refused_with_one() {
    let bed = stepped();
    // It can come to forty tokens, and begins with thirty-two.
    let paid = bed.pay(BY_TOKEN, &streamed(40), &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    assert_eq!(stream.chunk(words(40), &mut out).await.unwrap(), Next::Hold);
    while stream.resume(&mut out).await == Next::Hold {}
    assert_eq!(asked(&out), Some(450 + STEP), "{}", text(&out));
    let Some(Refusal::BalanceShort { required, .. }) = stream.unpaid_before_it_began() else { panic!("it is unpaid") };
    assert_eq!(required, Atoms(450 + STEP));
    drop(stream);
}

#[tokio::test]
async fn a_stream_that_got_less_than_it_asked_for_asks_again_when_that_is_used_up() {
    let bed = bed();
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    stream.chunk(words(20), &mut out).await.unwrap();
    stream.first_byte().await.unwrap();
    let first = asked(&out).expect("half of its window is used");
    assert!(first > 900, "{first}");
    assert_eq!(signs(&bed, "0xaa", 900).await, Ok(()));
    out.clear();
    assert_eq!(stream.chunk(words(100), &mut out).await.unwrap(), Next::Hold, "120 tokens");
    while asked(&out).is_none() {
        assert_eq!(stream.resume(&mut out).await, Next::Hold, "it was never asked for more than {first}");
    }
    assert!(asked(&out).unwrap() > 900);
    out.clear();
    assert_eq!(stream.resume(&mut out).await, Next::Stop, "the wallet signs no more");
    assert_eq!(asked(&out), None, "once each time");
    stream.end(End::Unpaid, &mut out).await;
    drop(stream);
    audited(bed).await;
}

#[tokio::test]
async fn a_stream_that_waits_for_its_store_says_every_five_seconds_that_it_lives() {
    for hangs in [false, true] {
        let bed = bed().under(|terms| terms.pause_seconds = 12);
        let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 450, 50_000)).await.unwrap();
        let mut stream = delivery(&bed, paid);
        stream.chunk(words(20), &mut Vec::new()).await.unwrap();
        stream.first_byte().await.unwrap();
        assert_eq!(stream.chunk(words(60), &mut Vec::new()).await.unwrap(), Next::Hold);
        assert_eq!(signs(&bed, "0xaa", 5_000).await, Ok(()), "there is cover on record");
        until(|| async { newest(&bed, "0xaa").await.accepted() == Atoms(5_000) }).await;
        bed.store.fail(1, false);
        bed.store.heard.send_replace(!hangs);
        tokio::time::pause();
        let (mut beats, begun) = (0, tokio::time::Instant::now());
        loop {
            let (mut out, since) = (Vec::new(), tokio::time::Instant::now());
            let next = stream.resume(&mut out).await;
            let (silent, all) = (since.elapsed().as_secs_f64(), begun.elapsed().as_secs_f64());
            assert!(silent < 5.5 && all < 12.5, "hangs: {hangs}: {silent} s of silence, {all} s in all");
            if next == Next::Stop {
                break;
            }
            assert!(text(&out).starts_with(": waiting"), "{}", text(&out));
            beats += 1;
        }
        assert_eq!(beats, 2, "hangs: {hangs}");
        tokio::time::resume();
        *bed.store.fails.lock().unwrap() = None;
        bed.store.heard.send_replace(true);
        drop(stream);
    }
}

#[tokio::test]
async fn a_pause_makes_the_windows_after_it_no_smaller() {
    let bed = bed();
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let (mut out, begun) = (Vec::new(), tokio::time::Instant::now());
    stream.chunk(words(20), &mut out).await.unwrap();
    stream.first_byte().await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(stream.chunk(words(60), &mut out).await.unwrap(), Next::Hold);
    let pace = (80.0 * 0.5 / begun.elapsed().as_secs_f64()).min(256.0);
    let signing = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(signs(&bed, "0xaa", 20_000).await, Ok(()));
    };
    tokio::join!(signing, async { while stream.resume(&mut out).await == Next::Hold {} });
    stream.chunk(words(1), &mut out).await.unwrap();
    let window = || async { newest(&bed, "0xaa").await.leases.values().next().unwrap().window.0 as f64 / 10.0 };
    until(|| async { window().await >= pace / 2.0 }).await;
    drop(stream);
}

#[tokio::test]
async fn whoever_signs_for_a_word_at_a_time_makes_a_stream_stand_still_no_longer_than_ten_pauses() {
    let bed = bed().under(|terms| terms.pause_seconds = 1);
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 450, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    let hundred = Bytes::from([words(4)].concat().repeat(100));
    assert_eq!(stream.chunk(hundred, &mut out).await.unwrap(), Next::Hold);
    stream.first_byte().await.unwrap();
    let begun = tokio::time::Instant::now();
    let signing = async {
        for words in 1..100 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert_eq!(signs(&bed, "0xaa", 450 + 40 * words).await, Ok(()));
        }
    };
    tokio::select! {
        () = signing => panic!("it stands still for ever"),
        () = async { while stream.resume(&mut out).await != Next::Stop {} } => {}
    }
    let stood = begun.elapsed().as_secs_f64();
    assert!((9.0..13.0).contains(&stood), "{stood} s, of pauses of seven tenths of a second");
    drop(stream);
}
