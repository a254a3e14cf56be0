//! The gate before PyPI `llmock`: several choices, `usage: null` on every chunk, and faults made by somebody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bridge::{Bridge, ROOMY, limits};
use common::client::{node, python};
use common::{Backend, Llmock, Payer, Script, ledger};
use serde_json::{Value, json};

/// What it says of the prompt [`ask`], and of its answer: unlike what is counted here.
const PROMPT: &str = "hi there";

fn ask(n: u64, stream: bool) -> Value {
    json!({
        "model": "openai/gpt-oss-120b", "n": n, "stream": stream, "messages": [{"role": "user", "content": PROMPT}],
        "stream_options": stream.then(|| json!({"include_usage": true})),
    })
}

/// A gate before llmock, with a fallback of our own, in a tier that sells several choices.
async fn bridge(llmock: &Llmock, fallback: &Backend) -> Bridge {
    let waits = "timeouts = { connect_seconds = 2, first_byte_seconds = 5, idle_seconds = 4, total_seconds = 30 }";
    let pools = format!(
        "[pool.gpt-oss]\nprofile = \"openai\"\nservers = [\"{}\"]\nfallback = \"own\"\n{waits}\n\n\
         [pool.own]\nprofile = \"vllm\"\nservers = [\"{}\"]\n{waits}\n",
        llmock.url(),
        fallback.url(),
    );
    Bridge::with(|options| limits(options.rule("pools.toml", &pools), ROOMY)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_and_figures_of_a_mock_that_nobody_here_wrote_are_passed_and_booked_as_it_says_them() {
    let (llmock, own) = (Llmock::start().await, Backend::start(Script::default()).await);
    let bridge = bridge(&llmock, &own).await;
    let payer = Payer::fresh(&bridge.chain, 1_000_000).await;
    for (n, stream) in [(1, false), (2, false), (1, true), (2, true)] {
        let body = ask(n, stream);
        let reply = bridge.send(&bridge.paying(&payer, &body).await).await;
        assert_eq!(reply.status, 200, "n = {n}, stream = {stream}: {}", reply.text());
        let (said, block) = match stream {
            false => (reply.json()["usage"].clone(), reply.json()["pontage"].clone()),
            true => {
                let events = ledger::events(&reply.text());
                let member =
                    |name: &str| events.iter().rev().find_map(|e| e.get(name).filter(|v| v.is_object()).cloned());
                (member("usage").unwrap(), member("pontage").unwrap())
            }
        };
        for kind in ["prompt_tokens", "completion_tokens"] {
            assert!(said[kind].as_u64().is_some_and(|count| count > 0), "{said}");
            assert_eq!(block["usage"][kind], said[kind], "n = {n}, stream = {stream}: {block}");
        }
        assert_eq!(block["usage_source"], "reported", "{block}");
    }
    assert_eq!((llmock.heard().await, own.requests().len()), (4, 0));

    // Both SDKs read it through the gate.
    let base = format!("{}/free", bridge.gate.url());
    for stream in [false, true] {
        let body = ask(2, stream).to_string();
        let flags = [("base", base.as_str()), ("body", &body)];
        for got in [node("openai-plain.mjs", &flags).await, python("openai_plain.py", &flags).await] {
            assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{stream}: {got}");
            assert!(got["text"].as_str().is_some_and(|text| text.len() > 10), "{stream}: {got}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_it_turns_away_is_served_elsewhere_and_what_it_breaks_off_is_told_so() {
    for status in [429, 500, 503] {
        let (llmock, own) = (Llmock::start().await, Backend::start(Script::default()).await);
        let bridge = bridge(&llmock, &own).await;
        llmock.next(json!({"type": "fail", "status": status})).await;
        let reply = bridge.free(&ask(1, false)).await;
        assert_eq!((reply.status, own.requests().len()), (200, 1), "{status}: {}", reply.text());
    }
    let (llmock, own) = (Llmock::start().await, Backend::start(Script::default()).await);
    let bridge = bridge(&llmock, &own).await;
    for (kind, done) in [("disconnect", false), ("stall", false), ("malformed", true)] {
        llmock.next(json!({"type": "stream_fault", "kind": kind, "after_chunks": 3})).await;
        let reply = bridge.free(&ask(1, true)).await;
        let text = reply.text();
        assert!(reply.status == 200 && reply.complete, "{kind}: {text}");
        assert_eq!((text.contains("[DONE]"), text.contains("\"server_error\"")), (done, !done), "{kind}: {text}");
    }
    assert_eq!(own.requests().len(), 0, "what has begun is not begun again");
}
