//! Channels on the admin address: `GET /channels`, `POST /channels/{id}/settle`, `POST /channels/{id}/close`.
//!
//! Neither verb can move money anywhere but where the rail's settings say, and never more than was spent. A POST carries the header
//! [`OPERATOR`], which no web page can send here from an operator's browser without being asked first.

use crate::channel::{Channel, ChannelId, Phase};
use crate::clock::UnixSeconds;
use crate::flow::{Toll, closing, settler};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// The header of every POST; its value does not matter.
pub const OPERATOR: &str = "pontage-operator";

/// The answer on a path under `/channels`, or `None` for another path. JSON, for the list one object a line.
pub(super) async fn answer(
    toll: &Arc<Toll>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<(StatusCode, String)> {
    let rest = path.strip_prefix("/channels")?;
    let said = |status, why: &str| Some((status, json!({ "error": why }).to_string() + "\n"));
    if rest.is_empty() {
        return Some(list(toll).await);
    }
    let (id, verb) = rest.strip_prefix('/')?.split_once('/')?;
    if !matches!(verb, "settle" | "close") {
        return None;
    }
    if *method != Method::POST {
        return said(StatusCode::METHOD_NOT_ALLOWED, "POST");
    }
    if !headers.contains_key(OPERATOR) {
        return said(StatusCode::FORBIDDEN, "the header pontage-operator is missing");
    }
    let id = ChannelId(id.to_ascii_lowercase());
    let channel = match toll.channels.read(&id).await {
        Ok(Some(channel)) => channel,
        Ok(None) => return said(StatusCode::NOT_FOUND, "no such channel"),
        Err(_) => return said(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer"),
    };
    let Some(till) = toll.till(&channel.rail) else {
        return said(StatusCode::CONFLICT, "its rail is not configured any more");
    };
    let mut failed = None;
    let sent = match verb {
        "settle" => settler::settle_now(toll, till, &channel).await,
        _ => match closing::close(toll, till, &id).await {
            Ok(_) => true,
            Err(stop) => {
                failed = Some(stop.refusal);
                false
            }
        },
    };
    let channel = toll.channels.read(&id).await.ok().flatten().unwrap_or(channel);
    let mut shown = line(&channel, UnixSeconds::now());
    if let Value::Object(members) = &mut shown {
        members.insert("sent".to_owned(), sent.into());
        if let Some(refusal) = &failed {
            members.insert("error".to_owned(), refusal.code().into());
        }
    }
    let status = if failed.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    Some((status, format!("{shown}\n")))
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
    json!({
        "id": channel.id,
        "rail": channel.rail,
        "payer": channel.descriptor.payer,
        "phase": channel.phase.label(),
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
