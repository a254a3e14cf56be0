//! Gemini's OpenAI-compatible surface. It refuses a body with a field it does not know (400, "Cannot find field"), reports usage on
//! many chunks with text, each for the whole answer so far, and may count what the model thought in the total only.

use super::{BEARER, Profile};
use crate::catalogue::{OnLeave, ProfileAbility};
use crate::surface::Surface::{Chat, Embeddings, Images};
use crate::usage::{Scope, Shape};

pub(super) const PROFILE: Profile = Profile {
    name: "gemini",
    ability: ProfileAbility {
        surfaces: &[Chat, Embeddings, Images],
        // Each was refused by name, or is one of OpenAI's later inventions of which nothing is said.
        withheld: &[
            "frequency_penalty",
            "include_obfuscation",
            "logit_bias",
            "metadata",
            "parallel_tool_calls",
            "presence_penalty",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "seed",
            "service_tier",
            "store",
            "user",
            "verbosity",
        ],
        shape: Shape { finals: Scope::Reply, running: Scope::Reply, output_in_total: true },
        on_leave: OnLeave::Drain,
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 60,
};
