//! What a chat request may say, and that every backend reads the forwarded body as it was priced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::request::{Ask, Rewrite};
use crate::ids::UpstreamModel;
use crate::limits::{Drawn, Limits, OverLimit, PicturePrice, Spelling, UnknownFields};
use crate::refusal::Refusal;
use crate::surface::Surface;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

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

fn stripping() -> Limits {
    Limits { unknown_fields: UnknownFields::Strip, ..limits() }
}

fn read(body: &str, limits: &Limits) -> Result<Ask, Refusal> {
    Ask::read(Surface::Chat, Bytes::copy_from_slice(body.as_bytes()), limits)
}

fn sent(ask: &Ask, stream: bool, spelling: Spelling, continuous_usage: bool) -> Value {
    sent_without(ask, stream, spelling, continuous_usage, &[])
}

fn sent_without(ask: &Ask, stream: bool, spelling: Spelling, continuous_usage: bool, withheld: &[&str]) -> Value {
    let model = UpstreamModel::from("up/stream\"1");
    let to = Rewrite { model: &model, max_output: u64::MAX, spelling, stream, continuous_usage, withheld };
    let out = ask.rewrite(&to);
    serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out)))
}

const HI: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

fn with(rest: &str) -> String {
    format!("{{{HI},{rest}}}")
}

/// A message list with this content.
fn says(content: &str) -> String {
    format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#)
}

#[test]
fn what_would_be_billed_differently_than_priced_is_refused() {
    for (rest, param, why) in [
        (r#""Model":"x""#, "model", "case-folds to a billing key"),
        (r#""\u017ftream":true"#, "stream", "long s folds to s"),
        (r#""max_to\u212aens":1"#, "max_tokens", "the kelvin sign folds to k"),
        (r#""MAX_TOKENS":1"#, "max_tokens", "upper case"),
        (r#""stream_option\u017f":{}"#, "stream_options", "long s at the end"),
        (r#""max_tokens":0"#, "max_tokens", "SGLang falls through to the other field on 0"),
        (r#""max_tokens":-1"#, "max_tokens", "negative"),
        (r#""max_tokens":1e3"#, "max_tokens", "exponent"),
        (r#""max_tokens":10.0"#, "max_tokens", "a float to some readers"),
        (r#""max_tokens":"10""#, "max_tokens", "text"),
        (r#""max_completion_tokens":true"#, "max_completion_tokens", "a bool is 1 to Python"),
        (r#""n":0"#, "n", "zero"),
        (r#""n":-2"#, "n", "negative"),
        (r#""n":1.0"#, "n", "float form"),
        (r#""n":2e0"#, "n", "exponent form"),
        (r#""n":[2]"#, "n", "array"),
        (r#""stream":1"#, "stream", "1 is true to some"),
        (r#""stream":"true""#, "stream", "text is true to some"),
        (r#""model":7"#, "model", "a model is a string"),
        (r#""stream_options":[]"#, "stream_options", "an object"),
        (r#""stream_options":{"Include_usage":true}"#, "stream_options.include_usage", "folds inside too"),
        (r#""stream_options":{"include_usage":1}"#, "stream_options.include_usage", "bool only"),
        (r#""temperature":"hot""#, "temperature", "type of a free field"),
        (r#""tools":[{"function":{}}]"#, "tools[0].type", "type missing"),
        (r#""tools":{}"#, "tools", "an array"),
        (r#""tools":[{"Type":"mcp","type":"function"}]"#, "tools[0].type", "a second reading of type"),
    ] {
        for limits in [limits(), stripping()] {
            match read(&with(rest), &limits) {
                Err(Refusal::BadField { param: got, .. }) => assert_eq!(got, param, "{why}"),
                other => panic!("{why}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_costs_extra_and_has_no_price_is_refused_by_name() {
    for (rest, param) in [
        (r#""web_search_options":{}"#, "web_search_options"),
        (r#""audio":{"voice":"x","format":"wav"}"#, "audio"),
        (r#""modalities":["text","audio"]"#, "modalities"),
        (r#""prediction":{"type":"content","content":"x"}"#, "prediction"),
        (r#""service_tier":"priority""#, "service_tier"),
        (r#""service_tier":"flex""#, "service_tier"),
        (r#""store":true"#, "store"),
        (r#""prompt_cache_retention":"24h""#, "prompt_cache_retention"),
        (r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"web_search"}]"#, "tools[1].type"),
        (r#""tools":[{"type":"mcp"}]"#, "tools[0].type"),
    ] {
        for limits in [limits(), stripping()] {
            let got = read(&with(rest), &limits).map(|_| ());
            assert_eq!(got, Err(Refusal::NotPriced { param: param.to_owned() }), "{rest}");
        }
    }
    for (content, param) in [
        (r#"[{"type":"image_url","image_url":{"url":"https://a.example/b"}}]"#, "messages[0].content[0].type"),
        (r#"[{"type":"text","text":"x"},{"type":"input_audio","input_audio":{}}]"#, "messages[0].content[1].type"),
        (r#"[{"type":"file","file":{}}]"#, "messages[0].content[0].type"),
        (r#"[{"type":"video_url","video_url":{}}]"#, "messages[0].content[0].type"),
        (
            r#"[{"image_url":{"url":"https://a.example/b"},"type":"text","text":"x"}]"#,
            "messages[0].content[0].image_url",
        ),
    ] {
        let got = read(&says(content), &limits()).map(|_| ());
        assert_eq!(got, Err(Refusal::NotPriced { param: param.to_owned() }), "{content}");
    }
}

#[test]
fn values_that_cost_nothing_pass_and_null_means_absent() {
    let free = [
        r#""service_tier":"auto""#,
        r#""modalities":["text"]"#,
        r#""store":false"#,
        r#""temperature":0.5"#,
        r#""stop":["a"]"#,
        r#""tool_choice":"auto""#,
        r#""logit_bias":{"50256":-100}"#,
        r#""seed":-3"#,
        r#""response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"Type":1}}}"#,
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"N":1,"model":2}}}]"#,
        r#""metadata":{"Model":"x"}"#,
        r#""prompt_cache_retention":"in_memory""#,
    ];
    for rest in free {
        let ask = read(&with(rest), &limits()).unwrap_or_else(|e| panic!("{rest}: {e:?}"));
        let want: Value = serde_json::from_str(&format!("{{{rest}}}")).unwrap();
        let got = sent(&ask, false, Spelling::MaxTokens, false);
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(got.get(key), Some(value), "{rest} must arrive unchanged");
        }
    }
    for name in ["audio", "prediction", "n", "max_tokens", "stream", "stream_options", "model", "store", "stop"] {
        let ask = read(&with(&format!("\"{name}\":null")), &limits()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!((ask.model.is_none(), ask.stream, ask.n, ask.max_output), (true, false, 1, 100), "{name}");
    }
}

#[test]
fn limits_clamp_or_refuse_as_the_tier_says() {
    let refuse = Limits { over_limit: OverLimit::Refuse, ..limits() };
    for (rest, clamped, asked, over, why) in [
        (r#""seed":1"#, 100, None, None, "absent: the limit"),
        (r#""max_tokens":7"#, 7, Some(7), None, "below"),
        (r#""max_tokens":100"#, 100, Some(100), None, "exactly"),
        (r#""max_tokens":101"#, 100, Some(101), Some("max_tokens"), "above"),
        (r#""max_tokens":9,"max_completion_tokens":8"#, 8, Some(8), None, "the smaller of two"),
        (
            r#""max_tokens":900,"max_completion_tokens":800"#,
            100,
            Some(800),
            Some("max_completion_tokens"),
            "both above",
        ),
        (r#""max_tokens":99999999999999999999999"#, 100, Some(u64::MAX), Some("max_tokens"), "past 64 bits"),
    ] {
        let ask = read(&with(rest), &limits()).unwrap();
        assert_eq!((ask.max_output, ask.asked_output), (clamped, asked), "{why}");
        match (read(&with(rest), &refuse), over) {
            (Err(Refusal::OverLimit { param, .. }), Some(want)) => assert_eq!(param, want, "{why}"),
            (Ok(ask), None) => assert_eq!(ask.max_output, clamped, "{why}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    assert_eq!(read(&with(r#""n":4"#), &limits()).unwrap().n, 4);
    let over = Err(Refusal::OverLimit { param: "n", asked: 5, max: 4 });
    assert_eq!(read(&with(r#""n":5"#), &limits()).map(|_| ()), over, "n is never clamped: the client counts choices");
    let small = Limits { max_body_bytes: 5, ..limits() };
    assert_eq!(read(&with(r#""n":5"#), &small).map(|_| ()), Err(Refusal::BodyTooLarge { limit: 5 }));
}

#[test]
fn an_unknown_field_is_refused_or_does_not_leave_the_gate() {
    let vendor =
        ["n_predict", "best_of", "use_beam_search", "min_tokens", "ignore_eos", "models", "provider", "plugins"];
    for name in vendor {
        let body = with(&format!("\"{name}\":9,\"seed\":1"));
        let refused = read(&body, &limits()).map(|_| ());
        assert_eq!(refused, Err(Refusal::UnknownField { param: name.to_owned() }));
        let got = sent(&read(&body, &stripping()).unwrap(), false, Spelling::MaxTokens, false);
        assert_eq!((got.get(name), got.get("seed")), (None, Some(&json!(1))));
    }
    for (message, want, why) in [
        (r#"{"x":1,"role":"user","content":"a"}"#, json!({"role":"user","content":"a"}), "first"),
        (r#"{"role":"user","x":1,"content":"a"}"#, json!({"role":"user","content":"a"}), "middle"),
        (r#"{"role":"user","content":"a" , "x":{"y":[1]} }"#, json!({"role":"user","content":"a"}), "last"),
        (r#"{"x":1,"y":2,"role":"user","z":3,"content":"a"}"#, json!({"role":"user","content":"a"}), "several"),
        (
            r#"{"x":1,"content":[{"cache_control":{},"type":"text","k":0,"text":"a","l":0}],"role":"user","y":2}"#,
            json!({"content":[{"type":"text","text":"a"}],"role":"user"}),
            "inside and around",
        ),
    ] {
        let body = format!(r#"{{"messages":[{message},{{"role":"user","content":"z"}}]}}"#);
        assert!(matches!(read(&body, &limits()), Err(Refusal::UnknownField { .. })), "{why}");
        let got = sent(&read(&body, &stripping()).unwrap(), false, Spelling::MaxTokens, false);
        assert_eq!(got["messages"], json!([want, {"role":"user","content":"z"}]), "{why}");
    }
    let hostile = read("{\"\\u0007\\u20ac\":1}", &limits()).unwrap_err();
    assert_eq!(
        hostile,
        Refusal::UnknownField { param: "??".to_owned() },
        "a client's key is repeated in plain ASCII only"
    );
}

#[test]
fn a_member_that_is_null_says_nothing_by_any_name_that_is_not_spelled_almost_like_a_known_one() {
    let message = r#"{"role":"assistant","content":"a","parsed":null,"tool_calls":null}"#;
    let body = format!(r#"{{"vendor":null,"messages":[{message}]}}"#);
    let got = sent(&read(&body, &limits()).unwrap(), false, Spelling::MaxTokens, false);
    assert_eq!((got.get("vendor"), got["messages"][0].get("parsed")), (None, None));
    assert!(read(&with(r#""Max_Tokens":null"#), &limits()).is_err(), "some readers take it for max_tokens");
}

#[test]
fn what_ends_an_output_is_a_text_or_a_short_list_of_short_ones() {
    let long = "x".repeat(513);
    for (stop, passes) in [
        (json!("a"), true),
        (json!(vec!["a"; 16]), true),
        (json!(vec!["a"; 17]), false),
        (json!([long]), false),
        (json!(long), false),
        (json!([["a"]]), false),
        (json!(7), false),
    ] {
        assert_eq!(read(&with(&format!(r#""stop":{stop}"#)), &limits()).is_ok(), passes, "{stop}");
    }
}

#[test]
fn an_empty_ask_can_be_quoted_and_broken_json_never() {
    for body in ["", " \n", "{}", r#"{"messages":[]}"#, r#"{"messages":null}"#, r#"{"model":"m"}"#] {
        assert!(read(body, &limits()).unwrap().nothing_asked, "{body:?}");
    }
    for body in ["null", "[]", "\"x\"", "{", "{} {}", "{\"a\"", "\u{feff}{}", "messages=hi"] {
        assert!(matches!(read(body, &limits()), Err(Refusal::BadJson { .. })), "{body:?}");
    }
    for body in [
        r#"{"messages":"hi"}"#,
        r#"{"messages":[1]}"#,
        r#"{"messages":[{"content":"no role"}]}"#,
        r#"{"messages":[{"role":"root","content":"x"}]}"#,
        r#"{"messages":[{"role":"user","content":{}}]}"#,
        r#"{"messages":[{"role":"user","content":[{"text":"no type"}]}]}"#,
        r#"{"messages":[{"role":"user","Content":"x"}]}"#,
    ] {
        assert!(matches!(read(body, &limits()), Err(Refusal::BadField { .. })), "{body:?}");
    }
}

#[test]
fn priced_images_are_counted_and_only_from_where_a_backend_may_look() {
    let priced = Limits { image_url: Some(PicturePrice::default()), ..limits() };
    let part = |url: &str| format!(r#"{{"type":"image_url","image_url":{{"url":"{url}","detail":"low"}}}}"#);
    let two = says(&format!("[{},{}]", part("https://a.example/b"), part("data:image/png;base64,AA")));
    assert_eq!(read(&two, &priced).unwrap().images, 2);
    for url in [
        "https://a.example:8443/b?c",
        "https://images.example.",
        "https://xn--bcher-kva.example/b",
        "https://a_b.example/@x",
    ] {
        assert!(read(&says(&format!("[{}]", part(url))), &priced).is_ok(), "{url}");
    }
    for url in [
        "http://a.example/b",
        "file:///etc/passwd",
        "ftp://a.example",
        "data:text/html,x",
        "",
        "https://",
        // In the backend's own house, or what some reader takes for it.
        "https://localhost/b",
        "https://vault/b",
        "https://a.localhost",
        "https://metadata.google.internal/b",
        "https://printer.local./b",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1:8443/b",
        "https://2852039166/b",
        "https://0xa9.0xfe.0xa9.0xfe/b",
        "https://[::1]/b",
        "https://１６９.254.169.254/b",
        "https://a.example@10.0.0.1/b",
        "https://user:word@a.example/b",
        "https://10.0.0.1\\\\@a.example/b",
        "https://%31%30.0.0.1/b",
        "https:a.example/b",
    ] {
        let got = read(&says(&format!("[{}]", part(url))), &priced);
        assert!(matches!(got, Err(Refusal::BadField { .. })), "{url}");
    }
    for part in [
        r#"{"type":"text","image_url":{"url":"https://a.example/b"}}"#,
        r#"{"type":"image_url","text":"x"}"#,
        r#"{"type":"text","text":"x","image_url":{"url":"https://a.example/b"}}"#,
        r#"{"type":"image_url","image_url":"https://a.example/b"}"#,
        r#"{"type":"image_url","image_url":{}}"#,
    ] {
        assert!(read(&says(&format!("[{part}]")), &priced).is_err(), "type and member must say the same: {part}");
    }
}

#[test]
fn the_prompt_is_every_text_a_model_can_read() {
    let body = r#"{"messages":[
        {"role":"system","content":"a\u00e9"},
        {"role":"user","name":"bob","content":[{"type":"text","text":"b\n"}]},
        {"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"i1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
        {"role":"tool","tool_call_id":"i1","content":"r"}],
        "tools":[{"type":"function","function":{"name":"g"}}],
        "response_format":{"type":"json_object"}, "user":"not in the prompt"}"#;
    let ask = read(body, &limits()).unwrap();
    let texts: Vec<_> = ask.prompt().texts().map(std::borrow::Cow::into_owned).collect();
    for want in ["aé", "bob", "b\n", "i1", "f", r#"{"x":1}"#, "r", r#"{"name":"g"}"#, r#"{"type":"json_object"}"#] {
        assert!(texts.iter().any(|t| t == want), "{want:?} is missing in {texts:?}");
    }
    assert!(!texts.iter().any(|t| t.contains("not in the prompt")));
    assert_eq!((ask.prompt().messages, ask.prompt().names), (4, 1));
}

#[test]
fn stream_options_are_merged_and_there_only_for_streams() {
    let ask =
        read(&with(r#""stream":true,"stream_options":{"include_usage":false,"include_obfuscation":false}"#), &limits());
    let ask = ask.unwrap();
    assert!(ask.stream && !ask.wants_usage);
    let plain = sent(&ask, true, Spelling::MaxTokens, false);
    assert_eq!(plain["stream_options"], json!({"include_usage":true,"include_obfuscation":false}));
    let continuous = sent(&ask, true, Spelling::MaxTokens, true);
    assert_eq!(continuous["stream_options"]["continuous_usage_stats"], json!(true));
    let buffered = sent(&ask, false, Spelling::MaxTokens, true);
    assert_eq!((buffered.get("stream_options"), &buffered["stream"]), (None, &json!(false)));
    let wants = read(&with(r#""stream":true,"stream_options":{"include_usage":true}"#), &limits()).unwrap();
    assert!(wants.wants_usage);
}

#[test]
fn what_a_backend_refuses_is_left_out_and_nothing_else() {
    let body = with(
        r#""seed":1,"stop":["a"],"user":"u","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":true}"#,
    );
    let ask = read(&body, &limits()).unwrap();
    let got = sent_without(&ask, true, Spelling::MaxTokens, false, &["seed", "user", "include_obfuscation", "never"]);
    assert_eq!((got.get("seed"), got.get("user"), &got["stop"]), (None, None, &json!(["a"])));
    assert_eq!(got["stream_options"], json!({"include_usage":true}), "what decides the bill is never left out");
    let all = sent(&ask, true, Spelling::MaxTokens, false);
    assert_eq!((&all["seed"], &all["user"]), (&json!(1), &json!("u")));
}

/// One member of a generated request, some of them not acceptable.
fn member() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(r#""model":"a/b""#.to_owned()),
        Just(r#""m\u006fdel":"escaped key""#.to_owned()),
        Just(r#""Model":"evil""#.to_owned()),
        (0u32..9).prop_map(|n| format!("\"n\":{n}")),
        (0u32..300).prop_map(|n| format!("\"max_tokens\":{n}")),
        (0u32..300).prop_map(|n| format!("\"max_completion_tokens\" : {n}")),
        any::<bool>().prop_map(|b| format!("\"stream\":{b}")),
        any::<bool>().prop_map(|b| format!("\"stream_options\":{{\"x\":[1,{{}}],\"include_usage\":{b}}}")),
        (0i32..3).prop_map(|t| format!("\"temperature\":{t}.5e0")),
        "[a-zA-Z_]{1,8}".prop_map(|k| format!("\"{k}\":{{\"a\":[1,2,{{}}]}}")),
        Just("\"max_to\u{212A}ens\":1".to_owned()),
        any::<String>().prop_map(|s| says(&Value::from(s).to_string()).trim_matches(['{', '}']).to_owned()),
        Just(r#""messages":[{"x":1,"role":"user","y":[],"content":[{"u":0,"type":"text","text":"t"}]}]"#.to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_reader_of_the_forwarded_body_sees_what_was_priced(
        members in proptest::collection::vec(member(), 0..6),
        stream in any::<bool>(),
        openai in any::<bool>(),
    ) {
        let body = format!("{{{}}}", members.join(" ,"));
        let Ok(ask) = read(&body, &stripping()) else { return Ok(()) };
        let spelling = if openai { Spelling::MaxCompletionTokens } else { Spelling::MaxTokens };
        let (ours, other) =
            if openai { ("max_completion_tokens", "max_tokens") } else { ("max_tokens", "max_completion_tokens") };
        let got = sent(&ask, stream, spelling, false);
        // serde keeps the last of duplicates: re-reading our output strictly shows there are none to choose from.
        let model = UpstreamModel::from("up/stream\"1");
        let out = ask.rewrite(&Rewrite { model: &model, max_output: u64::MAX, spelling, stream, continuous_usage: false, withheld: &[] });
        let again = Ask::read(Surface::Chat, out, &limits()).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
        prop_assert_eq!(again.model.as_deref(), Some("up/stream\"1"));
        prop_assert_eq!((again.n, again.max_output, again.stream), (ask.n, ask.max_output, stream));
        prop_assert!(ask.max_output <= 100 && ask.n <= 4);
        let object = got.as_object().unwrap();
        prop_assert_eq!(&object["model"], &json!("up/stream\"1"));
        prop_assert_eq!(&object[ours], &json!(ask.max_output));
        prop_assert!(!object.contains_key(other));
        prop_assert_eq!(object.get("n").and_then(Value::as_u64).unwrap_or(1), ask.n);
        prop_assert_eq!(&object["stream"], &json!(stream));
        prop_assert_eq!(object.contains_key("stream_options"), stream);
        // What the priced prompt is made of is what the backend reads.
        let before: Vec<_> = ask.prompt().texts().collect();
        let after: Vec<_> = again.prompt().texts().collect();
        prop_assert_eq!(before, after);
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_never_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Ask::read(Surface::Chat, body.into(), &limits());
    }

    #[test]
    fn a_body_cut_or_changed_anywhere_is_never_read_where_serde_refuses(at in 0usize..200, byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = with(r#""model":"m","stream":true,"n":2,"tools":[{"type":"function","function":{"name":"\ud83d\ude00"}}]"#).into_bytes();
        if cut { body.truncate(at.max(1)); } else if let Some(b) = body.get_mut(at) { *b = byte; }
        if Ask::read(Surface::Chat, body.clone().into(), &stripping()).is_ok() {
            prop_assert!(serde_json::from_slice::<Value>(&body).is_ok());
        }
    }
}

#[test]
fn the_head_of_a_conversation_is_the_same_from_turn_to_turn_and_differs_between_conversations() {
    let head = |messages: &str| {
        let body = format!(r#"{{"user":"u1","messages":[{messages}],"model":"m"}}"#);
        read(&body, &limits()).unwrap().head().concat()
    };
    let system = r#"{"role":"system","content":"be brief"}"#;
    let (first, other) = (r#"{"role":"user","content":"why?"}"#, r#"{"role":"user","content":"how?"}"#);
    let answer = r#"{"role":"assistant","content":"so"}"#;
    for before in [String::new(), format!("{system},")] {
        let begun = head(&format!("{before}{first}"));
        assert_eq!(begun, head(&format!("{before}{first},{answer},{other}")), "the next turn");
        assert_ne!(begun, head(&format!("{before}{other}")), "another conversation");
        assert!(!String::from_utf8_lossy(&begun).contains("u1"), "whoever asks");
    }
    let long = format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(60_000));
    assert_eq!(head(&long).len(), 16 * 1024);
    let keyed = |more: &str| {
        let body = format!(r#"{{{more}"messages":[{first}],"model":"m"}}"#);
        read(&body, &limits()).unwrap().same_key().map(|key| String::from_utf8_lossy(key).into_owned())
    };
    assert_eq!(keyed(r#""user":"u","prompt_cache_key":"k","#).as_deref(), Some("\"k\""));
    assert_eq!(keyed(r#""user":"u","#).as_deref(), Some("\"u\""));
    assert_eq!(keyed(""), None);
}

#[test]
fn a_picture_that_says_its_size_is_counted_by_it() {
    use crate::picture::Family;
    let png = r"data:image\/png;base64,iVBORw0KGgoAAAANSUhEUgAABAAAAAQACAY=";
    let part = |url: &str| format!(r#"{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#);
    let content =
        [part(png), part("https://example.org/a.png"), part("data:image/png;base64,AAAA"), part(png)].join(",");
    let priced = Limits { image_url: Some(PicturePrice::default()), ..limits() };
    let ask = read(&says(&format!("[{content}]")), &priced).unwrap();
    for ask in [&ask, &ask.without_body()] {
        assert_eq!((ask.images, ask.sized_pictures()), (4, 2), "two of no known size; also when the text is gone");
        assert_eq!(ask.picture_tokens(Family::Tiles), 2 * 765, "two of 1,024 by 1,024");
    }
}

#[test]
fn the_field_that_asks_for_too_many_outputs_is_named() {
    for (surface, body, n, field) in [
        (Surface::Chat, r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}],"n":2}"#, 2, "n"),
        (Surface::Completions, r#"{"prompt":"a","n":2}"#, 2, "n"),
        (Surface::Completions, r#"{"prompt":["a"],"n":2}"#, 2, "n"),
        (Surface::Completions, r#"{"prompt":"a","best_of":2}"#, 2, "best_of"),
        (Surface::Completions, r#"{"prompt":["a","b"]}"#, 2, "prompt"),
        (Surface::Completions, r#"{"prompt":["a","b"],"n":1,"best_of":2}"#, 4, "prompt"),
    ] {
        let ask = Ask::read(surface, Bytes::from_static(body.as_bytes()), &limits()).unwrap();
        assert_eq!((ask.n, ask.count_field()), (n, field), "{body}");
    }
}
