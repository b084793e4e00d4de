//! The members of the cluster: what the log says of them, and an operator that changes them while
//! everything else goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use emnetchain::{
    cluster::admin::Change,
    ids::InstanceId,
    raft::{LogId, Member},
};
use openraft::Membership;

use crate::world::{Event, World};

/// Instances there may ever be in one run.
const INSTANCES_MAX: usize = 7;

/// Voters there may be.
const VOTERS_MAX: usize = 5;

/// Those that found the cluster, of which two stay: a newcomer finds the cluster by them.
const FOUNDERS_MIN: usize = 2;

/// Members as an entry has them.
#[derive(Clone, Debug, Default)]
struct Config {
    /// One set, or two while they change: a majority is one of each.
    voters: Vec<BTreeSet<u64>>,
    all: BTreeSet<u64>,
}

impl Config {
    fn is_majority(&self, of: &BTreeSet<u64>) -> bool {
        let majority = |set: &BTreeSet<u64>| 2 * set.intersection(of).count() > set.len();
        !self.voters.is_empty() && self.voters.iter().all(majority)
    }
}

/// The members as the log has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    /// By index: the one that was committed last, and all that was written after it.
    configs: BTreeMap<u64, BTreeMap<LogId, Config>>,
    committed: Config,
}

impl Members {
    /// A leader proposes members, which count at once.
    pub(crate) fn proposes(&mut self, id: LogId, members: &Membership<u64, Member>) {
        let voters = members.get_joint_config().clone();
        let config = Config { voters, all: members.nodes().map(|(id, _)| *id).collect() };
        self.configs.entry(id.index).or_default().insert(id, config);
    }

    /// An entry with members is committed.
    pub(crate) fn commits(&mut self, id: LogId) {
        let known = self.configs.get(&id.index).and_then(|configs| configs.get(&id));
        self.committed = known.expect("it was written before").clone();
        self.configs = self.configs.split_off(&(id.index + 1));
    }

    /// Whether these could commit an entry now. A leader counts by the last members in its log, be
    /// they committed or not.
    pub(crate) fn is_majority(&self, of: &BTreeSet<u64>) -> bool {
        let proposed = self.configs.values().flat_map(BTreeMap::values);
        proposed.chain([&self.committed]).any(|config| config.is_majority(of))
    }

    /// Whether these could commit an entry, whichever members the leader has in its log.
    pub(crate) fn is_sure_majority(&self, of: &BTreeSet<u64>) -> bool {
        let mut proposed = self.configs.values().flat_map(BTreeMap::values);
        self.committed.is_majority(of) && proposed.all(|config| config.is_majority(of))
    }

    /// All members of the cluster.
    pub(crate) fn all(&self) -> BTreeSet<InstanceId> {
        self.committed.all.iter().map(|id| InstanceId(*id)).collect()
    }

    /// Those that vote.
    pub(crate) fn voters(&self) -> BTreeSet<InstanceId> {
        self.committed.voters.iter().flatten().map(|id| InstanceId(*id)).collect()
    }
}

impl World {
    /// The operator asks some instance for a change of the members.
    pub(crate) fn change_members(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(1_000, 6_000, Event::ChangeMembers);
        let members = self.oracle.members();
        let (all, voters) = (members.all(), members.voters());
        let learners: Vec<_> = all.difference(&voters).copied().collect();
        let founders = all.iter().filter(|id| self.founders.contains(id)).count();
        let dispensable = |id: &&InstanceId| founders > FOUNDERS_MIN || !self.founders.contains(id);
        let removable: Vec<_> = all.iter().filter(dispensable).copied().collect();
        match self.chance.below(3) {
            0 if self.instances.len() < INSTANCES_MAX && all.len() < VOTERS_MAX => {
                let instance = self.add_instance();
                let member = Member::at(format!("instance-{}:1", instance.0));
                self.ask_for(Change::Add { instance, member });
            }
            1 if !learners.is_empty() => {
                let learner = self.chance.pick(&learners);
                self.ask_for(Change::Promote(learner));
            }
            2 if voters.len() > 3 && !removable.is_empty() => {
                let leaves = self.chance.pick(&removable);
                self.ask_for(Change::Remove(leaves));
            }
            _ => {}
        }
    }

    /// Asks any instance for a change. Whether it comes to that is chance.
    pub(crate) fn ask_for(&mut self, change: Change) {
        let at = self.any_instance();
        let oracle = self.oracle.clone();
        self.instances[&at].spawn(|cluster| async move {
            let changed = cluster.change(change.clone()).await;
            oracle.note(format!("{change:?}: {changed:?}"));
        });
    }

    /// An instance that was removed is stopped, or runs on: operators may be late.
    pub(crate) fn retire(&mut self) {
        self.plan(500, 3_000, Event::Retire);
        let members = self.oracle.members().all();
        for (id, instance) in &mut self.instances {
            if instance.belongs(members.contains(id)) && instance.is_running() {
                let runs_on = self.chance.percent(50);
                let what = if runs_on { "runs on" } else { "is stopped" };
                self.oracle.note(format!("{id:?} is removed, and {what}"));
                if !runs_on {
                    instance.crash();
                }
            }
        }
    }
}
