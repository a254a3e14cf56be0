//! What sessions cost, whole processes in one run: the gate against the smallest proxy Pingora can be, both before the same backend.
//! Prints ratios; nothing here passes or fails on a time.
//!
//!     cargo bench --bench session [-- calls|streams|paused|crowd|first]
//!
//! - `calls`: CPU of a JSON request that is paid with a new voucher of an open channel, durably, by 64 clients at once.
//! - `streams`: instructions of a stream of 200 events, its channel vouchered ahead, counted by valgrind.
//! - `paused`: memory of a stream that stands still for want of a voucher.
//! - `first`: time to the first token of a stream, paid with a new voucher, beyond what its backend takes and its durable write.
//! - `crowd`: 1,000 streams of 30 tokens a second at once, vouchered ahead: whether any stood still, and what they cost.
//!
//! Channels are in the books before the gate starts, and the chain says what they hold: opening one is not what is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bed;

use bed::backend::{self, Kind};
use bed::payer::{LeaseWrites, Payer, Wire, offer, plant, words};
use bed::{Gate, Running, asked, bare, free_address, median, request_body, until};
use mpp::PaymentChallenge;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is signed ahead for a stream, in atoms: more than one can cost.
const MORE: u128 = 1_000_000;
/// What a JSON request must hold to start, and what it then costs: payers sign for the first, and then for what they spent.
const START: u128 = 420;
const COST: u128 = 84;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    backend::play(&arguments);
    let wanted = |part| arguments.is_empty() || arguments.contains(&part);
    if wanted("calls") {
        calls();
    }
    if wanted("streams") {
        streams();
    }
    if wanted("paused") {
        paused();
    }
    if wanted("crowd") {
        crowd();
    }
    if wanted("first") {
        first();
    }
}

/// Waits until both answer; the gate's offer.
fn ready(gate: &Gate, bare: Option<SocketAddr>, body: &str) -> PaymentChallenge {
    let mut found = None;
    until("the gate offers a session (what it says against that is above)", 120, || {
        found = asked(gate.listen, body).filter(|(status, _)| *status == 402).and_then(|(_, head)| offer(&head));
        found.is_some()
    });
    if let Some(bare) = bare {
        until("bare Pingora proxies", 120, || asked(bare, body).is_some_and(|(status, _)| status == 200));
    }
    found.unwrap()
}

/// 64 connections, each with channels of its own that it uses in turn: the gate takes ten vouchers a second for each.
fn calls() {
    const CLIENTS: usize = 64;
    const CHANNELS: usize = 12;
    const ROUNDS: usize = 3;
    const SECONDS: u64 = 4;
    let scratch = tempfile::tempdir().unwrap();
    let body = request_body();
    let (_backend, backend) = backend::start(Kind::Json);
    let bare_address = free_address();
    let bare = Running::start(&mut bare(bare_address, &backend, &[]));
    let gate = Gate::prepare(scratch.path(), &backend, "tempo/session");
    let mut payers = plant(&gate, (CLIENTS * CHANNELS) as u64, START);
    let running = gate.start();
    let offer = ready(&gate, Some(bare_address), &body);

    println!(
        "a JSON request paid with a voucher, {} bytes; {CLIENTS} connections, {ROUNDS} × {SECONDS} s each\n",
        body.len()
    );
    println!("{:<34} {:>10} {:>12}", "", "req/s", "CPU µs/req");
    let mut costs = [Vec::new(), Vec::new()];
    let sides = [("bare Pingora, proxied", &bare, bare_address), ("gate, session", &running, gate.listen)];
    for round in 0..=ROUNDS {
        for (side, (name, process, address)) in sides.iter().enumerate() {
            let (before, began) = (process.cpu(), Instant::now());
            let end = began + Duration::from_secs(SECONDS);
            let done = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for mine in payers.chunks_mut(CHANNELS) {
                    let (done, offer, body) = (&done, &offer, &body);
                    scope.spawn(move || {
                        let mut wire = Wire::open(*address).unwrap();
                        let mut next = 0;
                        while Instant::now() < end {
                            let payer = &mut mine[next % CHANNELS];
                            let (status, head, said) = wire.ask(&payer.credential(offer, COST), body).unwrap();
                            assert_eq!(status, 200, "{name}: {}", words(&said));
                            assert!(side == 0 || head.contains("payment-receipt:"), "{head}");
                            done.fetch_add(1, Ordering::Relaxed);
                            next += 1;
                        }
                    });
                }
            });
            let done = done.into_inner() as f64;
            let micros = (process.cpu() - before).as_secs_f64() * 1e6 / done;
            // The first round warms both up.
            if round > 0 {
                println!("{name:<34} {:>10.0} {micros:>12.1}", done / began.elapsed().as_secs_f64());
                costs[side].push(micros);
            }
        }
    }
    let [bare_cost, gate_cost] = costs.map(|c| median(&c));
    println!("\nCPU of a session request ÷ CPU of a proxied one: {:.2}   (aim: ≤ 3)", gate_cost / bare_cost);
    running.stop("-TERM");
    books(&gate);
    if has_valgrind() {
        let [bare, gate] = [false, true].map(|session| per_answer(session, Kind::Json, &body));
        println!("instructions, user space, 64 clients: {gate:.0} ÷ {bare:.0} = {:.2}", gate / bare);
    }
    println!();
}

/// The books must hold after whatever was measured.
fn books(gate: &Gate) {
    let audit = pontage::store::embedded::Embedded::audit(&gate.store).unwrap();
    assert!(audit.is_sound(), "{:?} {:?}", audit.broken, audit.faults.first());
}

fn streamed(output: u32) -> String {
    let mut body: serde_json::Value = serde_json::from_str(&request_body()).unwrap();
    body["stream"] = serde_json::json!(true);
    body["max_tokens"] = serde_json::json!(output);
    body.to_string()
}

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

/// Streams of 200 events from four connections, each stream on a channel that is vouchered ahead.
fn streams() {
    const EVENTS: u32 = 200;
    if !has_valgrind() {
        println!("streams: valgrind is missing; install the Debian package valgrind to count them");
        return;
    }
    println!("instructions of a stream of {EVENTS} events, user space, whole process\n");
    for (what, running) in [("usage at the end", false), ("usage on every event", true)] {
        let kind = |events| Kind::Stream { events, gap: Duration::from_millis(4), running };
        let per_stream = |session: bool, events: u32| per_answer(session, kind(events), &streamed(256));
        let [bare_whole, bare_half] = [EVENTS, EVENTS / 2].map(|events| per_stream(false, events));
        let [gate_whole, gate_half] = [EVENTS, EVENTS / 2].map(|events| per_stream(true, events));
        let fixed = |whole: f64, half: f64| 2.0 * half - whole;
        let (bare_fixed, gate_fixed) = (fixed(bare_whole, bare_half), fixed(gate_whole, gate_half));
        println!("{what}:");
        println!("{:>34} {:>12} {:>14} {:>12}", "", "a stream", "of it fixed", "an event");
        for (name, whole, fixed) in
            [("bare Pingora", bare_whole, bare_fixed), ("gate, session", gate_whole, gate_fixed)]
        {
            println!("{name:>34} {whole:>12.0} {fixed:>14.0} {:>12.0}", (whole - fixed) / f64::from(EVENTS));
        }
        println!(
            "{:>34} {:>12.2} {:>14} {:>12.2}   (aim: ≤ 1.1)\n",
            "ratio",
            gate_whole / bare_whole,
            "",
            (gate_whole - gate_fixed) / (bare_whole - bare_fixed)
        );
    }
}

/// Instructions that one answer costs: what many cost more than few, so that start and end of the process do not count.
fn per_answer(session: bool, kind: Kind, body: &str) -> f64 {
    let (few, many) = (4, 20);
    (count(session, kind, many, body) - count(session, kind, few, body)) / (clients(kind) * (many - few)) as f64
}

/// Whole calls by as many at once as share a commit, streams by a few.
fn clients(kind: Kind) -> u64 {
    match kind {
        Kind::Json => 64,
        Kind::Stream { .. } => 4,
    }
}

/// Instructions of a process that serves `each` answers on each of its connections, start and end included.
fn count(session: bool, kind: Kind, each: u64, body: &str) -> f64 {
    let scratch = tempfile::tempdir().unwrap();
    let (_backend, backend) = backend::start(kind);
    // For whoever wants to know where they go.
    let role = match kind {
        Kind::Json => String::new(),
        Kind::Stream { events, running, .. } => {
            format!(".{}{events}{}", if session { "gate" } else { "bare" }, if running { "r" } else { "" })
        }
    };
    let out = std::env::var("CALLGRIND_OUT").ok().filter(|_| session || !role.is_empty());
    let out = out.map_or("/dev/null".to_owned(), |out| format!("{out}{role}.{each}"));
    let out = format!("--callgrind-out-file={out}");
    let before = ["valgrind", "--tool=callgrind", &out];
    let gate = Gate::prepare(scratch.path(), &backend, "tempo/session");
    let mut payers = plant(&gate, clients(kind), MORE);
    let address = if session { gate.listen } else { free_address() };
    let mut command = if session { gate.command(&before) } else { bare(address, &backend, &before) };
    // Valgrind counts every byte that `rep movsb` and `rep stosb` move, which a processor does not: the C library moves by vectors.
    let by_vectors = ["movsb", "stosb"].map(|rep| format!("glibc.cpu.x86_rep_{rep}_threshold={}", usize::MAX / 2));
    let watched = Running::start(command.env("GLIBC_TUNABLES", by_vectors.join(":")).stderr(Stdio::piped()));
    until("it listens", 120, || std::net::TcpStream::connect(address).is_ok());
    let offer = session.then(|| ready(&gate, None, body));
    std::thread::scope(|scope| {
        for payer in &mut payers {
            let offer = &offer;
            scope.spawn(move || {
                let mut wire = Wire::open(address).unwrap();
                for _ in 0..each {
                    let credential = offer.as_ref().map(|offer| payer.credential(offer, MORE)).unwrap_or_default();
                    let (status, _, said) = wire.ask(&credential, body).unwrap();
                    assert_eq!(status, 200, "{}", words(&said));
                    if let Kind::Stream { events, .. } = kind {
                        let said = String::from_utf8_lossy(&said);
                        assert_eq!(said.matches(" bridge").count(), events as usize, "{said}");
                        assert!(!said.contains("need-voucher"), "it stood still: {said}");
                    }
                    // The gate takes ten vouchers a second for a channel.
                    if session && matches!(kind, Kind::Json) {
                        std::thread::sleep(Duration::from_millis(110));
                    }
                }
            });
        }
    });
    let said = watched.stop(if session { "-TERM" } else { "-INT" });
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    let Some(collected) = collected else { panic!("valgrind counted nothing:\n{said}") };
    collected.trim().parse().unwrap()
}

/// Streams whose voucher covers the start and no more.
fn paused() {
    const STREAMS: u64 = 1000;
    println!("memory of a stream that stands still for want of a voucher, {STREAMS} of them\n");
    for (size, bytes) in [("1 KB", 1 << 10), ("60 KB", 60 << 10)] {
        let scratch = tempfile::tempdir().unwrap();
        let (_backend, backend) =
            backend::start(Kind::Stream { events: 400, gap: Duration::from_millis(1), running: false });
        let gate = Gate::prepare(scratch.path(), &backend, "tempo/session");
        let mut payers = plant(&gate, STREAMS, 1);
        let running = gate.start();
        let body = serde_json::json!({
            "model": "openai/gpt-oss-120b", "stream": true, "max_tokens": 1024,
            "messages": [{ "role": "user", "content": "word ".repeat(bytes / 5) }],
        });
        let body = body.to_string();
        let offer = ready(&gate, None, &body);
        let start: u128 = offer.request.decode_value().unwrap()["amount"].as_str().unwrap().parse().unwrap();
        let (first, rest) = payers.split_at_mut(20);
        let mut held = stand_still(first, gate.listen, &offer, start, &body);
        let before = running.resident_kib();
        held.extend(stand_still(rest, gate.listen, &offer, start, &body));
        std::thread::sleep(Duration::from_secs(2));
        let each = (running.resident_kib() - before) * 1024.0 / 1000.0 / rest.len() as f64;
        println!("{size:>8} request: {each:>6.1} KB each   (aim: ≤ 100)");
    }
    println!();
}

/// Starts a stream on each channel, signed for no more than it takes to start, and reads it until it asks for more.
fn stand_still(
    payers: &mut [Payer],
    address: SocketAddr,
    offer: &PaymentChallenge,
    start: u128,
    body: &str,
) -> Vec<Wire> {
    let begin = |payer: &mut Payer| {
        let mut wire = Wire::open(address).unwrap();
        wire.send(&payer.credential(offer, start), body).unwrap();
        let (status, head, length) = wire.head().unwrap();
        if let Some(length) = length {
            panic!("{status} {head}: {}", words(&wire.body(length).unwrap()));
        }
        let mut seen = String::new();
        while !seen.contains("payment-need-voucher") {
            seen.push_str(&String::from_utf8_lossy(&wire.chunk().unwrap()));
        }
        wire
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = payers
            .chunks_mut(payers.len().div_ceil(16))
            .map(|mine| scope.spawn(move || mine.iter_mut().map(begin).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// A thousand streams at once, each on a channel that is vouchered ahead.
fn crowd() {
    const STREAMS: u64 = 1000;
    const SECONDS: u32 = 15;
    const RATE: u32 = 30;
    let events = SECONDS * RATE;
    let scratch = tempfile::tempdir().unwrap();
    let kind = Kind::Stream { events, gap: Duration::from_secs(1) / RATE, running: false };
    let (_backend, backend) = backend::start(kind);
    let bare_address = free_address();
    let bare = Running::start(&mut bare(bare_address, &backend, &[]));
    let gate = Gate::prepare(scratch.path(), &backend, "tempo/session");
    let mut payers = plant(&gate, STREAMS, MORE);
    let running = gate.start();
    let body = streamed(1024);
    let offer = ready(&gate, None, &body);

    println!("{STREAMS} streams of {RATE} tokens a second for {SECONDS} s, vouchered ahead\n");
    println!("{:<20} {:>12} {:>18} {:>18} {:>16}", "", "CPU cores", "stood still", "p99 gap ms", "longest gap ms");
    for (name, process, address) in [("bare Pingora", &bare, bare_address), ("gate, session", &running, gate.listen)] {
        let (before, began) = (process.cpu(), Instant::now());
        let stalls = AtomicU64::new(0);
        let mut gaps: Vec<Duration> = std::thread::scope(|scope| {
            let threads: Vec<_> = payers
                .iter_mut()
                .enumerate()
                .map(|(at, payer)| {
                    let (offer, body, stalls) = (&offer, &body, &stalls);
                    let work = move || {
                        // Not all in one instant: they arrive within two seconds.
                        std::thread::sleep(Duration::from_millis(2 * at as u64));
                        let mut wire = Wire::open(address).unwrap();
                        wire.send(&payer.credential(offer, MORE), body).unwrap();
                        let (status, head, length) = wire.head().unwrap();
                        if let Some(length) = length {
                            panic!("{status} {head}: {}", words(&wire.body(length).unwrap()));
                        }
                        let (mut seen, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
                        loop {
                            let chunk = wire.chunk().unwrap();
                            if chunk.is_empty() {
                                break;
                            }
                            longest = longest.max(last.elapsed());
                            last = Instant::now();
                            let text = String::from_utf8_lossy(&chunk);
                            seen += text.matches(" bridge").count();
                            let still = text.contains("need-voucher") || text.contains(": waiting for a voucher");
                            stalls.fetch_add(u64::from(still), Ordering::Relaxed);
                        }
                        assert_eq!(seen, events as usize, "{name}: bytes are missing");
                        longest
                    };
                    std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).unwrap()
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        gaps.sort();
        println!(
            "{name:<20} {:>12.2} {:>18} {:>18.0} {:>16.0}",
            (process.cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64(),
            stalls.into_inner(),
            gaps[gaps.len() * 99 / 100].as_secs_f64() * 1e3,
            gaps[gaps.len() - 1].as_secs_f64() * 1e3,
        );
    }
    println!();
    running.stop("-TERM");
    books(&gate);
}

/// One stream after the other, each way in turn, so that a machine that slows down slows all. A channel is used again and again, as
/// agents do; its first use, which reads it from the store, does not count.
fn first() {
    const CHANNELS: u64 = 100;
    const USES: usize = 5;
    println!("time to the first token of a stream, one at a time, median of {}\n", CHANNELS as usize * USES);
    println!("{:<46} {:>10}", "", "µs");
    for (place, scratch) in [("in memory", tempfile::tempdir_in("/dev/shm")), ("on disk", tempfile::tempdir())] {
        let Ok(scratch) = scratch else { continue };
        let (_backend, backend) = backend::start(Kind::Stream { events: 3, gap: Duration::ZERO, running: false });
        let bare_address = free_address();
        let _bare = Running::start(&mut bare(bare_address, &backend, &[]));
        let gate = Gate::prepare(scratch.path(), &backend, "tempo/session");
        let mut payers = plant(&gate, CHANNELS, MORE);
        let running = gate.start();
        let body = streamed(256);
        let offer = ready(&gate, Some(bare_address), &body);
        let ways = [
            ("the backend itself", backend.parse().unwrap(), bed::PATH),
            ("bare Pingora", bare_address, bed::PATH),
            ("the gate, free", gate.listen, bed::FREE),
            ("the gate, paid by session", gate.listen, bed::PATH),
        ];
        let mut wires = ways.map(|(_, address, _)| Wire::open(address).unwrap());
        let mut times = ways.map(|_| Vec::new());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (mut writes, mut written) = (LeaseWrites::over(scratch.path(), CHANNELS), Vec::new());
        for turn in 0..=USES {
            for payer in &mut payers {
                let paid = format!("Authorization: {}\r\n", payer.credential(&offer, MORE));
                for (way, wire) in wires.iter_mut().enumerate() {
                    let began = Instant::now();
                    wire.post(ways[way].2, if way == 3 { &paid } else { "" }, &body).unwrap();
                    let (status, head, length) = wire.head().unwrap();
                    assert!(status == 200 && length.is_none(), "{}: {head}", ways[way].0);
                    let mut seen = wire.chunk().unwrap();
                    if turn > 0 {
                        times[way].push(began.elapsed().as_secs_f64() * 1e6);
                    }
                    while !seen.is_empty() {
                        seen = wire.chunk().unwrap();
                    }
                }
                written.push(writes.write(&runtime));
            }
        }
        let [direct, bare, free, paid] = times.map(|times| median(&times));
        for (way, micros) in ways.iter().zip([direct, bare, free, paid]) {
            println!("{:<46} {micros:>10.0}", format!("{}, store {place}", way.0));
        }
        let (write, least) = (median(&written), bed::write_of(&runtime, scratch.path()));
        println!("{:<46} {write:>10.0}", format!("its durable write by itself, in turn, {place}"));
        println!("{:<46} {least:>10.0}", format!("the smallest durable write, in a row, {place}"));
        println!("{:<46} {:>10.0}   (aim: ≤ 200)", "paid − backend − its write", paid - direct - write);
        println!("{:<46} {:>10.0}\n", "free − backend", free - direct);
        running.stop("-TERM");
        books(&gate);
    }
}
