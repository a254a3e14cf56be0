//! What a refused request would need, and where else it could go, in numbers that a client can act on.

use crate::money::Usd;
use crate::surface::Surface;

/// A request that may cost more than its flat price, in numbers that a client can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The price.
    pub price: Usd,
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Who counted them.
    pub counted_by: &'static str,
    /// Output tokens that each choice must be able to have: the tier's least, or what was asked.
    pub output: u64,
    /// Choices.
    pub n: u64,
    /// So many tokens less of the prompt would do; `None` where no prompt is short enough.
    pub shorten_by: Option<u64>,
    /// So many choices would do; 0 where not even one does.
    pub n_within: u64,
    /// Output tokens of each choice that the rest of the price pays for; 0 where there is no rest.
    pub output_within: u64,
}

/// What makes a request cost less, if anything does.
pub(super) fn cheaper(surface: Surface, is_flat: bool) -> String {
    match (is_flat, surface.has_output()) {
        (true, _) => "so does every such request on this path: use another path, or tell its operator".to_owned(),
        (_, true) => format!("ask for less output ({}), or shorten the prompt", surface.output_field()),
        (_, false) => "ask for less".to_owned(),
    }
}

impl Gap {
    /// What is wrong, then every way out.
    pub(super) fn message(&self, surface: Surface, sold_at: &[Place]) -> String {
        let Self { price, prompt, counted_by, output, n, .. } = self;
        let choices = if *n == 1 { String::new() } else { format!(" for each of {n} choices") };
        let mut ways = Vec::new();
        if let Some(tokens) = self.shorten_by {
            ways.push(format!("shorten the prompt by {tokens} tokens"));
        }
        if (1..*n).contains(&self.n_within) {
            ways.push(format!("lower n to {}", self.n_within));
        }
        if self.output_within > 0 {
            let field = surface.output_field();
            ways.push(format!("ask for at most {} tokens of output ({field})", self.output_within));
        }
        if !sold_at.is_empty() {
            ways.push(format!("use {}", named(sold_at)));
        }
        let ways =
            if ways.is_empty() { "there is no path here that would take it".to_owned() } else { ways.join(", or ") };
        format!(
            "the prompt has {prompt} tokens (counted by {counted_by}), and ${price} does not pay for it with {output} tokens of \
             output{choices}: {ways}"
        )
    }
}

/// Where a request could go instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path of a route.
    pub path: String,
    /// What it costs there, in words.
    pub price: String,
}

/// How many places one sentence names.
const MOST_PLACES: usize = 8;

/// Places with their prices, as part of a sentence.
pub(super) fn named(places: &[Place]) -> String {
    let said: Vec<String> =
        places.iter().take(MOST_PLACES).map(|place| format!("{} for {}", place.path, place.price)).collect();
    said.join(", or at ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;

    #[test]
    fn a_wrong_path_is_answered_with_every_right_one_in_the_order_given() {
        let place = |path: &str, price: &str| Place { path: path.into(), price: price.into() };
        let asked = || "m".to_owned();
        let two = vec![place("/nano", "$0.001 per request"), place("/pro", "$0.02 per request")];
        let named = Refusal::WrongTier { asked: asked(), sold_at: two }.message();
        assert_eq!(
            named,
            "the model \"m\" is not sold here; it is sold at /nano for $0.001 per request, or at /pro for $0.02 per request"
        );
        assert_eq!(
            Refusal::WrongTier { asked: asked(), sold_at: Vec::new() }.message(),
            "the model \"m\" is not sold here"
        );
        let many = Refusal::WrongTier { asked: asked(), sold_at: vec![place("/p", "$1"); 50] }.message();
        assert_eq!(many.matches("/p for $1").count(), MOST_PLACES, "an answer stays short");
    }

    #[test]
    fn a_price_that_is_too_low_is_answered_with_every_way_out_and_no_other() {
        let gap = Gap {
            price: Usd(2_000_000_000_000_000),
            prompt: 900,
            counted_by: "o200k",
            output: 64,
            n: 3,
            shorten_by: Some(120),
            n_within: 2,
            output_within: 40,
        };
        let pro = || vec![Place { path: "/pro".into(), price: "$0.02 per request".into() }];
        let start =
            "the prompt has 900 tokens (counted by o200k), and $0.002 does not pay for it with 64 tokens of output";
        let dead = Gap { n: 1, shorten_by: None, n_within: 0, output_within: 0, ..gap };
        for (gap, sold_at, want) in [
            (
                gap,
                pro(),
                " for each of 3 choices: shorten the prompt by 120 tokens, or lower n to 2, or ask for at most 40 tokens of output \
                 (max_tokens), or use /pro for $0.02 per request",
            ),
            (Gap { n: 1, n_within: 0, output_within: 0, ..gap }, vec![], ": shorten the prompt by 120 tokens"),
            (Gap { n_within: 0, ..dead }, pro(), ": use /pro for $0.02 per request"),
            (dead, vec![], ": there is no path here that would take it"),
        ] {
            assert_eq!(Refusal::OverPrice { surface: Surface::Chat, gap, sold_at }.message(), format!("{start}{want}"));
        }
    }
}
