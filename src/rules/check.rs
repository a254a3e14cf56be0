//! What the files of a rule set must say together: every name resolves, every paid route can be paid and priced.
//!
//! A file that cannot be understood at all hides nothing but itself: what other files say about *its* names is not checked,
//! everything else is.

use crate::catalogue::Catalogue;
use crate::ids::{PoolName, PublicModel, RailId, TierName};
use crate::limits::{Drawn, Limits, OverLimit, UnknownFields};
use crate::money::Factor;
use crate::rules::entry::{self, ChargeEntry, Entries, ModelEntry, PoolEntry, RouteEntry, TierEntry};
use crate::rules::file::Files;
use crate::rules::plan::{
    Access, Charge, Discount, HealthRules, MissingUsage, Model, Plan, PoolRules, Prices, Reach, Route, Shortfall,
    Surface, Tier,
};
use crate::rules::registry::Registry;
use crate::rules::tariff::{Given, Tariff};
use crate::written::{Mistake, Said};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The vocabulary that needs none: a prompt has at most as many tokens as bytes.
const BYTES: &str = "bytes";

/// The plan, or every mistake of every file at once, in order of file and line.
pub fn check(files: &Files, catalogue: &Catalogue) -> Result<Plan, Vec<Mistake>> {
    let (entries, mut mistakes) = entry::read(files);
    let registry = registry(files, &entries, &mut mistakes);
    let mut desk = Desk { entries: &entries, registry, catalogue, mistakes };
    let pools = entries.pools.iter().flatten().filter_map(|e| desk.pool(e)).map(|p| (p.name.clone(), p)).collect();
    let names = desk.names();
    let models: BTreeMap<_, _> =
        entries.models.iter().flatten().filter_map(|e| desk.model(e)).map(|m| (m.name.clone(), m)).collect();
    let tiers: BTreeMap<_, _> = entries
        .tiers
        .iter()
        .flatten()
        .filter_map(|e| desk.tier(e, &names, &models))
        .map(|t| (t.name.clone(), t))
        .collect();
    desk.unique_paths();
    desk.known_rails();
    let routes =
        entries.routes.iter().flatten().filter_map(|e| desk.route(e, &tiers)).map(|r| (r.path.clone(), r)).collect();
    let mut mistakes = desk.mistakes;
    if mistakes.is_empty() {
        return Ok(Plan { generation: files.generation(), routes, tiers, models, names, pools });
    }
    mistakes.sort_by(|a, b| a.spot.cmp(&b.spot));
    Err(mistakes)
}

/// Where the files lie side by side.
struct Desk<'a> {
    entries: &'a Entries,
    registry: Option<Registry<'a>>,
    catalogue: &'a Catalogue,
    mistakes: Vec<Mistake>,
}

impl Desk<'_> {
    fn wrong<T>(&mut self, said: &Said<T>, message: impl Into<String>) {
        self.mistakes.push(said.spot.mistake(message));
    }

    fn pool(&mut self, e: &PoolEntry) -> Option<Arc<PoolRules>> {
        let profile = e.profile.as_ref()?;
        let Some(ability) = self.catalogue.profiles.get(profile.value.as_str()).copied() else {
            let known = listed(self.catalogue.profiles.keys());
            self.wrong(profile, format!("{:?} is not a profile of this build: {known}", profile.value));
            return None;
        };
        let health = match &e.health {
            None => None,
            Some(health) => {
                let path = health.path.clone().or_else(|| ability.health_path.map(str::to_owned));
                if path.is_none() {
                    let why =
                        format!("`path` is missing: profile {:?} has no health endpoint of its own", profile.value);
                    self.mistakes.push(health.spot.mistake(why));
                }
                Some(HealthRules { path: path?, every_seconds: health.every_seconds })
            }
        };
        Some(Arc::new(PoolRules {
            name: e.name.value.clone(),
            profile: profile.value.clone(),
            surfaces: e.surfaces.clone(),
            servers: e.servers.clone(),
            discovery: e.discovery,
            balance: e.balance,
            queue: e.queue,
            fallback: self.fallback(e),
            api_key: e.api_key.clone(),
            health,
            timeouts: e.timeouts,
        }))
    }

    /// A pool that exists, from which no chain of fallbacks leads back.
    fn fallback(&mut self, e: &PoolEntry) -> Option<PoolName> {
        let pools = self.entries.pools.as_deref().unwrap_or_default();
        let said = e.fallback.as_ref()?;
        let next = |name: &PoolName| pools.iter().find(|p| p.name.value == *name);
        let mut seen = BTreeSet::from([&e.name.value]);
        let mut at = next(&said.value);
        if at.is_none() {
            self.wrong(said, format!("{:?} is not in pools.toml", said.value.as_str()));
        }
        while let Some(pool) = at {
            if !seen.insert(&pool.name.value) {
                // Whoever is on the circle is told; whoever only leads to it is not accused.
                if pool.name.value == e.name.value {
                    self.wrong(said, "leads back to this pool");
                }
                break;
            }
            at = pool.fallback.as_ref().and_then(|said| next(&said.value));
        }
        Some(said.value.clone())
    }

    /// Every name a client may say. A name that could mean two models means neither.
    fn names(&mut self) -> HashMap<String, PublicModel> {
        let models: &[ModelEntry] = self.entries.models.as_deref().unwrap_or_default();
        let mut names: HashMap<String, PublicModel> =
            models.iter().map(|m| (m.name.value.as_str().to_owned(), m.name.value.clone())).collect();
        for model in models {
            for alias in &model.aliases {
                if let Err(why) = entry::model_name(&alias.value) {
                    self.wrong(alias, format!("{:?} {why}", alias.value));
                } else if let Some(other) = names.get(&alias.value) {
                    let why = format!("{:?} already means {:?}", alias.value, other.as_str());
                    self.wrong(alias, why);
                } else {
                    names.insert(alias.value.clone(), model.name.value.clone());
                }
            }
        }
        names
    }

    fn model(&mut self, e: &ModelEntry) -> Option<Arc<Model>> {
        let pool = e.pool.as_ref();
        if let (Some(pool), Some(pools)) = (pool, &self.entries.pools)
            && !pools.iter().any(|p| p.name.value == pool.value)
        {
            self.wrong(pool, format!("{:?} is not in pools.toml", pool.value.as_str()));
        }
        for (pool, _) in &e.elsewhere {
            if self.entries.pools.as_ref().is_some_and(|pools| !pools.iter().any(|p| p.name.value == pool.value)) {
                self.wrong(pool, format!("{:?} is not in pools.toml", pool.value.as_str()));
            }
        }
        if let Some(v) = &e.vocabulary
            && v.value != BYTES
            && !self.catalogue.vocabularies.contains(&v.value.as_str())
        {
            let known = listed(&self.catalogue.vocabularies);
            self.wrong(v, format!("{:?} is not a vocabulary of this build: {known}", v.value));
        }
        let tariff = self.tariff(e)?;
        Some(Arc::new(Model {
            name: e.name.value.clone(),
            upstream: e.upstream.clone()?,
            elsewhere: e.elsewhere.iter().map(|(pool, name)| (pool.value.clone(), name.clone())).collect(),
            pool: pool?.value.clone(),
            price: tariff.prices,
            stated: e.stated.then(|| self.entries.prices.markup.as_ref().map_or(Factor::ONE, |said| said.value)),
            sources: tariff.sources,
            not_applied: tariff.not_applied,
            max_input: tariff.max_input,
            max_output: tariff.max_output,
            vocabulary: e.vocabulary.as_ref().map(|v| v.value.clone()).filter(|v| v != BYTES),
            hidden_output: e.hidden_output,
            images: e.images,
        }))
    }

    /// What a model costs, out of all that is said about it.
    fn tariff(&mut self, e: &ModelEntry) -> Option<Tariff> {
        let own = e.price.as_ref()?;
        let prices = &self.entries.prices;
        let list = prices.registry.as_ref().map_or("", |said| said.value.as_str());
        let row = match (&own.price_as, &self.registry) {
            // Its mistake is recorded.
            (_, None) if !own.is_whole() && (prices.broken || prices.registry.is_some()) => return None,
            (Some(key), None) if prices.registry.is_none() && !prices.broken => {
                self.wrong(key, "there is no registry: write registry = \"model_prices.json\" into prices.toml");
                return None;
            }
            (Some(key), Some(registry)) => {
                let row = registry.named(&key.value);
                if row.is_none() {
                    self.wrong(key, format!("{:?} is not in {list}", key.value));
                    return None;
                }
                row
            }
            (None, Some(registry)) if !own.is_whole() => {
                let names = [Some(e.name.value.as_str()), e.upstream.as_ref().map(|name| name.as_str())];
                let mut names: Vec<&str> = names.into_iter().flatten().collect();
                names.dedup();
                let row = registry.of(&names);
                if row.is_none() {
                    let names = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" and no ");
                    let why = format!("{list} has no {names}: write price_as = \"<its key there>\", or price");
                    self.mistakes.push(own.spot.mistake(why));
                    return None;
                }
                row
            }
            _ => None,
        };
        if row.is_none() && !own.is_whole() {
            let missing: &[&str] = match (own.given.input, own.given.output) {
                (None, None) if own.given == Given::default() => &["price"],
                (None, None) => &["input", "output"],
                (None, _) => &["input"],
                _ => &["output"],
            };
            self.mistakes.extend(missing.iter().map(|key| own.spot.mistake(format!("`{key}` is missing"))));
            return None;
        }
        let markup = prices.markup.as_ref();
        let row = row.as_ref().map(|row| {
            let times = markup.map_or(String::new(), |said| format!(" x {} ({})", said.value, said.spot.place()));
            (row, markup.map_or(Factor::ONE, |said| said.value), format!("{list} {:?}{times}", row.key))
        });
        let key = row.as_ref().map(|(row, ..)| row.key.clone());
        let tariff = Tariff::of(own, row);
        if let Err(why) = &tariff {
            let whose = key.map_or(String::new(), |key| format!("{key:?} of {list} "));
            let spot = own.price_as.as_ref().map_or(&own.spot, |said| &said.spot);
            self.mistakes.push(spot.mistake(format!("{whose}{why}")));
        }
        tariff.ok()
    }

    fn tier(
        &mut self,
        e: &TierEntry,
        names: &HashMap<String, PublicModel>,
        models: &BTreeMap<PublicModel, Arc<Model>>,
    ) -> Option<Arc<Tier>> {
        let (sold, unnamed) = self.sold(e, names);
        let limits = e.limits.as_ref()?;
        let charge = match &e.charge {
            ChargeEntry::Is(charge) => Some(charge.value),
            ChargeEntry::Absent => None,
            ChargeEntry::Wrong => return None,
        };
        for model in sold.iter().filter_map(|name| models.get(name)) {
            if let (Some(Charge::Flat { usd, min_output_tokens: Some(least) }), ChargeEntry::Is(said)) =
                (charge, &e.charge)
                && model.price.dearest(Reach::text(0)).output.of(least).is_none_or(|cost| cost > usd)
            {
                let why = format!("{usd} USD do not pay for min_output_tokens of {:?}", model.name.as_str());
                self.wrong(said, why);
            }
            if dearest(limits, &model.price, charge).is_none() {
                let why = format!("the dearest request for {:?} costs more than can be counted", model.name.as_str());
                self.wrong(&e.name, why);
            }
        }
        Some(Arc::new(Tier {
            name: e.name.value.clone(),
            models: sold,
            unnamed,
            limits: limits.clone(),
            charge,
            missing_usage: e.missing_usage,
        }))
    }

    /// The tier's models with prefixes expanded, in order of the file, and those that serve who names none.
    fn sold(&mut self, e: &TierEntry, names: &HashMap<String, PublicModel>) -> (Vec<PublicModel>, Vec<PublicModel>) {
        let mut sold: Vec<PublicModel> = Vec::new();
        let mut exact = Vec::new();
        let mut written = BTreeSet::new();
        let Some(models) = &self.entries.models else { return (sold, exact) };
        for said in &e.models {
            let text = said.value.as_str();
            if !written.insert(text) {
                self.wrong(said, format!("{text:?} is in this list twice"));
            }
            let matched: Vec<&PublicModel> = match text.strip_suffix('*') {
                Some(prefix) => {
                    models.iter().map(|m| &m.name.value).filter(|name| name.as_str().starts_with(prefix)).collect()
                }
                None => match names.get(text) {
                    Some(name) if name.as_str() == text => vec![name],
                    Some(name) => {
                        self.wrong(said, format!("{text:?} is an alias; write {:?}", name.as_str()));
                        continue;
                    }
                    None => Vec::new(),
                },
            };
            if matched.is_empty() {
                let what = if text.ends_with('*') { "matches nothing" } else { "is not" };
                self.wrong(said, format!("{text:?} {what} in models.toml"));
            }
            if !text.ends_with('*') {
                exact.extend(matched.iter().copied().cloned());
            }
            for name in matched {
                if !sold.contains(name) {
                    sold.push(name.clone());
                }
            }
        }
        let unnamed = if exact.is_empty() { sold.clone() } else { exact };
        (sold, unnamed)
    }

    fn unique_paths(&mut self) {
        let mut first: HashMap<&str, Option<usize>> = HashMap::new();
        for said in self.entries.routes.iter().flatten().filter_map(|route| route.path.as_ref()) {
            let path = said.value.as_str();
            if let Some(line) = first.get(path) {
                let line = line.map_or(String::new(), |line| format!(" (line {line})"));
                self.mistakes.push(said.spot.mistake(format!("{path:?} is a route already{line}")));
            } else {
                first.insert(path, said.spot.line);
            }
        }
    }

    fn route(&mut self, e: &RouteEntry, tiers: &BTreeMap<TierName, Arc<Tier>>) -> Option<Arc<Route>> {
        let entry = match (&e.tier, &self.entries.tiers) {
            (Some(said), Some(written)) => {
                let entry = written.iter().find(|t| t.name.value == said.value);
                if entry.is_none() {
                    self.wrong(said, format!("{:?} is not in tiers.toml", said.value.as_str()));
                }
                entry
            }
            _ => None,
        };
        let mut seen = BTreeSet::new();
        for said in &e.accept {
            let rail = said.value.as_str();
            if !seen.insert(rail) {
                self.wrong(said, format!("{rail:?} is in this list twice"));
            }
            let Some(ability) = self.catalogue.rails.get(rail) else {
                let known = listed(self.catalogue.rails.keys());
                self.wrong(said, format!("{rail:?} is not a rail of pontage.toml: {known}"));
                continue;
            };
            if let (false, Some(surface)) = (ability.fixed_amount, e.surface.filter(|surface| surface.is_flat())) {
                let why = format!("charges what was used, and {} have a flat price only", surface.word());
                self.wrong(said, format!("{rail:?} {why}"));
            }
            let unpriced = entry.is_some_and(|tier| matches!(tier.charge, ChargeEntry::Absent));
            if let (true, true, Some(tier)) = (ability.fixed_amount, unpriced, &e.tier) {
                let tier = tier.value.as_str();
                self.wrong(said, format!("{rail:?} has a fixed amount, and tier.{tier} does not say `charge`"));
            }
            let bounded = entry.is_some_and(|tier| match &tier.charge {
                ChargeEntry::Is(said) => matches!(said.value, Charge::Flat { min_output_tokens: Some(_), .. }),
                _ => false,
            });
            if let (false, true, Some(tier)) = (ability.fixed_amount, bounded, &e.tier) {
                let tier = tier.value.as_str();
                let why = "refuses what its flat price does not pay for; give this rail a path of its own";
                self.wrong(said, format!("{rail:?} charges what was used, and tier.{tier} {why}"));
            }
        }
        self.priced_without_output(e, entry);
        self.spoken(e, tiers);
        Some(Arc::new(Route {
            path: e.path.as_ref()?.value.clone(),
            surface: e.surface?,
            tier: match (&e.tier, e.surface?) {
                (None, Surface::Models) => self.everything()?,
                (tier, _) => tiers.get(&tier.as_ref()?.value)?.clone(),
            },
            stream: e.stream,
            access: e.access?,
            accept: e.accept.iter().map(|said| said.value.clone()).collect(),
            discounts: self.discounts(e),
            by_usage: e
                .accept
                .iter()
                .any(|said| self.catalogue.rails.get(said.value.as_str()).is_some_and(|r| !r.fixed_amount)),
            receipt: e.receipt.clone(),
        }))
    }
}

impl Desk<'_> {
    /// What is taken off on the rails of a route.
    fn discounts(&self, e: &RouteEntry) -> BTreeMap<RailId, Discount> {
        let taken = |rail: &RailId| e.accept.iter().any(|said| said.value == *rail);
        let given = self.entries.prices.discounts.iter().filter(|(said, _)| taken(&said.value));
        given.map(|(said, discount)| (said.value.clone(), discount.clone())).collect()
    }

    /// Every rail that is given a discount exists.
    fn known_rails(&mut self) {
        for (said, _) in &self.entries.prices.discounts {
            if !self.catalogue.rails.contains_key(said.value.as_str()) {
                let known = listed(self.catalogue.rails.keys());
                self.wrong(said, format!("{:?} is not a rail of pontage.toml: {known}", said.value.as_str()));
            }
        }
    }

    /// What a path sells, the servers of every model's pool have.
    fn spoken(&mut self, e: &RouteEntry, tiers: &BTreeMap<TierName, Arc<Tier>>) {
        let (Some(surface), Some(said)) = (e.surface.filter(|surface| *surface != Surface::Models), &e.tier) else {
            return;
        };
        let entries = self.entries;
        let models = entries.models.as_deref().unwrap_or_default();
        let pools = entries.pools.as_deref().unwrap_or_default();
        let mut told = BTreeSet::new();
        for name in tiers.get(&said.value).iter().flat_map(|tier| &tier.models) {
            let model = models.iter().find(|model| model.name.value == *name);
            let pool = model.and_then(|model| model.pool.as_ref());
            let pool = pool.and_then(|pool| pools.iter().find(|entry| entry.name.value == pool.value));
            let Some((pool, profile)) = pool.and_then(|pool| Some((pool, pool.profile.as_ref()?))) else { continue };
            let Some(ability) = self.catalogue.profiles.get(profile.value.as_str()) else { continue };
            let has = ability.surfaces.contains(&surface) || pool.surfaces.contains(&surface);
            if !has && told.insert(&pool.name.value) {
                let (name, pool, word) = (name.as_str(), pool.name.value.as_str(), surface.word());
                let why = format!(
                    "{name:?} is in pool.{pool}, and profile {:?} has no {word}: name a tier without it, or write surfaces = [{word:?}] \
                     into pool.{pool} if its servers have it all the same",
                    profile.value
                );
                self.wrong(said, why);
            }
        }
    }

    /// Where a reply has no tokens of output, no price can be made from them.
    fn priced_without_output(&mut self, e: &RouteEntry, tier: Option<&TierEntry>) {
        let (Some(surface), Some(said), Some(tier)) = (e.surface, &e.tier, tier) else { return };
        if surface == Surface::Models || surface.has_output() || e.access != Some(Access::Paid) {
            return;
        }
        let charge = match &tier.charge {
            ChargeEntry::Is(charge) => Some(charge.value),
            ChargeEntry::Absent => None,
            ChargeEntry::Wrong => return,
        };
        let (word, tier) = (surface.word(), said.value.as_str());
        match charge {
            Some(Charge::Flat { min_output_tokens: None, .. }) => {}
            None | Some(Charge::Ceiling) if !surface.is_flat() => {}
            _ if surface.is_flat() => {
                let why = format!("{word} have a flat price: tier.{tier} must say charge = {{ flat = \"…\" }}");
                self.wrong(said, why);
            }
            _ => {
                let why = format!(
                    "{word} have no output: tier.{tier} must say charge = {{ ceiling = true }} or {{ flat = \"…\" }}"
                );
                self.wrong(said, why);
            }
        }
    }

    /// What a list without a tier shows: every model. Nothing is sold by it.
    fn everything(&self) -> Option<Arc<Tier>> {
        let models = self.entries.models.as_ref()?;
        Some(Arc::new(Tier {
            name: TierName::from(""),
            models: models.iter().map(|model| model.name.value.clone()).collect(),
            unnamed: Vec::new(),
            limits: Limits {
                max_body_bytes: 0,
                max_output_tokens: 0,
                max_input_tokens: Some(0),
                max_n: 0,
                over_limit: OverLimit::Refuse,
                unknown_fields: UnknownFields::Refuse,
                image_url: None,
                drawn: Drawn::default(),
            },
            charge: None,
            missing_usage: MissingUsage::default(),
        }))
    }
}

/// The price list that `prices.toml` names, when it can be read.
fn registry<'t>(files: &'t Files, entries: &Entries, mistakes: &mut Vec<Mistake>) -> Option<Registry<'t>> {
    let said = entries.prices.registry.as_ref()?;
    let opened = files.registry()?.map_err(str::to_owned).and_then(Registry::open);
    opened.map_err(|why| mistakes.push(said.spot.mistake(format!("{:?} {why}", said.value)))).ok()
}

/// The most one request of a tier can cost, or `None` past the largest amount: found out here, so that it is never found out
/// while somebody waits for a price.
fn dearest(limits: &Limits, price: &Prices, charge: Option<Charge>) -> Option<()> {
    let bytes = u64::try_from(limits.max_body_bytes).ok()?;
    let most = limits.max_input_tokens.unwrap_or(bytes).max(bytes);
    let each = price.dearest(Reach { prompt: u64::MAX, sound: true, pictures: true, hour: true });
    let prompt = each.input.of(most)?.plus(price.per_request)?;
    let output = each.output.of(limits.max_output_tokens.checked_mul(limits.max_n)?)?;
    let images = limits.image_url.unwrap_or_default().of(bytes, 0)?;
    let prompt = match charge {
        Some(Charge::Estimate { overhead, .. }) => overhead.times(prompt)?,
        _ => prompt,
    };
    let flat = match charge {
        // For each picture, where pictures are sold.
        Some(Charge::Flat { usd, .. }) => crate::money::Usd(usd.0.checked_mul(u128::from(limits.max_n))?),
        Some(Charge::Estimate { shortfall: Shortfall::Absorb { per_day, .. }, .. }) => per_day,
        _ => crate::money::Usd::ZERO,
    };
    prompt.plus(output)?.plus(images)?.plus(flat).map(|_| ())
}

fn listed<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "there is none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
