//! The road of a payment with a scripted rail and a store that fails when told: every way through `pay`, `Hold` and
//! `Delivery` that a chain and a disk can force, without either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod again;
mod asking;
mod behind;
mod beside;
mod dropped;
mod faults;
mod fleet;
mod leaving;
mod offers;
mod paths;
mod promise;
mod promise_faults;
mod promise_trust;
mod sessions;
mod strangers;
mod whole;
mod windows;

use self::sessions::Purse;
use super::channels::Channels;
use super::hold::Hold;
use super::loss::Losses;
use super::offered::quote_under;
use super::pay::{self, Money, Paid, Visit};
use super::price::Quoted;
use super::{Stop, Till, Toll};
use crate::catalogue::{Catalogue, RailAbility};
use crate::channel::{Channel, ChannelId};
use crate::claim::{Claim, ClaimKey, Standing};
use crate::clock::UnixSeconds;
use crate::ids::RailId;
use crate::journal::Receipt;
use crate::metrics::Metrics;
use crate::money::{Atoms, Usd};
use crate::rail::session::Session;
use crate::rail::{Ask, Collected, Found, Offer, Proof, Rail, Recognised, Shown, Way, When};
use crate::refusal::Refusal;
use crate::rules::watch::Rules;
use crate::store::embedded::Embedded;
use crate::store::{Store, StoreError, Swap, Whose, Write};
use crate::upstream::Pools;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, watch};

const PATH: &str = "/v1/chat/completions";
const OTHER_PATH: &str = "/v1/elsewhere";
const POOLS: &str = "[pool.p]\nprofile = \"vllm\"\nservers = [\"http://127.0.0.1:1\"]\n";
const MODELS: &str = "[model.\"m\"]\nupstream = \"m-up\"\npool = \"p\"\nprice = { input = \"1\", output = \"10\" }\n\n[model.\"gift\"]\n\
     upstream = \"g-up\"\npool = \"p\"\nprice = { input = \"0\", output = \"0\" }\n";
const TIERS: &str =
    "[tier.t]\nmodels = [\"m\", \"gift\"]\nmax_output_tokens = 100\ncharge = { ceiling = true }\nmax_n = 4\n";
const ROUTES: &str = r#"
[[route]]
path = "/v1/chat/completions"
surface = "chat"
tier = "t"
accept = ["tempo/charge", "spare/charge"]
receipt = { header = true, body = "pontage" }

[[route]]
path = "/v1/elsewhere"
surface = "chat"
tier = "t"
accept = ["tempo/charge"]
"#;

/// A rail that says what it was told to.
struct Fake {
    id: RailId,
    up: AtomicBool,
    /// `collect` and `take` panic.
    breaks: AtomicBool,
    /// So does `complete`.
    fails_tries: AtomicBool,
    /// What `collect` finds, in order; then always `Paid`.
    collected: Mutex<VecDeque<Collected>>,
    /// It takes its money after the reply: of everything by usage, else of what does not stream.
    after: Mutex<Option<When>>,
    /// What `take` finds, in order; then always `Settled`.
    taken: Mutex<VecDeque<Collected>>,
    /// What was to be taken, as `take` was told.
    takes: Mutex<Vec<Atoms>>,
    /// What `look` finds, in order; then always `Unknown`.
    looked: Mutex<VecDeque<Collected>>,
    collects: AtomicUsize,
    /// How many were tried.
    tries: AtomicUsize,
    /// What the next that is tried is told, once `open` is true; then all are good.
    untried: Mutex<VecDeque<Refusal>>,
    /// `collect` and `take` wait until this is true.
    open: watch::Sender<bool>,
    offered: Mutex<HashMap<String, Recognised>>,
}

impl Fake {
    fn new(id: &str) -> Arc<Self> {
        Arc::new(Self {
            id: id.into(),
            up: AtomicBool::new(true),
            breaks: AtomicBool::new(false),
            fails_tries: AtomicBool::new(false),
            collected: Mutex::default(),
            after: Mutex::default(),
            taken: Mutex::default(),
            takes: Mutex::default(),
            looked: Mutex::default(),
            collects: AtomicUsize::new(0),
            tries: AtomicUsize::new(0),
            untried: Mutex::default(),
            open: watch::channel(true).0,
            offered: Mutex::default(),
        })
    }

    fn finds(&self, first: Collected, later: impl IntoIterator<Item = Collected>) {
        self.collected.lock().unwrap().push_back(first);
        self.looked.lock().unwrap().extend(later);
    }

    fn collects(&self) -> usize {
        self.collects.load(Ordering::SeqCst)
    }
}

impl Way for Fake {
    fn id(&self) -> &RailId {
        &self.id
    }
    fn range(&self) -> (&'static str, &'static str) {
        ("tempo", "charge")
    }
    fn currency(&self) -> &str {
        "0xtoken"
    }
    fn decimals(&self) -> u8 {
        6
    }
    fn facts(&self) -> (String, String) {
        (self.id.to_string(), "payee".into())
    }
    fn standing(&self) -> Result<(), String> {
        if self.up.load(Ordering::SeqCst) { Ok(()) } else { Err("the chain is silent".into()) }
    }
}

#[async_trait]
impl Rail for Fake {
    fn offer(&self, ask: &Ask<'_>, now: UnixSeconds) -> Result<Offer, Refusal> {
        let challenge_id = crate::ids::fresh("ch");
        let known = Recognised {
            key: ClaimKey(String::new()),
            challenge_id: challenge_id.clone(),
            terms: ask.terms.clone(),
            digest: Some(ask.digest),
            expires: now.plus(300),
            reference: String::new(),
            resend: Some("signed".into()),
            is_public: self.after.lock().unwrap().is_some(),
        };
        self.offered.lock().unwrap().insert(challenge_id.clone(), known);
        Ok(Offer {
            rail: self.id.clone(),
            range: ("tempo".into(), "charge".into()),
            headers: Vec::new(),
            challenge_id: Some(challenge_id),
            entry: None,
        })
    }
    fn recognise(&self, shown: &Shown, _live: &Ask<'_>) -> Result<Option<Recognised>, Refusal> {
        let Shown::Mpp(credential) = shown else { return Ok(None) };
        let known = self.offered.lock().unwrap().get(&credential.challenge.id).cloned();
        let proof = credential.payload["proof"].as_str().unwrap().to_owned();
        Ok(known.map(|known| Recognised { key: ClaimKey(proof.clone()), reference: format!("0x{proof}"), ..known }))
    }
    fn offered(&self, shown: &Shown, path: &str) -> Option<crate::ids::PublicModel> {
        let Shown::Mpp(credential) = shown else { return None };
        let terms = self.offered.lock().unwrap().get(&credential.challenge.id)?.terms.clone();
        (terms.route.as_str() == path).then_some(terms.model)
    }
    async fn check(
        &self,
        _shown: &Shown,
        recognised: Recognised,
        ask: &Ask<'_>,
        now: UnixSeconds,
    ) -> Result<Proof, Refusal> {
        if recognised.terms != *ask.terms {
            return Err(Refusal::InvalidChallenge { why: "other terms" });
        }
        if recognised.digest != Some(ask.digest) {
            return Err(Refusal::InvalidChallenge { why: "another body" });
        }
        Ok(Proof { recognised, payer: Some("payer".into()), is_proven: true, collect_until: now.plus(300) })
    }
    async fn complete(&self, _shown: &Shown, proof: Proof, _first: bool) -> Result<Proof, Refusal> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        assert!(!self.fails_tries.load(Ordering::SeqCst), "a defect of a rail, as the test asked");
        let Some(told) = self.untried.lock().unwrap().pop_front() else { return Ok(proof) };
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        Err(told)
    }
    async fn collect(&self, _shown: &Shown, _proof: &Proof) -> Collected {
        self.collects.fetch_add(1, Ordering::SeqCst);
        assert!(!self.breaks.load(Ordering::SeqCst), "a defect of a rail, as the test asked");
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.collected.lock().unwrap().pop_front().unwrap_or(Collected::Paid)
    }
    fn when(&self, streams: bool) -> When {
        match *self.after.lock().unwrap() {
            Some(When::After { most: None, .. }) if streams => When::First,
            Some(after) => after,
            None => When::First,
        }
    }
    async fn take(&self, claim: &Claim, _now: UnixSeconds) -> Collected {
        let Standing::Taking { amount, .. } = claim.standing else { panic!("{:?}", claim.standing) };
        self.takes.lock().unwrap().push(amount);
        assert!(!self.breaks.load(Ordering::SeqCst), "a defect of a rail, as the test asked");
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        let settled = || Collected::Settled { transaction: "0xtook".into() };
        self.taken.lock().unwrap().pop_front().unwrap_or_else(settled)
    }
    async fn look(&self, _claim: &Claim, _now: UnixSeconds) -> Collected {
        self.looked.lock().unwrap().pop_front().unwrap_or(Collected::Unknown)
    }
    fn receipt(&self, _claim: &Claim, _receipt: &Receipt) -> Vec<(http::HeaderName, http::HeaderValue)> {
        Vec::new()
    }
}

/// A store whose n-th commit fails, before or after it was written: the caller cannot tell which. After that it takes none.
struct Frail {
    inner: Arc<Embedded>,
    commits: AtomicUsize,
    fails: Mutex<Option<(usize, bool)>>,
    /// So many swaps of a channel, from now on, lose against another gate's.
    loses: AtomicUsize,
    down: AtomicBool,
    /// It is across a network: a commit waits until this is true.
    heard: watch::Sender<bool>,
    unreadable: AtomicBool,
    /// What other gates count as promised by any payer.
    elsewhere: Mutex<Usd>,
    /// Promises that other gates were told of and that were not taken back.
    promised: AtomicUsize,
    /// Other gates can change what is in it, and nobody hears of that.
    shared: AtomicBool,
    unheard: broadcast::Sender<ChannelId>,
}

impl Frail {
    /// The `n`-th commit from now on fails, and is `written` all the same or not.
    fn fail(&self, n: usize, written: bool) {
        *self.fails.lock().unwrap() = Some((self.commits.load(Ordering::SeqCst) + n, written));
    }
}

#[async_trait]
impl Store for Frail {
    async fn claim(&self, key: &ClaimKey) -> Result<Option<Claim>, StoreError> {
        if self.unreadable.load(Ordering::SeqCst) {
            return Err(StoreError("cannot be read".into()));
        }
        self.inner.claim(key).await
    }
    async fn commit(&self, write: Write) -> Result<Swap, StoreError> {
        let n = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        let _ = self.heard.subscribe().wait_for(|heard| *heard).await;
        let fails = *self.fails.lock().unwrap();
        if self.loses.load(Ordering::SeqCst) > 0 {
            self.loses.fetch_sub(1, Ordering::SeqCst);
            return Ok(Swap::Lost(Box::new(None)));
        }
        match fails {
            Some((at, written)) if at == n => {
                if written {
                    self.inner.commit(write).await?;
                }
                Err(StoreError("the disk fails".into()))
            }
            Some((at, _)) if at < n => Err(StoreError("the disk has failed".into())),
            _ => self.inner.commit(write).await,
        }
    }
    async fn open_claims(&self, now: UnixSeconds) -> Result<Vec<Claim>, StoreError> {
        self.inner.open_claims(now).await
    }
    async fn channel(&self, id: &ChannelId) -> Result<Option<Channel>, StoreError> {
        self.inner.channel(id).await
    }
    async fn channels(&self) -> Result<Vec<Channel>, StoreError> {
        self.inner.channels().await
    }
    async fn channels_of(&self, rail: &crate::ids::RailId, payer: &str) -> Result<Vec<Channel>, StoreError> {
        self.inner.channels_of(rail, payer).await
    }
    fn changes(&self) -> Option<broadcast::Receiver<ChannelId>> {
        self.shared.load(Ordering::SeqCst).then(|| self.unheard.subscribe())
    }
    fn gate(&self) -> &str {
        self.inner.gate()
    }
    async fn alive(&self, gate: &str) -> Result<bool, StoreError> {
        self.inner.alive(gate).await
    }
    async fn promise(&self, _: Whose<'_>, _: (&ClaimKey, u64), _: Usd) -> Result<Usd, StoreError> {
        self.promised.fetch_add(1, Ordering::SeqCst);
        Ok(*self.elsewhere.lock().unwrap())
    }
    async fn unpromise(&self, _: Whose<'_>, _: &ClaimKey) -> Result<(), StoreError> {
        self.promised.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
    async fn forget(&self, now: UnixSeconds) -> Result<usize, StoreError> {
        self.inner.forget(now).await
    }
    async fn tally(&self, name: &str, day: u64) -> Result<Usd, StoreError> {
        self.inner.tally(name, day).await
    }
    async fn receipt(&self, id: &str) -> Result<Option<Receipt>, StoreError> {
        self.inner.receipt(id).await
    }
    async fn facts(&self, facts: &[(String, String)], accept: bool) -> Result<Vec<String>, StoreError> {
        self.inner.facts(facts, accept).await
    }
    fn standing(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) { Err(StoreError("read-only".into())) } else { self.inner.standing() }
    }
}

impl Paid {
    fn hold(&self) -> &Hold {
        let Money::Hold(hold) = &self.money else { panic!("a fixed amount") };
        hold
    }

    fn into_hold(self) -> Hold {
        let Money::Hold(hold) = self.money else { panic!("a fixed amount") };
        hold
    }
}

/// A toll of fakes.
struct Bed {
    toll: Arc<Toll>,
    rail: Arc<Fake>,
    spare: Arc<Fake>,
    purse: Arc<Purse>,
    store: Arc<Frail>,
    rules: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self::with(&[])
    }

    /// The usual rules with replacements, `(file, from, to)`.
    fn with(edits: &[(&str, &str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("rules");
        std::fs::create_dir(&rules).unwrap();
        write_rules(&rules, edits);
        let inner = Arc::new(Embedded::open(&dir.path().join("store.redb")).unwrap());
        let (rail, spare) = (Fake::new("tempo/charge"), Fake::new("spare/charge"));
        let purse = Purse::new();
        let (toll, store) = toll(&rules, inner, &rail, &spare, &purse);
        Self { toll, rail, spare, purse, store, rules, _dir: dir }
    }

    /// A new process on the same store and rules; what the old one had in memory is gone.
    fn restart(&mut self) {
        // What is left of it here is dead: it reads and writes no more.
        self.store.unreadable.store(true, Ordering::SeqCst);
        *self.store.fails.lock().unwrap() = Some((0, false));
        self.store.inner.crashes();
        (self.toll, self.store) =
            toll(&self.rules, Arc::clone(&self.store.inner), &self.rail, &self.spare, &self.purse);
    }

    /// The same with other terms of channels.
    fn under(mut self, terms: impl FnOnce(&mut crate::conf::SessionConf)) -> Self {
        terms(&mut self.purse.terms.lock().unwrap());
        (self.toll, self.store) =
            toll(&self.rules, Arc::clone(&self.store.inner), &self.rail, &self.spare, &self.purse);
        self
    }

    /// Other rules, in force when this returns.
    async fn reload(&self, edits: &[(&str, &str, &str)]) {
        let before = self.toll.rules.plan().generation.clone();
        write_rules(&self.rules, edits);
        self.toll.rules.reload();
        until(|| async { self.toll.rules.plan().generation != before }).await;
    }

    /// The credential of payment `proof` for an offer made now for this body.
    async fn credential(&self, path: &str, body: &str, proof: &str) -> Shown {
        let quoted = self.quote(path, body).await.unwrap();
        let offers = pay::offers(&self.toll, &quoted, digest(body), &http::HeaderMap::new(), None).await.unwrap();
        shown(offers[0].challenge_id.as_ref().unwrap(), proof)
    }

    async fn quote(&self, path: &str, body: &str) -> Result<Arc<Quoted>, Refusal> {
        let plan = self.toll.rules.plan();
        Ok(Arc::new(quote_under(&plan, path, Bytes::copy_from_slice(body.as_bytes()), None).await?))
    }

    async fn pay(&self, path: &str, body: &str, shown: &Shown) -> Result<Paid, Stop> {
        self.pay_with(path, body, Found::One(shown.clone())).await
    }

    async fn pay_with(&self, path: &str, body: &str, found: Found) -> Result<Paid, Stop> {
        let plan = self.toll.rules.plan();
        let quoted = self.quote(path, body).await?;
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let request = crate::ids::fresh("req");
        let visit = Visit { plan: &plan, found: &found, digest: digest(body), body: &bytes, request: &request };
        pay::pay(&self.toll, &visit, &quoted).await
    }

    /// The pool that serves everything.
    fn pool(&self) -> Arc<crate::upstream::Pool> {
        Arc::clone(self.toll.pools.load().get(&"p".into()).unwrap())
    }

    async fn claim(&self, proof: &str) -> Option<Claim> {
        self.store.inner.claim(&ClaimKey(proof.into())).await.unwrap()
    }

    /// Another gate takes this proof.
    async fn claimed_elsewhere(&self, proof: &str) {
        let standing = Standing::Claimed { by: "another/req".into() };
        let claim = Claim { key: ClaimKey(proof.into()), standing, ..crate::claim::sample::claim(proof, 20_000) };
        let write = Write { claim: Some(claim), ..Write::default() };
        assert_eq!(self.store.inner.commit(write).await.unwrap(), Swap::Done);
    }

    async fn becomes(&self, proof: &str, wanted: impl Fn(&Claim) -> bool) {
        until(|| async { self.claim(proof).await.is_some_and(|claim| wanted(&claim)) }).await;
    }
}

fn toll(
    rules: &Path,
    inner: Arc<Embedded>,
    rail: &Arc<Fake>,
    spare: &Arc<Fake>,
    purse: &Arc<Purse>,
) -> (Arc<Toll>, Arc<Frail>) {
    let pools: Arc<ArcSwap<Pools>> = Arc::default();
    let swapped = Arc::clone(&pools);
    let prepare = move |plan: &crate::rules::Plan| {
        let next = Pools::build(&plan.pools, Some(&swapped.load()))?;
        swapped.store(Arc::new(next));
        Ok(())
    };
    let store = Arc::new(Frail {
        inner,
        commits: AtomicUsize::new(0),
        fails: Mutex::default(),
        loses: AtomicUsize::new(0),
        down: AtomicBool::new(false),
        heard: watch::channel(true).0,
        unreadable: AtomicBool::new(false),
        elsewhere: Mutex::new(Usd::ZERO),
        promised: AtomicUsize::new(0),
        shared: AtomicBool::new(false),
        unheard: broadcast::channel(1).0,
    });
    let toll = Toll {
        rules: Rules::start(rules, catalogue(), prepare, |_| ()).unwrap(),
        rails: vec![Arc::clone(rail) as Arc<dyn Rail>, Arc::clone(spare) as Arc<dyn Rail>],
        tills: vec![Arc::new(Till {
            rail: Arc::clone(purse) as Arc<dyn Session>,
            terms: *purse.terms.lock().unwrap(),
        })],
        channels: Arc::new(Channels::new(Arc::<Frail>::clone(&store) as Arc<dyn Store>)),
        store: Arc::clone(&store) as Arc<dyn Store>,
        pools,
        metrics: Arc::new(Metrics::new()),
        losses: Losses::default(),
        exposure: super::exposure::Exposure::default(),
        running: super::running::Running::default(),
        public_url: "http://gate.test".into(),
        unknown_wait: Duration::from_secs(20),
    };
    (Arc::new(toll), store)
}

fn catalogue() -> Catalogue {
    let ability = RailAbility { fixed_amount: true, decimals: 6 };
    Catalogue {
        rails: [
            ("tempo/charge".into(), ability),
            ("spare/charge".into(), ability),
            ("tempo/session".into(), RailAbility { fixed_amount: false, ..ability }),
        ]
        .into(),
        profiles: crate::upstream::profile::abilities(),
        vocabularies: vec!["o200k", "bytes"],
    }
}

fn write_rules(dir: &Path, edits: &[(&str, &str, &str)]) {
    let files = [
        ("models.toml", MODELS),
        ("tiers.toml", TIERS),
        ("routes.toml", ROUTES),
        ("pools.toml", POOLS),
        ("prices.toml", ""),
    ];
    for (file, text) in files {
        let mut text = text.to_owned();
        for (_, from, to) in edits.iter().filter(|(name, ..)| *name == file) {
            assert!(text.contains(from), "{from:?} is not in {file}");
            text = text.replace(from, to);
        }
        std::fs::write(dir.join(file), text).unwrap();
    }
}

fn digest(body: &str) -> [u8; 32] {
    Sha256::digest(body.as_bytes()).into()
}

/// A body that asks for `output` tokens of `model`.
fn ask(model: &str, output: u64) -> String {
    json!({"model": model, "max_tokens": output, "messages": [{"role": "user", "content": "hi"}]}).to_string()
}

fn shown(challenge_id: &str, proof: &str) -> Shown {
    let credential = json!({
        "challenge": {"id": challenge_id, "realm": "gate.test", "method": "tempo", "intent": "charge", "request": "e30"},
        "payload": {"proof": proof},
    });
    Shown::Mpp(Box::new(serde_json::from_value(credential).unwrap()))
}

async fn until<F: Future<Output = bool>>(mut probe: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(20);
    while !probe().await {
        assert!(Instant::now() < end, "it did not come true in 20 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a request ended with, when it must not have been let through.
fn stopped(result: Result<Paid, Stop>) -> Stop {
    match result {
        Ok(_) => panic!("it was let through"),
        Err(stop) => stop,
    }
}
