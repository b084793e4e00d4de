//! The words shared with openraft: what its log carries, and names for its types in our use of
//! them. Nothing outside `cluster` and `storage` needs this module.

use std::{fmt, net::SocketAddr, str::FromStr};

use openraft::vote::RaftLeaderId;
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
        LeaderId = LeaderId,
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
/// The entries that a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// A leader, or a candidate: its term, then its number. openraft lets a term have several leaders,
/// one after the other, with rising numbers.
///
/// Term 0 has no leader. Each founder writes the founding entry itself, and the entry must have one
/// id in all their logs: where ids differ, the first leader cuts the entry away and writes its own,
/// and a power cut in between leaves a log that names no members beside a vote that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaderId {
    /// The term.
    pub term: u64,
    /// The number of the instance.
    pub node_id: u64,
}

impl RaftLeaderId for LeaderId {
    type Term = u64;
    type NodeId = u64;
    type Committed = Self;

    fn new(term: u64, node_id: u64) -> Self {
        Self { term, node_id }
    }

    fn term(&self) -> u64 {
        self.term
    }

    fn node_id(&self) -> &u64 {
        &self.node_id
    }

    fn to_committed(&self) -> Self {
        if self.term == 0 { Self::new(0, 0) } else { *self }
    }
}

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}-N{}", self.term, self.node_id)
    }
}

/// The address and the store of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `host:port` of its raft listener; the host is resolved at each connect.
    pub raft_addr: String,
    /// The store that bears this number; `None` for a learner that was not promoted yet. It is
    /// written once: a member whose disk is lost comes back under another number.
    pub store: Option<StoreId>,
}

impl Member {
    /// Creates a member that is reached at `raft_addr`, whose store is not known yet.
    pub fn at(raft_addr: impl Into<String>) -> Self {
        Self { raft_addr: raft_addr.into(), store: None }
    }
}

/// Why a text is not the address of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// It is no `HOST:PORT`.
    #[error("{0:?} is not the address of an instance; write HOST:PORT, such as 10.0.0.1:7000")]
    NoAddress(String),
    /// It is where an instance may listen, and no place to connect to.
    #[error("no instance can connect to {0}; write HOST:PORT as the others reach this one")]
    Unspecified(SocketAddr),
}

/// Reads `HOST:PORT`. Of all spellings of an address it keeps one: names in small letters, ports
/// and IPv6 addresses in their shortest form.
impl FromStr for Member {
    type Err = MemberError;

    fn from_str(text: &str) -> Result<Self, MemberError> {
        let wrong = || MemberError::NoAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_unspecified() => Err(MemberError::Unspecified(address)),
            Ok(address) => Ok(Self::at(address.to_string())),
            Err(_) if is_name(host) => {
                Ok(Self::at(format!("{}:{port}", host.to_ascii_lowercase())))
            }
            Err(_) => Err(wrong()),
        }
    }
}

/// Returns whether this may be the name of a host. One that ends in digits alone would be an IPv4
/// address to some, in an odd spelling, and none to others.
fn is_name(host: &str) -> bool {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.chars().all(is_of_a_name) && last.chars().any(|c| !c.is_ascii_digit())
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands at {}", self.commands.len(), self.at.0)
    }
}
