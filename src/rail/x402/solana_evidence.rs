//! Looking for ourselves on Solana: did the payer's message move the money, whoever paid its fee?
//!
//! A transaction's name is its fee payer's signature, which the payer does not know; it is found by its message, in the history of
//! the token account the money comes from. A message lives as long as its blockhash, a minute or so. That the network does not
//! know a blockhash may mean that it is over, or that this node has not heard of it yet, so it takes two looks to tell.

use super::evidence::{Evidence, Movement, Trace};
use super::signed::Signed;
use super::solana::{Sought, message, sought};
use crate::chain::solana::{Balance, Commitment, Landed, Listed, PAGE, Solana};
use crate::chain::{Unreachable, keeps_up};
use crate::clock::UnixSeconds;
use crate::network::{Family, Network, base58};
use crate::secret::Secret;
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most pages of an account's history that are read.
const PAGES: usize = 10;
/// Most transactions that are looked at to find one.
const CANDIDATES: usize = 24;
/// How long after the first instant that is looked for a message can have landed, whose blockhash lives for a minute or two: with room
/// for clocks, and for whoever had it before us.
const LANDS_SECONDS: u64 = 3_600;
/// Messages whose end is being awaited, at most; beyond it nothing new is held to be over.
const AWAITED: usize = 10_000;

/// How to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When a transaction counts: [`Commitment::Confirmed`], or [`Commitment::Finalized`] for much money.
    pub counts: Commitment,
    /// A node whose newest block is older than this many seconds lags: it is not believed that nothing happened.
    pub stale_seconds: u64,
    /// A blockhash must stay unknown this long before its message is over.
    pub doubt: Duration,
}

impl Default for Look {
    fn default() -> Self {
        Self { counts: Commitment::Confirmed, stale_seconds: 30, doubt: Duration::from_secs(120) }
    }
}

/// One Solana network. Share it behind an `Arc`; any runtime may use it.
pub struct SolanaEvidence {
    node: Solana,
    /// The start of the first block's hash.
    reference: String,
    known: AtomicBool,
    look: Look,
    /// Messages whose blockhash a fresh node did not know, and since when.
    doubted: Mutex<HashMap<[u8; 32], Instant>>,
}

impl std::fmt::Debug for SolanaEvidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SolanaEvidence({})", self.reference)
    }
}

/// What one transaction is to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It is that message, and the payee got exactly the amount.
    Moved,
    /// It is that message, and failed or moved something else.
    Otherwise,
    /// Another message.
    Stranger,
}

/// Pure.
fn judge(sought: &[u8], movement: &Movement<'_>, landed: &Landed) -> Meaning {
    if message(&landed.transaction) != Some(sought) {
        return Meaning::Stranger;
    }
    let held = |list: &[Balance]| -> u128 {
        let ours = list.iter().filter(|b| b.owner == movement.to && b.mint == movement.token);
        ours.map(|b| u128::from(b.amount)).sum()
    };
    let gained = held(&landed.after).checked_sub(held(&landed.before));
    if !landed.failed && movement.amount.0 > 0 && gained == Some(movement.amount.0) {
        Meaning::Moved
    } else {
        Meaning::Otherwise
    }
}

/// Which of an account's transactions may be the one, of the hour in which it can have landed: those with its memos first, then those
/// of which the node tells no memo, because it keeps none or there is none. (A wallet gives each payment a memo of its own, so that among
/// thousands there is one.)
fn candidates(history: &[Listed], memos: &[&str], since: UnixSeconds) -> Vec<String> {
    let in_time = |l: &&Listed| l.time.is_none_or(|t| (since.0..=since.0.saturating_add(LANDS_SECONDS)).contains(&t));
    let says = |listed: &Listed| {
        listed.memo.as_ref().map(|text| !memos.is_empty() && memos.iter().all(|memo| text.contains(memo)))
    };
    let of = |wanted: Option<bool>| {
        history.iter().filter(in_time).filter(move |l| says(l) == wanted).map(|l| l.signature.clone())
    };
    of(Some(true)).chain(of(None)).collect()
}

impl SolanaEvidence {
    /// Prepares a look at `network` through the node at `rpc` (a URL that may hold a key). Nothing is connected yet. The error
    /// is a sentence that does not repeat the URL.
    pub fn new(rpc: &Secret, network: &Network, look: Look) -> Result<Self, String> {
        let reference =
            network.id.split_once(':').filter(|_| network.family == Family::Solana).map(|(_, r)| r.to_owned());
        let reference = reference.ok_or_else(|| format!("{network} is no Solana network"))?;
        let doubted = Mutex::new(HashMap::new());
        Ok(Self { node: Solana::new(rpc)?, reference, known: AtomicBool::new(false), look, doubted })
    }

    /// Whether the node is on our network; asked until it was right once.
    async fn here(&self) -> Result<(), Unreachable> {
        if !self.known.load(Ordering::Relaxed) {
            if !self.node.genesis().await?.starts_with(&self.reference) {
                return Err(Unreachable { why: "the node is on another network" });
            }
            self.known.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn seek(&self, sought: &Sought<'_>, movement: &Movement<'_>) -> Result<Trace, Unreachable> {
        self.here().await?;
        // Before the search: what was over then and is not found now was never used.
        let blockhash = base58(&sought.blockhash);
        let fresh = self.node.time(Commitment::Confirmed).await?.plus(self.look.stale_seconds) >= UnixSeconds::now();
        let usable = self.node.holds(&blockhash, Commitment::Processed).await?;
        let over = fresh && !usable && !self.node.holds(&blockhash, Commitment::Finalized).await?;
        let (found, whole) = self.find(sought, movement).await?;
        if let Some(trace) = found {
            return Ok(trace);
        }
        Ok(match (whole, over) {
            (true, true) if self.doubted_long(sought.message) => Trace::Gone,
            (true, false) if fresh && usable => Trace::Unused,
            _ => Trace::Unknown,
        })
    }

    /// The message in the history of its source; else whether all of that could be looked at.
    async fn find(&self, sought: &Sought<'_>, movement: &Movement<'_>) -> Result<(Option<Trace>, bool), Unreachable> {
        let source = base58(&sought.source);
        let (mut before, mut looked, mut whole): (Option<String>, usize, bool) = (None, 0, false);
        for _ in 0..PAGES {
            let page = self.node.history(&source, before.as_deref(), self.look.counts).await?;
            for signature in candidates(&page, &sought.memos, movement.since) {
                if looked == CANDIDATES {
                    return Ok((None, false));
                }
                looked += 1;
                match self.meaning(&signature, sought.message, movement).await? {
                    Some(Meaning::Moved) => return Ok((Some(Trace::Moved { transaction: signature }), true)),
                    Some(Meaning::Otherwise) => return Ok((Some(Trace::Gone), true)),
                    Some(Meaning::Stranger) => (),
                    // Listed and not shown: this node contradicts itself.
                    None => return Ok((None, false)),
                }
            }
            // What is older cannot be it.
            let is_before = |l: &Listed| l.time.is_some_and(|t| t < movement.since.0);
            whole = page.len() < PAGE || page.last().is_some_and(is_before);
            before = page.last().map(|l| l.signature.clone());
            if whole {
                break;
            }
        }
        Ok((None, whole))
    }

    async fn meaning(
        &self,
        signature: &str,
        message: &[u8],
        movement: &Movement<'_>,
    ) -> Result<Option<Meaning>, Unreachable> {
        let landed = self.node.landed(signature, self.look.counts).await?;
        Ok(landed.map(|landed| judge(message, movement, &landed)))
    }

    /// Whether the same was seen long enough ago. Since the payer signed before we first looked, a node that is fresh and still
    /// does not know the blockhash has forgotten it.
    fn doubted_long(&self, message: &[u8]) -> bool {
        let now = Instant::now();
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let digest: [u8; 32] = Sha256::digest(message).into();
        if let Some(since) = doubted.get(&digest) {
            return now.duration_since(*since) >= self.look.doubt;
        }
        if doubted.len() >= AWAITED {
            // Those asked for again will be kept again.
            let old = self.look.doubt.saturating_mul(10);
            doubted.retain(|_, since| now.duration_since(*since) < old);
        }
        if doubted.len() < AWAITED {
            doubted.insert(digest, now);
        }
        self.look.doubt.is_zero()
    }
}

#[async_trait]
impl Evidence for SolanaEvidence {
    async fn standing(&self) -> Result<(), String> {
        let words = |Unreachable { why }| why.to_owned();
        self.here().await.map_err(words)?;
        let newest = self.node.time(Commitment::Confirmed).await.map_err(words)?;
        keeps_up(newest, UnixSeconds::now(), self.look.stale_seconds)
    }

    async fn shows(&self, transaction: &str, signed: &Signed, movement: &Movement<'_>) -> Trace {
        let Signed::Solana(bytes) = signed else { return Trace::Unknown };
        let Some(message) = message(bytes) else { return Trace::Unknown };
        if self.here().await.is_err() {
            return Trace::Unknown;
        }
        match self.meaning(transaction, message, movement).await {
            Ok(Some(Meaning::Moved)) => Trace::Moved { transaction: transaction.to_owned() },
            Ok(Some(Meaning::Otherwise | Meaning::Stranger)) => Trace::Gone,
            Ok(None) | Err(_) => Trace::Unknown,
        }
    }

    async fn trace(&self, signed: &Signed, movement: &Movement<'_>) -> Trace {
        let Signed::Solana(bytes) = signed else { return Trace::Unknown };
        let Some(sought) = sought(bytes) else { return Trace::Unknown };
        self.seek(&sought, movement).await.unwrap_or_else(|Unreachable { why }| {
            tracing::warn!(why, "what became of a payment cannot be seen");
            Trace::Unknown
        })
    }
}

#[cfg(test)]
mod tests;
