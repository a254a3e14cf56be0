//! The four files of a rule set as bytes: read whole, identified by their hash.

use crate::ids::Generation;
use crate::written::{Mistake, Spot};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The files of a rule set, in the order in which the generation hashes them. All are required.
pub const NAMES: [&str; 4] = ["models.toml", "tiers.toml", "routes.toml", "pools.toml"];

/// Larger than any rule set written by hand or by a sensible program: a guard against a wrong file in the directory.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;
/// How often the directory is read until two readings in a row agree.
const READINGS: usize = 8;

/// The bytes of a rule set, read but not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    texts: [Result<String, String>; 4],
    /// Files that a later build will read. To ignore one would price calls by rules the operator did not mean.
    strangers: Vec<&'static str>,
}

impl Files {
    /// Reads the files of `dir`. What cannot be read becomes a mistake of [`check`](super::check()). The directory is read
    /// until two readings agree, so that a change in the middle is not seen by half.
    pub fn read(dir: &Path) -> Self {
        let mut files = Self::read_once(dir);
        for _ in 1..READINGS {
            let again = Self::read_once(dir);
            if again == files {
                break;
            }
            files = again;
        }
        files
    }

    /// A rule set from memory: `(file name, text)`.
    pub fn of<'t>(texts: impl IntoIterator<Item = (&'t str, &'t str)> + Clone) -> Self {
        let text = |name: &str| {
            let found = texts.clone().into_iter().find(|(file, _)| *file == name);
            found.map(|(_, text)| text.to_owned()).ok_or_else(|| "is missing".to_owned())
        };
        Self { texts: NAMES.map(text), strangers: Vec::new() }
    }

    /// Each file by name: its text, or the mistake that there is none.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, Result<&str, Mistake>)> {
        NAMES.iter().zip(&self.texts).map(|(name, text)| match text {
            Ok(text) => (*name, Ok(text.as_str())),
            Err(why) => (*name, Err(Spot::file(name).mistake(why))),
        })
    }

    /// A mistake for each file that this build does not read.
    pub fn strangers(&self) -> impl Iterator<Item = Mistake> {
        let sentence = "is not in this build: write the prices you charge into models.toml";
        self.strangers.iter().map(move |name| Spot::file(name).mistake(sentence))
    }

    fn read_once(dir: &Path) -> Self {
        // Symlinks that are swapped to change all files at once are followed once for all files.
        let dir =
            &std::fs::canonicalize(dir.join("..data")).or_else(|_| std::fs::canonicalize(dir)).unwrap_or(dir.into());
        let strangers = ["prices.toml"].into_iter().filter(|name| dir.join(name).exists()).collect();
        Self { texts: NAMES.map(|name| read_text(&dir.join(name))), strangers }
    }

    /// Identity of this content: the first 16 hex digits of the SHA-256 over name, length and bytes of each file.
    pub fn generation(&self) -> Generation {
        let mut hash = Sha256::new();
        for (name, text) in NAMES.iter().zip(&self.texts) {
            // An unreadable file gets a length that no text can have.
            let (length, bytes) = text.as_ref().map_or((u64::MAX, ""), |text| (text.len() as u64, text));
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update(length.to_be_bytes());
            hash.update(bytes);
        }
        for name in &self.strangers {
            hash.update(name);
        }
        let mut digits = hex::encode(hash.finalize());
        digits.truncate(16);
        Generation::from(digits)
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|why| format!("cannot be read: {why}"))?.len();
    if length > LARGEST_FILE {
        return Err(format!("is larger than {LARGEST_FILE} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|why| format!("cannot be read: {why}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}
