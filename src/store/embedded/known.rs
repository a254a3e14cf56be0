//! What the writer knows without reading it back: nobody else changes the file, its lock sees to that.

use super::lines::{self, HEAD};
use super::tables::Fault;
use crate::journal::chain::Head;
use crate::journal::{Entry, chain};
use redb::ReadableTable;
use std::collections::HashMap;

/// Where the table of receipts says up to which line it is complete. No receipt has this id.
pub(super) const INDEXED: &str = "";
/// Lines that may be behind that: to find a receipt among them is reading them, and that many ids, which come in order of time,
/// share a page or two.
pub(super) const INDEX_EVERY: u64 = 128;
/// Channels whose revision is remembered; that of another is read.
const MOST_REVISIONS: usize = 1 << 14;

/// As of the last operation. After a transaction that failed nothing of it counts any more, because nothing is written after it.
#[derive(Default)]
pub(super) struct Known {
    /// Where the journal ends.
    pub(super) head: Head,
    /// The line up to which receipts are in their index.
    pub(super) indexed: u64,
    /// Receipts of the lines behind it, in order.
    pub(super) unindexed: Vec<(String, u64)>,
    /// Of channels whose record was written since the start.
    revisions: HashMap<String, u64>,
}

impl Known {
    /// What a file says that is opened.
    pub(super) fn read(
        journal: &impl ReadableTable<u64, &'static str>,
        receipts: &impl ReadableTable<&'static str, u64>,
    ) -> Result<Self, Fault> {
        let head = lines::head(journal)?;
        let indexed = indexed(receipts)?;
        let mut unindexed = Vec::new();
        for row in journal.range(indexed.saturating_add(1)..HEAD)? {
            let (last, row) = row?;
            for (seq, line) in lines::in_order(last.value(), row.value()) {
                if let Some(Entry::Receipt(receipt)) = chain::entry_of(&line) {
                    unindexed.push((receipt.id, seq));
                }
            }
        }
        Ok(Self { head, indexed, unindexed, revisions: HashMap::new() })
    }

    /// Whether so much is behind the index that it is time to catch up.
    pub(super) fn is_behind(&self) -> bool {
        self.head.lines.saturating_sub(self.indexed) >= INDEX_EVERY
    }

    pub(super) fn revision(&self, channel: &str) -> Option<u64> {
        self.revisions.get(channel).copied()
    }

    /// It is not there any more.
    pub(super) fn has_none(&mut self, channel: &str) {
        self.revisions.remove(channel);
    }

    pub(super) fn has_revision(&mut self, channel: &str, revision: u64) {
        if let Some(known) = self.revisions.get_mut(channel) {
            *known = revision;
            return;
        }
        if self.revisions.len() >= MOST_REVISIONS {
            self.revisions.clear();
        }
        self.revisions.insert(channel.to_owned(), revision);
    }
}

/// The line up to which receipts are in their index.
pub(super) fn indexed(receipts: &impl ReadableTable<&'static str, u64>) -> Result<u64, Fault> {
    Ok(receipts.get(INDEXED)?.map_or(0, |v| v.value()))
}
