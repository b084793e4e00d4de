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
    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the value under `serial`.
    pub fn get(&self, serial: Serial) -> Option<&V> {
        self.chunks.get(&chunk_of(serial))?.get(&serial)
    }

    /// Returns all values, by rising serial.
    pub fn iter(&self) -> impl Iterator<Item = (Serial, &V)> {
        self.chunks.values().flat_map(|chunk| chunk.iter().map(|(serial, value)| (*serial, value)))
    }
}

impl<V: Clone> Table<V> {
    /// Returns the value under `serial`, for changing.
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

    /// Takes in all values of another table.
    pub fn append(&mut self, other: Self) {
        for (number, chunk) in other.chunks {
            self.merge(number, Arc::unwrap_or_clone(chunk));
        }
    }

    fn merge(&mut self, number: u64, mut values: BTreeMap<Serial, V>) {
        let chunk = Arc::make_mut(self.chunks.entry(number).or_default());
        self.len -= chunk.len();
        chunk.append(&mut values);
        self.len += chunk.len();
    }
}

/// Chunks made at once are filled to the brim, where one insert after the other leaves each half
/// empty; so this is how a whole registry is read, by rising serial.
impl<V: Clone> FromIterator<(Serial, V)> for Table<V> {
    fn from_iter<T: IntoIterator<Item = (Serial, V)>>(pairs: T) -> Self {
        let mut table = Self::default();
        let mut pairs = pairs.into_iter().peekable();
        while let Some(number) = pairs.peek().map(|(serial, _)| chunk_of(*serial)) {
            let in_chunk = || pairs.next_if(|(serial, _)| chunk_of(*serial) == number);
            table.merge(number, std::iter::from_fn(in_chunk).collect());
        }
        table
    }
}

fn chunk_of(serial: Serial) -> u64 {
    serial.0 >> CHUNK_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_made_it_is_the_same() {
        let mut inserted = Table::default();
        for n in 0..2000 {
            inserted.insert(Serial(n), n);
        }
        let pair = |n| (Serial(n), n);
        let rising: Table<u64> = (0..2000).map(pair).collect();
        let any_order: Table<u64> = (0..2000).map(|n| pair(n * 7 % 2000)).collect();
        let mut joined: Table<u64> = (0..900).map(pair).collect();
        joined.append((700..2000).map(pair).collect());
        for table in [rising, any_order, joined] {
            assert_eq!((table.len(), &table), (2000, &inserted));
        }
    }

    #[test]
    fn tables_are_equal_that_hold_the_same_under_the_same_serials() {
        let table = |pairs: &[(u64, u64)]| -> Table<u64> {
            pairs.iter().map(|(serial, value)| (Serial(*serial), *value)).collect()
        };
        let one = table(&[(1, 1), (600, 2)]);
        assert_eq!(one, table(&[(600, 2), (1, 1)]));
        for other in [
            table(&[]),
            table(&[(1, 1)]),
            table(&[(1, 1), (2, 2)]),
            table(&[(1, 1), (600, 3)]),
            table(&[(1, 1), (601, 2)]),
            table(&[(1, 1), (2, 1), (600, 2)]),
        ] {
            assert_ne!(one, other);
        }
    }

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
