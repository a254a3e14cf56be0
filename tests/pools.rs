//! Pools of servers, from outside: who takes a request, who is left alone, who waits, and that nobody pays when nobody can serve.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::backend::with_length;
use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ROOMY, ask, limits};
use common::{Backend, DEV, Payer, RawReply, Reply, Script, Step, eventually, free_port, raw};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// `pools.toml` with this pool: its servers and whatever else it says.
fn pool(servers: &str, more: &str) -> String {
    format!(
        "[pool.gpt-oss]\nprofile = \"vllm\"\n{servers}\napi_key = \"env:UPSTREAM_KEY\"\n\
         timeouts = {{ connect_seconds = 2, first_byte_seconds = 60, idle_seconds = 10, total_seconds = 90 }}\n{more}\n"
    )
}

fn listed<'a>(urls: impl IntoIterator<Item = &'a Backend>) -> String {
    let urls: Vec<_> = urls.into_iter().map(|b| format!("{:?}", b.url())).collect();
    format!("servers = [{}]", urls.join(", "))
}

async fn gate(pools: &str) -> Bridge {
    Bridge::with(|options| limits(options.rule("pools.toml", pools), ROOMY)).await
}

async fn backends<const N: usize>() -> [Backend; N] {
    let started = futures::future::join_all((0..N).map(|_| Backend::start(Script::default()))).await;
    started.try_into().unwrap_or_else(|_| unreachable!())
}

fn heard(backend: &Backend) -> usize {
    backend.requests().len()
}

/// One request on the free route of the gate there.
async fn free(gate: SocketAddr, body: Value) -> RawReply {
    raw::exchange(gate, &raw::post(FREE, &[], body.to_string().as_bytes())).await
}

/// What somebody gets who has not paid.
async fn unpaid(bridge: &Bridge) -> RawReply {
    bridge.send(&raw::post(CHAT, &[], ask("sell me").to_string().as_bytes())).await
}

fn is_sent_away(reply: &RawReply) -> bool {
    reply.status == 503 && reply.header("retry-after").is_some() && reply.header("www-authenticate").is_none()
}

async fn server(bridge: &Bridge, name: &str, address: &str) -> f64 {
    bridge.gate.metric(name, &[("pool", "gpt-oss"), ("server", address)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_servers_one_is_dead_and_no_request_fails() {
    let [a, b] = backends().await;
    let dead = format!("127.0.0.1:{}", free_port());
    let servers = format!("servers = [{:?}, \"http://{dead}\", {:?}]", a.url(), b.url());
    let bridge = gate(&pool(&servers, "")).await;
    let listen = bridge.gate.listen;
    for round in 0..10 {
        let sent = (0..30).map(|n| free(listen, ask(&format!("round {round}, number {n}"))));
        for reply in futures::future::join_all(sent).await {
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    }
    assert_eq!(heard(&a) + heard(&b), 300, "each of them once");
    assert!(server(&bridge, "pontage_upstream_ejections_total", &dead).await >= 1.0);
    let known = bridge.gate.status().await["pools"][0]["servers"].clone();
    let names: BTreeSet<_> = known.as_array().unwrap().iter().map(|s| s["server"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 3, "{known}");
    assert!(names.contains(dead.as_str()), "{known}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_server_does_not_slow_the_rest() {
    let all: [Backend; 3] = backends().await;
    let bridge = gate(&pool(&listed(&all), "")).await;
    let listen = bridge.gate.listen;
    all[1].always(Reply::Model(Script::default()).held());
    let done = Arc::new(AtomicUsize::new(0));
    let places = Arc::new(tokio::sync::Semaphore::new(4));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..120 {
        let (done, places) = (Arc::clone(&done), Arc::clone(&places));
        tasks.spawn(async move {
            let _place = places.acquire().await;
            assert_eq!(free(listen, ask(&format!("number {n}"))).await.status, 200);
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    let most = || async { done.load(Ordering::SeqCst) >= 117 };
    assert!(eventually(PATIENCE, most).await, "{} of 120 while one server says nothing", done.load(Ordering::SeqCst));
    assert!(heard(&all[1]) <= 3, "it was given {} to hold", heard(&all[1]));
    all[1].always(None);
    all[1].release();
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_servers_are_down_nothing_is_offered_and_nobody_pays() {
    let [a, b] = backends().await;
    let bridge = gate(&pool(&listed([&a, &b]), "health = { path = \"/health\", every_seconds = 1 }")).await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let paying = bridge.paying(&payer, &ask("paid for")).await;
    a.healthy(false);
    b.healthy(false);
    assert!(eventually(PATIENCE, || async { is_sent_away(&unpaid(&bridge).await) }).await);
    assert!(is_sent_away(&bridge.free(&ask("free")).await));
    let refused = bridge.send(&paying).await;
    assert!(is_sent_away(&refused), "{}", refused.text());
    assert!(bridge.chain.payments_to(DEV[1].address).await.is_empty(), "no money moved");
    assert_eq!(heard(&a) + heard(&b), 0);
    b.healthy(true);
    assert!(eventually(PATIENCE, || async { unpaid(&bridge).await.status == 402 }).await);
    assert_eq!(bridge.send(&paying).await.status, 200, "the same payment");
    assert_eq!((heard(&a), heard(&b)), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_pool_lets_wait_and_a_full_queue_sends_away_before_any_money() {
    let [only] = backends().await;
    let bridge = gate(&pool(&listed([&only]), "max_concurrent = 1\nqueue = { length = 1, wait_seconds = 60 }")).await;
    let listen = bridge.gate.listen;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let paying = bridge.paying(&payer, &ask("paid for")).await;
    only.always(Reply::Model(Script::default()).held());
    let first = tokio::spawn(free(listen, ask("first")));
    bridge_heard(&only, 1).await;
    assert_eq!(unpaid(&bridge).await.status, 402, "busy for a moment is not down");
    let second = tokio::spawn(free(listen, ask("second")));
    let waits = || async { bridge.gate.metric("pontage_upstream_queue_length", &[("pool", "gpt-oss")]).await == 1.0 };
    assert!(eventually(PATIENCE, waits).await);
    assert!(is_sent_away(&unpaid(&bridge).await));
    assert!(is_sent_away(&bridge.free(&ask("third")).await));
    assert!(is_sent_away(&bridge.send(&paying).await));
    assert!(bridge.chain.payments_to(DEV[1].address).await.is_empty(), "no money moved");
    assert_eq!(heard(&only), 1);
    only.always(None);
    only.release();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    assert_eq!(unpaid(&bridge).await.status, 402);
    assert_eq!(bridge.send(&paying).await.status, 200, "the same payment");
    assert_eq!(bridge.gate.metric("pontage_upstream_queue_waits_total", &[]).await, 1.0);
}

async fn bridge_heard(backend: &Backend, count: usize) {
    assert!(eventually(PATIENCE, || async { heard(backend) >= count }).await, "{} heard", heard(backend));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_tried_and_used() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let bridge = gate(&pool(&format!("servers = [\"http://{address}\"]"), "")).await;
    assert_eq!(bridge.free(&ask("anybody?")).await.status, 503);
    assert_eq!(server(&bridge, "pontage_upstream_ejections_total", &address).await, 1.0);
    let back = Backend::start_on(address.parse().unwrap(), Script::default()).await;
    let served = || async { bridge.free(&ask("anybody now?")).await.status == 200 };
    assert!(eventually(PATIENCE, served).await);
    assert_eq!(heard(&back), 1, "the trial was the request that was served");
    assert_eq!(server(&bridge, "pontage_upstream_server_up", &address).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_bad_answers_in_a_row_rest_a_server_and_one_good_one_brings_it_back() {
    let [only] = backends().await;
    let address = only.addr.to_string();
    let bridge = gate(&pool(&listed([&only]), "")).await;
    only.always(Reply::html(500));
    for n in 1..=5 {
        assert_eq!(server(&bridge, "pontage_upstream_ejections_total", &address).await, 0.0, "before number {n}");
        assert_eq!(bridge.free(&ask("again")).await.status, 502);
    }
    assert_eq!(server(&bridge, "pontage_upstream_ejections_total", &address).await, 1.0);
    only.always(None);
    let served = || async { bridge.free(&ask("once more")).await.status == 200 };
    assert!(eventually(PATIENCE, served).await);

    // One that says when to come again is not asked before, whatever it answered so far.
    let slow_down = [("content-type", "application/json"), ("retry-after", "3600")];
    only.next(Reply::with_headers(429, &slow_down, json!({"error": {"message": "slow down"}}).to_string()));
    bridge.free(&ask("too much")).await;
    let before = heard(&only);
    assert!(is_sent_away(&bridge.free(&ask("and now?")).await));
    assert!(is_sent_away(&unpaid(&bridge).await));
    assert_eq!(heard(&only), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_200_and_never_serves_is_rested_like_one_that_answers_5xx() {
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";
    let mut half = with_length(200, &[("content-type", "application/json")], b"{\"choices\":[]}");
    half.truncate(half.len() - 4);
    let error = "data: {\"error\":{\"message\":\"engine dead\"}}\n\n";
    for (garbage, why) in [
        (Reply::html(200), "a page"),
        (Reply::with_headers(307, &[("location", "/elsewhere")], ""), "a redirect"),
        (Reply::gzip(&json!({"choices": []})), "compressed"),
        (Reply::stream([error]), "an error for a first word"),
        (Reply::stream([token, error]), "an error for a last word"),
        (Reply::broken_stream([token], Step::Reset), "a stream that breaks off"),
        (Reply::json(200, &json!({"error": {"message": "engine dead"}})), "an error in a success"),
        (Reply::steps([Step::Bytes(half), Step::Close]), "a body that breaks off"),
    ] {
        let all: [Backend; 3] = backends().await;
        let bridge = gate(&pool(&listed(&all), "")).await;
        all[1].always(garbage);
        let address = all[1].addr.to_string();
        let streams = !matches!(why, "an error in a success" | "a body that breaks off");
        let mut failed = 0.0;
        for n in 0..60 {
            let mut body = ask(&format!("number {n}"));
            body["stream"] = json!(streams);
            let reply = bridge.free(&body).await;
            if reply.status != 200 || reply.text().contains("\"error\"") {
                failed += 1.0;
            }
        }
        // After the fifth it rests, and each further rest costs one request.
        let rests = server(&bridge, "pontage_upstream_ejections_total", &address).await;
        assert!(rests >= 1.0 && failed <= 4.0 + rests, "{why}: {failed} of 60 failed, {rests} rests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_come_and_go_under_load_and_no_request_fails() {
    let [a, b, c] = backends().await;
    let bridge = gate(&pool(&listed([&a, &b]), "")).await;
    let listen = bridge.gate.listen;
    let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for client in 0..6 {
        let (over, sent) = (Arc::clone(&over), Arc::clone(&sent));
        load.spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let number = sent.fetch_add(1, Ordering::SeqCst);
                let reply = free(listen, ask(&format!("client {client}, number {number}"))).await;
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
        });
    }
    let weighted = format!("servers = [{{ url = {:?}, weight = 5 }}, {:?}]", c.url(), b.url());
    for servers in [listed([&a, &b, &c]), weighted, listed([&c]), listed([&b, &c])] {
        let (generation, before) = (bridge.gate.generation().await, sent.load(Ordering::SeqCst));
        bridge.gate.write_rules("pools.toml", &pool(&servers, ""));
        bridge.gate.generation_after(&generation, PATIENCE).await.expect("the new servers are taken");
        let goes_on = || async { sent.load(Ordering::SeqCst) >= before + 30 };
        assert!(eventually(PATIENCE, goes_on).await);
    }
    let left = heard(&a);
    let goes_on = sent.load(Ordering::SeqCst) + 30;
    assert!(eventually(PATIENCE, || async { sent.load(Ordering::SeqCst) >= goes_on }).await);
    over.store(true, Ordering::SeqCst);
    while let Some(task) = load.join_next().await {
        task.unwrap();
    }
    assert_eq!(heard(&a), left, "one that left is not asked");
    assert!([&a, &b, &c].into_iter().all(|backend| heard(backend) > 0));
    assert_eq!(heard(&a) + heard(&b) + heard(&c), sent.load(Ordering::SeqCst), "each of them once");
    assert_eq!(bridge.gate.metric("pontage_upstream_in_flight", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_stays_on_one_server_and_conversations_are_spread() {
    let all: [Backend; 3] = backends().await;
    let bridge = gate(&pool(&listed(&all), "balance = \"prefix\"")).await;
    for conversation in 0..8 {
        let mut turns = vec![
            json!({"role": "system", "content": "You are kind."}),
            json!({"role": "user", "content": format!("conversation {conversation}")}),
        ];
        let before = all.each_ref().map(heard);
        for turn in 0..4 {
            let body = json!({"model": "openai/gpt-oss-120b", "messages": turns, "user": format!("tenant {turn}")});
            assert_eq!(bridge.free(&body).await.status, 200);
            turns.push(json!({"role": "assistant", "content": "Yes."}));
            turns.push(json!({"role": "user", "content": format!("And {turn}?")}));
        }
        let now = all.each_ref().map(heard);
        let taken: Vec<_> = before.iter().zip(now).map(|(before, now)| now - before).filter(|n| *n > 0).collect();
        assert_eq!(taken, [4], "conversation {conversation}");
    }
    assert!(all.iter().filter(|backend| heard(backend) > 0).count() > 1, "not all on the same one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_requests_stay_together_where_the_rules_say_so() {
    let all: [Backend; 3] = backends().await;
    let bridge = gate(&pool(&listed(&all), "balance = \"consistent\"")).await;
    for user in 0..8 {
        let before = all.each_ref().map(heard);
        for turn in 0..4 {
            let mut body = ask(&format!("question {turn}"));
            body["user"] = json!(format!("user {user}"));
            assert_eq!(bridge.free(&body).await.status, 200);
        }
        let now = all.each_ref().map(heard);
        let taken: Vec<_> = before.iter().zip(now).map(|(before, now)| now - before).filter(|n| *n > 0).collect();
        assert_eq!(taken, [4], "user {user}");
    }
    assert!(all.iter().filter(|backend| heard(backend) > 0).count() > 1, "not all on the same one");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_share_by_weight_and_a_later_group_stands_by() {
    let [a, b, spare] = backends().await;
    let servers = format!(
        "servers = [{{ url = {:?}, weight = 3 }}, {:?}, {{ url = {:?}, group = 1 }}]",
        a.url(),
        b.url(),
        spare.url()
    );
    let health = "balance = \"round-robin\"\nhealth = { path = \"/health\", every_seconds = 1 }";
    let bridge = gate(&pool(&servers, health)).await;
    for n in 0..40 {
        assert_eq!(bridge.free(&ask(&format!("number {n}"))).await.status, 200);
    }
    assert_eq!((heard(&a), heard(&b), heard(&spare)), (30, 10, 0));
    a.healthy(false);
    b.healthy(false);
    let both_out = || async { bridge.gate.metric("pontage_upstream_server_up", &[]).await == 1.0 };
    assert!(eventually(PATIENCE, both_out).await);
    assert_eq!(bridge.free(&ask("anybody?")).await.status, 200);
    assert_eq!((heard(&a), heard(&b), heard(&spare)), (30, 10, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_found_behind_a_name_and_shown_under_it() {
    let [backend] = backends().await;
    let name = format!("localhost:{}", backend.addr.port());
    let bridge = gate(&pool(&format!("dns = \"http://{name}\""), "")).await;
    for n in 0..10 {
        assert_eq!(bridge.free(&ask(&format!("number {n}"))).await.status, 200);
    }
    assert_eq!(backend.last().header("host"), Some(name.as_str()));
    assert_eq!(server(&bridge, "pontage_upstream_server_up", &name).await, 1.0);
    let servers = bridge.gate.status().await["pools"][0]["servers"].clone();
    let found = |s: &Value| s["server"] == json!(name) && s["address"] == json!(backend.addr.to_string());
    assert!(servers.as_array().unwrap().iter().any(found), "{servers}");
    assert!(!bridge.gate.metrics().await.contains("server=\"127.0.0.1"), "addresses are no labels");

    // A name that comes with a reload is known before a request needs it.
    let generation = bridge.gate.generation().await;
    let [other] = backends().await;
    bridge.gate.write_rules("pools.toml", &pool(&format!("dns = \"http://localhost:{}\"", other.addr.port()), ""));
    bridge.gate.generation_after(&generation, PATIENCE).await.expect("the other name is taken");
    assert_eq!(bridge.free(&ask("there?")).await.status, 200);
    assert_eq!(heard(&other), 1);
}
