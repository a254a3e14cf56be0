//! Names that must never mix are types of their own.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Arc<str>);

        impl $name {
            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// What a client may say: a key of `models.toml` or one of its aliases. Never sent upstream.
    PublicModel
);
name!(
    /// What a backend hears. Never shown to a client.
    UpstreamModel
);
name!(
    /// A tier's name in `tiers.toml`.
    TierName
);
name!(
    /// A pool's name in `pools.toml`.
    PoolName
);
name!(
    /// A rail as routes name it: `<section of pontage.toml>/<intent>`, for instance `tempo/charge`.
    RailId
);
name!(
    /// A public path in its normal form, the identity of a route.
    RoutePath
);
name!(
    /// One immutable set of rules: the first 16 hex digits of the SHA-256 over its files. It is in every offer and
    /// every receipt.
    Generation
);

/// A new id that sorts by time: 32 hex digits of a UUIDv7 (RFC 9562 §5.7) behind a prefix, e.g. `rcpt_…`, `req_…`.
pub fn fresh(prefix: &str) -> String {
    format!("{prefix}_{}", nonce())
}

/// Eight bytes that nobody outside can foretell: all but two of their bits are random.
pub fn salt() -> [u8; 8] {
    uuid::Uuid::new_v4().as_bytes().last_chunk().copied().unwrap_or_default()
}

/// 32 hex digits that no other call returns and nobody can foretell: 62 random bits behind the time (UUIDv7). The library's own are
/// 32 random bits behind a count that every other id tells.
pub fn nonce() -> String {
    let mut bytes = uuid::Uuid::now_v7().into_bytes();
    bytes[8..].copy_from_slice(&salt());
    uuid::Uuid::from_bytes(bytes).simple().to_string()
}

/// A short name that no other call returns, in this process or any other: a random stem for the process and a count.
pub fn change() -> String {
    static STEM: LazyLock<String> = LazyLock::new(|| nonce().split_off(20));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{:x}", *STEM, COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two that are made at once a count would tell one from the other.
    #[test]
    fn an_id_does_not_tell_the_next_one() {
        let random = |id: &str| u64::from_str_radix(&id[16..], 16).unwrap_or_default();
        let ids: Vec<u64> = (0..64).map(|_| random(&nonce())).collect();
        assert!(ids.iter().all(|id| id >> 62 == 2), "RFC 9562's variant");
        let near = ids.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1 << 40).count();
        assert!(near < 4, "{ids:x?}");
    }
}
