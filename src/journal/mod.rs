//! The append-only record of what happened to money: record types, hash chain, audit walk. Pure; the store appends.

pub mod audit;
pub mod chain;
mod channels;
pub mod fleet;
mod record;

pub use record::{Entry, Receipt, Settlement};

/// Records for tests of this floor and those above.
#[cfg(test)]
pub mod sample {
    #![allow(missing_docs)]
    use super::Receipt;
    use crate::clock::UnixSeconds;
    use crate::money::{Atoms, Usd};
    use crate::usage::{Usage, UsageSource};

    pub fn receipt(id: &str, reference: &str, atoms: u128) -> Receipt {
        Receipt {
            id: id.to_owned(),
            request: "req_1".to_owned(),
            at: UnixSeconds(1_795_221_720),
            route: "/v1/chat/completions".into(),
            tier: "standard".into(),
            model: "openai/gpt-oss-120b".into(),
            pool: "gpt-oss".into(),
            server: None,
            rail: "tempo/charge".into(),
            generation: "0123456789abcdef".into(),
            charged: Atoms(atoms),
            decimals: 6,
            charged_usd: Usd(atoms * 1_000_000_000_000),
            actual_usd: Some(Usd(123_456_789)),
            usage: Some(Usage { prompt: 10, completion: u64::MAX, reasoning: 3, ..Usage::default() }),
            usage_source: Some(UsageSource::Reported),
            reference: reference.to_owned(),
            transaction: None,
            settlement: None,
            payer: None,
            attempts: 1,
            complete: true,
        }
    }
}
