#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;

/// Every kind of token at a price of its own, so that a mix-up shows.
fn rates(times: u128) -> Rates {
    let rate = |n: u128| PerToken(n * times);
    Rates {
        input: rate(1_000),
        cached_input: rate(100),
        cache_write: rate(1_250),
        cache_write_hour: rate(2_000),
        output: rate(8_000),
        reasoning: rate(9_000),
        audio_input: Some(rate(40_000)),
        audio_output: Some(rate(80_000)),
        image_input: Some(rate(3_000)),
    }
}

fn prices() -> Prices {
    let speeds = |times| Speeds { standard: rates(times * 2), flex: rates(times), priority: rates(times * 4) };
    Prices { per_request: Usd(7), base: speeds(1), steps: vec![Step { above: 1_000, speeds: speeds(10) }] }
}

#[test]
fn every_kind_of_token_has_its_price_and_no_token_two() {
    let p = Prices::flat(rates(1));
    let none = Usage::default();
    for (usage, want, why) in [
        (none, 0, "nothing"),
        (Usage { prompt: 10, completion: 2, ..none }, 10_000 + 16_000, "plain"),
        (Usage { prompt: 10, cached: 4, ..none }, 6_000 + 400, "read from a cache"),
        (Usage { prompt: 10, cache_write: 4, ..none }, 6_000 + 5_000, "written into a cache"),
        (
            Usage { prompt: 10, cache_write: 4, cache_write_hour: 3, ..none },
            6_000 + 6_000 + 1_250,
            "some of it for an hour",
        ),
        (Usage { prompt: 10, cached: 2, cache_write: 3, ..none }, 5_000 + 200 + 3_750, "both"),
        (Usage { prompt: 10, audio_input: 4, image_input: 3, ..none }, 3_000 + 160_000 + 9_000, "sound and pictures"),
        (Usage { completion: 10, reasoning: 4, ..none }, 48_000 + 36_000, "reasoning is a part of the output"),
        (Usage { completion: 10, reasoning: 4, audio_output: 5, ..none }, 8_000 + 36_000 + 400_000, "speech too"),
        (Usage { prompt: 10, cached: 12, ..none }, 1_000, "more cached than there is: the total counts"),
        (Usage { prompt: 10, cached: 8, audio_input: 8, ..none }, 800 + 80_000, "counted twice: the total counts"),
        (Usage { completion: 3, reasoning: 9, ..none }, 27_000, "more reasoning than output"),
        (Usage { prompt: 5, cache_write_hour: 5, ..none }, 5_000, "an hour of what was not written"),
    ] {
        assert_eq!(p.cost(&usage, ServiceTier::Standard), Some(Usd(want)), "{why}");
    }
    let plain = Prices::flat(Rates::plain(PerToken(3), PerToken(5)));
    let odd = Usage {
        prompt: 10,
        completion: 10,
        cached: 1,
        reasoning: 1,
        cache_write: 1,
        audio_input: 1,
        image_input: 1,
        audio_output: 1,
        ..none
    };
    assert_eq!(
        plain.cost(&odd, ServiceTier::Standard),
        Some(Usd(80)),
        "what has no price of its own costs like its neighbour"
    );
    assert_eq!(
        p.cost(&Usage { prompt: u64::MAX, ..none }, ServiceTier::Standard).map(|usd| usd.0),
        Some(u128::from(u64::MAX) * 1_000)
    );
    let dear = Prices::flat(Rates::plain(PerToken(u128::MAX), PerToken(1)));
    assert_eq!(dear.cost(&Usage { prompt: 2, ..none }, ServiceTier::Standard), None, "past the largest amount");
}

#[test]
fn a_step_is_for_the_whole_request_and_begins_behind_its_line() {
    let p = prices();
    let prompt = |prompt| Usage { prompt, completion: 1, ..Usage::default() };
    for (tokens, served, want, why) in [
        (1_000, ServiceTier::Standard, 7 + 2_000_000 + 16_000, "on the line"),
        (1_001, ServiceTier::Standard, 7 + 20_020_000 + 160_000, "behind it every token is dear, output too"),
        (1_000, ServiceTier::Flex, 7 + 1_000_000 + 8_000, "flex"),
        (1_000, ServiceTier::Priority, 7 + 4_000_000 + 32_000, "priority"),
        (1_001, ServiceTier::Priority, 7 + 40_040_000 + 320_000, "both"),
        (1_000, ServiceTier::Other, 7 + 4_000_000 + 32_000, "a speed that nobody knows: the dearest"),
    ] {
        assert_eq!(p.cost(&prompt(tokens), served), Some(Usd(want)), "{why}");
    }
}

#[test]
fn the_bound_counts_what_a_request_can_reach_and_nothing_else() {
    let p = prices();
    for (reach, input, output, why) in [
        (Reach::text(1_000), 5_000, 36_000, "priority, a cache that is written, reasoning"),
        (Reach { hour: true, ..Reach::text(1_000) }, 8_000, 36_000, "to stay there for an hour"),
        (Reach::text(1_001), 50_000, 360_000, "the step"),
        (Reach { pictures: true, ..Reach::text(1) }, 12_000, 36_000, "pictures"),
        (Reach { sound: true, ..Reach::text(1) }, 160_000, 320_000, "sound"),
    ] {
        let want = Dearest { input: PerToken(input), output: PerToken(output) };
        assert_eq!(p.dearest(reach), want, "{why}");
    }
}

fn any_rates() -> impl Strategy<Value = Rates> {
    let rate = || (0u128..1 << 50).prop_map(PerToken);
    let may = || prop::option::of((0u128..1 << 50).prop_map(PerToken));
    (rate(), rate(), rate(), rate(), rate(), rate(), may(), may(), may()).prop_map(
        |(
            input,
            cached_input,
            cache_write,
            cache_write_hour,
            output,
            reasoning,
            audio_input,
            audio_output,
            image_input,
        )| Rates {
            input,
            cached_input,
            cache_write,
            cache_write_hour,
            output,
            reasoning,
            audio_input,
            audio_output,
            image_input,
        },
    )
}

fn any_prices() -> impl Strategy<Value = Prices> {
    let speeds = || {
        (any_rates(), any_rates(), any_rates()).prop_map(|(standard, flex, priority)| Speeds {
            standard,
            flex,
            priority,
        })
    };
    let steps = prop::collection::btree_map(0u64..3_000, speeds(), 0..3)
        .prop_map(|steps| steps.into_iter().map(|(above, speeds)| Step { above, speeds }).collect());
    (0u128..1 << 60, speeds(), steps).prop_map(|(fee, base, steps)| Prices { per_request: Usd(fee), base, steps })
}

fn any_usage() -> impl Strategy<Value = Usage> {
    let part = || 0u64..3_000;
    (part(), part(), part(), part(), (part(), part(), part(), part(), part())).prop_map(
        |(
            prompt,
            completion,
            cached,
            reasoning,
            (cache_write, cache_write_hour, audio_input, audio_output, image_input),
        )| Usage {
            prompt,
            completion,
            cached,
            reasoning,
            cache_write,
            cache_write_hour,
            audio_input,
            audio_output,
            image_input,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_usage_within_the_bounds_costs_more_than_the_bound(
        prices in any_prices(), usage in any_usage(), more_prompt in 0u64..100, more_output in 0u64..100,
        served in prop::sample::select(vec![ServiceTier::Standard, ServiceTier::Flex, ServiceTier::Priority, ServiceTier::Other]),
        quiet in any::<bool>(), blind in any::<bool>(), hour in any::<bool>(),
    ) {
        // Whoever sends no sound gets none, whoever sends no picture has none counted, whoever asks for no hour is given none.
        let usage = Usage {
            audio_input: if quiet { 0 } else { usage.audio_input },
            audio_output: if quiet { 0 } else { usage.audio_output },
            image_input: if blind { 0 } else { usage.image_input },
            cache_write_hour: if hour { usage.cache_write_hour } else { 0 },
            ..usage
        };
        let prompt = usage.prompt + more_prompt;
        let each = prices.dearest(Reach { prompt, sound: !quiet, pictures: !blind, hour });
        let bound = each.input.of(prompt).unwrap().plus(each.output.of(usage.completion + more_output).unwrap()).unwrap();
        let bound = bound.plus(prices.per_request).unwrap();
        let cost = prices.cost(&usage, served).unwrap();
        prop_assert!(cost <= bound, "{cost} is more than {bound}");
        let other = prices.cost(&usage, ServiceTier::Other).unwrap();
        prop_assert!(cost <= other, "no speed is dearer than the dearest");
    }
}
