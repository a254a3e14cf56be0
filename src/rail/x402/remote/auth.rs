//! How we show a facilitator who we are: nothing, a fixed header, or a token made for one request.

use crate::clock::UnixSeconds;
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use http::{HeaderName, HeaderValue, header};
use serde_json::json;
use zeroize::Zeroizing;

/// How long a token lives; the service allows no more.
const TOKEN_SECONDS: u64 = 120;

/// What a facilitator wants to see.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Nothing.
    None,
    /// `Authorization: Bearer …`, always the same.
    Bearer(Secret),
    /// A header of its own, always the same.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: Secret,
    },
    /// Coinbase's platform: a JWT for each request, bound to method, host and path, signed with EdDSA.
    Cdp {
        /// Id of the API key.
        key_id: String,
        /// The key's secret as handed out: base64 of 64 bytes, an Ed25519 seed with its public key (or the seed alone).
        key_secret: Secret,
    },
}

/// The same, ready for use.
pub(super) enum Proof {
    None,
    Fixed(HeaderName, HeaderValue),
    Cdp { key_id: String, key: Box<SigningKey> },
}

impl Auth {
    /// Reads keys and checks that they can be headers. The error repeats none of them.
    pub(super) fn ready(self) -> Result<Proof, String> {
        match self {
            Self::None => Ok(Proof::None),
            Self::Bearer(token) => {
                let text = Zeroizing::new([b"Bearer ", token.expose()].concat());
                Ok(Proof::Fixed(header::AUTHORIZATION, sensitive(&text)?))
            }
            Self::Header { name, value } => {
                let name = name.parse().map_err(|_| "the facilitator's header has no valid name".to_owned())?;
                Ok(Proof::Fixed(name, sensitive(value.expose())?))
            }
            Self::Cdp { key_id, key_secret } => {
                let key = signing_key(&key_secret).ok_or(
                    "the facilitator's key secret is not base64 of an Ed25519 key (ES256 keys are not supported)",
                )?;
                Ok(Proof::Cdp { key_id, key: Box::new(key) })
            }
        }
    }
}

impl Proof {
    /// The header for one request. `path` may have a query; it is not part of what is signed.
    pub(super) fn header(
        &self,
        method: &str,
        host: &str,
        path: &str,
        now: UnixSeconds,
    ) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::None => None,
            Self::Fixed(name, value) => Some((name.clone(), value.clone())),
            Self::Cdp { key_id, key } => {
                let path = path.split_once('?').map_or(path, |(path, _)| path);
                let token = token(key_id, key, &format!("{method} {host}{path}"), now);
                sensitive(format!("Bearer {token}").as_bytes()).ok().map(|value| (header::AUTHORIZATION, value))
            }
        }
    }
}

/// The claims of the published SDK: `uris` with one entry. The nonce makes each token unique.
fn token(key_id: &str, key: &SigningKey, uri: &str, now: UnixSeconds) -> String {
    let nonce = uuid::Uuid::now_v7().simple().to_string();
    let head = json!({"alg": "EdDSA", "typ": "JWT", "kid": key_id, "nonce": nonce});
    let exp = now.plus(TOKEN_SECONDS).0;
    let claims = json!({"sub": key_id, "iss": "cdp", "iat": now.0, "nbf": now.0, "exp": exp, "uris": [uri]});
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(head), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).to_bytes());
    format!("{signed}.{signature}")
}

fn signing_key(secret: &Secret) -> Option<SigningKey> {
    let bytes = Zeroizing::new(STANDARD.decode(secret.expose().trim_ascii()).ok()?);
    let (seed, public) = bytes.split_first_chunk::<32>()?;
    let key = SigningKey::from_bytes(seed);
    (public.is_empty() || public == key.verifying_key().as_bytes()).then_some(key)
}

fn sensitive(value: &[u8]) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_bytes(value).map_err(|_| "the facilitator's key cannot be sent in a header")?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use serde_json::Value;

    fn cdp(secret: &[u8]) -> Auth {
        Auth::Cdp { key_id: "key-1".into(), key_secret: Secret::new(STANDARD.encode(secret)) }
    }

    #[test]
    fn each_request_has_a_token_of_its_own_bound_to_method_host_and_path() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let proof = cdp(&key.to_keypair_bytes()).ready().unwrap();
        let header = |path| proof.header("POST", "api.example", path, UnixSeconds(1_000)).unwrap();
        let (name, value) = header("/platform/v2/x402/settle?a=1");
        assert!(name == header::AUTHORIZATION && value.is_sensitive());
        assert_ne!(value, header("/platform/v2/x402/settle?a=1").1, "a nonce");
        let token = value.to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        let [head, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
        let read = |part: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap() };
        let (head_json, claims_json) = (read(head), read(claims));
        assert_eq!((&head_json["alg"], &head_json["kid"]), (&json!("EdDSA"), &json!("key-1")));
        assert_eq!(head_json["nonce"].as_str().unwrap().len(), 32);
        assert_eq!(
            claims_json,
            json!({"sub": "key-1", "iss": "cdp", "iat": 1000, "nbf": 1000, "exp": 1120,
                   "uris": ["POST api.example/platform/v2/x402/settle"]})
        );
        let signature: [u8; 64] = URL_SAFE_NO_PAD.decode(signature).unwrap().try_into().unwrap();
        let signature = ed25519_dalek::Signature::from_bytes(&signature);
        key.verifying_key().verify_strict(format!("{head}.{claims}").as_bytes(), &signature).unwrap();
    }

    #[test]
    fn a_key_that_cannot_be_used_is_named_without_being_repeated() {
        let mut torn = SigningKey::from_bytes(&[7; 32]).to_keypair_bytes();
        torn[40] ^= 1;
        for (auth, why) in [
            (cdp(&torn), "public half of another key"),
            (cdp(&[1; 16]), "too short"),
            (
                Auth::Cdp { key_id: "k".into(), key_secret: Secret::new("-----BEGIN EC PRIVATE KEY-----\ncanary") },
                "another kind of key",
            ),
            (Auth::Bearer(Secret::new("canary\n")), "a line end in a header"),
            (Auth::Header { name: "x api".into(), value: Secret::new("canary") }, "a space in a name"),
        ] {
            assert!(!format!("{auth:?}").contains("canary"), "{why}");
            let error = auth.ready().err().expect(why);
            assert!(!error.contains("canary"), "{why}: {error}");
        }
        assert!(cdp(&[7; 32]).ready().is_ok(), "a seed alone");
    }
}
