//! Snapshots on a disk in memory: which of two becomes the current one, and what a power cut leaves
//! of them.

use std::io;

use super::*;
use crate::storage::{
    ClusterId,
    error::Unusable,
    sim_disk::{Faults, Rng, SimDisk, Survives},
    snapshot::{self, SnapshotFile},
};

const DIR: &str = "/data";

fn open_dir(disk: &SimDisk) -> DataDir {
    DataDir::open_on(disk.share(), Path::new(DIR), NODE, Some(ClusterId(7))).unwrap()
}

fn survey(disk: &SimDisk) -> Option<SnapshotFile> {
    let survey = snapshot::survey(&*disk.share(), Path::new(DIR), ClusterId(7)).unwrap();
    assert!(survey.damaged.is_empty(), "{:?}", survey.damaged);
    survey.intact
}

/// Returns a model after some entries, with records in it.
fn model_after(seed: u64, entries: u64) -> Model {
    let mut model = Model::new(Random(seed));
    for _ in 0..entries {
        model.step();
    }
    model
}

/// An instance builds a snapshot while a newer one is installed; the log is purged behind the
/// newer.
#[tokio::test]
async fn an_older_snapshot_does_not_replace_a_newer_one() {
    let disk = SimDisk::new(1);
    let dir = open_dir(&disk);
    let snapshots = SnapshotDir::open(&dir, None).unwrap();
    let (older, newer) = (model_after(1, 10), model_after(1, 30));

    let sender = SnapshotDir::open(&dir, None).unwrap();
    let sent = sender.write(&newer.at, &newer.image).unwrap();
    let mut bytes = vec![0; usize::try_from(sent.bytes()).unwrap()];
    sent.read_at(&mut bytes, 0).unwrap();
    let draft = dir.inbox().begin(InstanceId(2)).await.unwrap();
    let draft = draft.write(bytes).await.unwrap();
    snapshots.adopt(&draft.check().await.unwrap()).unwrap();
    drop(draft);

    let built = snapshots.write(&older.at, &older.image).unwrap();
    let covered = |file: Option<SnapshotFile>| file.unwrap().meta().last_log_id;
    assert_eq!(built.meta().last_log_id, newer.at.last_log_id);
    assert_eq!(covered(snapshots.current()), newer.at.last_log_id);
    drop((snapshots, sender, dir));
    let disk = disk.after_power_cut(Survives::Everything, &mut Rng(1));
    assert_eq!(covered(survey(&disk)), newer.at.last_log_id);
    let files = disk.share().names(&Path::new(DIR).join("snapshot")).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
}

/// Writes a snapshot and cuts the power, at that operation or at its end. Says what is found of it.
fn write_and_cut(cut_at: Option<u64>, survives: Survives, lies: Faults) -> (bool, Option<u64>) {
    let disk = SimDisk::new(2);
    let dir = open_dir(&disk);
    let snapshots = SnapshotDir::open(&dir, None).unwrap();
    let model = model_after(2, 50);
    let dead_from = cut_at.map(|cut_at| disk.operations() + cut_at);
    disk.set_faults(Faults { dead_from, ..lies });
    let written = snapshots.write(&model.at, &model.image).is_ok();
    let disk = disk.after_power_cut(survives, &mut Rng(cut_at.unwrap_or(0)));
    let survey = snapshot::survey(&*disk.share(), Path::new(DIR), ClusterId(7)).unwrap();
    if survey.damaged.is_empty() || lies.file_sync_lies {
        let covered = survey.intact.and_then(|file| file.meta().last_log_id);
        (written, covered.map(|last| last.index))
    } else {
        panic!("cut at {cut_at:?}, {survives:?}: a name was given to half a snapshot");
    }
}

#[test]
fn a_snapshot_is_durable_before_it_gets_its_name() {
    for survives in [Survives::Nothing, Survives::Everything, Survives::Sectors] {
        assert_eq!(write_and_cut(None, survives, Faults::default()), (true, Some(49)));
        let mut cut_at = 1;
        loop {
            let (written, found) = write_and_cut(Some(cut_at), survives, Faults::default());
            if written {
                assert_eq!(found, Some(49));
                break;
            }
            cut_at += 1;
        }
        assert!(cut_at > 4, "create, write, sync, rename, sync: {cut_at}");
    }
}

/// The canary of the test above.
#[test]
fn canary_a_snapshot_that_is_not_synced_is_found_out() {
    for lies in [
        Faults { file_sync_lies: true, ..Faults::default() },
        Faults { dir_sync_lies: true, ..Faults::default() },
    ] {
        assert_eq!(write_and_cut(None, Survives::Nothing, lies), (true, None));
    }
}

/// Returns where the frames of a snapshot begin.
fn frames(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut frames, mut at) = (Vec::new(), 12);
    while at < bytes.len() {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        frames.push(at..at + 8 + length);
        at += 8 + length;
    }
    frames
}

/// Each frame is whole, and there are as many records as its end says: only the checksum over the
/// whole file tells.
#[test]
fn frames_of_another_snapshot_are_not_taken() {
    let disk = SimDisk::new(3);
    let dir = open_dir(&disk);
    let snapshots = SnapshotDir::open(&dir, None).unwrap();
    let mut ours = model_after(3, 40);
    let ours_bytes = bytes_of(&snapshots.write(&ours.at, &ours.image).unwrap());
    // The same registry one entry later, in which one record has another value.
    let (serial, _) = ours.image.records.iter().next().unwrap();
    let other = Record::Peer(Peer { id: PeerId(99), ..peer(1, Timestamp(1)) });
    drop(ours.image.records.insert(serial, other));
    ours.at.last_log_id = Some(log_id(40));
    let theirs_bytes = bytes_of(&snapshots.write(&ours.at, &ours.image).unwrap());

    let (our_frames, their_frames) = (frames(&ours_bytes), frames(&theirs_bytes));
    assert_eq!((our_frames.len(), their_frames.len()), (3, 3), "header, records, end");
    let spliced = [
        &ours_bytes[..our_frames[1].start],
        &theirs_bytes[their_frames[1].clone()],
        &ours_bytes[our_frames[2].clone()],
    ]
    .concat();
    let path = Path::new(DIR).join("snapshot/spliced.new");
    let file = disk.share().create(&path).unwrap();
    file.write_at(&spliced, 0).unwrap();
    let Err(Unusable::Damaged(_)) = snapshot::load(&*file, None) else {
        panic!("frames of another snapshot were taken");
    };
}

fn bytes_of(file: &SnapshotFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.bytes()).unwrap()];
    let read: io::Result<()> = file.read_at(&mut bytes, 0);
    read.unwrap();
    bytes
}
