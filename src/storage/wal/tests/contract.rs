//! openraft's own suite for log stores, and what the service relies on beside it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, StorageError,
    storage::{EntryResponder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::alias::SnapshotOf,
};
use tempfile::TempDir;

use super::*;
use crate::{
    platform::files::mode,
    raft::{Membership, SnapshotMeta},
    storage::{RealDisk, sim_disk::SimDisk},
};

#[tokio::test]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("raft");
    let mut model = Model::default();
    for life in 0..3 {
        let mut store = open(Arc::new(RealDisk), &dir, life > 0).unwrap();
        assert_eq!(Model::of_every_way(&mut store).await.unwrap(), model);
        for _ in 0..40 {
            let new: Vec<_> = (0..3).map(|n| entry(life + 1, model.end() + n, 40)).collect();
            append(&mut store, new.clone()).await.unwrap();
            model.entries.extend(new);
        }
        model.vote = Some(Vote::new(life + 1, 7));
        store.save_vote(&model.vote.unwrap()).await.unwrap();
        model.truncate(model.end() - 20);
        store.truncate_after(model.last()).await.unwrap();
        let upto = model.entries[50].log_id;
        model.purge(upto);
        store.purge(upto).await.unwrap();
        assert_eq!(Model::of_every_way(&mut store).await.unwrap(), model);
    }
    let summary = LogStore::check(&dir, CLUSTER).unwrap();
    assert_eq!(
        (summary.last, summary.purged, summary.vote),
        (model.last(), model.purged, model.vote)
    );
    assert_eq!(summary.first, Some(model.entries[0].log_id.index));
    assert!(summary.segments > 2 && summary.torn_bytes == 0 && !summary.one_state_copy_stale);
    assert!(matches!(LogStore::check(&dir, [0; 16]), Err(LogError::Damaged { .. })));
}

#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("raft");
    let mut store = open(Arc::new(RealDisk), &dir, false).unwrap();
    append(&mut store, vec![entry(1, 0, 3500)]).await.unwrap();
    append(&mut store, vec![entry(1, 1, 3500)]).await.unwrap();
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap()).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file.path()), 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn checking_and_opening_write_nothing() {
    let disk = SimDisk::new(1);
    let mut store = open(disk.share(), &sim_dir(), false).unwrap();
    append(&mut store, vec![entry(1, 0, 10)]).await.unwrap();
    drop(store);
    let before = disk.operations();
    OfflineLog::open(&*disk.share(), &sim_dir(), CLUSTER).unwrap().summary();
    assert_eq!(disk.operations(), before);
    drop(open(disk.share(), &sim_dir(), true).unwrap());
    assert_eq!(disk.operations(), before + 3, "two files and the directory are synced");
}

#[tokio::test]
async fn a_log_that_should_be_there_is_not_made_again() {
    let refused = open(SimDisk::new(1).share(), &sim_dir(), true).unwrap_err();
    assert!(matches!(&refused, LogError::Damaged { path, .. } if *path == sim_dir()));
    let missing = OfflineLog::open(&SimDisk::new(1), &sim_dir(), CLUSTER);
    assert!(matches!(missing, Err(LogError::Damaged { .. })));
}

#[tokio::test]
async fn entries_that_do_not_follow_are_refused_and_answered() {
    let disk = SimDisk::new(1);
    let mut store = open(disk.share(), &sim_dir(), false).unwrap();
    append(&mut store, vec![entry(1, 0, 10), entry(1, 1, 10)]).await.unwrap();
    for entries in [
        vec![entry(1, 3, 10)],
        vec![entry(1, 1, 10)],
        vec![entry(1, 2, 10), entry(1, 4, 10)],
        vec![entry(1, 2, SMALL.entry_bytes)],
    ] {
        let (sender, answer) = TypeConfig::oneshot();
        assert!(store.append(entries, IOFlushed::signal(sender)).await.is_err());
        assert!(answer.await.unwrap().is_err());
    }
    append(&mut store, vec![]).await.unwrap();
    append(&mut store, vec![entry(1, 2, 10)]).await.unwrap();
    assert_eq!(store.last(), Some(log_id(1, 2)));
}

#[tokio::test]
async fn a_log_behind_a_snapshot_begins_again_and_segments_come_and_go() {
    let disk = SimDisk::new(1);
    let mut store = open(disk.share(), &sim_dir(), false).unwrap();
    for index in 0..60 {
        append(&mut store, vec![entry(1, index, 200)]).await.unwrap();
    }
    assert!(disk.all_names().len() > 4);
    store.purge(log_id(2, 100)).await.unwrap();
    assert_eq!(disk.all_names(), ["00000000000000000101.wal", "state"]);
    append(&mut store, vec![entry(2, 101, 10)]).await.unwrap();
    drop(store);
    let mut store = open(disk.share(), &sim_dir(), true).unwrap();
    let model =
        Model { vote: None, purged: Some(log_id(2, 100)), entries: vec![entry(2, 101, 10)] };
    assert_eq!(Model::of(&mut store).await.unwrap(), model);
}

/// Builds a store on the real disk, with a state machine that only remembers.
struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let store = LogStore::open(options(&dir.path().join("raft"), false).0).unwrap();
        Ok((dir, store, Machine::default()))
    }
}

#[derive(Clone, Default)]
struct Machine(Arc<Mutex<Remembered>>);

#[derive(Clone, Default)]
struct Remembered {
    applied: Option<LogId>,
    membership: Membership,
    snapshot: Option<SnapshotMeta>,
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        let remembered = self.0.lock().unwrap();
        Ok((remembered.applied, remembered.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, _) = next?;
            let mut remembered = self.0.lock().unwrap();
            remembered.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                remembered.membership = Membership::new(Some(entry.log_id), membership);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _: bool) -> Option<Self> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> Result<(), io::Error> {
        let mut remembered = self.0.lock().unwrap();
        remembered.applied = meta.last_log_id;
        remembered.membership = meta.last_membership.clone();
        remembered.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        let meta = self.0.lock().unwrap().snapshot.clone();
        Ok(meta.map(|meta| SnapshotOf::<TypeConfig, ()> { meta, snapshot: () }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        let mut remembered = self.0.lock().unwrap();
        let meta = SnapshotMeta {
            last_log_id: remembered.applied,
            last_membership: remembered.membership.clone(),
        };
        remembered.snapshot = Some(meta.clone());
        Ok(SnapshotOf::<TypeConfig, ()> { meta, snapshot: () })
    }
}
