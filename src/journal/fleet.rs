//! The journals of several gates together. Each holds what its own gate did, and nobody knows in which order two gates did things
//! in the same second, so what is compared does not depend on it: what was charged, signed and paid out, to the unit.
//!
//! A line that stands in two journals word for word is one: a gate wrote it for another that died.

use super::audit::{Lost, Owed};
use super::{Entry, Receipt, Settlement};
use crate::channel::Act;
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// One channel in all of the journals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shared {
    opened: Vec<(usize, Entry)>,
    signed: Atoms,
    paid_out: Atoms,
    closed: Vec<(usize, Entry)>,
    /// Who sold on it.
    gates: BTreeSet<usize>,
    charged: u128,
}

impl Shared {
    /// What was spent of it by then, as the line says that closed it first.
    fn closed_at(&self) -> Option<Atoms> {
        match self.closed.first() {
            Some((_, Entry::Closed { spent, .. })) => Some(*spent),
            _ => None,
        }
    }

    /// What of that was never paid out, as the same line says.
    fn lost(&self) -> Option<Lost> {
        self.closed.first().and_then(|(_, line)| Lost::of(line))
    }
}

/// One payment in all of the journals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bought {
    /// The lines that claimed it: more than one when attempts before came to nothing.
    claimed: Vec<(usize, Entry)>,
    dead: Vec<(usize, Entry)>,
    /// How much was to be taken, where that is not the amount.
    taken: BTreeSet<Atoms>,
    paid_at: Option<UnixSeconds>,
}

/// What all gates wrote down. Memory grows with the number of receipts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Together {
    gates: usize,
    channels: BTreeMap<String, Shared>,
    claims: BTreeMap<String, Bought>,
    /// The newest line of each receipt, and whose it is.
    receipts: HashMap<String, (usize, Receipt)>,
    owed: Vec<Owed>,
    faults: Vec<String>,
}

impl Together {
    /// The next gate's lines follow.
    pub fn begin(&mut self) {
        self.gates += 1;
    }

    /// Takes a line in.
    pub fn enter(&mut self, entry: &Entry) {
        let gate = self.gates;
        match entry {
            Entry::Channel { channel, .. } => add(&mut self.of(&channel.0).opened, gate, entry),
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
            Entry::Closed { channel, .. } => add(&mut self.of(&channel.0).closed, gate, entry),
            Entry::Receipt(receipt) => self.sold(receipt),
            Entry::Claimed { key, .. } => add(&mut self.bought(key).claimed, gate, entry),
            Entry::Dead { key, .. } => add(&mut self.bought(key).dead, gate, entry),
            Entry::Taking { key, amount, .. } => drop(self.bought(key).taken.insert(*amount)),
            Entry::Paid { key, at } | Entry::Owed { key, at } => {
                let bought = self.bought(key);
                bought.paid_at = Some(bought.paid_at.map_or(*at, |first| first.min(*at)));
            }
            Entry::Outcome { .. } | Entry::Unproven { .. } | Entry::Doubted { .. } => {}
        }
    }

    fn bought(&mut self, key: &str) -> &mut Bought {
        self.claims.entry(key.to_owned()).or_default()
    }

    fn of(&mut self, id: &str) -> &mut Shared {
        self.channels.entry(id.to_owned()).or_default()
    }

    /// Of one gate the last line of a receipt counts; of two gates the later one, and in one second the larger.
    fn sold(&mut self, receipt: &Receipt) {
        let gate = self.gates;
        if let Some((_, kept)) = self.receipts.get(&receipt.id) {
            // What could not be taken after the reply is charged no more.
            let lost = [kept, receipt].iter().any(|r| r.settlement == Some(Settlement::Lost) && r.charged == Atoms(0));
            if kept.reference != receipt.reference || (kept.charged != receipt.charged && !lost) {
                self.faults.push(format!("receipt {} changed its payment or its amount", receipt.id));
            }
        }
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
            if shared.opened.len() != 1 {
                let times = shared.opened.len();
                self.faults.push(format!("channel {id} was opened {times} times: is a gate's journal missing?"));
            }
            if shared.closed.len() > 1 {
                self.faults.push(format!("channel {id} was closed {} times", shared.closed.len()));
            }
            if let Some(closed) = shared.closed_at().filter(|closed| closed.0 != shared.charged) {
                self.faults
                    .push(format!("channel {id} was closed at {closed}, and its receipts say {}", shared.charged));
            }
            if shared.paid_out > shared.signed || shared.charged > shared.signed.0 {
                let Shared { signed, paid_out, charged, .. } = shared;
                self.faults.push(format!("channel {id}: {charged} charged, {paid_out} paid out, and {signed} signed"));
            }
        }
        self.payments();
    }

    /// Each payment was claimed, is paid for at most once, and has at most one receipt, over what was paid. One that is paid and has none
    /// is owed.
    fn payments(&mut self) {
        let mut receipts: HashMap<&str, Vec<&Receipt>> = HashMap::new();
        for (_, receipt) in self.receipts.values() {
            receipts.entry(receipt.reference.as_str()).or_default().push(receipt);
        }
        for (key, bought) in &self.claims {
            let mut fault = |why: String| self.faults.push(format!("{key} {why}"));
            let (claims, deaths) = (bought.claimed.len(), bought.dead.len());
            let terms: Vec<(Atoms, &str)> = bought.claimed.iter().filter_map(|(_, line)| terms(line)).collect();
            let Some((amount, reference)) = terms.last().copied() else {
                match bought.paid_at {
                    Some(_) => fault("was paid and never claimed".to_owned()),
                    None => fault("is dead or was to be taken, and never claimed".to_owned()),
                }
                continue;
            };
            if claims > deaths.saturating_add(1) {
                fault(format!("was claimed {claims} times, of which {deaths} came to nothing"));
            }
            if bought.paid_at.is_some() && deaths >= claims {
                fault("is dead and was paid".to_owned());
            }
            let sold = receipts.get(reference).map_or(&[][..], Vec::as_slice);
            if sold.len() > 1 {
                let mut ids: Vec<&str> = sold.iter().map(|receipt| receipt.id.as_str()).collect();
                ids.sort_unstable();
                fault(format!("was delivered {} times: receipts {}", ids.len(), ids.join(", ")));
            }
            for receipt in sold {
                let later = matches!(receipt.settlement, Some(Settlement::Pending | Settlement::Lost));
                if bought.paid_at.is_none() && !later {
                    fault(format!("was delivered and never paid: receipt {}", receipt.id));
                }
                let known = terms.iter().any(|(amount, _)| *amount == receipt.charged);
                if !known && !bought.taken.contains(&receipt.charged) && receipt.settlement != Some(Settlement::Lost) {
                    fault(format!("has receipt {} over {}, and {amount} was claimed", receipt.id, receipt.charged));
                }
            }
            if let (Some(paid_at), []) = (bought.paid_at, sold) {
                let amount = bought.taken.last().copied().unwrap_or(amount);
                self.owed.push(Owed { key: key.clone(), amount, reference: reference.to_owned(), paid_at });
            }
        }
        self.owed.sort_by(|a, b| (a.paid_at, &a.key).cmp(&(b.paid_at, &b.key)));
        self.faults.sort();
        self.faults.dedup();
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
            match (shared.closed_at(), shared.lost()) {
                (Some(closed), Some(lost)) => writeln!(f, ", closed at {closed}, {} of it paid out", lost.settled)?,
                (Some(closed), None) => writeln!(f, ", closed at {closed}")?,
                (None, _) => writeln!(f, ", not closed")?,
            }
        }
        let paid = self.claims.values().filter(|bought| bought.paid_at.is_some()).count();
        writeln!(f, "payments  {} claimed, {paid} paid; {} receipts", self.claims.len(), self.receipts.len())?;
        for owed in &self.owed {
            writeln!(f, "{owed}")?;
        }
        let lost: Vec<Lost> = self.channels.values().filter_map(Shared::lost).collect();
        Lost::write_sum(&lost, f)?;
        for fault in &self.faults {
            writeln!(f, "fault     {fault}")?;
        }
        match self.faults.len() {
            0 => writeln!(f, "result    sound"),
            n => writeln!(f, "result    {n} faults"),
        }
    }
}

/// Takes a line in that happens once, unless another gate has written the same for this one.
fn add(lines: &mut Vec<(usize, Entry)>, gate: usize, line: &Entry) {
    if !lines.iter().any(|(of, known)| *of != gate && known == line) {
        lines.push((gate, line.clone()));
    }
}

fn terms(line: &Entry) -> Option<(Atoms, &str)> {
    match line {
        Entry::Claimed { amount, reference, .. } => Some((*amount, reference)),
        _ => None,
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
        begun_with(900)
    }
    fn begun_with(deposit: u128) -> Entry {
        let deposit = Atoms(deposit);
        Entry::Channel { channel: id(), rail: "tempo/session".into(), payer: "p".into(), deposit, at: AT }
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
            (vec![&a, &b, &[begun_with(901)]], Some("opened 2 times")),
            (vec![&[begun(), signed(10), over(0), over(0)]], Some("closed 2 times")),
            (vec![&a, &b, &[over(81)]], Some("closed 2 times")),
            (vec![&a, &b, &[begun(), over(80)]], None),
            (vec![&a, &b, &[sold("s", 51)]], Some("receipt s changed its payment or its amount")),
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

    #[test]
    fn a_channel_that_paid_out_less_than_was_sold_on_it_says_so_once_and_is_no_fault() {
        let closed = || Entry::Closed { channel: id(), spent: Atoms(750), settled: Atoms(300), at: AT };
        let found = together(&[&[begun(), signed(900), sold("r", 750), closed()], &[closed()]]);
        assert!(found.is_sound(), "{found}");
        let said = found.to_string();
        assert!(said.contains("900 signed, closed at 750, 300 of it paid out\n"), "{said}");
        assert!(said.contains("lost      450 atoms in all, 1 channels\n"), "{said}");
        let whole = together(&[&[begun(), signed(900), sold("r", 750), over(750)]]).to_string();
        assert!(whole.contains("closed at 750\n") && !whole.contains("lost "), "{whole}");
    }

    #[test]
    fn what_several_gates_sold_against_one_payment_is_one_delivery_of_what_was_paid() {
        let claimed = |key: &str, atoms, at| Entry::Claimed {
            key: key.into(),
            amount: Atoms(atoms),
            reference: format!("0x{key}"),
            at: UnixSeconds(at),
        };
        let paid = |key: &str| Entry::Paid { key: key.into(), at: UnixSeconds(2) };
        let dead = |key: &str, at| Entry::Dead { key: key.into(), at: UnixSeconds(at) };
        let taking = |key: &str, atoms| Entry::Taking { key: key.into(), amount: Atoms(atoms), at: UnixSeconds(2) };
        let gave = |id: &str, key: &str, atoms| Entry::Receipt(Box::new(receipt(id, &format!("0x{key}"), atoms)));
        let late = |id: &str, key: &str, atoms, settlement| {
            let of = receipt(id, &format!("0x{key}"), atoms);
            Entry::Receipt(Box::new(Receipt { settlement: Some(settlement), ..of }))
        };
        for (a, b, why) in [
            (vec![claimed("k", 20, 1), paid("k")], vec![gave("r", "k", 20)], "sound"),
            (vec![claimed("k", 20, 1), paid("k"), gave("r", "k", 20)], vec![gave("r", "k", 20)], "sound"),
            (vec![claimed("k", 20, 1), paid("k")], vec![paid("k")], "owed      k paid 20 atoms"),
            (vec![claimed("k", 20, 1), paid("k"), gave("r", "k", 20)], vec![gave("s", "k", 20)], "receipts r, s"),
            (vec![claimed("k", 20, 1), gave("r", "k", 20)], vec![], "delivered and never paid"),
            (vec![claimed("k", 20, 1), paid("k")], vec![gave("r", "k", 21)], "over 21, and 20 was claimed"),
            (vec![claimed("k", 20, 1), taking("k", 9)], vec![paid("k"), gave("r", "k", 9)], "sound"),
            (vec![claimed("k", 20, 1), paid("k")], vec![claimed("k", 20, 3)], "claimed 2 times"),
            (vec![claimed("k", 20, 1)], vec![claimed("k", 20, 1)], "sound"),
            (
                vec![claimed("k", 20, 1), dead("k", 2)],
                vec![claimed("k", 20, 3), paid("k"), gave("r", "k", 20)],
                "sound",
            ),
            (vec![claimed("k", 20, 1), dead("k", 2)], vec![paid("k")], "dead and was paid"),
            (vec![], vec![paid("k")], "was paid and never claimed"),
            (vec![dead("k", 1)], vec![], "never claimed"),
            (
                vec![claimed("k", 20, 1), taking("k", 9), late("r", "k", 9, Settlement::Pending)],
                vec![late("r", "k", 0, Settlement::Lost)],
                "sound",
            ),
        ] {
            let found = together(&[&a, &b]);
            let said = found.to_string();
            assert!(said.contains(why), "{why}: {said}");
            assert_eq!(found.is_sound(), why == "sound" || why.starts_with("owed"), "{why}: {said}");
        }
    }
}
