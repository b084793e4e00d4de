//! Disks that fail, are full, or are slow.

use futures_util::future::join_all;

use super::*;
use crate::storage::{
    fault::Fault,
    sim_disk::{Faults, SimDisk},
    wal::Flushed,
};

fn open_watched(disk: &SimDisk, sizes: Sizes) -> (LogStore, FaultWatch) {
    let (options, watch) = options(&sim_dir(), false);
    (LogStore::open_on(disk.share(), options, sizes).unwrap(), watch)
}

/// Room for a thousand appends that wait for their sync.
fn roomy() -> Sizes {
    Sizes { tail_entries: 4096, tail_bytes: 1 << 20, drain_bytes: 1 << 20, ..SMALL }
}

/// Appends one entry whose sync hangs, and returns once it does.
async fn append_and_hang(disk: &SimDisk, store: &mut LogStore) -> Answer {
    disk.set_faults(Faults { syncs_wait: true, ..Faults::default() });
    let operations = disk.operations();
    let index = store.last().map_or(0, |last| last.index + 1);
    let answer = append_later(store, vec![entry(1, index, 10)]).await.unwrap();
    let hangs = async {
        while disk.operations() == operations {
            tokio::task::yield_now().await;
        }
    };
    soon(hangs).await;
    answer
}

/// Queues a thousand appends behind a sync that hangs, then lets `faults` strike.
async fn queue_a_thousand(disk: &SimDisk, faults: Faults) -> (LogStore, FaultWatch, Vec<bool>) {
    let (mut store, watch) = open_watched(disk, roomy());
    let mut answers = vec![append_and_hang(disk, &mut store).await];
    for index in 1..1000 {
        answers.push(append_later(&mut store, vec![entry(1, index, 10)]).await.unwrap());
    }
    disk.set_faults(faults);
    let answers = soon(join_all(answers)).await;
    let answers = answers.into_iter().map(|answer| answer.expect("every callback is completed"));
    let answers = answers.map(|answer| answer.is_ok()).collect();
    (store, watch, answers)
}

/// Returns the operation in which the disk failed, and its error.
fn disk_fault(watch: &FaultWatch) -> (&'static str, io::ErrorKind) {
    let fault = watch.current().unwrap();
    let Fault::Disk(fault) = &*fault else { panic!("{fault}") };
    (fault.operation, fault.source.kind())
}

/// After a failure everything is refused, and the disk is left alone.
async fn assert_failed(disk: &SimDisk, mut store: LogStore, watch: &FaultWatch, operation: &str) {
    assert_eq!(disk_fault(watch).0, operation);
    disk.set_faults(Faults::default());
    let operations = disk.operations();
    assert!(append(&mut store, vec![entry(1, 1000, 10)]).await.is_err());
    assert!(store.save_vote(&Vote::new(1, 1)).await.is_err());
    assert!(store.truncate_after(None).await.is_err());
    assert!(store.purge(log_id(1, 0)).await.is_err());
    drop(store);
    assert_eq!(disk.operations(), operations, "a failed disk is not tried again");
}

#[tokio::test]
async fn a_failed_sync_answers_all_that_wait_and_all_that_follow() {
    let disk = SimDisk::new(1);
    let (store, watch, answers) =
        queue_a_thousand(&disk, Faults { dead_from: Some(1), ..Faults::default() }).await;
    assert_eq!(answers, vec![false; 1000]);
    assert_failed(&disk, store, &watch, "sync").await;
    let mut store = open(disk.share(), &sim_dir(), true).unwrap();
    let found = Model::of(&mut store).await.unwrap();
    assert!(found.entries.iter().enumerate().all(|(n, entry)| entry.log_id.index == n as u64));
}

#[tokio::test]
async fn a_full_disk_answers_all_that_wait_and_keeps_what_was_acknowledged() {
    let disk = SimDisk::new(1);
    let (store, watch, answers) =
        queue_a_thousand(&disk, Faults { full: true, ..Faults::default() }).await;
    // The first was written while there was room.
    assert_eq!(answers.iter().position(|answer| !answer), Some(1));
    assert_eq!(answers.iter().filter(|answer| **answer).count(), 1);
    assert_failed(&disk, store, &watch, "write").await;
    let mut store = open(disk.share(), &sim_dir(), true).unwrap();
    let found = Model::of(&mut store).await.unwrap().entries;
    assert!(!found.is_empty() && found.len() < 1000);
    assert!((0..).zip(found).all(|(index, found)| found == entry(1, index, 10)));
}

#[tokio::test]
async fn one_failed_operation_anywhere_stops_the_log() {
    let mut failures = 0;
    for fail_at in 1..200 {
        let disk = SimDisk::new(1);
        let (mut store, watch) = open_watched(&disk, SMALL);
        let after_open = disk.operations();
        disk.set_faults(Faults { fail_at: Some(after_open + fail_at), ..Faults::default() });
        let mut acknowledged = 0;
        for index in 0..20 {
            let failed = append(&mut store, vec![entry(1, index, 250)]).await.is_err();
            let failed = failed || store.save_vote(&Vote::new(index, 1)).await.is_err();
            if failed {
                break;
            }
            acknowledged = index + 1;
        }
        let stopped = disk.operations();
        if acknowledged == 20 {
            continue;
        }
        failures += 1;
        assert!(watch.current().is_some(), "operation {fail_at}");
        assert!(append(&mut store, vec![entry(1, 99, 1)]).await.is_err());
        drop(store);
        assert_eq!(disk.operations(), stopped, "operation {fail_at} is not tried again");
        let mut store = open(disk.share(), &sim_dir(), true).unwrap();
        let found = Model::of(&mut store).await.unwrap();
        assert!(found.entries.len() as u64 >= acknowledged);
        assert!(found.vote >= acknowledged.checked_sub(1).map(|term| Vote::new(term, 1)));
    }
    assert!(failures > 100, "{failures}");
}

#[tokio::test]
async fn a_callback_that_is_not_completed_reports_an_error() {
    let (sender, answer) = TypeConfig::oneshot();
    drop(Flushed::new(IOFlushed::signal(sender)));
    assert!(soon(answer).await.unwrap().is_err());
}

#[tokio::test]
async fn a_full_disk_does_not_keep_a_torn_log_from_opening() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open_watched(&disk, SMALL);
    append(&mut store, vec![entry(1, 0, 100)]).await.unwrap();
    drop(store);
    let last = disk
        .share()
        .open(&sim_dir().join("00000000000000000000.wal"), crate::storage::Access::Write);
    let last = last.unwrap();
    let intact = last.size().unwrap();
    last.write_at(&[7; 100], intact).unwrap();

    disk.set_faults(Faults { full: true, ..Faults::default() });
    let (options, watch) = options(&sim_dir(), true);
    let metrics = options.metrics.clone();
    let mut store = LogStore::open_on(disk.share(), options, SMALL).unwrap();
    assert_eq!(metrics.log_torn_bytes.get(), 100);
    assert_eq!(Model::of(&mut store).await.unwrap().entries, [entry(1, 0, 100)]);
    assert_eq!(last.size().unwrap(), intact + 100, "nothing is written before it must be");
    assert!(append(&mut store, vec![entry(1, 1, 100)]).await.is_err());
    assert!(watch.current().is_some());
    drop(store);

    disk.set_faults(Faults::default());
    let mut store = open(disk.share(), &sim_dir(), true).unwrap();
    append(&mut store, vec![entry(1, 1, 100)]).await.unwrap();
    drop(store);
    assert!(open(disk.share(), &sim_dir(), true).is_ok());
}

#[tokio::test]
async fn a_segment_that_cannot_be_removed_is_removed_later() {
    let disk = SimDisk::new(1);
    let (mut store, watch) = open_watched(&disk, SMALL);
    for index in 0..40 {
        append(&mut store, vec![entry(1, index, 250)]).await.unwrap();
    }
    let segments = disk.all_names().len();
    disk.set_faults(Faults { removes_fail: true, ..Faults::default() });
    store.purge(log_id(1, 30)).await.unwrap();
    append(&mut store, vec![entry(1, 40, 250)]).await.unwrap();
    assert!(watch.current().is_none(), "it is no fault, only a warning");
    assert!(disk.all_names().len() >= segments);
    drop(store);

    // It is no stranger at the next start either, and goes with the first write.
    let mut store = open(disk.share(), &sim_dir(), true).unwrap();
    append(&mut store, vec![entry(1, 41, 250)]).await.unwrap();
    drop(store);
    disk.set_faults(Faults::default());
    let mut store = open(disk.share(), &sim_dir(), true).unwrap();
    append(&mut store, vec![entry(1, 42, 250)]).await.unwrap();
    assert!(disk.all_names().len() < segments - 1, "{:?}", disk.all_names());
    assert_eq!(Model::of(&mut store).await.unwrap().entries.len(), 12);
}

#[tokio::test]
async fn everything_that_waits_shares_one_sync() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open_watched(&disk, roomy());
    let syncs = disk.file_syncs();
    let mut answers = vec![append_and_hang(&disk, &mut store).await];
    for index in 1..10 {
        answers.push(append_later(&mut store, vec![entry(1, index, 1)]).await.unwrap());
    }
    disk.set_faults(Faults::default());
    for answer in answers {
        soon(answer).await.unwrap().unwrap();
    }
    assert_eq!(disk.file_syncs() - syncs, 2);
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open_watched(&disk, SMALL);
    let first = append_and_hang(&disk, &mut store).await;
    // More than the memory for synced entries holds.
    let entries: Vec<_> = (1..30).map(|index| entry(1, index, 100)).collect();
    let others = append_later(&mut store, entries.clone()).await.unwrap();
    let found = Model::of_every_way(&mut store).await.unwrap();
    assert_eq!(found.entries[1..], entries);
    disk.set_faults(Faults::default());
    soon(first).await.unwrap().unwrap();
    soon(others).await.unwrap().unwrap();
    assert_eq!(Model::of_every_way(&mut store).await.unwrap(), found);
}

#[tokio::test]
async fn what_waits_for_its_sync_is_bounded() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open_watched(&disk, SMALL);
    disk.set_faults(Faults { syncs_wait: true, ..Faults::default() });
    let mut answers = Vec::new();
    for index in 0..6 {
        answers.push(append_later(&mut store, vec![entry(1, index, 1)]).await.unwrap());
    }
    {
        let mut waiting = Box::pin(append_later(&mut store, vec![entry(1, 6, 1)]));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        disk.set_faults(Faults::default());
        answers.push(soon(waiting).await.unwrap());
    }
    for answer in answers {
        soon(answer).await.unwrap().unwrap();
    }
    // One that waits is told when the disk fails.
    disk.set_faults(Faults { syncs_wait: true, ..Faults::default() });
    for index in 7..13 {
        append_later(&mut store, vec![entry(1, index, 1)]).await.unwrap();
    }
    let mut waiting = Box::pin(append_later(&mut store, vec![entry(1, 13, 1)]));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    disk.set_faults(Faults { dead_from: Some(1), ..Faults::default() });
    assert!(soon(waiting).await.is_err());
}

#[tokio::test]
async fn a_log_that_is_never_purged_ends_at_its_bound() {
    let disk = SimDisk::new(1);
    let (mut store, watch) = open_watched(&disk, Sizes { segments: 3, ..SMALL });
    let mut index = 0;
    while append(&mut store, vec![entry(1, index, 1000)]).await.is_ok() {
        index += 1;
        assert!(index < 20, "three segments hold three entries each");
    }
    assert_eq!(disk_fault(&watch).1, io::ErrorKind::StorageFull);
}
