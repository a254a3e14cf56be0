//! Everything a test of money needs, wired: chain, a breakable road to it, backend, gate, and the ledger that is closed
//! at the end.

use serde_json::{Value, json};

use super::ledger::Books;
use super::{Backend, Chain, DEV, Gate, GateOptions, Ledger, Payer, RawReply, RpcProxy, Script, Unseen, payer, raw};

/// What a call costs under the default rules, in atoms.
pub const PRICE: u128 = 20_000;
/// The paid path.
pub const CHAT: &str = "/v1/chat/completions";
/// What the gate asks the chain by itself, again and again: not for any request.
const WATCH: [&str; 2] = ["eth_chainId", "eth_getBlockByNumber"];

pub struct Bed {
    pub chain: Chain,
    /// Between the gate and the chain. Payers and the audit go round it.
    pub rpc: RpcProxy,
    pub backend: Backend,
    pub gate: Gate,
    pub ledger: Ledger,
}

impl Bed {
    pub async fn open() -> Self {
        Self::with(|options| options).await
    }

    pub async fn with(change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let chain = Chain::start().await;
        let rpc = RpcProxy::start(&chain.url()).await;
        let backend = Backend::start(Script::default()).await;
        let gate = Gate::start(change(GateOptions::new(&rpc.url(), &backend.url()))).await;
        let ledger = Ledger::open(&chain, &backend, DEV[1].address).await;
        Self { chain, rpc, backend, gate, ledger }
    }

    /// A payer with 10 USD that nobody else uses.
    pub async fn payer(&self) -> Payer {
        Payer::fresh(&self.chain, 10_000_000).await
    }

    /// One request by hand. An answer that delivers goes into the ledger.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> RawReply {
        let reply = raw::exchange(self.gate.listen, &raw::post(path, headers, body)).await;
        self.ledger.read(&reply);
        reply
    }

    /// Asks without paying, and must be asked to pay.
    pub async fn ask(&self, path: &str, body: &Value) -> RawReply {
        let reply = self.post(path, &[], body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 402, "{}", reply.text());
        reply
    }

    /// A signed payment for this body; nothing is sent yet.
    pub async fn proof(&self, payer: &Payer, path: &str, body: &Value) -> String {
        let offer = payer::offer(&self.ask(path, body).await.headers("www-authenticate"), "tempo", "charge");
        payer.sign(&offer, |_| ()).await
    }

    /// Shows a proof.
    pub async fn show(&self, proof: &str, path: &str, body: &Value) -> RawReply {
        self.post(path, &[("authorization", proof)], body.to_string().as_bytes()).await
    }

    /// Calls to the chain that some request caused.
    pub fn chain_calls(&self) -> Vec<String> {
        self.rpc.calls().into_iter().filter(|method| !WATCH.contains(&method.as_str())).collect()
    }

    /// Requests that reached the backend.
    pub fn served(&self) -> usize {
        self.backend.requests().len()
    }

    pub async fn close(mut self, unseen: Unseen) -> Books {
        self.ledger.audit(&self.chain, &self.backend, &mut self.gate, unseen).await
    }
}

/// A small chat.
pub fn chat() -> Value {
    super::client::chat("openai/gpt-oss-120b", "one two three")
}

/// The same, streamed.
pub fn streamed() -> Value {
    let mut body = chat();
    body["stream"] = json!(true);
    body
}

/// A challenge, or a failure that must not be followed by a second payment: the parts every such answer must have.
pub fn assert_final(reply: &RawReply, statuses: &[u16]) {
    let text = reply.text();
    assert!(statuses.contains(&reply.status), "{} instead of {statuses:?}: {text}", reply.status);
    assert!(reply.header("www-authenticate").is_none(), "an invitation to pay again: {text}");
    assert_eq!(reply.header("x-should-retry"), Some("false"), "an invitation to pay again by a retry: {text}");
    assert!(reply.json()["payment"]["moved"].is_string(), "what became of the money is not said: {text}");
    assert!(reply.json()["error"]["message"].is_string(), "{text}");
}

/// A 402 with a fresh offer and this code.
pub fn assert_challenge(reply: &RawReply, code: &str) {
    let text = reply.text();
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (402, Some(code)), "{text}");
    let offer = payer::offer(&reply.headers("www-authenticate"), "tempo", "charge");
    assert_eq!(reply.json()["challengeId"], offer.id, "{text}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{text}");
}

/// Adds to the default rules: a second model and a second path at the same price.
pub fn two_of_each(options: GateOptions) -> GateOptions {
    options
        .rule_edit(
            "models.toml",
            "[model.\"openai/gpt-oss-120b\"]",
            "[model.\"openai/other\"]\nupstream = \"other\"\npool = \"gpt-oss\"\nprice = { input = \"0.15\", output = \"0.60\" }\n\n[model.\"openai/gpt-oss-120b\"]",
        )
        .rule_edit(
            "tiers.toml",
            "models = [\"openai/gpt-oss-120b\"]",
            "models = [\"openai/gpt-oss-120b\", \"openai/other\"]",
        )
        .rule_edit("routes.toml", "[[route]]\npath = \"/v1/models\"", "[[route]]\npath = \"/other/v1/chat/completions\"\nsurface = \"chat\"\ntier = \"standard\"\nstream = \"allow\"\naccess = \"paid\"\naccept = [\"tempo/charge\"]\nreceipt = { header = true, body = \"pontage\" }\n\n[[route]]\npath = \"/v1/models\"")
}

/// Prices by tokens that are large enough to see: 1,000 USD for a million prompt tokens, 2,000 for output, all of it paid
/// in advance.
pub fn priced_by_ceiling(options: GateOptions) -> GateOptions {
    options
        .rule_edit(
            "models.toml",
            "input = \"0.15\", cached_input = \"0.075\", output = \"0.60\"",
            "input = \"1000\", cached_input = \"500\", output = \"2000\"",
        )
        .rule_edit("tiers.toml", "charge = { flat = \"0.02\" }", "charge = { ceiling = true }")
}
