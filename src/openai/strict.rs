//! Reading JSON so that nobody downstream can read it differently.
//!
//! Parsers disagree on duplicate keys, lone surrogates, byte-order marks, huge numbers and nesting, and whoever pays for
//! one reading and is served another has found a hole. So what is accepted here is the part of RFC 8259 on which every parser
//! agrees: UTF-8, one value, no duplicate key at any depth, at most [`MAX_DEPTH`] levels, no lone surrogate, numbers every
//! reader can hold. One pass, borrowing; the caller pulls.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

/// Deepest nesting accepted; the outermost value is level 1.
pub const MAX_DEPTH: usize = 64;
/// Longest number, in characters: with [`MAX_EXPONENT`] no reader overflows to infinity.
const MAX_NUMBER: usize = 64;
const MAX_EXPONENT: u32 = 200;
/// Below this, comparing all pairs of keys is cheaper than hashing them.
const FEW_KEYS: usize = 12;

/// Why a text is not acceptable, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Byte offset.
    pub at: usize,
    /// In our words; never repeats the text.
    pub why: &'static str,
}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`
    Null,
}

/// A string in the text: what is between the quotes, and whether it has escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// First byte after the opening quote.
    pub start: usize,
    /// The closing quote.
    pub end: usize,
    /// Whether a backslash occurs in it.
    pub escaped: bool,
}

impl Text {
    /// The string it stands for. `source` is the text it was found in.
    pub fn decode<'a>(&self, source: &'a str) -> Cow<'a, str> {
        let raw = source.get(self.start..self.end).unwrap_or_default();
        if !self.escaped {
            return Cow::Borrowed(raw);
        }
        // It was checked when it was found, so reading it again cannot fail; raw text is the harmless answer.
        let quoted = source.get(self.start.saturating_sub(1)..self.end + 1).unwrap_or_default();
        serde_json::from_str::<String>(quoted).map_or(Cow::Borrowed(raw), Cow::Owned)
    }
}

/// A key as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    /// Decoded.
    pub name: Cow<'a, str>,
    /// Its opening quote.
    pub at: usize,
}

/// An object being read; made by [`Scanner::object`].
#[derive(Debug)]
pub struct Object {
    first_key: usize,
    fresh: bool,
}

/// An array being read; made by [`Scanner::array`].
#[derive(Debug)]
pub struct Array {
    fresh: bool,
}

/// Pulls values out of a text, checking everything it passes.
#[derive(Debug)]
pub struct Scanner<'a> {
    source: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// Keys of every open object, the innermost last.
    keys: Vec<Key<'a>>,
}

impl<'a> Scanner<'a> {
    /// Begins at the first byte. Refuses what is not UTF-8 and a byte-order mark.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Mistake> {
        if bytes.starts_with(b"\xEF\xBB\xBF") {
            return Err(Mistake { at: 0, why: "it begins with a byte-order mark" });
        }
        let source = std::str::from_utf8(bytes).map_err(|e| Mistake { at: e.valid_up_to(), why: "it is not UTF-8" })?;
        Ok(Self { source, bytes, at: 0, depth: 0, keys: Vec::new() })
    }

    /// The text.
    pub fn source(&self) -> &'a str {
        self.source
    }

    /// Where reading stands.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The kind of the value that comes next.
    pub fn peek(&mut self) -> Result<Kind, Mistake> {
        self.skip_space();
        match self.bytes.get(self.at) {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(_) => self.mistake("a value was expected"),
            None => self.mistake("it ends where a value was expected"),
        }
    }

    /// Enters an object; then [`Scanner::next_key`] until it says `None`.
    pub fn object(&mut self) -> Result<Object, Mistake> {
        self.open(b'{')?;
        Ok(Object { first_key: self.keys.len(), fresh: true })
    }

    /// The next key, with reading placed before its value. `None`: the object is closed and had no key twice.
    pub fn next_key(&mut self, object: &mut Object) -> Result<Option<Key<'a>>, Mistake> {
        if self.closes(b'}', &mut object.fresh)? {
            let checked = self.no_key_twice(object.first_key);
            self.keys.truncate(object.first_key);
            return checked.map(|()| None);
        }
        if self.bytes.get(self.at) != Some(&b'"') {
            return self.mistake("a key in double quotes was expected");
        }
        let at = self.at;
        let text = self.string()?;
        self.skip_space();
        if self.bytes.get(self.at) != Some(&b':') {
            return self.mistake("a colon was expected");
        }
        self.at += 1;
        let key = Key { name: text.decode(self.source), at };
        self.keys.push(key.clone());
        Ok(Some(key))
    }

    /// Enters an array; then [`Scanner::next_item`] until it says `false`.
    pub fn array(&mut self) -> Result<Array, Mistake> {
        self.open(b'[')?;
        Ok(Array { fresh: true })
    }

    /// Whether another item follows; reading is placed before it.
    pub fn next_item(&mut self, array: &mut Array) -> Result<bool, Mistake> {
        Ok(!self.closes(b']', &mut array.fresh)?)
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<Text, Mistake> {
        self.skip_space();
        if self.bytes.get(self.at) != Some(&b'"') {
            return self.mistake("a string was expected");
        }
        let start = self.at + 1;
        let mut escaped = false;
        let mut at = start;
        loop {
            at = end_of_plain(self.bytes, at);
            match self.bytes.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(Text { start, end: at, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    at = self.escape(at)?;
                }
                Some(_) => return Err(Mistake { at, why: "a control character stands in a string" }),
                None => return Err(Mistake { at, why: "it ends inside a string" }),
            }
        }
    }

    /// Passes over one value of any kind, checking it, and says where it stands.
    pub fn value(&mut self) -> Result<Range<usize>, Mistake> {
        self.scalars(&mut |_| {})
    }

    /// As [`Scanner::value`], and shows every scalar and key in it: strings as [`Text`], the rest as the text itself.
    pub fn scalars(&mut self, seen: &mut impl FnMut(Text)) -> Result<Range<usize>, Mistake> {
        let kind = self.peek()?;
        let start = self.at;
        match kind {
            Kind::Object => {
                let mut object = self.object()?;
                while let Some(key) = self.next_key(&mut object)? {
                    // The end of a key is found by its raw length only when nothing in it is escaped.
                    let raw_end = end_of_key(self.bytes, key.at);
                    let escaped = matches!(key.name, Cow::Owned(_));
                    seen(Text { start: key.at + 1, end: raw_end, escaped });
                    self.scalars(seen)?;
                }
            }
            Kind::Array => {
                let mut array = self.array()?;
                while self.next_item(&mut array)? {
                    self.scalars(seen)?;
                }
            }
            Kind::String => seen(self.string()?),
            Kind::Number => {
                self.number()?;
                seen(Text { start, end: self.at, escaped: false });
            }
            Kind::Bool | Kind::Null => {
                self.literal()?;
                seen(Text { start, end: self.at, escaped: false });
            }
        }
        Ok(start..self.at)
    }

    /// After the outermost value: nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), Mistake> {
        self.skip_space();
        if self.at < self.bytes.len() { self.mistake("something follows the JSON value") } else { Ok(()) }
    }

    fn mistake<T>(&self, why: &'static str) -> Result<T, Mistake> {
        Err(Mistake { at: self.at, why })
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn open(&mut self, bracket: u8) -> Result<(), Mistake> {
        self.skip_space();
        if self.bytes.get(self.at) != Some(&bracket) {
            return self.mistake(if bracket == b'{' { "an object was expected" } else { "an array was expected" });
        }
        if self.depth == MAX_DEPTH {
            return self.mistake("it is nested more than 64 levels deep");
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Passes the comma before the next member, or the closing bracket.
    fn closes(&mut self, bracket: u8, fresh: &mut bool) -> Result<bool, Mistake> {
        self.skip_space();
        let was_fresh = std::mem::replace(fresh, false);
        match self.bytes.get(self.at) {
            Some(b) if *b == bracket => {
                self.at += 1;
                self.depth -= 1;
                Ok(true)
            }
            Some(b',') if !was_fresh => {
                self.at += 1;
                self.skip_space();
                if self.bytes.get(self.at) == Some(&bracket) { self.mistake("a comma is left over") } else { Ok(false) }
            }
            Some(_) if was_fresh => Ok(false),
            Some(_) => self.mistake("a comma or the closing bracket was expected"),
            None => self.mistake("it ends inside an object or an array"),
        }
    }

    fn no_key_twice(&self, first: usize) -> Result<(), Mistake> {
        let keys = self.keys.get(first..).unwrap_or_default();
        let twice = |key: &Key<'a>| Err(Mistake { at: key.at, why: "a key occurs twice in one object" });
        if keys.len() <= FEW_KEYS {
            for (i, key) in keys.iter().enumerate() {
                if keys.iter().take(i).any(|earlier| earlier.name == key.name) {
                    return twice(key);
                }
            }
            return Ok(());
        }
        let mut seen: HashSet<&str> = HashSet::with_capacity(keys.len());
        for key in keys {
            if !seen.insert(&key.name) {
                return twice(key);
            }
        }
        Ok(())
    }

    /// Passes the escape at `at`; half a surrogate pair is no character and parsers disagree on it.
    fn escape(&self, at: usize) -> Result<usize, Mistake> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => match self.hex4(at + 2)? {
                0xD800..=0xDBFF => {
                    let low = self.bytes.get(at + 6..at + 8) == Some(b"\\u");
                    if low && (0xDC00..=0xDFFF).contains(&self.hex4(at + 8)?) {
                        Ok(at + 12)
                    } else {
                        Err(Mistake { at, why: "half a surrogate pair is escaped" })
                    }
                }
                0xDC00..=0xDFFF => Err(Mistake { at, why: "half a surrogate pair is escaped" }),
                _ => Ok(at + 6),
            },
            _ => Err(Mistake { at, why: "an escape is not one of JSON's" }),
        }
    }

    fn hex4(&self, at: usize) -> Result<u32, Mistake> {
        let digits = self.bytes.get(at..at + 4).unwrap_or_default();
        if digits.len() != 4 {
            return Err(Mistake { at, why: "four hex digits were expected" });
        }
        digits.iter().try_fold(0, |value, b| {
            char::from(*b)
                .to_digit(16)
                .map(|d| value * 16 + d)
                .ok_or(Mistake { at, why: "four hex digits were expected" })
        })
    }

    fn number(&mut self) -> Result<(), Mistake> {
        let start = self.at;
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        let whole = self.digits();
        if whole == 0 {
            return self.mistake("a digit was expected");
        }
        if whole > 1 && self.bytes.get(self.at - whole) == Some(&b'0') {
            return Err(Mistake { at: start, why: "a number has a leading zero" });
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return self.mistake("a digit was expected");
            }
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            let digits = self.digits();
            if digits == 0 {
                return self.mistake("a digit was expected");
            }
            let exponent = self.source.get(self.at - digits..self.at).and_then(|t| t.parse::<u32>().ok());
            if exponent.is_none_or(|e| e > MAX_EXPONENT) {
                return Err(Mistake { at: start, why: "a number is too large or too small for some readers" });
            }
        }
        if self.at - start > MAX_NUMBER {
            return Err(Mistake { at: start, why: "a number is longer than 64 characters" });
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        self.at - start
    }

    fn literal(&mut self) -> Result<(), Mistake> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        for word in [&b"true"[..], b"false", b"null"] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(());
            }
        }
        self.mistake("a value was expected")
    }
}

/// The closing quote of a key already checked, whose opening quote is at `at`.
fn end_of_key(bytes: &[u8], at: usize) -> usize {
    let mut end = end_of_plain(bytes, at + 1);
    while bytes.get(end) == Some(&b'\\') {
        end = end_of_plain(bytes, end + 2);
    }
    end
}

/// First byte from `at` on that ends a run of plain string text: a quote, a backslash or a control character.
/// Eight bytes a step; the lowest marked byte of a step is exact, later ones may be marked by the borrow.
pub(super) fn end_of_plain(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGH;
    while let Some(step) = bytes.get(at..at + 8).and_then(|s| <[u8; 8]>::try_from(s).ok()) {
        let word = u64::from_le_bytes(step);
        let marked = below(word, 0x20) | below(word ^ (ONES * 0x22), 1) | below(word ^ (ONES * 0x5C), 1);
        if marked != 0 {
            return at + (marked.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|b| *b >= 0x20 && *b != b'"' && *b != b'\\') {
        at += 1;
    }
    at
}
