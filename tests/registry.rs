//! Prices from LiteLLM's cost file as it is published: what is read of it, what it costs to read, and what a gate makes of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::CHAT;
use common::client::{chat, node, python};
use common::gate::Wait;
use common::{Bed, Gate, GateOptions, Payer, Unseen, eventually, payer, raw};
use pontage::rules::registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const NOWHERE: &str = "http://127.0.0.1:9";
const SHORT: Duration = Duration::from_secs(10);
const MODEL: &str = "openai/gpt-oss-120b";

/// The published file.
fn published() -> String {
    let setup = common::testbed().join("setup");
    let found = Command::new(setup).arg("--prices").output().expect("testbed/setup does not run");
    assert!(found.status.success(), "LiteLLM's cost file is not there: run `make test` (or `testbed/setup`) first");
    std::fs::read_to_string(String::from_utf8(found.stdout).unwrap().trim()).unwrap()
}

#[test]
fn every_row_of_the_published_file_is_either_read_whole_or_says_why_not() {
    let text = published();
    let list = Registry::open(&text).unwrap();
    let raw: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).unwrap();
    let (mut priced, mut refused, mut silent) = (0, 0, 0);
    for (key, fields) in raw.iter().filter(|(key, _)| *key != "sample_spec") {
        let row = list.named(key).unwrap_or_else(|| panic!("{key} is not found"));
        let given = row.base.standard;
        match (row.unbillable.is_empty(), given.input, given.output) {
            (false, ..) => {
                // Pictures, sound and video are sold at flat prices, if at all; what speaks is nearly always billed by the token.
                let speaks = ["chat", "responses", "completion", "embedding"]
                    .iter()
                    .any(|mode| fields.get("mode") == Some(&json!(mode)));
                refused += usize::from(speaks);
            }
            (true, Some(input), Some(output)) => {
                priced += 1;
                // Whatever was read is the literal, or the next count of 1e-18 above it.
                for (name, rate) in [("input_cost_per_token", input), ("output_cost_per_token", output)] {
                    let Some(said) = fields.get(name) else { continue };
                    if !fields.contains_key("tiered_pricing") {
                        assert_eq!(rate.0, rounded_up(&said.to_string()), "{key}.{name} = {said}");
                    }
                }
            }
            _ => silent += 1,
        }
        // Factors on its prices are said, all of them and nothing else.
        let by_region = fields.keys().filter(|name| name.contains("multiplier") || name.contains("uplift")).count();
        let specific = fields.get("provider_specific_entry").and_then(Value::as_object);
        let factors =
            specific.map_or(0, |entry| ["us", "fast"].iter().filter(|name| entry.contains_key(**name)).count());
        assert_eq!(row.not_applied.len(), by_region + factors, "{key}: {:?}", row.not_applied);
        if fields.contains_key("tiered_pricing") && row.unbillable.is_empty() {
            assert_eq!(row.steps.len() + 1, fields["tiered_pricing"].as_array().unwrap().len(), "{key}");
        }
    }
    assert!(
        priced > 3_000,
        "{priced} rows have both prices, {refused} that speak cannot be billed, {silent} are not priced by the token"
    );
    assert!((100..200).contains(&refused), "{refused} rows of models that speak cannot be billed");
}

/// A JSON number in counts of 1e-18, by another road than the gate's: digits and a place.
fn rounded_up(literal: &str) -> u128 {
    let (mantissa, exponent) = literal.split_once('e').unwrap_or((literal, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: u128 = format!("{whole}{part}").parse().unwrap();
    let places = part.len() as i32 - exponent.parse::<i32>().unwrap();
    match u32::try_from(18 - places) {
        Ok(up) => digits * 10u128.pow(up),
        Err(_) => digits.div_ceil(10u128.pow(places.unsigned_abs() - 18)),
    }
}

#[test]
fn what_the_published_file_says_of_well_known_models_is_what_they_cost() {
    let text = published();
    let list = Registry::open(&text).unwrap();
    let million = |rate: Option<pontage::money::PerToken>| rate.map(|rate| rate.as_per_million());
    for (name, input, output, cached) in [
        ("openai/gpt-5-mini", "0.25", "2", Some("0.025")),
        ("gemini/gemini-2.5-pro", "1.25", "10", Some("0.125")),
        ("anthropic/claude-sonnet-4-5", "3", "15", Some("0.3")),
        ("deepseek/deepseek-chat", "0.28", "0.42", Some("0.028")),
        ("dashscope/qwen3-max", "1.2", "6", None),
    ] {
        let row = list.of(&[name]).unwrap_or_else(|| panic!("{name}"));
        let got = row.base.standard;
        assert_eq!(million(got.input).as_deref(), Some(input), "{name}");
        assert_eq!(
            (million(got.output).as_deref(), million(got.cached_input).as_deref()),
            (Some(output), cached),
            "{name}"
        );
        assert_eq!(row.unbillable, Vec::<String>::new(), "{name}");
    }
    let steps = |key: &str| list.named(key).unwrap().steps.iter().map(|(above, _)| *above).collect::<Vec<_>>();
    assert_eq!(steps("gemini/gemini-2.5-pro"), [200_000]);
    assert_eq!(steps("dashscope/qwen3-max"), [32_000, 128_000]);
    for (key, why) in [
        ("deepseek-v4-pro", "off_peak_pricing"),
        ("perplexity/sonar", "search_context_cost_per_query"),
        ("perplexity/sonar-deep-research", "citation_cost_per_token"),
    ] {
        let said = list.named(key).unwrap().unbillable;
        assert!(said.iter().any(|sentence| sentence.contains(why)), "{key}: {said:?}");
    }
    // Factors of an endpoint that is not named: the row is taken without them, and they are said.
    for (key, want) in [
        ("gpt-5.4", "regional_processing_uplift_multiplier_us = 1.1"),
        ("claude-sonnet-4-6", "provider_specific_entry.us = 1.1"),
        ("claude-opus-5", "provider_specific_entry.fast = 2"),
        ("vertex_ai/claude-haiku-4-5", "regional_endpoint_uplift_multiplier = 1.1"),
    ] {
        let row = list.named(key).unwrap();
        assert_eq!(row.unbillable, Vec::<String>::new(), "{key}");
        assert!(row.not_applied.iter().any(|said| said.starts_with(want)), "{key}: {:?}", row.not_applied);
    }
    // Names that are near a row and are none.
    for name in ["gpt-oss-120b", "openrouter/openai/gpt-oss-120b", "ollama/gpt-oss:20b", "openai/gpt-oss-120b"] {
        assert!(list.of(&[name]).is_none(), "{name} has a price that nobody meant for it");
    }
}

#[test]
fn the_rows_shipped_with_worldrouter_are_those_of_the_published_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = std::fs::read_to_string(root.join("lua-free-rules/worldrouter/model_prices.json")).unwrap();
    let shipped: BTreeMap<String, Value> = serde_json::from_str(&shipped).unwrap();
    let whole: BTreeMap<String, Value> = serde_json::from_str(&published()).unwrap();
    for (key, row) in &shipped {
        assert_eq!(whole.get(key), Some(row), "{key}: run `testbed/excerpt lua-free-rules/worldrouter`");
    }
    let models = std::fs::read_to_string(root.join("lua-free-rules/worldrouter/models.toml")).unwrap();
    let used = models.lines().filter_map(|line| line.strip_prefix("price_as = \"")?.strip_suffix('"'));
    assert_eq!(used.filter(|key| shipped.contains_key(*key)).count(), shipped.len(), "each is used, each is there");
}

const LIST: &str = r#"{
"vendor/listed": {"input_cost_per_token": 1e-05, "output_cost_per_token": 2e-05, "cache_read_input_token_cost": 1e-06,
  "cache_creation_input_token_cost": 1.25e-05, "output_cost_per_token_priority": 4e-05, "input_cost_per_token_above_2k_tokens": 3e-05,
  "output_cost_per_reasoning_token": 3e-05, "max_input_tokens": 4000, "max_output_tokens": 500, "litellm_provider": "vendor"}
}"#;
const PRICES: &str = "registry = \"list.json\"\nmarkup = \"1.20\"\n\n[rail.\"tempo/charge\"]\ndiscount = \"0.05\"\n";

fn listed(options: GateOptions) -> GateOptions {
    options
        .rule("prices.toml", PRICES)
        .rule("list.json", LIST)
        .rule_edit(
            "models.toml",
            "price = { input = \"0.15\", cached_input = \"0.075\", output = \"0.60\" }",
            "price_as = \"vendor/listed\"\nprice = { cached_input = \"2\" }",
        )
        .rule_edit("tiers.toml", "charge = { flat = \"0.02\" }", "charge = { ceiling = true }")
}

fn quote(gate: &Gate, more: &[&str], body: &Value) -> String {
    std::fs::write(gate.dir().join("request.json"), body.to_string()).unwrap();
    let args = [&["quote", "--path", CHAT], more, &["request.json"]].concat();
    let (ok, said, complaint) = gate.verb(&args);
    assert!(ok.success(), "{complaint}");
    said
}

#[test]
fn quote_says_where_each_number_came_from() {
    let gate = Gate::prepare(listed(GateOptions::new(NOWHERE, NOWHERE)));
    let mut body = chat(MODEL, "how much is this?");
    body["max_tokens"] = json!(10);
    let quoted: Value = serde_json::from_str(&quote(&gate, &[], &body)).unwrap();
    let list = "list.json \"vendor/listed\" x 1.2 (prices.toml:2)";
    let source = |kind: &str, usd: &str, from: &str| json!({"kind": kind, "usd": usd, "from": from});
    let want = json!([
        source("input", "12", list),
        source("cached_input", "2", "models.toml:6"),
        source("cache_write", "15", list),
        source("cache_write_hour", "15", "as cache_write"),
        source("output", "24", list),
        source("reasoning", "36", list),
    ]);
    assert_eq!(quoted["prices"]["sources"], want, "{quoted:#}");
    assert_eq!(quoted["prices"]["speeds"]["priority"]["output"], "48");
    assert_eq!(quoted["prices"]["steps"][0]["prompt_tokens_above"], 2_000);
    assert_eq!(quoted["prices"]["steps"][0]["speeds"]["standard"]["input"], "36");
    // The dearest a token can be: a written cache, and the priority speed. 80 more of the prompt for a template. Then the discount.
    let tokens = u128::from(quoted["parts"]["prompt_tokens"].as_u64().unwrap()) + 80;
    let whole = tokens * 15 + 10 * 48;
    assert_eq!(quoted["rails"][0]["amount"], (whole * 95).div_ceil(100).to_string(), "{quoted:#}");
    assert_eq!(quoted["rails"][0]["discount"], json!({"off": "0.05", "from": "prices.toml:5"}));
    let table = quote(&gate, &["--table"], &body);
    let line = |words: &[&str]| table.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(line(&["cached_input", "2 USD per 1M", "models.toml:6"]), "{table}");
    assert!(line(&["input and output", "36 and 24 USD per 1M", "above 2000 tokens"]), "{table}");
    assert!(line(&["tempo/charge", "atoms", "less 0.05 (prices.toml:5)"]), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_quoted_with_a_discount_is_asked_paid_and_booked() {
    let bed = Bed::with(listed).await;
    let payer = Payer::fresh(&bed.chain, 10_000_000).await;
    let mut body = chat(MODEL, "how much is this?");
    body["max_tokens"] = json!(10);
    let quoted: Value = serde_json::from_str(&quote(&bed.gate, &[], &body)).unwrap();
    let offer = payer::offer(&bed.ask(CHAT, &body).await.headers("www-authenticate"), "tempo", "charge");
    let amount = payer::terms(&offer)["amount"].clone();
    assert_eq!(amount, quoted["rails"][0]["amount"]);
    let reply = bed.show(&payer.sign(&offer, |_| ()).await, CHAT, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let block = reply.json()["pontage"].clone();
    assert_eq!(block["charged"]["atoms"], amount);
    assert_eq!(bed.backend.last().json()["max_tokens"], 10, "a discount buys the whole answer, not a part of it");
    let used = |kind: &str| u128::from(block["usage"][kind].as_u64().unwrap());
    // Standard prices of the list with its markup, in 1e-6 USD a token, and the discount on the sum.
    let worth = (used("prompt_tokens") * 12 + used("completion_tokens") * 24) * 95;
    let actual = block["actual"]["usd"].as_str().unwrap();
    let actual: u128 = format!("{:0<8}", actual.strip_prefix("0.").unwrap()).parse().unwrap();
    assert_eq!(actual, worth, "{block}");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_are_listed_for_the_published_clients() {
    let gate = Gate::start(listed(GateOptions::new(NOWHERE, NOWHERE)).wait(Wait::Alive)).await;
    let list = raw::exchange(gate.listen, b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.json();
    let entry = list["data"][0].clone();
    let pricing = json!({"prompt": "0.000012", "completion": "0.000024", "input_cache_read": "0.000002", "input_cache_write": "0.000015",
        "internal_reasoning": "0.000036"});
    assert_eq!(entry["pricing"], pricing, "{entry:#}");
    assert_eq!(entry["pricing_above"][0]["prompt_tokens"], 2_000);
    assert_eq!(entry["pricing_above"][0]["prompt"], "0.000036");
    assert_eq!(
        (&entry["context_length"], &entry["top_provider"]["max_completion_tokens"]),
        (&json!(4_500), &json!(500))
    );
    assert_eq!(entry["tiers"][0]["pricing"]["discounts"], json!({"tempo/charge": "0.05"}));
    let base = gate.base();
    for seen in [
        node("openai-models.mjs", &[("base", &base), ("model", MODEL)]).await,
        python("openai_models.py", &[("base", &base), ("model", MODEL)]).await,
    ] {
        assert_eq!(seen["ok"], true, "{seen}");
        assert_eq!(seen["list"], json!([entry.clone()]), "every key comes through");
        assert_eq!(seen["one"], entry, "by itself it is the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_list_that_is_replaced_somewhere_else_is_read_again() {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("prices.json");
    std::fs::write(&path, LIST).unwrap();
    let prices = format!("registry = {:?}\n", path.display().to_string());
    let options = listed(GateOptions::new(NOWHERE, NOWHERE)).rule("prices.toml", &prices).wait(Wait::Alive);
    let gate = Gate::start(options).await;
    let prompt = async || {
        let list = raw::exchange(gate.listen, b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.json();
        list["data"][0]["pricing"]["prompt"].clone()
    };
    assert_eq!(prompt().await, "0.00001");
    let first = gate.generation().await;
    let next = elsewhere.path().join("next.json");
    std::fs::write(&next, LIST.replace("\"input_cost_per_token\": 1e-05", "\"input_cost_per_token\": 5e-05")).unwrap();
    std::fs::rename(&next, &path).unwrap();
    let second = gate.generation_after(&first, SHORT).await.expect("the list is a part of the rules");
    assert_eq!(prompt().await, "0.00005");
    std::fs::write(&path, LIST.replace("\"input_cost_per_token\": 1e-05", "\"input_cost_per_token\": 0")).unwrap();
    let refused = async || {
        let mistakes = gate.status().await["rules"]["mistakes"].to_string();
        mistakes.contains("models.toml:5") && mistakes.contains("has no price for input, or 0")
    };
    assert!(eventually(SHORT, refused).await, "{:#}", gate.status().await);
    assert_eq!(
        (gate.generation().await, prompt().await),
        (second, json!("0.00005")),
        "a price of nothing is not taken over"
    );
}
