#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;

/// Rows in the shapes that the real file has; `tests/registry.rs` reads the real one.
const LIST: &str = r#"{
  "sample_spec": { "input_cost_per_token": "a number", "litellm_provider": "one of them" },
  "gpt-5-mini": { "cache_read_input_token_cost": 2.5e-08, "input_cost_per_token": 2.5e-07, "input_cost_per_token_batches": 1.25e-07,
    "input_cost_per_token_flex": 1.25e-07, "input_cost_per_token_priority": 4.5e-07, "litellm_provider": "openai", "max_input_tokens": 272000,
    "max_output_tokens": 128000.0, "mode": "chat", "output_cost_per_token": 2e-06, "output_cost_per_token_flex": 1e-06,
    "search_context_cost_per_query": { "search_context_size_low": 0.01 }, "supports_vision": true },
  "long": { "input_cost_per_token": 2.5e-06, "input_cost_per_token_above_272k_tokens": 5e-06, "output_cost_per_token": 1.5e-05,
    "input_cost_per_token_above_272k_tokens_priority": 9e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
    "cache_creation_input_token_cost_above_1hr_above_512k_tokens": 1.2e-05, "litellm_provider": "x" },
  "xai/grok": { "input_cost_per_token": 1, "output_cost_per_token": 2, "input_cost_per_token_above_200k_tokens": 3, "litellm_provider": "xai" },
  "ranges": { "litellm_provider": "dashscope", "tiered_pricing": [
    { "input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 256000.0] },
    { "input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "output_cost_per_reasoning_token": 3e-06, "range": [256000.0, 1e6] } ] },
  "gap": { "tiered_pricing": [
    { "input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 32000] },
    { "input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "range": [64000, 128000] } ] },
  "late": { "tiered_pricing": [{ "input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [1, 32000] }] },
  "half": { "tiered_pricing": [{ "input_cost_per_token": 5e-08, "range": [0, 32000] }] },
  "by results": { "tiered_pricing": [{ "input_cost_per_query": 0.005, "max_results_range": [0, 25] }] },
  "night": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "off_peak_pricing": { "input_cost_per_token": 5e-07 } },
  "by the second": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "output_cost_per_second": 0.001 },
  "not by the second": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "output_cost_per_second": 0.0 },
  "draws": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "output_cost_per_image_token": 3e-05 },
  "new": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "cost_of_the_moon": 1 },
  "perplexity/sonar": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "litellm_provider": "perplexity" },
  "text": { "input_cost_per_token": "1e-06", "output_cost_per_token": -1 },
  "zero": { "input_cost_per_token": 0.0, "output_cost_per_token": 0, "cache_read_input_token_cost": 0 },
  "null": { "input_cost_per_token": null, "output_cost_per_token": 1e-06, "input_cost_per_request": 0.005 },
  "embed": { "input_cost_per_token": 2e-08, "mode": "embedding", "litellm_provider": "openai" },
  "twice": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06 },
  "twice": { "input_cost_per_token": 2e-06, "output_cost_per_token": 1e-06 },
  "Case/Model": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06 },
  "fine": { "input_cost_per_token": 2.9999900000000002e-06, "output_cost_per_token": 1e-24 },
  "regional": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "regional_processing_uplift_multiplier_us": 1.1,
    "regional_processing_uplift_multiplier_eu": 1.0, "regional_endpoint_uplift_multiplier": 1.25,
    "provider_specific_entry": { "us": 1.1, "fast": 2.0, "eu": 1, "free_pictures": 5, "schema": "v2", "sizes": { "480p": { "1:1": "640x640" } } } },
  "surcharged": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "night_surcharge": 0.2 },
  "by region": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "region_multipliers": { "eu": [{ "share": 1.1 }] } },
  "by a word": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "regional_processing_uplift_multiplier_us": { "x": 1.1 } },
  "its own": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "provider_specific_entry": { "price": { "hd": 2 } } },
  "no fee": { "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "fee": 0.0, "rate": "standard", "web_search_billing_unit": "query",
    "charges": { "by": "token" }, "rpm": 300, "max_generated": 5, "search_free_requests": { "count": 1500 } },
  "odd": 3
}"#;

fn row(key: &str) -> Row {
    Registry::open(LIST).unwrap().named(key).unwrap_or_else(|| panic!("{key:?}"))
}

/// USD per million, as a rate.
fn per_million(text: &str) -> Option<PerToken> {
    Some(PerToken::per_million(text).unwrap())
}

#[test]
fn a_row_is_read_as_it_is_written() {
    let mini = row("gpt-5-mini");
    let standard = Given {
        input: per_million("0.25"),
        cached_input: per_million("0.025"),
        output: per_million("2"),
        ..Given::default()
    };
    let flex = Given { input: per_million("0.125"), output: per_million("1"), ..Given::default() };
    let priority = Given { input: per_million("0.45"), ..Given::default() };
    assert_eq!(mini.base, Offer { standard, flex, priority }, "batches are not sold, searches are refused at the door");
    assert_eq!((mini.max_input, mini.max_output, mini.steps.len()), (Some(272_000), Some(128_000), 0));
    assert_eq!((mini.unbillable, mini.embeds), (Vec::<String>::new(), false));

    let long = row("long");
    let at = |above| long.steps.iter().find(|(at, _)| *at == above).unwrap().1;
    assert_eq!(at(272_000).standard.input, per_million("5"));
    assert_eq!(at(272_000).priority.input, per_million("9"), "a line and a speed");
    assert_eq!(long.base.standard.cache_write_hour, per_million("6"), "a line in hours is none in tokens");
    assert_eq!(at(512_000).standard.cache_write_hour, per_million("12"));
    assert_eq!(row("xai/grok").steps[0].0, 199_999, "this vendor's line belongs to what is above it");
    assert_eq!(row("fine").base.standard.input, Some(PerToken(2_999_990_000_001)), "rounded up at 1e-18");
    assert_eq!(row("fine").base.standard.output, Some(PerToken(1)), "never down to nothing");
    let none = row("null");
    assert_eq!((none.base.standard.input, none.per_request), (None, Some(Usd(5_000_000_000_000_000))));
    assert_eq!(row("zero").base, Offer::default(), "a zero is a price that nobody wrote");
    assert!(row("embed").embeds);
}

#[test]
fn ranges_of_prices_become_steps() {
    let ranges = row("ranges");
    assert_eq!(ranges.base.standard.input, per_million("0.05"));
    let (above, last) = ranges.steps[0];
    assert_eq!(
        (ranges.steps.len(), above, last.standard.output),
        (1, 256_000, per_million("2")),
        "past the last: the last"
    );
    assert_eq!(last.standard.reasoning, per_million("3"));
}

#[test]
fn what_cannot_be_billed_is_said() {
    for (key, want) in [
        ("gap", "has ranges of prices that do not join (tiered_pricing)"),
        ("late", "has ranges of prices that do not join (tiered_pricing)"),
        ("by results", "has ranges of prices that do not join (tiered_pricing)"),
        ("half", "has a range of prices without input or output (tiered_pricing)"),
        ("night", "has other prices at some hours (off_peak_pricing)"),
        ("by the second", "charges in a way that is not billed here (output_cost_per_second)"),
        ("draws", "charges in a way that is not billed here (output_cost_per_image_token)"),
        ("new", "charges in a way that is not billed here (cost_of_the_moon)"),
        ("perplexity/sonar", "searches by itself and bills each search (search_context_cost_per_query)"),
        ("text", "has a price that is no amount (input_cost_per_token)"),
        ("odd", "is not a row of prices"),
        ("surcharged", "charges in a way that is not billed here (night_surcharge)"),
        ("by region", "charges in a way that is not billed here (region_multipliers)"),
        ("by a word", "charges in a way that is not billed here (regional_processing_uplift_multiplier_us)"),
        ("its own", "charges in a way that is not billed here (provider_specific_entry.price)"),
    ] {
        assert_eq!(row(key).unbillable.first().map(String::as_str), Some(want), "{key}");
    }
    assert_eq!(row("text").unbillable.len(), 2, "a negative price is none");
    assert_eq!(row("not by the second").unbillable, Vec::<String>::new(), "a unit that costs nothing is no matter");
}

#[test]
fn what_is_charged_on_some_endpoints_only_is_not_applied_and_said() {
    let regional = row("regional");
    assert_eq!(regional.unbillable, Vec::<String>::new());
    assert_eq!(regional.base.standard.input, per_million("1"), "the price of the plain endpoint");
    let said = [
        "regional_processing_uplift_multiplier_us = 1.1",
        "regional_endpoint_uplift_multiplier = 1.25",
        "provider_specific_entry.us = 1.1",
        "provider_specific_entry.fast = 2.0",
    ];
    assert_eq!(regional.not_applied, said, "one of 1 is none, and counts, words and tables of words are no factors");
    let free = row("no fee");
    assert_eq!((free.unbillable, free.not_applied), (Vec::new(), Vec::new()), "neither zeros, nor words, nor counts");
}

#[test]
fn a_name_finds_its_row_and_no_other() {
    let list = Registry::open(LIST).unwrap();
    let of = |names: &[&str]| list.of(names).map(|row| row.key);
    for (names, want, why) in [
        (vec!["gpt-5-mini"], Some("gpt-5-mini"), "as written"),
        (vec!["openai/gpt-5-mini"], Some("gpt-5-mini"), "vendor/model, and the row is that vendor's"),
        (vec!["azure/gpt-5-mini"], None, "another vendor's price"),
        (vec!["unheard/of", "gpt-5-mini"], Some("gpt-5-mini"), "the name its backend hears"),
        (vec!["openai/gpt-5-mini", "long"], Some("long"), "a row of exactly this name is before one of half of it"),
        (vec!["case/model"], Some("Case/Model"), "case alone"),
        (vec!["gpt-5-mini-2025-08-07"], None, "no version is cut off"),
        (vec!["gpt-5"], None, "no beginning will do"),
        (vec!["twice"], None, "two prices are none"),
        (vec!["sample_spec"], None, "the row that explains the others"),
        (vec![], None, "no name"),
    ] {
        assert_eq!(of(&names).as_deref(), want, "{why}");
    }
    assert!(list.named("openai/gpt-5-mini").is_none(), "price_as is the key, not a name");
    assert_eq!(list.named("GPT-5-mini").map(|row| row.key).as_deref(), Some("gpt-5-mini"));
    for (text, why) in [
        ("", "nothing"),
        ("[]", "a list"),
        ("{\"a\": {}", "half a file"),
        ("{} {}", "two files"),
        ("{\"a\": 1e}", "no JSON"),
    ] {
        assert!(Registry::open(text).is_err(), "{why}");
    }
}
