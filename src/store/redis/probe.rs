//! Is what Redis confirms on its disk? Asked before anything is trusted, and again every minute.

use super::said;
use crate::store::StoreError;
use redis::aio::ConnectionManager;
use redis::{InfoDict, RedisResult, cmd};
use std::collections::HashMap;

/// What must be set, and to what.
const NEEDED: [(&str, &str); 4] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("no-appendfsync-on-rewrite", "no"),
    ("maxmemory-policy", "noeviction"),
];

/// Looks at the settings.
pub(super) struct Probe {
    accept_data_loss: bool,
}

impl Probe {
    pub fn new(accept_data_loss: bool) -> Self {
        Self { accept_data_loss }
    }

    /// The server's run id when it may be trusted; else what to change.
    pub async fn look(&self, connection: &mut ConnectionManager) -> Result<String, StoreError> {
        let lost = |e: &redis::RedisError| StoreError(format!("Redis does not answer: {}", said(e)));
        let info: InfoDict = cmd("INFO").query_async(connection).await.map_err(|e| lost(&e))?;
        let role: String = info.get("role").unwrap_or_default();
        if role != "master" {
            return Err(StoreError(format!("this Redis is a {role}: the store must be the primary itself")));
        }
        let unsafe_now = match settings(connection).await {
            Some(found) => missing(&found),
            None => self.by_waiting(connection).await,
        };
        match unsafe_now {
            None => {}
            Some(why) if self.accept_data_loss => {
                tracing::warn!(
                    why,
                    "a crash of Redis may lose payments it has confirmed: accept_data_loss says that this is meant"
                );
            }
            Some(why) => {
                return Err(StoreError(format!(
                    "a crash of Redis could lose payments it has confirmed: {why}; change that, or say store.accept_data_loss = true"
                )));
            }
        }
        Ok(info.get("run_id").unwrap_or_default())
    }

    /// Where nobody may read the settings (a managed Redis): does it confirm that a write is on its disk?
    async fn by_waiting(&self, connection: &mut ConnectionManager) -> Option<String> {
        let waited: RedisResult<(u64, u64)> = cmd("WAITAOF").arg(1).arg(0).arg(1_000).query_async(connection).await;
        match waited {
            Ok((1.., _)) => {
                Some("its settings cannot be read (CONFIG is forbidden), only that it writes a log".to_owned())
            }
            _ => Some("its settings cannot be read (CONFIG is forbidden)".to_owned()),
        }
    }
}

async fn settings(connection: &mut ConnectionManager) -> Option<HashMap<String, String>> {
    let mut found = HashMap::new();
    for (name, _) in NEEDED {
        let said: RedisResult<HashMap<String, String>> =
            cmd("CONFIG").arg("GET").arg(name).query_async(connection).await;
        found.extend(said.ok()?);
    }
    Some(found)
}

fn missing(found: &HashMap<String, String>) -> Option<String> {
    let wrong: Vec<String> = NEEDED
        .into_iter()
        .filter_map(|(name, wanted)| {
            let is = found.get(name).map_or("not known", String::as_str);
            (is != wanted).then(|| format!("{name} is {is} and must be {wanted}"))
        })
        .collect();
    (!wrong.is_empty()).then(|| wrong.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_changed_is_said_setting_by_setting() {
        let safe: HashMap<String, String> = NEEDED.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        assert_eq!(missing(&safe), None);
        for (name, wanted) in NEEDED {
            let mut found = safe.clone();
            found.insert(name.to_owned(), "other".to_owned());
            assert_eq!(missing(&found), Some(format!("{name} is other and must be {wanted}")));
            found.remove(name);
            assert_eq!(missing(&found), Some(format!("{name} is not known and must be {wanted}")));
        }
    }
}
