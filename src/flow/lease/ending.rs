//! How a lease ends: what was used is spent, once, however often that must be tried.
//!
//! Where the words have left it is tried until it is done. Where nothing has left they wait for it, and when it cannot be done in time
//! they stay here and cost nothing.

use super::super::channels::{Step, Trouble, orphan};
use super::super::{Stop, Toll};
use super::{Lease, trouble_stop};
use crate::channel::{Channel, ChannelId, Effect, Op};
use crate::clock::UnixSeconds;
use crate::journal::{Entry, Receipt};
use crate::money::Atoms;
use crate::refusal::Moved;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the answer to a call waits for a store that does not take what it cost.
const HESITATES: Duration = Duration::from_secs(2);

impl Lease {
    /// Ends it: `charge`, at most what is leased, is spent, and the receipt is in the books with it. On `Err` it is not known to be
    /// durable, and will be tried until it is: its words have left. Begun again after it was broken off, it goes on with what it began.
    /// On `Err` too where another gate has ended it: the receipt in the books is that gate's, over what that gate knew.
    pub async fn spend(&mut self, charge: Atoms, receipt: Option<&Receipt>) -> Result<(), Stop> {
        match self.finish(charge, receipt).await? {
            Ending::Ours => Ok(()),
            Ending::Anothers => Err(unknown(&Trouble::Contended)),
        }
    }

    /// Ends it now, or sees to it that it is ended.
    async fn finish(&mut self, charge: Atoms, receipt: Option<&Receipt>) -> Result<Ending, Stop> {
        self.begin_to_end(charge, receipt).await;
        let trouble = match self.end().await {
            Ok(ending) => return Ok(ending),
            Err(trouble) => trouble,
        };
        self.open = false;
        if let Some(step) = self.last.clone() {
            insist(Arc::clone(&self.toll), self.channel.id.clone(), step);
        }
        Err(unknown(&trouble))
    }

    /// Ends it before a byte has left, which may leave on `Ok` only. A store that does not take it is given a moment; after that
    /// nothing is delivered, and the lease ends without a charge.
    ///
    /// One case is left in which the payer is charged for nothing: the spend was written, its answer was lost, and for as long as we
    /// waited nobody could say so. What is spent never shrinks, so the record stands, and the books say that it was not delivered.
    ///
    /// Nor does it leave where the lease is gone, because this gate was taken for dead, or where the channel was paid out meanwhile:
    /// nobody would pay for it.
    pub async fn sell(&mut self, charge: Atoms, receipt: &Receipt) -> Result<(), Stop> {
        if let Some(over) = self.unpayable() {
            tracing::error!(channel = %self.channel.id, %charge, "the channel was closed before the answer came: it is not delivered");
            self.finish(Atoms(0), None).await?;
            return Err(Stop { claimed: true, ..over.into() });
        }
        self.begin_to_end(charge, Some(receipt)).await;
        let mut until = None;
        let mut wait = Duration::from_millis(20);
        loop {
            let trouble = match self.end().await {
                Ok(Ending::Ours) => return Ok(()),
                Ok(Ending::Anothers) => return Err(unknown(&Trouble::Contended)),
                Err(trouble) => trouble,
            };
            let until = *until.get_or_insert_with(|| Instant::now() + HESITATES);
            if trouble == Trouble::Unknown || Instant::now() + wait >= until {
                self.open = false;
                let nothing = Step::from(Op::Spend { lease: self.id.clone(), charge: Atoms(0) });
                let sale = self.last.replace(nothing.clone()).map(|sale| sale.name);
                withdraw(Arc::clone(&self.toll), self.channel.id.clone(), nothing, sale, receipt.clone());
                return Err(unknown(&trouble));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(250));
        }
    }

    /// Says what ends it, once.
    async fn begin_to_end(&mut self, charge: Atoms, receipt: Option<&Receipt>) {
        self.extended().await;
        self.live.stop_asking(&self.id);
        let (lease, charge) = (self.id.clone(), charge.min(self.held.cap));
        let begin = || {
            let journal = receipt.map(|r| Entry::Receipt(Box::new(r.clone()))).into_iter().collect();
            Step::new(Op::Spend { lease, charge }, journal)
        };
        self.last.get_or_insert_with(begin);
    }

    /// Tries that.
    async fn end(&mut self) -> Result<Ending, Trouble> {
        let Some(step) = &self.last else { return Ok(Ending::Ours) };
        let (channel, ending) = made(&self.toll, &self.channel.id, step).await?;
        self.channel = channel;
        self.open = false;
        self.is_anothers = ending == Ending::Anothers;
        self.toll.channels.let_go(&self.id);
        Ok(ending)
    }

    /// Nothing was delivered: nothing is charged.
    pub async fn release(mut self) -> Moved {
        // Nor is it by an end that was broken off before it was made.
        self.last = None;
        match self.finish(Atoms(0), None).await {
            // Whoever ended it before a byte had left charged nothing either.
            Ok(_) => Moved::No,
            Err(stop) => stop.moved,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        self.live.stop_asking(&self.id);
        let (toll, channel) = (Arc::clone(&self.toll), Arc::clone(&self.channel));
        let charge = if self.delivered.most > 0 { self.used() } else { Atoms(0) };
        let journal = (charge > Atoms(0))
            .then(|| Entry::Receipt(Box::new(orphan(&channel, &self.held, charge, UnixSeconds::now()))))
            .into_iter()
            .collect();
        let spend = Op::Spend { lease: std::mem::take(&mut self.id), charge };
        // What was broken off on its way may be made by now. Of a call whose answer is still here it is not insisted on.
        let last = self.last.take().filter(|_| self.delivered.most > 0);
        let step = last.unwrap_or_else(|| Step::new(spend, journal));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { insist(toll, channel.id.clone(), step) });
        }
    }
}

/// Who ended a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Ours,
    /// Somebody took this gate for dead and ended its leases: what they charged stands.
    Anothers,
}

/// Makes the change that ends a lease, if it was not made before. The record after it; its receipt is durable.
async fn made(toll: &Toll, channel: &ChannelId, step: &Step) -> Result<(Arc<Channel>, Ending), Trouble> {
    let (record, effect) = toll.channels.one(channel, step.clone()).await?;
    match effect {
        // The try whose answer was lost may have died between the record and the journal.
        Ok(Effect::Nothing) => toll.channels.note(step.journal.clone()).await?,
        Ok(_) => {}
        Err(_) => {
            tracing::error!(%channel, op = ?step.op, "the lease was ended by somebody else");
            return Ok((record, Ending::Anothers));
        }
    }
    Ok((record, Ending::Ours))
}

/// Ends a lease although the store does not answer now: again and again, until it says that it is done, or that it was done.
fn insist(toll: Arc<Toll>, channel: ChannelId, step: Step) {
    tokio::spawn(async move {
        until_told(|| made(&toll, &channel, &step)).await;
        if let Op::Spend { lease, .. } = &step.op {
            toll.channels.let_go(lease);
        }
    });
}

/// Ends a lease without a charge (`nothing`), because its answer was not delivered. Where the change `sale` was made after all the
/// books say that it was not.
fn withdraw(toll: Arc<Toll>, channel: ChannelId, nothing: Step, sale: Option<String>, receipt: Receipt) {
    tokio::spawn(async move {
        let seen = until_told(|| toll.channels.one(&channel, nothing.clone())).await;
        if let Op::Spend { lease, .. } = &nothing.op {
            toll.channels.let_go(lease);
        }
        if let (Some((record, _)), Some(sale)) = (seen, sale)
            && record.remembers(&sale)
        {
            tracing::error!(%channel, receipt = %receipt.id, charged = %receipt.charged, "an answer was charged and not delivered");
            let lines = Entry::doubted(receipt, UnixSeconds::now());
            until_told(|| toll.channels.note(lines.to_vec())).await;
        }
    });
}

/// Tries until the store answers. `None`: it knows no such channel.
async fn until_told<T, F: Future<Output = Result<T, Trouble>>>(mut attempt: impl FnMut() -> F) -> Option<T> {
    let mut wait = Duration::from_millis(50);
    loop {
        match attempt().await {
            Ok(told) => return Some(told),
            Err(Trouble::Unknown) => return None,
            Err(_) => {}
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

/// What a client is told when nobody knows how his lease ends. His challenge has bought it: it buys nothing again.
fn unknown(trouble: &Trouble) -> Stop {
    Stop { moved: Moved::Undelivered, claimed: true, ..trouble_stop(trouble) }
}
