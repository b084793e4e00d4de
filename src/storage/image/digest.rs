//! Digests of records: they detect a damaged image, and registries that differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record_key;
use crate::{
    codec,
    registry::{Image, Meta, Record, Serial},
};

/// The number of records and a digest over all of them, in no order: the sum of a hash of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) records: u64,
    digest: u64,
}

impl Tally {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.digest = self.digest.wrapping_add(hash(key, value));
    }

    /// Counts in what another part of the tree holds.
    pub(super) fn append(&mut self, other: Self) {
        self.records += other.records;
        self.digest = self.digest.wrapping_add(other.digest);
    }

    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.records -= 1;
        self.digest = self.digest.wrapping_sub(hash(key, value));
    }
}

/// The digest of a registry, kept up to date: what changed is taken out as it was and counted in as
/// it is, so that no entry costs a look at the whole registry.
#[derive(Clone, Debug, Default)]
pub struct RunningDigest {
    tally: Tally,
    /// The encoding of the record in hand; kept for its memory.
    bytes: Vec<u8>,
}

impl RunningDigest {
    /// That of a registry at rest. It encodes every record: a second or more of work for millions
    /// of them.
    pub fn of(image: &Image) -> Self {
        let mut running = Self::default();
        for (serial, record) in image.records.iter() {
            running.encode(record);
            running.tally.add(&record_key(serial), &running.bytes);
        }
        running
    }

    /// Follows a registry through changes: `before` has the changed records as they were, as
    /// [`crate::registry::Registry::take_changed`] gives them.
    pub fn follow(&mut self, before: &BTreeMap<Serial, Option<Record>>, image: &Image) {
        for (serial, old) in before {
            let key = record_key(*serial);
            if let Some(old) = old {
                self.encode(old);
                self.tally.remove(&key, &self.bytes);
            }
            if let Some(record) = image.records.get(*serial) {
                self.encode(record);
                self.tally.add(&key, &self.bytes);
            }
        }
    }

    /// Returns the digest over the records and these values beside them.
    pub fn digest(&mut self, meta: &Meta) -> u64 {
        self.encode(meta);
        self.tally.digest.wrapping_add(hash(&[], &self.bytes))
    }

    fn encode(&mut self, value: &impl Serialize) {
        self.bytes.clear();
        let empty = std::mem::take(&mut self.bytes);
        self.bytes = codec::append(value, empty);
    }
}

/// Returns a digest over all of a registry, from scratch. Replicas that have applied the same
/// entries have the same one; a replica knows its own without this
/// ([`crate::storage::RegistryView::digest`]).
pub fn digest(image: &Image) -> u64 {
    RunningDigest::of(image).digest(&image.meta)
}

/// Returns a hash over key and value, eight bytes at a time: each step multiplies by a number of
/// Steele and Vigna's for congruential generators (arXiv 2001.05304), and folds the upper half,
/// which alone depends on all bits, into the lower one. It finds damage; it is no defence against a
/// forger.
fn hash(key: &[u8], value: &[u8]) -> u64 {
    let length = (key.len() + value.len()) as u64;
    let state = absorb(absorb(length, key), value);
    step(state, length)
}

fn absorb(state: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let state = words.iter().fold(state, |state, word| step(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    step(state, u64::from_le_bytes(last))
}

fn step(state: u64, word: u64) -> u64 {
    let state = (state ^ word).wrapping_mul(0xd134_2543_de82_ef95);
    state ^ (state >> 32)
}
