//! The headers of a JSON line. Pure; what [`write`] writes, [`read`] reads as the same bytes.
//!
//! An object, or, where a name comes twice, a list of `[name, value]`. A text is a JSON string, bytes that are no text
//! are the string `base64:…`, a null value is `null`; what else is in a line, such as a number, is taken as its JSON text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use task_api::{Header, Headers};

const BYTES: &str = "base64:";

/// Appends them to `out`.
pub(super) fn write(headers: Headers<'_>, out: &mut Vec<u8>) {
    let all: Vec<Header<'_>> = headers.iter().collect();
    let is_repeated = |(n, header): (usize, &Header<'_>)| all[..n].iter().any(|of| of.name == header.name);
    let is_list = all.iter().enumerate().any(is_repeated);
    let (open, between, close): (&[u8], &[u8], &[u8]) =
        if is_list { (b"[[", b"],[", b"]]") } else { (b"{", b",", b"}") };
    out.extend_from_slice(open);
    for (n, header) in all.iter().enumerate() {
        if n > 0 {
            out.extend_from_slice(between);
        }
        string(header.name, out);
        out.push(if is_list { b',' } else { b':' });
        match header.value {
            Some(value) => string(value, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(close);
}

fn string(bytes: &[u8], out: &mut Vec<u8>) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with(BYTES) => text.into(),
        Ok(_) | Err(_) => std::borrow::Cow::from(format!("{BYTES}{}", BASE64.encode(bytes))),
    };
    serde_json::to_writer(out, &text).expect("a text is written to memory");
}

/// Appends the headers in `json` to `packed`, to be read by [`Headers::packed`].
///
/// # Errors
/// It is neither an object nor a list of pairs.
pub(super) fn read(json: &str, packed: &mut Vec<u8>) -> Result<(), String> {
    let Some(Pairs(pairs)) = serde_json::from_str::<Option<Pairs>>(json)
        .map_err(|_| "headers must be an object, or a list of [name, value]".to_owned())?
    else {
        return Ok(());
    };
    for (name, value) in pairs {
        let name = bytes_of(name);
        let value = match value {
            Value::Null => None,
            Value::String(text) => Some(bytes_of(text)),
            other => Some(other.to_string().into_bytes()),
        };
        Headers::new(&[Header { name: &name, value: value.as_deref() }]).pack(packed);
    }
    Ok(())
}

/// The bytes that a string stands for.
fn bytes_of(text: String) -> Vec<u8> {
    let decoded = text.strip_prefix(BYTES).and_then(|text| BASE64.decode(text).ok());
    decoded.unwrap_or_else(|| text.into_bytes())
}

/// Names and values in their order.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object or a list of pairs")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = list.next_element()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(headers: &[Header<'_>]) -> String {
        let mut out = Vec::new();
        write(Headers::new(headers), &mut out);
        String::from_utf8(out).expect("text")
    }

    type Owned = (Vec<u8>, Option<Vec<u8>>);

    fn back(json: &str) -> Result<Vec<Owned>, String> {
        let mut packed = Vec::new();
        read(json, &mut packed)?;
        let owned = |h: Header<'_>| (h.name.to_vec(), h.value.map(<[u8]>::to_vec));
        Ok(Headers::packed(&packed).iter().map(owned).collect())
    }

    #[test]
    fn headers_are_an_object_or_a_list_where_a_name_comes_twice() {
        let (text, null) = (Header::new("a", b"x"), Header { name: b"b", value: None });
        assert_eq!(written(&[text, null]), r#"{"a":"x","b":null}"#);
        assert_eq!(written(&[text, Header::new("a", b"\xff")]), r#"[["a","x"],["a","base64:/w=="]]"#);
        let taken = back(r#"{"n": 12.5, "o": {"p": [1]}, "t": true}"#).expect("read");
        let values: Vec<_> = taken.iter().map(|(_, v)| v.as_deref().unwrap_or_default()).collect();
        assert_eq!(values, [b"12.5".as_slice(), b"{\"p\":[1]}", b"true"]);
        assert_eq!(back("null"), Ok(Vec::new()));
        for wrong in ["3", "[1]", r#"["a","b"]"#, r#"[["a"]]"#, r#"[["a","b","c"]]"#] {
            assert!(back(wrong).is_err(), "{wrong}");
        }
    }

    fn part() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![Just("base64:".to_owned()), Just("base64:AA==".to_owned()), ".{0,6}"];
        prop_oneof![any::<Vec<u8>>(), text.prop_map(String::into_bytes), Just(b"same".to_vec())]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same_bytes(
            all in proptest::collection::vec((part(), proptest::option::of(part())), 0..5),
        ) {
            let headers: Vec<Header<'_>> =
                all.iter().map(|(name, value)| Header { name, value: value.as_deref() }).collect();
            prop_assert_eq!(back(&written(&headers)), Ok(all));
        }
    }
}
