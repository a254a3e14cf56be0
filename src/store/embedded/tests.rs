//! The embedded store as a store, and as a file that people and other versions touch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::known::INDEX_EVERY;
use super::tables::{CLAIMS, JOURNAL, RECEIPTS};
use super::*;
use crate::claim::{Op, Standing, sample};
use crate::journal::sample::receipt;
use crate::money::Atoms;
use crate::store::conformance::{self, Bench};
use crate::store::{OVER_SECONDS, TALLY_DAYS};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

impl Bench for TempDir {
    fn fresh() -> Self {
        tempfile::tempdir().unwrap()
    }
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(Embedded::open(&self.path().join("pontage.redb")).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_what_every_store_promises() {
    conformance::all::<TempDir>().await;
}

fn claim_write(key: &str) -> Write {
    Write { claim: Some(sample::claim(key, 100)), ..Write::default() }
}

#[tokio::test]
async fn a_channel_that_is_over_and_totals_of_past_days_go_after_their_time() {
    use crate::channel::{Op, Phase, sample};
    let dir = TempDir::fresh();
    let path = dir.path().join("pontage.redb");
    let mut store = Embedded::open(&path).unwrap();
    let put = |channel: &Channel| Write { channel: Some(Arc::new(channel.clone())), ..Write::default() };
    let (gone, stays) = (sample::opening("0xaa", 10), sample::opening("0xbb", 10));
    let tx = gone.payers_tx.as_ref().unwrap().tx.clone();
    let (failed, _) = gone.apply("f", Op::Dropped { tx }, sample::START).unwrap();
    for channel in [&gone, &failed, &stays] {
        assert_eq!(store.commit(put(channel)).await, Ok(Swap::Done));
    }
    let now = UnixSeconds::now();
    let total = |day| Write { tally: vec![("lost".to_owned(), day, Usd(5))], ..Write::default() };
    for day in [now.day() - TALLY_DAYS - 1, now.day() - TALLY_DAYS] {
        store.commit(total(day)).await.unwrap();
    }
    assert_eq!(store.forget(now.plus(OVER_SECONDS - 60)).await, Ok(0));
    assert_eq!(
        store.channel(&gone.id).await.unwrap().unwrap().phase,
        Phase::Failed,
        "who asks is told that it is over"
    );
    assert_eq!(store.forget(now.plus(OVER_SECONDS + 60)).await, Ok(1));
    for start in 1..=2 {
        assert_eq!(store.channel(&gone.id).await, Ok(None), "start {start}");
        assert_eq!(store.channels().await, Ok(vec![stays.clone()]), "what is not over stays, start {start}");
        drop(store);
        assert!(Embedded::audit(&path).unwrap().broken.is_none());
        store = Embedded::open(&path).unwrap();
    }
    store.commit(total(now.day() - TALLY_DAYS - 1)).await.unwrap();
    store.commit(total(now.day() - TALLY_DAYS)).await.unwrap();
    store.forget(now).await.unwrap();
    assert_eq!(store.tally("lost", now.day() - TALLY_DAYS - 1).await, Ok(Usd(0)));
    assert_eq!(store.tally("lost", now.day() - TALLY_DAYS).await, Ok(Usd(5)), "one of these days is kept");
    assert_eq!(store.commit(put(&gone)).await, Ok(Swap::Done), "nobody has heard of it");
}

#[tokio::test]
async fn all_channels_are_read_on_no_thread_that_serves_requests() {
    use futures::FutureExt as _;
    let dir = TempDir::fresh();
    let store = Embedded::open(&dir.path().join("pontage.redb")).unwrap();
    let channel = crate::channel::sample::opening("0xaa", 10);
    store.commit(Write { channel: Some(Arc::new(channel.clone())), ..Write::default() }).await.unwrap();
    let mut reading = store.channels();
    assert!(reading.as_mut().now_or_never().is_none(), "it is read where it is asked for");
    assert_eq!(reading.await, Ok(vec![channel]));
}

/// Changes the file behind the store's back.
fn tamper(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let db = Database::create(path).unwrap();
    let txn = db.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

#[test]
fn a_second_gate_on_one_file_is_refused_in_words() {
    let dir = TempDir::fresh();
    let path = dir.path().join("var/deep/pontage.redb");
    let first = Embedded::open(&path).unwrap();
    for second in [Embedded::open(&path).map(drop), Embedded::audit(&path).map(drop)] {
        let said = second.unwrap_err().0;
        assert!(said.contains("another gate") && said.contains("pontage.redb"), "{said}");
    }
    drop(first);
    assert!(Embedded::audit(&path).unwrap().is_sound());
    Embedded::open(&path).unwrap();
}

#[test]
fn what_it_makes_is_for_the_operator_only_and_leaves_no_draft() {
    let dir = TempDir::fresh();
    let var = dir.path().join("var");
    drop(Embedded::open(&var.join("pontage.redb")).unwrap());
    let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&var), mode(&var.join("pontage.redb"))), (0o700, 0o600));
    let names: Vec<_> = std::fs::read_dir(&var).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names, ["pontage.redb"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_trusted_stops_the_start_with_a_sentence() {
    type Tamper = fn(&Path);
    let cases: [(Tamper, &str, &str); 6] = [
        (|p| tamper(p, |t| drop(meta(t).insert("schema", "3").unwrap())), "schema 3", "a later version"),
        (|p| tamper(p, |t| drop(t.open_table(JOURNAL).unwrap().remove(1).unwrap())), "journal", "its end is cut off"),
        (
            |p| tamper(p, |t| drop(t.open_table(JOURNAL).unwrap().insert(1, "{}").unwrap())),
            "journal",
            "its end is another",
        ),
        (|p| tamper(p, |t| drop(t.open_table(JOURNAL).unwrap().remove(HEAD).unwrap())), "head", "no head"),
        (|p| tamper(p, |t| drop(meta(t).remove("schema").unwrap())), "something else", "not a store"),
        (|p| std::fs::write(p, "not a database at all, but long enough").unwrap(), "cannot open", "not a database"),
    ];
    for (damage, word, why) in cases {
        let dir = TempDir::fresh();
        let path = dir.path().join("pontage.redb");
        let store = Embedded::open(&path).unwrap();
        let entry = Entry::Paid { key: "k".into(), at: UnixSeconds(1) };
        store.commit(Write { journal: vec![entry], ..Write::default() }).await.unwrap();
        drop(store);
        damage(&path);
        let said = Embedded::open(&path).map(drop).unwrap_err().0;
        assert!(said.contains(word) && said.contains("pontage.redb"), "{why}: {said}");
    }
}

fn meta(txn: &redb::WriteTransaction) -> redb::Table<'_, &'static str, &'static str> {
    txn.open_table(redb::TableDefinition::new("meta")).unwrap()
}

#[tokio::test]
async fn an_unreadable_channel_is_not_overwritten() {
    let channel = |id: &str, revision| Channel { revision, ..crate::channel::sample::opening(id, 100) };
    let text = |c: &Channel| serde_json::to_string(c).unwrap();
    for (record, why) in [
        (text(&channel("bad", 1)).replace(r#""schema":1"#, r#""schema":9"#), "a later version wrote it"),
        (text(&channel("bad", 1)).replace('}', ""), "a bad disk left it"),
        (text(&channel("other", 1)), "it is another's record"),
    ] {
        let dir = TempDir::fresh();
        let path = dir.path().join("pontage.redb");
        let write = |id, revision| Write { channel: Some(channel(id, revision).into()), ..Write::default() };
        let store = Embedded::open(&path).unwrap();
        for id in ["bad", "good"] {
            assert_eq!(store.commit(write(id, 1)).await, Ok(Swap::Done));
        }
        drop(store);
        tamper(&path, |t| drop(t.open_table(tables::CHANNELS).unwrap().insert("bad", record.as_bytes()).unwrap()));

        let store = Embedded::open(&path).unwrap();
        let said = store.commit(write("bad", 2)).await.unwrap_err().0;
        assert!(said.contains("channel bad cannot be read"), "{why}: {said}");
        assert_eq!(store.commit(write("good", 2)).await, Ok(Swap::Done), "{why}: the others go on");
    }
}

#[tokio::test]
async fn an_unreadable_claim_blocks_itself_and_nobody_else() {
    for (record, why) in [
        (r#"{"schema":9,"whatever":1}"#.to_owned(), "a later version wrote it"),
        ("\0\0\0".to_owned(), "a bad disk left it"),
        (serde_json::to_string(&sample::claim("other", 100)).unwrap(), "it is another's record"),
    ] {
        let dir = TempDir::fresh();
        let path = dir.path().join("pontage.redb");
        let store = Embedded::open(&path).unwrap();
        for key in ["bad", "good"] {
            store.commit(claim_write(key)).await.unwrap();
        }
        drop(store);
        tamper(&path, |t| drop(t.open_table(CLAIMS).unwrap().insert("bad", record.as_bytes()).unwrap()));

        let store = Embedded::open(&path).unwrap();
        let bad = ClaimKey("bad".into());
        let said = store.claim(&bad).await.unwrap_err().0;
        assert!(said.contains("claim bad cannot be read"), "{why}: {said}");
        assert!(store.commit(claim_write("bad")).await.is_err(), "{why}: it is not claimed anew");
        assert_eq!(store.forget(UnixSeconds(u64::MAX)).await, Ok(0), "{why}: nor forgotten");
        assert_eq!(store.open_claims(UnixSeconds(0)).await.unwrap().len(), 1, "{why}");
        let next = sample::claim("good", 100).apply(Op::Die, UnixSeconds(2)).unwrap();
        let write = Write { claim: Some(next), ..Write::default() };
        assert_eq!(store.commit(write).await, Ok(Swap::Done), "{why}: the others go on");
        assert_eq!(store.standing(), Ok(()), "{why}");
        drop(store);
        let found = Embedded::audit(&path).unwrap();
        assert!(found.faults.iter().any(|f| f.contains("claim bad cannot be read")), "{why}: the audit names it");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_take_its_write_back() {
    let dir = TempDir::fresh();
    let store = dir.open();
    let mut write = Box::pin(store.commit(claim_write("k")));
    assert!(futures::poll!(&mut write).is_pending(), "it is in the queue");
    drop(write);
    // The queue is in order, so whatever was in it before this is done when this is.
    store.facts(&[], false).await.unwrap();
    assert!(store.claim(&ClaimKey("k".into())).await.unwrap().is_some());
}

#[tokio::test]
async fn a_record_too_large_to_be_one_of_ours_is_refused_alone() {
    let dir = TempDir::fresh();
    let store = dir.open();
    let mut claim = sample::claim("k", 100);
    claim.resend = Some("x".repeat(2 << 20));
    assert!(store.commit(Write { claim: Some(claim), ..Write::default() }).await.is_err());
    assert_eq!(store.commit(claim_write("k")).await, Ok(Swap::Done));
}

/// A write of `count` receipts, of which `from` is the number of the first.
fn sold(from: u64, count: u64) -> Write {
    let receipt = |n| Entry::Receipt(Box::new(receipt(&format!("rcpt_{n}"), "0xab", u128::from(n))));
    Write { journal: (from..from + count).map(receipt).collect(), ..Write::default() }
}

async fn charged(store: &dyn Store, n: u64) -> Option<Atoms> {
    store.receipt(&format!("rcpt_{n}")).await.unwrap().map(|found| found.charged)
}

#[tokio::test]
async fn a_receipt_is_found_whether_its_index_has_caught_up_or_not() {
    let dir = TempDir::fresh();
    let mut store = dir.open();
    let (each, mut behind) = (INDEX_EVERY / 3, 0);
    for round in 0..10 {
        assert_eq!(store.commit(sold(round * each, each)).await, Ok(Swap::Done));
        if round % 4 == 1 {
            drop(store);
            store = dir.open();
        }
        for n in 0..(round + 1) * each {
            assert_eq!(charged(&*store, n).await, Some(Atoms(n.into())), "{n} after {round} writes");
        }
        assert_eq!(charged(&*store, (round + 1) * each).await, None);
    }
    assert_eq!(store.receipt(INDEXED).await, Ok(None), "no receipt is called that");
    let newer = Entry::Receipt(Box::new(receipt("rcpt_1", "0xab", 7)));
    assert_eq!(store.commit(Write { journal: vec![newer], ..Write::default() }).await, Ok(Swap::Done));
    assert_eq!(charged(&*store, 1).await, Some(Atoms(7)), "the newest counts, though an older one is in the index");
    drop(store);
    tamper(&dir.path().join("pontage.redb"), |t| {
        let (lines, receipts) = (t.open_table(JOURNAL).unwrap(), t.open_table(RECEIPTS).unwrap());
        let (first, last) = (receipts.get(INDEXED).unwrap().unwrap().value(), lines::head(&lines).ok().unwrap().lines);
        behind = last - first;
    });
    assert!(behind > 0 && behind < INDEX_EVERY, "{behind} lines are behind the index");
}

#[tokio::test]
async fn lines_of_one_write_share_rows_that_fit_a_page() {
    let dir = TempDir::fresh();
    let store = dir.open();
    assert_eq!(store.commit(sold(0, 60)).await, Ok(Swap::Done));
    drop(store);
    tamper(&dir.path().join("pontage.redb"), |t| {
        let journal = t.open_table(JOURNAL).unwrap();
        let rows = journal.range(..HEAD).unwrap().map(|row| row.unwrap().1.value().to_owned());
        let rows: Vec<String> = rows.collect();
        assert!(rows.iter().all(|row| row.len() < 4_080), "none needs a page of its own size");
        let (most, lines) = (rows.iter().map(String::len).max(), rows.iter().flat_map(|row| row.lines()).count());
        assert!(most > Some(3_000) && lines == 60, "{lines} lines, {} rows, the longest of {most:?}", rows.len());
    });
}

#[tokio::test]
async fn a_file_of_the_version_before_is_audited_and_taken_as_it_is() {
    let dir = TempDir::fresh();
    let path = dir.path().join("pontage.redb");
    let store = Embedded::open(&path).unwrap();
    let (claim, count) = (sample::claim("k", 100), INDEX_EVERY + 3);
    let (key, reference, at) = (claim.key.clone(), claim.reference.clone(), UnixSeconds(1));
    let claimed = Entry::Claimed { key: key.0.clone(), amount: claim.terms.amount, reference, at };
    let write = Write { claim: Some(claim.clone()), journal: vec![claimed], ..Write::default() };
    assert_eq!(store.commit(write).await, Ok(Swap::Done));
    assert_eq!(store.commit(sold(0, 3)).await, Ok(Swap::Done));
    let (gate, lines) = (store.gate().to_owned(), store.lines());
    drop(store);
    tamper(&path, |t| {
        let (mut journal, mut receipts) = (t.open_table(JOURNAL).unwrap(), t.open_table(RECEIPTS).unwrap());
        let head = journal.remove(HEAD).unwrap().unwrap().value().to_owned();
        meta(t).insert("head", head.as_str()).unwrap();
        meta(t).insert("schema", "1").unwrap();
        let row = journal.remove(4).unwrap().unwrap().value().to_owned();
        let lines = lines::in_order(4, &row);
        assert_eq!(lines.len(), 3, "they share a row, which they did not then");
        for (seq, line) in lines {
            journal.insert(seq, line.as_str()).unwrap();
        }
        for n in 0..3 {
            receipts.insert(format!("rcpt_{n}").as_str(), n + 2).unwrap();
        }
        assert!(receipts.remove(INDEXED).unwrap().is_none(), "so few were not indexed yet");
    });
    let faults = |path: &Path| Embedded::audit(path).unwrap().faults;
    let before = faults(&path);
    for _ in 0..2 {
        let store = Embedded::open(&path).unwrap();
        assert_eq!((store.gate(), store.lines()), (gate.as_str(), lines.clone()));
        assert_eq!(store.claim(&key).await, Ok(Some(claim.clone())));
        assert_eq!(charged(&store, 2).await, Some(Atoms(2)));
        drop(store);
        assert_eq!(faults(&path), before, "what the audit says of it has not changed");
        tamper(&path, |t| {
            let indexed = t.open_table(RECEIPTS).unwrap().get(INDEXED).unwrap().map(|v| v.value());
            assert_eq!(indexed, Some(4), "its receipts need not be read again");
        });
    }
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.commit(sold(3, count)).await, Ok(Swap::Done));
    for n in [0, 2, 3, count + 2] {
        assert_eq!(charged(&store, n).await, Some(Atoms(n.into())), "{n}");
    }
    drop(store);
    Embedded::open(&path).unwrap();
}

#[tokio::test]
async fn what_was_written_briefly_is_forgotten_by_a_crash_and_its_lines_come_with_the_next_write() {
    let dir = TempDir::fresh();
    let by = || "r0".to_owned();
    let promised = Claim { standing: Standing::Promised { by: by() }, ..sample::claim("k", 100) };
    let claimed = Entry::Claimed {
        key: "k".into(),
        amount: Atoms(100),
        reference: promised.reference.clone(),
        at: UnixSeconds(1_000),
    };
    let briefly = Write { claim: Some(promised.clone()), journal: vec![claimed], brief: true, ..Write::default() };
    let path = dir.path().join("pontage.redb");
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.commit(briefly.clone()).await, Ok(Swap::Done));
    assert_eq!(store.open_claims(UnixSeconds(1_000)).await, Ok(vec![]), "nothing of it is in the file");
    drop(store);

    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.claim(&promised.key).await, Ok(None));
    assert_eq!(store.lines().len(), 0);
    assert_eq!(store.commit(briefly).await, Ok(Swap::Done), "the proof is as good as new");
    let taking = promised
        .apply(Op::Take { by: by(), amount: Atoms(100), output: None, receipt: None }, UnixSeconds(1_001))
        .unwrap();
    let line = Entry::Taking { key: "k".into(), amount: Atoms(100), at: UnixSeconds(1_001) };
    let write = Write { claim: Some(taking.clone()), journal: vec![line], ..Write::default() };
    assert_eq!(store.commit(write.clone()).await, Ok(Swap::Done));
    let lines = store.lines();
    assert!(lines.len() == 2 && lines[0].contains("claimed") && lines[1].contains("taking"), "{lines:?}");
    assert_eq!(store.commit(write).await, Ok(Swap::Lost(Box::new(Some(taking)))), "and nothing of it is left behind");
    assert_eq!(store.lines().len(), 2);
    assert!(store.briefs.is_empty(), "in memory neither");
}

#[tokio::test]
async fn a_brief_write_stands_in_line_behind_a_durable_one_of_its_key() {
    let dir = TempDir::fresh();
    let store = dir.open();
    let mut durable = Box::pin(store.commit(claim_write("k")));
    assert!(futures::poll!(&mut durable).is_pending(), "it is in the queue");
    drop(durable);
    let brief = Write { brief: true, ..claim_write("k") };
    assert!(matches!(store.commit(brief).await, Ok(Swap::Lost(_))), "whoever was first has it");
}
