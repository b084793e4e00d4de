//! Founding and joining: an instance with an empty log founds a cluster with the others, or joins
//! one that exists.
//!
//! # Founding
//!
//! All instances of a new cluster are started with the same list of members. The founding entry
//! names them all, each with the store in its data directory, and there is one such entry in the
//! world:
//!
//! - Only the listed member with the lowest number decides on it, and only when *every* other
//!   listed member answers that its log is empty and its list the same. A majority would not do:
//!   two of three could found while the third one's disk is the only one that remembers an earlier
//!   founding.
//! - The others never decide. They copy that entry from a member that has it, and only if it names
//!   their own store. So the entry was decided on one disk, once; if that disk is lost, the number
//!   comes back with another store, which none of the copies names.
//!
//! One that is missing is waited for and named. The way out is to start it, or to start the others
//! with a shorter list and to add it later. The first leader then gives the history a random name
//! ([`Command::Found`](crate::registry::Command::Found)), so two clusters never share a history,
//! even with equal lists.
//!
//! # Joining
//!
//! An instance whose number no entry has named waits until an operator adds it. A number that the
//! membership names without a store is waited for by the leader: the gate opens
//! ([`greeter`](super::greeter)), and the leader sends what the log holds. One that the founding
//! entry names copies that entry first. A leader's first request makes its vote durable before its
//! entries, and if the power is cut in between, the instance has a vote and no log: it could not
//! vote ([`gate`](super::gate)), and could not write the founding entry any more. A number that
//! belongs to another store, or whose instance has served clients, has lost its disk: it ends, and
//! needs a new number.
//!
//! # Coming back
//!
//! An instance with data greets all others before its gate opens, for a short while; those that do
//! not answer do not hold it up. If one of them remembers more of this store than it holds, or has
//! another history, the instance ends before it has voted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use openraft::{Raft, async_runtime::WatchReceiver};
use tokio::{sync::watch, time::timeout};

use super::{
    Cluster, ClusterError,
    greeter::Greeter,
    rpc::{FoundingAnswer, Introduce, hello::Known},
    turned::Turned,
    waiting::{Answers, Waiting, addresses},
};
use crate::{
    ids::{InstanceId, StoreId},
    raft::{Member, TypeConfig},
    storage::StateMachine,
};

/// Interval between questions to the others.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Longest wait for an answer, and for all greetings of a start together.
const ANSWER_MAX: Duration = Duration::from_secs(2);

impl FoundingAnswer {
    /// Returns the standing of this instance, as it tells `peer`.
    ///
    /// # Errors
    /// If it cannot say so yet.
    pub(super) async fn of(
        raft: &Raft<TypeConfig, StateMachine>,
        greeter: &Greeter,
        peer: InstanceId,
    ) -> Result<Self, String> {
        let store = greeter.store();
        let founded = raft.is_initialized().await.map_err(|error| error.to_string())?;
        let states = raft.metrics();
        let membership = states.borrow_watched().membership_config.clone();
        if !founded {
            let list = greeter.list().ok_or("this instance is starting")?;
            return Ok(Self::Empty { store, list });
        }
        let is_first = membership.log_id().is_some_and(|id| id.index == 0);
        let nodes = membership.membership().nodes();
        let first: BTreeMap<_, _> =
            nodes.map(|(id, member)| (InstanceId(*id), member.clone())).collect();
        Ok(Self::Founded { store, known: greeter.known(peer), first: is_first.then_some(first) })
    }

    /// Returns the store of the one that says so.
    pub fn store(&self) -> StoreId {
        match self {
            Self::Empty { store, .. } | Self::Founded { store, .. } => *store,
        }
    }
}

/// The members that an instance with an empty log looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Founding {
    /// None: it is the first member of a cluster of its own, and is reached like this.
    Alone(Member),
    /// These, by their numbers.
    With(BTreeMap<InstanceId, Member>),
}

impl Founding {
    /// Returns the list by numbers and addresses.
    pub(in super::super) fn list(&self, me: InstanceId) -> BTreeMap<InstanceId, String> {
        match self {
            Self::Alone(member) => BTreeMap::from([(me, member.raft_addr.clone())]),
            Self::With(members) => addresses(members),
        }
    }
}

impl Cluster {
    /// Gets this instance into a cluster, unless it is in one; then makes sure that it may go on.
    /// `progress` tells people what is waited for.
    ///
    /// # Errors
    /// If this instance's votes are lost, or its data cannot be one with the others', or raft
    /// stops.
    pub async fn found(
        &self,
        founding: Founding,
        progress: &watch::Sender<String>,
    ) -> Result<(), ClusterError> {
        self.greeter.set_list(founding.list(self.instance));
        let finding = async {
            if self.is_founded().await? {
                progress.send_replace("greeting the other instances".to_owned());
                self.greet_all(&founding).await;
                if let Some(turned) = self.learnt().borrow().turned.clone() {
                    return Err(turned.into());
                }
                self.greeter.gate().open();
            }
            match founding {
                Founding::Alone(member) => self.found_alone(member).await,
                Founding::With(members) => self.found_with(members, progress).await,
            }
        };
        tokio::select! {
            biased;
            turned = self.turned() => Err(turned.into()),
            found = finding => found,
        }
    }

    /// Waits until it turns out that this instance cannot go on with its data directory.
    pub async fn turned(&self) -> Turned {
        let mut learnt = self.learnt();
        loop {
            if let Some(turned) = learnt.borrow_and_update().turned.clone() {
                return turned;
            }
            if learnt.changed().await.is_err() {
                std::future::pending::<()>().await; // this instance keeps it, so it never ends
            }
        }
    }

    /// Returns whether this instance's log has a beginning.
    pub(super) async fn is_founded(&self) -> Result<bool, ClusterError> {
        let known = self.raft.is_initialized().await;
        known.map_err(|error| ClusterError::Raft(error.to_string()))
    }

    /// Greets every other instance that this one has heard of, all at once.
    pub(super) async fn greet_all(&self, founding: &Founding) {
        let mut others = self.members();
        if let Founding::With(listed) = founding {
            for (id, member) in listed {
                others.entry(*id).or_insert_with(|| member.clone());
            }
        }
        others.remove(&self.instance);
        let greeting = others.iter().map(|(id, member)| self.announce(*id, member, ANSWER_MAX));
        let _ = timeout(ANSWER_MAX, join_all(greeting)).await;
    }

    /// Tells a member how this instance is now, and judges it by its answer.
    pub(super) async fn announce(&self, id: InstanceId, member: &Member, within: Duration) {
        let facts = self.greeter.facts_for(id);
        match self.network.ask(id, member, facts, within).await {
            Ok(facts) => {
                if let Err(refusal) = self.greeter.meet_again(id, &facts) {
                    self.metrics.raft_refused.with_label_values(&[refusal.as_str()]).inc();
                    self.network.forget(id);
                }
            }
            // Why it is not reached is known to the connection that was tried.
            Err(error) => tracing::debug!(peer = id.0, %error, "no answer"),
        }
    }

    async fn found_alone(&self, member: Member) -> Result<(), ClusterError> {
        if !self.is_founded().await? {
            let member = Member { store: Some(self.greeter.store()), ..member };
            self.initialise(BTreeMap::from([(self.instance, member)])).await?;
        }
        if self.raft.voter_ids().eq([self.instance.0]) {
            // No other instance can lead; there is no election timeout to wait out.
            let elected = self.raft.trigger().elect(false).await;
            elected.map_err(|error| ClusterError::Raft(error.to_string()))?;
        }
        Ok(())
    }

    /// Makes the founding entry the first one of this instance's log.
    async fn initialise(&self, members: BTreeMap<InstanceId, Member>) -> Result<(), ClusterError> {
        let nodes: BTreeMap<u64, Member> =
            members.into_iter().map(|(id, member)| (id.0, member)).collect();
        let founded = self.raft.initialize(nodes).await;
        let founded = founded.map_err(|error| ClusterError::Found(error.to_string()));
        if founded.is_err() && !self.is_founded().await? {
            return founded;
        }
        // It is in the log now, or a leader was quicker and what it sent is.
        self.greeter.gate().open();
        Ok(())
    }

    async fn found_with(
        &self,
        members: BTreeMap<InstanceId, Member>,
        progress: &watch::Sender<String>,
    ) -> Result<(), ClusterError> {
        loop {
            if self.is_founded().await? {
                return Ok(());
            }
            let answers = self.ask_all(&members).await;
            if let Some(first) = self.founding_entry(&members, &answers) {
                return self.initialise(first).await;
            }
            if names_later(self.greeter.store(), &answers) {
                self.greeter.gate().open();
            }
            let learnt = self.learnt().borrow().clone();
            let waiting = Waiting { me: self.instance, members: &members, answers: &answers };
            progress.send_replace(waiting.text(&learnt, self.greeter.gate().is_open()));
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn ask_all(&self, members: &BTreeMap<InstanceId, Member>) -> Answers {
        let others = members.iter().filter(|(id, _)| **id != self.instance);
        let asking = others.map(|(id, member)| async move {
            let answer = self.network.ask(*id, member, Introduce, ANSWER_MAX).await;
            (*id, answer.map_err(|error| error.to_string()))
        });
        join_all(asking).await.into_iter().collect()
    }

    /// Returns the founding entry, if one was decided on and names this store, or if it is on this
    /// instance to decide.
    fn founding_entry(
        &self,
        members: &BTreeMap<InstanceId, Member>,
        answers: &Answers,
    ) -> Option<BTreeMap<InstanceId, Member>> {
        let mine = (self.instance, self.greeter.store());
        entry_to_copy(mine, answers).or_else(|| entry_to_decide(mine, members, answers))
    }
}

/// Returns the founding entry that a member has, if it names this store.
fn entry_to_copy(
    (me, store): (InstanceId, StoreId),
    answers: &Answers,
) -> Option<BTreeMap<InstanceId, Member>> {
    answers.values().find_map(|answer| match answer {
        Ok(FoundingAnswer::Founded { first: Some(first), .. }) => {
            first.get(&me).is_some_and(|named| named.store == Some(store)).then(|| first.clone())
        }
        Ok(FoundingAnswer::Founded { first: None, .. } | FoundingAnswer::Empty { .. }) | Err(_) => {
            None
        }
    })
}

/// Returns whether a member's log names this store, and the founding entry is not the last to do
/// so: then this instance cannot copy it, and gets it from the leader, with all that came after it.
fn names_later(store: StoreId, answers: &Answers) -> bool {
    answers.values().any(|answer| match answer {
        Ok(FoundingAnswer::Founded {
            known: Known::Named { store: Some(named), .. },
            first,
            ..
        }) => first.is_none() && *named == store,
        Ok(FoundingAnswer::Founded { .. } | FoundingAnswer::Empty { .. }) | Err(_) => false,
    })
}

/// Returns the founding entry, if this instance has the lowest number of its list and every other
/// listed one is there, empty and of the same list.
fn entry_to_decide(
    (me, store): (InstanceId, StoreId),
    members: &BTreeMap<InstanceId, Member>,
    answers: &Answers,
) -> Option<BTreeMap<InstanceId, Member>> {
    if members.first_key_value()?.0 != &me {
        return None;
    }
    let expected = addresses(members);
    let store_of = |id: &InstanceId| match answers.get(id) {
        None if *id == me => Some(store),
        Some(Ok(FoundingAnswer::Empty { store, list })) if *list == expected => Some(*store),
        Some(_) | None => None,
    };
    let entry: Option<BTreeMap<_, _>> = members
        .iter()
        .map(|(id, member)| Some((*id, Member { store: Some(store_of(id)?), ..member.clone() })))
        .collect();
    // Two numbers with one store are one data directory, copied.
    let stores: BTreeSet<_> =
        entry.iter().flatten().filter_map(|(_, member)| member.store).collect();
    entry.filter(|entry| stores.len() == entry.len())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) type Members = BTreeMap<InstanceId, Member>;

    pub(in super::super) fn list(ids: &[u64]) -> Members {
        ids.iter().map(|id| (InstanceId(*id), Member::at(format!("host-{id}:7000")))).collect()
    }

    pub(in super::super) fn empty(store: u128, ids: &[u64]) -> Result<FoundingAnswer, String> {
        Ok(FoundingAnswer::Empty { store: StoreId(store), list: addresses(&list(ids)) })
    }

    fn founded(first: Option<Members>) -> Result<FoundingAnswer, String> {
        Ok(FoundingAnswer::Founded { store: StoreId(1), known: Known::Unknown, first })
    }

    pub(in super::super) fn answers(of: &[(u64, Result<FoundingAnswer, String>)]) -> Answers {
        of.iter().map(|(id, answer)| (InstanceId(*id), answer.clone())).collect()
    }

    fn mine(id: u64) -> (InstanceId, StoreId) {
        (InstanceId(id), StoreId(u128::from(id) * 10))
    }

    #[test]
    fn the_lowest_number_decides_when_all_are_there_and_empty() {
        let (three, ids) = (list(&[1, 2, 3]), [1, 2, 3]);
        let all = answers(&[(2, empty(20, &ids)), (3, empty(30, &ids))]);
        let entry = entry_to_decide(mine(1), &three, &all).unwrap();
        let stores: Vec<_> = entry.values().map(|member| member.store.unwrap().0).collect();
        assert_eq!(stores, [10, 20, 30]);
        assert_eq!(entry[&InstanceId(2)].raft_addr, "host-2:7000");

        assert_eq!(entry_to_decide(mine(2), &three, &all), None, "only the lowest decides");
        for short in [
            answers(&[(2, empty(20, &ids))]),
            answers(&[(2, empty(20, &ids)), (3, Err("gone".to_owned()))]),
            answers(&[(2, empty(20, &ids)), (3, empty(30, &[1, 3]))]),
            answers(&[(2, empty(20, &ids)), (3, founded(None))]),
            answers(&[(2, empty(20, &ids)), (3, empty(20, &ids))]),
        ] {
            assert_eq!(entry_to_decide(mine(1), &three, &short), None, "{short:?}");
        }
        assert_eq!(entry_to_decide(mine(4), &three, &all), None, "it is not on its list");
    }

    #[test]
    fn an_entry_that_was_decided_on_is_copied_by_the_stores_that_it_names() {
        let named = |stores: [u128; 2]| {
            let members = list(&[1, 2]).into_iter().zip(stores);
            let with =
                |((id, member), store)| (id, Member { store: Some(StoreId(store)), ..member });
            members.map(with).collect::<Members>()
        };
        let first = named([10, 20]);
        let heard = answers(&[(1, founded(Some(first.clone())))]);
        assert_eq!(entry_to_copy(mine(2), &heard), Some(first));
        let other = answers(&[(1, founded(Some(named([10, 21]))))]);
        assert_eq!(entry_to_copy(mine(2), &other), None, "it names a store that was lost");
        assert_eq!(entry_to_copy(mine(2), &answers(&[(1, founded(None))])), None);
    }

    #[test]
    fn a_founder_that_comes_after_a_change_of_the_members_gets_the_log_from_the_leader() {
        let says = |store: u128, first: Option<Members>| {
            let known = Known::Named { store: Some(StoreId(store)), lived: false };
            answers(&[(1, Ok(FoundingAnswer::Founded { store: StoreId(10), known, first }))])
        };
        assert!(names_later(StoreId(20), &says(20, None)));
        assert!(!names_later(StoreId(20), &says(20, Some(list(&[1, 2])))), "it copies that");
        assert!(!names_later(StoreId(20), &says(21, None)), "another store bears the number");
        assert!(!names_later(StoreId(20), &answers(&[(1, founded(None))])), "it is not named");
    }
}
