//! x402 from socket to receipt: the published clients, the published facilitator and a chain, with the gate between them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::x402::stall::{FLAT, PER_TOKEN, server};
use common::x402::{Client, Stall};
use common::{EvmBed, Facilitator};

type Flags = &'static [(&'static str, &'static str)];

/// Every client, which server of the gate it calls, and what it is told to prefer.
const PAYING: [(Client, &str, Flags); 4] = [
    (Client::Fetch, server::EXACT, &[]),
    (Client::Fetch, server::FIRST, &[]),
    (Client::Fetch, server::PERMIT2, &[]),
    (Client::Fetch, server::UPTO, &[]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_published_client_pays_and_is_answered() {
    let chain = EvmBed::start().await;
    let facilitator = Facilitator::ts(&chain).await;
    let stall = Stall::over(chain, &facilitator.url()).await;
    for (client, server, flags) in PAYING {
        let buyer = stall.chain.buyer(1_000_000).await;
        let before = stall.earned().await;
        let got = client.pay(&stall.chain, &buyer, &stall.server(server), flags).await;
        let said = format!("{client:?} {server} {flags:?}: {got:#}");
        eprintln!("{said}");
        assert_eq!(got["ok"], true, "{said}");
        let earned = stall.earned().await - before;
        eprintln!("earned {earned} {FLAT} {PER_TOKEN}");
    }
}
