//! Log time: what the leader stamps on entries. It goes on from the registry's own time by the
//! monotonic clock of whoever leads, so no wall clock can move a deadline, and an outage extends
//! every deadline once.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::{clock, ids::Timestamp};

/// Stamps entries in one term after another.
#[derive(Debug)]
pub struct LogClock(Mutex<Base>);

#[derive(Debug)]
struct Base {
    term: u64,
    log_time: Timestamp,
    at: Instant,
}

impl Default for LogClock {
    fn default() -> Self {
        Self(Mutex::new(Base { term: 0, log_time: Timestamp(0), at: clock::now() }))
    }
}

impl LogClock {
    /// Log time now, in the given term. `applied` is asked once a term for the registry's time,
    /// from which the term's time goes on.
    pub fn now(&self, term: u64, applied: impl FnOnce() -> Timestamp) -> Timestamp {
        let mut base = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if base.term != term {
            *base = Base { term, log_time: applied(), at: clock::now() };
        }
        let elapsed = clock::now().duration_since(base.at).as_millis();
        base.log_time.plus_ms(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_goes_on_from_the_registrys_time() {
        let clock = LogClock::default();
        let first = clock.now(1, || Timestamp(5_000));
        assert!(first >= Timestamp(5_000));
        assert!(clock.now(1, || unreachable!("asked once a term")) >= first);
        assert!(clock.now(2, || Timestamp(70_000)) >= Timestamp(70_000));
    }
}
