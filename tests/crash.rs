//! SIGKILL at random moments under paying load: what was paid is served once or owed, and the books are sound.
//!
//! `PONTAGE_CRASH_ROUNDS` sets how often (`make crash` takes many).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::{CHAT, PRICE, chat, streamed};
use common::{Bed, Payer, RawReply, Script, Unseen, payer, raw};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WORKERS: usize = 6;

/// One payment and what its payer saw of it before the gate died.
struct Bought {
    proof: String,
    body: Value,
    /// A head came back, perhaps not all of the rest.
    reply: Option<RawReply>,
}

/// Pays and asks until told to stop, however the gate behaves.
async fn work(listen: std::net::SocketAddr, payer: Arc<Payer>, body: Value, stop: Arc<AtomicBool>) -> Vec<Bought> {
    let mut bought = Vec::new();
    let text = body.to_string();
    while !stop.load(Ordering::Relaxed) {
        let Some(unpaid) = raw::try_exchange(listen, &raw::post(CHAT, &[], text.as_bytes())).await else { continue };
        if unpaid.status != 402 {
            continue;
        }
        let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
        let proof = payer.sign(&offer, |_| ()).await;
        let bytes = raw::post(CHAT, &[("authorization", &proof)], text.as_bytes());
        let reply = raw::try_exchange(listen, &bytes).await;
        bought.push(Bought { proof, body: body.clone(), reply });
    }
    bought
}

/// Shows a proof until its fate is known: served now (200), or served before (403).
async fn settled(bed: &Bed, proof: &str, body: &Value) -> u16 {
    let bytes = raw::post(CHAT, &[("authorization", proof)], body.to_string().as_bytes());
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let reply = raw::exchange(bed.gate.listen, &bytes).await;
        match reply.status {
            200 => bed.ledger.read(&reply),
            403 => {}
            409 | 503 if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            status => panic!("paid, and nothing to be had for it: {status} {}", reply.text()),
        }
        return reply.status;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_killed_at_any_moment_under_load_serves_every_payment_once() {
    let rounds = std::env::var("PONTAGE_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut bed = Bed::open().await;
    bed.backend.tune(|script| *script = Script { tokens: 4, per_token: Duration::from_millis(5), ..Script::default() });
    let payers = [Arc::new(bed.payer().await), Arc::new(bed.payer().await)];
    let mut chance = TestRunner::default();
    let (mut lost, mut redeemed, mut sold) = (0, 0, 0);
    for round in 0..rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = tokio::task::JoinSet::new();
        for at in 0..WORKERS {
            let body = if at % 2 == 0 { chat() } else { streamed() };
            workers.spawn(work(bed.gate.listen, Arc::clone(&payers[at % 2]), body, Arc::clone(&stop)));
        }
        // Load first; the blow falls at any point of it.
        let served = bed.served();
        assert!(common::eventually(Duration::from_secs(20), || async { bed.served() > served }).await);
        let pause = (0u64..400).new_tree(&mut chance).unwrap().current();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        bed.gate.kill();
        stop.store(true, Ordering::Relaxed);
        let bought: Vec<Bought> = workers.join_all().await.into_iter().flatten().collect();
        bed.gate.restart().await;
        for Bought { proof, body, reply } in bought {
            let whole = reply.as_ref().is_some_and(|r| r.status == 200 && r.complete);
            if whole {
                bed.ledger.read(reply.as_ref().unwrap());
            }
            let last = settled(&bed, &proof, &body).await;
            match (whole, last) {
                (true, 200) => panic!("round {round}: served twice"),
                (true, _) => sold += 1,
                (false, 200) => redeemed += 1,
                // Its delivery was written down and its bytes died with the gate: at most one payment per worker and blow.
                (false, _) => lost += 1,
            }
        }
    }
    assert!(lost <= rounds * WORKERS as u64, "{lost} deliveries were lost");
    assert!(sold > 0, "the load was no load");
    // What was written last may not be counted yet.
    let mut produced = None;
    let counted = common::eventually(Duration::from_secs(20), || {
        let now = bed.backend.tokens_produced();
        let same = produced.replace(now) == Some(now);
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            same
        }
    });
    assert!(counted.await, "the backend still works");
    let tokens = bed.backend.tokens_produced() - bed.ledger.so_far().1;
    let books = bed.close(Unseen { deliveries: lost, tokens, owed: 0 }).await;
    assert_eq!(books.charged, PRICE * u128::from(sold + redeemed + lost));
    println!("{rounds} blows: {sold} sold, {redeemed} redeemed, {lost} cut off in delivery");
}
