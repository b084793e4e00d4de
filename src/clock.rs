//! Time enters the service here and nowhere else (`clippy.toml` sees to it).

#![expect(clippy::disallowed_methods, reason = "the one place that asks the time")]

use std::time::Instant;

/// The monotonic time now; in tests that move tokio's time, that.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
