//! Embeddings: texts in, vectors out. There is no output that has tokens, and nothing streams.

use super::{Fields, Form, N, Rule, S, Told, Weight, at_most, names};
use crate::limits::Limits;
use crate::openai::prompt::{Found, Reader, bad};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;

/// Most texts of one request, as OpenAI has it.
const MOST_INPUTS: u64 = 2048;

/// The whole schema of OpenAI.
const FIELDS: Fields = &[
    ("dimensions", Rule::Copied(&[N])),
    ("encoding_format", Rule::Checked),
    ("input", Rule::Checked),
    ("model", Rule::Ours),
    ("user", Rule::Copied(&[S])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    if name == "input" {
        return reader.inputs(name);
    }
    match reader.string_of(name)?.as_ref() {
        "float" | "base64" => Ok(()),
        _ => Err(bad(name, "must be float or base64")),
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    told.take(name, reader)
}

fn weigh(_: &Told, found: &Found, _: &Limits) -> Result<Weight, Refusal> {
    at_most("input", found.messages, MOST_INPUTS)?;
    Ok(Weight { n: 1, max_output: 0, asked_output: Some(0), nothing_asked: found.is_silent(), ..Weight::default() })
}

fn write(_: &Ask, _: &Rewrite<'_>, _: &mut Vec<u8>) {}
