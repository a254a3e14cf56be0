//! The journals of several gates together. Each holds what its own gate did, and nobody knows in which order two gates did things
//! in the same second, so what is compared does not depend on it: what was charged, signed and paid out, to the unit.

use super::{Entry, Receipt};
use crate::channel::Act;
use crate::money::Atoms;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// One channel in all of the journals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shared {
    opened: u32,
    signed: Atoms,
    paid_out: Atoms,
    closed: Vec<Atoms>,
    /// Who sold on it.
    gates: BTreeSet<usize>,
    charged: u128,
}

/// What all gates wrote down. Memory grows with the number of receipts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Together {
    gates: usize,
    channels: BTreeMap<String, Shared>,
    claimed: HashSet<String>,
    paid: BTreeSet<String>,
    /// The newest line of each receipt, and whose it is.
    receipts: HashMap<String, (usize, Receipt)>,
    faults: Vec<String>,
}

impl Together {
    /// The next gate's lines follow.
    pub fn begin(&mut self) {
        self.gates += 1;
    }

    /// Takes a line in.
    pub fn enter(&mut self, entry: &Entry) {
        match entry {
            Entry::Channel { channel, .. } => self.of(&channel.0).opened += 1,
            Entry::Voucher { channel, amount, .. } => {
                let shared = self.of(&channel.0);
                shared.signed = shared.signed.max(*amount);
            }
            Entry::Intent { channel, act, .. } => {
                let shared = self.of(&channel.0);
                let out = match act {
                    Act::Settle { amount } => *amount,
                    Act::Close { capture, .. } => *capture,
                    Act::Open | Act::TopUp { .. } => Atoms(0),
                };
                shared.paid_out = shared.paid_out.max(out);
            }
            Entry::Closed { channel, spent, .. } => self.of(&channel.0).closed.push(*spent),
            Entry::Receipt(receipt) => self.sold(receipt),
            Entry::Claimed { key, .. } => {
                self.claimed.insert(key.clone());
            }
            Entry::Paid { key, .. } | Entry::Owed { key, .. } => {
                self.paid.insert(key.clone());
            }
            Entry::Outcome { .. } | Entry::Dead { .. } | Entry::Taking { .. } | Entry::Unproven { .. } => {}
        }
    }

    fn of(&mut self, id: &str) -> &mut Shared {
        self.channels.entry(id.to_owned()).or_default()
    }

    /// Of one gate the last line of a receipt counts; of two gates the later one, and in one second the larger.
    fn sold(&mut self, receipt: &Receipt) {
        let gate = self.gates;
        match self.receipts.get(&receipt.id) {
            Some((whose, kept)) if *whose != gate && (kept.at, kept.charged) > (receipt.at, receipt.charged) => {}
            _ => drop(self.receipts.insert(receipt.id.clone(), (gate, receipt.clone()))),
        }
    }

    /// All lines of all gates are in: what do they add up to?
    pub fn end(&mut self) {
        for (gate, receipt) in self.receipts.values() {
            let known = self.channels.contains_key(&receipt.reference);
            if !known && !receipt.rail.as_str().ends_with("/session") {
                continue;
            }
            let shared = self.channels.entry(receipt.reference.clone()).or_default();
            shared.gates.insert(*gate);
            shared.charged = shared.charged.saturating_add(receipt.charged.0);
        }
        for (id, shared) in &self.channels {
            if shared.opened != 1 {
                let said = format!("channel {id} was opened {} times: is a gate's journal missing?", shared.opened);
                self.faults.push(said);
            }
            if shared.closed.len() > 1 {
                self.faults.push(format!("channel {id} was closed {} times", shared.closed.len()));
            }
            if let Some(closed) = shared.closed.first().filter(|closed| closed.0 != shared.charged) {
                self.faults
                    .push(format!("channel {id} was closed at {closed}, and its receipts say {}", shared.charged));
            }
            if shared.paid_out > shared.signed || shared.charged > shared.signed.0 {
                let Shared { signed, paid_out, charged, .. } = shared;
                self.faults.push(format!("channel {id}: {charged} charged, {paid_out} paid out, and {signed} signed"));
            }
        }
        let unclaimed = self.paid.iter().filter(|key| !self.claimed.contains(*key));
        self.faults.extend(unclaimed.map(|key| format!("{key} was paid and never claimed")));
    }

    /// Whether the journals agree with each other.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Together {
    /// One fact a line, for people and for `grep`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "together  {} journals, {} channels", self.gates, self.channels.len())?;
        for (id, shared) in &self.channels {
            let Shared { signed, charged, gates, .. } = shared;
            write!(f, "channel   {id} {charged} atoms charged by {} gates, {signed} signed", gates.len())?;
            match shared.closed.first() {
                Some(closed) => writeln!(f, ", closed at {closed}")?,
                None => writeln!(f, ", not closed")?,
            }
        }
        for fault in &self.faults {
            writeln!(f, "fault     {fault}")?;
        }
        match self.faults.len() {
            0 => writeln!(f, "result    sound"),
            n => writeln!(f, "result    {n} faults"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::channel::ChannelId;
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
    fn sold(name: &str, atoms: u128) -> Entry {
        Entry::Receipt(Box::new(Receipt { rail: "tempo/session".into(), ..receipt(name, "0xaa", atoms) }))
    }
    fn over(spent: u128) -> Entry {
        Entry::Closed { channel: id(), spent: Atoms(spent), settled: Atoms(spent), at: AT }
    }

    fn together(journals: &[&[Entry]]) -> Together {
        let mut together = Together::default();
        for journal in journals {
            together.begin();
            journal.iter().for_each(|entry| together.enter(entry));
        }
        together.end();
        together
    }

    #[test]
    fn what_several_gates_sold_on_one_channel_adds_up_to_what_it_was_closed_at() {
        let a = [begun(), signed(100), sold("r", 30), signed(400)];
        let b = [signed(300), sold("s", 50), over(80)];
        let found = together(&[&a, &b]);
        assert!(found.is_sound(), "{found}");
        assert!(found.to_string().contains("0xaa 80 atoms charged by 2 gates, 400 signed, closed at 80"), "{found}");
        for (journals, why) in [
            (vec![a.as_slice()], None),
            (vec![b.as_slice()], Some("opened 0 times")),
            (vec![&[begun(), signed(100), sold("r", 29)], &b], Some("closed at 80, and its receipts say 79")),
            (vec![&a, &b, &[begun()]], Some("opened 2 times")),
            (vec![&a, &b, &[over(80)]], Some("closed 2 times")),
            (vec![&[begun(), signed(10), sold("r", 11)]], Some("11 charged, 0 paid out, and 10 signed")),
            (vec![&a, &b, &[sold("s", 50)]], None),
        ] {
            let found = together(&journals).to_string();
            match why {
                None => assert!(found.ends_with("result    sound\n"), "{found}"),
                Some(why) => assert!(found.contains(why), "{why}: {found}"),
            }
        }
    }
}
