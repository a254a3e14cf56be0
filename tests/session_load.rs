//! Many streams at once, each on a channel that was vouchered ahead: none stands still, every byte arrives, and the books hold.
//! `cargo bench --bench session -- crowd` is the same with a thousand, and says what they cost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{CHAT, INPUT, OUTPUT, SessionBed, chat, final_receipt, streamed};
use futures::StreamExt;
use serde_json::json;
use std::time::Duration;

/// Streams, and tokens of each at thirty a second: five seconds, so that every stream leases a new window nine times or so.
const STREAMS: usize = 100;
const TOKENS: u64 = 150;
/// More than any of them can cost, in atoms.
const AHEAD: u128 = 50_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_vouchered_ahead_never_stand_still() {
    let bed = SessionBed::open().await;
    // One account pays all of them their first money, one after the other.
    let mut wallets = Vec::new();
    for _ in 0..STREAMS {
        wallets.push(bed.wallet().await);
    }
    let opening = wallets.iter().map(|wallet| bed.channel_of(wallet, 2 * AHEAD, 1));
    let channels: Vec<_> =
        futures::stream::iter(opening).buffer_unordered(16).map(|(channel, _)| channel).collect().await;
    bed.backend.tune(|script| script.per_token = Duration::from_secs(1) / 30);

    let mut body = streamed();
    body["max_tokens"] = json!(TOKENS);
    bed.backend.tune(|script| script.tokens = TOKENS);
    let (offer, _) = bed.offer(CHAT, &body).await;
    let credentials: Vec<_> = channels.iter().map(|c| c.voucher_credential(&offer, AHEAD)).collect();
    let replies = futures::future::join_all(credentials.iter().map(|credential| bed.buy(credential, &body))).await;

    for (channel, reply) in channels.iter().zip(&replies) {
        let text = reply.text();
        assert_eq!(reply.status, 200, "{text}");
        assert!(!text.contains("payment-need-voucher") && !text.contains(": waiting"), "it stood still: {text}");
        assert_eq!(text.matches("\"content\":").count() as u64, TOKENS, "{text}");
        assert!(text.contains("data: [DONE]"), "{text}");
        let receipt = final_receipt(&text).expect("a receipt at the end");
        let prompt = chat()["messages"][0]["content"].as_str().unwrap().split(' ').count() as u128;
        assert_eq!(receipt["charged"], (prompt * INPUT + u128::from(TOKENS) * OUTPUT).to_string(), "{receipt}");
        assert_eq!(receipt["channelId"], format!("{:#x}", channel.id).as_str());
    }
    assert_eq!(bed.backend.tokens_produced(), STREAMS as u64 * TOKENS);
    bed.backend.tune(|script| script.per_token = Duration::ZERO);
    bed.close(&channels.iter().collect::<Vec<_>>()).await;
}
