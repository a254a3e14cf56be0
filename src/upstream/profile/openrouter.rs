//! OpenRouter. Usage comes in the last message, asked for or not, on a chunk whose `choices` need not be empty, with what it costs
//! in dollars beside it. Its route may end at any vendor, so the end is waited for. It passes `max_tokens` on to all of them.

use super::{BEARER, Profile};
use crate::catalogue::{OnLeave, ProfileAbility};
use crate::surface::Surface::{Chat, Completions, Embeddings, Messages, Responses};
use crate::usage::{Scope, Shape};

pub(super) const PROFILE: Profile = Profile {
    name: "openrouter",
    ability: ProfileAbility {
        surfaces: &[Chat, Completions, Responses, Messages, Embeddings],
        shape: Shape { running: Scope::Reply, ..Shape::PLAIN },
        // A member that only OpenAI has; of the vendors behind it, some refuse what they do not know.
        withheld: &["include_obfuscation"],
        on_leave: OnLeave::Drain,
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 60,
};
