//! Mistakes that are built into the doubles around the real code, one at a time, to show that the
//! simulation finds them: each by a promise that is named beforehand, within so many seeds.
//! `proto-docs/simulation.md` has them as a table.

use crate::run::{Play, run};

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
    /// Log time goes on while the process that stamps it is stopped.
    ClockRunsInPauses,
    /// Some commands of sessions never reach the proposer.
    CommandsLost,
    /// A log says that entries are durable when it has taken them.
    DurableTooEarly,
    /// What goes to other instances is not always what stands in the log.
    EntriesChanged,
    /// A crash loses the newest snapshot, though the log behind it was purged.
    LogPurgedTooEarly,
    /// Some replicas apply the commands of a batch in another order.
    MapOrderInApply,
    /// The names of new files are not synced.
    NamesNotSynced,
    /// An older copy of a disk is put back, and is taken for the disk.
    OldCopyTaken,
    /// The sessions of a life stay open when it is over.
    SessionsOutliveLives,
    /// Who waits with a repair id, and is no client, is not in snapshots.
    SnapshotWithoutCallers,
    /// The syncs of files do nothing.
    SyncRemoved,
    /// A new leader stamps entries by the time for which its process has run.
    TermKeepsTimeBase,
    /// The disk says that a vote is durable, and forgets it.
    VoteNotStored,
    /// After a change of leaders some effects do not reach the sessions.
    WaiterNotTold,
    /// An empty disk is put in the place of a voter's, and is taken for the disk.
    WipedDiskTaken,
}

/// Within so many seeds a mistake must be found.
const SEEDS_MAX: u64 = 20;

fn assert_found(planted: Planted, promise: &str) {
    let begun = emnetchain::clock::now();
    let found = (0..SEEDS_MAX).find_map(|seed| {
        let outcome = run(seed, Play::Wild, planted);
        outcome.failure.map(|failure| (seed, failure, outcome.figures.virtual_ms))
    });
    let (seed, failure, virtual_ms) = found.unwrap_or_else(|| panic!("{planted:?} is not found"));
    let is_it = promise.split(" or ").any(|promise| failure.starts_with(promise));
    assert!(is_it, "{planted:?} is found as {failure}");
    let took = emnetchain::clock::now() - begun;
    eprintln!("{planted:?}: {} seeds, {took:?}, at {virtual_ms} ms: {promise}", seed + 1);
}

/// Has every mistake found by its promise, each in a test of its own.
macro_rules! found {
    ($($test:ident $planted:ident $promise:literal)*) => {
        /// Every mistake, and the promise by which it is found.
        pub(crate) const TABLE: &[(Planted, &str)] = &[$((Planted::$planted, $promise)),*];

        $(#[test]
        fn $test() {
            assert_found(Planted::$planted, $promise);
        })*
    };
}

found! {
    answer_before_commit AnswerBeforeCommit "S12: nothing is told before it is committed"
    applied_twice AppliedTwice "S1: a command takes effect once"
    clock_in_apply ClockInApply "S10: replicas agree"
    clock_runs_in_pauses ClockRunsInPauses "B5: log time passes while its stamper runs"
    commands_lost CommandsLost "L3: a majority that is well answers or I7: everything comes right"
    durable_too_early DurableTooEarly "S12: what is applied is on the disks of a majority"
    entries_changed EntriesChanged "S14: logs match"
    log_purged_too_early LogPurgedTooEarly "S6: a store opens again after a crash"
    map_order_in_apply MapOrderInApply "S10: replicas agree"
    names_not_synced NamesNotSynced "S6: "
    old_copy_taken OldCopyTaken "S6: what was durable survives a crash"
    sessions_outlive_lives SessionsOutliveLives "L3: a majority that is well answers or I7: "
    snapshot_without_callers SnapshotWithoutCallers "S10: replicas agree"
    sync_removed SyncRemoved "S6: "
    term_keeps_time_base TermKeepsTimeBase "B5: log time passes while its stamper runs"
    vote_not_stored VoteNotStored "S14: a vote never goes back or S6: a store opens again"
    waiter_not_told WaiterNotTold "L2: who waits is told"
    wiped_disk_taken WipedDiskTaken "S6: what was durable survives a crash"
}
