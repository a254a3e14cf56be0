//! Networks that x402 names, and the stablecoins everybody there means: CAIP-2 ids, v1 names, addresses, EIP-712 domains.
//! `DEFAULT_ASSETS.md` of x402-foundation/x402 says where its SDKs keep theirs. Facts only; nothing here talks to a chain.

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

/// Networks with a name of their own: CAIP-2 id, name in v1, and whether the v1 clients of npm (`x402-fetch` 1.2) know that name.
/// Those throw on a challenge that has one name they do not know, so only what they know may be written; more may be read.
const NAMED: &[(&str, &str, bool)] = &[
    ("eip155:8453", "base", true),
    ("eip155:84532", "base-sepolia", true),
    ("eip155:1", "ethereum", false),
    ("eip155:137", "polygon", true),
    ("eip155:80002", "polygon-amoy", true),
    ("eip155:43114", "avalanche", true),
    ("eip155:43113", "avalanche-fuji", true),
    ("eip155:2741", "abstract", true),
    ("eip155:11124", "abstract-testnet", true),
    ("eip155:4689", "iotex", true),
    ("eip155:1329", "sei", true),
    ("eip155:1328", "sei-testnet", true),
    ("eip155:3338", "peaq", true),
    ("eip155:1514", "story", true),
    ("eip155:41923", "educhain", true),
    ("eip155:324705682", "skale-base-sepolia", true),
    ("eip155:143", "monad", false),
    ("eip155:42220", "celo", false),
    ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "solana", true),
    ("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "solana-devnet", true),
    ("solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z", "solana-testnet", false),
];

/// What `usdc` means: network, address, EIP-712 name and version. The name differs between networks, and a wrong one fails every
/// signature. All have 6 decimals.
const USDC: &[(&str, &str, &str, &str)] = &[
    ("eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin", "2"),
    ("eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", "2"),
    ("eip155:1", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin", "2"),
    ("eip155:137", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin", "2"),
    ("eip155:42161", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin", "2"),
    ("eip155:421614", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin", "2"),
    ("eip155:43114", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin", "2"),
    ("eip155:143", "0x754704Bc059F8C67012fEd69BC8A327a5aafb603", "USDC", "2"),
    ("eip155:42220", "0xcebA9300f2b948710d2653dD7B07f33A8B32118C", "USDC", "2"),
    ("eip155:1329", "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", "USDC", "2"),
    ("eip155:50", "0xfA2958CB79b0491CC627c1557F441eF849Ca8eb1", "USDC", "2"),
    ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "", ""),
    ("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU", "", ""),
    ("solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z", "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU", "", ""),
];

/// EVM networks whose money is worth nothing, beside those with a name: local chains, Tempo's, and those of Ethereum,
/// Arbitrum, Optimism, Linea, Monad and others.
const FOR_TESTS: &[u64] = &[
    300, 1_337, 1_338, 4_801, 10_143, 17_000, 31_318, 31_337, 42_429, 42_431, 44_787, 59_141, 421_614, 560_048,
    11_155_111, 11_155_420,
];

/// Those among the named.
const NAMED_FOR_TESTS: &[&str] =
    &["base-sepolia", "polygon-amoy", "avalanche-fuji", "abstract-testnet", "sei-testnet", "skale-base-sepolia"];

/// Length of a Solana network's reference: the start of its genesis hash in base58.
const SOLANA_REFERENCE: usize = 32;

impl Network {
    /// Reads a CAIP-2 id: `eip155:` and a chain id without leading zeros, or `solana:` and 32 characters of base58. Every network
    /// has one spelling.
    pub fn parse(caip2: &str) -> Option<Self> {
        let family = match caip2.split_once(':')? {
            ("eip155", id) => {
                let chain_id: u64 = id.parse().ok()?;
                (chain_id != 0 && chain_id.to_string() == id).then_some(Family::Evm { chain_id })?
            }
            ("solana", id) => {
                let base58 = id.len() == SOLANA_REFERENCE && bs58::decode(id).into_vec().is_ok();
                base58.then_some(Family::Solana)?
            }
            _ => return None,
        };
        Some(Self { id: caip2.to_owned(), family })
    }

    /// Reads a v1 name such as `base-sepolia`.
    pub fn from_v1(name: &str) -> Option<Self> {
        NAMED.iter().find(|(_, named, _)| *named == name).and_then(|(id, ..)| Self::parse(id))
    }

    /// Its v1 name, if the v1 clients that are about know it.
    pub fn v1(&self) -> Option<&'static str> {
        NAMED.iter().find(|(id, _, known)| *id == self.id && *known).map(|(_, name, _)| *name)
    }

    /// EIP-155 chain id; `None` on Solana.
    pub fn chain_id(&self) -> Option<u64> {
        match self.family {
            Family::Evm { chain_id } => Some(chain_id),
            Family::Solana => None,
        }
    }
}

/// Whether the money of an EVM network is known to be worth nothing. Of a network that is not known it is not.
pub fn is_for_tests(chain_id: u64) -> bool {
    let id = format!("eip155:{chain_id}");
    FOR_TESTS.contains(&chain_id) || NAMED.iter().any(|(of, name, _)| *of == id && NAMED_FOR_TESTS.contains(name))
}

/// Whether two addresses of one network are one account: in hex the case of letters is only a checksum, in base58 it is not.
pub fn same_account(one: &str, other: &str) -> bool {
    one == other || (one.starts_with("0x") && one.eq_ignore_ascii_case(other))
}

/// The built-in token at an address, however that is written.
pub fn at(network: &Network, address: &str) -> Option<Asset> {
    asset(network, "usdc").filter(|known| same_account(&known.address, address))
}

/// What a word such as `usdc` means on a network; `None` for what is not built in.
pub fn asset(network: &Network, word: &str) -> Option<Asset> {
    let (_, address, name, version) = USDC.iter().find(|(id, ..)| *id == network.id && word == "usdc")?;
    Some(Asset {
        address: (*address).to_owned(),
        decimals: 6,
        name: (*name).to_owned(),
        version: (*version).to_owned(),
    })
}

/// Reads exactly `N` bytes of base58. A value has one spelling.
pub fn from_base58<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Longer than any spelling of so many bytes: not worth counting.
    let text = Some(text).filter(|text| text.len() <= 2 * N)?;
    bs58::decode(text).into_vec().ok()?.try_into().ok()
}

/// Writes bytes in base58. For keys, signatures and hashes: the work grows with the square of their number.
pub fn base58(bytes: &[u8]) -> String {
    bs58::encode(bytes).into_string()
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::primitives::Address;
    use proptest::prelude::*;

    #[test]
    fn a_network_has_one_spelling() {
        for (text, want, why) in [
            ("eip155:8453", true, "Base"),
            ("eip155:999999999", true, "any chain"),
            ("eip155:18446744073709551615", true, "the largest id"),
            ("eip155:18446744073709551616", false, "past it"),
            ("eip155:08453", false, "leading zero"),
            ("eip155:+8453", false, "sign"),
            ("eip155: 8453", false, "space"),
            ("eip155:0x2105", false, "hex"),
            ("eip155:0", false, "no chain"),
            ("eip155:", false, "no id"),
            ("EIP155:8453", false, "capitals"),
            ("eip155", false, "no colon"),
            ("base", false, "a v1 name"),
            ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", true, "mainnet"),
            ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvd", false, "31 characters"),
            ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpp", false, "33 characters"),
            ("solana:0eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", false, "0 is no digit of base58"),
            ("solana:mainnet", false, "a word"),
            ("aptos:1", false, "another family"),
        ] {
            assert_eq!(Network::parse(text).is_some(), want, "{why}");
            assert!(Network::parse(text).is_none_or(|n| n.to_string() == text), "{why}");
        }
        assert_eq!(Network::parse("eip155:8453").unwrap().chain_id(), Some(8453));
        assert_eq!(Network::parse("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp").unwrap().chain_id(), None);
    }

    #[test]
    fn the_first_generation_is_told_only_names_its_clients_know() {
        // The enum of x402-fetch 1.2: one other name in a challenge, and it throws.
        let known = [
            "abstract",
            "abstract-testnet",
            "base-sepolia",
            "base",
            "avalanche-fuji",
            "avalanche",
            "iotex",
            "solana-devnet",
            "solana",
            "sei",
            "sei-testnet",
            "polygon",
            "polygon-amoy",
            "peaq",
            "story",
            "educhain",
            "skale-base-sepolia",
        ];
        for name in known {
            assert_eq!(Network::from_v1(name).unwrap().v1(), Some(name), "{name}");
        }
        for (id, name, _) in NAMED {
            let network = Network::parse(id).unwrap();
            assert_eq!(Network::from_v1(name).as_ref(), Some(&network), "{name}");
            assert_eq!(network.v1(), known.contains(name).then_some(*name), "{name}");
        }
        assert_eq!(Network::from_v1("Base"), None);
        assert_eq!(Network::from_v1("eip155:8453"), None);
    }

    #[test]
    fn every_built_in_token_has_an_address_without_a_slip_of_the_pen() {
        for (id, address, name, version) in USDC {
            let network = Network::parse(id).unwrap();
            let asset = asset(&network, "usdc").unwrap();
            assert_eq!((asset.address.as_str(), asset.decimals), (*address, 6), "{id}");
            match network.family {
                Family::Evm { .. } => {
                    assert_eq!(Address::parse_checksummed(address, None).unwrap().to_checksum(None), *address, "{id}");
                    assert!(!name.is_empty() && !version.is_empty(), "{id}: signatures need its domain");
                }
                Family::Solana => {
                    assert!(from_base58::<32>(address).is_some(), "{id}");
                    assert!(name.is_empty() && version.is_empty(), "{id}: there is no domain");
                }
            }
        }
        assert_eq!(asset(&Network::parse("eip155:8453").unwrap(), "usdt"), None);
        assert_eq!(asset(&Network::parse("eip155:7").unwrap(), "usdc"), None);
    }

    #[test]
    fn a_network_is_for_tests_only_where_that_is_known() {
        for (chain_id, want, why) in [
            (31_337, true, "anvil, hardhat"),
            (42_431, true, "Tempo's test network"),
            (84_532, true, "Base Sepolia"),
            (421_614, true, "Arbitrum Sepolia"),
            (4_217, false, "Tempo"),
            (8_453, false, "Base"),
            (137, false, "Polygon"),
            (7, false, "whatever that is"),
        ] {
            assert_eq!(is_for_tests(chain_id), want, "{why}");
        }
        let named = |name: &&&str| NAMED.iter().any(|(_, of, _)| of == *name);
        assert_eq!(NAMED_FOR_TESTS.iter().filter(named).count(), NAMED_FOR_TESTS.len(), "no name is misspelt");
    }

    #[test]
    fn base58_has_one_spelling() {
        for (text, want, why) in [
            ("11111111111111111111111111111111", true, "the system program is 32 zeros"),
            ("1111111111111111111111111111111", false, "31 zeros"),
            ("111111111111111111111111111111111", false, "33 zeros"),
            ("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA", true, "the token program"),
            ("1TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA", false, "a zero before it"),
            ("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5D0", false, "0 is no digit"),
            ("", false, "nothing"),
        ] {
            assert_eq!(from_base58::<32>(text).is_some(), want, "{why}");
        }
        assert_eq!(base58(b"Hello World!"), "2NEpo7TZRRrLZSi2U", "the vector of its draft");
        assert_eq!(base58(&[0, 0, 0x28, 0x7f, 0xb4, 0xcd]), "11233QC4", "zeros in front are ones");
    }

    proptest! {
        #[test]
        fn base58_loses_nothing(zeros in 0usize..32, bytes in any::<[u8; 32]>()) {
            let mut bytes = bytes;
            bytes.iter_mut().take(zeros).for_each(|b| *b = 0);
            prop_assert_eq!(from_base58::<32>(&base58(&bytes)), Some(bytes));
        }
    }
}
