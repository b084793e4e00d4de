//! The life of a connection of the operators' HTTP: a short while, however busy it is. A long
//! answer keeps its connection, and renews its life with every piece that the reader takes; a kept
//! connection does not give way to newcomers.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::clock;

/// The life of one connection.
#[derive(Clone, Debug)]
pub(super) struct Life {
    max: Duration,
    term: Arc<watch::Sender<Term>>,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    ends: Instant,
    is_kept: bool,
}

fn from_now(time: Duration) -> Instant {
    Instant::from_std(clock::now() + time)
}

impl Life {
    /// Creates a life that begins now.
    pub(super) fn new(max: Duration) -> Self {
        let term = Term { ends: from_now(max), is_kept: false };
        Self { max, term: Arc::new(watch::Sender::new(term)) }
    }

    /// Keeps the connection for as long as the guard is there and renews its life.
    pub(super) fn keep(&self) -> Kept {
        self.term.send_modify(|term| term.is_kept = true);
        Kept(self.clone())
    }

    /// Returns whether something long is being answered.
    pub(super) fn is_kept(&self) -> bool {
        self.term.borrow().is_kept
    }

    /// Waits for the end.
    pub(super) async fn over(&self) {
        let mut term = self.term.subscribe();
        loop {
            let ends = term.borrow_and_update().ends;
            select! {
                biased;
                _ = term.changed() => {}
                () = sleep_until(ends) => return,
            }
        }
    }
}

/// Keeps a connection.
#[derive(Debug)]
pub(super) struct Kept(Life);

impl Kept {
    /// A whole life begins again.
    pub(super) fn renew(&self) {
        self.renew_for(self.0.max);
    }

    /// The connection lives for this time from now on.
    pub(super) fn renew_for(&self, time: Duration) {
        self.0.term.send_modify(|term| term.ends = from_now(time));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.term.send_modify(|term| term.is_kept = false);
    }
}
