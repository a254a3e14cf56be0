//! A Rust file as far as the floors need it: tokens with their lines, which of them are tests, and which modules they name.
//!
//! Not a parser: it knows comments, strings, `#[cfg(test)]` and paths, and nothing else.

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name or a keyword.
    Word(String),
    /// One character of punctuation.
    Mark(char),
    /// A number as written.
    Number(String),
    /// A string or character as written, quotes and all.
    Text(String),
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// Counted from 1.
    pub line: usize,
    /// Inside an item under `#[cfg(test)]`.
    pub test: bool,
    /// Inside an item under an `#[allow(clippy::…)]` that says why.
    pub excused: bool,
    /// Modules opened inside this file around it.
    pub nesting: usize,
}

/// A file cut into tokens.
pub struct Source {
    pub tokens: Vec<Token>,
    /// `#[cfg(test)] mod name;`: files that are tests as a whole, with their `#[path]` if they have one.
    pub test_files: Vec<(String, Option<String>)>,
}

impl Source {
    /// Cuts and marks.
    pub fn read(text: &str) -> Self {
        let mut source = Self { tokens: cut(text), test_files: Vec::new() };
        source.mark_items(&text.lines().collect::<Vec<_>>());
        source.mark_modules();
        source
    }

    /// Whether `words` stand at `at`: names as they are, and each other character as a mark.
    pub fn stands(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(i, word)| match self.tokens.get(at + i).map(|t| &t.kind) {
            Some(Kind::Word(w)) => w == word,
            Some(Kind::Mark(m)) => word.len() == 1 && word.starts_with(*m),
            _ => false,
        })
    }

    fn word(&self, at: usize) -> Option<&str> {
        match self.tokens.get(at).map(|t| &t.kind) {
            Some(Kind::Word(w)) => Some(w),
            _ => None,
        }
    }

    fn text(&self, at: usize) -> Option<String> {
        match self.tokens.get(at).map(|t| &t.kind) {
            Some(Kind::Text(t)) => Some(t.trim_matches('"').to_owned()),
            _ => None,
        }
    }

    /// First names of every path that begins at the root called `root`: `crate::a::b` → `a`, `crate::{a::b, c}` → `a`, `c`,
    /// with their lines.
    pub fn named_from(&self, root: &str) -> Vec<(String, usize)> {
        (0..self.tokens.len())
            .filter(|at| self.stands(*at, &[root, ":", ":"]) && !self.stands(at.wrapping_sub(1), &[":"]))
            .flat_map(|at| self.heads(at + 3))
            .collect()
    }

    /// First names reached from the crate's root by `super::super::…` in a file `depth` modules below it.
    pub fn named_by_climbing(&self, depth: usize) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for at in 0..self.tokens.len() {
            if !self.stands(at, &["super", ":", ":"]) || self.stands(at.wrapping_sub(1), &[":"]) {
                continue;
            }
            let climbs = (0..).take_while(|n| self.stands(at + 3 * n, &["super", ":", ":"])).count();
            if self.tokens.get(at).is_some_and(|t| climbs >= depth + t.nesting) {
                found.extend(self.heads(at + 3 * climbs));
            }
        }
        found
    }

    /// The first name of a path, or of each path of a braced group.
    fn heads(&self, at: usize) -> Vec<(String, usize)> {
        let named = |at: usize| self.word(at).map(|w| (w.to_owned(), self.tokens.get(at).map_or(0, |t| t.line)));
        if !self.stands(at, &["{"]) {
            return named(at).into_iter().collect();
        }
        let (mut depth, mut found) = (0, Vec::new());
        for i in at..self.tokens.len() {
            let first = depth == 1 && (self.stands(i, &["{"]) || self.stands(i, &[","]));
            match self.tokens.get(i).map(|t| &t.kind) {
                Some(Kind::Mark('{')) => depth += 1,
                Some(Kind::Mark('}')) if depth == 1 => break,
                Some(Kind::Mark('}')) => depth -= 1,
                _ => {}
            }
            if (first || i == at) && depth == 1 {
                found.extend(named(i + 1));
            }
        }
        found
    }

    /// Marks the items behind `#[cfg(test)]` and behind an excused `#[allow(clippy::…)]`.
    fn mark_items(&mut self, lines: &[&str]) {
        let mut at = 0;
        while at < self.tokens.len() {
            let Some(attribute) = self.attribute(at) else {
                at += 1;
                continue;
            };
            let words: Vec<_> = (at..attribute).filter_map(|i| self.word(i)).collect();
            let test = words.first() == Some(&"cfg") && words.contains(&"test") && !words.contains(&"not");
            let excused = matches!(words.first(), Some(&("allow" | "expect")))
                && words.contains(&"clippy")
                && (words.contains(&"reason") || commented(lines, self.tokens.get(at).map_or(1, |t| t.line)));
            if test || excused {
                let mut begin = attribute;
                while let Some(next) = self.attribute(begin) {
                    begin = next;
                }
                if test && let Some(name) = self.declared_file(begin) {
                    let path =
                        (at..begin).find(|i| self.stands(*i, &["[", "path", "="])).and_then(|i| self.text(i + 3));
                    self.test_files.push((name, path));
                }
                let end = self.end_of_item(begin);
                for token in self.tokens.iter_mut().take(end).skip(at) {
                    token.test |= test;
                    token.excused |= excused;
                }
            }
            at = attribute;
        }
    }

    /// End of the outer attribute that begins at `at`.
    fn attribute(&self, at: usize) -> Option<usize> {
        if !self.stands(at, &["#", "["]) {
            return None;
        }
        let mut depth = 0;
        for i in at..self.tokens.len() {
            match self.tokens.get(i).map(|t| &t.kind) {
                Some(Kind::Mark('[')) => depth += 1,
                Some(Kind::Mark(']')) if depth == 1 => return Some(i + 1),
                Some(Kind::Mark(']')) => depth -= 1,
                _ => {}
            }
        }
        None
    }

    /// `mod name;`, however visible.
    fn declared_file(&self, at: usize) -> Option<String> {
        let name = (at..at + 6).find(|i| self.stands(*i, &["mod"])).map(|i| i + 1)?;
        self.stands(name + 1, &[";"]).then(|| self.word(name).map(ToOwned::to_owned)).flatten()
    }

    /// An item ends with its first `;` or `}` outside every bracket.
    fn end_of_item(&self, begin: usize) -> usize {
        let mut depth = 0_usize;
        for i in begin..self.tokens.len() {
            match self.tokens.get(i).map(|t| &t.kind) {
                Some(Kind::Mark('{' | '(' | '[')) => depth += 1,
                Some(Kind::Mark('}')) if depth <= 1 => return i + 1,
                Some(Kind::Mark('}' | ')' | ']')) => depth = depth.saturating_sub(1),
                Some(Kind::Mark(';')) if depth == 0 => return i + 1,
                _ => {}
            }
        }
        self.tokens.len()
    }

    fn mark_modules(&mut self) {
        let mut open = Vec::new();
        for at in 0..self.tokens.len() {
            let opens_module = at >= 2 && self.stands(at - 2, &["mod"]) && self.word(at - 1).is_some();
            match self.tokens.get(at).map(|t| &t.kind) {
                Some(Kind::Mark('{')) => open.push(opens_module),
                Some(Kind::Mark('}')) => drop(open.pop()),
                _ => {}
            }
            let nesting = open.iter().filter(|module| **module).count();
            if let Some(token) = self.tokens.get_mut(at) {
                token.nesting = nesting;
            }
        }
    }
}

/// Whether a comment stands on the line above, other attributes in between aside.
fn commented(lines: &[&str], line: usize) -> bool {
    let mut above = lines.iter().take(line.saturating_sub(1)).rev().map(|l| l.trim_start());
    above.find(|l| !l.starts_with("#[")).is_some_and(|l| l.starts_with("//"))
}

fn cut(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let text = |begin: usize, end: usize| Kind::Text(chars.iter().take(end).skip(begin).collect());
    let (mut i, mut line, mut tokens) = (0, 1, Vec::new());
    while i < chars.len() {
        let begin = i;
        let kind = match at(i) {
            '/' if at(i + 1) == '/' => {
                i += chars.iter().skip(i).take_while(|c| **c != '\n').count();
                None
            }
            '/' if at(i + 1) == '*' => {
                i = end_of_comment(&chars, i);
                None
            }
            c if c.is_whitespace() => {
                i += 1;
                None
            }
            '"' => {
                i = end_of_string(&chars, i);
                Some(text(begin, i))
            }
            'b' | 'r' | 'c' if let Some(end) = end_of_prefixed(&chars, i) => {
                i = end;
                Some(text(begin, i))
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                i += chars.iter().skip(i).take_while(|c| **c != '\'').count() + 1;
                Some(text(begin, i))
            }
            '\'' if at(i + 2) == '\'' => {
                i += 3;
                Some(text(begin, i))
            }
            c if c.is_ascii_digit() => {
                let dots = tokens.iter().rev().take_while(|t: &&Token| t.kind == Kind::Mark('.')).count();
                i = if dots == 1 { end_of_digits(&chars, i) } else { end_of_number(&chars, i) };
                Some(Kind::Number(chars.iter().take(i).skip(begin).collect()))
            }
            c if c.is_alphabetic() || c == '_' => {
                i += chars.iter().skip(i).take_while(|c| c.is_alphanumeric() || **c == '_').count();
                Some(Kind::Word(chars.iter().take(i).skip(begin).collect()))
            }
            c => {
                i += 1;
                Some(Kind::Mark(c))
            }
        };
        if let Some(kind) = kind {
            tokens.push(Token { kind, line, test: false, excused: false, nesting: 0 });
        }
        line += chars.iter().take(i).skip(begin).filter(|c| **c == '\n').count();
    }
    tokens
}

fn end_of_comment(chars: &[char], begin: usize) -> usize {
    let (mut depth, mut i) = (0_usize, begin);
    while i < chars.len() {
        match (chars.get(i), chars.get(i + 1)) {
            (Some('/'), Some('*')) => (depth, i) = (depth + 1, i + 2),
            (Some('*'), Some('/')) if depth == 1 => return i + 2,
            (Some('*'), Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    i
}

fn end_of_string(chars: &[char], begin: usize) -> usize {
    let mut i = begin + 1;
    while let Some(c) = chars.get(i) {
        match c {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    i
}

/// `b"…"`, `b'…'`, `r"…"`, `r#"…"#`, `br#"…"#`, `c"…"`.
fn end_of_prefixed(chars: &[char], begin: usize) -> Option<usize> {
    let prefix = chars.iter().skip(begin).take_while(|c| matches!(c, 'b' | 'r' | 'c')).count();
    let raw = chars.iter().skip(begin).take(prefix).any(|c| *c == 'r');
    let hashes = chars.iter().skip(begin + prefix).take_while(|c| **c == '#').count();
    let quote = begin + prefix + hashes;
    match chars.get(quote) {
        Some('"') if raw && prefix <= 2 => {
            let closes = |i: usize| chars.get(i) == Some(&'"') && (1..=hashes).all(|h| chars.get(i + h) == Some(&'#'));
            Some((quote + 1..chars.len()).find(|i| closes(*i)).map_or(chars.len(), |i| i + 1 + hashes))
        }
        Some('"') if prefix == 1 && hashes == 0 => Some(end_of_string(chars, quote)),
        Some('\'') if prefix == 1 && hashes == 0 && chars.get(begin) == Some(&'b') => {
            let body = if chars.get(quote + 1) == Some(&'\\') { quote + 3 } else { quote + 2 };
            (body..chars.len()).find(|i| chars.get(*i) == Some(&'\'')).map(|i| i + 1)
        }
        _ => None,
    }
}

/// The `0` of `pair.0`, also before another dot.
fn end_of_digits(chars: &[char], begin: usize) -> usize {
    begin + chars.iter().skip(begin).take_while(|c| c.is_ascii_digit()).count()
}

/// `1`, `1_000u64`, `0x1f`, `1.5`, `1e-3`; not the dots of `1..2` or `1.max(2)`.
fn end_of_number(chars: &[char], begin: usize) -> usize {
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    let hex = chars.get(begin) == Some(&'0') && matches!(chars.get(begin + 1), Some('x' | 'b' | 'o'));
    let mut i = begin;
    while let Some(c) = chars.get(i) {
        let goes_on = match c {
            '.' => digit(i + 1) && !hex,
            '-' | '+' => !hex && matches!(chars.get(i - 1), Some('e' | 'E')) && digit(i + 1),
            c => c.is_alphanumeric() || *c == '_',
        };
        if !goes_on {
            return i;
        }
        i += 1;
    }
    i
}
