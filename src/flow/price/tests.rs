#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::catalogue::{Catalogue, ProfileAbility, RailAbility};
use crate::flow::choose::quote_idle;
use crate::rules::Files;
use crate::rules::plan::Plan;
use proptest::prelude::*;

const LIST: &str = r#"{"row": {"input_cost_per_token": 1e-05, "output_cost_per_token": 2e-05, "output_cost_per_token_priority": 4e-05,
  "cache_creation_input_token_cost": 1.25e-05, "input_cost_per_token_above_1k_tokens": 3e-05, "input_cost_per_request": 0.001}}"#;

/// Rules that sell a model of the list, on a route where one rail has a discount of `off`.
fn plan(off: &str, more: &str) -> Plan {
    let models = format!("[model.m]\nupstream = \"up\"\npool = \"p\"\nprice_as = \"row\"\n{more}\n");
    let prices = format!("registry = \"list.json\"\nmarkup = \"2\"\n[rail.\"less/session\"]\ndiscount = {off:?}\n");
    let files = [
        ("models.toml", models.as_str()),
        ("tiers.toml", "[tier.t]\nmodels = [\"m\"]\nmax_output_tokens = 100\ncharge = { ceiling = true }\n"),
        (
            "routes.toml",
            "[[route]]\npath = \"/c\"\nsurface = \"chat\"\ntier = \"t\"\naccept = [\"less/session\", \"full/session\"]\n",
        ),
        ("pools.toml", "[pool.p]\nprofile = \"vllm\"\nservers = [\"http://127.0.0.1:1\"]\n"),
        ("prices.toml", &prices),
        ("list.json", LIST),
    ];
    let rail = |id: &str| (RailId::from(id), RailAbility { fixed_amount: false, decimals: 6 });
    let catalogue = Catalogue {
        rails: [rail("less/session"), rail("full/session")].into(),
        profiles: [("vllm", ProfileAbility::PLAIN)].into(),
        vocabularies: Vocabulary::NAMES.to_vec(),
    };
    crate::rules::check(&Files::of(files), &catalogue).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

/// A request under them.
fn quoted(off: &str, more: &str) -> Quoted {
    let plan = plan(off, more);
    let body = r#"{"model":"m","max_tokens":50,"messages":[{"role":"user","content":"how much is this?"}]}"#;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(quote_idle(&plan, "/c", body.into())).unwrap_or_else(|_| panic!("it is not quoted"))
}

#[test]
fn an_answer_is_billed_by_its_speed_its_length_or_its_backend_and_the_rails_discount_is_on_the_sum() {
    let (less, full) = (RailId::from("less/session"), RailId::from("full/session"));
    let usage = Usage { prompt: 10, completion: 5, ..Usage::default() };
    let long = Usage { prompt: 1_001, ..usage };
    let stated = Usd::parse("0.004").ok();
    for (rail, more, usage, served, stated, want, why) in [
        (&full, "", usage, ServiceTier::Standard, None, "0.0024", "10 at 20, 5 at 40, a fee of 2,000, USD of 1e-6"),
        (&less, "", usage, ServiceTier::Standard, None, "0.0018", "a quarter less of all that"),
        (&full, "", usage, ServiceTier::Priority, None, "0.0026", "the speed that served it"),
        (&full, "", usage, ServiceTier::Other, None, "0.0026", "a speed nobody knows: the dearest"),
        (&full, "", long, ServiceTier::Standard, None, "0.06226", "long: every prompt token at 60"),
        (&full, "", usage, ServiceTier::Standard, stated, "0.0024", "what it says of its cost is not asked for"),
        (&full, "bill = \"stated\"", usage, ServiceTier::Standard, stated, "0.008", "it is, with the markup"),
        (&less, "bill = \"stated\"", usage, ServiceTier::Priority, stated, "0.006", "and the discount"),
        (&full, "bill = \"stated\"", usage, ServiceTier::Standard, None, "0.0024", "it says nothing: by usage"),
        (&full, "bill = \"stated\"", usage, ServiceTier::Standard, Some(Usd::ZERO), "0.0024", "nothing is not a price"),
    ] {
        let got = quoted("0.25", more).bill(rail, &usage, served, stated).unwrap();
        assert_eq!(got, Usd::parse(want).unwrap(), "{why}");
    }
}

#[test]
fn what_a_request_is_quoted_at_covers_it_at_the_dearest_it_can_be() {
    let quoted = quoted("0.25", "");
    let prompt = quoted.parts.prompt_tokens.unwrap();
    let (less, full) = (RailId::from("less/session"), RailId::from("full/session"));
    assert_eq!(quoted.parts.prompt_usd, Some(Usd(20_000_000_000_000 * u128::from(prompt))), "what the list says");
    assert_eq!(
        quoted.parts.prompt_most_usd,
        Some(Usd(25_000_000_000_000 * u128::from(prompt))),
        "were all of it put into a cache"
    );
    let most = Usage { prompt, cache_write: prompt, completion: 50, ..Usage::default() };
    let dearest = quoted.bill(&full, &most, ServiceTier::Priority, None).unwrap();
    assert_eq!(quoted.terms(&full, 6).unwrap().price, dearest, "the ceiling is exactly that");
    let cheaper = quoted.terms(&less, 6).unwrap();
    assert_eq!(cheaper.price, quoted.bill(&less, &most, ServiceTier::Priority, None).unwrap());
    assert_eq!(quoted.worth(&less, cheaper.price), dearest, "and buys as much");
    assert_eq!(quoted.output_bought(quoted.worth(&less, cheaper.price)), 50);
}

proptest! {
    #[test]
    fn what_covers_tokens_covers_no_less_and_no_more_of_them_on_any_rail(off in 0u32..1_000_000, tokens in 0u64..100_000, cap in 0u128..10_000_000) {
        let discount = format!("0.{off:0>6}");
        let quoted = quoted(&discount, "");
        for rail in ["less/session", "full/session"] {
            let rail = RailId::from(rail);
            let cover = quoted.cover(&rail, 6).unwrap();
            prop_assert!(cover.tokens(cover.of(tokens).unwrap()) >= tokens, "what is asked for is enough");
            let bought = cover.tokens(Atoms(cap));
            if bought > 0 {
                prop_assert!(cover.of(bought).unwrap() <= Atoms(cap), "what is let out is paid for");
            }
            prop_assert!(cover.used(tokens).unwrap() <= cover.of(tokens).unwrap(), "what is taken was set aside");
        }
    }
}

#[test]
fn a_long_text_is_counted_off_the_async_threads_and_what_takes_no_time_is_not() {
    // One thread for what blocks, and it is busy: whatever is sent there has to wait.
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let _busy = runtime.spawn_blocking(move || held.recv());
    let words = |bytes: usize| "some words ".repeat(bytes / 11);
    let plan = |vocabulary: &str| plan("0", &format!("vocabulary = {vocabulary:?}"));
    let (o200k, bytes) = (plan("o200k"), plan("bytes"));
    let body = |text: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    let (short, long) = (body(&words(60 << 10)), body(&words(65 << 10)));
    let quote = |plan, body: &str| quote_idle(plan, "/c", body.to_owned().into());
    runtime.block_on(async {
        for (plan, body, why) in [(&o200k, &short, "it is short"), (&bytes, &long, "its bytes need no counting")] {
            let mut quoting = std::pin::pin!(quote(plan, body));
            assert!(futures::poll!(quoting.as_mut()).is_ready(), "{why}");
        }
        let mut quoting = std::pin::pin!(quote(&o200k, &long));
        for _ in 0..100 {
            assert!(futures::poll!(quoting.as_mut()).is_pending(), "it was counted here");
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        let Ok(quoted) = quoting.await else { panic!("it is not quoted") };
        assert_eq!(quoted.parts.counted_by, Some("o200k"));
        assert!(quoted.parts.prompt_tokens > Some(10_000), "{:?}", quoted.parts);
    });
}
