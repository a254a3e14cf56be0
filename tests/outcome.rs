//! The chain has the payment and the gate does not know it: nobody pays twice, nobody is served twice, nothing is lost,
//! over restarts as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::bed::{CHAT, PRICE, assert_challenge, assert_final, chat, streamed};
use common::gate::Wait;
use common::{Bed, DEV, Fault, Gate, Raw, RawReply, Unseen, eventually, raw};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(20);
const BOTH: [&str; 2] = ["eth_sendRawTransactionSync", "eth_sendRawTransaction"];

/// The answer while nobody knows: soon enough, and an invitation to nothing but the same credential.
fn assert_unknown(reply: &RawReply) {
    assert_final(reply, &[503]);
    assert_eq!(reply.json()["error"]["code"], "payment_unknown", "{}", reply.text());
    assert_eq!(reply.json()["payment"]["moved"], "unknown");
    assert!(reply.header("retry-after").is_some());
}

/// Shows a proof until it is served, as a client does that follows `Retry-After`.
async fn served_in_the_end(bed: &Bed, proof: &str) {
    let served = eventually(Duration::from_secs(40), || async {
        let reply = bed.show(proof, CHAT, &chat()).await;
        if reply.status != 200 {
            assert_final(&reply, &[409, 503]);
        }
        reply.status == 200
    });
    assert!(served.await, "paid, and nothing to be had for it");
    assert_final(&bed.show(proof, CHAT, &chat()).await, &[403]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_whose_answer_is_lost_is_found_on_chain() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    for fault in [Fault::DropReply, Fault::HangAfter] {
        let proof = bed.proof(&payer, CHAT, &chat()).await;
        bed.rpc.once(BOTH[0], fault);
        let reply = bed.show(&proof, CHAT, &chat()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_final(&bed.show(&proof, CHAT, &chat()).await, &[403]);
    }
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_falls_silent_after_the_broadcast_costs_20_seconds_and_no_money() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.rpc.always(BOTH[0], Fault::DropReply);
    // It still says that the payment would go through.
    bed.rpc.always("eth_call", Fault::Delay(Duration::ZERO));
    bed.rpc.always("*", Fault::Hang);
    let began = Instant::now();
    let reply = bed.show(&proof, CHAT, &chat()).await;
    assert_unknown(&reply);
    assert!(began.elapsed() < Duration::from_secs(28), "the client was kept for {:?}", began.elapsed());
    assert_eq!((bed.served(), bed.chain.payments_to(DEV[1].address).await.len()), (0, 1), "paid, and not served");
    bed.rpc.clear();
    served_in_the_end(&bed, &proof).await;
    let books = bed.close(Unseen::default()).await;
    assert_eq!((books.charged, books.receipts), (PRICE, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_never_reached_the_chain_is_handed_in_again() {
    let bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.rpc.once(BOTH[0], Fault::Refuse);
    bed.rpc.once(BOTH[1], Fault::Refuse);
    let reply = bed.show(&proof, CHAT, &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(bed.rpc.broadcasts() > 1);
    bed.close(Unseen::default()).await;
}

/// Shows a proof in the background and does not wait for the answer.
async fn left_alone(bed: &Bed, proof: &str) -> Raw {
    let mut client = Raw::connect(bed.gate.listen).await;
    client.send(&raw::post(CHAT, &[("authorization", proof)], chat().to_string().as_bytes())).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_killed_with_a_payment_under_way_finds_it_again() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    // Once the chain has the transaction and the gate never hears of it; once the chain has never heard of it.
    for (fault, landed) in [(Fault::HangAfter, 1), (Fault::Hang, 0)] {
        let proof = bed.proof(&payer, CHAT, &chat()).await;
        let (before, calls) = (bed.chain.payments_to(DEV[1].address).await.len(), bed.rpc.broadcasts());
        bed.rpc.always(BOTH[0], fault);
        let _client = left_alone(&bed, &proof).await;
        assert!(eventually(SHORT, || async { bed.rpc.broadcasts() > calls }).await);
        let arrived =
            eventually(SHORT, || async { bed.chain.payments_to(DEV[1].address).await.len() == before + landed });
        assert!(arrived.await);
        bed.gate.kill();
        bed.rpc.clear();
        bed.gate.restart().await;
        served_in_the_end(&bed, &proof).await;
        assert_eq!(bed.chain.payments_to(DEV[1].address).await.len(), before + 1, "debits");
    }
    let books = bed.close(Unseen::default()).await;
    assert_eq!((books.receipts, books.charged), (2, 2 * PRICE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_killed_while_the_backend_works_leaves_the_payment_redeemable() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.backend.next(common::Reply::hang());
    let _client = left_alone(&bed, &proof).await;
    assert!(eventually(SHORT, || async { bed.served() == 1 }).await);
    bed.gate.kill();
    bed.gate.restart().await;
    served_in_the_end(&bed, &proof).await;
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_starts_without_its_chain_listens_and_settles_the_past_when_it_is_back() {
    let mut bed = Bed::with(|o| o.wait(Wait::Alive)).await;
    assert!(
        eventually(SHORT, || async { bed.gate.admin_get("/readyz").await.is_some_and(|(status, _)| status == 200) })
            .await
    );
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.rpc.always(BOTH[0], Fault::HangAfter);
    let _client = left_alone(&bed, &proof).await;
    assert!(eventually(SHORT, || async { !bed.chain.payments_to(DEV[1].address).await.is_empty() }).await);
    bed.gate.kill();
    bed.rpc.always("*", Fault::Refuse);
    bed.gate.restart().await;
    let text = chat().to_string();
    let unpaid = bed.post(CHAT, &[], text.as_bytes()).await;
    assert_eq!((unpaid.status, unpaid.header("www-authenticate")), (503, None), "{}", unpaid.text());
    assert_unknown(&bed.show(&proof, CHAT, &chat()).await);
    bed.rpc.clear();
    served_in_the_end(&bed, &proof).await;
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_gate_knows_its_spent_and_its_owed_proofs_when_it_is_back() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    let (spent, owed) = (bed.proof(&payer, CHAT, &chat()).await, bed.proof(&payer, CHAT, &streamed()).await);
    assert_eq!(bed.show(&spent, CHAT, &chat()).await.status, 200);
    bed.backend.next(common::Reply::error(500, "x", "y", "z"));
    assert_final(&bed.show(&owed, CHAT, &streamed()).await, &[502]);
    for harsh in [false, true] {
        if harsh {
            bed.gate.kill();
        }
        bed.gate.restart().await;
        bed.rpc.forget();
        assert_final(&bed.show(&spent, CHAT, &chat()).await, &[403]);
        assert_eq!(bed.chain_calls(), [""; 0]);
    }
    assert_eq!(bed.show(&owed, CHAT, &streamed()).await.status, 200);
    assert_final(&bed.show(&owed, CHAT, &streamed()).await, &[403]);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_made_before_a_restart_is_honoured_after_it() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.gate.kill();
    bed.gate.restart().await;
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200);
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_does_not_start_with_another_payee_until_that_is_meant() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    assert_eq!(bed.show(&proof, CHAT, &chat()).await.status, 200);
    let old = bed.proof(&payer, CHAT, &chat()).await;
    let conf = bed.gate.conf();
    bed.gate.write_conf(&conf.replace(DEV[1].address, DEV[8].address));
    let why = bed.gate.restart_with(&[]).await.expect_err("it started with another payee");
    assert!(why.contains("--accept-payee-change") && why.contains(DEV[8].address), "{why}");
    bed.gate.restart_with(&["--accept-payee-change"]).await.expect("meant");
    // What was offered for the old payee is not payable to the new one, and the old spent proof is still spent or unknown.
    assert_challenge(&bed.show(&old, CHAT, &chat()).await, "invalid_challenge");
    assert_eq!(bed.rpc.broadcasts(), 1);
    bed.gate.restart_with(&[]).await.expect("meant once is meant");
    bed.gate.write_conf(&conf);
    assert!(bed.gate.restart_with(&[]).await.is_err(), "and back is a change again");
    bed.gate.restart_with(&["--accept-payee-change"]).await.expect("meant");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_in_doubt_is_settled_before_payee_or_realm_may_change() {
    let mut bed = Bed::open().await;
    let payer = bed.payer().await;
    let proof = bed.proof(&payer, CHAT, &chat()).await;
    bed.rpc.always(BOTH[0], Fault::HangAfter);
    let _client = left_alone(&bed, &proof).await;
    assert!(eventually(SHORT, || async { !bed.chain.payments_to(DEV[1].address).await.is_empty() }).await);
    bed.gate.kill();
    bed.rpc.clear();
    let conf = bed.gate.conf();
    let realm = conf.replace("public_url = \"http://127.0.0.1", "public_url = \"http://localhost");
    for changed in [conf.replace(DEV[1].address, DEV[8].address), realm.clone()] {
        assert_ne!(changed, conf);
        bed.gate.write_conf(&changed);
        let why = bed.gate.restart_with(&["--accept-payee-change"]).await.expect_err("judged by another payee");
        assert!(why.contains("1 payments made before the change"), "{why}");
    }
    bed.gate.write_conf(&conf);
    bed.gate.restart().await;
    served_in_the_end(&bed, &proof).await;
    // With nothing in doubt, another name needs no flag.
    bed.gate.write_conf(&realm);
    bed.gate.restart_with(&[]).await.expect("another public name");
    bed.close(Unseen::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gates_do_not_share_one_store() {
    let bed = Bed::open().await;
    let store = format!("{}/var/pontage.redb", bed.gate.dir().display());
    let options =
        common::GateOptions::new(&bed.rpc.url(), &bed.backend.url()).conf_edit("{dir}/var/pontage.redb", &store);
    let why = Gate::try_start(options).await.err().expect("a second gate on the same store");
    assert!(why.contains("store"), "{why}");
    bed.close(Unseen::default()).await;
}
