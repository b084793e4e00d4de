//! Shows a client and its two sockets as the registry has them.

use super::gate::Reader;
use crate::{
    ids::{Part, SessionId, Timestamp},
    ops::api::{Ask, Client, Side},
    registry::{self, Cause, Line, Look, Past, Request, Serial},
};

impl Client {
    /// Returns the client with this serial, if there is one.
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
            }
            .into(),
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
                Self::Linked { partner: partner(), since_ms: since(*at), by: by.as_str().into() }
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
            by: by.into(),
            id,
            line: match ask.line {
                Line::Open => "open",
                Line::HalfClosed => "half-closed",
                Line::Offered(_) => "offered",
                Line::Detached => "detached",
            }
            .into(),
        }
    }
}

/// Returns why a client left or was cut off.
pub(super) fn of_cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Forgotten => "it was silent for the retention time",
        Cause::Lost => "its neighbours reported it as lost",
        Cause::MadeRoom => "it made room for another one: a table was full, or its source's share",
        Cause::Replaced => "its owner uses one of its sockets in another pair",
        Cause::Silent => {
            "it was silent for the gather window while clients on both sides of it asked"
        }
    }
}
