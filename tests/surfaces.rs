//! Every surface beside chat, from socket to books: unpaid, paid by charge, by session and by x402; what the backend heard, which
//! bytes came back, and what was taken for them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{INPUT, OUTPUT, SessionBed};
use common::client::{node, python};
use common::ledger::books;
use common::x402::Stall;
use common::{
    Aimock, Backend, Chain, EvmBed, Facilitator, Gate, GateOptions, Payer, RawReply, Script, backend, payer, raw,
};
use serde_json::{Value, json};

const MODEL: &str = "house/all";
/// A flat call.
const FLAT: u128 = 20_000;

const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const IMAGES: &str = "/v1/images/generations";
const SPEECH: &str = "/v1/audio/speech";
const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";

const MODELS: &str = r#"[model."house/all"]
upstream = "up"
pool = "gpt-oss"
price = { input = "1000", cached_input = "500", output = "2000" }
vocabulary = "o200k"
"#;

const TIERS: &str = r#"[tier.used]
models = ["house/all"]
max_output_tokens = 256
max_n = 4
charge = { ceiling = true }

[tier.flat]
models = ["house/all"]
max_output_tokens = 1
max_n = 4
charge = { flat = "0.02" }
"#;

/// One path for each surface; what has tokens is priced by them.
fn routes(used: &str, flat: &str) -> String {
    let route = |path: &str, surface: &str, tier: &str, rail: &str| {
        format!("[[route]]\npath = \"{path}\"\nsurface = \"{surface}\"\ntier = \"{tier}\"\naccept = [\"{rail}\"]\n\n")
    };
    [
        route(COMPLETIONS, "completions", "used", used),
        route(EMBEDDINGS, "embeddings", "used", used),
        route(IMAGES, "images", "flat", flat),
        route(SPEECH, "speech", "flat", flat),
        route(TRANSCRIPTIONS, "transcriptions", "flat", flat),
    ]
    .concat()
}

fn shop(options: GateOptions) -> GateOptions {
    options
        .rule("models.toml", MODELS)
        .rule("tiers.toml", TIERS)
        .rule("routes.toml", &routes("tempo/charge", "tempo/charge"))
}

/// One call, what it costs, and what comes back.
struct Call {
    path: &'static str,
    kind: &'static str,
    body: Vec<u8>,
    /// Atoms.
    price: u128,
    said: (&'static str, Vec<u8>),
}

const FORM: &str = "multipart/form-data; boundary=zz";

fn form() -> Vec<u8> {
    let mut body = b"--zz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\0\xFF\r\n\x01".to_vec();
    body.extend_from_slice(
        b"\r\n--zz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nhouse/all\r\n--zz--\r\n",
    );
    body
}

fn calls() -> Vec<Call> {
    let json = |path, body: Value, price, kind, said: &[u8]| Call {
        path,
        kind: "application/json",
        body: body.to_string().into_bytes(),
        price,
        said: (kind, said.to_vec()),
    };
    let text = br#"{"id":"c","object":"text_completion","model":"up","choices":[{"index":0,"text":" yes","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;
    let vector = br#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AACAPg=="}],"model":"up","usage":{"prompt_tokens":4,"total_tokens":4}}"#;
    let usage = br#"{"created":1,"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":9,"output_tokens":900,"total_tokens":909}}"#;
    vec![
        json(
            COMPLETIONS,
            json!({"model": MODEL, "prompt": "one two three", "max_tokens": 5, "n": 1, "best_of": 2}),
            3 * 1_000 + 2 * 5 * 2_000,
            "application/json",
            text,
        ),
        json(
            COMPLETIONS,
            json!({"model": MODEL, "prompt": [1, 2, 3, 4], "max_tokens": 1, "echo": true}),
            4 * 1_000 + 2_000,
            "application/json; charset=utf-8",
            text,
        ),
        json(
            EMBEDDINGS,
            json!({"model": MODEL, "input": ["one two three", "four"], "encoding_format": "base64"}),
            4 * 1_000,
            "application/json",
            vector,
        ),
        json(EMBEDDINGS, json!({"model": MODEL, "input": [[1, 2], [3]]}), 3 * 1_000, "application/json", vector),
        json(IMAGES, json!({"model": MODEL, "prompt": "a bridge", "n": 3}), 3 * FLAT, "application/json", usage),
        json(
            SPEECH,
            json!({"model": MODEL, "input": "hi", "voice": "alloy"}),
            FLAT,
            "audio/mpeg",
            b"\xFF\xFB\x90{\0\r\n",
        ),
        json(SPEECH, json!({"input": "hi", "voice": "alloy"}), FLAT, "audio/pcm;rate=24000;channels=1", b"{\"a\":1}"),
        Call {
            path: TRANSCRIPTIONS,
            kind: FORM,
            body: form(),
            price: FLAT,
            said: ("application/json", br#"{"text":"hello"}"#.to_vec()),
        },
        Call {
            path: TRANSCRIPTIONS,
            kind: FORM,
            body: form(),
            price: FLAT,
            said: ("text/vtt; charset=utf-8", b"WEBVTT\n\nhello".to_vec()),
        },
    ]
}

async fn post(gate: &Gate, path: &str, headers: &[(&str, &str)], body: &[u8]) -> RawReply {
    raw::exchange(gate.listen, &raw::post(path, headers, body)).await
}

fn amount(reply: &RawReply) -> u128 {
    let offer = payer::offer(&reply.headers("www-authenticate"), "tempo", "charge");
    payer::terms(&offer)["amount"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_surface_names_its_price_is_paid_and_gives_the_backends_own_bytes() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let mut gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let payer = Payer::fresh(&chain, 10_000_000).await;
    let mut due = 0;
    let calls = calls();
    for call in &calls {
        let why = format!("{} {}", call.path, String::from_utf8_lossy(&call.body));
        let unpaid = post(&gate, call.path, &[("content-type", call.kind)], &call.body).await;
        assert_eq!((unpaid.status, amount(&unpaid)), (402, call.price), "{why}");
        std::fs::write(gate.dir().join("request"), &call.body).unwrap();
        let (ok, quoted, said) = gate.verb(&["quote", "--path", call.path, "request"]);
        assert!(ok.success(), "{why}: {said}");
        let quoted: Value = serde_json::from_str(&quoted).unwrap();
        assert_eq!(quoted["rails"][0]["amount"], call.price.to_string(), "{why}: {quoted}");
        let served = backend.requests().len();
        let proof = payer.pay(&unpaid).await;
        let (kind, said) = &call.said;
        backend.next(backend::Reply::status(200, kind, said));
        let paid = post(&gate, call.path, &[("content-type", call.kind), ("authorization", &proof)], &call.body).await;
        assert_eq!((paid.status, &paid.body), (200, said), "{why}: {}", paid.text());
        let want = if kind.starts_with("application/json") { "application/json" } else { kind };
        assert_eq!(paid.headers("content-type"), [want], "{why}");
        assert!(paid.header("payment-receipt").is_some(), "{why}");
        due += call.price;
        let heard = &backend.requests()[served..];
        assert_eq!((heard.len(), heard[0].path.as_str()), (1, call.path), "{why}");
        if call.kind == FORM {
            let text = String::from_utf8_lossy(&heard[0].body).into_owned();
            assert!(text.contains("name=\"model\"\r\n\r\nup\r\n") && !text.contains("house/all"), "{text}");
            assert!(heard[0].body.windows(9).any(|w| w == b"RIFF\0\xFF\r\n\x01"), "the sound, byte for byte: {text}");
            let kind = heard[0].header("content-type").unwrap();
            let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
            assert!(text.starts_with(&format!("--{boundary}\r\n")), "{kind}: {text}");
        } else {
            assert_eq!(
                (&heard[0].json()["model"], heard[0].header("content-type")),
                (&json!("up"), Some("application/json"))
            );
        }
    }
    let seen = gate.metrics().await;
    assert!(!seen.contains("source=\"missing\"") && !seen.contains("source=\"absurd\""), "{seen}");
    gate.stop().await;
    let books = books(&gate);
    assert_eq!((books.charged, books.receipts, books.owed.len()), (due, calls.len() as u64, 0), "{books:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_the_surface_costs_nothing_and_can_be_asked_for_again() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let payer = Payer::fresh(&chain, 10_000_000).await;
    let endless = vec![0; (32 << 20) + 1];
    for (path, kind, said, why) in [
        (SPEECH, "audio/mpeg", &endless[..], "more than is held"),
        (SPEECH, "application/json", &br#"{"error":{"message":"x"}}"#[..], "an error where sound was asked"),
        (SPEECH, "text/html", b"<html>", "a page"),
        (SPEECH, "audio/mpeg", b"", "no sound at all"),
        (IMAGES, "application/json", br#"{"created":1,"data":[]}"#, "no pictures"),
        (IMAGES, "image/png", b"\x89PNG", "a bare picture"),
        (EMBEDDINGS, "application/json", br#"{"error":{"message":"x"}}"#, "an error inside a success"),
        (EMBEDDINGS, "text/event-stream", b"data: {}\n\n", "a stream"),
        (COMPLETIONS, "application/json", br#"{"choices":[]}"#, "no choices"),
    ] {
        let call = calls().into_iter().find(|call| call.path == path).unwrap();
        let headers = [("content-type", call.kind)];
        let proof = payer.pay(&post(&gate, path, &headers, &call.body).await).await;
        let headers = [headers[0], ("authorization", proof.as_str())];
        backend.next(backend::Reply::status(200, kind, said));
        let refused = post(&gate, path, &headers, &call.body).await;
        assert_eq!(refused.status, 502, "{why}: {}", refused.text());
        assert!(refused.json()["payment"]["redeemable_until"].is_string(), "{why}: {}", refused.text());
        backend.next(backend::Reply::status(200, call.said.0, &call.said.1));
        let redeemed = post(&gate, path, &headers, &call.body).await;
        assert_eq!((redeemed.status, &redeemed.body), (200, &call.said.1), "{why}: {}", redeemed.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_kind_or_for_another_surface_is_refused_before_any_offer() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let other = FORM.replace("zz", "yy");
    for (path, kind, body, status, code, why) in [
        (
            TRANSCRIPTIONS,
            "application/json",
            &br#"{"model":"m"}"#[..],
            415,
            "unsupported_media_type",
            "JSON for a form",
        ),
        (TRANSCRIPTIONS, &other, &form(), 400, "invalid_form", "another boundary in the header"),
        (TRANSCRIPTIONS, "multipart/form-data", &form(), 415, "unsupported_media_type", "no boundary"),
        (SPEECH, FORM, &form(), 415, "unsupported_media_type", "a form for JSON"),
        (EMBEDDINGS, "application/json", br#"{"messages":[]}"#, 400, "unknown_parameter", "chat"),
        (IMAGES, "application/json", br#"{"prompt":"x","stream":true}"#, 400, "invalid_value", "a stream"),
        (
            COMPLETIONS,
            "application/json",
            br#"{"prompt":"x","echo":true,"stream":true}"#,
            400,
            "invalid_value",
            "an echo streamed",
        ),
        (COMPLETIONS, "application/json", br#"{"prompt":["a","b","c"],"n":2}"#, 400, "over_limit", "too many choices"),
        (IMAGES, "application/json", br#"{"prompt":"x","n":5}"#, 400, "over_limit", "too many pictures"),
        (
            EMBEDDINGS,
            "application/json",
            br#"{"input":"x","model":"nobody's"}"#,
            404,
            "model_not_found",
            "another model",
        ),
    ] {
        let got = post(&gate, path, &[("content-type", kind)], body).await;
        assert_eq!((got.status, got.json()["error"]["code"].as_str()), (status, Some(code)), "{why}: {}", got.text());
    }
    for path in [COMPLETIONS, EMBEDDINGS, IMAGES, SPEECH, TRANSCRIPTIONS] {
        let probe = post(&gate, path, &[], b"").await;
        assert_eq!(probe.status, 402, "{path}: who asks for nothing is told how to pay");
        let put = raw::exchange(
            gate.listen,
            format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").as_bytes(),
        )
        .await;
        assert_eq!((put.status, put.header("allow")), (405, Some("POST, HEAD")), "{path}");
    }
    let said = raw::exchange(gate.listen, b"GET /llms.txt HTTP/1.1\r\nhost: x\r\n\r\n").await.text();
    for line in [
        "- POST /v1/images/generations: images; pay by tempo/charge ($0.02 per picture)",
        "- POST /v1/audio/transcriptions: transcriptions; pay by tempo/charge ($0.02 per request)",
        "- POST /v1/embeddings: embeddings; pay by tempo/charge (prompt x input price, by model)",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert!(backend.requests().is_empty(), "nothing of it was forwarded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_pays_what_the_backend_reports_of_completions_and_embeddings() {
    let bed = SessionBed::with(|options| {
        let mut routes = String::new();
        for (path, surface) in [(COMPLETIONS, "completions"), (EMBEDDINGS, "embeddings")] {
            routes.push_str(&format!(
                "[[route]]\npath = \"{path}\"\nsurface = \"{surface}\"\ntier = \"standard\"\naccept = [\"tempo/session\"]\n\n"
            ));
        }
        options.rule_edit("routes.toml", "[[route]]\npath = \"/v1/models\"", &format!("{routes}[[route]]\npath = \"/v1/models\""))
    })
    .await;
    let (channel, _) = bed.channel(100_000, 1_000).await;
    let mut due = 0;
    for (path, body, used, streamed) in [
        (EMBEDDINGS, json!({"model": "openai/gpt-oss-120b", "input": "one two three"}), 3 * INPUT, false),
        (
            COMPLETIONS,
            json!({"model": "openai/gpt-oss-120b", "prompt": "one two three", "max_tokens": 7}),
            3 * INPUT + 7 * OUTPUT,
            false,
        ),
        (
            COMPLETIONS,
            json!({"model": "openai/gpt-oss-120b", "prompt": "one two three", "max_tokens": 7, "stream": true}),
            3 * INPUT + 7 * OUTPUT,
            true,
        ),
    ] {
        let (offer, start) = bed.offer(path, &body).await;
        assert!(start >= used || streamed, "what it can cost is held before it begins: {start} of {used}");
        let credential = channel.voucher_credential(&offer, due + start.max(used) + 1_000);
        let reply = bed.post(path, &[("authorization", &credential)], body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        due += used;
        assert_eq!(bed.charged(&channel.id), due, "{path}: {}", reply.text());
        if streamed {
            let text = reply.text();
            assert!(text.contains("\"text\":\" tok6\"") && text.contains("data: [DONE]\n\n"), "{text}");
            assert!(!text.contains("\"choices\":[]"), "the client asked for no chunk of usage: {text}");
        }
    }
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x402_takes_the_flat_price_of_speech_and_what_embeddings_used() {
    let chain = EvmBed::start().await;
    let facilitator = Facilitator::ts(&chain).await;
    let stall = Stall::with(chain, &facilitator.url(), |options| {
        options
            .rule("models.toml", MODELS)
            .rule("tiers.toml", TIERS)
            .rule("routes.toml", &routes("base/upto", "base/exact"))
    })
    .await;
    let buyer = stall.chain.buyer(1_000_000).await;
    let (rpc, id) = (stall.chain.url(), stall.chain.chain_id.to_string());
    let key = alloy::hex::encode_prefixed(buyer.to_bytes());
    for (path, body, price) in [
        (SPEECH, json!({"model": MODEL, "input": "hi", "voice": "alloy"}), FLAT),
        (EMBEDDINGS, json!({"model": MODEL, "input": "one two three"}), 3_000),
        (COMPLETIONS, json!({"model": MODEL, "prompt": "one two three", "max_tokens": 5}), 3_000 + 10_000),
    ] {
        if path == SPEECH {
            stall.backend.next(backend::Reply::status(200, "audio/mpeg", b"sound"));
        }
        let (before, url, body) = (stall.earned().await, format!("{}{path}", stall.gate.url()), body.to_string());
        let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key), ("chain", &id), ("body", &body)];
        let got = node("../x402/fetch.mjs", &flags).await;
        assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{path}: {got:#}");
        if path == SPEECH {
            assert_eq!(got["body_text"], "sound", "{got:#}");
        }
        let paid = common::eventually(std::time::Duration::from_secs(10), || async { stall.earned().await > before });
        assert!(paid.await, "{path}: nothing was taken");
        assert_eq!(stall.earned().await - before, price, "{path}: {got:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unmodified_clients_call_every_surface() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let mut gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let (base, rpc) = (gate.base(), chain.url());
    let text = "tok0 tok1 tok2 tok3 tok4";
    let two = json!({"object": "list", "model": "up", "usage": {"prompt_tokens": 4, "total_tokens": 4}, "data": [
        {"object": "embedding", "index": 0, "embedding": "AACAPgAAAL8="}, {"object": "embedding", "index": 1, "embedding": "AACAPgAAAL8="}]});
    let vectors = json!([[0.25, -0.5], [0.25, -0.5]]);
    let pictures = json!({"created": 1, "data": [{"b64_json": "AAAA"}, {"b64_json": "BBBB"}]});
    let mut due = 0;
    for python_too in [false, true] {
        for (surface, stream, reply, want, price) in [
            ("completions", false, None, json!({"text": text}), 3_000 + 10_000),
            ("completions", true, None, json!({"text": text}), 3_000 + 10_000),
            ("embeddings", false, Some(backend::Reply::json(200, &two)), json!({"vectors": vectors}), 4_000),
            (
                "images",
                false,
                Some(backend::Reply::json(200, &pictures)),
                json!({"images": ["AAAA", "BBBB"]}),
                2 * FLAT,
            ),
            (
                "speech",
                false,
                Some(backend::Reply::status(200, "audio/wav", b"RIFF\0\xFF")),
                json!({"type": "audio/wav", "sound": "5249464600ff"}),
                FLAT,
            ),
            (
                "transcriptions",
                false,
                Some(backend::Reply::json(200, &json!({"text": "hello"}))),
                json!({"text": "hello"}),
                FLAT,
            ),
        ] {
            reply.into_iter().for_each(|reply| backend.next(reply));
            let mut flags = vec![("base", base.as_str()), ("rpc", &rpc), ("surface", surface)];
            if stream {
                flags.push(("stream", "true"));
            }
            let got = if python_too { python("surfaces.py", &flags).await } else { node("surfaces.mjs", &flags).await };
            let said = format!("{surface}: {got:#}");
            assert_eq!((&got["ok"], got["payments"].as_array().map(Vec::len)), (&json!(true), Some(1)), "{said}");
            for (name, value) in want.as_object().unwrap() {
                assert_eq!(&got[name], value, "{said}");
            }
            if surface == "completions" {
                assert_eq!(got["usage"]["completion_tokens"], 5, "{said}");
            }
            if surface == "transcriptions" {
                let heard = backend.last();
                assert!(
                    heard.body.windows(13).any(|w| w == b"RIFF\r\n\0\x01sound"),
                    "{:?}",
                    String::from_utf8_lossy(&heard.body)
                );
            }
            due += price;
        }
    }
    // The AI SDK asks for floats.
    let one = json!({"object": "list", "model": "up", "usage": {"prompt_tokens": 3, "total_tokens": 3}, "data": [
        {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]});
    let two = json!({"object": "list", "model": "up", "usage": {"prompt_tokens": 4, "total_tokens": 4}, "data": [
        {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}, {"object": "embedding", "index": 1, "embedding": [1.5, 2.5]}]});
    for (surface, replies, want, price) in [
        ("embeddings", vec![one, two], json!({"vectors": [[0.25, -0.5], [0.25, -0.5], [1.5, 2.5]]}), 3_000 + 4_000),
        ("images", vec![json!({"created": 1, "data": [{"b64_json": "AAAA"}]})], json!({"images": ["AAAA"]}), FLAT),
        ("transcriptions", vec![json!({"text": "hello"})], json!({"text": "hello"}), FLAT),
        ("speech", vec![], json!({"sound": "5249464600ff"}), FLAT),
    ] {
        replies.iter().for_each(|reply| backend.next(backend::Reply::json(200, reply)));
        if surface == "speech" {
            backend.next(backend::Reply::status(200, "audio/wav", b"RIFF\0\xFF"));
        }
        let got =
            node("surfaces.mjs", &[("base", base.as_str()), ("rpc", &rpc), ("surface", surface), ("sdk", "ai")]).await;
        assert_eq!(got["ok"], true, "{surface}: {got:#}");
        for (name, value) in want.as_object().unwrap() {
            assert_eq!(&got[name], value, "{got:#}");
        }
        due += price;
    }
    gate.stop().await;
    assert_eq!(books(&gate).charged, due);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_nobody_here_wrote_takes_what_the_gate_sends() {
    let (chain, aimock) = (Chain::start().await, Aimock::start().await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &aimock.url()))).await;
    for fixture in [
        json!({"match": {"inputText": "one two three"}, "response": {"embedding": [0.25, -0.5]}}),
        json!({"match": {"inputText": "four"}, "response": {"embedding": [1, 2]}}),
        json!({"match": {"userMessage": "a bridge", "endpoint": "image"}, "response": {"images": [{"b64Json": "AAAA"}, {"b64Json": "BBBB"}]}}),
        json!({"match": {"userMessage": "hello", "endpoint": "speech"}, "response": {"audio": "UklGRg==", "format": "wav"}}),
        json!({"match": {"endpoint": "transcription"}, "response": {"transcription": {"text": "heard"}}}),
    ] {
        aimock.add(fixture).await;
    }
    let (base, rpc) = (gate.base(), chain.url());
    for (surface, name, want) in [
        ("images", "images", json!(["AAAA", "BBBB"])),
        ("speech", "sound", json!("52494646")),
        ("transcriptions", "text", json!("heard")),
        ("embeddings", "ok", json!(true)),
    ] {
        let got = node("surfaces.mjs", &[("base", base.as_str()), ("rpc", &rpc), ("surface", surface)]).await;
        assert_eq!((&got["ok"], &got[name]), (&json!(true), &want), "{surface}: {got:#}");
    }
}
