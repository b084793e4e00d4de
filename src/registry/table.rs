//! A table that is cheap to copy: entries live in chunks behind reference counts, a copy shares
//! them all, and the first write to a shared chunk copies that chunk alone. So a snapshot of
//! millions of records takes no longer than counting their chunks, and writers go on.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

/// Numbers the records of the registry in the order of their creation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Serial(pub u64);

/// A chunk holds the serials that are equal but for these low bits.
const CHUNK_BITS: u32 = 9;

/// Values by [`Serial`], in order.
#[derive(Clone, Debug)]
pub struct Table<V> {
    chunks: BTreeMap<u64, Arc<BTreeMap<Serial, V>>>,
    len: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { chunks: BTreeMap::new(), len: 0 }
    }
}

impl<V: PartialEq> PartialEq for Table<V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<V: Eq> Eq for Table<V> {}

impl<V> Table<V> {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value under `serial`.
    pub fn get(&self, serial: Serial) -> Option<&V> {
        self.chunks.get(&chunk_of(serial))?.get(&serial)
    }

    /// All values, by rising serial.
    pub fn iter(&self) -> impl Iterator<Item = (Serial, &V)> {
        self.chunks.values().flat_map(|chunk| chunk.iter().map(|(serial, value)| (*serial, value)))
    }
}

impl<V: Clone> Table<V> {
    /// The value under `serial`, for changing.
    pub fn get_mut(&mut self, serial: Serial) -> Option<&mut V> {
        Arc::make_mut(self.chunks.get_mut(&chunk_of(serial))?).get_mut(&serial)
    }

    /// Puts `value` under `serial`; what was there comes back.
    pub fn insert(&mut self, serial: Serial, value: V) -> Option<V> {
        let chunk = self.chunks.entry(chunk_of(serial)).or_default();
        let previous = Arc::make_mut(chunk).insert(serial, value);
        self.len += usize::from(previous.is_none());
        previous
    }

    /// Takes the value under `serial` out.
    pub fn remove(&mut self, serial: Serial) -> Option<V> {
        let number = chunk_of(serial);
        let chunk = Arc::make_mut(self.chunks.get_mut(&number)?);
        let removed = chunk.remove(&serial)?;
        if chunk.is_empty() {
            self.chunks.remove(&number);
        }
        self.len -= 1;
        Some(removed)
    }
}

fn chunk_of(serial: Serial) -> u64 {
    serial.0 >> CHUNK_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut table = Table::default();
        for n in 0..2000 {
            table.insert(Serial(n), n);
        }
        let copy = table.clone();
        table.remove(Serial(7));
        *table.get_mut(Serial(8)).unwrap() = 0;
        assert_eq!((copy.get(Serial(7)), copy.get(Serial(8))), (Some(&7), Some(&8)));
        assert_eq!((table.get(Serial(7)), table.get(Serial(8))), (None, Some(&0)));
        assert_eq!((copy.len(), table.len()), (2000, 1999));
        assert!(copy.iter().map(|(serial, _)| serial.0).eq(0..2000));
    }
}
