//! A set of serials that counts those in a range without visiting each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeBounds,
};

use super::Serial;

/// A block of a level is this number of bits of serials, or of blocks of the level below.
const BITS: u32 = 5;

/// Levels of blocks above the serials.
const LEVELS: usize = 4;

/// Serials in order, and how many of them each block of serials holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    serials: BTreeSet<Serial>,
    /// The blocks that hold any, level by level.
    levels: [BTreeMap<u64, u64>; LEVELS],
}

impl Counted {
    pub(super) fn len(&self) -> u64 {
        self.serials.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }

    pub(super) fn contains(&self, serial: Serial) -> bool {
        self.serials.contains(&serial)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Serial> + '_ {
        self.serials.iter().copied()
    }

    pub(super) fn range(
        &self,
        range: impl RangeBounds<Serial>,
    ) -> impl DoubleEndedIterator<Item = Serial> + '_ {
        self.serials.range(range).copied()
    }

    pub(super) fn insert(&mut self, serial: Serial) {
        if self.serials.insert(serial) {
            for (level, block) in self.levels.iter_mut().zip(blocks(serial)) {
                *level.entry(block).or_default() += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, serial: Serial) {
        if self.serials.remove(&serial) {
            for (level, block) in self.levels.iter_mut().zip(blocks(serial)) {
                let count = level.entry(block).or_default();
                *count -= 1;
                if *count == 0 {
                    level.remove(&block);
                }
            }
        }
    }

    /// Returns the number in `first..end`. Looks at no more than two blocks' worth of each level,
    /// and at all blocks of the highest one.
    pub(super) fn count(&self, first: Serial, end: Serial) -> u64 {
        let (mut first, mut end, mut sum) = (first.0, end.0, 0);
        for level in 0..LEVELS {
            // What is left of the first whole block above and right of the last one is counted
            // here, and the whole ones by their sums.
            let (up, down) = (first.div_ceil(1 << BITS), end >> BITS);
            if up >= down {
                return sum + self.count_at(level, first, end);
            }
            sum +=
                self.count_at(level, first, up << BITS) + self.count_at(level, down << BITS, end);
            (first, end) = (up, down);
        }
        sum + self.count_at(LEVELS, first, end)
    }

    fn count_at(&self, level: usize, first: u64, end: u64) -> u64 {
        if first >= end {
            return 0;
        }
        match level.checked_sub(1) {
            None => self.serials.range(Serial(first)..Serial(end)).count() as u64,
            Some(blocks) => self.levels[blocks].range(first..end).map(|(_, count)| count).sum(),
        }
    }
}

/// Returns the block of each level that a serial is in.
fn blocks(serial: Serial) -> impl Iterator<Item = u64> {
    (1..).map(move |level| serial.0 >> (BITS * level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_a_look_at_each() {
        let mut counted = Counted::default();
        let serials = |n: u64| Serial(n * n * 7919 % 2_000_003);
        for n in 0..3000 {
            counted.insert(serials(n));
            counted.insert(serials(n));
        }
        for n in (0..3000).step_by(3) {
            counted.remove(serials(n));
            counted.remove(serials(n));
        }
        let ends = [0, 1, 31, 32, 33, 1024, 99_999, 1_048_576, 1_500_001, 3_000_000, u64::MAX];
        for first in ends {
            for end in ends {
                let looked = counted.iter().filter(|at| (first..end).contains(&at.0)).count();
                assert_eq!(counted.count(Serial(first), Serial(end)), looked as u64);
            }
        }
        counted.iter().collect::<Vec<_>>().into_iter().for_each(|at| counted.remove(at));
        assert_eq!(counted, Counted::default());
    }
}
