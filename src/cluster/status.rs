//! The state of the cluster at a glance, as an instance knows it.

use std::{collections::BTreeMap, time::Duration};

use openraft::{Instant as _, RaftMetrics, ServerState, async_runtime::WatchReceiver};

use super::Cluster;
use crate::{
    ids::InstanceId,
    raft::{Member, TypeConfig},
    registry::{Registry, Rules},
    storage::ClusterId,
};

/// A leader that no majority has answered for this time, and a follower that has not heard its
/// leader for this time, cannot answer clients now: the longest time until an election, and a half
/// more.
pub(super) const CUT_OFF_AFTER: Duration = Duration::from_millis(1500);

/// The state of the cluster at a glance.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// This instance.
    pub node: InstanceId,
    /// "leader", "follower", "candidate", "learner" or "shutdown".
    pub role: &'static str,
    /// The leader; `None` if this instance hears none.
    pub leader: Option<InstanceId>,
    /// The raft term.
    pub term: u64,
    /// The last entry in this instance's log.
    pub last_log_index: u64,
    /// The last entry applied to this instance's registry.
    pub applied_index: u64,
    /// The rules in force here.
    pub rules: Rules,
    /// The newest rules that this instance knows.
    pub newest_rules: Rules,
    /// The members by number.
    pub members: BTreeMap<InstanceId, ClusterMember>,
}

/// A member as this instance knows it.
#[derive(Clone, Debug)]
pub struct ClusterMember {
    /// Its address and store.
    pub member: Member,
    /// Whether it votes.
    pub voter: bool,
    /// The entries that it lags behind the leader; only the leader knows.
    pub lag: Option<u64>,
    /// For how long it was not heard: the leader knows it of all, a follower of its leader.
    pub silence: Option<Duration>,
    /// The newest rules that it knows, as it said when it was heard last; `None` if it was not.
    pub newest_rules: Option<Rules>,
}

impl ClusterStatus {
    /// Returns the number of voters that may fail from now on with a majority left, counting those
    /// that are not heard as failed already; `None` if this instance does not lead.
    pub fn failure_tolerance(&self) -> Option<i64> {
        if self.leader != Some(self.node) || self.role != "leader" {
            return None;
        }
        let voters = self.members.values().filter(|member| member.voter);
        let is_heard =
            |member: &ClusterMember| member.silence.is_some_and(|it| it <= CUT_OFF_AFTER);
        let (all, heard) = voters
            .fold((0, 0), |(all, heard), member| (all + 1, heard + i64::from(is_heard(member))));
        Some(heard - (all / 2 + 1))
    }
}

impl Cluster {
    /// Returns the state at a glance.
    pub fn status(&self) -> ClusterStatus {
        let states = self.raft.metrics();
        let now = states.borrow_watched();
        let last_log_index = now.last_log_index.unwrap_or(0);
        let lag = |id: u64| {
            let reached = now.replication.as_ref()?.get(&id)?.as_ref().map_or(0, |at| at.index);
            Some(last_log_index.saturating_sub(reached))
        };
        let leads = now.state == ServerState::Leader;
        let silence = |id: u64| {
            if leads && id == self.instance.0 {
                Some(Duration::ZERO)
            } else if leads {
                silence_of(&now, id).or_else(|| self.contact.silence())
            } else {
                self.contact.silence().filter(|_| now.current_leader == Some(id))
            }
        };
        // The last one that was heard may have led long ago.
        let is_heard = self.contact.silence().is_some_and(|it| it <= CUT_OFF_AFTER);
        let membership = now.membership_config.membership();
        let members = membership.nodes().map(|(id, member)| {
            let voter = membership.voter_ids().any(|voter| voter == *id);
            let (member, lag, silence) = (member.clone(), lag(*id), silence(*id));
            let id = InstanceId(*id);
            let newest_rules = self.newest_rules(id);
            (id, ClusterMember { member, voter, lag, silence, newest_rules })
        });
        ClusterStatus {
            cluster: self.cluster,
            node: self.instance,
            role: role(now.state),
            leader: now.current_leader.filter(|_| leads || is_heard).map(InstanceId),
            term: now.current_term,
            last_log_index,
            applied_index: now.last_applied.as_ref().map_or(0, |id| id.index),
            rules: self.view().read(Registry::rules),
            newest_rules: self.greeter.newest_rules(),
            members: members.collect(),
        }
    }
}

/// For how long the leader, whose states these are, has not heard an instance; `None` if it never
/// did, or does not lead.
pub(super) fn silence_of(states: &RaftMetrics<TypeConfig>, id: u64) -> Option<Duration> {
    let heard = states.heartbeat.as_ref()?.get(&id)?.as_ref()?;
    Some(heard.elapsed())
}

fn role(state: ServerState) -> &'static str {
    match state {
        ServerState::Candidate => "candidate",
        ServerState::Follower => "follower",
        ServerState::Leader => "leader",
        ServerState::Learner => "learner",
        ServerState::Shutdown => "shutdown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the leader's view of voters and learners, each with the milliseconds since it was
    /// heard.
    fn status(members: &[(bool, Option<u64>)]) -> ClusterStatus {
        let members = (1..).zip(members).map(|(id, (voter, silence))| {
            let (member, voter) = (Member::default(), *voter);
            let silence = silence.map(Duration::from_millis);
            let (lag, newest_rules) = (None, None);
            (InstanceId(id), ClusterMember { member, voter, lag, silence, newest_rules })
        });
        ClusterStatus {
            cluster: ClusterId(1),
            node: InstanceId(1),
            role: "leader",
            leader: Some(InstanceId(1)),
            term: 1,
            last_log_index: 1,
            applied_index: 1,
            rules: Rules::NEWEST,
            newest_rules: Rules::NEWEST,
            members: members.collect(),
        }
    }

    #[test]
    fn what_may_fail_is_what_is_heard_beyond_a_majority() {
        let (here, late, never) = ((true, Some(1500)), (true, Some(1501)), (true, None));
        let learner = (false, Some(0));
        for (members, expected) in [
            (&[here][..], 0),
            (&[here, here], 0),
            (&[here, late], -1),
            (&[here, here, here], 1),
            (&[here, here, late, learner], 0),
            (&[here, never, late, learner], -1),
            (&[here, here, here, here], 1),
            (&[here, here, here, here, here], 2),
            (&[here, here, late, late, never], -1),
        ] {
            assert_eq!(status(members).failure_tolerance(), Some(expected), "{members:?}");
        }
        let led = ClusterStatus { leader: Some(InstanceId(2)), ..status(&[here]) };
        assert_eq!(led.failure_tolerance(), None);
        let candidate = ClusterStatus { role: "candidate", ..status(&[here]) };
        assert_eq!(candidate.failure_tolerance(), None);
    }

    #[test]
    fn every_role_has_its_name() {
        let states = [
            (ServerState::Candidate, "candidate"),
            (ServerState::Follower, "follower"),
            (ServerState::Leader, "leader"),
            (ServerState::Learner, "learner"),
            (ServerState::Shutdown, "shutdown"),
        ];
        for (state, name) in states {
            assert_eq!(role(state), name);
        }
    }
}
