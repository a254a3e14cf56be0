#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::rules::plan::{Balance, Discovery, Queue, ServerRules};
use crate::secret::SecretRef;
use crate::upstream::Pools;
use std::collections::BTreeMap;

pub(crate) fn rules(servers: &[(u16, u32)]) -> PoolRules {
    PoolRules {
        name: PoolName::from("p"),
        profile: "vllm".into(),
        surfaces: Vec::new(),
        servers: servers
            .iter()
            .map(|&(port, weight)| ServerRules {
                tls: false,
                host: "127.0.0.1".into(),
                port,
                prefix: String::new(),
                weight,
                group: 0,
                name: None,
                max_concurrent: None,
            })
            .collect(),
        discovery: Discovery::Listed,
        balance: Balance::default(),
        queue: Queue::default(),
        fallback: None,
        api_key: None,
        health: None,
        timeouts: Timeouts::default(),
    }
}

fn pools(rules: PoolRules, previous: Option<&Pools>) -> Result<Pools, Vec<String>> {
    Pools::build(&BTreeMap::from([(rules.name.clone(), Arc::new(rules))]), previous)
}

pub(crate) fn pool(rules: PoolRules) -> Arc<Pool> {
    Arc::clone(pools(rules, None).unwrap().get(&PoolName::from("p")).unwrap())
}

pub(crate) fn running(pool: &Pool) -> Vec<usize> {
    pool.status().iter().map(|s| s.in_flight).collect()
}

#[test]
fn the_server_with_the_least_to_do_takes_the_next_request() {
    for (weights, picks, want, why) in [
        (vec![1, 1, 1], 6, vec![2, 2, 2], "equals share"),
        (vec![1, 3], 8, vec![2, 6], "by weight"),
        (vec![1], 3, vec![3], "alone"),
    ] {
        let p = pool(rules(&weights.iter().map(|&w| (1, w)).collect::<Vec<_>>()));
        let held: Vec<_> = (0..picks).map(|_| p.pick(Affinity::NONE, &[]).unwrap()).collect();
        assert_eq!(running(&p), want, "{why}");
        drop(held);
        assert!(running(&p).iter().all(|n| *n == 0), "a finished request is not counted: {why}");
    }
}

#[test]
fn idle_equals_take_turns() {
    let p = pool(rules(&[(1, 1), (2, 1)]));
    let picks: Vec<usize> = (0..4).map(|_| p.pick(Affinity::NONE, &[]).unwrap().index()).collect();
    assert_eq!(picks, [0, 1, 0, 1]);
}

#[test]
fn a_tried_or_resting_server_is_passed_over_and_a_pool_of_such_is_not_available() {
    let p = pool(rules(&[(1, 1), (2, 1)]));
    assert_eq!(p.pick(Affinity::NONE, &[0]).unwrap().index(), 1);
    assert!(p.pick(Affinity::NONE, &[0, 1]).is_none());
    p.pick(Affinity::NONE, &[1]).unwrap().connect_failed();
    assert!(p.available());
    assert!((0..4).all(|_| p.pick(Affinity::NONE, &[]).unwrap().index() == 1));
    p.pick(Affinity::NONE, &[]).unwrap().eject_for_auth();
    assert!(!p.available() && p.pick(Affinity::NONE, &[]).is_none());
    assert!(pool(rules(&[])).pick(Affinity::NONE, &[]).is_none(), "no servers at all");
}

#[test]
fn a_reload_keeps_an_unchanged_pool_with_everything_it_knows() {
    let name = PoolName::from("p");
    let first = pools(rules(&[(1, 1)]), None).unwrap();
    let held = first.get(&name).unwrap().pick(Affinity::NONE, &[]).unwrap();
    held.connect_failed();
    let same = pools(rules(&[(1, 1)]), Some(&first)).unwrap();
    assert!(Arc::ptr_eq(first.get(&name).unwrap(), same.get(&name).unwrap()));

    let mut slower = rules(&[(1, 1)]);
    slower.timeouts.idle_seconds = 7;
    let kept = pools(slower, Some(&first)).unwrap();
    let kept = kept.get(&name).unwrap();
    assert_eq!(kept.timeouts().idle_seconds, 7);
    assert_eq!((kept.status()[0].in_flight, kept.available()), (1, false), "same servers, same state");

    let other = pools(rules(&[(2, 1)]), Some(&first)).unwrap();
    assert!(other.get(&name).unwrap().available(), "another server starts afresh");
}

#[test]
fn a_reload_that_adds_removes_or_reweighs_servers_keeps_what_is_known_of_those_that_stay() {
    let name = PoolName::from("p");
    let first = pools(rules(&[(1, 1), (2, 1), (3, 1)]), None).unwrap();
    let was = Arc::clone(first.get(&name).unwrap());
    let [on_one, on_two, on_three] = [[1, 2], [0, 2], [0, 1]].map(|others| was.pick(Affinity::NONE, &others).unwrap());
    on_two.connect_failed();
    on_three.who().absurd_usage();
    on_one.hear(&m()).served();

    let mut next = rules(&[(4, 1), (3, 9), (2, 5)]);
    next.balance = Balance::RoundRobin;
    next.servers[1].group = 1;
    next.servers[1].max_concurrent = Some(1);
    let second = pools(next, Some(&first)).unwrap();
    let is = second.get(&name).unwrap();
    let known: BTreeMap<String, _> = is
        .status()
        .into_iter()
        .map(|s| (s.name.clone(), (s.in_flight, s.usable, s.ejections, s.usage_alarms)))
        .collect();
    assert_eq!(known["127.0.0.1:4"], (0, true, 0, 0), "new");
    assert_eq!(known["127.0.0.1:3"], (1, true, 0, 1), "reweighed, in another group, with a limit");
    assert_eq!(known["127.0.0.1:2"], (1, false, 1, 0), "still at rest");
    assert_eq!(known.len(), 3, "gone");
    assert_eq!(is.pick(Affinity::NONE, &[0]).map(|p| p.index()), None, "what ran before the limit counts against it");
    drop((on_two, on_three));
    assert_eq!(is.pick(Affinity::NONE, &[0]).map(|p| p.index()), Some(1));
    assert_eq!((running(is), running(&was)), (vec![0, 0, 0], vec![1, 0, 0]), "one count, whoever looks");
    drop(on_one);
    assert_eq!(running(&was), [0, 0, 0], "a server that left finishes what runs on it");
}

#[test]
fn a_new_key_is_read_on_reload_and_forgives_the_refusal_of_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let mut r = rules(&[(1, 1)]);
    r.api_key = Some(SecretRef::File(path.to_str().unwrap().to_owned()));
    std::fs::write(&path, "canary-old\n").unwrap();
    let first = pools(r.clone(), None).unwrap();
    let name = PoolName::from("p");
    first.get(&name).unwrap().pick(Affinity::NONE, &[]).unwrap().eject_for_auth();
    assert!(!format!("{first:?}").contains("canary"), "a key cannot be printed");
    std::fs::write(&path, "new\n").unwrap();
    let second = pools(r, Some(&first)).unwrap();
    let second = second.get(&name).unwrap();
    assert_eq!(second.key().unwrap().1, "Bearer new");
    assert!(second.available());
}

#[test]
fn a_pool_that_left_the_rules_is_still_found_by_the_requests_that_began_under_them() {
    let named = |name: &str, port| PoolRules { name: PoolName::from(name), ..rules(&[(port, 1)]) };
    let (p, q) = (PoolName::from("p"), PoolName::from("q"));
    let first = pools(named("p", 1), None).unwrap();
    let was = first.get(&p).unwrap().pick(Affinity::NONE, &[]).unwrap();
    let renamed = pools(named("q", 1), Some(&first)).unwrap();
    assert!(Arc::ptr_eq(renamed.get(&p).unwrap(), first.get(&p).unwrap()), "under its old name");
    assert_eq!(renamed.get(&q).unwrap().status()[0].in_flight, 1, "the new name is the same servers");
    assert_eq!(renamed.iter().count(), 1, "only the live one is checked and shown");
    drop(was);
    let moved = pools(named("q", 2), Some(&renamed)).unwrap();
    assert_eq!(moved.get(&q).unwrap().status()[0].name, "127.0.0.1:2", "a name that is live means the live pool");
    let back = pools(named("p", 1), Some(&moved)).unwrap();
    assert!(Arc::ptr_eq(back.get(&p).unwrap(), first.get(&p).unwrap()), "one that comes back is what it was");
    assert!(back.get(&PoolName::from("r")).is_none());
}

#[test]
fn every_mistake_of_every_pool_is_said_at_once_without_the_secret() {
    let mut unknown = rules(&[(1, 1)]);
    unknown.profile = "tgi".into();
    let mut keyless = rules(&[(1, 1)]);
    keyless.name = PoolName::from("q");
    keyless.api_key = Some(SecretRef::File("/nonexistent".into()));
    let all = [unknown, keyless].map(|r| (r.name.clone(), Arc::new(r)));
    let mistakes = Pools::build(&BTreeMap::from(all), None).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes[0].starts_with("pools.toml: pool.p.profile:"), "{mistakes:?}");
    assert!(mistakes[1].starts_with("pools.toml: pool.q.api_key:"), "{mistakes:?}");
}

#[tokio::test]
async fn the_name_of_the_rules_is_kept_in_host_and_sni_whatever_address_it_has() {
    for (tls, host, port, want_host, want_sni) in [
        (true, "localhost", 443, "localhost", "localhost"),
        (true, "localhost", 8443, "localhost:8443", "localhost"),
        (false, "localhost", 80, "localhost", ""),
        (false, "[::1]", 8000, "[::1]:8000", ""),
        (false, "::1", 8000, "[::1]:8000", ""),
    ] {
        let mut r = rules(&[(port, 1)]);
        r.servers[0].tls = tls;
        r.servers[0].host = host.into();
        let picked = pool(r).pick(Affinity::NONE, &[]).unwrap();
        let peer = picked.peer().await.unwrap();
        assert_eq!((picked.host().as_str(), peer.sni.as_str()), (want_host, want_sni));
        assert_eq!(peer.is_tls(), tls);
    }
}

#[test]
fn a_pool_whose_health_checks_are_no_longer_made_does_not_keep_their_verdict() {
    let name = PoolName::from("p");
    let mut checked = rules(&[(1, 1)]);
    checked.health = Some(plan::HealthRules { path: "/health".into(), every_seconds: 5 });
    let first = pools(checked, None).unwrap();
    let standing = Arc::clone(&first.get(&name).unwrap().members.load().servers[0].standing);
    standing.checked(false);
    standing.checked(false);
    assert!(!first.available(&name));
    assert!(pools(rules(&[(1, 1)]), Some(&first)).unwrap().available(&name));
}

/// The next request for a model, as its server heard of it.
fn next(p: &Arc<Pool>, model: &UpstreamModel) -> crate::upstream::Hearing {
    p.pick(Affinity::NONE, &[]).unwrap().hear(model)
}

#[test]
fn answers_rest_a_model_as_they_say_and_the_pace_is_that_of_first_bytes_only() {
    let p = pool(rules(&[(1, 1)]));
    for _ in 0..2 {
        next(&p, &m()).served();
        next(&p, &m()).declined();
        assert_eq!(p.status()[0].first_byte_micros, None, "how long a whole answer takes is no pace");
        for status in [500, 500, 502, 503] {
            next(&p, &m()).refused(status, None);
        }
        assert!(p.available_for(&m()), "four in a row");
    }
    next(&p, &m()).heard(Duration::from_secs(1));
    assert_eq!(p.status()[0].first_byte_micros, Some(1_000_000));
    next(&p, &m()).refused(500, None);
    assert!(!p.available_for(&m()), "five in a row");
    assert!(p.available_for(&UpstreamModel::from("other")) && p.available(), "it says nothing of the others");

    let p = pool(rules(&[(1, 1)]));
    next(&p, &m()).refused(503, Some(Duration::from_secs(9)));
    assert!(!p.available_for(&m()) && p.available());
    assert_eq!((p.status()[0].ejections, p.resting(&m())), (1, vec![0]));
}

#[test]
fn lost_answers_or_refusals_of_several_models_rest_the_whole_server() {
    let other = UpstreamModel::from("other");
    for several in [false, true] {
        let p = pool(rules(&[(1, 1)]));
        for n in 0..5 {
            assert!(p.available(), "{n}");
            match (several, n % 2) {
                (false, _) => next(&p, &m()).lost(),
                (true, 0) => next(&p, &m()).refused(500, None),
                (true, _) => next(&p, &other).refused(502, None),
            }
        }
        assert!(!p.available() && !p.available_for(&m()), "five in a row");
    }
}

#[test]
fn an_answer_that_is_not_judged_and_one_that_begins_well_count_as_they_should() {
    let p = pool(rules(&[(1, 1)]));
    for _ in 0..4 {
        next(&p, &m()).refused(502, None);
    }
    drop(next(&p, &m()));
    next(&p, &m()).declined();
    next(&p, &m()).refused(502, None);
    assert!(!p.available_for(&m()), "who leaves, or asks amiss, does not speak for the model");
    let p = pool(rules(&[(1, 1)]));
    for n in 0..20 {
        next(&p, &m()).refused(502, None);
        next(&p, &m()).began();
        assert!(p.available_for(&m()), "{n}: a first word does");
    }
    next(&p, &m()).served();
    for _ in 0..5 {
        let mut begun = next(&p, &m());
        begun.began();
        begun.lost();
    }
    assert!(!p.available(), "but who never comes to an end rests");
}

#[test]
fn a_model_that_is_over_its_limit_or_out_rests_alone_and_its_servers_serve_the_others() {
    for status in [429, 503] {
        let p = pool(rules(&[(1, 1), (2, 1)]));
        let (busy, other) = (m(), UpstreamModel::from("other"));
        let first = p.pick(Affinity::NONE, &[]).unwrap();
        first.hear(&busy).refused(status, Some(Duration::from_secs(9)));
        assert_eq!((p.resting(&busy), p.resting(&other)), (vec![first.index()], vec![]));
        assert!(p.available_for(&busy), "the other server has it");
        let second = p.pick(Affinity::NONE, &p.resting(&busy)).unwrap();
        assert_ne!(second.index(), first.index());
        second.hear(&busy).refused(status, Some(Duration::from_secs(9)));
        assert!(!p.available_for(&busy) && p.available_for(&other) && p.available());
        assert!(p.pick(Affinity::NONE, &p.resting(&busy)).is_none());
        let shown = p.status();
        let alone = |s: &ServerStatus| s.usable && s.ejections == 1 && s.resting_models == [busy.as_str()];
        assert!(shown.iter().all(alone), "{status}: {shown:?}");
    }
}

fn m() -> UpstreamModel {
    UpstreamModel::from("m")
}
