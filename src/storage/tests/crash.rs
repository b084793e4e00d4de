//! A process that ends anywhere, and a disk that forgets what was not synced.

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::*;
use crate::{
    platform,
    storage::image::{Options, SyncFn, tree},
};

/// Sees what a power cut would leave: the image's files as they were at the last sync.
struct PowerCut {
    registry: PathBuf,
    synced: Arc<Mutex<Option<TempDir>>>,
}

impl PowerCut {
    fn new(registry: PathBuf) -> Self {
        Self { registry, synced: Arc::default() }
    }

    /// Returns a sync that keeps its promise.
    fn sync(&self) -> SyncFn {
        let (registry, synced) = (self.registry.clone(), Arc::clone(&self.synced));
        Arc::new(move |file: &File| {
            file.sync_data()?;
            *synced.lock().unwrap() = Some(copy_of(&registry));
            Ok(())
        })
    }

    /// Cuts the power: what was not synced is gone.
    fn cut(&self) {
        fs::remove_dir_all(&self.registry).unwrap();
        if let Some(synced) = self.synced.lock().unwrap().take() {
            tree::copy(synced.path(), &self.registry).unwrap();
        }
    }
}

/// Writes, cuts the power at some time, and tells whether everything that was called durable was
/// still there.
async fn survives_power_cut(seed: u64, honest: bool) -> bool {
    let (_temp, dir) = new_dir();
    let mut model = Model::new(Random(seed));
    let power = PowerCut::new(dir.registry_dir());
    let sync: SyncFn = if honest { power.sync() } else { Arc::new(|_: &File| Ok(())) };
    let restored = restore(&dir, LogEnds::default()).unwrap();
    let mut writing = Writing::begin(&dir, restored, Options { sync, ..Options::default() });
    let entries = 20 + model.random.below(200);
    for _ in 0..entries {
        writing.send(Work::Step(model.step())).await.unwrap();
    }
    let awaited = model.random.below(entries);
    assert!(soon(writing.progress.reaches(awaited)).await);
    let durable = writing.progress.durable();
    writing.end().await;
    power.cut();
    let restored = restore(&dir, ends(None, entries - 1)).unwrap();
    model.assert_was(&restored, "after a power cut");
    restored.at.last_log_id >= durable
}

#[tokio::test]
async fn what_is_called_durable_survives_a_power_cut() {
    let mut random = Random::new("what_is_called_durable");
    for _ in 0..8 {
        assert!(survives_power_cut(random.next(), true).await);
    }
}

/// The canary of the test above: a sync that does nothing must be found out.
#[tokio::test]
async fn a_sync_that_does_nothing_is_found_out() {
    let mut random = Random::new("a_sync_that_does_nothing");
    assert!(!survives_power_cut(random.next(), false).await);
}

#[tokio::test]
async fn a_killed_process_loses_only_what_was_not_flushed() {
    let (_temp, dir) = new_dir();
    let mut model = Model::new(Random::new("a_killed_process"));
    let restored = restore(&dir, LogEnds::default()).unwrap();
    let mut writing = Writing::begin(&dir, restored, Options::default());
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..12 {
        for _ in 0..model.random.below(300) {
            writing.send(Work::Step(model.step())).await.unwrap();
        }
        if round % 3 == 0 {
            let last = model.at.last_log_id.map_or(0, |last| last.index);
            assert!(soon(writing.progress.reaches(last)).await);
        }
        let durable = writing.progress.durable();
        // The writer goes on while the files are copied, as it would until the kill.
        let killed = copy_of(dir.path());
        let copy = DataDir::open(killed.path(), NODE, None).unwrap();
        let last = model.at.last_log_id.map_or(0, |last| last.index);
        let restored = restore(&copy, ends(None, last)).unwrap();
        model.assert_was(&restored, "after a kill");
        if restored.image.is_some() {
            assert!(restored.at.last_log_id >= durable, "round {round}: flushed entries are gone");
        }
        seen.insert(restored.at.last_log_id);
    }
    writing.end().await;
    assert!(seen.len() > 4, "the kills came at different entries: {seen:?}");
}

#[tokio::test]
async fn a_kill_while_the_image_is_replaced_is_healed() {
    let (temp, model) = filled(Random::new("a_kill_while_the_image"), 300, 299).await;
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    // Each sync of the new image is a kill point.
    let kills = Arc::new(Mutex::new(Vec::new()));
    let (path, seen) = (dir.path().to_path_buf(), Arc::clone(&kills));
    let sync: SyncFn = Arc::new(move |_: &File| {
        seen.lock().unwrap().push(copy_of(&path));
        Ok(())
    });
    let mut restored = restore(&dir, ends(Some(299), 299)).unwrap();
    restored.image = None;
    Writing::begin(&dir, restored, Options { sync, ..Options::default() }).end().await;
    let mut kills = std::mem::take(&mut *kills.lock().unwrap());
    // The old image moved away, and the new one not yet begun.
    let between = copy_of(kills[0].path());
    fs::remove_dir_all(between.path().join("registry")).unwrap();
    kills.push(between);
    for killed in kills {
        let copy = DataDir::open(killed.path(), NODE, None).unwrap();
        let restored = restore(&copy, ends(Some(299), 299)).unwrap();
        assert_eq!(restored.at, model.at);
        model.assert_was(&restored, "after a kill");
        assert!(!killed.path().join("registry.old").exists(), "left behind");
    }
}

#[tokio::test]
async fn a_sync_that_fails_stops_the_writer_for_good() {
    let (_temp, dir) = new_dir();
    let mut model = Model::new(Random::new("a_sync_that_fails"));
    let restored = restore(&dir, LogEnds::default()).unwrap();
    let calls = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&calls);
    let sync: SyncFn = Arc::new(move |_: &File| {
        *counter.lock().unwrap() += 1;
        Err(platform::files::a_failure())
    });
    let mut writing = Writing::begin(&dir, restored, Options { sync, ..Options::default() });
    let fault = soon(writing.faults.wait()).await;
    let fault::Fault::Disk(fault) = &*fault else { panic!("{fault}") };
    assert_eq!((fault.operation, fault.path.clone()), ("sync", dir.registry_dir()));
    soon(writing.progress.ended()).await;
    assert!(writing.send(Work::Step(model.step())).await.is_err());
    assert_eq!(*calls.lock().unwrap(), 1, "a failed sync was tried again");
}

/// sled would move it into a file that it never syncs.
#[tokio::test]
async fn a_value_that_is_too_large_stops_the_writer() {
    let (_temp, dir) = new_dir();
    let mut model = Model::new(Random::new("a_value_that_is_too_large"));
    let restored = restore(&dir, LogEnds::default()).unwrap();
    let mut writing = Writing::begin(&dir, restored, Options::default());
    let mut step = model.step();
    let peer = peer(4096, Timestamp(1));
    step.changes = vec![(Serial(0), Some(Record::Peer(peer)))];
    writing.send(Work::Step(step)).await.unwrap();
    assert!(soon(writing.faults.wait()).await.to_string().contains("takes 41"));
}

#[tokio::test]
async fn an_open_that_hangs_ends_the_start_and_the_next_one_heals() {
    let (temp, model) = filled(Random::new("an_open_that_hangs"), 50, 20).await;
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    let hurried = Options { open_deadline: Duration::ZERO, ..Options::default() };
    let error = start::restore(
        &dir,
        ends(Some(20), 49),
        Some(&sled_store(&dir, hurried)),
        &LogGuard::default(),
    )
    .unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains("registry.bad-1"), "{error}");
    let restored = restore(&dir, ends(Some(20), 49)).unwrap();
    assert_eq!(restored.at.last_log_id, Some(log_id(20)));
    model.assert_was(&restored, "from the snapshot");
}
