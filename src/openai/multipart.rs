//! `multipart/form-data` (RFC 7578) as far as no two readers differ on it, and written anew for the backend.
//!
//! The body stays where it is: a part is a place in it. Accepted is what browsers, Node's fetch and httpx write: no preamble, CRLF
//! everywhere, quoted names without escapes, `Content-Disposition` and `Content-Type` and nothing else that means anything. What
//! leaves has a boundary of our own that nobody can have put into a part.

use crate::refusal::Refusal;
use memchr::memmem;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// Most parts of one form.
const MOST_PARTS: usize = 64;
/// Largest head of a part, in bytes.
const HEAD_BYTES: usize = 2048;

/// One part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// Its field.
    pub name: &'a str,
    /// What the client calls the file.
    pub filename: Option<&'a str>,
    /// What the client says is in it.
    pub content_type: Option<&'a str>,
    /// Where its content stands.
    pub content: Range<usize>,
}

/// The boundary that a `Content-Type` gives, when it is one of a form. Quoted or not; without quotes it must not need any.
pub fn boundary_of(content_type: &str) -> Option<&str> {
    let (essence, parameters) = content_type.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut found = None;
    for parameter in parameters.split(';') {
        let (name, value) = parameter.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("boundary") {
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if found.replace(value).is_some() {
                return None;
            }
        }
    }
    found.filter(|boundary| is_boundary(boundary.as_bytes()))
}

/// Whether a body begins with this boundary: readers go by the header, the gate by the body.
pub fn begins_with(body: &[u8], boundary: &str) -> bool {
    first_boundary(body) == Some(boundary.as_bytes())
}

/// The same for the same parts, whatever boundary was put between them: clients make up a new one for every try. A body that
/// is no form counts as its bytes.
pub fn digest(body: &[u8]) -> [u8; 32] {
    let Ok(parts) = read(body) else { return Sha256::digest(body).into() };
    let mut hash = Sha256::new();
    for part in &parts {
        for text in [Some(part.name), part.filename, part.content_type] {
            hash.update(text.map_or(u64::MAX, |text| text.len() as u64).to_be_bytes());
            hash.update(text.unwrap_or_default().as_bytes());
        }
        let content = body.get(part.content.clone()).unwrap_or_default();
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}

/// The parts of a body in order.
pub(super) fn read(body: &[u8]) -> Result<Vec<Part<'_>>, Refusal> {
    let boundary = first_boundary(body).ok_or_else(|| bad(0, "it does not begin with the boundary"))?;
    let delimiter = [b"\r\n--", boundary].concat();
    let finder = memmem::Finder::new(&delimiter);
    let mut parts = Vec::new();
    // The line end before the first delimiter is the beginning of the body.
    let mut at = delimiter.len() - 2;
    loop {
        match body.get(at..).unwrap_or_default() {
            [b'-', b'-'] | [b'-', b'-', b'\r', b'\n'] => break,
            [b'\r', b'\n', ..] => at += 2,
            _ => return Err(bad(at, "a line end was expected behind the boundary")),
        }
        if parts.len() == MOST_PARTS {
            return Err(bad(at, "it has more than 64 parts"));
        }
        let rest = body.get(at..).unwrap_or_default();
        let head = rest.get(..rest.len().min(HEAD_BYTES)).unwrap_or_default();
        let head_end = memmem::find(head, b"\r\n\r\n").ok_or_else(|| bad(at, "the head of a part does not end"))?;
        let mut part = read_head(head.get(..head_end).unwrap_or_default(), at)?;
        // The two line ends behind a head may be the one in front of the delimiter: then the part is empty.
        let behind_head = at + head_end + 2;
        let end = finder.find(body.get(behind_head..).unwrap_or_default());
        let end = behind_head + end.ok_or_else(|| bad(body.len(), "it ends inside a part"))?;
        part.content = (behind_head + 2).min(end)..end;
        if end < behind_head + 2 {
            return Err(bad(end, "the head of a part does not end"));
        }
        parts.push(part);
        at = end + delimiter.len();
    }
    if parts.is_empty() { Err(bad(0, "it has no parts")) } else { Ok(parts) }
}

/// Appends one part to a body whose boundary is `boundary`.
pub(super) fn write(boundary: &str, part: &Part<'_>, content: &[u8], out: &mut Vec<u8>) {
    let mut head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"", part.name);
    if let Some(filename) = part.filename {
        head.push_str(&format!("; filename=\"{filename}\""));
    }
    if let Some(kind) = part.content_type {
        head.push_str(&format!("\r\nContent-Type: {kind}"));
    }
    head.push_str("\r\n\r\n");
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
}

/// Ends a body.
pub(super) fn close(boundary: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
}

/// The `Content-Type` of a body that we wrote.
pub(super) fn content_type(body: &[u8]) -> Option<String> {
    let boundary = std::str::from_utf8(first_boundary(body)?).ok()?;
    Some(format!("multipart/form-data; boundary={boundary}"))
}

fn first_boundary(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(b"--")?;
    let end = memmem::find(rest.get(..rest.len().min(72)).unwrap_or_default(), b"\r\n")?;
    rest.get(..end).filter(|boundary| is_boundary(boundary))
}

/// RFC 2046 §5.1.1 without the space, which some readers trim.
fn is_boundary(text: &[u8]) -> bool {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(b);
    (1..=70).contains(&text.len()) && text.iter().all(legal)
}

fn read_head(head: &[u8], at: usize) -> Result<Part<'_>, Refusal> {
    let text = std::str::from_utf8(head).map_err(|_| bad(at, "the head of a part is not UTF-8"))?;
    let (mut disposition, mut content_type) = (None, None);
    for line in text.split("\r\n") {
        let (name, value) = line.split_once(':').ok_or_else(|| bad(at, "a line in the head of a part has no colon"))?;
        let value = value.trim();
        if value.chars().any(|c| c.is_control()) {
            return Err(bad(at, "a control character stands in the head of a part"));
        }
        let twice = match name.to_ascii_lowercase().as_str() {
            "content-disposition" => disposition.replace(value).is_some(),
            "content-type" => content_type.replace(value).is_some(),
            // The length is where the delimiter is; content is never encoded (RFC 7578 §4.7).
            "content-length" => false,
            "content-transfer-encoding" if matches!(value.to_ascii_lowercase().as_str(), "binary" | "8bit") => false,
            _ => return Err(bad(at, "the head of a part says more than its disposition and type")),
        };
        if twice {
            return Err(bad(at, "the head of a part says something twice"));
        }
    }
    if content_type.is_some_and(|kind| !kind.bytes().all(|b| b.is_ascii_graphic() || b == b' ')) {
        return Err(bad(at, "the type of a part is not ASCII"));
    }
    let disposition = disposition.ok_or_else(|| bad(at, "a part has no disposition"))?;
    let (name, filename) = read_disposition(disposition, at)?;
    Ok(Part { name, filename, content_type, content: 0..0 })
}

/// `form-data; name="…"; filename="…"`, in either order.
fn read_disposition(text: &str, at: usize) -> Result<(&str, Option<&str>), Refusal> {
    const WHY: &str = "the disposition of a part is not form-data with a quoted name and perhaps a filename";
    let mut rest = text.strip_prefix("form-data").ok_or_else(|| bad(at, WHY))?.trim_start();
    let (mut name, mut filename) = (None, None);
    while let Some(parameter) = rest.strip_prefix(';') {
        let (key, value) = parameter.split_once('=').ok_or_else(|| bad(at, WHY))?;
        let value = value.strip_prefix('"').ok_or_else(|| bad(at, WHY))?;
        let (value, behind) = value.split_once('"').ok_or_else(|| bad(at, WHY))?;
        // A backslash escapes the quote behind it for some readers only.
        if value.contains('\\') {
            return Err(bad(at, "a backslash stands in the disposition of a part"));
        }
        let slot = match key.trim() {
            "name" => &mut name,
            "filename" => &mut filename,
            _ => return Err(bad(at, WHY)),
        };
        if slot.replace(value).is_some() {
            return Err(bad(at, "the disposition of a part says something twice"));
        }
        rest = behind.trim_start();
    }
    match name {
        Some(name) if rest.is_empty() && !name.is_empty() => Ok((name, filename)),
        _ => Err(bad(at, WHY)),
    }
}

fn bad(at: usize, why: &str) -> Refusal {
    Refusal::BadForm { at, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    const FORM: &str = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nw\r\n--b\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n\r\n--c\r\n--b--\r\n";

    #[test]
    fn parts_are_where_they_stand() {
        let parts = read(FORM.as_bytes()).unwrap();
        let seen: Vec<_> =
            parts.iter().map(|p| (p.name, p.filename, p.content_type, &FORM[p.content.clone()])).collect();
        assert_eq!(
            seen,
            [("model", None, None, "w"), ("file", Some("a.wav"), Some("audio/wav"), "\r\n--c")],
            "a line end before the delimiter belongs to it, another one to the content"
        );
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let head = |head: &str| format!("--b\r\n{head}\r\n\r\nx\r\n--b--\r\n");
        let named = |more: &str| head(&format!("Content-Disposition: form-data; name=\"a\"{more}"));
        for (body, good, why) in [
            (named(""), true, "plain"),
            (named("; filename=\"naïve.wav\""), true, "a name in UTF-8"),
            (named("\r\ncontent-length: 1\r\nContent-Transfer-Encoding: binary"), true, "what means nothing"),
            (head("content-disposition: form-data; filename=\"f\"; name=\"a\""), true, "any order"),
            (named("").trim_end().to_owned(), true, "no line end at the end"),
            (format!("hello\r\n{}", named("")), false, "a preamble"),
            (format!("\r\n{}", named("")), false, "an empty preamble"),
            (format!("{}x", named("")), false, "an epilogue"),
            (named("").replace("\r\n", "\n"), false, "bare line feeds"),
            (named("; filename=\"a\\\"; name=\\\"b\""), false, "escaped quotes"),
            (named("; name=\"b\""), false, "two names"),
            (named("; filename*=UTF-8''x"), false, "a second way to say the file's name"),
            (named("; filename=plain"), false, "no quotes"),
            (named("\r\nContent-Disposition: form-data; name=\"b\""), false, "two dispositions"),
            (named("\r\nContent-Transfer-Encoding: base64"), false, "encoded content"),
            (named("\r\nX-More: 1"), false, "a header nobody knows"),
            (named("\r\n folded: 1"), false, "a folded line"),
            (head("Content-Type: text/plain"), false, "no name"),
            (head("Content-Disposition: form-data; name=\"\""), false, "an empty name"),
            (head("Content-Disposition: attachment; name=\"a\""), false, "not of a form"),
            ("--b\r\n--b--\r\n".to_owned(), false, "a part without a head"),
            ("--b--\r\n".to_owned(), false, "no parts"),
            ("--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx".to_owned(), false, "cut short"),
            (
                "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--bb--\r\n".to_owned(),
                false,
                "another one",
            ),
            (
                "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n--b--\r\n".to_owned(),
                false,
                "no content at all",
            ),
            (String::new(), false, "nothing"),
            ("--\r\n\r\n".to_owned(), false, "an empty boundary"),
        ] {
            assert_eq!(read(body.as_bytes()).is_ok(), good, "{why}: {body:?}");
        }
        let many = |n: usize| {
            format!("{}--b--\r\n", "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n".repeat(n))
        };
        assert!(read(many(MOST_PARTS).as_bytes()).is_ok() && read(many(MOST_PARTS + 1).as_bytes()).is_err());
    }

    #[test]
    fn the_boundary_is_the_headers_and_the_bodys() {
        for (header, want, why) in [
            ("multipart/form-data; boundary=b", Some("b"), "plain"),
            ("Multipart/Form-Data; charset=utf-8; Boundary=\"b:1\"", Some("b:1"), "quoted, any case, not the first"),
            ("multipart/form-data; boundary=a; boundary=b", None, "two"),
            ("multipart/form-data", None, "none"),
            ("multipart/mixed; boundary=b", None, "no form"),
            ("multipart/form-data; boundary=a b", None, "a space"),
            ("application/json; boundary=b", None, "JSON"),
        ] {
            assert_eq!(boundary_of(header), want, "{why}");
        }
        assert!(begins_with(FORM.as_bytes(), "b") && !begins_with(FORM.as_bytes(), "bb"));
    }

    #[test]
    fn a_form_is_the_same_under_another_boundary_and_in_nothing_else() {
        let other = FORM.replace("--b", "--zz9");
        assert_eq!(digest(FORM.as_bytes()), digest(other.as_bytes()));
        for (from, to, why) in [
            ("w\r\n", "v\r\n", "content"),
            ("\"model\"", "\"node1\"", "a name"),
            ("a.wav", "b.wav", "a file's name"),
            ("audio/wav", "audio/mp3", "a type"),
        ] {
            assert_ne!(digest(FORM.as_bytes()), digest(FORM.replace(from, to).as_bytes()), "{why}");
        }
        assert_ne!(digest(b"a"), digest(b"b"), "what is no form counts as its bytes");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5)) {
            let mut body = Vec::new();
            for content in &contents {
                let part = Part { name: "a[]", filename: Some("f"), content_type: Some("x/y; z=1"), content: 0..0 };
                write("our_boundary", &part, content, &mut body);
            }
            close("our_boundary", &mut body);
            let parts = read(&body).unwrap();
            let got: Vec<_> = parts.iter().map(|p| body[p.content.clone()].to_vec()).collect();
            prop_assert_eq!(got, contents);
            prop_assert_eq!(content_type(&body).unwrap(), "multipart/form-data; boundary=our_boundary");
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop::sample::select(&b"-b\r\n:;=\"ax"[..]), 0..80)) {
            let _ = read(&[b"--b\r\n", &bytes[..]].concat());
        }
    }
}
