//! The records of the registry, one for each thing that it knows. Records are the whole truth:
//! every index is rebuilt from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cause, LinkedBy, Policy, Serial, Table, shares::Spare};
use crate::codec;
use crate::ids::{
    ChainName, Endpoint, HeadAddr, HistoryId, Incarnation, InstanceId, Part, PeerId, RepairId,
    SessionId, Socket, Source, StoreId, TailAddr, Timestamp,
};

/// One thing that the registry knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A client of a chain. Its serial is its place, within a [`Section`].
    Client(Client),
    /// A socket that no chain knows and that waits for the other one with the same repair id.
    Caller(Caller),
    /// The answer that one caller of a repair id got, for its retries.
    Answer(Answer),
    /// An EMNet entry.
    Peer(Peer),
    /// A part of a run of clients, in a chain whose clients are not all in the order of their
    /// serials.
    Section(Section),
}

/// A client of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The chain.
    pub chain: ChainName,
    /// Faces the later neighbour.
    pub head: HeadAddr,
    /// Faces the earlier neighbour.
    pub tail: TailAddr,
    /// The source address that owns it.
    pub source: Source,
    /// When it took its place in the path.
    pub joined: Timestamp,
    /// When it was last heard of.
    pub refreshed: Timestamp,
    /// The connection over which it last asked.
    pub session: SessionId,
    /// Whether it counts as first: nothing is known of those before it.
    pub is_marked: bool,
    /// The state of its head.
    pub head_side: Side,
    /// The state of its tail.
    pub tail_side: Side,
}

/// The state of one socket of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// It has no partner and does not ask for one.
    Open(Past),
    /// It waits to be told its partner; few do, so the others need not have room for it.
    Asking(Box<Ask>),
    /// It is linked with the facing socket of the neighbour in the path.
    Linked {
        /// Since when.
        since: Timestamp,
        /// The cause of the link.
        by: LinkedBy,
    },
    /// It was paired by a repair id with a socket that is not its neighbour.
    Paired {
        /// That socket; few are paired, so the others need not have room for it.
        partner: Box<Socket>,
        /// Since when.
        since: Timestamp,
    },
}

/// The memory of a socket without a partner: how it lost the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Past {
    /// It never had one.
    New,
    /// It lost it.
    Lost,
    /// The partner said that this client is gone.
    Reported {
        /// When.
        since: Timestamp,
        /// Whether it was the second report within the retention.
        again: bool,
    },
    /// This client reported it: it said that the partner is gone.
    Left {
        /// The partner.
        partner: Serial,
        /// Until when this client doubts it, after the second report within the retention. One time
        /// for all asks to come, or a client that hangs up and asks would doubt for ever.
        doubt: Option<Timestamp>,
    },
}

/// A socket that waits to be told its partner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The connection that will be told.
    pub session: SessionId,
    /// Orders the asks: the later of two has the higher number.
    pub number: Serial,
    /// When it began to wait.
    pub since: Timestamp,
    /// When it is given up.
    pub until: Timestamp,
    /// The request, which decides the form of the answer.
    pub request: Request,
    /// The state of the connection.
    pub line: Line,
    /// The last partner that the socket had.
    pub past: Past,
}

/// Finds an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AskRef {
    /// The ask of a client's socket.
    Side(Serial, Part),
    /// The ask of a [`Caller`].
    Caller(Serial),
}

/// The request of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// By CONNECT.
    Connect,
    /// By RECONNECT with this id.
    Reconnect(RepairId),
}

/// The state of the connection that holds an ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// Both directions are open.
    Open,
    /// The client closed its sending side.
    HalfClosed,
    /// The client closed its sending side, and this partner's address is on the way to it; the
    /// partner is told once its kernel has taken the bytes.
    Offered(AskRef),
    /// The instance that held it is gone; the client may come back until the ask's time is up.
    Detached,
}

/// A socket that no chain knows and that waits for its repair id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The orphaned socket.
    pub socket: Socket,
    /// The source address that owns the wait.
    pub source: Source,
    /// The wait itself; its request carries the id.
    pub ask: Ask,
}

/// The answer that one caller of a repair id got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The id.
    pub id: RepairId,
    /// The caller's socket.
    pub socket: Endpoint,
    /// The source address that may ask again.
    pub source: Source,
    /// The partner in the answer.
    pub partner: Socket,
    /// When it is forgotten.
    pub until: Timestamp,
}

/// An EMNet entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The number that ASK_IP names.
    pub id: PeerId,
    /// The source address that gave it.
    pub source: Source,
    /// The text that ADD_PEER gave.
    pub address: String,
    /// When it is forgotten.
    pub until: Timestamp,
    /// The rules by which it was made, from the made-up version 3 on.
    #[cfg(feature = "rules-3")]
    #[serde(with = "codec::Since::<3>")]
    pub made_by: Option<Rules>,
}

/// A part of a run: all clients of the chain whose serials are in a range. A chain whose clients
/// are one run in the order of their serials has none; otherwise its sections hold every serial of
/// a client once. The section without an end takes newcomers, and its run is the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The chain.
    pub chain: ChainName,
    /// The first serial of the range.
    pub first: Serial,
    /// The last serial of the range; `None` if there is no end.
    pub last: Option<Serial>,
    /// The record of the section that comes next in the run.
    pub next: Option<Serial>,
    /// Why the run is cut off, if this is its first section and it is not the path.
    pub cut: Option<Cut>,
}

/// Why a run is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub cause: Cause,
}

/// The few values beside the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Log time of the last entry.
    pub now: Timestamp,
    /// The next record's serial.
    pub next_serial: Serial,
    /// The settings in force.
    pub policy: Policy,
    /// The record of each instance.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The history; `None` until the first leader has drawn it.
    pub history: Option<HistoryId>,
    /// The rules version by which entries are applied.
    pub rules: Rules,
    /// Counters of the made-up version 3.
    #[cfg(feature = "rules-3")]
    #[serde(with = "codec::Since::<3>")]
    pub marks: super::Marks,
}

/// The record of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its present life.
    pub incarnation: Incarnation,
    /// Its batches are applied up to this number.
    pub batches_through: u64,
    /// The store that bears the number, since an entry said so; it never changes again.
    pub store: Option<StoreId>,
    /// The entry that removed it from the cluster; the number is not used again.
    pub removed_by: Option<u64>,
}

/// A version of the rules by which entries are applied. It is the cluster's, not a binary's: every
/// replica applies an entry by the rules in force at that entry, even if it knows newer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rules(pub u32);

impl Rules {
    /// The first version that the log knows of; version 0.2.0 had no such number.
    pub const FIRST: Self = Self(codec::FIRST);
    /// The newest version that this binary can apply.
    pub const NEWEST: Self = Self(codec::NEWEST);
}

impl Default for Rules {
    fn default() -> Self {
        Self::FIRST
    }
}

/// A registry at rest: what a snapshot holds, and what the image on disk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The values beside the records.
    pub meta: Meta,
    /// All records.
    pub records: Table<Record>,
}

impl Record {
    /// Returns the client, if it is one.
    pub fn client(&self) -> Option<&Client> {
        if let Self::Client(client) = self { Some(client) } else { None }
    }

    /// Returns the client, for changing.
    pub(super) fn client_mut(&mut self) -> Option<&mut Client> {
        if let Self::Client(client) = self { Some(client) } else { None }
    }

    /// Returns the wait of a socket that no chain knows, if it is one.
    pub fn caller(&self) -> Option<&Caller> {
        if let Self::Caller(caller) = self { Some(caller) } else { None }
    }

    /// Returns the section, if it is one.
    pub(super) fn section(&self) -> Option<&Section> {
        if let Self::Section(section) = self { Some(section) } else { None }
    }
}

impl Client {
    /// Returns the state of the given socket.
    pub fn side(&self, part: Part) -> &Side {
        match part {
            Part::Head => &self.head_side,
            Part::Tail => &self.tail_side,
        }
    }

    /// Returns the state of the given socket, for changing.
    pub(super) fn side_mut(&mut self, part: Part) -> &mut Side {
        match part {
            Part::Head => &mut self.head_side,
            Part::Tail => &mut self.tail_side,
        }
    }

    /// Returns the given socket's address.
    pub fn socket(&self, part: Part) -> &Socket {
        match part {
            Part::Head => &self.head.0,
            Part::Tail => &self.tail.0,
        }
    }

    /// Returns its head and its tail, as a [`super::Note`] is about them.
    pub(super) fn sockets(&self) -> [Option<Endpoint>; 2] {
        [Some(self.head.0.endpoint()), Some(self.tail.0.endpoint())]
    }

    /// Returns its sides, the tail first.
    fn sides(&self) -> [&Side; 2] {
        [&self.tail_side, &self.head_side]
    }

    /// Returns whether neither socket has a partner or asks for one.
    pub fn is_idle(&self) -> bool {
        self.sides().iter().all(|side| matches!(side, Side::Open(_)))
    }

    /// Returns whether neither socket asks.
    pub fn is_silent(&self) -> bool {
        self.sides().iter().all(|side| side.ask().is_none())
    }

    /// Returns whether a partner said that this client is gone, and it has not spoken up since.
    pub fn is_reported(&self) -> bool {
        self.sides().iter().any(|side| side.is_reported())
    }

    /// Returns its rank in making room for another one. One whose partner went goes as any silent
    /// one: any number of clients lose theirs when one hand has its own make room.
    pub(super) fn spare(&self) -> Spare {
        let is_lone = |side: &&Side| matches!(side, Side::Open(Past::New | Past::Reported { .. }));
        if !self.is_silent() {
            Spare::Asks
        } else if !self.sides().iter().all(is_lone) {
            Spare::Silent
        } else if self.is_reported() {
            Spare::Reported
        } else {
            Spare::New
        }
    }

    /// Returns when it is forgotten, if it stays silent; `None` if never. A client that was
    /// reported and has no partner is rather dead; any other one may have been linked long ago, and
    /// be well. But two hostile neighbours can report one that is alive, so it is remembered as
    /// long as a neighbour may wait for it to notice.
    pub fn forgotten_at(&self, policy: &Policy) -> Option<Timestamp> {
        let reported = self.sides().into_iter().filter_map(Side::reported_at);
        match reported.max().filter(|_| self.is_idle()) {
            Some(since) => Some(since.plus_ms(policy.lost_retention_ms())),
            None if policy.client_retention_ms == 0 => None,
            None => Some(self.refreshed.plus_ms(policy.client_retention_ms)),
        }
    }
}

impl Side {
    /// Returns the ask, if it asks.
    pub fn ask(&self) -> Option<&Ask> {
        match self {
            Self::Asking(ask) => Some(ask),
            Self::Open(_) | Self::Linked { .. } | Self::Paired { .. } => None,
        }
    }

    /// Returns whether it is open because the partner said that this client is gone.
    pub fn is_reported(&self) -> bool {
        self.reported_at().is_some()
    }

    /// Returns when the partner said that this client is gone, if it is open because of that.
    pub(super) fn reported_at(&self) -> Option<Timestamp> {
        match self {
            Self::Open(Past::Reported { since, .. }) => Some(*since),
            Self::Open(Past::New | Past::Lost | Past::Left { .. })
            | Self::Asking(_)
            | Self::Linked { .. }
            | Self::Paired { .. } => None,
        }
    }

    /// Returns whether it is linked with its neighbour.
    pub fn is_linked(&self) -> bool {
        matches!(self, Self::Linked { .. })
    }
}
