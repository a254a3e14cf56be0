//! llama.cpp's server: each choice ends with a figure of its own. A reply that does not stream has only the first one's, and of several
//! prompts only the first one's tokens (`handle_completions_impl` in its `tools/server/server-context.cpp`): more than one choice is asked
//! of it only in a stream of chat. Its HTTP server drops idle connections after 5 s; it stops when it is hung up on, unless a request names
//! an `X-Conversation-Id`, which never leaves the gate. `n_predict`, which it would take over `max_tokens`, is on no surface's list and
//! never reaches it.

use super::{BEARER, Profile};
use crate::catalogue::ProfileAbility;
use crate::surface::Surface::{Chat, Completions, Embeddings, Messages, Responses, Transcriptions};
use crate::usage::{Scope, Shape};

pub(super) const PROFILE: Profile = Profile {
    name: "llamacpp",
    ability: ProfileAbility {
        surfaces: &[Chat, Completions, Responses, Messages, Embeddings, Transcriptions],
        health_path: Some("/health"),
        counts_all: false,
        shape: Shape { finals: Scope::Choice, ..Shape::PLAIN },
        ..ProfileAbility::PLAIN
    },
    key: BEARER,
    native_key: None,
    reuse_seconds: 4,
};
