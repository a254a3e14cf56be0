//! Paying by the token with real wallets, unmodified: they open, stream, raise vouchers, top up, close, and what the chain pays out at
//! the end is what the backend reported times the price, to the atom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::channels::{self, INPUT, OUTPUT, SessionBed};
use common::reserve::Event;
use common::session::CrateSession;
use common::{GateOptions, Reply, Wallet, client};
use serde_json::{Value, json};
use std::time::Duration;

const MODEL: &str = "openai/gpt-oss-120b";

struct Scene {
    bed: SessionBed,
    payer: Wallet,
}

/// Answers have `tokens` words; 60 of them come in a second.
async fn scene(tokens: u64) -> Scene {
    scene_with(tokens, channels::patient).await
}

async fn scene_with(tokens: u64, options: impl FnOnce(GateOptions) -> GateOptions) -> Scene {
    let bed = SessionBed::with(options).await;
    bed.backend.tune(|script| {
        script.tokens = tokens;
        script.per_token = Duration::from_millis(16);
    });
    let payer = bed.wallet().await;
    Scene { bed, payer }
}

impl Scene {
    async fn node(&self, script: &str, more: &[(&str, &str)]) -> Value {
        let (rpc, key) = (self.bed.reserve.url(), self.payer.secret());
        let (url, base) = (self.bed.gate.chat_url(), self.bed.gate.base());
        let mut flags =
            vec![("url", url.as_str()), ("base", base.as_str()), ("rpc", &rpc), ("key", &key), ("model", MODEL)];
        flags.push(("max_tokens", "400"));
        flags.extend(more);
        client::node(script, &flags).await
    }

    /// What the backend reported, at the price, each request rounded up.
    fn due(&self) -> u128 {
        let (prompt, completion) = self.bed.backend.usage_reported();
        u128::from(prompt) * INPUT + u128::from(completion) * OUTPUT
    }

    /// The channel is closed at exactly what was used, and the rest went back.
    async fn settled(&self, channel: &Value) {
        let id = channel.as_str().expect("a channel").parse().unwrap();
        let events = self.bed.reserve.events(&id).await;
        let due = self.due();
        assert!(due > 0);
        assert!(matches!(events.last(), Some(Event::Closed { settled, .. }) if *settled == due), "{due}: {events:?}");
        assert_eq!(self.bed.reserve.locked().await, 0, "the rest went back");
    }

    /// Nothing but requests for content has reached the backend.
    fn served(&self, requests: usize) {
        assert_eq!(self.bed.served(), requests, "management stays at the gate");
    }
}

/// Every one of these tokens, at the end of its delta.
fn has_all(text: &str, tokens: u64) -> bool {
    (0..tokens).all(|n| text.contains(&format!("tok{n}\"")) || text.contains(&format!("tok{n}\\\"")))
}

fn management(out: &Value) -> String {
    out["management"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_opens_with_json_streams_on_vouchers_and_closes() {
    let s = scene(150).await;
    let out = s.node("session.mjs", &[("steps", "json,sse,sse,json,close")]).await;
    assert_eq!(out["ok"], true, "{out:#}");
    assert!(management(&out).contains("POST close 204"), "{}", management(&out));
    s.served(4);
    for step in [1, 2] {
        let text: String = out["steps"][step]["messages"].to_string();
        assert!(has_all(&text, 150), "every token came: {text}");
    }
    s.settled(&out["channel"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_opens_with_a_stream_and_raises_vouchers_while_it_runs() {
    for (flags, verb) in [(&[][..], "POST voucher 204"), (&[("head", "true")], "HEAD voucher 204")] {
        let s = scene(150).await;
        let out = s.node("session.mjs", &[&[("steps", "sse,close")], flags].concat()).await;
        assert_eq!(out["ok"], true, "{out:#}");
        let said = management(&out);
        assert!(said.contains(verb), "{said}");
        let raw = out["calls"].to_string();
        assert!(raw.contains("after_done"), "the receipt comes after [DONE]: {raw}");
        assert!(has_all(&out["steps"][0]["messages"].to_string(), 150), "{out:#}");
        assert_eq!(out["steps"][0]["receipt"]["spent"], s.due().to_string());
        s.served(1);
        s.settled(&out["channel"]).await;
    }
}

/// It would forget the channel that it opened, and lock a second deposit, if the failed answer said nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_keeps_the_channel_that_it_opened_with_a_call_that_failed() {
    let s = scene(20).await;
    s.bed.backend.next(Reply::error(400, "invalid_request_error", "bad", "no"));
    let out = s.node("session.mjs", &[("steps", "fails,json,sse,close")]).await;
    assert_eq!((out["ok"].clone(), out["steps"][0]["status"].clone()), (json!(true), json!(400)), "{out:#}");
    let opened = out["calls"].as_array().unwrap().iter().filter(|call| call["action"] == "open").count();
    assert_eq!(opened, 1, "{out:#}");
    s.settled(&out["channel"]).await;
}

/// What a call may cost is far more than what it costs: a wallet that raised its word by that each time would have signed its deposit away.
#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_signs_little_more_than_it_spends_however_often_it_calls() {
    let s = scene(5).await;
    // No faster than a channel takes vouchers.
    let steps = "json,wait=150,".repeat(24) + "close";
    let out = s.node("session.mjs", &[("steps", &steps), ("max_tokens", "2048"), ("deposit", "0.1")]).await;
    assert_eq!(out["ok"], true, "{out:#}");
    assert!(!management(&out).contains("topUp"), "{}", management(&out));
    let signed: u128 = out["steps"][46]["cumulative"].as_str().unwrap().parse().unwrap();
    // What it spent, and what the last call might have cost.
    assert!(signed <= s.due() + 50_000, "{signed} signed, {} spent", s.due());
    s.settled(&out["channel"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_is_told_enough_where_a_voucher_must_raise_the_last_by_more_than_a_request_costs() {
    // A call costs some 3,000 atoms, and is offered at 8,000 or less.
    let s = scene_with(150, |o| channels::patient(o).conf_extra("min_voucher_delta = \"0.02\"\n")).await;
    let out = s.node("session.mjs", &[("steps", "json,sse,json,sse,sse,close")]).await;
    assert_eq!(out["ok"], true, "{out:#}");
    for step in [1, 3, 4] {
        assert!(has_all(&out["steps"][step]["messages"].to_string(), 150), "{out:#}");
    }
    s.served(5);
    s.settled(&out["channel"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_tops_up_before_and_while_a_stream_runs() {
    let s = scene(300).await;
    let out = s.node("session.mjs", &[("steps", "sse,topup=0.01,sse,close"), ("deposit", "0.5")]).await;
    assert_eq!(out["ok"], true, "{out:#}");
    assert!(management(&out).contains("POST topUp 204"), "{}", management(&out));
    s.settled(&out["channel"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_at_its_cap_is_cut_off_and_charged_what_came() {
    let s = scene(400).await;
    // The wallet signs at most 0.003 USD: some 150 words.
    let out = s.node("session.mjs", &[("steps", "sse,close"), ("deposit", "0.003")]).await;
    let step = &out["steps"][0];
    assert_eq!(step["ok"], false, "{out:#}");
    let said = |word| s.bed.gate.log().contains(word);
    let told = common::eventually(Duration::from_secs(20), || async { said("\"unpaid\"") || said("client_gone") });
    assert!(told.await, "{}", s.bed.gate.log());
    let receipts = common::eventually(Duration::from_secs(20), || async {
        s.bed.gate.metric("pontage_inflight", &[("kind", "streams")]).await == 0.0
    });
    assert!(receipts.await, "the stream has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_openai_pays_by_the_token_without_knowing() {
    let s = scene(150).await;
    let out = s.node("openai-mppx-session.mjs", &[("calls", "2")]).await;
    assert_eq!(out["ok"], true, "{out:#}");
    let out = s.node("openai-mppx-session.mjs", &[("stream", "true")]).await;
    assert_eq!(out["ok"], true, "{out:#}");
    let text = out["answers"][0]["text"].to_string();
    assert!(text.contains("tok0") && text.contains("tok149"), "{out:#}");
    assert!(management(&out).contains("voucher 204"), "{}", management(&out));
    s.served(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_asks_streams_and_closes() {
    let s = scene(150).await;
    let session = CrateSession::new(&s.payer, &s.bed.reserve.url(), &s.bed.gate.chat_url(), 100_000);
    let mut body = client::chat(MODEL, "one two three");
    body["max_tokens"] = json!(20);
    let answer = session.ask(&body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let channel = session.channel().expect("a channel");
    (body["stream"], body["max_tokens"]) = (json!(true), json!(400));
    let answer = session.ask(&body).await;
    let missing: Vec<u64> = (0..150).filter(|n| !answer.raw.contains(&format!("tok{n}\""))).collect();
    let end = answer.raw.get(answer.raw.len().saturating_sub(900)..).unwrap_or_default();
    assert!(
        answer.status == 200 && missing.is_empty(),
        "{missing:?} of {}: … {end}, asked {:?}",
        answer.status,
        answer.asked
    );
    assert!(!answer.asked.is_empty(), "{answer:?}");
    session.close().await.expect("a receipt");
    s.settled(&json!(channel)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_opens_with_json_streams_and_closes() {
    let s = scene(150).await;
    let home = tempfile::tempdir().unwrap();
    let cli = |args: Vec<String>| {
        let (key, rpc, home) = (s.payer.secret(), s.bed.reserve.url(), home.path().to_owned());
        async move {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let out = client::mppx_cli_at(&home, &args, &key, &rpc).await;
            let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success(), "{args:?}: {text}");
            text
        }
    };
    let ask = |stream: bool| {
        let body = json!({"model": MODEL, "stream": stream, "max_tokens": 400, "messages": [{"role": "user", "content": "one two three"}]});
        vec![s.bed.gate.chat_url(), "-J".into(), body.to_string(), "-M".into(), "deposit=0.1".into(), "-f".into()]
    };
    cli(ask(false)).await;
    let streamed = cli(ask(true)).await;
    assert!(streamed.contains("tok149"), "{streamed}");
    let list = cli(vec!["sessions".into(), "list".into()]).await;
    let id = list
        .split_whitespace()
        .find(|word| word.len() == 66 && word.starts_with("0x"))
        .unwrap_or_else(|| panic!("{list}"));
    cli(vec!["sessions".into(), "close".into(), id.into(), "-r".into(), s.bed.reserve.url()]).await;
    s.settled(&json!(id)).await;
}
