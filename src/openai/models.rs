//! `GET /v1/models`: what is sold, in OpenAI's list with OpenRouter's `pricing`. Prices are decimal strings, never JSON
//! numbers: most readers would make floats of them.

use serde::Serialize;
use std::collections::BTreeMap;

/// One model as one route sells it, and wherever else it is sold. Prices are exact decimal strings in USD, after markup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Public name.
    pub name: String,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// Unix seconds; when the rules that sell it were loaded.
    pub created: u64,
    /// What its tokens cost.
    pub rates: Rates,
    /// What they cost when the prompt has more tokens than this, by ascending count. They hold for the whole request.
    pub above: Vec<(u64, Rates)>,
    /// USD per request beside its tokens, when there is such a price.
    pub fee: Option<String>,
    /// Most prompt tokens that the model takes, where that is known.
    pub max_input: Option<u64>,
    /// Most output tokens that it gives, likewise.
    pub max_output: Option<u64>,
    /// The place that the members beside `tiers` speak of.
    pub here: Sold,
    /// Every place that sells it, cheapest first.
    pub sold: Vec<Sold>,
}

/// USD per token. A kind that has no price of its own costs like its neighbour: written caches like the prompt, reasoning like output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// Prompt.
    pub prompt: String,
    /// Output.
    pub completion: String,
    /// Prompt that was read from a cache.
    pub input_cache_read: String,
    /// Prompt that was written into a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_cache_write: Option<String>,
    /// The same, to stay for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_cache_write_1h: Option<String>,
    /// Output that was reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_reasoning: Option<String>,
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
    /// Rails that ask less than the price, with the share that is off: `"0.05"`.
    pub discounts: Vec<(String, String)>,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pricing_above: Vec<Above<'a>>,
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
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    discounts: BTreeMap<&'a str, &'a str>,
}

/// Prices of a request whose prompt is longer.
#[derive(Serialize)]
struct Above<'a> {
    prompt_tokens: u64,
    #[serde(flatten)]
    rates: &'a Rates,
}

#[derive(Serialize)]
struct Pricing<'a> {
    #[serde(flatten)]
    rates: &'a Rates,
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
        let pricing = TierPricing {
            request: at.request.as_deref(),
            image: at.image.as_deref(),
            discounts: at.discounts.iter().map(|(rail, off)| (rail.as_str(), off.as_str())).collect(),
        };
        Self { tier: &at.tier, path: &at.path, pricing, per_request_limits: at.into() }
    }
}

impl<'a> From<&'a Listed> for Entry<'a> {
    fn from(m: &'a Listed) -> Self {
        // What the model can do, within what its tier sells.
        let max_output = m.max_output.map_or(m.here.max_output, |most| most.min(m.here.max_output));
        let max_input = [m.here.max_input, m.max_input].into_iter().flatten().min();
        Self {
            id: &m.name,
            object: "model",
            created: m.created,
            owned_by: "pontage",
            name: &m.name,
            aliases: &m.aliases,
            path: &m.here.path,
            tier: &m.here.tier,
            context_length: max_input.map(|input| input.saturating_add(max_output)),
            pricing: Pricing {
                rates: &m.rates,
                request: m.here.request.as_deref().or(m.fee.as_deref()),
                image: m.here.image.as_deref(),
            },
            pricing_above: m.above.iter().map(|(above, rates)| Above { prompt_tokens: *above, rates }).collect(),
            top_provider: TopProvider { max_completion_tokens: max_output, is_moderated: false },
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
            rates: rates("0.00000015", "0.0000006"),
            above: Vec::new(),
            fee: None,
            max_input: None,
            max_output: None,
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
            discounts: Vec::new(),
        }
    }

    fn rates(prompt: &str, completion: &str) -> Rates {
        let (prompt, completion) = (prompt.to_owned(), completion.to_owned());
        Rates { prompt, completion, input_cache_read: "0.000000075".into(), ..Rates::default() }
    }

    #[test]
    fn what_has_a_price_of_its_own_is_listed_with_it_and_limits_are_those_of_both() {
        let full = Rates {
            input_cache_write: Some("3".into()),
            input_cache_write_1h: Some("4".into()),
            internal_reasoning: Some("5".into()),
            ..rates("1", "2")
        };
        let here = Sold { discounts: vec![("base/exact".into(), "0.05".into())], ..at("metered", "/stream", None) };
        let m = Listed {
            rates: full,
            above: vec![(272_000, rates("6", "7"))],
            fee: Some("0.005".into()),
            max_input: Some(4_000),
            max_output: Some(1_000),
            sold: vec![here.clone()],
            here,
            ..model()
        };
        let got: Value = serde_json::from_slice(&one(&m)).unwrap();
        let pricing = json!({"prompt":"1","completion":"2","input_cache_read":"0.000000075","input_cache_write":"3","input_cache_write_1h":"4",
            "internal_reasoning":"5","request":"0.005"});
        assert_eq!(got["pricing"], pricing);
        let above = json!([{"prompt_tokens":272_000,"prompt":"6","completion":"7","input_cache_read":"0.000000075"}]);
        assert_eq!(got["pricing_above"], above);
        assert_eq!(
            (&got["context_length"], &got["top_provider"]["max_completion_tokens"]),
            (&json!(5_000), &json!(1_000))
        );
        assert_eq!(got["tiers"][0]["pricing"], json!({"discounts": {"base/exact": "0.05"}}));
        let small = Listed { max_input: Some(1 << 20), max_output: Some(1 << 20), ..model() };
        let got: Value = serde_json::from_slice(&one(&small)).unwrap();
        assert_eq!(
            (&got["context_length"], &got["top_provider"]["max_completion_tokens"]),
            (&json!(10_240), &json!(2_048)),
            "the tier sells less"
        );
        let flat = Listed { fee: Some("0.005".into()), ..model() };
        let got: Value = serde_json::from_slice(&one(&flat)).unwrap();
        assert_eq!(got["pricing"]["request"], "0.02", "a flat price is all of it");
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
