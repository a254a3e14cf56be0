//! HTTP/1.1 to a service that is named by a secret URL: a chain's node, a fee relay, an x402 facilitator.
//!
//! Written out rather than taken from a client library because of what must *not* happen: no proxy from the environment, no
//! redirect, no retry of a request that may have been heard, no log line or error that repeats the URL, whose path or user
//! part often is an API key.

use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an unused connection is kept: proxies before services close one after a minute, and a request that meets that on its way has an
/// outcome nobody knows.
const IDLE: Duration = Duration::from_secs(50);
/// The same where a server of Node.js may listen, which closes one after 5 s.
pub const SHORT_IDLE: Duration = Duration::from_secs(4);

/// Why there is no whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// No connection could be made: the request was certainly not heard.
    NotSent,
    /// The request may have been heard: the connection broke, the answer was cut off, too large, or did not come in time.
    Lost,
}

/// A whole answer, whatever it says.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// One request to the service.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Path (and query) on the service's host, from [`Web::under`].
    pub path: &'a str,
    /// JSON to POST; without it a GET is made.
    pub json: Option<&'a Bytes>,
    /// Headers besides the ones every request carries.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Most time for the whole exchange.
    pub within: Duration,
    /// Largest answer that is read, in bytes.
    pub at_most: usize,
}

/// A client for one service. Connections are pooled; any Tokio runtime may use it, each call on the runtime it is made in.
pub struct Web {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    scheme: http::uri::Scheme,
    host: http::uri::Authority,
    base: String,
    query: Option<String>,
    authorization: Option<HeaderValue>,
}

/// The URL is a secret.
impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Web(…)")
    }
}

impl Web {
    /// A client for the service at `url` (`http` or `https`; a user part becomes Basic authentication). Nothing is connected
    /// yet. The error is a sentence that does not repeat the URL.
    pub fn new(url: &Secret) -> Result<Self, &'static str> {
        Self::idling(url, IDLE)
    }

    /// As [`Self::new`], with connections that are kept unused for `idle` at most.
    pub fn idling(url: &Secret, idle: Duration) -> Result<Self, &'static str> {
        let bad = "the service's URL is not an http or https URL";
        let uri: Uri = url.expose_str().and_then(|t| t.trim().parse().ok()).ok_or(bad)?;
        let scheme = uri.scheme().filter(|s| matches!(s.as_str(), "http" | "https")).ok_or(bad)?.clone();
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
        let tls = tls(scheme.as_str() == "https")?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let mut pool = Client::builder(TokioExecutor::new());
        pool.pool_timer(TokioTimer::new()).pool_idle_timeout(idle);
        Ok(Self {
            client: pool.build(connector),
            host: host.parse().map_err(|_| bad)?,
            scheme,
            base: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            authorization,
        })
    }

    /// Host and port as the URL writes them.
    pub fn host(&self) -> &str {
        self.host.as_str()
    }

    /// The path of `name` below the URL's own (`""`: the URL itself), with the URL's query.
    pub fn under(&self, name: &str) -> String {
        let mut path =
            if name.is_empty() { self.base.clone() } else { format!("{}/{name}", self.base.trim_end_matches('/')) };
        if let Some(query) = &self.query {
            path.push('?');
            path.push_str(query);
        }
        path
    }

    /// The path a redirect leads to, if it stays with this very service: the same scheme, host and port, so that nothing meant
    /// for it is shown to anyone else.
    pub fn stays_here(&self, reply: &Reply) -> Option<String> {
        let to: Uri = reply.headers.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
        let path = to.path_and_query()?.as_str();
        let same = match (to.scheme(), to.authority()) {
            (None, None) => path.starts_with('/') && !path.starts_with("//"),
            (Some(scheme), Some(host)) => *scheme == self.scheme && *host == self.host,
            _ => false,
        };
        same.then(|| path.to_owned())
    }

    /// Asks once.
    pub async fn ask(&self, ask: Ask<'_>) -> Result<Reply, Silence> {
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.host.clone()).path_and_query(ask.path);
        let mut request = Request::builder()
            .method(if ask.json.is_some() { Method::POST } else { Method::GET })
            .uri(uri.build().map_err(|_| Silence::NotSent)?)
            .header(header::ACCEPT, "application/json");
        if ask.json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let body = Full::new(ask.json.cloned().unwrap_or_default());
        let request = request.body(body).map_err(|_| Silence::NotSent)?;
        let exchange = async {
            let reply = self.client.request(request).await;
            let reply = reply.map_err(|e| if e.is_connect() { Silence::NotSent } else { Silence::Lost })?;
            let (head, body) = reply.into_parts();
            let body = Limited::new(body, ask.at_most).collect().await.map_err(|_| Silence::Lost)?;
            Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::time::timeout(ask.within, exchange).await.map_err(|_| Silence::Lost)?
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

    fn reply(location: &str) -> Reply {
        let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(location).unwrap())]);
        Reply { status: StatusCode::PERMANENT_REDIRECT, headers, body: Bytes::new() }
    }

    #[test]
    fn names_go_below_the_urls_own_path_and_keep_its_query() {
        for (url, name, want) in [
            ("http://h.example", "verify", "/verify"),
            ("http://h.example/", "verify", "/verify"),
            ("http://h.example/platform/v2/x402/", "settle", "/platform/v2/x402/settle"),
            ("http://h.example/x?key=1", "settle", "/x/settle?key=1"),
            ("http://h.example/v1/key?x=1", "", "/v1/key?x=1"),
            ("http://h.example", "", "/"),
        ] {
            assert_eq!(Web::new(&Secret::new(url)).unwrap().under(name), want, "{url}");
        }
    }

    #[test]
    fn a_redirect_is_of_use_only_when_it_stays_with_the_same_service() {
        let web = Web::new(&Secret::new("http://user:key@h.example:81/x")).unwrap();
        for (to, want, why) in [
            ("/y/verify", Some("/y/verify"), "a path here"),
            ("http://h.example:81/y?z=1", Some("/y?z=1"), "the same, written out"),
            ("http://h.example/y", None, "another port"),
            ("https://h.example:81/y", None, "another scheme"),
            ("http://www.h.example:81/y", None, "a neighbour"),
            ("http://evil@h.example:81/y", None, "another user"),
            ("//evil.example/y", None, "another host without a scheme"),
            ("y", None, "a relative path"),
            ("", None, "nothing"),
        ] {
            assert_eq!(web.stays_here(&reply(to)).as_deref(), want, "{why}");
        }
    }

    #[test]
    fn an_https_url_is_prepared_with_the_machines_roots_and_ring() {
        assert!(Web::new(&Secret::new("https://rpc.example/canary")).err().is_none_or(|e| !e.contains("canary")));
        assert!(tls(false).is_ok());
    }

    #[test]
    fn a_url_is_never_repeated() {
        for url in ["ftp://canary.example/key", "canary", "http://", "https://canary:/\n"] {
            assert!(Web::new(&Secret::new(url)).err().is_none_or(|e| !e.contains("canary")), "{url}");
        }
        assert!(!format!("{:?}", Web::new(&Secret::new("http://canary.example/canary")).unwrap()).contains("canary"));
    }

    #[tokio::test]
    async fn a_connection_is_used_again_and_not_when_its_server_may_be_closing_it() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        for (idle, connections) in [(IDLE, 1), (Duration::from_millis(20), 2)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = Secret::new(format!("http://{}", listener.local_addr().unwrap()));
            let seen = Arc::<std::sync::atomic::AtomicUsize>::default();
            let count = Arc::clone(&seen);
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    tokio::spawn(async move {
                        while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                        }
                    });
                }
            });
            let web = Web::idling(&url, idle).unwrap();
            for _ in 0..2 {
                let ask = Ask { path: "/", json: None, headers: &[], within: Duration::from_secs(20), at_most: 1_000 };
                assert_eq!(web.ask(ask).await.unwrap().status, 200);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), connections, "{idle:?}");
            server.abort();
        }
    }
}
