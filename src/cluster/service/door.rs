//! The open connections. An instance has at most one connection of each kind to us: a new one
//! takes the place of the old, whose other end is usually gone. So what a member can hold is
//! bounded, and a member that comes back need not wait until we notice that it was gone.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::{cluster::transport::Lane, ids::InstanceId};

/// The connections that were let in.
#[derive(Debug, Default)]
pub(super) struct Door {
    /// By dropping the sender, the connection is ended.
    open: Mutex<BTreeMap<(InstanceId, Lane), oneshot::Sender<Infallible>>>,
}

impl Door {
    /// Notes a connection; what is returned is ready when a newer one has taken its place.
    pub(super) fn enter(&self, peer: InstanceId, lane: Lane) -> oneshot::Receiver<Infallible> {
        let (place, superseded) = oneshot::channel();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert((peer, lane), place);
        superseded
    }

    /// Ends the connections of a peer.
    pub(super) fn shut(&self, peer: InstanceId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(other, _), _| *other != peer);
    }

    /// Forgets the connections that have ended.
    pub(super) fn forget_ended(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, place| !place.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_when_a_newer_one_takes_its_place_or_its_peer_is_shut_out() {
        let (door, one, two) = (Door::default(), InstanceId(1), InstanceId(2));
        let is_over = |it: &mut oneshot::Receiver<Infallible>| {
            matches!(it.try_recv(), Err(oneshot::error::TryRecvError::Closed))
        };
        let mut first = door.enter(one, Lane::Calls);
        let mut append = door.enter(one, Lane::Append);
        let mut other = door.enter(two, Lane::Calls);
        let mut newer = door.enter(one, Lane::Calls);
        assert!(is_over(&mut first));
        drop(first);
        door.forget_ended();
        assert_eq!(door.open.lock().unwrap().len(), 3, "the newer one is none that has ended");
        assert!(![&mut append, &mut other, &mut newer].into_iter().any(is_over));
        door.shut(one);
        assert!(is_over(&mut append) && is_over(&mut newer) && !is_over(&mut other));
        drop(other);
        door.forget_ended();
        assert!(door.open.lock().unwrap().is_empty());
    }
}
