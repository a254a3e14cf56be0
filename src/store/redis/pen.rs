//! One write, from the swap to the last line. What was begun is finished even when whoever asked for it went away.

use super::doubt::{Doubts, Lines};
use super::record::{Put, Streams, Version};
use super::{
    ATTEMPTS, CHANGES, DUE_CLAIMS, OPEN_CHANNELS, OPEN_CLAIMS, TALLY_SECONDS, channel_key, claim_key, json, payer_key,
    read_channel, read_claim, tally_key, total_of,
};
use crate::channel::Channel;
use crate::claim::{Claim, Standing};
use crate::journal::Entry;
use crate::money::Usd;
use crate::store::embedded::Embedded;
use crate::store::{OVER_SECONDS, Store as _, StoreError, Swap, Write};
use std::sync::Arc;

/// Writes records and their lines.
#[derive(Clone)]
pub(super) struct Pen {
    pub streams: Arc<Streams>,
    pub journal: Arc<Embedded>,
    pub doubts: Arc<Doubts>,
}

/// What came of putting a version.
pub(super) enum Came {
    /// It was made, and its lines are to be written. With the record, when another gate has gone on from it.
    Made(Option<Version>),
    NotMade(Option<Version>),
}

impl Pen {
    /// Whose it is.
    pub fn gate(&self) -> &str {
        self.journal.gate()
    }

    /// See [`crate::store::Store::commit`].
    pub async fn commit(self, write: Write) -> Result<Swap, StoreError> {
        // What cannot be counted is refused before anything is written.
        for (name, day, amount) in &write.tally {
            let mut more = write.tally.iter().filter(|(n, d, _)| (n, d) == (name, day));
            let before = total_of(&self.streams, name, *day).await?;
            let sum = more.try_fold(before, |sum, (_, _, amount)| sum.plus(*amount));
            if sum.is_none() {
                return Err(StoreError(format!("the total {name} with {amount} more is larger than can be counted")));
            }
        }
        let Write { claim, channel, journal, tally, .. } = write;
        let swap = match (claim, channel) {
            (Some(_), Some(_)) => {
                return Err(StoreError("one write has a claim or a channel, never both".to_owned()));
            }
            (Some(claim), None) => self.put_claim(&claim, journal).await?,
            (None, Some(channel)) => self.put_channel(&channel, journal).await?,
            (None, None) => {
                // What these lines say may be the last word on a change that is in doubt.
                self.doubts.settle_all().await?;
                Lines::new(0, journal).write(&self.streams, &self.journal).await?;
                Swap::Done
            }
        };
        if swap == Swap::Done {
            for (name, day, amount) in &tally {
                self.add_to(name, *day, *amount).await?;
            }
        }
        Ok(swap)
    }

    async fn put_claim(&self, claim: &Claim, journal: Vec<Entry>) -> Result<Swap, StoreError> {
        let key = claim_key(&claim.key.0);
        // One that has ended may begin again.
        let begins = matches!(claim.standing, Standing::Claimed { .. } | Standing::Promised { .. });
        if begins {
            self.streams.add(OPEN_CLAIMS, &claim.key.0).await?;
        }
        let mut lines = Lines::new(claim.revision, journal);
        let overtaken = match self.put(&key, claim.revision, &json(claim)?, &mut lines, &[], |_| false).await? {
            Came::Made(overtaken) => overtaken,
            Came::NotMade(top) => {
                let top = top.map(|top| read_claim(&claim.key.0, &top.text)).transpose()?;
                return Ok(Swap::Lost(Box::new(top)));
            }
        };
        self.write(&key, lines).await?;
        if let Some(top) = overtaken {
            return Ok(Swap::Lost(Box::new(Some(read_claim(&claim.key.0, &top.text)?))));
        }
        self.streams.rank(DUE_CLAIMS, &claim.key.0, claim.keep_until()).await?;
        // One that had come to an end and is claimed anew is put back into the list by the one of both gates that is later.
        if begins && claim.revision > 1 {
            self.streams.add(OPEN_CLAIMS, &claim.key.0).await?;
        }
        if claim.standing.is_end() && self.owes_nothing(&key).await? {
            self.has_ended(claim).await?;
        }
        Ok(Swap::Done)
    }

    /// A claim is looked after no longer.
    pub async fn has_ended(&self, claim: &Claim) -> Result<(), StoreError> {
        self.streams.remove(OPEN_CLAIMS, &claim.key.0).await?;
        if matches!(claim.standing, Standing::Dead | Standing::Untaken)
            && let Some((_, text)) = self.streams.top(&claim_key(&claim.key.0)).await?
            && !read_claim(&claim.key.0, &text)?.standing.is_end()
        {
            self.streams.add(OPEN_CLAIMS, &claim.key.0).await?;
        }
        Ok(())
    }

    /// Whether no other gate may have lines to write of the record at `key`: as long as one may, the record is looked after.
    async fn owes_nothing(&self, key: &str) -> Result<bool, StoreError> {
        let top = self.streams.version(key).await?;
        Ok(top.is_none_or(|top| top.unwritten.iter().all(|lines| lines.gate == self.gate())))
    }

    async fn put_channel(&self, channel: &Channel, journal: Vec<Entry>) -> Result<Swap, StoreError> {
        let id = channel.id.0.as_str();
        let (key, payer) = (channel_key(id), payer_key(&channel.rail, &channel.descriptor.payer));
        if channel.revision == 1 {
            self.streams.add(OPEN_CHANNELS, id).await?;
            self.streams.add(&payer, id).await?;
        }
        let mut lines = Lines::new(channel.revision, journal);
        // Of a change without lines its name in the record tells.
        let remembers = |top: &Version| match (channel.recent.last(), read_channel(id, &top.text)) {
            (Some(name), Ok(record)) => record.remembers(name),
            _ => false,
        };
        let text = json(channel)?;
        if let Came::NotMade(top) = self.put(&key, channel.revision, &text, &mut lines, &[], remembers).await? {
            let top = top.map(|top| read_channel(id, &top.text)).transpose()?;
            return Ok(Swap::Overtaken(Box::new(top)));
        }
        self.write(&key, lines).await?;
        if channel.is_over()
            && let Err(error) = self.is_over(&key, channel).await
        {
            // The record says it; a list that still names it is read with that in mind.
            tracing::warn!(channel = id, %error, "a closed channel is still in a list");
        }
        // Only a hint: whoever waits polls as well.
        self.streams.publish(CHANGES, id).await;
        Ok(Swap::Done)
    }

    /// Nothing comes after it: it is kept for a while for whoever asks.
    async fn is_over(&self, key: &str, channel: &Channel) -> Result<(), StoreError> {
        let id = channel.id.0.as_str();
        self.streams.expires(key, OVER_SECONDS).await?;
        self.streams.remove(&payer_key(&channel.rail, &channel.descriptor.payer), id).await?;
        if self.owes_nothing(key).await? {
            self.streams.remove(OPEN_CHANNELS, id).await?;
        }
        Ok(())
    }

    /// Puts a version, and with it what goes on being unwritten, without what has these `names`: it is among `lines`. `remembers`:
    /// whether a later version shows that a change without lines was made. On `Err` nobody knows, and the lines are kept until
    /// somebody does.
    pub async fn put(
        &self,
        key: &str,
        revision: u64,
        text: &str,
        lines: &mut Lines,
        names: &[String],
        remembers: impl Fn(&Version) -> bool,
    ) -> Result<Came, StoreError> {
        self.doubts.settle(key).await?;
        let own = if lines.is_empty() { None } else { Some(lines.unwritten(&self.journal)?) };
        self.doubts.begin(lines);
        let put = self.streams.put_with(key, revision, text, |below| {
            let mut all = self.doubts.carried(below);
            all.retain(|lines| !names.contains(&lines.name));
            all.extend(own.clone());
            all
        });
        match put.await {
            Ok(Put::Done) => {
                self.doubts.are_over(key).await;
                Ok(Came::Made(None))
            }
            Ok(Put::Top { version: Some(top), in_doubt: true }) if top.owes(&lines.name) || remembers(&top) => {
                Ok(Came::Made(Some(top)))
            }
            Ok(Put::Top { version, .. }) => {
                self.doubts.end(&lines.name);
                Ok(Came::NotMade(version))
            }
            Err(error) => {
                let lines = std::mem::replace(lines, Lines::new(revision, Vec::new()));
                self.doubts.keep(key, lines).await;
                Err(error)
            }
        }
    }

    /// Writes the lines of a change that was made.
    pub async fn write(&self, key: &str, mut lines: Lines) -> Result<(), StoreError> {
        match lines.write(&self.streams, &self.journal).await {
            Ok(()) => {
                self.doubts.end(&lines.name);
                Ok(())
            }
            Err(error) => {
                self.doubts.keep(key, lines).await;
                Err(error)
            }
        }
    }

    async fn add_to(&self, name: &str, day: u64, amount: Usd) -> Result<(), StoreError> {
        let key = tally_key(name, day);
        for _ in 0..ATTEMPTS {
            let (revision, total) = self
                .streams
                .top(&key)
                .await?
                .map_or((0, Usd::ZERO), |(revision, text)| (revision, text.parse().map_or(Usd(u128::MAX), Usd)));
            let next = total
                .plus(amount)
                .ok_or_else(|| StoreError(format!("the total {name} is larger than can be counted")))?;
            if let Put::Done = self.streams.put(&key, revision + 1, &next.0.to_string()).await? {
                return self.streams.expires(&key, TALLY_SECONDS).await;
            }
        }
        Err(StoreError(format!("the total {name} is changed by too many at once")))
    }
}
