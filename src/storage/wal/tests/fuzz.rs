//! Hostile bytes for the reader of the raft log.

use std::collections::BTreeMap;

use super::*;
use crate::{
    fuzz::{Chance, Target},
    storage::{
        sim_disk::{Rng, SimDisk, Survives},
        wal::frame::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Seal},
    },
};

type Files = BTreeMap<String, Vec<u8>>;

/// Returns a log of a few segments, with a truncation, a purge and a vote, closed in good order.
async fn made() -> (Files, Model) {
    let disk = SimDisk::new(1);
    let mut store = open(disk.share(), &sim_dir(), false).unwrap();
    let mut model = Model::default();
    for (term, count, keep) in [(1, 24, 20), (2, 12, 31), (3, 5, 36)] {
        let entries: Vec<_> =
            (model.end()..).take(count).map(|index| entry(term, index, 100)).collect();
        append(&mut store, entries.clone()).await.unwrap();
        model.entries.extend(entries);
        model.truncate(keep);
        store.truncate_after(model.last()).await.unwrap();
    }
    let purged = model.entries[10].log_id;
    store.purge(purged).await.unwrap();
    model.purge(purged);
    model.vote = Some(Vote::new_committed(9, 1));
    store.save_vote(&model.vote.unwrap()).await.unwrap();
    append(&mut store, vec![entry(9, model.end(), 10)]).await.unwrap();
    model.entries.push(entry(9, model.end(), 10));
    drop(store);
    let disk = disk.after_power_cut(Survives::Everything, &mut Rng(1)).share();
    let names = disk.names(&sim_dir()).unwrap();
    let files = names.into_iter().map(|name| {
        let file = disk.open(&sim_dir().join(&name), crate::storage::Access::Read).unwrap();
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        (name, bytes)
    });
    (files.collect(), model)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

/// Makes all checksums of a segment right, as far as frames can be told apart.
fn seal_segment(bytes: &mut [u8]) {
    if bytes.len() < SEGMENT_HEADER_BYTES {
        return;
    }
    let (cluster, store) = (bytes[12..28].try_into().expect("16"), bytes[28..44].try_into());
    let seal = Seal::new(&cluster, &store.expect("16"));
    let mut chain = seal.sum(&bytes[..60]);
    put(bytes, 60, chain);
    let mut at = SEGMENT_HEADER_BYTES;
    while bytes.len() >= at + FRAME_HEADER_BYTES {
        let room = bytes.len() - at - FRAME_HEADER_BYTES;
        let length = (number(bytes, at + 4) as usize).min(room);
        let frame = &mut bytes[at..at + FRAME_HEADER_BYTES + length];
        frame[..4].copy_from_slice(b"EMFR");
        put(frame, 4, u32::try_from(length).expect("short"));
        put(frame, 20, seal.sum(&frame[FRAME_HEADER_BYTES..]));
        put(frame, 32, chain);
        chain = seal.sum(&frame[..36]);
        put(frame, 36, chain);
        at += FRAME_HEADER_BYTES + length;
    }
}

/// Makes the checksums of both copies of the state right, and the watermark nothing.
fn seal_state(bytes: &mut [u8]) {
    for slot in [0, 4096] {
        let Some(length) = bytes.get(slot + 8..slot + 12).map(|bytes| number(bytes, 0)) else {
            return;
        };
        let body = slot + 16..slot + 16 + length as usize;
        if let Some(check) = bytes.get(body).map(crc32fast::hash) {
            put(bytes, slot + 12, check);
        }
    }
}

/// Puts an input in the place of one of the files.
fn replaced(files: &Files, input: &[u8], is_sealed: bool, chance: &mut Chance) -> Files {
    let mut files = files.clone();
    let first = input.get(44..52).map_or(0, |first| u64::from_le_bytes(first.try_into().unwrap()));
    let own = format!("{first:020}.wal");
    let names: Vec<String> = files.keys().cloned().collect();
    let name = match input {
        [b'E', b'M', b'S', ..] => "state".to_owned(),
        _ if files.contains_key(&own) => own,
        _ => chance.pick(&names),
    };
    let mut bytes = input.to_vec();
    if is_sealed && name == "state" {
        seal_state(&mut bytes);
    } else if is_sealed {
        seal_segment(&mut bytes);
    }
    files.insert(name, bytes);
    files
}

#[tokio::test]
async fn log() {
    let (files, model) = made().await;
    let cuts: Vec<_> =
        files.values().map(|bytes| bytes[..bytes.len().min(12_000)].into()).collect();
    // Nothing that a header promises is taken before it is held against the length of the file.
    let target = Target::new("log", 2 << 20).with(cuts).inputs_below(16 * 1024);
    target.run(3000, |input, chance| {
        let is_sealed = chance.percent(70);
        let files = replaced(&files, input, is_sealed, chance);
        let disk = SimDisk::new(1).share();
        disk.create_dir(&sim_dir()).unwrap();
        for (name, bytes) in &files {
            disk.create(&sim_dir().join(name)).unwrap().write_at(bytes, 0).unwrap();
        }
        let Ok(log) = OfflineLog::open(&*disk, &sim_dir(), CLUSTER) else { return false };
        let mut entries = Vec::new();
        log.for_each(0, |entry| entries.push(entry)).expect("what was recovered is read");
        let summary = log.summary();
        assert!(summary.bytes <= files.values().map(|bytes| bytes.len() as u64).sum());
        if !is_sealed {
            assert_eq!((summary.vote, summary.purged), (model.vote, model.purged));
            assert!(entries == model.entries, "it opens with everything, or not at all");
        }
        true
    });
}
