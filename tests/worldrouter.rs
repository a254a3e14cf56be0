//! The shipped rule set `worldrouter` with its own `pontage.toml`, as they are in the repository; only addresses, chain and
//! token are those of the test bed. Every price in here is read from `/v1/models`, as a client would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::CHAT;
use common::client::{self, mppx_cli, node};
use common::reserve::Event;
use common::wallet::{Channel, Wallet};
use common::{Backend, Bed, Chain, DEV, Gate, GateOptions, Payer, Raw, RawReply, Reserve, Script, Unseen};
use common::{ledger, payer, raw};
use mpp::PaymentChallenge;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const STREAM: &str = "/v1/chat/completions/stream";
/// Models whose price is written, in order of the file; the others are priced from the list.
const WRITTEN: [&str; 7] = [
    "openai/gpt-oss-120b",
    "openai/gpt-oss-20b",
    "openai/gpt-5-mini",
    "openai/gpt-4.1-mini",
    "anthropic/claude-sonnet-4.5",
    "google/gemini-2.5-flash",
    "deepseek/deepseek-chat",
];

/// Every model of the file, in its order: its name and its lines.
fn catalogue() -> Vec<(String, String)> {
    let text = shipped("lua-free-rules/worldrouter/models.toml");
    let entries = text.split("\n[model.\"").skip(1);
    entries.map(|entry| entry.split_once("\"]").unwrap()).map(|(name, lines)| (name.into(), lines.into())).collect()
}

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
    for file in ["models.toml", "tiers.toml", "routes.toml", "pools.toml", "prices.toml", "model_prices.json"] {
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
async fn prices(gate: &Gate) -> Vec<(String, u128, u128)> {
    let request = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    let list = raw::exchange(gate.listen, request).await.json();
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
    let prices = prices(&bed.gate).await;
    let listed: Vec<_> = prices.iter().map(|(id, ..)| id.clone()).collect();
    assert_eq!(listed, catalogue().into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(listed.len() > 30 && listed.iter().zip(WRITTEN).all(|(id, written)| id == written), "{listed:?}");
    for (at, (model, input, output)) in prices.iter().enumerate() {
        let prompt = "how much is this? ".repeat(10 + 20 * at);
        let mut body = client::chat(model, &prompt);
        body["stream"] = json!(at % 2 == 1);
        let quote = quote(&bed.gate, CHAT, &body);
        let tokens = u128::from(quote["parts"]["prompt_tokens"].as_u64().unwrap());
        let known = model.starts_with("openai/");
        let by_list = catalogue()[at].1.contains("price_as = ");
        let from = quote["prices"]["sources"][0]["from"].as_str().unwrap();
        assert_eq!(from.ends_with("x 1.2 (prices.toml:6)"), by_list, "{model}: {from}");
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
        // As both of its backends spell it.
        assert!(heard["max_tokens"].as_u64().is_some_and(|most| (1..=1024).contains(&most)), "{model}: {heard}");
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_short_prompt_does_not_pay_for_is_the_operators_loss_up_to_a_cent() {
    let bed = Bed::with(worldrouter).await;
    bed.backend.tune(|script| script.tokens = 100_000);
    let payer = bed.payer().await;
    let body = client::chat("anthropic/claude-sonnet-4.5", "a poem, please");
    let reply = bed.show(&bed.proof(&payer, CHAT, &body).await, CHAT, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let (charged, used) = (pico(&block(&reply)["charged"]["usd"]), pico(&block(&reply)["actual"]["usd"]));
    let lost = used - charged;
    assert!((9_900_000_000..=10_000_000_000).contains(&lost), "{lost} of 1e-12 USD");
    let metrics = bed.gate.metrics().await;
    let line = metrics.lines().find(|l| l.starts_with("pontage_absorbed_usd_total{tier=\"call\"}"));
    let counted = line.and_then(|l| l.split(' ').nth(1)).unwrap_or_else(|| panic!("{metrics}"));
    assert_eq!(pico(&json!(counted)), lost);
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
            // A chat template may add 64 tokens to a prompt, and 8 for each message and for what opens the answer.
            assert_eq!(atoms, exact(tokens + 80), "{model} {key}: {why}: {quote}");
            assert_eq!(pico(&rail[format!("{key}_usd").as_str()]), atoms * 1_000_000, "{quote}");
        }
    }
}

/// The set on a chain that has the channel reserve.
struct Street {
    chain: Chain,
    reserve: Reserve,
    backend: Backend,
    gate: Gate,
}

/// What a stream said about itself and the channel, beside its text.
struct Streamed {
    reply: RawReply,
    /// The pontage block.
    block: Value,
    /// The last event: the channel after this request.
    receipt: Value,
    /// Vouchers that were asked for on the way and sent by HEAD.
    asked: usize,
}

impl Street {
    async fn open() -> Self {
        let chain = Chain::start().await;
        let reserve = Reserve::start(&chain).await;
        let backend = Backend::start(Script::default()).await;
        let gate = Gate::start(worldrouter(GateOptions::new(&reserve.url(), &backend.url()))).await;
        Self { chain, reserve, backend, gate }
    }

    async fn exchange(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> RawReply {
        let request = String::from_utf8(raw::post(path, headers, body)).unwrap().replacen("POST", method, 1);
        let mut raw = Raw::connect(self.gate.listen).await;
        raw.send(request.as_bytes()).await;
        raw.reply_to(method, Duration::from_secs(30)).await
    }

    /// Asks without paying. With a channel, the offer says what a voucher of it must come to.
    async fn offer(&self, channel: Option<&Channel>, body: &Value) -> PaymentChallenge {
        let id = channel.map(|c| c.id.to_string());
        let headers: Vec<(&str, &str)> = id.iter().map(|id| ("payment-session", id.as_str())).collect();
        let reply = self.exchange("POST", STREAM, &headers, body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 402, "{}", reply.text());
        let offers = payer::offers(&reply.headers("www-authenticate"));
        assert_eq!(offers.len(), 1, "only sessions are taken here: {}", reply.text());
        payer::offer(&reply.headers("www-authenticate"), "tempo", "session")
    }

    /// Stops the gate; its books must be sound.
    async fn close(mut self) {
        self.gate.stop().await;
        self.gate.assert_no_secrets("the log", &self.gate.log());
        let (status, said, complaint) = self.gate.verb(&["audit", "--store", "var/pontage.redb"]);
        assert!(status.success() && said.ends_with("result    sound\n"), "{said}{complaint}");
    }

    /// Sends a paid request, and a voucher by HEAD whenever one is asked for.
    async fn stream(&self, channel: &Channel, offer: &PaymentChallenge, credential: &str, body: &Value) -> Streamed {
        let mut raw = Raw::connect(self.gate.listen).await;
        raw.send(&raw::post(STREAM, &[("authorization", credential)], body.to_string().as_bytes())).await;
        let mut asked = 0;
        loop {
            assert!(raw.more(Duration::from_secs(20)).await.is_some(), "{}", String::from_utf8_lossy(&raw.seen));
            let text = String::from_utf8_lossy(&raw.seen).into_owned();
            let asks = named(&text, "payment-need-voucher");
            for ask in &asks[asked..] {
                let required: u128 = ask["requiredCumulative"].as_str().unwrap().parse().unwrap();
                let more = channel.voucher_credential(offer, required);
                let control = self.exchange("HEAD", STREAM, &[("authorization", &more)], b"").await;
                assert_eq!((control.status, control.body.len()), (204, 0), "{control:?}");
                let receipt = payer::unpack(control.header("payment-receipt").expect("a receipt of the voucher"));
                assert_eq!(receipt["acceptedCumulative"], ask["requiredCumulative"], "{receipt}");
            }
            asked = asks.len();
            if text.ends_with("\r\n0\r\n\r\n") || !text.starts_with("HTTP/1.1 200") {
                break;
            }
        }
        let reply = raw.reply(Duration::from_secs(1)).await;
        let text = reply.text();
        assert_eq!(reply.status, 200, "{text}");
        assert_eq!(reply.header("content-type").map(|t| t.starts_with("text/event-stream")), Some(true), "{reply:?}");
        let (content, end) = text.split_once("data: [DONE]\n\n").unwrap_or_else(|| panic!("no end: {text}"));
        assert!(!content.contains("payment-receipt"), "{text}");
        let receipt =
            named(end, "payment-receipt").pop().unwrap_or_else(|| panic!("no receipt behind the end: {text}"));
        Streamed { block: block(&reply), receipt, asked, reply }
    }
}

/// The data of every whole event of this name.
fn named(text: &str, event: &str) -> Vec<Value> {
    let blocks = text.split("\n\n").filter_map(|b| b.rsplit_once(&format!("event: {event}\ndata: ")));
    blocks.filter_map(|(_, data)| serde_json::from_str(data.lines().next()?).ok()).collect()
}

fn atoms(value: &Value) -> u128 {
    value.as_str().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("an amount, not {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_costs_what_the_backend_reports_whatever_the_body_says_of_streaming() {
    let street = Street::open().await;
    let wallet = Wallet::fresh(&street.chain, 50_000_000).await;
    let mut channel: Option<Channel> = None;
    let (mut spent, mut accepted, mut made) = (0, 0, 0);
    for (at, model) in WRITTEN.iter().enumerate() {
        let mut body = client::chat(model, &"what is this? ".repeat(at + 1));
        body["max_tokens"] = json!(200);
        if at % 2 == 1 {
            body["stream"] = json!(false);
        }
        let offer = street.offer(channel.as_ref(), &body).await;
        let terms = payer::terms(&offer);
        let amount = atoms(&terms["amount"]);
        let start = atoms(&quote(&street.gate, STREAM, &body)["rails"][0]["start"]);
        let streamed = match &channel {
            None => {
                assert!(amount == start && atoms(&terms["suggestedDeposit"]) >= 1_000_000, "{model}: {terms}");
                let opened = wallet.open(&offer, |open| open.deposit = 5_000_000);
                let first = opened.open_credential(&offer, amount);
                let streamed = street.stream(&opened, &offer, &first, &body).await;
                channel = Some(opened);
                streamed
            }
            Some(channel) => {
                let snapshot = &terms["methodDetails"]["sessionSnapshot"];
                assert_eq!(atoms(&snapshot["spent"]), spent, "{snapshot}");
                // A voucher may have arrived behind the last receipt.
                assert!(atoms(&snapshot["acceptedCumulative"]) >= accepted, "{snapshot}");
                accepted = atoms(&snapshot["acceptedCumulative"]);
                let required = accepted.max(spent + start);
                assert_eq!(atoms(&snapshot["requiredCumulative"]), required, "{snapshot}");
                // What was signed and not used is good for this one, too: only what is missing is asked for.
                assert_eq!(amount, (required - accepted).max(1), "{model}: {terms}");
                let next = channel.voucher_credential(&offer, required);
                street.stream(channel, &offer, &next, &body).await
            }
        };
        let tokens = ledger::tokens_in(&streamed.reply);
        let (_, input, output) = prices(&street.gate).await.into_iter().find(|(id, ..)| id == model).unwrap();
        let prompt = u128::from(streamed.block["usage"]["prompt_tokens"].as_u64().unwrap());
        let cost = (prompt * input + u128::from(tokens) * output).div_ceil(1_000_000);
        assert_eq!(atoms(&streamed.block["charged"]["atoms"]), cost, "{model}: {}", streamed.block);
        spent += cost;
        made += tokens;
        assert_eq!(atoms(&streamed.receipt["spent"]), spent, "{model}: {}", streamed.receipt);
        // Where a vocabulary is not known, bytes are counted for cover: more is asked for, and not charged.
        accepted = atoms(&streamed.receipt["acceptedCumulative"]);
    }
    assert_eq!(street.backend.tokens_produced(), made);
    assert!(street.backend.requests().iter().all(|r| r.json()["stream"] == json!(true)), "always streamed");

    let channel = channel.unwrap();
    let offer = street.offer(Some(&channel), &client::chat(WRITTEN[0], "")).await;
    let end = channel.close_credential(&offer, 5_000_000);
    let closed = street.exchange("HEAD", STREAM, &[("authorization", &end)], b"").await;
    assert_eq!(closed.status, 204, "{closed:?}");
    let receipt = payer::unpack(closed.header("payment-receipt").unwrap());
    let events = street.reserve.logs(&channel.id).await;
    let (last, tx) = events.last().unwrap();
    assert_eq!(*last, Event::Closed { settled: spent, refunded: 5_000_000 - spent }, "{events:?}");
    assert_eq!(receipt["txHash"], tx.as_str());
    street.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vouchers_by_head_keep_a_long_stream_going_and_pay_for_all_of_it() {
    let street = Street::open().await;
    street.backend.tune(|script| (script.tokens, script.per_token) = (600, Duration::from_millis(2)));
    let wallet = Wallet::fresh(&street.chain, 50_000_000).await;
    for model in ["openai/gpt-oss-120b", "deepseek/deepseek-chat"] {
        let body = client::chat(model, "a long story, please");
        let offer = street.offer(None, &body).await;
        let channel = wallet.open(&offer, |_| ());
        let first = channel.open_credential(&offer, atoms(&payer::terms(&offer)["amount"]));
        let streamed = street.stream(&channel, &offer, &first, &body).await;
        assert!(streamed.asked >= 2, "{model}: {} vouchers were asked for", streamed.asked);
        assert_eq!(ledger::tokens_in(&streamed.reply), 600, "{model}");
        let (_, input, output) = prices(&street.gate).await.into_iter().find(|(id, ..)| id == model).unwrap();
        let prompt = u128::from(streamed.block["usage"]["prompt_tokens"].as_u64().unwrap());
        let cost = (prompt * input + 600 * output).div_ceil(1_000_000);
        assert_eq!(atoms(&streamed.receipt["spent"]), cost, "{model}: {}", streamed.receipt);
    }
    street.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_path_takes_the_money_of_the_other() {
    let street = Street::open().await;
    let wallet = Wallet::fresh(&street.chain, 50_000_000).await;
    let body = client::chat(WRITTEN[0], "one two three");
    let session = street.offer(None, &body).await;
    let channel = wallet.open(&session, |_| ());
    let opening = channel.open_credential(&session, 1_000);
    let text = body.to_string();
    let unpaid = street.exchange("POST", CHAT, &[], text.as_bytes()).await;
    let charge = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
    assert_eq!(payer::offers(&unpaid.headers("www-authenticate")).len(), 1);
    let paying = Payer::new(&wallet.secret(), &street.reserve.url()).sign(&charge, |_| ()).await;
    for (path, credential) in [(CHAT, &opening), (STREAM, &paying)] {
        let refused = street.exchange("POST", path, &[("authorization", credential)], text.as_bytes()).await;
        assert_eq!(
            (refused.status, refused.json()["error"]["code"].as_str()),
            (402, Some("invalid_challenge")),
            "{path}"
        );
    }
    assert_eq!(street.reserve.events(&channel.id).await, [], "nothing was opened");
    assert!(street.chain.payments_to(DEV[1].address).await.is_empty() && street.backend.requests().is_empty());
    street.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_client_of_mppx_streams_with_vouchers_by_head_and_gets_its_rest_back() {
    let street = Street::open().await;
    street.backend.tune(|script| (script.tokens, script.per_token) = (300, Duration::from_millis(2)));
    let wallet = Wallet::fresh(&street.chain, 50_000_000).await;
    let (url, rpc, key) = (format!("{}{STREAM}", street.gate.url()), street.reserve.url(), wallet.secret());
    let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key), ("steps", "sse,sse,close"), ("head", "true")];
    let got = node("session.mjs", &flags).await;
    // What it says whole is half a megabyte.
    let errors: Vec<&Value> = got["steps"].as_array().unwrap().iter().map(|step| &step["error"]).collect();
    assert_eq!(got["ok"], true, "{errors:?} {}", got["management"]);
    let management: Vec<&str> = got["management"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(management.contains(&"HEAD voucher 204") && management.contains(&"HEAD close 204"), "{management:?}");
    let (_, input, output) = prices(&street.gate).await.into_iter().find(|(id, ..)| id == WRITTEN[0]).unwrap();
    let (prompt, _) = street.backend.usage_reported();
    let cost = 2 * (u128::from(prompt / 2) * input + 300 * output).div_ceil(1_000_000);
    assert_eq!(atoms(&got["steps"][1]["receipt"]["spent"]), cost);
    let id = got["channel"].as_str().unwrap().parse().unwrap();
    let events = street.reserve.events(&id).await;
    assert!(matches!(events.last(), Some(Event::Closed { settled, .. }) if *settled == cost), "{events:?}");
    street.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_forgot_its_channel_finds_it_by_head_and_opens_no_second_one() {
    let street = Street::open().await;
    let bare = street.exchange("HEAD", STREAM, &[], b"").await;
    assert_eq!((bare.status, bare.body.len()), (402, 0), "{bare:?}");
    assert_eq!(
        payer::terms(&payer::offer(&bare.headers("www-authenticate"), "tempo", "session"))["unitType"],
        "request"
    );

    let wallet = Wallet::fresh(&street.chain, 50_000_000).await;
    let (url, rpc, key) = (format!("{}{STREAM}", street.gate.url()), street.reserve.url(), wallet.secret());
    let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key)];
    let first = node("session.mjs", &[&flags[..], &[("steps", "sse")]].concat()).await;
    assert_eq!(first["ok"], true, "{}", first["steps"][0]["error"]);
    // A proof that was offered in the second in which the channel was opened may have been shown before it was.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let again = node("session.mjs", &[&flags[..], &[("steps", "sse,close"), ("bootstrap", "true")]].concat()).await;
    assert_eq!((&again["ok"], &again["channel"]), (&json!(true), &first["channel"]), "{}", again["management"]);
    let id = first["channel"].as_str().unwrap().parse().unwrap();
    let events = street.reserve.events(&id).await;
    assert!(matches!(events[..], [Event::Opened { .. }, Event::Closed { .. }]), "{events:?}");
    street.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_openai_over_the_session_fetch_of_mppx_streams() {
    let street = Street::open().await;
    let wallet = Wallet::fresh(&street.chain, 50_000_000).await;
    let (base, rpc, key) = (street.gate.base(), street.reserve.url(), wallet.secret());
    let path = STREAM.strip_prefix("/v1").unwrap();
    let flags =
        [("base", base.as_str()), ("path", path), ("rpc", &rpc), ("key", &key), ("stream", "true"), ("calls", "3")];
    let got = node("openai-mppx-session.mjs", &flags).await;
    assert_eq!(got["ok"], true, "{got}");
    for answer in got["answers"].as_array().unwrap() {
        assert_eq!(answer["text"].as_str().unwrap().split_whitespace().count(), 12, "{answer}");
        let extra = answer["extra"].as_array().unwrap();
        assert!(extra.iter().any(|chunk| chunk["pontage"]["usage"]["completion_tokens"] == 12), "{answer}");
    }
    let opened = got["calls"].as_array().unwrap().iter().filter(|call| call["action"] == "open").count();
    assert_eq!((opened, street.backend.requests().len()), (1, 3), "{got}");
    street.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_validator_of_mppx_finds_nothing_wrong_with_either_path() {
    let street = Street::open().await;
    let url = street.gate.url();
    for path in [CHAT, STREAM] {
        let endpoint = format!("POST:{path}");
        let body = client::chat(WRITTEN[0], "one").to_string();
        let args = ["validate", &url, "-j", "--endpoint", &endpoint, "--body", &body];
        let out = mppx_cli(&args, DEV[2].key, &street.reserve.url()).await;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let found: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {out:?}"));
        let endpoint = &found["endpoints"][0];
        assert_eq!(endpoint["path"], path, "{said}");
        for part in [&found["discovery"]["checks"], &endpoint["challenge"], &endpoint["errorHandling"]] {
            for check in part.as_array().unwrap_or_else(|| panic!("a part is missing: {said}")) {
                assert_eq!(check["severity"], "pass", "{check}");
            }
        }
    }
    street.close().await;
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
    assert_eq!((&offers(STREAM)[0]["intent"], &offers(STREAM)[0]["amount"]), (&json!("session"), &Value::Null));
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
