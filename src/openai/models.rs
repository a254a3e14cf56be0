//! `GET /v1/models`: what is sold, in OpenAI's list with OpenRouter's `pricing` (`notes/llm.md` §7). Prices are decimal
//! strings, never JSON numbers: most readers would make floats of them.

use serde::Serialize;

/// One model as one route sells it, and wherever else it is sold. Prices are exact decimal strings in USD, after markup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Public name.
    pub name: String,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// Unix seconds; when the rules that sell it were loaded.
    pub created: u64,
    /// USD per prompt token.
    pub prompt: String,
    /// USD per cached prompt token.
    pub cached_prompt: String,
    /// USD per output token.
    pub completion: String,
    /// The place that the members beside `tiers` speak of.
    pub here: Sold,
    /// Every place that sells it, cheapest first.
    pub sold: Vec<Sold>,
}

/// Where a model is sold, and on which terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sold {
    /// Tier.
    pub tier: String,
    /// Path.
    pub path: String,
    /// USD per request on fixed-amount rails, when it is the same for every request.
    pub request: Option<String>,
    /// USD per image, when images are sold.
    pub image: Option<String>,
    /// Most output tokens of one choice.
    pub max_output: u64,
    /// Most prompt tokens, when limited.
    pub max_input: Option<u64>,
    /// Most choices.
    pub max_n: u64,
}

/// The whole list, in the order given.
pub fn list(models: &[Listed]) -> Vec<u8> {
    let data: Vec<_> = models.iter().map(Entry::from).collect();
    // Strings and integers only: writing them cannot fail; an empty list would be the harmless answer.
    serde_json::to_vec(&List { object: "list", data }).unwrap_or_else(|_| br#"{"object":"list","data":[]}"#.to_vec())
}

/// One model by itself: the same entry as in the list.
pub fn one(model: &Listed) -> Vec<u8> {
    serde_json::to_vec(&Entry::from(model)).unwrap_or_else(|_| b"{}".to_vec())
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    aliases: &'a [String],
    path: &'a str,
    tier: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u64>,
    pricing: Pricing<'a>,
    top_provider: TopProvider,
    per_request_limits: PerRequest,
    tiers: Vec<Tier<'a>>,
}

#[derive(Serialize)]
struct Tier<'a> {
    tier: &'a str,
    path: &'a str,
    pricing: TierPricing<'a>,
    per_request_limits: PerRequest,
}

#[derive(Serialize)]
struct TierPricing<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
}

#[derive(Serialize)]
struct Pricing<'a> {
    prompt: &'a str,
    completion: &'a str,
    input_cache_read: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
}

#[derive(Serialize)]
struct TopProvider {
    max_completion_tokens: u64,
    is_moderated: bool,
}

#[derive(Serialize)]
struct PerRequest {
    prompt_tokens: Option<u64>,
    completion_tokens: u64,
    n: u64,
}

impl From<&Sold> for PerRequest {
    fn from(at: &Sold) -> Self {
        Self { prompt_tokens: at.max_input, completion_tokens: at.max_output, n: at.max_n }
    }
}

impl<'a> From<&'a Sold> for Tier<'a> {
    fn from(at: &'a Sold) -> Self {
        let pricing = TierPricing { request: at.request.as_deref(), image: at.image.as_deref() };
        Self { tier: &at.tier, path: &at.path, pricing, per_request_limits: at.into() }
    }
}

impl<'a> From<&'a Listed> for Entry<'a> {
    fn from(m: &'a Listed) -> Self {
        Self {
            id: &m.name,
            object: "model",
            created: m.created,
            owned_by: "pontage",
            name: &m.name,
            aliases: &m.aliases,
            path: &m.here.path,
            tier: &m.here.tier,
            context_length: m.here.max_input.map(|input| input.saturating_add(m.here.max_output)),
            pricing: Pricing {
                prompt: &m.prompt,
                completion: &m.completion,
                input_cache_read: &m.cached_prompt,
                request: m.here.request.as_deref(),
                image: m.here.image.as_deref(),
            },
            top_provider: TopProvider { max_completion_tokens: m.here.max_output, is_moderated: false },
            per_request_limits: (&m.here).into(),
            tiers: m.sold.iter().map(Tier::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use serde_json::{Value, json};

    fn model() -> Listed {
        Listed {
            name: "openai/gpt-oss-120b".into(),
            aliases: vec!["gpt-oss-120b".into()],
            created: 7,
            prompt: "0.00000015".into(),
            cached_prompt: "0.000000075".into(),
            completion: "0.0000006".into(),
            here: at("standard", "/v1/chat/completions", Some("0.02")),
            sold: vec![at("standard", "/v1/chat/completions", Some("0.02")), at("metered", "/stream", None)],
        }
    }

    fn at(tier: &str, path: &str, request: Option<&str>) -> Sold {
        Sold {
            tier: tier.into(),
            path: path.into(),
            request: request.map(str::to_owned),
            image: None,
            max_output: 2048,
            max_input: Some(8192),
            max_n: 4,
        }
    }

    #[test]
    fn prices_are_decimal_strings_and_limits_are_the_tiers() {
        let got: Value = serde_json::from_slice(&list(&[model()])).unwrap();
        assert_eq!(got["object"], "list");
        let entry = &got["data"][0];
        let pricing =
            json!({"prompt":"0.00000015","completion":"0.0000006","input_cache_read":"0.000000075","request":"0.02"});
        assert_eq!(entry["pricing"], pricing, "what is not sold has no price, not a price of 0");
        assert_eq!((&entry["id"], &entry["object"]), (&json!("openai/gpt-oss-120b"), &json!("model")));
        assert_eq!(entry["top_provider"]["max_completion_tokens"], 2048);
        assert_eq!(entry["context_length"], 10_240);
        assert_eq!((&entry["tier"], &entry["path"]), (&json!("standard"), &json!("/v1/chat/completions")));
        let limits = json!({"prompt_tokens": 8192, "completion_tokens": 2048, "n": 4});
        assert_eq!(entry["per_request_limits"], limits);
        let tiers = json!([
            {"tier": "standard", "path": "/v1/chat/completions", "pricing": {"request": "0.02"}, "per_request_limits": limits.clone()},
            {"tier": "metered", "path": "/stream", "pricing": {}, "per_request_limits": limits},
        ]);
        assert_eq!(entry["tiers"], tiers, "every place that sells it, with its terms");
        let alone: Value = serde_json::from_slice(&one(&model())).unwrap();
        assert_eq!(alone, *entry, "by itself it is the same");
        let free = Listed { here: Sold { max_input: None, ..model().here }, aliases: vec![], ..model() };
        let got: Value = serde_json::from_slice(&list(&[free])).unwrap();
        assert_eq!((got["data"][0].get("context_length"), got["data"][0].get("aliases")), (None, None));
        assert_eq!(list(&[]), br#"{"object":"list","data":[]}"#);
    }
}
