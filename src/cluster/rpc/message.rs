//! The requests between instances.

use std::collections::BTreeMap;

use openraft::{
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    vote::RaftLeaderId as _,
};
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{
        proposer::Written,
        rpc::hello::{Facts, Known},
    },
    ids::{InstanceId, StoreId},
    raft::{Member, TypeConfig, Vote},
    registry::{BatchId, Command},
    storage::Digests,
};

/// A change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Take this instance in as a learner; of a member, change the address.
    Add {
        /// Its number, which no instance ever had.
        instance: InstanceId,
        /// Its address and store.
        member: Member,
    },
    /// Let this learner vote.
    Promote(InstanceId),
    /// This instance is no longer a member.
    Remove(InstanceId),
    /// Let this member lead, or the voter that has caught up furthest.
    TransferLeader(Option<InstanceId>),
    /// Raise the rules to the newest that every member knows.
    Upgrade,
}

/// The standing of an instance in the cluster, as it tells another that wants to get in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FoundingAnswer {
    /// Its log is empty.
    Empty {
        /// Its store.
        store: StoreId,
        /// The list that it was started with: numbers and addresses.
        list: BTreeMap<InstanceId, String>,
    },
    /// It is in a cluster.
    Founded {
        /// Its store.
        store: StoreId,
        /// Its knowledge of the number of the one that asks.
        known: Known,
        /// The founding entry, while no later entry has changed the membership.
        first: Option<BTreeMap<InstanceId, Member>>,
    },
}

/// A request to another instance. New kinds are added at the end: the encoding counts them.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Raft: entries, or a heartbeat.
    AppendEntries(AppendEntriesRequest<TypeConfig>),
    /// Raft: would you vote for me?
    PreVote(VoteRequest<TypeConfig>),
    /// Write these commands of my clients, for you lead. The leader stamps the time.
    Propose {
        /// Their number, by which they take effect once however often they arrive.
        batch: Option<BatchId>,
        /// The commands.
        commands: Vec<Command>,
    },
    /// Raft: here is a snapshot, with its size in bytes. They follow, as they are, in frames of
    /// their own.
    Snapshot {
        /// The leader that sends it.
        vote: Vote,
        /// Its length.
        bytes: u64,
    },
    /// Raft: take over the leadership.
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// Raft: vote for me.
    Vote(VoteRequest<TypeConfig>),
    /// My log is empty, and I want to get into the cluster: how do you stand?
    Introduce,
    /// Change the cluster, for you lead.
    Change(Change),
    /// This is the case with me now, beside what I said when we were introduced.
    Announce(Facts),
    /// Asks for the digests of the registry. See [`crate::cluster::compare`].
    Digests,
    /// The made-up version 3: I know it too. For the leader.
    #[cfg(feature = "rules-3")]
    #[serde(with = "crate::codec::Only::<3>")]
    Mark(crate::registry::Mark),
}

/// The answer to a [`Request`] of the same name.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To entries.
    AppendEntries(AppendEntriesResponse<TypeConfig>),
    /// The request was not carried out, as far as is known; the reason is for people.
    Failed(String),
    /// To entries that contradict what was applied; the reason is for people. The instance that
    /// answers ends.
    Contradicted(String),
    /// To a proposal: it was applied, with this result.
    Proposed(Written),
    /// To a snapshot: it is installed, unless the vote in here is a higher one.
    Snapshot(SnapshotResponse<TypeConfig>),
    /// To the transfer of the leadership.
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    /// To either kind of vote.
    Vote(VoteResponse<TypeConfig>),
    /// To an introduction.
    Introduced(FoundingAnswer),
    /// To a change: it is made. The sentence is for people.
    Changed(String),
    /// To an announcement: the same of the other one.
    Announced(Facts),
    /// To the question what the registry has come to.
    Digests(Digests),
}

impl Request {
    /// Returns the instance in whose name it is made, if it names one. It must be the one at the
    /// other end.
    pub fn author(&self) -> Option<InstanceId> {
        let vote = match self {
            Self::AppendEntries(rpc) => &rpc.vote,
            Self::PreVote(rpc) | Self::Vote(rpc) => &rpc.vote,
            Self::Propose { batch, .. } => return batch.map(|batch| batch.instance),
            Self::Snapshot { vote, .. } => vote,
            Self::TransferLeader(rpc) => rpc.from_leader(),
            Self::Introduce | Self::Change(_) | Self::Announce(_) | Self::Digests => return None,
            #[cfg(feature = "rules-3")]
            Self::Mark(mark) => return Some(mark.by),
        };
        Some(InstanceId(*vote.leader_id.node_id()))
    }
}
