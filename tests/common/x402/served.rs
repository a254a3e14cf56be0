//! What runs beside the chain as a process of its own: the published facilitator, and a seller that is not the gate.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{EvmBed, SvmBed};
use crate::common::client::post_json;
use crate::common::{DEV, http, testbed};

/// A script that takes longer to start than this has failed.
const START: Duration = Duration::from_secs(60);

/// The published TypeScript facilitator over a local chain. `GET /calls` counts what it was asked.
pub struct Facilitator {
    served: Served,
}

/// What a facilitator was asked since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub supported: u64,
    pub verify: u64,
    pub settle: u64,
}

impl Facilitator {
    /// v2 `exact` and `upto`, v1 `exact`, gas sponsoring over EIP-2612.
    pub async fn ts(bed: &EvmBed) -> Self {
        Self::over(&[bed], None).await
    }

    /// The same, and `exact` on Solana.
    pub async fn ts_with(bed: &EvmBed, svm: &SvmBed) -> Self {
        Self::over(&[bed], Some(svm)).await
    }

    /// The same on all of these chains.
    pub async fn over(beds: &[&EvmBed], svm: Option<&SvmBed>) -> Self {
        let chains: serde_json::Map<String, Value> =
            beds.iter().map(|bed| (bed.chain_id.to_string(), bed.url().into())).collect();
        let chains = Value::from(chains).to_string();
        let solana = svm.map(|svm| (svm.url(), svm.network(), svm.said("fee_payer_key")));
        let mut flags = vec![("chains", chains.as_str()), ("key", DEV[0].key)];
        if let Some((url, network, payer)) = &solana {
            flags.extend([("svm", url.as_str()), ("svm_network", network), ("svm_key", payer)]);
        }
        Self { served: Served::start("facilitator.mjs", &flags).await }
    }

    pub fn url(&self) -> String {
        self.served.url()
    }

    pub async fn calls(&self) -> Calls {
        let said: Value = http().get(format!("{}/calls", self.url())).send().await.unwrap().json().await.unwrap();
        let count = |name: &str| said[name].as_u64().unwrap();
        Calls { supported: count("supported"), verify: count("verify"), settle: count("settle") }
    }

    /// `verify` or `settle` with a v2 payment against what it claims to accept, or against other `requirements`.
    pub async fn ask(&self, what: &str, payment: &Value, requirements: &Value) -> Value {
        let body = json!({
            "x402Version": payment["x402Version"], "paymentPayload": payment, "paymentRequirements": requirements,
        });
        post_json(&format!("{}/{what}", self.url()), &[], &body).await.json().await.unwrap()
    }

    pub async fn supported(&self) -> Value {
        http().get(format!("{}/supported", self.url())).send().await.unwrap().json().await.unwrap()
    }
}

/// A seller that is not the gate: v1 and v2 on every path, paid before the answer. What it asks for, in atoms:
/// [`Reference::PRICE`] under `exact`; under `upto` [`Reference::METERED`] of a higher ceiling.
pub struct Reference {
    served: Served,
}

impl Reference {
    pub const PRICE: u128 = 2_000;
    pub const METERED: u128 = 1_234;

    /// Behind the facilitator at this URL.
    pub async fn start(bed: &EvmBed, facilitator: &str) -> Self {
        let chain = bed.chain_id.to_string();
        let flags = [("facilitator", facilitator), ("pay_to", bed.payee()), ("chain", &chain)];
        Self { served: Served::start("reference.mjs", &flags).await }
    }

    /// The same, and `exact` on Solana.
    pub async fn start_with(bed: &EvmBed, svm: &SvmBed, facilitator: &str) -> Self {
        let (chain, payee) = (bed.chain_id.to_string(), svm.payee());
        let flags = [("facilitator", facilitator), ("pay_to", bed.payee()), ("chain", &chain), ("svm_pay_to", &payee)];
        Self { served: Served::start("reference.mjs", &flags).await }
    }

    pub fn url(&self) -> String {
        self.served.url()
    }
}

/// A script of `testbed/x402` that serves until it is dropped: its first line is JSON and names its `url`.
pub(super) struct Served {
    child: Child,
    pub(super) said: Value,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    pub(super) async fn start(script: &str, flags: &[(&str, &str)]) -> Self {
        require_packages();
        let mut command = Command::new("node");
        command.arg(folder().join(script));
        for (name, value) in flags {
            command.args([&format!("--{name}"), *value]);
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start node: {e}"));
        let (say, said) = mpsc::channel();
        let out = child.stdout.take().expect("piped");
        // To its end, for a full pipe would stop it.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        let mut served = Self { child, said: Value::Null };
        let first = tokio::task::spawn_blocking(move || said.recv_timeout(START)).await.unwrap();
        let first = first.unwrap_or_else(|why| panic!("{script} does not start: {why}"));
        served.said = serde_json::from_str(&first).unwrap_or_else(|e| panic!("{script} said {first}: {e}"));
        served
    }

    pub(super) fn url(&self) -> String {
        self.said["url"].as_str().expect("a url").to_owned()
    }
}

pub(super) fn require_packages() {
    assert!(
        folder().join("node_modules/.ready").exists(),
        "the x402 packages are not installed: run `make test` (or `testbed/setup`) first"
    );
}

pub(super) fn folder() -> PathBuf {
    testbed().join("x402")
}
