//! Hostile bytes for the reader of snapshots, which come from disks, from backups that an operator
//! hands over, and from other instances.

use std::{fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use super::format::{self, Contents, End, Header};
use crate::{
    codec,
    fuzz::Target,
    raft::{Entry, SnapshotMeta},
    registry::{Image, Meta, Record, Registry, Serial, Table},
    storage::error::Unusable,
};

fn read(mut bytes: &[u8]) -> Result<(Contents, Table<Record>), Unusable> {
    let mut records = Table::default();
    let take = |some: Vec<(Serial, Record)>| records.append(some.into_iter().collect());
    let contents = format::read(&mut bytes, None, take)?;
    Ok((contents, records))
}

/// Makes the checksums right, as far as the frames can be told apart.
fn sealed(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let (mut at, mut records) = (12, 0);
    while let Some(prefix) = bytes.get(at..at + 4) {
        let length = u32::from_le_bytes(prefix.try_into().expect("4 bytes")) as usize;
        if !(1..=bytes.len()).contains(&length) || bytes.len() < at + 8 + length {
            break;
        }
        if bytes[at + 8] == b'E' {
            let check = crc32fast::hash(&bytes[..at]);
            let end = codec::encode(&End { records, check });
            let length = u32::try_from(end.len() + 1).expect("short");
            bytes.truncate(at);
            bytes.extend(length.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.push(b'E');
            bytes.extend(end);
        }
        let end = at + 8 + u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4")) as usize;
        let mut body = &bytes[at + 9..end];
        while let (b'R', Ok((_, rest))) = (bytes[at + 8], codec::take::<(Serial, Record)>(body)) {
            (body, records) = (rest, records + 1);
        }
        let check = crc32fast::hash(&bytes[at + 8..end]);
        bytes[at + 4..at + 8].copy_from_slice(&check.to_le_bytes());
        at = end;
    }
    bytes
}

/// Checks that decoded bytes have one encoding of their own, which decodes to the same.
fn decodes<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(value) = codec::decode::<T>(bytes) else { return false };
    let encoded = codec::encode(&value);
    let again: T = codec::decode(&encoded).expect("what was encoded decodes");
    assert!(codec::encode(&again) == encoded, "the encoding stays the same");
    true
}

#[test]
fn coded() {
    // A list is made with room for 1 MiB at most before its items are seen (serde).
    let corpus = codec::golden::all_of("storage.txt");
    Target::new("coded", 2 << 20).with(corpus).run(20_000, |input, _| {
        let is_log = decodes::<Entry>(input) | decodes::<SnapshotMeta>(input);
        is_log | decodes::<(Serial, Record)>(input) | decodes::<Meta>(input)
    });
}

#[test]
fn snapshot() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let names = ["rules-2/chain.backup", "v0.2.0/chain.backup"];
    let corpus = names.map(|name| fs::read(fixtures.join(name)).expect("a fixture"));
    // A list is made with room for 1 MiB at most before its items are seen (serde).
    Target::new("snapshot", 3 << 20).with(corpus).run(5000, |input, chance| {
        let is_sealed = chance.percent(70);
        let bytes = if is_sealed { sealed(input) } else { input.to_vec() };
        let Ok((contents, records)) = read(&bytes) else { return false };
        let Contents { header, .. } = contents;
        let written = |header: &Header, records: &Table<Record>| {
            let mut bytes = Vec::new();
            format::write(&mut bytes, header, records).expect("memory takes all");
            bytes
        };
        let again = written(&header, &records);
        let (contents, same) = read(&again).expect("what was written is read");
        assert!(records == same && written(&contents.header, &same) == again);
        Registry::from_image(Image { meta: header.meta, records }).is_ok()
    });
}
