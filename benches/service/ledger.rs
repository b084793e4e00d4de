//! What every client was told, and whether it can be true: the judge of a run of links.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::protocol::Part;

/// A promise of the protocol that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// Bytes that no correct server sends.
    Bytes,
    /// A connection ended before its last answer.
    ClosedEarly,
    /// Two neighbours were told different things.
    Contradiction,
    /// A client was told its own socket.
    Itself,
    /// No connection, or none that took the request.
    NoConnection,
    /// The links are not one path through all clients.
    NotOnePath,
    /// A connection that had its last answer was not closed, or the newest client's was.
    OpenOrClosed,
    /// A connection ended by a reset.
    Reset,
    /// The same socket was given a partner twice.
    Twice,
    /// A client was told a socket that no client announced.
    Unknown,
    /// A client was never told a partner.
    Untold,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "wrong bytes",
            Self::ClosedEarly => "closed early",
            Self::Contradiction => "neighbours contradict each other",
            Self::Itself => "told its own socket",
            Self::NoConnection => "no connection",
            Self::NotOnePath => "not one path",
            Self::OpenOrClosed => "open or closed at the wrong time",
            Self::Reset => "reset",
            Self::Twice => "a socket was given two partners",
            Self::Unknown => "told an unknown socket",
            Self::Untold => "never told",
        })
    }
}

/// Counts of what went wrong in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wrongs(BTreeMap<Wrong, u64>);

impl Wrongs {
    /// Counts one more.
    pub(crate) fn add(&mut self, wrong: Wrong) {
        self.add_many(wrong, 1);
    }

    /// Counts `count` more.
    pub(crate) fn add_many(&mut self, wrong: Wrong, count: u64) {
        if count > 0 {
            *self.0.entry(wrong).or_default() += count;
        }
    }

    /// Counts all of `others` too.
    pub(crate) fn merge(&mut self, others: &Self) {
        for (wrong, count) in &others.0 {
            self.add_many(*wrong, *count);
        }
    }

    /// How many in all.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Wrongs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (wrong, count)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{count} x {wrong}")?;
        }
        Ok(())
    }
}

/// All clients of a run by their numbers, and what they were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    clients: Vec<Entry>,
    closed: usize,
    wrongs: Wrongs,
}

#[derive(Debug, Default)]
struct Entry {
    sent: Option<Instant>,
    /// The client at the far end of its tail, which is the earlier one.
    earlier: Option<usize>,
    /// The client at the far end of its head, which is the later one.
    later: Option<usize>,
    closed: bool,
    /// Its place in the window, free for the next one when both ends know of its link.
    place: Option<OwnedSemaphorePermit>,
}

impl Ledger {
    /// A new client and its number.
    pub(crate) fn enter(&mut self, place: Option<OwnedSemaphorePermit>) -> usize {
        self.clients.push(Entry { place, ..Entry::default() });
        self.clients.len() - 1
    }

    /// Client `number` sends its request now.
    pub(crate) fn sent(&mut self, number: usize, now: Instant) {
        self.clients[number].sent = Some(now);
    }

    /// Client `number` was told that its `part` is linked with client `partner`. If both ends know
    /// now, how long that took from the later one's request.
    pub(crate) fn told(
        &mut self,
        number: usize,
        part: Part,
        partner: usize,
        now: Instant,
    ) -> Option<Duration> {
        if let Some(wrong) = self.fault_of(number, part, partner) {
            self.wrongs.add(wrong);
            return None;
        }
        let (earlier, later) = match part {
            Part::Head => {
                self.clients[number].later = Some(partner);
                (number, partner)
            }
            Part::Tail => {
                self.clients[number].earlier = Some(partner);
                (partner, number)
            }
        };
        if self.clients[earlier].later != Some(later)
            || self.clients[later].earlier != Some(earlier)
        {
            return None;
        }
        if self.clients[earlier].earlier.is_none() {
            self.clients[earlier].place = None; // the first one has no other to wait for
        }
        self.clients[later].place = None;
        self.clients[later].sent.map(|sent| now.saturating_duration_since(sent))
    }

    /// The server closed the connection of client `number`.
    pub(crate) fn closed(&mut self, number: usize) {
        self.clients[number].closed = true;
        self.closed += 1;
        if self.clients[number].later.is_none() {
            self.wrongs.add(Wrong::ClosedEarly);
        }
    }

    /// How many clients it knows.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// How many connections the server has not closed.
    pub(crate) fn open(&self) -> usize {
        self.clients.len() - self.closed
    }

    /// Something went wrong that a client saw by itself.
    pub(crate) fn wrong(&mut self, wrong: Wrong) {
        self.wrongs.add(wrong);
    }

    /// The client that client `number` was told as its earlier and its later neighbour.
    pub(crate) fn neighbours(&self, number: usize) -> (Option<usize>, Option<usize>) {
        (self.clients[number].earlier, self.clients[number].later)
    }

    /// Judges the whole: one path through all clients, each of them told all it had to be.
    pub(crate) fn judge(&mut self) -> Wrongs {
        let mut wrongs = std::mem::take(&mut self.wrongs);
        let count = |told: fn(&Entry) -> bool| self.clients.iter().filter(|c| told(c)).count();
        let untold = count(|client| client.earlier.is_none()).saturating_sub(1)
            + count(|client| client.later.is_none()).saturating_sub(1);
        wrongs.add_many(Wrong::Untold, untold as u64);
        let open_or_closed = count(|client| client.closed != client.later.is_some());
        wrongs.add_many(Wrong::OpenOrClosed, open_or_closed as u64);
        wrongs.add_many(Wrong::Contradiction, self.contradictions() as u64);
        if self.path_length() != self.clients.len() {
            wrongs.add(Wrong::NotOnePath);
        }
        wrongs
    }

    fn fault_of(&self, number: usize, part: Part, partner: usize) -> Option<Wrong> {
        let told_before = match part {
            Part::Head => self.clients[number].later,
            Part::Tail => self.clients[number].earlier,
        };
        if self.clients.get(partner).is_none_or(|client| client.sent.is_none()) {
            Some(Wrong::Unknown)
        } else if partner == number {
            Some(Wrong::Itself)
        } else if told_before.is_some() {
            Some(Wrong::Twice)
        } else {
            None
        }
    }

    /// How many were told a neighbour that was told another.
    fn contradictions(&self) -> usize {
        let told = self.clients.iter().enumerate().flat_map(|(number, client)| {
            let earlier_says = client.earlier.and_then(|earlier| self.clients[earlier].later);
            let later_says = client.later.and_then(|later| self.clients[later].earlier);
            [earlier_says, later_says].map(|said| said.is_some_and(|said| said != number))
        });
        told.filter(|contradicted| *contradicted).count()
    }

    /// How many clients lie on the path that begins at the first one.
    fn path_length(&self) -> usize {
        let mut next = self.clients.iter().position(|client| client.earlier.is_none());
        let mut length = 0;
        while let Some(number) = next
            && length < self.clients.len()
        {
            length += 1;
            next = self.clients[number].later.filter(|n| self.clients[*n].earlier == Some(number));
        }
        length
    }
}
