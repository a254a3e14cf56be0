//! Payments that are taken after the reply: by its success, or by what it used.

use super::sessions::audited;
use super::*;
use crate::flow::receipt::Signet;
use crate::flow::settle::{Delivery, End, RECEIPT_ID};
use crate::journal::Settlement;
use crate::refusal::Moved;
use crate::secret::Secret;

/// 2 tokens in at $1 and 3 out at $10 a million: 32 atoms.
const REPLY: &str = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}"#;

/// Taken by the reply's success.
pub(super) fn by_success() -> When {
    When::After { most: None, exposure: Usd::ONE }
}

/// Taken by what was used.
pub(super) fn by_usage() -> When {
    When::After { most: Some(Usd::ONE), exposure: Usd::ONE }
}

/// The usual rules, on a rail that takes its money after the reply.
pub(super) fn bed(after: When) -> Bed {
    bed_with(after, &[])
}

fn bed_with(after: When, edits: &[(&str, &str, &str)]) -> Bed {
    let bed = Bed::with(edits);
    *bed.rail.after.lock().unwrap() = Some(after);
    bed
}

pub(super) fn delivery(bed: &Bed, paid: Paid) -> Delivery {
    let signet = Arc::new(Signet::new(&Secret::new([7u8; 32])).unwrap());
    Delivery::begin(Arc::clone(&bed.toll), signet, paid, "req_1")
}

/// What the pump does with a reply that came whole.
pub(super) async fn answered(mut served: Delivery, reply: &str) -> Result<(Delivery, Bytes), Stop> {
    match served.whole(Bytes::copy_from_slice(reply.as_bytes())).await {
        Ok(body) => Ok((served, body)),
        Err(stop) if stop.claimed => Err(stop),
        Err(stop) => Err(served.fail(stop.refusal).await),
    }
}

/// Sells one reply.
pub(super) async fn sell(bed: &Bed, body: &str, credential: &Shown, reply: &str) -> Result<Receipt, Stop> {
    let paid = bed.pay(PATH, body, credential).await?;
    answered(delivery(bed, paid), reply).await.map(|(served, _)| served.receipt().clone())
}

fn standing(claim: Option<Claim>) -> Option<Standing> {
    claim.map(|claim| claim.standing)
}

async fn receipt(bed: &Bed, id: &str) -> Receipt {
    bed.store.inner.receipt(id).await.unwrap().unwrap()
}

fn takes(bed: &Bed) -> Vec<Atoms> {
    bed.rail.takes.lock().unwrap().clone()
}

#[tokio::test]
async fn a_reply_that_came_is_paid_before_it_leaves_and_its_receipt_says_by_what() {
    let bed = bed(by_success());
    let body = ask("m", 10);
    let credential = bed.credential(PATH, &body, "a").await;
    let paid = bed.pay(PATH, &body, &credential).await.unwrap();
    assert!(matches!(standing(bed.claim("a").await), Some(Standing::Promised { .. })), "durable, and nothing moved");
    assert_eq!((takes(&bed).len(), bed.rail.collects()), (0, 0));
    assert_eq!(paid.output, 10);

    let (served, sent) = answered(delivery(&bed, paid), REPLY).await.unwrap();
    let price = bed.quote(PATH, &body).await.unwrap().parts.price_usd.to_atoms(6).unwrap();
    assert_eq!(takes(&bed), [price], "the price, whatever was used");
    let own = served.receipt().clone();
    assert_eq!((own.charged, own.settlement), (price, Some(Settlement::Settled)));
    assert_eq!(own.transaction.as_deref(), Some("0xtook"));
    let shown: serde_json::Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(shown["pontage"]["transaction"], "0xtook");
    assert!(served.headers().iter().any(|(name, value)| *name == RECEIPT_ID && *value == own.id.as_str()));
    assert_eq!(receipt(&bed, &own.id).await, own, "in the books as sent");
    let claim = bed.claim("a").await.unwrap();
    assert_eq!(claim.standing, Standing::Delivered { receipt: own.id });
    assert_eq!((claim.resend, claim.transaction.as_deref()), (None, Some("0xtook")));

    let again = stopped(bed.pay(PATH, &body, &credential).await);
    assert_eq!(again, Stop { refusal: Refusal::ProofSpent, moved: Moved::Yes, claimed: true });
    drop(served);
    audited(bed).await;
}
