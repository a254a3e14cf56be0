//! A gate is killed at some point between a record and the lines of its journal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::channel::{Op, sample};
use crate::journal::Receipt;
use crate::journal::sample::receipt;
use crate::store::redis::doubt::Lines;
use crate::store::redis::left::by_others;

/// How far a gate comes with a change before it is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Killed {
    /// The record says it.
    Unwritten,
    /// And the journal.
    Journalled,
    /// And everybody can find the receipt.
    Told,
}

fn sold(id: &str) -> Entry {
    Entry::Receipt(Box::new(Receipt { rail: "tempo/session".into(), complete: true, ..receipt(id, "0xaa", 30) }))
}

fn accept(channel: &Channel, amount: u128) -> Channel {
    let op = Op::Accept { voucher: sample::voucher(amount), min_delta: Atoms(1) };
    channel.apply(&format!("to {amount}"), op, sample::START).unwrap().0
}

async fn a_channel(gate: &Redis) -> Channel {
    let mut channel = sample::open("0xaa", 10);
    channel.revision = 1;
    let write = Write { channel: Some(Arc::new(channel.clone())), ..Write::default() };
    assert_eq!(gate.commit(write).await, Ok(Swap::Done));
    channel
}

/// A change of the channel that leaves these lines; its gate does not live to answer.
async fn dies(gate: Redis, next: &Channel, lines: Vec<Entry>, killed: Killed) {
    let (key, text) = (channel_key(&next.id.0), json(next).unwrap());
    let mut own = Lines::new(next.revision, lines.clone());
    gate.pen.put(&key, next.revision, &text, &mut own, &[], |_| false).await.unwrap();
    match killed {
        Killed::Unwritten => {}
        Killed::Journalled => {
            gate.journal.commit(Write { journal: lines, ..Write::default() }).await.unwrap();
        }
        Killed::Told => gate.pen.write(&key, own).await.unwrap(),
    }
}

/// Lines of the journal with this word.
fn lines(gate: &Redis, word: &str) -> Vec<String> {
    gate.journal.lines().into_iter().filter(|line| line.contains(word)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_is_started_again_after_a_kill_at_any_point_has_each_line_once() {
    for killed in [Killed::Unwritten, Killed::Journalled, Killed::Told] {
        let server = Server::with(&SAFE);
        let a = server.open("a.redb").await.unwrap();
        let channel = a_channel(&a).await;
        dies(a, &accept(&channel, 50), vec![sold("rcpt_1")], killed).await;
        for start in 1..=2 {
            let a = server.open("a.redb").await.unwrap();
            assert_eq!(lines(&a, "\"entry\":\"receipt\"").len(), 1, "{killed:?}, start {start}");
            let answered = killed != Killed::Unwritten;
            let found = a.receipt("rcpt_1").await.unwrap().expect("it can be found");
            assert_eq!(found.complete, answered, "{killed:?}: what never left is not complete");
            assert_eq!(
                lines(&a, "\"entry\":\"doubted\"").len(),
                usize::from(!answered),
                "{killed:?}: the books say so"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_a_gate_that_died_outlive_what_others_change_and_are_written_by_one_of_them() {
    let server = Server::with(&SAFE);
    let a = server.open("a.redb").await.unwrap();
    let (b, c) = (server.open("b.redb").await.unwrap(), server.open("c.redb").await.unwrap());
    let channel = a_channel(&a).await;
    let mut last = accept(&channel, 50);
    let last_sign = std::time::Instant::now();
    dies(a, &last, vec![sold("rcpt_1")], Killed::Unwritten).await;
    // More changes than versions of a record are kept.
    for amount in 51..56 {
        last = accept(&last, amount);
        let line = Entry::Paid { key: format!("n{amount}"), at: sample::START };
        let write = Write { channel: Some(Arc::new(last.clone())), journal: vec![line], ..Write::default() };
        assert_eq!(b.commit(write).await, Ok(Swap::Done));
    }
    let written = || lines(&b, "rcpt_1").len() + lines(&c, "rcpt_1").len();
    if last_sign.elapsed() < Duration::from_secs(ALIVE_SECONDS) / 2 {
        assert_eq!(written(), 0, "it may only be slow");
    }
    until(|| async { written() > 0 }).await;
    until(|| async { b.receipt("rcpt_1").await.unwrap().is_some_and(|receipt| !receipt.complete) }).await;
    let taken = b.channel(&channel.id).await.unwrap().unwrap();
    assert_eq!(taken, Channel { revision: taken.revision, ..last.clone() }, "nothing else is changed by it");
    // Neither another look of both nor the gate itself finds anything more to do.
    for gate in [&b, &c] {
        by_others(&gate.pen, &gate.link).await.unwrap();
    }
    let a = server.open("a.redb").await.unwrap();
    assert_eq!((written(), lines(&a, "rcpt_1").len()), (2, 0), "a receipt, and that nobody knows what was delivered");
    assert_eq!(lines(&b, "\"entry\":\"paid\"").len(), 5, "and its own lines as ever");
    // The gate that took them over may be killed as well before it has written them: then it writes them at its start.
    let next = accept(&taken, 60);
    dies(c, &next, vec![sold("rcpt_2")], Killed::Unwritten).await;
    let c = server.open("c.redb").await.unwrap();
    assert_eq!(lines(&c, "\"id\":\"rcpt_2\"").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gate_that_is_gone_had_written_is_not_written_by_another() {
    let server = Server::with(&SAFE);
    let a = server.open("a.redb").await.unwrap();
    let b = server.open("b.redb").await.unwrap();
    let channel = a_channel(&a).await;
    let gone = a.gate().to_owned();
    let next = accept(&channel, 50);
    dies(a, &next, vec![sold("rcpt_1")], Killed::Told).await;
    until(|| async { b.alive(&gone).await == Ok(false) }).await;
    by_others(&b.pen, &b.link).await.unwrap();
    assert_eq!(b.channel(&channel.id).await.unwrap(), Some(next), "and the record stays as it was");
    assert_eq!(lines(&b, "rcpt_1").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_owes_its_lines_as_a_channel_does() {
    let server = Server::with(&SAFE);
    let a = server.open("a.redb").await.unwrap();
    let claim = crate::claim::sample::claim("k", 30);
    assert_eq!(a.commit(put(&claim)).await, Ok(Swap::Done));
    let dead = claim.apply(crate::claim::Op::Die, UnixSeconds(1_100)).unwrap();
    let mut own = Lines::new(dead.revision, vec![Entry::Dead { key: "k".into(), at: UnixSeconds(1_100) }]);
    let text = json(&dead).unwrap();
    a.pen.put(&claim_key("k"), dead.revision, &text, &mut own, &[], |_| false).await.unwrap();
    drop(a);
    let a = server.open("a.redb").await.unwrap();
    assert_eq!(lines(&a, "\"entry\":\"dead\"").len(), 1);
    assert_eq!(a.open_claims(UnixSeconds(1_100)).await, Ok(vec![]), "and it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_over_and_the_total_of_a_day_end_by_themselves_and_owe_nothing_before() {
    let server = Server::with(&SAFE);
    let (a, b) = (server.open("a.redb").await.unwrap(), server.open("b.redb").await.unwrap());
    let opening = sample::opening("0xaa", 10);
    let write = |channel: &Channel| Write { channel: Some(Arc::new(channel.clone())), ..Write::default() };
    a.commit(write(&opening)).await.unwrap();
    let redis = b.streams_connection();
    let left = async |key: String| redis::cmd("TTL").arg(key).query_async::<i64>(&mut redis.clone()).await.unwrap();
    assert_eq!(left(channel_key("0xaa")).await, -1);
    // One gate dies with lines to write, and another ends the channel before anybody knows.
    let next = accept_nothing(&opening);
    dies(a, &next, vec![sold("rcpt_1")], Killed::Unwritten).await;
    let tx = next.payers_tx.as_ref().unwrap().tx.clone();
    let (failed, _) = next.apply("failed", Op::Dropped { tx }, sample::START).unwrap();
    assert_eq!(b.commit(write(&failed)).await, Ok(Swap::Done));
    let kept = left(channel_key("0xaa")).await;
    assert!((29 * 86_400..=30 * 86_400).contains(&kept), "{kept}");
    assert_eq!(b.channels().await, Ok(vec![]));
    until(|| async { lines(&b, "\"id\":\"rcpt_1\"").len() == 1 }).await;
    let listed = async || redis::cmd("SCARD").arg(OPEN_CHANNELS).query_async::<u64>(&mut redis.clone()).await.unwrap();
    until(async || listed().await == 0).await;
    let kept = left(channel_key("0xaa")).await;
    assert!((29 * 86_400..=30 * 86_400).contains(&kept), "nor is it kept for longer: {kept}");
    assert_eq!(
        redis::cmd("KEYS").arg("pontage:payer:*").query_async::<Vec<String>>(&mut redis.clone()).await.unwrap().len(),
        0
    );

    b.commit(Write { tally: vec![("lost".to_owned(), 3, Usd(5))], ..Write::default() }).await.unwrap();
    let kept = left(tally_key("lost", 3)).await;
    assert!(kept > 0 && kept <= i64::try_from(TALLY_SECONDS).unwrap(), "{kept}");
}

/// A change while it is opening.
fn accept_nothing(channel: &Channel) -> Channel {
    let mut next = channel.clone();
    next.revision += 1;
    next.touched_at = next.touched_at.plus(1);
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_a_change_that_was_in_doubt_comes_after_its_own_lines() {
    let server = Server::with(&SAFE);
    let a = server.open("a.redb").await.unwrap();
    let next = accept(&a_channel(&a).await, 50);
    let (key, text) = (channel_key(&next.id.0), json(&next).unwrap());
    let mut own = Lines::new(next.revision, vec![sold("rcpt_1")]);
    a.pen.put(&key, next.revision, &text, &mut own, &[], |_| false).await.unwrap();
    a.pen.doubts.keep(&key, own).await;
    let cut = Receipt { complete: false, ..receipt("rcpt_1", "0xaa", 30) };
    let note = Write { journal: vec![Entry::Receipt(Box::new(cut))], ..Write::default() };
    assert_eq!(a.commit(note).await, Ok(Swap::Done));
    a.pen.doubts.settle_all().await.unwrap();
    let said = lines(&a, "rcpt_1");
    assert_eq!(said.iter().map(|line| line.contains("\"complete\":true")).collect::<Vec<_>>(), [true, false]);
    assert_eq!(a.receipt("rcpt_1").await.unwrap().map(|receipt| receipt.complete), Some(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_a_living_gate_works_on_is_not_changed_under_its_hands() {
    use crate::claim::Op;
    let server = Server::with(&SAFE);
    let a = server.open("a.redb").await.unwrap();
    let (b, c) = (server.open("b.redb").await.unwrap(), server.open("c.redb").await.unwrap());
    let (gone, now) = (a.gate().to_owned(), UnixSeconds(1_100));
    let claim = crate::claim::sample::claim("k", 30);
    assert_eq!(a.commit(put(&claim)).await, Ok(Swap::Done));
    let owed = claim.apply(Op::PayUnserved { transaction: None }, now).unwrap();
    let mut own = Lines::new(owed.revision, vec![Entry::Paid { key: "k".into(), at: now }]);
    a.pen.put(&claim_key("k"), owed.revision, &json(&owed).unwrap(), &mut own, &[], |_| false).await.unwrap();
    drop(a);
    // The payer is served by another gate before anybody knows that the first is gone.
    let by = format!("{}/r1", b.gate());
    let terms = &owed.terms;
    let redeem = Op::Redeem { by: by.clone(), route: terms.route.clone(), need: terms.amount };
    let serving = owed.apply(redeem, now).unwrap();
    assert_eq!(b.commit(put(&serving)).await, Ok(Swap::Done));
    until(|| async { c.alive(&gone).await == Ok(false) }).await;
    for _ in 0..3 {
        by_others(&c.pen, &c.link).await.unwrap();
    }
    let paid = || lines(&b, "\"entry\":\"paid\"").len() + lines(&c, "\"entry\":\"paid\"").len();
    assert_eq!(paid(), 0);
    let delivered = serving.apply(Op::Deliver { by, receipt: "rcpt_1".to_owned() }, now).unwrap();
    assert_eq!(b.commit(put(&delivered)).await, Ok(Swap::Done), "its delivery is written");
    until(|| async { paid() == 1 }).await;
}
