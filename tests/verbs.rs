//! What an operator types, and what comes back: exit codes, sentences, numbers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::client::chat;
use common::gate::Wait;
use common::{Backend, Chain, Gate, GateOptions, Payer, Script, payer, raw};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "openai/gpt-oss-120b";
/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

fn body() -> Value {
    chat(MODEL, "how much is this?")
}

#[test]
fn check_lists_every_mistake_of_every_file_at_once_with_its_place() {
    let broken = GateOptions::new(NOWHERE, NOWHERE)
        .conf_edit("grace_seconds = 5", "grace_second = 5")
        .conf_edit("accept_push = false", "accept_push = \"no\"")
        .rule_edit("pools.toml", "profile = \"vllm\"", "profile = \"vlmm\"")
        .rule_edit("models.toml", "input = \"0.15\"", "input = 0.15")
        .rule_edit("tiers.toml", "over_limit = \"clamp\"", "over_limit = \"squeeze\"")
        .rule_edit("tiers.toml", "charge = { flat = \"0.02\" }", "charge = { estimate = { overhead = \"1.5\" } }")
        .rule_edit("routes.toml", "tier = \"standard\"\nstream", "tier = \"premium\"\nstream")
        .rule_edit("routes.toml", "accept = [\"tempo/charge\"]", "accept = []");
    let (status, out, said) = Gate::prepare(broken).verb(&["check"]);
    assert_eq!((status.code(), out.as_str()), (Some(1), ""), "{said}");
    for (place, key) in [
        ("pontage.toml:6: ", "grace_second"),
        ("pontage.toml:23: ", "rail.tempo.accept_push"),
        ("pools.toml:2: ", "pool.gpt-oss.profile"),
        ("models.toml:5: ", "price.input"),
        ("tiers.toml:4: ", "tier.standard.over_limit"),
        ("tiers.toml:8: ", "tier.standard.charge.estimate"),
        ("routes.toml:4: ", "route[0].tier"),
        ("routes.toml:1: ", "at least one rail"),
    ] {
        let found = said.lines().any(|line| line.contains(place) && line.contains(key));
        assert!(found, "nothing about {key} at {place} in:\n{said}");
    }
    let told = said.lines().count() - 1;
    assert!(told >= 8 && said.ends_with(&format!("{told} mistakes\n")), "{said}");
}

#[test]
fn check_warns_of_a_price_that_is_never_offered_because_no_payer_may_owe_so_much() {
    let rail = "\n[rail.base]\nkind = \"x402\"\nnetwork = \"eip155:8453\"\nasset = \"usdc\"\nfacilitator = { url = \"http://127.0.0.1:1\" }\n\
                pay_to = \"0x8ba1f109551bD432803012645Ac136ddd64DBA72\"\n";
    let check = |flat: &str, stream: &str, more: &str| {
        let options = GateOptions::new(NOWHERE, NOWHERE)
            .conf_extra(&format!("{rail}{more}"))
            .rule_edit("tiers.toml", "flat = \"0.02\"", &format!("flat = \"{flat}\""))
            .rule_edit("routes.toml", "stream = \"allow\"", &format!("stream = \"{stream}\""))
            .rule_edit("routes.toml", "accept = [\"tempo/charge\"]", "accept = [\"tempo/charge\", \"base/exact\"]");
        let (status, _, said) = Gate::prepare(options).verb(&["check"]);
        assert!(status.success(), "{said}");
        said
    };
    let said = check("5.01", "allow", "");
    for word in
        ["warning: tiers.toml: tier.standard.charge.flat", "$5.01", "rail.base.payer_exposure, $5)", "base/exact"]
    {
        assert!(said.contains(word), "nothing of {word:?} in {said}");
    }
    for (flat, stream, more, why) in [
        ("5", "allow", "", "as much as he may owe"),
        ("5.01", "force", "", "streams are paid first"),
        ("5.01", "allow", "settle = \"first\"\n", "so is everything"),
        ("5.01", "allow", "payer_exposure = \"6\"\n", "he may owe more"),
    ] {
        let said = check(flat, stream, more);
        assert!(!said.contains("payer_exposure"), "{why}: {said}");
    }
}

#[test]
fn check_passes_every_shipped_set_without_any_secret() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sets = std::fs::read_dir(root.join("lua-free-rules")).unwrap().map(|entry| entry.unwrap().path());
    let mut checked = 0;
    for set in sets.filter(|path| path.is_dir()) {
        let own = root.join("conf").join(set.file_name().unwrap()).with_extension("toml");
        let confs = [own.clone(), root.join("conf/pontage.toml"), root.join("deploy/pontage.toml")];
        for conf in if own.exists() { &confs[..1] } else { &confs[1..] } {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pontage"));
            let out =
                command.env_clear().arg("check").arg("--conf").arg(conf).arg("--rules").arg(&set).output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{} with {}: {said}", set.display(), conf.display());
            assert!(String::from_utf8_lossy(&out.stdout).starts_with("ok: generation "));
            checked += 1;
        }
    }
    assert!(checked >= 3);
}

const TIERS: &str = r#"
[tier.flat]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
charge = { flat = "0.02" }

[tier.ceiling]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
max_n = 4
image_url = { flat = "0.002" }
charge = { ceiling = true }

[tier.clamp]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
charge = { estimate = { overhead = "1.5", shortfall = "clamp", min_output_tokens = 64 } }

[tier.absorb]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
charge = { estimate = { overhead = "1.5", shortfall = "absorb", loss_cap_per_call = "0.05", loss_cap_per_day = "50" } }
"#;

fn four_tiers() -> String {
    let route = |tier: &str| {
        format!("[[route]]\npath = \"/{tier}\"\nsurface = \"chat\"\ntier = \"{tier}\"\naccept = [\"tempo/charge\"]\n\n")
    };
    ["flat", "ceiling", "clamp", "absorb"].map(route).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn quote_says_in_parts_what_the_live_gate_asks() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let options =
        GateOptions::new(&chain.url(), &backend.url()).rule("tiers.toml", TIERS).rule("routes.toml", &four_tiers());
    let gate = Gate::start(options).await;
    let mut several = chat(MODEL, &"word ".repeat(300));
    several["n"] = json!(3);
    several["max_tokens"] = json!(100);
    let picture = json!([{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]);
    let pictured = json!({"model": MODEL, "max_tokens": 7, "messages": [{"role": "user", "content": picture}]});
    let mut amounts = Vec::new();
    for (path, rule, body) in [
        ("/flat", "flat", body()),
        ("/ceiling", "ceiling", body()),
        ("/ceiling", "ceiling", several),
        ("/ceiling", "ceiling", pictured),
        ("/clamp", "estimate/clamp", body()),
        ("/absorb", "estimate/absorb", chat(MODEL, &"word ".repeat(300))),
    ] {
        let text = body.to_string();
        let unpaid = raw::exchange(gate.listen, &raw::post(path, &[], text.as_bytes())).await;
        let offer = payer::offer(&unpaid.headers("www-authenticate"), "tempo", "charge");
        std::fs::write(gate.dir().join("request.json"), &text).unwrap();
        let (status, quoted, said) = gate.verb(&["quote", "--path", path, "request.json"]);
        assert!(status.success(), "{said}");
        let quoted: Value = serde_json::from_str(&quoted).unwrap();
        assert_eq!(quoted["rails"][0]["amount"].as_str(), payer::terms(&offer)["amount"].as_str(), "{quoted:#}");
        assert_eq!(quoted["rails"][0]["rail"], "tempo/charge");
        assert_eq!(quoted["parts"]["rule"], rule);
        assert_eq!(quoted["generation"], gate.generation().await.as_str());
        amounts.push(quoted["rails"][0]["amount"].as_str().unwrap().to_owned());
    }
    let different: std::collections::BTreeSet<_> = amounts.iter().collect();
    assert_eq!(different.len(), amounts.len(), "six requests, six prices: {amounts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_metrics_tell_what_is_sold_and_what_may_be_lost() {
    let backend = Backend::start(Script::default()).await;
    let settle = "settle_key = \"env:PONTAGE_SETTLE_KEY\"";
    let options = GateOptions::new(NOWHERE, &backend.url())
        .conf_edit(settle, &format!("{settle}\nsession = {{}}"))
        .rule("tiers.toml", TIERS)
        .rule("routes.toml", &four_tiers())
        .wait(Wait::Alive);
    let gate = Gate::start(options).await;
    let status = gate.status().await;
    let rails: Vec<_> =
        status["rails"].as_array().unwrap().iter().map(|r| (r["rail"].clone(), r["sold"].clone())).collect();
    assert_eq!(rails, [(json!("tempo/charge"), json!(true)), (json!("tempo/session"), json!(false))]);
    assert!(
        status["rails"].as_array().unwrap().iter().all(|r| r["why_not"].is_string()),
        "its chain is away: {status}"
    );
    let cap = json!([{
        "tier": "absorb", "lost_today_usd": "0", "loss_cap_per_day": "50", "loss_cap_per_call": "0.05", "capped": false
    }]);
    assert_eq!(status["absorbing_tiers"], cap);
    let metrics = gate.metrics().await;
    assert!(metrics.contains("pontage_rail_up{rail=\"tempo/charge\"} 0"), "{metrics}");
    assert!(
        !metrics.contains("pontage_rail_up{rail=\"tempo/session\"}"),
        "no route accepts it, so nobody is woken for it"
    );
    let (code, why) = gate.admin_get("/readyz").await.unwrap();
    assert!(code == 503 && why.contains("no rail can be offered (tempo/charge: "), "{why}");
    let free = four_tiers().replace("accept = [\"tempo/charge\"]", "access = \"free\"");
    gate.write_rules("routes.toml", &free);
    let ready = async || gate.admin_get("/readyz").await.is_some_and(|(code, _)| code == 200);
    assert!(common::eventually(std::time::Duration::from_secs(20), ready).await, "nothing is paid any more");
    assert!(!gate.metrics().await.contains("pontage_rail_up{"), "and no rail is sold");
}

#[test]
fn quote_reads_standard_input_and_refuses_as_the_gate_would() {
    let gate = Gate::prepare(GateOptions::new(NOWHERE, NOWHERE));
    let quote = |path: &str, text: &str| {
        let mut command = gate.command();
        command.args(["quote", "--conf", "conf/pontage.toml", "--rules", "lua-free-rules", "--path", path, "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A path that is not there is refused whatever is asked, and nobody reads it then.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes());
        let out = child.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, out, said) = quote(CHAT, &body().to_string());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["rails"][0]["amount"], "20000");
    for (path, text, want) in [
        ("/v1/other", body().to_string(), "unknown_path"),
        ("/v1/models", body().to_string(), "/v1/models lists models: it takes no body, and costs nothing"),
        (CHAT, "{".into(), "invalid_json"),
        (CHAT, chat("gpt-oss-120b", "the backend's name").to_string(), "model_not_found"),
    ] {
        let (code, out, said) = quote(path, &text);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{said}");
        assert!(said.starts_with(want), "{said}");
    }
    let (status, _, said) = gate.verb(&["quote", "--path", CHAT, "missing.json"]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("missing.json"), "{said}");
}

#[test]
fn quote_says_what_is_signed_where_what_was_used_is_taken() {
    for (ceiling, want, why) in [
        ("1.00", Some("1243"), "what it can cost is less: 0.15 and 0.60 a million, so many tokens"),
        ("0.0005", Some("500"), "the rail lets nobody sign more"),
        ("0.000001", None, "that buys no word"),
    ] {
        let rail = format!(
            "accept_push = false\n\n[rail.base]\nkind = \"x402\"\nnetwork = \"eip155:84532\"\nasset = \"usdc\"\n\
             pay_to = \"0x8ba1f109551bD432803012645Ac136ddd64DBA72\"\nfacilitator = {{ url = \"http://127.0.0.1:9\" }}\nceiling = \"{ceiling}\"\n"
        );
        let options = GateOptions::new(NOWHERE, NOWHERE).conf_edit("accept_push = false", &rail).rule_edit(
            "routes.toml",
            "accept = [\"tempo/charge\"]",
            "accept = [\"base/upto\"]",
        );
        let gate = Gate::prepare(options);
        std::fs::write(gate.dir().join("request.json"), body().to_string()).unwrap();
        let (status, quoted, said) = gate.verb(&["quote", "--path", CHAT, "request.json"]);
        assert!(status.success(), "{said}");
        let quoted: Value = serde_json::from_str(&quoted).unwrap();
        let told = &quoted["rails"][0];
        assert_eq!(told["rail"], "base/upto");
        assert_eq!(told["ceiling"].as_str(), want, "{why}: {told}");
        assert_eq!(told["not_offered"].is_string(), want.is_none(), "{why}: {told}");
        let (status, table, said) = gate.verb(&["quote", "--table", "--path", CHAT, "request.json"]);
        assert!(status.success() && table.contains("base/upto") && !table.contains("null"), "{table}{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_receipt_is_verified_with_the_key_from_the_status_page_and_the_books_agree() {
    let chain = Chain::start().await;
    let backend = Backend::start(Script::default()).await;
    let mut gate = Gate::start(GateOptions::new(&chain.url(), &backend.url())).await;
    let payer = Payer::fresh(&chain, 1_000_000).await;
    let mut body = body();
    body["stream"] = json!(true);
    let body = body.to_string();
    let offer = payer.pay(&raw::exchange(gate.listen, &raw::post(CHAT, &[], body.as_bytes())).await).await;
    let paid = raw::exchange(gate.listen, &raw::post(CHAT, &[("authorization", &offer)], body.as_bytes())).await;
    let text = paid.text();
    let sealed = text.lines().find_map(|line| line.strip_prefix(": pontage-receipt ")).expect("a sealed receipt");
    let key = gate.status().await["receipt_key"].as_str().unwrap().to_owned();

    let (status, shown, said) = gate.verb(&["receipt", "verify", "--key", &key, sealed]);
    assert!(status.success(), "{said}");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["charged"]["usd"], "0.02");
    assert_eq!(shown["complete"], true);
    assert_eq!(shown["usage"]["completion_tokens"], 12);
    let mut changed = payer::unpack(sealed);
    changed["charged"]["usd"] = json!("0.01");
    let changed = mpp::base64url_encode(changed.to_string().as_bytes());
    let other = "0".repeat(64);
    for (key, sealed, why) in [
        (key.as_str(), changed.as_str(), "a changed receipt"),
        (&other, sealed, "another key"),
        ("short", sealed, "no key"),
        (&key, "rubbish", "no receipt"),
    ] {
        let (status, out, said) = gate.verb(&["receipt", "verify", "--key", key, sealed]);
        assert_eq!((status.code(), out.as_str()), (Some(1), ""), "{why}: {said}");
    }

    let audit = ["audit", "--store", "var/pontage.redb"];
    let (status, _, said) = gate.verb(&audit);
    assert_eq!(status.code(), Some(2), "a running gate has its store to itself: {said}");
    assert!(said.contains("cannot audit the store"), "{said}");
    gate.stop().await;
    let (status, books, said) = gate.verb(&audit);
    assert!(status.success(), "{said}");
    assert!(books.contains("$0.02 = 20000 atoms of 6 decimals, 1 receipts"), "{books}");
    assert!(books.ends_with("result    sound\n"), "{books}");
    let (status, _, said) = gate.verb(&["audit", "--store", "var/elsewhere.redb"]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(!gate.dir().join("var/elsewhere.redb").exists(), "an audit makes nothing");
}

#[test]
fn what_is_not_a_verb_or_a_flag_is_refused_with_the_usage() {
    let gate = Gate::prepare(GateOptions::new(NOWHERE, NOWHERE));
    for args in [
        &["sevre"][..],
        &["check", "--rulez", "x"],
        &["audit", "now"],
        &["quote", "request.json"],
        &["receipt", "verify", "x"],
        &[],
    ] {
        let out = gate.command().args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("Usage: pontage") && out.stdout.is_empty(), "{args:?}: {said}");
    }
    for args in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        let out = gate.command().args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(!out.stdout.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_secret_is_named_at_once_and_none_is_shown() {
    let names = ["PONTAGE_CHALLENGE_KEY", "PONTAGE_RECEIPT_KEY", "TEMPO_RPC_URL", "UPSTREAM_KEY"];
    let options = names.iter().fold(GateOptions::new(NOWHERE, NOWHERE), |options, name| options.env(name, ""));
    let said = Gate::try_start(options).await.err().expect("it has no secrets");
    for name in names {
        assert!(said.contains(name), "{name} is not named: {said}");
    }
    assert!(said.contains("exit status: 1") && said.contains("4 mistakes"), "{said}");

    let short = GateOptions::new(NOWHERE, NOWHERE)
        .env("PONTAGE_CHALLENGE_KEY", "canary-short-challenge")
        .env("PONTAGE_RECEIPT_KEY", "canary-not-a-seed-but-a-sentence");
    let said = Gate::try_start(short).await.err().expect("its secrets are no good");
    assert!(said.contains("secrets.challenge_keys") && said.contains("secrets.receipt_key"), "{said}");
    assert!(!said.contains("canary"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_would_pay_nobody_or_could_not_settle_does_not_start() {
    let settle = "settle_key = \"env:PONTAGE_SETTLE_KEY\"";
    let mut options = GateOptions::new(NOWHERE, NOWHERE).conf_edit(settle, &format!("{settle}\nsession = {{}}"));
    options.recipient = "0x000000000000000000000000000000000000dEaD".into();
    for (key, why) in [("", "PONTAGE_SETTLE_KEY is not set"), ("canary-no-key", "not 64 hex digits")] {
        let said =
            Gate::try_start(options.clone().env("PONTAGE_SETTLE_KEY", key)).await.err().expect("it must not start");
        assert!(said.contains("rail.tempo.recipient: is the sample's placeholder"), "{said}");
        assert!(
            said.contains("rail.tempo.settle_key: ") && said.contains(why) && said.contains("2 mistakes"),
            "{said}"
        );
        assert!(!said.contains("canary"), "{said}");
    }
    let (status, _, said) = Gate::prepare(options).verb(&["check"]);
    assert!(
        status.success() && said.starts_with("warning: rail.tempo.recipient is the sample's placeholder"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_files_addresses_and_keys_is_said_before_anything_is_opened() {
    let redis = "kind = \"redis\"\nurl = \"env:REDIS_URL\"";
    let options = GateOptions::new("ws://canary.example", NOWHERE)
        .conf_edit("grace_seconds = 5", "grace_seconds = 5\ntls = { cert = \"no-cert.pem\", key = \"no-key.pem\" }")
        .conf_edit("kind = \"embedded\"", redis)
        .conf_edit("accept_push = false", "sponsor = { relay = \"env:RELAY\" }")
        .env("REDIS_URL", "http://canary")
        .env("RELAY", "canary");
    let certificate = "listen.tls.cert: no-cert.pem cannot be read";
    let said = Gate::try_start(options.clone()).await.err().expect("it must not start");
    for want in
        [certificate, "store.url: is no redis:// or rediss:// URL", "rail.tempo.rpc: ", "rail.tempo.sponsor: relay: "]
    {
        assert!(said.contains(want), "nothing of {want:?}: {said}");
    }
    assert!(said.contains("4 mistakes") && !said.contains("canary"), "{said}");
    let gate = Gate::prepare(options);
    let (status, _, said) = gate.verb(&["check"]);
    assert!(!status.success() && said.contains(certificate) && said.ends_with("1 mistake\n"), "{said}");
    assert!(!gate.dir().join("var/pontage.redb").exists(), "nothing was opened");
}

#[test]
fn a_file_or_directory_that_is_not_there_is_the_only_mistake() {
    let gate = Gate::prepare(GateOptions::new(NOWHERE, NOWHERE));
    for (conf, rules, want) in [
        ("conf/other.toml", "lua-free-rules", "conf/other.toml: cannot be read: "),
        ("conf/pontage.toml", "lua-free-rulez", "lua-free-rulez: is no directory of rules: "),
    ] {
        let out = gate.command().args(["check", "--conf", conf, "--rules", rules]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.starts_with(want) && said.ends_with("\n1 mistake\n"), "{said}");
    }
}

#[cfg(not(feature = "local-facilitator"))]
#[test]
fn a_facilitator_that_this_build_lacks_does_not_pass_the_check() {
    let rail = "accept_push = false\n\n[rail.base]\nkind = \"x402\"\nnetwork = \"eip155:84532\"\nasset = \"usdc\"\n\
                pay_to = \"0x8ba1f109551bD432803012645Ac136ddd64DBA72\"\nfacilitator = { local = { rpc = \"env:R\", key = \"env:K\" } }\n";
    let gate = Gate::prepare(GateOptions::new(NOWHERE, NOWHERE).conf_edit("accept_push = false", rail));
    let (status, _, said) = gate.verb(&["check"]);
    assert!(!status.success() && said.starts_with("rail.base.facilitator: `local` is not in this build"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payee_is_remembered_as_meant_only_by_a_gate_that_runs() {
    let mut gate = Gate::start(GateOptions::new(NOWHERE, NOWHERE).wait(Wait::Alive)).await;
    gate.stop().await;
    let conf = gate.conf();
    let changed = conf.replace(common::DEV[1].address, common::DEV[8].address);
    assert_ne!(changed, conf);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = changed.replace(&gate.listen.to_string(), &taken.local_addr().unwrap().to_string());
    gate.write_conf(&busy);
    let why = gate.restart_with(&["--accept-payee-change"]).await.expect_err("its address is taken");
    assert!(why.contains("cannot listen"), "{why}");
    gate.write_conf(&changed);
    let why = gate.restart_with(&[]).await.expect_err("nobody said that again");
    assert!(why.contains("--accept-payee-change"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vocabulary_is_loaded_by_the_first_prompt_that_needs_it_and_by_nothing_else() {
    let backend = Backend::start(Script::default()).await;
    let options = GateOptions::new(NOWHERE, &backend.url())
        .rule("tiers.toml", TIERS)
        .rule("routes.toml", &four_tiers())
        .wait(Wait::Alive);
    let gate = Gate::start(options).await;
    let loaded = async || gate.status().await["vocabularies_loaded"].clone();
    assert_eq!(loaded().await, json!([]), "a model that names one is not enough");
    let ask = async |path: &str| {
        raw::exchange(gate.listen, &raw::post(path, &[], body().to_string().as_bytes())).await.status
    };
    assert_eq!((ask("/flat").await, loaded().await), (503, json!([])), "a flat price counts nothing");
    assert_eq!((ask("/ceiling").await, loaded().await), (503, json!(["o200k"])));
}
