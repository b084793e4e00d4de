//! Applied entries are never revoked, never overwritten and never applied as something else, and a
//! leader that says otherwise ends the instance.

use openraft::{
    EntryPayload,
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    type_config::TypeConfigExt as _,
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    raft::{Entry, Vote},
    registry::Applied,
    storage::{
        self, ClusterId, Stores,
        fault::{DataFault, Fault},
        sim_disk::SimDisk,
    },
};

/// Entries in the log; and those of them that are applied.
const WRITTEN: u64 = 10;
const APPLIED: u64 = 6;

/// Stores whose entries are of term 2, except for the first three, of term 1.
struct Opened {
    disk: SimDisk,
    stores: Stores,
    faults: FaultWatch,
    _effects: mpsc::Receiver<Applied>,
}

fn open(disk: SimDisk) -> Opened {
    let (sender, effects) = mpsc::channel(1000);
    let (reporter, faults) = fault::channel();
    let cluster = Some(ClusterId(7));
    let path = Path::new("/data");
    let metrics = Metrics::new();
    let stores = Stores::open_on(disk.share(), path, NODE, cluster, sender, &metrics, &reporter);
    Opened { disk, stores: stores.unwrap(), faults, _effects: effects }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(term, NODE.0), index)
}

fn own(index: u64) -> LogId {
    id(if index < 3 { 1 } else { 2 }, index)
}

fn entry(log_id: LogId) -> Entry {
    Entry { log_id, payload: EntryPayload::Blank }
}

async fn filled_stores() -> Opened {
    let mut opened = open(SimDisk::new(1));
    opened.stores.log.save_vote(&Vote::new_committed(2, NODE.0)).await.unwrap();
    let (flushed, answer) = TypeConfig::oneshot();
    let entries = (0..WRITTEN).map(|index| entry(own(index)));
    opened.stores.log.append(entries, IOFlushed::signal(flushed)).await.unwrap();
    soon(answer).await.unwrap().unwrap();
    opened.apply((0..APPLIED).map(own)).await.unwrap();
    // From here on nothing writes of its own accord.
    let mut image = opened.stores.image.clone();
    assert!(soon(image.reaches(APPLIED - 1)).await);
    opened
}

impl Opened {
    async fn apply(&mut self, ids: impl IntoIterator<Item = LogId>) -> std::io::Result<()> {
        let entries: Vec<_> = ids.into_iter().map(|id| Ok((entry(id), None))).collect();
        self.stores.machine.apply(futures_util::stream::iter(entries)).await
    }

    /// Checks that a refusal ends the instance, names both entries, and leaves the disk as it was.
    #[track_caller]
    fn assert_refused(&self, operations: u64, named: [LogId; 2]) {
        let fault = self.faults.current().expect("it is reported");
        assert!(matches!(&*fault, Fault::Data(_)), "{fault}");
        let text = fault.to_string();
        assert!(named.iter().all(|id| text.contains(&id.to_string())), "{named:?}: {text}");
        assert_eq!(self.disk.operations(), operations, "something was written");
    }
}

#[tokio::test]
async fn what_was_applied_is_never_cut_off_the_log() {
    for after in [None, Some(own(2)), Some(own(APPLIED - 2))] {
        let mut opened = filled_stores().await;
        let operations = opened.disk.operations();
        assert!(soon(opened.stores.log.truncate_after(after)).await.is_err());
        let cut = own(after.map_or(0, |after| after.index + 1));
        opened.assert_refused(operations, [cut, own(APPLIED - 1)]);
        assert_eq!(opened.stores.log.last(), Some(own(WRITTEN - 1)));
    }
    // What was not applied may be revoked.
    let mut opened = filled_stores().await;
    soon(opened.stores.log.truncate_after(Some(own(APPLIED - 1)))).await.unwrap();
    assert!(opened.faults.current().is_none());
    assert_eq!(opened.stores.log.last(), Some(own(APPLIED - 1)));
}

#[tokio::test]
async fn what_was_applied_is_never_written_again() {
    let mut opened = filled_stores().await;
    let operations = opened.disk.operations();
    let (flushed, answer) = TypeConfig::oneshot();
    let entries = [entry(id(3, APPLIED - 1))];
    let appended = opened.stores.log.append(entries, IOFlushed::signal(flushed)).await;
    assert!(appended.is_err());
    assert!(soon(answer).await.unwrap().is_err());
    opened.assert_refused(operations, [id(3, APPLIED - 1), own(APPLIED - 1)]);
}

#[tokio::test]
async fn nothing_is_forgotten_before_it_was_applied_or_under_another_id() {
    for (upto, named) in
        [(own(APPLIED), own(APPLIED)), (id(3, 4), own(4)), (own(WRITTEN + 5), own(APPLIED - 1))]
    {
        let mut opened = filled_stores().await;
        let operations = opened.disk.operations();
        assert!(soon(opened.stores.log.purge(upto)).await.is_err());
        opened.assert_refused(operations, [upto, named]);
    }
    let mut opened = filled_stores().await;
    soon(opened.stores.log.purge(own(4))).await.unwrap();
    assert!(opened.faults.current().is_none());
}

#[tokio::test]
async fn entries_are_applied_in_their_order_and_as_themselves() {
    // Those that were applied before change nothing.
    let mut opened = filled_stores().await;
    opened.apply([own(0), own(4), own(5), own(6)]).await.unwrap();
    let (applied, _) = opened.stores.machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(own(6)));
    let last = [own(APPLIED - 1); 2];
    for (wrong, named) in [
        (id(3, 4), [own(4), own(APPLIED - 1)]),
        (id(3, APPLIED - 1), last),
        (own(APPLIED + 1), last),
        (id(1, APPLIED), last),
    ] {
        let mut opened = filled_stores().await;
        let operations = opened.disk.operations();
        assert!(opened.apply([wrong]).await.is_err(), "{wrong}");
        opened.assert_refused(operations, named);
        assert_eq!(opened.stores.machine.applied_state().await.unwrap().0, Some(own(APPLIED - 1)));
    }
}

#[tokio::test]
async fn a_leader_with_another_history_is_refused_before_raft_hears_it() {
    let leader = Vote::new_committed(3, 2);
    let contradictions = [
        (Some(id(1, 3)), vec![], own(3)),
        (Some(id(3, APPLIED - 1)), vec![], own(APPLIED - 1)),
        (Some(own(3)), vec![entry(own(4)), entry(id(3, 5))], own(5)),
        (None, vec![entry(id(2, 0))], own(0)),
    ];
    for (previous, entries, contradicted) in contradictions {
        let opened = filled_stores().await;
        let operations = opened.disk.operations();
        let checked = opened.stores.guard.check_leader(&leader, previous, &entries);
        let DataFault { .. } = checked.unwrap_err();
        let sent = entries.last().map(|entry| entry.log_id).or(previous).unwrap();
        opened.assert_refused(operations, [sent, contradicted]);
    }
    let opened = filled_stores().await;
    let guard = &opened.stores.guard;
    // What fits, once more and for the first time; what replaces entries that were not applied.
    let sent = [
        (None, vec![entry(own(0))]),
        (Some(own(3)), (4..WRITTEN).map(|index| entry(own(index))).collect()),
        (Some(own(WRITTEN - 1)), vec![entry(id(3, WRITTEN))]),
        (Some(own(APPLIED - 1)), vec![entry(id(3, APPLIED))]),
        (Some(id(3, APPLIED)), vec![]),
    ];
    for (previous, entries) in sent {
        guard.check_leader(&leader, previous, &entries).unwrap();
    }
    // A leader of the past may send what was revoked; its vote is too low for raft as well.
    guard.check_leader(&Vote::new_committed(1, 1), Some(id(1, 4)), &[]).unwrap();
    assert!(opened.faults.current().is_none());
}

#[tokio::test]
async fn a_restart_forgets_nothing_of_it() {
    let opened = filled_stores().await;
    let Opened { disk, stores, .. } = opened;
    drop(stores);
    let opened = open(disk.after_kill());
    let leader = Vote::new_committed(3, 2);
    let sent = [entry(id(3, 4))];
    assert!(opened.stores.guard.check_leader(&leader, Some(own(3)), &sent).is_err());
    opened.assert_refused(opened.disk.operations(), [id(3, 4), own(4)]);
}

/// Returns why a start on this directory is refused; the exit code says that it is for the data.
fn why_no_start(dir: &Path) -> String {
    let (sender, _effects) = mpsc::channel(1);
    let (reporter, _) = fault::channel();
    let error = Stores::open(dir, NODE, None, sender, &Metrics::new(), &reporter).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    error.to_string()
}

/// Returns a real directory whose entries are of one term, all of them applied.
async fn directory_of_term(term: u64) -> TempDir {
    directory_with(term, term).await
}

/// As [`directory_of_term`], with a last vote of another term.
async fn directory_with(vote: u64, term: u64) -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let (sender, _effects) = mpsc::channel(1000);
    let (reporter, _) = fault::channel();
    let cluster = Some(ClusterId(7));
    let metrics = Metrics::new();
    let stores = Stores::open(temp.path(), NODE, cluster, sender, &metrics, &reporter).unwrap();
    let Stores { mut log, mut machine, mut image, .. } = stores;
    log.save_vote(&Vote::new_committed(vote, NODE.0)).await.unwrap();
    let entries: Vec<_> = (0..WRITTEN).map(|index| entry(id(term, index))).collect();
    let (flushed, answer) = TypeConfig::oneshot();
    log.append(entries.clone(), IOFlushed::signal(flushed)).await.unwrap();
    soon(answer).await.unwrap().unwrap();
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(futures_util::stream::iter(entries)).await.unwrap();
    drop((machine, log));
    soon(image.ended()).await;
    temp
}

#[tokio::test]
async fn two_histories_in_one_directory_are_seen_by_start_check_and_backup() {
    let (ours, theirs) = (directory_of_term(2).await, directory_of_term(1).await);
    assert!(!storage::check(ours.path()).unwrap().is_damaged());
    fs::remove_dir_all(ours.path().join("registry")).unwrap();
    image::tree::copy(&theirs.path().join("registry"), &ours.path().join("registry")).unwrap();

    let names_both = |text: &str| {
        let last = WRITTEN - 1;
        assert!(text.contains(&id(1, last).to_string()), "{text}");
        assert!(text.contains(&id(2, last).to_string()), "{text}");
    };
    let report = storage::check(ours.path()).unwrap();
    assert!(report.is_damaged());
    names_both(&report.to_string());

    let file = ours.path().join("it.backup");
    let error = storage::backup(ours.path(), &file).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    names_both(&error.to_string());
    assert!(!file.exists());

    names_both(&why_no_start(ours.path()));
    assert!(ours.path().join("registry").exists(), "nothing is moved");
}

/// A file system that gave the file `state` back as it was before a vote, and nothing else.
#[tokio::test]
async fn a_vote_that_is_older_than_the_entries_is_seen_by_check_and_start() {
    let dir = directory_with(1, 2).await;
    let names_both = |text: &str| {
        assert!(text.contains("the last vote in it is of term 1"), "{text}");
        assert!(text.contains(&id(2, WRITTEN - 1).to_string()), "{text}");
    };
    let report = storage::check(dir.path()).unwrap();
    assert!(report.is_damaged());
    names_both(&report.to_string());

    names_both(&why_no_start(dir.path()));
}

/// Neither image nor snapshot need to know the members yet.
#[tokio::test]
async fn the_log_of_another_directory_is_seen_by_start_check_and_backup() {
    let (ours, theirs) = (directory_of_term(2).await, directory_of_term(2).await);
    fs::remove_dir_all(ours.path().join("raft")).unwrap();
    image::tree::copy(&theirs.path().join("raft"), &ours.path().join("raft")).unwrap();
    let told = "`raft` is of another data directory";

    let report = storage::check(ours.path()).unwrap();
    assert!(report.is_damaged() && report.to_string().contains(told), "{report}");

    let file = ours.path().join("it.backup");
    let error = storage::backup(ours.path(), &file).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains(told) && !file.exists(), "{error}");

    let error = why_no_start(ours.path());
    assert!(error.contains(told), "{error}");
}
