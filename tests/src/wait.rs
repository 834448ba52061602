//! Waiting for a condition, by looking at it again and again.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);

/// Why a condition does not hold yet, for the message of a test that gives up.
#[derive(Debug, Clone)]
pub struct Pending(pub String);

impl<T: Display> From<T> for Pending {
    fn from(reason: T) -> Self {
        Pending(reason.to_string())
    }
}

/// Looks at `condition` until it gives a value.
///
/// # Panics
/// It gave none within `limit`; the message says what was waited for, what was seen last, and what `diagnose` tells.
#[track_caller]
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, Pending>,
    diagnose: impl FnOnce() -> String,
) -> T {
    let start = Instant::now();
    loop {
        // Asked before the look, so that a slow look that began in time still counts.
        let late = start.elapsed() > limit;
        match condition() {
            Ok(value) => return value,
            Err(Pending(last)) if late => panic!(
                "waited {:.1} s for: {what}\nlast seen: {last}\n{}",
                start.elapsed().as_secs_f32(),
                diagnose()
            ),
            Err(_) => sleep(PAUSE),
        }
    }
}

/// `Ok` if `holds`, else pending for `reason`.
///
/// # Errors
/// It does not hold.
pub fn check(holds: bool, reason: impl FnOnce() -> String) -> Result<(), Pending> {
    if holds { Ok(()) } else { Err(Pending(reason())) }
}
