//! What a backend says it used. Counts only; where they come from on the wire is `openai/usage.rs`.

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
}

/// Who counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The backend's own figure.
    Reported,
    /// The client left before the backend reported: prompt plus what was delivered.
    Counted,
    /// Nobody: the backend ended normally and said nothing.
    Missing,
}
