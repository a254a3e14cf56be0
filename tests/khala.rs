//! The shipped rule set `khala` with its own `pontage.toml`, as they are in the repository; only addresses, chain and token are
//! those of the test bed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::client::{self, node};
use common::paying::BASE;
use common::wallet::Wallet;
use common::x402::{Client, PAYEE, decode};
use common::{Backend, Chain, EvmBed, Facilitator, Gate, GateOptions, RawReply, Reply, Reserve, Script};
use common::{ledger, payer, raw};
use serde_json::{Value, json};
use std::path::Path;

const CHAT: &str = "/api/v1/chat/completions";
const MPP_CHAT: &str = "/api/mpp/v1/chat/completions";
const MODEL: &str = "openagents/khala";
/// What the workers and the fallback call it.
const WORKERS: &str = "gpt-oss-120b";
const HOSTED: &str = "openai/gpt-oss-120b";
/// Prices of the file, in 1e-12 USD a token.
const INPUT: u128 = 150_000;
const OUTPUT: u128 = 600_000;

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

/// The set before these backends.
fn khala(rpc: &str, facilitator: &str, workers: [&str; 2], hosted: &str) -> GateOptions {
    let conf = with(
        shipped("conf/khala.toml"),
        &[
            ("address = \"127.0.0.1:8402\"", "address = \"{listen}\"\nadmin = \"{admin}\""),
            ("https://khala.example", "http://{listen}"),
            ("var/khala.redb", "{dir}/var/pontage.redb"),
            ("chain_id = 4217 ", "chain_id = {chain_id} "),
            ("0x20C000000000000000000000b9537d11c60E8b50", "{currency}"),
            ("recipient = \"0x000000000000000000000000000000000000dEaD\"", "recipient = \"{recipient}\""),
            ("pay_to = \"0x000000000000000000000000000000000000dEaD\"", &format!("pay_to = \"{PAYEE}\"")),
        ],
    );
    let mut options = GateOptions::new(rpc, workers[0])
        .env("X402_FACILITATOR_URL", facilitator)
        .env("BASE_RPC_URL", "http://127.0.0.1:9");
    options.conf = Some(conf);
    for file in ["models.toml", "tiers.toml", "routes.toml"] {
        options = options.rule(file, &shipped(&format!("lua-free-rules/khala/{file}")));
    }
    let pools = with(
        shipped("lua-free-rules/khala/pools.toml"),
        &[
            ("http://127.0.0.1:8000", workers[0]),
            ("http://127.0.0.1:8001", workers[1]),
            ("https://openrouter.ai/api", hosted),
            ("every_seconds = 5", "every_seconds = 1"),
        ],
    );
    options.rule("pools.toml", &pools)
}

/// The gate, its two workers, the fallback, and both chains.
struct Temple {
    reserve: Reserve,
    chain: Chain,
    evm: EvmBed,
    workers: [Backend; 2],
    hosted: Backend,
    gate: Gate,
    _facilitator: Facilitator,
}

impl Temple {
    async fn open() -> Self {
        let (chain, evm) = tokio::join!(Chain::start(), EvmBed::start_as(BASE));
        let (reserve, facilitator) = tokio::join!(Reserve::start(&chain), Facilitator::ts(&evm));
        let workers = [Backend::start(Script::default()).await, Backend::start(Script::default()).await];
        let hosted = Backend::start(Script::default()).await;
        let urls = [workers[0].url(), workers[1].url()];
        let options = khala(&reserve.url(), &facilitator.url(), [&urls[0], &urls[1]], &hosted.url());
        let gate = Gate::start(options).await;
        Self { reserve, chain, evm, workers, hosted, gate, _facilitator: facilitator }
    }

    async fn get(&self, path: &str) -> Value {
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
        let reply = raw::exchange(self.gate.listen, request.as_bytes()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()
    }

    async fn post(&self, path: &str, body: &Value) -> RawReply {
        raw::exchange(self.gate.listen, &raw::post(path, &[], body.to_string().as_bytes())).await
    }

    /// Requests that any backend got.
    fn served(&self) -> usize {
        self.workers.iter().chain([&self.hosted]).map(|backend| backend.requests().len()).sum()
    }
}

fn ask() -> Value {
    client::chat(MODEL, "one two three")
}

/// What a reply of a model with so many words in and out costs, in atoms.
fn cost(prompt: u64, output: u64) -> u128 {
    (u128::from(prompt) * INPUT + u128::from(output) * OUTPUT).div_ceil(1_000_000)
}

/// Atoms as credits of a cent.
fn credits(atoms: u128) -> String {
    let text = format!("{}.{:04}", atoms / 10_000, atoms % 10_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_model_by_one_name_and_every_other_is_refused_before_a_price_is_named() {
    let temple = Temple::open().await;
    for list in ["/api/v1/models", "/api/mpp/v1/models"] {
        let models = temple.get(list).await;
        let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
        assert_eq!(ids, [MODEL], "{list}");
        for name in [MODEL, "openagents%2Fkhala", "khala"] {
            assert_eq!(temple.get(&format!("{list}/{name}")).await["id"], MODEL);
        }
    }
    let said = temple.get("/openapi.json").await.to_string();
    assert!(!said.contains("gpt-oss"), "what runs behind it is nobody's business: {said}");
    for path in [CHAT, MPP_CHAT] {
        for raw in
            [WORKERS, HOSTED, "gpt-oss-20b", "openagents/khala-1", "openagents/khala-mini", "workers/gpt-oss-120b"]
        {
            let refused = temple.post(path, &client::chat(raw, "one")).await;
            let code = refused.json()["error"]["code"].clone();
            assert_eq!((refused.status, code), (404, json!("model_not_found")), "{raw}: {}", refused.text());
            for offer in ["www-authenticate", "payment-required"] {
                assert!(refused.header(offer).is_none(), "{raw}: an offer beside a refusal");
            }
        }
        let unnamed = json!({"messages": [{"role": "user", "content": "one two three"}]});
        for body in [unnamed, client::chat("khala", "one two three"), ask()] {
            let unpaid = temple.post(path, &body).await;
            assert_eq!(unpaid.status, 402, "{}", unpaid.text());
        }
    }
    assert_eq!(temple.served(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_path_offers_its_rails_and_a_fixed_price_says_that_it_is_a_quote() {
    let temple = Temple::open().await;
    for (path, x402) in [(CHAT, true), (MPP_CHAT, false)] {
        let unpaid = temple.post(path, &ask()).await;
        let offers = unpaid.headers("www-authenticate");
        let intents: Vec<_> = payer::offers(&offers).iter().map(|offer| offer.intent.to_string()).collect();
        assert_eq!(intents, ["session", "charge"], "{path}");
        let charge = payer::offer(&offers, "tempo", "charge");
        let description = charge.description.clone().unwrap_or_default();
        assert!(description.contains("a quote for this request"), "{path}: {description}");
        let session = payer::offer(&offers, "tempo", "session");
        assert!(!session.description.clone().unwrap_or_default().contains("quote"), "{path}");
        let fixed: u128 = payer::terms(&charge)["amount"].as_str().unwrap().parse().unwrap();
        assert!(fixed >= cost(3, 4096), "it covers the longest answer: {fixed}");
        assert_eq!(unpaid.header("payment-required").is_some(), x402, "{path}");
        if x402 {
            let required = decode(unpaid.header("payment-required").unwrap());
            let schemes: Vec<_> = required["accepts"].as_array().unwrap().iter().map(|o| o["scheme"].clone()).collect();
            assert_eq!(schemes, [json!("upto")], "{required}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_upto_pay_what_was_used_and_every_reply_discloses_who_served() {
    let temple = Temple::open().await;
    let due = cost(3, 12);
    let block = |found: &Value| {
        let block = found.clone();
        let names: Vec<_> = block.as_object().unwrap_or_else(|| panic!("no block: {found}")).keys().cloned().collect();
        assert_eq!(names, ["worker", "lane", "receipt", "credits"], "{block}");
        assert!(block["receipt"].as_str().unwrap().starts_with("rcpt_"), "{block}");
        block
    };
    // An x402 client, a JSON reply and a stream.
    for stream in [false, true] {
        let buyer = temple.evm.buyer(1_000_000).await;
        let before = temple.evm.usdc(temple.evm.payee()).await;
        let mut body = ask();
        body["stream"] = json!(stream);
        let (url, text) = (format!("{}{CHAT}", temple.gate.url()), body.to_string());
        let flags = [("url", url.as_str()), ("scheme", "upto"), ("body", &text)];
        let got = Client::Fetch.pay(&temple.evm, &buyer, &temple.gate.url(), &flags).await;
        assert_eq!(got["status"], 200, "{got:#}");
        let shown = match stream {
            false => got["body"]["openagents"].clone(),
            true => ledger::events(got["raw"].as_str().unwrap())
                .into_iter()
                .find_map(|e| e.get("openagents").cloned())
                .unwrap(),
        };
        let shown = block(&shown);
        assert!(["worker-1", "worker-2"].contains(&shown["worker"].as_str().unwrap()), "{shown}");
        assert_eq!((&shown["lane"], &shown["credits"]), (&json!("workers"), &json!(credits(due))), "{shown}");
        let paid = common::eventually(std::time::Duration::from_secs(20), || async {
            temple.evm.usdc(temple.evm.payee()).await - before == due
        })
        .await;
        assert!(paid, "{} atoms and not {due}", temple.evm.usdc(temple.evm.payee()).await - before);
        let receipt = temple.get(&format!("/receipts/{}", shown["receipt"].as_str().unwrap())).await;
        assert_eq!(receipt["charged"]["atoms"], due.to_string(), "{receipt}");
        assert!(
            !got.to_string().contains(temple.workers[0].url().trim_start_matches("http://")),
            "an address is disclosed"
        );
    }
    // A session of mppx on the path of its own: JSON, a stream, and the end.
    let wallet = Wallet::fresh(&temple.chain, 50_000_000).await;
    let (url, rpc, key) = (format!("{}{MPP_CHAT}", temple.gate.url()), temple.reserve.url(), wallet.secret());
    let text = ask().to_string();
    let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key), ("steps", "json,sse,close"), ("body", &text)];
    let got = node("session.mjs", &flags).await;
    assert_eq!(got["ok"], true, "{got:#}");
    let json_block = block(&got["steps"][0]["body"]["openagents"]);
    assert_eq!(json_block["credits"], credits(due), "{json_block}");
    assert_eq!(got["steps"][2]["receipt"]["spent"], (2 * due).to_string(), "{}", got["steps"][2]);
    assert!(temple.workers.iter().flat_map(Backend::requests).all(|r| r.json()["model"] == WORKERS));
    assert_eq!(temple.hosted.requests().len(), 0, "the workers were there");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_worker_serves_the_fallback_does_under_the_same_payment_and_price() {
    let temple = Temple::open().await;
    for worker in &temple.workers {
        worker.always(Reply::error(503, "server_error", "overloaded", "busy"));
    }
    let due = cost(3, 12);
    let buyer = temple.evm.buyer(1_000_000).await;
    let before = temple.evm.usdc(temple.evm.payee()).await;
    let (url, text) = (format!("{}{CHAT}", temple.gate.url()), ask().to_string());
    let flags = [("url", url.as_str()), ("scheme", "upto"), ("body", &text)];
    let got = Client::Fetch.pay(&temple.evm, &buyer, &temple.gate.url(), &flags).await;
    assert_eq!(got["status"], 200, "{got:#}");
    let block = &got["body"]["openagents"];
    assert_eq!((&block["worker"], &block["lane"]), (&json!("hosted"), &json!("hosted")), "{block}");
    assert_eq!((&block["credits"], temple.evm.usdc(temple.evm.payee()).await - before), (&json!(credits(due)), due));
    assert_eq!(temple.hosted.last().json()["model"], HOSTED, "in its own words");
    assert_eq!(temple.served(), 3, "each worker once, then the fallback");
    let receipt = temple.get(&format!("/receipts/{}", block["receipt"].as_str().unwrap())).await;
    assert_eq!((&receipt["attempts"], &receipt["pool"]), (&json!(3), &json!("hosted")), "{receipt}");
    let labels = [("pool", "workers"), ("outcome", "status")];
    assert_eq!(temple.gate.metric("pontage_upstream_attempts_total", &labels).await, 2.0);
    // Nobody at all: nothing is offered that could not be served.
    temple.hosted.always(Reply::error(503, "server_error", "overloaded", "busy"));
    let wallet = temple.evm.buyer(1_000_000).await;
    let before = temple.evm.usdc(temple.evm.payee()).await;
    let got = Client::Fetch.pay(&temple.evm, &wallet, &temple.gate.url(), &flags).await;
    assert!(got["status"].as_u64().is_some_and(|status| status >= 500), "{got:#}");
    assert_eq!(temple.evm.usdc(temple.evm.payee()).await, before, "and nothing was taken");
}
