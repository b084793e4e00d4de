//! The sessions of this instance, and the way effects take to them. A session belongs to the life
//! of the instance in which it began; when a life is over, its sessions are closed.
//!
//! One dispatcher task hands the registry's effects over in order, and each message is written
//! before the next effect is looked at. So of one link the head's message is on the wire
//! before the tail's, if both clients are connected here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    Rejection, encode,
    line::{Line, Order},
};
use crate::{
    ids::{Incarnation, InstanceId, SessionId},
    metrics::Metrics,
    registry::{Effect, Message},
};

/// Carries effects out for the sessions of one instance.
#[derive(Debug)]
pub struct Outbox {
    instance: InstanceId,
    metrics: Metrics,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    life: Incarnation,
    opened: u64,
    lines: BTreeMap<SessionId, Arc<Line>>,
}

impl Outbox {
    /// Creates an outbox without sessions, before the first life.
    pub fn new(instance: InstanceId, metrics: Metrics) -> Self {
        Self { instance, metrics, sessions: Mutex::default() }
    }

    /// A new life begins: sessions are of it from now on, and those of the last one are closed.
    pub fn begin(&self, life: Incarnation) {
        self.lock().life = life;
        self.stop_all();
    }

    /// Carries out what concerns sessions of this outbox, in order, and drops the rest. Never
    /// waits: what a slow reader's socket does not take is left to its session's task.
    pub fn dispatch(&self, effects: &[Effect]) {
        for effect in effects {
            let Some(line) = self.line(effect.session()) else { continue };
            tracing::trace!(request = %effect.session(), ?effect, "answers");
            match effect {
                Effect::Tell { message, then, .. } => {
                    if let Message::PeerFailed = message {
                        line.note_missed();
                    }
                    if line.tell(&encode(message), *then).is_err() {
                        Rejection::SlowReader.count(&self.metrics);
                    }
                }
                Effect::Release { .. } => line.order(Order::Release),
                Effect::Refuse { why, .. } => {
                    tracing::debug!(request = %effect.session(), ?why, "refused");
                    Rejection::Refused(*why).count(&self.metrics);
                    line.order(Order::Refused);
                }
            }
        }
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> usize {
        self.lock().lines.len()
    }

    /// Tells every session to close; their asks stay in the registry, because the clients will
    /// knock on another instance.
    pub fn stop_all(&self) {
        let lines: Vec<_> = self.lock().lines.values().cloned().collect();
        lines.iter().for_each(|line| line.order(Order::Stop));
    }

    /// Enters a connection; it leaves when the seat is dropped.
    pub(super) fn enter(self: &Arc<Self>, line: &Arc<Line>) -> Seat {
        let mut sessions = self.lock();
        sessions.opened += 1;
        let (instance, incarnation) = (self.instance, sessions.life);
        let session = SessionId { instance, incarnation, connection: sessions.opened };
        sessions.lines.insert(session, Arc::clone(line));
        Seat { outbox: Arc::clone(self), session }
    }

    fn line(&self, session: SessionId) -> Option<Arc<Line>> {
        if session.instance != self.instance {
            return None;
        }
        self.lock().lines.get(&session).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().expect("no task panics while holding it")
    }
}

/// A connection's place in the outbox.
#[derive(Debug)]
pub(super) struct Seat {
    outbox: Arc<Outbox>,
    session: SessionId,
}

impl Seat {
    pub(super) fn session(&self) -> SessionId {
        self.session
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.outbox.lock().lines.remove(&self.session);
    }
}
