//! How the lines of the journal lie in their table. A row holds lines of one transaction, in order and with a newline between
//! them, as many as fill a page of the file; its key is the `seq` of the last. A row of one line is what there was before.

use super::tables::Fault;
use crate::journal::chain::Head;
use crate::store::StoreError;
use redb::{ReadableTable, StorageError, Table};

/// Where the table keeps the journal's [`Head`], as JSON: behind every line, so that a commit writes the end of the table and
/// nothing beside it.
pub(super) const HEAD: u64 = u64::MAX;
/// A longer row would not fit into a page of 4096 bytes.
const ROW_BYTES: usize = 4_000;

/// Lines of a transaction that are not in the table yet.
#[derive(Default)]
pub(super) struct Loose {
    row: String,
    last: u64,
}

impl Loose {
    pub(super) fn add(
        &mut self,
        journal: &mut Table<'_, u64, &'static str>,
        seq: u64,
        line: &str,
    ) -> Result<(), StorageError> {
        if self.row.len() + line.len() >= ROW_BYTES {
            self.put(journal)?;
        }
        if !self.row.is_empty() {
            self.row.push('\n');
        }
        self.row.push_str(line);
        self.last = seq;
        Ok(())
    }

    /// Puts what is left.
    pub(super) fn put(&mut self, journal: &mut Table<'_, u64, &'static str>) -> Result<(), StorageError> {
        if !self.row.is_empty() {
            journal.insert(self.last, self.row.as_str())?;
            self.row.clear();
        }
        Ok(())
    }
}

/// The lines of a row and their `seq`, the newest first.
pub(super) fn newest_first(last: u64, row: &str) -> impl Iterator<Item = (u64, &str)> {
    (0..=last).rev().zip(row.rsplit('\n'))
}

/// The same, in order.
pub(super) fn in_order(last: u64, row: &str) -> Vec<(u64, String)> {
    let mut lines: Vec<_> = newest_first(last, row).map(|(seq, line)| (seq, line.to_owned())).collect();
    lines.reverse();
    lines
}

/// The line with this `seq`.
pub(super) fn line(journal: &impl ReadableTable<u64, &'static str>, seq: u64) -> Result<Option<String>, StorageError> {
    let Some(row) = journal.range(seq..HEAD)?.next().transpose()? else { return Ok(None) };
    let (last, row) = (row.0.value(), row.1);
    Ok(newest_first(last, row.value()).find(|(at, _)| *at == seq).map(|(_, line)| line.to_owned()))
}

/// The last of them.
pub(super) fn last(journal: &impl ReadableTable<u64, &'static str>) -> Result<Option<String>, StorageError> {
    let row = journal.range(..HEAD)?.next_back().transpose()?;
    Ok(row.and_then(|(_, row)| row.value().rsplit('\n').next().map(str::to_owned)))
}

/// Where they end, as the table says it.
pub(super) fn head(journal: &impl ReadableTable<u64, &'static str>) -> Result<Head, Fault> {
    let text = journal.get(HEAD)?.map(|v| v.value().to_owned()).unwrap_or_default();
    serde_json::from_str(&text).map_err(|e| Fault::Here(StoreError(format!("the journal's head cannot be read: {e}"))))
}

/// Says so.
pub(super) fn put_head(journal: &mut Table<'_, u64, &'static str>, head: &Head) -> Result<(), Fault> {
    match serde_json::to_string(head) {
        Ok(text) => Ok(drop(journal.insert(HEAD, text.as_str())?)),
        Err(e) => Err(Fault::Here(StoreError(format!("the journal's head cannot be written: {e}")))),
    }
}
