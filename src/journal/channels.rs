//! The part of the audit that walks channels: nobody is charged or paid out beyond what he signed, and nothing is sent twice.

use super::{Entry, Receipt};
use crate::channel::{Act, Channel, Phase};
use crate::money::Atoms;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What the journal says happened to one channel.
#[derive(Default)]
struct Story {
    /// The opening transaction landed.
    opened: bool,
    /// The highest voucher.
    accepted: Option<Atoms>,
    /// By transaction: what it does, and whether its outcome is written.
    intents: HashMap<String, (Act, bool)>,
    /// Charged so far, by receipt.
    charged: HashMap<String, Atoms>,
    sum: u128,
    /// The most that was paid out beyond what was charged by then.
    beyond: u128,
    /// Spent, when it was closed.
    closed: Option<Atoms>,
}

/// The channels of a journal.
#[derive(Default)]
pub(super) struct Ledger(BTreeMap<String, Story>);

impl Ledger {
    /// Takes the next line in.
    pub fn enter(&mut self, entry: &Entry, faults: &mut Vec<String>) {
        match entry {
            Entry::Channel { channel, .. } => {
                if self.0.insert(channel.0.clone(), Story::default()).is_some() {
                    faults.push(format!("channel {channel} was opened twice"));
                }
            }
            Entry::Voucher { channel, amount, .. } => self.of(&channel.0, faults, |story, faults| {
                if story.accepted.is_some_and(|before| *amount <= before) {
                    faults.push(format!("channel {channel}: a voucher of {amount} came after a higher one"));
                }
                story.accepted = story.accepted.max(Some(*amount));
            }),
            Entry::Intent { channel, act, tx, .. } => self.of(&channel.0, faults, |story, faults| {
                let before = story.intents.insert(tx.clone(), (act.clone(), false));
                // A payer may show his top-up again once its outcome is known. The chain takes it once.
                let again = before.as_ref().is_some_and(|(done, known)| *known && done == act && act.is_payers());
                if before.is_some() && !again {
                    faults.push(format!("channel {channel}: transaction {tx} was decided on twice"));
                }
                let Some(out) = paid_out(act) else { return };
                story.beyond = story.beyond.max(out.0.saturating_sub(story.sum));
                if story.accepted.unwrap_or_default() < out {
                    faults.push(format!("channel {channel}: {tx} pays out {out}, more than was signed"));
                }
            }),
            Entry::Outcome { channel, tx, landed, .. } => {
                self.of(&channel.0, faults, |story, faults| match story.intents.get_mut(tx) {
                    None => faults.push(format!("channel {channel}: {tx} has an outcome and was never decided on")),
                    Some((_, true)) => faults.push(format!("channel {channel}: {tx} has two outcomes")),
                    Some((act, known)) => {
                        *known = true;
                        story.opened |= *landed && *act == Act::Open;
                    }
                })
            }
            Entry::Closed { channel, spent, .. } => self.of(&channel.0, faults, |story, faults| {
                if story.closed.replace(*spent).is_some() {
                    faults.push(format!("channel {channel} was closed twice"));
                }
            }),
            Entry::Receipt(receipt) => self.sold(receipt, faults),
            Entry::Claimed { .. }
            | Entry::Paid { .. }
            | Entry::Dead { .. }
            | Entry::Taking { .. }
            | Entry::Unproven { .. }
            | Entry::Owed { .. }
            | Entry::Doubted { .. } => {}
        }
    }

    fn of(&mut self, id: &str, faults: &mut Vec<String>, tell: impl FnOnce(&mut Story, &mut Vec<String>)) {
        match self.0.get_mut(id) {
            Some(story) => tell(story, faults),
            None => faults.push(format!("channel {id} did something and was never opened")),
        }
    }

    fn sold(&mut self, receipt: &Receipt, faults: &mut Vec<String>) {
        let (id, reference) = (&receipt.id, &receipt.reference);
        let Some(story) = self.0.get_mut(reference) else {
            if receipt.rail.as_str().ends_with("/session") {
                faults.push(format!("receipt {id} is for a channel that was never opened"));
            }
            return;
        };
        if !story.opened {
            faults.push(format!("channel {reference}: receipt {id} is older than the channel"));
        }
        if story.closed.is_some() {
            faults.push(format!("channel {reference}: receipt {id} came after it was closed"));
        }
        let before = story.charged.insert(id.clone(), receipt.charged).unwrap_or_default();
        story.sum = story.sum.saturating_sub(before.0).saturating_add(receipt.charged.0);
    }

    /// Compares the whole walk with the records. A closed channel may have been dropped from them.
    pub fn compare(&self, records: &[Channel], faults: &mut Vec<String>) {
        let known: HashMap<&str, &Channel> = records.iter().map(|record| (record.id.0.as_str(), record)).collect();
        for (id, story) in &self.0 {
            let record = known.get(id.as_str());
            let base = record.map_or(0, |record| record.base.0);
            if story.beyond > base {
                faults.push(format!("channel {id}: {} more was paid out than was charged", story.beyond));
            }
            if let Some(closed) = story.closed
                && closed.0 != story.sum.saturating_add(base)
            {
                faults.push(format!("channel {id} was closed at {closed}, and its receipts say {}", story.sum));
            }
            match record {
                Some(record) => against(story, record, faults),
                None if story.closed.is_none() => {
                    faults.push(format!("channel {id} is in the journal, not closed, and not in the records"));
                }
                None => {}
            }
        }
        let missing: HashSet<&str> = known.keys().copied().filter(|id| !self.0.contains_key(*id)).collect();
        faults.extend(missing.iter().map(|id| format!("channel {id} is in the records and not in the journal")));
    }
}

/// What a transaction of ours brings the payee, in total.
fn paid_out(act: &Act) -> Option<Atoms> {
    match act {
        Act::Settle { amount } => Some(*amount),
        Act::Close { capture, .. } => Some(*capture),
        Act::Open | Act::TopUp { .. } => None,
    }
}

fn against(story: &Story, record: &Channel, faults: &mut Vec<String>) {
    let id = &record.id;
    let (spent, said) = (record.spent(), story.sum.saturating_add(record.base.0));
    if spent.0 != said {
        faults.push(format!("channel {id} says {spent} is spent, and its receipts say {said}"));
    }
    if record.highest().map(|voucher| voucher.amount) != story.accepted {
        faults.push(format!("channel {id} has another highest voucher than the journal says"));
    }
    for intent in [&record.payers_tx, &record.our_tx].into_iter().flatten() {
        if story.intents.get(&intent.tx).is_none_or(|(_, known)| *known) {
            faults.push(format!("channel {id}: {} is under way, and not so in the journal", intent.tx));
        }
    }
    if record.is_over() != story.closed.is_some() {
        faults.push(format!("channel {id} is over in one of records and journal, and not in the other"));
    }
    if matches!(record.phase, Phase::Open) && !story.opened {
        faults.push(format!("channel {id} serves, and the journal does not know that it was opened"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::channel::{ChannelId, Descriptor, Intent, Op, View, Voucher};
    use crate::clock::UnixSeconds;
    use crate::journal::sample::receipt;

    const AT: UnixSeconds = UnixSeconds(1);

    fn id() -> ChannelId {
        ChannelId("0xaa".into())
    }
    fn begun() -> Entry {
        Entry::Channel { channel: id(), rail: "tempo/session".into(), payer: "p".into(), deposit: Atoms(900), at: AT }
    }
    fn signed(amount: u128) -> Entry {
        Entry::Voucher { channel: id(), amount: Atoms(amount), signature: "0x".into(), at: AT }
    }
    fn meant(tx: &str, act: Act) -> Entry {
        Entry::Intent { channel: id(), act, tx: tx.into(), at: AT }
    }
    fn came(tx: &str) -> Entry {
        Entry::Outcome { channel: id(), tx: tx.into(), landed: true, at: AT }
    }
    fn sold(name: &str, atoms: u128) -> Entry {
        Entry::Receipt(Box::new(Receipt { rail: "tempo/session".into(), ..receipt(name, "0xaa", atoms) }))
    }
    fn over(spent: u128) -> Entry {
        Entry::Closed { channel: id(), spent: Atoms(spent), settled: Atoms(spent), at: AT }
    }
    fn settle(amount: u128) -> Act {
        Act::Settle { amount: Atoms(amount) }
    }

    fn top_up() -> Act {
        Act::TopUp { additional: Atoms(5) }
    }

    /// The record after 70 of 500 were spent.
    fn record() -> Channel {
        let word = || "0x".to_owned();
        let descriptor = Descriptor {
            payer: word(),
            payee: word(),
            operator: word(),
            token: word(),
            salt: word(),
            authorized_signer: word(),
            expiring_nonce_hash: word(),
        };
        let open = Intent { act: Act::Open, tx: "0xo".into(), raw: word(), valid_until: AT };
        let voucher = Voucher { amount: Atoms(500), signature: word() };
        let new =
            Channel::opening(id(), "tempo/session".into(), 1, word(), descriptor, 6, Atoms(900), voucher, open, AT);
        let view = View { block: 1, deposit: Atoms(900), settled: Atoms(0), close_requested_at: None };
        let (mut open, _) = new.apply("a", Op::Landed { tx: "0xo".into(), mined: None, view }, AT).unwrap();
        open.spent.insert("g".into(), Atoms(70));
        open
    }

    fn faults(entries: &[Entry], records: &[Channel]) -> Vec<String> {
        let (mut ledger, mut faults) = (Ledger::default(), Vec::new());
        entries.iter().for_each(|entry| ledger.enter(entry, &mut faults));
        ledger.compare(records, &mut faults);
        faults
    }

    fn opened() -> Vec<Entry> {
        vec![begun(), signed(500), meant("0xo", Act::Open), came("0xo")]
    }

    fn after(more: &[Entry]) -> Vec<Entry> {
        opened().into_iter().chain(more.iter().cloned()).collect()
    }

    #[test]
    fn books_of_a_channel_that_hold_together_have_no_fault() {
        for (entries, records, why) in [
            (after(&[sold("r", 70)]), vec![record()], "sold and open"),
            (after(&[sold("r", 0), sold("s", 30), sold("r", 40)]), vec![record()], "the last line of a receipt counts"),
            (
                after(&[sold("r", 70), meant("0xs", settle(70)), came("0xs"), over(70)]),
                vec![],
                "settled, closed, dropped",
            ),
            (vec![begun(), signed(5), meant("0xo", Act::Open), over(0)], vec![], "it never opened"),
            (
                after(&[sold("r", 70), meant("0xt", top_up()), came("0xt"), meant("0xt", top_up()), came("0xt")]),
                vec![record()],
                "a top-up that landed, shown again",
            ),
        ] {
            assert_eq!(faults(&entries, &records), Vec::<String>::new(), "{why}");
        }
    }

    #[test]
    fn books_of_a_channel_that_contradict_each_other_say_so() {
        let close = Act::Close { amount: Atoms(500), capture: Atoms(80) };
        let mut busy = record();
        busy.our_tx = Some(Intent { act: settle(70), tx: "0xs".into(), raw: "0x".into(), valid_until: AT });
        let paid = || sold("r", 70);
        for (entries, records, why) in [
            (
                after(&[begun(), signed(500), meant("0xo", Act::Open), came("0xo"), paid()]),
                vec![record()],
                "opened twice",
            ),
            (vec![signed(5)], vec![], "a voucher of no channel"),
            (vec![sold("r", 5)], vec![], "sold on no channel"),
            (
                vec![begun(), signed(500), paid(), meant("0xo", Act::Open), came("0xo")],
                vec![record()],
                "sold too early",
            ),
            (after(&[signed(500), paid()]), vec![record()], "a voucher that does not rise"),
            (after(&[meant("0xs", settle(70)), paid(), came("0xs")]), vec![record()], "settled before it was spent"),
            (after(&[paid(), meant("0xc", close)]), vec![record()], "more than was spent is captured"),
            (after(&[paid(), came("0xs")]), vec![record()], "an outcome of nothing"),
            (after(&[paid(), meant("0xs", settle(70)), came("0xs"), came("0xs")]), vec![record()], "two outcomes"),
            (after(&[paid(), meant("0xs", settle(70)), meant("0xs", settle(70))]), vec![record()], "one intent twice"),
            (
                after(&[paid(), meant("0xt", top_up()), meant("0xt", top_up())]),
                vec![record()],
                "a top-up twice with nothing known of it",
            ),
            (
                after(&[paid(), meant("0xs", settle(70)), came("0xs"), meant("0xs", settle(70))]),
                vec![record()],
                "one of ours again after its outcome",
            ),
            (after(&[sold("r", 69)]), vec![record()], "the record says 70"),
            (after(&[paid(), over(71)]), vec![], "closed at more than was sold"),
            (after(&[over(0), paid()]), vec![], "sold after it was closed"),
            (after(&[paid()]), vec![], "an open channel is missing"),
            (after(&[paid(), signed(501)]), vec![record()], "a voucher is missing"),
            (after(&[paid()]), vec![busy], "a transaction that the journal never saw"),
            (after(&[paid(), over(70)]), vec![record()], "closed, and the record serves"),
            (vec![], vec![record()], "a channel that the journal never saw"),
        ] {
            assert!(!faults(&entries, &records).is_empty(), "{why}");
        }
    }
}
