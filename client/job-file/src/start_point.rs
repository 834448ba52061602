//! Where reading starts, as people write it: `oldest`, `newest`, `offset:123`, `timestamp:2026-01-31T12:00:00Z`.

use toml::value::{Datetime, Offset};
use types::OffsetDefault;

use crate::keys::nearest;
use crate::value::{Refusal, hinted, shown};

const FORM: &str =
    ": \"oldest\", \"newest\", \"offset:123\", \"timestamp:2026-01-31T12:00:00Z\" (or unix ms)";

/// Reads a start point.
///
/// # Errors
/// What is wrong with it and what would be valid.
pub fn start_point(text: &str) -> Result<OffsetDefault, String> {
    let (word, value) = text.split_once(':').map_or((text, None), |(word, value)| (word, Some(value)));
    match (word, value) {
        ("oldest", None) => Ok(OffsetDefault::Oldest),
        ("newest", None) => Ok(OffsetDefault::Newest),
        ("offset", Some(number)) => digits(number)
            .map(OffsetDefault::Offset)
            .ok_or_else(|| hinted(&format!("\"{}\" is not an offset", shown(number)), None, FORM)),
        ("timestamp", Some(time)) => match digits(time) {
            Some(ms) => Ok(OffsetDefault::Timestamp(ms)),
            None => unix_ms(time).map(OffsetDefault::Timestamp),
        },
        (_, value) => {
            let known = ["oldest", "newest", "offset:", "timestamp:"];
            let hint = nearest(word, known).filter(|near| near.ends_with(':') == value.is_some());
            let hint = hint.map(|near| format!("\"{near}{}\"", shown(value.unwrap_or_default())));
            Err(hinted(&format!("\"{}\" is not a place in a stream", shown(text)), hint, FORM))
        }
    }
}

/// The form that [`start_point`] reads.
#[must_use]
pub fn print_start_point(at: OffsetDefault) -> String {
    match at {
        OffsetDefault::Oldest => "oldest".to_owned(),
        OffsetDefault::Newest => "newest".to_owned(),
        OffsetDefault::Offset(offset) => format!("offset:{offset}"),
        OffsetDefault::Timestamp(ms) => format!("timestamp:{ms}"),
    }
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// An RFC 3339 time with its zone, as unix ms.
fn unix_ms(text: &str) -> Result<u64, Refusal> {
    let not_a_time = || hinted(&format!("\"{}\" is not a time", shown(text)), None, FORM);
    let time: Datetime = text.parse().map_err(|_| not_a_time())?;
    let (Some(date), Some(clock)) = (time.date, time.time) else { return Err(not_a_time()) };
    let Some(zone) = time.offset else {
        return Err(format!("\"{}\" has no zone; did you mean \"{}Z\"?", shown(text), shown(text)));
    };
    let zone_minutes = match zone {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_since_1970(date.year.into(), date.month.into(), date.day.into());
    let minutes = (days * 24 + i64::from(clock.hour)) * 60 + i64::from(clock.minute) - zone_minutes;
    let ms = minutes * 60_000
        + i64::from(clock.second.unwrap_or(0)) * 1_000
        + i64::from(clock.nanosecond.unwrap_or(0) / 1_000_000);
    u64::try_from(ms).map_err(|_| format!("\"{}\" is before 1970", shown(text)))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years begin in March here, so that a leap day is a
/// year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before_month = (153 * month + 2) / 5;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + days_before_month + day
        - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        assert_eq!(start_point("oldest"), Ok(OffsetDefault::Oldest));
        assert_eq!(start_point("newest"), Ok(OffsetDefault::Newest));
        assert_eq!(start_point("offset:123"), Ok(OffsetDefault::Offset(123)));
        assert_eq!(start_point("timestamp:1769860800000"), Ok(OffsetDefault::Timestamp(1_769_860_800_000)));
        for same in ["2026-01-31T12:00:00Z", "2026-01-31T13:30:00+01:30", "2026-01-31 12:00:00.0Z"] {
            let read = start_point(&format!("timestamp:{same}"));
            assert_eq!(read, Ok(OffsetDefault::Timestamp(1_769_860_800_000)), "{same}");
        }
        assert_eq!(start_point("timestamp:1970-01-01T00:00:00.250Z"), Ok(OffsetDefault::Timestamp(250)));
        assert_eq!(
            start_point("timestamp:2000-02-29T00:00:00Z"),
            Ok(OffsetDefault::Timestamp(951_782_400_000))
        );
    }

    #[test]
    fn what_is_refused_says_what_was_meant() {
        let says = |text: &str| start_point(text).expect_err("not valid");
        assert!(says("newset").contains("did you mean \"newest\"? valid: \"oldest\""), "{}", says("newset"));
        assert!(says("ofset:7").contains("did you mean \"offset:7\"?"), "{}", says("ofset:7"));
        assert!(says("offset:-1").contains("\"-1\" is not an offset"), "{}", says("offset:-1"));
        let local = says("timestamp:2026-01-31T12:00:00");
        assert_eq!(local, "\"2026-01-31T12:00:00\" has no zone; did you mean \"2026-01-31T12:00:00Z\"?");
        assert_eq!(says("timestamp:1969-12-31T23:59:59Z"), "\"1969-12-31T23:59:59Z\" is before 1970");
        for text in [
            "",
            "offset",
            "offset:",
            "timestamp:",
            "timestamp:12:00:00",
            "timestamp:2026-02-30T00:00:00Z",
            ":",
        ] {
            assert!(says(text).contains("valid: \"oldest\""), "{text}: {}", says(text));
        }
    }
}
