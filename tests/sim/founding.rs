//! What the oracle knows of founding and of lost disks: a cluster is founded once (A2), and a
//! number whose store was lost, or went back to an older state, votes no more (A1, A4).

use std::collections::{BTreeMap, BTreeSet};

use emnetchain::ids::InstanceId;

/// What became of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is lost, and an empty one is in its place.
    Lost,
    /// An older copy is in its place, which lacks something that was acknowledged.
    Older,
}

/// Knows which disks hold an entry that founds the cluster, and which numbers have lost theirs.
#[derive(Debug, Default)]
pub(crate) struct Founding {
    /// The digest of the entry on each disk that holds one.
    holders: BTreeMap<InstanceId, u64>,
    /// Those whose logs were empty when they were last opened.
    empty: BTreeSet<InstanceId>,
    /// The numbers that must not vote.
    banned: BTreeMap<InstanceId, Loss>,
}

impl Founding {
    /// Those whose disks hold the entry.
    pub(crate) fn holders(&self) -> BTreeSet<InstanceId> {
        self.holders.keys().copied().collect()
    }

    /// Whether the log of an instance was empty when it was last opened.
    pub(crate) fn was_empty(&self, who: InstanceId) -> bool {
        self.empty.contains(&who)
    }

    /// An instance writes a founding entry. True if nothing was left of an earlier one.
    pub(crate) fn writes(&mut self, who: InstanceId, entry: u64) -> Result<bool, String> {
        if let Some((other, _)) = self.holders.iter().find(|(_, known)| **known != entry) {
            return Err(format!("A2: a cluster is founded once: {who:?} and {other:?}"));
        }
        let is_new = self.holders.is_empty();
        if is_new {
            self.banned.clear();
        }
        self.holders.insert(who, entry);
        Ok(is_new)
    }

    /// An instance has opened its log. A crash may have taken the entry.
    pub(crate) fn opens(&mut self, who: InstanceId, is_empty: bool) {
        self.empty.remove(&who);
        if is_empty {
            self.empty.insert(who);
            self.holders.remove(&who);
        }
        if self.holders.is_empty() {
            self.banned.clear(); // no store was ever named
        }
    }

    /// Something became of a disk. While another one names its store, its number is spent.
    pub(crate) fn loses(&mut self, who: InstanceId, loss: Loss) {
        if loss == Loss::Lost {
            self.holders.remove(&who);
        }
        if !self.holders.is_empty() {
            self.banned.insert(who, loss);
        }
    }

    /// An instance gives a vote.
    pub(crate) fn votes(&self, who: InstanceId) -> Result<(), String> {
        match self.banned.get(&who) {
            Some(Loss::Lost) => {
                Err(format!("A1: a store that was lost votes no more: it was that of {who:?}"))
            }
            Some(Loss::Older) => {
                Err(format!("A4: a store that went back votes no more: it was that of {who:?}"))
            }
            None => Ok(()),
        }
    }
}
