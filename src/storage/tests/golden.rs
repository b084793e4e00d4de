//! One of each kind of command and record, for golden bytes.

use super::*;
use crate::{
    ids::{Endpoint, HistoryId, OrphanAddr, Source},
    registry::{AskRef, BatchId, Cause, Command, Cut, LinkedBy, Past, Policy, Rules, Section},
};

pub(super) fn batch() -> BatchId {
    BatchId { instance: InstanceId(3), incarnation: Incarnation(400), number: 70_000 }
}

fn session() -> SessionId {
    SessionId { instance: InstanceId(3), incarnation: Incarnation(400), connection: 5 }
}

fn socket(text: &str) -> Socket {
    Socket::parse(text).unwrap()
}

fn source() -> Source {
    Source::of(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))
}

/// Each command.
pub(super) fn commands() -> Vec<(&'static str, Command)> {
    let (session, source) = (session(), source());
    let (head, tail) = (HeadAddr(socket("192.0.2.1:1024")), TailAddr(socket("[2001:db8::1]:7")));
    let (chain, id) = (ChainName("name".into()), RepairId("4711".into()));
    let (instance, incarnation) = (InstanceId(3), Incarnation(400));
    let spelled = OrphanAddr(socket("[::ffff:192.0.2.1]:9"));
    vec![
        (
            "add-peer",
            Command::AddPeer {
                session,
                source,
                address: "any text".into(),
                candidate: PeerId(123_456),
            },
        ),
        ("ask-ip", Command::AskIp { session, id: PeerId(123_456) }),
        ("connect", Command::Connect { session, source, chain, head, tail }),
        ("delivered", Command::Delivered { session }),
        ("disconnect", Command::Disconnect { session }),
        ("half-close", Command::HalfClose { session }),
        ("reconnect", Command::Reconnect { session, source, id, orphan: spelled }),
        ("set-policy", Command::SetPolicy(Policy::default())),
        ("start", Command::Start { instance, incarnation }),
        ("tick", Command::Tick),
        ("found", Command::Found { history: HistoryId(0x1234) }),
        ("raise", Command::Raise { rules: Rules::FIRST }),
    ]
}

fn ask(request: Request, line: Line) -> Ask {
    let (number, since, until) = (Serial(9), Timestamp(1000), Timestamp(90_000));
    Ask { session: session(), number, since, until, request, line, past: Past::Lost }
}

fn client(head_side: Side, tail_side: Side) -> Record {
    Record::Client(Client {
        chain: ChainName("".into()),
        head: HeadAddr(socket("192.0.2.1:1024")),
        tail: TailAddr(socket("[2001:db8::1]:7")),
        source: source(),
        joined: Timestamp(1000),
        refreshed: Timestamp(2000),
        session: session(),
        is_marked: true,
        head_side,
        tail_side,
    })
}

/// Each kind of record, and each state that one can be in.
pub(super) fn records() -> Vec<(&'static str, Record)> {
    let by_id = || Request::Reconnect(RepairId("4711".into()));
    let asking = |request, line| Side::Asking(Box::new(ask(request, line)));
    let linked = |by| Side::Linked { since: Timestamp(1000), by };
    let paired = Side::Paired { partner: socket("192.0.2.9:1").into(), since: Timestamp(1000) };
    let partner = socket("192.0.2.9:1");
    let reported = Side::Open(Past::Reported { since: Timestamp(1500), again: true });
    let left = Side::Open(Past::Left { partner: Serial(4), doubt: Some(Timestamp(1900)) });
    let offered = Line::Offered(AskRef::Side(Serial(4), crate::ids::Part::Head));
    let endpoint: Endpoint = socket("192.0.2.1:5").endpoint();
    let section = |last, next, cut| {
        let (chain, first) = (ChainName("c".into()), Serial(11));
        Record::Section(Section { chain, first, last, next, cut })
    };
    let cut = Cut { since: Timestamp(1000), cause: Cause::Silent };
    vec![
        ("client-new", client(Side::Open(Past::New), Side::Open(Past::Lost))),
        ("client-reported", client(reported.clone(), reported)),
        ("client-linked", client(linked(LinkedBy::Join), linked(LinkedBy::Repair))),
        ("client-doubts", client(linked(LinkedBy::Again), left)),
        ("client-paired", client(paired, linked(LinkedBy::Gather))),
        (
            "client-asks",
            client(asking(Request::Connect, Line::HalfClosed), asking(by_id(), offered)),
        ),
        (
            "caller",
            Record::Caller(Caller {
                socket: socket("192.0.2.1:5"),
                source: source(),
                ask: ask(by_id(), Line::Detached),
            }),
        ),
        (
            "caller-offered",
            Record::Caller(Caller {
                socket: socket("192.0.2.1:5"),
                source: source(),
                ask: ask(by_id(), Line::Offered(AskRef::Caller(Serial(4)))),
            }),
        ),
        (
            "answer",
            Record::Answer(Answer {
                id: RepairId("4711".into()),
                socket: endpoint,
                source: source(),
                partner,
                until: Timestamp(90_000),
            }),
        ),
        ("peer", Record::Peer(peer(3, Timestamp(90_000)))),
        ("section", section(Some(Serial(40)), Some(Serial(7)), Some(cut))),
        ("section-open", section(None, None, None)),
    ]
}
