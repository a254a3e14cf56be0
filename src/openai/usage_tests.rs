//! What is read of one usage object, and what is not believed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::openai::meter::Meter;
use crate::openai::reply;
use crate::surface::Surface;

const BOUNDS: Bounds = Bounds { choices: 1, prompt: None, completion: Some(100), shape: Shape::PLAIN };

fn usage(prompt: u64, completion: u64, cached: u64, reasoning: u64) -> Option<Usage> {
    Some(Usage { prompt, completion, cached, reasoning, ..Usage::default() })
}

#[test]
fn a_figure_that_cannot_be_true_counts_as_none_and_is_flagged() {
    for (said, want, absurd, why) in [
        (r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}"#, usage(5, 7, 0, 0), false, "plain"),
        (r#"{"prompt_tokens":5,"completion_tokens":100}"#, usage(5, 100, 0, 0), false, "exactly what was allowed"),
        (r#"{"prompt_tokens":5,"completion_tokens":101}"#, None, true, "more than was allowed"),
        (r#"{"prompt_tokens":-5,"completion_tokens":7}"#, None, true, "negative"),
        (r#"{"prompt_tokens":5.5,"completion_tokens":7}"#, None, true, "fractional"),
        (r#"{"prompt_tokens":5e0,"completion_tokens":7}"#, None, true, "exponent"),
        (r#"{"prompt_tokens":"5","completion_tokens":7}"#, None, true, "text"),
        (r#"{"prompt_tokens":9007199254740993,"completion_tokens":7}"#, None, true, "past 2^53"),
        (r#"{"prompt_tokens":99999999999999999999,"completion_tokens":7}"#, None, true, "past 2^64"),
        (r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":11}"#, None, true, "total below its parts"),
        (
            r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":20}"#,
            usage(5, 7, 0, 0),
            false,
            "hidden reasoning",
        ),
        (
            r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":6}}"#,
            None,
            true,
            "cached > prompt",
        ),
        (
            r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":3}}"#,
            usage(5, 7, 4, 3),
            false,
            "details",
        ),
        (
            r#"{"prompt_tokens":5,"completion_tokens":7,"reasoning_tokens":9}"#,
            usage(5, 16, 0, 9),
            false,
            "SGLang's place; more than the output, so it stands beside it",
        ),
        (
            r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_cache_hit_tokens":2}"#,
            usage(5, 7, 2, 0),
            false,
            "DeepSeek's place",
        ),
        (
            r#"{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":null,"cost":0.1}"#,
            usage(5, 7, 0, 0),
            false,
            "null details",
        ),
        (r#"{"prompt_tokens":5,"prompt_tokens":1,"completion_tokens":7}"#, None, true, "said twice"),
        (r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#, None, false, "placeholder"),
        ("{}", None, false, "empty"),
        ("null", None, false, "null"),
        ("[5,7]", None, true, "an array in the order of the fields"),
    ] {
        let body = format!(
            r#"{{"model":"m","choices":[{{"index":0,"message":{{"content":"hé"}},"finish_reason":"stop"}}],"usage":{said}}}"#
        );
        let got = read_json(body.as_bytes(), BOUNDS);
        assert_eq!((got.usage, got.reported, got.absurd), (want, want.is_some(), absurd), "{why}");
        assert_eq!((got.delivered_chunks, got.delivered_bytes, got.finished), (1, 3, true), "{why}");
        assert_eq!(got.model.as_deref(), Some("m"));
    }
}

#[test]
fn a_reply_that_is_an_error_or_no_json_has_failed() {
    for body in [r#"{"error":{"message":"x"}}"#, r#"{"error":"x","choices":[]}"#, "<html>", "", "[1]", "{"] {
        assert!(read_json(body.as_bytes(), BOUNDS).failed, "{body}");
    }
    assert!(!read_json(br#"{"error":null,"choices":[]}"#, BOUNDS).failed);
}

#[test]
fn every_place_where_a_vendor_says_a_kind_of_token_is_read_and_none_is_more_than_its_whole() {
    let prompt = |more: Usage| Some(Usage { prompt: 10, completion: 8, ..more });
    let none = Usage::default;
    for (said, want, why) in [
        (
            r#""prompt_tokens_details":{"cache_write_tokens":4}"#,
            prompt(Usage { cache_write: 4, ..none() }),
            "OpenRouter",
        ),
        (
            r#""prompt_tokens_details":{"cached_tokens":6,"cache_creation_tokens":4,"cache_creation_token_details":{"ephemeral_5m_input_tokens":1,"ephemeral_1h_input_tokens":3}}"#,
            prompt(Usage { cached: 6, cache_write: 4, cache_write_hour: 3, ..none() }),
            "LiteLLM",
        ),
        (
            r#""cache_read_input_tokens":2,"cache_creation_input_tokens":5,"cache_creation":{"ephemeral_1h_input_tokens":5}"#,
            prompt(Usage { cached: 2, cache_write: 5, cache_write_hour: 5, ..none() }),
            "Anthropic's own names",
        ),
        (
            r#""cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":3}"#,
            prompt(Usage { cache_write: 5, cache_write_hour: 3, ..none() }),
            "by stay alone",
        ),
        (
            r#""prompt_tokens_details":{"audio_tokens":3,"image_tokens":7},"completion_tokens_details":{"audio_tokens":8,"reasoning_tokens":0}"#,
            prompt(Usage { audio_input: 3, image_input: 7, audio_output: 8, ..none() }),
            "sound and pictures",
        ),
        (
            r#""prompt_tokens_details":{"cached_tokens":10,"audio_tokens":10}"#,
            prompt(Usage { cached: 10, audio_input: 10, ..none() }),
            "sound may come from a cache",
        ),
        (
            r#""prompt_tokens_details":{"cached_tokens":6,"cache_write_tokens":5}"#,
            None,
            "read and written is more than all",
        ),
        (r#""prompt_tokens_details":{"audio_tokens":11}"#, None, "more sound than prompt"),
        (
            r#""prompt_tokens_details":{"audio_tokens":5,"image_tokens":6}"#,
            None,
            "sound and pictures are more than all",
        ),
        (r#""completion_tokens_details":{"audio_tokens":9}"#, None, "more sound than output"),
        (r#""cache_creation":{"ephemeral_1h_input_tokens":11}"#, None, "more written than prompt"),
        (r#""prompt_tokens_details":{"image_tokens":-1}"#, None, "negative"),
    ] {
        let body = format!(r#"{{"choices":[],"usage":{{"prompt_tokens":10,"completion_tokens":8,{said}}}}}"#);
        let got = read_json(body.as_bytes(), BOUNDS);
        assert_eq!((got.usage, got.absurd), (want, want.is_none()), "{why}");
    }
}

#[test]
fn figures_add_up_as_the_backends_kind_says() {
    let figure = |prompt, completion, total| {
        serde_json::value::to_raw_value(&serde_json::json!({
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
        }))
        .unwrap()
    };
    let per_choice = Shape { finals: Scope::Choice, ..Shape::PLAIN };
    let newest = Shape { running: Scope::Reply, ..Shape::PLAIN };
    let in_total = Shape { output_in_total: true, ..newest };
    // Each figure: the choice whose chunk it is on, if any, prompt, output, total.
    for (shape, figures, want, why) in [
        (
            Shape::PLAIN,
            &[(None, 5, 7, 12), (None, 5, 4, 9)][..],
            usage(5, 4, 0, 0),
            "one final: a second is a newer one",
        ),
        (per_choice, &[(None, 5, 7, 12), (None, 5, 4, 9)], usage(5, 11, 0, 0), "one final for each choice"),
        (per_choice, &[(None, 5, 7, 12); 3], usage(5, 7, 0, 0), "more of them than choices repeat each other"),
        (Shape::PLAIN, &[(Some(0), 5, 1, 6), (Some(1), 5, 2, 7), (Some(0), 5, 3, 8)], usage(5, 5, 0, 0), "by choice"),
        (
            newest,
            &[(Some(0), 5, 1, 6), (Some(1), 5, 2, 7), (Some(0), 5, 3, 8)],
            usage(5, 3, 0, 0),
            "of the whole reply",
        ),
        (newest, &[(Some(0), 5, 1, 6), (None, 5, 4, 9)], usage(5, 4, 0, 0), "the final is the last word"),
        (Shape::PLAIN, &[(None, 5, 7, 20)], usage(5, 7, 0, 0), "a larger total means nothing"),
        (in_total, &[(None, 5, 7, 20)], usage(5, 15, 0, 8), "thoughts that are in the total only are billed"),
        (in_total, &[(Some(0), 5, 7, 12)], usage(5, 7, 0, 0), "and none where the total is the sum"),
    ] {
        let mut tally = Tally::new(Bounds { choices: 2, prompt: None, completion: Some(100), shape });
        for (choice, prompt, completion, total) in figures {
            let choices: Vec<_> = choice.iter().map(|index| Choice { index: *index }).collect();
            assert!(tally.add(&figure(*prompt, *completion, *total), &choices));
        }
        assert_eq!(tally.total(), (want, false), "{why}");
    }
    for (shape, choices, want) in
        [(per_choice, 3, [false, true, true, false, false]), (per_choice, 1, [false; 5]), (Shape::PLAIN, 3, [false; 5])]
    {
        let mut tally = Tally::new(Bounds { choices, prompt: None, completion: Some(100), shape });
        for (finals, want) in want.into_iter().enumerate() {
            assert_eq!(tally.is_partial(), want, "{finals} of {choices}, {shape:?}");
            tally.add(&figure(5, 7, 12), &[]);
        }
    }
    let mut tally = Tally::new(Bounds { choices: 1, prompt: None, completion: Some(10), shape: in_total });
    tally.add(&figure(5, 7, 20), &[]);
    assert_eq!(tally.total(), (None, true), "thoughts count against what was asked");
}

#[test]
fn a_prompt_longer_than_can_have_been_sent_is_no_figure() {
    let bounds = Bounds { prompt: Some(20), ..BOUNDS };
    for (prompt, is_true) in [(20, true), (21, false)] {
        let chat = format!("{{\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":3}}}}");
        let typed = format!(
            "{{\"type\":\"message\",\"content\":[],\"usage\":{{\"input_tokens\":{prompt},\"output_tokens\":3}}}}"
        );
        for (surface, body) in [(Surface::Chat, chat), (Surface::Messages, typed)] {
            let got = reply::whole(surface, body.as_bytes(), bounds);
            assert_eq!((got.usage.is_some(), got.absurd), (is_true, !is_true), "{surface:?}: {prompt}");
        }
        let start = format!(
            "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"usage\":{{\"input_tokens\":{prompt}}}}}}}\n\n"
        );
        let mut meter = Meter::new(false, bounds).of(Surface::Messages);
        meter.feed(start.into(), &mut Vec::new()).unwrap();
        assert_eq!(meter.verdict().begun.is_some(), is_true, "what is charged when a client leaves: {prompt}");
    }
}

#[test]
fn reasoning_is_billed_once_wherever_it_is_counted_and_never_cut() {
    let in_total = Shape { output_in_total: true, ..Shape::PLAIN };
    let (p, t) = (Shape::PLAIN, in_total);
    for (shape, output, reasoning, total, want, why) in [
        (p, 1, 386, Some(399), Some((387, 386)), "xAI: beside the output, and the total says so"),
        (t, 1, 386, Some(399), Some((387, 386)), "the same where a total may hold more"),
        (p, 7, 3, Some(22), Some((10, 3)), "less of it than output, and still beside"),
        (p, 7, 3, Some(19), Some((7, 3)), "OpenAI: among the output"),
        (t, 7, 3, Some(19), Some((7, 3)), "and among it where a total may hold more"),
        (p, 7, 7, Some(19), Some((7, 7)), "all of it"),
        (p, 7, 3, Some(20), Some((7, 3)), "a larger total means nothing"),
        (t, 7, 3, Some(20), Some((8, 3)), "but where it is output"),
        (p, 7, 3, None, Some((7, 3)), "no total, and there is room for it"),
        (p, 7, 9, None, Some((16, 9)), "no total, and there is none"),
        (t, 7, 9, None, Some((16, 9)), "nor here"),
        (p, 0, 9, None, Some((9, 9)), "nothing but reasoning"),
        (p, 7, 9, Some(19), Some((7, 7)), "a total that has nothing beside the output"),
        (t, 7, 9, Some(19), Some((7, 7)), "whatever it may hold"),
        (p, 7, 9, Some(27), None, "one that has room for a part of it"),
        (t, 7, 9, Some(27), Some((15, 9)), "which is enough where it is output"),
        (t, 7, 9, Some(20), None, "too little of it"),
        (p, 7, 9, Some(30), None, "one that is neither"),
        (p, 7, 9, Some(18), None, "one below its parts"),
    ] {
        let mut said = serde_json::json!({"prompt_tokens": 12, "completion_tokens": output,
            "completion_tokens_details": {"reasoning_tokens": reasoning}});
        let mut typed = serde_json::json!({"input_tokens": 12, "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning}});
        if let Some(total) = total {
            said["total_tokens"] = total.into();
            typed["total_tokens"] = total.into();
        }
        let bounds = Bounds { choices: 1, prompt: None, completion: Some(1000), shape };
        let want = want.and_then(|(completion, reasoning)| usage(12, completion, 0, reasoning));
        let got = read_json(serde_json::json!({"choices": [], "usage": said}).to_string().as_bytes(), bounds);
        assert_eq!((got.usage, got.absurd), (want, want.is_none()), "{why}");
        if shape == Shape::PLAIN {
            let body = serde_json::json!({"status": "completed", "output": [], "usage": typed}).to_string();
            let got = reply::whole(Surface::Responses, body.as_bytes(), bounds);
            assert_eq!((got.usage, got.absurd), (want, want.is_none()), "{why}: in a response");
        }
    }
}

#[test]
fn the_speed_that_served_and_the_cost_that_is_stated_are_read_where_they_stand() {
    for (body, tier, stated, why) in [
        (r#"{"choices":[],"service_tier":"flex"}"#, ServiceTier::Flex, None, "OpenAI, without usage"),
        (
            r#"{"service_tier":"default","usage":{"prompt_tokens":1,"completion_tokens":1,"service_tier":"priority"}}"#,
            ServiceTier::Priority,
            None,
            "Anthropic: in the usage",
        ),
        (
            r#"{"service_tier":null,"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":1.25e-5}}"#,
            ServiceTier::Standard,
            Some(12_500_000_000_000),
            "OpenRouter's cost",
        ),
        (
            r#"{"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":2.5e-6,"is_byok":true,"cost_details":{"upstream_inference_cost":1e-5}}}"#,
            ServiceTier::Standard,
            Some(12_500_000_000_000),
            "the operator's own key: what the vendor takes, and the fee",
        ),
        (
            r#"{"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":1.25e-5,"is_byok":false,"cost_details":{"upstream_inference_cost":1.25e-5}}}"#,
            ServiceTier::Standard,
            Some(12_500_000_000_000),
            "the same money twice",
        ),
        (
            r#"{"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":1e-6,"is_byok":true}}"#,
            ServiceTier::Standard,
            None,
            "a fee alone",
        ),
        (
            r#"{"service_tier":7,"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":"1"}}"#,
            ServiceTier::Standard,
            None,
            "neither a word nor a number: not said",
        ),
        (r#"{"service_tier":"scale"}"#, ServiceTier::Other, None, "another word"),
    ] {
        let got = read_json(body.as_bytes(), BOUNDS);
        assert_eq!((got.tier, got.stated), (tier, stated.map(Usd)), "{why}");
        assert!(!got.absurd, "{why}");
    }
}

#[test]
fn a_list_is_an_answer_when_something_is_in_it_and_says_what_it_used() {
    let bounds = Bounds { choices: 1, completion: Some(0), prompt: None, shape: Shape::PLAIN };
    for (body, finished, failed, why) in [
        (
            r#"{"data":[{"embedding":[1,2]}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}}"#,
            true,
            false,
            "vectors",
        ),
        (r#"{"data":[],"usage":{"prompt_tokens":3}}"#, false, false, "none"),
        (r#"{"usage":{"prompt_tokens":3}}"#, false, false, "not even a list"),
        (r#"{"data":7,"usage":{"prompt_tokens":3}}"#, false, true, "no list"),
        (r#"{"data":[1],"error":{"message":"x"},"usage":{"prompt_tokens":3}}"#, true, true, "an error beside it"),
        (r#"[{"data":[1]}]"#, false, true, "no object"),
        (r#"{"data":[1]"#, false, true, "cut short"),
    ] {
        let verdict = read_list(body.as_bytes(), bounds);
        assert_eq!((verdict.finished, verdict.failed), (finished, failed), "{why}");
    }
    let whole = read_list(br#"{"data":[1],"usage":{"prompt_tokens":3,"total_tokens":3}}"#, bounds);
    assert_eq!(whole.usage.map(|usage| (usage.prompt, usage.completion)), Some((3, 0)));
}
