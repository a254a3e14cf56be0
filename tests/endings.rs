//! `tests/endings.toml` says how a request can end. Here it is held against `src/refusal.rs`, against the tests it names, and
//! against the table in `docs/operating.md`, which is rendered from it.
//!
//! After a change: `PONTAGE_RENDER=1 cargo test --test endings`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use pontage::money::{Atoms, Usd};
use pontage::refusal::{Gap, Refusal};
use pontage::surface::Surface;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Endings {
    ending: Vec<Ending>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ending {
    outcome: String,
    status: u16,
    money: Money,
    when: String,
    then: String,
    #[serde(default)]
    retry_after: bool,
    test: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Money {
    None,
    Taken,
    Owed,
    Earlier,
    Unknown,
}

impl Money {
    const fn words(self) -> &'static str {
        match self {
            Self::None => "nothing moved",
            Self::Taken => "taken",
            Self::Owed => "taken, redeemable 15 minutes",
            Self::Earlier => "moved earlier",
            Self::Unknown => "not known yet",
        }
    }
}

/// What ends a request without being a refusal.
const NOT_REFUSED: [&str; 7] =
    ["served", "preflight", "managed", "client_gone", "upstream_died", "out_of_time", "unpaid"];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn endings() -> Vec<Ending> {
    toml::from_str::<Endings>(&text("tests/endings.toml")).unwrap_or_else(|e| panic!("tests/endings.toml: {e}")).ending
}

/// One of each kind, two where the status depends on a field.
fn every_refusal() -> Vec<Refusal> {
    let (why, retry_after_seconds, surface) = (String::new, 1, Surface::Chat);
    let gap = Gap {
        price: Usd(1),
        prompt: 2,
        counted_by: "",
        output: 1,
        n: 1,
        shorten_by: None,
        n_within: 0,
        output_within: 0,
    };
    vec![
        Refusal::UnknownPath,
        Refusal::MethodNotAllowed { allow: "GET" },
        Refusal::BadHead { why: "" },
        Refusal::BodyTooLarge { limit: 1 },
        Refusal::BodyTooSlow { seconds: 1 },
        Refusal::UnsupportedMedia { why: "" },
        Refusal::TooBusy { address_at_fault: true, retry_after_seconds, limit: "" },
        Refusal::TooBusy { address_at_fault: false, retry_after_seconds, limit: "" },
        Refusal::BadJson { at: 0, why: why() },
        Refusal::BadForm { at: 0, why: why() },
        Refusal::BadField { param: why(), why: why() },
        Refusal::UnknownField { param: why() },
        Refusal::NotPriced { param: why() },
        Refusal::OverLimit { param: "", asked: 2, max: 1 },
        Refusal::PromptTooLong { surface, max: 1, counted_by: "", sold_at: Vec::new() },
        Refusal::OverPrice { surface, gap, sold_at: Vec::new() },
        Refusal::UnknownModel { asked: why() },
        Refusal::WrongTier { asked: why(), sold_at: Vec::new() },
        Refusal::NothingAsked { surface },
        Refusal::TwoCredentials { found: 2 },
        Refusal::MalformedCredential,
        Refusal::InvalidChallenge { why: "" },
        Refusal::OfferExpired,
        Refusal::PaymentInvalid { why: why() },
        Refusal::Underpaid { need: Atoms(2), paid: Atoms(1) },
        Refusal::RedeemElsewhere { route: why() },
        Refusal::ProofRunning { retry_after_seconds },
        Refusal::VoucherInvalid { why: why() },
        Refusal::SignerMismatch,
        Refusal::VoucherLower,
        Refusal::VoucherTooFine { min_delta: Atoms(1) },
        Refusal::OverDeposit { deposit: Atoms(1) },
        Refusal::BalanceShort { required: Atoms(2), accepted: Atoms(1), deposit: Atoms(1) },
        Refusal::ChannelUnknown,
        Refusal::ChannelOver,
        Refusal::ChannelBusy { retry_after_seconds },
        Refusal::ChannelBlocked,
        Refusal::ChainUnread { retry_after_seconds },
        Refusal::ProofSpent,
        Refusal::PaymentFailed { why: why() },
        Refusal::PaymentUnknown { retry_after_seconds },
        Refusal::PaymentUnproven,
        Refusal::PaymentUnchecked { retry_after_seconds },
        Refusal::PayerExposed { most: Usd::ONE, lost: Usd::ZERO, retry_after_seconds },
        Refusal::PaymentRequired,
        Refusal::NoOffer { retry_after_seconds, why: why() },
        Refusal::TooDear { surface: Surface::Chat, most: Usd(1), is_flat: false },
        Refusal::CapReached { retry_after_seconds },
        Refusal::UpstreamUnavailable { retry_after_seconds },
        Refusal::UpstreamFailed { why: "" },
        Refusal::UpstreamDown(retry_after_seconds),
        Refusal::UpstreamTimeout { seconds: 1 },
        Refusal::UpstreamRefused {
            status: 400,
            kind: None,
            code: None,
            param: None,
            message: why(),
            retry_after_seconds: None,
        },
        Refusal::Store { retry_after_seconds },
        Refusal::Stopping,
        Refusal::Internal { place: "" },
    ]
}

/// Codes as `Refusal::code` spells them, read from its source: a new kind cannot be forgotten here.
fn codes_in_the_source() -> BTreeSet<String> {
    let source = text("src/refusal.rs");
    let code = source.split("pub fn code(").nth(1).and_then(|rest| rest.split("pub fn ").next()).unwrap();
    code.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).map(ToOwned::to_owned).collect()
}

#[test]
fn every_refusal_is_an_ending_with_its_own_status() {
    let refusals = every_refusal();
    let sampled: BTreeSet<_> = refusals.iter().map(|r| r.code().to_owned()).collect();
    assert_eq!(sampled, codes_in_the_source(), "give the new refusal a sample in tests/endings.rs");
    let rows = endings();
    for refusal in &refusals {
        let told = rows.iter().any(|row| row.outcome == refusal.code() && row.status == refusal.status());
        assert!(told, "tests/endings.toml has no row for {} with status {}", refusal.code(), refusal.status());
    }
    for row in &rows {
        let waits = refusals.iter().find(|r| row.outcome == r.code()).and_then(Refusal::retry_after).is_some();
        assert_eq!(row.retry_after, waits, "{} {}: retry_after", row.outcome, row.status);
        let known = refusals.iter().any(|r| row.outcome == r.code() && row.status == r.status());
        assert!(known || NOT_REFUSED.contains(&row.outcome.as_str()), "{} {}: no such ending", row.outcome, row.status);
    }
}

#[test]
fn an_ending_in_which_money_moved_never_asks_for_more() {
    for row in endings().iter().filter(|row| row.money != Money::None) {
        assert_ne!(row.status, 402, "{}: {}", row.outcome, row.when);
    }
}

#[test]
fn every_test_that_an_ending_names_exists() {
    let mut sources = Vec::new();
    for folder in ["src", "tests"] {
        collect(&at(folder), &mut sources);
    }
    for row in endings() {
        let Some(test) = &row.test else {
            println!("no test is named for {} ({})", row.outcome, row.when);
            continue;
        };
        let declared = format!("fn {test}(");
        assert!(sources.iter().any(|s| s.contains(&declared)), "{}: there is no test {test}", row.outcome);
    }
}

fn collect(dir: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            collect(&entry, into);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            into.push(std::fs::read_to_string(&entry).unwrap());
        }
    }
}

#[test]
fn the_operators_table_is_rendered_from_the_endings() {
    const BEGIN: &str = "<!-- rendered from tests/endings.toml -->\n";
    const END: &str = "<!-- end -->";
    let mut table = String::from("| status | `outcome` | when | money | then |\n|---|---|---|---|---|\n");
    for row in endings() {
        let status = if row.status == 0 { "–".to_owned() } else { row.status.to_string() };
        let money = row.money.words();
        writeln!(table, "| {status} | `{}` | {} | {money} | {} |", row.outcome, row.when, row.then).unwrap();
    }
    let page = text("docs/operating.md");
    let (before, rest) = page.split_once(BEGIN).expect("docs/operating.md has a place for the table");
    let (old, after) = rest.split_once(END).expect("docs/operating.md says where the table ends");
    if std::env::var_os("PONTAGE_RENDER").is_some() {
        std::fs::write(at("docs/operating.md"), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert!(old == table, "docs/operating.md is behind; run: PONTAGE_RENDER=1 cargo test --test endings");
    }
}
