//! x402, versions 2 and 1: `exact` and `upto` on EVM networks, `exact` on Solana, through a facilitator.

pub mod evidence;
pub mod evm_evidence;
pub mod facilitator;
#[cfg(feature = "local-facilitator")]
pub mod local;
#[cfg(test)]
mod node;
pub mod offer;
pub mod remote;
#[cfg(test)]
pub(crate) mod sample;
pub mod shown;
pub mod signed;
pub mod solana;
pub mod solana_evidence;
mod way;
pub mod wire;

pub use way::{Settings, X402};
