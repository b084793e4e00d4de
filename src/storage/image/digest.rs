//! Digests of records: they tell an image from a damaged one, and equal registries from others.

use serde::{Deserialize, Serialize};

use super::record_key;
use crate::registry::Image;

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

/// A digest over all of a registry. Replicas that have applied the same entries have the same one.
/// It encodes every record: a second or more of work for millions of them.
pub fn digest(image: &Image) -> u64 {
    let mut tally = Tally::default();
    for (serial, record) in image.records.iter() {
        let value = postcard::to_stdvec(record).expect("records encode into memory");
        tally.add(&record_key(serial), &value);
    }
    let meta = postcard::to_stdvec(&image.meta).expect("they encode into memory");
    tally.digest.wrapping_add(hash(&[], &meta))
}

/// FNV-1a over key and value, and a final mix (that of MurmurHash3) so that sums of similar
/// records do not cancel out. It finds damage; it is no defence against a forger.
fn hash(key: &[u8], value: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.iter().chain(value) {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}
