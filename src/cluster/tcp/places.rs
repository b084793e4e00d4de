//! The places at the raft port. A connection is a stranger's until it has introduced itself, and
//! strangers have few places. They keep no newcomer out: the oldest of the source or site that has
//! the most makes room, so a flood from one address is a loss of that address alone, and a member
//! that comes back gets through. What was introduced makes room for nothing.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    crowd::{Arrival, Crowd},
    descriptors::Shares,
    ids::Source,
    limits::RPC_CONNECTIONS_MAX,
};

/// Counts the connections of the raft port.
#[derive(Debug)]
pub(super) struct Places {
    strangers_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By dropping the sender, the connection is ended.
    strangers: Crowd<oneshot::Sender<Infallible>>,
    introduced: usize,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    hold: Hold,
    /// Ready when the place is needed for another stranger.
    needed: oneshot::Receiver<Infallible>,
}

#[derive(Debug)]
enum Hold {
    Stranger(Arrival),
    Introduced,
    Nothing,
}

impl Places {
    /// As many as the process has descriptors for.
    pub(super) fn new() -> Arc<Self> {
        Self::with(Shares::of_this_process().strangers)
    }

    fn with(strangers_max: usize) -> Arc<Self> {
        Arc::new(Self { strangers_max, state: Mutex::default() })
    }

    /// Returns whether one more may be accepted beside `connections`, among them those that had to
    /// make room and still have a descriptor.
    pub(super) fn has_room(&self, connections: usize) -> bool {
        connections.saturating_sub(self.state().introduced) <= self.strangers_max
    }

    /// Gives a newcomer its place, for which another stranger may have to make room.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Place {
        let (place, needed) = oneshot::channel();
        let mut state = self.state();
        // What made room has a descriptor until its task has run; a quarter is left to those, so
        // that a quick flood does not make the listener wait for each of them.
        let kept = self.strangers_max - self.strangers_max / 4;
        while state.strangers.len() >= kept
            && let Some(oldest) = state.strangers.oldest_of_largest()
        {
            state.strangers.leave(oldest);
        }
        let arrival = state.strangers.enter(Source::of(from), place);
        Place { of: Arc::clone(self), hold: Hold::Stranger(arrival), needed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Waits until another stranger needs it.
    pub(super) async fn needed(&mut self) {
        let _ = (&mut self.needed).await;
    }

    /// Notes that the connection has introduced itself; false if it has lost its place, or there
    /// are too many that have.
    pub(super) fn introduce(&mut self) -> bool {
        let mut state = self.of.state();
        let Hold::Stranger(arrival) = std::mem::replace(&mut self.hold, Hold::Nothing) else {
            return false;
        };
        let is_held = state.strangers.leave(arrival).is_some();
        if is_held && state.introduced < RPC_CONNECTIONS_MAX {
            state.introduced += 1;
            self.hold = Hold::Introduced;
            return true;
        }
        false
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.of.state();
        match self.hold {
            Hold::Stranger(arrival) => drop(state.strangers.leave(arrival)),
            Hold::Introduced => state.introduced -= 1,
            Hold::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_needed(place: &mut Place) -> bool {
        place.needed().now_or_never().is_some()
    }

    #[test]
    fn strangers_make_room_for_each_other_and_members_for_none() {
        let places = Places::with(3);
        let [member, flood] = [[198, 51, 100, 2], [203, 0, 113, 66]].map(IpAddr::from);
        let mut first = places.admit(member);
        let mut strangers: Vec<_> = (0..9).map(|_| places.admit(flood)).collect();
        assert!(!is_needed(&mut first) && first.introduce());
        assert_eq!(strangers.iter_mut().filter_map(|it| is_needed(it).then_some(())).count(), 7);
        assert!(!strangers[0].introduce() && strangers[8].introduce());
        assert!(places.has_room(5) && !places.has_room(6), "two are introduced");
        let mut second = places.admit(member);
        let more: Vec<_> = (0..9).map(|_| places.admit(flood)).collect();
        assert!(!is_needed(&mut second) && places.state().introduced == 2);
        drop((first, second, strangers, more));
        let state = places.state();
        assert_eq!((state.strangers.len(), state.introduced), (0, 0));
    }

    #[test]
    fn those_that_have_introduced_themselves_have_a_bound() {
        let places = Places::with(3);
        let mut introduced = Vec::new();
        for _ in 0..RPC_CONNECTIONS_MAX {
            let mut place = places.admit([198, 51, 100, 2].into());
            assert!(place.introduce());
            introduced.push(place);
        }
        assert!(!places.admit([198, 51, 100, 2].into()).introduce());
        introduced.pop();
        assert!(places.admit([198, 51, 100, 2].into()).introduce());
    }
}
