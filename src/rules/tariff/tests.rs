#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::usage::{ServiceTier, Usage};
use crate::written::Spot;

fn rate(n: u128) -> Option<PerToken> {
    Some(PerToken(n))
}

fn own(given: Given) -> PriceEntry {
    let spot = Spot { file: "models.toml".into(), line: Some(7), key: String::new() };
    PriceEntry { spot, given, per_request: None, price_as: None, flex: true, priority: true }
}

fn listed() -> Row {
    let standard = Given {
        input: rate(100),
        output: rate(800),
        reasoning: rate(900),
        audio_input: rate(5_000),
        ..Given::default()
    };
    let flex = Given { input: rate(50), ..Given::default() };
    let priority = Given { output: rate(1_600), ..Given::default() };
    let long = Offer {
        standard: Given { input: rate(200), ..Given::default() },
        priority: Given { input: rate(400), ..Given::default() },
        ..Offer::default()
    };
    let longer = Offer { standard: Given { output: rate(1_200), ..Given::default() }, ..Offer::default() };
    Row {
        key: "row".into(),
        base: Offer { standard, flex, priority },
        steps: vec![(1_000, long), (2_000, longer)],
        max_input: Some(9),
        ..Row::default()
    }
}

fn of(own: &PriceEntry, row: &Row, markup: &str) -> Result<Tariff, String> {
    Tariff::of(own, Some((row, Factor::parse(markup).unwrap(), "list \"row\"".into())))
}

#[test]
fn what_is_missing_costs_like_its_neighbour() {
    let tariff = of(&own(Given::default()), &listed(), "1").unwrap();
    let Prices { base, steps, .. } = &tariff.prices;
    let standard =
        Rates { reasoning: PerToken(900), audio_input: rate(5_000), ..Rates::plain(PerToken(100), PerToken(800)) };
    assert_eq!(base.standard, standard);
    let flex = Rates {
        input: PerToken(50),
        cached_input: PerToken(50),
        cache_write: PerToken(50),
        cache_write_hour: PerToken(50),
        ..standard
    };
    assert_eq!(base.flex, flex, "the speed's own input, all else as the standard one");
    let priority = Rates { output: PerToken(1_600), reasoning: PerToken(1_600), ..standard };
    assert_eq!(base.priority, priority, "reasoning is not cheaper than output because nobody wrote it twice");
    let input = |above, served: fn(&Speeds) -> Rates| {
        let step = steps.iter().find(|step| step.above == above).unwrap();
        (served(&step.speeds).input.0, served(&step.speeds).output.0)
    };
    assert_eq!(input(1_000, |s| s.standard), (200, 800));
    assert_eq!(input(1_000, |s| s.flex), (200, 800), "a speed that is silent about long prompts costs what they cost");
    assert_eq!(input(1_000, |s| s.priority), (400, 1_600));
    assert_eq!(input(2_000, |s| s.standard), (200, 1_200), "a step keeps what the one below it said");
    assert_eq!(input(2_000, |s| s.priority), (400, 1_200));
    let narrow = PriceEntry { priority: false, flex: false, ..own(Given::default()) };
    let narrow = of(&narrow, &listed(), "1").unwrap().prices;
    assert_eq!(
        (narrow.base.priority, narrow.base.flex),
        (narrow.base.standard, narrow.base.standard),
        "not served, not in the bound"
    );
}

#[test]
fn what_the_operator_writes_is_final_and_holds_everywhere() {
    let written = Given { input: rate(7), ..Given::default() };
    let tariff = of(&own(written), &listed(), "1.5").unwrap();
    let usage = Usage { prompt: 1, completion: 1, ..Usage::default() };
    for (prompt, served, want, why) in [
        (1, ServiceTier::Standard, 7 + 1_200, "no markup on his own"),
        (1, ServiceTier::Flex, 7 + 1_200, "at every speed"),
        (1_500, ServiceTier::Standard, 7 * 1_500 + 1_200, "at every length"),
        (2_500, ServiceTier::Standard, 7 * 2_500 + 1_800, "the list's step of output stays"),
    ] {
        assert_eq!(tariff.prices.cost(&Usage { prompt, ..usage }, served), Some(Usd(want)), "{why}");
    }
    let from = |kind| tariff.sources.iter().find(|s| s.kind == kind).map(|s| (s.usd.as_str(), s.from.as_str()));
    assert_eq!(from("input"), Some(("0.000000000007", "models.toml:7")));
    assert_eq!(from("output"), Some(("0.0000000012", "list \"row\"")));
    assert_eq!(from("cached_input"), Some(("0.000000000007", "as input")));
    assert_eq!(from("cache_write_hour"), Some(("0.000000000007", "as cache_write")));
    assert_eq!(
        (from("audio_output"), from("image_input"), from("request")),
        (None, None, None),
        "what is not sold has no price"
    );
    assert_eq!(tariff.max_input, Some(9));
    let output = Given { output: rate(10), ..Given::default() };
    assert_eq!(
        of(&own(output), &listed(), "1").unwrap().prices.standard().reasoning,
        PerToken(10),
        "his output is his reasoning"
    );
}

#[test]
fn a_price_that_nobody_wrote_is_a_mistake() {
    let whole = Given { input: rate(1), output: rate(2), ..Given::default() };
    let silent = Row { key: "row".into(), ..Row::default() };
    let missing = of(&own(Given::default()), &silent, "1").unwrap_err();
    assert!(missing.starts_with("has no price for input, or 0: write price = { input = \"…\" }"), "{missing}");
    let half = Given { input: rate(1), ..Given::default() };
    let missing = of(&own(half), &silent, "1").unwrap_err();
    assert!(missing.starts_with("has no price for output"), "{missing}");
    let embeds = Row { embeds: true, ..silent.clone() };
    assert_eq!(of(&own(half), &embeds, "1").unwrap().prices.standard().output, PerToken(0), "vectors have no output");
    let odd = Row { unbillable: vec!["has other prices at some hours".into()], ..listed() };
    let told = of(&own(Given::default()), &odd, "1").unwrap_err();
    assert_eq!(
        told,
        "has other prices at some hours: write price = { input = \"…\", output = \"…\" } with what you charge"
    );
    assert!(of(&own(half), &odd, "1").is_err(), "half a price does not replace it");
    assert_eq!(of(&own(whole), &odd, "1").unwrap().prices.standard().input, PerToken(1), "his own price does");
    let dear = Row {
        base: Offer {
            standard: Given { input: rate(u128::MAX), output: rate(1), ..Given::default() },
            ..Offer::default()
        },
        ..silent
    };
    assert_eq!(of(&own(Given::default()), &dear, "2").unwrap_err(), "is more than can be counted");
}

#[test]
fn a_markup_is_on_what_the_list_says_fee_and_all() {
    let row = Row { per_request: Some(Usd(10)), ..listed() };
    let tariff = of(&own(Given::default()), &row, "1.25").unwrap();
    assert_eq!((tariff.prices.standard().input, tariff.prices.per_request), (PerToken(125), Usd(13)), "rounded up");
    let fee = PriceEntry { per_request: Some(Usd(3)), ..own(Given::default()) };
    assert_eq!(of(&fee, &row, "1.25").unwrap().prices.per_request, Usd(3), "his own fee is final");
}
