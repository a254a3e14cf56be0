//! Which path, which method, which model: everything is refused that is not sold in so many words, before any price is
//! named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{CHAT, FREE, PATIENCE, ROOMY, ask, limits};
use common::{Bridge, DEV, GateOptions, Payer, RawReply, raw};
use serde_json::{Value, json};

/// Every way to write `path` that somebody, somewhere, takes for `path`.
fn spellings(path: &str) -> Vec<String> {
    let tail = path.trim_start_matches('/');
    let (first, rest) = tail.split_once('/').unwrap();
    let (head, last) = path.rsplit_once('/').unwrap();
    let upper = path.to_uppercase();
    let capital = format!("/{}{}", first[..1].to_uppercase(), &tail[1..]);
    let encoded: String = path.bytes().map(|b| if b == b'/' { "/".into() } else { format!("%{b:02x}") }).collect();
    let mut all: Vec<String> = [
        "/{t}/",
        "//{t}",
        "///{t}",
        "/./{t}",
        "/../{t}",
        "/x/../{t}",
        "/{t}/.",
        "/{t}/..",
        "/{t}//",
        "/{t}/x/..",
        "{t}",
        "./{t}",
        "/%2e/{t}",
        "/%2e%2e/{t}",
        "/%2E%2E/{t}",
        "/x/%2e%2e/{t}",
        "/{t}/%2e",
        "/%252e%252e/{t}",
        "/.;/{t}",
        "/..;/{t}",
        "/{t};",
        "/{t};a=b",
        "/;/{t}",
        "/{f};x/{r}",
        "/{t}%3b",
        "/{t}%20",
        "/{t}%00",
        "/{t}%0a",
        "/{t}%09",
        "/{t}%0d%0a",
        "/{t}%2f",
        "/{t}%3f",
        "/{t}%23",
        "/{t}?",
        "/{t}?a=b",
        "/{t}?/../../x",
        "/{t}#x",
        "/{t}%",
        "/{t}%2",
        "/{t}%zz",
        "/{f}//{r}",
        "/{f}/./{r}",
        "/{f}/x/../{r}",
        "/{f}/../{f}/{r}",
        "/{f}%2f{r}",
        "/{f}%2F{r}",
        "/{f}%252f{r}",
        "/{f}%5c{r}",
        "/{f}\\{r}",
        "\\{t}",
        "/{f}%c0%af{r}",
        "/{f}%e0%80%af{r}",
        "/{f}%ef%bc%8f{r}",
        "/{f}\u{ff0f}{r}",
        "/{f}%u2215{r}",
        "/{t}.json",
        "/{t}.",
        "/{t}~",
        "/{t}*",
        "/{t}\u{e9}",
        "http://gate/{t}",
        "https://gate/{t}",
        "http://other.example/{t}",
        "http:///{t}",
        "//other.example/{t}",
        "http://gate:1/{t}?x",
        "http://user@gate/{t}",
        "*",
        "/*",
        "/",
        "",
        "/{t}/{t}",
        "/x/{t}",
        "/{t}x",
        "/{f}",
        "/{f}/",
    ]
    .iter()
    .map(|form| form.replace("{t}", tail).replace("{f}", first).replace("{r}", rest))
    .collect();
    let wide = last.replacen('s', "\u{17f}", 1);
    all.extend([upper, capital, encoded, format!("{head}/{wide}"), format!("{head}%2f{last}")]);
    all.extend([
        path.replace('/', "%2f"),
        path.replacen("/", "%2f", 1),
        path.replace('o', "%6f"),
        path.replace('c', "%63"),
    ]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_gets_around_the_price() {
    let bridge = Bridge::start().await;
    let body = ask("pay for me").to_string();
    let spelled = spellings(CHAT);
    assert!(spelled.len() >= 60, "{}", spelled.len());
    let mut asked = 0;
    for path in &spelled {
        let got = bridge.send(&raw::post(path, &[], body.as_bytes())).await;
        // 400: not a request line at all.
        assert!(matches!(got.status, 402 | 404 | 400), "{path:?}: {} {}", got.status, got.text());
        let offered = got.header("www-authenticate").is_some();
        assert_eq!(offered, got.status == 402, "{path:?}");
        asked += usize::from(offered);
    }
    assert!(asked >= 3, "a query or a fragment does not change which path is meant");
    assert!(bridge.backend.requests().is_empty(), "{:?}", bridge.backend.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_normal_form_of_a_path_is_a_path_and_its_query_goes_nowhere() {
    let bridge = Bridge::start().await;
    let body = ask("free for all").to_string();
    for path in spellings(FREE) {
        let before = bridge.backend.requests().len();
        let got = bridge.send(&raw::post(&path, &[], body.as_bytes())).await;
        let meant = path.split(['?', '#']).next() == Some(FREE) || got.status == 200 && path.starts_with("http://gate");
        assert_eq!(got.status == 200, meant, "{path:?}: {}", got.status);
        assert!(matches!(got.status, 200 | 404 | 400), "{path:?}: {}", got.status);
        let heard = bridge.backend.requests().split_off(before);
        assert_eq!(heard.len(), usize::from(meant), "{path:?}");
        assert!(heard.iter().all(|r| r.path == "/v1/chat/completions"), "{heard:?}");
    }
    for path in spellings("/v1/models") {
        let got = bridge.send(format!("GET {path} HTTP/1.1\r\nhost: gate\r\n\r\n").as_bytes()).await;
        let exact = path.split(['?', '#']).next() == Some("/v1/models");
        assert!(!exact || got.status == 200, "{path:?}: {}", got.status);
        assert!(matches!(got.status, 200 | 404 | 400), "{path:?}: {}", got.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_are_a_table_and_nothing_overrides_it() {
    let bridge = Bridge::start().await;
    let body = ask("whatever the method").to_string();
    let chat = ["POST", "HEAD"];
    let document = ["GET", "HEAD"];
    for (path, takes) in [
        (CHAT, chat),
        (FREE, chat),
        ("/v1/models", document),
        ("/openapi.json", document),
        ("/llms.txt", document),
        ("/agents.md", document),
        ("/nowhere", ["", ""]),
    ] {
        for method in [
            "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "post", "get", "Post", "hEAD",
            "PROPFIND", "QUERY", "POST-", "X",
        ] {
            let mut client = bridge.connect().await;
            let head = format!("{method} {path} HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\n");
            client.send(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
            let got = client.reply_to(method, PATIENCE).await;
            let want = match (path, method) {
                ("/nowhere", _) => 404,
                (CHAT, "POST" | "HEAD") => 402,
                // A reply to HEAD has no body, so there is nothing to be had.
                (FREE, "HEAD") => 400,
                (_, m) if takes.contains(&m) => 200,
                _ => 405,
            };
            assert_eq!(got.status, want, "{method} {path}: {}", got.text());
            let allow = (want == 405).then(|| takes.join(", "));
            assert_eq!(got.header("allow"), allow.as_deref().map(|a| if a == "GET, HEAD" { a } else { "POST, HEAD" }));
            assert_eq!(got.header("www-authenticate").is_some(), want == 402, "{method} {path}");
        }
    }
    for header in ["x-http-method-override", "x-http-method", "x-method-override", "_method"] {
        for (method, want) in [("GET", 405), ("POST", 402)] {
            let head = format!(
                "{method} {CHAT} HTTP/1.1\r\nhost: gate\r\n{header}: {}\r\n",
                if want == 405 { "POST" } else { "GET" }
            );
            let got = bridge.send(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
            assert_eq!(got.status, want, "{method} with {header}");
        }
    }
    assert_eq!(
        bridge.backend.requests().len(),
        1,
        "the free route was asked by POST once: {:?}",
        bridge.backend.requests()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn head_on_a_paid_path_gives_the_402_without_its_body() {
    let bridge = Bridge::start().await;
    let mut client = bridge.connect().await;
    client.send(format!("HEAD {CHAT} HTTP/1.1\r\nhost: gate\r\n\r\n").as_bytes()).await;
    let head = client.reply_to("HEAD", PATIENCE).await;
    assert_eq!(head.status, 402);
    assert!(head.header("www-authenticate").unwrap().starts_with("Payment "));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    // Bytes of a body would be taken for the head of the next answer on the same connection.
    client.send(&raw::post(CHAT, &[], ask("hello").to_string().as_bytes())).await;
    let post = client.reply(PATIENCE).await;
    assert_eq!((post.status, post.complete), (402, true));
    assert!(post.json()["error"]["message"].is_string());
    assert!(bridge.backend.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_shown_by_head_is_not_spent_on_a_reply_that_has_no_body() {
    let bridge = Bridge::start().await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    let paying = bridge.paying(&payer, &ask("all of it")).await;
    let mut client = bridge.connect().await;
    client.send(&[b"HEAD", &paying[4..]].concat()).await;
    let head = client.reply_to("HEAD", PATIENCE).await;
    assert!((400..500).contains(&head.status), "{}", head.status);
    assert!(bridge.backend.requests().is_empty() && bridge.chain.payments_to(DEV[1].address).await.is_empty());
    // The same payment still buys the reply.
    let bought = bridge.send(&paying).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    assert_eq!(bridge.chain.payments_to(DEV[1].address).await.len(), 1);
}

/// A second tier that sells a second model on a path of its own.
fn two_tiers(options: GateOptions) -> GateOptions {
    let vocabulary = "vocabulary = \"o200k\"\n";
    let small = format!(
        "{vocabulary}\n[model.\"openai/gpt-oss-20b\"]\nupstream = \"gpt-oss-20b-fp8\"\npool = \"gpt-oss\"\nprice = {{ input = \"0.05\", output = \"0.20\" }}\n"
    );
    let tier = "[tier.small]\nmodels = [\"openai/gpt-oss-20b\"]\nmax_output_tokens = 100\nover_limit = \"refuse\"\ncharge = { flat = \"0.005\" }\n\n[tier.standard]";
    let route = "[[route]]\npath = \"/small/chat/completions\"\nsurface = \"chat\"\ntier = \"small\"\naccept = [\"tempo/charge\"]\n\n[[route]]\npath = \"/v1/models\"";
    limits(options, ROOMY)
        .rule_edit("models.toml", vocabulary, &small)
        .rule_edit("tiers.toml", "[tier.standard]", tier)
        .rule_edit("routes.toml", "[[route]]\npath = \"/v1/models\"", route)
}

/// OpenAI's shape, with the word that Anthropic's has beside it, and nothing that a wallet would take for an offer.
fn assert_policy(got: &RawReply, status: u16, code: &str, param: Option<&str>, why: &str) {
    assert_eq!(got.status, status, "{why}: {}", got.text());
    assert!(
        got.headers.iter().all(|(n, _)| !n.to_ascii_lowercase().contains("authenticate")),
        "{why}: {:?}",
        got.headers
    );
    assert_eq!(got.header("content-type"), Some("application/json"), "{why}");
    let body = got.json();
    let members: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((members, body["type"].as_str()), (vec!["type", "error"], Some("error")), "{why}");
    let error = body["error"].as_object().unwrap();
    assert!(error["message"].as_str().is_some_and(|m| m.len() > 10) && error["type"].is_string(), "{why}: {body}");
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some(code), param), "{why}: {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sold_is_refused_in_openais_words_before_any_price_is_named() {
    let bridge = Bridge::with(two_tiers).await;
    let with = |name: &str, value: Value| {
        let mut body = ask("hello");
        body[name] = value;
        body.to_string()
    };
    let part = |part: Value| {
        json!({"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": [part]}]}).to_string()
    };
    let image = json!({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}});
    let audio = json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}});
    for (body, status, code, param, why) in [
        (with("model", json!("openai/gpt-7")), 404, "model_not_found", Some("model"), "unknown"),
        (with("model", json!("gpt-oss-120b")), 404, "model_not_found", Some("model"), "the backend's own name"),
        (
            with("model", json!("gpt-oss-20b-fp8")),
            404,
            "model_not_found",
            Some("model"),
            "the backend's name of another tier",
        ),
        (with("model", json!("OPENAI/GPT-OSS-120B")), 404, "model_not_found", Some("model"), "case"),
        (with("model", json!("openai/gpt-oss-120b ")), 404, "model_not_found", Some("model"), "a space behind"),
        (with("model", json!("")), 404, "model_not_found", Some("model"), "empty"),
        (with("model", json!("\r\nSet-Cookie: a=b")), 404, "model_not_found", Some("model"), "header text"),
        (with("model", json!(7)), 400, "invalid_value", Some("model"), "a number"),
        (with("model", json!("openai/gpt-oss-20b")), 400, "wrong_tier", Some("model"), "another tier's"),
        (with("n", json!(5)), 400, "over_limit", Some("n"), "too many choices"),
        (with("n", json!(0)), 400, "invalid_value", Some("n"), "no choices"),
        (with("max_tokens", json!(-1)), 400, "invalid_value", Some("max_tokens"), "a negative limit"),
        (with("best_of", json!(20)), 400, "unknown_parameter", Some("best_of"), "unknown to the chat schema"),
        (with("extra_body", json!({})), 400, "unknown_parameter", Some("extra_body"), "unknown"),
        (with("web_search_options", json!({})), 400, "not_priced", Some("web_search_options"), "hosted search"),
        (with("audio", json!({"voice": "a"})), 400, "not_priced", Some("audio"), "spoken output"),
        (with("tools", json!([{"type": "web_search"}])), 400, "not_priced", Some("tools[0].type"), "a hosted tool"),
        (
            with("service_tier", json!("priority")),
            400,
            "not_priced",
            Some("service_tier"),
            "a dearer tier of the backend's",
        ),
        (part(image), 400, "not_priced", Some("messages[0].content[0].type"), "an image without a price"),
        (part(audio), 400, "not_priced", Some("messages[0].content[0].type"), "audio without a price"),
        (with("Model", json!("b")), 400, "invalid_value", Some("model"), "a key that some readers take for another"),
        (with("messages", json!("hello")), 400, "invalid_value", Some("messages"), "no list"),
    ] {
        assert_policy(&bridge.send(&raw::post(CHAT, &[], body.as_bytes())).await, status, code, param, why);
    }
    for (body, why) in [
        ("{\"model\":\"a\",\"model\":\"b\"}", "a key twice"),
        ("{\"messages\":[]} x", "something behind"),
        ("{\"messages\":[}", "broken"),
        ("\u{feff}{}", "a byte-order mark"),
        ("{\"temperature\":NaN}", "no number"),
    ] {
        assert_policy(&bridge.send(&raw::post(CHAT, &[], body.as_bytes())).await, 400, "invalid_json", None, why);
    }
    let told = bridge.send(&raw::post(CHAT, &[], with("model", json!("openai/gpt-oss-20b")).as_bytes())).await.text();
    assert!(told.contains("/small/chat/completions") && told.contains("$0.005"), "right path and price: {told}");
    let mut small = ask("hello");
    small["model"] = json!("openai/gpt-oss-20b");
    small["max_tokens"] = json!(101);
    let got = bridge.send(&raw::post("/small/chat/completions", &[], small.to_string().as_bytes())).await;
    assert_policy(&got, 400, "over_limit", Some("max_tokens"), "more output than a refusing tier sells");

    assert_eq!(bridge.gate.metric("pontage_challenges_total", &[]).await, 0.0, "a price was named");
    assert!(bridge.backend.requests().is_empty());
    // And the same request without its mistake is offered.
    small["max_tokens"] = json!(100);
    let got = bridge.send(&raw::post("/small/chat/completions", &[], small.to_string().as_bytes())).await;
    assert_eq!(got.status, 402, "{}", got.text());
    assert_eq!(
        bridge.send(&raw::post(CHAT, &[], with("model", json!("gpt-oss-120b-alias")).as_bytes())).await.status,
        402
    );
    assert_eq!(
        bridge.send(&raw::post(CHAT, &[], with("max_tokens", json!(1_000_000)).as_bytes())).await.status,
        402,
        "clamped"
    );
}
