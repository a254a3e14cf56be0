//! What `prices.toml`, the price list it names and `models.toml` must say together.

use super::*;
use crate::usage::{ServiceTier, Usage};

const LIST: &str = r#"{
  "sample_spec": { "input_cost_per_token": "a number" },
  "openai/listed": { "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 1e-07,
    "input_cost_per_token_priority": 2e-06, "litellm_provider": "openai", "max_input_tokens": 1000, "max_output_tokens": 100 },
  "bare": { "input_cost_per_token": 3e-06, "output_cost_per_token": 4e-06, "litellm_provider": "openai" },
  "night": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "off_peak_pricing": {} },
  "nothing": { "input_cost_per_token": 0, "output_cost_per_token": 0.0 }
}"#;
const PRICES: &str = "registry = \"list.json\"\nmarkup = \"1.20\"\n[rail.\"tempo/charge\"]\ndiscount = \"0.05\"\n";

/// One model of these lines beside [`MODELS`], under these prices.
fn priced(name: &str, lines: &str, prices: &str) -> Result<Plan, Vec<String>> {
    let models = format!("{MODELS}[model.{name:?}]\nupstream = \"up\"\npool = \"gpt-oss\"\n{lines}\n");
    let texts =
        [("models.toml", models.as_str()), ("tiers.toml", TIERS), ("routes.toml", ROUTES), ("pools.toml", POOLS)];
    let with = [("prices.toml", prices), ("list.json", LIST)];
    let files = Files::of(texts.into_iter().chain(with.into_iter().filter(|_| !prices.is_empty())));
    check(&files, &catalogue()).map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect())
}

#[test]
fn a_model_costs_what_is_written_or_what_the_list_says_with_the_markup() {
    for (name, lines, input, output, why) in [
        ("openai/listed", "", 1_200_000, 2_400_000, "its own name, with markup"),
        ("openai/bare", "", 3_600_000, 4_800_000, "its vendor's row"),
        ("x", "price_as = \"bare\"", 3_600_000, 4_800_000, "the row it names"),
        ("x", "price_as = \"bare\"\nprice = { output = \"1\" }", 3_600_000, 1_000_000, "its own output: final"),
        ("x", "price = { input = \"1\", output = \"2\" }", 1_000_000, 2_000_000, "its own price: final"),
        (
            "x",
            "price_as = \"night\"\nprice = { input = \"1\", output = \"2\" }",
            1_000_000,
            2_000_000,
            "a row that cannot be billed, replaced",
        ),
        ("x", "price = { input = \"0\", output = \"0\" }", 0, 0, "the operator may write zero"),
        ("x", "free = true", 0, 0, "or say that it is free"),
    ] {
        let plan = priced(name, lines, PRICES).unwrap_or_else(|mistakes| panic!("{why}: {mistakes:#?}"));
        let rates = *plan.models.get(name).unwrap().price.standard();
        assert_eq!((rates.input.0, rates.output.0), (input * 1_000_000, output * 1_000_000), "{why}");
    }
    let plan = priced("openai/listed", "service_tiers = [\"standard\"]", PRICES).unwrap();
    let model = plan.models.get("openai/listed").unwrap();
    assert_eq!(
        model.price.base.priority, model.price.base.standard,
        "a speed that does not serve it is not in its bound"
    );
    assert_eq!((model.max_input, model.max_output, model.stated), (Some(1_000), Some(100), None));
    let from: Vec<_> = model.sources.iter().map(|s| (s.kind, s.usd.as_str(), s.from.as_str())).collect();
    assert_eq!(
        from,
        [
            ("input", "1.2", "list.json \"openai/listed\" x 1.2 (prices.toml:2)"),
            ("cached_input", "0.12", "list.json \"openai/listed\" x 1.2 (prices.toml:2)"),
            ("cache_write", "1.2", "as input"),
            ("cache_write_hour", "1.2", "as cache_write"),
            ("output", "2.4", "list.json \"openai/listed\" x 1.2 (prices.toml:2)"),
            ("reasoning", "2.4", "as output"),
        ]
    );
    let plan = priced("openai/listed", "bill = \"stated\"", PRICES).unwrap();
    let model = plan.models.get("openai/listed").unwrap();
    assert_eq!(model.stated, Factor::parse("1.2").ok());
    let usage = Usage { prompt: 1, completion: 1, ..Usage::default() };
    assert_eq!(model.price.cost(&usage, ServiceTier::Priority), Some(Usd(2_400_000_000_000 + 2_400_000_000_000)));
}

#[test]
fn a_discount_is_of_the_rails_that_have_one() {
    let plan = priced("x", "free = true", PRICES).unwrap();
    let route = plan.route("/v1/chat/completions").unwrap();
    assert_eq!(route.share(&RailId::from("tempo/charge")), Factor::parse("0.95").unwrap());
    assert_eq!(route.share(&RailId::from("tempo/session")), Factor::ONE);
}

#[test]
fn every_mistake_about_prices_is_named_with_its_file_line_and_key() {
    let neither = "write price_as = \"<its key there>\", or price";
    #[rustfmt::skip]
    let rows: &[(&str, &str, &str, String)] = &[
        // the model's name, its lines, prices.toml, the one mistake
        ("x", "", "", "models.toml:13: model.x: `price` is missing".into()),
        ("x", "price = { input = \"1\" }", "", "models.toml:16: model.x.price: `output` is missing".into()),
        ("x", "price_as = \"bare\"", "", "models.toml:16: model.x.price_as: there is no registry: write registry = \"model_prices.json\" into prices.toml".into()),
        ("x", "price_as = \"bear\"", PRICES, "models.toml:16: model.x.price_as: \"bear\" is not in list.json".into()),
        ("x", "", PRICES, format!("models.toml:13: model.x: list.json has no \"x\" and no \"up\": {neither}")),
        ("x", "price = { output = \"1\" }", PRICES, format!("models.toml:16: model.x.price: list.json has no \"x\" and no \"up\": {neither}")),
        ("azure/bare", "", PRICES, format!("models.toml:13: model.\"azure/bare\": list.json has no \"azure/bare\" and no \"up\": {neither}")),
        ("x", "price_as = \"night\"", PRICES, "models.toml:16: model.x.price_as: \"night\" of list.json has other prices at some hours (off_peak_pricing): write price = { input = \"…\", output = \"…\" } with what you charge".into()),
        ("x", "price_as = \"nothing\"", PRICES, "models.toml:16: model.x.price_as: \"nothing\" of list.json has no price for input, or 0: write price = { input = \"…\" }, or free = true if it costs nothing".into()),
        ("x", "price_as = 3", PRICES, "models.toml:16: model.x.price_as: must be text in quotes, not a whole number".into()),
        ("x", "free = false", PRICES, "models.toml:16: model.x.free: is either true or not written".into()),
        ("x", "free = true\nprice_as = \"bare\"", PRICES, "models.toml:16: model.x.free: a model that is free has no price: leave out price and price_as".into()),
        ("x", "free = true\nbill = \"both\"", PRICES, "models.toml:17: model.x.bill: \"both\" is not \"usage\" or \"stated\"".into()),
        ("x", "price_as = \"bare\"\nservice_tiers = [\"fast\"]", PRICES, "models.toml:17: model.x.service_tiers: \"fast\" is not \"standard\", \"flex\" or \"priority\"".into()),
        ("x", "free = true", "registry = 3", "prices.toml:1: registry: must be text in quotes, not a whole number".into()),
        ("x", "free = true", "registry = \"gone.json\"", "prices.toml:1: registry: \"gone.json\" is missing".into()),
        ("x", "free = true", "registry = \"pools.toml\"", "prices.toml:1: registry: \"pools.toml\" is not a price list in JSON: invalid type: sequence, expected an object at line 2 column 0".into()),
        ("x", "free = true", "markup = \"1.2\"", "prices.toml:1: markup: is of a registry, and there is none: prices of models.toml are final".into()),
        ("x", "free = true", "registry = \"list.json\"\nmarkup = \"0.9\"", "prices.toml:2: markup: is below 1: less than the list is a discount, and that is of a rail".into()),
        ("x", "free = true", "registry = \"list.json\"\nmarkup = 1.2", "prices.toml:2: markup: amounts are text, so that they stay exact: write \"1.2\"".into()),
        ("x", "free = true", "[rail.bitcoin]\ndiscount = \"0.1\"", "prices.toml:1: rail.bitcoin: \"bitcoin\" is not a rail of pontage.toml: tempo/charge, tempo/session".into()),
        ("x", "free = true", "[rail.\"tempo/charge\"]\ndiscount = \"1\"", "prices.toml:2: rail.\"tempo/charge\".discount: is 1 or more: nothing would be left to pay".into()),
        ("x", "free = true", "[rail.\"tempo/charge\"]", "prices.toml:1: rail.\"tempo/charge\": `discount` is missing".into()),
        ("x", "free = true", "regisry = \"list.json\"", "prices.toml:1: regisry: unknown key; known here: markup, rail, registry".into()),
    ];
    for (name, lines, prices, want) in rows {
        let mistakes = priced(name, lines, prices).expect_err(want);
        assert_eq!(mistakes, [want.as_str()], "{name} {lines:?} {prices:?}");
    }
    let broken = priced("x", "price_as = \"bare\"", "registry = ").unwrap_err();
    assert!(broken.len() == 1 && broken[0].starts_with("prices.toml:1"), "a broken file accuses no model: {broken:?}");
}

#[test]
fn the_list_belongs_to_the_generation() {
    let files = |prices, list| {
        Files::of(
            [("models.toml", MODELS), ("tiers.toml", TIERS), ("routes.toml", ROUTES), ("pools.toml", POOLS)]
                .into_iter()
                .chain([("prices.toml", prices), ("list.json", list)]),
        )
        .generation()
    };
    let base = files("registry = \"list.json\"", LIST);
    assert_eq!(base, files("registry = \"list.json\"", LIST));
    assert_ne!(base, files("registry = \"list.json\"", "{}"), "another list");
    assert_ne!(base, files("registry = \"list.json\" ", LIST), "another prices.toml");
    assert_ne!(base, files("", LIST));
}
