//! The words shared with openraft: what its log carries, and names for its types in our use of
//! them. Nothing outside `cluster` and `storage` needs this module.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::StoreId,
    registry::{Proposal, Verdict},
    runtime::Runtime,
};

openraft::declare_raft_types!(
    /// Our choice of types for openraft.
    pub TypeConfig:
        D = Proposal,
        R = Verdict,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = Runtime,
);

/// One entry of the raft log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// Term and index of an entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// The vote that a node has given.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// The members of the cluster and the entry that made them so.
pub type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// How the members of the cluster reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `host:port` of its raft listener; the host is resolved at each connect.
    pub raft_addr: String,
    /// The store that bears this number; `None` for a learner that was not promoted yet. It is
    /// written once: a member whose disk is lost comes back under another number.
    pub store: Option<StoreId>,
}

impl Member {
    /// A member that is reached at `raft_addr`, whose store is not known yet.
    pub fn at(raft_addr: impl Into<String>) -> Self {
        Self { raft_addr: raft_addr.into(), store: None }
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands at {}", self.commands.len(), self.at.0)
    }
}
