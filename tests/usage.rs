//! `tests/usage.toml` says, byte by byte, how backends report what they used, what is billed for it, and what that comes to at one
//! example's prices. Every case goes through the meter, through a running gate, and through a session; `docs/usage.md` is rendered from it.
//!
//! After a change: `PONTAGE_RENDER=1 cargo test --test usage`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::channels::SessionBed;
use common::{Backend, Gate, GateOptions, RawReply, Reply, Script, Step, raw};
use pontage::catalogue::OnLeave;
use pontage::flow::price;
use pontage::limits::Spelling;
use pontage::money::{PerToken, Usd};
use pontage::openai::meter::Meter;
use pontage::openai::reply;
use pontage::openai::usage::{Bounds, Verdict};
use pontage::rules::price::{Prices, Rates, Speeds};
use pontage::surface::Surface;
use pontage::upstream::profile::{self, Profile};
use pontage::usage::{Scope, ServiceTier, Usage};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PAGE: &str = "docs/usage.md";
const BEGIN: &str = "<!-- rendered from tests/usage.toml -->\n";
const END: &str = "<!-- end -->";
const FREE: &str = "/free/chat/completions";
/// What every row of the table is priced at, as a row of LiteLLM's file; per million tokens $1 in, $8 out.
const LIST: &str = r#"{"example": {"input_cost_per_token": 1e-06, "output_cost_per_token": 8e-06, "output_cost_per_reasoning_token": 1e-05,
  "cache_read_input_token_cost": 1e-07, "cache_creation_input_token_cost": 1.25e-06, "cache_creation_input_token_cost_above_1hr": 2e-06,
  "input_cost_per_audio_token": 2e-05, "output_cost_per_audio_token": 4e-05, "input_cost_per_image_token": 3e-06,
  "input_cost_per_token_flex": 5e-07, "output_cost_per_token_flex": 4e-06,
  "input_cost_per_token_priority": 2e-06, "output_cost_per_token_priority": 1.6e-05}}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    profile: String,
    #[serde(default = "chat")]
    surface: String,
    case: String,
    source: String,
    #[serde(default = "one")]
    n: u64,
    #[serde(default = "thousand")]
    most: u64,
    #[serde(default)]
    json: bool,
    #[serde(default = "lf")]
    line_ends: String,
    pad: Option<usize>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    reply: String,
    usage: Option<Counts>,
    cost: Option<String>,
    #[serde(default)]
    hidden: Vec<String>,
    #[serde(default)]
    failed: bool,
    done: Option<bool>,
    #[serde(default)]
    absurd: bool,
    #[serde(default)]
    too_long: bool,
    #[serde(default)]
    tier: ServiceTier,
    stated: Option<String>,
    #[serde(default = "ok")]
    status: u16,
}

fn chat() -> String {
    Surface::Chat.word().into()
}
fn one() -> u64 {
    1
}
fn thousand() -> u64 {
    1000
}
fn lf() -> String {
    "\n".into()
}
fn ok() -> u16 {
    200
}

/// As [`Usage`], where what is not said is none.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    prompt: u64,
    completion: u64,
    #[serde(default)]
    cached: u64,
    #[serde(default)]
    reasoning: u64,
    #[serde(default)]
    cache_write: u64,
    #[serde(default)]
    cache_write_hour: u64,
    #[serde(default)]
    audio_input: u64,
    #[serde(default)]
    audio_output: u64,
    #[serde(default)]
    image_input: u64,
}

impl Counts {
    fn usage(self) -> Usage {
        let Self { prompt, completion, cached, reasoning, cache_write, cache_write_hour, .. } = self;
        let Self { audio_input, audio_output, image_input, .. } = self;
        Usage {
            prompt,
            completion,
            cached,
            reasoning,
            cache_write,
            cache_write_hour,
            audio_input,
            audio_output,
            image_input,
        }
    }

    /// As `pontage_tokens_total` shows them.
    fn kinds(self) -> [(&'static str, u64); 8] {
        [
            ("prompt", self.prompt),
            ("completion", self.completion),
            ("cached", self.cached),
            ("reasoning", self.reasoning),
            ("cache_write", self.cache_write),
            ("audio_input", self.audio_input),
            ("audio_output", self.audio_output),
            ("image_input", self.image_input),
        ]
    }
}

impl Case {
    fn profile(&self) -> &'static Profile {
        profile::lookup(&self.profile).unwrap_or_else(|| panic!("{}: no such profile", self.profile))
    }

    fn name(&self) -> String {
        format!("{}, {}: {}", self.profile, self.surface, self.case)
    }

    fn surface(&self) -> Surface {
        surface(&self.surface)
    }

    /// What is billed, in dollars.
    fn cost(&self) -> Usd {
        self.cost.as_deref().map_or(Usd::ZERO, |usd| Usd::parse(usd).unwrap())
    }

    /// A request that such a reply answers.
    fn ask(&self, wants_usage: bool) -> Value {
        let (model, stream, most) = (&self.profile, !self.json, self.most);
        let mut hi = json!([{"role": "user", "content": "hi"}]);
        if self.usage.is_some_and(|usage| usage.image_input > 0) {
            let picture = json!({"type": "image_url", "image_url": {"url": "https://pictures.test/a.png"}});
            hi[0]["content"] = json!([picture]);
        }
        match self.surface() {
            Surface::Responses => json!({"model": model, "input": "hi", "stream": stream, "max_output_tokens": most}),
            Surface::Messages => json!({"model": model, "messages": hi, "stream": stream, "max_tokens": most}),
            _ => {
                let mut body =
                    json!({"model": model, "messages": hi, "stream": stream, "n": self.n, "max_tokens": most});
                if wants_usage && stream {
                    body["stream_options"] = json!({"include_usage": true});
                }
                body
            }
        }
    }

    fn sent(&self, text: &str) -> String {
        text.replace('\n', &self.line_ends).replace("{pad}", &"x".repeat(self.pad.unwrap_or(0)))
    }

    /// What a client is to get.
    fn seen(&self, wants_usage: bool) -> String {
        let mut seen = self.sent(&self.reply);
        for hidden in self.hidden.iter().filter(|_| !wants_usage).map(|hidden| self.sent(hidden)) {
            assert!(seen.contains(&hidden), "{}: hides what it does not hold", self.name());
            seen = seen.replace(&hidden, "");
        }
        seen
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            choices: self.n,
            prompt: None,
            completion: Some(self.n * self.most),
            shape: self.profile().ability.shape,
        }
    }

    fn says_done(&self) -> bool {
        self.done.unwrap_or(!self.json)
    }
}

fn surface(word: &str) -> Surface {
    Surface::ALL.into_iter().find(|surface| surface.word() == word).unwrap_or_else(|| panic!("{word}: no such surface"))
}

/// Where the gate of the test gives away what a surface answers, and where it sells it.
fn path(surface: Surface, paid: bool) -> String {
    let under = if paid { "paid" } else { "free" };
    surface.upstream_path().replacen("v1", under, 1)
}

/// The prices of [`LIST`], written once more.
fn prices() -> Prices {
    let per = |usd: &str| PerToken::per_million(usd).unwrap();
    let standard = Rates {
        input: per("1"),
        cached_input: per("0.1"),
        cache_write: per("1.25"),
        cache_write_hour: per("2"),
        output: per("8"),
        reasoning: per("10"),
        audio_input: Some(per("20")),
        audio_output: Some(per("40")),
        image_input: Some(per("3")),
    };
    let at = |input: &str, output: &str| {
        let (input, output) = (per(input), per(output));
        Rates { input, output, reasoning: output, ..standard }
    };
    let base = Speeds { standard, flex: at("0.5", "4"), priority: at("2", "16") };
    Prices { per_request: Usd::ZERO, base, steps: Vec::new() }
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn cases() -> Vec<Case> {
    toml::from_str::<Table>(&text("tests/usage.toml")).unwrap_or_else(|e| panic!("tests/usage.toml: {e}")).case
}

/// Feeds a stream in reads of `size` bytes. `None`: an event is larger than is kept.
fn metered(case: &Case, size: usize, wants_usage: bool) -> Option<(String, Verdict)> {
    let (mut meter, mut out) = (Meter::new(wants_usage, case.bounds()).of(case.surface()), Vec::new());
    // An event that lies in one read is not kept; a connection is read in far smaller pieces.
    let size = if case.pad.is_some() { size.clamp(4096, 65_536) } else { size };
    for read in case.sent(&case.reply).as_bytes().chunks(size) {
        meter.feed(Bytes::copy_from_slice(read), &mut out).ok()?;
    }
    meter.finish();
    out.extend(meter.take_done());
    Some((String::from_utf8(out.concat()).unwrap(), meter.verdict()))
}

fn judge(case: &Case, verdict: &Verdict, why: &str) {
    assert_eq!(verdict.usage, case.usage.map(Counts::usage), "{why}");
    assert_eq!(verdict.reported, case.usage.is_some(), "{why}");
    assert_eq!((verdict.failed, verdict.absurd), (case.failed, case.absurd), "{why}: failed, absurd");
    assert_eq!(verdict.saw_done, case.says_done(), "{why}: [DONE]");
    assert_eq!(verdict.tier, case.tier, "{why}");
    let cost = verdict.usage.map(|usage| price::cost(&prices(), &usage, verdict.tier, Usd::ZERO).unwrap());
    assert_eq!(cost.unwrap_or(Usd::ZERO), case.cost(), "{why}: its cost");
    assert_eq!(verdict.stated, case.stated.as_deref().map(|usd| Usd::parse(usd).unwrap()), "{why}");
}

#[test]
fn the_meter_reads_every_way_of_reporting_usage_however_its_bytes_are_cut() {
    for case in cases().iter().filter(|case| case.content_type.is_none()) {
        let name = case.name();
        if case.json {
            judge(case, &reply::whole(case.surface(), case.sent(&case.reply).as_bytes(), case.bounds()), &name);
            continue;
        }
        for (size, wants_usage) in
            [(usize::MAX, true), (usize::MAX, false), (7, true), (7, false), (1, true), (1, false)]
        {
            let why = format!("{name}, asked for usage: {wants_usage}, reads of {size}");
            let Some((seen, verdict)) = metered(case, size, wants_usage) else {
                assert!(case.too_long, "{why}: too long");
                continue;
            };
            assert!(!case.too_long, "{why}: an event was kept that is too long");
            // What is compressed is never shown to the meter by the gate.
            if case.content_encoding.is_none() {
                judge(case, &verdict, &why);
                assert_eq!(seen, case.seen(wants_usage), "{why}");
            }
        }
    }
}

#[test]
fn every_profile_and_every_row_of_the_notes_has_a_case() {
    let cases = cases();
    let mut names: Vec<String> = cases.iter().map(Case::name).collect();
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two cases have one name");
    for profile in profile::ALL {
        let own = |json| cases.iter().any(|case| case.profile == profile.name && case.json == json);
        assert!(own(false), "{}: no stream", profile.name);
        for surface in [Surface::Chat, Surface::Responses, Surface::Messages] {
            let mut of = cases.iter().filter(|case| case.profile == profile.name && case.surface() == surface);
            let has = profile.ability.surfaces.contains(&surface);
            assert_eq!(of.any(|case| !case.json), has, "{}: {surface:?}", profile.name);
        }
    }
    for row in 1..=20 {
        let row = format!("2.2 row {row}");
        assert!(cases.iter().any(|case| case.source.split("; ").any(|source| source == row)), "{row}");
    }
}

/// Beside the default rules: a model of each profile, all of them on one backend, given away or sold on every surface that has a case of
/// that profile.
fn shop(options: GateOptions, paid: bool) -> GateOptions {
    let [mut pools, mut models, mut tiers, mut routes] = [(); 4].map(|()| String::new());
    for profile in profile::ALL {
        let (name, url) = (profile.name, &options.upstream);
        write!(pools, "[pool.{name}]\nprofile = \"{name}\"\nservers = [\"{url}\"]\n\n").unwrap();
        let price = "price_as = \"example\"\nvocabulary = \"o200k\"";
        write!(models, "[model.{name}]\nupstream = \"up\"\npool = \"{name}\"\n{price}\n\n").unwrap();
    }
    let cases = cases();
    for surface in [Surface::Chat, Surface::Responses, Surface::Messages] {
        let sold = |name: &str| cases.iter().any(|case| case.profile == name && case.surface() == surface);
        let names = profile::NAMES.into_iter().filter(|name| sold(name)).map(|name| format!("{name:?}"));
        let (names, word) = (names.collect::<Vec<_>>().join(", "), surface.word());
        // What a picture may cost is no part of what is charged: the backend counts it.
        let charge =
            "max_output_tokens = 1000\nmax_n = 4\nimage_url = { flat = \"0.01\" }\ncharge = { flat = \"0.02\" }";
        write!(tiers, "[tier.of-{word}]\nmodels = [{names}]\n{charge}\n\n").unwrap();
        let access = if paid { "accept = [\"tempo/session\"]" } else { "access = \"free\"" };
        let path = path(surface, paid);
        write!(routes, "[[route]]\npath = \"{path}\"\nsurface = \"{word}\"\ntier = \"of-{word}\"\n{access}\n\n")
            .unwrap();
    }
    let beside = [
        ("pools.toml", "[pool.gpt-oss]", pools),
        ("models.toml", "[model.\"openai/gpt-oss-120b\"]", models),
        ("tiers.toml", "[tier.standard]", tiers),
        ("routes.toml", "[[route]]\npath = \"/v1/models\"", routes),
    ];
    let options = options.rule("prices.toml", "registry = \"list.json\"\n").rule("list.json", LIST);
    beside.into_iter().fold(options, |options, (file, anchor, more): (_, &str, String)| {
        options.rule_edit(file, anchor, &format!("{more}{anchor}"))
    })
}

/// A gate that gives it all away.
async fn gate(backend: &Backend) -> Gate {
    let options = shop(GateOptions::new("http://127.0.0.1:1", &backend.url()), false);
    Gate::start(options.wait(common::gate::Wait::Alive)).await
}

/// The reply as the backend of the test sends it, in pieces of `size` bytes.
fn scripted(case: &Case, size: usize) -> Reply {
    let body = case.sent(&case.reply);
    let fitting = if case.json { "application/json" } else { "text/event-stream" };
    let kind = case.content_type.as_deref().unwrap_or(fitting);
    let encoding = case.content_encoding.as_ref().map_or(String::new(), |name| format!("content-encoding: {name}\r\n"));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{encoding}transfer-encoding: chunked\r\n\r\n");
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let pieces = body.as_bytes().chunks(size).map(|bytes| Step::Bytes(chunk(bytes)));
    let steps = std::iter::once(Step::Bytes(head.into_bytes())).chain(pieces);
    Reply::steps(steps.chain([Step::Bytes(b"0\r\n\r\n".to_vec())]))
}

/// Asks for what the case is about, on the free route.
async fn asked(gate: &Gate, case: &Case, wants_usage: bool) -> RawReply {
    let (path, body) = (path(case.surface(), false), case.ask(wants_usage));
    raw::exchange(gate.listen, &raw::post(&path, &[], body.to_string().as_bytes())).await
}

/// Tokens billed so far and replies by who counted, by name and label.
async fn books(gate: &Gate, profile: &str) -> BTreeMap<String, u64> {
    let (_, text) = gate.admin_get("/metrics").await.unwrap();
    let own = format!("=\"{profile}\"");
    let lines = text
        .lines()
        .filter(|line| line.starts_with("pontage_tokens_total{") || line.starts_with("pontage_usage_total{"));
    let lines = lines.filter(|line| line.contains(&own)).filter_map(|line| line.rsplit_once(' '));
    lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gate_bills_what_the_table_says_and_hides_what_was_not_asked_for() {
    let backend = Backend::start(Script::default()).await;
    let gate = gate(&backend).await;
    let cases = cases();
    for case in &cases {
        // A reply of megabytes in pieces of seven bytes would be a test of patience.
        let small = if case.pad.is_some() { 64 * 1024 } else { 7 };
        for (size, wants_usage) in [(1 << 22, false), (small, true)] {
            let why = format!("{}, asked for usage: {wants_usage}, pieces of {size}", case.name());
            let before = books(&gate, &case.profile).await;
            backend.next(scripted(case, size));
            let got = asked(&gate, case, wants_usage).await;
            assert_eq!(got.status, case.status, "{why}: {}", got.text());
            if case.status == 200 {
                assert_eq!(got.text(), case.seen(wants_usage), "{why}");
            }
            let mut want = before.clone();
            let mut bill = |name: String, n: u64| *want.entry(name).or_default() += n;
            if let Some(counts) = case.usage {
                for (kind, n) in counts.kinds() {
                    bill(format!("pontage_tokens_total{{kind=\"{kind}\",model=\"{}\"}}", case.profile), n);
                }
            }
            if case.status == 200 {
                let source = match (case.usage, case.absurd) {
                    (Some(_), _) => "reported",
                    (None, true) => "absurd",
                    (None, false) => "missing",
                };
                bill(format!("pontage_usage_total{{pool=\"{}\",source=\"{source}\"}}", case.profile), 1);
            }
            let mut after = books(&gate, &case.profile).await;
            // A series that never counted may be there or not.
            for books in [&mut want, &mut after] {
                books.retain(|_, n| *n > 0);
            }
            assert_eq!(after, want, "{why}");
            // Five failures in a row would rest the server.
            let good =
                cases.iter().find(|good| good.profile == case.profile && good.status == 200 && good.pad.is_none());
            if let (true, Some(good)) = (case.status != 200, good) {
                backend.next(scripted(good, 1 << 22));
                assert_eq!(asked(&gate, good, false).await.status, 200, "after {why}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_charged_what_the_table_says_of_every_row() {
    const SIGNED: u128 = 200_000;
    let bed = SessionBed::with(|options| shop(options, true)).await;
    // A channel takes ten vouchers a second.
    let mut channels = Vec::new();
    for _ in 0..6 {
        channels.push(bed.channel(9_000_000, 1_000).await.0);
    }
    for (turn, case) in cases().iter().enumerate() {
        let channel = &channels[turn % channels.len()];
        let (path, body, why) = (path(case.surface(), true), case.ask(false), case.name());
        let (offer, _) = bed.offer(&path, &body).await;
        let credential = channel.voucher_credential(&offer, SIGNED + 1_000 * turn as u128);
        let before = bed.charged(&channel.id);
        bed.backend.next(scripted(case, 1 << 22));
        let end = std::time::Instant::now() + Duration::from_secs(30);
        let got = loop {
            let reply = bed.post(&path, &[("authorization", &credential)], body.to_string().as_bytes()).await;
            if reply.status != 429 {
                break reply;
            }
            assert!(std::time::Instant::now() < end, "{why}: told to wait for ever");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        assert_eq!(got.status, case.status, "{why}: {}", got.text());
        let due = case.cost().to_atoms(6).unwrap().0;
        assert_eq!(bed.charged(&channel.id) - before, due, "{why}: {}", got.text());
    }
    let channels: Vec<_> = channels.iter().collect();
    bed.close(&channels).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_backend_is_asked_in_its_own_words() {
    let backend = Backend::start(Script::default()).await;
    let gate = gate(&backend).await;
    for profile in profile::ALL {
        let ability = profile.ability;
        let n = ability.most_choices.unwrap_or(2);
        let mut body = json!({
            "model": profile.name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "n": n,
            "seed": 1, "user": "u", "stop": ["x"],
            "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true, "include_obfuscation": false},
        });
        let got = raw::exchange(gate.listen, &raw::post(FREE, &[], body.to_string().as_bytes())).await;
        assert_eq!(got.status, 200, "{}: {}", profile.name, got.text());
        let asked = backend.last().json();
        let limits: Vec<&str> = ["max_tokens", "max_completion_tokens", "n_predict", "max_new_tokens"]
            .into_iter()
            .filter(|name| !asked[name].is_null())
            .collect();
        let own = if ability.spelling == Spelling::MaxTokens { "max_tokens" } else { "max_completion_tokens" };
        assert_eq!(limits, [own], "{}: one limit", profile.name);
        assert_eq!(
            (&asked[own], &asked["n"], &asked["stop"]),
            (&json!(9), &json!(n), &json!(["x"])),
            "{}",
            profile.name
        );
        for name in ["seed", "user"] {
            assert_eq!(asked[name].is_null(), ability.withheld.contains(&name), "{}: {name}", profile.name);
        }
        let options = &asked["stream_options"];
        assert_eq!(options["include_usage"], true, "{}", profile.name);
        assert_eq!(options["continuous_usage_stats"] == true, ability.continuous_usage, "{}", profile.name);
        let kept = !ability.withheld.contains(&"include_obfuscation");
        assert_eq!(options["include_obfuscation"] == false, kept, "{}", profile.name);
        if let Some(most) = ability.most_choices {
            let heard = backend.requests().len();
            body["n"] = json!(most + 1);
            let got = raw::exchange(gate.listen, &raw::post(FREE, &[], body.to_string().as_bytes())).await;
            assert_eq!((got.status, backend.requests().len()), (400, heard), "{}: more than it makes", profile.name);
        }
    }
}

fn billed(case: &Case) -> String {
    let Some(counts) = case.usage else {
        return match (case.status, case.absurd) {
            (502, _) => "nothing: 502, no answer came".into(),
            (_, true) => "no figure that can be: `missing_usage`, alarm".into(),
            _ => "no figure: `missing_usage`".into(),
        };
    };
    let mut said = format!("prompt {}, output {}", counts.prompt, counts.completion);
    let parts: Vec<String> = counts.kinds()[2..]
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(kind, n)| format!("{} {n}", kind.replace('_', " ")))
        .collect();
    if !parts.is_empty() {
        write!(said, " ({})", parts.join(", ")).unwrap();
    }
    if case.tier != ServiceTier::Standard {
        write!(said, "; speed {:?}", case.tier).unwrap();
    }
    if let Some(stated) = &case.stated {
        write!(said, "; states ${stated}").unwrap();
    }
    said
}

fn profiles() -> String {
    let mut out = String::from(
        "| profile | surfaces | limit on output | most choices | running usage | figures | when the client leaves | not sent |\n|---|---|---|---|---|---|---|---|\n",
    );
    for profile in profile::ALL {
        let ability = profile.ability;
        let limit = match ability.spelling {
            Spelling::MaxTokens => "`max_tokens`",
            Spelling::MaxCompletionTokens => "`max_completion_tokens`",
        };
        let choices = match (ability.counts_all, ability.most_choices) {
            (false, _) => "1; in streams of chat any".to_owned(),
            (true, most) => most.map_or("–".to_owned(), |n| n.to_string()),
        };
        let mut figures = match (ability.shape.finals, ability.shape.running) {
            (Scope::Choice, _) => "one for each choice",
            (_, Scope::Reply) => "the newest is for all",
            _ => "one at the end",
        }
        .to_owned();
        if ability.shape.output_in_total {
            figures += "; output may be in the total only";
        }
        let leave = match ability.on_leave {
            OnLeave::Drain => "heard to the end",
            OnLeave::Cancel => "hung up on",
        };
        let withheld: Vec<String> = ability.withheld.iter().map(|name| format!("`{name}`")).collect();
        let withheld = if withheld.is_empty() { "–".to_owned() } else { withheld.join(", ") };
        let running = if ability.continuous_usage { "asked for" } else { "–" };
        let surfaces: Vec<_> = ability.surfaces.iter().filter(|s| **s != Surface::Models).map(|s| s.word()).collect();
        let surfaces = surfaces.join(", ");
        let name = profile.name;
        writeln!(out, "| `{name}` | {surfaces} | {limit} | {choices} | {running} | {figures} | {leave} | {withheld} |")
            .unwrap();
    }
    out
}

#[test]
fn the_page_of_usage_is_rendered_from_the_cases_that_are_run() {
    let cases = cases();
    let mut rendered = format!("\n## Profiles\n\n{}", profiles());
    for profile in profile::ALL {
        write!(rendered, "\n## `{}`\n", profile.name).unwrap();
        for surface in Surface::ALL {
            let mut own = cases.iter().filter(|c| c.profile == profile.name && c.surface() == surface).peekable();
            if own.peek().is_none() {
                continue;
            }
            write!(rendered, "\n| {} | billed | which costs |\n|---|---|---|\n", surface.title()).unwrap();
            for case in own {
                let cost = case.cost.as_ref().map_or_else(|| "–".to_owned(), |usd| format!("${usd}"));
                writeln!(rendered, "| {} | {} | {cost} |", case.case, billed(case)).unwrap();
            }
        }
    }
    rendered.push('\n');
    let page = text(PAGE);
    let (head, rest) = page.split_once(BEGIN).unwrap_or_else(|| panic!("{PAGE}: no {BEGIN}"));
    let (now, tail) = rest.split_once(END).unwrap_or_else(|| panic!("{PAGE}: no {END}"));
    if std::env::var_os("PONTAGE_RENDER").is_some() {
        std::fs::write(at(PAGE), format!("{head}{BEGIN}{rendered}{END}{tail}")).unwrap();
    } else {
        assert_eq!(now, rendered, "{PAGE} is not what tests/usage.toml says: PONTAGE_RENDER=1 cargo test --test usage");
    }
}
