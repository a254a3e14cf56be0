//! How many tokens a prompt has: exact where the vocabulary is known, else its bytes as a bound.
//!
//! Counts price a request before it is served; what is charged by usage is the backend's own figure, and where there is none a count
//! by the vocabulary, or [`crate::usage::about`]. A vocabulary takes 33 to 67 MB once it is loaded, so it is loaded by the first prompt
//! that needs it and by nothing else. Counting costs by the token, some 4 million a second on a core: prose and code of four bytes a
//! token go at 14 MB/s and more, Chinese at 70, base64 and random letters, of a byte and a half to two, at 5 to 7
//! (`benches/request.rs`). A hostile megabyte is 0.2 s, off the async threads, and less with the limit of [`count_within`].

mod known;

use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens a chat template adds to each message (role, separators), to each name, and to prime the reply.
const PER_MESSAGE: u64 = 3;
const PER_NAME: u64 = 1;
const PRIMING: u64 = 3;

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vocabulary {
    /// `o200k_base`: GPT-4o and later, and GPT-OSS (its `harmony` differs in special tokens only).
    O200k,
    /// `cl100k_base`: GPT-3.5 and GPT-4.
    Cl100k,
    /// UTF-8 bytes of the text. No byte-level BPE makes more tokens of a text than it has bytes, so this is a bound for any
    /// model whose vocabulary is not known.
    Bytes,
}

static O200K_LOADED: AtomicBool = AtomicBool::new(false);
static CL100K_LOADED: AtomicBool = AtomicBool::new(false);

impl Vocabulary {
    /// Every name [`Vocabulary::parse`] knows.
    pub const NAMES: [&'static str; 3] = ["o200k", "cl100k", "bytes"];

    /// Reads the name rules give it. Loads nothing.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "o200k" => Some(Self::O200k),
            "cl100k" => Some(Self::Cl100k),
            "bytes" => Some(Self::Bytes),
            _ => None,
        }
    }

    /// Its name in rules.
    pub const fn name(self) -> &'static str {
        match self {
            Self::O200k => "o200k",
            Self::Cl100k => "cl100k",
            Self::Bytes => "bytes",
        }
    }

    /// Counts the tokens of one text, as a stream needs it for every delta; `None` for [`Vocabulary::Bytes`], by which a text
    /// has as many as it has bytes. The first use loads the vocabulary.
    pub fn counter(self) -> Option<fn(&str) -> u64> {
        let count: fn(&str) -> u64 = match self {
            Self::Bytes => return None,
            Self::O200k => |text| known::short(Self::O200k, text),
            Self::Cl100k => |text| known::short(Self::Cl100k, text),
        };
        Some(count)
    }

    /// Tokens of one text, or `None` above `most`; reads little further than it must.
    fn of(self, text: &str, most: u64) -> Option<u64> {
        let (tokenizer, loaded) = match self {
            Self::Bytes => return Some(text.len() as u64).filter(|bytes| *bytes <= most),
            Self::O200k => (bpe_openai::o200k_base(), &O200K_LOADED),
            Self::Cl100k => (bpe_openai::cl100k_base(), &CL100K_LOADED),
        };
        loaded.store(true, Ordering::Relaxed);
        // It counts in the machine's word; a limit past that is no limit.
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let counted = tokenizer.count_till_limit(&tokenizer.normalize(text), most)?;
        Some(counted as u64)
    }
}

/// Vocabularies in memory now, by name.
pub fn loaded() -> Vec<&'static str> {
    let is = |flag: &AtomicBool, name| flag.load(Ordering::Relaxed).then_some(name);
    [is(&O200K_LOADED, Vocabulary::O200k.name()), is(&CL100K_LOADED, Vocabulary::Cl100k.name())]
        .into_iter()
        .flatten()
        .collect()
}

/// Tokens of a prompt: its texts and what a chat template adds for `messages`, of which `names` carry a name.
pub fn count<T: AsRef<str>>(
    vocabulary: Vocabulary,
    texts: impl IntoIterator<Item = T>,
    messages: u64,
    names: u64,
) -> u64 {
    // Without a limit there is always a count: more than 2^64 tokens are not held in memory.
    count_within(vocabulary, texts, messages, names, u64::MAX).unwrap_or(u64::MAX)
}

/// As [`count`], or `None` when there are more than `most`; stops reading there, so that a hostile body costs no more than
/// an honest one. CPU-bound: above some 64 KB call it off the async threads.
pub fn count_within<T: AsRef<str>>(
    vocabulary: Vocabulary,
    texts: impl IntoIterator<Item = T>,
    messages: u64,
    names: u64,
    most: u64,
) -> Option<u64> {
    let overhead =
        PRIMING.saturating_add(messages.saturating_mul(PER_MESSAGE)).saturating_add(names.saturating_mul(PER_NAME));
    count_plain(vocabulary, texts, overhead, most)
}

/// Tokens of texts that have no template around them, on top of those `given` by their numbers; `None` when there are more
/// than `most`. As heavy as [`count_within`].
pub fn count_plain<T: AsRef<str>>(
    vocabulary: Vocabulary,
    texts: impl IntoIterator<Item = T>,
    given: u64,
    most: u64,
) -> Option<u64> {
    let mut left = most.checked_sub(given)?;
    for text in texts {
        left -= known::count(vocabulary, text.as_ref(), left)?;
    }
    Some(most - left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::usage::about;
    use proptest::prelude::*;

    #[test]
    fn names_read_back_and_others_are_unknown() {
        for name in Vocabulary::NAMES {
            assert_eq!(Vocabulary::parse(name).map(Vocabulary::name), Some(name));
        }
        assert_eq!(Vocabulary::parse("O200K"), None);
    }

    #[test]
    fn a_prompt_is_its_texts_and_the_templates_overhead() {
        for (vocabulary, texts, messages, names, want, why) in [
            (Vocabulary::O200k, &["hello world"][..], 1, 0, 2 + 3 + 3, "two words, one message, priming"),
            (Vocabulary::Cl100k, &["hello world"], 1, 1, 2 + 3 + 1 + 3, "and a name"),
            (Vocabulary::Bytes, &["hé", "✓"], 2, 0, 3 + 3 + 6 + 3, "bytes, not characters"),
            (Vocabulary::O200k, &[], 0, 0, 3, "nothing but priming"),
            (Vocabulary::O200k, &["hello", " world"], 1, 0, 2 + 3 + 3, "texts are counted one by one"),
        ] {
            assert_eq!(count(vocabulary, texts, messages, names), want, "{why}");
            assert_eq!(count_within(vocabulary, texts, messages, names, want), Some(want), "{why}: exactly the limit");
            assert_eq!(count_within(vocabulary, texts, messages, names, want - 1), None, "{why}: one below it");
        }
        assert_eq!(
            count_within(Vocabulary::Bytes, ["a"], u64::MAX, 0, u64::MAX),
            None,
            "counts that overflow are over"
        );
    }

    #[test]
    fn what_is_taken_for_tokens_of_an_unknown_vocabulary_is_near_those_of_a_known_one() {
        for (text, why) in [(include_str!("../CHANGELOG.md"), "prose"), (include_str!("tokens.rs"), "code")] {
            let (known, about) = (count(Vocabulary::O200k, [text], 0, 0), about(text.len() as u64));
            assert!(about * 2 < known * 3 && known * 2 < about * 3, "{why}: {known}, about {about}");
        }
    }

    #[test]
    fn a_delta_counts_as_its_text_alone_does() {
        assert!(Vocabulary::Bytes.counter().is_none());
        for (vocabulary, other) in [(Vocabulary::O200k, Vocabulary::Cl100k), (Vocabulary::Cl100k, Vocabulary::O200k)] {
            let counted = vocabulary.counter().unwrap();
            for text in ["", " bridge", "hello world", "Brücke ✓", "   \n\n\t}"] {
                assert_eq!(counted(text), count(vocabulary, [text], 0, 0) - PRIMING, "{text:?}");
            }
            let telling = "Überbrückungsmaßnahme";
            assert_ne!(counted(telling), other.counter().unwrap()(telling), "each by its own vocabulary");
        }
    }

    #[test]
    fn a_vocabulary_that_was_used_is_named_as_loaded() {
        count(Vocabulary::Cl100k, ["x"], 1, 0);
        assert!(loaded().contains(&"cl100k"));
    }

    proptest! {
        #[test]
        fn bytes_bound_every_vocabulary(text in any::<String>()) {
            let bytes = count(Vocabulary::Bytes, [&text], 1, 0);
            prop_assert!(count(Vocabulary::O200k, [&text], 1, 0) <= bytes);
            prop_assert!(count(Vocabulary::Cl100k, [&text], 1, 0) <= bytes);
        }
    }
}
