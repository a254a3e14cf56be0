//! JSON on which parsers disagree is refused, and nothing else is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::strict::*;
use proptest::prelude::*;

fn read(text: &[u8]) -> Result<(), Mistake> {
    let mut scanner = Scanner::new(text)?;
    scanner.value()?;
    scanner.end()
}

#[test]
fn what_parsers_read_differently_is_refused_with_its_place() {
    let deep = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
    for (text, at, why) in [
        (&b"\xEF\xBB\xBF{}"[..], 0, "byte-order mark"),
        (b"{\"a\":\"\xFF\"}", 6, "not UTF-8"),
        (b"{\"a\":\"\xED\xA0\x80\"}", 6, "a surrogate in UTF-8 form"),
        (b"{} x", 3, "trailing garbage"),
        (b"{}{}", 2, "a second value"),
        (b"{\"a\":1,\"a\":2}", 7, "duplicate key"),
        (br#"{"a":1,"\u0061":2}"#, 7, "the same key, escaped"),
        (br#"{"x":[{"b":{"c":1,"c":1}}]}"#, 18, "duplicate deep inside"),
        (br#"{"a":"\ud800"}"#, 6, "lone high surrogate"),
        (br#"{"a":"\udc00"}"#, 6, "lone low surrogate"),
        (br#"{"a":"\ud800\u0041"}"#, 6, "high surrogate before a letter"),
        (b"{\"a\":\"x\ny\"}", 7, "raw line end in a string"),
        (br#"{"a":"\x41"}"#, 6, "an escape of JavaScript"),
        (br#"{"a":NaN}"#, 5, "NaN"),
        (br#"{"a":Infinity}"#, 5, "Infinity"),
        (br#"{"a":+1}"#, 5, "sign"),
        (br#"{"a":01}"#, 5, "leading zero"),
        (br#"{"a":.5}"#, 5, "no whole part"),
        (br#"{"a":1.}"#, 7, "bare point"),
        (br#"{"a":1e999}"#, 5, "infinite to most readers"),
        (br#"{"a":0x10}"#, 6, "hex"),
        (br#"{"a":1,}"#, 7, "comma left over"),
        (br#"[1,]"#, 3, "comma left over in an array"),
        (br#"[,1]"#, 1, "comma first"),
        (br#"{'a':1}"#, 1, "single quotes"),
        (br#"{"a" 1}"#, 5, "no colon"),
        (br#"{"a":1"#, 6, "cut short"),
        (br#"{"a":"#, 5, "cut before the value"),
        (b"", 0, "nothing"),
        (b"{\"a\":1 /* x */}", 7, "comment"),
        (b"tru", 0, "half a word"),
        (b"{\"a\":1}\0", 7, "NUL behind"),
    ] {
        assert_eq!(read(text).map_err(|m| m.at), Err(at), "{why}");
    }
    assert_eq!(read(&deep(64)), Ok(()), "64 levels");
    assert_eq!(read(&deep(65)).map_err(|m| m.at), Err(64), "65 levels");
    assert!(read(&[b"1".repeat(65)].concat()).is_err(), "a number longer than anyone needs");
}

#[test]
fn a_duplicate_is_found_among_many_keys_too() {
    let mut text: Vec<String> = (0..1000).map(|i| format!("\"k{i}\":{i}")).collect();
    assert_eq!(read(format!("{{{}}}", text.join(",")).as_bytes()), Ok(()));
    text.push("\"k\\u0037\":0".to_owned());
    let body = format!("{{{}}}", text.join(","));
    let last = body.rfind("\"k\\u0037\"").unwrap();
    assert_eq!(read(body.as_bytes()).map_err(|m| m.at), Err(last));
}

#[test]
fn the_same_key_in_two_objects_is_no_duplicate() {
    assert_eq!(read(br#"[{"a":{"a":1}},{"a":2}]"#), Ok(()));
}

proptest! {
    #[test]
    fn the_end_of_plain_text_is_found_at_any_offset(text in proptest::collection::vec(any::<u8>(), 0..40), from in 0usize..40) {
        let want = (from..text.len()).find(|i| text[*i] < 0x20 || text[*i] == b'"' || text[*i] == b'\\');
        prop_assert_eq!(end_of_plain(&text, from.min(text.len())), want.unwrap_or(text.len().max(from.min(text.len()))));
    }

    #[test]
    fn what_is_accepted_here_is_accepted_by_serde(text in r#"[\[\]{},:"\\u0-9a-eE.+ntrfls -]{0,24}"#) {
        if read(text.as_bytes()).is_ok() {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn any_text_that_serde_writes_is_accepted_and_decodes_the_same(s in any::<String>()) {
        let text = serde_json::to_string(&s).unwrap();
        let mut scanner = Scanner::new(text.as_bytes()).unwrap();
        let found = scanner.string().unwrap();
        prop_assert_eq!(found.decode(&text), s.as_str());
    }

    #[test]
    fn one_changed_byte_never_makes_us_accept_what_serde_refuses(at in 0usize..90, byte in any::<u8>()) {
        let mut text = br#"{"model":"m","messages":[{"role":"user","content":"a\n\ud83d\ude00 b"}],"n":1,"t":-1.5e3}"#.to_vec();
        if let Some(b) = text.get_mut(at) { *b = byte; }
        if read(&text).is_ok() {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
        }
    }
}
