//! `pontage quote`: what a request would cost, and why.

use super::{Places, complain};
use crate::catalogue::RailAbility;
use crate::conf::Conf;
use crate::flow::choose::quote_idle;
use crate::flow::price::Quoted;
use crate::flow::session;
use crate::ids::RailId;
use crate::refusal::Refusal;
use crate::rules;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Prices the request file under the rules, without a chain, a store or a backend.
pub fn run(places: &Places, path: &str, request: &Path) -> ExitCode {
    let conf = match Conf::load(&places.conf) {
        Ok(conf) => conf,
        Err(mistakes) => return complain(&mistakes),
    };
    let catalogue = crate::assemble::catalogue(conf.offered());
    let plan = match rules::load(&places.rules, &catalogue) {
        Ok(plan) => plan,
        Err(mistakes) => return complain(&mistakes),
    };
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
        .filter_map(|id| catalogue.rails.get(id).map(|ability| rail(id, *ability, &quoted, counts_itself)))
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
        "parts": quoted.parts,
        "output_tokens_bought": quoted.output_bought(quoted.parts.price_usd),
        "rails": rails,
    });
    println!("{shown:#}");
    ExitCode::SUCCESS
}

/// What the request costs on one rail: the amount, where it is fixed in advance; else what a channel must hold for it to start,
/// and the most that can be charged.
fn rail(id: &RailId, ability: RailAbility, quoted: &Quoted, counts_itself: bool) -> Result<Value, Refusal> {
    let decimals = ability.decimals;
    if ability.fixed_amount {
        let amount = quoted.terms(id, decimals).map(|terms| terms.amount);
        return Ok(json!({ "rail": id, "amount": amount, "decimals": decimals }));
    }
    let (cover, start) = session::start(quoted, id, decimals, counts_itself)?;
    let ceiling = cover.start(true);
    Ok(json!({
        "rail": id,
        "start": start,
        "start_usd": start.to_usd(decimals),
        "ceiling": ceiling,
        "ceiling_usd": ceiling.and_then(|atoms| atoms.to_usd(decimals)),
        "decimals": decimals,
    }))
}
