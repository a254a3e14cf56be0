//! The part of a request a model reads: messages, prompts, tools, schemas. What may be said, what costs extra, and what the
//! token count is made from.
//!
//! Nothing here is copied: a piece is a place in the request's body, and [`Prompt`] decodes it when it is counted.

use super::strict::{Key, Kind, Mistake, Scanner, Text};
use crate::limits::{Limits, UnknownFields};
use crate::picture;
use crate::refusal::Refusal;
use std::borrow::Cow;
use std::ops::Range;

/// One text of the prompt, as a place in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece(Text);

impl Piece {
    /// Where it stands in the body.
    pub fn span(&self) -> Range<usize> {
        self.0.start..self.0.end
    }
}

/// What a token count needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    pub(super) source: &'a str,
    pub(super) pieces: &'a [Piece],
    /// Messages.
    pub messages: u64,
    /// Messages that carry a `name`.
    pub names: u64,
    /// Tokens that were given as such, by their numbers.
    pub given: u64,
    /// It is read as it is, without a template around it.
    pub is_plain: bool,
}

impl<'a> Prompt<'a> {
    /// Every text of the prompt, decoded: contents, names, ids, tool calls; tools and schemas as the JSON that was sent.
    /// A backend that renders that JSON with other white space makes a few tokens more or less of it.
    pub fn texts(&self) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
        let (source, pieces) = (self.source, self.pieces);
        pieces.iter().map(move |piece| piece.0.decode(source))
    }
}

/// What was found while messages and tools were read.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Thinking is asked for.
    pub thinks: bool,
    pub pieces: Vec<Piece>,
    pub messages: u64,
    pub names: u64,
    pub images: u64,
    /// Sizes of those among them that say how large they are.
    pub pictures: Vec<picture::Size>,
    /// Tokens given by their numbers.
    pub given: u64,
    /// What the system says, where it stands beside the messages.
    pub lead: Option<Range<usize>>,
    /// From the first message to the end of the user's first.
    pub head: Option<Range<usize>>,
    /// Places that do not leave the gate, in order.
    pub cuts: Vec<Range<usize>>,
}

impl Found {
    /// Not one character and not one token, however many empty texts there are.
    pub fn is_silent(&self) -> bool {
        self.pieces.is_empty() && self.given == 0
    }
}

impl From<Mistake> for Refusal {
    fn from(m: Mistake) -> Self {
        Self::BadJson { at: m.at, why: m.why.to_owned() }
    }
}

pub(super) fn bad(param: impl Into<String>, why: &str) -> Refusal {
    Refusal::BadField { param: param.into(), why: why.to_owned() }
}

/// A client's key as it may be repeated to it: printable ASCII, at most 64 characters.
pub(super) fn shown(key: &str) -> String {
    key.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// The known name that `key` is under folding, when it is not that name itself. Readers that ignore case (Go's among
/// them) would take it for the known one: ASCII case, `ſ` (U+017F) for s, `K` (U+212A) for k, `ı` and `İ` for i.
pub(super) fn folds_to(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let fold = |c: char| match c {
        '\u{17F}' => 's',
        '\u{212A}' => 'k',
        '\u{130}' | '\u{131}' => 'i',
        c => c.to_ascii_lowercase(),
    };
    if key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
        return None;
    }
    known.iter().copied().find(|name| *name != key && name.chars().eq(key.chars().map(fold)))
}

/// Leaves members out of an object while it is copied, commas included.
#[derive(Default)]
struct Cutter {
    kept_any: bool,
    last_end: usize,
    /// Start of members cut before any was kept: their comma is the one behind them.
    leading: Option<usize>,
}

impl Cutter {
    fn kept(&mut self, start: usize, end: usize, cuts: &mut Vec<Range<usize>>) {
        if let Some(from) = self.leading.take() {
            // Cuts are kept in order; what was cut inside this member's own value comes later in the body.
            let at = cuts.partition_point(|c| c.start < from);
            cuts.insert(at, from..start);
        }
        self.kept_any = true;
        self.last_end = end;
    }

    fn cut(&mut self, start: usize, end: usize, cuts: &mut Vec<Range<usize>>) {
        if self.kept_any {
            cuts.push(self.last_end..end);
        } else {
            self.leading.get_or_insert(start);
        }
        self.last_end = end;
    }

    fn close(self, cuts: &mut Vec<Range<usize>>) {
        if let Some(from) = self.leading {
            cuts.push(from..self.last_end);
        }
    }
}

/// What a part of a message is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Refusal,
    Image,
}

const MESSAGE: &[&str] = &[
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "refusal",
    "function_call",
    "audio",
    "annotations",
    "reasoning_content",
    "reasoning",
    // What OpenRouter puts into its replies, and wants back with the conversation.
    "reasoning_details",
];
pub(super) const ONE_TYPE: &str = "must hold what its type says, and nothing else";
const ROLES: &[&str] = &["developer", "system", "user", "assistant", "tool", "function"];
const PART: &[&str] = &["type", "text", "refusal", "image_url"];
const IMAGE: &[&str] = &["url", "detail"];

const A_PICTURE: &str = "must be a data:image/ URL, or an https: URL with a public name of a host";

fn is_picture(url: &str) -> bool {
    url.starts_with("data:image/") || is_elsewhere(url)
}

/// Whether the backend, which fetches it, would look for this URL out in the world and not in its own house: `https:` to a name with a
/// dot, in plain letters. No address in any of its spellings, nothing local, nobody's password. Where a name leads is for the backend to
/// look at.
pub fn is_elsewhere(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("https://") else { return false };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = authority.split(':').next().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let port = authority.split_once(':').map_or("", |(_, port)| port);
    let Some((_, last)) = host.rsplit_once('.') else { return false };
    host.chars().all(plain)
        && port.bytes().all(|b| b.is_ascii_digit())
        && !last.starts_with(|c: char| c.is_ascii_digit())
        && !matches!(last, "" | "localhost" | "local" | "internal" | "intranet" | "lan" | "home" | "corp" | "arpa")
}

/// Reads what a model reads, with the scanner of the whole body.
pub(super) struct Reader<'a, 'l> {
    pub scanner: Scanner<'a>,
    pub limits: &'l Limits,
    pub found: Found,
}

impl<'a> Reader<'a, '_> {
    /// `messages`: each one an object with a known role.
    pub fn messages(&mut self) -> Result<(), Refusal> {
        self.turns("messages", Self::message)
    }

    /// What was said in turns, one by one; `turn` says whether it is the user's.
    pub fn turns(
        &mut self,
        param: &str,
        mut turn: impl FnMut(&mut Self) -> Result<bool, Refusal>,
    ) -> Result<(), Refusal> {
        self.scanner.peek()?;
        let start = self.scanner.at();
        self.items(param, |this, _| {
            let is_users = turn(this)?;
            this.found.messages += 1;
            if is_users && this.found.head.is_none() {
                this.found.head = Some(start..this.scanner.at());
            }
            Ok(())
        })
    }

    /// What the system says beside the turns.
    pub fn lead(&mut self, read: impl FnOnce(&mut Self) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let start = self.scanner.at();
        read(self)?;
        self.found.lead = Some(start..self.scanner.at());
        Ok(())
    }

    /// An array, item by item, each with its place in it.
    pub fn items(
        &mut self,
        param: &str,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if self.scanner.peek()? != Kind::Array {
            return Err(bad(param, "must be an array"));
        }
        let mut array = self.scanner.array()?;
        let mut index = 0;
        while self.scanner.next_item(&mut array)? {
            item(self, index)?;
            index += 1;
        }
        Ok(())
    }

    /// `tools`, each with these `members`: functions and custom tools run at the client; every other kind is run, and billed, by the
    /// backend.
    pub fn tools(&mut self, members: &'static [&'static str]) -> Result<(), Refusal> {
        self.items("tools", |this, index| {
            let mut kind = None;
            let place = |rest: &str| format!("tools[{index}]{rest}");
            this.members(members, &place, |this, key| {
                if key == "type" {
                    kind = Some(this.string_of(&place(".type"))?);
                } else {
                    this.raw_piece()?;
                }
                Ok(())
            })?;
            match kind.as_deref() {
                Some("function" | "custom") => Ok(()),
                Some(_) => Err(Refusal::NotPriced { param: place(".type") }),
                None => Err(bad(place(".type"), "is missing")),
            }
        })
    }

    /// One text, or several, each of them a string or the numbers of its tokens.
    pub fn inputs(&mut self, param: &str) -> Result<(), Refusal> {
        const WHY: &str =
            "must be a string, an array of strings, an array of token numbers, or an array of such arrays";
        if self.scanner.peek()? == Kind::String {
            return self.input(param);
        }
        if self.scanner.peek()? != Kind::Array {
            return Err(bad(param, WHY));
        }
        let mut array = self.scanner.array()?;
        let mut first = None;
        while self.scanner.next_item(&mut array)? {
            let kind = self.scanner.peek()?;
            if *first.get_or_insert(kind) != kind {
                return Err(bad(param, WHY));
            }
            match kind {
                Kind::String => self.input(param)?,
                // All of them are one text.
                Kind::Number => {
                    self.token(param)?;
                    self.found.messages = 1;
                }
                Kind::Array => {
                    let mut tokens = self.scanner.array()?;
                    while self.scanner.next_item(&mut tokens)? {
                        self.token(param)?;
                    }
                    self.found.messages += 1;
                }
                _ => return Err(bad(param, WHY)),
            }
        }
        Ok(())
    }

    /// One text that is asked about.
    pub fn input(&mut self, param: &str) -> Result<(), Refusal> {
        self.text(param)?;
        self.found.messages += 1;
        Ok(())
    }

    /// A text that goes into the prompt.
    pub fn text(&mut self, param: &str) -> Result<(), Refusal> {
        if self.scanner.peek()? != Kind::String {
            return Err(bad(param, "must be a string"));
        }
        self.text_piece()
    }

    fn token(&mut self, param: &str) -> Result<(), Refusal> {
        const WHY: &str = "must be made of token numbers: whole, not negative, in plain digits";
        if self.scanner.peek()? != Kind::Number {
            return Err(bad(param, WHY));
        }
        let span = self.scanner.value()?;
        if !self.scanner.source().get(span).unwrap_or_default().bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad(param, WHY));
        }
        self.found.given += 1;
        Ok(())
    }

    /// A value whose JSON goes into the prompt as it is (schemas, function definitions).
    pub fn raw_piece(&mut self) -> Result<Range<usize>, Refusal> {
        let span = self.scanner.value()?;
        self.found.pieces.push(Piece(Text { start: span.start, end: span.end, escaped: false }));
        Ok(span)
    }

    /// A string that is no part of the prompt.
    pub fn string_of(&mut self, param: &str) -> Result<Cow<'a, str>, Refusal> {
        if self.scanner.peek()? != Kind::String {
            return Err(bad(param, "must be a string"));
        }
        let text = self.scanner.string()?;
        Ok(text.decode(self.scanner.source()))
    }

    /// Whether it is the user's.
    fn message(&mut self) -> Result<bool, Refusal> {
        let index = self.found.messages;
        let place = |rest: &str| format!("messages[{index}]{rest}");
        let mut user = None;
        self.members(MESSAGE, &place, |this, key| {
            let kind = this.scanner.peek()?;
            if kind == Kind::Null {
                this.scanner.value()?;
                return Ok(());
            }
            match (key, kind) {
                ("role", _) => {
                    let said = this.string_of(&place(".role"))?;
                    user = Some(said == "user");
                    if !ROLES.contains(&said.as_ref()) {
                        return Err(bad(
                            place(".role"),
                            "must be one of developer, system, user, assistant, tool, function",
                        ));
                    }
                }
                ("content", Kind::Array) => this.parts(index)?,
                ("content", Kind::String) => this.text_piece()?,
                ("content", _) => return Err(bad(place(".content"), "must be a string or an array of parts")),
                ("audio", _) => return Err(Refusal::NotPriced { param: place(".audio") }),
                ("tool_calls" | "function_call" | "annotations" | "reasoning_details", _) => this.scalar_pieces()?,
                (_, Kind::String) => {
                    this.found.names += u64::from(key == "name");
                    this.text_piece()?;
                }
                (_, _) => return Err(bad(place(&format!(".{key}")), "must be a string")),
            }
            Ok(())
        })?;
        user.ok_or_else(|| bad(place(".role"), "is missing"))
    }

    fn parts(&mut self, message: u64) -> Result<(), Refusal> {
        let mut array = self.scanner.array()?;
        let mut index = 0usize;
        while self.scanner.next_item(&mut array)? {
            let place = |rest: &str| format!("messages[{message}].content[{index}]{rest}");
            let mut kind: Option<Part> = None;
            let mut has: Option<Part> = None;
            // Backends differ on whether the type or the member decides, so there is one member and both say the same.
            let mut hold = |part: Part| match has.replace(part) {
                None => Ok(()),
                Some(_) => Err(bad(place(""), ONE_TYPE)),
            };
            self.members(PART, &place, |this, key| {
                match key {
                    "type" => {
                        let said = this.string_of(&place(".type"))?;
                        kind = Some(match said.as_ref() {
                            "text" => Part::Text,
                            "refusal" => Part::Refusal,
                            "image_url" if this.limits.image_url.is_some() => Part::Image,
                            // Images without a price, audio, files, video, and whatever is invented next.
                            _ => return Err(Refusal::NotPriced { param: place(".type") }),
                        });
                    }
                    "image_url" => {
                        if this.limits.image_url.is_none() {
                            return Err(Refusal::NotPriced { param: place(".image_url") });
                        }
                        hold(Part::Image)?;
                        this.image(&place(".image_url"))?;
                    }
                    _ => {
                        hold(if key == "text" { Part::Text } else { Part::Refusal })?;
                        if this.scanner.peek()? != Kind::String {
                            return Err(bad(place(&format!(".{key}")), "must be a string"));
                        }
                        this.text_piece()?;
                    }
                }
                Ok(())
            })?;
            match (kind, has) {
                (None, _) => return Err(bad(place(".type"), "is missing")),
                (Some(k), Some(h)) if k == h => {}
                _ => return Err(bad(place(""), ONE_TYPE)),
            }
            index += 1;
        }
        Ok(())
    }

    fn image(&mut self, param: &str) -> Result<(), Refusal> {
        if self.scanner.peek()? != Kind::Object {
            return Err(bad(param, "must be an object with a url"));
        }
        let mut url = false;
        let place = |rest: &str| format!("{param}{rest}");
        self.members(IMAGE, &place, |this, key| {
            if key == "detail" && this.scanner.peek()? == Kind::Null {
                return this.pass();
            }
            let said = this.string_of(&place(&format!(".{key}")))?;
            if key == "url" {
                url = true;
                if !is_picture(&said) {
                    return Err(bad(place(".url"), A_PICTURE));
                }
                this.found.pictures.extend(picture::of_data_url(&said));
            }
            Ok(())
        })?;
        if !url {
            return Err(bad(place(".url"), "is missing"));
        }
        self.found.images += 1;
        Ok(())
    }

    /// A picture by its URL alone; refused where pictures have no price.
    pub fn image_url(&mut self, param: &str) -> Result<(), Refusal> {
        if self.limits.image_url.is_none() {
            return Err(Refusal::NotPriced { param: param.to_owned() });
        }
        let said = self.string_of(param)?;
        if !is_picture(&said) {
            return Err(bad(param, A_PICTURE));
        }
        self.found.pictures.extend(picture::of_data_url(&said));
        self.found.images += 1;
        Ok(())
    }

    /// A value that is free of charge whatever it is.
    pub fn pass(&mut self) -> Result<(), Refusal> {
        self.scanner.value()?;
        Ok(())
    }

    /// A string of the prompt.
    pub fn text_piece(&mut self) -> Result<(), Refusal> {
        let text = self.scanner.string()?;
        if text.end > text.start {
            self.found.pieces.push(Piece(text));
        }
        Ok(())
    }

    /// How much is to be thought before the answer. Anything but `none` may be billed and not shown.
    pub fn effort(&mut self, param: &str) -> Result<(), Refusal> {
        self.found.thinks |= self.string_of(param)? != "none";
        Ok(())
    }

    /// A value of any kind, each string and number of it a part of the prompt.
    pub fn scalar_pieces(&mut self) -> Result<(), Refusal> {
        let pieces = &mut self.found.pieces;
        self.scanner.scalars(&mut |text| pieces.push(Piece(text)))?;
        Ok(())
    }

    /// Walks an object whose members are `known`; `read` must pass exactly the value. A member that only folds to a known
    /// one is refused always, any other unknown one as the tier says.
    pub fn members(
        &mut self,
        known: &[&'static str],
        place: &dyn Fn(&str) -> String,
        mut read: impl FnMut(&mut Self, &'static str) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if self.scanner.peek()? != Kind::Object {
            return Err(bad(place(""), "must be an object"));
        }
        let mut object = self.scanner.object()?;
        let mut cutter = Cutter::default();
        while let Some(key) = self.scanner.next_key(&mut object)? {
            match known.iter().copied().find(|name| *name == key.name) {
                Some(name) => {
                    read(self, name)?;
                    cutter.kept(key.at, self.scanner.at(), &mut self.found.cuts);
                }
                None => {
                    let inner = |rest: &str| place(&format!(".{rest}"));
                    self.unknown(&key, known, &inner)?;
                    cutter.cut(key.at, self.scanner.at(), &mut self.found.cuts);
                }
            }
        }
        cutter.close(&mut self.found.cuts);
        Ok(())
    }

    /// Passes the value of an unknown member, or refuses it. Null says "not given" by any name: clients send whole objects back,
    /// with members that a server left empty.
    pub fn unknown(
        &mut self,
        key: &Key<'a>,
        known: &[&'static str],
        place: &dyn Fn(&str) -> String,
    ) -> Result<(), Refusal> {
        if let Some(name) = folds_to(&key.name, known) {
            return Err(bad(
                place(name),
                "is spelled with other letters than its own; some readers would take it, some not",
            ));
        }
        match self.limits.unknown_fields {
            UnknownFields::Refuse if self.scanner.peek()? != Kind::Null => {
                Err(Refusal::UnknownField { param: place(&shown(&key.name)) })
            }
            UnknownFields::Refuse | UnknownFields::Strip => self.pass(),
        }
    }
}
