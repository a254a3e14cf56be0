//! What became of money when a request ends without an answer.

use crate::clock::UnixSeconds;

/// Whether money moved for this request: said in every failed answer after a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moved {
    /// Nothing moved.
    #[default]
    No,
    /// It was paid and nothing was delivered: the same credential buys a reply until then.
    Redeemable {
        /// Last moment of redemption.
        until: UnixSeconds,
    },
    /// It was paid and delivered in part or in full.
    Yes,
    /// Not known yet; the same credential stays good.
    Unknown,
    /// Nothing was delivered over a channel, and whether that was charged could not be written down; the challenge is used up and the voucher
    /// is not.
    Undelivered,
}
