//! What one request carries through the phases: who, when, which plan, and how it ended.

use crate::ids::{PublicModel, RailId};
use crate::journal::Receipt;
use crate::metrics::Metrics;
use crate::money::Usd;
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
    pub sold: Option<Sold>,
}

/// What the log says of a delivery.
pub struct Sold {
    /// `rcpt_…`.
    pub receipt: String,
    /// Model as the client knows it.
    pub model: PublicModel,
    /// Rail it was paid on.
    pub rail: RailId,
    /// What it cost.
    pub charged_usd: Usd,
}

impl From<&Receipt> for Sold {
    fn from(receipt: &Receipt) -> Self {
        let Receipt { id, model, rail, charged_usd, .. } = receipt;
        Self { receipt: id.clone(), model: model.clone(), rail: rail.clone(), charged_usd: *charged_usd }
    }
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
