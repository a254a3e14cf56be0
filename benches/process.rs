//! Whole processes side by side in one run: what an unpaid request costs the gate, against what the same request costs the smallest
//! proxy Pingora can be. Prints ratios; nothing here passes or fails on a time.
//!
//!     cargo bench --bench process              needs wrk (Debian package wrk)
//!
//! Costs are CPU of the measured process alone (utime + stime), so that the load generator, the backend and whatever else the machine
//! does weigh little. The rounds alternate, so that a machine that slows down slows both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../examples/bare_pingora.rs"]
mod bare_pingora;

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROUNDS: usize = 3;
const SECONDS: u64 = 3;
const CONNECTIONS: usize = 32;
const PATH: &str = "/v1/chat/completions";
const RECIPIENT: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
const HEX_KEY: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["role=backend"] => backend(),
        ["role=bare", listen, upstream] => bare_pingora::serve(listen, upstream.parse().unwrap()),
        _ => {}
    }
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

    let this = std::env::current_exe().unwrap();
    let mut backend = Running::start(Command::new(&this).arg("role=backend").stdout(Stdio::piped()));
    let backend_address = backend.first_line();
    let bare_address = free_address();
    let bare = Running::start(Command::new(&this).args(["role=bare", &bare_address.to_string(), &backend_address]));
    let (gate, gate_address) = gate(scratch.path(), &backend_address);

    until("bare Pingora proxies", || status_of(bare_address, &body).is_some_and(|(code, _)| code == 200));
    until("the gate asks for payment (what it says against that is above)", || {
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

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// 1.2 KB, as an agent would send it.
fn request_body() -> String {
    let prompt = "Summarise the following paragraph in one sentence and name the bridge it is about. ".repeat(12);
    json!({
        "model": "openai/gpt-oss-120b",
        "max_tokens": 256,
        "temperature": 0,
        "messages": [{ "role": "system", "content": "You are terse." }, { "role": "user", "content": prompt }],
    })
    .to_string()
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

/// The gate on a fresh store, with limits that do not stand in the way and a chain that only says that it lives.
fn gate(scratch: &Path, backend: &str) -> (Running, SocketAddr) {
    let (listen, admin, chain) = (free_address(), free_address(), chain());
    let rules = scratch.join("rules");
    std::fs::create_dir(&rules).unwrap();
    let write = |path: &Path, text: String| std::fs::write(path, text).unwrap();
    let conf = scratch.join("pontage.toml");
    write(
        &conf,
        format!(
            r#"[listen]
address = "{listen}"
public_url = "http://{listen}"
admin = "{admin}"
threads = 2
[listen.limits]
unpaid_per_ip_per_second = 1000000
unpaid_per_second = 1000000
[secrets]
challenge_keys = ["env:PONTAGE_CHALLENGE_KEY"]
receipt_key = "env:PONTAGE_RECEIPT_KEY"
[store]
path = "{store}"
[rail.tempo]
kind = "mpp-tempo"
chain_id = 42431
rpc = "env:TEMPO_RPC_URL"
currency = "0x20c0000000000000000000000000000000000000"
recipient = "{RECIPIENT}"
"#,
            store = scratch.join("pontage.redb").display(),
        ),
    );
    write(&rules.join("pools.toml"), format!("[pool.p]\nprofile = \"vllm\"\nservers = [\"http://{backend}\"]\n"));
    write(
        &rules.join("models.toml"),
        "[model.\"openai/gpt-oss-120b\"]\nupstream = \"m\"\npool = \"p\"\nprice = { input = \"0.15\", output = \"0.60\" }\nvocabulary = \"bytes\"\n".into(),
    );
    write(
        &rules.join("tiers.toml"),
        "[tier.standard]\nmodels = [\"openai/gpt-oss-120b\"]\nmax_output_tokens = 2048\nover_limit = \"clamp\"\ncharge = { flat = \"0.02\" }\nmissing_usage = \"free\"\nunknown_fields = \"refuse\"\n".into(),
    );
    write(
        &rules.join("routes.toml"),
        format!(
            "[[route]]\npath = \"{PATH}\"\nsurface = \"chat\"\ntier = \"standard\"\nstream = \"allow\"\naccept = [\"tempo/charge\"]\n"
        ),
    );
    let gate = Running::start(
        Command::new(env!("CARGO_BIN_EXE_pontage"))
            .args(["serve".as_ref(), "--conf".as_ref(), conf.as_os_str(), "--rules".as_ref(), rules.as_os_str()])
            .env("PONTAGE_CHALLENGE_KEY", HEX_KEY)
            .env("PONTAGE_RECEIPT_KEY", HEX_KEY)
            .env("TEMPO_RPC_URL", format!("http://{chain}"))
            // The access log is written as always; nobody keeps these gigabytes.
            .stdout(Stdio::null()),
    );
    (gate, listen)
}

/// A process that ends with its owner.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// User and system time so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The name in parentheses may hold anything; what follows it does not.
        let after: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = [after[11], after[12]].iter().map(|t| t.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / ticks_per_second())
    }

    fn resident_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ticks_per_second() -> u64 {
    let said = Command::new("getconf").arg("CLK_TCK").output().ok();
    said.and_then(|o| String::from_utf8_lossy(&o.stdout).trim().parse().ok()).unwrap_or(100)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Status and head, in lower case, of one request.
fn status_of(address: SocketAddr, body: &str) -> Option<(u16, String)> {
    let mut tcp = TcpStream::connect(address).ok()?;
    tcp.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let mut request = String::new();
    write!(
        request,
        "POST {PATH} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    .ok()?;
    write!(request, "Content-Length: {}\r\n\r\n{body}", body.len()).ok()?;
    tcp.write_all(request.as_bytes()).ok()?;
    let lines = BufReader::new(tcp).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let head = lines.collect::<Vec<_>>().join("\n").to_ascii_lowercase();
    Some((head.split(' ').nth(1)?.parse().ok()?, head))
}

/// One request after the other on each connection, each answered by what `reply` makes of its body.
fn answer(listener: &TcpListener, reply: fn(&[u8]) -> String) {
    for tcp in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = tcp.set_nodelay(true);
            let Ok(mut out) = tcp.try_clone() else { return };
            let mut read = BufReader::new(tcp);
            let (mut line, mut body) = (String::new(), Vec::new());
            loop {
                let mut length = 0;
                loop {
                    line.clear();
                    match read.read_line(&mut line) {
                        Ok(0) | Err(_) => return,
                        Ok(2) => break,
                        Ok(_) => {}
                    }
                    if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap_or(0);
                    }
                }
                body.resize(length, 0);
                if read.read_exact(&mut body).is_err() {
                    return;
                }
                let text = reply(&body);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    text.len()
                );
                if out.write_all((head + &text).as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

/// A backend that costs next to nothing: one completion of about 900 bytes.
fn backend() -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    answer(&listener, |_| {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "bridge ".repeat(90) } }],
            "usage": { "prompt_tokens": 200, "completion_tokens": 90, "total_tokens": 290 },
        })
        .to_string()
    });
    std::process::exit(0)
}

/// A node that knows its chain and the time, so that the gate makes offers.
fn chain() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        answer(&listener, |body| {
            let call: Value = serde_json::from_slice(body).unwrap_or_default();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let result = match call["method"].as_str() {
                Some("eth_chainId") => json!(format!("{:#x}", 42431)),
                Some("eth_blockNumber") => json!("0x1"),
                Some("eth_getBlockByNumber") => json!({ "number": "0x1", "timestamp": format!("{now:#x}") }),
                _ => Value::Null,
            };
            json!({ "jsonrpc": "2.0", "id": call["id"], "result": result }).to_string()
        });
    });
    address
}
