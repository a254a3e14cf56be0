//! Images: a text in, pictures out, at the tier's flat price for each of them.
//!
//! What makes a picture dearer at a vendor (its size, its quality) is part of what the tier sells for that price: a vendor's
//! dearest picture of the model is what the price has to pay for.

use super::{Fields, Form, N, Rule, S, Told, Weight, at_most, names, write_count};
use crate::limits::Limits;
use crate::openai::prompt::{Found, Reader};
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
    ("quality", Rule::Copied(&[S])),
    ("response_format", Rule::Copied(&[S])),
    ("size", Rule::Copied(&[S])),
    ("stream", Rule::Ours),
    ("style", Rule::Copied(&[S])),
    ("user", Rule::Copied(&[S])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    reader.input(name)
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    told.take(name, reader)
}

fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    let n = at_most("n", told.said.n.unwrap_or(1), limits.max_n)?;
    Ok(Weight { n, max_output: 0, asked_output: Some(0), nothing_asked: found.messages == 0, whole_only: None })
}

fn write(ask: &Ask, _: &Rewrite<'_>, out: &mut Vec<u8>) {
    // Always said, so that no backend's own default decides how many there are.
    write_count("n", ask.n, out);
}
