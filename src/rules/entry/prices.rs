//! `prices.toml`: whose price list is used, what is added to it, and what is taken off on a rail.

use crate::ids::RailId;
use crate::money::Factor;
use crate::rules::plan::Discount;
use crate::written::{Said, Section};

/// The file. Empty when there is none.
#[derive(Debug, Default)]
pub struct PricesEntry {
    /// It is there and cannot be understood: nothing may be concluded from what it does not say.
    pub broken: bool,
    /// The price list: a path relative to the rule set, or absolute.
    pub registry: Option<Said<String>>,
    /// What the list's prices are multiplied by.
    pub markup: Option<Said<Factor>>,
    /// What is taken off on a rail.
    pub discounts: Vec<(Said<RailId>, Discount)>,
}

/// Reads the file.
pub(super) fn read(s: &Section<'_>) -> PricesEntry {
    let mut entry = PricesEntry::default();
    if let Some(v) = s.take("registry") {
        entry.registry = v.text().map(|text| v.said(text.to_owned()));
        entry.broken |= entry.registry.is_none();
    }
    if let Some(v) = s.take("markup") {
        entry.markup = v.amount(Factor::parse).map(|factor| v.said(factor));
        if entry.markup.as_ref().is_some_and(|said| said.value.below_one()) {
            v.wrong("is below 1: less than the list is a discount, and that is of a rail");
        }
        if s.take("registry").is_none() {
            v.wrong("is of a registry, and there is none: prices of models.toml are final");
        }
        entry.broken |= entry.markup.is_none();
    }
    if let Some(rails) = s.take("rail").and_then(|v| v.section()) {
        for (rail, value) in rails.entries() {
            let Some(table) = value.section() else { continue };
            let Some(off) = table.need("discount") else { continue };
            let Some(discount) = off.amount(Factor::parse) else { continue };
            match discount.rest() {
                Some(share) => {
                    let discount = Discount { off: discount, share, from: off.spot().place() };
                    entry.discounts.push((value.said(RailId::from(rail)), discount));
                }
                None => off.wrong("is 1 or more: nothing would be left to pay"),
            }
        }
    }
    entry
}
