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

/// Names of v1, which knows no other networks (`notes/x402-digest.md` §1.6).
const V1: [(&str, &str); 17] = [
    ("abstract", "eip155:2741"),
    ("abstract-testnet", "eip155:11124"),
    ("avalanche", "eip155:43114"),
    ("avalanche-fuji", "eip155:43113"),
    ("base", "eip155:8453"),
    ("base-sepolia", "eip155:84532"),
    ("educhain", "eip155:41923"),
    ("iotex", "eip155:4689"),
    ("peaq", "eip155:3338"),
    ("polygon", "eip155:137"),
    ("polygon-amoy", "eip155:80002"),
    ("sei", "eip155:1329"),
    ("sei-testnet", "eip155:1328"),
    ("skale-base-sepolia", "eip155:324705682"),
    ("solana", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"),
    ("solana-devnet", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"),
    ("story", "eip155:1514"),
];

impl Network {
    /// Any EIP-155 chain by its canonical decimal id, any Solana cluster by the 32 characters of its genesis hash.
    pub fn parse(caip2: &str) -> Option<Self> {
        let family = match caip2.split_once(':')? {
            ("eip155", number) => {
                let chain_id: u64 = number.parse().ok()?;
                (chain_id.to_string() == number).then_some(Family::Evm { chain_id })?
            }
            ("solana", hash) => {
                let base58 = |b: u8| b.is_ascii_alphanumeric() && !b"0OIl".contains(&b);
                (hash.len() == 32 && hash.bytes().all(base58)).then_some(Family::Solana)?
            }
            _ => return None,
        };
        Some(Self { id: caip2.to_owned(), family })
    }

    /// By its v1 name.
    pub fn from_v1(name: &str) -> Option<Self> {
        V1.iter().find(|(known, _)| *known == name).and_then(|(_, id)| Self::parse(id))
    }

    /// Its v1 name, if v1 has one.
    pub fn v1(&self) -> Option<&'static str> {
        V1.iter().find(|(_, id)| *id == self.id).map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_one_id_and_at_most_one_old_name() {
        for (name, id) in V1 {
            let network = Network::parse(id);
            assert_eq!((Network::from_v1(name), network.as_ref().and_then(Network::v1)), (network.clone(), Some(name)));
            assert!(network.is_some(), "{id}");
        }
        for id in
            ["eip155:", "eip155:08453", "eip155:+1", "eip155:0x1", "solana:short", "base", "EIP155:1", "eip155:1 "]
        {
            assert_eq!(Network::parse(id), None, "{id}");
        }
    }
}
