//! Mistakes that are built into the doubles around the real code, one at a time, to show that the
//! simulation finds them: each by a promise that is named beforehand, within so many seeds.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// None: this is the real thing.
    Nothing,
    /// An instance answers when it has written an entry, and not when it has applied it.
    AnswerBeforeCommit,
    /// A batch that is proposed again has lost its number.
    AppliedTwice,
    /// Each replica applies entries with a time of its own.
    ClockInApply,
    /// A crash loses the newest snapshot, though the log behind it was purged.
    LogPurgedTooEarly,
    /// Some replicas apply the commands of a batch in another order.
    MapOrderInApply,
    /// Who waits with a repair id, and is no client, is not in snapshots.
    SnapshotWithoutCallers,
    /// The disk says that entries are durable before they are.
    SyncRemoved,
    /// The disk says that a vote is durable, and forgets it.
    VoteNotStored,
    /// After a change of leaders some effects do not reach the sessions.
    WaiterNotTold,
}

impl Planted {
    /// Where to begin: most are found by any seed; for the rarest, one is known that saves time.
    pub(crate) fn first_seed(self) -> u64 {
        if self == Self::AppliedTwice { 14 } else { 0 }
    }
}

/// Every mistake, and the promise by which it is found.
pub(crate) const TABLE: [(Planted, &str); 9] = [
    (Planted::AnswerBeforeCommit, "S12: nothing is told before it is committed"),
    (Planted::AppliedTwice, "S1: a command takes effect once"),
    (Planted::ClockInApply, "S10: replicas agree"),
    (Planted::LogPurgedTooEarly, "S6: a store opens again after a crash"),
    (Planted::MapOrderInApply, "S10: replicas agree"),
    (Planted::SnapshotWithoutCallers, "S10: replicas agree"),
    (Planted::SyncRemoved, "S12: what is applied is on the disks of a majority"),
    (Planted::VoteNotStored, "S14: a vote never goes back"),
    (Planted::WaiterNotTold, "L2: who waits is told"),
];
