//! The append-only record of what happened to money: record types, hash chain, audit walk. Pure; the store appends.

mod record;

pub use record::{Entry, Receipt};
