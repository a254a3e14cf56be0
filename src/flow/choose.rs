//! `bytes → Quoted` for a request that comes in now: [`parse`], [`policy`] and [`price`], and what these cannot know alone.
//!
//! - A request that names no model gets the first of its tier's list whose pool can take it now and whose limits and price it
//!   fits; the same for the same state. One that shows a payment keeps the model it was offered, so that a pool which comes or
//!   goes between offer and payment changes nothing.
//! - A request that does not fit is told which other paths would take it.

use super::Toll;
use super::bound::{self, Size};
use super::parse::{self, Parsed};
use super::policy::{self, Allowed};
use super::price::{self, Quoted};
use crate::ids::PublicModel;
use crate::rail::Found;
use crate::refusal::{Place, Refusal};
use crate::rules::Plan;
use crate::rules::plan::{Model, Route};
use bytes::Bytes;
use std::sync::Arc;

/// Quotes a request under `plan`, with the pools as they are now and the payment it shows.
pub async fn quote(toll: &Toll, plan: &Plan, path: &str, body: Bytes, found: &Found) -> Result<Quoted, Refusal> {
    let pools = toll.pools.load();
    let can_take = |model: &Model, parsed: &Parsed| {
        pools.available_for(&model.pool, parsed.route.surface, parsed.stream, parsed.ask.n, |pool| {
            model.upstream_in(pool)
        })
    };
    quote_by(plan, path, body, can_take, || offered(toll, path, found)).await
}

/// As [`quote`], where every pool can take the request and nothing is paid yet.
pub async fn quote_idle(plan: &Plan, path: &str, body: Bytes) -> Result<Quoted, Refusal> {
    quote_by(plan, path, body, |_, _| true, || None).await
}

async fn quote_by(
    plan: &Plan,
    path: &str,
    body: Bytes,
    can_take: impl Fn(&Model, &Parsed) -> bool,
    offered: impl FnOnce() -> Option<PublicModel>,
) -> Result<Quoted, Refusal> {
    let route = plan.route(path).ok_or(Refusal::UnknownPath)?;
    let parsed = parse::parse(Arc::clone(route), body)?;
    if parsed.ask.model.is_some() {
        return fit(policy::allow(parsed, plan)?, plan).await;
    }
    let mut choices = policy::choices(&parsed, plan);
    let kept = offered();
    if choices.iter().any(|model| Some(&model.name) == kept.as_ref()) {
        choices.retain(|model| Some(&model.name) == kept.as_ref());
    }
    choose(parsed, choices, plan, can_take).await
}

/// The first that fits and can be served now; else the first that fits; else why the first does not fit.
async fn choose(
    parsed: Parsed,
    choices: Vec<Arc<Model>>,
    plan: &Plan,
    can_take: impl Fn(&Model, &Parsed) -> bool,
) -> Result<Quoted, Refusal> {
    let (mut waiting, mut refused) = (None, None);
    for model in choices {
        let now = can_take(&model, &parsed);
        if !now && waiting.is_some() {
            continue;
        }
        match fit(policy::by(&parsed, model), plan).await {
            Ok(quoted) if now => return Ok(quoted),
            Ok(quoted) => waiting = Some(quoted),
            Err(refusal) => drop(refused.get_or_insert(refusal)),
        }
    }
    let none = || Refusal::Internal { place: "choose: a tier without models" };
    waiting.ok_or_else(|| refused.unwrap_or_else(none))
}

/// The model of the offer that a shown payment answers. Not believed: what is paid for is decided later, under our MAC.
fn offered(toll: &Toll, path: &str, found: &Found) -> Option<PublicModel> {
    let Found::One(shown) = found else { return None };
    toll.rails.iter().find_map(|rail| rail.offered(shown, path))
}

/// Prices a request; one that does not fit learns where it would.
async fn fit(allowed: Allowed, plan: &Plan) -> Result<Quoted, Refusal> {
    policy::answerable(&allowed, plan)?;
    let (route, model, size) = (Arc::clone(&allowed.route), Arc::clone(&allowed.model), Size::of(&allowed.ask));
    let elsewhere = |prompt, more_than| elsewhere(plan, &route, &model, &size, prompt, more_than);
    price::quote(allowed, plan.generation.clone()).await.map_err(|refusal| match refusal {
        Refusal::PromptTooLong { surface, max, counted_by, .. } => {
            Refusal::PromptTooLong { surface, max, counted_by, sold_at: elsewhere(None, max) }
        }
        Refusal::OverPrice { surface, gap, .. } => {
            Refusal::OverPrice { surface, gap, sold_at: elsewhere(Some(gap.prompt), 0) }
        }
        other => other,
    })
}

/// The other paths that sell the model and would take the request, cheapest first.
fn elsewhere(plan: &Plan, here: &Route, model: &Model, size: &Size, prompt: Option<u64>, more_than: u64) -> Vec<Place> {
    (plan.sellers(&model.name, Some(here.surface)).into_iter())
        .filter(|route| route.tier.name != here.tier.name && bound::would_take(route, model, size, prompt, more_than))
        .map(|route| policy::place(route, model))
        .collect()
}
