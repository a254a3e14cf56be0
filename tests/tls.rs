//! TLS on both sides of the gate: clients over HTTP/1.1 and HTTP/2, backends that must prove who they are, and what an operator
//! hears whose files do not fit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ROOMY, ask, free_route, limits};
use common::gate::Wait;
use common::{Backend, Chain, Gate, GateOptions, Raw, Script, eventually, raw};
use http::{Method, Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A certificate for `localhost` and 127.0.0.1, signed by itself.
struct Identity {
    dir: tempfile::TempDir,
}

impl Identity {
    fn new() -> Self {
        common::init();
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(dir.path())
            .output()
            .expect("these tests need the openssl command");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn cert(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("cert.pem")).unwrap()
    }

    fn client(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cert()).unwrap();
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    }

    fn server(&self) -> rustls::ServerConfig {
        let key = PrivateKeyDer::from_pem_file(self.path("key.pem")).unwrap();
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![self.cert()], key).unwrap()
    }

    /// The gate's own listener speaks TLS with this identity.
    fn on(&self, options: GateOptions) -> GateOptions {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let tls = format!("grace_seconds = 5\ntls = {{ cert = {cert:?}, key = {key:?} }}");
        options.conf_edit("grace_seconds = 5", &tls)
    }
}

struct Got {
    version: Version,
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

/// One request over TLS, in the version that is negotiated when only `h2` or only HTTP/1.1 is offered.
async fn call(gate: &Gate, identity: &Identity, h2: bool, method: Method, path: &str, body: String) -> Got {
    let builder = HttpsConnectorBuilder::new().with_tls_config(identity.client()).https_only();
    let connector = if h2 { builder.enable_http2().build() } else { builder.enable_http1().build() };
    let client = Client::builder(TokioExecutor::new()).http2_only(h2).build(connector);
    let request = Request::builder()
        .method(method)
        .uri(format!("https://localhost:{}{path}", gate.listen.port()))
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body)))
        .unwrap();
    let reply = tokio::time::timeout(PATIENCE, client.request(request)).await.expect("an answer in time").unwrap();
    let (head, body) = reply.into_parts();
    let bytes = tokio::time::timeout(PATIENCE, body.collect()).await.expect("a body in time").unwrap().to_bytes();
    Got {
        version: head.version,
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_served_over_tls_in_either_version_of_http() {
    let identity = Identity::new();
    let bridge = Bridge::with(|o| identity.on(limits(o, &format!("{ROOMY}, header_seconds = 3")))).await;
    // An answer may take longer than the head of a request.
    bridge.backend.tune(|script| script.first_byte = Duration::from_millis(3500));
    for (h2, version) in [(false, Version::HTTP_11), (true, Version::HTTP_2)] {
        let call = |method, path, body| call(&bridge.gate, &identity, h2, method, path, body);
        let models = call(Method::GET, "/v1/models", String::new()).await;
        assert_eq!((models.version, models.status), (version, 200));
        let mut body = ask("hello");
        let unpaid = call(Method::POST, CHAT, body.to_string()).await;
        assert_eq!(unpaid.status, 402, "{version:?}: {}", unpaid.text);
        assert!(unpaid.headers.contains_key("www-authenticate"));
        let whole = call(Method::POST, FREE, body.to_string()).await;
        assert_eq!(whole.status, 200, "{version:?}: {}", whole.text);
        body["stream"] = true.into();
        let streamed = call(Method::POST, FREE, body.to_string()).await;
        assert_eq!(streamed.status, 200, "{version:?}: {}", streamed.text);
        assert!(streamed.text.trim_end().ends_with("data: [DONE]"), "{version:?}: {}", streamed.text);
    }
    bridge.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_shake_hands_is_closed_in_time_and_plain_http_is_not_answered() {
    let identity = Identity::new();
    let bridge = Bridge::with(|o| identity.on(limits(o, &format!("{ROOMY}, header_seconds = 3")))).await;
    let mut silent = bridge.connect().await;
    assert!(silent.closed(PATIENCE).await, "nothing came");
    let mut plain = bridge.connect().await;
    plain.try_send(&raw::post(FREE, &[], ask("hello").to_string().as_bytes())).await;
    assert!(plain.closed(PATIENCE).await);
    assert!(!String::from_utf8_lossy(&plain.seen).contains("HTTP/1"), "{:?}", plain.seen);
    assert!(bridge.backend.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_agrees_on_http2_and_then_asks_for_nothing_is_closed_in_time() {
    let identity = Identity::new();
    let bridge = Bridge::with(|o| identity.on(limits(o, &format!("{ROOMY}, header_seconds = 3")))).await;
    let mut config = identity.client();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    for (says, why) in [
        (Vec::new(), "nothing"),
        (preface.to_vec(), "half a greeting"),
        ([&preface[..], &settings].concat(), "no request"),
    ] {
        let tcp = TcpStream::connect(bridge.gate.listen).await.unwrap();
        let mut inside = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
        assert_eq!(inside.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        inside.write_all(&says).await.unwrap();
        let closed = async { while inside.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} };
        assert!(tokio::time::timeout(PATIENCE, closed).await.is_ok(), "{why}: it may stay for ever");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_fit_stop_the_start_with_a_sentence() {
    let (identity, other) = (Identity::new(), Identity::new());
    let chain = Chain::start().await;
    std::fs::write(identity.path("empty.pem"), "").unwrap();
    std::fs::write(identity.path("junk.pem"), "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").unwrap();
    for (cert, key, says) in [
        (identity.path("cert.pem"), other.path("key.pem"), "do not fit"),
        (identity.path("empty.pem"), identity.path("key.pem"), "holds no certificate"),
        (identity.path("junk.pem"), identity.path("key.pem"), "listen.tls.cert"),
        (identity.path("cert.pem"), identity.path("cert.pem"), "listen.tls.key"),
        (identity.path("cert.pem"), identity.path("none.pem"), "listen.tls.key"),
    ] {
        let tls = format!("grace_seconds = 5\ntls = {{ cert = {cert:?}, key = {key:?} }}");
        let options = GateOptions::new(&chain.url(), "http://127.0.0.1:1").conf_edit("grace_seconds = 5", &tls);
        let said =
            Gate::try_start(options.wait(Wait::Alive)).await.err().unwrap_or_else(|| panic!("{says}: it started"));
        assert!(said.contains(says) && !said.contains("panicked"), "{says}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_after_sighup_and_one_that_does_not_fit_is_not() {
    let (identity, renewed) = (Identity::new(), Identity::new());
    let bridge = Bridge::with(|o| identity.on(limits(o, ROOMY))).await;
    let gate = &bridge.gate;
    let put = |file: &str, to: &str| std::fs::copy(renewed.path(file), identity.path(to)).unwrap();
    let old = Identity { dir: tempfile::tempdir().unwrap() };
    std::fs::copy(identity.path("cert.pem"), old.path("cert.pem")).unwrap();
    let greets = async |who: &Identity| {
        let tls = tokio_rustls::TlsConnector::from(Arc::new(who.client()));
        let tcp = TcpStream::connect(gate.listen).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        tokio::time::timeout(PATIENCE, tls.connect(name, tcp)).await.expect("an answer in time").is_ok()
    };
    assert!(greets(&old).await && !greets(&renewed).await);

    // Half of a renewal: the new certificate, and still the old key.
    put("cert.pem", "cert.pem");
    gate.hup();
    assert!(
        eventually(PATIENCE, async || gate.log().contains("the certificate stays as it was")).await,
        "{}",
        gate.log()
    );
    assert!(greets(&old).await && !greets(&renewed).await);

    put("key.pem", "key.pem");
    gate.write_conf(&gate.conf().replace("grace_seconds = 5", "grace_seconds = 6"));
    gate.hup();
    assert!(eventually(PATIENCE, async || greets(&renewed).await).await, "{}", gate.log());
    assert!(!greets(&old).await);
    let unused = "pontage.toml: listen changed, and is read at start only: restart the gate";
    assert!(eventually(PATIENCE, async || gate.log().contains(unused)).await, "{}", gate.log());
}

/// Takes TLS off what comes in, at every address of loopback, and hands it to `backend`. Returns its URL.
async fn in_tls(backend: &Backend, identity: &Identity) -> String {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(identity.server()));
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let behind = backend.url().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let (Ok(mut inside), Ok(mut plain)) =
                    (acceptor.accept(tcp).await, TcpStream::connect(behind.as_str()).await)
                else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut plain).await;
            });
        }
    });
    url
}

/// A backend that speaks nothing but HTTP/2 over TLS. Returns its URL, the connections it took, and what each request said of
/// the version and of whom it was meant for.
async fn in_http_2(identity: &Identity) -> (String, Arc<AtomicUsize>, Arc<Mutex<Vec<(Version, String)>>>) {
    let mut config = identity.server();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (connections, heard) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Vec<_>>>::default());
    let shared = (Arc::clone(&connections), Arc::clone(&heard));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, (connections, heard)) = (acceptor.clone(), shared.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let Ok(mut connection) = h2::server::handshake(tls).await else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                    let meant_for = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                    heard.lock().unwrap().push((request.version(), meant_for));
                    tokio::spawn(async move {
                        while let Some(Ok(piece)) = request.body_mut().data().await {
                            let _ = request.body_mut().flow_control().release_capacity(piece.len());
                        }
                        let reply = json!({"id": "x", "object": "chat.completion", "created": 1, "model": "m",
                            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
                            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}});
                        let head =
                            http::Response::builder().header("content-type", "application/json").body(()).unwrap();
                        let mut body = respond.send_response(head, false).unwrap();
                        body.send_data(reply.to_string().into(), true).unwrap();
                    });
                }
            });
        }
    });
    (url, connections, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_speaks_http_2_over_tls_is_spoken_to_in_it_on_one_connection() {
    let identity = Identity::new();
    let chain = Chain::start().await;
    let (url, connections, heard) = in_http_2(&identity).await;
    let trusted = identity.path("cert.pem").display().to_string();
    let options = limits(free_route(GateOptions::new(&chain.url(), &url)), ROOMY);
    // Its health path would be asked on connections of their own.
    let options = options.rule_edit("pools.toml", "health = { path = \"/health\", every_seconds = 1 }\n", "");
    let gate = Gate::start(options.env("SSL_CERT_FILE", &trusted)).await;
    for n in 0..5 {
        let request = raw::post(FREE, &[], ask(&format!("number {n}")).to_string().as_bytes());
        let served = raw::exchange(gate.listen, &request).await;
        assert_eq!((served.status, served.json()["choices"][0]["message"]["content"].as_str()), (200, Some("hi")));
    }
    let name = url.trim_start_matches("https://").to_owned();
    assert_eq!(*heard.lock().unwrap(), vec![(Version::HTTP_2, name); 5]);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_over_tls_is_used_only_when_its_certificate_is_trusted() {
    let identity = Identity::new();
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let url = in_tls(&backend, &identity).await;
    let trusted = identity.path("cert.pem").display().to_string();
    let body = ask("hello").to_string();

    let options = limits(free_route(GateOptions::new(&chain.url(), &url)), ROOMY);
    let gate = Gate::start(options.clone().env("SSL_CERT_FILE", &trusted)).await;
    let served = raw::exchange(gate.listen, &raw::post(FREE, &[], body.as_bytes())).await;
    assert_eq!(served.status, 200, "{}", served.text());
    assert_eq!(backend.last().header("host"), Some(url.trim_start_matches("https://")));
    drop(gate);

    let heard = backend.all_requests().len();
    let gate = Gate::start(options.wait(Wait::Alive)).await;
    let mut client = Raw::connect(gate.listen).await;
    client.send(&raw::post(FREE, &[], body.as_bytes())).await;
    let refused = client.reply(PATIENCE).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(backend.all_requests().len(), heard, "not a byte of the prompt or the key left");
    drop(gate);

    // Trusted, but for another name: the one of the rules is what counts, not the address behind it.
    let elsewhere = url.replace("localhost", "127.0.0.2");
    let options = limits(free_route(GateOptions::new(&chain.url(), &elsewhere)), ROOMY).wait(Wait::Alive);
    let gate = Gate::start(options.env("SSL_CERT_FILE", &trusted)).await;
    let mut client = Raw::connect(gate.listen).await;
    client.send(&raw::post(FREE, &[], body.as_bytes())).await;
    let refused = client.reply(PATIENCE).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(backend.all_requests().len(), heard, "nor to one that proves another name");
}
