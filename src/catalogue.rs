//! What the build can do, as names and abilities: rules are checked against it without knowing any kind.

use crate::ids::RailId;
use crate::limits::Spelling;
use crate::surface::Surface;
use crate::usage::Shape;
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
    /// What can be asked of it, in its newest version: older ones may have less, and what a server has beside it its pool says.
    pub surfaces: &'static [Surface],
    /// How the output limit is spelled.
    pub spelling: Spelling,
    /// The backend takes `stream_options.continuous_usage_stats`.
    pub continuous_usage: bool,
    /// Path of its health endpoint, when it has one.
    pub health_path: Option<&'static str>,
    /// Most choices (`n`) it makes of one request; `None`: no bound of its own. More is refused before any price is named.
    pub most_choices: Option<u64>,
    /// Its figures are of all choices, in whatever form it answers. Otherwise only those of a stream of chat are: see [`Self::choices_of`].
    pub counts_all: bool,
    /// Fields of the surface that it refuses, by name: they do not leave the gate. `include_obfuscation` stands for the member of
    /// `stream_options`.
    pub withheld: &'static [&'static str],
    /// How its figures add up.
    pub shape: Shape,
    /// What becomes of its answer when the client leaves.
    pub on_leave: OnLeave,
}

impl ProfileAbility {
    /// A backend that does what the words of OpenAI say, and nothing more.
    pub const PLAIN: Self = Self {
        surfaces: &Surface::ALL,
        spelling: Spelling::MaxTokens,
        continuous_usage: false,
        health_path: None,
        most_choices: None,
        counts_all: true,
        withheld: &[],
        shape: Shape::PLAIN,
        on_leave: OnLeave::Cancel,
    };

    /// Most choices, of all prompts, that may be asked of it in this form; `None`: any number. What it would make and not report is not
    /// sold: it could not be charged.
    pub fn choices_of(&self, surface: Surface, stream: bool) -> Option<u64> {
        let counted = match surface {
            Surface::Chat => self.counts_all || stream,
            Surface::Completions => self.counts_all,
            // They have no choices, or are not priced by what a backend counts.
            _ => true,
        };
        if counted { self.most_choices } else { Some(1) }
    }
}

/// What becomes of a stream that is paid by usage when its client leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLeave {
    /// The backend is hung up on and stops; what it had reported by then is used, else what was delivered. For backends of one's own,
    /// and for those that say on every chunk what they have used.
    #[default]
    Cancel,
    /// It is read to its end, as far as the payer's money covers it: such a vendor says only at the end what it bills, and bills it
    /// whether somebody listens or not.
    Drain,
}
