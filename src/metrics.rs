//! What operators watch. Names are fixed; labels come only from closed sets: the plan's own names and enums, never a
//! client's text.

use crate::money::Usd;
use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, IntCounter, IntGauge};
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use std::sync::{Mutex, PoisonError};

/// Every series of the gate, in a registry of its own so that two gates in one process do not collide.
pub struct Metrics {
    registry: Registry,
    /// `pontage_requests_total{route,outcome}`: answered requests. `route` is a configured path or `other`; `outcome` is
    /// `served`, `managed`, `preflight`, `unpaid`, `upstream_died`, `out_of_time`, `client_gone` or a refusal's code.
    pub requests: IntCounterVec,
    /// `pontage_challenges_total{rail}`: offers made.
    pub challenges: IntCounterVec,
    /// `pontage_payments_total{rail,outcome}`: `paid`, `failed`, `unknown`, `unchecked`, `unproven`, `redeemed`, `replayed`, `refused`;
    /// of channels also `opened`.
    pub payments: IntCounterVec,
    /// `pontage_payments_in_doubt{rail}`: payments that may have been taken, and are looked for until that is known.
    in_doubt: IntGaugeVec,
    /// `pontage_tokens_total{model,kind}`: reported tokens, `kind` = `prompt`, `completion`, and of their parts those that
    /// there are: `cached`, `cache_write`, `reasoning`, `audio_input`, `audio_output`, `image_input`.
    pub tokens: IntCounterVec,
    /// `pontage_charged_usd_total{rail}`: money taken, in dollars (a float here only; books are integers).
    pub charged_usd: CounterVec,
    /// `pontage_absorbed_usd_total{tier}`: usage beyond what was charged, carried by the operator.
    pub absorbed_usd: CounterVec,
    /// `pontage_absorb_cap_usd{tier}`: the most the operator carries of a day, in tiers that absorb.
    absorb_cap_usd: GaugeVec,
    /// `pontage_absorb_left_usd{tier}`: what is left of it now, without what calls in progress or owed may still lose.
    absorb_left_usd: GaugeVec,
    /// `pontage_delivered_unpaid_usd_total{rail}`: what answers cost that had left when their payment failed.
    pub delivered_unpaid_usd: CounterVec,
    /// `pontage_session_loss_usd_total{rail}`: usage beyond what a channel's payer had signed.
    pub session_loss_usd: CounterVec,
    /// `pontage_sponsored_total{rail,outcome}`: transactions whose fee was to be carried: `cosigned`, `refused` (not what a sponsor
    /// pays for), `fails` (would revert), `budget`, `payer_share`, `unknown` (the chain could not be asked).
    pub sponsored: IntCounterVec,
    /// `pontage_sponsored_usd_total{rail}`: fees carried for payers, as the chain took them.
    pub sponsored_usd: CounterVec,
    /// `pontage_channels{phase}`: channels that are not over.
    pub channels: IntGaugeVec,
    /// `pontage_unsettled_usd{rail}`: spent and not paid out yet (a float here only; books are integers).
    pub unsettled_usd: GaugeVec,
    /// `pontage_settlements_total{rail,outcome}`: our transactions on channels: `settled`, `closed`, `dropped`, `unknown`, `unsigned`.
    pub settlements: IntCounterVec,
    /// `pontage_forced_closes_total{rail,outcome}`: closes that payers asked the chain for: `seen`, `late` (a third of the grace is
    /// over and it is not done), then `claimed`, `cancelled` or `lost`.
    pub forced_closes: IntCounterVec,
    /// `pontage_inflight{kind}`: `requests`, `streams`, `upstream`; `sessions` are those paid over a channel.
    pub inflight: IntGaugeVec,
    /// `pontage_upstream_seconds{pool}`: whole exchange with the backend.
    pub upstream_seconds: HistogramVec,
    /// `pontage_time_to_first_token_seconds{pool}`: request sent to first body byte.
    pub first_token_seconds: HistogramVec,
    /// `pontage_upstream_errors_total{pool,kind}`: `connect`, `timeout`, `failed`, `auth`, `status`.
    pub upstream_errors: IntCounterVec,
    /// `pontage_upstream_attempts_total{pool,outcome}`: servers tried, by what came of it: `answered`, `connect`, `status` (429 or
    /// 5xx), `auth`, `lost`, `timeout`, `full`.
    pub upstream_attempts: IntCounterVec,
    /// `pontage_usage_total{pool,source}`: who counted: `reported`, `counted`, `missing`, `absurd`, `flat`; `absurd` also beside `reported`, when
    /// one of several figures cannot be.
    pub usage: IntCounterVec,
    /// `pontage_usage_drift_ratio{model,kind}`: tokens reported ÷ tokens counted here by the model's vocabulary, `kind` = `prompt`,
    /// `completion` (a float here only; nothing is charged by it).
    pub usage_drift: HistogramVec,
    /// `pontage_dropped_frames_total`: upstream SSE frames with a reserved event name.
    pub dropped_frames: IntCounter,
    /// `pontage_rules_reload_total{outcome}`: `ok`, `failed`.
    pub rules_reload: IntCounterVec,
    /// `pontage_plan_info{generation}`: 1 for the plan in force.
    plan_info: IntGaugeVec,
    plan: Mutex<Option<String>>,
    /// `pontage_connections_refused_total`: connections closed at the door, because their address or the gate had its fill.
    pub connections_refused: IntCounter,
    /// `pontage_rules_rejected`: 1 while the files hold a set that was refused.
    pub rules_rejected: IntGauge,
    /// `pontage_rail_up{rail}`: 1 when offers are made on it; of rails that some route accepts.
    pub rail_up: IntGaugeVec,
    /// `pontage_ready`: what `/readyz` says, 1 or 0; that the gate was told to stop does not count.
    pub ready: IntGauge,
    /// `pontage_store_up`: 1 while the store takes writes. While it does not, nothing that is paid for is served.
    pub store_up: IntGauge,
    /// `pontage_store_unsafe`: 1 when the operator accepts that a crash of the store loses payments it confirmed.
    pub store_unsafe: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All series, registered.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter =
            |name: &str, help: &str, labels: &[&str]| put(&registry, IntCounterVec::new(Opts::new(name, help), labels));
        let money =
            |name: &str, help: &str, labels: &[&str]| put(&registry, CounterVec::new(Opts::new(name, help), labels));
        let gauge =
            |name: &str, help: &str, labels: &[&str]| put(&registry, IntGaugeVec::new(Opts::new(name, help), labels));
        let seconds = |name: &str, help: &str, labels: &[&str]| {
            let buckets = vec![0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
            put(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
        };
        Self {
            requests: counter("pontage_requests_total", "Answered requests", &["route", "outcome"]),
            challenges: counter("pontage_challenges_total", "Offers made", &["rail"]),
            payments: counter("pontage_payments_total", "Payments shown, by what became of them", &["rail", "outcome"]),
            in_doubt: gauge("pontage_payments_in_doubt", "Payments whose outcome is not known yet", &["rail"]),
            tokens: counter("pontage_tokens_total", "Tokens reported by backends", &["model", "kind"]),
            charged_usd: money("pontage_charged_usd_total", "Money taken, US dollars", &["rail"]),
            absorbed_usd: money("pontage_absorbed_usd_total", "Usage beyond what was charged, US dollars", &["tier"]),
            absorb_cap_usd: put(
                &registry,
                GaugeVec::new(
                    Opts::new("pontage_absorb_cap_usd", "Most that is absorbed in a day, US dollars"),
                    &["tier"],
                ),
            ),
            absorb_left_usd: put(
                &registry,
                GaugeVec::new(
                    Opts::new("pontage_absorb_left_usd", "What is left of that today, US dollars"),
                    &["tier"],
                ),
            ),
            delivered_unpaid_usd: money(
                "pontage_delivered_unpaid_usd_total",
                "Answers that had left when their payment failed, US dollars",
                &["rail"],
            ),
            session_loss_usd: money(
                "pontage_session_loss_usd_total",
                "Usage beyond what was signed, US dollars",
                &["rail"],
            ),
            sponsored: counter(
                "pontage_sponsored_total",
                "Transactions whose fee was to be carried",
                &["rail", "outcome"],
            ),
            sponsored_usd: money("pontage_sponsored_usd_total", "Fees carried for payers, US dollars", &["rail"]),
            channels: gauge("pontage_channels", "Channels that are not over", &["phase"]),
            unsettled_usd: put(
                &registry,
                GaugeVec::new(Opts::new("pontage_unsettled_usd", "Spent and not paid out yet, US dollars"), &["rail"]),
            ),
            settlements: counter(
                "pontage_settlements_total",
                "Our transactions on channels, by what became of them",
                &["rail", "outcome"],
            ),
            forced_closes: counter(
                "pontage_forced_closes_total",
                "Closes that payers asked the chain for",
                &["rail", "outcome"],
            ),
            inflight: gauge("pontage_inflight", "Work in progress", &["kind"]),
            upstream_seconds: seconds("pontage_upstream_seconds", "Whole exchange with the backend", &["pool"]),
            first_token_seconds: seconds(
                "pontage_time_to_first_token_seconds",
                "Request sent to first body byte",
                &["pool"],
            ),
            upstream_errors: counter("pontage_upstream_errors_total", "Backend failures", &["pool", "kind"]),
            upstream_attempts: counter(
                "pontage_upstream_attempts_total",
                "Servers tried, by what came of it",
                &["pool", "outcome"],
            ),
            usage: counter("pontage_usage_total", "Replies by who counted their tokens", &["pool", "source"]),
            usage_drift: {
                let about_one =
                    vec![0.1, 0.25, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0];
                let opts = HistogramOpts::new("pontage_usage_drift_ratio", "Tokens reported by tokens counted here");
                put(&registry, HistogramVec::new(opts.buckets(about_one), &["model", "kind"]))
            },
            dropped_frames: put(
                &registry,
                IntCounter::new("pontage_dropped_frames_total", "Backend SSE frames with a reserved event name"),
            ),
            rules_reload: counter("pontage_rules_reload_total", "Reloads of the rules", &["outcome"]),
            connections_refused: put(
                &registry,
                IntCounter::new(
                    "pontage_connections_refused_total",
                    "Connections closed at the door: a limit was reached",
                ),
            ),
            rules_rejected: put(
                &registry,
                IntGauge::new(
                    "pontage_rules_rejected",
                    "Whether the rules on disk were refused: older ones are in force",
                ),
            ),
            plan_info: gauge("pontage_plan_info", "The plan in force", &["generation"]),
            plan: Mutex::default(),
            rail_up: gauge("pontage_rail_up", "Whether offers are made on a rail", &["rail"]),
            ready: put(&registry, IntGauge::new("pontage_ready", "Whether paid traffic would be served now")),
            store_up: put(&registry, IntGauge::new("pontage_store_up", "Whether the store takes writes")),
            store_unsafe: put(
                &registry,
                IntGauge::new("pontage_store_unsafe", "Whether accept_data_loss is set: a crash may lose payments"),
            ),
            registry,
        }
    }

    /// Shows what `collector` reads when it is asked. The error: a name is taken already.
    pub fn show(&self, collector: impl Collector + 'static) -> prometheus::Result<()> {
        self.registry.register(Box::new(collector))
    }

    /// Prometheus text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        // Writing to memory cannot fail; if a series is broken, the rest is still shown.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    /// One more payment in doubt on a rail, until this is dropped.
    pub fn in_doubt(&self, rail: &str) -> Doubt {
        let gauge = self.in_doubt.with_label_values(&[rail]);
        gauge.inc();
        Doubt(gauge)
    }

    /// What tiers absorb: `(tier, cap of a day, what is left of it)`. Whoever is not among them any more is not shown any more.
    pub fn set_absorbing(&self, tiers: &[(&str, Usd, Usd)]) {
        for gone in labels_of(&self.absorb_cap_usd).iter().filter(|known| !tiers.iter().any(|(tier, ..)| tier == known))
        {
            // They were there.
            let _ = self.absorb_cap_usd.remove_label_values(&[gone]);
            let _ = self.absorb_left_usd.remove_label_values(&[gone]);
        }
        for (tier, cap, left) in tiers {
            self.absorb_cap_usd.with_label_values(&[tier]).set(shown(*cap));
            self.absorb_left_usd.with_label_values(&[tier]).set(shown(*left));
            // Shown before it first counts: a counter that appears with its first loss would hide that loss from `increase`.
            self.absorbed_usd.with_label_values(&[tier]);
        }
    }

    /// The one plan in force. Whoever looks in that instant may see the one before as well, and never none.
    pub fn set_plan(&self, generation: &str) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        self.plan_info.with_label_values(&[generation]).set(1);
        if let Some(old) = plan.replace(generation.to_owned()).filter(|old| old != generation) {
            // It was there.
            let _ = self.plan_info.remove_label_values(&[&old]);
        }
    }
}

/// A payment in doubt, counted while it lives.
pub struct Doubt(IntGauge);

impl Drop for Doubt {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The values of the one label of a collector.
fn labels_of(collector: &impl Collector) -> Vec<String> {
    let families = collector.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    series.flat_map(|one| one.get_label().iter().map(|label| label.value().to_owned())).collect()
}

/// Dollars as a float, for counters only: nothing is ever decided by it.
#[allow(clippy::cast_precision_loss)]
pub fn shown(usd: Usd) -> f64 {
    usd.0 as f64 / 1e18
}

/// One count by another, for display; `None` when there is nothing to compare with.
pub fn ratio(reported: u64, counted: u64) -> Option<f64> {
    (counted > 0).then(|| reported as f64 / counted as f64)
}

/// Registers a collector. Names and labels are literals above, so both errors are defects that the first test shows.
#[allow(clippy::expect_used)]
fn put<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names and labels are valid literals");
    registry.register(Box::new(collector.clone())).expect("metric names are unique");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_looks_while_the_plan_changes_sees_one() {
        let m = Metrics::new();
        m.set_plan("a");
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| (0..2_000).for_each(|n| m.set_plan(["b", "c"][n % 2])));
            while !changing.is_finished() {
                let text = m.text();
                assert!(text.contains("pontage_plan_info{"), "{text}");
            }
        });
    }

    #[test]
    fn the_plan_before_is_not_shown_any_more() {
        let m = Metrics::new();
        m.set_plan("a");
        m.set_plan("b");
        let text = m.text();
        assert!(text.contains("generation=\"b\"") && !text.contains("generation=\"a\""), "{text}");
    }

    #[test]
    fn a_payment_is_in_doubt_until_somebody_knows() {
        let m = Metrics::new();
        let (one, two) = (m.in_doubt("base/exact"), m.in_doubt("base/exact"));
        assert!(m.text().contains("pontage_payments_in_doubt{rail=\"base/exact\"} 2"), "{}", m.text());
        drop(one);
        assert!(m.text().contains("pontage_payments_in_doubt{rail=\"base/exact\"} 1"), "{}", m.text());
        drop(two);
        assert!(m.text().contains("pontage_payments_in_doubt{rail=\"base/exact\"} 0"), "{}", m.text());
    }

    #[test]
    fn a_tier_that_absorbs_shows_its_cap_and_what_is_left_as_long_as_it_does() {
        let m = Metrics::new();
        let (twenty, four) = (Usd(20 * Usd::ONE.0), Usd(4 * Usd::ONE.0));
        m.set_absorbing(&[("small", twenty, four), ("other", twenty, twenty)]);
        let text = m.text();
        for line in ["cap_usd{tier=\"small\"} 20", "left_usd{tier=\"small\"} 4", "absorbed_usd_total{tier=\"small\"} 0"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        m.set_absorbing(&[("other", twenty, twenty)]);
        assert!(
            !m.text().contains("left_usd{tier=\"small\"}") && m.text().contains("cap_usd{tier=\"other\"} 20"),
            "{}",
            m.text()
        );
    }
}
