//! What requests of Responses and Messages may say, and that backends read the forwarded body as it was priced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::ids::UpstreamModel;
use crate::limits::{Drawn, Limits, OverLimit, PicturePrice, Spelling, UnknownFields};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;
use crate::surface::Surface;
use bytes::Bytes;
use serde_json::{Value, json};

fn limits() -> Limits {
    Limits {
        max_body_bytes: 1 << 20,
        max_output_tokens: 2000,
        max_input_tokens: None,
        max_n: 4,
        over_limit: OverLimit::Clamp,
        unknown_fields: UnknownFields::Refuse,
        image_url: None,
        drawn: Drawn::default(),
    }
}

fn with_pictures() -> Limits {
    Limits { image_url: Some(PicturePrice::default()), ..limits() }
}

fn read(surface: Surface, body: &Value, limits: &Limits) -> Result<Ask, Refusal> {
    Ask::read(surface, body.to_string().into(), limits)
}

fn sent_for(ask: &Ask, max_output: u64, stream: bool) -> Value {
    sent_without(ask, max_output, stream, &[])
}

fn sent_without(ask: &Ask, max_output: u64, stream: bool, withheld: &[&str]) -> Value {
    let model = UpstreamModel::from("up/stream\"1");
    let out = ask.rewrite(&Rewrite {
        model: &model,
        max_output,
        spelling: Spelling::MaxCompletionTokens,
        stream,
        continuous_usage: true,
        withheld,
    });
    serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out)))
}

fn sent(ask: &Ask, stream: bool) -> Value {
    sent_for(ask, u64::MAX, stream)
}

/// The field that a refusal names, and whether it is one without a price.
fn named(refused: Result<Ask, Refusal>, why: &str) -> (String, bool) {
    match refused.map(drop) {
        Err(Refusal::NotPriced { param }) => (param, true),
        Err(Refusal::BadField { param, .. } | Refusal::UnknownField { param }) => (param, false),
        other => panic!("{why}: {other:?}"),
    }
}

fn texts(ask: &Ask) -> String {
    ask.prompt().texts().collect::<Vec<_>>().join("|")
}

// --- Responses ------------------------------------------------------------------------------------------------------------

fn response(more: Value) -> Value {
    let mut body = json!({"model":"m","input":"hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_response_that_would_cost_more_than_its_price_or_be_kept_is_refused() {
    let item = |item: Value| json!({ "input": [item] });
    let part = |part: Value| json!({"input":[{"role":"user","content":[part]}]});
    for (more, param, unpriced) in [
        (json!({"store":true}), "store", false),
        (json!({"previous_response_id":"resp_1"}), "previous_response_id", false),
        (json!({"conversation":"conv_1"}), "conversation", false),
        (json!({"conversation":{"id":"conv_1"}}), "conversation", false),
        (json!({"background":true}), "background", false),
        (json!({"prompt":{"id":"pmpt_1"}}), "prompt", false),
        (json!({"context_management":[{"type":"compaction"}]}), "context_management", true),
        (json!({"include":["web_search_call.action.sources"]}), "include", true),
        (json!({"reasoning":{"effort":"low","mode":"pro"}}), "reasoning.mode", true),
        (json!({"reasoning":{"passes":3}}), "reasoning.passes", false),
        (json!({"reasoning":"high"}), "reasoning", false),
        (json!({"service_tier":"priority"}), "service_tier", true),
        (json!({"service_tier":"flex"}), "service_tier", true),
        (json!({"prompt_cache_retention":"24h"}), "prompt_cache_retention", true),
        (json!({"tools":[{"type":"web_search"}]}), "tools[0].type", true),
        (json!({"tools":[{"type":"function","name":"f"},{"type":"mcp"}]}), "tools[1].type", true),
        (json!({"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}), "tools[0].container", false),
        (json!({"tools":[{"name":"f"}]}), "tools[0].type", false),
        (item(json!({"type":"item_reference","id":"msg_1"})), "input[0].type", false),
        (item(json!({"id":"msg_1"})), "input[0].role", false),
        (item(json!({"type":"file_search_call","id":"x"})), "input[0].type", true),
        (item(json!({"type":"message","role":"tool","content":"x"})), "input[0].role", false),
        (part(json!({"type":"input_file","file_id":"file_1"})), "input[0].content[0].file_id", true),
        (part(json!({"type":"input_image","file_id":"file_1"})), "input[0].content[0].file_id", true),
        (part(json!({"type":"input_audio"})), "input[0].content[0].type", true),
        (
            part(json!({"type":"input_image","image_url":"https://a.example/b.png"})),
            "input[0].content[0].image_url",
            true,
        ),
        (part(json!({"text":"x"})), "input[0].content[0].type", false),
        (json!({"max_output_tokens":0}), "max_output_tokens", false),
        (json!({"max_output_tokens":1.0}), "max_output_tokens", false),
        (json!({"Max_output_tokens":9}), "max_output_tokens", false),
        (json!({"max_tokens":9}), "max_tokens", false),
        (json!({"n":2}), "n", false),
        (json!({"stream_options":{"include_usage":true}}), "stream_options.include_usage", false),
        (json!({"instructions":["x"]}), "instructions", false),
        (json!({"input":7}), "input", false),
    ] {
        let why = more.to_string();
        assert_eq!(
            named(read(Surface::Responses, &response(more), &limits()), &why),
            (param.to_owned(), unpriced),
            "{why}"
        );
    }
}

#[test]
fn a_response_is_always_sent_stateless_and_within_its_limit() {
    let limit = "max_output_tokens";
    for (more, stream, want, why) in [
        (json!({}), false, json!({limit:2000,"store":false,"stream":false}), "nothing said"),
        (json!({"store":false,"max_output_tokens":9}), true, json!({limit:9,"store":false,"stream":true}), "said"),
        (json!({"max_output_tokens":9000}), false, json!({limit:2000,"store":false,"stream":false}), "clamped"),
        (
            json!({"stream_options":{"include_obfuscation":false}}),
            true,
            json!({limit:2000,"store":false,"stream":true,"stream_options":{"include_obfuscation":false}}),
            "an option of streams",
        ),
        (
            json!({"stream_options":{"include_obfuscation":true}}),
            false,
            json!({limit:2000,"store":false,"stream":false}),
            "which others do not get",
        ),
        (
            json!({"previous_response_id":null,"conversation":null,"background":null,"store":null,"prompt":null}),
            false,
            json!({limit:2000,"store":false,"stream":false}),
            "null is nothing",
        ),
        (
            json!({"background":false}),
            false,
            json!({limit:2000,"store":false,"stream":false,"background":false}),
            "not in the background",
        ),
        (
            json!({"include":["reasoning.encrypted_content"],"reasoning":{"effort":"low","summary":"auto","mode":"standard"},"truncation":"auto",
                "parallel_tool_calls":false,"service_tier":"auto","temperature":0.5,"metadata":{"store":"true"}}),
            false,
            json!({limit:2000,"store":false,"stream":false,"include":["reasoning.encrypted_content"],
                "reasoning":{"effort":"low","summary":"auto","mode":"standard"},"truncation":"auto","parallel_tool_calls":false,
                "service_tier":"auto","temperature":0.5,"metadata":{"store":"true"}}),
            "what costs nothing passes",
        ),
    ] {
        let ask = read(Surface::Responses, &response(more), &limits()).unwrap_or_else(|e| panic!("{why}: {e:?}"));
        let mut want = want;
        want.as_object_mut()
            .unwrap()
            .extend([("model".to_owned(), json!("up/stream\"1")), ("input".to_owned(), json!("hi"))]);
        assert_eq!(sent(&ask, stream), want, "{why}");
        assert_eq!((ask.n, ask.max_output), (1, want[limit].as_u64().unwrap()), "{why}");
    }
}

#[test]
fn an_option_of_streams_is_kept_from_backends_that_refuse_it() {
    let body = response(json!({"stream_options":{"include_obfuscation":false},"user":"u"}));
    let ask = read(Surface::Responses, &body, &limits()).unwrap();
    let kept = sent_without(&ask, u64::MAX, true, &["user"]);
    assert_eq!((&kept["stream_options"], &kept["user"]), (&json!({"include_obfuscation":false}), &json!(null)));
    let held = sent_without(&ask, u64::MAX, true, &["include_obfuscation"]);
    assert_eq!((held.get("stream_options"), &held["user"]), (None, &json!("u")));
}

#[test]
fn everything_a_response_reads_is_counted_and_passed() {
    let body = response(json!({
        "instructions": "be brief",
        "text": {"format":{"type":"json_schema","name":"s","schema":{"type":"object"}}},
        "tools": [{"type":"function","name":"f","description":"does","parameters":{"type":"object"},"strict":true}],
        "input": [
            {"role":"user","content":"one"},
            {"type":"message","role":"assistant","id":"msg_1","status":"completed",
                "content":[{"type":"output_text","text":"two","annotations":[],"logprobs":[]}]},
            {"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"three"}],"encrypted_content":"four"},
            {"type":"function_call","call_id":"c","name":"f","arguments":"{\"five\":5}","id":"fc_1","status":"completed"},
            {"type":"function_call_output","call_id":"c","output":"six"},
            {"role":"user","content":[{"type":"input_text","text":"seven"},
                {"type":"input_image","image_url":"data:image/png;base64,AA==","detail":"low"}]},
        ],
    }));
    let ask = read(Surface::Responses, &body, &with_pictures()).unwrap();
    let said = texts(&ask);
    for text in ["be brief", "json_schema", "does", "one", "two", "three", "four", "{\"five\":5}", "six", "seven"] {
        assert!(said.contains(text), "{text} in {said}");
    }
    assert!(!said.contains("base64") && !said.contains("msg_1"), "{said}");
    assert_eq!((ask.messages, ask.images, ask.nothing_asked), (6, 1, false));
    let back = sent(&ask, false);
    for name in ["input", "instructions", "text", "tools"] {
        assert_eq!(back[name], body[name], "{name}");
    }
}

#[test]
fn a_response_without_input_is_quoted_and_not_served() {
    for body in [json!({}), json!({"input":""}), json!({"input":[]}), json!({"model":"m","input":null})] {
        assert!(read(Surface::Responses, &body, &limits()).unwrap().nothing_asked, "{body}");
    }
    let ask = Ask::read(Surface::Responses, Bytes::new(), &limits()).unwrap();
    assert!(ask.nothing_asked);
}

#[test]
fn unknown_members_of_items_leave_no_trace_where_they_are_stripped() {
    let strip = Limits { unknown_fields: UnknownFields::Strip, ..limits() };
    let body =
        json!({"input":[{"zz":1,"role":"user","content":[{"type":"input_text","odd":{"a":[]},"text":"x"}]}],"yy":2});
    let ask = read(Surface::Responses, &body, &strip).unwrap();
    assert_eq!(sent(&ask, false)["input"], json!([{"role":"user","content":[{"type":"input_text","text":"x"}]}]));
    assert_eq!(sent(&ask, false).get("yy"), None);
}

// --- Messages -------------------------------------------------------------------------------------------------------------

fn message(more: Value) -> Value {
    let mut body = json!({"model":"m","max_tokens":1500,"messages":[{"role":"user","content":"hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn says(block: Value) -> Value {
    json!({"messages":[{"role":"user","content":[block]}]})
}

#[test]
fn a_message_that_would_cost_more_than_its_price_is_refused() {
    let at = "messages[0].content[0]";
    for (more, param, unpriced) in [
        (json!({"container":"c"}), "container", true),
        (json!({"mcp_servers":[{"type":"url"}]}), "mcp_servers", true),
        (
            json!({"context_management":{"edits":[{"type":"compact_20260112"}]}}),
            "context_management.edits[0].type",
            true,
        ),
        (json!({"context_management":{"edits":[{}]}}), "context_management.edits[0].type", false),
        (json!({"inference_geo":"us"}), "inference_geo", true),
        (json!({"speed":"fast"}), "speed", true),
        (json!({"service_tier":"priority"}), "service_tier", true),
        (json!({"cache_control":{"type":"ephemeral","ttl":"24h"}}), "cache_control.ttl", true),
        (json!({"tools":[{"type":"web_search_20250305","name":"web_search"}]}), "tools[0].type", true),
        (json!({"tools":[{"type":"bash_20250124","name":"bash"}]}), "tools[0].type", true),
        (json!({"system":[{"type":"image"}]}), "system[0]", false),
        (json!({"messages":[{"role":"tool","content":"x"}]}), "messages[0].role", false),
        (json!({"stop_sequences":7}), "stop_sequences", false),
        (json!({"stop_sequences":vec!["x"; 17]}), "stop_sequences", false),
        (json!({"stop_sequences":["x".repeat(513)]}), "stop_sequences", false),
        (
            says(json!({"type":"tool_use","id":"t","name":"f","input":{},"caller":{"type":"code_execution_20250825"}})),
            "messages[0].content[0].caller.type",
            true,
        ),
        (json!({"messages":[{"content":"x"}]}), "messages[0].role", false),
        (json!({"messages":[{"role":"user","content":7}]}), "messages[0].content", false),
        (says(json!({"type":"document","title":"x"})), "messages[0].content[0].title", false),
        (says(json!({"type":"document"})), "messages[0].content[0].type", true),
        (says(json!({"type":"search_result"})), "messages[0].content[0].type", true),
        (says(json!({"type":"server_tool_use","id":"x","name":"y","input":{}})), "messages[0].content[0].type", true),
        (says(json!({"text":"x"})), "messages[0].content[0].type", false),
        (
            says(json!({"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}})),
            "messages[0].content[0].source",
            true,
        ),
        (
            says(json!({"type":"tool_result","tool_use_id":"t","content":[{"type":"tool_result","content":"x"}]})),
            "messages[0].content[0].content[0].content",
            false,
        ),
        (json!({"max_tokens":0}), "max_tokens", false),
        (json!({"max_tokens":1e1}), "max_tokens", false),
        (json!({"Max_Tokens":5}), "max_tokens", false),
        (json!({"max_completion_tokens":5}), "max_completion_tokens", false),
        (json!({"n":2}), "n", false),
        (json!({"stream_options":{}}), "stream_options", false),
        (json!({"betas":["x"]}), "betas", false),
        (json!({"thinking":{"type":"enabled"}}), "thinking.budget_tokens", false),
        (json!({"thinking":{"type":"maybe"}}), "thinking.type", false),
        (json!({"thinking":{"type":"disabled","budget_tokens":9}}), "thinking.budget_tokens", false),
        (json!({"thinking":{"type":"enabled","budget_tokens":1500}}), "thinking.budget_tokens", false),
    ] {
        let why = more.to_string();
        assert_eq!(
            named(read(Surface::Messages, &message(more), &limits()), &why),
            (param.to_owned(), unpriced),
            "{why}"
        );
    }
    for source in [
        json!({"type":"url","url":"http://a/b.png"}),
        json!({"type":"url","url":"https://a.example/b.png","data":"AA=="}),
        json!({"type":"base64","media_type":"image/svg+xml","data":"AA=="}),
        json!({"type":"file","file_id":"file_1"}),
        json!({"type":"base64"}),
    ] {
        let body = message(says(json!({"type":"image","source":source})));
        let (param, _) = named(read(Surface::Messages, &body, &with_pictures()), &source.to_string());
        assert!(param.starts_with(at) && param.contains("source"), "{param}: {source}");
    }
}

#[test]
fn a_message_is_sent_with_a_limit_of_ours_and_room_for_its_thinking() {
    let thinks = |budget: u64| json!({"thinking":{"type":"enabled","budget_tokens":budget}});
    for (more, bought, want, why) in [
        (json!({"max_tokens":null}), u64::MAX, json!({"max_tokens":2000}), "nothing said"),
        (json!({"max_tokens":9}), u64::MAX, json!({"max_tokens":9}), "said"),
        (json!({"max_tokens":9000}), u64::MAX, json!({"max_tokens":2000}), "clamped"),
        (json!({}), 700, json!({"max_tokens":700}), "held to what was bought"),
        (
            thinks(1200),
            u64::MAX,
            json!({"max_tokens":1500,"thinking":{"type":"enabled","budget_tokens":1200}}),
            "thinking",
        ),
        (
            thinks(1200),
            1100,
            json!({"max_tokens":1100,"thinking":{"type":"enabled","budget_tokens":1099}}),
            "less was bought",
        ),
        (
            thinks(1200),
            700,
            json!({"max_tokens":700}),
            "too little to think with a budget: some models refuse disabled",
        ),
        (
            json!({"thinking":{"type":"between_tools"}}),
            u64::MAX,
            json!({"max_tokens":1500,"thinking":{"type":"between_tools"}}),
            "before the next tool only",
        ),
        (
            json!({"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"},
                {"type":"clear_tool_uses_20250919","trigger":{"type":"input_tokens","value":9},"exclude_tools":["f"]}]}}),
            u64::MAX,
            json!({"max_tokens":1500}),
            "what only shortens the prompt is not sent on",
        ),
        (
            json!({"cache_control":{"type":"ephemeral","ttl":null}}),
            u64::MAX,
            json!({"max_tokens":1500,"cache_control":{"type":"ephemeral","ttl":null}}),
            "null is not given",
        ),
        (
            json!({"thinking":{"type":"adaptive","display":"omitted"}}),
            u64::MAX,
            json!({"max_tokens":1500,"thinking":{"type":"adaptive","display":"omitted"}}),
            "as the model sees fit",
        ),
        (
            json!({"thinking":{"type":"disabled"}}),
            u64::MAX,
            json!({"max_tokens":1500,"thinking":{"type":"disabled"}}),
            "none",
        ),
        (
            json!({"top_k":5,"stop_sequences":["x"],"metadata":{"user_id":"u"},"service_tier":"standard_only",
                "tool_choice":{"type":"auto"},"temperature":1.0,"cache_control":{"type":"ephemeral"}}),
            u64::MAX,
            json!({"max_tokens":1500,"top_k":5,"stop_sequences":["x"],"metadata":{"user_id":"u"},"service_tier":"standard_only",
                "tool_choice":{"type":"auto"},"temperature":1.0,"cache_control":{"type":"ephemeral"}}),
            "what has a price passes",
        ),
    ] {
        for stream in [false, true] {
            let ask =
                read(Surface::Messages, &message(more.clone()), &limits()).unwrap_or_else(|e| panic!("{why}: {e:?}"));
            let mut want = want.clone();
            want.as_object_mut().unwrap().extend([
                ("model".to_owned(), json!("up/stream\"1")),
                ("stream".to_owned(), json!(stream)),
                ("messages".to_owned(), json!([{"role":"user","content":"hi"}])),
            ]);
            assert_eq!(sent_for(&ask, bought, stream), want, "{why}");
        }
    }
}

#[test]
fn thinking_beyond_the_tiers_limit_is_refused_with_the_limit() {
    let body = message(json!({"max_tokens":9000,"thinking":{"type":"enabled","budget_tokens":4000}}));
    match read(Surface::Messages, &body, &limits()) {
        Err(Refusal::BadField { param, why }) => {
            assert_eq!(param, "thinking.budget_tokens");
            assert!(why.contains("2000"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_a_message_reads_is_counted_and_passed() {
    let body = message(json!({
        "system": [{"type":"text","text":"be brief","cache_control":{"type":"ephemeral","ttl":"1h"}}],
        "tools": [{"name":"f","description":"does","input_schema":{"type":"object"},"type":"custom","cache_control":null}],
        "output_config": {"effort":"low"},
        "messages": [
            {"role":"user","content":[{"type":"text","text":"one","citations":null},
                {"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAABBBB"}},
                {"type":"image","source":{"type":"url","url":"https://a.example/b.png"}}]},
            {"role":"assistant","content":[{"type":"thinking","thinking":"two","signature":"sig"},
                {"type":"redacted_thinking","data":"three"},{"type":"tool_use","id":"t","name":"f","input":{"four":[4]}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","is_error":false,
                "content":[{"type":"text","text":"five"}]},{"type":"tool_result","tool_use_id":"t","content":"six"}]},
        ],
    }));
    let ask = read(Surface::Messages, &body, &with_pictures()).unwrap();
    let said = texts(&ask);
    for text in ["be brief", "does", "one", "two", "three", "four", "five", "six", "effort"] {
        assert!(said.contains(text), "{text} in {said}");
    }
    assert!(!said.contains("AAAABBBB"), "{said}");
    assert_eq!((ask.messages, ask.images, ask.nothing_asked), (3, 2, false));
    let back = sent(&ask, false);
    for name in ["system", "tools", "output_config", "messages"] {
        assert_eq!(back[name], body[name], "{name}");
    }
}

#[test]
fn what_a_backend_said_may_be_sent_back_as_it_came() {
    let (caller, empty) = (json!({"type":"direct"}), json!(null));
    let said = json!([
        {"role":"system","content":"be brief"},
        {"role":"assistant","content":[{"type":"text","text":"a","citations":null,"parsed":null},
            {"type":"tool_use","id":"t","name":"f","input":{},"caller":caller,"toolset_name":null}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"b"}]}]);
    let ask = read(Surface::Messages, &message(json!({"messages":said})), &limits()).unwrap();
    let mut want = said;
    want[1]["content"][0].as_object_mut().unwrap().remove("parsed");
    want[1]["content"][1].as_object_mut().unwrap().remove("toolset_name");
    assert_eq!(sent(&ask, false)["messages"], want, "what is unknown and empty is left out");

    let call =
        json!({"type":"function_call","call_id":"c","name":"f","arguments":"{}","caller":caller,"namespace":"n"});
    let input = json!([{"role":"user","content":"x"}, call, {"type":"function_call_output","call_id":"c","output":"y","caller":empty}]);
    let ask = read(Surface::Responses, &response(json!({"input":input})), &limits()).unwrap();
    assert_eq!(sent(&ask, false)["input"], input);
    let called = json!({"type":"function_call","call_id":"c","name":"f","arguments":"","caller":{"type":"program","caller_id":"p"}});
    let body = response(json!({"input":[called]}));
    assert!(read(Surface::Responses, &body, &limits()).is_err(), "what runs at the backend is billed by it");
}

#[test]
fn thinking_that_is_asked_for_may_be_billed_and_not_shown() {
    let hides = |surface, body: Value| read(surface, &body, &limits()).unwrap().hides_output();
    for (said, want) in [(json!(null), false), (json!("none"), false), (json!("low"), true), (json!("whatever"), true)]
    {
        let chat = json!({"messages":[{"role":"user","content":"x"}],"reasoning_effort":said});
        assert_eq!(hides(Surface::Chat, chat), want, "chat: {said}");
        assert_eq!(
            hides(Surface::Responses, response(json!({"reasoning":{"effort":said}}))),
            want,
            "responses: {said}"
        );
    }
    for (kind, want) in [("disabled", false), ("adaptive", true), ("between_tools", true)] {
        assert_eq!(hides(Surface::Messages, message(json!({"thinking":{"type":kind}}))), want, "{kind}");
    }
    assert!(!hides(Surface::Messages, message(json!({}))), "whether it thinks untold is the model's, as the rules say");
}

#[test]
fn a_message_without_messages_is_quoted_and_not_served() {
    for body in [json!({}), json!({"messages":[]}), json!({"max_tokens":5})] {
        assert!(read(Surface::Messages, &body, &limits()).unwrap().nothing_asked, "{body}");
    }
}

#[test]
fn the_head_of_a_conversation_is_what_the_system_says_and_all_up_to_the_users_first() {
    let says = |role: &str, text: &str| json!({"role":role,"content":text});
    let (first, answer, other) = (says("user", "why?"), says("assistant", "so"), says("user", "how?"));
    let (system, long) = (json!("be brief"), json!("x".repeat(60_000)));
    for (surface, system_field, turns_field) in
        [(Surface::Responses, "instructions", "input"), (Surface::Messages, "system", "messages")]
    {
        let head = |system: &Value, turns: Value| {
            let body = json!({system_field:system,"metadata":{"user_id":"u1"},turns_field:turns,"model":"m"});
            let [lead, head] = read(surface, &body, &limits()).unwrap().head().map(<[u8]>::to_vec);
            [lead, head].concat()
        };
        for system in [&json!(null), &system] {
            let begun = head(system, json!([first]));
            assert_eq!(begun, head(system, json!([first, answer, other])), "{surface:?}: the next turn");
            assert_ne!(begun, head(system, json!([other])), "{surface:?}: another conversation");
            assert_ne!(begun, head(&json!("be long"), json!([first])), "{surface:?}: another system");
            assert!(!String::from_utf8_lossy(&begun).contains("u1"), "{surface:?}: whoever asks");
        }
        assert_eq!(head(&long, json!([first])).len(), 16 * 1024, "{surface:?}: no further");
        assert_eq!(head(&system, json!([says("user", &"x".repeat(60_000))])).len(), 16 * 1024, "{surface:?}: in all");
    }
    let told = |input: &str| {
        let body = json!({"instructions":"be brief","metadata":{"a":"b"},"input":input});
        read(Surface::Responses, &body, &limits()).unwrap().head().concat()
    };
    assert_ne!(told("why?"), told("how?"), "a text alone is the user's first");
    assert_eq!(told("why?"), br#""be brief""why?""#);
}

#[test]
fn what_leaves_of_either_is_read_again_as_it_was() {
    for (surface, body) in [
        (Surface::Responses, response(json!({"max_output_tokens":7,"instructions":"x"}))),
        (Surface::Messages, message(json!({"thinking":{"type":"enabled","budget_tokens":1100}}))),
    ] {
        let ask = read(surface, &body, &limits()).unwrap();
        let again = read(surface, &sent(&ask, true), &limits()).unwrap();
        assert_eq!((again.max_output, again.stream, texts(&again)), (ask.max_output, true, texts(&ask)), "{surface:?}");
        assert_eq!(sent(&again, false), sent(&ask, false), "{surface:?}");
    }
}
