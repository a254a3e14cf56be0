//! A record as a stream, and the plain commands around it. Each is bounded in time; one whose answer is lost is asked again until
//! it is known what became of it, or the caller hears that nobody knows.

use super::said;
use crate::clock::UnixSeconds;
use crate::store::StoreError;
use arc_swap::ArcSwap;
use redis::aio::ConnectionManager;
use redis::streams::StreamRangeReply;
use redis::{Cmd, FromRedisValue, cmd, pipe};
use std::sync::Arc;
use std::time::Duration;

/// Versions of a record that are kept: the newest, and the one before it for whoever looks.
const VERSIONS: u64 = 2;
/// The field of an entry.
const FIELD: &str = "r";
/// How often a command whose answer was lost is sent again, and how long is waited between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(150);

/// What became of a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is the newest one.
    Done,
    /// It is not: this is (`None`: there is no such record any more).
    Top(Option<String>),
}

/// Records and sets in Redis.
pub(super) struct Streams {
    connection: ConnectionManager,
    standing: Arc<ArcSwap<Result<(), StoreError>>>,
}

impl Streams {
    pub fn new(connection: ConnectionManager, standing: Arc<ArcSwap<Result<(), StoreError>>>) -> Self {
        Self { connection, standing }
    }

    #[cfg(test)]
    pub fn connection(&self) -> ConnectionManager {
        self.connection.clone()
    }

    /// The newest version: its revision and text.
    pub async fn top(&self, key: &str) -> Result<Option<(u64, String)>, StoreError> {
        let range: StreamRangeReply = self.ask(newest(key)).await?;
        Ok(read(&range))
    }

    /// Puts version `revision`. The first makes the record; every later one needs the record to be there, with the version just
    /// before it on top: it was read there. Of several writers of one version exactly one is told `Done`.
    pub async fn put(&self, key: &str, revision: u64, text: &str) -> Result<Put, StoreError> {
        let mut last = StoreError("Redis did not answer".to_owned());
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            // Both in one go: the answer to the first says what the second was put on.
            let mut both = pipe();
            both.add_command(newest(key)).add_command(added(key, revision, text)).ignore_errors();
            let answers: Result<(redis::RedisResult<StreamRangeReply>, redis::RedisResult<Option<String>>), _> =
                both.query_async(&mut self.connection.clone()).await;
            let (before, put) = match answers {
                Ok(answers) => answers,
                Err(error) => {
                    last = self.lost(&error);
                    continue;
                }
            };
            let before = read(&before.map_err(|e| StoreError(format!("Redis refuses to read: {}", said(&e))))?);
            match put {
                Ok(Some(_)) => {
                    let below = before.map_or(0, |(top, _)| top);
                    if below.checked_add(1) == Some(revision) {
                        return Ok(Put::Done);
                    }
                    // What this version follows is gone: Redis has lost what it had confirmed.
                    let why = format!("{key} was at {below} and should have been at {}", revision.saturating_sub(1));
                    return Err(self.fail(&format!(
                        "Redis lost writes it had confirmed ({why}): look at it, then start the gates again"
                    )));
                }
                // The key is gone, and is not made again by whoever remembers it.
                Ok(None) => return Ok(Put::Top(None)),
                // The id is at or below the top.
                Err(error) if error.code() == Some("ERR") => {
                    let top = self.top(key).await?;
                    // An earlier try may have been taken although its answer was lost.
                    let ours = attempt > 0 && top.as_ref().is_some_and(|(top, kept)| *top == revision && kept == text);
                    return Ok(if ours { Put::Done } else { Put::Top(top.map(|(_, kept)| kept)) });
                }
                Err(error) => {
                    last = self.lost(&error);
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

    pub async fn expire(&self, key: &str, at: UnixSeconds) -> Result<(), StoreError> {
        self.ask(cmd("EXPIREAT").arg(key).arg(at.0).take()).await
    }

    pub async fn persist(&self, key: &str) -> Result<(), StoreError> {
        self.ask(cmd("PERSIST").arg(key).take()).await
    }

    pub async fn drop(&self, key: &str) -> Result<(), StoreError> {
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

    /// Tells whoever listens. Nobody is promised to hear it.
    pub async fn publish(&self, channel: &str, text: &str) {
        let told: Result<u64, _> =
            cmd("PUBLISH").arg(channel).arg(text).query_async(&mut self.connection.clone()).await;
        if let Err(error) = told {
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
            match command.query_async(&mut self.connection.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
                    last = self.lost(&error);
                }
                Err(error) => return Err(StoreError(format!("Redis refuses: {}", said(&error)))),
            }
        }
        Err(last)
    }

    /// It did not answer. Until it is heard of again nothing is offered; the watch looks every second.
    fn lost(&self, error: &redis::RedisError) -> StoreError {
        self.fail(&format!("Redis does not answer: {}", said(error)))
    }

    fn fail(&self, why: &str) -> StoreError {
        let error = StoreError(why.to_owned());
        if self.standing.load().is_ok() {
            tracing::error!(%error, "paid traffic is refused");
        }
        self.standing.store(Arc::new(Err(error.clone())));
        error
    }
}

fn newest(key: &str) -> Cmd {
    cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).take()
}

fn added(key: &str, revision: u64, text: &str) -> Cmd {
    let mut command = cmd("XADD");
    command.arg(key);
    if revision > 1 {
        command.arg("NOMKSTREAM");
    }
    command.arg("MAXLEN").arg("=").arg(VERSIONS).arg(format!("{revision}-0")).arg(FIELD).arg(text);
    command
}

fn read(range: &StreamRangeReply) -> Option<(u64, String)> {
    let entry = range.ids.first()?;
    let revision = entry.id.split_once('-')?.0.parse().ok()?;
    Some((revision, entry.get(FIELD)?))
}
