//! The only place that knows every concrete kind: configuration → a gate that can run.

use crate::catalogue::Catalogue;
use crate::chain::Address;
use crate::chain::fees::Fees;
use crate::chain::relay::HttpRelay;
use crate::chain::tempo::Tempo;
use crate::claim::Standing as ClaimStanding;
use crate::clock::UnixSeconds;
use crate::conf::{Conf, RailConf, RailKind, Rails, Secrets, SponsorConf, StoreConf, TempoConf};
use crate::edge::admin::Admin;
use crate::edge::body::Budget;
use crate::edge::door::{Door, DoorLimits, Guests, tls};
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
use crate::rail::mpp::session::{self, TempoSession};
use crate::rail::mpp::sponsor::{self, Hand, Sponsor};
use crate::rail::ring::KeyRing;
use crate::rail::x402::facilitator::Facilitator;
use crate::rules::watch::{Rules, Standing};
use crate::store::embedded::Embedded;
use crate::store::redis::Redis;
use crate::store::{self, Store};
use crate::upstream::Pools;
use crate::upstream::shown::Shown;
use arc_swap::ArcSwap;
use pingora::apps::http_app::HttpServer;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

mod x402;

/// Name under which the store remembers the host of `public_url`.
const REALM: &str = "listen.public_url";

/// Everything `serve` was given.
pub struct Start {
    /// `pontage.toml`.
    pub conf: Conf,
    /// The secrets it names.
    pub secrets: Secrets,
    /// Rules directory.
    pub rules: std::path::PathBuf,
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

/// What `serve` would stumble over after the gate's own secrets: a sample's payee, the rails' and pools' secrets, and the rules. Opens nothing;
/// said together with the rest, so that nobody mends a first start one variable at a time.
pub fn mistakes(conf: &Conf, rules: &Path) -> Vec<String> {
    let unread = |section: &RailConf| {
        let why = "is the sample's placeholder: what is paid to it is gone, put your own address there";
        let mut found: Vec<_> = section.kind.pays_nobody().map(|key| (key, why.to_owned())).into_iter().collect();
        match &section.kind {
            RailKind::MppTempo(tempo) => {
                found.extend(tempo.rpc.read().err().map(|e| ("rpc", e)));
                found.extend(tempo.session.and_then(|_| tempo.read_settle_key().err()).map(|e| ("settle_key", e)));
                found.extend(tempo.sponsor.as_ref().and_then(|s| s.read().err()).map(|e| ("sponsor", e)));
            }
            RailKind::X402(x402) => found.extend(x402::unread(x402)),
        }
        found.into_iter().map(|(key, e)| format!("rail.{}.{key}: {e}", section.name)).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = conf.rails.iter().flat_map(unread).collect();
    match crate::rules::load(rules, &catalogue(conf.offered())) {
        Ok(plan) => found.extend(Pools::build(&plan.pools, None).err().unwrap_or_default()),
        Err(mistakes) => found.extend(mistakes.iter().map(ToString::to_string)),
    }
    found
}

/// Runs a gate until SIGTERM or SIGINT. The error is every reason it could not start.
pub async fn run(start: Start) -> Result<(), Vec<String>> {
    let Start { conf, secrets, rules: rules_dir, accept_payee_change } = start;
    let one = |e: String| vec![e];
    let defect = |e: prometheus::Error| one(format!("metrics: {e}"));
    // First of all: a signal that nobody listens for would end a gate that is only starting.
    let signals = Signals::listen().map_err(one)?;

    let store = store(&conf.store).await.map_err(|e| one(format!("store: {e}")))?;
    let ring =
        Arc::new(KeyRing::new(&secrets.challenge_keys).map_err(|e| one(format!("secrets.challenge_keys: {e}")))?);
    let signet = Arc::new(
        Signet::new(&secrets.receipt_key).ok_or_else(|| one("secrets.receipt_key: not a 32-byte seed".into()))?,
    );
    let metrics = Arc::new(Metrics::new());
    let Configured { rails, tills, charges, facilitators } = rails(&conf, &ring, &store, &metrics)?;
    let facts = rails.iter().map(|r| r.facts()).chain(tills.iter().map(|t| t.rail.facts())).collect();
    same_payee(store.as_ref(), facts, &conf.listen.realm, accept_payee_change).await?;

    let pools: Arc<ArcSwap<Pools>> = Arc::new(ArcSwap::from_pointee(Pools::default()));
    let rules = watched_rules(&rules_dir, &conf, &pools, &metrics)?;
    pools.load_full().first_look().await;
    metrics.show(Shown::of(Arc::clone(&pools)).map_err(defect)?).map_err(defect)?;
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
        charge.probe(UnixSeconds::now()).await;
        tokio::spawn(async move { charge.watch().await });
    }
    futures::future::join_all(facilitators.iter().map(|facilitator| facilitator.probe())).await;
    for facilitator in facilitators {
        tokio::spawn(async move { facilitator.watch().await });
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

    let stopping = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = watch::channel(false);
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
        tls: match &conf.listen.tls {
            Some(files) => Some(tls(&files.cert, &files.key).map_err(one)?),
            None => None,
        },
    });
    let admin = Admin { toll: Arc::clone(&toll), stopping: Arc::clone(&stopping), receipt_key: signet.public_key() };
    let admin_door = Arc::new(Door {
        app: Arc::new(HttpServer::new_app(admin)),
        guests: Arc::default(),
        limits: DoorLimits {
            per_ip: 256,
            total: 256,
            head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
        },
        tls: None,
    });
    let listener = bind("listen.address", conf.listen.address).await?;
    let admin_listener = bind("listen.admin", conf.listen.admin).await?;
    let serving = tokio::spawn(door.run(listener, stopped.clone()));
    // The admin address stays open while those inside are served to their end.
    let (_open, always_open) = watch::channel(false);
    tokio::spawn(admin_door.run(admin_listener, always_open));
    tracing::info!(address = %conf.listen.address, admin = %conf.listen.admin, generation = %rules.plan().generation, "listening");

    until_told_to_stop(signals, &rules, &conf, &ring).await;
    stopping.store(true, Ordering::Relaxed);
    let _ = stop.send(true);
    let _ = serving.await;
    drain(&toll, Duration::from_secs(conf.listen.grace_seconds)).await;
    tracing::info!("stopped");
    Ok(())
}

/// Payments must not silently go elsewhere than in the last run, and one whose outcome is open can be judged only by the payee,
/// asset, chain and realm it was made for.
async fn same_payee(
    store: &dyn Store,
    mut facts: Vec<(String, String)>,
    realm: &str,
    accept: bool,
) -> Result<(), Vec<String>> {
    let broken = |e: crate::store::StoreError| vec![format!("store: {e}")];
    facts.push((REALM.to_owned(), realm.to_owned()));
    let mut changed = store.facts(&facts, false).await.map_err(broken)?;
    if changed.is_empty() {
        return Ok(());
    }
    let claims = store.open_claims(UnixSeconds::now()).await.map_err(broken)?;
    let open = claims.iter().filter(|c| matches!(c.standing, ClaimStanding::Claimed { .. })).count();
    if open > 0 {
        changed.push(format!(
            "the outcome of {open} payments made before the change is not known yet: start once more with the old settings until \
             the log says their outcome"
        ));
        return Err(changed);
    }
    let channels = store.channels().await.map_err(broken)?;
    let stranded = |said: &String| channels.iter().any(|c| said.starts_with(&format!("{} was ", c.rail)));
    if changed.iter().any(stranded) {
        changed.push(format!(
            "{} channels are open under the old settings and can be settled only with them: start once more with those, and close \
             them (pontage channels close)",
            channels.len()
        ));
        return Err(changed);
    }
    if !accept && changed.iter().any(|said| !said.contains(REALM)) {
        changed.push(
            "payments would go elsewhere than in the last run; start with --accept-payee-change if that is meant"
                .to_owned(),
        );
        return Err(changed);
    }
    store.facts(&facts, true).await.map_err(broken).map(drop)
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

async fn bind(key: &str, address: std::net::SocketAddr) -> Result<TcpListener, Vec<String>> {
    TcpListener::bind(address).await.map_err(|e| vec![format!("{key}: cannot listen on {address}: {e}")])
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
            RailKind::MppTempo(conf_of) => {
                tempo(section, conf_of, &conf.listen.realm, ring, store, metrics).map(|(charge, till)| {
                    made.rails.push(Arc::clone(&charge) as Arc<dyn Rail>);
                    made.charges.push(charge);
                    made.tills.extend(till);
                })
            }
            RailKind::X402(conf_of) => {
                let public_url = conf.listen.public_url.trim_end_matches('/');
                x402::rails(&section.name, conf_of, public_url, ring, &mut facilitators)
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
    realm: &str,
    ring: &Arc<KeyRing>,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Charge>, Option<Arc<Till>>), String> {
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
    let sponsor = sponsor(&section.name, tempo, &chain, store, metrics).map_err(|e| format!("sponsor: {e}"))?;
    let charge = Charge::new(settings, Arc::clone(ring), Arc::<Tempo>::clone(&chain))?;
    let charge = Arc::new(match &sponsor {
        Some(sponsor) => charge.sponsored_by(Arc::clone(sponsor)),
        None => charge,
    });
    let till = match &tempo.session {
        None => None,
        Some(terms) => {
            let settle = SettleKey::new(&tempo.read_settle_key()?).ok_or("settle_key: not a key")?;
            let settings = session::Settings {
                id: format!("{}/session", section.name).into(),
                realm: realm.to_owned(),
                chain_id: tempo.chain_id,
                currency: Address::from(tempo.currency),
                recipient: Address::from(tempo.recipient),
                min_voucher_delta: terms.min_voucher_delta.to_atoms(DECIMALS).ok_or("session.min_voucher_delta")?,
            };
            let rail = TempoSession::new(settings, Arc::clone(ring), Arc::clone(&charge), chain, settle, sponsor);
            Some(Arc::new(Till { rail: Arc::new(rail), terms: *terms }))
        }
    };
    Ok((charge, till))
}

/// Who carries the fees of a rail's payers. Never the key that settles, whatever name it is kept under.
fn sponsor(
    section: &str,
    tempo: &TempoConf,
    chain: &Arc<Tempo>,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Sponsor>>, String> {
    let Some(conf) = &tempo.sponsor else { return Ok(None) };
    let secret = conf.read()?;
    let hand = match conf {
        SponsorConf::Relay { .. } => Hand::Relay(Arc::new(HttpRelay::new(&secret).map_err(|e| format!("relay: {e}"))?)),
        SponsorConf::Key { .. } if tempo.read_settle_key().is_ok_and(|settle| settle == secret) => {
            return Err(
                "its key is the settle key: what was earned and what may be spent on fees are kept by two keys".into(),
            );
        }
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
    let prepare = move |plan: &crate::rules::Plan| {
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
        for mistake in standing.last_error.iter().flatten() {
            tracing::error!(%mistake, "the rules stay as they were");
        }
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
    hup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let on = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }
}

/// SIGHUP reads the rules and `file:` secrets again; SIGTERM and SIGINT end the wait.
async fn until_told_to_stop(signals: Signals, rules: &Rules, conf: &Conf, ring: &KeyRing) {
    let Signals { mut term, mut int, mut hup } = signals;
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => return,
            _ = hup.recv() => {
                rules.reload();
                match conf.read_secrets() {
                    Ok(secrets) => match ring.swap(&secrets.challenge_keys) {
                        Ok(()) => tracing::info!("challenge keys read again"),
                        Err(e) => tracing::error!(error = %e, "challenge keys stay as they were"),
                    },
                    Err(mistakes) => {
                        for mistake in mistakes {
                            tracing::error!(%mistake, "secrets stay as they were");
                        }
                    }
                }
            }
        }
    }
}

/// Waits until nobody is being served, at most `grace`.
async fn drain(toll: &Toll, grace: Duration) {
    let inside = || toll.metrics.inflight.with_label_values(&["requests"]).get();
    let deadline = tokio::time::Instant::now() + grace;
    while inside() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if inside() > 0 {
        tracing::warn!(requests = inside(), "grace is over: cutting what is left");
    }
}
