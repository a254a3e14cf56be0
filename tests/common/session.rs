//! What tests of sessions need beside the gate: a seller that is not ours, and the published Rust client.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use alloy::primitives::Address;
use futures::StreamExt;
use mpp::client::{Fetch, TempoSessionProvider};
use mpp::protocol::core::Receipt;
use serde_json::Value;

use super::{Chain, Wallet};

/// What the reference seller takes for a token, in atoms.
pub const TOKEN: u128 = 75;

/// mppx's own server side as a process: six tokens an answer, one for JSON.
pub struct Seller {
    child: Child,
    /// Of its paid route.
    pub url: String,
    pub payee: Address,
}

impl Drop for Seller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seller {
    /// `rpc` must know the reserve; `suggested` is the deposit it suggests, in USD.
    pub async fn start(chain: &Chain, rpc: &str, suggested: &str) -> Self {
        let payee = Wallet::fresh(chain, 1_000_000).await;
        let mut child = Command::new("node")
            .arg(super::testbed().join("reference-session.mjs"))
            .args([rpc, &payee.secret(), suggested])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node");
        let out = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).map(|_| line)
        });
        let origin = line.await.unwrap().expect("the seller says where it is");
        let url = format!("{}/v1/chat/completions", origin.trim());
        Self { child, url, payee: payee.address }
    }
}

/// The published Rust client on one channel.
pub struct CrateSession {
    provider: TempoSessionProvider,
    http: reqwest::Client,
    url: String,
}

/// What came back of one paid request.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// The whole body as it arrived.
    pub raw: String,
    /// Each `payment-need-voucher`: the total that was asked for.
    pub asked: Vec<u128>,
    /// The last `payment-receipt` event, or the header's receipt.
    pub receipt: Option<Value>,
}

impl CrateSession {
    /// Locks `deposit` atoms at most.
    pub fn new(wallet: &Wallet, rpc: &str, url: &str, deposit: u128) -> Self {
        let provider =
            TempoSessionProvider::new(wallet.signer.clone(), rpc).expect("an RPC URL").with_max_deposit(deposit);
        Self { provider, http: super::http(), url: url.to_owned() }
    }

    /// Asks for content, pays, and reads it to the end; vouchers that a stream asks for are sent on the way.
    pub async fn ask(&self, body: &Value) -> Answer {
        let request = self.http.post(&self.url).header("content-type", "application/json");
        let request = request.header("Accept-Payment", "tempo/session").body(body.to_string());
        let reply = request.send_with_payment(&self.provider).await.unwrap_or_else(|e| panic!("it cannot pay: {e}"));
        let mut answer = Answer { status: reply.status().as_u16(), ..Answer::default() };
        let header = reply.headers().get("payment-receipt").and_then(|value| value.to_str().ok());
        answer.receipt = header.map(super::payer::unpack);
        let mut stream = reply.bytes_stream();
        let mut frames = String::new();
        while let Some(part) = stream.next().await {
            let part = part.unwrap_or_else(|e| panic!("the stream broke: {e}; so far {}", answer.raw));
            answer.raw.push_str(&String::from_utf8_lossy(&part));
            frames.push_str(&String::from_utf8_lossy(&part));
            while let Some(end) = frames.find("\n\n") {
                let frame: String = frames.drain(..end + 2).collect();
                self.event(&frame, &mut answer).await;
            }
        }
        answer
    }

    async fn event(&self, frame: &str, answer: &mut Answer) {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(name), Some(data)) = (field("event:"), field("data:")) else { return };
        let Some(work) = self.provider.stream_event(&self.http, &self.url, name, data) else { return };
        work.await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let event: Value = serde_json::from_str(data).expect("JSON");
        match name {
            "payment-need-voucher" => answer.asked.push(event["requiredCumulative"].as_str().unwrap().parse().unwrap()),
            _ => answer.receipt = Some(event),
        }
    }

    /// Closes the channel; the receipt's reference is what the client makes of it.
    pub async fn close(&self) -> Option<Receipt> {
        self.provider.close(&self.http, &self.url).await.unwrap_or_else(|e| panic!("it cannot close: {e}"))
    }

    /// What the client believes it has spent, in atoms.
    pub fn spent(&self) -> u128 {
        self.provider.spend().spent
    }

    /// The channel's id.
    pub fn channel(&self) -> Option<alloy::primitives::B256> {
        self.provider.channels().values().next().map(|entry| entry.channel_id)
    }
}
