//! `docs/clients.md` says which versions of which clients were run against which rail. It is rendered from the tables that the tests
//! run (`tests/common/paying.rs`) and from the locks of the test bed.
//!
//! After a change: `PONTAGE_RENDER=1 cargo test --test client_table`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::paying::{AGENT402, CHARGE, Mpp, NETWORKS, ON_SOLANA, Package, SESSION, on_evm};
use common::x402::Client;
use common::x402::stall::server;
use serde_json::Value;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/clients.md";
const BEGIN: &str = "<!-- rendered from tests/common/paying.rs -->\n";
const END: &str = "<!-- end -->";
const NOT_RUN: &str = "–";

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// `npm openai 6.49.0`, at the version that is locked.
fn package(package: Package) -> String {
    let npm = |name: &str, lock: &str| {
        let lock: Value = serde_json::from_str(&text(lock)).unwrap();
        let version = lock["packages"][format!("node_modules/{name}")]["version"].as_str().map(str::to_owned);
        ("npm", version)
    };
    let (name, (registry, version)) = match package {
        Package::Npm(name) => (name, npm(name, "testbed/package-lock.json")),
        Package::NpmX402(name) => (name, npm(name, "testbed/x402/package-lock.json")),
        Package::PyPi(name) => {
            let pins = text("testbed/constraints.txt");
            (name, ("PyPI", pins.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix("==")).map(str::to_owned)))
        }
        Package::Crate(name) => {
            let lock: toml::Table = toml::from_str(&text("Cargo.lock")).unwrap();
            let mut all = lock["package"].as_array().unwrap().iter();
            let found = all.find(|p| p["name"].as_str() == Some(name));
            (name, ("crate", found.map(|p| p["version"].as_str().unwrap().to_owned())))
        }
    };
    format!("{registry} `{name}` {}", version.unwrap_or_else(|| panic!("no lock has {package:?}")))
}

fn named((packages, face): (&[Package], &str)) -> String {
    let all: Vec<String> = packages.iter().copied().map(package).collect();
    let name = all.join(" + ");
    if face.is_empty() { name } else { format!("{name} ({face})") }
}

/// What was run of a client on a rail: whole answers, streams or both.
fn cell(runs: impl IntoIterator<Item = bool>) -> String {
    let (mut json, mut stream) = (false, false);
    for streams in runs {
        *(if streams { &mut stream } else { &mut json }) = true;
    }
    match (json, stream) {
        (true, true) => "JSON, stream",
        (true, false) => "JSON",
        (false, true) => "stream",
        (false, false) => NOT_RUN,
    }
    .to_owned()
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    // A client that was run nowhere has no row.
    let rows = rows.iter().filter(|row| row[1..].iter().any(|cell| cell != NOT_RUN));
    format!("{}{rule}{}", line(&head), rows.map(|row| line(row)).collect::<String>())
}

fn mpp() -> String {
    let rows = Mpp::ALL.map(|client| {
        let charge = CHARGE.iter().filter(|row| row.0 == client).map(|row| row.1);
        let session = SESSION.iter().filter(|row| row.0 == client).flat_map(|_| [false, true]);
        vec![named(client.made_of()), cell(charge), cell(session)]
    });
    table(&["client", "`tempo/charge`", "`tempo/session`"], rows.into())
}

fn x402() -> String {
    let rows = Client::ALL.map(|client| {
        let evm = |servers: &'static [&str]| {
            cell(on_evm().into_iter().filter(|row| row.0 == client && servers.contains(&row.1)).map(|row| row.2))
        };
        let solana = ON_SOLANA.iter().filter(|row| row.0 == client).map(|row| row.1);
        vec![
            named(client.made_of()),
            evm(&[server::EXACT, server::FIRST]),
            evm(&[server::PERMIT2]),
            evm(&[server::UPTO]),
            cell(solana),
        ]
    });
    table(&["client", "`exact`", "`exact` by Permit2", "`upto`", "`exact` on Solana"], rows.into())
}

fn networks() -> String {
    let head: Vec<&str> = ["client"].into_iter().chain(NETWORKS.iter().map(|(_, name)| *name)).collect();
    let rows = Client::ALL.map(|client| {
        let on = |on| cell(AGENT402.iter().filter(|row| row.0 == client && row.1 == on).map(|row| row.3));
        [named(client.made_of())].into_iter().chain(NETWORKS.iter().map(|(network, _)| on(*network))).collect()
    });
    table(&head, rows.into())
}

#[test]
fn the_page_of_clients_is_rendered_from_what_the_tests_run() {
    let tables = [
        ("MPP", mpp(), "tests/clients_pay.rs", "tests/session.rs"),
        ("x402", x402(), "tests/x402.rs", "tests/x402_solana.rs"),
    ];
    let mut rendered = String::new();
    for (name, table, one, other) in tables {
        rendered += &format!("\n## {name}\n\nRun by `{one}` and `{other}`.\n\n{table}");
    }
    rendered += &format!(
        "\n## The four networks of `agent402`\n\nx402 `exact`, against one 402 that offers all four. Run by `tests/agent402.rs`.\n\n{}\n",
        networks()
    );
    let page = text(PAGE);
    let (before, rest) = page.split_once(BEGIN).expect("the page has a place for the tables");
    let (old, after) = rest.split_once(END).expect("the page says where the tables end");
    if std::env::var_os("PONTAGE_RENDER").is_some() {
        std::fs::write(at(PAGE), format!("{before}{BEGIN}{rendered}{END}{after}")).unwrap();
    } else {
        assert!(old == rendered, "{PAGE} is behind; run: PONTAGE_RENDER=1 cargo test --test client_table");
    }
}

/// Sessions are no table: each client has a test of its own, which must be there and must run that client.
#[test]
fn every_client_that_is_said_to_pay_by_session_has_a_test_that_runs_it() {
    let source = text("tests/session.rs");
    for (client, test) in SESSION {
        let body = source.split_once(&format!("async fn {test}() {{")).map(|(_, rest)| rest);
        let body = body.and_then(|rest| rest.split_once("\n}\n")).unwrap_or_else(|| panic!("there is no test {test}"));
        let (runs, streams) = match client {
            Mpp::Sdk => ("\"session.mjs\"", "sse"),
            Mpp::OpenAi => ("\"openai-mppx-session.mjs\"", "\"stream\", \"true\""),
            Mpp::Crate => ("CrateSession::new", "\"stream\""),
            Mpp::Cli => ("mppx_cli", "ask(true)"),
            other => panic!("{other:?} has no script for sessions"),
        };
        assert!(body.0.contains(runs) && body.0.contains(streams), "{test} does not run {client:?}");
    }
}

/// The tables are run where the page says so: a test that stopped using its table would leave the page to lie.
#[test]
fn every_table_of_the_page_is_run_by_the_test_it_names() {
    for (file, table) in [
        ("tests/clients_pay.rs", "in CHARGE {"),
        ("tests/x402.rs", "on_evm()"),
        ("tests/x402_solana.rs", "iter(ON_SOLANA)"),
        ("tests/agent402.rs", "in AGENT402"),
    ] {
        assert!(text(file).contains(table), "{file} no longer runs {table}");
    }
}
