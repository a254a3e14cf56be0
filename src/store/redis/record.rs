//! A record as a stream, and the plain commands around it. Each is bounded in time; one whose answer is lost is asked again until
//! it is known what became of it, or the caller hears that nobody knows.
//!
//! Beside a record each version carries the lines that changes of it are to leave in journals and that may not be there yet: one
//! command writes both, so a gate that dies between the record and its journal has lost no line (`redis/left.rs`).

use super::link::Link;
use super::said;
use crate::clock::UnixSeconds;
use crate::store::StoreError;
use redis::aio::ConnectionManager;
use redis::streams::StreamRangeReply;
use redis::{Cmd, FromRedisValue, cmd};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::cmp::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Versions of a record that are kept: the newest, and the one before it for whoever looks.
const VERSIONS: u64 = 2;
/// The fields of an entry: the record, and as JSON what is [`Unwritten`], where there is any.
const RECORD: &str = "r";
const LINES: &str = "l";
/// How often a command whose answer was lost is sent again, and how long is waited between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(150);

/// What became of a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is the newest one.
    Done,
    /// It is not.
    Top {
        /// This is (`None`: there is no such record any more).
        version: Option<Version>,
        /// An answer was lost: it may have been, before somebody else put the next one.
        in_doubt: bool,
    },
}

/// A record as it was at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub revision: u64,
    pub text: String,
    /// Oldest first.
    pub unwritten: Vec<Unwritten>,
}

impl Version {
    /// Whether the lines of this change may still have to be written.
    pub fn owes(&self, name: &str) -> bool {
        self.unwritten.iter().any(|lines| lines.name == name)
    }
}

/// Lines of one change that may not be in a journal yet. The gate that owes them drops them with its next change of the record, once
/// they are; every other carries them on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unwritten {
    /// In whose journal they belong.
    pub gate: String,
    /// Of the change; no other has it.
    pub name: String,
    /// How many lines that journal had before: these come after them, if they are there.
    pub after: u64,
    /// As the journal has them. What a later version wrote is carried all the same.
    pub lines: Vec<Value>,
}

/// Records and sets in Redis.
pub(super) struct Streams {
    connection: ConnectionManager,
    link: Arc<Link>,
    /// Confirmed writes are gone. It stays so for the life of the process.
    ruined: OnceLock<StoreError>,
}

impl Streams {
    pub fn new(connection: ConnectionManager, link: Arc<Link>) -> Self {
        Self { connection, link, ruined: OnceLock::new() }
    }

    #[cfg(test)]
    pub fn connection(&self) -> ConnectionManager {
        self.connection.clone()
    }

    /// The newest version: its revision and text.
    pub async fn top(&self, key: &str) -> Result<Option<(u64, String)>, StoreError> {
        Ok(self.version(key).await?.map(|top| (top.revision, top.text)))
    }

    /// The newest version, whole.
    pub async fn version(&self, key: &str) -> Result<Option<Version>, StoreError> {
        let range: StreamRangeReply = self.ask(newest(key)).await?;
        read(&range).map_err(|why| StoreError(format!("{key} cannot be read: {why}")))
    }

    /// Puts version `revision` of something that leaves no lines.
    pub async fn put(&self, key: &str, revision: u64, text: &str) -> Result<Put, StoreError> {
        self.put_with(key, revision, text, |_| Vec::new()).await
    }

    /// Puts version `revision`. The first makes the record; every later one needs the record to be there, with the version just
    /// before it on top: it was read there. Of several writers of one version exactly one is told `Done`. `lines` says what is
    /// unwritten with it, from what was unwritten with the one before.
    pub async fn put_with(
        &self,
        key: &str,
        revision: u64,
        text: &str,
        lines: impl Fn(&[Unwritten]) -> Vec<Unwritten>,
    ) -> Result<Put, StoreError> {
        let mut last = StoreError("Redis refuses to write".to_owned());
        // Only what may have been taken without our hearing of it can be ours.
        let mut in_doubt = false;
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let below = self.version(key).await?;
            let at = below.as_ref().map_or(0, |top| top.revision);
            match at.checked_add(1).map(|next| next.cmp(&revision)) {
                Some(Ordering::Equal) => {}
                // Gone, and not made again by whoever remembers it.
                _ if below.is_none() => return Ok(Put::Top { version: None, in_doubt }),
                // What this version follows is gone: Redis has lost what it had confirmed.
                Some(Ordering::Less) => {
                    let why = format!("{key} is at {at} and was at {}", revision.saturating_sub(1));
                    return Err(self.ruin(&why));
                }
                Some(Ordering::Greater) | None => {
                    // An earlier try may have been taken although its answer was lost.
                    let ours = in_doubt && at == revision && below.as_ref().is_some_and(|top| top.text == text);
                    return Ok(if ours { Put::Done } else { Put::Top { version: below, in_doubt } });
                }
            }
            if !self.link.is_seen() {
                last = unseen();
                continue;
            }
            let unwritten = lines(below.as_ref().map_or(&[], |top| &top.unwritten));
            match added(key, revision, text, &unwritten)?.query_async(&mut self.connection.clone()).await {
                Ok(Some::<String>(_)) => return Ok(Put::Done),
                // The key is gone, and is not made again by whoever remembers it.
                Ok(None) => return Ok(Put::Top { version: None, in_doubt }),
                // Somebody else was faster: the next look says who.
                Err(error) if error.code() == Some("ERR") => {
                    last = StoreError(format!("Redis refuses to write: {}", said(&error)))
                }
                Err(error) => {
                    in_doubt = true;
                    last = self.link.lose(&error);
                }
            }
        }
        Err(last)
    }

    pub async fn add(&self, set: &str, member: &str) -> Result<(), StoreError> {
        self.ask(cmd("SADD").arg(set).arg(member).take()).await
    }

    pub async fn remove(&self, set: &str, member: &str) -> Result<(), StoreError> {
        self.ask(cmd("SREM").arg(set).arg(member).take()).await
    }

    pub async fn members(&self, set: &str) -> Result<Vec<String>, StoreError> {
        self.ask(cmd("SMEMBERS").arg(set).take()).await
    }

    pub async fn rank(&self, set: &str, member: &str, at: UnixSeconds) -> Result<(), StoreError> {
        self.ask(cmd("ZADD").arg(set).arg(at.0).arg(member).take()).await
    }

    pub async fn unrank(&self, set: &str, member: &str) -> Result<(), StoreError> {
        self.ask(cmd("ZREM").arg(set).arg(member).take()).await
    }

    /// Those ranked before `at`.
    pub async fn ranked_below(&self, set: &str, at: UnixSeconds) -> Result<Vec<String>, StoreError> {
        self.ask(cmd("ZRANGEBYSCORE").arg(set).arg("-inf").arg(format!("({}", at.0)).take()).await
    }

    pub async fn erase(&self, key: &str) -> Result<(), StoreError> {
        self.ask(cmd("DEL").arg(key).take()).await
    }

    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        self.ask(cmd("EXISTS").arg(key).take()).await
    }

    pub async fn keep(&self, key: &str, text: &str, seconds: u64) -> Result<(), StoreError> {
        self.ask(cmd("SET").arg(key).arg(text).arg("EX").arg(seconds).take()).await
    }

    pub async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.ask(cmd("GET").arg(key).take()).await
    }

    /// Puts one entry of a hash.
    pub async fn enter(&self, hash: &str, entry: &str, text: &str) -> Result<(), StoreError> {
        self.ask(cmd("HSET").arg(hash).arg(entry).arg(text).take()).await
    }

    /// All of them.
    pub async fn entries(&self, hash: &str) -> Result<Vec<(String, String)>, StoreError> {
        self.ask(cmd("HGETALL").arg(hash).take()).await
    }

    /// Drops some of them.
    pub async fn leave(&self, hash: &str, entries: &[String]) -> Result<(), StoreError> {
        if entries.is_empty() { Ok(()) } else { self.ask(cmd("HDEL").arg(hash).arg(entries).take()).await }
    }

    pub async fn expires(&self, key: &str, seconds: u64) -> Result<(), StoreError> {
        self.ask(cmd("EXPIRE").arg(key).arg(seconds).take()).await
    }

    /// Tells whoever listens. Nobody is promised to hear it.
    pub async fn publish(&self, channel: &str, text: &str) {
        let told: Result<u64, _> =
            cmd("PUBLISH").arg(channel).arg(text).query_async(&mut self.connection.clone()).await;
        if let Err(error) = told {
            drop(self.link.lose(&error));
            tracing::debug!(error = %said(&error), "a change was not announced");
        }
    }

    /// A command that may be sent twice.
    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, StoreError> {
        let mut last = StoreError("Redis did not answer".to_owned());
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            if !self.link.is_seen() {
                last = unseen();
                continue;
            }
            match command.query_async(&mut self.connection.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
                    last = self.link.lose(&error);
                }
                Err(error) => return Err(StoreError(format!("Redis refuses: {}", said(&error)))),
            }
        }
        Err(last)
    }

    /// Whether confirmed writes are gone: then nothing here can be believed, and a person has to look.
    pub fn intact(&self) -> Result<(), StoreError> {
        self.ruined.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn ruin(&self, why: &str) -> StoreError {
        let error =
            StoreError(format!("Redis lost writes it had confirmed ({why}): look at it, then start the gates again"));
        if self.ruined.set(error.clone()).is_ok() {
            tracing::error!(%error, "paid traffic is refused");
        }
        error
    }
}

fn unseen() -> StoreError {
    StoreError("Redis does not answer: it was not looked at since its connection was lost".to_owned())
}

fn newest(key: &str) -> Cmd {
    cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).take()
}

fn added(key: &str, revision: u64, text: &str, unwritten: &[Unwritten]) -> Result<Cmd, StoreError> {
    let mut command = cmd("XADD");
    command.arg(key);
    if revision > 1 {
        command.arg("NOMKSTREAM");
    }
    command.arg("MAXLEN").arg("=").arg(VERSIONS).arg(format!("{revision}-0")).arg(RECORD).arg(text);
    if !unwritten.is_empty() {
        command.arg(LINES).arg(super::json(&unwritten)?);
    }
    Ok(command)
}

fn read(range: &StreamRangeReply) -> Result<Option<Version>, String> {
    let Some(entry) = range.ids.first() else { return Ok(None) };
    let revision = entry.id.split_once('-').and_then(|(revision, _)| revision.parse().ok());
    let (Some(revision), Some(text)) = (revision, entry.get(RECORD)) else { return Ok(None) };
    let lines = entry.get::<String>(LINES).map_or(Ok(Vec::new()), |lines| serde_json::from_str(&lines));
    lines.map(|unwritten| Some(Version { revision, text, unwritten })).map_err(|e| e.to_string())
}
