//! Legacy completions: a text, or several, that the model continues.

use super::{
    Fields, Form, N, O, Rule, S, Told, Weight, at_most, bool_of, count_of, names, stops, write_count, write_stream,
};
use crate::limits::Limits;
use crate::openai::prompt::{Found, Reader};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;

/// The whole schema of OpenAI.
const FIELDS: Fields = &[
    ("best_of", Rule::Ours),
    ("echo", Rule::Ours),
    ("frequency_penalty", Rule::Copied(&[N])),
    ("logit_bias", Rule::Copied(&[O])),
    ("logprobs", Rule::Copied(&[N])),
    ("max_tokens", Rule::Ours),
    ("model", Rule::Ours),
    ("n", Rule::Ours),
    ("presence_penalty", Rule::Copied(&[N])),
    ("prompt", Rule::Checked),
    ("seed", Rule::Copied(&[N])),
    ("stop", Rule::Checked),
    ("stream", Rule::Ours),
    ("stream_options", Rule::Ours),
    ("suffix", Rule::Checked),
    ("temperature", Rule::Copied(&[N])),
    ("top_p", Rule::Copied(&[N])),
    ("user", Rule::Copied(&[S])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "prompt" => reader.inputs(name),
        "stop" => stops(name, reader),
        // A model that fills in reads what comes behind as well.
        _ => reader.text(name),
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "best_of" => told.said.best_of = Some(count_of(reader, name)?),
        "echo" => told.said.echo = bool_of(reader, name)?,
        _ => told.take(name, reader)?,
    }
    Ok(())
}

/// Every prompt has its own choices, and of `best_of` all are billed and the best shown.
fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    let shown = told.said.n.unwrap_or(1);
    let made = told.said.best_of.unwrap_or(shown);
    if made < shown {
        return Err(Refusal::BadField {
            param: "best_of".to_owned(),
            why: "must not be less than n: so many are to be shown".to_owned(),
        });
    }
    let param = many(found.messages, told.said.best_of);
    // An echo comes back with the text and would be taken for text; the best of several is known when all of them end.
    let whole_only = match told.said {
        said if said.echo => Some("echo"),
        _ if made > shown => Some("best_of"),
        _ => None,
    };
    Ok(Weight {
        n: at_most(param, made.saturating_mul(found.messages.max(1)), limits.max_n)?,
        max_output: told.limited_output(limits)?,
        asked_output: told.asked_output(),
        nothing_asked: found.messages == 0,
        whole_only,
        filled_in: Vec::new(),
    })
}

/// What made so many of them: the field to blame where they are too many.
pub(in crate::openai) fn many(prompts: u64, best_of: Option<u64>) -> &'static str {
    match (prompts > 1, best_of) {
        (true, _) => "prompt",
        (false, Some(_)) => "best_of",
        (false, None) => "n",
    }
}

fn write(ask: &Ask, to: &Rewrite<'_>, out: &mut Vec<u8>) {
    // The only spelling there is.
    write_count("max_tokens", ask.max_output.min(to.max_output), out);
    if let Some(n) = ask.said.n {
        write_count("n", n, out);
    }
    if let Some(best_of) = ask.said.best_of {
        write_count("best_of", best_of, out);
    }
    if ask.said.echo {
        out.extend_from_slice(b",\"echo\":true");
    }
    write_stream(ask, to, out);
}
