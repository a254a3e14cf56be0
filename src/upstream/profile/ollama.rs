//! Ollama's OpenAI surface. It ignores `max_completion_tokens`, puts zeros on chunks that report nothing yet, and ends a failed stream
//! without a word. It has no health endpoint of that name; its version answers when it is up.

use super::{BEARER, Profile};
use crate::catalogue::ProfileAbility;
use crate::surface::Surface;

pub(super) const PROFILE: Profile = Profile {
    name: "ollama",
    ability: ProfileAbility { surfaces: &Surface::ALL, health_path: Some("/api/version"), ..ProfileAbility::PLAIN },
    key: BEARER,
    native_key: None,
    reuse_seconds: 60,
};
