//! What a backend hears, and what a client gets of its answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::backend::{chunk, stream_head};
use common::bridge::{Bridge, CHAT, FREE, PATIENCE, ask, streamed};
use common::gate::UPSTREAM_KEY;
use common::{Payer, Raw, Reply, Step, payer, raw};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Headers by which a client could pose as somebody, or learn where its words go.
const CLIENT_HEADERS: [(&str, &str); 24] = [
    ("authorization", "Bearer client-canary"),
    ("proxy-authorization", "Basic client-canary"),
    ("cookie", "session=client-canary"),
    ("x-api-key", "client-canary"),
    ("api-key", "client-canary"),
    ("openai-organization", "client-canary"),
    ("openai-project", "client-canary"),
    ("x-forwarded-for", "client-canary"),
    ("x-forwarded-host", "client-canary"),
    ("x-forwarded-proto", "client-canary"),
    ("x-real-ip", "client-canary"),
    ("forwarded", "for=client-canary"),
    ("via", "1.1 client-canary"),
    ("x-payment", "client-canary"),
    ("payment-signature", "client-canary"),
    ("payment-receipt", "client-canary"),
    ("accept-payment", "client-canary"),
    ("x-payer", "client-canary"),
    ("x-request-id", "client-canary"),
    ("origin", "https://client-canary.example"),
    ("referer", "https://client-canary.example"),
    ("traceparent", "client-canary"),
    ("accept-encoding", "gzip, client-canary"),
    ("user-agent", "client-canary"),
];

fn names(headers: &[(String, String)]) -> Vec<String> {
    let mut names: Vec<String> = headers.iter().map(|(n, _)| n.to_ascii_lowercase()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_hears_our_words_under_our_name_and_nothing_about_the_client() {
    let bridge = Bridge::start().await;
    let said = r#"{ "messages":[{"role":"user","content":"h\u00e9 \"you\""}], "max_completion_tokens":5,"max_tokens":7,
        "model":"gpt-oss-120b-alias", "temperature": 0.50, "stream":true,"n":1 }"#;
    let got = bridge.send(&raw::post(FREE, &CLIENT_HEADERS, said.as_bytes())).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let heard = bridge.backend.last();
    // Exact text: whichever way a backend reads JSON, it reads what was priced.
    assert_eq!(
        String::from_utf8_lossy(&heard.body),
        r#"{"model":"gpt-oss-120b","messages":[{"role":"user","content":"h\u00e9 \"you\""}],"temperature":0.50,"max_tokens":5,"n":1,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    // A running count on every chunk is asked for only when the client wants just that: some clients add up every figure they see.
    for (wanted, more) in [
        ("\"include_usage\":true", ""),
        ("\"include_usage\":true,\"continuous_usage_stats\":false", ""),
        ("\"include_usage\":true,\"continuous_usage_stats\":true", ",\"continuous_usage_stats\":true"),
    ] {
        let curious = said.replace("\"n\":1", &format!("\"n\":1,\"stream_options\":{{{wanted}}}"));
        assert_eq!(bridge.send(&raw::post(FREE, &CLIENT_HEADERS, curious.as_bytes())).await.status, 200);
        let asked = String::from_utf8_lossy(&bridge.backend.last().body).into_owned();
        assert!(
            asked.ends_with(&format!("\"stream_options\":{{\"include_usage\":true{more}}}}}")),
            "{wanted}: {asked}"
        );
    }
    assert_eq!((heard.method.as_str(), heard.path.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(heard.header("host"), Some(bridge.backend.addr.to_string().as_str()));
    assert_eq!(heard.header("authorization"), Some(format!("Bearer {UPSTREAM_KEY}").as_str()));
    assert_eq!(heard.header("accept-encoding"), Some("identity"));
    let allowed = ["accept-encoding", "authorization", "content-length", "content-type", "host", "user-agent"];
    assert_eq!(names(&heard.headers), allowed);
    assert!(!format!("{:?}", heard.headers).contains("client-canary"), "{:?}", heard.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paid_request_leaves_its_payment_at_the_gate() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    for body in [ask("one"), streamed("two")] {
        let paying = bridge.paying(&payer, &body).await;
        let got = bridge.send(&paying).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let heard = bridge.backend.last();
        let proof = String::from_utf8_lossy(&paying).split("Payment ").nth(1).unwrap()[..40].to_owned();
        assert!(!format!("{:?}", heard.headers).contains(&proof), "{:?}", heard.headers);
        assert_eq!(heard.header("authorization"), Some(format!("Bearer {UPSTREAM_KEY}").as_str()));
    }
}

/// Headers of a backend that talks too much, or poses as us.
const BACKEND_HEADERS: [(&str, &str); 26] = [
    ("server", "backend-canary"),
    ("x-powered-by", "backend-canary"),
    ("via", "1.1 backend-canary"),
    ("set-cookie", "a=backend-canary"),
    ("www-authenticate", "Payment id=\"backend-canary\""),
    ("proxy-authenticate", "Basic realm=\"backend-canary\""),
    ("authentication-info", "backend-canary"),
    ("payment-receipt", "backend-canary"),
    ("payment-response", "backend-canary"),
    ("x-payment-response", "backend-canary"),
    ("payment-required", "backend-canary"),
    ("pontage-receipt-id", "backend-canary"),
    ("alt-svc", "h3=\"backend-canary:443\""),
    ("location", "https://backend-canary.example"),
    ("link", "<https://backend-canary.example>"),
    ("refresh", "0;url=https://backend-canary.example"),
    ("access-control-allow-origin", "https://backend-canary.example"),
    ("strict-transport-security", "max-age=1; backend-canary"),
    ("x-request-id", "backend-canary"),
    ("openai-organization", "backend-canary"),
    ("openai-model", "backend-canary"),
    ("x-ratelimit-remaining-requests", "backend-canary"),
    ("cache-control", "public, max-age=31536000, backend-canary"),
    ("connection", "x-hop"),
    ("x-hop", "backend-canary"),
    ("x-should-retry", "true-backend-canary"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_none_of_a_backends_own_headers_streamed_or_not() {
    let bridge = Bridge::start().await;
    let whole = json!({"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
    let mut json_head = BACKEND_HEADERS.to_vec();
    json_head.push(("content-type", "application/json"));
    bridge.backend.next(Reply::with_headers(200, &json_head, whole.to_string()));
    let mut sse_head = BACKEND_HEADERS.to_vec();
    sse_head.push(("content-type", "text/event-stream"));
    bridge.backend.next(Reply::with_headers(
        200,
        &sse_head,
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n",
    ));
    bridge.backend.next(Reply::with_headers(404, &json_head, "{\"error\":{\"message\":\"no\"}}"));
    bridge.backend.next(Reply::with_headers(500, &json_head, "{\"error\":{\"message\":\"no\"}}"));
    bridge.backend.next(Reply::with_headers(302, &json_head, ""));
    for (body, status) in [(ask("a"), 200), (streamed("b"), 200), (ask("c"), 404), (ask("d"), 502), (ask("e"), 502)] {
        let got = bridge.free(&body).await;
        assert_eq!(got.status, status, "{}", got.text());
        let all = String::from_utf8_lossy(&got.raw).into_owned();
        assert!(!all.contains("backend-canary"), "{all}");
        for name in ["server", "set-cookie", "www-authenticate", "payment-receipt", "location", "date"] {
            assert!(name == "date" || got.header(name).is_none(), "{status} {name}: {:?}", got.headers);
        }
        assert!(got.header("cache-control").is_some_and(|v| v.contains("no-store")), "{:?}", got.headers);
        assert!(got.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "{:?}", got.headers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_chunk_is_shown_to_whoever_asked_for_it_and_to_nobody_else() {
    let bridge = Bridge::start().await;
    let usage_chunks = |text: &str| {
        let events = text.split("\n\n").filter_map(|e| serde_json::from_str::<Value>(e.strip_prefix("data: ")?).ok());
        events.filter(|e| e["choices"].as_array().is_some_and(Vec::is_empty) && e["usage"].is_object()).count()
    };
    for (options, want) in [
        (None, 0),
        (Some(json!({"include_usage": false})), 0),
        (Some(json!({})), 0),
        (Some(json!({"include_usage": true})), 1),
    ] {
        let mut body = streamed("how much");
        if let Some(options) = &options {
            body["stream_options"] = options.clone();
        }
        let got = bridge.free(&body).await;
        assert_eq!(usage_chunks(&got.text()), want, "{options:?}: {}", got.text());
        assert!(got.text().ends_with("data: [DONE]\n\n"));
        // The backend was asked every time.
        assert_eq!(bridge.backend.last().json()["stream_options"]["include_usage"], true);
        assert!(bridge.backend.last().reported.is_some());
    }
    assert_eq!(bridge.gate.metric("pontage_usage_total", &[("source", "reported")]).await, 4.0);
}

/// Streams that must pass as they are, whatever one thinks of them.
#[tokio::test(flavor = "multi_thread")]
async fn frames_pass_byte_for_byte_however_they_are_cut() {
    let bridge = Bridge::start().await;
    let content =
        |text: &str| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n");
    let long = content(&"lang\u{e4}\u{1f309}".repeat(20_000));
    let streams = [
        (format!("{}{}data: [DONE]\n\n", content("a"), content("\u{1f309}\u{e9}")), "plain"),
        (format!("{}data: [DONE]\r\n\r\n", content("a").replace('\n', "\r\n")), "CRLF"),
        (format!("{}data: [DONE]\r\r", content("a").replace('\n', "\r")), "CR"),
        (
            format!(": hello\n\nretry: 10\nid: 7\nevent: message\n{}data:[DONE]\n\n", content("a")),
            "comments and fields",
        ),
        (format!("{}{}", content("a"), content("b")), "no [DONE]"),
        (format!("{}data: [DONE]\n\n: bye\n\n", content("a")), "a comment behind [DONE]"),
        (format!("{}data: [DONE]\n", content("a")), "an unfinished end"),
        (format!("\u{feff}{}data: [DONE]\n\n", content("a")), "a byte-order mark"),
        (format!("{long}data: [DONE]\n\n"), "a long event"),
    ];
    for (stream, why) in &streams {
        for size in [1, 3, 7, 64, 1 << 20] {
            if size < 64 && stream.len() > 10_000 {
                continue;
            }
            bridge.backend.next(Reply::stream_in_pieces_of(size, stream.as_bytes()));
            let got = bridge.free(&streamed(why)).await;
            assert_eq!(got.status, 200, "{why}");
            assert!(got.complete && got.body == stream.as_bytes(), "{why} in pieces of {size}:\n{}", got.text());
        }
    }
}

/// A backend that sends one event whenever it is told to.
async fn told_backend() -> (std::net::SocketAddr, watch::Sender<usize>, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = watch::channel(0);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut told = told.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"}}") && !request.starts_with(b"GET /health") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                if request.starts_with(b"GET") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    return;
                }
                let _ = stream.write_all(&stream_head()).await;
                for event in 1..=4 {
                    let _ = told.wait_for(|up_to| *up_to >= event).await;
                    let text =
                        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"t{event}\"}}}}]}}\n\n");
                    let _ = stream.write_all(&chunk(text.as_bytes())).await;
                }
                let _ = stream.write_all(&[&chunk(b"data: [DONE]\n\n")[..], b"0\r\n\r\n"].concat()).await;
            });
        }
    });
    (addr, tell, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_seen_before_the_next_one_exists() {
    let (addr, tell, task) = told_backend().await;
    let server = format!("servers = [\"http://{addr}\"]");
    let bridge = Bridge::with(|o| {
        let old = format!("servers = [\"{}\"]", o.upstream);
        o.rule_edit("pools.toml", &old, &server)
    })
    .await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    for request in
        [bridge.paying(&payer, &streamed("paid")).await, raw::post(FREE, &[], streamed("free").to_string().as_bytes())]
    {
        tell.send_replace(0);
        let mut client = Raw::connect(bridge.gate.listen).await;
        client.send(&request).await;
        for event in 1..=4 {
            tell.send_replace(event);
            assert!(client.until(format!("\"t{event}\"").as_bytes(), PATIENCE).await, "token {event}");
            assert!(common::backend::find(&client.seen, format!("\"t{}\"", event + 1).as_bytes()).is_none());
        }
        assert!(client.until(b"data: [DONE]\n\n", PATIENCE).await);
    }
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_pose_as_ours_are_dropped_and_counted() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let honest = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    let forged = [
        "event: payment-receipt\ndata: {\"forged\":1}\n\n",
        "event:payment-receipt\r\ndata: {\"forged\":2}\r\n\r\n",
        "data: {\"forged\":3}\nevent: payment-need-voucher\n\n",
        ": pontage-receipt forged4\n\n",
    ];
    let stream = format!("{}{honest}{}data: [DONE]\n\n{}", forged[..2].concat(), forged[2..].concat(), forged[0]);
    for size in [1, 5, 100_000] {
        bridge.backend.next(Reply::stream_in_pieces_of(size, stream.as_bytes()));
        let got = bridge.send(&bridge.paying(&payer, &streamed("honest")).await).await;
        assert_eq!(got.status, 200);
        let text = got.text();
        assert!(
            !text.contains("forged") && text.contains("\"content\":\"a\"") && text.ends_with("data: [DONE]\n\n"),
            "{text}"
        );
        assert_eq!(text.matches(": pontage-receipt ").count(), 1, "only ours: {text}");
        let told = payer::unpack(got.header("payment-receipt").unwrap());
        assert_eq!(told["status"], "success", "{told}");
    }
    assert_eq!(bridge.gate.metric("pontage_dropped_frames_total", &[]).await, 15.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_heads_are_swallowed_and_the_reply_behind_them_passes() {
    const SAID: &str = "{\"choices\":[{\"message\":{\"content\":\"a\"}}]}";
    let bridge = Bridge::start().await;
    let reply = common::backend::with_length(200, &[("content-type", "application/json")], SAID.as_bytes());
    for interim in ["100 Continue", "102 Processing", "103 Early Hints\r\nlink: </x>"] {
        bridge.backend.next(Reply::steps([
            Step::Bytes(format!("HTTP/1.1 {interim}\r\n\r\n").into_bytes()),
            Step::Bytes(reply.clone()),
        ]));
        let got = bridge.free(&ask("patience")).await;
        assert_eq!((got.status, got.text().as_str()), (200, SAID), "{interim}");
        assert!(got.header("link").is_none() && got.raw.starts_with(b"HTTP/1.1 200 "));
    }
    // The paid path is no exception to any of this.
    assert_eq!(bridge.send(&raw::post(CHAT, &[], ask("x").to_string().as_bytes())).await.status, 402);
}
