#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::rules::plan::ServerRules;
use crate::upstream::server::{Members, Server};
use crate::upstream::standing::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Servers by (weight, group, limit), named a, b, c …
fn members(servers: &[(u32, u32, Option<u32>)]) -> Members {
    let seat = |(id, &(weight, group, max_concurrent)): (usize, &(u32, u32, Option<u32>))| {
        let host = format!("{}.example", char::from(b'a' + u8::try_from(id).unwrap()));
        let rules =
            ServerRules { name: None, tls: false, host, port: 1, prefix: String::new(), weight, group, max_concurrent };
        Server::listed(id, &rules, &Members::default())
    };
    Members::of(servers.iter().enumerate().map(seat).collect())
}

fn equals(n: usize) -> Members {
    members(&vec![(1, 0, None); n])
}

fn enter(m: &Members, how: Balance, key: Affinity, turn: u64) -> Option<usize> {
    m.enter(how, key, &[], turn, Moment::now()).map(|(p, _)| p)
}

/// Who takes `count` requests that all run on.
fn spread(m: &Members, how: Balance, key: Affinity, count: u64) -> Vec<u64> {
    let mut taken = vec![0; m.servers.len()];
    for turn in 0..count {
        if let Some(position) = enter(m, how, key, turn) {
            taken[position] += 1;
        }
    }
    taken
}

#[test]
fn least_outstanding_shares_what_runs_by_weight() {
    for (weights, want, why) in [
        (vec![1, 1], vec![200, 200], "two are always compared"),
        (vec![1, 3], vec![100, 300], "by weight"),
        (vec![1, 1, 1, 1], vec![100; 4], "many: by two choices"),
        (vec![1, 2, 5], vec![50, 100, 250], "many, by weight"),
    ] {
        let m = members(&weights.iter().map(|w| (*w, 0, None)).collect::<Vec<_>>());
        let got = spread(&m, Balance::LeastOutstanding, Affinity::NONE, 400);
        assert!(got.iter().zip(&want).all(|(g, w): (&u64, &u64)| g.abs_diff(*w) <= 8), "{why}: {got:?}");
    }
}

#[test]
fn idle_servers_take_turns_by_weight() {
    let m = members(&[(1, 0, None), (3, 0, None), (1, 0, None)]);
    let mut taken = [0; 3];
    for turn in 0..50 {
        let position = enter(&m, Balance::LeastOutstanding, Affinity::NONE, turn).unwrap();
        m.servers[position].standing.leave();
        taken[position] += 1;
    }
    assert_eq!(taken, [10, 30, 10]);
}

#[test]
fn one_that_is_busy_is_avoided_by_everyone_who_sees_another() {
    let m = equals(10);
    for _ in 0..50 {
        m.servers[4].enter(Moment::now());
    }
    let got = spread(&m, Balance::LeastOutstanding, Affinity::NONE, 90);
    assert_eq!(got[4], 0, "{got:?}");
}

#[test]
fn of_two_with_equal_load_the_clearly_slower_loses_until_it_was_long_not_heard() {
    for (a, b, want, why) in [
        (900, 100, 0, "nine times as slow"),
        (150, 100, 5, "not clearly"),
        (18, 2, 5, "noise of the network"),
        (100, 900, 10, "the other way round"),
    ] {
        let m = equals(2);
        let now = Moment::now();
        m.servers[0].standing.heard(Duration::from_millis(a), now);
        m.servers[1].standing.heard(Duration::from_millis(b), now);
        let first = |now| {
            (0..10)
                .filter(|turn| {
                    let (p, _) = m.enter(Balance::LeastOutstanding, Affinity::NONE, &[], *turn, now).unwrap();
                    m.servers[p].standing.leave();
                    p == 0
                })
                .count()
        };
        assert_eq!(first(now), want, "{why}");
        assert_eq!(first(now.after(Duration::from_secs(30))), 5, "{why}: forgotten");
        m.servers[1].enter(now);
        m.servers[1].enter(now);
        assert_eq!(first(now), 10, "{why}: load comes first");
    }
}

#[test]
fn round_robin_is_smooth_and_by_weight() {
    let m = members(&[(5, 0, None), (1, 0, None), (1, 0, None)]);
    let order: Vec<_> = (0..14).map(|n| enter(&m, Balance::RoundRobin, Affinity::NONE, n).unwrap()).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0], "as nginx documents it");
}

#[test]
fn a_key_stays_on_its_server_however_busy_and_moves_only_when_that_is_out() {
    let m = equals(5);
    let key = Affinity::of(b"user 7");
    let home = enter(&m, Balance::Consistent, key, 0).unwrap();
    assert!((1..200).all(|turn| enter(&m, Balance::Consistent, key, turn) == Some(home)));
    m.servers[home].standing.connect_failed(Moment::now());
    let second = enter(&m, Balance::Consistent, key, 0).unwrap();
    assert_ne!(second, home);
    assert!((0..50).all(|turn| enter(&m, Balance::Consistent, key, turn) == Some(second)), "all to the same other one");
    let owners: BTreeSet<_> =
        (0..50u8).map(|n| enter(&m, Balance::Consistent, Affinity::of(&[n]), 0).unwrap()).collect();
    assert_eq!(owners.len(), 4, "keys are spread over those that are in");
}

#[test]
fn a_prefix_stays_on_its_server_until_that_has_a_quarter_more_than_the_mean() {
    let m = equals(4);
    let key = Affinity::of(b"You are a helpful assistant.");
    let got = spread(&m, Balance::Prefix, key, 400);
    assert_eq!(got.iter().sum::<u64>(), 400);
    assert!(got.iter().all(|n| *n <= 126), "nobody above 1.25 × 100: {got:?}");
    let most = got.iter().max().unwrap();
    assert!(*most >= 120, "and its own server has its share and that quarter: {got:?}");

    let m = equals(4);
    let few = spread(&m, Balance::Prefix, key, 4);
    assert_eq!(few.iter().filter(|n| **n > 0).count(), 1, "a few stay together: {few:?}");
}

#[test]
fn without_a_key_the_ring_is_not_asked() {
    for how in [Balance::Consistent, Balance::Prefix] {
        assert_eq!(spread(&equals(2), how, Affinity::NONE, 10), [5, 5]);
        assert_eq!(spread(&equals(2), how, Affinity::of(b""), 10), [5, 5]);
    }
}

#[test]
fn the_next_group_is_used_only_when_nobody_of_the_one_before_can_take_more() {
    let m = members(&[(1, 1, None), (1, 0, Some(2)), (1, 0, Some(1)), (1, 7, None)]);
    let groups: Vec<u32> = m.servers.iter().map(|s| s.rules.group).collect();
    assert_eq!(groups, [0, 0, 1, 7], "in order of group, whatever that of the file");
    let got = spread(&m, Balance::LeastOutstanding, Affinity::NONE, 10);
    assert_eq!(got, [2, 1, 7, 0], "spill over the limits of the first group, and no further");
    m.servers[0].standing.leave();
    assert_eq!(enter(&m, Balance::LeastOutstanding, Affinity::NONE, 0), Some(0), "back as soon as there is room");
    m.servers[2].standing.connect_failed(Moment::now());
    assert_eq!(enter(&m, Balance::LeastOutstanding, Affinity::NONE, 0), Some(3), "two groups are out or full");
    m.servers[3].standing.connect_failed(Moment::now());
    assert_eq!(enter(&m, Balance::LeastOutstanding, Affinity::NONE, 0), None);
}

#[test]
fn no_balance_gives_a_server_twice_to_one_request_or_more_than_its_limit() {
    for how in [Balance::LeastOutstanding, Balance::RoundRobin, Balance::Consistent, Balance::Prefix] {
        for key in [Affinity::NONE, Affinity::of(b"k")] {
            let m = members(&[(1, 0, Some(3)), (9, 0, Some(2)), (2, 1, Some(1))]);
            let tried = m.enter(how, key, &[0, 2], 3, Moment::now()).map(|(p, _)| m.servers[p].id);
            assert_eq!(tried, Some(1), "{how:?}");
            m.servers[1].standing.leave();
            assert_eq!(spread(&m, how, key, 100), [3, 2, 1], "{how:?} {key:?}");
        }
    }
}

#[test]
fn a_thousand_servers_are_all_used() {
    let seat = |id| {
        let host = format!("s{id}");
        let rules = ServerRules {
            name: None,
            tls: false,
            host,
            port: 1,
            prefix: String::new(),
            weight: 1,
            group: 0,
            max_concurrent: None,
        };
        Server::listed(id, &rules, &Members::default())
    };
    let m = Members::of((0..MOST_SERVERS).map(seat).collect());
    for (how, key) in [(Balance::LeastOutstanding, Affinity::NONE), (Balance::RoundRobin, Affinity::NONE)] {
        let mut taken: BTreeMap<usize, u32> = BTreeMap::new();
        for turn in 0..2 * MOST_SERVERS as u64 {
            *taken.entry(enter(&m, how, key, turn).unwrap()).or_default() += 1;
        }
        assert_eq!(taken.len(), MOST_SERVERS, "{how:?}");
    }
}
