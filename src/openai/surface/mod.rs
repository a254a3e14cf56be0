//! What each surface lets a request say, and what of it decides the bill: one [`Form`] a file.
//!
//! A form is a closed list of fields, a reading of those that are not simply free of charge, and what is written in their
//! place. What is on no list is unknown, and treated as the tier says.

mod chat;
pub(super) mod completions;
mod embeddings;
mod images;
mod messages;
mod responses;
mod speech;
pub(super) mod transcriptions;

use super::prompt::{Found, Reader, bad};
use super::request::{Ask, Rewrite};
use super::strict::Kind;
use crate::limits::{Limits, OverLimit};
use crate::refusal::Refusal;
use crate::surface::Surface;
use std::ops::Range;

/// How a request field is treated.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Free of charge whatever its value: copied when its value is of one of these kinds.
    Copied(&'static [Kind]),
    /// Read for what it means ([`Form::take`]), and written by us ([`Form::write`]).
    Ours,
    /// Read for what it means ([`Form::check`]), and copied.
    Checked,
    /// Costs extra and has no price.
    Unpriced,
}

/// Kinds of values, as tables of fields name them.
pub(super) use Kind::{Bool as B, Number as N, Object as O, String as S};

/// A table of fields.
pub(super) type Fields = &'static [(&'static str, Rule)];

/// How requests of one surface are read and written.
pub(super) struct Form {
    /// The whole schema. `model` is in every one and [`Rule::Ours`].
    pub fields: Fields,
    /// The names of `fields`, for those that only look like one of them.
    pub names: &'static [&'static str],
    /// Passes the value of a field that is [`Rule::Checked`].
    pub check: fn(&'static str, &mut Reader<'_, '_>) -> Result<(), Refusal>,
    /// Passes the value of a field that is [`Rule::Ours`], and keeps what it says.
    pub take: fn(&'static str, &mut Told, &mut Reader<'_, '_>) -> Result<(), Refusal>,
    /// What the request as a whole comes to, held to the tier's limits.
    pub weigh: fn(&Told, &Found, &Limits) -> Result<Weight, Refusal>,
    /// Writes what is ours behind the model and the copied fields, each with its comma in front. The closing bracket is not
    /// its business.
    pub write: fn(&Ask, &Rewrite<'_>, &mut Vec<u8>),
}

/// The names of a table.
pub(super) const fn names<const N: usize>(fields: Fields) -> [&'static str; N] {
    let mut names = [""; N];
    let mut i = 0;
    while i < N {
        names[i] = fields[i].0;
        i += 1;
    }
    names
}

/// The form of a surface; `None` for what is not asked in JSON.
pub(super) fn form(surface: Surface) -> Option<&'static Form> {
    match surface {
        Surface::Chat => Some(&chat::FORM),
        Surface::Completions => Some(&completions::FORM),
        Surface::Embeddings => Some(&embeddings::FORM),
        Surface::Images => Some(&images::FORM),
        Surface::Speech => Some(&speech::FORM),
        Surface::Responses => Some(&responses::FORM),
        Surface::Messages => Some(&messages::FORM),
        Surface::Transcriptions | Surface::Models => None,
    }
}

/// What a request comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Outputs that are billed, at least 1: choices, whether they are shown or not, of all prompts.
    pub n: u64,
    /// Most output tokens of each.
    pub max_output: u64,
    /// The same as it was asked.
    pub asked_output: Option<u64>,
    /// It asks for nothing: it can be quoted, not served.
    pub nothing_asked: bool,
    /// A field that says something which cannot be streamed.
    pub whole_only: Option<&'static str>,
    /// Fields that the client left out and the tier fills in.
    pub filled_in: Vec<(&'static str, String)>,
}

impl Weight {
    /// One output of so many tokens at most.
    pub fn of_one(told: &Told, found: &Found, max_output: u64) -> Self {
        let (asked_output, nothing_asked) = (told.asked_output(), found.messages == 0);
        Self { n: 1, max_output, asked_output, nothing_asked, ..Self::default() }
    }
}

/// Those of our fields that are written again when they were said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// `n`.
    pub n: Option<u64>,
    /// `best_of`.
    pub best_of: Option<u64>,
    /// `echo`.
    pub echo: bool,
    /// `stream_options.include_obfuscation`.
    pub obfuscation: Option<bool>,
    /// `thinking`.
    pub thinking: Option<Thinking>,
}

/// Whether a model thinks before it answers, as Anthropic asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thinking {
    /// With a budget, a part of the output.
    Enabled {
        /// In tokens.
        budget: u64,
        /// `display`: summarized or omitted.
        summarized: Option<bool>,
    },
    /// As the model sees fit.
    Adaptive {
        /// `display`.
        summarized: Option<bool>,
    },
    /// Only before the next call of a tool.
    BetweenTools,
    /// Not at all.
    Disabled,
}

/// What the top level says.
#[derive(Default)]
pub(super) struct Told {
    pub model: Option<String>,
    pub stream: bool,
    pub wants_usage: bool,
    pub wants_running_usage: bool,
    pub said: Said,
    /// The smallest limit on output and how it was spelled.
    pub output: Option<(&'static str, u64)>,
    pub copied: Vec<(&'static str, Range<usize>)>,
}

impl Told {
    pub fn read(form: &Form, reader: &mut Reader<'_, '_>) -> Result<Self, Refusal> {
        let mut told = Self::default();
        let mut object = reader.scanner.object()?;
        while let Some(key) = reader.scanner.next_key(&mut object)? {
            let Some((name, rule)) = form.fields.iter().find(|(name, _)| *name == key.name) else {
                reader.unknown(&key, form.names, &str::to_owned)?;
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
                    (form.take)(name, &mut told, reader)?;
                    continue;
                }
                Rule::Copied(kinds) if kinds.contains(&kind) => {
                    reader.scanner.value()?;
                }
                Rule::Copied(_) => return Err(bad(*name, "is not of a type this field takes")),
                Rule::Checked => (form.check)(name, reader)?,
            }
            told.copied.push((name, start..reader.scanner.at()));
        }
        reader.scanner.end()?;
        Ok(told)
    }

    /// Reads a field that means the same wherever it occurs: `model`, `stream`, `stream_options`, `n`; any other is a limit on output.
    pub fn take(&mut self, name: &'static str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
        match name {
            "model" => self.model = Some(reader.string_of(name)?.into_owned()),
            "stream" => self.stream = bool_of(reader, name)?,
            "n" => self.said.n = Some(count_of(reader, name)?),
            "stream_options" => self.stream_options(reader)?,
            _ => {
                let tokens = count_of(reader, name)?;
                if self.output.is_none_or(|(_, least)| tokens < least) {
                    self.output = Some((name, tokens));
                }
            }
        }
        Ok(())
    }

    fn stream_options(&mut self, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
        let place = |rest: &str| format!("stream_options{rest}");
        reader.members(STREAM_OPTIONS, &place, |reader, key| {
            if reader.scanner.peek()? == Kind::Null {
                reader.scanner.value()?;
                return Ok(());
            }
            let yes = bool_of(reader, &place(&format!(".{key}")))?;
            match key {
                "include_usage" => self.wants_usage = yes,
                "include_obfuscation" => self.said.obfuscation = Some(yes),
                // `continuous_usage_stats`
                _ => self.wants_running_usage = yes,
            }
            Ok(())
        })
    }

    /// Most output tokens of one choice: the ask held to the tier's limit, or that limit when nothing was asked.
    pub fn limited_output(&self, limits: &Limits) -> Result<u64, Refusal> {
        let max = limits.max_output_tokens;
        match self.output {
            Some((param, asked)) if asked > max && limits.over_limit == OverLimit::Refuse => {
                Err(Refusal::OverLimit { param, asked, max })
            }
            Some((_, asked)) => Ok(asked.min(max)),
            None => Ok(max),
        }
    }

    /// The limit on output as the client asked: the smallest of its spellings.
    pub fn asked_output(&self) -> Option<u64> {
        self.output.map(|(_, tokens)| tokens)
    }
}

const STREAM_OPTIONS: &[&str] = &["include_usage", "include_obfuscation", "continuous_usage_stats"];

/// Refuses more than the tier has of something.
pub(super) fn at_most(param: &'static str, asked: u64, max: u64) -> Result<u64, Refusal> {
    if asked > max { Err(Refusal::OverLimit { param, asked, max }) } else { Ok(asked) }
}

/// Values of OpenAI's `service_tier` and `prompt_cache_retention` that cost nothing extra.
pub(super) const SPEEDS: &[&str] = &["default", "auto"];
pub(super) const SHORT_CACHES: &[&str] = &["in_memory", "in-memory"];

/// Passes a word if it is one of these; others cost extra.
pub(super) fn one_of(words: &[&str], name: &str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    match words.contains(&reader.string_of(name)?.as_ref()) {
        true => Ok(()),
        false => Err(Refusal::NotPriced { param: name.to_owned() }),
    }
}

/// Passes who called a tool: the model itself. What runs at the backend has a price of its own.
pub(super) fn caller(at: &str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    let place = |rest: &str| format!("{at}{rest}");
    reader.members(&["type"], &place, |reader, _| one_of(&["direct"], &place(".type"), reader))
}

/// Most texts that end an output, and bytes of each: some backends look for every one of them after every token.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 512;

/// Passes what ends an output: a text or a short list of them.
pub(super) fn stops(name: &str, reader: &mut Reader<'_, '_>) -> Result<(), Refusal> {
    let one = |reader: &mut Reader<'_, '_>| match reader.scanner.peek()? {
        Kind::String if reader.string_of(name)?.len() <= LONGEST_STOP => Ok(()),
        _ => Err(bad(name, &format!("must be made of strings of at most {LONGEST_STOP} bytes"))),
    };
    if reader.scanner.peek()? != Kind::Array {
        return one(reader);
    }
    reader.items(name, |reader, index| match index < MOST_STOPS {
        true => one(reader),
        false => Err(bad(name, &format!("must hold at most {MOST_STOPS} strings"))),
    })
}

/// `,"name":true`
pub(super) fn write_flag(name: &str, yes: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(if yes { b"\":true" } else { b"\":false" });
}

/// `,"name":number`
pub(super) fn write_count(name: &str, count: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    out.extend_from_slice(count.to_string().as_bytes());
}

/// `stream`, with the options that make the backend say what it used.
pub(super) fn write_stream(ask: &Ask, to: &Rewrite<'_>, out: &mut Vec<u8>) {
    write_flag("stream", to.stream, out);
    if !to.stream {
        return;
    }
    out.extend_from_slice(b",\"stream_options\":{\"include_usage\":true");
    if let Some(yes) = ask.said.obfuscation.filter(|_| !to.withheld.contains(&"include_obfuscation")) {
        write_flag("include_obfuscation", yes, out);
    }
    if to.continuous_usage {
        write_flag("continuous_usage_stats", true, out);
    }
    out.push(b'}');
}

pub(super) fn bool_of(reader: &mut Reader<'_, '_>, param: &str) -> Result<bool, Refusal> {
    if reader.scanner.peek()? != Kind::Bool {
        return Err(bad(param, "must be true or false"));
    }
    let span = reader.scanner.value()?;
    Ok(reader.scanner.source().get(span) == Some("true"))
}

/// A count of at least 1 in plain digits: `1e3`, `1.0` and `-1` mean different things to different readers.
pub(super) fn count_of(reader: &mut Reader<'_, '_>, param: &str) -> Result<u64, Refusal> {
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

#[cfg(test)]
mod tests;
#[cfg(test)]
mod typed_tests;
