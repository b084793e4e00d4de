//! Log time: deadlines that pass, and instances that begin a new life.

use super::{Expiry, Note, Record, Registry, Request, Why, index::Timer};
use crate::ids::{Incarnation, InstanceId, SessionId, Timestamp};

impl Registry {
    /// Moves log time on and carries out every deadline that has passed, in their order.
    pub(super) fn advance(&mut self, at: Timestamp) {
        let now = self.now().max(at);
        while let Some((deadline, timer)) = self.index.timers.first().copied()
            && deadline <= now
        {
            self.image.meta.now = self.now().max(deadline);
            let expiry = self.expiry(timer);
            match timer {
                Timer::Ask(ask) => self.give_up(ask, Why::Expired),
                Timer::Forget(serial) => self.forget(serial),
                Timer::Gather(left) => self.gather(left),
            }
            if let Some(expiry) = expiry {
                self.note(Note::Expired(expiry));
            }
            self.settle();
        }
        self.image.meta.now = now;
    }

    /// What a deadline ends, if it ends anything: an ask that has found its partner is concluded.
    fn expiry(&self, timer: Timer) -> Option<Expiry> {
        match timer {
            Timer::Ask(at) if self.is_engaged(at) => None,
            Timer::Ask(at) => Some(match self.ask(at)?.request {
                Request::Connect => Expiry::Ask,
                Request::Reconnect(_) => Expiry::Repair,
            }),
            Timer::Forget(serial) => Some(match self.image.records.get(serial)? {
                Record::Client(_) => Expiry::Client,
                Record::Caller(_) => Expiry::Repair,
                Record::Answer(_) => Expiry::Answer,
                Record::Peer(_) => Expiry::Peer,
            }),
            Timer::Gather(_) => None,
        }
    }

    fn forget(&mut self, serial: super::Serial) {
        match self.image.records.get(serial) {
            Some(Record::Client(_)) => self.forget_client(serial),
            Some(Record::Caller(_) | Record::Answer(_) | Record::Peer(_)) | None => {
                self.remove(serial);
            }
        }
    }

    /// A new life of an instance begins: whatever its earlier lives held is detached.
    pub(super) fn start(&mut self, instance: InstanceId, incarnation: Incarnation) {
        let known = self.image.meta.instances.entry(instance).or_default();
        if incarnation <= known.incarnation {
            return;
        }
        *known = super::Instance { incarnation, ..super::Instance::default() };
        let first = SessionId { instance, incarnation: Incarnation(0), connection: 0 };
        let asks: Vec<_> = self
            .index
            .sessions
            .range((first, super::index::LOWEST)..)
            .take_while(|(session, _)| session.instance == instance)
            .filter(|(session, _)| session.incarnation < incarnation)
            .map(|(_, ask)| *ask)
            .collect();
        for ask in asks {
            self.detach(ask);
        }
    }
}
