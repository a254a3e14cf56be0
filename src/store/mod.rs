//! Where claims, channels, receipts and the journal are kept. A store swaps whole records by revision and appends; it decides nothing.

#[cfg(test)]
pub mod conformance;
pub mod embedded;
pub mod redis;

use crate::channel::{Channel, ChannelId};
use crate::claim::{Claim, ClaimKey};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::journal::{Entry, Receipt};
use crate::money::Usd;
use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;
use tokio::sync::broadcast;

/// How long the record of a channel that is over can be asked for: whoever comes back to it hears that it is over. After that nobody has
/// heard of it, and no transaction that opened it can be mined again.
pub const OVER_SECONDS: u64 = 30 * 86_400;
/// How many days a running total is kept after its own.
pub const TALLY_DAYS: u64 = 7;

/// What goes into one durable transaction: all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Write {
    /// A record to put. Revision 1 creates and needs the key to be absent; any other needs the stored record to have exactly
    /// the revision before.
    pub claim: Option<Claim>,
    /// The same for a channel. One write has a claim or a channel, never both.
    pub channel: Option<Arc<Channel>>,
    /// Lines for the journal, in order. Receipts among them are found again by [`Store::receipt`].
    pub journal: Vec<Entry>,
    /// Amounts to add to running totals: `(name, day, amount)`.
    pub tally: Vec<(String, u64, Usd)>,
    /// A crash may undo it: everybody sees it at once, and it is durable no later than the claim's next write. A store that
    /// others share may write it like any other.
    pub brief: bool,
}

/// What became of a write. Nothing was written unless it is `Done`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Durable, unless it was to be brief.
    Done,
    /// Somebody was faster; this is the record now (`None`: it is gone).
    Lost(Box<Option<Claim>>),
    /// The same for a channel.
    Overtaken(Box<Option<Channel>>),
}

/// The store cannot answer, or the outcome of a write is not known. Never to be read as "not written".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(pub String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

/// A payer on one rail.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The rail.
    pub rail: &'a RailId,
    /// The payer, as its proofs show him.
    pub payer: &'a str,
}

/// The promise: a call that returned `Swap::Done` survives SIGKILL and power loss, if it was not brief, and of several writers of one revision
/// exactly one gets `Done`.
#[async_trait]
pub trait Store: Send + Sync {
    /// The claim as it is now.
    async fn claim(&self, key: &ClaimKey) -> Result<Option<Claim>, StoreError>;
    /// One durable transaction.
    async fn commit(&self, write: Write) -> Result<Swap, StoreError>;
    /// Every claim that is not over: what recovery has to look at.
    async fn open_claims(&self, now: UnixSeconds) -> Result<Vec<Claim>, StoreError>;
    /// The channel as it is now.
    async fn channel(&self, id: &ChannelId) -> Result<Option<Channel>, StoreError>;
    /// Every channel that is not over, in order of id.
    async fn channels(&self) -> Result<Vec<Channel>, StoreError>;
    /// Those of one payer on one rail that are not over, in order of id.
    async fn channels_of(&self, rail: &RailId, payer: &str) -> Result<Vec<Channel>, StoreError>;
    /// Ids of channels that another gate has changed, as far as anybody hears of it: a poll must stand behind it. `None`: no
    /// other gate can.
    fn changes(&self) -> Option<broadcast::Receiver<ChannelId>>;
    /// Who this gate is, the same after a restart: leases say whose they are.
    fn gate(&self) -> &str;
    /// Whether that gate is running now, as far as can be known. This one is.
    async fn alive(&self, gate: &str) -> Result<bool, StoreError>;
    /// Tells other gates that this one counts `amount` as promised by a payer, from before the claim `key` is written at `revision`
    /// until that is over; and says what they count for him. `ZERO` where no other gate can be.
    async fn promise(&self, payer: Whose<'_>, claim: (&ClaimKey, u64), amount: Usd) -> Result<Usd, StoreError>;
    /// It is not counted after all: its claim is not written.
    async fn unpromise(&self, payer: Whose<'_>, key: &ClaimKey) -> Result<(), StoreError>;
    /// Drops claims that are over and past their `keep_until`, channels that were over for [`OVER_SECONDS`], and totals of days that are
    /// [`TALLY_DAYS`] past, as far as they do not go by themselves. Returns how many claims and channels.
    async fn forget(&self, now: UnixSeconds) -> Result<usize, StoreError>;
    /// A running total.
    async fn tally(&self, name: &str, day: u64) -> Result<Usd, StoreError>;
    /// The newest receipt with this id.
    async fn receipt(&self, id: &str) -> Result<Option<Receipt>, StoreError>;
    /// Compares `facts` (payee, asset, chain per rail, one text each, by name) with those of the last run. `Ok` holds the
    /// differences as sentences; with `accept`, or when there are none or no last run, they become the stored ones. A new
    /// name is a difference when its text is new too (money would go somewhere it never went); a name that is missing is
    /// none, and is remembered in case it comes back.
    async fn facts(&self, facts: &[(String, String)], accept: bool) -> Result<Vec<String>, StoreError>;
    /// Whether it takes writes. After a failed fsync it never does again: the process must be restarted.
    fn standing(&self) -> Result<(), StoreError>;
    /// Whether the operator lets it serve although a crash may lose what it confirmed.
    fn accepts_data_loss(&self) -> bool {
        false
    }
}

/// Where the facts of this run differ from those of the last, as sentences (see [`Store::facts`]).
fn changed_facts(known: &[(String, String)], facts: &[(String, String)]) -> Vec<String> {
    let mut changed = Vec::new();
    for (name, text) in facts {
        match known.iter().find(|(n, _)| n == name) {
            Some((_, before)) if before == text => {}
            Some((_, before)) => changed.push(format!("{name} was {before} in the last run and is {text} now")),
            None if known.is_empty() || known.iter().any(|(_, t)| t == text) => {}
            None => changed.push(format!("{name} is new since the last run: {text}")),
        }
    }
    changed
}
