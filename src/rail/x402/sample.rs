//! Payments as the published clients sent them (`testbed/x402/golden.mjs`), and what they were asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::signed::Wanted;
use super::wire::{Accepted, Entry, FEE_PAYER, Payment, Scheme};
use crate::clock::UnixSeconds;
use crate::money::Atoms;
use crate::network::{Asset, Network};
use crate::rail::{Found, Shown, found};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

/// Every recording, with the generation's header in its name.
pub const GOLDENS: [&str; 8] = [
    "exact-eip3009",
    "exact-eip3009-sepolia",
    "exact-permit2",
    "upto",
    "exact-solana",
    "exact-solana-memo",
    "v1-eip3009",
    "v1-solana",
];

/// One recording.
pub struct Golden {
    pub at: u64,
    pub payer: String,
    pub header: String,
    pub value: String,
    pub entry: Entry,
}

/// What the buyer was asked for, in a form that a test may change.
pub struct Asked {
    pub entry: Entry,
    pub asset: Asset,
    pub permit2: bool,
    pub facilitators: Vec<String>,
    pub memo: Option<String>,
    pub now: UnixSeconds,
    pub lasts: u64,
}

impl Golden {
    pub fn read(name: &str) -> Self {
        let path = format!("{}/tests/golden/x402-{name}.json", env!("CARGO_MANIFEST_DIR"));
        let said: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let offer = &said["offer"];
        let entry = Entry {
            scheme: serde_json::from_value(offer["scheme"].clone()).unwrap(),
            network: Network::parse(offer["network"].as_str().unwrap()).unwrap(),
            amount: Atoms::parse(offer["amount"].as_str().unwrap()).unwrap(),
            asset: text(&offer["asset"]),
            pay_to: text(&offer["payTo"]),
            max_timeout_seconds: offer["maxTimeoutSeconds"].as_u64().unwrap(),
            extra: offer["extra"].as_object().unwrap().clone(),
            v1: name.starts_with("v1"),
            sponsors_approval: offer["extra"]["assetTransferMethod"] == "permit2",
        };
        Self {
            at: said["at"].as_u64().unwrap(),
            payer: text(&said["payer"]),
            header: text(&said["header"]),
            value: text(&said["value"]),
            entry,
        }
    }

    pub fn found(&self) -> Found {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::try_from(&self.header).unwrap(), HeaderValue::try_from(&self.value).unwrap());
        found(&headers)
    }

    pub fn payment(&self) -> Payment {
        match self.found() {
            Found::One(Shown::X402(payment)) => *payment,
            other => panic!("{other:?}"),
        }
    }

    pub fn asked(&self) -> Asked {
        let word = |name: &str| self.entry.extra.get(name).and_then(Value::as_str).map(str::to_owned);
        Asked {
            asset: crate::network::asset(&self.entry.network, "usdc").unwrap(),
            permit2: word("assetTransferMethod").is_some(),
            facilitators: word("facilitatorAddress").or(word(FEE_PAYER)).into_iter().collect(),
            memo: word("memo"),
            now: UnixSeconds(self.at),
            lasts: 200,
            entry: self.entry.clone(),
        }
    }
}

impl Asked {
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted {
            network: &self.entry.network,
            asset: &self.asset,
            pay_to: &self.entry.pay_to,
            amount: self.entry.amount,
            scheme: self.entry.scheme,
            permit2: self.permit2,
            facilitators: &self.facilitators,
            memo: self.memo.as_deref(),
            now: self.now,
            lasts: self.lasts,
        }
    }
}

/// An offer of USDC on a network, as a rail writes it, with room for our words.
pub fn entry(network: &str, scheme: Scheme) -> Entry {
    let network = Network::parse(network).unwrap();
    let asset = crate::network::asset(&network, "usdc").unwrap();
    let mut extra = serde_json::Map::new();
    if network.chain_id().is_some() {
        extra.insert("name".into(), asset.name.clone().into());
        extra.insert("version".into(), asset.version.clone().into());
    } else {
        extra.insert(FEE_PAYER.into(), "J2xccRtuG43drESLYznHhLhQkLTdfepcKYbiQ9BsJVaf".into());
    }
    if scheme == Scheme::Upto {
        extra.insert("assetTransferMethod".into(), "permit2".into());
        extra.insert("facilitatorAddress".into(), "0x90F79bf6EB2c4f870365E785982E1f101E93b906".into());
    }
    extra.insert("offer".into(), "A".repeat(super::offer::LONGEST).into());
    Entry {
        scheme,
        v1: scheme == Scheme::Exact && network.v1().is_some(),
        pay_to: match network.chain_id() {
            Some(_) => "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266".into(),
            None => "2KW2XRd9kwqet15Aha2oK3tYvd3nWbTFH1MBiRAv1BE1".into(),
        },
        network,
        amount: Atoms(20_000),
        asset: asset.address,
        max_timeout_seconds: 300,
        extra,
        sponsors_approval: scheme == Scheme::Upto,
    }
}

/// The entry as a client repeats it.
pub fn accepted(entry: &Entry) -> Accepted {
    Accepted {
        amount: entry.amount,
        asset: entry.asset.clone(),
        pay_to: entry.pay_to.clone(),
        max_timeout_seconds: entry.max_timeout_seconds,
        extra: entry.extra.clone(),
    }
}
