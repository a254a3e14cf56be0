//! Speech: a text in, sound out, at the tier's flat price for a request.

use super::{Fields, Form, N, Rule, S, Told, Weight, names};
use crate::limits::Limits;
use crate::openai::prompt::{Found, Reader, bad};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;

/// The whole schema of OpenAI.
const FIELDS: Fields = &[
    ("input", Rule::Checked),
    ("instructions", Rule::Checked),
    ("model", Rule::Ours),
    ("response_format", Rule::Checked),
    ("speed", Rule::Copied(&[N])),
    ("stream_format", Rule::Checked),
    ("voice", Rule::Copied(&[S])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "input" => reader.input(name),
        "instructions" => reader.text(name),
        "response_format" => match reader.string_of(name)?.as_ref() {
            "mp3" | "opus" | "aac" | "flac" | "wav" | "pcm" => Ok(()),
            _ => Err(bad(name, "must be one of mp3, opus, aac, flac, wav, pcm")),
        },
        // Events would hold the sound in pieces of text.
        _ => match reader.string_of(name)?.as_ref() {
            "audio" => Ok(()),
            _ => Err(bad(name, "must be audio: this path does not stream")),
        },
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    told.take(name, reader)
}

fn weigh(_: &Told, found: &Found, _: &Limits) -> Result<Weight, Refusal> {
    Ok(Weight { n: 1, max_output: 0, asked_output: Some(0), nothing_asked: found.is_silent(), ..Weight::default() })
}

fn write(_: &Ask, _: &Rewrite<'_>, _: &mut Vec<u8>) {}
