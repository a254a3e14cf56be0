//! llama.cpp's own server, built by `testbed/setup --llama` from the sources that PyPI llama-cpp-python carries, with a model of random
//! weights (`testbed/llama/make_model.py`): what it says is ASCII text, a token for each character, until its limit. A [`Llama`] is
//! reached over a wire that keeps what the server sent, so that a test can compare it with what came out of the gate.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::backend::find;
use super::gate::UPSTREAM_KEY;
use super::{eventually, free_port, http};

/// How many requests it works on at once; it makes as many choices of one at most.
pub const SLOTS: u64 = 4;
/// Tokens of context of each.
pub const CONTEXT: u64 = 8192;

/// A running server; dropping it ends its process by id.
pub struct Llama {
    child: Child,
    server: SocketAddr,
    wire: SocketAddr,
    tapes: Arc<Mutex<Vec<Tape>>>,
}

/// What passed on one connection.
#[derive(Default)]
struct Tape {
    heard: Vec<u8>,
    sent: Vec<u8>,
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's program; the model is beside it.
fn program() -> PathBuf {
    let found = Command::new(super::testbed().join("setup")).arg("--llama-path").output().expect("testbed/setup runs");
    assert!(found.status.success(), "llama.cpp's server is not built: run `testbed/setup --llama` first");
    String::from_utf8(found.stdout).unwrap().trim().into()
}

impl Llama {
    /// Started, and its model loaded.
    pub async fn start(more: &[&str]) -> Self {
        let llama = Self::begin(more).await;
        assert!(
            eventually(Duration::from_secs(60), || async { llama.health().await.0 == 200 }).await,
            "it never loads"
        );
        llama
    }

    /// Started, and nothing awaited.
    pub async fn begin(more: &[&str]) -> Self {
        let server = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let program = program();
        let child = Command::new(&program)
            .arg("--model")
            .arg(program.with_file_name("tiny.gguf"))
            .args(["--host", "127.0.0.1", "--port", &server.port().to_string(), "--alias", "gpt-oss-120b"])
            .args(["--parallel", &SLOTS.to_string(), "--ctx-size", &(SLOTS * CONTEXT).to_string(), "--threads", "1"])
            .args(["--no-kv-unified", "--no-ui", "--offline", "--api-key", UPSTREAM_KEY])
            .args(more)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{} cannot be started: {e}", program.display()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = listener.local_addr().unwrap();
        let tapes = Arc::<Mutex<Vec<Tape>>>::default();
        let kept = Arc::clone(&tapes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let at = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Tape::default());
                    kept.len() - 1
                };
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let Ok(there) = TcpStream::connect(server).await else { return };
                    let ((from_client, to_client), (from_there, to_there)) = (client.into_split(), there.into_split());
                    let heard = |bytes: &[u8]| kept.lock().unwrap()[at].heard.extend_from_slice(bytes);
                    let sent = |bytes: &[u8]| kept.lock().unwrap()[at].sent.extend_from_slice(bytes);
                    // Whoever hangs up, hangs up on the other: a wire holds nothing.
                    tokio::select! {
                        () = pass(from_client, to_there, heard) => (),
                        () = pass(from_there, to_client, sent) => (),
                    }
                });
            }
        });
        Self { child, server, wire, tapes }
    }

    /// Where a gate reaches it.
    pub fn url(&self) -> String {
        format!("http://{}", self.wire)
    }

    /// Without the wire.
    pub fn direct(&self) -> SocketAddr {
        self.server
    }

    /// Status of `/health`, 0 when nobody listens, and what it says.
    pub async fn health(&self) -> (u16, Value) {
        match http().get(format!("http://{}/health", self.server)).send().await {
            Ok(reply) => (reply.status().as_u16(), reply.json().await.unwrap_or_default()),
            Err(_) => (0, Value::Null),
        }
    }

    /// Requests it works on now.
    pub async fn busy(&self) -> usize {
        let asked = http().get(format!("http://{}/slots", self.server)).bearer_auth(UPSTREAM_KEY).send().await.unwrap();
        let slots: Vec<Value> = asked.json().await.unwrap();
        slots.iter().filter(|slot| slot["is_processing"] == true).count()
    }

    /// Forgets what passed so far.
    pub fn rewind(&self) {
        self.tapes.lock().unwrap().iter_mut().for_each(|tape| *tape = Tape::default());
    }

    /// The body of its one reply since [`Self::rewind`], byte for byte; health checks, which pass by the same wire, are not counted.
    pub fn said(&self) -> String {
        let tapes = self.tapes.lock().unwrap();
        let asked = tapes.iter().filter(|tape| find(&tape.heard, b"POST ").is_some());
        let mut bodies: Vec<_> = asked.flat_map(|tape| bodies(&tape.sent)).filter(|body| body != HEALTHY).collect();
        assert_eq!(bodies.len(), 1, "one reply, not {bodies:#?}");
        bodies.remove(0)
    }

    /// What it was sent since [`Self::rewind`], heads and bodies.
    pub fn heard(&self) -> String {
        let tapes = self.tapes.lock().unwrap();
        tapes.iter().map(|tape| String::from_utf8_lossy(&tape.heard).into_owned()).collect()
    }
}

/// What `/health` says.
const HEALTHY: &str = r#"{"status":"ok"}"#;

/// Bodies of the replies on one connection.
fn bodies(mut rest: &[u8]) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(end) = find(rest, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&rest[..end]).to_lowercase();
        rest = &rest[end + 4..];
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let body = match length {
            Some(length) => {
                let (body, behind) = rest.split_at(length.trim().parse().unwrap());
                rest = behind;
                body.to_vec()
            }
            None => unchunked(&mut rest),
        };
        bodies.push(String::from_utf8(body).unwrap());
    }
    bodies
}

/// One chunked body, taken from the front.
fn unchunked(rest: &mut &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = find(rest, b"\r\n").expect("a whole chunk");
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap().trim(), 16).expect("a chunk's size");
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        *rest = &rest[line + 2 + size + 2..];
        if size == 0 {
            return body;
        }
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, keep: impl Fn(&[u8])) {
    let mut room = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut room).await {
        keep(&room[..n]);
        if to.write_all(&room[..n]).await.is_err() {
            return;
        }
    }
}
