//! What metering a stream costs per event; the budget is 1 µs, and a few hundred ns more where its cover is counted by a
//! vocabulary. Typed parsing of every event stands beside it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pontage::openai::cover::Cover;
use pontage::openai::meter::Meter;
use pontage::openai::usage::Bounds;
use pontage::tokens::Vocabulary;
use pontage::usage::Shape;
use std::hint::black_box;

const EVENTS: usize = 1000;

/// A stream of `EVENTS` content chunks; `rest` stands behind the choices of each.
fn stream(text: &str, rest: &str) -> Bytes {
    let event = format!(
        "data: {{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1795221719,\"model\":\"openai/gpt-oss-120b\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"logprobs\":null,\"finish_reason\":null}}]{rest}}}\n\n"
    );
    let last = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n";
    (event.repeat(EVENTS) + last).into()
}

fn metering(c: &mut Criterion) {
    let mut group = c.benchmark_group("meter, 1000 events");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let continuous = ",\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}";
    for (name, text, rest) in [
        ("usage null", " bridge", ",\"usage\":null"),
        ("no usage", " bridge", ""),
        ("continuous usage", " bridge", continuous),
        ("long deltas", &" bridge".repeat(150), ""),
    ] {
        let stream = stream(text, rest);
        for read in [4096usize, 512] {
            let reads: Vec<Bytes> =
                (0..stream.len()).step_by(read).map(|at| stream.slice(at..stream.len().min(at + read))).collect();
            group.bench_with_input(BenchmarkId::new(name, format!("reads of {read}")), &reads, |b, reads| {
                let mut out = Vec::with_capacity(64);
                b.iter(|| {
                    let mut meter = Meter::new(
                        false,
                        Bounds { choices: 1, prompt: None, completion: Some(1 << 20), shape: Shape::PLAIN },
                    );
                    for read in reads {
                        meter.feed(black_box(read.clone()), &mut out).unwrap();
                        out.clear();
                    }
                    meter.finish();
                    (meter.take_done(), meter.verdict())
                });
            });
        }
    }
    let o200k = Vocabulary::O200k.counter().map(Cover::Tokens).unwrap();
    let texts = [("plain", " bridge", ""), ("escaped", "\\n\\n", ""), ("continuous usage", " bridge", continuous)];
    for (cover_name, cover) in [("bytes", Cover::Bytes), ("o200k", o200k)] {
        for (name, text, rest) in texts {
            let stream = stream(text, rest);
            // As a backend writes them: an event, or a few, to a read.
            let reads: Vec<Bytes> =
                (0..stream.len()).step_by(512).map(|at| stream.slice(at..stream.len().min(at + 512))).collect();
            group.bench_with_input(BenchmarkId::new(format!("cover by {cover_name}"), name), &reads, |b, reads| {
                let mut out = Vec::with_capacity(64);
                b.iter(|| {
                    let bounds = Bounds { choices: 1, prompt: None, completion: Some(1 << 20), shape: Shape::PLAIN };
                    let mut meter = Meter::new(false, bounds).with_cover(cover);
                    let mut covered = 0;
                    for read in reads {
                        meter.feed_covered(black_box(read.clone()), covered, &mut out).unwrap();
                        if let Some(needed) = meter.waiting() {
                            covered = needed + 64;
                            meter.release(covered, &mut out);
                        }
                        out.clear();
                    }
                    meter.finish();
                    (meter.take_done(), meter.counted())
                });
            });
        }
    }
    let stream = stream(" bridge", "");
    group.bench_function("serde Value of every event", |b| {
        b.iter(|| {
            let data = stream.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
            for event in data.filter(|data| data.starts_with(b"{")) {
                black_box(serde_json::from_slice::<serde_json::Value>(event).unwrap());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, metering);
criterion_main!(benches);
