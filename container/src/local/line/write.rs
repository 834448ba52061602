//! Messages as lines.

use std::io::Write as _;

use base64::Engine as _;
use task_api::system::ProducerRecord;

use super::fields::Envelope;
use super::{BASE64, Form, Shape, headers, is_json, time, trimmed};

/// A message that its stream's lines cannot hold, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unwritable(pub(crate) String);

/// Appends a message as a line, with its newline.
///
/// # Errors
/// The stream's lines are rows and this one's bytes are no text: nothing was appended.
pub(crate) fn write(record: &ProducerRecord<'_>, shape: &Shape, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    let ProducerRecord { key, value, timestamp_ms, headers, .. } = *record;
    let start = out.len();
    let has_value_only = key.is_none() && headers.is_empty() && timestamp_ms.is_none();
    match shape.envelope {
        Some(true) => {}
        Some(false) => {
            let written = match value {
                None => write!(out, "null").is_ok(),
                Some(value) => json(value, shape.value, out),
            };
            if !written {
                out.truncate(start);
                return Err(Unwritable(
                    "its bytes are neither UTF-8 text nor a number of JSON: with `envelope = false` no line can hold them"
                        .into(),
                ));
            }
            out.push(b'\n');
            return Ok(());
        }
        // A value may stand alone unless it would be read as something else.
        None => {
            if let (true, Some(value), None, None) =
                (has_value_only, value, &shape.key_field, &shape.time_field)
                && json(value, shape.value, out)
                && !is_taken_for_envelope(&out[start..])
            {
                out.push(b'\n');
                return Ok(());
            }
        }
    }
    out.truncate(start);
    out.push(b'{');
    match key {
        Some(key) => field("key", key, shape.key, out),
        // With a key, though it is none, nobody takes it for a row.
        None => out.extend_from_slice(b"\"key\":null"),
    }
    out.push(b',');
    match value {
        Some(value) => field("value", value, shape.value, out),
        None => out.extend_from_slice(b"\"value\":null"),
    }
    if let Some(unix_ms) = timestamp_ms {
        out.extend_from_slice(b",\"timestamp\":");
        time::print(unix_ms, out);
    }
    if !headers.is_empty() {
        out.extend_from_slice(b",\"headers\":");
        headers::write(headers, out);
    }
    out.extend_from_slice(b"}\n");
    Ok(())
}

fn is_taken_for_envelope(line: &[u8]) -> bool {
    let text = std::str::from_utf8(line).unwrap_or_default();
    text.starts_with('{') && Envelope::of(text, 0).is_ok_and(|envelope| envelope.has_key())
}

fn field(name: &str, bytes: &[u8], form: Form, out: &mut Vec<u8>) {
    let start = out.len();
    write!(out, "\"{name}\":").expect("memory takes it");
    if !json(bytes, form, out) {
        out.truncate(start);
        write!(out, "\"{name}-base64\":\"{}\"", BASE64.encode(bytes)).expect("memory takes it");
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
        out.extend_from_slice(bytes);
    } else {
        string(text, out);
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
