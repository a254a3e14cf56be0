//! Who takes the next request: the budget is 1 µs among 100 servers. It is the time of choosing and of giving the place back.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;

use cases::Selection;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pontage::rules::plan::Balance;

fn selection(c: &mut Criterion) {
    for (name, balance) in [
        ("least-outstanding", Balance::LeastOutstanding),
        ("round-robin", Balance::RoundRobin),
        ("consistent", Balance::Consistent),
        ("prefix", Balance::Prefix),
    ] {
        let mut group = c.benchmark_group(name);
        for servers in [3, 100] {
            let mut case = Selection::prepare(servers, balance);
            group.bench_function(BenchmarkId::from_parameter(servers), |b| b.iter(|| case.run()));
        }
        group.finish();
    }
}

criterion_group!(benches, selection);
criterion_main!(benches);
