//! What leaves a stream under cover, and when.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::cover::{Cover, Output};
use super::meter::Meter;
use super::sse::{DEFAULT_CARRY, TooLong};
use super::usage::Bounds;
use crate::usage::Shape;
use bytes::Bytes;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { choices: 1, prompt: None, completion: Some(100), shape: Shape::PLAIN };
const DONE: &str = "data: [DONE]\n\n";

/// A token for every word.
const WORDS: Cover = Cover::Tokens(|text| text.split_whitespace().count() as u64);

fn text(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// A chunk with a running figure.
fn running(text: &str, completion: u64) -> String {
    format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{completion}}}}}\n\n"
    )
}

fn last(completion: u64) -> String {
    format!("data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{completion}}}}}\n\n")
}

fn meter(cover: Cover) -> Meter {
    Meter::new(true, BOUNDS).with_cover(cover)
}

/// What `covered` lets out of this read.
fn feed(meter: &mut Meter, read: &str, covered: u64) -> String {
    let mut out = Vec::new();
    meter.feed_covered(Bytes::copy_from_slice(read.as_bytes()), covered, &mut out).unwrap();
    String::from_utf8(out.concat()).unwrap()
}

fn release(meter: &mut Meter, covered: u64) -> String {
    let mut out = Vec::new();
    meter.release(covered, &mut out);
    String::from_utf8(out.concat()).unwrap()
}

#[test]
fn only_text_that_is_covered_leaves_and_nothing_overtakes_what_waits() {
    let (a, b, ping) = (text("a"), text("b c"), ": ping\n\n");
    let role = text("");
    for (read, covered, leaves, waiting, counted, seen, why) in [
        (format!("{a}{a}"), 2, format!("{a}{a}"), None, 2, 2, "exactly covered"),
        (format!("{a}{a}"), 1, a.clone(), Some(2), 1, 2, "the second is not"),
        (format!("{a}{b}{a}"), 2, a.clone(), Some(3), 1, 4, "a frame is let out whole or not at all"),
        (format!("{role}{ping}{a}"), 0, format!("{role}{ping}"), Some(1), 0, 1, "what has no text needs no cover"),
        (format!("{a}{ping}{role}"), 0, String::new(), Some(1), 0, 1, "but never overtakes"),
        (format!("{a}{ping}"), 1, format!("{a}{ping}"), None, 1, 1, "and waits for nothing of its own"),
        (text(""), 0, text(""), None, 0, 0, "nothing said, nothing to cover"),
    ] {
        let mut meter = meter(WORDS);
        assert_eq!(feed(&mut meter, &read, covered), leaves, "{why}");
        assert_eq!((meter.waiting(), meter.counted().most, meter.seen().most), (waiting, counted, seen), "{why}");
        assert_eq!(leaves.clone() + &release(&mut meter, u64::MAX), read, "{why}: the rest, in order");
        assert_eq!((meter.waiting(), meter.counted().most), (None, seen), "{why}");
    }
}

#[test]
fn more_cover_lets_out_as_much_as_it_covers_in_one_piece() {
    let (a, b) = (text("a"), text("b c"));
    let mut meter = meter(WORDS);
    assert_eq!(feed(&mut meter, &format!("{a}{a}{b}{a}: ping\n\n"), 0), "");
    assert_eq!(release(&mut meter, 0), "");
    let mut out = Vec::new();
    meter.release(3, &mut out);
    assert_eq!(out, [format!("{a}{a}")], "one write, and no half of what takes two tokens");
    assert_eq!((meter.waiting(), meter.counted().most), (Some(4), 2));
    assert_eq!(feed(&mut meter, &b, 5), format!("{b}{a}: ping\n\n"), "what waits goes before what comes");
    assert_eq!((meter.waiting(), meter.counted().most, meter.seen().most), (Some(7), 5, 7));
}

#[test]
fn the_backends_own_figure_replaces_what_was_counted_before_it() {
    for (cover, stream, seen, why) in [
        (Cover::Bytes, format!("{}{}", text("abcd"), text("é")), 6, "bytes of the text, no figure"),
        (Cover::Bytes, text(r"a\u00e9\n"), 4, "escaped text counts as what it stands for"),
        (WORDS, text(r"a\nb\u0020c"), 3, "and so do its tokens"),
        (WORDS, format!("{}{}", running("a", 1), running("b", 9)), 9, "tokens that were never shown count"),
        (WORDS, format!("{}{}", running("a b c", 7), text("d e")), 9, "figure, and what came since"),
        (WORDS, format!("{}{}", text("a b c"), running("d", 2)), 3, "it never falls"),
        (WORDS, format!("{}{}{}", text("a b c"), running("d", 2), text("e f")), 4, "but goes on from the figure"),
        (WORDS, format!("{}{}", text("a"), last(40)), 40, "the final figure counts"),
        (WORDS, format!("{}{}", text("a"), last(101)), 1, "a figure that cannot be true does not"),
        (WORDS, format!("{}{}", text("a"), running("b", 0)), 2, "one that speaks of the prompt only neither"),
        (WORDS, format!("{}{}", running("a", 3), running("b", 3)), 4, "nor one that does not grow"),
        (Cover::Bytes, text(&"x".repeat(300)), 100, "no count passes what can be produced"),
        (Cover::Tokens(|_| u64::MAX), format!("{}{}", text("a"), text("b")), 100, "whatever the counter says"),
        (Cover::Tokens(|_| 1), text(&"x ".repeat(40_000)), 100, "a very long text is not given to the counter"),
    ] {
        let mut meter = meter(cover);
        assert_eq!(feed(&mut meter, &stream, u64::MAX), stream, "{why}");
        assert_eq!((meter.seen().most, meter.counted().most), (seen, seen), "{why}");
    }
    let two = Meter::new(true, Bounds { choices: 2, ..BOUNDS });
    let mut meter = two.with_cover(WORDS);
    feed(&mut meter, &running("a", 3), u64::MAX);
    feed(&mut meter, &running("b", 4).replace("\"index\":0", "\"index\":1"), u64::MAX);
    assert_eq!(meter.seen().most, 7, "choices add up");
}

#[test]
fn bytes_that_stand_in_for_tokens_are_covered_one_by_one_and_charged_by_four() {
    for (cover, stream, most, about, why) in [
        (Cover::Bytes, text(&"x".repeat(40)), 40, 10, "a token for every four bytes"),
        (Cover::Bytes, text("x").repeat(6), 6, 2, "rounded up once, not for each text"),
        (Cover::Bytes, format!("{}{}", running("a b c", 7), text("d e")), 10, 8, "after the backend's own figure"),
        (WORDS, text("a b c"), 3, 3, "where words can be counted both say the same"),
        (Cover::Tokens(|_| 1), text(&"x ".repeat(40_000)), 100, 100, "but of a text too long to be counted"),
    ] {
        let mut meter = meter(cover);
        feed(&mut meter, &stream, u64::MAX);
        assert_eq!((meter.counted(), meter.seen()), (Output { most, about }, Output { most, about }), "{why}");
    }
    let mut meter = meter(Cover::Bytes);
    let eight = text("12345678");
    assert_eq!(feed(&mut meter, &eight.repeat(3), 16), eight.repeat(2), "the third needs cover of its own");
    assert_eq!((meter.counted().about, meter.seen().about), (4, 6), "what waits is not among what left");
    release(&mut meter, 24);
    assert_eq!(meter.counted().about, 6);
}

#[test]
fn a_final_figure_beyond_the_cover_waits_with_done_but_does_not_stop_the_stream() {
    let (a, u) = (text("a"), last(9));
    let mut meter = meter(WORDS);
    assert_eq!(feed(&mut meter, &format!("{a}{u}: bye\n\n{DONE}"), 5), a);
    assert_eq!((meter.waiting(), meter.counted().most, meter.seen().most), (None, 1, 9));
    meter.finish();
    assert_eq!(meter.take_done(), None, "[DONE] does not overtake it");
    assert_eq!(release(&mut meter, 8), "");
    assert_eq!(release(&mut meter, 9), format!("{u}: bye\n\n"));
    assert_eq!(meter.take_done().unwrap(), DONE);

    let mut hidden = Meter::new(false, BOUNDS).with_cover(WORDS);
    assert_eq!(feed(&mut hidden, &format!("{a}{u}{DONE}"), 5), a);
    assert_eq!((hidden.waiting(), hidden.verdict().usage.unwrap().completion), (None, 9));
    assert_eq!(hidden.take_done().unwrap(), DONE, "what the client did not ask for keeps nothing waiting");
}

#[test]
fn text_that_waits_was_not_delivered() {
    let mut meter = meter(WORDS);
    feed(&mut meter, &format!("{}{}", text("ab"), text("cde f")), 1);
    let verdict = meter.verdict();
    assert_eq!((verdict.delivered_chunks, verdict.delivered_bytes), (1, 2));
    release(&mut meter, 3);
    let verdict = meter.verdict();
    assert_eq!((verdict.delivered_chunks, verdict.delivered_bytes), (2, 7));
}

#[test]
fn what_waits_is_bounded() {
    let mut meter = meter(WORDS);
    let many = text("a") + &": pad\n\n".repeat(DEFAULT_CARRY / 7);
    let fed = meter.feed_covered(Bytes::from(many), 0, &mut Vec::new());
    assert_eq!(fed, Err(TooLong { cap: DEFAULT_CARRY }));
}

/// What a backend sends next.
#[derive(Clone, Debug)]
enum Sent {
    Text(String),
    /// Text with a running figure.
    Running(String, u64),
    /// A figure alone.
    Figure(u64),
    Ping,
    Forged,
}

impl Sent {
    fn bytes(&self) -> String {
        match self {
            Sent::Text(said) => text(said),
            Sent::Running(said, figure) => running(said, *figure),
            Sent::Figure(figure) => last(*figure),
            Sent::Ping => ": ping\n\n".to_owned(),
            Sent::Forged => "event: payment-receipt\ndata: {}\n\n".to_owned(),
        }
    }

    fn said(&self) -> &str {
        match self {
            Sent::Text(said) | Sent::Running(said, _) => said,
            _ => "",
        }
    }
}

/// The cover count after each frame, as the rule has it: the backend's highest figure and a token for every word since, which never
/// falls; once a figure stood alone it is the final one, and those with text say nothing more. With the text of the frame.
fn expected(frames: &[Sent]) -> Vec<(&str, u64)> {
    let (mut highest, mut since, mut count, mut is_final) = (0, 0, 0, false);
    let after = |frame: &Sent| {
        since += frame.said().split_whitespace().count() as u64;
        let figure = match frame {
            Sent::Figure(figure) => {
                is_final = true;
                *figure
            }
            Sent::Running(_, figure) if !is_final => *figure,
            _ => 0,
        };
        if figure > highest {
            (highest, since) = (figure, 0);
        }
        count = count.max((highest + since).min(100));
        count
    };
    let counts: Vec<_> = frames.iter().map(after).collect();
    frames.iter().map(Sent::said).zip(counts).collect()
}

fn frames() -> impl Strategy<Value = Vec<Sent>> {
    let frame = prop_oneof![
        4 => "[a-c ]{0,8}".prop_map(Sent::Text),
        1 => ("[a-c ]{0,4}", 1u64..60).prop_map(|(said, figure)| Sent::Running(said, figure)),
        1 => Just(Sent::Ping),
        1 => Just(Sent::Forged),
        1 => (1u64..60).prop_map(Sent::Figure),
    ];
    proptest::collection::vec(frame, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn cover_changes_when_bytes_leave_and_nothing_else(
        frames in frames(),
        wants_usage in any::<bool>(),
        steps in proptest::collection::vec((1usize..200, 0u64..12, any::<bool>()), 1..40),
    ) {
        let stream = frames.iter().map(Sent::bytes).collect::<String>() + DONE;
        let expected = expected(&frames);
        let texts: Vec<_> = expected.iter().filter(|(said, _)| !said.is_empty()).collect();
        let mut free = Meter::new(wants_usage, BOUNDS);
        let mut all = Vec::new();
        free.feed(Bytes::from(stream.clone()), &mut all).unwrap();
        free.finish();

        let mut meter = Meter::new(wants_usage, BOUNDS).with_cover(WORDS);
        let (mut out, mut covered, mut seen, mut rest) = (Vec::new(), 0, 0, stream.as_bytes());
        let mut steps = steps.into_iter().cycle();
        while !rest.is_empty() {
            let (size, more, let_out) = steps.next().unwrap();
            covered += more;
            if let_out {
                meter.release(covered, &mut out);
            }
            let (now, later) = rest.split_at(size.min(rest.len()));
            meter.feed_covered(Bytes::copy_from_slice(now), covered, &mut out).unwrap();
            rest = later;
            prop_assert!(meter.seen().most >= seen, "the count never falls");
            seen = meter.seen().most;
            prop_assert!(meter.counted().most <= seen);
            prop_assert!(meter.waiting().is_none_or(|needed| needed > covered && needed <= seen));
            let left = String::from_utf8(out.concat()).unwrap();
            let left: Vec<_> = left.lines().filter_map(|line| line.split("\"content\":\"").nth(1)?.split('"').next())
                .filter(|said| !said.is_empty()).collect();
            for (said, (expected, count)) in left.iter().zip(&texts) {
                prop_assert_eq!(said, expected);
                prop_assert!(*count <= covered, "{} needs {} of {}", said, count, covered);
            }
            prop_assert!(left.len() <= texts.len());
        }
        prop_assert_eq!(seen, expected.last().map_or(0, |(_, count)| *count));
        meter.release(u64::MAX, &mut out);
        meter.finish();
        prop_assert_eq!(out.concat(), all.concat());
        prop_assert_eq!(meter.take_done(), free.take_done());
        prop_assert_eq!(meter.verdict(), free.verdict());
    }
}

proptest! {
    /// Whatever was passed over, the figure at any moment is the newest one.
    #[test]
    fn running_figures_that_are_passed_over_lose_nothing(counts in proptest::collection::vec(1u64..100, 1..60), end in any::<bool>()) {
        let mut every = Meter::new(true, BOUNDS).with_cover(WORDS);
        let mut some = Meter::new(true, BOUNDS).with_cover(WORDS).all_is_shown();
        for count in counts {
            for meter in [&mut every, &mut some] {
                feed(meter, &running("a", count), u64::MAX);
            }
            prop_assert_eq!(every.verdict().usage, some.verdict().usage);
            prop_assert!(some.counted().most <= every.counted().most.max(100));
        }
        if end {
            for meter in [&mut every, &mut some] {
                feed(meter, &last(77), u64::MAX);
            }
            prop_assert_eq!(every.verdict().usage, some.verdict().usage);
            prop_assert_eq!(some.verdict().usage.unwrap().completion, 77);
        }
    }
}

#[test]
fn of_a_stream_that_is_cut_the_figure_of_what_left_is_known() {
    for eager in [0, 20] {
        let mut meter = Meter::new(true, BOUNDS).with_cover(WORDS).all_is_shown();
        // Each delta is one word and, as this backend counts, one token; the meter's own count says two of some.
        for n in 1..=eager {
            feed(&mut meter, &running("a", n), u64::MAX);
        }
        let covered = meter.counted().most + 3;
        for n in eager + 1..=eager + 9 {
            feed(&mut meter, &running("a", n), covered);
        }
        assert_eq!(meter.delivered().map(|u| u.completion), Some(eager + 3), "three more were covered");
        release(&mut meter, covered + 2);
        assert_eq!(meter.delivered().map(|u| u.completion), Some(eager + 5));
        release(&mut meter, u64::MAX);
        assert_eq!(meter.delivered().map(|u| u.completion), Some(eager + 9));
        assert_eq!(meter.verdict().usage.map(|u| u.completion), Some(eager + 9));
    }
}
