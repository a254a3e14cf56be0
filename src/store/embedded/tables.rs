//! What the file holds, and what one operation does to it inside a write transaction.

use super::brief::Brief;
use super::known::{INDEXED, Known};
use super::lines::{self, Loose};
use crate::channel::Channel;
use crate::claim::{self, Claim};
use crate::clock::UnixSeconds;
use crate::journal::Entry;
use crate::journal::chain::Head;
use crate::money::Usd;
use crate::store::{OVER_SECONDS, StoreError, Swap, TALLY_DAYS, Write};
use redb::{Key, ReadableTable, Table, TableDefinition, TableError, Value, WriteTransaction};
use std::borrow::Cow;

/// Layout of the file. A file with another number is refused at start, except that one with [`BEFORE`] is brought up to it.
const SCHEMA: &str = "2";
/// The same with the journal's head in [`META`], and every receipt in its index.
const BEFORE: &str = "1";
/// Largest claim or journal line. Ours are a few kilobytes; a larger one is a defect and must not fill the disk.
const MOST_BYTES: usize = 1 << 20;
/// Bytes of a record that need no second allocation: most have fewer.
const ROOM: usize = 4 << 10;

/// `schema` → [`SCHEMA`], `gate` → who writes here, `records` → `shared` when they are elsewhere.
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Claim key → record as JSON.
pub(super) const CLAIMS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("claims");
/// Keys of claims that are neither delivered nor dead, so that a start does not read all of them.
pub(super) const OPEN: TableDefinition<'_, &str, ()> = TableDefinition::new("open");
/// Channel id → record as JSON. Closed ones stay for a while: whoever comes back to one must be told that it is over, not unknown.
pub(super) const CHANNELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("channels");
/// Ids of channels that are not over.
pub(super) const OPEN_CHANNELS: TableDefinition<'_, &str, ()> = TableDefinition::new("open_channels");
/// `(rail, payer, id)` of channels that are not over.
pub(super) const PAYERS: TableDefinition<'_, (&str, &str, &str), ()> = TableDefinition::new("payers");
/// `(keep_until, key)` of every claim, so that forgetting reads only what is due; [`OVER`] and the id of a channel that is over.
const DUE: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("due");
/// No claim's key begins so.
const OVER: &str = "channel ";
/// Receipt id → `seq` of the newest line that holds it; [`INDEXED`] → the line up to which that is so.
pub(super) const RECEIPTS: TableDefinition<'_, &str, u64> = TableDefinition::new("receipts");
/// `seq` → the line, and those before it that share a row with it; [`HEAD`](lines::HEAD) → where they end.
pub(super) const JOURNAL: TableDefinition<'_, u64, &str> = TableDefinition::new("journal");
/// `(name, day)` → 1e-18 USD.
pub(super) const TALLIES: TableDefinition<'_, (&str, u64), u128> = TableDefinition::new("tallies");
/// Name → text, as of the last run.
const FACTS: TableDefinition<'_, &str, &str> = TableDefinition::new("facts");

/// Why an operation did not happen.
pub(super) enum Fault {
    /// This operation only; nothing of it was written.
    Here(StoreError),
    /// The file or the disk: nothing more may be written.
    Disk(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Disk(error.into())
    }
}

fn here<T>(why: String) -> Result<T, Fault> {
    Err(Fault::Here(StoreError(why)))
}

/// What every record begins with, and whose it is when it is a channel's.
#[derive(serde::Deserialize)]
struct Stamp<'r> {
    schema: u16,
    revision: u64,
    #[serde(borrow, default)]
    id: Cow<'r, str>,
}

/// What a claim's next write has to know of the one before.
struct Was {
    revision: u64,
    keep_until: UnixSeconds,
}

#[derive(serde::Deserialize)]
struct ClaimStamp<'r> {
    schema: u16,
    revision: u64,
    #[serde(borrow)]
    key: Cow<'r, str>,
    collect_until: UnixSeconds,
    paid_at: Option<UnixSeconds>,
}

/// The first words of the claim in `bytes`, as [`read_claim`] reads all of them.
fn glance(key: &str, bytes: &[u8]) -> Result<Was, StoreError> {
    match serde_json::from_slice::<ClaimStamp<'_>>(bytes) {
        Ok(stamp) if stamp.schema == Claim::SCHEMA && stamp.key == key => {
            Ok(Was { revision: stamp.revision, keep_until: claim::keep_until(stamp.collect_until, stamp.paid_at) })
        }
        // Whatever is wrong with it is said there.
        _ => read_claim(key, bytes).map(|claim| Was { revision: claim.revision, keep_until: claim.keep_until() }),
    }
}

/// The claim in `bytes`. The error blocks this key only: what a later version wrote, or what a bad disk left, is neither
/// dropped nor overwritten.
pub(in crate::store) fn read_claim(key: &str, bytes: &[u8]) -> Result<Claim, StoreError> {
    let bad = |why: String| StoreError(format!("the record of claim {key} cannot be read, so it is blocked: {why}"));
    stamp(bytes, Claim::SCHEMA).map_err(&bad)?;
    let claim: Claim = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if claim.key.0 != key {
        return Err(bad(format!("it says it is {}", claim.key.0)));
    }
    Ok(claim)
}

/// The channel in `bytes`, as [`read_claim`] does it.
pub(in crate::store) fn read_channel(id: &str, bytes: &[u8]) -> Result<Channel, StoreError> {
    stamp(bytes, Channel::SCHEMA).map_err(|why| blocked(id, &why))?;
    let channel: Channel = serde_json::from_slice(bytes).map_err(|e| blocked(id, &e.to_string()))?;
    if channel.id.0 != id {
        return Err(blocked(id, &format!("it says it is {}", channel.id)));
    }
    Ok(channel)
}

fn blocked(id: &str, why: &str) -> StoreError {
    StoreError(format!("the record of channel {id} cannot be read, so it is blocked: {why}"))
}

/// The first words of a record whose layout this build reads. The rest is passed over, and is JSON.
fn stamp(bytes: &[u8], schema: u16) -> Result<Stamp<'_>, String> {
    let stamp: Stamp<'_> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if stamp.schema != schema {
        return Err(format!("it has schema {}, this build reads {schema}", stamp.schema));
    }
    Ok(stamp)
}

/// Makes the tables of a new file, or looks whether an old one is ours; what is found there. The error is a sentence for
/// operators.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<Known, Fault> {
    let is_new = txn.list_tables()?.next().is_none();
    let (mut meta, mut journal, mut receipts) =
        (txn.open_table(META)?, txn.open_table(JOURNAL)?, txn.open_table(RECEIPTS)?);
    if is_new {
        meta.insert("schema", SCHEMA)?;
        lines::put_head(&mut journal, &Head::default())?;
    }
    let schema = meta.get("schema")?.map(|v| v.value().to_owned());
    match schema.as_deref() {
        Some(SCHEMA) => {}
        Some(BEFORE) => {
            let head = head_before(&meta)?;
            lines::put_head(&mut journal, &head)?;
            receipts.insert(INDEXED, head.lines)?;
            meta.remove("head")?;
            meta.insert("schema", SCHEMA)?;
        }
        Some(other) => {
            return here(format!(
                "it has schema {other} and this build reads {SCHEMA}: use the version of pontage that wrote it"
            ));
        }
        None => return here("it is a database of something else".to_owned()),
    }
    // A file of an earlier version knows no gate yet.
    if meta.get("gate")?.is_none() {
        meta.insert("gate", crate::ids::fresh("gate").as_str())?;
    }
    let known = Known::read(&journal, &receipts)?;
    let last = lines::last(&journal)?;
    drop((meta, journal, receipts));
    Book::open(txn, &mut Known::default()).every_table()?;
    match last {
        None if known.head == Head::default() => Ok(known),
        Some(line) if known.head.ends_with(&line) => Ok(known),
        _ => here(format!("its journal does not end at its head {}: run `pontage audit`", known.head)),
    }
}

/// Where the journal of this snapshot ends.
pub(super) fn head(txn: &redb::ReadTransaction) -> Result<Head, Fault> {
    let meta = txn.open_table(META)?;
    match meta.get("schema")?.is_some_and(|v| v.value() == BEFORE) {
        true => head_before(&meta),
        false => lines::head(&txn.open_table(JOURNAL)?),
    }
}

fn head_before(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<Head, Fault> {
    let text = meta.get("head")?.map(|v| v.value().to_owned()).unwrap_or_default();
    serde_json::from_str(&text).or_else(|e| here(format!("the journal's head cannot be read: {e}")))
}

/// Whether this is the journal of one gate of several.
pub(super) fn is_part(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<bool, Fault> {
    Ok(meta.get("records")?.is_some_and(|v| v.value() == "shared"))
}

/// Who writes here.
pub(super) fn gate(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<String, Fault> {
    match meta.get("gate")?.map(|v| v.value().to_owned()) {
        Some(gate) => Ok(gate),
        None => here("it does not say whose it is".to_owned()),
    }
}

/// The table [`is_part`] and [`gate`] read, in a snapshot.
pub(super) fn meta(txn: &redb::ReadTransaction) -> Result<redb::ReadOnlyTable<&'static str, &'static str>, TableError> {
    txn.open_table(META)
}

/// A table of a write transaction, opened when it is first used: most operations use few, and each that is open costs its part of
/// the commit.
struct Shelf<'t, K: Key + 'static, V: Value + 'static> {
    txn: &'t WriteTransaction,
    name: TableDefinition<'static, K, V>,
    table: Option<Table<'t, K, V>>,
}

impl<'t, K: Key + 'static, V: Value + 'static> Shelf<'t, K, V> {
    fn new(txn: &'t WriteTransaction, name: TableDefinition<'static, K, V>) -> Self {
        Self { txn, name, table: None }
    }

    fn table(&mut self) -> Result<&mut Table<'t, K, V>, TableError> {
        let table = match self.table.take() {
            Some(table) => table,
            None => self.txn.open_table(self.name)?,
        };
        Ok(self.table.insert(table))
    }
}

/// The tables of one write transaction. Each operation checks everything before it writes anything, so that one that fails
/// leaves nothing behind in the transaction it shares with others.
pub(super) struct Book<'t> {
    meta: Shelf<'t, &'static str, &'static str>,
    claims: Shelf<'t, &'static str, &'static [u8]>,
    open: Shelf<'t, &'static str, ()>,
    channels: Shelf<'t, &'static str, &'static [u8]>,
    open_channels: Shelf<'t, &'static str, ()>,
    payers: Shelf<'t, (&'static str, &'static str, &'static str), ()>,
    due: Shelf<'t, (u64, &'static str), ()>,
    receipts: Shelf<'t, &'static str, u64>,
    journal: Shelf<'t, u64, &'static str>,
    tallies: Shelf<'t, (&'static str, u64), u128>,
    facts: Shelf<'t, &'static str, &'static str>,
    known: &'t mut Known,
    began: Head,
    loose: Loose,
    changed: bool,
}

impl<'t> Book<'t> {
    pub(super) fn open(txn: &'t WriteTransaction, known: &'t mut Known) -> Self {
        Self {
            meta: Shelf::new(txn, META),
            claims: Shelf::new(txn, CLAIMS),
            open: Shelf::new(txn, OPEN),
            channels: Shelf::new(txn, CHANNELS),
            open_channels: Shelf::new(txn, OPEN_CHANNELS),
            payers: Shelf::new(txn, PAYERS),
            due: Shelf::new(txn, DUE),
            receipts: Shelf::new(txn, RECEIPTS),
            journal: Shelf::new(txn, JOURNAL),
            tallies: Shelf::new(txn, TALLIES),
            facts: Shelf::new(txn, FACTS),
            began: known.head,
            known,
            loose: Loose::default(),
            changed: false,
        }
    }

    /// Makes those that are not there.
    fn every_table(&mut self) -> Result<(), TableError> {
        self.claims.table()?;
        self.open.table()?;
        self.channels.table()?;
        self.open_channels.table()?;
        self.payers.table()?;
        self.due.table()?;
        self.tallies.table()?;
        self.facts.table()?;
        Ok(())
    }

    pub(super) fn is_part_of_a_fleet(&mut self) -> Result<(), Fault> {
        let before = self.meta.table()?.insert("records", "shared")?.map(|v| v.value().to_owned());
        self.changed |= before.as_deref() != Some("shared");
        Ok(())
    }

    /// Ends the batch. `false`: nothing changed, so there is nothing to make durable.
    pub(super) fn close(mut self) -> Result<bool, Fault> {
        if self.known.head != self.began {
            let journal = self.journal.table()?;
            self.loose.put(journal)?;
            lines::put_head(journal, &self.known.head)?;
        }
        if self.changed && self.known.is_behind() {
            let receipts = self.receipts.table()?;
            for (id, seq) in self.known.unindexed.drain(..) {
                receipts.insert(id.as_str(), seq)?;
            }
            self.known.indexed = self.known.head.lines;
            receipts.insert(INDEXED, self.known.indexed)?;
        }
        Ok(self.changed)
    }

    fn was(&mut self, key: &str) -> Result<Option<Was>, Fault> {
        self.claims.table()?.get(key)?.map(|bytes| glance(key, bytes.value()).map_err(Fault::Here)).transpose()
    }

    fn claim(&mut self, key: &str) -> Result<Option<Claim>, Fault> {
        claim_in(self.claims.table()?, key)
    }

    /// One [`Write`]: the claim or channel by its revision, then the journal, then the tallies. `brief`: what is known of the claim
    /// beside the file; where it is newer, it is the record before, and its lines come first.
    pub(super) fn write(&mut self, write: &Write, brief: Option<&Brief>) -> Result<Swap, Fault> {
        let (mut record, mut lines_before) = (None, &[][..]);
        if let Some(claim) = &write.claim {
            let stored = self.was(&claim.key.0)?;
            if claim.schema != Claim::SCHEMA {
                return here(format!("claim {} has schema {}, not {}", claim.key.0, claim.schema, Claim::SCHEMA));
            }
            let revision = stored.as_ref().map_or(0, |was| was.revision);
            let brief = brief.filter(|brief| brief.claim.revision > revision);
            if brief.map_or(revision, |brief| brief.claim.revision).checked_add(1) != Some(claim.revision) {
                let now = match brief {
                    Some(brief) => Some(brief.claim.clone()),
                    None => self.claim(&claim.key.0)?,
                };
                return Ok(Swap::Lost(Box::new(now)));
            }
            lines_before = brief.map_or(lines_before, |brief| &brief.journal);
            record = Some((claim, stored, json(claim)?));
        }
        let mut purse = None;
        if let Some(channel) = &write.channel {
            if write.claim.is_some() {
                return here("one write has a claim or a channel, never both".to_owned());
            }
            if channel.schema != Channel::SCHEMA {
                return here(format!("channel {} has schema {}, not {}", channel.id, channel.schema, Channel::SCHEMA));
            }
            // Who has the revision before has read that record: only its number is looked at here.
            if self.revision(&channel.id.0)?.checked_add(1) != Some(channel.revision) {
                return Ok(Swap::Overtaken(Box::new(self.channel(&channel.id.0)?)));
            }
            purse = Some((channel, json(channel.as_ref())?));
        }
        let (lines, head) = self.lines(lines_before.iter().chain(&write.journal))?;
        let totals = self.totals(&write.tally)?;

        self.changed = true;
        if let Some((claim, stored, json)) = record {
            self.put(claim, stored.as_ref(), &json)?;
        }
        if let Some((channel, json)) = purse {
            self.put_channel(channel, &json)?;
        }
        for (seq, line, receipt) in &lines {
            self.loose.add(self.journal.table()?, *seq, line)?;
            if let Some(id) = receipt {
                self.known.unindexed.push(((*id).to_owned(), *seq));
            }
        }
        self.known.head = head;
        for (name, day, total) in totals {
            self.tallies.table()?.insert((name, day), total.0)?;
        }
        Ok(Swap::Done)
    }

    fn channel(&mut self, id: &str) -> Result<Option<Channel>, Fault> {
        channel_in(self.channels.table()?, id)
    }

    /// Of the channel's record; 0 when there is none.
    fn revision(&mut self, id: &str) -> Result<u64, Fault> {
        if let Some(revision) = self.known.revision(id) {
            return Ok(revision);
        }
        let Some(bytes) = self.channels.table()?.get(id)? else { return Ok(0) };
        match stamp(bytes.value(), Channel::SCHEMA) {
            Ok(stamp) if stamp.id == id => Ok(stamp.revision),
            Ok(stamp) => Err(Fault::Here(blocked(id, &format!("it says it is {}", stamp.id)))),
            Err(why) => Err(Fault::Here(blocked(id, &why))),
        }
    }

    fn put_channel(&mut self, channel: &Channel, json: &[u8]) -> Result<(), Fault> {
        let id = channel.id.0.as_str();
        let payer = (channel.rail.as_str(), channel.descriptor.payer.as_str(), id);
        self.channels.table()?.insert(id, json)?;
        self.known.has_revision(id, channel.revision);
        if channel.is_over() {
            self.open_channels.table()?.remove(id)?;
            self.payers.table()?.remove(payer)?;
            let until = UnixSeconds::now().plus(OVER_SECONDS);
            self.due.table()?.insert((until.0, format!("{OVER}{id}").as_str()), ())?;
        } else if channel.revision == 1 {
            self.open_channels.table()?.insert(id, ())?;
            self.payers.table()?.insert(payer, ())?;
        }
        Ok(())
    }

    /// What stays as it was is not written again: each table costs pages of its own.
    fn put(&mut self, claim: &Claim, was: Option<&Was>, json: &[u8]) -> Result<(), Fault> {
        let (key, until) = (claim.key.0.as_str(), claim.keep_until());
        self.claims.table()?.insert(key, json)?;
        match (claim.standing.is_end(), was) {
            (true, None) => {}
            (true, Some(_)) => drop(self.open.table()?.remove(key)?),
            (false, Some(_)) if self.open.table()?.get(key)?.is_some() => {}
            (false, _) => drop(self.open.table()?.insert(key, ())?),
        }
        match was {
            Some(was) if was.keep_until == until => return Ok(()),
            Some(was) => drop(self.due.table()?.remove((was.keep_until.0, key))?),
            None => {}
        }
        self.due.table()?.insert((until.0, key), ())?;
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn lines<'e>(
        &self,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> Result<(Vec<(u64, String, Option<&'e str>)>, Head), Fault> {
        let mut head = self.known.head;
        let mut lines = Vec::new();
        for entry in entries {
            let (line, next) = head.append(entry).or_else(|e| here(format!("an entry cannot be written: {e}")))?;
            if line.len() > MOST_BYTES {
                return here(format!("an entry of {} bytes is too large for the journal", line.len()));
            }
            let receipt = match entry {
                Entry::Receipt(receipt) => Some(receipt.id.as_str()),
                _ => None,
            };
            lines.push((next.lines, line, receipt));
            head = next;
        }
        Ok((lines, head))
    }

    /// The totals after `adds`, each name and day once.
    fn totals<'w>(&mut self, adds: &'w [(String, u64, Usd)]) -> Result<Vec<(&'w str, u64, Usd)>, Fault> {
        let mut totals: Vec<(&str, u64, Usd)> = Vec::with_capacity(adds.len());
        for (name, day, amount) in adds {
            let known = totals.iter_mut().find(|(n, d, _)| n == name && d == day);
            let before = match &known {
                Some((_, _, total)) => *total,
                None => self.tallies.table()?.get((name.as_str(), *day))?.map_or(Usd::ZERO, |v| Usd(v.value())),
            };
            let Some(after) = before.plus(*amount) else {
                return here(format!("the total {name} is larger than can be counted"));
            };
            match known {
                Some((_, _, total)) => *total = after,
                None => totals.push((name, *day, after)),
            }
        }
        Ok(totals)
    }

    /// Drops at most `most` claims and channels that are over and past their time; how many it dropped. What cannot be read stays. Totals of
    /// days long past go as well.
    pub(super) fn forget(&mut self, now: UnixSeconds, most: usize) -> Result<usize, Fault> {
        let mut gone = Vec::new();
        let (claims, channels) = (self.claims.table()?, self.channels.table()?);
        for entry in self.due.table()?.range(..(now.0, ""))? {
            let (until, key) = entry.map(|(k, _)| (k.value().0, k.value().1.to_owned()))?;
            let over = match key.strip_prefix(OVER) {
                Some(id) => channel_in(channels, id).map(|found| found.is_none_or(|channel| channel.is_over())),
                None => claim_in(claims, &key).map(|found| found.is_some_and(|claim| claim.is_over(now))),
            };
            match over {
                Ok(true) => gone.push((until, key)),
                Ok(false) | Err(Fault::Here(_)) => {}
                Err(disk) => return Err(disk),
            }
            if gone.len() == most {
                break;
            }
        }
        let mut past = Vec::new();
        for entry in self.tallies.table()?.iter()? {
            let (name, day) = entry.map(|(k, _)| (k.value().0.to_owned(), k.value().1))?;
            if day.saturating_add(TALLY_DAYS) < now.day() {
                past.push((name, day));
            }
        }
        for (name, day) in past {
            self.tallies.table()?.remove((name.as_str(), day))?;
            self.changed = true;
        }
        for (until, key) in &gone {
            if let Some(id) = key.strip_prefix(OVER) {
                self.channels.table()?.remove(id)?;
                self.known.has_none(id);
            } else {
                self.claims.table()?.remove(key.as_str())?;
                self.open.table()?.remove(key.as_str())?;
            }
            self.due.table()?.remove((*until, key.as_str()))?;
            self.changed = true;
        }
        Ok(gone.len())
    }

    /// See [`crate::store::Store::facts`].
    pub(super) fn facts(&mut self, facts: &[(String, String)], accept: bool) -> Result<Vec<String>, Fault> {
        let mut known = Vec::new();
        for entry in self.facts.table()?.iter()? {
            known.push(entry.map(|(k, v)| (k.value().to_owned(), v.value().to_owned()))?);
        }
        let changed = crate::store::changed_facts(&known, facts);
        if accept || changed.is_empty() {
            for (name, text) in facts {
                let before = self.facts.table()?.insert(name.as_str(), text.as_str())?.map(|v| v.value().to_owned());
                self.changed |= before.as_ref() != Some(text);
            }
        }
        Ok(changed)
    }
}

/// The claim as the table has it.
pub(super) fn claim_in(
    claims: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Claim>, Fault> {
    claims.get(key)?.map(|bytes| read_claim(key, bytes.value()).map_err(Fault::Here)).transpose()
}

/// The channel as the table has it.
pub(super) fn channel_in(
    channels: &impl ReadableTable<&'static str, &'static [u8]>,
    id: &str,
) -> Result<Option<Channel>, Fault> {
    channels.get(id)?.map(|bytes| read_channel(id, bytes.value()).map_err(Fault::Here)).transpose()
}

fn json(record: &impl serde::Serialize) -> Result<Vec<u8>, Fault> {
    let mut text = Vec::with_capacity(ROOM);
    match serde_json::to_writer(&mut text, record) {
        Ok(()) if text.len() <= MOST_BYTES => Ok(text),
        Ok(()) => here(format!("a record of {} bytes is too large to store", text.len())),
        Err(e) => here(format!("a record cannot be written: {e}")),
    }
}
