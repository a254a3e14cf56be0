//! Time as data: pure code is given `now`, only the edges ask for it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// The wall clock. A clock set before 1970 reads as 0, which makes every deadline lie in the future: safe for
    /// payers.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }

    /// This instant plus `seconds`, saturating.
    pub fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// The day this instant lies in, counted from 1970-01-01 (UTC): the unit of daily caps.
    pub fn day(self) -> u64 {
        self.0 / 86_400
    }

    /// RFC 3339 in UTC with seconds, as MPP challenges and receipts carry it.
    pub fn rfc3339(self) -> String {
        i64::try_from(self.0)
            .ok()
            .and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok())
            .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
            .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
    }

    /// Strict RFC 3339, fractions dropped. `None` for anything else, and for times before 1970.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let t = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
        u64::try_from(t.unix_timestamp()).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_time_written_is_the_time_read() {
        let t = UnixSeconds(1_795_221_719);
        assert_eq!(UnixSeconds::parse_rfc3339(&t.rfc3339()), Some(t));
        assert_eq!(UnixSeconds::parse_rfc3339("2026-11-21 00:41:59"), None);
    }
}
