//! A [`Stall`] all of whose neighbours can fail.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::counter::assert_final;
use super::stall::{PER_TOKEN, node};
use super::{EvmBed, Facilitator, Stall};
use crate::common::facilitator::{SETTLE, VERIFY};
use crate::common::{GateOptions, RawReply, RpcProxy, Scripted};

/// What the backend's usual answer costs by usage: three words of prompt, twelve tokens.
pub const METERED: u128 = (3 + 2 * 12) * PER_TOKEN;
const SHORT: Duration = Duration::from_secs(30);

/// A stall whose facilitator and node are real and can be broken: the gate reaches neither but through something scripted.
pub struct Brittle {
    pub stall: Stall,
    pub facilitator: Scripted,
    /// The gate's road to the chain.
    pub node: RpcProxy,
    pub real: Facilitator,
}

impl Brittle {
    pub async fn open() -> Self {
        Self::with(|options| options).await
    }

    pub async fn with(change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let chain = EvmBed::start().await;
        let real = Facilitator::ts(&chain).await;
        let facilitator = Scripted::before(&real.url()).await;
        let proxy = RpcProxy::start(&chain.url()).await;
        let variable = node(&chain).0;
        let change = |options: GateOptions| change(options.env(&variable, &proxy.url()));
        let stall = Stall::with(chain, &facilitator.url(), change).await;
        Self { stall, facilitator, node: proxy, real }
    }

    /// Verifications and settlements that were asked for so far.
    pub fn asked(&self) -> (usize, usize) {
        (self.facilitator.count(VERIFY), self.facilitator.count(SETTLE))
    }

    /// Shows a payment until it is served, as a client does that follows `Retry-After`; then it is spent.
    pub async fn is_served_in_the_end(&self, server: &str, payment: &Value, body: &Value, why: &str) -> RawReply {
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
        self.is_spent(server, payment, body, why).await;
        reply
    }

    /// Waits until nobody works with a payment any more: then it has bought its answer, and buys no other.
    pub async fn is_spent(&self, server: &str, payment: &Value, body: &Value, why: &str) {
        let end = Instant::now() + SHORT;
        loop {
            let reply = self.stall.show(server, payment, body).await;
            // A stream by usage is over before it is settled.
            if reply.status != 409 || Instant::now() > end {
                return assert_final(&reply, &[403], "payment_spent", why);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn earned_since(&self, before: u128) -> u128 {
        self.stall.earned().await - before
    }
}

/// The answer while nobody knows: an invitation to nothing but the same payment.
pub fn assert_unknown(reply: &RawReply, why: &str) {
    assert_final(reply, &[503], "payment_unknown", why);
    assert_eq!(reply.json()["payment"]["moved"], "unknown", "{why}");
    assert!(reply.header("retry-after").is_some(), "{why}");
}
