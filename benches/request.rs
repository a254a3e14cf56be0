//! What reading a request costs: strict reading, rewriting, counting its tokens. The budget for reading, checking and
//! rewriting 64 KB is 100 µs; serde's `Value` round trip stands beside it in the same run. Counting is measured on texts of several
//! kinds, none of which was counted before.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pontage::ids::UpstreamModel;
use pontage::limits::{Limits, OverLimit, Spelling, UnknownFields};
use pontage::openai::request::{Ask, Rewrite};
use pontage::surface::Surface;
use pontage::tokens::{Vocabulary, count};
use std::hint::black_box;

const PROSE: &str =
    "The bridge was built in the year of the flood, and whoever crossed it paid the pontage at its gate. ";

fn limits() -> Limits {
    Limits {
        max_body_bytes: 4 << 20,
        max_output_tokens: 2048,
        max_input_tokens: None,
        max_n: 4,
        over_limit: OverLimit::Clamp,
        unknown_fields: UnknownFields::Refuse,
        image_url: None,
    }
}

/// A conversation of about this many bytes: turns of prose with some escapes, a tool, the usual fields.
fn body(bytes: usize) -> Bytes {
    let mut messages = vec![r#"{"role":"system","content":"You are helpful."}"#.to_owned()];
    let mut length = 400;
    while length < bytes {
        let turn = PROSE.repeat(((bytes - length) / PROSE.len()).clamp(1, 8)) + r#"\n\"quoted\" caf\u00e9"#;
        length += turn.len() + 34;
        messages.push(format!(r#"{{"role":"user","content":"{turn}"}}"#));
    }
    let tool = r#"{"type":"function","function":{"name":"look","parameters":{"type":"object","properties":{"x":{"type":"string"}}}}}"#;
    format!(
        r#"{{"model":"openai/gpt-oss-120b","messages":[{}],"tools":[{tool}],"temperature":0.7,"max_tokens":512,"stream":true,"stream_options":{{"include_usage":false}}}}"#,
        messages.join(",")
    )
    .into()
}

fn reading(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    let (limits, model) = (limits(), UpstreamModel::from("gpt-oss-120b"));
    let to = Rewrite {
        model: &model,
        max_output: 512,
        spelling: Spelling::MaxTokens,
        stream: true,
        continuous_usage: true,
        withheld: &[],
    };
    for kib in [1usize, 64, 1024] {
        let body = body(kib << 10);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("read, check, rewrite", kib), &body, |b, body| {
            b.iter(|| Ask::read(Surface::Chat, black_box(body.clone()), &limits).unwrap().rewrite(&to));
        });
        group.bench_with_input(BenchmarkId::new("serde Value there and back", kib), &body, |b, body| {
            b.iter(|| {
                let mut value: serde_json::Value = serde_json::from_slice(black_box(body)).unwrap();
                value["model"] = "gpt-oss-120b".into();
                serde_json::to_vec(&value).unwrap()
            });
        });
    }
    group.finish();
}

/// Pieces of one kind of text, joined anew for every sample, so that none was ever counted before.
struct Kind {
    name: &'static str,
    pieces: Vec<String>,
    joint: &'static str,
}

/// As many bytes as the texts have, about.
const SAMPLE: usize = 256 << 10;

/// Marsaglia's: enough to shuffle with.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % most as u64).unwrap()
    }

    fn letters(&mut self, of: &str, many: usize) -> String {
        let of: Vec<char> = of.chars().collect();
        (0..many).map(|_| of[self.below(of.len())]).collect()
    }
}

fn kinds(dice: &mut Dice) -> Vec<Kind> {
    const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const CHINESE: &str = "桥建于洪水之年，凡过桥者皆须在桥头付费。收费的人坐在小屋里，每天记下多少人、多少车、多少牲口经过。\
        后来城市变大，人们不再用铜钱，而是用手机付款；但是那本旧账簿仍然放在桌上，谁想看都可以翻开。\
        孩子们常常问，为什么过一座桥要给钱？老人回答：因为有人修它，有人守它，也有人在夜里为它点灯。";
    let lines = |text: &str| text.lines().filter(|line| line.len() > 40).map(str::to_owned).collect();
    let prose = concat!(include_str!("../README.md"), include_str!("../docs/operating.md"));
    let code = concat!(include_str!("../src/flow/pay.rs"), include_str!("../src/flow/settle.rs"));
    let sentences = CHINESE.split_inclusive(['，', '。', '？', '；', '：']).map(str::to_owned).collect();
    let alone = |text: String| vec![text];
    vec![
        Kind { name: "English", pieces: lines(prose), joint: "\n" },
        Kind { name: "Rust", pieces: lines(code), joint: "\n" },
        Kind { name: "Chinese", pieces: sentences, joint: "" },
        Kind { name: "base64", pieces: (0..64).map(|_| dice.letters(BASE64, 512)).collect(), joint: "" },
        Kind {
            name: "rare characters",
            pieces: (0..64).map(|_| dice.letters("鑫淼焱垚犇骉羴猋麤龘靐齉", 64)).collect(),
            joint: "",
        },
        Kind {
            name: "one word of random letters",
            pieces: (0..64).map(|_| dice.letters("abcdefghijklmnopqrstuvwxyz", 512)).collect(),
            joint: "",
        },
        Kind { name: "one letter", pieces: alone("a".repeat(4096)), joint: "" },
        Kind { name: "spaces", pieces: alone(" ".repeat(4096)), joint: "" },
    ]
}

impl Kind {
    /// A text that nobody has seen: its pieces in an order of its own.
    fn text(&self, dice: &mut Dice) -> String {
        let mut text = dice.letters("bcdefgh", 12);
        while text.len() < SAMPLE {
            text.push_str(self.joint);
            text.push_str(&self.pieces[dice.below(self.pieces.len())]);
        }
        text
    }
}

/// The aim is 10 MB/s. Texts that were counted before are looked up; these never were.
fn counting(c: &mut Criterion) {
    let mut group = c.benchmark_group("tokens");
    group.sample_size(20).throughput(Throughput::BytesDecimal(SAMPLE as u64));
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for kind in kinds(&mut dice) {
        for vocabulary in [Vocabulary::O200k, Vocabulary::Cl100k] {
            group.bench_function(BenchmarkId::new(vocabulary.name(), kind.name), |b| {
                b.iter_batched(
                    || kind.text(&mut dice),
                    |text| count(vocabulary, [black_box(text)], 1, 0),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, reading, counting);
criterion_main!(benches);
