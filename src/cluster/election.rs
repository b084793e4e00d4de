//! The elections of this instance. openraft would start them by a timer of fixed length,
//! which also bounds how long a vote may take; a disk on which two syncs take longer would never
//! have a leader again. So openraft's timer is off, and this task decides by what it measures.
//!
//! A voter stands when the lease of the last leader is over, after a random share of time on top
//! (section 5.2 of the raft paper: so that two voters seldom stand at once). Two candidates collide
//! if the second one stands before it hears of the first, and that takes as long as a candidate
//! needs to make its own vote durable. So the share follows the syncs of this instance's disk, and
//! doubles with each campaign that ended without a leader. A voter that was asked for its vote lets
//! the candidate have time to win.
//!
//! One that the members look for at another address than its own does not stand: if it led, they
//! would hear it, and none could write through it. It still votes.
//!
//! A campaign begins with a round of questions ("pre-vote", section 9.6 of the raft dissertation)
//! that changes nothing anywhere, so one that cannot win does no harm.

use std::time::{Duration, Instant};

use openraft::{ServerState, async_runtime::AsyncRuntime, async_runtime::WatchReceiver};
use rand::RngExt as _;
use tokio::time::{sleep, sleep_until};

use super::{Cluster, proposer::WriteError};
use crate::{
    clock,
    runtime::{Runtime, VOTE_MAX, VOTE_TTL},
};

/// For how long a voter that heard its leader lets no other lead. It is above [`VOTE_TTL`],
/// because openraft wants it so, and below what a failover may take.
pub(super) const LEASE: Duration = Duration::from_millis(650);

/// For how long, in turns, a leader that no majority answers is silent and speaks. While it is
/// silent, the leases of those that it still reaches run out, and they can elect another one with
/// those that it does not reach.
pub const QUIET_TURN: Duration = Duration::from_millis(1300);

/// The least time between the end of the lease and a campaign: the leases of the others began a
/// little later, or earlier.
const SHARE_MIN: Duration = Duration::from_millis(50);

/// The share of time is drawn from a range of this length, on a disk that takes no time.
const SHARE_RANGE: Duration = Duration::from_millis(250);

/// The range of the share of time, at most.
const SHARE_RANGE_MAX: Duration = Duration::from_secs(4);

/// Duration of a campaign on a disk that takes no time: a few round trips.
const CAMPAIGN: Duration = Duration::from_millis(150);

/// The slowest sync that is waited for. [`VOTE_MAX`] has room for several of them.
const SYNC_MAX: Duration = Duration::from_secs(2);

/// Interval between checks of whether this instance may stand, while it may not.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Time after which the only voter asks again for its own election.
const ALONE_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(VOTE_TTL.as_millis() < LEASE.as_millis());
const _: () = assert!(VOTE_MAX.as_millis() > 4 * SYNC_MAX.as_millis());

/// A task that wakes up so much later than asked for was stopped itself, and has not listened.
const OVERSLEPT: Duration = Duration::from_millis(500);

/// The record of the campaigns since there was a leader.
struct Campaigns {
    /// This task has listened since then.
    listens_since: Instant,
    /// When the last campaign of this instance began, and the term that it began in.
    last: Option<(Instant, u64)>,
    /// Campaigns that ended without a leader.
    failed: u32,
}

impl Campaigns {
    /// Another one begins now, in this term. The leader was heard last at `heard`.
    fn begin(&mut self, now: Instant, term: u64, heard: Option<Instant>) {
        self.failed = match self.last {
            Some((began, _)) if heard > Some(began) => 0,
            // Questions that were answered with no cost nothing and need no patience.
            Some((_, asked_in)) if asked_in == term => self.failed,
            Some(_) => self.failed + 1,
            None => 0,
        };
        self.last = Some((now, term));
    }

    /// From when on no candidate has a claim to be waited for, if a leader and a candidate were
    /// heard last at these times, and a sync of the vote takes `sync`.
    fn free_from(
        &self,
        leader: Option<Instant>,
        candidate: Option<Instant>,
        sync: Duration,
    ) -> Instant {
        let lease = leader.map(|heard| heard + LEASE);
        // The candidate makes its leadership durable before others hear of it.
        let other = candidate.map(|heard| heard + CAMPAIGN + 2 * sync);
        // Votes are made durable here, there, and once more when they make a leader.
        let own = self.last.map(|(began, _)| began + CAMPAIGN + 4 * sync);
        [lease, other, own].into_iter().flatten().fold(self.listens_since, Instant::max)
    }
}

/// The next step of this instance towards a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing: it leads, does not vote, or may not stand.
    None,
    /// It is the only voter, and leads as soon as it wants to.
    OnlyVoter,
    /// It is one of several voters.
    Voter,
}

impl Cluster {
    /// Stands for election whenever there is reason to, for as long as raft runs.
    ///
    /// # Errors
    /// If raft has stopped.
    pub(super) async fn stand(&self) -> Result<(), WriteError> {
        let mut campaigns = Campaigns { listens_since: clock::now(), last: None, failed: 0 };
        loop {
            match self.part() {
                Part::None => sleep(LOOK_EVERY).await,
                Part::OnlyVoter => self.lead_alone().await?,
                Part::Voter => self.wait_and_stand(&mut campaigns).await?,
            }
        }
    }

    /// Makes the only voter lead, unless that is under way.
    async fn lead_alone(&self) -> Result<(), WriteError> {
        sleep(LOOK_EVERY).await;
        if self.part() != Part::OnlyVoter || self.pulses.log.pending().is_some() {
            return Ok(());
        }
        self.elect().await?;
        // A second request while the vote is being written would begin another term.
        let raft = self.raft.wait(Some(ALONE_MAX));
        drop(raft.state(ServerState::Leader, "the only voter").await);
        Ok(())
    }

    /// Waits for the end of the lease and of the share, and stands if nothing came in between.
    async fn wait_and_stand(&self, campaigns: &mut Campaigns) -> Result<(), WriteError> {
        let free_from = self.free_from(campaigns);
        let due = free_from + share(self.sync_time(), campaigns.failed);
        sleep_until(due.into()).await;
        let now = clock::now();
        if now.saturating_duration_since(due.max(campaigns.listens_since)) > OVERSLEPT {
            campaigns.listens_since = now;
            return Ok(());
        }
        if self.free_from(campaigns) > free_from || self.part() != Part::Voter {
            return Ok(());
        }
        let term = self.raft.metrics().borrow_watched().current_term;
        let heard = self.contact.leader_heard();
        campaigns.begin(now, term, heard);
        tracing::debug!(term, failed = campaigns.failed, "standing for election");
        self.elect().await
    }

    async fn elect(&self) -> Result<(), WriteError> {
        let asked = self.raft.trigger().elect(true).await;
        asked.map_err(|error| WriteError::Stopped(error.to_string()))
    }

    /// From when on no candidate has a claim to be waited for.
    fn free_from(&self, campaigns: &Campaigns) -> Instant {
        let (leader, candidate) = (self.contact.leader_heard(), self.contact.candidate_heard());
        campaigns.free_from(leader, candidate, self.sync_time())
    }

    /// Returns the time of a sync of the vote here: that of slow ones, or of the one under way.
    fn sync_time(&self) -> Duration {
        let log = &self.pulses.log;
        log.slowest().max(log.pending().unwrap_or_default()).min(SYNC_MAX)
    }

    fn part(&self) -> Part {
        // Asked first: it looks at raft's state as well, and a second look while this one holds it
        // would wait for ever behind a change that waits for this one.
        let (may_vote, is_reachable) = (self.may_vote(), self.misplaced().is_none());
        let states = self.raft.metrics();
        let now = states.borrow_watched();
        let membership = now.membership_config.membership();
        let leads = now.state == ServerState::Leader;
        // A vote that cannot be made durable is none, and raft would wait for it.
        if leads || !may_vote || self.pulses.log.stuck().is_some() {
            Part::None
        } else if membership.voter_ids().eq([self.instance.0]) {
            Part::OnlyVoter
        } else if is_reachable && membership.voter_ids().any(|voter| voter == self.instance.0) {
            Part::Voter
        } else {
            Part::None
        }
    }
}

/// Returns a random share of time on a disk with this time of a sync, after this number of
/// campaigns in vain.
fn share(sync: Duration, failed: u32) -> Duration {
    let range = (SHARE_RANGE + 4 * sync).saturating_mul(1 << failed.min(5)).min(SHARE_RANGE_MAX);
    let range = u64::try_from(range.as_millis()).unwrap_or(u64::MAX);
    SHARE_MIN + Duration::from_millis(Runtime::thread_rng().random_range(0..=range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_time_follows_the_disk_and_the_campaigns_in_vain_and_is_bounded() {
        let longest = |sync, failed| {
            let sync = Duration::from_millis(sync);
            (0..1000).map(|_| share(sync, failed)).max().expect("a thousand")
        };
        let shortest = (0..1000).map(|_| share(Duration::ZERO, 9)).min().expect("a thousand");
        assert!(shortest >= SHARE_MIN);
        assert!(longest(0, 0) <= SHARE_MIN + SHARE_RANGE);
        assert!(longest(150, 0) > Duration::from_millis(600), "two need not collide");
        assert!(longest(0, 3) > SHARE_MIN + 4 * SHARE_RANGE);
        assert!(longest(5000, 40) <= SHARE_MIN + SHARE_RANGE_MAX);
    }

    #[test]
    fn the_claims_of_others_and_the_own_campaign_are_waited_for() {
        let (start, ms) = (clock::now(), Duration::from_millis);
        let at = |time| start + ms(time);
        for (leader, candidate, own, sync, expected) in [
            (None, None, None, 10, 1000),
            (Some(900), None, None, 10, 1550),
            (None, Some(900), None, 10, 1070),
            (None, None, Some(900), 10, 1090),
            (Some(900), Some(1500), Some(1490), 0, 1650),
            (Some(1000), Some(1500), Some(1450), 100, 2000),
            (Some(2000), Some(1500), Some(1450), 100, 2650),
            (Some(100), Some(100), Some(100), 10, 1000),
        ] {
            let last = own.map(|began| (at(began), 7));
            let campaigns = Campaigns { listens_since: at(1000), last, failed: 0 };
            let free = campaigns.free_from(leader.map(at), candidate.map(at), ms(sync));
            assert_eq!(free, at(expected), "{leader:?} {candidate:?} {own:?} {sync}");
        }
    }

    #[test]
    fn campaigns_in_vain_are_counted_until_a_leader_is_heard() {
        let (start, second) = (clock::now(), Duration::from_secs(1));
        let mut campaigns = Campaigns { listens_since: start, last: None, failed: 0 };
        // The term in which each begins, when a leader was heard last, and how many have failed.
        for (number, (term, heard, failed)) in (1..).zip([
            (7, None, 0),
            (7, Some(0), 0),
            (8, Some(0), 1),
            (8, Some(0), 1),
            (9, Some(3), 2),
            (10, Some(5), 3),
            (11, Some(7), 0),
            (12, Some(7), 1),
        ]) {
            let now = start + number * second;
            campaigns.begin(now, term, heard.map(|heard| start + heard * second));
            assert_eq!((campaigns.failed, campaigns.last), (failed, Some((now, term))), "{number}");
        }
    }
}
