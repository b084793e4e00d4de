//! Log time: deadlines that pass, and instances that begin a new life.

use super::{
    AskRef, Asked, Cause, Ended, Forgotten, Note, Record, Registry, Request, Serial, What,
    index::Timer,
};
use crate::ids::{Incarnation, InstanceId, SessionId, Timestamp};

impl Registry {
    /// Moves log time on and carries out every deadline that has passed, in their order.
    pub(super) fn advance(&mut self, at: Timestamp) {
        let now = self.now().max(at);
        while let Some((deadline, timer)) = self.index.timers.first().copied()
            && deadline <= now
        {
            self.image.meta.now = self.now().max(deadline);
            // What is free by now may be paired, before what else is due at the same time.
            let free = (deadline, Timer::Free(super::index::LOWEST));
            let free = self.index.timers.range(free..).take_while(|(at, _)| *at == deadline);
            for (_, timer) in free.copied().collect::<Vec<_>>() {
                if let Timer::Free(ask) = timer {
                    self.free(ask);
                }
            }
            match timer {
                Timer::Ask(ask) => self.expire(ask),
                Timer::Forget(serial) => self.forget(serial),
                Timer::Gather(left) => self.gather(left),
                Timer::Front(tail) => self.front(tail),
                Timer::Free(_) => {} // above
            }
            self.settle();
        }
        self.image.meta.now = now;
    }

    /// An ask reaches the end of its time.
    fn expire(&mut self, at: AskRef) {
        let asked = match self.ask(at).map(|ask| &ask.request) {
            Some(Request::Connect) => Asked::Connect,
            Some(Request::Reconnect(_)) => Asked::Reconnect,
            None => return,
        };
        self.give_up(at, Ended::Expired(asked));
    }

    /// A record reaches the end of its time.
    fn forget(&mut self, serial: Serial) {
        let (about, what) = match self.image.records.get(serial) {
            Some(Record::Client(client)) => {
                let about = client.sockets();
                self.forget_client(serial, Cause::Forgotten, None);
                (about, Forgotten::Client)
            }
            Some(Record::Answer(answer)) => ([Some(answer.socket), None], Forgotten::Answer),
            Some(Record::Peer(_)) => ([None, None], Forgotten::Peer),
            // They have no end of their own.
            Some(Record::Caller(_) | Record::Section(_)) | None => return,
        };
        self.remove(serial);
        self.note(Note { about, session: None, what: What::Forgotten(what) });
    }

    /// A new life of an instance begins: all that its earlier lives held is detached.
    pub(super) fn start(&mut self, instance: InstanceId, incarnation: Incarnation) {
        let known = self.image.meta.instances.entry(instance).or_default();
        if incarnation <= known.incarnation {
            return;
        }
        (known.incarnation, known.batches_through) = (incarnation, 0);
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
