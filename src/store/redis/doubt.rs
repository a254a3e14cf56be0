//! Lines that this gate owes to its journal and has not written yet.
//!
//! A change is swapped first and journalled second. Where the answer to the swap is lost nobody knows whether it was made, and another
//! gate may have gone on from it before this one could look; where the journal or Redis fails after it, it was made and is not
//! written. The record carries the lines until they are written, so the next look tells: lines that are there belong in this gate's
//! journal, once; those of a change that lost are in no version.

use super::record::{Streams, Unwritten, Version};
use super::{RECEIPT_SECONDS, json, receipt_key};
use crate::ids;
use crate::journal::Entry;
use crate::store::embedded::Embedded;
use crate::store::{Store as _, StoreError, Write};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Quick, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a record that is not there is looked for: its beginning may still be on its way to Redis.
const ABSENT: Duration = Duration::from_secs(30);

/// What one change is to leave in this gate's journal.
pub(super) struct Lines {
    /// Of the change.
    pub name: String,
    /// Which it makes.
    revision: u64,
    entries: Vec<Entry>,
    in_journal: bool,
    since: Instant,
}

/// What a record says of a change.
enum Outcome {
    Made,
    NotMade,
    /// It may still come.
    Open,
}

impl Lines {
    pub fn new(revision: u64, entries: Vec<Entry>) -> Self {
        Self { name: ids::change(), revision, entries, in_journal: false, since: Instant::now() }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// As the record carries them.
    pub fn unwritten(&self, journal: &Embedded) -> Result<Unwritten, StoreError> {
        let line =
            |entry| serde_json::to_value(entry).map_err(|e| StoreError(format!("a line cannot be written: {e}")));
        Ok(Unwritten {
            gate: journal.gate().to_owned(),
            name: self.name.clone(),
            after: journal.length()?,
            lines: self.entries.iter().map(line).collect::<Result<_, _>>()?,
        })
    }

    /// Writes them into the journal, and then puts the receipts among them where every gate finds them: one that is found there is in
    /// a journal. Tried again it goes on where it failed.
    pub async fn write(&mut self, streams: &Streams, journal: &Embedded) -> Result<(), StoreError> {
        if !self.in_journal && !self.entries.is_empty() {
            journal.commit(Write { journal: self.entries.clone(), ..Write::default() }).await?;
        }
        self.in_journal = true;
        for entry in &self.entries {
            if let Entry::Receipt(receipt) = entry {
                streams.keep(&receipt_key(&receipt.id), &json(receipt)?, RECEIPT_SECONDS).await?;
            }
        }
        Ok(())
    }

    fn outcome(&self, top: Option<&Version>) -> Outcome {
        match top {
            _ if self.in_journal => Outcome::Made,
            None if self.since.elapsed() < ABSENT => Outcome::Open,
            None => Outcome::NotMade,
            Some(top) if top.owes(&self.name) => Outcome::Made,
            Some(top) if top.revision < self.revision => Outcome::Open,
            // Or another gate took this one for dead, and has written them.
            Some(_) => Outcome::NotMade,
        }
    }
}

/// All of this gate's.
pub(super) struct Doubts {
    streams: Arc<Streams>,
    journal: Arc<Embedded>,
    /// Names of changes whose lines are not in the journal, from before they are made.
    pending: Quick<HashSet<String>>,
    /// By the record's key, oldest first.
    open: Mutex<BTreeMap<String, Vec<Lines>>>,
    /// So that nobody waits for the lock as long as there is nothing to know.
    count: AtomicUsize,
}

impl Doubts {
    pub fn new(streams: Arc<Streams>, journal: Arc<Embedded>) -> Self {
        Self { streams, journal, pending: Quick::default(), open: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// A change with these lines is about to be made.
    pub fn begin(&self, lines: &Lines) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(lines.name.clone());
    }

    /// They are written, or were not to be.
    pub fn end(&self, name: &str) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// What goes on being unwritten when this gate makes a change: all that other gates owe, and what it has not written itself.
    pub fn carried(&self, unwritten: &[Unwritten]) -> Vec<Unwritten> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |lines: &&Unwritten| lines.gate != self.journal.gate() || pending.contains(&lines.name);
        unwritten.iter().filter(stays).cloned().collect()
    }

    /// Keeps what a change of the record at `key` was to leave in the journal: it was not written, or nobody knows whether it was made.
    pub async fn keep(&self, key: &str, lines: Lines) {
        if lines.is_empty() {
            return self.end(&lines.name);
        }
        self.open.lock().await.entry(key.to_owned()).or_default().push(lines);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Writes down what is known by now about a record. On `Err` nothing newer may be written about it.
    pub async fn settle(&self, key: &str) -> Result<(), StoreError> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let mut open = self.open.lock().await;
        let Some(doubts) = open.get_mut(key) else { return Ok(()) };
        let top = self.streams.version(key).await?;
        while let Some(lines) = doubts.first_mut() {
            match lines.outcome(top.as_ref()) {
                Outcome::Open => return Ok(()),
                Outcome::NotMade => {}
                Outcome::Made => lines.write(&self.streams, &self.journal).await?,
            }
            self.end(&doubts.remove(0).name);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        open.remove(key);
        Ok(())
    }

    /// A change of the record was made. What was still open was to be made on the same version, and has lost.
    pub async fn are_over(&self, key: &str) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        for lost in self.open.lock().await.remove(key).unwrap_or_default() {
            self.end(&lost.name);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Settles all of them, now and then: a record may never be used again. Ends with its store, which alone may hold the
    /// journal's file open.
    pub async fn look(doubts: Weak<Self>, pause: Duration) {
        loop {
            tokio::time::sleep(pause).await;
            let Some(doubts) = doubts.upgrade() else { return };
            if let Err(error) = doubts.settle_all().await {
                tracing::debug!(%error, "not known yet");
            }
        }
    }

    /// Writes down what is known by now about every record. The first that cannot be asked is the error.
    pub async fn settle_all(&self) -> Result<(), StoreError> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let keys: Vec<String> = self.open.lock().await.keys().cloned().collect();
        let mut settled = Ok(());
        for key in keys {
            settled = settled.and(self.settle(&key).await);
        }
        settled
    }
}
