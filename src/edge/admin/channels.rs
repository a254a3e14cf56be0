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

/// Who asks, and what of the settings decides whether he may act.
pub(super) struct Caller<'a> {
    /// His address.
    pub peer: Option<IpAddr>,
    /// Where the admin address listens.
    pub listens: IpAddr,
    /// Whoever shows it may act from anywhere.
    pub token: Option<&'a Secret>,
}

impl Caller<'_> {
    /// From loopback always; else with the token where there is one, and where there is none from the one address that is listened at. Where
    /// every address is, the own one says nothing: a forwarder of ports (rootless podman's) lends it to strangers.
    fn may_act(&self, headers: &HeaderMap) -> bool {
        let peer = self.peer.map(|peer| peer.to_canonical());
        let listens = self.listens.to_canonical();
        match self.token {
            _ if peer.is_some_and(|peer| peer.is_loopback()) => true,
            Some(token) => shows(headers, token),
            None => !listens.is_unspecified() && peer == Some(listens),
        }
    }
}

/// What is wanted of a path under `/channels`.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    List,
    Act { id: &'a str, verb: &'a str },
}

/// What is wanted, if he who asks may have it; else why not. `None`: no such path. `rest`: what comes behind `/channels`.
fn wanted<'a>(
    method: &Method,
    rest: &'a str,
    host: Option<&str>,
    headers: &HeaderMap,
    caller: &Caller<'_>,
) -> Option<Result<Wanted<'a>, (StatusCode, &'static str)>> {
    let refused = |status, why| Some(Err((status, why)));
    let named = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.or_else(named).is_some_and(is_no_name) {
        return refused(
            StatusCode::FORBIDDEN,
            "ask by an address or localhost: under any other name this is not answered",
        );
    }
    if rest.is_empty() {
        return Some(Ok(Wanted::List));
    }
    let (id, verb) = rest.strip_prefix('/')?.split_once('/')?;
    if !matches!(verb, "settle" | "close" | "release") {
        return None;
    }
    if *method != Method::POST {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "POST");
    }
    if !headers.contains_key(OPERATOR) {
        return refused(StatusCode::FORBIDDEN, "the header pontage-operator is missing");
    }
    if !caller.may_act(headers) {
        return refused(
            StatusCode::FORBIDDEN,
            "ask from the gate's own machine, or with secrets.admin_token as a bearer token",
        );
    }
    Some(Ok(Wanted::Act { id, verb }))
}

/// The answer on a path under `/channels`, or `None` for another path. JSON, for the list one object a line.
pub(super) async fn answer(
    toll: &Arc<Toll>,
    method: &Method,
    path: &str,
    host: Option<String>,
    headers: &HeaderMap,
    caller: &Caller<'_>,
) -> Option<(StatusCode, String)> {
    let rest = path.strip_prefix("/channels")?;
    let said = |status, why: &str| Some((status, json!({ "error": why }).to_string() + "\n"));
    let (id, verb) = match wanted(method, rest, host.as_deref(), headers, caller)? {
        Ok(Wanted::List) => return Some(list(toll).await),
        Ok(Wanted::Act { id, verb }) => (id, verb),
        Err((status, why)) => return said(status, why),
    };
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

/// Whether `token` is shown, in a time that tells nothing about it.
fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let shown = headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
    let shown = shown.and_then(|shown| shown.split_at_checked(BEARER.len()));
    let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER)).map(|(_, shown)| Secret::new(shown));
    shown.as_ref() == Some(token)
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

    const TOKEN: &str = "a-token-of-thirty-two-characters";

    /// What a POST to a channel gets: 200 where it may act.
    fn asked(peer: &str, listens: &str, token: Option<&Secret>, sent: Option<&str>) -> u16 {
        let sent = sent.map(|sent| (header::AUTHORIZATION, sent.parse().unwrap()));
        let mut headers = HeaderMap::from_iter(sent);
        headers.insert(OPERATOR, "x".parse().unwrap());
        let caller = Caller { peer: Some(peer.parse().unwrap()), listens: listens.parse().unwrap(), token };
        match wanted(&Method::POST, "/0xaa/close", Some("10.0.0.5:9402"), &headers, &caller).unwrap() {
            Ok(wanted) => {
                assert_eq!(wanted, Wanted::Act { id: "0xaa", verb: "close" });
                200
            }
            Err((status, _)) => status.as_u16(),
        }
    }

    #[test]
    fn who_is_on_this_machine_or_shows_the_token_may_act_on_channels_and_nobody_else() {
        let token = Secret::new(TOKEN);
        let bearer = format!("Bearer {TOKEN}");
        for (peer, listens, without, with, why) in [
            ("127.0.0.1", "127.0.0.1", 200, 200, "loopback"),
            ("::1", "::1", 200, 200, "the same in IPv6"),
            ("::ffff:127.0.0.1", "::", 200, 200, "on a socket of both families"),
            ("127.0.0.1", "0.0.0.0", 200, 200, "loopback of a gate that listens everywhere"),
            ("10.0.0.5", "10.0.0.5", 200, 403, "a gate that listens on one address is asked from it"),
            ("::ffff:10.0.0.5", "10.0.0.5", 200, 403, "the same"),
            ("10.0.0.5", "0.0.0.0", 403, 403, "it listens everywhere: a forwarder may have lent its address"),
            ("10.0.0.5", "::", 403, 403, "the same in IPv6"),
            ("0.0.0.0", "0.0.0.0", 403, 403, "no address at all"),
            ("10.0.0.6", "10.0.0.5", 403, 403, "a machine that collects metrics"),
            ("172.17.0.1", "172.17.0.2", 403, 403, "whoever comes through a published port"),
        ] {
            assert_eq!(asked(peer, listens, None, None), without, "{why}: no token is set");
            assert_eq!(asked(peer, listens, None, Some(&bearer)), without, "{why}: none is set, one is shown");
            assert_eq!(asked(peer, listens, Some(&token), None), with, "{why}: one is set, none is shown");
            assert_eq!(asked(peer, listens, Some(&token), Some("Bearer x")), with, "{why}: another is shown");
            assert_eq!(asked(peer, listens, Some(&token), Some(&bearer)), 200, "{why}: it is shown");
        }
        for (sent, want, why) in [
            ("Bearer a-token-of-thirty-two-characters", 200, "as it is"),
            ("bearer a-token-of-thirty-two-characters", 200, "a scheme has no case"),
            ("Bearer a-token-of-thirty-two-character", 403, "too short"),
            ("Bearer A-token-of-thirty-two-characters", 403, "another"),
            ("Basic a-token-of-thirty-two-characters", 403, "another scheme"),
            ("a-token-of-thirty-two-characters", 403, "none"),
            ("Bearer ", 403, "nothing"),
        ] {
            assert_eq!(asked("10.0.0.6", "10.0.0.5", Some(&token), Some(sent)), want, "{why}");
        }
    }

    #[test]
    fn a_verb_needs_its_header_and_post_and_the_list_neither() {
        let here =
            Caller { peer: Some("127.0.0.1".parse().unwrap()), listens: "127.0.0.1".parse().unwrap(), token: None };
        let far = Caller { peer: Some("10.0.0.6".parse().unwrap()), ..here };
        let bare = HeaderMap::new();
        let operator = HeaderMap::from_iter([(http::HeaderName::from_static(OPERATOR), "x".parse().unwrap())]);
        let list = Some(Ok(Wanted::List));
        let refused = |status: u16| Some(Err(status));
        for (method, rest, host, headers, caller, want, why) in [
            (Method::GET, "", "127.0.0.1", &bare, &far, list, "the list is for whoever reaches it"),
            (Method::GET, "", "evil.example", &bare, &here, refused(403), "but not under a name"),
            (Method::POST, "/0xaa/close", "evil.example", &operator, &here, refused(403), "no verb either"),
            (Method::GET, "/0xaa/close", "127.0.0.1", &operator, &here, refused(405), "GET"),
            (Method::POST, "/0xaa/close", "127.0.0.1", &bare, &here, refused(403), "a page of an operator's browser"),
            (Method::POST, "/0xaa/burn", "127.0.0.1", &operator, &here, None, "no such verb"),
        ] {
            let got = wanted(&method, rest, Some(host), headers, caller).map(|got| got.map_err(|(s, _)| s.as_u16()));
            assert_eq!(got, want, "{why}");
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
