//! Whether the account that settles and closes channels can pay for it. Without a fee nothing that is spent on a channel can be brought
//! home, so a session is offered only while there is money for one.

use crate::chain::Address;
use crate::chain::fees::Fees;
use crate::ids::RailId;
use crate::money::{Atoms, Usd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What one settlement or closing of ours can cost, with room: about a million gas at twice Tempo's base fee of 2·10¹⁰.
const LEAST: Usd = Usd(50_000_000_000_000_000);

/// The settling account of one rail, in the token that its fees are paid in.
pub struct Funds {
    rail: RailId,
    token: Address,
    account: Address,
    fees: Arc<dyn Fees>,
    /// As long as nobody has looked, or nobody can, there is nothing to be said against it.
    short: AtomicBool,
}

impl Funds {
    /// Of `account`, which settles for `rail` and pays its fees in `token`, a TIP-20 dollar.
    pub fn new(rail: RailId, token: Address, account: Address, fees: Arc<dyn Fees>) -> Self {
        Self { rail, token, account, fees, short: AtomicBool::new(false) }
    }

    /// Looks at the account. A node that does not answer is no word about it.
    pub async fn probe(&self) {
        let Ok(held) = self.fees.balance(self.token, self.account).await else { return };
        let short = Atoms(held).to_usd(super::charge::DECIMALS).is_some_and(|usd| usd < LEAST);
        let was = self.short.swap(short, Ordering::Relaxed);
        let (rail, account) = (&self.rail, &self.account);
        match (was, short) {
            (false, true) => {
                tracing::error!(%rail, %account, atoms = held, "the settle key's account cannot pay a fee: sessions are not offered");
            }
            (true, false) => {
                tracing::info!(%rail, %account, atoms = held, "the settle key's account can pay fees again")
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Why no channel should be opened now, if it is for want of a fee. No I/O.
    pub fn standing(&self) -> Result<(), String> {
        if !self.short.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(format!(
            "the settle key's account {} holds less than {LEAST} USD of the rail's token for fees",
            self.account
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chain::fees::{Trial, Tried};
    use crate::chain::{B256, Unreachable};
    use async_trait::async_trait;
    use std::sync::Mutex;

    /// Holds what it is told to; `None`: it does not answer.
    struct Node(Mutex<Option<u128>>);

    #[async_trait]
    impl Fees for Node {
        async fn trial(&self, _: &Trial) -> Result<Tried, Unreachable> {
            Ok(Tried::Passes)
        }
        async fn fee(&self, _: B256) -> Result<Option<Usd>, Unreachable> {
            Ok(None)
        }
        async fn balance(&self, token: Address, owner: Address) -> Result<u128, Unreachable> {
            assert_eq!((token, owner), (Address::repeat_byte(2), Address::repeat_byte(3)));
            self.0.lock().unwrap().ok_or(Unreachable { why: "gone" })
        }
    }

    #[tokio::test]
    async fn an_empty_account_is_known_until_it_holds_a_fee_and_a_silent_node_changes_nothing() {
        let node = Arc::new(Node(Mutex::new(None)));
        let funds = Funds::new("tempo/session".into(), Address::repeat_byte(2), Address::repeat_byte(3), node.clone());
        assert_eq!(funds.standing(), Ok(()), "nobody has looked");
        for (holds, stands, why) in [
            (None, true, "a node that cannot be asked is no word about it"),
            (Some(0), false, "empty"),
            (None, false, "still so, as far as anybody knows"),
            (Some(49_999), false, "an atom short of a fee"),
            (Some(50_000), true, "a fee"),
            (None, true, "nothing was heard against it"),
            (Some(u128::MAX), true, "more than can be counted in USD"),
        ] {
            *node.0.lock().unwrap() = holds;
            funds.probe().await;
            assert_eq!(funds.standing().is_ok(), stands, "{why}");
        }
        *node.0.lock().unwrap() = Some(7);
        funds.probe().await;
        let why = funds.standing().unwrap_err();
        assert!(why.contains("0x0303030303030303030303030303030303030303") && why.contains("0.05"), "{why}");
    }
}
