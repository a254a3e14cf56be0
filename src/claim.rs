//! One payment proof, one request: the record of a claim and the pure rules by which it changes.
//!
//! ```text
//!            ┌──────────────► Dead                 provably not paid: pay anew (another offer's owner may claim the key again)
//! Claimed ───┤
//!            └─► Serving ──► Delivered             one delivery, then nothing more
//!                  ▲  │          ▲
//!                  │  ▼          │
//!                  Owed          │                 paid, 0 bytes delivered: redeemable until `redeem_until`
//!                   ▲            │
//! Promised ──► Taking ───────────┘                 served first, paid after: by the reply's success or by its usage
//!     │             ├──► Lost                      delivered, and the payment failed
//!     └─► Untaken ◄─┘                              nothing was taken, nothing delivered: the proof is as good as new
//! ```
//!
//! Of a proof whose rail says that it would not be paid there is no claim. `Claimed` is durable before anybody is asked for the money, and
//! `Promised` is what everybody sees of it before a backend does; a crash may forget a
//! promise, because of what a dead process promised nothing is taken: it becomes `Untaken`, as good as never shown. `Serving` before the first upstream byte, `Taking`
//! with its amount before that amount is asked for, `Delivered` before the first byte to the client (where it was paid before).
//! What can never be proven either way ends in `Unproven`. The store replaces a record only if its revision matches;
//! everything else is decided here.

use crate::clock::UnixSeconds;
use crate::ids::{Generation, PublicModel, RailId, RoutePath, TierName};
use crate::money::{Atoms, Usd};
use serde::{Deserialize, Serialize};

/// How long a paid and undelivered proof may be redeemed, counted from payment.
pub const REDEEM_SECONDS: u64 = 15 * 60;

/// How often the client of a payment that is held may leave while a backend works for it. The last of them spends it: each
/// may have cost what was paid.
pub const MOST_DEPARTURES: u8 = 3;

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
    /// The proof is ours to use, and a request is served on the strength of it. Nothing was taken.
    Promised {
        /// That request.
        by: String,
    },
    /// This much is being taken; the outcome is not known yet.
    Taking {
        /// Who works on it: a request id, or the recovery.
        by: String,
        /// How much: what was used, at most the terms' amount.
        amount: Atoms,
        /// The receipt's id, when the answer has left already.
        receipt: Option<String>,
    },
    /// Nothing was taken and nothing delivered: whoever holds the proof may use it as if it was never shown.
    Untaken,
    /// Delivered, and not paid for.
    Lost {
        /// The receipt's id.
        receipt: String,
    },
    /// It was handed in, and nobody can tell any more whether it was paid: never served, never asked for again.
    Unproven,
}

impl Standing {
    /// Whether nothing comes after it but, at most, a new claim of the same proof.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Delivered { .. } | Self::Dead | Self::Untaken | Self::Lost { .. } | Self::Unproven => true,
            Self::Claimed { .. } | Self::Serving { .. } | Self::Owed | Self::Promised { .. } | Self::Taking { .. } => {
                false
            }
        }
    }

    /// Who works on it: a request, or the recovery.
    pub fn holder(&self) -> Option<&String> {
        match self {
            Self::Claimed { by } | Self::Serving { by } | Self::Promised { by } | Self::Taking { by, .. } => Some(by),
            Self::Owed | Self::Delivered { .. } | Self::Dead | Self::Untaken | Self::Lost { .. } | Self::Unproven => {
                None
            }
        }
    }
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
    /// What the payment can be found by on chain, known before it is handed in: the transaction's hash, or the authorization's nonce.
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
    /// What was taken, where it is not the terms' amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Atoms>,
    /// Output tokens of the answer that this was taken for, per choice, where what was used is what is taken: more of it is not owed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
    /// The transaction that paid it, where that is not its reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// How often its client left while a backend worked for it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub departures: u8,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(count: &u8) -> bool {
    *count == 0
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The payment landed; the request `by` is served with it. From `Claimed`.
    Pay {
        /// The request.
        by: String,
        /// The transaction, where it was not known before.
        transaction: Option<String>,
    },
    /// The payment landed, but whoever worked on it is gone (recovery, or the client left). From `Claimed` and `Taking`.
    PayUnserved {
        /// The transaction, where it was not known before.
        transaction: Option<String>,
    },
    /// Somebody takes over a claim with unknown outcome. From `Claimed` and `Taking`.
    TakeOver {
        /// Who had it.
        from: String,
        /// Who has it now.
        by: String,
    },
    /// Nothing landed and nothing can. From `Claimed` and `Taking`.
    Die,
    /// Nobody can tell whether it landed, now or later. From `Claimed` and `Taking`.
    Doubt,
    /// Nothing is to be taken: the request was not served. From `Promised` of the same request.
    Forgo {
        /// The request.
        by: String,
    },
    /// What is to be taken is decided. From `Promised` of the same request.
    Take {
        /// The request.
        by: String,
        /// At most the terms' amount.
        amount: Atoms,
        /// Output tokens per choice that it is for, where what was used decides the amount.
        output: Option<u64>,
        /// The receipt's id, when the answer has left already.
        receipt: Option<String>,
    },
    /// It was taken, and the first byte may leave now. From `Taking` of the same request, before anything left.
    Settle {
        /// The request.
        by: String,
        /// The transaction.
        transaction: Option<String>,
        /// The receipt's id.
        receipt: String,
    },
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
    /// The same, because the client left while a backend worked for it: at most [`MOST_DEPARTURES`] − 1 times.
    Depart {
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
    /// Nobody can tell whether it was paid.
    Unproven,
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
        self.paid_at.map(redeem_until)
    }

    /// Whether nothing can change any more, so that it may be forgotten once `keep_until` is past.
    pub fn is_over(&self, now: UnixSeconds) -> bool {
        match self.standing {
            Standing::Owed => self.redeem_until().is_some_and(|t| now > t),
            ref other => other.is_end(),
        }
    }

    /// Until when the key must be remembered so that the proof cannot be shown again: the offer's end, the proof's own end, and
    /// a day beyond.
    pub fn keep_until(&self) -> UnixSeconds {
        keep_until(self.collect_until, self.paid_at)
    }

    /// Whether the answer to another offer may claim this proof anew. A hash that the payer sent himself can be named by
    /// anyone who watches the chain; what comes of that is dead, and must not make the owner's payment worthless. What was never
    /// taken may be claimed by whoever holds it.
    pub fn yields_to(&self, challenge_id: &str) -> bool {
        self.standing == Standing::Untaken || (self.standing == Standing::Dead && self.challenge_id != challenge_id)
    }

    /// Whether it is still good for another request when the client of this one leaves.
    pub fn may_depart(&self) -> bool {
        self.departures.saturating_add(1) < MOST_DEPARTURES
    }

    /// What was paid, once it is.
    pub fn paid_amount(&self) -> Atoms {
        self.taken.unwrap_or(self.terms.amount)
    }

    /// The next record, or why there is none. Pure; the revision grows by one.
    pub fn apply(&self, op: Op, now: UnixSeconds) -> Result<Claim, Denied> {
        let mut next = self.clone();
        next.revision = self.revision.saturating_add(1);
        match (&self.standing, op) {
            (Standing::Claimed { by: had }, Op::Pay { by, transaction }) if *had == by => {
                next.paid(transaction, now);
                next.standing = Standing::Serving { by };
            }
            (Standing::Claimed { .. }, Op::PayUnserved { transaction }) => {
                next.paid(transaction, now);
                next.standing = Standing::Owed;
            }
            (Standing::Claimed { by: had }, Op::TakeOver { from, by }) if *had == from => {
                next.standing = Standing::Claimed { by };
            }
            (Standing::Claimed { .. }, Op::Die) => {
                next.resend = None;
                next.standing = Standing::Dead;
            }
            (Standing::Claimed { .. } | Standing::Taking { receipt: None, .. }, Op::Doubt) => {
                next.resend = None;
                next.standing = Standing::Unproven;
            }
            (Standing::Promised { by: had }, Op::Forgo { by }) if *had == by => {
                next.resend = None;
                next.standing = Standing::Untaken;
            }
            (Standing::Promised { by: had }, Op::Take { by, amount, output, receipt })
                if *had == by && amount <= self.terms.amount =>
            {
                next.taken = (amount != self.terms.amount).then_some(amount);
                next.output = output;
                next.standing = Standing::Taking { by, amount, receipt };
            }
            (Standing::Taking { by: had, receipt: None, .. }, Op::Settle { by, transaction, receipt })
                if *had == by =>
            {
                next.paid(transaction, now);
                next.standing = Standing::Delivered { receipt };
            }
            (Standing::Taking { amount, receipt, .. }, Op::PayUnserved { transaction }) => {
                next.standing = match receipt {
                    Some(receipt) => Standing::Delivered { receipt: receipt.clone() },
                    None if amount.0 == 0 => return Err(Denied::OutOfOrder),
                    None => Standing::Owed,
                };
                next.paid(transaction, now);
            }
            (Standing::Taking { by: had, amount, receipt }, Op::TakeOver { from, by }) if *had == from => {
                next.standing = Standing::Taking { by, amount: *amount, receipt: receipt.clone() };
            }
            (Standing::Taking { receipt, .. }, Op::Die | Op::Doubt) => {
                next.resend = None;
                (next.taken, next.output) = (None, None);
                next.standing = match receipt {
                    Some(receipt) => Standing::Lost { receipt: receipt.clone() },
                    None => Standing::Untaken,
                };
            }
            (Standing::Owed, Op::Redeem { by, route, need }) => {
                if self.redeem_until().is_none_or(|t| now > t) {
                    return Err(Denied::Spent);
                }
                if route != self.terms.route {
                    return Err(Denied::OtherRoute);
                }
                if need > self.paid_amount() {
                    return Err(Denied::Dearer { need, paid: self.paid_amount() });
                }
                next.standing = Standing::Serving { by };
            }
            (Standing::Serving { by: had }, Op::GiveBack { by }) if *had == by => next.standing = Standing::Owed,
            (Standing::Serving { by: had }, Op::Depart { by }) if *had == by && self.may_depart() => {
                next.departures = self.departures.saturating_add(1);
                next.standing = Standing::Owed;
            }
            (Standing::Serving { by: had }, Op::Deliver { by, receipt }) if *had == by => {
                next.standing = Standing::Delivered { receipt };
            }
            (
                Standing::Claimed { .. }
                | Standing::Serving { .. }
                | Standing::Promised { .. }
                | Standing::Taking { .. },
                Op::Redeem { .. } | Op::TakeOver { .. } | Op::Pay { .. },
            ) => {
                return Err(Denied::Running);
            }
            (Standing::Delivered { .. } | Standing::Lost { .. }, _) => return Err(Denied::Spent),
            (Standing::Unproven, _) => return Err(Denied::Unproven),
            (Standing::Dead | Standing::Untaken, _) => return Err(Denied::Dead),
            _ => return Err(Denied::OutOfOrder),
        }
        Ok(next)
    }

    fn paid(&mut self, transaction: Option<String>, now: UnixSeconds) {
        self.paid_at = Some(now);
        self.resend = None;
        self.transaction = transaction.or(self.transaction.take());
    }
}

fn redeem_until(paid_at: UnixSeconds) -> UnixSeconds {
    paid_at.plus(REDEEM_SECONDS)
}

/// [`Claim::keep_until`] of a record of which only this is known.
pub fn keep_until(collect_until: UnixSeconds, paid_at: Option<UnixSeconds>) -> UnixSeconds {
    let end = paid_at.map_or(collect_until, |at| redeem_until(at).max(collect_until));
    end.plus(86_400)
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
            taken: None,
            output: None,
            transaction: None,
            departures: 0,
        }
    }
}

#[cfg(test)]
mod tests;
