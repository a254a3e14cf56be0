//! Replies that take more memory than others.

use super::*;

#[tokio::test]
async fn large_replies_are_held_a_few_at_a_time_until_they_are_gone() {
    const LARGE: usize = 33 << 20;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
    for (declared, taken, whole, why) in [
        (true, 3, true, "there is a place"),
        (true, 4, false, "there is none: it waits, here for total_seconds"),
        (false, 3, true, "a length that is not said"),
        (false, 4, false, "nor read any further than what is free"),
    ] {
        let (listener, port) = listen().await;
        let mut rules = rules(&[port]);
        rules.timeouts = Timeouts { idle_seconds: 30, total_seconds: if whole { 60 } else { 2 }, ..rules.timeouts };
        let (mut bed, _client) = Bed::with(rules, ROOMY, "HTTP/1.1").await;
        bed.filter.limit = Some(LARGE);
        let lines = Arc::clone(&bed.lines);
        let mut held = Vec::new();
        for _ in 0..taken {
            held.push(lines.place().await.unwrap());
        }
        let (outcome, ()) = tokio::join!(bed.run(), async {
            let (_, mut stream) = answer(&listener, if declared { &head } else { "HTTP/1.1 200 OK\r\n\r\n" }).await;
            // The gate hangs up on what it does not read.
            let _ = stream.write_all(&vec![b'x'; LARGE]).await;
        });
        match outcome {
            Outcome::Buffered { body, .. } if whole => {
                assert_eq!(body.len(), LARGE, "{why}");
                let full = tokio::time::timeout(Duration::ZERO, lines.place()).await;
                assert!(full.is_err(), "{why}: it has its place while it lives");
                drop(body);
                let free = tokio::time::timeout(Duration::ZERO, lines.place()).await;
                assert!(free.is_ok(), "{why}: and no longer");
            }
            Outcome::Failed(Refusal::UpstreamTimeout { seconds: 2 }) if !whole => {}
            other => panic!("{why}: {other:?}"),
        }
    }
}
