//! The digests of a replica at entries that every replica knows by itself, so that replicas can be
//! held against each other although none of them waits for another.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::image::RunningDigest;
use crate::registry::{Registry, Serial};

/// The number of last entries that each have a digest: replicas that wait for the next entry, or
/// are a heartbeat apart, have some of them in common.
const RECENT: usize = 64;

/// Of the entries before those, the ones whose index is a multiple of this have one.
const EVERY: u64 = 64;

/// The number of these that are kept: 8,192 entries, more than a replica that keeps up is ever
/// behind.
const KEPT: usize = 128;

/// The encoding and hash of records. Digests of two kinds say nothing about each other, so that a
/// program whose records have another encoding is not taken for one with other records.
const KIND: u32 = 1;

/// The digests of a replica's registry at some entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// Their kind; only those of one kind can be compared.
    pub kind: u32,
    /// The digests, by rising entry; the last one is that of the last entry applied.
    pub points: Vec<Point>,
}

/// The digest of a registry at one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The index of the entry.
    pub entry: u64,
    /// The digest of the registry as that entry left it.
    pub digest: u64,
}

/// The digests of the registry of this replica. A registry that takes its place has others.
#[derive(Debug)]
pub(super) struct Points {
    running: RunningDigest,
    recent: VecDeque<Point>,
    older: VecDeque<Point>,
    disowned: bool,
}

impl Points {
    /// Returns those of a registry as this entry left it; it is looked at as a whole. What no entry
    /// was applied to has no point, because that would be taken for what the first entry left.
    pub(super) fn of(registry: &Registry, entry: Option<u64>) -> Self {
        let running = RunningDigest::of(registry.image());
        let (recent, older) = (VecDeque::new(), VecDeque::new());
        let mut points = Self { running, recent, older, disowned: false };
        let first = entry.map(|entry| points.newest(entry, registry));
        points.recent.extend(first);
        points
    }

    /// Notes that an entry has changed the registry; returns the serials of the records that it
    /// changed.
    pub(super) fn follow(&mut self, entry: u64, registry: &mut Registry) -> Vec<Serial> {
        let before = registry.take_changed();
        self.running.follow(&before, registry.image());
        let newest = self.newest(entry, registry);
        self.recent.push_back(newest);
        if self.recent.len() > RECENT {
            let ages = self.recent.pop_front().filter(|point| point.entry.is_multiple_of(EVERY));
            self.older.extend(ages);
        }
        if self.older.len() > KEPT {
            self.older.pop_front();
        }
        before.into_keys().collect()
    }

    /// Returns the digest of the registry, which stands at this entry.
    pub(super) fn newest(&mut self, entry: u64, registry: &Registry) -> Point {
        Point { entry, digest: self.running.digest(&registry.image().meta) }
    }

    /// None is told any more.
    pub(super) fn disown(&mut self) {
        self.disowned = true;
    }

    /// Returns all that are known.
    pub(super) fn all(&self) -> Digests {
        if self.disowned {
            return Digests { kind: KIND, points: Vec::new() };
        }
        Digests { kind: KIND, points: self.older.iter().chain(&self.recent).copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Incarnation, InstanceId, PeerId, SessionId, Timestamp},
        registry::{Command, Proposal},
        storage::digest,
    };

    fn write(registry: &mut Registry, number: u64) {
        let instance = InstanceId(1);
        let session = SessionId { instance, incarnation: Incarnation(0), connection: number };
        let (address, candidate) = (format!("192.0.2.1:{number}"), PeerId(number as u32));
        let source = crate::ids::Source::of([10, 0, 0, 1].into());
        let command = Command::AddPeer { session, source, address, candidate };
        registry.apply(&Proposal { at: Timestamp(number), batch: None, commands: vec![command] });
    }

    #[test]
    fn the_last_entries_have_a_point_each_and_of_older_ones_some() {
        let mut registry = Registry::default();
        let mut points = Points::of(&registry, None);
        assert_eq!(points.all().points, [], "nothing was applied, not even entry 0");
        let entries = EVERY * (KEPT as u64 + 3) + 5;
        for entry in 0..=entries {
            write(&mut registry, entry);
            points.follow(entry, &mut registry);
        }
        let told = points.all().points;
        assert_eq!((told.len(), told[0].entry), (KEPT + RECENT, 3 * EVERY));
        let newest = Point { entry: entries, digest: digest(registry.image()) };
        assert_eq!(told.last(), Some(&newest));
        assert!(told.windows(2).all(|two| two[0].entry < two[1].entry));
        assert_eq!(Points::of(&registry, Some(entries)).all().points, [newest]);
    }
}
