//! OpenAI, and vendors that speak exactly like it: strict about `stream_options`, no health endpoint.

use super::Profile;
use crate::catalogue::ProfileAbility;
use crate::limits::Spelling;

pub(super) const PROFILE: Profile = Profile {
    name: "openai",
    ability: ProfileAbility { spelling: Spelling::MaxCompletionTokens, continuous_usage: false, health_path: None },
    key_header: "authorization",
    key_prefix: "Bearer ",
    reuse_seconds: 60,
};
