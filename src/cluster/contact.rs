//! The times at which this instance last heard its leader, and a candidate that asked for its vote.
//! They tell whether it is cut off, and whether it may stand for election itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::clock;

/// Remembers the moments; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    /// Told whenever the leader is heard.
    leader: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    leader: Option<Instant>,
    candidate: Option<Instant>,
}

impl Contact {
    /// The leader was heard, or it is this instance from now on.
    pub fn heard_now(&self) {
        self.heard().leader = Some(clock::now());
        self.0.leader.notify_waiters();
    }

    /// A candidate asked for the vote of this instance, or was given it.
    pub fn candidate_now(&self) {
        self.heard().candidate = Some(clock::now());
    }

    /// Returns when the leader was heard; `None` if it never was.
    pub fn leader_heard(&self) -> Option<Instant> {
        self.heard().leader
    }

    /// Returns when a candidate was heard; `None` if none ever was.
    pub fn candidate_heard(&self) -> Option<Instant> {
        self.heard().candidate
    }

    /// For how long the leader was not heard; `None` if it never was.
    pub fn silence(&self) -> Option<Duration> {
        self.leader_heard().map(|at| clock::now().duration_since(at))
    }

    /// Waits until less than `within` has passed since the leader was heard.
    pub async fn heard_within(&self, within: Duration) {
        loop {
            let next = self.0.leader.notified();
            if self.silence().is_some_and(|silence| silence < within) {
                return;
            }
            next.await;
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_and_a_candidate_are_heard_each_for_itself() {
        let (contact, start) = (Contact::default(), clock::now());
        assert_eq!((contact.leader_heard(), contact.candidate_heard()), (None, None));
        assert_eq!(contact.silence(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        contact.candidate_now();
        assert_eq!(contact.silence(), None, "it leads nothing yet");
        tokio::time::advance(Duration::from_secs(2)).await;
        contact.heard_now();
        tokio::time::advance(Duration::from_secs(4)).await;
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        assert_eq!((contact.leader_heard(), contact.candidate_heard()), (after(3), after(1)));
        assert_eq!(contact.silence(), Some(Duration::from_secs(4)));
        contact.heard_within(Duration::from_secs(5)).await;
        let later = contact.clone();
        let next = tokio::spawn(async move { later.heard_within(Duration::from_secs(3)).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!next.is_finished(), "it was not heard");
        contact.heard_now();
        next.await.unwrap();
    }
}
