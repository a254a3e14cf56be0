//! The shipped rule set `agent402`, as it is in the repository; only addresses and the way to pay are those of the test bed.
//! Five tiers by path: what each sells, by which names, to which limits and for how much, and what it says to everything else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::agent402::{self, AUTO, NANO, PREMIUM, PRO, STANDARD, TIERS, sample, shipped};
use common::client::{self, node};
use common::{Backend, Bed, Gate, GateOptions, Payer, RawReply, Script, Unseen, eventually, payer, raw};
use serde_json::{Value, json};
use std::time::Duration;

/// The set on the test bed, with the pool of the large model at `large`.
fn on_tempo_at(options: GateOptions, large: Option<&str>) -> GateOptions {
    let options = agent402::rules(options, large);
    let paid =
        |line: &str| if line.starts_with("accept = ") { "accept = [\"tempo/charge\"]".into() } else { line.to_owned() };
    let routes: Vec<String> = options.rules["routes.toml"].lines().map(paid).collect();
    options.rule("routes.toml", &(routes.join("\n") + "\n"))
}

fn on_tempo(options: GateOptions) -> GateOptions {
    on_tempo_at(options, None)
}

async fn get(bed: &Bed, path: &str) -> RawReply {
    raw::exchange(bed.gate.listen, format!("GET {path} HTTP/1.1\r\nhost: gate\r\n\r\n").as_bytes()).await
}

async fn ask(bed: &Bed, path: &str, body: &Value) -> RawReply {
    bed.post(path, &[], body.to_string().as_bytes()).await
}

/// What a 402 of this body asks, in atoms.
fn amount(unpaid: &RawReply) -> u64 {
    assert_eq!(unpaid.status, 402, "{}", unpaid.text());
    let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    payer::terms(&offer)["amount"].as_str().unwrap().parse().unwrap()
}

/// A refusal before any price is named: status, code, message.
fn refused(reply: &RawReply) -> (u16, String, String) {
    assert!(reply.header("www-authenticate").is_none(), "an offer beside a refusal: {}", reply.text());
    let error = reply.json()["error"].clone();
    let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("{error}")).to_owned();
    (reply.status, text("code"), text("message"))
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The number in front of these words.
fn number(message: &str, before: &str, after: &str) -> u64 {
    let (_, rest) = message.split_once(before).unwrap_or_else(|| panic!("{before:?} is not in {message:?}"));
    let (digits, _) = rest.split_once(after).unwrap_or_else(|| panic!("{after:?} is not in {rest:?}"));
    digits.parse().unwrap_or_else(|_| panic!("{digits:?} of {message:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tier_sells_its_list_by_every_name_at_its_price() {
    let bed = Bed::with(on_tempo).await;
    let payer = Payer::fresh(&bed.chain, 50_000_000).await;
    let mut sold = 0;
    for (path, asked, name, upstream, most, why) in [
        (NANO, "openai/gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss-20b", 512, "exact"),
        (NANO, "gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss-20b", 512, "without the vendor"),
        (
            NANO,
            "meta-llama/llama-3.1-8b-instruct",
            "meta-llama/llama-3.1-8b-instruct",
            "llama-3.1-8b-instruct",
            512,
            "by prefix",
        ),
        (
            NANO,
            "llama-3.1-8b-instruct",
            "meta-llama/llama-3.1-8b-instruct",
            "llama-3.1-8b-instruct",
            512,
            "by prefix, without the vendor",
        ),
        (AUTO, "gpt-oss-120b", "openai/gpt-oss-120b", "gpt-oss-120b", 1024, "named on the automatic tier"),
        (
            AUTO,
            "deepseek/deepseek-chat",
            "deepseek/deepseek-chat",
            "deepseek/deepseek-chat",
            1024,
            "its last choice by name",
        ),
        (
            STANDARD,
            "google/gemini-2.5-flash",
            "google/gemini-2.5-flash",
            "google/gemini-2.5-flash",
            0,
            "by prefix; the price limits it",
        ),
        (STANDARD, "gpt-4.1-mini", "openai/gpt-4.1-mini", "openai/gpt-4.1-mini", 2048, "exact, without the vendor"),
        (PRO, "openai/gpt-5", "openai/gpt-5", "openai/gpt-5", 0, "the price limits it"),
        (PRO, "gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss-20b", 4096, "a small model on a dear tier, by prefix"),
        (
            PREMIUM,
            "anthropic/claude-sonnet-4.5",
            "anthropic/claude-sonnet-4.5",
            "anthropic/claude-sonnet-4.5",
            8_192,
            "exact",
        ),
        (
            PREMIUM,
            "claude-opus-4.1",
            "anthropic/claude-opus-4.1",
            "anthropic/claude-opus-4.1",
            0,
            "by prefix, without the vendor",
        ),
    ] {
        let price = agent402::price(path);
        let body = client::chat(asked, "one two three");
        let unpaid = ask(&bed, path, &body).await;
        assert_eq!(amount(&unpaid), price, "{asked} on {path}: {why}");
        let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
        let reply = bed.show(&payer.sign(&offer, |_| ()).await, path, &body).await;
        assert_eq!(reply.status, 200, "{asked} on {path}: {}", reply.text());
        assert_eq!(reply.header("pontage-model"), Some(name), "{why}");
        let receipt = reply.json()["pontage"].clone();
        assert_eq!(
            (&receipt["model"], &receipt["charged"]["atoms"]),
            (&json!(name), &json!(price.to_string())),
            "{why}"
        );
        let heard = bed.backend.last().json();
        assert_eq!(heard["model"], upstream, "{why}");
        let limit = heard["max_tokens"].as_u64().or(heard["max_completion_tokens"].as_u64()).unwrap();
        if most == 0 {
            let cap = match path {
                STANDARD => 2048,
                PRO => 4096,
                _ => 8192,
            };
            assert!((1..cap).contains(&limit), "{asked} on {path} may write {limit} tokens: {why}");
        } else {
            assert_eq!(limit, most, "{asked} on {path}: {why}");
        }
        sold += 1;
    }
    assert_eq!(bed.served(), sold);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_another_tier_is_refused_with_every_right_path_and_price_and_an_unknown_one_is_unknown() {
    let bed = Bed::with(on_tempo).await;
    let payer = bed.payer().await;
    // A payment that was made for something else opens nothing and is not used up.
    let proof = bed.proof(&payer, NANO, &client::chat("gpt-oss-20b", "one")).await;
    let (calls, at) = (bed.chain_calls(), |path: &str, price: &str| format!("{path} for ${price} per request"));
    let standard = || at(STANDARD, "0.005");
    let pro = || at(PRO, "0.03");
    let premium = || at(PREMIUM, "0.15");
    for (path, asked, places) in [
        (NANO, "openai/gpt-oss-120b", vec![at(AUTO, "0.002"), standard(), pro()]),
        (NANO, "gpt-oss-120b", vec![at(AUTO, "0.002"), standard(), pro()]),
        (NANO, "deepseek-chat", vec![at(AUTO, "0.002"), standard()]),
        (AUTO, "llama-3.1-8b-instruct", vec![at(NANO, "0.001")]),
        (AUTO, "openai/gpt-5", vec![pro(), premium()]),
        (STANDARD, "gpt-oss-20b", vec![at(NANO, "0.001"), at(AUTO, "0.002"), pro()]),
        (PRO, "anthropic/claude-sonnet-4.5", vec![premium()]),
        (PREMIUM, "gpt-4.1-mini", vec![standard(), pro()]),
    ] {
        let body = client::chat(asked, "one").to_string();
        let want = format!("the model {asked:?} is not sold here; it is sold at {}", places.join(", or at "));
        for headers in [&[][..], &[("authorization", proof.as_str())]] {
            let reply = bed.post(path, headers, body.as_bytes()).await;
            assert_eq!(refused(&reply), (400, "wrong_tier".into(), want.clone()), "{asked} on {path}");
            assert_eq!(reply.json()["error"]["param"], "model");
        }
    }
    for asked in
        ["openai/gpt-7", "meta-llama/*", "*", "openai/", "openai/gpt-4.1-mini-fp8", "GPT-5", "llama-3.1-8b-instruct "]
    {
        for (path, _) in TIERS {
            let reply = ask(&bed, path, &client::chat(asked, "one")).await;
            let (status, code, _) = refused(&reply);
            assert_eq!((status, code.as_str()), (404, "model_not_found"), "{asked:?} on {path}");
        }
    }
    assert_eq!(bed.chain_calls(), calls, "nothing of it was looked up or sent");
    assert_eq!(bed.served(), 0);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_tier_clamp_output_and_refuse_choices_and_input_with_their_numbers() {
    let bed = Bed::with(on_tempo).await;
    let payer = Payer::fresh(&bed.chain, 50_000_000).await;
    for (path, model, n, output, input) in [
        (NANO, "gpt-oss-20b", 1, 512, 8_192),
        (AUTO, "gpt-oss-120b", 1, 1_024, 8_192),
        (STANDARD, "gpt-oss-120b", 2, 2_048, 16_384),
        (PRO, "gpt-oss-20b", 4, 4_096, 32_768),
    ] {
        let body = client::chat(model, "one");
        for (asked, heard) in [(output + 1, output), (output, output), (7, 7)] {
            let body = with(body.clone(), json!({"max_tokens": asked}));
            let reply = bed.show(&bed.proof(&payer, path, &body).await, path, &body).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(bed.backend.last().json()["max_tokens"], heard, "{asked} asked on {path}");
        }
        let many = ask(&bed, path, &with(body.clone(), json!({"n": n + 1}))).await;
        let want = format!("n is {}; the most sold here is {n}", n + 1);
        assert_eq!(refused(&many), (400, "over_limit".into(), want), "{path}");
        amount(&ask(&bed, path, &with(body, json!({"n": n}))).await);

        // One word is one token, and a chat adds a few.
        let words = |count: usize| client::chat(model, &"word ".repeat(count));
        amount(&ask(&bed, path, &words(input - 64)).await);
        let (status, code, message) = refused(&ask(&bed, path, &words(input + 1)).await);
        assert_eq!((status, code.as_str()), (400, "context_length_exceeded"), "{path}: {message}");
        assert!(
            message.starts_with(&format!("the prompt is longer than {input} tokens (counted by o200k)")),
            "{message}"
        );
        let longer = message.split_once("longer ones are sold at ").map_or("", |(_, places)| places);
        let want = match path {
            NANO => format!("{PRO} for $0.03 per request"),
            AUTO => format!("{STANDARD} for $0.005 per request, or at {PRO} for $0.03 per request"),
            STANDARD => format!("{PRO} for $0.03 per request"),
            _ => String::new(),
        };
        assert_eq!(longer, want, "{path}");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_price_does_not_pay_for_is_refused_with_numbers_that_would_do() {
    let bed = Bed::with(on_tempo).await;
    // Counted in bytes, so what is taken away is known to the token.
    let body = |bytes: usize| client::chat("claude-opus-4.1", &"x".repeat(bytes));
    let (status, code, message) = refused(&ask(&bed, PREMIUM, &with(body(4_000), json!({"n": 2}))).await);
    assert_eq!((status, code.as_str()), (400, "over_price"), "{message}");
    assert!(
        message.contains("$0.15 does not pay for it with 512 tokens of output for each of 2 choices: "),
        "{message}"
    );
    let less = usize::try_from(number(&message, "shorten the prompt by ", " tokens")).unwrap();
    amount(&ask(&bed, PREMIUM, &with(body(4_000 - less), json!({"n": 2}))).await);
    let short = ask(&bed, PREMIUM, &with(body(4_000 - less + 1), json!({"n": 2}))).await;
    assert_eq!(number(&refused(&short).2, "shorten the prompt by ", " tokens"), 1, "{}", short.text());
    assert_eq!(number(&message, "lower n to ", ", or"), 1, "{message}");
    amount(&ask(&bed, PREMIUM, &body(4_000)).await);
    let most = number(&message, "ask for at most ", " tokens of output (max_tokens)");
    amount(&ask(&bed, PREMIUM, &with(body(4_000), json!({"n": 2, "max_tokens": most}))).await);
    let more = ask(&bed, PREMIUM, &with(body(4_000), json!({"n": 2, "max_tokens": most + 1}))).await;
    assert_eq!(refused(&more).1, "over_price");

    // Where another tier would take the same request, it is named; where none would, none is.
    let long = client::chat("google/gemini-2.5-flash", &"x".repeat(12_000));
    let (_, code, message) = refused(&ask(&bed, STANDARD, &long).await);
    assert_eq!(code, "over_price", "{message}");
    assert!(message.ends_with(&format!(", or use {PRO} for $0.03 per request")), "{message}");
    amount(&ask(&bed, PRO, &long).await);
    let gone = refused(&ask(&bed, PREMIUM, &body(8_400)).await).2;
    assert!(!gone.contains("use /v1"), "{gone}");
    assert_eq!((bed.served(), bed.rpc.broadcasts()), (0, 0));
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sale_costs_more_than_its_price_even_where_all_that_was_bought_is_used() {
    let bed = Bed::with(on_tempo).await;
    let payer = Payer::fresh(&bed.chain, 100_000_000).await;
    bed.backend.tune(|script| script.tokens = 100_000);
    for (path, model, input, output, n, bytes) in [
        // Prices of the file in atoms per million tokens.
        (STANDARD, "gpt-5-mini", 300_000, 2_400_000, 2, 4_000),
        (STANDARD, "gemini-2.5-flash", 360_000, 3_000_000, 1, 10_000),
        (PRO, "gpt-5", 1_500_000, 12_000_000, 3, 200),
        (PREMIUM, "claude-opus-4.1", 18_000_000, 90_000_000, 1, 3_000),
    ] {
        let price = agent402::price(path);
        let body = with(client::chat(model, &"x ".repeat(bytes / 2)), json!({"n": n}));
        // At the worst every byte is a token.
        bed.backend.tune(|script| {
            script.prompt_tokens = Some(if model.starts_with("gpt") { 61 + bytes as u64 / 2 } else { bytes as u64 })
        });
        let reply = bed.show(&bed.proof(&payer, path, &body).await, path, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let usage = reply.json()["usage"].clone();
        let (prompt, made) = (usage["prompt_tokens"].as_u64().unwrap(), usage["completion_tokens"].as_u64().unwrap());
        let cost = prompt * input + made * output;
        assert!(cost <= price * 1_000_000, "{model}: {cost} of {price} for {made} tokens");
        assert!(cost * 10 > price * 1_000_000 * 9, "{model}: {cost} of {price}: what was paid for was not sold");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_no_model_gets_the_first_that_can_serve_it_and_is_told_which() {
    let large = Backend::start(Script::default()).await;
    // The ledger knows one backend: what the other one serves is delivered past it.
    async fn elsewhere(bed: &Bed, proof: &str, body: &Value) -> RawReply {
        let bytes = raw::post(AUTO, &[("authorization", proof)], body.to_string().as_bytes());
        raw::exchange(bed.gate.listen, &bytes).await
    }
    let bed = Bed::with(|options| on_tempo_at(options, Some(&large.url()))).await;
    let payer = Payer::fresh(&bed.chain, 50_000_000).await;
    let body = json!({"messages": [{"role": "user", "content": "one two three"}]});
    let named = |unpaid: &RawReply| {
        let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
        offer.description.unwrap_or_default()
    };
    for _ in 0..50 {
        let unpaid = ask(&bed, AUTO, &body).await;
        assert_eq!((amount(&unpaid), named(&unpaid).as_str()), (2_000, "openai/gpt-oss-120b on /v1/chat/completions"));
    }
    for stream in [false, true] {
        let body = with(body.clone(), json!({"stream": stream}));
        let reply = elsewhere(&bed, &bed.proof(&payer, AUTO, &body).await, &body).await;
        assert_eq!(
            (reply.status, reply.header("pontage-model")),
            (200, Some("openai/gpt-oss-120b")),
            "{}",
            reply.text()
        );
    }
    assert_eq!((large.requests().len(), bed.served()), (2, 0));

    // A prompt that its price does not cover goes to the next as well; so does everything while its pool is down.
    let before = bed.proof(&payer, AUTO, &body).await;
    large.healthy(false);
    let next = "openai/gpt-oss-20b on /v1/chat/completions";
    let moved = eventually(Duration::from_secs(20), || async { named(&ask(&bed, AUTO, &body).await) == next });
    assert!(moved.await, "the pool that is down is still chosen");
    for _ in 0..50 {
        assert_eq!(named(&ask(&bed, AUTO, &body).await), next);
    }
    let reply = bed.show(&bed.proof(&payer, AUTO, &body).await, AUTO, &body).await;
    assert_eq!((reply.status, reply.header("pontage-model")), (200, Some("openai/gpt-oss-20b")), "{}", reply.text());
    assert_eq!(bed.backend.last().json()["model"], "gpt-oss-20b");

    // What was offered is what is paid for: not another model, and nothing is taken while it cannot be served.
    let sent = bed.rpc.broadcasts();
    let waits = bed.show(&before, AUTO, &body).await;
    assert_eq!((waits.status, waits.json()["error"]["code"].as_str()), (503, Some("upstream_unavailable")));
    assert!(waits.header("retry-after").is_some());
    assert_eq!(bed.rpc.broadcasts(), sent);
    let after = bed.proof(&payer, AUTO, &body).await;
    large.healthy(true);
    let back = "openai/gpt-oss-120b on /v1/chat/completions";
    let moved = eventually(Duration::from_secs(20), || async { named(&ask(&bed, AUTO, &body).await) == back });
    assert!(moved.await, "the pool that is back is not chosen");
    let reply = elsewhere(&bed, &before, &body).await;
    assert_eq!((reply.status, reply.header("pontage-model")), (200, Some("openai/gpt-oss-120b")), "{}", reply.text());
    let reply = bed.show(&after, AUTO, &body).await;
    assert_eq!((reply.status, reply.header("pontage-model")), (200, Some("openai/gpt-oss-20b")), "{}", reply.text());
    assert_eq!((large.requests().len(), bed.served()), (3, 2));
    // On the other tiers the list has one exact name or more, too.
    for (path, first) in [
        (NANO, "openai/gpt-oss-20b"),
        (STANDARD, "openai/gpt-oss-120b"),
        (PRO, "openai/gpt-5"),
        (PREMIUM, "anthropic/claude-sonnet-4.5"),
    ] {
        assert_eq!(named(&ask(&bed, path, &body).await), format!("{first} on {path}"));
    }
    bed.close(Unseen { deliveries: 3, ..Unseen::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_says_each_tier_of_a_model_with_its_path_price_and_limits_and_shows_one_by_itself() {
    let bed = Bed::with(on_tempo).await;
    let all = get(&bed, "/v1/models").await.json();
    let ids: Vec<&str> = all["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 11, "every model of the file: {ids:?}");
    let tier = |tier: &str, path: &str, price: &str, input: u64, output: u64, n: u64| {
        json!({"tier": tier, "path": path, "pricing": {"request": price},
               "per_request_limits": {"prompt_tokens": input, "completion_tokens": output, "n": n}})
    };
    let small = [
        tier("nano", NANO, "0.001", 8_192, 512, 1),
        tier("auto", AUTO, "0.002", 8_192, 1_024, 1),
        tier("pro", PRO, "0.03", 32_768, 4_096, 4),
    ];
    let entry = all["data"].as_array().unwrap().iter().find(|m| m["id"] == "openai/gpt-oss-20b").unwrap();
    assert_eq!(entry["tiers"], json!(small));
    assert_eq!(
        (&entry["tier"], &entry["path"], &entry["pricing"]["request"]),
        (&json!("nano"), &json!(NANO), &json!("0.001"))
    );
    for path in [
        "/v1/models/openai/gpt-oss-20b",
        "/v1/models/openai%2Fgpt-oss-20b",
        "/v1/models/openai%2fgpt-oss-20b",
        "/v1/models/gpt-oss-20b",
    ] {
        let one = get(&bed, path).await;
        assert_eq!((one.status, &one.json()), (200, entry), "{path}");
    }
    let pro = get(&bed, "/v1/pro/models").await.json();
    let ids: Vec<&str> = pro["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 7, "{ids:?}");
    assert_eq!(ids[0], "openai/gpt-5");
    assert!(pro["data"].as_array().unwrap().iter().all(|m| m["path"] == PRO && m["tier"] == "pro"), "{pro}");
    assert_eq!(get(&bed, "/v1/pro/models/gpt-oss-20b").await.json()["path"], PRO);
    for (path, code) in [
        ("/v1/models/openai/gpt-7", "model_not_found"),
        ("/v1/models/%", "model_not_found"),
        ("/v1/models/%zz%+1", "model_not_found"),
        ("/v1/nano/models/claude-opus-4.1", "model_not_found"),
        ("/v1/models/", "unknown_path"),
        ("/v1/modelsx", "unknown_path"),
        ("/v1/chat/completions/x", "unknown_path"),
    ] {
        let reply = get(&bed, path).await;
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (404, Some(code)), "{path}");
    }
    let posted = bed.post("/v1/models/gpt-oss-20b", &[], b"{}").await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    let metrics = bed.gate.metrics().await;
    assert!(metrics.contains("route=\"/v1/models\"") && !metrics.contains("gpt-7"), "a client's word became a label");
    bed.close(Unseen::default()).await;
}

#[test]
fn the_sample_takes_usdc_on_four_networks_and_pays_nobody_until_it_is_edited() {
    let (rules, conf) = (shipped("routes.toml"), sample().replace("127.0.0.1:8402", "{listen}\"\nadmin = \"{admin}"));
    let accepted: Vec<&str> = rules.lines().filter(|line| line.starts_with("accept = ")).collect();
    assert_eq!(
        accepted,
        ["accept = [\"base/exact\", \"polygon/exact\", \"arbitrum/exact\", \"solana/exact\"]"; TIERS.len()],
        "each 402 carries all four"
    );
    let mut options = GateOptions::new("http://127.0.0.1:9", "http://127.0.0.1:9");
    options.conf = Some(conf);
    for file in ["models.toml", "tiers.toml", "routes.toml", "pools.toml"] {
        options = options.rule(file, &shipped(file));
    }
    for name in ["X402_FACILITATOR", "BASE_RPC", "POLYGON_RPC", "ARBITRUM_RPC", "SOLANA_RPC"] {
        options = options.env(&format!("{name}_URL"), "http://127.0.0.1:9");
    }
    let gate = Gate::prepare(options);
    let (status, said, complaint) = gate.verb(&["check"]);
    assert!(status.success() && said.contains("10 routes, 5 tiers, 11 models"), "{said}{complaint}");
    let serve = ["serve", "--conf", "conf/pontage.toml", "--rules", "lua-free-rules"];
    let out = gate.command().args(serve).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "{said}");
    for rail in ["base", "polygon", "arbitrum", "solana"] {
        assert!(said.contains(&format!("rail.{rail}.pay_to: is the sample's placeholder")), "{rail}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_openai_buys_without_saying_which_model() {
    let bed = Bed::with(on_tempo).await;
    let (base, rpc) = (bed.gate.base(), bed.chain.url());
    let body = json!({"messages": [{"role": "user", "content": "one two three"}]}).to_string();
    let flags = [("base", base.as_str()), ("rpc", &rpc), ("key", common::DEV[2].key), ("body", &body)];
    let got = node("openai-mppx.mjs", &flags).await;
    assert_eq!((&got["ok"], &got["status"]), (&Value::Bool(true), &Value::from(200)), "{got}");
    let text = got["text"].as_str().unwrap();
    bed.ledger.sold(&got["headers"]["payment_receipt"], text.split(' ').count() as u64);
    assert_eq!(bed.backend.last().json()["model"], "gpt-oss-120b");
    bed.close(Unseen::default()).await;
}
