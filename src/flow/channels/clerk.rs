//! The task of one channel: the only one that changes its record, as long as it is in use here.
//!
//! A change may be left to be written with the next one ([`Manner::later`]): the lease of a reply that comes whole. Its bytes leave only
//! after what it used is spent, durably, and that write holds the voucher and the lease too: one write for a call instead of two.
//! Until then this task is the only one that knows of the lease, so it is done only where no other gate can change the record, and
//! whatever else is asked of the channel is answered after all of it was written. A gate that dies in between has delivered nothing
//! and charged nothing, as with a lease that nobody has used.

use super::{Applied, Desk, Live, Step, Trouble};
use crate::channel::{Channel, ChannelId, Denied, Effect, Lease, Op};
use crate::clock::UnixSeconds;
use crate::ids;
use crate::journal::{Entry, Receipt};
use crate::money::{Atoms, Usd};
use crate::store::{Store, Swap, Write};
use crate::usage::UsageSource;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Changes in one swap. Fewer than a record remembers by name.
const BATCH: usize = 16;
/// How often a swap is tried again when other gates are faster.
const ATTEMPTS: u32 = 5;
/// A channel that nobody uses for so long is forgotten here.
const IDLE: Duration = Duration::from_secs(30);

/// How a job is done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manner {
    /// A lease may be written with the next change.
    pub later: bool,
    /// Read the record from the store, whatever is remembered.
    pub again: bool,
}

/// One caller's steps.
pub(super) struct Job {
    pub steps: Vec<Step>,
    pub manner: Manner,
    pub reply: oneshot::Sender<Result<Applied, Trouble>>,
}

/// The task of one channel.
pub(super) struct Clerk {
    store: Arc<dyn Store>,
    id: ChannelId,
    live: Arc<Live>,
    /// As last written or read by this task, with what is owed.
    record: Option<Arc<Channel>>,
    owed: Option<Owed>,
    /// It has done a job.
    has_begun: bool,
}

/// What the record of a [`Clerk`] is ahead of the store.
struct Owed {
    /// Of the record in the store.
    revision: u64,
    /// Lines that go with the difference.
    journal: Vec<Entry>,
}

impl Clerk {
    pub(super) fn new(store: Arc<dyn Store>, id: ChannelId, live: Arc<Live>) -> Self {
        Self { store, id, live, record: None, owed: None, has_begun: false }
    }

    /// Until nobody uses the channel any more.
    pub(super) async fn work(mut self, mut jobs: mpsc::Receiver<Job>, desks: Arc<Mutex<HashMap<ChannelId, Desk>>>) {
        loop {
            match tokio::time::timeout(IDLE, jobs.recv()).await {
                Ok(Some(job)) => self.batch(job, &mut jobs).await,
                Ok(None) => return,
                Err(_) => {
                    let mut desks = desks.lock().unwrap_or_else(PoisonError::into_inner);
                    // One is ours and one the desk's: nobody else looks at this channel.
                    if Arc::strong_count(&self.live) == 2 && jobs.is_empty() && self.owed.is_none() {
                        desks.remove(&self.id);
                        jobs.close();
                    }
                }
            }
        }
    }

    async fn batch(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) {
        let mut batch = vec![first];
        let mut steps = batch.iter().map(|job| job.steps.len()).sum::<usize>();
        while steps < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            steps += job.steps.len();
            batch.push(job);
        }
        // Somebody may have read it a moment ago, and where no other gate can change it nobody has since.
        if !std::mem::replace(&mut self.has_begun, true) && self.store.changes().is_none() {
            self.record = self.live.channel();
        }
        // Where others can change the record, nothing is owed.
        if self.owed.is_none() && batch.iter().any(|job| job.manner.again) {
            self.record = None;
        }
        let later = batch.iter().all(|job| job.manner.later);
        let counts: Vec<usize> = batch.iter().map(|job| job.steps.len()).collect();
        let mut made = Vec::with_capacity(steps);
        for job in &mut batch {
            made.append(&mut job.steps);
        }
        match self.swap(&made, later).await {
            Ok((channel, effects)) => {
                self.record = Some(Arc::clone(&channel));
                self.live.seen.send_replace(Some(Arc::clone(&channel)));
                let mut effects = effects.into_iter();
                for (job, count) in batch.into_iter().zip(counts) {
                    let effects = effects.by_ref().take(count).collect();
                    // A caller that went away has no use for the answer.
                    let _ = job.reply.send(Ok(Applied { channel: Arc::clone(&channel), effects }));
                }
            }
            Err(trouble) => {
                // What is owed is nowhere else: it is kept, and tried with the next change.
                if self.owed.is_none() {
                    self.record = None;
                }
                for job in batch {
                    let _ = job.reply.send(Err(trouble.clone()));
                }
            }
        }
    }

    /// The record as the store has it.
    async fn read(&self) -> Result<Arc<Channel>, Trouble> {
        let found = self.store.channel(&self.id).await.map_err(Trouble::Store)?;
        found.map(Arc::new).ok_or(Trouble::Unknown)
    }

    /// Makes the steps. With `later`, leases are not written yet.
    async fn swap(
        &mut self,
        steps: &[Step],
        later: bool,
    ) -> Result<(Arc<Channel>, Vec<Result<Effect, Denied>>), Trouble> {
        let shared = self.store.changes().is_some();
        for attempt in 0..ATTEMPTS {
            let (mut base, was_known) = match &self.record {
                Some(record) => (Arc::clone(record), attempt == 0),
                None => (self.read().await?, false),
            };
            let now = UnixSeconds::now();
            let mut tried = Tried::of(&base, steps, now);
            // What changes nothing is compared with nothing: that the record is an old one would never be noticed. Another gate may have
            // made room for what this one denies.
            if shared && was_known && !steps.is_empty() && tried.changed.is_none() {
                base = self.read().await?;
                tried = Tried::of(&base, steps, now);
            }
            let Tried { changed, effects, lines } = tried;
            let mut journal = self.owed.as_ref().map_or_else(Vec::new, |owed| owed.journal.clone());
            journal.extend(lines);
            let newest = base.recent.last().cloned();
            let written = self.owed.as_ref().map_or(base.revision, |owed| owed.revision);
            let may_wait = later && effects.iter().all(|effect| matches!(effect, Ok(Effect::Leased) | Err(_)));
            let next = match changed {
                // Several changes are one swap.
                Some(next) => Arc::new(Channel { revision: written.saturating_add(1), ..next }),
                None if self.owed.is_none() || may_wait => return Ok((base, effects)),
                None => base,
            };
            if may_wait {
                self.owed = Some(Owed { revision: written, journal });
                return Ok((next, effects));
            }
            let write = Write { channel: Some(Arc::clone(&next)), journal, ..Write::default() };
            match self.store.commit(write).await.map_err(Trouble::Store)? {
                Swap::Done => {
                    self.owed = None;
                    return Ok((next, effects));
                }
                Swap::Overtaken(other) => {
                    let Some(other) = *other else { return Err(Trouble::Unknown) };
                    if self.owed.take().is_some() {
                        // What was owed is in what was written: that was this task, and it did not hear so.
                        if newest.is_some_and(|name| other.remembers(&name)) {
                            tracing::info!(channel = %self.id, "a write whose answer was lost had been made");
                        } else {
                            tracing::error!(channel = %self.id, "somebody else wrote a record that is this gate's alone");
                        }
                    }
                    self.record = Some(Arc::new(other));
                }
                Swap::Lost(_) => return Err(Trouble::Contended),
            }
            // Not all of those who lost must come back in the same instant.
            let jitter = u64::from(ids::nonce().as_bytes().last().copied().unwrap_or(0) % 8);
            tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 2 + jitter)).await;
        }
        Err(Trouble::Contended)
    }
}

/// What some steps would do to a record.
struct Tried {
    /// The record after them; `None`: they change nothing of it.
    changed: Option<Channel>,
    /// One for each step.
    effects: Vec<Result<Effect, Denied>>,
    /// For the journal.
    lines: Vec<Entry>,
}

impl Tried {
    fn of(base: &Channel, steps: &[Step], now: UnixSeconds) -> Self {
        let mut changed: Option<Channel> = None;
        let (mut effects, mut journal) = (Vec::with_capacity(steps.len()), Vec::new());
        for step in steps {
            let before = changed.as_ref().unwrap_or(base);
            match before.apply(&step.name, step.op.clone(), now) {
                Ok((after, effect)) => {
                    if after.revision != before.revision {
                        lines(before, &after, step, &effect, now, &mut journal);
                        changed = Some(after);
                    }
                    effects.push(Ok(effect));
                }
                Err(denied) => effects.push(Err(denied)),
            }
        }
        Self { changed, effects, lines: journal }
    }
}

/// The lines that a change leaves in the journal.
fn lines(before: &Channel, after: &Channel, step: &Step, effect: &Effect, now: UnixSeconds, journal: &mut Vec<Entry>) {
    let channel = || after.id.clone();
    if let Some(voucher) = after.highest().filter(|v| before.highest() != Some(*v)) {
        let (amount, signature) = (voucher.amount, voucher.signature.clone());
        journal.push(Entry::Voucher { channel: channel(), amount, signature, at: now });
    }
    match &step.op {
        Op::Intend { intent } => {
            journal.push(Entry::Intent { channel: channel(), act: intent.act.clone(), tx: intent.tx.clone(), at: now });
        }
        Op::Landed { tx, .. } => {
            journal.push(Entry::Outcome { channel: channel(), tx: tx.clone(), landed: true, at: now });
        }
        Op::Dropped { tx } => {
            journal.push(Entry::Outcome { channel: channel(), tx: tx.clone(), landed: false, at: now });
        }
        _ => {}
    }
    journal.extend(step.journal.iter().cloned());
    if let Effect::Orphaned(ended) = effect {
        let sold = ended.iter().filter(|(_, _, charge)| *charge > Atoms(0));
        journal.extend(sold.map(|(_, lease, charge)| Entry::Receipt(Box::new(orphan(after, lease, *charge, now)))));
    }
    if after.is_over() && !before.is_over() {
        let (spent, settled) = (after.spent(), after.view.settled);
        journal.push(Entry::Closed { channel: channel(), spent, settled, at: now });
    }
}

/// The receipt of a lease whose gate died with it: what was reported before, and no more is known.
pub(in crate::flow) fn orphan(channel: &Channel, lease: &Lease, charge: Atoms, now: UnixSeconds) -> Receipt {
    let bought = lease.purchase.clone();
    Receipt {
        id: bought.receipt,
        request: bought.request,
        at: now,
        route: bought.route,
        tier: bought.tier,
        model: bought.model,
        pool: bought.pool,
        server: None,
        rail: channel.rail.clone(),
        generation: bought.generation,
        charged: charge,
        decimals: channel.decimals,
        charged_usd: charge.to_usd(channel.decimals).unwrap_or(Usd::ZERO),
        actual_usd: None,
        usage: None,
        usage_source: Some(UsageSource::Counted),
        reference: channel.id.0.clone(),
        transaction: None,
        settlement: None,
        payer: Some(channel.descriptor.payer.clone()),
        attempts: 1,
        complete: false,
    }
}
