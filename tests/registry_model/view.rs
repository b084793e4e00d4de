//! What the model and the registry both know, in one form, so that the two can be compared.

use std::collections::{BTreeMap, BTreeSet};

use emnetchain::{
    ids::{ChainName, Endpoint, Part, RepairId, SessionId, Source, Timestamp},
    registry::{self, AskRef, Line, Past, Place, Record, Registry, Serial, Totals},
};

use super::{Ask, By, Model, Name, PARTS, Partner, Run, at};

/// All that is known at rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    totals: Totals,
    paths: BTreeMap<ChainName, Vec<ClientView>>,
    cut_off: BTreeSet<Vec<ClientView>>,
    strangers: BTreeSet<(Endpoint, Source, AskView)>,
    answers: BTreeSet<(RepairId, Endpoint, Source, Endpoint, Timestamp)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ClientView {
    head: Endpoint,
    tail: Endpoint,
    source: Source,
    refreshed: Timestamp,
    counts_as_first: bool,
    sides: [SideView; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SideView {
    New,
    Lost,
    Left(Endpoint, Option<Timestamp>),
    Reported(Timestamp, bool),
    Asking(AskView),
    Linked,
    Paired(Endpoint),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct AskView {
    session: SessionId,
    since: Timestamp,
    until: Timestamp,
    id: Option<RepairId>,
    past: Box<SideView>,
    half_closed: bool,
    /// The socket that was offered to it.
    offered: Option<Endpoint>,
}

impl Model {
    /// What the model knows.
    pub(crate) fn view(&self) -> View {
        let all = |run: &Run| run.clients.iter().map(|name| self.client_view(*name)).collect();
        let path = |run: &&Run| run.cut.is_none();
        let stranger = |ask: &Ask| match &ask.by {
            By::Stranger(socket, source) => Some((socket.endpoint(), *source, self.ask_view(ask))),
            By::Client(..) => None,
        };
        let answer = |a: &super::Answer| {
            (a.id.clone(), a.socket.endpoint(), a.source, a.partner.endpoint(), a.until)
        };
        View {
            totals: self.totals(),
            paths: self.runs.iter().filter(path).map(|r| (r.chain.clone(), all(r))).collect(),
            cut_off: self.runs.iter().filter(|run| !path(run)).map(all).collect(),
            strangers: self.asks.iter().filter_map(stranger).collect(),
            answers: self.answers.iter().map(answer).collect(),
        }
    }

    /// How much of everything there is.
    pub(crate) fn totals(&self) -> Totals {
        let is_linked =
            |name: Name, part| matches!(self.client(name).partners[at(part)], Partner::Linked(..));
        let chains: BTreeSet<_> = self.clients.iter().map(|client| &client.chain).collect();
        let cut_off = self.runs.iter().filter(|run| run.cut.is_some());
        let paths = self.runs.iter().filter(|run| run.cut.is_none());
        let neighbours = paths.flat_map(|path| path.clients.windows(2));
        let (linked, others): (Vec<_>, Vec<_>) =
            neighbours.partition(|two| is_linked(two[0], Part::Head));
        let broken = others.iter().filter(|two| !self.client(two[1]).counts_as_first);
        Totals {
            clients: self.clients.len() as u64,
            cut_off: cut_off.map(|run| run.clients.len() as u64).sum(),
            chains: chains.len() as u64,
            asks: self.asks.len() as u64,
            links: linked.len() as u64,
            broken_links: broken.count() as u64,
            repairs_pending: self.asks.iter().filter(|ask| ask.id.is_some()).count() as u64,
            peers: self.peers.len() as u64,
        }
    }

    fn client_view(&self, name: Name) -> ClientView {
        let client = self.client(name);
        let side = |part| match (self.ask_of(name, part), &client.partners[at(part)]) {
            (Some(ask), _) => SideView::Asking(self.ask_view(ask)),
            (None, Partner::Linked(..)) => SideView::Linked,
            (None, Partner::Paired(partner)) => SideView::Paired(partner.endpoint()),
            (None, Partner::None) => self.past_view(client.pasts[at(part)]),
        };
        ClientView {
            head: client.sockets[at(Part::Head)].endpoint(),
            tail: client.sockets[at(Part::Tail)].endpoint(),
            source: client.source,
            refreshed: client.refreshed,
            counts_as_first: client.counts_as_first,
            sides: PARTS.map(side),
        }
    }

    fn past_view(&self, past: super::Past) -> SideView {
        match past {
            super::Past::New => SideView::New,
            super::Past::Lost => SideView::Lost,
            super::Past::Left(partner, doubt) => {
                // One that is gone for good is as good as any other that was lost.
                let of = self.clients.iter().find(|client| client.name == partner);
                let of = of.map(|client| client.sockets[at(Part::Head)].endpoint());
                of.map_or(SideView::Lost, |of| SideView::Left(of, doubt))
            }
            super::Past::Reported(at, again) => SideView::Reported(at, again),
        }
    }

    fn ask_view(&self, ask: &Ask) -> AskView {
        let past = match ask.by {
            By::Client(name, part) => self.client(name).pasts[at(part)],
            By::Stranger(..) => super::Past::Lost,
        };
        AskView {
            session: ask.session,
            since: ask.since,
            until: ask.until,
            id: ask.id.clone(),
            past: self.past_view(past).into(),
            half_closed: ask.half_closed && ask.offered.is_none(),
            offered: ask.offered.map(|other| self.socket(&self.found(other).by).endpoint()),
        }
    }
}

/// What the registry knows.
pub(crate) fn view_of(registry: &Registry) -> View {
    let mut view = View { totals: registry.totals(), ..View::default() };
    let records = || registry.image().records.iter().map(|(_, record)| record);
    let chains: BTreeSet<_> =
        records().filter_map(Record::client).map(|client| client.chain.clone()).collect();
    let all = |run: Vec<Serial>| -> Vec<ClientView> {
        run.into_iter().map(|serial| client_of(registry, serial)).collect()
    };
    for chain in chains {
        let window = registry.window(&chain, Place::Start, usize::MAX).expect("it has clients");
        for run in window.cut_off {
            let next = |serial: &Serial| registry.neighbour(*serial, Part::Head);
            let run = std::iter::successors(Some(run.first), next).collect();
            view.cut_off.insert(all(run));
        }
        if !window.clients.is_empty() {
            view.paths.insert(chain, all(window.clients));
        }
    }
    for record in records() {
        match record {
            Record::Caller(caller) => {
                let ask = ask_of(registry, &caller.ask);
                view.strangers.insert((caller.socket.endpoint(), caller.source, ask));
            }
            Record::Answer(a) => {
                let partner = a.partner.endpoint();
                view.answers.insert((a.id.clone(), a.socket, a.source, partner, a.until));
            }
            Record::Client(_) | Record::Peer(_) | Record::Section(_) => {}
        }
    }
    view
}

fn client_of(registry: &Registry, serial: Serial) -> ClientView {
    let client = registry.client(serial).expect("it is in a run");
    let side = |part| match client.side(part) {
        registry::Side::Open(past) => past_of(registry, *past),
        registry::Side::Asking(ask) => SideView::Asking(ask_of(registry, ask)),
        registry::Side::Linked { .. } => SideView::Linked,
        registry::Side::Paired { partner, .. } => SideView::Paired(partner.endpoint()),
    };
    ClientView {
        head: client.head.0.endpoint(),
        tail: client.tail.0.endpoint(),
        source: client.source,
        refreshed: client.refreshed,
        counts_as_first: client.is_marked,
        sides: PARTS.map(side),
    }
}

fn past_of(registry: &Registry, past: Past) -> SideView {
    match past {
        Past::New => SideView::New,
        Past::Lost => SideView::Lost,
        Past::Left { partner, doubt } => match registry.client(partner) {
            Some(partner) => SideView::Left(partner.head.0.endpoint(), doubt),
            None => SideView::Lost,
        },
        Past::Reported { since, again } => SideView::Reported(since, again),
    }
}

fn ask_of(registry: &Registry, ask: &registry::Ask) -> AskView {
    let socket = |at| match at {
        AskRef::Side(serial, part) => registry.client(serial)?.socket(part).endpoint().into(),
        AskRef::Caller(serial) => {
            let caller = registry.image().records.get(serial)?.caller()?;
            Some(caller.socket.endpoint())
        }
    };
    AskView {
        session: ask.session,
        since: ask.since,
        until: ask.until,
        id: match &ask.request {
            registry::Request::Connect => None,
            registry::Request::Reconnect(id) => Some(id.clone()),
        },
        past: past_of(registry, ask.past).into(),
        half_closed: ask.line == Line::HalfClosed,
        offered: match ask.line {
            Line::Offered(to) => socket(to),
            Line::Open | Line::HalfClosed | Line::Detached => None,
        },
    }
}
