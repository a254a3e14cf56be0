//! `/v1/responses` and `/v1/messages`, from socket to books: unpaid, paid by charge, by session and by x402, whole and streamed; what
//! the backend heard, which bytes came back, what was taken for them, and what the SDKs of both vendors make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{INPUT, OUTPUT, SessionBed};
use common::client::{node, python};
use common::ledger::{books, sealed};
use common::typed::{BOTH, MESSAGES, RESPONSES, TEXT, USED, ask, event, streamed, streamed_of, whole};
use common::x402::Stall;
use common::{
    Aimock, Backend, Chain, EvmBed, Facilitator, Gate, GateOptions, Payer, RawReply, Script, backend, payer, raw,
};
use serde_json::{Value, json};
use std::time::Duration;

const FLAT: u128 = 20_000;
/// What that costs under the prices of [`SessionBed`]; what comes from a cache is half of the input's price.
const DUE: u128 = 30 * INPUT + 20 * INPUT / 2 + 7 * OUTPUT;

fn said(path: &str, stream: bool, piece: usize) -> backend::Reply {
    if !stream {
        return backend::Reply::json(200, &whole(path));
    }
    let (leaves, end) = streamed(path);
    backend::Reply::stream_in_pieces_of(piece, format!("{leaves}{end}").as_bytes())
}

/// Routes of both surfaces on this rail.
fn routes(tier: &str, rail: &str) -> String {
    let route = |path: &str| {
        let surface = path.rsplit('/').next().unwrap();
        format!(
            "[[route]]\npath = \"{path}\"\nsurface = \"{surface}\"\ntier = \"{tier}\"\naccept = [\"{rail}\"]\nreceipt = {{ header = true, body = \"pontage\" }}\n\n"
        )
    };
    BOTH.map(route).concat()
}

fn shop(options: GateOptions) -> GateOptions {
    options.rule("routes.toml", &routes("standard", "tempo/charge"))
}

async fn post(gate: &Gate, path: &str, headers: &[(&str, &str)], body: &Value) -> RawReply {
    raw::exchange(gate.listen, &raw::post(path, headers, body.to_string().as_bytes())).await
}

/// What a receipt says of [`USED`].
fn assert_states(receipt: &Value) {
    let (input, cached, output) = USED;
    let usage = &receipt["usage"];
    let want = (json!(input), json!(cached), json!(output), json!("reported"));
    let got = (&usage["prompt_tokens"], &usage["cached_tokens"], &usage["completion_tokens"], &receipt["usage_source"]);
    assert_eq!(got, (&want.0, &want.1, &want.2, &want.3), "{receipt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_name_their_price_are_paid_and_give_the_backends_own_bytes_with_the_end_behind_the_receipt() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let mut gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let payer = Payer::fresh(&chain, 10_000_000).await;
    let mut calls = 0;
    for path in BOTH {
        for (stream, piece) in [(false, 0), (true, usize::MAX), (true, 7), (true, 1)] {
            let (body, why) = (ask(path, stream), format!("{path}, streamed: {stream} in {piece}"));
            let unpaid =
                post(&gate, path, &[("x-api-key", "client-key"), ("anthropic-version", "1999-01-01")], &body).await;
            assert_eq!(unpaid.status, 402, "{why}: {}", unpaid.text());
            let proof = payer.pay(&unpaid).await;
            backend.next(said(path, stream, piece));
            let headers =
                [("authorization", proof.as_str()), ("x-api-key", "client-key"), ("anthropic-beta", "x-2025")];
            let paid = post(&gate, path, &headers, &body).await;
            assert_eq!(paid.status, 200, "{why}: {}", paid.text());
            assert!(paid.header("payment-receipt").is_some(), "{why}");
            calls += 1;
            if stream {
                let text = paid.text();
                let (leaves, end) = streamed(path);
                let receipt = text.strip_prefix(&leaves).and_then(|rest| rest.strip_suffix(&end));
                let receipt = receipt.unwrap_or_else(|| panic!("{why}: {text}"));
                assert!(
                    receipt.starts_with(": pontage-receipt ") && receipt.matches('\n').count() == 2,
                    "{why}: {receipt}"
                );
                assert_states(&sealed(&text).unwrap());
            } else {
                let mut got = paid.json();
                assert_states(&got.as_object_mut().unwrap().remove("pontage").unwrap());
                assert_eq!(got, whole(path), "{why}");
            }
            let heard = backend.last();
            assert_eq!(heard.path, path, "{why}");
            let mut want = ask(path, stream);
            want["model"] = json!("gpt-oss-120b");
            want["stream"] = json!(stream);
            if path == RESPONSES {
                want["store"] = json!(false);
            }
            assert_eq!(heard.json(), want, "{why}");
            for name in ["x-api-key", "anthropic-version", "anthropic-beta"] {
                assert_eq!(heard.header(name), None, "{why}: the client's {name} stays here");
            }
            assert!(heard.header("authorization").unwrap().starts_with("Bearer sk-"), "{why}");
        }
    }
    gate.stop().await;
    let books = books(&gate);
    assert_eq!((books.charged, books.receipts, books.owed.len()), (calls * FLAT, calls as u64, 0), "{books:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropics_own_servers_get_the_pools_key_and_a_version_as_they_want_them() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let options = shop(GateOptions::new(&chain.url(), &backend.url()));
    let gate = Gate::start(options.rule_edit(
        "pools.toml",
        "profile = \"vllm\"",
        "profile = \"anthropic\"\nsurfaces = [\"responses\"]",
    ))
    .await;
    let payer = Payer::fresh(&chain, 10_000_000).await;
    let body = ask(MESSAGES, false);
    let proof = payer.pay(&post(&gate, MESSAGES, &[], &body).await).await;
    backend.next(said(MESSAGES, false, 0));
    let headers = [("authorization", proof.as_str()), ("x-api-key", "client-key"), ("anthropic-version", "1999-01-01")];
    let paid = post(&gate, MESSAGES, &headers, &body).await;
    assert_eq!(paid.status, 200, "{}", paid.text());
    let heard = backend.last();
    assert_eq!(heard.header("x-api-key"), Some(common::gate::UPSTREAM_KEY));
    assert_eq!((heard.header("anthropic-version"), heard.header("authorization")), (Some("2023-06-01"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_fails_before_its_first_word_costs_nothing_and_can_be_asked_for_again() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let payer = Payer::fresh(&chain, 10_000_000).await;
    let failed = json!({"id": "resp_1", "object": "response", "status": "failed", "error": {"code": "server_error", "message": "x"}, "output": []});
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let (created, started) = (streamed(RESPONSES).0, streamed(MESSAGES).0);
    let first = |stream: &str| format!("{}\n\n", stream.split("\n\n").next().unwrap());
    for (path, stream, reply, why) in [
        (RESPONSES, false, backend::Reply::json(200, &failed), "a failure inside a success"),
        (
            RESPONSES,
            false,
            backend::Reply::json(200, &json!({"id": "r", "status": "in_progress", "output": []})),
            "no answer yet",
        ),
        (
            RESPONSES,
            true,
            backend::Reply::stream([first(&created), event(&json!({"type": "response.failed", "response": failed}))]),
            "a failure before a word",
        ),
        (RESPONSES, true, backend::Reply::stream([first(&created)]), "an end before a word"),
        (MESSAGES, false, backend::Reply::json(200, &overloaded), "an error inside a success"),
        (MESSAGES, true, backend::Reply::stream([first(&started), event(&overloaded)]), "an error before a word"),
        (
            MESSAGES,
            true,
            backend::Reply::stream([first(&started), event(&json!({"type": "ping"}))]),
            "heartbeats alone",
        ),
    ] {
        let body = ask(path, stream);
        let proof = payer.pay(&post(&gate, path, &[], &body).await).await;
        backend.next(reply);
        let refused = post(&gate, path, &[("authorization", &proof)], &body).await;
        assert_eq!(refused.status, 502, "{why}: {}", refused.text());
        assert!(refused.json()["payment"]["redeemable_until"].is_string(), "{why}: {}", refused.text());
        backend.next(said(path, stream, 64));
        let redeemed = post(&gate, path, &[("authorization", &proof)], &body).await;
        assert_eq!(redeemed.status, 200, "{why}: {}", redeemed.text());
        assert!(redeemed.text().contains("answer"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_ends_in_an_error_of_its_own_kind() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let payer = Payer::fresh(&chain, 10_000_000).await;
    for path in BOTH {
        let (body, (leaves, _)) = (ask(path, true), streamed(path));
        let proof = payer.pay(&post(&gate, path, &[], &body).await).await;
        backend.next(backend::Reply::broken_stream([&leaves], backend::Step::Reset));
        let cut = post(&gate, path, &[("authorization", &proof)], &body).await;
        let text = cut.text();
        let rest = text.strip_prefix(&leaves).unwrap_or_else(|| panic!("{path}: {text}"));
        let (_, error) = rest.split_once("event: error\ndata: ").unwrap_or_else(|| panic!("{path}: {rest}"));
        let error: Value = serde_json::from_str(error.trim()).unwrap();
        assert_eq!((&error["type"], error["error"]["message"].is_string()), (&json!("error"), true), "{path}: {text}");
        assert_eq!(sealed(&text).unwrap()["complete"], false, "{path}: {text}");
    }
}

async fn by_the_token() -> SessionBed {
    with_rules(|options| options).await
}

async fn with_rules(change: impl FnOnce(GateOptions) -> GateOptions) -> SessionBed {
    SessionBed::with(|options| {
        let more = format!("{}[[route]]\npath = \"/v1/models\"", routes("standard", "tempo/session"));
        change(options).rule_edit("routes.toml", "[[route]]\npath = \"/v1/models\"", &more)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_pays_what_the_backend_reports_of_both() {
    let bed = by_the_token().await;
    let (channel, _) = bed.channel(100_000, 1_000).await;
    let mut due = 0;
    for path in BOTH {
        for stream in [false, true] {
            let body = ask(path, stream);
            let (offer, start) = bed.offer(path, &body).await;
            bed.backend.next(said(path, stream, 7));
            // Enough for all of it, so that no voucher is asked for.
            let credential = channel.voucher_credential(&offer, due + start.max(DUE) + 2_000);
            let reply = bed.post(path, &[("authorization", &credential)], body.to_string().as_bytes()).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            due += DUE;
            assert_eq!(bed.charged(&channel.id), due, "{path}: {}", reply.text());
            if stream {
                let (text, (leaves, end)) = (reply.text(), streamed(path));
                let (before, after) = text.split_once(&end).unwrap_or_else(|| panic!("{path}: {text}"));
                assert!(before.starts_with(&leaves) && before.contains(": pontage-receipt "), "{path}: {text}");
                assert!(after.starts_with("event: payment-receipt\n"), "the session's own receipt comes last: {text}");
            }
        }
    }
    bed.close(&[&channel]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_hides_output_is_covered_whole_where_no_event_says_how_much_it_was() {
    let bed = with_rules(|o| o.rule_edit("models.toml", "upstream =", "hidden_output = true\nupstream =")).await;
    for path in BOTH {
        let (_, whole) = bed.offer(path, &ask(path, false)).await;
        let (_, stream) = bed.offer(path, &ask(path, true)).await;
        assert_eq!(stream, whole, "{path}");
    }
    // Thinking comes as a summary, or not at all, whatever the model is otherwise.
    let open = by_the_token().await;
    let mut thinking = ask(MESSAGES, true);
    let (_, stream) = open.offer(MESSAGES, &thinking).await;
    thinking["thinking"] = json!({"type": "adaptive", "display": "omitted"});
    let (_, covered) = open.offer(MESSAGES, &thinking).await;
    thinking["stream"] = json!(false);
    assert!(stream < covered && covered == open.offer(MESSAGES, &thinking).await.1, "{stream}, {covered}");
    // This backend counts in every chunk of a chat.
    let (_, whole) = bed.offer(common::channels::CHAT, &json!({"messages": [{"role": "user", "content": "hi"}]})).await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    let (_, stream) = bed.offer(common::channels::CHAT, &chat).await;
    assert!(stream < whole, "{stream} of {whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_a_message_pays_the_prompt_as_reported_and_the_text_it_was_sent() {
    let bed = by_the_token().await;
    let (channel, _) = bed.channel(100_000, 1_000).await;
    let body = ask(MESSAGES, true);
    let (offer, start) = bed.offer(MESSAGES, &body).await;
    let (leaves, _) = streamed(MESSAGES);
    bed.backend.next(backend::Reply::broken_stream([&leaves], backend::Step::Hang));
    let credential = channel.voucher_credential(&offer, start + 3_000);
    let mut line = raw::Raw::connect(bed.gate.listen).await;
    line.send(&raw::post(MESSAGES, &[("authorization", &credential)], body.to_string().as_bytes())).await;
    assert!(line.until(b"answer", Duration::from_secs(10)).await, "the text has come");
    drop(line);
    let over = common::eventually(Duration::from_secs(20), || async {
        bed.gate.metric("pontage_inflight", &[("kind", "streams")]).await == 0.0
    });
    assert!(over.await, "the stream has ended");
    let state = bed.snapshot(&channel).await;
    let spent: u128 = state["spent"].as_str().unwrap().parse().unwrap();
    let prompt = 30 * INPUT + 20 * INPUT / 2;
    // "wördy answer" is some tokens of the vocabulary, and never more than its bytes.
    assert!(spent > prompt && spent <= prompt + 13 * OUTPUT, "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn x402_upto_takes_what_the_backend_reports_of_both() {
    let chain = EvmBed::start().await;
    let facilitator = Facilitator::ts(&chain).await;
    let stall =
        Stall::with(chain, &facilitator.url(), |options| options.rule("routes.toml", &routes("metered", "base/upto")))
            .await;
    let buyer = stall.chain.buyer(1_000_000).await;
    let (rpc, id) = (stall.chain.url(), stall.chain.chain_id.to_string());
    let key = alloy::hex::encode_prefixed(buyer.to_bytes());
    for path in BOTH {
        for stream in [false, true] {
            stall.backend.next(said(path, stream, 64));
            let (before, url, body) =
                (stall.earned().await, format!("{}{path}", stall.gate.url()), ask(path, stream).to_string());
            let flags = [("url", url.as_str()), ("rpc", &rpc), ("key", &key), ("chain", &id), ("body", &body)];
            let got = node("../x402/fetch.mjs", &flags).await;
            assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{path}: {got:#}");
            let paid = common::eventually(Duration::from_secs(10), || async { stall.earned().await > before });
            assert!(paid.await, "{path}: nothing was taken");
            // 1000 atoms a token of input, half of it from a cache, 2000 of output.
            assert_eq!(stall.earned().await - before, 30_000 + 10_000 + 14_000, "{path}: {got:#}");
        }
    }
}

/// What an SDK calls the figures of [`USED`].
fn assert_usage(sdk: &str, got: &Value) {
    let (input, cached, output) = USED;
    let usage = &got["usage"];
    let want = match sdk {
        "openai" => [
            (json!(input), "/input_tokens"),
            (json!(output), "/output_tokens"),
            (json!(cached), "/input_tokens_details/cached_tokens"),
        ],
        "anthropic" => [
            (json!(input - cached), "/input_tokens"),
            (json!(output), "/output_tokens"),
            (json!(cached), "/cache_read_input_tokens"),
        ],
        _ => {
            [(json!(input), "/inputTokens"), (json!(output), "/outputTokens"), (json!(input + output), "/totalTokens")]
        }
    };
    for (value, at) in want {
        assert_eq!(usage.pointer(at), Some(&value), "{sdk} {at}: {got:#}");
    }
}

/// The SDKs, the path each asks, and whether it is a Python one.
const SDKS: [(&str, &str, bool); 6] = [
    ("openai", RESPONSES, false),
    ("anthropic", MESSAGES, false),
    ("ai-openai", RESPONSES, false),
    ("ai-anthropic", MESSAGES, false),
    ("openai", RESPONSES, true),
    ("anthropic", MESSAGES, true),
];

/// One process that asks in each of these ways; its answers, and how often it paid.
async fn run(sdk: &str, is_python: bool, how: &[&str], flags: &[(&str, &str)]) -> (Vec<Value>, usize) {
    let how = how.join(",");
    let flags = [&[("sdk", sdk), ("how", &how)], flags].concat();
    let got = if is_python { python("typed.py", &flags).await } else { node("typed.mjs", &flags).await };
    let answers = got["answers"].as_array().unwrap_or_else(|| panic!("{sdk}: {got:#}"));
    (answers.clone(), got["payments"].as_array().map_or(0, Vec::len))
}

#[tokio::test(flavor = "multi_thread")]
async fn unmodified_sdks_of_both_vendors_pay_and_read_whole_and_streamed_answers() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let mut gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    let (url, rpc) = (gate.url(), chain.url());
    let mut calls = 0;
    for (sdk, path, is_python) in SDKS {
        let ways = if sdk.starts_with("ai-") { &["json", "stream"][..] } else { &["json", "stream", "helper"] };
        ways.iter().for_each(|how| backend.next(said(path, *how != "json", 11)));
        let (answers, payments) = run(sdk, is_python, ways, &[("base", &url), ("rpc", &rpc)]).await;
        assert_eq!((answers.len(), payments), (ways.len(), ways.len()), "{sdk}: {answers:#?}");
        for got in &answers {
            let why = format!("{sdk}, Python: {is_python}: {got:#}");
            assert_eq!((&got["ok"], &got["text"]), (&json!(true), &json!(TEXT)), "{why}");
            assert_usage(sdk, got);
            if got["how"] == "stream" && !sdk.starts_with("ai-") {
                let last = got["kinds"].as_array().unwrap().last().unwrap();
                assert_eq!(last, if path == RESPONSES { "response.completed" } else { "message_stop" }, "{why}");
            }
        }
        assert_eq!(backend.last().path, path, "{sdk}");
        for heard in backend.requests() {
            assert!(!heard.headers.iter().any(|(_, value)| value.contains("client-key")), "{sdk}: {:?}", heard.headers);
        }
        calls += ways.len() as u128;
    }
    gate.stop().await;
    assert_eq!(books(&gate).charged, calls * FLAT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_that_cannot_pay_shows_the_402_with_its_headers_and_asks_once() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    for (sdk, path, is_python) in SDKS {
        let (answers, _) = run(sdk, is_python, &["json", "stream"], &[("base", &gate.url())]).await;
        for got in answers {
            let (error, why) = (&got["error"], format!("{sdk} {path}, Python: {is_python}: {got:#}"));
            assert_eq!((&got["ok"], &error["status"], &got["calls"]), (&json!(false), &json!(402), &json!(1)), "{why}");
            let offers = &error["headers"]["www-authenticate"];
            assert!(offers.as_str().is_some_and(|h| h.starts_with("Payment ")), "{why}");
            if sdk == "anthropic" {
                assert_eq!(error["type"], "payment_required", "{why}");
            }
            // Every SDK's own words for it hold what a person must know.
            assert!(error["message"].as_str().is_some_and(|m| m.contains("ayment")), "{why}");
        }
    }
    assert!(backend.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sdks_pay_by_the_token_without_knowing() {
    let mut bed = by_the_token().await;
    let (url, rpc) = (bed.gate.url(), bed.reserve.url());
    for (sdk, path, _) in SDKS.into_iter().filter(|(_, _, is_python)| !is_python) {
        let wallet = bed.wallet().await;
        let key = wallet.secret();
        bed.backend.next(said(path, true, 11));
        let flags = [("base", url.as_str()), ("rpc", &rpc), ("session", "true"), ("key", &key)];
        let (answers, _) = run(sdk, false, &["stream"], &flags).await;
        assert_eq!((&answers[0]["ok"], &answers[0]["text"]), (&json!(true), &json!(TEXT)), "{sdk}: {answers:#?}");
        assert_usage(sdk, &answers[0]);
    }
    bed.gate.stop().await;
    let books = books(&bed.gate);
    assert_eq!((books.charged, books.receipts), (4 * DUE, 4), "{books:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_stands_still_for_vouchers_and_comes_whole() {
    const WORDS: u64 = 150;
    let mut bed = with_rules(common::channels::patient).await;
    let (url, rpc) = (bed.gate.url(), bed.reserve.url());
    let pieces: Vec<String> = (0..WORDS).map(|n| format!(" word{n}")).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    // 400 tokens: more than the text that was shown, so that the end is waited for as well.
    let (output, mut due) = (400, 0);
    for (sdk, path, _) in SDKS.into_iter().take(2) {
        let wallet = bed.wallet().await;
        let key = wallet.secret();
        let (leaves, end) = streamed_of(path, &pieces, output);
        bed.backend.next(backend::Reply::stream_in_pieces_of(400, format!("{leaves}{end}").as_bytes()));
        let flags = [
            ("base", url.as_str()),
            ("rpc", &rpc),
            ("session", "true"),
            ("how", "stream"),
            ("key", &key),
            ("limit", "500"),
        ];
        let got = node("typed.mjs", &[&flags[..], &[("sdk", sdk)]].concat()).await;
        let answer = &got["answers"][0];
        assert_eq!((&answer["ok"], &answer["text"]), (&json!(true), &json!(pieces.concat())), "{got:#}");
        let vouchers =
            got["management"].as_array().unwrap().iter().filter(|call| call.as_str().unwrap().contains("voucher 204"));
        assert!(vouchers.count() > 1, "{got:#}");
        due += 30 * INPUT + 20 * INPUT / 2 + u128::from(output) * OUTPUT;
    }
    bed.gate.stop().await;
    assert_eq!(books(&bed.gate).charged, due);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_nobody_here_wrote_is_sold_on_both() {
    let (chain, aimock) = (Chain::start().await, Aimock::start().await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &aimock.url()))).await;
    let (url, rpc) = (gate.url(), chain.url());
    for (sdk, _, is_python) in SDKS {
        let flags = [("base", url.as_str()), ("rpc", &rpc), ("prompt", common::aimock::HELLO)];
        for got in run(sdk, is_python, &["json", "stream"], &flags).await.0 {
            assert_eq!((&got["ok"], &got["text"]), (&json!(true), &json!(common::aimock::TEXT)), "{sdk}: {got:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sold_is_refused_in_words_both_vendors_sdks_can_read() {
    let (chain, backend) = (Chain::start().await, Backend::start(Script::default()).await);
    let gate = Gate::start(shop(GateOptions::new(&chain.url(), &backend.url()))).await;
    for (path, more, param, code) in [
        (RESPONSES, json!({"store": true}), "store", "invalid_value"),
        (RESPONSES, json!({"previous_response_id": "resp_1"}), "previous_response_id", "invalid_value"),
        (RESPONSES, json!({"background": true}), "background", "invalid_value"),
        (RESPONSES, json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "not_priced"),
        (RESPONSES, json!({"model": "nobody's"}), "model", "model_not_found"),
        (
            MESSAGES,
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "tools[0].type",
            "not_priced",
        ),
        (
            MESSAGES,
            json!({"thinking": {"type": "enabled", "budget_tokens": 9000}}),
            "thinking.budget_tokens",
            "invalid_value",
        ),
        (MESSAGES, json!({"container": "c"}), "container", "not_priced"),
    ] {
        let mut body = ask(path, false);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let got = post(&gate, path, &[], &body).await;
        let error = &got.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{more}: {}", got.text());
        assert!(error["type"].is_string() && error["message"].is_string(), "{more}: {}", got.text());
    }
    for path in BOTH {
        let probe = post(&gate, path, &[], &json!({})).await;
        assert_eq!(probe.status, 402, "{path}: who asks for nothing is told how to pay");
        let proof = Payer::fresh(&chain, 10_000_000).await.pay(&probe).await;
        let refused = post(&gate, path, &[("authorization", &proof)], &json!({})).await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("nothing_asked")), "{path}");
    }
    assert!(backend.requests().is_empty(), "nothing of it was forwarded");
    let offers = payer::offers(&post(&gate, MESSAGES, &[], &ask(MESSAGES, false)).await.headers("www-authenticate"));
    assert_eq!(offers.len(), 1);
}
