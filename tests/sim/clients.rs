//! The clients in the world: how they come, ask, listen, die and miss each other.

use emnetchain::{
    ids::{Endpoint, Part, PeerId, RepairId, SessionId},
    registry::{Command, Message, Then, Why},
};

use crate::{
    instance::Instance,
    now,
    people::{Ask, Connection, Person},
    world::{Event, World},
};

/// Living clients that the world keeps up.
const POPULATION: usize = 9;

/// How often a client looks after an unanswered repair before it joins anew: if both its
/// connections broke, it is no client of the chain any more.
const WAITS_MAX: u32 = 3;

/// All clients there may ever be, so that a run stays short.
const PEOPLE_MAX: usize = 40;

impl World {
    pub(crate) fn join(&mut self) {
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

    pub(crate) fn chat(&mut self) {
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

    pub(crate) fn knock(&mut self, person: usize, ask: Ask) {
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

    pub(crate) fn hear(&mut self, session: SessionId, message: &Message, then: Then) {
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

    pub(crate) fn released(&mut self, session: SessionId, why: Why) {
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

    pub(crate) fn lose(&mut self, session: SessionId) {
        let Some(connection) = self.connections.remove(&session) else { return };
        let person = &self.people[connection.person];
        if person.told_head.is_some() && person.told_tail.is_some() {
            return self.finish(connection.person, &connection.ask);
        }
        self.plan(20, 1_500, Event::Knock(connection.person, connection.ask));
    }

    pub(crate) fn break_one(&mut self) {
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

    pub(crate) fn die(&mut self) {
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

    pub(crate) fn miss(&mut self, number: usize, part: Part, lost: Endpoint) {
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
    pub(crate) fn review(&mut self, number: usize) {
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
