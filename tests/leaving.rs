//! A client that leaves: whatever stage its request is in, the backend is let go at once, and a payment that bought nothing
//! stays good.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ROOMY, ask, free_route, limits, streamed};
use common::{Backend, Chain, DEV, Fault, Gate, GateOptions, Payer, Raw, Reply, RpcProxy, Script, Step, raw};
use serde_json::json;
use std::time::Duration;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Exit {
    Close,
    Reset,
}

fn leave(client: Raw, exit: Exit) {
    match exit {
        Exit::Close => drop(client),
        Exit::Reset => client.reset(),
    }
}

/// The backend was hung up on in its `count`th request, and nothing is left in the gate.
async fn assert_let_go(bridge: &Bridge, count: usize, why: &str) {
    bridge.heard(count).await;
    let closed =
        common::eventually(PATIENCE, || async { bridge.backend.requests()[count - 1].closed_early.is_some() }).await;
    assert!(closed, "{why}: the backend still works for nobody");
    bridge.quiet().await;
}

/// Whether a request of this route is counted as one whose client left.
async fn is_counted_gone(bridge: &Bridge, route: &str) -> bool {
    let labels = [("route", route), ("outcome", "client_gone")];
    common::eventually(PATIENCE, || async { bridge.gate.metric("pontage_requests_total", &labels).await > 0.0 }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_works_for_a_client_that_left() {
    let bridge = Bridge::start().await;
    let mut count = 0;
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"here\"}}]}\n\n";
    let half = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{".to_vec();
    for exit in [Exit::Close, Exit::Reset] {
        for (reply, body, until, why) in [
            (Reply::hang(), ask("no head yet"), None, "before the head"),
            (Reply::hang(), streamed("no head yet"), None, "before the head of a stream"),
            (
                Reply::steps([Step::Bytes(half.clone()), Step::Hang]),
                ask("half"),
                None,
                "in the middle of a buffered reply",
            ),
            (Reply::broken_stream([token; 0], Step::Hang), streamed("no token"), None, "before the first byte"),
            (
                Reply::broken_stream([token], Step::Hang),
                streamed("one token"),
                Some("here"),
                "in the middle of a stream",
            ),
        ] {
            bridge.backend.next(reply);
            let mut client = bridge.connect().await;
            client.send(&raw::post(FREE, &[], body.to_string().as_bytes())).await;
            count += 1;
            match until {
                Some(text) => assert!(client.until(text.as_bytes(), PATIENCE).await, "{why}"),
                None => drop(bridge.heard(count).await),
            }
            leave(client, exit);
            assert_let_go(&bridge, count, why).await;
        }
    }
    let gone = bridge.gate.metric("pontage_requests_total", &[("route", FREE), ("outcome", "client_gone")]).await;
    assert_eq!(gone, 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_client_left_before_the_first_byte_buys_the_reply_later() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 2_000_000).await;
    let mut count = 0;
    for (exit, body, why) in [
        (Exit::Close, ask("whole"), "closed, whole"),
        (Exit::Reset, ask("whole"), "reset, whole"),
        (Exit::Close, streamed("streamed"), "closed, streamed"),
        (Exit::Reset, streamed("streamed"), "reset, streamed"),
    ] {
        let paying = bridge.paying(&payer, &body).await;
        bridge.backend.next(Reply::hang());
        let mut client = bridge.connect().await;
        client.send(&paying).await;
        count += 1;
        bridge.heard(count).await;
        leave(client, exit);
        assert_let_go(&bridge, count, why).await;
        let bought = bridge.send(&paying).await;
        assert_eq!(bought.status, 200, "{why}: {}", bought.text());
        assert!(bought.header("payment-receipt").is_some(), "{why}");
        count += 1;
        assert_eq!(bridge.send(&paying).await.status, 403, "{why}: once");
    }
    assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 4, "each was paid once");
    assert_eq!(bridge.gate.metric("pontage_payments_total", &[("outcome", "redeemed")]).await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_client_took_a_first_byte_is_spent() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let paying = bridge.paying(&payer, &streamed("some of it")).await;
    let token = |n: u8| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"tok{n} \"}}}}]}}\n\n");
    bridge.backend.next(Reply::broken_stream([token(0), token(1)], Step::Hang));
    let mut client = bridge.connect().await;
    client.send(&paying).await;
    assert!(client.until(b"tok1", PATIENCE).await);
    leave(client, Exit::Reset);
    assert_let_go(&bridge, 1, "mid-stream").await;
    assert!(is_counted_gone(&bridge, CHAT).await, "it is the client who is gone, not the backend that fell silent");
    assert_eq!(bridge.send(&paying).await.status, 403);
    assert_eq!(bridge.backend.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_payment_is_on_its_way_can_come_back_for_the_reply() {
    let chain = Chain::start().await;
    let rpc = RpcProxy::start(&chain.url()).await;
    let backend = Backend::start(Script::default()).await;
    let gate = Gate::start(limits(free_route(GateOptions::new(&rpc.url(), &backend.url())), ROOMY)).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let bridge = Bridge { chain, backend, gate };
    let paying = bridge.paying(&payer, &ask("paying")).await;
    let before = rpc.broadcasts();
    rpc.once("eth_sendRawTransaction", Fault::Delay(Duration::from_secs(1)));
    rpc.once("eth_sendRawTransactionSync", Fault::Delay(Duration::from_secs(1)));
    let mut client = bridge.connect().await;
    client.send(&paying).await;
    assert!(common::eventually(PATIENCE, || async { rpc.broadcasts() > before }).await, "{:?}", rpc.calls());
    leave(client, Exit::Close);
    // It is followed up without its client, and nothing is forwarded for nobody.
    let paid = common::eventually(PATIENCE, || async {
        bridge.gate.metric("pontage_payments_total", &[("outcome", "paid")]).await == 1.0
    })
    .await;
    assert!(paid);
    bridge.quiet().await;
    assert!(bridge.backend.requests().is_empty());
    // 409 with `Retry-After` until the hold has been given back.
    let bought = common::eventually(PATIENCE, || async {
        let got = bridge.send(&paying).await;
        assert!(got.status == 200 || got.status == 409 && got.header("retry-after").is_some(), "{}", got.text());
        got.status == 200
    })
    .await;
    assert!(bought);
    assert_eq!(bridge.backend.requests().len(), 1);
    assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_is_let_go_like_one_that_left() {
    let bridge = Bridge::with(|o| {
        let old = "first_byte_seconds = 10, idle_seconds = 10";
        limits(o, ROOMY).rule_edit("pools.toml", old, "first_byte_seconds = 10, idle_seconds = 1")
    })
    .await;
    // More than the buffers of two sockets hold.
    let event =
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(60_000));
    bridge.backend.next(Reply::broken_stream(vec![event; 400], Step::Hang));
    let mut client = bridge.connect().await;
    client.send(&raw::post(FREE, &[], streamed("too much").to_string().as_bytes())).await;
    assert!(client.until(b"HTTP/1.1 200", PATIENCE).await);
    assert_let_go(&bridge, 1, "a stalled reader").await;
    assert!(is_counted_gone(&bridge, FREE).await, "it is the reader who is gone, not the backend that fell silent");
    assert_eq!(bridge.free(&json!({"messages": [{"role": "user", "content": "next"}]})).await.status, 200);
    assert_eq!(bridge.send(&raw::post(CHAT, &[], b"{}")).await.status, 402);
}
