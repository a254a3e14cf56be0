//! What one request carries through the phases: who, when, which plan, and how it ended.

use crate::metrics::Metrics;
use crate::rules::Plan;
use http::{HeaderName, HeaderValue};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Per-request context.
pub struct Visit {
    /// `req_…`, also in the `X-Request-Id` answer header.
    pub request: String,
    /// The rules of this request, taken once.
    pub plan: Arc<Plan>,
    /// When it began.
    pub began: Instant,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Counts it as in flight, however it ends.
    pub inside: Inside,
    /// A configured path, or `other`: never the client's text.
    pub route: String,
    /// Status sent, 0 while none was.
    pub status: u16,
    /// `outcome` label.
    pub outcome: &'static str,
    /// Of a call over a channel that failed: what the channel stands at. Wallets forget a channel that they have just opened when no
    /// answer speaks of it.
    pub channel: Option<(HeaderName, HeaderValue)>,
    /// What was delivered, for the log.
    pub receipt: Option<Box<crate::journal::Receipt>>,
}

/// A request in flight: counted while it lives, a panic included, because a stop waits until nobody is counted.
pub struct Inside(Arc<Metrics>);

impl Inside {
    /// One more.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.inflight.with_label_values(&["requests"]).inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inflight.with_label_values(&["requests"]).dec();
    }
}
