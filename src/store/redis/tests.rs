//! The fleet's store on a real `redis-server` of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::claim::{Op, Standing, sample};
use crate::journal::Entry;
use crate::money::Atoms;
use crate::store::conformance::{self, Bench};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SAFE: [&str; 8] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--no-appendfsync-on-rewrite",
    "no",
    "--maxmemory-policy",
    "noeviction",
];

/// A `redis-server` in a directory, ended by its process id.
struct Server {
    dir: TempDir,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    fn with(settings: &[&str]) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let server = Self { dir: tempfile::tempdir().unwrap(), port, child: Mutex::new(None) };
        server.start(settings);
        server
    }

    fn start(&self, settings: &[&str]) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--dir", self.dir.path().to_str().unwrap()])
            .args(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is missing: install Debian's redis-server (testbed/setup does where it may)");
        *self.child.lock().unwrap() = Some(child);
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(std::time::Instant::now() < end, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL.
    fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    async fn open(&self, journal: &str) -> Result<Redis, StoreError> {
        self.open_at(self.port, journal, false).await
    }

    async fn open_at(&self, port: u16, journal: &str, accept_data_loss: bool) -> Result<Redis, StoreError> {
        let url = Secret::new(format!("redis://127.0.0.1:{port}/"));
        // A server that was just started may be reading its log.
        for _ in 0..200 {
            match Redis::open(&Settings { url: url.clone(), accept_data_loss }, &self.dir.path().join(journal)).await {
                Err(error) if error.0.contains("BUSY") || error.0.contains("loading") => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
        panic!("redis-server goes on loading");
    }
}

impl Bench for Server {
    fn fresh() -> Self {
        Self::with(&SAFE)
    }
    fn open(&self) -> Arc<dyn Store> {
        let opening = self.open("journal.redb");
        Arc::new(tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(opening)).unwrap())
    }
}

/// Who serves a request, as claims have it.
fn server_of(store: &Redis, request: &str) -> String {
    format!("{}/{request}", store.gate())
}

fn put(claim: &Claim) -> Write {
    Write { claim: Some(claim.clone()), ..Write::default() }
}

async fn until<F: Future<Output = bool>>(mut probe: impl FnMut() -> F) {
    let end = std::time::Instant::now() + Duration::from_secs(15);
    while !probe().await {
        assert!(std::time::Instant::now() < end, "it did not come true in 15 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_what_every_store_promises() {
    conformance::all::<Server>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_gates_one_wins_each_revision_and_hears_so() {
    let server = Server::with(&SAFE);
    let mut gates = Vec::new();
    for n in 0..8 {
        gates.push(Arc::new(server.open(&format!("gate{n}.redb")).await.unwrap()));
    }
    let mut claim = sample::claim("k", 100);
    gates[0].commit(put(&claim)).await.unwrap();
    for round in 0..12 {
        let tries = gates.iter().enumerate().map(|(n, gate)| {
            let (gate, from) = (Arc::clone(gate), claim.clone());
            tokio::spawn(async move {
                let Standing::Claimed { by } = from.standing.clone() else { panic!() };
                let next =
                    from.apply(Op::TakeOver { from: by, by: format!("{round}-{n}") }, UnixSeconds(1_010)).unwrap();
                (gate.commit(put(&next)).await.unwrap(), next)
            })
        });
        let mut won = Vec::new();
        for attempt in tries.collect::<Vec<_>>() {
            match attempt.await.unwrap() {
                (Swap::Done, next) => won.push(next),
                (Swap::Lost(now), _) => assert!(now.is_some(), "the loser is told what is there now"),
                (other, _) => panic!("{other:?}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        claim = won.remove(0);
        assert_eq!(gates[7].claim(&claim.key).await.unwrap(), Some(claim.clone()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_survives_the_death_of_redis_and_nothing_is_offered_meanwhile() {
    let server = Server::with(&SAFE);
    let store = server.open("journal.redb").await.unwrap();
    let claims: Vec<Claim> = (0..50).map(|n| sample::claim(&format!("k{n}"), 100)).collect();
    for claim in &claims {
        assert_eq!(store.commit(put(claim)).await, Ok(Swap::Done));
    }
    server.kill();
    assert!(store.commit(put(&sample::claim("late", 100))).await.is_err(), "not known is never said to be done");
    assert!(store.standing().unwrap_err().0.contains("does not answer"));
    assert!(store.claim(&claims[0].key).await.is_err(), "nor is a record that cannot be read said to be absent");
    server.start(&SAFE);
    until(|| async { store.standing().is_ok() }).await;
    for claim in &claims {
        assert_eq!(store.claim(&claim.key).await.unwrap().as_ref(), Some(claim), "it mends itself");
    }
    let next = claims[0].apply(Op::PayUnserved { transaction: None }, UnixSeconds(1_010)).unwrap();
    assert_eq!(store.commit(put(&next)).await, Ok(Swap::Done), "and goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_would_lose_what_it_confirms_is_refused_by_name() {
    for (settings, says) in [
        (vec!["--appendonly", "no"], "appendonly is no and must be yes"),
        (vec!["--appendonly", "yes", "--appendfsync", "everysec"], "appendfsync is everysec and must be always"),
        (
            [SAFE.as_slice(), &["--maxmemory-policy", "allkeys-lru"]].concat(),
            "maxmemory-policy is allkeys-lru and must be noeviction",
        ),
    ] {
        let server = Server::with(&settings);
        let refused = server.open("journal.redb").await.err().expect("refused").0;
        assert!(refused.contains(says) && refused.contains("accept_data_loss"), "{refused}");
        assert!(server.open_at(server.port, "journal.redb", true).await.is_ok(), "unless the operator says so");
    }
    let server = Server::with(&SAFE);
    let store = server.open("journal.redb").await.unwrap();
    let mut other = store.streams_connection();
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg("everysec").query_async(&mut other).await.unwrap();
    let run = Probe::new(false).look(&mut other).await;
    assert!(run.unwrap_err().0.contains("everysec"), "what is changed under way is found by the next look");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_on_top_of_something_that_is_gone_is_no_write_and_stops_the_gate() {
    let server = Server::with(&SAFE);
    let store = server.open("journal.redb").await.unwrap();
    let mut claim = sample::claim("k", 100);
    for n in 0..4 {
        assert_eq!(store.commit(put(&claim)).await, Ok(Swap::Done));
        let Standing::Claimed { by } = claim.standing.clone() else { panic!() };
        claim = claim.apply(Op::TakeOver { from: by, by: format!("{n}") }, UnixSeconds(1_010)).unwrap();
    }
    // The newest confirmed versions vanish, as after a fail-over to a replica that was behind.
    let mut other = store.streams_connection();
    let key = claim_key("k");
    let _: u64 = redis::cmd("DEL").arg(&key).query_async(&mut other).await.unwrap();
    assert_eq!(store.commit(put(&claim)).await, Ok(Swap::Lost(Box::new(None))), "a lost record is not made again");
    let first = serde_json::to_string(&sample::claim("k", 100)).unwrap();
    let _: String = redis::cmd("XADD").arg(&key).arg("1-0").arg("r").arg(first).query_async(&mut other).await.unwrap();
    let told = store.commit(put(&claim)).await.unwrap_err().0;
    assert!(told.contains("lost writes"), "{told}");
    assert!(store.standing().is_err());
}

mod left;

/// Between a gate and Redis: passes everything, and swallows one answer when told to.
async fn swallowing(port: u16, swallow: Arc<std::sync::atomic::AtomicBool>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { continue };
            let swallow = Arc::clone(&swallow);
            tokio::spawn(async move {
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let up = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut buffer = vec![0; 65_536];
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    if swallow.swap(false, std::sync::atomic::Ordering::SeqCst) {
                        break;
                    }
                    if to_client.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
                up.abort();
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_found_to_be_done() {
    let server = Server::with(&SAFE);
    let swallow = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let port = swallowing(server.port, Arc::clone(&swallow)).await;
    let store = server.open_at(port, "journal.redb", false).await.unwrap();
    let mut claim = sample::claim("k", 100);
    assert_eq!(store.commit(put(&claim)).await, Ok(Swap::Done));
    for n in 0..5 {
        let Standing::Claimed { by } = claim.standing.clone() else { panic!() };
        let next = claim.apply(Op::TakeOver { from: by, by: format!("{n}") }, UnixSeconds(1_010)).unwrap();
        swallow.store(true, std::sync::atomic::Ordering::SeqCst);
        // The watch's own question may have been swallowed instead: then this is an ordinary write.
        assert_eq!(store.commit(put(&next)).await, Ok(Swap::Done), "round {n}");
        assert_eq!(store.claim(&next.key).await.unwrap(), Some(next.clone()));
        claim = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_know_who_of_them_lives() {
    let server = Server::with(&SAFE);
    let (a, b) = (server.open("a.redb").await.unwrap(), server.open("b.redb").await.unwrap());
    assert_ne!(a.gate(), b.gate());
    until(|| async { a.alive(b.gate()).await == Ok(true) }).await;
    // Which is known once its own link was whole for as long as a sign lasts.
    assert_eq!(a.alive("gate_nobody").await, Ok(true));
    until(|| async { a.alive("gate_nobody").await == Ok(false) }).await;
    let gone = b.gate().to_owned();
    drop(b);
    let mut other = a.streams_connection();
    let left: i64 = redis::cmd("TTL").arg(gate_key(&gone)).query_async(&mut other).await.unwrap();
    assert!(left > 0 && left <= 30, "its sign of life ends by itself: {left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_of_redis_no_gate_is_taken_for_dead_before_it_could_say_that_it_lives() {
    let server = Server::with(&SAFE);
    let a = server.open("a.redb").await.unwrap();
    until(|| async { a.alive("gate_silent").await == Ok(false) }).await;
    server.kill();
    until(|| async { a.standing().is_err() }).await;
    // Every sign of life has ended by itself when Redis is back.
    server.start(&SAFE);
    until(|| async { a.standing().is_ok() }).await;
    assert_eq!(a.alive("gate_silent").await, Ok(true), "it may only not have had the time");
    until(|| async { a.alive("gate_silent").await == Ok(false) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_payer_promises_at_one_gate_counts_at_the_others_until_it_is_over() {
    let server = Server::with(&SAFE);
    let (a, b) = (server.open("a.redb").await.unwrap(), server.open("b.redb").await.unwrap());
    let rail = RailId::from("base/upto");
    let whose = Whose { rail: &rail, payer: "0xpayer" };
    let promise = async |store: &Redis, key: &str, revision, amount| {
        store.promise(whose, (&ClaimKey(key.to_owned()), revision), Usd(amount)).await.unwrap().0
    };
    let claim = |store: &Redis, key: &str, revision| Claim {
        revision,
        standing: Standing::Promised { by: server_of(store, "r1") },
        ..sample::claim(key, 100)
    };
    assert_eq!(promise(&a, "k1", 1, 60).await, 0);
    assert_eq!(promise(&b, "k2", 1, 70).await, 60, "entered before its claim is written");
    assert_eq!(promise(&a, "k3", 1, 1).await, 70, "and here without what this gate counts itself");
    let k1 = claim(&a, "k1", 1);
    a.commit(put(&k1)).await.unwrap();
    let k2 = claim(&b, "k2", 1);
    b.commit(put(&k2)).await.unwrap();
    a.unpromise(whose, &ClaimKey("k3".to_owned())).await.unwrap();
    assert_eq!(promise(&b, "k4", 1, 1).await, 60, "what was taken back does not count");
    b.unpromise(whose, &ClaimKey("k4".to_owned())).await.unwrap();

    // A copy of the first proof at the other gate makes it nobody else's promise.
    promise(&b, "k1", 1, 60).await;
    assert_eq!(promise(&b, "k5", 1, 1).await, 60);
    assert_eq!(promise(&a, "k6", 1, 1).await, 70 + 1, "nor does the gate that has it count it twice");
    for (store, key) in [(&b, "k5"), (&a, "k6")] {
        store.unpromise(whose, &ClaimKey(key.to_owned())).await.unwrap();
    }

    let next = |claim: &Claim, op| claim.apply(op, UnixSeconds(1_100)).unwrap();
    let take = Op::Take { by: server_of(&a, "r1"), amount: Atoms(9), output: None, receipt: None };
    let k1 = next(&k1, take);
    a.commit(put(&k1)).await.unwrap();
    assert_eq!(promise(&b, "k7", 1, 1).await, 60, "what is being taken is not paid");
    let settled = Op::Settle { by: server_of(&a, "r1"), transaction: None, receipt: "r".to_owned() };
    a.commit(put(&next(&k1, settled))).await.unwrap();
    assert_eq!(promise(&b, "k7", 1, 1).await, 0, "it is paid");
    let k2 = next(&k2, Op::Forgo { by: server_of(&b, "r1") });
    b.commit(put(&k2)).await.unwrap();
    assert_eq!(promise(&a, "k8", 1, 1).await, 1, "and nothing of the other was taken");
    // The same proof again: what its claim was before says nothing of it.
    promise(&b, "k2", k2.revision + 1, 50).await;
    assert_eq!(promise(&a, "k8", 1, 1).await, 1 + 50);
    let other = Whose { rail: &rail, payer: "0xother" };
    assert_eq!(a.promise(other, (&ClaimKey("k9".to_owned()), 1), Usd(5)).await, Ok(Usd::ZERO), "another payer");

    // What is renewed is kept as long as what is new.
    let (mut redis, key) = (a.streams_connection(), "pontage:promised:base/upto:0xpayer");
    let _: i64 = redis::cmd("EXPIRE").arg(key).arg(100).query_async(&mut redis).await.unwrap();
    promise(&a, "k8", 1, 1).await;
    let left: i64 = redis::cmd("TTL").arg(key).query_async(&mut redis).await.unwrap();
    assert!(left > 29 * 86_400, "{left}");
}

/// Between a gate and Redis: passes everything, until it is told to take the answer to the next new version of a record.
#[derive(Default)]
struct Thief {
    armed: std::sync::atomic::AtomicBool,
    /// The version is in Redis, and its answer is held.
    holds: tokio::sync::Notify,
    /// Now it is lost, and the connection with it.
    go: tokio::sync::Notify,
}

impl Thief {
    async fn before(port: u16) -> (Arc<Self>, u16) {
        let thief = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let at_work = Arc::clone(&thief);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(Arc::clone(&at_work).pass(client, server));
            }
        });
        (thief, own)
    }

    async fn pass(self: Arc<Self>, mut client: tokio::net::TcpStream, mut server: tokio::net::TcpStream) {
        let (mut asked, mut said) = (vec![0; 65_536], vec![0; 65_536]);
        let mut take = false;
        loop {
            tokio::select! {
                n = client.read(&mut asked) => {
                    let Ok(n @ 1..) = n else { return };
                    let version = asked[..n].windows(4).any(|w| w == b"XADD");
                    take |= version && self.armed.swap(false, std::sync::atomic::Ordering::SeqCst);
                    if server.write_all(&asked[..n]).await.is_err() { return }
                }
                n = server.read(&mut said) => {
                    let Ok(n @ 1..) = n else { return };
                    if take {
                        self.holds.notify_one();
                        self.go.notified().await;
                        return;
                    }
                    if client.write_all(&said[..n]).await.is_err() { return }
                }
            }
        }
    }

    fn arm(&self) {
        self.armed.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// A change of the channel by name, and the line it leaves.
fn signed(channel: &Channel, name: &str, amount: u128) -> Write {
    use crate::channel::{Op, sample};
    let voucher = sample::voucher(amount);
    let entry = Entry::Voucher {
        channel: channel.id.clone(),
        amount: voucher.amount,
        signature: voucher.signature.clone(),
        at: sample::START,
    };
    let op = Op::Accept { voucher, min_delta: crate::money::Atoms(1) };
    let (next, _) = channel.apply(name, op, sample::START).unwrap();
    Write { channel: Some(Arc::new(next)), journal: vec![entry], ..Write::default() }
}

fn lines_of(store: &Redis, amount: u128) -> usize {
    let wanted = format!("\"{amount}\"");
    store.journal.lines().iter().filter(|line| line.contains("voucher") && line.contains(&wanted)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_and_that_another_gate_overtook_leaves_its_lines_once() {
    let server = Server::with(&SAFE);
    let (thief, port) = Thief::before(server.port).await;
    let a = Arc::new(server.open_at(port, "a.redb", false).await.unwrap());
    let b = server.open("b.redb").await.unwrap();
    let mut channel = crate::channel::sample::open("0xaa", 10);
    channel.revision = 1;
    let mut channel = Arc::new(channel);
    let made = a.commit(Write { channel: Some(channel.clone()), ..Write::default() }).await;
    assert_eq!(made, Ok(Swap::Done));
    for (round, redis_dies) in [(1, false), (2, true)] {
        let (ours, theirs) = (round * 100, round * 100 + 50);
        thief.arm();
        let writing = tokio::spawn({
            let (a, write) = (Arc::clone(&a), signed(&channel, &format!("ours{round}"), ours));
            async move { a.commit(write).await }
        });
        thief.holds.notified().await;
        let now = b.channel(&channel.id).await.unwrap().unwrap();
        let overtaking = signed(&now, &format!("theirs{round}"), theirs);
        channel = overtaking.channel.clone().unwrap();
        assert_eq!(b.commit(overtaking).await, Ok(Swap::Done));
        if redis_dies {
            server.kill();
        }
        thief.go.notify_one();
        let told = writing.await.unwrap();
        if redis_dies {
            assert!(told.is_err(), "nobody knows: {told:?}");
            assert_eq!(lines_of(&a, ours), 0, "and nothing is said of it");
            server.start(&SAFE);
            until(|| async { lines_of(&a, ours) == 1 }).await;
            until(|| async { a.standing().is_ok() && b.standing().is_ok() }).await;
        } else {
            assert_eq!(told, Ok(Swap::Done), "it was made");
        }
        let next = signed(&channel, &format!("next{round}"), theirs + 1);
        channel = next.channel.clone().unwrap();
        assert_eq!(a.commit(next).await, Ok(Swap::Done));
        assert_eq!((lines_of(&a, ours), lines_of(&a, theirs), lines_of(&a, theirs + 1)), (1, 0, 1), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_never_made_leaves_no_line_however_its_end_was_learnt() {
    let server = Server::with(&SAFE);
    let (a, b) = (server.open("a.redb").await.unwrap(), server.open("b.redb").await.unwrap());
    let mut channel = crate::channel::sample::open("0xaa", 10);
    channel.revision = 1;
    let channel = Arc::new(channel);
    a.commit(Write { channel: Some(channel.clone()), ..Write::default() }).await.unwrap();
    // Redis dies before it hears of it.
    server.kill();
    assert!(a.commit(signed(&channel, "ours", 100)).await.is_err());
    server.start(&SAFE);
    until(|| async { a.standing().is_ok() && b.standing().is_ok() }).await;
    assert_eq!(b.commit(signed(&channel, "theirs", 150)).await, Ok(Swap::Done));
    assert!(matches!(a.commit(signed(&channel, "late", 120)).await, Ok(Swap::Overtaken(_))));
    let now = a.channel(&channel.id).await.unwrap().unwrap();
    assert_eq!(a.commit(signed(&now, "next", 200)).await, Ok(Swap::Done));
    assert_eq!((lines_of(&a, 100), lines_of(&a, 120), lines_of(&a, 200)), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_tried_again_under_its_name_leaves_its_lines_once() {
    let server = Server::with(&SAFE);
    let store = server.open("a.redb").await.unwrap();
    let mut channel = crate::channel::sample::open("0xaa", 10);
    channel.revision = 1;
    let channel = Arc::new(channel);
    store.commit(Write { channel: Some(channel.clone()), ..Write::default() }).await.unwrap();
    server.kill();
    assert!(store.commit(signed(&channel, "ours", 100)).await.is_err());
    server.start(&SAFE);
    until(|| async { store.standing().is_ok() }).await;
    assert_eq!(store.commit(signed(&channel, "ours", 100)).await, Ok(Swap::Done));
    let now = store.channel(&channel.id).await.unwrap().unwrap();
    assert_eq!(store.commit(signed(&now, "next", 200)).await, Ok(Swap::Done));
    assert_eq!((lines_of(&store, 100), lines_of(&store, 200)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_started_again_is_looked_at_before_it_is_asked_anything() {
    let server = Server::with(&SAFE);
    let store = server.open("journal.redb").await.unwrap();
    assert_eq!(store.commit(put(&sample::claim("before", 100))).await, Ok(Swap::Done));
    // It is back with other settings before anybody has missed it.
    server.kill();
    server.start(&["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]);
    let end = std::time::Instant::now() + Duration::from_secs(15);
    let mut n = 0;
    while !store.standing().err().is_some_and(|e| e.0.contains("everysec")) {
        assert!(std::time::Instant::now() < end, "nobody has looked: {:?}", store.standing());
        n += 1;
        let told = store.commit(put(&sample::claim(&format!("k{n}"), 100))).await;
        assert!(told.is_err(), "written to a Redis that would lose it: {told:?}");
    }
    assert!(store.commit(put(&sample::claim("after", 100))).await.is_err());
    server.kill();
    server.start(&SAFE);
    until(|| async { store.standing().is_ok() }).await;
    assert_eq!(store.commit(put(&sample::claim("after", 100))).await, Ok(Swap::Done), "safe again, it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_found_redis_gone_confirms_nothing_before_it_has_looked_again() {
    let server = Server::with(&SAFE);
    let store = server.open("journal.redb").await.unwrap();
    let mut connection = store.streams_connection();
    let run = Probe::new(false).look(&mut connection).await.unwrap();
    // Nobody but this watch has missed it.
    let link = Arc::new(Link::default());
    let watching = tokio::spawn(watch(connection.clone(), Probe::new(false), run, Arc::clone(&link)));
    let streams = Streams::new(connection.clone(), Arc::clone(&link));
    server.kill();
    until(|| async { link.standing().is_err() }).await;
    server.start(&["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]);
    let there = async || redis::cmd("PING").query_async::<String>(&mut connection.clone()).await.is_ok();
    until(async || there().await).await;
    let told = streams.put("k", 1, "text").await;
    assert!(told.is_err(), "written to a Redis that would lose it: {told:?}");
    watching.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_tell_its_settings_is_refused_and_a_store_that_serves_all_the_same_says_so() {
    let server = Server::with(&[SAFE.as_slice(), &["--rename-command", "CONFIG", ""]].concat());
    let refused = server.open("journal.redb").await.err().expect("refused").0;
    assert!(refused.contains("CONFIG is forbidden") && refused.contains("accept_data_loss"), "{refused}");
    let allowed = server.open_at(server.port, "journal.redb", true).await.expect("the operator says so");
    assert!(allowed.accepts_data_loss(), "and everybody can see it");
    assert!(!Server::with(&SAFE).open("other.redb").await.unwrap().accepts_data_loss());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_whose_settings_are_changed_while_it_runs_is_found_out_by_the_next_probe() {
    let server = Server::with(&SAFE);
    let store = server.open("journal.redb").await.unwrap();
    let set = async |fsync: &str| {
        let mut other = store.streams_connection();
        let done: String =
            redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg(fsync).query_async(&mut other).await.unwrap();
        assert_eq!(done, "OK");
    };
    set("everysec").await;
    until(|| async { store.standing().is_err_and(|e| e.0.contains("everysec")) }).await;
    set("always").await;
    until(|| async { store.standing().is_ok() }).await;
    assert_eq!(store.commit(put(&sample::claim("k", 100))).await, Ok(Swap::Done));
}

/// Between a gate and Redis: passes everything, until subscriptions are to hear nothing more and not be closed either.
#[derive(Default)]
struct Mute {
    subscriptions: std::sync::atomic::AtomicUsize,
    /// How many of the first of them hear nothing.
    deaf: std::sync::atomic::AtomicUsize,
}

impl Mute {
    async fn before(port: u16) -> (Arc<Self>, u16) {
        let mute = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let at_work = Arc::clone(&mute);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(Arc::clone(&at_work).pass(client, server));
            }
        });
        (mute, own)
    }

    async fn pass(self: Arc<Self>, mut client: tokio::net::TcpStream, mut server: tokio::net::TcpStream) {
        use std::sync::atomic::Ordering::SeqCst;
        let (mut asked, mut said) = (vec![0; 65_536], vec![0; 65_536]);
        let mut number = usize::MAX;
        loop {
            tokio::select! {
                n = client.read(&mut asked) => {
                    let Ok(n @ 1..) = n else { return };
                    if asked[..n].windows(9).any(|w| w == b"SUBSCRIBE") {
                        number = self.subscriptions.fetch_add(1, SeqCst);
                    }
                    if server.write_all(&asked[..n]).await.is_err() { return }
                }
                n = server.read(&mut said) => {
                    let Ok(n @ 1..) = n else { return };
                    let is_deaf = number < self.deaf.load(SeqCst);
                    if !is_deaf && client.write_all(&said[..n]).await.is_err() { return }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_hears_nothing_is_made_anew_when_it_does_not_answer_and_only_then() {
    use std::sync::atomic::Ordering::SeqCst;
    let server = Server::with(&SAFE);
    let (mute, port) = Mute::before(server.port).await;
    let a = server.open_at(port, "a.redb", false).await.unwrap();
    let b = server.open("b.redb").await.unwrap();
    let mut heard = a.changes().unwrap();
    let mut channel = crate::channel::sample::open("0xaa", 10);
    channel.revision = 1;
    b.commit(Write { channel: Some(Arc::new(channel.clone())), ..Write::default() }).await.unwrap();
    let mut amount = 100;
    let mut next = async || {
        amount += 1;
        let now = b.channel(&channel.id).await.unwrap().unwrap();
        assert_eq!(b.commit(signed(&now, &format!("n{amount}"), amount)).await, Ok(Swap::Done));
    };
    until(|| async { mute.subscriptions.load(SeqCst) == 1 }).await;
    tokio::time::sleep(SILENCE * 2 + PING).await;
    assert_eq!(mute.subscriptions.load(SeqCst), 1, "nothing changes, and it answers");
    while heard.try_recv().is_ok() {}
    next().await;
    assert_eq!(timeout(ANSWER, heard.recv()).await.unwrap().unwrap(), channel.id);
    mute.deaf.store(1, SeqCst);
    let end = std::time::Instant::now() + Duration::from_secs(15);
    while heard.try_recv().is_err() {
        assert!(std::time::Instant::now() < end, "it would wait for ever");
        next().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(mute.subscriptions.load(SeqCst), 2);
}
