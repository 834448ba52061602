//! Durations, memory and CPU as people write them, and back.

const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const MEMORY_UNITS: &[(&str, u64)] = &[
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// What a duration looks like, for messages.
pub(crate) const DURATION_FORM: &str =
    "a number and a unit (ms, s, m, h, d), such as \"500ms\", \"10s\" or \"1m 30s\"";
/// What an amount of memory looks like, for messages.
pub const MEMORY_FORM: &str =
    "a number and a unit (KiB, MiB, GiB, KB, MB, GB), such as \"512MiB\" or \"2GiB\"";

/// `1m 30s` → 90,000 ms; none if it is not a duration.
pub(crate) fn duration_ms(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = number(rest)?;
        let after = after.trim_start();
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == &after[..unit_end])?;
        total = total.checked_add(scaled(number, *factor)?)?;
        rest = after[unit_end..].trim_start();
    }
    Some(total)
}

/// `512MiB` → bytes; none if it is not an amount of memory.
pub fn memory_bytes(text: &str) -> Option<u64> {
    let (number, unit) = number(text.trim())?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = MEMORY_UNITS.iter().find(|(name, _)| *name == unit)?;
    scaled(number, *factor)
}

/// Splits the decimal number off the front: its digits before and after the point.
fn number(text: &str) -> Option<((&str, &str), &str)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (whole, fraction) = text[..end].split_once('.').unwrap_or((&text[..end], ""));
    let point_without_digits = text[..end].contains('.') && fraction.is_empty();
    if whole.is_empty() || point_without_digits || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    Some(((whole, fraction), &text[end..]))
}

fn scaled((whole, fraction): (&str, &str), factor: u64) -> Option<u64> {
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// The shortest exact form that [`duration_ms`] reads.
pub(crate) fn print_duration(ms: u64) -> String {
    let unit = DURATION_UNITS.iter().find(|(_, factor)| ms >= *factor && ms.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{ms}ms"), |(name, factor)| format!("{}{name}", ms / factor))
}

/// The shortest exact form in binary units that [`memory_bytes`] reads.
pub(crate) fn print_memory(bytes: u64) -> String {
    for (name, factor) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{name}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_their_units() {
        assert_eq!(duration_ms("500ms"), Some(500));
        assert_eq!(duration_ms("10s"), Some(10_000));
        assert_eq!(duration_ms(" 1m 30s "), Some(90_000));
        assert_eq!(duration_ms("1m30s"), Some(90_000));
        assert_eq!(duration_ms("1.5s"), Some(1_500));
        assert_eq!(duration_ms("2 h"), Some(7_200_000));
        assert_eq!(duration_ms("0s"), Some(0));
    }

    #[test]
    fn what_is_no_duration_is_none() {
        for text in ["", "10", "s", "10 parsecs", "-1s", "1..5s", "1.s", "10M", "99999999999999999999s", "ß"]
        {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }

    #[test]
    fn memory_is_read_in_its_units() {
        assert_eq!(memory_bytes("512MiB"), Some(512 << 20));
        assert_eq!(memory_bytes("1.5 GiB"), Some(3 << 29));
        assert_eq!(memory_bytes("64mb"), Some(64_000_000));
        assert_eq!(memory_bytes("100B"), Some(100));
        for text in ["512M", "512", "512Mi", "MiB", "1e9B", "99999999999GiB"] {
            assert_eq!(memory_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_as_it_was() {
        for ms in [0, 1, 999, 1_000, 1_500, 60_000, 90_000, 86_400_000, u64::MAX] {
            assert_eq!(duration_ms(&print_duration(ms)), Some(ms));
        }
        for bytes in [0, 1, 1024, 1025, 512 << 20, 3 << 29, u64::MAX] {
            assert_eq!(memory_bytes(&print_memory(bytes)), Some(bytes));
        }
    }
}
