#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::limits::{Drawn, PicturePrice, UnknownFields};
use crate::money::PerToken;
use crate::rules::plan::{Prices, Rates};
use proptest::prelude::*;

fn model(input: u128, cached_input: u128, output: u128) -> Model {
    let rates = Rates { cached_input: PerToken(cached_input), ..Rates::plain(PerToken(input), PerToken(output)) };
    let price = Prices::flat(rates);
    Model {
        name: "m".into(),
        upstream: "up".into(),
        elsewhere: Default::default(),
        pool: "p".into(),
        price,
        vocabulary: None,
        stated: None,
        sources: Vec::new(),
        not_applied: Vec::new(),
        max_input: None,
        max_output: None,
        hidden_output: false,
        images: None,
    }
}

fn limits(max_output_tokens: u64, image: u128) -> Limits {
    Limits {
        max_body_bytes: 1 << 20,
        max_output_tokens,
        max_input_tokens: None,
        max_n: 128,
        over_limit: OverLimit::Clamp,
        unknown_fields: UnknownFields::Refuse,
        image_url: Some(PicturePrice { flat: Usd(image), apart: false }),
        drawn: Drawn::default(),
    }
}

/// What the backend may come to report, at the worst: every token of room used, none of it at the better price.
fn worst(size: &Size, model: &Model, limits: &Limits, prompt: u64, output: u64) -> u128 {
    let each = model.price.standard().input.0.max(model.price.standard().cached_input.0);
    let room = u128::from(64 + 8 * (size.messages + 1));
    each * (u128::from(prompt) + room)
        + limits.image_url.unwrap().flat.0 * u128::from(size.images)
        + model.price.standard().output.0 * u128::from(output) * u128::from(size.n)
}

#[test]
fn a_reported_prompt_is_held_against_the_bytes_that_were_sent_and_all_that_may_come_to_them() {
    let priced = model(1, 1, 1);
    let counts = Model { images: Some(crate::picture::Family::Tiles), ..model(1, 1, 1) };
    let size = |bytes, images, sized| Size {
        surface: Surface::Chat,
        bytes,
        messages: 1,
        images,
        sized,
        n: 1,
        asked_output: None,
        stream: false,
    };
    // Room for a template is 64, and 8 for each message and for what opens the answer; a vendor's own words are 32,768.
    for (size, model, pictures, most, why) in [
        (size(200, 0, 0), &priced, 0, Some(200 + 80 + 32_768), "text"),
        (size(200, 1, 1), &counts, 765, Some(200 + 765 + 80 + 32_768), "a picture whose tokens are known"),
        (size(200, 2, 1), &counts, 765, None, "and one whose are not"),
        (size(200, 1, 1), &priced, 0, None, "a model that counts pictures its own way"),
    ] {
        assert_eq!(size.most_prompt(model, pictures), most, "{why}");
    }
}

proptest! {
    #[test]
    fn what_is_let_through_costs_no_more_than_its_price_and_what_is_not_is_told_what_would_do(
        usd in 0u128..10_000_000, input in 0u128..1_000, cached in 0u128..1_000, output in 0u128..1_000,
        image in 0u128..100_000, images in 0u64..3, n in 1u64..5, messages in 1u64..4,
        prompt in 0u64..20_000, asked in prop::option::of(1u64..5_000), least in 1u64..2_000, max in 2_000u64..4_000,
    ) {
        let (model, limits, price) = (model(input, cached, output), limits(max, image), Usd(usd));
        let size = Size { surface: Surface::Chat, bytes: 1, messages, images, sized: 0, n, asked_output: asked, stream: false };
        let within = |size: &Size, prompt| size.within(price, least, &model, &limits, (prompt, "bytes"));
        let bought = size.bought(price, &model, &limits, prompt);
        let most = asked.unwrap_or(max).min(max);
        prop_assert!(bought <= most);
        if bought > 0 {
            prop_assert!(worst(&size, &model, &limits, prompt, bought) <= usd, "{bought} tokens");
        }
        if bought < most {
            prop_assert!(worst(&size, &model, &limits, prompt, bought + 1) > usd, "one token more would have been paid for");
        }
        let Err(gap) = within(&size, prompt) else {
            prop_assert!(bought >= least.min(most));
            return Ok(());
        };
        prop_assert!(bought < least.min(most));
        prop_assert_eq!((gap.price, gap.prompt, gap.output, gap.n), (price, prompt, least.min(most), n));
        if let Some(tokens) = gap.shorten_by {
            prop_assert!((1..prompt).contains(&tokens));
            prop_assert!(within(&size, prompt - tokens).is_ok(), "shortened as told");
            prop_assert!(within(&size, prompt - tokens + 1).is_err(), "by no more than is needed");
        } else {
            prop_assert!(within(&size, 1).is_err(), "a prompt of one token would have done");
        }
        if gap.n_within > 0 {
            prop_assert!(gap.n_within < n, "as many as were asked are too many");
            prop_assert!(within(&Size { n: gap.n_within, ..size }, prompt).is_ok(), "with so many choices as told");
        }
        prop_assert!(within(&Size { n: gap.n_within + 1, ..size }, prompt).is_err(), "one choice more");
        if gap.output_within > 0 {
            let less = Size { asked_output: Some(gap.output_within), ..size };
            prop_assert!(within(&less, prompt).is_ok(), "with so little output as told");
        }
        let more = Size { asked_output: Some(gap.output_within + 1), ..size };
        prop_assert!(within(&more, prompt).is_err(), "one token more of output");
    }
}

#[test]
fn an_amount_that_cannot_be_computed_pays_for_nothing() {
    let size = Size {
        surface: Surface::Chat,
        bytes: 1,
        messages: 1,
        images: 0,
        sized: 0,
        n: 1,
        asked_output: None,
        stream: false,
    };
    for (model, prompt, why) in [
        (model(u128::MAX, 0, 1), 2, "the prompt"),
        (model(1, 0, 1), u64::MAX, "the count of the prompt"),
        (model(1, u128::MAX, 1), 2, "cached input that is dearer than the rest"),
    ] {
        assert_eq!(size.bought(Usd(u128::MAX), &model, &limits(10, 0), prompt), 0, "{why}");
    }
    let many = Size { images: 2, ..size };
    assert_eq!(many.bought(Usd(u128::MAX), &model(1, 0, 1), &limits(10, u128::MAX), 1), 0, "images");
    let free = model(1, 1, 0);
    assert_eq!(size.bought(Usd(10), &free, &limits(10, 0), 100), 0, "free output does not make a prompt free");
}

#[test]
fn a_picture_whose_tokens_are_counted_costs_no_flat_price_beside_them_unless_pictures_are_priced_apart() {
    let counts = Model { images: Some(crate::picture::Family::Tiles), ..model(1, 1, 1) };
    let size = Size {
        surface: Surface::Chat,
        bytes: 1,
        messages: 1,
        images: 3,
        sized: 2,
        n: 1,
        asked_output: None,
        stream: false,
    };
    for (model, apart, want, why) in [
        (&counts, false, 70, "one of no size"),
        (&model(1, 1, 1), false, 210, "a model that counts none by their size"),
        (&counts, true, 210, "all of them"),
    ] {
        let limits = Limits { image_url: Some(PicturePrice { flat: Usd(70), apart }), ..limits(10, 0) };
        assert_eq!(size.pictures(model, &limits), Some(Usd(want)), "{why}");
    }
}

#[test]
fn a_picture_that_nobody_has_counted_may_make_a_prompt_of_any_length() {
    let (counts, plain) = (Model { images: Some(crate::picture::Family::Tiles), ..model(1, 1, 1) }, model(1, 1, 1));
    let size = |images, sized| Size {
        surface: Surface::Chat,
        bytes: 1,
        messages: 1,
        images,
        sized,
        n: 1,
        asked_output: None,
        stream: false,
    };
    for (model, images, sized, want, why) in [
        (&counts, 0, 0, 10 + 80, "no picture: as long as was counted, with room for a template"),
        (&plain, 0, 0, 10 + 80, "nor here"),
        (&counts, 2, 2, 10 + 80, "each is in the count"),
        (&counts, 2, 1, u64::MAX, "one lies elsewhere"),
        (&plain, 2, 2, u64::MAX, "this model counts none"),
    ] {
        assert_eq!(size(images, sized).reach(model, 10).prompt, want, "{why}");
    }
}
