//! Ollama's OpenAI surface. It has no health endpoint of that name; its version answers when it is up.

use super::Profile;
use crate::catalogue::ProfileAbility;
use crate::limits::Spelling;

pub(super) const PROFILE: Profile = Profile {
    name: "ollama",
    ability: ProfileAbility {
        spelling: Spelling::MaxTokens,
        continuous_usage: false,
        health_path: Some("/api/version"),
    },
    key_header: "authorization",
    key_prefix: "Bearer ",
    reuse_seconds: 60,
};
