//! What an offer is worth that was made under other rules than are in force: its price is its own, what it sells must still be sold.

use super::pay::{Visit, terms_on};
use super::price::Quoted;
use super::{Toll, parse, policy, price};
use crate::claim::Terms;
use crate::ids::PublicModel;
use crate::rail::{Rail, Recognised};
use crate::refusal::Refusal;
use crate::rules::Plan;
use bytes::Bytes;
use std::sync::Arc;

/// The longest a request may take, in seconds.
pub(super) fn lasts(plan: &Plan, quoted: &Quoted) -> u64 {
    plan.pools.get(&quoted.allowed.model.pool).map_or(0, |pool| pool.timeouts.total_seconds)
}

/// The quote under the rules that made the offer, and for how long they let such a request last. Price comes from the offer, security
/// from the live rules: a model that is gone or served elsewhere now is refused before any claim.
pub(super) async fn offered(
    toll: &Toll,
    visit: &Visit<'_>,
    live: &Arc<Quoted>,
    rail: &dyn Rail,
    recognised: &Recognised,
) -> Result<(Arc<Quoted>, u64), Refusal> {
    let terms = &recognised.terms;
    if terms.route != live.allowed.route.path {
        return Err(Refusal::InvalidChallenge { why: "it was offered on another path" });
    }
    if terms.model != live.allowed.model.name {
        return Err(Refusal::InvalidChallenge { why: "it was offered for another model" });
    }
    let as_now = || (Arc::clone(live), lasts(visit.plan, live));
    if terms.generation == live.generation {
        return Ok(as_now());
    }
    let (plan, old) = match terms.generation.as_str() {
        // x402 v1 repeats no offer: any price of the last minutes will do.
        "" => match recent(toll, visit, rail, recognised).await {
            Some(found) => found,
            None => return Err(Refusal::InvalidChallenge { why: "no offer of this path has this amount" }),
        },
        _ => match toll.rules.plan_of(&terms.generation) {
            Some(plan) => {
                let old = quote_under(&plan, terms.route.as_str(), visit.body.clone(), Some(&terms.model)).await?;
                (plan, old)
            }
            None => return Ok(as_now()),
        },
    };
    let (then, now) = (&old.allowed.model, &live.allowed.model);
    // A pool that only got another name is the same place; the old name is still found there (`upstream::Pools::get`).
    let moved = match (plan.pools.get(&then.pool), visit.plan.pools.get(&now.pool)) {
        _ if then.pool == now.pool => false,
        (Some(was), Some(is)) => !was.is_the_same_place(is),
        _ => true,
    };
    if then.upstream != now.upstream || moved {
        return Err(Refusal::InvalidChallenge { why: "the model is served elsewhere since the offer" });
    }
    let lasts = lasts(&plan, &old);
    Ok((Arc::new(old), lasts))
}

/// The newest rules under which this request had the amount that was signed.
async fn recent(
    toll: &Toll,
    visit: &Visit<'_>,
    rail: &dyn Rail,
    recognised: &Recognised,
) -> Option<(Arc<Plan>, Quoted)> {
    for plan in toll.rules.recent() {
        let Terms { route, model, .. } = &recognised.terms;
        let Ok(quoted) = quote_under(&plan, route.as_str(), visit.body.clone(), Some(model)).await else { continue };
        if terms_on(&quoted, rail).is_some_and(|terms| terms.amount == recognised.terms.amount) {
            return Some((plan, quoted));
        }
    }
    None
}

/// Parse, policy and price under a given plan. `offered`: the model of the offer, which a request that names none keeps.
pub async fn quote_under(
    plan: &Plan,
    path: &str,
    body: Bytes,
    offered: Option<&PublicModel>,
) -> Result<Quoted, Refusal> {
    let route = plan.route(path).ok_or(Refusal::UnknownPath)?;
    let parsed = parse::parse(Arc::clone(route), body)?;
    let kept = offered.filter(|_| parsed.ask.model.is_none());
    let kept = kept.and_then(|kept| policy::choices(&parsed, plan).into_iter().find(|model| model.name == *kept));
    let allowed = match kept {
        Some(model) => policy::by(&parsed, model),
        None => policy::allow(parsed, plan)?,
    };
    price::quote(allowed, plan.generation.clone()).await
}

/// What the credential's terms must be. The amount is what we compute, unless the rules that made the offer are gone (a
/// restart): then it is the offer's own, which came back under our MAC together with the digest of this very body.
pub(super) fn expected(quoted: &Quoted, rail: &dyn Rail, recognised: &Recognised) -> Result<Terms, Refusal> {
    let uncovered = Refusal::InvalidChallenge { why: "this request costs more than can be asked for on its rail" };
    let mut terms = terms_on(quoted, rail).ok_or(uncovered)?;
    if recognised.terms.generation.as_str().is_empty() {
        return Ok(terms);
    }
    if terms.generation != recognised.terms.generation {
        terms.generation = recognised.terms.generation.clone();
        terms.amount = recognised.terms.amount;
        terms.price = recognised.terms.price;
    }
    Ok(terms)
}
