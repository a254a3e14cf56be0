//! `pontage.toml`: what stands still while the gate runs. Read once; every mistake at once.
//!
//! Secrets are only named here (`env:NAME`, `file:PATH`); [`Conf::read_secrets`] fetches those of the gate itself, each rail
//! fetches its own. What a kind of rail needs stands in [`RailKind`]; what it can do for the rules is told by
//! [`Conf::offered`].

use crate::catalogue::RailAbility;
use crate::ids::RailId;
use crate::money::Usd;
use crate::network::Family;
use crate::origin::{self, Origin};
use crate::secret::{Secret, SecretRef};
use crate::written::{Mistake, Page, Said, Section, Spot, Value, plain_name};
use payee::address;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

mod payee;
mod places;
mod session;
mod sponsor;
mod x402;

pub use session::SessionConf;
pub use sponsor::SponsorConf;
pub use x402::{AuthConf, FacilitatorConf, Place, X402Conf};

/// Fewest bytes of a challenge key: the output size of the HMAC-SHA-256 it is for.
const SHORTEST_KEY: usize = 32;
/// Every Tempo stablecoin (TIP-20) counts in millionths.
const TEMPO_DECIMALS: u8 = 6;

/// Rails by the name routes use.
pub type Rails = BTreeMap<RailId, RailAbility>;

/// Everything in `pontage.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    /// `[listen]`.
    pub listen: Listen,
    /// `[secrets]`: the ring that signs offers; the first signs, all verify.
    pub challenge_keys: Vec<Said<SecretRef>>,
    /// `[secrets]`: Ed25519 seed of receipts, 64 hex digits.
    pub receipt_key: Said<SecretRef>,
    /// `[secrets]`: whoever shows it may act on channels from another machine.
    pub admin_token: Option<Said<SecretRef>>,
    /// `[store]`.
    pub store: StoreConf,
    /// `[rail.…]`, in the order of the file.
    pub rails: Vec<RailConf>,
    /// Sentences for the log: allowed, but worth a second look.
    pub warnings: Vec<String>,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where clients connect.
    pub address: SocketAddr,
    /// How clients see the gate, without a trailing slash. Resource URLs come from here, never from `Host`.
    pub public_url: String,
    /// Host of `public_url`: the realm of every challenge. ASCII, no `|`.
    pub realm: String,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are.
    pub admin: SocketAddr,
    /// TLS, when the gate terminates it itself.
    pub tls: Option<TlsFiles>,
    /// Worker threads of the proxy.
    pub threads: usize,
    /// Time between SIGTERM and the closed door in which all is served as before, while `/readyz` says already that the gate goes.
    pub drain_seconds: u64,
    /// Longest time between the closed door and the end.
    pub grace_seconds: u64,
    /// Flood limits.
    pub limits: ListenLimits,
    /// Origins that browsers may call from; `*` is all of them, empty is none.
    pub cors: Vec<String>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: String,
    /// Private key.
    pub key: String,
}

/// `listen.limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenLimits {
    /// Open connections of one address.
    pub connections_per_ip: usize,
    /// Open connections altogether.
    pub connections: usize,
    /// Unpaid requests of one address in a second.
    pub unpaid_per_ip_per_second: u32,
    /// Unpaid requests altogether in a second.
    pub unpaid_per_second: u32,
    /// Until the request head is complete.
    pub header_seconds: u64,
    /// Until the request body is complete.
    pub body_seconds: u64,
    /// Request bodies held in memory, in MiB; an eighth of it may be bodies that are still arriving from one address.
    pub bodies_in_flight_mib: usize,
    /// Concurrent streams of one HTTP/2 connection.
    pub h2_streams: u32,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConf {
    /// The database file; with Redis, this gate's own journal.
    pub path: PathBuf,
    /// Kind `redis`; `None` is kind `embedded`.
    pub redis: Option<RedisConf>,
}

/// What kind `redis` needs beside the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConf {
    /// `redis://…` or `rediss://…`. A reference, because it often holds a password.
    pub url: Said<SecretRef>,
    /// Serve although a crash of Redis may lose what it confirmed.
    pub accept_data_loss: bool,
}

/// `[rail.<name>]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailConf {
    /// The section's name, first half of its rail ids.
    pub name: String,
    /// Its kind and settings.
    pub kind: RailKind,
}

/// Kinds of rails of this build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RailKind {
    /// `mpp-tempo`.
    MppTempo(TempoConf),
    /// `x402`.
    X402(X402Conf),
}

/// Settings of kind `mpp-tempo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TempoConf {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// JSON-RPC address. A reference, because such addresses often carry a key.
    pub rpc: SecretRef,
    /// The token that is paid with.
    pub currency: [u8; 20],
    /// Who is paid.
    pub recipient: [u8; 20],
    /// Key that settles and closes channels; not used by charges. There whenever `session` is.
    pub settle_key: Option<SecretRef>,
    /// Whether a transaction the payer sent itself (`hash`) is taken as payment.
    pub accept_push: bool,
    /// Terms of channels; `None`: the rail has charges only.
    pub session: Option<SessionConf>,
    /// Who carries payers' transaction fees; `None`: they do.
    pub sponsor: Option<SponsorConf>,
}

impl TempoConf {
    /// Fetches the settle key: exactly 32 bytes, decoded. The error names the place, never what was found there.
    pub fn read_settle_key(&self) -> Result<Secret, String> {
        self.settle_key.as_ref().ok_or("`settle_key` is missing")?.read().and_then(seed)
    }
}

/// The gate's own secrets.
#[derive(Clone)]
pub struct Secrets {
    /// The ring; never empty. The first signs, all verify.
    pub challenge_keys: Vec<Secret>,
    /// Ed25519 seed: exactly 32 bytes, decoded.
    pub receipt_key: Secret,
    /// What a header can carry, where there is one.
    pub admin_token: Option<Secret>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Conf {
    /// Reads and checks the file. The error lists every mistake, in order of line.
    pub fn load(path: &Path) -> Result<Self, Vec<Mistake>> {
        Self::inspect(path).1
    }

    /// As [`Conf::load`], with the rails that the file names even when something else in it is wrong, so that
    /// `pontage check` can go on to the rules; `None` when it cannot be read.
    pub fn inspect(path: &Path) -> (Option<Rails>, Result<Self, Vec<Mistake>>) {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let (rails, conf) = Self::inspect_text(&name, &text);
                (Some(rails), conf)
            }
            Err(why) => (None, Err(vec![Spot::file(&name).mistake(format!("cannot be read: {why}"))])),
        }
    }

    /// As [`Conf::inspect`], from memory. `name` is what mistakes call the file.
    pub fn inspect_text(name: &str, text: &str) -> (Rails, Result<Self, Vec<Mistake>>) {
        let page = Page::open(name, text);
        let (conf, known) = if page.is_broken() {
            // What stands in a broken file means nothing; only the names of its rails are worth having.
            let root = page.root();
            let rails = named_rails(&root);
            root.pass_over();
            (None, rails)
        } else {
            let root = page.root();
            (conf(&root), named_rails(&root))
        };
        let mut mistakes = page.close();
        mistakes.sort_by(|a, b| a.spot.cmp(&b.spot));
        match conf {
            Some(conf) if mistakes.is_empty() => (known, Ok(conf)),
            _ => (known, Err(mistakes)),
        }
    }

    /// Host of `public_url`.
    pub fn realm(&self) -> &str {
        &self.listen.realm
    }

    /// The parts in which another reading of the file says something else. Where it stands in the file is no difference.
    pub fn differs(&self, now: &Self) -> Vec<&'static str> {
        let keys =
            |conf: &Self| -> Vec<SecretRef> { conf.challenge_keys.iter().map(|key| key.value.clone()).collect() };
        let token = |conf: &Self| conf.admin_token.as_ref().map(|token| token.value.clone());
        let secrets =
            keys(self) != keys(now) || self.receipt_key.value != now.receipt_key.value || token(self) != token(now);
        let shared = |conf: &Self| conf.store.redis.as_ref().map(|r| (r.url.value.clone(), r.accept_data_loss));
        let store = self.store.path != now.store.path || shared(self) != shared(now);
        let parts = [
            ("listen", self.listen != now.listen),
            ("secrets", secrets),
            ("store", store),
            ("rail", self.rails != now.rails),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part).collect()
    }

    /// The rails that rules may name.
    pub fn offered(&self) -> Rails {
        let of = |rail: &RailConf| match &rail.kind {
            RailKind::MppTempo(tempo) => tempo_offers(&rail.name, tempo.session.is_some()),
            RailKind::X402(x402) => x402_offers(&rail.name, x402.network.family == Family::Solana, x402.asset.decimals),
        };
        self.rails.iter().flat_map(of).collect()
    }

    /// The most that one request is signed for on a rail where what was used of it is taken; `None` for other rails.
    pub fn ceiling(&self, rail: &RailId) -> Option<Usd> {
        let section = rail.as_str().strip_suffix("/upto")?;
        self.rails.iter().find(|conf| conf.name == section).and_then(|conf| match &conf.kind {
            RailKind::X402(x402) => Some(x402.ceiling),
            RailKind::MppTempo(_) => None,
        })
    }

    /// Fetches the gate's own secrets; at start, and again on SIGHUP for those kept in files. Mistakes name the place a
    /// secret should have come from, never what was found there.
    pub fn read_secrets(&self) -> Result<Secrets, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut fetch = |said: &Said<SecretRef>, read: fn(Secret) -> Result<Secret, String>| {
            said.value.read().and_then(read).map_err(|why| mistakes.push(said.spot.mistake(why))).ok()
        };
        let challenge_keys: Vec<_> = self.challenge_keys.iter().filter_map(|said| fetch(said, long_enough)).collect();
        let receipt_key = fetch(&self.receipt_key, seed);
        let admin_token = self.admin_token.as_ref().and_then(|said| fetch(said, token));
        match receipt_key {
            Some(receipt_key) if mistakes.is_empty() => Ok(Secrets { challenge_keys, receipt_key, admin_token }),
            _ => Err(mistakes),
        }
    }
}

fn long_enough(key: Secret) -> Result<Secret, String> {
    match key.expose().len() {
        length if length < SHORTEST_KEY => {
            Err(format!("the key has {length} bytes; at least {SHORTEST_KEY} are needed"))
        }
        _ => Ok(key),
    }
}

/// As long as a key, and nothing that a header cannot say.
fn token(token: Secret) -> Result<Secret, String> {
    match token.expose().iter().all(u8::is_ascii_graphic) {
        true => long_enough(token),
        false => Err("the token has a character that is no visible ASCII".to_owned()),
    }
}

/// Any wallet's way to write a key: with or without `0x`.
fn seed(digits: Secret) -> Result<Secret, String> {
    let mut seed = Zeroizing::new([0; 32]);
    let written = digits.expose();
    hex::decode_to_slice(written.strip_prefix(b"0x").unwrap_or(written), seed.as_mut_slice())
        .map(|()| Secret::new(seed.to_vec()))
        .map_err(|_| "the key is not 64 hex digits (32 bytes)".to_owned())
}

/// The rails of one section: charges always, sessions where it has terms for them.
fn tempo_offers(name: &str, sessions: bool) -> Vec<(RailId, RailAbility)> {
    let rail = |intent, fixed_amount| {
        (RailId::from(format!("{name}/{intent}")), RailAbility { fixed_amount, decimals: TEMPO_DECIMALS })
    };
    [Some(rail("charge", true)), sessions.then(|| rail("session", false))].into_iter().flatten().collect()
}

/// The rails of one section: `exact` always, `upto` on EVM networks.
fn x402_offers(name: &str, is_solana: bool, decimals: u8) -> Vec<(RailId, RailAbility)> {
    let rail =
        |scheme, fixed_amount| (RailId::from(format!("{name}/{scheme}")), RailAbility { fixed_amount, decimals });
    [Some(rail("exact", true)), (!is_solana).then(|| rail("upto", false))].into_iter().flatten().collect()
}

/// The rails a file names, whatever else is wrong with it.
fn named_rails(root: &Section<'_>) -> Rails {
    let Some(table) = root.take("rail").filter(Value::is_table).and_then(|v| v.section()) else { return Rails::new() };
    let sections = table.entries();
    let said = |value: &Value<'_>, key: &str, begins: &str| {
        let keys = value.is_table().then(|| value.section()).flatten();
        keys.is_some_and(|s| s.entries().iter().any(|(k, v)| *k == key && (begins.is_empty() || v.begins_with(begins))))
    };
    let offers = |(name, value): &(&str, Value<'_>)| match said(value, "kind", "x402") {
        true => x402_offers(name, said(value, "network", "solana"), 6),
        false => tempo_offers(name, said(value, "session", "")),
    };
    sections.iter().flat_map(offers).collect()
}

fn conf(root: &Section<'_>) -> Option<Conf> {
    let mut warnings = Vec::new();
    let listen = root.need("listen").and_then(|v| listen(&v.section()?, &mut warnings));
    let secrets = root.need("secrets").and_then(|v| secrets(&v.section()?));
    let store = root.need("store").and_then(|v| store(&v.section()?));
    let rails: Option<Vec<_>> = root.take("rail").map_or(Some(Vec::new()), |v| {
        let table = v.section()?;
        Some(table.entries().iter().filter_map(|(name, value)| rail(name, value)).collect())
    });
    for rail in rails.iter().flatten() {
        if let Some((key, why)) = rail.kind.pays_nobody() {
            warnings.push(format!("rail.{}.{key} {why}: `serve` refuses it", rail.name));
        }
        if let RailKind::X402(x402) = &rail.kind
            && matches!(x402.facilitator, FacilitatorConf::Remote { .. })
            && x402.rpc.is_none()
        {
            warnings.push(format!(
                "rail.{} has no `rpc`: when its facilitator breaks off, nobody can say what became of the money, and whoever paid it gets no answer",
                rail.name
            ));
        }
    }
    let (challenge_keys, receipt_key, admin_token) = secrets?;
    Some(Conf { listen: listen?, challenge_keys, receipt_key, admin_token, store: store?, rails: rails?, warnings })
}

fn listen(s: &Section<'_>, warnings: &mut Vec<String>) -> Option<Listen> {
    let address = s.take("address").map_or(Some(SocketAddr::from(([127, 0, 0, 1], 8402))), |v| socket(&v));
    let admin_at = s.take("admin");
    let admin_spot = admin_at.as_ref().map(|v| v.spot().clone());
    let admin = admin_at.as_ref().map_or(Some(SocketAddr::from(([127, 0, 0, 1], 9402))), socket);
    if let (Some(address), Some(admin)) = (address, admin) {
        if address == admin {
            admin_at
                .as_ref()
                .map_or_else(|| s.wrong("`admin` is the same as `address`"), |v| v.wrong("is the same as `address`"));
        }
        if !admin.ip().is_loopback() {
            let line = admin_spot.and_then(|spot| spot.line).map_or(String::new(), |line| format!(" (line {line})"));
            warnings.push(format!(
                "listen.admin{line} is {admin}: metrics, status and the list of channels are open to whoever can reach it"
            ));
        }
    }
    let public = s.need("public_url").and_then(|v| public_url(&v));
    let tls = s.take("tls").map(|v| {
        let table = v.section()?;
        let file = |key| table.need(key).and_then(|v| Some(v.text()?.to_owned()));
        let (cert, key) = (file("cert"), file("key"));
        Some(TlsFiles { cert: cert?, key: key? })
    });
    let threads = s.take("threads").map_or(Some(2), |v| v.count(1..=1024));
    let drain_seconds = s.take("drain_seconds").map_or(Some(0), |v| v.count(0..=600));
    let grace_seconds = s.take("grace_seconds").map_or(Some(30), |v| v.count(1..=3600));
    let limits = match s.take("limits") {
        Some(v) => v.section().and_then(|table| limits(Some(&table))),
        None => limits(None),
    };
    let cors = s.take("cors").map_or(Some(Vec::new()), |v| cors(&v.section()?));
    let (public_url, realm) = public?;
    warnings.extend(address.and_then(|address| as_strangers_see(&public_url, &realm, address)));
    Some(Listen {
        address: address?,
        public_url,
        realm,
        admin: admin?,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        threads: usize::try_from(threads?).ok()?,
        drain_seconds: drain_seconds?,
        grace_seconds: grace_seconds?,
        limits: limits?,
        cors: cors?,
    })
}

fn socket(value: &Value<'_>) -> Option<SocketAddr> {
    value.read(|text| text.parse::<SocketAddr>().map_err(|_| "is not an address and port such as \"127.0.0.1:8402\""))
}

/// The address without a trailing slash, and the realm. [`Origin`] lets no `|`, space, control or non-ASCII character into a
/// host, so none reaches the realm, where `|` would separate signed terms.
fn public_url(value: &Value<'_>) -> Option<(String, String)> {
    let origin = value.read(|text| match Origin::parse(text) {
        Ok(origin) if !origin.prefix.is_empty() => Err("has a path; routes have paths"),
        other => other,
    })?;
    Some((value.text()?.trim_end_matches('/').to_owned(), origin.host))
}

/// What is odd about the name of a gate that others can reach.
fn as_strangers_see(public_url: &str, realm: &str, address: SocketAddr) -> Option<String> {
    let bare = origin::bare(realm);
    let is_here = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let why = match public_url.split_once("://")?.0 {
        _ if is_here => "means its own machine to every caller",
        scheme if scheme.eq_ignore_ascii_case("http") => {
            "is plain HTTP: whoever is on the way sees and changes what is paid for"
        }
        _ => return None,
    };
    (!address.ip().is_loopback())
        .then(|| format!("listen.public_url is {public_url}, which {why}, and the gate listens on {address}"))
}

fn limits(s: Option<&Section<'_>>) -> Option<ListenLimits> {
    let count = |key, most, usual| s.and_then(|s| s.take(key)).map_or(Some(usual), |v| v.count(1..=most));
    let connections_per_ip = count("connections_per_ip", 1_000_000, 256);
    let connections = count("connections", 1_000_000, 10_000);
    let unpaid_per_ip_per_second = count("unpaid_per_ip_per_second", 1_000_000, 50);
    let unpaid_per_second = count("unpaid_per_second", 10_000_000, 5_000);
    let header_seconds = count("header_seconds", 600, 10);
    let body_seconds = count("body_seconds", 3600, 30);
    let bodies_in_flight_mib = count("bodies_in_flight_mib", 1 << 20, 256);
    let h2_streams = count("h2_streams", 10_000, 100);
    // The ranges above fit every target this builds for; a value that did not would be refused, not cut.
    Some(ListenLimits {
        connections_per_ip: connections_per_ip?.try_into().ok()?,
        connections: connections?.try_into().ok()?,
        unpaid_per_ip_per_second: unpaid_per_ip_per_second?.try_into().ok()?,
        unpaid_per_second: unpaid_per_second?.try_into().ok()?,
        header_seconds: header_seconds?,
        body_seconds: body_seconds?,
        bodies_in_flight_mib: bodies_in_flight_mib?.try_into().ok()?,
        h2_streams: h2_streams?.try_into().ok()?,
    })
}

fn cors(s: &Section<'_>) -> Option<Vec<String>> {
    let mut origins = Vec::new();
    for item in s.need("origins")?.list()? {
        let origin = item.read(|text| match Origin::parse(text) {
            _ if text == "*" => Ok(text.to_owned()),
            // A browser sends no trailing slash, and compares letter by letter.
            Ok(origin) if origin.prefix.is_empty() && !text.ends_with('/') => Ok(text.to_ascii_lowercase()),
            Ok(_) => Err("has a path or a trailing slash; an origin is scheme, host and port"),
            Err(why) => Err(why),
        });
        origins.extend(origin);
    }
    Some(origins)
}

/// Challenge keys, the key of receipts, and the token of the admin address.
type Own = (Vec<Said<SecretRef>>, Said<SecretRef>, Option<Said<SecretRef>>);

fn secrets(s: &Section<'_>) -> Option<Own> {
    let keys = s.need("challenge_keys").and_then(|v| {
        let items = v.list()?;
        if items.is_empty() {
            v.wrong("at least one key is needed: the first signs offers, all verify them");
        }
        Some(items.iter().filter_map(|item| Some(item.said(item.secret()?))).collect())
    });
    let receipt = s.need("receipt_key").and_then(|v| Some(v.said(v.secret()?)));
    let token = match s.take("admin_token") {
        Some(v) => Some(v.said(v.secret()?)),
        None => None,
    };
    Some((keys?, receipt?, token))
}

fn store(s: &Section<'_>) -> Option<StoreConf> {
    let shared = s.take("kind").map_or(Some(false), |v| v.word(&[("embedded", false), ("redis", true)]))?;
    let redis = if shared {
        let url = s.need("url").and_then(|v| Some(v.said(v.secret()?)));
        let accept_data_loss = s.take("accept_data_loss").map_or(Some(false), |v| v.flag());
        Some(url.zip(accept_data_loss).map(|(url, accept_data_loss)| RedisConf { url, accept_data_loss }))
    } else {
        for (key, why) in [
            ("url", "belongs to kind = \"redis\": the embedded store is a file, see `path`"),
            ("accept_data_loss", "belongs to kind = \"redis\": the embedded store loses nothing it has confirmed"),
        ] {
            if let Some(value) = s.take(key) {
                value.wrong(why);
            }
        }
        None
    };
    let path = s.take("path").map_or(Some("var/pontage.redb"), |v| v.text())?;
    Some(StoreConf { path: PathBuf::from(path), redis: redis.map_or(Some(None), |r| r.map(Some))? })
}

fn rail(name: &str, value: &Value<'_>) -> Option<RailConf> {
    if let Err(why) = plain_name(name) {
        value.wrong(format!("{name:?} {why}"));
    }
    let s = value.section()?;
    let kind = s.need("kind");
    match kind.as_ref().and_then(|v| v.text()) {
        Some("mpp-tempo") => Some(RailConf { name: name.to_owned(), kind: RailKind::MppTempo(tempo(&s)?) }),
        Some("x402") => Some(RailConf { name: name.to_owned(), kind: RailKind::X402(x402::read(&s)?) }),
        other => {
            if let (Some(kind), Some(other)) = (&kind, other) {
                kind.wrong(format!("{other:?} is not in this build: \"mpp-tempo\" or \"x402\""));
            }
            s.pass_over();
            None
        }
    }
}

fn tempo(s: &Section<'_>) -> Option<TempoConf> {
    let chain_id = s.need("chain_id").and_then(|v| v.count(1..=u64::MAX));
    let rpc = s.need("rpc").and_then(|v| v.secret());
    let currency = s.need("currency").and_then(|v| v.read(address));
    let recipient = s.need("recipient").and_then(|v| {
        let recipient = v.read(address);
        if recipient.is_some() && recipient == currency {
            v.wrong(payee::IS_THE_TOKEN);
        }
        recipient
    });
    let settle_key = s.take("settle_key").map_or(Some(None), |v| v.secret().map(Some));
    let accept_push = s.take("accept_push").map_or(Some(false), |v| v.flag());
    let session = s.take("session").map(|v| {
        if settle_key == Some(None) {
            v.wrong("needs `settle_key` beside it: channels are settled and closed with that key");
        }
        v.section().and_then(|terms| session::read(&terms))
    });
    let sponsor =
        s.take("sponsor").map(|v| sponsor::read(&v, settle_key.as_ref().and_then(Option::as_ref), accept_push));
    Some(TempoConf {
        chain_id: chain_id?,
        rpc: rpc?,
        currency: currency?,
        recipient: recipient?,
        settle_key: settle_key?,
        accept_push: accept_push?,
        session: session.map_or(Some(None), |terms| terms.map(Some))?,
        sponsor: sponsor.map_or(Some(None), |terms| terms.map(Some))?,
    })
}

#[cfg(test)]
mod tests;
