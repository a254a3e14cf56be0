//! What an offer carries in `extra.offer`: our own words about it, which v2 clients give back unread.
//!
//! An x402 payment names neither path nor body, so the offer says for whom it was made: everything that a buyer is promised is under
//! our MAC, and only what cannot be computed anew stands in the text. Offers made in the same second for the same request are
//! alike; payments are not, because the payer's nonce is in them.

use super::wire::{Entry, OFFER};
use crate::clock::UnixSeconds;
use crate::ids::{Generation, PublicModel, RailId, RoutePath};
use crate::money::Usd;
use crate::rail::ring::KeyRing;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::BTreeMap;

/// Longest text that is written, in characters: it stands once in every entry of a header that has 6 kB.
pub const LONGEST: usize = 160;

/// Begins what the MAC is over, so that nothing else under the same keys is an offer: a length in 8 bytes begins with a zero, and there is none in
/// a challenge of MPP.
const PURPOSE: &[u8] = b"pontage x402 offer";
/// The layout of the text.
const LAYOUT: u8 = 1;
/// Layout, expiry, price, digest; then the generation, then the MAC.
const FIXED: usize = 1 + 8 + 16 + 32;
const MAC: usize = 32;

/// What the text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The rules that made the offer.
    pub generation: Generation,
    /// When it ends.
    pub expires: UnixSeconds,
    /// The price before rounding.
    pub price: Usd,
    /// SHA-256 of the body it was made for.
    pub digest: [u8; 32],
}

/// What the offer is bound to and does not repeat.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// The rail.
    pub rail: &'a RailId,
    /// The route.
    pub route: &'a RoutePath,
    /// The model.
    pub model: &'a PublicModel,
    /// The entry as offered; an `extra.offer` in it does not count.
    pub entry: &'a Entry,
}

/// The text for `extra.offer`: at most [`LONGEST`] characters of the URL-safe alphabet. `None` for a generation that is not one of
/// ours.
pub fn seal(ring: &KeyRing, stamp: &Stamp, bound: &Bound<'_>) -> Option<String> {
    let mut bytes = vec![LAYOUT];
    bytes.extend(stamp.expires.0.to_be_bytes());
    bytes.extend(stamp.price.0.to_be_bytes());
    bytes.extend(stamp.digest);
    bytes.extend(stamp.generation.as_str().as_bytes());
    bytes.extend(ring.mac(&under(&bytes, bound)?)?);
    Some(URL_SAFE_NO_PAD.encode(bytes)).filter(|text| text.len() <= LONGEST)
}

/// Reads it back, if one of our keys made it for exactly this. Whether it has expired is for the caller to say.
pub fn open(ring: &KeyRing, text: &str, bound: &Bound<'_>) -> Option<Stamp> {
    let bytes = URL_SAFE_NO_PAD.decode(Some(text).filter(|text| text.len() <= LONGEST)?).ok()?;
    let (said, mac) = bytes.split_last_chunk::<MAC>()?;
    if said.first() != Some(&LAYOUT) || !ring.made(&under(said, bound)?, mac) {
        return None;
    }
    let (fixed, generation) = said.split_at_checked(FIXED)?;
    let (_, fixed) = fixed.split_first()?;
    let (expires, fixed) = fixed.split_first_chunk::<8>()?;
    let (price, fixed) = fixed.split_first_chunk::<16>()?;
    Some(Stamp {
        generation: std::str::from_utf8(generation).ok()?.into(),
        expires: UnixSeconds(u64::from_be_bytes(*expires)),
        price: Usd(u128::from_be_bytes(*price)),
        digest: *fixed.first_chunk::<32>()?,
    })
}

/// What the MAC is over: every field behind its length, so that text cannot move from one to the next.
fn under(said: &[u8], bound: &Bound<'_>) -> Option<Vec<u8>> {
    let entry = bound.entry;
    let extra: BTreeMap<_, _> = entry.extra.iter().filter(|(name, _)| *name != OFFER).collect();
    let extra = serde_json::to_string(&extra).ok()?;
    let scheme = serde_json::to_string(&entry.scheme).ok()?;
    let (amount, seconds) = (entry.amount.to_string(), entry.max_timeout_seconds.to_string());
    let fields: [&[u8]; 12] = [
        PURPOSE,
        said,
        bound.rail.as_str().as_bytes(),
        bound.route.as_str().as_bytes(),
        bound.model.as_str().as_bytes(),
        scheme.as_bytes(),
        entry.network.id.as_bytes(),
        amount.as_bytes(),
        entry.asset.as_bytes(),
        entry.pay_to.as_bytes(),
        seconds.as_bytes(),
        extra.as_bytes(),
    ];
    let mut text = Vec::with_capacity(768);
    for field in fields {
        text.extend(u64::try_from(field.len()).ok()?.to_be_bytes());
        text.extend(field);
    }
    Some(text)
}
