//! An OpenAI-compatible backend written by hand, byte by byte, so that a test decides what is sent, when and in which
//! pieces, and knows afterwards what was received and how many tokens really left. Stands alone: `examples/demo_backend.rs`
//! includes this file.
//!
//! By default it answers `/v1/chat/completions` (also `/v1/completions`, `/v1/embeddings`, `/v1/models`, `/health`)
//! deterministically: text `tok0 tok1 …`, `prompt_tokens` = words of the prompt, `completion_tokens` = min(limit, 12) × n.
//! [`Backend::next`] queues another reply for one request, [`Backend::always`] for all that follow.
//! What is not wanted in a test file's build is simply not used; the harness allows dead code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code, unreachable_pub)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How the deterministic model behaves when nothing else was asked for.
#[derive(Clone, Debug)]
pub struct Script {
    /// Tokens of a reply when the request sets no lower limit.
    pub tokens: u64,
    /// Pause before the head of a reply.
    pub first_byte: Duration,
    /// Pause before each streamed token.
    pub per_token: Duration,
    /// Send the usage the request asked for. `false`: a backend that never reports usage.
    pub usage: bool,
    /// `"usage":null` on every earlier chunk, as OpenAI does.
    pub usage_null: bool,
    /// Usage on every chunk even if not asked for; when asked by `continuous_usage_stats` it is always given.
    pub continuous: bool,
    /// Added to the reported `completion_tokens`: reasoning that is billed and never streamed.
    pub hidden_tokens: u64,
    /// `prompt_tokens_details.cached_tokens`, when not 0.
    pub cached_tokens: u64,
    /// Refuse a request whose `Authorization` is not `Bearer <this>`.
    pub bearer: Option<String>,
    /// `prompt_tokens` of every usage, instead of the words of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Text put into each token instead of `tok`.
    pub word: String,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 12,
            first_byte: Duration::ZERO,
            per_token: Duration::ZERO,
            usage: true,
            usage_null: false,
            continuous: false,
            hidden_tokens: 0,
            cached_tokens: 0,
            bearer: None,
            prompt_tokens: None,
            word: "tok".into(),
        }
    }
}

/// One move of a scripted reply, on the bare connection.
#[derive(Clone, Debug)]
pub enum Step {
    /// Exactly these bytes, in one write.
    Bytes(Vec<u8>),
    /// These bytes carry so many completion tokens (for the audit).
    Tokens(u64, Vec<u8>),
    /// These bytes carry the usage `(prompt, completion)` (for the audit).
    Usage(u64, u64, Vec<u8>),
    Wait(Duration),
    /// Nothing more before [`Backend::release`].
    Held,
    /// Nothing more, until the other side gives up.
    Hang,
    /// TCP reset.
    Reset,
    /// Orderly close.
    Close,
}

/// What one request gets.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The deterministic model with these settings.
    Model(Script),
    /// Exactly these steps.
    Steps(Vec<Step>),
    /// The same, once [`Backend::release`] is called.
    Held(Box<Reply>),
    /// `status` with everything the request carried (headers and body) in the error message: a leaky backend.
    Echo { status: u16 },
}

impl Reply {
    pub fn steps(steps: impl IntoIterator<Item = Step>) -> Self {
        Self::Steps(steps.into_iter().collect())
    }

    /// A whole reply with a length.
    pub fn status(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        Self::Steps(vec![Step::Bytes(with_length(status, &[("content-type", content_type)], body.as_ref()))])
    }

    /// As [`Self::status`], with more headers.
    pub fn with_headers(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        Self::Steps(vec![Step::Bytes(with_length(status, headers, body.as_ref()))])
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::status(status, "application/json", body.to_string())
    }

    pub fn html(status: u16) -> Self {
        Self::status(status, "text/html", "<html><body><h1>502 Bad Gateway</h1>nginx/1.2.3</body></html>")
    }

    /// An error as OpenAI shapes it.
    pub fn error(status: u16, kind: &str, code: &str, message: &str) -> Self {
        Self::json(status, &json!({"error": {"message": message, "type": kind, "param": null, "code": code}}))
    }

    /// A JSON reply compressed though nobody should have asked for it.
    pub fn gzip(body: &Value) -> Self {
        let packed = gzip_stored(body.to_string().as_bytes());
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        Self::Steps(vec![Step::Bytes(with_length(200, &headers, &packed))])
    }

    /// A stream of exactly these pieces, each one HTTP chunk and one write. Without `[DONE]` unless a piece says so.
    pub fn stream<T: AsRef<[u8]>>(pieces: impl IntoIterator<Item = T>) -> Self {
        let mut steps = vec![Step::Bytes(stream_head())];
        steps.extend(pieces.into_iter().map(|p| Step::Bytes(chunk(p.as_ref()))));
        steps.push(Step::Bytes(b"0\r\n\r\n".to_vec()));
        Self::Steps(steps)
    }

    /// As [`Self::stream`], but every byte of the payload arrives in writes (and chunks) of `size` bytes.
    pub fn stream_in_pieces_of(size: usize, payload: &[u8]) -> Self {
        Self::stream(payload.chunks(size.max(1)).map(<[u8]>::to_vec).collect::<Vec<_>>())
    }

    /// A stream that stops after these pieces and then does `end` (hang, reset, close).
    pub fn broken_stream<T: AsRef<[u8]>>(pieces: impl IntoIterator<Item = T>, end: Step) -> Self {
        let mut steps = vec![Step::Bytes(stream_head())];
        steps.extend(pieces.into_iter().map(|p| Step::Bytes(chunk(p.as_ref()))));
        steps.push(end);
        Self::Steps(steps)
    }

    /// Accepts the request and never answers.
    pub fn hang() -> Self {
        Self::Steps(vec![Step::Hang])
    }

    /// Accepts the request, and answers so once [`Backend::release`] is called.
    pub fn held(self) -> Self {
        Self::Held(Box::new(self))
    }

    /// Accepts the request and resets the connection.
    pub fn reset() -> Self {
        Self::Steps(vec![Step::Reset])
    }

    /// Accepts the request and closes the connection.
    pub fn close() -> Self {
        Self::Steps(vec![Step::Close])
    }
}

/// One request as it arrived, and what became of it.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: String,
    /// Path with the query, as on the request line.
    pub path: String,
    /// In order, names as sent.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
    /// Which connection it came on, counted from 0.
    pub connection: u64,
    /// Completion tokens that were really written to the socket.
    pub produced: u64,
    /// `(prompt, completion)` of the usage that was really written.
    pub reported: Option<(u64, u64)>,
    /// Set when the other side closed before the reply was complete: how long after the request.
    pub closed_early: Option<Duration>,
    /// The whole reply was written.
    pub complete: bool,
}

impl Recorded {
    /// First header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the backend received a body that is not JSON")
    }
}

struct State {
    script: Mutex<Script>,
    queue: Mutex<VecDeque<Reply>>,
    always: Mutex<Option<Reply>>,
    requests: Mutex<Vec<Recorded>>,
    healthy: AtomicBool,
    connections: AtomicU64,
    serial: AtomicU64,
    held: Notify,
}

/// A running backend; dropping it closes the listener and every connection.
pub struct Backend {
    pub addr: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Ends it; nobody listens at its address any more.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub async fn start(script: Script) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), script).await
    }

    pub async fn start_on(addr: SocketAddr, script: Script) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap_or_else(|e| panic!("backend cannot listen on {addr}: {e}"));
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(script),
            queue: Mutex::default(),
            always: Mutex::default(),
            requests: Mutex::default(),
            healthy: AtomicBool::new(true),
            connections: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            held: Notify::new(),
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // Owned here, so that aborting this task ends the connections too.
            let mut open = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => { open.spawn(serve(stream, shared.clone())); }
                        Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    },
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Self { addr, state, task }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The next request that is not a health check gets this reply; calls queue up.
    pub fn next(&self, reply: Reply) {
        self.state.queue.lock().unwrap().push_back(reply);
    }

    /// Every request without a queued reply gets this one; `None` returns to the model.
    pub fn always(&self, reply: impl Into<Option<Reply>>) {
        *self.state.always.lock().unwrap() = reply.into();
    }

    /// Lets every held reply go that waits now.
    pub fn release(&self) {
        self.state.held.notify_waiters();
    }

    /// Changes how the model behaves from the next request on.
    pub fn tune(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.state.script.lock().unwrap());
    }

    /// What `/health` says.
    pub fn healthy(&self, yes: bool) {
        self.state.healthy.store(yes, Ordering::SeqCst);
    }

    /// Everything received, health checks included.
    pub fn all_requests(&self) -> Vec<Recorded> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Requests other than `GET /health`.
    pub fn requests(&self) -> Vec<Recorded> {
        self.all_requests().into_iter().filter(|r| r.path != "/health").collect()
    }

    /// The last request other than a health check.
    pub fn last(&self) -> Recorded {
        self.requests().pop().expect("the backend has received no request")
    }

    /// Completion tokens written to sockets, over all requests.
    pub fn tokens_produced(&self) -> u64 {
        self.all_requests().iter().map(|r| r.produced).sum()
    }

    /// Sum of `(prompt, completion)` over every usage that was written.
    pub fn usage_reported(&self) -> (u64, u64) {
        self.all_requests().iter().filter_map(|r| r.reported).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }
}

/// How a reply ended.
enum End {
    KeepAlive,
    Close,
    ClientGone,
}

/// One connection: its socket, what was read beyond the current request, and whether the other side still listens.
struct Link {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Link {
    async fn fill(&mut self) -> bool {
        let mut room = [0u8; 16 * 1024];
        match self.stream.read(&mut room).await {
            Ok(n) if n > 0 => {
                self.rest.extend_from_slice(&room[..n]);
                true
            }
            _ => false,
        }
    }

    /// Waits, but not longer than the other side stays. `false`: it left.
    async fn pause(&mut self, time: Duration) -> bool {
        time.is_zero() || self.pause_until(std::pin::pin!(tokio::time::sleep(time))).await
    }

    /// The same for something else than time.
    async fn pause_until<F: Future<Output = ()>>(&mut self, mut end: Pin<&mut F>) -> bool {
        loop {
            tokio::select! {
                biased;
                () = &mut end => return true,
                more = self.fill() => if !more { return false },
            }
        }
    }

    /// Has the other side closed? Does not wait.
    fn gone(&mut self) -> bool {
        let mut room = [0u8; 4096];
        loop {
            match self.stream.try_read(&mut room) {
                Ok(0) => return true,
                Ok(n) => self.rest.extend_from_slice(&room[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true; // a mark for the audit, nothing to send
        }
        !self.gone() && self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok()
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let connection = state.connections.fetch_add(1, Ordering::SeqCst);
    let mut link = Link { stream, rest: Vec::new() };
    while let Some(request) = read_request(&mut link, connection).await {
        let started = request.at;
        // Taken before the test sees the request, so that a release that follows it is not missed.
        let released = state.held.notified();
        tokio::pin!(released);
        released.as_mut().enable();
        let reply = choose(&state, &request);
        let index = {
            let mut all = state.requests.lock().unwrap();
            all.push(request.clone());
            all.len() - 1
        };
        let note = |change: &dyn Fn(&mut Recorded)| change(&mut state.requests.lock().unwrap()[index]);
        let steps = steps(reply, &request, &state);
        let mut end = End::KeepAlive;
        for step in steps {
            let alive = match step {
                Step::Bytes(bytes) => link.write(&bytes).await,
                Step::Tokens(count, bytes) => {
                    let sent = link.write(&bytes).await;
                    if sent {
                        note(&|r| r.produced += count);
                    }
                    sent
                }
                Step::Usage(prompt, completion, bytes) => {
                    let sent = link.write(&bytes).await;
                    if sent {
                        note(&|r| r.reported = Some((prompt, completion)));
                    }
                    sent
                }
                Step::Wait(time) => link.pause(time).await,
                Step::Held => link.pause_until(released.as_mut()).await,
                Step::Hang => link.pause(Duration::from_secs(3600)).await,
                Step::Reset => {
                    let _ = link.stream.set_zero_linger();
                    return;
                }
                Step::Close => {
                    end = End::Close;
                    break;
                }
            };
            if !alive {
                end = End::ClientGone;
                break;
            }
        }
        match end {
            End::ClientGone => {
                note(&|r| r.closed_early = Some(started.elapsed()));
                return;
            }
            End::Close => {
                let _ = link.stream.shutdown().await;
                return;
            }
            End::KeepAlive => note(&|r| r.complete = true),
        }
        if request.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
            let _ = link.stream.shutdown().await;
            return;
        }
    }
}

fn steps(reply: Reply, request: &Recorded, state: &State) -> Vec<Step> {
    match reply {
        Reply::Steps(steps) => steps,
        Reply::Echo { status } => echo(status, request),
        Reply::Model(script) => model(&script, request, state.serial.fetch_add(1, Ordering::SeqCst)),
        Reply::Held(then) => [vec![Step::Held], steps(*then, request, state)].concat(),
    }
}

fn choose(state: &State, request: &Recorded) -> Reply {
    if request.path == "/health" {
        return match state.healthy.load(Ordering::SeqCst) {
            true => Reply::json(200, &json!({"status": "ok"})),
            false => Reply::json(503, &json!({"status": "down"})),
        };
    }
    if let Some(reply) = state.queue.lock().unwrap().pop_front() {
        return reply;
    }
    if let Some(reply) = state.always.lock().unwrap().clone() {
        return reply;
    }
    Reply::Model(state.script.lock().unwrap().clone())
}

/// One HTTP/1.1 request: head, then a body by length or by chunks.
async fn read_request(link: &mut Link, connection: u64) -> Option<Recorded> {
    let head_end = loop {
        if let Some(at) = find(&link.rest, b"\r\n\r\n") {
            break at;
        }
        if !link.fill().await {
            return None;
        }
    };
    let at = Instant::now();
    let head = String::from_utf8_lossy(&link.rest[..head_end]).into_owned();
    link.rest.drain(..head_end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
    let get = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
    if get("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
        && !link.write(b"HTTP/1.1 100 Continue\r\n\r\n").await
    {
        return None;
    }
    let mut body = Vec::new();
    if get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let line_end = loop {
                if let Some(at) = find(&link.rest, b"\r\n") {
                    break at;
                }
                if !link.fill().await {
                    return None;
                }
            };
            let size = String::from_utf8_lossy(&link.rest[..line_end]).into_owned();
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            while link.rest.len() < line_end + 2 + size + 2 {
                if !link.fill().await {
                    return None;
                }
            }
            body.extend_from_slice(&link.rest[line_end + 2..line_end + 2 + size]);
            link.rest.drain(..line_end + 2 + size + 2);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = get("content-length").and_then(|v| v.parse::<usize>().ok()) {
        while link.rest.len() < length {
            if !link.fill().await {
                return None;
            }
        }
        body = link.rest.drain(..length).collect();
    }
    Some(Recorded {
        method,
        path,
        headers,
        body,
        at,
        connection,
        produced: 0,
        reported: None,
        closed_early: None,
        complete: false,
    })
}

/// The deterministic model.
fn model(script: &Script, request: &Recorded, serial: u64) -> Vec<Step> {
    if let Some(key) = &script.bearer
        && request.header("authorization") != Some(&format!("Bearer {key}"))
    {
        let refusal = json!({"message": "bad key", "type": "auth", "param": null, "code": "invalid_api_key"});
        return plain(401, &json!({"error": refusal}));
    }
    let path = request.path.split('?').next().unwrap_or_default();
    if request.method == "GET" && path == "/v1/models" {
        return plain(200, &json!({"object": "list", "data": [{"id": "gpt-oss-120b", "object": "model"}]}));
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return plain(
            400,
            &json!({"error": {"message": "not JSON", "type": "invalid_request_error", "param": null, "code": null}}),
        );
    };
    let words = words(&body["messages"]) + words(&body["prompt"]) + words(&body["input"]);
    let prompt = script.prompt_tokens.unwrap_or(words);
    match path {
        "/v1/chat/completions" => talk(script, &body, prompt, serial, true),
        "/v1/completions" => talk(script, &body, prompt, serial, false),
        "/v1/embeddings" => {
            let reply = json!({"object": "list", "model": body["model"], "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
                "usage": {"prompt_tokens": prompt, "total_tokens": prompt}});
            vec![
                Step::Wait(script.first_byte),
                Step::Usage(
                    prompt,
                    0,
                    with_length(200, &[("content-type", "application/json")], reply.to_string().as_bytes()),
                ),
            ]
        }
        _ => plain(
            404,
            &json!({"error": {"message": "no such path", "type": "invalid_request_error", "param": null, "code": null}}),
        ),
    }
}

fn talk(script: &Script, body: &Value, prompt: u64, serial: u64, chat: bool) -> Vec<Step> {
    let limit = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64()).unwrap_or(u64::MAX);
    let length = script.tokens.min(limit);
    let finish = if length < script.tokens { "length" } else { "stop" };
    let n = body["n"].as_u64().unwrap_or(1);
    let completion = length * n + script.hidden_tokens;
    let usage = |completion: u64| {
        let mut usage =
            json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion});
        if script.cached_tokens > 0 {
            usage["prompt_tokens_details"] = json!({"cached_tokens": script.cached_tokens});
        }
        if script.hidden_tokens > 0 {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": script.hidden_tokens});
        }
        usage
    };
    let token = |i: u64| format!("{}{}{i}", if i == 0 { "" } else { " " }, script.word);
    let id = if chat { format!("chatcmpl-{serial}") } else { format!("cmpl-{serial}") };
    if body["stream"] != json!(true) {
        let text: String = (0..length).map(token).collect();
        let choices: Vec<Value> = (0..n)
            .map(|index| match chat {
                true => {
                    json!({"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish})
                }
                false => json!({"index": index, "text": text, "finish_reason": finish}),
            })
            .collect();
        let kind = if chat { "chat.completion" } else { "text_completion" };
        let mut reply = json!({"id": id, "object": kind, "created": 1, "model": body["model"], "choices": choices});
        if script.usage {
            reply["usage"] = usage(completion);
        }
        let bytes = with_length(200, &[("content-type", "application/json")], reply.to_string().as_bytes());
        let wait = script.first_byte + script.per_token * u32::try_from(length).unwrap_or(u32::MAX);
        let sent = match script.usage {
            true => Step::Usage(prompt, completion, bytes),
            false => Step::Bytes(bytes),
        };
        // The tokens are counted by an empty write after the whole body went out.
        return vec![Step::Wait(wait), sent, Step::Tokens(completion, Vec::new())];
    }

    let options = &body["stream_options"];
    let wants_usage = script.usage && options["include_usage"] == json!(true);
    let continuous = wants_usage && (script.continuous || options["continuous_usage_stats"] == json!(true));
    let kind = if chat { "chat.completion.chunk" } else { "text_completion" };
    let piece = |choices: Value, figure: Option<Value>| {
        let mut event = json!({"id": id, "object": kind, "created": 1, "model": body["model"], "choices": choices});
        match figure {
            Some(figure) => event["usage"] = figure,
            None if script.usage_null && wants_usage => event["usage"] = Value::Null,
            None => {}
        }
        chunk(format!("data: {event}\n\n").as_bytes())
    };
    let mut steps = vec![Step::Wait(script.first_byte), Step::Bytes(stream_head())];
    for i in 0..length {
        steps.push(Step::Wait(script.per_token));
        for index in 0..n {
            let choice = match (chat, i) {
                (true, 0) => {
                    json!([{"index": index, "delta": {"role": "assistant", "content": token(0)}, "finish_reason": null}])
                }
                (true, _) => json!([{"index": index, "delta": {"content": token(i)}, "finish_reason": null}]),
                (false, _) => json!([{"index": index, "text": token(i), "finish_reason": null}]),
            };
            // vLLM's running figure is per choice, its final one is the sum.
            steps.push(Step::Tokens(1, piece(choice, continuous.then(|| usage(i + 1)))));
        }
    }
    for index in 0..n {
        let choice = match chat {
            true => json!([{"index": index, "delta": {}, "finish_reason": finish}]),
            false => json!([{"index": index, "text": "", "finish_reason": finish}]),
        };
        steps.push(Step::Bytes(piece(choice, continuous.then(|| usage(length)))));
    }
    if wants_usage {
        steps.push(Step::Usage(prompt, completion, piece(json!([]), Some(usage(completion)))));
        steps.push(Step::Tokens(script.hidden_tokens, Vec::new()));
    }
    steps.push(Step::Bytes(chunk(b"data: [DONE]\n\n")));
    steps.push(Step::Bytes(b"0\r\n\r\n".to_vec()));
    steps
}

/// A backend that repeats what it was sent, in the place where careless backends do.
fn echo(status: u16, request: &Recorded) -> Vec<Step> {
    let headers: Vec<String> = request.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
    let message = format!(
        "{} {} {} {}",
        request.method,
        request.path,
        headers.join(" | "),
        String::from_utf8_lossy(&request.body)
    );
    plain(status, &json!({"error": {"message": message, "type": "server_error", "param": null, "code": "echo"}}))
}

fn plain(status: u16, body: &Value) -> Vec<Step> {
    vec![Step::Bytes(with_length(status, &[("content-type", "application/json")], body.to_string().as_bytes()))]
}

/// Words of every text in a prompt, whatever its shape: string, list of strings, messages, content parts.
pub fn words(prompt: &Value) -> u64 {
    match prompt {
        Value::String(text) => text.split_whitespace().count() as u64,
        Value::Array(parts) => parts.iter().map(words).sum(),
        Value::Object(part) => ["content", "text"].iter().filter_map(|k| part.get(*k)).map(words).sum(),
        _ => 0,
    }
}

/// Head and body of a reply with a length.
pub fn with_length(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}

/// Head of a chunked event stream.
pub fn stream_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()
}

/// One HTTP chunk.
pub fn chunk(payload: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
    out
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// A valid gzip member made of stored blocks: no compressor needed.
pub fn gzip_stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = data.chunks(0xffff).peekable();
    if blocks.peek().is_none() {
        out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let size = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&(!size).to_le_bytes());
        out.extend_from_slice(block);
    }
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (0u32.wrapping_sub(crc & 1)));
        }
    }
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out
}
