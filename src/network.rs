//! Networks that x402 names, and the stablecoins everybody there means: CAIP-2 ids, v1 names, addresses, EIP-712 domains
//! (`notes/x402-digest.md` §2). Facts only; nothing here talks to a chain.

use std::fmt;

/// How a network's accounts and signatures work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `eip155`.
    Evm {
        /// EIP-155 chain id.
        chain_id: u64,
    },
    /// `solana`.
    Solana,
}

/// A network by its CAIP-2 id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// `eip155:8453`, `solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp`.
    pub id: String,
    /// How it works.
    pub family: Family,
}

/// A token and the words its signatures need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// As written on the wire: `0x…` with the checksum's capitals, or base58.
    pub address: String,
    /// Decimals of its smallest unit.
    pub decimals: u8,
    /// EIP-712 domain name; empty on Solana.
    pub name: String,
    /// EIP-712 domain version; empty on Solana.
    pub version: String,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}
