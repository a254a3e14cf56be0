//! `pontage quote`: what a request would cost, and why.

use super::{Places, complain};
use crate::catalogue::RailAbility;
use crate::conf::Conf;
use crate::flow::choose::quote_idle;
use crate::flow::price::Quoted;
use crate::flow::session;
use crate::ids::RailId;
use crate::money::Usd;
use crate::refusal::Refusal;
use crate::rules;
use crate::rules::plan::{Model, Rates, Speeds, Step, Surface};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Prices the request file under the rules, without a chain, a store or a backend.
pub fn run(places: &Places, path: &str, request: &Path, as_table: bool) -> ExitCode {
    let conf = match Conf::load(&places.conf) {
        Ok(conf) => conf,
        Err(mistakes) => return complain(&mistakes),
    };
    let catalogue = crate::assemble::catalogue(conf.offered());
    let plan = match rules::load(&places.rules, &catalogue) {
        Ok(plan) => plan,
        Err(mistakes) => return complain(&mistakes),
    };
    if plan.route(path).is_some_and(|route| route.surface == Surface::Models) {
        return complain(&[format!("{path} lists models: it takes no body, and costs nothing")]);
    }
    let body = if request.as_os_str() == "-" {
        let mut body = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut body).map(|_| body)
    } else {
        std::fs::read(request)
    };
    let body = match body {
        Ok(body) => body,
        Err(e) => return complain(&[format!("{}: {e}", request.display())]),
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return complain(&["no runtime"]);
    };
    let quoted = match runtime.block_on(quote_idle(&plan, path, body.into())) {
        Ok(quoted) => quoted,
        Err(refusal) => return complain(&[format!("{}: {}", refusal.code(), refusal.message())]),
    };
    let pool = plan.pools.get(&quoted.allowed.model.pool);
    let profile = pool.and_then(|pool| catalogue.profiles.get(pool.profile.as_str()));
    let counts_itself = profile.is_some_and(|ability| ability.continuous_usage);
    let rails = (quoted.allowed.route.accept.iter())
        .filter_map(|id| Some((id, *catalogue.rails.get(id)?)))
        .map(|(id, ability)| match conf.ceiling(id) {
            Some(most) => Ok(signed(id, ability.decimals, &quoted, most)),
            None => rail(id, ability, &quoted, counts_itself),
        })
        .collect::<Result<Vec<_>, _>>();
    let rails = match rails {
        Ok(rails) => rails,
        Err(refusal) => return complain(&[format!("{}: {}", refusal.code(), refusal.message())]),
    };
    let shown = json!({
        "path": path,
        "model": quoted.allowed.model.name,
        "upstream": quoted.allowed.model.upstream,
        "tier": quoted.allowed.route.tier.name,
        "generation": quoted.generation,
        "prices": prices(&quoted.allowed.model),
        "parts": quoted.parts,
        "output_tokens_bought": quoted.output_bought(quoted.parts.price_usd),
        "rails": rails,
    });
    if as_table {
        println!("{}", table(&shown));
    } else {
        println!("{shown:#}");
    }
    ExitCode::SUCCESS
}

/// What the request costs on one rail: the amount, where it is fixed in advance; else what a channel must hold for it to start,
/// and the most that can be charged.
fn rail(id: &RailId, ability: RailAbility, quoted: &Quoted, counts_itself: bool) -> Result<Value, Refusal> {
    let decimals = ability.decimals;
    if ability.fixed_amount {
        let amount = quoted.terms(id, decimals).map(|terms| terms.amount);
        return Ok(less(quoted, id, json!({ "rail": id, "amount": amount, "decimals": decimals })));
    }
    let (cover, start) = session::start(quoted, id, decimals, counts_itself)?;
    let ceiling = cover.start(true);
    let priced = json!({
        "rail": id,
        "start": start,
        "start_usd": start.to_usd(decimals),
        "ceiling": ceiling,
        "ceiling_usd": ceiling.and_then(|atoms| atoms.to_usd(decimals)),
        "decimals": decimals,
    });
    Ok(less(quoted, id, priced))
}

/// What the request costs where a sum is signed and what was used of it is taken: `most` is what the rail lets anybody sign at once.
fn signed(id: &RailId, decimals: u8, quoted: &Quoted, most: Usd) -> Value {
    let Some(terms) = quoted.terms_by_usage(id, decimals, most) else {
        let why = format!("its ceiling of {most} USD does not cover the prompt and a word of output");
        return json!({ "rail": id, "decimals": decimals, "not_offered": why });
    };
    let usd = terms.amount.to_usd(decimals);
    let priced = json!({
        "rail": id,
        "start": terms.amount,
        "start_usd": usd,
        "ceiling": terms.amount,
        "ceiling_usd": usd,
        "decimals": decimals,
    });
    less(quoted, id, priced)
}

/// What is taken off on this rail, and who says so.
fn less(quoted: &Quoted, id: &RailId, mut priced: Value) -> Value {
    if let (Some(given), Some(map)) = (quoted.allowed.route.discounts.get(id), priced.as_object_mut()) {
        map.insert("discount".to_owned(), json!({ "off": given.off.to_string(), "from": given.from }));
    }
    priced
}

/// Where the prices of a model come from: USD per million tokens, for short prompts at the standard speed first.
fn prices(model: &Model) -> Value {
    let rates = |rates: &Rates| {
        json!({
            "input": rates.input.as_per_million(),
            "cached_input": rates.cached_input.as_per_million(),
            "output": rates.output.as_per_million(),
        })
    };
    let speeds = |speeds: &Speeds| {
        let mut named = serde_json::Map::new();
        for (name, at) in [("standard", &speeds.standard), ("flex", &speeds.flex), ("priority", &speeds.priority)] {
            if name == "standard" || *at != speeds.standard {
                named.insert(name.to_owned(), rates(at));
            }
        }
        Value::Object(named)
    };
    let above = |step: &Step| json!({ "prompt_tokens_above": step.above, "speeds": speeds(&step.speeds) });
    json!({
        "sources": model.sources,
        "speeds": speeds(&model.price.base),
        "not_applied": model.not_applied,
        "steps": model.price.steps.iter().map(above).collect::<Vec<_>>(),
        "billed_by": if model.stated.is_some() { "the backend's own figure, else usage" } else { "usage" },
    })
}

/// The same for people: one line a number, with whoever says it.
fn table(shown: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row = |what: &str, number: String, from: String| rows.push([what.to_owned(), number, from]);
    for key in ["path", "model", "upstream", "tier", "generation"] {
        row(key, text(&shown[key]), String::new());
    }
    for source in shown["prices"]["sources"].as_array().into_iter().flatten() {
        let unit = if source["kind"] == "request" { "USD" } else { "USD per 1M" };
        row(&text(&source["kind"]), format!("{} {unit}", text(&source["usd"])), text(&source["from"]));
    }
    for said in shown["prices"]["not_applied"].as_array().into_iter().flatten() {
        row("not applied", text(said), "where the endpoint bills it: `markup`, or a price of its own".to_owned());
    }
    for step in shown["prices"]["steps"].as_array().into_iter().flatten() {
        let (above, at) = (text(&step["prompt_tokens_above"]), &step["speeds"]["standard"]);
        let number = format!("{} and {} USD per 1M", text(&at["input"]), text(&at["output"]));
        row("input and output", number, format!("prompts above {above} tokens"));
    }
    let parts = &shown["parts"];
    row("rule", text(&parts["rule"]), format!("tiers.toml: tier.{}", text(&shown["tier"])));
    if !parts["prompt_tokens"].is_null() {
        row(
            "prompt",
            format!("{} tokens", text(&parts["prompt_tokens"])),
            format!("counted by {}", text(&parts["counted_by"])),
        );
    }
    row("output", format!("{} tokens bought", text(&shown["output_tokens_bought"])), String::new());
    row("price", format!("{} USD", text(&parts["price_usd"])), String::new());
    for rail in shown["rails"].as_array().into_iter().flatten() {
        let less = match &rail["discount"] {
            Value::Null => String::new(),
            given => format!("less {} ({})", text(&given["off"]), text(&given["from"])),
        };
        let decimals = text(&rail["decimals"]);
        match &rail["amount"] {
            Value::Null if !rail["not_offered"].is_null() => {
                row(&text(&rail["rail"]), "not offered".to_owned(), text(&rail["not_offered"]));
            }
            Value::Null => {
                let number =
                    format!("{} to start, at most {} USD", text(&rail["start_usd"]), text(&rail["ceiling_usd"]));
                row(&text(&rail["rail"]), number, less);
            }
            amount => row(&text(&rail["rail"]), format!("{} atoms of {decimals} decimals", text(amount)), less),
        }
    }
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let line =
        |[what, number, from]: &[String; 3]| format!("{what:first$}  {number:second$}  {from}").trim_end().to_owned();
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
