//! `/metrics`, `/healthz`, `/readyz`, `/status`, `/channels` on an address of their own.

mod channels;
mod ready;

pub use channels::OPERATOR;

use super::door::Guests;
use crate::clock::UnixSeconds;
use crate::flow::Toll;
use crate::flow::loss::Losses;
use crate::ids::{PoolName, RailId};
use crate::rail::Way;
use crate::rules::Plan;
use crate::secret::Secret;
use crate::upstream::{PoolStatus, Pools, ServerStatus};
use async_trait::async_trait;
use http::{Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The admin application.
pub struct Admin {
    /// What it tells about.
    pub toll: Arc<Toll>,
    /// Set when the gate has been told to stop: it may still let people in.
    pub leaving: Arc<AtomicBool>,
    /// Who is inside: a request that is being answered is not late.
    pub guests: Arc<Guests>,
    /// Public key of receipts, for whoever verifies them.
    pub receipt_key: String,
    /// The address that it listens at.
    pub listens: IpAddr,
    /// Whoever shows it may act on channels from elsewhere than this machine.
    pub token: Option<Secret>,
}

impl Admin {
    /// Why paid traffic would not be served now; empty when it would.
    pub fn unready(&self) -> Vec<String> {
        let stopping = self.leaving.load(Ordering::Relaxed).then(|| "stopping".to_owned());
        stopping.into_iter().chain(self.obstacles()).collect()
    }

    /// The same, if it is not that it was told to stop: nobody is to be woken for that, however long its grace is.
    fn obstacles(&self) -> Vec<String> {
        let mut why = Vec::new();
        if let Err(e) = self.toll.store.standing() {
            why.push(format!("store: {e}"));
        }
        let plan = self.toll.rules.plan();
        let pools = self.toll.pools.load();
        let standing = |rail: &RailId| self.toll.way(rail).map_or(Err("not configured".to_owned()), Way::standing);
        why.extend(ready::obstacles(&plan, standing, |model, surface| {
            pools.available_for(&model.pool, surface, false, 1, |pool| model.upstream_in(pool))
        }));
        why
    }

    /// Every way to pay, by the call and by the token.
    fn ways(&self) -> impl Iterator<Item = &dyn Way> {
        let fixed = self.toll.rails.iter().map(|rail| -> &dyn Way { rail.as_ref() });
        fixed.chain(self.toll.tills.iter().map(|till| -> &dyn Way { till.rail.as_ref() }))
    }

    /// A rail that no route accepts is nobody's concern: it has no value at all.
    fn measure(&self) {
        let (plan, metrics) = (self.toll.rules.plan(), &self.toll.metrics);
        let sold = ready::sold(&plan);
        for way in self.ways() {
            if sold.contains(way.id()) {
                metrics.rail_up.with_label_values(&[way.id().as_str()]).set(i64::from(way.standing().is_ok()));
            } else {
                // It was not there, most of the time.
                let _ = metrics.rail_up.remove_label_values(&[way.id().as_str()]);
            }
        }
        // Shown before they first count: a counter that appears with its first loss would hide that loss from `increase`.
        for rail in &self.toll.rails {
            metrics.delivered_unpaid_usd.with_label_values(&[rail.id().as_str()]);
        }
        for till in &self.toll.tills {
            metrics.session_loss_usd.with_label_values(&[till.rail.id().as_str()]);
        }
        let now = UnixSeconds::now();
        let absorbing = plan.tiers.values().filter_map(|tier| {
            let (_, per_day) = tier.absorbs()?;
            Some((tier.name.as_str(), per_day, self.toll.losses.left(&tier.name, now, per_day)))
        });
        metrics.set_absorbing(&absorbing.collect::<Vec<_>>());
        metrics.ready.set(i64::from(self.obstacles().is_empty()));
        metrics.store_up.set(i64::from(self.toll.store.standing().is_ok()));
        metrics.store_unsafe.set(i64::from(self.toll.store.accepts_data_loss()));
    }

    /// What operators carry in tiers that absorb, by the day (UTC): the store's figure, which gates of one store share.
    async fn losses(&self, plan: &Plan) -> Vec<Value> {
        let now = UnixSeconds::now();
        let mut tiers = Vec::new();
        for tier in plan.tiers.values() {
            if let Some((per_call, per_day)) = tier.absorbs() {
                let lost = self.toll.store.tally(&Losses::tally_name(&tier.name), now.day()).await.ok();
                tiers.push(json!({
                    "tier": tier.name,
                    "lost_today_usd": lost,
                    "loss_cap_per_day": per_day,
                    "loss_cap_per_call": per_call,
                    "capped": lost.map(|lost| lost >= per_day),
                }));
            }
        }
        tiers
    }

    async fn status(&self) -> String {
        let plan = self.toll.rules.plan();
        let rules = self.toll.rules.standing();
        let pools = self.toll.pools.load();
        let sold = ready::sold(&plan);
        let rail = |way: &dyn Way| {
            let standing = way.standing();
            let mut said = json!({ "rail": way.id(), "sold": sold.contains(way.id()), "offered": standing.is_ok(), "why_not": standing.err() });
            if let Some(node) = way.node() {
                said["node"] = json!({ "answers": node.is_ok(), "why_not": node.err() });
            }
            said
        };
        let rails: Vec<_> = self.ways().map(rail).collect();
        let pools: Vec<_> = plan.pools.keys().map(|name| pool(name, &pools)).collect();
        let ready = self.unready();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": ready.is_empty(),
            "why_not": ready,
            "rules": {
                "generation": plan.generation,
                "loaded_at": rules.loaded_at.rfc3339(),
                "reloads_ok": rules.reloads_ok,
                "reloads_failed": rules.reloads_failed,
                "mistakes": rules.last_error,
            },
            "rails": rails,
            "pools": pools,
            "absorbing_tiers": self.losses(&plan).await,
            "store": { "accept_data_loss": self.toll.store.accepts_data_loss() },
            "vocabularies_loaded": crate::tokens::loaded(),
            "receipt_key": self.receipt_key,
        })
        .to_string()
    }
}

/// `available` is that of offers: the pool's own, or that of one it falls back to.
fn pool(name: &PoolName, pools: &Pools) -> Value {
    let Some(found) = pools.get(name) else { return json!({ "pool": name, "available": false }) };
    let PoolStatus { available, waiting, waits, refused, servers } = found.overview();
    let server = |s: ServerStatus| {
        json!({
            "server": s.name,
            "address": s.address,
            "group": s.group,
            "usable": s.usable,
            "why_not": s.why_not,
            "models_resting": s.resting_models,
            "in_flight": s.in_flight,
            "max_concurrent": s.max_concurrent,
            "first_byte_ms": s.first_byte_micros.map(|micros| micros / 1000),
            "ejections": s.ejections,
            "key_alarms": s.key_alarms,
            "usage_alarms": s.usage_alarms,
        })
    };
    json!({
        "pool": name,
        "available": pools.available(name),
        "itself": available,
        "fallback": found.fallback(),
        "waiting": waiting,
        "waits": waits,
        "refused": refused,
        "servers": servers.into_iter().map(server).collect::<Vec<_>>(),
    })
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let peer = session.client_addr().and_then(|address| address.as_inet()).copied();
        if let Some(peer) = peer {
            self.guests.head_seen(peer);
        }
        let (listens, token) = (self.listens, self.token.as_ref());
        let caller = channels::Caller { peer: peer.map(|peer| peer.ip()), listens, token };
        let head = session.req_header();
        let (path, method, sent) = (head.uri.path().to_owned(), head.method.clone(), head.headers.clone());
        let host = head.uri.host().map(str::to_owned);
        let (status, kind, body) = match path.as_str() {
            "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => match self.unready() {
                why if why.is_empty() => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
                why => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", why.join("\n") + "\n"),
            },
            "/status" => (StatusCode::OK, "application/json", self.status().await),
            "/metrics" => {
                self.measure();
                (StatusCode::OK, "text/plain; version=0.0.4", self.toll.metrics.text())
            }
            path => match channels::answer(&self.toll, &method, path, host, &sent, &caller).await {
                Some((status, body)) => (status, "application/json", body),
                None => (StatusCode::NOT_FOUND, "text/plain", "no such path\n".to_owned()),
            },
        };
        if let Some(peer) = peer {
            self.guests.answered(peer);
        }
        let mut response = Response::new(body.into_bytes());
        *response.status_mut() = status;
        let length = response.body().len();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        headers.insert(header::CONTENT_LENGTH, http::HeaderValue::from(length));
        response
    }
}
