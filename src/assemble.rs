//! The only place that knows every concrete kind: configuration → a gate that can run.

use crate::catalogue::Catalogue;
use crate::chain::Address;
use crate::chain::fees::Fees;
use crate::chain::relay::HttpRelay;
use crate::chain::tempo::Tempo;
use crate::conf::{Conf, RailConf, RailKind, Rails, Secrets, SponsorConf, StoreConf, TempoConf};
use crate::edge::admin::Admin;
use crate::edge::body::Budget;
use crate::edge::door::{Door, DoorLimits, Guests, Refused, tls};
use crate::edge::flood::{Flood, UnpaidLimits};
use crate::edge::forward::Lines;
use crate::edge::gate::{Gate, KEEP_ALIVE_SECONDS};
use crate::edge::reply::Cors;
use crate::flow::channels::Channels;
use crate::flow::exposure::Exposure;
use crate::flow::loss::Losses;
use crate::flow::receipt::Signet;
use crate::flow::running::Running;
use crate::flow::{Till, Toll};
use crate::metrics::Metrics;
use crate::rail::Rail;
use crate::rail::mpp::charge::{Charge, DECIMALS, Settings};
use crate::rail::mpp::escrow::SettleKey;
use crate::rail::mpp::funds::Funds;
use crate::rail::mpp::session::{self, TempoSession};
use crate::rail::mpp::sponsor::{self, Hand, Sponsor};
use crate::rail::ring::KeyRing;
use crate::rail::x402::facilitator::Facilitator;
use crate::rules::watch::{Rules, Standing};
use crate::secret::Secret;
use crate::store::embedded::Embedded;
use crate::store::redis::Redis;
use crate::store::{self, Store};
use crate::upstream::Pools;
use crate::upstream::shown::Shown;
use arc_swap::ArcSwap;
use pingora::apps::http_app::HttpServer;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

mod mistakes;
mod payee;
mod reread;
mod x402;

pub use mistakes::{mistakes, never_offered, plain_mistakes};
use reread::{Kept, Reread};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Everything `serve` was given.
pub struct Start {
    /// Where `pontage.toml` is.
    pub path: PathBuf,
    /// What it says.
    pub conf: Conf,
    /// The secrets it names.
    pub secrets: Secrets,
    /// Rules directory.
    pub rules: PathBuf,
    /// Payee, asset or chain may differ from the last run.
    pub accept_payee_change: bool,
}

/// What this build and the configured rails offer to rules.
pub fn catalogue(rails: Rails) -> Catalogue {
    Catalogue {
        rails,
        profiles: crate::upstream::profile::abilities(),
        vocabularies: crate::tokens::Vocabulary::NAMES.to_vec(),
    }
}

/// Runs a gate until SIGTERM or SIGINT. The error is every reason it could not start.
pub async fn run(start: Start) -> Result<(), Vec<String>> {
    let Start { path, conf, secrets, rules: rules_dir, accept_payee_change } = start;
    let one = |e: String| vec![e];
    let defect = |e: prometheus::Error| one(format!("metrics: {e}"));
    // First of all: a signal that nobody listens for would end a gate that is only starting.
    let mut signals = Signals::listen().map_err(one)?;

    let store = store(&conf.store).await.map_err(|e| one(format!("store: {e}")))?;
    let ring =
        Arc::new(KeyRing::new(&secrets.challenge_keys).map_err(|e| one(format!("secrets.challenge_keys: {e}")))?);
    let signet = Arc::new(
        Signet::new(&secrets.receipt_key).ok_or_else(|| one("secrets.receipt_key: not a 32-byte seed".into()))?,
    );
    let metrics = Arc::new(Metrics::new());
    let Configured { rails, tills, charges, facilitators } = rails(&conf, &ring, &store, &metrics)?;
    let pools: Arc<ArcSwap<Pools>> = Arc::new(ArcSwap::from_pointee(Pools::default()));
    let rules = watched_rules(&rules_dir, &conf, &pools, &metrics)?;
    metrics.show(Shown::of(Arc::clone(&pools)).map_err(defect)?).map_err(defect)?;
    let certificate = match &conf.listen.tls {
        Some(files) => Some(Arc::new(ArcSwap::new(tls(&files.cert, &files.key).map_err(one)?))),
        None => None,
    };
    let public = bind("listen.address", conf.listen.address)?;
    let private = bind("listen.admin", conf.listen.admin)?;
    // A changed payee is remembered as meant only by a gate that has everything else it needs to run.
    let facts = rails.iter().map(|r| r.facts()).chain(tills.iter().map(|t| t.rail.facts())).collect();
    payee::same_payee(store.as_ref(), facts, &conf.listen.realm, accept_payee_change).await?;

    pools.load_full().first_look().await;
    let toll = Arc::new(Toll {
        rules: Arc::clone(&rules),
        rails,
        tills,
        channels: Arc::new(Channels::new(Arc::clone(&store))),
        store,
        pools: Arc::clone(&pools),
        metrics,
        losses: Losses::default(),
        exposure: Exposure::default(),
        running: Running::default(),
        public_url: conf.listen.public_url.trim_end_matches('/').to_owned(),
        unknown_wait: Duration::from_secs(20),
    });

    for charge in charges {
        charge.probe().await;
        tokio::spawn(async move { charge.watch().await });
    }
    futures::future::join_all(facilitators.iter().map(|facilitator| facilitator.probe())).await;
    for facilitator in facilitators {
        tokio::spawn(async move { facilitator.watch().await });
    }
    for rail in &toll.rails {
        let rail = Arc::clone(rail);
        tokio::spawn(async move { rail.watch().await });
    }
    tokio::spawn(crate::upstream::health::watch(Arc::clone(&pools)));
    let lines = Arc::new(Lines::default());
    let idle = Arc::clone(&lines);
    tokio::spawn(async move { idle.sweep().await });
    let left = crate::flow::recover::recover(&toll).await.map_err(|e| one(format!("store: {e}")))?;
    if left > 0 {
        tracing::warn!(claims = left, "claims of the last run were not over");
    }
    let cut_off = crate::flow::reclaim::reclaim(&toll).await.map_err(|e| one(format!("store: {e}")))?;
    if cut_off > 0 {
        tracing::warn!(requests = cut_off, "requests that the last run did not finish were charged as far as is known");
    }
    crate::flow::settler::start(&toll, crate::flow::settler::Pace::default());
    tokio::spawn(crate::flow::recover::sweep(Arc::clone(&toll)));
    tokio::spawn(crate::flow::recover::watch(Arc::clone(&toll)));

    let (leaving, stopping) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (stop, stopped) = watch::channel(false);
    let (close, closed) = watch::channel(false);
    let guests = Arc::new(Guests::default());
    let gate = gate(&conf, &toll, &signet, lines, &guests, &stopping);
    let door = Arc::new(Door {
        app: Arc::new(gate.into_proxy(conf.listen.tls.is_none(), conf.listen.limits.h2_streams)),
        guests: Arc::clone(&guests),
        limits: DoorLimits {
            per_ip: conf.listen.limits.connections_per_ip,
            total: conf.listen.limits.connections,
            head: Duration::from_secs(conf.listen.limits.header_seconds),
            keep_alive: Duration::from_secs(KEEP_ALIVE_SECONDS),
        },
        refused: Refused::new(toll.metrics.connections_refused.clone()),
        tls: certificate.clone(),
    });
    let admin_guests = Arc::new(Guests::default());
    let admin = Admin {
        toll: Arc::clone(&toll),
        leaving: Arc::clone(&leaving),
        guests: Arc::clone(&admin_guests),
        receipt_key: signet.public_key(),
        listens: conf.listen.admin.ip(),
        token: secrets.admin_token.clone(),
    };
    let admin_door = Arc::new(Door {
        app: Arc::new(HttpServer::new_app(admin)),
        guests: admin_guests,
        limits: DoorLimits {
            per_ip: 256,
            total: 256,
            head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
        },
        refused: Refused::new(toll.metrics.connections_refused.clone()),
        tls: None,
    });
    let listener = public.listen()?;
    let admin_listener = private.listen()?;
    let serving = tokio::spawn(door.run(listener, stopped, closed));
    // The admin address stays open while those inside are served to their end.
    let (_open, always_open) = watch::channel(false);
    tokio::spawn(admin_door.run(admin_listener, always_open.clone(), always_open));
    tracing::info!(address = %conf.listen.address, admin = %conf.listen.admin, generation = %rules.plan().generation, "listening");

    let reread = Reread { kept: Kept::of(&conf), path, conf, rules, ring, certificate };
    signals.until_told_to_stop(&reread).await;
    leaving.store(true, Ordering::Relaxed);
    let drained = Duration::from_secs(reread.conf.listen.drain_seconds);
    let _ = tokio::time::timeout(drained, signals.until_told_to_stop(&reread)).await;
    stopping.store(true, Ordering::Relaxed);
    let _ = stop.send(true);
    let grace_ends = Instant::now() + Duration::from_secs(reread.conf.listen.grace_seconds);
    // Whoever streams over a channel may have to connect to show his next voucher.
    drain(&toll, "sessions", grace_ends).await;
    let _ = close.send(true);
    let _ = serving.await;
    let left = drain(&toll, "requests", grace_ends).await;
    if left > 0 {
        tracing::warn!(requests = left, "grace is over: cutting what is left");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The configured store. A new kind adds one line.
async fn store(conf: &StoreConf) -> Result<Arc<dyn Store>, String> {
    let Some(shared) = &conf.redis else {
        return Embedded::open(&conf.path).map(|store| Arc::new(store) as Arc<dyn Store>).map_err(|e| e.to_string());
    };
    let settings = store::redis::Settings { url: shared.url.value.read()?, accept_data_loss: shared.accept_data_loss };
    let store = Redis::open(&settings, &conf.path).await.map_err(|e| e.to_string())?;
    Ok(Arc::new(store))
}

/// An address that is ours and that nobody can connect to yet.
struct Bound {
    key: &'static str,
    address: SocketAddr,
    socket: TcpSocket,
}

fn bind(key: &'static str, address: SocketAddr) -> Result<Bound, Vec<String>> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // What closed connections of the last run leave behind must not keep the next one out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    bound().map(|socket| Bound { key, address, socket }).map_err(|e| cannot_listen(key, address, &e))
}

impl Bound {
    fn listen(self) -> Result<TcpListener, Vec<String>> {
        let Self { key, address, socket } = self;
        socket.listen(BACKLOG).map_err(|e| cannot_listen(key, address, &e))
    }
}

fn cannot_listen(key: &str, address: SocketAddr, why: &std::io::Error) -> Vec<String> {
    vec![format!("{key}: cannot listen on {address}: {why}")]
}

/// A configured limit as a count of things in memory.
fn count(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Every way to pay, and what has to be watched for them.
#[derive(Default)]
struct Configured {
    rails: Vec<Arc<dyn Rail>>,
    tills: Vec<Arc<Till>>,
    charges: Vec<Arc<Charge>>,
    facilitators: Vec<Arc<dyn Facilitator>>,
}

/// Every configured rail. A new kind adds one line.
fn rails(
    conf: &Conf,
    ring: &Arc<KeyRing>,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
) -> Result<Configured, Vec<String>> {
    let mut made = Configured::default();
    let mut facilitators = x402::Facilitators::default();
    let mut mistakes = Vec::new();
    for section in &conf.rails {
        let built = match &section.kind {
            RailKind::MppTempo(conf_of) => tempo(section, conf_of, conf, ring, store, metrics).map(|(charge, till)| {
                made.rails.push(Arc::clone(&charge) as Arc<dyn Rail>);
                made.charges.push(charge);
                made.tills.extend(till);
            }),
            RailKind::X402(conf_of) => {
                let public_url = conf.listen.public_url.trim_end_matches('/');
                x402::rails(&section.name, conf_of, &conf.rails, public_url, ring, &mut facilitators)
                    .map(|rails| made.rails.extend(rails))
            }
        };
        if let Err(e) = built {
            mistakes.push(format!("rail.{}: {e}", section.name));
        }
    }
    made.facilitators = facilitators.all();
    if mistakes.is_empty() { Ok(made) } else { Err(mistakes) }
}

fn tempo(
    section: &RailConf,
    tempo: &TempoConf,
    conf: &Conf,
    ring: &Arc<KeyRing>,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Charge>, Option<Arc<Till>>), String> {
    let realm = &conf.listen.realm;
    let chain = Arc::new(Tempo::new(&tempo.rpc.read()?)?);
    let settings = Settings {
        id: format!("{}/charge", section.name).into(),
        realm: realm.to_owned(),
        chain_id: tempo.chain_id,
        currency: Address::from(tempo.currency),
        recipient: Address::from(tempo.recipient),
        accept_push: tempo.accept_push,
        pace: crate::rail::mpp::collect::Pace::default(),
    };
    let sponsor =
        sponsor(&section.name, tempo, &conf.rails, &chain, store, metrics).map_err(|e| format!("sponsor: {e}"))?;
    let charge = Charge::new(settings, Arc::clone(ring), Arc::<Tempo>::clone(&chain))?;
    let charge = match &sponsor {
        Some(sponsor) => charge.sponsored_by(Arc::clone(sponsor)),
        None => charge,
    };
    let (charge, till) = match &tempo.session {
        None => (Arc::new(charge), None),
        Some(terms) => {
            let settle = settle_key(tempo).map_err(|e| format!("settle_key: {e}"))?;
            let id: crate::ids::RailId = format!("{}/session", section.name).into();
            let fees = Arc::<Tempo>::clone(&chain);
            let funds = Funds::new(id.clone(), Address::from(tempo.currency), settle.address(), fees);
            let charge = Arc::new(charge.settled_by(funds));
            let settings = session::Settings {
                id,
                realm: realm.to_owned(),
                chain_id: tempo.chain_id,
                currency: Address::from(tempo.currency),
                recipient: Address::from(tempo.recipient),
                min_voucher_delta: terms.min_voucher_delta.to_atoms(DECIMALS).ok_or("session.min_voucher_delta")?,
            };
            let rail = TempoSession::new(settings, Arc::clone(ring), Arc::clone(&charge), chain, settle, sponsor);
            (charge, Some(Arc::new(Till { rail: Arc::new(rail), terms: *terms })))
        }
    };
    Ok((charge, till))
}

fn settle_key(tempo: &TempoConf) -> Result<SettleKey, String> {
    SettleKey::new(&tempo.read_settle_key()?).ok_or_else(|| "it is no key of an account".to_owned())
}

fn relay(url: &Secret) -> Result<HttpRelay, String> {
    HttpRelay::new(url).map_err(|e| format!("relay: {e}"))
}

/// Key or address of whoever carries the fees of a rail's payers. Never a key that settles, on whichever of the `rails` and whatever name
/// it is kept under: strangers' fees would empty the account that has to bring home what was earned.
fn sponsors_secret<'c>(tempo: &'c TempoConf, rails: &[RailConf]) -> Result<Option<(&'c SponsorConf, Secret)>, String> {
    let Some(conf) = &tempo.sponsor else { return Ok(None) };
    let secret = conf.read()?;
    let settled_with = match conf {
        SponsorConf::Relay { .. } => relay(&secret).map(|_| None)?,
        SponsorConf::Key { .. } => rails.iter().find(|rail| settles_with(rail, &secret)),
    };
    match settled_with {
        None => Ok(Some((conf, secret))),
        Some(RailConf { name, .. }) => Err(format!(
            "its key is the settle key of rail.{name}: what was earned and what may be spent on fees are kept by two keys"
        )),
    }
}

fn settles_with(rail: &RailConf, key: &Secret) -> bool {
    match &rail.kind {
        RailKind::MppTempo(tempo) => tempo.read_settle_key().is_ok_and(|settle| settle == *key),
        RailKind::X402(_) => false,
    }
}

/// Who carries the fees of a rail's payers.
fn sponsor(
    section: &str,
    tempo: &TempoConf,
    rails: &[RailConf],
    chain: &Arc<Tempo>,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Sponsor>>, String> {
    let Some((conf, secret)) = sponsors_secret(tempo, rails)? else { return Ok(None) };
    let hand = match conf {
        SponsorConf::Relay { .. } => Hand::Relay(Arc::new(relay(&secret)?)),
        SponsorConf::Key { usd_per_day, .. } => {
            Hand::Own { key: secret, usd_per_day: *usd_per_day, store: Arc::clone(store) }
        }
    };
    let terms = sponsor::Terms {
        section: section.to_owned(),
        chain_id: tempo.chain_id,
        currency: Address::from(tempo.currency),
        recipient: Address::from(tempo.recipient),
        look_every: sponsor::LOOK_EVERY,
    };
    let chain: Arc<dyn Fees> = Arc::<Tempo>::clone(chain);
    Sponsor::new(terms, hand, chain, Arc::clone(metrics)).map(|s| Some(Arc::new(s)))
}

/// The rules, watched: pools are rebuilt before a new plan becomes visible, and may veto it.
fn watched_rules(
    dir: &Path,
    conf: &Conf,
    pools: &Arc<ArcSwap<Pools>>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Rules>, Vec<String>> {
    let pools = Arc::clone(pools);
    let runtime = tokio::runtime::Handle::current();
    let own = conf.clone();
    let prepare = move |plan: &crate::rules::Plan| {
        for doubt in never_offered(&own, plan) {
            tracing::warn!("{doubt}");
        }
        let next = Pools::build(&plan.pools, Some(&pools.load()))?;
        // A reload has a thread of its own and may wait for names; at the start the caller does.
        if tokio::runtime::Handle::try_current().is_err() {
            runtime.block_on(next.first_look());
        }
        pools.store(Arc::new(next));
        Ok(())
    };
    let counted = Arc::clone(metrics);
    let told = move |standing: &Standing| {
        counted.set_plan(standing.generation.as_str());
        let outcome = if standing.last_error.is_none() { "ok" } else { "failed" };
        counted.rules_reload.with_label_values(&[outcome]).inc();
        counted.rules_rejected.set(i64::from(standing.last_error.is_some()));
    };
    let rules = Rules::start(dir, catalogue(conf.offered()), prepare, told)?;
    metrics.set_plan(rules.plan().generation.as_str());
    Ok(rules)
}

fn gate(
    conf: &Conf,
    toll: &Arc<Toll>,
    signet: &Arc<Signet>,
    lines: Arc<Lines>,
    guests: &Arc<Guests>,
    stopping: &Arc<AtomicBool>,
) -> Gate {
    let limits = &conf.listen.limits;
    Gate {
        toll: Arc::clone(toll),
        signet: Arc::clone(signet),
        lines,
        guests: Arc::clone(guests),
        budget: Budget::new(limits.bodies_in_flight_mib.saturating_mul(1024 * 1024)),
        body_wait: Duration::from_secs(limits.body_seconds),
        flood: Flood::new(UnpaidLimits {
            per_ip: count(limits.unpaid_per_ip_per_second),
            total: count(limits.unpaid_per_second),
        }),
        cors: Cors(conf.listen.cors.clone()),
        stopping: Arc::clone(stopping),
    }
}

/// What an operator says to a process.
struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
    hup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let on = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    /// SIGHUP reads again what can be; SIGTERM, SIGINT and SIGQUIT end the wait.
    async fn until_told_to_stop(&mut self, reread: &Reread) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.quit.recv() => return,
                _ = self.hup.recv() => reread.all(),
            }
        }
    }
}

/// Waits until nothing of this kind is in progress, at most until then. How much is.
async fn drain(toll: &Toll, kind: &str, until: Instant) -> i64 {
    let inside = toll.metrics.inflight.with_label_values(&[kind]);
    while inside.get() > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    inside.get()
}
