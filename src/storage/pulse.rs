//! The pulse of a thread that works with the disk: since when an operation is under way, and how
//! long the slow ones take. A disk that hangs gives no error, so this is the only sign.
//!
//! The thread marks the beginning and the end of each operation. Others may look at any time: the
//! lock is held for a few instructions and never across an operation. What clients wait for is
//! watched in the same way.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::clock;

/// Operations of this length are compared with each other: the slowest of this stretch of time and
/// of the one before it counts.
const WINDOW: Duration = Duration::from_secs(10);

/// An operation that takes longer than this is stuck, unless all of them are so slow.
const STUCK_AFTER: Duration = Duration::from_millis(1250);

/// A disk whose slow operations take this time, or longer, gets no more patience.
const SLOWEST_MAX: Duration = Duration::from_secs(4);

/// Marks what a thread is doing; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The operations under way, by when they began.
    under_way: Vec<(u64, Instant)>,
    next: u64,
    /// When the present stretch of time began, its slowest operation, and that of the one before.
    window: Option<Instant>,
    slowest: Duration,
    slowest_before: Duration,
}

/// An operation under way; its drop is the end of the operation.
#[derive(Debug)]
pub struct Beat {
    pulse: Pulse,
    number: u64,
    began: Instant,
}

impl Pulse {
    /// Marks the beginning of an operation.
    pub fn begin(&self) -> Beat {
        let began = clock::now();
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.under_way.push((number, began));
        Beat { pulse: self.clone(), number, began }
    }

    /// Notes that an operation took this time, for [`Self::slowest`].
    pub fn took(&self, time: Duration) {
        let now = clock::now();
        let mut state = self.state();
        if state.window.is_none_or(|began| now - began >= WINDOW) {
            state.slowest_before = state.slowest;
            state.slowest = Duration::ZERO;
            state.window = Some(now);
        }
        state.slowest = state.slowest.max(time);
    }

    /// Returns the time of the slowest of the last operations. An idle thread keeps its last
    /// figure: the disk has not become faster by that.
    pub fn slowest(&self) -> Duration {
        let state = self.state();
        state.slowest.max(state.slowest_before)
    }

    /// For how long the oldest operation has been under way; `None` while there is none.
    pub fn pending(&self) -> Option<Duration> {
        let now = clock::now();
        let oldest = self.state().under_way.iter().map(|(_, began)| *began).min();
        oldest.map(|began| now.saturating_duration_since(began))
    }

    /// For how long an operation has been stuck: longer than an operation may take, and twice as
    /// long as slow ones of this disk do. A disk that is slow all the time is not stuck.
    pub fn stuck(&self) -> Option<Duration> {
        let patience = STUCK_AFTER.max(2 * self.slowest().min(SLOWEST_MAX));
        self.pending().filter(|pending| *pending > patience)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beat {
    /// For how long the operation has been under way.
    pub fn elapsed(&self) -> Duration {
        clock::now().saturating_duration_since(self.began)
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.pulse.state().under_way.retain(|(number, _)| *number != self.number);
    }
}

/// The pulses of everything that works with the disk of one instance.
#[derive(Clone, Debug, Default)]
pub struct Pulses {
    /// The raft log and the vote. Without them this instance acknowledges nothing.
    pub log: Pulse,
    /// The registry's image.
    pub image: Pulse,
    /// Snapshots, built and received.
    pub snapshot: Pulse,
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_operation_is_stuck_only_on_a_disk_that_is_faster_than_that() {
        let pulse = Pulse::default();
        assert_eq!((pulse.pending(), pulse.stuck()), (None, None));
        let beat = pulse.begin();
        advance(Duration::from_millis(1200)).await;
        assert_eq!(pulse.stuck(), None);
        advance(Duration::from_millis(100)).await;
        assert_eq!(pulse.stuck(), Some(Duration::from_millis(1300)));
        pulse.took(beat.elapsed());
        drop(beat);
        assert_eq!((pulse.pending(), pulse.stuck()), (None, None));
        for _ in 0..100 {
            let beat = pulse.begin();
            advance(Duration::from_millis(1500)).await;
            assert_eq!(pulse.stuck(), None, "all of them are slow");
            pulse.took(beat.elapsed());
        }
        let _beat = pulse.begin();
        advance(Duration::from_millis(3100)).await;
        assert!(pulse.stuck().is_some(), "longer than all others");
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_operation_counts_until_there_were_others_for_a_while() {
        let pulse = Pulse::default();
        pulse.took(Duration::from_millis(900));
        advance(Duration::from_secs(3600)).await;
        assert_eq!(pulse.slowest(), Duration::from_millis(900), "nothing was faster since");
        pulse.took(Duration::from_millis(5));
        assert_eq!(pulse.slowest(), Duration::from_millis(900));
        advance(WINDOW).await;
        pulse.took(Duration::from_millis(6));
        assert_eq!(pulse.slowest(), Duration::from_millis(6));
    }

    #[test]
    fn the_oldest_of_several_operations_counts() {
        let pulse = Pulse::default();
        let first = pulse.begin();
        let second = pulse.begin();
        drop(first);
        assert!(pulse.pending().is_some());
        drop(second);
        assert_eq!(pulse.pending(), None);
    }
}
