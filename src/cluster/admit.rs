//! Adding an instance, moving one, and letting it vote.

use std::{collections::BTreeMap, io, time::Duration};

use openraft::{ChangeMembers, async_runtime::WatchReceiver};

use super::{
    admin::{
        ChangeError, Leading, PROMOTE_LAG_MAX, START_EMPTY, apply, find, hear, is_heard, lag, node,
        not_a_member,
    },
    lives::LOST_AFTER,
    rpc::Introduce,
};
use crate::{
    ids::{InstanceId, StoreId},
    raft::Member,
};

/// Longest time in which an instance says which store answers at an address.
const LOOK_MAX: Duration = Duration::from_secs(2);

impl Leading<'_> {
    /// Takes an instance in as a learner, or changes where a member is reached.
    pub(super) async fn add(
        &self,
        instance: InstanceId,
        member: Member,
    ) -> Result<String, ChangeError> {
        let id = instance.0;
        if id == 0 {
            let why = "0 is not the number of an instance: numbers begin at 1";
            return Err(ChangeError::Refused(why.to_owned()));
        }
        let address = member.raft_addr.clone();
        let me = *self.raft.node_id();
        if node(self.raft, me).is_some_and(|own| own.raft_addr.is_empty()) && id != me {
            return Err(ChangeError::Refused(format!(
                "no instance reaches instance {me}, because it has no --raft-addr: start it again \
                 with one, and repeat this"
            )));
        }
        if let Some((other, spelled)) = self.taken_by(instance, &address).await {
            let alias = if spelled == address { String::new() } else { format!(" (as {spelled})") };
            return Err(ChangeError::Refused(format!(
                "{address} is the address of instance {other}{alias}: give the address that \
                 instance {id} has for itself"
            )));
        }
        if let Some(known) = node(self.raft, id) {
            return self.move_to(instance, known, member).await;
        }
        if self.view.read(|registry| registry.instance(instance).is_some()) {
            return Err(ChangeError::Refused(format!(
                "instance {id} was a member before, and a number is never used twice: give the \
                 new one a number that no instance had"
            )));
        }
        apply(
            self.raft,
            ChangeMembers::AddNodes(BTreeMap::from([(id, Member::at(address.clone()))])),
        )
        .await?;
        Ok(added(id, &address))
    }

    /// Returns the other member that is reached at this address, and how the cluster spells it.
    async fn taken_by(&self, instance: InstanceId, address: &str) -> Option<(u64, String)> {
        let mut members: BTreeMap<String, u64> = {
            let states = self.raft.metrics();
            let now = states.borrow_watched();
            let members = now.membership_config.nodes().filter(|(id, _)| **id != instance.0);
            members.map(|(id, member)| (member.raft_addr.clone(), *id)).collect()
        };
        let same = self.network.same_as(address, members.keys().cloned().collect()).await;
        let other = same.into_iter().next()?;
        members.remove_entry(&other).map(|(address, id)| (id, address))
    }

    /// Changes where a member is reached.
    async fn move_to(
        &self,
        instance: InstanceId,
        known: Member,
        new: Member,
    ) -> Result<String, ChangeError> {
        let (id, address) = (instance.0, new.raft_addr.clone());
        let lived = self.view.read(|registry| registry.incarnation(instance)).0 > 0;
        let store = known.store.or_else(|| self.peers.store(instance));
        let moved = Member { raft_addr: address.clone(), store: known.store };
        let is_me = id == *self.raft.node_id();
        let is_another = known.raft_addr != address;
        if is_me
            && is_another
            && !self.raft.voter_ids().eq([id])
            && self.network.same_as(&address, vec![known.raft_addr.clone()]).await.is_empty()
        {
            return Err(ChangeError::Refused(format!(
                "instance {id} leads and is reached at {}: stop it first, then repeat this at \
                 another instance, and start it at the new address with its data",
                known.raft_addr
            )));
        }
        let mut is_well = !is_me && is_heard(self.raft, id, LOST_AFTER);
        if is_well && is_another {
            is_well = self.is_to_stay(instance, &known, &moved, store).await?;
        }
        apply(self.raft, ChangeMembers::SetNodes(BTreeMap::from([(id, moved)]))).await?;
        if !lived && store.is_none() {
            return Ok(added(id, &address));
        }
        if is_well || is_me {
            return Ok(format!("instance {id} is now reached at {address}"));
        }
        Ok(format!(
            "instance {id} is now looked for at {address}; start it there with its data directory \
             as it is (an empty one would be refused) and --raft-addr for the new address"
        ))
    }

    /// Looks whether a member that was heard a moment ago is at its new address already, or was
    /// stopped since. Returns whether it runs.
    ///
    /// # Errors
    /// If it is at its old one: an address where it is not would cut off a member that is well.
    async fn is_to_stay(
        &self,
        instance: InstanceId,
        known: &Member,
        moved: &Member,
        store: Option<StoreId>,
    ) -> Result<bool, ChangeError> {
        let id = instance.0;
        let why = match self.network.look_for(instance, moved, LOOK_MAX).await {
            Ok(found) if found == store => return Ok(true),
            Ok(_) => "another store answers there".to_owned(),
            Err(error) => error.to_string(),
        };
        // Only what says that it is not there proves it: one that does not answer may be slow.
        let gone = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionAborted];
        let still = self.network.look_for(instance, known, LOOK_MAX).await;
        if still.is_err_and(|error| gone.contains(&error.kind())) {
            return Ok(false);
        }
        Err(ChangeError::Refused(format!(
            "instance {id} runs and is reached at {}, but not at {} ({why}): stop it first, then \
             repeat this, and start it at the new address with its data",
            known.raft_addr, moved.raft_addr
        )))
    }

    /// Lets a learner vote.
    pub(super) async fn promote(&self, instance: InstanceId) -> Result<String, ChangeError> {
        let (id, raft) = (instance.0, self.raft);
        match find(raft, id) {
            None => return Err(not_a_member(raft, id)),
            Some(true) => return Ok(format!("instance {id} votes already")),
            Some(false) => {}
        }
        hear(raft, |heard| heard(id), LOST_AFTER).await;
        match lag(raft, id).filter(|_| is_heard(raft, id, LOST_AFTER)) {
            Some(lag) if lag <= PROMOTE_LAG_MAX => {}
            Some(lag) => {
                return Err(ChangeError::Refused(format!(
                    "instance {id} is still {lag} entries behind; promote it when it has caught up"
                )));
            }
            None => {
                return Err(ChangeError::Refused(format!(
                    "instance {id} is not reached{}; start it, and promote it when it has caught \
                     up",
                    self.why(instance)
                )));
            }
        }
        let store = self.record_store(instance).await?;
        // The one that counts from now on must be the one that was asked.
        if self.peers.store(instance) != Some(store) {
            return Err(ChangeError::Refused(format!(
                "another store answers as instance {id} now; remove it, and add it under a number \
                 that no instance had"
            )));
        }
        apply(raft, ChangeMembers::AddVoterIds([id].into())).await?;
        Ok(format!("instance {id} votes"))
    }

    /// Asks a learner for its store and writes it into the membership, once and for all. It must
    /// stand there before the learner is a voter: a store votes only if its own log names it.
    async fn record_store(&self, instance: InstanceId) -> Result<StoreId, ChangeError> {
        let id = instance.0;
        let known = node(self.raft, id).ok_or_else(|| not_a_member(self.raft, id))?;
        let asked = self.network.ask(instance, &known, Introduce, LOOK_MAX).await;
        let store = asked.map(|standing| standing.store()).map_err(|error| {
            ChangeError::Refused(format!(
                "instance {id} does not say which store it has ({error}); promote it again when it \
                 is reached"
            ))
        })?;
        match known.store {
            Some(recorded) if recorded == store => {}
            Some(recorded) => {
                return Err(ChangeError::Refused(format!(
                    "number {id} belongs to store {recorded}, and {store} answers: a number is \
                     never used twice; remove it, and add it under a number that no instance had"
                )));
            }
            None => {
                let recorded = Member { store: Some(store), ..known };
                apply(self.raft, ChangeMembers::SetNodes(BTreeMap::from([(id, recorded)]))).await?;
            }
        }
        Ok(store)
    }
}

/// Says that an instance without data was added.
fn added(id: u64, address: &str) -> String {
    format!(
        "instance {id} at {address} is a learner; {START_EMPTY}, and `EMNetChain cluster promote \
         {id}` lets it vote when it has caught up"
    )
}
