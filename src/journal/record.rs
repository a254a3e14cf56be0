//! What the journal holds.

use crate::channel::{Act, ChannelId};
use crate::clock::UnixSeconds;
use crate::ids::{Generation, PoolName, PublicModel, RailId, RoutePath, TierName};
use crate::money::{Atoms, Usd};
use crate::usage::{Usage, UsageSource};
use serde::{Deserialize, Serialize};

/// What was used, what was charged, on which rail. Durable before it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// `rcpt_…`.
    pub id: String,
    /// `req_…`, as in the access log.
    pub request: String,
    /// When it was written.
    pub at: UnixSeconds,
    /// Route.
    pub route: RoutePath,
    /// Tier.
    pub tier: TierName,
    /// Model as the client knows it.
    pub model: PublicModel,
    /// Pool that served it.
    pub pool: PoolName,
    /// Server of that pool, by the name the rules give it; absent in receipts of before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Rail it was paid on.
    pub rail: RailId,
    /// Rules that priced it.
    pub generation: Generation,
    /// Amount taken, in atoms of the rail's asset.
    pub charged: Atoms,
    /// Decimals of that asset.
    pub decimals: u8,
    /// The same in dollars.
    pub charged_usd: Usd,
    /// What the reported usage costs at this model's prices. `None` while it is not known (a stream's head) or when nobody
    /// reported.
    pub actual_usd: Option<Usd>,
    /// Tokens.
    pub usage: Option<Usage>,
    /// Who counted them.
    pub usage_source: Option<UsageSource>,
    /// Reference on chain.
    pub reference: String,
    /// The transaction that paid, once it is known, where that is not the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// How far the payment got, where it is taken after the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settlement: Option<Settlement>,
    /// Who paid.
    pub payer: Option<String>,
    /// Servers that were tried until one answered; 0 in receipts of before this was counted.
    #[serde(default, skip_serializing_if = "crate::usage::is_zero")]
    pub attempts: u32,
    /// The reply was delivered whole; `false` when client or backend went away in the middle.
    pub complete: bool,
}

/// How far a payment got that is taken after the reply began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// It is being taken.
    Pending,
    /// It was taken.
    Settled,
    /// It could not be taken: the reply was given for nothing.
    Lost,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// A claim was made (before any broadcast).
    Claimed {
        /// Its key.
        key: String,
        /// Amount.
        amount: Atoms,
        /// Reference on chain.
        reference: String,
        /// When.
        at: UnixSeconds,
    },
    /// The payment was seen on chain.
    Paid {
        /// The claim.
        key: String,
        /// When.
        at: UnixSeconds,
    },
    /// The claim is provably not paid.
    Dead {
        /// The claim.
        key: String,
        /// When.
        at: UnixSeconds,
    },
    /// So much of it is about to be taken.
    Taking {
        /// The claim.
        key: String,
        /// What was used.
        amount: Atoms,
        /// When.
        at: UnixSeconds,
    },
    /// Nobody can tell any more whether it was paid.
    Unproven {
        /// The claim.
        key: String,
        /// When.
        at: UnixSeconds,
    },
    /// Paid, and 0 bytes were delivered: redeemable.
    Owed {
        /// The claim.
        key: String,
        /// When.
        at: UnixSeconds,
    },
    /// A channel is about to be opened.
    Channel {
        /// It.
        channel: ChannelId,
        /// The rail.
        rail: RailId,
        /// Whose deposit.
        payer: String,
        /// How much.
        deposit: Atoms,
        /// When.
        at: UnixSeconds,
    },
    /// A voucher was accepted: with it the books can prove what the payer signed.
    Voucher {
        /// The channel.
        channel: ChannelId,
        /// Cumulative.
        amount: Atoms,
        /// `0x…`.
        signature: String,
        /// When.
        at: UnixSeconds,
    },
    /// A transaction of a channel is about to be sent.
    Intent {
        /// The channel.
        channel: ChannelId,
        /// What it does.
        act: Act,
        /// Its hash.
        tx: String,
        /// When.
        at: UnixSeconds,
    },
    /// It landed, or never will.
    Outcome {
        /// The channel.
        channel: ChannelId,
        /// Its hash as intended.
        tx: String,
        /// Whether it landed.
        landed: bool,
        /// When.
        at: UnixSeconds,
    },
    /// A channel is over.
    Closed {
        /// It.
        channel: ChannelId,
        /// Everything spent of it.
        spent: Atoms,
        /// What the chain paid out in total.
        settled: Atoms,
        /// When.
        at: UnixSeconds,
    },
    /// Charged, and nobody can say what was delivered: its gate died before it answered, or kept the answer back because it did not
    /// know whether that was paid.
    Doubted {
        /// The receipt's id.
        receipt: String,
        /// Reference on chain: of a session its channel.
        reference: String,
        /// What was charged.
        charged: Atoms,
        /// When.
        at: UnixSeconds,
    },
    /// A delivery began or ended; the last one with this receipt id counts.
    Receipt(Box<Receipt>),
}

impl Entry {
    /// What is written of a charge of which nobody can say what was delivered: its receipt is not complete, and it is in doubt since `now`.
    pub fn doubted(receipt: Receipt, now: UnixSeconds) -> [Self; 2] {
        let Receipt { id, reference, charged, .. } = receipt.clone();
        let doubted = Self::Doubted { receipt: id, reference, charged, at: now };
        [Self::Receipt(Box::new(Receipt { complete: false, ..receipt })), doubted]
    }
}
