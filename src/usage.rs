//! What a backend says it used, and what is taken for it where nobody says. Counts only; where they come from on the wire is
//! `openai/usage.rs`.

use serde::{Deserialize, Serialize};

/// Tokens of one request as the backend reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All prompt tokens, cached ones included.
    pub prompt: u64,
    /// All output tokens over all choices, reasoning included.
    pub completion: u64,
    /// The part of `prompt` that came from a cache.
    pub cached: u64,
    /// The part of `completion` that was reasoning.
    pub reasoning: u64,
    /// The part of `prompt` that was written into a cache, however long it stays there. Never also in `cached`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_write: u64,
    /// The part of `cache_write` that stays for an hour.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_write_hour: u64,
    /// The part of `prompt` that was sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub audio_input: u64,
    /// The part of `completion` that was sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub audio_output: u64,
    /// The part of `prompt` that was pictures.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub image_input: u64,
}

/// Whether a count need not be written: readers take what is not there for zero.
pub(crate) fn is_zero<N: Default + PartialEq>(n: &N) -> bool {
    *n == N::default()
}

/// Bytes of text to a token where no vocabulary says it. Prose, code, JSON and Chinese have 3.5 to 4.7 of them by `o200k_base`, and four is
/// also what vendors tell who asks ("1 token ~= 4 characters in English", OpenAI's help page on tokens). What is denser in tokens (base64, rare
/// scripts: down to one and a half) comes out too cheap, at the operator's cost: a payer is not to be charged by a bound.
const BYTES_PER_TOKEN: u64 = 4;

/// About how many tokens so many UTF-8 bytes of text are, rounded up. For what is charged where neither a backend nor a vocabulary says
/// it; never for cover, which takes every byte for a token.
pub const fn about(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// How the figures of one reply add up: backends differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Figures that stand alone, behind the text.
    pub finals: Scope,
    /// Figures that stand on chunks with choices.
    pub running: Scope,
    /// Output that is billed may be in the total only: output = the larger of what is said and total − prompt.
    pub output_in_total: bool,
}

impl Shape {
    /// One final figure for the whole reply; running ones, where there are any, by choice.
    pub const PLAIN: Self = Self { finals: Scope::Reply, running: Scope::Choice, output_in_total: false };
}

/// What one figure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole reply: the newest one holds.
    Reply,
    /// One choice: output adds up over the choices, the prompt was read once.
    Choice,
}

/// Which of a vendor's speeds served a request, as its *reply* says: what was asked for is not what is billed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceTier {
    /// `default`, `standard`, or nothing said.
    #[default]
    Standard,
    /// `flex`: slower and cheaper.
    Flex,
    /// `priority`, and `fast`, which is billed like it.
    Priority,
    /// A word that is none of these: billed at the dearest the model has.
    Other,
}

impl ServiceTier {
    /// Reads the word of a reply.
    pub fn read(word: &str) -> Self {
        match word {
            "" | "default" | "standard" => Self::Standard,
            "flex" => Self::Flex,
            "priority" | "fast" => Self::Priority,
            _ => Self::Other,
        }
    }
}

/// Who counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The backend's own figure.
    Reported,
    /// The answer was cut before the backend reported (its client left, nobody paid on, its time was over): prompt plus what was delivered.
    Counted,
    /// Nobody: the backend ended normally and said nothing.
    Missing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_an_unknown_vocabulary_is_about_a_token_for_every_four_bytes() {
        for (bytes, tokens) in [(0, 0), (1, 1), (4, 1), (5, 2), (80_000, 20_000), (u64::MAX, 1 << 62)] {
            assert_eq!(about(bytes), tokens, "{bytes}");
        }
    }
}
