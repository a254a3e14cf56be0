//! `pontage quote`: what a request would cost, and why.

use super::{Places, complain};
use crate::conf::Conf;
use crate::flow::pay::quote_under;
use crate::rules;
use serde_json::json;
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
    let quoted = match runtime.block_on(quote_under(&plan, path, body.into())) {
        Ok(quoted) => quoted,
        Err(refusal) => return complain(&[format!("{}: {}", refusal.code(), refusal.message())]),
    };
    let rails: Vec<_> = (quoted.allowed.route.accept.iter())
        .filter_map(|id| catalogue.rails.get(id).map(|ability| (id, ability)))
        .map(|(id, ability)| {
            let amount = quoted.parts.price_usd.to_atoms(ability.decimals);
            json!({ "rail": id, "amount": amount, "decimals": ability.decimals })
        })
        .collect();
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
