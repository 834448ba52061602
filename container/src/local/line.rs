//! One JSON line and the message that it is; see `docs/local.md`. Pure.
//!
//! A line that is an object with `value` (or `value-base64`) and otherwise only `key` (or `key-base64`), `timestamp`
//! and `headers` is an envelope; any other line is a value. What [`write`] writes, [`parse`] reads as the same bytes.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::IgnoredAny;
use task_api::system::ProducerRecord;
use types::StreamSpec;

use super::headers;

/// How bytes look in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// As JSON if they are JSON, as a JSON string if they are other text.
    #[default]
    Json,
    /// As a JSON string.
    Text,
    /// Eight big-endian bytes as a number.
    I64,
    /// Eight big-endian bytes of IEEE 754 as a number.
    F64,
}

impl Form {
    fn of(serde: Option<&str>) -> Form {
        match serde {
            Some("string") => Form::Text,
            Some("i64") => Form::I64,
            Some("f64") => Form::F64,
            Some(_) | None => Form::Json,
        }
    }
}

/// How the lines of a stream look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    pub(crate) key: Form,
    pub(crate) value: Form,
    /// The field of a line without envelope that is the key.
    pub(crate) key_field: Option<String>,
}

impl Shape {
    pub(crate) fn of(stream: &StreamSpec) -> Shape {
        Shape {
            key: Form::of(stream.key_serde.as_deref()),
            value: Form::of(stream.serde.as_deref()),
            key_field: stream.key.clone(),
        }
    }
}

/// Where a key's or a value's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// There is none.
    Absent,
    /// In the line.
    Line(Range<usize>),
    /// In what [`parse`] has made of it.
    Made(Range<usize>),
}

impl Part {
    pub(crate) fn bytes<'a>(&self, line: &'a [u8], made: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Part::Absent => None,
            Part::Line(at) => Some(&line[at.clone()]),
            Part::Made(at) => Some(&made[at.clone()]),
        }
    }
}

/// A line's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) key: Part,
    pub(crate) value: Part,
    /// Unix ms, none if unknown.
    pub(crate) timestamp_ms: Option<u64>,
    /// Headers that were made, packed.
    pub(crate) headers: Range<usize>,
}

/// Why a line is no message, and from which byte (from 1) on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) column: usize,
    pub(crate) what: String,
}

/// Reads a line (without its newline); none if it is blank. What is not in the line as it is goes to the end of `made`.
///
/// # Errors
/// It is not JSON, or has a string, a number or base64 that is none.
pub(crate) fn parse(line: &[u8], shape: &Shape, made: &mut Vec<u8>) -> Result<Option<Parsed>, Malformed> {
    let text = std::str::from_utf8(line)
        .map_err(|e| Malformed { column: e.valid_up_to() + 1, what: "not UTF-8".into() })?;
    let all = trimmed(text);
    if all.is_empty() {
        return Ok(None);
    }
    is_json(text)?;
    let mut reader = Reader { text, made };
    if text[all.clone()].starts_with('{') {
        if let Some(envelope) = Envelope::of(text, all.start) {
            return reader.envelope(envelope, shape).map(Some);
        }
        let key = match &shape.key_field {
            Some(field) => reader.field(all.start, field, shape.key)?,
            None => Part::Absent,
        };
        return Ok(Some(Parsed { key, value: Part::Line(all), timestamp_ms: None, headers: 0..0 }));
    }
    let value = reader.part(all, shape.value)?;
    Ok(Some(Parsed { key: Part::Absent, value, timestamp_ms: None, headers: 0..0 }))
}

const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

fn trimmed(text: &str) -> Range<usize> {
    let start = text.len() - text.trim_start_matches(BLANKS).len();
    start..text.trim_end_matches(BLANKS).len().max(start)
}

fn is_json(text: &str) -> Result<(), Malformed> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| {
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        Malformed { column: error.column().max(1), what: format!("not JSON: {what}") }
    })
}

/// The fields of an envelope.
#[derive(Default)]
struct Envelope {
    key: Option<Range<usize>>,
    key_base64: Option<Range<usize>>,
    value: Option<Range<usize>>,
    value_base64: Option<Range<usize>>,
    timestamp: Option<Range<usize>>,
    headers: Option<Range<usize>>,
}

impl Envelope {
    /// None if the object that begins at `start` is not one.
    fn of(text: &str, start: usize) -> Option<Envelope> {
        let mut found = Envelope::default();
        for (name, at) in Fields::of(text, start) {
            let field = match &text[name] {
                "\"key\"" => &mut found.key,
                "\"key-base64\"" => &mut found.key_base64,
                "\"value\"" => &mut found.value,
                "\"value-base64\"" => &mut found.value_base64,
                "\"timestamp\"" => &mut found.timestamp,
                "\"headers\"" => &mut found.headers,
                _ => return None,
            };
            if field.replace(at).is_some() {
                return None;
            }
        }
        let one_value = found.value.is_some() != found.value_base64.is_some();
        let one_key = found.key.is_none() || found.key_base64.is_none();
        (one_value && one_key).then_some(found)
    }
}

struct Reader<'a> {
    text: &'a str,
    made: &'a mut Vec<u8>,
}

impl Reader<'_> {
    fn envelope(&mut self, found: Envelope, shape: &Shape) -> Result<Parsed, Malformed> {
        let text = self.text;
        let mut either =
            |plain: Option<Range<usize>>, base64: Option<Range<usize>>, form| match (plain, base64) {
                (Some(at), _) => self.part(at, form),
                (None, Some(at)) => self.base64(at),
                (None, None) => Ok(Part::Absent),
            };
        let key = either(found.key, found.key_base64, shape.key)?;
        let value = either(found.value, found.value_base64, shape.value)?;
        let timestamp_ms = found.timestamp.and_then(|at| text[at].parse().ok());
        let start = self.made.len();
        if let Some(at) = found.headers {
            let bad = |what| Malformed { column: at.start + 1, what };
            headers::read(&text[at.clone()], self.made).map_err(bad)?;
        }
        Ok(Parsed { key, value, timestamp_ms, headers: start..self.made.len() })
    }

    /// The bytes of the JSON value at `at`: a string's content, nothing for null, the text of any other.
    fn part(&mut self, at: Range<usize>, form: Form) -> Result<Part, Malformed> {
        let json = &self.text[at.clone()];
        let bad = |what: &str| Malformed { column: at.start + 1, what: format!("{what}: {json}") };
        match (json.as_bytes()[0], form) {
            (b'n', _) => Ok(Part::Absent),
            (b'"', _) => self.string(at),
            (b'-' | b'0'..=b'9', Form::I64) => {
                let number: i64 = json.parse().map_err(|_| bad("not an i64"))?;
                Ok(self.made(&number.to_be_bytes()))
            }
            (b'-' | b'0'..=b'9', Form::F64) => {
                let number: f64 = json.parse().map_err(|_| bad("not an f64"))?;
                Ok(self.made(&number.to_be_bytes()))
            }
            _ => Ok(Part::Line(at)),
        }
    }

    fn string(&mut self, at: Range<usize>) -> Result<Part, Malformed> {
        let inner = at.start + 1..at.end - 1;
        if !self.text[inner.clone()].contains('\\') {
            return Ok(Part::Line(inner));
        }
        let text: String = serde_json::from_str(&self.text[at.clone()])
            .map_err(|_| Malformed { column: at.start + 1, what: "a string that is not Unicode".into() })?;
        Ok(self.made(text.as_bytes()))
    }

    fn base64(&mut self, at: Range<usize>) -> Result<Part, Malformed> {
        let bad = || Malformed { column: at.start + 1, what: "not base64".into() };
        let text =
            self.text[at.clone()].strip_prefix('"').and_then(|t| t.strip_suffix('"')).ok_or_else(bad)?;
        let bytes = BASE64.decode(text).map_err(|_| bad())?;
        Ok(self.made(&bytes))
    }

    fn made(&mut self, bytes: &[u8]) -> Part {
        let start = self.made.len();
        self.made.extend_from_slice(bytes);
        Part::Made(start..self.made.len())
    }

    /// Field `name` of the object that begins at `start`; absent if it has none. Of several the last.
    fn field(&mut self, start: usize, name: &str, form: Form) -> Result<Part, Malformed> {
        let mut found = None;
        for (quoted, at) in Fields::of(self.text, start) {
            let quoted = &self.text[quoted];
            let plain = &quoted[1..quoted.len() - 1];
            let is_it = if plain.contains('\\') {
                serde_json::from_str::<String>(quoted).is_ok_and(|text| text == name)
            } else {
                plain == name
            };
            if is_it {
                found = Some(at);
            }
        }
        found.map_or(Ok(Part::Absent), |at| self.part(at, form))
    }
}

/// The fields of an object in a text that is known to be JSON: where their names (with quotes) and values are.
struct Fields<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn of(text: &'a str, start: usize) -> Fields<'a> {
        Fields { text: text.as_bytes(), at: start + 1 }
    }
    fn byte(&self, at: usize) -> u8 {
        // Past the end only if the text were no JSON; a brace ends every loop.
        self.text.get(at).copied().unwrap_or(b'}')
    }
    fn skip(&mut self, what: &[u8]) {
        while what.contains(&self.byte(self.at)) {
            self.at += 1;
        }
    }
    /// The end of the string that begins at `at`.
    fn string_end(&self, at: usize) -> usize {
        let mut end = at + 1;
        while end < self.text.len() && self.text[end] != b'"' {
            end += if self.text[end] == b'\\' { 2 } else { 1 };
        }
        (end + 1).min(self.text.len())
    }
    fn value_end(&self, at: usize) -> usize {
        let (mut end, mut depth) = (at, 0usize);
        while end < self.text.len() {
            match self.text[end] {
                b'"' => {
                    end = self.string_end(end);
                    if depth == 0 {
                        return end;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 1 => depth -= 1,
                b'}' | b']' => return end + depth,
                b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return end,
                _ => {}
            }
            end += 1;
        }
        end
    }
}

impl Iterator for Fields<'_> {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        self.skip(b" \t\r\n,");
        if self.byte(self.at) != b'"' {
            return None;
        }
        let name = self.at..self.string_end(self.at);
        self.at = name.end;
        self.skip(b" \t\r\n:");
        let value = self.at..self.value_end(self.at);
        self.at = value.end;
        Some((name, value))
    }
}

/// Appends a message as a line, with its newline.
pub(crate) fn write(record: &ProducerRecord<'_>, shape: &Shape, out: &mut Vec<u8>) {
    let ProducerRecord { key, value, timestamp_ms, headers, .. } = *record;
    let start = out.len();
    // A value may stand alone unless it would be read as something else.
    if let (None, Some(value), None, None) = (key, value, timestamp_ms, &shape.key_field)
        && headers.is_empty()
        && json(value, shape.value, out)
    {
        let alone = std::str::from_utf8(&out[start..]).unwrap_or_default();
        if !(alone.starts_with('{') && Envelope::of(alone, 0).is_some()) {
            out.push(b'\n');
            return;
        }
    }
    out.truncate(start);
    out.push(b'{');
    if let Some(key) = key {
        field("key", key, shape.key, out);
        out.push(b',');
    }
    match value {
        Some(value) => field("value", value, shape.value, out),
        None => out.extend_from_slice(b"\"value\":null"),
    }
    if let Some(time) = timestamp_ms {
        let _ = write!(out, ",\"timestamp\":{time}");
    }
    if !headers.is_empty() {
        out.extend_from_slice(b",\"headers\":");
        headers::write(headers, out);
    }
    out.extend_from_slice(b"}\n");
}

fn field(name: &str, bytes: &[u8], form: Form, out: &mut Vec<u8>) {
    let start = out.len();
    let _ = write!(out, "\"{name}\":");
    if !json(bytes, form, out) {
        out.truncate(start);
        let mut text = String::new();
        let _ = write!(text, "\"{name}-base64\":\"{}\"", BASE64.encode(bytes));
        out.extend_from_slice(text.as_bytes());
    }
}

/// Appends the JSON value that is read as `bytes`; nothing (and false) if there is none.
fn json(bytes: &[u8], form: Form, out: &mut Vec<u8>) -> bool {
    let number = match (form, <[u8; 8]>::try_from(bytes)) {
        (Form::I64, Ok(eight)) => Some(i64::from_be_bytes(eight).to_string()),
        (Form::F64, Ok(eight)) => {
            // Bits that differ but print alike (there are many NaNs) are none of ours.
            let number = f64::from_be_bytes(eight);
            if !number.is_finite() {
                return false;
            }
            Some(format!("{number:?}"))
        }
        _ => None,
    };
    if let Some(number) = number {
        out.extend_from_slice(number.as_bytes());
        return true;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if stands_for_itself(text, form) {
        out.extend_from_slice(bytes)
    } else {
        string(text, out)
    }
    true
}

/// Whether `text` in a line is read as this very text.
fn stands_for_itself(text: &str, form: Form) -> bool {
    let first = text.as_bytes().first().copied().unwrap_or(b'"');
    let read_otherwise = matches!(
        (form, first),
        (Form::Text, _) | (_, b'"' | b'n') | (Form::I64 | Form::F64, b'-' | b'0'..=b'9')
    );
    let one_line = || trimmed(text) == (0..text.len()) && !text.contains(['\n', '\r']);
    !read_otherwise && one_line() && is_json(text).is_ok()
}

fn string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a text is written to memory");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use task_api::system::TopicHandle;
    use task_api::{Header, Headers};

    use super::*;

    type Row = (Option<Vec<u8>>, Option<Vec<u8>>, Option<u64>);

    fn record<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> ProducerRecord<'a> {
        ProducerRecord::new(TopicHandle(0), key, value)
    }

    fn read(line: &[u8], shape: &Shape) -> Result<Option<Row>, Malformed> {
        let mut made = Vec::new();
        let parsed = parse(line, shape, &mut made)?;
        let bytes = |part: &Part| part.bytes(line, &made).map(<[u8]>::to_vec);
        Ok(parsed.map(|p| (bytes(&p.key), bytes(&p.value), p.timestamp_ms)))
    }

    fn text(line: &str, shape: &Shape) -> (Option<String>, Option<String>) {
        let (key, value, _) = read(line.as_bytes(), shape).expect("a message").expect("not blank");
        let text = |bytes: Option<Vec<u8>>| bytes.map(|b| String::from_utf8(b).expect("text"));
        (text(key), text(value))
    }

    fn row(key: Option<&str>, value: Option<&str>) -> (Option<String>, Option<String>) {
        (key.map(str::to_owned), value.map(str::to_owned))
    }

    #[test]
    fn a_line_is_a_value_or_an_envelope() {
        let plain = Shape::default();
        assert_eq!(text(r#" {"a": 1} "#, &plain), row(None, Some(r#"{"a": 1}"#)));
        assert_eq!(text(r#""a\nb""#, &plain), row(None, Some("a\nb")));
        assert_eq!(text("12.50", &plain), row(None, Some("12.50")));
        assert_eq!(
            text(r#"{"key":"k","value":{"n": [1, "}"]}}"#, &plain),
            row(Some("k"), Some(r#"{"n": [1, "}"]}"#))
        );
        assert_eq!(text(r#"{"value" : "x" , "key" : 7}"#, &plain), row(Some("7"), Some("x")));
        assert_eq!(text(r#"{"key":"k","value":null}"#, &plain), row(Some("k"), None));
        let more = r#"{"key":"k","value":1,"other":2}"#;
        assert_eq!(text(more, &plain), row(None, Some(more)), "a field more, and it is a value");
        let twice = r#"{"value":1,"value":2}"#;
        assert_eq!(text(twice, &plain), row(None, Some(twice)));
        let timed =
            read(br#"{"value":1,"timestamp":1700000000000}"#, &plain).expect("read").expect("a message");
        assert_eq!(timed.2, Some(1_700_000_000_000));
        assert_eq!(read(b"  \r", &plain), Ok(None));
    }

    #[test]
    fn a_field_of_the_line_is_the_key_where_the_stream_says_so() {
        let by_user = Shape { key_field: Some("user".into()), ..Shape::default() };
        let line = r#"{"user":"ann","n":1}"#;
        assert_eq!(text(line, &by_user), row(Some("ann"), Some(line)));
        let line = r#"{"n":{"user":"no"},"\u0075ser":[1]}"#;
        assert_eq!(text(line, &by_user), row(Some("[1]"), Some(line)));
        assert_eq!(text(r#"{"n":1}"#, &by_user), row(None, Some(r#"{"n":1}"#)));
        assert_eq!(
            text(r#"{"key":"k","value":1}"#, &by_user),
            row(Some("k"), Some("1")),
            "an envelope is one"
        );
    }

    #[test]
    fn what_is_no_message_is_told_with_its_column() {
        let told = |line: &[u8], shape: &Shape| read(line, shape).expect_err("malformed");
        let plain = Shape::default();
        assert_eq!(told(b"{\"a\": oops}", &plain).column, 7);
        assert_eq!(told(b"\"a\xff\"", &plain), Malformed { column: 3, what: "not UTF-8".into() });
        assert!(told(b"{} {}", &plain).what.starts_with("not JSON: trailing characters"));
        assert_eq!(told(br#"{"value-base64":"?"}"#, &plain).what, "not base64");
        assert_eq!(told(br#""\ud800""#, &plain).what, "a string that is not Unicode");
        let number = Shape { value: Form::I64, ..Shape::default() };
        assert_eq!(told(b"1.5", &number), Malformed { column: 1, what: "not an i64: 1.5".into() });
    }

    #[test]
    fn messages_are_written_for_people() {
        let written = |key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header<'_>], shape: &Shape| {
            let mut out = Vec::new();
            write(&ProducerRecord { headers: headers.into(), ..record(key, value) }, shape, &mut out);
            String::from_utf8(out).expect("text")
        };
        let plain = Shape::default();
        assert_eq!(
            written(Some(b"k"), Some(b"{\"n\":1}"), &[], &plain),
            "{\"key\":\"k\",\"value\":{\"n\":1}}\n"
        );
        assert_eq!(written(None, Some(b"17"), &[], &plain), "17\n");
        assert_eq!(written(None, Some(b"two words"), &[], &plain), "\"two words\"\n");
        assert_eq!(written(None, Some(b"\xff"), &[], &plain), "{\"value-base64\":\"/w==\"}\n");
        assert_eq!(written(Some(b"k"), None, &[], &plain), "{\"key\":\"k\",\"value\":null}\n");
        let failed = [Header::new("error", b"no number")];
        assert_eq!(
            written(None, Some(b"x"), &failed, &plain),
            "{\"value\":\"x\",\"headers\":{\"error\":\"no number\"}}\n"
        );
        let mut timed = Vec::new();
        write(&ProducerRecord { timestamp_ms: Some(7), ..record(None, Some(b"1")) }, &plain, &mut timed);
        assert_eq!(timed, b"{\"value\":1,\"timestamp\":7}\n");
        let numbers = Shape { key: Form::I64, value: Form::F64, key_field: None };
        let (key, value) = (7_i64.to_be_bytes(), 2.5_f64.to_be_bytes());
        assert_eq!(written(Some(&key), Some(&value), &[], &numbers), "{\"key\":7,\"value\":2.5}\n");
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let json = prop_oneof![
            Just("null".to_owned()),
            Just("\"text\"".to_owned()),
            Just("{\"value\":1}".to_owned()),
            Just("{\"value-base64\":\"?\",\"key\":2}".to_owned()),
            Just("{\"user\":\"u\"}".to_owned()),
            Just("[1,\n2]".to_owned()),
            Just(" 1".to_owned()),
            Just("-0".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_map(|n| format!("{n:?}")),
        ];
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..12),
            any::<[u8; 8]>().prop_map(|b| b.to_vec()),
            ".{0,8}".prop_map(String::into_bytes),
            json.prop_map(String::into_bytes),
        ]
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let form = || prop_oneof![Just(Form::Json), Just(Form::Text), Just(Form::I64), Just(Form::F64)];
        let field = proptest::option::of(Just("user".to_owned()));
        (form(), form(), field).prop_map(|(key, value, key_field)| Shape { key, value, key_field })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_written_is_read_as_the_same_bytes(
            key in proptest::option::of(bytes()), value in proptest::option::of(bytes()), shape in shape(),
            header in proptest::option::of(bytes()), timestamp_ms in any::<Option<u64>>(),
        ) {
            let headers: Vec<Header<'_>> = header.iter().map(|value| Header::new("why", value)).collect();
            let mut line = Vec::new();
            let record = record(key.as_deref(), value.as_deref());
            write(&ProducerRecord { headers: (&headers).into(), timestamp_ms, ..record }, &shape, &mut line);
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            let mut made = Vec::new();
            let parsed = parse(&line, &shape, &mut made).expect("read").expect("a message");
            prop_assert_eq!(Headers::packed(&made[parsed.headers]), Headers::from(&headers));
            prop_assert_eq!(read(&line, &shape), Ok(Some((key, value, timestamp_ms))));
        }

        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..64), shape in shape()) {
            let _ = read(&line, &shape);
        }

        #[test]
        fn no_line_of_json_letters_makes_it_panic(line in "[\\[\\]{}\":,\\\\ 0-9a-euln.-]{0,24}", shape in shape()) {
            let _ = read(line.as_bytes(), &shape);
            let _ = read(format!("{{\"value\":{line}}}").as_bytes(), &shape);
        }
    }
}
