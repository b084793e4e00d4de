//! Written data come back.

use std::collections::BTreeMap;

use openraft::storage::RaftLogStorage as _;

use super::*;
use crate::{
    platform,
    raft::Vote,
    registry::Instance,
    storage::{Finding, LogOptions, LogStore, RealDisk, check, files, identity, image::Found},
};

#[tokio::test]
async fn an_image_comes_back_as_it_was() {
    let (temp, model) = filled(Random::new("an_image_comes_back"), 400, 100).await;
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    let restored = restore(&dir, ends(Some(100), 399)).unwrap();
    assert_eq!(restored.at, model.at);
    assert!(restored.image.is_some(), "restored from the image");
    model.assert_was(&restored, "reopened");
    assert!(restored.registry.image().records.len() > 100, "the test wrote something");
    assert_eq!(restored.snapshots.current().unwrap().meta().last_log_id, Some(log_id(100)));
}

#[tokio::test]
async fn an_image_goes_on_after_a_restart() {
    let (temp, mut model) = filled(Random::new("an_image_goes_on"), 50, 10).await;
    for _ in 0..3 {
        let dir = DataDir::open(temp.path(), NODE, None).unwrap();
        let last = model.at.last_log_id.unwrap().index;
        let restored = restore(&dir, ends(None, last)).unwrap();
        model.assert_was(&restored, "reopened");
        let mut writing = Writing::begin(&dir, restored, image::Options::default());
        for _ in 0..50 {
            writing.send(Work::Step(model.step())).await.unwrap();
        }
        writing.end().await;
    }
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    let restored = restore(&dir, ends(None, 199)).unwrap();
    assert_eq!(restored.at.last_log_id, Some(log_id(199)));
    model.assert_was(&restored, "at the end");
}

#[tokio::test]
async fn a_stamp_may_grow_over_several_values_and_shrink_again() {
    let (_temp, dir) = new_dir();
    let mut model = Model::new(Random::new("a_stamp_may_grow"));
    for instances in [1000, 3, 400] {
        let restored = restore(&dir, ends(None, 1000)).unwrap();
        let mut writing = Writing::begin(&dir, restored, image::Options::default());
        let mut step = model.step();
        let many = (0..instances).map(|id| (InstanceId(id), Instance::default()));
        step.meta.instances = many.collect::<BTreeMap<_, _>>();
        let expected = step.meta.clone();
        writing.send(Work::Step(step)).await.unwrap();
        writing.end().await;
        let Found::Intact(intact) = sled_store(&dir, image::Options::default()).open().unwrap()
        else {
            panic!("not intact with {instances} instances");
        };
        assert_eq!(intact.registry.image().meta, expected);
    }
}

#[tokio::test]
async fn no_other_user_may_read_the_files() {
    let (temp, _) = filled(Random::new("nobody_else_may_read"), 30, 10).await;
    let mut seen = 0;
    let mut left = vec![temp.path().join("registry"), temp.path().join("snapshot")];
    while let Some(path) = left.pop() {
        let mode = platform::files::mode(&path);
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        left.extend(if path.is_dir() {
            files::list(&RealDisk, &path).unwrap()
        } else {
            Vec::new()
        });
        seen += 1;
    }
    assert!(seen >= 6, "registry, blobs, conf, db, snapshot, one snapshot file");
}

#[tokio::test]
async fn a_check_reports_and_changes_nothing() {
    let (temp, _) = filled(Random::new("a_check_reports"), 60, 20).await;
    make_log(temp.path()).await;
    let before = contents(temp.path());
    let report = check(temp.path()).unwrap();
    assert!(!report.is_damaged());
    let text = report.to_string();
    assert!(text.contains("through entry 59") && text.contains("through entry 20"), "{text}");
    assert!(text.contains("raft log: whole, no entries, "), "{text}");
    assert_eq!(contents(temp.path()), before, "the check wrote");

    assert!(report.covers(20) && report.covers(59));
    assert!(!report.covers(60), "an entry would be missing between image and log");

    fs::write(temp.path().join("registry/conf"), "rubbish, and more of it").unwrap();
    let report = check(temp.path()).unwrap();
    assert!(matches!(report.image, Finding::Damaged { .. }), "{report}");
    assert!(report.covers(20) && !report.covers(21));
    assert!(report.is_damaged());

    let _held = DataDir::open(temp.path(), NODE, None).unwrap();
    assert!(matches!(check(temp.path()), Err(StorageError::Locked { .. })));
}

/// Puts a real raft log, in which a vote was given, in the place of the stand-in.
async fn make_log(path: &Path) {
    fs::remove_file(path.join("raft/log")).unwrap();
    let identity = identity::read_identity(&RealDisk, path).unwrap().unwrap();
    let options = LogOptions {
        dir: path.join("raft"),
        cluster_id: identity.log_id(),
        expect_existing: false,
        metrics: Metrics::new(),
        faults: fault::channel().0,
    };
    let mut log = LogStore::open(options).unwrap();
    log.save_vote(&Vote::new_committed(1, NODE.0)).await.unwrap();
}

/// Every file below a directory.
fn contents(path: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for inner in files::list(&RealDisk, path).unwrap() {
        if inner.is_dir() {
            all.extend(contents(&inner));
        } else {
            all.insert(inner.clone(), fs::read(&inner).unwrap());
        }
    }
    all
}
