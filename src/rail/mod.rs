//! Ways to pay. A rail is one protocol and intent on one section of `pontage.toml` (`tempo/charge`).
//!
//! Sessions, which pay by the token, are in [`session`]. The life of a payment on a fixed-amount rail, and who may do I/O in it:
//!
//! | step | I/O | answers |
//! |---|---|---|
//! | [`Rail::offer`] | none | an offer for the 402, bound to these terms by our MAC |
//! | [`Rail::recognise`] | none | is this credential ours, and which claim would it be? (MAC only) |
//! | [`Rail::check`] | none | does it answer an offer for exactly these terms, now, with a valid signature? |
//! | [`Rail::complete`] | chain, facilitator, store | what must be done before the claim: it is tried, and a fee that we carry is set aside |
//! | *(claim becomes durable)* | store | |
//! | [`Rail::collect`] | chain | [`When::First`]: paid, failed, or nobody knows |
//! | [`Rail::take`] | chain | [`When::After`]: after the reply, the same as `collect` |
//! | [`Rail::look`] | chain | the same question later, from the claim's record alone |

pub mod mpp;
pub mod recover;
pub mod ring;
pub mod session;
pub mod x402;

use crate::channel::ChannelId;
use crate::claim::{Claim, ClaimKey, Terms};
use crate::clock::UnixSeconds;
use crate::ids::{PublicModel, RailId};
use crate::journal::Receipt;
use crate::money::Usd;
use crate::refusal::Refusal;
use async_trait::async_trait;
use http::HeaderMap;

/// How many seconds before its end a promised payment is to be handed in at the latest, so that there is time for that; x402's facilitators
/// want 6.
pub const HAND_IN_SECONDS: u64 = 15;

/// A way to pay, written for one request: response headers of the 402, and what its body repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The rail.
    pub rail: RailId,
    /// `method/intent` as `Accept-Payment` ranks it.
    pub range: (String, String),
    /// Header lines that carry it, e.g. one `WWW-Authenticate: Payment …`.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// The challenge id, repeated in the problem body; x402 has none.
    pub challenge_id: Option<String>,
    /// What goes into the lists that all x402 offers share.
    pub entry: Option<Box<x402::wire::Entry>>,
}

/// What an offer is bound to, apart from the amount: the body it was priced for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// Terms, recomputed for this request.
    pub terms: &'a Terms,
    /// SHA-256 of the body exactly as received.
    pub digest: [u8; 32],
    /// Text for people, from the rules only.
    pub description: &'a str,
    /// The longest this request may take, in seconds: what is paid after it must live longer.
    pub lasts: u64,
}

/// When a rail takes its money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the backend hears of the request.
    First,
    /// After the reply, or after its success: until then the payment is only promised.
    After {
        /// What is taken is what was used, and this is the most that is ever asked for. `None`: the price, whatever was used.
        most: Option<Usd>,
        /// The most one payer may have promised and not paid at a time.
        exposure: Usd,
    },
}

/// A payment credential as found in a request, decoded and not believed. One variant per protocol.
#[derive(Clone, Debug)]
pub enum Shown {
    /// `Authorization: Payment …` or `Payment-Authorization: Payment …`.
    Mpp(Box<::mpp::PaymentCredential>),
    /// `PAYMENT-SIGNATURE: …` or `X-PAYMENT: …`.
    X402(Box<x402::wire::Payment>),
}

/// What a request carries.
#[derive(Clone, Debug)]
pub enum Found {
    /// No credential.
    Nothing,
    /// One that cannot be decoded: counts as unpaid.
    Malformed,
    /// Exactly one.
    One(Shown),
    /// More than one: 400.
    Many(usize),
}

/// Looks for payment credentials of every protocol in the request headers. One of each protocol are two. No I/O.
pub fn found(headers: &HeaderMap) -> Found {
    match (mpp::wire::found(headers), x402::shown::found(headers)) {
        (Found::Nothing, found) | (found, Found::Nothing) => found,
        (one, other) => Found::Many(one.count() + other.count()),
    }
}

impl Recognised {
    /// By what its claim is found.
    pub fn identity(&self) -> Identity {
        let Self { key, challenge_id, is_public, .. } = self;
        Identity { key: key.clone(), challenge_id: challenge_id.clone(), is_public: *is_public }
    }
}

impl Found {
    fn count(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Malformed | Self::One(_) => 1,
            Self::Many(count) => *count,
        }
    }
}

/// What a client whose payment was handed in and failed is told beside the offers: x402 has a header for it.
pub fn failure(found: &Found, refusal: &Refusal) -> Option<(http::HeaderName, http::HeaderValue)> {
    let (Found::One(Shown::X402(payment)), Refusal::PaymentFailed { why }) = (found, refusal) else { return None };
    let payer = payment.signed.payer();
    let told = x402::wire::Settled {
        success: false,
        transaction: "",
        network: &payment.network,
        payer: payer.as_deref(),
        amount: None,
        error_reason: Some(why),
    };
    x402::wire::settled(payment.version, &told)
}

impl Shown {
    /// What a session credential says it does, not believed; `None` for any other credential.
    pub fn action(&self) -> Option<&str> {
        let Self::Mpp(credential) = self else { return None };
        mpp::wire::action(credential)
    }

    /// The channel it names, not believed.
    pub fn channel(&self) -> Option<ChannelId> {
        let Self::Mpp(credential) = self else { return None };
        mpp::wire::channel(credential)
    }
}

/// Whether the client's `Accept-Payment` names this way to pay by itself.
pub fn names(headers: &HeaderMap, way: &dyn Way) -> bool {
    let (method, intent) = way.range();
    mpp::wire::names(headers, method, intent)
}

/// Offers in the order the client prefers (`Accept-Payment`, draft-httpauth-payment-00 §7.4), ours where it is silent. A header
/// that is malformed or matches nothing changes nothing.
pub fn ranked(headers: &HeaderMap, offers: Vec<Offer>) -> Vec<Offer> {
    mpp::wire::ranked(headers, offers)
}

/// Terms that came back under our MAC, and the identity of the proof that answers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// Key of the claim.
    pub key: ClaimKey,
    /// The challenge.
    pub challenge_id: String,
    /// The terms as we wrote them into the offer.
    pub terms: Terms,
    /// The body digest we wrote into it; the body's own where the client repeats nothing of ours and the challenge is of that body.
    pub digest: Option<[u8; 32]>,
    /// When the offer ends.
    pub expires: UnixSeconds,
    /// Reference on chain (transaction hash), `0x…` lower-case.
    pub reference: String,
    /// What has to be kept to try again later.
    pub resend: Option<String>,
    /// Whether everybody can read the proof once it is on chain: then it is not by itself a right to anything.
    pub is_public: bool,
}

/// By what the claim of a credential is found, and told from what somebody else makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Key of the claim.
    pub key: ClaimKey,
    /// The challenge that it says it answers.
    pub challenge_id: String,
    /// As [`Recognised::is_public`].
    pub is_public: bool,
}

/// A checked proof: everything that can be known without the chain holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What was recognised.
    pub recognised: Recognised,
    /// Who pays, from the signature.
    pub payer: Option<String>,
    /// Whether the signature itself proves that. Else only the chain can tell: it may be a contract's, or nobody's.
    pub is_proven: bool,
    /// After this instant it can no longer be collected.
    pub collect_until: UnixSeconds,
}

/// What the chain says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// The exact amount of the exact token reached our address.
    Paid,
    /// The same, by a transaction that was not known before.
    Settled {
        /// Its hash or signature.
        transaction: String,
    },
    /// It definitely did not and will not: nothing was taken.
    Failed {
        /// In our words.
        why: String,
    },
    /// Not known: ask again.
    Unknown,
    /// Not known, and it never will be: the proof is used up, and nobody can show by whom or for what.
    Unprovable,
}

/// What every way to pay says about itself.
pub trait Way: Send + Sync {
    /// Its name.
    fn id(&self) -> &RailId;
    /// `(method, intent)` as MPP names them, or the protocol's own words.
    fn range(&self) -> (&'static str, &'static str);
    /// Its asset as the protocol names it (a token address).
    fn currency(&self) -> &str;
    /// Decimals of its asset.
    fn decimals(&self) -> u8;
    /// The public facts that must not change silently between runs: `(name, payee+asset+chain)`.
    fn facts(&self) -> (String, String);
    /// Whether it can be honoured now; the error is a sentence for operators. Never does I/O: a background watch keeps it.
    fn standing(&self) -> Result<(), String>;
    /// What a node of the gate's own says that only tells what became of payments: nothing depends on it until money is in doubt. `None`:
    /// there is none. Never does I/O.
    fn node(&self) -> Option<Result<(), String>> {
        None
    }
}

/// One way to pay a fixed amount.
#[async_trait]
pub trait Rail: Way {
    /// An offer for exactly these terms. No I/O.
    fn offer(&self, ask: &Ask<'_>, now: UnixSeconds) -> Result<Offer, Refusal>;
    /// Whether the credential answers an offer of this rail, by MAC alone. `Ok(None)`: another rail's. `live`: this request under
    /// the rules in force, for protocols whose offers name neither path nor model. No I/O, no expiry check.
    fn recognise(&self, shown: &Shown, live: &Ask<'_>) -> Result<Option<Recognised>, Refusal>;
    /// The claim that a credential of this rail's may have, whatever its offer says and for whatever it was made: for protocols whose
    /// payments do not say it themselves. Good for looking a claim up, never for making one. No I/O.
    fn identity(&self, _shown: &Shown, _digest: [u8; 32]) -> Option<Identity> {
        None
    }
    /// The model of the offer that a credential answers, as it says itself; `None`: it does not say, or its offer is another rail's
    /// or path's.
    fn offered(&self, shown: &Shown, path: &str) -> Option<PublicModel>;
    /// The rest that can be checked locally, cheapest first: expiry, terms, digest, form, signature. No I/O.
    async fn check(
        &self,
        shown: &Shown,
        recognised: Recognised,
        ask: &Ask<'_>,
        now: UnixSeconds,
    ) -> Result<Proof, Refusal>;
    /// Makes a checked proof ready to be claimed: whoever signs for an empty account signs well, so what would not be paid is refused here,
    /// and nothing is kept of it. What we send is tried on the chain; where we carry its fee, that is set aside once, and what has to be
    /// kept to send it is in the proof from here on. A facilitator is asked. Nothing moves. Called for one request of this gate at a time.
    /// `first`: it is taken before anything is served for it, and followed until its outcome is known.
    async fn complete(&self, _shown: &Shown, proof: Proof, _first: bool) -> Result<Proof, Refusal> {
        Ok(proof)
    }
    /// Keeps [`Way::node`] up to date; ends where there is nothing to watch.
    async fn watch(&self) {}
    /// When it takes the money of a request that streams, or that does not. No I/O.
    fn when(&self, _streams: bool) -> When {
        When::First
    }
    /// Takes the money. Called once per claim, after the claim is durable.
    async fn collect(&self, shown: &Shown, proof: &Proof) -> Collected;
    /// [`When::After`]: takes the amount that the claim, which is `Taking`, says. Called once per claim, after that is durable.
    async fn take(&self, claim: &Claim, now: UnixSeconds) -> Collected {
        self.look(claim, now).await
    }
    /// Whether the claim's payment landed. When it did not and still can, sends it again if `claim.resend` is there.
    async fn look(&self, claim: &Claim, now: UnixSeconds) -> Collected;
    /// Header lines that carry the receipt of a paid request (`Payment-Receipt`), with `Cache-Control: private`'s need left to
    /// whoever writes the reply.
    fn receipt(&self, claim: &Claim, receipt: &Receipt) -> Vec<(http::HeaderName, http::HeaderValue)>;
}
