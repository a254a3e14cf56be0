//! MPP: `WWW-Authenticate: Payment` (draft-httpauth-payment-00 as the published clients speak it).
//!
//! `wire` reads and writes headers, `bind` ties a challenge to its terms by MAC, `proof` turns a payload into the one identity
//! it can have, `collect` judges what the chain reports, `charge` is the rail made of them. `underway` bounds what one account has
//! us do at once. `sponsor` carries payers' transaction fees within a `budget`. `session` sells by the token, `escrow` sends what its
//! channels need, and `funds` looks whether the account that settles them can pay for it.

pub mod bind;
pub mod budget;
pub mod charge;
pub mod collect;
pub mod envelope;
pub mod escrow;
pub mod funds;
mod offline;
mod proof;
pub mod session;
pub mod sponsor;
mod told;
mod underway;
pub mod voucher;
pub mod wire;

use crate::refusal::Refusal;

/// What a payer is told whose transaction the chain's node could not try; the operator hears why.
fn untried(whose: &str, why: &'static str) -> Refusal {
    tracing::warn!(whose, why, "a payer's transaction could not be tried");
    Refusal::NoOffer { retry_after_seconds: 5, why: "the chain cannot be asked".to_owned() }
}
