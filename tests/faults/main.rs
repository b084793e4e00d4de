//! A cluster whose instances are killed, frozen, cut off from each other, restarted and replaced,
//! and whose disks are slow, hang, lose their power, are wiped, exchanged or put back to an older
//! state, while clients come and go: nothing that was told may ever be told otherwise, clients are
//! answered again within each fault's deadline, and when it is over, all must be whole.
//!
//! The instances live in network namespaces on one bridge. Clients resolve one name by a real DNS
//! server that knows the addresses of all, go to any of them, and when they get no answer they ask
//! again somewhere else. `EMNETCHAIN_SEED` repeats the choices of a run, though not the timing.
//!
//! Namespaces need root: `EMNETCHAIN_PRIVILEGED=1 cargo test --test faults`, with `ip`, `nft` and
//! `dnsmasq` installed, and for disks `cc`, `mkfs.ext4` and `python3`. `EMNETCHAIN_FAULTS=10` makes
//! runs ten times as long: then 10,000 CONNECTs and 2,000 repairs are answered while one instance
//! after the other is killed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
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
#[path = "../support/cluster.rs"]
mod replicas;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/slow.rs"]
mod slow;
#[path = "../support/mod.rs"]
mod support;

mod disk;
mod fleet;
mod kinds;
mod members;
mod name;
mod net;
mod runs;
