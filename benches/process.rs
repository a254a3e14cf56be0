//! Whole processes side by side in one run: what an unpaid request costs the gate, against what the same request costs the smallest
//! proxy Pingora can be. Prints ratios; nothing here passes or fails on a time.
//!
//!     cargo bench --bench process              needs wrk (Debian package wrk)
//!
//! Costs are CPU of the measured process alone (utime + stime), so that the load generator, the backend and whatever else the machine
//! does weigh little. The rounds alternate, so that a machine that slows down slows both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bed;

use bed::backend::{self, Kind};
use bed::{Gate, PATH, Running, free_address, median, request_body, status_of, until};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

const ROUNDS: usize = 3;
const SECONDS: u64 = 3;
const CONNECTIONS: usize = 32;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    backend::play(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    if Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("process: wrk is missing (Debian: apt-get install wrk); nothing was measured");
        return ExitCode::FAILURE;
    }
    compare();
    ExitCode::SUCCESS
}

fn compare() {
    let scratch = tempfile::tempdir().unwrap();
    let body = request_body();
    let script = scratch.path().join("post.lua");
    std::fs::write(&script, wrk_script(&body)).unwrap();

    let (_backend, backend) = backend::start(Kind::Json);
    let bare_address = free_address();
    let bare = Running::start(&mut bed::bare(bare_address, &backend, &[]));
    let prepared = Gate::prepare(scratch.path(), &backend, "tempo/charge");
    let (gate, gate_address) = (prepared.start(), prepared.listen);

    until("bare Pingora proxies", 20, || status_of(bare_address, &body).is_some_and(|(code, _)| code == 200));
    until("the gate asks for payment (what it says against that is above)", 20, || {
        status_of(gate_address, &body)
            .is_some_and(|(code, head)| code == 402 && head.contains("www-authenticate: payment"))
    });
    std::thread::sleep(Duration::from_secs(1));
    let idle = gate.resident_kib();

    println!(
        "one request: POST {PATH}, {} bytes of JSON; {CONNECTIONS} connections, {ROUNDS} × {SECONDS} s each\n",
        body.len()
    );
    println!("{:<34} {:>10} {:>12} {:>10} {:>10}", "", "req/s", "CPU µs/req", "p50 µs", "p99 µs");
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let sides = [
            ("bare Pingora, proxied, 200", &bare, bare_address, false),
            ("gate, unpaid, 402", &gate, gate_address, true),
        ];
        for (side, (name, process, address, refused)) in sides.into_iter().enumerate() {
            let before = process.cpu();
            let run = load(address, &script);
            let micros = (process.cpu() - before).as_secs_f64() * 1e6 / run.requests;
            assert!(run.broken == 0.0, "{name}: {} requests broke", run.broken);
            let wrong = if refused { run.requests - run.not_2xx } else { run.not_2xx };
            assert!(wrong <= CONNECTIONS as f64, "{name}: {wrong} answers were not what is measured here");
            println!(
                "{name:<34} {:>10.0} {micros:>12.1} {:>10.0} {:>10.0}",
                run.requests / run.seconds,
                run.p50,
                run.p99
            );
            costs[side].push(micros);
        }
    }
    let [bare_cost, gate_cost] = costs.map(|c| median(&c));
    println!();
    println!("CPU of a 402 ÷ CPU of a proxied request: {:.2}   (aim: < 1)", gate_cost / bare_cost);
    println!("memory of the idle gate, no vocabulary:  {:.1} MB (aim: ≤ 40)", mb(idle));
    println!(
        "memory of the gate after the load:       {:.1} MB; bare Pingora: {:.1} MB",
        mb(gate.resident_kib()),
        mb(bare.resident_kib())
    );
}

fn mb(kib: f64) -> f64 {
    kib * 1024.0 / 1e6
}

fn wrk_script(body: &str) -> String {
    format!(
        r#"wrk.method = "POST"
wrk.body = [==[{body}]==]
wrk.headers["Content-Type"] = "application/json"
done = function(s, l, r)
  local e = s.errors
  io.write(string.format("DONE %d %d %d %d %d %d\n", s.requests, s.duration,
    e.connect + e.read + e.write + e.timeout, e.status, l:percentile(50), l:percentile(99)))
end
"#
    )
}

struct Load {
    requests: f64,
    seconds: f64,
    broken: f64,
    not_2xx: f64,
    p50: f64,
    p99: f64,
}

fn load(address: SocketAddr, script: &Path) -> Load {
    let out = Command::new("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{SECONDS}s"), "-s"])
        .arg(script)
        .arg(format!("http://{address}{PATH}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().find_map(|l| l.strip_prefix("DONE ")).unwrap_or_else(|| panic!("wrk said:\n{text}"));
    let figures: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    let [requests, micros, broken, not_2xx, p50, p99] = figures[..] else { panic!("wrk said: {line}") };
    Load { requests, seconds: micros / 1e6, broken, not_2xx, p50, p99 }
}
