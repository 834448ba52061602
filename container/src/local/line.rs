//! One JSON line and the message that it is; see `docs/local.md`. Pure.
//!
//! A line is an envelope, with the parts of a message as its fields, or a row: a value as it is. Which of the two is told
//! by the stream's `envelope`; without it an object that has a key and a value and otherwise only a timestamp and headers
//! is an envelope, so that no field of a row is ever left out. What [`write`] writes, [`parse`] reads as the same bytes.

mod fields;
mod time;
mod write;

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::IgnoredAny;
use types::StreamSpec;

use super::headers;

use fields::{ENVELOPE, Envelope, Fields, NoEnvelope, unquoted};
pub(crate) use write::{Unwritable, write};

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
    /// The field of a row that is the key.
    pub(crate) key_field: Option<String>,
    /// The field of a row that is the time.
    pub(crate) time_field: Option<String>,
    /// Whether all lines are envelopes, or none is; if it is not said, each line tells.
    pub(crate) envelope: Option<bool>,
}

impl Shape {
    /// Of an output.
    pub(crate) fn written(stream: &StreamSpec) -> Shape {
        Shape {
            key: Form::of(stream.key_serde.as_deref()),
            value: Form::of(stream.serde.as_deref()),
            key_field: stream.key.clone(),
            time_field: stream.timestamp.clone(),
            envelope: stream.envelope,
        }
    }

    /// Of an input.
    pub(crate) fn read(stream: &StreamSpec) -> Shape {
        let mut shape = Shape::written(stream);
        // Who names `value` as the field of a row that is its key says that lines are rows.
        let names_a_part = [&shape.key_field, &shape.time_field]
            .into_iter()
            .flatten()
            .any(|f| ENVELOPE.contains(&f.as_str()));
        if names_a_part {
            shape.envelope.get_or_insert(false);
        }
        shape
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

/// What a line turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An envelope.
    Envelope,
    /// A row that is an object; whether it has the fields that are the key and the time.
    Row { keyed: bool, timed: bool },
    /// A value that has no fields.
    Plain,
}

/// A line's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) kind: Kind,
    /// Nobody said whether it is an envelope or a row, and it could be the other.
    pub(crate) is_doubtful: bool,
    pub(crate) key: Part,
    pub(crate) value: Part,
    /// Unix ms.
    pub(crate) timestamp_ms: Option<u64>,
    /// Headers that were made, packed.
    pub(crate) headers: Range<usize>,
}

impl Parsed {
    fn new(kind: Kind, key: Part, value: Part) -> Parsed {
        Parsed { kind, is_doubtful: false, key, value, timestamp_ms: None, headers: 0..0 }
    }
}

/// Why a line is no message, and from which byte (from 1) on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) column: usize,
    pub(crate) what: String,
}

impl Malformed {
    fn at(byte: usize, what: impl Into<String>) -> Malformed {
        Malformed { column: byte + 1, what: what.into() }
    }
}

/// Reads a line (without its newline); none if it is blank. What is not in the line as it is goes to the end of `made`.
///
/// # Errors
/// It is not JSON, or has a string, a number, a time or base64 that is none, or it is not what its stream's `envelope` says.
pub(crate) fn parse(line: &[u8], shape: &Shape, made: &mut Vec<u8>) -> Result<Option<Parsed>, Malformed> {
    let text = std::str::from_utf8(line).map_err(|e| Malformed::at(e.valid_up_to(), "not UTF-8"))?;
    let all = trimmed(text);
    if all.is_empty() {
        return Ok(None);
    }
    is_json(&text[all.clone()])
        .map_err(|malformed| Malformed { column: malformed.column + all.start, ..malformed })?;
    let mut reader = Reader { text, shape, made };
    let is_object = text[all.clone()].starts_with('{');
    let of = if is_object { Envelope::of(text, all.start) } else { Err(no_object(all.start)) };
    match (shape.envelope, of) {
        (Some(true), Ok(envelope)) => reader.envelope(envelope),
        (Some(true), Err(no)) => Err(reader.no_envelope(&no)),
        (None, Ok(envelope)) => {
            let is_one = envelope.has_key() && reader.is_whole(&envelope);
            // Key and value alone are the plainest envelope there is.
            let is_doubtful = !is_one || envelope.timestamp.is_some() || envelope.headers.is_some();
            let parsed = if is_one { reader.envelope(envelope) } else { reader.row(all) };
            parsed.map(|parsed| Parsed { is_doubtful, ..parsed })
        }
        (Some(false) | None, _) if is_object => reader.row(all),
        (Some(false) | None, _) => {
            let value = reader.part(all, shape.value)?;
            Ok(Parsed::new(Kind::Plain, Part::Absent, value))
        }
    }
    .map(Some)
}

fn no_object(at: usize) -> NoEnvelope {
    NoEnvelope { at, what: "it is no object".into() }
}

/// The names of a row's fields, for people who look for one of them; none if it is no row.
pub(crate) fn names(line: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let all = trimmed(text);
    if !text[all.clone()].starts_with('{') || is_json(&text[all.clone()]).is_err() {
        return Vec::new();
    }
    Fields::of(text, all.start).map(|(name, _)| unquoted(&text[name]).into_owned()).collect()
}

/// A byte order mark is none of a line, wherever files were put together.
const BLANKS: [char; 5] = [' ', '\t', '\r', '\n', '\u{feff}'];

fn trimmed(text: &str) -> Range<usize> {
    let start = text.len() - text.trim_start_matches(BLANKS).len();
    start..text.trim_end_matches(BLANKS).len().max(start)
}

fn is_json(text: &str) -> Result<(), Malformed> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| {
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        let hint = hint(text).map(|hint| format!(": {hint}")).unwrap_or_default();
        Malformed { column: error.column().max(1), what: format!("not JSON: {what}{hint}") }
    })
}

/// What a text that is not JSON may be, and what makes lines of it.
fn hint(text: &str) -> Option<&'static str> {
    if text.contains('\0') {
        return Some(
            "it has NUL bytes; text of another encoding becomes UTF-8 with `iconv -f UTF-16 -t UTF-8`",
        );
    }
    if text.contains('\r') {
        return Some("do its lines end in a carriage return alone? `tr '\\r' '\\n'` makes lines of them");
    }
    match text {
        "[" => Some("is the file one array? `jq -c '.[]'` makes a line of each element"),
        "{" => Some("does a value take several lines? `jq -c .` makes one line of each"),
        _ if text.ends_with(',') => Some("is it an element of one array? `jq -c '.[]'` makes a line of each"),
        _ => None,
    }
}

struct Reader<'a> {
    text: &'a str,
    shape: &'a Shape,
    made: &'a mut Vec<u8>,
}

impl Reader<'_> {
    fn envelope(&mut self, found: Envelope) -> Result<Parsed, Malformed> {
        let Shape { key: key_form, value: value_form, .. } = *self.shape;
        let mut either =
            |plain: Option<Range<usize>>, base64: Option<Range<usize>>, form| match (plain, base64) {
                (Some(at), _) => self.part(at, form),
                (None, Some(at)) => self.base64(at),
                (None, None) => Ok(Part::Absent),
            };
        let key = either(found.key, found.key_base64, key_form)?;
        let value = either(found.value, found.value_base64, value_form)?;
        let mut parsed = Parsed::new(Kind::Envelope, key, value);
        if let Some(at) = found.timestamp {
            parsed.timestamp_ms = self.time(at)?;
        }
        if let Some(at) = found.headers {
            let start = self.made.len();
            headers::read(&self.text[at.clone()], self.made).map_err(|what| Malformed::at(at.start, what))?;
            parsed.headers = start..self.made.len();
        }
        Ok(parsed)
    }

    /// Whether its timestamp and its headers are such: else they are a row's.
    fn is_whole(&self, envelope: &Envelope) -> bool {
        let time = envelope.timestamp.clone().is_none_or(|at| self.time(at).is_ok());
        time && envelope
            .headers
            .clone()
            .is_none_or(|at| headers::read(&self.text[at], &mut Vec::new()).is_ok())
    }

    fn no_envelope(&self, no: &NoEnvelope) -> Malformed {
        Malformed::at(
            no.at,
            format!(
                "not an envelope, for {}; with `envelope = true` a line is an object of `value`, `key`, `timestamp` and \
                 `headers`",
                no.what
            ),
        )
    }

    fn row(&mut self, all: Range<usize>) -> Result<Parsed, Malformed> {
        let shape = self.shape;
        let found = shape.key_field.as_ref().and_then(|field| self.field(all.start, field));
        let time = shape.time_field.as_ref().and_then(|field| self.field(all.start, field));
        let kind = Kind::Row { keyed: found.is_some(), timed: time.is_some() };
        let key = found.map_or(Ok(Part::Absent), |at| self.part(at, shape.key))?;
        let mut parsed = Parsed::new(kind, key, Part::Line(all.clone()));
        if let Some(at) = time {
            parsed.timestamp_ms = self.time(at)?;
        }
        Ok(parsed)
    }

    /// The time at `at`; none if it is null.
    fn time(&self, at: Range<usize>) -> Result<Option<u64>, Malformed> {
        let json = &self.text[at.clone()];
        if json == "null" {
            return Ok(None);
        }
        let wrong = || {
            let what = format!(
                "not a time: {}; valid: from 1970 on, such as \"2026-01-31T12:00:00Z\", or Unix ms",
                short(json)
            );
            Malformed::at(at.start, what)
        };
        time::parse(json).map(Some).ok_or_else(wrong)
    }

    /// The bytes of the JSON value at `at`: a string's content, nothing for null, the text of any other.
    fn part(&mut self, at: Range<usize>, form: Form) -> Result<Part, Malformed> {
        let json = &self.text[at.clone()];
        let bad = |what: &str| Malformed::at(at.start, format!("{what}: {}", short(json)));
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
            .map_err(|_| Malformed::at(at.start, "a string that is not Unicode"))?;
        Ok(self.made(text.as_bytes()))
    }

    fn base64(&mut self, at: Range<usize>) -> Result<Part, Malformed> {
        let bad = || Malformed::at(at.start, "not base64");
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

    /// Where the value of field `name` of the object that begins at `start` is. Of several the last.
    fn field(&self, start: usize, name: &str) -> Option<Range<usize>> {
        Fields::of(self.text, start)
            .filter(|(quoted, _)| unquoted(&self.text[quoted.clone()]) == name)
            .last()
            .map(|f| f.1)
    }
}

/// The beginning of a text that may be long.
fn short(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
