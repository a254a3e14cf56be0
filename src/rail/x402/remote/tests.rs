//! A real client against a small server that says what a test tells it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::money::Atoms;
use crate::network::Network;
use crate::rail::x402::facilitator::Expects;
use crate::rail::x402::wire::Scheme;
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PAYER: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
const TX: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";
const VALID: &str = r#"{"isValid":true,"payer":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}"#;
const KINDS: &str = r#"{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:84532"}]}"#;

/// What the server does with one request.
#[derive(Clone)]
enum Line {
    /// Writes these bytes and closes.
    Raw(String),
    /// Never answers.
    Hang,
    /// Writes for ever.
    Flood,
}

fn http(status: u16, headers: &str, body: &str) -> Line {
    let length = body.len();
    Line::Raw(format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"))
}

fn ok(body: &str) -> Line {
    http(200, "content-type: application/json\r\n", body)
}

/// Answers from a script; its last line is repeated. Keeps every request, head and body.
struct Server {
    at: String,
    heard: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<VecDeque<Line>>>,
}

impl Server {
    async fn start(script: Vec<Line>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        let (kept, lines) = (Arc::clone(&heard), Arc::clone(&script));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, lines) = (Arc::clone(&kept), Arc::clone(&lines));
                tokio::spawn(async move { Self::serve(stream, &kept, &lines).await });
            }
        });
        Self { at, heard, script }
    }

    async fn serve(mut stream: TcpStream, heard: &Mutex<Vec<String>>, script: &Mutex<VecDeque<Line>>) {
        let Some(request) = request(&mut stream).await else { return };
        heard.lock().unwrap().push(request);
        let line = {
            let mut script = script.lock().unwrap();
            if script.len() > 1 { script.pop_front().unwrap() } else { script.front().unwrap().clone() }
        };
        match line {
            Line::Raw(text) => drop(stream.write_all(text.as_bytes()).await),
            Line::Hang => std::future::pending().await,
            Line::Flood => {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").await);
                while stream.write_all(&[b' '; 4096]).await.is_ok() {}
            }
        }
    }

    fn says(&self, lines: Vec<Line>) {
        *self.script.lock().unwrap() = lines.into();
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    fn settings(&self) -> Settings {
        Settings {
            url: Secret::new(format!("http://{}/canary/", self.at)),
            auth: Auth::None,
            minimal: false,
            times: HASTY,
        }
    }

    fn remote(&self) -> Remote {
        Remote::new(self.settings()).unwrap()
    }
}

async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ").map(|l| l.parse().unwrap()));
        if body.len() >= length.unwrap_or(0) {
            return Some(text);
        }
    }
}

/// Long enough for a loaded machine where an answer comes, short where none does.
const HASTY: Times = Times {
    verify: Duration::from_millis(300),
    settle: Duration::from_millis(300),
    supported: Duration::from_secs(20),
    refresh: Duration::from_secs(3_600),
    again: Duration::from_millis(5),
    stale: Duration::from_secs(3_600),
    rest: Duration::from_millis(20),
};
const PATIENT: Duration = Duration::from_secs(20);

fn patient(mut settings: Settings) -> Remote {
    (settings.times.verify, settings.times.settle) = (PATIENT, PATIENT);
    Remote::new(settings).unwrap()
}

struct Sample {
    network: Network,
    payload: Box<RawValue>,
    requirements: Box<RawValue>,
}

fn sample() -> Sample {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    Sample {
        network: Network::parse("eip155:84532").unwrap(),
        // Spacing, order and unknown members are the client's.
        payload: raw(
            r#"{"x402Version":2, "payload":{"signature":"0xcanary","x":1.50}, "accepted":{"amount":"10000"}, "new":{"b":1,"a":2}}"#,
        ),
        requirements: raw(r#"{"amount":"10000"}"#),
    }
}

impl Sample {
    fn call(&self) -> Call<'_> {
        Call {
            version: Version::V2,
            payload: &self.payload,
            requirements: &self.requirements,
            expects: Expects { network: &self.network, payer: Some(PAYER), amount: Atoms(10_000) },
            again: false,
        }
    }

    fn kind(&self) -> Kind {
        Kind { version: Version::V2, scheme: Scheme::Exact, network: self.network.clone() }
    }
}

fn settled(change: impl FnOnce(&mut Value)) -> Line {
    let mut said = json!({"success": true, "transaction": TX, "network": "eip155:84532", "payer": PAYER});
    change(&mut said);
    ok(&said.to_string())
}

fn word(settlement: &Settlement) -> &'static str {
    match settlement {
        Settlement::Settled { .. } => "settled",
        Settlement::Failed { .. } => "failed",
        Settlement::Unknown { .. } => "unknown",
    }
}

#[tokio::test]
async fn the_clients_payload_goes_out_as_it_came_with_our_requirements() {
    let server = Server::start(vec![ok(VALID)]).await;
    let sample = sample();
    assert_eq!(patient(server.settings()).verify(&sample.call()).await, Verdict::Valid { payer: Some(PAYER.into()) });
    let heard = server.heard().remove(0);
    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /canary/verify HTTP/1.1\r\n"), "{head}");
    assert_eq!(
        body,
        format!(
            r#"{{"x402Version":2,"paymentPayload":{},"paymentRequirements":{}}}"#,
            sample.payload.get(),
            sample.requirements.get()
        )
    );
}

#[tokio::test]
async fn a_facilitator_that_refuses_unknown_members_gets_the_known_ones_only() {
    let server = Server::start(vec![ok(VALID)]).await;
    let remote = patient(Settings { minimal: true, ..server.settings() });
    let sample = sample();
    for version in [Version::V2, Version::V1] {
        assert!(matches!(remote.verify(&Call { version, ..sample.call() }).await, Verdict::Valid { .. }));
    }
    let sent: Vec<Value> =
        server.heard().iter().map(|h| serde_json::from_str(h.split_once("\r\n\r\n").unwrap().1).unwrap()).collect();
    assert_eq!(
        sent[0]["paymentPayload"].to_string(),
        r#"{"x402Version":2,"payload":{"signature":"0xcanary","x":1.50},"accepted":{"amount":"10000"}}"#
    );
    assert!(sent[1]["paymentPayload"]["new"].is_object(), "a v1 payment has no spare members");
}

#[tokio::test]
async fn whatever_the_wire_does_silence_is_unknown_and_only_a_whole_true_answer_is_settled() {
    let truth = format!(r#"{{"success":true,"transaction":"{TX}","network":"eip155:84532"}}"#);
    let padded = format!("{}{truth}", " ".repeat(300_000));
    let half = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{truth}", truth.len() + 5);
    for (line, want, why) in [
        (ok(&truth), "settled", "the truth"),
        (http(200, "content-type: text/html\r\n", &truth), "settled", "the truth under another content type"),
        (ok("<html>success</html>"), "unknown", "a page"),
        (ok(""), "unknown", "an empty body"),
        (ok(&padded), "unknown", "larger than any answer"),
        (Line::Flood, "unknown", "a body without end"),
        (Line::Raw(half), "unknown", "cut off, though it reads well"),
        (Line::Raw("HTTP/1.1 200 OK\r\n".into()), "unknown", "half a head"),
        (Line::Raw("nonsense\r\n\r\n".into()), "unknown", "not HTTP"),
        (Line::Raw(String::new()), "unknown", "closed at once"),
        (Line::Hang, "unknown", "silence"),
        (http(204, "", ""), "unknown", "no content"),
        (http(429, "retry-after: 1\r\n", ""), "unknown", "too many requests"),
        (http(502, "", &truth), "unknown", "yes, with an error"),
        (http(500, "", r#"{"success":false,"errorReason":"boom"}"#), "unknown", "no, with an error"),
        (http(400, "", r#"{"success":false,"errorReason":"invalid_payload"}"#), "failed", "a refusal"),
        (http(308, "location: http://127.0.0.1:1/settle\r\n", &truth), "unknown", "a redirect to somebody else"),
        (http(302, "location: /settle\r\n", &truth), "unknown", "a redirect that turns POST into GET"),
        (http(308, "location: /again\r\n", &truth), "unknown", "a redirect without end"),
    ] {
        let server = Server::start(vec![line.clone()]).await;
        let silent = matches!(line, Line::Hang);
        let remote = if silent { server.remote() } else { patient(server.settings()) };
        let sample = sample();
        let got = remote.settle(&sample.call()).await;
        assert_eq!(word(&got), want, "{why}: {got:?}");
        assert!(!format!("{got:?} {remote:?}").contains("canary"), "{why}");
        assert!(server.heard().len() <= 2, "{why}: it is not asked again and again");
    }
}

#[tokio::test]
async fn nothing_listening_is_unknown_for_a_settlement_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/canary", listener.local_addr().unwrap());
    drop(listener);
    let settings = Settings { url: Secret::new(url), auth: Auth::None, minimal: false, times: Times::default() };
    let remote = Remote::new(settings).unwrap();
    let sample = sample();
    let Settlement::Unknown { why } = remote.settle(&sample.call()).await else { panic!("nobody answered") };
    assert!(why.contains("nothing was sent"), "{why}");
}

#[tokio::test]
async fn a_pending_settlement_is_asked_for_once_more_with_the_same_bytes() {
    let pending = || {
        settled(|s| {
            s["success"] = json!(false);
            s["errorReason"] = json!("settlement_pending")
        })
    };
    for (script, want, why) in [
        (vec![pending(), settled(|_| ())], "settled", "confirmed at the second time"),
        (vec![pending()], "unknown", "pending twice"),
        (vec![pending(), settled(|s| s["transaction"] = json!("0x1"))], "unknown", "a lie at the second time"),
        (
            vec![pending(), http(400, "", r#"{"success":false,"errorReason":"insufficient_funds"}"#)],
            "unknown",
            "refused at the second time: its own first hand-in took the funds, perhaps",
        ),
        (vec![pending(), Line::Raw(String::new())], "unknown", "silence at the second time"),
    ] {
        let server = Server::start(script).await;
        let sample = sample();
        let got = patient(server.settings()).settle(&sample.call()).await;
        assert_eq!(word(&got), want, "{why}: {got:?}");
        let bodies: Vec<_> = server.heard().iter().map(|h| h.split_once("\r\n\r\n").unwrap().1.to_owned()).collect();
        assert!(bodies.len() == 2 && bodies[0] == bodies[1], "{why}: {bodies:?}");
    }
}

#[tokio::test]
async fn a_redirect_within_the_service_is_followed_once_with_the_same_body_and_a_key_for_the_new_path() {
    let moved = http(308, "location: /v2/verify\r\n", "");
    let server = Server::start(vec![moved, ok(VALID)]).await;
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [7; 32]);
    let auth = Auth::Cdp { key_id: "id".into(), key_secret: Secret::new(key) };
    let remote = patient(Settings { auth, ..server.settings() });
    let sample = sample();
    assert!(matches!(remote.verify(&sample.call()).await, Verdict::Valid { .. }));
    let heard = server.heard();
    let uris: Vec<_> = heard
        .iter()
        .map(|request| {
            let token = request.lines().find_map(|l| l.strip_prefix("authorization: Bearer ")).expect("a token");
            let claims = token.split('.').nth(1).unwrap();
            let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).unwrap();
            serde_json::from_slice::<Value>(&claims).unwrap()["uris"][0].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(uris, [format!("POST {}/canary/verify", server.at), format!("POST {}/v2/verify", server.at)]);
    let bodies: Vec<_> = heard.iter().map(|h| h.split_once("\r\n\r\n").unwrap().1).collect();
    assert_eq!(bodies[0], bodies[1]);
}

#[tokio::test]
async fn our_key_is_shown_to_the_facilitator_and_to_nobody_it_points_at() {
    let stranger = Server::start(vec![ok(VALID)]).await;
    let elsewhere = http(308, &format!("location: http://{}/verify\r\n", stranger.at), "");
    let server = Server::start(vec![elsewhere]).await;
    let auth = Auth::Header { name: "X-Api-Key".into(), value: Secret::new("secret-key") };
    let remote = patient(Settings { auth, ..server.settings() });
    let sample = sample();
    assert!(matches!(remote.verify(&sample.call()).await, Verdict::Unknown { .. }));
    assert!(server.heard()[0].contains("x-api-key: secret-key\r\n"), "{:?}", server.heard());
    assert!(stranger.heard().is_empty());
}

#[tokio::test]
async fn nothing_is_supported_before_it_was_said_and_a_failed_look_forgets_nothing() {
    let server = Server::start(vec![http(503, "", ""), ok(KINDS), ok("<html>"), ok(r#"{"kinds":[]}"#)]).await;
    let remote = server.remote();
    let kind = sample().kind();
    assert!(remote.support(&kind).is_err(), "not asked yet");
    for (want, why) in
        [(false, "it did not say"), (true, "listed"), (true, "it said it before"), (false, "not listed any more")]
    {
        remote.probe().await;
        assert_eq!(remote.support(&kind).is_ok(), want, "{why}");
        assert!(remote.support(&kind).err().is_none_or(|e| !e.contains("canary")), "{why}");
    }
}

#[tokio::test]
async fn what_it_said_long_ago_is_not_what_it_supports() {
    let server = Server::start(vec![ok(KINDS)]).await;
    let times = Times { stale: Duration::ZERO, ..HASTY };
    let remote = Remote::new(Settings { times, ..server.settings() }).unwrap();
    remote.probe().await;
    assert!(remote.support(&sample().kind()).is_err());
}

#[tokio::test]
async fn after_five_failures_in_a_row_nothing_is_offered_or_verified_until_it_answers_again() {
    let server = Server::start(vec![ok(KINDS), http(500, "", "")]).await;
    let times = Times { rest: Duration::from_secs(3_600), ..HASTY };
    let remote = patient(Settings { times, ..server.settings() });
    let sample = sample();
    remote.probe().await;
    for failure in 1..=5 {
        assert!(remote.support(&sample.kind()).is_ok(), "before failure {failure}");
        assert!(matches!(remote.verify(&sample.call()).await, Verdict::Unknown { .. }));
    }
    let heard = server.heard().len();
    let error = remote.support(&sample.kind()).unwrap_err();
    assert!(error.contains("down"), "{error}");
    assert!(matches!(remote.verify(&sample.call()).await, Verdict::Unknown { .. }));
    assert_eq!(server.heard().len(), heard, "it is left alone");
    server.says(vec![settled(|_| ())]);
    assert_eq!(word(&remote.settle(&sample.call()).await), "settled", "what is owed is asked for all the same");
    assert!(remote.support(&sample.kind()).is_ok(), "and an answer ends it");
}

#[tokio::test]
async fn what_one_payment_can_bring_about_and_what_a_follower_repeats_never_brings_it_down() {
    let bad_line = || ok(r#"{"isValid":true,"payer":"0x1111111111111111111111111111111111111111"}"#);
    for (line, again, down, why) in [
        (http(400, "", "<html>"), false, false, "it does not take this payment, and says so in a page"),
        (http(429, "retry-after: 1\r\n", ""), false, false, "it is busy"),
        (bad_line(), false, false, "its answer contradicts this payment"),
        (ok("<html>"), false, false, "no verdict"),
        (http(500, "", ""), true, false, "a settlement that was handed in before, and is again and again"),
        (Line::Raw(String::new()), true, false, "the same, and silence"),
        (Line::Raw(String::new()), false, true, "silence"),
        (http(503, "", "<html>"), false, true, "it is out of order"),
        (http(401, "", ""), false, true, "it does not take our credentials"),
    ] {
        let server = Server::start(vec![ok(KINDS), line]).await;
        let times = Times { rest: Duration::from_secs(3_600), ..HASTY };
        let remote = patient(Settings { times, ..server.settings() });
        let sample = sample();
        remote.probe().await;
        for n in 0..8 {
            let call = Call { again, ..sample.call() };
            if again || n % 2 == 1 {
                assert_eq!(word(&remote.settle(&call).await), "unknown", "{why}");
            } else {
                assert!(matches!(remote.verify(&call).await, Verdict::Unknown { .. }), "{why}");
            }
        }
        assert_eq!(remote.support(&sample.kind()).is_err(), down, "{why}");
    }
}

#[tokio::test]
async fn refusals_are_answers_and_never_bring_it_down() {
    let server = Server::start(vec![ok(KINDS), http(400, "", r#"{"isValid":false,"invalidReason":"no"}"#)]).await;
    let remote = patient(server.settings());
    let sample = sample();
    remote.probe().await;
    for _ in 0..8 {
        assert_eq!(remote.verify(&sample.call()).await, Verdict::Invalid { reason: "no".into() });
    }
    assert!(remote.support(&sample.kind()).is_ok());
}

/// Polls until it holds, at most as long as a loaded machine may need.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENT;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_watched_facilitator_comes_back_by_itself() {
    let down = http(500, "", "");
    let server = Server::start(vec![http(429, "retry-after: 0\r\n", ""), ok(KINDS), down.clone()]).await;
    let remote =
        Arc::new(Remote::new(Settings { times: Times { again: PATIENT * 30, ..HASTY }, ..server.settings() }).unwrap());
    let watching = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { remote.watch().await }
    });
    let sample = sample();
    let kind = sample.kind();
    eventually("it is asked again when it said so, not after our own pause", || remote.support(&kind).is_ok()).await;
    for _ in 0..5 {
        let _ = remote.verify(&sample.call()).await;
    }
    assert!(remote.support(&kind).is_err());
    server.says(vec![down.clone(), down, ok(KINDS)]);
    eventually("it is asked after each rest", || remote.support(&kind).is_ok()).await;
    watching.abort();
}
