//! What the build can do, as names and abilities: rules are checked against it without knowing any kind.

use crate::ids::RailId;
use crate::limits::Spelling;
use std::collections::BTreeMap;

/// Every kind this build and this `pontage.toml` offer to the rules.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// Rails that exist, by the name routes use (`tempo/charge`).
    pub rails: BTreeMap<RailId, RailAbility>,
    /// Backend profiles by name.
    pub profiles: BTreeMap<&'static str, ProfileAbility>,
    /// Vocabularies a model may name.
    pub vocabularies: Vec<&'static str>,
}

/// What a rail can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RailAbility {
    /// The amount is fixed before the call and cannot be corrected afterwards (charge, exact): the tier needs `charge`. Rails
    /// that take what was used (session, upto) do not.
    pub fixed_amount: bool,
    /// Decimals of the rail's asset.
    pub decimals: u8,
}

/// How a backend profile speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileAbility {
    /// How the output limit is spelled.
    pub spelling: Spelling,
    /// The backend takes `stream_options.continuous_usage_stats`.
    pub continuous_usage: bool,
    /// Path of its health endpoint, when it has one.
    pub health_path: Option<&'static str>,
}
