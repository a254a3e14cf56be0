//! Transcriptions: a form with a file of sound in, text out, at the tier's flat price for a request.

use super::{Told, Weight};
use crate::ids::{self, UpstreamModel};
use crate::limits::{Limits, UnknownFields};
use crate::openai::multipart::{self, Part};
use crate::openai::prompt::{bad, folds_to, shown};
use crate::refusal::Refusal;
use bytes::Bytes;

/// What every field of the form is to us.
const FIELDS: &[(&str, Field)] = &[
    ("chunking_strategy", Field::Once),
    ("file", Field::Once),
    ("include[]", Field::Often),
    ("known_speaker_names[]", Field::Often),
    ("known_speaker_references[]", Field::Often),
    ("language", Field::Once),
    ("model", Field::Ours),
    ("prompt", Field::Once),
    ("response_format", Field::Once),
    ("stream", Field::Ours),
    ("temperature", Field::Once),
    ("timestamp_granularities[]", Field::Often),
];

const NAMES: [&str; FIELDS.len()] = {
    let mut names = [""; FIELDS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FIELDS[i].0;
        i += 1;
    }
    names
};

/// How a field is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    /// Copied; a second one is refused, for readers differ on which of them counts.
    Once,
    /// Copied as often as it is there.
    Often,
    /// Read, and written by us; there is one.
    Ours,
}

/// Reads a form. What of it is unknown is refused or left out, as the tier says.
pub(in crate::openai) fn read(body: &[u8], limits: &Limits) -> Result<(Told, Weight), Refusal> {
    let mut told = Told::default();
    let mut seen: Vec<&str> = Vec::new();
    for part in multipart::read(body)? {
        let Some((name, field)) = FIELDS.iter().find(|(name, _)| *name == part.name) else {
            unknown(part.name, limits)?;
            continue;
        };
        if *field != Field::Often && seen.contains(name) {
            return Err(bad(*name, "occurs twice in the form"));
        }
        seen.push(*name);
        if *field == Field::Ours {
            let content = body.get(part.content).unwrap_or_default();
            let text = std::str::from_utf8(content).map_err(|_| bad(*name, "must be text in UTF-8"))?;
            match (*name, text) {
                ("model", model) => told.model = Some(model.to_owned()),
                (_, "true") => told.stream = true,
                (_, "false") => {}
                _ => return Err(bad(*name, "must be true or false")),
            }
        }
    }
    Ok((told, Weight { nothing_asked: !seen.contains(&"file"), ..nothing() }))
}

/// What a request without a body comes to.
pub(in crate::openai) fn nothing() -> Weight {
    Weight { n: 1, max_output: 0, asked_output: Some(0), nothing_asked: true, ..Weight::default() }
}

/// The form for the backend: its name for the model, and the parts that were not left out, byte for byte.
pub(in crate::openai) fn write(body: &[u8], model: &UpstreamModel, withheld: &[&str]) -> Bytes {
    let boundary = ids::fresh("form");
    let mut out = Vec::with_capacity(body.len() + 512);
    let ours = Part { name: "model", filename: None, content_type: None, content: 0..0 };
    multipart::write(&boundary, &ours, model.as_str().as_bytes(), &mut out);
    // It was a form when it was read.
    for part in multipart::read(body).unwrap_or_default() {
        let known = FIELDS.iter().find(|(name, _)| *name == part.name);
        let copied = known.is_some_and(|(name, field)| *field != Field::Ours && !withheld.contains(name));
        if copied {
            multipart::write(&boundary, &part, body.get(part.content.clone()).unwrap_or_default(), &mut out);
        }
    }
    multipart::close(&boundary, &mut out);
    out.into()
}

fn unknown(name: &str, limits: &Limits) -> Result<(), Refusal> {
    if let Some(known) = folds_to(name, &NAMES) {
        return Err(bad(known, "is spelled with other letters than its own; some readers would take it, some not"));
    }
    match limits.unknown_fields {
        UnknownFields::Refuse => Err(Refusal::UnknownField { param: shown(name) }),
        UnknownFields::Strip => Ok(()),
    }
}
