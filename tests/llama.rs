//! The gate before llama.cpp's own server, which nobody here wrote: what it says of its use in every shape, what it obeys, what it does
//! when nobody listens any more, how it fails. Opt-in, for it is built from its sources for minutes:
//!
//! ```sh
//! testbed/setup --llama && cargo test --test llama -- --ignored
//! ```
//!
//! What was learned of it stands in `tests/usage.toml` as well, where `make test` keeps it without the server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{INPUT, OUTPUT, SessionBed, TERMS};
use common::client::{node, python};
use common::gate::{UPSTREAM_KEY, Wait};
use common::llama::{CONTEXT, SLOTS};
use common::wallet::Channel;
use common::{Gate, GateOptions, Llama, Raw, RawReply, eventually, raw};
use serde_json::{Value, json};
use std::time::Duration;

const MODEL: &str = "openai/gpt-oss-120b";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const EMBEDDINGS: &str = "/v1/embeddings";
/// Most output tokens of one choice.
const MOST: u64 = 7_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Every surface on two paths: for sessions, and for nothing under `/free`. No vocabulary: the model's is its own.
fn shop(options: GateOptions, llama: &Llama) -> GateOptions {
    let pools = format!(
        "[pool.gpt-oss]\nprofile = \"llamacpp\"\nservers = [\"{}\"]\napi_key = \"env:UPSTREAM_KEY\"\nhealth = {{ every_seconds = 1 }}\n",
        llama.url()
    );
    let tiers = format!(
        "[tier.standard]\nmodels = [\"{MODEL}\"]\nmax_output_tokens = {MOST}\nover_limit = \"clamp\"\nmax_input_tokens = 100000\nmax_n = 8\n\
         charge = {{ flat = \"0.02\" }}\n"
    );
    let surfaces = [
        (CHAT, "chat"),
        (COMPLETIONS, "completions"),
        (RESPONSES, "responses"),
        (MESSAGES, "messages"),
        (EMBEDDINGS, "embeddings"),
    ];
    let routes = surfaces.map(|(path, surface)| {
        let free = path.replace("/v1/", "/free/");
        format!(
            "[[route]]\npath = \"{path}\"\nsurface = \"{surface}\"\ntier = \"standard\"\naccept = [\"tempo/session\"]\n\n\
             [[route]]\npath = \"{free}\"\nsurface = \"{surface}\"\ntier = \"standard\"\naccess = \"free\"\n\n"
        )
    });
    options
        .rule("pools.toml", &pools)
        .rule("tiers.toml", &tiers)
        .rule("routes.toml", &routes.concat())
        .rule("models.toml", &format!(
            "[model.\"{MODEL}\"]\nupstream = \"gpt-oss-120b\"\npool = \"gpt-oss\"\nprice = {{ input = \"10\", cached_input = \"5\", output = \"20\" }}\n"
        ))
}

/// A gate that gives it all away, shows this key, and may start before its backend.
async fn giving_with(llama: &Llama, key: &str) -> Gate {
    let options = shop(GateOptions::new("http://127.0.0.1:1", &llama.url()).conf_extra(TERMS), llama);
    Gate::start(options.env("UPSTREAM_KEY", key).wait(Wait::Alive)).await
}

async fn giving(llama: &Llama) -> Gate {
    giving_with(llama, UPSTREAM_KEY).await
}

async fn post(gate: &Gate, path: &str, headers: &[(&str, &str)], body: &Value) -> RawReply {
    raw::exchange(gate.listen, &raw::post(path, headers, body.to_string().as_bytes())).await
}

/// Asks for so many choices of so many tokens; no other text is like it, so that nothing of it is in a cache.
fn ask(path: &str, words: &str, most: u64, n: u64, stream: bool) -> Value {
    let said = json!([{"role": "user", "content": words}]);
    let mut body = match path {
        CHAT => json!({"messages": said, "max_tokens": most}),
        COMPLETIONS => json!({"prompt": words, "max_tokens": most}),
        RESPONSES => json!({"input": words, "max_output_tokens": most}),
        _ => json!({"messages": said, "max_tokens": most}),
    };
    body["model"] = json!(MODEL);
    body["stream"] = json!(stream);
    if n > 1 {
        body["n"] = json!(n);
    }
    body
}

/// JSON of a reply or of the events of a stream.
fn parts(text: &str) -> Vec<Value> {
    if text.starts_with('{') {
        return vec![serde_json::from_str(text).unwrap()];
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The text of all choices: as many tokens as it has characters.
fn text(path: &str, said: &str) -> String {
    let choices = |part: &Value, at: &dyn Fn(&Value) -> Option<String>| -> String {
        part["choices"].as_array().into_iter().flatten().filter_map(at).collect()
    };
    let own = |value: &Value| value.as_str().map(str::to_owned);
    let of = |part: &Value| match path {
        CHAT => choices(part, &|c| own(&c["message"]["content"]).or_else(|| own(&c["delta"]["content"]))),
        COMPLETIONS => choices(part, &|c| own(&c["text"])),
        RESPONSES if part["type"] == "response.output_text.delta" => own(&part["delta"]).unwrap(),
        RESPONSES => own(&part["output"][0]["content"][0]["text"]).unwrap_or_default(),
        _ => own(&part["delta"]["text"]).or_else(|| own(&part["content"][0]["text"])).unwrap_or_default(),
    };
    parts(said).iter().map(of).collect()
}

/// Every usage object that it wrote, and how many parts had `timings`.
fn figures(said: &str) -> (Vec<Value>, usize) {
    let parts = parts(said);
    let usage = |part: &Value| {
        [&part["usage"], &part["message"]["usage"], &part["response"]["usage"]]
            .into_iter()
            .find(|u| u.is_object())
            .cloned()
    };
    (parts.iter().filter_map(usage).collect(), parts.iter().filter(|part| part["timings"].is_object()).count())
}

/// Prompt, of which cached, and output tokens of one usage object of any surface.
fn counts(usage: &Value) -> (u64, u64, u64) {
    let count = |name: &str| usage[name].as_u64();
    let cached = |details: &str| usage[details]["cached_tokens"].as_u64().unwrap_or(0);
    if let (Some(read), Some(fresh)) = (count("cache_read_input_tokens"), count("input_tokens")) {
        return (read + fresh, read, count("output_tokens").unwrap());
    }
    match count("prompt_tokens") {
        Some(prompt) => (prompt, cached("prompt_tokens_details"), count("completion_tokens").unwrap_or(0)),
        None => (count("input_tokens").unwrap_or(0), cached("input_tokens_details"), count("output_tokens").unwrap()),
    }
}

fn cost((prompt, cached, output): (u64, u64, u64)) -> u128 {
    u128::from(prompt - cached) * INPUT + u128::from(cached) * INPUT / 2 + u128::from(output) * OUTPUT
}

/// A channel of a session, with what was signed on it.
struct Purse {
    channel: Channel,
    signed: u128,
}

impl Purse {
    async fn open(bed: &SessionBed) -> Self {
        Self { channel: bed.channel(9_500_000, 1_000).await.0, signed: 1_000 }
    }

    /// A voucher that covers all of this.
    async fn voucher(&mut self, bed: &SessionBed, path: &str, body: &Value) -> String {
        let (offer, _) = bed.offer(path, body).await;
        self.signed += 250_000;
        self.channel.voucher_credential(&offer, self.signed)
    }

    /// Buys this; what came, and what was taken for it.
    async fn buy(&mut self, bed: &SessionBed, path: &str, body: &Value) -> (RawReply, u128) {
        let before = bed.charged(&self.channel.id);
        let voucher = self.voucher(bed, path, body).await;
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let reply = bed.post(path, &[("authorization", &voucher)], body.to_string().as_bytes()).await;
            if reply.status != 429 {
                return (reply, bed.charged(&self.channel.id) - before);
            }
            assert!(std::time::Instant::now() < end, "told to wait for ever");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The stream without what the gate writes into it.
fn passed(text: &str) -> String {
    let ours = |frame: &str| frame.starts_with(": pontage-receipt ") || frame.starts_with("event: payment-receipt\n");
    text.split_inclusive("\n\n").filter(|frame| !ours(frame)).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn what_it_reports_is_billed_to_the_token_and_what_it_writes_comes_out_byte_for_byte() {
    let llama = Llama::start(&[]).await;
    let bed = SessionBed::with(|options| shop(options, &llama)).await;
    let mut purse = Purse::open(&bed).await;
    // How many usage objects it writes, and on how many parts `timings` stand.
    for (path, n, stream, figures_want, timings_want) in [
        (CHAT, 1, false, 1, 1),
        (CHAT, 1, true, 1, 1),
        (CHAT, 3, true, 3, 3),
        (COMPLETIONS, 1, false, 1, 1),
        (COMPLETIONS, 1, true, 1, 1),
        (RESPONSES, 1, false, 1, 0),
        (RESPONSES, 1, true, 1, 1),
        (MESSAGES, 1, false, 1, 0),
        (MESSAGES, 1, true, 2, 0),
    ] {
        for wants_usage in [false, true] {
            let why = format!("{path}, {n} choices, streamed: {stream}, usage asked for: {wants_usage}");
            let mut body = ask(path, &format!("say {why}"), 40, n, stream);
            if stream && wants_usage && (path == CHAT || path == COMPLETIONS) {
                body["stream_options"] = json!({"include_usage": true});
            }
            llama.rewind();
            let (reply, charged) = purse.buy(&bed, path, &body).await;
            assert_eq!(reply.status, 200, "{why}: {}", reply.text());
            let said = llama.said();
            let (figures, timings) = figures(&said);
            assert_eq!((figures.len(), timings), (figures_want, timings_want), "{why}: {said}");
            // Its own alone: every choice stops at the limit that it was given, a character a token.
            let used = figures.iter().map(counts).fold((0, 0, 0), |sum, one| {
                let prompt = if one.0 > sum.0 { one } else { sum };
                (prompt.0, prompt.1, sum.2 + one.2)
            });
            assert_eq!((used.2, text(path, &said).len() as u64), (40 * n, 40 * n), "{why}: {said}");
            assert_eq!(charged, cost(used), "{why}: {figures:?}");
            // A figure alone is for who asked for it; on a chunk with a choice (completions) it stays.
            let alone = |frame: &str| path == CHAT && stream && !wants_usage && frame.contains("\"usage\"");
            let want: String = said.split_inclusive("\n\n").filter(|frame| !alone(frame)).collect();
            assert_eq!(passed(&reply.text()), want, "{why}");
        }
    }
    // Once more, to the letter: what it read before comes from its cache.
    let body = ask(CHAT, "say it twice", 2, 1, false);
    let (first, second) = (purse.buy(&bed, CHAT, &body).await, purse.buy(&bed, CHAT, &body).await);
    let cached = counts(&second.0.json()["usage"]).1;
    assert!(cached > 0 && second.1 == cost(counts(&second.0.json()["usage"])), "{}", second.0.text());
    assert!(first.1 > second.1, "{} and {}", first.1, second.1);
    bed.close(&[&purse.channel]).await;
}

/// The reason why more than one choice is asked of it only in a stream of chat; when this fails, it has learned to count them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn a_whole_reply_of_several_choices_or_prompts_says_what_the_first_used_and_is_not_sold() {
    let llama = Llama::start(&[]).await;
    let gate = giving(&llama).await;
    let key = format!("Bearer {}", UPSTREAM_KEY);
    let mut prompts = ask(COMPLETIONS, "", 10, 1, false);
    prompts["prompt"] = json!(["one", "and another one"]);
    let mut streamed = prompts.clone();
    streamed["stream"] = json!(true);
    for (path, body, made, field) in [
        (CHAT, ask(CHAT, "two of it", 10, 2, false), 20, "n"),
        (COMPLETIONS, ask(COMPLETIONS, "two of it", 10, 2, false), 20, "n"),
        (COMPLETIONS, prompts, 20, "prompt"),
    ] {
        let direct = raw::post(path, &[("authorization", &key)], body.to_string().as_bytes());
        let direct = raw::exchange(llama.direct(), &direct).await;
        assert_eq!(direct.status, 200, "{}", direct.text());
        assert_eq!(text(path, &direct.text()).len(), made, "{}", direct.text());
        assert_eq!(direct.json()["usage"]["completion_tokens"], 10, "of {made}: {}", direct.text());
        let refused = post(&gate, &path.replace("/v1/", "/free/"), &[], &body).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert_eq!(refused.json()["error"]["param"], field, "{}", refused.text());
    }
    // Streamed, each choice has its own prompt beside its output: of several prompts only the longest would be charged.
    let refused = post(&gate, &COMPLETIONS.replace("/v1/", "/free/"), &[], &streamed).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    // It makes as many choices as it has slots, and says so; nobody's server is taken for broken by that.
    for _ in 0..6 {
        let refused = post(&gate, "/free/chat/completions", &[], &ask(CHAT, "too many", 5, SLOTS + 1, true)).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert_eq!(refused.json()["error"]["type"], "invalid_request_error", "{}", refused.text());
    }
    let served = post(&gate, "/free/chat/completions", &[], &ask(CHAT, "as many", 5, SLOTS, true)).await;
    assert_eq!(served.status, 200, "{}", served.text());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn it_stops_when_its_client_leaves_and_the_client_pays_for_what_was_delivered() {
    let llama = Llama::start(&[]).await;
    let bed = SessionBed::with(|options| shop(options, &llama)).await;
    let mut purse = Purse::open(&bed).await;
    let body = ask(CHAT, "say a lot", MOST, 1, true);
    let voucher = purse.voucher(&bed, CHAT, &body).await;
    // With this header of its own it would go on and keep the answer for later.
    let headers = [("authorization", voucher.as_str()), ("x-conversation-id", "mine"), ("x-api-key", "mine")];
    let mut client = Raw::connect(bed.gate.listen).await;
    client.send(&raw::post(CHAT, &headers, body.to_string().as_bytes())).await;
    assert!(client.until(b"\"delta\":{\"content\":", PATIENCE).await, "{}", String::from_utf8_lossy(&client.seen));
    assert_eq!(llama.busy().await, 1);
    let heard = llama.heard().to_lowercase();
    assert!(
        heard.contains("\"max_tokens\":7000") && !heard.contains("conversation-id") && !heard.contains("x-api-key")
    );
    client.reset();
    assert!(eventually(PATIENCE, || async { llama.busy().await == 0 }).await, "it works for nobody");
    let counted = || async { bed.gate.metric("pontage_usage_total", &[("source", "counted")]).await };
    assert!(eventually(PATIENCE, || async { counted().await == 1.0 }).await, "{}", bed.gate.metrics().await);
    let output = bed.gate.metric("pontage_tokens_total", &[("kind", "completion")]).await;
    assert!(output > 0.0 && output < MOST as f64 / 2.0, "{output} of {MOST}");
    // The next one is served as ever.
    let (reply, charged) = purse.buy(&bed, CHAT, &ask(CHAT, "and now", 3, 1, false)).await;
    assert_eq!((reply.status, charged), (200, cost(counts(&reply.json()["usage"]))), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn limits_are_obeyed_and_its_refusals_reach_the_client_without_words_of_the_operator() {
    let llama = Llama::start(&[]).await;
    let gate = giving(&llama).await;
    for (path, stream) in [(CHAT, false), (COMPLETIONS, true), (RESPONSES, false), (MESSAGES, true)] {
        let free = path.replace("/v1/", "/free/");
        llama.rewind();
        let got = post(&gate, &free, &[], &ask(path, "seven", 7, 1, stream)).await;
        assert_eq!((got.status, text(path, &llama.said()).len()), (200, 7), "{path}: {}", got.text());
    }
    // What does not fit into its context. Its code is a number, which is none of OpenAI's.
    let long = "word ".repeat(CONTEXT as usize / 4);
    for stream in [false, true] {
        let refused = post(&gate, "/free/chat/completions", &[], &ask(CHAT, &long, 5, 1, stream)).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["type"]), (400, &json!("exceed_context_size_error")), "{error}");
        assert!(error["message"].as_str().unwrap().contains("exceeds the available context size"), "{error}");
        assert_eq!(error["code"].as_str(), None, "{error}");
    }
    // A key that is not its own: the operator's matter.
    let stranger = giving_with(&llama, "sk-not-this-one-at-all").await;
    let refused = post(&stranger, "/free/chat/completions", &[], &ask(CHAT, "hello", 5, 1, false)).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (502, &json!("upstream_failed")),
        "{}",
        refused.text()
    );
    assert!(!refused.text().to_lowercase().contains("key"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn a_server_that_loads_is_waited_for_and_idle_connections_that_it_drops_fail_nobody() {
    // Until its model is there it answers 503 to everything; too short a time to be sure to see it.
    let llama = Llama::begin(&[]).await;
    let gate = giving(&llama).await;
    let loading = llama.health().await;
    match loading.0 {
        503 => assert_eq!(loading.1["error"]["type"], "unavailable_error", "{}", loading.1),
        other => assert!([0, 200].contains(&other), "{loading:?}"),
    }
    let body = ask(CHAT, "hello", 2, 1, false);
    let served = || async { post(&gate, "/free/chat/completions", &[], &body).await.status == 200 };
    assert!(eventually(PATIENCE, served).await, "it is there and nobody asks it");
    // It closes a connection after a hundred requests, and after five seconds of nothing.
    for turn in 0..250 {
        let reply = post(&gate, "/free/chat/completions", &[], &body).await;
        assert_eq!(reply.status, 200, "{turn}: {}", reply.text());
    }
    for seconds in [4_600, 5_050] {
        tokio::time::sleep(Duration::from_millis(seconds)).await;
        let reply = post(&gate, "/free/chat/completions", &[], &body).await;
        assert_eq!(reply.status, 200, "after {seconds} ms: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn vectors_are_billed_by_what_it_read_of_all_inputs() {
    let llama = Llama::start(&["--embeddings", "--pooling", "mean"]).await;
    let bed = SessionBed::with(|options| shop(options, &llama)).await;
    let mut purse = Purse::open(&bed).await;
    for format in ["float", "base64"] {
        let inputs = ["one two three", "four"];
        let body = json!({"model": MODEL, "input": inputs, "encoding_format": format});
        llama.rewind();
        let (reply, charged) = purse.buy(&bed, EMBEDDINGS, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.text(), llama.said());
        assert_eq!(reply.json()["data"].as_array().map(Vec::len), Some(2), "{}", reply.text());
        let (prompt, cached, output) = counts(&reply.json()["usage"]);
        assert!(prompt >= inputs.concat().len() as u64 && output == 0, "{}", reply.json()["usage"]);
        assert_eq!(charged, cost((prompt, cached, 0)), "{}", reply.json()["usage"]);
    }
    bed.close(&[&purse.channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama.cpp's server: testbed/setup --llama"]
async fn both_sdks_of_openai_read_it_through_the_gate() {
    let llama = Llama::start(&[]).await;
    let gate = giving(&llama).await;
    let base = format!("{}/free", gate.url());
    for stream in [false, true] {
        let mut body = ask(CHAT, "hello", 20, 1, stream);
        if stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        let body = body.to_string();
        let flags = [("base", base.as_str()), ("body", &body)];
        for got in [node("openai-plain.mjs", &flags).await, python("openai_plain.py", &flags).await] {
            assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{stream}: {got}");
            assert_eq!(got["text"].as_str().map(str::len), Some(20), "{stream}: {got}");
            let usage = if stream { &got["usage"] } else { &got["body"]["usage"] };
            assert_eq!(usage["completion_tokens"], 20, "{got}");
        }
    }
}
