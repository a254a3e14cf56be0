//! Channels in use by this gate: who may change one, and who hears of it.
//!
//! Every change of a channel goes through one task of its own while the channel is in use. Changes that wait together become one
//! swap of the record, so that many streams of one channel never race each other; another gate's change is noticed by the revision,
//! and the change is applied anew to what is there now. The rules themselves are in [`crate::channel`].

mod clerk;

pub(super) use self::clerk::orphan;
use self::clerk::{Clerk, Job, Manner};
use super::alone::Alone;
use super::proven::Proven;
use super::unjudged::Unjudged;
use crate::channel::{Channel, ChannelId, Denied, Effect, Op};
use crate::clock::UnixSeconds;
use crate::ids::{self, PublicModel};
use crate::journal::Entry;
use crate::money::Atoms;
use crate::store::{Store, StoreError, Swap, Write};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Changes that may wait for one channel; more is a flood.
const QUEUE: usize = 256;
/// How long a wallet may take to answer before another stream asks it too.
const ANSWER: Duration = Duration::from_secs(2);
/// How often a waiting stream looks by itself, where changes may come from another gate.
const POLL: Duration = Duration::from_millis(250);

/// One change and the lines it leaves in the journal when it is made.
#[derive(Clone, Debug)]
pub struct Step {
    /// The change.
    pub op: Op,
    /// Beside those that every such change leaves.
    pub journal: Vec<Entry>,
    /// Under which the record remembers it. Tried again under the same name, a change is made once.
    pub name: String,
}

impl Step {
    /// Under a name of its own.
    pub fn new(op: Op, journal: Vec<Entry>) -> Self {
        Self { op, journal, name: ids::change() }
    }
}

impl From<Op> for Step {
    fn from(op: Op) -> Self {
        Self::new(op, Vec::new())
    }
}

/// What came of some steps.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The record after them, durable.
    pub channel: Arc<Channel>,
    /// One for each step, in order. A step that was denied changed nothing; the others stand.
    pub effects: Vec<Result<Effect, Denied>>,
}

/// Why steps could not be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such channel.
    Unknown,
    /// The store cannot answer, or nobody knows whether it wrote.
    Store(StoreError),
    /// Other gates were faster, again and again.
    Contended,
}

/// Top-ups that landed and are answered from memory.
const LANDED: usize = 8;

/// Age from which the chain's word on a channel is no longer remembered for channels that nobody uses.
const MEMORY_SECONDS: u64 = 600;

/// Seconds of a clock that nobody sets: how long ago something was here, whatever becomes of the wall clock. It begins far from 0, which
/// is never.
fn ticks() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs().saturating_add(1 << 32)
}

/// What this process knows of a channel beside its record.
pub struct Live {
    seen: watch::Sender<Option<Arc<Channel>>>,
    /// When the chain was last asked about it, successfully, in [`ticks`].
    read_at: AtomicU64,
    /// When the chain was last asked at all, in [`ticks`].
    asked_chain_at: AtomicU64,
    asked: Mutex<Option<Asked>>,
    /// The second, and how many vouchers were shown in it that raised nothing, and that raised the last.
    pace: Mutex<(u64, [u32; 2])>,
    top_ups: Mutex<TopUps>,
}

/// A payer's top-ups, as far as they bound what the chain is asked for his sake.
#[derive(Default)]
struct TopUps {
    /// When one was begun or looked for that has not landed since, in [`ticks`].
    begun: u64,
    /// The last ones that landed, oldest first: their hashes as he signed them, and as they were mined.
    landed: VecDeque<(String, String)>,
}

impl TopUps {
    fn remember(&mut self, tx: &str, mined: &str) {
        self.landed.retain(|(signed, _)| signed != tx);
        if self.landed.len() >= LANDED {
            self.landed.pop_front();
        }
        self.landed.push_back((tx.to_owned(), mined.to_owned()));
    }
}

/// A voucher that was asked for.
struct Asked {
    /// What was accepted then. More since is the answer, be it less than was asked for.
    accepted: Atoms,
    /// By which stream.
    by: String,
    at: Instant,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            seen: watch::Sender::new(None),
            read_at: AtomicU64::new(0),
            asked_chain_at: AtomicU64::new(0),
            asked: Mutex::new(None),
            pace: Mutex::new((0, [0; 2])),
            top_ups: Mutex::default(),
        }
    }
}

impl Live {
    /// The newest record seen here.
    pub fn channel(&self) -> Option<Arc<Channel>> {
        self.seen.borrow().clone()
    }

    /// The record as the store has it, for whoever comes before it was changed here.
    fn was_found(&self, channel: &Arc<Channel>) {
        self.seen.send_if_modified(|seen| {
            let is_first = seen.is_none();
            seen.get_or_insert_with(|| Arc::clone(channel));
            is_first
        });
    }

    /// Whether the chain was read in the last `seconds`.
    pub fn is_fresh(&self, seconds: u64) -> bool {
        ticks() < self.read_at.load(Ordering::Relaxed).saturating_add(seconds)
    }

    /// The chain was read, at this tick.
    fn was_read(&self, at: u64) {
        self.read_at.fetch_max(at, Ordering::Relaxed);
    }

    /// Whether the chain may be asked about this channel now: at most once in five seconds, whoever wants it.
    pub fn may_ask_chain(&self) -> bool {
        let (now, last) = (ticks(), self.asked_chain_at.load(Ordering::Relaxed));
        now >= last.saturating_add(5)
            && self.asked_chain_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether `stream` is the one to ask the payer for a voucher above what is `accepted`. One question per channel is open at a time,
    /// until more is accepted; a stream that stands still asks itself when another's has had no answer for a while.
    pub fn may_ask_payer(&self, stream: &str, accepted: Atoms, stands_still: bool) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = asked.as_ref().filter(|open| open.accepted >= accepted) {
            let overdue = stands_still && open.at.elapsed() >= ANSWER;
            if open.by == stream || !overdue {
                return false;
            }
        }
        *asked = Some(Asked { accepted, by: stream.to_owned(), at: Instant::now() });
        true
    }

    /// A stream ends: its question is nobody's any more.
    pub fn stop_asking(&self, stream: &str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.as_ref().is_some_and(|open| open.by == stream) {
            *asked = None;
        }
    }

    /// Whether a top-up may be sent or looked for now: one that came to nothing, or had landed before, cost the chain's time and its
    /// payer nothing, so the next one waits five seconds.
    pub fn may_top_up(&self) -> bool {
        let now = ticks();
        let mut top_ups = self.top_ups.lock().unwrap_or_else(PoisonError::into_inner);
        if now < top_ups.begun.saturating_add(5) {
            return false;
        }
        top_ups.begun = now;
        true
    }

    /// A top-up landed: it cost its payer something, and the next one may be sent at once.
    pub fn topped_up(&self, tx: &str, mined: &str) {
        let mut top_ups = self.top_ups.lock().unwrap_or_else(PoisonError::into_inner);
        top_ups.begun = 0;
        top_ups.remember(tx, mined);
    }

    /// A top-up was looked for and had landed, whenever that was: it cost its payer nothing now, and the next one waits.
    pub fn had_topped_up(&self, tx: &str, mined: &str) {
        self.top_ups.lock().unwrap_or_else(PoisonError::into_inner).remember(tx, mined);
    }

    /// The hash on chain of a top-up that landed, while it is one of the last that are known here.
    pub fn landed(&self, tx: &str) -> Option<String> {
        let top_ups = self.top_ups.lock().unwrap_or_else(PoisonError::into_inner);
        top_ups.landed.iter().find(|(signed, _)| signed == tx).map(|(_, mined)| mined.clone())
    }

    /// Counts a voucher; `false` when there were `most` of its kind in this second.
    pub fn admit_voucher(&self, now: UnixSeconds, most: u32, raises: bool) -> bool {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.0 != now.0 {
            *pace = (now.0, [0; 2]);
        }
        let count = &mut pace.1[usize::from(raises)];
        *count = count.saturating_add(1);
        *count <= most
    }
}

struct Desk {
    queue: mpsc::Sender<Job>,
    live: Arc<Live>,
}

/// When the chain was read for channels, in [`ticks`].
#[derive(Default)]
struct Looks {
    at: HashMap<ChannelId, u64>,
    /// When those too old to be of use were last dropped.
    swept: u64,
}

impl Looks {
    fn note(&mut self, ids: &[ChannelId], now: u64) {
        // Not each time: of many channels each may be told of by itself.
        if now >= self.swept.saturating_add(MEMORY_SECONDS) {
            self.swept = now;
            self.at.retain(|_, at| at.saturating_add(MEMORY_SECONDS) > now);
        }
        self.at.extend(ids.iter().map(|id| (id.clone(), now)));
    }
}

/// The channels this gate works with.
pub struct Channels {
    /// Leases that a request of this process holds, or is about to. One in a record that is not here is nobody's: the answer to the
    /// write that made it was lost.
    held: Mutex<HashSet<String>>,
    store: Arc<dyn Store>,
    desks: Arc<Mutex<HashMap<ChannelId, Desk>>>,
    /// When the chain was read for channels, used here or not.
    looks: Mutex<Looks>,
    /// Output tokens that streams of a model bring in half a second, as the last one had it.
    windows: Mutex<HashMap<PublicModel, u64>>,
    pub(super) alone: Arc<Alone>,
    pub(super) unjudged: Unjudged,
    pub(super) proven: Proven,
}

impl Channels {
    /// Over one store. Where other gates share it, their changes are listened to from here on.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            held: Mutex::default(),
            store,
            desks: Arc::default(),
            looks: Mutex::default(),
            windows: Mutex::default(),
            alone: Arc::default(),
            unjudged: Unjudged::default(),
            proven: Proven::default(),
        }
    }

    /// A request is about to take this lease.
    pub fn hold(&self, lease: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(lease.to_owned());
    }

    /// It has ended, or was never taken.
    pub fn let_go(&self, lease: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(lease);
    }

    /// Whether a request of this process holds it.
    pub fn is_held(&self, lease: &str) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(lease)
    }

    /// A stream of `model` brings so many output tokens in half a second.
    pub fn streams_at(&self, model: &PublicModel, window: u64) {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner).insert(model.clone(), window);
    }

    /// How many a stream of `model` can be expected to bring, when one was seen.
    pub fn window_of(&self, model: &PublicModel) -> Option<u64> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner).get(model).copied()
    }

    /// Lines for the journal alone.
    pub async fn note(&self, journal: Vec<Entry>) -> Result<(), Trouble> {
        self.store.commit(Write { journal, ..Write::default() }).await.map(drop).map_err(Trouble::Store)
    }

    /// Listens to other gates, where there can be any. Run it in the background.
    pub async fn listen(self: Arc<Self>) {
        let Some(mut changes) = self.store.changes() else { return };
        loop {
            match changes.recv().await {
                Ok(id) => {
                    let known = self.desks.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id);
                    if known {
                        let own = Arc::clone(&self);
                        tokio::spawn(async move { own.refresh(&id).await });
                    }
                }
                // Missed ones are found by the poll.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Writes down a new channel. `Ok(Err(…))`: there is one with this id, and this is it.
    pub async fn create(
        &self,
        mut channel: Channel,
        now: UnixSeconds,
    ) -> Result<Result<Arc<Channel>, Arc<Channel>>, Trouble> {
        // So that it is known whose opening is there when the answer is lost.
        channel.recent.push(ids::nonce().into());
        let mut journal = vec![Entry::Channel {
            channel: channel.id.clone(),
            rail: channel.rail.clone(),
            payer: channel.descriptor.payer.clone(),
            deposit: channel.view.deposit,
            at: now,
        }];
        journal.extend(channel.highest().map(|v| Entry::Voucher {
            channel: channel.id.clone(),
            amount: v.amount,
            signature: v.signature.clone(),
            at: now,
        }));
        journal.extend(channel.payers_tx.as_ref().map(|intent| Entry::Intent {
            channel: channel.id.clone(),
            act: intent.act.clone(),
            tx: intent.tx.clone(),
            at: now,
        }));
        let channel = Arc::new(channel);
        let write = Write { channel: Some(Arc::clone(&channel)), journal, ..Write::default() };
        match self.store.commit(write).await.map_err(Trouble::Store)? {
            Swap::Done => Ok(Ok(channel)),
            Swap::Overtaken(other) => match *other {
                Some(other) => Ok(Err(Arc::new(other))),
                None => Err(Trouble::Contended),
            },
            Swap::Lost(_) => Err(Trouble::Contended),
        }
    }

    /// The record as it is now. Of a channel in use here that no other gate can have changed it is what is known here: what a request
    /// holds may not be in the store yet ([`Channels::later`]), so nobody asks that for it.
    pub async fn newest(&self, id: &ChannelId) -> Result<Option<Arc<Channel>>, StoreError> {
        let desks = || self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = self.store.changes().is_none();
        if alone && let Some(channel) = desks().get(id).and_then(|desk| desk.live.channel()) {
            return self.store.standing().map(|()| Some(channel));
        }
        let found = self.store.channel(id).await?.map(Arc::new);
        if alone && let (Some(channel), Some(desk)) = (&found, desks().get(id)) {
            desk.live.was_found(channel);
        }
        Ok(found)
    }

    /// The same, or what is known here of a channel in use while the store does not answer.
    pub async fn seen(&self, id: &ChannelId) -> Option<Arc<Channel>> {
        self.newest(id).await.unwrap_or_else(|_| {
            let desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
            desks.get(id).and_then(|desk| desk.live.channel())
        })
    }

    /// What is known here beside the record. While the answer is held, the channel stays known.
    pub fn live(&self, id: &ChannelId) -> Arc<Live> {
        Arc::clone(&self.desk(id).1)
    }

    /// The same of a channel whose record was found. Of one that nobody knows nothing is kept: anybody can sign for a name.
    pub fn live_of(&self, channel: &Arc<Channel>) -> Arc<Live> {
        let live = self.live(&channel.id);
        if self.store.changes().is_none() {
            live.was_found(channel);
        }
        live
    }

    /// The chain was read for these channels.
    pub fn were_read(&self, ids: &[ChannelId]) {
        let now = ticks();
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).note(ids, now);
        let desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().filter_map(|id| desks.get(id)).for_each(|desk| desk.live.was_read(now));
    }

    /// Makes some changes in one swap. Those that are denied leave the others standing.
    pub async fn apply(&self, id: &ChannelId, steps: Vec<Step>) -> Result<Applied, Trouble> {
        self.send(id, steps, Manner::default()).await
    }

    /// Makes one change: the record after it and what it did, or why not.
    pub async fn one(
        &self,
        id: &ChannelId,
        step: impl Into<Step>,
    ) -> Result<(Arc<Channel>, Result<Effect, Denied>), Trouble> {
        self.apply(id, vec![step.into()]).await.map(first)
    }

    /// The same. When it leases, and no other gate can change the record, it becomes durable with the next change of this channel:
    /// for a request whose every byte leaves after its lease was spent.
    pub async fn later(&self, id: &ChannelId, step: Step) -> Result<(Arc<Channel>, Result<Effect, Denied>), Trouble> {
        let manner = Manner { later: self.store.changes().is_none(), ..Manner::default() };
        self.send(id, vec![step], manner).await.map(first)
    }

    /// The record, once all of it is durable: before it is shown to its payer as what he may rely on.
    pub async fn written(&self, id: &ChannelId) -> Result<Arc<Channel>, Trouble> {
        self.apply(id, Vec::new()).await.map(|applied| applied.channel)
    }

    /// Reads the record again, so that those who wait hear of other gates' changes.
    pub async fn refresh(&self, id: &ChannelId) {
        // A store that cannot answer is tried again by whoever waits.
        let _ = self.send(id, Vec::new(), Manner { again: true, ..Manner::default() }).await;
    }

    /// Waits until the channel is as `wanted`, at most until `deadline`; the record then, or the last one seen.
    pub async fn wait(
        &self,
        live: &Live,
        id: &ChannelId,
        deadline: Instant,
        wanted: impl Fn(&Channel) -> bool,
    ) -> Result<Arc<Channel>, Option<Arc<Channel>>> {
        let mut seen = live.seen.subscribe();
        let shared = self.store.changes().is_some();
        loop {
            let now = seen.borrow_and_update().clone();
            match now {
                Some(channel) if wanted(&channel) => return Ok(channel),
                last if Instant::now() >= deadline => return Err(last),
                _ => {}
            }
            let poll = if shared { Instant::now() + POLL } else { deadline };
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return Err(live.channel()) },
                () = tokio::time::sleep_until(poll.min(deadline)) => if shared { self.refresh(id).await },
            }
        }
    }

    async fn send(&self, id: &ChannelId, mut steps: Vec<Step>, manner: Manner) -> Result<Applied, Trouble> {
        loop {
            let (queue, live) = self.desk(id);
            let (reply, answer) = oneshot::channel();
            match queue.send(Job { steps, manner, reply }).await {
                Ok(()) => {
                    let broke = || Trouble::Store(StoreError("a channel's own task broke off".to_owned()));
                    let answer = answer.await.unwrap_or_else(|_| Err(broke()));
                    drop(live);
                    return answer;
                }
                // Its task was just leaving; the next one takes over.
                Err(mpsc::error::SendError(job)) => steps = job.steps,
            }
        }
    }

    fn desk(&self, id: &ChannelId) -> (mpsc::Sender<Job>, Arc<Live>) {
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(desk) = desks.get(id).filter(|desk| !desk.queue.is_closed()) {
            return (desk.queue.clone(), Arc::clone(&desk.live));
        }
        let (queue, jobs) = mpsc::channel(QUEUE);
        let live = Arc::new(Live::default());
        if let Some(at) = self.looks.lock().unwrap_or_else(PoisonError::into_inner).at.get(id) {
            live.was_read(*at);
        }
        let clerk = Clerk::new(Arc::clone(&self.store), id.clone(), Arc::clone(&live));
        tokio::spawn(clerk.work(jobs, Arc::clone(&self.desks)));
        desks.insert(id.clone(), Desk { queue: queue.clone(), live: Arc::clone(&live) });
        (queue, live)
    }
}

/// Of the only step.
fn first(mut applied: Applied) -> (Arc<Channel>, Result<Effect, Denied>) {
    let effect = applied.effects.pop().unwrap_or(Ok(Effect::Nothing));
    (applied.channel, effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_long_ago_is_forgotten_without_a_look_at_all_of_it_each_time() {
        let mut looks = Looks::default();
        let id = |n: u64| ChannelId(n.to_string());
        // Ten channels in a second, each by itself.
        for n in 0..40_000 {
            looks.note(&[id(n)], 1_000 + n / 10);
            assert!(looks.at.len() < 10 * 2 * 600 + 10, "{} after {n}", looks.at.len());
        }
        assert_eq!(looks.at[&id(39_999)], 4_999);
        let (swept, most) = (looks.swept, looks.at.len());
        looks.note(&[id(1)], swept + MEMORY_SECONDS - 1);
        assert!(looks.at.len() > most, "not yet");
        looks.note(&[id(2)], swept + MEMORY_SECONDS);
        assert!(looks.at.len() < most, "now");
    }
}
