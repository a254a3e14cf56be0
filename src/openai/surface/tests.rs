//! What requests of the surfaces beside chat may say, what they come to, and what the backend hears of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::ids::UpstreamModel;
use crate::limits::{Drawn, Limits, OverLimit, Spelling, UnknownFields};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;
use crate::surface::Surface;
use bytes::Bytes;
use serde_json::json;

fn limits() -> Limits {
    Limits {
        max_body_bytes: 1 << 20,
        max_output_tokens: 100,
        max_input_tokens: None,
        max_n: 4,
        over_limit: OverLimit::Clamp,
        unknown_fields: UnknownFields::Refuse,
        image_url: None,
        drawn: Drawn::default(),
    }
}

fn read_under(surface: Surface, body: impl AsRef<[u8]>, limits: &Limits) -> Result<Ask, Refusal> {
    Ask::read(surface, Bytes::copy_from_slice(body.as_ref()), limits)
}

fn read(surface: Surface, body: impl AsRef<[u8]>) -> Result<Ask, Refusal> {
    read_under(surface, body, &limits())
}

fn sent(ask: &Ask, stream: bool) -> Bytes {
    let model = UpstreamModel::from("up");
    let spelling = Spelling::MaxCompletionTokens;
    ask.rewrite(&Rewrite { model: &model, max_output: 50, spelling, stream, continuous_usage: false, withheld: &[] })
}

fn code(got: Result<Ask, Refusal>) -> &'static str {
    got.map_or_else(|refusal| refusal.code(), |_| "ok")
}

#[test]
fn a_prompt_is_one_text_or_several_or_the_numbers_of_their_tokens() {
    for (prompt, texts, given, prompts, why) in [
        (r#""hi there""#, vec!["hi there"], 0, 1, "a text"),
        (r#"["a","b\n"]"#, vec!["a", "b\n"], 0, 2, "texts"),
        ("[1, 0, 50256]", vec![], 3, 1, "one text in numbers"),
        ("[[1,2],[3]]", vec![], 3, 2, "texts in numbers"),
        (r#""""#, vec![], 0, 1, "an empty text"),
        (r#"["","a"]"#, vec!["a"], 0, 2, "one of them empty"),
        (r#"["",""]"#, vec![], 0, 2, "empty texts"),
        ("[[],[]]", vec![], 0, 2, "the same in numbers"),
        ("[]", vec![], 0, 0, "none"),
    ] {
        for (surface, field) in [(Surface::Completions, "prompt"), (Surface::Embeddings, "input")] {
            let ask = read(surface, format!(r#"{{"model":"m","{field}":{prompt}}}"#)).unwrap();
            let prompt = ask.prompt();
            assert_eq!(prompt.texts().collect::<Vec<_>>(), texts, "{why}");
            assert_eq!((prompt.given, ask.messages), (given, prompts), "{why}");
            // An empty prompt is continued; of an empty text there is nothing to say.
            let nothing = if surface == Surface::Completions { prompts == 0 } else { texts.is_empty() && given == 0 };
            assert_eq!(ask.nothing_asked, nothing, "{why}: {surface:?}");
            assert!(prompt.is_plain, "no template stands around it");
        }
    }
    for (prompt, why) in [
        (r#"["a",1]"#, "mixed"),
        (r#"[1,"a"]"#, "mixed"),
        (r#"[[1],["a"]]"#, "texts among numbers"),
        ("[[[1]]]", "too deep"),
        ("[-1]", "negative"),
        ("[1.5]", "a fraction"),
        ("[1e3]", "an exponent"),
        ("7", "a bare number"),
        ("{}", "an object"),
        ("[null]", "nothing in a list"),
        ("[true]", "a truth"),
    ] {
        for (surface, field) in [(Surface::Completions, "prompt"), (Surface::Embeddings, "input")] {
            assert_eq!(code(read(surface, format!(r#"{{"{field}":{prompt}}}"#))), "invalid_value", "{why}");
        }
    }
}

#[test]
fn all_choices_of_all_prompts_are_billed_and_the_tier_says_how_many_there_may_be() {
    for (said, want, whole_only, why) in [
        (r#""prompt":"a""#, Ok(1), None, "one"),
        (r#""prompt":"a","n":4"#, Ok(4), None, "as many as are shown"),
        (r#""prompt":"a","n":1,"best_of":3"#, Ok(3), Some("best_of"), "as many as are made"),
        (r#""prompt":"a","best_of":1"#, Ok(1), None, "one of one streams"),
        (r#""prompt":["a","b"],"n":2"#, Ok(4), None, "of every prompt"),
        (r#""prompt":[[1],[2]]"#, Ok(2), None, "of every prompt in numbers"),
        (r#""prompt":[1,2,3,4,5,6]"#, Ok(1), None, "many numbers are one prompt"),
        (r#""prompt":"a","echo":true"#, Ok(1), Some("echo"), "an echo"),
        (r#""prompt":"a","echo":false"#, Ok(1), None, "none"),
        (r#""prompt":"a","n":5"#, Err("over_limit"), None, "too many"),
        (r#""prompt":"a","best_of":5"#, Err("over_limit"), None, "too many made"),
        (r#""prompt":["a","b"],"n":3"#, Err("over_limit"), None, "too many in all"),
        (r#""prompt":["a","b","c","d","e"]"#, Err("over_limit"), None, "too many prompts"),
        (r#""prompt":"a","n":3,"best_of":2"#, Err("invalid_value"), None, "more shown than made"),
        (r#""prompt":"a","n":18446744073709551615"#, Err("over_limit"), None, "the largest number there is"),
        (r#""prompt":["a","b"],"best_of":18446744073709551615"#, Err("over_limit"), None, "twice that"),
    ] {
        let got = read(Surface::Completions, format!("{{{said}}}"));
        assert_eq!(got.as_ref().map(|ask| ask.n).map_err(|r| r.code()), want, "{why}");
        assert_eq!(got.ok().and_then(|ask| ask.whole_only), whole_only, "{why}");
    }
}

#[test]
fn what_a_surface_does_not_know_or_price_is_refused_before_anything_is_offered() {
    for (surface, body, want, why) in [
        (
            Surface::Completions,
            r#"{"prompt":"a","n_predict":9000}"#,
            "unknown_parameter",
            "llama.cpp takes it over max_tokens",
        ),
        (
            Surface::Completions,
            r#"{"prompt":"a","use_beam_search":true}"#,
            "unknown_parameter",
            "as many answers as beams",
        ),
        (Surface::Completions, r#"{"prompt":"a","messages":[]}"#, "unknown_parameter", "chat's"),
        (
            Surface::Completions,
            r#"{"prompt":"a","Max_Tokens":9000}"#,
            "invalid_value",
            "for a reader that ignores case",
        ),
        (Surface::Completions, r#"{"prompt":"a","prompt":"b"}"#, "invalid_json", "twice"),
        (Surface::Completions, r#"{"prompt":"a","max_tokens":0}"#, "invalid_value", "no output"),
        (Surface::Completions, r#"{"prompt":"a","echo":1}"#, "invalid_value", "no truth"),
        (Surface::Completions, r#"{"prompt":"a","suffix":["b"]}"#, "invalid_value", "no text"),
        (Surface::Completions, r#"{"prompt":"a","logprobs":5,"stop":["x"],"logit_bias":{"1":-100}}"#, "ok", "free"),
        (Surface::Embeddings, r#"{"input":"a","stream":true}"#, "unknown_parameter", "there is nothing to stream"),
        (Surface::Embeddings, r#"{"input":"a","max_tokens":5}"#, "unknown_parameter", "there is no output"),
        (Surface::Embeddings, r#"{"input":"a","encoding_format":"int8"}"#, "invalid_value", "another format"),
        (Surface::Embeddings, r#"{"input":"a","encoding_format":"base64","dimensions":256}"#, "ok", "free"),
        (Surface::Images, r#"{"prompt":"a","partial_images":2}"#, "not_priced", "each is billed"),
        (Surface::Images, r#"{"prompt":["a"]}"#, "invalid_value", "one text"),
        (Surface::Images, r#"{"prompt":"a","n":5}"#, "over_limit", "too many"),
        (Surface::Images, r#"{"prompt":"a","image":"data:"}"#, "unknown_parameter", "an edit"),
        (Surface::Images, r#"{"prompt":"a","n":2,"size":"1024x1024","quality":"high"}"#, "ok", "free"),
        (Surface::Speech, r#"{"input":"a","voice":"alloy","stream_format":"sse"}"#, "invalid_value", "events"),
        (Surface::Speech, r#"{"input":"a","voice":"alloy","response_format":"exe"}"#, "invalid_value", "no sound"),
        (Surface::Speech, r#"{"input":"a","voice":"alloy","n":2}"#, "unknown_parameter", "one"),
        (Surface::Speech, r#"{"input":"a","voice":"alloy","speed":1.25,"instructions":"slowly"}"#, "ok", "free"),
    ] {
        assert_eq!(code(read(surface, body)), want, "{} {why}", surface.word());
    }
    let stripping = Limits { unknown_fields: UnknownFields::Strip, ..limits() };
    let ask = read_under(Surface::Completions, r#"{"prompt":"a","n_predict":9000}"#, &stripping).unwrap();
    assert_eq!(sent(&ask, false), r#"{"model":"up","prompt":"a","max_tokens":50,"stream":false}"#);
}

#[test]
fn texts_to_be_embedded_are_at_most_as_many_as_openai_takes() {
    let body = |n: usize| json!({"model": "m", "input": vec!["a"; n]}).to_string();
    assert_eq!(read(Surface::Embeddings, body(2048)).unwrap().messages, 2048);
    let refused = read(Surface::Embeddings, body(2049)).unwrap_err();
    assert_eq!(refused, Refusal::OverLimit { param: "input", asked: 2049, max: 2048 });
}

#[test]
fn the_backend_hears_what_was_priced_and_nothing_else() {
    for (surface, body, stream, want) in [
        (
            Surface::Completions,
            r#" {"stop" : ["x"], "max_tokens":900, "n":2, "prompt":["a","b"], "model":"m", "user":null} "#,
            false,
            r#"{"model":"up","stop":["x"],"prompt":["a","b"],"max_tokens":50,"n":2,"stream":false}"#,
        ),
        (
            Surface::Completions,
            r#"{"prompt":[1, 2],"suffix":"s","best_of":1,"stream":true,"max_tokens":7}"#,
            true,
            r#"{"model":"up","prompt":[1, 2],"suffix":"s","max_tokens":7,"best_of":1,"stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        (
            Surface::Completions,
            r#"{"prompt":"a","echo":true,"best_of":2}"#,
            false,
            r#"{"model":"up","prompt":"a","max_tokens":50,"best_of":2,"echo":true,"stream":false}"#,
        ),
        (
            Surface::Embeddings,
            r#"{"input":["a"],"model":"m","dimensions":8,"encoding_format":"base64"}"#,
            false,
            r#"{"model":"up","input":["a"],"dimensions":8,"encoding_format":"base64"}"#,
        ),
        (
            Surface::Images,
            r#"{"prompt":"a cat","size":"256x256"}"#,
            false,
            r#"{"model":"up","prompt":"a cat","size":"256x256","n":1}"#,
        ),
        (
            Surface::Speech,
            r#"{"voice":"alloy","input":"hi","response_format":"wav"}"#,
            false,
            r#"{"model":"up","voice":"alloy","input":"hi","response_format":"wav"}"#,
        ),
    ] {
        let ask = read(surface, body).unwrap();
        let out = sent(&ask, stream);
        assert_eq!(out, want, "{}", surface.word());
        assert_eq!(ask.content_type(&out), "application/json");
    }
}

#[test]
fn a_picture_is_one_of_those_that_the_tier_sells_and_no_backend_chooses_another() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let drawn = Drawn { sizes: words(&["1024x1024", "1024x1536"]), qualities: words(&["low", "medium"]) };
    let listed = Limits { drawn, ..limits() };
    for (said, want, why) in [
        (r#""size":"1024x1536","quality":"medium""#, r#""quality":"medium","size":"1024x1536","n":1"#, "both said"),
        ("", r#""n":1,"size":"1024x1024","quality":"low""#, "neither: the first of each"),
        (r#""size":null,"quality":"low""#, r#""quality":"low","n":1,"size":"1024x1024""#, "null is nothing"),
    ] {
        let comma = if said.is_empty() { "" } else { "," };
        let ask = read_under(Surface::Images, format!(r#"{{{said}{comma}"prompt":"a"}}"#), &listed).unwrap();
        let sent: serde_json::Value = serde_json::from_slice(&sent(&ask, false)).unwrap();
        let want: serde_json::Value =
            serde_json::from_str(&format!(r#"{{"model":"up","prompt":"a",{want}}}"#)).unwrap();
        assert_eq!(sent, want, "{why}");
    }
    for (said, want) in [
        (r#""size":"2048x2048""#, ("size", "must be one of those sold here: 1024x1024, 1024x1536")),
        (r#""size":"auto""#, ("size", "must be one of those sold here: 1024x1024, 1024x1536")),
        (r#""quality":"high""#, ("quality", "must be one of those sold here: low, medium")),
        (r#""quality":7"#, ("quality", "must be a string")),
    ] {
        let refused = read_under(Surface::Images, format!(r#"{{"prompt":"a",{said}}}"#), &listed).unwrap_err();
        assert_eq!(refused, Refusal::BadField { param: want.0.into(), why: want.1.into() }, "{said}");
    }
}

#[test]
fn output_is_limited_where_there_is_any() {
    for surface in [Surface::Embeddings, Surface::Images, Surface::Speech, Surface::Transcriptions] {
        let ask = read(surface, "").unwrap();
        assert_eq!((ask.max_output, ask.asked_output, ask.n, ask.nothing_asked), (0, Some(0), 1, true));
    }
    let ask = read(Surface::Completions, r#"{"prompt":"a","max_tokens":900}"#).unwrap();
    assert_eq!((ask.max_output, ask.asked_output), (100, Some(900)));
    let strict = Limits { over_limit: OverLimit::Refuse, ..limits() };
    assert_eq!(code(read_under(Surface::Completions, r#"{"prompt":"a","max_tokens":900}"#, &strict)), "over_limit");
}

#[test]
fn an_empty_text_is_neither_drawn_nor_spoken() {
    for (surface, body) in [(Surface::Images, r#"{"prompt":"T"}"#), (Surface::Speech, r#"{"input":"T","voice":"a"}"#)] {
        for (text, nothing) in [("", true), ("a", false)] {
            assert_eq!(read(surface, body.replace('T', text)).unwrap().nothing_asked, nothing, "{surface:?}: {text:?}");
        }
    }
}

/// A form as browsers write it.
fn form(parts: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (name, content) in parts {
        let (file, kind) = match *name {
            "file" => ("; filename=\"a.wav\"", "\r\nContent-Type: audio/wav"),
            _ => ("", ""),
        };
        body.push_str(&format!(
            "--b\r\nContent-Disposition: form-data; name=\"{name}\"{file}{kind}\r\n\r\n{content}\r\n"
        ));
    }
    body + "--b--\r\n"
}

#[test]
fn a_form_says_each_thing_once_and_nothing_that_is_not_known() {
    const FILE: (&str, &str) = ("file", "RIFF");
    for (parts, want, why) in [
        (&[FILE, ("model", "m")][..], "ok", "plain"),
        (&[FILE, ("model", "m"), ("stream", "false"), ("language", "en")], "ok", "said and free"),
        (&[FILE, ("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")], "ok", "a list"),
        (&[FILE, ("model", "m"), ("model", "dearer")], "invalid_value", "two models"),
        (&[FILE, FILE], "invalid_value", "two files"),
        (&[FILE, ("response_format", "json"), ("response_format", "text")], "invalid_value", "two formats"),
        (&[FILE, ("Model", "dearer")], "invalid_value", "for a reader that ignores case"),
        (&[FILE, ("beam_size", "500")], "unknown_parameter", "unknown"),
        (&[FILE, ("stream", "yes")], "invalid_value", "no truth"),
    ] {
        assert_eq!(code(read(Surface::Transcriptions, form(parts))), want, "{why}");
    }
    let ask = read(Surface::Transcriptions, form(&[("model", "m")])).unwrap();
    assert!(ask.nothing_asked, "without a file nothing is asked");
    assert_eq!(code(read(Surface::Transcriptions, r#"{"model":"m"}"#)), "invalid_form");
}

#[test]
fn the_backend_gets_the_file_as_it_came_under_its_own_name_for_the_model() {
    let sound = "RIFF\r\n--x\u{0}\u{1}--b-\r\n";
    let body = form(&[("model", "m"), ("file", sound), ("stream", "false"), ("language", "en")]);
    let ask = read(Surface::Transcriptions, &body).unwrap();
    assert_eq!(ask.model.as_deref(), Some("m"));
    let out = sent(&ask, false);
    let kind = ask.content_type(&out).into_owned();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    assert!(boundary.len() > 20 && !body.contains(boundary), "nobody could foretell it");
    let want = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nup\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n{sound}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"language\"\r\n\r\nen\r\n--{boundary}--\r\n"
    );
    assert_eq!(std::str::from_utf8(&out).unwrap(), want);
    let stripping = Limits { unknown_fields: UnknownFields::Strip, ..limits() };
    let ask = read_under(Surface::Transcriptions, form(&[("file", "x"), ("beam_size", "500")]), &stripping).unwrap();
    assert!(!sent(&ask, false).windows(9).any(|w| w == b"beam_size"));
}
