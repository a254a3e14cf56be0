//! A chat request: read strictly once, held to the tier's limits, and written anew for the backend.
//!
//! What leaves is our own serialisation: the top level is written member by member from a closed list of names, values
//! that cost nothing are copied from the checked text, and everything that decides the bill (`model`, `n`, the one limit on
//! output, `stream`, `stream_options`) is written by us. So whichever way a backend reads JSON, it reads what was priced.

use super::prompt::{Found, Piece, Prompt, Reader, bad};
use super::strict::{Kind, Scanner};
use crate::ids::UpstreamModel;
use crate::limits::{Limits, OverLimit, Spelling, room_for_body};
use crate::refusal::Refusal;
use bytes::Bytes;
use std::ops::Range;

/// How a request field is treated.
#[derive(Clone, Copy)]
enum Rule {
    /// Free of charge whatever its value: copied when its value is of one of these kinds.
    Copied(&'static [Kind]),
    /// Read for what it means, and written by us.
    Ours,
    /// Read for what it means, and copied.
    Checked,
    /// Costs extra and has no price.
    Unpriced,
}

use Kind::{Array as A, Bool as B, Number as N, Object as O, String as S};

/// The whole chat-completions schema of OpenAI. What is not here is unknown.
const FIELDS: &[(&str, Rule)] = &[
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

const NAMES: [&str; FIELDS.len()] = {
    let mut names = [""; FIELDS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FIELDS[i].0;
        i += 1;
    }
    names
};

const STREAM_OPTIONS: &[&str] = &["include_usage", "include_obfuscation", "continuous_usage_stats"];

/// A chat request, read and held to its limits.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What the client calls the model; `None`: the tier's default is meant.
    pub model: Option<String>,
    /// The client asked for a stream.
    pub stream: bool,
    /// The client asked for the usage chunk of a stream.
    pub wants_usage: bool,
    /// Choices, at least 1.
    pub n: u64,
    /// Most output tokens of one choice: the ask held to the tier's limit, or that limit when nothing was asked.
    pub max_output: u64,
    /// Most output tokens of one choice as the client asked: the smaller of its two spellings.
    pub asked_output: Option<u64>,
    /// Image parts.
    pub images: u64,
    /// Messages.
    pub messages: u64,
    /// Empty body, or no messages: it can be quoted, not served.
    pub nothing_asked: bool,
    /// The body exactly as received.
    pub body: Bytes,
    names: u64,
    n_given: bool,
    obfuscation: Option<bool>,
    pieces: Vec<Piece>,
    copied: Vec<(&'static str, Range<usize>)>,
    cuts: Vec<Range<usize>>,
}

/// What the backend is to hear.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite<'a> {
    /// Its name for the model.
    pub model: &'a UpstreamModel,
    /// Most output tokens of one choice; never more than [`Ask::max_output`] is written.
    pub max_output: u64,
    /// How the backend spells that limit.
    pub spelling: Spelling,
    /// Whether to stream (a route may force it).
    pub stream: bool,
    /// Whether the backend takes `continuous_usage_stats`.
    pub continuous_usage: bool,
    /// Fields that the backend refuses; they are left out.
    pub withheld: &'a [&'a str],
}

impl Ask {
    /// Reads the body of a chat request in one pass. The refusal says what is wrong and, for JSON, at which byte.
    pub fn read(body: Bytes, limits: &Limits) -> Result<Self, Refusal> {
        if body.len() > limits.max_body_bytes {
            return Err(Refusal::BodyTooLarge { limit: limits.max_body_bytes });
        }
        let (told, found) = if body.trim_ascii().is_empty() {
            (Told::default(), Found::default())
        } else {
            let mut reader = Reader { scanner: Scanner::new(&body)?, limits, found: Found::default() };
            let told = Told::read(&mut reader)?;
            (told, reader.found)
        };
        let max_output = told.limited_output(limits)?;
        let n = told.n.unwrap_or(1);
        if n > limits.max_n {
            return Err(Refusal::OverLimit { param: "n", asked: n, max: limits.max_n });
        }
        Ok(Self {
            model: told.model,
            stream: told.stream,
            wants_usage: told.wants_usage,
            n,
            max_output,
            asked_output: told.output.map(|(_, tokens)| tokens),
            images: found.images,
            messages: found.messages,
            nothing_asked: found.messages == 0,
            body,
            names: found.names,
            n_given: told.n.is_some(),
            obfuscation: told.obfuscation,
            pieces: found.pieces,
            copied: told.copied,
            cuts: found.cuts,
        })
    }

    /// The same without the text: good for everything but [`Ask::prompt`] and [`Ask::rewrite`].
    pub fn without_body(&self) -> Self {
        let (pieces, copied, cuts) = (Vec::new(), Vec::new(), Vec::new());
        Self { model: self.model.clone(), body: Bytes::new(), pieces, copied, cuts, ..*self }
    }

    /// What the token count of the prompt is made from.
    pub fn prompt(&self) -> Prompt<'_> {
        // It was UTF-8 when it was read.
        let source = std::str::from_utf8(&self.body).unwrap_or_default();
        Prompt { source, pieces: &self.pieces, messages: self.messages, names: self.names }
    }

    /// The body for the backend.
    pub fn rewrite(&self, to: &Rewrite<'_>) -> Bytes {
        let mut out = Vec::with_capacity(room_for_body(self.body.len() + 192));
        out.extend_from_slice(b"{\"model\":");
        out.extend_from_slice(serde_json::Value::from(to.model.as_str()).to_string().as_bytes());
        for (name, span) in self.copied.iter().filter(|(name, _)| !to.withheld.contains(name)) {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            self.copy(span, &mut out);
        }
        out.extend_from_slice(match to.spelling {
            Spelling::MaxTokens => b",\"max_tokens\":",
            Spelling::MaxCompletionTokens => b",\"max_completion_tokens\":",
        });
        out.extend_from_slice(self.max_output.min(to.max_output).to_string().as_bytes());
        if self.n_given {
            out.extend_from_slice(b",\"n\":");
            out.extend_from_slice(self.n.to_string().as_bytes());
        }
        if to.stream {
            out.extend_from_slice(b",\"stream\":true,\"stream_options\":{\"include_usage\":true");
            match self.obfuscation.filter(|_| !to.withheld.contains(&"include_obfuscation")) {
                Some(true) => out.extend_from_slice(b",\"include_obfuscation\":true"),
                Some(false) => out.extend_from_slice(b",\"include_obfuscation\":false"),
                None => {}
            }
            if to.continuous_usage {
                out.extend_from_slice(b",\"continuous_usage_stats\":true");
            }
            out.extend_from_slice(b"}}");
        } else {
            out.extend_from_slice(b",\"stream\":false}");
        }
        out.into()
    }

    /// Copies a checked value without what was cut from it.
    fn copy(&self, span: &Range<usize>, out: &mut Vec<u8>) {
        let mut from = span.start;
        let first = self.cuts.partition_point(|cut| cut.start < span.start);
        for cut in self.cuts.iter().skip(first).take_while(|cut| cut.end <= span.end) {
            out.extend_from_slice(self.body.get(from..cut.start).unwrap_or_default());
            from = cut.end;
        }
        out.extend_from_slice(self.body.get(from..span.end).unwrap_or_default());
    }
}

/// What the top level says.
#[derive(Default)]
struct Told {
    model: Option<String>,
    stream: bool,
    wants_usage: bool,
    n: Option<u64>,
    /// The smaller limit on output and how it was spelled.
    output: Option<(&'static str, u64)>,
    obfuscation: Option<bool>,
    copied: Vec<(&'static str, Range<usize>)>,
}

impl Told {
    fn read(reader: &mut Reader<'_, '_>) -> Result<Self, Refusal> {
        let mut told = Self::default();
        let mut object = reader.scanner.object()?;
        while let Some(key) = reader.scanner.next_key(&mut object)? {
            let Some((name, rule)) = FIELDS.iter().find(|(name, _)| *name == key.name) else {
                reader.unknown(&key, &NAMES, &str::to_owned)?;
                continue;
            };
            // OpenAI takes null for "not given" in every optional field; so it is, and does not leave the gate.
            let kind = reader.scanner.peek()?;
            if kind == Kind::Null {
                reader.scanner.value()?;
                continue;
            }
            let start = reader.scanner.at();
            match rule {
                Rule::Unpriced => return Err(Refusal::NotPriced { param: (*name).to_owned() }),
                Rule::Ours => {
                    told.ours(name, reader)?;
                    continue;
                }
                Rule::Copied(kinds) if kinds.contains(&kind) => {
                    reader.scanner.value()?;
                }
                Rule::Copied(_) => return Err(bad(*name, "is not of a type this field takes")),
                Rule::Checked => checked(name, reader)?,
            }
            told.copied.push((name, start..reader.scanner.at()));
        }
        reader.scanner.end()?;
        Ok(told)
    }

    fn ours(&mut self, name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
        match name {
            "model" => self.model = Some(reader.string_of(name)?.into_owned()),
            "stream" => self.stream = bool_of(reader, name)?,
            "n" => self.n = Some(count_of(reader, name)?),
            "stream_options" => {
                let place = |rest: &str| format!("stream_options{rest}");
                reader.members(STREAM_OPTIONS, &place, |reader, key| {
                    if reader.scanner.peek()? == Kind::Null {
                        reader.scanner.value()?;
                        return Ok(());
                    }
                    let yes = bool_of(reader, &place(&format!(".{key}")))?;
                    match key {
                        "include_usage" => self.wants_usage = yes,
                        "include_obfuscation" => self.obfuscation = Some(yes),
                        // Sent or not as the backend's profile says.
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            _ => {
                let tokens = count_of(reader, name)?;
                if self.output.is_none_or(|(_, least)| tokens < least) {
                    self.output = Some((name, tokens));
                }
            }
        }
        Ok(())
    }

    fn limited_output(&self, limits: &Limits) -> Result<u64, Refusal> {
        let max = limits.max_output_tokens;
        match self.output {
            Some((param, asked)) if asked > max && limits.over_limit == OverLimit::Refuse => {
                Err(Refusal::OverLimit { param, asked, max })
            }
            Some((_, asked)) => Ok(asked.min(max)),
            None => Ok(max),
        }
    }
}

/// Fields of which only some values are free of charge; passes the value.
fn checked(name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
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

fn bool_of(reader: &mut Reader<'_, '_>, param: &str) -> Result<bool, Refusal> {
    if reader.scanner.peek()? != Kind::Bool {
        return Err(bad(param, "must be true or false"));
    }
    let span = reader.scanner.value()?;
    Ok(reader.scanner.source().get(span) == Some("true"))
}

/// A count of at least 1 in plain digits: `1e3`, `1.0` and `-1` mean different things to different readers.
fn count_of(reader: &mut Reader<'_, '_>, param: &str) -> Result<u64, Refusal> {
    const WHY: &str = "must be a whole number of at least 1, in plain digits";
    if reader.scanner.peek()? != Kind::Number {
        return Err(bad(param, WHY));
    }
    let span = reader.scanner.value()?;
    let text = reader.scanner.source().get(span).unwrap_or_default();
    if text == "0" || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad(param, WHY));
    }
    // More than 2^64 is above any limit all the same.
    Ok(text.parse().unwrap_or(u64::MAX))
}
