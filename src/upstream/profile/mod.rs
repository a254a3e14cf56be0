//! How a backend speaks, one small constant per kind. A new kind is a file here and one line in [`ALL`].

mod anthropic;
mod compatible;
mod gemini;
mod llamacpp;
mod ollama;
mod openai;
mod openrouter;
mod sglang;
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
    /// How the operator's key is shown.
    pub key: KeyStyle,
    /// How it is shown on the vendor's own surface ([`NATIVE`]), where that differs.
    pub native_key: Option<KeyStyle>,
    /// How long an idle connection is kept for reuse. Below the backend's own keep-alive: a connection the backend
    /// closes while we write to it costs a retry.
    pub reuse_seconds: u64,
}

/// How a key is shown to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyStyle {
    /// Header that carries it, in lower case.
    pub header: &'static str,
    /// What stands before it.
    pub prefix: &'static str,
    /// Headers that go with every request beside it, whether there is a key or not.
    pub beside: &'static [(&'static str, &'static str)],
}

/// As OpenAI takes it.
const BEARER: KeyStyle = KeyStyle { header: "authorization", prefix: "Bearer ", beside: &[] };

/// Where a path of a vendor's own begins: Anthropic's.
pub const NATIVE: &str = "/v1/messages";

impl Profile {
    /// How the key is shown with a request for `path`.
    pub fn key_style(&self, path: &str) -> &KeyStyle {
        self.native_key.as_ref().filter(|_| path.starts_with(NATIVE)).unwrap_or(&self.key)
    }
}

/// Every profile of this build.
pub const ALL: [&Profile; 9] = [
    &openai::PROFILE,
    &compatible::PROFILE,
    &openrouter::PROFILE,
    &anthropic::PROFILE,
    &gemini::PROFILE,
    &vllm::PROFILE,
    &sglang::PROFILE,
    &llamacpp::PROFILE,
    &ollama::PROFILE,
];

/// The names rules may use.
pub const NAMES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = ALL[i].name;
        i += 1;
    }
    names
};

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
    use crate::catalogue::OnLeave;
    use crate::limits::Spelling;

    #[test]
    fn every_profile_is_found_by_its_name_and_no_other_is() {
        let names =
            ["anthropic", "compatible", "gemini", "llamacpp", "ollama", "openai", "openrouter", "sglang", "vllm"];
        assert_eq!(abilities().keys().copied().collect::<Vec<_>>(), names);
        for (name, profile) in NAMES.into_iter().zip(ALL) {
            assert_eq!(lookup(name), Some(profile));
        }
        assert_eq!(lookup("vLLM"), None, "names are exact");
    }

    #[test]
    fn headers_are_written_as_http_writes_them() {
        for profile in ALL {
            for style in std::iter::once(&profile.key).chain(&profile.native_key) {
                let beside = style.beside.iter().map(|(name, _)| *name);
                for name in beside.chain([style.header]) {
                    assert!(http::HeaderName::from_lowercase(name.as_bytes()).is_ok(), "{}: {name}", profile.name);
                }
            }
        }
    }

    #[test]
    fn only_anthropics_own_path_takes_another_key() {
        for profile in ALL {
            let own = if profile.name == "anthropic" { "x-api-key" } else { "authorization" };
            assert_eq!(profile.key_style("/v1/messages").header, own, "{}", profile.name);
            assert_eq!(profile.key_style("/v1/chat/completions").header, "authorization", "{}", profile.name);
        }
    }

    #[test]
    fn vendors_that_report_only_at_the_end_are_read_to_the_end_and_own_servers_are_not() {
        for profile in ALL {
            let hosted = ["openai", "compatible", "openrouter", "anthropic", "gemini"].contains(&profile.name);
            assert_eq!(profile.ability.on_leave == OnLeave::Drain, hosted, "{}", profile.name);
            assert!(!(hosted && profile.ability.continuous_usage), "{}: it refuses the option", profile.name);
        }
    }

    #[test]
    fn choices_that_a_backend_makes_and_does_not_count_are_not_asked_of_it() {
        use crate::surface::Surface::{Chat, Completions, Images};
        for (name, surface, stream, most) in [
            ("llamacpp", Chat, true, None),
            ("llamacpp", Chat, false, Some(1)),
            ("llamacpp", Completions, true, Some(1)),
            ("llamacpp", Completions, false, Some(1)),
            ("llamacpp", Images, false, None),
            ("vllm", Completions, false, None),
            ("anthropic", Chat, true, Some(1)),
        ] {
            let ability = lookup(name).map(|profile| profile.ability);
            assert_eq!(ability.map(|a| a.choices_of(surface, stream)), Some(most), "{name}, {surface:?}, {stream}");
        }
    }

    #[test]
    fn one_field_limits_output_and_it_is_the_one_that_the_backend_obeys() {
        for profile in ALL {
            let own = profile.ability.spelling == Spelling::MaxCompletionTokens;
            assert_eq!(own, profile.name == "openai", "{}", profile.name);
        }
    }
}
