//! The published clients as child processes, and a plain HTTP client.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that a client may take; one that hangs is ended by its process id.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs `testbed/clients/<script>` under Node; `("stream", "true")` becomes the bare flag `--stream`.
pub async fn node(script: &str, flags: &[(&str, &str)]) -> Value {
    super::require_testbed();
    let mut command = Command::new("node");
    command.arg(super::testbed().join("clients").join(script));
    one_line(command, flags).await
}

/// Runs `testbed/clients/<script>` under the test bed's Python.
pub async fn python(script: &str, flags: &[(&str, &str)]) -> Value {
    super::require_testbed();
    let mut command = Command::new(python_path());
    command.arg(super::testbed().join("clients").join(script));
    one_line(command, flags).await
}

/// The interpreter that has the Python clients.
pub fn python_path() -> PathBuf {
    let found =
        Command::new(super::testbed().join("setup")).arg("--python").output().expect("testbed/setup does not run");
    assert!(found.status.success(), "the Python clients are not installed: run `make test` (or `testbed/setup`) first");
    String::from_utf8(found.stdout).unwrap().trim().into()
}

/// The mppx command line as an agent's shell would call it: `mppx URL -J '{…}' -i -f`. Its exit code is 0 even when the
/// paid call ended in an HTTP error, unless `-f` is given.
pub async fn mppx_cli(args: &[&str], key: &str, rpc: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    mppx_cli_at(home.path(), args, key, rpc).await
}

/// The same with what it keeps between calls (accounts, channels) under `home`: `sessions list`, `sessions close 0x… -r RPC`.
pub async fn mppx_cli_at(home: &Path, args: &[&str], key: &str, rpc: &str) -> Output {
    super::require_testbed();
    let mut command = Command::new("node");
    command
        .arg(super::testbed().join("node_modules/mppx/dist/bin.js"))
        .args(args)
        .env("MPPX_PRIVATE_KEY", key)
        .env("MPPX_RPC_URL", rpc)
        .env("XDG_STATE_HOME", home.join("state"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("NO_COLOR", "1");
    run(command).await
}

async fn one_line(mut command: Command, flags: &[(&str, &str)]) -> Value {
    for (name, value) in flags {
        command.arg(format!("--{name}"));
        if *value != "true" {
            command.arg(value);
        }
    }
    let out = run(command).await;
    let (text, noise) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "the client did not run ({}): {noise}", out.status);
    serde_json::from_str(text.trim())
        .unwrap_or_else(|e| panic!("the client must print one line of JSON ({e}): {text} {noise}"))
}

async fn run(mut command: Command) -> Output {
    // An environment's proxy must not stand between a client and loopback.
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let pid = child.id();
    let started = Instant::now();
    let mut waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    match tokio::time::timeout(LIMIT, &mut waiting).await {
        Ok(done) => done.unwrap().unwrap(),
        Err(_) => {
            super::signal(pid, "KILL");
            let out = waiting.await.unwrap().unwrap();
            panic!("client hung for {:?}: {command:?}\n{}", started.elapsed(), String::from_utf8_lossy(&out.stderr));
        }
    }
}

/// `POST` with a JSON body.
pub async fn post_json(url: &str, headers: &[(&str, &str)], body: &Value) -> reqwest::Response {
    let mut request = super::http().post(url).header("content-type", "application/json").body(body.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap_or_else(|e| panic!("POST {url}: {e}"))
}

/// A chat request: one user message.
pub fn chat(model: &str, prompt: &str) -> Value {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": prompt}]})
}
