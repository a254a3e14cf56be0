//! `pontage check`: says every mistake of `pontage.toml` and of the rule set, and touches nothing.

use super::complain;
use crate::assemble::{self, catalogue};
use crate::conf::Conf;
use crate::rules;
use std::path::Path;
use std::process::ExitCode;

/// Checks both and prints every mistake to standard error, one a line, as `file:line: key: what is wrong`. Success means that
/// `serve` would take them; secrets are not read (but for the key of `listen.tls`), so that this runs where there are none, and a
/// sample's payee is only a warning. Exit code 1 after any mistake.
pub fn run(conf: &Path, rules: &Path) -> ExitCode {
    let (rails, conf) = Conf::inspect(conf);
    let Some(rails) = rails else {
        // What the rules name is nobody's mistake as long as nobody knows what there is.
        return complain(&conf.err().unwrap_or_default());
    };
    let plan = rules::load(rules, &catalogue(rails));
    let mut mistakes = Vec::new();
    match conf {
        Ok(conf) => {
            conf.warnings.iter().chain(&conf.exposed()).for_each(|warning| eprintln!("warning: {warning}"));
            mistakes.extend(assemble::plain_mistakes(&conf));
            let doubts = plan.as_ref().map(|plan| assemble::never_offered(&conf, plan)).unwrap_or_default();
            doubts.iter().for_each(|doubt| eprintln!("warning: {doubt}"));
        }
        Err(found) => mistakes.extend(found.iter().map(ToString::to_string)),
    }
    match plan {
        Ok(plan) if mistakes.is_empty() => {
            plan.models.values().filter_map(|model| model.not_applied()).for_each(|said| eprintln!("warning: {said}"));
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
        Err(found) => mistakes.extend(found.iter().map(ToString::to_string)),
    }
    complain(&mistakes)
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
        let plan = rules::load(&root.join("lua-free-rules/default"), &catalogue(rails.unwrap())).unwrap();
        assert_eq!(plan.resolve("gpt-oss-120b").unwrap().upstream.as_str(), "gpt-oss-120b");
        assert!(plan.route("/v1/chat/completions").is_some() && plan.route("/v1/models").is_some());
    }
}
