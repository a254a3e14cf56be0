//! Traffic that nobody pays for has its limits, and those who pay do not feel them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, PATIENCE, ROOMY, ask, limits};
use common::{Payer, Raw, RawReply, raw};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn unpaid() -> Vec<u8> {
    raw::post(CHAT, &[], ask("for nothing").to_string().as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_so_many_connections_and_another_has_its_own() {
    let bridge = Bridge::with(|o| limits(o, "connections_per_ip = 8, unpaid_per_ip_per_second = 10000")).await;
    let mut inside = Vec::new();
    for number in 0..8 {
        let mut client = bridge.connect().await;
        client.send(&unpaid()).await;
        assert_eq!(client.reply(PATIENCE).await.status, 402, "connection {number}");
        inside.push(client);
    }
    for _ in 0..20 {
        let mut outside = bridge.connect().await;
        outside.try_send(&unpaid()).await;
        assert!(outside.closed(PATIENCE).await && outside.seen.is_empty(), "it was let in as the ninth");
    }
    let mut other = Raw::connect_from([127, 0, 0, 2], bridge.gate.listen).await;
    other.send(&unpaid()).await;
    assert_eq!(other.reply(PATIENCE).await.status, 402, "another address");
    // Those inside are still served, and a place that is left is free.
    inside[0].send(&unpaid()).await;
    assert_eq!(inside[0].reply(PATIENCE).await.status, 402);
    inside.pop();
    let admitted = common::eventually(PATIENCE, || async {
        let mut next = bridge.connect().await;
        next.try_send(&unpaid()).await && next.until(b"HTTP/1.1 402", PATIENCE).await
    })
    .await;
    assert!(admitted, "a place was left and is not free");
}

/// Asks without paying, on several connections, until told to stop; counts refusals.
struct Flood {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Flood {
    fn start(to: SocketAddr, status: u16) -> Self {
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..4)
            .map(|_| {
                let (stop, refused) = (Arc::clone(&stop), Arc::clone(&refused));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let got = raw::exchange(to, &unpaid()).await;
                        assert!(got.status == status || got.status == 402, "{}", got.text());
                        if got.status == status {
                            assert_turned_away(&got);
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        Self { stop, refused, tasks }
    }

    async fn is_felt(&self) {
        let before = self.refused.load(Ordering::Relaxed);
        let felt = common::eventually(PATIENCE, || async { self.refused.load(Ordering::Relaxed) > before + 10 }).await;
        assert!(felt, "the flood is not refused");
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

fn assert_turned_away(got: &RawReply) {
    assert!(got.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok()), "{:?}", got.headers);
    assert!(got.header("www-authenticate").is_none(), "nobody is asked to pay for coming too often");
    assert_eq!(got.json()["error"]["code"], "rate_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_without_paying_is_429_and_whoever_pays_from_it_is_served() {
    let bridge = Bridge::with(|o| limits(o, "connections_per_ip = 10000, unpaid_per_ip_per_second = 20")).await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let mut paying = Vec::new();
    for prompt in ["one", "two", "three"] {
        paying.push(bridge.paying(&payer, &ask(prompt)).await);
    }
    let flood = Flood::start(bridge.gate.listen, 429);
    for request in &paying {
        flood.is_felt().await;
        let paid = bridge.send(request).await;
        assert_eq!(paid.status, 200, "{}", paid.text());
        let mut elsewhere = Raw::connect_from([127, 0, 0, 3], bridge.gate.listen).await;
        elsewhere.send(&unpaid()).await;
        assert_eq!(elsewhere.reply(PATIENCE).await.status, 402, "another address does not feel it");
    }
    flood.end().await;
    let forgiven = common::eventually(PATIENCE, || async { bridge.send(&unpaid()).await.status == 402 }).await;
    assert!(forgiven, "after the flood the address is served again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_may_read_is_read_as_often_as_one_may_ask_without_paying() {
    let bridge = Bridge::with(|o| limits(o, "connections_per_ip = 10000, unpaid_per_ip_per_second = 5")).await;
    for path in ["/openapi.json", "/llms.txt", "/agents.md", "/v1/models", "/v1/models/openai/gpt-oss-120b"] {
        for method in ["GET", "HEAD"] {
            let asked = format!("{method} {path} HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\r\n");
            let read = common::eventually(PATIENCE, || async { bridge.send(asked.as_bytes()).await.status == 200 });
            assert!(read.await, "{method} {path}: another second has room again");
            let felt = common::eventually(PATIENCE, || async {
                let got = futures::future::join_all((0..20).map(|_| bridge.send(asked.as_bytes()))).await;
                let refused: Vec<_> = got.iter().filter(|got| got.status == 429).collect();
                assert!(refused.iter().all(|got| got.header("retry-after").is_some()));
                refused.len() >= 10
            });
            assert!(felt.await, "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_everywhere_is_503_and_whoever_pays_is_served() {
    let bridge = Bridge::with(|o| {
        limits(o, "connections_per_ip = 10000, unpaid_per_ip_per_second = 10000, unpaid_per_second = 20")
    })
    .await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let paying = bridge.paying(&payer, &ask("in the middle of it")).await;
    let flood = Flood::start(bridge.gate.listen, 503);
    flood.is_felt().await;
    let paid = bridge.send(&paying).await;
    assert_eq!(paid.status, 200, "{}", paid.text());
    flood.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_worth_nothing_ask_the_chain_nothing_and_run_into_the_limit_too() {
    let chain = common::Chain::start().await;
    let rpc = common::RpcProxy::start(&chain.url()).await;
    let backend = common::Backend::start(common::Script::default()).await;
    let options = common::GateOptions::new(&rpc.url(), &backend.url());
    let gate = common::Gate::start(limits(options, "connections_per_ip = 10000, unpaid_per_ip_per_second = 20")).await;
    let bridge = Bridge { chain, backend, gate };
    let body = ask("junk").to_string();
    let offer = bridge.send(&unpaid()).await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let proof = payer.pay(&offer).await;
    let forged = common::payer::bend(&proof, |c| c["challenge"]["id"] = "A".repeat(43).into());
    let asked = |rpc: &common::RpcProxy| {
        let calls = rpc.calls();
        calls
            .iter()
            .filter(|m| !["eth_chainId", "eth_getBlockByNumber", "eth_blockNumber"].contains(&m.as_str()))
            .count()
    };
    let before = asked(&rpc);
    let mut statuses = std::collections::BTreeMap::new();
    // As long as it takes until more than a second's share came in one.
    let end = std::time::Instant::now() + PATIENCE;
    while !statuses.contains_key(&429) && std::time::Instant::now() < end {
        for credential in ["Payment AAAA", "Payment e30", "Payment", &forged] {
            let asked = raw::post(CHAT, &[("authorization", credential)], body.as_bytes());
            for got in futures::future::join_all((0..50).map(|_| bridge.send(&asked))).await {
                *statuses.entry(got.status).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(asked(&rpc), before, "the chain was asked: {:?}", rpc.calls());
    assert!(statuses.keys().all(|s| matches!(s, 402 | 429)), "{statuses:?}");
    assert!(statuses.contains_key(&429), "{statuses:?}");
    assert!(bridge.backend.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_invent_adds_no_series_to_the_metrics() {
    let bridge = Bridge::with(|o| limits(o, ROOMY)).await;
    let series = async || {
        let text = bridge.gate.metrics().await;
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .map(|l| l.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<Vec<_>>()
    };
    let invent = async |number: usize| {
        let model = format!("model-{number}");
        let mut body = ask("x");
        body["model"] = model.as_str().into();
        let asked = raw::post(CHAT, &[("user-agent", &model)], body.to_string().as_bytes());
        let path = raw::post(&format!("/path-{number}"), &[], b"{}");
        let method = format!("M{number} {CHAT} HTTP/1.1\r\nhost: h{number}\r\n\r\n");
        let field = raw::post(CHAT, &[], format!("{{\"field{number}\":1}}").as_bytes());
        let credential = raw::post(CHAT, &[("authorization", &format!("Payment p{number}"))], b"{}");
        let mut client = bridge.connect().await;
        for (request, status) in
            [(asked, 404), (path, 404), (method.into_bytes(), 405), (field, 400), (credential, 402)]
        {
            if !client.try_send(&request).await {
                client = bridge.connect().await;
                client.send(&request).await;
            }
            let got = client.reply(PATIENCE).await;
            assert_eq!(got.status, status, "{}", got.text());
            if got.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
                client = bridge.connect().await;
            }
        }
    };
    invent(0).await;
    // A request is counted when its answer is out.
    let outcomes = ["model_not_found", "malformed_credential", "unknown_path", "method_not_allowed"];
    let counted = async || {
        let series = series().await;
        outcomes.iter().all(|outcome| series.iter().any(|s| s.contains(&format!("outcome=\"{outcome}\""))))
    };
    assert!(common::eventually(PATIENCE, counted).await, "{:#?}", series().await);
    let before = series().await;
    for number in 1..=1_000 {
        invent(number).await;
    }
    assert_eq!(series().await, before);
    assert!(before.iter().any(|s| s.contains("outcome=\"model_not_found\"")), "{before:?}");
}
