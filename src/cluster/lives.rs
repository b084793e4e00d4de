//! The lives of instances. A life begins with a [`Command::Start`] in the log, and the sessions of
//! an instance belong to its present life.
//!
//! An instance that died cannot say so. The leader does: when it has not heard from an instance for
//! [`LOST_AFTER`], it begins that instance's next life in its place, so that the asks of clients
//! that were connected there wait for the resume grace and no longer. If the instance is alive
//! after all, it finds its life over, closes what sessions it has and begins another one: the
//! clients knock again and are told what they missed. The same happens after a snapshot was
//! installed, because the entries that it stands for were never applied here, and no client was
//! told what they said.

use std::time::{Duration, Instant};

use openraft::{
    ServerState,
    async_runtime::{AsyncRuntime as _, WatchReceiver},
};
use rand::RngExt as _;
use tokio::sync::watch;

use super::{
    Cluster, ClusterError,
    compare::UNFIT,
    found::Founding,
    proposer::{WriteError, Writer, Written},
    status::silence_of,
    turned::Learnt,
};
use crate::{
    clock,
    ids::{HistoryId, Incarnation, InstanceId},
    raft::Member,
    registry::{Command, Policy, Registry},
    runtime::Runtime,
};

/// An instance that the leader has not heard from for this time is taken for dead. Its clients have
/// the resume grace on top.
pub const LOST_AFTER: Duration = Duration::from_secs(3);

/// Why a life is over that the leader has ended.
pub const GIVEN_UP: &str = "the others had given this instance up";

/// Why a life is over of an instance that is no longer a member: it could never answer its clients.
pub const REMOVED: &str = "this instance was removed from the cluster";

/// Interval between the leader's checks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pause before a write is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// One life of this instance.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Its number.
    pub incarnation: Incarnation,
    /// The number of snapshots installed when it began.
    installed: u64,
}

impl Cluster {
    /// Makes what this instance was started with hold: the settings of the registry, and its own
    /// address if it is the only voter, so that others can be added to one that was alone. Waits
    /// for as long as there is no leader.
    ///
    /// # Errors
    /// If raft has stopped, or does not take the address.
    pub async fn settle(&self, founding: &Founding, policy: Policy) -> Result<(), ClusterError> {
        let greeted_with = self.view().read(Registry::history);
        self.catch_up().await?;
        if self.view().read(Registry::history) != greeted_with {
            // The history was in the log only, so nothing could be held against it yet.
            self.greet_all(founding).await;
            if let Some(turned) = self.learnt().borrow().turned.clone() {
                return Err(turned.into());
            }
        }
        self.check_list(founding)?;
        self.settle_member(founding).await?;
        if self.view().read(|registry| registry.history().is_none()) {
            // Each member may propose a name; the first one in the log stays.
            let history = HistoryId(Runtime::thread_rng().random());
            self.insist(Command::Found { history }).await?;
        }
        self.greeter.settled();
        if self.view().read(|registry| *registry.policy() != policy) {
            self.insist(Command::SetPolicy(policy)).await?;
        }
        Ok(())
    }

    /// Holds the list that this instance was started with against its history: it must name nothing
    /// that this history never knew. A list from before an addition or a removal is fine.
    fn check_list(&self, founding: &Founding) -> Result<(), ClusterError> {
        let Founding::With(list) = founding else { return Ok(()) };
        let members = self.members();
        let stranger = self.view().read(|registry| {
            let known = |id| members.contains_key(&id) || registry.instance(id).is_some();
            list.iter().find(|(id, _)| !known(**id))
        });
        match stranger {
            Some((id, member)) => {
                Err(ClusterError::Stranger { id: *id, address: member.raft_addr.clone() })
            }
            None => Ok(()),
        }
    }

    /// Makes the membership name this instance's store, and its address if it was started alone,
    /// while it is the only voter.
    async fn settle_member(&self, founding: &Founding) -> Result<(), ClusterError> {
        if !self.raft.voter_ids().eq([self.instance.0]) {
            return Ok(());
        }
        let known = self.members().remove(&self.instance).unwrap_or_default();
        let mut member = Member { store: Some(self.greeter.store()), ..known.clone() };
        if let Founding::Alone(given) = founding
            && !given.raft_addr.is_empty()
        {
            member.raft_addr.clone_from(&given.raft_addr);
        }
        if member != known {
            let settled = self.settle_own(member).await;
            settled.map_err(|error| ClusterError::Found(error.to_string()))?;
        }
        Ok(())
    }

    /// Begins a new life of this instance: the sessions of its earlier ones are gone. Waits for as
    /// long as there is no leader, or the registry here differs from that of others.
    ///
    /// # Errors
    /// If raft has stopped.
    pub async fn begin_life(&self) -> Result<Life, ClusterError> {
        // All answers to earlier lives are behind this, so no number can be taken twice.
        self.catch_up().await?;
        while !self.prove().await {
            self.catch_up().await?;
        }
        let (instance, installed) = (self.instance, self.view().installed());
        let incarnation = self.view().read(|registry| registry.incarnation(instance)).next();
        let written = self.insist(Command::Start { instance, incarnation }).await?;
        self.applied(written.index).await?;
        self.metrics.lives.inc();
        Ok(Life { incarnation, installed })
    }

    /// Waits until a life of this instance is over, and says why.
    pub async fn life_over(&self, life: Life) -> &'static str {
        let (mut states, mut accord) = (self.raft.metrics(), self.accord());
        let mut learnt = self.learnt();
        loop {
            if learnt.borrow_and_update().removed.is_some() {
                return REMOVED;
            }
            if accord.borrow_and_update().trouble().is_some() {
                return UNFIT;
            }
            if self.view().installed() > life.installed {
                return "this instance was brought up to date by a snapshot";
            }
            if self.view().read(|registry| registry.incarnation(self.instance)) > life.incarnation {
                return GIVEN_UP;
            }
            tokio::select! {
                biased;
                changed = states.changed() => if changed.is_err() {
                    std::future::pending::<()>().await; // what watches raft says that it stopped
                },
                _ = accord.changed() => {}
                _ = learnt.changed() => {}
            }
        }
    }

    /// Returns the facts that this instance has learnt about itself; they can be watched.
    pub fn learnt(&self) -> watch::Receiver<Learnt> {
        self.greeter.learnt()
    }

    /// Returns whether this instance has learnt that it is no longer a member.
    pub fn is_removed(&self) -> bool {
        self.learnt().borrow().removed.is_some()
    }

    /// Ends the present life of this instance, as its last act.
    pub async fn end_life(&self) {
        let instance = self.instance;
        let last = self.view().read(|registry| registry.incarnation(instance));
        let start = Command::Start { instance, incarnation: last.next() };
        if let Err(error) = self.router.write(None, vec![start]).await {
            tracing::debug!(%error, "the others will notice that this instance is gone");
        }
    }

    /// While this instance leads, ends the lives of instances that are not heard from.
    ///
    /// # Errors
    /// If raft has stopped.
    pub(super) async fn end_lost_lives(&self) -> Result<(), WriteError> {
        let mut watch = Watch { term: 0, since: clock::now(), last_look: clock::now() };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            for (instance, last) in self.lost(&mut watch) {
                tracing::warn!(
                    instance = instance.0,
                    "an instance is silent; its clients may come back"
                );
                let start = Command::Start { instance, incarnation: last.next() };
                match self.local.write(None, vec![start]).await {
                    Ok(_) => self.metrics.lives_ended.inc(),
                    Err(WriteError::Again(_)) => {}
                    Err(error @ WriteError::Stopped(_)) => return Err(error),
                }
            }
        }
    }

    /// Returns the instances that are lost and whose clients still ask, with their present lives.
    fn lost(&self, watch: &mut Watch) -> Vec<(InstanceId, Incarnation)> {
        let now = clock::now();
        let states = self.raft.metrics();
        let states = states.borrow_watched();
        if states.state != ServerState::Leader {
            return Vec::new();
        }
        let listened = watch.listened(now, states.current_term);
        let holding: Vec<_> = self.view().read(|registry| registry.instances_that_hold_asks());
        let is_gone = |id: InstanceId| {
            let is_member = states.membership_config.membership().get_node(&id.0).is_some();
            !is_member || is_lost(silence_of(&states, id.0), listened)
        };
        holding.into_iter().filter(|(id, _)| *id != self.instance && is_gone(*id)).collect()
    }

    /// Waits until everything is applied here that was written before. Returns an entry behind it.
    pub(super) async fn catch_up(&self) -> Result<u64, ClusterError> {
        let written = self.insist(Command::Tick).await?;
        self.applied(written.index).await?;
        Ok(written.index)
    }

    /// Writes a command that may be repeated, until it is written.
    async fn insist(&self, command: Command) -> Result<Written, ClusterError> {
        loop {
            match self.router.write(None, vec![command.clone()]).await {
                Ok(written) => return Ok(written),
                Err(WriteError::Again(_)) => tokio::time::sleep(RETRY).await,
                Err(error @ WriteError::Stopped(_)) => return Err(error.into()),
            }
        }
    }

    async fn applied(&self, index: u64) -> Result<(), ClusterError> {
        let applied = self.raft.wait(None).applied_index_at_least(Some(index), "caught up").await;
        applied.map(drop).map_err(|error| ClusterError::Raft(error.to_string()))
    }
}

/// Since when the leader listens.
struct Watch {
    term: u64,
    since: Instant,
    last_look: Instant,
}

impl Watch {
    /// For how long the leader of this term has listened, at a look now.
    fn listened(&mut self, now: Instant, term: u64) -> Duration {
        // An instance that was asleep itself has heard no other, and cannot judge.
        let was_asleep = now - self.last_look > 4 * LOOK_EVERY;
        if self.term != term || was_asleep {
            (self.term, self.since) = (term, now);
        }
        self.last_look = now;
        now - self.since
    }
}

/// Returns whether a member is lost after this silence (`None`: never heard), for a leader that has
/// listened for `listened`.
fn is_lost(silence: Option<Duration>, listened: Duration) -> bool {
    silence.unwrap_or(listened).min(listened) > LOST_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_counts_the_time_in_which_it_led_and_was_awake() {
        let (start, ms) = (clock::now(), Duration::from_millis);
        let mut watch = Watch { term: 0, since: start, last_look: start };
        // When it looks, in which term, and for how long it has listened.
        for (at, term, listened) in [
            (500, 1, 0),
            (1000, 1, 500),
            (3000, 1, 2500),
            (3500, 2, 0),
            (4000, 2, 500),
            (6000, 2, 2500),
            (8001, 2, 0),
            (8501, 2, 500),
        ] {
            assert_eq!(watch.listened(start + ms(at), term), ms(listened), "at {at} ms");
        }
    }

    #[test]
    fn a_member_is_lost_when_it_was_silent_for_as_long_as_the_leader_has_listened() {
        let (least, more) = (LOST_AFTER, LOST_AFTER + Duration::from_millis(1));
        for (silence, listened, expected) in [
            (Some(least), more, false),
            (Some(more), least, false),
            (Some(more), more, true),
            (None, least, false),
            (None, more, true),
            (Some(Duration::ZERO), more, false),
        ] {
            assert_eq!(is_lost(silence, listened), expected, "{silence:?} {listened:?}");
        }
    }
}
