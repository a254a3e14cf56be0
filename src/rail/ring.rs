//! The keys under which our offers come back: whoever shows an offer with our MAC shows our own words, and nothing is kept for it.

use crate::secret::Secret;
use arc_swap::ArcSwap;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::sync::Arc;

/// Shortest key that is accepted, in bytes: a guessed key mints challenges for any amount.
pub const MIN_KEY_BYTES: usize = 32;

/// Why a set of keys is not taken. Never says anything about the keys' content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// No key.
    Empty,
    /// A key is shorter than [`MIN_KEY_BYTES`]; its place in the list, from 0.
    TooShort(usize),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is no challenge key"),
            Self::TooShort(at) => write!(f, "challenge key {at} is shorter than {MIN_KEY_BYTES} bytes"),
        }
    }
}

/// The challenge keys: the first signs, all verify. Swapped while requests run; each request sees one set.
pub struct KeyRing(ArcSwap<Vec<Hmac<Sha256>>>);

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.0.load().len())
    }
}

impl KeyRing {
    /// A ring of these keys, bytes as given.
    pub fn new(keys: &[Secret]) -> Result<Self, RingError> {
        Ok(Self(ArcSwap::from_pointee(Self::prepare(keys)?)))
    }

    /// Replaces the keys, all or nothing: after an error the ring is as before. Offers signed by a key that is gone are no
    /// longer ours, so a retired key stays in the list as long as its offers live (5 minutes).
    pub fn swap(&self, keys: &[Secret]) -> Result<(), RingError> {
        self.0.store(Arc::new(Self::prepare(keys)?));
        Ok(())
    }

    fn prepare(keys: &[Secret]) -> Result<Vec<Hmac<Sha256>>, RingError> {
        if keys.is_empty() {
            return Err(RingError::Empty);
        }
        keys.iter()
            .enumerate()
            .map(|(at, key)| match Hmac::new_from_slice(key.expose()) {
                Ok(mac) if key.expose().len() >= MIN_KEY_BYTES => Ok(mac),
                _ => Err(RingError::TooShort(at)),
            })
            .collect()
    }

    /// The MAC of a text under the first key. What is signed has to say what it is for: the ring is one for all protocols.
    pub fn mac(&self, text: &[u8]) -> Option<[u8; 32]> {
        let keys = self.0.load();
        Some(keys.first()?.clone().chain_update(text).finalize().into_bytes().into())
    }

    /// Whether this is the whole MAC of the text under any key. It takes the same time wherever they differ.
    pub fn made(&self, text: &[u8], mac: &[u8]) -> bool {
        self.0.load().iter().fold(false, |known, key| key.clone().chain_update(text).verify_slice(mac).is_ok() | known)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::new(&keys.iter().map(|k| Secret::new(*k)).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_first_key_signs_and_every_key_verifies_until_it_leaves_the_ring() {
        let (old, new) = ("old key, old key, old key, old key", "new key, new key, new key, new key");
        let ring = ring(&[old]);
        let id = ring.mac(b"x").unwrap();
        ring.swap(&[Secret::new(new), Secret::new(old)]).unwrap();
        assert!(ring.made(b"x", &id), "its offers live on");
        assert_ne!(ring.mac(b"x").unwrap(), id, "new offers are signed by the new key");
        ring.swap(&[Secret::new(new)]).unwrap();
        assert!(!ring.made(b"x", &id), "a key that left is not ours");
    }

    #[test]
    fn a_bad_set_of_keys_changes_nothing_and_is_not_repeated() {
        let ring = ring(&[KEY]);
        let id = ring.mac(b"x").unwrap();
        for (keys, want) in
            [(vec![], RingError::Empty), (vec![Secret::new(KEY), Secret::new("canary")], RingError::TooShort(1))]
        {
            let error = ring.swap(&keys).unwrap_err();
            assert_eq!(error, want);
            assert!(!error.to_string().contains("canary"));
        }
        assert!(ring.made(b"x", &id));
        assert_eq!(format!("{ring:?}"), "KeyRing(1 keys)");
    }

    #[test]
    fn a_mac_is_all_of_it_or_nothing() {
        let ring = ring(&[KEY]);
        let mac = ring.mac(b"x").unwrap();
        for (text, shown, want, why) in [
            (&b"x"[..], &mac[..], true, "as made"),
            (b"y", &mac, false, "another text"),
            (b"x", &mac[..31], false, "cut"),
            (b"x", &[], false, "empty"),
            (b"x", &[mac, mac].concat(), false, "twice"),
        ] {
            assert_eq!(ring.made(text, shown), want, "{why}");
        }
    }
}
