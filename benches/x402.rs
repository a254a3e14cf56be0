//! What paying by x402 adds to a call: one connection, one call after the other, each with a payment of its own, before a facilitator
//! that says yes at once. Prints figures; nothing here passes or fails on a time.
//!
//!     cargo bench --bench x402 [-- times|count]
//!
//! `count` prints instructions, which other work on the machine does not change; it needs valgrind.
//!
//! A paid call has two HTTP calls in it (`/verify`, `/settle`) and two durable writes (being taken, delivered). Both are
//! measured by themselves, from here and with the gate's own client and store, each awaited on a runtime of two threads: a call to the
//! same facilitator, and the smallest write to a store in the same place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bed;

use bed::backend::{self, Kind};
use bed::payer::{Wire, words};
use bed::{FREE, Gate, PATH, Running, asked, facilitator, median, request_body, timed, until, write_of};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: u64 = 5;
const CALLS: u64 = 200;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    backend::play(&arguments);
    let wanted = |part| arguments.is_empty() || arguments.contains(&part);
    if wanted("times") {
        times();
    }
    if wanted("count") {
        counts();
    }
}

fn times() {
    println!("a JSON request, paid `exact` and taken on success; one connection, {ROUNDS} × {CALLS} calls\n");
    println!("{:<44} {:>12} {:>12}", "", "median µs", "CPU µs");
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        compare("in memory", tempfile::tempdir_in(memory).unwrap());
    }
    compare("on disk", tempfile::tempdir().unwrap());
}

/// Free and paid calls in turn, so that a machine that slows down slows both.
fn compare(place: &str, scratch: tempfile::TempDir) {
    let body = request_body();
    let (_backend, backend) = backend::start(Kind::Json);
    let gate = Gate::prepare(scratch.path(), &backend, "base/exact");
    let running = gate.start();
    let offer = ready(&gate, &body);
    let mut wire = Wire::open(gate.listen).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let verify = format!("http://{}/verify", gate.facilitator.unwrap());
    let (mut times, mut cpu) = ([(); 3].map(|()| Vec::new()), [(); 2].map(|()| Vec::new()));
    let mut next = 0;
    for round in 0..=ROUNDS {
        let payments: Vec<String> = (0..CALLS).map(|n| facilitator::payment(&offer, next + n)).collect();
        next += CALLS;
        for (side, path) in [FREE, PATH].into_iter().enumerate() {
            let before = running.cpu();
            for payment in &payments {
                let micros = call(&mut wire, path, if side == 0 { "" } else { payment }, &body);
                // The first round warms both.
                if round > 0 {
                    times[side].push(micros);
                }
            }
            if round > 0 {
                cpu[side].push((running.cpu() - before).as_secs_f64() * 1e6 / CALLS as f64);
            }
        }
        for _ in 0..CALLS {
            let asking =
                client.post(&verify).header("content-type", "application/json").body(verify_body(&payments[0]));
            times[2].push(runtime.block_on(timed(async move {
                asking.send().await.unwrap().bytes().await.unwrap();
            })));
        }
    }
    let [free, paid, http] = times.map(|t| median(&t));
    let [free_cpu, paid_cpu] = cpu.map(|c| median(&c));
    println!("{:<44} {free:>12.0} {free_cpu:>12.0}", format!("free, store {place}"));
    println!("{:<44} {paid:>12.0} {paid_cpu:>12.0}", format!("paid, store {place}"));
    println!("{:<44} {http:>12.0}", "one HTTP call to the facilitator, from here");
    let write = write_of(&runtime, scratch.path());
    println!("{:<44} {write:>12.0}", format!("one durable write, {place}"));
    let rest = paid - free - 2.0 * http;
    println!("{:<44} {rest:>12.0}   (aim: ≤ 200)", "paid − free − two HTTP calls");
    println!("{:<44} {:>12.0}\n", "the same without its two writes", rest - 2.0 * write);
}

/// Waits until the gate makes an offer.
fn ready(gate: &Gate, body: &str) -> Value {
    let mut offer = None;
    until("the gate offers x402 (what it says against that is above)", 120, || {
        offer = asked(gate.listen, body).and_then(|(_, head)| facilitator::offer(&head));
        offer.is_some()
    });
    offer.unwrap()
}

/// Microseconds of one call; with `headers` it is a paid one.
fn call(wire: &mut Wire, path: &str, headers: &str, body: &str) -> f64 {
    let began = Instant::now();
    wire.post(path, headers, body).unwrap();
    let (status, head, length) = wire.head().unwrap();
    let said = wire.body(length.unwrap()).unwrap();
    let micros = began.elapsed().as_secs_f64() * 1e6;
    assert_eq!(status, 200, "{}", words(&said));
    assert!(headers.is_empty() || head.contains("payment-response:"), "{head}");
    micros
}

/// What a call costs in instructions of user space: what many cost more than few, so that start and end of the process do not count.
fn counts() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("count: valgrind is missing; install the Debian package valgrind to count instructions");
        return;
    }
    let (few, many) = (16, 80);
    let [free, paid] = [false, true].map(|paid| (count(paid, many) - count(paid, few)) / (many - few) as f64);
    println!("instructions of a call, user space, whole process: free {free:.0}, paid {paid:.0}");
}

/// Instructions of a process that answers `calls` calls, start and end included.
fn count(paid: bool, calls: u64) -> f64 {
    let scratch = tempfile::tempdir().unwrap();
    let body = request_body();
    let (_backend, backend) = backend::start(Kind::Json);
    // For whoever wants to know where they go.
    let out = std::env::var("CALLGRIND_OUT").ok().filter(|_| paid);
    let out = out.map_or("/dev/null".to_owned(), |out| format!("{out}.{calls}"));
    let gate = Gate::prepare(scratch.path(), &backend, "base/exact");
    let mut command = gate.command(&["valgrind", "--tool=callgrind", &format!("--callgrind-out-file={out}")]);
    let watched = Running::start(command.stderr(Stdio::piped()));
    let offer = ready(&gate, &body);
    let mut wire = Wire::open(gate.listen).unwrap();
    for n in 0..calls {
        let (path, headers) = if paid { (PATH, facilitator::payment(&offer, n)) } else { (FREE, String::new()) };
        call(&mut wire, path, &headers, &body);
    }
    drop(wire);
    let said = watched.stop("-TERM");
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    let Some(collected) = collected else { panic!("valgrind counted nothing:\n{said}") };
    collected.trim().parse().unwrap()
}

/// About what the gate sends.
fn verify_body(payment: &str) -> String {
    let from = "0x0000000000000000000000000000000000000001";
    let filler = "x".repeat(payment.len());
    serde_json::json!({ "paymentPayload": { "payload": { "authorization": { "from": from } } }, "filler": filler })
        .to_string()
}
