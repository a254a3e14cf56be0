//! The gate as its operator runs it: files in a directory, secrets in the environment, a process.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::chain::{CHAIN_ID, DEV, PATH_USD};

/// What must never appear in a log, a reply, a receipt or a metric.
pub const UPSTREAM_KEY: &str = "sk-canary-upstream-3f9c1b7e";
pub const CHALLENGE_KEY: &str = "canary-challenge-key-6b1f0d2a9c8e4f57a3b2c1d0e9f8a7b6";
pub const RECEIPT_KEY: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

/// What a gate is waited for after it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// `/readyz` says yes: paid traffic would be served.
    Ready,
    /// `/healthz` says yes: the process lives, whatever the chain does.
    Alive,
}

/// Everything an operator can write. Start with [`GateOptions::new`] and change what the test is about.
#[derive(Clone, Debug)]
pub struct GateOptions {
    /// `TEMPO_RPC_URL`.
    pub rpc: String,
    /// The pool's only server.
    pub upstream: String,
    /// `recipient` of the rail.
    pub recipient: String,
    /// Text added at the end of `pontage.toml`: more tables.
    pub conf_extra: String,
    /// Replacements in the default `pontage.toml`, each of which must apply: `("accept_push = false", "accept_push = true")`.
    pub conf_edits: Vec<(String, String)>,
    /// A whole `pontage.toml`; `{listen}` and `{admin}` become addresses, `{dir}` the gate's directory.
    pub conf: Option<String>,
    /// Whole rule files by name, instead of the default ones. An empty text removes the file.
    pub rules: BTreeMap<String, String>,
    /// Replacements in the default rule files: `(file, from, to)`.
    pub rule_edits: Vec<(String, String, String)>,
    /// Environment over the default secrets; an empty value removes one.
    pub env: Vec<(String, String)>,
    /// More arguments of `serve`.
    pub args: Vec<String>,
    /// The process is told about files that may not grow by an error, not by a signal: [`Gate::disk`] can be full.
    pub small_disk: bool,
    pub wait: Wait,
    /// How long until [`Self::wait`] must be true.
    pub patience: Duration,
}

impl GateOptions {
    pub fn new(rpc: &str, upstream: &str) -> Self {
        Self {
            rpc: rpc.into(),
            upstream: upstream.into(),
            recipient: DEV[1].address.into(),
            conf_extra: String::new(),
            conf_edits: Vec::new(),
            conf: None,
            rules: BTreeMap::new(),
            rule_edits: Vec::new(),
            env: Vec::new(),
            args: Vec::new(),
            small_disk: false,
            wait: Wait::Ready,
            patience: Duration::from_secs(60),
        }
    }

    pub fn conf_edit(mut self, from: &str, to: &str) -> Self {
        self.conf_edits.push((from.into(), to.into()));
        self
    }

    pub fn conf_extra(mut self, text: &str) -> Self {
        self.conf_extra.push_str(text);
        self
    }

    /// The whole text of one rule file.
    pub fn rule(mut self, file: &str, text: &str) -> Self {
        self.rules.insert(file.into(), text.into());
        self
    }

    pub fn rule_edit(mut self, file: &str, from: &str, to: &str) -> Self {
        self.rule_edits.push((file.into(), from.into(), to.into()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }
}

/// `conf/pontage.toml` of a test: one rail, `tempo`, on the local chain.
const CONF: &str = r#"[listen]
address = "{listen}"
public_url = "http://{listen}"
admin = "{admin}"
threads = 2
grace_seconds = 5

[secrets]
challenge_keys = ["env:PONTAGE_CHALLENGE_KEY"]
receipt_key = "env:PONTAGE_RECEIPT_KEY"

[store]
kind = "embedded"
path = "{dir}/var/pontage.redb"

[rail.tempo]
kind = "mpp-tempo"
chain_id = {chain_id}
rpc = "env:TEMPO_RPC_URL"
currency = "{currency}"
recipient = "{recipient}"
settle_key = "env:PONTAGE_SETTLE_KEY"
accept_push = false
"#;

/// The rule files of a test: one pool, one model, one tier at a flat 0.02 USD, chat and models.
pub fn default_rules(upstream: &str) -> BTreeMap<String, String> {
    let files = [
        (
            "pools.toml",
            format!(
                r#"[pool.gpt-oss]
profile = "vllm"
servers = ["{upstream}"]
api_key = "env:UPSTREAM_KEY"
balance = "least-outstanding"
health = {{ path = "/health", every_seconds = 1 }}
timeouts = {{ connect_seconds = 2, first_byte_seconds = 10, idle_seconds = 10, total_seconds = 60 }}
"#
            ),
        ),
        (
            "models.toml",
            r#"[model."openai/gpt-oss-120b"]
aliases = ["gpt-oss-120b-alias"]
upstream = "gpt-oss-120b"
pool = "gpt-oss"
price = { input = "0.15", cached_input = "0.075", output = "0.60" }
vocabulary = "o200k"
"#
            .into(),
        ),
        (
            "tiers.toml",
            r#"[tier.standard]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
over_limit = "clamp"
max_body_bytes = 1048576
max_input_tokens = 8192
max_n = 4
charge = { flat = "0.02" }
missing_usage = "free"
unknown_fields = "refuse"
"#
            .into(),
        ),
        (
            "routes.toml",
            r#"[[route]]
path = "/v1/chat/completions"
surface = "chat"
tier = "standard"
stream = "allow"
access = "paid"
accept = ["tempo/charge"]
receipt = { header = true, body = "pontage" }

[[route]]
path = "/v1/models"
surface = "models"
tier = "standard"
access = "free"
"#
            .into(),
        ),
    ];
    files.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
}

/// A running gate; dropping it ends its process by id and removes its directory.
pub struct Gate {
    child: Option<Child>,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    dir: tempfile::TempDir,
    options: GateOptions,
}

/// Budgets and caps are a day's, and days end at midnight UTC: a test that begins shortly before begins after.
async fn within_one_day() {
    const DAY: u64 = 86_400;
    const SHORTLY: u64 = 90;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let left = DAY - now % DAY;
    if left <= SHORTLY {
        tokio::time::sleep(Duration::from_secs(left)).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the gate at {} ---\n{}", self.listen, self.log());
        }
    }
}

impl Gate {
    /// Starts a gate that must come up.
    pub async fn start(options: GateOptions) -> Self {
        within_one_day().await;
        match Self::try_start(options).await {
            Ok(gate) => gate,
            Err(why) => panic!("the gate does not start: {why}"),
        }
    }

    /// Starts a gate that may refuse; the error has its exit status and everything it said.
    pub async fn try_start(options: GateOptions) -> Result<Self, String> {
        let mut last = String::new();
        // A port may be taken between asking and using it.
        for _ in 0..3 {
            let mut gate = Self::prepare(options.clone());
            match gate.launch().await {
                Ok(()) => return Ok(gate),
                Err(why) if why.to_lowercase().contains("address already in use") => last = why,
                Err(why) => return Err(why),
            }
        }
        Err(last)
    }

    /// Writes every file and starts nothing: for tests of `check`, `quote` and the other verbs (see [`Self::verb`]).
    pub fn prepare(options: GateOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let listen = address(super::free_port());
        // Free means free when asked: the same port may be free twice.
        let others = std::iter::repeat_with(|| address(super::free_port()));
        let admin = others.into_iter().find(|admin| *admin != listen).unwrap();
        fs::create_dir_all(dir.path().join("conf")).unwrap();
        fs::create_dir_all(dir.path().join("lua-free-rules")).unwrap();
        fs::create_dir_all(dir.path().join("var")).unwrap();
        let mut conf = options.conf.clone().unwrap_or_else(|| CONF.to_owned());
        for (from, to) in &options.conf_edits {
            assert!(conf.contains(from.as_str()), "conf_edit: {from:?} is not in the default pontage.toml");
            conf = conf.replace(from.as_str(), to);
        }
        conf.push_str(&options.conf_extra);
        for (name, value) in [
            ("{listen}", listen.to_string()),
            ("{admin}", admin.to_string()),
            ("{dir}", dir.path().display().to_string()),
            ("{chain_id}", CHAIN_ID.to_string()),
            ("{currency}", PATH_USD.to_owned()),
            ("{recipient}", options.recipient.clone()),
        ] {
            conf = conf.replace(name, &value);
        }
        fs::write(dir.path().join("conf/pontage.toml"), conf).unwrap();
        let mut rules = default_rules(&options.upstream);
        for (file, from, to) in &options.rule_edits {
            let text = rules.get_mut(file).unwrap_or_else(|| panic!("rule_edit: no default file {file}"));
            assert!(text.contains(from.as_str()), "rule_edit: {from:?} is not in the default {file}");
            *text = text.replace(from.as_str(), to);
        }
        rules.extend(options.rules.clone());
        for (file, text) in rules.iter().filter(|(_, text)| !text.is_empty()) {
            fs::write(dir.path().join("lua-free-rules").join(file), text).unwrap();
        }
        Self { child: None, listen, admin, dir, options }
    }

    /// `pontage <args>` with this gate's secrets in the environment and its directory as the working one.
    pub fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_pontage");
        let mut command = Command::new(if self.options.small_disk { "sh" } else { binary });
        if self.options.small_disk {
            command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", binary]);
        }
        command.env_clear().current_dir(self.dir.path());
        for name in ["PATH", "HOME", "RUST_BACKTRACE", "PONTAGE_LOG", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("PONTAGE_CHALLENGE_KEY", CHALLENGE_KEY)
            .env("PONTAGE_RECEIPT_KEY", RECEIPT_KEY)
            .env("PONTAGE_SETTLE_KEY", DEV[1].key)
            .env("TEMPO_RPC_URL", &self.options.rpc)
            .env("UPSTREAM_KEY", UPSTREAM_KEY);
        for (name, value) in &self.options.env {
            match value.is_empty() {
                true => command.env_remove(name),
                false => command.env(name, value),
            };
        }
        command
    }

    /// Runs one verb to its end; `check` and `quote` are told where this gate's files are. Returns status, stdout, stderr.
    pub fn verb(&self, args: &[&str]) -> (ExitStatus, String, String) {
        let mut command = self.command();
        command.args(args);
        if matches!(args.first(), Some(&("check" | "quote"))) {
            command.args(["--conf", "conf/pontage.toml", "--rules", "lua-free-rules"]);
        }
        let out = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status, text(&out.stdout), text(&out.stderr))
    }

    async fn launch(&mut self) -> Result<(), String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let child = self
            .command()
            .args(["serve", "--conf", "conf/pontage.toml", "--rules", "lua-free-rules"])
            .args(&self.options.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot run pontage: {e}"))?;
        self.child = Some(child);
        let path = if self.options.wait == Wait::Ready { "/readyz" } else { "/healthz" };
        let end = Instant::now() + self.options.patience;
        loop {
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                self.child = None;
                return Err(format!("it ended with {status} and said:\n{}", self.log()));
            }
            if self.admin_get(path).await.is_some_and(|(status, _)| status == 200) {
                return Ok(());
            }
            if Instant::now() > end {
                let last = self.admin_get(path).await;
                self.kill();
                return Err(format!(
                    "{path} was not 200 within {:?} (last: {last:?}); it said:\n{}",
                    self.options.patience,
                    self.log()
                ));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// `http://127.0.0.1:PORT/v1`, for SDKs.
    pub fn base(&self) -> String {
        format!("{}/v1", self.url())
    }

    pub fn chat_url(&self) -> String {
        format!("{}/v1/chat/completions", self.url())
    }

    /// The gate's directory: `conf/`, `lua-free-rules/`, `var/`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn rules_dir(&self) -> PathBuf {
        self.dir.path().join("lua-free-rules")
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Is the process still there?
    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// SIGTERM, then waits up to `grace_seconds` and some; returns how it ended. Panics if it does not end.
    pub async fn stop(&mut self) -> ExitStatus {
        let pid = self.pid().expect("the gate is not running");
        super::signal(pid, "TERM");
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let child = self.child.as_mut().expect("the gate is not running");
            if let Ok(Some(status)) = child.try_wait() {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < end, "the gate did not end within 20 s of SIGTERM; it said:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// From now on no file of the running gate can be written past so many bytes; `None`: as far as it likes.
    pub fn disk(&self, bytes: Option<u64>) {
        let pid = self.pid().expect("the gate is not running");
        let most = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let set = Command::new("prlimit").args([format!("--pid={pid}"), format!("--fsize={most}:unlimited")]).status();
        assert!(set.is_ok_and(|set| set.success()), "prlimit (util-linux) is needed and works on our own processes");
    }

    /// Bytes of memory that the process holds.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().expect("it runs"))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// SIGKILL: what a power cut looks like to the store.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts again on the same ports, files and store; stops first when it is running.
    pub async fn restart(&mut self) {
        if self.child.is_some() {
            self.stop().await;
        }
        if let Err(why) = self.launch().await {
            panic!("the gate does not start again: {why}");
        }
    }

    /// As [`Self::restart`] with other arguments of `serve`; the error is what it said when it refused.
    pub async fn restart_with(&mut self, args: &[&str]) -> Result<(), String> {
        if self.child.is_some() {
            self.stop().await;
        }
        self.options.args = args.iter().map(|a| (*a).to_owned()).collect();
        self.launch().await
    }

    /// Changes what the next (re)start finds in the environment.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.options.env.push((name.into(), value.into()));
    }

    /// Everything the gate has said so far, over restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("gate.log")
    }

    pub fn conf(&self) -> String {
        fs::read_to_string(self.dir.path().join("conf/pontage.toml")).unwrap()
    }

    pub fn write_conf(&self, text: &str) {
        replace(&self.dir.path().join("conf/pontage.toml"), text);
    }

    pub fn rules(&self, file: &str) -> String {
        fs::read_to_string(self.rules_dir().join(file)).unwrap()
    }

    /// Replaces one rule file the way careful editors do: written beside, then renamed.
    pub fn write_rules(&self, file: &str, text: &str) {
        replace(&self.rules_dir().join(file), text);
    }

    /// SIGHUP.
    pub fn hup(&self) {
        super::signal(self.pid().expect("the gate is not running"), "HUP");
    }

    /// Status and text of an admin page; `None` when nothing answers.
    pub async fn admin_get(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("http://{}{path}", self.admin);
        let reply = super::http().get(url).timeout(Duration::from_secs(20)).send().await.ok()?;
        Some((reply.status().as_u16(), reply.text().await.ok()?))
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let (status, text) = self.admin_get("/metrics").await.expect("no answer from /metrics");
        assert_eq!(status, 200, "/metrics: {text}");
        text
    }

    /// Sum of the samples of one metric whose labels contain every given `name="value"`; 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics().await;
        sample(&text, name, labels)
    }

    /// Waits for a reload: until `pontage_plan_info` shows another generation than `old`, or the limit passes.
    pub async fn generation_after(&self, old: &str, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let now = self.generation().await;
            if now != old {
                return Some(now);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// The live plan's generation, from `pontage_plan_info{generation="…"} 1`.
    pub async fn generation(&self) -> String {
        let text = self.metrics().await;
        let line = text.lines().find(|l| l.starts_with("pontage_plan_info{") && l.trim_end().ends_with(" 1"));
        let line = line.unwrap_or_else(|| panic!("no live pontage_plan_info in:\n{text}"));
        line.split("generation=\"").nth(1).and_then(|r| r.split('"').next()).unwrap_or_default().to_owned()
    }

    /// `/status` as JSON.
    pub async fn status(&self) -> Value {
        let (_, text) = self.admin_get("/status").await.expect("no answer from /status");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("/status is not JSON ({e}): {text}"))
    }

    /// No secret of this gate may be in `text`.
    pub fn assert_no_secrets(&self, what: &str, text: &str) {
        let more = self.options.env.iter().filter(|(n, v)| v.len() >= 12 && n.contains("KEY")).map(|(_, v)| v.as_str());
        for secret in [UPSTREAM_KEY, CHALLENGE_KEY, RECEIPT_KEY, DEV[1].key, &DEV[1].key[2..]].into_iter().chain(more) {
            assert!(!text.contains(secret), "{what} shows a secret:\n{text}");
        }
    }
}

/// Sum of matching samples in a Prometheus text.
pub fn sample(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    text.lines()
        .filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' ')))
        .filter(|l| labels.iter().all(|(n, v)| l.contains(&format!("{n}=\"{v}\""))))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn replace(path: &Path, text: &str) {
    // Beside the watched directory, not in it: a half-written stranger there is another test's subject.
    let beside = path.parent().and_then(Path::parent).unwrap().join("being-written");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}
