//! What a client is told when his channel's record cannot be changed, or denies what he asked.

use crate::channel::{Channel, Denied};
use crate::flow::channels::Trouble;
use crate::flow::{Stop, pay};
use crate::money::Atoms;
use crate::refusal::{Moved, Refusal};

/// What a client is told when what he uses cannot be written down.
pub(super) fn unrecorded() -> Refusal {
    Refusal::Store { retry_after_seconds: 10 }
}

/// What a client is told when a channel could not be changed.
pub(in crate::flow) fn trouble_stop(trouble: &Trouble) -> Stop {
    match trouble {
        Trouble::Unknown => Refusal::ChannelUnknown.into(),
        Trouble::Store(e) => pay::store_down(e),
        Trouble::Contended => Refusal::ChannelBusy { retry_after_seconds: 1 }.into(),
    }
}

/// The same, where the change may have been made all the same.
pub(in crate::flow) fn unsure(trouble: &Trouble) -> Stop {
    Stop { moved: Moved::Unknown, claimed: true, ..trouble_stop(trouble) }
}

/// What a client is told when the record denies what he asked.
pub(in crate::flow) fn denied_refusal(channel: &Channel, denied: &Denied) -> Refusal {
    match denied {
        Denied::Opening | Denied::Busy | Denied::TooManyLeases => Refusal::ChannelBusy { retry_after_seconds: 2 },
        Denied::Closing | Denied::Over => Refusal::ChannelOver,
        Denied::Quarantined => Refusal::ChannelBlocked,
        Denied::Lower { .. } => Refusal::VoucherLower,
        Denied::DeltaTooSmall { min_delta } => Refusal::VoucherTooFine { min_delta: *min_delta },
        Denied::OverDeposit { deposit } => Refusal::OverDeposit { deposit: *deposit },
        Denied::ChallengeUsed => Refusal::InvalidChallenge {
            why: "it has bought an answer already; raise the voucher or ask for a fresh one",
        },
        Denied::Short { required } => short(channel, *required),
        Denied::OutOfOrder => Refusal::Internal { place: "channel: op out of order" },
    }
}

pub(in crate::flow) fn short(channel: &Channel, required: Atoms) -> Refusal {
    Refusal::BalanceShort { required, accepted: channel.accepted(), deposit: channel.view.deposit }
}
