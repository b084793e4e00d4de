//! Invariants over what sessions were told. They know the commands and the effects, and nothing of
//! how the registry or the model comes to them. The names are those of `proto-docs/chains.md`
//! (I) and of the checker for histories of whole clusters (S).
//!
//! What a socket was told is *in force* until something happened that may end it: a RECONNECT for
//! it or for its partner, a new pair that replaces one of the two, the gather window, or time.

mod invariant;

use std::collections::BTreeMap;

use emnetchain::{
    ids::{ChainName, Endpoint, Part, RepairId, SessionId, Source, Timestamp},
    registry::{Applied, Command, Effect, Ended, Message, Note, Policy, Then, What, Why},
};

/// A socket as one source address speaks of it; one of no client speaks under an id.
type Key = (Endpoint, Source, Option<RepairId>);

#[derive(Clone, Debug)]
struct Request {
    session: SessionId,
    source: Source,
    /// `None` for a RECONNECT.
    chain: Option<ChainName>,
    sockets: Vec<(Endpoint, Option<Part>)>,
    id: Option<RepairId>,
    /// A RECONNECT for a socket of no client.
    stranger: bool,
    /// Its session is closed or lost.
    gone: bool,
}

#[derive(Clone, Debug)]
struct Fact {
    partner: Endpoint,
    at: u64,
    /// It came about by a common id, so it need not be a link of a path.
    by_id: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    chain: ChainName,
    head: Endpoint,
    tail: Endpoint,
    source: Source,
    /// When it was first seen, and when it last asked for anything.
    first: u64,
    last: u64,
    /// Since when its tail has waited for a partner.
    waits: Option<Timestamp>,
    /// When its tail was told one after the gather window, as one that was cut off is.
    back: u64,
}

impl Known {
    fn is(&self, other: &Self) -> bool {
        let name = |client: &Self| (client.chain.clone(), client.head, client.tail, client.source);
        name(self) == name(other)
    }

    fn owns(&self, socket: Endpoint) -> bool {
        self.head == socket || self.tail == socket
    }
}

/// One step from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) command: &'a Command,
    pub(crate) applied: &'a Applied,
    /// Log time before the command and after.
    pub(crate) since: Timestamp,
    pub(crate) now: Timestamp,
    pub(crate) policy: &'a Policy,
    /// The sockets of clients that are known afterwards, with their owners.
    pub(crate) known: &'a [(Endpoint, Source)],
    /// Clients in the registry before and after.
    pub(crate) clients: (u64, u64),
}

/// What is known from outside.
#[derive(Debug, Default)]
pub(crate) struct Told {
    clock: u64,
    requests: Vec<Request>,
    clients: Vec<Known>,
    facts: BTreeMap<Key, Fact>,
    /// What half-closed sessions were offered and did not confirm yet.
    offers: BTreeMap<Key, (Endpoint, SessionId)>,
    touched: BTreeMap<Key, u64>,
    all_touched: u64,
    /// What was told under an id, and when first, or earlier.
    answers: BTreeMap<(RepairId, Endpoint, Source), (Endpoint, Timestamp)>,
    new_policy: bool,
    /// The clients that this step may take out: what they are told first is over with it.
    gone: Vec<Known>,
    /// Every partner told in this step.
    said: Vec<(Endpoint, Endpoint)>,
}

/// A message that made or repeated a partner.
struct Tell<'a> {
    me: Key,
    partner: Endpoint,
    request: &'a Request,
}

impl Told {
    /// Takes a step in and checks every invariant.
    pub(crate) fn see(&mut self, seen: Seen<'_>) -> Result<(), String> {
        self.new_policy |= matches!(seen.command, Command::SetPolicy(_));
        let refused = seen.applied.effects.iter().any(|e| matches!(e, Effect::Refuse { .. }));
        (self.gone, self.said) = (Vec::new(), Vec::new());
        if !refused {
            self.clock += 1;
            match seen.command {
                Command::Connect { session, source, chain, head, tail } => {
                    let (head, tail) = (head.0.endpoint(), tail.0.endpoint());
                    let (chain, source) = (chain.clone(), *source);
                    let first = self.clock;
                    let (waits, back, last) = (Some(seen.now), 0, first);
                    let client = Known { chain, head, tail, source, first, last, waits, back };
                    self.invariant_s8_i1_resume(seen, *session, &client)?;
                    self.gone = self.connected(*session, client);
                }
                Command::Reconnect { session, source, id, orphan } => {
                    let key = (id.clone(), orphan.0.endpoint(), *source);
                    self.invariant_i4_retry(seen, *session, &key)?;
                    self.gone = self.reconnected(seen, key, *session);
                }
                Command::AddPeer { .. }
                | Command::AskIp { .. }
                | Command::Delivered { .. }
                | Command::Disconnect { .. }
                | Command::HalfClose { .. }
                | Command::SetPolicy(_)
                | Command::Start { .. }
                | Command::Found { .. }
                | Command::Raise { .. }
                | Command::Tick => {}
                #[cfg(feature = "rules-3")]
                Command::Mark(_) => {}
            }
        }
        self.clock += 1;
        let unsure = self.unsure(seen, self.gone.len());
        let mut fresh = Vec::new();
        let mut closed = Vec::new();
        for effect in &seen.applied.effects {
            match effect {
                Effect::Tell { session, message, then } => {
                    closed.extend((*then == Then::Close).then_some(*session));
                    let Some(partner) = partner_of(message) else { continue };
                    let request = self.requests.iter().rfind(|r| r.session == *session).cloned();
                    let request = request.ok_or("S9: told one that did not ask")?;
                    let me = socket_of(&request, message).ok_or("S9: told of an alien socket")?;
                    let me = (me, request.source, request.id.clone().filter(|_| request.stranger));
                    let tell = Tell { me, partner, request: &request };
                    let new = self.told(&tell, *then, seen, unsure)?;
                    fresh.extend(new.then_some((tell.me, partner)));
                }
                Effect::Release { session, why: Why::Answered } => closed.push(*session),
                Effect::Release { session, .. } => {
                    self.offers.retain(|_, (_, other)| other != session);
                    self.close(*session);
                }
                Effect::Refuse { .. } => {}
            }
        }
        let news = !fresh.is_empty();
        for (me, partner) in fresh {
            self.invariant_s2_i2_symmetric(&me, partner)?;
        }
        if let Command::Disconnect { session } = seen.command {
            self.offers.retain(|_, (_, other)| other != session);
            closed.push(*session);
        }
        closed.into_iter().for_each(|session| self.close(session));
        self.forget(seen);
        if news { self.invariant_s4_i3_paths() } else { Ok(()) }
    }

    /// Notes a CONNECT, and ends what it may end. Comes back with the clients it replaces.
    fn connected(&mut self, session: SessionId, client: Known) -> Vec<Known> {
        self.requests.push(Request {
            session,
            source: client.source,
            chain: Some(client.chain.clone()),
            sockets: vec![(client.tail, Some(Part::Tail)), (client.head, Some(Part::Head))],
            id: None,
            stranger: false,
            gone: false,
        });
        if let Some(known) = self.clients.iter_mut().find(|known| known.is(&client)) {
            known.last = client.last;
            known.waits = known.waits.or(client.waits);
            return Vec::new();
        }
        let replaced = |known: &Known| {
            known.source == client.source && (known.owns(client.head) || known.owns(client.tail))
        };
        let gone: Vec<Known> = self.clients.iter().filter(|c| replaced(c)).cloned().collect();
        self.clients.retain(|known| !gone.contains(known));
        gone.iter().chain([&client]).for_each(|client| self.touch(client));
        self.clients.push(client);
        gone
    }

    /// Notes a RECONNECT, and ends what it may end. Comes back with the clients it may take out.
    fn reconnected(
        &mut self,
        seen: Seen<'_>,
        key: (RepairId, Endpoint, Source),
        session: SessionId,
    ) -> Vec<Known> {
        let (id, socket, source) = key.clone();
        let known = seen.known.contains(&(socket, source));
        let me = (socket, source, Some(id.clone()).filter(|_| !known));
        self.requests.push(Request {
            session,
            source,
            chain: None,
            sockets: vec![(socket, None)],
            id: Some(id),
            stranger: !known,
            gone: false,
        });
        let mine = self.clients.iter_mut().find(|c| c.owns(socket) && c.source == source);
        if let Some(client) = mine {
            client.last = self.clock;
            if client.tail == socket {
                client.waits = client.waits.or(Some(seen.now));
            }
        }
        let lost = self.facts.get(&me).map(|fact| fact.partner);
        let answer = self.answers.remove(&key);
        let remembered = answer.map(|(partner, _)| partner).filter(|_| !known);
        let told = told(seen.applied, session);
        // Another one that waits for the very socket is no partner of before.
        let waits = |request: &Request| {
            let covers = |socket| request.stranger && !request.gone && covers(request, socket);
            request.id.as_ref() == Some(&key.0) && lost.is_some_and(covers)
        };
        let same = [lost.filter(|_| !self.requests.iter().any(waits)), remembered];
        if told.iter().any(|told| same.contains(&Some(*told))) {
            self.answers.extend(answer.map(|answer| (key, answer)));
            return Vec::new(); // a retry
        }
        let partners: Vec<Key> =
            self.facts.keys().filter(|key| Some(key.0) == lost).cloned().collect();
        self.touched.extend(partners.into_iter().chain([me]).map(|key| (key, self.clock)));
        let owns = |client: &&Known| lost.is_some_and(|lost| client.owns(lost));
        let gone: Vec<Known> = self.clients.iter().filter(owns).cloned().collect();
        gone.iter().for_each(|client| self.touch(client));
        gone
    }

    /// Takes a message in; true if it made a new partner.
    fn told(
        &mut self,
        tell: &Tell<'_>,
        then: Then,
        seen: Seen<'_>,
        unsure: bool,
    ) -> Result<bool, String> {
        let (socket, source, _) = tell.me;
        let its = |known: &&mut Known| known.tail == socket && known.source == source;
        if let Some(client) = self.clients.iter_mut().find(its)
            && let Some(since) = client.waits.take()
            && since.plus_ms(seen.policy.gather_ms) <= seen.now
        {
            client.back = self.clock;
        }
        let answer =
            tell.request.id.as_ref().and_then(|id| self.answers.get(&(id.clone(), socket, source)));
        let repeated = answer.is_some_and(|(partner, _)| *partner == tell.partner)
            || self.facts.get(&tell.me).is_some_and(|fact| fact.partner == tell.partner);
        if then == Then::Confirm {
            self.invariant_s9_i5_no_phantom(tell)?;
            self.offers.insert(tell.me.clone(), (tell.partner, tell.request.session));
            return Ok(false);
        }
        self.invariant_s7_i4_exactly_two(tell, seen)?;
        if !repeated {
            self.invariant_s9_i5_no_phantom(tell)?;
        }
        if !unsure {
            self.invariant_s1_one_partner(tell)?;
        }
        if !unsure && !repeated {
            self.invariant_s3_i2_injective(tell)?;
        }
        let by_id = tell.request.stranger || self.by_id(tell);
        let (at, partner) = (self.clock, tell.partner);
        if !(repeated && self.in_force(&tell.me)) {
            self.facts.insert(tell.me.clone(), Fact { partner, at, by_id });
        }
        self.said.push((tell.me.0, partner));
        self.offers.remove(&tell.me);
        let confirms = |(key, (offered, _)): &(&Key, &(Endpoint, SessionId))| {
            key.0 == partner && *offered == tell.me.0
        };
        let confirmed = self.offers.iter().filter(confirms).map(|(key, (_, s))| (key.clone(), *s));
        for (key, session) in confirmed.collect::<Vec<_>>() {
            self.offers.remove(&key);
            self.said.push((key.0, tell.me.0));
            let asked = self.requests.iter().rfind(|request| request.session == session);
            if let Some(id) = asked.and_then(|request| request.id.clone()) {
                self.answers.insert((id, key.0, key.1), (tell.me.0, seen.since));
            }
            self.facts.insert(key, Fact { partner: tell.me.0, at, by_id });
        }
        Ok(!repeated)
    }

    fn in_force(&self, key: &Key) -> bool {
        let touched = self.touched.get(key).copied().unwrap_or_default().max(self.all_touched);
        let over = |fact: &Fact| {
            let mut lost = self.gone.iter().flat_map(|client| [client.head, client.tail]);
            fact.at == self.clock && lost.any(|socket| socket == key.0 || socket == fact.partner)
        };
        self.facts.get(key).is_some_and(|fact| fact.at > touched && !over(fact))
    }

    /// Whether more clients may have been taken out than the command says.
    fn unsure(&self, seen: Seen<'_>, explained: usize) -> bool {
        let notes = &seen.applied.notes;
        let is_over =
            |note: &&Note| matches!(note.what, What::Ended(Ended::Expired(_)) | What::Forgotten(_));
        let taken_out = notes.iter().filter(|note| matches!(note.what, What::TakenOut(_))).count();
        let has_expired = notes.iter().any(|note| is_over(&note));
        taken_out > if seen.since < seen.now { 0 } else { explained } || has_expired
    }

    fn forget(&mut self, seen: Seen<'_>) {
        self.clock += 1;
        if self.unsure(seen, self.gone.len()) {
            self.all_touched = self.clock;
        }
        let known = |client: &Known| seen.known.contains(&(client.head, client.source));
        for client in self.clients.iter().filter(|client| !known(client)) {
            for socket in [client.head, client.tail] {
                self.facts.remove(&(socket, client.source, None));
            }
        }
        self.clients.retain(known);
        for client in std::mem::take(&mut self.gone) {
            self.touch(&client);
        }
    }

    /// Each link that a client was told of may have ended.
    fn touch(&mut self, client: &Known) {
        for socket in [client.head, client.tail] {
            let others = self.facts.iter().filter(|(_, fact)| fact.partner == socket);
            self.touched.extend(others.map(|(key, _)| (key.clone(), self.clock)));
            self.touched.insert((socket, client.source, None), self.clock);
        }
    }

    fn close(&mut self, session: SessionId) {
        for request in self.requests.iter_mut().filter(|request| request.session == session) {
            request.gone = true;
        }
    }
}

/// The partners that a session is told in a step.
fn told(applied: &Applied, session: SessionId) -> Vec<Endpoint> {
    let messages = applied.effects.iter().filter_map(|effect| match effect {
        Effect::Tell { session: to, message, .. } => Some(message).filter(|_| *to == session),
        Effect::Release { .. } | Effect::Refuse { .. } => None,
    });
    messages.filter_map(partner_of).collect()
}

fn covers(request: &Request, socket: Endpoint) -> bool {
    request.sockets.iter().any(|(own, _)| *own == socket)
}

fn partner_of(message: &Message) -> Option<Endpoint> {
    match message {
        Message::Link { ip, .. } | Message::Repair { ip } => Some(ip.endpoint()),
        Message::PeerAdded { .. } | Message::PeerFound { .. } | Message::PeerFailed => None,
    }
}

fn socket_of(request: &Request, message: &Message) -> Option<Endpoint> {
    let wanted = match message {
        Message::Link { part, .. } => Some(*part),
        Message::Repair { .. }
        | Message::PeerAdded { .. }
        | Message::PeerFound { .. }
        | Message::PeerFailed => None,
    };
    request.sockets.iter().find(|(_, part)| *part == wanted).map(|(socket, _)| *socket)
}
