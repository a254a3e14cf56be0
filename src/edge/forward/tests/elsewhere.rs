//! A server that does not serve: who is asked instead, and when nobody may be.

use super::*;

pub(super) fn reply(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A backend that answers every request of every connection with the same bytes, and counts them.
pub(super) struct Same {
    pub(super) port: u16,
    served: Arc<std::sync::atomic::AtomicUsize>,
}

impl Same {
    pub(super) async fn start(bytes: String) -> Self {
        let (listener, port) = listen().await;
        let served = Arc::<std::sync::atomic::AtomicUsize>::default();
        let count = Arc::clone(&served);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (bytes, count) = (bytes.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    asked(&mut stream).await;
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let _ = stream.write_all(bytes.as_bytes()).await;
                    let _ = stream.read(&mut [0; 16]).await;
                });
            }
        });
        Self { port, served }
    }

    fn served(&self) -> usize {
        self.served.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// A pool of that name with servers at these ports.
pub(super) fn pool(name: &str, ports: &[u16]) -> Arc<Pool> {
    pool_of(PoolRules { name: name.into(), ..rules(ports) })
}

pub(super) fn pool_of(rules: PoolRules) -> Arc<Pool> {
    let name = rules.name.clone();
    let pools = Pools::build(&BTreeMap::from([(rules.name.clone(), Arc::new(rules))]), None).unwrap();
    Arc::clone(pools.get(&name).unwrap())
}

pub(super) async fn bed(lane: Vec<Arc<Pool>>) -> (Bed, DuplexStream) {
    let (session, client) = visit(ROOMY, "HTTP/1.1").await;
    let filter = Recorder { body: ASK, ..Recorder::default() };
    (Bed { session, lines: Arc::new(Lines::default()), lane: Lane { pools: lane, within: None }, filter }, client)
}

fn buffered(outcome: &Outcome) -> (u16, &str) {
    match outcome {
        Outcome::Buffered { status, body, .. } => (*status, std::str::from_utf8(body).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn who_refuses_to_serve_is_passed_over_within_the_pool_and_then_along_the_lane() {
    let key = r#"{"error":"this API key may not"}"#;
    for (status, said, outcome) in [
        (429, "{}", "status"),
        (500, "{}", "status"),
        (503, "{}", "status"),
        (529, "{}", "status"),
        (401, "{}", "auth"),
        (402, "{}", "auth"),
        (403, key, "auth"),
        (403, "{}", "status"),
    ] {
        let bad = Same::start(reply(status, "", said)).await;
        let good = Same::start(OK_JSON.to_owned()).await;
        let (mut here, _client) = bed(vec![pool("p", &[bad.port, good.port])]).await;
        assert_eq!(buffered(&here.run().await), (200, "{}"), "{status}: the next server of the pool");
        assert_eq!(
            (here.filter.tried.clone(), here.filter.asked_for.clone()),
            (vec![outcome, "answered"], vec!["p".to_owned()])
        );

        let (mut lane, _client) = bed(vec![pool("p", &[bad.port]), pool("q", &[good.port])]).await;
        assert_eq!(buffered(&lane.run().await), (200, "{}"), "{status}: the fallback");
        assert_eq!(lane.filter.tried, [outcome, "answered"]);
        assert_eq!(lane.filter.asked_for, ["p", "q"], "each pool is asked in its own words");
        assert_eq!(lane.filter.log, ["head 200"], "the filter sees one answer");
    }
}

#[tokio::test]
async fn an_exchange_takes_no_longer_than_what_pays_for_it_may_wait() {
    let silent = Same::start(String::new()).await;
    for (within, total, want) in [(Some(1), 20, 1), (Some(20), 1, 1), (None, 1, 1)] {
        let mut rules = rules(&[silent.port]);
        rules.timeouts.total_seconds = total;
        let (mut bed, _client) = bed(vec![pool_of(rules)]).await;
        bed.lane.within = within;
        match bed.run().await {
            Outcome::Failed(Refusal::UpstreamTimeout { seconds }) => assert_eq!(seconds, want, "{within:?} of {total}"),
            other => panic!("{within:?} of {total}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_that_names_no_reason_rests_no_server_however_long_it_says_to_wait() {
    for (status, said, rests) in [(403, "{}", false), (503, "{}", true)] {
        let bad = Same::start(reply(status, "retry-after: 60\r\n", said)).await;
        let good = Same::start(OK_JSON.to_owned()).await;
        let (mut bed, _client) = bed(vec![pool("p", &[bad.port]), pool("q", &[good.port])]).await;
        assert_eq!(buffered(&bed.run().await), (200, "{}"));
        assert_eq!(bed.pool().status()[0].resting_models.is_empty(), !rests, "{status}");
    }
}

#[tokio::test]
async fn what_the_request_itself_is_to_blame_for_is_asked_once() {
    for status in [200, 400, 404, 413, 422] {
        let one = Same::start(reply(status, "", "{}")).await;
        let other = Same::start(OK_JSON.to_owned()).await;
        let (mut bed, _client) = bed(vec![pool("p", &[one.port]), pool("q", &[other.port])]).await;
        assert_eq!(buffered(&bed.run().await).0, status);
        assert_eq!((one.served(), other.served()), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn who_cannot_be_reached_is_passed_over_and_who_took_the_request_and_fell_silent_is_not() {
    let good = Same::start(OK_JSON.to_owned()).await;
    let (mut dead, _client) = bed(vec![pool("p", &[nobody().await, nobody().await]), pool("q", &[good.port])]).await;
    assert_eq!(buffered(&dead.run().await), (200, "{}"));
    assert_eq!(dead.filter.tried, ["connect", "connect", "answered"]);

    for (bytes, outcome) in [("", "timeout"), ("HTTP/1.1 200 OK\r\ncontent-le", "timeout"), ("no HTTP\r\n\r\n", "lost")]
    {
        let silent = Same::start(bytes.to_owned()).await;
        let other = Same::start(OK_JSON.to_owned()).await;
        let (mut bed, _client) = bed(vec![pool_of(brisk(&[silent.port])), pool("q", &[other.port])]).await;
        assert!(matches!(bed.run().await, Outcome::Failed(_)), "{bytes:?}");
        assert_eq!(
            (bed.filter.tried.clone(), other.served()),
            (vec![outcome], 0),
            "it may have generated an answer: {bytes:?}"
        );
    }
}

#[tokio::test]
async fn when_all_refuse_the_last_refusal_is_the_answer_and_no_pool_is_asked_more_than_three_times() {
    let busy = Same::start(reply(429, "retry-after: 7\r\n", "{\"error\":1}")).await;
    let broken = Same::start(reply(500, "", "{}")).await;
    let ports = [broken.port; 9].map(|port| (port, format!("/base{port}")));
    let many: Vec<u16> = ports.iter().map(|(port, _)| *port).collect();
    let (mut bed, _client) = bed(vec![pool("p", &many), pool("q", &[busy.port, nobody().await])]).await;
    let outcome = bed.run().await;
    assert_eq!(buffered(&outcome), (429, "{\"error\":1}"));
    let Outcome::Buffered { headers, .. } = &outcome else { panic!() };
    assert_eq!(headers["retry-after"], "7");
    assert_eq!((broken.served(), busy.served()), (3, 1));
}

#[tokio::test]
async fn nothing_is_asked_again_once_a_byte_is_out() {
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let breaks = Same::start(begun).await;
    let other = Same::start(OK_JSON.to_owned()).await;
    let (mut bed, _client) = bed(vec![pool_of(brisk(&[breaks.port])), pool("q", &[other.port])]).await;
    let outcome = bed.run().await;
    assert!(matches!(&outcome, Outcome::Streamed(Ending { how: How::Upstream(_), .. })), "{outcome:?}");
    assert_eq!((breaks.served(), other.served()), (1, 0));
}

#[tokio::test]
async fn the_whole_of_all_attempts_has_the_time_of_the_first_pool() {
    let mut first = rules(&[Same::start(reply(503, "", "{}")).await.port]);
    first.timeouts.total_seconds = 1;
    let mut second = PoolRules { name: "q".into(), ..rules(&[Same::start(String::new()).await.port]) };
    second.timeouts = Timeouts { first_byte_seconds: 50, ..second.timeouts };
    let pools = Pools::build(&[first, second].map(|r| (r.name.clone(), Arc::new(r))).into(), None).unwrap();
    let lane = ["p", "q"].map(|name| Arc::clone(pools.get(&name.into()).unwrap()));
    let (mut bed, _client) = bed(lane.to_vec()).await;
    let outcome = bed.run().await;
    assert_eq!(failed(&outcome), &Refusal::UpstreamTimeout { seconds: 1 });
    assert_eq!(bed.filter.tried, ["status", "timeout"]);
}
