//! Counts of texts that were counted before. Agents send the whole conversation with every call, so all but the newest message of a
//! prompt, and its instructions, were counted a moment ago.
//!
//! A text is known by 128 bits of keyed hash, whose keys are this process's own: nobody can make two texts share a count, and what was
//! said is not kept.

use super::Vocabulary;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Shorter texts are counted as fast as they are looked up.
const LEAST_BYTES: usize = 128;
/// Texts in one of two generations: together they take less than half a megabyte.
const MOST: usize = 4096;

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
