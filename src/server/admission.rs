//! Places for connections: caps on all of them, on those of one source address and on those
//! of one IPv6 site, which has many. A cap keeps no newcomer out: another connection *makes room*.
//!
//! - A connection is *silent* while it has no request in hand. Silence never displaces a request:
//!   where a source or a site has as many connections as it may, its own oldest silent one makes
//!   room, and elsewhere the oldest silent one of the source or site that has the most of them.
//! - Requests in hand have seven eighths of each cap, so that a newcomer always has the time to
//!   ask. Where they have them all, the oldest of that source or site makes room for a new request,
//!   and elsewhere the oldest of the source or site that has the most. Its ask ends as by a
//!   disconnect, and its client may ask again.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use super::{
    LiveOptions, Rejection,
    line::{Line, Order},
};
use crate::{
    crowd::{Arrival, Crowd},
    ids::{Holder, Source},
    limits::{CLOSING_MAX, SILENT_SHARE},
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
    silent: Crowd<Arc<Line>>,
    asking: Crowd<Arc<Line>>,
    /// Connections that had to make room, and have a descriptor until their tasks have run.
    closing: usize,
}

impl State {
    fn placed(&self) -> usize {
        self.silent.len() + self.asking.len()
    }

    fn placed_of(&self, holder: Holder) -> usize {
        self.silent.len_of(holder) + self.asking.len_of(holder)
    }
}

/// The bounds on connections.
struct Caps {
    all: usize,
    silent: usize,
    /// Those of each holder of a source that has a cap.
    of: Vec<(Holder, usize)>,
}

impl Caps {
    /// Returns how many of `cap` connections may have a request in hand.
    fn asking(&self, cap: usize) -> usize {
        (cap - cap.div_ceil(SILENT_SHARE).min(self.silent)).max(1)
    }
}

impl Admission {
    pub(super) fn new(options: LiveOptions, metrics: Metrics) -> Self {
        Self { options, metrics, state: Mutex::default(), closed: Notify::new() }
    }

    /// Gives a new connection its place; it begins silent.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr, line: &Arc<Line>) -> Permit {
        let (source, mut state) = (Source::of(from), self.state());
        let arrival = self.fall_silent(&mut state, source, line);
        Permit { admission: Arc::clone(self), source, hold: Hold::Silent(arrival) }
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

    fn caps(&self, source: Source) -> Caps {
        let now = self.options.borrow();
        let has_cap = now.local_addresses_limited || !source.is_local();
        let cap = |holder| match holder {
            Holder::Source(_) => now.connections_per_address_max,
            Holder::Network(_) => now.connections_per_network_max(),
        };
        let of = source.holders().filter(|_| has_cap).map(|holder| (holder, cap(holder)));
        Caps { all: now.connections_max, silent: now.silent_max, of: of.collect() }
    }

    /// Gives a connection a place among the silent ones, as the latest.
    fn fall_silent(&self, state: &mut State, source: Source, line: &Arc<Line>) -> Arrival {
        let caps = self.caps(source);
        for (holder, cap) in caps.of {
            while state.placed_of(holder) >= cap && self.close_one_of(state, holder) {}
        }
        while state.placed() >= caps.all && self.close_one(state) {}
        while state.silent.len() >= caps.silent && self.close_one(state) {}
        state.silent.enter(source, Arc::clone(line))
    }

    /// Gives a connection a place among those with a request in hand, as the latest.
    fn begin_to_ask(&self, state: &mut State, source: Source, line: Arc<Line>) -> Arrival {
        let caps = self.caps(source);
        for &(holder, cap) in &caps.of {
            while state.asking.len_of(holder) >= caps.asking(cap) {
                let oldest = state.asking.oldest(holder);
                self.close_asking(state, oldest);
            }
        }
        while state.asking.len() >= caps.asking(caps.all) {
            let oldest = state.asking.oldest_of_largest();
            self.close_asking(state, oldest);
        }
        state.asking.enter(source, line)
    }

    /// Closes the oldest silent connection of a holder, or else its oldest; whether it has one.
    fn close_one_of(&self, state: &mut State, holder: Holder) -> bool {
        let (silent, asking) = (state.silent.oldest(holder), state.asking.oldest(holder));
        self.close_silent(state, silent) || self.close_asking(state, asking)
    }

    /// Closes the oldest silent connection of the source or site that has the most, or else the
    /// oldest of the one that has the most; whether there is one.
    fn close_one(&self, state: &mut State) -> bool {
        let (silent, asking) = (state.silent.oldest_of_largest(), state.asking.oldest_of_largest());
        self.close_silent(state, silent) || self.close_asking(state, asking)
    }

    fn close_silent(&self, state: &mut State, arrival: Option<Arrival>) -> bool {
        let left = arrival.and_then(|arrival| state.silent.leave(arrival));
        self.close(state, left, Rejection::Silent)
    }

    fn close_asking(&self, state: &mut State, arrival: Option<Arrival>) -> bool {
        let left = arrival.and_then(|arrival| state.asking.leave(arrival));
        self.close(state, left, Rejection::Displaced)
    }

    fn close(&self, state: &mut State, left: Option<(Source, Arc<Line>)>, why: Rejection) -> bool {
        let Some((_, line)) = left else { return false };
        state.closing += 1;
        why.count(&self.metrics);
        line.order(Order::Yield);
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
    /// It has no request in hand.
    Silent(Arrival),
    /// It has a request in hand.
    Asking(Arrival),
}

impl Hold {
    fn is_in(self, state: &State) -> bool {
        match self {
            Self::Silent(arrival) => state.silent.has(arrival),
            Self::Asking(arrival) => state.asking.has(arrival),
        }
    }

    /// Gives the place back, if it is still held.
    fn leave(self, state: &mut State) -> Option<Arc<Line>> {
        let left = match self {
            Self::Silent(arrival) => state.silent.leave(arrival),
            Self::Asking(arrival) => state.asking.leave(arrival),
        };
        left.map(|(_, line)| line)
    }
}

impl Permit {
    /// Notes that a request is in hand; false if the place was given away before.
    pub(super) fn heard(&mut self) -> bool {
        let mut state = self.admission.state();
        if let Hold::Silent(_) = self.hold {
            let Some(line) = self.hold.leave(&mut state) else { return false };
            let arrival = self.admission.begin_to_ask(&mut state, self.source, line);
            self.hold = Hold::Asking(arrival);
            return true;
        }
        self.hold.is_in(&state)
    }

    /// The request is done with, and another one may follow: back among the silent, as the latest.
    pub(super) fn silent_again(&mut self) {
        let mut state = self.admission.state();
        if let Some(line) = self.hold.leave(&mut state) {
            self.hold = Hold::Silent(self.admission.fall_silent(&mut state, self.source, &line));
        }
    }

    /// Returns whether it was not given away.
    pub(super) fn is_held(&self) -> bool {
        self.hold.is_in(&self.admission.state())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        if self.hold.leave(&mut state).is_none() {
            state.closing -= 1;
            // A session drops its line before its permit, so the descriptor is free by now.
            self.admission.closed.notify_waiters();
        }
    }
}
