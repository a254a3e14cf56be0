//! Replies of Responses and Messages: what each says, read at every kind of boundary, and what must wait for the receipt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::cover::Cover;
use super::meter::Meter;
use super::typed::{Dialect, cut_short, read_json};
use super::usage::{Bounds, Verdict};
use crate::surface::Surface;
use crate::usage::{Shape, Usage};
use bytes::Bytes;
use serde_json::{Value, json};

const BOUNDS: Bounds = Bounds { choices: 1, prompt: None, completion: Some(1000), shape: Shape::PLAIN };
use Dialect::{Messages, Responses};

/// What left at once, what waited for the receipt, and the verdict.
fn run(dialect: Dialect, stream: &str, size: usize) -> (String, String, Verdict) {
    let (mut meter, mut out) = (Meter::new(false, BOUNDS).of(surface(dialect)), Vec::new());
    for read in stream.as_bytes().chunks(size) {
        meter.feed(Bytes::copy_from_slice(read), &mut out).unwrap();
    }
    meter.finish();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&out.concat()), text(&meter.take_done().unwrap_or_default()), meter.verdict())
}

fn surface(dialect: Dialect) -> Surface {
    Surface::ALL.into_iter().find(|surface| Dialect::of(*surface) == Some(dialect)).unwrap()
}

fn event(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap())
}

fn used(prompt: u64, completion: u64) -> Option<Usage> {
    Some(Usage { prompt, completion, ..Usage::default() })
}

// --- Responses ------------------------------------------------------------------------------------------------------------

fn created() -> String {
    event(&json!({"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response",
        "status":"in_progress","model":"served","output":[],"error":null,"usage":null,
        "instructions":"say \"delta\": \"x\" and \"usage\": {}"}}))
}

fn delta(kind: &str, text: &str) -> String {
    event(&json!({"type":kind,"item_id":"m","output_index":0,"content_index":0,"delta":text,"obfuscation":"aXs81"}))
}

fn text(text: &str) -> String {
    delta("response.output_text.delta", text)
}

fn text_done(said: &str) -> String {
    let part = json!({"type":"output_text","text":said,"annotations":[]});
    event(&json!({"type":"response.output_text.done","item_id":"m","text":said}))
        + &event(&json!({"type":"response.content_part.done","part":part}))
        + &event(&json!({"type":"response.output_item.done","output_index":0,
            "item":{"type":"message","role":"assistant","status":"completed","content":[part]}}))
}

fn over(status: &str, usage: &Value) -> String {
    event(
        &json!({"type":format!("response.{status}"),"sequence_number":9,"response":{"id":"resp_1","object":"response",
        "status":status,"model":"served","error":if status == "failed" { json!({"code":"server_error","message":"x"}) } else { Value::Null },
        "output":[{"type":"message","content":[{"type":"output_text","text":"hé"}]}],"usage":usage,"service_tier":"default"}}),
    )
}

fn figures(input: u64, output: u64) -> Value {
    json!({"input_tokens":input,"output_tokens":output,"total_tokens":input + output,
        "input_tokens_details":{"cached_tokens":0},"output_tokens_details":{"reasoning_tokens":0}})
}

// --- Messages -------------------------------------------------------------------------------------------------------------

fn start(usage: &Value) -> String {
    event(&json!({"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"served",
        "content":[],"stop_reason":null,"stop_sequence":null,"usage":usage}}))
}

fn block(delta: &Value) -> String {
    event(&json!({"type":"content_block_delta","index":0,"delta":delta}))
}

fn said(text: &str) -> String {
    block(&json!({"type":"text_delta","text":text}))
}

fn message_delta(reason: &Value, usage: &Value) -> String {
    event(&json!({"type":"message_delta","delta":{"stop_reason":reason,"stop_sequence":null},"usage":usage}))
}

fn stop() -> String {
    event(&json!({"type":"message_stop"}))
}

struct Case {
    dialect: Dialect,
    why: &'static str,
    /// What leaves at once.
    leaves: String,
    /// What waits for the receipt.
    waits: String,
    usage: Option<Usage>,
    /// Events with text, and its bytes.
    said: (u64, u64),
    /// Finished, failed, absurd.
    end: (bool, bool, bool),
}

fn cases() -> Vec<Case> {
    let ok = (true, false, false);
    let case = |dialect, why, leaves, waits, usage, said, end| Case { dialect, why, leaves, waits, usage, said, end };
    let full = json!({"input_tokens":50,"output_tokens":7,"total_tokens":57,
        "input_tokens_details":{"cached_tokens":20},"output_tokens_details":{"reasoning_tokens":3}});
    let cached = Some(Usage { prompt: 50, completion: 7, cached: 20, reasoning: 3, ..Usage::default() });
    let error = json!({"type":"error","code":"server_error","message":"x","param":null,"sequence_number":3});
    let call = event(&json!({"type":"response.output_item.done","output_index":0,
        "item":{"type":"function_call","name":"f","arguments":"{\"a\":1}","call_id":"c"}}));
    let begins = start(&json!({"input_tokens":25,"output_tokens":1}));
    let ping = event(&json!({"type":"ping"}));
    let open = event(&json!({"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}));
    let close = event(&json!({"type":"content_block_stop","index":0}));
    let end = json!("end_turn");
    let caches = start(&json!({"input_tokens":10,"cache_creation_input_tokens":30,"cache_read_input_tokens":60,
        "cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20},"output_tokens":1,
        "service_tier":"standard"}));
    let all = Some(Usage {
        prompt: 100,
        completion: 15,
        cached: 60,
        cache_write: 30,
        cache_write_hour: 20,
        ..Usage::default()
    });
    vec![
        case(
            Responses,
            "the usual answer: its text counts once, however often it is repeated",
            format!("{}{}{}{}", created(), text("h"), text("é"), text_done("hé")),
            over("completed", &full),
            cached,
            (2, 3),
            ok,
        ),
        case(
            Responses,
            "an answer that reached its limit is an answer",
            format!("{}{}", created(), text("hé")),
            over("incomplete", &figures(5, 7)),
            used(5, 7),
            (1, 3),
            ok,
        ),
        case(
            Responses,
            "a failure that says what was used",
            format!("{}{}", created(), text("hé")),
            over("failed", &figures(5, 7)),
            used(5, 7),
            (1, 3),
            (false, true, false),
        ),
        case(
            Responses,
            "a failure before any word",
            created(),
            over("failed", &Value::Null),
            None,
            (0, 0),
            (false, true, false),
        ),
        case(
            Responses,
            "an error event, and no end",
            format!("{}{}{}", created(), text("hé"), event(&error)),
            String::new(),
            None,
            (1, 3),
            (false, true, false),
        ),
        case(
            Responses,
            "reasoning, refusals and arguments are text",
            created()
                + &delta("response.reasoning_summary_text.delta", "a")
                + &delta("response.reasoning_text.delta", "b")
                + &delta("response.refusal.delta", "c")
                + &delta("response.function_call_arguments.delta", "{\"delta\": \"x\"}"),
            over("completed", &figures(5, 7)),
            used(5, 7),
            (4, 17),
            ok,
        ),
        case(
            Responses,
            "an item that was not streamed counts when it is complete",
            format!("{}{}{}{call}", created(), text("hé"), text_done("hé")),
            over("completed", &figures(5, 7)),
            used(5, 7),
            (2, 10),
            ok,
        ),
        case(Responses, "no figures at all", text("hé"), over("completed", &Value::Null), None, (1, 3), ok),
        case(
            Responses,
            "more output than was allowed is no figure",
            text("hé"),
            over("completed", &figures(5, 1001)),
            None,
            (1, 3),
            (true, false, true),
        ),
        case(
            Responses,
            "[DONE] behind the end, as some backends say it, waits too",
            text("hé"),
            format!("{}data: [DONE]\n\n", over("completed", &figures(5, 7))),
            used(5, 7),
            (1, 3),
            ok,
        ),
        case(
            Responses,
            "cut in the middle: nothing was reported",
            format!("{}{}", created(), text("hé")),
            String::new(),
            None,
            (1, 3),
            (false, false, false),
        ),
        case(
            Messages,
            "the usual answer",
            format!("{begins}{open}{ping}{}{}{close}", said("h"), said("é")),
            message_delta(&end, &json!({"output_tokens":15})) + &stop(),
            used(25, 15),
            (2, 3),
            ok,
        ),
        case(
            Messages,
            "what was read from a cache and written into one belongs to the prompt",
            format!("{caches}{}", said("hé")),
            message_delta(&end, &json!({"output_tokens":15})) + &stop(),
            all,
            (1, 3),
            ok,
        ),
        case(
            Messages,
            "all figures at the end: vLLM says zeros in the beginning",
            format!("{}{}", start(&json!({"input_tokens":0,"output_tokens":0})), said("hé")),
            message_delta(&end, &json!({"input_tokens":25,"output_tokens":15})) + &stop(),
            used(25, 15),
            (1, 3),
            ok,
        ),
        case(
            Messages,
            "figures are of all until then, so the last one holds; zeros behind it take nothing back",
            format!("{begins}{}{}", said("h"), message_delta(&Value::Null, &json!({"output_tokens":2}))),
            message_delta(&end, &json!({"input_tokens":0,"output_tokens":15})) + &stop(),
            used(25, 15),
            (1, 1),
            ok,
        ),
        case(
            Messages,
            "thinking and the input of tools are text, signatures are not",
            begins.clone()
                + &block(&json!({"type":"thinking_delta","thinking":"ab"}))
                + &block(&json!({"type":"signature_delta","signature":"EqQBCg"}))
                + &block(&json!({"type":"input_json_delta","partial_json":"{\"text\": \"x\"}"})),
            message_delta(&json!("tool_use"), &json!({"output_tokens":15})) + &stop(),
            used(25, 15),
            (2, 15),
            ok,
        ),
        case(
            Messages,
            "the output of message_start is a placeholder: a stream that is cut reported nothing",
            format!("{begins}{}", said("hé")),
            String::new(),
            None,
            (1, 3),
            (false, false, false),
        ),
        case(
            Messages,
            "an error in the middle",
            format!("{begins}{}", said("hé"))
                + &event(&json!({"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}})),
            String::new(),
            None,
            (1, 3),
            (false, true, false),
        ),
        case(
            Messages,
            "an end without figures of the output",
            format!("{begins}{}", said("hé")),
            message_delta(&end, &Value::Null) + &stop(),
            None,
            (1, 3),
            ok,
        ),
        case(
            Messages,
            "more was kept for an hour than was written at all",
            said("hé"),
            message_delta(&end, &json!({"input_tokens":5,"output_tokens":5,"cache_creation_input_tokens":-1}))
                + &stop(),
            None,
            (1, 3),
            (true, false, true),
        ),
        case(
            Messages,
            "text that speaks of an end is text",
            said("{\"type\":\"message_stop\"} \"stop_reason\": \"end_turn\" \"usage\": {}"),
            stop(),
            None,
            (1, 61),
            (false, false, false),
        ),
    ]
}

#[test]
fn every_event_leaves_unchanged_and_in_order_with_the_end_kept_for_the_receipt() {
    for case in cases() {
        let stream = format!("{}{}", case.leaves, case.waits);
        for (how, stream, leaves, waits) in [
            ("LF", stream.clone(), case.leaves.clone(), case.waits.clone()),
            ("CRLF", stream.replace('\n', "\r\n"), case.leaves.replace('\n', "\r\n"), case.waits.replace('\n', "\r\n")),
        ] {
            for size in [1, 2, 3, 7, 64, stream.len()] {
                let at = format!("{} ({how}, reads of {size})", case.why);
                let (left, waited, verdict) = run(case.dialect, &stream, size);
                assert_eq!((left.as_str(), waited.as_str()), (leaves.as_str(), waits.as_str()), "{at}");
                assert_eq!((verdict.usage, verdict.reported), (case.usage, case.usage.is_some()), "{at}");
                assert_eq!((verdict.delivered_chunks, verdict.delivered_bytes), case.said, "{at}");
                assert_eq!((verdict.finished, verdict.failed, verdict.absurd), case.end, "{at}");
                assert_eq!(verdict.saw_done, !waits.is_empty(), "{at}");
            }
        }
    }
}

#[test]
fn what_the_prompt_was_is_known_while_a_message_is_still_written() {
    let begins = start(&json!({"input_tokens":25,"cache_read_input_tokens":5,"output_tokens":1}));
    let (_, _, verdict) = run(Messages, &format!("{begins}{}", said("h")), 5);
    let want = Usage { prompt: 30, completion: 0, cached: 5, ..Usage::default() };
    assert_eq!((verdict.begun, verdict.usage, verdict.model.as_deref()), (Some(want), None, Some("served")));
}

#[test]
fn a_forged_receipt_does_not_pass_between_typed_events() {
    let forged = "event: payment-receipt\ndata: {}\n\n: pontage-receipt e30\n\n";
    for (dialect, one, last) in [
        (Responses, text("a"), over("completed", &figures(5, 7))),
        (Messages, said("a"), message_delta(&json!("end_turn"), &json!({"input_tokens":5,"output_tokens":7}))),
    ] {
        let (left, waited, verdict) = run(dialect, &format!("{one}{forged}{last}{forged}"), 9);
        assert_eq!((left, waited, verdict.forged_frames, verdict.usage), (one, last, 4, used(5, 7)));
    }
}

#[test]
fn of_a_typed_stream_nothing_leaves_that_is_not_covered() {
    for (dialect, first, one, last, most) in [
        (Responses, created(), text("four"), over("completed", &figures(5, 7)), 8),
        (
            Messages,
            start(&json!({"input_tokens":5,"output_tokens":1})),
            said("four"),
            message_delta(&json!("end_turn"), &json!({"output_tokens":7})) + &stop(),
            8,
        ),
    ] {
        let mut meter = Meter::new(false, BOUNDS).of(surface(dialect)).with_cover(Cover::Bytes).all_is_shown();
        let mut out = Vec::new();
        let mut feed = |meter: &mut Meter, text: &str, covered| {
            meter.feed_covered(Bytes::copy_from_slice(text.as_bytes()), covered, &mut out).unwrap();
            String::from_utf8(std::mem::take(&mut out).concat()).unwrap()
        };
        assert_eq!(feed(&mut meter, &first, 0), first, "no text, no cover needed");
        assert_eq!(feed(&mut meter, &one, 4), one);
        assert_eq!(feed(&mut meter, &format!("{one}{last}"), 4), "", "the second text waits, and the end behind it");
        assert_eq!((meter.waiting(), meter.counted().most), (Some(most), 4));
        meter.finish();
        assert_eq!(meter.take_done(), None, "the end never overtakes what waits");
        let mut rest = Vec::new();
        meter.release(most, &mut rest);
        assert_eq!(rest.concat(), one.as_bytes());
        assert_eq!(meter.take_done().unwrap(), last);
        assert_eq!(meter.verdict().usage, used(5, 7));
    }
}

#[test]
fn a_whole_reply_says_what_was_used_and_whether_it_is_an_answer() {
    let response = |status: &str, rest: Value| {
        let mut body = json!({"id":"r","object":"response","status":status,"model":"served","error":null,
            "output":[{"type":"reasoning","summary":[]},{"type":"message","content":[{"type":"output_text","text":"hé"}]}],
            "usage":figures(5, 7)});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        body.to_string()
    };
    let message = |usage: Value| {
        json!({"id":"m","type":"message","role":"assistant","model":"served","content":[{"type":"text","text":"hé"},
            {"type":"tool_use","id":"t","name":"f","input":{"a":1}}],"stop_reason":"tool_use","usage":usage})
        .to_string()
    };
    let error = json!({"type":"error","error":{"type":"overloaded_error","message":"x"}}).to_string();
    let hour = json!({"input_tokens":5,"output_tokens":7,"cache_read_input_tokens":2,"cache_creation_input_tokens":4,
        "cache_creation":{"ephemeral_5m_input_tokens":1,"ephemeral_1h_input_tokens":3}});
    let split = Usage { prompt: 11, completion: 7, cached: 2, cache_write: 4, cache_write_hour: 3, ..Usage::default() };
    for (dialect, body, usage, bytes, end, why) in [
        (Responses, response("completed", json!({})), used(5, 7), 3, (true, false, false), "plain"),
        (Responses, response("incomplete", json!({})), used(5, 7), 3, (true, false, false), "at its limit"),
        (Responses, response("failed", json!({"output":[]})), used(5, 7), 0, (false, true, false), "failed"),
        (
            Responses,
            response("completed", json!({"error":{"code":"x"}})),
            used(5, 7),
            3,
            (true, true, false),
            "an error",
        ),
        (
            Responses,
            response("in_progress", json!({"output":[],"usage":null})),
            None,
            0,
            (false, false, false),
            "not done",
        ),
        (
            Responses,
            response("completed", json!({"usage":{"input_tokens":5,"output_tokens":1001}})),
            None,
            3,
            (true, false, true),
            "too much",
        ),
        (
            Responses,
            response(
                "completed",
                json!({"usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"cached_tokens":6}}}),
            ),
            None,
            3,
            (true, false, true),
            "more cached than there was",
        ),
        (
            Responses,
            response("completed", json!({"usage":{"input_tokens":5,"output_tokens":7,"total_tokens":11}})),
            None,
            3,
            (true, false, true),
            "a total below its parts",
        ),
        (
            Responses,
            response("completed", json!({"usage":{"input_tokens":0,"output_tokens":0}})),
            None,
            3,
            (true, false, false),
            "a placeholder",
        ),
        (
            Responses,
            response("completed", json!({"usage":{"input_tokens":"5","output_tokens":7}})),
            None,
            3,
            (true, false, true),
            "text for a count",
        ),
        (
            Responses,
            response("completed", json!({"usage":[5, 7]})),
            None,
            3,
            (true, false, true),
            "an array in the order of the fields",
        ),
        (Responses, "<html>".to_owned(), None, 0, (false, true, false), "no JSON"),
        (Responses, "[1]".to_owned(), None, 0, (false, true, false), "no object"),
        (Messages, message(json!({"input_tokens":5,"output_tokens":7})), used(5, 7), 10, (true, false, false), "plain"),
        (Messages, message(hour), Some(split), 10, (true, false, false), "caches"),
        (Messages, message(json!({"input_tokens":5,"output_tokens":1001})), None, 10, (true, false, true), "too much"),
        (Messages, message(json!({"input_tokens":5.0,"output_tokens":7})), None, 10, (true, false, true), "fractional"),
        (Messages, message(json!(null)), None, 10, (true, false, false), "no figures"),
        (Messages, error, None, 0, (false, true, false), "an error inside a success"),
        (Messages, String::new(), None, 0, (false, true, false), "nothing"),
    ] {
        let got = read_json(dialect, body.as_bytes(), BOUNDS);
        assert_eq!((got.usage, got.reported), (usage, usage.is_some()), "{dialect:?}: {why}");
        assert_eq!((got.delivered_bytes, got.delivered_chunks), (bytes, u64::from(bytes > 0)), "{dialect:?}: {why}");
        assert_eq!((got.finished, got.failed, got.absurd), end, "{dialect:?}: {why}");
    }
}

#[test]
fn a_first_event_may_repeat_a_long_request() {
    let long = created().replace("say ", &"x".repeat(3 << 20));
    let (left, waited, verdict) = run(Responses, &format!("{long}{}", over("completed", &figures(5, 7))), 65_536);
    assert_eq!((left.len(), waited.is_empty(), verdict.usage), (long.len(), false, used(5, 7)));
}

#[test]
fn an_answer_that_was_cut_ends_in_an_error_of_its_dialect() {
    for dialect in [Responses, Messages] {
        let frame = cut_short(dialect, "why", "upstream_failed");
        let text = std::str::from_utf8(&frame).unwrap();
        let data: Value = serde_json::from_str(text.trim().strip_prefix("event: error\ndata: ").unwrap()).unwrap();
        assert_eq!((&data["type"], &data["error"]["message"]), (&json!("error"), &json!("why")), "{dialect:?}");
    }
}
