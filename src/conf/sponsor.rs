//! `sponsor` of an `mpp-tempo` rail: who carries payers' transaction fees.

use super::seed;
use crate::money::Usd;
use crate::secret::{Secret, SecretRef};
use crate::written::Value;

/// What one sponsored transaction may cost at most: a daily budget below it would carry no fee at all.
const LEAST_SPONSORED: Usd = Usd(50_000_000_000_000_000);

/// `sponsor` of an `mpp-tempo` rail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SponsorConf {
    /// An account of ours.
    Key {
        /// Its key.
        key: SecretRef,
        /// The most that is spent on fees in a day (UTC).
        usd_per_day: Usd,
    },
    /// A service that carries fees.
    Relay {
        /// Its JSON-RPC address. A reference, because such addresses often carry a key.
        url: SecretRef,
    },
}

impl SponsorConf {
    /// Fetches the key (exactly 32 bytes, decoded) or the address. The error names the place, never what was found there.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Key { key, .. } => key.read().and_then(seed),
            Self::Relay { url } => url.read(),
        }
    }
}

pub(super) fn read(
    value: &Value<'_>,
    settle_key: Option<&SecretRef>,
    accept_push: Option<bool>,
) -> Option<SponsorConf> {
    let s = value.section()?;
    if let Some(relay) = s.take("relay") {
        if accept_push == Some(true) {
            relay.wrong("does not go with `accept_push`: one payment could be shown in two ways and bought with twice");
        }
        return relay.secret().map(|url| SponsorConf::Relay { url });
    }
    let key = s.need("key").and_then(|v| {
        let key = v.secret()?;
        if Some(&key) == settle_key {
            v.wrong("is `settle_key`: what was earned and what may be spent on fees are kept by two keys");
        }
        Some(key)
    });
    let usd_per_day = s.need("usd_per_day").and_then(|v| {
        v.amount(|text| match Usd::parse(text) {
            Ok(usd) if usd < LEAST_SPONSORED => Err("is less than one transaction may cost (0.05)".to_owned()),
            other => other.map_err(|e| e.to_string()),
        })
    });
    Some(SponsorConf::Key { key: key?, usd_per_day: usd_per_day? })
}
