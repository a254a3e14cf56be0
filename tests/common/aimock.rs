//! npm `@copilotkit/aimock`, unmodified, as a backend that nobody here wrote: what it takes for a chat request, how it
//! frames a stream, which figures it reports, and what it remembers of a request are its own.
//!
//! It demands [`UPSTREAM_KEY`] itself and answers 401 to any other key, a second one in `x-api-key` and the like included.
//! A reply is chosen by what the user's message contains: see the constants, or [`Aimock::add`] more.
//!
//! What it does not do, so nothing may be concluded from it: it ignores `max_tokens` and `n`, never writes `usage: null` or
//! `*_tokens_details`, and knows no usage on every chunk.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::gate::UPSTREAM_KEY;

/// Answered with [`TEXT`] and [`USAGE`], plain or streamed.
pub const HELLO: &str = "say hello";
/// What [`HELLO`] gets, and the second try of [`REFUSED`] and [`HUNG_UP`].
pub const TEXT: &str = "Hello from a house that is not ours.";
/// `(prompt, completion)` tokens that it reports, unlike anything that could be counted in the texts.
pub const USAGE: (u64, u64) = (1_717, 423);
/// 503 at the first try.
pub const REFUSED: &str = "be out of order";
/// At the first try the connection is closed before a byte of the reply.
pub const HUNG_UP: &str = "hang up";
/// Streamed: [`HALF`] in single words, then the connection breaks. Not streamed: whole.
pub const CUT: &str = "break off";
/// What arrives at most of [`CUT`].
pub const HALF: &str = "one two three four five six";

/// A running aimock; dropping it ends its process by id.
pub struct Aimock {
    child: Child,
    url: String,
    /// Fixtures, which it reads once.
    _dir: tempfile::TempDir,
}

impl Drop for Aimock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request as aimock wrote it down. It hides keys in its journal; that the key was right is shown by the answer.
#[derive(Clone, Debug)]
pub struct Heard(pub Value);

impl Heard {
    /// The JSON body, without the notes that aimock makes in it for itself.
    pub fn body(&self) -> Value {
        let mut body = self.0["body"].clone();
        body.as_object_mut().expect("a body").retain(|name, _| !name.starts_with('_'));
        body
    }

    /// Names in lower case.
    pub fn headers(&self) -> Vec<(&str, &str)> {
        let headers = self.0["headers"].as_object().expect("headers");
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or(""))).collect()
    }

    pub fn status(&self) -> u64 {
        self.0["response"]["status"].as_u64().unwrap_or(0)
    }

    /// It broke off its reply, as told.
    pub fn interrupted(&self) -> bool {
        self.0["response"]["interrupted"] == true
    }
}

impl Aimock {
    pub async fn start() -> Self {
        super::require_testbed();
        let dir = tempfile::tempdir().unwrap();
        let fixtures = dir.path().join("fixtures.json");
        std::fs::write(&fixtures, json!({ "fixtures": fixtures_at_start() }).to_string()).unwrap();
        let mut child = Command::new("node")
            .arg(super::testbed().join("node_modules/@copilotkit/aimock/dist/cli.js"))
            .args(["--port", "0", "--host", "127.0.0.1", "--validate-on-load", "--fixtures"])
            .arg(&fixtures)
            .env("AIMOCK_API_KEYS", UPSTREAM_KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start node: {e}"));
        let (say, said) = mpsc::channel();
        let out = child.stdout.take().expect("piped");
        // To its end, for a full pipe would stop it.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        let mut aimock = Self { child, url: String::new(), _dir: dir };
        let mut heard = Vec::new();
        while aimock.url.is_empty() {
            match said.recv_timeout(Duration::from_secs(60)) {
                Ok(line) => {
                    if let Some((_, url)) = line.split_once("listening on ") {
                        aimock.url = url.trim().to_owned();
                    }
                    heard.push(line);
                }
                Err(why) => panic!("aimock does not start ({why}); it said: {heard:#?}"),
            }
        }
        aimock
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn addr(&self) -> std::net::SocketAddr {
        self.url.strip_prefix("http://").and_then(|a| a.parse().ok()).expect("an address")
    }

    /// One more fixture, in aimock's own form; earlier ones win.
    pub async fn add(&self, fixture: Value) {
        let reply = super::http()
            .post(format!("{}/__aimock/fixtures", self.url))
            .bearer_auth(UPSTREAM_KEY)
            .json(&json!({ "fixtures": [fixture] }))
            .send()
            .await
            .unwrap();
        let (status, text) = (reply.status(), reply.text().await.unwrap());
        assert!(status.is_success(), "aimock does not take the fixture: {text}");
    }

    /// Every chat request that came with the right key, oldest first.
    pub async fn journal(&self) -> Vec<Heard> {
        let url = format!("{}/__aimock/journal?path=/v1/chat/completions", self.url);
        let reply = super::http().get(url).bearer_auth(UPSTREAM_KEY).send().await.unwrap();
        let entries: Vec<Value> = reply.json().await.unwrap();
        entries.into_iter().map(Heard).collect()
    }

    /// The last of [`Self::journal`].
    pub async fn last(&self) -> Heard {
        self.journal().await.pop().expect("aimock was asked nothing")
    }
}

fn fixtures_at_start() -> Vec<Value> {
    // With a fixed id and time, two replies to one request are the same bytes.
    let answer = |content: &str| {
        json!({
            "content": content, "id": "chatcmpl-fixed", "created": 1_700_000_000,
            "usage": {"prompt_tokens": USAGE.0, "completion_tokens": USAGE.1},
        })
    };
    let first = |prompt: &str| json!({"userMessage": prompt, "sequenceIndex": 0});
    let always = |prompt: &str| json!({"match": {"userMessage": prompt}, "response": answer(TEXT), "chunkSize": 6});
    vec![
        always(HELLO),
        json!({
            "match": first(REFUSED),
            "response": {"status": 503, "error": {"message": "model gpt-oss-120b is loading", "type": "server_error", "code": "loading"}},
        }),
        always(REFUSED),
        json!({"match": first(HUNG_UP), "response": answer(TEXT), "chaos": {"disconnectRate": 1}}),
        always(HUNG_UP),
        // It breaks off with its seventh chunk, the first being the role. Without pauses nothing would leave it at all.
        json!({
            "match": {"userMessage": CUT}, "response": answer(&format!("{HALF} seven eight nine ten")),
            "chunkSize": 4, "latency": 20, "truncateAfterChunks": 7,
        }),
    ]
}
