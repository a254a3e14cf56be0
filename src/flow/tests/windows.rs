//! When the windows of a stream are leased.

use super::sessions::{BY_TOKEN, bed, delivery, newest, opening, streamed, words};
use super::*;
use crate::channel::Lease;
use crate::flow::settle::Delivery;

/// The only lease, once the record says that something of it was delivered, and how many writes that took.
async fn begun(bed: &Bed, stream: &mut Delivery, before: u64) -> (Lease, u64) {
    stream.chunk(words(1), &mut Vec::new()).await.unwrap();
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let now = newest(bed, "0xaa").await;
        let lease = now.leases.values().next().unwrap().clone();
        if lease.used.is_some() {
            return (lease, now.revision - before);
        }
        assert!(tokio::time::Instant::now() < end, "the first word is never marked");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_first_word_leases_a_second_window_in_one_write_where_the_channel_is_paid_far_ahead() {
    for (accepted, pace, window, why) in [
        (450, None, 0, "there is cover for the first alone"),
        (1_500, None, 0, "and for three more, but not for four"),
        (1_700, None, 320, "and for four: as large as the first, nobody having seen how fast this model is"),
        (1_700, Some(100), 0, "four of a fast model are more"),
        (20_000, Some(100), 1_000, "half a second, as the last stream had it"),
    ] {
        let bed = bed();
        if let Some(tokens) = pace {
            bed.toll.channels.streams_at(&"m".into(), tokens);
        }
        let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", accepted, 50_000)).await.unwrap();
        let before = newest(&bed, "0xaa").await;
        let cap = before.leases.values().next().unwrap().cap;
        let mut stream = delivery(&bed, paid);
        let (lease, writes) = begun(&bed, &mut stream, before.revision).await;
        assert_eq!((lease.cap.0 - cap.0, writes), (window, 1), "{why}");
    }
}
