//! Two gates on one Redis: a channel is one channel, whichever of them is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{CHAT, INPUT, OUTPUT, SessionBed, atoms, final_receipt, streamed};
use common::reserve::Event;
use common::wallet::Channel;
use common::{Gate, GateOptions, Raw, free_port, ledger, raw};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(30);

struct Redis {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a Redis is spoken to.
#[derive(Clone, Copy, PartialEq)]
enum Line {
    Plain,
    Tls,
}

fn redis(line: Line) -> Redis {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut command = Command::new("redis-server");
    match line {
        Line::Plain => command.args(["--port", &port.to_string()]),
        Line::Tls => {
            let made = Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-days",
                    "2",
                ])
                .args(["-subj", "/CN=the redis of a test", "-addext", "subjectAltName=IP:127.0.0.1"])
                .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
                .current_dir(dir.path())
                .output()
                .expect("this test needs the openssl command");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            command.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"]).args([
                "--tls-cert-file",
                "cert.pem",
                "--tls-key-file",
                "key.pem",
                "--tls-ca-cert-file",
                "cert.pem",
            ])
        }
    };
    let child = command
        .args(["--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "noeviction"])
        .args(["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is missing: install Debian's redis-server");
    let end = std::time::Instant::now() + SHORT;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(std::time::Instant::now() < end, "redis-server does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    Redis { dir, port, child }
}

/// A gate with everything around it, and a second one on the same Redis.
struct Fleet {
    bed: SessionBed,
    second: Gate,
    _redis: Redis,
}

async fn fleet(tokens: u64) -> Fleet {
    fleet_on(Line::Plain, tokens).await
}

async fn fleet_on(line: Line, tokens: u64) -> Fleet {
    let redis = redis(line);
    let scheme = if line == Line::Tls { "rediss" } else { "redis" };
    let url = format!("{scheme}://127.0.0.1:{}/", redis.port);
    let roots = redis.dir.path().join("cert.pem");
    let mut kept: Option<GateOptions> = None;
    let bed = SessionBed::with(|options| {
        let options = options
            .conf_edit("kind = \"embedded\"", "kind = \"redis\"\nurl = \"env:REDIS_URL\"")
            .env("REDIS_URL", &url)
            .env("SSL_CERT_FILE", if line == Line::Tls { roots.to_str().unwrap() } else { "" });
        kept = Some(options.clone());
        options
    })
    .await;
    bed.backend.tune(|script| (script.tokens, script.per_token) = (tokens, Duration::from_millis(10)));
    // Its operator accepts what the first one's does not, and Redis never makes use of it.
    let accepting = "kind = \"redis\"\naccept_data_loss = true";
    let second = Gate::start(kept.expect("options").conf_edit("kind = \"redis\"", accepting)).await;
    Fleet { bed, second, _redis: redis }
}

fn long(tokens: u64) -> String {
    let mut body = streamed();
    body["max_tokens"] = json!(tokens);
    body.to_string()
}

async fn begin(listen: SocketAddr, credential: &str, tokens: u64) -> Raw {
    let mut line = Raw::connect(listen).await;
    line.send(&raw::post(CHAT, &[("authorization", credential)], long(tokens).as_bytes())).await;
    line
}

fn text(line: &Raw) -> String {
    String::from_utf8_lossy(&line.seen).into_owned()
}

fn words(text: &str) -> u128 {
    let deltas = ledger::events(text).into_iter().flat_map(|e| e["choices"].as_array().cloned().unwrap_or_default());
    deltas.map(|c| c["delta"]["content"].as_str().unwrap_or("").split_whitespace().count() as u128).sum()
}

async fn leased(gate: &Gate, channel: &Channel) -> Option<String> {
    let (_, all) = gate.admin_get("/channels").await?;
    let id = format!("{:#x}", channel.id);
    let line = all.lines().find(|line| line.contains(&id))?;
    serde_json::from_str::<Value>(line).ok()?["leased"].as_str().map(ToOwned::to_owned)
}

/// Closes by the second gate what the first has served: what the chain pays out.
async fn closed(fleet: &Fleet, channel: &Channel, signed: u128) -> u128 {
    let offer = fleet.bed.fresh().await;
    let close = channel.close_credential(&offer, signed);
    let done = common::eventually(SHORT, || async {
        let reply = raw::exchange(fleet.second.listen, &raw::post(CHAT, &[("authorization", &close)], b"")).await;
        reply.status == 204
    });
    assert!(done.await, "the channel is not closed");
    let events = fleet.bed.reserve.events(&channel.id).await;
    let paid = events.iter().find_map(|e| match e {
        Event::Closed { settled, .. } => Some(*settled),
        _ => None,
    });
    paid.expect("closed on chain")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voucher_shown_to_one_gate_wakes_the_stream_of_the_other() {
    woken_by_the_other(Line::Plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_whose_redis_speaks_tls_shares_its_channels_all_the_same() {
    woken_by_the_other(Line::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_prove_who_it_is_is_not_spoken_to() {
    common::init();
    let redis = redis(Line::Tls);
    let mine = redis.dir.path().join("cert.pem");
    let mine = mine.to_str().unwrap();
    for (url, roots, says, why) in [
        ("rediss://:pass-canary@127.0.0.1", "", "invalid peer certificate: UnknownIssuer", "nobody vouches for it"),
        ("rediss://:pass-canary@localhost", mine, "not valid for name", "it is not who it says"),
        ("rediss://:pass-canary@127.0.0.1", mine, "#insecure", "the operator must not switch the check off"),
        ("redis://:pass-canary@127.0.0.1", mine, "Redis cannot be reached", "it speaks nothing but TLS"),
    ] {
        let end = if says == "#insecure" { "/#insecure" } else { "/" };
        let url = format!("{url}:{}{end}", redis.port);
        let options = GateOptions::new("http://127.0.0.1:9/", "http://127.0.0.1:9")
            .conf_edit("kind = \"embedded\"", "kind = \"redis\"\nurl = \"env:REDIS_URL\"")
            .env("REDIS_URL", &url)
            .env("SSL_CERT_FILE", roots)
            .wait(common::gate::Wait::Alive);
        let said = Gate::try_start(options).await.err().unwrap_or_else(|| panic!("{why}: it started"));
        assert!(said.contains(says), "{why}: {said}");
        assert!(!said.contains("pass-canary"), "{said}");
    }
}

async fn woken_by_the_other(line: Line) {
    let fleet = fleet_on(line, 120).await;
    let (channel, _) = fleet.bed.channel(1_000_000, 0).await;
    let (offer, start) = fleet.bed.offer(CHAT, &serde_json::from_str(&long(120)).unwrap()).await;
    let mut stream = begin(fleet.bed.gate.listen, &channel.voucher_credential(&offer, start), 120).await;
    assert!(stream.until(b"payment-need-voucher", SHORT).await, "{}", text(&stream));
    let voucher = channel.voucher_credential(&offer, 100_000);
    let told = raw::exchange(fleet.second.listen, &raw::post(CHAT, &[("authorization", &voucher)], b"")).await;
    assert_eq!(told.status, 204, "{}", told.text());
    assert!(stream.until(b"event: payment-receipt", SHORT).await, "{}", text(&stream));
    let _ = stream.more(Duration::from_millis(300)).await;
    let receipt = final_receipt(&text(&stream)).expect("a receipt");
    let due = 3 * INPUT + 120 * OUTPUT;
    assert_eq!(atoms(&receipt["charged"]), due, "{receipt}");
    assert_eq!(closed(&fleet, &channel, 100_000).await, due);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_used_at_both_gates_at_once_sells_no_more_than_was_signed() {
    let fleet = fleet(120).await;
    // Cover for three starts and a half.
    let signed = (3 * INPUT + 32 * OUTPUT + 16 * INPUT) * 7 / 2;
    let (channel, _) = fleet.bed.channel(1_000_000, signed).await;
    let mut lines = Vec::new();
    for n in 0..12 {
        let offer = fleet.bed.fresh().await;
        let listen = if n % 2 == 0 { fleet.bed.gate.listen } else { fleet.second.listen };
        lines.push((listen, channel.voucher_credential(&offer, signed)));
    }
    let tries = lines.into_iter().map(|(listen, credential)| {
        tokio::spawn(async move {
            let mut line = begin(listen, &credential, 120).await;
            while line.more(SHORT).await.is_some_and(|n| n > 0) {
                if text(&line).ends_with("0\r\n\r\n") || !text(&line).starts_with("HTTP/1.1 200") {
                    break;
                }
            }
            text(&line)
        })
    });
    let mut delivered = 0;
    let mut served = 0;
    for attempt in tries.collect::<Vec<_>>() {
        let said = attempt.await.unwrap();
        if said.starts_with("HTTP/1.1 200") {
            served += 1;
            delivered += 3 * INPUT + words(&said) * OUTPUT;
        }
    }
    assert!((1..=3).contains(&served), "{served} streams on cover for three and a half");
    assert!(delivered <= signed, "{delivered} of {signed}");
    let free = common::eventually(SHORT, || async { leased(&fleet.second, &channel).await.as_deref() == Some("0") });
    assert!(free.await);
    assert!(closed(&fleet, &channel, signed).await <= signed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gate_that_died_for_good_had_leased_is_ended_by_the_other() {
    let mut fleet = fleet(2_000).await;
    let (channel, offer) = fleet.bed.channel(1_000_000, 0).await;
    let mut stream = begin(fleet.second.listen, &channel.voucher_credential(&offer, 400_000), 2_000).await;
    assert!(stream.until(b"tok20", SHORT).await, "{}", text(&stream));
    fleet.second.kill();
    assert_ne!(leased(&fleet.bed.gate, &channel).await.as_deref(), Some("0"), "its lease outlives it at first");
    let ended = common::eventually(Duration::from_secs(90), || async {
        leased(&fleet.bed.gate, &channel).await.as_deref() == Some("0")
    });
    assert!(ended.await, "the payer's money is held for a gate that is gone");
    let spent = {
        let (_, all) = fleet.bed.gate.admin_get("/channels").await.expect("alive");
        let id = format!("{:#x}", channel.id);
        let line = all.lines().find(|line| line.contains(&id)).expect("listed").to_owned();
        atoms(&serde_json::from_str::<Value>(&line).unwrap()["spent"])
    };
    let came = 3 * INPUT + words(&text(&stream)) * OUTPUT;
    // At this pace a window is the largest there is; some words were still on their way.
    assert!(spent <= came + (256 + 80) * OUTPUT, "{spent} for {came} and a window");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journals_of_two_gates_add_up_to_what_their_channel_was_closed_at() {
    let mut fleet = fleet(30).await;
    for (gate, accepts) in [(&fleet.bed.gate, false), (&fleet.second, true)] {
        assert_eq!(gate.status().await["store"]["accept_data_loss"], json!(accepts), "what its operator accepts shows");
        assert_eq!(gate.metric("pontage_store_unsafe", &[]).await, f64::from(u8::from(accepts)));
    }
    let (channel, _) = fleet.bed.channel(1_000_000, 0).await;
    let mut sold = 0;
    for listen in [fleet.bed.gate.listen, fleet.second.listen] {
        let offer = fleet.bed.fresh().await;
        let mut line = begin(listen, &channel.voucher_credential(&offer, 400_000), 30).await;
        assert!(line.until(b"event: payment-receipt", SHORT).await, "{}", text(&line));
        let _ = line.more(Duration::from_millis(300)).await;
        sold += atoms(&final_receipt(&text(&line)).expect("a receipt")["charged"]);
    }
    assert_eq!(closed(&fleet, &channel, 400_000).await, sold);
    fleet.bed.gate.stop().await;
    fleet.second.stop().await;
    let other = fleet.second.dir().join("var/pontage.redb");
    let other = other.to_str().unwrap();
    let (status, said, complaint) = fleet.bed.gate.verb(&["audit", "--store", "var/pontage.redb", "--store", other]);
    assert!(status.success(), "{said}{complaint}");
    let line = said.lines().find(|line| line.starts_with("channel ")).expect("the channel is listed");
    assert!(line.contains(&format!(" {sold} atoms charged by 2 gates")), "{said}");
    assert!(line.ends_with(&format!("closed at {sold}")), "{said}");
    // Without the gate that opened the channel the books are not whole.
    let (alone, said, _) = fleet.bed.gate.verb(&["audit", "--store", other, "--store", other]);
    assert!(!alone.success() && said.contains("was opened 0 times"), "{said}");
}
