//! The published clients.

use mpp::PrivateKeySigner;
use serde_json::Value;

use super::served::require_packages;
use super::{EvmBed, SvmBed, SvmBuyer};
use crate::common::client::{node, python};

/// The published clients of x402 as child processes. Each takes a chain to sign for and a key with money on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// npm @x402/fetch: v2, and v1 where nothing else is offered.
    Fetch,
    /// npm x402-fetch 1.2: v1 only, from the body of the 402.
    Legacy,
    /// npm openai over @x402/fetch.
    OpenAi,
    /// PyPI x402 over httpx.
    Httpx,
    /// PyPI x402 over requests.
    Requests,
    /// PyPI openai over x402's transport for httpx.
    PyOpenAi,
}

impl Client {
    pub const ALL: [Self; 6] = [Self::Fetch, Self::Legacy, Self::OpenAi, Self::Httpx, Self::Requests, Self::PyOpenAi];

    /// One chat at `server` (no path) from an account of `bed`; `flags` as the script has them, `("stream", "true")` and
    /// `("scheme", "upto")` for example. What it prints: `ok`, `status`, `headers` with the x402 ones decoded
    /// (`payment_response`), `text`; Node tells `calls` with each payment, Python `payments`.
    pub async fn pay(self, bed: &EvmBed, buyer: &PrivateKeySigner, server: &str, flags: &[(&str, &str)]) -> Value {
        let (rpc, chain) = (bed.url(), bed.chain_id.to_string());
        let key = alloy::hex::encode_prefixed(buyer.to_bytes());
        let mut all = vec![("rpc", rpc.as_str()), ("key", &key), ("chain", &chain)];
        all.extend_from_slice(flags);
        self.run(server, &all).await
    }

    /// The same on Solana.
    pub async fn pay_svm(self, svm: &SvmBed, buyer: &SvmBuyer, server: &str, flags: &[(&str, &str)]) -> Value {
        let rpc = svm.url();
        let mut all = vec![("svm_rpc", rpc.as_str()), ("svm_key", &buyer.key)];
        all.extend_from_slice(flags);
        self.run(server, &all).await
    }

    /// The same with nothing but these flags.
    pub async fn run(self, server: &str, flags: &[(&str, &str)]) -> Value {
        require_packages();
        let (url, base) = (format!("{server}/v1/chat/completions"), format!("{server}/v1"));
        let mut all = match self {
            Self::OpenAi | Self::PyOpenAi => vec![("base", base.as_str())],
            _ => vec![("url", url.as_str())],
        };
        all.extend_from_slice(flags);
        match self {
            Self::Legacy => all.push(("legacy", "true")),
            Self::Requests => all.push(("sync", "true")),
            _ => {}
        }
        match self {
            Self::Fetch | Self::Legacy => node("../x402/fetch.mjs", &all).await,
            Self::OpenAi => node("../x402/openai.mjs", &all).await,
            Self::Httpx | Self::Requests => python("x402_pay.py", &all).await,
            Self::PyOpenAi => python("openai_x402.py", &all).await,
        }
    }
}
