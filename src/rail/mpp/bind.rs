//! Challenge ids: a MAC over what we offered, so that a credential proves its terms with nothing kept on our side.
//!
//! The id is `base64url(HMAC-SHA256(key, realm|method|intent|request|expires|digest|[header|]opaque))`, empty text for what is
//! absent (draft-httpauth-payment-00, "Recommended: HMAC-SHA256 Binding"); `header`, which is the published SDKs' and not the
//! draft's, is there only when the challenge names one. It proves that *we* wrote the challenge, not that we wrote it for
//! *this* request: that is what `opaque` is compared for.

use crate::claim::Terms;
use crate::ids::{self, RailId};
use crate::money::{Atoms, Usd};
use crate::rail::ring::KeyRing;
use ::mpp::protocol::core::ChallengeEcho;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The values under the MAC, as they stand on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots<'a> {
    /// Host of `public_url`.
    pub realm: &'a str,
    /// `tempo`.
    pub method: &'a str,
    /// `charge`.
    pub intent: &'a str,
    /// base64url of the request object.
    pub request: &'a str,
    /// RFC 3339, or empty.
    pub expires: &'a str,
    /// `sha-256=…`, or empty.
    pub digest: &'a str,
    /// `Payment-Authorization` when the challenge selects that header.
    pub header: Option<&'a str>,
    /// base64url of our own words, or empty.
    pub opaque: &'a str,
}

impl<'a> Slots<'a> {
    /// The slots a client echoes.
    pub fn of(echo: &'a ChallengeEcho) -> Self {
        Self {
            realm: &echo.realm,
            method: echo.method.as_str(),
            intent: echo.intent.as_str(),
            request: echo.request.raw(),
            expires: echo.expires.as_deref().unwrap_or(""),
            digest: echo.digest.as_deref().unwrap_or(""),
            header: echo.header.as_deref(),
            opaque: echo.opaque.as_ref().map_or("", |o| o.raw()),
        }
    }

    fn each(&self, mut visit: impl FnMut(&str)) {
        for slot in [self.realm, self.method, self.intent, self.request, self.expires, self.digest] {
            visit(slot);
        }
        if let Some(header) = self.header {
            visit(header);
        }
        visit(self.opaque);
    }

    /// What the MAC is over. `None` when that could be read in two ways: `|` inside a slot, or anything but printable ASCII, would let
    /// two different challenges share an id. An empty header slot is no header.
    fn joined(&self) -> Option<String> {
        let mut plain = self.header != Some("");
        // Every byte is looked at, whatever the one before was: so many are looked at at once.
        let is_plain = |b: u8| (b != b'|') & (b' '..=b'~').contains(&b);
        self.each(|slot| plain &= slot.bytes().fold(true, |plain, b| plain & is_plain(b)));
        if !plain {
            return None;
        }
        let mut text = String::with_capacity(self.request.len() + self.opaque.len() + 256);
        let mut first = true;
        self.each(|slot| {
            if !std::mem::take(&mut first) {
                text.push('|');
            }
            text.push_str(slot);
        });
        Some(text)
    }
}

impl KeyRing {
    /// The id of a challenge, 43 characters. `None` when a slot holds `|`, a control character or non-ASCII text.
    pub fn sign(&self, slots: &Slots<'_>) -> Option<String> {
        Some(URL_SAFE_NO_PAD.encode(self.mac(slots.joined()?.as_bytes())?))
    }

    /// Whether `id` is the id of these slots under any key. The comparison takes the same time wherever they differ. An id has
    /// one spelling: the strict base64url of 32 bytes.
    pub fn verify(&self, slots: &Slots<'_>, id: &str) -> bool {
        let (Ok(id), Some(text)) = (URL_SAFE_NO_PAD.decode(id), slots.joined()) else { return false };
        self.made(text.as_bytes(), &id)
    }
}

/// Our words in a challenge's `opaque`: what the offer was made for, beyond what the request object says. A flat object of
/// strings whose keys are in order and whose text serde writes as JCS does, so that clients which re-serialise it give back the
/// same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opaque {
    generation: String,
    model: String,
    nonce: String,
    price: Usd,
    rail: String,
    route: String,
    tier: String,
    v: String,
}

impl Opaque {
    /// The layout written here; another one is not ours.
    const VERSION: &'static str = "1";

    /// What is said about these terms, as it stands on the wire. `None` only if it cannot be written. No two are alike: wallets
    /// make their transaction from the challenge, so two equal offers would be paid by one transaction.
    pub fn seal(terms: &Terms) -> Option<String> {
        let words = Self {
            generation: terms.generation.to_string(),
            model: terms.model.to_string(),
            nonce: ids::nonce(),
            price: terms.price,
            rail: terms.rail.to_string(),
            route: terms.route.to_string(),
            tier: terms.tier.to_string(),
            v: Self::VERSION.to_owned(),
        };
        serde_json::to_vec(&words).ok().map(|json| URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads it back. `None` when it is not in our layout; call only after the MAC held.
    pub fn open(wire: &str) -> Option<Self> {
        let words: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(wire).ok()?).ok()?;
        (words.v == Self::VERSION).then_some(words)
    }

    /// Whether the offer was made by this rail.
    pub fn is_of(&self, rail: &RailId) -> bool {
        self.rail == rail.as_str()
    }

    /// The terms, with what the request object says.
    pub fn terms(self, amount: Atoms, decimals: u8) -> Terms {
        Terms {
            rail: self.rail.into(),
            route: self.route.into(),
            model: self.model.into(),
            tier: self.tier.into(),
            generation: self.generation.into(),
            amount,
            price: self.price,
            decimals,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::secret::Secret;
    use ::mpp::protocol::core::{Base64UrlJson, compute_challenge_id_with_header};
    use hmac::{Hmac, Mac as _};
    use proptest::prelude::*;
    use sha2::Sha256;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::new(&keys.iter().map(|k| Secret::new(*k)).collect::<Vec<_>>()).unwrap()
    }

    fn slots<'a>() -> Slots<'a> {
        Slots {
            realm: "api.example.com",
            method: "tempo",
            intent: "charge",
            request: "eyJhbW91bnQiOiIxMDAwMDAwIn0",
            expires: "",
            digest: "",
            header: None,
            opaque: "",
        }
    }

    #[test]
    fn no_two_offers_of_the_same_terms_are_alike() {
        let terms = crate::claim::sample::claim("k", 20_000).terms;
        assert_ne!(Opaque::seal(&terms), Opaque::seal(&terms));
    }

    #[test]
    fn ids_are_those_of_the_published_sdks() {
        // The vectors' key is shorter than a ring accepts, so the MAC is asked directly.
        let key = Hmac::<Sha256>::new_from_slice(b"test-vector-secret").unwrap();
        let expires = "2025-01-06T12:00:00Z";
        let digest = "sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE";
        for (slots, want, why) in [
            (slots(), "X6v1eo7fJ76gAxqY0xN9Jd__4lUyDDYmriryOM-5FO4", "nothing optional"),
            (Slots { expires, ..slots() }, "ChPX33RkKSZoSUyZcu8ai4hhkvjZJFkZVnvWs5s0iXI", "expires"),
            (Slots { expires, digest, ..slots() }, "m39jbWWCIfmfJZSwCfvKFFtBl0Qwf9X4nOmDb21peLA", "expires and digest"),
        ] {
            let mac = key.clone().chain_update(slots.joined().unwrap()).finalize().into_bytes();
            assert_eq!(URL_SAFE_NO_PAD.encode(mac), want, "{why}");
        }
    }

    #[test]
    fn slots_that_could_be_read_in_two_ways_are_neither_signed_nor_accepted() {
        let ring = ring(&[KEY]);
        for (slots, why) in [
            (Slots { realm: "a|b", ..slots() }, "delimiter"),
            (Slots { realm: "a\nb", ..slots() }, "control"),
            (Slots { realm: "bücher", ..slots() }, "non-ASCII"),
            (Slots { expires: "|", ..slots() }, "delimiter in expires"),
            (Slots { header: Some(""), ..slots() }, "an empty header is not the same as none"),
        ] {
            assert_eq!(ring.sign(&slots), None, "{why}");
            let id = compute_challenge_id_with_header(
                KEY,
                slots.realm,
                slots.method,
                slots.intent,
                slots.request,
                Some(slots.expires),
                Some(slots.digest),
                Some(slots.opaque),
                slots.header,
            );
            assert!(!ring.verify(&slots, &id), "{why}: even under a right MAC");
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let ring = ring(&[KEY]);
        let id = ring.sign(&slots()).unwrap();
        let last = id.chars().last().unwrap();
        let sibling = char::from_u32(u32::from(last) + 1).unwrap();
        for (spelling, why) in [
            (format!("{id}="), "padded"),
            (id.to_ascii_uppercase(), "case"),
            (format!("{}{sibling}", &id[..42]), "other trailing bits"),
            (String::new(), "empty"),
            (id[..42].to_owned(), "cut"),
        ] {
            assert!(!ring.verify(&slots(), &spelling), "{why}");
        }
    }

    #[test]
    fn opaque_survives_a_client_that_writes_it_anew() {
        let terms = Terms {
            rail: "tempo/charge".into(),
            route: "/v1/chat/completions".into(),
            model: "a \"b\"\\/\u{1}\u{7f}\u{e9}\u{1f600}<\u{2028}>".into(),
            tier: "standard".into(),
            generation: "0123456789abcdef".into(),
            amount: Atoms(5),
            price: Usd::parse("0.0000041").unwrap(),
            decimals: 6,
        };
        let wire = Opaque::seal(&terms).unwrap();
        let again = Base64UrlJson::from_value(&Base64UrlJson::from_raw(wire.clone()).decode_value().unwrap()).unwrap();
        assert_eq!(again.raw(), wire, "canonical");
        assert_eq!(Opaque::open(&wire).unwrap().terms(Atoms(5), 6), terms, "and nothing is lost");
    }

    fn text() -> impl Strategy<Value = String> {
        "[ -{}~]{0,12}"
    }

    proptest! {
        #[test]
        fn ids_agree_with_the_crate(
            realm in text(), method in "[a-z]{1,8}", intent in "[a-z]{1,8}", request in text(), expires in text(), digest in text(),
            header in any::<bool>(), opaque in text(),
        ) {
            let header = header.then_some("Payment-Authorization");
            let slots = Slots {
                realm: &realm, method: &method, intent: &intent, request: &request, expires: &expires, digest: &digest, header,
                opaque: &opaque,
            };
            let theirs = compute_challenge_id_with_header(
                KEY, &realm, &method, &intent, &request, Some(&expires), Some(&digest), Some(&opaque), header,
            );
            let ring = ring(&[KEY]);
            prop_assert_eq!(ring.sign(&slots), Some(theirs.clone()));
            prop_assert!(ring.verify(&slots, &theirs));
        }

        #[test]
        fn a_challenge_with_one_changed_slot_is_not_ours(slot in 0usize..8, other in "[ -{}~]{1,12}") {
            let ring = ring(&[KEY]);
            let base = Slots { expires: "2026-01-01T00:00:00Z", digest: "sha-256=x", opaque: "b3BhcXVl", ..slots() };
            let id = ring.sign(&base).unwrap();
            let mut changed = base;
            *[&mut changed.realm, &mut changed.method, &mut changed.intent, &mut changed.request, &mut changed.expires,
                &mut changed.digest, &mut changed.opaque][slot.min(6)] = &other;
            if slot == 7 {
                changed = Slots { header: Some(&other), ..base };
            }
            prop_assume!(changed != base);
            prop_assert!(!ring.verify(&changed, &id));
        }

        #[test]
        fn text_may_not_move_between_slots(a in "[a-z]{0,6}", b in "[a-z]{0,6}", c in "[a-z]{0,6}") {
            let ring = ring(&[KEY]);
            let one = Slots { realm: &a, expires: &b, digest: &c, ..slots() };
            let joined = format!("{b}{c}");
            let two = Slots { realm: &a, expires: &joined, digest: "", ..slots() };
            prop_assume!(one != two);
            prop_assert_ne!(ring.sign(&one), ring.sign(&two));
        }
    }
}
