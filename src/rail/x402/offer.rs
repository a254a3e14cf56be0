//! What an offer carries in `extra.offer`: our own words about it, which v2 clients give back unread.
//!
//! An x402 payment names neither path nor body, so the offer says for whom it was made: everything that a buyer is promised is under
//! our MAC, and only what cannot be computed anew stands in the text. No two texts are alike: a payment is public once it is on
//! chain, and then the text is what its payer knows and an observer, who may ask the same at the same time, does not.

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
/// Layout, expiry, price, digest, salt; then the generation, then the MAC.
const FIXED: usize = 1 + 8 + 16 + 32 + 8;
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
    /// What makes it this one.
    pub salt: [u8; 8],
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
    bytes.extend(stamp.salt);
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
    let (digest, fixed) = fixed.split_first_chunk::<32>()?;
    Some(Stamp {
        generation: std::str::from_utf8(generation).ok()?.into(),
        expires: UnixSeconds(u64::from_be_bytes(*expires)),
        price: Usd(u128::from_be_bytes(*price)),
        digest: *digest,
        salt: *fixed.first_chunk::<8>()?,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::network::Network;
    use crate::rail::x402::sample::{accepted, entry};
    use crate::rail::x402::wire::Scheme;
    use crate::secret::Secret;
    use proptest::prelude::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn ring() -> KeyRing {
        KeyRing::new(&[Secret::new(KEY)]).unwrap()
    }

    fn stamp() -> Stamp {
        Stamp {
            generation: "0123456789abcdef".into(),
            expires: UnixSeconds(1_795_221_719),
            price: Usd::parse("0.0201").unwrap(),
            digest: [7; 32],
            salt: [9; 8],
        }
    }

    /// What an offer is bound to, in a form that a test may change.
    #[derive(Clone)]
    struct Sold {
        rail: RailId,
        route: RoutePath,
        model: PublicModel,
        entry: Entry,
    }

    impl Sold {
        fn bound(&self) -> Bound<'_> {
            Bound { rail: &self.rail, route: &self.route, model: &self.model, entry: &self.entry }
        }
    }

    fn sold() -> Sold {
        let mut entry = entry("eip155:8453", Scheme::Upto);
        entry.extra.remove(OFFER);
        Sold { rail: "base/upto".into(), route: "/v1/chat/completions".into(), model: "m".into(), entry }
    }

    #[test]
    fn an_offer_comes_back_as_it_was_made_and_is_short() {
        let sold = sold();
        let text = seal(&ring(), &stamp(), &sold.bound()).unwrap();
        assert_eq!(open(&ring(), &text, &sold.bound()), Some(stamp()));
        assert!(
            text.len() <= LONGEST && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
            "{text}"
        );
        assert_eq!(text.len(), 151);

        // Carried by the entry, and repeated by a client, it does not change what it is over.
        let mut offered = sold.clone();
        offered.entry.extra.insert(OFFER.into(), text.clone().into());
        let mut repeated = sold.clone();
        repeated.entry = sold.entry.repeated(&accepted(&offered.entry));
        assert_eq!(open(&ring(), &text, &repeated.bound()), Some(stamp()));
        assert_eq!(repeated.entry, offered.entry);
    }

    type Change = fn(&mut Sold);

    #[test]
    fn an_offer_for_anything_else_is_not_ours() {
        let text = seal(&ring(), &stamp(), &sold().bound()).unwrap();
        let table: &[(Change, &str)] = &[
            (|s| s.rail = "base/exact".into(), "another rail"),
            (|s| s.route = "/v1/completions".into(), "another route"),
            (|s| s.model = "n".into(), "another model"),
            (|s| s.entry.scheme = Scheme::Exact, "another scheme"),
            (|s| s.entry.network = Network::parse("eip155:137").unwrap(), "another network"),
            (|s| s.entry.amount.0 += 1, "one atom more"),
            (|s| s.entry.amount.0 -= 1, "one atom less"),
            (|s| s.entry.asset.push('0'), "another token"),
            (|s| s.entry.pay_to.push('0'), "another payee"),
            (|s| s.entry.max_timeout_seconds += 1, "a longer time"),
            (|s| drop(s.entry.extra.insert("name".into(), "x".into())), "another domain"),
            (
                |s| drop(s.entry.extra.insert("facilitatorAddress".into(), "0x00".into())),
                "a facilitator we never named",
            ),
            (|s| drop(s.entry.extra.insert("mine".into(), 1.into())), "a member more"),
            (|s| drop(s.entry.extra.remove("version")), "a member less"),
            (
                |s| {
                    s.rail = "base/upto/".into();
                    s.route = "v1/chat/completions".into();
                },
                "text moved from one field to the next",
            ),
        ];
        for (change, why) in table {
            let mut other = sold();
            change(&mut other);
            assert_eq!(open(&ring(), &text, &other.bound()), None, "{why}");
        }
        let stranger = KeyRing::new(&[Secret::new("another key, another key, another")]).unwrap();
        assert_eq!(open(&stranger, &text, &sold().bound()), None, "another gate's");
        let both = KeyRing::new(&[Secret::new("another key, another key, another"), Secret::new(KEY)]).unwrap();
        assert_eq!(open(&both, &text, &sold().bound()), Some(stamp()), "a key that was replaced still verifies");
    }

    #[test]
    fn a_generation_that_is_not_one_of_ours_is_not_sealed() {
        for (length, want) in [(0, true), (23, true), (24, false)] {
            let stamp = Stamp { generation: "g".repeat(length).into(), ..stamp() };
            let text = seal(&ring(), &stamp, &sold().bound());
            assert_eq!(text.is_some(), want, "{length}");
            assert_eq!(text.and_then(|text| open(&ring(), &text, &sold().bound())), want.then_some(stamp));
        }
    }

    #[test]
    fn a_mac_of_another_layout_is_not_an_offer() {
        let sold = sold();
        let mut bytes = vec![LAYOUT + 1];
        bytes.extend([0; 72]);
        bytes.extend(ring().mac(&under(&bytes, &sold.bound()).unwrap()).unwrap());
        assert_eq!(open(&ring(), &URL_SAFE_NO_PAD.encode(bytes), &sold.bound()), None);
        let mut short = vec![LAYOUT];
        short.extend(ring().mac(&under(&short, &sold.bound()).unwrap()).unwrap());
        assert_eq!(open(&ring(), &URL_SAFE_NO_PAD.encode(short), &sold.bound()), None, "too short to say anything");
    }

    proptest! {
        #[test]
        fn no_text_but_the_one_we_wrote_is_ours(at in 0usize..151, with in "[A-Za-z0-9_=-]", other in "\\PC{0,200}") {
            let (ring, sold) = (ring(), sold());
            prop_assert_eq!(open(&ring, &other, &sold.bound()), None);
            let text = seal(&ring, &stamp(), &sold.bound()).unwrap();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != text);
            prop_assert_eq!(open(&ring, &changed, &sold.bound()), None);
        }
    }
}
