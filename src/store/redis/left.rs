//! Lines that a gate left behind which died between a record and its journal.
//!
//! The record carries them (`redis/doubt.rs`). A gate that is started again writes its own before anything else. Those of one that
//! stays away are taken over by another: it makes them its own by a change of the record, so that of several one does, and then writes
//! them. Where their receipts can be found they are in the journal of the gate that died; of lines without a receipt nobody can tell,
//! and they may stand in both journals, word for word.
//!
//! No answer to such a change has left. What it charged stays charged: the receipt is written as not complete, and beside it a
//! line that says that nobody knows what was delivered.

use super::doubt::Lines;
use super::link::Link;
use super::pen::{Came, Pen};
use super::record::{Unwritten, Version};
use super::{
    ALIVE_SECONDS, OPEN_CHANNELS, OPEN_CLAIMS, RECEIPT_SECONDS, channel_key, claim_key, json, read_channel, read_claim,
    receipt_key,
};
use crate::clock::UnixSeconds;
use crate::journal::{Entry, Receipt};
use crate::money::Atoms;
use crate::store::StoreError;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Writes what this gate left in its former life. Call before it changes anything. A record that cannot be read is passed over: its
/// payer is answered with the error, everyone else is served.
pub(super) async fn by_this_gate(pen: &Pen) -> Result<(), StoreError> {
    for key in records(pen).await? {
        if let Err(error) = own(pen, &key).await {
            tracing::error!(key, %error, "what was left here is not known");
        }
    }
    // When Redis is gone, that is no matter of one record.
    records(pen).await.map(drop)
}

async fn own(pen: &Pen, key: &str) -> Result<(), StoreError> {
    let Some(top) = pen.streams.version(key).await? else { return Ok(()) };
    for left in top.unwritten.iter().filter(|left| left.gate == pen.gate()) {
        let entries = read(left)?;
        let mourned = after_death(entries.clone());
        // One of the two was written, if any: by the change itself, or at a start before this one.
        let (Some(first), Some(or)) = (entries.first(), mourned.first()) else { continue };
        let is_there = |line: &Entry| pen.journal.has(left.after, &json(line)?);
        if !is_there(first)? && !is_there(or)? {
            tracing::warn!(key, "a change was made and not written down: its lines are written now");
            Lines::new(top.revision, mourned).write(&pen.streams, &pen.journal).await?;
            continue;
        }
        for receipt in receipts(&entries) {
            let known = receipt_key(&receipt.id);
            if !pen.streams.exists(&known).await? {
                pen.streams.keep(&known, &json(receipt)?, RECEIPT_SECONDS).await?;
            }
        }
    }
    Ok(())
}

/// Looks for what gates left that are gone, for ever. Ends with its store.
pub(super) async fn look(pen: Pen, link: Arc<Link>) {
    let (streams, journal, doubts) =
        (Arc::downgrade(&pen.streams), Arc::downgrade(&pen.journal), Arc::downgrade(&pen.doubts));
    drop(pen);
    loop {
        tokio::time::sleep(Duration::from_secs(ALIVE_SECONDS)).await;
        let (Some(streams), Some(journal), Some(doubts)) =
            (Weak::upgrade(&streams), Weak::upgrade(&journal), Weak::upgrade(&doubts))
        else {
            return;
        };
        let pen = Pen { streams, journal, doubts };
        if let Err(error) = by_others(&pen, &link).await {
            tracing::error!(%error, "what other gates left was not looked at");
        }
    }
}

/// Takes over what gates left that are gone.
pub(super) async fn by_others(pen: &Pen, link: &Link) -> Result<(), StoreError> {
    let mut alive: HashMap<String, bool> = HashMap::new();
    for key in records(pen).await? {
        match of_others(pen, link, &key, &mut alive).await {
            Ok(()) => {}
            Err(error) if !link.is_seen() => return Err(error),
            Err(error) => tracing::error!(key, %error, "what other gates left there is not known"),
        }
    }
    Ok(())
}

async fn of_others(pen: &Pen, link: &Link, key: &str, alive: &mut HashMap<String, bool>) -> Result<(), StoreError> {
    let Some(top) = pen.streams.version(key).await? else { return Ok(()) };
    let (mut names, mut entries) = (Vec::new(), Vec::new());
    for left in top.unwritten.iter().filter(|left| left.gate != pen.gate()) {
        if !lives(pen, link, &left.gate, alive).await? && !is_written(pen, left).await? {
            names.push(left.name.clone());
            entries.extend(after_death(read(left)?));
        }
    }
    if names.is_empty() {
        return tidy(pen, key, &top).await;
    }
    // What a living gate works on is not changed under its hands: its next write would lose, and with it a delivery, or what is to be
    // taken. Of channels every change is made again on what another gate wrote.
    if let Some(claim) = key.strip_prefix(&claim_key("")).map(|key| read_claim(key, &top.text)).transpose()?
        && let Some((holder, _)) = claim.standing.holder().and_then(|by| by.split_once('/'))
        && (holder == pen.gate() || lives(pen, link, holder, alive).await?)
    {
        return Ok(());
    }
    let revision = top.revision.saturating_add(1);
    let mut lines = Lines::new(revision, entries);
    let text = as_revision(&top.text, revision)?;
    // Somebody else who is faster has changed the record: the next look sees what is left.
    if let Came::Made(_) = pen.put(key, revision, &text, &mut lines, &names, |_| false).await? {
        tracing::warn!(
            key,
            "a gate that is gone had made a change and not written it down: its lines are written here"
        );
        pen.write(key, lines).await?;
    }
    Ok(())
}

/// Whether another gate is there, asked once a look.
async fn lives(pen: &Pen, link: &Link, gate: &str, known: &mut HashMap<String, bool>) -> Result<bool, StoreError> {
    if let Some(lives) = known.get(gate) {
        return Ok(*lives);
    }
    let lives = super::lives(&pen.streams, link, gate).await?;
    Ok(*known.entry(gate.to_owned()).or_insert(lives))
}

/// What is over and owes nothing is looked after no longer. What cannot be read is told to whoever asks for it.
async fn tidy(pen: &Pen, key: &str, top: &Version) -> Result<(), StoreError> {
    if let Some(id) = key.strip_prefix(&channel_key("")) {
        return match read_channel(id, &top.text) {
            Ok(channel) if channel.is_over() => pen.streams.remove(OPEN_CHANNELS, id).await,
            _ => Ok(()),
        };
    }
    let claim = key.strip_prefix(&claim_key("")).map(|key| read_claim(key, &top.text));
    match claim {
        Some(Ok(claim)) if claim.standing.is_end() => pen.has_ended(&claim).await,
        _ => Ok(()),
    }
}

/// Every record that can owe lines.
async fn records(pen: &Pen) -> Result<Vec<String>, StoreError> {
    let mut keys: Vec<String> = pen.streams.members(OPEN_CHANNELS).await?.iter().map(|id| channel_key(id)).collect();
    keys.extend(pen.streams.members(OPEN_CLAIMS).await?.iter().map(|key| claim_key(key)));
    keys.sort();
    Ok(keys)
}

/// Whether a gate that is gone has written these lines, as far as can be known: its receipts were put in their place after it.
async fn is_written(pen: &Pen, left: &Unwritten) -> Result<bool, StoreError> {
    let entries = read(left)?;
    let Some(receipt) = receipts(&entries).next() else { return Ok(false) };
    let forgotten = UnixSeconds::now() >= receipt.at.plus(RECEIPT_SECONDS);
    Ok(forgotten || pen.streams.exists(&receipt_key(&receipt.id)).await?)
}

fn receipts(entries: &[Entry]) -> impl Iterator<Item = &Receipt> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Receipt(receipt) => Some(receipt.as_ref()),
        _ => None,
    })
}

fn read(left: &Unwritten) -> Result<Vec<Entry>, StoreError> {
    let entry = |line: &Value| {
        let why = |e| StoreError(format!("a line that {} left cannot be read: {e}", left.gate));
        serde_json::from_value(line.clone()).map_err(why)
    };
    left.lines.iter().map(entry).collect()
}

/// The lines as somebody writes them who knows that their gate died before it answered.
fn after_death(entries: Vec<Entry>) -> Vec<Entry> {
    let now = UnixSeconds::now();
    let mut written = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry {
            // What is taken after the reply is another matter: the reply had left.
            Entry::Receipt(receipt) if receipt.settlement.is_none() && receipt.charged > Atoms(0) => {
                written.extend(Entry::doubted(*receipt, now));
            }
            other => written.push(other),
        }
    }
    written
}

/// A record that nobody changed, under its next revision.
fn as_revision(text: &str, revision: u64) -> Result<String, StoreError> {
    let unreadable = |e| StoreError(format!("a record cannot be read: {e}"));
    let mut record: Value = serde_json::from_str(text).map_err(unreadable)?;
    if let Some(of) = record.get_mut("revision") {
        *of = revision.into();
    }
    json(&record)
}
