//! The shipped rule set `agent402` and its sample settings over x402, with the routes' own `accept` lines: Base, Polygon, Arbitrum
//! and Solana behind one published facilitator, paid by published clients. What the tiers sell is in `tests/tiers.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::agent402::{self, AUTO, NANO, PREMIUM, PRO, STANDARD, TIERS, replaced, sample};
use common::paying::{AGENT402, ARBITRUM, BASE, NETWORKS, On, POLYGON};
use common::x402::{Client, PAYEE, decode, encode};
use common::{Backend, EvmBed, Facilitator, Gate, GateOptions, RawReply, Script, SvmBed, client, raw};
use serde_json::{Value, json};

/// What each buyer has.
const PURSE: u128 = 1_000_000;

struct Market {
    evm: Vec<EvmBed>,
    svm: SvmBed,
    backend: Backend,
    gate: Gate,
    _facilitator: Facilitator,
}

impl Market {
    /// The sample as it is shipped, but for the addresses that its comments ask to be put in.
    async fn open() -> Self {
        let [base, polygon, arbitrum] = [BASE, POLYGON, ARBITRUM].map(EvmBed::start_as);
        let (base, polygon, arbitrum, svm) = tokio::join!(base, polygon, arbitrum, SvmBed::mainnet());
        let evm = vec![base, polygon, arbitrum];
        let facilitator = Facilitator::over(&evm.iter().collect::<Vec<_>>(), Some(&svm)).await;
        let backend = Backend::start(Script::default()).await;
        let mut conf = sample();
        for (from, to) in [
            ("address = \"127.0.0.1:8402\"", "address = \"{listen}\"\nadmin = \"{admin}\""),
            ("var/agent402.redb", "{dir}/var/agent402.redb"),
            ("0x000000000000000000000000000000000000dEaD", PAYEE),
            ("1nc1nerator11111111111111111111111111111111", &svm.payee()),
        ] {
            conf = replaced(conf, from, to);
        }
        let mut options = agent402::rules(GateOptions::new("http://127.0.0.1:9", &backend.url()), None);
        options.conf = Some(conf);
        options = options.env("X402_FACILITATOR_URL", &facilitator.url());
        let [on_base, on_polygon, on_arbitrum] = [0, 1, 2].map(|i: usize| evm[i].url());
        for (name, node) in
            [("BASE", on_base), ("POLYGON", on_polygon), ("ARBITRUM", on_arbitrum), ("SOLANA", svm.url())]
        {
            options = options.env(&format!("{name}_RPC_URL"), &node);
        }
        let gate = Gate::start(options).await;
        Self { evm, svm, backend, gate, _facilitator: facilitator }
    }

    fn network(&self, on: On) -> String {
        match on {
            On::Evm(id) => format!("eip155:{id}"),
            On::Solana => self.svm.network(),
        }
    }

    async fn earned(&self, on: On) -> u128 {
        match on {
            On::Evm(id) => {
                let bed = self.evm.iter().find(|bed| bed.chain_id == id).unwrap();
                bed.usdc(bed.payee()).await
            }
            On::Solana => self.svm.usdc(&self.svm.payee()).await,
        }
    }

    /// What it earned on every network, in the order of the offers.
    async fn takings(&self) -> Vec<u128> {
        let mut all = Vec::new();
        for (on, _) in NETWORKS {
            all.push(self.earned(on).await);
        }
        all
    }

    /// One call of a fresh buyer: what the client says of it, what the buyer paid and what was earned.
    async fn call(&self, client: Client, on: On, path: &str, body: &Value) -> (Value, u128, u128) {
        let url = format!("{}{path}", self.gate.url());
        let base = url.trim_end_matches("/chat/completions").to_owned();
        let (network, body) = (self.network(on), body.to_string());
        let mut flags = vec![("url", url.as_str()), ("base", &base), ("body", &body)];
        if client != Client::Legacy {
            flags.push(("network", &network));
        }
        let before = self.earned(on).await;
        let (got, left) = match on {
            On::Evm(id) => {
                let bed = self.evm.iter().find(|bed| bed.chain_id == id).unwrap();
                let buyer = bed.buyer(PURSE).await;
                let got = client.pay(bed, &buyer, &self.gate.url(), &flags).await;
                (got, bed.usdc(&buyer.address().to_string()).await)
            }
            On::Solana => {
                let buyer = self.svm.buyer(PURSE).await;
                let got = client.pay_svm(&self.svm, &buyer, &self.gate.url(), &flags).await;
                (got, self.svm.usdc(&buyer.address).await)
            }
        };
        (got, PURSE - left, self.earned(on).await - before)
    }

    /// The same of a buyer who is served and pays what the tier costs.
    async fn sell(&self, client: Client, on: On, path: &str, body: &Value) -> Value {
        let (got, paid, earned) = self.call(client, on, path, body).await;
        let (said, price) = (format!("{client:?} {on:?} {path}: {got:#}"), u128::from(agent402::price(path)));
        assert_eq!((&got["ok"], &got["status"]), (&json!(true), &json!(200)), "{said}");
        assert_eq!((paid, earned), (price, price), "{said}");
        got
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> RawReply {
        raw::exchange(self.gate.listen, &raw::post(path, headers, body.to_string().as_bytes())).await
    }
}

fn chat(model: &str, stream: bool) -> Value {
    let mut body = client::chat(model, "one two three");
    body["stream"] = stream.into();
    body
}

/// A refusal before any price is named: status, code, message.
fn refused(reply: &RawReply) -> (u16, String, String) {
    for offer in ["payment-required", "www-authenticate"] {
        assert!(reply.header(offer).is_none(), "an offer beside a refusal: {}", reply.text());
    }
    let error = reply.json()["error"].clone();
    let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("{error}")).to_owned();
    (reply.status, text("code"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_402_asks_the_price_of_its_tier_on_four_networks_and_a_client_pays_on_each() {
    let market = Market::open().await;
    let payee = market.svm.payee();
    let offered = [
        ("eip155:8453", "base", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", PAYEE),
        ("eip155:137", "polygon", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", PAYEE),
        ("eip155:42161", "", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", PAYEE),
        ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "solana", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", &payee),
    ];
    let unnamed = json!({"messages": [{"role": "user", "content": "one two three"}]});
    for (path, price) in TIERS {
        let unpaid = market.post(path, &[], &unnamed).await;
        assert_eq!(unpaid.status, 402, "{}", unpaid.text());
        let header = unpaid.header("payment-required").expect("offers of v2");
        assert!(header.len() < 6_000, "{path}: {} bytes", header.len());
        let required = decode(header);
        assert_eq!(required["resource"]["url"], format!("https://agents.example{path}"));
        let told = |offer: &Value, amount: &str| {
            let text = |key: &str| offer[key].as_str().unwrap_or_else(|| panic!("no {key} in {offer}")).to_owned();
            (text("scheme"), text("network"), text("asset"), text("payTo"), text(amount))
        };
        let told = |list: &Value, amount: &str| -> Vec<_> {
            list["accepts"].as_array().unwrap().iter().map(|offer| told(offer, amount)).collect()
        };
        let want = |v1: bool| -> Vec<_> {
            let named = offered.iter().filter(|(_, name, ..)| !v1 || !name.is_empty());
            let word = |text: &str| text.to_owned();
            named
                .map(|(id, name, asset, to)| {
                    (word("exact"), word(if v1 { name } else { id }), word(asset), word(to), price.to_string())
                })
                .collect()
        };
        assert_eq!(told(&required, "amount"), want(false), "{path}");
        assert_eq!(told(&unpaid.json(), "maxAmountRequired"), want(true), "{path}");
    }

    for (sold, (client, on, path, stream)) in AGENT402.into_iter().enumerate() {
        let model = match path {
            NANO => "gpt-oss-20b",
            AUTO | STANDARD => "gpt-oss-120b",
            PRO => "gpt-5",
            _ => "claude-sonnet-4.5",
        };
        let got = market.sell(client, on, path, &chat(model, stream)).await;
        let said = format!("{client:?} {on:?} {path}: {got:#}");
        let name = got["headers"]["pontage-model"].as_str().unwrap_or_else(|| panic!("{said}"));
        assert!(name.ends_with(&format!("/{model}")), "{said}");
        assert!(got.to_string().contains("tok2"), "{said}");
        assert_eq!(market.backend.requests().len(), sold + 1, "{said}");
        // The receipt says on which network.
        let (v1, network) = (client == Client::Legacy, market.network(on));
        let named = offered.iter().find(|(id, ..)| *id == network).unwrap().1;
        let told = &got["headers"][if v1 { "x_payment_response" } else { "payment_response" }];
        assert_eq!(told["network"], if v1 { named } else { &network }, "{said}");
    }
    let due = |(on, _)| AGENT402.iter().filter(|row| row.1 == on).map(|row| u128::from(agent402::price(row.2))).sum();
    let due: Vec<u128> = NETWORKS.map(due).into();
    assert_eq!(market.takings().await, due);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_choices_of_a_tier_are_told_before_anybody_pays_and_hold_for_who_paid() {
    let market = Market::open().await;
    // Another tier's model: where it is sold and for how much, paid for or not, and a payment that was shown is still good.
    let bed = &market.evm[0];
    let buyer = bed.buyer(PURSE).await;
    let right = chat("gpt-oss-20b", false);
    let unpaid = market.post(NANO, &[], &right).await;
    let accepted = decode(unpaid.header("payment-required").unwrap())["accepts"][0].clone();
    let payment = encode(&bed.authorize(&buyer, &accepted, |_| ()));
    let want = "the model \"openai/gpt-5\" is not sold here; it is sold at /v1/pro/chat/completions for $0.03 per request, or at \
                /v1/premium/chat/completions for $0.15 per request";
    for headers in [&[][..], &[("payment-signature", payment.as_str())]] {
        let reply = market.post(NANO, headers, &chat("openai/gpt-5", false)).await;
        assert_eq!(refused(&reply), (400, "wrong_tier".into(), want.into()));
    }
    let mut two = right.clone();
    two["n"] = json!(2);
    let many = market.post(NANO, &[("payment-signature", payment.as_str())], &two).await;
    assert_eq!(refused(&many), (400, "over_limit".into(), "n is 2; the most sold here is 1".into()));
    // What the price does not cover is told with what would do.
    let mut dear = client::chat("claude-opus-4.1", &"x".repeat(4_000));
    dear["n"] = json!(2);
    let (status, code, message) = refused(&market.post(PREMIUM, &[], &dear).await);
    assert_eq!((status, code.as_str()), (400, "over_price"), "{message}");
    assert!(message.contains("shorten the prompt by ") && message.contains("lower n to 1"), "{message}");
    assert_eq!(market.takings().await, [0; 4]);
    let served = market.post(NANO, &[("payment-signature", payment.as_str())], &right).await;
    assert_eq!(served.status, 200, "{}", served.text());
    assert_eq!(market.takings().await, [u128::from(agent402::price(NANO)), 0, 0, 0]);

    // Output beyond the tier's limit is not sold: the backend never hears of it.
    for (client, on, path, model, limit) in [
        (Client::Fetch, On::Evm(ARBITRUM), NANO, "gpt-oss-20b", 512),
        (Client::Httpx, On::Evm(POLYGON), AUTO, "gpt-oss-120b", 1_024),
        (Client::OpenAi, On::Solana, STANDARD, "gpt-oss-120b", 2_048),
    ] {
        let mut body = chat(model, false);
        body["max_tokens"] = json!(limit + 1);
        market.sell(client, on, path, &body).await;
        assert_eq!(market.backend.last().json()["max_tokens"], limit, "{path}");
    }

    // Who names no model gets the first of the list and is told which, in the offer and in the answer.
    let unnamed = json!({"messages": [{"role": "user", "content": "one two three"}]});
    let unpaid = market.post(AUTO, &[], &unnamed).await;
    for offer in decode(unpaid.header("payment-required").unwrap())["accepts"].as_array().unwrap() {
        assert_eq!(offer["extra"]["model"], "openai/gpt-oss-120b", "{offer}");
    }
    for (client, on) in [(Client::OpenAi, On::Evm(BASE)), (Client::Fetch, On::Solana)] {
        let got = market.sell(client, on, AUTO, &unnamed).await;
        assert_eq!(got["headers"]["pontage-model"], "openai/gpt-oss-120b", "{client:?} {on:?}: {got:#}");
        assert_eq!(market.backend.last().json()["model"], "gpt-oss-120b");
    }

    // npm x402-fetch pays no more than $0.10 unless its owner says so.
    let (got, paid, earned) =
        market.call(Client::Legacy, On::Evm(BASE), PREMIUM, &chat("claude-sonnet-4.5", false)).await;
    assert_eq!(got["error"]["message"], "Payment amount exceeds maximum allowed", "{got:#}");
    assert_eq!((paid, earned), (0, 0), "{got:#}");
}
