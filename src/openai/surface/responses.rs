//! OpenAI's responses, stateless: the whole conversation comes as `input`, and nothing stays at the backend.
//!
//! What a backend keeps can be fetched past the gate, and what it adds from its memory was never priced: `store` leaves as
//! false, and whatever refers to something kept is refused. Hosted tools and files are run and billed by the backend, by the
//! call or by the page.

use super::{
    B, Fields, Form, N, O, Rule, S, SHORT_CACHES, SPEEDS, Told, Weight, bool_of, caller, names, one_of, write_count,
    write_flag,
};
use crate::limits::Limits;
use crate::openai::prompt::{Found, ONE_TYPE, Reader, bad};
use crate::openai::request::{Ask, Rewrite};
use crate::openai::strict::Kind;
use crate::refusal::Refusal;

/// The whole schema.
const FIELDS: Fields = &[
    ("background", Rule::Checked),
    ("context_management", Rule::Unpriced),
    ("conversation", Rule::Checked),
    ("include", Rule::Checked),
    ("input", Rule::Checked),
    ("instructions", Rule::Checked),
    ("max_output_tokens", Rule::Ours),
    ("max_tool_calls", Rule::Copied(&[N])),
    ("metadata", Rule::Copied(&[O])),
    ("model", Rule::Ours),
    ("parallel_tool_calls", Rule::Copied(&[B])),
    ("previous_response_id", Rule::Checked),
    ("prompt", Rule::Checked),
    ("prompt_cache_key", Rule::Copied(&[S])),
    ("prompt_cache_retention", Rule::Checked),
    ("reasoning", Rule::Checked),
    ("safety_identifier", Rule::Copied(&[S])),
    ("service_tier", Rule::Checked),
    ("store", Rule::Ours),
    ("stream", Rule::Ours),
    ("stream_options", Rule::Ours),
    ("temperature", Rule::Copied(&[N])),
    ("text", Rule::Checked),
    ("tool_choice", Rule::Copied(&[S, O])),
    ("tools", Rule::Checked),
    ("top_logprobs", Rule::Copied(&[N])),
    ("top_p", Rule::Copied(&[N])),
    ("truncation", Rule::Copied(&[S])),
    ("user", Rule::Copied(&[S])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

/// What may come back beside the answer, all of it free of charge.
const INCLUDED: &[&str] = &["reasoning.encrypted_content", "message.output_text.logprobs"];

/// How much is thought, which the limit of the output bounds, and what is told of it.
const REASONING: &[&str] = &["effort", "generate_summary", "mode", "summary"];

const KEPT: &str = "nothing is kept here: send the whole conversation as input, and store: false (AI SDK: \
                    providerOptions.openai.store = false)";

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "input" => input(reader),
        "instructions" => reader.lead(|reader| reader.text(name)),
        "tools" => reader.tools(TOOL),
        // The schema of the answer is rendered into the prompt.
        "text" => reader.raw_piece().map(drop),
        "include" => reader.items(name, |reader, _| one_of(INCLUDED, name, reader)),
        "reasoning" => reader.members(REASONING, &|rest| format!("{name}{rest}"), |this, key| match key {
            // Another mode is another model at some backends, and several passes for one at others.
            "effort" if this.scanner.peek()? != Kind::Null => this.effort("reasoning.effort"),
            "mode" if this.scanner.peek()? != Kind::Null => one_of(&["standard"], "reasoning.mode", this),
            _ => {
                this.scanner.value()?;
                Ok(())
            }
        }),
        "service_tier" => one_of(SPEEDS, name, reader),
        "prompt_cache_retention" => one_of(SHORT_CACHES, name, reader),
        "background" if bool_of(reader, name)? => Err(bad(name, "an answer is given here or not at all")),
        "background" => Ok(()),
        "prompt" => Err(bad(name, "templates are kept by the backend: send what they say as instructions and input")),
        // `previous_response_id`, `conversation`
        _ => Err(bad(name, KEPT)),
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "store" if bool_of(reader, name)? => Err(bad(name, KEPT)),
        "store" => Ok(()),
        "stream_options" => {
            let place = |rest: &str| format!("stream_options{rest}");
            reader.members(&["include_obfuscation"], &place, |reader, key| {
                told.said.obfuscation = Some(bool_of(reader, &place(&format!(".{key}")))?);
                Ok(())
            })
        }
        _ => told.take(name, reader),
    }
}

fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    Ok(Weight::of_one(told, found, told.limited_output(limits)?))
}

fn write(ask: &Ask, to: &Rewrite<'_>, out: &mut Vec<u8>) {
    write_count("max_output_tokens", ask.max_output.min(to.max_output), out);
    out.extend_from_slice(b",\"store\":false");
    write_flag("stream", to.stream, out);
    let obfuscation = ask.said.obfuscation.filter(|_| !to.withheld.contains(&"include_obfuscation"));
    if let (true, Some(yes)) = (to.stream, obfuscation) {
        out.extend_from_slice(b",\"stream_options\":{\"include_obfuscation\":");
        out.extend_from_slice(if yes { b"true}" } else { b"false}" });
    }
}

/// What an item may have, whatever its type.
const ITEM: &[&str] = &[
    "type",
    "role",
    "content",
    "id",
    "status",
    "phase",
    "call_id",
    "caller",
    "name",
    "namespace",
    "arguments",
    "input",
    "output",
    "summary",
    "encrypted_content",
];
const ROLES: &[&str] = &["user", "assistant", "system", "developer"];
const PART: &[&str] = &["type", "text", "refusal", "image_url", "detail", "file_id", "annotations", "logprobs"];
const TOOL: &[&str] = &["type", "name", "description", "parameters", "strict", "format"];

/// A text, or a list of items.
fn input(reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match reader.scanner.peek()? {
        Kind::String => {
            let (before, start) = (reader.found.pieces.len(), reader.scanner.at());
            reader.text_piece()?;
            reader.found.messages += u64::from(reader.found.pieces.len() > before);
            reader.found.head = Some(start..reader.scanner.at());
            Ok(())
        }
        Kind::Array => reader.turns("input", item),
        _ => Err(bad("input", "must be a string or an array of items")),
    }
}

/// One item: something said, a call of a tool of the client's and what came of it, or reasoning that the client carries. Whether the user
/// says it.
fn item(reader: &mut Reader<'_, '_>) -> Result<bool, Refusal> {
    let index = reader.found.messages;
    let place = |rest: &str| format!("input[{index}]{rest}");
    let (mut kind, mut user) = (None, None);
    reader.members(ITEM, &place, |this, key| {
        let value = this.scanner.peek()?;
        match (key, value) {
            (_, Kind::Null) => {
                this.scanner.value()?;
            }
            ("type", _) => kind = Some(this.string_of(&place(".type"))?),
            ("role", _) => {
                let said = this.string_of(&place(".role"))?;
                user = Some(said == "user");
                if !ROLES.contains(&said.as_ref()) {
                    return Err(bad(place(".role"), "must be one of user, assistant, system, developer"));
                }
            }
            ("id" | "status" | "phase", Kind::String) => {
                this.scanner.value()?;
            }
            ("caller", _) => caller(&place(".caller"), this)?,
            ("content" | "output" | "summary", Kind::Array) => parts(this, &place(&format!(".{key}")))?,
            (_, Kind::String) => this.text_piece()?,
            _ => return Err(bad(place(&format!(".{key}")), "is not of a type this field takes")),
        }
        Ok(())
    })?;
    match kind.as_deref() {
        None | Some("message") if user.is_none() => Err(bad(place(".role"), "is missing")),
        None
        | Some(
            "message"
            | "function_call"
            | "function_call_output"
            | "custom_tool_call"
            | "custom_tool_call_output"
            | "reasoning",
        ) => Ok(user == Some(true)),
        Some("item_reference") => Err(bad(place(".type"), KEPT)),
        // Calls of hosted tools, and whatever is invented next.
        Some(_) => Err(Refusal::NotPriced { param: place(".type") }),
    }
}

fn parts(reader: &mut Reader<'_, '_>, at: &str) -> Result<(), Refusal> {
    let mut array = reader.scanner.array()?;
    let mut index = 0usize;
    while reader.scanner.next_item(&mut array)? {
        let place = |rest: &str| format!("{at}[{index}]{rest}");
        let (mut kind, mut picture, mut said) = (None, false, false);
        reader.members(PART, &place, |this, key| {
            match (key, this.scanner.peek()?) {
                (_, Kind::Null) => {
                    this.scanner.value()?;
                }
                ("type", _) => kind = Some(this.string_of(&place(".type"))?),
                ("file_id", _) => return Err(Refusal::NotPriced { param: place(".file_id") }),
                ("image_url", _) => {
                    picture = true;
                    this.image_url(&place(".image_url"))?;
                }
                ("annotations" | "logprobs", Kind::Array) => this.scalar_pieces()?,
                ("text" | "refusal", Kind::String) => {
                    said = true;
                    this.text_piece()?;
                }
                ("detail", Kind::String) => {
                    this.scanner.value()?;
                }
                _ => return Err(bad(place(&format!(".{key}")), "is not of a type this field takes")),
            }
            Ok(())
        })?;
        match kind.as_deref() {
            None => return Err(bad(place(".type"), "is missing")),
            // Backends differ on whether the type or the member decides, so both say the same.
            Some("input_text" | "output_text" | "summary_text" | "reasoning_text" | "text" | "refusal") => {
                if picture {
                    return Err(bad(place(""), ONE_TYPE));
                }
            }
            Some("input_image") if picture && !said => {}
            Some("input_image") => return Err(bad(place(""), ONE_TYPE)),
            // Files, sound, screens.
            Some(_) => return Err(Refusal::NotPriced { param: place(".type") }),
        }
        index += 1;
    }
    Ok(())
}
