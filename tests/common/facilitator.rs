//! A facilitator that does as it is told: every wrong, late, broken or lying answer that the gate must survive. It verifies
//! nothing and moves no money; [`super::Facilitator`] is the one that does.
//!
//! ```ignore
//! let facilitator = Scripted::start(&["eip155:84532"]).await;          // says yes to everything
//! facilitator.next(SETTLE, Answer::Hang);                             // one call
//! facilitator.always(VERIFY, Answer::status(503, "text/html", "<html>"));
//! assert_eq!(facilitator.count(SETTLE), 1);
//! assert_eq!(facilitator.last(SETTLE).json()["paymentRequirements"]["amount"], "1000");
//! ```

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::backend::{find, with_length};

pub const SUPPORTED: &str = "/supported";
pub const VERIFY: &str = "/verify";
pub const SETTLE: &str = "/settle";
/// Whoever pays, when the payment does not say.
pub const PAYER: &str = "0x857b06519E91e3A54538791bDbb0E22373e36b66";

/// Pays the fees on Solana: the fee payer of [`super::SvmBed`], which a wallet asks for nothing.
pub const FEE_PAYER: &str = "AKnL4NNf3DGWZJS6cPknBuEGnVsV4A4m5tgebLHaRSZ9";

/// What one call gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// As a facilitator does that finds everything in order: the payer of the payment, the network and amount of the
    /// requirements, a transaction hash of its own each time.
    Yes,
    /// [`Answer::Yes`] with these members put over it; a `null` takes the member away.
    But(Value),
    /// Any status, headers and body.
    Http { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Exactly these bytes, then the connection closes.
    Bytes(Vec<u8>),
    /// The answer, but late.
    After(Duration, Box<Answer>),
    /// The answer once [`Scripted::release`] is called.
    Held(Box<Answer>),
    /// Whatever the facilitator behind this one says; see [`Scripted::before`].
    Real,
    /// The facilitator behind this one does it, and this is what is said.
    Done(Box<Answer>),
    /// Hears the call and says nothing until the other side gives up.
    Hang,
    /// Hears the call and resets the connection.
    Reset,
    /// Hears the call and closes.
    Close,
    /// The head and half of the body of this answer, then silence until the other side gives up.
    Half(Box<Answer>),
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::status(status, "application/json", body.to_string())
    }

    pub fn status(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        Self::with_headers(status, &[("content-type", content_type)], body)
    }

    pub fn with_headers(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Self::Http { status, headers, body: body.as_ref().to_vec() }
    }

    /// What a load balancer says in front of a facilitator that is down.
    pub fn html(status: u16) -> Self {
        Self::status(status, "text/html", "<html><body><h1>502 Bad Gateway</h1>nginx/1.2.3</body></html>")
    }

    /// As the public one was seen to answer.
    pub fn redirect(to: &str) -> Self {
        Self::with_headers(308, &[("location", to)], "")
    }

    pub fn too_many(retry_after: &str) -> Self {
        Self::with_headers(429, &[("retry-after", retry_after), ("content-type", "application/json")], "{}")
    }

    /// 200 that is no JSON.
    pub fn malformed() -> Self {
        Self::status(200, "application/json", "{\"isValid\": tru")
    }

    /// 200 with so many bytes of JSON white space before a good word.
    pub fn huge(bytes: usize) -> Self {
        let mut body = vec![b' '; bytes];
        body.extend_from_slice(br#"{"success":true,"isValid":true}"#);
        Self::status(200, "application/json", body)
    }

    /// A verdict of verify, as x402-rs sends it with 400 and the TypeScript one with 200.
    pub fn invalid(status: u16, reason: &str) -> Self {
        Self::json(status, &json!({"isValid": false, "invalidReason": reason, "payer": PAYER}))
    }

    /// A verdict of settle: it did not happen.
    pub fn failed(status: u16, reason: &str) -> Self {
        let body = json!({"success": false, "errorReason": reason, "transaction": "", "network": "eip155:84532"});
        Self::json(status, &body)
    }

    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }

    pub fn held(self) -> Self {
        Self::Held(Box::new(self))
    }

    pub fn done(self) -> Self {
        Self::Done(Box::new(self))
    }

    pub fn half(self) -> Self {
        Self::Half(Box::new(self))
    }
}

/// Lies and accidents of settle, each with why the gate must not take it for a settlement. `Yes` with these over it.
pub fn settlements_that_are_none() -> Vec<(&'static str, Answer)> {
    vec![
        ("success is a word and not a truth", Answer::But(json!({"success": "true"}))),
        ("success is a number", Answer::But(json!({"success": 1}))),
        ("success is missing", Answer::But(json!({"success": null}))),
        ("success with no transaction", Answer::But(json!({"transaction": null}))),
        ("success with an empty transaction", Answer::But(json!({"transaction": ""}))),
        ("success on another network", Answer::But(json!({"network": "eip155:1"}))),
        ("success of another payer", Answer::But(json!({"payer": "0x00000000000000000000000000000000000000AA"}))),
        ("success of less than was asked", Answer::But(json!({"amount": "1"}))),
        ("still pending", Answer::But(json!({"success": false, "errorReason": "settlement_pending"}))),
        ("a list", Answer::status(200, "application/json", "[]")),
        ("null", Answer::status(200, "application/json", "null")),
        ("no JSON", Answer::malformed()),
        ("a web page", Answer::html(200)),
        ("nothing", Answer::status(200, "application/json", "")),
    ]
}

/// One call as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    /// With the query, without the base path.
    pub path: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Byte for byte.
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a facilitator is asked in JSON")
    }
}

#[derive(Default)]
struct Script {
    once: HashMap<String, VecDeque<Answer>>,
    always: HashMap<String, Answer>,
    /// The facilitator behind this one.
    real: Option<String>,
    supported: Value,
    calls: Vec<Call>,
    connections: u64,
    settled: u64,
}

/// A running scripted facilitator; dropping it closes the listener and every connection.
pub struct Scripted {
    addr: SocketAddr,
    script: Arc<Mutex<Script>>,
    held: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    /// Lists v2 `exact` and `upto` on every network given, and v1 `exact` where v1 has a name for it.
    pub async fn start(networks: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script { supported: supported(networks), ..Script::default() }));
        let held = Arc::new(Notify::new());
        let (shared, holding) = (script.clone(), held.clone());
        let task = tokio::spawn(async move {
            // Owned here, so that aborting this task ends the connections too.
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        shared.lock().unwrap().connections += 1;
                        open.spawn(serve(stream, shared.clone(), holding.clone()));
                    },
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Self { addr, script, held, task }
    }

    /// In front of a real one, whose word it passes on until told otherwise.
    pub async fn before(real: &str) -> Self {
        let scripted = Self::start(&[]).await;
        scripted.script.lock().unwrap().real = Some(real.to_owned());
        scripted
    }

    /// `http://127.0.0.1:PORT`. A base path in front of the three is ignored: `url() + "/platform/v2/x402"` works too.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The next call of this path that has no other answer queued before it.
    pub fn next(&self, path: &str, answer: Answer) {
        self.script.lock().unwrap().once.entry(path.to_owned()).or_default().push_back(answer);
    }

    /// Drops the answers that are queued for this path.
    pub fn forget_next(&self, path: &str) {
        self.script.lock().unwrap().once.remove(path);
    }

    /// Every call of this path without a queued answer; `None` returns to yes.
    pub fn always(&self, path: &str, answer: impl Into<Option<Answer>>) {
        let mut script = self.script.lock().unwrap();
        match answer.into() {
            Some(answer) => script.always.insert(path.to_owned(), answer),
            None => script.always.remove(path),
        };
    }

    /// Changes what `/supported` lists from the next question on.
    pub fn lists(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.script.lock().unwrap().supported);
    }

    /// Lets every held answer go that waits now.
    pub fn release(&self) {
        self.held.notify_waiters();
    }

    /// Calls of this path so far, oldest first.
    pub fn calls(&self, path: &str) -> Vec<Call> {
        self.script.lock().unwrap().calls.iter().filter(|c| c.path == path).cloned().collect()
    }

    pub fn count(&self, path: &str) -> usize {
        self.calls(path).len()
    }

    pub fn last(&self, path: &str) -> Call {
        self.calls(path).pop().unwrap_or_else(|| panic!("the facilitator was not asked for {path}"))
    }

    /// Waits until this path was asked for `count` times.
    pub async fn asked(&self, path: &str, count: usize) {
        let heard = super::eventually(Duration::from_secs(20), || async { self.count(path) >= count });
        assert!(heard.await, "{path} was asked for {} times in 20 s, not {count}", self.count(path));
    }

    /// TCP connections so far.
    pub fn connections(&self) -> u64 {
        self.script.lock().unwrap().connections
    }
}

/// A `/supported` as the TypeScript facilitator writes it.
pub fn supported(networks: &[&str]) -> Value {
    let mut kinds = Vec::new();
    for network in networks {
        if network.starts_with("solana:") {
            let extra = json!({"feePayer": FEE_PAYER});
            kinds.push(json!({"x402Version": 2, "scheme": "exact", "network": network, "extra": extra}));
            let v1 = if network.ends_with("xqa1") { "solana-devnet" } else { "solana" };
            kinds.push(json!({"x402Version": 1, "scheme": "exact", "network": v1, "extra": extra}));
            continue;
        }
        kinds.push(json!({"x402Version": 2, "scheme": "exact", "network": network}));
        let extra = json!({"facilitatorAddress": super::DEV[0].address});
        kinds.push(json!({"x402Version": 2, "scheme": "upto", "network": network, "extra": extra}));
        let v1 = [("eip155:84532", "base-sepolia"), ("eip155:8453", "base"), ("eip155:137", "polygon")];
        if let Some((_, name)) = v1.iter().find(|(id, _)| id == network) {
            kinds.push(json!({"x402Version": 1, "scheme": "exact", "network": name}));
        }
    }
    json!({"kinds": kinds, "extensions": ["eip2612GasSponsoring"], "signers": {"eip155:*": [super::DEV[0].address]}})
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<Script>>, held: Arc<Notify>) {
    let _ = stream.set_nodelay(true);
    let mut rest = Vec::new();
    while let Some(call) = read_call(&mut stream, &mut rest).await {
        // Taken before the call is seen by the test, so that a release that follows it is not missed.
        let released = held.notified();
        tokio::pin!(released);
        released.as_mut().enable();
        let mut answer = {
            let mut script = script.lock().unwrap();
            let chosen = script.once.get_mut(&call.path).and_then(VecDeque::pop_front);
            let usual = if script.real.is_some() { Answer::Real } else { Answer::Yes };
            let chosen = chosen.or_else(|| script.always.get(&call.path).cloned()).unwrap_or(usual);
            script.calls.push(call.clone());
            chosen
        };
        loop {
            answer = match answer {
                Answer::After(delay, then) => match wait(&mut stream, &mut rest, tokio::time::sleep(delay)).await {
                    true => *then,
                    false => return,
                },
                Answer::Held(then) => match wait(&mut stream, &mut rest, released.as_mut()).await {
                    true => *then,
                    false => return,
                },
                Answer::Real => passed_on(&call, &script).await,
                Answer::Done(then) => {
                    passed_on(&call, &script).await;
                    *then
                }
                other => break answer = other,
            };
        }
        let bytes = match answer {
            Answer::Hang => {
                wait(&mut stream, &mut rest, std::future::pending()).await;
                return;
            }
            Answer::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Answer::Close => return,
            Answer::Bytes(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Answer::Half(whole) => {
                let bytes = written(*whole, &call, &script);
                let head = find(&bytes, b"\r\n\r\n").map_or(0, |at| at + 4);
                let _ = stream.write_all(&bytes[..head + (bytes.len() - head) / 2]).await;
                wait(&mut stream, &mut rest, std::future::pending()).await;
                return;
            }
            whole => written(whole, &call, &script),
        };
        if stream.write_all(&bytes).await.is_err() || call.header("connection").is_some_and(|v| v == "close") {
            return;
        }
    }
}

/// The same call to the facilitator behind this one.
async fn passed_on(call: &Call, script: &Mutex<Script>) -> Answer {
    let real = script.lock().unwrap().real.clone().expect("a facilitator behind this one");
    let url = format!("{real}{}", call.path);
    let asked = match call.method.as_str() {
        "GET" => super::http().get(url),
        _ => super::http().post(url).header("content-type", "application/json").body(call.body.clone()),
    };
    let reply = asked.send().await.expect("the facilitator behind this one answers");
    let status = reply.status().as_u16();
    Answer::status(status, "application/json", reply.bytes().await.expect("a whole answer"))
}

/// Waits, but not longer than the other side stays. `false`: it left.
async fn wait(stream: &mut TcpStream, rest: &mut Vec<u8>, until: impl Future<Output = ()>) -> bool {
    tokio::pin!(until);
    let mut room = [0u8; 4096];
    loop {
        tokio::select! {
            biased;
            () = &mut until => return true,
            read = stream.read(&mut room) => match read {
                Ok(n) if n > 0 => rest.extend_from_slice(&room[..n]),
                _ => return false,
            },
        }
    }
}

fn written(answer: Answer, call: &Call, script: &Mutex<Script>) -> Vec<u8> {
    let body = match answer {
        Answer::Http { status, headers, body } => {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            return with_length(status, &headers, &body);
        }
        Answer::But(over) => {
            let mut body = yes(call, script);
            for (name, value) in over.as_object().expect("members") {
                match value {
                    Value::Null => drop(body.as_object_mut().unwrap().shift_remove(name)),
                    value => body[name] = value.clone(),
                }
            }
            body
        }
        _ => yes(call, script),
    };
    if body.is_null() {
        return with_length(404, &[("content-type", "application/json")], b"{}");
    }
    with_length(200, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// What an honest facilitator would say, had it looked.
fn yes(call: &Call, script: &Mutex<Script>) -> Value {
    let asked: Value = serde_json::from_slice(&call.body).unwrap_or(Value::Null);
    let payment = &asked["paymentPayload"]["payload"];
    let named = payment["authorization"]["from"].as_str().or(payment["permit2Authorization"]["from"].as_str());
    let named = named.map(str::to_owned).or_else(|| solana_payer(payment["transaction"].as_str()?));
    let payer = named.unwrap_or_else(|| PAYER.to_owned());
    let requirements = &asked["paymentRequirements"];
    let solana = requirements["network"].as_str().is_some_and(|network| network.starts_with("solana"));
    let amount = requirements["amount"].as_str().or(requirements["maxAmountRequired"].as_str());
    let mut script = script.lock().unwrap();
    match call.path.as_str() {
        SUPPORTED => script.supported.clone(),
        VERIFY => json!({"isValid": true, "payer": payer}),
        SETTLE => {
            script.settled += 1;
            let transaction = match solana {
                true => bs58::encode([[7; 56].as_slice(), &script.settled.to_be_bytes()].concat()).into_string(),
                false => format!("0x{:064x}", script.settled),
            };
            json!({
                "success": true, "transaction": transaction, "network": requirements["network"], "payer": payer,
                "amount": amount,
            })
        }
        _ => Value::Null,
    }
}

/// Who signs beside the fee payer: the second account of a versioned transaction with two signatures.
fn solana_payer(transaction: &str) -> Option<String> {
    let wire = base64::engine::general_purpose::STANDARD.decode(transaction).ok()?;
    let message = wire.get(1 + 64 * usize::from(*wire.first()?)..)?;
    // Version, three counts, the number of accounts, the fee payer.
    message.get(5 + 32..5 + 64).map(|account| bs58::encode(account).into_string())
}

/// One HTTP/1.1 request with a length, or without a body.
async fn read_call(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Option<Call> {
    let mut room = [0u8; 16 * 1024];
    loop {
        if let Some(end) = find(rest, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let mut first = lines.next()?.split(' ');
            let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
            let headers: Vec<(String, String)> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let length = headers.iter().find(|(name, _)| name == "content-length");
            let length = length.map_or(Some(0), |(_, value)| value.parse::<usize>().ok())?;
            if rest.len() >= end + 4 + length {
                let body = rest[end + 4..end + 4 + length].to_vec();
                rest.drain(..end + 4 + length);
                // A facilitator may live under a path.
                let known = [SUPPORTED, VERIFY, SETTLE].into_iter().find(|known| path.ends_with(known));
                let path = known.map_or(path, str::to_owned);
                return Some(Call { method, path, headers, body, at: Instant::now() });
            }
        }
        match stream.read(&mut room).await {
            Ok(n) if n > 0 => rest.extend_from_slice(&room[..n]),
            _ => return None,
        }
    }
}
