//! JSON-RPC 2.0 over HTTP, one call per request.

use super::web::{Ask, SHORT_IDLE, Web};
use super::{Head, Unreachable};
use crate::clock::UnixSeconds;
use crate::secret::Secret;
use alloy::primitives::U64;
use bytes::Bytes;
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a whole call may take; a node may hold a synchronous send until the transaction is in a block.
const TOTAL: Duration = Duration::from_secs(25);
/// Largest answer that is read.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node answered with a JSON-RPC error. The message is the node's: match on it, never show it.
    Refused {
        /// Its code.
        code: i64,
        /// Its words.
        message: String,
    },
    /// It answered with something else than the result asked for.
    Nonsense,
    /// It answered with another HTTP status than 200: nobody knows what it did.
    Status(u16),
    /// No answer: nobody knows whether the call was heard.
    Lost,
}

impl Fault {
    /// The same in words that may be shown.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "the chain's node answered with an error",
            Self::Nonsense => Unreachable::NONSENSE.why,
            Self::Status(401 | 403) => "the chain's node does not take our key (HTTP 401 or 403)",
            Self::Status(429) => "the chain's node says that we ask too often (HTTP 429)",
            Self::Status(_) => "the chain's node answered with an HTTP error",
            Self::Lost => "the chain's node cannot be reached",
        }
    }
}

impl From<Fault> for Unreachable {
    fn from(fault: Fault) -> Self {
        Self { why: fault.words() }
    }
}

/// A client for one node.
pub struct Rpc(Web);

#[derive(Serialize)]
struct Call<'a, P> {
    jsonrpc: &'static str,
    id: u8,
    method: &'a str,
    params: P,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    result: Option<&'a serde_json::value::RawValue>,
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    message: String,
}

#[derive(Deserialize)]
struct Block {
    number: U64,
    timestamp: U64,
}

impl Rpc {
    /// A client for the node at `url` (`http` or `https`; a user part becomes Basic authentication). Nothing is connected yet.
    /// The error is a sentence that does not repeat the URL.
    pub fn new(url: &Secret) -> Result<Self, &'static str> {
        Web::new(url).map(Self)
    }

    /// As [`Self::new`], for a service that closes its connections early.
    pub fn briefly(url: &Secret) -> Result<Self, &'static str> {
        Web::idling(url, SHORT_IDLE).map(Self)
    }

    /// Calls `method`. A `null` result is whatever `R` makes of it.
    pub async fn ask<P: Serialize, R: DeserializeOwned>(&self, method: &str, params: P) -> Result<R, Fault> {
        let call = Call { jsonrpc: "2.0", id: 1, method, params };
        let body = serde_json::to_vec(&call).map_err(|_| Fault::Nonsense)?;
        let (path, body) = (self.0.under(""), Bytes::from(body));
        let ask = Ask { path: &path, json: Some(&body), headers: &[], within: TOTAL, at_most: MAX_ANSWER };
        let reply = self.0.ask(ask).await.map_err(|_| Fault::Lost)?;
        if reply.status != StatusCode::OK {
            return Err(Fault::Status(reply.status.as_u16()));
        }
        let answer: Answer<'_> = serde_json::from_slice(&reply.body).map_err(|_| Fault::Nonsense)?;
        match answer {
            Answer { error: Some(ErrorObject { code, message }), .. } => Err(Fault::Refused { code, message }),
            // An absent result and `null` read alike.
            Answer { result, .. } => {
                serde_json::from_str(result.map_or("null", |r| r.get())).map_err(|_| Fault::Nonsense)
            }
        }
    }

    /// The newest block of an Ethereum-like node, and which chain it answers for.
    pub async fn head(&self) -> Result<Head, Fault> {
        let (id, block) = futures::future::try_join(
            self.ask::<_, U64>("eth_chainId", ()),
            self.ask::<_, Block>("eth_getBlockByNumber", ("latest", false)),
        )
        .await?;
        Ok(Head { chain_id: id.to(), number: block.number.to(), time: UnixSeconds(block.timestamp.to()) })
    }

    /// When a block was made; `None` for one that the node does not have.
    pub async fn time(&self, block: u64) -> Result<Option<UnixSeconds>, Fault> {
        let found = self.ask::<_, Option<Block>>("eth_getBlockByNumber", (U64::from(block), false)).await?;
        Ok(found.map(|block| UnixSeconds(block.timestamp.to())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A node that gives one reply to one request, and the request it got.
    async fn node(reply: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 65_536];
            let mut text = String::new();
            while !text.contains("\"params\"") {
                let n = stream.read(&mut buffer).await.unwrap();
                text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            }
            stream.write_all(reply.as_bytes()).await.unwrap();
            text
        });
        (at, heard)
    }

    #[tokio::test]
    async fn a_user_part_becomes_basic_authentication_and_leaves_the_url() {
        let (at, heard) =
            node("HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"0x10\"}")
                .await;
        let rpc = Rpc::new(&Secret::new(format!("http://user:canary@{at}/v1/key?x=1"))).unwrap();
        assert_eq!(rpc.ask::<_, String>("eth_chainId", ()).await, Ok("0x10".to_owned()));
        let heard = heard.await.unwrap();
        assert!(heard.starts_with("POST /v1/key?x=1 HTTP/1.1\r\n"), "{heard}");
        assert!(heard.to_lowercase().contains(&format!("host: {at}\r\n")) && !heard.contains("canary"), "{heard}");
        assert!(heard.contains(&format!("Basic {}", STANDARD.encode("user:canary"))), "{heard}");
    }

    #[tokio::test]
    async fn an_answer_is_a_result_a_refusal_or_nothing() {
        let lost = Err(Fault::Lost);
        for (reply, want, why) in [
            ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"result\":null}", Ok(None), "null"),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"result\":\"x\"}", Ok(Some("x".to_owned())), "a result"),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"error\":{\"code\":-32003,\"message\":\"no\"}}",
                Err(Fault::Refused { code: -32003, message: "no".into() }),
                "an error",
            ),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>", Err(Fault::Nonsense), "not JSON"),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"result\":7}", Err(Fault::Nonsense), "another type"),
            ("HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", Err(Fault::Status(429)), "rate limited"),
            (
                "HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
                Err(Fault::Status(307)),
                "redirect",
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", lost.clone(), "cut off"),
            ("", lost, "closed"),
        ] {
            let (at, _heard) = node(reply).await;
            let rpc = Rpc::new(&Secret::new(format!("http://{at}"))).unwrap();
            assert_eq!(rpc.ask::<_, Option<String>>("m", ()).await, want, "{why}");
        }
    }

    #[tokio::test]
    async fn connections_may_be_used_from_another_runtime() {
        let (at, _heard) = node("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"result\":\"x\"}").await;
        let rpc = Rpc::new(&Secret::new(format!("http://{at}"))).unwrap();
        let elsewhere = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(rpc.ask::<_, String>("m", ()))
        });
        let got = tokio::task::spawn_blocking(|| elsewhere.join().unwrap()).await.unwrap();
        assert_eq!(got, Ok("x".to_owned()));
    }
}
