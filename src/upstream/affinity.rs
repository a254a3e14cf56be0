//! Which requests are kept together, read from their body.
//!
//! - `balance = "prefix"`: the beginning of the prompt, up to and with the first message that is not the system's: it is the same
//!   in every turn of a conversation and whoever asks, so a backend finds in its cache what it has read before. Of a prompt that
//!   is one text, its beginning. Who asks is no part of it.
//! - `balance = "consistent"`: what the client says keeps its requests together, `prompt_cache_key`, else `user`. A client that
//!   says nothing has no key.
//!
//! The body was read strictly before; one that is no request of ours has no key.

use super::pool::Pool;
use super::ring::Hash;
use super::select::Affinity;
use crate::rules::plan::Balance;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Bytes of the beginning that are looked at: more than tells conversations apart, little enough to cost microseconds.
const HEAD_BYTES: usize = 4096;

impl Pool {
    /// Which other requests one with this body is kept together with in this pool.
    pub fn affinity(&self, body: &[u8]) -> Affinity {
        match self.rules.balance {
            Balance::LeastOutstanding | Balance::RoundRobin => Affinity::NONE,
            Balance::Consistent => said(body),
            Balance::Prefix => head(body),
        }
    }
}

/// What clients may say of a request, in JSON of any surface.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    prompt_cache_key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
}

fn said(body: &[u8]) -> Affinity {
    let said = serde_json::from_slice::<Said<'_>>(body).ok();
    let key = said.and_then(|said| said.prompt_cache_key.or(said.user)).filter(|key| !key.is_empty());
    key.map_or(Affinity::NONE, |key| Affinity::of(key.as_bytes()))
}

fn head(body: &[u8]) -> Affinity {
    let mut head = Head { hash: Hash::default(), left: HEAD_BYTES, over: false };
    // Reading ends with an error of our own where the head is over.
    let _ = serde_json::Deserializer::from_slice(body).deserialize_map(&mut head);
    if head.left == HEAD_BYTES { Affinity::NONE } else { Affinity(Some(head.hash.finish())) }
}

struct Head {
    hash: Hash,
    left: usize,
    over: bool,
}

impl Head {
    fn add(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let bytes = bytes.get(..self.left).unwrap_or(bytes);
        self.hash.add(bytes);
        self.left -= bytes.len();
        self.over |= self.left == 0;
    }
}

impl<'de> Visitor<'de> for &mut Head {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "messages" | "input" | "prompt" => {
                    let value = map.next_value::<&'de RawValue>()?.get();
                    if !value.starts_with('[') {
                        self.add(value);
                        self.over = true;
                    } else if serde_json::Deserializer::from_str(value).deserialize_seq(Turns(self)).is_ok() {
                        self.over = true;
                    }
                }
                // Vendors whose system prompt stands beside the messages.
                "system" | "instructions" => self.add(map.next_value::<&'de RawValue>()?.get()),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            if self.over {
                return Err(M::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

/// Messages, up to and with the first one that is not the system's.
struct Turns<'a>(&'a mut Head);

impl<'de> Visitor<'de> for Turns<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("messages")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut turns: S) -> Result<(), S::Error> {
        #[derive(Deserialize)]
        struct Turn<'a> {
            #[serde(borrow, default)]
            role: Cow<'a, str>,
        }
        while let Some(turn) = turns.next_element::<&'de RawValue>()? {
            self.0.add(turn.get());
            let role = serde_json::from_str::<Turn<'_>>(turn.get()).map_or(Cow::Borrowed(""), |turn| turn.role);
            if self.0.over || !matches!(role.as_ref(), "system" | "developer") {
                self.0.over = true;
                return Err(S::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(body: &Value) -> Affinity {
        head(body.to_string().as_bytes())
    }

    #[test]
    fn every_turn_of_a_conversation_has_the_key_of_the_first() {
        let system = json!({"role": "system", "content": "You are kind."});
        let first = json!({"role": "user", "content": "Hello"});
        let conversation = |turns: &[Value]| json!({"model": "m", "messages": turns});
        let begun = of(&conversation(&[system.clone(), first.clone()]));
        assert_ne!(begun, Affinity::NONE);
        let answer = json!({"role": "assistant", "content": "Hi!"});
        let more = json!({"role": "user", "content": "And then?"});
        assert_eq!(of(&conversation(&[system.clone(), first.clone(), answer, more.clone()])), begun);
        let mut by_someone = conversation(&[system.clone(), first.clone()]);
        by_someone["user"] = json!("tenant 7");
        by_someone["temperature"] = json!(1);
        assert_eq!(of(&by_someone), begun, "who asks, and how, is no part of it");
        assert_ne!(of(&conversation(&[system.clone(), more])), begun, "another conversation");
        assert_ne!(of(&conversation(&[first])), begun, "another system");
        assert_ne!(of(&conversation(&[system])), Affinity::NONE, "only a system");
    }

    #[test]
    fn the_beginning_of_a_text_or_of_another_vendors_prompt_is_a_key_too() {
        let long = "x".repeat(10_000);
        for (a, b, same, why) in [
            (json!({"prompt": "a"}), json!({"prompt": "b"}), false, "completions"),
            (
                json!({"prompt": format!("{long}a")}),
                json!({"prompt": format!("{long}b")}),
                true,
                "alike for long enough",
            ),
            (json!({"input": "a"}), json!({"input": "a", "user": "u"}), true, "responses, embeddings"),
            (
                json!({"input": [{"role": "user", "content": "a"}]}),
                json!({"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}),
                true,
                "responses as turns",
            ),
            (json!({"prompt": ["a", "b"]}), json!({"prompt": ["a", "c"]}), true, "several prompts: the first"),
            (
                json!({"system": "s", "messages": [{"role": "user", "content": "a"}]}),
                json!({"system": "t", "messages": [{"role": "user", "content": "a"}]}),
                false,
                "a system beside the messages",
            ),
        ] {
            assert_eq!(of(&a) == of(&b), same, "{why}");
            assert_ne!(of(&a), Affinity::NONE, "{why}");
        }
    }

    #[test]
    fn what_is_no_request_has_no_key() {
        for body in [
            "",
            "[]",
            "7",
            "{",
            "{}",
            "{\"model\":\"m\"}",
            "{\"messages\":[]}",
            "\u{0}",
            "{\"user\":7}",
            "{\"user\":\"\"}",
        ] {
            assert_eq!((head(body.as_bytes()), said(body.as_bytes())), (Affinity::NONE, Affinity::NONE), "{body:?}");
        }
    }

    #[test]
    fn what_the_client_says_keeps_its_requests_together() {
        let key = |body: Value| said(body.to_string().as_bytes());
        let named = key(json!({"messages": [{"role": "user", "content": "a"}], "user": "u"}));
        assert_eq!(named, Affinity::of(b"u"));
        assert_eq!(key(json!({"user": "u", "messages": [1, {"deep": [null]}]})), named, "whatever it asks");
        assert_eq!(key(json!({"user": "u", "prompt_cache_key": "c"})), Affinity::of(b"c"), "the closer word counts");
        assert_eq!(key(json!({"messages": []})), Affinity::NONE);
    }
}
