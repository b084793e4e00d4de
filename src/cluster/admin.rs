//! Changes of the cluster itself: its members, its voters, its leader. Any instance takes them and
//! passes them on to the leader; each says in words what it did or why it did not.
//!
//! An instance is added as a learner, which replicates and does not vote, and promoted when it has
//! caught up. So a newcomer never makes the cluster wait for it.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use openraft::{
    ChangeMembers, Raft,
    async_runtime::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::time::{sleep, timeout};

pub use super::rpc::Change;
use super::{
    Cluster,
    network::Network,
    peers::{Peers, Reach},
    rpc::{CallError, Introduce},
    status::silence_of,
    writer::Leader,
};
use crate::{
    ids::InstanceId,
    raft::{Member, TypeConfig},
    storage::{RegistryView, StateMachine},
};

/// Longest time for a change at the leader.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// Longest wait for the answer of a leader elsewhere; it gives up before that.
const PASSED_ON_MAX: Duration = Duration::from_secs(12);

/// Longest wait for a leader.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(3);

/// Pause while another change is being made.
const PAUSE: Duration = Duration::from_millis(50);

/// Time for which a leader that is new, and has heard no other yet, listens before it says which
/// are away: many heartbeats.
const LISTEN_MAX: Duration = Duration::from_secs(1);

/// Longest wait for a new leader to appear.
const TRANSFER_MAX: Duration = Duration::from_secs(3);

/// A voter that has answered no heartbeat for this time is not counted on, neither to lead nor to
/// be one of a majority; there are ten a second.
const FRESH: Duration = Duration::from_millis(500);

/// The advice in the answer to an addition when the instance has no data yet.
pub const START_EMPTY: &str = "start it with an empty data directory";

/// The most entries that a learner may lag behind and still be promoted, and a voter and still be
/// given the leadership.
pub const PROMOTE_LAG_MAX: u64 = 1000;

/// Why a change was not made: a sentence for people, which says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no leader.
    #[error(
        "the cluster has no leader, so nothing can be changed: start instances until a majority \
         of the voters runs (`EMNetChain cluster status` on each tells which do)"
    )]
    NoLeader,
    /// This instance reaches no leader that could write it, for this reason.
    #[error("nothing can be changed now: {0}")]
    NoMajority(String),
    /// It is not possible like this.
    #[error("{0}")]
    Refused(String),
    /// It may have been made or not.
    #[error("{0}; see `EMNetChain cluster members`, and repeat it if necessary")]
    Unknown(String),
}

impl Cluster {
    /// Makes a change, at the leader if that is elsewhere. Returns a sentence that says what is now
    /// the case.
    ///
    /// # Errors
    /// If it is not made, or it is not known whether it is.
    pub async fn change(&self, change: Change) -> Result<String, ChangeError> {
        self.find_majority().await?;
        let changed = self.change_now(change).await;
        changed.map_err(|error| match (error, self.without_majority()) {
            (ChangeError::Unknown(_), Some(why)) => {
                ChangeError::Unknown(format!("this may be done once there is a majority: {why}"))
            }
            (error, _) => error,
        })
    }

    /// Waits for a leader that can write. An election is over by then; an outage is not.
    async fn find_majority(&self) -> Result<(), ChangeError> {
        let waiting = async {
            while self.without_majority().is_some() {
                sleep(PAUSE).await;
            }
        };
        if timeout(LEADER_WAIT_MAX, waiting).await.is_ok() {
            return Ok(());
        }
        self.without_majority().map_or(Ok(()), |why| Err(ChangeError::NoMajority(why)))
    }

    async fn change_now(&self, change: Change) -> Result<String, ChangeError> {
        let find = || self.router.find_leader(LEADER_WAIT_MAX);
        let mut leader = find().await.ok_or(ChangeError::NoLeader)?;
        if change == Change::Remove(leader.id) {
            // A leader should belong to the cluster that it leads.
            let handed_over = self.change_at(&leader, Change::TransferLeader(None)).await;
            tracing::debug!(?handed_over, "a leader is to be removed");
            leader = find().await.ok_or(ChangeError::NoLeader)?;
        }
        self.change_at(&leader, change).await
    }

    async fn change_at(&self, leader: &Leader, change: Change) -> Result<String, ChangeError> {
        if leader.id == self.instance && change == Change::Upgrade {
            return self.upgrades.raise().await;
        }
        if leader.id == self.instance {
            return self.leading().carry_out(change).await;
        }
        match self.network.ask(leader.id, &leader.member, change, PASSED_ON_MAX).await {
            Ok(done) => Ok(done),
            Err(CallError::Failed(why)) => Err(ChangeError::Refused(why)),
            Err(error) => Err(ChangeError::Unknown(format!("leader {}: {error}", leader.id.0))),
        }
    }

    fn leading(&self) -> Leading<'_> {
        Leading {
            raft: &self.raft,
            view: self.view(),
            network: &self.network,
            peers: self.greeter.peers(),
        }
    }

    /// Makes the membership say which store bears this instance's number, and where it is reached,
    /// if it is the only voter. A restored instance has no store in there yet.
    ///
    /// # Errors
    /// If raft does not take it.
    pub(super) async fn settle_own(&self, member: Member) -> Result<(), ChangeError> {
        let nodes = BTreeMap::from([(self.instance.0, member)]);
        apply(&self.raft, ChangeMembers::SetNodes(nodes)).await
    }

    /// Gives the leadership away, if this instance has it and another one can take it. Returns why
    /// it keeps the leadership, if it does.
    pub async fn step_down(&self) -> Option<String> {
        if !self.leads() || self.raft.voter_ids().eq([self.instance.0]) {
            return None;
        }
        let error = self.leading().carry_out(Change::TransferLeader(None)).await.err()?;
        tracing::debug!(%error, "the leadership was not handed over");
        self.leads().then(|| error.to_string())
    }
}

/// The tools for a change where the leader is.
pub(super) struct Leading<'a> {
    pub(super) raft: &'a Raft<TypeConfig, StateMachine>,
    pub(super) view: &'a RegistryView,
    pub(super) network: &'a Network,
    pub(super) peers: &'a Peers,
}

impl Leading<'_> {
    /// Makes a change.
    pub(super) async fn carry_out(&self, change: Change) -> Result<String, ChangeError> {
        let making = async {
            match change {
                Change::Add { instance, member } => self.add(instance, member).await,
                Change::Promote(instance) => self.promote(instance).await,
                Change::Remove(instance) => remove(self.raft, instance).await,
                Change::TransferLeader(to) => self.transfer(to).await,
                Change::Upgrade => unreachable!("the rules are raised by `Upgrades`"),
            }
        };
        let late = || ChangeError::Unknown("it was not finished in time".to_owned());
        timeout(CHANGE_MAX, making).await.unwrap_or_else(|_| Err(late()))
    }

    async fn transfer(&self, to: Option<InstanceId>) -> Result<String, ChangeError> {
        let raft = self.raft;
        let me = *raft.node_id();
        if to == Some(InstanceId(me)) {
            return Ok(format!("instance {me} leads"));
        }
        let to = match to {
            Some(to) => self.fit_to_lead(to).await?.0,
            None => self.furthest().await.ok_or_else(|| {
                ChangeError::Refused(format!(
                    "no other voter is there and has caught up, so instance {me} keeps the \
                     leadership"
                ))
            })?,
        };
        let asked = raft.trigger().transfer_leader(to).await;
        asked.map_err(|error| ChangeError::Refused(error.to_string()))?;
        let taken = raft.wait(Some(TRANSFER_MAX)).current_leader(to, "the transfer").await;
        taken.map(|_| format!("instance {to} leads")).map_err(|_| {
            let now = raft.metrics().borrow_watched().current_leader;
            let leads = now.map_or_else(
                || "no instance leads at the moment".to_owned(),
                |leader| format!("instance {leader} leads"),
            );
            ChangeError::Refused(format!("instance {to} did not take the leadership; {leads}"))
        })
    }

    /// Returns whether a member can take the leadership now.
    async fn fit_to_lead(&self, to: InstanceId) -> Result<InstanceId, ChangeError> {
        let (id, raft) = (to.0, self.raft);
        let me = raft.node_id();
        match find(raft, id) {
            Some(true) => {}
            Some(false) => {
                return Err(ChangeError::Refused(format!(
                    "instance {id} does not vote, so it cannot lead; promote it first"
                )));
            }
            None => return Err(not_a_member(raft, id)),
        }
        if !self.answers(id).await {
            return Err(ChangeError::Refused(format!(
                "instance {id} is not heard{}, so instance {me} keeps the leadership",
                self.why(to)
            )));
        }
        match lag(raft, id) {
            Some(lag) if lag <= PROMOTE_LAG_MAX => Ok(to),
            lag => Err(ChangeError::Refused(format!(
                "instance {id} is {} entries behind, so instance {me} keeps the leadership; \
                 repeat this when it has caught up",
                lag.map_or_else(|| "all".to_owned(), |lag| lag.to_string())
            ))),
        }
    }

    /// Asks a member whether it is there. That it was heard a moment ago does not suffice: one that
    /// has just died would cost clients the time of a transfer that comes to nothing.
    async fn answers(&self, id: u64) -> bool {
        let Some(member) = node(self.raft, id) else { return false };
        self.network.ask(InstanceId(id), &member, Introduce, FRESH).await.is_ok()
    }

    /// Returns the other voter whose log goes furthest, of those that are there and have caught up.
    async fn furthest(&self) -> Option<u64> {
        let raft = self.raft;
        let others = raft.voter_ids().filter(|id| id != raft.node_id());
        let asked = others.map(|id| async move { (id, self.answers(id).await) });
        let there = join_all(asked).await.into_iter().filter(|(_, answers)| *answers);
        let fit = there.filter_map(|(id, _)| Some((lag(raft, id)?, id)));
        fit.filter(|(lag, _)| *lag <= PROMOTE_LAG_MAX).min().map(|(_, id)| id)
    }

    /// Returns why a member is not reached, in parentheses.
    pub(super) fn why(&self, id: InstanceId) -> String {
        match self.peers.reach(id) {
            Reach::Lost(why) | Reach::Refused(why) => format!(" ({why})"),
            Reach::Untried | Reach::Reached => String::new(),
        }
    }
}

async fn remove(
    raft: &Raft<TypeConfig, StateMachine>,
    instance: InstanceId,
) -> Result<String, ChangeError> {
    let id = instance.0;
    match find(raft, id) {
        None => return Err(not_a_member(raft, id)),
        Some(true) if raft.voter_ids().eq([id]) => {
            return Err(ChangeError::Refused(format!(
                "instance {id} is the only voter; promote another one first"
            )));
        }
        Some(true) => {
            let rest: Vec<u64> = raft.voter_ids().filter(|voter| *voter != id).collect();
            hear(raft, |heard| rest.iter().all(|voter| heard(*voter)), FRESH).await;
            let heard = rest.iter().filter(|voter| is_heard(raft, **voter, FRESH)).count();
            if 2 * heard <= rest.len() {
                return Err(ChangeError::Refused(format!(
                    "of the {} voters that would be left only {heard} are there, and nothing \
                     could be written any more; start or replace the others first",
                    rest.len()
                )));
            }
            apply(raft, ChangeMembers::RemoveVoters([id].into())).await?;
        }
        Some(false) => apply(raft, ChangeMembers::RemoveNodes([id].into())).await?,
    }
    Ok(format!("instance {id} is no longer a member; stop it, and never use its number again"))
}

/// Returns the number of entries that a member lags behind; `None` if it has acknowledged none yet.
pub(super) fn lag(raft: &Raft<TypeConfig, StateMachine>, id: u64) -> Option<u64> {
    let states = raft.metrics();
    let now = states.borrow_watched();
    let reached = now.replication.as_ref().and_then(|known| *known.get(&id)?);
    reached.map(|at| now.last_log_index.unwrap_or(0).saturating_sub(at.index))
}

/// Listens for a while until `enough` members are heard: one that a new leader has not heard yet
/// need not be away.
pub(super) async fn hear(
    raft: &Raft<TypeConfig, StateMachine>,
    enough: impl Fn(&dyn Fn(u64) -> bool) -> bool,
    within: Duration,
) {
    let listen = async {
        while !enough(&|id| is_heard(raft, id, within)) {
            sleep(PAUSE).await;
        }
    };
    // One that is not heard by then is away, which the caller finds out for itself.
    drop(timeout(LISTEN_MAX, listen).await);
}

/// Returns whether the leader has heard from a member within this time.
pub(super) fn is_heard(raft: &Raft<TypeConfig, StateMachine>, id: u64, within: Duration) -> bool {
    let states = raft.metrics();
    let now = states.borrow_watched();
    id == now.id || silence_of(&now, id).is_some_and(|silence| silence < within)
}

/// Returns a member as the membership has it.
pub(super) fn node(raft: &Raft<TypeConfig, StateMachine>, id: u64) -> Option<Member> {
    let states = raft.metrics();
    let now = states.borrow_watched();
    now.membership_config.membership().get_node(&id).cloned()
}

/// Returns whether a member votes; `None` if it is none.
pub(super) fn find(raft: &Raft<TypeConfig, StateMachine>, id: u64) -> Option<bool> {
    let states = raft.metrics();
    let now = states.borrow_watched();
    let membership = now.membership_config.membership();
    membership.get_node(&id)?;
    Some(membership.voter_ids().any(|voter| voter == id))
}

pub(super) fn not_a_member(raft: &Raft<TypeConfig, StateMachine>, id: u64) -> ChangeError {
    let members: Vec<String> = {
        let states = raft.metrics();
        let now = states.borrow_watched();
        now.membership_config.membership().nodes().map(|(id, _)| id.to_string()).collect()
    };
    ChangeError::Refused(format!("{id} is not a member; members are {}", members.join(", ")))
}

pub(super) async fn apply(
    raft: &Raft<TypeConfig, StateMachine>,
    change: ChangeMembers<u64, Member>,
) -> Result<(), ChangeError> {
    loop {
        return match raft.change_membership(change.clone(), false).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_),
            ))) => {
                sleep(PAUSE).await;
                continue;
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(ChangeError::Refused(error.to_string()))
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(ChangeError::Unknown("the leader was replaced meanwhile".to_owned()))
            }
            Err(error) => Err(ChangeError::Unknown(error.to_string())),
        };
    }
}
