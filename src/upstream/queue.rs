//! The short queue of a pool whose servers are all at their limit.
//!
//! First come, first served: whoever gives a place back hands it to the first in line who may use it (one that has tried a
//! server already does not go there again). A place that is handed to somebody who has left goes on to the next. It
//! outlives reloads with its pool, so nobody loses their turn.

use super::picked::Picked;
use super::pool::Pool;
use super::select::Affinity;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Who waits for a place.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiters: Mutex<VecDeque<Waiter>>,
    /// At least their number. Written before a joiner's last look at the servers, read after a place was given back: of the two
    /// one sees the other.
    waiting: AtomicUsize,
    tickets: AtomicU64,
    /// Requests that had to wait so far.
    pub waits: AtomicU64,
    /// Requests for which there was no room in it, or whose wait was too long.
    pub refused: AtomicU64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    pool: Arc<Pool>,
    key: Affinity,
    tried: Vec<usize>,
    hand: oneshot::Sender<Picked>,
}

/// What became of somebody who came to the line.
#[derive(Debug)]
pub(super) enum Joined {
    /// A place was free after all.
    Placed(Picked),
    /// In line.
    Waits(Place),
    /// The line is as long as it may be.
    Full,
}

/// A place in the line. Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    ticket: u64,
    hand: oneshot::Receiver<Picked>,
}

impl Place {
    /// A server, when it is one's turn; `None` when no server is left that could take the request.
    pub async fn turn(&mut self) -> Option<Picked> {
        (&mut self.hand).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiters = self.line.waiters();
        if let Some(at) = waiters.iter().position(|w| w.ticket == self.ticket) {
            let gone = waiters.remove(at);
            self.line.waiting.fetch_sub(1, Ordering::SeqCst);
            drop(waiters);
            drop(gone);
        }
    }
}

impl Line {
    /// How many wait.
    pub fn length(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Puts a request in line behind all others.
    pub fn join(self: &Arc<Self>, pool: &Arc<Pool>, key: Affinity, tried: &[usize]) -> Joined {
        let mut waiters = self.waiters();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let refused = if !waiters.is_empty() {
            None
        } else {
            // Under the lock and after the count: a place given back from here on comes to us.
            pool.pick(key, tried).map(Joined::Placed)
        };
        let refused = refused.or_else(|| {
            let full = waiters.len() >= pool.rules.queue.length;
            full.then(|| {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Joined::Full
            })
        });
        if let Some(outcome) = refused {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return outcome;
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (hand, receiver) = oneshot::channel();
        waiters.push_back(Waiter { ticket, pool: Arc::clone(pool), key, tried: tried.to_vec(), hand });
        drop(waiters);
        self.waits.fetch_add(1, Ordering::Relaxed);
        // Those before us may wait for servers that we do not wait for.
        self.move_up();
        Joined::Waits(Place { line: Arc::clone(self), ticket, hand: receiver })
    }

    /// A place may have become free: gives it to the first who can use it.
    pub fn move_up(&self) {
        if self.length() == 0 {
            return;
        }
        let mut over = Vec::new();
        let mut unwanted = Vec::new();
        let mut waiters = self.waiters();
        let mut at = 0;
        while let Some(waiter) = waiters.get(at) {
            let placed = waiter.pool.pick(waiter.key, &waiter.tried);
            let hopeless = placed.is_none() && !waiter.pool.could_place(&waiter.tried);
            if placed.is_none() && !hopeless {
                if waiter.tried.is_empty() {
                    break;
                }
                at += 1;
                continue;
            }
            let Some(waiter) = waiters.remove(at) else { break };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            match placed {
                Some(picked) => unwanted.extend(waiter.hand.send(picked).err()),
                None => over.push(waiter),
            }
        }
        // Dropping a place gives it back, which comes here again: not under the lock.
        drop(waiters);
        drop((over, unwanted));
    }

    fn waiters(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        // What is done under this lock either happens or does not.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
