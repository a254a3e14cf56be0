#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::catalogue::{ProfileAbility, RailAbility};
use crate::ids::RailId;
use crate::limits::{OverLimit, StreamRule, UnknownFields};
use crate::money::{Factor, PerToken, Usd};
use crate::rules::plan::{Access, Balance, Discovery, Queue, ReceiptForm, ServerRules, Surface, Timeouts};

const MODELS: &str = r#"
[model."openai/gpt-oss-120b"]
aliases = ["gpt-oss-120b"]
upstream = "gpt-oss-120b-fp8"
pool = "gpt-oss"
price = { input = "0.15", output = "0.60" }
vocabulary = "o200k"

[model."openai/tiny"]
upstream = "tiny"
pool = "gpt-oss"
price = { input = "0", cached_input = "0", output = "0" }
"#;
const TIERS: &str = r#"
[tier.standard]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
charge = { flat = "0.02" }
"#;
const ROUTES: &str = r#"
[[route]]
path = "/v1/chat/completions"
surface = "chat"
tier = "standard"
accept = ["tempo/charge"]
receipt = { body = "pontage" }

[[route]]
path = "/v1/models"
surface = "models"
tier = "standard"
access = "free"
"#;
const POOLS: &str = r#"
[pool.gpt-oss]
profile = "vllm"
servers = ["http://127.0.0.1:8000"]
"#;

fn catalogue() -> Catalogue {
    let vllm = ProfileAbility { health_path: Some("/health"), ..ProfileAbility::PLAIN };
    let ollama = ProfileAbility { surfaces: &[Surface::Chat], ..ProfileAbility::PLAIN };
    Catalogue {
        rails: [("tempo/charge", true), ("tempo/session", false)]
            .map(|(id, fixed_amount)| (RailId::from(id), RailAbility { fixed_amount, decimals: 6 }))
            .into(),
        profiles: [("vllm", vllm), ("ollama", ollama)].into(),
        vocabularies: vec!["o200k", "bytes"],
    }
}

/// The base rule set with `from` replaced by `to` in one file.
fn with(file: &str, from: &str, to: &str) -> Result<Plan, Vec<String>> {
    let texts = [("models.toml", MODELS), ("tiers.toml", TIERS), ("routes.toml", ROUTES), ("pools.toml", POOLS)];
    assert!(texts.iter().any(|(name, text)| *name == file && text.contains(from)), "{from:?} is not in {file}");
    let edited =
        texts.map(|(name, text)| (name, if name == file { text.replacen(from, to, 1) } else { text.to_owned() }));
    let files = Files::of(edited.iter().map(|(name, text)| (*name, text.as_str())));
    check(&files, &catalogue()).map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect())
}

fn good(file: &str, from: &str, to: &str) -> Plan {
    with(file, from, to).unwrap_or_else(|mistakes| panic!("{to:?}: {mistakes:#?}"))
}

#[test]
fn a_good_rule_set_becomes_a_plan_in_which_every_name_resolves() {
    let plan = good("pools.toml", "vllm", "vllm");
    assert_eq!(plan.generation.as_str().len(), 16);
    let model = plan.resolve("gpt-oss-120b").unwrap();
    assert_eq!((model.name.as_str(), model.upstream.as_str()), ("openai/gpt-oss-120b", "gpt-oss-120b-fp8"));
    assert_eq!(plan.resolve("openai/gpt-oss-120b").unwrap(), model);
    assert_eq!(
        model.price.standard().cached_input,
        PerToken::per_million("0.15").unwrap(),
        "the input price when not given"
    );
    assert!(plan.resolve("gpt-oss-120b-fp8").is_none(), "an upstream name is not a public name");

    let route = plan.route("/v1/chat/completions").unwrap();
    assert_eq!((route.surface, route.stream, route.access), (Surface::Chat, StreamRule::Allow, Access::Paid));
    assert_eq!(route.accept, [RailId::from("tempo/charge")]);
    assert_eq!(route.receipt, ReceiptForm { header: true, body: Some("pontage".into()), ..ReceiptForm::default() });
    assert_eq!(route.tier.unnamed, [PublicModel::from("openai/gpt-oss-120b")]);
    assert_eq!(route.tier.charge, Some(Charge::Flat { usd: Usd::parse("0.02").unwrap(), min_output_tokens: None }));
    let limits = &route.tier.limits;
    assert_eq!((limits.max_body_bytes, limits.max_n, limits.max_input_tokens), (1 << 20, 1, None));
    assert_eq!((limits.over_limit, limits.unknown_fields), (OverLimit::Clamp, UnknownFields::Refuse));
    assert_eq!(limits.image_url, None, "no price for images: refused");

    assert!(plan.route("/v1/chat/completions/").is_none() && plan.route("/v1").is_none(), "routes match exactly");
    assert_eq!(plan.sellers(&model.name, None), [route]);
    assert!(plan.sellers(&PublicModel::from("openai/tiny"), Some(Surface::Chat)).is_empty(), "no tier sells it");

    let pool = plan.pools.get("gpt-oss").unwrap();
    let server = ServerRules {
        tls: false,
        host: "127.0.0.1".into(),
        port: 8000,
        prefix: String::new(),
        weight: 1,
        group: 0,
        name: None,
        max_concurrent: None,
    };
    assert_eq!((&pool.servers[..], &pool.health, pool.timeouts), (&[server][..], &None, Timeouts::default()));
}

#[test]
fn every_single_mistake_is_named_with_its_file_line_and_key() {
    let paid = "a paid route needs at least one rail: accept = [\"tempo/charge\"]; a free one says access = \"free\"";
    #[rustfmt::skip]
    let rows: &[(&str, &str, &str, &str)] = &[
        // file, from, to, the one mistake
        ("models.toml", "aliases", "alias", "3: model.\"openai/gpt-oss-120b\".alias: unknown key; known here: aliases, bill, free, hidden_output, images, pool, price, price_as, service_tiers, upstream, upstream_in, vocabulary"),
        ("models.toml", "\"0.15\"", "0.15", "6: model.\"openai/gpt-oss-120b\".price.input: amounts are text, so that they stay exact: write \"0.15\""),
        ("models.toml", "\"0.15\"", "\"-1\"", "6: model.\"openai/gpt-oss-120b\".price.input: \"-1\" is not a plain decimal number such as \"0.02\""),
        ("models.toml", "\"0.15\"", "\"0.0000000000001\"", "6: model.\"openai/gpt-oss-120b\".price.input: \"0.0000000000001\" has more decimal places than can be kept exactly"),
        ("models.toml", ", output = \"0.60\"", "", "6: model.\"openai/gpt-oss-120b\".price: `output` is missing"),
        ("models.toml", "\"o200k\"", "\"o300k\"", "7: model.\"openai/gpt-oss-120b\".vocabulary: \"o300k\" is not a vocabulary of this build: o200k, bytes"),
        ("models.toml", "vocabulary = \"o200k\"", "hidden_output = \"yes\"", "7: model.\"openai/gpt-oss-120b\".hidden_output: must be true or false, not text"),
        ("models.toml", "pool = \"gpt-oss\"", "pool = \"gpt\"", "5: model.\"openai/gpt-oss-120b\".pool: \"gpt\" is not in pools.toml"),
        ("models.toml", "[\"gpt-oss-120b\"]", "[\"openai/tiny\"]", "3: model.\"openai/gpt-oss-120b\".aliases[0]: \"openai/tiny\" already means \"openai/tiny\""),
        ("models.toml", "[\"gpt-oss-120b\"]", "[\"a\", \"a\"]", "3: model.\"openai/gpt-oss-120b\".aliases[1]: \"a\" already means \"openai/gpt-oss-120b\""),
        ("models.toml", "[\"gpt-oss-120b\"]", "[\"a b\"]", "3: model.\"openai/gpt-oss-120b\".aliases[0]: \"a b\" is not a model name: 1 to 128 printable ASCII characters without space, quote, backslash or *"),
        ("models.toml", "\"gpt-oss-120b-fp8\"", "\"\"", "4: model.\"openai/gpt-oss-120b\".upstream: \"\" is not a model name: 1 to 128 printable ASCII characters without space, quote, backslash or *"),
        ("tiers.toml", "[\"openai/gpt-oss-120b\"]", "[\"openai/gpt-oss-120b\", \"x\"]", "3: tier.standard.models[1]: \"x\" is not in models.toml"),
        ("tiers.toml", "[\"openai/gpt-oss-120b\"]", "[\"gpt-oss-120b\"]", "3: tier.standard.models[0]: \"gpt-oss-120b\" is an alias; write \"openai/gpt-oss-120b\""),
        ("tiers.toml", "[\"openai/gpt-oss-120b\"]", "[\"meta/*\"]", "3: tier.standard.models[0]: \"meta/*\" matches nothing in models.toml"),
        ("tiers.toml", "[\"openai/gpt-oss-120b\"]", "[\"openai/*\", \"openai/*\"]", "3: tier.standard.models[1]: \"openai/*\" is in this list twice"),
        ("tiers.toml", "[\"openai/gpt-oss-120b\"]", "[]", "3: tier.standard.models: a tier sells at least one model"),
        ("tiers.toml", "flat = \"0.02\"", "flat = \"0.02\", min_output_tokens = 4096", "5: tier.standard.charge.min_output_tokens: is more than max_output_tokens"),
        ("tiers.toml", "flat = \"0.02\"", "flat = \"0.001\", min_output_tokens = 2000", "5: tier.standard.charge: 0.001 USD do not pay for min_output_tokens of \"openai/gpt-oss-120b\""),
        ("tiers.toml", "flat = \"0.02\"", "ceiling = true, min_output_tokens = 64", "5: tier.standard.charge.min_output_tokens: unknown key; known here: ceiling, estimate, flat"),
        ("tiers.toml", "max_output_tokens = 2048\n", "", "2: tier.standard: `max_output_tokens` is missing"),
        ("tiers.toml", "2048", "0", "4: tier.standard.max_output_tokens: 0 is not between 1 and 10000000"),
        ("tiers.toml", "charge = { flat = \"0.02\" }", "over_limit = \"no\"\ncharge = { flat = \"0.02\" }", "5: tier.standard.over_limit: \"no\" is not \"clamp\" or \"refuse\""),
        ("tiers.toml", "charge = { flat = \"0.02\" }", "unknown_fields = \"keep\"\ncharge = { flat = \"0.02\" }", "5: tier.standard.unknown_fields: \"keep\" is not \"refuse\" or \"strip\""),
        ("tiers.toml", "flat = \"0.02\"", "", "5: tier.standard.charge: says exactly one of flat, ceiling or estimate"),
        ("tiers.toml", "flat = \"0.02\"", "flat = \"0.02\", ceiling = true", "5: tier.standard.charge: says exactly one of flat, ceiling or estimate"),
        ("tiers.toml", "flat = \"0.02\"", "ceiling = false", "5: tier.standard.charge.ceiling: is either true or not written"),
        ("tiers.toml", "flat = \"0.02\"", "estimate = {}", "5: tier.standard.charge.estimate: `shortfall` is missing: an estimate has no output term, so say who carries it: \"clamp\" with min_output_tokens, or \"absorb\" with loss_cap_per_call and loss_cap_per_day"),
        ("tiers.toml", "flat = \"0.02\"", "estimate = { shortfall = \"clamp\" }", "5: tier.standard.charge.estimate: `min_output_tokens` is missing: shortfall = \"clamp\" needs it"),
        ("tiers.toml", "flat = \"0.02\"", "estimate = { shortfall = \"clamp\", min_output_tokens = 4096 }", "5: tier.standard.charge.estimate.min_output_tokens: is more than max_output_tokens"),
        ("tiers.toml", "flat = \"0.02\"", "estimate = { shortfall = \"clamp\", min_output_tokens = 64, loss_cap_per_day = \"1\" }", "5: tier.standard.charge.estimate.loss_cap_per_day: belongs to shortfall = \"absorb\""),
        ("tiers.toml", "flat = \"0.02\"", "estimate = { shortfall = \"absorb\", loss_cap_per_call = \"0.05\" }", "5: tier.standard.charge.estimate: `loss_cap_per_day` is missing: shortfall = \"absorb\" needs it"),
        ("tiers.toml", "flat = \"0.02\"", "estimate = { shortfall = \"absorb\", loss_cap_per_call = \"5\", loss_cap_per_day = \"1\" }", "5: tier.standard.charge.estimate.loss_cap_per_call: is more than loss_cap_per_day: one call could break the cap of the day"),
        ("tiers.toml", "flat = \"0.02\"", "estimate = { overhead = \"0.9\", shortfall = \"clamp\", min_output_tokens = 64 }", "5: tier.standard.charge.estimate.overhead: is below 1: the price would not even cover the prompt"),
        ("tiers.toml", "flat = \"0.02\"", "flat = \"340282366920938463464\"", "5: tier.standard.charge.flat: \"340282366920938463464\" is too large"),
        ("tiers.toml", "flat = \"0.02\"", "flat = \"340282366920938463463.374\"", "2: tier.standard: the dearest request for \"openai/gpt-oss-120b\" costs more than can be counted"),
        ("routes.toml", "/v1/chat/completions", "/v1/chat/completions/", "3: route[0].path: \"/v1/chat/completions/\" ends in /"),
        ("routes.toml", "/v1/chat/completions", "/v1//chat", "3: route[0].path: \"/v1//chat\" has an empty segment"),
        ("routes.toml", "/v1/chat/completions", "/v1/../chat", "3: route[0].path: \"/v1/../chat\" has a . or .. segment"),
        ("routes.toml", "/v1/chat/completions", "/v1/ch%61t", "3: route[0].path: \"/v1/ch%61t\" has characters outside A-Z a-z 0-9 and -_.~!$&'()*+,=:@ (no %, ;, ?, #)"),
        ("routes.toml", "/v1/chat/completions", "/receipts/x", "3: route[0].path: \"/receipts/x\" is answered by the gate itself"),
        ("routes.toml", "/v1/models", "/v1/chat/completions", "10: route[1].path: \"/v1/chat/completions\" is a route already (line 3)"),
        ("routes.toml", "\"chat\"", "\"realtime\"", "4: route[0].surface: \"realtime\" is not \"chat\" or \"completions\" or \"responses\" or \"embeddings\" or \"messages\" or \"images\" or \"speech\" or \"transcriptions\" or \"models\""),
        ("routes.toml", "body = \"pontage\"", "body = \"usage\"", "7: route[0].receipt.body: \"usage\" is a member of the reply itself"),
        ("routes.toml", "body = \"pontage\"", "show = { id = \"id\" }", "7: route[0].receipt.show: there is no block to show it in: write body = \"…\""),
        ("routes.toml", "body = \"pontage\"", "body = \"p\", show = { a = \"address\" }", "7: route[0].receipt.show.a: \"address\" is not \"id\" or \"model\" or \"pool\" or \"server\" or \"tier\" or \"rail\" or \"charged_usd\" or \"credits\" or \"usage\""),
        ("routes.toml", "body = \"pontage\"", "body = \"p\", show = { a = \"credits\" }", "7: route[0].receipt.show.a: credits are worth what credit_usd says: write credit_usd = \"0.01\""),
        ("routes.toml", "body = \"pontage\"", "body = \"p\", credit_usd = \"0\"", "7: route[0].receipt.credit_usd: a credit is worth something"),
        ("models.toml", "pool = \"gpt-oss\"", "pool = \"gpt-oss\"\nupstream_in = { away = \"x\" }", "6: model.\"openai/gpt-oss-120b\".upstream_in.away: \"away\" is not in pools.toml"),
        ("routes.toml", "tier = \"standard\"", "tier = \"gold\"", "5: route[0].tier: \"gold\" is not in tiers.toml"),
        ("routes.toml", "accept = [\"tempo/charge\"]", "accept = [\"base/exact\"]", "6: route[0].accept[0]: \"base/exact\" is not a rail of pontage.toml: tempo/charge, tempo/session"),
        ("routes.toml", "[\"tempo/charge\"]", "[\"tempo/charge\", \"tempo/charge\"]", "6: route[0].accept[1]: \"tempo/charge\" is in this list twice"),
        ("routes.toml", "accept = [\"tempo/charge\"]\n", "", &format!("2: route[0]: {paid}")),
        ("routes.toml", "[\"tempo/charge\"]", "[]", &format!("2: route[0]: {paid}")),
        ("routes.toml", "accept = [\"tempo/charge\"]\n", "accept = [\"tempo/charge\"]\naccess = \"keys\"\n", "7: route[0].access: \"keys\" is not in this build: \"paid\" or \"free\""),
        ("routes.toml", "receipt = { body = \"pontage\" }", "access = \"free\"", "6: route[0].accept: a free route accepts no payment"),
        ("routes.toml", "access = \"free\"\n", "", "9: route[1]: the models surface is free: write access = \"free\""),
        ("routes.toml", "access = \"free\"", "access = \"free\"\nstream = \"allow\"", "14: route[1].stream: the models surface does not stream"),
        ("routes.toml", "body = \"pontage\"", "body = \"usage\"", "7: route[0].receipt.body: \"usage\" is a member of the reply itself"),
        ("routes.toml", "body = \"pontage\"", "body = \"Choices\"", "7: route[0].receipt.body: \"Choices\" is a member of the reply itself"),
        ("routes.toml", "body = \"pontage\"", "body = \"a\\\"b\"", "7: route[0].receipt.body: \"a\\\"b\" is not a plain member name: a letter, then at most 63 of a-z A-Z 0-9 _ -"),
        ("routes.toml", "receipt = {", "stream = \"sometimes\"\nreceipt = {", "7: route[0].stream: \"sometimes\" is not \"allow\" or \"force\" or \"refuse\""),
        ("pools.toml", "\"vllm\"", "\"tgi\"", "3: pool.gpt-oss.profile: \"tgi\" is not a profile of this build: ollama, vllm"),
        ("pools.toml", "http://127.0.0.1:8000", "http://user:key@host", "4: pool.gpt-oss.servers[0]: \"http://user:key@host\" has user info; give a key as api_key"),
        ("pools.toml", "http://127.0.0.1:8000", "http://169.254.169.254", "4: pool.gpt-oss.servers[0]: \"http://169.254.169.254\" is an address of this link only, where metadata services live"),
        ("pools.toml", "http://127.0.0.1:8000", "https://api.openai.com/v1/", "4: pool.gpt-oss.servers[0]: \"https://api.openai.com/v1/\" ends in /v1, and /v1/… is what is asked there: write \"https://api.openai.com\""),
        ("pools.toml", "servers = [\"http://127.0.0.1:8000\"]", "dns = \"http://a/api/v1\"", "4: pool.gpt-oss.dns: \"http://a/api/v1\" ends in /v1, and /v1/… is what is asked there: write \"http://a/api\""),
        ("pools.toml", "[\"http://127.0.0.1:8000\"]", "[\"http://a\", \"http://A:80/\"]", "4: pool.gpt-oss.servers[1]: is in this pool already; a larger share is a weight"),
        ("pools.toml", "[\"http://127.0.0.1:8000\"]", "[]", "4: pool.gpt-oss.servers: a pool has at least one server"),
        ("pools.toml", "[\"http://127.0.0.1:8000\"]", "[{ url = \"http://a\", weight = 0 }]", "4: pool.gpt-oss.servers[0].weight: 0 is not between 1 and 1000"),
        ("pools.toml", "[\"http://127.0.0.1:8000\"]", "[{ url = \"http://a\", group = 100 }]", "4: pool.gpt-oss.servers[0].group: 100 is not between 0 and 99"),
        ("pools.toml", "[\"http://127.0.0.1:8000\"]", "[{ url = \"http://a\", max_concurrent = 0 }]", "4: pool.gpt-oss.servers[0].max_concurrent: 0 is not between 1 and 1000000"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nmax_concurrent = 0", "4: pool.gpt-oss.max_concurrent: 0 is not between 1 and 1000000"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\ndns = \"http://a\"", "5: pool.gpt-oss.servers: are found behind the name that `dns` says; write one of the two"),
        ("pools.toml", "servers = [\"http://127.0.0.1:8000\"]", "dns = \"a:80\"", "4: pool.gpt-oss.dns: \"a:80\" is not an http:// or https:// address"),
        ("pools.toml", "servers = [\"http://127.0.0.1:8000\"]", "dns = \"http://169.254.169.254\"", "4: pool.gpt-oss.dns: \"http://169.254.169.254\" is an address of this link only, where metadata services live"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nqueue = { length = 4 }", "4: pool.gpt-oss.queue: nobody ever waits in it: no server has a max_concurrent"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nmax_concurrent = 1\nqueue = { wait_seconds = 0 }", "5: pool.gpt-oss.queue.wait_seconds: 0 is not between 1 and 86400"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nfallback = \"b\"", "4: pool.gpt-oss.fallback: \"b\" is not in pools.toml"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nfallback = \"gpt-oss\"", "4: pool.gpt-oss.fallback: leads back to this pool"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nbalance = \"random\"", "4: pool.gpt-oss.balance: \"random\" is not \"least-outstanding\" or \"round-robin\" or \"consistent\" or \"prefix\""),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\napi_key = \"sk-canary\"", "4: pool.gpt-oss.api_key: a secret is written as \"env:NAME\" or \"file:PATH\", never inline"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"ollama\"\nhealth = {}", "4: pool.gpt-oss.health: `path` is missing: profile \"ollama\" has no health endpoint of its own"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\nhealth = { every_seconds = 0 }", "4: pool.gpt-oss.health.every_seconds: 0 is not between 1 and 3600"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\ntimeouts = { connect_seconds = 0 }", "4: pool.gpt-oss.timeouts.connect_seconds: 0 is not between 1 and 86400"),
        ("pools.toml", "profile = \"vllm\"", "profile = \"vllm\"\ntimeouts = { total_seconds = 90 }", "4: pool.gpt-oss.timeouts: first_byte_seconds (120) is more than total_seconds (90)"),
        ("pools.toml", "gpt-oss]", "\"gpt oss\"]\nprofile = \"vllm\"\nservers = [\"http://b\"]\n[pool.gpt-oss]", "2: pool.\"gpt oss\": \"gpt oss\" is not a name: 1 to 64 of a-z A-Z 0-9 - _ ."),
    ];
    for (file, from, to, want) in rows {
        let got = with(file, from, to).expect_err(to);
        assert_eq!(got, [format!("{file}:{want}")], "{to:?}");
    }
}

#[test]
fn a_fixed_amount_rail_cannot_be_accepted_without_a_price_for_it() {
    let got = with("tiers.toml", "charge = { flat = \"0.02\" }\n", "").unwrap_err();
    assert_eq!(
        got,
        [
            "routes.toml:6: route[0].accept[0]: \"tempo/charge\" has a fixed amount, and tier.standard does not say `charge`"
        ]
    );
}

#[test]
fn a_rail_that_takes_what_was_used_needs_no_price_in_advance_and_stands_beside_one_that_does() {
    let both = good("routes.toml", "[\"tempo/charge\"]", "[\"tempo/session\", \"tempo/charge\"]");
    let accept = |plan: &Plan| -> Vec<String> {
        plan.route("/v1/chat/completions").unwrap().accept.iter().map(ToString::to_string).collect()
    };
    assert_eq!(accept(&both), ["tempo/session", "tempo/charge"], "in the order of preference");

    let rules = |tiers: &str, routes: &str| {
        let files =
            Files::of([("models.toml", MODELS), ("tiers.toml", tiers), ("routes.toml", routes), ("pools.toml", POOLS)]);
        check(&files, &catalogue()).map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>())
    };
    let unpriced = TIERS.replace("charge = { flat = \"0.02\" }\n", "");
    let session =
        ROUTES.replace("[\"tempo/charge\"]", "[\"tempo/session\"]").replace("receipt", "stream = \"force\"\nreceipt");
    let plan = rules(&unpriced, &session).unwrap();
    let route = plan.route("/v1/chat/completions").unwrap();
    assert_eq!(
        (accept(&plan), route.stream, route.tier.charge),
        (vec!["tempo/session".into()], StreamRule::Force, None)
    );
    let free = unpriced.replace("openai/gpt-oss-120b", "openai/tiny");
    assert!(
        rules(&free, &session).is_ok(),
        "a model that costs nothing can be sold by usage: each call holds one atom"
    );

    let mixed = ROUTES.replace("[\"tempo/charge\"]", "[\"tempo/session\", \"tempo/charge\"]");
    let why = "\"tempo/charge\" has a fixed amount, and tier.standard does not say `charge`";
    assert_eq!(rules(&unpriced, &mixed).unwrap_err(), [format!("routes.toml:6: route[0].accept[1]: {why}")]);
}

#[test]
fn a_model_that_bills_output_it_does_not_show_says_so() {
    let hides =
        |to: &str| good("models.toml", "vocabulary = \"o200k\"", to).resolve("gpt-oss-120b").unwrap().hidden_output;
    assert!(!hides(""), "not said: it does not");
    assert!(hides("hidden_output = true") && !hides("hidden_output = false"));
}

#[test]
fn all_mistakes_of_all_files_come_at_once_and_none_accuses_another_file_falsely() {
    let files = Files::of([
        (
            "models.toml",
            "[model.a]\nupstream = 5\npool = \"nowhere\"\nprice = { input = 1, output = \"x\" }\ncolour = 1\n",
        ),
        (
            "tiers.toml",
            "[tier.standard]\nmodels = [\"a\", \"b\"]\nmax_output_tokens = \"many\"\ncharge = { flat = 1 }\n",
        ),
        (
            "routes.toml",
            "[[route]]\npath = \"/x/\"\nsurface = \"chat\"\ntier = \"standard\"\naccept = [\"tempo/charge\"]\n[[route]]\n",
        ),
        ("pools.toml", "[pool.p\nprofile = \"vllm\"\n"),
    ]);
    let got: Vec<String> = check(&files, &catalogue()).unwrap_err().iter().map(Mistake::to_string).collect();
    let paid = "a paid route needs at least one rail: accept = [\"tempo/charge\"]; a free one says access = \"free\"";
    let want = [
        "models.toml:2: model.a.upstream: must be text in quotes, not a whole number".to_owned(),
        "models.toml:4: model.a.price.input: amounts are text, so that they stay exact: write \"1\"".to_owned(),
        "models.toml:4: model.a.price.output: \"x\" is not a plain decimal number such as \"0.02\"".to_owned(),
        "models.toml:5: model.a.colour: unknown key; known here: aliases, bill, free, hidden_output, images, pool, price, price_as, service_tiers, upstream, upstream_in, vocabulary".to_owned(),
        "routes.toml:2: route[0].path: \"/x/\" ends in /".to_owned(),
        "routes.toml:6: route[1]: `surface` is missing".to_owned(),
        format!("routes.toml:6: route[1]: {paid}"),
        "routes.toml:6: route[1]: `path` is missing".to_owned(),
        "routes.toml:6: route[1]: `tier` is missing".to_owned(),
        "tiers.toml:2: tier.standard.models[1]: \"b\" is not in models.toml".to_owned(),
        "tiers.toml:3: tier.standard.max_output_tokens: must be a whole number, not text".to_owned(),
        "tiers.toml:4: tier.standard.charge.flat: amounts are text, so that they stay exact: write \"1\"".to_owned(),
    ];
    let (syntax, rest): (Vec<String>, Vec<String>) = got.into_iter().partition(|m| m.starts_with("pools.toml:1: "));
    assert!(!syntax.is_empty(), "the syntax error is there");
    assert_eq!(rest, want, "and hides nothing: only the pool of model a cannot be looked up");
}

#[test]
fn a_missing_file_is_one_mistake_and_not_a_mistake_of_all_who_refer_to_it() {
    let files = Files::of([("tiers.toml", TIERS), ("routes.toml", ROUTES), ("pools.toml", POOLS)]);
    let got = check(&files, &catalogue()).unwrap_err();
    assert_eq!(got.iter().map(Mistake::to_string).collect::<Vec<_>>(), ["models.toml: is missing"]);
}

#[test]
fn prefixes_expand_in_the_order_of_the_file_and_exact_names_serve_who_names_none() {
    const BIG: &str = "openai/gpt-oss-120b";
    const TINY: &str = "openai/tiny";
    for (models, want, unnamed, why) in [
        ("[\"openai/*\"]", &[BIG, TINY][..], &[BIG, TINY][..], "nothing is named exactly"),
        ("[\"*\", \"openai/tiny\"]", &[BIG, TINY], &[TINY], "the exact one is chosen"),
        ("[\"openai/tiny\", \"openai/*\"]", &[TINY, BIG], &[TINY], "listed first"),
        ("[\"openai/tiny\", \"openai/gpt-oss-120b\"]", &[TINY, BIG], &[TINY, BIG], "in their order"),
    ] {
        let plan = good("tiers.toml", "[\"openai/gpt-oss-120b\"]", models);
        let tier = plan.tiers.get("standard").unwrap();
        assert_eq!(tier.models.iter().map(PublicModel::as_str).collect::<Vec<_>>(), want, "{why}");
        assert_eq!(tier.unnamed.iter().map(PublicModel::as_str).collect::<Vec<_>>(), unnamed, "{why}");
    }
}

#[test]
fn whoever_asks_on_the_wrong_path_is_sent_to_the_cheapest_first() {
    let tier = |name: &str, charge: &str| {
        format!("[tier.{name}]\nmodels = [\"openai/*\"]\nmax_output_tokens = 1\ncharge = {charge}\n")
    };
    let route = |path: &str, tier: &str, how: &str| {
        format!("[[route]]\npath = \"{path}\"\nsurface = \"chat\"\ntier = \"{tier}\"\n{how}\n")
    };
    let paid = "accept = [\"tempo/charge\"]";
    let tiers =
        tier("dear", "{ flat = \"0.1\" }") + &tier("cheap", "{ flat = \"0.09\" }") + &tier("by", "{ ceiling = true }");
    let routes = [
        ("/a", "dear", paid),
        ("/b", "by", paid),
        ("/c", "cheap", "access = \"free\""),
        ("/e", "cheap", paid),
        ("/d", "cheap", paid),
    ];
    let routes: String = routes.iter().map(|(path, tier, how)| route(path, tier, how)).collect();
    let files = [("models.toml", MODELS), ("tiers.toml", &tiers), ("routes.toml", &routes), ("pools.toml", POOLS)];
    let plan = check(&Files::of(files), &catalogue()).unwrap();
    let sellers = plan.sellers(&PublicModel::from("openai/tiny"), Some(Surface::Chat));
    let paths: Vec<_> = sellers.iter().map(|route| route.path.as_str()).collect();
    assert_eq!(
        paths,
        ["/d", "/e", "/a", "/b", "/c"],
        "flat by price, then what depends on the request, then what is free"
    );
}

#[test]
fn an_estimate_says_who_carries_the_output() {
    let overhead = Factor::ONE_AND_A_HALF;
    let usd = |text| Usd::parse(text).unwrap();
    for (to, want) in [
        (
            "shortfall = \"clamp\", min_output_tokens = 64",
            Charge::Estimate { overhead, shortfall: Shortfall::Clamp { min_output_tokens: 64 } },
        ),
        (
            "overhead = \"1\", shortfall = \"absorb\", loss_cap_per_call = \"0.05\", loss_cap_per_day = \"50\"",
            Charge::Estimate {
                overhead: Factor::ONE,
                shortfall: Shortfall::Absorb { per_call: usd("0.05"), per_day: usd("50") },
            },
        ),
    ] {
        let plan = good("tiers.toml", "flat = \"0.02\"", &format!("estimate = {{ {to} }}"));
        assert_eq!(plan.tiers.get("standard").unwrap().charge, Some(want), "{to}");
    }
}

#[test]
fn a_flat_price_that_limits_what_it_pays_for_is_not_mixed_with_rails_that_charge_what_was_used() {
    let bounded = "[tier.standard]\nmodels = [\"openai/gpt-oss-120b\"]\nmax_output_tokens = 2048\ncharge = { flat = \"0.02\", min_output_tokens = 64 }\n";
    let plan = |accept: &str| {
        let routes = ROUTES.replace("[\"tempo/charge\"]", accept);
        let files = [("models.toml", MODELS), ("tiers.toml", bounded), ("routes.toml", &routes), ("pools.toml", POOLS)];
        check(&Files::of(files), &catalogue())
    };
    let want = Charge::Flat { usd: Usd::parse("0.02").unwrap(), min_output_tokens: Some(64) };
    assert_eq!(plan("[\"tempo/charge\"]").unwrap().tiers.get("standard").unwrap().charge, Some(want));
    let mistakes = plan("[\"tempo/charge\", \"tempo/session\"]").unwrap_err();
    assert_eq!(
        mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>(),
        [
            "routes.toml:6: route[0].accept[1]: \"tempo/session\" charges what was used, and tier.standard refuses what its flat price does not pay for; give this rail a path of its own"
        ]
    );
}

#[test]
fn health_checks_are_made_only_when_asked_for_and_take_the_profiles_own_path() {
    let health = |to: &str| good("pools.toml", "profile = \"vllm\"", to).pools.get("gpt-oss").unwrap().health.clone();
    assert_eq!(health("profile = \"vllm\""), None);
    let own = HealthRules { path: "/health".into(), every_seconds: 5 };
    assert_eq!(health("profile = \"vllm\"\nhealth = {}"), Some(own));
    let said = HealthRules { path: "/up".into(), every_seconds: 9 };
    assert_eq!(health("profile = \"ollama\"\nhealth = { path = \"/up\", every_seconds = 9 }"), Some(said));
}

#[test]
fn a_free_chat_route_needs_no_price_and_promises_no_receipt() {
    let plan =
        good("routes.toml", "accept = [\"tempo/charge\"]\nreceipt = { body = \"pontage\" }", "access = \"free\"");
    let route = plan.route("/v1/chat/completions").unwrap();
    assert_eq!((route.access, &route.receipt), (Access::Free, &ReceiptForm::default()));
}

#[test]
fn the_generation_is_the_content() {
    let a = good("pools.toml", "vllm", "vllm").generation;
    assert_eq!(good("pools.toml", "vllm", "vllm").generation, a, "same bytes, same generation");
    assert_ne!(good("pools.toml", "\n[pool", "\n\n[pool").generation, a, "any other byte is another");
    let moved = Files::of([("models.toml", "a"), ("tiers.toml", ""), ("routes.toml", ""), ("pools.toml", "")]);
    let there = Files::of([("models.toml", ""), ("tiers.toml", "a"), ("routes.toml", ""), ("pools.toml", "")]);
    assert_ne!(moved.generation(), there.generation(), "a byte belongs to its file");
}

#[test]
fn a_directory_that_is_not_there_is_one_mistake_that_names_it() {
    for dir in ["/nowhere/rules", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")] {
        let said = crate::rules::load(std::path::Path::new(dir), &catalogue()).unwrap_err();
        assert!(
            said.len() == 1 && said[0].to_string().starts_with(&format!("{dir}: is no directory of rules: ")),
            "{said:?}"
        );
    }
}

#[test]
fn the_price_list_is_read_beside_the_rules_or_wherever_it_lies() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let models = MODELS.replace("price = { input = \"0.15\", output = \"0.60\" }", "price_as = \"k\"");
    let texts =
        [("models.toml", models.as_str()), ("tiers.toml", TIERS), ("routes.toml", ROUTES), ("pools.toml", POOLS)];
    for (name, text) in texts {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let list = r#"{"k": {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}}"#;
    let apart = other.path().join("list.json");
    for (path, named) in
        [(dir.path().join("list.json"), "list.json".to_owned()), (apart.clone(), apart.display().to_string())]
    {
        std::fs::write(dir.path().join("prices.toml"), format!("registry = {named:?}")).unwrap();
        let missing = crate::rules::load(dir.path(), &catalogue()).unwrap_err();
        assert!(missing.len() == 1 && missing[0].to_string().contains("cannot be read"), "{missing:?}");
        std::fs::write(&path, list).unwrap();
        let plan = crate::rules::load(dir.path(), &catalogue()).unwrap();
        let model = plan.resolve("gpt-oss-120b").unwrap();
        assert_eq!(model.price.standard().input, PerToken::per_million("1").unwrap());
        std::fs::write(&path, list.replace("1e-06", "3e-06")).unwrap();
        let next = crate::rules::load(dir.path(), &catalogue()).unwrap();
        assert_ne!(next.generation, plan.generation, "the list is a part of the rules");
    }
}

mod prices;

#[test]
fn a_pool_says_where_its_servers_are_and_who_takes_what() {
    let pool = |to: &str| {
        let plan = good("pools.toml", "servers = [\"http://127.0.0.1:8000\"]", to);
        plan.pools.get("gpt-oss").unwrap().as_ref().clone()
    };
    let usual = pool("servers = [\"http://a\"]");
    assert_eq!((usual.discovery, usual.balance, usual.queue), Default::default());
    assert_eq!((usual.servers[0].group, usual.servers[0].max_concurrent, usual.fallback), (0, None, None));
    let limited =
        pool("servers = [{ url = \"http://a\", group = 2, max_concurrent = 3 }, \"http://b\"]\nmax_concurrent = 8");
    let said: Vec<_> = limited.servers.iter().map(|s| (s.group, s.max_concurrent)).collect();
    assert_eq!(said, [(2, Some(3)), (0, Some(8))], "the pool's limit is each server's, unless that has its own");
    let named = pool(
        "dns = \"https://a.example/base\"\nmax_concurrent = 2\nqueue = { length = 0, wait_seconds = 3 }\nbalance = \"prefix\"",
    );
    assert_eq!((named.discovery, named.balance), (Discovery::Dns, Balance::Prefix));
    assert_eq!(named.queue, Queue { length: 0, wait_seconds: 3 });
    let [name] = &named.servers[..] else { panic!("{named:?}") };
    assert_eq!((name.tls, name.host.as_str(), name.port, name.max_concurrent), (true, "a.example", 443, Some(2)));
}

#[test]
fn pools_fall_back_to_each_other_in_no_circle() {
    let pools = |fallbacks: &[(&str, &str)]| {
        let one = |(name, fallback): &(&str, &str)| {
            let fallback = if fallback.is_empty() { String::new() } else { format!("fallback = \"{fallback}\"\n") };
            format!("[pool.{name}]\nprofile = \"vllm\"\nservers = [\"http://{name}\"]\n{fallback}")
        };
        with("pools.toml", POOLS, &fallbacks.iter().map(one).collect::<String>())
    };
    let chain = pools(&[("gpt-oss", "b"), ("b", "c"), ("c", ""), ("d", "b")]).unwrap();
    assert_eq!(chain.pools.get("d").unwrap().fallback, Some(PoolName::from("b")));
    let circle = pools(&[("gpt-oss", "b"), ("b", "c"), ("c", "b")]).unwrap_err();
    let want = [8, 12].map(|line| format!("pools.toml:{line}: "));
    assert_eq!(circle.len(), 2, "those on the circle, not the one that leads to it: {circle:#?}");
    assert!(circle.iter().zip(want).all(|(got, want)| got.starts_with(&want)), "{circle:#?}");
}

mod any_text {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gives_a_plan_with_every_entry_in_it_or_at_least_one_mistake(
            file in 0usize..4, at in any::<prop::sample::Index>(), cut in 0usize..40,
            put in prop::sample::select(vec!["", "\"", "[", "]", "{", "}", "=", "\n", "0", "-1", "\"x\"", "x = 1\n", "*", "é", ","]),
        ) {
            let mut texts = [MODELS, TIERS, ROUTES, POOLS].map(str::to_owned);
            let text: Vec<char> = texts[file].chars().collect();
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            texts[file] = text[..at].iter().copied().chain(put.chars()).chain(text[end..].iter().copied()).collect();
            let files = Files::of(crate::rules::file::NAMES.into_iter().zip(texts.iter().map(String::as_str)));
            match check(&files, &catalogue()) {
                Ok(plan) => {
                    let (written, _) = entry::read(&files);
                    let counts = (plan.models.len(), plan.tiers.len(), plan.routes.len(), plan.pools.len());
                    let len = |n: Option<usize>| n.unwrap_or_default();
                    prop_assert_eq!(counts, (
                        len(written.models.map(|l| l.len())), len(written.tiers.map(|l| l.len())),
                        len(written.routes.map(|l| l.len())), len(written.pools.map(|l| l.len())),
                    ));
                    prop_assert!(plan.names.values().all(|name| plan.models.contains_key(name)));
                }
                Err(mistakes) => prop_assert!(!mistakes.is_empty()),
            }
        }
    }
}

#[test]
fn what_has_no_tokens_of_output_is_priced_by_nothing_that_needs_some() {
    let flat = "{ flat = \"0.02\" }";
    let least = "{ flat = \"0.02\", min_output_tokens = 1 }";
    let estimate = "{ estimate = { shortfall = \"clamp\", min_output_tokens = 1 } }";
    let ceiling = "{ ceiling = true }";
    let no_output =
        "5: route[0].tier: embeddings have no output: tier.t must say charge = { ceiling = true } or { flat = \"…\" }";
    let is_flat = |surface: &str| {
        format!("5: route[0].tier: {surface} have a flat price: tier.t must say charge = {{ flat = \"…\" }}")
    };
    let by_use = |surface: &str| {
        format!("6: route[0].accept[0]: \"tempo/session\" charges what was used, and {surface} have a flat price only")
    };
    for (surface, charge, accept, more, want, why) in [
        ("embeddings", ceiling, "tempo/charge", "", None, "by its prompt"),
        ("embeddings", flat, "tempo/charge", "", None, "at one price"),
        ("embeddings", ceiling, "tempo/session", "", None, "by use"),
        ("embeddings", least, "tempo/charge", "", Some(no_output.to_owned()), "a least output of none"),
        ("embeddings", estimate, "tempo/charge", "", Some(no_output.to_owned()), "an estimate of none"),
        ("images", flat, "tempo/charge", "", None, "at one price a picture"),
        ("images", ceiling, "tempo/charge", "", Some(is_flat("images")), "by tokens"),
        ("speech", flat, "tempo/session", "", Some(by_use("speech")), "by use"),
        ("transcriptions", least, "tempo/charge", "", Some(is_flat("transcriptions")), "a least output of none"),
        (
            "embeddings",
            ceiling,
            "tempo/charge",
            "stream = \"force\"",
            Some("7: route[0].stream: the embeddings surface does not stream".to_owned()),
            "nothing to stream",
        ),
    ] {
        let tiers = format!("[tier.t]\nmodels = [\"openai/tiny\"]\nmax_output_tokens = 9\ncharge = {charge}\n");
        let routes = format!(
            "\n[[route]]\npath = \"/x\"\nsurface = \"{surface}\"\ntier = \"t\"\naccept = [\"{accept}\"]\n{more}\n"
        );
        let texts = [("models.toml", MODELS), ("tiers.toml", &tiers), ("routes.toml", &routes), ("pools.toml", POOLS)];
        let got = check(&Files::of(texts), &catalogue())
            .map(|plan| plan.route("/x").unwrap().stream)
            .map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>());
        match want {
            None => assert_eq!(got, Ok(StreamRule::Refuse), "{surface}: {why}"),
            Some(want) => assert_eq!(got, Err(vec![format!("routes.toml:{want}")]), "{surface}: {why}"),
        }
    }
}

#[test]
fn a_path_whose_surface_a_pool_does_not_have_is_refused_unless_the_pool_says_that_it_has() {
    const ROUTE: &str = "surface = \"chat\"\ntier = \"standard\"";
    for (surface, pool, want) in [
        ("chat", "profile = \"ollama\"", None),
        ("messages", "profile = \"vllm\"", None),
        ("messages", "profile = \"ollama\"\nsurfaces = [\"responses\", \"messages\"]", None),
        ("messages", "profile = \"ollama\"\nsurfaces = [\"responses\"]", Some("messages")),
        ("completions", "profile = \"ollama\"", Some("completions")),
    ] {
        let routes = ROUTES.replacen(ROUTE, &format!("surface = {surface:?}\ntier = \"standard\""), 1);
        let pools = POOLS.replacen("profile = \"vllm\"", pool, 1);
        let files = [("models.toml", MODELS), ("tiers.toml", TIERS), ("routes.toml", &routes), ("pools.toml", &pools)];
        let got = check(&Files::of(files), &catalogue()).map(drop);
        let got = got.map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>());
        let want = want.map_or(Ok(()), |word| {
            Err(vec![format!(
                "routes.toml:5: route[0].tier: \"openai/gpt-oss-120b\" is in pool.gpt-oss, and profile \"ollama\" has no {word}: name a \
                 tier without it, or write surfaces = [\"{word}\"] into pool.gpt-oss if its servers have it all the same"
            )])
        });
        assert_eq!(got, want, "{surface} on {pool}");
    }
    let wrong = with("pools.toml", "servers", "surfaces = [\"chats\"]\nservers").map(drop);
    assert!(wrong.is_err_and(|m| m[0].starts_with("pools.toml:4: pool.gpt-oss.surfaces[0]: \"chats\" is not")));
}

#[test]
fn pictures_that_are_sold_and_what_one_may_cost_are_read_as_written_and_nothing_else() {
    let with_more = |more: &str| with("tiers.toml", "max_output_tokens", &format!("{more}\nmax_output_tokens"));
    let plan = with_more("sizes = [\"1024x1024\", \"auto\"]\nimage_url = { flat = \"0.002\", apart = true }").unwrap();
    let limits = &plan.tiers.values().next().unwrap().limits;
    assert_eq!(limits.drawn, Drawn { sizes: vec!["1024x1024".into(), "auto".into()], qualities: Vec::new() });
    let image = limits.image_url.unwrap();
    assert_eq!((image.flat, image.apart), (Usd::parse("0.002").unwrap(), true));
    for (more, at) in [
        ("sizes = []", "sizes"),
        ("sizes = [\"a\\\"b\"]", "sizes"),
        ("qualities = \"low\"", "qualities"),
        ("image_url = { apart = true }", "image_url"),
        ("image_url = { flat = \"0.002\", apart = \"yes\" }", "image_url.apart"),
    ] {
        let mistakes = with_more(more).unwrap_err();
        assert!(mistakes[0].starts_with(&format!("tiers.toml:4: tier.standard.{at}: ")), "{more}: {mistakes:?}");
    }
}
