//! Bytes → [`Parsed`]: strictly read JSON within the tier's limits.

use crate::limits::StreamRule;
use crate::openai::request::Ask;
use crate::refusal::Refusal;
use crate::rules::plan::Route;
use bytes::Bytes;
use std::sync::Arc;

/// A body that reads as one unambiguous request of the route's surface.
#[derive(Debug)]
pub struct Parsed {
    /// Where it came in.
    pub route: Arc<Route>,
    /// What it asks.
    pub ask: Ask,
    /// Whether the reply will stream: the body's wish under the route's rule.
    pub stream: bool,
}

/// Reads a body. Any doubt is a 400 with the byte it is at.
pub fn parse(route: Arc<Route>, body: Bytes) -> Result<Parsed, Refusal> {
    let ask = Ask::read(route.surface, body, &route.tier.limits)?;
    let stream = match route.stream {
        StreamRule::Allow => ask.stream,
        StreamRule::Force => true,
        StreamRule::Refuse if ask.stream => {
            return Err(Refusal::BadField { param: "stream".to_owned(), why: "this path does not stream".to_owned() });
        }
        StreamRule::Refuse => false,
    };
    if let (true, Some(param)) = (stream, ask.whole_only) {
        return Err(Refusal::BadField { param: param.to_owned(), why: "cannot be asked of a stream".to_owned() });
    }
    Ok(Parsed { route, ask, stream })
}
