//! Counts of texts that were counted before. Agents send the whole conversation with every call, so all but the newest message of a
//! prompt, and its instructions, were counted a moment ago.
//!
//! A text is known by 128 bits of keyed hash, whose keys are this process's own: nobody can make two texts share a count, and what was
//! said is not kept. What streams say comes a token or two at a time, and most of it is a few thousand words of the language: those are
//! known as they are, to each thread by itself ([`short`]).

use super::Vocabulary;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Shorter texts are counted as fast as they are looked up.
const LEAST_BYTES: usize = 128;
/// Texts in one of two generations: together they take less than half a megabyte.
const MOST: usize = 4096;

/// Longest text that is known as it is: with its length and vocabulary it fills two words.
const SHORT_BYTES: usize = 15;
/// As a power of two: so many places for them, 96 KB in a thread that counts.
const SHORT_PLACES_LOG2: u32 = 12;

/// What was counted in this generation and in the one before, which is forgotten when this one is full.
#[derive(Default)]
struct Known {
    young: HashMap<u128, u64>,
    old: HashMap<u128, u64>,
}

impl Known {
    fn get(&mut self, key: u128) -> Option<u64> {
        if let Some(tokens) = self.young.get(&key) {
            return Some(*tokens);
        }
        let tokens = *self.old.get(&key)?;
        self.put(key, tokens);
        Some(tokens)
    }

    fn put(&mut self, key: u128, tokens: u64) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, tokens);
    }
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// As [`Vocabulary::of`], of a text that may come again.
pub(super) fn count(vocabulary: Vocabulary, text: &str, most: u64) -> Option<u64> {
    if vocabulary == Vocabulary::Bytes || text.len() < LEAST_BYTES {
        return vocabulary.of(text, most);
    }
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = key(vocabulary, text);
    let remembered = known().get(key);
    let tokens = match remembered {
        Some(tokens) => tokens,
        None => {
            let tokens = vocabulary.of(text, most)?;
            known().put(key, tokens);
            tokens
        }
    };
    (tokens <= most).then_some(tokens)
}

/// The tokens of a piece of a stream, as [`Vocabulary::of`] counts them.
pub(super) fn short(vocabulary: Vocabulary, text: &str) -> u64 {
    thread_local! {
        /// Each text in the one place that it may have, with its count. No text is zero: its last byte says its vocabulary.
        static SHORT: RefCell<Vec<([u64; 2], u64)>> = RefCell::new(vec![([0; 2], 0); 1 << SHORT_PLACES_LOG2]);
    }
    let counted = || vocabulary.of(text, u64::MAX).unwrap_or(u64::MAX);
    let Some(name) = name(vocabulary, text) else { return counted() };
    let mixed = (name[0] ^ name[1].rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let place = usize::try_from(mixed >> (u64::BITS - SHORT_PLACES_LOG2)).unwrap_or(0);
    let known = SHORT.with_borrow(|all| all.get(place).filter(|(known, _)| *known == name).map(|(_, tokens)| *tokens));
    known.unwrap_or_else(|| {
        let tokens = counted();
        SHORT.with_borrow_mut(|all| all.get_mut(place).map(|known| *known = (name, tokens)));
        tokens
    })
}

/// A short text as two words, which no other text of any vocabulary has.
fn name(vocabulary: Vocabulary, text: &str) -> Option<[u64; 2]> {
    if text.len() > SHORT_BYTES {
        return None;
    }
    let mut bytes = [0; SHORT_BYTES + 1];
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    let vocabulary = match vocabulary {
        Vocabulary::O200k => 1,
        Vocabulary::Cl100k => 2,
        Vocabulary::Bytes => 3,
    };
    let [.., last] = &mut bytes;
    *last = u8::try_from(text.len()).ok()? << 2 | vocabulary;
    let name = u128::from_le_bytes(bytes);
    Some([name as u64, (name >> 64) as u64])
}

fn key(vocabulary: Vocabulary, text: &str) -> u128 {
    static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
    let [high, low] = &*KEYS;
    u128::from(high.hash_one((vocabulary, text))) << 64 | u128::from(low.hash_one((vocabulary, text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_text_has_as_many_tokens_the_second_time_and_no_more_than_the_limit_lets() {
        let text = "A toll is paid to cross the bridge. ".repeat(9);
        for vocabulary in [Vocabulary::O200k, Vocabulary::Cl100k, Vocabulary::Bytes] {
            let tokens = vocabulary.of(&text, u64::MAX).unwrap();
            for (most, want, why) in [
                (tokens - 1, None, "not known yet, and too many"),
                (tokens, Some(tokens), "counted"),
                (tokens, Some(tokens), "known"),
                (tokens - 1, None, "known, and too many all the same"),
            ] {
                assert_eq!(count(vocabulary, &text, most), want, "{vocabulary:?}: {why}");
            }
        }
        let other = text.replace("toll", "fee");
        assert_eq!(count(Vocabulary::O200k, &other, u64::MAX), Vocabulary::O200k.of(&other, u64::MAX));
    }

    #[test]
    fn a_piece_of_a_stream_has_as_many_tokens_whenever_it_comes_and_whatever_came_between() {
        let texts: Vec<String> = (0..20_000)
            .map(|n| match n % 4 {
                0 => format!(" word{}", n % 997),
                1 => "é✓".repeat(n % 4),
                2 => "a\0".repeat(n % 7),
                _ => format!("{n}").repeat(n % 5),
            })
            .collect();
        for vocabulary in [Vocabulary::O200k, Vocabulary::Cl100k, Vocabulary::Bytes] {
            for text in texts.iter().chain(&texts) {
                assert_eq!(short(vocabulary, text), vocabulary.of(text, u64::MAX).unwrap(), "{vocabulary:?} {text:?}");
            }
        }
        let named = |text: &str| name(Vocabulary::O200k, text).is_some();
        assert!(named("") && !named("fifteen bytes, !") && named("fifteen bytes,!"), "what fits two words");
    }

    #[test]
    fn no_more_is_remembered_than_two_generations_and_what_is_used_stays() {
        let mut known = Known::default();
        known.put(0, 7);
        for key in 1..=u128::try_from(3 * MOST).unwrap() {
            known.put(key, 1);
            assert_eq!(known.get(0), Some(7), "asked for all the time");
            assert!(known.young.len() <= MOST && known.old.len() <= MOST);
        }
        assert_eq!(known.get(1), None, "forgotten");
    }
}
