//! The shipped rule set `worldrouter` with its own `pontage.toml`, as they are in the repository; only addresses, chain and
//! token are those of the test bed. Every price in here is read from `/v1/models`, as a client would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::CHAT;
use common::client::{self, mppx_cli, node};
use common::{Bed, DEV, Gate, GateOptions, Payer, RawReply, Unseen, ledger, payer, raw};
use serde_json::{Value, json};
use std::path::Path;

const STREAM: &str = "/v1/chat/completions/stream";
/// In order of the file.
const MODELS: [&str; 7] = [
    "openai/gpt-oss-120b",
    "openai/gpt-oss-20b",
    "openai/gpt-5-mini",
    "openai/gpt-4.1-mini",
    "anthropic/claude-sonnet-4.5",
    "google/gemini-2.5-flash",
    "deepseek/deepseek-chat",
];

fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `text` with each replacement made; one that does not apply is a shipped file that this test no longer knows.
fn with(mut text: String, edits: &[(&str, &str)]) -> String {
    for (from, to) in edits {
        assert!(text.contains(from), "{from:?} is not in the shipped file:\n{text}");
        text = text.replace(from, to);
    }
    text
}

/// The set on the test bed.
fn worldrouter(mut options: GateOptions) -> GateOptions {
    let upstream = options.upstream.clone();
    let conf = with(
        shipped("conf/worldrouter.toml"),
        &[
            ("address = \"127.0.0.1:8402\"", "address = \"{listen}\"\nadmin = \"{admin}\""),
            ("https://router.example", "http://{listen}"),
            ("var/worldrouter.redb", "{dir}/var/pontage.redb"),
            ("chain_id = 4217 ", "chain_id = {chain_id} "),
            ("0x20C000000000000000000000b9537d11c60E8b50", "{currency}"),
            ("0x000000000000000000000000000000000000dEaD", "{recipient}"),
        ],
    );
    options.conf = Some(conf);
    for file in ["models.toml", "tiers.toml", "routes.toml", "pools.toml"] {
        options = options.rule(file, &shipped(&format!("lua-free-rules/worldrouter/{file}")));
    }
    let pools = with(
        options.rules["pools.toml"].clone(),
        &[("http://127.0.0.1:8000", &upstream), ("https://openrouter.ai/api", &upstream)],
    );
    options.rule("pools.toml", &pools)
}

/// A decimal dollar amount in units of 1e-12 USD, exactly. Per token, a price per million has at most so many places.
fn pico(decimal: &Value) -> u128 {
    let text = decimal.as_str().unwrap_or_else(|| panic!("a decimal text, not {decimal}"));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    assert!(part.len() <= 12, "{text} is finer than 1e-12");
    format!("{whole}{part:0<12}").parse().unwrap()
}

/// `/v1/models`: `(id, prompt, completion)`, prices in 1e-12 USD a token.
async fn price_list(bed: &Bed) -> Vec<(String, u128, u128)> {
    let request = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    let list = raw::exchange(bed.gate.listen, request).await.json();
    let price = |m: &Value| {
        (m["id"].as_str().unwrap().to_owned(), pico(&m["pricing"]["prompt"]), pico(&m["pricing"]["completion"]))
    };
    list["data"].as_array().unwrap().iter().map(price).collect()
}

fn block(reply: &RawReply) -> Value {
    match reply.header("content-type") {
        Some("application/json") => reply.json()["pontage"].clone(),
        _ => ledger::events(&reply.text()).into_iter().find_map(|e| e.get("pontage").cloned()).expect("a block"),
    }
}

/// `pontage quote` on this body.
fn quote(gate: &Gate, path: &str, body: &Value) -> Value {
    std::fs::write(gate.dir().join("request.json"), body.to_string()).unwrap();
    let (ok, said, complaint) = gate.verb(&["quote", "--path", path, "request.json"]);
    assert!(ok.success(), "{complaint}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn the_sample_is_for_the_main_network_and_pays_nobody_until_it_is_edited() {
    let conf = shipped("conf/worldrouter.toml");
    for said in [
        "chain_id = 4217 ",
        "currency = \"0x20C000000000000000000000b9537d11c60E8b50\"",
        "recipient = \"0x000000000000000000000000000000000000dEaD\"",
    ] {
        assert!(conf.contains(said), "{said}");
    }
    let mut options = worldrouter(GateOptions::new("http://127.0.0.1:9", "http://127.0.0.1:9"));
    options.recipient = "0x000000000000000000000000000000000000dEaD".into();
    let gate = Gate::prepare(options);
    let out =
        gate.command().args(["serve", "--conf", "conf/pontage.toml", "--rules", "lua-free-rules"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("placeholder"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_costs_one_and_a_half_times_its_prompt_and_says_what_was_used() {
    let bed = Bed::with(worldrouter).await;
    let payer = Payer::fresh(&bed.chain, 10_000_000).await;
    let prices = price_list(&bed).await;
    assert_eq!(prices.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), MODELS);
    for (at, (model, input, output)) in prices.iter().enumerate() {
        let prompt = "how much is this? ".repeat(10 + 200 * at);
        let mut body = client::chat(model, &prompt);
        body["stream"] = json!(at % 2 == 1);
        let quote = quote(&bed.gate, CHAT, &body);
        let tokens = u128::from(quote["parts"]["prompt_tokens"].as_u64().unwrap());
        let known = model.starts_with("openai/");
        assert_eq!(quote["parts"]["counted_by"], if known { "o200k" } else { "bytes" }, "{model}");
        assert!(tokens >= prompt.len() as u128 / if known { 4 } else { 1 }, "{model}: {tokens} tokens");

        let offer = payer::offer(&bed.ask(CHAT, &body).await.headers("www-authenticate"), "tempo", "charge");
        let amount: u128 = payer::terms(&offer)["amount"].as_str().unwrap().parse().unwrap();
        assert_eq!(amount, (tokens * input * 3).div_ceil(2 * 1_000_000), "{model}: {tokens} tokens at {input} x 1.5");

        let reply = bed.show(&payer.sign(&offer, |_| ()).await, CHAT, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let (block, made) = (block(&reply), ledger::tokens_in(&reply));
        let used = u128::from(block["usage"]["prompt_tokens"].as_u64().unwrap()) * input + u128::from(made) * output;
        assert_eq!(pico(&block["charged"]["usd"]), amount * 1_000_000, "{model}");
        assert_eq!(pico(&block["actual"]["usd"]), used, "{model}");
        let heard = bed.backend.last().json();
        let spelt = if model.contains("gpt-oss") { "max_tokens" } else { "max_completion_tokens" };
        assert!(heard[spelt].as_u64().is_some_and(|most| (1..=1024).contains(&most)), "{model}: {heard}");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_short_prompt_does_not_pay_for_is_the_operators_loss_up_to_two_cents() {
    let bed = Bed::with(worldrouter).await;
    bed.backend.tune(|script| script.tokens = 100_000);
    let payer = bed.payer().await;
    let body = client::chat("anthropic/claude-sonnet-4.5", "a poem, please");
    let reply = bed.show(&bed.proof(&payer, CHAT, &body).await, CHAT, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let (charged, used) = (pico(&block(&reply)["charged"]["usd"]), pico(&block(&reply)["actual"]["usd"]));
    let lost = used - charged;
    assert!((15_000_000_000..=20_000_000_000).contains(&lost), "{lost} of 1e-12 USD");
    let metrics = bed.gate.metrics().await;
    let line = metrics.lines().find(|l| l.starts_with("pontage_absorbed_usd_total{tier=\"call\"}"));
    assert!(line.is_some_and(|l| l.split(' ').nth(1).unwrap().starts_with("0.01")), "{line:?}");
    bed.close(Unseen::default()).await;
}

#[test]
fn quote_says_what_a_stream_must_hold_to_start_and_the_most_it_can_cost() {
    let gate = Gate::prepare(worldrouter(GateOptions::new("http://127.0.0.1:9", "http://127.0.0.1:9")));
    // Prices of the file, in 1e-12 USD a token.
    for (model, most, input, output, at_once, why) in [
        ("openai/gpt-oss-120b", 16_384, 150_000, 600_000, 32, "the prompt and a first window"),
        ("deepseek/deepseek-chat", 5, 340_000, 510_000, 5, "all of it is less than a window"),
        ("openai/gpt-5-mini", 1_000, 300_000, 2_400_000, 1_000, "it bills what nobody sees, so all of it"),
    ] {
        let mut body = client::chat(model, "how much is this?");
        body["max_tokens"] = json!(most);
        let quote = quote(&gate, STREAM, &body);
        let rail = &quote["rails"][0];
        assert_eq!((&rail["rail"], &rail["decimals"]), (&json!("tempo/session"), &json!(6)), "{quote}");
        let tokens = u128::from(quote["parts"]["prompt_tokens"].as_u64().unwrap());
        for (key, made) in [("start", at_once), ("ceiling", most)] {
            let atoms: u128 = rail[key].as_str().unwrap().parse().unwrap();
            let exact = |prompt: u128| (prompt * input + u128::from(made as u64) * output).div_ceil(1_000_000);
            // A chat template may add a few tokens to a prompt, and there is room for them.
            assert!((exact(tokens)..=exact(tokens + 16)).contains(&atoms), "{model} {key}: {why}: {quote}");
            assert_eq!(pico(&rail[format!("{key}_usd").as_str()]), atoms * 1_000_000, "{quote}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_find_both_ways_to_buy_and_nothing_wrong() {
    let bed = Bed::with(worldrouter).await;
    let url = format!("{}/openapi.json", bed.gate.url());
    let out = mppx_cli(&["discover", "validate", &url], DEV[2].key, &bed.chain.url()).await;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("valid"), "{said}");
    for word in ["error", "warning", "invalid"] {
        assert!(!said.to_lowercase().contains(word) || said.contains(&format!("0 {word}")), "{said}");
    }
    let document =
        raw::exchange(bed.gate.listen, b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.json();
    let offers = |path: &str| document["paths"][path]["post"]["x-payment-info"]["offers"].clone();
    assert_eq!(offers(CHAT)[0]["intent"], "charge");
    assert_eq!(offers(CHAT)[0]["amount"], Value::Null, "it depends on the prompt");
    assert_eq!(document["paths"][STREAM]["post"]["summary"], "Chat completions, always streamed, tier metered");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_openai_over_the_paying_fetch_of_mppx_buys_calls() {
    let bed = Bed::with(worldrouter).await;
    let (base, rpc) = (bed.gate.base(), bed.chain.url());
    for (model, stream) in [("openai/gpt-4.1-mini", false), ("google/gemini-2.5-flash", true)] {
        let body =
            json!({"model": model, "messages": [{"role": "user", "content": "one two three"}], "stream": stream});
        let body = body.to_string();
        let got =
            node("openai-mppx.mjs", &[("base", &base), ("rpc", &rpc), ("key", DEV[2].key), ("body", &body)]).await;
        assert_eq!((&got["ok"], &got["status"]), (&Value::Bool(true), &Value::from(200)), "{got}");
        let text = got["text"].as_str().unwrap();
        assert!(text.starts_with("tok0"), "{got}");
        bed.ledger.sold(&got["headers"]["payment_receipt"], text.split(' ').count() as u64);
    }
    bed.close(Unseen::default()).await;
}
