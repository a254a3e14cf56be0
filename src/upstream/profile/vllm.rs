//! vLLM's server (SGLang speaks the same): usage on every chunk when asked. Its HTTP server drops idle connections after 5 s.

use super::Profile;
use crate::catalogue::ProfileAbility;
use crate::limits::Spelling;

pub(super) const PROFILE: Profile = Profile {
    name: "vllm",
    ability: ProfileAbility { spelling: Spelling::MaxTokens, continuous_usage: true, health_path: Some("/health") },
    key_header: "authorization",
    key_prefix: "Bearer ",
    reuse_seconds: 4,
};
