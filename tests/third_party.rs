//! The gate before a backend that nobody here wrote: npm aimock, paid through the published clients on a real chain. Its
//! journal says what it was sent, its fixtures what it reported.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::aimock::{CUT, HALF, HELLO, HUNG_UP, REFUSED, TEXT, USAGE};
use common::client::{chat, node, python};
use common::ledger::{Books, books, events, sealed};
use common::{Aimock, Chain, DEV, Gate, GateOptions, Payer, RawReply, payer, raw};
use serde_json::{Value, json};

const PRICE: u128 = 20_000;
const MODEL: &str = "openai/gpt-oss-120b";

struct Bed {
    chain: Chain,
    aimock: Aimock,
    gate: Gate,
}

impl Bed {
    async fn open(change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let (chain, aimock) = (Chain::start().await, Aimock::start().await);
        let gate = Gate::start(change(GateOptions::new(&chain.url(), &aimock.url()))).await;
        Self { chain, aimock, gate }
    }

    async fn payer(&self) -> Payer {
        Payer::fresh(&self.chain, 2_000_000).await
    }

    async fn show(&self, headers: &[(&str, &str)], body: &Value) -> RawReply {
        raw::exchange(self.gate.listen, &raw::post("/v1/chat/completions", headers, body.to_string().as_bytes())).await
    }

    /// Asks, pays, and shows the payment; the payment too.
    async fn buy(&self, payer: &Payer, headers: &[(&str, &str)], body: &Value) -> (RawReply, String) {
        let unpaid = self.show(headers, body).await;
        assert_eq!(unpaid.status, 402, "{}", unpaid.text());
        let proof = payer.pay(&unpaid).await;
        (self.show(&[headers, &[("authorization", &proof)]].concat(), body).await, proof)
    }

    /// The payee was paid once for each of these receipts and for nothing else; the books, in a sound store, say the same.
    async fn close(mut self, receipts: &[Value]) -> Books {
        let payments = self.chain.payments_to(DEV[1].address).await;
        assert!(payments.iter().all(|p| p.amount == PRICE), "{payments:#?}");
        assert_eq!(payments.len(), receipts.len(), "receipts {receipts:#?} for {payments:#?}");
        let paid: BTreeSet<&str> = payments.iter().map(|p| p.tx.as_str()).collect();
        let receipted: BTreeSet<&str> = receipts.iter().filter_map(|r| r["reference"].as_str()).collect();
        assert_eq!(receipted.len(), receipts.len(), "receipts of one payment, or of none: {receipts:#?}");
        assert_eq!(receipted, paid);
        self.gate.assert_no_secrets("/metrics", &self.gate.metrics().await);
        self.gate.stop().await;
        self.gate.assert_no_secrets("the log", &self.gate.log());
        let books = books(&self.gate);
        assert_eq!(books.receipts, receipts.len() as u64, "{books:#?}");
        assert_eq!(books.charged, PRICE * receipts.len() as u128, "{books:#?}");
        assert!(books.owed.is_empty(), "{books:#?}");
        books
    }
}

fn ask(prompt: &str, stream: bool) -> Value {
    let mut body = chat(MODEL, prompt);
    if stream {
        body["stream"] = json!(true);
    }
    body
}

/// What a receipt must state of a reply for which aimock reported [`USAGE`].
fn assert_states_the_usage(receipt: &Value) {
    assert_eq!(receipt["usage"]["prompt_tokens"], USAGE.0, "{receipt}");
    assert_eq!(receipt["usage"]["completion_tokens"], USAGE.1, "{receipt}");
    assert_eq!(receipt["usage_source"], "reported", "{receipt}");
    // 1 717 × 0.15 + 423 × 0.60, per million.
    assert_eq!(receipt["actual"]["usd"], "0.00051135", "{receipt}");
    assert_eq!(receipt["charged"]["usd"], "0.02", "{receipt}");
    assert_eq!(receipt["complete"], true, "{receipt}");
}

fn is_usage(usage: &Value) -> bool {
    usage["prompt_tokens"] == USAGE.0 && usage["completion_tokens"] == USAGE.1
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_state_the_usage_that_aimock_reports_plain_and_streamed() {
    let bed = Bed::open(|o| o).await;
    let (url, rpc) = (bed.gate.chat_url(), bed.chain.url());
    let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", DEV[2].key), ("prompt", HELLO)];

    let plain = node("mppx.mjs", &flags).await;
    assert_eq!((&plain["status"], &plain["text"]), (&json!(200), &json!(TEXT)), "{plain}");
    assert!(is_usage(&plain["body"]["usage"]), "{plain}");
    assert_states_the_usage(&plain["body"]["pontage"]);
    assert_eq!(plain["receipt"]["reference"], plain["body"]["pontage"]["reference"]);

    let streamed = node("mppx.mjs", &[&flags[..], &[("stream", "true")]].concat()).await;
    assert_eq!((&streamed["status"], &streamed["text"]), (&json!(200), &json!(TEXT)), "{streamed}");
    assert_eq!(streamed["sse"]["done"], true, "{streamed}");
    assert_eq!(streamed["sse"]["usage"], json!(null), "the client did not ask for usage: {streamed}");
    assert_states_the_usage(&streamed["sse"]["blocks"][0]["pontage"]);
    let sealed = streamed["sse"]["sealed"][0].as_str().expect("a sealed receipt");
    let key = bed.gate.status().await["receipt_key"].as_str().expect("a public key").to_owned();
    assert_states_the_usage(&pontage::flow::receipt::unseal(sealed, &key).expect("the gate's own seal"));

    assert_eq!(bed.aimock.journal().await.len(), 2, "of four requests to the gate, aimock hears the two paid ones");
    for (kind, tokens) in [("prompt", USAGE.0), ("completion", USAGE.1)] {
        let counted = bed.gate.metric("pontage_tokens_total", &[("model", MODEL), ("kind", kind)]).await;
        assert_eq!(counted, (2 * tokens) as f64, "{kind}");
    }
    bed.close(&[plain["receipt"].clone(), streamed["receipt"].clone()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_clients_over_paying_transports_get_aimocks_answer_and_usage() {
    let bed = Bed::open(|o| o).await;
    let (base, rpc) = (bed.gate.base(), bed.chain.url());
    let mut receipts = Vec::new();
    for script in ["openai-mppx.mjs", "openai_pympp.py"] {
        for stream in [false, true] {
            let mut body = ask(HELLO, stream);
            if stream {
                body["stream_options"] = json!({"include_usage": true});
            }
            let body = body.to_string();
            let flags = [("base", base.as_str()), ("rpc", &rpc), ("body", &body)];
            let got = if script.ends_with(".py") { python(script, &flags).await } else { node(script, &flags).await };
            assert_eq!((&got["ok"], &got["text"]), (&json!(true), &json!(TEXT)), "{script}: {got}");
            assert!(is_usage(&got["usage"]), "{script}: {got}");
            assert_eq!(got["payments"].as_array().map(Vec::len), Some(1), "{script}: {got}");
            receipts.push(got["headers"]["payment_receipt"].clone());
        }
    }
    assert_eq!(bed.aimock.journal().await.len(), 4);
    bed.close(&receipts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aimock_is_sent_the_gates_request_and_nothing_of_the_clients() {
    for (profile, spelling, stream_options) in [
        ("vllm", "max_tokens", json!({"include_usage": true})),
        ("openai", "max_completion_tokens", json!({"include_usage": true})),
    ] {
        let bed =
            Bed::open(|o| o.rule_edit("pools.toml", "profile = \"vllm\"", &format!("profile = \"{profile}\""))).await;
        let payer = bed.payer().await;
        // aimock would answer 401 to a second key.
        let theirs = [
            ("user-agent", "agent/1"),
            ("accept", "text/event-stream"),
            ("accept-encoding", "gzip, br"),
            ("accept-payment", "tempo/charge"),
            ("x-api-key", "sk-client"),
            ("api-key", "sk-client"),
            ("cookie", "session=client"),
            ("openai-organization", "org-client"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-request-id", "client-chosen"),
            ("x-test-id", "client-chosen"),
            ("x-aimock-chaos-drop", "1"),
            ("x-payment-response", "e30="),
        ];
        let mut receipts = Vec::new();
        for (limits, sold, stream) in [
            (json!({"max_tokens": 100_000, "max_completion_tokens": 90_000}), 2_048, true),
            (json!({"max_completion_tokens": 900, "max_tokens": 1_000}), 900, true),
            (json!({}), 2_048, false),
            (json!({"max_tokens": 7}), 7, false),
        ] {
            let mut body = json!({
                "messages": [{"role": "system", "content": "be \u{e9} brief"}, {"role": "user", "content": HELLO}],
                "temperature": 0.50, "seed": 9_007_199_254_740_993_u64,
            });
            let mut expected = body.clone();
            body["model"] = json!("gpt-oss-120b-alias");
            body.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
            expected["model"] = json!("gpt-oss-120b");
            expected[spelling] = json!(sold);
            if stream {
                body["stream"] = json!(true);
                expected["stream"] = json!(true);
                expected["stream_options"] = stream_options.clone();
            }
            let (reply, _) = bed.buy(&payer, &theirs, &body).await;
            assert_eq!(reply.status, 200, "{profile}: {}", reply.text());
            receipts.push(payer::unpack(reply.header("payment-receipt").expect("a receipt")));

            let heard = bed.aimock.last().await;
            let mut got = heard.body();
            // JavaScript cannot hold it.
            assert!(got["seed"].is_u64(), "{got}");
            got["seed"] = body["seed"].clone();
            if !stream {
                assert!(got.get("stream").is_none_or(|s| s == false), "{profile}: {got}");
                got.as_object_mut().unwrap().remove("stream");
            }
            assert_eq!(got, expected, "{profile}: what the backend is asked");
            let names: BTreeSet<&str> = heard.headers().iter().map(|(name, _)| *name).collect();
            let ours: BTreeSet<&str> = [
                "accept",
                "accept-encoding",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "user-agent",
                // aimock's own.
                "x-request-id",
            ]
            .into();
            assert_eq!(names, ours, "{profile}: headers of {:#?}", heard.headers());
            for (name, value) in heard.headers() {
                assert!(name == "accept" || !theirs.contains(&(name, value)), "{profile}: {name}: {value}");
            }
            assert!(heard.headers().contains(&("accept-encoding", "identity")), "{:#?}", heard.headers());
        }
        assert_eq!(bed.aimock.journal().await.len(), receipts.len());
        bed.close(&receipts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_aimock_writes_arrives_as_it_is_apart_from_the_receipt() {
    let bed = Bed::open(|o| o).await;
    let payer = bed.payer().await;
    let call = json!({"id": "call_1", "name": "weather", "arguments": {"city": "Zürich"}});
    let fixed = |mut response: Value| {
        response["id"] = json!("chatcmpl-fixed");
        response["created"] = json!(1_700_000_000);
        response["usage"] = json!({"prompt_tokens": USAGE.0, "completion_tokens": USAGE.1});
        response
    };
    for (prompt, response) in [
        ("call a tool", json!({"toolCalls": [call]})),
        ("think first", json!({"content": "\u{2713} done", "reasoning": "let me see …"})),
        ("end by length", json!({"content": "cut at the lim", "finishReason": "length"})),
    ] {
        bed.aimock.add(json!({"match": {"userMessage": prompt}, "response": fixed(response), "chunkSize": 3})).await;
    }
    let mut receipts = Vec::new();
    for prompt in [HELLO, "call a tool", "think first", "end by length"] {
        for (stream, wants_usage) in [(false, false), (true, false), (true, true)] {
            let mut body = ask(prompt, stream);
            if wants_usage {
                body["stream_options"] = json!({"include_usage": true});
            }
            let (reply, _) = bed.buy(&payer, &[], &body).await;
            assert_eq!(reply.status, 200, "{prompt}: {}", reply.text());
            receipts.push(payer::unpack(reply.header("payment-receipt").expect("a receipt")));

            // The same request once more, from the one who has the key.
            let key = format!("Bearer {}", common::gate::UPSTREAM_KEY);
            let again = bed.aimock.last().await.body().to_string();
            let again = raw::post("/v1/chat/completions", &[("authorization", &key)], again.as_bytes());
            let direct = raw::exchange(bed.aimock.addr(), &again).await.text();
            let got = reply.text();
            if !stream {
                let (start, block) = got.split_once(",\"pontage\":").expect("a block");
                assert_eq!(format!("{start}}}"), direct, "{prompt}");
                assert_states_the_usage(&serde_json::from_str(block.strip_suffix('}').unwrap()).unwrap());
                continue;
            }
            let frames = |text: &str, keep: &dyn Fn(&str) -> bool| -> Vec<String> {
                text.split_inclusive("\n\n").filter(|f| keep(f)).map(str::to_owned).collect()
            };
            let told = |frame: &str| frame.starts_with(": pontage-receipt ") || frame.contains("\"pontage\":{");
            let asked = |frame: &str| wants_usage || !frame.contains("\"usage\"");
            assert_eq!(frames(&got, &|f| !told(f)), frames(&direct, &asked), "{prompt}");
            assert_eq!(frames(&got, &told).len(), 2, "one block, one seal: {got}");
            assert_states_the_usage(&sealed(&got).expect("a sealed receipt"));
        }
    }
    bed.close(&receipts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_aimock_answered_with_503_or_a_hang_up_is_good_for_the_next_try() {
    let bed = Bed::open(|o| o).await;
    let (base, rpc) = (bed.gate.base(), bed.chain.url());
    let mut receipts = Vec::new();
    // The hang-up first: on a connection that was used before it could be an idle close, and is tried once more.
    for (script, prompt, stream) in [("openai_pympp.py", HUNG_UP, true), ("openai-mppx.mjs", REFUSED, false)] {
        let body = ask(prompt, stream);
        let text = body.to_string();
        let flags = [("base", base.as_str()), ("rpc", &rpc), ("body", &text)];
        let heard = bed.aimock.journal().await.len();
        let failed = if script.ends_with(".py") { python(script, &flags).await } else { node(script, &flags).await };
        assert_eq!(failed["error"]["status"], 502, "{script}: {failed}");
        assert_eq!(failed["error"]["code"], "upstream_failed", "{script}: {failed}");
        assert_eq!(failed["error"]["headers"]["x-should-retry"], "false", "{script}: {failed}");
        assert!(!failed.to_string().contains("loading"), "words of the backend: {failed}");
        let payments = failed["payments"].as_array().expect("payments");
        assert_eq!(payments.len(), 1, "{script} retries as it always does, and is debited once: {failed}");
        assert_eq!(bed.aimock.journal().await.len(), heard + 1, "{script}: {failed}");

        let proof = payments[0]["credential"].as_str().or(payments[0].as_str()).expect("the credential");
        let redeemed = bed.show(&[("authorization", proof)], &body).await;
        assert_eq!(redeemed.status, 200, "{}", redeemed.text());
        match stream {
            false => {
                assert_eq!(redeemed.json()["choices"][0]["message"]["content"], TEXT);
                assert_states_the_usage(&redeemed.json()["pontage"]);
            }
            true => {
                assert_eq!(text_of(&events(&redeemed.text())), TEXT);
                assert_states_the_usage(&sealed(&redeemed.text()).expect("a sealed receipt"));
            }
        }
        receipts.push(payer::unpack(redeemed.header("payment-receipt").expect("a receipt")));
        let spent = bed.show(&[("authorization", proof)], &body).await;
        assert_eq!((spent.status, spent.header("x-should-retry")), (403, Some("false")), "{}", spent.text());
        assert_eq!(bed.aimock.journal().await.len(), heard + 2, "{script}");
    }
    let failures = bed.gate.metric("pontage_upstream_errors_total", &[("pool", "gpt-oss")]).await;
    assert_eq!(failures, 2.0);
    bed.close(&receipts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_aimock_breaks_off_is_paid_for_as_far_as_it_came_and_ends_in_an_error() {
    let bed = Bed::open(|o| o).await;
    let payer = bed.payer().await;
    let body = ask(CUT, true);
    let (reply, proof) = bed.buy(&payer, &[], &body).await;
    let text = reply.text();
    assert!((reply.status, reply.complete) == (200, true), "the gate ends its own answer properly: {text}");
    assert!(bed.aimock.last().await.interrupted());
    let (events, sealed) = (events(&text), sealed(&text));
    let got = text_of(&events);
    assert!(!got.is_empty() && HALF.starts_with(&got), "{text}");
    assert!(!text.contains("[DONE]"), "half an answer must not look whole: {text}");
    assert_eq!(events.last().expect("events")["error"]["code"], "upstream_failed", "{text}");
    let sealed = sealed.expect("a sealed receipt");
    let block = events.iter().find_map(|e| e.get("pontage")).expect("a block");
    for receipt in [&sealed, block] {
        assert_eq!(receipt["complete"], false, "{receipt}");
        assert_eq!(receipt["usage_source"], "missing", "nothing was reported, and nothing is made up: {receipt}");
        assert!(receipt.get("usage").is_none() && receipt.get("actual").is_none(), "{receipt}");
        assert_eq!(receipt["charged"]["usd"], "0.02", "{receipt}");
    }
    let spent = bed.show(&[("authorization", &proof)], &body).await;
    assert_eq!(spent.status, 403, "part of it was delivered: {}", spent.text());
    let mut receipts = vec![payer::unpack(reply.header("payment-receipt").expect("a receipt"))];

    let (base, rpc, body) = (bed.gate.base(), bed.chain.url(), body.to_string());
    let flags = [("base", base.as_str()), ("rpc", &rpc), ("body", &body)];
    for (client, got) in
        [("npm", node("openai-mppx.mjs", &flags).await), ("PyPI", python("openai_pympp.py", &flags).await)]
    {
        assert_eq!(got["error"]["code"], "upstream_failed", "{client}: {got}");
        let tokens: String = got["tokens"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(!tokens.is_empty() && HALF.starts_with(&tokens), "{client}: {got}");
        assert_eq!(got["payments"].as_array().map(Vec::len), Some(1), "{client}: {got}");
        receipts.push(got["headers"]["payment_receipt"].clone());
    }
    assert_eq!(bed.aimock.journal().await.len(), 3);
    assert_eq!(bed.close(&receipts).await.cut_short, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn aimocks_429_reaches_the_payer_with_its_type_and_its_wait_and_the_payment_stays_good() {
    let bed = Bed::open(|o| o).await;
    let payer = bed.payer().await;
    for fixture in [
        json!({"match": {"userMessage": "too fast", "sequenceIndex": 0}, "response": {"status": 429, "retryAfter": 1, "error": {
            "message": "Rate limit reached for gpt-oss-120b in organization org-operator", "type": "rate_limit_error", "code": "slow_down"}}}),
        json!({"match": {"userMessage": "too fast"}, "response": {"content": TEXT}}),
    ] {
        bed.aimock.add(fixture).await;
    }
    let body = ask("too fast", false);
    let (refused, proof) = bed.buy(&payer, &[], &body).await;
    let text = refused.text();
    assert_eq!(refused.status, 429, "{text}");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error", "{text}");
    assert_eq!(refused.json()["error"]["code"], "slow_down", "{text}");
    assert_eq!(refused.header("retry-after"), Some("1"), "{text}");
    let all = String::from_utf8_lossy(&refused.raw).to_lowercase();
    for theirs in ["gpt-oss-120b", "org-operator", "x-ratelimit", "access-control"] {
        assert!(!all.contains(theirs), "{theirs} is the operator's: {all}");
    }
    assert!(
        refused.headers("www-authenticate").is_empty() && refused.header("x-should-retry") == Some("false"),
        "{all}"
    );
    // It is left alone as long as it asked.
    let mut served = bed.show(&[("authorization", &proof)], &body).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while served.status == 503 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        served = bed.show(&[("authorization", &proof)], &body).await;
    }
    assert_eq!(served.status, 200, "{}", served.text());
    let receipt = payer::unpack(served.header("payment-receipt").expect("a receipt"));
    bed.close(&[receipt]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_aimock_garbles_is_not_sold() {
    let bed = Bed::open(|o| o).await;
    let payer = bed.payer().await;
    let mut receipts = Vec::new();
    for stream in [false, true] {
        let prompt = if stream { "garble a stream" } else { "garble an answer" };
        for fixture in [
            json!({"match": {"userMessage": prompt, "sequenceIndex": 0}, "response": {"content": TEXT}, "chaos": {"malformedRate": 1}}),
            json!({"match": {"userMessage": prompt}, "response": {"content": TEXT}}),
        ] {
            bed.aimock.add(fixture).await;
        }
        let body = ask(prompt, stream);
        let (garbled, proof) = bed.buy(&payer, &[], &body).await;
        let text = garbled.text();
        assert_eq!(bed.aimock.last().await.status(), 200);
        assert_eq!(
            (garbled.status, garbled.json()["error"]["code"].as_str()),
            (502, Some("upstream_failed")),
            "{text}"
        );
        assert!(!text.contains("chaos"), "{text}");
        let served = bed.show(&[("authorization", &proof)], &body).await;
        assert_eq!(served.status, 200, "{}", served.text());
        receipts.push(payer::unpack(served.header("payment-receipt").expect("a receipt")));
    }
    bed.close(&receipts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_at_aimock_is_the_operators_alarm_and_the_payment_waits_for_the_right_one() {
    let mut bed = Bed::open(|o| o.env("UPSTREAM_KEY", "sk-not-this-one")).await;
    let payer = bed.payer().await;
    let body = ask(HELLO, false);
    let (refused, proof) = bed.buy(&payer, &[], &body).await;
    let text = refused.text();
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (502, Some("upstream_failed")), "{text}");
    assert!(refused.headers("www-authenticate").is_empty(), "neither aimock's invitation nor ours: {text}");
    assert!(!text.to_lowercase().contains("key"), "{text}");
    assert_eq!(bed.gate.metric("pontage_upstream_errors_total", &[("kind", "auth")]).await, 1.0);
    assert_eq!(bed.aimock.journal().await.len(), 0);

    bed.gate.set_env("UPSTREAM_KEY", common::gate::UPSTREAM_KEY);
    bed.gate.restart().await;
    let served = bed.show(&[("authorization", &proof)], &body).await;
    assert_eq!(served.status, 200, "{}", served.text());
    assert_states_the_usage(&served.json()["pontage"]);
    let receipt = payer::unpack(served.header("payment-receipt").expect("a receipt"));
    bed.close(&[receipt]).await;
}
