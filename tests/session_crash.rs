//! SIGKILL under streaming load: of the gate, and of the Redis that gates share. No voucher that was acknowledged is lost, nothing is
//! served beyond one window without cover, nobody is charged beyond what was used and one window, and the books agree.
//!
//! `PONTAGE_CRASH_ROUNDS` sets how often (`make test-crash` takes 50 of the gate and 20 of Redis).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{CHAT, INPUT, OUTPUT, SessionBed, atoms, final_receipt, offered, streamed};
use common::reserve::Event;
use common::wallet::Channel;
use common::{GateOptions, Raw, ledger, payer, raw};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Tokens of each stream, by channel: on the first they come to their end, on the others a kill cuts them off far beyond a window.
const LENGTHS: [u64; 3] = [60, 1_000, 1_000];
/// Streams at once on each channel.
const STREAMS: usize = 2;
/// Words of a prompt.
const PROMPT: u128 = 3;
/// A word every so often: 100 in a second, so that a window is some 50 of them.
const PER_TOKEN: Duration = Duration::from_millis(10);
/// The largest window at that pace, with room for a clock that hesitates.
const WINDOW: u128 = 60 * OUTPUT;
/// What may leave while a window is being written down.
const UNTOLD: u128 = 16 * OUTPUT;
const SHORT: Duration = Duration::from_secs(20);

/// One payer's channel and what he knows of it.
struct Purse {
    channel: Channel,
    /// Tokens of each of its streams.
    tokens: u64,
    /// The most that was signed and sent, and the most that was acknowledged.
    signed: Mutex<u128>,
    acknowledged: Mutex<u128>,
    came: Mutex<Came>,
}

/// What came of streams.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    /// Streams that came to their end, and atoms on their receipts.
    whole: u128,
    charged: u128,
    /// Streams that were cut off, and what their words and prompts cost.
    cut: u128,
    delivered: u128,
}

impl Came {
    fn since(self, before: Self) -> Self {
        Self {
            whole: self.whole - before.whole,
            charged: self.charged - before.charged,
            cut: self.cut - before.cut,
            delivered: self.delivered - before.delivered,
        }
    }

    /// Holds `spent` of one channel to what came, beside so many windows: of a stream that was cut off at most one is charged that did
    /// not come, of one whose first word was on its way the prompt too. What left while a window was being told is all that is free.
    fn assert_paid(self, spent: u128, windows: u128, when: &str) {
        let came = self.charged + self.delivered;
        assert!(
            spent <= came + windows.max(self.cut) * (WINDOW + PROMPT * INPUT),
            "{when}: charged beyond what came and a window a stream: {spent} for {came}: {self:?}"
        );
        assert!(came <= spent + self.cut * UNTOLD, "{when}: served beyond what is paid: {spent} for {came}: {self:?}");
    }
}

impl Purse {
    /// Signs at least this much, and never less than before.
    fn sign(&self, least: u128) -> u128 {
        let mut signed = self.signed.lock().unwrap();
        *signed = (*signed).max(least).min(self.channel.deposit);
        *signed
    }

    fn acknowledge(&self, amount: u128) {
        let mut known = self.acknowledged.lock().unwrap();
        *known = (*known).max(amount);
    }
}

/// Words that left in a stream.
fn words(text: &str) -> u128 {
    let deltas = ledger::events(text).into_iter().flat_map(|e| e["choices"].as_array().cloned().unwrap_or_default());
    deltas.map(|c| c["delta"]["content"].as_str().unwrap_or("").split_whitespace().count() as u128).sum()
}

/// The newest amount a stream asks a voucher for.
fn asked(text: &str) -> Option<u128> {
    let at = text.rfind("event: payment-need-voucher\ndata: ")?;
    let line = text[at..].lines().nth(1)?.strip_prefix("data: ")?;
    Some(atoms(&serde_json::from_str::<Value>(line).ok()?["requiredCumulative"]))
}

/// One stream after the other on a channel until told to stop, however the gate behaves.
async fn work(listen: SocketAddr, purse: Arc<Purse>, stop: Arc<AtomicBool>) {
    let mut body = streamed();
    body["max_tokens"] = json!(purse.tokens);
    let text = body.to_string();
    let id = format!("{:#x}", purse.channel.id);
    while !stop.load(Ordering::Relaxed) {
        let probe = raw::post(CHAT, &[("payment-session", &id)], text.as_bytes());
        let unpaid = match raw::try_exchange(listen, &probe).await {
            Some(reply) if reply.status == 402 => reply,
            _ => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (offer, amount) = offered(&unpaid);
        let snapshot = &payer::terms(&offer)["methodDetails"]["sessionSnapshot"];
        let required = if snapshot.is_null() { amount } else { atoms(&snapshot["requiredCumulative"]) };
        let shown = purse.sign(required);
        let credential = purse.channel.voucher_credential(&offer, shown);
        let Ok(stream) = tokio::net::TcpStream::connect(listen).await else { continue };
        drop(stream);
        let mut line = Raw::connect(listen).await;
        if !line.try_send(&raw::post(CHAT, &[("authorization", &credential)], text.as_bytes())).await {
            continue;
        }
        let mut answered = 0;
        let said = loop {
            let more = line.more(SHORT).await;
            let said = String::from_utf8_lossy(&line.seen).into_owned();
            if said.starts_with("HTTP/1.1 200") {
                purse.acknowledge(shown);
            }
            if let Some(wanted) = asked(&said).filter(|wanted| *wanted > answered) {
                answered = wanted;
                let signed = purse.sign(wanted);
                let voucher = purse.channel.voucher_credential(&offer, signed);
                let told = raw::try_exchange(listen, &raw::post(CHAT, &[("authorization", &voucher)], b"")).await;
                if told.is_some_and(|reply| reply.status == 204) {
                    purse.acknowledge(signed);
                }
            }
            // A refusal has a length and leaves the connection open.
            let refused = said.contains("\r\n\r\n") && !said.starts_with("HTTP/1.1 200");
            if more.is_none_or(|n| n == 0) || refused || said.ends_with("0\r\n\r\n") {
                break said;
            }
        };
        if !said.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        // Chunk frames of HTTP stand between the events; the events themselves are whole.
        let plain = dechunked(&said);
        let used = PROMPT * INPUT + words(&plain) * OUTPUT;
        match final_receipt(&plain) {
            Some(receipt) => {
                assert_eq!(atoms(&receipt["charged"]), used, "{receipt}");
                let mut came = purse.came.lock().unwrap();
                (came.whole, came.charged) = (came.whole + 1, came.charged + used);
            }
            None => {
                let mut came = purse.came.lock().unwrap();
                (came.cut, came.delivered) = (came.cut + 1, came.delivered + used);
            }
        }
    }
}

/// The body of a chunked answer, as far as it came.
fn dechunked(reply: &str) -> String {
    let Some((_, mut rest)) = reply.split_once("\r\n\r\n") else { return String::new() };
    let mut body = String::new();
    while let Some((size, data)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        body.push_str(data.get(..size).unwrap_or(data));
        match data.get(size + 2..) {
            Some(next) if size > 0 => rest = next,
            _ => break,
        }
    }
    body
}

/// A word of the backend's is a token of its own count and two of any vocabulary: windows are to be what it says.
fn counted_by_the_backend(options: GateOptions) -> GateOptions {
    options.rule_edit("models.toml", "vocabulary = \"o200k\"\n", "")
}

async fn purses(bed: &SessionBed) -> Vec<Arc<Purse>> {
    let mut purses = Vec::new();
    for tokens in LENGTHS {
        let (channel, _) = bed.channel(3_000_000, 1_000).await;
        purses.push(Arc::new(Purse {
            channel,
            tokens,
            signed: Mutex::new(1_000),
            acknowledged: Mutex::new(1_000),
            came: Mutex::default(),
        }));
    }
    purses
}

fn begin(bed: &SessionBed, purses: &[Arc<Purse>], stop: &Arc<AtomicBool>) -> tokio::task::JoinSet<()> {
    let mut workers = tokio::task::JoinSet::new();
    for purse in purses {
        for _ in 0..STREAMS {
            workers.spawn(work(bed.gate.listen, Arc::clone(purse), Arc::clone(stop)));
        }
    }
    workers
}

/// What the gate's own list says of a channel.
async fn listed(bed: &SessionBed, purse: &Purse) -> Value {
    let id = format!("{:#x}", purse.channel.id);
    let mut last = Value::Null;
    let found = common::eventually(SHORT, || {
        let id = id.clone();
        async move {
            let Some((200, all)) = bed.gate.admin_get("/channels").await else { return false };
            all.lines().any(|line| line.contains(&id))
        }
    });
    assert!(found.await, "the channel is not listed");
    if let Some((_, all)) = bed.gate.admin_get("/channels").await {
        last = all.lines().find(|l| l.contains(&id)).and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    }
    last
}

/// Closes everything and compares: chain, books, clients, backend.
async fn settle(mut bed: SessionBed, purses: &[Arc<Purse>], blows: u64, windows: u128) {
    let mut paid_out = 0;
    let (mut whole, mut cut) = (0, 0);
    for purse in purses {
        let free = common::eventually(Duration::from_secs(90), || async { listed(&bed, purse).await["leased"] == "0" });
        assert!(free.await, "a lease is never given back");
        let offer = bed.fresh().await;
        let close = purse.channel.close_credential(&offer, purse.sign(0));
        let done = common::eventually(SHORT, || async { bed.manage(&close).await.status == 204 });
        assert!(done.await, "the channel cannot be closed: {}", bed.manage(&close).await.text());
        let events = bed.reserve.events(&purse.channel.id).await;
        let settled = events.iter().find_map(|e| match e {
            Event::Closed { settled, .. } => Some(*settled),
            _ => None,
        });
        let settled = settled.expect("closed");
        let came = *purse.came.lock().unwrap();
        assert!(settled >= came.charged, "receipts were given over {came:?}, paid out is {settled}");
        came.assert_paid(settled, windows, "in the end");
        assert!(settled <= *purse.signed.lock().unwrap());
        (whole, cut) = (whole + came.whole, cut + came.cut);
        paid_out += settled;
    }
    let most = bed.served() as u128 * PROMPT * INPUT + u128::from(bed.backend.tokens_produced()) * OUTPUT;
    let hidden = LENGTHS.len() as u128 * windows * WINDOW;
    assert!(paid_out <= most + hidden, "{paid_out} paid out of {most} that the backend made");
    assert!(whole > 0, "the load was no load");
    bed.gate.stop().await;
    let books = ledger::books(&bed.gate);
    assert_eq!(books.charged, paid_out, "the books, and what the chain paid out: {books:?}");
    assert_eq!(bed.reserve.locked().await, 0);
    println!("{blows} blows: {whole} streams whole, {cut} cut off, {paid_out} atoms paid out of {most} made");
}

fn rounds(usual: u64) -> u64 {
    std::env::var("PONTAGE_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_killed_under_streaming_load_loses_no_voucher_and_charges_no_more_than_a_window() {
    let rounds = rounds(6);
    let mut bed = SessionBed::with(counted_by_the_backend).await;
    bed.backend.tune(|script| (script.tokens, script.per_token) = (1_000, PER_TOKEN));
    let purses = purses(&bed).await;
    let mut chance = TestRunner::default();
    // What had come by the blow before, and what was charged for it.
    let mut before = [(Came::default(), 0); LENGTHS.len()];
    let mut windows = 0;
    for round in 0..rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = begin(&bed, &purses, &stop);
        let (served, produced) = (bed.served(), bed.backend.tokens_produced());
        assert!(common::eventually(SHORT, || async { bed.served() > served + 3 }).await, "round {round}: no load");
        let whole = || purses.iter().any(|purse| purse.came.lock().unwrap().whole > 0);
        // Once a stream may come to its end.
        assert!(round > 0 || common::eventually(SHORT, || async { whole() }).await, "no stream is whole");
        // Now at their beginning, now so late that a window is little beside what came of a long stream.
        let late = round % 2 == 1;
        let well_on = || bed.backend.tokens_produced() > produced + 150 * (STREAMS * LENGTHS.len()) as u64;
        assert!(!late || common::eventually(SHORT, || async { well_on() }).await, "round {round}: they stand still");
        let pause = (0u64..1_000).new_tree(&mut chance).unwrap().current();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        bed.gate.kill();
        stop.store(true, Ordering::Relaxed);
        workers.join_all().await;
        bed.gate.restart().await;
        // First words may come in a heap, and look like a faster pace.
        let hidden = if late { 1 } else { 2 } * STREAMS as u128;
        let mut cut_short = 0;
        for (n, purse) in purses.iter().enumerate() {
            let now = listed(&bed, purse).await;
            // Everything that was acknowledged up to the last moment.
            let (accepted, known) = (atoms(&now["accepted"]), *purse.acknowledged.lock().unwrap());
            assert!(
                accepted >= known,
                "round {round}: {known} was acknowledged, {accepted} is known after the restart"
            );
            assert_eq!(now["leased"], "0", "round {round}: nobody holds a lease");
            let (came, spent) = (*purse.came.lock().unwrap(), atoms(&now["spent"]));
            let (came_before, spent_before) = std::mem::replace(&mut before[n], (came, spent));
            let (came, spent) = (came.since(came_before), spent - spent_before);
            came.assert_paid(spent, hidden, &format!("round {round}"));
            cut_short += came.delivered;
        }
        windows += hidden;
        let most = LENGTHS.len() as u128 * hidden * WINDOW;
        assert!(!late || cut_short > most, "round {round}: {cut_short} could hide in windows of {most}");
    }
    settle(bed, &purses, rounds, windows).await;
}

/// A `redis-server` of the test's own, ended by its process id.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    fn start() -> Self {
        let mut server = Self { dir: tempfile::tempdir().unwrap(), port: common::free_port(), child: None };
        server.again();
        server
    }

    fn again(&mut self) {
        let settings = ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"];
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--maxmemory-policy",
                "noeviction",
            ])
            .args(settings)
            .args(["--dir", self.dir.path().to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is missing: install Debian's redis-server");
        self.child = Some(child);
        let end = std::time::Instant::now() + SHORT;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(std::time::Instant::now() < end, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_killed_under_streaming_load_comes_back_with_everything_acknowledged() {
    let rounds = rounds(3).min(20);
    let mut redis = Server::start();
    let url = format!("redis://127.0.0.1:{}/", redis.port);
    let bed = SessionBed::with(|options| {
        counted_by_the_backend(options)
            .conf_edit("kind = \"embedded\"", "kind = \"redis\"\nurl = \"env:REDIS_URL\"")
            .env("REDIS_URL", &url)
    })
    .await;
    // No stream is so long that the last ones are waited for.
    bed.backend.tune(|script| (script.tokens, script.per_token) = (200, PER_TOKEN));
    let purses = purses(&bed).await;
    let mut chance = TestRunner::default();
    let stop = Arc::new(AtomicBool::new(false));
    let workers = begin(&bed, &purses, &stop);
    for round in 0..rounds {
        let served = bed.served();
        assert!(common::eventually(SHORT, || async { bed.served() > served + 3 }).await, "round {round}: no load");
        let pause = (0u64..1_200).new_tree(&mut chance).unwrap().current();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        redis.kill();
        // What was on its way when it died is acknowledged by now, or never.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let known: Vec<u128> = purses.iter().map(|p| *p.acknowledged.lock().unwrap()).collect();
        redis.again();
        for (purse, known) in purses.iter().zip(known) {
            let accepted = atoms(&listed(&bed, purse).await["accepted"]);
            assert!(
                accepted >= known,
                "round {round}: {known} was acknowledged, {accepted} is known after the restart"
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    workers.join_all().await;
    settle(bed, &purses, rounds, u128::from(rounds) * STREAMS as u128).await;
}
