//! The one budget of descriptors: what connections of each listener may take of the files that the
//! process may open, so that the disk always has its own. A disk that is refused one stops the
//! instance, so nothing that comes from outside may take the last.

use crate::{
    limits::{RPC_CONNECTIONS_MAX, RPC_STRANGERS_MAX},
    platform::process::descriptors_max,
};

/// Descriptors that no connection may take: about 20 for listeners, the log and the image, and as
/// many for what comes and goes, such as snapshots and connections that are being closed.
const OWN: usize = 40;

/// The number of descriptors that connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Those of clients.
    pub(crate) clients: usize,
    /// Those of the operators' HTTP.
    pub(crate) operators: usize,
    /// Those of other instances, both ways, once they have introduced themselves.
    pub(crate) members: usize,
    /// Those at the raft port that have not introduced themselves yet.
    pub(crate) strangers: usize,
}

impl Shares {
    /// Shares out the descriptors that this process may open.
    pub(crate) fn of_this_process() -> Self {
        Self::of(descriptors_max())
    }

    fn of(descriptors: usize) -> Self {
        let operators = (descriptors / 8).clamp(1, 128);
        let members = (descriptors / 16).clamp(1, RPC_CONNECTIONS_MAX);
        let strangers = (descriptors / 16).clamp(1, RPC_STRANGERS_MAX);
        let left = descriptors.saturating_sub(OWN + operators + members + strangers);
        let clients = left.min(descriptors / 5 * 4).clamp(1, 100_000);
        Self { clients, operators, members, strangers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All listeners together, the raft port among them.
    #[test]
    fn connections_leave_the_disk_its_descriptors() {
        for descriptors in (56..5000).chain([100_000, usize::MAX]) {
            let Shares { clients, operators, members, strangers } = Shares::of(descriptors);
            let taken = clients + operators + members + strangers;
            assert!(taken + OWN <= descriptors, "{taken} of {descriptors}");
        }
    }

    #[test]
    fn the_shares_grow_with_what_there_is() {
        let of = |descriptors| {
            let Shares { clients, operators, members, strangers } = Shares::of(descriptors);
            (clients, operators, members, strangers)
        };
        assert_eq!(of(20), (1, 2, 1, 1), "too few to live on, but nothing breaks here");
        assert_eq!(of(64), (8, 8, 4, 4));
        assert_eq!(of(256), (152, 32, 16, 16));
        assert_eq!(of(1024), (760, 128, 64, 32));
        assert_eq!(of(4096), (3276, 128, 64, 32));
        assert_eq!(of(usize::MAX), (100_000, 128, 64, 32));
    }
}
