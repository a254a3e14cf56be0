//! What a channel's record is made of.

use crate::clock::UnixSeconds;
use crate::ids::{Generation, PoolName, PublicModel, RoutePath, TierName};
use crate::money::Atoms;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A channel's id on its chain: `0x` and 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelId(pub String);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a channel's id is made of. Addresses and words as `0x` and lower-case hex. Serialised as the wire has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Whose deposit it is.
    pub payer: String,
    /// Whose money it becomes.
    pub payee: String,
    /// Who may settle and close beside the payee; the zero address for nobody.
    pub operator: String,
    /// The token.
    pub token: String,
    /// 32 bytes of the payer's choice.
    pub salt: String,
    /// Who signs vouchers; the zero address for the payer.
    pub authorized_signer: String,
    /// Ties the id to the opening transaction.
    pub expiring_nonce_hash: String,
}

/// A signed promise: of the deposit, `amount` in total is the payee's. Whoever keeps it here has checked the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// Cumulative.
    pub amount: Atoms,
    /// As the chain takes it, `0x…`.
    pub signature: String,
}

/// What the chain said about the channel, replaced as a whole by a read at the same or a later block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Height of the read.
    pub block: u64,
    /// Locked.
    pub deposit: Atoms,
    /// Paid out to the payee so far.
    pub settled: Atoms,
    /// When the payer asked the chain to close it.
    pub close_requested_at: Option<UnixSeconds>,
}

impl View {
    /// Whether the chain knows no such channel (any more).
    pub fn is_gone(&self) -> bool {
        self.deposit == Atoms(0)
    }
}

/// Where a channel stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Phase {
    /// Its opening transaction is on the way; the outcome is not known.
    Opening,
    /// Serves.
    Open,
    /// Closing by agreement or because it is idle: nothing new is served.
    Closing,
    /// The payer asked the chain to close it: nothing new is served, and what was spent must be on chain by then.
    ForcedClosing {
        /// When the payer may withdraw.
        deadline: UnixSeconds,
    },
    /// Over. The chain has paid out.
    Closed {
        /// The transaction that closed it, when it was ours.
        tx: Option<String>,
    },
    /// It never opened.
    Failed,
    /// What is known contradicts itself. Nothing is served and no amount is lowered until a person has looked.
    Quarantined {
        /// The contradiction.
        why: String,
    },
}

/// What a lease was taken for: all facts of one set of rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purchase {
    /// `req_…`.
    pub request: String,
    /// The receipt it will have.
    pub receipt: String,
    /// Route.
    pub route: RoutePath,
    /// Tier.
    pub tier: TierName,
    /// Model as the client knows it.
    pub model: PublicModel,
    /// Pool that serves it.
    pub pool: PoolName,
    /// Rules that price it.
    pub generation: Generation,
}

impl Phase {
    /// One word of a closed set.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Closing => "closing",
            Self::ForcedClosing { .. } => "forced_closing",
            Self::Closed { .. } => "closed",
            Self::Failed => "failed",
            Self::Quarantined { .. } => "quarantined",
        }
    }
}

/// A part of the channel that one request may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Which gate serves it.
    pub gate: String,
    /// Most it may spend.
    pub cap: Atoms,
    /// What it had used when it last said so. `None`: no byte has left yet.
    pub used: Option<Atoms>,
    /// Most that is used before it says so again, be that as it leases more or, where all is leased, alone: what a crash can hide,
    /// beside what leaves while that is being written.
    pub window: Atoms,
    /// When it was taken.
    pub since: UnixSeconds,
    /// For what.
    pub purchase: Purchase,
}

/// What becomes of a lease whose gate died with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanPolicy {
    /// What was reported as used and at most one window more is charged.
    #[default]
    Charge,
    /// Only what was reported as used is charged.
    Refund,
}

impl Lease {
    /// What is charged when nobody can say any more what was used. Nothing before the first byte left.
    pub fn orphaned(&self, policy: OrphanPolicy) -> Atoms {
        let Some(used) = self.used else { return Atoms(0) };
        match policy {
            OrphanPolicy::Charge => Atoms(used.0.saturating_add(self.window.0)).min(self.cap),
            OrphanPolicy::Refund => used.min(self.cap),
        }
    }
}
