//! Everything outside the instances: clients, their connections, and an agenda of what happens
//! when.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use emnetchain::{
    ids::{Endpoint, InstanceId, Part, PeerId, RepairId, SessionId},
    registry::{Command, Effect, Message, Then, Why},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    chance::Chance,
    faults::Fault,
    instance::Instance,
    now,
    oracle::Oracle,
    people::{Ask, Connection, Person},
    post::{Letter, Post},
};

/// Living clients that the world keeps up.
const POPULATION: usize = 9;

/// How often a client looks after an unanswered repair before it joins anew: if both its
/// connections broke, it is no client of the chain any more.
const WAITS_MAX: u32 = 3;

/// All clients there may ever be, so that a run stays short.
const PEOPLE_MAX: usize = 40;

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A connection of a client breaks.
    Break,
    /// Somebody leaves an address, as EMNet's clients do.
    Chat,
    /// A client dies.
    Die,
    /// Something goes wrong between or under the instances.
    Fault,
    /// What went wrong goes right again.
    Heal(Fault),
    /// A client hears a message.
    Hear(SessionId, Message, Then),
    /// A client connects and asks.
    Knock(usize, Ask),
    /// A new client comes.
    Join,
    /// A client finds its connection gone.
    Lose(SessionId),
    /// A client misses the partner that a socket of it was told.
    Miss(usize, Part, Endpoint),
    /// A client finds its connection closed in order.
    Released(SessionId, Why),
    /// A client looks whether it still waits for something that nobody works on.
    Review(usize),
    /// Something reaches the instance of a session.
    Submit(Command),
}

/// Everything outside the instances.
pub(crate) struct World {
    pub(crate) chance: Chance,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) network: crate::network::Network,
    pub(crate) people: Vec<Person>,
    /// Whether the two sides of a gap may ask with a common id. It pairs them whatever stands
    /// between them by now, so the chain need not become one path then.
    pub(crate) has_common_ids: bool,
    /// Whether faults, deaths and newcomers go on.
    pub(crate) is_wild: bool,
    post: Post,
    connections: BTreeMap<SessionId, Connection>,
    agenda: BTreeMap<(Instant, u64), Event>,
    events: u64,
}

impl World {
    pub(crate) fn new(
        mut chance: Chance,
        oracle: Arc<Oracle>,
        instances: BTreeMap<InstanceId, Instance>,
        network: crate::network::Network,
        post: Post,
    ) -> Self {
        let has_common_ids = chance.percent(40);
        let mut world = Self {
            chance,
            oracle,
            instances,
            network,
            people: Vec::new(),
            has_common_ids,
            is_wild: true,
            post,
            connections: BTreeMap::new(),
            agenda: BTreeMap::new(),
            events: 0,
        };
        for event in [Event::Fault, Event::Die, Event::Join, Event::Break, Event::Chat] {
            world.plan(2_000, 5_000, event);
        }
        world
    }

    /// Has something happen in so many milliseconds.
    pub(crate) fn plan(&mut self, least: u64, most: u64, event: Event) {
        let at = now() + Duration::from_millis(self.chance.between(least, most));
        self.plan_at(at, event);
    }

    fn plan_at(&mut self, at: Instant, event: Event) {
        self.events += 1;
        self.agenda.insert((at, self.events), event);
    }

    /// Lets everything happen until a moment, or until something is wrong.
    pub(crate) async fn go_on_until(&mut self, end: Instant) {
        loop {
            while let Some(letter) = self.post.take() {
                match letter {
                    Letter::Closed(instance, life) => {
                        let is_its =
                            |id: &&SessionId| id.instance == instance && id.incarnation == life;
                        let closed: Vec<_> =
                            self.connections.keys().filter(is_its).copied().collect();
                        for session in closed {
                            self.plan(1, 40, Event::Lose(session));
                        }
                    }
                    Letter::Effect(effect) => self.carry_out(effect),
                    Letter::Failure => return,
                }
            }
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = next.map_or(end, |at| at.min(end));
            if next <= now() {
                match self.agenda.pop_first() {
                    Some(((at, _), event)) if at <= end => self.happen(event),
                    other => {
                        self.agenda.extend(other);
                        return;
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.post.wait() => {}
                () = sleep_until(next) => if next == end { return },
            }
        }
    }

    /// Takes an effect to its client.
    fn carry_out(&mut self, effect: Effect) {
        let delay = Duration::from_millis(self.chance.between(1, 30));
        let Some(connection) = self.connections.get_mut(&effect.session()) else { return };
        let due = connection.last_due.max(now() + delay);
        connection.last_due = due;
        let event = match effect {
            Effect::Tell { session, message, then } => Event::Hear(session, message, then),
            Effect::Release { session, why } => Event::Released(session, why),
            // A legacy client sees nothing; this one gives up after a while.
            Effect::Refuse { session, .. } => {
                self.plan(1, 500, Event::Submit(Command::Disconnect { session }));
                Event::Lose(session)
            }
        };
        self.plan_at(due, event);
    }

    fn happen(&mut self, event: Event) {
        if !matches!(event, Event::Chat | Event::Knock(..) | Event::Review(_)) {
            self.oracle.note(format!("{event:?}"));
        }
        match event {
            Event::Break => self.break_one(),
            Event::Chat => self.chat(),
            Event::Die => self.die(),
            Event::Fault => self.fault(),
            Event::Heal(fault) => self.heal(fault),
            Event::Hear(session, message, then) => self.hear(session, &message, then),
            Event::Join => self.join(),
            Event::Knock(person, ask) => self.knock(person, ask),
            Event::Lose(session) => self.lose(session),
            Event::Miss(person, part, lost) => self.miss(person, part, lost),
            Event::Released(session, why) => self.released(session, why),
            Event::Review(person) => self.review(person),
            Event::Submit(command) => {
                let session = command.session().expect("it comes from a session");
                self.instances[&session.instance].submit(command);
            }
        }
    }

    fn join(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(50, 500, Event::Join);
        let living = self.people.iter().filter(|person| person.alive).count();
        if living >= POPULATION || self.people.len() >= PEOPLE_MAX {
            return;
        }
        let number = self.people.len();
        if self.chance.percent(15) {
            // Two sockets that no chain knows, with a common id.
            let id = RepairId(format!("pair {number}").into());
            for number in [number, number + 1] {
                let ask = Ask::Repair(Part::Head, id.clone());
                self.people.push(Person::new(number, None));
                self.people[number].asks.push(ask.clone());
                self.plan(1, 8_000, Event::Knock(number, ask));
            }
            return;
        }
        let chain = if self.chance.percent(85) { "" } else { "blue" };
        self.people.push(Person::new(number, Some(chain)));
        self.ask(number, Ask::Connect);
        self.plan(3_000, 9_000, Event::Review(number));
    }

    /// A client begins to ask.
    fn ask(&mut self, person: usize, ask: Ask) {
        self.people[person].asks.push(ask.clone());
        self.knock(person, ask);
    }

    /// A client needs no answer any more.
    fn finish(&mut self, person: usize, ask: &Ask) {
        self.people[person].asks.retain(|other| other != ask);
    }

    fn chat(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(20, 150, Event::Chat);
        let id = self.any_instance();
        let Some(session) = self.instances.get_mut(&id).and_then(Instance::accept) else { return };
        let candidate = PeerId(u32::try_from(self.chance.below(1000)).expect("it is small"));
        let address = format!("somebody {}", self.events);
        self.instances[&id].submit(Command::AddPeer { session, address, candidate });
    }

    fn knock(&mut self, person: usize, ask: Ask) {
        if !self.people[person].alive || !self.people[person].asks.contains(&ask) {
            return;
        }
        let instance = self.any_instance();
        let door = self.instances.get_mut(&instance).expect("it is one of them");
        let Some(session) = door.accept() else {
            return self.plan(20, 600, Event::Knock(person, ask));
        };
        let half_closed = self.chance.percent(20);
        let command = self.people[person].command(session, &ask);
        self.instances[&instance].submit(command);
        if half_closed {
            self.plan(0, 100, Event::Submit(Command::HalfClose { session }));
        }
        self.oracle.note(format!("{person} asks {ask:?} over {session:?}"));
        let connection = Connection { person, ask, half_closed, last_due: now() };
        self.connections.insert(session, connection);
    }

    fn hear(&mut self, session: SessionId, message: &Message, then: Then) {
        let Some(connection) = self.connections.get(&session) else { return };
        let (number, ask) = (connection.person, connection.ask.clone());
        if !self.people[number].alive {
            self.connections.remove(&session);
            return self.plan(1, 30, Event::Submit(Command::Disconnect { session }));
        }
        let (part, ip) = match (message, &ask) {
            (Message::Link { part, ip }, _) => (*part, ip.endpoint()),
            (Message::Repair { ip }, Ask::Repair(part, _)) => (*part, ip.endpoint()),
            _ => return self.oracle.fail(format!("S9: an answer to no request: {message:?}")),
        };
        *self.people[number].told(part) = Some(ip);
        self.people[number].doubts.retain(|doubted| *doubted != part);
        if then == Then::Close || matches!(ask, Ask::Repair(..)) {
            self.finish(number, &ask);
        }
        if self.people.iter().any(|other| !other.alive && other.owns(ip)) {
            self.plan(100, 2_000, Event::Miss(number, part, ip));
        }
        match then {
            Then::Close => drop(self.connections.remove(&session)),
            Then::Confirm => {
                self.plan(1, 30, Event::Submit(Command::Delivered { session }));
            }
            Then::Stay => {}
        }
    }

    fn released(&mut self, session: SessionId, why: Why) {
        let Some(connection) = self.connections.remove(&session) else { return };
        let number = connection.person;
        match why {
            Why::Answered => self.finish(number, &connection.ask),
            // The other connection may be an older one, whose request came late.
            Why::Superseded if self.connections.values().any(|other| other.person == number) => {}
            Why::Superseded | Why::Expired => {
                self.plan(100, 1_000, Event::Knock(number, connection.ask));
            }
            Why::TakenOut => {
                let person = &mut self.people[number];
                (person.told_head, person.told_tail) = (None, None);
                person.asks = vec![Ask::Connect];
                self.plan(100, 1_000, Event::Knock(number, Ask::Connect));
            }
        }
    }

    fn lose(&mut self, session: SessionId) {
        let Some(connection) = self.connections.remove(&session) else { return };
        let person = &self.people[connection.person];
        if person.told_head.is_some() && person.told_tail.is_some() {
            return self.finish(connection.person, &connection.ask);
        }
        self.plan(20, 1_500, Event::Knock(connection.person, connection.ask));
    }

    fn break_one(&mut self) {
        self.plan(50, 1_500, Event::Break);
        let sessions: Vec<SessionId> = self.connections.keys().copied().collect();
        if !self.is_wild || sessions.is_empty() {
            return;
        }
        let session = self.chance.pick(&sessions);
        // Either end may find out much later than the other.
        self.plan(1, 3_000, Event::Lose(session));
        self.plan(1, 3_000, Event::Submit(Command::Disconnect { session }));
    }

    fn die(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(300, 3_000, Event::Die);
        let living: Vec<usize> =
            self.people.iter().filter(|p| p.alive && p.chain.is_some()).map(|p| p.number).collect();
        if living.len() < 3 {
            return;
        }
        let number = self.chance.pick(&living);
        self.people[number].alive = false;
        self.oracle.note(format!("{number} is dead"));
        let its = self.connections.iter().filter(|(_, connection)| connection.person == number);
        let its: Vec<_> = its.map(|(id, connection)| (*id, connection.half_closed)).collect();
        for (session, half_closed) in its {
            // Who had closed its side before is found out when it is told something.
            if !half_closed {
                self.connections.remove(&session);
                self.plan(1, 1_000, Event::Submit(Command::Disconnect { session }));
            }
        }
        let dead = self.people[number].clone();
        for person in self.people.clone() {
            for (part, told) in [(Part::Head, person.told_head), (Part::Tail, person.told_tail)] {
                if let Some(lost) = told.filter(|told| dead.owns(*told)) {
                    self.plan(100, 3_000, Event::Miss(person.number, part, lost));
                }
            }
        }
    }

    fn miss(&mut self, number: usize, part: Part, lost: Endpoint) {
        if !self.people[number].alive || *self.people[number].told(part) != Some(lost) {
            return;
        }
        *self.people[number].told(part) = None;
        let repairs = |ask: &Ask| matches!(ask, Ask::Repair(of, _) if *of == part);
        if self.people[number].asks.iter().any(repairs) {
            return;
        }
        // Both sides of a gap have the id that who left gave them, or each makes one of its own.
        let me = self.people[number].socket(part).endpoint();
        let knew_me = self.people.iter().any(|other| {
            let told =
                if other.head.endpoint() == lost { other.told_head } else { other.told_tail };
            other.owns(lost) && told == Some(me)
        });
        let id = match knew_me && self.has_common_ids && self.chance.percent(60) {
            true => format!("gap {}", lost.ip),
            false => format!("own {number} {}", self.events),
        };
        self.ask(number, Ask::Repair(part, RepairId(id.into())));
    }

    /// A client closes its connections and asks for everything.
    fn join_anew(&mut self, number: usize) {
        let its = self.connections.iter().filter(|(_, connection)| connection.person == number);
        for session in its.map(|(session, _)| *session).collect::<Vec<_>>() {
            self.connections.remove(&session);
            self.plan(1, 30, Event::Submit(Command::Disconnect { session }));
        }
        let person = &mut self.people[number];
        (person.asks, person.waits) = (vec![Ask::Connect], 0);
        self.plan(100, 500, Event::Knock(number, Ask::Connect));
    }

    /// Looks after both sockets. A partner that is dead, or that talks to somebody else whenever it
    /// is looked at, is missed.
    fn review(&mut self, number: usize) {
        if !self.people[number].alive {
            return;
        }
        self.plan(3_000, 6_000, Event::Review(number));
        let person = &mut self.people[number];
        let repairs = person.asks.iter().any(|ask| *ask != Ask::Connect);
        person.waits = if repairs { person.waits + 1 } else { 0 };
        if person.waits > WAITS_MAX {
            return self.join_anew(number);
        }
        for part in [Part::Tail, Part::Head] {
            let me = self.people[number].clone();
            let told = self.people[number].told(part).to_owned();
            let Some(ip) = told else {
                if !me.is_asking(part) {
                    return self.ask(number, Ask::Connect);
                }
                continue;
            };
            let mut others = self.people.iter().filter(|other| other.owns(ip));
            let listens = others.any(|other| {
                let its =
                    if other.head.endpoint() == ip { other.told_head } else { other.told_tail };
                other.alive && its == Some(me.socket(part).endpoint())
            });
            let doubts = &mut self.people[number].doubts;
            let was_in_doubt = doubts.contains(&part);
            doubts.retain(|doubted| *doubted != part);
            if !listens && was_in_doubt {
                return self.miss(number, part, ip);
            }
            if !listens {
                doubts.push(part);
            }
        }
    }
}
