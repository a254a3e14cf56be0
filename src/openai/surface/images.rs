//! Images: a text in, pictures out, at the tier's flat price for each of them.
//!
//! What makes a picture dearer at a vendor (its size, its quality) is part of what the tier sells for that price. The price has to
//! pay for the dearest picture of those that the tier lists ([`crate::limits::Drawn`]), of any where it lists none.

use super::{Fields, Form, N, Rule, S, Told, Weight, at_most, names, write_count};
use crate::limits::Limits;
use crate::openai::prompt::{Found, Reader, bad};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;

/// The schema of OpenAI without what streams.
const FIELDS: Fields = &[
    ("background", Rule::Copied(&[S])),
    ("model", Rule::Ours),
    ("moderation", Rule::Copied(&[S])),
    ("n", Rule::Ours),
    ("output_compression", Rule::Copied(&[N])),
    ("output_format", Rule::Copied(&[S])),
    // Each is billed beside the picture.
    ("partial_images", Rule::Unpriced),
    ("prompt", Rule::Checked),
    ("quality", Rule::Checked),
    ("response_format", Rule::Copied(&[S])),
    ("size", Rule::Checked),
    ("stream", Rule::Ours),
    ("style", Rule::Copied(&[S])),
    ("user", Rule::Copied(&[S])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    let sold = match name {
        "size" => &reader.limits.drawn.sizes,
        "quality" => &reader.limits.drawn.qualities,
        // `prompt`
        _ => return reader.input(name),
    };
    let said = reader.string_of(name)?;
    if sold.is_empty() || sold.iter().any(|word| *word == said) {
        return Ok(());
    }
    Err(bad(name, &format!("must be one of those sold here: {}", sold.join(", "))))
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    told.take(name, reader)
}

fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    let n = at_most("n", told.said.n.unwrap_or(1), limits.max_n)?;
    let fields = [("size", &limits.drawn.sizes), ("quality", &limits.drawn.qualities)];
    let unsaid = fields.into_iter().filter(|(name, _)| !told.copied.iter().any(|(said, _)| said == name));
    // No backend's own default decides what it draws.
    let filled_in = unsaid.filter_map(|(name, sold)| Some((name, sold.first()?.clone()))).collect();
    Ok(Weight { n, asked_output: Some(0), nothing_asked: found.is_silent(), filled_in, ..Weight::default() })
}

fn write(ask: &Ask, _: &Rewrite<'_>, out: &mut Vec<u8>) {
    // Always said, so that no backend's own default decides how many there are.
    write_count("n", ask.n, out);
    for (name, word) in &ask.filled_in {
        out.extend_from_slice(format!(",\"{name}\":\"{word}\"").as_bytes());
    }
}
