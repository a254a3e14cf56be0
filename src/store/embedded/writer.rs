//! The one thread that writes. Whatever waits in its queue, up to [`BATCH`] operations, goes into one transaction and one
//! fsync (group commit). A lone write is as fast as the disk: only after a transaction that a crowd shared are the crowd's next
//! operations waited for, [`GATHER`] at most, because what a transaction costs beside its operations is most of it.

use super::known::Known;
use super::tables::{Book, Fault};
use crate::store::StoreError;
use redb::{Database, Durability, ReadableDatabase};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Most operations in one transaction.
const BATCH: usize = 64;
/// Operations in one transaction from which on there is a crowd.
const CROWD: usize = 4;
/// Longest wait for a crowd, in steps of [`STEP`].
const GATHER: Duration = Duration::from_millis(4);
const STEP: Duration = Duration::from_millis(1);
/// Operations that may wait; beyond it, callers wait to get in.
const QUEUE: usize = 1024;

/// The first failure of file or disk. It stays for the life of the process: after a failed fsync the page cache may hold
/// what the disk does not, so nothing that is read or written after it can be believed.
#[derive(Debug, Default)]
pub(super) struct Health(OnceLock<StoreError>);

impl Health {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.0.get().map_or(Ok(()), |e| Err(e.clone()))
    }

    pub(super) fn fail(&self, why: &str) -> StoreError {
        let error = StoreError(format!(
            "the store failed ({why}) and takes no more payments; check the disk, then restart the gate"
        ));
        if self.0.set(error.clone()).is_ok() {
            tracing::error!("{error}");
        }
        self.0.get().cloned().unwrap_or(error)
    }

    /// The fault as the caller sees it.
    pub(super) fn judge(&self, fault: Fault) -> StoreError {
        match fault {
            Fault::Here(error) => error,
            Fault::Disk(error) => self.fail(&error.to_string()),
        }
    }
}

/// Answers one caller once it is known whether the batch is durable.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// One operation: whether the disk held, and how to answer.
type Job = Box<dyn FnOnce(&mut Book<'_>) -> (Result<(), Fault>, Reply) + Send>;

/// The thread and the way to it.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    health: Arc<Health>,
}

impl Writer {
    pub(super) fn start(db: Arc<Database>, health: Arc<Health>, known: Known) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let theirs = health.clone();
        let thread = std::thread::Builder::new()
            .name("pontage-store".to_owned())
            .spawn(move || run(&db, jobs, &theirs, known))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), health })
    }

    /// Runs `work` in the next transaction and answers once that is durable. Work that reached the queue is done even when
    /// the caller goes away.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Book<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.health.check()?;
        let (reply, answer) = oneshot::channel::<Result<T, StoreError>>();
        let job: Job = Box::new(move |book| {
            let (disk, outcome) = match work(book) {
                Ok(done) => (Ok(()), Ok(done)),
                Err(Fault::Here(error)) => (Ok(()), Err(error)),
                Err(disk) => (Err(disk), Err(StoreError("not written".to_owned()))),
            };
            // A caller that went away has no use for the answer.
            (disk, Box::new(move |durable| drop(reply.send(durable.and(outcome)))))
        });
        let stopped = || self.health.fail("its writer stopped");
        let queue = self.queue.as_ref().ok_or_else(stopped)?;
        queue.send(job).await.map_err(|_| stopped())?;
        // A dropped reply means a failed batch, whose reason is in `health` already, or a writer that panicked.
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Writer {
    /// Finishes what is queued, so that the file is free when this returns.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Says so when the thread unwinds, before its callers see their answers dropped.
struct Watch<'a>(&'a Health);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("its writer panicked");
        }
    }
}

fn run(db: &Database, mut jobs: mpsc::Receiver<Job>, health: &Health, mut known: Known) {
    let _watch = Watch(health);
    let mut shared = 0;
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        fill(&mut batch, &mut jobs);
        if shared >= CROWD {
            gather(&mut batch, &mut jobs, shared);
        }
        shared = batch.len();
        // A failed disk is asked nothing more; dropping the jobs answers their callers.
        if health.check().is_ok() {
            commit(db, batch, health, &mut known);
        }
    }
}

fn fill(batch: &mut Vec<Job>, jobs: &mut mpsc::Receiver<Job>) {
    while batch.len() < BATCH
        && let Ok(job) = jobs.try_recv()
    {
        batch.push(job);
    }
}

/// Waits until there are half as many operations again as shared the last transaction, so that a crowd that grows is seen, or all of
/// the crowd are here and nobody comes any more, and [`GATHER`] at most.
fn gather(batch: &mut Vec<Job>, jobs: &mut mpsc::Receiver<Job>, shared: usize) {
    let began = Instant::now();
    while batch.len() < BATCH.min(shared + shared / 2) && began.elapsed() < GATHER && !jobs.is_closed() {
        std::thread::sleep(STEP);
        let before = batch.len();
        fill(batch, jobs);
        if batch.len() == before && before >= shared {
            return;
        }
    }
}

/// One batch, one transaction. `health` has its reason before any caller hears of a failure.
fn commit(db: &Database, batch: Vec<Job>, health: &Health, known: &mut Known) {
    let mut replies = Vec::with_capacity(batch.len());
    let durable = transact(db, known, |book| {
        for job in batch {
            let (disk, reply) = job(book);
            replies.push(reply);
            // Judged here, because the jobs behind it are answered by being dropped.
            disk.map_err(|fault| Fault::Here(health.judge(fault)))?;
        }
        Ok(())
    })
    .map_err(|fault| match fault {
        // Each operation keeps its own errors, so whatever arrives here is the batch's.
        Fault::Here(error) => health.fail(&error.0),
        disk => health.judge(disk),
    });
    for reply in replies {
        reply(durable.clone());
    }
}

/// One durable transaction around `work`: fsync, a second fsync for the commit slot (two-phase: a torn or forged slot is
/// never taken for a commit), and only then `Ok`.
pub(super) fn transact(
    db: &Database,
    known: &mut Known,
    work: impl FnOnce(&mut Book<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    // While somebody reads the last commit, what this one frees is freed by the next, on its way. Else it is freed right after
    // this one, in a transaction of its own that costs half as much again.
    let _last = db.begin_read()?;
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
    txn.set_two_phase_commit(true);
    let mut book = Book::open(&txn, known);
    work(&mut book)?;
    if book.close()? {
        txn.commit()?
    } else {
        txn.abort()?
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_waited_for_five_milliseconds_at_most_and_a_full_batch_not_at_all() {
        assert!(GATHER + STEP <= Duration::from_millis(5), "the last step may begin just before its end");
        let job = || -> Job { Box::new(|_| (Ok(()), Box::new(drop))) };
        // How many shared the last transaction, how many are here, how many come; how many go, and how long they may wait at least.
        for (shared, here, come, go, waits, why) in [
            (4, 1, 3, 4, STEP, "all of the crowd, and nobody else"),
            (4, 1, 9, 10, STEP, "it grew"),
            (64, 1, 0, 1, GATHER, "nobody comes"),
            (64, 1, 100, BATCH, STEP, "one batch, and the rest go with the next"),
            (64, BATCH, 100, BATCH, Duration::ZERO, "it is full"),
        ] {
            let (queue, mut jobs) = mpsc::channel(QUEUE);
            let mut batch: Vec<Job> = (0..here).map(|_| job()).collect();
            (0..come).for_each(|_| queue.try_send(job()).ok().unwrap());
            let began = Instant::now();
            gather(&mut batch, &mut jobs, shared);
            assert_eq!(batch.len(), go, "{why}");
            assert!(began.elapsed() >= waits, "{why}");
        }
    }
}
