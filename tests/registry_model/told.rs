//! Invariants over what sessions were told. They know the commands and the effects, and nothing of
//! how the registry or the model comes to them. The names are those of `proto-docs/chains.md`
//! (I) and of the checker for histories of whole clusters (S).
//!
//! What a socket was told is *in force* until something happened that may end it: a RECONNECT for
//! it or for its partner, a new pair that replaces one of the two, the gather window, or time.

use std::{collections::BTreeMap, net::IpAddr};

use emnetchain::{
    ids::{ChainName, Endpoint, Part, RepairId, SessionId, Socket, Timestamp},
    registry::{Applied, Command, Effect, Message, Note, Policy, Then, Why},
};

/// A socket as one source address speaks of it; one of no client speaks under an id.
type Key = (Endpoint, IpAddr, Option<RepairId>);

#[derive(Clone, Debug)]
struct Request {
    session: SessionId,
    source: IpAddr,
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
    source: IpAddr,
    /// When it was first seen, and when it last asked for anything.
    first: u64,
    last: u64,
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
    pub(crate) known: &'a [(Endpoint, IpAddr)],
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
    answers: BTreeMap<(RepairId, Endpoint, IpAddr), (Endpoint, Timestamp)>,
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
            self.invariant_i1_s8_resume(seen)?;
            self.gone = self.ask(seen);
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
                    let request = request.ok_or("S9: told who did not ask")?;
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
        for (me, partner) in fresh {
            self.invariant_s2_i2_symmetric(&me, partner)?;
        }
        if let Command::Disconnect { session } = seen.command {
            self.offers.retain(|_, (_, other)| other != session);
            closed.push(*session);
        }
        closed.into_iter().for_each(|session| self.close(session));
        self.forget(seen);
        self.invariant_s4_i3_paths()
    }

    /// Notes the request, and ends what it may end. Comes back with the clients it may take out.
    fn ask(&mut self, seen: Seen<'_>) -> Vec<Known> {
        self.clock += 1;
        let clock = self.clock;
        match seen.command {
            Command::Connect { session, source, chain, head, tail } => {
                let (head, tail) = (head.0.endpoint(), tail.0.endpoint());
                let known = Known {
                    chain: chain.clone(),
                    head,
                    tail,
                    source: *source,
                    first: clock,
                    last: clock,
                };
                self.requests.push(Request {
                    session: *session,
                    source: *source,
                    chain: Some(chain.clone()),
                    sockets: vec![(tail, Some(Part::Tail)), (head, Some(Part::Head))],
                    id: None,
                    stranger: false,
                    gone: false,
                });
                let same = |c: &Known| {
                    c.source == *source && (&c.chain, c.head, c.tail) == (chain, head, tail)
                };
                if let Some(client) = self.clients.iter_mut().find(|client| same(client)) {
                    client.last = clock;
                    return Vec::new();
                }
                let shares = |c: &Known| {
                    c.source == *source && [c.head, c.tail].iter().any(|s| [head, tail].contains(s))
                };
                let gone: Vec<Known> = self.clients.iter().filter(|c| shares(c)).cloned().collect();
                self.clients.retain(|client| !gone.contains(client));
                gone.iter()
                    .chain([&known])
                    .for_each(|client| touch(&mut self.touched, &self.facts, client, clock));
                self.clients.push(known);
                gone
            }
            Command::Reconnect { session, source, id, orphan } => {
                let socket = orphan.0.endpoint();
                let known = seen.known.contains(&(socket, *source));
                let me = (socket, *source, Some(id.clone()).filter(|_| !known));
                self.requests.push(Request {
                    session: *session,
                    source: *source,
                    chain: None,
                    sockets: vec![(socket, None)],
                    id: Some(id.clone()),
                    stranger: me.2.is_some(),
                    gone: false,
                });
                let owns = |c: &Known, socket| [c.head, c.tail].contains(&socket);
                let mine = self.clients.iter_mut().find(|c| owns(c, socket) && c.source == *source);
                mine.into_iter().for_each(|client| client.last = clock);
                let lost = self.facts.get(&me).map(|fact| fact.partner);
                let answer = self.answers.remove(&(id.clone(), socket, *source));
                let again = seen.applied.effects.iter().any(|effect| match effect {
                    Effect::Tell { session: s, message, .. } => {
                        let told = partner_of(message);
                        let remembered = answer.map(|(partner, _)| partner).filter(|_| !known);
                        s == session && told.is_some() && [lost, remembered].contains(&told)
                    }
                    Effect::Release { .. } | Effect::Refuse { .. } => false,
                });
                if again {
                    self.answers
                        .extend(answer.map(|answer| ((id.clone(), socket, *source), answer)));
                    return Vec::new();
                }
                self.touched.insert(me, clock);
                let partners = self.facts.keys().filter(|key| Some(key.0) == lost);
                self.touched.extend(partners.map(|key| (key.clone(), clock)));
                let gone: Vec<Known> = self
                    .clients
                    .iter()
                    .filter(|c| lost.is_some_and(|s| owns(c, s)))
                    .cloned()
                    .collect();
                gone.iter().for_each(|client| touch(&mut self.touched, &self.facts, client, clock));
                gone
            }
            Command::AddPeer { .. }
            | Command::AskIp { .. }
            | Command::Delivered { .. }
            | Command::Disconnect { .. }
            | Command::HalfClose { .. }
            | Command::SetPolicy(_)
            | Command::Start { .. }
            | Command::Tick => Vec::new(),
        }
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
        let by_id = self.by_id(tell);
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

    /// Whoever comes back is told the same again, tail first, and is no new client.
    fn invariant_i1_s8_resume(&self, seen: Seen<'_>) -> Result<(), String> {
        let told = |session: &SessionId| -> Vec<Endpoint> {
            let of = seen.applied.effects.iter().filter(|effect| effect.session() == *session);
            of.filter_map(|e| match e {
                Effect::Tell { message, .. } => partner_of(message),
                Effect::Release { .. } | Effect::Refuse { .. } => None,
            })
            .collect()
        };
        match seen.command {
            Command::Connect { session, source, chain, head, tail } => {
                let (head, tail) = (head.0.endpoint(), tail.0.endpoint());
                let same = |c: &Known| {
                    c.source == *source && (&c.chain, c.head, c.tail) == (chain, head, tail)
                };
                if !self.clients.iter().any(same) || self.unsure(seen, 0) {
                    return Ok(());
                }
                let before: Vec<Endpoint> = [tail, head]
                    .iter()
                    .map(|socket| (*socket, *source, None))
                    .filter(|key| self.in_force(key))
                    .map(|key| &self.facts[&key])
                    .filter(|fact| !fact.by_id)
                    .map(|fact| fact.partner)
                    .collect();
                require(seen.clients.1 <= seen.clients.0, "S8: a resume adds no client")?;
                let told = told(session);
                let mut told = told.iter();
                require(
                    before.into_iter().all(|p| told.any(|told| *told == p)),
                    "I1: who resumes is told the same",
                )?;
            }
            Command::Reconnect { session, source, id, orphan } => {
                let socket = orphan.0.endpoint();
                let answer = self.answers.get(&(id.clone(), socket, *source));
                if let Some((partner, at)) = answer
                    && self.is_stranger(socket, *source)
                    && !self.new_policy
                    && seen.now < at.plus_ms(seen.policy.retention_ms)
                {
                    require(told(session) == [*partner], "I4: a retry is told the same")?;
                }
            }
            Command::AddPeer { .. }
            | Command::AskIp { .. }
            | Command::Delivered { .. }
            | Command::Disconnect { .. }
            | Command::HalfClose { .. }
            | Command::SetPolicy(_)
            | Command::Start { .. }
            | Command::Tick => {}
        }
        Ok(())
    }

    /// A socket is told one partner as long as that is in force.
    fn invariant_s1_one_partner(&self, tell: &Tell<'_>) -> Result<(), String> {
        let other = self.facts.get(&tell.me).is_some_and(|fact| fact.partner != tell.partner);
        require(!(other && self.in_force(&tell.me)), "S1: a socket has one partner")
    }

    /// Who is told a new partner is its partner's partner.
    fn invariant_s2_i2_symmetric(&self, me: &Key, partner: Endpoint) -> Result<(), String> {
        let mut facts = self.facts.iter();
        let mutual = facts.any(|(key, fact)| key.0 == partner && fact.partner == me.0);
        require(mutual || self.said.contains(&(partner, me.0)), "S2: partners are told each other")
    }

    /// No two sockets are told the same partner, and nobody is told itself.
    fn invariant_s3_i2_injective(&self, tell: &Tell<'_>) -> Result<(), String> {
        require(tell.me.0 != tell.partner, "S3: nobody is linked to itself")?;
        let both =
            |c: &Known| [tell.me.0, tell.partner].iter().all(|s| [c.head, c.tail].contains(s));
        let itself = |c: &Known| c.source == tell.me.1 && both(c) && c.first + 1 < self.clock;
        let alien = |r: &Request| r.source != tell.me.1 && covers(r, tell.partner) && !r.gone;
        let stranger = tell.me.2.is_some() || self.requests.iter().any(alien);
        require(stranger || !self.clients.iter().any(itself), "S3: no client is linked to itself")?;
        let taken = |(key, fact): (&Key, &Fact)| {
            *key != tell.me && fact.partner == tell.partner && !fact.by_id && self.in_force(key)
        };
        let by_id = self.by_id(tell);
        require(by_id || !self.facts.iter().any(taken), "S3: a socket is told to one other")
    }

    /// The links in force are paths, in the order of arrival.
    fn invariant_s4_i3_paths(&self) -> Result<(), String> {
        let link = |a: Endpoint, b: Endpoint, source: (IpAddr, IpAddr)| {
            let (a, b) = ((a, source.0, None), (b, source.1, None));
            let (to, from) = (self.facts.get(&a), self.facts.get(&b));
            matches!((to, from), (Some(to), Some(from)) if to.partner == b.0 && from.partner == a.0
                && !to.by_id && !from.by_id && self.in_force(&a) && self.in_force(&b))
        };
        let next =
            |c: &Known| self.clients.iter().find(|d| link(c.head, d.tail, (c.source, d.source)));
        for client in &self.clients {
            let mut at = client;
            for _ in 0..=self.clients.len() {
                let Some(after) = next(at) else { break };
                require(after.chain == at.chain, "S4: links stay in one chain")?;
                require(after.last >= at.first, "S5: links follow the order of arrival")?;
                require(after != client, "S4: no cycle")?;
                at = after;
            }
        }
        Ok(())
    }

    /// A repair id pairs two sockets that both waited with it, and stays with that.
    fn invariant_s7_i4_exactly_two(
        &mut self,
        tell: &Tell<'_>,
        seen: Seen<'_>,
    ) -> Result<(), String> {
        let Some(id) = &tell.request.id else { return Ok(()) };
        let (socket, source, _) = tell.me;
        let key = (id.clone(), socket, source);
        if let Some((partner, at)) = self.answers.get(&key) {
            let remembered = seen.now < at.plus_ms(seen.policy.retention_ms) && !self.new_policy;
            if *partner == tell.partner && (remembered || self.new_policy) {
                return Ok(());
            }
            let free = !remembered || !tell.request.stranger;
            require(free, "S7: a retry of a repair is told the same partner")?;
        }
        // A new session may have brought the partner another id while its address was offered.
        let waited = |r: &Request| r.id.as_ref() == Some(id) && covers(r, tell.partner);
        if tell.request.stranger {
            require(self.requests.iter().any(waited), "S7: the partner waited with the same id")?;
        }
        self.answers.insert(key, (tell.partner, seen.since));
        Ok(())
    }

    /// Whoever is told asked for it, and was not known to be gone.
    fn invariant_s9_i5_no_phantom(&self, tell: &Tell<'_>) -> Result<(), String> {
        let asks = |r: &&Request| !r.gone && covers(r, tell.partner);
        let mut fitting =
            self.requests.iter().filter(asks).filter(|r| match (&r.chain, &tell.request.chain) {
                (Some(theirs), Some(mine)) => theirs == mine,
                (Some(_), None) | (None, _) => true,
            });
        require(fitting.next().is_some(), "I5: only sockets that ask are told")
    }

    /// Whether the two may have come together by a common id.
    fn by_id(&self, tell: &Tell<'_>) -> bool {
        let ids = |socket| {
            let of_it = self.requests.iter().filter(move |request| covers(request, socket));
            of_it.filter_map(|request| request.id.as_ref())
        };
        ids(tell.me.0).any(|id| ids(tell.partner).any(|other| id == other))
    }

    fn in_force(&self, key: &Key) -> bool {
        let touched = self.touched.get(key).copied().unwrap_or_default().max(self.all_touched);
        let over = |fact: &Fact| {
            let mut lost = self.gone.iter().flat_map(|client| [client.head, client.tail]);
            fact.at == self.clock && lost.any(|socket| socket == key.0 || socket == fact.partner)
        };
        self.facts.get(key).is_some_and(|fact| fact.at > touched && !over(fact))
    }

    fn is_stranger(&self, socket: Endpoint, source: IpAddr) -> bool {
        !self.clients.iter().any(|c| c.source == source && [c.head, c.tail].contains(&socket))
    }

    /// Whether more clients may have been taken out than the command says.
    fn unsure(&self, seen: Seen<'_>, explained: usize) -> bool {
        let count = |of: Note| seen.applied.notes.iter().filter(|note| **note == of).count();
        let taken_out = count(Note::TakenOut);
        taken_out > if seen.since < seen.now { 0 } else { explained } || count(Note::Expired) > 0
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
        for client in &self.gone {
            touch(&mut self.touched, &self.facts, client, self.clock);
        }
    }

    fn close(&mut self, session: SessionId) {
        for request in self.requests.iter_mut().filter(|request| request.session == session) {
            request.gone = true;
        }
    }
}

/// Whatever a client was told, and others of it, may have ended.
fn touch(
    touched: &mut BTreeMap<Key, u64>,
    facts: &BTreeMap<Key, Fact>,
    client: &Known,
    clock: u64,
) {
    for socket in [client.head, client.tail] {
        touched.insert((socket, client.source, None), clock);
        for (key, _) in facts.iter().filter(|(_, fact)| fact.partner == socket) {
            touched.insert(key.clone(), clock);
        }
    }
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

fn require(holds: bool, promise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(promise.to_owned()) }
}
