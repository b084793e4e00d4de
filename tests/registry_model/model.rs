//! A second implementation of `proto-docs/chains.md`, written from that page alone. It is as naive
//! as can be: runs are lists of clients, asks are one list, and every question is answered by
//! looking at all of them. Numbers in comments are the page's rules.

mod planted;
mod room;
mod rules;
mod view;

pub(crate) use planted::Planted;
pub(crate) use view::view_of;

use std::collections::BTreeMap;

use emnetchain::{
    ids::{
        ChainName, Endpoint, HeadAddr, Incarnation, InstanceId, Part, PeerId, RepairId, SessionId,
        Socket, Source, TailAddr, Timestamp,
    },
    registry::{Command, Effect, Message, Policy, Refusal, Then, Why},
};

/// Tells clients and asks apart; the older one has the lower name.
type Name = u64;

#[derive(Clone, Debug, PartialEq)]
enum Partner {
    None,
    Linked(Name, Part),
    Paired(Socket),
}

/// What became of the partner that a socket had.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Past {
    New,
    Lost,
    /// It reported it; until when it doubts it.
    Left(Name, Option<Timestamp>),
    /// When, and whether again and again.
    Reported(Timestamp, bool),
}

#[derive(Clone, Debug)]
struct Client {
    /// Also its number.
    name: Name,
    chain: ChainName,
    sockets: [Socket; 2],
    partners: [Partner; 2],
    /// Since when it has them.
    since: [Timestamp; 2],
    /// Whether they were partners before, and one of them reported the other.
    again: [bool; 2],
    pasts: [Past; 2],
    source: Source,
    refreshed: Timestamp,
    counts_as_first: bool,
}

#[derive(Clone, Debug)]
struct Run {
    chain: ChainName,
    /// `None` for the path; else when it was cut off.
    cut: Option<Timestamp>,
    clients: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq)]
enum By {
    Client(Name, Part),
    Stranger(Socket, Source),
}

#[derive(Clone, Debug)]
struct Ask {
    name: Name,
    by: By,
    session: SessionId,
    /// Orders the asks by when they began.
    number: u64,
    since: Timestamp,
    until: Timestamp,
    id: Option<RepairId>,
    half_closed: bool,
    /// The ask whose address it was offered.
    offered: Option<Name>,
}

#[derive(Clone, Debug)]
struct Answer {
    name: Name,
    id: RepairId,
    socket: Socket,
    source: Source,
    partner: Socket,
    until: Timestamp,
}

/// What a deadline is about; of equal ones the first in this order goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Ask(Order, Name),
    Forget(Name),
    Gap(Name),
    Front(Name),
    Free(Order),
}

/// The order of asks: clients before strangers, the older record first, tail before head.
type Order = (bool, Name, Option<Part>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    now: Timestamp,
    policy: Policy,
    last_name: Name,
    clients: Vec<Client>,
    runs: Vec<Run>,
    asks: Vec<Ask>,
    answers: Vec<Answer>,
    peers: BTreeMap<PeerId, (Name, Source, String, Timestamp)>,
    lives: BTreeMap<InstanceId, Incarnation>,
    effects: Vec<Effect>,
    /// A mistake, for a test of the sequences.
    planted: Planted,
    /// Which two messages, by their places among the effects, make one pair.
    pairs: Vec<(usize, usize)>,
}

/// What a command brings about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Brought {
    /// In an order that holds for each session.
    pub(crate) effects: Vec<Effect>,
    /// The two messages that tell a pair of each other, the first before the second.
    pub(crate) pairs: Vec<(Effect, Effect)>,
}

const PARTS: [Part; 2] = [Part::Tail, Part::Head];

impl Model {
    /// Carries out one command at the given log time.
    pub(crate) fn apply(&mut self, at: Timestamp, command: &Command) -> Brought {
        self.advance(at);
        self.execute(command);
        self.settle();
        let effects = std::mem::take(&mut self.effects);
        let pairs = std::mem::take(&mut self.pairs).into_iter();
        let pairs = pairs.map(|(a, b)| (effects[a].clone(), effects[b].clone())).collect();
        Brought { effects, pairs }
    }

    /// A model with a mistake.
    pub(crate) fn with(planted: Planted) -> Self {
        Self { planted, ..Self::default() }
    }

    /// When something becomes due next.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.next_due().map(|(at, _)| at)
    }

    /// The sockets of all clients, with their owners.
    pub(crate) fn sockets(&self) -> Vec<(Endpoint, Source)> {
        let of = |client: &Client, part| (client.sockets[at(part)].endpoint(), client.source);
        self.clients.iter().flat_map(|client| PARTS.map(|part| of(client, part))).collect()
    }

    fn advance(&mut self, at: Timestamp) {
        let at = at.max(self.now);
        while let Some((due_at, due)) = self.next_due().filter(|(due_at, _)| *due_at <= at) {
            self.now = self.now.max(due_at);
            self.expire(due);
            self.settle();
        }
        self.now = at;
    }

    fn next_due(&self) -> Option<(Timestamp, Due)> {
        let mut all: Vec<(Timestamp, Due)> = self.windows();
        for client in self.clients.iter().filter(|client| self.is_silent(client.name)) {
            let end = self.forgotten_at(client);
            all.extend(end.map(|end| (end, Due::Forget(client.name))));
        }
        all.extend(self.asks.iter().map(|ask| (ask.until, Due::Ask(order(ask), ask.name))));
        all.extend(self.answers.iter().map(|answer| (answer.until, Due::Forget(answer.name))));
        all.extend(self.peers.values().map(|(name, _, _, until)| (*until, Due::Forget(*name))));
        all.into_iter().min()
    }

    /// When a client is forgotten if it stays silent (18).
    fn forgotten_at(&self, client: &Client) -> Option<Timestamp> {
        let policy = &self.policy;
        let reported = client.pasts.iter().filter_map(|past| match past {
            Past::Reported(at, _) => Some(*at),
            Past::New | Past::Lost | Past::Left(..) => None,
        });
        let is_alone = client.partners.iter().all(|partner| *partner == Partner::None);
        let lost_ms = match (self.planted, policy.client_retention_ms) {
            (Planted::ReportedSoonForgotten, _) => policy.retention_ms,
            (_, 0) => policy.retention_ms.max(policy.ask_ms_max),
            (_, most) => policy.retention_ms.max(policy.ask_ms_max).min(most),
        };
        match reported.max().filter(|_| is_alone) {
            Some(reported) => Some(reported.plus_ms(lost_ms)),
            None if policy.client_retention_ms == 0 => None,
            None => Some(client.refreshed.plus_ms(policy.client_retention_ms)),
        }
    }

    fn expire(&mut self, due: Due) {
        match due {
            Due::Ask(_, name) => self.give_up(name, Why::Expired), // 18
            Due::Forget(name) => {
                if self.clients.iter().any(|client| client.name == name) {
                    self.forget(name);
                }
                self.answers.retain(|answer| answer.name != name);
                self.peers.retain(|_, (other, _, _, _)| *other != name);
            }
            Due::Gap(head) => self.close_gap(head),   // 9
            Due::Front(client) => self.front(client), // 10 and 12
            Due::Free(_) => {}                        // 11
        }
    }

    fn execute(&mut self, command: &Command) {
        match command {
            Command::AddPeer { session, source, address, candidate } => {
                let mut free = (0..1_000_000).map(|n| PeerId((candidate.0 + n) % 1_000_000));
                self.room_for_peer(*source); // 19
                let id = free.find(|id| !self.peers.contains_key(id)).expect("few are");
                let until = self.now.plus_ms(self.policy.retention_ms);
                let entry = (self.new_name(), *source, address.clone(), until);
                self.peers.insert(id, entry);
                self.tell(*session, Message::PeerAdded { id }, Then::Stay);
            }
            Command::AskIp { session, id } => {
                let message = match self.peers.remove(id) {
                    Some((_, _, address, _)) => Message::PeerFound { address },
                    None => Message::PeerFailed,
                };
                self.tell(*session, message, Then::Stay);
            }
            Command::Connect { session, source, chain, head, tail } => {
                self.connect(*session, *source, chain, head, tail);
            }
            Command::Delivered { session } => {
                for ask in self.held_by(*session) {
                    if ask.offered.is_some() {
                        self.conclude_offer(ask.name);
                    }
                }
            }
            Command::Disconnect { session } => self.disconnect(*session),
            Command::HalfClose { session } => {
                let held = self.asks.iter_mut().filter(|ask| ask.session == *session);
                held.for_each(|ask| ask.half_closed = true);
            }
            Command::Reconnect { session, source, id, orphan } => {
                self.reconnect(*session, *source, id, &orphan.0);
            }
            Command::SetPolicy(policy) => self.policy = *policy,
            Command::Start { instance, incarnation } => self.start(*instance, *incarnation),
            Command::Found { .. } | Command::Raise { .. } | Command::Tick => {}
            #[cfg(feature = "rules-3")]
            Command::Mark(_) => {}
        }
    }

    fn connect(
        &mut self,
        session: SessionId,
        source: Source,
        chain: &ChainName,
        head: &HeadAddr,
        tail: &TailAddr,
    ) {
        let sockets = [tail.0.clone(), head.0.clone()];
        let owners: Vec<Client> =
            self.clients.iter().filter(|c| owns_any(c, &sockets)).cloned().collect();
        if owners.iter().any(|owner| owner.source != source) {
            return self.refuse(session, Refusal::NotOwner); // 1
        }
        let same = |owner: &&Client| {
            owner.chain == *chain
                && PARTS.iter().all(|p| same(&owner.sockets[at(*p)], &sockets[at(*p)]))
        };
        if let Some(known) = owners.iter().find(same) {
            return self.resume(session, known.name); // 2
        }
        if owners.is_empty() && !self.room_for_client(source, chain) {
            return self.refuse(session, Refusal::NotOwner); // a mistake that was built in
        }
        for owner in owners {
            self.forget(owner.name); // 3
        }
        let name = self.new_name();
        self.clients.push(Client {
            name,
            chain: chain.clone(),
            sockets,
            partners: [Partner::None, Partner::None],
            since: [self.now; 2],
            again: [false; 2],
            pasts: [Past::New; 2],
            source,
            refreshed: self.now,
            counts_as_first: false,
        });
        self.append(chain, vec![name]);
        self.ask_by_connect(name, session); // 4
    }

    fn resume(&mut self, session: SessionId, name: Name) {
        for ask in self.asks_of(name) {
            if self.find(ask).is_some_and(|ask| ask.offered.is_some()) {
                self.conclude_offer(ask); // 15
            }
        }
        self.client_mut(name).refreshed = self.now;
        self.ask_by_connect(name, session);
        let partners: Vec<(Part, Socket)> =
            PARTS.iter().filter_map(|part| Some((*part, self.partner(name, *part)?))).collect();
        for (n, (part, ip)) in partners.iter().enumerate() {
            let last = n + 1 == partners.len();
            let then = if last { self.then(session) } else { Then::Stay };
            self.tell(session, Message::Link { part: *part, ip: ip.clone() }, then);
        }
    }

    /// Lets every socket of a client that has no partner ask, over this session.
    fn ask_by_connect(&mut self, name: Name, session: SessionId) {
        for part in PARTS {
            let chain = &self.client(name).chain;
            let first = part == Part::Tail && self.path(chain).first() == Some(&name);
            let waits = self.ask_of(name, part).is_some();
            if self.partner(name, part).is_none() && (waits || !first) {
                self.ask(By::Client(name, part), session, None);
            }
        }
    }

    fn reconnect(&mut self, session: SessionId, source: Source, id: &RepairId, socket: &Socket) {
        let owner = self.clients.iter().find_map(|client| {
            let part = PARTS.into_iter().find(|part| same(&client.sockets[at(*part)], socket))?;
            (client.source == source).then_some((client.name, part)) // 1
        });
        let by = match owner {
            Some((name, part)) => By::Client(name, part),
            None => By::Stranger(socket.clone(), source),
        };
        let stranger = By::Stranger(socket.clone(), source);
        let before = self.asks.iter().find(|ask| is_same(ask, &stranger, id)).cloned();
        if let Some(ask) = before.filter(|ask| owner.is_some() && self.source(&ask.by) == source) {
            self.give_up(ask.name, Why::Superseded); // 13
        }
        let waiting = self.asks.iter().find(|ask| is_same(ask, &by, id)).cloned();
        let theirs = waiting.filter(|ask| self.source(&ask.by) != source);
        let asked = |a: &Answer| a.id == *id && same(&a.socket, socket) && a.source == source;
        if let Some(n) = self.answers.iter().position(asked) {
            let partner = self.answers[n].partner.clone(); // 14
            let still = |(name, part)| {
                self.partner(name, part).is_some_and(|p| same(&p, &partner))
                    && !self.is_doubted(name, part)
            };
            if owner.is_none_or(still) {
                if let Some((name, _)) = owner {
                    self.client_mut(name).refreshed = self.now;
                }
                let then = self.then(session);
                return self.tell(session, Message::Repair { ip: partner }, then);
            }
            self.answers.remove(n);
        }
        if theirs.is_some() {
            return self.refuse(session, Refusal::NotOwner); // 13
        }
        match owner {
            Some((name, part)) => self.repair(session, id, name, part),
            None => self.wait_as_stranger(session, source, id, socket),
        }
    }

    /// Whether the partner is a client that was reported or cut off since they are partners (14).
    fn is_doubted(&self, name: Name, part: Part) -> bool {
        let since = self.client(name).since[at(part)];
        let Some(partner) = self.partner(name, part) else { return false };
        let mut owners =
            self.clients.iter().filter(|c| owns_any(c, std::slice::from_ref(&partner)));
        owners.any(|owner| {
            let is_reported = |part| {
                let past = owner.pasts[at(part)];
                self.is_open(owner.name, part)
                    && matches!(past, Past::Reported(at, _) if at >= since)
            };
            PARTS.into_iter().any(is_reported)
                || self.run(owner.name).cut.is_some_and(|cut| cut >= since)
        })
    }

    fn repair(&mut self, session: SessionId, id: &RepairId, name: Name, part: Part) {
        self.client_mut(name).refreshed = self.now;
        if let Some((gone, side)) = self.partner_client(name, part) {
            let report = Past::Reported(self.now, self.is_again(name, part));
            let gone = self.client_mut(gone);
            (gone.partners[at(side)], gone.pasts[at(side)]) = (Partner::None, report); // 7
        }
        if self.partner(name, part).is_some() {
            let (again, doubt) = (self.is_again(name, part), self.doubt_ends());
            let client = self.client_mut(name);
            client.pasts[at(part)] = match client.partners[at(part)] {
                Partner::Linked(other, _) => Past::Left(other, again.then_some(doubt)),
                Partner::Paired(_) | Partner::None => Past::Lost,
            };
            client.partners[at(part)] = Partner::None;
        }
        self.ask(By::Client(name, part), session, Some(id.clone()));
    }

    /// When a doubt that begins now ends (7).
    fn doubt_ends(&self) -> Timestamp {
        self.now.plus_ms(self.policy.gather_ms)
    }

    /// Whether a report of this socket's partner is one of several in a short time (7).
    fn is_again(&self, name: Name, part: Part) -> bool {
        let client = self.client(name);
        let ends = client.since[at(part)].plus_ms(self.policy.retention_ms);
        let is_linked = matches!(client.partners[at(part)], Partner::Linked(..));
        let again = client.again[at(part)] || self.planted == Planted::DoubtsFromTheFirst;
        is_linked && again && self.now < ends
    }

    fn wait_as_stranger(
        &mut self,
        session: SessionId,
        source: Source,
        id: &RepairId,
        socket: &Socket,
    ) {
        let by = By::Stranger(socket.clone(), source);
        let retry = self.asks.iter().any(|ask| is_same(ask, &by, id));
        if !retry {
            self.room_for_stranger(source); // 19
        }
        self.ask(by, session, Some(id.clone()));
    }

    fn disconnect(&mut self, session: SessionId) {
        for ask in self.held_by(session) {
            if ask.offered.is_none() {
                self.conclude_offer(ask.name); // 15
            }
            if self.find(ask.name).is_some() {
                self.end_ask(ask.name); // 16
            }
        }
    }

    fn start(&mut self, instance: InstanceId, incarnation: Incarnation) {
        let known = self.lives.entry(instance).or_default();
        if incarnation <= *known {
            return;
        }
        *known = incarnation;
        let grace = self.now.plus_ms(self.policy.resume_grace_ms); // 17
        for ask in &mut self.asks {
            if ask.session.instance == instance && ask.session.incarnation < incarnation {
                (ask.until, ask.half_closed) = (ask.until.min(grace), false);
            }
        }
    }

    /// Makes two asks partners, or offers one of them the other. True, for something happened.
    fn engage(&mut self, a: Name, b: Name) -> bool {
        let (a, b) = (self.found(a), self.found(b));
        let (first, other) = match (a.half_closed, b.half_closed) {
            (false, false) => {
                self.conclude(a.name, b.name, None);
                return true;
            }
            (true, true) if order(&a) < order(&b) => (a, b),
            (true, true) | (false, true) => (b, a),
            (true, false) => (a, b),
        };
        self.tell_partner(&first, &self.socket(&other.by), Then::Confirm); // 15
        let ask = self.asks.iter_mut().find(|ask| ask.name == first.name);
        ask.expect("just found").offered = Some(other.name);
        true
    }

    /// Makes partners of the offer that this ask has part in, if there is one.
    fn conclude_offer(&mut self, name: Name) {
        let part = |ask: &&Ask| ask.name == name || ask.offered == Some(name);
        let offer = self.asks.iter().filter(part).find_map(|ask| Some((ask.name, ask.offered?)));
        if let Some((offered, other)) = offer {
            self.conclude(offered, other, Some(offered));
        }
    }

    fn conclude(&mut self, a: Name, b: Name, offered: Option<Name>) {
        let (a, b) = (self.found(a), self.found(b));
        self.asks.retain(|ask| ask.name != a.name && ask.name != b.name);
        let linked = self.face(&a.by, &b.by);
        let a_first = match offered {
            Some(offered) => offered == a.name,
            None if !linked || a.id.is_some() && b.id.is_some() => a.number > b.number,
            None => matches!(a.by, By::Client(_, Part::Head)),
        };
        let told = if a_first { [(&a, &b), (&b, &a)] } else { [(&b, &a), (&a, &b)] };
        let again = linked && (self.has_left(&a.by, &b.by) || self.has_left(&b.by, &a.by));
        for (one, other) in told {
            let socket = self.socket(&other.by);
            let (now, until) = (self.now, self.now.plus_ms(self.policy.retention_ms));
            if let By::Client(name, part) = one.by {
                let client = self.client_mut(name);
                client.refreshed = now;
                client.counts_as_first &= !(linked && part == Part::Tail); // 12
                client.since[at(part)] = now;
                client.again[at(part)] = again;
                client.pasts[at(part)] = Past::Lost; // whenever it ends
                client.partners[at(part)] = match other.by {
                    By::Client(its_name, its_part) if linked => Partner::Linked(its_name, its_part),
                    By::Client(..) | By::Stranger(..) => Partner::Paired(socket.clone()),
                };
            }
            if let Some(id) = &one.id {
                let (own, source) = (self.socket(&one.by), self.source(&one.by));
                self.answers
                    .retain(|x| x.id != *id || !same(&x.socket, &own) || x.source != source);
                let (name, id) = (self.new_name(), id.clone());
                self.answers.push(Answer { name, id, socket: own, source, partner: socket, until });
                self.trim_answers(); // 19
            }
        }
        let place = self.effects.len();
        if offered.is_none() {
            self.pairs.push((place, place + 1));
        }
        for (one, other) in told {
            match offered {
                Some(name) if name == one.name => self.release_if_done(one.session, Why::Answered),
                Some(_) | None => {
                    self.tell_partner(one, &self.socket(&other.by), self.then(one.session))
                }
            }
        }
    }

    /// Whether a socket reported this client, its last partner.
    fn has_left(&self, by: &By, partner: &By) -> bool {
        match (by, partner) {
            (By::Client(name, part), By::Client(partner, _)) => {
                matches!(self.client(*name).pasts[at(*part)], Past::Left(it, _) if it == *partner)
            }
            (By::Client(..) | By::Stranger(..), _) => false,
        }
    }

    /// Forgets a client (16), and closes what it has.
    fn forget(&mut self, name: Name) {
        for ask in self.asks_of(name) {
            if self.find(ask).is_some_and(|ask| ask.offered.is_none()) {
                self.conclude_offer(ask); // 15: it was the other one
            }
        }
        for part in PARTS {
            if let Some((partner, side)) = self.partner_client(name, part) {
                self.client_mut(partner).partners[at(side)] = Partner::None;
            }
        }
        for ask in self.asks_of(name) {
            let ask = self.found(ask);
            self.asks.retain(|other| other.name != ask.name);
            self.release_if_done(ask.session, Why::TakenOut);
        }
        self.leave(name);
    }

    fn leave(&mut self, name: Name) {
        self.clients.retain(|client| client.name != name);
        for run in &mut self.runs {
            run.clients.retain(|client| *client != name);
        }
        self.runs.retain(|run| !run.clients.is_empty());
    }

    /// Ends an ask as a disconnect does (16).
    fn end_ask(&mut self, name: Name) {
        let ask = self.found(name);
        self.asks.retain(|other| other.name != name);
        if let By::Client(client, _) = ask.by {
            let leaves =
                |part: &Part| self.is_open(client, *part) && !self.is_reported(client, *part);
            if self.run(client).cut.is_none() && PARTS.iter().all(leaves) {
                self.leave(client);
            }
        }
    }

    fn give_up(&mut self, name: Name, why: Why) {
        self.conclude_offer(name); // 15
        if let Some(ask) = self.find(name) {
            self.end_ask(name);
            self.release_if_done(ask.session, why);
        }
    }

    /// Appends clients to the path of a chain.
    fn append(&mut self, chain: &ChainName, mut clients: Vec<Name>) {
        match self.runs.iter_mut().find(|run| run.chain == *chain && run.cut.is_none()) {
            Some(path) => path.clients.append(&mut clients),
            None => self.runs.push(Run { chain: chain.clone(), cut: None, clients }),
        }
    }

    /// Lets a socket ask; if it asks already, its ask goes over to the session.
    fn ask(&mut self, by: By, session: SessionId, id: Option<RepairId>) {
        let until = self.now.plus_ms(self.policy.ask_ms_max);
        let known = |ask: &&mut Ask| match &id {
            Some(id) => is_same(ask, &by, id),
            None => ask.by == by,
        };
        if let Some(ask) = self.asks.iter_mut().find(known) {
            let (old, name, offered) = (ask.session, ask.name, ask.offered.take());
            (ask.session, ask.until, ask.id, ask.half_closed) = (session, until, id, false);
            if old != session {
                self.release_if_done(old, Why::Superseded);
            }
            if let Some(other) = offered {
                self.conclude(name, other, None); // 15
            }
        } else {
            if let By::Client(name, part) = by
                && let Past::Reported(_, again) = self.client(name).pasts[at(part)]
            {
                let partner = self.neighbour(name, part).filter(|_| again && id.is_some());
                let doubt = Some(self.doubt_ends());
                let past = partner.map_or(Past::Lost, |partner| Past::Left(partner, doubt)); // 7
                self.client_mut(name).pasts[at(part)] = past; // only an open socket is reported
            }
            let (name, since) = (self.new_name(), self.now);
            let (half_closed, offered) = (false, None);
            self.asks.push(Ask {
                name,
                by,
                session,
                number: name,
                since,
                until,
                id,
                half_closed,
                offered,
            });
        }
    }

    fn tell_partner(&mut self, ask: &Ask, ip: &Socket, then: Then) {
        let ip = ip.clone();
        let message = match (&ask.id, &ask.by) {
            (None, By::Client(_, part)) => Message::Link { part: *part, ip },
            (Some(_), _) | (None, By::Stranger(..)) => Message::Repair { ip },
        };
        self.tell(ask.session, message, then);
    }

    fn tell(&mut self, session: SessionId, message: Message, then: Then) {
        self.effects.push(Effect::Tell { session, message, then });
    }

    fn refuse(&mut self, session: SessionId, why: Refusal) {
        self.effects.push(Effect::Refuse { session, why });
    }

    fn release_if_done(&mut self, session: SessionId, why: Why) {
        if self.held_by(session).is_empty() {
            self.effects.push(Effect::Release { session, why });
        }
    }

    fn then(&self, session: SessionId) -> Then {
        if self.held_by(session).is_empty() { Then::Close } else { Then::Stay }
    }

    fn held_by(&self, session: SessionId) -> Vec<Ask> {
        let mut held: Vec<Ask> =
            self.asks.iter().filter(|ask| ask.session == session).cloned().collect();
        held.sort_by_key(order);
        held
    }

    fn has_no_offer(&self, ask: &Ask) -> bool {
        ask.offered.is_none() && !self.asks.iter().any(|other| other.offered == Some(ask.name))
    }

    fn find(&self, name: Name) -> Option<Ask> {
        self.asks.iter().find(|ask| ask.name == name).cloned()
    }

    fn found(&self, name: Name) -> Ask {
        self.find(name).expect("an ask that is named was just seen")
    }

    fn ask_of(&self, client: Name, part: Part) -> Option<&Ask> {
        self.asks.iter().find(|ask| ask.by == By::Client(client, part))
    }

    fn asks_of(&self, client: Name) -> Vec<Name> {
        PARTS.iter().filter_map(|part| Some(self.ask_of(client, *part)?.name)).collect()
    }

    fn client(&self, name: Name) -> &Client {
        self.clients.iter().find(|client| client.name == name).expect("its asks end with it")
    }

    fn client_mut(&mut self, name: Name) -> &mut Client {
        self.clients.iter_mut().find(|client| client.name == name).expect("its asks end with it")
    }

    fn socket(&self, by: &By) -> Socket {
        match by {
            By::Client(name, part) => self.client(*name).sockets[at(*part)].clone(),
            By::Stranger(socket, _) => socket.clone(),
        }
    }

    fn source(&self, by: &By) -> Source {
        match by {
            By::Client(name, _) => self.client(*name).source,
            By::Stranger(_, source) => *source,
        }
    }

    fn partner(&self, name: Name, part: Part) -> Option<Socket> {
        match &self.client(name).partners[at(part)] {
            Partner::None => None,
            Partner::Linked(other, its) => Some(self.client(*other).sockets[at(*its)].clone()),
            Partner::Paired(socket) => Some(socket.clone()),
        }
    }

    /// The client's socket that this one is linked or paired with, if it is a client's.
    fn partner_client(&self, name: Name, part: Part) -> Option<(Name, Part)> {
        let (own, partner) = (&self.client(name).sockets[at(part)], self.partner(name, part)?);
        let sides = self.clients.iter().flat_map(|client| PARTS.map(|part| (client.name, part)));
        let is_mutual = |(other, side): &(Name, Part)| {
            same(&self.client(*other).sockets[at(*side)], &partner)
                && self.partner(*other, *side).is_some_and(|back| same(&back, own))
        };
        sides.into_iter().find(is_mutual)
    }

    fn is_silent(&self, name: Name) -> bool {
        self.asks_of(name).is_empty()
    }

    fn is_open(&self, name: Name, part: Part) -> bool {
        self.ask_of(name, part).is_none() && self.partner(name, part).is_none()
    }

    fn is_reported(&self, name: Name, part: Part) -> bool {
        let past = self.client(name).pasts[at(part)];
        self.is_open(name, part) && matches!(past, Past::Reported(..))
    }

    fn run(&self, name: Name) -> &Run {
        self.runs.iter().find(|run| run.clients.contains(&name)).expect("each client has a run")
    }

    fn path(&self, chain: &ChainName) -> &[Name] {
        let path = self.runs.iter().find(|run| run.chain == *chain && run.cut.is_none());
        path.map(|path| &path.clients[..]).unwrap_or_default()
    }

    /// The client that a socket faces in its run.
    fn neighbour(&self, name: Name, part: Part) -> Option<Name> {
        match part {
            Part::Head => self.after(name),
            Part::Tail => {
                let mut before = self.run(name).clients.iter().copied();
                before.find(|other| self.after(*other) == Some(name))
            }
        }
    }

    /// The next client in the run.
    fn after(&self, name: Name) -> Option<Name> {
        self.run(name).clients.iter().copied().skip_while(|other| *other != name).nth(1)
    }

    /// Whether these are the head of a client and the tail of the next one, either way round.
    fn face(&self, a: &By, b: &By) -> bool {
        match (a, b) {
            (By::Client(a, Part::Head), By::Client(b, Part::Tail))
            | (By::Client(b, Part::Tail), By::Client(a, Part::Head)) => self.after(*a) == Some(*b),
            _ => false,
        }
    }

    fn new_name(&mut self) -> Name {
        self.last_name += 1;
        self.last_name
    }
}

fn order(ask: &Ask) -> Order {
    match ask.by {
        By::Client(name, part) => (false, name, Some(part)),
        By::Stranger(..) => (true, ask.name, None),
    }
}

fn same(a: &Socket, b: &Socket) -> bool {
    a.endpoint() == b.endpoint()
}

/// Whether a RECONNECT by this socket with this id would repeat the ask.
fn is_same(ask: &Ask, by: &By, id: &RepairId) -> bool {
    match (&ask.by, by) {
        (By::Stranger(a, _), By::Stranger(b, _)) => ask.id.as_ref() == Some(id) && same(a, b),
        (a, b) => a == b,
    }
}

fn owns_any(client: &Client, sockets: &[Socket]) -> bool {
    client.sockets.iter().any(|own| sockets.iter().any(|socket| same(own, socket)))
}

fn at(part: Part) -> usize {
    match part {
        Part::Tail => 0,
        Part::Head => 1,
    }
}
