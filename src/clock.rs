//! Time enters the service here and nowhere else (`clippy.toml` sees to it).

#![expect(clippy::disallowed_methods, reason = "the one place that asks the time")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Returns the monotonic time now; in tests that move tokio's time, that.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Seconds since 1970 by the wall clock, for people, their tools and
/// their certificates: nothing else goes by it.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
