//! When this instance last heard its leader or became the leader itself, so that it knows when it
//! is cut off, and for how long those are silent whom it never heard.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::clock;

/// Remembers the moment; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<Mutex<Option<Instant>>>);

impl Contact {
    /// The leader was heard, or it is this instance from now on.
    pub fn heard_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
    }

    /// For how long it was not heard; `None` if it never was.
    pub fn silence(&self) -> Option<Duration> {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| clock::now().duration_since(at))
    }
}
