//! Vendors that speak as OpenAI did before its reasoning models: DeepSeek, Together, Groq, Fireworks and most others. They obey
//! `max_tokens`; of `max_completion_tokens` some know nothing, and then nothing bounds the output. Usage comes once, at the
//! end; of DeepSeek on the chunk that says why it ends.

use super::{BEARER, Profile};
use crate::catalogue::{OnLeave, ProfileAbility};
use crate::surface::Surface::{Chat, Completions, Embeddings};
use crate::usage::{Scope, Shape};

pub(super) const PROFILE: Profile = Profile {
    name: "compatible",
    ability: ProfileAbility {
        surfaces: &[Chat, Completions, Embeddings],
        shape: Shape { running: Scope::Reply, ..Shape::PLAIN },
        // A member that only OpenAI has.
        withheld: &["include_obfuscation"],
        on_leave: OnLeave::Drain,
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 60,
};
