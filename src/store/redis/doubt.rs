//! Lines of changes of which this gate did not hear whether they were made.
//!
//! A swap whose answer is lost may have been taken, and another gate may have gone on from it before this one could look. The
//! record remembers the names of its newest changes, so the next look tells: a name that is there was made, and its lines belong
//! in this gate's journal, once, before any newer line about the channel. A gate that dies first told nobody of the change.

use super::record::Streams;
use super::{channel_key, read_channel, set_down};
use crate::channel::{Channel, ChannelId};
use crate::journal::Entry;
use crate::store::StoreError;
use crate::store::embedded::Embedded;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a channel that is not there is looked for: its opening may still be on its way to Redis.
const ABSENT: Duration = Duration::from_secs(30);
/// A record names every change of this many newest swaps, however many changes were in each.
const REMEMBERED: u64 = 2;

/// One swap and what it is to leave in the journal.
struct Doubt {
    /// Of its last change.
    name: String,
    revision: u64,
    journal: Vec<Entry>,
    since: Instant,
}

/// What a record says of a swap.
enum Outcome {
    Made,
    NotMade,
    /// It may still come.
    Open,
    /// Too much happened since.
    Forgotten,
}

impl Doubt {
    fn outcome(&self, record: Option<&Channel>) -> Outcome {
        match record {
            None if self.since.elapsed() < ABSENT => Outcome::Open,
            None => Outcome::NotMade,
            Some(record) if record.remembers(&self.name) => Outcome::Made,
            Some(record) if record.revision < self.revision => Outcome::Open,
            Some(record) if record.revision < self.revision.saturating_add(REMEMBERED) => Outcome::NotMade,
            Some(_) => Outcome::Forgotten,
        }
    }
}

/// All of this gate's.
pub(super) struct Doubts {
    streams: Arc<Streams>,
    journal: Arc<Embedded>,
    open: Mutex<BTreeMap<ChannelId, Vec<Doubt>>>,
    /// So that nobody waits for the lock as long as there is nothing to know.
    count: AtomicUsize,
}

impl Doubts {
    pub fn new(streams: Arc<Streams>, journal: Arc<Embedded>) -> Self {
        Self { streams, journal, open: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// Keeps what a swap to `channel` was to leave in the journal.
    pub async fn keep(&self, channel: &Channel, journal: Vec<Entry>) {
        let Some(name) = channel.recent.last().filter(|_| !journal.is_empty()) else { return };
        let doubt = Doubt { name: name.to_string(), revision: channel.revision, journal, since: Instant::now() };
        self.open.lock().await.entry(channel.id.clone()).or_default().push(doubt);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Writes down what is known by now about a channel. On `Err` nothing newer may be written about it.
    pub async fn settle(&self, id: &ChannelId) -> Result<(), StoreError> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let mut open = self.open.lock().await;
        let Some(doubts) = open.get_mut(id) else { return Ok(()) };
        let top = self.streams.top(&channel_key(&id.0)).await?;
        let record = top.map(|(_, text)| read_channel(&id.0, &text)).transpose()?;
        while let Some(doubt) = doubts.first() {
            match doubt.outcome(record.as_ref()) {
                Outcome::Open => return Ok(()),
                Outcome::NotMade => {}
                Outcome::Made => set_down(&self.streams, &self.journal, doubt.journal.clone()).await?,
                Outcome::Forgotten => tracing::error!(
                    channel = %id,
                    revision = doubt.revision,
                    "nobody knows any more whether a change was made: its lines are not in the journal"
                ),
            }
            doubts.remove(0);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        open.remove(id);
        Ok(())
    }

    /// A swap to the channel was taken. What was still open was made on the same record and has lost to it, or is this very change, made
    /// again under its name: its lines go with this swap.
    pub async fn are_over(&self, id: &ChannelId) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(gone) = self.open.lock().await.remove(id) {
            self.count.fetch_sub(gone.len(), Ordering::SeqCst);
        }
    }

    /// Settles all of them, now and then: a channel may never be used again. Ends with its store, which alone may hold the
    /// journal's file open.
    pub async fn look(doubts: Weak<Self>, pause: Duration) {
        loop {
            tokio::time::sleep(pause).await;
            let Some(doubts) = doubts.upgrade() else { return };
            if doubts.count.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let ids: Vec<ChannelId> = doubts.open.lock().await.keys().cloned().collect();
            for id in ids {
                if let Err(error) = doubts.settle(&id).await {
                    tracing::debug!(channel = %id, %error, "not known yet");
                }
            }
        }
    }
}
