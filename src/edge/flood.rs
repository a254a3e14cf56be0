//! How much traffic nobody pays for: per address and altogether, in bounded memory whatever clients send.
//!
//! A request is counted when it comes in, not when it was answered, or a burst would be worked on before anything is counted; one
//! that turns out to be paid, or needs no payment, is taken back. Two addresses may share a counter (a count-min sketch), which
//! can only err against the sender of a flood and, now and then, a neighbour in it.
//!
//! `Rate` of pingora-limits would do, but reads the clock before it reads the time of the last reset: a thread that is interrupted
//! in between subtracts the larger from the smaller, and with overflow checks that is a panic.

use super::door::neighbourhood;
use crate::refusal::Refusal;
use pingora_limits::estimator::Estimator;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Independent rows of the sketch, and counters in each.
const SKETCH: (usize, usize) = (4, 1024);

/// Limits on traffic nobody pays for.
#[derive(Clone, Copy, Debug)]
pub struct UnpaidLimits {
    /// Unpaid requests per second of one address.
    pub per_ip: usize,
    /// Unpaid requests per second altogether.
    pub total: usize,
}

/// Unpaid requests of the current second.
pub struct Flood {
    limits: UnpaidLimits,
    began: Instant,
    second: AtomicU64,
    here: Estimator,
    all: AtomicUsize,
}

impl Flood {
    /// Counters under these limits.
    pub fn new(limits: UnpaidLimits) -> Self {
        let here = Estimator::new(SKETCH.0, SKETCH.1);
        Self { limits, began: Instant::now(), second: AtomicU64::new(0), here, all: AtomicUsize::new(0) }
    }

    /// Counts a request of `client`, or refuses it. Whoever shows a credential is counted alike, but gets twice the room of its
    /// address and is not held to the limit of all: an honest payer may share an address with a flood, or meet one.
    pub fn admit(&self, client: Option<IpAddr>, credential: bool) -> Result<(), Refusal> {
        self.admit_at(self.began.elapsed().as_secs(), client, credential)
    }

    fn admit_at(&self, second: u64, client: Option<IpAddr>, credential: bool) -> Result<(), Refusal> {
        // Only the one that moves the second on clears the counters.
        if self.second.fetch_max(second, Ordering::Relaxed) < second {
            self.here.reset();
            self.all.store(0, Ordering::Relaxed);
        }
        let here = client.map_or(1, |ip| self.here.incr(neighbourhood(ip), 1));
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        let room = if credential { self.limits.per_ip.saturating_mul(2) } else { self.limits.per_ip };
        let verdict = if usize::try_from(here).is_ok_and(|count| count > room) {
            Err(busy(true, "unpaid_per_ip_per_second"))
        } else if !credential && all >= self.limits.total {
            Err(busy(false, "unpaid_per_second"))
        } else {
            Ok(())
        };
        if verdict.is_err() {
            // It is not worked on. Counted, it would use up the room of whoever pays from the same address.
            self.forgive(client);
        }
        verdict
    }

    /// The request of `client` was paid, or needed no payment: it does not count.
    pub fn forgive(&self, client: Option<IpAddr>) {
        // In a later second it is missing from a counter that never had it; that is below zero for less than a second.
        if let Some(ip) = client {
            self.here.decr(neighbourhood(ip), 1);
        }
        let _ = self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| all.checked_sub(1));
    }
}

fn busy(address_at_fault: bool, limit: &'static str) -> Refusal {
    Refusal::TooBusy { address_at_fault, retry_after_seconds: 1, limit }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn flood(per_ip: usize, total: usize) -> Flood {
        Flood::new(UnpaidLimits { per_ip, total })
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn status(result: Result<(), Refusal>) -> u16 {
        result.map_or_else(|r| r.status(), |()| 200)
    }

    #[test]
    fn an_address_over_its_rate_waits_for_the_next_second_and_nobody_else_does() {
        let flood = flood(2, 100);
        let (a, b) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let got: Vec<_> = (0..3).map(|_| status(flood.admit_at(0, a, false))).collect();
        assert_eq!(got, [200, 200, 429]);
        assert_eq!(status(flood.admit_at(0, b, false)), 200);
        assert_eq!(status(flood.admit_at(1, a, false)), 200);
    }

    #[test]
    fn a_burst_is_counted_before_any_of_it_is_answered_and_what_was_paid_is_not_counted() {
        let flood = flood(2, 100);
        let a = ip("192.0.2.1");
        for _ in 0..50 {
            assert_eq!(status(flood.admit_at(0, a, true)), 200);
            flood.forgive(a);
        }
        assert_eq!((status(flood.admit_at(0, a, false)), status(flood.admit_at(0, a, false))), (200, 200));
        assert_eq!(status(flood.admit_at(0, a, false)), 429);
        assert_eq!(status(flood.admit_at(0, a, true)), 200, "a credential has room left");
    }

    #[test]
    fn a_flood_that_is_refused_does_not_use_up_the_room_of_payers_at_its_address() {
        let flood = flood(2, 100);
        let a = ip("192.0.2.1");
        let got: Vec<_> = (0..1_000).map(|_| status(flood.admit_at(0, a, false))).collect();
        assert!(got.starts_with(&[200, 200, 429]) && got.ends_with(&[429]));
        assert_eq!((status(flood.admit_at(0, a, true)), status(flood.admit_at(0, a, true))), (200, 200));
        assert_eq!(status(flood.admit_at(0, a, true)), 429, "credentials that turn out to be worth nothing count");
    }

    #[test]
    fn all_unpaid_traffic_together_has_a_limit_that_payers_do_not_meet() {
        let flood = flood(10, 2);
        let got: Vec<_> = (1..=3).map(|n| status(flood.admit_at(0, ip(&format!("192.0.2.{n}")), false))).collect();
        assert_eq!(got, [200, 200, 503]);
        assert_eq!(status(flood.admit_at(0, ip("192.0.2.9"), true)), 200);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_address() {
        let flood = flood(2, 100);
        let got: Vec<_> = (1..=3).map(|n| status(flood.admit_at(0, ip(&format!("2001:db8::{n}")), false))).collect();
        assert_eq!(got, [200, 200, 429]);
        assert_eq!(status(flood.admit_at(0, ip("2001:db8:0:1::1"), false)), 200);
    }
}
