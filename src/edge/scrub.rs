//! Which headers cross the gate. Two short lists of what may; everything else stays on its side.
//!
//! Lists of what may not would have to know every header a backend or a client can invent: payment words, forwarded
//! addresses, cookies, account names of the operator. A header on a list still stays when the `Connection` header nominates
//! it (RFC 9110 §7.6.1).

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// From a client to a backend. Everything else the backend sees is ours: host, length, key, user agent, encoding.
pub const TO_BACKEND: [HeaderName; 1] = [header::ACCEPT];

/// From a backend to a client. Not here on purpose: `cache-control` (a paid reply is never cacheable by what a backend
/// says), `x-request-id` (the gate has its own), `x-ratelimit-*` and `openai-organization` (about the operator's account,
/// not the payer's), `openai-model` (the upstream name).
pub const TO_CLIENT: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("openai-processing-ms"),
    HeaderName::from_static("openai-version"),
];

/// What of a client's headers a backend may see.
pub fn to_backend(from: &HeaderMap) -> HeaderMap {
    pass(from, &TO_BACKEND)
}

/// What of a backend's headers a client may see.
pub fn to_client(from: &HeaderMap) -> HeaderMap {
    pass(from, &TO_CLIENT)
}

fn pass(from: &HeaderMap, list: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in list.iter().filter(|name| !nominated(from, name)) {
        for value in from.get_all(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

fn nominated(from: &HeaderMap, name: &HeaderName) -> bool {
    from.get_all(header::CONNECTION)
        .iter()
        .flat_map(|value: &HeaderValue| value.as_bytes().split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Headers that must stay on their side in both directions, each with whom it would hurt.
    pub(crate) const NEVER: [&str; 34] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "www-authenticate",
        "proxy-authenticate",
        "authentication-info",
        "alt-svc",
        "server",
        "x-powered-by",
        "via",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "content-encoding",
        "host",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-payment",
        "x-payment-response",
        "payment-signature",
        "payment-response",
        "payment-receipt",
        "x-payer",
        "openai-organization",
        "location",
    ];

    #[test]
    fn nothing_that_pays_names_or_reroutes_crosses_in_either_direction() {
        let mut all = HeaderMap::new();
        for name in NEVER {
            all.insert(HeaderName::from_static(name), HeaderValue::from_static("canary"));
        }
        all.insert("accept", HeaderValue::from_static("text/event-stream"));
        all.insert("content-type", HeaderValue::from_static("application/json"));
        assert_eq!(to_backend(&all).keys().collect::<Vec<_>>(), ["accept"]);
        assert_eq!(to_client(&all).keys().collect::<Vec<_>>(), ["content-type"]);
    }

    #[test]
    fn a_header_that_connection_nominates_belongs_to_the_hop() {
        for (connection, kept, why) in [
            ("keep-alive", true, "not named"),
            ("close, Content-Type", false, "named, any case"),
            ("content-type-x", true, "another name"),
        ] {
            let mut from = HeaderMap::new();
            from.insert("content-type", HeaderValue::from_static("application/json"));
            from.insert("connection", HeaderValue::from_str(connection).unwrap());
            assert_eq!(to_client(&from).contains_key("content-type"), kept, "{why}");
        }
    }
}
