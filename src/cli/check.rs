//! `pontage check`: says every mistake of `pontage.toml` and of the rule set, and touches nothing.

use crate::assemble::catalogue;
use crate::conf::Conf;
use crate::rules;
use std::path::Path;
use std::process::ExitCode;

/// Checks both and prints every mistake to standard error, one a line, as `file:line: key: what is wrong`. Success means that
/// `serve` would take them; secrets are not read, so that this runs where there are none, and a sample's payee is only a
/// warning. Exit code 1 after any mistake.
pub fn run(conf: &Path, rules: &Path) -> ExitCode {
    let (rails, conf) = Conf::inspect(conf);
    let plan = rules::load(rules, &catalogue(rails));
    let mut mistakes = Vec::new();
    match conf {
        Ok(conf) => conf.warnings.iter().for_each(|warning| eprintln!("warning: {warning}")),
        Err(found) => mistakes.extend(found),
    }
    match plan {
        Ok(plan) if mistakes.is_empty() => {
            println!(
                "ok: generation {}, {} routes, {} tiers, {} models, {} pools",
                plan.generation,
                plan.routes.len(),
                plan.tiers.len(),
                plan.models.len(),
                plan.pools.len()
            );
            return ExitCode::SUCCESS;
        }
        Ok(_) => {}
        Err(found) => mistakes.extend(found),
    }
    for mistake in &mistakes {
        eprintln!("{mistake}");
    }
    eprintln!("{} mistake{}", mistakes.len(), if mistakes.len() == 1 { "" } else { "s" });
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_shipped_configuration_and_rule_set_pass() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (rails, conf) = Conf::inspect(&root.join("conf/pontage.toml"));
        assert!(conf.is_ok());
        let plan = rules::load(&root.join("lua-free-rules/default"), &catalogue(rails)).unwrap();
        assert_eq!(plan.resolve("gpt-oss-120b").unwrap().upstream.as_str(), "gpt-oss-120b");
        assert!(plan.route("/v1/chat/completions").is_some() && plan.route("/v1/models").is_some());
    }
}
