//! The progress of the raft log and the vote of a store, by which a store that went back is
//! noticed: an older copy of a data directory has forgotten votes and entries that it acknowledged.
//!
//! # The order
//!
//! Progress is ordered by the vote first and the last log id second. A log alone may become shorter
//! without any fault: a later leader cuts off entries that were never committed (Raft, section
//! 5.3). But then the vote is higher, and a vote never goes back. Under one and the same vote there
//! is one leader, and it never cuts off what it has already matched in a follower's log, so under
//! one vote the acknowledged log id never goes back either. Whether a vote is committed is left
//! out: that mark need not be durable before the next entry is.
//!
//! # What is remembered and what is compared
//!
//! Only what a store has *acknowledged* may be remembered against it, because only that is known to
//! be on its disk: entries that its leader sent and it reported as durable, and votes that it
//! granted. The facts of a member that introduces itself may contain more (the tail of its log may
//! be about to be cut off), so of that only the vote is remembered. A member says the highest of
//! what its log held when it started and of what it has acknowledged since ([`Acknowledged`]). That
//! is never less than what others remember of it, unless its disk went back.

use std::{
    cmp::Ordering,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use openraft::{RaftLogReader as _, storage::RaftLogStorage, vote::RaftLeaderId as _};
use serde::{Deserialize, Serialize};

use crate::raft::{LogId, TypeConfig, Vote};

/// A vote, and a log id that was acknowledged under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The vote.
    pub vote: Vote,
    /// The log id; `None` before the first entry.
    pub last: Option<LogId>,
}

impl Default for Progress {
    /// That of an empty log.
    fn default() -> Self {
        Self::of_vote(Vote::new(0, 0))
    }
}

impl Progress {
    /// Returns the progress of a store that has granted a vote.
    pub fn of_vote(vote: Vote) -> Self {
        Self { vote, last: None }
    }

    /// Returns whether this is behind `other`.
    pub fn is_behind(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Less
    }

    /// Returns the further of two.
    pub fn further(self, other: Self) -> Self {
        if self.is_behind(&other) { other } else { self }
    }

    fn compare(&self, other: &Self) -> Ordering {
        let vote = self.vote.leader_id.cmp(&other.vote.leader_id);
        vote.then_with(|| self.last.cmp(&other.last))
    }
}

/// Returns what a store holds when it is opened.
///
/// # Errors
/// If the log cannot be read.
pub(super) async fn held(log: &mut impl RaftLogStorage<TypeConfig>) -> io::Result<Progress> {
    let vote = log.get_log_reader().await.read_vote().await?;
    let vote = vote.unwrap_or(Progress::default().vote);
    Ok(Progress { vote, last: log.get_log_state().await?.last_log_id })
}

/// For people: term, instance and entry.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leader = &self.vote.leader_id;
        write!(f, "vote {}-{}, ", leader.term(), leader.node_id())?;
        match &self.last {
            Some(last) => {
                let by = last.committed_leader_id();
                write!(f, "entry {} of term {}-{}", last.index, by.term, by.node_id)
            }
            None => write!(f, "no entry"),
        }
    }
}

/// The progress that this instance has vouched for; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The highest of what the log held at the start and of all acknowledgements since.
    vouched: Progress,
    /// The highest acknowledgement since the start.
    since_start: Option<Progress>,
}

impl Acknowledged {
    /// Begins with what the log held at the start.
    pub fn begin(held: Progress) -> Self {
        Self(Arc::new(Mutex::new(State { vouched: held, since_start: None })))
    }

    /// Returns the highest that this instance vouches for, to be compared by others.
    pub fn now(&self) -> Progress {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).vouched
    }

    /// Returns the highest acknowledgement since the start, to be remembered by others.
    pub fn since_start(&self) -> Option<Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).since_start
    }

    /// Takes note of an acknowledgement, before it leaves.
    pub fn note(&self, progress: Progress) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.vouched = state.vouched.further(progress);
        let before = state.since_start.unwrap_or_default();
        state.since_start = Some(before.further(progress));
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderIdExt as _;

    use super::*;

    type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

    fn at(vote: (u64, u64), last: Option<(u64, u64)>) -> Progress {
        let last = last.map(|(term, index)| LogId::new(LeaderId::new_committed(term, 1), index));
        Progress { vote: Vote::new(vote.0, vote.1), last }
    }

    #[test]
    fn the_vote_counts_before_the_log() {
        let ascending = [
            at((0, 0), None),
            at((3, 1), None),
            at((3, 1), Some((2, 9))),
            at((3, 1), Some((2, 10))),
            at((3, 1), Some((3, 10))),
            // A leader that came later has cut off what was not committed.
            at((3, 2), Some((2, 8))),
            at((4, 1), None),
        ];
        for pair in ascending.windows(2) {
            assert!(pair[0].is_behind(&pair[1]) && !pair[1].is_behind(&pair[0]), "{pair:?}");
            assert_eq!(pair[0].further(pair[1]), pair[1]);
        }
        let committed = Progress { vote: Vote::new_committed(3, 1), last: None };
        assert!(!at((3, 1), None).is_behind(&committed), "that mark need not be durable");
    }

    #[test]
    fn what_was_vouched_for_never_goes_back() {
        let acknowledged = Acknowledged::begin(at((3, 1), Some((2, 9))));
        assert_eq!(acknowledged.since_start(), None);
        acknowledged.note(at((3, 1), Some((2, 4))));
        assert_eq!(acknowledged.now(), at((3, 1), Some((2, 9))));
        assert_eq!(acknowledged.since_start(), Some(at((3, 1), Some((2, 4)))));
        acknowledged.note(Progress::of_vote(Vote::new(4, 2)));
        assert_eq!(acknowledged.now(), at((4, 2), None));
    }
}
