//! Times in lines: as text and as numbers of several units.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// Numbers from here on are milliseconds, microseconds, nanoseconds; what is smaller is seconds. In seconds the first is
/// the year 5138, in milliseconds it is 1973.
const MILLIS: f64 = 1e11;
const MICROS: f64 = 1e14;
const NANOS: f64 = 1e17;
/// What [`print`] adds to a number that would be taken for another unit.
const UNIT: &str = " ms";

/// The Unix milliseconds that the JSON value `json` says: a number (see [`MILLIS`]), or text: such a number, RFC 3339, or
/// ISO 8601 without a zone, which is UTC. Nothing before 1970.
pub(super) fn parse(json: &str) -> Option<u64> {
    let unix_ms = match json.as_bytes().first()? {
        b'"' => {
            let text: String = serde_json::from_str(json).ok()?;
            let text = text.trim();
            if let Some(ms) = text.strip_suffix(UNIT) {
                return ms.parse().ok();
            }
            number(text).or_else(|| written_out(text))
        }
        _ => number(json),
    };
    unix_ms.and_then(|ms| u64::try_from(ms).ok())
}

fn number(text: &str) -> Option<i64> {
    if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E')) {
        return None;
    }
    let number: f64 = text.parse().ok().filter(|n: &f64| n.is_finite())?;
    let whole = text.parse::<i64>().ok();
    let ms = match number.abs() {
        // All digits of a whole number count, which a float may not hold.
        n if n < MILLIS => return Some((number * 1_000.0).round() as i64),
        n if n < MICROS => whole.unwrap_or(number.round() as i64),
        n if n < NANOS => whole.unwrap_or(number as i64).div_euclid(1_000),
        _ => whole?.div_euclid(1_000_000),
    };
    Some(ms)
}

fn written_out(text: &str) -> Option<i64> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_millisecond());
    }
    let civil = match text.parse::<DateTime>() {
        Ok(time) => time,
        Err(_) => text.parse::<Date>().ok()?.at(0, 0, 0, 0),
    };
    civil.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp().as_millisecond())
}

/// Appends the JSON value that [`parse`] reads as these milliseconds: the number, or what tells its unit.
pub(super) fn print(unix_ms: u64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let is_plain = (MILLIS..MICROS).contains(&(unix_ms as f64));
    let written = if is_plain { write!(out, "{unix_ms}") } else { write!(out, "\"{unix_ms}{UNIT}\"") };
    written.expect("memory takes it");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_read_in_the_forms_that_people_write() {
        let at = 1_769_860_800_000;
        for text in [
            "1769860800",
            "1769860800000",
            "1769860800000000",
            "1769860800000000000",
            "1769860800.0",
            "1.7698608e9",
            "\"1769860800\"",
            "\"2026-01-31T12:00:00Z\"",
            "\"2026-01-31 12:00:00Z\"",
            "\"2026-01-31T12:00:00.000000Z\"",
            "\"2026-01-31T13:00:00+01:00\"",
            "\"2026-01-31T12:00:00\"",
            "\"2026-01-31 12:00\"",
            "\"20260131T120000Z\"",
        ] {
            assert_eq!(parse(text), Some(at), "{text}");
        }
        assert_eq!(parse("\"2026-01-31\""), Some(at - 43_200_000));
        assert_eq!(parse("1769860800.25"), Some(at + 250));
        assert_eq!(parse("0"), Some(0));
        for text in [
            "\"yesterday\"",
            "\"\"",
            "true",
            "{}",
            "[1]",
            "null",
            "\"31.1.2026\"",
            "1e400",
            "-1",
            "\"1969-12-31\"",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same_time(unix_ms in prop_oneof![any::<u64>(), 0..1_000_u64, 0..1_u64 << 48]) {
            let mut out = Vec::new();
            print(unix_ms, &mut out);
            prop_assert_eq!(parse(std::str::from_utf8(&out).expect("text")), Some(unix_ms));
        }
    }
}
