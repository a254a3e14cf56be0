//! The store of a fleet: one Redis primary that every gate shares, and a journal file of this gate's own.
//!
//! A record is a stream whose entry id is its revision: `XADD key NOMKSTREAM … <rev>-0` is taken from exactly one of several
//! writers, because a stream takes no id at or below its top. No scripts, no transactions, one key in a command. What it
//! promises: a call that returned is on the primary's disk (`appendfsync always`, looked at before anything is trusted and every
//! minute), so gates and Redis may be killed and started again. It claims nothing about fail-over to a replica.
//!
//! A change is swapped in Redis first, then come the lines of the journal, the receipts among them and the totals, all before anybody
//! is answered: a swap that lost to another gate must leave no line. The record carries the lines of its newest changes, so whoever
//! was stopped after the swap, by a lost answer (`redis/doubt.rs`) or for good (`redis/left.rs`), has lost none of them.
//!
//! What a gate that dies has charged and not delivered stays charged, as on one machine: what is spent never shrinks, and the
//! chain may have been told of it. Its receipt says that it is not complete, and the books that nobody knows what was delivered.

mod doubt;
mod left;
mod link;
mod pen;
mod probe;
mod promised;
mod record;

use self::doubt::Doubts;
use self::link::Link;
use self::pen::Pen;
use self::probe::Probe;
use self::record::{Put, Streams};
use super::embedded::Embedded;
use super::{Store, StoreError, Swap, TALLY_DAYS, Whose, Write, changed_facts};
use crate::channel::{Channel, ChannelId};
use crate::claim::{Claim, ClaimKey};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::journal::Receipt;
use crate::money::Usd;
use crate::secret::Secret;
use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands as _, Client, ConnectionAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::timeout;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long receipts can be asked for.
const RECEIPT_SECONDS: u64 = 30 * 86_400;
/// How long a gate counts as running after its last sign of life, and how often it gives one.
const ALIVE_SECONDS: u64 = if cfg!(test) { 3 } else { 30 };
const SIGN_OF_LIFE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How often Redis is asked whether it is there, and how often whether it is safe.
const PING: Duration = Duration::from_secs(1);
/// How long is waited before a lost connection is looked after, so that a broken one is no busy loop.
const BREATH: Duration = Duration::from_millis(20);
const PROBE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// How long a subscription may say nothing before it is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the total of a day is kept.
const TALLY_SECONDS: u64 = (TALLY_DAYS + 1) * 86_400;
/// Tries to add to a total that other gates add to as well.
const ATTEMPTS: u32 = 8;

const OPEN_CLAIMS: &str = "pontage:claims:open";
/// Every claim by the moment from which on it may be forgotten.
const DUE_CLAIMS: &str = "pontage:claims:due";
const OPEN_CHANNELS: &str = "pontage:channels:open";
const FACTS: &str = "pontage:facts";
const CHANGES: &str = "pontage:changes";

fn claim_key(key: &str) -> String {
    format!("pontage:claim:{key}")
}

fn channel_key(id: &str) -> String {
    format!("pontage:channel:{id}")
}

fn payer_key(rail: &RailId, payer: &str) -> String {
    format!("pontage:payer:{rail}:{payer}")
}

fn receipt_key(id: &str) -> String {
    format!("pontage:receipt:{id}")
}

fn gate_key(gate: &str) -> String {
    format!("pontage:gate:{gate}")
}

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://…`, or `rediss://…` for TLS with the machine's own roots. It often holds a password.
    pub url: Secret,
    /// Serve although a crash of Redis may lose what it confirmed.
    pub accept_data_loss: bool,
}

/// The Redis store.
pub struct Redis {
    streams: Arc<Streams>,
    journal: Arc<Embedded>,
    pen: Pen,
    link: Arc<Link>,
    accept_data_loss: bool,
    changes: broadcast::Sender<ChannelId>,
    background: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        for task in &self.background {
            task.abort();
        }
    }
}

/// Reads the URL; connects to nothing. The error never repeats it.
pub fn client(url: &Secret) -> Result<Client, StoreError> {
    let client = url.expose_str().and_then(|url| Client::open(url.trim()).ok());
    let client = client.ok_or_else(|| StoreError("is no redis:// or rediss:// URL".to_owned()))?;
    if let ConnectionAddr::TcpTls { insecure: true, .. } = client.get_connection_info().addr() {
        return Err(StoreError("ends in #insecure: who is at the other end is always looked at".to_owned()));
    }
    Ok(client)
}

impl Redis {
    /// Connects, opens the journal file at `path`, and looks whether Redis is safe. The error is a sentence for operators: it
    /// cannot be reached, it would lose what it confirms, the journal cannot be opened. It never repeats the URL.
    pub async fn open(settings: &Settings, path: &Path) -> Result<Self, StoreError> {
        let journal = Arc::new(Embedded::open(path)?);
        journal.is_part_of_a_fleet().await?;
        let client = client(&settings.url)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER))
            .set_number_of_retries(1);
        let connected = ConnectionManager::new_with_config(client.clone(), config).await;
        let connection = connected.map_err(|e| StoreError(format!("Redis cannot be reached: {}", said(&e))))?;
        let probe = Probe::new(settings.accept_data_loss);
        let run = probe.look(&mut connection.clone()).await?;
        let link = Arc::new(Link::default());
        let (changes, _) = broadcast::channel(1024);
        let streams = Arc::new(Streams::new(connection.clone(), Arc::clone(&link)));
        let doubts = Arc::new(Doubts::new(Arc::clone(&streams), Arc::clone(&journal)));
        let pen = Pen { streams: Arc::clone(&streams), journal: Arc::clone(&journal), doubts: Arc::clone(&doubts) };
        left::by_this_gate(&pen).await?;
        let background = vec![
            tokio::spawn(watch(connection.clone(), probe, run, Arc::clone(&link))),
            tokio::spawn(live(connection, journal.gate().to_owned(), Arc::clone(&link))),
            tokio::spawn(listen(client, changes.clone())),
            tokio::spawn(Doubts::look(Arc::downgrade(&doubts), PING)),
            tokio::spawn(left::look(pen.clone(), Arc::clone(&link))),
        ];
        let accept_data_loss = settings.accept_data_loss;
        Ok(Self { streams, journal, pen, link, accept_data_loss, changes, background })
    }

    /// The connection, for tests that do what no gate does.
    #[cfg(test)]
    fn streams_connection(&self) -> ConnectionManager {
        self.streams.connection()
    }

    async fn records<T>(
        &self,
        set: &str,
        key: fn(&str) -> String,
        read: fn(&str, &str) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut names = self.streams.members(set).await?;
        names.sort();
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let Some((_, text)) = self.streams.top(&key(&name)).await? else { continue };
            match read(&name, &text) {
                Ok(record) => found.push(record),
                // Its payer is answered with this error; everyone else is served.
                Err(error) => tracing::error!("{error}"),
            }
        }
        Ok(found)
    }
}

fn tally_key(name: &str, day: u64) -> String {
    format!("pontage:tally:{name}:{day}")
}

async fn total_of(streams: &Streams, name: &str, day: u64) -> Result<Usd, StoreError> {
    let total = streams.top(&tally_key(name, day)).await?;
    let unreadable = || StoreError(format!("the total {name} cannot be read"));
    total.map_or(Ok(Usd::ZERO), |(_, text)| text.parse().map(Usd).map_err(|_| unreadable()))
}

fn json(record: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|e| StoreError(format!("a record cannot be written: {e}")))
}

fn read_claim(key: &str, text: &str) -> Result<Claim, StoreError> {
    super::embedded::read_claim(key, text.as_bytes())
}

fn read_channel(id: &str, text: &str) -> Result<Channel, StoreError> {
    super::embedded::read_channel(id, text.as_bytes())
}

/// An error of the client without anything that could hold a password: words of the system and of TLS are told, the server's are not.
fn said(error: &redis::RedisError) -> String {
    if error.is_io_error() { error.to_string() } else { error.category().to_owned() }
}

/// Keeps the standing true: is it there, is it the same as before, is it safe. Woken when a connection is lost, because nothing is
/// asked of what is at the other end of the next one before it was looked at.
async fn watch(mut connection: ConnectionManager, probe: Probe, mut run: String, link: Arc<Link>) {
    let mut looked = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PING) => {}
            () = link.lost() => tokio::time::sleep(BREATH).await,
        }
        let losses = link.losses();
        let was_well = link.standing().is_ok();
        let there = redis::cmd("PING")
            .query_async::<String>(&mut connection)
            .await
            .map_err(|e| StoreError(format!("Redis does not answer: {}", said(&e))));
        let due = looked.elapsed() >= PROBE || !was_well || !link.is_seen();
        let now = match there {
            Ok(_) if due => {
                looked = tokio::time::Instant::now();
                probe.look(&mut connection).await.map(|seen| {
                    if seen != run {
                        tracing::warn!("Redis was started again");
                        run = seen;
                    }
                })
            }
            Ok(_) => continue,
            Err(error) => {
                // What is asked from here on is asked of whoever answers next, which may be another Redis.
                link.went();
                Err(error)
            }
        };
        match &now {
            Err(error) if was_well => tracing::error!(%error, "paid traffic is refused"),
            Ok(()) if !was_well => tracing::info!("Redis is there again"),
            _ => {}
        }
        match now {
            Ok(()) => link.is_well_since(losses),
            Err(error) => link.fail(error),
        }
    }
}

/// Whether another gate runs, as far as can be known. Its sign of life is missing as well when Redis was away, or was not reached
/// from here for as long as a sign lasts: then every gate may live, and has a sign's time to say so.
async fn lives(streams: &Streams, link: &Link, gate: &str) -> Result<bool, StoreError> {
    let told = streams.exists(&gate_key(gate)).await?;
    Ok(told || link.whole_for() < Duration::from_secs(ALIVE_SECONDS))
}

/// Says that this gate lives.
async fn live(mut connection: ConnectionManager, gate: String, link: Arc<Link>) {
    loop {
        let mut pause = PING;
        if link.is_seen() {
            let sign: Result<(), _> = connection.set_ex(gate_key(&gate), 1, ALIVE_SECONDS).await;
            match sign {
                Ok(()) => pause = SIGN_OF_LIFE,
                Err(error) => drop(link.lose(&error)),
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Hears of changes that other gates made.
async fn listen(client: Client, changes: broadcast::Sender<ChannelId>) {
    loop {
        hear(&client, &changes).await;
        tokio::time::sleep(PING).await;
    }
}

/// The same until the subscription is lost. One whose other end went without a word says nothing, as one does where nothing changes:
/// it is asked.
async fn hear(client: &Client, changes: &broadcast::Sender<ChannelId>) -> Option<()> {
    use futures::StreamExt as _;
    let heard = timeout(ANSWER, client.get_async_pubsub()).await.ok()?.ok()?;
    let (mut asks, mut messages) = heard.split();
    timeout(ANSWER, asks.subscribe(CHANGES)).await.ok()?.ok()?;
    loop {
        match timeout(SILENCE, messages.next()).await {
            Ok(message) => {
                if let Ok(id) = message?.get_payload::<String>() {
                    // Nobody has to listen.
                    let _ = changes.send(ChannelId(id));
                }
            }
            Err(_) => drop(timeout(ANSWER, asks.ping::<redis::Value>()).await.ok()?.ok()?),
        }
    }
}

#[async_trait]
impl Store for Redis {
    async fn claim(&self, key: &ClaimKey) -> Result<Option<Claim>, StoreError> {
        let top = self.streams.top(&claim_key(&key.0)).await?;
        top.map(|(_, text)| read_claim(&key.0, &text)).transpose()
    }

    async fn commit(&self, write: Write) -> Result<Swap, StoreError> {
        let broke = |_| StoreError("a write broke off: nobody knows whether it was made".to_owned());
        tokio::spawn(self.pen.clone().commit(write)).await.map_err(broke)?
    }

    async fn open_claims(&self, now: UnixSeconds) -> Result<Vec<Claim>, StoreError> {
        let mut open = self.records(OPEN_CLAIMS, claim_key, read_claim).await?;
        open.retain(|claim| !claim.is_over(now));
        Ok(open)
    }

    async fn channel(&self, id: &ChannelId) -> Result<Option<Channel>, StoreError> {
        let top = self.streams.top(&channel_key(&id.0)).await?;
        top.map(|(_, text)| read_channel(&id.0, &text)).transpose()
    }

    async fn channels(&self) -> Result<Vec<Channel>, StoreError> {
        let mut open = self.records(OPEN_CHANNELS, channel_key, read_channel).await?;
        open.retain(|channel| !channel.is_over());
        Ok(open)
    }

    async fn channels_of(&self, rail: &RailId, payer: &str) -> Result<Vec<Channel>, StoreError> {
        let mut open = self.records(&payer_key(rail, payer), channel_key, read_channel).await?;
        open.retain(|channel| !channel.is_over());
        Ok(open)
    }

    fn changes(&self) -> Option<broadcast::Receiver<ChannelId>> {
        Some(self.changes.subscribe())
    }

    fn gate(&self) -> &str {
        self.journal.gate()
    }

    async fn alive(&self, gate: &str) -> Result<bool, StoreError> {
        if gate == self.gate() {
            return Ok(true);
        }
        lives(&self.streams, &self.link, gate).await
    }

    async fn promise(&self, payer: Whose<'_>, claim: (&ClaimKey, u64), amount: Usd) -> Result<Usd, StoreError> {
        let ((key, revision), now) = (claim, UnixSeconds::now());
        promised::enter(&self.streams, self.gate(), payer, (&key.0, revision), amount, now).await
    }

    async fn unpromise(&self, payer: Whose<'_>, key: &ClaimKey) -> Result<(), StoreError> {
        promised::leave(&self.streams, self.gate(), payer, &key.0).await
    }

    async fn forget(&self, now: UnixSeconds) -> Result<usize, StoreError> {
        let mut dropped = 0;
        for name in self.streams.ranked_below(DUE_CLAIMS, now).await? {
            let over = match self.streams.top(&claim_key(&name)).await? {
                None => true,
                Some((_, text)) => read_claim(&name, &text).is_ok_and(|claim| claim.is_over(now)),
            };
            if over {
                self.streams.erase(&claim_key(&name)).await?;
                self.streams.remove(OPEN_CLAIMS, &name).await?;
                self.streams.unrank(DUE_CLAIMS, &name).await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    async fn tally(&self, name: &str, day: u64) -> Result<Usd, StoreError> {
        total_of(&self.streams, name, day).await
    }

    async fn receipt(&self, id: &str) -> Result<Option<Receipt>, StoreError> {
        let kept = self.streams.get(&receipt_key(id)).await?;
        let unreadable = |_| StoreError(format!("receipt {id} cannot be read"));
        kept.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
    }

    async fn facts(&self, facts: &[(String, String)], accept: bool) -> Result<Vec<String>, StoreError> {
        for _ in 0..ATTEMPTS {
            let top = self.streams.top(FACTS).await?;
            let revision = top.as_ref().map_or(0, |(revision, _)| *revision);
            let unreadable = |_| StoreError("the facts of the last run cannot be read".to_owned());
            let mut known: Vec<(String, String)> =
                top.map_or(Ok(Vec::new()), |(_, text)| serde_json::from_str(&text).map_err(unreadable))?;
            let changed = changed_facts(&known, facts);
            if !accept && !changed.is_empty() {
                return Ok(changed);
            }
            known.retain(|(name, _)| !facts.iter().any(|(n, _)| n == name));
            known.extend(facts.iter().cloned());
            if let Put::Done = self.streams.put(FACTS, revision + 1, &json(&known)?).await? {
                return Ok(changed);
            }
        }
        Err(StoreError("the facts of this run are changed by too many at once".to_owned()))
    }

    fn standing(&self) -> Result<(), StoreError> {
        self.journal.standing()?;
        self.streams.intact()?;
        self.link.standing()
    }

    fn accepts_data_loss(&self) -> bool {
        self.accept_data_loss
    }
}

#[cfg(test)]
mod tests;
