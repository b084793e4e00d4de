//! Mistakes that are built into the doubles around the real code, one at a time, to show that the
//! simulation finds them: each by a promise that is named beforehand, within a number of seeds.
//! `proto-docs/simulation.md` has them as a table.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

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
    /// A replica that was damaged is compared with no other.
    DiffersAndServes,
    /// A log says that entries are durable when it has taken them.
    DurableTooEarly,
    /// Entries sent to other instances are not always those in the log.
    EntriesChanged,
    /// Members that are down at a start do not belong to the list of those that found a cluster.
    FoundedWithoutAll,
    /// Raft hears the others before it is known that this store has forgotten nothing.
    GateAlwaysOpen,
    /// No operation on the disk is timed, so a hang is not seen.
    HangsUnseen,
    /// A leader that no majority answers goes on speaking to those that it reaches.
    LeaderNeverQuiet,
    /// A crash loses the newest snapshot, though the log behind it was purged.
    LogPurgedTooEarly,
    /// Some replicas apply the commands of a batch in another order.
    MapOrderInApply,
    /// The names of new files are not synced.
    NamesNotSynced,
    /// A program says that it knows rules that it does not know.
    NewerRulesClaimed,
    /// Members are reached at the first address that they had.
    OldAddressKept,
    /// An older copy of a disk is put back, and is taken for the disk.
    OldCopyTaken,
    /// The sessions of a life stay open when it is over.
    SessionsOutliveLives,
    /// A caller that waits with a repair id, and is no client, is not in snapshots.
    SnapshotWithoutCallers,
    /// The name of a store follows from the number of its instance, and not from chance.
    StoresLookAlike,
    /// The list of an instance is not compared with its history.
    StrangerTaken,
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

/// The number of seeds within which a mistake must be found.
const SEEDS_MAX: u64 = 20;

/// Where a mistake is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    play: Play,
    /// The first seed.
    seed: u64,
}

impl fmt::Display for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}", self.play, self.seed)
    }
}

/// How a run without a mistake fails, once it is known; `None` if it passes.
type Verdict = Arc<OnceLock<Option<String>>>;

/// What is known of runs without a mistake.
static SOUND: Mutex<BTreeMap<(u64, Play), Verdict>> = Mutex::new(BTreeMap::new());

/// Runs a seed without a mistake, once for all tests.
fn assert_sound(seed: u64, play: Play) {
    let known = Arc::clone(SOUND.lock().unwrap().entry((seed, play)).or_default());
    let failure = known.get_or_init(|| run(seed, play, Planted::Nothing).failure);
    assert_eq!(failure, &None, "seed {seed} of {play:?} fails without a mistake");
}

/// For how long this thread has been on a processor.
fn busy() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = told.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(first.unwrap_or_default())
}

fn assert_found(planted: Planted, Search { play, seed }: Search, promise: &str) {
    let begun = busy();
    let found = (seed..seed + SEEDS_MAX).find_map(|seed| {
        let outcome = run(seed, play, planted);
        outcome.failure.map(|failure| (seed, failure, outcome.figures.virtual_ms))
    });
    let (found, failure, virtual_ms) = found.unwrap_or_else(|| panic!("{planted:?} is not found"));
    let is_it = promise.split(" or ").any(|promise| failure.starts_with(promise));
    assert!(is_it, "{planted:?} is found as {failure}");
    let (took, seeds) = (busy() - begun, found + 1 - seed);
    eprintln!("{planted:?}: {seeds} from {seed}, {took:?}, at {virtual_ms} ms: {failure}");
    assert_sound(found, play);
}

/// Has every mistake found by its promise, each in a test of its own.
macro_rules! found {
    ($(
        $(#[$when:meta])?
        $test:ident $planted:ident $play:ident $seed:literal $promise:literal
    )*) => {
        /// Every mistake, where it is looked for, and the promise by which it is found.
        pub(crate) const TABLE: &[(Planted, Search, &str)] = &[
            $((Planted::$planted, Search { play: Play::$play, seed: $seed }, $promise)),*
        ];

        $($(#[$when])?
        #[test]
        fn $test() {
            let search = Search { play: Play::$play, seed: $seed };
            assert_found(Planted::$planted, search, $promise);
        })*
    };
}

found! {
    answer_before_commit AnswerBeforeCommit Wild 1 "S12: nothing is told before it is committed"
    applied_twice AppliedTwice AnswersLost 0 "S1: a command takes effect once"
    clock_in_apply ClockInApply Wild 1 "S10: replicas agree"
    clock_runs_in_pauses ClockRunsInPauses AllSleep 0 "B5: log time passes while its stamper runs"
    commands_lost CommandsLost Wild 1
        "L3: a majority that is well answers or I7: everything comes right"
    differs_and_serves DiffersAndServes Damaged 0 "A6: a replica that differs leaves service"
    durable_too_early DurableTooEarly Wild 1 "S12: what is applied is on the disks of a majority"
    entries_changed EntriesChanged Wild 1 "S14: logs match"
    founded_without_all FoundedWithoutAll LostDisks 0
        "A1: without a majority none serves or A2: a cluster is founded once"
    gate_always_open GateAlwaysOpen OlderCopy 0 "A4: a store that went back votes no more"
    hangs_unseen HangsUnseen LeaderHangs 0 "B3: an instance whose disk hangs ends"
    leader_never_quiet LeaderNeverQuiet LeaderCutOff 0 "L3: a majority that is well answers"
    log_purged_too_early LogPurgedTooEarly Wild 1 "S6: a store opens again after a crash"
    map_order_in_apply MapOrderInApply Wild 0 "S10: replicas agree"
    names_not_synced NamesNotSynced Wild 1 "S6: "
    #[cfg(feature = "rules-3")]
    newer_rules_claimed NewerRulesClaimed Mixed 0
        "U: rules are raised when every member knows them"
    old_address_kept OldAddressKept Moves 0 "B8: a member is reached where it is now"
    old_copy_taken OldCopyTaken Wild 1
        "S6: what was durable survives a crash or S14: a vote never goes back"
    sessions_outlive_lives SessionsOutliveLives Wild 0 "L3: a majority that is well answers or I7: "
    snapshot_without_callers SnapshotWithoutCallers Wild 1 "S10: replicas agree"
    stores_look_alike StoresLookAlike LostDisks 0
        "A1: a store that was lost votes no more or S6: a store opens again after a crash"
    stranger_taken StrangerTaken Stranger 0 "A5: a list that names a stranger is refused"
    sync_removed SyncRemoved Wild 1 "S6: "
    term_keeps_time_base TermKeepsTimeBase Wild 1 "B5: log time passes while its stamper runs"
    vote_not_stored VoteNotStored Wild 1 "S14: a vote never goes back or S6: a store opens again"
    waiter_not_told WaiterNotTold Wild 1 "L2: every caller that waits is told"
    wiped_disk_taken WipedDiskTaken Wild 1 "S6: what was durable survives a crash"
}
