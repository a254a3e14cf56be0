//! OpenAI, and vendors that speak exactly like it: strict about `stream_options`, no health endpoint. Reasoning models refuse
//! `max_tokens`. Usage comes once, at the end, and not when the connection is cut: the end is waited for.

use super::{BEARER, Profile};
use crate::catalogue::{OnLeave, ProfileAbility};
use crate::limits::Spelling;
use crate::surface::Surface::{Chat, Completions, Embeddings, Images, Responses, Speech, Transcriptions};

pub(super) const PROFILE: Profile = Profile {
    name: "openai",
    ability: ProfileAbility {
        surfaces: &[Chat, Completions, Responses, Embeddings, Images, Speech, Transcriptions],
        spelling: Spelling::MaxCompletionTokens,
        on_leave: OnLeave::Drain,
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 60,
};
