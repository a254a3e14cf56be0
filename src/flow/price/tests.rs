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
    plan_of(off, more, "")
}

/// The same, with more said of the tier.
fn plan_of(off: &str, more: &str, tier: &str) -> Plan {
    plan_at("ceiling = true", off, more, tier)
}

/// The same at another `charge`; on `/once` the amount is fixed.
fn plan_at(charge: &str, off: &str, more: &str, tier: &str) -> Plan {
    let tier = &format!("[tier.t]\nmodels = [\"m\"]\nmax_output_tokens = 100\ncharge = {{ {charge} }}\n{tier}\n");
    let models = format!("[model.m]\nupstream = \"up\"\npool = \"p\"\nprice_as = \"row\"\n{more}\n");
    let prices = format!("registry = \"list.json\"\nmarkup = \"2\"\n[rail.\"less/session\"]\ndiscount = {off:?}\n");
    let files = [
        ("models.toml", models.as_str()),
        ("tiers.toml", tier.as_str()),
        (
            "routes.toml",
            "[[route]]\npath = \"/c\"\nsurface = \"chat\"\ntier = \"t\"\naccept = [\"less/session\", \"full/session\"]\n\
             [[route]]\npath = \"/once\"\nsurface = \"chat\"\ntier = \"t\"\naccept = [\"once/charge\"]\n",
        ),
        ("pools.toml", "[pool.p]\nprofile = \"vllm\"\nservers = [\"http://127.0.0.1:1\"]\n"),
        ("prices.toml", &prices),
        ("list.json", LIST),
    ];
    let rail = |id: &str| (RailId::from(id), RailAbility { fixed_amount: id == "once/charge", decimals: 6 });
    let catalogue = Catalogue {
        rails: [rail("less/session"), rail("full/session"), rail("once/charge")].into(),
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
        let got = quoted("0.25", more).bill(rail, &Used { usage, served, counted: false }, stated).unwrap();
        assert_eq!(got, Usd::parse(want).unwrap(), "{why}");
    }
}

#[test]
fn a_prompt_of_an_unknown_vocabulary_is_held_by_its_bytes_and_charged_by_about_a_quarter_of_them() {
    // "how much is this?" has 17 bytes and 5 tokens; its template has 6.
    for (vocabulary, most, about) in [("", 17 + 6, 5 + 6), ("vocabulary = \"o200k\"", 5 + 6, 5 + 6)] {
        let quoted = quoted("0.25", vocabulary);
        assert_eq!((quoted.parts.prompt_tokens, quoted.parts.prompt_about), (Some(most), Some(about)), "{vocabulary}");
        let cover = quoted.cover(&"full/session".into(), 6).unwrap();
        // USD of 1e-6: 20 and 40 a token, a fee of 2,000; held at 25 and 80, with room for the template.
        assert_eq!(cover.used(2), Some(Atoms(u128::from(about * 20 + 2 * 40 + 2_000))), "{vocabulary}");
        assert_eq!(cover.of(2), Some(Atoms(u128::from((most + 80) * 25 + 2 * 80 + 2_000))), "{vocabulary}");
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
    // A template may have 64 tokens, and 8 for each message and for what opens the answer.
    let templated = prompt + 64 + 2 * 8;
    let most = Usage { prompt: templated, cache_write: templated, completion: 50, ..Usage::default() };
    let most = Used { usage: most, served: ServiceTier::Priority, counted: false };
    let dearest = quoted.bill(&full, &most, None).unwrap();
    assert_eq!(quoted.terms(&full, 6).unwrap().price, dearest, "the ceiling is exactly that");
    let held = quoted.cover(&full, 6).unwrap();
    assert_eq!(held.of(50), dearest.to_atoms(6), "and so is what is held for all of it");
    assert_eq!(held.tokens(dearest.to_atoms(6).unwrap()), 50);
    let cheaper = quoted.terms(&less, 6).unwrap();
    assert_eq!(cheaper.price, quoted.bill(&less, &most, None).unwrap());
    assert_eq!(quoted.worth(&less, cheaper.price), dearest, "and buys as much");
    assert_eq!(quoted.output_bought(quoted.worth(&less, cheaper.price)), 50);
}

#[test]
fn what_a_payer_carries_of_an_estimate_holds_the_template_and_what_the_operator_absorbs_does_not() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let once = RailId::from("once/charge");
    // Set aside are 25 for a token of the prompt, 80 for one of output at the priority speed, and a fee of 2,000: USD of 1e-6.
    for (shortfall, room, output, bought) in [
        ("shortfall = \"clamp\", min_output_tokens = 10", 80, 10, 10),
        ("shortfall = \"absorb\", loss_cap_per_call = \"1\", loss_cap_per_day = \"1\"", 0, 0, 0),
    ] {
        let charge = format!("estimate = {{ overhead = \"1.25\", {shortfall} }}");
        let quoted =
            runtime.block_on(quote_idle(&plan_at(&charge, "0", "", ""), "/once", with_pictures("hi", &[]).into()));
        let quoted = quoted.unwrap_or_else(|_| panic!("{shortfall}"));
        let prompt = u128::from(quoted.parts.prompt_tokens.unwrap());
        let terms = quoted.terms(&once, 6).unwrap();
        assert_eq!(terms.amount, Atoms((prompt + room) * 25 + output * 80 + 2_000), "{shortfall}");
        assert_eq!(quoted.output_bought(terms.price), bought, "{shortfall}");
    }
}

#[test]
fn what_has_a_price_is_never_offered_for_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let once = RailId::from("once/charge");
    for (charge, worth, want, why) in [
        ("ceiling = true", 0, 1, "a quote of nothing, of a model with a price"),
        ("ceiling = true", 1, 1, "less than an atom"),
        ("ceiling = true", 1_000_000_000_001, 2, "rounded up as ever"),
        ("flat = \"0\"", 0, 0, "the operator gives it away"),
    ] {
        let plan = plan_at(charge, "0", "", "");
        let mut quoted = runtime.block_on(quote_idle(&plan, "/once", with_pictures("hi", &[]).into())).unwrap();
        quoted.parts.price_usd = Usd(worth);
        assert_eq!(quoted.terms(&once, 6).unwrap().amount, Atoms(want), "{why}");
    }
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
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

/// 1,024 by 1,024: 765 tokens as `tiles`.
const SIZED: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAABAAAAAQACAY=";
/// Of no size that is known here.
const URL: &str = "https://a.test/b.png";

/// A request with these pictures.
fn with_pictures(text: &str, pictures: &[&str]) -> String {
    let parts = pictures.iter().map(|url| format!(r#",{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#));
    let parts: String = parts.collect();
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"{text}"}}{parts}]}}]}}"#)
}

#[test]
fn a_limit_on_the_prompt_holds_for_pictures_whatever_the_way_to_pay() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tier = "max_input_tokens = 8000\nmax_body_bytes = 1048576\nimage_url = { flat = \"0.1\" }";
    for (path, charge, pictures, taken, why) in [
        ("/once", "flat = \"0.02\"", 80, false, "a few bytes of text, and 61,200 tokens of pictures"),
        ("/once", "flat = \"0.02\"", 2, true, "1,530 of them"),
        ("/once", "flat = \"0.02\"", 10, true, "7,650 of them"),
        ("/once", "ceiling = true", 80, false, "where the prompt is counted anyway"),
        ("/c", "flat = \"0.02\"", 80, false, "paid by usage"),
    ] {
        let plan = plan_at(charge, "0", "images = \"tiles\"", tier);
        let got = runtime.block_on(quote_idle(&plan, path, with_pictures("hi", &vec![SIZED; pictures]).into()));
        match got {
            Ok(_) => assert!(taken, "{why}"),
            Err(Refusal::PromptTooLong { max: 8000, .. }) => assert!(!taken, "{why}"),
            Err(other) => panic!("{why}: {other:?}"),
        }
    }
}

#[test]
fn a_prompt_with_a_picture_that_nobody_counted_is_priced_as_a_long_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // Of prompts above 1,000 tokens a token costs 60, of others 20, or 25 were it put into a cache; all of it USD of 1e-6.
    for (family, url, each, why) in [
        ("images = \"tiles\"", SIZED, 25, "its size is known"),
        ("images = \"tiles\"", URL, 60, "it lies elsewhere"),
        ("", SIZED, 60, "the model counts none"),
    ] {
        let plan = plan_of("0", family, "image_url = { flat = \"0.1\" }");
        let quoted = runtime.block_on(quote_idle(&plan, "/c", with_pictures("hi", &[url]).into()));
        let quoted = quoted.unwrap_or_else(|_| panic!("{why}"));
        assert_eq!(quoted.dearest().input, PerToken(each * 1_000_000_000_000), "{why}");
    }
}

#[test]
fn a_picture_is_paid_for_once_and_what_is_quoted_covers_what_is_billed() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let full = RailId::from("full/session");
    let usd = |text: &str| Usd::parse(text).unwrap();
    // A prompt token costs 20, of long prompts 60, an output token 40, a request 2,000, all of it USD of 1e-6; set aside is the dearest of each.
    for (price, pictures, prompt, counted, want, why) in [
        ("{ flat = \"0.1\" }", &[URL][..], 780, false, "0.0176", "the backend has counted it"),
        ("{ flat = \"0.1\" }", &[SIZED], 780, false, "0.0176", "and whoever knew its size beforehand adds nothing"),
        ("{ flat = \"0.1\" }", &[URL, SIZED], 780, false, "0.0176", "nor do two"),
        ("{ flat = \"0.1\", apart = true }", &[URL], 15, false, "0.1023", "the backend bills it apart"),
        ("{ flat = \"0.1\", apart = true }", &[URL, SIZED], 15, false, "0.2023", "each"),
        ("{ flat = \"0.1\" }", &[URL], 15, true, "0.1023", "nobody has said what it was: the flat price"),
        ("{ flat = \"0.1\" }", &[SIZED], 780, true, "0.0176", "its size has"),
    ] {
        let plan = plan_of("0", "images = \"tiles\"", &format!("image_url = {price}"));
        let body = with_pictures("", pictures);
        let quoted = runtime.block_on(quote_idle(&plan, "/c", body.into())).unwrap_or_else(|_| panic!("{why}"));
        let used = Used { usage: Usage { prompt, ..Usage::default() }, served: ServiceTier::Standard, counted };
        assert_eq!(quoted.bill(&full, &used, None), Some(usd(want)), "{why}");
        assert!(quoted.parts.price_usd >= usd(want), "{why}: {:?}", quoted.parts);
        assert!(
            quoted.cover(&full, 6).unwrap().of(0).unwrap() >= usd(want).to_atoms(6).unwrap(),
            "{why}: of a session"
        );
    }
}
