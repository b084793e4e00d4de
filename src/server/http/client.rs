//! How a client and what its two sockets do are told as JSON. Ages are in milliseconds of log
//! time. Scripts read it: keys are added, never renamed or taken away.

use serde::Serialize;

use super::gate::Reader;
use crate::{
    ids::{InstanceId, Part, SessionId, Timestamp},
    registry::{self, Cause, Line, Look, Past, Request, Serial},
};

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Client {
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
    pub standing: &'static str,
    /// The instance that it asked last.
    pub instance: InstanceId,
    /// The id of that request.
    pub request: String,
    /// Since when it has its place.
    pub joined_ms: u64,
    /// Since when it was not heard of.
    pub refreshed_ms: u64,
    /// What its head does.
    pub head_side: Side,
    /// What its tail does.
    pub tail_side: Side,
}

/// What one socket of a client does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum Side {
    /// It waits to be told its partner.
    Asking(Ask),
    /// It is linked with its neighbour.
    Linked {
        /// The neighbour's socket.
        partner: String,
        /// Since when.
        since_ms: u64,
        /// What brought them together: `join`, `repair` or `gather`.
        by: &'static str,
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
}

/// A socket that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Ask {
    /// Since when.
    pub since_ms: u64,
    /// How long it goes on, unless it finds its partner.
    pub left_ms: u64,
    /// The instance whose connection it is.
    pub instance: InstanceId,
    /// The id of the request.
    pub request: String,
    /// `CONNECT` or `RECONNECT`.
    pub by: &'static str,
    /// The repair id of a RECONNECT, for a reader with the token.
    pub id: Option<String>,
    /// What is known of the connection: `open`, `half-closed`, `offered` (the partner's address is
    /// on the way to it) or `detached` (its instance is gone, and it may come back).
    pub line: &'static str,
}

impl Client {
    /// The client with this serial, if there is one.
    pub(super) fn of(look: Look<'_>, serial: Serial, reader: Reader) -> Option<Self> {
        let client = look.registry.client(serial)?;
        let side = |part| Side::of(look, serial, client.side(part), part, reader);
        Some(Self {
            serial: serial.0,
            chain: client.chain.0.to_string(),
            head: client.head.0.to_string(),
            tail: client.tail.0.to_string(),
            source: client.source.to_string(),
            standing: match (look.registry.is_path(serial), client.is_marked) {
                (true, false) => "member",
                (true, true) => "counts as first",
                (false, _) => "cut off",
            },
            instance: client.session.instance,
            request: client.session.to_string(),
            joined_ms: look.now.ms_since(client.joined),
            refreshed_ms: look.now.ms_since(client.refreshed),
            head_side: side(Part::Head),
            tail_side: side(Part::Tail),
        })
    }
}

impl Side {
    fn of(
        look: Look<'_>,
        serial: Serial,
        side: &registry::Side,
        part: Part,
        reader: Reader,
    ) -> Self {
        let since = |at| look.now.ms_since(at);
        let partner =
            || look.registry.partner(serial, part).map(ToString::to_string).unwrap_or_default();
        match side {
            registry::Side::Asking(ask) => Self::Asking(Ask::of(look.now, ask, reader)),
            registry::Side::Linked { since: at, by } => {
                Self::Linked { partner: partner(), since_ms: since(*at), by: by.as_str() }
            }
            registry::Side::Open(Past::Reported { since: at, .. }) => {
                Self::Reported { since_ms: since(*at) }
            }
            registry::Side::Open(Past::New | Past::Lost | Past::Left { .. }) => Self::Open,
            registry::Side::Paired { since: at, .. } => {
                Self::Paired { partner: partner(), since_ms: since(*at) }
            }
        }
    }
}

impl Ask {
    pub(super) fn of(now: Timestamp, ask: &registry::Ask, reader: Reader) -> Self {
        let SessionId { instance, .. } = ask.session;
        let (by, id) = match &ask.request {
            Request::Connect => ("CONNECT", None),
            Request::Reconnect(id) => ("RECONNECT", reader.sees_ids.then(|| id.0.to_string())),
        };
        Self {
            since_ms: now.ms_since(ask.since),
            left_ms: ask.until.ms_since(now),
            instance,
            request: ask.session.to_string(),
            by,
            id,
            line: match ask.line {
                Line::Open => "open",
                Line::HalfClosed => "half-closed",
                Line::Offered(_) => "offered",
                Line::Detached => "detached",
            },
        }
    }
}

/// Why a client left or was cut off.
pub(super) fn of_cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Forgotten => "it was not heard of for the retention time",
        Cause::Lost => "those beside it reported that they lost it",
        Cause::MadeRoom => "it made room for another one: a table was full, or its source's share",
        Cause::Replaced => "its owner uses one of its sockets in another pair",
        Cause::Silent => {
            "it kept silent for the gather window while clients on both sides of it asked"
        }
    }
}
