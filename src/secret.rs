//! Secrets that cannot be printed, and the only two places they may come from.

use std::fmt;
use zeroize::Zeroizing;

/// Bytes that no log, metric or answer may show: `Debug` prints `Secret(…)`, there is no `Display`, and memory is
/// wiped on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for the one call that needs them. Never format them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, or `None` when it is not UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        bool::from(subtle::ConstantTimeEq::ct_eq(self.expose(), other.expose()))
    }
}

impl Eq for Secret {}

/// Where a secret is kept: `env:NAME` or `file:PATH`, never inline.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretRef {
    /// An environment variable, read at start.
    Env(String),
    /// A file, read at start and again on SIGHUP; one trailing line end is not part of the secret.
    File(String),
}

impl SecretRef {
    /// Parses `env:NAME` or `file:PATH`. The error is a sentence that does not repeat the value, because a secret
    /// pasted here by mistake must not reach a log.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            _ => Err("a secret is written as \"env:NAME\" or \"file:PATH\", never inline"),
        }
    }

    /// Reads the secret. The error names the place, never the content.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Env(name) => match std::env::var_os(name) {
                Some(v) if !v.is_empty() => Ok(Secret::new(v.into_encoded_bytes())),
                _ => Err(format!("environment variable {name} is not set")),
            },
            Self::File(path) => {
                let mut bytes = std::fs::read(path).map_err(|e| format!("cannot read secret file {path}: {e}"))?;
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                    if bytes.last() == Some(&b'\r') {
                        bytes.pop();
                    }
                }
                if bytes.is_empty() { Err(format!("secret file {path} is empty")) } else { Ok(Secret::new(bytes)) }
            }
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{path}"),
        }
    }
}

impl serde::Serialize for SecretRef {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SecretRef {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let s = Secret::new("canary-1234");
        assert_eq!(format!("{s:?}"), "Secret(…)");
        assert!(!format!("{:?}", Some(&s)).contains("canary"));
    }

    #[test]
    fn a_secret_pasted_inline_is_refused_without_being_repeated() {
        let err = SecretRef::parse("sk-live-canary").unwrap_err();
        assert!(!err.contains("canary"));
    }
}
