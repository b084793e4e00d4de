//! What was told is never lost: the real process is killed under load, its files are damaged, its
//! disk is full or fails, and all that its clients were told before must still hold afterwards.
//!
//! `EMNETCHAIN_SEED` repeats the choices of a run. What needs root (mounts, injected faults, hangs,
//! a power cut) runs with `EMNETCHAIN_PRIVILEGED=1`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why"
)]

#[path = "../support/crowd.rs"]
mod crowd;
#[path = "../support/history.rs"]
mod history;
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/slow.rs"]
mod slow;
#[path = "../support/mod.rs"]
mod support;

mod damage;
mod disk;
mod hangs;
mod kills;
mod privileged;
