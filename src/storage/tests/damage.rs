//! Damaged files: each is healed from another source or refused, and nothing is silently older
//! than the log can make up for.

use super::*;
use crate::storage::{RealDisk, SnapshotFile, files};

const ENTRIES: u64 = 250;
const COVERED: u64 = 120;

/// A kind of damage to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    CutTail,
    CutHalf,
    FlipBit,
    ZeroPage,
    Empty,
    Delete,
}

const HARMS: [Harm; 6] =
    [Harm::CutTail, Harm::CutHalf, Harm::FlipBit, Harm::ZeroPage, Harm::Empty, Harm::Delete];

fn damage(path: &Path, harm: Harm, random: &mut Random) {
    let mut bytes = fs::read(path).unwrap();
    let length = bytes.len();
    match harm {
        Harm::CutTail => bytes.truncate(length.saturating_sub(1000)),
        Harm::CutHalf => bytes.truncate(length / 2),
        Harm::FlipBit => bytes[random.below(length as u64) as usize] ^= 1 << random.below(8),
        Harm::ZeroPage => {
            let page = random.below(length as u64) as usize / 4096 * 4096;
            let end = length.min(page + 4096);
            bytes[page..end].fill(0);
        }
        Harm::Empty => bytes.clear(),
        Harm::Delete => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

/// Returns the files of the image that sled reads.
fn image_files(path: &Path) -> Vec<std::path::PathBuf> {
    let mut all = files::list(&RealDisk, &path.join("registry")).unwrap();
    all.retain(|file| file.is_file());
    all
}

fn snapshot_file(path: &Path) -> std::path::PathBuf {
    files::list(&RealDisk, &path.join("snapshot")).unwrap().remove(0)
}

/// A damaged image never stops a start: with the log whole from its beginning or from behind the
/// snapshot, everything is restored, and the next start finds a whole image again.
#[tokio::test]
async fn every_damage_of_the_image_is_healed() {
    let mut random = Random::new("every_damage_of_the_image");
    let (base, model) = filled(Random(random.next()), ENTRIES, COVERED).await;
    // A second life, so that sled has written its own `snap.` file.
    let dir = DataDir::open(base.path(), NODE, None).unwrap();
    drop(restore(&dir, ends(None, ENTRIES - 1)).unwrap());
    drop(dir);
    let count = image_files(base.path()).len();
    assert!(count >= 3, "conf, db and a snap file: {:?}", image_files(base.path()));
    let mut rebuilt = 0;
    for round in 0..48 {
        let copy = copy_of(base.path());
        let file = &image_files(copy.path())[round % count];
        let harm = HARMS[round / count % HARMS.len()];
        damage(file, harm, &mut random);
        let context = format!("{harm:?} of {}", file.display());
        let purged = (random.below(2) == 0).then_some(COVERED);
        let dir = DataDir::open(copy.path(), NODE, None).unwrap();
        let restored = restore(&dir, ends(purged, ENTRIES - 1)).expect(&context);
        model.assert_was(&restored, &context);
        assert!(restored.at.last_log_id >= purged.map(log_id), "{context}: a gap to the log");
        rebuilt += u32::from(restored.image.is_none());

        let at = restored.at.clone();
        Writing::begin(&dir, restored, image::Options::default()).end().await;
        let again = restore(&dir, ends(purged, ENTRIES - 1)).expect(&context);
        assert!(
            again.image.is_some() && again.at == at,
            "{context}: not healed for good: {:?} after {:?}, image {}",
            again.at.last_log_id,
            at.last_log_id,
            again.image.is_some(),
        );
        model.assert_was(&again, &context);
    }
    assert!(rebuilt >= 12, "only {rebuilt} of 48 damages mattered: the test is too weak");
}

#[tokio::test]
async fn a_deleted_image_is_healed_and_a_damaged_one_is_kept_aside() {
    let (base, model) = filled(Random::new("a_deleted_image"), ENTRIES, COVERED).await;
    let dir = DataDir::open(base.path(), NODE, None).unwrap();
    for round in 1..=3 {
        for file in image_files(base.path()) {
            fs::write(file, "rubbish, and more of it").unwrap();
        }
        let restored = restore(&dir, ends(Some(COVERED), ENTRIES - 1)).unwrap();
        model.assert_was(&restored, "from the snapshot");
        let mut aside = files::list(&RealDisk, base.path()).unwrap();
        aside.retain(|path| path.display().to_string().contains("registry.bad-"));
        assert_eq!(aside, [base.path().join(format!("registry.bad-{round}"))], "one is kept");
        Writing::begin(&dir, restored, image::Options::default()).end().await;
    }
    fs::remove_dir_all(dir.registry_dir()).unwrap();
    let restored = restore(&dir, ends(Some(COVERED), ENTRIES - 1)).unwrap();
    assert_eq!(restored.at.last_log_id, Some(log_id(COVERED)));
    model.assert_was(&restored, "from the snapshot");
}

/// The faults of sled: a record lost, one that is older than it was, one that came back, and
/// a stamp that is older than the records. None of it is damage in sled's own eyes.
#[tokio::test]
async fn a_tree_that_does_not_agree_with_its_stamp_is_no_image() {
    let (base, _) = filled(Random::new("a_tree_that_does_not_agree"), ENTRIES, COVERED).await;
    let tampers: [fn(&sled::Db); 5] = [
        |db| drop(db.pop_min().unwrap()),
        |db| {
            let (first, second) = (db.pop_min().unwrap().unwrap(), db.first().unwrap().unwrap());
            db.insert(first.0, second.1).unwrap();
        },
        |db| {
            let (_, value) = db.first().unwrap().unwrap();
            db.insert(image::record_key(Serial(1 << 40)), value).unwrap();
        },
        |db| drop(db.remove([b'S', 0, 0]).unwrap()),
        |db| drop(db.insert(b"x", b"of no known kind").unwrap()),
    ];
    for (number, tamper) in tampers.into_iter().enumerate() {
        let copy = copy_of(base.path());
        let db = sled::open(copy.path().join("registry")).unwrap();
        tamper(&db);
        db.flush().unwrap();
        drop(db);
        let dir = DataDir::open(copy.path(), NODE, None).unwrap();
        let found = sled_store(&dir, image::Options::default()).open();
        assert!(matches!(found, Ok(image::Found::Damaged(_))), "number {number} goes unseen");
    }
}

#[tokio::test]
async fn every_damage_of_a_snapshot_is_seen() {
    let mut random = Random::new("every_damage_of_a_snapshot");
    let (base, model) = filled(Random(random.next()), ENTRIES, COVERED).await;
    for round in 0..30 {
        let copy = copy_of(base.path());
        let file = snapshot_file(copy.path());
        let harm = HARMS[round % HARMS.len()];
        let before = fs::read(&file).unwrap();
        damage(&file, harm, &mut random);
        if fs::read(&file).is_ok_and(|after| after == before) {
            continue; // the page was zero already
        }
        let dir = DataDir::open(copy.path(), NODE, None).unwrap();
        let restored = restore(&dir, ends(Some(COVERED), ENTRIES - 1)).unwrap();
        model.assert_was(&restored, "from the image");
        assert!(restored.image.is_some());
        assert!(restored.snapshots.current().is_none(), "{harm:?}: still offered");
        assert!(!file.exists(), "{harm:?}: still in its place");
        assert_eq!(file.with_extension("snap.bad").exists(), harm != Harm::Delete);

        // A new one is written, and carries the next start alone.
        let (at, image) = (restored.at.clone(), restored.registry.image().clone());
        restored.snapshots.write(&at, &image).unwrap();
        drop(restored);
        fs::remove_dir_all(dir.registry_dir()).unwrap();
        let again = restore(&dir, ends(Some(COVERED), ENTRIES - 1)).unwrap();
        assert_eq!(again.at, model.at);
        model.assert_was(&again, "from the new snapshot");
    }
}

#[tokio::test]
async fn damage_of_both_is_refused_unless_the_log_is_whole() {
    let mut random = Random::new("damage_of_both");
    let (base, model) = filled(Random(random.next()), ENTRIES, COVERED).await;
    let mut refused = 0;
    for round in 0..24 {
        let copy = copy_of(base.path());
        let harm = HARMS[round % HARMS.len()];
        damage(&snapshot_file(copy.path()), harm, &mut random);
        damage(&copy.path().join("registry/db"), harm, &mut random);
        let dir = DataDir::open(copy.path(), NODE, None).unwrap();
        match restore(&dir, ends(Some(COVERED), ENTRIES - 1)) {
            Ok(restored) => {
                // The harm to sled's file hit nothing that lives.
                model.assert_was(&restored, "both damaged");
                assert!(restored.at.last_log_id >= Some(log_id(COVERED)));
                continue;
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.exit_code(), 78);
                let text = error.to_string();
                assert!(text.contains("registry") && text.contains("snapshot"), "{text}");
                assert!(text.contains("backup"), "{text}");
            }
        }
        assert!(dir.registry_dir().exists(), "a refused start moved the image");
        let healed = restore(&dir, ends(None, ENTRIES - 1)).unwrap();
        model.assert_was(&healed, "by replaying the whole log");
    }
    assert!(refused >= 8, "only {refused} of 24 were refused: the test is too weak");
}

#[tokio::test]
async fn files_of_another_cluster_are_refused() {
    let (ours, _) = filled(Random::new("files_of_another_cluster"), 30, 10).await;
    let (theirs, _) = filled(Random(7), 30, 10).await;
    for part in ["registry", "snapshot"] {
        let copy = copy_of(ours.path());
        fs::remove_dir_all(copy.path().join(part)).unwrap();
        image::tree::copy(&theirs.path().join(part), &copy.path().join(part)).unwrap();
        let dir = DataDir::open(copy.path(), NODE, None).unwrap();
        let error = restore(&dir, ends(None, 29)).unwrap_err();
        assert!(matches!(error, StorageError::Foreign { .. }), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_file_in_blobs_makes_an_image_worthless() {
    let (temp, model) = filled(Random::new("a_file_in_blobs"), 40, 20).await;
    // sled itself removes those whose number lies beyond its log.
    fs::write(temp.path().join("registry/blobs/1"), "never synced").unwrap();
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    let restored = restore(&dir, ends(Some(20), 39)).unwrap();
    assert_eq!(restored.at.last_log_id, Some(log_id(20)));
    model.assert_was(&restored, "from the snapshot");
}

/// openraft takes a snapshot that ends before the log begins for a broken store.
#[tokio::test]
async fn a_snapshot_with_a_gap_to_the_log_is_not_offered() {
    let (temp, _) = filled(Random::new("a_snapshot_with_a_gap"), 60, 20).await;
    let dir = DataDir::open(temp.path(), NODE, None).unwrap();
    let offered = |log| {
        let file: Option<SnapshotFile> = restore(&dir, log).unwrap().snapshots.current();
        file.is_some()
    };
    assert!(offered(ends(Some(20), 59)));
    assert!(!offered(ends(Some(21), 59)), "the log was purged beyond it");
    assert!(!offered(ends(Some(5), 40)), "the log ends before the image and will be purged");
}
