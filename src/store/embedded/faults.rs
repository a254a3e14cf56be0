//! What happens when the disk fails or the process is killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::claim::{Op, sample};
use crate::journal::sample::receipt;
use redb::StorageBackend;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// The three writes that one sale makes, in order; each with one journal line, and one unit on a total.
fn sale(key: &str) -> [Write; 3] {
    let by = || "r0".to_owned();
    let (id, at) = (format!("rcpt_{key}"), UnixSeconds(1_100));
    let claimed = sample::claim(key, 100);
    let paid = claimed.apply(Op::Pay { by: by(), transaction: None }, at).unwrap();
    let delivered = paid.apply(Op::Deliver { by: by(), receipt: id.clone() }, at).unwrap();
    let reference = claimed.reference.clone();
    let write = |claim, entry| Write {
        claim: Some(claim),
        journal: vec![entry],
        tally: vec![("lines".to_owned(), 0, Usd(1))],
        ..Write::default()
    };
    [
        write(
            claimed.clone(),
            Entry::Claimed { key: key.into(), amount: claimed.terms.amount, reference: reference.clone(), at },
        ),
        write(paid, Entry::Paid { key: key.into(), at }),
        write(delivered, Entry::Receipt(Box::new(receipt(&id, &reference, 100)))),
    ]
}

/// A disk with a cache that is lost without `sync_data`, and a call that fails.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Clone, Debug, Default)]
struct Platter {
    /// What the process sees.
    cached: Vec<u8>,
    /// What survives.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    calls: u64,
    syncs: u64,
    fail_at: Option<u64>,
    /// Whether every call after the failed one fails too (a dead disk), or none does (a bad sector; a kernel that reports
    /// a lost page once and then calls it clean).
    stays_dead: bool,
    random: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Length(len) => to.resize(usize::try_from(*len).unwrap(), 0),
            Self::Bytes(at, data) => {
                let at = usize::try_from(*at).unwrap();
                to.resize(to.len().max(at + data.len()), 0);
                to[at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl Platter {
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }

    /// Of the changes that were never synced, any may have reached the disk, some of them torn.
    fn lose_cache(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match (self.next_random() % 3, change) {
                (0, _) => {}
                (1, Change::Bytes(at, mut data)) => {
                    data.truncate(data.len() / 2);
                    Change::Bytes(at, data).apply(&mut self.durable);
                }
                (_, change) => change.apply(&mut self.durable),
            }
        }
    }

    fn call(&mut self) -> Result<(), io::Error> {
        self.calls += 1;
        match self.fail_at {
            Some(n) if self.calls == n || (self.calls > n && self.stays_dead) => Err(io::Error::other("injected")),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let platter = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(platter.cached.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut platter = self.0.lock().unwrap();
        platter.call()?;
        Change::Length(len).apply(&mut platter.cached);
        platter.unsynced.push(Change::Length(len));
        Ok(())
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        let mut platter = self.0.lock().unwrap();
        platter.syncs += 1;
        if let Err(e) = platter.call() {
            platter.lose_cache();
            return Err(e);
        }
        for change in std::mem::take(&mut platter.unsynced) {
            change.apply(&mut platter.durable);
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut platter = self.0.lock().unwrap();
        let failed = platter.call();
        let landed = if failed.is_ok() { data } else { &data[..data.len() / 2] };
        let change = Change::Bytes(offset, landed.to_vec());
        change.apply(&mut platter.cached);
        platter.unsynced.push(change);
        failed
    }
}

impl Disk {
    fn new(platter: Platter) -> Self {
        Self(Arc::new(Mutex::new(platter)))
    }

    fn open(&self) -> Result<Embedded, StoreError> {
        let db = builder().create_with_backend(self.clone()).map_err(|e| StoreError(e.to_string()))?;
        Embedded::on(db)
    }

    /// The bytes that are there after the machine was switched off.
    fn after_power_loss(&self) -> Self {
        let mut platter = self.0.lock().unwrap().clone();
        platter.lose_cache();
        let durable = platter.durable;
        Self::new(Platter { cached: durable.clone(), durable, ..Platter::default() })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writes_that_wait_together_are_one_transaction() {
    use futures::FutureExt as _;
    let writes = || (0..64).map(|n| sale(&format!("k{n}"))[0].clone());
    // What one transaction of all of them takes.
    let disk = Disk::new(Platter::default());
    let store = disk.open().unwrap();
    let before = disk.0.lock().unwrap().syncs;
    let all = store.writer.write(move |book| {
        for write in writes() {
            book.write(&write, None)?;
        }
        Ok(())
    });
    all.await.unwrap();
    let one = disk.0.lock().unwrap().syncs - before;
    assert!(one >= 2, "two phases: {one}");

    let disk = Disk::new(Platter::default());
    let store = disk.open().unwrap();
    // The writer is at work, and writes nothing, while they come.
    let (began, begins) = mpsc::channel();
    let (done, wait) = mpsc::channel::<()>();
    let mut slow = Box::pin(store.writer.write(move |_| Ok(began.send(()).is_ok() && wait.recv().is_err())));
    assert!(slow.as_mut().now_or_never().is_none());
    begins.recv().unwrap();
    let crowd = futures::future::join_all(writes().map(|write| store.commit(write)));
    let mut crowd = Box::pin(tokio::task::unconstrained(crowd));
    assert!(crowd.as_mut().now_or_never().is_none(), "they are queued");
    let before = disk.0.lock().unwrap().syncs;
    drop(done);
    slow.await.unwrap();
    assert!(crowd.await.iter().all(|swap| *swap == Ok(Swap::Done)));
    assert_eq!(disk.0.lock().unwrap().syncs - before, one);
    // Whoever comes next and is alone is not kept waiting for a crowd that does not come.
    let alone = tokio::time::timeout(Duration::from_secs(5), store.commit(sale("later")[0].clone())).await;
    assert_eq!(alone, Ok(Ok(Swap::Done)));
}

async fn refuses_everything(store: &Embedded) {
    let key = sample::claim("a", 1).key;
    let [first, ..] = sale("z");
    let said = store.standing().unwrap_err().0;
    assert!(said.contains("restart"), "{said}");
    assert!(store.claim(&key).await.is_err());
    assert!(store.commit(first).await.is_err());
    assert!(store.open_claims(UnixSeconds(0)).await.is_err());
    assert!(store.forget(UnixSeconds(0)).await.is_err());
    assert!(store.tally("lines", 0).await.is_err());
    assert!(store.receipt("rcpt_a").await.is_err());
    assert!(store.facts(&[], true).await.is_err());
    assert!(store.standing().is_err(), "and for ever");
}

/// The store holds the first `n` of `writes` and nothing of the others; how many that is.
async fn prefix(store: &Embedded, writes: &[Write]) -> usize {
    let snapshot = store.db.begin_read().unwrap();
    let found = walk(&snapshot, &mut Together::default()).map_err(told).unwrap();
    assert!(found.is_sound(), "{found}");
    let n = usize::try_from(found.head.lines).unwrap();
    assert_eq!(store.tally("lines", 0).await, Ok(Usd(n as u128)));
    let mut want: HashMap<_, _> = HashMap::new();
    for (i, write) in writes.iter().enumerate() {
        let claim = write.claim.clone().unwrap();
        let entry = want.entry(claim.key.clone()).or_insert(None);
        if i < n {
            *entry = Some(claim);
        }
    }
    for (key, claim) in want {
        assert_eq!(store.claim(&key).await, Ok(claim), "{n} lines are there");
    }
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_failed_call_the_store_refuses_for_ever_and_the_disk_holds_a_clean_prefix() {
    let writes: Vec<Write> = ["a", "b", "c"].iter().flat_map(|k| sale(k)).collect();
    let before = 2;
    let made = Disk::new(Platter::default());
    let store = made.open().unwrap();
    for write in &writes[..before] {
        store.commit(write.clone()).await.unwrap();
    }
    drop(store);
    let made = made.0.lock().unwrap().clone();

    let (mut failed_at_open, mut failed_later, mut unacknowledged) = (0, 0, 0);
    for stays_dead in [true, false] {
        for fail_at in 1.. {
            let random = fail_at * 7 + u64::from(stays_dead);
            let platter = Platter { calls: 0, fail_at: Some(fail_at), stays_dead, random, ..made.clone() };
            let disk = Disk::new(platter);
            let mut acknowledged = before;
            match disk.open() {
                Err(_) => failed_at_open += 1,
                Ok(store) => {
                    for write in &writes[before..] {
                        match store.commit(write.clone()).await {
                            Ok(Swap::Done) => acknowledged += 1,
                            Ok(other) => panic!("call {fail_at}: {other:?}"),
                            Err(_) => break,
                        }
                    }
                    if acknowledged < writes.len() {
                        failed_later += 1;
                        refuses_everything(&store).await;
                    }
                }
            }
            let last = disk.0.lock().unwrap().calls < fail_at;
            let store = disk.after_power_loss().open().unwrap_or_else(|e| panic!("call {fail_at}: {e}"));
            let there = prefix(&store, &writes).await;
            assert!(there >= acknowledged, "call {fail_at}: {acknowledged} acknowledged, {there} there");
            assert!(there <= acknowledged + 1, "call {fail_at}: one write at most was under way");
            unacknowledged += usize::from(there > acknowledged);
            if last {
                break;
            }
        }
    }
    assert!(failed_at_open > 5 && failed_later > 20, "the failures hit: {failed_at_open}, {failed_later}");
    assert!(unacknowledged > 0, "an error does not mean that nothing was written");
}

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

/// Not a test of its own: what [`what_was_acknowledged_survives_sigkill`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started and killed by what_was_acknowledged_survives_sigkill"]
async fn sells_until_it_is_killed() {
    let path = std::env::var("PONTAGE_CRASH_STORE").expect("set by the test that starts this one");
    let round = std::env::var("PONTAGE_CRASH_ROUND").unwrap();
    let store = Arc::new(Embedded::open(Path::new(&path)).unwrap());
    let sellers: Vec<_> = (0..8)
        .map(|seller| {
            let (store, round) = (store.clone(), round.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    for write in sale(&format!("{round}-{seller}-{n}")) {
                        let claim = write.claim.clone().unwrap();
                        assert_eq!(store.commit(write).await, Ok(Swap::Done));
                        let said = format!("ack {} {}\n", claim.key.0, claim.revision);
                        io::stderr().write_all(said.as_bytes()).unwrap();
                    }
                }
            })
        })
        .collect();
    for seller in sellers {
        seller.await.unwrap();
    }
}

/// Starts a gate's worth of sellers, kills them `ms` after their start or after their first sale, and adds what they
/// acknowledged.
fn run_and_kill(path: &Path, round: u64, from_first_sale: bool, ms: u64, acknowledged: &mut HashMap<String, u64>) {
    // On Linux, this very binary, even when a build has replaced its file meanwhile.
    let this = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe().unwrap() };
    let mut child = Command::new(this)
        .args(["--exact", "store::embedded::faults::sells_until_it_is_killed", "--ignored", "--nocapture"])
        .env("PONTAGE_CRASH_STORE", path)
        .env("PONTAGE_CRASH_ROUND", round.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = io::BufReader::new(child.stderr.take().unwrap());
    let (sold, first_sale) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        let mut line = String::new();
        // A last line without its end was not said.
        while stderr.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            if let Some((key, revision)) = line.trim_end().strip_prefix("ack ").and_then(|l| l.split_once(' ')) {
                said.push((key.to_owned(), revision.parse::<u64>().unwrap()));
                // Nobody listens after the first.
                let _ = sold.send(());
            }
            line.clear();
        }
        said
    });
    if from_first_sale {
        first_sale.recv_timeout(Duration::from_secs(60)).expect("the sellers sell");
    }
    std::thread::sleep(Duration::from_millis(ms));
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "it was killed, it did not end by itself");
    for (key, revision) in reader.join().unwrap() {
        let known = acknowledged.entry(key).or_default();
        *known = (*known).max(revision);
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_sigkill() {
    let rounds = std::env::var("PONTAGE_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let dir = tempfile::tempdir().unwrap();
    let mut total = 0;
    let mut acknowledged = HashMap::new();
    for round in 0..rounds {
        // Every fourth one begins a new file, and may be killed while it does.
        let path = dir.path().join(format!("{}/pontage.redb", round / 4));
        let begins = round % 4 == 0;
        if begins {
            acknowledged.clear();
        }
        let ms = random(if begins { 60 } else { 200 });
        run_and_kill(&path, round, !begins, ms, &mut acknowledged);
        if !path.exists() {
            assert!(acknowledged.is_empty());
            continue;
        }
        if round % 2 == 0 {
            let found = Embedded::audit(&path).unwrap();
            assert!(found.is_sound(), "round {round}, after {ms} ms: {found}");
        }
        let store = Embedded::open(&path).unwrap();
        let found = walk(&store.db.begin_read().unwrap(), &mut Together::default()).map_err(told).unwrap();
        assert!(found.is_sound(), "round {round}, after {ms} ms: {found}");
        assert_eq!(store.tally("lines", 0).await, Ok(Usd(u128::from(found.head.lines))), "all of a write or nothing");
        for (key, revision) in &acknowledged {
            let claim = store.claim(&ClaimKey(key.clone())).await.unwrap();
            let there = claim.as_ref().map(|c| c.revision);
            assert!(
                there >= Some(*revision),
                "round {round}, after {ms} ms: {key} {revision} was said, {there:?} is there"
            );
        }
        total = total.max(acknowledged.len());
    }
    assert!(total > 20, "the sellers did sell: {total}");
}
