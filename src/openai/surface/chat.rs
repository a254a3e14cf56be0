//! Chat completions: messages in, one or more answers out.

use super::{
    B, Fields, Form, N, O, Rule, S, SHORT_CACHES, SPEEDS, Told, Weight, at_most, bool_of, names, one_of, stops,
    write_count, write_stream,
};
use crate::limits::{Limits, Spelling};
use crate::openai::prompt::{Found, Reader};
use crate::openai::request::{Ask, Rewrite};
use crate::refusal::Refusal;

/// The whole schema of OpenAI.
const FIELDS: Fields = &[
    ("audio", Rule::Unpriced),
    ("frequency_penalty", Rule::Copied(&[N])),
    ("function_call", Rule::Copied(&[S, O])),
    ("functions", Rule::Checked),
    ("logit_bias", Rule::Copied(&[O])),
    ("logprobs", Rule::Copied(&[B])),
    ("max_completion_tokens", Rule::Ours),
    ("max_tokens", Rule::Ours),
    ("messages", Rule::Checked),
    ("metadata", Rule::Copied(&[O])),
    ("modalities", Rule::Checked),
    ("model", Rule::Ours),
    ("n", Rule::Ours),
    ("parallel_tool_calls", Rule::Copied(&[B])),
    ("prediction", Rule::Unpriced),
    ("presence_penalty", Rule::Copied(&[N])),
    ("prompt_cache_key", Rule::Copied(&[S])),
    ("prompt_cache_retention", Rule::Checked),
    ("reasoning_effort", Rule::Checked),
    ("response_format", Rule::Checked),
    ("safety_identifier", Rule::Copied(&[S])),
    ("seed", Rule::Copied(&[N])),
    ("service_tier", Rule::Checked),
    ("stop", Rule::Checked),
    ("store", Rule::Checked),
    ("stream", Rule::Ours),
    ("stream_options", Rule::Ours),
    ("temperature", Rule::Copied(&[N])),
    ("tool_choice", Rule::Copied(&[S, O])),
    ("tools", Rule::Checked),
    ("top_logprobs", Rule::Copied(&[N])),
    ("top_p", Rule::Copied(&[N])),
    ("user", Rule::Copied(&[S])),
    ("verbosity", Rule::Copied(&[S])),
    ("web_search_options", Rule::Unpriced),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

const TOOL: &[&str] = &["type", "function", "custom"];

/// Fields of which only some values are free of charge; passes the value.
fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "messages" => reader.messages(),
        "tools" => reader.tools(TOOL),
        // Schemas and legacy functions are rendered into the prompt.
        "response_format" | "functions" => reader.raw_piece().map(drop),
        "stop" => stops(name, reader),
        "reasoning_effort" => reader.effort(name),
        "modalities" => reader.items(name, |reader, _| one_of(&["text"], name, reader)),
        "service_tier" => one_of(SPEEDS, name, reader),
        "prompt_cache_retention" => one_of(SHORT_CACHES, name, reader),
        // `store`: a stored completion can be fetched past the gate.
        _ if bool_of(reader, name)? => Err(Refusal::NotPriced { param: name.to_owned() }),
        _ => Ok(()),
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    told.take(name, reader)
}

fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    let one = Weight::of_one(told, found, told.limited_output(limits)?);
    Ok(Weight { n: at_most("n", told.said.n.unwrap_or(1), limits.max_n)?, ..one })
}

fn write(ask: &Ask, to: &Rewrite<'_>, out: &mut Vec<u8>) {
    let limit = match to.spelling {
        Spelling::MaxTokens => "max_tokens",
        Spelling::MaxCompletionTokens => "max_completion_tokens",
    };
    write_count(limit, ask.max_output.min(to.max_output), out);
    if let Some(n) = ask.said.n {
        write_count("n", n, out);
    }
    write_stream(ask, to, out);
}
