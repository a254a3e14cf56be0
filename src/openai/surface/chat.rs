//! Chat completions: messages in, one or more answers out.

use super::{A, B, Fields, Form, N, O, Rule, S, Told, Weight, at_most, bool_of, names, write_count, write_stream};
use crate::limits::{Limits, Spelling};
use crate::openai::prompt::{Found, Reader, bad};
use crate::openai::request::{Ask, Rewrite};
use crate::openai::strict::Kind;
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
    ("reasoning_effort", Rule::Copied(&[S])),
    ("response_format", Rule::Checked),
    ("safety_identifier", Rule::Copied(&[S])),
    ("seed", Rule::Copied(&[N])),
    ("service_tier", Rule::Checked),
    ("stop", Rule::Copied(&[S, A])),
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

/// Fields of which only some values are free of charge; passes the value.
fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    let not_priced = Err(Refusal::NotPriced { param: name.to_owned() });
    match name {
        "messages" => reader.messages(),
        "tools" => reader.tools(),
        // Schemas and legacy functions are rendered into the prompt.
        "response_format" | "functions" => reader.raw_piece().map(drop),
        "modalities" => {
            if reader.scanner.peek()? != Kind::Array {
                return Err(bad(name, "must be an array"));
            }
            let mut array = reader.scanner.array()?;
            while reader.scanner.next_item(&mut array)? {
                if reader.string_of(name)? != "text" {
                    return not_priced;
                }
            }
            Ok(())
        }
        "service_tier" => match reader.string_of(name)?.as_ref() {
            "default" | "auto" => Ok(()),
            _ => not_priced,
        },
        "prompt_cache_retention" => match reader.string_of(name)?.as_ref() {
            "in_memory" | "in-memory" => Ok(()),
            _ => not_priced,
        },
        // `store`: a stored completion can be fetched past the gate.
        _ if bool_of(reader, name)? => not_priced,
        _ => Ok(()),
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    told.take(name, reader)
}

fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    let max_output = told.limited_output(limits)?;
    Ok(Weight {
        n: at_most("n", told.said.n.unwrap_or(1), limits.max_n)?,
        max_output,
        asked_output: told.asked_output(),
        nothing_asked: found.messages == 0,
        whole_only: None,
    })
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
