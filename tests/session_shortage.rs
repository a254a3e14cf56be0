//! Sessions when something is short: a node that is behind, a reader that is slow, a disk that is full. Nobody is sent away with his
//! money locked, nobody is asked to pay twice, and nothing that was acknowledged is missing afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{CHAT, Hidden, INPUT, OUTPUT, SessionBed, atoms, chat, code, streamed};
use common::gate::Wait;
use common::reserve::Event;
use common::wallet::Wallet;
use common::{Fault, RawReply, eventually, ledger, raw};
use serde_json::{Value, json};
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

const SHORT: Duration = Duration::from_secs(20);
/// Words of the prompt of [`chat`], which the backend calls its tokens.
const PROMPT: u128 = 3;

/// Shows something until it is taken. Every other answer says to come again, and never asks for money or calls a channel gone.
async fn until<F: Future<Output = RawReply>>(status: u16, what: &str, show: impl Fn() -> F) -> RawReply {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let reply = show().await;
        if reply.status == status {
            return reply;
        }
        assert!([409, 503].contains(&reply.status), "{what}: {} {}", reply.status, reply.text());
        assert!(reply.header("www-authenticate").is_none(), "{what}: it asks for money: {}", reply.text());
        assert!(reply.header("retry-after").is_some(), "{what}: {}", reply.text());
        assert!(Instant::now() < end, "{what}: never taken: {}", reply.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_blocks_behind_makes_nobody_pay_twice_and_no_channel_gone() {
    let mut bed = SessionBed::open().await;
    let body = chat();
    let (old, offer) = bed.channel(20_000, 10_000).await;
    assert_eq!(bed.buy(&old.voucher_credential(&offer, 10_000), &chat()).await.status, 200);
    // Money that the node has not heard of cannot be locked: these have it long enough.
    let (second, third) = (bed.wallet().await, bed.wallet().await);
    let funded = bed.chain.block_number().await;
    let heard = eventually(SHORT, || async { bed.chain.block_number().await > funded + 6 });
    assert!(heard.await, "the chain stands still");
    bed.rpc.always("*", Fault::Behind(5));

    // Its channel is known: it goes on being served.
    let reply = bed.buy(&old.voucher_credential(&offer, 11_000), &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());

    // An opening and a top-up of which the node does not know for a while what became of them.
    let offer = bed.fresh().await;
    let new = second.open(&offer, |open| open.deposit = 30_000);
    let credential = new.open_credential(&offer, 10_000);
    until(200, "an opening", || bed.buy(&credential, &body)).await;
    assert!(matches!(bed.reserve.events(&new.id).await[..], [Event::Opened { deposit: 30_000, .. }]), "opened once");
    let more = old.top_up_credential(&offer, 15_000);
    until(204, "a top-up", || bed.manage(&more)).await;
    let reply = bed.buy(&old.voucher_credential(&bed.fresh().await, 30_000), &chat()).await;
    assert_eq!(reply.status, 200, "what was added is there at once: {}", reply.text());
    let events = bed.reserve.events(&old.id).await;
    assert!(matches!(events[..], [Event::Opened { .. }, Event::TopUp { deposit: 35_000, .. }]), "once: {events:?}");

    // A gate that comes up while its node is behind the channel itself.
    let offer = bed.fresh().await;
    let newest = third.open(&offer, |open| open.deposit = 40_000);
    let credential = newest.open_credential(&offer, 10_000);
    until(204, "another opening", || bed.manage(&credential)).await;
    bed.rpc.always("*", Fault::Behind(12));
    bed.gate.restart().await;
    let again = newest.voucher_credential(&bed.fresh().await, 11_000);
    until(200, "after a restart", || bed.buy(&again, &body)).await;
    bed.rpc.clear();
    let reply = bed.buy(&newest.voucher_credential(&bed.fresh().await, 12_000), &chat()).await;
    assert_eq!(reply.status, 200, "and once the node is well: {}", reply.text());
    assert!(bed.chain.block_number().await > 12);
    bed.close(&[&old, &new, &newest]).await;
}

/// A client that reads through a keyhole.
async fn keyhole(bed: &SessionBed, credential: &str, body: &Value) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(bed.gate.listen).await.unwrap();
    let request = raw::post(CHAT, &[("authorization", credential)], body.to_string().as_bytes());
    stream.write_all(&request).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_byte_a_second_holds_up_nobody_and_pays_for_what_came_his_way() {
    const TOKENS: u64 = 100_000;
    let bed = SessionBed::with(|options| {
        options.rule_edit("tiers.toml", "max_output_tokens = 2048", "max_output_tokens = 100000")
    })
    .await;
    bed.backend.tune(|script| script.tokens = TOKENS);
    let mut body = streamed();
    body["max_tokens"] = json!(TOKENS);
    let (channel, offer) = bed.channel(5_000_000, 0).await;
    let memory = bed.gate.memory();
    let mut slow = keyhole(&bed, &channel.voucher_credential(&offer, 3_000_000), &body).await;
    let mut head = [0u8; 512];
    slow.read_exact(&mut head).await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    // Until nothing moves any more: what the kernel takes is full.
    let produced = || u128::from(bed.backend.requests().first().map_or(0, |r| r.produced));
    let stuck = eventually(Duration::from_secs(60), || async {
        let before = produced();
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        before > 0 && produced() == before
    });
    assert!(stuck.await, "the backend is never held up");
    assert!(produced() < u128::from(TOKENS), "all of it was read for a client that reads nothing");
    for _ in 0..5 {
        let mut byte = [0u8; 1];
        slow.read_exact(&mut byte).await.unwrap();
        // Others of the same channel, and of another one, are served meanwhile.
        let reply = bed.buy(&channel.voucher_credential(&bed.fresh().await, 3_000_000), &chat()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let mut small = streamed();
        small["max_tokens"] = json!(20);
        let reply = bed.buy(&channel.voucher_credential(&bed.fresh().await, 3_000_000), &small).await;
        assert!(reply.status == 200 && reply.text().contains("[DONE]"), "{} {}", reply.status, reply.text());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let grown = bed.gate.memory().saturating_sub(memory);
    assert!(grown < 32 << 20, "the gate holds {grown} bytes more for one slow reader");
    let others = bed.charged(&channel.id);
    let _ = slow.set_zero_linger();
    drop(slow);
    let id = format!("{:#x}", channel.id);
    let ended = eventually(SHORT, || async {
        let (_, listed) = bed.gate.admin_get("/channels").await.expect("the admin address answers");
        let all: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        all.iter().filter(|c| c["id"] == id.as_str()).all(|c| c["leased"] == "0")
    });
    assert!(ended.await, "the lease of a reader that is gone is never given back");
    let spent = atoms(&bed.snapshot(&channel).await["spent"]);
    let (charge, most) = (spent - others, PROMPT * INPUT + produced() * OUTPUT);
    assert!(charge > 0 && charge <= most + 10 * INPUT, "{charge} charged, the backend produced for {most}");
    bed.audit(&[&channel], Hidden { receipts: 1, atoms: charge }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_no_money_and_loses_nothing_that_was_acknowledged() {
    let mut bed = SessionBed::with(|mut options| {
        options.small_disk = true;
        options
    })
    .await;
    let (channel, offer) = bed.channel(200_000, 10_000).await;
    assert_eq!(bed.buy(&channel.voucher_credential(&offer, 12_000), &chat()).await.status, 200);
    assert_eq!(bed.manage(&channel.voucher_credential(&offer, 14_000)).await.status, 204, "acknowledged");
    let (served, spent) = (bed.served(), bed.charged(&channel.id));

    bed.gate.disk(Some(1));
    let higher = channel.voucher_credential(&offer, 16_000);
    let next = bed.offer(CHAT, &chat()).await.0;
    for reply in [
        bed.manage(&higher).await,
        bed.buy(&channel.voucher_credential(&next, 18_000), &chat()).await,
        bed.buy(&channel.voucher_credential(&next, 18_000), &streamed()).await,
        bed.manage(&higher).await,
    ] {
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert!(code(&reply).contains("store"), "it says what is wrong: {}", reply.text());
        assert!(reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none());
        assert_eq!(reply.header("x-should-retry"), Some("false"));
    }
    assert_eq!(bed.served(), served, "nothing is bought that cannot be written down");
    let wallet = bed.wallet().await;
    let other = wallet.open(&next, |open| open.deposit = 20_000);
    let reply = bed.manage(&other.open_credential(&next, 1_000)).await;
    assert_eq!(reply.status, 503, "no opening is sent that could be forgotten: {}", reply.text());
    assert_eq!(bed.reserve.state(&other.id).await.deposit, 0);

    bed.gate.kill();
    bed.gate.restart().await;
    let snapshot = bed.snapshot(&channel).await;
    assert!(atoms(&snapshot["acceptedCumulative"]) >= 14_000, "{snapshot}");
    assert_eq!(atoms(&snapshot["spent"]), spent, "{snapshot}");
    assert_eq!(bed.manage(&higher).await.status, 204, "the same voucher is good now");
    let reply = bed.buy(&channel.voucher_credential(&bed.fresh().await, 18_000), &streamed()).await;
    assert!(reply.status == 200 && !ledger::events(&reply.text()).is_empty(), "{}", reply.text());
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_money_for_a_settlement_no_session_is_offered_and_the_operator_is_told_why() {
    let empty = Wallet::empty();
    let account = empty.address.to_string();
    let bed = SessionBed::with(|options| options.env("PONTAGE_SETTLE_KEY", &empty.secret()).wait(Wait::Alive)).await;
    let asked = async || bed.post(CHAT, &[], chat().to_string().as_bytes()).await;
    let refused = async || {
        let reply = asked().await;
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert!(reply.header("www-authenticate").is_none() && reply.header("retry-after").is_some());
        let status = bed.gate.status().await;
        let rail = status["rails"].as_array().unwrap().iter().find(|r| r["rail"] == "tempo/session").unwrap().clone();
        assert_eq!(rail["offered"], json!(false), "{status}");
        let why = rail["why_not"].as_str().unwrap();
        assert!(why.contains(&account) && why.contains("fees"), "{why}");
        assert_eq!(bed.gate.admin_get("/readyz").await.expect("alive").0, 503);
        assert_eq!(bed.gate.metric("pontage_rail_up", &[("rail", "tempo/session")]).await, 0.0);
    };
    refused().await;
    assert!(bed.gate.log().contains("sessions are not offered"), "{}", bed.gate.log());
    // A node that cannot be asked about the account says nothing about it.
    bed.rpc.always("eth_call", Fault::Hang);
    tokio::time::sleep(Duration::from_secs(6)).await;
    refused().await;
    bed.rpc.clear();

    bed.chain.fund(&account, 1_000_000).await;
    let back = eventually(SHORT, || async { asked().await.status == 402 });
    assert!(back.await, "with money, it is offered again");
    bed.rpc.always("eth_call", Fault::Hang);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(asked().await.status, 402, "and that is not taken back for want of an answer");
    bed.rpc.clear();
    let (channel, offer) = bed.channel(20_000, 10_000).await;
    assert_eq!(bed.buy(&channel.voucher_credential(&offer, 10_000), &chat()).await.status, 200);
    bed.close(&[&channel]).await;
}
