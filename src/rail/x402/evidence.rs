//! Looking for ourselves: whether the chain shows what a facilitator says, and what became of an authorization nobody answered for.

use super::signed::Signed;
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::money::Atoms;
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two questions how a node stands, and how long it may take to answer one.
const BETWEEN: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

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

/// The gate's own node behind a rail, and what it said of itself when it was last asked: nobody would know before money is in doubt.
pub struct Node {
    chain: Arc<dyn Evidence>,
    seen: Mutex<Result<(), String>>,
}

impl Node {
    /// One that has not been asked yet.
    pub fn new(chain: Arc<dyn Evidence>) -> Self {
        Self { chain, seen: Mutex::new(Err("it has not been asked yet".to_owned())) }
    }

    /// What it said last. Never does I/O.
    pub fn standing(&self) -> Result<(), String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks it now and every minute, and says in the log what has changed.
    pub async fn watch(&self, rail: &RailId) {
        loop {
            let asked = tokio::time::timeout(PATIENCE, self.chain.standing()).await;
            let seen = asked.unwrap_or_else(|_| Err("it does not answer in time".to_owned()));
            let before =
                std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), seen.clone());
            match (seen, before) {
                (Err(why), before) if before.as_ref() != Err(&why) => {
                    tracing::error!(%rail, why, "`rpc`: this node could not say what became of a payment");
                }
                (Ok(()), Err(_)) => tracing::info!(%rail, "`rpc`: the node answers"),
                _ => {}
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }
}

impl std::ops::Deref for Node {
    type Target = dyn Evidence;

    fn deref(&self) -> &Self::Target {
        self.chain.as_ref()
    }
}
