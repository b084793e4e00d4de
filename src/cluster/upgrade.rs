//! Raising the rules version: from one entry on, all replicas apply by newer rules.
//!
//! Entries are applied by the rules in force at that entry, so instances of two releases may run
//! side by side for as long as an upgrade takes, and nothing of the new version is written yet. The
//! leader hears from every member, learners too, which rules its program knows, by the same facts
//! that open a connection. When all of them know newer ones, an operator has them raised
//! ([`Change::Upgrade`](super::admin::Change::Upgrade)), or the leader does it by itself after an
//! hour in which that did not change. From that entry on an older program refuses the log (exit
//! code 78).

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use openraft::{Raft, ServerState, async_runtime::WatchReceiver};
use tokio::time::sleep;

use super::{
    admin::ChangeError,
    greeter::Greeter,
    network::Network,
    proposer::{WriteError, Writer},
};
use crate::{
    clock,
    ids::InstanceId,
    raft::{Member, TypeConfig},
    registry::{Command, Rules},
    storage::{RegistryView, StateMachine},
};

/// Interval at which the leader hears which rules the members know.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Longest wait for the answer of a member.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Time for which all members must have known newer rules before the leader raises them by itself.
pub const RAISE_AFTER: Duration = Duration::from_secs(60 * 60);

/// Which rules an instance knows, and when it raises them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesOptions {
    /// The newest rules that it can apply.
    pub newest: Rules,
    /// Time for which all members must have known newer rules before the leader raises them by
    /// itself.
    pub raise_after: Duration,
}

impl Default for RulesOptions {
    fn default() -> Self {
        Self { newest: Rules::NEWEST, raise_after: RAISE_AFTER }
    }
}

/// Raises the rules where the leader is; clones share everything.
#[derive(Clone)]
pub struct Upgrades(Arc<Inner>);

struct Inner {
    raft: Raft<TypeConfig, StateMachine>,
    network: Network,
    greeter: Greeter,
    writer: Arc<dyn Writer>,
    view: RegistryView,
    raise_after: Duration,
}

impl std::fmt::Debug for Upgrades {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrades").field("raise_after", &self.0.raise_after).finish()
    }
}

/// The answers of the members.
#[derive(Debug)]
struct Survey {
    in_force: Rules,
    voters: BTreeSet<InstanceId>,
    members: Vec<(InstanceId, Member, Option<Rules>)>,
}

/// The conclusion from them.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Every member knows these, which are newer.
    Raise(Rules),
    /// No member knows newer ones.
    Current,
    /// Not all members can; a sentence that names them and says what to do.
    Blocked(String),
}

impl Survey {
    fn judge(&self) -> Verdict {
        let newest = self.members.iter().filter_map(|(_, _, known)| *known).max();
        let newest = newest.unwrap_or(self.in_force);
        let common = self.members.iter().map(|(_, _, known)| *known).min().flatten();
        match common {
            Some(common) if common > self.in_force => Verdict::Raise(common),
            Some(_) if newest <= self.in_force => Verdict::Current,
            Some(_) | None => Verdict::Blocked(self.blocked(newest)),
        }
    }

    fn votes(&self, id: &InstanceId) -> bool {
        self.voters.contains(id)
    }

    fn blocked(&self, newest: Rules) -> String {
        let in_force = self.in_force.0;
        let answers = |id: &InstanceId, known: &Option<Rules>| known.is_some() && self.votes(id);
        let there = self.members.iter().filter(|(id, _, known)| answers(id, known)).count();
        let has_majority = 2 * there > self.voters.len();
        let way_out = |id: u64| match has_majority {
            true => format!("start it, or remove it by `EMNetChain cluster remove {id}`"),
            false => "start it".to_owned(),
        };
        let mut text = if !has_majority {
            format!(
                "rules version {in_force} stays in force: no majority of the voters is reached, \
                 and without one nothing is written"
            )
        } else if newest > self.in_force {
            format!("rules version {} is not raised, version {in_force} stays in force", newest.0)
        } else {
            format!("rules version {in_force} stays in force: those that answer know no newer one")
        };
        for (id, Member { raft_addr, .. }, known) in &self.members {
            let id = id.0;
            let _ = match known {
                None => {
                    write!(text, "; instance {id} ({raft_addr}) is not reached: {}", way_out(id))
                }
                Some(known) if *known < newest => write!(
                    text,
                    "; instance {id} ({raft_addr}) knows versions up to {}: install the newer \
                     EMNetChain there and restart it",
                    known.0
                ),
                Some(_) => Ok(()),
            };
        }
        text
    }
}

impl Upgrades {
    /// Hears members over `network`, and raises by an entry that goes through `writer`.
    pub fn new(
        raft: Raft<TypeConfig, StateMachine>,
        network: Network,
        greeter: Greeter,
        writer: Arc<dyn Writer>,
        view: RegistryView,
        raise_after: Duration,
    ) -> Self {
        Self(Arc::new(Inner { raft, network, greeter, writer, view, raise_after }))
    }

    /// Raises the rules to the newest that every member knows, if this instance leads. Returns a
    /// sentence that says what is now the case.
    ///
    /// # Errors
    /// If a member cannot follow, or it is not known whether the entry was written.
    pub async fn raise(&self) -> Result<String, ChangeError> {
        let survey = self.survey().await;
        match survey.judge() {
            Verdict::Blocked(why) => Err(ChangeError::Refused(why)),
            Verdict::Current => Ok(format!(
                "rules version {} is in force, and no instance knows a newer one: nothing was \
                 raised",
                survey.in_force.0
            )),
            Verdict::Raise(rules) => {
                self.write(rules).await.map_err(|error| ChangeError::Unknown(error.to_string()))?;
                Ok(format!(
                    "rules version {} is in force now, version {} was before: an EMNetChain that \
                     does not know it refuses this cluster's data from here on",
                    rules.0, survey.in_force.0
                ))
            }
        }
    }

    /// Hears the members from time to time while this instance leads, and raises the rules when all
    /// have known newer ones for long enough.
    ///
    /// # Errors
    /// If raft has stopped.
    pub(super) async fn keep(&self) -> Result<(), WriteError> {
        let raise_after = self.0.raise_after;
        let mut able: Option<(Rules, Instant)> = None;
        loop {
            sleep(LOOK_EVERY.min(raise_after)).await;
            if !self.leads() {
                able = None;
                continue;
            }
            let Verdict::Raise(rules) = self.survey().await.judge() else {
                able = None;
                continue;
            };
            let (_, since) = *able.insert(match able {
                Some(before @ (same, _)) if same == rules => before,
                Some(_) | None => {
                    let seconds = raise_after.as_secs();
                    tracing::info!(rules = rules.0, seconds, "all know newer rules; raised after");
                    (rules, clock::now())
                }
            });
            if clock::now().duration_since(since) < raise_after {
                continue;
            }
            match self.write(rules).await {
                Ok(()) => tracing::info!(rules = rules.0, "rules raised"),
                Err(WriteError::Again(why)) => tracing::info!(why, "rules not raised yet"),
                Err(error @ WriteError::Stopped(_)) => return Err(error),
            }
        }
    }

    fn leads(&self) -> bool {
        self.0.raft.metrics().borrow_watched().state == ServerState::Leader
    }

    /// Hears every member, voters and learners. What one said before it was lost does not count:
    /// another program may run there next.
    async fn survey(&self) -> Survey {
        let in_force = self.0.view.read(|registry| registry.rules());
        let voters = self.0.raft.voter_ids().map(InstanceId).collect();
        let members: Vec<(InstanceId, Member)> = {
            let states = self.0.raft.metrics();
            let now = states.borrow_watched();
            let members = now.membership_config.membership().nodes();
            members.map(|(id, member)| (InstanceId(*id), member.clone())).collect()
        };
        let me = InstanceId(*self.0.raft.node_id());
        let asking = members.into_iter().map(|(id, member)| async move {
            let known = if id == me {
                Some(self.0.greeter.newest_rules())
            } else {
                self.hear(id, &member).await
            };
            (id, member, known)
        });
        Survey { in_force, voters, members: join_all(asking).await }
    }

    /// Returns the newest rules that a member can apply; `None` if it does not answer, or is
    /// refused.
    async fn hear(&self, id: InstanceId, member: &Member) -> Option<Rules> {
        let Inner { network, greeter, .. } = &*self.0;
        let facts = network.ask(id, member, greeter.facts_for(id), ANSWER_MAX).await.ok()?;
        greeter.meet_again(id, &facts).ok()?;
        greeter.peers().newest_rules(id)
    }

    async fn write(&self, rules: Rules) -> Result<(), WriteError> {
        let raise = vec![Command::Raise { rules }];
        self.0.writer.write(None, raise).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(known: &[Option<u32>]) -> Verdict {
        let members = (1..).zip(known).map(|(id, known)| {
            let address = Member::at(format!("host-{id}:7000"));
            (InstanceId(id), address, known.map(Rules))
        });
        let members: Vec<_> = members.collect();
        let voters = members.iter().map(|(id, _, _)| *id).collect();
        Survey { in_force: Rules(2), voters, members }.judge()
    }

    #[test]
    fn rules_are_raised_when_every_member_knows_them_and_not_before() {
        assert_eq!(survey(&[Some(3), Some(3), Some(3)]), Verdict::Raise(Rules(3)));
        assert_eq!(survey(&[Some(4), Some(3), Some(5)]), Verdict::Raise(Rules(3)));
        assert_eq!(survey(&[Some(2), Some(2)]), Verdict::Current);
        assert_eq!(survey(&[Some(3)]), Verdict::Raise(Rules(3)), "alone");
    }

    #[track_caller]
    fn assert_blocked(known: &[Option<u32>], sentences: &[&str]) {
        let Verdict::Blocked(text) = survey(known) else { panic!("{known:?} is not blocked") };
        for sentence in sentences {
            assert!(text.contains(sentence), "{text}");
        }
    }

    #[test]
    fn members_that_cannot_follow_are_named_with_what_to_do() {
        let older = "instance 2 (host-2:7000) knows versions up to 2: install the newer";
        assert_blocked(&[Some(3), Some(2), Some(3)], &["version 3 is not raised", older]);
        let away = "instance 1 (host-1:7000) is not reached: start it, or remove it by \
                    `EMNetChain cluster remove 1`";
        assert_blocked(&[None, Some(3), Some(3)], &["version 3 is not raised", away]);
        assert_blocked(&[None, Some(2), Some(3)], &[away, older]);
        assert_blocked(&[None, Some(2), Some(2)], &["know no newer one", away]);
        let Verdict::Blocked(text) = survey(&[Some(2), None, None]) else { panic!("no majority") };
        assert!(text.contains("no majority of the voters is reached"), "{text}");
        assert!(text.contains("2 (host-2:7000) is not reached: start it"), "{text}");
        assert!(!text.contains("remove"), "what is away must come back: {text}");
    }
}
