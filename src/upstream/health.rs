//! What is done for the pools beside the traffic, by one task for all: active health checks, looking behind names, and a look at
//! who waits (a rest that is over is no event that anybody would tell them of).
//!
//! The probe is ours rather than `HttpHealthCheck` of pingora-load-balancing: that one owns a connector (and its own
//! store of root certificates) per server and is bound to membership by socket address, while our servers are names
//! that move and pools that are swapped under it.

use super::server::{Members, Server};
use super::standing::Moment;
use super::{Pool, Pools};
use arc_swap::ArcSwap;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How often we look whether something is due.
const TICK: Duration = Duration::from_millis(500);
/// A check that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Keeps connections of checks apart from those of traffic: a check must prove that a new connection can be made.
const APART: u64 = 0x6865_616c_7468;

/// Checks every pool that has `health` in its rules and looks who is behind every name, for ever. Follows reloads: it looks
/// at `pools` anew each time. Dropping the future stops what is under way.
pub async fn watch(pools: Arc<ArcSwap<Pools>>) {
    let connector = Arc::new(Connector::new(None));
    let mut checks = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        while checks.try_join_next().is_some() {}
        let now = Moment::now();
        for (_, pool) in pools.load().iter() {
            if pool.look_due(now) {
                let pool = Arc::clone(pool);
                checks.spawn(async move { pool.look().await });
            }
            let members = pool.members.load_full();
            for position in pool.checks_due(&members, now) {
                let (pool, members, connector) = (Arc::clone(pool), Arc::clone(&members), Arc::clone(&connector));
                checks.spawn(async move { pool.check(&members, position, &connector).await });
            }
            pool.line.move_up();
        }
    }
}

impl Pool {
    fn checks_due(&self, members: &Members, now: Moment) -> Vec<usize> {
        let Some(health) = &self.rules.health else { return Vec::new() };
        // Never before the last one has had its time, so two checks of one server do not overlap.
        let every = Duration::from_secs(health.every_seconds).max(PATIENCE + TICK);
        members.servers.iter().enumerate().filter(|(_, s)| s.standing.check_due(now, every)).map(|(i, _)| i).collect()
    }

    /// One check of one server, its result noted.
    async fn check(&self, members: &Members, position: usize, connector: &Connector) {
        let Some(server) = members.servers.get(position) else { return };
        let healthy = tokio::time::timeout(PATIENCE, self.answers(server, connector)).await == Ok(Some(200));
        if server.standing.checked(healthy) {
            self.line.move_up();
            tracing::warn!(pool = %self.rules.name, server = %server.host(), healthy, "health of a server changed");
        }
    }

    /// The status of its health path; `None` when there was none.
    async fn answers(&self, server: &Server, connector: &Connector) -> Option<u16> {
        let health = self.rules.health.as_ref()?;
        let path = format!("{}{}", server.rules.prefix, health.path);
        let mut head = RequestHeader::build("GET", path.as_bytes(), None).ok()?;
        head.insert_header("host", server.host()).ok()?;
        head.insert_header("user-agent", super::USER_AGENT).ok()?;
        if let Some((name, value)) = self.key() {
            head.insert_header(name.clone(), value.clone()).ok()?;
        }
        let mut peer = self.peer(server).await.ok()?;
        peer.group_key = APART;
        let (mut session, _) = connector.get_http_session(&peer).await.ok()?;
        session.write_request_header(Box::new(head)).await.ok()?;
        session.finish_request_body().await.ok()?;
        session.read_response_header().await.ok()?;
        session.response_header().map(|head| head.status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::rules::plan::HealthRules;
    use crate::upstream::pool::tests::{pool, rules};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each connection with the next status; what was asked comes back.
    async fn backend(statuses: &'static [u16]) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buf = vec![0; 4096];
                let n = stream.read(&mut buf).await.unwrap();
                asked.push(String::from_utf8_lossy(&buf[..n]).into_owned());
                stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            }
            asked
        });
        (port, asked)
    }

    #[tokio::test]
    async fn only_200_is_healthy_and_every_check_makes_a_new_connection() {
        let (port, asked) = backend(&[200, 503, 204, 200]).await;
        let mut r = rules(&[(port, 1)]);
        r.health = Some(HealthRules { path: "/health".into(), every_seconds: 5 });
        r.servers[0].prefix = "/base".into();
        let p = pool(r);
        let connector = Connector::new(None);
        for (available, why) in
            [(true, "200"), (true, "one failure is forgiven"), (false, "204 is not 200"), (true, "200 heals")]
        {
            p.check(&p.members.load_full(), 0, &connector).await;
            assert_eq!(p.available(), available, "{why}");
        }
        let asked = asked.await.unwrap();
        assert!(asked[0].starts_with("GET /base/health HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(asked[0].to_lowercase().contains(&format!("host: 127.0.0.1:{port}\r\n")), "{}", asked[0]);
    }

    #[tokio::test]
    async fn the_watch_checks_what_the_rules_ask_for_and_nothing_else() {
        let (port, asked) = backend(&[200]).await;
        let mut r = rules(&[(port, 1)]);
        r.health = Some(HealthRules { path: "/health".into(), every_seconds: 5 });
        let mut unchecked = rules(&[(port, 1)]);
        unchecked.name = "q".into();
        let both = [r, unchecked].map(|r| (r.name.clone(), Arc::new(r)));
        let pools = Pools::build(&both.into_iter().collect(), None).unwrap();
        let watching = tokio::spawn(watch(Arc::new(ArcSwap::from_pointee(pools))));
        assert_eq!(asked.await.unwrap().len(), 1);
        watching.abort();
    }
}
