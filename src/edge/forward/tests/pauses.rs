//! A stream that stands still: who waits for whom, and for how long.

use super::*;

/// How waits come out, from the test's side.
type Pauses = mpsc::UnboundedSender<(Flow, &'static str)>;

/// A bed whose filter pauses after its first chunk.
async fn pausing(port: u16, room: usize) -> (Bed, DuplexStream, Pauses) {
    pausing_with(rules(&[port]), room).await
}

async fn pausing_with(rules: PoolRules, room: usize) -> (Bed, DuplexStream, Pauses) {
    let (mut bed, client) = Bed::with(rules, room, "HTTP/1.1").await;
    let (pauses, told) = mpsc::unbounded_channel();
    bed.filter.pauses = Some(told);
    bed.filter.pause_after = Some(1);
    (bed, client, pauses)
}

/// Both sides to their end. A side that waits for ever is a failed test, not a stuck one.
async fn both<A, B>(gate: impl Future<Output = A>, rest: impl Future<Output = B>) -> (A, B) {
    let both = futures::future::join(gate, rest);
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("one side waits for the other for ever")
}

fn streamed(outcome: Outcome) -> Ending {
    match outcome {
        Outcome::Streamed(ending) => ending,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pause_changes_no_order_and_sends_what_the_filter_gives_meanwhile() {
    let (listener, port) = listen().await;
    let (mut bed, mut client, pauses) = pausing(port, ROOMY).await;
    bed.filter.last_words = ": receipt\n\n";
    let (outcome, ()) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &format!("{SSE}{}", chunked(&["data: 1\n\n"]))).await;
        heard(&mut client, "data: 1\n\n").await;
        stream.write_all(format!("{}0\r\n\r\n", chunked(&["data: 3\n\n"])).as_bytes()).await.unwrap();
        for beat in [": beat 1\n\n", ": beat 2\n\n"] {
            pauses.send((Flow::Hold, beat)).unwrap();
            heard(&mut client, beat).await;
        }
        pauses.send((Flow::Go, "data: 2\n\n")).unwrap();
        heard(&mut client, "data: 2\n\n").await;
        heard(&mut client, "data: 3\n\n").await;
    })
    .await;
    assert_eq!(streamed(outcome), Ending { how: How::Complete, sent_bytes: 58 });
    let log = bed.filter.log.join("|");
    let waits = "head 200|chunk data: 1\n\n|durable|resume|resume|resume|chunk data: 3\n\n|finish";
    assert!(log.starts_with(waits), "one wait for each outcome: {log}");
    assert!(bed.told(client).await.ends_with(": receipt\n\n\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn what_was_released_at_the_end_of_a_pause_does_not_wait_for_the_backend() {
    let (listener, port) = listen().await;
    let (mut bed, mut client, pauses) = pausing(port, ROOMY).await;
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &begun).await;
        pauses.send((Flow::Go, "data: 2\n\n")).unwrap();
        heard(&mut client, "data: 2\n\n").await;
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    assert_eq!(streamed(outcome).how, How::Complete);
}

#[tokio::test]
async fn a_client_that_leaves_in_a_pause_closes_the_backend_at_once() {
    let (listener, port) = listen().await;
    let (mut bed, mut client, _pauses) = pausing(port, ROOMY).await;
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &begun).await;
        heard(&mut client, "data: 1\n\n").await;
        drop(client);
        // Nothing else would ever close it: the filter waits for ever, and no timeout runs.
        closed(&mut stream).await;
    })
    .await;
    assert_eq!(streamed(outcome), Ending { how: How::ClientGone, sent_bytes: 9 });
    assert!(bed.filter.log.last().unwrap().starts_with("finish Ending { how: ClientGone"), "{:?}", bed.filter.log);
    assert_eq!(bed.pool().status()[0].in_flight, 0);
}

#[tokio::test]
async fn a_client_that_takes_no_heartbeat_is_given_up() {
    let (listener, port) = listen().await;
    let (mut bed, _client, pauses) = pausing_with(brisk(&[port]), 512).await;
    pauses.send((Flow::Hold, Box::leak("x".repeat(4096).into_boxed_str()))).unwrap();
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = both(bed.run(), async { closed(&mut answer(&listener, &begun).await.1).await }).await;
    assert_eq!(streamed(outcome).how, How::ClientGone);
}

#[tokio::test]
async fn nothing_is_read_from_the_backend_in_a_pause() {
    let (listener, port) = listen().await;
    let (mut bed, mut client, pauses) = pausing(port, ROOMY).await;
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let part = chunked(&[&"x".repeat(64 << 10)]);
    let (outcome, written) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &begun).await;
        heard(&mut client, "data: 1\n\n").await;
        // The backend writes until it has been stuck for a while: what it got rid of lies in the two sockets.
        let mut written = 0;
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(300), stream.writable()).await {
            match stream.try_write(part.as_bytes()) {
                Ok(n) => written += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("{e}"),
            }
            assert!(written < 256 << 20, "somebody reads all this");
        }
        pauses.send((Flow::Stop, "")).unwrap();
        closed(&mut stream).await;
        written
    })
    .await;
    assert_eq!(streamed(outcome).how, How::Stopped);
    let read: usize = bed.filter.log.iter().filter(|l| l.starts_with("chunk")).map(String::len).sum();
    assert!(written > 64 << 10 && read < 100, "{written} written, {read} read");
}

#[tokio::test]
async fn a_pause_counts_for_no_timeout_of_the_backend() {
    let (listener, port) = listen().await;
    let mut rules = brisk(&[port]);
    rules.timeouts.total_seconds = 2;
    let (mut bed, mut client) = Bed::with(rules, ROOMY, "HTTP/1.1").await;
    let (pauses, told) = mpsc::unbounded_channel();
    bed.filter.pauses = Some(told);
    bed.filter.pause_after = Some(1);
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let started = std::time::Instant::now();
    let (outcome, ()) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &begun).await;
        heard(&mut client, "data: 1\n\n").await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        pauses.send((Flow::Go, "data: 2\n\n")).unwrap();
        heard(&mut client, "data: 2\n\n").await;
        stream.write_all(chunked(&["data: 3\n\n"]).as_bytes()).await.unwrap();
        heard(&mut client, "data: 3\n\n").await;
        // From here on it is the backend that is silent.
        closed(&mut stream).await;
    })
    .await;
    assert!(started.elapsed() > Duration::from_secs(2), "longer than idle_seconds and total_seconds");
    let ending = streamed(outcome);
    assert!(matches!(ending.how, How::Upstream(Refusal::UpstreamTimeout { .. })), "the clock runs again: {ending:?}");
}

#[tokio::test]
async fn a_pause_that_ends_the_stream_closes_the_backend_before_another_byte_leaves() {
    let (listener, port) = listen().await;
    // The last words do not fit: if the backend were closed after them, it would be after `idle_seconds`.
    let (mut bed, mut client, pauses) = pausing(port, 512).await;
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let last: &'static str = Box::leak(format!("{}\n\n", "y".repeat(4096)).into_boxed_str());
    bed.filter.last_words = ": receipt\n\n";
    let (outcome, ()) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &begun).await;
        heard(&mut client, "data: 1\n\n").await;
        pauses.send((Flow::Stop, last)).unwrap();
        closed(&mut stream).await;
        heard(&mut client, "yy\n\n").await;
        heard(&mut client, ": receipt\n\n").await;
        heard(&mut client, "0\r\n\r\n").await;
    })
    .await;
    assert_eq!(streamed(outcome), Ending { how: How::Stopped, sent_bytes: 9 + 4098 + 11 });
}

#[tokio::test]
async fn the_last_words_may_wait_as_well_with_the_backend_released() {
    for (end, words) in [(Flow::Go, "data: [DONE]\n\n"), (Flow::Stop, "data: error\n\n")] {
        let (listener, port) = listen().await;
        let (mut bed, mut client, pauses) = pausing(port, ROOMY).await;
        bed.filter.pause_after = None;
        bed.filter.hold_last = true;
        bed.filter.last_words = ": need\n\n";
        let whole = format!("{SSE}{}0\r\n\r\n", chunked(&["data: 1\n\n"]));
        let pool = Arc::clone(bed.pool());
        let (outcome, ()) = both(bed.run(), async {
            let _open = answer(&listener, &whole).await;
            heard(&mut client, ": need\n\n").await;
            assert_eq!(pool.status()[0].in_flight, 0, "the backend works for somebody else by now");
            pauses.send((Flow::Hold, ": beat\n\n")).unwrap();
            heard(&mut client, ": beat\n\n").await;
            pauses.send((end, words)).unwrap();
            heard(&mut client, words).await;
            heard(&mut client, "\r\n0\r\n\r\n").await;
        })
        .await;
        assert_eq!(streamed(outcome).how, How::Complete, "{end:?}");
        assert_eq!(bed.filter.log.iter().filter(|l| l.starts_with("finish")).count(), 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_the_last_wait_is_told_to_the_filter() {
    let (listener, port) = listen().await;
    let (mut bed, mut client, _pauses) = pausing(port, ROOMY).await;
    bed.filter.pause_after = None;
    bed.filter.hold_last = true;
    bed.filter.last_words = ": need\n\n";
    let whole = format!("{SSE}{}0\r\n\r\n", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = both(bed.run(), async {
        let _open = answer(&listener, &whole).await;
        heard(&mut client, ": need\n\n").await;
        drop(client);
    })
    .await;
    assert_eq!(streamed(outcome), Ending { how: How::ClientGone, sent_bytes: 17 });
    let finishes: Vec<_> = bed.filter.log.iter().filter(|l| l.starts_with("finish")).collect();
    assert_eq!(
        finishes,
        ["finish Ending { how: Complete, sent_bytes: 9 }", "finish Ending { how: ClientGone, sent_bytes: 17 }"]
    );
}

#[tokio::test]
async fn a_stream_may_be_held_before_its_first_byte() {
    for (gone, why) in [(false, "the head leaves with what is released"), (true, "nothing was sent, nothing finished")]
    {
        let (listener, port) = listen().await;
        let (mut bed, client, pauses) = pausing(port, ROOMY).await;
        bed.filter.swallow = true;
        let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
        let mut client = Some(client);
        let (outcome, ()) = both(bed.run(), async {
            let (_, mut stream) = answer(&listener, &begun).await;
            if gone {
                drop(client.take());
                closed(&mut stream).await;
            } else {
                pauses.send((Flow::Go, "data: 1\n\n")).unwrap();
                heard(client.as_mut().unwrap(), "data: 1\n\n").await;
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            }
        })
        .await;
        let log = bed.filter.log.join("|");
        if gone {
            assert!(matches!(outcome, Outcome::ClientGone), "{why}: {outcome:?}");
            assert!(!log.contains("durable") && !log.contains("finish"), "{why}: {log}");
        } else {
            assert_eq!(streamed(outcome).how, How::Complete, "{why}");
            assert!(log.contains("resume|durable|finish"), "{why}: {log}");
        }
    }
}

#[tokio::test]
async fn the_body_of_the_request_is_gone_when_the_answer_begins() {
    struct Watched(#[allow(dead_code)] Arc<()>);
    impl AsRef<[u8]> for Watched {
        fn as_ref(&self) -> &[u8] {
            b"{\"a\":1}"
        }
    }
    let (listener, port) = listen().await;
    let (mut bed, mut client, pauses) = pausing(port, ROOMY).await;
    let mark = Arc::new(());
    bed.filter.body = Bytes::from_owner(Watched(Arc::clone(&mark)));
    let begun = format!("{SSE}{}", chunked(&["data: 1\n\n"]));
    let (outcome, ()) = both(bed.run(), async {
        let (_, mut stream) = answer(&listener, &begun).await;
        heard(&mut client, "data: 1\n\n").await;
        assert_eq!(Arc::strong_count(&mark), 1, "a stream that stands still holds no request");
        pauses.send((Flow::Go, "")).unwrap();
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    assert_eq!(streamed(outcome).how, How::Complete);
}
