//! One 402 for everybody: clients of MPP, of x402 v2 and of x402 v1 each find what they can pay in the same answer, and what they
//! pay reaches the facilitator as they wrote it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use base64::Engine as _;
use common::channels::CHAT;
use common::client::{chat, node, python};
use common::facilitator::{SETTLE, VERIFY};
use common::x402::stall::{chat_at, node as node_of, rail, server};
use common::x402::{Client, Stall, decode, encode};
use common::{EvmBed, Facilitator, GateOptions, RawReply, Scripted, SessionBed, eventually, payer, raw};
use serde_json::{Value, json};
use std::time::Duration;

/// What the flat tier takes, in atoms.
const FLAT: u128 = 20_000;

fn ask() -> Value {
    chat("openai/gpt-oss-120b", "one two three")
}

fn required(reply: &RawReply) -> Value {
    decode(reply.header("payment-required").unwrap_or_else(|| panic!("no offers: {}", reply.text())))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_402_carries_every_rail_and_each_client_finds_its_own() {
    let evm = EvmBed::start().await;
    let facilitator = Facilitator::ts(&evm).await;
    let (name, url) = node_of(&evm);
    let mut bed = SessionBed::with(|options| {
        options
            .conf_extra(&rail("base", &evm, &facilitator.url(), ""))
            .env(&name, &url)
            .rule_edit(
                "routes.toml",
                "accept = [\"tempo/session\"]\nreceipt",
                "accept = [\"tempo/charge\", \"tempo/session\", \"base/exact\", \"base/upto\"]\nreceipt",
            )
            .rule_edit("tiers.toml", "max_output_tokens = 2048", "max_output_tokens = 256")
    })
    .await;

    let unpaid = bed.post(CHAT, &[], ask().to_string().as_bytes()).await;
    assert_eq!(unpaid.status, 402, "{}", unpaid.text());
    for intent in ["charge", "session"] {
        payer::offer(&unpaid.headers("www-authenticate"), "tempo", intent);
    }
    let v2 = required(&unpaid);
    let schemes: Vec<_> = v2["accepts"].as_array().unwrap().iter().map(|offer| offer["scheme"].clone()).collect();
    assert_eq!((&v2["x402Version"], schemes), (&json!(2), vec![json!("exact"), json!("upto")]), "{v2}");
    let body = unpaid.json();
    assert_eq!(body["x402Version"], 1, "{body}");
    let v1: Vec<_> = body["accepts"].as_array().unwrap().iter().map(|offer| &offer["scheme"]).collect();
    assert_eq!(v1, ["exact"], "v1 knows no other scheme: {body}");
    assert!(body["type"].is_string() && body["challengeId"].is_string(), "a problem of MPP: {body}");
    assert!(body["error"]["message"].is_string() && body["error"]["code"].is_string(), "an error of OpenAI: {body}");

    // Who cannot pay is told so by his own SDK.
    let base = bed.gate.base();
    for got in [node("openai-plain.mjs", &[("base", &base)]).await, python("openai_plain.py", &[("base", &base)]).await]
    {
        let error = &got["error"];
        assert_eq!(
            (&error["status"], &error["code"], &got["calls"]),
            (&json!(402), &json!("payment_required"), &json!(1)),
            "{got}"
        );
    }

    // (rail, atoms taken)
    let mut taken: Vec<(&str, u128)> = Vec::new();
    let wallet = bed.wallet().await;
    let (rpc, key, url) = (bed.reserve.url(), wallet.secret(), bed.gate.chat_url());
    let tempo = [("url", url.as_str()), ("rpc", &rpc), ("key", &key)];
    let charge = node("mppx.mjs", &tempo).await;
    assert_eq!((&charge["status"], &charge["payments"][0]["intent"]), (&json!(200), &json!("charge")), "{charge:#}");
    assert_eq!(charge["receipt"]["status"], "success", "{charge:#}");
    taken.push(("tempo/charge", FLAT));

    let charge = python("pympp_charge.py", &tempo).await;
    assert_eq!((&charge["status"], charge["payments"].as_array().map(Vec::len)), (&json!(200), Some(1)), "{charge:#}");
    taken.push(("tempo/charge", FLAT));

    let session = node("session.mjs", &[&tempo[..], &[("steps", "json,sse,close")]].concat()).await;
    assert_eq!(session["ok"], true, "{session:#}");
    let spent = session["steps"][2]["receipt"]["spent"].as_str();
    let spent: u128 = spent.unwrap_or_else(|| panic!("{session:#}")).parse().unwrap();
    taken.push(("tempo/session", spent));

    for (client, flags, rail, atoms, version) in [
        (Client::Fetch, &[][..], "base/exact", FLAT, 2),
        (Client::Fetch, &[("stream", "true")][..], "base/exact", FLAT, 2),
        (Client::Fetch, &[("scheme", "upto")][..], "base/upto", 3 * 10 + 12 * 20, 2),
        (Client::Httpx, &[][..], "base/exact", FLAT, 2),
        (Client::Legacy, &[][..], "base/exact", FLAT, 1),
    ] {
        let buyer = evm.buyer(1_000_000).await;
        let before = evm.usdc(evm.payee()).await;
        let got = client.pay(&evm, &buyer, &bed.gate.url(), flags).await;
        let said = format!("{client:?} {flags:?}: {got:#}");
        assert_eq!(got["status"], 200, "{said}");
        let payment = got.get("payments").map_or(&got["calls"][1]["payment"], |payments| &payments[0]);
        assert_eq!(payment["x402Version"], version, "{said}");
        assert_eq!(evm.usdc(evm.payee()).await - before, atoms, "{said}");
        taken.push((rail, atoms));
    }

    for rail in ["tempo/charge", "tempo/session", "base/exact", "base/upto"] {
        let atoms: u128 = taken.iter().filter(|(of, _)| *of == rail).map(|(_, atoms)| atoms).sum();
        let usd = bed.gate.metric("pontage_charged_usd_total", &[("rail", rail)]).await;
        assert_eq!((usd * 1e6).round(), atoms as f64, "{rail}");
    }
    bed.gate.stop().await;
    let books = common::ledger::books(&bed.gate);
    assert_eq!(books.charged, taken.iter().map(|(_, atoms)| atoms).sum(), "{books:?} {taken:?}");
    assert!(books.owed.is_empty(), "{books:?}");
}

/// Four mainnets on one path and both schemes wherever there are two, beside the paths of a [`Stall`]; read by pages of one origin.
fn everywhere(facilitator: &str, payee: &str, mut options: GateOptions) -> GateOptions {
    let mut conf = options.conf.take().unwrap().replace("[secrets]", &format!("{CORS}\n[secrets]"));
    let solana = "2wKupLR9q6wXYppw8Gr2NvWxKBUqm4PPJKkQfoxHDBg4";
    for (name, network, pay_to) in [
        ("mainnet", NETWORKS[0], payee),
        ("polygon", NETWORKS[1], payee),
        ("arbitrum", NETWORKS[2], payee),
        ("solana", NETWORKS[3], solana),
    ] {
        conf.push_str(&format!(
            "\n[rail.{name}]\nkind = \"x402\"\nnetwork = \"{network}\"\nasset = \"usdc\"\npay_to = \"{pay_to}\"\nfacilitator = {{ url = \"{facilitator}\" }}\n"
        ));
    }
    options.conf = Some(conf);
    let tiers = options.rules["tiers.toml"].clone() + TIER;
    let routes = options.rules["routes.toml"].clone() + ROUTE;
    options.rule("routes.toml", &routes).rule("tiers.toml", &tiers)
}

const NETWORKS: [&str; 4] = ["eip155:8453", "eip155:137", "eip155:42161", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"];
const PAGE: &str = "https://shop.example";
const CORS: &str = "cors = { origins = [\"https://shop.example\"] }";
const TIER: &str = r#"
[tier.both]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 256
charge = { flat = "0.02" }
"#;
const ROUTE: &str = r#"
[[route]]
path = "/all/v1/chat/completions"
surface = "chat"
tier = "both"
accept = ["mainnet/exact", "mainnet/upto", "polygon/exact", "polygon/upto", "arbitrum/exact", "arbitrum/upto", "solana/exact"]
"#;
const ALL: &str = "/all/v1/chat/completions";

/// A [`Stall`] of [`everywhere`], whose facilitator says yes to everything.
async fn stall_everywhere() -> (Stall, Scripted) {
    let evm = EvmBed::start().await;
    let facilitator = Scripted::start(&[&NETWORKS[..], &["eip155:84532"]].concat()).await;
    let (url, payee) = (facilitator.url(), evm.payee());
    let stall = Stall::with(evm, &url, |options| everywhere(&url, payee, options)).await;
    (stall, facilitator)
}

#[tokio::test(flavor = "multi_thread")]
async fn four_networks_and_both_schemes_fit_in_one_header() {
    let (stall, _facilitator) = stall_everywhere().await;
    let unpaid = stall.post(ALL, &[], &ask()).await;
    assert_eq!(unpaid.status, 402, "{}", unpaid.text());
    let written = unpaid.header("payment-required").unwrap().len();
    assert!(written < 6_000, "PAYMENT-REQUIRED is {written} bytes");
    let head: usize = unpaid.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    assert!(head < 8_192, "some proxies cut a head at 8 KiB: {head}");
    let offers = required(&unpaid)["accepts"].as_array().unwrap().clone();
    let said = |offers: &[Value]| -> Vec<(String, String)> {
        let text = |offer: &Value, key: &str| offer[key].as_str().unwrap().to_owned();
        offers.iter().map(|offer| (text(offer, "network"), text(offer, "scheme"))).collect()
    };
    let mut all: Vec<(String, String)> = Vec::new();
    for network in NETWORKS {
        all.push((network.into(), "exact".into()));
        if network.starts_with("eip155") {
            all.push((network.into(), "upto".into()));
        }
    }
    assert_eq!(said(&offers), all, "in the order of the route");
    // v1: `exact`, on the networks that it has names for.
    let v1 = said(unpaid.json()["accepts"].as_array().unwrap());
    let named = |names: &[&str]| -> Vec<_> { names.iter().map(|n| ((*n).to_owned(), "exact".to_owned())).collect() };
    assert_eq!(v1, named(&["base", "polygon", "solana"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_wallet_adds_to_its_payment_reaches_the_facilitator() {
    let (stall, facilitator) = stall_everywhere().await;
    let path = chat_at(server::EXACT);
    let unpaid = stall.post(&path, &[], &ask()).await;
    let offer = required(&unpaid)["accepts"][0].clone();
    let v1_offer = unpaid.json()["accepts"][0].clone();
    for (version, header, offer) in [(2, "payment-signature", offer), (1, "x-payment", v1_offer)] {
        let buyer = stall.chain.buyer(FLAT).await;
        let mut terms = offer.clone();
        if version == 1 {
            terms["amount"] = offer["maxAmountRequired"].clone();
        }
        let mut payment = stall.chain.authorize(&buyer, &terms, |_| ());
        if version == 1 {
            payment =
                json!({"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payment["payload"]});
        }
        payment["mystery"] = json!({"list": [1, "two", null, {"three": 3.50}], "big": 18_446_744_073_709_551_615_u64});
        payment["payload"]["hint"] = json!("not in any specification");
        payment["payload"]["authorization"]["memo"] = json!("é \u{1F4B8} \"quoted\"");
        // A number that no reader of floats gives back as it was.
        let written = payment.to_string().replace("3.5}", "3.50000000000000000001}");
        assert!(written.contains("3.50000000000000000001"), "{written}");
        let header_value = base64::engine::general_purpose::STANDARD.encode(&written);
        let paid = stall.post(&path, &[(header, &header_value)], &ask()).await;
        assert_eq!(paid.status, 200, "v{version}: {}", paid.text());
        for call in [VERIFY, SETTLE] {
            let told = facilitator.last(call);
            let body = String::from_utf8(told.body.clone()).unwrap();
            assert!(body.contains(&format!("\"paymentPayload\":{written}")), "v{version} {call}: {body}\n{written}");
            let mut told = told.json();
            if version == 1 {
                // Words for people, which nobody signs.
                told["paymentRequirements"]["description"] = offer["description"].clone();
            }
            assert_eq!(told["paymentRequirements"], offer, "v{version} {call}");
            assert_eq!(told["x402Version"], version, "{call}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_configured_origin_may_pay_and_read_what_they_paid() {
    let (stall, _facilitator) = stall_everywhere().await;
    let path = chat_at(server::EXACT);
    let words = |reply: &RawReply, name: &str| -> Vec<String> {
        let list = reply.headers(name).join(",").to_ascii_lowercase();
        list.split(',').map(|word| word.trim().to_owned()).collect()
    };
    for (origin, may) in [(PAGE, true), ("https://shop.example.evil.example", false)] {
        let preflight = format!(
            "OPTIONS {path} HTTP/1.1\r\nhost: gate\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: content-type,payment-signature\r\n\r\n"
        );
        let preflight = raw::exchange(stall.gate.listen, preflight.as_bytes()).await;
        assert_eq!(preflight.status, if may { 204 } else { 405 }, "{origin}");
        let unpaid = stall.post(&path, &[("origin", origin)], &ask()).await;
        let offer = required(&unpaid)["accepts"][0].clone();
        let buyer = stall.chain.buyer(FLAT).await;
        let payment = encode(&stall.chain.authorize(&buyer, &offer, |_| ()));
        let paid = stall.post(&path, &[("origin", origin), ("payment-signature", &payment)], &ask()).await;
        assert_eq!(paid.status, 200, "{}", paid.text());
        let id = paid.header("pontage-receipt-id").unwrap();
        let request = format!("GET /receipts/{id} HTTP/1.1\r\nhost: gate\r\norigin: {origin}\r\n\r\n");
        let receipt = raw::exchange(stall.gate.listen, request.as_bytes()).await;
        assert_eq!(receipt.status, 200, "{}", receipt.text());
        for (reply, what) in [(&preflight, "preflight"), (&unpaid, "402"), (&paid, "answer"), (&receipt, "receipt")] {
            assert_eq!(reply.header("access-control-allow-origin"), may.then_some(PAGE), "{what} to {origin}");
        }
        if !may {
            for reply in [&preflight, &unpaid, &paid, &receipt] {
                assert!(!reply.headers.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with("access-control")));
            }
            continue;
        }
        for name in [
            "authorization",
            "payment-authorization",
            "accept-payment",
            "payment-session",
            "payment-signature",
            "x-payment",
            "content-type",
            "access-control-expose-headers",
        ] {
            let allowed = words(&preflight, "access-control-allow-headers");
            assert!(allowed.iter().any(|word| word == name), "{name} is not among {allowed:?}");
        }
        // SDKs repeat some refusals unless they can read that they must not.
        let spent = stall.post(&path, &[("origin", origin), ("payment-signature", &payment)], &ask()).await;
        assert_eq!((spent.status, spent.header("x-should-retry")), (403, Some("false")), "{}", spent.text());
        for name in [
            "www-authenticate",
            "payment-receipt",
            "payment-session",
            "payment-session-snapshot",
            "payment-required",
            "payment-response",
            "x-payment-response",
            "pontage-model",
            "pontage-receipt-id",
            "x-should-retry",
            "retry-after",
            "retry-after-ms",
            "x-request-id",
        ] {
            for reply in [&unpaid, &paid, &spent] {
                let exposed = words(reply, "access-control-expose-headers");
                assert!(exposed.iter().any(|word| word == name), "{name} is not among {exposed:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_outlives_rules_that_give_a_request_more_or_less_time_and_its_pool_another_name() {
    let (stall, _facilitator) = stall_everywhere().await;
    let path = chat_at(server::EXACT);
    let gate = &stall.gate;
    let (pools, models) = (gate.rules("pools.toml"), gate.rules("models.toml"));
    for (seconds, name) in [(30, "gpt-oss"), (900, "gpt-oss"), (900, "renamed"), (60, "renamed")] {
        let offer = required(&stall.post(&path, &[], &ask()).await)["accepts"][0].clone();
        let before = gate.generation().await;
        let moved = pools.replace("total_seconds = 60", &format!("total_seconds = {seconds}"));
        let moved = moved.replace("[pool.gpt-oss]", &format!("[pool.{name}]"));
        gate.write_rules("models.toml", &models.replace("pool = \"gpt-oss\"", &format!("pool = \"{name}\"")));
        gate.write_rules("pools.toml", &moved);
        gate.hup();
        let loaded = eventually(Duration::from_secs(20), || async {
            let now = required(&stall.post(&path, &[], &ask()).await)["accepts"][0].clone();
            gate.generation().await != before && now["maxTimeoutSeconds"] == json!(seconds + 360)
        });
        assert!(loaded.await, "the rules are not in force: {}", gate.log());
        let buyer = stall.chain.buyer(FLAT).await;
        let payment = encode(&stall.chain.authorize(&buyer, &offer, |_| ()));
        let paid = stall.post(&path, &[("payment-signature", &payment)], &ask()).await;
        assert_eq!(paid.status, 200, "{seconds} s in {name}: {}", paid.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_a_browser_gets_a_page_that_says_nothing_of_what_he_asked() {
    let (stall, _facilitator) = stall_everywhere().await;
    let path = chat_at(server::EXACT);
    const MARK: &str = "echo-7f3a";
    let look = |query: &str, mark: &str| {
        format!(
            "GET {path}{query} HTTP/1.1\r\nhost: {mark}.example\r\naccept: text/html,application/xhtml+xml,*/*;q=0.8\r\n\
             user-agent: Mozilla/5.0 (X11) {mark}\r\nreferer: https://{mark}.example/<script>\r\nx-forwarded-host: {mark}\r\n\
             x-request-id: {mark}\r\ncookie: a={mark}\r\n\r\n"
        )
    };
    let plain = raw::exchange(stall.gate.listen, look("", "other").as_bytes()).await;
    let marked = look(&format!("?{MARK}=%3Cscript%3E{MARK}"), MARK);
    let marked = raw::exchange(stall.gate.listen, marked.as_bytes()).await;
    for reply in [&plain, &marked] {
        assert_eq!(reply.status, 402, "{}", reply.text());
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }
    assert_eq!(plain.text(), marked.text(), "the page depends on the request");
    assert!(!marked.text().contains(MARK), "{}", marked.text());
    let head: Vec<_> = marked.headers.iter().filter(|(_, value)| value.contains(MARK)).collect();
    assert!(head.is_empty(), "{head:?}");
    let offers = required(&marked);
    assert!(!offers.to_string().contains(MARK), "{offers}");
    assert_eq!(offers["resource"]["url"], json!(format!("{}{path}", stall.gate.url())), "{offers}");

    // A program gets its JSON, whatever it calls itself.
    for accept in ["*/*", "application/json", "application/json, text/html;q=0.1"] {
        let reply = stall.post(&path, &[("accept", accept), ("user-agent", "python-httpx/0.28")], &ask()).await;
        assert!(reply.header("content-type").unwrap().ends_with("json"), "{accept}");
        assert_eq!(reply.json()["x402Version"], 1, "{accept}");
    }
}
