//! Two gates on one store, neither of which hears what the other does.

use super::sessions::{BY_TOKEN, channel, delivery, opening, streamed, text, usage, words};
use super::*;
use crate::channel::{Denied, Effect, Lease, Op, OrphanPolicy, Phase, View, Voucher};
use crate::flow::settle::{End, Next};

fn id() -> ChannelId {
    ChannelId("0xaa".into())
}

/// Another gate beside that of the bed.
fn second(bed: &Bed) -> Arc<Toll> {
    bed.store.shared.store(true, Ordering::SeqCst);
    let (other, store) = toll(&bed.rules, Arc::clone(&bed.store.inner), &bed.rail, &bed.spare, &bed.purse);
    store.shared.store(true, Ordering::SeqCst);
    other
}

async fn at(gate: &Toll, op: Op) -> Result<Effect, Denied> {
    gate.channels.one(&id(), op).await.unwrap().1
}

fn accept(amount: u128) -> Op {
    Op::Accept { voucher: Voucher { amount: Atoms(amount), signature: "0xsig".into() }, min_delta: Atoms(0) }
}

#[tokio::test]
async fn a_gate_denies_nothing_for_what_it_remembers_and_another_has_changed() {
    let bed = super::sessions::bed();
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 500, 1_000)).await.unwrap();
    let Money::Lease(lease) = &paid.money else { panic!("a lease") };
    let held = Lease { gate: "gate_gone".into(), ..lease.held().clone() };
    std::mem::forget(paid);
    let (other, here) = (second(&bed), &bed.toll);
    let view = |block, deposit, close_requested_at| Op::Look {
        view: View { block, deposit: Atoms(deposit), settled: Atoms(0), close_requested_at },
    };
    let buy = |lease: &str, voucher: u128| Op::Buy {
        voucher: Voucher { amount: Atoms(voucher), signature: "0xsig".into() },
        min_delta: Atoms(0),
        challenge: crate::ids::fresh("ch"),
        expires: UnixSeconds::now().plus(300),
        lease: lease.to_owned(),
        terms: Box::new(held.clone()),
    };
    let (cap, charge) = (held.cap.0, Atoms(0));
    let deposit = Atoms(1_000);

    assert_eq!(at(here, accept(2_000)).await, Err(Denied::OverDeposit { deposit }), "and so it is");
    assert_eq!(at(&other, view(100, 5_000, None)).await, Ok(Effect::Done), "topped up there");
    assert_eq!(at(here, accept(2_000)).await, Ok(Effect::Done));

    let all = 2_000 - cap;
    let much = Lease { cap: Atoms(all), ..held.clone() };
    let Op::Buy { voucher, min_delta, challenge, expires, lease, .. } = buy("much", 2_000) else { panic!() };
    let op = Op::Buy { voucher, min_delta, challenge, expires, lease, terms: Box::new(much) };
    assert_eq!(at(here, op).await, Ok(Effect::Leased), "all that there is");
    assert!(matches!(at(here, buy("next", 2_000)).await, Ok(Effect::Short { .. })));
    assert_eq!(at(&other, Op::Spend { lease: "much".into(), charge }).await, Ok(Effect::Done), "free again there");
    assert_eq!(at(here, buy("next", 2_000)).await, Ok(Effect::Leased));

    assert_eq!(at(here, view(101, 5_000, Some(UnixSeconds::now()))).await, Ok(Effect::Done));
    assert_eq!(at(here, accept(3_000)).await, Err(Denied::Closing));
    assert_eq!(at(&other, view(102, 5_000, None)).await, Ok(Effect::Done), "the payer has changed his mind");
    assert_eq!(at(here, accept(3_000)).await, Ok(Effect::Done));

    assert_eq!(at(&other, buy("theirs", 3_000)).await, Ok(Effect::Leased));
    let orphan = || Op::Orphan { gate: "gate_gone".into(), policy: OrphanPolicy::Charge };
    let Ok(Effect::Orphaned(ended)) = at(here, orphan()).await else { panic!("nothing was ended") };
    assert_eq!(ended.len(), 2, "one that this gate had never heard of, too");
    assert_eq!(at(here, orphan()).await, Ok(Effect::Nothing));
    assert_eq!(channel(&bed, "0xaa").await.phase, Phase::Open);
}

#[tokio::test]
async fn a_stream_whose_lease_another_gate_has_ended_gets_no_receipt_but_the_one_in_the_books() {
    let bed = super::sessions::bed();
    let other = second(&bed);
    let paid = bed.pay(BY_TOKEN, &streamed(1_000), &opening("0xaa", 2_000, 50_000)).await.unwrap();
    let mut stream = delivery(&bed, paid);
    let mut out = Vec::new();
    stream.chunk(words(10), &mut out).await.unwrap();
    stream.first_byte().await.unwrap();
    let told = || async { channel(&bed, "0xaa").await.leases.values().all(|lease| lease.used.is_some()) };
    until(told).await;
    let gate = bed.store.inner.gate().to_owned();
    let orphaned = at(&other, Op::Orphan { gate, policy: OrphanPolicy::Charge }).await;
    let Ok(Effect::Orphaned(ended)) = orphaned else { panic!("{orphaned:?}") };
    let charged = ended[0].2;
    out.clear();
    stream.chunk(usage(9, 20), &mut out).await.unwrap();
    assert_eq!(stream.end(End::Whole, &mut out).await, Next::Go);
    let end = text(&out);
    assert!(end.ends_with("data: [DONE]\n\n") && !end.contains("receipt"), "{end}");
    let booked = bed.store.inner.receipt(&stream.receipt().id).await.unwrap().unwrap();
    assert_eq!((booked.charged, channel(&bed, "0xaa").await.spent()), (charged, charged));
    assert_ne!(booked.charged, stream.receipt().charged);
    let counted = bed.toll.metrics.charged_usd.with_label_values(&["tempo/session"]).get();
    assert_eq!(counted, 0.0, "this gate has charged nothing");
    stream.end(End::ClientGone, &mut Vec::new()).await;
    drop(stream);
    super::sessions::audited(bed).await;
}
