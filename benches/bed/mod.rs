//! Processes side by side: the gate on a fresh store, bare Pingora, a backend and a chain that cost next to nothing, and what
//! each has taken of processor and memory.
#![allow(dead_code)]

pub mod backend;
pub mod facilitator;
pub mod payer;

#[path = "../../examples/bare_pingora.rs"]
pub mod bare_pingora;

use alloy::sol_types::SolCall as _;
use pontage::clock::UnixSeconds;
use pontage::journal::Entry;
use pontage::money::Atoms;
use pontage::store::embedded::Embedded;
use pontage::store::{self, Store as _};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempo_alloy::contracts::precompiles::ITIP20ChannelReserve as Abi;

/// The one paid path.
pub const PATH: &str = "/v1/chat/completions";
/// The same for nothing.
pub const FREE: &str = "/free/chat/completions";
/// Who is paid, and the key of the same account, so that channels have no operator beside him.
pub const RECIPIENT: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
const SETTLE_KEY: &str = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
const HEX_KEY: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";
/// The chain, the token, and what every channel holds, in atoms.
pub const CHAIN_ID: u64 = 42431;
pub const TOKEN: &str = "0x20c0000000000000000000000000000000000000";
pub const DEPOSIT: u128 = 1 << 60;

/// A gate that can be started: its files, its chain, its addresses.
pub struct Gate {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// Where its books are.
    pub store: PathBuf,
    conf: PathBuf,
    rules: PathBuf,
    chain: SocketAddr,
    /// Of a gate that takes x402.
    pub facilitator: Option<SocketAddr>,
}

impl Gate {
    /// Files under `scratch` for a gate before `backend` that takes one rail, with limits that do not stand in the way and a chain
    /// that says that it lives and that every channel holds [`DEPOSIT`].
    pub fn prepare(scratch: &Path, backend: &str, rail: &str) -> Self {
        let (listen, admin, chain) = (free_address(), free_address(), chain());
        let (rules, conf, store) = (scratch.join("rules"), scratch.join("pontage.toml"), scratch.join("pontage.redb"));
        std::fs::create_dir(&rules).unwrap();
        let write = |path: &Path, text: String| std::fs::write(path, text).unwrap();
        let (session, vocabulary) = match rail {
            "tempo/session" => {
                ("settle_key = \"env:PONTAGE_SETTLE_KEY\"\n[rail.tempo.session]\nsettle_above = \"1000000\"\n", "o200k")
            }
            _ => ("", "bytes"),
        };
        let facilitator = rail.starts_with("base/").then(facilitator::start);
        let base = facilitator.map_or(String::new(), |at| facilitator::section(at, RECIPIENT));
        write(
            &conf,
            format!(
                r#"[listen]
address = "{listen}"
public_url = "http://{listen}"
admin = "{admin}"
threads = 2
[listen.limits]
connections_per_ip = 10000
unpaid_per_ip_per_second = 1000000
unpaid_per_second = 1000000
[secrets]
challenge_keys = ["env:PONTAGE_CHALLENGE_KEY"]
receipt_key = "env:PONTAGE_RECEIPT_KEY"
[store]
path = "{}"
[rail.tempo]
kind = "mpp-tempo"
chain_id = {CHAIN_ID}
rpc = "env:TEMPO_RPC_URL"
currency = "{TOKEN}"
recipient = "{RECIPIENT}"
{session}{base}"#,
                store.display(),
            ),
        );
        write(&rules.join("pools.toml"), format!("[pool.p]\nprofile = \"vllm\"\nservers = [\"http://{backend}\"]\n"));
        write(
            &rules.join("models.toml"),
            format!(
                "[model.\"openai/gpt-oss-120b\"]\nupstream = \"m\"\npool = \"p\"\nprice = {{ input = \"0.15\", output = \"0.60\" }}\nvocabulary = \"{vocabulary}\"\n"
            ),
        );
        write(
            &rules.join("tiers.toml"),
            "[tier.standard]\nmodels = [\"openai/gpt-oss-120b\"]\nmax_output_tokens = 2048\nover_limit = \"clamp\"\ncharge = { flat = \"0.02\" }\nmissing_usage = \"free\"\nunknown_fields = \"refuse\"\n".into(),
        );
        write(
            &rules.join("routes.toml"),
            format!(
                "[[route]]\npath = \"{PATH}\"\nsurface = \"chat\"\ntier = \"standard\"\nstream = \"allow\"\naccept = [\"{rail}\"]\n\n[[route]]\npath = \"{FREE}\"\nsurface = \"chat\"\ntier = \"standard\"\naccess = \"free\"\n"
            ),
        );
        Self { listen, admin, store, conf, rules, chain, facilitator }
    }

    /// What starts it, behind `before` (a tool that watches a process) when that is not empty. The access log is written as always;
    /// nobody keeps these gigabytes.
    pub fn command(&self, before: &[&str]) -> Command {
        let mut words: Vec<&std::ffi::OsStr> = before.iter().map(std::ffi::OsStr::new).collect();
        words.extend([
            env!("CARGO_BIN_EXE_pontage").as_ref(),
            "serve".as_ref(),
            "--conf".as_ref(),
            self.conf.as_os_str(),
        ]);
        words.extend(["--rules".as_ref(), self.rules.as_os_str()]);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env("PONTAGE_CHALLENGE_KEY", HEX_KEY)
            .env("PONTAGE_RECEIPT_KEY", HEX_KEY)
            .env("PONTAGE_SETTLE_KEY", SETTLE_KEY)
            .env("TEMPO_RPC_URL", format!("http://{}", self.chain))
            .stdout(Stdio::null());
        command
    }

    pub fn start(&self) -> Running {
        Running::start(&mut self.command(&[]))
    }
}

/// Bare Pingora before `backend`: this program once more, in that role.
pub fn bare(listen: SocketAddr, backend: &str, before: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut words: Vec<&std::ffi::OsStr> = before.iter().map(std::ffi::OsStr::new).collect();
    words.push(this.as_os_str());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["role=bare", &listen.to_string(), backend]);
    command
}

/// A process that ends with its owner.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    pub fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// User and system time so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The name in parentheses may hold anything; what follows it does not.
        let after: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = [after[11], after[12]].iter().map(|t| t.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / ticks_per_second())
    }

    pub fn resident_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Asks it to end, waits for that, and gives what it said on its standard error when that was kept.
    pub fn stop(mut self, signal: &str) -> String {
        let _ = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        let mut said = String::new();
        if let Some(mut err) = self.0.stderr.take() {
            let _ = err.read_to_string(&mut said);
        }
        let _ = self.0.wait();
        said
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

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn until(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// 1.2 KB, as an agent would send it.
pub fn request_body() -> String {
    let prompt = "Summarise the following paragraph in one sentence and name the bridge it is about. ".repeat(12);
    json!({
        "model": "openai/gpt-oss-120b",
        "max_tokens": 256,
        "temperature": 0,
        "messages": [{ "role": "system", "content": "You are terse." }, { "role": "user", "content": prompt }],
    })
    .to_string()
}

/// Status and head, in lower case, of one request.
pub fn status_of(address: SocketAddr, body: &str) -> Option<(u16, String)> {
    let (status, head) = asked(address, body)?;
    Some((status, head.to_ascii_lowercase()))
}

/// Status and head of one request.
pub fn asked(address: SocketAddr, body: &str) -> Option<(u16, String)> {
    let mut tcp = TcpStream::connect(address).ok()?;
    tcp.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let head = "Content-Type: application/json\r\nConnection: close\r\n";
    let length = body.len();
    write!(tcp, "POST {PATH} HTTP/1.1\r\nHost: {address}\r\n{head}Content-Length: {length}\r\n\r\n{body}").ok()?;
    let lines = BufReader::new(tcp).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let head = lines.collect::<Vec<_>>().join("\n");
    Some((head.split(' ').nth(1)?.parse().ok()?, head))
}

/// Reads one request; `None` when there is none any more.
pub fn read_request(read: &mut impl BufRead, line: &mut String, body: &mut Vec<u8>) -> Option<()> {
    let mut length = 0;
    loop {
        line.clear();
        match read.read_line(line) {
            Ok(0) | Err(_) => return None,
            Ok(2) => break,
            Ok(_) => {}
        }
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0);
        }
    }
    body.resize(length, 0);
    read.read_exact(body).ok()
}

/// One request after the other on each connection, each answered by what `reply` makes of its body.
pub fn answer(listener: &TcpListener, reply: fn(&[u8]) -> String) {
    for tcp in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = tcp.set_nodelay(true);
            let Ok(mut out) = tcp.try_clone() else { return };
            let mut read = BufReader::new(tcp);
            let (mut line, mut body) = (String::new(), Vec::new());
            while read_request(&mut read, &mut line, &mut body).is_some() {
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

/// A node that knows its chain, the time and what channels hold, so that the gate makes offers and serves.
fn chain() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        answer(&listener, |body| {
            let call: Value = serde_json::from_slice(body).unwrap_or_default();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let result = match call["method"].as_str() {
                Some("eth_chainId") => json!(format!("{CHAIN_ID:#x}")),
                Some("eth_blockNumber") => json!("0x1"),
                Some("eth_getBlockByNumber") => json!({ "number": "0x1", "timestamp": format!("{now:#x}") }),
                Some("eth_getLogs") => json!([]),
                Some("eth_call") => channels(&call["params"][0]),
                _ => Value::Null,
            };
            json!({ "jsonrpc": "2.0", "id": call["id"], "result": result }).to_string()
        });
    });
    address
}

/// Every channel that is asked about is open and full.
fn channels(call: &Value) -> Value {
    let input = call["input"].as_str().and_then(|hex| alloy::hex::decode(hex).ok()).unwrap_or_default();
    let Ok(asked) = Abi::getChannelStatesBatchCall::abi_decode(&input) else { return Value::Null };
    let full = |_| Abi::ChannelState {
        settled: alloy::primitives::aliases::U96::ZERO,
        deposit: alloy::primitives::aliases::U96::from(DEPOSIT),
        closeRequestedAt: 0,
    };
    let states: Vec<Abi::ChannelState> = asked.channelIds.iter().map(full).collect();
    json!(alloy::hex::encode_prefixed(Abi::getChannelStatesBatchCall::abi_encode_returns(&states)))
}

/// Microseconds of a step in a task of its own, as a worker sees it.
pub async fn timed(step: impl Future<Output = ()> + Send + 'static) -> f64 {
    let work = async {
        let began = Instant::now();
        step.await;
        began.elapsed().as_secs_f64() * 1e6
    };
    tokio::spawn(work).await.unwrap()
}

/// Microseconds of one line in a journal under `scratch`, durable.
pub fn write_of(runtime: &tokio::runtime::Runtime, scratch: &Path) -> f64 {
    let store = Arc::new(Embedded::open(&scratch.join("apart.redb")).unwrap());
    let times = (0..200).map(|n: u64| {
        let store = Arc::clone(&store);
        let entry = Entry::Taking { key: n.to_string(), amount: Atoms(1), at: UnixSeconds::now() };
        runtime.block_on(timed(async move {
            let write = store::Write { journal: vec![entry], ..store::Write::default() };
            assert_eq!(store.commit(write).await, Ok(store::Swap::Done));
        }))
    });
    median(&times.collect::<Vec<_>>())
}
