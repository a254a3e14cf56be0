//! Looking for ourselves on an EVM chain: did this authorization's money move, whoever handed it in?
//!
//! Every question is asked at one pinned block, and an answer that would let an authorization pass for unused is believed only of
//! a node whose newest block is young: a node that lags shows yesterday's truth.
//!
//! How a used authorization was used stands in the logs of its own time: from when it could be used, or was shown to us, until it ran out.
//! Where that is on the chain is found by the times of a few blocks, whether the chain makes one in two seconds or four in one,
//! so that what happened can be judged hours later as well.

mod abi;
mod judge;

use self::judge::{Due, Meaning};
use super::evidence::{Evidence, Movement, Trace};
use super::signed::{Eip3009, PERMIT2, Permit2, Signed};
use crate::chain::evm::{Evm, Filter, Log};
use crate::chain::{Address, B256, Head, Unreachable, keeps_up};
use crate::clock::UnixSeconds;
use crate::network::{Family, Network};
use crate::secret::Secret;
use alloy::primitives::{Bytes, U256};
use alloy::sol_types::{SolCall as _, SolEvent as _};
use async_trait::async_trait;

/// How far the chain's clock must be past an authorization's end before it is over for good: the newest block may be replaced.
const LAG_SECONDS: u64 = 30;
/// Most blocks whose time is asked for to find where an instant is.
const PROBES: usize = 12;
/// Most transactions that are looked at to find one.
const CANDIDATES: usize = 8;

/// How to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Blocks that must hold a transaction up, its own included, before it counts. At least 1.
    pub depth: u64,
    /// A node whose newest block is older than this many seconds lags: it is not believed that nothing happened.
    pub stale_seconds: u64,
    /// Blocks searched in one request.
    pub window: u64,
    /// Most such requests, oldest first.
    pub windows: u64,
}

impl Default for Look {
    fn default() -> Self {
        Self { depth: 1, stale_seconds: 60, window: 2_000, windows: 20 }
    }
}

/// One EVM chain. Share it behind an `Arc`; any runtime may use it.
#[derive(Debug)]
pub struct EvmEvidence {
    node: Evm,
    chain_id: u64,
    look: Look,
}

impl EvmEvidence {
    /// Prepares a look at `network` through the node at `rpc` (a URL that may hold a key). Nothing is connected yet. The error
    /// is a sentence that does not repeat the URL.
    pub fn new(rpc: &Secret, network: &Network, look: Look) -> Result<Self, String> {
        let Family::Evm { chain_id } = network.family else { return Err(format!("{network} is no EVM network")) };
        Ok(Self { node: Evm::new(rpc)?, chain_id, look })
    }

    async fn head(&self) -> Result<Head, Unreachable> {
        let head = self.node.head().await?;
        if head.chain_id == self.chain_id { Ok(head) } else { Err(Unreachable { why: "the node is on another chain" }) }
    }

    /// Whether a block counts, seen from the newest one.
    fn deep(&self, block: u64, head: &Head) -> bool {
        head.number.saturating_sub(block).saturating_add(1) >= self.look.depth
    }

    /// A block that is not younger than `time`, or the newest one if that is older: the last such, or one before it, by as many
    /// blocks as one request searches where the chain keeps its pace.
    async fn block_at(&self, time: u64, head: &Head) -> Result<u64, Unreachable> {
        if head.time.0 <= time {
            return Ok(head.number);
        }
        // What is known around the instant, as (number, time); a first guess at the distance, then by the pace that was seen.
        let (mut above, mut below) = ((head.number, head.time.0), None::<(u64, u64)>);
        let mut back = self.look.window;
        for _ in 0..PROBES {
            let guess = match below {
                Some(low) => low.0.saturating_add(pace(low, above, time.saturating_sub(low.1))),
                None => above.0.saturating_sub(back),
            };
            let at = self.node.time(guess).await?.0;
            if at > time {
                if guess == 0 {
                    return Ok(0);
                }
                let margin = self.look.window / 2;
                back = pace((guess, at), above, at.saturating_sub(time)).saturating_add(margin);
                above = (guess, at);
            } else if guess == 0 || pace((guess, at), above, time.saturating_sub(at)) <= self.look.window {
                return Ok(guess);
            } else {
                below = Some((guess, at));
            }
        }
        // Older than need be is as good.
        below.map(|(block, _)| block).ok_or(Unreachable { why: "no block of that time can be found" })
    }

    /// The blocks in which an authorization was used that was good between these instants, if it was.
    async fn span(&self, from: u64, until: u64, head: &Head) -> Result<(u64, u64), Unreachable> {
        let first = self.block_at(from, head).await?;
        let last = self.block_at(until.saturating_add(LAG_SECONDS), head).await?;
        Ok((first, last.saturating_add(self.look.window).min(head.number)))
    }

    /// Logs of a span, oldest first, as far as the operator lets us search.
    async fn search(&self, filter: &Filter, span: (u64, u64), enough: usize) -> Result<Vec<Log>, Unreachable> {
        let mut found = Vec::new();
        let (mut first, last) = span;
        for _ in 0..self.look.windows {
            let to = first.saturating_add(self.look.window.saturating_sub(1)).min(last);
            found.append(&mut self.node.logs(filter, first, to).await?);
            if found.len() >= enough || to == last {
                break;
            }
            first = to.saturating_add(1);
        }
        Ok(found)
    }

    async fn word(&self, to: Address, input: Vec<u8>, block: u64) -> Result<U256, Unreachable> {
        let answer = self.node.view(to, Bytes::from(input), block).await?;
        <[u8; 32]>::try_from(answer.as_ref())
            .map(U256::from_be_bytes)
            .map_err(|_| Unreachable { why: "the contract does not answer as it should" })
    }

    /// What one transaction means, `Unclear` while it is not there or not deep enough.
    async fn meaning(&self, tx: B256, signed: &Signed, due: &Due, head: &Head) -> Result<Meaning, Unreachable> {
        let Some(mined) = self.node.mined(tx).await? else { return Ok(Meaning::Unclear) };
        if !self.deep(mined.block, head) {
            return Ok(Meaning::Unclear);
        }
        Ok(match signed {
            Signed::Eip3009(signed) => judge::eip3009(signed, due, &mined),
            Signed::Permit2(signed) => match self.node.called(tx).await? {
                Some(called) => judge::permit2(signed, due, &mined, &called),
                None => Meaning::Unclear,
            },
            Signed::Solana(_) => Meaning::Unclear,
        })
    }

    async fn trace_eip3009(
        &self,
        signed: &Eip3009,
        whole: &Signed,
        (due, since): (&Due, u64),
    ) -> Result<Trace, Unreachable> {
        let head = self.head().await?;
        let state = abi::authorizationStateCall { authorizer: signed.from, nonce: signed.nonce };
        // A boolean; older tokens count 1 for used, 2 for cancelled.
        if self.word(due.token, state.abi_encode(), head.number).await?.is_zero() {
            return Ok(unused(&head, signed.valid_before, UnixSeconds::now(), self.look.stale_seconds));
        }
        let events = vec![abi::AuthorizationUsed::SIGNATURE_HASH, abi::AuthorizationCanceled::SIGNATURE_HASH];
        let topics = vec![events, vec![signed.from.into_word()], vec![signed.nonce]];
        let filter = Filter { address: due.token, topics };
        let span = self.span(since.max(signed.valid_after), signed.valid_before, &head).await?;
        let Some(log) = self.search(&filter, span, 1).await?.into_iter().next() else { return Ok(Trace::Unknown) };
        if log.topics.first() == Some(&abi::AuthorizationCanceled::SIGNATURE_HASH) {
            return Ok(if self.deep(log.block_number, &head) { Trace::Gone } else { Trace::Unknown });
        }
        let tx = log.transaction_hash;
        Ok(match self.meaning(tx, whole, due, &head).await? {
            Meaning::Moved => Trace::Moved { transaction: tx.to_string() },
            Meaning::Otherwise => Trace::Gone,
            Meaning::Stranger | Meaning::Unclear => Trace::Unknown,
        })
    }

    async fn trace_permit2(
        &self,
        signed: &Permit2,
        whole: &Signed,
        (due, since): (&Due, u64),
    ) -> Result<Trace, Unreachable> {
        let head = self.head().await?;
        if !self.spent(signed, head.number).await? {
            return Ok(unused(&head, signed.deadline, UnixSeconds::now(), self.look.stale_seconds));
        }
        let parties = vec![vec![signed.from.into_word()], vec![due.to.into_word()]];
        let topics = [vec![vec![abi::Transfer::SIGNATURE_HASH]], parties].concat();
        let filter = Filter { address: due.token, topics };
        let span = self.span(since.max(signed.valid_after), signed.deadline, &head).await?;
        let mut found = self.search(&filter, span, usize::MAX).await?;
        if found.len() > CANDIDATES {
            // A payer who is busy pays the same price many times: the block in which the nonce was spent is one of theirs. A node that
            // has no states of that time leaves the first of them to be looked at.
            if let Ok(block) = self.spent_in(signed, span.0, &head).await {
                found.retain(|log| log.block_number == block);
            }
        }
        // The ones of the right amount first; of `upto` another amount may have been taken.
        found.sort_by_key(|log| U256::try_from_be_slice(&log.data) != Some(due.amount));
        let mut looked: Vec<B256> = Vec::new();
        let mut clear = true;
        for log in found {
            let tx = log.transaction_hash;
            if looked.contains(&tx) {
                continue;
            }
            if looked.len() == CANDIDATES {
                return Ok(Trace::Unknown);
            }
            looked.push(tx);
            match self.meaning(tx, whole, due, &head).await? {
                Meaning::Moved => return Ok(Trace::Moved { transaction: tx.to_string() }),
                Meaning::Otherwise => return Ok(Trace::Gone),
                Meaning::Stranger => (),
                Meaning::Unclear => clear = false,
            }
        }
        Ok(if clear && self.invalidated(signed, span, &head).await? { Trace::Gone } else { Trace::Unknown })
    }

    /// Whether the nonce's bit is set in the state after `block`.
    async fn spent(&self, signed: &Permit2, block: u64) -> Result<bool, Unreachable> {
        let call = abi::nonceBitmapCall { owner: signed.from, word: signed.nonce >> 8 };
        Ok(self.word(PERMIT2, call.abi_encode(), block).await?.bit(usize::from(signed.nonce.byte(0))))
    }

    /// The block from which on the nonce's bit is set, which it is in the newest one and, as far as is known, not before `first`. The
    /// node must have the states of that time.
    async fn spent_in(&self, signed: &Permit2, first: u64, head: &Head) -> Result<u64, Unreachable> {
        let (mut low, mut high) = (first, head.number);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.spent(signed, middle).await? {
                true => high = middle,
                false => low = middle.saturating_add(1),
            }
        }
        Ok(high)
    }

    /// Whether the payer took the nonce back while it was unused: it was free in the block before. (In the very block, no transfer to
    /// the payee was this authorization's: the caller has looked at them all.)
    async fn invalidated(&self, signed: &Permit2, span: (u64, u64), head: &Head) -> Result<bool, Unreachable> {
        let topics = vec![vec![abi::UnorderedNonceInvalidation::SIGNATURE_HASH], vec![signed.from.into_word()]];
        let found = self.search(&Filter { address: PERMIT2, topics }, span, usize::MAX).await?;
        let word = signed.nonce >> 8;
        let took = |log: &&Log| {
            let read = log
                .data
                .split_at_checked(32)
                .and_then(|(w, m)| Some((U256::try_from_be_slice(w)?, U256::try_from_be_slice(m)?)));
            read.is_some_and(|(w, mask)| w == word && mask.bit(usize::from(signed.nonce.byte(0))))
        };
        // The oldest one did it.
        match found.iter().find(took) {
            Some(log) if self.deep(log.block_number, head) => {
                Ok(!self.spent(signed, log.block_number.saturating_sub(1)).await?)
            }
            _ => Ok(false),
        }
    }
}

/// What "not used" means at this block: over for good once the chain's own clock says so, and else only as fresh as the node.
fn unused(head: &Head, until: u64, now: UnixSeconds, stale_seconds: u64) -> Trace {
    if head.time.0 > until.saturating_add(LAG_SECONDS) {
        Trace::Gone
    } else if head.time.plus(stale_seconds) < now {
        Trace::Unknown
    } else {
        Trace::Unused
    }
}

/// Blocks in so many seconds, at the pace between two blocks.
fn pace((low, then): (u64, u64), (high, now): (u64, u64), seconds: u64) -> u64 {
    let blocks = u128::from(high.saturating_sub(low)) * u128::from(seconds);
    u64::try_from(blocks / u128::from(now.saturating_sub(then).max(1))).unwrap_or(u64::MAX)
}

/// `None` for a movement that is not one of this kind of chain, or of nothing.
fn due(movement: &Movement<'_>) -> Option<Due> {
    let amount = U256::from(movement.amount.0);
    let (token, to) = (movement.token.parse().ok()?, movement.to.parse().ok()?);
    (!amount.is_zero()).then_some(Due { token, to, amount })
}

#[async_trait]
impl Evidence for EvmEvidence {
    async fn standing(&self) -> Result<(), String> {
        let head = self.head().await.map_err(|Unreachable { why }| why.to_owned())?;
        keeps_up(head.time, UnixSeconds::now(), self.look.stale_seconds)
    }

    async fn shows(&self, transaction: &str, signed: &Signed, movement: &Movement<'_>) -> Trace {
        let (Some(due), Ok(tx)) = (due(movement), transaction.parse::<B256>()) else { return Trace::Unknown };
        let Ok(head) = self.head().await else { return Trace::Unknown };
        match self.meaning(tx, signed, &due, &head).await {
            Ok(Meaning::Moved) => Trace::Moved { transaction: tx.to_string() },
            Ok(Meaning::Otherwise | Meaning::Stranger) => Trace::Gone,
            Ok(Meaning::Unclear) | Err(_) => Trace::Unknown,
        }
    }

    async fn trace(&self, signed: &Signed, movement: &Movement<'_>) -> Trace {
        let Some(due) = due(movement) else { return Trace::Unknown };
        let trace = match signed {
            Signed::Eip3009(it) => self.trace_eip3009(it, signed, (&due, movement.since.0)).await,
            Signed::Permit2(it) => self.trace_permit2(it, signed, (&due, movement.since.0)).await,
            Signed::Solana(_) => Ok(Trace::Unknown),
        };
        trace.unwrap_or_else(|Unreachable { why }| {
            tracing::warn!(why, "what became of a payment cannot be seen");
            Trace::Unknown
        })
    }
}

#[cfg(test)]
mod tests;
