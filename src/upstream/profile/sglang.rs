//! SGLang's server: as vLLM, with reasoning beside the details. After an error it may still report usage, then `[DONE]`. It reads
//! `max_completion_tokens` or `max_tokens`; of one field, the older is the one every version has. On
//! Responses it counts under chat's names.

use super::{BEARER, Profile};
use crate::catalogue::ProfileAbility;
use crate::surface::Surface::{Chat, Completions, Embeddings, Images, Messages, Responses, Transcriptions};

pub(super) const PROFILE: Profile = Profile {
    name: "sglang",
    ability: ProfileAbility {
        surfaces: &[Chat, Completions, Responses, Messages, Embeddings, Images, Transcriptions],
        continuous_usage: true,
        health_path: Some("/health"),
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 4,
};
