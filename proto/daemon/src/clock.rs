//! The only clocks. Logic gets its time from drivers, and drivers from here.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the machine booted, suspended time included: what leases are counted in.
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (s, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    s * 1_000 + ns / 1_000_000
}

/// Milliseconds since 1970: for people, never for decisions.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
