//! A gate that sells by the token, wired for hostile payers: chain with the reserve, a breakable road to it, backend, gate, and
//! the audit at the end: what the chain paid out, what the receipts say and what the books say must be one sum for every channel.

use std::collections::BTreeMap;
use std::sync::Mutex;

use alloy::primitives::{Address, B256};
use mpp::PaymentChallenge;
use serde_json::{Value, json};

use super::ledger::{self, Books};
use super::reserve::{Event, RESERVE};
use super::wallet::{Channel, Wallet};
use super::{Backend, Chain, DEV, Gate, GateOptions, RawReply, Reserve, RpcProxy, Script, payer, raw};

/// The paid path.
pub const CHAT: &str = "/v1/chat/completions";
/// Another one that sells the same in the same way.
pub const OTHER: &str = "/other/v1/chat/completions";
/// Atoms a prompt token costs, and an output token.
pub const INPUT: u128 = 10;
pub const OUTPUT: u128 = 20;
/// One address sends more here than an operator would bear; `flood.rs` is about that.
const UNLIMITED: &str = "threads = 2\nlimits = { unpaid_per_ip_per_second = 100000, unpaid_per_second = 100000, connections_per_ip = 1000 }";
/// Questions about channels: everything that a credential could make the gate ask the chain.
const ASKED: [&str; 8] = [
    "eth_call",
    "eth_estimateGas",
    "eth_sendRawTransaction",
    "eth_sendRawTransactionSync",
    "eth_getTransactionReceipt",
    "eth_getTransactionByHash",
    "eth_fillTransaction",
    "eth_gasPrice",
];

/// Terms of the channels: 0.10 USD are advised.
pub const TERMS: &str = "[rail.tempo.session]\ndeposit = \"0.1\"\nmin_deposit = \"0.0001\"\nmax_channels_per_payer = 4\npause_seconds = 2\n";

/// A stream that stands still waits longer than a wallet that starts slowly may take.
pub fn patient(mut options: GateOptions) -> GateOptions {
    options.conf_extra = options.conf_extra.replace("pause_seconds = 2", "pause_seconds = 15");
    options
}

pub struct SessionBed {
    pub chain: Chain,
    pub reserve: Reserve,
    /// Between the gate and the reserve. Payers and the audit go round it.
    pub rpc: RpcProxy,
    pub backend: Backend,
    pub gate: Gate,
    /// Receipts that clients hold, by their id.
    seen: Mutex<BTreeMap<String, Value>>,
}

/// What no client can see of a channel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hidden {
    /// Receipts that no client could read: it was gone.
    pub receipts: u64,
    /// Atoms in them, at most.
    pub atoms: u128,
}

impl SessionBed {
    pub async fn open() -> Self {
        Self::with(|options| options).await
    }

    pub async fn with(change: impl FnOnce(GateOptions) -> GateOptions) -> Self {
        let chain = Chain::start().await;
        let reserve = Reserve::start(&chain).await;
        let rpc = RpcProxy::start(&reserve.url()).await;
        let backend = Backend::start(Script::default()).await;
        let options = GateOptions::new(&rpc.url(), &backend.url())
            .conf_edit("threads = 2", UNLIMITED)
            .conf_extra(TERMS)
            .rule_edit(
                "models.toml",
                "input = \"0.15\", cached_input = \"0.075\", output = \"0.60\"",
                "input = \"10\", cached_input = \"5\", output = \"20\"",
            )
            .rule_edit("routes.toml", "accept = [\"tempo/charge\"]", "accept = [\"tempo/session\"]")
            .rule_edit(
                "routes.toml",
                "[[route]]\npath = \"/v1/models\"",
                "[[route]]\npath = \"/other/v1/chat/completions\"\nsurface = \"chat\"\ntier = \"standard\"\nstream = \"allow\"\naccess = \"paid\"\naccept = [\"tempo/session\"]\n\n[[route]]\npath = \"/v1/models\"",
            );
        let gate = Gate::start(change(options)).await;
        Self { chain, reserve, rpc, backend, gate, seen: Mutex::default() }
    }

    /// A payer with 10 USD that nobody else uses.
    pub async fn wallet(&self) -> Wallet {
        Wallet::fresh(&self.chain, 10_000_000).await
    }

    /// One request by hand; its receipt is kept.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> RawReply {
        self.send(&raw::post(path, headers, body)).await
    }

    /// Any bytes as one request; its receipt is kept.
    pub async fn send(&self, bytes: &[u8]) -> RawReply {
        let reply = raw::exchange(self.gate.listen, bytes).await;
        self.keep(&reply);
        reply
    }

    /// Keeps the receipt of an answer for content.
    pub fn keep(&self, reply: &RawReply) {
        let header = reply.header("payment-receipt").map(payer::unpack);
        for receipt in header.into_iter().chain(final_receipt(&reply.text())) {
            if let Some(id) = receipt["receiptId"].as_str() {
                self.seen.lock().unwrap().insert(id.to_owned(), receipt.clone());
            }
        }
    }

    /// Shows a credential and asks for content. A channel takes so many vouchers a second: who is told to wait waits, as
    /// clients do.
    pub async fn buy(&self, credential: &str, body: &Value) -> RawReply {
        self.patiently(credential, body.to_string().as_bytes()).await
    }

    /// Shows a credential and asks for nothing; waits as [`Self::buy`] does.
    pub async fn manage(&self, credential: &str) -> RawReply {
        self.patiently(credential, b"").await
    }

    async fn patiently(&self, credential: &str, body: &[u8]) -> RawReply {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let reply = self.post(CHAT, &[("authorization", credential)], body).await;
            assert!(std::time::Instant::now() < end, "told to wait for ever: {}", reply.text());
            let wait: Option<u64> = reply.header("retry-after").and_then(|v| v.parse().ok());
            let Some(wait) = wait.filter(|_| reply.status == 429) else { return reply };
            tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
        }
    }

    /// What a 402 offers for this body, and how much it must hold to start. A pool that is just coming back is waited for.
    pub async fn offer(&self, path: &str, body: &Value) -> (PaymentChallenge, u128) {
        offered(&self.challenge(path, &[], body).await)
    }

    async fn challenge(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> RawReply {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let reply = self.post(path, headers, body.to_string().as_bytes()).await;
            if reply.status != 503 || std::time::Instant::now() > end {
                assert_eq!(reply.status, 402, "{}", reply.text());
                return reply;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// A channel of a fresh payer, open, with this much locked and signed for; and the offer it was opened by.
    pub async fn channel(&self, deposit: u128, signed: u128) -> (Channel, PaymentChallenge) {
        let wallet = self.wallet().await;
        self.channel_of(&wallet, deposit, signed).await
    }

    pub async fn channel_of(&self, wallet: &Wallet, deposit: u128, signed: u128) -> (Channel, PaymentChallenge) {
        let (offer, _) = self.offer(CHAT, &chat()).await;
        let channel = wallet.open(&offer, |open| open.deposit = deposit);
        let reply = self.manage(&channel.open_credential(&offer, signed)).await;
        assert_eq!(reply.status, 204, "{}", reply.text());
        (channel, offer)
    }

    /// A fresh offer for management and content.
    pub async fn fresh(&self) -> PaymentChallenge {
        self.offer(CHAT, &chat()).await.0
    }

    /// Questions to the chain about channels, ours or a credential's.
    pub fn asked(&self) -> usize {
        self.rpc.calls().iter().filter(|method| ASKED.contains(&method.as_str())).count()
    }

    /// Requests that reached the backend.
    pub fn served(&self) -> usize {
        self.backend.requests().len()
    }

    /// What receipts of one channel add up to.
    pub fn charged(&self, id: &B256) -> u128 {
        let id = format!("{id:#x}");
        let seen = self.seen.lock().unwrap();
        seen.values().filter(|r| r["channelId"] == id.as_str()).map(|r| atoms(&r["charged"])).sum()
    }

    /// What the gate says of a channel in a 402.
    pub async fn snapshot(&self, channel: &Channel) -> Value {
        self.snapshot_for(channel, &chat()).await.0
    }

    /// The same where this body is asked for, and what that must hold to start.
    async fn snapshot_for(&self, channel: &Channel, body: &Value) -> (Value, u128) {
        let id = format!("{:#x}", channel.id);
        let (offer, start) = offered(&self.challenge(CHAT, &[("payment-session", &id)], body).await);
        (payer::terms(&offer)["methodDetails"]["sessionSnapshot"].clone(), start)
    }

    /// As [`Self::audit`], with nothing hidden.
    pub async fn close(self, channels: &[&Channel]) -> Books {
        self.audit(channels, Hidden::default()).await
    }

    /// Closes the channels that are open with a voucher over exactly what their receipts say, and nothing more unless `hidden`
    /// allows it; stops the gate and compares. Fails unless
    /// - every channel on chain is over, and paid out what its receipts say;
    /// - the reserve's transfers to the payee are these sums;
    /// - `pontage audit` finds the books sound, with the same sum and the same number of receipts;
    /// - nothing is left in the reserve for channels that are over.
    pub async fn audit(mut self, channels: &[&Channel], hidden: Hidden) -> Books {
        let mut paid_out = 0;
        let mut unseen = 0;
        for channel in channels {
            let known = self.charged(&channel.id);
            let mut events = self.reserve.events(&channel.id).await;
            if !events.iter().any(|e| matches!(e, Event::Closed { .. }))
                && self.reserve.state(&channel.id).await.deposit > 0
            {
                let offer = self.fresh().await;
                // Channels of a test are seldom idle to the millisecond.
                super::eventually(std::time::Duration::from_secs(30), || async {
                    let total = known + hidden.atoms.min(channel.deposit - known);
                    let reply = self.manage(&channel.close_credential(&offer, total)).await;
                    assert!([204, 409, 503].contains(&reply.status), "{known} and {}: {}", hidden.atoms, reply.text());
                    reply.status == 204
                })
                .await;
                events = self.reserve.events(&channel.id).await;
            }
            let closed = events.iter().find_map(|e| match e {
                Event::Closed { settled, .. } => Some(*settled),
                _ => None,
            });
            let settled = closed.unwrap_or_else(|| panic!("{} is not closed: {events:?}", channel.id));
            assert!(settled >= known && settled <= known + hidden.atoms, "{settled} paid out, receipts over {known}");
            unseen += settled - known;
            paid_out += settled;
        }
        self.gate.assert_no_secrets("/metrics", &self.gate.metrics().await);
        if self.gate.running() {
            self.gate.stop().await;
        }
        self.gate.assert_no_secrets("the log", &self.gate.log());
        let books = ledger::books(&self.gate);
        let from_reserve = self.chain.payments_to(DEV[1].address).await;
        let from_reserve: u128 =
            from_reserve.iter().filter(|t| t.from.eq_ignore_ascii_case(RESERVE)).map(|t| t.amount).sum();
        assert_eq!(from_reserve, paid_out, "what the reserve paid out, and what channels were closed with");
        assert_eq!(books.charged, paid_out, "the books, and what was paid out: {books:?}");
        let receipts = self.seen.lock().unwrap().values().filter(|r| r["channelId"].is_string()).count() as u64;
        assert!(
            books.receipts >= receipts && books.receipts <= receipts + hidden.receipts,
            "receipts in the books, and with clients ({receipts}): {books:?}"
        );
        assert!(unseen <= hidden.atoms * channels.len() as u128);
        assert_eq!(self.reserve.locked().await, 0, "money stays in the reserve");
        books
    }
}

/// The session offer of a 402 or a 410, and what it asks for.
pub fn offered(reply: &RawReply) -> (PaymentChallenge, u128) {
    let offer = payer::offer(&reply.headers("www-authenticate"), "tempo", "session");
    let amount = atoms(&payer::terms(&offer)["amount"]);
    (offer, amount)
}

/// A decimal text as atoms.
pub fn atoms(value: &Value) -> u128 {
    value.as_str().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("an amount, not {value}"))
}

/// The `payment-receipt` event of a stream.
pub fn final_receipt(text: &str) -> Option<Value> {
    let at = text.find("event: payment-receipt\ndata: ")?;
    let line = text[at..].lines().nth(1)?;
    serde_json::from_str(line.strip_prefix("data: ")?).ok()
}

/// A small chat with a small answer.
pub fn chat() -> Value {
    json!({"model": "openai/gpt-oss-120b", "max_tokens": 10, "messages": [{"role": "user", "content": "one two three"}]})
}

/// The same, streamed.
pub fn streamed() -> Value {
    let mut body = chat();
    body["stream"] = json!(true);
    body
}

/// An account that is nobody's.
pub fn nobody() -> Address {
    Address::repeat_byte(0x77)
}

/// The error's code.
pub fn code(reply: &RawReply) -> String {
    reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// A refusal that invites to pay, as it must: with this code and a fresh session offer.
pub fn assert_challenged(reply: &RawReply, want: &str, why: &str) {
    assert_eq!((reply.status, code(reply).as_str()), (402, want), "{why}: {}", reply.text());
    offered(reply);
}

/// Shows a credential to be managed and to buy; both must be refused with one of these codes, nothing served, nothing asked.
pub async fn refused_both_ways(bed: &SessionBed, credential: &str, status: u16, codes: &[&str], why: &str) {
    let (served, asked) = (bed.served(), bed.rpc.broadcasts());
    for reply in
        [bed.manage(credential).await, bed.buy(credential, &chat()).await, bed.buy(credential, &streamed()).await]
    {
        assert_eq!(reply.status, status, "{why}: {}", reply.text());
        assert!(codes.contains(&code(&reply).as_str()), "{why}: {}", reply.text());
        offered(&reply);
    }
    assert_eq!((bed.served(), bed.rpc.broadcasts()), (served, asked), "{why}");
}
