//! The status page, looked at with a real browser: what it shows of a real service, live, and of
//! answers made up to be awkward. It takes Debian's packages `chromium` and `chromium-driver`.
//!
//! Each test leaves pictures of what it saw, in `EMNETCHAIN_SCREENSHOTS` or else below `target`.
//! `EMNETCHAIN_PAGE_CLIENTS=100000` has the long chain as long as it may get.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why"
)]

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/mod.rs"]
mod support;

mod browser;
mod crowd;
mod live;
mod made_up;
mod stage;
mod trouble;

/// Whether the browser may be used.
fn may_look(test: &str) -> bool {
    support::privileged::may_run(test, "packages", &["chromium", "chromedriver"])
}
