#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use crate::rules::plan::{self, PoolRules};
use crate::upstream::pool::tests::{pool, rules, running};
use crate::upstream::{Affinity, Picked, Pool, Unplaced};
use futures::FutureExt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

type Waiting = Pin<Box<dyn Future<Output = Result<Picked, Unplaced>> + Send>>;

/// Servers that take one request each, and a queue of that length.
fn one_each(servers: usize, length: usize) -> PoolRules {
    let mut r = rules(&(1..=servers).map(|n| (u16::try_from(n).unwrap(), 1)).collect::<Vec<_>>());
    r.servers.iter_mut().for_each(|s| s.max_concurrent = Some(1));
    r.queue = plan::Queue { length, wait_seconds: 30 };
    r
}

fn wait(pool: &Arc<Pool>, tried: &[usize]) -> Waiting {
    let (pool, tried) = (Arc::clone(pool), tried.to_vec());
    Box::pin(async move { pool.wait(Affinity::NONE, &tried).await })
}

/// Polls once: what is decided now.
fn now(waiting: &mut Waiting) -> Option<Result<Picked, Unplaced>> {
    waiting.now_or_never()
}

#[tokio::test]
async fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    let p = pool(one_each(1, 8));
    let mut held = wait(&p, &[]).await.unwrap();
    let mut line: Vec<Waiting> = (0..3).map(|_| wait(&p, &[])).collect();
    assert!(line.iter_mut().all(|w| now(w).is_none()));
    assert_eq!((p.overview().waiting, p.overview().waits), (3, 3));
    for n in 0..3 {
        assert!(line.iter_mut().all(|w| now(w).is_none()), "nobody before a place is free");
        drop(held);
        let mut late = wait(&p, &[]);
        assert!(now(&mut late).is_none(), "a newcomer does not pass");
        drop(late);
        held = now(&mut line.remove(0)).expect("first come, first served").unwrap();
        assert_eq!((running(&p), p.overview().waiting), (vec![1], 2 - n));
    }
}

#[tokio::test]
async fn whoever_leaves_the_line_gives_their_turn_on() {
    let p = pool(one_each(1, 8));
    let held = wait(&p, &[]).await.unwrap();
    let [mut a, mut b, mut c] = [(); 3].map(|()| wait(&p, &[]));
    assert!([&mut a, &mut b, &mut c].into_iter().all(|w| now(w).is_none()));
    drop(a);
    assert_eq!(p.overview().waiting, 2, "gone before their turn");
    drop(held);
    assert_eq!(running(&p), [1], "the place is handed to the next");
    drop(b);
    let placed = now(&mut c).expect("gone with a place in hand: it goes on").unwrap();
    drop(placed);
    assert_eq!((running(&p), p.overview().waiting), (vec![0], 0));
}

#[tokio::test]
async fn a_line_is_no_longer_than_the_rules_say_and_a_pool_whose_line_is_full_is_not_available() {
    for length in [0, 2] {
        let p = pool(one_each(2, length));
        let held = [wait(&p, &[]).await.unwrap(), wait(&p, &[]).await.unwrap()];
        let mut line: Vec<Waiting> = (0..length).map(|_| wait(&p, &[])).collect();
        for w in &mut line {
            assert!(p.available(), "busy for a moment is not down");
            assert!(now(w).is_none());
        }
        assert!(!p.available(), "nobody pays to be sent away");
        let refused = now(&mut wait(&p, &[])).unwrap().unwrap_err();
        assert_eq!(refused, Unplaced::Full { retry_after_seconds: 30 });
        assert_eq!(p.overview().refused, 1);
        drop(held);
        let placed: Vec<_> = line.iter_mut().map(|w| now(w).unwrap().unwrap()).collect();
        assert_eq!((placed.len(), p.available()), (length, true));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_the_rules_patience() {
    let p = pool(one_each(1, 8));
    let _held = wait(&p, &[]).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(wait(&p, &[]).await.unwrap_err(), Unplaced::Full { retry_after_seconds: 30 });
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!((p.overview().waiting, p.overview().refused), (0, 1));
}

#[tokio::test]
async fn one_who_tried_a_server_does_not_hold_up_those_who_may_have_it() {
    let p = pool(one_each(2, 8));
    let [zero, one] = [wait(&p, &[1]).await.unwrap(), wait(&p, &[0]).await.unwrap()];
    let (mut tried_zero, mut fresh) = (wait(&p, &[0]), wait(&p, &[]));
    assert!(now(&mut tried_zero).is_none() && now(&mut fresh).is_none());
    drop(zero);
    assert!(now(&mut tried_zero).is_none(), "it never goes back to a server it tried");
    assert_eq!(now(&mut fresh).unwrap().unwrap().index(), 0);
    let mut later = wait(&p, &[]);
    assert_eq!(now(&mut later).unwrap().unwrap().index(), 0, "nor does it stand in the way of those who come after it");
    drop(one);
    assert_eq!(now(&mut tried_zero).unwrap().unwrap().index(), 1);
}

#[tokio::test]
async fn a_server_that_comes_back_goes_to_the_first_in_line_and_not_to_a_newcomer() {
    let p = pool(one_each(2, 8));
    let standing = Arc::clone(&p.members.load().servers[1].standing);
    standing.checked(false);
    standing.checked(false);
    let _held = wait(&p, &[]).await.unwrap();
    let mut first = wait(&p, &[]);
    assert!(now(&mut first).is_none());
    standing.checked(true);
    let mut newcomer = wait(&p, &[]);
    assert!(now(&mut newcomer).is_none(), "nobody was told that it is back, and still it is not passed");
    assert_eq!(now(&mut first).unwrap().unwrap().index(), 1);
    assert_eq!(now(&mut newcomer).unwrap().unwrap().index(), 1, "the first gave it back at once");
}

#[tokio::test]
async fn nobody_waits_for_servers_that_are_out_or_tried() {
    let p = pool(one_each(2, 8));
    let held = [wait(&p, &[]).await.unwrap(), wait(&p, &[]).await.unwrap()];
    assert_eq!(now(&mut wait(&p, &[0, 1])).unwrap().unwrap_err(), Unplaced::Nobody);
    let mut waiting = wait(&p, &[]);
    assert!(now(&mut waiting).is_none());
    held.iter().for_each(Picked::connect_failed);
    assert!(!p.available());
    assert_eq!(now(&mut wait(&p, &[])).unwrap().unwrap_err(), Unplaced::Nobody);
    drop(held);
    assert_eq!(now(&mut waiting).unwrap().unwrap_err(), Unplaced::Nobody, "told at once, not at the end of the wait");
}

#[tokio::test]
async fn a_reload_keeps_the_line_and_its_order() {
    use crate::ids::PoolName;
    use crate::upstream::Pools;
    use std::collections::BTreeMap;
    let build = |rules: PoolRules, previous: Option<&Pools>| {
        Pools::build(&BTreeMap::from([(PoolName::from("p"), Arc::new(rules))]), previous).unwrap()
    };
    let first = build(one_each(1, 8), None);
    let old = Arc::clone(first.get(&PoolName::from("p")).unwrap());
    let held = wait(&old, &[]).await.unwrap();
    let mut before = wait(&old, &[]);
    assert!(now(&mut before).is_none());
    let mut patient = one_each(1, 8);
    patient.queue.wait_seconds = 60;
    let second = build(patient, Some(&first));
    let new = Arc::clone(second.get(&PoolName::from("p")).unwrap());
    let mut after = wait(&new, &[]);
    assert!(now(&mut after).is_none());
    drop(held);
    assert!(now(&mut after).is_none());
    drop(now(&mut before).unwrap().unwrap());
    assert!(now(&mut after).unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_are_all_served_and_never_more_than_the_limit() {
    let p = pool(one_each(3, 10_000));
    let tasks = (0..2_000u64).map(|n| {
        let p = Arc::clone(&p);
        tokio::spawn(async move {
            let waiting = p.wait(Affinity::NONE, &[]);
            if n % 7 == 0 {
                // Leaves at a point of its own choosing.
                let _ = tokio::time::timeout(Duration::from_micros(n), waiting).await;
                return 0;
            }
            let placed = waiting.await.unwrap();
            assert!(running(&p).iter().all(|n| *n <= 1));
            tokio::task::yield_now().await;
            drop(placed);
            1
        })
    });
    let served: u32 = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(tasks))
        .await
        .expect("nobody is forgotten")
        .into_iter()
        .map(|t| t.unwrap())
        .sum();
    assert_eq!(served, 2_000 - 2_000u32.div_ceil(7));
    assert_eq!((running(&p), p.overview().waiting), (vec![0, 0, 0], 0));
}
