//! Which connections are open. An instance has at most one connection of each kind to us: a new one
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
