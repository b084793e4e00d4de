//! The clients in the world: how they come, ask, listen, die and miss each other.

use std::{net::IpAddr, time::Duration};

use emnetchain::{
    ids::{Endpoint, InstanceId, Part, RepairId, Socket},
    server::Protocol,
};
use serde_json::{Deserializer, Value};

use crate::{
    people::{Ask, Connection, Person},
    visit::Visit,
    world::{Event, World},
};

/// Living clients that the world keeps up.
const POPULATION: usize = 9;

/// How often a client looks after an unanswered repair before it joins again: if both its
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
                self.people.push(Person::new(number, false));
                self.people[number].asks.push(ask.clone());
                self.plan(1, 8_000, Event::Knock(number, ask));
            }
            return;
        }
        self.people.push(Person::new(number, true));
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

    pub(crate) fn knock(&mut self, person: usize, ask: Ask) {
        if !self.people[person].alive || !self.people[person].asks.contains(&ask) {
            return;
        }
        let instance = self.any_instance();
        let (protocol, text) = self.people[person].request(&ask);
        let source = self.people[person].source();
        let Some((number, visit)) = self.visit(instance, protocol, source) else {
            return self.plan(20, 600, Event::Knock(person, ask));
        };
        visit.say(text);
        if self.chance.percent(20) {
            self.plan(0, 100, Event::HalfClose(number));
        }
        self.oracle.note(format!("{person} asks {ask:?} over {number} at {instance:?}"));
        let connection = Connection { person, ask, visit, heard: Vec::new() };
        self.connections.insert(number, connection);
    }

    /// Opens a connection to an instance, if it takes it.
    pub(crate) fn visit(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        source: IpAddr,
    ) -> Option<(u64, Visit)> {
        self.events += 1;
        let number = self.events;
        let delays = [(); 2].map(|()| Duration::from_millis(self.chance.between(1, 30)));
        let visit = self.instances[&instance].enter(protocol, source, number, delays)?;
        Some((number, visit))
    }

    pub(crate) fn half_close(&self, number: u64) {
        if let Some(connection) = self.connections.get(&number) {
            connection.visit.half_close();
        }
    }

    /// Bytes arrive at a client.
    pub(crate) fn hear(&mut self, number: u64, bytes: &[u8]) {
        if self.heard_by_prober(number, bytes) {
            return;
        }
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.heard.extend_from_slice(bytes);
        let mut messages = Deserializer::from_slice(&connection.heard).into_iter::<Value>();
        let whole: Vec<Value> = messages.by_ref().map_while(Result::ok).collect();
        let read = messages.byte_offset();
        connection.heard.drain(..read);
        let (person, ask) = (connection.person, connection.ask.clone());
        for message in whole {
            self.oracle.note(format!("{person} hears {message} over {number}"));
            self.hear_message(person, &ask, &message);
        }
    }

    fn hear_message(&mut self, number: usize, ask: &Ask, message: &Value) {
        let part = match (message["part"].as_str(), ask) {
            (Some("head"), Ask::Connect) => Part::Head,
            (Some("tail"), Ask::Connect) => Part::Tail,
            (None, Ask::Repair(part, _)) => *part,
            _ => return self.oracle.fail(format!("S9: an answer to no request: {message}")),
        };
        let ip = message["ip"].as_str().and_then(Socket::parse);
        let Some(ip) = ip.map(|ip| ip.endpoint()) else {
            return self.oracle.fail(format!("S9: an answer without a socket: {message}"));
        };
        *self.people[number].told(part) = Some(ip);
        self.people[number].doubts.retain(|doubted| *doubted != part);
        let person = &self.people[number];
        if person.knows_both() || matches!(ask, Ask::Repair(..)) {
            self.finish(number, ask);
        }
        if self.people.iter().any(|other| !other.alive && other.owns(ip)) {
            self.plan(100, 2_000, Event::Miss(number, part, ip));
        }
    }

    /// A client finds its connection closed or broken, and may not know why.
    pub(crate) fn lose(&mut self, number: u64) {
        if self.lost_by_prober(number) {
            return;
        }
        let Some(Connection { person, ask, visit, .. }) = self.connections.remove(&number) else {
            return;
        };
        visit.close();
        if ask == Ask::Connect && self.people[person].knows_both() {
            return self.finish(person, &ask);
        }
        // The other connection may be a newer one, for which this one was closed.
        let mut others = self.connections.values();
        if !others.any(|other| other.person == person && other.ask == ask) {
            self.plan(20, 1_500, Event::Knock(person, ask));
        }
    }

    pub(crate) fn break_one(&mut self) {
        self.plan(50, 1_500, Event::Break);
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        if !self.is_wild || numbers.is_empty() {
            return;
        }
        let number = self.chance.pick(&numbers);
        // Either end may find out much later than the other.
        self.plan(1, 3_000, Event::Lose(number));
        self.connections[&number].visit.breaks_there();
    }

    pub(crate) fn die(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(300, 3_000, Event::Die);
        let living: Vec<usize> =
            self.people.iter().filter(|p| p.alive && p.is_client).map(|p| p.number).collect();
        if living.len() < 3 {
            return;
        }
        let number = self.chance.pick(&living);
        self.people[number].alive = false;
        self.oracle.note(format!("{number} is dead"));
        let its = |(_, connection): &(&u64, &mut Connection)| connection.person == number;
        let its: Vec<u64> = self.connections.iter_mut().filter(its).map(|(id, _)| *id).collect();
        for connection in its {
            let connection = self.connections.remove(&connection).expect("it is one of them");
            match self.chance.percent(50) {
                true => connection.visit.die(),
                false => connection.visit.breaks_there(), // nothing comes from its machine any more
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
        // Both sides of a gap have the id that the leaver gave them, or each makes one of its own.
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
    fn join_again(&mut self, number: usize) {
        let its = self.connections.iter().filter(|(_, connection)| connection.person == number);
        for connection in its.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.connections.remove(&connection).into_iter().for_each(|old| old.visit.close());
        }
        let person = &mut self.people[number];
        (person.asks, person.waits) = (vec![Ask::Connect], 0);
        // Until it is answered again it answers no partner, so one that still counts on it asks
        // too.
        (person.told_head, person.told_tail) = (None, None);
        self.plan(100, 500, Event::Knock(number, Ask::Connect));
    }

    /// Looks after both sockets. A partner that is dead, or that talks to another one whenever it
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
            return self.join_again(number);
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
