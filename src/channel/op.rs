//! What can be done to a channel, what that does, and why it is denied. Words only; the rules are in [`super`].

use super::{Lease, OrphanPolicy, View, Voucher};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use serde::{Deserialize, Serialize};

/// A transaction that was decided on: durable before it is sent, so that its outcome can always be looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What it does.
    pub act: Act,
    /// Its hash, known before it is sent. For one that a relay completes, the hash of what the payer signed.
    pub tx: String,
    /// The signed bytes, `0x…`, to send again.
    pub raw: String,
    /// After this instant it can no longer be mined.
    pub valid_until: UnixSeconds,
}

/// What a transaction does to a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "does", rename_all = "snake_case")]
pub enum Act {
    /// The payer's: locks the first deposit.
    Open,
    /// The payer's: locks more.
    TopUp {
        /// How much more.
        additional: Atoms,
    },
    /// Ours: pays out a whole voucher.
    Settle {
        /// Its amount.
        amount: Atoms,
    },
    /// Ours: pays out `capture` on the strength of a voucher, and the rest back.
    Close {
        /// The voucher's amount.
        amount: Atoms,
        /// What the payee gets in total.
        capture: Atoms,
    },
}

impl Act {
    /// Whether the payer signed it.
    pub fn is_payers(&self) -> bool {
        matches!(self, Self::Open | Self::TopUp { .. })
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A transaction landed: its intent is done. An opening one opens the channel, a closing one closes it.
    Landed {
        /// Its hash as intended.
        tx: String,
        /// The hash it has on chain, when a relay gave it another.
        mined: Option<String>,
        /// The chain's word after it.
        view: View,
    },
    /// A transaction provably did not land and cannot any more. An opening one makes the channel `Failed`.
    Dropped {
        /// Its hash as intended.
        tx: String,
    },
    /// A transaction is about to be sent.
    Intend {
        /// It.
        intent: Intent,
    },
    /// A voucher outside of any purchase: management.
    Accept {
        /// Its signature has been checked.
        voucher: Voucher,
        /// Least growth.
        min_delta: Atoms,
    },
    /// A voucher that comes with a request for content: accepted when it is higher; the request gets a lease when there is enough.
    Buy {
        /// Its signature has been checked.
        voucher: Voucher,
        /// Least growth.
        min_delta: Atoms,
        /// The challenge it answers.
        challenge: String,
        /// When that expires.
        expires: UnixSeconds,
        /// The lease's id.
        lease: String,
        /// The lease.
        terms: Box<Lease>,
    },
    /// A lease needs more.
    Extend {
        /// It.
        lease: String,
        /// How much more.
        by: Atoms,
        /// What it has used. `None`: no byte has left yet.
        used: Option<Atoms>,
    },
    /// What a lease has used so far: bytes have left.
    Mark {
        /// It.
        lease: String,
        /// In total.
        used: Atoms,
        /// Most that is used before it says so again.
        window: Atoms,
    },
    /// A lease ends.
    Spend {
        /// It.
        lease: String,
        /// What is charged, at most its cap.
        charge: Atoms,
    },
    /// A gate is gone: its leases end as the policy says.
    Orphan {
        /// It.
        gate: String,
        /// How they end.
        policy: OrphanPolicy,
    },
    /// The chain was read.
    Look {
        /// Its word.
        view: View,
    },
    /// Nothing new is served; close when the last lease has ended.
    Close,
    /// A person has looked at what was quarantined: it goes on as the chain says, unless that still contradicts the record.
    Release,
}

/// What a change did, beyond the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The record says it all.
    Done,
    /// It had been done before, or it says nothing new: the record is unchanged.
    Nothing,
    /// `Buy`: the lease is taken.
    Leased,
    /// `Buy`: the voucher is accepted, and it does not cover the request.
    Short {
        /// Cumulative amount that would.
        required: Atoms,
    },
    /// `Orphan`: what was charged, by lease id.
    Orphaned(Vec<(String, Lease, Atoms)>),
}

/// Why an op does not apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Not open yet: its transaction's outcome is unknown.
    Opening,
    /// Closing, or asked to close on chain.
    Closing,
    /// Over, or never opened.
    Over,
    /// Waits for a person, or for the chain to say what the record says.
    Quarantined,
    /// Below the highest accepted voucher, or at most what is settled.
    Lower {
        /// The lowest that is taken.
        accepted: Atoms,
    },
    /// Higher, by too little.
    DeltaTooSmall {
        /// Least growth.
        min_delta: Atoms,
    },
    /// Above the deposit.
    OverDeposit {
        /// The deposit.
        deposit: Atoms,
    },
    /// An equal voucher on a challenge that has bought content.
    ChallengeUsed,
    /// `Extend`: not covered.
    Short {
        /// Cumulative amount that would cover it.
        required: Atoms,
    },
    /// More requests at once than one channel takes.
    TooManyLeases,
    /// A transaction of the same party is on the way.
    Busy,
    /// No such lease or intent, or more than its cap: a defect of the caller, or a lease that was taken away.
    OutOfOrder,
}
