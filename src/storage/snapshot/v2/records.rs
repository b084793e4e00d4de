//! The records and settings of version 0.2.0 as they were, and what each one is now. Only names,
//! numbers and addresses are shared with the present registry.

use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;

use crate::{
    ids::{
        ChainName, Endpoint, HeadAddr, Part, PeerId, RepairId, SessionId, Socket, Source, TailAddr,
        Timestamp,
    },
    registry::{self, Serial},
};

#[derive(Deserialize)]
pub(super) enum Record {
    Client(Client),
    Caller(Caller),
    Answer(Answer),
    Peer(Peer),
}

impl Record {
    /// Converts it to a present record; `None` if it means nothing any more.
    pub(super) fn into_present(self) -> Option<registry::Record> {
        Some(match self {
            Self::Client(Client { standing: Standing::Out, .. }) => return None,
            Self::Client(old) => registry::Record::Client(old.into()),
            Self::Caller(old) => registry::Record::Caller(old.into()),
            Self::Answer(old) => registry::Record::Answer(old.into()),
            Self::Peer(old) => registry::Record::Peer(old.into()),
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Client {
    chain: ChainName,
    head: HeadAddr,
    tail: TailAddr,
    source: IpAddr,
    joined: Timestamp,
    refreshed: Timestamp,
    session: SessionId,
    standing: Standing,
    head_side: Side,
    tail_side: Side,
}

impl From<Client> for registry::Client {
    fn from(old: Client) -> Self {
        Self {
            chain: old.chain,
            head: old.head,
            tail: old.tail,
            source: Source::of(old.source),
            joined: old.joined,
            refreshed: old.refreshed,
            session: old.session,
            is_marked: false,
            head_side: old.head_side.into(),
            tail_side: old.tail_side.into(),
        }
    }
}

#[derive(Deserialize)]
enum Standing {
    Member,
    Out,
}

#[derive(Deserialize)]
enum Side {
    Open,
    Asking(Ask),
    Linked { since: Timestamp, by: LinkedBy },
    Paired { partner: Socket, since: Timestamp },
}

impl From<Side> for registry::Side {
    fn from(old: Side) -> Self {
        match old {
            Side::Open => Self::Open(registry::Past::New),
            Side::Asking(ask) => Self::Asking(Box::new(ask.into())),
            Side::Linked { since, by } => Self::Linked { since, by: by.into() },
            Side::Paired { partner, since } => Self::Paired { partner: Box::new(partner), since },
        }
    }
}

#[derive(Deserialize)]
enum LinkedBy {
    Gather,
    Join,
    Repair,
}

impl From<LinkedBy> for registry::LinkedBy {
    fn from(old: LinkedBy) -> Self {
        match old {
            LinkedBy::Gather => Self::Gather,
            LinkedBy::Join => Self::Join,
            LinkedBy::Repair => Self::Repair,
        }
    }
}

#[derive(Deserialize)]
struct Ask {
    session: SessionId,
    number: Serial,
    since: Timestamp,
    until: Timestamp,
    request: Request,
    line: Line,
}

impl From<Ask> for registry::Ask {
    fn from(old: Ask) -> Self {
        let Ask { session, number, since, until, request, line } = old;
        let past = match request {
            Request::Connect => registry::Past::New,
            Request::Reconnect(_) => registry::Past::Lost,
        };
        Self { session, number, since, until, request: request.into(), line: line.into(), past }
    }
}

#[derive(Deserialize)]
enum AskRef {
    Side(Serial, Part),
    Caller(Serial),
}

impl From<AskRef> for registry::AskRef {
    fn from(old: AskRef) -> Self {
        match old {
            AskRef::Side(serial, part) => Self::Side(serial, part),
            AskRef::Caller(serial) => Self::Caller(serial),
        }
    }
}

#[derive(Deserialize)]
enum Request {
    Connect,
    Reconnect(RepairId),
}

impl From<Request> for registry::Request {
    fn from(old: Request) -> Self {
        match old {
            Request::Connect => Self::Connect,
            Request::Reconnect(id) => Self::Reconnect(id),
        }
    }
}

#[derive(Deserialize)]
enum Line {
    Open,
    HalfClosed,
    Offered(AskRef),
    Detached,
}

impl From<Line> for registry::Line {
    fn from(old: Line) -> Self {
        match old {
            Line::Open => Self::Open,
            Line::HalfClosed => Self::HalfClosed,
            Line::Offered(partner) => Self::Offered(partner.into()),
            Line::Detached => Self::Detached,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Caller {
    socket: Socket,
    source: IpAddr,
    ask: Ask,
}

impl From<Caller> for registry::Caller {
    fn from(old: Caller) -> Self {
        let Caller { socket, source, ask } = old;
        Self { socket, source: Source::of(source), ask: ask.into() }
    }
}

#[derive(Deserialize)]
pub(super) struct Answer {
    id: RepairId,
    socket: Endpoint,
    source: IpAddr,
    partner: Socket,
    until: Timestamp,
}

impl From<Answer> for registry::Answer {
    fn from(old: Answer) -> Self {
        let Answer { id, socket, source, partner, until } = old;
        Self { id, socket, source: Source::of(source), partner, until }
    }
}

#[derive(Deserialize)]
pub(super) struct Peer {
    id: PeerId,
    address: String,
    until: Timestamp,
}

impl From<Peer> for registry::Peer {
    fn from(old: Peer) -> Self {
        Self {
            id: old.id,
            source: Source::of(Ipv4Addr::UNSPECIFIED.into()), // it was not kept
            address: old.address,
            until: old.until,
            #[cfg(feature = "rules-3")]
            made_by: None,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Policy {
    resume_grace_ms: u64,
    gather_ms: u64,
    ask_ms_max: u64,
    retention_ms: u64,
    client_retention_ms: u64,
    clients_max: u64,
    clients_per_source_max: u64,
    repairs_max: u64,
    repairs_per_source_max: u64,
    peers_max: u64,
}

impl From<Policy> for registry::Policy {
    fn from(old: Policy) -> Self {
        Self {
            resume_grace_ms: old.resume_grace_ms,
            gather_ms: old.gather_ms,
            ask_ms_max: old.ask_ms_max,
            retention_ms: old.retention_ms,
            client_retention_ms: old.client_retention_ms,
            clients_max: old.clients_max,
            clients_per_source_max: old.clients_per_source_max,
            repairs_max: old.repairs_max,
            repairs_per_source_max: old.repairs_per_source_max,
            peers_max: old.peers_max,
            peers_per_source_max: Self::default().peers_per_source_max,
        }
    }
}
