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

/// Eight bytes that nobody outside can foretell.
pub fn salt() -> [u8; 8] {
    uuid::Uuid::now_v7().as_bytes().last_chunk().copied().unwrap_or_default()
}

/// 32 hex digits that no other call returns: 74 random bits behind the time (UUIDv7).
pub fn nonce() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// A short name that no other call returns, in this process or any other: a random stem for the process and a count.
pub fn change() -> String {
    static STEM: LazyLock<String> = LazyLock::new(|| nonce().split_off(20));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{:x}", *STEM, COUNT.fetch_add(1, Ordering::Relaxed))
}
