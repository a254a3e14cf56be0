//! Answers that end before their end: which of them are owed as far as they left, and what their clients are told.

use super::{Delivery, End};
use crate::openai::reply;
use crate::refusal::Refusal;
use bytes::Bytes;

impl End {
    /// The backend would have said what was used, and was not let: what left is owed all the same.
    pub(super) fn is_cut(self) -> bool {
        matches!(self, Self::ClientGone | Self::Unpaid | Self::OutOfTime | Self::TooLarge)
    }
}

impl Delivery {
    /// The last event of an answer that was cut, in the words of its surface.
    pub(super) fn cut_short(&self, end: End) -> Option<Bytes> {
        let (why, code) = match end {
            End::Whole | End::ClientGone => return None,
            End::UpstreamDied => ("the backend went away in the middle of its answer", "upstream_failed"),
            End::OutOfTime => {
                ("the answer took longer than answers may take here: the rest of it is not sent", "upstream_timeout")
            }
            End::TooLarge => {
                ("an event of the answer is too large to be passed on: the rest of it is not sent", "upstream_failed")
            }
            End::Unpaid => match &self.unpaid {
                Some(Refusal::BalanceShort { .. }) | None => {
                    ("no voucher came to pay for the rest of the answer", "insufficient_balance")
                }
                Some(down @ Refusal::Store { .. }) => {
                    ("payments cannot be recorded safely now: the rest of the answer is not sent", down.code())
                }
                Some(over) => ("the channel pays for nothing more: the rest of the answer is not sent", over.code()),
            },
        };
        Some(reply::cut_short(self.surface(), why, code))
    }
}
