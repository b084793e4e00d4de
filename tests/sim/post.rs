//! How news get from the tasks of the instances to the world, in the order in which they happen.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use emnetchain::{
    ids::{Incarnation, InstanceId},
    registry::Effect,
};
use tokio::sync::Notify;

/// News.
#[derive(Clone, Debug)]
pub(crate) enum Letter {
    /// A life is over: its sessions are closed.
    Closed(InstanceId, Incarnation),
    /// An instance has ended by itself.
    Ended(InstanceId),
    /// A session is to be told, closed or refused.
    Effect(Effect),
    /// Something is wrong; the run is over.
    Failure,
}

/// The letter box; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Post(Arc<(Mutex<VecDeque<Letter>>, Notify)>);

impl Post {
    pub(crate) fn send(&self, letter: Letter) {
        self.0.0.lock().unwrap().push_back(letter);
        self.0.1.notify_one();
    }

    /// The next letter, if there is one.
    pub(crate) fn take(&self) -> Option<Letter> {
        self.0.0.lock().unwrap().pop_front()
    }

    /// Waits until there is one.
    pub(crate) async fn wait(&self) {
        self.0.1.notified().await;
    }
}
