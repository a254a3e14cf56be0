//! Two gates on one Redis: a channel is one channel, whichever of them is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{CHAT, INPUT, OUTPUT, SessionBed, atoms, chat, final_receipt, streamed};
use common::reserve::Event;
use common::wallet::Channel;
use common::{Fault, Gate, GateOptions, Raw, RpcProxy, free_port, ledger, raw};
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
    /// The second gate's own way to the chain.
    rpc: RpcProxy,
    redis: Redis,
}

async fn fleet(tokens: u64) -> Fleet {
    fleet_on(Line::Plain, tokens).await
}

async fn fleet_on(line: Line, tokens: u64) -> Fleet {
    fleet_with(line, tokens, None, false).await
}

/// With a `holder`, the second gate reaches Redis through it. A stream that stands still `waits`, or is given up soon.
async fn fleet_with(line: Line, tokens: u64, holder: Option<&std::sync::Arc<Holder>>, waits: bool) -> Fleet {
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
        let options = if waits { common::channels::patient(options) } else { options };
        kept = Some(options.clone());
        options
    })
    .await;
    bed.backend.tune(|script| (script.tokens, script.per_token) = (tokens, Duration::from_millis(10)));
    // Its operator accepts what the first one's does not, and Redis never makes use of it.
    let accepting = "kind = \"redis\"\naccept_data_loss = true";
    let mut options = kept.expect("options").conf_edit("kind = \"redis\"", accepting);
    if let Some(holder) = holder {
        let port = std::sync::Arc::clone(holder).before(redis.port).await;
        options = options.env("REDIS_URL", &format!("redis://127.0.0.1:{port}/"));
    }
    let rpc = RpcProxy::start(&bed.reserve.url()).await;
    options.rpc = rpc.url();
    let second = Gate::start(options).await;
    Fleet { bed, second, rpc, redis }
}

/// Between a gate and Redis: passes everything, until it is told to hold the answer to the next change that leaves a receipt.
#[derive(Default)]
struct Holder {
    armed: std::sync::atomic::AtomicBool,
    /// The change is made, and nobody hears so.
    holds: tokio::sync::Notify,
}

impl Holder {
    async fn before(self: std::sync::Arc<Self>, port: u16) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(std::sync::Arc::clone(&self).pass(client, server));
            }
        });
        own
    }

    async fn pass(self: std::sync::Arc<Self>, mut client: tokio::net::TcpStream, mut server: tokio::net::TcpStream) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut asked, mut said) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let (mut take, mut heard) = (false, String::new());
        loop {
            tokio::select! {
                n = client.read(&mut asked) => {
                    let Ok(n @ 1..) = n else { return };
                    // A command may come in pieces.
                    heard.push_str(&String::from_utf8_lossy(&asked[..n]));
                    let sells = heard.rfind("XADD").is_some_and(|at| heard[at..].contains("\"entry\":\"receipt\""));
                    take |= sells && self.armed.swap(false, std::sync::atomic::Ordering::SeqCst);
                    if server.write_all(&asked[..n]).await.is_err() { return }
                }
                n = server.read(&mut said) => {
                    let Ok(n @ 1..) = n else { return };
                    if take {
                        self.holds.notify_one();
                        // Until the gate is gone.
                        while let Ok(1..) = client.read(&mut asked).await {}
                        return;
                    }
                    if client.write_all(&said[..n]).await.is_err() { return }
                }
            }
        }
    }
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
    let fleet = fleet_with(line, 120, None, true).await;
    let (channel, _) = fleet.bed.channel(1_000_000, 0).await;
    let (offer, start) = fleet.bed.offer(CHAT, &serde_json::from_str(&long(120)).unwrap()).await;
    let mut stream = begin(fleet.bed.gate.listen, &channel.voucher_credential(&offer, start), 120).await;
    assert!(stream.until(b"payment-need-voucher", SHORT).await, "{}", text(&stream));
    let voucher = channel.voucher_credential(&offer, 100_000);
    let told = raw::exchange(fleet.second.listen, &raw::post(CHAT, &[("authorization", &voucher)], b"")).await;
    assert_eq!(told.status, 204, "{}", told.text());
    assert!(stream.until(b"event: payment-receipt", SHORT).await, "{}", text(&stream));
    assert!(stream.until(b"\r\n0\r\n\r\n", SHORT).await, "{}", text(&stream));
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
    // So far on that a window is little beside what came.
    assert!(stream.until(b"tok200", SHORT).await, "{}", text(&stream));
    fleet.second.kill();
    assert!(stream.closed(SHORT).await);
    assert_ne!(leased(&fleet.bed.gate, &channel).await.as_deref(), Some("0"), "its lease outlives it at first");
    let ended = common::eventually(Duration::from_secs(90), || async {
        leased(&fleet.bed.gate, &channel).await.as_deref() == Some("0")
    });
    assert!(ended.await, "the payer's money is held for a gate that is gone");
    let spent = spent(&fleet.bed.gate, &channel).await;
    let came = 3 * INPUT + words(&text(&stream)) * OUTPUT;
    // A window is half a second of words; between two figures of the backend's a vocabulary takes each for two tokens.
    assert!(spent <= came + 80 * OUTPUT, "{spent} for {came} and a window");
    assert!(
        came <= spent + 16 * OUTPUT,
        "{spent} for {came}: what left while a window was being written is all that is free"
    );
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
        assert!(line.until(b"\r\n0\r\n\r\n", SHORT).await, "{}", text(&line));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_shows_though_nobody_asks_the_gate_for_anything() {
    let mut fleet = fleet(1).await;
    let gate = &fleet.bed.gate;
    let standing = async || (gate.metric("pontage_store_up", &[]).await, gate.metric("pontage_ready", &[]).await);
    assert_eq!(standing().await, (1.0, 1.0));
    fleet.redis.child.kill().unwrap();
    let gone = common::eventually(Duration::from_secs(90), async || standing().await == (0.0, 0.0));
    assert!(gone.await, "{:?}", standing().await);
    let (status, why) = gate.admin_get("/readyz").await.expect("alive");
    assert!(status == 503 && why.contains("store: "), "{why}");
    assert_eq!(gate.metric("pontage_requests_total", &[("outcome", "store_unavailable")]).await, 0.0);
}

/// What a channel has spent, as a gate lists it.
async fn spent(gate: &Gate, channel: &Channel) -> u128 {
    let (_, all) = gate.admin_get("/channels").await.expect("alive");
    let id = format!("{:#x}", channel.id);
    let line = all.lines().find(|line| line.contains(&id)).expect("listed").to_owned();
    atoms(&serde_json::from_str::<Value>(&line).unwrap()["spent"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_whose_gate_was_killed_before_it_wrote_it_down_is_written_once_and_doubted() {
    for comes_back in [true, false] {
        let holder = std::sync::Arc::new(Holder::default());
        let mut fleet = fleet_with(Line::Plain, 30, Some(&holder), false).await;
        let (channel, _) = fleet.bed.channel(1_000_000, 0).await;
        let offer = fleet.bed.fresh().await;
        holder.armed.store(true, std::sync::atomic::Ordering::SeqCst);
        let mut line = Raw::connect(fleet.second.listen).await;
        let voucher = channel.voucher_credential(&offer, 400_000);
        line.send(&raw::post(CHAT, &[("authorization", &voucher)], chat().to_string().as_bytes())).await;
        let held = tokio::time::timeout(SHORT, holder.holds.notified()).await;
        fleet.second.kill();
        assert!(held.is_ok(), "{}", text(&line));
        assert!(line.closed(SHORT).await);
        assert_eq!(text(&line), "", "nothing has left");
        let charged = spent(&fleet.bed.gate, &channel).await;
        assert!(charged > 0, "what is spent never shrinks");
        if comes_back {
            fleet.second.restart().await;
        } else {
            let taken = common::eventually(Duration::from_secs(120), || async {
                fleet.bed.gate.log().contains("its lines are written here")
            });
            assert!(taken.await, "nobody looks after it: {}", fleet.bed.gate.log());
        }
        let close = channel.close_credential(&fleet.bed.fresh().await, 400_000);
        let done = common::eventually(SHORT, || async { fleet.bed.manage(&close).await.status == 204 });
        assert!(done.await, "the channel is not closed");
        fleet.bed.gate.stop().await;
        if comes_back {
            fleet.second.stop().await;
        }
        let other = fleet.second.dir().join("var/pontage.redb");
        let stores = ["audit", "--store", "var/pontage.redb", "--store", other.to_str().unwrap()];
        let (status, said, complaint) = fleet.bed.gate.verb(&stores);
        assert!(status.success(), "{said}{complaint}");
        assert!(said.contains(&format!("{charged} atoms charged by 1 gates")), "{said}");
        assert!(said.contains(&format!("closed at {charged}\n")) && said.contains("; 1 receipts\n"), "{said}");
        let doubted: Vec<&str> = said.lines().filter(|line| line.starts_with("doubted ")).collect();
        let about = format!("charged {charged} atoms");
        assert!(matches!(doubted[..], [line] if line.contains(&about)), "comes back: {comes_back}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_whose_node_has_not_heard_of_the_other_gates_opening_sends_nobody_to_open_again() {
    let fleet = fleet(10).await;
    let old = fleet.bed.chain.block_number().await;
    let on = common::eventually(SHORT, || async { fleet.bed.chain.block_number().await > old + 6 });
    assert!(on.await, "the chain stands still");
    fleet.rpc.always("*", Fault::Behind(5));
    let show = |credential: String, body: Vec<u8>| {
        let second = fleet.second.listen;
        async move { raw::exchange(second, &raw::post(CHAT, &[("authorization", &credential)], &body)).await }
    };
    for (body, what) in [(chat(), "a plain answer"), (streamed(), "a stream")] {
        let (channel, offer) = fleet.bed.channel(20_000, 1_000).await;
        fleet.rpc.forget();
        let reply = show(channel.voucher_credential(&offer, 10_000), body.to_string().into_bytes()).await;
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        assert!(fleet.rpc.count("eth_call") > 0, "{what}: the node behind was asked");
        let opened = fleet.bed.reserve.events(&channel.id).await;
        assert!(matches!(opened[..], [Event::Opened { .. }]), "{what}: {opened:?}");

        // A top-up that such a node cannot try may have been sent: its payer is told to come again, not to sign another.
        let more = channel.top_up_credential(&offer, 5_000);
        let mut told = Vec::new();
        let done = loop {
            let reply = show(more.clone(), Vec::new()).await;
            if reply.status == 204 {
                break reply;
            }
            assert!([409, 503].contains(&reply.status), "{what}: {}", reply.text());
            assert!(reply.header("www-authenticate").is_none(), "{what}: it asks for money: {}", reply.text());
            told.push(reply.status);
            assert!(told.len() < 200, "{what}: never taken: {told:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        assert!(done.header("payment-receipt").is_some(), "{what}");
        assert_eq!(fleet.bed.reserve.state(&channel.id).await.deposit, 25_000, "{what}: once");
    }
}
