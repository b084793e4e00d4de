//! The gate: it decides whether raft hears the others, and whether this instance votes.
//!
//! Raft is safe only if no vote and no acknowledged entry is ever forgotten. An instance whose disk
//! was emptied or replaced has forgotten both, and nothing in its data directory can tell so. So
//! there are two locks:
//!
//! - The *gate* is closed until it is known that this store may take part: it has greeted the
//!   others, and none of them remembers more of it than it does itself. A closed gate refuses
//!   votes, entries and snapshots alike.
//! - Behind it, an instance votes, and stands for election, only if the membership *in its own log*
//!   names its own store under its own number ([`names`]). An emptied store has no log. It can get
//!   one only from a leader, and each number's store is written once, so the log that it gets names
//!   the store that was lost and never the empty one. That holds however old the answers were that
//!   opened the gate.
//!
//! The membership counts from the entry on that is in the log; it need not be committed or applied.
//! Raft itself uses a membership from then on (section 6), and a vote is written to the same log
//! behind that entry, so a vote is never durable without the entry that allows it. At the founding,
//! nothing can be committed before votes were given, so applied entries could not be asked for.
//!
//! A learner hears entries while no store is recorded under its number yet. Its acknowledgements do
//! not count towards a majority, and it does not vote; `promote` records its store first.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{ids::StoreId, raft::Membership};

/// Whether raft may hear the others. Clones share it; it begins closed. It opens when this store is
/// known to have forgotten nothing, and closes for good when it turns out that it has.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<State>);

#[derive(Debug, Default)]
struct State {
    open: AtomicBool,
    locked: AtomicBool,
}

impl Gate {
    /// Returns whether it is open.
    pub fn is_open(&self) -> bool {
        self.0.open.load(Ordering::Acquire) && !self.0.locked.load(Ordering::Acquire)
    }

    /// Opens it, unless it was locked.
    pub fn open(&self) {
        self.0.open.store(true, Ordering::Release);
    }

    /// Closes it for good.
    pub fn lock(&self) {
        self.0.locked.store(true, Ordering::Release);
    }
}

/// Returns whether a membership names this store under this number. A cluster of one that was
/// restored from a backup names no store at first; there is no other vote that could contradict its
/// own.
pub fn names(membership: &Membership, instance: u64, store: StoreId) -> bool {
    let recorded = membership.membership().get_node(&instance).map(|member| member.store);
    match recorded {
        Some(Some(recorded)) => recorded == store,
        Some(None) => membership.voter_ids().eq([instance]),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft::Member;

    fn membership(voters: &[u64], stores: &[(u64, Option<u128>)]) -> Membership {
        let member =
            |store: Option<u128>| Member { store: store.map(StoreId), ..Member::at("a:1") };
        let nodes: BTreeMap<_, _> =
            stores.iter().map(|(id, store)| (*id, member(*store))).collect();
        let voters = vec![voters.iter().copied().collect::<BTreeSet<_>>()];
        Membership::new(None, openraft::Membership::new(voters, nodes).unwrap())
    }

    #[test]
    fn a_store_votes_only_under_the_number_that_its_own_log_gives_it() {
        let mine = StoreId(7);
        assert!(!names(&Membership::default(), 1, mine), "an empty log names nothing");
        let three = membership(&[1, 2, 3], &[(1, Some(7)), (2, Some(8)), (3, Some(9))]);
        assert!(names(&three, 1, mine));
        assert!(!names(&three, 2, mine), "that number belongs to another store");
        assert!(!names(&three, 4, mine));
        let learner = membership(&[1, 3], &[(1, Some(6)), (2, None), (3, Some(9))]);
        assert!(!names(&learner, 2, mine), "it was not promoted");
        assert!(names(&membership(&[1], &[(1, None), (2, None)]), 1, mine), "it was restored");
    }

    #[test]
    fn a_gate_that_was_locked_never_opens() {
        let gate = Gate::default();
        assert!(!gate.is_open());
        gate.open();
        assert!(gate.is_open());
        gate.lock();
        gate.open();
        assert!(!gate.is_open());
    }
}
