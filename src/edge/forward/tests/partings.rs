//! Who leaves, dies, stalls or has had enough, and what everyone else is told.

use super::*;

#[tokio::test]
async fn each_wait_for_a_backend_ends_and_closes_it() {
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let rows = [
        ("", 0, "no head: first_byte_seconds"),
        (SSE, 0, "no byte: idle_seconds"),
        (&begun, 9, "silence between chunks: idle_seconds"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{", 0, "silence in a buffered answer"),
    ];
    let all = rows.map(|(bytes, sent, why)| async move {
        let (listener, port) = listen().await;
        let (mut bed, _client) = Bed::with(brisk(&[port]), ROOMY, "HTTP/1.1").await;
        let (outcome, ()) = tokio::join!(bed.run(), async { closed(&mut answer(&listener, bytes).await.1).await });
        let timeout = Refusal::UpstreamTimeout { seconds: 1 };
        match outcome {
            Outcome::Failed(refusal) => assert_eq!((refusal, sent), (timeout, 0), "{why}"),
            Outcome::Streamed(ending) => {
                assert_eq!(ending, Ending { how: How::Upstream(timeout), sent_bytes: sent }, "{why}");
            }
            other => panic!("{why}: {other:?}"),
        }
    });
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn what_takes_long_to_make_is_waited_for_and_a_silence_in_the_middle_is_not() {
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    // What comes at once, and how long the rest is waited for in all: the waits of the pool are a second, the whole three.
    let rows = [
        ("", true, false, 3, "a reply that does not stream: its head comes when it is done"),
        ("", false, true, 1, "the head of a stream comes before the work"),
        (SSE, false, true, 3, "a stream whose model thinks"),
        (SSE, false, false, 1, "one whose does not"),
        (&begun, false, true, 1, "thinking ends with the first word"),
    ];
    let all = rows.map(|(bytes, is_whole, thinks, seconds, why)| async move {
        let (listener, port) = listen().await;
        let mut rules = brisk(&[port]);
        rules.timeouts.total_seconds = 3;
        let (mut bed, _client) = Bed::with(rules, ROOMY, "HTTP/1.1").await;
        (bed.filter.is_whole, bed.filter.thinks) = (is_whole, thinks);
        let (outcome, ()) = tokio::join!(bed.run(), async { closed(&mut answer(&listener, bytes).await.1).await });
        let refusal = match outcome {
            Outcome::Failed(refusal) | Outcome::Streamed(Ending { how: How::Upstream(refusal), .. }) => refusal,
            other => panic!("{why}: {other:?}"),
        };
        assert_eq!(refusal, Refusal::UpstreamTimeout { seconds }, "{why}");
    });
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn a_stream_that_never_falls_silent_still_ends_at_total_seconds() {
    let (listener, port) = listen().await;
    let mut rules = rules(&[port]);
    (rules.timeouts.idle_seconds, rules.timeouts.total_seconds) = (30, 2);
    let (mut bed, _client) = Bed::with(rules, ROOMY, "HTTP/1.1").await;
    let backend = async {
        let (_, mut stream) = answer(&listener, SSE).await;
        while stream.write_all(chunked(&[": tick\n\n"]).as_bytes()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let (outcome, ()) = tokio::join!(bed.run(), backend);
    let Outcome::Streamed(Ending { how, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(how, How::OutOfTime(Refusal::UpstreamTimeout { seconds: 2 }), "it is we who hang up");
}

#[tokio::test]
async fn a_backend_that_dies_in_the_middle_leaves_a_well_ended_answer_that_says_so() {
    let (listener, port) = listen().await;
    let (mut bed, client) = Bed::new(&[port], ROOMY).await;
    bed.filter.last_words = "event: error\n\n";
    let bytes = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let mut client = client;
    let (outcome, ()) = tokio::join!(bed.run(), async {
        let (_, stream) = answer(&listener, &bytes).await;
        heard(&mut client, "data: 1\n\n").await;
        stream.set_zero_linger().unwrap();
    });
    let Outcome::Streamed(Ending { how: How::Upstream(refusal), sent_bytes }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((refusal.status(), sent_bytes), (502, 23));
    let told = bed.told(client).await;
    assert!(told.ends_with("event: error\n\n\r\n0\r\n\r\n"), "{told}");
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_in_every_wait_and_its_backend_closed() {
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    for (bytes, hold, why) in [
        ("", false, "before the head"),
        (SSE, false, "before the first byte"),
        (&begun, false, "in the middle"),
        (&begun, true, "while the filter holds the stream"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{", false, "while an answer is buffered"),
    ] {
        let (listener, port) = listen().await;
        let (mut bed, client) = Bed::new(&[port], ROOMY).await;
        bed.filter.hold = hold;
        let started = std::time::Instant::now();
        let (outcome, ()) = tokio::join!(bed.run(), async {
            let (_, mut stream) = answer(&listener, bytes).await;
            let mut client = client;
            if bytes == begun && !hold {
                heard(&mut client, "data: 1\n\n").await;
            }
            drop(client);
            closed(&mut stream).await;
        });
        assert!(started.elapsed() < Duration::from_secs(10), "at once, not when a timeout would: {why}");
        let finished = bed.filter.log.iter().any(|l| l.starts_with("finish"));
        match outcome {
            Outcome::ClientGone => assert!(!finished, "{why}"),
            Outcome::Streamed(Ending { how: How::ClientGone, .. }) => assert!(finished, "{why}"),
            other => panic!("{why}: {other:?}"),
        }
        assert_eq!(bed.pool().status()[0].in_flight, 0, "{why}");
    }
}

#[tokio::test]
async fn whoever_waited_as_long_as_a_first_byte_may_take_and_heard_nothing_did_not_leave_a_server_at_work() {
    for (patience, outcome) in [(Duration::ZERO, "left"), (Duration::from_millis(1_100), "timeout")] {
        let (listener, port) = listen().await;
        let rules = if patience.is_zero() { rules(&[port]) } else { brisk(&[port]) };
        let (mut bed, client) = Bed::with(rules, ROOMY, "HTTP/1.1").await;
        bed.filter.is_whole = true;
        let (ended, ()) = tokio::join!(bed.run(), async {
            let (_, mut stream) = answer(&listener, "").await;
            tokio::time::sleep(patience).await;
            drop(client);
            closed(&mut stream).await;
        });
        assert!(matches!(ended, Outcome::ClientGone), "{ended:?}");
        assert_eq!(bed.filter.tried, [outcome], "after {patience:?}");
    }
}

#[tokio::test]
async fn a_stream_that_is_listened_to_is_read_to_its_end_without_its_client_or_hung_up_on() {
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let rest = format!("{}0\r\n\r\n", chunked(&["data: 2\n\n"]));
    for (most, rest, heard_of_it, why) in [
        (9, rest.as_str(), &["overheard data: 2", "end"][..], "to its end"),
        (1, rest.as_str(), &["overheard data: 2"], "until the filter has heard enough"),
        (9, "", &[], "until it falls silent: idle_seconds"),
        (9, "zz", &[], "until it breaks"),
    ] {
        let (listener, port) = listen().await;
        let (mut bed, mut client) = Bed::with(brisk(&[port]), ROOMY, "HTTP/1.1").await;
        bed.filter.listens = Some(most);
        let asked = Arc::clone(&bed.filter.asked);
        let (outcome, mut backend) = tokio::join!(bed.run(), async {
            let (_, mut stream) = answer(&listener, &begun).await;
            heard(&mut client, "data: 1\n\n").await;
            // Before the request was sent, and now that nobody takes its answer.
            asked.notified().await;
            drop(client);
            asked.notified().await;
            stream.write_all(rest.as_bytes()).await.unwrap();
            stream
        });
        let Outcome::Streamed(Ending { how: How::ClientGone, .. }) = outcome else { panic!("{why}: {outcome:?}") };
        let log: Vec<&str> = bed.filter.log.iter().map(String::as_str).collect();
        let at = log.iter().position(|line| *line == "durable").unwrap();
        assert_eq!(&log[at + 1..log.len() - 1], heard_of_it, "{why}");
        assert!(log.last().unwrap().starts_with("finish"), "{why}: told once, when all is heard");
        assert_eq!(bed.pool().status()[0].in_flight, 0, "{why}");
        if !log.contains(&"end") {
            closed(&mut backend).await;
        }
    }
}

#[tokio::test]
async fn a_backend_that_is_listened_to_is_heard_from_when_it_has_the_request() {
    let begun = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{";
    let answer_of = |rest: &str| format!("{begun}{rest}");
    let whole = answer_of("    ");
    // What comes before the client leaves and after it, and what is heard; `None`: nothing that is of use.
    for (before, after, heard, why) in [
        ("", whole.as_str(), Some("{    "), "no head yet"),
        (begun, "    ", Some("{    "), "half a reply"),
        ("", "HTTP/1.1 400 X\r\ncontent-length: 1\r\n\r\nx", None, "a refusal"),
        ("", "HTTP/1.1 503 X\r\ncontent-length: 1\r\n\r\nx", None, "a refusal to serve: nobody else is asked"),
        ("", "HTTP/1.1 403 X\r\ncontent-length: 1\r\n\r\nx", None, "one of our key"),
        ("", "HTTP/1.1 200 OK\r\ncontent-type: text/refused\r\n\r\n", None, "what was not asked for"),
        ("", "", None, "silence: first_byte_seconds"),
        (begun, "", None, "silence: idle_seconds"),
    ] {
        let (listener, port) = listen().await;
        let (mut bed, client) = Bed::with(brisk(&[port, nobody().await]), ROOMY, "HTTP/1.1").await;
        bed.filter.listens = Some(9);
        let (outcome, _backend) = tokio::join!(bed.run(), async {
            let (_, mut stream) = answer(&listener, before).await;
            drop(client);
            // Both sides of this test are one task: the gate is polled, and sees it, before more comes.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            stream.write_all(after.as_bytes()).await.unwrap();
            stream
        });
        match (outcome, heard) {
            (Outcome::Unheard(body), Some(heard)) => assert_eq!(body, heard, "{why}"),
            (Outcome::ClientGone, None) => {}
            (other, _) => panic!("{why}: {other:?}"),
        }
        assert_ne!(bed.filter.tried.last(), Some(&"connect"), "{why}");
        assert_eq!(bed.pool().status()[0].in_flight, 0, "{why}");
    }
}

#[tokio::test]
async fn a_stream_whose_client_leaves_before_the_first_byte_is_heard_and_never_begins() {
    let (listener, port) = listen().await;
    let (mut bed, client) = Bed::new(&[port], ROOMY).await;
    bed.filter.listens = Some(9);
    let asked = Arc::clone(&bed.filter.asked);
    let (outcome, _backend) = tokio::join!(bed.run(), async {
        let (_, mut stream) = answer(&listener, SSE).await;
        asked.notified().await;
        drop(client);
        asked.notified().await;
        stream.write_all(format!("{}0\r\n\r\n", chunked(&["data: 1\n\n"])).as_bytes()).await.unwrap();
        stream
    });
    assert!(matches!(outcome, Outcome::ClientGone), "{outcome:?}");
    assert_eq!(bed.filter.log, ["head 200", "overheard data: 1", "end"]);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_and_its_backend_closed() {
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::with(brisk(&[port]), 512, "HTTP/1.1").await;
    let bytes = format!("{SSE}{}", chunked(&["x".repeat(4096).as_str()]));
    let started = std::time::Instant::now();
    let (outcome, ()) = tokio::join!(bed.run(), async { closed(&mut answer(&listener, &bytes).await.1).await });
    assert!(started.elapsed() < Duration::from_secs(15), "after idle_seconds, which is 1");
    let Outcome::Streamed(ending) = outcome else { panic!("{outcome:?}") };
    assert_eq!(ending.how, How::ClientGone);
    assert!(ending.sent_bytes > 512, "what it could have read counts, whole or not: {}", ending.sent_bytes);
}

#[tokio::test]
async fn when_the_durable_mark_fails_nothing_is_sent() {
    let (listener, port) = listen().await;
    let (mut bed, client) = Bed::new(&[port], ROOMY).await;
    bed.filter.durable = Some(Refusal::Store { retry_after_seconds: 1 });
    let bytes = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = tokio::join!(bed.run(), async { closed(&mut answer(&listener, &bytes).await.1).await });
    assert_eq!(failed(&outcome), &Refusal::Store { retry_after_seconds: 1 });
    assert_eq!(bed.told(client).await, "");
}

#[tokio::test]
async fn a_filter_that_has_had_enough_closes_the_backend_and_still_has_the_last_word() {
    let (listener, port) = listen().await;
    let (mut bed, client) = Bed::new(&[port], ROOMY).await;
    bed.filter.stop_after = Some(1);
    bed.filter.last_words = ": enough\n\n";
    let bytes = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = tokio::join!(bed.run(), async { closed(&mut answer(&listener, &bytes).await.1).await });
    assert!(matches!(outcome, Outcome::Streamed(Ending { how: How::Stopped, sent_bytes: 19 })), "{outcome:?}");
    assert!(bed.told(client).await.to_lowercase().ends_with("data: 1\n\n\r\na\r\n: enough\n\n\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn an_answer_given_before_the_whole_body_was_read_is_still_an_answer() {
    let (listener, port) = listen().await;
    let (mut bed, _client) = Bed::new(&[port], ROOMY).await;
    bed.filter.body = Bytes::from(vec![b'x'; 16 << 20]);
    let (outcome, ()) = tokio::join!(bed.run(), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0; 1024];
        stream.read_exact(&mut some).await.unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    });
    assert!(matches!(outcome, Outcome::Buffered { status: 413, .. }), "{outcome:?}");
}

#[tokio::test]
async fn what_must_be_over_in_time_is_not_put_off_by_who_reads_slowly() {
    for (at_once, why) in [(0, "who takes nothing"), (4 << 10, "who takes a little all the time")] {
        let (listener, port) = listen().await;
        let (mut bed, mut client) = Bed::new(&[port], 512).await;
        bed.lane.within = Some(1);
        let began = Instant::now();
        let backend = async {
            let (_, mut stream) = answer(&listener, SSE).await;
            let event = chunked(&[&"x".repeat(4 << 10)]);
            while stream.write_all(event.as_bytes()).await.is_ok() {}
        };
        let reader = async {
            let mut taken = vec![0; at_once];
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                client.read_exact(&mut taken).await.unwrap();
            }
        };
        let ended = tokio::select! {
            (outcome, ()) = futures::future::join(bed.run(), backend) => outcome,
            () = reader => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(6)) => panic!("{why}: it goes on"),
        };
        let Outcome::Streamed(Ending { how: How::ClientGone | How::OutOfTime(_), .. }) = ended else {
            panic!("{why}: {ended:?}")
        };
        assert!(began.elapsed() < Duration::from_secs(4), "{why}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn what_comes_when_the_time_is_over_is_not_taken() {
    for (within, want) in [(Some(1), 1), (None, 2)] {
        let (listener, port) = listen().await;
        let (mut bed, mut client) = Bed::new(&[port], ROOMY).await;
        let (pauses, told) = tokio::sync::mpsc::unbounded_channel();
        (bed.filter.pauses, bed.filter.pause_after, bed.lane.within) = (Some(told), Some(1), within);
        let (outcome, ()) = tokio::join!(bed.run(), async {
            let (_, mut stream) = answer(&listener, &format!("{SSE}{}", chunked(&["data: 1\n\n"]))).await;
            heard(&mut client, "data: 1\n\n").await;
            stream.write_all(format!("{}0\r\n\r\n", chunked(&["data: 2\n\n"])).as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            pauses.send((Flow::Go, ": held\n\n")).unwrap();
        });
        let Outcome::Streamed(Ending { how, .. }) = outcome else { panic!("{within:?}: {outcome:?}") };
        assert_eq!(matches!(how, How::OutOfTime(_)), within.is_some(), "{how:?}");
        let taken = bed.filter.log.iter().filter(|line| line.starts_with("chunk")).count();
        assert_eq!(taken, want, "{:?}", bed.filter.log);
    }
}
