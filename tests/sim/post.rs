//! How news get from the tasks of the instances to the world, in the order in which they happen.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use emnetchain::ids::InstanceId;
use tokio::sync::Notify;

/// News.
#[derive(Clone, Debug)]
pub(crate) enum Letter {
    /// An instance has ended by itself.
    Ended(InstanceId),
    /// Something is wrong; the run is over.
    Failure,
    /// A client hears something over this connection.
    Heard(u64, Vec<u8>),
    /// A client finds this connection closed or broken.
    Over(u64),
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
