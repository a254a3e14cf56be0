//! What the operator writes in `lua-free-rules/`, checked whole and turned into one [`Plan`].
//!
//! | file | story |
//! |---|---|
//! | [`file`](mod@file) | the files as bytes, and their generation |
//! | [`entry`] | what each file may say on its own |
//! | [`check`](mod@check) | what they must say together → a [`Plan`], or every mistake |
//! | [`plan`] | the result: immutable, every name in it resolves |
//! | [`price`] | what a model's tokens cost, resolved |
//! | [`registry`] | LiteLLM's cost file as it is |
//! | [`tariff`] | what was written over what the registry says → [`price`], and where each number came from |
//! | [`watch`] | the live plan: reloaded on change, all or nothing |

pub mod check;
pub mod entry;
pub mod file;
pub mod plan;
pub mod price;
pub mod registry;
pub mod tariff;
pub mod watch;

pub use check::check;
pub use file::Files;
pub use plan::Plan;
pub use watch::{Rules, Standing};

use crate::catalogue::Catalogue;
use crate::written::{Mistake, Spot};
use std::path::Path;

/// Reads and checks the rule set in `dir`. The error lists every mistake, in order of file and line.
pub fn load(dir: &Path, catalogue: &Catalogue) -> Result<Plan, Vec<Mistake>> {
    if let Err(why) = std::fs::read_dir(dir) {
        return Err(vec![Spot::file(&dir.display().to_string()).mistake(format!("is no directory of rules: {why}"))]);
    }
    check(&Files::read(dir), catalogue)
}
