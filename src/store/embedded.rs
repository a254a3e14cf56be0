//! The store of one machine: a redb file beside the gate. Two-phase commit, group commit by one writer thread, snapshot
//! reads, a file lock that forbids a second gate.
//!
//! The journal is a table of the same file, so a claim and its lines are one transaction. After any failure of file or
//! disk the store refuses everything until the process is restarted.

mod brief;
mod known;
mod lines;
mod tables;
mod writer;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use self::brief::Briefs;
use self::known::{INDEXED, Known};
use self::lines::HEAD;
use self::tables::{CHANNELS, CLAIMS, Fault, JOURNAL, OPEN, OPEN_CHANNELS, PAYERS, RECEIPTS, TALLIES};
pub(super) use self::tables::{read_channel, read_claim};
use self::writer::{Health, Writer};
use super::{Store, StoreError, Swap, Whose, Write};
use crate::channel::{Channel, ChannelId};
use crate::claim::{Claim, ClaimKey};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::journal::audit::{Audit, audit, audit_part};
use crate::journal::fleet::Together;
use crate::journal::{Entry, Receipt, chain};
use crate::money::Usd;
use async_trait::async_trait;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::broadcast;

/// Pages kept in memory. Claims in flight are few; redb's own default is a gigabyte.
const CACHE_BYTES: usize = 16 << 20;
/// Claims dropped in one transaction, so that payments never wait long behind housekeeping.
const FORGET_AT_ONCE: usize = 256;

/// The redb store.
pub struct Embedded {
    // First, so that its thread has ended before the database is closed.
    writer: Writer,
    db: Arc<Database>,
    health: Arc<Health>,
    briefs: Briefs,
    gate: String,
}

impl Embedded {
    /// Opens the file at `path`, and makes it and its directory when they are not there. Errors are sentences for operators:
    /// another gate has it, a later version wrote it, the disk refuses, the journal's end is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |why: String| StoreError(format!("cannot open the store {}: {why}", path.display()));
        if !path.try_exists().map_err(|e| fail(e.to_string()))? {
            found(path).map_err(&fail)?;
        }
        let db = builder().open(path).map_err(|e| fail(in_words(e)))?;
        Self::on(db).map_err(|e| fail(e.0))
    }

    /// Says that this file is the journal of one gate of several, whose records are elsewhere.
    pub(super) async fn is_part_of_a_fleet(&self) -> Result<(), StoreError> {
        self.writer.write(|book| book.is_part_of_a_fleet()).await
    }

    /// Starts on an open database.
    fn on(db: Database) -> Result<Self, StoreError> {
        let health = Arc::new(Health::default());
        let known = prepare(&db)?;
        let gate = db.snapshot().and_then(|txn| tables::gate(&tables::meta(&txn)?)).map_err(|e| StoreError(told(e)))?;
        let db = Arc::new(db);
        let writer = Writer::start(db.clone(), health.clone(), known)
            .map_err(|e| StoreError(format!("its writer thread cannot start: {e}")))?;
        Ok(Self { writer, db, health, briefs: Briefs::default(), gate })
    }

    /// Audits the file at `path`, which no gate may have open. Changes nothing, except that a file whose gate was killed is
    /// brought back to its last commit first, as the gate itself would do.
    pub fn audit(path: &Path) -> Result<Audit, StoreError> {
        Self::look_at(path, &mut Together::default())
    }

    /// Audits the journals of several gates of one fleet, each as [`Embedded::audit`] does, and then all together.
    pub fn audit_fleet(paths: &[PathBuf]) -> Result<(Vec<Audit>, Together), StoreError> {
        let mut together = Together::default();
        let mut parts = Vec::with_capacity(paths.len());
        for path in paths {
            let part = Self::look_at(path, &mut together)?;
            if !part.part {
                let why = "is the store of a gate that stands alone, not the journal of one of several";
                return Err(StoreError(format!("{} {why}", path.display())));
            }
            parts.push(part);
        }
        together.end();
        Ok((parts, together))
    }

    fn look_at(path: &Path, together: &mut Together) -> Result<Audit, StoreError> {
        let fail = |why: String| StoreError(format!("cannot audit the store {}: {why}", path.display()));
        let mut snapshot =
            |db: &dyn Snapshot| db.snapshot().and_then(|txn| walk(&txn, together)).map_err(|e| fail(told(e)));
        match builder().open_read_only(path) {
            Ok(db) => snapshot(&db),
            Err(DatabaseError::RepairAborted) => snapshot(&builder().open(path).map_err(|e| fail(in_words(e)))?),
            Err(e) => Err(fail(in_words(e))),
        }
    }

    /// How many lines its journal has.
    pub(super) fn length(&self) -> Result<u64, StoreError> {
        self.read(|txn| tables::head(txn).map(|head| head.lines))
    }

    /// Whether `line` stands in its journal behind the first `after` lines: the JSON of an [`Entry`].
    pub(super) fn has(&self, after: u64, line: &str) -> Result<bool, StoreError> {
        let end = format!("\"entry\":{line}}}");
        self.read(|txn| {
            for row in txn.open_table(JOURNAL)?.range(after.saturating_add(1)..HEAD)? {
                let (last, row) = row?;
                let mut lines = lines::newest_first(last.value(), row.value());
                if lines.any(|(seq, line)| seq > after && line.ends_with(&end)) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// What a crash does to what was written briefly, for tests that do not end the process.
    #[cfg(test)]
    pub(crate) fn crashes(&self) {
        self.briefs.forget();
    }

    /// The lines of its journal, for tests that count them.
    #[cfg(test)]
    pub(super) fn lines(&self) -> Vec<String> {
        let all = |txn: &ReadTransaction| {
            let mut all = Vec::new();
            for row in txn.open_table(JOURNAL)?.range(..HEAD)? {
                let (last, row) = row?;
                all.extend(lines::in_order(last.value(), row.value()).into_iter().map(|(_, line)| line));
            }
            Ok(all)
        };
        self.read(all).unwrap_or_default()
    }

    /// The claim as it is in the file.
    fn stored(&self, key: &ClaimKey) -> Result<Option<Claim>, StoreError> {
        self.read(|txn| tables::claim_in(&txn.open_table(CLAIMS)?, &key.0))
    }

    /// Reads from the newest durable snapshot. Pages are cached or one `pread` away (microseconds), so this runs where it is
    /// called.
    fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, Fault>) -> Result<T, StoreError> {
        read(&self.db, &self.health, work)
    }
}

fn read<T>(
    db: &Database,
    health: &Health,
    work: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
) -> Result<T, StoreError> {
    health.check()?;
    db.begin_read().map_err(Fault::from).and_then(|txn| work(&txn)).map_err(|fault| health.judge(fault))
}

#[async_trait]
impl Store for Embedded {
    async fn claim(&self, key: &ClaimKey) -> Result<Option<Claim>, StoreError> {
        match self.briefs.claim(key) {
            Some(claim) => self.health.check().map(|()| Some(claim)),
            None => self.stored(key),
        }
    }

    async fn commit(&self, mut write: Write) -> Result<Swap, StoreError> {
        if write.brief {
            self.health.check()?;
            write = match self.briefs.keep(write, |key| self.stored(key)) {
                Ok(kept) => return kept,
                Err(write) => *write,
            };
        }
        let Some(claim) = &write.claim else {
            return self.writer.write(move |book| book.write(&write, None)).await;
        };
        let mut way = self.briefs.way(&claim.key);
        let written = self.writer.write(move |book| {
            let swap = book.write(&write, way.before().as_deref())?;
            if let (Swap::Done, Some(claim)) = (&swap, &write.claim) {
                way.wrote(claim.revision);
            }
            Ok((swap, way))
        });
        written.await.map(|(swap, _)| swap)
    }

    async fn open_claims(&self, now: UnixSeconds) -> Result<Vec<Claim>, StoreError> {
        self.read(|txn| {
            let claims = txn.open_table(CLAIMS)?;
            let mut open = Vec::new();
            for entry in txn.open_table(OPEN)?.iter()? {
                let (key, ()) = entry.map(|(k, v)| (k.value().to_owned(), v.value()))?;
                let Some(bytes) = claims.get(key.as_str())? else { continue };
                match read_claim(&key, bytes.value()) {
                    Ok(claim) if claim.is_over(now) => {}
                    Ok(claim) => open.push(claim),
                    // Its payer is answered with this error; everyone else is served.
                    Err(error) => tracing::error!("{error}"),
                }
            }
            Ok(open)
        })
    }

    async fn channel(&self, id: &ChannelId) -> Result<Option<Channel>, StoreError> {
        self.read(|txn| tables::channel_in(&txn.open_table(CHANNELS)?, &id.0))
    }

    async fn channels(&self) -> Result<Vec<Channel>, StoreError> {
        // There can be many, and requests wait for no thread that reads them all.
        let (db, health) = (Arc::clone(&self.db), Arc::clone(&self.health));
        let all = tokio::task::spawn_blocking(move || {
            read(&db, &health, |txn| {
                let ids = txn.open_table(OPEN_CHANNELS)?.iter()?.map(|row| Ok(row?.0.value().to_owned())).collect();
                records(txn, ids)
            })
        });
        all.await.unwrap_or_else(|_| Err(StoreError("reading the channels broke off".to_owned())))
    }

    async fn channels_of(&self, rail: &RailId, payer: &str) -> Result<Vec<Channel>, StoreError> {
        self.read(|txn| {
            let (rail, payers) = (rail.as_str(), txn.open_table(PAYERS)?);
            let rows = payers.range((rail, payer, "")..)?.map(|row| {
                let (key, ()) = row.map(|(k, v)| (k, v.value()))?;
                let (r, p, id) = key.value();
                Ok((r == rail && p == payer).then(|| id.to_owned()))
            });
            let ids = rows.map_while(Result::transpose).collect();
            records(txn, ids)
        })
    }

    fn changes(&self) -> Option<broadcast::Receiver<ChannelId>> {
        None
    }

    fn gate(&self) -> &str {
        &self.gate
    }

    async fn alive(&self, gate: &str) -> Result<bool, StoreError> {
        // The file's lock forbids a second one.
        Ok(gate == self.gate)
    }

    async fn promise(&self, _: Whose<'_>, _: (&ClaimKey, u64), _: Usd) -> Result<Usd, StoreError> {
        // The file's lock forbids a second gate.
        Ok(Usd::ZERO)
    }

    async fn unpromise(&self, _: Whose<'_>, _: &ClaimKey) -> Result<(), StoreError> {
        Ok(())
    }

    async fn forget(&self, now: UnixSeconds) -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let dropped = self.writer.write(move |book| book.forget(now, FORGET_AT_ONCE)).await?;
            total += dropped;
            if dropped < FORGET_AT_ONCE {
                return Ok(total);
            }
        }
    }

    async fn tally(&self, name: &str, day: u64) -> Result<Usd, StoreError> {
        self.read(|txn| Ok(txn.open_table(TALLIES)?.get((name, day))?.map_or(Usd::ZERO, |v| Usd(v.value()))))
    }

    async fn receipt(&self, id: &str) -> Result<Option<Receipt>, StoreError> {
        self.read(|txn| {
            let (journal, receipts) = (txn.open_table(JOURNAL)?, txn.open_table(RECEIPTS)?);
            let is_it = |line: &str| match chain::entry_of(line) {
                Some(Entry::Receipt(receipt)) if receipt.id == id => Some(*receipt),
                _ => None,
            };
            // The newest lines are in no index yet.
            for row in journal.range(known::indexed(&receipts)?.saturating_add(1)..HEAD)?.rev() {
                let (last, row) = row?;
                let mut lines = lines::newest_first(last.value(), row.value()).filter(|(_, line)| line.contains(id));
                if let Some(receipt) = lines.find_map(|(_, line)| is_it(line)) {
                    return Ok(Some(receipt));
                }
            }
            let Some(seq) = receipts.get(id)?.map(|v| v.value()).filter(|_| id != INDEXED) else { return Ok(None) };
            let line = lines::line(&journal, seq)?.unwrap_or_default();
            match is_it(&line) {
                None => Err(Fault::Here(StoreError(format!("receipt {id} cannot be read from journal line {seq}")))),
                found => Ok(found),
            }
        })
    }

    async fn facts(&self, facts: &[(String, String)], accept: bool) -> Result<Vec<String>, StoreError> {
        let facts = facts.to_vec();
        self.writer.write(move |book| book.facts(&facts, accept)).await
    }

    fn standing(&self) -> Result<(), StoreError> {
        self.health.check()
    }
}

/// The channels with these ids. One that cannot be read is passed over: its payer is answered with the error, everyone else is
/// served.
fn records(txn: &ReadTransaction, ids: Result<Vec<String>, redb::StorageError>) -> Result<Vec<Channel>, Fault> {
    let channels = txn.open_table(CHANNELS)?;
    let mut found = Vec::new();
    for id in ids? {
        let Some(bytes) = channels.get(id.as_str())? else { continue };
        match read_channel(&id, bytes.value()) {
            Ok(channel) => found.push(channel),
            Err(error) => tracing::error!("{error}"),
        }
    }
    Ok(found)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the tables of a new file, checks those of an old one.
fn prepare(db: &Database) -> Result<Known, StoreError> {
    let prepared = (|| {
        let mut txn = db.begin_write()?;
        txn.set_two_phase_commit(true);
        let known = tables::prepare(&txn)?;
        txn.commit()?;
        Ok(known)
    })();
    prepared.map_err(|fault| StoreError(told(fault)))
}

/// Makes a new file under another name, and gives it its own only when it is whole and on disk: a crash on the way leaves
/// nothing that looks like a store. `hard_link` fails when somebody else was faster, which `rename` would not.
fn found(path: &Path) -> Result<(), String> {
    let parent = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let text = |e: std::io::Error| e.to_string();
    let missing: Vec<&Path> =
        parent.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    // Records name payers and hold signed transactions: nobody else on the machine reads them.
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(text)?;
    for dir in missing {
        sync_dir(dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))).map_err(text)?;
    }
    let mut draft: PathBuf = path.to_owned();
    draft.as_mut_os_string().push(format!(".{}", crate::ids::fresh("new")));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft).map_err(text)?;
    let made = builder().create_file(file).map_err(in_words).and_then(|db| prepare(&db).map(drop).map_err(|e| e.0));
    let named = made.and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(text),
    });
    let cleared = std::fs::remove_file(&draft).map_err(text);
    named.and(cleared).and_then(|()| sync_dir(parent).map_err(text))
}

/// A new name is on disk only when its directory is.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

fn in_words(error: DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            "another gate, or an audit, has it open; one file serves one gate".to_owned()
        }
        other => other.to_string(),
    }
}

fn told(fault: Fault) -> String {
    match fault {
        Fault::Here(error) => error.0,
        Fault::Disk(error) => error.to_string(),
    }
}

trait Snapshot {
    fn snapshot(&self) -> Result<ReadTransaction, Fault>;
}

impl<D: ReadableDatabase> Snapshot for D {
    fn snapshot(&self) -> Result<ReadTransaction, Fault> {
        Ok(self.begin_read()?)
    }
}

fn walk(txn: &ReadTransaction, together: &mut Together) -> Result<Audit, Fault> {
    let head = tables::head(txn)?;
    let shared = tables::is_part(&tables::meta(txn)?)?;
    let (journal, claims) = (txn.open_table(JOURNAL)?, txn.open_table(CLAIMS)?);
    let lines = journal.range(..HEAD)?.flat_map(|row| match row {
        Ok((last, row)) => lines::in_order(last.value(), row.value()).into_iter().map(|(_, line)| Ok(line)).collect(),
        Err(e) => vec![Err(e.to_string())],
    });
    if shared {
        return Ok(audit_part(lines, head, together));
    }
    let claims = claims.iter()?.map(|row| {
        let (key, bytes) = row.map_err(|e| e.to_string())?;
        read_claim(key.value(), bytes.value()).map_err(|e| e.0)
    });
    let channels = txn.open_table(CHANNELS)?;
    let channels = channels.iter()?.map(|row| {
        let (id, bytes) = row.map_err(|e| e.to_string())?;
        read_channel(id.value(), bytes.value()).map_err(|e| e.0)
    });
    Ok(audit(lines, head, claims, channels))
}
