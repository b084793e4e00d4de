//! Where clients find the service, and what they make of answers that do not come.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    net::SocketAddr,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::support::{PATIENCE, Service};

/// How clients find the service.
pub(crate) trait Door: std::fmt::Debug + Sync {
    /// Waits until there is an instance to go to.
    fn find(&self) -> Place;

    /// An answer did not come; panics if that is not in order.
    fn lost(&self, place: Place, what: &str) -> Lost;

    /// The test has failed; no client needs to be told any more.
    fn abandon(&self);

    /// Whether what was sent and not answered may still be carried out after other things.
    fn may_deliver_late(&self) -> bool {
        false
    }

    /// How long a connection may take, and how long a client waits for a word before it asks
    /// somewhere else.
    fn patience(&self) -> (Duration, Duration) {
        (PATIENCE, PATIENCE)
    }
}

/// A service that may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Tells its lives apart.
    pub(crate) life: u32,
    /// Where CONNECT is answered.
    pub(crate) chain: SocketAddr,
    /// Where RECONNECT is answered.
    pub(crate) repair: SocketAddr,
}

/// The service went away before it answered.
#[derive(Debug)]
pub(crate) struct Lost;

/// One instance that may be down, and is otherwise to answer.
#[derive(Debug, Default)]
pub(crate) struct Site {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    life: u32,
    place: Option<Place>,
    may_fail: bool,
    abandoned: bool,
}

impl Site {
    /// Where a service runs.
    pub(crate) fn of(service: &Service) -> Self {
        let site = Self::default();
        site.is_up(service);
        site
    }

    /// The service runs, perhaps elsewhere than before.
    pub(crate) fn is_up(&self, service: &Service) {
        let mut state = self.state();
        let life = state.life + 1;
        let place = Place { life, chain: service.chain(), repair: service.repair() };
        *state = State { life, place: Some(place), ..State::default() };
        self.changed.notify_all();
    }

    /// From now on the service may end by itself.
    pub(crate) fn may_fail(&self) {
        self.state().may_fail = true;
    }

    /// From now on the service may be gone.
    pub(crate) fn goes_down(&self) {
        self.state().place = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door for Site {
    fn find(&self) -> Place {
        let wait =
            self.changed.wait_timeout_while(self.state(), PATIENCE, |state| state.place.is_none());
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.place.expect("the service comes back")
    }

    /// That is in order only if the service went away.
    fn lost(&self, place: Place, what: &str) -> Lost {
        let state = self.state();
        let runs = state.place == Some(place) && !state.may_fail;
        assert!(!runs, "while the service ran: {what}");
        assert!(!state.abandoned, "the test has failed: {what}");
        drop(state);
        // It may take a moment until the loss is known, and another service runs.
        thread::sleep(Duration::from_millis(1));
        Lost
    }

    fn abandon(&self) {
        let mut state = self.state();
        (state.abandoned, state.place) = (true, None);
        self.changed.notify_all();
    }
}
