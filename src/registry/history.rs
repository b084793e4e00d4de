//! The recent events, for operators that ask for causes. They are no part of the registry: each
//! instance remembers what the entries that it applied brought about, as much as there is room for.

use std::collections::VecDeque;

use super::{Note, Registry};
use crate::ids::{Endpoint, Timestamp};

/// The last things that happened.
#[derive(Clone, Debug)]
pub struct History {
    events: VecDeque<Event>,
    capacity: usize,
}

/// The registry and its history at one moment, for a reader.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// The recent events.
    pub history: &'a History,
    /// The entry that both are as of.
    pub entry: u64,
    /// Log time now, as far as the instance can tell: it goes on between entries.
    pub now: Timestamp,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The entry that brought it about.
    pub entry: u64,
    /// The event.
    pub note: Note,
}

impl History {
    /// Makes room for this number of events.
    pub fn new(capacity: usize) -> Self {
        Self { events: VecDeque::new(), capacity }
    }

    /// Remembers what an entry brought about; the oldest gives way.
    pub fn record(&mut self, at: Timestamp, entry: u64, notes: &[Note]) {
        for note in notes {
            if self.events.len() >= self.capacity {
                self.events.pop_front();
            }
            self.events.push_back(Event { at, entry, note: note.clone() });
        }
    }

    /// Returns the last `max` events about any of these sockets, the oldest first. Takes time in
    /// proportion to all that is remembered.
    pub fn about(&self, sockets: &[Endpoint], max: usize) -> Vec<&Event> {
        let concerns = |event: &&Event| {
            event.note.about.iter().flatten().any(|socket| sockets.contains(socket))
        };
        let mut events: Vec<_> = self.events.iter().rev().filter(concerns).take(max).collect();
        events.reverse();
        events
    }

    /// Returns the number of events that are kept, and the number that there is room for.
    pub fn room(&self) -> (usize, usize) {
        (self.events.len(), self.capacity)
    }

    /// Returns when the oldest event that is remembered happened.
    pub fn since(&self) -> Option<Timestamp> {
        self.events.front().map(|event| event.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::What;

    #[test]
    fn the_oldest_gives_way_and_only_what_concerns_is_told() {
        let socket = |port| Endpoint { ip: [10, 0, 0, 1].into(), port };
        let note = |port, other| Note {
            about: [Some(socket(port)), Some(socket(other))],
            session: None,
            what: What::Joined,
        };
        let mut history = History::new(3);
        for (entry, ports) in [(1, (1, 2)), (2, (3, 4)), (3, (2, 3)), (4, (5, 6))] {
            history.record(Timestamp(10 * entry), entry, &[note(ports.0, ports.1)]);
        }
        let entries = |sockets: &[Endpoint], max| -> Vec<u64> {
            history.about(sockets, max).iter().map(|event| event.entry).collect()
        };
        assert_eq!(entries(&[socket(2)], 9), [3], "the first is forgotten");
        assert_eq!(entries(&[socket(3)], 9), [2, 3]);
        assert_eq!(entries(&[socket(3)], 1), [3], "the newest of too many");
        assert_eq!((history.room(), history.since()), ((3, 3), Some(Timestamp(20))));
    }
}
