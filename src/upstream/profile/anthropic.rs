//! Anthropic: its OpenAI-compatible surface takes a bearer key, its own (`/v1/messages`) `x-api-key` and a version. The compatible one
//! makes exactly one choice and ignores what it does not know: `service_tier`, `logprobs`, `response_format`, `reasoning_effort`. Its
//! detail objects are mostly empty, so that what a cache saved is not seen there.

use super::{BEARER, KeyStyle, Profile};
use crate::catalogue::{OnLeave, ProfileAbility};
use crate::surface::Surface::{Chat, Messages};

pub(super) const PROFILE: Profile = Profile {
    name: "anthropic",
    ability: ProfileAbility {
        surfaces: &[Chat, Messages],
        most_choices: Some(1),
        on_leave: OnLeave::Drain,
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: Some(KeyStyle { header: "x-api-key", prefix: "", beside: &[("anthropic-version", "2023-06-01")] }),
    reuse_seconds: 60,
};
