//! Refusal or challenge → status, headers, body: the one place that writes an answer of our own.
//!
//! One JSON object serves every client: problem+json members (RFC 9457) for MPP wallets, and `error` as OpenAI's object, because
//! that is what both openai SDKs show. Policy refusals carry only the latter, and never a challenge.

use crate::flow::Stop;
use crate::openai::error::kind_of;
use crate::rail::Offer;
use crate::rail::x402::wire::{self as x402, Resource};
use crate::refusal::{Moved, Refusal};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use pingora::prelude::{Error, ErrorType};
use pingora::proxy::Session;
use serde_json::{Value, json};
use std::time::Duration;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const PROBLEMS: &str = "https://paymentauth.org/problems/";
const HINT: &str =
    "Pay with any offer in the WWW-Authenticate header, then send the same request again with the credential.";

/// What a browser shows. Nothing of the request is in it.
const PAGE: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Payment Required</title>\n\
    <h1>Payment Required</h1>\n<p>This address sells answers of language models to programs, which pay per call. How to pay stands in \
    the headers of this answer (<code>WWW-Authenticate</code>, <code>PAYMENT-REQUIRED</code>) and at \
    <a href=\"/llms.txt\">/llms.txt</a>.</p>\n</html>\n";

/// An answer of our own.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header lines, without `Content-Length`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub body: Bytes,
    /// `outcome` label of metrics and log.
    pub outcome: &'static str,
}

impl Answer {
    /// 200 with a document.
    pub fn document(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300")),
        ];
        Self { status: 200, headers, body: body.into(), outcome: "served" }
    }

    /// 200 with JSON that is nobody else's, and is another one in a minute.
    pub fn private(body: impl Into<Bytes>) -> Self {
        let headers = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::CACHE_CONTROL, HeaderValue::from_static("private, no-store")),
        ];
        Self { status: 200, headers, body: body.into(), outcome: "served" }
    }

    /// Done, and there is no content to give: management of a channel.
    pub fn managed(headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        let private = (header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
        let headers = std::iter::once(private).chain(headers).collect();
        Self { status: 204, headers, body: Bytes::new(), outcome: "managed" }
    }

    /// A refusal without offers.
    pub fn refused(stop: &Stop) -> Self {
        Self::challenge(stop, Vec::new(), &Resource::default())
    }

    /// A refusal with every offer of the route. Offers go out only with a 402, and a 402 only with offers: the caller has
    /// turned one without into [`Refusal::NoOffer`].
    ///
    /// `sold`: what the offers are for. x402 v2 reads its offers in a header, v1 in the body, among the members of the one object.
    pub fn challenge(stop: &Stop, offers: Vec<Offer>, sold: &Resource<'_>) -> Self {
        let refusal = &stop.refusal;
        let mut headers = vec![
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (header::CONTENT_TYPE, content_type(refusal)),
        ];
        if let Some(seconds) = refusal.retry_after() {
            headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
        }
        if let Refusal::MethodNotAllowed { allow } = refusal {
            headers.push((header::ALLOW, HeaderValue::from_static(allow)));
        }
        // After money may have moved a client must not send the request again by itself: with a paying fetch underneath, each
        // retry would be another payment.
        if stop.claimed {
            headers.push((SHOULD_RETRY, HeaderValue::from_static("false")));
        }
        let challenge_id = offers.iter().find_map(|o| o.challenge_id.clone());
        let mut shared = Vec::new();
        if refusal.invites_payment() {
            let entries: Vec<_> = offers.iter().filter_map(|o| o.entry.as_deref()).collect();
            headers.extend(x402::required(&entries, sold, &refusal.message()));
            shared = x402::v1_members(&entries, sold).unwrap_or_default();
            headers.extend(offers.into_iter().flat_map(|o| o.headers));
        }
        let body = body(stop, challenge_id.as_deref(), shared);
        Self { status: refusal.status(), headers, body: body.into(), outcome: refusal.code() }
    }

    /// The same answer with more header lines.
    #[must_use]
    pub fn with(mut self, more: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Self {
        self.headers.extend(more);
        self
    }

    /// The same answer for a person who looks at it with a browser: a page that says the same to everybody, whatever was asked.
    #[must_use]
    pub fn as_page(mut self) -> Self {
        self.headers.retain(|(name, _)| *name != header::CONTENT_TYPE);
        self.headers.push((header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")));
        self.body = Bytes::from_static(PAGE.as_bytes());
        self
    }

    /// The same answer, telling clients that repeat failed requests by themselves not to.
    #[must_use]
    pub fn not_to_be_repeated(mut self) -> Self {
        if !self.headers.iter().any(|(name, _)| *name == SHOULD_RETRY) {
            self.headers.push((SHOULD_RETRY, HeaderValue::from_static("false")));
        }
        self
    }
}

fn content_type(refusal: &Refusal) -> HeaderValue {
    HeaderValue::from_static(if refusal.problem().is_some() { "application/problem+json" } else { "application/json" })
}

fn body(stop: &Stop, challenge_id: Option<&str>, shared: Vec<(&'static str, Value)>) -> String {
    let refusal = &stop.refusal;
    let message = refusal.message();
    let mut object = serde_json::Map::new();
    if let Some(suffix) = refusal.problem() {
        object.insert("type".into(), json!(format!("{PROBLEMS}{suffix}")));
        object.insert("title".into(), json!(title(suffix)));
        object.insert("status".into(), json!(refusal.status()));
        object.insert("detail".into(), json!(message));
        if let Some(id) = challenge_id {
            object.insert("challengeId".into(), json!(id));
            object.insert("hint".into(), json!(HINT));
        }
    } else {
        // As Anthropic says it; OpenAI's clients look into `error` only.
        object.insert("type".into(), json!("error"));
    }
    if let Refusal::BalanceShort { required, deposit, .. } = refusal {
        let missing = required.0.saturating_sub(deposit.0);
        object.insert("requiredTopUp".into(), json!(missing.to_string()));
    }
    let (kind, code) = match refusal {
        Refusal::UpstreamRefused { kind, code, .. } => {
            (kind.clone().unwrap_or_else(|| kind_of(refusal).to_owned()), json!(code))
        }
        _ => (kind_of(refusal).to_owned(), json!(refusal.code())),
    };
    object.extend(shared.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let error = json!({ "message": message, "type": kind, "code": code, "param": refusal.param() });
    object.insert("error".into(), error);
    if stop.claimed {
        object.insert("payment".into(), payment(&stop.moved));
    }
    Value::Object(object).to_string()
}

/// Says whether money moved, in every failed answer after a claim.
fn payment(moved: &Moved) -> Value {
    match moved {
        Moved::No => json!({ "moved": "no" }),
        Moved::Yes => json!({ "moved": "yes" }),
        Moved::Unknown => json!({ "moved": "unknown", "advice": "send the same credential again; do not pay anew" }),
        Moved::Undelivered => json!({
            "moved": "unknown",
            "advice": "nothing was delivered, which is not charged once the store answers; ask for a fresh challenge without a credential: \
                       the same voucher answers it",
        }),
        Moved::Redeemable { until } => json!({
            "moved": "yes",
            "redeemable_until": until.rfc3339(),
            "advice": "nothing was delivered; send the same credential again before that time",
        }),
    }
}

fn title(suffix: &str) -> &'static str {
    match suffix {
        "payment-required" => "Payment Required",
        "malformed-credential" => "Malformed Credential",
        "invalid-challenge" => "Invalid Challenge",
        "payment-expired" => "Payment Expired",
        "payment-insufficient" => "Payment Insufficient",
        "bad-request" => "Bad Request",
        "session/invalid-signature" => "Invalid Signature",
        "session/signer-mismatch" => "Signer Mismatch",
        "session/delta-too-small" => "Voucher Delta Too Small",
        "session/amount-exceeds-deposit" => "Amount Exceeds Deposit",
        "session/insufficient-balance" => "Insufficient Balance",
        "session/channel-not-found" => "Channel Not Found",
        "session/channel-finalized" => "Channel Finalized",
        _ => "Verification Failed",
    }
}

/// Which browsers may read answers: `None` unless the operator configured origins.
#[derive(Clone, Debug, Default)]
pub struct Cors(pub Vec<String>);

impl Cors {
    /// Headers that let a page of `origin` read the answer and its payment headers.
    pub fn headers(&self, origin: Option<&HeaderValue>) -> Vec<(HeaderName, HeaderValue)> {
        let Some(origin) = origin else { return Vec::new() };
        let any = self.0.iter().any(|o| o == "*");
        let allow = match origin.to_str() {
            _ if any => HeaderValue::from_static("*"),
            Ok(text) if self.0.iter().any(|o| o == text) => origin.clone(),
            _ => return Vec::new(),
        };
        vec![
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, allow),
            (header::VARY, HeaderValue::from_static("Origin")),
            (
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static(
                    // SDKs repeat 409, 429 and 5xx by themselves unless they can read `X-Should-Retry`, each time paying anew.
                    "WWW-Authenticate, Payment-Receipt, Payment-Session, Payment-Session-Snapshot, PAYMENT-REQUIRED, \
                     PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, Pontage-Model, Pontage-Receipt-Id, X-Should-Retry, \
                     Retry-After, Retry-After-Ms, X-Request-Id, OpenAI-Processing-Ms, OpenAI-Version",
                ),
            ),
        ]
    }

    /// The answer to a preflight, whatever it is for. The page may send every header that it asks for by name: SDKs send their own
    /// with each call, and more with every version. None of them reaches a backend that is not on our list.
    pub fn preflight(&self, asked: &HeaderMap) -> Option<Answer> {
        let mut headers = self.headers(asked.get(header::ORIGIN));
        if headers.is_empty() {
            return None;
        }
        headers.push((header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, OPTIONS")));
        headers.push((header::VARY, HeaderValue::from_static("Access-Control-Request-Headers")));
        headers.extend(asked_names(asked).map(|names| (header::ACCESS_CONTROL_ALLOW_HEADERS, names)));
        headers.push((
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            // The published x402 clients send the last one with every request, and a browser asks for it.
            HeaderValue::from_static(
                "Authorization, Payment-Authorization, Accept-Payment, Payment-Session, Content-Type, PAYMENT-SIGNATURE, \
                 X-PAYMENT, SIGN-IN-WITH-X, Access-Control-Expose-Headers",
            ),
        ));
        headers.push((header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")));
        Some(Answer { status: 204, headers, body: Bytes::new(), outcome: "preflight" })
    }
}

/// A client that takes nothing for this long is gone.
pub const WRITE_WAIT: Duration = Duration::from_secs(60);
/// As much of an answer as a client must take within [`WRITE_WAIT`].
const PIECE: usize = 64 * 1024;
/// An answer that is larger holds much memory while it is written: it must be taken within ten [`WRITE_WAIT`]s as a whole.
const LARGE: usize = 4 << 20;

/// The header names that a preflight asks for, when they are nothing but names, and no more than a browser has use for.
fn asked_names(asked: &HeaderMap) -> Option<HeaderValue> {
    const MOST_BYTES: usize = 2048;
    let names = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS)?;
    let listed = names.to_str().ok()?.split(',').map(str::trim);
    let is_name = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok();
    (names.len() <= MOST_BYTES && listed.into_iter().all(is_name)).then(|| names.clone())
}

/// Writes an answer whole, however long that takes a client that goes on reading. One that is gone is not an error of ours.
pub async fn send(session: &mut Session, answer: Answer, extra: Vec<(HeaderName, HeaderValue)>) -> pingora::Result<()> {
    let head_only = session.req_header().method == http::Method::HEAD;
    let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + extra.len() + 1))?;
    for (name, value) in answer.headers.into_iter().chain(extra) {
        head.append_header(name, value)?;
    }
    if answer.status != 204 {
        head.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
    }
    let no_body = head_only || answer.body.is_empty();
    let mut rest = if no_body { Bytes::new() } else { answer.body };
    let whole = if rest.len() > LARGE { 10 * WRITE_WAIT } else { Duration::MAX };
    in_time(whole, async {
        in_time(WRITE_WAIT, session.write_response_header(Box::new(head), no_body)).await?;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE));
            in_time(WRITE_WAIT, session.write_response_body(Some(piece), rest.is_empty())).await?;
        }
        Ok(())
    })
    .await
}

async fn in_time(most: Duration, write: impl Future<Output = pingora::Result<()>>) -> pingora::Result<()> {
    let late = |_| Error::explain(ErrorType::WriteTimedout, "the client takes too little");
    tokio::time::timeout(most, write).await.map_err(late).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::UnixSeconds;
    use crate::edge::scrub;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn stop(refusal: Refusal, moved: Moved, claimed: bool) -> Stop {
        Stop { refusal, moved, claimed }
    }

    #[test]
    fn a_policy_refusal_has_openais_shape_and_no_challenge() {
        let offer = Offer {
            rail: "tempo/charge".into(),
            range: ("tempo".into(), "charge".into()),
            headers: vec![(header::WWW_AUTHENTICATE, HeaderValue::from_static("Payment id=\"x\""))],
            challenge_id: Some("x".into()),
            entry: None,
        };
        let refusal = Refusal::UnknownModel { asked: "raw-id".into() };
        let answer = Answer::challenge(&stop(refusal, Moved::No, false), vec![offer], &Resource::default());
        assert_eq!(answer.status, 404);
        assert!(answer.headers.iter().all(|(n, _)| n != header::WWW_AUTHENTICATE));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["param"], "model");
        assert_eq!(body["type"], "error", "@ai-sdk/anthropic reads no message without it");
    }

    #[test]
    fn every_answer_after_a_claim_says_what_happened_to_the_money_and_forbids_a_blind_retry() {
        for (refusal, moved, word) in [
            (Refusal::ProofSpent, Moved::Yes, "yes"),
            (Refusal::PaymentUnknown { retry_after_seconds: 5 }, Moved::Unknown, "unknown"),
            (Refusal::UpstreamFailed { why: "x" }, Moved::Redeemable { until: UnixSeconds(60) }, "yes"),
            (Refusal::PaymentFailed { why: "x".into() }, Moved::No, "no"),
            (Refusal::Store { retry_after_seconds: 10 }, Moved::Undelivered, "unknown"),
        ] {
            let answer = Answer::refused(&stop(refusal.clone(), moved, true));
            let retry = answer.headers.iter().find(|(n, _)| *n == SHOULD_RETRY).map(|(_, v)| v.as_bytes());
            assert_eq!(retry, Some(&b"false"[..]), "{refusal:?}");
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(body["payment"]["moved"], word, "{refusal:?}");
            let advice = body["payment"]["advice"].as_str().unwrap_or_default();
            let same = matches!(moved, Moved::Unknown | Moved::Redeemable { .. });
            assert_eq!(advice.contains("send the same credential again"), same, "{refusal:?}: {advice}");
            assert_eq!(advice.contains("fresh challenge"), moved == Moved::Undelivered, "{refusal:?}: {advice}");
        }
    }

    #[test]
    fn no_page_of_another_origin_reads_answers_unless_configured() {
        let origin = HeaderValue::from_static("https://a.example");
        assert!(Cors::default().headers(Some(&origin)).is_empty());
        assert!(Cors(vec!["https://b.example".into()]).headers(Some(&origin)).is_empty());
        let allowed = Cors(vec!["https://a.example".into()]).headers(Some(&origin));
        assert_eq!(allowed.first().map(|(_, v)| v.clone()), Some(origin));
    }

    /// Asks over HTTP/1, takes `sips` of 64 KiB with this long before each, and then nothing more: whether it was written whole.
    async fn taken(answer: Answer, sips: usize, wait: Duration) -> bool {
        let (mut client, gate) = tokio::io::duplex(PIECE);
        client.write_all(b"GET /v1/models HTTP/1.1\r\nhost: gate\r\n\r\n").await.unwrap();
        let mut session = Session::new_h1(Box::new(gate));
        assert!(session.as_downstream_mut().read_request().await.unwrap());
        let read = async {
            let mut sip = vec![0; PIECE];
            for _ in 0..sips {
                tokio::time::sleep(wait).await;
                client.read_exact(&mut sip).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            sent = send(&mut session, answer, Vec::new()) => sent.is_ok(),
            () = read => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_its_client_goes_on_reading() {
        let answer = || Answer::private(vec![b' '; 32 * PIECE]);
        let began = tokio::time::Instant::now();
        assert!(taken(answer(), 32, Duration::from_secs(50)).await);
        assert!(began.elapsed() > 20 * WRITE_WAIT);
        let began = tokio::time::Instant::now();
        assert!(!taken(answer(), 3, Duration::from_secs(50)).await, "it takes nothing any more");
        assert!(began.elapsed() < 5 * WRITE_WAIT);
        assert!(!taken(answer(), 32, Duration::from_secs(70)).await, "each piece has its time");
        let large = |pieces| Answer::private(vec![b' '; pieces * PIECE]);
        assert!(taken(large(65), 66, Duration::from_secs(8)).await, "a large one that is taken in ten minutes");
        assert!(!taken(large(65), 66, Duration::from_secs(12)).await, "it would hold its memory for longer");
        assert!(taken(large(63), 64, Duration::from_secs(12)).await, "a small one has no end");
    }

    #[test]
    fn a_page_may_read_whatever_crosses_from_a_backend_and_that_it_must_not_repeat_itself() {
        let cors = Cors(vec!["https://a.example".into()]);
        let headers = cors.headers(Some(&HeaderValue::from_static("https://a.example")));
        let exposed = headers.iter().find(|(name, _)| *name == header::ACCESS_CONTROL_EXPOSE_HEADERS).unwrap();
        let exposed: Vec<_> = exposed.1.to_str().unwrap().split(", ").map(str::to_ascii_lowercase).collect();
        // Browsers show it of every answer.
        let shown = [header::CONTENT_TYPE];
        for name in scrub::TO_CLIENT.iter().filter(|name| !shown.contains(name)).chain([&SHOULD_RETRY]) {
            assert!(exposed.iter().any(|word| word == name.as_str()), "{name} is not among {exposed:?}");
        }
    }

    #[test]
    fn a_page_may_send_what_its_sdk_sends_and_nothing_that_is_no_name() {
        let long = ["x-a"; 700].join(",");
        for (asked, echoed, why) in [
            ("authorization,content-type,x-stainless-os,x-stainless-retry-count", true, "OpenAI's SDK"),
            ("anthropic-dangerous-direct-browser-access, anthropic-version, x-api-key", true, "Anthropic's"),
            ("user-agent", true, "AI SDK"),
            ("a b", false, "a space in a name"),
            ("a,,b", false, "no name"),
            ("a\"b", false, "a quote"),
            (long.as_str(), false, "a list without end"),
            ("", false, "nothing"),
        ] {
            let headers = [
                (header::ORIGIN, HeaderValue::from_static("https://a.example")),
                (header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_str(asked).unwrap()),
            ];
            let headers = HeaderMap::from_iter(headers);
            assert!(Cors::default().preflight(&headers).is_none(), "{why}: nobody may");
            let answer = Cors(vec!["https://a.example".into()]).preflight(&headers).unwrap();
            let all = |name| answer.headers.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v.to_str().unwrap());
            assert_eq!(all(header::ACCESS_CONTROL_ALLOW_HEADERS).any(|names| names == asked), echoed, "{why}");
            assert!(
                all(header::ACCESS_CONTROL_ALLOW_HEADERS).any(|names| names.contains("PAYMENT-SIGNATURE")),
                "{why}"
            );
            assert!(all(header::VARY).any(|names| names == "Access-Control-Request-Headers"), "{why}");
        }
    }
}
