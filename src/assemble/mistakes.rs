//! What a gate would stumble over while it is put together, said before anything is opened and all at once: nobody mends a first start
//! one variable at a time.

use super::{catalogue, settle_key, sponsors_secret, x402};
use crate::chain::tempo::Tempo;
use crate::conf::{Conf, RailConf, RailKind};
use crate::edge::door::tls;
use crate::ids::RailId;
use crate::limits::StreamRule;
use crate::rules::Plan;
use crate::secret::Secret;
use crate::store;
use crate::upstream::Pools;
use std::path::Path;

/// What `serve` would stumble over after the gate's own secrets: [`plain_mistakes`], a payee that payments would be lost to, the secrets
/// of the store, the rails and the pools, and the rules. Opens nothing.
pub fn mistakes(conf: &Conf, rules: &Path) -> Vec<String> {
    let mut found = plain_mistakes(conf);
    if let Some(redis) = &conf.store.redis {
        let client = |url: Secret| store::redis::client(&url).map(drop).map_err(|e| e.to_string());
        found.extend(redis.url.value.read().and_then(client).err().map(|e| redis.url.spot.mistake(e).to_string()));
    }
    found.extend(conf.rails.iter().flat_map(|section| of_rail(section, &conf.rails)));
    match crate::rules::load(rules, &catalogue(conf.offered())) {
        Ok(plan) => found.extend(Pools::build(&plan.pools, None).err().unwrap_or_default()),
        Err(mistakes) => found.extend(mistakes.iter().map(ToString::to_string)),
    }
    found
}

/// The part of [`mistakes`] that shows where there is no secret, beside the rules: files that are not there, kinds that this build
/// lacks.
pub fn plain_mistakes(conf: &Conf) -> Vec<String> {
    let certificate = conf.listen.tls.as_ref().and_then(|files| tls(&files.cert, &files.key).err());
    let unbuilt = conf.rails.iter().filter_map(|section| match &section.kind {
        RailKind::X402(x402) => x402::unbuilt(x402).map(|e| format!("rail.{}.facilitator: {e}", section.name)),
        RailKind::MppTempo(_) => None,
    });
    certificate.into_iter().chain(unbuilt).collect()
}

/// Flat prices above what one payer may owe, on rails that are paid after the answer: there is no offer of them but for streams. Sentences
/// for the operator, who may have meant it.
pub fn never_offered(conf: &Conf, plan: &Plan) -> Vec<String> {
    let after = conf.rails.iter().filter_map(|section| match &section.kind {
        RailKind::X402(x402) if !x402.first => Some((&section.name, x402.payer_exposure)),
        RailKind::X402(_) | RailKind::MppTempo(_) => None,
    });
    let mut said = Vec::new();
    for (name, most) in after {
        let rail = RailId::from(format!("{name}/exact").as_str());
        let routes = plan.routes.values().filter(|r| r.accept.contains(&rail) && r.stream != StreamRule::Force);
        for route in routes {
            let Some(price) = route.flat().and_then(|flat| route.share(&rail).times(flat)) else { continue };
            if price > most {
                said.push(format!(
                    "tiers.toml: tier.{}.charge.flat: ${price} is more than a payer may owe (rail.{name}.payer_exposure, ${most}): \
                     {rail} is not offered on {} but for streams",
                    route.tier.name, route.path
                ));
            }
        }
    }
    said
}

fn of_rail(section: &RailConf, rails: &[RailConf]) -> Vec<String> {
    let mut found: Vec<_> = section.kind.pays_nobody().map(|(key, why)| (key, why.to_owned())).into_iter().collect();
    match &section.kind {
        RailKind::MppTempo(tempo) => {
            let node = |rpc: Secret| Tempo::new(&rpc).map(drop).map_err(str::to_owned);
            found.extend(tempo.rpc.read().and_then(node).err().map(|e| ("rpc", e)));
            found.extend(tempo.session.and_then(|_| settle_key(tempo).err()).map(|e| ("settle_key", e)));
            found.extend(sponsors_secret(tempo, rails).err().map(|e| ("sponsor", e)));
        }
        RailKind::X402(x402) => found.extend(x402::mistakes(x402)),
    }
    found.into_iter().map(|(key, e)| format!("rail.{}.{key}: {e}", section.name)).collect()
}
