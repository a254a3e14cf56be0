//! Paying by the token: a channel is opened once, then vouchers pay for many requests without a transaction each.
//!
//! | step | I/O | answers |
//! |---|---|---|
//! | [`Session::offer`] | none | an offer for the 402: what a request must hold to start, and what is known of the payer's channel |
//! | [`Session::present`] | none | is this credential ours, for which channel, what does it do, and is every signature in it good? |
//! | *(the record decides: [`crate::channel`])* | store | |
//! | [`Session::authorized`] | chain | of an opening that an access key signed: whether the payer answers for that key |
//! | [`Session::complete`] | sponsor | the payer's transaction as it will be sent |
//! | *(its intent becomes durable)* | store | |
//! | [`Session::submit`], [`Session::look`] | chain | it landed, it never will, or nobody knows |
//! | [`Session::views`] | chain | deposit, paid out, request to close |
//! | [`Session::settle`], [`Session::close`] | chain (fees) | our own signed transaction, not sent yet |

use super::{Offer, Shown, Way};
use crate::chain::Unreachable;
use crate::channel::{Channel, ChannelId, Descriptor, Intent, View, Voucher};
use crate::clock::UnixSeconds;
use crate::ids::{Generation, RoutePath};
use crate::journal::Receipt;
use crate::money::Atoms;
use crate::refusal::Refusal;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// What a session offer says. It is bound to the route and to us, not to a body: one challenge serves many requests.
#[derive(Clone, Debug)]
pub struct SessionAsk<'a> {
    /// Where it is good.
    pub route: &'a RoutePath,
    /// The rules it was made by; for the books, prices are those of the request's own time.
    pub generation: &'a Generation,
    /// By so much wallets raise what they signed last, at least 1, and no less than a voucher must raise the one before it: what this
    /// request must hold to start, or what is missing of it on the payer's channel where that is known.
    pub amount: Atoms,
    /// What we advise to lock.
    pub deposit: Atoms,
    /// The payer's channel, when it is known: wallets size their next voucher by it.
    pub snapshot: Option<Snapshot<'a>>,
    /// Text for people, from the rules only.
    pub description: &'a str,
}

/// What a payer without memory of his own is told about his channel.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// As it is now.
    pub channel: &'a Channel,
    /// The cumulative amount that this request needs (for management: what is spent and leased).
    pub required: Atoms,
    /// Whether the newest voucher itself may be shown: only to who has proved to be the payer, for it is as good as money.
    pub with_voucher: bool,
}

/// A session credential that came back under our MAC, whose descriptor makes its channel id, whose parties, token, chain and
/// escrow are ours, and whose signatures hold. Nothing is known yet about the channel's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// The challenge it answers.
    pub challenge_id: String,
    /// When that ends. Vouchers and closes authenticate themselves and are taken after it too; of the rest the flow refuses what is
    /// new then.
    pub expires: UnixSeconds,
    /// Where it was offered.
    pub route: RoutePath,
    /// The channel.
    pub channel: ChannelId,
    /// What its id is made of.
    pub descriptor: Arc<Descriptor>,
    /// What it does.
    pub action: Action,
}

/// What a session credential does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Opens the channel.
    Open {
        /// First voucher; may be over 0.
        voucher: Voucher,
        /// What is locked.
        deposit: Atoms,
        /// The payer's transaction.
        tx: PayersTx,
    },
    /// Pays.
    Voucher(Voucher),
    /// Locks more.
    TopUp {
        /// How much more.
        additional: Atoms,
        /// The payer's transaction.
        tx: PayersTx,
    },
    /// Closes the channel.
    Close {
        /// What was used is at most this.
        voucher: Voucher,
        /// The payer or who signs for him has signed that he wants it closed: `closeSignature`, which not every wallet sends. A voucher
        /// alone says so only while nobody else can have read it.
        agreed: bool,
    },
}

/// A transaction the payer has signed, in its canonical bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayersTx {
    /// The bytes.
    pub raw: Vec<u8>,
    /// Its hash, `0x…`; of a sponsored one, the hash of what the payer signed.
    pub hash: String,
    /// After this instant it can no longer be mined.
    pub valid_until: UnixSeconds,
    /// He asks us to pay its fee.
    pub sponsored: bool,
    /// Signed by an access key instead of the account's own. Whether that key may sign for the payer, only the chain knows, and whether he
    /// meant this it says by taking it: until then, he counts as named and not as having spoken.
    pub by_access_key: bool,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Mined, and it did what it was for.
    Landed {
        /// Its hash on chain.
        mined: String,
        /// The chain's word after it.
        view: View,
    },
    /// It was mined and failed, or can no longer be mined: nothing happened.
    Dropped {
        /// In our words.
        why: String,
    },
    /// Not known: ask again.
    Unknown,
}

/// What a session receipt says.
#[derive(Clone, Copy, Debug)]
pub struct SessionReceipt<'a> {
    /// The challenge of the request.
    pub challenge_id: &'a str,
    /// The channel after it.
    pub channel: &'a Channel,
    /// The voucher it speaks of: the highest, or the one a channel was closed with, which wallets compare with theirs.
    pub accepted: Atoms,
    /// What was delivered; `None` for management.
    pub receipt: Option<&'a Receipt>,
    /// The transaction of an opening, a top-up or a close.
    pub tx: Option<&'a str>,
    /// When.
    pub at: UnixSeconds,
}

/// One way to pay by the token.
#[async_trait]
pub trait Session: Way {
    /// Chain id and escrow, as a channel's record has them.
    fn place(&self) -> (u64, String);
    /// Whether the chain's word can be relied on now. [`Way::standing`] asks for more: an account that can settle what is sold.
    fn chain_standing(&self) -> Result<(), String> {
        self.standing()
    }
    /// An offer. No I/O.
    fn offer(&self, ask: &SessionAsk<'_>, now: UnixSeconds) -> Result<Offer, Refusal>;
    /// Everything about a credential that can be known without I/O. `Ok(None)`: it is another rail's. Order: MAC, parties, form,
    /// channel id, signatures; amounts are not compared with anything here, so that no answer tells a stranger what was spent. What is
    /// over (the offer, a transaction's validity) is presented all the same: it may have been sent while it was not.
    fn present(&self, shown: &Shown, now: UnixSeconds) -> Result<Option<Presented>, Refusal>;
    /// Whether sponsored transactions are sent by a relay, under hashes of its own.
    fn is_relayed(&self) -> bool {
        false
    }
    /// Whether the payer lets the access key that signed an opening sign for him: the chain is asked once, unless the transaction says so
    /// itself.
    async fn authorized(&self, tx: &PayersTx, now: UnixSeconds) -> Result<(), Refusal>;
    /// The intent of a payer's transaction that is new here and not over, ready to be made durable and sent. The chain is asked whether
    /// it would land; a sponsored one is also reserved in the budget and co-signed here.
    async fn complete(&self, presented: &Presented, now: UnixSeconds) -> Result<Intent, Refusal>;
    /// Sends a transaction whose intent is durable and waits for it, some seconds.
    async fn submit(&self, channel: &Channel, intent: &Intent) -> Outcome;
    /// What became of it, from the record alone; sends it again while it still can land.
    async fn look(&self, channel: &Channel, intent: &Intent) -> Outcome;
    /// The state of some channels, in their order, all read at one block.
    async fn views(&self, channels: &[ChannelId]) -> Result<Vec<View>, Unreachable>;
    /// Channels to us whose payers asked the chain to close them in blocks after `since`, and the height up to which this is
    /// known. `None` starts at the head.
    async fn close_requests(&self, since: Option<u64>) -> Result<(u64, Vec<ChannelId>), Unreachable>;
    /// Our transaction that pays out a whole voucher, signed and not sent.
    async fn settle(&self, channel: &Channel, voucher: &Voucher, now: UnixSeconds) -> Result<Intent, Unreachable>;
    /// Our transaction that closes the channel on the strength of a voucher, paying out `capture` in total, signed and not sent.
    async fn close(
        &self,
        channel: &Channel,
        voucher: &Voucher,
        capture: Atoms,
        now: UnixSeconds,
    ) -> Result<Intent, Unreachable>;
    /// The `Payment-Receipt` header.
    fn receipt(&self, said: &SessionReceipt<'_>) -> Option<(HeaderName, HeaderValue)>;
    /// The same as the last event of a stream.
    fn receipt_event(&self, said: &SessionReceipt<'_>) -> Bytes;
    /// The event that asks for a voucher over `required` in total.
    fn need_voucher(&self, channel: &Channel, required: Atoms) -> Bytes;
    /// `Payment-Session` and `Payment-Session-Snapshot`.
    fn snapshot(&self, snapshot: &Snapshot<'_>) -> Vec<(HeaderName, HeaderValue)>;
}
