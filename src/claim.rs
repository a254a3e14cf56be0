//! One payment proof, one request: the record of a claim and the pure rules by which it changes.
//!
//! ```text
//!            ┌──────────────► Dead                 provably not paid: pay anew (another offer's owner may claim the key again)
//! Claimed ───┤
//!            └─► Serving ──► Delivered             one delivery, then nothing more
//!                  ▲  │
//!                  │  ▼
//!                  Owed                            paid, 0 bytes delivered: redeemable until `redeem_until`
//! ```
//!
//! `Claimed` is durable before any broadcast, `Serving` before the first upstream byte, `Delivered` before the first byte to
//! the client. The store replaces a record only if its revision matches; everything else is decided here
//! (`notes/security.md` §4.1, invariant I7).

use crate::clock::UnixSeconds;
use crate::ids::{Generation, PublicModel, RailId, RoutePath, TierName};
use crate::money::{Atoms, Usd};
use serde::{Deserialize, Serialize};

/// How long a paid and undelivered proof may be redeemed, counted from payment.
pub const REDEEM_SECONDS: u64 = 15 * 60;

/// Identity of a payment proof, made from decoded, typed values (never from header text), so that two spellings of one
/// proof are one key. `<rail kind>:<chain id>:<what>`, lower-case, ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClaimKey(pub String);

/// What was bought, fixed when the claim is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The rail it is paid on.
    pub rail: RailId,
    /// Route it was offered on: redemption stays on it.
    pub route: RoutePath,
    /// Model as the client knows it.
    pub model: PublicModel,
    /// Tier of the offer.
    pub tier: TierName,
    /// The rules that made the offer.
    pub generation: Generation,
    /// Amount asked and paid.
    pub amount: Atoms,
    /// The same in dollars, before rounding to atoms.
    pub price: Usd,
    /// Decimals of the asset, so that the record can be read alone.
    pub decimals: u8,
}

/// Where a claim stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Standing {
    /// Ours to collect; the outcome on chain is not known yet.
    Claimed {
        /// Who works on it: a request id, or the recovery.
        by: String,
    },
    /// Paid; a request is being served with it.
    Serving {
        /// That request.
        by: String,
    },
    /// Paid, nothing delivered.
    Owed,
    /// Paid and delivered, in whole or in part.
    Delivered {
        /// The receipt's id.
        receipt: String,
    },
    /// Provably not paid: the transaction failed or can never be mined any more.
    Dead,
}

/// The record of one claim. `schema` guards against reading what a later version wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Layout of this record; this build reads and writes [`Claim::SCHEMA`].
    pub schema: u16,
    /// Counts changes; the store swaps only against the revision that was read.
    pub revision: u64,
    /// Identity of the proof.
    pub key: ClaimKey,
    /// The challenge it answers.
    pub challenge_id: String,
    /// What was bought.
    pub terms: Terms,
    /// Reference on chain, known before broadcast: the transaction hash.
    pub reference: String,
    /// Who pays, as the proof shows it.
    pub payer: Option<String>,
    /// What the rail needs to try again after a restart, opaque to everyone else (the signed transaction). Dropped once the
    /// outcome is known.
    pub resend: Option<String>,
    /// Where it stands.
    pub standing: Standing,
    /// When the claim was made.
    pub claimed_at: UnixSeconds,
    /// After this instant the proof can no longer be collected: with no trace on chain by then, it is dead.
    pub collect_until: UnixSeconds,
    /// When the payment was seen.
    pub paid_at: Option<UnixSeconds>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The payment landed; the request `by` is served with it. From `Claimed`.
    Pay {
        /// The request.
        by: String,
    },
    /// The payment landed, but whoever worked on it is gone (recovery, or the client left). From `Claimed`.
    PayUnserved,
    /// Somebody takes over a claim with unknown outcome. From `Claimed`.
    TakeOver {
        /// Who had it.
        from: String,
        /// Who has it now.
        by: String,
    },
    /// Nothing landed and nothing can. From `Claimed`.
    Die,
    /// A request redeems what is owed. From `Owed`, before the deadline.
    Redeem {
        /// The request.
        by: String,
        /// Route it came on.
        route: RoutePath,
        /// What it costs there.
        need: Atoms,
    },
    /// 0 bytes were delivered. From `Serving` of the same request.
    GiveBack {
        /// The request.
        by: String,
    },
    /// The first byte may leave now. From `Serving` of the same request.
    Deliver {
        /// The request.
        by: String,
        /// The receipt's id.
        receipt: String,
    },
}

/// Why an op does not apply: what the claim says to the one who tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Someone else is collecting or serving.
    Running,
    /// Delivered already, or past redemption.
    Spent,
    /// Not paid, and will not be.
    Dead,
    /// Redemption on another route.
    OtherRoute,
    /// Redemption for something dearer.
    Dearer {
        /// Price of the new request.
        need: Atoms,
        /// What was paid.
        paid: Atoms,
    },
    /// The op does not fit the standing: a defect of the caller.
    OutOfOrder,
}

impl Claim {
    /// The layout this build writes.
    pub const SCHEMA: u16 = 1;

    /// Last second at which it can be redeemed, when it is paid.
    pub fn redeem_until(&self) -> Option<UnixSeconds> {
        self.paid_at.map(|t| t.plus(REDEEM_SECONDS))
    }

    /// Whether nothing can change any more, so that it may be forgotten once `keep_until` is past.
    pub fn is_over(&self, now: UnixSeconds) -> bool {
        match self.standing {
            Standing::Delivered { .. } | Standing::Dead => true,
            Standing::Owed => self.redeem_until().is_some_and(|t| now > t),
            Standing::Claimed { .. } | Standing::Serving { .. } => false,
        }
    }

    /// Until when the key must be remembered so that the proof cannot be shown again: the offer's end, the proof's own end, and
    /// a day beyond.
    pub fn keep_until(&self) -> UnixSeconds {
        let end = self.redeem_until().map_or(self.collect_until, |t| t.max(self.collect_until));
        end.plus(86_400)
    }

    /// Whether the answer to another offer may claim this proof anew. A hash that the payer sent himself can be named by
    /// anyone who watches the chain; what comes of that is dead, and must not make the owner's payment worthless.
    pub fn yields_to(&self, challenge_id: &str) -> bool {
        self.standing == Standing::Dead && self.challenge_id != challenge_id
    }

    /// The next record, or why there is none. Pure; the revision grows by one.
    pub fn apply(&self, op: Op, now: UnixSeconds) -> Result<Claim, Denied> {
        let mut next = self.clone();
        next.revision = self.revision.saturating_add(1);
        match (&self.standing, op) {
            (Standing::Claimed { by: had }, Op::Pay { by }) if *had == by => {
                next.paid(now);
                next.standing = Standing::Serving { by };
            }
            (Standing::Claimed { .. }, Op::PayUnserved) => {
                next.paid(now);
                next.standing = Standing::Owed;
            }
            (Standing::Claimed { by: had }, Op::TakeOver { from, by }) if *had == from => {
                next.standing = Standing::Claimed { by };
            }
            (Standing::Claimed { .. }, Op::Die) => {
                next.resend = None;
                next.standing = Standing::Dead;
            }
            (Standing::Owed, Op::Redeem { by, route, need }) => {
                if self.redeem_until().is_none_or(|t| now > t) {
                    return Err(Denied::Spent);
                }
                if route != self.terms.route {
                    return Err(Denied::OtherRoute);
                }
                if need > self.terms.amount {
                    return Err(Denied::Dearer { need, paid: self.terms.amount });
                }
                next.standing = Standing::Serving { by };
            }
            (Standing::Serving { by: had }, Op::GiveBack { by }) if *had == by => next.standing = Standing::Owed,
            (Standing::Serving { by: had }, Op::Deliver { by, receipt }) if *had == by => {
                next.standing = Standing::Delivered { receipt };
            }
            (
                Standing::Claimed { .. } | Standing::Serving { .. },
                Op::Redeem { .. } | Op::TakeOver { .. } | Op::Pay { .. },
            ) => {
                return Err(Denied::Running);
            }
            (Standing::Delivered { .. }, _) => return Err(Denied::Spent),
            (Standing::Dead, _) => return Err(Denied::Dead),
            _ => return Err(Denied::OutOfOrder),
        }
        Ok(next)
    }

    fn paid(&mut self, now: UnixSeconds) {
        self.paid_at = Some(now);
        self.resend = None;
    }
}

/// Claims for tests of this floor and those above.
#[cfg(test)]
pub mod sample {
    #![allow(missing_docs)]
    use super::*;

    /// A fresh claim of request `r0`, made at 1,000, collectable until 1,300.
    pub fn claim(key: &str, atoms: u128) -> Claim {
        Claim {
            schema: Claim::SCHEMA,
            revision: 1,
            key: ClaimKey(key.to_owned()),
            challenge_id: "challenge".to_owned(),
            terms: Terms {
                rail: "tempo/charge".into(),
                route: "/v1/chat/completions".into(),
                model: "openai/gpt-oss-120b".into(),
                tier: "standard".into(),
                generation: "0123456789abcdef".into(),
                amount: Atoms(atoms),
                price: Usd(atoms * 1_000_000_000_000),
                decimals: 6,
            },
            reference: format!("0x{key}"),
            payer: Some("0xpayer".to_owned()),
            resend: Some("0x76".to_owned()),
            standing: Standing::Claimed { by: "r0".to_owned() },
            claimed_at: UnixSeconds(1_000),
            collect_until: UnixSeconds(1_300),
            paid_at: None,
        }
    }
}

#[cfg(test)]
mod tests;
