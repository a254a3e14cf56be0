//! Channels on the admin address: `GET /channels`, `POST /channels/{id}/settle`, `POST /channels/{id}/close`, `POST /channels/{id}/release`.
//!
//! No verb can move money anywhere but where the rail's settings say, and never more than was spent. A POST comes from this machine or shows
//! `secrets.admin_token`: who collects metrics needs this address too, and is not to close channels. It carries the header [`OPERATOR`],
//! which no web page can send here from an operator's browser without being asked first. A page whose name was made to mean
//! this address (DNS rebinding) would not be asked: so whoever asks names an address or `localhost`.

use crate::channel::{Channel, ChannelId, Phase};
use crate::clock::UnixSeconds;
use crate::flow::settler::Wish;
use crate::flow::{Toll, closing, release, settler};
use crate::origin::bare;
use crate::secret::Secret;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

/// The header of every POST; its value does not matter.
pub const OPERATOR: &str = "pontage-operator";

const BEARER: &[u8] = b"Bearer ";

/// The answer on a path under `/channels`, or `None` for another path. JSON, for the list one object a line. Whether the caller is on this
/// machine, and what he shows if he is not, decides about the verbs.
pub(super) async fn answer(
    toll: &Arc<Toll>,
    method: &Method,
    path: &str,
    host: Option<String>,
    headers: &HeaderMap,
    (is_here, token): (bool, Option<&Secret>),
) -> Option<(StatusCode, String)> {
    let rest = path.strip_prefix("/channels")?;
    let said = |status, why: &str| Some((status, json!({ "error": why }).to_string() + "\n"));
    let named = || headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    if !host.or_else(named).is_some_and(|host| is_no_name(&host)) {
        return said(
            StatusCode::FORBIDDEN,
            "ask by an address or localhost: under any other name this is not answered",
        );
    }
    if rest.is_empty() {
        return Some(list(toll).await);
    }
    let (id, verb) = rest.strip_prefix('/')?.split_once('/')?;
    if !matches!(verb, "settle" | "close" | "release") {
        return None;
    }
    if *method != Method::POST {
        return said(StatusCode::METHOD_NOT_ALLOWED, "POST");
    }
    if !headers.contains_key(OPERATOR) {
        return said(StatusCode::FORBIDDEN, "the header pontage-operator is missing");
    }
    if !is_here && !shows(headers, token) {
        return said(
            StatusCode::FORBIDDEN,
            "ask from the gate's own machine, or with secrets.admin_token as a bearer token",
        );
    }
    let id = ChannelId(id.to_ascii_lowercase());
    let channel = match toll.channels.newest(&id).await {
        Ok(Some(channel)) => channel,
        Ok(None) => return said(StatusCode::NOT_FOUND, "no such channel"),
        Err(_) => return said(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer"),
    };
    let Some(till) = toll.till(&channel.rail) else {
        return said(StatusCode::CONFLICT, "its rail is not configured any more");
    };
    let (mut status, mut told, mut error) = (StatusCode::OK, None, None);
    let sent = match verb {
        "settle" => {
            let wish = settler::settle_now(toll, till, &channel).await;
            if matches!(wish, Wish::Failed(_)) {
                (status, error) = (StatusCode::SERVICE_UNAVAILABLE, Some("not_settled"));
            }
            let sent = wish == Wish::Sent;
            told = match wish {
                Wish::Sent => None,
                Wish::Nothing(why) | Wish::Failed(why) => Some(why),
            };
            sent
        }
        verb => {
            let done = match verb {
                "close" => closing::close(toll, till, &id).await.map(drop),
                _ => release::release(toll, till, &id).await.map(drop),
            };
            if let Err(stop) = &done {
                (status, error) = (StatusCode::CONFLICT, Some(stop.refusal.code()));
            }
            verb == "close" && done.is_ok()
        }
    };
    let channel = toll.channels.newest(&id).await.ok().flatten().unwrap_or(channel);
    let mut shown = line(&channel, UnixSeconds::now());
    if let Value::Object(members) = &mut shown {
        members.insert("sent".to_owned(), sent.into());
        if let Some(code) = error {
            members.insert("error".to_owned(), code.into());
        }
        if let Some(why) = told {
            members.insert("why".to_owned(), why.into());
        }
    }
    Some((status, format!("{shown}\n")))
}

/// Whether a peer is on this machine: on loopback, or at the very address that it asks.
pub(super) fn is_here(peer: IpAddr, own: Option<IpAddr>) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || own.is_some_and(|own| own.to_canonical() == peer)
}

/// Whether `token` is shown, in a time that tells nothing about it. Where there is none, nobody can.
fn shows(headers: &HeaderMap, token: Option<&Secret>) -> bool {
    let shown = headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
    let shown = shown.and_then(|shown| shown.split_at_checked(BEARER.len()));
    let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER)).map(|(_, shown)| Secret::new(shown));
    token.is_some_and(|token| shown.as_ref() == Some(token))
}

/// Whether a host, with or without a port, is an address or `localhost`: nobody else can make either mean us.
fn is_no_name(host: &str) -> bool {
    let alone = |host: &str| {
        let bare = bare(host);
        bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    };
    alone(host) || host.rsplit_once(':').is_some_and(|(host, port)| port.parse::<u16>().is_ok() && alone(host))
}

async fn list(toll: &Toll) -> (StatusCode, String) {
    let now = UnixSeconds::now();
    match toll.store.channels().await {
        Ok(channels) => (StatusCode::OK, channels.iter().map(|c| format!("{}\n", line(c, now))).collect()),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": "the store does not answer" }).to_string()),
    }
}

/// One channel, amounts in atoms of its asset.
fn line(channel: &Channel, now: UnixSeconds) -> Value {
    let tx = match &channel.phase {
        Phase::Closed { tx } => tx.clone(),
        _ => channel.our_tx.as_ref().map(|intent| intent.tx.clone()),
    };
    let why = match &channel.phase {
        Phase::Quarantined { why } => Some(why),
        _ => None,
    };
    json!({
        "id": channel.id,
        "rail": channel.rail,
        "payer": channel.descriptor.payer,
        "phase": channel.phase.label(),
        "why": why,
        "deposit": channel.view.deposit,
        "accepted": channel.accepted(),
        "spent": channel.spent(),
        "leased": channel.leased(),
        "settled": channel.view.settled,
        "unsettled": channel.unsettled(),
        "requests": channel.leases.len(),
        "tx": tx,
        "age_seconds": now.0.saturating_sub(channel.opened_at.0),
        "idle_seconds": now.0.saturating_sub(channel.touched_at.0),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn who_is_on_this_machine_or_shows_the_token_may_act_on_channels_and_nobody_else() {
        for (peer, own, want, why) in [
            ("127.0.0.1", "127.0.0.1", true, "loopback"),
            ("::1", "::1", true, "the same in IPv6"),
            ("::ffff:127.0.0.1", "::", true, "on a socket of both families"),
            ("10.0.0.5", "10.0.0.5", true, "a gate that listens on one address is asked from it"),
            ("10.0.0.6", "10.0.0.5", false, "a machine that collects metrics"),
            ("172.17.0.1", "172.17.0.2", false, "whoever comes through a published port"),
        ] {
            assert_eq!(is_here(peer.parse().unwrap(), Some(own.parse().unwrap())), want, "{why}");
        }
        let token = Secret::new("a-token-of-thirty-two-characters");
        for (sent, want, why) in [
            (Some("Bearer a-token-of-thirty-two-characters"), true, "as it is"),
            (Some("bearer a-token-of-thirty-two-characters"), true, "a scheme has no case"),
            (Some("Bearer a-token-of-thirty-two-character"), false, "too short"),
            (Some("Bearer A-token-of-thirty-two-characters"), false, "another"),
            (Some("Basic a-token-of-thirty-two-characters"), false, "another scheme"),
            (Some("a-token-of-thirty-two-characters"), false, "none"),
            (Some("Bearer "), false, "nothing"),
            (None, false, "nobody"),
        ] {
            let headers = sent.map(|sent| (header::AUTHORIZATION, sent.parse().unwrap()));
            let headers = HeaderMap::from_iter(headers);
            assert_eq!(shows(&headers, Some(&token)), want, "{why}");
            assert!(!shows(&headers, None), "{why}, and there is none to show");
        }
    }

    #[test]
    fn only_an_address_or_localhost_is_asked_about_channels() {
        for (host, want, why) in [
            ("127.0.0.1:9402", true, "as `pontage channels` asks"),
            ("127.0.0.1", true, "without a port"),
            ("10.0.0.5:9402", true, "an address of the inner network: no page of another origin has it"),
            ("[::1]:9402", true, "IPv6"),
            ("::1", true, "the same, as a URL's host is taken out"),
            ("localhost:9402", true, "this machine"),
            ("LOCALHOST", true, "in capitals"),
            ("evil.example:9402", false, "a name that somebody makes mean this address"),
            ("127.0.0.1.evil.example", false, "the same, dressed up"),
            ("localhost.evil.example:9402", false, "the same"),
            ("evil.example:127.0.0.1", false, "no port"),
            ("", false, "nobody"),
        ] {
            assert_eq!(is_no_name(host), want, "{why}");
        }
    }
}
