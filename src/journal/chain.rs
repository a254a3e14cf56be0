//! The hash chain that holds the journal together: each line names the hash before it, and the head names the last.
//!
//! A line is compact JSON with its members in this order: `seq` (from 1, without gaps), `prev` (hash of everything before, 64
//! hex digits), `entry`. Its hash is SHA-256 over the 32 bytes of `prev` and then the bytes of the line. Whoever keeps an
//! old [`Head`] elsewhere can prove later that nothing before it was changed; the chain alone shows damage and careless
//! edits, not a forger who can write the whole file.

use super::Entry;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::fmt;

/// SHA-256 over the journal up to some line; zero before the first. Written as 64 lower-case hex digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash after `line`, when this is the hash before it.
    fn then(self, line: &str) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(line.as_bytes()).finalize().into())
    }

    fn in_hex<T>(self, tell: impl FnOnce(&str) -> T) -> T {
        let mut digits = [b'0'; 64];
        // It has the room, and digits are text.
        let _ = hex::encode_to_slice(self.0, &mut digits);
        tell(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_hex(|digits| f.write_str(digits))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.in_hex(|digits| s.serialize_str(digits))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(String::deserialize(d)?, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// Bytes of a line that need no second allocation: most have fewer.
const ROOM: usize = 1024;

/// Where a journal ends: how many lines it has and the hash over them all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Lines so far, which is also the `seq` of the last one.
    pub lines: u64,
    /// Hash over them.
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.lines, self.hash)
    }
}

/// Why a line is not the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The `seq` that should have come.
    pub at: u64,
    /// What came instead.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the journal is broken at line {}: {}", self.at, self.why)
    }
}

#[derive(Serialize)]
struct Written<'a> {
    seq: u64,
    prev: Hash,
    entry: &'a Entry,
}

#[derive(Deserialize)]
struct Read<'a> {
    seq: u64,
    prev: Hash,
    #[serde(borrow)]
    entry: &'a RawValue,
}

impl Head {
    /// The line for `entry`, and the head once it is appended. The error is for a text that JSON cannot hold, which no
    /// entry of ours is.
    pub fn append(&self, entry: &Entry) -> Result<(String, Head), serde_json::Error> {
        let seq = self.lines.saturating_add(1);
        let mut line = Vec::with_capacity(ROOM);
        serde_json::to_writer(&mut line, &Written { seq, prev: self.hash, entry })?;
        let line = String::from_utf8(line).map_err(<serde_json::Error as serde::ser::Error>::custom)?;
        let hash = self.hash.then(&line);
        Ok((line, Head { lines: seq, hash }))
    }

    /// The head after `line`, and its entry: `None` when a later version wrote a kind this build does not know, which breaks
    /// nothing.
    pub fn follow(&self, line: &str) -> Result<(Head, Option<Entry>), Broken> {
        let seq = self.lines.saturating_add(1);
        let broken = |why: String| Broken { at: seq, why };
        let read: Read<'_> = serde_json::from_str(line).map_err(|e| broken(format!("it is not a line: {e}")))?;
        if read.seq != seq {
            return Err(broken(format!("line {} stands there", read.seq)));
        }
        if read.prev != self.hash {
            return Err(broken("it does not follow the lines before it".to_owned()));
        }
        Ok((Head { lines: seq, hash: self.hash.then(line) }, entry(read.entry.get())))
    }

    /// Whether `line` is the last line of a journal with this head. Looks at one line only: cheap enough for every start.
    pub fn ends_with(&self, line: &str) -> bool {
        serde_json::from_str::<Read<'_>>(line).is_ok_and(|r| r.seq == self.lines && r.prev.then(line) == self.hash)
    }
}

/// The entry of a line that is known to be ours.
pub fn entry_of(line: &str) -> Option<Entry> {
    serde_json::from_str::<Read<'_>>(line).ok().and_then(|r| entry(r.entry.get()))
}

/// Through a `Value`: with `arbitrary_precision`, serde cannot read the integers of a tagged enum straight from text.
fn entry(json: &str) -> Option<Entry> {
    serde_json::from_str::<serde_json::Value>(json).and_then(serde_json::from_value).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::clock::UnixSeconds;
    use crate::journal::sample;
    use crate::money::Atoms;

    fn three() -> (Vec<String>, Head) {
        let entries = [
            Entry::Claimed {
                key: "k".into(),
                amount: Atoms(20_000),
                reference: "0xab".into(),
                at: UnixSeconds(1_795_221_719),
            },
            Entry::Paid { key: "k".into(), at: UnixSeconds(1_795_221_720) },
            Entry::Receipt(Box::new(sample::receipt("rcpt_1", "0xab", 20_000))),
        ];
        let mut head = Head::default();
        let mut lines = Vec::new();
        for entry in &entries {
            let (line, next) = head.append(entry).unwrap();
            let (followed, read) = head.follow(&line).unwrap();
            assert_eq!((followed, read.as_ref()), (next, Some(entry)), "what is written is what is read: {line}");
            assert!(next.ends_with(&line));
            head = next;
            lines.push(line);
        }
        (lines, head)
    }

    fn walk(lines: &[String]) -> Result<Head, Broken> {
        lines.iter().try_fold(Head::default(), |head, line| head.follow(line).map(|(next, _)| next))
    }

    #[test]
    fn every_edit_of_the_journal_is_seen() {
        let (lines, head) = three();
        assert_eq!(walk(&lines), Ok(head));
        let edit = |f: &dyn Fn(&mut Vec<String>)| {
            let mut copy = lines.clone();
            f(&mut copy);
            copy
        };
        for (edited, at, why) in [
            (edit(&|l| l[0] = l[0].replace("20000", "20001")), 2, "an amount changed: the next line does not follow"),
            (edit(&|l| drop(l.remove(1))), 2, "a line removed"),
            (edit(&|l| l.swap(0, 1)), 1, "lines swapped"),
            (edit(&|l| l.insert(1, l[0].clone())), 2, "a line repeated"),
            (edit(&|l| l[2].truncate(20)), 3, "a line torn"),
            (edit(&|l| l[1] = l[1].replace(",", ", ")), 3, "only a space added"),
        ] {
            assert_eq!(walk(&edited).unwrap_err().at, at, "{why}");
        }
        let cut = edit(&|l| drop(l.pop()));
        assert_ne!(walk(&cut), Ok(head), "a missing end is seen by whoever knows the head");
        let last = edit(&|l| l[2] = l[2].replace("20000", "20001"));
        assert_ne!(walk(&last), Ok(head), "so is a change of the last line");
        assert!(!head.ends_with(&last[2]));
    }

    #[test]
    fn a_kind_of_entry_from_a_later_version_does_not_break_the_chain() {
        let line = format!(r#"{{"seq":1,"prev":"{}","entry":{{"entry":"voucher","at":1}}}}"#, Hash::default());
        let (head, entry) = Head::default().follow(&line).unwrap();
        assert_eq!((head.lines, entry), (1, None));
    }
}
