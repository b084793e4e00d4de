//! Which clients may connect: caps on all connections, on those of one source address and on those
//! of one IPv6 site, which has many; and the *silent* set, the connections that have no request in
//! hand.
//!
//! A client that only opens connections must not keep out those that ask. So a newcomer is never
//! turned away for the sake of silent connections: where a source or a site has as many connections
//! as it may, its own oldest silent one goes instead, and elsewhere the oldest silent one of the
//! source or site that has the most of them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use super::{
    LiveOptions, Rejection,
    crowd::{Arrival, Crowd},
    line::{Line, Order},
};
use crate::{
    ids::{Holder, Source},
    limits::CLOSING_MAX,
    metrics::Metrics,
};

/// Counts the connections of all listeners that share it.
#[derive(Debug)]
pub(super) struct Admission {
    options: LiveOptions,
    metrics: Metrics,
    state: Mutex<State>,
    /// Told whenever a connection that had to make room is closed.
    closed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Connections with a place.
    placed: usize,
    by_holder: BTreeMap<Holder, usize>,
    /// Connections that lost their place for their silence, and have a descriptor until their tasks
    /// have run.
    closing: usize,
    silent: Crowd<Arc<Line>>,
}

impl State {
    fn take_place(&mut self, source: Source) {
        self.placed += 1;
        for holder in source.holders() {
            *self.by_holder.entry(holder).or_default() += 1;
        }
    }

    fn give_place_back(&mut self, source: Source) {
        self.placed -= 1;
        for holder in source.holders() {
            let count = self.by_holder.get_mut(&holder).expect("it counts this very connection");
            *count -= 1;
            if *count == 0 {
                self.by_holder.remove(&holder);
            }
        }
    }

    fn has_filled(&self, holder: Holder, max: usize) -> bool {
        self.by_holder.get(&holder).is_some_and(|count| *count >= max)
    }
}

impl Admission {
    pub(super) fn new(options: LiveOptions, metrics: Metrics) -> Self {
        Self { options, metrics, state: Mutex::default(), closed: Notify::new() }
    }

    /// Gives a new connection its place; it begins silent.
    pub(super) fn admit(
        self: &Arc<Self>,
        from: IpAddr,
        line: &Arc<Line>,
    ) -> Result<Permit, Rejection> {
        let mut state = self.state();
        let (is_limited, per_address_max, per_network_max, connections_max) = {
            let now = self.options.borrow();
            let is_limited = now.local_addresses_limited || !Source::of(from).is_local();
            let per_network_max = now.connections_per_network_max();
            (is_limited, now.connections_per_address_max, per_network_max, now.connections_max)
        };
        let source = Source::of(from);
        for holder in source.holders().filter(|_| is_limited) {
            let (max, rejection) = match holder {
                Holder::Source(_) => (per_address_max, Rejection::AddressFull),
                Holder::Network(_) => (per_network_max, Rejection::NetworkFull),
            };
            let oldest = state.silent.oldest(holder);
            if state.has_filled(holder, max) && !self.close_silent(&mut state, oldest) {
                return Err(rejection);
            }
        }
        if state.placed >= connections_max && !self.close_one_silent(&mut state) {
            return Err(Rejection::ConnectionsFull);
        }
        state.take_place(source);
        let arrival = self.fall_silent(&mut state, source, line);
        Ok(Permit { admission: Arc::clone(self), source, hold: Hold::Silent(arrival) })
    }

    /// Waits while many connections that had to make room still have their descriptors, so that a
    /// quick crowd takes none that are others'. Each is closed as soon as its task runs.
    pub(super) async fn room(&self) {
        loop {
            let closed = self.closed.notified();
            if self.state().closing < CLOSING_MAX {
                return;
            }
            closed.await;
        }
    }

    fn fall_silent(&self, state: &mut State, source: Source, line: &Arc<Line>) -> Arrival {
        let silent_max = self.options.borrow().silent_max;
        while state.silent.len() >= silent_max && self.close_one_silent(state) {}
        state.silent.enter(source, Arc::clone(line))
    }

    /// Closes the oldest silent connection of the source or site that has the most.
    fn close_one_silent(&self, state: &mut State) -> bool {
        let oldest = state.silent.oldest_of_largest();
        self.close_silent(state, oldest)
    }

    /// Closes a silent connection; whether there was one.
    fn close_silent(&self, state: &mut State, arrival: Option<Arrival>) -> bool {
        let left = arrival.and_then(|arrival| state.silent.leave(arrival));
        let Some((source, line)) = left else { return false };
        state.give_place_back(source);
        state.closing += 1;
        Rejection::Silent.count(&self.metrics);
        line.order(Order::Stop);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no task panics while holding it")
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    source: Source,
    hold: Hold,
}

#[derive(Clone, Copy, Debug)]
enum Hold {
    /// It has no request in hand, and its place only until another one needs it.
    Silent(Arrival),
    /// It has a request in hand.
    Heard,
    /// It was silent for too long, and its place is given away.
    Lost,
}

impl Permit {
    /// A request is in hand; false if the place was given away before.
    pub(super) fn heard(&mut self) -> bool {
        self.hold = match self.hold {
            Hold::Silent(arrival) => match self.admission.state().silent.leave(arrival) {
                Some(_) => Hold::Heard,
                None => Hold::Lost,
            },
            Hold::Heard => Hold::Heard,
            Hold::Lost => Hold::Lost,
        };
        matches!(self.hold, Hold::Heard)
    }

    /// The request is done with, and another one may follow: back among the silent, as the latest.
    pub(super) fn silent_again(&mut self, line: &Arc<Line>) {
        if self.heard() {
            let mut state = self.admission.state();
            self.hold = Hold::Silent(self.admission.fall_silent(&mut state, self.source, line));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let has_place = self.heard();
        let mut state = self.admission.state();
        if has_place {
            state.give_place_back(self.source);
        } else {
            state.closing -= 1;
            // A session drops its line before its permit, so the descriptor is free by now.
            self.admission.closed.notify_waiters();
        }
    }
}
