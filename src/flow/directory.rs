//! What the gate tells about itself without being paid: `/openapi.json` (draft-payment-discovery-00), `/llms.txt`,
//! `/agents.md`. Made from the plan, so it cannot disagree with the 402; still, the 402 decides.

use super::Toll;
use crate::ids::{PublicModel, RailId};
use crate::limits::StreamRule;
use crate::money::{PerToken, Usd};
use crate::openai::models::{self, Listed, Sold};
use crate::rail::Way;
use crate::rules::Plan;
use crate::rules::plan::{Access, Charge, Rates, Route, Surface};
use serde_json::{Value, json};

/// A way to pay, as a document names it.
struct Offered {
    id: RailId,
    method: &'static str,
    intent: &'static str,
    currency: String,
    decimals: u8,
}

impl Offered {
    /// The rails of a route that exist, in its order.
    fn all(toll: &Toll, route: &Route) -> Vec<Self> {
        route.accept.iter().filter_map(|id| toll.way(id)).map(Self::by).collect()
    }

    fn by(rail: &dyn Way) -> Self {
        let ((method, intent), currency) = (rail.range(), rail.currency().to_owned());
        Self { id: rail.id().clone(), method, intent, currency, decimals: rail.decimals() }
    }

    /// Takes what was used, out of a channel.
    fn is_session(&self) -> bool {
        self.intent == "session"
    }

    /// The price of every request, in atoms, when they all have the same.
    fn amount(&self, route: &Route) -> Option<String> {
        let flat = route.flat().filter(|_| !self.is_session())?;
        route.share(&self.id).times(flat)?.to_atoms(self.decimals).map(|a| a.to_string())
    }

    fn price_words(&self, route: &Route) -> String {
        let discount = route.discounts.get(&self.id);
        let words = match route.tier.charge {
            _ if self.is_session() => {
                "by usage: what the backend counts x the model's price per token in /v1/models".to_owned()
            }
            Some(Charge::Flat { usd, .. }) => {
                let asked = route.share(&self.id).times(usd).unwrap_or(usd);
                return format!("${asked} per {}", route.surface.unit());
            }
            Some(Charge::Ceiling) if !route.surface.has_output() => "prompt x input price, by model".to_owned(),
            Some(Charge::Ceiling) => "prompt plus the most output asked for, by model".to_owned(),
            Some(Charge::Estimate { overhead, .. }) => format!("prompt x input price x {overhead}, by model"),
            None => "by usage".to_owned(),
        };
        discount.map_or(words.clone(), |given| format!("{words}, x {}", given.share))
    }
}

/// OpenAPI 3.1 with `x-payment-info` on every paid operation. An amount is `null` where it depends on the request.
pub fn openapi(toll: &Toll, plan: &Plan) -> String {
    openapi_of(&toll.public_url, plan, |route| Offered::all(toll, route))
}

fn openapi_of(public_url: &str, plan: &Plan, ways: impl Fn(&Route) -> Vec<Offered>) -> String {
    let mut paths = serde_json::Map::new();
    for route in plan.routes.values() {
        let (method, operation) = match route.surface {
            Surface::Models => (
                "get",
                json!({ "summary": "Models sold here, with prices", "responses": { "200": { "description": "OK" } } }),
            ),
            _ => ("post", operation(route, &ways(route))),
        };
        paths.insert(route.path.to_string(), json!({ method: operation }));
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Pontage", "version": env!("CARGO_PKG_VERSION"), "description": "OpenAI-compatible models, paid per call" },
        "servers": [{ "url": public_url }],
        "x-service-info": {
            "categories": ["ai"],
            "docs": { "llms": format!("{public_url}/llms.txt"), "apiReference": format!("{public_url}/openapi.json") },
        },
        "paths": paths,
    })
    .to_string()
}

fn operation(route: &Route, ways: &[Offered]) -> Value {
    let kind = if route.surface.takes_form() { "multipart/form-data" } else { "application/json" };
    let mut operation = json!({
        "summary": format!("{}{}, tier {}", route.surface.title(), streams(route), route.tier.name),
        "requestBody": { "required": true, "content": { kind: { "schema": asked(route) } } },
        "responses": {
            "200": { "description": "OK" },
            "402": { "description": "Payment required: WWW-Authenticate carries every way to pay" },
        },
    });
    // A list of offers must not be empty (draft-payment-discovery-00).
    if !ways.is_empty()
        && let Value::Object(map) = &mut operation
    {
        let offer = |way: &Offered| {
            json!({ "intent": way.intent, "method": way.method, "amount": way.amount(route), "currency": way.currency,
                    "description": way.price_words(route) })
        };
        map.insert("x-payment-info".to_owned(), json!({ "offers": ways.iter().map(offer).collect::<Vec<_>>() }));
    }
    operation
}

/// What a request of the route says, as far as it decides anything here.
fn asked(route: &Route) -> Value {
    let limits = &route.tier.limits;
    let text = || json!({ "type": "string" });
    let texts = || json!({ "anyOf": [text(), { "type": "array" }] });
    let list = || json!({ "type": "array", "items": { "type": "object" } });
    let count = |most: u64| json!({ "type": "integer", "minimum": 1, "maximum": most });
    let output = || count(limits.max_output_tokens);
    let (needs, more): (&[&str], Vec<(&str, Value)>) = match route.surface {
        Surface::Chat => {
            (&["messages"], vec![("messages", list()), ("max_tokens", output()), ("n", count(limits.max_n))])
        }
        Surface::Completions => {
            (&["prompt"], vec![("prompt", texts()), ("max_tokens", output()), ("n", count(limits.max_n))])
        }
        Surface::Responses => (&["input"], vec![("input", texts()), ("max_output_tokens", output())]),
        Surface::Messages => (&["messages", "max_tokens"], vec![("messages", list()), ("max_tokens", output())]),
        Surface::Embeddings => (&["input"], vec![("input", texts())]),
        Surface::Images => (&["prompt"], vec![("prompt", text()), ("n", count(limits.max_n))]),
        Surface::Speech => (&["input", "voice"], vec![("input", text()), ("voice", text())]),
        Surface::Transcriptions => (&["file"], vec![("file", json!({ "type": "string", "format": "binary" }))]),
        Surface::Models => (&[], Vec::new()),
    };
    let mut properties = serde_json::Map::new();
    properties.insert("model".to_owned(), json!({ "type": "string", "enum": route.tier.models }));
    properties.extend(more.into_iter().map(|(name, schema)| (name.to_owned(), schema)));
    if route.surface.can_stream() {
        properties.insert("stream".to_owned(), json!({ "type": "boolean" }));
    }
    json!({ "type": "object", "required": needs, "properties": properties })
}

fn streams(route: &Route) -> &'static str {
    match route.stream {
        StreamRule::Allow => "",
        StreamRule::Force => ", always streamed",
        StreamRule::Refuse if route.surface.can_stream() => ", never streamed",
        StreamRule::Refuse => "",
    }
}

/// A short text for language models and people.
pub fn llms(toll: &Toll, plan: &Plan) -> String {
    llms_of(&toll.public_url, plan, |route| Offered::all(toll, route))
}

fn llms_of(public_url: &str, plan: &Plan, ways: impl Fn(&Route) -> Vec<Offered>) -> String {
    let mut text = format!(
        "# Pontage\n\n> OpenAI-compatible models, paid per call. No account, no key: an unpaid request is answered 402 with every way to pay.\n\n\
         Send a request to {public_url}, pay what the 402 asks (WWW-Authenticate: Payment), send the same request again with the credential.\n\n## Paths\n\n"
    );
    let mut channels = false;
    for route in plan.routes.values() {
        match (route.surface, route.access) {
            (Surface::Models, _) => text.push_str(&format!("- GET {}: models with prices, free\n", route.path)),
            (surface, Access::Free) => {
                let title = surface.title().to_lowercase();
                text.push_str(&format!("- POST {}: {title}{}, free\n", route.path, streams(route)));
            }
            (surface, Access::Paid) => {
                let ways = ways(route);
                channels |= ways.iter().any(Offered::is_session);
                let said: Vec<String> =
                    ways.iter().map(|way| format!("{} ({})", way.id, way.price_words(route))).collect();
                let (path, streams, ways) = (&route.path, streams(route), said.join(", or "));
                let title = surface.title().to_lowercase();
                text.push_str(&format!("- POST {path}: {title}{streams}; pay by {ways}\n"));
            }
        }
    }
    if channels {
        text.push_str(CHANNELS);
    }
    text.push_str("\n## Models\n\n");
    for model in plan.models.values() {
        text.push_str(&format!(
            "- {}: ${} per million prompt tokens, ${} per million output tokens\n",
            model.name,
            model.price.standard().input.as_per_million(),
            model.price.standard().output.as_per_million()
        ));
    }
    text.push_str("\n## More\n\n- [OpenAPI](/openapi.json)\n");
    text
}

/// How to pay by the token, for whoever has no client that knows.
const CHANNELS: &str = "
## Paying by the token (intent \"session\")

Open a channel once, then pay with vouchers, which are signatures and cost no transaction. `mppx` and other MPP clients do all of this.

1. Send the request without a credential. In the 402, the challenge with intent \"session\" says what this request must hold to start
   (`amount`) and what to put into a channel (`suggestedDeposit`).
2. Sign the transaction that opens the channel and a voucher for at least `amount`; send the same request with both (action `open`).
   The gate sends the transaction and answers the request.
3. For each further request raise the voucher (action `voucher`). Its amount is the total of everything paid in this channel so far.
4. In a stream, the event `payment-need-voucher` asks for a voucher of `requiredCumulative`: send it to the same path by HEAD, or by POST
   without a body, while the stream goes on. A stream whose voucher does not come stands still, and ends within a minute.
5. Charged is what the backend reports. What was signed and not used stays available to the next request. The event `payment-receipt`, or the
   header `Payment-Receipt`, says how much is spent.
6. When the deposit runs low, add to it (action `topUp`). When you are done, close (action `close`): the rest of the deposit comes back.
";

/// `/v1/models` in the form most clients parse: OpenRouter's decimal `pricing` per token beside OpenAI's members.
/// Models that no route sells are not listed.
pub fn models(plan: &Plan, route: &Route, created: u64) -> Vec<u8> {
    let names = route.tier.models.iter();
    models::list(&names.filter_map(|name| listed(plan, route, name, created)).collect::<Vec<_>>())
}

/// One entry of the list that a route shows, by any name of the model: `/v1/models/{id}`.
pub fn model(plan: &Plan, route: &Route, asked: &str, created: u64) -> Option<Vec<u8>> {
    let name = &plan.resolve(asked)?.name;
    route.tier.models.contains(name).then(|| listed(plan, route, name, created))?.map(|model| models::one(&model))
}

/// A model with every place that sells it. First of all the list's own tier, where that sells it; else the cheapest.
fn listed(plan: &Plan, list: &Route, name: &PublicModel, created: u64) -> Option<Listed> {
    let (model, sellers) = (plan.models.get(name)?, plan.sellers(name, None));
    let here = sellers.iter().find(|at| at.tier.name == list.tier.name).or(sellers.first())?;
    Some(Listed {
        name: model.name.to_string(),
        aliases: plan.aliases(&model.name),
        created,
        rates: rates(model.price.standard()),
        above: model.price.steps.iter().map(|step| (step.above, rates(&step.speeds.standard))).collect(),
        fee: (model.price.per_request != Usd::ZERO).then(|| model.price.per_request.to_string()),
        max_input: model.max_input,
        max_output: model.max_output,
        here: sold(here),
        sold: sellers.iter().map(|at| sold(at)).collect(),
    })
}

/// The words of the standard prices; what costs like its neighbour is not said twice.
fn rates(price: &Rates) -> models::Rates {
    let apart = |rate: PerToken, like: PerToken| (rate != like).then(|| rate.as_per_token());
    models::Rates {
        prompt: price.input.as_per_token(),
        completion: price.output.as_per_token(),
        input_cache_read: price.cached_input.as_per_token(),
        input_cache_write: apart(price.cache_write, price.input),
        input_cache_write_1h: apart(price.cache_write_hour, price.cache_write),
        internal_reasoning: apart(price.reasoning, price.output),
    }
}

fn sold(at: &Route) -> Sold {
    let limits = &at.tier.limits;
    Sold {
        tier: at.tier.name.to_string(),
        path: at.path.to_string(),
        request: match at.access {
            Access::Free => Some("0".to_owned()),
            Access::Paid => at.flat().map(|usd| usd.to_string()),
        },
        // What is charged by usage has pictures in it, unless they are apart.
        image: limits.image_url.filter(|picture| picture.apart || !at.by_usage).map(|picture| picture.flat.to_string()),
        max_output: limits.max_output_tokens,
        max_input: limits.max_input_tokens,
        max_n: limits.max_n,
        discounts: at.discounts.iter().map(|(rail, given)| (rail.to_string(), given.off.to_string())).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::catalogue::{Catalogue, ProfileAbility, RailAbility};

    const RULES: [(&str, &str); 4] = [
        ("models.toml", "[model.m]\nupstream = \"up\"\npool = \"p\"\nprice = { input = \"1\", output = \"10\" }\n"),
        (
            "tiers.toml",
            "[tier.flat]\nmodels = [\"m\"]\nmax_output_tokens = 9\ncharge = { flat = \"0.02\" }\n[tier.used]\nmodels = [\"m\"]\nmax_output_tokens = 99\n",
        ),
        (
            "routes.toml",
            "[[route]]\npath = \"/chat\"\nsurface = \"chat\"\ntier = \"flat\"\naccept = [\"tempo/session\", \"tempo/charge\"]\n\
             [[route]]\npath = \"/chat/stream\"\nsurface = \"chat\"\ntier = \"used\"\nstream = \"force\"\naccept = [\"tempo/session\"]\n",
        ),
        ("pools.toml", "[pool.p]\nprofile = \"vllm\"\nservers = [\"http://127.0.0.1:1\"]\n"),
    ];

    fn plan() -> Plan {
        let rail = |id: &str, fixed_amount| (RailId::from(id), RailAbility { fixed_amount, decimals: 6 });
        let vllm = ProfileAbility { continuous_usage: true, ..ProfileAbility::PLAIN };
        let catalogue = Catalogue {
            rails: [rail("tempo/charge", true), rail("tempo/session", false)].into(),
            profiles: [("vllm", vllm)].into(),
            vocabularies: Vec::new(),
        };
        crate::rules::check(&crate::rules::Files::of(RULES), &catalogue).unwrap()
    }

    fn ways(route: &Route) -> Vec<Offered> {
        let way = |id: &RailId| {
            let intent = if id.as_str() == "tempo/session" { "session" } else { "charge" };
            Offered { id: id.clone(), method: "tempo", intent, currency: "0xtoken".into(), decimals: 6 }
        };
        route.accept.iter().map(way).collect()
    }

    #[test]
    fn a_price_by_usage_is_no_amount_even_where_another_way_has_one() {
        let document: Value = serde_json::from_str(&openapi_of("https://gate.example", &plan(), ways)).unwrap();
        let offers = |path: &str| document["paths"][path]["post"]["x-payment-info"]["offers"].clone();
        let usage = "by usage: what the backend counts x the model's price per token in /v1/models";
        let session = json!({ "intent": "session", "method": "tempo", "amount": null, "currency": "0xtoken", "description": usage });
        let charge = json!({ "intent": "charge", "method": "tempo", "amount": "20000", "currency": "0xtoken",
                             "description": "$0.02 per request" });
        assert_eq!(offers("/chat"), json!([session.clone(), charge]));
        assert_eq!(offers("/chat/stream"), json!([session]));
        assert_eq!(
            document["paths"]["/chat/stream"]["post"]["summary"],
            "Chat completions, always streamed, tier used"
        );
    }

    #[test]
    fn how_to_open_a_channel_is_told_where_one_can_be_opened() {
        let text = llms_of("https://gate.example", &plan(), ways);
        assert!(
            text.contains("- POST /chat/stream: chat completions, always streamed; pay by tempo/session (by usage"),
            "{text}"
        );
        assert!(text.contains("pay by tempo/session (by usage: what the backend counts x the model's price per token in /v1/models), or tempo/charge ($0.02 per request)\n"), "{text}");
        assert!(text.contains(CHANNELS));
        for word in ["`open`", "`voucher`", "`topUp`", "`close`", "payment-need-voucher", "HEAD"] {
            assert!(CHANNELS.contains(word), "{word}");
        }
        let charges = |route: &Route| ways(route).into_iter().filter(|way| !way.is_session()).collect();
        assert!(
            !llms_of("https://gate.example", &plan(), charges).contains("channel"),
            "nobody is told of what is not there"
        );
    }
}
