//! Reading what an operator wrote without stopping at the first mistake.
//!
//! A serde derive ends at the first wrong field, and an operator would then repair a rule set one error at a time. Here the
//! parsed document is walked instead: every step that fails records a [`Mistake`] with file, line and key and hands back
//! `None`, and the walk goes on. A [`Section`] that goes out of scope reports every key nobody asked for, so a misspelt key
//! cannot be ignored, not even by forgetting to look.

use crate::secret::SecretRef;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong, and where. Shown as `tiers.toml:12: tier.standard.models[2]: "x" is not in models.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The place.
    pub spot: Spot,
    /// A sentence without a full stop. Never repeats a value that should have been a secret.
    pub message: String,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// Name of the file as the operator knows it.
    pub file: Arc<str>,
    /// Line, from 1; `None` when the whole file is meant.
    pub line: Option<usize>,
    /// Dotted key; empty when the whole file is meant.
    pub key: String,
}

/// A value with the place where it was written, for checks that need more than one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub spot: Spot,
}

impl Spot {
    /// The file as a whole.
    pub fn file(name: &str) -> Self {
        Self { file: name.into(), line: None, key: String::new() }
    }

    /// The file and the line: `models.toml:6`.
    pub fn place(&self) -> String {
        self.line.map_or_else(|| self.file.to_string(), |line| format!("{}:{line}", self.file))
    }

    /// A mistake at this place.
    pub fn mistake(&self, message: impl Into<String>) -> Mistake {
        Mistake { spot: self.clone(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spot.file)?;
        if let Some(line) = self.spot.line {
            write!(f, ":{line}")?;
        }
        if !self.spot.key.is_empty() {
            write!(f, ": {}", self.spot.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// One parsed file and the mistakes found in it so far.
#[derive(Debug)]
pub struct Page<'t> {
    file: Arc<str>,
    text: &'t str,
    root: DeTable<'t>,
    broken: bool,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'t> Page<'t> {
    /// Parses `text`; syntax errors become mistakes, all of them.
    pub fn open(file: &str, text: &'t str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let page = Self {
            file: file.into(),
            text,
            root: root.into_inner(),
            broken: !errors.is_empty(),
            mistakes: RefCell::default(),
        };
        for error in errors {
            let line = error.span().map(|span| page.line(span.start));
            // Only the parser's own words: the line itself may hold a pasted secret.
            let spot = Spot { file: page.file.clone(), line, key: String::new() };
            page.mistakes.borrow_mut().push(spot.mistake(error.message()));
        }
        page
    }

    /// Whether the text is not TOML. What could still be read is there, but nothing may be concluded from what is missing.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The table of the whole file.
    pub fn root(&self) -> Section<'_> {
        Section { page: self, table: &self.root, spot: Spot::file(&self.file), known: RefCell::default() }
    }

    /// The mistakes, in the order they were found.
    pub fn close(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }

    fn line(&self, byte: usize) -> usize {
        self.text.bytes().take(byte).filter(|b| *b == b'\n').count() + 1
    }

    fn spot(&self, byte: usize, key: String) -> Spot {
        Spot { file: self.file.clone(), line: Some(self.line(byte)), key }
    }

    fn wrong(&self, spot: &Spot, message: impl Into<String>) {
        self.mistakes.borrow_mut().push(spot.mistake(message));
    }
}

/// A table. Reports the keys nobody asked for when it goes out of scope.
#[derive(Debug)]
pub struct Section<'p> {
    page: &'p Page<'p>,
    table: &'p DeTable<'p>,
    spot: Spot,
    known: RefCell<BTreeSet<&'p str>>,
}

impl<'p> Section<'p> {
    /// Where the table begins.
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Records a mistake of the table as a whole.
    pub fn wrong(&self, message: impl Into<String>) {
        self.page.wrong(&self.spot, message);
    }

    /// The value of `key`, when it is written.
    pub fn take(&self, key: &'p str) -> Option<Value<'p>> {
        self.known.borrow_mut().insert(key);
        let (name, value) = self.table.get_key_value(key)?;
        Some(self.value(name, value))
    }

    /// The value of `key`; a mistake when it is not written.
    pub fn need(&self, key: &'p str) -> Option<Value<'p>> {
        let value = self.take(key);
        if value.is_none() {
            self.wrong(format!("`{key}` is missing"));
        }
        value
    }

    /// A key that a later build will know: refused like any unknown one, but with a sentence.
    pub fn later(&self, key: &'p str, sentence: &str) {
        // Asked for only when it is there, so that a mistake about another key does not recommend it.
        if self.table.contains_key(key)
            && let Some(value) = self.take(key)
        {
            value.wrong(format!("is not in this build: {sentence}"));
        }
    }

    /// Every entry in the order of the file, for tables whose keys are names the operator chose.
    pub fn entries(&self) -> Vec<(&'p str, Value<'p>)> {
        let mut entries: Vec<_> = self.table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        self.known.borrow_mut().extend(self.table.keys().map(|name| name.get_ref().as_ref()));
        entries.into_iter().map(|(name, value)| (name.get_ref().as_ref(), self.value(name, value))).collect()
    }

    /// Leaves the rest of the table unread on purpose: what it may hold cannot be known.
    pub fn pass_over(self) {
        self.entries();
    }

    fn value(&self, name: &'p Spanned<std::borrow::Cow<'p, str>>, value: &'p Spanned<DeValue<'p>>) -> Value<'p> {
        let key = join(&self.spot.key, name.get_ref());
        Value { page: self.page, value: value.get_ref(), spot: self.page.spot(name.span().start, key) }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let known = self.known.take();
        let mut unknown: Vec<_> =
            self.table.iter().filter(|(name, _)| !known.contains(name.get_ref().as_ref())).collect();
        unknown.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in unknown {
            let may = known.iter().copied().collect::<Vec<_>>().join(", ");
            self.value(name, value).wrong(format!("unknown key; known here: {may}"));
        }
    }
}

/// One value. Every reader hands back `None` after recording why.
#[derive(Clone, Debug)]
pub struct Value<'p> {
    page: &'p Page<'p>,
    value: &'p DeValue<'p>,
    spot: Spot,
}

impl<'p> Value<'p> {
    /// Where it is written.
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Records a mistake of this value.
    pub fn wrong(&self, message: impl Into<String>) {
        self.page.wrong(&self.spot, message);
    }

    /// `value`, with the place of this one.
    pub fn said<T>(&self, value: T) -> Said<T> {
        Said { value, spot: self.spot.clone() }
    }

    /// Text.
    pub fn text(&self) -> Option<&'p str> {
        self.is("text in quotes", self.value.as_str())
    }

    /// `true` or `false`.
    pub fn flag(&self) -> Option<bool> {
        self.is("true or false", self.value.as_bool())
    }

    /// A whole number inside `range`.
    pub fn count(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let integer = self.is("a whole number", self.value.as_integer())?;
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|n| range.contains(n));
        if number.is_none() {
            self.wrong(format!("{integer} is not between {} and {}", range.start(), range.end()));
        }
        number
    }

    /// Text that `read` understands; its error is put behind the quoted text: `"x" is not …`.
    pub fn read<T, E: fmt::Display>(&self, read: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text()?;
        read(text).map_err(|why| self.wrong(format!("{text:?} {why}"))).ok()
    }

    /// A decimal amount, written as text because a TOML number would be a float.
    pub fn amount<T, E: fmt::Display>(&self, read: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let number = match self.value {
            DeValue::Float(float) => Some(float.as_str()),
            DeValue::Integer(integer) => Some(integer.as_str()),
            _ => None,
        };
        match number {
            Some(number) => {
                self.wrong(format!("amounts are text, so that they stay exact: write \"{number}\""));
                None
            }
            None => self.read(read),
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let may = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
            self.wrong(format!("{text:?} is not {may}"));
        }
        found
    }

    /// `env:NAME` or `file:PATH`. What was written is never repeated: it may be the secret itself.
    pub fn secret(&self) -> Option<SecretRef> {
        SecretRef::parse(self.text()?).map_err(|why| self.wrong(why)).ok()
    }

    /// A table.
    pub fn section(&self) -> Option<Section<'p>> {
        let table = self.is("a table", self.value.as_table())?;
        Some(Section { page: self.page, table, spot: self.spot.clone(), known: RefCell::default() })
    }

    /// A table, when it is one: for values that have more than one form.
    pub fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Whether it is text that begins so.
    pub fn begins_with(&self, word: &str) -> bool {
        self.value.as_str().is_some_and(|text| text.starts_with(word))
    }

    /// A list of anything.
    pub fn list(&self) -> Option<Vec<Value<'p>>> {
        let array = self.is("a list", self.value.as_array())?;
        let item = |(index, item): (usize, &'p Spanned<DeValue<'p>>)| Value {
            page: self.page,
            value: item.get_ref(),
            spot: self.page.spot(item.span().start, format!("{}[{index}]", self.spot.key)),
        };
        Some(array.iter().enumerate().map(item).collect())
    }

    /// A list of texts; the items that are none are recorded and left out.
    pub fn texts(&self) -> Option<Vec<Said<String>>> {
        let items = self.list()?;
        Some(items.iter().filter_map(|item| Some(item.said(item.text()?.to_owned()))).collect())
    }

    fn is<T>(&self, wanted: &str, got: Option<T>) -> Option<T> {
        if got.is_none() {
            self.wrong(format!("must be {wanted}, not {}", kind(self.value)));
        }
        got
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Names in rules become metric labels and parts of signed terms, so they are kept plain.
pub fn plain_name(text: &str) -> Result<&str, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err("is not a name: 1 to 64 of a-z A-Z 0-9 - _ .")
    }
}

fn join(parent: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = if bare { name.to_owned() } else { format!("{name:?}") };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn mistakes(text: &str, read: impl Fn(&Section<'_>)) -> Vec<String> {
        let page = Page::open("f.toml", text);
        read(&page.root());
        page.close().iter().map(Mistake::to_string).collect()
    }

    #[test]
    fn one_reading_reports_every_mistake_with_its_line_and_key() {
        let got = mistakes("a = 1\nb = [1, 2]\n[t.\"x/y\"]\nc = 0.5\nspare = 1\n", |root| {
            root.take("a").unwrap().text();
            root.take("b").unwrap().list().unwrap()[1].text();
            root.need("z");
            let t = root.take("t").unwrap().section().unwrap();
            t.entries()[0].1.section().unwrap().take("c").unwrap().amount(crate::money::Usd::parse);
        });
        assert_eq!(
            got,
            [
                "f.toml:1: a: must be text in quotes, not a whole number",
                "f.toml:2: b[1]: must be text in quotes, not a whole number",
                "f.toml: `z` is missing",
                "f.toml:4: t.\"x/y\".c: amounts are text, so that they stay exact: write \"0.5\"",
                "f.toml:5: t.\"x/y\".spare: unknown key; known here: c",
            ]
        );
    }

    #[test]
    fn every_syntax_error_is_reported_without_repeating_the_line() {
        let got = mistakes("key = canary-1234\n\n[open]\nx = \n", |root| drop(root.entries()));
        assert!(got.len() >= 2, "{got:?}");
        assert!(
            got.iter().any(|m| m.starts_with("f.toml:1: ")) && got.iter().any(|m| m.starts_with("f.toml:4: ")),
            "{got:?}"
        );
        assert!(!got.concat().contains("canary"), "{got:?}");
    }

    #[test]
    fn a_secret_pasted_inline_is_refused_without_being_repeated() {
        let got = mistakes("k = 'sk-canary'", |root| assert!(root.take("k").unwrap().secret().is_none()));
        assert_eq!(got, ["f.toml:1: k: a secret is written as \"env:NAME\" or \"file:PATH\", never inline"]);
    }

    #[test]
    fn a_number_outside_its_range_is_shown_with_the_range() {
        for (text, why) in [("k = 0", "below"), ("k = 11", "above"), ("k = -1", "negative")] {
            let got = mistakes(text, |root| assert_eq!(root.take("k").unwrap().count(1..=10), None));
            assert!(got.len() == 1 && got[0].ends_with("is not between 1 and 10"), "{why}: {got:?}");
        }
    }
}
