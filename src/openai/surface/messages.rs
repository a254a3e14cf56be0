//! Anthropic's messages: `system` beside them, blocks inside them, `max_tokens` always.
//!
//! Blocks may ask for the prompt to be cached: what is written into a cache can cost more than input, so bounds take the dearest
//! rate of a prompt. Documents, search results and containers are read, and billed, by rules of their own.

use super::{
    Fields, Form, N, O, Rule, Thinking, Told, Weight, bool_of, caller, count_of, names, one_of, stops, write_count,
    write_flag,
};
use crate::limits::Limits;
use crate::openai::prompt::{Found, Reader, bad, is_elsewhere};
use crate::openai::request::{Ask, Rewrite};
use crate::openai::strict::Kind;
use crate::picture;
use crate::refusal::Refusal;

/// The whole schema.
const FIELDS: Fields = &[
    ("cache_control", Rule::Checked),
    ("container", Rule::Unpriced),
    ("context_management", Rule::Ours),
    ("inference_geo", Rule::Unpriced),
    ("max_tokens", Rule::Ours),
    ("mcp_servers", Rule::Unpriced),
    ("messages", Rule::Checked),
    ("metadata", Rule::Copied(&[O])),
    ("model", Rule::Ours),
    ("output_config", Rule::Checked),
    ("output_format", Rule::Checked),
    ("service_tier", Rule::Checked),
    ("speed", Rule::Unpriced),
    ("stop_sequences", Rule::Checked),
    ("stream", Rule::Ours),
    ("system", Rule::Checked),
    ("temperature", Rule::Copied(&[N])),
    ("thinking", Rule::Ours),
    ("tool_choice", Rule::Copied(&[O])),
    ("tools", Rule::Checked),
    ("top_k", Rule::Copied(&[N])),
    ("top_p", Rule::Copied(&[N])),
];

pub(super) static FORM: Form =
    Form { fields: FIELDS, names: &names::<{ FIELDS.len() }>(FIELDS), check, take, weigh, write };

/// Anthropic's smallest `thinking.budget_tokens`.
const LEAST_THINKING: u64 = 1024;

fn check(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "messages" => messages(reader),
        "system" => reader.lead(|reader| content(reader, "system", Where::System)),
        "tools" => tools(reader),
        // The schema of the answer is rendered into the prompt.
        "output_config" | "output_format" => reader.raw_piece().map(drop),
        "cache_control" => cache_control(reader, name),
        "stop_sequences" => stops(name, reader),
        // `service_tier`
        _ => one_of(&["auto", "standard_only"], name, reader),
    }
}

fn take(name: &'static str, told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match name {
        "thinking" => thinking(told, reader),
        "context_management" => reader.members(&["edits"], &|rest| format!("{name}{rest}"), |this, _| edits(this)),
        _ => told.take(name, reader),
    }
}

/// What a backend of Anthropic's may leave out of the prompt. It only makes prompts shorter and is behind a header that does not leave the
/// gate, so it is read and not sent on: the whole prompt is what was quoted. What writes summaries instead is billed.
fn edits(reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    reader.items("context_management.edits", |reader, index| {
        let place = |rest: &str| format!("context_management.edits[{index}]{rest}");
        let mut kind = None;
        reader.members(EDIT, &place, |this, key| {
            match key {
                "type" => kind = Some(this.string_of(&place(".type"))?),
                _ => this.pass()?,
            }
            Ok(())
        })?;
        match kind.as_deref() {
            Some(kind) if kind.starts_with("clear_thinking_") || kind.starts_with("clear_tool_uses_") => Ok(()),
            Some(_) => Err(Refusal::NotPriced { param: place(".type") }),
            None => Err(bad(place(".type"), "is missing")),
        }
    })
}

fn thinking(told: &mut Told, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    let place = |rest: &str| format!("thinking{rest}");
    let (mut kind, mut budget, mut summarized) = (None, None, None);
    reader.members(&["type", "budget_tokens", "display"], &place, |this, key| {
        match key {
            "type" => kind = Some(this.string_of(&place(".type"))?),
            "budget_tokens" => budget = Some(count_of(this, &place(".budget_tokens"))?),
            _ if this.scanner.peek()? == Kind::Null => {
                this.scanner.value()?;
            }
            _ => {
                summarized = Some(match this.string_of(&place(".display"))?.as_ref() {
                    "summarized" => true,
                    "omitted" => false,
                    _ => return Err(bad(place(".display"), "must be summarized or omitted")),
                });
            }
        }
        Ok(())
    })?;
    told.said.thinking = Some(match (kind.as_deref(), budget) {
        (Some("enabled"), Some(budget)) => Thinking::Enabled { budget, summarized },
        (Some("enabled"), None) => return Err(bad(place(".budget_tokens"), "is missing")),
        (Some("adaptive"), None) => Thinking::Adaptive { summarized },
        (Some("between_tools"), None) => Thinking::BetweenTools,
        (Some("disabled"), None) => Thinking::Disabled,
        (Some("adaptive" | "between_tools" | "disabled"), Some(_)) => {
            return Err(bad(place(".budget_tokens"), "goes with thinking that is enabled only"));
        }
        _ => return Err(bad(place(".type"), "must be enabled, adaptive, between_tools or disabled")),
    });
    Ok(())
}

fn weigh(told: &Told, found: &Found, limits: &Limits) -> Result<Weight, Refusal> {
    let max_output = told.limited_output(limits)?;
    if let Some(Thinking::Enabled { budget, .. }) = told.said.thinking
        && budget >= max_output
    {
        let why = match told.asked_output() {
            Some(asked) if asked > max_output => {
                format!("must be below the {max_output} output tokens that are the most sold here")
            }
            _ => format!("must be below max_tokens, {max_output}"),
        };
        return Err(bad("thinking.budget_tokens", &why));
    }
    Ok(Weight::of_one(told, found, max_output))
}

fn write(ask: &Ask, to: &Rewrite<'_>, out: &mut Vec<u8>) {
    let most = ask.max_output.min(to.max_output);
    write_count("max_tokens", most, out);
    match ask.said.thinking {
        // Less output was paid for than was asked: thinking takes no more than its part, or it would be refused.
        Some(Thinking::Enabled { budget, summarized }) if most > LEAST_THINKING => {
            out.extend_from_slice(b",\"thinking\":{\"type\":\"enabled\"");
            write_count("budget_tokens", budget.min(most - 1), out);
            write_display(summarized, out);
        }
        Some(Thinking::Adaptive { summarized }) => {
            out.extend_from_slice(b",\"thinking\":{\"type\":\"adaptive\"");
            write_display(summarized, out);
        }
        Some(Thinking::BetweenTools) => out.extend_from_slice(b",\"thinking\":{\"type\":\"between_tools\"}"),
        Some(Thinking::Disabled) => out.extend_from_slice(b",\"thinking\":{\"type\":\"disabled\"}"),
        // Too little was bought to think with a budget. Some models refuse to be told not to think, so nothing is said: whatever it then
        // does, the limit holds.
        Some(Thinking::Enabled { .. }) | None => {}
    }
    write_flag("stream", to.stream, out);
}

fn write_display(summarized: Option<bool>, out: &mut Vec<u8>) {
    out.extend_from_slice(match summarized {
        Some(true) => b",\"display\":\"summarized\"}",
        Some(false) => b",\"display\":\"omitted\"}",
        None => b"}",
    });
}

/// Where a list of blocks stands: what may be in it differs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    System,
    Message,
    Result,
}

const MESSAGE: &[&str] = &["role", "content"];
const EDIT: &[&str] = &["type", "keep", "trigger", "clear_at_least", "exclude_tools", "clear_tool_inputs"];
const BLOCK: &[&str] = &[
    "type",
    "text",
    "source",
    "id",
    "name",
    "input",
    "tool_use_id",
    "content",
    "is_error",
    "thinking",
    "signature",
    "data",
    "cache_control",
    "caller",
    "citations",
];
const SOURCE: &[&str] = &["type", "media_type", "data", "url", "file_id"];
const TOOL: &[&str] = &[
    "type",
    "name",
    "description",
    "input_schema",
    "strict",
    "cache_control",
    "eager_input_streaming",
    "input_examples",
];

fn messages(reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    reader.turns("messages", |reader| {
        let index = reader.found.messages;
        let place = |rest: &str| format!("messages[{index}]{rest}");
        let mut user = None;
        reader.members(MESSAGE, &place, |this, key| {
            if key == "content" {
                return content(this, &place(".content"), Where::Message);
            }
            user = Some(match this.string_of(&place(".role"))?.as_ref() {
                "user" => true,
                "assistant" | "system" => false,
                _ => return Err(bad(place(".role"), "must be user, assistant or system")),
            });
            Ok(())
        })?;
        user.ok_or_else(|| bad(place(".role"), "is missing"))
    })
}

/// A text, or a list of blocks.
fn content(reader: &mut Reader<'_, '_>, at: &str, place: Where) -> Result<(), Refusal> {
    match reader.scanner.peek()? {
        Kind::String => reader.text_piece(),
        Kind::Array => reader.items(at, |reader, index| block(reader, &format!("{at}[{index}]"), place)),
        _ => Err(bad(at, "must be a string or an array of blocks")),
    }
}

fn block(reader: &mut Reader<'_, '_>, at: &str, inside: Where) -> Result<(), Refusal> {
    let place = |rest: &str| format!("{at}{rest}");
    let (mut kind, mut picture) = (None, false);
    reader.members(BLOCK, &place, |this, key| {
        let value = this.scanner.peek()?;
        match (key, value) {
            (_, Kind::Null) => {
                this.scanner.value()?;
            }
            ("type", _) => kind = Some(this.string_of(&place(".type"))?),
            ("source", _) => {
                picture = true;
                source(this, &place(".source"))?;
            }
            ("cache_control", _) => cache_control(this, &place(".cache_control"))?,
            ("content", _) if inside == Where::Message => content(this, &place(".content"), Where::Result)?,
            ("content", _) => return Err(bad(place(".content"), "does not belong here")),
            ("caller", _) => caller(&place(".caller"), this)?,
            ("input" | "citations", _) => this.scalar_pieces()?,
            ("is_error", Kind::Bool) => {
                this.scanner.value()?;
            }
            (_, Kind::String) => this.text_piece()?,
            _ => return Err(bad(place(&format!(".{key}")), "is not of a type this field takes")),
        }
        Ok(())
    })?;
    let kind = kind.ok_or_else(|| bad(place(".type"), "is missing"))?;
    match (kind.as_ref(), inside) {
        ("image", Where::Message | Where::Result) if picture => Ok(()),
        ("text", _) | ("tool_use" | "tool_result" | "thinking" | "redacted_thinking", Where::Message) if !picture => {
            Ok(())
        }
        ("image" | "text" | "tool_use" | "tool_result" | "thinking" | "redacted_thinking", _) => {
            Err(bad(place(""), "must hold what its type says, and stand where such a block may"))
        }
        // Documents, search results, containers, whatever tools of the backend's own did.
        _ => Err(Refusal::NotPriced { param: place(".type") }),
    }
}

/// A picture: inline, or by its URL.
fn source(reader: &mut Reader<'_, '_>, at: &str) -> Result<(), Refusal> {
    if reader.limits.image_url.is_none() {
        return Err(Refusal::NotPriced { param: at.to_owned() });
    }
    let place = |rest: &str| format!("{at}{rest}");
    let (mut kind, mut data, mut url) = (None, false, false);
    reader.members(SOURCE, &place, |this, key| {
        match key {
            "type" => kind = Some(this.string_of(&place(".type"))?),
            "url" => {
                url = true;
                if !is_elsewhere(&this.string_of(&place(".url"))?) {
                    return Err(bad(place(".url"), "must be an https: URL with a public name of a host"));
                }
            }
            "file_id" => return Err(Refusal::NotPriced { param: place(".file_id") }),
            "media_type" => {
                let said = this.string_of(&place(".media_type"))?;
                if !matches!(said.as_ref(), "image/jpeg" | "image/png" | "image/gif" | "image/webp") {
                    return Err(bad(place(".media_type"), "must be image/jpeg, image/png, image/gif or image/webp"));
                }
            }
            // `data`
            _ => {
                data = true;
                if this.scanner.peek()? != Kind::String {
                    return Err(bad(place(".data"), "must be a string"));
                }
                let text = this.string_of(&place(".data"))?;
                this.found.pictures.extend(picture::of_base64(&text));
            }
        }
        Ok(())
    })?;
    match (kind.as_deref(), data, url) {
        (Some("base64"), true, false) | (Some("url"), false, true) => {
            reader.found.images += 1;
            Ok(())
        }
        (Some("base64" | "url"), ..) => Err(bad(place(""), "must hold what its type says, and nothing else")),
        (Some(_), ..) => Err(Refusal::NotPriced { param: place(".type") }),
        (None, ..) => Err(bad(place(".type"), "is missing")),
    }
}

/// `{"type":"ephemeral","ttl":"5m"|"1h"}`: what is written into a cache has a price, how long it stays as well.
fn cache_control(reader: &mut Reader<'_, '_>, at: &str) -> Result<(), Refusal> {
    let place = |rest: &str| format!("{at}{rest}");
    reader.members(&["type", "ttl"], &place, |this, key| {
        if key == "ttl" && this.scanner.peek()? == Kind::Null {
            return this.pass();
        }
        let said = this.string_of(&place(&format!(".{key}")))?;
        match (key, said.as_ref()) {
            ("type", "ephemeral") | ("ttl", "5m" | "1h") => Ok(()),
            _ => Err(Refusal::NotPriced { param: place(&format!(".{key}")) }),
        }
    })
}

/// Tools that run at the client and are described in full: those with a version in their type are the backend's own.
fn tools(reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    reader.items("tools", |reader, index| {
        let place = |rest: &str| format!("tools[{index}]{rest}");
        reader.members(TOOL, &place, |this, key| {
            match (key, this.scanner.peek()?) {
                (_, Kind::Null) => {
                    this.scanner.value()?;
                }
                ("type", _) if this.string_of(&place(".type"))? != "custom" => {
                    return Err(Refusal::NotPriced { param: place(".type") });
                }
                ("type", _) => {}
                ("cache_control", _) => cache_control(this, &place(".cache_control"))?,
                ("strict" | "eager_input_streaming", _) => {
                    bool_of(this, &place(&format!(".{key}")))?;
                }
                _ => {
                    this.raw_piece()?;
                }
            }
            Ok(())
        })
    })
}
