//! What `/metrics` says of pools: read from them when asked, so that it is never behind. Labels are names of the rules; the
//! addresses behind a name are counted together under it.

use super::Pools;
use arc_swap::ArcSwap;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The series of pools.
pub struct Shown {
    pools: Arc<ArcSwap<Pools>>,
    names: Series,
}

/// One scrape's worth. Two scrapes at once do not share any.
struct Series {
    up: IntGaugeVec,
    members: IntGaugeVec,
    in_flight: IntGaugeVec,
    resting_models: IntGaugeVec,
    ejections: IntCounterVec,
    usage_alarms: IntCounterVec,
    waiting: IntGaugeVec,
    waits: IntCounterVec,
    refused: IntCounterVec,
}

impl Shown {
    /// Of the pools in force at each scrape. The error is a defect of the names in this file.
    pub fn of(pools: Arc<ArcSwap<Pools>>) -> prometheus::Result<Self> {
        Ok(Self { pools, names: Series::new()? })
    }
}

impl Series {
    fn new() -> prometheus::Result<Self> {
        let gauge = |name, help, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let counter = |name, help, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let server = ["pool", "server"];
        Ok(Self {
            up: gauge("pontage_upstream_server_up", "Whether a server takes requests", &server)?,
            members: gauge("pontage_upstream_addresses", "Usable addresses of a server", &server)?,
            in_flight: gauge("pontage_upstream_in_flight", "Requests running on a server", &server)?,
            resting_models: gauge(
                "pontage_upstream_models_resting",
                "Models that a server is not asked for now, because it answered 429, 5xx or nonsense",
                &server,
            )?,
            ejections: counter(
                "pontage_upstream_ejections_total",
                "Times a server, or a model of it, was put to rest",
                &server,
            )?,
            usage_alarms: counter("pontage_upstream_absurd_usage_total", "Reports of usage that cannot be", &server)?,
            waiting: gauge("pontage_upstream_queue_length", "Requests waiting for a server", &["pool"])?,
            waits: counter("pontage_upstream_queue_waits_total", "Requests that had to wait", &["pool"])?,
            refused: counter(
                "pontage_upstream_queue_refused_total",
                "Requests that found the queue full or waited too long",
                &["pool"],
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 9] {
        let Self { up, members, in_flight, resting_models, ejections, usage_alarms, waiting, waits, refused } = self;
        [up, members, in_flight, resting_models, ejections, usage_alarms, waiting, waits, refused]
    }

    fn read(&self, pools: &Pools) {
        for (pool, state) in pools.iter() {
            let (pool, state) = (pool.as_str(), state.overview());
            let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            self.waiting.with_label_values(&[pool]).set(number(state.waiting));
            self.waits.with_label_values(&[pool]).inc_by(state.waits);
            self.refused.with_label_values(&[pool]).inc_by(state.refused);
            let mut seen = BTreeSet::new();
            for server in &state.servers {
                let labels = [pool, server.name.as_str()];
                self.members.with_label_values(&labels).add(i64::from(server.usable));
                self.in_flight.with_label_values(&labels).add(number(server.in_flight));
                self.resting_models.with_label_values(&labels).add(number(server.resting_models.len()));
                // The addresses behind a name have one count.
                if server.address.is_none() || seen.insert(server.name.as_str()) {
                    self.ejections.with_label_values(&labels).inc_by(server.ejections);
                    self.usage_alarms.with_label_values(&labels).inc_by(server.usage_alarms);
                }
                let up = self.members.with_label_values(&labels).get() > 0;
                self.up.with_label_values(&labels).set(i64::from(up));
            }
        }
    }
}

impl Collector for Shown {
    fn desc(&self) -> Vec<&Desc> {
        self.names.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(series) = Series::new() else { return Vec::new() };
        series.read(&self.pools.load());
        series.all().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::PoolName;
    use crate::metrics::Metrics;
    use crate::rules::plan::Discovery;
    use crate::upstream::pool::tests::rules;
    use crate::upstream::{Affinity, Resolve};
    use async_trait::async_trait;
    use std::io;
    use std::net::SocketAddr;

    struct Two;

    #[async_trait]
    impl Resolve for Two {
        async fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            Ok(["192.0.2.1", "192.0.2.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).to_vec())
        }
    }

    #[tokio::test]
    async fn the_addresses_behind_a_name_are_one_series_under_it() {
        let mut named = rules(&[(8000, 1)]);
        named.discovery = Discovery::Dns;
        named.servers[0].host = "gpu.example".into();
        let mut listed = rules(&[(1, 1), (2, 1)]);
        listed.name = PoolName::from("q");
        let all = [named, listed].map(|r| (r.name.clone(), Arc::new(r))).into();
        let pools = Pools::build_with(&all, None, &(Arc::new(Two) as Arc<dyn Resolve>)).unwrap();
        pools.first_look().await;
        let pool = |name| Arc::clone(pools.get(&PoolName::from(name)).unwrap());
        let held = pool("p").pick(Affinity::NONE, &[]).unwrap();
        pool("p").pick(Affinity::NONE, &[held.index()]).unwrap().connect_failed();
        pool("q").pick(Affinity::NONE, &[1]).unwrap().eject_for_auth();
        let metrics = Metrics::new();
        metrics.show(Shown::of(Arc::new(ArcSwap::from_pointee(pools))).unwrap()).unwrap();
        let text = metrics.text();
        for line in [
            "pontage_upstream_server_up{pool=\"p\",server=\"gpu.example:8000\"} 1",
            "pontage_upstream_addresses{pool=\"p\",server=\"gpu.example:8000\"} 1",
            "pontage_upstream_in_flight{pool=\"p\",server=\"gpu.example:8000\"} 1",
            "pontage_upstream_ejections_total{pool=\"p\",server=\"gpu.example:8000\"} 1",
            "pontage_upstream_server_up{pool=\"q\",server=\"127.0.0.1:1\"} 0",
            "pontage_upstream_ejections_total{pool=\"q\",server=\"127.0.0.1:1\"} 1",
            "pontage_upstream_server_up{pool=\"q\",server=\"127.0.0.1:2\"} 1",
            "pontage_upstream_queue_length{pool=\"q\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("192.0.2"), "addresses are no labels");
        assert_eq!(metrics.text().lines().count(), text.lines().count(), "a second look shows the same");
    }
}
