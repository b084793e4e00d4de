//! Chains and their clients. Ages are in milliseconds of log time.

use serde::{Deserialize, Serialize};

use super::Word;
use crate::ids::InstanceId;

/// Some chains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The last entry that is applied.
    pub applied: u64,
    /// The number of all chains.
    pub total: u64,
    /// Whether there are more than these.
    pub more: bool,
    /// The chains.
    pub chains: Vec<Chain>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Its name; empty for the default chain.
    pub name: String,
    /// Its figures.
    #[serde(flatten)]
    pub totals: Totals,
}

/// A chain in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Its clients.
    pub clients: u64,
    /// Those that are cut off from its path.
    pub cut_off: u64,
    /// Sockets that wait to be told their partner.
    pub asks: u64,
    /// Links between neighbours in the path.
    pub links: u64,
    /// Neighbours in the path that are not linked, and should be.
    pub broken_links: u64,
}

/// A window over one chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The chain's name; empty for the default chain.
    pub name: String,
    /// The last entry that is applied.
    pub applied: u64,
    /// The chain's figures.
    #[serde(flatten)]
    pub totals: Totals,
    /// The first client of the path.
    pub first: Option<u64>,
    /// The last one.
    pub last: Option<u64>,
    /// The clients after which the path is broken.
    pub gaps: Vec<u64>,
    /// Whether there are more of them.
    pub more_gaps: bool,
    /// Runs that are cut off.
    pub runs_cut_off: Vec<Run>,
    /// Whether clients come before those shown.
    pub earlier: bool,
    /// Whether clients come after those shown.
    pub later: bool,
    /// The client that was asked for.
    pub found: Option<u64>,
    /// The clients shown.
    pub window: Vec<Client>,
}

/// A run that is cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its first client.
    pub first: u64,
    /// Its last client.
    pub last: u64,
    /// The number of its clients.
    pub clients: u64,
    /// Since when.
    pub since_ms: u64,
    /// Why, in words.
    pub why: Word,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The number under which it joined; as long as no run was cut off, clients are in this order.
    pub serial: u64,
    /// The name of its chain; empty for the default chain.
    pub chain: String,
    /// The socket that faces the later neighbour.
    pub head: String,
    /// The socket that faces the earlier neighbour.
    pub tail: String,
    /// The source address that owns it.
    pub source: String,
    /// `member` of the path; `counts as first`: a member before which no client asks; or `cut off`.
    pub standing: Word,
    /// The instance that it asked last.
    pub instance: InstanceId,
    /// The id of that request.
    pub request: String,
    /// Since when it has its place.
    pub joined_ms: u64,
    /// Since when it was not heard of.
    pub refreshed_ms: u64,
    /// The state of its head.
    pub head_side: Side,
    /// The state of its tail.
    pub tail_side: Side,
}

/// The state of one socket of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Side {
    /// It waits to be told its partner.
    Asking(Ask),
    /// It is linked with its neighbour.
    Linked {
        /// The neighbour's socket.
        partner: String,
        /// Since when.
        since_ms: u64,
        /// The cause of the link: `join`, `repair` or `gather`.
        by: Word,
    },
    /// It has no partner and does not ask.
    Open,
    /// It was paired by a repair id with a socket that is not its neighbour.
    Paired {
        /// That socket.
        partner: String,
        /// Since when.
        since_ms: u64,
    },
    /// Its partner said that this client is gone; it has not asked since.
    Reported {
        /// Since when.
        since_ms: u64,
    },
    /// A state that a later version has added.
    #[serde(other)]
    Other,
}

/// A socket that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Since when.
    pub since_ms: u64,
    /// The time that is left, unless it finds its partner.
    pub left_ms: u64,
    /// The instance whose connection it is.
    pub instance: InstanceId,
    /// The id of the request.
    pub request: String,
    /// `CONNECT` or `RECONNECT`.
    pub by: Word,
    /// The repair id of a RECONNECT, for a reader with the token.
    pub id: Option<String>,
    /// The state of the connection: `open`, `half-closed`, `offered` (the partner's address is
    /// on the way to it) or `detached` (its instance is gone, and it may come back).
    pub line: Word,
}
