//! x402 under faults: whoever is down, late, lying or in between, nobody pays twice, nobody is served twice for one payment, and
//! what is not known is not called unpaid.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use alloy::primitives::B256;
use common::backend::Step;
use common::facilitator::{SETTLE, SUPPORTED, VERIFY, settlements_that_are_none};
use common::x402::counter::{accepts, assert_challenge, assert_final, chat, code, streamed, told};
use common::x402::stall::{FLAT, PER_TOKEN, chat_at, node, options, server};
use common::x402::{Stall, encode};
use common::{
    Answer, EvmBed, Facilitator, Fault, GateOptions, Raw, RawReply, Reply, RpcProxy, Scripted, eventually, raw,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(30);

/// A stall whose facilitator and node are real and can be broken: the gate reaches neither but through something scripted.
struct Brittle {
    stall: Stall,
    facilitator: Scripted,
    node: RpcProxy,
    _real: Facilitator,
}

impl Brittle {
    async fn open() -> Self {
        Self::with(|options| options).await
    }

    async fn with(change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let chain = EvmBed::start().await;
        let real = Facilitator::ts(&chain).await;
        let facilitator = Scripted::before(&real.url()).await;
        let proxy = RpcProxy::start(&chain.url()).await;
        let variable = node(&chain).0;
        let change = |options: GateOptions| change(options.env(&variable, &proxy.url()));
        let stall = Stall::with(chain, &facilitator.url(), change).await;
        Self { stall, facilitator, node: proxy, _real: real }
    }

    /// Verifications and settlements that were asked for so far.
    fn asked(&self) -> (usize, usize) {
        (self.facilitator.count(VERIFY), self.facilitator.count(SETTLE))
    }

    /// Shows a payment until it is served, as a client does that follows `Retry-After`; then it is spent.
    async fn is_served_in_the_end(&self, server: &str, payment: &Value, body: &Value, why: &str) -> RawReply {
        let end = Instant::now() + SHORT;
        let reply = loop {
            let reply = self.stall.show(server, payment, body).await;
            match reply.status {
                200 => break reply,
                409 => assert_final(&reply, &[409], "payment_in_use", why),
                _ => assert_unknown(&reply, why),
            }
            assert!(Instant::now() < end, "{why}: paid, and nothing to be had for it: {}", reply.text());
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_final(&self.stall.show(server, payment, body).await, &[403], "payment_spent", why);
        reply
    }

    async fn earned_since(&self, before: u128) -> u128 {
        self.stall.earned().await - before
    }
}

/// The answer while nobody knows: an invitation to nothing but the same payment.
fn assert_unknown(reply: &RawReply, why: &str) {
    assert_final(reply, &[503], "payment_unknown", why);
    assert_eq!(reply.json()["payment"]["moved"], "unknown", "{why}");
    assert!(reply.header("retry-after").is_some(), "{why}");
}

/// Ways of breaking off in which nobody can tell what became of a call.
fn silences() -> Vec<(&'static str, Answer)> {
    vec![
        ("resets", Answer::Reset),
        ("closes", Answer::Close),
        ("is no HTTP", Answer::Bytes(b"220 smtp ready\r\n".to_vec())),
        ("moved to somebody else", Answer::redirect("http://127.0.0.1:1/settle")),
        ("is busy", Answer::too_many("1")),
        ("is behind a broken balancer", Answer::html(502)),
        ("is out of order in JSON", Answer::json(500, &json!({"error": "boom"}))),
        ("gives its verdict with 500", Answer::failed(500, "invalid_payload")),
        ("talks too much", Answer::huge(3 << 20)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_of_which_nobody_knows_is_never_answered_402_and_buys_its_answer_once() {
    let bed = Brittle::open().await;
    let buyer = bed.stall.buyer().await;
    let answers = settlements_that_are_none().into_iter().chain(silences());
    for (at, (why, answer)) in answers.enumerate() {
        for landed in [true, false] {
            // Every other on the path that is paid first.
            let server = if at % 2 == 0 { server::EXACT } else { server::FIRST };
            let why = format!("{server} landed {landed}: {why}");
            let payment = bed.stall.payment(&buyer, server, &chat()).await;
            let (earned, asked, served) = (bed.stall.earned().await, bed.asked(), bed.stall.served());
            bed.facilitator.next(SETTLE, if landed { answer.clone().done() } else { answer.clone() });
            let reply = bed.stall.show(server, &payment, &chat()).await;
            match reply.status {
                // "Pending" is asked about once more, and then it is known.
                200 => assert!(why.contains("pending"), "{why}: taken for a settlement: {}", reply.text()),
                _ => {
                    assert_unknown(&reply, &why);
                    bed.is_served_in_the_end(server, &payment, &chat(), &why).await;
                }
            }
            assert_eq!(bed.earned_since(earned).await, FLAT, "{why}");
            let again = if landed && !why.contains("pending") { 1 } else { 2 };
            assert_eq!(bed.asked().1 - asked.1, again, "{why}: settlements");
            assert!(bed.stall.served() - served <= 2, "{why}");
        }
    }
}
