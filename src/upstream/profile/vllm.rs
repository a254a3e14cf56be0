//! vLLM's server: usage on every chunk when asked, for the choice of that chunk; one final figure for all of them. Its HTTP server
//! drops idle connections after 5 s, and it stops at once when it is hung up on. Pictures and
//! speech are vLLM-Omni's.

use super::{BEARER, Profile};
use crate::catalogue::ProfileAbility;
use crate::surface::Surface;

pub(super) const PROFILE: Profile = Profile {
    name: "vllm",
    ability: ProfileAbility {
        surfaces: &Surface::ALL,
        continuous_usage: true,
        health_path: Some("/health"),
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 4,
};
