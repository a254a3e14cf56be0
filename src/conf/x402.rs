//! `[rail.<name>]` of kind `x402`: one payee in one token on one network, through one facilitator.

use super::payee::{self, address};
use crate::money::Usd;
use crate::network::{self, Asset, Family, Network, from_base58};
use crate::origin::Origin;
use crate::secret::{Secret, SecretRef};
use crate::written::{Section, Value};

/// Most that one request is authorized for when nothing else is written: the published wallets refuse more.
const USUAL_CEILING: Usd = Usd::ONE;

/// Settings of kind `x402`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X402Conf {
    /// The network.
    pub network: Network,
    /// The token.
    pub asset: Asset,
    /// Who is paid.
    pub pay_to: String,
    /// Who verifies and settles.
    pub facilitator: FacilitatorConf,
    /// `exact` is paid by Permit2 instead of EIP-3009.
    pub permit2: bool,
    /// `exact` is always taken before the request is served.
    pub first: bool,
    /// JSON-RPC of a node of ours: what became of a payment is looked up there.
    pub rpc: Option<SecretRef>,
    /// Above this a facilitator's word is not enough; needs `rpc`.
    pub evidence_above: Usd,
    /// Most that one payer may have promised and not paid.
    pub payer_exposure: Usd,
    /// Most that one request is authorized for (`upto`).
    pub ceiling: Usd,
}

/// `facilitator` of an `x402` rail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FacilitatorConf {
    /// A service over HTTP.
    Remote {
        /// Its base URL.
        url: Place,
        /// What it wants to see of us.
        auth: AuthConf,
        /// Send it only what it cannot do without.
        minimal: bool,
    },
    /// In this process, if the build can.
    Local {
        /// JSON-RPC of the network.
        rpc: SecretRef,
        /// Key of the account that pays the gas.
        key: SecretRef,
    },
}

/// A URL as written, or where it is kept because it holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// As written.
    Open(String),
    /// `env:` or `file:`.
    Kept(SecretRef),
}

impl Place {
    /// The URL.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Open(url) => Ok(Secret::new(url.clone().into_bytes())),
            Self::Kept(secret) => secret.read(),
        }
    }
}

/// How we show a facilitator who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthConf {
    /// Not at all.
    None,
    /// `bearer = "env:…"`.
    Bearer(SecretRef),
    /// `header = { name, value }`.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: SecretRef,
    },
    /// `cdp = { key_id, key_secret }`: a token signed for each request.
    Cdp {
        /// Id of the key.
        key_id: SecretRef,
        /// Its secret.
        key_secret: SecretRef,
    },
}

pub(super) fn read(s: &Section<'_>) -> Option<X402Conf> {
    let network = s.need("network").and_then(|v| {
        v.read(|text| {
            Network::parse(text)
                .ok_or("is not a CAIP-2 network such as \"eip155:8453\" or \"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp\"")
        })
    });
    let family = network.as_ref().map(|n| n.family);
    let is_solana = family == Some(Family::Solana);
    let asset = s.need("asset").and_then(|v| asset(&v, network.as_ref()));
    let pay_to = s.need("pay_to").and_then(|v| {
        let pay_to = v.read(|text| match family {
            Some(Family::Solana) => {
                from_base58::<32>(text).map(|_| text.to_owned()).ok_or("is not a Solana address in base58")
            }
            _ => address(text).map(|_| text.to_owned()),
        });
        if let (Some(pay_to), Some(asset)) = (&pay_to, &asset)
            && network::same_account(pay_to, &asset.address)
        {
            v.wrong(payee::IS_THE_TOKEN);
        }
        pay_to
    });
    let facilitator = s.need("facilitator").and_then(|v| facilitator(&v.section()?));
    let on_evm = |v: &Value<'_>, word: &str| {
        if is_solana {
            v.wrong(format!("{word} is for EVM networks"));
        }
    };
    let permit2 = s.take("transfer").map_or(Some(false), |v| {
        on_evm(&v, "`transfer`");
        v.word(&[("eip3009", false), ("permit2", true)])
    });
    let first = s.take("settle").map_or(Some(is_solana), |v| {
        let first = v.word(&[("first", true), ("on-success", false)])?;
        if is_solana && !first {
            v.wrong("a Solana payment does not outlive a minute: it is always settled first");
        }
        Some(first)
    });
    let rpc = s.take("rpc").map(|v| v.secret());
    let usd = |key, usual| match s.take(key) {
        Some(v) => v.amount(Usd::parse).map(|usd| (usd, Some(v))),
        None => Some((usual, None)),
    };
    let (evidence, exposure, ceiling) =
        (usd("evidence_above", Usd::ONE), usd("payer_exposure", Usd(5 * Usd::ONE.0)), usd("ceiling", USUAL_CEILING));
    if let (Some((_, Some(v))), None) = (&evidence, &rpc) {
        v.wrong("needs `rpc` beside it: the chain is asked there");
    }
    if let (Some((most, at)), Some((ceiling, of))) = (&exposure, &ceiling)
        && ceiling > most
        && let Some(v) = of.as_ref().or(at.as_ref())
    {
        v.wrong(format!("one request may be authorized for ${ceiling}, and a payer may owe ${most} at most"));
    }
    Some(X402Conf {
        network: network?,
        asset: asset?,
        pay_to: pay_to?,
        facilitator: facilitator?,
        permit2: permit2?,
        first: first?,
        rpc: rpc.map_or(Some(None), |rpc| rpc.map(Some))?,
        evidence_above: evidence?.0,
        payer_exposure: exposure?.0,
        ceiling: ceiling?.0,
    })
}

fn asset(value: &Value<'_>, network: Option<&Network>) -> Option<Asset> {
    if !value.is_table() {
        let word = value.text()?;
        let found = network::asset(network?, word);
        if found.is_none() {
            value.wrong(format!(
                "{word:?} is not known on {}: write {{ address, decimals, name, version }}",
                network.map_or("this network", |n| n.id.as_str())
            ));
        }
        return found;
    }
    let s = value.section()?;
    let solana = network.map(|n| n.family) == Some(Family::Solana);
    let address = s.need("address").and_then(|v| {
        v.read(|text| match solana {
            true => from_base58::<32>(text).map(|_| text.to_owned()).ok_or("is not a Solana address in base58"),
            false => address(text).map(|_| text.to_owned()),
        })
    });
    let decimals = s.need("decimals").and_then(|v| v.count(0..=18));
    let word = |key| match solana {
        true => Some(String::new()),
        false => s.need(key).and_then(|v| Some(v.text()?.to_owned())),
    };
    let (name, version) = (word("name"), word("version"));
    let asset = Asset { address: address?, decimals: decimals?.try_into().ok()?, name: name?, version: version? };
    if let Some(known) = network.and_then(|network| network::at(network, &asset.address))
        && (known.decimals, &known.name, &known.version) != (asset.decimals, &asset.name, &asset.version)
    {
        let domain =
            if solana { String::new() } else { format!(", name {:?}, version {:?}", known.name, known.version) };
        value.wrong(format!("is \"usdc\", which has decimals {}{domain}: write asset = \"usdc\"", known.decimals));
    }
    Some(asset)
}

fn facilitator(s: &Section<'_>) -> Option<FacilitatorConf> {
    if let Some(local) = s.take("local") {
        let t = local.section()?;
        let (rpc, key) = (t.need("rpc").and_then(|v| v.secret()), t.need("key").and_then(|v| v.secret()));
        return Some(FacilitatorConf::Local { rpc: rpc?, key: key? });
    }
    let url = s.need("url").and_then(|v| match v.text()? {
        text if text.starts_with("env:") || text.starts_with("file:") => v.secret().map(Place::Kept),
        _ => v.read(|text| Origin::parse(text).map(|_| Place::Open(text.to_owned()))),
    });
    let mut auth = Vec::new();
    if let Some(v) = s.take("bearer") {
        auth.push(v.secret().map(AuthConf::Bearer));
    }
    if let Some(v) = s.take("header") {
        auth.push(v.section().and_then(|t| {
            let name = t.need("name").and_then(|v| Some(v.text()?.to_owned()));
            let value = t.need("value").and_then(|v| v.secret());
            Some(AuthConf::Header { name: name?, value: value? })
        }));
    }
    if let Some(v) = s.take("cdp") {
        auth.push(v.section().and_then(|t| {
            let (key_id, key_secret) =
                (t.need("key_id").and_then(|v| v.secret()), t.need("key_secret").and_then(|v| v.secret()));
            Some(AuthConf::Cdp { key_id: key_id?, key_secret: key_secret? })
        }));
    }
    if auth.len() > 1 {
        s.wrong("`bearer`, `header` and `cdp` exclude each other");
    }
    let minimal = s.take("minimal").map_or(Some(false), |v| v.flag());
    let auth = auth.pop().unwrap_or(Some(AuthConf::None));
    Some(FacilitatorConf::Remote { url: url?, auth: auth?, minimal: minimal? })
}
