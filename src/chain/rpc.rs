//! JSON-RPC 2.0 over HTTP, one call per request.
//!
//! Written out rather than taken from a client library because of what must *not* happen: no proxy from the environment, no
//! redirect, no retry of a request that may have been heard, no log line or error that repeats the URL, whose path or user
//! part often is an API key.

use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
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
    /// No answer: nobody knows whether the call was heard.
    Lost,
}

impl Fault {
    /// The same in words that may be shown.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "the chain's node answered with an error",
            Self::Nonsense => "the chain's node answered with nonsense",
            Self::Lost => "the chain's node cannot be reached",
        }
    }
}

/// A client for one node. Connections are pooled; any Tokio runtime may use it, each call on the runtime it is made in.
pub struct Rpc {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    authorization: Option<HeaderValue>,
}

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

impl Rpc {
    /// A client for the node at `url` (`http` or `https`; a user part becomes Basic authentication). Nothing is connected yet.
    /// The error is a sentence that does not repeat the URL.
    pub fn new(url: &Secret) -> Result<Self, &'static str> {
        let bad = "the RPC URL is not an http or https URL";
        let uri: Uri = url.expose_str().and_then(|t| t.trim().parse().ok()).ok_or(bad)?;
        let scheme = uri.scheme_str().filter(|s| matches!(*s, "http" | "https")).ok_or(bad)?;
        let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or(bad)?.as_str();
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let authorization = match user {
            None => None,
            Some(user) => {
                let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(user))).map_err(|_| bad)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let tls = tls(scheme == "https")?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build().map_err(|_| bad)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), uri, authorization })
    }

    /// Calls `method`. A `null` result is whatever `R` makes of it.
    pub async fn ask<P: Serialize, R: DeserializeOwned>(&self, method: &str, params: P) -> Result<R, Fault> {
        let call = Call { jsonrpc: "2.0", id: 1, method, params };
        let body = serde_json::to_vec(&call).map_err(|_| Fault::Nonsense)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| Fault::Nonsense)?;
        let answer = tokio::time::timeout(TOTAL, self.exchange(request)).await.map_err(|_| Fault::Lost)??;
        let answer: Answer<'_> = serde_json::from_slice(&answer).map_err(|_| Fault::Nonsense)?;
        match answer {
            Answer { error: Some(ErrorObject { code, message }), .. } => Err(Fault::Refused { code, message }),
            // An absent result and `null` read alike.
            Answer { result, .. } => {
                serde_json::from_str(result.map_or("null", |r| r.get())).map_err(|_| Fault::Nonsense)
            }
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, Fault> {
        let reply = self.client.request(request).await.map_err(|_| Fault::Lost)?;
        if reply.status() != StatusCode::OK {
            return Err(Fault::Lost);
        }
        let body = Limited::new(reply.into_body(), MAX_ANSWER).collect().await.map_err(|_| Fault::Lost)?;
        Ok(body.to_bytes())
    }
}

/// TLS with ring and the machine's own roots; without roots where no TLS is spoken, because reading them takes time.
fn tls(with_roots: bool) -> Result<rustls::ClientConfig, &'static str> {
    let mut roots = rustls::RootCertStore::empty();
    if with_roots {
        let found =
            rustls_native_certs::load_native_certs().map_err(|_| "the machine's certificates cannot be read")?;
        if roots.add_parsable_certificates(found).0 == 0 {
            return Err("the machine has no root certificates, so no https URL can be trusted");
        }
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| "the TLS client cannot be built")
        .map(|c| c.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
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
            ("HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", lost.clone(), "rate limited"),
            (
                "HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
                lost.clone(),
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

    #[test]
    fn an_https_url_is_prepared_with_the_machines_roots_and_ring() {
        assert!(Rpc::new(&Secret::new("https://rpc.example/canary")).err().is_none_or(|e| !e.contains("canary")));
        assert!(tls(false).is_ok());
    }
}
