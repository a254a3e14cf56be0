//! Looking for ourselves: whether the chain shows what a facilitator says, and what became of an authorization nobody answered for.

use super::signed::Signed;
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use async_trait::async_trait;

/// The movement that was bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Movement<'a> {
    /// Token, as the network writes it.
    pub token: &'a str,
    /// Payee.
    pub to: &'a str,
    /// Exactly this much.
    pub amount: Atoms,
    /// Not before this: the chain's history is looked through from here, and its older part is not asked for.
    pub since: UnixSeconds,
}

/// What the chain shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The movement, in this transaction.
    Moved {
        /// Its hash or signature.
        transaction: String,
    },
    /// The authorization is as good as new: nobody has used it.
    Unused,
    /// It is used up or cancelled, and the movement is not there.
    Gone,
    /// The node did not say, or not enough.
    Unknown,
}

/// A chain as a rail needs it. Every call is a few requests with a bounded duration.
#[async_trait]
pub trait Evidence: Send + Sync {
    /// Whether the node could say anything now: it answers, for the right network, and keeps up. The error is a sentence for operators.
    async fn standing(&self) -> Result<(), String>;
    /// Whether this transaction, which a facilitator names, shows the movement for this authorization: [`Trace::Moved`], or
    /// [`Trace::Gone`] when it is there and does not, else [`Trace::Unknown`].
    async fn shows(&self, transaction: &str, signed: &Signed, movement: &Movement<'_>) -> Trace;
    /// What became of an authorization, whoever handed it in.
    async fn trace(&self, signed: &Signed, movement: &Movement<'_>) -> Trace;
}

/// Whether a newest block of that time is young enough.
pub(super) fn keeps_up(newest: UnixSeconds, stale_seconds: u64) -> Result<(), String> {
    let now = UnixSeconds::now();
    match now > newest.plus(stale_seconds) {
        true => Err(format!(
            "the newest block is {} s old, if this machine's clock is right",
            now.0.saturating_sub(newest.0)
        )),
        false => Ok(()),
    }
}
