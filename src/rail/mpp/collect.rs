//! Taking a charge's money: hand in, look, judge.
//!
//! The rule: a payment is *paid* only on a receipt with success status and the agreed transfer's log, *failed* only on evidence,
//! and otherwise unknown. Evidence of failure is a receipt that says so, a node that refuses the bytes on their first hand-in
//! with no receipt for them, or the chain's own clock past the transaction's validity with no receipt. A node of another chain gives
//! no evidence: whatever is absent there, and whatever it refuses, is as open as before.

use crate::chain::{Address, B256, Chain, Head, Inclusion, Rejection, Sent, Transfer, Unreachable};
use crate::clock::UnixSeconds;
use crate::rail::Collected;
use ::mpp::tempo::attribution;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How far the chain's clock must be past a transaction's validity before its absence is believed: a replica may lag.
pub const LAG_SECONDS: u64 = 30;

/// The longest pause between two looks at one payment.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long to wait for a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Whole duration of one collection, after which the outcome is unknown.
    pub patience: Duration,
    /// Pause between the first two looks; each later one is twice as long, up to [`LONGEST_PAUSE`].
    pub pause: Duration,
    /// How long a used nonce must stand without a receipt of ours before another transaction is held to have used it.
    pub nonce_doubt: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(20),
            pause: Duration::from_millis(200),
            nonce_doubt: Duration::from_secs(3),
        }
    }
}

/// The transfer that pays for one challenge.
#[derive(Clone, Copy, Debug)]
pub struct Due<'a> {
    /// The chain it is on.
    pub chain_id: u64,
    /// The exact token.
    pub token: Address,
    /// The exact payee.
    pub to: Address,
    /// The exact amount in atoms.
    pub amount: u128,
    /// The challenge its memo must name.
    pub challenge_id: &'a str,
    /// The realm its memo must name.
    pub realm: &'a str,
    /// Whose balance it must come from, when the proof says; else the transaction's sender.
    pub payer: Option<Address>,
}

impl Due<'_> {
    /// Whether one transfer is the agreed one. The memo is what ties a transfer to this challenge and no other.
    fn is(&self, transfer: &Transfer, sender: Address) -> bool {
        transfer.token == self.token
            && transfer.to == self.to
            && transfer.amount == self.amount
            && transfer.from == self.payer.unwrap_or(sender)
            && transfer.memo.is_some_and(|memo| {
                attribution::verify_server(&memo, self.realm)
                    && attribution::verify_challenge_binding(&memo, self.challenge_id)
            })
    }

    /// What the chain's report means for this payment; `None` while it says nothing. Pure.
    pub fn judge(&self, found: &Inclusion) -> Option<Collected> {
        match found {
            Inclusion::Absent => None,
            Inclusion::Reverted { .. } => Some(failed("the transaction was mined and reverted")),
            Inclusion::Done { sender, transfers, .. } if transfers.iter().any(|t| self.is(t, *sender)) => {
                Some(Collected::Paid)
            }
            Inclusion::Done { .. } => Some(failed("the transaction was mined and does not hold the agreed transfer")),
        }
    }
}

pub(super) fn failed(why: &str) -> Collected {
    Collected::Failed { why: why.to_owned() }
}

/// Whether, by the chain's clock, a transaction that is not mined can never be.
pub fn over(head: &Head, collect_until: UnixSeconds) -> bool {
    head.time > collect_until.plus(LAG_SECONDS)
}

/// The newest block of the chain `id`. An error where the node is on another one: its URL may lead elsewhere than it did.
pub async fn head_of(chain: &dyn Chain, id: u64) -> Result<Head, Unreachable> {
    let head = chain.head().await?;
    if head.chain_id != id {
        tracing::error!(ours = id, its = head.chain_id, "the node is on another chain: nothing it says is believed");
        return Err(Unreachable { why: "the node is on another chain" });
    }
    Ok(head)
}

/// Hands `raw` in for the first time. Takes half of the patience at most: a node that holds the call must leave time to look for the
/// receipt. A refusal is one only of a node that is on the chain `id`.
pub async fn hand_in(chain: &dyn Chain, id: u64, raw: &[u8], pace: &Pace) -> Sent {
    let asked = async {
        match chain.send(raw).await {
            refused @ Sent::Rejected(_) => match head_of(chain, id).await {
                Ok(_) => refused,
                Err(Unreachable { why }) => Sent::Lost { why },
            },
            other => other,
        }
    };
    timeout(pace.patience / 2, asked).await.unwrap_or(Sent::Lost { why: "it took too long" })
}

/// Hands in `raw`, if there is anything to hand in, and looks for its receipt as long as `pace` has patience. It is handed in twice
/// at most: what a node does not take then, whoever follows it hands in again ([`look`]).
pub async fn collect(chain: &dyn Chain, hash: B256, raw: Option<&[u8]>, due: Due<'_>, pace: Pace) -> Collected {
    let begun = Instant::now();
    let deadline = begun + pace.patience;
    let first = match raw {
        None => Sent::Accepted,
        Some(raw) => hand_in(chain, due.chain_id, raw, &pace).await,
    };
    let mut again = raw.filter(|_| matches!(first, Sent::Lost { .. }));
    let mut pause = pace.pause;
    loop {
        if let Ok(Ok(found)) = timeout_at(deadline, chain.inclusion(hash)).await {
            if let Some(verdict) = due.judge(&found) {
                return verdict;
            }
            // Only the first hand-in's refusal counts: a later one may be about our own transaction, already on its way.
            match first {
                Sent::Rejected(Rejection::Funds) => return failed("the chain refused it: the payer cannot pay for it"),
                Sent::Rejected(Rejection::Invalid) => return failed("the chain refused it: it is not valid any more"),
                Sent::Rejected(Rejection::Nonce) if begun.elapsed() >= pace.nonce_doubt => {
                    return failed("the chain refused it: another transaction used its nonce");
                }
                _ => {
                    if let Some(raw) = again.take()
                        && matches!(timeout_at(deadline, chain.send(raw)).await, Ok(Sent::Accepted))
                    {
                        continue;
                    }
                }
            }
        }
        if Instant::now() + pause >= deadline {
            return Collected::Unknown;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The same question from a record alone: one look, and when the transaction is absent but can still be mined, one more
/// hand-in of the same bytes and one more look.
pub async fn look(
    chain: &dyn Chain,
    hash: B256,
    raw: Option<&[u8]>,
    due: Due<'_>,
    collect_until: UnixSeconds,
) -> Collected {
    // The head first: a transaction that could be mined is in a block no younger than the head seen before the look.
    let Ok(head) = head_of(chain, due.chain_id).await else { return Collected::Unknown };
    let Ok(found) = chain.inclusion(hash).await else { return Collected::Unknown };
    if let Some(verdict) = due.judge(&found) {
        return verdict;
    }
    if over(&head, collect_until) {
        return failed("it was not mined in the time it was valid for");
    }
    if let Some(raw) = raw.filter(|_| head.time < collect_until)
        && chain.send(raw).await == Sent::Accepted
        && let Ok(found) = chain.inclusion(hash).await
    {
        return due.judge(&found).unwrap_or(Collected::Unknown);
    }
    Collected::Unknown
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::chain::fees::Tried;
    use async_trait::async_trait;
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use tempo_alloy::primitives::TempoTransaction;

    const CHAIN: u64 = 42431;
    const REALM: &str = "llm.test";
    const CHALLENGE: &str = "the-challenge";

    fn due<'a>() -> Due<'a> {
        Due {
            chain_id: CHAIN,
            token: Address::repeat_byte(1),
            to: Address::repeat_byte(2),
            amount: 10_000,
            challenge_id: CHALLENGE,
            realm: REALM,
            payer: Some(Address::repeat_byte(3)),
        }
    }

    fn agreed() -> Transfer {
        Transfer {
            token: Address::repeat_byte(1),
            from: Address::repeat_byte(3),
            to: Address::repeat_byte(2),
            amount: 10_000,
            memo: Some(attribution::encode(CHALLENGE, REALM, None)),
        }
    }

    fn done(transfers: Vec<Transfer>) -> Inclusion {
        Inclusion::Done { block: 1, sender: Address::repeat_byte(3), transfers }
    }

    #[test]
    fn only_the_agreed_transfer_pays() {
        let other = Address::repeat_byte(9);
        for (transfers, paid, why) in [
            (vec![agreed()], true, "as agreed"),
            (vec![Transfer { memo: None, ..agreed() }, agreed()], true, "with its plain twin"),
            (vec![], false, "success without any transfer"),
            (vec![Transfer { token: other, ..agreed() }], false, "another token"),
            (vec![Transfer { to: other, ..agreed() }], false, "another payee"),
            (vec![Transfer { from: other, ..agreed() }], false, "another payer"),
            (vec![Transfer { amount: 9_999, ..agreed() }], false, "one atom short"),
            (vec![Transfer { amount: 10_001, ..agreed() }], false, "one atom over"),
            (vec![Transfer { amount: 5_000, ..agreed() }; 2], false, "two halves"),
            (vec![Transfer { memo: None, ..agreed() }], false, "no memo"),
            (
                vec![Transfer { memo: Some(attribution::encode("other", REALM, None)), ..agreed() }],
                false,
                "another challenge",
            ),
            (
                vec![Transfer { memo: Some(attribution::encode(CHALLENGE, "evil.test", None)), ..agreed() }],
                false,
                "another realm",
            ),
        ] {
            assert_eq!(due().judge(&done(transfers)) == Some(Collected::Paid), paid, "{why}");
        }
        assert!(matches!(due().judge(&Inclusion::Reverted { block: 1 }), Some(Collected::Failed { .. })), "reverted");
        assert_eq!(due().judge(&Inclusion::Absent), None, "absence says nothing");
    }

    /// A node that answers from a script; when a script is at its end, its last line is repeated.
    struct Scripted {
        sent: Mutex<VecDeque<Sent>>,
        seen: Mutex<VecDeque<Result<Inclusion, Unreachable>>>,
        chain_id: u64,
        time: u64,
        sends: Mutex<usize>,
        looks: Mutex<usize>,
    }

    fn next<T: Clone>(script: &Mutex<VecDeque<T>>) -> T {
        let mut script = script.lock().unwrap();
        if script.len() > 1 { script.pop_front().unwrap() } else { script.front().unwrap().clone() }
    }

    #[async_trait]
    impl Chain for Scripted {
        async fn head(&self) -> Result<Head, Unreachable> {
            Ok(Head { chain_id: self.chain_id, number: 1, time: UnixSeconds(self.time) })
        }
        async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
            Ok(UnixSeconds(0))
        }
        async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
            *self.looks.lock().unwrap() += 1;
            next(&self.seen)
        }
        async fn rehearse(&self, _: Address, _: &TempoTransaction) -> Result<Tried, Unreachable> {
            Ok(Tried::Passes)
        }
        async fn send(&self, _: &[u8]) -> Sent {
            *self.sends.lock().unwrap() += 1;
            next(&self.sent)
        }
    }

    fn scripted(sent: Vec<Sent>, seen: Vec<Result<Inclusion, Unreachable>>, time: u64) -> Scripted {
        Scripted {
            sent: Mutex::new(sent.into()),
            seen: Mutex::new(seen.into()),
            chain_id: CHAIN,
            time,
            sends: Mutex::new(0),
            looks: Mutex::new(0),
        }
    }

    fn kind(c: &Collected) -> &'static str {
        match c {
            Collected::Paid => "paid",
            Collected::Failed { .. } => "failed",
            Collected::Unknown => "unknown",
            Collected::Settled { .. } | Collected::Unprovable => "not said by this rail",
        }
    }

    const HASTY: Pace = Pace {
        patience: Duration::from_millis(100),
        pause: Duration::from_millis(1),
        nonce_doubt: Duration::from_millis(10),
    };
    const LOST: Sent = Sent::Lost { why: "gone" };
    const DOWN: Result<Inclusion, Unreachable> = Err(Unreachable { why: "gone" });

    #[tokio::test]
    async fn failure_needs_evidence_and_everything_else_stays_unknown() {
        let absent = || Ok(Inclusion::Absent);
        let paid = || Ok(done(vec![agreed()]));
        for (sent, seen, want, why) in [
            (vec![Sent::Accepted], vec![paid()], "paid", "taken and mined"),
            (vec![Sent::Accepted], vec![absent(), absent(), paid()], "paid", "a replica lags"),
            (vec![Sent::Accepted], vec![absent()], "unknown", "taken, never seen"),
            (vec![Sent::Accepted], vec![Ok(Inclusion::Reverted { block: 1 })], "failed", "reverted"),
            (vec![LOST], vec![DOWN], "unknown", "nothing answers"),
            (vec![LOST], vec![absent()], "unknown", "lost, not seen"),
            (vec![LOST], vec![DOWN, DOWN, paid()], "paid", "lost its answer, was mined"),
            (vec![LOST, Sent::Accepted], vec![absent(), paid()], "paid", "lost, handed in again"),
            (vec![Sent::Rejected(Rejection::Funds)], vec![absent()], "failed", "cannot pay"),
            (vec![Sent::Rejected(Rejection::Funds)], vec![DOWN], "unknown", "refused, but no look at the receipt"),
            (vec![Sent::Rejected(Rejection::Invalid)], vec![absent()], "failed", "not valid"),
            (vec![Sent::Rejected(Rejection::Nonce)], vec![absent()], "failed", "nonce used by another one"),
            (vec![Sent::Rejected(Rejection::Nonce)], vec![absent(), paid()], "paid", "nonce used by this very one"),
            (
                vec![LOST, Sent::Rejected(Rejection::Funds)],
                vec![absent()],
                "unknown",
                "refused after the first was lost",
            ),
        ] {
            let chain = scripted(sent, seen, 0);
            let got = collect(&chain, B256::ZERO, Some(&[1]), due(), HASTY).await;
            assert_eq!(kind(&got), want, "{why}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_payment_that_no_node_takes_is_handed_in_twice_and_looked_for_ever_more_seldom() {
        let chain = scripted(vec![LOST], vec![Ok(Inclusion::Absent)], 0);
        let got = collect(&chain, B256::ZERO, Some(&[1]), due(), Pace::default()).await;
        assert_eq!((kind(&got), *chain.sends.lock().unwrap()), ("unknown", 2));
        let looks = *chain.looks.lock().unwrap();
        assert!((8..=14).contains(&looks), "{looks} looks in 20 seconds");
    }

    #[tokio::test]
    async fn a_node_of_another_chain_is_no_evidence_that_a_payment_failed() {
        for (chain_id, want) in [(CHAIN, "failed"), (CHAIN + 1, "unknown")] {
            for rejection in [Rejection::Funds, Rejection::Invalid, Rejection::Nonce] {
                let node = scripted(vec![Sent::Rejected(rejection)], vec![Ok(Inclusion::Absent)], 0);
                let got = collect(&Scripted { chain_id, ..node }, B256::ZERO, Some(&[1]), due(), HASTY).await;
                assert_eq!(kind(&got), want, "chain {chain_id} refused: {rejection:?}");
            }
            let node = scripted(vec![LOST], vec![Ok(Inclusion::Absent)], 1_000);
            let got = look(&Scripted { chain_id, ..node }, B256::ZERO, Some(&[1]), due(), UnixSeconds(100)).await;
            assert_eq!(kind(&got), want, "chain {chain_id} does not have it, long after its end");
        }
    }

    #[tokio::test]
    async fn a_node_that_never_answers_costs_no_more_than_our_patience() {
        struct Silent;
        #[async_trait]
        impl Chain for Silent {
            async fn head(&self) -> Result<Head, Unreachable> {
                std::future::pending().await
            }
            async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
                std::future::pending().await
            }
            async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
                std::future::pending().await
            }
            async fn rehearse(&self, _: Address, _: &TempoTransaction) -> Result<Tried, Unreachable> {
                std::future::pending().await
            }
            async fn send(&self, _: &[u8]) -> Sent {
                std::future::pending().await
            }
        }
        let collecting = collect(&Silent, B256::ZERO, Some(&[1]), due(), HASTY);
        let got = tokio::time::timeout(Duration::from_secs(10), collecting).await.expect("it ends by itself");
        assert_eq!(kind(&got), "unknown");
    }

    #[tokio::test]
    async fn a_later_look_sends_again_while_it_can_and_gives_up_only_by_the_chains_clock() {
        let absent = || Ok(Inclusion::Absent);
        let paid = || Ok(done(vec![agreed()]));
        for (sent, seen, time, want, sends, why) in [
            (vec![LOST], vec![paid()], 0, "paid", 0, "landed meanwhile"),
            (vec![Sent::Accepted], vec![absent(), paid()], 99, "paid", 1, "sent again, landed"),
            (vec![Sent::Accepted], vec![absent()], 99, "unknown", 1, "sent again, not seen yet"),
            (
                vec![Sent::Rejected(Rejection::Nonce)],
                vec![absent()],
                99,
                "unknown",
                1,
                "refused: perhaps because it landed",
            ),
            (vec![LOST], vec![absent()], 100, "unknown", 0, "validity over, not yet for sure"),
            (vec![LOST], vec![absent()], 130, "unknown", 0, "at the edge of the doubt"),
            (vec![LOST], vec![absent()], 131, "failed", 0, "over for sure"),
            (vec![LOST], vec![paid()], 1_000, "paid", 0, "landed, asked long after"),
            (vec![LOST], vec![DOWN], 1_000, "unknown", 0, "no look, no verdict"),
        ] {
            let chain = scripted(sent, seen, time);
            let got = look(&chain, B256::ZERO, Some(&[1]), due(), UnixSeconds(100)).await;
            assert_eq!((kind(&got), *chain.sends.lock().unwrap()), (want, sends), "{why}");
        }
    }
}
