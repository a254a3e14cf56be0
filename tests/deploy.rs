//! What `deploy/`, `docs/` and the README say about the gate is true of this gate. (That the files are valid is checked by the tools that
//! read them: `deploy/check`.)

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every word of the text that is made of `pontage_` and name characters.
fn series_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("pontage_"))
        .map(|word| {
            let parts = ["_count", "_sum", "_bucket"];
            parts.iter().find_map(|part| word.strip_suffix(part).filter(|w| w.ends_with("_seconds"))).unwrap_or(word)
        })
        .collect()
}

/// Where series are named.
const SERIES: [&str; 2] = ["src/metrics.rs", "src/upstream/shown.rs"];

/// Those files without their tests, as one text.
fn series_of_ours() -> String {
    SERIES.map(|file| text(file).split("#[cfg(test)]").next().unwrap().to_owned()).concat()
}

/// All product sources as one text.
fn sources() -> String {
    fn walk(dir: &Path, into: &mut String) {
        for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                into.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut all = String::new();
    walk(&at("src"), &mut all);
    all
}

/// `name = value` of a TOML or unit file, first hit.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().map(str::trim).find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    let digits = line.split(['=', ':']).nth(1).unwrap_or_default().trim_start();
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn every_series_that_an_alarm_or_the_manual_names_is_served() {
    let metrics = series_of_ours();
    for file in ["deploy/alerts.yml", "docs/operating.md"] {
        let page = text(file);
        let named = series_in(&page);
        assert!(named.len() > 3, "{file} names the gate's series");
        for series in named {
            assert!(metrics.contains(&format!("\"{series}\"")), "{file}: {series} is not in {SERIES:?}");
        }
    }
}

#[test]
fn every_series_that_is_served_is_explained() {
    let (product, manual) = (series_of_ours(), text("docs/operating.md"));
    let explained = series_in(&manual);
    let served: Vec<_> = product.split('"').filter(|w| w.starts_with("pontage_") && !w.contains(' ')).collect();
    assert!(served.len() > 10);
    for series in served {
        assert!(explained.contains(series), "docs/operating.md does not explain {series}");
    }
}

#[test]
fn no_alarm_waits_for_a_label_that_nothing_sets() {
    let (alerts, sources) = (text("deploy/alerts.yml"), sources());
    let mut looked_at = 0;
    for label in ["outcome=", "outcome=~", "source=", "kind=", "kind=~"] {
        for value in alerts.split(&format!("{label}\"")).skip(1).filter_map(|rest| rest.split('"').next()) {
            for value in value.split('|') {
                assert!(
                    sources.contains(&format!("\"{value}\"")),
                    "deploy/alerts.yml: nothing sets {label}\"{value}\""
                );
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 8, "the alarms were read");
}

#[test]
fn every_alarm_has_its_section_in_the_manual() {
    let manual = text("docs/operating.md");
    for line in text("deploy/alerts.yml").lines() {
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            assert!(manual.contains(&format!("### {name}\n")), "docs/operating.md says nothing about {name}");
        }
    }
}

#[test]
fn whoever_stops_the_gate_waits_longer_than_the_gate_does() {
    for conf in ["conf/pontage.toml", "deploy/pontage.toml"] {
        let grace = number(&text(conf), "grace_seconds");
        assert!(number(&text("deploy/pontage.service"), "TimeoutStopSec") > grace, "{conf}");
        assert!(number(&text("deploy/compose.yaml"), "stop_grace_period") > grace, "{conf}");
    }
}

#[test]
fn the_configuration_for_containers_passes_the_check() {
    let gate = Command::new(env!("CARGO_BIN_EXE_pontage"))
        .arg("check")
        .args(["--conf".as_ref(), at("deploy/pontage.toml").as_os_str()])
        .args(["--rules".as_ref(), at("lua-free-rules/default").as_os_str()])
        .output()
        .unwrap();
    assert!(gate.status.success(), "{}", String::from_utf8_lossy(&gate.stderr));
}

#[test]
fn the_first_steps_of_the_readme_go_as_they_are_written() {
    let readme = text("README.md");
    let (_, steps) = readme.split_once("## For real").unwrap();
    let steps = steps.split("```").nth(1).unwrap();
    let mut taken = 0;
    for line in steps.lines().filter_map(|line| line.strip_prefix("pontage ")) {
        let words: Vec<&str> = line.split('#').next().unwrap().split_whitespace().collect();
        // What runs until it is stopped needs a chain; what it is given is checked.
        let verb = if words[0] == "serve" { "check" } else { words[0] };
        let gate = Command::new(env!("CARGO_BIN_EXE_pontage")).arg(verb).args(&words[1..]).current_dir(at("")).output();
        let gate = gate.unwrap();
        assert!(gate.status.success(), "{line}: {}", String::from_utf8_lossy(&gate.stderr));
        taken += 1;
    }
    assert_eq!(taken, 3);
}

#[test]
fn every_secret_that_the_container_needs_is_in_its_example() {
    let example = text("deploy/gate.env.example");
    for name in text("deploy/pontage.toml").split("env:").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(example.contains(&format!("\n{name}=")), "deploy/gate.env.example lacks {name}");
    }
}

#[test]
fn what_watches_the_gate_does_not_wait_for_it() {
    assert!(
        !text("deploy/compose.yaml").contains("service_healthy"),
        "a gate that refuses to start keeps its watcher away"
    );
}

#[test]
fn the_unit_runs_as_a_user_whom_its_head_creates_and_is_installed_by_it() {
    let unit = text("deploy/pontage.service");
    let user = unit
        .lines()
        .find_map(|line| line.strip_prefix("User="))
        .expect("a user that stays: files of secrets are its own");
    let head: Vec<_> = unit.lines().take_while(|line| line.starts_with('#')).collect();
    assert!(head.iter().any(|line| line.contains("useradd") && line.ends_with(user)), "{head:?}");
    assert!(head.iter().any(|line| line.contains("deploy/pontage.service /etc/systemd/system/")), "{head:?}");
    assert!(text("deploy/certbot-hook").contains(&format!("-o {user} ")));
}

#[test]
fn every_file_that_the_readme_points_to_exists() {
    for page in ["README.md", "docs/operating.md"] {
        let folder = at(page).parent().unwrap().to_path_buf();
        for link in text(page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            assert!(link.contains("://") || file.is_empty() || folder.join(file).exists(), "{page}: {link}");
        }
    }
}
