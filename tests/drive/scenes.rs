//! How each ending is brought about.

use super::*;
use common::client::chat;
use common::{Fault, Raw, Reply, Step, payer};
use mpp::PaymentChallenge;
use mpp::client::tempo::charge::{SignOptions, TempoCharge};
use pontage::claim::Terms;
use pontage::clock::UnixSeconds;
use pontage::money::{Atoms, Usd};
use pontage::rail::mpp::charge::{Charge, Settings};
use pontage::rail::ring::KeyRing;
use pontage::rail::{Ask, Rail as _};
use pontage::secret::Secret;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

fn ask() -> Value {
    chat(MODEL, "one two")
}

fn with(key: &str, value: Value) -> Vec<u8> {
    let mut body = ask();
    body[key] = value;
    body.to_string().into_bytes()
}

fn streamed() -> Value {
    serde_json::from_slice(&with("stream", json!(true))).unwrap()
}

fn brief(content: &str) -> Value {
    chat("brief", content)
}

fn failing() -> Reply {
    Reply::error(500, "server_error", "x", "x")
}

/// Brings about the `nth` row of this kind.
pub async fn play(bed: &mut Bed, row: (&str, u16, &str), nth: usize) -> Ended {
    let body = ask();
    let bytes = body.to_string().into_bytes();
    match row {
        ("unknown_path", ..) => bed.ended(bed.post("/v1/nothing", &[], &bytes)).await,
        ("method_not_allowed", ..) => {
            bed.ended(raw_request(bed, b"PUT /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n"))
                .await
        }
        ("preflight", ..) => {
            bed.ended(raw_request(
                bed,
                b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: g\r\norigin: https://page.test\r\n\r\n",
            ))
            .await
        }
        ("bad_head", ..) => {
            bed.ended(bed.post(CHAT, &[("upgrade", "websocket"), ("connection", "upgrade")], &bytes)).await
        }
        ("rate_limit_exceeded", 429, _) => Box::pin(flood(bed, "unpaid_per_ip_per_second = 1")).await,
        ("rate_limit_exceeded", ..) => {
            Box::pin(flood(bed, "unpaid_per_ip_per_second = 100000\nunpaid_per_second = 1")).await
        }
        ("body_too_large", ..) => {
            bed.ended(bed.post("/narrow", &[], brief(&"x".repeat(5000)).to_string().as_bytes())).await
        }
        ("body_too_slow", ..) => {
            let head = raw::post(CHAT, &[], &bytes);
            bed.ended(raw_request(bed, &head[..head.len() - 1])).await
        }
        ("unsupported_media_type", ..) => bed.ended(bed.post(CHAT, &[("content-type", "text/html")], &bytes)).await,
        ("invalid_json", ..) => bed.ended(bed.post(CHAT, &[], b"{\"model\":\"a\",\"model\":\"b\"}")).await,
        ("invalid_form", ..) => {
            let form = [("content-type", "multipart/form-data; boundary=b")];
            bed.ended(bed.post("/heard", &form, b"no form")).await
        }
        ("invalid_value", ..) => bed.ended(bed.post(CHAT, &[], &with("max_tokens", json!(-1)))).await,
        ("unknown_parameter", ..) => bed.ended(bed.post(CHAT, &[], &with("frobnicate", json!(1)))).await,
        ("not_priced", ..) => {
            let picture = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]}]);
            bed.ended(bed.post(CHAT, &[], &with("messages", picture))).await
        }
        ("over_limit", ..) => {
            let mut body = brief("two");
            body["n"] = json!(3);
            bed.ended(bed.post("/narrow", &[], body.to_string().as_bytes())).await
        }
        ("context_length_exceeded", ..) => {
            bed.ended(bed.post("/narrow", &[], brief(&"x ".repeat(300)).to_string().as_bytes())).await
        }
        ("model_not_found", ..) => bed.ended(bed.post(CHAT, &[], &with("model", json!("up-main")))).await,
        ("wrong_tier", ..) => bed.ended(bed.post(CHAT, &[], &with("model", json!("brief")))).await,
        ("payment_required", ..) => bed.ended(bed.post(CHAT, &[], &bytes)).await,
        ("malformed_credential", ..) => bed.ended(bed.show(CHAT, "Payment !!!", &body)).await,
        ("invalid_challenge", ..) => {
            let credential = bed.credential(CHAT, &chat(MODEL, "something else")).await;
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("offer_expired", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            let old = json!(Box::pin(expired(bed, &bytes)).await.to_echo());
            let credential = payer::bend(&credential, |c| c["challenge"] = old);
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("payment_invalid", ..) => {
            let other = payer::unpack(&bed.credential(CHAT, &body).await);
            let credential = bed.credential(CHAT, &body).await;
            let credential = payer::bend(&credential, |c| c["payload"] = other["payload"].clone());
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("two_credentials", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            let both = [("authorization", credential.as_str()), ("payment-authorization", credential.as_str())];
            bed.ended(bed.post(CHAT, &both, &bytes)).await
        }
        ("nothing_asked", ..) => {
            let nothing = json!({});
            let credential = bed.credential(CHAT, &nothing).await;
            bed.ended(bed.show(CHAT, &credential, &nothing)).await
        }
        ("cap_reached", ..) => bed.ended(bed.post("/absorb", &[], &bytes)).await,
        // This one sells chat; the rows about responses and messages name the tests on a gate that sells those.
        ("served", _, "taken") if nth > 1 => Ended::OutOfReach,
        ("upstream_failed" | "upstream_died", ..) if nth > 0 => Ended::OutOfReach,
        // Its backend would have to stream for longer than a payment waits for anything else here.
        ("out_of_time", ..) => Ended::OutOfReach,
        ("served", _, "taken") => {
            let body = if nth == 0 { body } else { streamed() };
            let credential = bed.credential(CHAT, &body).await;
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("served", _, "none") => bed.ended(bed.post("/free", &[], &bytes)).await,
        ("served", _, "earlier") => {
            let credential = Box::pin(owed(bed, CHAT, &body)).await;
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("payment_failed", ..) => {
            let credential = Box::pin(penniless(bed, &bytes)).await;
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("payment_unknown", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            for method in ["eth_sendRawTransaction", "eth_sendRawTransactionSync", "eth_getTransactionReceipt"] {
                bed.rpc.always(method, Fault::DropReply);
            }
            let ended = bed.ended(bed.show(CHAT, &credential, &body)).await;
            bed.rpc.clear();
            let later = async || bed.show(CHAT, &credential, &body).await.status == 200;
            assert!(eventually(SHORT, later).await, "the same credential is good when the chain speaks again");
            ready(bed).await;
            ended
        }
        ("payment_in_use", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            bed.backend.next(Reply::hang());
            let mut first = Raw::connect(bed.gate.listen).await;
            let asked = bed.backend.requests().len();
            first.send(&raw::post(CHAT, &[("authorization", &credential)], &bytes)).await;
            assert!(eventually(SHORT, async || bed.backend.requests().len() > asked).await);
            let ended = bed.ended(bed.show(CHAT, &credential, &body)).await;
            first.reset();
            ended
        }
        ("payment_spent", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            assert_eq!(bed.show(CHAT, &credential, &body).await.status, 200);
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("underpaid", ..) => {
            let small: Value = serde_json::from_slice(&with("max_tokens", json!(5))).unwrap();
            let credential = Box::pin(owed(bed, "/ceiling", &small)).await;
            bed.ended(bed.show("/ceiling", &credential, &body)).await
        }
        ("redeem_elsewhere", ..) => {
            let credential = Box::pin(owed(bed, CHAT, &body)).await;
            bed.ended(bed.show("/ceiling", &credential, &body)).await
        }
        ("upstream_failed", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            bed.backend.next(failing());
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("upstream_refused", ..) => {
            let credential = bed.credential(CHAT, &body).await;
            bed.backend.next(Reply::error(400, "invalid_request_error", "bad_value", "no"));
            bed.ended(bed.show(CHAT, &credential, &body)).await
        }
        ("upstream_timeout", ..) => {
            if bed.brief.is_none() {
                bed.brief = Some(Backend::start(Script::default()).await);
            }
            let credential = bed.credential("/narrow", &brief("two")).await;
            bed.brief.as_ref().unwrap().next(Reply::hang());
            bed.ended(bed.show("/narrow", &credential, &brief("two"))).await
        }
        ("upstream_unavailable", _, "owed") => {
            let brief_backend = bed.brief.take().expect("this row is played once");
            let (credential, address) = (bed.credential("/narrow", &brief("two")).await, brief_backend.addr);
            brief_backend.stop().await;
            let ended = bed.ended(bed.show("/narrow", &credential, &brief("two"))).await;
            bed.brief = Some(Backend::start_on(address, Script::default()).await);
            let back = async || bed.show("/narrow", &credential, &brief("two")).await.status == 200;
            assert!(eventually(SHORT, back).await, "and it is served when the server is back");
            ended
        }
        ("upstream_unavailable" | "no_offer", ..) => {
            let asked = chat("watched", "two");
            let was = bed.watched.take().expect("each leaves it running");
            let (credential, address) = (bed.credential("/watched", &asked).await, was.addr);
            drop(was);
            pool_is(bed, "watched", false).await;
            let shown = [("authorization", credential.as_str())];
            let shown = if row.0 == "no_offer" { &shown[..0] } else { &shown[..] };
            let ended = bed.ended(bed.post("/watched", shown, asked.to_string().as_bytes())).await;
            bed.watched = Some(Backend::start_on(address, Script::default()).await);
            pool_is(bed, "watched", true).await;
            ended
        }
        ("upstream_died", ..) => {
            let credential = bed.credential(CHAT, &streamed()).await;
            let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
            bed.backend.next(Reply::broken_stream([token], Step::Close));
            let ended = bed.ended(bed.show(CHAT, &credential, &streamed())).await;
            if let Ended::Answer(reply, _) = &ended {
                assert!(reply.text().contains("upstream_failed") && reply.text().contains("\"complete\":false"));
            }
            ended
        }
        ("client_gone", 0, "none") => {
            let before = bed.payments().await;
            let mut client = Raw::connect(bed.gate.listen).await;
            let whole = raw::post(CHAT, &[("expect", "100-continue")], &bytes);
            client.send(&whole[..whole.len() - bytes.len()]).await;
            assert!(client.until(b"100 Continue", SHORT).await);
            client.reset();
            Ended::Gone(before)
        }
        ("client_gone", 0, _) => {
            let (credential, before) = (bed.credential(CHAT, &body).await, bed.payments().await);
            Box::pin(leave(bed, &credential, &body, Reply::hang(), None)).await;
            let redeemed = async || bed.show(CHAT, &credential, &body).await.status == 200;
            assert!(eventually(SHORT, redeemed).await, "it is still owed");
            Ended::Gone(before)
        }
        ("client_gone", ..) => {
            let (credential, before) = (bed.credential(CHAT, &streamed()).await, bed.payments().await);
            let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
            let endless = Reply::broken_stream([token], Step::Hang);
            Box::pin(leave(bed, &credential, &streamed(), endless, Some(b"\"content\":\"a\""))).await;
            let spent = async || bed.show(CHAT, &credential, &streamed()).await.status == 403;
            assert!(eventually(SHORT, spent).await, "what was begun is delivered");
            Ended::Gone(before)
        }
        ("store_unavailable" | "stopping" | "internal", ..) => Ended::OutOfReach,
        // This gate has no channels; each of these names the test that brings it about on one that has.
        (
            "managed"
            | "unpaid"
            | "voucher_invalid"
            | "signer_mismatch"
            | "voucher_lower"
            | "voucher_delta_too_small"
            | "voucher_over_deposit"
            | "insufficient_balance"
            | "channel_not_found"
            | "channel_finalized"
            | "channel_busy"
            | "channel_blocked"
            | "chain_unavailable",
            ..,
        ) => Ended::OutOfReach,
        // No payment of its is taken after the reply, and no flat price of its bounds the output.
        ("payment_unchecked" | "payer_exposed" | "payment_unproven" | "over_price" | "too_dear", ..) => {
            Ended::OutOfReach
        }
        row => panic!("tests/endings.toml has a new row {row:?}: bring it about here"),
    }
}

fn raw_request<'a>(bed: &'a Bed, bytes: &[u8]) -> Later<'a, RawReply> {
    let bytes = bytes.to_vec();
    Box::pin(async move { raw::exchange(bed.gate.listen, &bytes).await })
}

/// Asks a gate of its own until it has had enough; the ending is counted there, so one is counted on the bed too.
async fn flood(bed: &Bed, limits: &str) -> Ended {
    let before = bed.payments().await;
    let options =
        GateOptions::new(&bed.rpc.url(), &bed.backend.url()).conf_extra(&format!("\n[listen.limits]\n{limits}\n"));
    let gate = Gate::start(options).await;
    let ask = raw::post(CHAT, &[], ask().to_string().as_bytes());
    for _ in 0..200 {
        let reply = raw::exchange(gate.listen, &ask).await;
        if reply.status != 402 {
            let counted =
                async || gate.metric("pontage_requests_total", &[("outcome", "rate_limit_exceeded")]).await > 0.0;
            assert!(eventually(SHORT, counted).await);
            return Ended::Elsewhere(reply, before);
        }
    }
    panic!("200 unpaid requests a second are let through");
}

/// A payment that was taken and has bought nothing so far.
async fn owed(bed: &Bed, path: &str, body: &Value) -> String {
    let credential = bed.credential(path, body).await;
    bed.backend.next(failing());
    assert_eq!(bed.show(path, &credential, body).await.status, 502);
    credential
}

/// Pays, and leaves when the backend has the request or `after` was seen.
async fn leave(bed: &Bed, credential: &str, body: &Value, reply: Reply, after: Option<&[u8]>) {
    bed.backend.next(reply);
    let asked = bed.backend.requests().len();
    let mut client = Raw::connect(bed.gate.listen).await;
    client.send(&raw::post(CHAT, &[("authorization", credential)], body.to_string().as_bytes())).await;
    match after {
        Some(sign) => assert!(client.until(sign, SHORT).await),
        None => assert!(eventually(SHORT, async || bed.backend.requests().len() > asked).await),
    }
    client.reset();
    assert!(eventually(SHORT, async || bed.backend.last().closed_early.is_some()).await, "the backend is let go");
}

async fn ready(bed: &Bed) {
    let yes = async || bed.gate.admin_get("/readyz").await.is_some_and(|(status, _)| status == 200);
    assert!(eventually(SHORT, yes).await, "the gate is ready again");
}

async fn pool_is(bed: &Bed, name: &str, available: bool) {
    let is = async || {
        let status = bed.gate.status().await;
        status["pools"].as_array().unwrap().iter().any(|p| p["pool"] == name && p["available"] == available)
    };
    assert!(eventually(SHORT, is).await, "pool {name} does not become available = {available}");
}

/// The offer for this body as the gate made it ten minutes ago.
async fn expired(bed: &Bed, body: &[u8]) -> PaymentChallenge {
    let settings = Settings {
        id: "tempo/charge".into(),
        realm: "127.0.0.1".into(),
        chain_id: common::chain::CHAIN_ID,
        currency: common::PATH_USD.parse().unwrap(),
        recipient: DEV[1].address.parse().unwrap(),
        accept_push: false,
        pace: Default::default(),
    };
    let ring = KeyRing::new(&[Secret::new(common::gate::CHALLENGE_KEY)]).unwrap();
    let chain = pontage::chain::tempo::Tempo::new(&Secret::new(bed.rpc.url())).unwrap();
    let rail = Charge::new(settings, Arc::new(ring), Arc::new(chain)).unwrap();
    let terms = Terms {
        rail: "tempo/charge".into(),
        route: CHAT.into(),
        model: MODEL.into(),
        tier: "standard".into(),
        generation: bed.gate.generation().await.into(),
        amount: Atoms(20_000),
        price: Usd::parse("0.02").unwrap(),
        decimals: 6,
    };
    let ask = Ask { terms: &terms, digest: Sha256::digest(body).into(), description: "", lasts: 900 };
    let offer = rail.offer(&ask, UnixSeconds(UnixSeconds::now().0 - 600)).unwrap();
    PaymentChallenge::from_header(offer.headers[0].1.to_str().unwrap()).unwrap()
}

/// A well-signed payment from an account that holds nothing.
async fn penniless(bed: &Bed, body: &[u8]) -> String {
    let unpaid = bed.post(CHAT, &[], body).await;
    let challenge = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    let signer: mpp::PrivateKeySigner = "09".repeat(32).parse().unwrap();
    // With a gas limit of its own, the client does not notice that it is poor.
    let options = SignOptions { rpc_url: Some(bed.chain.url()), gas_limit: Some(1_000_000), ..SignOptions::default() };
    let charge = TempoCharge::from_challenge(&challenge).unwrap();
    let credential = charge.sign_with_options(&signer, options).await.unwrap().into_credential();
    mpp::format_authorization(&credential).unwrap()
}
