//! What the gates of a fleet count as promised by a payer: a hash for each, with an entry for each proof and gate.
//!
//! Each gate enters its part before it looks at the others', so that of two that are one too many together at least one sees it. An
//! entry names the revision its claim is to have: until that is written it counts for a minute, then as long as the claim is open.
//! Those that are over are dropped by whoever looks next. Whose a claim is, it says itself: a copy that another gate was shown does
//! not make it that gate's.

use super::record::Streams;
use super::{claim_key, read_claim};
use crate::claim::Standing;
use crate::clock::UnixSeconds;
use crate::money::Usd;
use crate::store::{StoreError, Whose};
use futures::future::try_join_all;
use std::collections::BTreeMap;

/// How long an entry waits for its claim.
const WAITS_SECONDS: u64 = 60;
/// After so long without a promise nothing is kept of a payer.
const KEPT_SECONDS: u64 = 30 * 86_400;

fn name(whose: Whose<'_>) -> String {
    format!("pontage:promised:{}:{}", whose.rail, whose.payer)
}

fn entry(gate: &str, key: &str) -> String {
    format!("{gate} {key}")
}

/// One entry: the name says `gate key`, the text `revision amount since`.
struct Promised {
    gate: String,
    revision: u64,
    amount: Usd,
    since: UnixSeconds,
}

impl Promised {
    /// With the key of its claim.
    fn read(name: &str, text: &str) -> Option<(String, Self)> {
        let (gate, key) = name.split_once(' ')?;
        let mut words = text.split(' ');
        let (revision, amount, since) = (words.next()?, words.next()?, words.next()?);
        let promised = Self {
            gate: gate.to_owned(),
            revision: revision.parse().ok()?,
            amount: Usd(amount.parse().ok()?),
            since: UnixSeconds(since.parse().ok()?),
        };
        Some((key.to_owned(), promised))
    }
}

/// Enters `amount` for `gate`, and adds up what others have entered for this payer and is open.
pub(super) async fn enter(
    streams: &Streams,
    gate: &str,
    whose: Whose<'_>,
    (key, revision): (&str, u64),
    amount: Usd,
    now: UnixSeconds,
) -> Result<Usd, StoreError> {
    let name = name(whose);
    streams.enter(&name, &entry(gate, key), &format!("{revision} {} {}", amount.0, now.0)).await?;
    let all = streams.entries(&name).await?;
    streams.expires(&name, KEPT_SECONDS).await?;
    let unreadable = || StoreError(format!("what {} has promised cannot be read", whose.payer));
    let mut by_key: BTreeMap<String, Vec<Promised>> = BTreeMap::new();
    for (name, text) in all {
        let (other, promised) = Promised::read(&name, &text).ok_or_else(unreadable)?;
        if other != key {
            by_key.entry(other).or_default().push(promised);
        }
    }
    // All at once: a payer may have hundreds of calls under way.
    let claims = try_join_all(by_key.keys().map(|key| async move { streams.top(&claim_key(key)).await })).await?;
    let (mut sum, mut over) = (Usd::ZERO, Vec::new());
    for ((key, entries), claim) in by_key.into_iter().zip(claims) {
        let claim = claim.map(|(_, text)| read_claim(&key, &text)).transpose()?;
        let mut elsewhere = Usd::ZERO;
        for promised in entries {
            let (open, ours) = match claim.as_ref().filter(|claim| claim.revision >= promised.revision) {
                Some(claim) => (
                    matches!(claim.standing, Standing::Promised { .. } | Standing::Taking { .. }),
                    claim.standing.holder().and_then(|by| by.split_once('/')).is_some_and(|(of, _)| of == gate),
                ),
                None => (now < promised.since.plus(WAITS_SECONDS), promised.gate == gate),
            };
            match (open, ours) {
                (false, _) => over.push(entry(&promised.gate, &key)),
                // What this gate counts itself it knows better.
                (true, true) => {}
                (true, false) => elsewhere = elsewhere.max(promised.amount),
            }
        }
        sum = sum.plus(elsewhere).ok_or_else(unreadable)?;
    }
    streams.leave(&name, &over).await?;
    Ok(sum)
}

/// Takes an entry back.
pub(super) async fn leave(streams: &Streams, gate: &str, whose: Whose<'_>, key: &str) -> Result<(), StoreError> {
    streams.leave(&name(whose), &[entry(gate, key)]).await
}
