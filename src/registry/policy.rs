//! The settings that decide what commands mean. They travel through the log, because replicas
//! that disagreed about a deadline would soon disagree about a link.

use serde::{Deserialize, Serialize};

/// Deadlines and bounds of the registry. Times are milliseconds of log time; a bound counts as one
/// at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Time for which the asks of a dead instance's sessions wait for their clients to return.
    pub resume_grace_ms: u64,
    /// Time that silent clients between two asking sockets have to ask too.
    pub gather_ms: u64,
    /// The longest that any ask may wait.
    pub ask_ms_max: u64,
    /// Time for which finished repair ids and EMNet entries are kept.
    pub retention_ms: u64,
    /// Time for which a client without asks is kept when it is not refreshed; 0 for ever.
    pub client_retention_ms: u64,
    /// Clients in the registry, over all chains.
    pub clients_max: u64,
    /// Clients that one public source address may own while there are more than half of
    /// `clients_max`.
    pub clients_per_source_max: u64,
    /// Repair ids of sockets that no chain knows that may wait; as many finished ones are
    /// remembered, the oldest of the source that has the most go first.
    pub repairs_max: u64,
    /// Repair ids that one public source address may have waiting while there are more than half
    /// of `repairs_max`. They need a connection each, of which an instance lets one address have
    /// 256.
    pub repairs_per_source_max: u64,
    /// EMNet entries; at most 900,000 of the million ids, so that a free one is quickly found.
    pub peers_max: u64,
    /// EMNet entries that one public source address may have while there are more than half of
    /// `peers_max`.
    pub peers_per_source_max: u64,
}

/// An IPv6 /48 may have as much as this number of sources: sites whose users have a /64 each get
/// along, and one hand with 65,536 of them gets no more than four addresses' worth.
pub(super) const NETWORK_SHARES: u64 = 4;

impl Policy {
    /// Returns the time for which a client that was reported and has no partner is kept, since it
    /// was last reported.
    pub(super) fn lost_retention_ms(&self) -> u64 {
        let longest = match self.client_retention_ms {
            0 => u64::MAX,
            longest => longest,
        };
        self.retention_ms.max(self.ask_ms_max).min(longest)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            resume_grace_ms: 10_000,
            gather_ms: 5_000,
            ask_ms_max: 24 * 60 * 60 * 1000,
            retention_ms: 10 * 60 * 1000,
            client_retention_ms: 30 * 24 * 60 * 60 * 1000,
            clients_max: 2_000_000,
            clients_per_source_max: 4_096,
            repairs_max: 200_000,
            repairs_per_source_max: 256,
            peers_max: 200_000,
            peers_per_source_max: 2_048,
        }
    }
}
