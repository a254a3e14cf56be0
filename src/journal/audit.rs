//! The audit walk: does the journal hold together, does it agree with the claims, and what does it add up to?

use super::chain::{Broken, Head};
use super::channels::Ledger;
use super::fleet::Together;
use super::{Entry, Receipt, Settlement};
use crate::channel::{Channel, ChannelId};
use crate::claim::{Claim, Standing};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::money::{Atoms, Usd};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// What was charged on one rail on one UTC day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Receipts.
    pub receipts: u64,
    /// Those whose reply was not delivered whole.
    pub incomplete: u64,
    /// Atoms of the rail's asset.
    pub charged: Atoms,
    /// The same in dollars, as the receipts say.
    pub charged_usd: Usd,
}

/// A payment for which nothing was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// The claim.
    pub key: String,
    /// What was paid.
    pub amount: Atoms,
    /// Reference on chain.
    pub reference: String,
    /// When the payment was seen.
    pub paid_at: UnixSeconds,
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, amount, reference, paid_at } = self;
        write!(f, "owed      {key} paid {amount} atoms at {}, reference {reference}", paid_at.rfc3339())
    }
}

/// A charge of which nobody can say what was delivered for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubted {
    /// The receipt.
    pub receipt: String,
    /// What was charged.
    pub charged: Atoms,
    /// Reference on chain: of a session its channel.
    pub reference: String,
    /// When that was written down.
    pub at: UnixSeconds,
}

/// A channel that was over before all that was sold on it was paid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The channel.
    pub channel: ChannelId,
    /// What was spent of it, in atoms of its asset.
    pub spent: Atoms,
    /// What the chain paid out of that, as far as was known when it was over.
    pub settled: Atoms,
    /// When it was over.
    pub at: UnixSeconds,
}

impl Lost {
    /// What the line says that closed a channel; `None` for other lines, and when all of it was paid out.
    pub(super) fn of(line: &Entry) -> Option<Self> {
        match line {
            Entry::Closed { channel, spent, settled, at } if settled < spent => {
                Some(Self { channel: channel.clone(), spent: *spent, settled: *settled, at: *at })
            }
            _ => None,
        }
    }

    /// What is missing.
    pub fn atoms(&self) -> Atoms {
        Atoms(self.spent.0.saturating_sub(self.settled.0))
    }

    /// Writes the sum of them, as atoms of whatever asset; nothing when there are none.
    pub(super) fn write_sum<'l>(all: impl IntoIterator<Item = &'l Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut sum, mut channels) = (Atoms(0), 0_u64);
        for lost in all {
            (sum, channels) = (Atoms(sum.0.saturating_add(lost.atoms().0)), channels + 1);
        }
        if channels > 0 { writeln!(f, "lost      {sum} atoms in all, {channels} channels") } else { Ok(()) }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { channel, spent, settled, at } = self;
        let (lost, at) = (self.atoms(), at.rfc3339());
        write!(f, "lost      {channel} {lost} atoms: {spent} spent, {settled} paid out, over at {at}")
    }
}

/// Channels, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locked {
    /// Those that are not over.
    pub open: u64,
    /// Those that are.
    pub over: u64,
    /// What payers signed for, in open ones, as atoms of whatever asset.
    pub accepted: Atoms,
    /// What was spent of it.
    pub spent: Atoms,
    /// What is paid out of that.
    pub settled: Atoms,
}

/// What an audit found. Memory grows with the number of receipts: about half a kilobyte each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Where the walk ended. Kept elsewhere, it proves later that nothing before it was changed.
    pub head: Head,
    /// The first line that does not follow, when there is one. Nothing after it was believed.
    pub broken: Option<Broken>,
    /// Contradictions, one sentence each.
    pub faults: Vec<String>,
    /// Paid, nothing delivered, oldest first. Not a fault of the books: the operator's list.
    pub owed: Vec<Owed>,
    /// Charged, and nobody can say what was delivered, oldest first. On the operator's list as well.
    pub doubted: Vec<Doubted>,
    /// Sold on channels and never paid out, oldest first. On the operator's list as well: in the sums it is charged.
    pub lost: Vec<Lost>,
    /// Sums by UTC day (days since 1970), rail, and decimals of its asset.
    pub sums: BTreeMap<(u64, RailId, u8), Sum>,
    /// Lines of a kind that this build does not know.
    pub unknown_lines: u64,
    /// It is the journal of one gate of several: only its own lines and sums were looked at.
    pub part: bool,
    /// Claims that were compared with the journal.
    pub claims: u64,
    /// What the channels' records say.
    pub channels: Locked,
}

impl Audit {
    /// Whether the books can be trusted.
    pub fn is_sound(&self) -> bool {
        self.broken.is_none() && self.faults.is_empty()
    }
}

/// Walks `lines` from the first, compares the end with the `head` that is kept beside them, and every claim and channel with
/// what the journal says about it. Errors of any iterator are faults of the books, not of the audit.
pub fn audit(
    lines: impl IntoIterator<Item = Result<String, String>>,
    head: Head,
    claims: impl IntoIterator<Item = Result<Claim, String>>,
    channels: impl IntoIterator<Item = Result<Channel, String>>,
) -> Audit {
    let (books, mut found) = walk(lines, head, |_| ());
    if found.broken.is_none() {
        for claim in claims {
            found.claims += 1;
            match claim {
                Ok(claim) => books.compare(&claim, &mut found.faults),
                Err(why) => found.faults.push(why),
            }
        }
        let mut records = Vec::new();
        for channel in channels {
            match channel {
                Ok(channel) => records.push(channel),
                Err(why) => found.faults.push(why),
            }
        }
        books.channels.compare(&records, &mut found.faults);
        records.iter().for_each(|channel| found.channels.add(channel));
    }
    found
}

/// Walks the journal of one gate of several: does it hold together, and what did this gate charge? What the others did, and the
/// records that all of them share, are not in it, so nothing else can be said until every gate's lines are `together`.
pub fn audit_part(
    lines: impl IntoIterator<Item = Result<String, String>>,
    head: Head,
    together: &mut Together,
) -> Audit {
    together.begin();
    let (_, mut found) = walk(lines, head, |entry| together.enter(entry));
    found.faults.clear();
    found.owed.clear();
    found.part = true;
    found
}

fn walk(
    lines: impl IntoIterator<Item = Result<String, String>>,
    head: Head,
    mut tell: impl FnMut(&Entry),
) -> (Books, Audit) {
    let mut books = Books::default();
    let mut found = Audit::default();
    for line in lines {
        let followed = line
            .map_err(|why| Broken { at: found.head.lines.saturating_add(1), why })
            .and_then(|line| found.head.follow(&line));
        match followed {
            Ok((next, entry)) => {
                found.head = next;
                match entry {
                    Some(entry) => {
                        tell(&entry);
                        books.enter(entry, &mut found.faults);
                    }
                    None => found.unknown_lines += 1,
                }
            }
            Err(broken) => {
                found.broken = Some(broken);
                break;
            }
        }
    }
    if found.broken.is_none() && found.head != head {
        let why = format!("it ends at {}, and its head says {head}", found.head);
        found.broken = Some(Broken { at: found.head.lines.saturating_add(1), why });
    }
    books.add_up(&mut found);
    (books, found)
}

impl Locked {
    fn add(&mut self, channel: &Channel) {
        if channel.is_over() {
            self.over += 1;
            return;
        }
        self.open += 1;
        let add = |sum: &mut Atoms, more: Atoms| *sum = Atoms(sum.0.saturating_add(more.0));
        add(&mut self.accepted, channel.accepted());
        add(&mut self.spent, channel.spent());
        add(&mut self.settled, channel.view.settled);
    }
}

/// What the journal says happened to one claim.
struct Story {
    amount: Atoms,
    reference: String,
    taken: Option<Atoms>,
    paid_at: Option<UnixSeconds>,
    dead: bool,
    unproven: bool,
}

impl Story {
    fn paid(&self) -> Atoms {
        self.taken.unwrap_or(self.amount)
    }
}

#[derive(Default)]
struct Books {
    stories: HashMap<String, Story>,
    receipts: HashMap<String, Receipt>,
    /// Receipt ids by reference on chain.
    delivered: HashMap<String, String>,
    doubted: Vec<Doubted>,
    lost: Vec<Lost>,
    channels: Ledger,
}

impl Books {
    fn enter(&mut self, entry: Entry, faults: &mut Vec<String>) {
        self.channels.enter(&entry, faults);
        match entry {
            Entry::Claimed { key, amount, reference, at: _ } => {
                let story = Story { amount, reference, taken: None, paid_at: None, dead: false, unproven: false };
                // After a dead attempt with somebody else's hash its owner may claim it, and what was not taken may be shown again.
                if self.stories.insert(key.clone(), story).is_some_and(|before| !before.dead) {
                    faults.push(format!("{key} was claimed twice"));
                }
            }
            Entry::Paid { key, at } | Entry::Owed { key, at } => match self.stories.get_mut(&key) {
                Some(story) if story.dead => faults.push(format!("{key} was paid after it was dead")),
                Some(story) => story.paid_at = story.paid_at.or(Some(at)),
                None => faults.push(format!("{key} was paid and never claimed")),
            },
            Entry::Dead { key, at: _ } => match self.stories.get_mut(&key) {
                Some(story) if story.paid_at.is_some() => faults.push(format!("{key} is dead and was paid")),
                Some(story) => story.dead = true,
                None => faults.push(format!("{key} is dead and was never claimed")),
            },
            Entry::Taking { key, amount, at: _ } => match self.stories.get_mut(&key) {
                Some(story) if story.dead || story.paid_at.is_some() || amount > story.amount => {
                    faults.push(format!("{amount} of {key} were to be taken, which cannot be"));
                }
                Some(story) => story.taken = Some(amount),
                None => faults.push(format!("{key} was to be taken and was never claimed")),
            },
            Entry::Unproven { key, at: _ } => match self.stories.get_mut(&key) {
                Some(story) if story.paid_at.is_some() => faults.push(format!("{key} is unproven and was paid")),
                Some(story) => story.unproven = true,
                None => faults.push(format!("{key} is unproven and was never claimed")),
            },
            Entry::Doubted { receipt, reference, charged, at } => {
                self.doubted.push(Doubted { receipt, charged, reference, at });
            }
            Entry::Closed { .. } => self.lost.extend(Lost::of(&entry)),
            // In the ledger of channels.
            Entry::Channel { .. } | Entry::Voucher { .. } | Entry::Intent { .. } | Entry::Outcome { .. } => {}
            Entry::Receipt(receipt) => {
                // What could not be taken after the reply is charged no more.
                let lost = receipt.settlement == Some(Settlement::Lost) && receipt.charged == Atoms(0);
                if let Some(before) = self.receipts.get(&receipt.id)
                    && (before.reference != receipt.reference || (before.charged != receipt.charged && !lost))
                {
                    faults.push(format!("receipt {} changed its payment or its amount", receipt.id));
                }
                self.delivered.entry(receipt.reference.clone()).or_insert_with(|| receipt.id.clone());
                self.receipts.insert(receipt.id.clone(), *receipt);
            }
        }
    }

    fn add_up(&self, found: &mut Audit) {
        for receipt in self.receipts.values() {
            let sum = found.sums.entry((receipt.at.day(), receipt.rail.clone(), receipt.decimals)).or_default();
            sum.receipts += 1;
            sum.incomplete += u64::from(!receipt.complete);
            match (sum.charged.0.checked_add(receipt.charged.0), sum.charged_usd.plus(receipt.charged_usd)) {
                (Some(atoms), Some(usd)) => (sum.charged, sum.charged_usd) = (Atoms(atoms), usd),
                _ => found.faults.push(format!("receipt {} is larger than can be added up", receipt.id)),
            }
        }
        let by_reference: HashMap<&str, &str> =
            self.stories.iter().map(|(key, story)| (story.reference.as_str(), key.as_str())).collect();
        for receipt in self.receipts.values() {
            // Only claims are bought once; a channel's reference has as many receipts as requests.
            let first = self.delivered.get(&receipt.reference);
            if let (Some(key), Some(first)) = (by_reference.get(receipt.reference.as_str()), first)
                && *first != receipt.id
            {
                found.faults.push(format!("{key} was delivered twice: receipts {first} and {}", receipt.id));
            }
        }
        for (key, story) in &self.stories {
            let receipt = self.delivered.get(&story.reference).and_then(|id| self.receipts.get(id));
            let delivered = receipt.is_some();
            let after = receipt.and_then(|r| r.settlement);
            match story.paid_at {
                Some(paid_at) if !delivered => found.owed.push(Owed {
                    key: key.clone(),
                    amount: story.paid(),
                    reference: story.reference.clone(),
                    paid_at,
                }),
                None if matches!(after, Some(Settlement::Pending | Settlement::Lost)) => {}
                None if delivered => found.faults.push(format!("{key} was delivered and never paid")),
                _ => {}
            }
        }
        found.doubted = self.doubted.clone();
        found.doubted.sort_by(|a, b| (a.at, &a.receipt).cmp(&(b.at, &b.receipt)));
        found.doubted.dedup_by(|a, b| a.receipt == b.receipt);
        found.lost = self.lost.clone();
        found.lost.sort_by(|a, b| (a.at, &a.channel).cmp(&(b.at, &b.channel)));
        found.owed.sort_by(|a, b| (a.paid_at, &a.key).cmp(&(b.paid_at, &b.key)));
        found.faults.sort();
    }

    fn compare(&self, claim: &Claim, faults: &mut Vec<String>) {
        let key = &claim.key.0;
        let Some(story) = self.stories.get(key) else {
            faults.push(format!("{key} is in the claims and not in the journal"));
            return;
        };
        if (story.amount, &story.reference) != (claim.terms.amount, &claim.reference) {
            faults.push(format!("{key} has another amount or reference than the journal says"));
        }
        if claim.paid_at.is_some() != story.paid_at.is_some() {
            faults.push(format!("{key} is paid in one of claims and journal, and not in the other"));
        }
        if matches!(claim.standing, Standing::Dead | Standing::Untaken) != story.dead {
            faults.push(format!("{key} is dead in one of claims and journal, and not in the other"));
        }
        if (claim.standing == Standing::Unproven) != story.unproven {
            faults.push(format!("{key} is unproven in one of claims and journal, and not in the other"));
        }
        match (&claim.standing, self.delivered.get(&claim.reference)) {
            (Standing::Delivered { receipt }, _) => match self.receipts.get(receipt) {
                None => faults.push(format!("{key} is delivered and its receipt {receipt} is missing")),
                Some(r)
                    if (&r.reference, &r.rail, r.charged)
                        != (&claim.reference, &claim.terms.rail, claim.paid_amount()) =>
                {
                    faults.push(format!("receipt {receipt} is not for what {key} paid"));
                }
                Some(_) => {}
            },
            // Served first and paid after.
            (Standing::Taking { receipt: Some(own), .. } | Standing::Lost { receipt: own }, Some(receipt))
                if own == receipt => {}
            (_, Some(receipt)) => faults.push(format!("{key} has receipt {receipt} and is not delivered")),
            (_, None) => {}
        }
    }
}

impl fmt::Display for Audit {
    /// One fact a line, for people and for `grep`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "journal   {} lines, head {}", self.head.lines, self.head)?;
        if self.part {
            writeln!(f, "part      one gate's journal: the records are shared with others and are not compared")?;
        } else {
            writeln!(f, "claims    {} compared", self.claims)?;
        }
        let Locked { open, over, accepted, spent, settled } = self.channels;
        writeln!(
            f,
            "channels  {open} open, {over} over; open ones: {accepted} atoms signed, {spent} spent, {settled} settled"
        )?;
        if self.unknown_lines > 0 {
            writeln!(f, "unknown   {} lines of a later version", self.unknown_lines)?;
        }
        for ((day, rail, decimals), sum) in &self.sums {
            let date = UnixSeconds(day.saturating_mul(86_400)).rfc3339();
            write!(f, "charged   {} {rail} ${}", date.get(..10).unwrap_or(&date), sum.charged_usd)?;
            write!(f, " = {} atoms of {decimals} decimals, {} receipts", sum.charged, sum.receipts)?;
            writeln!(f, ", {} of them cut short", sum.incomplete)?;
        }
        for owed in &self.owed {
            writeln!(f, "{owed}")?;
        }
        for doubted in &self.doubted {
            let Doubted { receipt, charged, reference, at } = doubted;
            writeln!(f, "doubted   {receipt} charged {charged} atoms at {}, reference {reference}", at.rfc3339())?;
        }
        for lost in &self.lost {
            writeln!(f, "{lost}")?;
        }
        Lost::write_sum(&self.lost, f)?;
        for fault in &self.faults {
            writeln!(f, "fault     {fault}")?;
        }
        match (&self.broken, self.is_sound()) {
            (Some(broken), _) => writeln!(f, "broken    {broken}"),
            (None, false) => writeln!(f, "result    {} faults", self.faults.len()),
            (None, true) => writeln!(f, "result    sound"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::channel::{Act, ChannelId};
    use crate::claim::sample;
    use crate::journal::sample::receipt;

    fn write(entries: &[Entry]) -> (Vec<Result<String, String>>, Head) {
        let mut head = Head::default();
        let lines = entries
            .iter()
            .map(|e| {
                let (line, next) = head.append(e).unwrap();
                head = next;
                Ok(line)
            })
            .collect();
        (lines, head)
    }

    fn claimed(key: &str, reference: &str) -> Entry {
        Entry::Claimed { key: key.into(), amount: Atoms(20_000), reference: reference.into(), at: UnixSeconds(1) }
    }
    fn paid(key: &str) -> Entry {
        Entry::Paid { key: key.into(), at: UnixSeconds(2) }
    }
    fn dead(key: &str) -> Entry {
        Entry::Dead { key: key.into(), at: UnixSeconds(2) }
    }
    fn sold(id: &str, reference: &str) -> Entry {
        Entry::Receipt(Box::new(receipt(id, reference, 20_000)))
    }
    fn claim(key: &str, standing: Standing) -> Result<Claim, String> {
        let paid_at = (!matches!(standing, Standing::Dead | Standing::Claimed { .. })).then_some(UnixSeconds(2));
        Ok(Claim { standing, paid_at, reference: "0xa".into(), ..sample::claim(key, 20_000) })
    }
    fn delivered(receipt: &str) -> Standing {
        Standing::Delivered { receipt: receipt.into() }
    }

    #[test]
    fn sums_count_every_receipt_once_however_often_it_was_written() {
        let cut = Entry::Receipt(Box::new(Receipt { complete: false, ..receipt("r2", "0xb", 5) }));
        let (lines, head) = write(&[
            claimed("a", "0xa"),
            paid("a"),
            sold("r1", "0xa"),
            sold("r1", "0xa"),
            cut,
            claimed("c", "0xc"),
            paid("c"),
        ]);
        let found = audit(lines, head, [claim("a", delivered("r1"))], []);
        assert!(found.is_sound(), "{found}");
        let sums: Vec<_> = found.sums.values().collect();
        let want = Sum { receipts: 2, incomplete: 1, charged: Atoms(20_005), charged_usd: Usd(20_005_000_000_000_000) };
        assert_eq!(sums, [&want]);
        assert_eq!(found.owed.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), ["c"], "paid, nothing delivered");
        assert_eq!((found.head, found.claims), (head, 1));
    }

    #[test]
    fn what_was_charged_and_may_not_be_delivered_is_on_the_operators_list_and_no_fault() {
        let doubted = || Entry::Doubted {
            receipt: "r1".into(),
            reference: "0xa".into(),
            charged: Atoms(20_000),
            at: UnixSeconds(86_400),
        };
        let (lines, head) = write(&[claimed("a", "0xa"), paid("a"), sold("r1", "0xa"), doubted(), doubted()]);
        let alone = audit(lines.clone(), head, [claim("a", delivered("r1"))], []);
        let part = audit_part(lines, head, &mut Together::default());
        for found in [alone, part] {
            assert!(found.is_sound(), "{found}");
            let line = "doubted   r1 charged 20000 atoms at 1970-01-02T00:00:00Z, reference 0xa\n";
            assert_eq!(found.to_string().matches(line).count(), 1, "{found}");
        }
    }

    #[test]
    fn what_was_sold_on_a_channel_and_never_paid_out_is_listed_and_added_up_and_is_no_fault() {
        let story = |id: &str, spent: u128, settled: u128, at: u64| {
            let channel = || ChannelId(id.into());
            let (tx, at) = (format!("{id}-open"), UnixSeconds(at));
            let (rail, payer) = ("tempo/session".into(), "p".into());
            let sale = receipt(&format!("{id}-sale"), id, spent);
            [
                Entry::Channel { channel: channel(), rail, payer, deposit: Atoms(900), at },
                Entry::Voucher { channel: channel(), amount: Atoms(900), signature: "0x".into(), at },
                Entry::Intent { channel: channel(), act: Act::Open, tx: tx.clone(), at },
                Entry::Outcome { channel: channel(), tx, landed: true, at },
                Entry::Receipt(Box::new(Receipt { rail: "tempo/session".into(), ..sale })),
                Entry::Closed { channel: channel(), spent: Atoms(spent), settled: Atoms(settled), at },
            ]
        };
        let stories =
            [story("0xaa", 750, 300, 172_800), story("0xbb", 70, 70, 86_400), story("0xcc", 20, 0, 86_400)].concat();
        let (lines, head) = write(&stories);
        let alone = audit(lines.clone(), head, [], []);
        let part = audit_part(lines, head, &mut Together::default());
        for found in [alone, part] {
            assert!(found.is_sound(), "{found}");
            let said = found.to_string();
            let lost: Vec<&str> = said.lines().filter(|line| line.starts_with("lost ")).collect();
            let want = [
                "lost      0xcc 20 atoms: 20 spent, 0 paid out, over at 1970-01-02T00:00:00Z",
                "lost      0xaa 450 atoms: 750 spent, 300 paid out, over at 1970-01-03T00:00:00Z",
                "lost      470 atoms in all, 2 channels",
            ];
            assert_eq!(lost, want, "{said}");
        }
    }

    #[test]
    fn a_proof_may_be_claimed_again_after_an_attempt_that_came_to_nothing() {
        let a = || claimed("a", "0xa");
        let (lines, head) = write(&[a(), dead("a"), a(), paid("a"), sold("r1", "0xa")]);
        let found = audit(lines, head, [], []);
        assert_eq!((found.is_sound(), found.owed.len()), (true, 0), "{found}");
    }

    #[test]
    fn books_that_contradict_each_other_are_not_sound() {
        let other = Entry::Receipt(Box::new(receipt("r1", "0xa", 19_999)));
        let a = || claimed("a", "0xa");
        for (entries, claims, why) in [
            (vec![a(), paid("a"), a()], vec![], "one proof claimed twice"),
            (vec![paid("a")], vec![], "paid and never claimed"),
            (vec![a(), dead("a"), paid("a")], vec![], "paid after death"),
            (vec![a(), paid("a"), dead("a")], vec![], "dead though paid"),
            (vec![a(), sold("r1", "0xa")], vec![], "delivered and never paid"),
            (vec![a(), paid("a"), sold("r1", "0xa"), sold("r2", "0xa")], vec![], "two deliveries of one payment"),
            (vec![a(), paid("a"), sold("r1", "0xa"), other.clone()], vec![], "a receipt that changes its amount"),
            (vec![a(), paid("a")], vec![claim("a", delivered("r1"))], "delivered without a receipt"),
            (vec![a(), paid("a"), other], vec![claim("a", delivered("r1"))], "charged another amount than was paid"),
            (vec![a(), paid("a"), sold("r1", "0xa")], vec![claim("a", Standing::Owed)], "receipt, yet still owed"),
            (vec![a(), paid("a"), sold("r1", "0xa")], vec![claim("a", delivered("r2"))], "another receipt's id"),
            (vec![a()], vec![claim("a", Standing::Owed)], "paid in the claims only"),
            (vec![a()], vec![claim("a", Standing::Dead)], "dead in the claims only"),
            (vec![], vec![claim("a", Standing::Owed)], "a claim the journal never saw"),
            (vec![], vec![Err("unreadable".to_owned())], "a claim that cannot be read"),
        ] {
            let (lines, head) = write(&entries);
            let found = audit(lines, head, claims, []);
            assert!(!found.is_sound() && found.broken.is_none(), "{why}: {found}");
            assert_eq!(found.faults.len(), 1, "{why}: {found}");
        }
    }

    #[test]
    fn a_broken_or_shortened_journal_is_not_sound() {
        let (lines, head) = write(&[claimed("a", "0xa"), paid("a"), sold("r1", "0xa")]);
        let short = audit(lines[..2].to_vec(), head, [], []);
        assert_eq!(short.broken.map(|b| b.at), Some(3), "the head knows of one more line");
        let mut edited = lines;
        edited[1] = edited[1].clone().map(|l| l.replace("\"at\":2", "\"at\":3"));
        let found = audit(edited, head, [], []);
        assert_eq!(found.broken.map(|b| b.at), Some(3), "the line after the edited one does not follow");
    }
}
