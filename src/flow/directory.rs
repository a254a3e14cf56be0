//! What the gate tells about itself without being paid: `/openapi.json` (draft-payment-discovery-00), `/llms.txt`,
//! `/agents.md`. Made from the plan, so it cannot disagree with the 402; still, the 402 decides.

use super::Toll;
use crate::money::Usd;
use crate::openai::models::{self, Listed};
use crate::rules::Plan;
use crate::rules::plan::{Access, Charge, Route, Surface};
use serde_json::{Value, json};

/// OpenAPI 3.1 with `x-payment-info` on every paid operation. An amount is `null` where it depends on the request.
pub fn openapi(toll: &Toll, plan: &Plan) -> String {
    let mut paths = serde_json::Map::new();
    for route in plan.routes.values() {
        let (method, operation) = match route.surface {
            Surface::Chat => ("post", chat(toll, route)),
            Surface::Models => (
                "get",
                json!({ "summary": "Models sold here, with prices", "responses": { "200": { "description": "OK" } } }),
            ),
        };
        paths.insert(route.path.to_string(), json!({ method: operation }));
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Pontage", "version": env!("CARGO_PKG_VERSION"), "description": "OpenAI-compatible models, paid per call" },
        "servers": [{ "url": toll.public_url }],
        "x-service-info": {
            "categories": ["ai"],
            "docs": { "llms": format!("{}/llms.txt", toll.public_url), "apiReference": format!("{}/openapi.json", toll.public_url) },
        },
        "paths": paths,
    })
    .to_string()
}

fn chat(toll: &Toll, route: &Route) -> Value {
    let mut operation = json!({
        "summary": format!("Chat completions, tier {}", route.tier.name),
        "requestBody": { "required": true, "content": { "application/json": { "schema": {
            "type": "object",
            "required": ["messages"],
            "properties": {
                "model": { "type": "string", "enum": route.tier.models },
                "messages": { "type": "array", "items": { "type": "object" } },
                "stream": { "type": "boolean" },
                "max_tokens": { "type": "integer", "minimum": 1, "maximum": route.tier.limits.max_output_tokens },
                "n": { "type": "integer", "minimum": 1, "maximum": route.tier.limits.max_n },
            },
        } } } },
        "responses": {
            "200": { "description": "OK" },
            "402": { "description": "Payment required: WWW-Authenticate carries every way to pay" },
        },
    });
    if route.access == Access::Paid
        && let Value::Object(map) = &mut operation
    {
        let offers: Vec<Value> = route
            .accept
            .iter()
            .filter_map(|id| toll.rail(id))
            .map(|rail| {
                let (method, intent) = rail.range();
                let amount = flat(route).and_then(|usd| usd.to_atoms(rail.decimals())).map(|a| a.to_string());
                json!({ "intent": intent, "method": method, "amount": amount, "currency": rail.currency(),
                        "description": price_words(route) })
            })
            .collect();
        map.insert("x-payment-info".to_owned(), json!({ "offers": offers }));
    }
    operation
}

fn flat(route: &Route) -> Option<Usd> {
    match route.tier.charge {
        Some(Charge::Flat(usd)) => Some(usd),
        _ => None,
    }
}

fn price_words(route: &Route) -> String {
    match route.tier.charge {
        Some(Charge::Flat(usd)) => format!("${usd} per request"),
        Some(Charge::Ceiling) => "prompt plus the most output asked for, by model".to_owned(),
        Some(Charge::Estimate { overhead, .. }) => format!("prompt x input price x {overhead}, by model"),
        None => "by usage".to_owned(),
    }
}

/// A short text for language models and people.
pub fn llms(toll: &Toll, plan: &Plan) -> String {
    let mut text = format!(
        "# Pontage\n\n> OpenAI-compatible models, paid per call. No account, no key: an unpaid request is answered 402 with every way to pay.\n\n\
         Send a request to {url}, pay what the 402 asks (WWW-Authenticate: Payment), send the same request again with the credential.\n\n## Paths\n\n",
        url = toll.public_url
    );
    for route in plan.routes.values() {
        match (route.surface, route.access) {
            (Surface::Models, _) => text.push_str(&format!("- GET {}: models with prices, free\n", route.path)),
            (Surface::Chat, Access::Free) => text.push_str(&format!("- POST {}: chat completions, free\n", route.path)),
            (Surface::Chat, Access::Paid) => {
                let rails: Vec<&str> = route.accept.iter().map(|r| r.as_str()).collect();
                text.push_str(&format!(
                    "- POST {}: chat completions, {}; pay by {}\n",
                    route.path,
                    price_words(route),
                    rails.join(", ")
                ));
            }
        }
    }
    text.push_str("\n## Models\n\n");
    for model in plan.models.values() {
        text.push_str(&format!(
            "- {}: ${} per million prompt tokens, ${} per million output tokens\n",
            model.name,
            model.price.input.as_per_million(),
            model.price.output.as_per_million()
        ));
    }
    text.push_str("\n## More\n\n- [OpenAPI](/openapi.json)\n");
    text
}

/// `/v1/models` in the form most clients parse: OpenRouter's decimal `pricing` per token beside OpenAI's members.
/// Models that no route sells are not listed.
pub fn models(plan: &Plan, route: &Route, created: u64) -> Vec<u8> {
    let sold: Vec<Listed> = (route.tier.models.iter())
        .filter_map(|name| Some((plan.models.get(name)?, plan.sold_at(name)?)))
        .map(|(model, at)| Listed {
            name: model.name.to_string(),
            aliases: plan.aliases(&model.name),
            path: at.path.to_string(),
            tier: at.tier.name.to_string(),
            created,
            prompt: model.price.input.as_per_token(),
            cached_prompt: model.price.cached_input.as_per_token(),
            completion: model.price.output.as_per_token(),
            request: flat(at).map(|usd| usd.to_string()),
            image: at.tier.limits.image_url.map(|usd| usd.to_string()),
            max_output: at.tier.limits.max_output_tokens,
            max_input: at.tier.limits.max_input_tokens,
        })
        .collect();
    models::list(&sold)
}
