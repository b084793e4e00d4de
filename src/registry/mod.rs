//! The chains and repairs as a pure state machine.
//!
//! A [`Registry`] is changed by [`Registry::apply`] alone, one [`Proposal`] at a time, and answers
//! with [`Applied`]: what sessions must be told ([`Effect`]) and what happened ([`Note`]). It knows
//! no IO, clock, chance or hash order, so replicas that apply the same log hold the same registry,
//! bit for bit.
//!
//! # Words
//!
//! A *client* owns two sockets: its head faces the later neighbour, its tail the earlier one. A
//! *chain* is one path of clients in the order of their serials. A socket that waits to be told its
//! partner *asks*; an ask is held by a *session*. Two asks that face each other are *engaged*:
//! the link is made and both are told, unless one of the connections is half-closed. Then its
//! partner's address is *offered* to it first, and the link is *concluded* when its kernel has
//! taken the bytes; if the connection is reset instead, the other socket goes on asking.
//!
//! # How a change spreads
//!
//! Commands only move asks and members. All that they touch is noted by the index as unsettled, and
//! [`Registry::settle`](Registry::apply) then looks at the surroundings of each touched place: it
//! links facing asks, starts or stops the gather window over silent clients between two asks, and
//! pairs the waiters of a repair id. So every rule about links stands in one place, for every event
//! that brings two together.
//!
//! # Invariants
//!
//! [`Registry::check`] verifies them; the tests do so after each command. A socket belongs to one
//! client. A head is linked if and only if the next member's tail is. Clients taken out have no
//! partner and do not ask. No two engaged asks face each other untold. The index is the one that
//! the records give.
//!
//! # Cost
//!
//! Every command is O(log n) in the number of clients, amortised: taking out a run of silent
//! clients and detaching a dead instance's asks touch each of them once.

mod ask;
mod census;
mod chain;
mod command;
mod counted;
mod effect;
mod history;
mod index;
mod invariant;
mod keys;
mod path;
mod peers;
mod policy;
mod record;
mod repair;
mod room;
mod run;
mod sections;
mod settle;
mod shares;
mod table;
#[cfg(test)]
mod tests;
mod time;
#[cfg(feature = "rules-3")]
mod version3;
mod window;

pub use census::{Census, ChainTotals, Order};
pub use command::{BatchId, Command, Proposal};
pub use effect::{
    Applied, Asked, Cause, Effect, Ended, Forgotten, LinkedBy, Message, Note, Refusal, Then,
    Verdict, What, Why,
};
pub use history::{Event, History, Look};
pub use invariant::Violation;
pub use policy::Policy;
pub use record::{
    Answer, Ask, AskRef, Caller, Client, Cut, Image, Instance, Line, Meta, Past, Peer, Record,
    Request, Rules, Section, Side,
};
pub use table::{Serial, Table};
#[cfg(feature = "rules-3")]
pub use version3::{Mark, Marks};
pub use window::{CutOff, Place, Window};

use std::collections::BTreeMap;

use crate::ids::{HistoryId, Incarnation, InstanceId, SessionId, Socket, StoreId, Timestamp};
use index::Index;

/// All chains, repairs and EMNet entries.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    image: Image,
    index: Index,
    changed: BTreeMap<Serial, Option<Record>>,
    applied: Applied,
}

/// Two registries are equal if their images are: the rest is derived or passing.
impl PartialEq for Registry {
    fn eq(&self, other: &Self) -> bool {
        self.image == other.image
    }
}

impl Eq for Registry {}

/// The contents of the registry, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Clients, including those that are cut off.
    pub clients: u64,
    /// Clients that are cut off from the paths of their chains.
    pub cut_off: u64,
    /// Chains with at least one client.
    pub chains: u64,
    /// Sockets that ask.
    pub asks: u64,
    /// Links between neighbours in paths.
    pub links: u64,
    /// Neighbours in paths that are not linked, and should be.
    pub broken_links: u64,
    /// Asks that came by RECONNECT.
    pub repairs_pending: u64,
    /// EMNet entries.
    pub peers: u64,
}

impl Registry {
    /// Rebuilds a registry from its image.
    ///
    /// # Errors
    /// If the records contradict each other: the image is damaged or of a newer make.
    pub fn from_image(image: Image) -> Result<Self, Violation> {
        let index = Index::build(&image);
        let mut registry = Self { image, index, ..Self::default() };
        registry.settle();
        if registry.applied != Applied::default() {
            return Err(Violation::new("two sockets that face each other ask and are not linked"));
        }
        registry.check_records()?;
        Ok(registry)
    }

    /// Applies one proposal. Deterministic: equal registries stay equal.
    pub fn apply(&mut self, proposal: &Proposal) -> Applied {
        self.advance(proposal.at);
        let verdict = proposal.batch.map_or(Verdict::Applied, |batch| self.admit(batch));
        if verdict == Verdict::Applied {
            for command in &proposal.commands {
                self.advance(proposal.at); // what the last one brought about may be due at once
                self.execute(command);
                self.settle();
            }
        }
        self.applied.verdict = verdict;
        std::mem::take(&mut self.applied)
    }

    /// Returns the records that changed since the last call, each as it was before; `None` stands
    /// for one that is new. A serial that [`Image::records`] no longer holds was removed.
    pub fn take_changed(&mut self) -> BTreeMap<Serial, Option<Record>> {
        std::mem::take(&mut self.changed)
    }

    /// Returns the registry at rest; a copy shares the records until either side changes them.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Log time of the last entry.
    pub fn now(&self) -> Timestamp {
        self.image.meta.now
    }

    /// Returns the settings in force.
    pub fn policy(&self) -> &Policy {
        &self.image.meta.policy
    }

    /// Returns the present life of an instance; 0 if it was never started.
    pub fn incarnation(&self, instance: InstanceId) -> Incarnation {
        self.image.meta.instances.get(&instance).map(|known| known.incarnation).unwrap_or_default()
    }

    /// Returns the instances whose sessions hold asks, each with its present life.
    pub fn instances_that_hold_asks(&self) -> Vec<(InstanceId, Incarnation)> {
        let known = self.image.meta.instances.iter();
        let holds = |id: InstanceId, life: Incarnation| {
            let first = SessionId { instance: id, incarnation: life, connection: 0 };
            let mut later = self.index.sessions.range((first, index::LOWEST)..);
            later.next().is_some_and(|(session, _)| session.instance == id)
        };
        let lives = known.map(|(id, known)| (*id, known.incarnation));
        lives.filter(|(id, life)| holds(*id, *life)).collect()
    }

    /// Returns when the next deadline passes; a [`Command::Tick`] at that time carries it out.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.index.timers.first().map(|(at, _)| *at)
    }

    /// Returns the contents in numbers, in constant time.
    pub fn totals(&self) -> Totals {
        let chains = self.index.chains.len() as u64;
        Totals {
            clients: self.index.clients(),
            cut_off: self.index.cut_off,
            chains,
            asks: self.index.sessions.len() as u64,
            links: self.index.links,
            broken_links: self.index.gaps,
            repairs_pending: self.index.waiting.len() as u64,
            peers: self.index.peers.len() as u64,
        }
    }

    /// Returns whether a batch is the next one of the present life of its instance. An instance's
    /// commands take effect in the order in which it proposed them: a hang-up cannot overtake its
    /// CONNECT.
    fn admit(&mut self, batch: BatchId) -> Verdict {
        let known = self.image.meta.instances.entry(batch.instance).or_default();
        if batch.incarnation != known.incarnation {
            Verdict::Stale
        } else if batch.number <= known.batches_through {
            Verdict::Duplicate
        } else if batch.number > known.batches_through + 1 {
            Verdict::Early
        } else {
            known.batches_through = batch.number;
            Verdict::Applied
        }
    }

    fn execute(&mut self, command: &Command) {
        if command.rules() > self.rules() {
            return;
        }
        match command {
            Command::AddPeer { session, source, address, candidate } => {
                self.add_peer(*session, *source, address, *candidate);
            }
            Command::AskIp { session, id } => self.take_peer(*session, *id),
            Command::Connect { session, source, chain, head, tail } => {
                self.connect(*session, *source, chain, head, tail);
            }
            Command::Delivered { session } => self.delivered(*session),
            Command::Disconnect { session } => self.disconnect(*session),
            Command::HalfClose { session } => self.half_close(*session),
            Command::Reconnect { session, source, id, orphan } => {
                self.reconnect(*session, *source, id, &orphan.0);
            }
            Command::SetPolicy(policy) => self.set_policy(*policy),
            Command::Start { instance, incarnation } => self.start(*instance, *incarnation),
            Command::Tick => {}
            Command::Found { history } => drop(self.image.meta.history.get_or_insert(*history)),
            Command::Raise { rules } => {
                self.image.meta.rules = self.image.meta.rules.max(*rules);
            }
            #[cfg(feature = "rules-3")]
            Command::Mark(_) => self.mark(),
        }
    }

    /// Takes note of the cluster's members as an entry has made them: the numbers that were ever
    /// in use, and the store of each.
    pub fn members_changed(
        &mut self,
        entry: u64,
        members: impl IntoIterator<Item = (InstanceId, Option<StoreId>)>,
    ) {
        let members: BTreeMap<_, _> = members.into_iter().collect();
        for (instance, store) in &members {
            let known = self.image.meta.instances.entry(*instance).or_default();
            known.store = known.store.or(*store);
            known.removed_by = None;
        }
        for (instance, known) in &mut self.image.meta.instances {
            if !members.contains_key(instance) {
                known.removed_by.get_or_insert(entry);
            }
        }
    }

    /// Leaves the history: what comes next is another one, with other stores. The numbers of the
    /// instances stay known, so that none of them is used again; the one that goes on is named by
    /// the next [`Self::members_changed`].
    pub fn leave_history(&mut self) {
        self.image.meta.history = None;
        for known in self.image.meta.instances.values_mut() {
            known.store = None;
        }
    }

    /// Returns the record of an instance; `None` if no entry ever named its number.
    pub fn instance(&self, instance: InstanceId) -> Option<&Instance> {
        self.image.meta.instances.get(&instance)
    }

    /// Returns the history; `None` until the first leader has named it.
    pub fn history(&self) -> Option<HistoryId> {
        self.image.meta.history
    }

    /// Returns the rules in force.
    pub fn rules(&self) -> Rules {
        self.image.meta.rules
    }

    fn set_policy(&mut self, policy: Policy) {
        if self.image.meta.policy != policy {
            self.image.meta.policy = policy;
            // Deadlines follow from records and settings; a change of settings is rare enough to
            // derive them all again.
            self.index = Index::build(&self.image);
        }
    }

    fn next_serial(&mut self) -> Serial {
        let serial = self.image.meta.next_serial;
        self.image.meta.next_serial = Serial(serial.0 + 1);
        serial
    }

    fn insert(&mut self, record: Record) -> Serial {
        let serial = self.next_serial();
        self.index.update(serial, None, Some(&record), &self.image.meta.policy);
        self.image.records.insert(serial, record);
        self.changed.insert(serial, None);
        serial
    }

    fn remove(&mut self, serial: Serial) -> Option<Record> {
        let record = self.image.records.remove(serial)?;
        self.index.update(serial, Some(&record), None, &self.image.meta.policy);
        self.changed.entry(serial).or_insert_with(|| Some(record.clone()));
        Some(record)
    }

    fn edit(&mut self, serial: Serial, change: impl FnOnce(&mut Record)) {
        let Some(record) = self.image.records.get_mut(serial) else { return };
        let old = record.clone();
        change(record);
        self.index.update(serial, Some(&old), Some(record), &self.image.meta.policy);
        self.changed.entry(serial).or_insert(Some(old));
    }

    fn edit_client(&mut self, serial: Serial, change: impl FnOnce(&mut Client)) {
        self.edit(serial, |record| {
            if let Some(client) = record.client_mut() {
                change(client);
            }
        });
    }

    fn tell(&mut self, session: SessionId, message: Message, then: Then) {
        self.applied.effects.push(Effect::Tell { session, message, then });
    }

    fn release(&mut self, session: SessionId, why: Why) {
        self.applied.effects.push(Effect::Release { session, why });
    }

    fn refuse(&mut self, session: SessionId, why: Refusal, sockets: [Option<&Socket>; 2]) {
        self.note(Note {
            about: sockets.map(|socket| socket.map(Socket::endpoint)),
            session: Some(session),
            what: What::Refused(why),
        });
        self.applied.effects.push(Effect::Refuse { session, why });
    }

    fn note(&mut self, note: Note) {
        self.applied.notes.push(note);
    }
}
