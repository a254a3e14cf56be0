//! A gate that takes x402, wired: chain, facilitator, backend, and one path for every way to pay.

use serde_json::Value;

use super::EvmBed;
use crate::common::{Backend, Gate, GateOptions, RawReply, Script, raw};

/// What every call of the flat tier costs, in atoms.
pub const FLAT: u128 = 20_000;
/// Atoms of one prompt token of the metered tier; an output token costs twice as much.
pub const PER_TOKEN: u128 = 1_000;

/// The published clients add `/v1/chat/completions` to a server: these are the servers of one gate.
pub mod server {
    /// `exact`, flat price, taken after a JSON answer succeeded and before a streamed one begins.
    pub const EXACT: &str = "";
    /// `exact`, flat price, always taken first.
    pub const FIRST: &str = "/first";
    /// `exact` over Permit2.
    pub const PERMIT2: &str = "/permit2";
    /// `upto`: what was used is taken.
    pub const UPTO: &str = "/upto";
}

/// The path of a server.
pub fn chat_at(server: &str) -> String {
    format!("{server}/v1/chat/completions")
}

/// A gate that takes x402 on one EVM chain.
pub struct Stall {
    pub chain: EvmBed,
    pub backend: Backend,
    pub gate: Gate,
}

impl Stall {
    /// Over the facilitator at this URL.
    pub async fn over(chain: EvmBed, facilitator: &str) -> Self {
        Self::with(chain, facilitator, |options| options).await
    }

    /// The same with the files changed.
    pub async fn with(chain: EvmBed, facilitator: &str, change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let backend = Backend::start(Script::default()).await;
        let gate = Gate::start(change(options(&chain, facilitator, &backend.url()))).await;
        Self { chain, backend, gate }
    }

    /// What a client takes for the server; see [`server`].
    pub fn server(&self, server: &str) -> String {
        format!("{}{server}", self.gate.url())
    }

    /// One request by hand.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> RawReply {
        raw::exchange(self.gate.listen, &raw::post(path, headers, body.to_string().as_bytes())).await
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> RawReply {
        raw::exchange(self.gate.listen, format!("GET {path} HTTP/1.1\r\nhost: gate\r\n\r\n").as_bytes()).await
    }

    /// What the payee earned.
    pub async fn earned(&self) -> u128 {
        self.chain.usdc(self.chain.payee()).await
    }
}

/// The files: see [`server`] for the paths, [`FLAT`] and [`PER_TOKEN`] for the prices.
pub fn options(chain: &EvmBed, facilitator: &str, upstream: &str) -> GateOptions {
    let mut options = GateOptions::new("http://127.0.0.1:1", upstream);
    let mut conf = String::from(CONF);
    let mut routes = String::new();
    for (name, more, server, tier, accept) in [
        ("base", "", server::EXACT, "flat", "base/exact"),
        ("first", "settle = \"first\"\n", server::FIRST, "flat", "first/exact"),
        ("permit", "transfer = \"permit2\"\n", server::PERMIT2, "flat", "permit/exact"),
        ("", "", server::UPTO, "metered", "base/upto"),
    ] {
        if !name.is_empty() {
            conf.push_str(&rail(name, chain, facilitator, more));
        }
        let path = chat_at(server);
        routes.push_str(&format!(
            "[[route]]\npath = \"{path}\"\nsurface = \"chat\"\ntier = \"{tier}\"\naccept = [\"{accept}\"]\nreceipt = {{ header = true, body = \"pontage\" }}\n\n"
        ));
    }
    options.conf = Some(conf);
    let (name, url) = node(chain);
    options.env(&name, &url).rule("models.toml", MODELS).rule("tiers.toml", TIERS).rule("routes.toml", &routes)
}

/// One section of `pontage.toml`; its node is in the environment as [`node`] says.
pub fn rail(name: &str, chain: &EvmBed, facilitator: &str, more: &str) -> String {
    let (network, payee, node) = (chain.network(), chain.payee(), node(chain).0);
    format!(
        "\n[rail.{name}]\nkind = \"x402\"\nnetwork = \"{network}\"\nasset = \"usdc\"\npay_to = \"{payee}\"\nfacilitator = {{ url = \"{facilitator}\" }}\nrpc = \"env:{node}\"\n{more}"
    )
}

/// The variable that holds the node's URL, and its value.
pub fn node(chain: &EvmBed) -> (String, String) {
    (format!("RPC_{}", chain.chain_id), chain.url())
}

const CONF: &str = r#"[listen]
address = "{listen}"
public_url = "http://{listen}"
admin = "{admin}"
threads = 2
grace_seconds = 5
limits = { unpaid_per_ip_per_second = 100000, unpaid_per_second = 100000, connections_per_ip = 1000 }

[secrets]
challenge_keys = ["env:PONTAGE_CHALLENGE_KEY"]
receipt_key = "env:PONTAGE_RECEIPT_KEY"

[store]
kind = "embedded"
path = "{dir}/var/pontage.redb"
"#;

const MODELS: &str = r#"[model."openai/gpt-oss-120b"]
upstream = "gpt-oss-120b"
pool = "gpt-oss"
price = { input = "1000", cached_input = "500", output = "2000" }
vocabulary = "o200k"
"#;

const TIERS: &str = r#"[tier.flat]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 2048
max_n = 4
charge = { flat = "0.02" }

[tier.metered]
models = ["openai/gpt-oss-120b"]
max_output_tokens = 256
max_n = 4
"#;
