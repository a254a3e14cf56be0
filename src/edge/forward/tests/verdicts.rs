//! What comes of a request says something about its server, once it is known.

use super::elsewhere::{Same, bed, pool, pool_of, reply};
use super::*;
use std::time::Instant;

/// Sends one request to the pool, and reads a reply that came whole as somebody does who finds nothing wrong with it.
async fn send(pool: &Arc<Pool>, filter: Recorder) -> Outcome {
    let (mut bed, _client) = bed(vec![Arc::clone(pool)]).await;
    bed.filter = filter;
    match bed.run().await {
        Outcome::Buffered { status, headers, body, hearing } => {
            hearing.into_iter().for_each(Hearing::served);
            Outcome::Buffered { status, headers, body, hearing: None }
        }
        outcome => outcome,
    }
}

/// What rests: `server`, `model`, or nothing.
fn rests(pool: &Pool) -> &'static str {
    let known = pool.status();
    match known.iter().find(|s| s.ejections > 0) {
        None => "nothing",
        Some(server) if !server.usable => "server",
        Some(_) => "model",
    }
}

#[tokio::test]
async fn a_server_is_judged_by_what_it_answers_and_not_by_its_head() {
    let stream = |parts: &[&str]| format!("{SSE}{}", chunked(parts));
    for (bytes, want, why) in [
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "model",
            "nobody asked for it",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx", "model", "compressed"),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/refused\r\n\r\n", "nothing", "not the server's doing"),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/nonsense\r\n\r\n", "model", "nothing that was asked for"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\nnone", "server", "a body that breaks off"),
        (&stream(&[]).replace("\r\n\r\n", "\r\n\r\n0\r\n\r\n"), "model", "a stream without a word"),
        (&format!("{}none", stream(&["data: 1\n\n"])), "server", "a stream that breaks off"),
        (&format!("{}0\r\n\r\n", stream(&["data: error\n\n"])), "model", "an error for a first word"),
        (&format!("{}0\r\n\r\n", stream(&["data: 1\n\n", "data: error\n\n"])), "server", "an error for a last word"),
        (
            &format!("{}0\r\n\r\n", stream(&["data: refused\n\n"])),
            "nothing",
            "the caller's own fault, said in a stream",
        ),
        (&format!("{}0\r\n\r\n", stream(&["data: 1\n\n", "data: refused\n\n"])), "nothing", "the same, later"),
        (&format!("{}0\r\n\r\n", stream(&["data: 1\n\n"])), "nothing", "a stream"),
        (OK_JSON, "nothing", "an answer"),
        (&reply(400, "", "{}"), "nothing", "the caller's own fault"),
        ("nonsense\r\n\r\n", "server", "not HTTP"),
    ] {
        let backend = Same::start(bytes.to_owned()).await;
        let pool = pool("p", &[backend.port]);
        for n in 1..=5 {
            assert_eq!(rests(&pool), "nothing", "{why}: before number {n}");
            send(&pool, Recorder { errs: true, ..Recorder::default() }).await;
        }
        assert_eq!(rests(&pool), want, "{why}");
    }
}

#[tokio::test]
async fn a_stream_that_failed_for_what_was_asked_says_nothing_for_its_server_either() {
    let bytes = format!("{SSE}{}0\r\n\r\n", chunked(&["data: 1\n\n", "data: error\n\n"]));
    for (failed, want) in [(true, "server"), (false, "nothing")] {
        let pool = pool("p", &[Same::start(bytes.clone()).await.port]);
        for n in 0..6 {
            // Between those that break off, one that comes to its end.
            let filter = Recorder { errs: n != 4, failed: failed && n == 4, ..Recorder::default() };
            assert_eq!(rests(&pool), "nothing", "before number {n}");
            send(&pool, filter).await;
        }
        assert_eq!(rests(&pool), want, "failed: {failed}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_says_nothing_about_the_server() {
    let (listener, port) = listen().await;
    let pool = pool("p", &[port]);
    for n in 0..6 {
        let (mut bed, mut client) = bed(vec![Arc::clone(&pool)]).await;
        let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
        let (_, ()) = tokio::join!(bed.run(), async {
            let _open = answer(&listener, &begun).await;
            heard(&mut client, "data: 1\n\n").await;
            drop(client);
        });
        assert_eq!(rests(&pool), "nothing", "{n}");
    }
}

#[tokio::test]
async fn clients_that_leave_after_the_time_of_a_first_byte_say_nothing_about_the_server_either() {
    let (listener, port) = listen().await;
    let pool = pool_of(brisk(&[port]));
    let leave = || async {
        let (mut bed, client) = bed(vec![Arc::clone(&pool)]).await;
        bed.filter.is_whole = true;
        tokio::join!(bed.run(), async {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            drop(client);
        });
    };
    let servers = async {
        let mut open = Vec::new();
        loop {
            open.push(listener.accept().await.unwrap());
        }
    };
    tokio::select! {
        _ = futures::future::join_all((0..6).map(|_| leave())) => {}
        () = servers => {}
    }
    assert_eq!(rests(&pool), "nothing");
}

#[tokio::test]
async fn an_answer_longer_than_the_whole_may_take_is_no_fault_and_one_that_never_begins_is() {
    for (bytes, want) in [(format!("{SSE}{}", chunked(&["data: 1\n\n"])), "nothing"), (SSE.to_owned(), "server")] {
        let mut rules = rules(&[Same::start(bytes.clone()).await.port]);
        rules.timeouts.total_seconds = 1;
        let pool = pool_of(rules);
        futures::future::join_all((0..5).map(|_| send(&pool, Recorder { body: ASK, ..Recorder::default() }))).await;
        assert_eq!(rests(&pool), want, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_500_that_everybody_gives_speaks_of_the_request_and_counts_against_nobody() {
    let plain = reply(500, "", "{}");
    let unsaid = reply(403, "", "{}");
    let busy = reply(500, "retry-after: 9\r\n", "{}");
    for (servers, want, why) in [
        (vec![&plain, &plain, &plain], "nothing", "every one"),
        (vec![&plain, &unsaid], "nothing", "a 403 that does not say why is no better"),
        (vec![&plain], "model", "one alone says nothing of the others"),
        (vec![&plain, &reply(503, "", "{}")], "model", "one of them says that it cannot"),
        (vec![&plain, &busy], "model", "or when it can"),
        (vec![&plain, &reply(200, "", "{}")], "model", "one of them serves it"),
    ] {
        let mut ports = Vec::new();
        for bytes in servers {
            ports.push(Same::start(bytes.clone()).await.port);
        }
        let pool = pool("p", &ports);
        for _ in 0..12 {
            send(&pool, Recorder { body: ASK, ..Recorder::default() }).await;
        }
        assert_eq!(rests(&pool), want, "{why}");
    }
}

#[tokio::test]
async fn a_head_that_comes_at_once_leaves_the_first_byte_its_time_and_is_no_first_byte() {
    let mut waits = rules(&[]);
    waits.timeouts = Timeouts { first_byte_seconds: 4, idle_seconds: 1, ..waits.timeouts };
    for (is_whole, first, head) in
        [(false, "data: 1\n\n", SSE), (true, "{", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")]
    {
        let (listener, port) = listen().await;
        let pool = pool_of(PoolRules { servers: rules(&[port]).servers, ..waits.clone() });
        let filter = Recorder { is_whole, ..Recorder::default() };
        let began = Instant::now();
        let (outcome, ()) = tokio::join!(send(&pool, filter), async {
            let (_, mut stream) = answer(&listener, head).await;
            tokio::time::sleep(Duration::from_millis(1800)).await;
            stream.write_all(chunked(&[first]).as_bytes()).await.unwrap();
            closed(&mut stream).await;
        });
        match outcome {
            Outcome::Streamed(Ending {
                how: How::Upstream(Refusal::UpstreamTimeout { seconds: 1 }),
                sent_bytes: 9,
            }) => {}
            Outcome::Failed(Refusal::UpstreamTimeout { seconds: 1 }) if is_whole => {}
            other => panic!("whole: {is_whole}, after {:?}: {other:?}", began.elapsed()),
        }
        let pace = pool.status()[0].first_byte_micros;
        assert_eq!(pace.is_some_and(|micros| micros > 1_500_000), !is_whole, "{pace:?}: whole: {is_whole}");
    }
    // And who says nothing at all has no more than that.
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::with(brisk(&[port]), ROOMY, "HTTP/1.1").await;
    let (outcome, _stream) = tokio::join!(bed.run(), answer(&listener, SSE));
    assert_eq!(failed(&outcome), &Refusal::UpstreamTimeout { seconds: 1 });
}
