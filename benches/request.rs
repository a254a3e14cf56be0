//! What reading a request costs: strict reading, rewriting, counting its tokens. The budget for reading, checking and
//! rewriting 64 KB is 100 µs; serde's `Value` round trip stands beside it in the same run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
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

fn counting(c: &mut Criterion) {
    let mut group = c.benchmark_group("tokens");
    let ask = Ask::read(Surface::Chat, body(64 << 10), &limits()).unwrap();
    group.throughput(Throughput::Bytes(ask.body.len() as u64));
    for vocabulary in [Vocabulary::O200k, Vocabulary::Cl100k, Vocabulary::Bytes] {
        group.bench_function(vocabulary.name(), |b| {
            b.iter(|| count(vocabulary, black_box(&ask).prompt().texts(), ask.messages, 0));
        });
    }
    group.finish();
}

criterion_group!(benches, reading, counting);
criterion_main!(benches);
