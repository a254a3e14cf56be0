//! What one request carries through the phases: who, when, which plan, and how it ended.

use crate::rules::Plan;
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
    /// A configured path, or `other`: never the client's text.
    pub route: String,
    /// Status sent, 0 while none was.
    pub status: u16,
    /// `outcome` label.
    pub outcome: &'static str,
    /// What was delivered, for the log.
    pub receipt: Option<Box<crate::journal::Receipt>>,
}
