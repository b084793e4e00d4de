//! Which clients may connect: caps on all connections, on those of one source address and on those
//! of one IPv6 site, which has many; and the *silent* set, the connections that have no request in
//! hand.
//!
//! A client that only opens connections must not keep out those that ask. So a newcomer is never
//! turned away for the sake of silent connections: the oldest of them goes instead.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use super::{
    LiveOptions, Rejection,
    line::{Line, Order},
};
use crate::{
    ids::{Network, Source, is_local},
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
    /// Connections that lost their place for their silence, and have a descriptor until their tasks
    /// have run.
    closing: usize,
    by_source: BTreeMap<Source, usize>,
    by_network: BTreeMap<Network, usize>,
    silent: BTreeMap<Arrival, Arc<Line>>,
    arrivals: u64,
}

/// The order in which connections fell silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival(u64);

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
        let (limited, per_address_max, per_network_max, connections_max) = {
            let now = self.options.borrow();
            let limited = now.local_addresses_limited || !is_local(from);
            let per_network_max = now.connections_per_network_max();
            (limited, now.connections_per_address_max, per_network_max, now.connections_max)
        };
        let source = limited.then(|| Source::of(from));
        if let Some(source) = source {
            if count(&state.by_source, source) >= per_address_max {
                return Err(Rejection::AddressFull);
            }
            let is_one_of_many = source.network().only_source().is_none();
            if is_one_of_many && count(&state.by_network, source.network()) >= per_network_max {
                return Err(Rejection::NetworkFull);
            }
        }
        if state.placed >= connections_max && !self.close_oldest_silent(&mut state) {
            return Err(Rejection::ConnectionsFull);
        }
        state.placed += 1;
        if let Some(source) = source {
            *state.by_source.entry(source).or_default() += 1;
            *state.by_network.entry(source.network()).or_default() += 1;
        }
        let arrival = self.fall_silent(&mut state, line);
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

    fn fall_silent(&self, state: &mut State, line: &Arc<Line>) -> Arrival {
        let silent_max = self.options.borrow().silent_max;
        while state.silent.len() >= silent_max && self.close_oldest_silent(state) {}
        state.arrivals += 1;
        let arrival = Arrival(state.arrivals);
        state.silent.insert(arrival, Arc::clone(line));
        arrival
    }

    fn close_oldest_silent(&self, state: &mut State) -> bool {
        let Some((_, line)) = state.silent.pop_first() else { return false };
        state.placed -= 1;
        state.closing += 1;
        Rejection::Silent.count(&self.metrics);
        line.order(Order::Stop);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no task panics while holding it")
    }
}

fn count<K: Ord>(counts: &BTreeMap<K, usize>, of: K) -> usize {
    counts.get(&of).copied().unwrap_or(0)
}

fn count_one_less<K: Ord>(counts: &mut BTreeMap<K, usize>, of: K) {
    let count = counts.get_mut(&of).expect("it counts this very permit");
    *count -= 1;
    if *count == 0 {
        counts.remove(&of);
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    source: Option<Source>,
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
            Hold::Silent(arrival) => match self.admission.state().silent.remove(&arrival) {
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
            self.hold = Hold::Silent(self.admission.fall_silent(&mut state, line));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let has_place = self.heard();
        let mut state = self.admission.state();
        if has_place {
            state.placed -= 1;
        } else {
            state.closing -= 1;
            // A session drops its line before its permit, so the descriptor is free by now.
            self.admission.closed.notify_waiters();
        }
        if let Some(source) = self.source {
            count_one_less(&mut state.by_source, source);
            count_one_less(&mut state.by_network, source.network());
        }
    }
}
