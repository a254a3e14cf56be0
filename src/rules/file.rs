//! The files of a rule set as bytes: read whole, identified by their hash.

use crate::ids::Generation;
use crate::written::{Mistake, Page, Spot};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The files of a rule set, in the order in which the generation hashes them. All are required.
pub const NAMES: [&str; 4] = ["models.toml", "tiers.toml", "routes.toml", "pools.toml"];
/// The one that may be absent. The price list it names belongs to the rule set, wherever it lies.
pub const PRICES: &str = "prices.toml";

/// Larger than any rule set written by hand or by a sensible program: a guard against a wrong file in the directory.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;
/// The same for a price list; LiteLLM's has three million bytes.
const LARGEST_REGISTRY: u64 = 32 * 1024 * 1024;
/// How often the directory is read until two readings in a row agree.
const READINGS: usize = 8;

/// The bytes of a rule set, read but not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    texts: [Result<String, String>; 4],
    prices: Option<Result<String, String>>,
    /// As `prices.toml` names it, and what is in it.
    registry: Option<(String, Result<String, String>)>,
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
        let prices = text(PRICES).ok().map(Ok);
        let registry = registry_of(&prices).map(|name| (name.clone(), text(&name)));
        Self { texts: NAMES.map(text), prices, registry }
    }

    /// What is in the price list that `prices.toml` names, or why it cannot be read.
    pub fn registry(&self) -> Option<Result<&str, &str>> {
        let (_, text) = self.registry.as_ref()?;
        Some(text.as_deref().map_err(String::as_str))
    }

    /// Where that price list lies, of a rule set in `dir`.
    pub fn registry_path(&self, dir: &Path) -> Option<PathBuf> {
        self.registry.as_ref().map(|(name, _)| dir.join(name))
    }

    /// Each file by name: its text, or the mistake that there is none. Not the price list, which is no TOML.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, Result<&str, Mistake>)> {
        let all = NAMES.iter().zip(&self.texts).chain(self.prices.iter().map(|text| (&PRICES, text)));
        all.map(|(name, text)| match text {
            Ok(text) => (*name, Ok(text.as_str())),
            Err(why) => (*name, Err(Spot::file(name).mistake(why))),
        })
    }

    fn read_once(dir: &Path) -> Self {
        // Symlinks that are swapped to change all files at once are followed once for all files.
        let dir =
            &std::fs::canonicalize(dir.join("..data")).or_else(|_| std::fs::canonicalize(dir)).unwrap_or(dir.into());
        let read = |name: &str, largest| read_text(&dir.join(name), largest);
        let prices = dir.join(PRICES).exists().then(|| read(PRICES, LARGEST_FILE));
        let registry = registry_of(&prices).map(|name| (name.clone(), read(&name, LARGEST_REGISTRY)));
        Self { texts: NAMES.map(|name| read(name, LARGEST_FILE)), prices, registry }
    }

    /// Identity of this content: the first 16 hex digits of the SHA-256 over name, length and bytes of each file.
    pub fn generation(&self) -> Generation {
        let mut hash = Sha256::new();
        let optional = self.prices.iter().map(|text| (PRICES, text));
        let registry = self.registry.iter().map(|(name, text)| (name.as_str(), text));
        for (name, text) in NAMES.into_iter().zip(&self.texts).chain(optional).chain(registry) {
            // An unreadable file gets a length that no text can have.
            let (length, bytes) = text.as_ref().map_or((u64::MAX, ""), |text| (text.len() as u64, text));
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update(length.to_be_bytes());
            hash.update(bytes);
        }
        let mut digits = hex::encode(hash.finalize());
        digits.truncate(16);
        Generation::from(digits)
    }
}

/// The price list that a text of `prices.toml` names. Whether it is right is not asked here.
fn registry_of(prices: &Option<Result<String, String>>) -> Option<String> {
    let page = Page::open(PRICES, prices.as_ref()?.as_ref().ok()?);
    let root = page.root();
    let name = root.take("registry")?.text().map(str::to_owned);
    root.pass_over();
    name
}

fn read_text(path: &Path, largest: u64) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|why| format!("cannot be read: {why}"))?.len();
    if length > largest {
        return Err(format!("is larger than {largest} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|why| format!("cannot be read: {why}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}
