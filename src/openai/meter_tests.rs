//! What backends send that a meter must survive, as bytes, each read at every kind of boundary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::meter::Meter;
use super::sse::TooLong;
use super::usage::{Bounds, Verdict};
use crate::usage::{Scope, Shape, Usage};
use bytes::Bytes;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { choices: 1, prompt: None, completion: Some(1000), shape: Shape::PLAIN };

/// What left at once, what waited for the receipt, and the verdict.
fn run(stream: &[u8], sizes: &[usize], wants_usage: bool, bounds: Bounds) -> (Vec<u8>, Vec<u8>, Verdict) {
    let (mut meter, mut out, mut rest) = (Meter::new(wants_usage, bounds), Vec::new(), stream);
    let mut sizes = sizes.iter().copied().chain(std::iter::repeat(*sizes.last().unwrap()));
    while !rest.is_empty() {
        let (now, later) = rest.split_at(sizes.next().unwrap().clamp(1, rest.len()));
        meter.feed(Bytes::copy_from_slice(now), &mut out).unwrap();
        rest = later;
    }
    meter.finish();
    (out.concat(), meter.take_done().unwrap_or_default().to_vec(), meter.verdict())
}

fn used(prompt: u64, completion: u64) -> Option<Usage> {
    Some(Usage { prompt, completion, ..Usage::default() })
}

/// A content chunk of OpenAI's shape, with something behind its choices.
fn chunk(index: u32, text: &str, rest: &str) -> String {
    format!(
        r#"{{"id":"c","object":"chat.completion.chunk","model":"served","choices":[{{"index":{index},"delta":{{"content":"{text}"}},"finish_reason":null}}]{rest}}}"#
    )
}

fn data(json: &str) -> String {
    format!("data: {json}\n\n")
}

fn usage_of(prompt: u64, completion: u64) -> String {
    format!(
        r#","usage":{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{}}}"#,
        prompt + completion
    )
}

fn last(prompt: u64, completion: u64) -> String {
    data(&format!(r#"{{"id":"c","model":"served","choices":[]{}}}"#, usage_of(prompt, completion)))
}

const DONE: &str = "data: [DONE]\n\n";

struct Fixture {
    why: &'static str,
    stream: String,
    choices: u64,
    shape: Shape,
    usage: Option<Usage>,
    /// Chunks with text, failed, saw `[DONE]`, absurd.
    seen: (u64, bool, bool, bool),
    /// The part the client must not get when it did not ask for usage.
    hidden: String,
}

fn fixtures() -> Vec<Fixture> {
    let plain = |why, stream: String, usage, seen, hidden: &str| Fixture {
        why,
        stream,
        choices: 1,
        shape: Shape::PLAIN,
        usage,
        seen,
        hidden: hidden.to_owned(),
    };
    let a = data(&chunk(0, "a", ""));
    let ok = |chunks| (chunks, false, true, false);
    let u = last(5, 7);
    let null = data(&chunk(0, "a", r#","usage":null"#));
    let zeros = data(&chunk(0, "a", &usage_of(0, 0)));
    let finish = data(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#);
    let error = data(r#"{"error":{"message":"x","type":"server_error"}}"#);
    vec![
        plain("the usual end", format!("{a}{u}{DONE}"), used(5, 7), ok(1), &u),
        plain("usage null on every chunk", format!("{null}{null}{DONE}"), None, ok(2), ""),
        plain("zeros in the middle, then the figure", format!("{zeros}{u}{DONE}"), used(5, 7), ok(1), &u),
        plain("zeros alone", format!("{zeros}{DONE}"), None, ok(1), ""),
        plain(
            "running figure, no final",
            format!("{}{}{DONE}", data(&chunk(0, "a", &usage_of(5, 1))), data(&chunk(0, "b", &usage_of(5, 2)))),
            used(5, 2),
            ok(2),
            "",
        ),
        plain(
            "running figure, then the final",
            format!("{}{u}{DONE}", data(&chunk(0, "a", &usage_of(5, 1)))),
            used(5, 7),
            ok(1),
            &u,
        ),
        Fixture {
            why: "running figures of two choices add up, the prompt does not",
            stream: format!(
                "{}{}{}{DONE}",
                data(&chunk(0, "a", &usage_of(5, 1))),
                data(&chunk(1, "b", &usage_of(5, 1))),
                data(&chunk(0, "c", &usage_of(5, 2)))
            ),
            choices: 2,
            shape: Shape::PLAIN,
            usage: used(5, 3),
            seen: ok(3),
            hidden: String::new(),
        },
        Fixture {
            why: "llama.cpp: one final per choice",
            stream: format!("{a}{}{}{DONE}", last(5, 7), last(5, 4)),
            choices: 2,
            shape: Shape { finals: Scope::Choice, ..Shape::PLAIN },
            usage: used(5, 11),
            seen: ok(1),
            hidden: format!("{}{}", last(5, 7), last(5, 4)),
        },
        plain("the same final twice for one choice", format!("{a}{u}{u}{DONE}"), used(5, 7), ok(1), &format!("{u}{u}")),
        plain("usage behind [DONE]", format!("{a}{DONE}{u}"), used(5, 7), ok(1), &u),
        plain(
            "usage behind the finish, no [DONE]",
            format!("{a}{finish}{u}"),
            used(5, 7),
            (1, false, false, false),
            &u,
        ),
        plain("usage behind an error", format!("{a}{error}{u}{DONE}"), used(5, 7), (1, true, true, false), &u),
        plain("comments", format!(": OPENROUTER PROCESSING\n\n:\n\n{a}:\n\n{DONE}"), None, ok(1), ""),
        plain("CRLF", format!("{a}{u}{DONE}").replace('\n', "\r\n"), used(5, 7), ok(1), &u.replace('\n', "\r\n")),
        plain("CR", format!("{a}{u}{DONE}").replace('\n', "\r"), used(5, 7), ok(1), &u.replace('\n', "\r")),
        plain(
            "mixed",
            format!("{}{}{DONE}", a.replace("\n\n", "\r\n\n"), u.replace("\n\n", "\n\r\n")),
            used(5, 7),
            ok(1),
            &u.replace("\n\n", "\n\r\n"),
        ),
        plain(
            "no space behind the colon",
            format!("{a}{u}{DONE}").replace("data: ", "data:"),
            used(5, 7),
            ok(1),
            &u.replace("data: ", "data:"),
        ),
        plain(
            "JSON over two data lines",
            format!(
                "{a}data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":5,\ndata: \"completion_tokens\":7}}}}\n\n{DONE}"
            ),
            used(5, 7),
            ok(1),
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\ndata: \"completion_tokens\":7}}\n\n",
        ),
        plain("byte-order mark, id and retry", format!("\u{feff}id: 1\nretry: 5\n{a}{u}{DONE}"), used(5, 7), ok(1), &u),
        plain("a character cut by a read", format!("{}{DONE}", data(&chunk(0, "✓é😀", ""))), None, ok(1), ""),
        plain(
            "an error event",
            format!("{a}event: error\ndata: {{\"message\":\"x\"}}\n\n"),
            None,
            (1, true, false, false),
            "",
        ),
        plain(
            "error and choices in one chunk",
            data(&chunk(0, "a", r#","error":{"code":502}"#)),
            None,
            (1, true, false, false),
            "",
        ),
        plain("error null is no error", format!("{}{DONE}", data(&chunk(0, "a", r#","error":null"#))), None, ok(1), ""),
        plain(
            "end without a blank line",
            format!("{a}{}", u.trim_end()),
            used(5, 7),
            (1, false, false, false),
            u.trim_end(),
        ),
        plain("[DONE] without a blank line", format!("{a}{u}data: [DONE]"), used(5, 7), ok(1), &u),
        plain("cut in the middle of a chunk", format!("{a}{}", &u[..40]), None, (1, false, false, false), ""),
        plain(
            "text that speaks of usage",
            format!("{}{DONE}", data(&chunk(0, r#"\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9}"#, ""))),
            None,
            ok(1),
            "",
        ),
        plain(
            "usage deeper than the top",
            data(
                r#"{"choices":[{"index":0,"delta":{"content":"a"},"usage":{"prompt_tokens":9,"completion_tokens":9}}]}"#,
            ),
            None,
            (1, false, false, false),
            "",
        ),
        plain(
            "deltas of other kinds",
            format!(
                "{}{}{}",
                data(r#"{"choices":[{"index":0,"delta":{"reasoning_content":"r"}}]}"#),
                data(r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}"#),
                data(
                    r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"type":"custom","custom":{"input":"x"}}]}}]}"#
                ),
            ) + &data(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#)
                + DONE,
            None,
            ok(3),
            "",
        ),
        plain(
            "negative",
            format!("{a}{}{DONE}", data(r#"{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":7}}"#)),
            None,
            (1, false, true, true),
            &data(r#"{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":7}}"#),
        ),
        plain(
            "more than was asked",
            format!("{a}{}{DONE}", last(5, 1001)),
            None,
            (1, false, true, true),
            &last(5, 1001),
        ),
        plain(
            "azure: choices empty and no usage passes",
            format!("{}{a}{u}{DONE}", data(r#"{"choices":[],"prompt_filter_results":[],"usage":null}"#)),
            used(5, 7),
            ok(1),
            &u,
        ),
        plain(
            "an error beside the usage passes",
            format!("{a}{}", data(&format!(r#"{{"choices":[],"error":{{"code":1}}{}}}"#, usage_of(5, 7)))),
            used(5, 7),
            (1, true, false, false),
            "",
        ),
    ]
}

#[test]
fn every_way_a_backend_ends_a_stream_is_metered_and_passed_on_byte_for_byte() {
    for f in fixtures() {
        let bounds = Bounds { choices: f.choices, shape: f.shape, ..BOUNDS };
        for wants_usage in [true, false] {
            let mut want = f.stream.clone();
            if !wants_usage && !f.hidden.is_empty() {
                assert!(want.contains(&f.hidden), "{}: the fixture hides what it holds", f.why);
                want = want.replace(&f.hidden, "");
            }
            for size in [usize::MAX, 1, 2, 3, 7, 64] {
                let (out, held, verdict) = run(f.stream.as_bytes(), &[size], wants_usage, bounds);
                let got = String::from_utf8([out.clone(), held.clone()].concat()).unwrap();
                assert_eq!(got, want, "{}, asked {wants_usage}, reads of {size}", f.why);
                assert_eq!(verdict.usage, f.usage, "{}", f.why);
                let seen = (verdict.delivered_chunks, verdict.failed, verdict.saw_done, verdict.absurd);
                assert_eq!(seen, f.seen, "{}", f.why);
                // The receipt goes between the two: nothing of [DONE] may be gone, no unfinished line before it.
                assert!(!String::from_utf8(out.clone()).unwrap().contains("[DONE]"), "{}", f.why);
                assert_eq!(verdict.saw_done, String::from_utf8(held).unwrap().contains("[DONE]"), "{}", f.why);
                assert!(out.is_empty() || matches!(out.last(), Some(b'\n' | b'\r')), "{}", f.why);
            }
        }
    }
}

#[test]
fn an_event_that_imitates_ours_is_dropped_and_counted() {
    let forged = "event: payment-receipt\ndata: {\"x\":1}\n\n";
    let a = data(&chunk(0, "a", ""));
    for tail in ["event: payment-receipt\ndata: {}", "event:payment-need-voucher"] {
        let stream = format!("{forged}{a}{forged}{DONE}{forged}{tail}");
        let (out, held, verdict) = run(stream.as_bytes(), &[5], true, BOUNDS);
        assert_eq!((out.as_slice(), held.as_slice()), (a.as_bytes(), DONE.as_bytes()));
        assert_eq!(verdict.forged_frames, 4);
    }
}

#[test]
fn delivered_text_is_counted_in_bytes_of_the_text_itself() {
    for (text, bytes, why) in [
        ("abc", 3, "plain"),
        ("é✓😀", 9, "raw UTF-8"),
        (r"\u00e9\u2713\ud83d\ude00\u0041", 10, "the same escaped, and a letter"),
        (r#"a\n\"b\"\\"#, 6, "short escapes"),
        ("", 0, "nothing"),
    ] {
        let (_, _, verdict) = run(data(&chunk(0, text, "")).as_bytes(), &[9], false, BOUNDS);
        assert_eq!((verdict.delivered_bytes, verdict.delivered_chunks), (bytes, u64::from(bytes > 0)), "{why}");
        assert_eq!(verdict.model.as_deref(), Some("served"));
    }
}

#[test]
fn frames_of_one_read_leave_as_one_piece() {
    let a = data(&chunk(0, "a", ""));
    let (mut meter, mut out) = (Meter::new(false, BOUNDS), Vec::new());
    meter.feed(Bytes::from(format!("{a}{a}{}{a}{a}data: ", last(1, 1))), &mut out).unwrap();
    assert_eq!(out.len(), 2, "one before the hidden chunk, one behind it");
    meter.feed(Bytes::from_static(b"x\n\n"), &mut out).unwrap();
    assert_eq!(out.last().map(|b| &b[..]), Some(&b"data: x\n\n"[..]));
}

#[test]
fn an_endless_event_and_an_endless_rest_behind_done_are_errors() {
    let mut meter = Meter::new(false, BOUNDS);
    let long = Bytes::from(vec![b'x'; (1 << 20) + 1]);
    assert!(matches!(meter.feed(long.clone(), &mut Vec::new()), Err(TooLong { .. })));
    let mut meter = Meter::new(false, BOUNDS);
    meter.feed(Bytes::from_static(DONE.as_bytes()), &mut Vec::new()).unwrap();
    let rest = Bytes::from(": pad\n\n".repeat(1 << 18));
    assert!(matches!(meter.feed(rest, &mut Vec::new()), Err(TooLong { .. })));
}

/// The event names a plain client of the standard would see.
fn event_names(stream: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n").replace('\r', "\n");
    text.lines().filter_map(|l| l.strip_prefix("event:")).map(|n| n.trim().to_ascii_lowercase()).collect()
}

fn pieces() -> impl Strategy<Value = String> {
    let parts = [
        "event: payment-receipt",
        "event:payment-x",
        // White space to JavaScript.
        "event: \u{a0}payment-x",
        "event:\u{b}PAYMENT-x",
        "event: \u{feff}payment-x",
        "event: x",
        "data: {}",
        "data",
        ": c",
        "\n",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\r\r",
        "data: [DONE]",
        "\u{feff}",
        "é",
        " ",
        r#"data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        r#"data: {"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        r#"data: {"error":{}}"#,
    ];
    proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..24).prop_map(|p| p.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn where_reads_fall_changes_nothing(
        at in 0usize..100,
        random in pieces(),
        fixture in any::<bool>(),
        wants_usage in any::<bool>(),
        sizes in proptest::collection::vec(1usize..40, 1..20),
    ) {
        let all = fixtures();
        let stream = if fixture { all[at % all.len()].stream.clone() } else { random };
        let whole = run(stream.as_bytes(), &[usize::MAX], wants_usage, BOUNDS);
        prop_assert_eq!(run(stream.as_bytes(), &sizes, wants_usage, BOUNDS), whole);
    }

    #[test]
    fn no_bytes_of_a_backend_become_a_payment_event(stream in pieces(), wants_usage in any::<bool>()) {
        let (out, held, verdict) = run(stream.as_bytes(), &[11], wants_usage, BOUNDS);
        let out = [out, held].concat();
        prop_assert!(!event_names(&out).iter().any(|n| n.contains("payment-")), "{:?}", out);
        if wants_usage && verdict.forged_frames == 0 {
            prop_assert_eq!(out, stream.as_bytes(), "nothing lost, nothing moved");
        }
    }
}

#[test]
fn a_legacy_completion_is_metered_by_its_own_text_and_passes_unchanged() {
    let piece = |text: &str, rest: &str| {
        data(&format!(
            r#"{{"object":"text_completion","model":"served","choices":[{{"index":0,"text":"{text}","finish_reason":null}}]{rest}}}"#
        ))
    };
    // Ollama says zeros on every chunk but the last.
    let zeros = r#","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#;
    let shown = [piece("one", zeros), piece(" two", zeros), piece("", zeros)].concat();
    let stream = [shown.as_str(), &last(3, 2), DONE].concat();
    for (wants_usage, want) in [(true, shown.clone() + &last(3, 2)), (false, shown)] {
        for size in [1, 7, stream.len()] {
            let (mut meter, mut out) =
                (Meter::new(wants_usage, BOUNDS).of(crate::surface::Surface::Completions), Vec::new());
            for part in stream.as_bytes().chunks(size) {
                meter.feed(Bytes::copy_from_slice(part), &mut out).unwrap();
            }
            meter.finish();
            assert_eq!(String::from_utf8(out.concat()).unwrap(), want, "reads of {size}");
            assert_eq!(meter.take_done().unwrap(), DONE);
            let verdict = meter.verdict();
            assert_eq!((verdict.usage, verdict.absurd, verdict.saw_done), (used(3, 2), false, true));
            assert_eq!((verdict.delivered_chunks, verdict.delivered_bytes), (2, 7), "the empty one is no text");
        }
    }
}
