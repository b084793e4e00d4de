//! The commands that the raft log carries into the registry.

use serde::{Deserialize, Serialize};

use super::{Policy, Rules};
use crate::ids::{
    ChainName, HeadAddr, HistoryId, Incarnation, InstanceId, OrphanAddr, PeerId, RepairId,
    SessionId, Source, TailAddr, Timestamp,
};

/// One raft entry's worth of commands, applied together and in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The leader's log time when it proposed; a time behind the registry's counts as "now".
    pub at: Timestamp,
    /// The instance that batched these commands, and its count of them, so that a batch proposed
    /// twice is applied once. `None` for commands that may safely be repeated.
    pub batch: Option<BatchId>,
    /// The commands.
    pub commands: Vec<Command>,
}

/// Names one batch of commands of one life of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BatchId {
    /// The instance whose clients sent the commands.
    pub instance: InstanceId,
    /// Its life. A batch of an earlier life than the registry knows is ignored.
    pub incarnation: Incarnation,
    /// Counts the batches of that life from 1, without gaps.
    pub number: u64,
}

/// One thing that happened at the edge of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// EMNet's ADD_PEER: keep `address` and answer with an id.
    AddPeer {
        /// The connection that asked.
        session: SessionId,
        /// The connection's source address.
        source: Source,
        /// Any text, at most [`crate::limits::PEER_TEXT_BYTES_MAX`] bytes.
        address: String,
        /// A random id; the next free one is used if it is taken.
        candidate: PeerId,
    },
    /// EMNet's ASK_IP: answer with the address kept under `id` and forget it.
    AskIp {
        /// The connection that asked.
        session: SessionId,
        /// The id that ADD_PEER gave out.
        id: PeerId,
    },
    /// A client's CONNECT: join the chain, or come back to it.
    Connect {
        /// The connection that will be told.
        session: SessionId,
        /// The connection's source address, which owns the client.
        source: Source,
        /// The chain; empty for the seed's clients.
        chain: ChainName,
        /// The socket that faces the later neighbour.
        head: HeadAddr,
        /// The socket that faces the earlier neighbour.
        tail: TailAddr,
    },
    /// The kernel at the far end of a half-closed session took the bytes of an [`super::Effect`]
    /// that asked for a confirmation.
    Delivered {
        /// Whose kernel.
        session: SessionId,
    },
    /// The session is gone (reset, keepalive failed, cut off): its asks are withdrawn.
    Disconnect {
        /// The session that is gone.
        session: SessionId,
    },
    /// The client closed its sending side: a legal half-close, or a process that exited.
    HalfClose {
        /// Whose.
        session: SessionId,
    },
    /// A client's RECONNECT: the partner at `orphan` is gone.
    Reconnect {
        /// The connection that will be told.
        session: SessionId,
        /// The connection's source address.
        source: Source,
        /// The id that both callers share, as its clients made it.
        id: RepairId,
        /// The caller's socket that lost its partner.
        orphan: OrphanAddr,
    },
    /// From now on these settings hold.
    SetPolicy(Policy),
    /// A new life of an instance begins: the sessions of its earlier lives are gone, and their
    /// asks wait for the resume grace. The instance says so itself, or the leader says it of an
    /// instance that has died.
    Start {
        /// The instance.
        instance: InstanceId,
        /// The life that begins; it is ignored if not above the one the registry knows.
        incarnation: Incarnation,
    },
    /// Nothing but the passing of time.
    Tick,
    /// The first leader names the history; ignored if it has a name.
    Found {
        /// The name, drawn at random.
        history: HistoryId,
    },
    /// From the next entry on these rules hold; ignored if they are not newer.
    Raise {
        /// The rules.
        rules: Rules,
    },
    /// The made-up version 3 counts these.
    #[cfg(feature = "rules-3")]
    #[serde(with = "crate::codec::Only::<3>")]
    Mark(super::Mark),
}

impl Command {
    /// Returns the first rules that know it. Before they are in force it must not be written, and
    /// changes nothing.
    pub fn rules(&self) -> Rules {
        #[cfg(feature = "rules-3")]
        if matches!(self, Self::Mark(_)) {
            return Rules(3);
        }
        Rules::FIRST
    }

    /// Returns the session that it comes from, if it comes from one.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::AddPeer { session, .. }
            | Self::AskIp { session, .. }
            | Self::Connect { session, .. }
            | Self::Delivered { session }
            | Self::Disconnect { session }
            | Self::HalfClose { session }
            | Self::Reconnect { session, .. } => Some(*session),
            Self::Found { .. }
            | Self::Raise { .. }
            | Self::SetPolicy(_)
            | Self::Start { .. }
            | Self::Tick => None,
            #[cfg(feature = "rules-3")]
            Self::Mark(_) => None,
        }
    }
}
