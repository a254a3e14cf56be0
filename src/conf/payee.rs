//! Addresses that money is sent to, and those it must not be sent to.

use super::RailKind;
use crate::network::{Family, is_for_tests};
use alloy::primitives::Address;

/// The payee of samples for real networks. Nobody has its key, so a gate does not start with it.
const PLACEHOLDER: [u8; 20] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xde, 0xad];

/// The same on Solana: the address of the program that burns what it is sent.
const SOLANA_PLACEHOLDER: &str = "1nc1nerator11111111111111111111111111111111";

/// Accounts 0 to 9 of every local chain (anvil, hardhat: "test test … junk"). Everybody has their keys, and on networks with real money
/// programs wait to take whatever arrives there.
const EVERYBODYS: [&str; 10] = [
    "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
    "0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
    "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
    "0x90f79bf6eb2c4f870365e785982e1f101e93b906",
    "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65",
    "0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc",
    "0x976ea74026e726554db657fa54763abd0c3a0aa9",
    "0x14dc79964da2c08b23698b3d3cc7ca32193d9955",
    "0x23618e81e3f5cdf7f54c3d65f7fbc0abf5b21e8f",
    "0xa0ee7a142d267c1f36714e4a8f75612f20a79720",
];

/// Why a payee that is the token it would be paid in is refused.
pub(super) const IS_THE_TOKEN: &str = "is the token's own contract: what is paid to it is gone";

impl RailKind {
    /// The key of a payee that payments would be lost to, and why; else `None`.
    pub fn pays_nobody(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::MppTempo(tempo) => Some(("recipient", lost(&tempo.recipient, tempo.chain_id)?)),
            Self::X402(x402) => Some((
                "pay_to",
                match x402.network.family {
                    Family::Evm { chain_id } => lost(&address(&x402.pay_to).ok()?, chain_id)?,
                    Family::Solana => (x402.pay_to == SOLANA_PLACEHOLDER).then_some(SAMPLES)?,
                },
            )),
        }
    }
}

const SAMPLES: &str = "is the sample's placeholder, and what is paid to it is gone (put your own address there)";

fn lost(payee: &[u8; 20], chain_id: u64) -> Option<&'static str> {
    let is_everybodys = || EVERYBODYS.iter().any(|known| address(known) == Ok(*payee));
    match *payee {
        PLACEHOLDER => Some(SAMPLES),
        _ if !is_for_tests(chain_id) && is_everybodys() => {
            Some("is an account of local test chains whose key everybody has (put your own address there)")
        }
        _ => None,
    }
}

/// `0x` and 40 hex digits. Digits of both cases carry a checksum (EIP-55), which must be right; digits of one case carry none. Zero is
/// refused: money sent there is gone.
pub(super) fn address(text: &str) -> Result<[u8; 20], &'static str> {
    let mut bytes = [0; 20];
    let digits = text.strip_prefix("0x").ok_or("is not an address: 0x and 40 hex digits")?;
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| "is not an address: 0x and 40 hex digits")?;
    let is_mixed = digits.bytes().any(|b| b.is_ascii_lowercase()) && digits.bytes().any(|b| b.is_ascii_uppercase());
    if is_mixed && Address::from(bytes).to_checksum(None) != text {
        return Err("is mistyped: its checksum (EIP-55, the case of its letters) does not fit");
    }
    if bytes == [0; 20] { Err("is the zero address: what is paid to it is gone") } else { Ok(bytes) }
}
