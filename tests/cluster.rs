//! Three instances as real processes: what clients are promised when they come to any of them, and
//! when instances are killed, frozen, stopped, started again and founded. The networks in between
//! are whole; `tests/faults` breaks them as well.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "measurements are for people")]

#[path = "support/cluster.rs"]
mod replicas;
#[path = "support/slow.rs"]
mod slow;
#[path = "support/strangers.rs"]
mod strangers;
mod support;
#[path = "support/wrong.rs"]
mod wrong;

mod cluster {
    mod chains;
    mod changes;
    mod deaths;
    mod differing;
    mod disks;
    mod founding;
    mod identity;
    mod outages;
    mod places;
    mod stopping;
}
