//! The bounded costs, as plain loops: `benches/challenge.rs` times one of them, `benches/instructions.rs` counts the instructions
//! of all.
#![allow(dead_code)]

pub mod books;

use async_trait::async_trait;
use bytes::Bytes;
use pontage::chain::fees::Tried;
use pontage::chain::{Address, B256, Chain, Head, Inclusion, Sent, Unreachable};
use pontage::clock::UnixSeconds;
use pontage::edge::reply::Answer;
use pontage::flow::Stop;
use pontage::flow::offered::quote_under;
use pontage::ids::{PoolName, UpstreamModel};
use pontage::limits::Spelling;
use pontage::money::Usd;
use pontage::network::{Family, Network};
use pontage::openai::cover::Cover;
use pontage::openai::meter::Meter;
use pontage::openai::request::{Ask, Rewrite};
use pontage::openai::usage::Bounds;
use pontage::rail::mpp::charge::{Charge, Settings};
use pontage::rail::ring::KeyRing;
use pontage::rail::x402;
use pontage::rail::x402::facilitator::{Call, Facilitator, Settlement, Support, Verdict};
use pontage::rail::x402::wire::Scheme;
use pontage::rail::{Ask as PaymentAsk, Rail};
use pontage::refusal::{Moved, Refusal};
use pontage::rules::plan::{Balance, Discovery, PoolRules, Queue, ServerRules, Timeouts};
use pontage::rules::{self, Plan};
use pontage::secret::Secret;
use pontage::tokens::Vocabulary;
use pontage::upstream::{Affinity, Picked, Pool, Pools};
use pontage::usage::Shape;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use tempo_alloy::primitives::TempoTransaction;

/// A chain that nothing asks.
struct Nowhere;

#[async_trait]
impl Chain for Nowhere {
    async fn head(&self) -> Result<Head, Unreachable> {
        Err(Unreachable { why: "no chain here" })
    }
    async fn time_of(&self, _: u64) -> Result<UnixSeconds, Unreachable> {
        Err(Unreachable { why: "no chain here" })
    }
    async fn inclusion(&self, _: B256) -> Result<Inclusion, Unreachable> {
        Err(Unreachable { why: "no chain here" })
    }
    async fn rehearse(&self, _: Address, _: &TempoTransaction) -> Result<Tried, Unreachable> {
        Err(Unreachable { why: "no chain here" })
    }
    async fn send(&self, _: &[u8]) -> Sent {
        Sent::Lost { why: "no chain here" }
    }
}

/// Supports everything, from memory, as a warm facilitator does.
struct Warm;

#[async_trait]
impl Facilitator for Warm {
    fn support(&self, _: &x402::facilitator::Kind) -> Result<Support, String> {
        Ok(Support { fee_payer: Some("AKnL4NNf3DGWZJS6cPknBuEGnVsV4A4m5tgebLHaRSZ9".to_owned()), ..Support::default() })
    }
    async fn verify(&self, _: &Call<'_>) -> Verdict {
        Verdict::Unknown { why: "nobody asks".to_owned() }
    }
    async fn settle(&self, _: &Call<'_>) -> Settlement {
        Settlement::Unknown { why: "nobody asks".to_owned() }
    }
    async fn watch(&self) {}
    async fn probe(&self) {}
}

/// Networks of the x402 offers, and how many they are.
pub const X402: [&str; 4] = ["eip155:8453", "eip155:137", "eip155:42161", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"];

fn x402_rail(id: &str, ring: &Arc<KeyRing>) -> Arc<dyn Rail> {
    let network = Network::parse(id).unwrap();
    let pay_to = match network.family {
        Family::Solana => "1nc1nerator11111111111111111111111111111111",
        Family::Evm { .. } => "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    };
    let settings = x402::Settings {
        id: format!("{id}/exact").as_str().into(),
        scheme: Scheme::Exact,
        asset: pontage::network::asset(&network, "usdc").unwrap(),
        network,
        pay_to: pay_to.to_owned(),
        beside: Vec::new(),
        permit2: false,
        first: false,
        ceiling: Usd::ONE,
        exposure: Usd::ONE,
        evidence_above: Usd::ONE,
        public_url: "https://bench.example".to_owned(),
    };
    Arc::new(x402::X402::new(settings, Arc::clone(ring), Arc::new(Warm), None))
}

/// Everything a 402 is made of, from the shipped configuration.
pub struct Challenge {
    plan: Plan,
    rails: Vec<Arc<dyn Rail>>,
    body: Bytes,
    runtime: tokio::runtime::Runtime,
}

impl Challenge {
    /// The shipped rules, and a request of 1.2 KB.
    pub fn prepare() -> Self {
        Self::with(&[])
    }

    /// The same with x402 offers on these networks.
    pub fn with(networks: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let conf = pontage::conf::Conf::load(&root.join("conf/pontage.toml")).unwrap_or_else(|m| panic!("{m:?}"));
        let plan = rules::load(&root.join("lua-free-rules/default"), &pontage::assemble::catalogue(conf.offered()));
        let settings = Settings {
            id: "tempo/charge".into(),
            realm: "bench.example".to_owned(),
            chain_id: 42431,
            currency: "0x20c0000000000000000000000000000000000000".parse().unwrap(),
            recipient: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8".parse().unwrap(),
            accept_push: false,
            pace: Default::default(),
        };
        let ring = Arc::new(KeyRing::new(&[Secret::new("k".repeat(32))]).unwrap());
        let x402 = networks.iter().map(|id| x402_rail(id, &ring));
        let charge: Arc<dyn Rail> = Arc::new(Charge::new(settings, Arc::clone(&ring), Arc::new(Nowhere)).unwrap());
        let text = "The bridge was built in the year of the flood. ".repeat(23);
        let body = format!(r#"{{"model":"openai/gpt-oss-120b","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        Self {
            plan: plan.unwrap_or_else(|m| panic!("{m:?}")),
            rails: std::iter::once(charge).chain(x402).collect(),
            body: body.into(),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        }
    }

    /// Bytes of a request → the answer 402 with its offer: digest, strict reading, policy, price, MAC, headers, body.
    pub fn run(&self) -> Answer {
        let digest: [u8; 32] = Sha256::digest(black_box(&self.body)).into();
        let quoted =
            self.runtime.block_on(quote_under(&self.plan, "/v1/chat/completions", self.body.clone(), None)).unwrap();
        let offer = |rail: &Arc<dyn Rail>| {
            let terms = quoted.terms(rail.id(), rail.decimals()).unwrap();
            let description = "openai/gpt-oss-120b on /v1/chat/completions";
            let ask = PaymentAsk { terms: &terms, digest, description, lasts: 900 };
            rail.offer(&ask, UnixSeconds(1_795_221_719)).unwrap()
        };
        let offers = self.rails.iter().map(offer).collect();
        let stop = Stop { refusal: Refusal::PaymentRequired, moved: Moved::No, claimed: false };
        Answer::challenge(&stop, offers, &Default::default())
    }
}

/// A request of 64 KB, read, checked and rewritten.
pub struct Reading {
    plan: Plan,
    body: Bytes,
    model: UpstreamModel,
}

impl Reading {
    /// Turns of prose with escapes.
    pub fn prepare() -> Self {
        let Challenge { plan, .. } = Challenge::prepare();
        let turn = "The bridge was built in the year of the flood, and whoever crossed it paid. ".repeat(8);
        let turns: Vec<String> =
            (0..104).map(|_| format!(r#"{{"role":"user","content":"{turn}\n\"quoted\" caf\u00e9"}}"#)).collect();
        let body = format!(r#"{{"model":"openai/gpt-oss-120b","stream":true,"messages":[{}]}}"#, turns.join(","));
        Self { plan, body: body.into(), model: "gpt-oss-120b".into() }
    }

    /// One pass.
    pub fn run(&self) -> Bytes {
        let Some(route) = self.plan.route("/v1/chat/completions") else { panic!("the shipped route is gone") };
        let ask = Ask::read(route.surface, black_box(self.body.clone()), &route.tier.limits).unwrap();
        ask.rewrite(&Rewrite {
            model: &self.model,
            max_output: 512,
            spelling: Spelling::MaxTokens,
            stream: true,
            continuous_usage: true,
            withheld: &[],
        })
    }
}

/// What there is to do for each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its text is counted.
    Counted,
    /// And its tokens, by a vocabulary.
    Covered,
    /// And the backend says a running figure with it.
    Running,
    /// Of a backend that shows all the output it bills, so that the figure is read now and then.
    Shown,
}

/// Events of a stream, metered.
pub struct Metering {
    reads: Vec<Bytes>,
    cover: Option<Cover>,
    kind: Kind,
}

impl Metering {
    /// Events in one run.
    pub const EVENTS: u64 = 1000;

    /// Content chunks as vLLM sends them, in reads of 4 KB.
    pub fn prepare(kind: Kind) -> Self {
        let event = "data: {\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1795221719,\"model\":\"gpt-oss-120b\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" bridge\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
        let says = |at| match kind {
            Kind::Counted | Kind::Covered => event.to_owned(),
            Kind::Running | Kind::Shown => {
                let figure = format!(r#"{{"prompt_tokens":9,"completion_tokens":{at},"total_tokens":{}}}"#, at + 9);
                event.replace(r#""usage":null"#, &format!(r#""usage":{figure}"#))
            }
        };
        let stream = Bytes::from((1..=Self::EVENTS).map(says).collect::<String>() + "data: [DONE]\n\n");
        let reads = (0..stream.len()).step_by(4096).map(|at| stream.slice(at..stream.len().min(at + 4096))).collect();
        let cover = Vocabulary::O200k.counter().filter(|_| kind != Kind::Counted).map(Cover::Tokens);
        Self { reads, cover, kind }
    }

    /// The whole stream.
    pub fn run(&self) -> u64 {
        let mut out = Vec::with_capacity(64);
        let mut meter =
            Meter::new(false, Bounds { choices: 1, prompt: None, completion: Some(1 << 20), shape: Shape::PLAIN });
        if let Some(cover) = self.cover {
            meter = meter.with_cover(cover);
        }
        if self.kind == Kind::Shown {
            meter = meter.all_is_shown();
        }
        let mut covered = 0;
        for read in &self.reads {
            meter.feed_covered(black_box(read.clone()), covered, &mut out).unwrap();
            if let Some(needed) = meter.waiting() {
                covered = needed + 64;
                meter.release(covered, &mut out);
            }
            out.clear();
        }
        meter.finish();
        meter.verdict().delivered_chunks
    }
}

/// A request finds its server among many that all have some work.
pub struct Selection {
    pool: Arc<Pool>,
    n: u64,
    _held: Vec<Picked>,
}

impl Selection {
    pub fn prepare(servers: u16, balance: Balance) -> Self {
        let server = |port| ServerRules {
            tls: false,
            host: "127.0.0.1".into(),
            port,
            prefix: String::new(),
            weight: 1 + u32::from(port % 3),
            group: 0,
            name: None,
            max_concurrent: Some(64),
        };
        let name = PoolName::from("p");
        let rules = PoolRules {
            name: name.clone(),
            profile: "vllm".into(),
            surfaces: Vec::new(),
            servers: (1..=servers).map(server).collect(),
            discovery: Discovery::Listed,
            balance,
            queue: Queue::default(),
            fallback: None,
            api_key: None,
            health: None,
            timeouts: Timeouts::default(),
        };
        let pools = Pools::build(&BTreeMap::from([(name.clone(), Arc::new(rules))]), None).unwrap();
        let pool = Arc::clone(pools.get(&name).unwrap());
        let held = (0..u64::from(servers) * 3).filter_map(|n| pool.pick(Affinity(Some(n)), &[])).collect();
        Self { pool, n: 0, _held: held }
    }

    pub fn run(&mut self) {
        self.n = self.n.wrapping_add(0x9e37_79b9_7f4a_7c15);
        drop(black_box(self.pool.pick(Affinity(Some(self.n)), &[])));
    }
}
