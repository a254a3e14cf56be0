//! A request of any surface: read strictly once, held to the tier's limits, and written anew for the backend.
//!
//! What leaves is our own serialisation: the top level is written member by member from a closed list of names, values
//! that cost nothing are copied from the checked text, and everything that decides the bill (the model, how many answers, the
//! one limit on output, whether to stream) is written by us. So whichever way a backend reads JSON, it reads what was priced.
//! What may be said, and what is written, is the surface's form (`surface/`).

use super::multipart;
use super::prompt::{Found, Piece, Prompt, Reader};
use super::strict::Scanner;
use super::surface::{Said, Thinking, Told, Weight, completions, form, transcriptions};
use crate::ids::UpstreamModel;
use crate::limits::{Limits, Spelling, room_for_body};
use crate::picture;
use crate::refusal::Refusal;
use crate::surface::Surface;
use bytes::Bytes;
use std::borrow::Cow;
use std::ops::Range;

/// A request, read and held to its limits.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What it speaks.
    pub surface: Surface,
    /// What the client calls the model; `None`: the tier's default is meant.
    pub model: Option<String>,
    /// The client asked for a stream.
    pub stream: bool,
    /// The client asked for the usage chunk of a stream.
    pub wants_usage: bool,
    /// The client asked for the usage so far on every chunk of a stream.
    pub wants_running_usage: bool,
    /// Outputs that are billed, at least 1: choices, also those that are not shown, of every prompt; pictures.
    pub n: u64,
    /// Most output tokens of one choice: the ask held to the tier's limit, or that limit when nothing was asked. 0 where a
    /// surface has none.
    pub max_output: u64,
    /// Most output tokens of one choice as the client asked: the smallest of its spellings.
    pub asked_output: Option<u64>,
    /// Image parts.
    pub images: u64,
    pictures: Vec<picture::Size>,
    /// Messages, or prompts where a surface has several.
    pub messages: u64,
    /// Empty body, or one that asks for nothing: it can be quoted, not served.
    pub nothing_asked: bool,
    /// A field of it says what cannot be streamed.
    pub whole_only: Option<&'static str>,
    /// Fields that the client left out and the tier fills in.
    pub(super) filled_in: Vec<(&'static str, String)>,
    /// The body exactly as received.
    pub body: Bytes,
    pub(super) said: Said,
    thinks: bool,
    names: u64,
    given: u64,
    pieces: Vec<Piece>,
    copied: Vec<(&'static str, Range<usize>)>,
    cuts: Vec<Range<usize>>,
    lead: Option<Range<usize>>,
    head: Option<Range<usize>>,
}

/// Most of a prompt that [`Ask::head`] is.
const HEAD_BYTES: usize = 16 * 1024;

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
    /// The field that says how many outputs are asked for ([`Ask::n`]).
    pub fn count_field(&self) -> &'static str {
        match self.surface {
            Surface::Completions => completions::many(self.messages, self.said.best_of),
            _ => "n",
        }
    }

    /// Reads the body of a request in one pass. The refusal says what is wrong and, for JSON, at which byte.
    pub fn read(surface: Surface, body: Bytes, limits: &Limits) -> Result<Self, Refusal> {
        if body.len() > limits.max_body_bytes {
            return Err(Refusal::BodyTooLarge { limit: limits.max_body_bytes });
        }
        let empty = body.trim_ascii().is_empty();
        let (told, found, weight) = match form(surface) {
            Some(form) if empty => {
                let (told, found) = (Told::default(), Found::default());
                let weight = (form.weigh)(&told, &found, limits)?;
                (told, found, weight)
            }
            Some(form) => {
                let mut reader = Reader { scanner: Scanner::new(&body)?, limits, found: Found::default() };
                let told = Told::read(form, &mut reader)?;
                let weight = (form.weigh)(&told, &reader.found, limits)?;
                (told, reader.found, weight)
            }
            None if !surface.takes_form() => {
                return Err(Refusal::Internal { place: "request: a surface without a form" });
            }
            None if empty => (Told::default(), Found::default(), transcriptions::nothing()),
            None => {
                let (told, weight) = transcriptions::read(&body, limits)?;
                (told, Found::default(), weight)
            }
        };
        let Weight { n, max_output, asked_output, nothing_asked, whole_only, filled_in } = weight;
        Ok(Self {
            surface,
            model: told.model,
            stream: told.stream,
            wants_usage: told.wants_usage,
            wants_running_usage: told.wants_running_usage,
            n,
            max_output,
            asked_output,
            images: found.images,
            pictures: found.pictures,
            messages: found.messages,
            nothing_asked,
            whole_only,
            filled_in,
            body,
            said: told.said,
            thinks: found.thinks,
            names: found.names,
            given: found.given,
            pieces: found.pieces,
            copied: told.copied,
            cuts: found.cuts,
            lead: found.lead,
            head: found.head,
        })
    }

    /// The same without the text: good for everything but [`Ask::prompt`] and [`Ask::rewrite`].
    pub fn without_body(&self) -> Self {
        let (pieces, copied, cuts) = (Vec::new(), Vec::new(), Vec::new());
        let (model, pictures, filled_in) = (self.model.clone(), self.pictures.clone(), Vec::new());
        Self { model, filled_in, body: Bytes::new(), pictures, pieces, copied, cuts, lead: None, head: None, ..*self }
    }

    /// How many pictures say how large they are.
    pub fn sized_pictures(&self) -> u64 {
        self.pictures.len() as u64
    }

    /// Tokens of the pictures that a model of this family counts by their size.
    pub fn picture_tokens(&self, family: picture::Family) -> u64 {
        self.pictures.iter().fold(0, |sum, size| sum.saturating_add(family.tokens(*size)))
    }

    /// It asks for output that may be billed and not be shown as it is made: thinking comes as a summary, or not at all.
    pub fn hides_output(&self) -> bool {
        self.thinks || !matches!(self.said.thinking, None | Some(Thinking::Disabled))
    }

    /// What the token count of the prompt is made from.
    pub fn prompt(&self) -> Prompt<'_> {
        // It was UTF-8 when it was read.
        let source = std::str::from_utf8(&self.body).unwrap_or_default();
        Prompt {
            source,
            pieces: &self.pieces,
            messages: self.messages,
            names: self.names,
            given: self.given,
            is_plain: !self.surface.has_template(),
        }
    }

    /// What stays the same from turn to turn of a conversation, and says nothing of who pays: what the system says, and all up to
    /// the user's first message, else the beginning of the prompt. At most 16 KB of it.
    pub fn head(&self) -> [&[u8]; 2] {
        let first = || self.pieces.first().map(Piece::span);
        let part = |span: Option<Range<usize>>, most: usize| {
            let span = span.unwrap_or(0..0);
            self.body.get(span.start..span.end.min(span.start.saturating_add(most))).unwrap_or_default()
        };
        let lead = part(self.lead.clone(), HEAD_BYTES);
        [lead, part(self.head.clone().or_else(first), HEAD_BYTES - lead.len())]
    }

    /// What the client says belongs together.
    pub fn same_key(&self) -> Option<&[u8]> {
        let said = |wanted: &str| self.copied.iter().find(|(name, _)| *name == wanted);
        let (_, span) = ["prompt_cache_key", "user", "safety_identifier"].into_iter().find_map(said)?;
        self.body.get(span.clone())
    }

    /// The body for the backend.
    pub fn rewrite(&self, to: &Rewrite<'_>) -> Bytes {
        let Some(form) = form(self.surface) else {
            return transcriptions::write(&self.body, to.model, to.withheld);
        };
        let mut out = Vec::with_capacity(room_for_body(self.body.len() + 192));
        out.extend_from_slice(b"{\"model\":");
        out.extend_from_slice(serde_json::Value::from(to.model.as_str()).to_string().as_bytes());
        for (name, span) in self.copied.iter().filter(|(name, _)| !to.withheld.contains(name)) {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            self.copy(span, &mut out);
        }
        (form.write)(self, to, &mut out);
        out.push(b'}');
        out.into()
    }

    /// The `Content-Type` of a body that [`Ask::rewrite`] wrote.
    pub fn content_type(&self, written: &[u8]) -> Cow<'static, str> {
        let form = self.surface.takes_form().then(|| multipart::content_type(written)).flatten();
        form.map_or(Cow::Borrowed("application/json"), Cow::Owned)
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
