//! Every row of `tests/endings.toml` is brought about on a running gate: status, code, money and headers are what the row says.
//!
//! A row that a client cannot bring about (a disk that fails, a defect of ours) must name the test that shows it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "drive/scenes.rs"]
mod scenes;

use common::{Backend, Chain, DEV, Gate, GateOptions, Payer, RawReply, RpcProxy, Script, eventually, raw};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(30);
const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "openai/gpt-oss-120b";

#[derive(Deserialize)]
struct Endings {
    ending: Vec<Ending>,
}

#[derive(Deserialize)]
struct Ending {
    outcome: String,
    status: u16,
    money: String,
    #[serde(default)]
    retry_after: bool,
    test: Option<String>,
}

/// What a scene ended with.
enum Ended {
    /// With this answer, and this many payments on the chain before the last request.
    Answer(RawReply, usize),
    /// The same on a gate of its own, which has counted it.
    Elsewhere(RawReply, usize),
    /// With nobody there to answer.
    Gone(usize),
    /// A client cannot bring it about.
    OutOfReach,
}

type Later<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + 'a>>;

struct Bed {
    chain: Chain,
    rpc: RpcProxy,
    backend: Backend,
    /// Of the pool `brief`: its waits are short, and a server that is gone is not noticed before a request fails.
    brief: Option<Backend>,
    /// Of the pool `watched`: a server that is gone is noticed in seconds.
    watched: Option<Backend>,
    gate: Gate,
    payer: Payer,
}

fn pool(name: &str, url: &str, every: u64, first_byte: u64) -> String {
    // A reply that does not stream has as long as the whole.
    let (idle, total) = (first_byte, 6 * first_byte);
    format!(
        "[pool.{name}]\nprofile = \"vllm\"\nservers = [\"{url}\"]\nhealth = {{ path = \"/health\", every_seconds = {every} }}\n\
         timeouts = {{ connect_seconds = 1, first_byte_seconds = {first_byte}, idle_seconds = {idle}, total_seconds = {total} }}\n\n"
    )
}

fn model(name: &str, pool: &str) -> String {
    let price = "price = { input = \"10\", output = \"10\" }";
    format!("[model.\"{name}\"]\nupstream = \"up-{pool}\"\npool = \"{pool}\"\n{price}\n\n")
}

fn tier(name: &str, model: &str, charge: &str, more: &str) -> String {
    format!("[tier.{name}]\nmodels = [\"{model}\"]\nmax_output_tokens = 2048\ncharge = {charge}\n{more}\n\n")
}

fn route(path: &str, tier: &str) -> String {
    format!(
        "[[route]]\npath = \"{path}\"\nsurface = \"chat\"\ntier = \"{tier}\"\naccept = [\"tempo/charge\"]\n\
         receipt = {{ header = true, body = \"pontage\" }}\n\n"
    )
}

impl Bed {
    async fn new() -> Self {
        let chain = Chain::start().await;
        let rpc = RpcProxy::start(&chain.url()).await;
        let [backend, brief, watched] = [(); 3].map(|()| Backend::start(Script { tokens: 5, ..Script::default() }));
        let (backend, brief, watched) = (backend.await, brief.await, watched.await);
        let flat = "{ flat = \"0.02\" }";
        let absorb = "{ estimate = { overhead = \"1\", shortfall = \"absorb\", loss_cap_per_call = \"0.000001\", \
                      loss_cap_per_day = \"0.000001\" } }";
        let narrow = "over_limit = \"refuse\"\nmax_body_bytes = 4000\nmax_input_tokens = 200\nmax_n = 2";
        let options = GateOptions::new(&rpc.url(), &backend.url())
            .conf_edit("threads = 2", "threads = 2\ncors = { origins = [\"https://page.test\"] }")
            .conf_extra("\n[listen.limits]\nbody_seconds = 3\nunpaid_per_ip_per_second = 100000\n")
            .rule(
                "pools.toml",
                &[
                    pool("main", &backend.url(), 1, 10),
                    pool("brief", &brief.url(), 3600, 1),
                    pool("watched", &watched.url(), 1, 10),
                ]
                .concat(),
            )
            .rule("models.toml", &[model(MODEL, "main"), model("brief", "brief"), model("watched", "watched")].concat())
            .rule(
                "tiers.toml",
                &[
                    tier("standard", MODEL, flat, ""),
                    tier("ceiling", MODEL, "{ ceiling = true }", ""),
                    tier("absorb", MODEL, absorb, ""),
                    tier("narrow", "brief", flat, narrow),
                    tier("watched", "watched", flat, ""),
                ]
                .concat(),
            )
            .rule(
                "routes.toml",
                &[
                    route(CHAT, "standard"),
                    route("/ceiling", "ceiling"),
                    route("/absorb", "absorb"),
                    route("/narrow", "narrow"),
                    route("/watched", "watched"),
                    route("/heard", "standard").replace("\"chat\"", "\"transcriptions\""),
                    "[[route]]\npath = \"/free\"\nsurface = \"chat\"\ntier = \"standard\"\naccess = \"free\"\n"
                        .to_owned(),
                ]
                .concat(),
            );
        let gate = Gate::start(options).await;
        let payer = Payer::fresh(&chain, 50_000_000).await;
        Self { chain, rpc, backend, brief: Some(brief), watched: Some(watched), gate, payer }
    }

    /// Transfers that reached the payee.
    async fn payments(&self) -> usize {
        self.chain.payments_to(DEV[1].address).await.len()
    }

    // Boxed, because the scenes are one function: with every future of theirs inside it would not fit a test's stack.
    fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Later<'_, RawReply> {
        let bytes = raw::post(path, headers, body);
        Box::pin(async move { raw::exchange(self.gate.listen, &bytes).await })
    }

    /// The credential that pays for this body.
    fn credential(&self, path: &str, body: &Value) -> Later<'_, String> {
        let unpaid = self.post(path, &[], body.to_string().as_bytes());
        Box::pin(async move { self.payer.pay(&unpaid.await).await })
    }

    fn show(&self, path: &str, credential: &str, body: &Value) -> Later<'_, RawReply> {
        self.post(path, &[("authorization", credential)], body.to_string().as_bytes())
    }

    fn ended<'a>(&'a self, reply: Later<'a, RawReply>) -> Later<'a, Ended> {
        Box::pin(async move {
            let before = self.payments().await;
            Ended::Answer(reply.await, before)
        })
    }

    /// Requests that ended this way so far.
    async fn count(&self, outcome: &str) -> f64 {
        self.gate.metric("pontage_requests_total", &[("outcome", outcome)]).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ending_can_be_brought_about_and_is_as_the_table_says() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/endings.toml")).unwrap();
    let rows = toml::from_str::<Endings>(&text).unwrap().ending;
    let mut bed = Box::pin(Bed::new()).await;
    let mut nth = std::collections::BTreeMap::new();
    for row in &rows {
        let key = (row.outcome.as_str(), row.status, row.money.as_str());
        let seen = nth.entry(key).or_insert(0);
        let name = format!("{} {} {} #{seen}", row.outcome, row.status, row.money);
        let counted = bed.count(&row.outcome).await;
        let ended = Box::pin(scenes::play(&mut bed, key, *seen)).await;
        *seen += 1;
        match ended {
            Ended::OutOfReach => {
                assert!(row.outcome == "internal" || row.test.is_some(), "{name}: name the test that shows it");
                continue;
            }
            Ended::Elsewhere(reply, before) => {
                assert_money(&bed, row, before, &name).await;
                assert_answer(row, &reply, &name);
                continue;
            }
            Ended::Gone(before) => assert_money(&bed, row, before, &name).await,
            Ended::Answer(reply, before) => {
                if row.money != "unknown" {
                    assert_money(&bed, row, before, &name).await;
                }
                assert_answer(row, &reply, &name);
            }
        }
        let more = async || bed.count(&row.outcome).await > counted;
        assert!(eventually(SHORT, more).await, "{name}: pontage_requests_total does not count it");
    }
}

/// What the last request did on the chain.
async fn assert_money(bed: &Bed, row: &Ending, before: usize, name: &str) {
    let moved = usize::from(matches!(row.money.as_str(), "taken" | "owed"));
    let settled = async || bed.payments().await == before + moved;
    assert!(eventually(SHORT, settled).await, "{name}: {} payments, {before} before", bed.payments().await);
}

fn assert_answer(row: &Ending, reply: &RawReply, name: &str) {
    let said = String::from_utf8_lossy(&reply.raw).into_owned();
    assert_eq!(reply.status, row.status, "{name}: {said}");
    assert_eq!(
        reply.header("www-authenticate").is_some(),
        row.status == 402,
        "{name}: a challenge with 402 only: {said}"
    );
    assert_eq!(reply.header("retry-after").is_some(), row.retry_after, "{name}: retry_after: {said}");
    assert_eq!(reply.header("payment-receipt").is_some(), row.status == 200 && row.money != "none", "{name}: {said}");
    if row.status < 300 {
        return;
    }
    let body = reply.json();
    // The backend's own code passes.
    let code = if row.outcome == "upstream_refused" { "bad_value" } else { row.outcome.as_str() };
    assert_eq!(body["error"]["code"], code, "{name}: {said}");
    let touched = row.money != "none";
    // Shown, not claimed: for all a client knows it has paid.
    let shown = row.outcome == "upstream_unavailable";
    let retry = reply.header("x-should-retry");
    assert_eq!(
        retry,
        (touched || shown).then_some("false"),
        "{name}: who may have paid does not retry by himself: {said}"
    );
    let moved = match (row.money.as_str(), row.outcome.as_str()) {
        (_, "payment_in_use") | ("unknown", _) => json!("unknown"),
        ("none", _) => Value::Null,
        _ => json!("yes"),
    };
    assert_eq!(body["payment"]["moved"], moved, "{name}: {said}");
    let redeemable = matches!(row.outcome.as_str(), "underpaid" | "redeem_elsewhere") || row.money == "owed";
    assert_eq!(body["payment"]["redeemable_until"].is_string(), redeemable, "{name}: {said}");
}
