//! The shape of `/status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Word;
use crate::ids::InstanceId;

/// The instance as `/status` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: Word,
    /// The cluster, in 32 hexadecimal digits.
    pub cluster: String,
    /// This instance.
    pub node: InstanceId,
    /// Its role in its cluster: leader, follower, candidate, learner or shutdown.
    pub role: Word,
    /// The leader, if this instance hears one.
    pub leader: Option<InstanceId>,
    /// The raft term.
    pub term: u64,
    /// The last entry in this instance's log.
    pub last_log_index: u64,
    /// The last entry that is applied here.
    pub applied_index: u64,
    /// Why clients cannot be answered now, as `/readyz` says it; nothing if they can.
    pub trouble: Option<String>,
    /// The version of the rules by which entries are applied.
    pub rules: u32,
    /// The newest version of the rules that this instance knows.
    pub newest_rules: u32,
    /// All members, by number.
    pub members: Vec<Member>,
    /// The chains, in figures.
    pub chains: Chains,
    /// Open client connections of this instance, by listener.
    pub connections: BTreeMap<Word, u64>,
    /// The digest of the registry; only in `/status?digest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<Digest>,
}

/// The digest of the registry after an entry. All instances that tell the same entry must tell the
/// same digest; if they do not, they have told clients different things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The entry.
    pub applied: u64,
    /// The digest, in 16 hexadecimal digits.
    pub digest: String,
}

/// A member of the cluster as the asked instance knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub node: InstanceId,
    /// Where other members reach it; empty while there are none.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
    /// The entries that it lags behind the leader; only the leader knows.
    pub lag: Option<u64>,
    /// For how many milliseconds it was not heard: the leader knows it of all, a follower of its
    /// leader.
    pub silent_ms: Option<u64>,
    /// The newest version of the rules that it knows: the leader has asked it, and every instance
    /// knows its own.
    pub newest_rules: Option<u32>,
}

/// The chains, in figures; those of the whole cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chains {
    /// Chains with at least one client.
    pub count: u64,
    /// Clients, over all chains.
    pub clients: u64,
    /// Clients that are cut off from the paths of their chains.
    pub cut_off: u64,
    /// Sockets that wait to be told their partner.
    pub asks: u64,
    /// Links between neighbours in paths.
    pub links: u64,
    /// Neighbours in paths that are not linked, and should be.
    pub broken_links: u64,
    /// Repair ids that wait for their second caller.
    pub repairs_pending: u64,
}
