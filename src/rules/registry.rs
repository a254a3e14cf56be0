//! LiteLLM's cost file as it is: numbers read from their text, rows read only for models that are sold.
//!
//! A row is taken whole or not at all. What it charges for that this build cannot bill (by the second, at some hours, for pictures it
//! draws) is a sentence for the operator, not a price that is a little too low. What it charges on some endpoints only is not applied, and
//! said. A zero is a price that nobody wrote: free is what
//! the operator calls free.

use super::tariff::Given;
use crate::money::{PerToken, Usd};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

/// Ends of keys for speeds of service that the gate cannot ask for, and whose word in a reply is billed at the dearest it knows.
const OTHER_SPEEDS: [&str; 4] = ["_batches", "_balanced", "_ultrafast", "_decisions"];
/// Beginnings of keys for what a request through the gate cannot have: hosted tools, video, sound that came out of a cache, other units
/// for what is priced by the token as well.
const BESIDE: [&str; 20] = [
    "annotation_cost",
    "cache_creation_input_audio_token_cost",
    "cache_creation_input_token_cost_above_12hr",
    "cache_read_input_audio_token_cost",
    "cache_read_input_image_token_cost",
    "code_interpreter_cost",
    "computer_use_",
    "explicit_cache_read_input_token_cost",
    "file_search_cost",
    "google_maps_grounding_cost",
    "input_cost_per_audio_per_second",
    "input_cost_per_character",
    "input_cost_per_image",
    "input_cost_per_token_cache_hit",
    "input_cost_per_video",
    "input_dbu_cost",
    "output_cost_per_character",
    "output_dbu_cost",
    "search_context_cost_per_query",
    "vector_store_cost",
];

/// Factors on all prices of a row where a request is processed in one region, or in a mode that the gate cannot ask for: which endpoint a
/// pool has is not known here.
const UPLIFTS: [&str; 3] = [
    "regional_endpoint_uplift_multiplier",
    "regional_processing_uplift_multiplier_eu",
    "regional_processing_uplift_multiplier_us",
];
/// Words in keys of what may be owed, where they say neither `cost` nor `pricing`.
const OF_MONEY: [&str; 11] =
    ["charge", "discount", "factor", "fee", "markup", "multiplier", "premium", "price", "rate", "surcharge", "uplift"];

/// The file, split into rows and not yet understood.
#[derive(Debug)]
pub struct Registry<'t> {
    rows: Vec<(Cow<'t, str>, &'t RawValue)>,
    by_key: HashMap<String, usize>,
}

/// What one row charges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: String,
    /// Prices of a short prompt.
    pub base: Offer,
    /// Prices of longer ones, by ascending count of prompt tokens above which they hold. What one does not name costs as below it.
    pub steps: Vec<(u64, Offer)>,
    /// Added to every request.
    pub per_request: Option<Usd>,
    /// Most prompt tokens.
    pub max_input: Option<u64>,
    /// Most output tokens.
    pub max_output: Option<u64>,
    /// It makes vectors: there is no output to pay for.
    pub embeds: bool,
    /// What it charges for that cannot be billed here, as sentences without a subject.
    pub unbillable: Vec<String>,
    /// What it charges on some endpoints only, as key and number.
    pub not_applied: Vec<String>,
}

/// The same kinds of token at each speed, as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Standard.
    pub standard: Given,
    /// `flex`.
    pub flex: Given,
    /// `priority`.
    pub priority: Given,
}

impl<'t> Registry<'t> {
    /// Splits the file. The error is a sentence without a subject.
    pub fn open(text: &'t str) -> Result<Self, String> {
        let Pairs(rows) = serde_json::from_str(text).map_err(|why| format!("is not a price list in JSON: {why}"))?;
        let mut by_key = HashMap::with_capacity(rows.len());
        for (at, (key, _)) in rows.iter().enumerate() {
            // Two rows of one name are two prices: neither is taken.
            by_key.entry(key.to_string()).and_modify(|at| *at = usize::MAX).or_insert(at);
        }
        Ok(Self { rows, by_key })
    }

    /// The row of exactly this key, else of the only one that differs in case alone.
    pub fn named(&self, key: &str) -> Option<Row> {
        self.at(self.find(key)?)
    }

    /// The row of a model that does not say under which key it is priced: its own names, first as written; then, of `vendor/model`,
    /// the row `model` if it is that vendor's. Nothing else is tried: a name that is only alike may be another price.
    pub fn of(&self, names: &[&str]) -> Option<Row> {
        let vendors = |name: &&str| {
            let (vendor, model) = name.split_once('/')?;
            let at = self.find(model)?;
            (self.vendor(at)?.eq_ignore_ascii_case(vendor)).then_some(at)
        };
        let at = names.iter().find_map(|name| self.find(name)).or_else(|| names.iter().find_map(vendors));
        self.at(at?)
    }

    fn find(&self, key: &str) -> Option<usize> {
        if let Some(at) = self.by_key.get(key) {
            return Some(*at);
        }
        let mut alike = self.rows.iter().enumerate().filter(|(_, (row, _))| row.eq_ignore_ascii_case(key));
        let (at, _) = alike.next()?;
        alike.next().is_none().then_some(at)
    }

    fn at(&self, at: usize) -> Option<Row> {
        // The row that explains the others has words where numbers belong.
        let (key, raw) = self.rows.get(at).filter(|(key, _)| key != "sample_spec")?;
        Some(Row::read(key, raw))
    }

    fn vendor(&self, at: usize) -> Option<String> {
        let (_, raw) = self.rows.get(at)?;
        let Pairs(fields) = serde_json::from_str(raw.get()).ok()?;
        let (_, vendor) = fields.into_iter().find(|(name, _)| name == "litellm_provider")?;
        serde_json::from_str(vendor.get()).ok()
    }
}

/// Which price a key names.
struct Field {
    kind: fn(&mut Given) -> &mut Option<PerToken>,
    above: Option<u64>,
    speed: fn(&mut Offer) -> &mut Given,
}

impl Field {
    fn read(name: &str) -> Option<Self> {
        let (name, speed): (_, fn(&mut Offer) -> &mut Given) = if let Some(name) = name.strip_suffix("_flex") {
            (name, |offer| &mut offer.flex)
        } else if let Some(name) = name.strip_suffix("_priority") {
            (name, |offer| &mut offer.priority)
        } else {
            (name, |offer| &mut offer.standard)
        };
        let (name, above) = match name.strip_suffix("_tokens").and_then(|name| name.rsplit_once("_above_")) {
            Some((name, above)) => (name, Some(thousands(above)?)),
            None => (name, None),
        };
        let kind: fn(&mut Given) -> &mut Option<PerToken> = match name {
            "input_cost_per_token" => |given| &mut given.input,
            "cache_read_input_token_cost" => |given| &mut given.cached_input,
            "cache_creation_input_token_cost" => |given| &mut given.cache_write,
            "cache_creation_input_token_cost_above_1hr" => |given| &mut given.cache_write_hour,
            "output_cost_per_token" => |given| &mut given.output,
            "output_cost_per_reasoning_token" => |given| &mut given.reasoning,
            "input_cost_per_audio_token" => |given| &mut given.audio_input,
            "output_cost_per_audio_token" => |given| &mut given.audio_output,
            "input_cost_per_image_token" => |given| &mut given.image_input,
            _ => return None,
        };
        Some(Self { kind, above, speed })
    }
}

/// `272k` or `500`.
fn thousands(text: &str) -> Option<u64> {
    let (digits, times) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1000));
    digits.parse::<u64>().ok()?.checked_mul(times)
}

impl Row {
    fn read(key: &str, raw: &RawValue) -> Self {
        let mut row = Self { key: key.to_owned(), ..Self::default() };
        let Ok(Pairs(fields)) = serde_json::from_str::<Pairs>(raw.get()) else {
            row.unbillable.push("is not a row of prices".to_owned());
            return row;
        };
        let (mut steps, mut ranges, mut vendor): (Vec<(u64, Offer)>, _, _) = (Vec::new(), None, String::new());
        for (name, raw) in &fields {
            let (name, value) = (name.as_ref(), raw.get());
            if value == "null" {
                continue;
            }
            match name {
                "litellm_provider" => vendor = serde_json::from_str(value).unwrap_or_default(),
                "mode" => row.embeds = value == "\"embedding\"",
                "max_input_tokens" => row.max_input = whole(value),
                "max_output_tokens" => row.max_output = whole(value),
                "input_cost_per_request" => row.per_request = row.number(name, value).map(|rate| Usd(rate.0)),
                "tiered_pricing" => ranges = Some(*raw),
                "provider_specific_entry" => row.specific(raw),
                _ if UPLIFTS.contains(&name) && Usd::of_number(value).is_some() => row.uplift(name, value),
                "off_peak_pricing" => {
                    row.unbillable.push("has other prices at some hours (off_peak_pricing)".to_owned())
                }
                _ => row.price(name, value, &mut steps),
            }
        }
        // Which bills the higher price from the line on, not behind it.
        if vendor == "xai" {
            steps.iter_mut().for_each(|(above, _)| *above = above.saturating_sub(1));
        }
        steps.sort_by_key(|(above, _)| *above);
        row.steps = steps;
        if let Some(ranges) = ranges {
            row.ranges(ranges);
        }
        if vendor == "perplexity" || key.contains("search-") || key.contains("-search") {
            row.unbillable.push("searches by itself and bills each search (search_context_cost_per_query)".to_owned());
        }
        row
    }

    /// A factor that holds on some endpoints; one of 1 is none.
    fn uplift(&mut self, name: &str, value: &str) {
        if Usd::of_number(value) != Some(Usd::ONE) {
            self.not_applied.push(format!("{name} = {value}"));
        }
    }

    /// `provider_specific_entry`: factors by region or mode (`us`, `fast`) are numbers, what else a vendor needs is mostly none.
    fn specific(&mut self, raw: &RawValue) {
        let name = "provider_specific_entry";
        let Ok(Pairs(entries)) = serde_json::from_str::<Pairs>(raw.get()) else {
            return self.unbillable.push(format!("charges in a way that is not billed here ({name})"));
        };
        for (key, raw) in entries {
            let value = raw.get();
            match Usd::of_number(value) {
                // Counts of what is free.
                Some(_) if key.contains("free") => {}
                Some(_) => self.uplift(&format!("{name}.{key}"), value),
                None if is_of_money(&key) && has_number(value) => {
                    self.unbillable.push(format!("charges in a way that is not billed here ({name}.{key})"));
                }
                None => {}
            }
        }
    }

    fn price(&mut self, name: &str, value: &str, steps: &mut Vec<(u64, Offer)>) {
        if !(name.contains("cost") || name.contains("pricing") || is_of_money(name) && has_number(value)) {
            return;
        }
        let Some(field) = Field::read(name) else {
            let beside =
                OTHER_SPEEDS.iter().any(|end| name.ends_with(end)) || BESIDE.iter().any(|b| name.starts_with(b));
            // A row that speaks of a unit but does not charge for it is no matter.
            if !beside && whole(value) != Some(0) {
                self.unbillable.push(format!("charges in a way that is not billed here ({name})"));
            }
            return;
        };
        let Some(rate) = self.number(name, value) else { return };
        let offer = match field.above {
            None => &mut self.base,
            Some(above) => {
                let at = steps.iter().position(|(at, _)| *at == above).unwrap_or(steps.len());
                if at == steps.len() {
                    steps.push((above, Offer::default()));
                }
                let Some((_, offer)) = steps.get_mut(at) else { return };
                offer
            }
        };
        *(field.kind)((field.speed)(offer)) = Some(rate);
    }

    /// A price; zero is none.
    fn number(&mut self, name: &str, value: &str) -> Option<PerToken> {
        let Some(usd) = Usd::of_number(value) else {
            self.unbillable.push(format!("has a price that is no amount ({name})"));
            return None;
        };
        (usd != Usd::ZERO).then_some(PerToken(usd.0))
    }

    /// `tiered_pricing`: `[{ "range": [start, end], … }, …]`, each for prompts of `start < n <= end`, the last for all that are longer. One
    /// range holds for the whole request, and names all its prices itself.
    fn ranges(&mut self, raw: &RawValue) {
        let odd = "has ranges of prices that do not join (tiered_pricing)";
        let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) else {
            return self.unbillable.push(odd.to_owned());
        };
        let mut end = 0;
        let mut steps = Vec::new();
        for range in list {
            let mut own = Self::default();
            let mut span = None;
            let Ok(Pairs(fields)) = serde_json::from_str::<Pairs>(range.get()) else {
                return self.unbillable.push(odd.to_owned());
            };
            for (name, raw) in &fields {
                match name.as_ref() {
                    "range" => span = serde_json::from_str::<[&RawValue; 2]>(raw.get()).ok(),
                    name => own.price(name, raw.get(), &mut Vec::new()),
                }
            }
            let ends = span.and_then(|[start, end]| Some((whole(start.get())?, whole(end.get())?)));
            let Some((start, until)) = ends.filter(|(start, until)| *start == end && until > start) else {
                return self.unbillable.push(odd.to_owned());
            };
            let given = Given { output: own.base.standard.output.or(self.base.standard.output), ..own.base.standard };
            if given.input.is_none() || given.output.is_none() {
                return self
                    .unbillable
                    .push("has a range of prices without input or output (tiered_pricing)".to_owned());
            }
            self.unbillable.append(&mut own.unbillable);
            steps.push((start, Offer { standard: given, ..Offer::default() }));
            end = until;
        }
        if steps.is_empty() {
            return self.unbillable.push(odd.to_owned());
        }
        // The list says it all; prices beside it are those of its first range, if anything.
        self.base = steps.remove(0).1;
        self.steps = steps;
    }
}

/// Whether a key speaks of money without saying so as prices do.
fn is_of_money(key: &str) -> bool {
    key.split(['_', '.', '-']).any(|word| OF_MONEY.contains(&word.trim_end_matches('s')))
}

/// Whether a value is, or has in it, a number: everything but words, flags, and lists and tables of those.
fn has_number(value: &str) -> bool {
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(serde_json::Value::Array(list)) => list.iter().any(|value| has_number(&value.to_string())),
        Ok(serde_json::Value::Object(table)) => table.values().any(|value| has_number(&value.to_string())),
        Ok(value) => value.is_number(),
        // A number that is too large for that reader is one, too.
        Err(_) => true,
    }
}

/// A whole number, also one that is written as `256000.0`.
fn whole(text: &str) -> Option<u64> {
    let Usd(scaled) = Usd::of_number(text)?;
    (scaled % Usd::ONE.0 == 0).then(|| u64::try_from(scaled / Usd::ONE.0).ok())?
}

/// An object as it is written: every key, in order, also twice.
struct Pairs<'t>(Vec<(Cow<'t, str>, &'t RawValue)>);

impl<'de> serde::Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    pairs.push((key, map.next_value()?));
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Reader)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'t>(#[serde(borrow)] Cow<'t, str>);

#[cfg(test)]
mod tests;
