//! What the registry keeps, one record for each thing that it knows. Records are the whole truth:
//! every index is rebuilt from them.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{LinkedBy, Policy, Serial, Table};
use crate::codec;
use crate::ids::{
    ChainName, Endpoint, HeadAddr, HistoryId, Incarnation, InstanceId, Part, PeerId, RepairId,
    SessionId, Socket, StoreId, TailAddr, Timestamp,
};

/// One thing that the registry knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A client of a chain. Its serial is its place: clients are in the order of their serials.
    Client(Client),
    /// A socket that no chain knows and that waits for the other one with the same repair id.
    Caller(Caller),
    /// The answer that one caller of a repair id got, for its retries.
    Answer(Answer),
    /// An EMNet entry.
    Peer(Peer),
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
    pub source: IpAddr,
    /// When it took its place in the path.
    pub joined: Timestamp,
    /// When it was last heard of.
    pub refreshed: Timestamp,
    /// The connection over which it last asked.
    pub session: SessionId,
    /// Whether it is in the chain's path.
    pub standing: Standing,
    /// What its head is doing.
    pub head_side: Side,
    /// What its tail is doing.
    pub tail_side: Side,
}

/// Whether a client is in the path of its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// In the path, at the place of its serial.
    Member,
    /// Taken out, and remembered for the retention time so that it can come back at the tip.
    Out,
}

/// What one socket of a client is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// It has no partner and does not ask for one.
    Open,
    /// It waits to be told its partner; few do, so the others need not have room for it.
    Asking(Box<Ask>),
    /// It is linked with the facing socket of the neighbour in the path.
    Linked {
        /// Since when.
        since: Timestamp,
        /// What brought them together.
        by: LinkedBy,
    },
    /// It was paired by a repair id with a socket that is not its neighbour.
    Paired {
        /// That socket.
        partner: Socket,
        /// Since when.
        since: Timestamp,
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
    /// How it asked, which decides how it is told.
    pub request: Request,
    /// What is known of the connection.
    pub line: Line,
}

/// Finds an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AskRef {
    /// The ask of a client's socket.
    Side(Serial, Part),
    /// The ask of a [`Caller`].
    Caller(Serial),
}

/// How a socket asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// By CONNECT.
    Connect,
    /// By RECONNECT with this id.
    Reconnect(RepairId),
}

/// What is known of the connection that holds an ask.
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
    pub source: IpAddr,
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
    pub source: IpAddr,
    /// What it was told.
    pub partner: Socket,
    /// When it is forgotten.
    pub until: Timestamp,
}

/// An EMNet entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The number that ASK_IP names.
    pub id: PeerId,
    /// The text that ADD_PEER gave.
    pub address: String,
    /// When it is forgotten.
    pub until: Timestamp,
    /// The rules by which it was made, from the made-up version 3 on.
    #[cfg(feature = "rules-3")]
    #[serde(with = "codec::Since::<3>")]
    pub made_by: Option<Rules>,
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
    /// What is known of each instance.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The history; `None` until the first leader has drawn it.
    pub history: Option<HistoryId>,
    /// The rules version by which entries are applied.
    pub rules: Rules,
    /// What the made-up version 3 counts.
    #[cfg(feature = "rules-3")]
    #[serde(with = "codec::Since::<3>")]
    pub marks: super::Marks,
}

/// What the registry knows of an instance.
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
/// replica applies an entry by the rules in force at that entry, whatever else it knows.
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

impl Client {
    /// What the given socket is doing.
    pub fn side(&self, part: Part) -> &Side {
        match part {
            Part::Head => &self.head_side,
            Part::Tail => &self.tail_side,
        }
    }

    /// What the given socket is doing, for changing.
    pub(super) fn side_mut(&mut self, part: Part) -> &mut Side {
        match part {
            Part::Head => &mut self.head_side,
            Part::Tail => &mut self.tail_side,
        }
    }

    /// The given socket's address.
    pub fn socket(&self, part: Part) -> &Socket {
        match part {
            Part::Head => &self.head.0,
            Part::Tail => &self.tail.0,
        }
    }

    /// Its head and its tail, as a [`super::Note`] is about them.
    pub(super) fn sockets(&self) -> [Option<Endpoint>; 2] {
        [Some(self.head.0.endpoint()), Some(self.tail.0.endpoint())]
    }

    /// Whether it is in the path of this chain.
    pub fn is_member_of(&self, chain: &ChainName) -> bool {
        self.standing == Standing::Member && self.chain == *chain
    }

    /// Whether neither socket has a partner or asks for one.
    pub fn is_idle(&self) -> bool {
        self.head_side == Side::Open && self.tail_side == Side::Open
    }
}

impl Side {
    /// The ask, if it asks.
    pub fn ask(&self) -> Option<&Ask> {
        match self {
            Self::Asking(ask) => Some(ask),
            Self::Open | Self::Linked { .. } | Self::Paired { .. } => None,
        }
    }

    /// Whether it is linked with its neighbour.
    pub fn is_linked(&self) -> bool {
        matches!(self, Self::Linked { .. })
    }
}
