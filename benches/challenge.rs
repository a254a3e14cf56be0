//! What a 402 costs: from the bytes of a 1.2 KB request to the written answer, without token counting. The budget is 30 µs, and 10 µs more
//! for each x402 offer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;

use criterion::{Criterion, criterion_group, criterion_main};

fn challenge(c: &mut Criterion) {
    let case = cases::Challenge::prepare();
    c.bench_function("402 for a 1.2 KB request", |b| b.iter(|| case.run()));
    let case = cases::Challenge::with(&cases::X402);
    c.bench_function("the same with four x402 offers", |b| b.iter(|| case.run()));
}

criterion_group!(benches, challenge);
criterion_main!(benches);
