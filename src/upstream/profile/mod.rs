//! How a backend speaks, one small constant per kind. A new kind is a file here and one line in [`ALL`].

mod llamacpp;
mod ollama;
mod openai;
mod vllm;

use crate::catalogue::ProfileAbility;
use std::collections::BTreeMap;

/// One kind of backend.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// What `pools.toml` calls it.
    pub name: &'static str,
    /// What rules are checked against.
    pub ability: ProfileAbility,
    /// Header that carries the operator's key, in lower case.
    pub key_header: &'static str,
    /// What stands before the key in it.
    pub key_prefix: &'static str,
    /// How long an idle connection is kept for reuse. Below the backend's own keep-alive: a connection the backend
    /// closes while we write to it costs a retry.
    pub reuse_seconds: u64,
}

/// Every profile of this build.
pub const ALL: [&Profile; 4] = [&openai::PROFILE, &vllm::PROFILE, &llamacpp::PROFILE, &ollama::PROFILE];

/// The names rules may use.
pub const NAMES: [&str; 4] = [openai::PROFILE.name, vllm::PROFILE.name, llamacpp::PROFILE.name, ollama::PROFILE.name];

/// The profile of that name.
pub fn lookup(name: &str) -> Option<&'static Profile> {
    ALL.into_iter().find(|profile| profile.name == name)
}

/// What goes into `Catalogue::profiles`.
pub fn abilities() -> BTreeMap<&'static str, ProfileAbility> {
    ALL.into_iter().map(|profile| (profile.name, profile.ability)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_found_by_its_name_and_no_other_is() {
        assert_eq!(abilities().keys().copied().collect::<Vec<_>>(), ["llamacpp", "ollama", "openai", "vllm"]);
        for (name, profile) in NAMES.into_iter().zip(ALL) {
            assert_eq!(lookup(name), Some(profile));
        }
        assert_eq!(lookup("vLLM"), None, "names are exact");
    }

    #[test]
    fn a_key_header_is_written_as_http_writes_it() {
        for profile in ALL {
            assert!(http::HeaderName::from_lowercase(profile.key_header.as_bytes()).is_ok(), "{}", profile.name);
        }
    }
}
