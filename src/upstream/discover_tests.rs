#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::ids::PoolName;
use crate::rules::plan::{self, PoolRules};
use crate::upstream::pool::tests::{rules, running};
use crate::upstream::standing::Moment;
use crate::upstream::{Affinity, Pool, Pools};
use std::collections::BTreeMap;

/// Answers what the test says.
#[derive(Default)]
struct Told(Mutex<Option<Vec<&'static str>>>);

impl Told {
    fn say(&self, addresses: &[&'static str]) {
        *self.0.lock().unwrap() = Some(addresses.to_vec());
    }

    fn fail(&self) {
        *self.0.lock().unwrap() = None;
    }
}

#[async_trait]
impl Resolve for Told {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(host, "gpu.example");
        let found = self.0.lock().unwrap().clone().ok_or(io::ErrorKind::NotFound)?;
        Ok(found.into_iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect())
    }
}

fn named() -> PoolRules {
    let mut r = rules(&[(8443, 1)]);
    r.discovery = plan::Discovery::Dns;
    r.servers[0].host = "gpu.example".into();
    r.servers[0].tls = true;
    r
}

fn build(rules: PoolRules, previous: Option<&Pools>, told: &Arc<Told>) -> (Pools, Arc<Pool>) {
    let resolver: Arc<dyn Resolve> = Arc::<Told>::clone(told);
    let name = PoolName::from("p");
    let pools = Pools::build_with(&BTreeMap::from([(name.clone(), Arc::new(rules))]), previous, &resolver).unwrap();
    let pool = Arc::clone(pools.get(&name).unwrap());
    (pools, pool)
}

fn addresses(pool: &Pool) -> Vec<String> {
    pool.status().iter().map(|s| s.address.unwrap().to_string()).collect()
}

#[tokio::test]
async fn every_address_behind_a_name_is_a_server_that_is_still_called_by_the_name() {
    let told = Arc::new(Told::default());
    let (pools, pool) = build(named(), None, &told);
    assert!(!pool.available(), "nobody has looked yet");
    told.say(&["192.0.2.2", "192.0.2.1", "2001:db8::1", "192.0.2.1"]);
    pools.first_look().await;
    assert_eq!(addresses(&pool), ["192.0.2.1:8443", "192.0.2.2:8443", "[2001:db8::1]:8443"]);
    let held: Vec<_> = (0..3).map(|_| pool.pick(Affinity::NONE, &[]).unwrap()).collect();
    assert_eq!(running(&pool), [1, 1, 1]);
    for picked in &held {
        let peer = picked.peer().await.unwrap();
        assert_eq!((picked.host().as_str(), peer.sni.as_str()), ("gpu.example:8443", "gpu.example"));
        assert!(addresses(&pool).contains(&peer._address.to_string()));
    }
}

#[tokio::test]
async fn whoever_stays_keeps_everything_and_whoever_leaves_finishes_what_it_has() {
    let told = Arc::new(Told::default());
    told.say(&["192.0.2.1", "192.0.2.2"]);
    let (pools, pool) = build(named(), None, &told);
    pools.first_look().await;
    let [one, two] = [[1], [0]].map(|tried| pool.pick(Affinity::NONE, &tried).unwrap());
    two.connect_failed();
    told.say(&["192.0.2.2", "192.0.2.3"]);
    pool.look().await;
    assert_eq!(addresses(&pool), ["192.0.2.2:8443", "192.0.2.3:8443"]);
    let state: Vec<_> = pool.status().iter().map(|s| (s.in_flight, s.usable)).collect();
    assert_eq!(state, [(1, false), (0, true)]);
    assert_eq!(one.peer().await.unwrap()._address.to_string(), "192.0.2.1:8443", "it goes on where it was");
    let fresh = pool.pick(Affinity::NONE, &[one.index(), two.index()]).unwrap();
    assert_eq!(fresh.index(), 2, "a newcomer is not taken for one that was tried");
    drop((one, two));
    assert_eq!(pool.status()[1].ejections, 1, "the name has one count");

    let mut patient = named();
    patient.timeouts.idle_seconds = 7;
    told.fail();
    let (_, reloaded) = build(patient, Some(&pools), &told);
    assert_eq!(addresses(&reloaded), addresses(&pool), "a reload begins with those that were known");
    assert_eq!(running(&reloaded), [0, 1]);
    told.say(&["192.0.2.3", "192.0.2.4"]);
    reloaded.look().await;
    assert_eq!((addresses(&reloaded).len(), running(&reloaded)), (2, vec![1, 0]));
    let first = reloaded.pick(Affinity::NONE, &[]).unwrap();
    let other = reloaded.pick(Affinity::NONE, &[first.index()]).unwrap();
    assert_ne!(first.index(), other.index(), "two servers, two indexes");
    assert!(reloaded.pick(Affinity::NONE, &[first.index(), other.index()]).is_none());
}

#[tokio::test]
async fn a_resolver_that_fails_or_finds_nobody_leaves_the_last_servers() {
    let told = Arc::new(Told::default());
    let (pools, pool) = build(named(), None, &told);
    pools.first_look().await;
    assert!(!pool.available(), "never found");
    told.say(&["192.0.2.1"]);
    pool.look().await;
    for (problem, why) in
        [(None, "an error"), (Some(vec![]), "no address"), (Some(vec!["169.254.169.254"]), "metadata")]
    {
        *told.0.lock().unwrap() = problem;
        pool.look().await;
        assert_eq!(addresses(&pool), ["192.0.2.1:8443"], "{why}");
    }
    told.say(&["fe80::1", "0.0.0.0", "::ffff:169.254.169.254", "192.0.2.9"]);
    pool.look().await;
    assert_eq!(addresses(&pool), ["192.0.2.9:8443"], "only those that are servers");
}

#[tokio::test]
async fn another_name_does_not_begin_with_the_servers_of_the_old_one() {
    let told = Arc::new(Told::default());
    told.say(&["192.0.2.1"]);
    let (pools, _) = build(named(), None, &told);
    pools.first_look().await;
    let mut moved = named();
    moved.servers[0].port = 9443;
    let (again, pool) = build(moved, Some(&pools), &told);
    assert!(pool.status().is_empty());
    again.first_look().await;
    assert_eq!(addresses(&pool), ["192.0.2.1:9443"]);
}

#[test]
fn a_name_is_asked_for_every_five_seconds() {
    let discovery = Discovery::of(&named().servers[0], Arc::new(System));
    let now = Moment::now();
    assert!(discovery.due(now) && !discovery.due(now.after(Duration::from_millis(4_999))));
    assert!(discovery.due(now.after(EVERY)));
}

#[tokio::test]
async fn the_machines_own_resolver_finds_localhost() {
    let mut r = rules(&[(9, 1)]);
    r.discovery = plan::Discovery::Dns;
    r.servers[0].host = "localhost".into();
    let pools = Pools::build(&BTreeMap::from([(r.name.clone(), Arc::new(r))]), None).unwrap();
    pools.first_look().await;
    let pool = pools.get(&PoolName::from("p")).unwrap();
    assert!(pool.available() && pool.status().iter().all(|s| s.address.unwrap().ip().is_loopback()));
}
