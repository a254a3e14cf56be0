//! [`Parsed`] → [`Allowed`]: is this model sold here? Decided before any price is named.

use super::parse::Parsed;
use crate::ids::PublicModel;
use crate::openai::request::Ask;
use crate::refusal::{Place, Refusal};
use crate::rules::plan::{Access, Charge, Model, Plan, Route};
use crate::surface::Surface;
use crate::upstream::profile;
use std::sync::Arc;

/// A request for a model that its route sells.
#[derive(Debug)]
pub struct Allowed {
    /// Where it came in.
    pub route: Arc<Route>,
    /// What it asks.
    pub ask: Ask,
    /// What will serve it.
    pub model: Arc<Model>,
    /// Whether the reply will stream.
    pub stream: bool,
}

/// The models that may serve a request which names none, in order of choice.
pub fn choices(parsed: &Parsed, plan: &Plan) -> Vec<Arc<Model>> {
    parsed.route.tier.unnamed.iter().filter_map(|name| plan.models.get(name)).cloned().collect()
}

/// A request that names no model, served by one of its [`choices`].
pub(super) fn by(parsed: &Parsed, model: Arc<Model>) -> Allowed {
    Allowed { route: Arc::clone(&parsed.route), ask: parsed.ask.clone(), model, stream: parsed.stream }
}

/// The named model, if this tier sells it; the first of its [`choices`] when none is named.
pub fn allow(parsed: Parsed, plan: &Plan) -> Result<Allowed, Refusal> {
    let Parsed { route, ask, stream } = parsed;
    let model = match &ask.model {
        None => {
            let model = route.tier.unnamed.first().and_then(|name| plan.models.get(name));
            model.ok_or(Refusal::Internal { place: "policy: a tier without models" })?
        }
        Some(asked) => {
            let model = plan.resolve(asked).ok_or_else(|| Refusal::UnknownModel { asked: asked.clone() })?;
            if !route.tier.models.contains(&model.name) {
                return Err(Refusal::WrongTier {
                    asked: asked.clone(),
                    sold_at: sold_at(plan, &model.name, route.surface),
                });
            }
            model
        }
    };
    Ok(Allowed { model: Arc::clone(model), route, ask, stream })
}

/// Whether the backends of the model make as many choices as are asked for: what none of them would answer is not offered.
pub(super) fn answerable(allowed: &Allowed, plan: &Plan) -> Result<(), Refusal> {
    let pool = plan.pools.get(&allowed.model.pool);
    let profile = pool.and_then(|pool| profile::lookup(&pool.profile));
    match profile.and_then(|profile| profile.ability.choices_of(allowed.route.surface, allowed.stream)) {
        Some(max) if allowed.ask.n > max => {
            Err(Refusal::OverLimit { param: allowed.ask.count_field(), asked: allowed.ask.n, max })
        }
        _ => Ok(()),
    }
}

/// Every path that sells a model on the surface that was asked, else on any; cheapest first, with its price there in words.
fn sold_at(plan: &Plan, model: &PublicModel, asked: Surface) -> Vec<Place> {
    let Some(model) = plan.models.get(model) else { return Vec::new() };
    let same = plan.sellers(&model.name, Some(asked));
    let sellers = if same.is_empty() { plan.sellers(&model.name, None) } else { same };
    sellers.into_iter().map(|route| place(route, model)).collect()
}

/// A route as an answer names it.
pub(super) fn place(route: &Route, model: &Model) -> Place {
    let price = match route.tier.charge {
        _ if route.access == Access::Free => "nothing".to_owned(),
        Some(Charge::Flat { usd, .. }) => format!("${usd} per {}", route.surface.unit()),
        _ => {
            let rates = model.price.standard();
            let (input, output) = (rates.input.as_per_million(), rates.output.as_per_million());
            format!("${input} per million prompt tokens and ${output} per million output tokens")
        }
    };
    Place { path: route.path.to_string(), price }
}
