//! `routes.toml`: public paths.

use crate::ids::{RailId, RoutePath, TierName};
use crate::limits::StreamRule;
use crate::money::Usd;
use crate::origin::normal_path;
use crate::rules::plan::{Access, Fact, ReceiptForm, Surface};
use crate::written::{Said, Section, Spot, Value};

/// Paths the gate answers itself on the public listener.
const OWN_PATHS: [&str; 4] = ["/openapi.json", "/llms.txt", "/agents.md", "/receipts"];

/// Members of the surfaces' replies that a receipt must not replace.
const OPENAI_MEMBERS: [&str; 47] = [
    "annotations",
    "background",
    "choices",
    "container",
    "content",
    "created",
    "created_at",
    "data",
    "delta",
    "error",
    "first_id",
    "has_more",
    "id",
    "incomplete_details",
    "input",
    "instructions",
    "last_id",
    "max_output_tokens",
    "message",
    "metadata",
    "model",
    "object",
    "output",
    "output_format",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt_filter_results",
    "prompt_logprobs",
    "quality",
    "reasoning",
    "role",
    "service_tier",
    "size",
    "status",
    "stop_reason",
    "stop_sequence",
    "store",
    "system_fingerprint",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "truncation",
    "type",
    "usage",
    "user",
];

/// `[[route]]`.
#[derive(Debug)]
pub struct RouteEntry {
    /// The entry as a whole.
    pub spot: Spot,
    /// Path in normal form.
    pub path: Option<Said<RoutePath>>,
    /// Surface.
    pub surface: Option<Surface>,
    /// Tier; absent on a list of every model.
    pub tier: Option<Said<TierName>>,
    /// Streaming.
    pub stream: StreamRule,
    /// Access; `None` after a mistake.
    pub access: Option<Access>,
    /// Rails.
    pub accept: Vec<Said<RailId>>,
    /// Receipt.
    pub receipt: ReceiptForm,
}

/// Reads every `[[route]]`.
pub(super) fn read_all(root: &Section<'_>) -> Vec<RouteEntry> {
    let Some(list) = root.need("route").and_then(|value| value.list()) else { return Vec::new() };
    if list.is_empty() {
        root.wrong("a gate has at least one [[route]]");
    }
    list.iter().filter_map(|value| Some(read(&value.section()?))).collect()
}

fn read(s: &Section<'_>) -> RouteEntry {
    let surface = s.need("surface").and_then(|v| surface(&v));
    let access = access(s);
    let accept = s.take("accept");
    let stream = s.take("stream");
    let receipt = s.take("receipt");
    if surface == Some(Surface::Models) && access == Some(Access::Paid) {
        s.wrong("the models surface is free: write access = \"free\"");
    }
    if let (Some(stream), Some(surface)) = (&stream, surface.filter(|surface| !surface.can_stream())) {
        stream.wrong(format!("the {} surface does not stream", surface.word()));
    }
    if access == Some(Access::Free) {
        for (value, why) in [(&accept, "a free route accepts no payment"), (&receipt, "a free route has no receipt")] {
            if let Some(value) = value {
                value.wrong(why);
            }
        }
    }
    let paid = access == Some(Access::Paid) && surface != Some(Surface::Models);
    let accept = accept.map_or_else(|| Some(Vec::new()), |v| v.texts().filter(|rails| !rails.is_empty()));
    if paid && accept.as_ref().is_none_or(Vec::is_empty) {
        s.wrong("a paid route needs at least one rail: accept = [\"tempo/charge\"]; a free one says access = \"free\"");
    }
    let streams = [("allow", StreamRule::Allow), ("force", StreamRule::Force), ("refuse", StreamRule::Refuse)];
    RouteEntry {
        spot: s.spot().clone(),
        path: s.need("path").and_then(|v| path(&v)),
        surface,
        tier: if surface == Some(Surface::Models) { s.take("tier") } else { s.need("tier") }
            .and_then(|v| Some(v.said(TierName::from(v.text()?)))),
        stream: match surface {
            Some(surface) if !surface.can_stream() => StreamRule::Refuse,
            _ => stream.and_then(|v| v.word(&streams)).unwrap_or_default(),
        },
        access,
        accept: accept
            .unwrap_or_default()
            .into_iter()
            .map(|rail| Said { value: RailId::from(rail.value), spot: rail.spot })
            .collect(),
        receipt: match receipt {
            Some(value) => value.section().map(|table| receipt_form(&table)).unwrap_or_default(),
            None => ReceiptForm { header: access == Some(Access::Paid), ..ReceiptForm::default() },
        },
    }
}

/// A surface by its name.
pub(super) fn surface(value: &Value<'_>) -> Option<Surface> {
    value.word(&Surface::ALL.map(|surface| (surface.word(), surface)))
}

fn access(s: &Section<'_>) -> Option<Access> {
    let Some(value) = s.take("access") else { return Some(Access::default()) };
    if value.text()? == "keys" {
        value.wrong("\"keys\" is not in this build: \"paid\" or \"free\"");
        return None;
    }
    value.word(&[("paid", Access::Paid), ("free", Access::Free)])
}

fn path(value: &Value<'_>) -> Option<Said<RoutePath>> {
    let own = |path: &str| OWN_PATHS.iter().any(|own| path == *own || path.starts_with(&format!("{own}/")));
    let path = value.read(|text| match normal_path(text) {
        Ok(path) if own(path) => Err("is answered by the gate itself"),
        other => other.map(RoutePath::from),
    })?;
    Some(value.said(path))
}

fn receipt_form(s: &Section<'_>) -> ReceiptForm {
    let header = s.take("header").map_or(Some(true), |v| v.flag()).unwrap_or(true);
    let body = s.take("body").and_then(|v| {
        v.read(|text| match member_name(text) {
            Ok(name) if OPENAI_MEMBERS.contains(&name.to_ascii_lowercase().as_str()) => {
                Err("is a member of the reply itself")
            }
            other => other,
        })
    });
    let credit = s.take("credit_usd").and_then(|v| {
        let usd = v.amount(Usd::parse)?;
        if usd == Usd::ZERO {
            v.wrong("a credit is worth something");
            return None;
        }
        Some(usd)
    });
    let show = s.take("show");
    if let (Some(value), None) = (&show, &body) {
        value.wrong("there is no block to show it in: write body = \"…\"");
    }
    let show: Vec<_> = show
        .and_then(|v| v.section())
        .map(|facts| facts.entries().into_iter().filter_map(|(name, value)| shown(name, &value, credit)).collect())
        .unwrap_or_default();
    ReceiptForm { header, body, show, credit }
}

/// `member = "fact"`.
fn shown(name: &str, value: &Value<'_>, credit: Option<Usd>) -> Option<(String, Fact)> {
    let facts = [
        ("id", Fact::Id),
        ("model", Fact::Model),
        ("pool", Fact::Pool),
        ("server", Fact::Server),
        ("tier", Fact::Tier),
        ("rail", Fact::Rail),
        ("charged_usd", Fact::ChargedUsd),
        ("credits", Fact::Credits),
        ("usage", Fact::Usage),
    ];
    let fact = value.word(&facts)?;
    if fact == Fact::Credits && credit.is_none() {
        value.wrong("credits are worth what credit_usd says: write credit_usd = \"0.01\"");
    }
    match member_name(name) {
        Ok(name) => Some((name, fact)),
        Err(why) => {
            value.wrong(format!("{name:?} {why}"));
            None
        }
    }
}

fn member_name(text: &str) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if text.len() > 64 || !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !text.bytes().all(plain) {
        return Err("is not a plain member name: a letter, then at most 63 of a-z A-Z 0-9 _ -");
    }
    Ok(text.to_owned())
}
