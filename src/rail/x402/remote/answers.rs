//! What a facilitator's answers mean: bytes in, a verdict or "that is no answer" out. Pure.
//!
//! A payment is good only on the JSON boolean `true` in a 2xx answer that names what must be named and contradicts nothing. A
//! refusal in JSON counts whatever the status, because published facilitators refuse with 400, 412 and 500, with one exception.
//! A *settlement* said to have failed may still be on its way to the chain when the facilitator answers 5xx, names a
//! transaction, or gives a word that only means "something went wrong here": then nobody knows. Handing the same authorization
//! in again moves money at most once, a fresh one may move it twice, so doubt is the cheaper mistake.

use super::super::facilitator::{Expects, Verdict};
use crate::money::Atoms;
use crate::network::{Family, Network, from_base58};
use alloy::primitives::{Address, B256};
use serde::Deserialize;

/// Longest word of a facilitator that is repeated.
const LONGEST: usize = 100;
/// Words for trouble of its own, or for "already": the money may have moved, or may yet.
const OPEN: [&str; 3] = ["unexpected_settle_error", "duplicate_settlement", "transfer_event_mismatch"];
/// Words that say a transaction was mined and moved nothing, when they come with that transaction.
const REVERTED: [&str; 2] = ["transaction_failed", "invalid_transaction_state"];

/// A settlement as told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rail::x402) enum Told {
    /// It moved.
    Settled { transaction: String, payer: Option<String> },
    /// It did not and will not.
    Failed { reason: String },
    /// Handed in and not confirmed: to be asked once more.
    Pending,
    /// An answer, and it leaves the question open.
    Open { why: String },
}

/// Keys we do not know may be anything; keys we know are of their type or `null`, and stand once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    is_valid: bool,
    #[serde(default, alias = "invalid_reason")]
    invalid_reason: Option<String>,
    #[serde(default)]
    payer: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settled {
    success: bool,
    #[serde(default, alias = "error_reason")]
    error_reason: Option<String>,
    #[serde(default)]
    transaction: Option<String>,
    #[serde(default)]
    network: Option<String>,
    #[serde(default)]
    payer: Option<String>,
    #[serde(default)]
    amount: Option<String>,
}

/// JSON is UTF-8 (RFC 8259 §8.1), also in the members that nobody asked for: what is not was damaged on its way.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    serde_json::from_str(std::str::from_utf8(body).ok()?).ok()
}

/// Reads an answer of `/verify`. The error says, in our words, why it is none.
pub(in crate::rail::x402) fn verified(status: u16, body: &[u8], expects: &Expects<'_>) -> Result<Verdict, String> {
    let said: Verified = read(body).ok_or_else(|| unread(status))?;
    let reason = said.invalid_reason.as_deref().filter(|r| !r.is_empty());
    if !said.is_valid {
        return Ok(match reason {
            Some("unexpected_verify_error") => Verdict::Unknown { why: "the facilitator met an error".into() },
            _ => Verdict::Invalid { reason: word(reason) },
        });
    }
    good(status, reason)?;
    Ok(Verdict::Valid { payer: payer(said.payer, expects)? })
}

/// Reads an answer of `/settle`. The error says, in our words, why it is none.
pub(in crate::rail::x402) fn settled(status: u16, body: &[u8], expects: &Expects<'_>) -> Result<Told, String> {
    let said: Settled = read(body).ok_or_else(|| unread(status))?;
    let reason = said.error_reason.as_deref().filter(|r| !r.is_empty());
    let transaction = said.transaction.unwrap_or_default();
    if !said.success {
        return Ok(not_settled(status, reason, &transaction));
    }
    good(status, reason)?;
    if !said.network.is_some_and(|name| is_named(expects.network, &name)) {
        return Err("it says settled on another network, or on none".into());
    }
    if said.amount.filter(|a| !a.is_empty()).is_some_and(|a| Atoms::parse(&a) != Some(expects.amount)) {
        return Err("it says settled with another amount".into());
    }
    let nothing_due = transaction.is_empty() && expects.amount == Atoms(0);
    if !nothing_due && !is_transaction(expects.network, &transaction) {
        return Err("it says settled without a transaction that could be one".into());
    }
    Ok(Told::Settled { payer: payer(said.payer, expects)?, transaction })
}

fn not_settled(status: u16, reason: Option<&str>, transaction: &str) -> Told {
    let named = reason.unwrap_or_default();
    let reverted = REVERTED.iter().any(|end| named.ends_with(end));
    if named == "settlement_pending" {
        return Told::Pending;
    }
    let open = status >= 500
        || OPEN.contains(&named)
        || named.ends_with("nonce_already_used") // by this very payment, perhaps
        || reverted == transaction.is_empty(); // its hand-in broke off, or a transaction is out there
    if open {
        let seen = if transaction.is_empty() { "" } else { " and names a transaction" };
        return Told::Open { why: format!("it says not settled: {}, with status {status}{seen}", word(reason)) };
    }
    Told::Failed { reason: word(reason) }
}

/// What every good word needs: a 2xx around it, and no reason against it.
fn good(status: u16, reason: Option<&str>) -> Result<(), String> {
    if !(200..300).contains(&status) {
        return Err(format!("it says yes with status {status}"));
    }
    reason.map_or(Ok(()), |_| Err("it says yes and gives a reason why not".into()))
}

fn payer(said: Option<String>, expects: &Expects<'_>) -> Result<Option<String>, String> {
    let Some(said) = said.filter(|p| !p.is_empty()) else { return Ok(None) };
    if !is_account(expects.network, &said) {
        return Err("it names a payer that is no account of the network".into());
    }
    match expects.payer {
        Some(known) if !known.eq_ignore_ascii_case(&said) => Err("it names another payer".into()),
        _ => Ok(Some(said)),
    }
}

/// What is not read is told apart by its status only: its text may hold anything.
fn unread(status: u16) -> String {
    match status {
        200..=299 => "its answer is not the JSON it should be".into(),
        300..=399 => format!("it answers with a redirect to another place (status {status})"),
        401 | 403 => format!("it does not accept our credentials (status {status})"),
        _ => format!("it answers with status {status} and no verdict"),
    }
}

/// A facilitator's word, fit to be shown: at most 100 printable ASCII characters.
pub(in crate::rail::x402) fn word(reason: Option<&str>) -> String {
    let clean: String = reason.unwrap_or_default().chars().filter(|c| matches!(c, ' '..='~')).take(LONGEST).collect();
    if clean.trim().is_empty() { "no reason given".into() } else { clean }
}

/// Whether a name means this network: its CAIP-2 id, or its v1 name.
pub(in crate::rail::x402) fn is_named(network: &Network, name: &str) -> bool {
    network.id == name || network.v1() == Some(name)
}

/// Whether the text is an account of the network.
pub(in crate::rail::x402) fn is_account(network: &Network, text: &str) -> bool {
    match network.family {
        Family::Evm { .. } => text.starts_with("0x") && text.len() == 42 && text.parse::<Address>().is_ok(),
        Family::Solana => from_base58::<32>(text).is_some(),
    }
}

/// Whether the text is a transaction's name there.
pub(in crate::rail::x402) fn is_transaction(network: &Network, text: &str) -> bool {
    match network.family {
        Family::Evm { .. } => text.starts_with("0x") && text.len() == 66 && text.parse::<B256>().is_ok(),
        Family::Solana => from_base58::<64>(text).is_some(),
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
