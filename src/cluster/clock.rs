//! Log time: what the leader stamps on entries. It goes on from the registry's own time by the
//! time that the leader's process has run since, so no wall clock can move a deadline, and an
//! outage extends every deadline once.
//!
//! Only time in which this process ran counts. A process that was stopped, or whose machine was
//! suspended, has heard no client meanwhile, and to let the clients' deadlines pass would take
//! them for silent. So a task looks at the monotonic clock many times a second, and a longer gap
//! between two looks counts as one of `GAP_MAX`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{clock, ids::Timestamp};

/// Interval between looks at the clock. A leader whose other tasks keep this one from running for
/// longer lets log time go more slowly, which does no harm.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A gap between two looks counts as this much time at most.
const GAP_MAX: Duration = Duration::from_millis(300);

/// Stamps entries in one term after another.
#[derive(Debug)]
pub struct LogClock(Mutex<State>);

#[derive(Debug)]
struct State {
    /// For how long this process has run, at the last look.
    run: Duration,
    looked_at: Instant,
    term: u64,
    /// The registry's time when the term began here, and how long this process had run then.
    base: (Timestamp, Duration),
}

impl Default for LogClock {
    fn default() -> Self {
        let base = (Timestamp(0), Duration::ZERO);
        Self(Mutex::new(State { run: Duration::ZERO, looked_at: clock::now(), term: 0, base }))
    }
}

impl LogClock {
    /// Log time now, in the given term. `applied` is asked once a term for the registry's time,
    /// from which the term's time goes on.
    pub fn now(&self, term: u64, applied: impl FnOnce() -> Timestamp) -> Timestamp {
        let mut state = self.state();
        let run = state.run_until(clock::now());
        if state.term != term {
            state.term = term;
            state.base = (applied(), run);
        }
        let (log_time, began) = state.base;
        let elapsed = (run - began).as_millis();
        log_time.plus_ms(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Counts the time since the last look; to be called every [`LOOK_EVERY`].
    pub fn look(&self) {
        let now = clock::now();
        let mut state = self.state();
        state.run = state.run_until(now);
        state.looked_at = now;
    }

    /// A thread that panicked between two assignments left the time of some moment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// For how long this process has run. Between two looks it never goes back.
    fn run_until(&self, now: Instant) -> Duration {
        self.run + now.saturating_duration_since(self.looked_at).min(GAP_MAX)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Lets time pass while the process runs.
    async fn run_for(clock: &LogClock, time: Duration) {
        let end = clock::now() + time;
        while clock::now() < end {
            advance(LOOK_EVERY).await;
            clock.look();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_goes_on_from_the_registrys_time_and_from_nothing_else() {
        let clock = LogClock::default();
        run_for(&clock, Duration::from_secs(60)).await;
        assert_eq!(clock.now(1, || Timestamp(5_000)), Timestamp(5_000), "the term begins now");
        run_for(&clock, Duration::from_secs(40)).await;
        assert_eq!(clock.now(1, || unreachable!("asked once a term")), Timestamp(45_000));
        // The registry's time is less than this clock's: another one led, for less long.
        assert_eq!(clock.now(2, || Timestamp(6_000)), Timestamp(6_000));
        run_for(&clock, Duration::from_secs(1)).await;
        assert_eq!(clock.now(2, || unreachable!("asked once a term")), Timestamp(7_000));
        assert_eq!(clock.now(9, || Timestamp(70_000)), Timestamp(70_000));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_process_did_not_run_does_not_count() {
        let clock = LogClock::default();
        let first = clock.now(1, || Timestamp(0));
        advance(Duration::from_secs(9)).await;
        let asked_first = clock.now(1, || unreachable!("asked once a term"));
        clock.look();
        let woken = clock.now(1, || unreachable!("asked once a term"));
        assert_eq!(first, Timestamp(0));
        assert_eq!((asked_first, woken), (Timestamp(300), Timestamp(300)));
        run_for(&clock, Duration::from_secs(9)).await;
        let later = clock.now(1, || unreachable!("asked once a term"));
        assert_eq!(later, Timestamp(9_300), "and then it counts again");
    }

    #[tokio::test(start_paused = true)]
    async fn log_time_never_goes_back_within_a_term() {
        let clock = LogClock::default();
        let mut last = clock.now(1, || Timestamp(1));
        for pause in [0, 1, 99, 100, 299, 300, 301, 5000, 3, 0, 600_000] {
            advance(Duration::from_millis(pause)).await;
            let before = clock.now(1, || unreachable!("asked once a term"));
            if pause % 2 == 0 {
                clock.look();
            }
            let after = clock.now(1, || unreachable!("asked once a term"));
            assert!(last <= before && before <= after);
            last = after;
        }
    }
}
