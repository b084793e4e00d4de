//! The effects of the registry. It never does anything itself: every replica computes the same
//! effects, and the instance that holds a session carries its effects out, in this order.

use serde::{Deserialize, Serialize};

use crate::ids::{Endpoint, Part, PeerId, RepairId, SessionId, Socket};

/// The result of applying one proposal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The outcome of the proposal.
    pub verdict: Verdict,
    /// The effects for sessions, in order.
    pub effects: Vec<Effect>,
    /// The events, for metrics and for the history.
    pub notes: Vec<Note>,
}

/// The outcome of a proposal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Its commands took effect.
    #[default]
    Applied,
    /// They had taken effect before: the batch was proposed twice.
    Duplicate,
    /// An earlier batch of the same instance has not been applied; propose again from there.
    Early,
    /// It is from an earlier life of its instance, or from one that was never started.
    Stale,
}

/// One act towards one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Send a message.
    Tell {
        /// The connection that is told.
        session: SessionId,
        /// The message.
        message: Message,
        /// The next step for the connection afterwards.
        then: Then,
    },
    /// Close without a further byte: nothing more will come over this connection.
    Release {
        /// Which session.
        session: SessionId,
        /// Why.
        why: Why,
    },
    /// The request changed nothing. A legacy client sees silence, and its connection stays open.
    Refuse {
        /// Whose request.
        session: SessionId,
        /// Why.
        why: Refusal,
    },
}

impl Effect {
    /// Returns the session that it concerns.
    pub fn session(&self) -> SessionId {
        match self {
            Self::Tell { session, .. }
            | Self::Release { session, .. }
            | Self::Refuse { session, .. } => *session,
        }
    }
}

/// A message to a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Chain server: your `part` connects to `ip`.
    Link {
        /// Which of the client's sockets.
        part: Part,
        /// The neighbour's socket.
        ip: Socket,
    },
    /// Repair server: your orphaned socket connects to `ip`.
    Repair {
        /// The new neighbour's socket.
        ip: Socket,
    },
    /// EMNet: the address is kept under `id`.
    PeerAdded {
        /// The id to ask for.
        id: PeerId,
    },
    /// EMNet: the address that was kept.
    PeerFound {
        /// The text given to ADD_PEER.
        address: String,
    },
    /// EMNet: no such id, or no room.
    PeerFailed,
}

/// The next step for the connection once a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// Everything this session asked for is answered: close it.
    Close,
    /// The far end had half-closed: report [`super::Command::Delivered`] once its kernel has
    /// acknowledged the bytes, or [`super::Command::Disconnect`] if it resets the connection.
    Confirm,
    /// More answers will come.
    Stay,
}

/// Why a session is closed without a further byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Why {
    /// Everything it can be told has been told.
    Answered,
    /// The ask reached the end of its time.
    Expired,
    /// The same client asked again over another connection.
    Superseded,
    /// This client made room for another one, or a newer pair of its own took its place; it may
    /// ask again.
    TakenOut,
}

/// Why a request changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Refusal {
    /// A socket of the request was registered from another source address.
    NotOwner,
}

/// An event, for metrics and for the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The sockets that it is about: the head and the tail of one client, the two that became
    /// partners, or only one.
    pub about: [Option<Endpoint>; 2],
    /// The connection whose request brought it about, or whose ask it ended.
    pub session: Option<SessionId>,
    /// The kind of event.
    pub what: What,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A socket lost its partner, and asks for another one with this id.
    Asked(RepairId),
    /// A client that is known already asks again.
    CameBack,
    /// The instance that held the connection is gone; the ask has the resume grace.
    Detached,
    /// An ask ended without a partner.
    Ended(Ended),
    /// Something was forgotten.
    Forgotten(Forgotten),
    /// A tail that lost its partner counts as first, because no head asks before it.
    CountsAsFirst,
    /// Clients were cut off from their run; the note is about the tail of the first and the head
    /// of the last.
    CutOff {
        /// The number of clients.
        clients: u64,
        /// Why.
        cause: Cause,
    },
    /// A client joined its chain at the tip.
    Joined,
    /// Something that was kept for a time made room for something newer.
    MadeRoom(Forgotten),
    /// Two neighbours were linked.
    Linked {
        /// The cause.
        by: LinkedBy,
        /// Wait of the earlier of the two asks, in milliseconds of log time.
        waited_ms: u64,
    },
    /// Two partners are so no more.
    Parted,
    /// Two sockets that are not neighbours in any chain were paired by their common id.
    Paired {
        /// Wait of the first of the two, in milliseconds of log time.
        waited_ms: u64,
    },
    /// A request changed nothing.
    Refused(Refusal),
    /// Clients that were cut off are behind the tip of their chain; the note is about the tail of
    /// the first and the head of the last.
    Returned {
        /// The number of clients.
        clients: u64,
    },
    /// A client was taken out of its chain.
    TakenOut(Cause),
}

/// Why an ask ended without a partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// It reached the end of its time.
    Expired(Asked),
    /// The client closed or lost its connection.
    HungUp,
    /// It made room for another one.
    MadeRoom,
    /// The same client asked in another way.
    Superseded,
}

impl From<Ended> for Why {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Expired(_) => Self::Expired,
            Ended::HungUp => Self::Answered, // no client is there to be told
            Ended::MadeRoom => Self::TakenOut,
            Ended::Superseded => Self::Superseded,
        }
    }
}

/// The kind of an ask, without the particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// By CONNECT.
    Connect,
    /// By RECONNECT.
    Reconnect,
}

/// An entry that was kept for a time, and is kept no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forgotten {
    /// An answer that was kept for a caller that would ask again.
    Answer,
    /// A client that was not refreshed, or that was taken out and did not come back.
    Client,
    /// An EMNet entry.
    Peer,
}

/// Why a client was taken out, or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// It was silent for the retention time.
    Forgotten,
    /// Those beside it reported that they lost it.
    Lost,
    /// It made room for another one.
    MadeRoom,
    /// Its owner uses one of its sockets in another pair.
    Replaced,
    /// It kept silent for the gather window while clients before and after it asked.
    Silent,
}

/// The cause of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LinkedBy {
    /// The clients between two asking sockets kept silent for the gather window.
    Gather,
    /// A newcomer and the tip.
    Join,
    /// A RECONNECT on at least one side.
    Repair,
    /// Both ask again, after one of them had reported the other.
    Again,
}

impl LinkedBy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gather, Self::Join, Self::Repair, Self::Again];

    /// Returns its name in metrics and in the operators' HTTP.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gather => "gather",
            Self::Join => "join",
            Self::Repair => "repair",
            Self::Again => "again",
        }
    }
}
