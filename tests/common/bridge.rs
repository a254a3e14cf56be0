//! A gate between a chain and a backend, for tests of what passes through it and what does not. Beside the paid route it
//! has a free one, so that a test about forwarding need not pay.

use super::{Backend, Chain, Gate, GateOptions, Payer, Raw, RawReply, Recorded, Script, raw};
use serde_json::{Value, json};
use std::time::Duration;

/// The paid route.
pub const CHAT: &str = "/v1/chat/completions";
/// The free one, same tier.
pub const FREE: &str = "/free/chat/completions";
/// What any single step of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Bridge {
    pub chain: Chain,
    pub backend: Backend,
    pub gate: Gate,
}

/// Limits that no test meets by accident.
pub const ROOMY: &str =
    "connections_per_ip = 20000, connections = 40000, unpaid_per_ip_per_second = 900000, unpaid_per_second = 900000";

/// [`FREE`] beside the default routes.
pub fn free_route(options: GateOptions) -> GateOptions {
    let free = format!("[[route]]\npath = \"{FREE}\"\nsurface = \"chat\"\ntier = \"standard\"\naccess = \"free\"\n\n");
    let models = "[[route]]\npath = \"/v1/models\"";
    options.rule_edit("routes.toml", models, &format!("{free}{models}"))
}

/// `limits = { … }` in `[listen]`.
pub fn limits(options: GateOptions, limits: &str) -> GateOptions {
    options.conf_edit("grace_seconds = 5", &format!("grace_seconds = 5\nlimits = {{ {limits} }}"))
}

impl Bridge {
    pub async fn start() -> Self {
        Self::with(|options| limits(options, ROOMY)).await
    }

    /// A gate whose files `change` has edited; it has no limits but the default ones.
    pub async fn with(change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let chain = Chain::start().await;
        let backend = Backend::start(Script::default()).await;
        let gate = Gate::start(change(free_route(GateOptions::new(&chain.url(), &backend.url())))).await;
        Self { chain, backend, gate }
    }

    pub async fn connect(&self) -> Raw {
        Raw::connect(self.gate.listen).await
    }

    pub async fn send(&self, bytes: &[u8]) -> RawReply {
        raw::exchange(self.gate.listen, bytes).await
    }

    /// A request on the free route.
    pub async fn free(&self, body: &Value) -> RawReply {
        self.send(&raw::post(FREE, &[], body.to_string().as_bytes())).await
    }

    /// What the backend heard, as soon as it heard `count` requests.
    pub async fn heard(&self, count: usize) -> Vec<Recorded> {
        let in_time = super::eventually(PATIENCE, || async { self.backend.requests().len() >= count }).await;
        assert!(in_time, "the backend heard {} requests, not {count}", self.backend.requests().len());
        self.backend.requests()
    }

    /// Waits until nothing is in progress in the gate.
    pub async fn quiet(&self) {
        let idle =
            super::eventually(PATIENCE, || async { self.gate.metric("pontage_inflight", &[]).await == 0.0 }).await;
        assert!(idle, "the gate is still busy");
    }

    /// Memory of the gate's process, from `/proc`.
    pub fn resident_kib(&self) -> u64 {
        self.gate.memory() / 1024
    }

    /// Signs for `body` on the paid route; returns the whole paying request.
    pub async fn paying(&self, payer: &Payer, body: &Value) -> Vec<u8> {
        let text = body.to_string();
        let unpaid = self.send(&raw::post(CHAT, &[], text.as_bytes())).await;
        assert_eq!(unpaid.status, 402, "{}", unpaid.text());
        let proof = payer.pay(&unpaid).await;
        raw::post(CHAT, &[("authorization", &proof)], text.as_bytes())
    }
}

/// A chat request that every test's tier sells.
pub fn ask(prompt: &str) -> Value {
    json!({"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": prompt}]})
}

/// The same, streamed.
pub fn streamed(prompt: &str) -> Value {
    let mut body = ask(prompt);
    body["stream"] = json!(true);
    body
}
