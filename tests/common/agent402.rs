//! The shipped rule set `agent402`, word for word; only addresses are those of the test bed.

use std::path::Path;

use super::GateOptions;

pub const NANO: &str = "/v1/nano/chat/completions";
pub const AUTO: &str = "/v1/chat/completions";
pub const STANDARD: &str = "/v1/standard/chat/completions";
pub const PRO: &str = "/v1/pro/chat/completions";
pub const PREMIUM: &str = "/v1/premium/chat/completions";
/// Path and price in atoms.
pub const TIERS: [(&str, u64); 5] =
    [(NANO, 1_000), (AUTO, 2_000), (STANDARD, 5_000), (PRO, 30_000), (PREMIUM, 150_000)];

/// What a request to this path costs, in atoms.
pub fn price(path: &str) -> u64 {
    TIERS.iter().find(|(p, _)| *p == path).unwrap_or_else(|| panic!("no tier at {path}")).1
}

/// A file of the set as it is in the repository.
pub fn shipped(file: &str) -> String {
    read(&format!("lua-free-rules/agent402/{file}"))
}

/// `conf/agent402.toml` as it is in the repository.
pub fn sample() -> String {
    read("conf/agent402.toml")
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The set before the backend of these options, with the pool of the large model at `large` if that is another one.
pub fn rules(mut options: GateOptions, large: Option<&str>) -> GateOptions {
    let upstream = options.upstream.clone();
    let mut pools = shipped("pools.toml");
    for (from, to) in [
        ("http://127.0.0.1:8001", upstream.as_str()),
        ("http://127.0.0.1:8000", large.unwrap_or(&upstream)),
        ("https://openrouter.ai/api", &upstream),
        ("every_seconds = 5", "every_seconds = 1"),
    ] {
        pools = replaced(pools, from, to);
    }
    for file in ["models.toml", "tiers.toml", "routes.toml"] {
        options = options.rule(file, &shipped(file));
    }
    options.rule("pools.toml", &pools)
}

/// Panics when there is nothing to replace: the file is not what the test takes it for.
pub fn replaced(text: String, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the shipped file");
    text.replace(from, to)
}
